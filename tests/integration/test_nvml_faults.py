"""One sampler in one process, taken through every fault of the driver and out of it again.

The process loads our own libnvidia-ml.so.1 as it would load NVIDIA's; faults come and go with its state file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from exporter_process import running_exporter
from fake_nvml import SONAME, State, build
from waiting import eventually

GIB = 1 << 30
SAMPLE_INTERVAL = 0.1

HEALTHY: dict[str, int | str] = {
    "count": 2, "driver": "570.1", "total": 80 * GIB, "used.0": 10 * GIB, "used.1": 20 * GIB, "reserved": GIB,
}  # fmt: skip

PROCESS = """
import msgspec, sys
from brimline.gpu.nvml import NvmlSampler

sampler = NvmlSampler(float(sys.argv[1]), 60.0, first_retry=0.05, longest_retry=0.2, recount_interval=0.3)
sampler.start()
for _ in sys.stdin:
    print(msgspec.json.encode(sampler.read()).decode(), flush=True)
sampler.close()
"""

Reading = dict[str, Any]
Row = dict[str, Any]


class SamplerProcess:
    """A process with a sampler, asked for its reading by a line."""

    def __init__(self, directory: Path, state: State) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(SAMPLE_INTERVAL)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **state.environment, "LD_LIBRARY_PATH": str(directory)},
        )

    def read(self) -> Reading:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        reading: Reading = json.loads(self._process.stdout.readline())
        return reading

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self._process.pid}/task").iterdir()))

    def once(self, holds: Callable[[Reading], object]) -> Reading:
        """The first reading for which `holds` is true."""

        def check() -> Reading | None:
            reading = self.read()
            return reading if holds(reading) else None

        return eventually(check)

    def end(self) -> float:
        """Close its input; seconds until it has ended. Raises subprocess.TimeoutExpired."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        started = time.monotonic()
        self._process.stdin.close()
        try:
            self._process.wait(60)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
        return time.monotonic() - started


def row(reading: Reading, uuid: str) -> Row:
    """The row of a device; empty where it has none."""
    return next((device for device in reading["devices"] if device["uuid"] == uuid), {})


def used(reading: Reading, uuid: str) -> int | None:
    value: int | None = row(reading, uuid).get("used_bytes")
    return value


def memory(device: Row) -> set[int | None]:
    """Everything that a row says of its memory."""
    return {value for key, value in device.items() if key.endswith("_bytes")}


def healthy(reading: Reading) -> bool:
    values = [(device["uuid"], device["used_bytes"]) for device in reading["devices"]]
    return bool(reading["up"]) and values == [("GPU-fake-0", 10 * GIB), ("GPU-fake-1", 20 * GIB)]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SamplerProcess, State]]:
    directory = tmp_path_factory.mktemp("machine")
    build(directory)
    state = State(directory, HEALTHY)
    process = SamplerProcess(directory, state)
    yield process, state
    process.end()


@pytest.fixture
def sampler(machine: tuple[SamplerProcess, State]) -> SamplerProcess:
    """The one process, healthy before the test."""
    machine[0].once(healthy)
    return machine[0]


@pytest.fixture
def state(machine: tuple[SamplerProcess, State]) -> State:
    return machine[1]


