"""Rounds over real servers: what a failed target leaves behind, what is shared, and what is asked when."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from brimline.collect import Collector, TargetReader
from brimline.config import BasicAuth, Config, GpuConfig, GpuSource, Target, mask_command
from brimline.exposition import render
from brimline.readings import (
    TARGET_REASONS,
    DeviceReading,
    GpuReading,
    RankReading,
    Snapshot,
    TargetSnapshot,
    Uuid,
)
from brimline.strict_yaml import Seconds
from fake_servers import (
    FAULTS,
    FakeServer,
    FakeVllm,
    Request,
    Wire,
    answer,
    hang,
    json_answer,
    llamacpp_routes,
    when,
)
from waiting import eventually

# What is said of a target that cannot be read: its health, and nothing that it ever said itself.
HEALTH = {
    "brimline_target_info",
    "brimline_target_up",
    "brimline_target_problem",
    "brimline_target_errors_total",
    "brimline_target_scrape_duration_seconds",
    "brimline_target_last_success_timestamp_seconds",
    "brimline_target_unparsed_lines_total",
    "brimline_target_dropped_series_total",
}
PATIENT = Seconds(60.0)  # far above what a loaded machine needs
IMPATIENT = Seconds(0.5)


def target(name: str, server: FakeServer, **settings: Any) -> Target:
    return Target(name=name, url=server.url, **{"timeout": PATIENT, **settings})


def config_of(*targets: Target) -> Config:
    return Config(targets=list(targets), gpu=GpuConfig(backend="none"))


@contextlib.asynccontextmanager
async def collecting(*targets: Target, **options: Any) -> AsyncIterator[Collector]:
    collector = Collector(config_of(*targets), **options)
    await collector.start()
    try:
        yield collector
    finally:
        await collector.close()


def exposed(snapshot: Snapshot, name: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every exposed sample of one target: (sample name, the other labels) → value."""
    page, _ = render(snapshot)
    return {
        (sample.name, frozenset(sample.labels.items() - {("target", name)})): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
        if sample.labels.get("target") == name
    }


def one_of(snapshot: Snapshot, name: str) -> TargetSnapshot:
    found = snapshot.target(name)
    assert found is not None
    return found


def rank_of(snapshot: Snapshot, name: str) -> RankReading:
    reading = one_of(snapshot, name).reading
    assert reading is not None
    [rank] = reading.ranks
    return rank


def assert_down(snapshot: Snapshot, name: str, reason: str, *, failures: int = 1) -> None:
    samples = exposed(snapshot, name)
    said = {sample for sample, _ in samples}
    problems = [dict(labels)["reason"] for sample, labels in samples if sample == "brimline_target_problem"]
    errors = {
        dict(labels)["reason"]: value
        for (sample, labels), value in samples.items()
        if sample == "brimline_target_errors_total"
    }
    assert said <= HEALTH
    assert samples["brimline_target_up", frozenset()] == 0
    assert problems == [reason]
    assert errors.keys() == TARGET_REASONS.keys()
    assert errors[reason] == failures
    # A server's settings may be refused along with its page; nothing else is counted.
    assert {r for r, count in errors.items() if count} <= {reason, "config_endpoint"}


def assert_up(snapshot: Snapshot, name: str, *, generation_tokens: float) -> None:
    state = one_of(snapshot, name)
    assert (state.up, state.problems) == (True, ())
    assert rank_of(snapshot, name).generation_tokens_total == generation_tokens
    assert exposed(snapshot, name)["brimline_target_up", frozenset()] == 1


@pytest.fixture(name="healthy")
def _healthy() -> Iterator[FakeServer]:
    with FakeServer(FakeVllm(generation_tokens=77).routes()) as server:
        yield server


# --- faults


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_costs_the_target_and_no_other(name: str, healthy: FakeServer) -> None:
    fault = FAULTS[name]

    async def scenario(server: FakeServer) -> Snapshot:
        faulty = target("faulty", server, timeout=IMPATIENT if fault.slow else PATIENT)
        async with collecting(faulty, target("healthy", healthy)) as collector:
            return await collector.snapshot()

    with FakeServer(fault.routes) as server:
        snapshot = asyncio.run(scenario(server))

    assert_down(snapshot, "faulty", fault.reason)
    assert_up(snapshot, "healthy", generation_tokens=77)


@pytest.mark.parametrize("name", FAULTS)
def test_a_server_that_breaks_has_no_value_and_comes_back(name: str, healthy: FakeServer) -> None:
    fault, vllm = FAULTS[name], FakeVllm(generation_tokens=10)

    async def scenario(server: FakeServer) -> tuple[Snapshot, ...]:
        breaking = target("breaking", server, timeout=Seconds(2.5) if fault.slow else PATIENT)
        async with collecting(breaking, target("healthy", healthy)) as collector:
            before = await collector.snapshot()
            server.routes = dict(fault.routes)
            during = await collector.snapshot()
            vllm.generation_tokens = 20
            server.routes = vllm.routes()
            after = await collector.snapshot()
        return before, during, after

    with FakeServer(vllm.routes()) as server:
        before, during, after = asyncio.run(scenario(server))

    assert_up(before, "breaking", generation_tokens=10)
    assert_down(during, "breaking", fault.reason)
    assert_up(after, "breaking", generation_tokens=20)
    for snapshot in (before, during, after):
        assert_up(snapshot, "healthy", generation_tokens=77)


