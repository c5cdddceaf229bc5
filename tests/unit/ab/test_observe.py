"""Observations from rows: servers, boots, buckets and exporters, each with what can be wrong with it."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Mapping, Sequence

import pytest

from brimline.ab.experiment import Experiment, parse
from brimline.ab.fetch import observe
from brimline.ab.observations import Observations, ReplicaObservations
from brimline.ab.procedure import judge
from brimline.ab.saved_series import SavedSeries
from brimline.errors import ConfigError, DataSourceError
from brimline.prometheus_api import MAX_CHUNK_SECONDS, Row, Rows

START = 1_764_000_000.0
END = START + 3600
TIMES = [START - 285 + 15 * n for n in range(260)]
EXPERIMENT = """
name: e
variants: [{name: a, role: baseline}, {name: b, role: candidate}]
window: {start: "2025-11-24T16:00:00Z", end: "2025-11-24T17:00:00Z"}
"""


def row(
    name: str,
    value: float | Callable[[float], float] = 1.0,
    times: Sequence[float] = TIMES,
    /,
    *,
    target: str = "t",
    instance: str = "i",
    **labels: str,
) -> Row:
    about = {"__name__": f"brimline_{name}", "job": "j", "instance": instance, **labels}
    if target:
        about["target"] = target
    read = value if callable(value) else lambda _time: value
    return Row(about, array("d", times), array("d", map(read, times)))


def server(variant: str = "a", times: Sequence[float] = TIMES, **more: str) -> list[Row]:
    """What every server has."""
    return [
        row("target_info", 1, times, experiment="e", variant=variant, role="baseline", engine="vllm", **more),
        row("target_up", 1, times, **more),
    ]


def counted(per_second: float, since: float = START - 1000) -> Callable[[float], float]:
    return lambda time: per_second * (time - since)


def observed(rows: Sequence[Row], text: str = EXPERIMENT, **settings: float) -> Observations:
    return asyncio.run(observe(parse(text, now=2e9), SavedSeries(rows), **settings))  # type: ignore[arg-type]


def only(observations: Observations, arm: str = "a") -> ReplicaObservations:
    [found] = observations.arms[arm].replicas
    return found


# --- who takes part


def test_who_changes_arms_stays_where_it_was_first() -> None:
    early, late = TIMES[:100], TIMES[100:]
    rows = [*server("b", early), *server("a", late)]

    found = observed(rows)

    assert [len(arm.replicas) for arm in found.arms.values()] == [0, 1]
    assert (
        "t (i) is labelled b and a within the window, and was not started anew near the change; it is "
        "counted for b, where it was first" in found.gaps
    )
    assert len(only(found, "b").up.times) == len(TIMES)


# --- one GPU, one name: a variant after the other


def one_life(variant: str, times: Sequence[float], began: float, tokens: float) -> list[Row]:
    """The server from one start on, with what tells it from the life before."""
    return [
        *server(variant, times),
        row("target_start_time_seconds", began, times),
        row("target_config_fingerprint_info", 1, times, fingerprint=f"of {tokens:g}"),
        row("target_setting_info", 1, times, setting="max_model_len", value=f"{tokens:g}"),
        row("kv_cache_capacity_tokens", tokens, times, rank="0"),
        row("generation_tokens_total", counted(100, began), times, model="m", rank="0"),
        row("gpu_memory_used_peak_bytes", tokens * 1e5, times, target="", gpu="G"),
        row("target_gpu_info", 1, times, gpu="G", rank="0"),
    ]


def capacity(found: Observations, arm: str) -> float:
    return only(found, arm).boots[-1].observed["kv_cache_capacity_tokens"]


def test_a_server_started_anew_as_the_other_variant_is_of_each_in_its_time() -> None:
    before, after = TIMES[:120], TIMES[130:]
    rows = one_life("a", before, START - 5000, 1e5) + one_life("b", after, after[0] - 20, 2e5)

    found = observed(rows)

    a, b = only(found, "a"), only(found, "b")
    assert (capacity(found, "a"), capacity(found, "b")) == (1e5, 2e5)
    assert (a.settings["max_model_len"], b.settings["max_model_len"]) == ("100000", "200000")
    assert (a.fingerprint, b.fingerprint) == ("of 100000", "of 200000")
    assert (a.up.times[-1], b.up.times[0]) == (before[-1], after[0])
    assert (a.boots[-1].observed["memory_used_peak_bytes"], len(a.boots), len(b.boots)) == (1e10, 1, 1)
    assert (list(a.starts), list(b.starts)) == ([START - 5000], [after[0] - 20])
    # What the counter shows at first was counted for the variant that began then, not for the one before it.
    assert b.series.counters["generation_tokens_total"].values.sum() == pytest.approx(
        100 * (after[-1] - after[0])
    )
    assert not len(a.changes)
    assert not len(b.changes)
    assert found.shared == ()
    assert "t (i) was a, then b, started anew for each" in found.gaps


@pytest.mark.parametrize("label_moves", [100, 140])
def test_a_label_that_is_changed_before_or_after_the_restart_belongs_to_it(label_moves: int) -> None:
    rows = one_life("a", TIMES[:120], START - 5000, 1e5) + one_life("a", TIMES[120:], TIMES[120] - 20, 2e5)
    rows = [one for one in rows if one.labels["__name__"] != "brimline_target_info"]
    rows += [server("a", TIMES[:label_moves])[0], server("b", TIMES[label_moves:])[0]]

    found = observed(rows)

    assert (capacity(found, "a"), capacity(found, "b")) == (1e5, 2e5)
    assert only(found, "a").up.times[-1] == TIMES[119]


def test_variants_that_take_turns_under_one_name_have_a_boot_for_each_turn() -> None:
    turns = [TIMES[:60], TIMES[60:120], TIMES[120:190], TIMES[190:]]
    rows = []
    for number, times in enumerate(turns):
        tokens = 2e5 if number % 2 else 1e5
        rows += one_life("b" if number % 2 else "a", times, times[0] - 10, tokens)

    found = observed(rows)

    assert [len(only(found, arm).boots) for arm in "ab"] == [2, 2]
    assert (capacity(found, "a"), capacity(found, "b")) == (1e5, 2e5)
    assert len(only(found, "a").up.times) == len(turns[0]) + len(turns[2])


def test_a_restart_without_a_stated_start_is_seen_by_counters_that_fall() -> None:
    rows = one_life("a", TIMES[:120], START - 5000, 1e5) + one_life("b", TIMES[120:], TIMES[120] - 20, 2e5)
    rows = [one for one in rows if "start_time" not in one.labels["__name__"]]
    rows = [one for one in rows if "fingerprint" not in one.labels["__name__"]]

    found = observed(rows)

    assert (capacity(found, "a"), capacity(found, "b")) == (1e5, 2e5)
    # So that it is known to warm up.
    assert list(only(found, "b").series.resets) == [TIMES[120]]


def test_a_label_that_moves_long_after_a_restart_is_a_promotion() -> None:
    rows = one_life("b", TIMES[:60], START - 5000, 1e5) + one_life("b", TIMES[60:], TIMES[60] - 20, 1e5)
    rows = [one for one in rows if one.labels["__name__"] != "brimline_target_info"]
    rows += [server("b", TIMES[:200])[0], server("a", TIMES[200:])[0]]

    found = observed(rows)

    assert [len(arm.replicas) for arm in found.arms.values()] == [0, 1]
    assert any("not started anew near the change" in gap for gap in found.gaps)


def test_before_and_after_under_one_name_is_judged_as_before_and_after() -> None:
    rows = one_life("a", TIMES[:120], START - 5000, 1e5) + one_life("b", TIMES[120:], TIMES[120] - 20, 2e5)
    text = EXPERIMENT + "treatment: [max_model_len]\nblock_length: 5m\nwarmup: 1m\n"

    report = judge(parse(text, now=2e9), observed(rows, text))

    [comparison] = report.comparisons
    assert report.verdict == "inconclusive"
    assert any(reason.startswith("not_concurrent") for reason in comparison.reasons)
    static = {one.name: one for one in comparison.static}
    assert static["kv_cache_capacity_tokens"].observed_delta_ratio == 1.0
    assert static["kv_cache_capacity_tokens"].verdict == "better"
    assert comparison.differing_settings == (("max_model_len", "100000", "200000"),)


def test_servers_of_one_name_get_their_exporters_into_theirs() -> None:
    rows = [
        *server(instance="one"),
        *server(instance="two"),
        row("target_start_time_seconds", 1.0, instance="one"),
        row("target_start_time_seconds", 2.0, instance="two"),
    ]

    assert [each.name for each in observed(rows).arms["a"].replicas] == ["t (one)", "t (two)"]


# --- two exporters before one server


def two_exporters(
    one: Callable[[float], float], two: Callable[[float], float], starts: tuple[float, ...]
) -> int:
    """How many servers are seen."""
    shifted = [time + 6 for time in TIMES]
    rows = [
        *server(instance="one"),
        *server(times=shifted, instance="two"),
        row("generation_tokens_total", one, instance="one", model="m", rank="0"),
        row("generation_tokens_total", two, shifted, instance="two", model="m", rank="0"),
    ]
    for instance, start in zip(("one", "two"), starts, strict=False):
        rows.append(row("target_start_time_seconds", start, instance=instance))
    return len(observed(rows).arms["a"].replicas)


def test_two_exporters_that_read_the_same_counters_are_one_server() -> None:
    count = counted(100)

    assert two_exporters(count, count, (5.25, 5.25)) == 1
    assert two_exporters(count, count, ()) == 1


def test_two_servers_are_two() -> None:
    count = counted(100)

    assert two_exporters(count, count, (5.25, 6.25)) == 2
    # The same start by chance: their counters do not go up as one.
    assert two_exporters(count, counted(90), (5.25, 5.25)) == 2
    # Neither says when it started, and nothing moves: they may be two idle servers.
    assert two_exporters(lambda _: 0, lambda _: 0, ()) == 2
    assert two_exporters(lambda _: 0, lambda _: 0, (5.25, 5.25)) == 1


def test_a_reading_that_is_served_again_is_no_second_server() -> None:
    """With min_interval an exporter serves a reading of some seconds ago."""
    count = counted(100)

    assert two_exporters(count, lambda time: count(time - time % 60), (5.25, 5.25)) == 2
    assert two_exporters(count, lambda time: count(time - time % 7), (5.25, 5.25)) == 1


def test_of_two_exporters_the_one_that_sees_gpus_stays() -> None:
    count = counted(100)
    rows = [
        *server(instance="one"),
        *server(instance="two"),
        *(row("generation_tokens_total", count, instance=name, model="m") for name in ("one", "two")),
        *(row("target_start_time_seconds", 5.0, instance=name) for name in ("one", "two")),
        row("target_gpu_info", 1, instance="two", gpu="G", rank="0"),
    ]

    found = observed(rows)

    assert len(only(found).gpus) == 1
    assert "t is read by two exporters, two and one; it is counted once, as two saw it" in found.gaps


def test_a_server_that_two_exporters_read_for_two_arms_is_in_both() -> None:
    count = counted(100)
    rows = [
        *server("a", instance="one"),
        *server("b", instance="two"),
        *(row("generation_tokens_total", count, instance=name, model="m") for name in ("one", "two")),
        *(row("target_start_time_seconds", 5.0, instance=name) for name in ("one", "two")),
    ]

    assert observed(rows).shared == (
        (frozenset({"a", "b"}), "t is in a as one reads it, and in b as two does"),
    )


def test_a_server_that_two_selectors_choose_is_in_both_arms() -> None:
    text = EXPERIMENT.replace("role: baseline", "role: baseline, selector: 'target=~\"t|u\"'")
    rows = [*server("b"), *server("c", target="u")]

    found = observed(rows, text)

    assert found.shared == ((frozenset({"a", "b"}), "t (i) is in a and in b"),)
    assert [[each.name for each in arm.replicas] for arm in found.arms.values()] == [["t", "u"], ["t"]]
    assert not [gap for gap in found.gaps if "labelled" in gap]


# --- settings


@pytest.mark.parametrize(
    ("complete", "unpublished", "default"), [(1, False, True), (0, True, False), (None, True, False)]
)
def test_a_flag_that_is_not_set_is_at_its_default_where_all_that_was_set_is_known(
    complete: float | None, unpublished: bool, default: bool
) -> None:
    rows = [*server(), row("target_setting_info", 1, setting="block_size", value="16")]
    if complete is not None:
        rows.append(row("target_settings_complete", complete))

    found = only(observed(rows))

    assert ("enforce_eager" in found.unpublished_settings) is unpublished
    assert ("enforce_eager" in found.default_settings) is default
    assert "block_size" not in (*found.unpublished_settings, *found.default_settings)


# --- parts


def test_ranks_add_up_and_the_fullest_one_counts() -> None:
    rows = server()
    for rank, (running, usage) in enumerate(((3, 0.2), (4, 0.9))):
        rows.append(row("requests_running", running, rank=str(rank), model="m"))
        rows.append(row("kv_cache_usage_ratio", usage, rank=str(rank), model="m"))
        rows.append(row("generation_tokens_total", counted(10), rank=str(rank), model="m"))

    series = only(observed(rows)).series

    assert set(series.gauges["requests_running"].values) == {7}
    assert set(series.gauges["kv_cache_usage_ratio"].values) == {0.9}
    assert set(series.counters["generation_tokens_total"].values) == {300}


def test_a_model_that_is_served_later_is_counted_from_then_on() -> None:
    rows = [
        *server(),
        row("requests_running", 3, TIMES, model="base"),
        row("requests_running", 2, TIMES[100:], model="adapter"),
    ]

    running = only(observed(rows)).series.gauges["requests_running"]

    assert list(running.values[[0, 99, 100, 259]]) == [3, 3, 5, 5]


def test_a_rank_that_is_missing_for_a_while_makes_the_sum_unknown() -> None:
    rows = [
        *server(),
        row("requests_running", 3, TIMES, rank="0"),
        row("requests_running", 2, TIMES[:50] + TIMES[60:], rank="1"),
    ]

    assert len(only(observed(rows)).series.gauges["requests_running"].times) == 250


# --- buckets

BOUNDS = {"0.1": 0.25, "+Inf": 1.0}


def buckets(count: Callable[[float], float], times: Sequence[float] = TIMES, **labels: str) -> list[Row]:
    return [
        row("time_to_first_token_seconds_bucket", share_of(count, share), times, le=bound, **labels)
        for bound, share in BOUNDS.items()
    ]


def share_of(count: Callable[[float], float], share: float) -> Callable[[float], float]:
    return lambda time: share * count(time)


def growth(rows: Sequence[Row], text: str = EXPERIMENT) -> Mapping[float, Mapping[float, float]]:
    """By bound, then by minute of the block's end."""
    found = only(observed([*server(), *rows], text)).series.buckets.get("time_to_first_token_seconds", {})
    return {
        bound: {
            (time - START) / 60: value for time, value in zip(each.times, each.values.round(6), strict=True)
        }
        for bound, each in found.items()
    }


