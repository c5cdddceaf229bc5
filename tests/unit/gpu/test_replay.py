"""Recordings of GPU memory: what plays when, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brimline.config import GpuConfig
from brimline.gpu import open_gpu_reader
from brimline.gpu.replay import ReplayReader
from brimline.readings import DeviceReading, GpuReading, Uuid

HEADER = {
    "brimline_gpu_recording": 1,
    "gpus": [
        {
            "uuid": "GPU-a", "name": "Recorded", "index": "0", "driver": "570.1",
            "total_bytes": 1000, "reserved_bytes": 50,
        },
        {"uuid": "GPU-b", "index": "1", "total_bytes": 500},
    ],
}  # fmt: skip


class Clock:
    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


def sample(t: float, a: int | None, b: int | None = 100) -> dict[str, object]:
    return {"t": t, "used_bytes": {"GPU-a": a, "GPU-b": b}}


def recording(directory: Path, *lines: object) -> Path:
    path = directory / "recording.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def played(path: Path, *, peak_window: float = 60.0) -> tuple[Clock, ReplayReader]:
    clock = Clock()
    reader = ReplayReader(path, peak_window, clock=clock)
    reader.start()
    return clock, reader


def used(reading: GpuReading, uuid: str = "GPU-a") -> int | None:
    return next(device.used_bytes for device in reading.devices if device.uuid == uuid)


def peak(reading: GpuReading, uuid: str = "GPU-a") -> int | None:
    return next(device.used_peak_bytes for device in reading.devices if device.uuid == uuid)


def test_devices_are_shown_as_recorded(tmp_path: Path) -> None:
    _, reader = played(recording(tmp_path, HEADER, sample(0, 400)))

    reading = reader.read()

    assert reading.up is True
    assert reading.devices == (
        DeviceReading(
            uuid=Uuid("GPU-a"), index="0", name="Recorded", driver="570.1", memory_api="v2",
            total_bytes=1000, used_bytes=400, free_bytes=550, reserved_bytes=50, used_peak_bytes=400,
        ),
        DeviceReading(
            uuid=Uuid("GPU-b"), index="1", memory_api="v1",
            total_bytes=500, used_bytes=100, free_bytes=400, used_peak_bytes=100,
        ),
    )  # fmt: skip


def test_a_sample_is_in_force_until_the_next_and_the_recording_loops(tmp_path: Path) -> None:
    clock, reader = played(recording(tmp_path, HEADER, sample(0, 1), sample(10, 2), sample(20, 3)))
    values = []

    for elapsed in (0.0, 9.9, 10.0, 19.9, 20.0, 29.9, 30.0, 40.0, 3000.0):
        clock.now = 5000.0 + elapsed
        values.append(used(reader.read()))

    assert values == [1, 1, 2, 2, 3, 3, 1, 2, 1]


def test_a_recording_may_start_at_any_time(tmp_path: Path) -> None:
    clock, reader = played(recording(tmp_path, HEADER, sample(100, 1), sample(101, 2)))

    before = used(reader.read())
    clock.now += 1

    assert (before, used(reader.read())) == (1, 2)


def test_null_is_a_gpu_that_cannot_be_read_and_the_others_go_on(tmp_path: Path) -> None:
    _, reader = played(recording(tmp_path, HEADER, sample(0, None, 100)))

    lost, other = reader.read().devices

    assert (lost.used_bytes, lost.total_bytes, lost.free_bytes, lost.used_peak_bytes) == (
        None,
        None,
        None,
        None,
    )
    assert lost.problem == "unknown"
    assert (other.used_bytes, other.problem) == (100, None)


def test_peak_is_the_highest_use_of_the_window(tmp_path: Path) -> None:
    path = recording(
        tmp_path, HEADER, sample(0, 10), sample(1, 900), sample(2, 20), sample(3, None), sample(9, 30)
    )
    clock, reader = played(path, peak_window=5.0)
    peaks = []

    for elapsed in (0.0, 1.5, 2.5, 3.5, 9.5):
        clock.now = 5000.0 + elapsed
        peaks.append(peak(reader.read()))

    assert peaks == [10, 900, 900, None, 30]


def test_peak_reaches_back_over_the_loop_but_not_before_the_start(tmp_path: Path) -> None:
    clock, reader = played(recording(tmp_path, HEADER, sample(0, 1), sample(10, 900)), peak_window=5.0)

    at_start = peak(reader.read())
    clock.now += 22

    assert (at_start, peak(reader.read())) == (1, 900)


@pytest.mark.parametrize(
    ("lines", "line", "what"),
    [
        ([""], 1, "not the first line"),
        (["{not json"], 1, "not the first line"),
        ([{"brimline_gpu_recording": 2, "gpus": []}], 1, "not the first line"),
        ([{"brimline_gpu_recording": 1, "gpus": []}], 1, "no GPU"),
        ([{"brimline_gpu_recording": 1, "gpus": [{"uuid": "GPU-a", "total_bytes": 0}]}], 1, "the memory of"),
        ([HEADER], 1, "no samples"),
        ([HEADER, sample(0, 1), "12"], 3, "not a sample"),
        ([HEADER, sample(0, 1), "", sample(0, 2)], 4, "sort the samples"),
        ([HEADER, {"t": 0, "used_bytes": {"GPU-x": 1}}], 2, "unknown GPU 'GPU-x'; known: GPU-a, GPU-b"),
        ([HEADER, sample(0, 951)], 2, "it has 950"),
        ([HEADER, sample(0, -1)], 2, "cannot be"),
        ([HEADER, '{"t": 0, "used_bytes": {"GPU-a": 1.5}}'], 2, "not a sample"),
    ],
)
def test_a_bad_recording_is_named_by_file_and_line(
    tmp_path: Path, lines: list[object], line: int, what: str
) -> None:
    path = recording(tmp_path, *lines)
    _, reader = played(path)

    reading = reader.read()

    assert (reading.up, reading.problem, reading.devices) == (False, "replay", ())
    assert reading.detail.startswith(f"{path}:{line}: ")
    assert what in reading.detail


def test_a_missing_recording_is_a_failure(tmp_path: Path) -> None:
    _, reader = played(tmp_path / "none.jsonl")

    reading = reader.read()

    assert (reading.up, reading.problem) == (False, "replay")
    assert "none.jsonl: cannot be read (No such file or directory)" in reading.detail


def test_the_backend_replay_plays_the_configured_path(tmp_path: Path) -> None:
    path = recording(tmp_path, HEADER, sample(0, 400))

    reader = open_gpu_reader(GpuConfig(backend="replay", path=str(path)), 60.0)
    reader.start()
    reading = reader.read()
    reader.close()

    assert used(reading) == 400


def test_the_backend_none_says_nothing_of_gpus() -> None:
    reader = open_gpu_reader(GpuConfig(backend="none"), 60.0)
    reader.start()
    reading = reader.read()
    reader.close()

    assert reading == GpuReading(up=None)
