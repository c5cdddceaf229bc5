"""The verdict on an experiment from what was read of it: pure, and the same for `run`, `watch` and `aa`.

Cut the window into blocks, leave out those that one arm spoils in both, see whether the arms may be
compared at all, compare each metric by its kind, hold its difference against its margin, and say what all
gates come to. docs/ab.md has the procedure in words and the simulations that it stands on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from brimline.ab import inference
from brimline.ab.blocks import (
    NO_SAMPLES,
    ArmBlocks,
    Pairing,
    cell_sums,
    crowded_on_one_side,
    interval_of,
    is_present,
    pair,
    sampled_at,
    unfit_blocks,
)
from brimline.ab.estimators import (
    Arm,
    Compared,
    NotEnough,
    affine,
    intensity,
    log_of,
    quantile_of_buckets,
)
from brimline.ab.experiment import SECONDS, Experiment, Metric, Variant
from brimline.ab.guards import (
    OFFERED_LOAD,
    Pair,
    differing_settings,
    guards,
    load_ratio,
    shares_above_zero,
)
from brimline.ab.inference import Bounded, Estimate, RateRatio, Verdict
from brimline.ab.observations import ArmObservations, Observations, ReplicaObservations, is_counter
from brimline.ab.result import NO_BLOCK, Comparison, Guard, MetricResult, Mode, Report, StaticResult
from brimline.ab.static import static_results
from brimline.units import format_bytes

Floats = NDArray[np.float64]

# So many servers in each arm show how far boots are apart; with fewer, the experiment file says.
LEAST_REPLICAS = 3
# With fewer requests in a block its load is known to less than 7 %, and adjusted for too little.
FEW_REQUESTS = 200
# In each arm, that none of them had a rare event says anything: fewer than one in a hundred does, at 95 %.
LEAST_REQUESTS = 300
# A server whose samples are mostly zero is seen by a few of them only, which say too little of a mean.
LEAST_BUSY = 0.5
# Beyond this difference of load, what load explains is not laid to the variant where nothing adjusts for it.
LIKE_LOADS = (0.9, 1.1)

SHORT_BLOCKS = "short blocks: not for a gate"
SLIDING = (
    "not for a gate: the window slides, so that looking again and again is not allowed for; "
    "write `window: {start: …}` for bounds that hold at any time"
)
OTHER_BOUNDS = "the arms count in buckets of other bounds: each quantile for itself"

CONTROL = Metric(
    name="prompt_tokens_per_request",
    title="control: prompt tokens of a request",
    kind="intensity",
    numerator="request_prompt_tokens_sum",
    denominator="request_prompt_tokens_count",
    margin=0.1,
    unit="tok",
    moved_by_boots=False,
)


def judge(
    experiment: Experiment,
    observations: Observations,
    *,
    mode: Mode = "fixed",
    noise_floor: Mapping[str, float] | None = None,
) -> Report:
    """The report on all candidates.

    mode: `fixed` for one look at the end; `sequential` for bounds that hold however often one looks, as
    long as the window goes on from one start. noise_floor: by metric, what two arms alike differed by
    (`noise_floor_of`).
    """
    edges = np.array(experiment.block_edges)
    arms = {
        variant.name: _seen(
            observations.arms.get(variant.name, ArmObservations(variant=variant.name, replicas=())), edges
        )
        for variant in (experiment.baseline, *experiment.candidates)
    }
    interval = observations.scrape_interval or interval_of(list(arms.values()))
    blocks = {name: ArmBlocks(arm, edges) for name, arm in arms.items()}
    unfit = {
        name: unfit_blocks(arm, experiment, edges, interval) if math.isfinite(interval) else {}
        for name, arm in arms.items()
    }
    drafts = []
    crowded: dict[str, dict[int, tuple[str, ...]]] = {}
    for variant in experiment.candidates:
        crowded[variant.name] = _crowded(blocks[experiment.baseline.name], blocks[variant.name])
        pairing = _pairing(
            arms[experiment.baseline.name],
            arms[variant.name],
            unfit,
            tuple(crowded[variant.name]),
            edges,
            interval,
            experiment.min_blocks,
        )
        drafts.append(
            _draft(
                Pair(
                    experiment=experiment,
                    baseline=blocks[experiment.baseline.name],
                    candidate=blocks[variant.name],
                    pairing=pairing,
                    shared=[text for arms_, text in observations.shared if variant.name in arms_],
                    mode=mode,
                ),
                noise_floor or {},
            )
        )
    comparisons = _with_verdicts(drafts, experiment)
    return Report(
        experiment=experiment.name,
        baseline=experiment.baseline.name,
        start=experiment.start,
        end=experiment.end,
        block_seconds=experiment.block_length,
        blocks_used=min((draft.pair.pairing.count for draft in drafts), default=0),
        verdict=_of_all([comparison.verdict for comparison in comparisons]),
        comparisons=tuple(comparisons),
        dropped=_dropped(
            [*unfit.values(), *crowded.values()],
            edges,
            absence=not any(draft.pair.pairing.takes_turns for draft in drafts),
        ),
        no_gate=_no_gate(experiment, mode),
        is_sequential=mode == "sequential",
        fingerprints=tuple(
            (name, fingerprint)
            for name, arm in arms.items()
            for fingerprint in sorted({r.fingerprint for r in arm.replicas if r.fingerprint})
        ),
        queries=tuple(observations.queries),
        notes=tuple(_notes(experiment, observations, mode)),
        warnings=tuple(observations.warnings),
        simulated=observations.simulated,
    )


def noise_floor_of(report: Report) -> dict[str, float]:
    """From a report on two arms alike, by how much metrics may differ where nothing does, as far as was seen.

    The farther bound of the interval. Nothing of arms that a guard refused: those were not alike.
    """
    return {
        metric.name: max(abs(metric.lower_ratio), abs(metric.upper_ratio))
        for comparison in report.comparisons
        if comparison.verdict != "not_comparable"
        for metric in comparison.metrics
        if metric.lower_ratio is not None and metric.upper_ratio is not None
    }


def against_itself(experiment: Experiment, observations: Observations) -> tuple[Experiment, Observations]:
    """The baseline's servers dealt out to two arms. Raises NotEnough for fewer than two servers.

    Without the deviation of boots that the file assumes: what is measured is to stand for itself.
    """
    arm = observations.arms.get(experiment.baseline.name)
    if arm is None or len(arm.replicas) < 2:
        raise NotEnough("the baseline has fewer than two servers; compare two windows of it instead")
    names = [f"{arm.variant} ({half})" for half in ("even", "odd")]
    arms = {
        name: ArmObservations(variant=name, replicas=tuple(arm.replicas[first::2]))
        for first, name in enumerate(names)
    }
    twofold = dataclasses.replace(
        experiment,
        baseline=Variant(name=names[0], role="baseline"),
        candidates=(Variant(name=names[1], role="candidate"),),
        treatment=(),
        boot_deviation=0.0,
        metrics=tuple(metric for metric in experiment.metrics if metric.query is None),
    )
    return twofold, dataclasses.replace(observations, arms=arms)


def judge_pair(two: Pair) -> Comparison:
    """The comparison of one candidate whose blocks are paired already."""
    [comparison] = _with_verdicts([_draft(two, {})], two.experiment)
    return comparison


# --- cutting ---


def _seen(arm: ArmObservations, edges: Floats) -> ArmObservations:
    """The arm without servers of which the window holds nothing: scaled away before it."""

    def is_seen(replica: ReplicaObservations) -> bool:
        times = sampled_at(replica)
        inside = ((times > edges[0]) & (times <= edges[-1])).any()
        return bool(inside) or any(boot.in_window for boot in replica.boots)

    return dataclasses.replace(arm, replicas=tuple(filter(is_seen, arm.replicas)))


def _pairing(
    baseline: ArmObservations,
    candidate: ArmObservations,
    unfit: Mapping[str, Mapping[int, tuple[str, ...]]],
    crowded: Sequence[int],
    edges: Floats,
    interval: float,
    least: int,
) -> Pairing:
    count = len(edges) - 1
    looked_at = []
    for arm in (baseline, candidate):
        fit = np.ones(count, bool)
        fit[[*unfit[arm.variant], *crowded]] = False
        present = is_present(arm, edges, interval) if math.isfinite(interval) else np.zeros(count, bool)
        looked_at.append((present, fit & present))
    return pair(looked_at[0], looked_at[1], least=least)


def _crowded(baseline: ArmBlocks, candidate: ArmBlocks) -> dict[int, tuple[str, ...]]:
    """Blocks with processes of others beside one arm alone, with a reason; none where a guard refuses."""
    places, mostly = crowded_on_one_side(baseline, candidate)
    if mostly:
        return {}
    held = {arm.arm.variant: arm.others_bytes() for arm in (baseline, candidate)}
    most = {int(place): max(held, key=lambda name: held[name][place]) for place in np.flatnonzero(places)}
    return {
        place: (f"{name}: other processes hold {format_bytes(held[name][place])} on its GPU",)
        for place, name in most.items()
    }


def _dropped(
    unfit: Sequence[Mapping[int, tuple[str, ...]]], edges: Floats, *, absence: bool
) -> tuple[tuple[float, str], ...]:
    """Blocks that are left out, with the reasons. absence: also those in which a server was not there."""
    reasons: dict[int, list[str]] = {}
    for of_arm in unfit:
        for place, texts in of_arm.items():
            told = [text for text in texts if absence or not text.endswith(NO_SAMPLES)]
            if told:
                reasons.setdefault(place, []).extend(told)
    return tuple((float(edges[place]), "; ".join(reasons[place])) for place in sorted(reasons))


def _no_gate(experiment: Experiment, mode: Mode) -> str | None:
    """Why no rollout may be decided by it: what its blocks say, or when they are looked at."""
    if not any(metric.gate and metric.kind != "static" for metric in experiment.metrics):
        # What one boot settles needs no blocks.
        return None
    if experiment.is_short:
        return SHORT_BLOCKS
    return SLIDING if mode == "sequential" and experiment.is_sliding else None


def _notes(experiment: Experiment, observations: Observations, mode: Mode) -> list[str]:
    if len(experiment.block_edges) < 2:
        return []  # the only thing to be said is that no block is over
    notes = list(observations.gaps)
    if no_gate := _no_gate(experiment, mode):
        notes.insert(0, no_gate)
    if experiment.routing == "unknown":
        notes.append("routing is not declared: with sticky sessions the intervals are too narrow")
    notes.append("performance and memory only: the quality of answers is not looked at")
    return notes


# --- one metric ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A metric's difference before any verdict. bounded: None where there is none, with the reason in notes.

    undecided: what forbids a word, by the word it forbids. unsaid: at least one arm does not have it at all,
    or none of which a ratio can be made; absent: neither does.
    """

    metric: Metric
    baseline: float | None = None
    candidate: float | None = None
    bounded: Bounded | None = None
    same_concurrency: float | None = None
    places: tuple[int, ...] = ()
    values: Floats = dataclasses.field(default_factory=lambda: np.empty(0))
    notes: tuple[str, ...] = ()
    undecided: Mapping[Verdict, str] = dataclasses.field(default_factory=dict)
    absent: bool = False
    unsaid: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    pair: Pair
    guards: tuple[Guard, ...]
    measured: tuple[Measured, ...]
    noise_floor: Mapping[str, float]


