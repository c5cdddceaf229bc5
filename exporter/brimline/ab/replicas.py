"""What the rows say of one server: from tables of samples to what is judged."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from brimline.ab.boots import boots_of
from brimline.ab.members import ALWAYS, COUNTERS_OF_LIVES, Span
from brimline.ab.observations import Gpu, ReplicaObservations, Wanted
from brimline.ab.rows import Key, Part, Parts, Table, label, newest, states
from brimline.ab.series import EMPTY, Floats, Replica, Series, largest, resets, summed, total_growth
from brimline.engines import ENGINES

# Of the readings of two exporters that watch one server: how many may seem to go backwards, because an
# exporter with min_interval serves a reading again.
_BACKWARDS_RATIO = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Everything that was fetched of the servers.

    info: brimline_target_info. raw: samples as scraped. slow: of boots.FAMILIES, looks now and then, also
    before the window. last: by arm and server, what stood there when it was last seen. buckets: by histogram,
    what stood shortly before each edge of a block. reach: seconds that "shortly" is.
    """

    info: Table
    raw: Table
    slow: Table
    last: Mapping[tuple[str, Key], Table]
    buckets: Mapping[str, Sequence[tuple[float, Table]]]
    reach: float

    def during(self, key: Key, spans: Sequence[Span]) -> Tables:
        """What there is of one server in those spans of time."""
        return replace(
            self,
            info=self.info.during(key, spans),
            raw=self.raw.during(key, spans),
            slow=self.slow.during(key, spans),
            buckets={
                name: [(edge, table.during(key, spans)) for edge, table in tables]
                for name, tables in self.buckets.items()
            },
        )


def replica_of(
    arm: str,
    key: Key,
    tables: Tables,
    wanted: Wanted,
    *,
    start: float,
    end: float,
    spans: Sequence[Span] = ALWAYS,
) -> tuple[ReplicaObservations, list[str]]:
    """The server while it was of that arm, and what could not be had of it."""
    if spans != ALWAYS:
        tables = tables.during(key, spans)
    raw, last = tables.raw, tables.last.get((arm, key), Table())
    gaps = []
    counters: dict[str, Series] = {}
    fallen = [np.empty(0)]
    for quantity in sorted(wanted.counters):
        if parts := raw.parts(quantity, key):
            counters[quantity] = total_growth(parts.values())
            fallen += [resets(series) for series in parts.values()]
    if not raw.parts("target_start_time_seconds", key):
        # What fell when its turn began was read before it.
        fallen.append(np.array([first for first, _ in spans if np.isfinite(first)]))
    reset_times = np.unique(np.concatenate(fallen))
    gauges = {
        quantity: (largest if quantity.endswith("_ratio") else summed)(list(parts.values()))
        for quantity in sorted(wanted.gauges)
        if (parts := raw.parts(quantity, key))
    }
    buckets = {
        name: growth
        for name in sorted(wanted.histograms)
        if (growth := bucket_growth(tables.buckets.get(name, ()), name, key, tables.reach, reset_times))
    }

    said, times = states(raw.parts("target_config_fingerprint_info", key), "fingerprint")
    changes = [
        time for before, now, time in zip(said, said[1:], times[1:].tolist(), strict=False) if before != now
    ]
    engine, version = (
        _last_said(tables.info.parts("target_info", key), name) for name in ("engine", "engine_version")
    )
    settings = dict(
        sorted(
            (label(part, "setting"), label(part, "value"))
            for part in newest(last.parts("target_setting_info", key))
        )
    )

    absent, complete = _absent(engine, settings, last, key)
    own = sorted({label(part, "gpu") for part in newest(last.parts("target_gpu_info", key))})
    shared = {
        label(part, "gpu"): other.target
        for other in last.keys("target_gpu_info")
        if other[:2] == key[:2] and other != key
        for part in newest(last.parts("target_gpu_info", other))
    }
    for gpu in own:
        if gpu in shared:
            gaps.append(f"{key.target} shares GPU {gpu} with {shared[gpu]}: its peak memory is not compared")
    of_gpus = key._replace(target="")
    peaks = [
        peak
        for gpu in own
        if gpu not in shared
        for peak in raw.parts("gpu_memory_used_peak_bytes", of_gpus, gpu=gpu).values()
    ]
    observations = ReplicaObservations(
        series=Replica(
            name=key.target, counters=counters, gauges=gauges, buckets=buckets, resets=reset_times
        ),
        up=largest(list(raw.parts("target_up", key).values())),
        starts=np.unique(
            np.concatenate(
                [np.empty(0), *(part.values for part in raw.parts("target_start_time_seconds", key).values())]
            )
        ),
        changes=np.array(changes),
        fingerprint=said[-1] if said else None,
        settings=settings,
        unpublished_settings=() if complete else absent,
        default_settings=absent if complete else (),
        engine=engine,
        engine_version=version,
        models=sorted({label(part, "model") for part in newest(last.parts("model_info", key))}),
        gpus=[_gpu(last, of_gpus, gpu) for gpu in own],
        boots=boots_of(
            tables.slow,
            key,
            start=start,
            end=end,
            fingerprint=said[-1] if said else None,
            resets=reset_times,
            peaks=peaks,
        ),
        other_processes_bytes=_of_others(raw, of_gpus, own),
    )
    return observations, gaps