def test_buckets_grow_between_the_edges_of_blocks() -> None:
    assert growth(buckets(counted(2))) == {
        0.1: {15: 450, 30: 450, 45: 450, 60: 450},
        float("inf"): {15: 1800, 30: 1800, 45: 1800, 60: 1800},
    }


def test_buckets_of_an_exporter_that_is_scraped_less_often_are_read_as_well() -> None:
    slowly = TIMES[::4]  # 45 s before the edges
    rows = [*server(), *server("b", slowly, target="u")]
    rows += [
        row("inter_token_latency_seconds_bucket", counted(8), times, target=target, le="+Inf", rank="0")
        for target, times in (("t", TIMES), ("u", slowly))
    ]

    found = observed(rows)

    for arm in "ab":
        [grown] = only(found, arm).series.buckets["inter_token_latency_seconds"].values()
        assert len(grown.times) == 4


def test_short_blocks_take_buckets_from_the_whole_series() -> None:
    grown = growth(buckets(counted(2)), EXPERIMENT + "block_length: 60s\n")

    assert len(grown[0.1]) == 60
    assert set(grown[0.1].values()) == {30}


def test_a_block_whose_edge_was_not_read_has_no_buckets() -> None:
    times = [time for time in TIMES if not START + 850 < time < START + 950]

    assert list(growth(buckets(counted(2), times))[0.1]) == [45, 60]