def test_a_server_that_ends_is_down_at_once_and_up_again_when_it_is_back(healthy: FakeServer) -> None:
    async def scenario() -> tuple[Snapshot, ...]:
        server = FakeServer(FakeVllm(generation_tokens=10, keep_alive=True).routes())
        async with collecting(target("ending", server), target("healthy", healthy)) as collector:
            with server:
                before = await collector.snapshot()
            during = [await collector.snapshot() for _ in range(2)]
            with FakeServer(FakeVllm(generation_tokens=5).routes(), port=server.port):
                after = await collector.snapshot()
        return before, *during, after

    before, down, still_down, after = asyncio.run(scenario())

    assert_up(before, "ending", generation_tokens=10)
    assert_down(down, "ending", "connection")
    assert_down(still_down, "ending", "connection", failures=2)
    assert_up(after, "ending", generation_tokens=5)
    assert_up(down, "healthy", generation_tokens=77)
    assert one_of(still_down, "ending").last_success == one_of(before, "ending").last_success


@pytest.mark.parametrize("between", ["nothing", "another program's metrics", "500", "404", "401"])
def test_another_engine_may_come_back_in_its_place(between: str) -> None:
    async def scenario(server: FakeServer) -> tuple[Snapshot, Snapshot]:
        async with collecting(target("changing", server)) as collector:
            before = await collector.snapshot()
            if between != "nothing":
                server.routes = dict(FAULTS[between].routes)
                await collector.snapshot()
            server.routes = llamacpp_routes()
            return before, await collector.snapshot()

    with FakeServer(FakeVllm(generation_tokens=0).routes()) as server:
        before, after = asyncio.run(scenario(server))

    changed = one_of(after, "changing").reading
    assert_up(before, "changing", generation_tokens=0)
    assert_up(after, "changing", generation_tokens=222)
    assert changed is not None
    assert changed.engine == "llamacpp"


def test_a_configured_engine_takes_no_other() -> None:
    async def scenario(server: FakeServer) -> Snapshot:
        async with collecting(target("strict", server, engine="vllm")) as collector:
            await collector.snapshot()
            server.routes = llamacpp_routes()
            return await collector.snapshot()

    with FakeServer(FakeVllm().routes()) as server:
        snapshot = asyncio.run(scenario(server))

    assert_down(snapshot, "strict", "wrong_engine")


def test_an_idle_server_that_loses_its_metrics_is_down() -> None:
    # Without tokens and with the same start time nothing but the missing families tells it.
    async def scenario(server: FakeServer) -> Snapshot:
        async with collecting(target("losing", server)) as collector:
            await collector.snapshot()
            server.routes["/metrics"] = FAULTS["vLLM without statistics"].routes["/metrics"]
            return await collector.snapshot()

    with FakeServer(FakeVllm(generation_tokens=0).routes()) as server:
        snapshot = asyncio.run(scenario(server))

    assert_down(snapshot, "losing", "metrics_disabled")


def test_settings_that_cannot_be_read_are_a_problem_of_a_target_that_is_up() -> None:
    with FakeServer(FakeVllm().routes() | {"/v1/models": answer("", status=401)}) as server:
        snapshot = asyncio.run(_one_round(target("keyed", server)))

    state = one_of(snapshot, "keyed")
    assert (state.up, [problem.reason for problem in state.problems]) == (True, ["config_endpoint"])
    assert state.errors["config_endpoint"] == 1


async def _one_round(*targets: Target) -> Snapshot:
    async with collecting(*targets) as collector:
        return await collector.snapshot()


# --- what is read


def test_every_model_and_rank_reaches_the_snapshot() -> None:
    vllm = FakeVllm(models=("alpha", "beta"), generation_tokens=9)
    ranked = FakeVllm(ranks=2, blocks=1000)
    with FakeServer(vllm.routes()) as server, FakeServer(ranked.routes()) as parallel:
        snapshot = asyncio.run(_one_round(target("models", server), target("ranks", parallel)))

    models, ranks = one_of(snapshot, "models").reading, one_of(snapshot, "ranks").reading
    assert models is not None
    assert ranks is not None
    assert [(r.model, r.rank, r.generation_tokens_total) for r in models.ranks] == [
        ("alpha", "0", 9),
        ("beta", "0", 9),
    ]
    assert [(r.model, r.rank, r.kv_cache_blocks) for r in ranks.ranks] == [
        ("demo-model", "0", 500),
        ("demo-model", "1", 500),
    ]
    assert {
        labels for sample, labels in exposed(snapshot, "ranks") if sample == "brimline_requests_running"
    } == {
        frozenset({("model", "demo-model"), ("rank", "0")}),
        frozenset({("model", "demo-model"), ("rank", "1")}),
    }


def test_what_costs_nothing_is_asked_before_any_metrics_page() -> None:
    with FakeServer(FakeVllm().routes()) as server:
        asyncio.run(_one_round(target("vllm", server)))

    assert set(server.paths()[:2]) == {"/version", "/v1/models"}  # together
    assert server.paths()[2:] == ["/metrics"]


def test_an_unknown_owner_is_asked_for_the_harmless_page_first() -> None:
    routes = FakeVllm().routes()
    routes["/v1/models"] = json_answer({"data": [{"id": "m", "owned_by": "somebody"}]})
    with FakeServer(routes) as server:
        snapshot = asyncio.run(_one_round(target("unknown", server)))

    assert one_of(snapshot, "unknown").up
    assert set(server.paths()[:2]) == {"/version", "/v1/models"}
    assert server.paths()[2:] == ["/prometheus/metrics", "/metrics"]


