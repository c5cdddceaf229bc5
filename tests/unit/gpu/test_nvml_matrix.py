"""Each error that NVML may answer, at each of its calls, for the first GPU, a later one and all of them.

One process, and the fake library's state file; no thread and no waiting, so that a cell takes milliseconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from brimline.gpu import nvml
from brimline.readings import GPU_REASONS, DeviceReading, GpuReading
from fake_nvml import State
from stepped_nvml import Clock, SteppedSampler, no_thread

GIB = 1 << 30
EVERY_CODE = [*range(1, 31), 999]  # nvml.h, nvmlReturn_t
GPUS = ("0", "1", "2")

# What an error means to whoever reads it on a page; every other one is "unknown".
MEANING = {
    1: "uninitialized",
    3: "not_supported",
    4: "no_permission",
    6: "gpu_lost",
    9: "driver_not_loaded",
    12: "library_not_found",
    13: "old_driver",
    15: "gpu_lost",
    16: "gpu_lost",
    17: "no_permission",
    18: "driver_mismatch",
    25: "old_driver",
    28: "gpu_lost",
}
NEEDS_RESTART = {1, 9, 18}
WITHOUT_MEMORY_V2 = {3, 13, 25}  # then version 1 of the call is asked

WORTH_THE_VALUE = ("nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID", "nvmlDeviceGetMemoryInfo")
WORTH_NOTHING = (
    "nvmlDeviceGetName",
    "nvmlDeviceGetEnforcedPowerLimit",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetMaxMigDeviceCount",
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetGraphicsRunningProcesses",
)
MEMORY_V2, MEMORY_V1 = "nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetMemoryInfo behind version 2"
CALLS_OF_A_GPU = (*WORTH_THE_VALUE, *WORTH_NOTHING, MEMORY_V2, MEMORY_V1)
ASKED_AT_THE_START = ("nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID")
CALLS_OF_ALL = ("nvmlInitWithFlags", "nvmlDeviceGetCount", "nvmlSystemGetDriverVersion", "nvmlShutdown")
# The fault is there from the start; comes while all is well; or comes with a restart of the library.
TIMES = ("start", "running", "restart")
MEMORY = ("used_bytes", "total_bytes", "free_bytes", "reserved_bytes", "used_peak_bytes")


def meaning(code: int) -> str:
    return MEANING.get(code, "unknown")


@dataclass
class Machine:
    """Three GPUs, whose use is another one at each look."""

    state: State
    clock: Clock
    sampler: SteppedSampler
    used: int = 0

    def look(self) -> GpuReading:
        """The reading a second later, after each thread has had its turn."""
        self.clock.now += 1.0
        self.used += 1
        self.state.set({f"used.{gpu}": self.expected(gpu) for gpu in (*GPUS, "1.0", "1.1")})
        self.sampler.step()
        return self.sampler.read()

    def expected(self, gpu: str) -> int:
        """What that GPU uses at this look, and at no other one."""
        return (10 + 10 * int(gpu[0])) * GIB + 1000 * len(gpu) + 100 * int(gpu[-1]) + self.used


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch, state: State) -> None:
    monkeypatch.setattr(nvml._Device, "run", no_thread)
    monkeypatch.setattr(nvml.logger, "disabled", True)
    monkeypatch.delenv("FAKE_NVML_CALLS")  # nobody counts them here
    state.set({"count": 3, "pids.0": "1", "pids.1": "2", "pids.2": "3"})


class Machines:
    """A machine for each cell: a new one at the start, else one that has got over the cell before."""

    def __init__(self, state: State, time: str) -> None:
        self._state = state
        self._time = time
        self._known: Machine | None = None
        self.indexes: Sequence[str] = GPUS

    def next(self) -> Machine:
        if self._known is not None:
            return self._known
        clock = Clock()
        sampler = SteppedSampler(1.0, 60.0, clock=clock, process_interval=0.0, recount_interval=3.0)
        machine = Machine(self._state, clock, sampler)
        if self._time != "start":
            assert heals(machine, self.indexes)
            self._known = machine
        return machine


def faults(call: str, code: int, gpu: str | None) -> dict[str, int | str]:
    suffix = "" if gpu is None else f".{gpu}"
    # The fake takes a name without a version for both versions.
    if call == MEMORY_V1:
        return {f"err.{MEMORY_V2}{suffix}": 3, f"err.nvmlDeviceGetMemoryInfo{suffix}": code}
    return {f"err.{call}{suffix}": code}


def row(reading: GpuReading, index: str) -> DeviceReading | None:
    return next((device for device in reading.devices if device.index == index), None)


def is_right(reading: GpuReading, machine: Machine, indexes: Sequence[str] = GPUS) -> bool:
    return [(device.index, device.used_bytes, device.problem) for device in reading.devices] == [
        (index, machine.expected(index), None) for index in indexes
    ] and reading.up is True


def assert_no_old_value(reading: GpuReading, machine: Machine, cell: str) -> None:
    """Each device has its memory of this very look and no problem, or a known problem and no memory."""
    for device in reading.devices:
        said = [getattr(device, name) for name in MEMORY]
        if device.problem is None:
            reserved = GIB if device.memory_api == "v1" else 0
            assert device.used_bytes == machine.expected(device.index) + reserved, cell
        else:
            assert said == [None] * len(MEMORY), cell
            assert device.problem in GPU_REASONS, cell


def heals(machine: Machine, indexes: Sequence[str] = GPUS) -> bool:
    return any(is_right(machine.look(), machine, indexes) for _ in range(4))


def during(here: Machine, keys: dict[str, int | str], time: str) -> GpuReading:
    """The second look with the fault, as the library may be started anew in the first."""
    if time == "restart":
        # As after a driver's reload: the library is not initialised any more, and the GPUs' handles are void.
        with here.state.during({"err.nvmlDeviceGetMemoryInfo": 1}):
            here.look()
        here.sampler.ask_restart(1, here.sampler.library.generation)
    with here.state.during(keys):
        here.look()
        return here.look()


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("call", CALLS_OF_A_GPU)
def test_each_error_of_a_gpu_costs_what_it_must_and_no_more(state: State, call: str, time: str) -> None:
    machines = Machines(state, time)
    for code, gpu in itertools.product(EVERY_CODE, ("0", "2", None)):
        cell = f"{call} = {code} of {gpu or 'all'} at {time}"
        here = machines.next()

        reading = during(here, faults(call, code, gpu), time)

        assert_no_old_value(reading, here, cell)
        hit = GPUS if gpu is None else (gpu,)
        for index in GPUS:
            device = row(reading, index)
            assert device is not None, cell
            if index not in hit or call in WORTH_NOTHING:
                assert (device.problem, device.memory_api) == (None, "v2"), cell
            elif call == MEMORY_V2 and code in WITHOUT_MEMORY_V2:
                assert (device.problem, device.memory_api) == (None, "v1"), cell
            elif call in ASKED_AT_THE_START and time == "running":
                assert device.problem is None, cell
            else:
                assert device.problem == meaning(code), cell
        assert heals(here), cell


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("call", CALLS_OF_ALL)
def test_each_error_of_the_library_costs_what_it_must_and_no_more(state: State, call: str, time: str) -> None:
    machines = Machines(state, time)
    for code in EVERY_CODE:
        cell = f"{call} = {code} at {time}"
        here = machines.next()

        reading = during(here, faults(call, code, None), time)

        assert_no_old_value(reading, here, cell)
        if call in ("nvmlSystemGetDriverVersion", "nvmlShutdown"):
            assert is_right(reading, here), cell
        elif time != "running":
            assert (reading.up, reading.problem) == (False, meaning(code)), cell
            assert {device.problem for device in reading.devices} <= {meaning(code)}, cell
        elif call == "nvmlDeviceGetCount" and code in NEEDS_RESTART:
            assert (reading.up, reading.problem) == (False, meaning(code)), cell
        else:
            assert is_right(reading, here), cell  # the count is one thing, each GPU's memory another
        assert heals(here), cell


MIG: dict[str, int | str] = {"mig.1": 2, "err.nvmlDeviceGetMemoryInfo.1": 4}
WITH_INSTANCES = ("0", "1.0", "1.1", "2")
CALLS_WITH_MIG = {
    "1": ("nvmlDeviceGetHandleByIndex", "nvmlDeviceGetMigMode", "nvmlDeviceGetMaxMigDeviceCount"),
    "1.0": ("nvmlDeviceGetMigDeviceHandleByIndex", "nvmlDeviceGetUUID", "nvmlDeviceGetName",
            "nvmlDeviceGetMemoryInfo", MEMORY_V2, "nvmlDeviceGetComputeRunningProcesses"),
    "1.1": ("nvmlDeviceGetMigDeviceHandleByIndex", "nvmlDeviceGetUUID", "nvmlDeviceGetMemoryInfo"),
}  # fmt: skip


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize(
    ("device", "call"), [(d, call) for d, calls in CALLS_WITH_MIG.items() for call in calls]
)
def test_each_error_of_an_instance_costs_that_instance_only(
    state: State, device: str, call: str, time: str
) -> None:
    state.set(MIG)
    machines = Machines(state, time)
    machines.indexes = WITH_INSTANCES
    for code in EVERY_CODE:
        cell = f"{call} = {code} of {device} at {time}"
        here = machines.next()

        reading = during(here, faults(call, code, device), time)

        assert_no_old_value(reading, here, cell)
        others = [index for index in WITH_INSTANCES if not index.startswith(device)]
        for index in others:
            other = row(reading, index)
            assert other is not None, cell
            assert other.problem is None, cell
        if call == "nvmlDeviceGetMemoryInfo":
            broken = row(reading, device)
            assert broken is not None, cell
            assert broken.problem == meaning(code), cell
        assert heals(here, WITH_INSTANCES), cell