def bucket_growth(
    edges: Sequence[tuple[float, Table]], name: str, key: Key, reach: float, fallen: Floats
) -> dict[float, Series]:
    """What each bucket grew by from edge to edge, by its upper bound; a step stands at its later edge.

    A step is missing where one of its edges was not read. fallen: when the server's counters began anew.
    """
    if len(edges) < 2:
        return {}
    times = np.array([edge for edge, _ in edges])
    found: dict[Part, dict[float, Floats]] = {}
    for place, (edge, table) in enumerate(edges):
        for part, series in table.parts(f"{name}_bucket", key).items():
            at = int(np.searchsorted(series.times, edge, side="right")) - 1
            if at < 0 or series.times[at] <= edge - reach:
                continue
            try:
                bound = float(label(part, "le"))
            except ValueError:
                continue
            rest = frozenset(pair for pair in part if pair[0] != "le")
            rows = found.setdefault(rest, {})
            if bound not in rows:
                rows[bound] = np.full(len(edges), np.nan)
            rows[bound][place] = series.values[at]
    began_anew = np.diff(np.searchsorted(fallen, times, side="right")) > 0
    totals: dict[float, Floats] = {}
    for rows in found.values():
        top = rows[max(rows)]
        anew = began_anew | (top[1:] < top[:-1])
        for bound, row in rows.items():
            steps = np.where(anew, row[1:], row[1:] - row[:-1])
            # A rank or model that was not there at either edge added nothing.
            steps[np.isnan(top[1:]) & np.isnan(top[:-1])] = 0.0
            totals[bound] = totals[bound] + steps if bound in totals else steps
    nowhere = np.ones(len(times) - 1, dtype=bool)
    for rows in found.values():
        top = rows[max(rows)]
        nowhere &= np.isnan(top[1:]) & np.isnan(top[:-1])
    return {
        bound: Series(times[1:][kept], steps[kept])
        for bound, steps in sorted(totals.items())
        if (kept := ~(np.isnan(steps) | nowhere)).any()
    }


def _last_said(parts: Parts, name: str) -> str | None:
    """The label's last value that is none of the empty ones of a server that cannot be read."""
    said, _ = states(parts, name)
    return next((value for value in reversed(said) if value), None)


def _absent(engine: str | None, settings: Mapping[str, str], last: Table, key: Key) -> tuple[list[str], bool]:
    """The engine's flags that no setting is of, and whether they are known to be at its defaults."""
    adapter = ENGINES.get(engine or "")
    if adapter is None:
        return [], False
    stated = largest(list(last.parts("target_settings_complete", key).values()))
    complete = bool(len(stated.values)) and bool(stated.values[-1] == 1)
    return sorted(adapter.flags - set(settings)), complete or adapter.states_launch(settings)