def test_a_page_found_at_another_path_is_kept() -> None:
    routes = {"/v1/metrics": answer(FakeVllm().page())}

    async def scenario(server: FakeServer) -> list[str]:
        async with collecting(target("elsewhere", server)) as collector:
            await collector.snapshot()
            server.requests.clear()
            await collector.snapshot()
        return server.paths()

    with FakeServer(routes) as server:
        assert asyncio.run(scenario(server)) == ["/v1/metrics"]


def test_a_configured_path_is_the_only_page_asked_for() -> None:
    routes = FakeVllm().routes() | {"/own/page": answer(FakeVllm(generation_tokens=8).page())}
    with FakeServer(routes) as server:
        snapshot = asyncio.run(_one_round(target("own", server, metrics_path="/own/page")))

    assert_up(snapshot, "own", generation_tokens=8)
    assert server.count("/metrics") == 0


# --- restarts


def _restart_by_counter(vllm: FakeVllm) -> None:
    vllm.generation_tokens = 3


def _restart_by_start_time(vllm: FakeVllm) -> None:
    vllm.generation_tokens += 1
    vllm.start_time += 60


@pytest.mark.parametrize("restart", [_restart_by_counter, _restart_by_start_time])
def test_a_restarted_server_is_asked_for_its_settings_again(restart: Callable[[FakeVllm], None]) -> None:
    vllm = FakeVllm(generation_tokens=1000, version="0.32.0", max_model_len=4096)

    async def scenario(server: FakeServer) -> list[tuple[int, str | None, float | None]]:
        seen = []
        async with collecting(target("restarting", server)) as collector:
            for step in range(4):
                if step == 2:
                    restart(vllm)
                    vllm.version, vllm.max_model_len = "0.33.0", 8192
                snapshot = await collector.snapshot()
                reading = one_of(snapshot, "restarting").reading
                assert reading is not None
                seen.append(
                    (server.count("/version"), reading.engine_version, reading.ranks[0].max_model_len_tokens)
                )
        return seen

    with FakeServer(vllm.routes()) as server:
        seen = asyncio.run(scenario(server))

    assert seen == [(1, "0.32.0", 4096), (1, "0.32.0", 4096), (2, "0.33.0", 8192), (2, "0.33.0", 8192)]


def test_a_restart_with_other_settings_is_a_change_of_configuration() -> None:
    vllm = FakeVllm(generation_tokens=1000)

    async def scenario(server: FakeServer) -> list[TargetSnapshot]:
        async with collecting(target("t", server)) as collector:
            first = await collector.snapshot()
            vllm.generation_tokens = 3
            same = await collector.snapshot()
            vllm.generation_tokens, vllm.max_model_len = 2, 8192
            return [one_of(s, "t") for s in (first, same, await collector.snapshot())]

    with FakeServer(vllm.routes()) as server:
        first, same, other = asyncio.run(scenario(server))

    assert first.fingerprint == same.fingerprint != other.fingerprint
    assert (first.config_changed, same.config_changed) == (None, None)
    assert other.config_changed == other.last_success


# --- rounds


def test_one_round_is_shared_by_all_who_ask_meanwhile() -> None:
    gate, vllm = threading.Event(), FakeVllm()

    async def scenario(server: FakeServer) -> tuple[list[Snapshot], int]:
        async with collecting(target("shared", server)) as collector:
            await collector.snapshot()
            server.requests.clear()
            server.routes["/metrics"] = when(gate, vllm.routes()["/metrics"])
            callers = [asyncio.ensure_future(collector.snapshot()) for _ in range(50)]
            await asyncio.sleep(0)
            gate.set()
            snapshots = await asyncio.gather(*callers)
            asked = len(server.requests)
            await collector.snapshot()
        return snapshots, asked

    with FakeServer(vllm.routes()) as server:
        snapshots, asked = asyncio.run(scenario(server))

    assert asked == 1
    assert all(snapshot.targets == snapshots[0].targets for snapshot in snapshots)
    assert server.count("/metrics") == 2  # the next one asks again


def test_a_round_lasts_as_long_as_its_slowest_server_and_not_their_sum() -> None:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(FakeServer({"*": hang})) for _ in range(20)]
        begun = time.monotonic()
        snapshot = asyncio.run(
            _one_round(*(target(f"hanging-{i}", s, timeout=Seconds(1.0)) for i, s in enumerate(servers)))
        )
        lasted = time.monotonic() - begun

    assert [state.up for state in snapshot.targets] == [False] * 20
    assert 0.9 < lasted < 15


def test_a_budget_ends_the_round_and_costs_only_who_has_not_answered(healthy: FakeServer) -> None:
    async def scenario(server: FakeServer) -> tuple[Snapshot, float]:
        async with collecting(target("hanging", server), target("healthy", healthy)) as collector:
            begun = time.monotonic()
            snapshot = await collector.snapshot(2.5)
            return snapshot, time.monotonic() - begun

    with FakeServer({"*": hang}) as server:
        snapshot, lasted = asyncio.run(scenario(server))

    assert lasted < 30
    assert_down(snapshot, "hanging", "timeout")
    assert_up(snapshot, "healthy", generation_tokens=77)


