"""NVML sampling inside this process, with our own library and our own clock."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from brimline.config import GpuConfig
from brimline.gpu import nvml, open_gpu_reader
from brimline.gpu.nvml import NvmlSampler
from brimline.readings import GPU_REASONS, DeviceReading, GpuReading
from brimline.strict_yaml import Seconds
from fake_nvml import State
from waiting import eventually

GIB = 1 << 30
NOT_AVAILABLE = 2**64 - 1  # nvml.h: NVML_VALUE_NOT_AVAILABLE as unsigned long long


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


Sample = Callable[..., NvmlSampler]


@pytest.fixture
def sample(state: State) -> Iterator[Sample]:
    started: list[NvmlSampler] = []

    def start(interval: float = 0.02, peak_window: float = 60.0, **options: object) -> NvmlSampler:
        sampler = NvmlSampler(interval, peak_window, first_retry=0.02, longest_retry=0.05, **options)  # type: ignore[arg-type]
        sampler.start()
        started.append(sampler)
        return sampler

    yield start
    for sampler in started:
        sampler.close()


def all_read(sampler: NvmlSampler, rows: int = 2) -> GpuReading:
    def check() -> GpuReading | None:
        reading = sampler.read()
        complete = len(reading.devices) == rows and all(
            device.used_bytes is not None for device in reading.devices
        )
        return reading if complete and reading.up else None

    return eventually(check)


def once(sampler: NvmlSampler, index: str, holds: Callable[[DeviceReading], object]) -> DeviceReading:
    """The first row of that index for which `holds` is true."""

    def check() -> DeviceReading | None:
        rows = (device for device in sampler.read().devices if device.index == index)
        return next((device for device in rows if holds(device)), None)

    return eventually(check)


def reading_once(sampler: NvmlSampler, holds: Callable[[GpuReading], object]) -> GpuReading:
    """The first reading for which `holds` is true."""

    def check() -> GpuReading | None:
        reading = sampler.read()
        return reading if holds(reading) else None

    return eventually(check)


def row(reading: GpuReading, index: str) -> DeviceReading:
    return next(device for device in reading.devices if device.index == index)


def test_before_the_first_answer_nothing_is_claimed(state: State) -> None:
    reading = NvmlSampler(1.0, 60.0).read()

    assert (reading.up, reading.problem, reading.devices) == (False, "uninitialized", ())


def test_every_gpu_has_a_row_with_used_and_reserved_apart(sample: Sample) -> None:
    reading = all_read(sample())

    assert (reading.up, reading.problem) == (True, None)
    assert reading.devices[1] == DeviceReading(
        uuid=reading.devices[1].uuid, index="1", name="Fake GPU", driver="570.1", memory_api="v2",
        total_bytes=80 * GIB, used_bytes=20 * GIB, free_bytes=59 * GIB, reserved_bytes=GIB,
        used_peak_bytes=20 * GIB,
    )  # fmt: skip
    assert reading.devices[1].uuid == "GPU-fake-1"


def test_a_value_lives_for_two_sample_intervals(sample: Sample) -> None:
    clock = Clock()
    sampler = sample(5.0, clock=clock)
    all_read(sampler)

    clock.now += 10.0
    last = sampler.read()
    clock.now += 0.1
    late = sampler.read()

    assert row(last, "0").used_bytes == 10 * GIB
    assert [device.used_bytes for device in late.devices] == [None, None]
    assert [device.total_bytes for device in late.devices] == [None, None]
    assert [device.used_peak_bytes for device in late.devices] == [None, None]
    assert [device.problem for device in late.devices] == ["hang", "hang"]
    assert row(late, "0").uuid == "GPU-fake-0"


def test_peak_is_the_highest_use_of_the_window(sample: Sample, state: State) -> None:
    clock = Clock()
    sampler = sample(peak_window=30.0, clock=clock)
    all_read(sampler)
    state.set({"used.0": 70 * GIB})
    once(sampler, "0", lambda gpu: gpu.used_bytes == 70 * GIB)
    state.set({"used.0": 5 * GIB})
    once(sampler, "0", lambda gpu: gpu.used_bytes == 5 * GIB)

    within = row(sampler.read(), "0").used_peak_bytes
    clock.now += 30.1
    once(sampler, "0", lambda gpu: gpu.used_peak_bytes == 5 * GIB)

    assert within == 70 * GIB


def test_a_not_available_field_is_absent_and_the_rest_stays(sample: Sample, state: State) -> None:
    sampler = sample()
    all_read(sampler)

    state.set({"reserved.0": NOT_AVAILABLE})
    gpu = once(sampler, "0", lambda gpu: gpu.reserved_bytes is None)

    assert (gpu.used_bytes, gpu.total_bytes, gpu.problem) == (10 * GIB, 80 * GIB, None)


@pytest.mark.parametrize("answer", [{"total.0": 0}, {"used.0": NOT_AVAILABLE}, {"used.0": 81 * GIB}])
def test_memory_that_cannot_be_is_not_supported(
    sample: Sample, state: State, answer: dict[str, int | str]
) -> None:
    sampler = sample()
    all_read(sampler)

    state.set(answer)
    gpu = once(sampler, "0", lambda gpu: gpu.problem)

    assert (gpu.problem, gpu.memory_api, gpu.used_bytes, gpu.total_bytes) == (
        "not_supported",
        "none",
        None,
        None,
    )
    assert row(sampler.read(), "1").used_bytes == 20 * GIB


def test_version_1_counts_reserved_as_used_and_says_so(sample: Sample, state: State) -> None:
    state.set({"err.nvmlDeviceGetMemoryInfo_v2": 25})

    gpu = row(all_read(sample()), "0")

    assert (gpu.memory_api, gpu.used_bytes, gpu.reserved_bytes) == ("v1", 11 * GIB, None)


def test_a_cycle_asks_each_gpu_for_its_memory_and_nothing_else(sample: Sample, state: State) -> None:
    sampler = sample()
    all_read(sampler)
    before = state.calls()
    eventually(lambda: (state.calls() - before)["nvmlDeviceGetMemoryInfo_v2 0"] >= 20)

    during = state.calls() - before

    assert {call.split()[0] for call in during} == {"nvmlDeviceGetMemoryInfo_v2"}


def test_the_power_limit_is_asked_for_once_a_minute(sample: Sample, state: State) -> None:
    state.set({"power_limit.0": 700_000})
    clock = Clock()
    sampler = sample(clock=clock)
    reading = all_read(sampler)
    state.set({"power_limit.0": 500_000})
    before = state.calls()
    eventually(lambda: (state.calls() - before)["nvmlDeviceGetMemoryInfo_v2 0"] >= 10)

    asked_at_once = (state.calls() - before)["nvmlDeviceGetEnforcedPowerLimit 0"]
    clock.now += 60.0
    once(sampler, "0", lambda gpu: gpu.power_limit_watts == 500.0)

    assert row(reading, "0").power_limit_watts == 700.0
    assert row(reading, "1").power_limit_watts is None
    assert asked_at_once == 0


def test_read_makes_no_call(sample: Sample, state: State) -> None:
    sampler = sample(60.0)
    all_read(sampler)
    before = state.calls()

    for _ in range(100):
        sampler.read()

    assert state.calls() == before


def test_processes_are_listed_only_on_demand_and_at_most_every_five_seconds(
    sample: Sample, state: State
) -> None:
    state.set({"pids.0": "12,34", "graphics_pids.0": "56"})
    clock = Clock()
    sampler = sample(clock=clock, process_interval=5.0)
    reading = all_read(sampler)
    state.set({"pids.0": "78"})
    before = state.calls()
    eventually(lambda: (state.calls() - before)["nvmlDeviceGetMemoryInfo_v2 0"] >= 10)

    lists_at_once = [call for call in state.calls() - before if "Processes" in call]
    clock.now += 5.0
    once(sampler, "0", lambda gpu: gpu.pids == frozenset({78, 56}))

    assert row(reading, "0").pids == frozenset({12, 34, 56})
    assert row(reading, "1").pids == frozenset()
    assert lists_at_once == []


def test_processes_come_with_their_memory_where_the_driver_tells_it(sample: Sample, state: State) -> None:
    state.set({"pids.0": "12,34", "graphics_pids.0": "12", "pid_memory.12": 7 * GIB})

    reading = all_read(sample(process_interval=0.02))

    assert row(reading, "0").processes == {12: 7 * GIB, 34: None}


def test_processes_that_cannot_be_listed_are_unknown_not_none_at_all(sample: Sample, state: State) -> None:
    state.set({"err.nvmlDeviceGetComputeRunningProcesses.0": 4})

    reading = all_read(sample(process_interval=5.0))

    assert row(reading, "0").pids is None
    assert row(reading, "1").pids == frozenset()


def test_mig_instances_have_rows_instead_of_their_gpu(sample: Sample, state: State) -> None:
    state.set(
        {"mig.0": 2, "used.0.0": 3 * GIB, "used.0.1": 4 * GIB, "total.0.0": 40 * GIB, "total.0.1": 40 * GIB}
    )

    reading = all_read(sample(), rows=3)

    assert [(device.index, device.uuid, device.used_bytes) for device in reading.devices] == [
        ("0.0", "MIG-fake-0.0", 3 * GIB),
        ("0.1", "MIG-fake-0.1", 4 * GIB),
        ("1", "GPU-fake-1", 20 * GIB),
    ]


def test_mig_instances_that_come_and_go_are_followed(sample: Sample, state: State) -> None:
    state.set({"mig.0": 1, "used.0.0": 3 * GIB, "used.0.1": 4 * GIB})
    sampler = sample(recount_interval=0.05)
    all_read(sampler, rows=2)

    state.set({"mig.0": 2})
    more = all_read(sampler, rows=3)
    state.remove("mig.0")
    eventually(lambda: [device.index for device in sampler.read().devices] == ["0", "1"])

    assert [device.index for device in more.devices] == ["0.0", "0.1", "1"]
    assert row(all_read(sampler), "0").used_bytes == 10 * GIB


def test_a_gpu_that_leaves_the_list_is_lost_and_one_that_joins_is_read(sample: Sample, state: State) -> None:
    sampler = sample(recount_interval=0.05)
    all_read(sampler)

    state.set({"count": 1})
    gone = once(sampler, "1", lambda gpu: gpu.problem == "gpu_lost")
    stays = row(sampler.read(), "0")
    state.set({"count": 3, "used.2": 30 * GIB})
    joined = all_read(sampler, rows=3)

    assert (gone.uuid, gone.name, gone.used_bytes) == ("GPU-fake-1", "Fake GPU", None)
    assert stays.used_bytes == 10 * GIB
    assert [device.used_bytes for device in joined.devices] == [10 * GIB, 20 * GIB, 30 * GIB]


def test_values_follow_the_uuid_when_indexes_shift(sample: Sample, state: State) -> None:
    sampler = sample(recount_interval=0.05)
    all_read(sampler)

    state.set({"count": 1, "uuid.0": "GPU-fake-1", "used.0": 20 * GIB})
    shifted = {"GPU-fake-0": None, "GPU-fake-1": 20 * GIB}

    eventually(lambda: {device.uuid: device.used_bytes for device in sampler.read().devices} == shifted)


def test_a_gpu_that_never_told_its_uuid_has_a_row_by_index(sample: Sample, state: State) -> None:
    state.set({"err.nvmlDeviceGetUUID.0": 999})
    sampler = sample()
    once(sampler, "1", lambda gpu: gpu.used_bytes)
    once(sampler, "0", lambda gpu: gpu.problem)

    reading = sampler.read()

    assert reading.up is True
    assert [(device.uuid, device.problem) for device in reading.devices] == [
        ("index:0", "unknown"),
        ("GPU-fake-1", None),
    ]


def test_where_no_gpu_can_be_reached_nvml_is_down(sample: Sample, state: State) -> None:
    state.set({"err.nvmlDeviceGetHandleByIndex": 4})
    sampler = sample()

    reading = eventually(lambda: (found := sampler.read()).problem == "no_permission" and found)

    assert reading.up is False


def test_name_and_driver_are_not_worth_a_failure(sample: Sample, state: State) -> None:
    state.set({"err.nvmlDeviceGetName": 999, "err.nvmlSystemGetDriverVersion": 999})

    gpu = row(all_read(sample()), "0")

    assert (gpu.name, gpu.driver, gpu.used_bytes) == (None, None, 10 * GIB)


def test_every_error_code_gives_a_known_reason() -> None:
    assert set(nvml.REASONS.values()) <= set(GPU_REASONS)


# The fake may heal between a try of version 2 and the one of version 1 behind it, which then stays in use.
SAME_IN_BOTH_VERSIONS: dict[str, int | str] = {"reserved": 0}


@pytest.mark.parametrize("code", [*range(1, 31), 999])
def test_an_error_of_one_gpu_costs_that_gpu_only(sample: Sample, state: State, code: int) -> None:
    state.set(SAME_IN_BOTH_VERSIONS)
    sampler = sample()
    all_read(sampler)

    with state.during({"err.nvmlDeviceGetMemoryInfo.0": code, "used.0": 15 * GIB}):
        gpu = once(sampler, "0", lambda gpu: gpu.problem)
        # It may have no value for a moment, while the library is started anew.
        other = once(sampler, "1", lambda gpu: gpu.used_bytes)
    state.set({"used.0": 12 * GIB})
    once(sampler, "0", lambda gpu: gpu.used_bytes == 12 * GIB)

    assert gpu.problem in GPU_REASONS
    assert (gpu.used_bytes, gpu.total_bytes, gpu.free_bytes, gpu.used_peak_bytes) == (None, None, None, None)
    assert other.used_bytes == 20 * GIB


CALLS_OF_ONE_GPU = ["HandleByIndex", "UUID", "Name", "MemoryInfo", "MigMode", "MaxMigDeviceCount"]
CALLS_OF_ALL = ["nvmlInitWithFlags", "nvmlDeviceGetCount", "nvmlSystemGetDriverVersion", "nvmlShutdown"]
EVERY_CODE = [*range(1, 31), 999]  # nvml.h, nvmlReturn_t


@pytest.mark.parametrize("call", CALLS_OF_ONE_GPU)
def test_whatever_one_gpu_answers_at_the_start_the_other_is_right_and_it_heals(
    sample: Sample, state: State, call: str
) -> None:
    state.set(SAME_IN_BOTH_VERSIONS)
    for code in EVERY_CODE:
        with state.during({f"err.nvmlDeviceGet{call}.0": code}):
            sampler = sample()
            other = once(sampler, "1", lambda gpu: gpu.used_bytes)
            problems = {gpu.problem for gpu in sampler.read().devices}
        healed = all_read(sampler)
        sampler.close()

        assert other.used_bytes == 20 * GIB, code
        assert problems <= {None, *GPU_REASONS}, code
        assert row(healed, "0").used_bytes == 10 * GIB, code


def first_answer(sampler: NvmlSampler, code: int) -> GpuReading:
    """The first reading that is up, or down for that error."""

    def check() -> GpuReading | None:
        reading = sampler.read()
        return reading if reading.up or f"({code})" in reading.detail else None

    return eventually(check)


@pytest.mark.parametrize("call", CALLS_OF_ALL)
def test_whatever_the_library_answers_at_the_start_it_heals(sample: Sample, state: State, call: str) -> None:
    for code in EVERY_CODE:
        with state.during({f"err.{call}": code}):
            sampler = sample()
            reading = first_answer(sampler, code)
        healed = all_read(sampler)
        sampler.close()

        assert reading.problem in {None, *GPU_REASONS}, code
        assert row(healed, "0").used_bytes == 10 * GIB, code


def test_a_change_of_state_is_logged_once(
    sample: Sample, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "brimline.gpu.nvml")
    sampler = sample()
    all_read(sampler)
    with state.during({"err.nvmlDeviceGetMemoryInfo.0": 3}):
        once(sampler, "0", lambda gpu: gpu.problem)
        for _ in range(20):
            sampler.read()
    all_read(sampler)

    lines = [record.getMessage() for record in caplog.records]

    assert lines == [
        "nvml up=true driver=570.1 gpus=2",
        "gpu=GPU-fake-0 up=false reason=not_supported detail='nvmlDeviceGetMemoryInfo: NOT_SUPPORTED (3)'",
        "gpu=GPU-fake-0 up=true",
    ]


def test_close_shuts_the_library_down_and_takes_no_time(sample: Sample, state: State) -> None:
    sampler = sample()
    all_read(sampler)

    started = time.monotonic()
    sampler.close()
    took = time.monotonic() - started

    assert took < 5  # nothing is waited for
    eventually(lambda: state.calls()["nvmlShutdown"] == state.calls()["nvmlInitWithFlags"] == 1)


def test_close_leaves_the_library_alone_while_a_call_hangs(sample: Sample, state: State) -> None:
    sampler = sample()
    all_read(sampler)

    with state.during({"hang.nvmlDeviceGetMemoryInfo.0": 600}):
        once(sampler, "0", lambda gpu: gpu.problem == "hang")
        started = time.monotonic()
        sampler.close()
        took = time.monotonic() - started

    assert took < 5  # nothing is waited for
    assert state.calls()["nvmlShutdown"] == 0


Reload = Callable[..., NvmlSampler]


@pytest.fixture
def reload(state: State, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reload]:
    """Closes the reader of before and starts one with other settings, as the collector does at a reload."""
    opened: list[NvmlSampler] = []
    monkeypatch.setattr(nvml, "_OF_THIS_PROCESS", opened)

    def start(interval: float, peak_window: float = 60.0, *, want_pids: bool = False) -> NvmlSampler:
        for sampler in opened:
            sampler.close()
        config = GpuConfig(sample_interval=Seconds(interval))
        reader = open_gpu_reader(config, peak_window, want_pids=want_pids)
        assert isinstance(reader, NvmlSampler)
        reader.start()
        return reader

    yield start
    for sampler in opened:
        sampler.close()


def sampling_threads() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("nvml"))


def test_a_reload_makes_no_second_call_on_a_gpu_that_hangs(reload: Reload, state: State) -> None:
    eventually(lambda: sampling_threads() == [])  # those of the test before end in their own time
    sampler = reload(0.02)
    all_read(sampler)
    threads = sampling_threads()

    with state.during({"hang.nvmlDeviceGetMemoryInfo.0": 600}):
        once(sampler, "0", lambda gpu: gpu.problem == "hang")
        before = state.calls()
        for interval in (0.03, 0.04, 0.05, 0.06, 0.07):
            sampler = reload(interval)
            once(sampler, "1", lambda gpu: gpu.used_bytes)
            hanging = once(sampler, "0", lambda gpu: gpu.problem)
            assert (hanging.uuid, hanging.problem) == ("GPU-fake-0", "hang")
        state.set({"used.1": 44 * GIB})
        once(sampler, "1", lambda gpu: gpu.used_bytes == 44 * GIB)  # read after the reloads, too
        during = state.calls() - before
        eventually(lambda: sampling_threads() == threads)
    state.set({"used.0": 33 * GIB})
    once(sampler, "0", lambda gpu: gpu.used_bytes == 33 * GIB)

    assert [call for call in during if call.endswith(" 0")] == []
    assert during["nvmlInitWithFlags"] == 0
    eventually(lambda: sampling_threads() == threads)


@pytest.mark.parametrize("hanging", ["nvmlDeviceGetCount", "nvmlInitWithFlags"])
def test_a_reload_makes_no_second_call_for_all_gpus_either(
    reload: Reload, state: State, hanging: str
) -> None:
    state.set({f"hang.{hanging}": 600})
    sampler = reload(0.02)
    eventually(lambda: sampler.read().problem == "hang")
    threads = sampling_threads()

    for interval in (0.03, 0.04):
        sampler = reload(interval)
    calls = state.calls()
    threads_during = sampling_threads()
    state.remove(f"hang.{hanging}")
    all_read(sampler)

    assert sum(count for call, count in calls.items() if call.startswith(hanging)) == 1
    assert threads_during == threads == ["nvml"]


def test_gpus_are_read_after_a_reload_while_their_count_hangs(reload: Reload, state: State) -> None:
    sampler = reload(0.02)
    all_read(sampler)

    with state.during({"hang.nvmlDeviceGetCount": 600}):
        before = state.calls()
        sampler.ask_recount()
        reading_once(sampler, lambda reading: reading.detail)
        sampler = reload(0.03)
        state.set({"used.0": 33 * GIB})
        once(sampler, "0", lambda gpu: gpu.used_bytes == 33 * GIB)
        asked = [
            call for call in (state.calls() - before).elements() if call.startswith("nvmlDeviceGetCount")
        ]
    after = reading_once(sampler, lambda reading: not reading.detail)

    assert len(asked) == 1
    assert after.up is True


def test_a_reload_keeps_the_peak_and_leaves_no_gap(reload: Reload, state: State) -> None:
    sampler = reload(1.0)
    all_read(sampler)
    state.set({"used.0": 70 * GIB})
    once(sampler, "0", lambda gpu: gpu.used_bytes == 70 * GIB)
    state.set({"used.0": 5 * GIB})
    once(sampler, "0", lambda gpu: gpu.used_bytes == 5 * GIB)

    sampler = reload(2.0)
    at_once = sampler.read()
    sampler = reload(0.02)
    state.set({"used.0": 6 * GIB})
    later = once(sampler, "0", lambda gpu: gpu.used_bytes == 6 * GIB)

    assert (at_once.up, row(at_once, "0").used_bytes) == (True, 5 * GIB)
    assert row(at_once, "0").used_peak_bytes == 70 * GIB
    assert later.used_peak_bytes == 70 * GIB


def test_a_reload_changes_what_is_read(reload: Reload, state: State) -> None:
    state.set({"pids.0": "12"})
    without = all_read(reload(0.02))
    sampler = reload(0.03, want_pids=True)
    once(sampler, "0", lambda gpu: gpu.pids == frozenset({12}))
    sampler = reload(0.02)
    once(sampler, "0", lambda gpu: gpu.pids is None)

    assert row(without, "0").pids is None
    assert (sampler.sample_interval, sampler.process_interval) == (0.02, None)


def test_a_reload_starts_the_library_as_often_as_it_shuts_it_down(reload: Reload, state: State) -> None:
    for interval in (0.02, 0.03, 0.04):
        sampler = reload(interval)
        all_read(sampler)
    sampler.close()

    eventually(lambda: state.calls()["nvmlShutdown"] == state.calls()["nvmlInitWithFlags"] == 3)
    eventually(lambda: sampling_threads() == [])


def test_two_readers_in_use_at_once_are_two(reload: Reload) -> None:
    first = reload(0.02)
    second = open_gpu_reader(GpuConfig(), 60.0)
    all_read(first)
    second.close()

    assert second is not first
    assert first.read().up is True


def test_a_closed_sampler_says_so(reload: Reload) -> None:
    sampler = reload(0.02)
    all_read(sampler)
    sampler.close()

    reading = reading_once(sampler, lambda reading: not reading.up)

    assert (reading.problem, reading.detail) == ("uninitialized", "closed")


def test_a_count_that_hangs_takes_no_value(
    sample: Sample, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "brimline.gpu.nvml")
    sampler = sample(recount_interval=0.05)
    all_read(sampler)

    with state.during({"hang.nvmlDeviceGetCount": 600}):
        during = reading_once(sampler, lambda reading: reading.detail)
        state.set({"used.0": 33 * GIB})
        once(sampler, "0", lambda gpu: gpu.used_bytes == 33 * GIB)
        state.set({"hang.nvmlDeviceGetMemoryInfo": 600})
        nothing = reading_once(sampler, lambda reading: not reading.up)
    state.set({"used.0": 34 * GIB})
    once(sampler, "0", lambda gpu: gpu.used_bytes == 34 * GIB)
    after = reading_once(sampler, lambda reading: not reading.detail)

    told = "a call that concerns all GPUs has not come back"
    assert (during.up, during.problem, during.detail) == (True, None, told)
    assert [gpu.problem for gpu in during.devices] == [None, None]
    assert (nothing.up, nothing.problem, nothing.detail) == (False, "hang", told)
    assert (after.up, after.problem) == (True, None)
    lines = [line for record in caplog.records if (line := record.getMessage()).startswith("nvml ")]
    assert lines[1] == f"nvml up=true reason=hang detail={told!r}"
    assert f"nvml up=false reason=hang detail={told!r}" in lines
    assert lines[-1] == "nvml up=true driver=570.1 gpus=2"


def test_a_count_that_fails_takes_no_value(sample: Sample, state: State) -> None:
    sampler = sample(recount_interval=0.05)
    all_read(sampler)

    with state.during({"err.nvmlDeviceGetCount": 999}):
        during = reading_once(sampler, lambda reading: reading.detail)

    assert (during.up, during.problem) == (True, None)
    assert during.detail == "nvmlDeviceGetCount: UNKNOWN (999)"
    assert [gpu.used_bytes for gpu in during.devices] == [10 * GIB, 20 * GIB]


def test_the_backend_nvml_samples_as_configured(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "_OF_THIS_PROCESS", [])

    reader = open_gpu_reader(GpuConfig(), 60.0)

    with_processes = open_gpu_reader(GpuConfig(processes=True), 60.0)

    assert isinstance(reader, NvmlSampler)
    assert isinstance(with_processes, NvmlSampler)
    assert with_processes.process_interval == 1.0
    assert (reader.sample_interval, reader.peak_window, reader.process_interval) == (1.0, 60.0, None)
