"""From what was read of two arms to the report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from ab_traffic import BYTES_PER_TOKEN, INTERVAL, START, Traffic, simulate, unscraped, with_replica
from brimline.ab.experiment import METRICS, Experiment, parse
from brimline.ab.observations import Boot, Observations, wanted
from brimline.ab.procedure import against_itself, judge, noise_floor_of, swap_plan
from brimline.ab.result import Comparison, MetricResult, Mode, Report
from brimline.ab.series import EMPTY, Series
from brimline.compared import wording

HOUR = 3600.0
# Nothing moves but the load: what is asked of the procedure is then exact.
STILL = Traffic(noise=1e-4, tail_noise=1e-4, preemptions_per_token=0.0)
PREEMPTING = replace(STILL, preemptions_per_token=20e-6)


def experiment(hours: float = 4.0, more: str = "", *, candidates: tuple[str, ...] = ("b",)) -> Experiment:
    variants = "".join(f"\n- {{name: {name}, role: candidate}}" for name in candidates)
    return parse(
        "name: test\n"
        f"variants:\n- {{name: a, role: baseline}}{variants}\n"
        'window: {start: "2023-11-14T22:13:20Z"}\n'
        "routing: per_request\n" + more,
        now=START + hours * HOUR,
    )


def observed(planned: Experiment, traffic: Traffic = STILL, seed: int = 1) -> Observations:
    return simulate(planned, traffic, np.random.default_rng(seed)).observations


def only(report: Report) -> Comparison:
    [comparison] = report.comparisons
    return comparison


def row(report: Report, name: str) -> MetricResult:
    return next(metric for metric in only(report).metrics if metric.name == name)


def changed(
    observations: Observations, variant: str, quantity: str, change: Callable[[Series], Series | None]
) -> Observations:
    """The observations with a counter or gauge of the variant's first server changed, or gone for None."""
    series = observations.arms[variant].replicas[0].series
    both = []
    for kind in (series.counters, series.gauges):
        known = {name: change(one) if name == quantity else one for name, one in kind.items()}
        both.append({name: one for name, one in known.items() if one is not None})
    return with_replica(observations, variant, 0, series=replace(series, counters=both[0], gauges=both[1]))


# --- verdicts ---


def test_arms_alike_pass() -> None:
    planned = experiment()

    report = judge(planned, observed(planned))

    assert report.verdict == "pass"
    assert report.blocks_used == 16
    assert report.is_gate
    assert row(report, "inter_token_latency").verdict == "pass"
    assert report.simulated


def test_a_slower_candidate_is_worse() -> None:
    planned = experiment()
    traffic = replace(STILL, effects={"inter_token_latency": 1.1})

    report = judge(planned, observed(planned, traffic))

    slower = row(report, "inter_token_latency")
    assert report.verdict == "worse"
    assert slower.verdict == "worse"
    assert slower.delta_ratio == pytest.approx(0.1, abs=0.01)
    assert slower.lower_ratio is not None
    assert slower.upper_ratio is not None
    assert slower.lower_ratio < 0.1 < slower.upper_ratio
    assert "mean time between tokens: worse" in only(report).reasons


def test_a_faster_candidate_is_better() -> None:
    planned = experiment()
    traffic = replace(STILL, effects={"inter_token_latency": 0.8})

    assert judge(planned, observed(planned, traffic)).verdict == "better"


def test_load_alone_is_no_difference() -> None:
    planned = experiment(more="metrics:\n- {name: kv_cache_usage, gate: true}\n")
    traffic = replace(STILL, more_traffic=0.3)

    usage = row(judge(planned, observed(planned, traffic)), "kv_cache_usage")

    assert usage.baseline is not None
    assert usage.candidate is not None
    assert usage.candidate / usage.baseline == pytest.approx(1.3, abs=0.03)
    assert usage.delta_ratio == pytest.approx(0, abs=0.02)
    assert usage.same_concurrency_delta_ratio == pytest.approx(0, abs=0.02)
    assert usage.verdict == "pass"


def test_an_arm_is_a_ratio_of_sums_over_its_servers() -> None:
    planned = experiment()
    observations = observed(planned, replace(STILL, replicas=2))
    # A hundred times as slow, and a millionth of the tokens: a mean of ratios would show it.
    slow = observations.arms["b"].replicas[1].series
    few = {
        name: Series(one.times, one.values * (1e-4 if name.endswith("_sum") else 1e-6))
        if name.startswith("inter_token")
        else one
        for name, one in slow.counters.items()
    }
    observations = with_replica(observations, "b", 1, series=replace(slow, counters=few))

    latency = row(judge(planned, observations), "inter_token_latency")

    assert latency.delta_ratio == pytest.approx(0.0, abs=0.02)