def test_a_joiner_with_less_time_takes_what_is_there_and_leaves_the_round_to_the_others(
    healthy: FakeServer,
) -> None:
    gate, vllm = threading.Event(), FakeVllm(generation_tokens=5)
    routes = {**vllm.routes(), "/metrics": when(gate, vllm.routes()["/metrics"])}

    async def scenario(server: FakeServer) -> tuple[Snapshot, Snapshot, Snapshot]:
        async with collecting(
            target("slow", server, min_interval=60.0), target("healthy", healthy)
        ) as collector:
            patient = asyncio.ensure_future(collector.snapshot(59))
            await asyncio.sleep(0)
            hurried = await collector.snapshot(1.0)
            gate.set()
            return hurried, await patient, await collector.snapshot()

    with FakeServer(routes) as server:
        hurried, patient, later = asyncio.run(scenario(server))

    assert_down(hurried, "slow", "timeout", failures=0)  # the round itself has not failed
    assert_up(hurried, "healthy", generation_tokens=77)
    assert_up(patient, "slow", generation_tokens=5)
    assert_up(later, "slow", generation_tokens=5)  # the hurry of one is not kept for min_interval


def test_a_caller_that_goes_away_does_not_take_the_round_with_it() -> None:
    gate, vllm = threading.Event(), FakeVllm(generation_tokens=4)

    async def scenario(server: FakeServer) -> Snapshot:
        async with collecting(target("shared", server)) as collector:
            leaving = asyncio.ensure_future(collector.snapshot())
            await asyncio.sleep(0)
            staying = asyncio.ensure_future(collector.snapshot())
            await asyncio.sleep(0)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            gate.set()
            return await staying

    with FakeServer({path: when(gate, reply) for path, reply in vllm.routes().items()}) as server:
        snapshot = asyncio.run(scenario(server))

    assert_up(snapshot, "shared", generation_tokens=4)
    assert server.count("/metrics") == 1


def test_a_round_that_everybody_left_is_finished_for_the_next_caller() -> None:
    gate, vllm = threading.Event(), FakeVllm(generation_tokens=4)

    async def scenario(server: FakeServer) -> Snapshot:
        async with collecting(target("shared", server)) as collector:
            leaving = asyncio.ensure_future(collector.snapshot())
            await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.wait([leaving])
            gate.set()
            return await collector.snapshot()

    with FakeServer({path: when(gate, reply) for path, reply in vllm.routes().items()}) as server:
        snapshot = asyncio.run(scenario(server))

    assert_up(snapshot, "shared", generation_tokens=4)
    assert server.count("/metrics") == 1


def test_no_targets_are_a_snapshot_too() -> None:
    snapshot = asyncio.run(_one_round())

    assert snapshot.targets == ()
    assert b"brimline_build_info" in render(snapshot)[0]


def test_a_new_configuration_replaces_the_targets_and_keeps_what_did_not_change(healthy: FakeServer) -> None:
    async def scenario(server: FakeServer) -> tuple[Snapshot, Snapshot]:
        kept, dropped = target("kept", healthy), target("dropped", server)
        async with collecting(kept, dropped) as collector:
            before = await collector.snapshot()
            collector.configure(config_of(kept, target("added", server, metrics_path="/metrics")))
            return before, await collector.snapshot()

    with FakeServer(FakeVllm().routes()) as server:
        before, after = asyncio.run(scenario(server))

    assert [state.name for state in before.targets] == ["kept", "dropped"]
    assert [(state.name, state.up) for state in after.targets] == [("kept", True), ("added", True)]
    assert healthy.count("/version") == 1  # not detected again


# --- min_interval


