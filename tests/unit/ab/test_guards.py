"""Unlike things are refused, with the reason and the cure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ab_traffic import START, Traffic, simulate, with_replica
from brimline.ab.experiment import Experiment, parse
from brimline.ab.guards import is_cold, may_be_cold
from brimline.ab.observations import Boot, Gpu, Observations
from brimline.ab.procedure import judge
from brimline.ab.result import Guard
from brimline.ab.series import Series

H100 = Gpu(name="NVIDIA H100", memory_total_bytes=81559 * 2.0**20, driver="570.86.15")


def experiment(more: str = "", hours: float = 4.0) -> Experiment:
    return parse(
        "name: test\n"
        "variants: [{name: a, role: baseline}, {name: b, role: candidate}]\n"
        'window: {start: "2023-11-14T22:13:20Z"}\n'
        "routing: per_request\n" + more,
        now=START + hours * 3600,
    )


PLANNED = experiment()


def observed(traffic: Traffic | None = None, planned: Experiment = PLANNED) -> Observations:
    return simulate(planned, traffic or Traffic(), np.random.default_rng(1)).observations


def guard(name: str, observations: Observations, planned: Experiment = PLANNED) -> Guard:
    report = judge(planned, observations)
    found = next(one for one in report.comparisons[0].guards if one.name == name)
    if found.passed is False:
        assert report.verdict == "not_comparable"
        assert f"{found.name}: {found.detail}" in report.comparisons[0].reasons
        assert found.cure
        assert {metric.verdict for metric in report.comparisons[0].metrics} == {"not_comparable"}
    return found


def test_arms_alike_pass_all_guards_that_the_series_answer() -> None:
    failed = [one for one in judge(PLANNED, observed()).comparisons[0].guards if one.passed is False]

    assert failed == []


@pytest.mark.parametrize(
    ("gpu", "detail"),
    [
        (replace(H100, name="NVIDIA A100-SXM4-80GB"), "GPU"),
        (replace(H100, memory_total_bytes=95830 * 2.0**20), "memory"),
        (replace(H100, driver="550.54.15"), "driver"),
        (replace(H100, mig_profile="3g.40gb"), None),
        (replace(H100, driver="570.133.20"), None),
    ],
)
def test_unlike_hardware_is_refused(gpu: Gpu, detail: str | None) -> None:
    found = guard("hardware", with_replica(observed(), "b", 0, gpus=(gpu,)))

    assert found.passed is (detail is None)
    assert detail is None or f"unlike {detail} (" in found.detail


def test_unknown_hardware_is_said_and_not_refused() -> None:
    observations = with_replica(with_replica(observed(), "a", 0, gpus=()), "b", 0, gpus=())

    assert guard("hardware", observations).passed is None


@pytest.mark.parametrize(
    ("gpus", "detail"),
    [
        ((), "not known: GPU, memory, driver of b/b-0"),
        ((Gpu(name="NVIDIA H100"),), "not known: memory, driver of b/b-0"),
        ((H100, replace(H100, driver=None)), "not known: driver of b/b-0"),
    ],
)
def test_hardware_that_is_known_of_one_side_only_is_not_taken_as_alike(
    gpus: tuple[Gpu, ...], detail: str
) -> None:
    found = guard("hardware", with_replica(observed(), "b", 0, gpus=gpus))

    assert found.passed is None
    assert found.detail == detail
    assert "NVML" in found.cure


def test_another_power_limit_is_refused() -> None:
    limited = [replace(H100, power_limit_watts=watts) for watts in (700.0, 500.0)]
    observations = with_replica(observed(), "a", 0, gpus=(limited[0],))

    found = guard("hardware", with_replica(observations, "b", 0, gpus=(limited[1],)))

    assert found.passed is False
    assert found.detail == "unlike power limit (a: 700 W, b: 500 W)"


@pytest.mark.parametrize("lacking", [{"engine": None, "engine_version": None}, {"engine_version": None}])
def test_an_engine_version_that_one_side_does_not_say_is_not_taken_as_alike(lacking: dict[str, None]) -> None:
    observations = with_replica(observed(), "b", 0, **lacking)

    found = guard("model", observations)

    assert found.passed is None
    assert found.detail == "the engine's version is not known of b/b-0"
    assert guard("model", observations, experiment("treatment: [engine_version]\n")).passed is True


def test_unlike_models_are_refused_unless_that_is_the_treatment() -> None:
    observations = with_replica(observed(), "b", 0, models=("llama-awq",))

    assert guard("model", observations).passed is False
    declared = experiment("treatment: [quantization]\n")
    assert guard("model", observations, declared).passed is True


def test_unlike_engine_versions_are_refused_unless_declared() -> None:
    observations = with_replica(observed(), "b", 0, engine_version="0.32.0")

    assert guard("model", observations).passed is False
    assert guard("model", observations, experiment("treatment: [engine_version]\n")).passed is True


def test_an_undeclared_difference_is_refused_with_the_line_to_write() -> None:
    settings = {"max_model_len": "131072", "kv_cache_dtype": "fp8"}
    observations = with_replica(observed(), "b", 0, settings=settings)

    found = guard("settings", observations, experiment("treatment: [max_model_len]\n"))

    assert found.passed is False
    assert found.detail == "differ beside the treatment: kv_cache_dtype (auto against fp8)"
    assert "`treatment: [kv_cache_dtype, max_model_len]`" in found.cure
    declared = experiment("treatment: [max_model_len, kv_cache_dtype]\n")
    assert guard("settings", observations, declared).passed is True
    assert judge(declared, observations).comparisons[0].differing_settings == (
        ("kv_cache_dtype", "auto", "fp8"),
        ("max_model_len", "32768", "131072"),
    )


def test_what_a_server_makes_of_its_settings_is_no_difference() -> None:
    settings = {"max_model_len": "32768", "kv_cache_dtype": "auto", "num_gpu_blocks": "2048"}
    observations = with_replica(observed(), "b", 0, settings=settings)

    assert guard("settings", observations).passed is True


def test_a_treatment_that_is_the_same_in_both_is_refused() -> None:
    found = guard("settings", observed(), experiment("treatment: [max_model_len]\n"))

    assert found.passed is False
    assert "the same in both" in found.detail


def test_settings_that_the_engine_does_not_publish_are_listed_and_not_taken_as_equal() -> None:
    observations = with_replica(observed(), "a", 0, unpublished_settings=("max_num_seqs",))

    found = guard("settings", observations, experiment("treatment: [async_scheduling]\n"))

    assert found.passed is None
    assert found.detail == "2 settings are not known of both: async_scheduling, max_num_seqs"


def test_of_many_settings_that_are_not_known_a_few_are_named_what_was_to_be_tested_first() -> None:
    names = tuple(f"flag_{place:02}" for place in range(60))
    observations = with_replica(observed(), "a", 0, unpublished_settings=names)

    found = guard("settings", observations, experiment("treatment: [speculative_config]\n"))

    assert found.detail == (
        "61 settings are not known of both: speculative_config, flag_00, flag_01, flag_02, flag_03, flag_04 "
        "and 55 more (--json has all)"
    )
    assert found.names == ("speculative_config", *names)


def with_defaults(*names: str, of_b: tuple[str, ...] | None = None, **more: object) -> Observations:
    both = with_replica(observed(), "a", 0, default_settings=names)
    return with_replica(both, "b", 0, default_settings=names if of_b is None else of_b, **more)


def test_flags_that_neither_command_line_has_are_equal() -> None:
    found = guard("settings", with_defaults("enforce_eager", "max_num_seqs"))

    assert found.passed is True
    assert found.detail == "2 settings, all others at their defaults; none differs"


def test_a_flag_that_one_command_line_has_and_the_other_has_not_is_a_difference() -> None:
    settings = {"max_model_len": "32768", "kv_cache_dtype": "auto", "enforce_eager": "true"}
    observations = with_defaults("enforce_eager", of_b=(), settings=settings)

    found = guard("settings", observations)
    declared = experiment("treatment: [enforce_eager]\n")

    assert found.passed is False
    assert found.detail == "differ beside the treatment: enforce_eager (its default against true)"
    assert guard("settings", observations, declared).passed is True
    assert judge(declared, observations).comparisons[0].differing_settings == (
        ("enforce_eager", "its default", "true"),
    )


def test_a_treatment_that_neither_command_line_has_is_refused() -> None:
    declared = experiment("treatment: [async_scheduling]\n")
    found = guard("settings", with_defaults("async_scheduling"), declared)

    assert found.passed is False
    assert found.detail == "the treatment is the same in both: async_scheduling"


def test_the_default_of_another_version_is_not_known() -> None:
    settings = {"max_model_len": "32768", "kv_cache_dtype": "auto", "enforce_eager": "true"}
    observations = with_defaults("enforce_eager", of_b=(), settings=settings, engine_version="0.32.0")

    found = guard("settings", observations, experiment("treatment: [engine_version]\n"))

    assert found.passed is None
    assert found.names == ("enforce_eager",)


# --- servers


def test_a_server_of_two_arms_is_refused() -> None:
    shared = ((frozenset({"a", "b"}), "t (i) is in a and in b"), (frozenset({"a", "c"}), "u is elsewhere"))

    found = guard("shared_servers", replace(observed(), shared=shared))

    assert found.passed is False
    assert found.detail == "t (i) is in a and in b"
    assert "selectors" in found.cure
    assert guard("shared_servers", observed()).passed is True


def test_servers_of_one_variant_must_be_alike() -> None:
    observations = with_replica(observed(Traffic(replicas=2)), "b", 1, settings={"kv_cache_dtype": "fp8"})

    assert guard("settings", observations).passed is False


# --- boots ---


def boots(*pools: float, predicted: float | None = None) -> tuple[Boot, ...]:
    """Boots one after the other, the last of them in the window."""
    expected = {} if predicted is None else {"kv_cache_capacity_bytes": predicted}
    return tuple(
        Boot(
            start=START + place,
            observed={"kv_cache_capacity_bytes": pool},
            predicted=expected,
            in_window=place == len(pools) - 1,
        )
        for place, pool in enumerate(pools)
    )


def test_a_smaller_pool_than_other_boots_of_the_same_settings_is_a_cold_boot() -> None:
    observations = with_replica(observed(), "b", 0, boots=boots(40e9, 38e9))

    found = guard("cold_boot", observations)

    assert found.passed is False
    assert "restart it once" in found.cure
    assert is_cold(observations.arms["b"].replicas[0])


def new_pods(*, fingerprint: str | None = "f", gpu: Gpu = H100) -> Observations:
    """Two servers of the candidate with one boot each, the second with a pool 15 % smaller."""
    found = observed(Traffic(replicas=2))
    for variant, place, pool in (("a", 0, 40e9), ("a", 1, 40e9), ("b", 0, 40e9), ("b", 1, 34e9)):
        of = fingerprint if variant == "b" else "of the baseline"
        only = boots(pool)
        found = with_replica(found, variant, place, fingerprint=of, boots=only, gpus=(H100,))
    return with_replica(found, "b", 1, gpus=(gpu,))


def test_a_smaller_pool_than_a_server_alike_has_is_a_cold_boot_where_pods_have_no_earlier_ones() -> None:
    found = guard("cold_boot", new_pods())

    assert found.passed is False
    assert found.detail == "a smaller KV cache pool than other boots of the same settings had: b/b-1"


@pytest.mark.parametrize(
    "changes",
    [{"fingerprint": None}, {"gpu": replace(H100, name="NVIDIA A100", memory_total_bytes=40 * 2.0**30)}],
)
def test_a_server_with_other_settings_or_gpus_says_nothing_of_a_pool(changes: dict[str, Any]) -> None:
    report = judge(PLANNED, new_pods(**changes))

    [found] = [one for one in report.comparisons[0].guards if one.name == "cold_boot"]
    assert found.passed is None


def test_jitter_between_boots_is_no_cold_boot() -> None:
    assert guard("cold_boot", with_replica(observed(), "b", 0, boots=boots(40e9, 39.9e9))).passed is not False


def test_a_first_boot_short_of_its_prediction_may_be_cold() -> None:
    observations = with_replica(observed(), "b", 0, boots=boots(38e9, predicted=40e9))

    assert guard("cold_boot", observations).passed is None
    assert may_be_cold(observations.arms["b"].replicas[0])
    [pool] = judge(PLANNED, observations).comparisons[0].static
    assert pool.tolerance_ratio == 0.06
    assert pool.verdict == "pass"


# --- during the run ---


def test_a_configuration_that_changed_in_the_midst_is_refused() -> None:
    observations = with_replica(observed(), "b", 0, changes=np.array([START + 7000.0]))

    assert guard("mid_run_change", observations).passed is False


def test_a_change_before_the_first_block_used_is_past() -> None:
    observations = with_replica(observed(), "b", 0, changes=np.array([START + 60.0]))

    assert guard("mid_run_change", observations).passed is True
    assert judge(PLANNED, observations).dropped == ((START, "b/b-0: its configuration changed"),)


def test_a_server_that_came_later_is_refused() -> None:
    observations = observed(Traffic(replicas=2))
    up = observations.arms["b"].replicas[1].up
    late = Series(up.times[300:], up.values[300:])

    found = guard("mid_run_change", with_replica(observations, "b", 1, up=late))

    assert found.passed is False
    assert found.detail == "b/b-1 came or went"


@pytest.mark.parametrize(("more", "passed"), [(0.2, True), (0.7, False), (-0.5, False)])
def test_loads_too_far_apart_are_refused(more: float, passed: bool) -> None:
    assert guard("load", observed(Traffic(more_traffic=more))).passed is passed


def test_loads_without_a_common_range_are_refused() -> None:
    steady = Traffic(more_traffic=0.45, demand_deviation=0.01, requests_per_second=200.0)
    even = replace(steady, more_traffic=0.05)

    assert guard("load", observed(steady)).passed is False
    assert guard("load", observed(even)).passed is True


def test_load_is_that_of_a_server_so_that_a_canary_is_comparable() -> None:
    observations = observed(Traffic(replicas=4))
    canary = replace(observations.arms["b"], replicas=observations.arms["b"].replicas[:1])
    observations = replace(observations, arms={**observations.arms, "b": canary})

    assert guard("load", observations).passed is True


def longer_prompts(observations: Observations, factor: float) -> Observations:
    series = observations.arms["b"].replicas[0].series
    tokens = series.counters["request_prompt_tokens_sum"]
    counters = {**series.counters, "request_prompt_tokens_sum": Series(tokens.times, factor * tokens.values)}
    return with_replica(observations, "b", 0, series=replace(series, counters=counters))


def test_other_prompts_are_refused() -> None:
    found = guard("prompts", longer_prompts(observed(), 1.2))

    assert found.passed is False
    assert found.detail == "prompts of the candidate are +20.0% as long on average"
    assert guard("prompts", longer_prompts(observed(), 1.05)).passed is True


def test_waiting_in_one_arm_alone_is_saturation() -> None:
    observations = observed()
    series = observations.arms["b"].replicas[0].series
    waiting = series.gauges["requests_waiting"]
    gauges = {**series.gauges, "requests_waiting": Series(waiting.times, np.ones(len(waiting.times)))}

    saturated = with_replica(observations, "b", 0, series=replace(series, gauges=gauges))

    assert guard("saturation", saturated).passed is False
    assert guard("saturation", observations).passed is True


def test_a_warmer_prefix_cache_is_refused_unless_the_treatment_changes_the_pool() -> None:
    observations = observed()
    series = observations.arms["b"].replicas[0].series
    hits = series.counters["prefix_cache_hits_tokens_total"]
    counters = {**series.counters, "prefix_cache_hits_tokens_total": Series(hits.times, 2 * hits.values)}
    warmer = with_replica(observations, "b", 0, series=replace(series, counters=counters))
    settings = {"max_model_len": "32768", "kv_cache_dtype": "fp8"}

    assert guard("prefix_cache", warmer).passed is False
    treated = with_replica(warmer, "b", 0, settings=settings)
    assert guard("prefix_cache", treated, experiment("treatment: [kv_cache_dtype]\n")).passed is None


def test_neighbours_on_one_arms_gpu_are_refused() -> None:
    observations = observed()
    times = observations.arms["b"].replicas[0].up.times
    crowded = with_replica(
        observations, "b", 0, other_processes_bytes=Series(times, np.full(len(times), 2e9))
    )

    assert guard("neighbours", crowded).passed is False
    assert judge(PLANNED, crowded).dropped == ()
    both = with_replica(crowded, "a", 0, other_processes_bytes=Series(times, np.full(len(times), 2e9)))
    assert guard("neighbours", both).passed is True


def test_blocks_with_a_neighbour_on_one_side_are_left_out() -> None:
    """4 GB in the last tenth of the run are 381 MiB on average."""
    observations = observed()
    times = observations.arms["b"].replicas[0].up.times
    late = np.where(times > START + 0.9 * 4 * 3600, 4e9, 0.0)
    crowded = with_replica(observations, "b", 0, other_processes_bytes=Series(times, late))

    report = judge(PLANNED, crowded)

    found = guard("neighbours", crowded)
    assert found.passed is True
    assert found.detail.endswith("; in 2 of 16 blocks beside one variant alone")
    assert report.blocks_used == 14
    assert [time for time, _ in report.dropped] == [START + 14 * 900, START + 15 * 900]
    assert report.dropped[1][1] == "b: other processes hold 3.73 GiB on its GPU"


def test_neighbours_in_the_turns_of_one_variant_are_refused() -> None:
    """On one GPU both see the same process, at times of which each has its own."""
    observations = observed()
    times = observations.arms["b"].replicas[0].up.times
    turns = ((times - START - 1e-6) // 1800).astype(int) % 2
    for place, variant in enumerate(("a", "b")):
        replica = observations.arms[variant].replicas[0]
        mine = turns == place
        observations = with_replica(
            observations,
            variant,
            0,
            up=Series(times[mine], np.ones(int(mine.sum()))),
            other_processes_bytes=Series(times, np.where(turns == 1, 4e9, 0.0)),
            series=replica.series,
        )

    assert guard("neighbours", observations).passed is False


def test_routing_that_is_not_declared_is_said() -> None:
    assert guard("routing", observed(), replace(PLANNED, routing="unknown")).passed is None


# --- looked at again and again ---


def looked_at(
    name: str, observations: Observations, hours: float, planned: Experiment | None = None
) -> tuple[str, Guard]:
    """The verdict and one guard of what is seen after so many hours."""
    so_far = replace(planned or PLANNED, end=START + hours * 3600)
    report = judge(so_far, observations, mode="sequential")
    return report.verdict, next(one for one in report.comparisons[0].guards if one.name == name)


def with_gauge(observations: Observations, name: str, values: np.ndarray) -> Observations:
    series = observations.arms["b"].replicas[0].series
    gauges = {**series.gauges, name: Series(series.gauges[name].times, values)}
    return with_replica(observations, "b", 0, series=replace(series, gauges=gauges))


EIGHT = experiment(hours=8.0)


@pytest.mark.parametrize("hours", [0.25, 1.0, 2.25])
def test_a_load_that_is_unlike_is_no_refusal_before_any_word_could_be_said(hours: float) -> None:
    verdict, found = looked_at("load", observed(Traffic(more_traffic=2.0)), hours)

    assert (verdict, found.passed, found.pending) == ("inconclusive", None, True)
    assert found.detail.endswith("(so far)")
    assert found.cure


def test_a_load_that_stays_unlike_is_refused() -> None:
    verdict, found = looked_at("load", observed(Traffic(more_traffic=2.0)), 4.0)

    assert (verdict, found.passed, found.pending) == ("not_comparable", False, False)


def test_while_loads_are_unlike_nothing_is_worse_either() -> None:
    slower = Traffic(more_traffic=0.52, effects={"inter_token_latency": 1.5}, shared=False)

    report = judge(PLANNED, observed(slower), mode="sequential")

    [comparison] = report.comparisons
    load = next(one for one in comparison.guards if one.name == "load")
    assert load.pending
    assert report.verdict == "inconclusive"
    assert comparison.reasons[0].startswith("not comparable yet: load: a server of the candidate had ")
    latency = next(one for one in comparison.metrics if one.name == "inter_token_latency")
    assert latency.verdict == "inconclusive"
    assert latency.notes[-1].startswith("would be worse, but: not comparable yet")


def test_a_canary_without_traffic_is_waited_for() -> None:
    observations = observed()
    series = observations.arms["b"].replicas[0].series
    counters = {name: Series(one.times, np.zeros(len(one.times))) for name, one in series.counters.items()}
    idle = with_replica(observations, "b", 0, series=replace(series, counters=counters))

    assert looked_at("load", idle, 4.0)[0] == "inconclusive"
    assert looked_at("load", idle, 4.0)[1].pending
    assert guard("load", idle).passed is False


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"gpus": (replace(H100, name="NVIDIA A100-SXM4-80GB"),)}, "hardware"),
        ({"models": ("llama-awq",)}, "model"),
        ({"settings": {"max_model_len": "32768", "kv_cache_dtype": "fp8"}}, "settings"),
    ],
)
def test_what_no_time_heals_is_refused_at_the_first_look(changes: dict[str, object], name: str) -> None:
    verdict, found = looked_at(name, with_replica(observed(), "b", 0, **changes), 0.25)

    assert (verdict, found.passed) == ("not_comparable", False)


def test_a_queue_of_the_first_hours_is_forgiven_and_one_that_stays_is_not() -> None:
    observations = observed(planned=EIGHT)
    times = observations.arms["b"].replicas[0].series.gauges["requests_waiting"].times
    at_first = with_gauge(observations, "requests_waiting", (times < START + 4 * 3600).astype(float))
    always = with_gauge(observations, "requests_waiting", np.ones(len(times)))

    assert looked_at("saturation", at_first, 2.0, EIGHT)[1].pending
    assert looked_at("saturation", at_first, 4.0, EIGHT)[1].passed is False
    assert looked_at("saturation", at_first, 7.0, EIGHT)[1].pending
    assert looked_at("saturation", always, 7.0, EIGHT)[1].passed is False


def test_a_cold_boot_may_be_mended_by_a_restart_and_its_smaller_pool_is_no_harm_meanwhile() -> None:
    planned = experiment("metrics: [{name: kv_cache_capacity_bytes, gate: true, margin: 0.02}]\n")
    cold = with_replica(observed(), "b", 0, boots=boots(40e9, 30e9))

    verdict, found = looked_at("cold_boot", cold, 1.0, planned)

    assert (verdict, found.pending) == ("inconclusive", True)
    assert looked_at("cold_boot", cold, 4.0, planned)[0] == "not_comparable"
    early = judge(replace(planned, end=START + 3600.0), cold, mode="sequential").comparisons[0]
    [pool] = early.static
    assert (pool.verdict, pool.notes[-1]) == ("inconclusive", "would be worse, but a boot was cold")


def test_a_server_that_is_not_read_for_a_while_takes_nothing_back() -> None:
    planned = experiment(hours=8.0)
    observations = observed(Traffic(replicas=2), planned)
    up = observations.arms["b"].replicas[1].up

    def until(hours: float) -> Guard:
        there = up.times <= START + hours * 3600
        seen = with_replica(observations, "b", 1, up=Series(up.times[there], up.values[there]))
        return looked_at("mid_run_change", seen, 8.0, planned)[1]

    assert until(7.6).passed is True
    assert until(6.0).passed is True
    assert until(5.0).passed is False
    assert until(5.0).detail == "b/b-1 went"


def test_a_server_that_comes_later_is_waited_for_while_watched() -> None:
    observations = observed(Traffic(replicas=2))
    up = observations.arms["b"].replicas[1].up
    late = with_replica(observations, "b", 1, up=Series(up.times[300:], up.values[300:]))

    assert looked_at("mid_run_change", late, 4.0)[1].passed is True
