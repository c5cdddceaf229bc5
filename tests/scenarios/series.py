"""What Prometheus would have kept of a run: every series of every scrape, with an end where it vanished."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from brimline.catalog import METRICS, Family, Sums
from brimline.readings import Histogram, Snapshot
from scenarios.remote_write import Samples, SampleTime
from scenarios.world import SCRAPE_SECONDS, World

JOB = "brimline"

# A constant is kept of every fourth scrape and at every change. Whoever looks back, as every expression does
# for minutes, sees no difference.
_EVERY = 4
_CONSTANTS = {
    "kv_cache_blocks",
    "kv_cache_block_tokens",
    "kv_cache_capacity_tokens",
    "kv_cache_capacity_bytes",
    "kv_cache_max_concurrency_requests",
    "max_model_len_tokens",
    "measured_memory_bytes",
    "gpu_memory_total_bytes",
    "gpu_memory_reserved_bytes",
    "host_memory_total_bytes",
    "server_host_memory_limit_bytes",
    "target_errors_total",
    "target_config_changed_timestamp_seconds",
    "target_unparsed_lines_total",
    "target_dropped_series_total",
    "nvml_up",
    "gpu_up",
}
_MOVING_PREDICTIONS = {"predicted_decode_ceiling_tokens_per_second"}


def _is_constant(family: Family) -> bool:
    return family.name in _CONSTANTS or (
        family.group in ("identity", "exporter", "prediction") and family.name not in _MOVING_PREDICTIONS
    )


_STILL = tuple((family, family.full_name) for family in METRICS if _is_constant(family))
_MOVING = tuple((family, family.full_name) for family in METRICS if not _is_constant(family))

Key = tuple[str, tuple[str, ...]]  # a family's name with its suffix, values of its labels
LABELS = {
    full_name: family.labels
    for family in METRICS
    for full_name in (
        (f"{family.full_name}_sum", f"{family.full_name}_count")
        if family.kind == "histogram"
        else (family.full_name,)
    )
}


def _still(snapshot: Snapshot) -> tuple[object, ...]:
    """What decides the families that hardly ever change; while it is the same, so are they."""
    return tuple(
        (
            target.up,
            target.fingerprint,
            target.config_changed,
            sum(target.errors.values()),
            None if target.process is None else target.process.host_memory_limit_bytes,
            None if target.reading is None else (target.reading.start_time, target.reading.sleeping),
        )
        for target in snapshot.targets
    )


@dataclass(frozen=True, slots=True)
class Run:
    """One seed of a scenario as it went, in seconds since 1970. event, onset: None without an event."""

    scenario: str
    seed: int
    instance: str
    begin: float
    end: float
    onset: float | None
    event: float | None
    beyond_plan_seconds: float
    gpus: tuple[str, ...]


def run_series(scenario: str, seed: int, world: World, epoch: float) -> tuple[Run, dict[Key, Samples]]:
    """Play a run, and return its series with the exporter's instance and job not yet in their labels."""
    series: defaultdict[Key, Samples] = defaultdict(Samples)
    up: Key = ("up", ())
    live: dict[bool, set[Key]] = {True: set(), False: set()}  # by whether they are the still ones
    was: tuple[object, ...] | None = None
    kept_at = 0
    stamp = epoch
    for index, (stamp, snapshot) in enumerate(world.scrapes(epoch)):
        time = SampleTime(stamp)
        series[up].add(time, float(snapshot is not None))
        if snapshot is None:
            seen = {True: set[Key](), False: set[Key]()}
            was = None
        else:
            seen = {True: live[True], False: _keep(series, time, snapshot, _MOVING)}
            state = _still(snapshot)
            if state != was or index - kept_at >= _EVERY:
                seen[True] = _keep(series, time, snapshot, _STILL)
                was, kept_at = state, index
        for is_still in (True, False):
            for key in live[is_still] - seen[is_still]:
                series[key].end(time)
        live = seen
    last = SampleTime(stamp + SCRAPE_SECONDS)
    for key in (up, *live[True], *live[False]):
        series[key].end(last)
    event = world.named_event()
    beyond = 0.0
    if event is not None and world.beyond_plan_since is not None:
        beyond = event.at - world.beyond_plan_since
    run = Run(
        scenario=scenario,
        seed=seed,
        instance=f"{scenario}-{seed}:10778",
        begin=epoch,
        end=stamp,
        onset=None if event is None else epoch + world.onset,
        event=None if event is None else epoch + event.at,
        beyond_plan_seconds=beyond,
        gpus=tuple(uuid for uuid, _ in world.cards),
    )
    return run, dict(series)


def _keep(
    series: defaultdict[Key, Samples],
    time: SampleTime,
    snapshot: Snapshot,
    families: Sequence[tuple[Family, str]],
) -> set[Key]:
    """Append a scrape's samples of such families, and return which series they are of."""
    seen = set()
    for family, name in families:
        for labels, value in family.rows(snapshot):
            if isinstance(value, Histogram | Sums):
                for key, number in (
                    ((f"{name}_sum", labels), value.sum),
                    ((f"{name}_count", labels), value.count),
                ):
                    series[key].add(time, number)
                    seen.add(key)
            else:
                key = name, labels
                series[key].add(time, value)
                seen.add(key)
    return seen
