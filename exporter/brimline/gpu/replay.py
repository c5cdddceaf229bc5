"""The backend `replay`: a recording of GPU memory, played in a loop from start().

JSON lines. The first describes the GPUs, each further one is a sample:

    {"brimline_gpu_recording": 1, "gpus": [{"uuid": "GPU-3f", "name": "H100", "index": "0", "driver": "570.1",
                                            "total_bytes": 85520809984, "reserved_bytes": 577765376}]}
    {"t": 0, "used_bytes": {"GPU-3f": 1073741824}}
    {"t": 1, "used_bytes": {"GPU-3f": null}}

`t`: seconds, ascending. null, or a GPU left out: it could not be read then. A sample is in force until the
next; the last one for as long as the samples lie apart on average, then the recording starts over.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from brimline.errors import GpuError
from brimline.readings import DeviceReading, GpuReading, Uuid

MAX_FILE_BYTES = 64 << 20


class _Gpu(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    uuid: str
    total_bytes: int
    reserved_bytes: int | None = None
    name: str | None = None
    index: str | None = None
    driver: str | None = None
    power_limit_watts: float | None = None


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    brimline_gpu_recording: Literal[1]
    gpus: list[_Gpu]


class _Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    t: float
    used_bytes: dict[str, int | None]


@dataclass(frozen=True, slots=True)
class Recording:
    """GPUs, and their use at ascending times that start at 0. length: seconds until it starts over."""

    gpus: tuple[_Gpu, ...]
    times: tuple[float, ...]
    used_bytes: tuple[dict[str, int | None], ...]
    length: float

    def at(self, elapsed: float) -> int:
        """Number of the sample in force so many seconds after the start."""
        return bisect.bisect_right(self.times, elapsed % self.length) - 1

    def within(self, elapsed: float, window: float) -> Iterator[int]:
        """Numbers of the samples that were in force in the last `window` seconds, newest first."""
        number = self.at(elapsed)
        began = elapsed - (elapsed % self.length - self.times[number])
        for _ in self.times:
            yield number
            # A sample that ended exactly where the window starts is out of it.
            if began <= max(0.0, elapsed - window):
                return
            number = (number - 1) % len(self.times)
            after = self.times[number + 1] if number + 1 < len(self.times) else self.length
            began -= after - self.times[number]


def load(path: str | Path) -> Recording:
    """The recording in a file. Raises GpuError with `FILE:LINE: what; what to do`."""

    def bad(line: int, what: str) -> GpuError:
        return GpuError("replay", f"{path}:{line}: {what}")

    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise GpuError("replay", f"{path}: cannot be read ({error.strerror}); check gpu.path") from None
    if len(content) > MAX_FILE_BYTES:
        raise GpuError("replay", f"{path}: larger than 64 MiB; shorten the recording")
    lines = content.split(b"\n")
    try:
        header = msgspec.json.decode(lines[0], type=_Header)
    except msgspec.DecodeError as error:
        raise bad(
            1, f'not the first line of a recording ({error}); write {{"brimline_gpu_recording": 1, …}}'
        ) from None
    gpus = {gpu.uuid: gpu for gpu in header.gpus}
    if not gpus or len(gpus) != len(header.gpus):
        raise bad(1, "no GPU, or one UUID twice; list each GPU once")
    for gpu in header.gpus:
        if gpu.total_bytes <= 0 or not 0 <= (gpu.reserved_bytes or 0) <= gpu.total_bytes:
            raise bad(
                1,
                f"the memory of {gpu.uuid!r} cannot be; give total_bytes, of which reserved_bytes is a part",
            )
    times: list[float] = []
    used: list[dict[str, int | None]] = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        try:
            sample = msgspec.json.decode(line, type=_Sample)
        except msgspec.DecodeError as error:
            raise bad(number, f'not a sample ({error}); write {{"t": 0, "used_bytes": {{…}}}}') from None
        if times and sample.t <= times[-1]:
            raise bad(
                number, f"t of {sample.t:g} does not come after the sample before; sort the samples by t"
            )
        for uuid, used_bytes in sample.used_bytes.items():
            if uuid not in gpus:
                raise bad(number, f"unknown GPU {uuid!r}; known: {', '.join(gpus)}")
            most = gpus[uuid].total_bytes - (gpus[uuid].reserved_bytes or 0)
            if used_bytes is not None and not 0 <= used_bytes <= most:
                raise bad(number, f"{used_bytes} used bytes on {uuid!r} cannot be; it has {most}")
        times.append(sample.t)
        used.append(sample.used_bytes)
    if not times:
        raise bad(1, "the recording has no samples; add some")
    span = times[-1] - times[0]
    return Recording(
        gpus=tuple(header.gpus),
        times=tuple(t - times[0] for t in times),
        used_bytes=tuple(used),
        length=span * len(times) / (len(times) - 1) if span else 1.0,
    )


class ReplayReader:
    """Plays a recording against the clock."""

    def __init__(
        self, path: str | Path, peak_window: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._peak_window = peak_window
        self._clock = clock
        self._started = clock()
        self._recording: Recording | None = None
        self._problem = "the recording has not been started"

    def start(self) -> None:
        """Load the recording and play it from its beginning."""
        self._started = self._clock()
        try:
            self._recording = load(self._path)
        except GpuError as error:
            self._problem = str(error)

    def read(self) -> GpuReading:
        """The GPUs as recorded for this moment; up is False where the recording cannot be read."""
        if self._recording is None:
            return GpuReading(up=False, problem="replay", detail=self._problem)
        recording = self._recording
        elapsed = self._clock() - self._started
        devices = tuple(self._device(recording, place, elapsed) for place in range(len(recording.gpus)))
        return GpuReading(up=True, devices=devices)

    def close(self) -> None:
        """Nothing is held."""

    def _device(self, recording: Recording, place: int, elapsed: float) -> DeviceReading:
        gpu = recording.gpus[place]
        uuid, index = Uuid(gpu.uuid), gpu.index if gpu.index is not None else str(place)
        api = "v1" if gpu.reserved_bytes is None else "v2"
        number = recording.at(elapsed)
        used = recording.used_bytes[number].get(gpu.uuid)
        if used is None:
            return DeviceReading(
                uuid=uuid, index=index, name=gpu.name, driver=gpu.driver, memory_api=api,
                problem="unknown", detail=f"not readable in the recording at t={recording.times[number]:g}",
            )  # fmt: skip
        peaks = (
            recording.used_bytes[near].get(gpu.uuid) for near in recording.within(elapsed, self._peak_window)
        )
        return DeviceReading(
            uuid=uuid,
            index=index,
            name=gpu.name,
            driver=gpu.driver,
            memory_api=api,
            total_bytes=gpu.total_bytes,
            used_bytes=used,
            free_bytes=gpu.total_bytes - used - (gpu.reserved_bytes or 0),
            reserved_bytes=gpu.reserved_bytes,
            used_peak_bytes=max(peak for peak in peaks if peak is not None),
            power_limit_watts=gpu.power_limit_watts,
        )
