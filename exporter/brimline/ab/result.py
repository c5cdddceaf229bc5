"""What a comparison came to: the records that reports, JSON and metrics are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from brimline.ab.experiment import Kind
from brimline.ab.inference import Verdict

SCHEMA_VERSION = 1


# The detail of a guard that knows nothing because there is no data yet, and of nothing else.
NO_BLOCK = "no block is over yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """One condition of comparability. passed: None where the series do not tell. cure: what to do.

    names: all that is not known, where detail has but a few of them. pending: it does not hold so far, and
    may yet: no verdict meanwhile, and no refusal either (passed is None).
    """

    name: str
    passed: bool | None
    detail: str
    cure: str = ""
    names: tuple[str, ...] = ()
    pending: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricResult:
    """One metric of one candidate beside the baseline.

    baseline, candidate: the metric over the whole window, None where nothing was counted. delta_ratio:
    candidate over baseline less 1, as the procedure estimates it (at equal load where that applies), with
    its 95 % bounds. same_concurrency_delta_ratio: the same at equal running requests. hours_needed: of
    further running until the margin can be decided; None where that is done or cannot be told.
    noise_floor_ratio: what `ab aa` showed between equal arms. blocks: what each block says of the log-ratio
    (at equal load where that applies), with its start, for plots. events_per_block, dispersion: of rare
    events in both arms together, and how much more they vary than by chance alone.
    """

    name: str
    title: str
    kind: Kind
    unit: str
    gate: bool
    margin_ratio: float
    more_is_better: bool
    verdict: Verdict
    baseline: float | None = None
    candidate: float | None = None
    delta_ratio: float | None = None
    lower_ratio: float | None = None
    upper_ratio: float | None = None
    same_concurrency_delta_ratio: float | None = None
    p_worse: float | None = None
    blocks: tuple[tuple[float, float], ...] = ()
    hours_needed: float | None = None
    noise_floor_ratio: float | None = None
    events_per_block: float | None = None
    dispersion: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticResult:
    """A quantity that one boot decides: no statistics, predicted beside observed.

    predicted_delta_ratio, observed_delta_ratio: candidate over baseline less 1. tolerance_ratio: how much
    two boots of one configuration may differ.
    """

    name: str
    title: str
    unit: str
    baseline: float | None
    candidate: float | None
    predicted_baseline: float | None
    predicted_candidate: float | None
    tolerance_ratio: float
    verdict: Verdict
    gate: bool = False
    notes: tuple[str, ...] = ()

    @property
    def observed_delta_ratio(self) -> float | None:
        return _delta(self.baseline, self.candidate)

    @property
    def predicted_delta_ratio(self) -> float | None:
        return _delta(self.predicted_baseline, self.predicted_candidate)


def _delta(baseline: float | None, candidate: float | None) -> float | None:
    return None if baseline is None or candidate is None or baseline == 0 else candidate / baseline - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One candidate beside the baseline."""

    candidate: str
    verdict: Verdict
    reasons: tuple[str, ...]
    guards: tuple[Guard, ...]
    metrics: tuple[MetricResult, ...]
    static: tuple[StaticResult, ...]
    blocks_used: int = 0
    differing_settings: tuple[tuple[str, str, str], ...] = ()
    hours_needed: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole run. no_gate: why no rollout may be decided by it, as with short blocks; None where one may.

    warnings: of the data source: something may be missing.
    """

    experiment: str
    baseline: str
    start: float
    end: float
    block_seconds: float
    blocks_used: int
    verdict: Verdict
    comparisons: tuple[Comparison, ...]
    dropped: tuple[tuple[float, str], ...] = ()
    no_gate: str | None = None
    is_sequential: bool = False
    fingerprints: tuple[tuple[str, str], ...] = ()
    queries: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    simulated: bool = False
    schema_version: int = field(default=SCHEMA_VERSION)

    @property
    def is_gate(self) -> bool:
        return self.no_gate is None


Mode = Literal["fixed", "sequential"]