def test_after_a_restart_a_bucket_counts_from_nought_whatever_it_was_before() -> None:
    """A bucket at 1 before the restart is at more after it: only the whole counter shows the fall."""
    restart = START + 1000

    def count(time: float) -> float:
        return time - restart if time >= restart else 2000.0

    rows = [
        row("time_to_first_token_seconds_bucket", lambda t: 1.0 if t < restart else t - restart, le="0.1"),
        row("time_to_first_token_seconds_bucket", count, le="+Inf"),
    ]

    assert growth(rows)[0.1] == {15: 0, 30: 800, 45: 900, 60: 900}
    assert growth(rows)[float("inf")] == {15: 0, 30: 800, 45: 900, 60: 900}


def test_a_rank_that_comes_later_leaves_out_the_block_in_which_it_came() -> None:
    later = [time for time in TIMES if time > START + 1000]
    rows = [*buckets(counted(2), rank="0"), *buckets(counted(2), later, rank="1")]

    assert growth(rows)[0.1] == {15: 450, 45: 900, 60: 900}


# --- boots and configuration


def test_a_configuration_that_changes_is_told_with_its_time() -> None:
    rows = [
        *server(),
        row("target_config_fingerprint_info", 1, TIMES[:100], fingerprint="old"),
        row("target_config_fingerprint_info", 1, TIMES[103:], fingerprint="new"),
    ]

    found = only(observed(rows))

    assert list(found.changes) == [TIMES[103]]
    assert found.fingerprint == "new"