def test_bounds_for_looking_at_any_time_are_wider() -> None:
    planned = experiment()
    observations = observed(planned, Traffic())

    once = row(judge(planned, observations), "inter_token_latency")
    often = row(judge(planned, observations, mode="sequential"), "inter_token_latency")

    assert once.delta_ratio == often.delta_ratio
    assert often.upper_ratio is not None
    assert once.upper_ratio is not None
    assert often.upper_ratio > once.upper_ratio


def test_looking_at_any_time_begins_with_the_tenth_block() -> None:
    early, late = experiment(hours=2.25), experiment(hours=2.5)
    traffic = replace(STILL, effects={"inter_token_latency": 1.5})

    first = judge(early, observed(early, traffic), mode="sequential")
    second = judge(late, observed(late, traffic), mode="sequential")

    assert first.verdict == "inconclusive"
    assert only(first).reasons[0] == "9 blocks; at least 10 are needed"
    assert second.verdict == "worse"


def test_a_sliding_window_is_not_for_looking_at_any_time() -> None:
    planned = replace(experiment(), is_sliding=True)

    report = judge(planned, observed(planned), mode="sequential")

    assert not report.is_gate
    assert any("slides" in note for note in report.notes)


def test_more_than_one_candidate_is_held_to_one_level() -> None:
    planned = experiment(candidates=("b", "c", "d"))
    lone = experiment()
    traffic = Traffic(effects={"inter_token_latency": 1.07})

    for seed in range(40):
        several = judge(planned, observed(planned, traffic, seed))
        first = next(m for m in several.comparisons[0].metrics if m.name == "inter_token_latency")
        p_worse = first.p_worse
        if p_worse is not None and 0.025 / 9 < p_worse < 0.025 and first.verdict == "inconclusive":
            break
    else:
        pytest.fail("no run in which the correction decides")
    arms = {name: arm for name, arm in observed(planned, traffic, seed).arms.items() if name in "ab"}
    alone = replace(observed(planned, traffic, seed), arms=arms)
    assert row(judge(lone, alone), "inter_token_latency").p_worse == p_worse
    assert len(several.comparisons) == 3


# --- what is left out ---


def test_a_restart_drops_the_block_in_both_arms_and_those_of_warming_up() -> None:
    planned = experiment()
    observations = observed(planned)
    before = observations.arms["b"].replicas[0].starts
    starts = np.append(before, START + 5.5 * 900)

    report = judge(planned, with_replica(observations, "b", 0, starts=starts))

    assert report.blocks_used == 14
    assert report.dropped == (
        (START + 5 * 900, "b/b-0: restarted"),
        (START + 6 * 900, "b/b-0: warming up"),
    )
    assert report.verdict == "pass"
    starts_of_blocks = [start for start, _ in row(report, "kv_bytes_per_token").blocks]
    assert START + 5 * 900 not in starts_of_blocks
    assert len(starts_of_blocks) == 14


def test_counters_that_fell_are_a_restart() -> None:
    planned = experiment()
    observations = observed(planned)
    series = observations.arms["a"].replicas[0].series

    fallen = with_replica(
        observations, "a", 0, series=replace(series, resets=np.array([START + 900 * 2 + 60]))
    )
    report = judge(planned, fallen)

    assert [reason for _, reason in report.dropped] == ["a/a-0: restarted"]


def test_a_start_before_the_window_still_warms_up_in_it() -> None:
    planned = experiment()
    observations = observed(planned)

    report = judge(planned, with_replica(observations, "b", 0, starts=np.array([START - 60.0])))

    assert report.dropped == ((START, "b/b-0: warming up"),)


def test_a_block_in_which_a_server_was_down_is_dropped() -> None:
    planned = experiment()
    observations = observed(planned)
    up = observations.arms["a"].replicas[0].up
    values = up.values.copy()
    values[70] = 0

    report = judge(planned, with_replica(observations, "a", 0, up=Series(up.times, values)))

    assert report.dropped == ((START + 900, "a/a-0: down"),)


@pytest.mark.parametrize(("missing", "dropped"), [(11, 0), (13, 1)])
def test_a_gap_of_more_than_a_fifth_drops_the_block(missing: int, dropped: int) -> None:
    planned = experiment()
    observations = observed(planned)
    up = observations.arms["a"].replicas[0].up
    kept = np.ones(len(up.times), bool)
    kept[62 : 62 + missing] = False

    report = judge(planned, with_replica(observations, "a", 0, up=Series(up.times[kept], up.values[kept])))

    assert len(report.dropped) == dropped