def _draft(two: Pair, noise_floor: Mapping[str, float]) -> _Draft:
    metrics = [metric for metric in two.experiment.metrics if metric.kind != "static"]
    if two.has(CONTROL.numerator):
        metrics.append(CONTROL)
    return _Draft(
        pair=two,
        guards=tuple(_with_servers_to_come(guard, two) for guard in guards(two)),
        measured=tuple(measured(metric, two) for metric in metrics),
        noise_floor=noise_floor,
    )


def _with_servers_to_come(guard: Guard, two: Pair) -> Guard:
    """The guard, without refusing for servers that may still come.

    A rollout begins before its first server answers: that is no reason to take it back. Looked at again and
    again, a candidate without servers is waited for as long as it takes, and a baseline until as many blocks
    are over as any word needs.
    """
    experiment = two.experiment
    over = _blocks_over(two)
    patience = 1
    if two.mode == "sequential":
        patience = two.least_blocks if not two.baseline.arm.replicas else over + 1
    if guard.name != "servers" or over >= patience:
        return guard
    if over == 0:
        guard = dataclasses.replace(guard, cure="")
        first = datetime.fromtimestamp(experiment.start + experiment.block_length, UTC)
        waiting = f"no block of the window is over; the first ends at {first:%Y-%m-%d %H:%M:%S} UTC"
    elif guard.passed is False:
        waiting = f"{guard.detail} yet"
    else:
        return guard
    return dataclasses.replace(guard, passed=None, pending=True, detail=waiting)


