"""What was read of an experiment, between the one that fetches and the one that judges.

`judge(experiment, observations)` is pure: everything that it knows of the servers stands here. None means
that the series do not say; an empty mapping that none of its quantities was there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from brimline.ab.experiment import SECONDS, Experiment
from brimline.ab.series import EMPTY, Replica, Series

Floats = NDArray[np.float64]
NO_TIMES: Floats = np.empty(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU of a replica. memory_total_bytes: NVML's total. name and driver as NVML says them."""

    name: str | None = None
    memory_total_bytes: float | None = None
    driver: str | None = None
    power_limit_watts: float | None = None
    mig_profile: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What one start of a server settled: quantities of `experiment.STATIC` by name.

    start: seconds since the epoch, None where the server does not say. observed: the last value that this
    boot showed (of memory_used_peak_bytes the highest). predicted: what Brimline predicted for it, by the
    same names. in_window: False for an earlier boot of the same fingerprint, which only the guard on cold
    boots looks at.
    """

    start: float | None
    observed: Mapping[str, float]
    predicted: Mapping[str, float] = field(default_factory=dict)
    in_window: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaObservations:
    """One server of an arm.

    series: its counters, gauges and buckets. up: raw samples of brimline_target_up (1 or 0). starts: every
    value that its start time took, seconds since the epoch, also one before the window; empty where it does
    not say. changes: times at which its configuration fingerprint became another. settings: by name, only
    what the engine publishes or the sidecar was told. unpublished_settings: names that the engine has but
    does not say, and that nobody declared. default_settings: those that are at its default, because all that
    was set is known. other_processes_bytes: memory of processes that are no target's, on its GPUs together.
    """

    series: Replica
    up: Series = EMPTY
    starts: Floats = field(default_factory=lambda: NO_TIMES)
    changes: Floats = field(default_factory=lambda: NO_TIMES)
    fingerprint: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    unpublished_settings: Sequence[str] = ()
    default_settings: Sequence[str] = ()
    engine: str | None = None
    engine_version: str | None = None
    models: Sequence[str] = ()
    gpus: Sequence[Gpu] = ()
    boots: Sequence[Boot] = ()
    other_processes_bytes: Series = EMPTY

    @property
    def name(self) -> str:
        return self.series.name


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmObservations:
    """One variant. own_metrics: the user's own by name, a sample at the end of each block (nan: none)."""

    variant: str
    replicas: Sequence[ReplicaObservations]
    own_metrics: Mapping[str, Series] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """All arms by the variant's name.

    scrape_interval: seconds; None where it is to be taken from the samples. gaps: what could not be
    fetched, for the report. queries: what was asked of Prometheus. shared: for each server that two arms
    have, these and a sentence. warnings: of the data source, such as that a store did not answer.
    """

    arms: Mapping[str, ArmObservations]
    scrape_interval: float | None = None
    queries: Sequence[str] = ()
    gaps: Sequence[str] = ()
    simulated: bool = False
    warnings: Sequence[str] = ()
    shared: Sequence[tuple[frozenset[str], str]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Quantities to fetch, as the catalog names them without the prefix.

    counters and gauges: raw samples. histograms: their buckets, at the edges of blocks only.
    """

    counters: frozenset[str]
    gauges: frozenset[str]
    histograms: frozenset[str]


# What guards, loads and controls read, whatever the metrics.
_ALWAYS = frozenset(
    {
        "generation_tokens_total",
        "prefix_cache_hits_tokens_total",
        "prefix_cache_queries_tokens_total",
        "prompt_tokens_total",
        "request_prompt_tokens_count",
        "request_prompt_tokens_sum",
        "requests_finished_total",
        "requests_running",
        "requests_waiting",
        "time_to_first_token_seconds_count",
    }
)


def is_counter(quantity: str) -> bool:
    """True for what only grows; its growth is summed. Everything else is a gauge, integrated over time."""
    return quantity.endswith(("_total", "_sum", "_count"))


def wanted(experiment: Experiment) -> Wanted:
    """What is to be fetched to judge the experiment, apart from the user's own queries."""
    plain = set(_ALWAYS)
    histograms = set()
    for metric in experiment.metrics:
        if metric.query is not None or metric.kind == "static":
            continue
        if metric.kind == "tail":
            histograms.add(metric.numerator)
        else:
            plain |= {metric.numerator, metric.denominator}
    plain -= {"", SECONDS}
    return Wanted(
        counters=frozenset(filter(is_counter, plain)),
        gauges=frozenset(name for name in plain if not is_counter(name)),
        histograms=frozenset(histograms),
    )
