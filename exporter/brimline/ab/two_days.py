"""One variant at two times as two arms, for what equal arms differ by where there is one server only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from brimline.ab.experiment import Experiment, Variant
from brimline.ab.observations import ArmObservations, Boot, Observations, ReplicaObservations
from brimline.ab.series import Replica, Series, shifted

DAY_SECONDS = 86400.0


def earlier(experiment: Experiment, seconds: float = DAY_SECONDS) -> Experiment:
    """The same experiment over the same hours before; of the baseline alone."""
    return dataclasses.replace(
        experiment, candidates=(), start=experiment.start - seconds, end=experiment.end - seconds
    )


def side_by_side(
    experiment: Experiment, now: Observations, before: Observations, seconds: float = DAY_SECONDS
) -> tuple[Experiment, Observations]:
    """The baseline, and as its candidate the baseline of so many seconds before, as if it were now."""
    name = experiment.baseline.name
    names = (f"{name} (now)", f"{name} (before)")
    nothing = ArmObservations(variant=name, replicas=())
    first, second = (one.arms.get(name, nothing) for one in (now, before))
    arms = {
        names[0]: dataclasses.replace(first, variant=names[0]),
        names[1]: dataclasses.replace(
            second,
            variant=names[1],
            replicas=tuple(_later(replica, seconds) for replica in second.replicas),
            own_metrics={key: shifted(series, seconds) for key, series in second.own_metrics.items()},
        ),
    }
    twofold = dataclasses.replace(
        experiment,
        baseline=Variant(name=names[0], role="baseline"),
        candidates=(Variant(name=names[1], role="candidate"),),
        treatment=(),
        boot_deviation=0.0,
        metrics=tuple(metric for metric in experiment.metrics if metric.query is None),
    )
    return twofold, dataclasses.replace(
        now,
        arms=arms,
        queries=(*now.queries, *before.queries),
        gaps=(*now.gaps, *before.gaps),
        warnings=(*now.warnings, *before.warnings),
        simulated=now.simulated or before.simulated,
    )


def _all_shifted(series: Mapping[str, Series], seconds: float) -> dict[str, Series]:
    return {key: shifted(one, seconds) for key, one in series.items()}


def _later(replica: ReplicaObservations, seconds: float) -> ReplicaObservations:
    """The server as if all of it had been so many seconds later."""
    own = replica.series
    return dataclasses.replace(
        replica,
        series=Replica(
            name=own.name,
            counters=_all_shifted(own.counters, seconds),
            gauges=_all_shifted(own.gauges, seconds),
            buckets={
                quantity: {bound: shifted(one, seconds) for bound, one in of_bounds.items()}
                for quantity, of_bounds in own.buckets.items()
            },
            resets=own.resets + seconds,
        ),
        up=shifted(replica.up, seconds),
        starts=replica.starts + seconds,
        changes=replica.changes + seconds,
        boots=tuple(_boot_later(boot, seconds) for boot in replica.boots),
        other_processes_bytes=shifted(replica.other_processes_bytes, seconds),
    )


def _boot_later(boot: Boot, seconds: float) -> Boot:
    return boot if boot.start is None else dataclasses.replace(boot, start=boot.start + seconds)