@pytest.mark.parametrize("minutes", [31, 86])
def test_what_grew_while_nothing_was_scraped_is_no_load_of_the_block_after(minutes: float) -> None:
    planned = experiment()
    observations = unscraped(
        observed(planned, PREEMPTING), "b", START + 3900, START + 3900 + minutes * 60 + 30
    )

    report = judge(planned, observations)
    load = next(one for one in only(report).guards if one.name == "load")

    assert only(report).verdict != "not_comparable"
    assert float(load.detail.split()[6]) == pytest.approx(1.0, abs=0.06)
    # All of the gap's tokens in one block would be its logarithm of 3 and more.
    assert max(abs(value) for _, value in row(report, "tokens_per_running_request").blocks) < 0.1


def test_too_few_blocks_are_inconclusive_and_say_how_long() -> None:
    planned = experiment(hours=1.0)

    report = judge(planned, observed(planned))

    assert report.verdict == "inconclusive"
    assert only(report).hours_needed == pytest.approx(0.5)
    assert "4 blocks; at least 6 are needed" in only(report).reasons


def test_nothing_read_is_no_verdict() -> None:
    planned = experiment()

    report = judge(planned, Observations(arms={}))

    assert report.verdict == "not_comparable"
    assert report.blocks_used == 0
    assert "no server of a and b" in only(report).reasons[0]


@pytest.mark.parametrize("mode", ["fixed", "sequential"])
@pytest.mark.parametrize("hours", [-2.0, 0.0, 0.1])
def test_a_window_that_has_not_begun_or_holds_no_block_yet_is_waited_for(hours: float, mode: Mode) -> None:
    planned = experiment(hours=hours)

    report = judge(planned, Observations(arms={}), mode=mode)

    assert (report.verdict, report.blocks_used) == ("inconclusive", 0)
    assert (
        only(report).reasons[0] == "no block of the window is over; the first ends at 2023-11-14 22:28:20 UTC"
    )


@pytest.mark.parametrize("seen", [True, False])
def test_before_a_block_is_over_that_is_all_that_is_said(seen: bool) -> None:
    planned = experiment(hours=0.1)
    observations = observed(planned) if seen else Observations(arms={})

    report = judge(planned, observations)

    sentence = "no block of the window is over; the first ends at 2023-11-14 22:28:20 UTC"
    assert only(report).reasons == (sentence,)
    assert report.notes == ()
    assert [row.notes for row in only(report).metrics if row.notes] == []
    advised = {guard.name for guard in only(report).guards if guard.cure}
    assert advised <= ({"cold_boot"} if seen else set())
    untold = {guard.name for guard in wording.untold(only(report))}
    assert untold <= ({"cold_boot"} if seen else set())


@pytest.mark.parametrize("hours", [0.5, 2.5, 12.0])
def test_a_rollout_whose_server_is_still_to_come_is_not_taken_back_while_watched(hours: float) -> None:
    planned = experiment(hours=hours)
    observations = observed(planned)
    alone = replace(observations, arms={"a": observations.arms["a"]})

    report = judge(planned, alone, mode="sequential")

    assert report.verdict == "inconclusive"
    assert only(report).reasons[0] == "no server of b in the window yet"
    assert judge(planned, alone).verdict == "not_comparable"


@pytest.mark.parametrize(("hours", "verdict"), [(2.25, "inconclusive"), (2.5, "not_comparable")])
def test_a_baseline_is_waited_for_until_a_word_could_be_said(hours: float, verdict: str) -> None:
    planned = experiment(hours=hours)
    observations = observed(planned)
    alone = replace(observations, arms={"b": observations.arms["b"]})

    report = judge(planned, alone, mode="sequential")

    assert report.verdict == verdict
    assert "no server of a in the window" in only(report).reasons[0]


def test_what_a_boot_settled_does_not_pass_alone_before_there_are_blocks() -> None:
    more = "metrics: [{name: kv_cache_capacity_bytes, gate: true, margin: 0.02}]\n"
    planned = experiment(hours=0.5, more=more)
    observations = observed(planned)
    for name in "ab":
        series = observations.arms[name].replicas[0].series
        observations = with_replica(observations, name, 0, series=replace(series, counters={}, gauges={}))

    report = judge(planned, observations, mode="sequential")

    assert only(report).verdict == "inconclusive"
    assert [one.verdict for one in only(report).static if one.gate] == ["pass"]


def test_servers_of_which_no_sample_came_are_no_verdict() -> None:
    planned = experiment()
    observations = observed(planned)
    for name in "ab":
        series = observations.arms[name].replicas[0].series
        bare = replace(series, counters={}, gauges={}, buckets={})
        observations = with_replica(observations, name, 0, series=bare, up=EMPTY)

    assert judge(planned, replace(observations, scrape_interval=None)).verdict in (
        "inconclusive",
        "not_comparable",
    )