def test_settings_that_changed_are_those_of_the_end() -> None:
    rows = [
        *server(),
        row("target_setting_info", 1, TIMES[:-1], setting="max_model_len", value="1"),
        row("target_setting_info", 1, TIMES[-1:], setting="max_model_len", value="2"),
    ]

    assert only(observed(rows)).settings == {"max_model_len": "2"}


def test_a_server_that_left_shows_the_settings_it_had() -> None:
    rows = [
        *server(times=TIMES[:150]),
        row("target_setting_info", 1, TIMES[:150], setting="block_size", value="16"),
    ]

    found = observed(rows)

    assert only(found).settings == {"block_size": "16"}
    assert "t: not there during the last 1650 s" in found.gaps


def test_a_server_that_does_not_state_its_start_is_told_apart_by_its_counters() -> None:
    restart = START + 1800
    rows = [
        *server(),
        row("generation_tokens_total", lambda t: t - restart if t > restart else t - START + 1e4, model="m"),
        row("kv_cache_capacity_tokens", lambda t: 200 if t > restart else 100, model="m", rank="0"),
    ]

    boots = only(observed(rows)).boots

    assert [(boot.start, boot.observed["kv_cache_capacity_tokens"]) for boot in boots] == [
        (None, 100),
        (None, 200),
    ]