class Clock:
    """A monotonic clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_within_min_interval_the_last_reading_is_served_with_its_age_and_nothing_is_asked() -> None:
    clock, vllm = Clock(), FakeVllm(generation_tokens=10)

    async def scenario(server: FakeServer) -> list[tuple[float, float | None, int]]:
        seen = []
        limited = target("limited", server, min_interval=Seconds(30.0))
        async with collecting(limited, monotonic=clock) as collector:
            for passed in (0.0, 10.0, 19.5, 0.5, 1.0):
                clock.now += passed
                snapshot = await collector.snapshot()
                vllm.generation_tokens += 1
                age = exposed(snapshot, "limited")["brimline_target_reading_age_seconds", frozenset()]
                tokens = rank_of(snapshot, "limited").generation_tokens_total
                seen.append((age, tokens, server.count("/metrics")))
        return seen

    with FakeServer(vllm.routes()) as server:
        seen = asyncio.run(scenario(server))

    assert seen == [(0, 10, 1), (10, 10, 1), (29.5, 10, 1), (0, 13, 2), (1, 13, 2)]


def test_within_min_interval_a_failed_server_is_not_asked_again_either() -> None:
    clock, vllm = Clock(), FakeVllm(generation_tokens=10)

    async def scenario(server: FakeServer) -> list[tuple[bool, int, int]]:
        seen = []
        limited = target(
            "limited", server, min_interval=Seconds(30.0), metrics_path="/metrics", engine="vllm"
        )
        async with collecting(limited, monotonic=clock) as collector:
            for passed in (0.0, 29.0, 1.0):
                clock.now += passed
                state = one_of(await collector.snapshot(), "limited")
                assert (state.reading is None) == (not state.up)
                seen.append((state.up, state.errors["http_status"], server.count("/metrics")))
                server.routes = vllm.routes()
        return seen

    with FakeServer(FAULTS["500"].routes) as server:
        assert asyncio.run(scenario(server)) == [(False, 1, 1), (False, 1, 1), (True, 1, 2)]


def test_a_failure_ends_the_reading_that_was_served_before() -> None:
    clock, vllm = Clock(), FakeVllm(generation_tokens=10)

    async def scenario(server: FakeServer) -> Snapshot:
        limited = target("limited", server, min_interval=Seconds(30.0))
        async with collecting(limited, monotonic=clock) as collector:
            await collector.snapshot()
            server.routes = dict(FAULTS["500"].routes)
            clock.now += 31
            await collector.snapshot()
            clock.now += 1
            return await collector.snapshot()

    with FakeServer(vllm.routes()) as server:
        snapshot = asyncio.run(scenario(server))

    assert_down(snapshot, "limited", "http_status")


# --- credentials, proxies, names


def test_credentials_are_read_at_each_scrape(tmp_path: Path) -> None:
    token, password = tmp_path / "token", tmp_path / "password"
    password.write_text("pw")

    async def scenario(server: FakeServer, basic: FakeServer) -> list[Snapshot]:
        snapshots = []
        targets = (
            target("token", server, bearer_token_file=str(token)),
            target("basic", basic, basic_auth=BasicAuth(username="me", password_file=str(password))),
        )
        async with collecting(*targets) as collector:
            for text in ("tok-1", "tok-2", None):
                token.write_text(text) if text is not None else token.unlink()
                snapshots.append(await collector.snapshot())
        return snapshots

    with FakeServer(FakeVllm().routes()) as server, FakeServer(FakeVllm().routes()) as basic:
        first, second, missing = asyncio.run(scenario(server, basic))

    sent = [request.headers["authorization"] for request in server.requests if request.path == "/metrics"]
    assert (one_of(first, "token").up, one_of(second, "token").up) == (True, True)
    assert sent == ["Bearer tok-1", "Bearer tok-2"]
    assert_down(missing, "token", "credentials")
    assert {request.headers["authorization"] for request in basic.requests} == {"Basic bWU6cHc="}
    assert one_of(missing, "basic").up


def test_names_that_hang_cost_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    # The event loop's own resolver has six threads here at most; this many names would fill them.
    gate, real = threading.Event(), socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(host, str) and host.startswith("hanging"):
            gate.wait(60)
        if isinstance(host, str) and host.endswith(".test"):
            host = "127.0.0.1"
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def scenario(server: FakeServer) -> tuple[Snapshot, float]:
        hanging = [
            Target(name=f"hanging-{i}", url=f"http://hanging-{i}.test:8000", timeout=Seconds(2.0))
            for i in range(6)
        ]
        healthy = Target(name="healthy", url=f"http://healthy.test:{server.port}", timeout=PATIENT)
        async with collecting(*hanging, healthy) as collector:
            begun = time.monotonic()
            snapshot = await collector.snapshot()
            return snapshot, time.monotonic() - begun

    try:
        with FakeServer(FakeVllm(generation_tokens=5).routes()) as server:
            snapshot, lasted = asyncio.run(scenario(server))
    finally:
        gate.set()
    eventually(lambda: not any(thread.name == "brimline-dns" for thread in threading.enumerate()))

    assert lasted < 30
    assert_up(snapshot, "healthy", generation_tokens=5)
    for i in range(6):
        assert_down(snapshot, f"hanging-{i}", "timeout")


# --- defects and hostile answers


def test_a_defect_costs_the_target_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    calls = itertools.count()

    def clock() -> float:
        # Asked at the start, and then twice in each round: by the target, and for the whole.
        if next(calls) % 2:
            raise ZeroDivisionError("a defect")
        return 1.0

    async def scenario(server: FakeServer) -> list[Snapshot]:
        async with collecting(target("unlucky", server), clock=clock) as collector:
            return [await collector.snapshot() for _ in range(3)]

    with FakeServer(FakeVllm().routes()) as server:
        snapshots = asyncio.run(scenario(server))

    for number, snapshot in enumerate(snapshots, start=1):
        assert_down(snapshot, "unlucky", "internal", failures=number)
    assert [record.message for record in caplog.records if record.exc_info] == [
        "target=unlucky unexpected error"
    ]


@pytest.mark.parametrize(
    "models",
    [
        '{"data": "vllm"}',
        '{"data": [null, 7, {"id": 5, "owned_by": ["vllm"]}]}',
        '{"data": [{"id": "demo-model", "owned_by": "vllm", "max_model_len": -1e999}]}',
        "[" * 5000 + "]" * 5000,
        '{"data": [{"id": "m", "owned_by": "vllm", "extra": ' + "[" * 700 + "]" * 700 + "}]}",
    ],
)
def test_strange_settings_do_not_cost_the_page(models: str) -> None:
    routes = FakeVllm(generation_tokens=6).routes() | {"/v1/models": answer(models)}
    with FakeServer(routes) as server:
        snapshot = asyncio.run(_one_round(target("strange", server)))

    assert_up(snapshot, "strange", generation_tokens=6)


def test_impossible_values_are_dropped_and_said() -> None:
    vllm = FakeVllm(kv_usage=1.5)
    with FakeServer(vllm.routes()) as server:
        snapshot = asyncio.run(_one_round(target("odd", server)))

    state = one_of(snapshot, "odd")
    assert (state.up, [problem.reason for problem in state.problems]) == (True, ["bad_values"])
    assert rank_of(snapshot, "odd").kv_cache_usage_ratio is None
    assert rank_of(snapshot, "odd").requests_running == 3


def test_a_request_beside_one_that_failed_is_not_left_behind() -> None:
    """/props hangs and /metrics fails at once: the hanging request must end with the round."""

    async def scenario(server: FakeServer) -> int:
        async with collecting(target("llama", server, engine="llamacpp")) as collector:
            assert one_of(await collector.snapshot(), "llama").up
            server.routes |= {"/props": hang, "/metrics": answer("no", status=500)}
            for _ in range(5):
                await collector.snapshot()
            return len(asyncio.all_tasks() - {asyncio.current_task()})

    with FakeServer(llamacpp_routes()) as server:
        assert asyncio.run(scenario(server)) == 0


def test_one_endpoint_that_hangs_costs_its_document_and_not_the_target() -> None:
    vllm = FakeVllm(generation_tokens=3)

    async def scenario(server: FakeServer) -> Snapshot:
        async with collecting(target("half", server, timeout=2.0)) as collector:
            return await collector.snapshot()

    with FakeServer({**vllm.routes(), "/version": hang}) as server:
        snapshot = asyncio.run(scenario(server))

    half = one_of(snapshot, "half")
    assert half.reading is not None
    assert half.reading.ranks[0].generation_tokens_total == 3
    assert [problem.reason for problem in half.problems] == ["config_endpoint"]


def test_settings_that_failed_once_are_asked_for_again_and_are_no_change() -> None:
    now = [1000.0]
    vllm = FakeVllm()
    routes = vllm.routes()

    async def scenario(server: FakeServer) -> list[TargetSnapshot]:
        async with collecting(target("late", server), monotonic=lambda: now[0]) as collector:
            first = one_of(await collector.snapshot(), "late")
            server.routes["/v1/models"] = routes["/v1/models"]
            now[0] += 60
            return [
                first,
                one_of(await collector.snapshot(), "late"),
                one_of(await collector.snapshot(), "late"),
            ]

    with FakeServer({**routes, "/v1/models": answer("loading", status=503)}) as server:
        first, _, third = asyncio.run(scenario(server))

    assert [problem.reason for problem in first.problems] == ["config_endpoint"]
    assert first.fingerprint is None
    assert third.problems == ()
    assert third.reading is not None
    assert third.reading.ranks[0].max_model_len_tokens == vllm.max_model_len
    assert third.config_changed is None


def test_a_target_whose_gpus_hang_in_a_file_costs_nobody_else(healthy: FakeServer, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gpus")
    vllm = FakeVllm()

    async def scenario(server: FakeServer) -> Snapshot:
        config = Config(
            targets=[
                target("a", server, gpus=GpuSource(file=str(tmp_path / "gpus"))),
                target("b", server, gpus=GpuSource(file="bad\0name")),
                target("healthy", healthy),
            ],
            gpu=GpuConfig(backend="none"),
        )
        collector = Collector(config, open_gpus=lambda *_args, **_options: OneGpu())
        await collector.start()
        try:
            return await collector.snapshot()
        finally:
            await collector.close()

    with FakeServer(vllm.routes()) as server:
        snapshot = asyncio.run(scenario(server))

    assert one_of(snapshot, "healthy").up
    for name in ("a", "b"):
        assert [problem.reason for problem in one_of(snapshot, name).problems] == ["gpu_unassigned"]
        assert one_of(snapshot, name).errors["gpu_unassigned"] == 1


def test_gpus_of_a_file_are_known_as_soon_as_they_are_visible(healthy: FakeServer, tmp_path: Path) -> None:
    file = tmp_path / "gpus"
    file.write_text("GPU 0: NVIDIA H100 (UUID: GPU-1)\n")

    async def scenario() -> tuple[Snapshot, Snapshot]:
        config = Config(targets=[target("a", healthy, gpus=GpuSource(file=str(file)))])
        gpus = OneGpu()
        gpus.visible = False
        collector = Collector(config, open_gpus=lambda *_args, **_options: gpus)
        await collector.start()
        try:
            before = await collector.snapshot()
            gpus.visible = True
            return before, await collector.snapshot()
        finally:
            await collector.close()

    before, after = asyncio.run(scenario())

    assert one_of(before, "a").gpus == ()
    assert one_of(after, "a").gpus == (("GPU-1", "0"),)


@pytest.mark.parametrize(("seconds", "times"), [(0.0, 1), (0.019, 1), (0.021, 2)])
def test_gpus_are_exposed_as_they_were_a_moment_ago_in_the_same_round(
    healthy: FakeServer, seconds: float, times: int
) -> None:
    """seconds: between the last look for a target and the end of its round."""
    now, gpus = [1000.0], OneGpu()

    async def slow(reader: TargetReader, snapshot: TargetSnapshot) -> TargetSnapshot:
        finished = await Collector._finish(collector, reader, snapshot)
        now[0] += seconds
        return finished

    async def scenario() -> list[int | None]:
        await collector.start()
        try:
            rounds = [await collector.snapshot() for _ in range(3)]
        finally:
            await collector.close()
        return [each.gpu.devices[0].used_bytes for each in rounds]

    config = Config(targets=[target("a", healthy)])
    collector = Collector(config, monotonic=lambda: now[0], open_gpus=lambda *_args, **_options: gpus)
    collector._finish = slow  # type: ignore[method-assign]

    assert asyncio.run(scenario()) == [times, 2 * times, 3 * times]  # none is of the round before


class OneGpu:
    """A reader of one GPU. reads: how often it was asked, which is what the GPU says is in use."""

    visible = True
    reads = 0

    def start(self) -> None:
        pass

    def read(self) -> GpuReading:
        self.reads += 1
        device = DeviceReading(uuid=Uuid("GPU-1"), index="0", used_bytes=self.reads)
        return GpuReading(up=True, devices=(device,) * self.visible)

    def close(self) -> None:
        pass


def test_a_command_line_shows_known_flags_only() -> None:
    secret = "sk-planted"
    command = (
        f"vllm serve m --api-key {secret} {secret} --otlp-traces-endpoint http://u:{secret}@h "
        f'--additional-config \'{{"api_key": "{secret}"}}\' --unheard-of {secret} -tp 2'
    )

    async def scenario(server: FakeServer) -> Snapshot:
        async with collecting(target("secretive", server, launch_command=command)) as collector:
            return await collector.snapshot()

    with FakeServer(FakeVllm().routes()) as server:
        snapshot = asyncio.run(scenario(server))

    assert secret not in repr(one_of(snapshot, "secretive").settings)
    assert secret not in repr(one_of(snapshot, "secretive").declared)
    assert secret.encode() not in render(snapshot)[0]
    assert one_of(snapshot, "secretive").settings["tensor_parallel_size"] == "2"
    assert secret not in mask_command(command.replace(f"--unheard-of {secret}", ""))


@pytest.mark.parametrize(
    ("settings", "problems"),
    [
        (
            {"launch_command": "vllm serve m --tensor-paralel-size 2"},
            [("launch_command", "'tensor_paralel_size'")],
        ),
        ({"launch": {"tensor_paralel_size": 2}}, [("launch", "'tensor_paralel_size'")]),
        ({"launch_command": "vllm serve m --foo 3 --tensor-parallel-size 2"}, []),
    ],
)
def test_a_misspelt_flag_is_a_problem_of_the_key_that_it_stands_in(
    settings: dict[str, Any], problems: list[tuple[str, str]]
) -> None:
    async def scenario(server: FakeServer) -> Snapshot:
        async with collecting(target("t", server, **settings)) as collector:
            return await collector.snapshot()

    with FakeServer(FakeVllm().routes()) as server:
        said = one_of(asyncio.run(scenario(server)), "t").problems

    assert [(one.reason, one.detail.split()[0]) for one in said if "launch" in one.reason] == problems
    assert all("did you mean 'tensor_parallel_size'?" in one.detail for one in said if "launch" in one.reason)


@pytest.mark.parametrize("status", [404, 401])
def test_the_base_url_of_openais_api_is_told_from_a_missing_page(status: int) -> None:
    with FakeServer({"*": answer("", status=status)}) as server:
        down = one_of(asyncio.run(_one_round(Target(name="t", url=f"{server.url}/v1"))), "t")

    assert not down.up
    assert "drop /v1 from the url" in down.problems[0].detail
    assert "metrics_path" not in down.problems[0].detail


@pytest.mark.parametrize(
    ("settings", "complete"),
    [
        ({}, False),
        ({"launch_command": "vllm serve m -tp 2"}, True),
        ({"launch": {"tensor_parallel_size": 2}}, True),
        ({"launch_command": "vllm serve m --config /etc/vllm.yaml"}, False),
    ],
)
def test_flags_that_are_not_shown_are_at_their_defaults_where_the_whole_command_is_known(
    settings: dict[str, Any], complete: bool
) -> None:
    async def scenario(server: FakeServer) -> Snapshot:
        async with collecting(target("t", server, **settings)) as collector:
            return await collector.snapshot()

    with FakeServer(FakeVllm().routes()) as server:
        snapshot = asyncio.run(scenario(server))

    assert one_of(snapshot, "t").settings_complete is complete


def test_a_reload_during_a_round_asks_the_server_once() -> None:
    gate, vllm = threading.Event(), FakeVllm(generation_tokens=6)

    async def scenario(server: FakeServer) -> tuple[int, list[Snapshot]]:
        async with collecting(target("kept", server)) as collector:
            await collector.snapshot()
            server.requests.clear()
            server.routes["/metrics"] = when(gate, vllm.routes()["/metrics"])
            before = asyncio.ensure_future(collector.snapshot())
            await asyncio.sleep(0)
            collector.configure(config_of(target("kept", server), target("new", server)))
            after = asyncio.ensure_future(collector.snapshot())
            await asyncio.sleep(0)
            gate.set()
            return server.count("/metrics"), [await before, await after]

    with FakeServer(vllm.routes()) as server:
        _, [before, after] = asyncio.run(scenario(server))

    assert [snapshot.name for snapshot in before.targets] == ["kept"]
    assert [snapshot.name for snapshot in after.targets] == ["kept", "new"]
    assert server.count("/metrics") == 2  # one for `kept`, one for `new`


def test_a_defect_in_one_targets_numbers_costs_neither_the_page_nor_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Patched, since no page is known to bring about a defect of ours."""

    def ceiling(state: TargetSnapshot) -> float | None:
        if state.name == "bad":
            raise IndexError("tuple index out of range")
        return 100.0

    monkeypatch.setattr("brimline.reconcile._ceiling_now", ceiling)

    async def run() -> list[Snapshot]:
        with FakeServer(FakeVllm().routes()) as one, FakeServer(FakeVllm().routes()) as other:
            async with collecting(target("bad", one), target("good", other)) as collector:
                return [await collector.snapshot(), await collector.snapshot()]

    _, snapshot = asyncio.run(run())

    bad, good = exposed(snapshot, "bad"), exposed(snapshot, "good")
    assert bad["brimline_target_up", frozenset()] == 1
    assert bad["brimline_target_problem", frozenset({("reason", "internal")})] == 1
    assert bad["brimline_target_errors_total", frozenset({("reason", "internal")})] == 2
    assert any(sample == "brimline_kv_cache_usage_ratio" for sample, _ in bad)
    assert snapshot.memory.ceiling_tokens_per_second == {"good": 100.0}
    assert good["brimline_target_errors_total", frozenset({("reason", "internal")})] == 0
    assert [record.levelname for record in caplog.records if "IndexError" in record.getMessage()] == ["ERROR"]