FAULTS_OF_GPU_0: dict[str, tuple[dict[str, int | str], str]] = {
    "lost": ({"err.nvmlDeviceGetMemoryInfo.0": 15, "err.nvmlDeviceGetHandleByIndex.0": 15}, "gpu_lost"),
    "lost_handle_still_good": ({"err.nvmlDeviceGetMemoryInfo.0": 15}, "gpu_lost"),
    "reset_required": ({"err.nvmlDeviceGetMemoryInfo.0": 16}, "gpu_lost"),
    "memory_not_supported": ({"err.nvmlDeviceGetMemoryInfo.0": 3}, "not_supported"),
    "unified_memory_of_zero_bytes": ({"total.0": 0, "reserved.0": 0}, "not_supported"),
    "no_permission": ({"err.nvmlDeviceGetMemoryInfo.0": 4}, "no_permission"),
    "unknown": ({"err.nvmlDeviceGetMemoryInfo.0": 999}, "unknown"),
    "hang": ({"hang.nvmlDeviceGetMemoryInfo.0": 600}, "hang"),
    "hang_of_version_1_behind_version_2": (
        {"err.nvmlDeviceGetMemoryInfo_v2.0": 3, "hang.nvmlDeviceGetMemoryInfo.0": 600}, "hang",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS_OF_GPU_0)
def test_a_fault_of_one_gpu_takes_its_values_only_and_heals(
    sampler: SamplerProcess, state: State, fault: str
) -> None:
    keys, reason = FAULTS_OF_GPU_0[fault]

    # Its use changes at the same moment: had it a value from now on, it would be an old one.
    with state.during({**keys, "used.0": 33 * GIB, "used.1": 44 * GIB}):
        during = sampler.once(lambda reading: row(reading, "GPU-fake-0")["problem"])
        sampler.once(lambda reading: used(reading, "GPU-fake-1") == 44 * GIB)
        for value in (45 * GIB, 46 * GIB, 47 * GIB):
            state.set({"used.1": value})
            later = sampler.once(lambda reading, value=value: used(reading, "GPU-fake-1") == value)  # type: ignore[misc]
            assert row(later, "GPU-fake-0")["problem"] == reason
            assert memory(row(later, "GPU-fake-0")) == {None}
            assert later["up"] is True
    after = sampler.once(healthy)

    assert (during["up"], row(during, "GPU-fake-0")["problem"]) == (True, reason)
    assert row(during, "GPU-fake-0")["name"] == "Fake GPU"
    assert row(during, "GPU-fake-0")["index"] == "0"
    assert [device["problem"] for device in after["devices"]] == [None, None]


FAULTS_OF_ALL: dict[str, tuple[dict[str, int | str], str, str]] = {
    "driver_mismatch": (
        {"err.nvmlInitWithFlags": 18, "err.nvmlDeviceGetMemoryInfo": 18},
        "driver_mismatch", "driver_mismatch",
    ),
    "driver_not_loaded": (
        {"err.nvmlInitWithFlags": 9, "err.nvmlDeviceGetMemoryInfo": 9},
        "driver_not_loaded", "driver_not_loaded",
    ),
    "unknown": ({"err.nvmlInitWithFlags": 999, "err.nvmlDeviceGetMemoryInfo": 1}, "unknown", "unknown"),
    "zero_gpus": ({"count": 0}, "no_gpus", "gpu_lost"),
    "hang_in_init": ({"hang.nvmlInitWithFlags": 600, "err.nvmlDeviceGetMemoryInfo": 1}, "hang", "hang"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS_OF_ALL)
def test_a_fault_of_the_library_takes_all_values_and_heals(
    sampler: SamplerProcess, state: State, fault: str
) -> None:
    keys, reason, reason_of_gpus = FAULTS_OF_ALL[fault]

    with state.during({**keys, "used.0": 33 * GIB}):
        during = sampler.once(
            lambda reading: not reading["up"] and all(device["problem"] for device in reading["devices"])
        )
    after = sampler.once(healthy)

    assert (during["up"], during["problem"]) == (False, reason)
    assert [device["uuid"] for device in during["devices"]] == ["GPU-fake-0", "GPU-fake-1"]
    assert [device["problem"] for device in during["devices"]] == [reason_of_gpus] * 2
    assert [memory(device) for device in during["devices"]] == [{None}, {None}]
    assert (after["up"], after["problem"]) == (True, None)


def test_an_uninitialized_library_is_started_anew(sampler: SamplerProcess, state: State) -> None:
    starts = state.calls()["nvmlInitWithFlags"]

    with state.during({"err.nvmlDeviceGetMemoryInfo": 1}):
        during = sampler.once(
            lambda reading: {device["problem"] for device in reading["devices"]} == {"uninitialized"}
        )
        eventually(lambda: state.calls()["nvmlInitWithFlags"] > starts)
    sampler.once(healthy)

    assert [memory(device) for device in during["devices"]] == [{None}, {None}]


def test_a_gpu_that_only_a_restart_brings_back_gets_one(sampler: SamplerProcess, state: State) -> None:
    starts = state.calls()["nvmlInitWithFlags"]
    seen: set[int | None] = set()

    def healed(reading: Reading) -> bool:
        seen.add(used(reading, "GPU-fake-1"))
        return state.calls()["nvmlInitWithFlags"] > starts and used(reading, "GPU-fake-0") == 33 * GIB

    # No value of before: only a call after the restart can tell it.
    with state.during({"lost_until_init.0": 1, "used.0": 33 * GIB}):
        sampler.once(healed)

    assert seen == {20 * GIB}


def test_the_library_is_not_restarted_while_a_call_hangs(sampler: SamplerProcess, state: State) -> None:
    before = state.calls()

    with state.during({"hang.nvmlDeviceGetMemoryInfo.0": 600, "err.nvmlDeviceGetMemoryInfo.1": 15}):
        sampler.once(lambda reading: [gpu["problem"] for gpu in reading["devices"]] == ["hang", "gpu_lost"])
        asked = (state.calls() - before)["nvmlDeviceGetHandleByIndex_v2 1"]
        # Several of its retries, and so several chances to restart.
        eventually(lambda: (state.calls() - before)["nvmlDeviceGetHandleByIndex_v2 1"] >= asked + 5)
        during = state.calls() - before
    sampler.once(healthy)

    assert during["nvmlShutdown"] == 0
    assert during["nvmlInitWithFlags"] == 0


def test_a_hang_is_one_call_and_no_more_threads(sampler: SamplerProcess, state: State) -> None:
    threads = sampler.threads()

    with state.during({"hang.nvmlDeviceGetMemoryInfo.0": 600}):
        sampler.once(lambda reading: row(reading, "GPU-fake-0")["problem"] == "hang")
        before = state.calls()
        eventually(lambda: (state.calls() - before)["nvmlDeviceGetMemoryInfo_v2 1"] >= 20)
        on_gpu_0 = [call for call in state.calls() - before if call.endswith(" 0")]
        threads_during = sampler.threads()
    sampler.once(healthy)

    assert on_gpu_0 == []
    assert threads_during == threads


def test_mig_instances_are_read_where_their_gpu_may_not_be(sampler: SamplerProcess, state: State) -> None:
    mig: dict[str, int | str] = {"mig.0": 2, "used.0.0": 3 * GIB, "used.0.1": 4 * GIB}

    with state.during({**mig, "err.nvmlDeviceGetMemoryInfo.0": 4}):
        instances = sampler.once(
            lambda reading: used(reading, "MIG-fake-0.0") and used(reading, "MIG-fake-0.1")
        )
        with state.during({"err.nvmlDeviceGetMemoryInfo.0.0": 15, "used.0.1": 5 * GIB}):
            one_lost = sampler.once(lambda reading: row(reading, "MIG-fake-0.0")["problem"])
            sampler.once(lambda reading: used(reading, "MIG-fake-0.1") == 5 * GIB)
        sampler.once(lambda reading: used(reading, "MIG-fake-0.0") == 3 * GIB)
    sampler.once(healthy)

    assert [(gpu["index"], gpu["uuid"], gpu["used_bytes"]) for gpu in instances["devices"][:2]] == [
        ("0.0", "MIG-fake-0.0", 3 * GIB),
        ("0.1", "MIG-fake-0.1", 4 * GIB),
    ]
    assert row(one_lost, "MIG-fake-0.0")["problem"] == "gpu_lost"
    assert memory(row(one_lost, "MIG-fake-0.0")) == {None}


def test_a_gpu_in_mig_mode_without_a_readable_instance_has_a_row(
    sampler: SamplerProcess, state: State
) -> None:
    keys: dict[str, int | str] = {"mig.0": 2, "err.nvmlDeviceGetMigDeviceHandleByIndex": 4}

    with state.during({**keys, "err.nvmlDeviceGetMemoryInfo.0": 4}):
        during = sampler.once(lambda reading: row(reading, "GPU-fake-0")["problem"])
    sampler.once(healthy)

    assert [device["index"] for device in during["devices"]] == ["0", "1"]
    assert row(during, "GPU-fake-0")["problem"] == "no_permission"
    assert used(during, "GPU-fake-1") == 20 * GIB


def test_a_hanging_instance_costs_no_other(sampler: SamplerProcess, state: State) -> None:
    with state.during(
        {"mig.0": 2, "used.0.0": 3 * GIB, "used.0.1": 4 * GIB, "err.nvmlDeviceGetMemoryInfo.0": 4}
    ):
        sampler.once(lambda reading: used(reading, "MIG-fake-0.0") and used(reading, "MIG-fake-0.1"))
        with state.during({"hang.nvmlDeviceGetMemoryInfo.0.0": 600, "used.0.1": 5 * GIB}):
            during = sampler.once(lambda reading: row(reading, "MIG-fake-0.0")["problem"])
        sampler.once(lambda reading: used(reading, "MIG-fake-0.0"))
    sampler.once(healthy)

    assert row(during, "MIG-fake-0.0")["problem"] == "hang"
    assert used(during, "MIG-fake-0.1") == 5 * GIB
    assert used(during, "GPU-fake-1") == 20 * GIB


def test_a_library_that_appears_later_is_found(tmp_path: Path) -> None:
    state = State(tmp_path, HEALTHY)
    process = SamplerProcess(tmp_path, state)

    missing = process.once(lambda reading: reading["problem"] != "uninitialized")
    build(tmp_path)
    found = process.once(healthy)
    process.end()

    assert (missing["up"], missing["problem"], missing["devices"]) == (False, "library_not_found", [])
    assert found["problem"] is None


def test_a_library_that_is_replaced_on_disk_is_loaded_anew(tmp_path: Path) -> None:
    build(tmp_path, "INIT_RESULT=18")
    state = State(tmp_path, HEALTHY)
    process = SamplerProcess(tmp_path, state)

    mismatch = process.once(lambda reading: reading["problem"] != "uninitialized")
    build(tmp_path)
    after = process.once(healthy)
    process.end()

    assert (mismatch["up"], mismatch["problem"]) == (False, "driver_mismatch")
    assert after["problem"] is None


def test_a_driver_without_memory_version_2_is_read_by_version_1(tmp_path: Path) -> None:
    build(tmp_path, "WITHOUT_MEMORY_V2")
    process = SamplerProcess(tmp_path, State(tmp_path, HEALTHY))

    reading = process.once(lambda reading: reading["up"] and used(reading, "GPU-fake-0"))
    process.end()

    gpu = row(reading, "GPU-fake-0")
    assert (gpu["memory_api"], gpu["used_bytes"], gpu["reserved_bytes"]) == ("v1", 11 * GIB, None)


@pytest.mark.parametrize("function", ["nvmlInitWithFlags", "nvmlDeviceGetCount", "nvmlDeviceGetMemoryInfo"])
def test_the_process_ends_within_two_seconds_while_a_call_hangs(tmp_path: Path, function: str) -> None:
    build(tmp_path)
    process = SamplerProcess(tmp_path, State(tmp_path, {**HEALTHY, f"hang.{function}": 600}))
    process.once(
        lambda reading: "hang" in (reading["problem"], *(device["problem"] for device in reading["devices"]))
    )

    assert process.end() < 8.0  # at once, on a machine that is not busy


def test_the_process_ends_within_two_seconds_when_all_is_well(tmp_path: Path) -> None:
    assert (tmp_path / SONAME) == build(tmp_path)
    process = SamplerProcess(tmp_path, State(tmp_path, HEALTHY))
    process.once(healthy)

    assert process.end() < 8.0  # at once, on a machine that is not busy


def test_reloads_of_the_exporter_send_no_call_after_one_that_hangs(tmp_path: Path) -> None:
    def config(interval: str) -> str:
        return f"gpu: {{sample_interval: {interval}}}\ntargets: []\n"

    def threads() -> int:
        return len(list(Path(f"/proc/{exporter.process.pid}/task").iterdir()))

    def hanging() -> bool:
        metrics = exporter.metrics()
        values = [metrics.get(f'gpu_memory_used_bytes{{gpu="GPU-fake-{number}"}}') for number in (0, 1)]
        return 'gpu_problem{gpu="GPU-fake-0",reason="hang"}' in metrics and values == [None, 20 * GIB]

    build(tmp_path)
    state = State(tmp_path, HEALTHY)
    environ = {**state.environment, "LD_LIBRARY_PATH": str(tmp_path)}
    with running_exporter(tmp_path, config("100ms"), environ=environ) as exporter:
        eventually(lambda: exporter.metrics().get('gpu_up{gpu="GPU-fake-0"}') == 1)
        with state.during({"hang.nvmlDeviceGetMemoryInfo.0": 600}):
            eventually(hanging)
            before, threads_before = state.calls(), threads()
            for interval in ("110ms", "120ms", "130ms", "140ms", "150ms"):
                (tmp_path / "brimline.yaml").write_text(config(interval))
                reload = urllib.request.Request(f"{exporter.url}/-/reload", method="POST")
                with urllib.request.urlopen(reload, timeout=60) as answer:
                    assert answer.status == 200
                eventually(hanging)
            during, threads_during = state.calls() - before, threads()
        eventually(lambda: exporter.metrics().get('gpu_up{gpu="GPU-fake-0"}') == 1)

    assert [call for call in during if call.endswith(" 0")] == []
    assert threads_during == threads_before


def test_a_count_that_hangs_takes_no_value(sampler: SamplerProcess, state: State) -> None:
    with state.during({"hang.nvmlDeviceGetCount": 600}):
        during = sampler.once(lambda reading: reading["detail"])
        state.set({"used.0": 33 * GIB, "used.1": 44 * GIB})
        sampler.once(lambda reading: used(reading, "GPU-fake-0") == 33 * GIB)
        later = sampler.once(lambda reading: used(reading, "GPU-fake-1") == 44 * GIB)
    after = sampler.once(lambda reading: healthy(reading) and not reading["detail"])

    assert [(reading["up"], reading["problem"]) for reading in (during, later, after)] == [(True, None)] * 3
    assert during["detail"] == "a call that concerns all GPUs has not come back"
