"""Two arms of made-up servers under load, as raw samples: for tests and simulations of `brimline ab`.

Demand wanders (an autoregressive logarithm, lag-1 correlation 0.97 at 15 s, deviation 0.25), each server has
load noise of its own (0.10), and each metric a noise that lasts (0.9 at 15 s, that is 142 s, deviation 8 %).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

from brimline.ab.experiment import Experiment
from brimline.ab.observations import ArmObservations, Boot, Gpu, Observations, ReplicaObservations
from brimline.ab.series import Growth, Replica, Series, growth

Floats = NDArray[np.float64]
START = 1_700_000_000.0
INTERVAL = 15.0
BYTES_PER_TOKEN = 131072.0
TIME_BETWEEN_TOKENS = 0.02
BOUNDS = np.array([*(0.01 * 1.25 ** np.arange(22)), np.inf])
# Of latencies within one scrape, as lognormal: 95 % are below exp(1.645 * 0.5) times the median.
WITHIN = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """One sort of run. effects: by metric, what the candidate's values are multiplied by (rates likewise).

    shared: one demand for both arms, through a balancer. lasting: correlation of the metrics' noise from one
    scrape to the next (0: none). share: of latencies that grows with load; tail_power: by which power of it
    the 95th percentile grows, whose noise has heavy tails (Student's t with 3 degrees). bursts_per_hour: of
    preemptions in each server, with burst_size of them on average; where None, they come one by one at a rate
    that wanders. outage_seconds: for which the candidate's exporters are not scraped, some time in each run.
    """

    hours: float = 4.0
    shared: bool = True
    more_traffic: float = 0.0
    lasting: float = 0.9
    demand_deviation: float = 0.25
    noise: float = 0.08
    requests_per_second: float = 2.0
    share: float = 0.5
    tail_power: float = 2.0
    tail_noise: float = 0.25
    preemptions_per_token: float = 20e-6
    bursts_per_hour: float | None = None
    burst_size: float = 10.0
    outage_seconds: float = 0.0
    boot_deviation: float = 0.0
    replicas: int = 1
    effects: Mapping[str, float] | None = None


def autoregressive(
    random: np.random.Generator,
    shape: tuple[int, ...],
    *,
    lasting: float,
    deviation: float,
    heavy: bool = False,
) -> Floats:
    """Noise whose neighbours are correlated; heavy: from Student's t with 3 degrees."""
    from scipy import signal  # a second of importing, which those that only collect tests do not need

    shocks = random.standard_t(3, shape) / np.sqrt(3) if heavy else random.standard_normal(shape)
    shocks[..., 1:] *= np.sqrt(1 - lasting**2)
    return np.asarray(deviation * signal.lfilter([1.0], [1.0, -lasting], shocks, axis=-1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The observations, and the metrics at each scrape, as other methods take them: rows of arms."""

    observations: Observations
    raw: Mapping[str, Floats]


def simulate(experiment: Experiment, traffic: Traffic, random: np.random.Generator) -> Run:
    """A run over the experiment's window with one or more servers in each arm."""
    names = [experiment.baseline.name, *(variant.name for variant in experiment.candidates)]
    count = round((experiment.end - experiment.start) / INTERVAL)
    times: Floats = experiment.start + INTERVAL * np.arange(1, count + 1, dtype=np.float64)
    shape = (len(names), traffic.replicas, count)
    demand = autoregressive(
        random,
        (1 if traffic.shared else len(names), 1, count),
        lasting=0.97,
        deviation=traffic.demand_deviation,
    )
    load: Floats = np.exp(demand + 0.10 * random.standard_normal(shape))
    load[1:] *= 1 + traffic.more_traffic
    effects = traffic.effects or {}

    def noisy(metric: str, deviation: float, *, heavy: bool = False, boots: bool = True) -> Floats:
        noise = autoregressive(random, shape, lasting=traffic.lasting, deviation=deviation, heavy=heavy)
        of_boot = traffic.boot_deviation * boots * random.standard_normal((*shape[:2], 1))
        values: Floats = np.exp(noise + of_boot)
        values[1:] *= effects.get(metric, 1.0)
        return values

    requests = random.poisson(traffic.requests_per_second * INTERVAL * load).astype(float)
    tokens: Floats = np.round(traffic.requests_per_second * 200 * INTERVAL * load)
    latency = (
        TIME_BETWEEN_TOKENS
        * (1 - traffic.share + traffic.share * load)
        * noisy("inter_token_latency", traffic.noise)
    )
    usage = np.minimum(0.3 * load * noisy("kv_cache_usage", traffic.noise), 1.0)
    used_tokens = 200_000.0 * load
    used_bytes = used_tokens * BYTES_PER_TOKEN * noisy("kv_bytes_per_token", traffic.noise, boots=False)
    bursts = np.exp(autoregressive(random, shape, lasting=traffic.lasting, deviation=1.0))
    rate = traffic.preemptions_per_token * bursts
    rate[1:] *= effects.get("preemptions", 1.0)
    preemptions = random.poisson(tokens * rate).astype(float)
    if traffic.bursts_per_hour is not None:
        many = np.full(shape, traffic.bursts_per_hour * INTERVAL / 3600)
        many[1:] *= effects.get("preemptions", 1.0)
        preemptions = random.poisson(traffic.burst_size * random.poisson(many)).astype(float)
    slow = TIME_BETWEEN_TOKENS * (1 - traffic.share + traffic.share * load**traffic.tail_power)
    tail = slow * noisy("inter_token_latency_p95", traffic.tail_noise, heavy=True)
    edges = np.array(experiment.block_edges)
    arms = {
        name: ArmObservations(
            variant=name,
            replicas=tuple(
                _replica(
                    f"{name}-{number}",
                    times,
                    edges,
                    counters={
                        "time_to_first_token_seconds_count": requests[arm, number],
                        "request_prompt_tokens_count": requests[arm, number],
                        "request_prompt_tokens_sum": 1000.0 * requests[arm, number],
                        "prompt_tokens_total": 1000.0 * requests[arm, number],
                        "generation_tokens_total": tokens[arm, number],
                        "inter_token_latency_seconds_count": tokens[arm, number],
                        "inter_token_latency_seconds_sum": tokens[arm, number] * latency[arm, number],
                        "preemptions_total": preemptions[arm, number],
                        "prefix_cache_queries_tokens_total": 1000.0 * requests[arm, number],
                        "prefix_cache_hits_tokens_total": 300.0 * requests[arm, number],
                    },
                    gauges={
                        "kv_cache_usage_ratio": usage[arm, number],
                        "kv_cache_used_tokens": used_tokens[arm, number],
                        "kv_cache_used_bytes": used_bytes[arm, number],
                        "requests_running": 20 * load[arm, number],
                        "requests_waiting": np.zeros(count),
                    },
                    medians=tail[arm, number],
                    tokens=tokens[arm, number],
                )
                for number in range(traffic.replicas)
            ),
        )
        for arm, name in enumerate(names)
    }
    first = (slice(None), 0)
    raw = {
        "inter_token_latency": latency[first],
        "kv_cache_usage": usage[first],
        "kv_bytes_per_token": (used_bytes / used_tokens)[first],
        "preemptions": (preemptions / tokens)[first],
        "inter_token_latency_p95": tail[first],
    }
    observations = Observations(arms=arms, scrape_interval=INTERVAL, simulated=True)
    if traffic.outage_seconds:
        latest = max(experiment.end - experiment.start - traffic.outage_seconds, 0.0)
        away = experiment.start + random.uniform(0.0, latest)
        for name in names[1:]:
            observations = unscraped(observations, name, away, away + traffic.outage_seconds)
    return Run(observations=observations, raw=raw)


def _replica(
    name: str,
    times: Floats,
    edges: Floats,
    *,
    counters: Mapping[str, Floats],
    gauges: Mapping[str, Floats],
    medians: Floats,
    tokens: Floats,
) -> ReplicaObservations:
    places = np.searchsorted(times, edges + 1e-6) - 1
    with np.errstate(divide="ignore"):
        below = special.ndtr(np.log(BOUNDS[:, None] / medians[None, :]) / WITHIN) * tokens
    grown = np.concatenate([np.zeros((len(BOUNDS), 1)), np.cumsum(below, axis=1)], axis=1)[:, places + 1]
    steps = np.diff(grown, axis=1)
    return ReplicaObservations(
        series=Replica(
            name=name,
            counters={quantity: Series(times, values) for quantity, values in counters.items()},
            gauges={quantity: Series(times, values) for quantity, values in gauges.items()},
            buckets={
                "inter_token_latency_seconds": {
                    float(bound): Series(edges[1:], steps[row]) for row, bound in enumerate(BOUNDS)
                }
            },
            resets=np.empty(0),
        ),
        up=Series(times, np.ones(len(times))),
        starts=np.array([times[0] - 86400.0]),
        fingerprint="f00d",
        settings={"max_model_len": "32768", "kv_cache_dtype": "auto"},
        engine="vllm",
        engine_version="0.33.0",
        models=("llama",),
        gpus=(Gpu(name="NVIDIA H100", memory_total_bytes=81559 * 2.0**20, driver="570.86.15"),),
        boots=(Boot(start=times[0] - 86400.0, observed={"kv_cache_capacity_bytes": 40e9}),),
        other_processes_bytes=Series(times, np.zeros(len(times))),
    )


def unscraped(observations: Observations, variant: str, start: float, end: float) -> Observations:
    """The observations as if none of the variant's exporters had been scraped from start to end.

    Servers went on: the first sample after it shows all that they did meanwhile.
    """

    def known(times: Floats) -> NDArray[np.bool_]:
        return np.asarray((times <= start) | (times > end))

    def gauge(series: Series) -> Series:
        there = known(series.times)
        return Series(series.times[there], series.values[there])

    def counter(series: Series) -> Growth:
        before = series.times[:1] - INTERVAL
        raw = Series(np.append(before, series.times), np.append(0.0, np.cumsum(series.values)))
        return growth(gauge(raw))

    def bucket(series: Series) -> Series:
        # Of each block one edge, from which the one before it is a block away.
        there = known(series.times) & np.append(True, known(series.times[:-1]))
        return Series(series.times[there], series.values[there])

    for place, replica in enumerate(observations.arms[variant].replicas):
        own = replica.series
        series = Replica(
            name=own.name,
            counters={name: counter(one) for name, one in own.counters.items()},
            gauges={name: gauge(one) for name, one in own.gauges.items()},
            buckets={
                name: {bound: bucket(one) for bound, one in of_bounds.items()}
                for name, of_bounds in own.buckets.items()
            },
            resets=own.resets,
        )
        others = gauge(replica.other_processes_bytes)
        observations = with_replica(
            observations, variant, place, series=series, up=gauge(replica.up), other_processes_bytes=others
        )
    return observations


def with_replica(observations: Observations, variant: str, place: int, **changes: object) -> Observations:
    """The observations with one replica changed."""
    arm = observations.arms[variant]
    replicas: Sequence[ReplicaObservations] = [
        replace(replica, **changes) if number == place else replica  # type: ignore[arg-type]
        for number, replica in enumerate(arm.replicas)
    ]
    return replace(observations, arms={**observations.arms, variant: replace(arm, replicas=tuple(replicas))})
