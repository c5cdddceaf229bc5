"""An NVML sampler without threads, so that each of its steps can be asked for, thousands of them in seconds.

What the threads add, hangs above all, is tested with real ones elsewhere.
"""

from __future__ import annotations

from brimline.gpu import nvml
from brimline.gpu.nvml import NvmlSampler


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class SteppedSampler(NvmlSampler):
    """Does what its threads would do when it is told to.

    To be used with nvml._Device.run replaced by `no_thread`.
    """

    def supervise(self) -> None:
        """One step of the thread that loads, starts and counts."""
        self._guarded(self._look_after if self.library.ready else self._initialise)

    def sample(self, *indexes: str) -> None:
        """One try of the threads of these GPUs and instances; of all without any."""
        for card in self._cards:
            for device in (card, *card.instances):
                index = device.identity.index if device.identity is not None else str(card.number)
                if not device.retired and (not indexes or index in indexes):
                    device._try()

    def step(self) -> None:
        """One step of all."""
        self.supervise()
        self.sample()


def no_thread(_device: nvml._Device) -> None:
    """Instead of a device's start of its own thread."""