def _blocks_over(two: Pair) -> int:
    return len(two.baseline.edges) - 1


# Guards that look at blocks, and those that look at servers, which are known once a block is over.
_OF_BLOCKS = frozenset({"load", "prompts", "saturation", "prefix_cache", "neighbours"})
_OF_SERVERS = frozenset({"hardware", "model", "settings", "cold_boot"})


def _before_any_block(guard: Guard, two: Pair) -> Guard:
    """The guard, without advice where it knows nothing only because no block is over."""
    is_known = guard.passed is not None or guard.pending
    of_servers = guard.name in _OF_SERVERS and not all(arm.replicas for arm in two.arms)
    if is_known or not (guard.name in _OF_BLOCKS or of_servers):
        return guard
    return dataclasses.replace(guard, detail=NO_BLOCK, cure="")


def _boot_error(two: Pair) -> float:
    """What the few boots of this run may have moved; 0 where there are enough of them to see it."""
    counts = [len(arm.replicas) for arm in two.arms]
    if two.pairing.takes_turns:
        counts = list(two.pairing.turns)
    elif min(counts) >= LEAST_REPLICAS:
        return 0.0
    if min(counts) == 0:
        return 0.0
    return two.experiment.boot_deviation * math.sqrt(sum(1 / count for count in counts))


def _lasting(two: Pair) -> float:
    """By how much noise that lasts from block to block widens what the blocks' spread says."""
    return inference.lasting_factor(two.experiment.block_length, two.experiment.noise_time_constant)


def measured(metric: Metric, two: Pair) -> Measured:
    """One metric's difference; without bounds, and with the reason, where there is too little."""
    try:
        if metric.kind == "rare":
            return _rare(metric, two)
        return _continuous(metric, two)
    except NotEnough as reason:
        return Measured(metric=metric, notes=(str(reason),))


