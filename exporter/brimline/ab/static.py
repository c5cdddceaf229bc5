"""What one boot settles, predicted beside observed: no statistics, and an answer once both servers are up."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from brimline.ab.experiment import STATIC, Metric, StaticQuantity
from brimline.ab.guards import is_cold, may_be_cold
from brimline.ab.inference import Verdict
from brimline.ab.observations import ArmObservations, Boot
from brimline.ab.result import StaticResult

# A boot with a cold compile cache left a pool 4.5 % smaller (comments on vLLM pull request 54479).
COLD_TOLERANCE = 0.06
_MOVED_BY_COLD_BOOTS = frozenset(
    {"kv_cache_capacity_bytes", "kv_cache_capacity_tokens", "kv_cache_max_concurrency_requests"}
)


def static_results(
    baseline: ArmObservations, candidate: ArmObservations, wanted: dict[str, Metric]
) -> tuple[StaticResult, ...]:
    """A row for each quantity that either arm says. wanted: those that the experiment file names."""
    cold = any(
        is_cold(replica, arm.replicas) or may_be_cold(replica)
        for arm in (baseline, candidate)
        for replica in arm.replicas
    )
    rows = (
        _row(quantity, baseline, candidate, wanted.get(quantity.name), cold) for quantity in STATIC.values()
    )
    return tuple(row for row in rows if row is not None)


def _row(
    quantity: StaticQuantity,
    baseline: ArmObservations,
    candidate: ArmObservations,
    wanted: Metric | None,
    cold: bool,
) -> StaticResult | None:
    name = quantity.name
    observed = [_middle([boot.observed for boot in _last_boots(arm)], name) for arm in (baseline, candidate)]
    predicted = [
        _middle([boot.predicted for boot in _last_boots(arm)], name) for arm in (baseline, candidate)
    ]
    if observed == [None, None] and predicted == [None, None] and wanted is None:
        return None
    tolerance = quantity.tolerance_ratio if wanted is None else wanted.margin
    notes = []
    if cold and name in _MOVED_BY_COLD_BOOTS and tolerance < COLD_TOLERANCE:
        tolerance = COLD_TOLERANCE
        notes.append("a boot may have been cold: restart once and measure again")
    more_is_better = quantity.more_is_better if wanted is None else wanted.more_is_better
    for arm in (baseline, candidate):
        values = [boot.observed[name] for boot in _last_boots(arm) if name in boot.observed]
        if len(values) > 1 and max(values) > min(values) * (1 + tolerance):
            notes.append(f"servers of {arm.variant} differ by {max(values) / min(values) - 1:.1%}")
    result = StaticResult(
        name=name,
        title=quantity.title,
        unit=quantity.unit,
        baseline=observed[0],
        candidate=observed[1],
        predicted_baseline=predicted[0],
        predicted_candidate=predicted[1],
        tolerance_ratio=tolerance,
        verdict="inconclusive",
        gate=wanted is not None and wanted.gate,
    )
    delta, expected = result.observed_delta_ratio, result.predicted_delta_ratio
    if delta is not None and expected is not None:
        apart = (1 + delta) / (1 + expected) - 1
        notes.append(
            f"as predicted ({expected:+.1%})"
            if abs(apart) <= tolerance
            else f"predicted {expected:+.1%}, observed {delta:+.1%}"
        )
    return dataclasses.replace(
        result, verdict=_verdict(delta, tolerance, more_is_better=more_is_better), notes=tuple(notes)
    )


def _last_boots(arm: ArmObservations) -> list[Boot]:
    """The last boot in the window of each server."""
    last = []
    for replica in arm.replicas:
        inside = [boot for boot in replica.boots if boot.in_window]
        if inside:
            last.append(max(inside, key=lambda boot: boot.start or 0.0))
    return last


def _middle(boots: Sequence[Mapping[str, float]], name: str) -> float | None:
    values = [boot[name] for boot in boots if name in boot]
    return float(statistics.median(values)) if values else None


def _verdict(delta: float | None, tolerance: float, *, more_is_better: bool) -> Verdict:
    """PASS within what two boots alike may differ by, else by the direction."""
    if delta is None:
        return "inconclusive"
    if abs(delta) <= tolerance:
        return "pass"
    return "better" if (delta > 0) == more_is_better else "worse"