def _gpu(last: Table, of_gpus: Key, uuid: str) -> Gpu:
    info = next(iter(newest(last.parts("gpu_info", of_gpus, gpu=uuid))), frozenset())
    total, power_limit = (
        summed(list(last.parts(quantity, of_gpus, gpu=uuid).values()))
        for quantity in ("gpu_memory_total_bytes", "gpu_power_limit_watts")
    )
    name = label(info, "name") or None
    profile = re.search(r"\bMIG (\S+)", name or "")
    return Gpu(
        name=name,
        memory_total_bytes=float(total.values[-1]) if len(total.values) else None,
        driver=label(info, "driver") or None,
        power_limit_watts=float(power_limit.values[-1]) if len(power_limit.values) else None,
        mig_profile=profile[1] if profile else None,
    )


def _of_others(raw: Table, of_gpus: Key, own: Sequence[str]) -> Series:
    """Memory on the server's GPUs that is no target's, also by NVML's list of processes alone."""
    for quantity, labels in (
        ("memory_bytes", {"component": "other_processes"}),
        ("gpu_process_memory_bytes", {"owner": "other"}),
    ):
        parts = [part for gpu in own for part in raw.parts(quantity, of_gpus, gpu=gpu, **labels).values()]
        if parts:
            return summed(parts)
    return EMPTY


# --- several exporters before one server ---


def read_the_same(one: Key, other: Key, tables: Tables) -> bool:
    """True where two exporters under one target name read one server.

    Its start is the same to the fraction of a second, and the readings of both, put in order, go up as those
    of one counter do. Where the server does not state its start, the counters must have moved, too.
    """
    if one.target != other.target or one == other:
        return False
    starts = [
        set(
            np.unique(
                largest(list(tables.raw.parts("target_start_time_seconds", key).values())).values
            ).tolist()
        )
        for key in (one, other)
    ]
    if bool(starts[0]) != bool(starts[1]) or (starts[0] and not starts[0] & starts[1]):
        return False
    moved = False
    for quantity in COUNTERS_OF_LIVES:
        first, second = (tables.raw.parts(quantity, key) for key in (one, other))
        if set(first) != set(second):
            return False
        for part, series in first.items():
            beside = second[part]
            if not _goes_up_as_one(series, beside):
                return False
            moved = moved or len(np.unique(series.values)) > 10
    return bool(starts[0]) or moved


def _goes_up_as_one(one: Series, other: Series) -> bool:
    """True where the readings of both together fall hardly more often than those of each alone."""
    times = np.concatenate([one.times, other.times])
    values = np.concatenate([one.values, other.values])[np.argsort(times, kind="stable")]
    falls = int((np.diff(values) < 0).sum())
    alone = max(len(resets(one)), len(resets(other)))
    return falls - alone <= _BACKWARDS_RATIO * min(len(one.times), len(other.times))


def without_second_exporters(
    replicas: Mapping[Key, ReplicaObservations], tables: Tables
) -> tuple[dict[Key, ReplicaObservations], list[str]]:
    """Each server of an arm once, and what was left out: of two exporters the one that sees GPUs stays."""
    kept: dict[Key, ReplicaObservations] = {}
    notes = []
    best_first = sorted(replicas, key=lambda key: (not replicas[key].gpus, -len(replicas[key].up.times), key))
    for key in best_first:
        same = next((other for other in kept if read_the_same(other, key, tables)), None)
        if same is None:
            kept[key] = replicas[key]
        else:
            notes.append(
                f"{key.target} is read by two exporters, {same.instance} and {key.instance}; "
                f"it is counted once, as {same.instance} saw it"
            )
    return {key: kept[key] for key in sorted(kept)}, notes


def named(replicas: Mapping[Key, ReplicaObservations]) -> list[ReplicaObservations]:
    """The servers, with the exporter's address in their names where two would have the same."""
    counts = Counter(key.target for key in replicas)
    instances = Counter((key.target, key.instance) for key in replicas)
    result = []
    for key, observed in replicas.items():
        name = key.target
        if counts[key.target] > 1:
            name = f"{key.target} ({key.instance})"
        if instances[key.target, key.instance] > 1:
            name = f"{key.target} ({key.job}, {key.instance})"
        result.append(replace(observed, series=replace(observed.series, name=name)))
    return result