def test_what_ranks_have_together_stands_beside_what_is_predicted_for_them_together() -> None:
    rows = [
        *server(),
        row("target_start_time_seconds", 5.0),
        row("predicted_kv_cache_capacity_tokens", 90),
        row("predicted_memory_bytes", 7, component="weights"),
    ]
    for rank, requests in (("0", 8), ("1", 6)):
        rows.append(row("kv_cache_capacity_tokens", 100, rank=rank))
        rows.append(row("kv_cache_max_concurrency_requests", requests, rank=rank))

    [boot] = only(observed(rows)).boots

    assert boot.observed == {"kv_cache_capacity_tokens": 200, "kv_cache_max_concurrency_requests": 6}
    assert boot.predicted == {"kv_cache_capacity_tokens": 180, "weights_bytes": 14}


def test_earlier_boots_of_another_configuration_are_left_out() -> None:
    before = [START - 86400 + 15 * n for n in range(400)]
    rows = [
        *server(),
        row("target_start_time_seconds", 5.0),
        row("target_config_fingerprint_info", 1, fingerprint="f"),
        row("kv_cache_capacity_tokens", 100, before + TIMES),
    ]
    same = [
        row("target_start_time_seconds", 4.0, before),
        row("target_config_fingerprint_info", 1, before, fingerprint="f"),
    ]
    other = [same[0], row("target_config_fingerprint_info", 1, before, fingerprint="g")]

    assert [boot.in_window for boot in only(observed([*rows, *same])).boots] == [False, True]
    assert [boot.in_window for boot in only(observed([*rows, *other])).boots] == [True]
    assert [boot.in_window for boot in only(observed([*rows, *same], history_seconds=0)).boots] == [True]


