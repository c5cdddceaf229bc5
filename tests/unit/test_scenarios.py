"""The scenarios are pictures of servers, and what the exporter shows of them agrees with itself."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from brimline.catalog import METRICS
from brimline.readings import Snapshot
from scenarios.plans import GIB
from scenarios.stories import ALERTS, EVENTS, SCENARIOS, Scenario
from scenarios.world import World

SEED = 3


def _run(scenario: Scenario, seed: int = SEED) -> tuple[World, list[tuple[float, Snapshot | None]]]:
    world = scenario.world(seed)
    return world, list(world.scrapes(1e9))


@pytest.fixture(scope="module", params=SCENARIOS, ids=lambda scenario: scenario.name)
def told(request: pytest.FixtureRequest) -> tuple[Scenario, World, list[Snapshot]]:
    scenario: Scenario = request.param
    world, scrapes = _run(scenario)
    return scenario, world, [snapshot for _, snapshot in scrapes if snapshot is not None]


def test_names_are_unique_and_alerts_and_events_are_known() -> None:
    assert max(Counter(scenario.name for scenario in SCENARIOS).values()) == 1
    for scenario in SCENARIOS:
        assert scenario.alerts <= set(ALERTS), scenario.name
        assert scenario.event is None or (scenario.event in EVENTS and scenario.alerts), scenario.name
        assert scenario.event == scenario.world(0).event


def test_there_are_harmful_and_healthy_ones() -> None:
    assert sum(scenario.event is not None for scenario in SCENARIOS) >= 12
    assert sum(scenario.event is None for scenario in SCENARIOS) >= 6


def test_a_seed_tells_the_same_story_again() -> None:
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == "second-process")

    first, again, other = _run(scenario, 1), _run(scenario, 1), _run(scenario, 2)

    assert first[1] == again[1]
    assert first[0].events == again[0].events
    assert first[1] != other[1]


def test_the_event_happens_and_healthy_servers_live(told: tuple[Scenario, World, list[Snapshot]]) -> None:
    scenario, world, _ = told
    event = world.named_event()

    if scenario.event is None:
        assert {event.kind for event in world.events} <= {"first_preemption"}
    else:
        assert event is not None
        assert event.at > world.onset


def test_growth_beyond_the_plan_lasts_half_an_hour_where_it_is_said(
    told: tuple[Scenario, World, list[Snapshot]],
) -> None:
    scenario, world, _ = told
    event = world.named_event()

    if scenario.grows_beyond_plan:
        assert event is not None
        assert world.beyond_plan_since is not None
        assert event.at - world.beyond_plan_since >= 1800


def test_memory_adds_up(told: tuple[Scenario, World, list[Snapshot]]) -> None:
    for snapshot in told[2]:
        for device in snapshot.gpu.devices:
            used, free = device.used_bytes, device.free_bytes
            assert used is not None
            assert free is not None
            assert used + free + (device.reserved_bytes or 0) == device.total_bytes
            assert 0 <= used <= (device.used_peak_bytes or 0)
            parts = [part.size_bytes for part in snapshot.memory.parts if part.gpu == device.uuid]
            assert not parts or sum(parts) == used


def test_headroom_is_what_the_plan_leaves(told: tuple[Scenario, World, list[Snapshot]]) -> None:
    """free - max(0, planned - used now), least over the GPUs of a server that is alone on them."""
    _, world, snapshots = told
    if len(world.servers) > 1:
        return
    for snapshot in snapshots:
        target = snapshot.targets[0]
        left = snapshot.memory.headroom_bytes.get(target.name)
        assert (left is not None) == target.up
        if left is not None and target.footprint is not None:
            total = target.footprint.fullest.total
            planned = total.expected if target.footprint.calibrated else total.high
            assert left == min(
                (device.free_bytes or 0) - max(0, planned - (device.used_bytes or 0))
                for device in snapshot.gpu.devices
            )


def test_counters_fall_only_at_a_start(told: tuple[Scenario, World, list[Snapshot]]) -> None:
    readings = [reading for snapshot in told[2] if (reading := snapshot.targets[0].reading) is not None]
    for before, after in itertools.pairwise(readings):
        if before.start_time == after.start_time:
            for name in ("prompt_tokens_total", "generation_tokens_total", "preemptions_total"):
                assert getattr(after.ranks[0], name) >= getattr(before.ranks[0], name)
        else:
            assert after.start_time is not None
            assert before.start_time is not None
            assert after.start_time > before.start_time


def test_the_cache_is_never_more_than_full(told: tuple[Scenario, World, list[Snapshot]]) -> None:
    for snapshot in told[2]:
        for target in snapshot.targets:
            for rank in target.reading.ranks if target.reading is not None else ():
                assert 0 <= (rank.kv_cache_usage_ratio or 0) <= 1
                assert (rank.kv_cache_used_tokens or 0) <= (rank.kv_cache_capacity_tokens or 0)


def test_servers_lie_within_what_a_server_may_hold(told: tuple[Scenario, World, list[Snapshot]]) -> None:
    """A healthy one never goes far beyond its high bound; whoever runs out of memory had less than a GiB."""
    scenario, world, snapshots = told
    if scenario.event is None:
        for snapshot in snapshots:
            high = sum(server.plan.high_bytes for server in world.servers)
            assert all((device.used_bytes or 0) <= high + 0.5 * GIB for device in snapshot.gpu.devices)


def test_every_family_of_a_server_is_shown_somewhere() -> None:
    """What alerts may look at is there; what no scenario has is named here."""
    absent = {
        "target_config_mismatch",
        "target_missing_quantities",
        "spec_decode_draft_tokens_total",
        "spec_decode_accepted_tokens_total",
        "predicted_host_memory_bytes",
        "gpu_problem",
        "nvml_problem",
        "gpu_power_limit_watts",
        "model_memory_bytes",  # of Ollama alone
        "target_settings_complete",
        "discovery_up",
        "discovery_targets",
        "discovery_last_success_timestamp_seconds",
        "discovery_errors_total",
    }
    wanted = {family.name: family for family in METRICS if family.name not in absent}
    for scenario in SCENARIOS:
        for _, snapshot in itertools.islice(scenario.world(SEED).scrapes(1e9), 0, None, 25):
            if snapshot is not None:
                for name in [
                    name for name, family in wanted.items() if any(True for _ in family.rows(snapshot))
                ]:
                    del wanted[name]
        if not wanted:
            break

    assert set(wanted) == set()
