"""The window cut into blocks: which of them both arms may be compared in, and what each arm did in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from brimline.ab.experiment import SECONDS, Experiment
from brimline.ab.observations import ArmObservations, ReplicaObservations, is_counter
from brimline.ab.series import (
    coverage,
    finite,
    in_stretches,
    mean_in_stretches,
    samples_in_stretches,
    scrape_interval,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# A block lacking more of its scrapes than this is no block.
LARGEST_GAP = 0.2
NO_SAMPLES = "no samples"
# Less than that no process of others is worth speaking of.
OTHER_PROCESSES_BYTES = 512 << 20
# Gauges and counters of a block are looked at this finely where only loads are (a minute of a quarter of
# an hour).
MOMENTS_PER_BLOCK = 15


# --- what is left out, and why ---


def sampled_at(replica: ReplicaObservations) -> Floats:
    """The times at which anything was read of a replica."""
    if len(replica.up.times):
        return replica.up.times
    series = [*replica.series.counters.values(), *replica.series.gauges.values()]
    return np.unique(np.concatenate([one.times for one in series])) if series else np.empty(0)


def interval_of(arms: Sequence[ArmObservations]) -> float:
    """The usual time between two scrapes; nan where nothing was read."""
    return scrape_interval(sampled_at(replica) for arm in arms for replica in arm.replicas)


def _own_interval(replica: ReplicaObservations, usual: float) -> float:
    """The time between two scrapes of this replica: not every exporter is scraped as often as the others."""
    own = scrape_interval([sampled_at(replica)])
    return own if math.isfinite(own) else usual


def unfit(
    replica: ReplicaObservations, edges: Floats, *, warmup: float, interval: float
) -> list[tuple[int, str]]:
    """The blocks that a replica spoils, each with the reason. interval: where it does not show its own."""
    reasons: list[tuple[int, str]] = []

    def add(spoilt: NDArray[np.bool_], reason: str) -> None:
        reasons.extend((int(place), f"{replica.name}: {reason}") for place in np.flatnonzero(spoilt))

    starts, ends = edges[:-1], edges[1:]
    covered = coverage(sampled_at(replica), edges, _own_interval(replica, interval))
    add(covered == 0, NO_SAMPLES)
    add((covered > 0) & (covered < 1 - LARGEST_GAP), "more than a fifth of the samples is missing")
    down = finite(replica.up)
    add(samples_in_stretches(down.times[down.values == 0], edges) > 0, "down")
    restarted = np.zeros(len(starts), bool)
    warming = np.zeros(len(starts), bool)
    for start in {*replica.starts.tolist(), *replica.series.resets.tolist()}:
        restarted |= (starts < start) & (start <= ends)
        warming |= (starts < start + warmup) & (start <= starts)
    add(restarted, "restarted")
    add(warming & ~restarted, "warming up")
    add(samples_in_stretches(np.sort(replica.changes), edges) > 0, "its configuration changed")
    return reasons


def unfit_blocks(
    arm: ArmObservations, experiment: Experiment, edges: Floats, interval: float
) -> dict[int, tuple[str, ...]]:
    """The blocks that an arm cannot be compared in: one replica that is not fit spoils the arm's sums."""
    reasons: dict[int, list[str]] = {}
    for replica in arm.replicas:
        for place, reason in unfit(replica, edges, warmup=experiment.warmup, interval=interval):
            reasons.setdefault(place, []).append(f"{arm.variant}/{reason}")
    if not arm.replicas:
        reasons = {place: [f"{arm.variant}: no servers"] for place in range(len(edges) - 1)}
    return {place: tuple(texts) for place, texts in reasons.items()}


def is_present(arm: ArmObservations, edges: Floats, interval: float) -> NDArray[np.bool_]:
    """True for the blocks in which every replica of an arm was there for more than half of the time."""
    present = np.full(len(edges) - 1, bool(arm.replicas))
    for replica in arm.replicas:
        up = finite(replica.up)
        times = up.times[up.values > 0] if len(up.times) else sampled_at(replica)
        present &= coverage(times, edges, _own_interval(replica, interval)) > 0.5
    return present