def test_a_page_slower_than_a_second_is_told_once_and_asked_for_as_often_as_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "brimline.collect")
    clock, vllm = Clock(), FakeVllm()
    takes = iter([5.0, 0.2, 1.5, 3.0, 1.2, 0.3])

    def page(wire: Wire, request: Request) -> bool:
        clock.now += next(takes)
        return answer(vllm.page())(wire, request)

    async def scenario(server: FakeServer) -> list[float | None]:
        async with collecting(target("slow", server), monotonic=clock) as collector:
            return [one_of(await collector.snapshot(), "slow").duration_seconds for _ in range(6)]

    with FakeServer({**vllm.routes(), "/metrics": page}) as server:
        lasted = asyncio.run(scenario(server))

    told = [record.getMessage() for record in caplog.records if "slow=" in record.getMessage()]
    assert lasted == pytest.approx([5.0, 0.2, 1.5, 3.0, 1.2, 0.3])
    assert server.count("/metrics") == 6
    assert [line.partition(" detail")[0] for line in told] == [
        "target=slow slow=true seconds=1.50",  # in the first round it was asked for more than its page
        "target=slow slow=false seconds=0.30",
    ]


def test_a_hundred_thousand_models_are_capped_and_counted_and_cost_no_other_target(
    healthy: FakeServer,
) -> None:
    lines = (f'vllm:num_requests_running{{model_name="m{n}",engine="0"}} 1' for n in range(100_000))
    page = answer("\n".join(lines) + "\n")

    async def scenario(server: FakeServer) -> list[Snapshot]:
        async with collecting(target("attack", server), target("healthy", healthy)) as collector:
            return [await collector.snapshot() for _ in range(2)]

    with FakeServer({**FakeVllm().routes(), "/metrics": page}) as server:
        first, second = asyncio.run(scenario(server))

    models, later = (
        {dict(labels).get("model") for _, labels in exposed(one, "attack")} - {None}
        for one in (first, second)
    )
    assert len(models) == 256
    assert models == later  # those that are kept stay the same
    assert one_of(first, "attack").dropped_series_total == 100_000 - 256
    assert one_of(second, "attack").dropped_series_total == 2 * (100_000 - 256)
    assert one_of(first, "attack").has_problem("too_many_series")
    assert len(render(first)[0]) < 1 << 20
    assert_up(first, "healthy", generation_tokens=77)