# --- GPUs


def test_the_peak_of_a_gpu_that_two_servers_share_is_neithers() -> None:
    rows = [
        *server(),
        row("target_start_time_seconds", 5.0),
        *(row("target_gpu_info", 1, target=name, gpu="G", rank="0") for name in ("t", "u")),
        row("gpu_memory_used_peak_bytes", 9, target="", gpu="G"),
        row("gpu_info", 1, target="", gpu="G", name="NVIDIA A100 MIG 1g.5gb", driver="570"),
    ]

    found = observed(rows)

    [boot] = only(found).boots
    assert "memory_used_peak_bytes" not in boot.observed
    assert "t shares GPU G with u: its peak memory is not compared" in found.gaps
    assert only(found).gpus[0].mig_profile == "1g.5gb"
    assert only(found).gpus[0].memory_total_bytes is None


def test_a_boots_peak_is_not_that_of_the_boot_before() -> None:
    """For a minute the exporter's peak still holds what the last process used."""
    restart = START + 1800
    rows = [
        *server(),
        row("target_start_time_seconds", lambda time: restart if time > restart else START - 1000),
        row("target_gpu_info", 1, gpu="G", rank="0"),
        row("gpu_memory_used_peak_bytes", lambda time: 9 if time < restart + 55 else 5, target="", gpu="G"),
    ]

    boots = only(observed(rows)).boots

    assert [boot.observed for boot in boots] == [{"memory_used_peak_bytes": 9}, {"memory_used_peak_bytes": 5}]


def test_memory_of_others_is_that_on_the_servers_own_gpus() -> None:
    rows = [
        *server(),
        row("target_gpu_info", 1, gpu="G", rank="0"),
        row("target_gpu_info", 1, gpu="H", rank="0"),
    ]
    for gpu, size in (("G", 3), ("H", 4), ("X", 100)):
        rows.append(row("gpu_process_memory_bytes", size, target="", gpu=gpu, owner="other"))

    assert set(only(observed(rows)).other_processes_bytes.values) == {7}


# --- the rest


def test_what_no_server_of_an_arm_has_is_told() -> None:
    assert "a: brimline_generation_tokens_total has no samples in the window" in observed(server()).gaps


