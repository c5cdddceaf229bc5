"""How long two variants must run until each margin can be told from noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from brimline.ab.experiment import Experiment, Metric
from brimline.ab.guards import least_blocks
from brimline.ab.inference import blocks_needed, rare_blocks_needed
from brimline.ab.procedure import LEAST_REPLICAS
from brimline.ab.result import Report

# Of fewer, the spread is a guess.
LEAST_BLOCKS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """For one metric: blocks and hours until a candidate without any difference passes in four runs of five.

    block_deviation: of the logarithm of a block's difference; None where the history does not show it.
    events_per_block: of rare events, in both variants together.
    blocks, hours: None where that is so; inf where boots differ by more than the margin, which no time mends.
    hours_watched: by bounds that may be looked at after each block, which takes longer.
    """

    metric: Metric
    block_deviation: float | None
    events_per_block: float | None = None
    blocks: float | None
    hours: float | None
    hours_watched: float | None = None


@dataclass(frozen=True, slots=True)
class Events:
    """Rare events. per_block: in both arms together. dispersion: how much more they vary than by chance."""

    per_block: float
    dispersion: float = 1.0


def events_of(report: Report) -> dict[str, Events]:
    """Rare events by metric; of several candidates, where there are the fewest."""
    found: dict[str, Events] = {}
    for comparison in report.comparisons:
        for metric in comparison.metrics:
            if metric.events_per_block is None:
                continue
            one = Events(metric.events_per_block, metric.dispersion or 1.0)
            known = found.get(metric.name)
            if known is None or one.per_block / one.dispersion < known.per_block / known.dispersion:
                found[metric.name] = one
    return found


def deviations(report: Report) -> dict[str, float]:
    """The standard deviation of a block's difference, by metric, where there are enough blocks."""
    found: dict[str, float] = {}
    for comparison in report.comparisons:
        for metric in comparison.metrics:
            values = np.array([value for _, value in metric.blocks if math.isfinite(value)])
            if len(values) >= LEAST_BLOCKS:
                found[metric.name] = max(found.get(metric.name, 0.0), float(np.std(values, ddof=1)))
    return found


def needed(
    experiment: Experiment,
    block_deviation: Mapping[str, float],
    events: Mapping[str, Events] | None = None,
    *,
    replicas: int = 1,
) -> tuple[Needed, ...]:
    """For each metric that blocks decide, the gates first. replicas: servers in each arm."""
    counted = events or {}
    boot_error = 0.0
    if replicas < LEAST_REPLICAS:
        boot_error = experiment.boot_deviation * math.sqrt(2 / replicas)
    rows = [
        _needed(
            metric,
            block_deviation.get(metric.name),
            experiment,
            boot_error if metric.moved_by_boots else 0.0,
        )
        for metric in experiment.metrics
        if metric.kind not in ("static", "rare")
    ]
    rows += [
        _needed_for_events(metric, counted.get(metric.name), experiment)
        for metric in experiment.metrics
        if metric.kind == "rare"
    ]
    return tuple(sorted(rows, key=lambda row: not row.metric.gate))


def _needed(metric: Metric, deviation: float | None, experiment: Experiment, boot_error: float) -> Needed:
    if deviation is None:
        return Needed(metric=metric, block_deviation=None, blocks=None, hours=None)
    once, watched = (
        blocks_needed(deviation, metric.harm_margin, boot_error=boot_error, sequential=sequential)
        for sequential in (False, True)
    )
    return _row(
        Needed(metric=metric, block_deviation=deviation, blocks=once, hours=None), watched, experiment
    )


def _needed_for_events(metric: Metric, events: Events | None, experiment: Experiment) -> Needed:
    if events is None:
        return Needed(metric=metric, block_deviation=None, blocks=None, hours=None)
    once = watched = 0.0
    if events.per_block > 0:  # none in either arm passes
        once, watched = (
            rare_blocks_needed(
                events.per_block, metric.harm_margin, dispersion=events.dispersion, sequential=sequential
            )
            for sequential in (False, True)
        )
    row = Needed(
        metric=metric, block_deviation=None, events_per_block=events.per_block, blocks=once, hours=None
    )
    return _row(row, watched, experiment)


def _row(row: Needed, watched: float, experiment: Experiment) -> Needed:
    """The row with no fewer blocks than a word takes, and the hours of both."""
    blocks = max(row.blocks or 0.0, float(experiment.min_blocks))
    hours, hours_watched = (
        (experiment.warmup + count * experiment.block_length) / 3600
        for count in (blocks, max(watched, float(least_blocks(experiment, "sequential"))))
    )
    return replace(row, blocks=blocks, hours=hours, hours_watched=hours_watched)


def longest(rows: tuple[Needed, ...], *, watched: bool = False) -> float | None:
    """Hours until all gates can be decided; None where that of one is not known.

    Of rare events nothing may be known beforehand: they do not make the others unknown.
    """
    hours = [
        row.hours_watched if watched else row.hours
        for row in rows
        if row.metric.gate and (row.metric.kind != "rare" or row.hours is not None)
    ]
    if not hours or None in hours:
        return None
    return max(one for one in hours if one is not None)