def test_a_server_that_was_gone_before_the_window_is_no_part_of_it() -> None:
    planned = experiment()
    observations = observed(planned)
    gone = replace(
        observations.arms["b"].replicas[0], up=Series(np.array([START - 99.0]), np.ones(1)), boots=()
    )
    arm = replace(observations.arms["b"], replicas=(*observations.arms["b"].replicas, gone))

    report = judge(planned, replace(observations, arms={**observations.arms, "b": arm}))

    assert report.blocks_used == 16
    assert report.verdict == "pass"


def thinned(observations: Observations, variant: str, every: int) -> Observations:
    """The observations as if the variant's exporters had been scraped less often by so much."""
    replica = observations.arms[variant].replicas[0]

    def gauge(one: Series) -> Series:
        return Series(one.times[every - 1 :: every], one.values[every - 1 :: every])

    def counter(one: Series) -> Series:
        grown = gauge(Series(one.times, np.cumsum(one.values)))
        return Series(grown.times, np.diff(grown.values, prepend=0.0))

    series = replace(
        replica.series,
        counters={name: counter(one) for name, one in replica.series.counters.items()},
        gauges={name: gauge(one) for name, one in replica.series.gauges.items()},
    )
    return with_replica(observations, variant, 0, series=series, up=gauge(replica.up))


def test_exporters_may_be_scraped_at_intervals_of_their_own() -> None:
    planned = experiment()
    observations = thinned(observed(planned), "b", 4)

    report = judge(planned, replace(observations, scrape_interval=None))

    assert (report.blocks_used, report.verdict) == (16, "pass")


# --- what is not said ---


def test_a_metric_that_neither_says_is_no_gate() -> None:
    planned = experiment()

    ttft = row(judge(planned, observed(planned)), "time_to_first_token")

    assert not ttft.gate
    assert ttft.verdict == "inconclusive"
    assert ttft.notes == ("not said by a and b",)


def test_a_gate_that_one_arm_does_not_say_stays_open() -> None:
    planned = experiment()
    observations = changed(observed(planned), "b", "kv_cache_used_bytes", lambda _: None)

    report = judge(planned, observations)

    assert row(report, "kv_bytes_per_token").gate
    assert row(report, "kv_bytes_per_token").notes == ("not said by b",)
    assert report.verdict == "inconclusive"