def _absent(metric: Metric, two: Pair) -> Measured | None:
    """The measurement of a metric that one or both arms do not say; None where both do."""
    if metric.query is not None:
        said = [metric.name in arm.own_metrics for arm in two.arms]
    elif metric.kind == "tail":
        said = [
            bool(arm.replicas) and all(metric.numerator in r.series.buckets for r in arm.replicas)
            for arm in two.arms
        ]
    else:
        said = [
            arm.has(metric.numerator) and arm.has(metric.denominator) for arm in (two.baseline, two.candidate)
        ]
    if all(said):
        return None
    lacking = [arm.variant for arm, is_said in zip(two.arms, said, strict=True) if not is_said]
    return Measured(
        metric=metric,
        notes=(f"not said by {' and '.join(lacking)}",),
        # Before there is a block of both, nothing is said of anything.
        absent=not any(said) and metric.query is None and two.pairing.count > 0,
        unsaid=two.pairing.count > 0,
    )


def _continuous(metric: Metric, two: Pair) -> Measured:
    absent = _absent(metric, two)
    if absent is not None:
        return absent
    notes: list[str] = []
    undecided: dict[Verdict, str] = {}
    values, whole = _values(metric, two, notes)
    count = two.pairing.count
    if metric.query is not None and (problem := _no_ratio(values)):
        return Measured(metric=metric, baseline=whole[0], candidate=whole[1], notes=(problem,), unsaid=True)
    if metric.query is not None:
        notes += _all_of_it(values)
    unknown = np.full(count, np.nan)
    boot_error = _boot_error(two) if metric.moved_by_boots else 0.0
    adjusted = metric.kind in ("affine", "tail")
    quantity = two.load_quantity() if adjusted else None
    same_concurrency = None
    if quantity is not None:
        loads = two.loads(quantity)
        compared = affine(
            Arm(values[0], loads[0]),
            Arm(values[1], loads[1]),
            more_is_better=metric.more_is_better,
            boot_error=boot_error,
        )
        same_concurrency = _at_equal_concurrency(metric, two, values)
        _mind_few_requests(two, quantity, undecided)
        _mind_idle_samples(metric, two, undecided)
    else:
        compared = intensity(
            Arm(values[0], unknown),
            Arm(values[1], unknown),
            more_is_better=metric.more_is_better,
            boot_error=boot_error,
        )
        if adjusted:
            notes.append("not adjusted for load, since the servers do not count requests alike")
            undecided = dict.fromkeys(("worse", "pass", "better"), "the load is not known")
    if boot_error:
        notes.append(
            f"with the deviation of one boot, {two.experiment.boot_deviation:.1%}, added: "
            "too few boots to see it"
        )
    if len(compared.places) < count:
        notes.append(f"{count - len(compared.places)} blocks had nothing to count")
    estimate = dataclasses.replace(compared.estimate, sequential=two.mode == "sequential")
    # In a fixed look, what a slope costs the interval covers it (docs/ab.md).
    if quantity is None or two.mode == "sequential":
        estimate = dataclasses.replace(estimate, standard_error=_lasting(two) * estimate.standard_error)
    estimate = _with_replicas(metric, two, compared, estimate, quantity, notes)
    if OTHER_BOUNDS in notes:
        undecided = dict.fromkeys(("worse", "pass", "better"), "the arms' buckets have other bounds")
    return Measured(
        metric=metric,
        baseline=whole[0],
        candidate=whole[1],
        bounded=estimate,
        same_concurrency=same_concurrency,
        places=compared.places,
        values=compared.estimate.blocks,
        notes=tuple(notes),
        undecided=undecided,
    )


