"""Readers of GPU memory, one for each `gpu.backend` of the configuration."""

from __future__ import annotations

from typing import Protocol

from brimline.config import GpuConfig
from brimline.readings import GpuReading

__all__ = ["GpuReader", "open_gpu_reader"]

# How often processes are listed where only their numbers are wanted: a list took 4.5 ms of the driver's time
# where memory took 12 us (RTX 4090, MangoHud#2104).
PIDS_INTERVAL = 5.0


class GpuReader(Protocol):
    """Reads the memory of every GPU of this machine."""

    def start(self) -> None:
        """Begin; returns at once."""

    def read(self) -> GpuReading:
        """What is known now. Never waits for a GPU."""

    def close(self) -> None:
        """Stop; takes 0.2 s at most, also while a GPU hangs."""


class _NoGpus:
    """The backend `none`: no GPU is to be read."""

    def start(self) -> None:
        pass

    def read(self) -> GpuReading:
        return GpuReading(up=None)

    def close(self) -> None:
        pass


def open_gpu_reader(config: GpuConfig, peak_window: float, *, want_pids: bool = False) -> GpuReader:
    """The reader that the configuration asks for, to be started once the one before is closed.

    peak_window: seconds over which `used_peak_bytes` is the highest use.
    want_pids: also list the processes of each GPU, which costs the driver more than all else together.
    """
    if config.backend == "nvml":
        # Imported here: a machine without GPUs need not load the binding.
        from brimline.gpu.nvml import process_sampler

        interval = config.sample_interval if config.processes else PIDS_INTERVAL if want_pids else None
        return process_sampler(config.sample_interval, peak_window, process_interval=interval)
    if config.backend == "replay":
        from brimline.gpu.replay import ReplayReader

        return ReplayReader(config.path or "", peak_window)
    return _NoGpus()