# --- which blocks are held against which ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """Which of its cells each arm's blocks are in (-1: none).

    Side by side a cell is a block. Where the arms take turns on one GPU, a cell is a change from one to the
    other: half of the turn before it beside half of the turn after it, so that drift cancels (A B B A).
    places: a block of each cell, for its time. turns: of baseline and candidate; 0 side by side.
    concurrent: False where the arms never ran side by side nor took turns: before and after.
    """

    baseline: Ints
    candidate: Ints
    places: tuple[int, ...]
    turns: tuple[int, int] = (0, 0)
    concurrent: bool = True

    @property
    def takes_turns(self) -> bool:
        return self.turns != (0, 0)

    @property
    def count(self) -> int:
        return len(self.places)


def pair(
    baseline: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    candidate: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    *,
    least: int,
) -> Pairing:
    """How two arms are held against each other, from the blocks that each is present in and fit in.

    least: blocks that a comparison side by side takes. With fewer, and more blocks of each arm alone, both
    were there only while one handed over to the other.
    """
    (baseline_present, baseline_fit), (candidate_present, candidate_fit) = baseline, candidate
    both = int((baseline_present & candidate_present).sum())
    alone = min(
        int((baseline_present & ~candidate_present).sum()), int((candidate_present & ~baseline_present).sum())
    )
    if both >= min(least, max(alone, 1)) or not (baseline_present.any() and candidate_present.any()):
        joint = np.flatnonzero(baseline_fit & candidate_fit)
        cells = np.full(len(baseline_fit), -1)
        cells[joint] = np.arange(len(joint))
        return Pairing(baseline=cells, candidate=cells, places=tuple(int(place) for place in joint))
    turns = _turns(baseline_fit, candidate_fit)
    of_arm = (np.full(len(baseline_fit), -1), np.full(len(baseline_fit), -1))
    places: list[int] = []
    left = turns[0][1] if turns else []
    for number, (who, blocks) in enumerate(turns[1:], 1):
        if not left:
            left = blocks
            continue
        half = len(blocks) if number == len(turns) - 1 else (len(blocks) + 1) // 2
        of_arm[1 - who][left] = len(places)
        of_arm[who][blocks[:half]] = len(places)
        places.append(left[0])
        left = blocks[half:]
    return Pairing(
        baseline=of_arm[0],
        candidate=of_arm[1],
        places=tuple(places),
        turns=(sum(who == 0 for who, _ in turns), sum(who == 1 for who, _ in turns)),
        concurrent=len(places) > 1,
    )


def _turns(baseline: NDArray[np.bool_], candidate: NDArray[np.bool_]) -> list[tuple[int, list[int]]]:
    """The stretches of blocks in which one arm (0 or 1) ran after the other, with their blocks."""
    turns: list[tuple[int, list[int]]] = []
    for place in range(len(baseline)):
        if baseline[place] == candidate[place]:
            continue
        who = 0 if baseline[place] else 1
        if turns and turns[-1][0] == who:
            turns[-1][1].append(place)
        else:
            turns.append((who, [place]))
    return turns


# --- what an arm did ---


@dataclass(slots=True)
class ArmBlocks:
    """An arm's quantities in each block, replica by replica. Each is looked at once."""

    arm: ArmObservations
    edges: Floats
    _known: dict[tuple[str, bool], Floats] = field(default_factory=dict)

    def amounts(self, quantity: str, *, momentary: bool = False) -> Floats:
        """Rows of replicas, columns of blocks (or moments): growth of counters, gauges times their seconds.

        nan where the quantity was not said.
        """
        key = (quantity, momentary)
        if key not in self._known:
            edges = self.moments if momentary else self.edges
            rows = [self._amount(replica, quantity, edges) for replica in self.arm.replicas]
            self._known[key] = np.stack(rows) if rows else np.empty((0, len(edges) - 1))
        return self._known[key]

    @property
    def moments(self) -> Floats:
        """Edges of the moments, a fifteenth of a block each."""
        steps = np.arange(MOMENTS_PER_BLOCK) / MOMENTS_PER_BLOCK
        inner = (self.edges[:-1, None] + np.diff(self.edges)[:, None] * steps).ravel()
        return np.append(inner, self.edges[-1])

    def _amount(self, replica: ReplicaObservations, quantity: str, edges: Floats) -> Floats:
        lengths = np.diff(edges)
        if quantity == SECONDS:
            return lengths
        if is_counter(quantity):
            steps = replica.series.counters.get(quantity)
            if steps is None:
                return np.full(len(lengths), np.nan)
            said = samples_in_stretches(steps.times, edges) > 0
            return np.where(said, in_stretches(steps, edges), np.nan)
        gauge = replica.series.gauges.get(quantity)
        if gauge is None:
            return np.full(len(lengths), np.nan)
        return np.asarray(mean_in_stretches(gauge, edges) * lengths)

    def has(self, quantity: str) -> bool:
        """True where every replica says it at some time."""
        amounts = self.amounts(quantity)
        return len(amounts) > 0 and bool(np.isfinite(amounts).any(axis=1).all())

    def others_bytes(self) -> Floats:
        """Memory of no target's processes in each block, on the server with the most; nan where not known."""
        means = [
            mean_in_stretches(replica.other_processes_bytes, self.edges) for replica in self.arm.replicas
        ]
        return np.fmax.reduce(means) if means else np.full(len(self.edges) - 1, np.nan)

    def in_cells(self, quantity: str, cells: Ints, count: int) -> Floats:
        """The sums of all replicas in each cell; nan where one of them does not say."""
        return cell_sums(self.amounts(quantity).sum(axis=0), cells, count)

    def buckets(self, quantity: str, cells: Ints, count: int) -> tuple[Floats, Floats]:
        """Upper bounds, and the growth of all replicas' buckets: rows of cells, columns of bounds.

        Bounds that not every replica has are left out.
        """
        each = [replica.series.buckets.get(quantity, {}) for replica in self.arm.replicas]
        bounds = sorted(set.intersection(*(set(one) for one in each))) if each else []
        sums = np.zeros((count, len(bounds)))
        for one in each:
            for column, bound in enumerate(bounds):
                sums[:, column] += cell_sums(in_stretches(one[bound], self.edges), cells, count)
        return np.array(bounds), sums


def crowded_on_one_side(baseline: ArmBlocks, candidate: ArmBlocks) -> tuple[NDArray[np.bool_], bool]:
    """The blocks in which processes of others ran beside one arm alone, and whether they are most of all."""
    held = baseline.others_bytes(), candidate.others_bytes()
    known = np.isfinite(held[0]) & np.isfinite(held[1])
    crowded = known & ((held[0] > OTHER_PROCESSES_BYTES) != (held[1] > OTHER_PROCESSES_BYTES))
    return crowded, int(crowded.sum()) > int(known.sum()) / 2


def cell_sums(of_blocks: Floats, cells: Ints, count: int) -> Floats:
    """Sums of blocks over the cells that they are in."""
    inside = cells >= 0
    sums = np.zeros(count)
    np.add.at(sums, cells[inside], of_blocks[inside])
    return sums