def _values(
    metric: Metric, two: Pair, notes: list[str]
) -> tuple[tuple[Floats, Floats], tuple[float | None, float | None]]:
    """The metric of both arms in each cell, and over all cells."""
    if metric.query is not None:
        both = _own_values(metric, two)
        return both, (_mean(both[0]), _mean(both[1]))
    if metric.kind == "tail":
        return _tails(metric, two, notes)
    numerators, denominators = two.cells(metric.numerator), two.cells(metric.denominator)
    values, whole = [], []
    for top, bottom in zip(numerators, denominators, strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            values.append(np.where(bottom > 0, top / bottom, np.nan))
        known = np.isfinite(top) & np.isfinite(bottom)
        total = float(bottom[known].sum())
        whole.append(float(top[known].sum()) / total if total > 0 else None)
    return (values[0], values[1]), (whole[0], whole[1])


def _mean(values: Floats) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _own_values(metric: Metric, two: Pair) -> tuple[Floats, Floats]:
    """The user's values, averaged over the blocks of a cell."""
    both = []
    ends = two.baseline.edges[1:]
    for arm, cells in zip(two.arms, (two.pairing.baseline, two.pairing.candidate), strict=True):
        series = arm.own_metrics[metric.name]
        of_blocks = np.full(len(ends), np.nan)
        places = np.searchsorted(ends, series.times - 1e-3)
        inside = (places < len(ends)) & (np.abs(ends[np.minimum(places, len(ends) - 1)] - series.times) < 1)
        of_blocks[places[inside]] = series.values[inside]
        count = two.pairing.count
        with np.errstate(divide="ignore", invalid="ignore"):
            both.append(cell_sums(of_blocks, cells, count) / cell_sums(np.ones(len(ends)), cells, count))
    return both[0], both[1]


def _no_ratio(values: tuple[Floats, Floats]) -> str | None:
    """Why the user's values make no ratio; None where all of them are above zero."""
    either = np.minimum(*values)
    none = int((either <= 0).sum())
    if not none:
        return None
    return (
        f"0 or less in {none} of {len(either)} blocks, which makes no ratio, so that it is never decided: "
        "let the query give what stays above 0, such as the share of requests without errors"
    )


def _all_of_it(values: tuple[Floats, Floats]) -> list[str]:
    """A warning where a share is 1 in most blocks: its blocks do not show how it falls, if it ever does."""
    whole = int(((values[0] == 1) & (values[1] == 1)).sum())
    if 2 * whole <= len(values[0]):
        return []
    text = (
        f"exactly 1 in both variants in {whole} of {len(values[0])} blocks: what comes seldom and in bursts "
        "may not have come yet, and the interval does not know of it"
    )
    return [text]


def _tails(
    metric: Metric, two: Pair, notes: list[str]
) -> tuple[tuple[Floats, Floats], tuple[float | None, float | None]]:
    """Quantiles from the buckets of all servers of an arm, merged."""
    values, whole, bounds_of = [], [], []
    for arm, cells in (
        (two.baseline, two.pairing.baseline),
        (two.candidate, two.pairing.candidate),
    ):
        bounds, counts = arm.buckets(metric.numerator, cells, two.pairing.count)
        bounds_of.append(bounds)
        values.append(
            np.array(
                [quantile_of_buckets(bounds, row, metric.quantile)[0] for row in counts] or [], dtype=float
            )
        )
        value, width = quantile_of_buckets(bounds, counts.sum(axis=0), metric.quantile)
        whole.append(value if math.isfinite(value) else None)
        if math.isfinite(width):
            notes.append(f"{arm.arm.variant}: its bucket is {width:.0%} wide")
    if not np.array_equal(bounds_of[0], bounds_of[1]):
        notes.append(OTHER_BOUNDS)
    return (values[0], values[1]), (whole[0], whole[1])


def _at_equal_concurrency(metric: Metric, two: Pair, values: tuple[Floats, Floats]) -> float | None:
    """The difference at equal running requests: of the kernel, without what users feel of longer queues."""
    if not two.has("requests_running") or min(shares_above_zero(two, "requests_running")) < LEAST_BUSY:
        return None
    running = two.loads("requests_running")
    try:
        compared = affine(
            Arm(values[0], running[0]),
            Arm(values[1], running[1]),
            more_is_better=metric.more_is_better,
            boot_error=0.0,
        )
    except NotEnough:
        return None
    return _ratio(compared.estimate.harm, metric)


def _mind_few_requests(two: Pair, quantity: str, undecided: dict[Verdict, str]) -> None:
    if not quantity.endswith("_count") and quantity != "requests_finished_total":
        return
    requests = float(np.nanmedian(np.concatenate(two.cells(quantity))))
    ratio = load_ratio(two)
    if requests >= FEW_REQUESTS or LIKE_LOADS[0] <= ratio <= LIKE_LOADS[1]:
        return
    text = f"only {requests:.0f} requests in a block: too few to adjust for {ratio:.2f} times the load"
    undecided.update(dict.fromkeys(("worse", "pass", "better"), text))


def _mind_idle_samples(metric: Metric, two: Pair, undecided: dict[Verdict, str]) -> None:
    """Forbid all words where a gauge stands beside what is counted all the time, and was mostly zero."""
    names = {metric.numerator, metric.denominator} - {"", SECONDS}
    gauges = [name for name in names if not is_counter(name)]
    if metric.query is not None or metric.kind == "tail" or len(gauges) != 1:
        return
    least = min(shares_above_zero(two, gauges[0]))
    if least < LEAST_BUSY:
        text = f"a server was idle in {1 - least:.0%} of the samples: too few of them say anything"
        undecided.update(dict.fromkeys(("worse", "pass", "better"), text))


def _with_replicas(
    metric: Metric,
    two: Pair,
    compared: Compared,
    estimate: Estimate,
    quantity: str | None,
    notes: list[str],
) -> Estimate:
    """The wider of the interval over blocks and of that over servers, where both arms have enough of them."""
    if metric.query is not None or two.pairing.takes_turns:
        return estimate
    if min(len(arm.replicas) for arm in two.arms) < LEAST_REPLICAS:
        return estimate
    each = []
    for arm, used in zip((two.baseline, two.candidate), two.used(), strict=True):
        values = _of_replicas(metric, arm, used)
        if quantity is not None:
            loads = log_of(np.nansum(arm.amounts(quantity)[:, used], axis=1))
            values = values - compared.slope * (loads - loads.mean())
        each.append(values[np.isfinite(values)])
    if min(len(values) for values in each) < LEAST_REPLICAS:
        return estimate
    among = inference.of_replicas(*each)
    # Centred on the blocks' estimate, which is adjusted for the arms' loads.
    among = dataclasses.replace(among, harm=estimate.harm, blocks=estimate.blocks, of_servers=True)
    chosen = inference.wider(estimate, among)
    if chosen is among:
        notes.append(
            "interval from the differences between servers, which is wider than that between blocks: "
            "more servers narrow it, more hours hardly"
        )
    return chosen


def _of_replicas(metric: Metric, arm: ArmBlocks, used: NDArray[np.bool_]) -> Floats:
    """The log of the metric of each server over all blocks used."""
    if metric.kind == "tail":
        values = []
        for replica in arm.arm.replicas:
            alone = ArmBlocks(dataclasses.replace(arm.arm, replicas=(replica,)), arm.edges)
            bounds, counts = alone.buckets(metric.numerator, np.where(used, 0, -1), 1)
            values.append(quantile_of_buckets(bounds, counts[0], metric.quantile)[0])
        return log_of(np.array(values))
    top = np.nansum(arm.amounts(metric.numerator)[:, used], axis=1)
    bottom = np.nansum(arm.amounts(metric.denominator)[:, used], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return log_of(top / bottom)


def _rare(metric: Metric, two: Pair) -> Measured:
    absent = _absent(metric, two)
    if absent is not None:
        return absent
    events, exposures = two.cells(metric.numerator), two.cells(metric.denominator)
    known = np.isfinite(np.stack([*events, *exposures])).all(axis=0) & (np.stack(exposures) > 0).all(axis=0)
    kept_events, kept_exposures = [one[known] for one in events], [one[known] for one in exposures]
    if not known.any() or min(float(one.sum()) for one in kept_exposures) <= 0:
        raise NotEnough("nothing was generated in one of the arms")
    groups = []
    if min(len(arm.replicas) for arm in two.arms) >= LEAST_REPLICAS:
        for arm, used in zip((two.baseline, two.candidate), two.used(), strict=True):
            groups.append(
                (
                    np.nansum(arm.amounts(metric.numerator)[:, used], axis=1),
                    np.nansum(arm.amounts(metric.denominator)[:, used], axis=1),
                )
            )
    rates = inference.rate_ratio(
        kept_events[0],
        kept_exposures[0],
        kept_events[1],
        kept_exposures[1],
        groups=groups,
        looks=int(known.sum()) if two.mode == "sequential" else 0,
    )
    rates = dataclasses.replace(rates, dispersion=_lasting(two) ** 2 * rates.dispersion)
    million = [
        1e6 * float(e.sum()) / float(x.sum()) for e, x in zip(kept_events, kept_exposures, strict=True)
    ]
    notes = [f"{rates.baseline:.0f} and {rates.candidate:.0f} events"]
    undecided: dict[Verdict, str] = {}
    if rates.baseline + rates.candidate == 0:
        # Of none in n, at most 3/n with 95 % confidence (Hanley and Lippman-Hand, JAMA 1983).
        tokens = min(float(one.sum()) for one in kept_exposures)
        most = 3e6 / tokens
        notes = [f"no events in either arm: fewer than {most:.3g} for each million tokens (rule of three)"]
        requests = _fewest_requests(two)
        if requests is None or min(requests, tokens) < LEAST_REQUESTS:
            counted = "requests are not counted" if requests is None else f"only {requests:.0f} requests"
            if tokens < LEAST_REQUESTS:
                counted = f"only {tokens:.0f} tokens"
            undecided["pass"] = f"{counted}: none in {LEAST_REQUESTS} is fewer than one in a hundred"
    if rates.dispersion > 2:
        notes.append(f"in bursts: {rates.dispersion:.1f} times the variance of chance alone")
    ratio = load_ratio(two)
    # Preemptions rise steeply with load, by how much is not known.
    if ratio > LIKE_LOADS[1]:
        undecided["worse"] = f"its servers had {ratio:.2f} times the load, which explains more events"
    elif ratio < LIKE_LOADS[0]:
        text = f"its servers had {ratio:.2f} times the load, which explains fewer events"
        undecided = {"pass": text, "better": text, **undecided}
    return Measured(
        metric=metric,
        baseline=million[0],
        candidate=million[1],
        bounded=rates,
        places=tuple(int(place) for place in np.flatnonzero(known)),
        notes=tuple(notes),
        undecided=undecided,
    )


def _fewest_requests(two: Pair) -> float | None:
    """Of the arm with fewer of them; None where requests are not counted."""
    quantity = next((name for name in OFFERED_LOAD["requests"] if two.has(name)), None)
    return None if quantity is None else min(float(np.nansum(one)) for one in two.cells(quantity))


# --- verdicts ---


def _ratio(harm: float, metric: Metric) -> float:
    """Candidate over baseline less 1, from harm."""
    return math.expm1(-harm if metric.more_is_better else harm)


def _with_verdicts(drafts: Sequence[_Draft], experiment: Experiment) -> list[Comparison]:
    """All comparisons: gates of all candidates corrected by Holm, the rest by Benjamini and Hochberg."""
    gates: dict[str, float] = {}
    others: dict[str, float] = {}
    for place, draft in enumerate(drafts):
        for one in draft.measured:
            if one.bounded is not None:
                kind = gates if one.metric.gate else others
                kind[_key(place, one.metric)] = one.bounded.p_worse
    level = 1 - inference.WORSE_CONFIDENCE
    thresholds = inference.holm(gates, level)
    adjusted = inference.benjamini_hochberg(others)
    thresholds |= {key: 1.0 if p <= level else -1.0 for key, p in adjusted.items()}
    comparisons = []
    for place, draft in enumerate(drafts):
        of_metrics = {
            one.metric.name: thresholds.get(_key(place, one.metric), level) for one in draft.measured
        }
        comparisons.append(_comparison(draft, experiment, of_metrics))
    return comparisons


def _key(place: int, metric: Metric) -> str:
    return f"{place}/{metric.name}"


def _not_yet(guard: Guard) -> str:
    return guard.detail if guard.name == "servers" else f"not comparable yet: {guard.name}: {guard.detail}"


def _comparison(draft: _Draft, experiment: Experiment, thresholds: Mapping[str, float]) -> Comparison:
    two = draft.pair
    failed = [guard for guard in draft.guards if guard.passed is False]
    count = two.pairing.count
    least = two.least_blocks
    missing = max(least - count, 0)
    waiting = [_not_yet(guard) for guard in draft.guards if guard.pending]
    stops: dict[Verdict, str] = {}
    if not two.pairing.concurrent:
        stops = dict.fromkeys(("worse", "pass", "better"), "not_concurrent")
    elif waiting:
        stops = dict.fromkeys(("worse", "pass", "better"), waiting[0])
    elif missing:
        stops = dict.fromkeys(("worse", "pass", "better"), f"{count} blocks; at least {least} are needed")
    metrics = [
        _metric_result(one, draft, thresholds[one.metric.name], stops, bool(failed)) for one in draft.measured
    ]
    wanted = {metric.name: metric for metric in experiment.metrics if metric.kind == "static"}
    static = static_results(*two.arms, wanted)
    unlike = {guard.name for guard in failed} & {"hardware", "model", "servers", "settings", "shared_servers"}
    if unlike:
        static = tuple(dataclasses.replace(row, verdict="not_comparable") for row in static)
    elif any(guard.pending and guard.name == "cold_boot" for guard in draft.guards):
        static = tuple(_without_cold_boot(row) for row in static)
    verdicts: list[Verdict] = [row.verdict for row in metrics if row.gate]
    verdicts += [row.verdict for row in static if row.gate]
    verdict = "not_comparable" if failed else inference.overall(verdicts)
    is_early = bool(waiting) or (
        missing and any(one.gate for one in experiment.metrics if one.kind != "static")
    )
    if is_early and verdict in ("better", "pass"):
        # Gates of which nothing was sampled yet are left out: what a boot settled would decide alone.
        verdict = "inconclusive"
    reasons = [f"{guard.name}: {guard.detail}" for guard in failed]
    if not failed:
        if not two.pairing.concurrent:
            reasons.append(
                f"not_concurrent: the variants did not run at the same time. {swap_plan(experiment)}"
            )
        reasons += waiting
        if missing and not reasons:
            reasons.append(stops["pass"])
        reasons += [f"{row.title}: {row.verdict}" for row in metrics if row.gate and row.verdict == verdict]
        reasons += [f"{row.title}: {row.verdict}" for row in static if row.gate and row.verdict == verdict]
        if not verdicts:
            reasons.append("no gate has anything to compare")
    hours = [row.hours_needed for row in metrics if row.gate and row.hours_needed is not None]
    of_guards = draft.guards
    if not failed and not _blocks_over(two):
        # What is said of no data would send somebody after histograms, models and GPUs that are all right.
        settled = [f"{row.title}: {row.verdict}" for row in static if row.gate and row.verdict == verdict]
        reasons = [*waiting, *(settled if verdict != "inconclusive" else ())]
        metrics = [dataclasses.replace(row, notes=()) for row in metrics]
        of_guards = tuple(_before_any_block(guard, two) for guard in draft.guards)
    return Comparison(
        candidate=two.candidate.arm.variant,
        verdict=verdict,
        reasons=tuple(reasons),
        guards=of_guards,
        metrics=tuple(metrics),
        static=static,
        blocks_used=count,
        differing_settings=tuple(differing_settings(*two.arms)),
        hours_needed=max(hours) if hours and verdict == "inconclusive" else None,
    )


def _without_cold_boot(row: StaticResult) -> StaticResult:
    """The row without harm that a cold boot would explain, as long as it may be mended by a restart."""
    if row.verdict != "worse":
        return row
    note = "would be worse, but a boot was cold"
    return dataclasses.replace(row, verdict="inconclusive", notes=(*row.notes, note))


def swap_plan(experiment: Experiment) -> str:
    """What to do with one GPU, where both variants cannot run side by side."""
    turn = (experiment.warmup + 2 * experiment.block_length) / 60
    turns = experiment.min_blocks + 1
    return (
        f"On one GPU let them take turns, {experiment.baseline.name} first: {turns} turns of {turn:.0f} min "
        f"({turns * turn / 60:.1f} h), each of warm-up and two blocks. With two GPUs run both at once, and "
        "change places half-way. Then judge the whole window."
    )


def _metric_result(
    one: Measured,
    draft: _Draft,
    threshold: float,
    stops: Mapping[Verdict, str],
    refused: bool,
) -> MetricResult:
    metric = one.metric
    notes = list(one.notes)
    # Blocks in which there was anything to count: a cache that was mostly empty says little.
    blocks, least = len(one.places), draft.pair.least_blocks
    missing = max(least - blocks, 0)
    if missing and not stops:
        text = f"{blocks} blocks with anything to count; at least {least} are needed"
        stops = dict.fromkeys(("worse", "pass", "better"), text)
    verdict: Verdict = "inconclusive"
    delta = lower = upper = p_worse = hours = None
    if one.bounded is not None:
        said = inference.verdict_of(one.bounded, metric.harm_margin, p_threshold=threshold)
        no_events = isinstance(one.bounded, RateRatio) and math.isnan(one.bounded.ratio)
        if no_events:
            said = "pass"
        else:
            delta = _finite(_ratio(one.bounded.harm, metric))
            bounds = sorted(_ratio(one.bounded.bound(0.975, upper=side), metric) for side in (False, True))
            lower, upper = _finite(bounds[0]), _finite(bounds[1])
            p_worse = one.bounded.p_worse
        forbidden: dict[Verdict, str] = {}
        if draft.pair.experiment.routing == "sticky":
            forbidden |= {"pass": "sticky routing", "better": "sticky routing"}
        forbidden |= {**one.undecided, **stops}
        if said in forbidden:
            notes.append(f"would be {said}, but: {forbidden[said]}")
        else:
            verdict = said
        if verdict == "inconclusive":
            hours = _hours(one, draft.pair, missing)
    elif missing and not one.unsaid and draft.pair.pairing.concurrent:
        hours = missing * draft.pair.experiment.block_length / 3600
    if not missing and any(guard.pending for guard in draft.guards):
        hours = None  # when a guard will hold is not known
    if refused:
        verdict, hours = "not_comparable", None
    starts = draft.pair.baseline.edges
    rates = one.bounded if isinstance(one.bounded, RateRatio) else None
    turned = -1.0 if metric.more_is_better else 1.0
    return MetricResult(
        name=metric.name,
        title=metric.title,
        kind=metric.kind,
        unit=metric.unit,
        gate=metric.gate and (metric.demanded or not one.absent),
        margin_ratio=metric.margin,
        more_is_better=metric.more_is_better,
        verdict=verdict,
        baseline=one.baseline,
        candidate=one.candidate,
        delta_ratio=delta,
        lower_ratio=lower,
        upper_ratio=upper,
        same_concurrency_delta_ratio=one.same_concurrency,
        p_worse=p_worse,
        blocks=tuple(
            (float(starts[draft.pair.pairing.places[place]]), turned * float(value))
            for place, value in zip(one.places, one.values, strict=False)
        ),
        hours_needed=hours,
        noise_floor_ratio=draft.noise_floor.get(metric.name),
        events_per_block=None if rates is None else (rates.baseline + rates.candidate) / len(one.places),
        dispersion=None if rates is None else rates.dispersion,
        notes=tuple(notes),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _hours(one: Measured, two: Pair, missing: int) -> float | None:
    """Of further running until the margin can be decided, as things stand; None where that cannot be told."""
    length = two.experiment.block_length / 3600
    estimate = one.bounded
    if not two.pairing.concurrent or one.undecided or two.experiment.routing == "sticky":
        return None
    margin = one.metric.harm_margin
    if isinstance(estimate, RateRatio):
        blocks = len(one.places)
        needed = _blocks_of_events(estimate, blocks, margin)
    elif isinstance(estimate, Estimate) and not estimate.of_servers:
        blocks = len(estimate.blocks)
        spread = estimate.standard_error * math.sqrt(blocks)
        boots, looked_at = estimate.boot_error, estimate.sequential
        needed = inference.blocks_needed(spread, margin, boot_error=boots, sequential=looked_at)
        if needed <= blocks:
            # It ought to be decided by now, but the estimate is none of zero.
            distance = margin - estimate.harm if estimate.harm < margin else estimate.harm
            needed = inference.blocks_needed(
                spread, distance, boot_error=boots, power=0.5, sequential=looked_at
            )
    else:
        return None
    more = max(needed - blocks, float(missing))
    if not math.isfinite(more):
        return None
    return max(more, 1.0) * length


def _blocks_of_events(rates: RateRatio, blocks: int, margin: float) -> float:
    events = rates.baseline + rates.candidate
    if events == 0:
        return 0.0  # none in either arm is no difference
    needed = inference.rare_blocks_needed(
        events / blocks,
        margin,
        exposure=rates.exposure,
        dispersion=rates.dispersion,
        sequential=rates.looks > 0,
    )
    return inference.rare_blocks_to_decide(rates, blocks, margin) if needed <= blocks else needed


def _of_all(verdicts: Sequence[Verdict]) -> Verdict:
    """Of several candidates, the word for the run: that of the one candidate, or the most alarming."""
    order: tuple[Verdict, ...] = ("worse", "not_comparable", "inconclusive", "pass", "better")
    return next((verdict for verdict in order if verdict in verdicts), "inconclusive")