@pytest.mark.parametrize("mode", ["fixed", "sequential"])
def test_two_blocks_in_which_anything_was_cached_are_too_few(mode: Mode) -> None:
    planned = experiment()
    observations = observed(planned)

    def in_two_blocks(gauge: Series) -> Series:
        block = ((gauge.times - START - 1) // 900).astype(int)
        return Series(gauge.times, np.where(np.isin(block, (2, 9)), gauge.values, 0.0))

    for variant in "ab":
        for quantity in ("kv_cache_used_bytes", "kv_cache_used_tokens"):
            observations = changed(observations, variant, quantity, in_two_blocks)

    report = judge(planned, observations, mode=mode)

    bytes_per_token = row(report, "kv_bytes_per_token")
    least = {"fixed": 6, "sequential": 10}[mode]
    assert bytes_per_token.verdict == "inconclusive"
    assert bytes_per_token.notes[-1] == (
        f"would be pass, but: 2 blocks with anything to count; at least {least} are needed"
    )
    assert report.verdict == "inconclusive"


def test_samples_that_are_no_numbers_are_left_out() -> None:
    planned = experiment()

    def spoil(gauge: Series) -> Series:
        values = gauge.values.copy()
        values[::7] = np.nan
        return Series(gauge.times, values)

    report = judge(planned, changed(observed(planned), "b", "kv_cache_used_bytes", spoil))

    assert row(report, "kv_bytes_per_token").delta_ratio == pytest.approx(0, abs=0.01)


# --- rare events, tails, own queries ---


def silenced(observations: Observations, variant: str) -> Observations:
    return changed(
        observations, variant, "preemptions_total", lambda one: Series(one.times, np.zeros(len(one.times)))
    )


def test_no_preemptions_in_either_arm_pass() -> None:
    planned = experiment()

    preemptions = row(
        judge(planned, silenced(silenced(observed(planned, PREEMPTING), "a"), "b")), "preemptions"
    )

    assert preemptions.verdict == "pass"
    assert preemptions.delta_ratio is None
    assert (preemptions.baseline, preemptions.candidate) == (0, 0)
    assert "no events in either arm" in preemptions.notes[0]


def test_none_in_a_handful_of_requests_says_nothing() -> None:
    planned = experiment()
    traffic = replace(PREEMPTING, requests_per_second=0.015)

    preemptions = row(judge(planned, silenced(silenced(observed(planned, traffic), "a"), "b")), "preemptions")

    assert preemptions.verdict == "inconclusive"
    assert preemptions.notes[-1].endswith("requests: none in 300 is fewer than one in a hundred")


def test_none_in_a_handful_of_tokens_says_nothing() -> None:
    planned = experiment()
    observations = silenced(silenced(observed(planned, PREEMPTING), "a"), "b")
    for variant in "ab":
        observations = changed(
            observations,
            variant,
            "generation_tokens_total",
            lambda one: Series(one.times, (np.arange(len(one.times)) % 60 == 0).astype(float)),
        )

    preemptions = row(judge(planned, observations), "preemptions")

    assert preemptions.verdict == "inconclusive"
    assert preemptions.notes[-1].startswith("would be pass, but: only 16 tokens")


def test_preemptions_of_the_candidate_alone_are_worse() -> None:
    planned = experiment()

    preemptions = row(judge(planned, silenced(observed(planned, PREEMPTING), "a")), "preemptions")

    assert preemptions.verdict == "worse"
    assert preemptions.delta_ratio is None
    assert preemptions.lower_ratio is not None
    assert preemptions.lower_ratio > 0.5


def test_more_preemptions_under_more_load_are_not_laid_to_the_candidate() -> None:
    planned = experiment(hours=8)
    traffic = replace(PREEMPTING, more_traffic=0.25, effects={"preemptions": 5.0})

    preemptions = row(judge(planned, observed(planned, traffic)), "preemptions")

    assert preemptions.verdict == "inconclusive"
    assert "would be worse" in preemptions.notes[-1]


def test_tails_are_quantiles_of_all_servers_together() -> None:
    planned = experiment()
    traffic = replace(STILL, effects={"inter_token_latency_p95": 1.3}, replicas=2)

    tail = row(judge(planned, observed(planned, traffic)), "inter_token_latency_p95")

    assert tail.delta_ratio == pytest.approx(0.3, abs=0.05)
    assert tail.verdict == "worse"
    assert not tail.gate


def test_tails_in_buckets_of_other_bounds_are_not_compared() -> None:
    planned = experiment()
    observations = observed(planned)
    series = observations.arms["b"].replicas[0].series
    buckets = dict(series.buckets["inter_token_latency_seconds"])
    buckets.pop(0.01)
    new = replace(series, buckets={"inter_token_latency_seconds": buckets})

    tail = row(judge(planned, with_replica(observations, "b", 0, series=new)), "inter_token_latency_p95")

    assert tail.verdict == "inconclusive"
    assert tail.candidate is not None
    assert "the arms count in buckets of other bounds: each quantile for itself" in tail.notes


def test_a_metric_of_ones_own_is_compared_by_its_blocks() -> None:
    planned = experiment(
        more="metrics:\n- {name: answers_good, query: q, direction: more_is_better, gate: true}\n"
    )
    ends = np.array(planned.block_edges[1:])
    observations = observed(planned)
    wobble = 1 + 0.001 * np.sin(np.arange(len(ends)))
    arms = {
        name: replace(observations.arms[name], own_metrics={"answers_good": Series(ends, value * wobble)})
        for name, value in (("a", 0.9), ("b", 0.7))
    }

    good = row(judge(planned, replace(observations, arms=arms)), "answers_good")

    assert good.verdict == "worse"
    assert good.delta_ratio == pytest.approx(0.7 / 0.9 - 1)


@pytest.mark.parametrize(
    ("boot_deviation", "whole_blocks", "verdict", "warned"),
    [("0", 15, "pass", True), ("0.01", 15, "inconclusive", True), ("0", 8, "pass", False)],
)
def test_a_share_that_is_1_in_most_blocks_warns_of_what_has_not_come_yet(
    boot_deviation: str, whole_blocks: int, verdict: str, warned: bool
) -> None:
    planned = experiment(
        more="metrics:\n- {name: good, query: q, direction: more_is_better, gate: true, margin: 0.001}\n"
        f"boot_deviation: {boot_deviation}\n"
    )
    ends = np.array(planned.block_edges[1:])
    share = np.where(np.arange(len(ends)) < whole_blocks, 1.0, 0.9999)
    observations = observed(planned)
    arms = {
        name: replace(arm, own_metrics={"good": Series(ends, share)})
        for name, arm in observations.arms.items()
    }

    good = row(judge(planned, replace(observations, arms=arms)), "good")

    assert good.verdict == verdict
    assert any(note.startswith("exactly 1 in both variants in 15 of 16") for note in good.notes) == warned


def test_an_own_metric_without_an_answer_stays_a_gate() -> None:
    planned = experiment(more="metrics:\n- {name: cost, query: 'sum(cost)', gate: true}\n")

    report = judge(planned, observed(planned))

    assert report.verdict == "inconclusive"
    assert row(report, "cost").gate


# --- servers and boots ---


def test_one_server_in_an_arm_adds_the_deviation_of_boots_and_says_so() -> None:
    alone = experiment(more="boot_deviation: 0.03\n")
    none = experiment(more="boot_deviation: 0\n")
    observations = observed(alone)

    with_boots, without = (row(judge(one, observations), "inter_token_latency") for one in (alone, none))

    assert any("deviation of one boot, 3.0%, added" in note for note in with_boots.notes)
    # t of 14 degrees (16 blocks, a mean and a slope), two boots.
    assert with_boots.upper_ratio is not None
    assert with_boots.lower_ratio is not None
    width = math.log((1 + with_boots.upper_ratio) / (1 + with_boots.lower_ratio))
    assert width == pytest.approx(2 * 2.145 * 0.03 * math.sqrt(2), rel=0.05)
    assert without.upper_ratio is not None
    assert without.upper_ratio < 0.02


def test_no_boot_moves_what_shape_and_dtype_settle() -> None:
    planned = experiment(more="boot_deviation: 0.03\n")

    bytes_per_token = row(judge(planned, observed(planned)), "kv_bytes_per_token")

    assert bytes_per_token.verdict == "pass"
    assert bytes_per_token.upper_ratio is not None
    assert bytes_per_token.upper_ratio < 0.001


def test_servers_that_differ_widen_the_interval_where_there_are_three() -> None:
    planned = experiment()
    traffic = replace(STILL, replicas=3, boot_deviation=0.05)

    latency = row(judge(planned, observed(planned, traffic)), "inter_token_latency")

    assert any("between servers" in note for note in latency.notes)
    assert latency.upper_ratio is not None
    assert latency.lower_ratio is not None
    assert latency.upper_ratio - latency.lower_ratio > 0.1


# --- before and after, taking turns ---


def reduced(
    observations: Observations, variant: str, kept: Callable[[np.ndarray], np.ndarray]
) -> Observations:
    """The observations with only those of a variant's samples that fall into some times."""
    replica = observations.arms[variant].replicas[0]

    def cut(one: Series) -> Series:
        inside = kept(one.times)
        return Series(one.times[inside], one.values[inside])

    series = replace(
        replica.series,
        counters={name: cut(one) for name, one in replica.series.counters.items()},
        gauges={name: cut(one) for name, one in replica.series.gauges.items()},
    )
    return with_replica(observations, variant, 0, series=series, up=cut(replica.up))


def test_before_and_after_stands_for_static_quantities_alone() -> None:
    planned = experiment(hours=8)
    middle = START + 4 * HOUR
    observations = observed(planned, replace(STILL, effects={"inter_token_latency": 1.5}))
    observations = reduced(observations, "a", lambda times: times <= middle)
    observations = reduced(observations, "b", lambda times: times > middle)
    for name, pool in (("a", 40e9), ("b", 50e9)):
        boot = Boot(start=START - HOUR, observed={"kv_cache_capacity_bytes": pool})
        observations = with_replica(observations, name, 0, boots=(boot,))

    report = judge(planned, observations)

    assert report.verdict == "inconclusive"
    assert only(report).reasons[0].startswith("not_concurrent: ")
    assert swap_plan(planned) in only(report).reasons[0]
    assert all(metric.verdict == "inconclusive" for metric in only(report).metrics)
    [pool_row] = only(report).static
    assert pool_row.observed_delta_ratio == pytest.approx(0.25)
    assert pool_row.verdict == "better"


def test_before_and_after_with_a_block_of_handing_over_is_still_before_and_after() -> None:
    planned = experiment(hours=8)
    observations = observed(planned)
    observations = reduced(observations, "a", lambda times: times <= START + 4 * HOUR + 900)
    observations = reduced(observations, "b", lambda times: times > START + 4 * HOUR)

    report = judge(planned, observations)

    assert report.verdict == "inconclusive"
    assert swap_plan(planned) in only(report).reasons[0]


def test_a_candidate_that_came_later_is_compared_side_by_side() -> None:
    planned = experiment(hours=8)
    observations = observed(planned)
    observations = reduced(observations, "b", lambda times: times > START + 7.5 * HOUR)

    report = judge(planned, observations, mode="sequential")

    assert report.blocks_used == 2
    assert only(report).reasons[0] == "2 blocks; at least 10 are needed"


def test_turns_on_one_gpu_are_compared_in_pairs() -> None:
    planned = experiment(hours=14)
    observations = observed(planned, replace(STILL, effects={"inter_token_latency": 1.2}))

    def turn(times: np.ndarray) -> np.ndarray:
        return np.floor((times - START - 1e-3) / HOUR).astype(int)

    # a b b a a b b a …
    observations = reduced(observations, "a", lambda times: np.isin(turn(times) % 4, (0, 3)))
    observations = reduced(observations, "b", lambda times: np.isin(turn(times) % 4, (1, 2)))

    report = judge(planned, observations)

    # Turns of 1, 2, 2, 2, 2, 2, 2 and 1 hours have seven changes between them.
    assert report.blocks_used == 7
    assert report.dropped == ()
    assert row(report, "inter_token_latency").verdict == "worse"
    assert row(report, "inter_token_latency").delta_ratio == pytest.approx(0.2, abs=0.02)


# --- gates of the file's own ---


def test_a_gate_that_the_file_asks_for_is_not_left_out_where_nobody_has_it() -> None:
    asked = "metrics:\n- {name: request_latency, gate: true}\n"
    planned = experiment(more=asked)

    report = judge(planned, observed(planned))

    assert row(report, "request_latency").gate
    assert report.verdict == "inconclusive"
    assert "mean latency of a request: inconclusive" in only(report).reasons


@pytest.mark.parametrize(("of_candidate", "blocks"), [(0.0, 16), (0.5, 16)])
def test_a_metric_of_the_users_own_that_is_0_is_refused_with_what_to_do(
    of_candidate: float, blocks: int
) -> None:
    planned = experiment(more="metrics:\n- {name: errors, query: q, gate: true}\n")
    observations = observed(planned)
    ends = np.array(planned.block_edges[1:])
    arms = {
        name: replace(arm, own_metrics={"errors": Series(ends, np.full(16, value))})
        for (name, arm), value in zip(observations.arms.items(), (0.0, of_candidate), strict=True)
    }

    report = judge(planned, replace(observations, arms=arms))

    errors = row(report, "errors")
    assert (errors.verdict, errors.candidate, errors.hours_needed) == ("inconclusive", of_candidate, None)
    assert errors.notes[0].startswith(f"0 or less in {blocks} of 16 blocks, which makes no ratio")
    assert report.verdict == "inconclusive"


# --- what else is said ---


def test_short_blocks_are_not_for_a_gate() -> None:
    planned = experiment(hours=0.2, more="block_length: 1m\nwarmup: 1m\n")

    report = judge(planned, observed(planned))

    assert report.no_gate == "short blocks: not for a gate"
    assert report.no_gate in report.notes


def test_what_one_boot_settles_needs_no_blocks_to_be_a_gate() -> None:
    none = "".join(f"- {{name: {name}, gate: false}}\n" for name, one in METRICS.items() if one.gate)
    pool = "- {name: kv_cache_capacity_bytes, gate: true}\n"
    planned = experiment(hours=0.2, more=f"block_length: 1m\nwarmup: 1m\nmetrics:\n{none}{pool}")

    report = judge(planned, observed(planned))

    assert (report.verdict, report.no_gate) == ("pass", None)


def test_sticky_routing_passes_nothing() -> None:
    planned = replace(experiment(), routing="sticky")

    report = judge(planned, observed(planned))

    assert report.verdict == "inconclusive"
    assert any("sticky" in note for note in row(report, "inter_token_latency").notes)


def test_the_baseline_against_itself_gives_the_noise_floor() -> None:
    planned = experiment()
    twofold, halves = against_itself(planned, observed(planned, Traffic(replicas=4)))

    report = judge(twofold, halves)
    floor = noise_floor_of(report)
    again = judge(planned, observed(planned), noise_floor=floor)

    assert report.verdict in ("pass", "inconclusive")
    assert 0.001 < floor["inter_token_latency"] < 0.2
    assert row(again, "inter_token_latency").noise_floor_ratio == floor["inter_token_latency"]


def test_the_noise_floor_is_what_was_seen_and_not_what_is_assumed_of_boots() -> None:
    planned = experiment()
    observations = observed(planned, Traffic(replicas=2))

    floors = [
        noise_floor_of(judge(*against_itself(replace(planned, boot_deviation=deviation), observations)))
        for deviation in (0.0, 0.05)
    ]

    assert floors[0] == floors[1]


def test_halves_that_differ_give_no_noise_floor() -> None:
    planned = experiment()
    observations = with_replica(
        observed(planned, Traffic(replicas=2)), "a", 1, settings={"kv_cache_dtype": "fp8"}
    )

    report = judge(*against_itself(planned, observations))

    assert report.verdict == "not_comparable"
    assert noise_floor_of(report) == {}


def test_what_is_to_be_fetched_follows_from_the_metrics() -> None:
    quantities = wanted(experiment(more="metrics:\n- {name: cost, query: 'sum(cost)'}\n"))

    assert "inter_token_latency_seconds_sum" in quantities.counters
    assert "kv_cache_used_bytes" in quantities.gauges
    assert quantities.histograms == {"inter_token_latency_seconds", "time_to_first_token_seconds"}
    assert "seconds" not in quantities.counters | quantities.gauges
    assert "" not in quantities.counters | quantities.gauges


def test_of_servers_that_are_mostly_idle_samples_decide_nothing() -> None:
    """Seen at scrapes only, a request that runs for a fifth of the time is there in a few of them."""
    planned = experiment()
    observations = observed(planned)
    for variant in ("a", "b"):
        series = observations.arms[variant].replicas[0].series
        gauges = {
            name: Series(one.times, one.values * (np.arange(len(one.times)) % 5 == 0))
            for name, one in series.gauges.items()
        }
        observations = with_replica(observations, variant, 0, series=replace(series, gauges=gauges))

    report = judge(planned, observations)

    usage = row(report, "kv_cache_usage")
    assert usage.verdict == "inconclusive"
    assert "a server was idle in 80% of the samples" in "; ".join(usage.notes)
    # Both of its gauges are of the same scrape.
    assert row(report, "kv_bytes_per_token").verdict == "pass"


def test_hours_needed_are_said_where_noise_leaves_it_open() -> None:
    planned = experiment(more="metrics:\n- {name: inter_token_latency, margin: 0.02}\n")

    latency = row(judge(planned, observed(planned, Traffic(boot_deviation=0.0))), "inter_token_latency")
    certain = replace(planned, boot_deviation=0.0)
    patient = row(judge(certain, observed(planned, Traffic())), "inter_token_latency")

    # Boots alone may differ by more than 2 %: more time would not help.
    assert latency.verdict == "inconclusive"
    assert latency.hours_needed is None
    assert patient.verdict == "inconclusive"
    assert patient.hours_needed is not None
    assert patient.hours_needed > 4


def test_more_hours_do_not_help_where_servers_differ() -> None:
    planned = experiment()
    traffic = replace(STILL, replicas=3, boot_deviation=0.05)

    latency = row(judge(planned, observed(planned, traffic)), "inter_token_latency")

    assert latency.verdict == "inconclusive"
    assert latency.hours_needed is None
    assert "more servers narrow it, more hours hardly" in " ".join(latency.notes)


def test_no_hours_are_promised_that_would_not_help() -> None:
    sticky = replace(experiment(), routing="sticky")
    before_and_after = experiment(hours=8)
    handed_over = observed(before_and_after)
    handed_over = reduced(handed_over, "a", lambda times: times <= START + 4 * HOUR)
    handed_over = reduced(handed_over, "b", lambda times: times > START + 4 * HOUR)

    for report in (
        judge(sticky, observed(sticky, Traffic())),
        judge(before_and_after, handed_over),
        judge(before_and_after, handed_over, mode="sequential"),
    ):
        assert report.verdict == "inconclusive"
        assert only(report).hours_needed is None
        assert {metric.hours_needed for metric in only(report).metrics if metric.gate} == {None}


@pytest.mark.parametrize("mode", ["fixed", "sequential"])
def test_before_the_first_block_gates_are_gates_and_the_hours_of_all_are_those_of_each(mode: Mode) -> None:
    planned = experiment(hours=0.2)

    report = judge(planned, observed(planned), mode=mode)

    wanted = {"fixed": 1.5, "sequential": 2.5}[mode]
    assert {metric.hours_needed for metric in only(report).metrics if metric.gate} == {wanted}
    assert only(report).hours_needed == wanted
    assert row(report, "time_to_first_token").gate
    assert "no gate has anything to compare" not in only(report).reasons


def test_a_day_of_eight_servers_is_judged_within_seconds() -> None:
    own = "".join(f"- {{name: own{n}, query: 'q'}}\n" for n in range(6))
    planned = experiment(hours=24, more=f"metrics:\n{own}")
    observations = observed(planned, Traffic(replicas=4))
    ends = np.array(planned.block_edges[1:])
    own_metrics = {f"own{n}": Series(ends, 1 + 0.01 * np.sin(ends + n)) for n in range(6)}
    arms = {name: replace(arm, own_metrics=own_metrics) for name, arm in observations.arms.items()}
    observations = replace(observations, arms=arms)

    before = time.process_time()
    report = judge(planned, observations)
    took = time.process_time() - before

    assert len(only(report).metrics) >= 15
    assert len(observations.arms["a"].replicas[0].up.times) == 24 * HOUR / INTERVAL
    assert took < 5
    assert row(report, "kv_bytes_per_token").baseline == pytest.approx(BYTES_PER_TOKEN, rel=0.05)
