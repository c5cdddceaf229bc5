"""Whatever fails when, in whatever order: no value is shown that is older than it may be.

Each page of the fake servers, and each answer of the fake NVML, says in all its numbers which one it is.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pynvml
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from brimline.collect import Collector
from brimline.config import Config, GpuConfig, Target
from brimline.exposition import render
from brimline.gpu import nvml
from brimline.strict_yaml import Seconds
from fake_nvml import State, build
from fake_servers import FAULTS, FakeServer, Reply, Request, Wire, answer, json_answer, redirect
from stepped_nvml import Clock, SteppedSampler, no_thread

# Families whose value is the number of the page that they come from.
NUMBERED = {
    "brimline_requests_running",
    "brimline_requests_waiting",
    "brimline_prompt_tokens_total",
    "brimline_generation_tokens_total",
    "brimline_preemptions_total",
    "brimline_time_to_first_token_seconds_sum",
    "brimline_time_to_first_token_seconds_count",
    "brimline_requests_finished_total",
}


@dataclass
class NumberedVllm:
    """A vLLM server whose every page is numbered. made: when each page was written."""

    clock: Clock
    made: dict[int, float] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    boots: int = 0

    def _page(self, wire: Wire, request: Request) -> bool:
        number = next(self.numbers)
        self.made[number] = self.clock.now
        model = 'model_name="m",engine="0"'
        lines = [
            f"process_start_time_seconds {1_700_000_000 + self.boots}",
            f"vllm:num_requests_running{{{model}}} {number}",
            f"vllm:num_requests_waiting{{{model}}} {number}",
            f"vllm:kv_cache_usage_perc{{{model}}} 0.5",
            f"vllm:prompt_tokens_total{{{model}}} {number}",
            f"vllm:generation_tokens_total{{{model}}} {number}",
            f"vllm:num_preemptions_total{{{model}}} {number}",
            f'vllm:request_success_total{{{model},finished_reason="stop"}} {number}',
            f"vllm:time_to_first_token_seconds_sum{{{model}}} {number}",
            f"vllm:time_to_first_token_seconds_count{{{model}}} {number}",
        ]
        return answer("\n".join(lines) + "\n")(wire, request)

    def routes(self) -> dict[str, Reply]:
        models = {"data": [{"id": "m", "owned_by": "vllm", "root": "m", "max_model_len": 4096}]}
        return {
            "/metrics": self._page,
            "/version": json_answer({"version": "0.33.0"}),
            "/v1/models": json_answer(models),
        }


def broken(vllm: NumberedVllm, how: str) -> dict[str, Reply]:
    """The routes of a server that is well, that has restarted, or that has one of the faults."""
    if how == "restart":
        vllm.boots += 1
    if how in ("well", "restart"):
        return vllm.routes()
    if how == "page behind a slash":
        return {**vllm.routes(), "/metrics": redirect("/metrics/"), "/metrics/": vllm.routes()["/metrics"]}
    return dict(FAULTS[how].routes)


# Those that take long only because they are large are left out: each is met by every target elsewhere.
LARGE = {"gzip bomb", "17 MiB", "one header of 1 MB", "1 MB of headers"}
QUICK = sorted(name for name, fault in FAULTS.items() if not fault.slow and name not in LARGE)
SLOW = sorted(name for name, fault in FAULTS.items() if fault.slow)
STATES = ("well", "well", "well", "restart", "page behind a slash")
MIN_INTERVALS = (0.0, 5.0, 30.0)
# Never asserted to be up: on a busy machine a server that is well may need longer than this.
HURRIED = Seconds(0.2)


@dataclass(frozen=True)
class Step:
    """What happens before a scrape, and who scrapes."""

    states: tuple[str, str, str]
    seconds: float
    scrapers: int
    min_intervals: tuple[float, float, float] | None  # of a reload


steps = st.builds(
    Step,
    states=st.tuples(
        st.sampled_from([*STATES, *QUICK]),
        st.sampled_from([*STATES, *QUICK]),
        st.sampled_from([*STATES, *QUICK[:3], *SLOW]),
    ),
    seconds=st.sampled_from([0.0, 0.5, 4.5, 5.0, 12.0, 29.5, 30.0, 31.0, 400.0]),
    scrapers=st.integers(1, 3),
    min_intervals=st.none() | st.none() | st.tuples(*[st.sampled_from(MIN_INTERVALS)] * 3),
)


@pytest.fixture(scope="module")
def servers() -> Iterator[Sequence[FakeServer]]:
    with FakeServer({}) as first, FakeServer({}) as second, FakeServer({}) as third:
        yield first, second, third


def config(servers: Sequence[FakeServer], min_intervals: Sequence[float]) -> Config:
    return Config(
        gpu=GpuConfig(backend="none"),
        targets=[
            Target(
                name=name,
                url=server.url,
                timeout=HURRIED if name == "slow" else Seconds(60.0),
                min_interval=Seconds(interval),
            )
            for name, server, interval in zip(("a", "b", "slow"), servers, min_intervals, strict=True)
        ],
    )


def check_page(page: bytes, now: float, made: dict[str, dict[int, float]], oldest: dict[str, float]) -> None:
    """Each value comes from a page that is young enough, and a target that is down has none."""
    samples = [s for family in text_string_to_metric_families(page.decode()) for s in family.samples]
    up = {s.labels["target"]: s.value for s in samples if s.name == "brimline_target_up"}
    ages = {s.labels["target"]: s.value for s in samples if s.name == "brimline_target_reading_age_seconds"}
    seen = {name: set[int]() for name in up}
    for sample in samples:
        if sample.name in NUMBERED:
            seen[sample.labels["target"]].add(int(sample.value))
    for name, numbers in seen.items():
        if not up[name]:
            assert numbers == set()
            assert name not in ages
            continue
        [number] = numbers  # all of one page
        age = now - made[name][number]
        assert ages[name] == pytest.approx(age)
        assert age == 0 or age < oldest[name]


def check_values(servers: Sequence[FakeServer], schedule: list[Step]) -> None:
    clock = Clock()
    fleet = {name: NumberedVllm(clock) for name in ("a", "b", "slow")}
    made = {name: vllm.made for name, vllm in fleet.items()}

    async def scenario() -> None:
        intervals: Sequence[float] = (0.0, 5.0, 30.0)
        collector = Collector(config(servers, intervals), monotonic=clock)
        await collector.start()
        for step in schedule:
            clock.now += step.seconds
            for server, vllm, state in zip(servers, fleet.values(), step.states, strict=True):
                server.routes = broken(vllm, state)
            if step.min_intervals is not None:
                intervals = step.min_intervals
                collector.configure(config(servers, intervals))
            snapshots = await asyncio.gather(*(collector.snapshot() for _ in range(step.scrapers)))
            oldest = dict(zip(fleet, intervals, strict=True))
            for snapshot in snapshots:
                check_page(render(snapshot)[0], clock.now, made, oldest)
        await collector.close()

    asyncio.run(scenario())


schedules = st.lists(steps, min_size=3, max_size=8)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schedule=schedules)
def test_no_value_is_older_than_its_round_or_its_min_interval(
    servers: Sequence[FakeServer], schedule: list[Step]
) -> None:
    check_values(servers, schedule)


@pytest.mark.long
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schedule=schedules)
def test_no_value_is_older_than_that_in_many_schedules(
    servers: Sequence[FakeServer], schedule: list[Step]
) -> None:
    check_values(servers, schedule)


# --- GPUs

INTERVAL, PEAK_WINDOW = 1.0, 10.0
CALLS = ("HandleByIndex", "UUID", "MemoryInfo", "MemoryInfo_v2", "Count", "nvmlInitWithFlags", "Name")
MIB = 1 << 20


@dataclass(frozen=True)
class Moment:
    """What happens to two GPUs before they are looked at; which threads have their turn."""

    seconds: float
    faults: tuple[tuple[str, int, str], ...]  # call, code, GPU or ""
    count: int
    supervised: bool
    sampled: tuple[str, ...]


some_faults = st.lists(
    st.tuples(
        st.sampled_from(CALLS),
        st.sampled_from([1, 3, 4, 9, 13, 15, 18, 999]),
        st.sampled_from(["0", "1", ""]),
    ),
    max_size=2,
).map(tuple)
moments = st.builds(
    Moment,
    seconds=st.sampled_from([1.0, 1.9, 0.0, 0.25, 2.1, 4.0, 8.5, 11.0, 61.0]),
    faults=st.just(()) | st.just(()) | st.just(()) | some_faults,
    count=st.sampled_from([2, 2, 2, 2, 2, 1, 0]),
    supervised=st.sampled_from([True, True, True, False]),
    sampled=st.sampled_from([("0", "1"), ("0", "1"), (), ("0",), ("1",)]),
)


@pytest.fixture(scope="module")
def nvml_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    """The fake library in this process, and samplers without threads."""
    folder = tmp_path_factory.mktemp("nvml")
    path = str(build(folder))
    held, library = ctypes.CDLL(path), ctypes.CDLL(path)  # held, since the sampler unloads its own
    state = State(folder, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvml._Device, "run", no_thread)
        patch.setattr(nvml.logger, "disabled", True)
        patch.setattr(pynvml, "nvmlLib", library)
        patch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        patch.setenv("FAKE_NVML_STATE", str(state.path))
        yield state
    del held


def nvml_keys(moment: Moment, number: int) -> dict[str, int | str]:
    keys: dict[str, int | str] = {"count": moment.count, "total": 1 << 40, "reserved": 0}
    keys |= {"used.0": number * MIB, "used.1": (number + 1000) * MIB}
    for call, code, gpu in moment.faults:
        name = call if call.startswith("nvml") else f"nvmlDeviceGet{call}"
        keys[f"err.{name}.{gpu}" if gpu else f"err.{name}"] = code
    return keys


def check_gpu_values(nvml_state: State, schedule: list[Moment], rising: bool) -> None:
    clock = Clock()
    sampler = SteppedSampler(INTERVAL, PEAK_WINDOW, clock=clock, recount_interval=3.0)
    made: dict[int, float] = {}
    # Rising use never shows an old peak; falling use shows each one for as long as it may.
    numbers = range(1, 500) if rising else range(500, 1, -1)

    for moment, number in zip(schedule, numbers, strict=False):
        clock.now += moment.seconds
        made[number] = clock.now
        nvml_state.replace(nvml_keys(moment, number))
        if moment.supervised:
            sampler.supervise()
        if moment.sampled:
            sampler.sample(*moment.sampled)
        for device in sampler.read().devices:
            values: list[Any] = [device.used_bytes, device.used_peak_bytes, device.free_bytes]
            assert all(value is None for value in values) == (device.problem is not None)
            if device.used_bytes is not None and device.used_peak_bytes is not None:
                base = 1000 if device.uuid.endswith("1") else 0
                assert clock.now - made[device.used_bytes // MIB - base] <= 2 * INTERVAL
                peak = made[device.used_peak_bytes // MIB - base]
                assert clock.now - peak <= PEAK_WINDOW
                assert device.used_peak_bytes >= device.used_bytes
    sampler.close()


gpu_schedules = st.lists(moments, min_size=8, max_size=30)


@settings(max_examples=100, deadline=None)
@given(schedule=gpu_schedules, rising=st.booleans())
def test_no_value_of_a_gpu_is_older_than_two_intervals_and_no_peak_than_its_window(
    nvml_state: State, schedule: list[Moment], rising: bool
) -> None:
    check_gpu_values(nvml_state, schedule, rising)


@pytest.mark.long
@settings(max_examples=1000, deadline=None)
@given(schedule=gpu_schedules, rising=st.booleans())
def test_no_value_of_a_gpu_is_older_than_that_in_many_schedules(
    nvml_state: State, schedule: list[Moment], rising: bool
) -> None:
    check_gpu_values(nvml_state, schedule, rising)


def test_a_peak_leaves_its_window_while_the_sample_that_had_it_is_still_shown(nvml_state: State) -> None:
    clock = Clock()
    sampler = SteppedSampler(INTERVAL, PEAK_WINDOW, clock=clock, recount_interval=3.0)
    shown = []
    for seconds, used in ((0.0, 500), (1.0, 400), (8.5, 300)):
        clock.now += seconds
        nvml_state.replace({"count": 1, "total": 1 << 40, "reserved": 0, "used.0": used * MIB})
        sampler.step()
        shown.append(sampler.read().devices[0].used_peak_bytes)
    clock.now += 1.9  # without another sample
    shown.append(sampler.read().devices[0].used_peak_bytes)
    sampler.close()

    assert shown == [500 * MIB, 500 * MIB, 500 * MIB, 300 * MIB]