def test_saved_series_leave_out_metrics_that_need_promql() -> None:
    text = EXPERIMENT + "metrics: [{name: cost, query: sum(x), kind: intensity}]\n"

    found = observed(server(), text)

    assert found.arms["a"].own_metrics == {}
    assert "cost: saved series answer no PromQL; ask Prometheus" in found.gaps


def test_progress_goes_up_to_its_end() -> None:
    seen: list[tuple[int, int]] = []

    async def scenario() -> None:
        source = SavedSeries([*server(), *buckets(counted(1))])
        await observe(
            parse(EXPERIMENT, now=2e9), source, progress=lambda done, total, _: seen.append((done, total))
        )

    asyncio.run(scenario())

    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert all(done <= total for done, total in seen)
    assert seen[-1][0] == seen[-1][1]
    assert seen[-2][0] == seen[-2][1]  # nothing was expected that did not come


class Failing:
    """A source that fails at one family, and remembers what was still asked."""

    evaluates = True

    def __init__(self, warnings: tuple[str, ...] = (), fails_at: str = "") -> None:
        self.source = SavedSeries(server())
        self.warnings = warnings
        self.fails_at = fails_at

    async def raw_samples(
        self,
        selector: str,
        start: float,
        end: float,
        *,
        chunk: float = MAX_CHUNK_SECONDS,
        after_each: Callable[[], None] = lambda: None,
    ) -> Rows:
        if self.fails_at and self.fails_at in selector:
            raise DataSourceError("http_status", "answered 503")
        found = await self.source.raw_samples(selector, start, end, chunk=chunk, after_each=after_each)
        return Rows(found.rows, self.warnings)

    async def query_range(self, query: str, start: float, end: float, step: float) -> Rows:
        return await self.source.query_range(query, start, end, step)


def experiment() -> Experiment:
    return parse(EXPERIMENT, now=2e9)


def test_warnings_of_the_source_are_gaps() -> None:
    found = asyncio.run(observe(experiment(), Failing(("a store did not answer",))))

    assert found.gaps[0] == "the data source warns: a store did not answer"


@pytest.mark.parametrize("family", ["target_info", "requests_running", "_bucket", "target_setting_info"])
def test_what_cannot_be_had_is_an_error_and_no_empty_answer(family: str) -> None:
    with pytest.raises(DataSourceError, match="answered 503"):
        asyncio.run(observe(experiment(), Failing(fails_at=family)))


def test_a_days_observations_are_not_written_out_by_their_repr() -> None:
    said = repr(observed(server()))

    assert "Series(260 samples)" in said
    assert str(START)[:6] not in said


# --- GPUs


def test_a_gpu_has_its_facts_with_its_power_limit() -> None:
    rows = [
        *server(),
        row("target_gpu_info", 1, gpu="G", rank="0"),
        row("gpu_info", 1, target="", gpu="G", name="NVIDIA H100 80GB HBM3 MIG 3g.40gb", driver="570.86.15"),
        row("gpu_memory_total_bytes", 8e10, target="", gpu="G"),
        row("gpu_power_limit_watts", 700, target="", gpu="G"),
    ]

    [gpu] = only(observed(rows)).gpus

    assert (gpu.memory_total_bytes, gpu.driver) == (8e10, "570.86.15")
    assert (gpu.power_limit_watts, gpu.mig_profile) == (700.0, "3g.40gb")


# --- what the file has wrong that only the series show


def test_a_block_of_fewer_than_four_scrapes_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="block_length: 45 s hold fewer than 4 scrapes, which are 15 s apart"
    ):
        observed(server(), EXPERIMENT + "block_length: 45s\n")


def test_a_selector_that_is_none_is_the_files_mistake() -> None:
    text = EXPERIMENT.replace("role: baseline", "role: baseline, selector: 'target=~\"(\"'")

    with pytest.raises(ConfigError, match=r"the selector of a: .*is no expression"):
        observed(server(), text)
