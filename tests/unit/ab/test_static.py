"""Predicted beside observed, within one boot."""

from __future__ import annotations

import numpy as np
import pytest

from brimline.ab.experiment import parse
from brimline.ab.observations import ArmObservations, Boot, Observations, ReplicaObservations
from brimline.ab.procedure import judge
from brimline.ab.result import Report, StaticResult
from brimline.ab.series import Replica

TOKENS = "kv_cache_capacity_tokens"
FILE = "name: test\nvariants: [{name: a, role: baseline}, {name: b, role: candidate}]\n"


def arm(name: str, *observed: dict[str, float], predicted: dict[str, float] | None = None) -> ArmObservations:
    """An arm of one server for each mapping, each with one boot."""
    return ArmObservations(
        variant=name,
        replicas=tuple(
            ReplicaObservations(
                series=Replica(
                    name=f"{name}-{number}", counters={}, gauges={}, buckets={}, resets=np.empty(0)
                ),
                boots=(Boot(start=1.0, observed=values, predicted=predicted or {}),),
            )
            for number, values in enumerate(observed)
        ),
    )


def report(baseline: ArmObservations, candidate: ArmObservations, more: str = "") -> Report:
    observations = Observations(arms={"a": baseline, "b": candidate}, scrape_interval=15.0)
    return judge(parse(FILE + more, now=1e6), observations)


def only(result: Report) -> StaticResult:
    [one] = result.comparisons[0].static
    return one


def test_fp8_keys_and_values_double_the_pool_as_predicted() -> None:
    # vLLM pull request 42058: 389,872 tokens, with fp8 keys and values 779,760.
    tokens = only(
        report(
            arm("a", {TOKENS: 389_872}, predicted={TOKENS: 390_000}),
            arm("b", {TOKENS: 779_760}, predicted={TOKENS: 780_000}),
        )
    )

    assert tokens.observed_delta_ratio == pytest.approx(1.00004, abs=1e-5)
    assert tokens.predicted_delta_ratio == pytest.approx(1.0)
    assert tokens.verdict == "better"
    assert tokens.notes == ("as predicted (+100.0%)",)


def test_a_delta_beside_the_predicted_one_is_said() -> None:
    tokens = only(
        report(
            arm("a", {TOKENS: 400_000}, predicted={TOKENS: 400_000}),
            arm("b", {TOKENS: 700_000}, predicted={TOKENS: 800_000}),
        )
    )

    assert tokens.notes == ("predicted +100.0%, observed +75.0%",)


@pytest.mark.parametrize(
    ("tokens", "verdict"), [(400_000, "pass"), (396_100, "pass"), (395_900, "worse"), (404_100, "better")]
)
def test_boots_alike_differ_by_one_percent(tokens: float, verdict: str) -> None:
    assert only(report(arm("a", {TOKENS: 400_000}), arm("b", {TOKENS: tokens}))).verdict == verdict


def test_less_is_better_of_what_a_token_takes() -> None:
    name = "kv_cache_bytes_per_token"

    assert only(report(arm("a", {name: 131072}), arm("b", {name: 65536}))).verdict == "better"


def test_a_quantity_that_one_arm_does_not_say_is_open() -> None:
    row = only(report(arm("a", {TOKENS: 400_000}), arm("b", {})))

    assert row.verdict == "inconclusive"
    assert row.candidate is None


def test_servers_of_an_arm_count_by_their_median_and_a_spread_is_said() -> None:
    row = only(
        report(arm("a", {TOKENS: 400_000}, {TOKENS: 401_000}, {TOKENS: 360_000}), arm("b", {TOKENS: 400_000}))
    )

    assert row.baseline == 400_000
    assert row.notes == ("servers of a differ by 11.4%",)


def test_a_static_quantity_may_be_a_gate() -> None:
    more = f"metrics:\n- {{name: {TOKENS}, gate: true, margin: 0.2}}\n"
    baseline, candidate = arm("a", {TOKENS: 400_000}), arm("b", {TOKENS: 300_000})

    decided = report(baseline, candidate, more)

    assert only(decided).gate
    assert only(decided).tolerance_ratio == 0.2
    assert only(decided).verdict == "worse"
    assert decided.verdict == "worse"
    assert report(baseline, candidate).verdict == "inconclusive"
