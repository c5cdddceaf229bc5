"""A comparison as JSON, in its published form: docs/ab-outputs.md."""

from __future__ import annotations

import math
from typing import Any

from brimline.ab.result import Comparison, MetricResult, Report, StaticResult

SCHEMA_VERSION = 1

Json = dict[str, Any]


def as_json(report: Report) -> Json:
    """The whole of it: ratios, seconds since the epoch, and null for what is not known."""
    document: Json = {
        "schema_version": SCHEMA_VERSION,
        "experiment": report.experiment,
        "verdict": report.verdict,
        "is_gate": report.is_gate,
        "no_gate": report.no_gate,
        "is_sequential": report.is_sequential,
        "simulated": report.simulated,
        "baseline": report.baseline,
        "start": report.start,
        "end": report.end,
        "block_seconds": report.block_seconds,
        "blocks": report.blocks_used,
        "hours_needed": _longest(report),
        "comparisons": [_comparison(one) for one in report.comparisons],
        "dropped": [{"start": start, "reason": reason} for start, reason in report.dropped],
        "fingerprints": [{"of": of, "fingerprint": value} for of, value in report.fingerprints],
        "queries": list(report.queries),
        "notes": list(report.notes),
    }
    known: Json = _known(document)
    return known


def _longest(report: Report) -> float | None:
    needed = [one.hours_needed for one in report.comparisons if one.hours_needed is not None]
    return max(needed, default=None)


def _comparison(comparison: Comparison) -> Json:
    return {
        "candidate": comparison.candidate,
        "verdict": comparison.verdict,
        "reasons": list(comparison.reasons),
        "blocks": comparison.blocks_used,
        "hours_needed": comparison.hours_needed,
        "differing_settings": [
            {"setting": setting, "baseline": before, "candidate": after}
            for setting, before, after in comparison.differing_settings
        ],
        "guards": [
            {
                "name": guard.name,
                "passed": guard.passed,
                "pending": guard.pending,
                "detail": guard.detail,
                "cure": guard.cure,
                "names": list(guard.names),
            }
            for guard in comparison.guards
        ],
        "metrics": [_metric(one) for one in comparison.metrics],
        "static": [_static(one) for one in comparison.static],
    }


def _metric(metric: MetricResult) -> Json:
    return {
        "name": metric.name,
        "title": metric.title,
        "kind": metric.kind,
        "unit": metric.unit,
        "gate": metric.gate,
        "direction": "more_is_better" if metric.more_is_better else "less_is_better",
        "margin_ratio": metric.margin_ratio,
        "verdict": metric.verdict,
        "baseline": metric.baseline,
        "candidate": metric.candidate,
        "delta_ratio": metric.delta_ratio,
        "lower_ratio": metric.lower_ratio,
        "upper_ratio": metric.upper_ratio,
        "same_concurrency_delta_ratio": metric.same_concurrency_delta_ratio,
        "p_worse": metric.p_worse,
        "hours_needed": metric.hours_needed,
        "noise_floor_ratio": metric.noise_floor_ratio,
        "events_per_block": metric.events_per_block,
        "dispersion": metric.dispersion,
        "blocks": [{"start": start, "log_ratio": value} for start, value in metric.blocks],
        "notes": list(metric.notes),
    }


def _static(static: StaticResult) -> Json:
    return {
        "name": static.name,
        "title": static.title,
        "unit": static.unit,
        "gate": static.gate,
        "verdict": static.verdict,
        "baseline": static.baseline,
        "candidate": static.candidate,
        "observed_delta_ratio": static.observed_delta_ratio,
        "predicted_baseline": static.predicted_baseline,
        "predicted_candidate": static.predicted_candidate,
        "predicted_delta_ratio": static.predicted_delta_ratio,
        "tolerance_ratio": static.tolerance_ratio,
        "notes": list(static.notes),
    }


def _known(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _known(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_known(inner) for inner in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