def test_jumps_of_the_wall_clock_change_timestamps_alone() -> None:
    wall, steady, vllm = Clock(), Clock(), FakeVllm(generation_tokens=10)
    day = 86_400.0

    async def scenario(server: FakeServer) -> list[dict[Any, float]]:
        seen = []
        limited = target("limited", server, min_interval=Seconds(30.0))
        async with collecting(target("t", server), limited, clock=wall, monotonic=steady) as collector:
            for jump in (0.0, day, -2 * day, day):
                wall.now += jump
                steady.now += 10.0
                snapshot = await collector.snapshot()
                seen.append(
                    {
                        (name, key): value
                        for name in ("t", "limited")
                        for key, value in exposed(snapshot, name).items()
                    }
                )
        return seen

    with FakeServer(vllm.routes()) as server:
        before, *later = asyncio.run(scenario(server))
        asked = server.count("/metrics")

    for number, jumped in enumerate(later, start=1):
        changed = {key for key in before.keys() | jumped.keys() if before.get(key) != jumped.get(key)}
        names = {sample for _, (sample, _) in changed}
        assert names <= {
            "brimline_target_last_success_timestamp_seconds",
            "brimline_target_reading_age_seconds",
            "brimline_server_host_memory_used_bytes",  # of this process, which is the server's too
        }
        age: Any = ("limited", ("brimline_target_reading_age_seconds", frozenset()))
        assert jumped[age] == (10.0 * number) % 30.0
    assert asked == 4 + 2


@pytest.mark.parametrize("opening", [b"", b"\x16\x03\x03\x00"], ids=["silent", "half"])
def test_a_tls_handshake_that_does_not_end_costs_the_target_and_no_other(
    healthy: FakeServer, opening: bytes
) -> None:
    async def scenario(port: int) -> Snapshot:
        slow = Target(name="slow", url=f"https://127.0.0.1:{port}", timeout=IMPATIENT)
        async with collecting(slow, target("healthy", healthy)) as collector:
            return await collector.snapshot()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    accepted.append(listener.accept()[0])
                    accepted[-1].sendall(opening)

        threading.Thread(target=accept, daemon=True).start()
        snapshot = asyncio.run(scenario(listener.getsockname()[1]))
        listener.shutdown(socket.SHUT_RDWR)
        for connection in accepted:
            connection.close()

    assert_down(snapshot, "slow", "timeout")
    assert_up(snapshot, "healthy", generation_tokens=77)
