"""What each start of a server settled, observed and predicted: no statistics, one value each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from brimline.ab.observations import Boot
from brimline.ab.rows import Key, Parts, Table, label, states
from brimline.ab.series import Floats, Series, largest

# Families of which a look now and then suffices, because they change with the boot alone.
FAMILIES = (
    "kv_cache_capacity_bytes",
    "kv_cache_capacity_tokens",
    "kv_cache_max_concurrency_requests",
    "measured_memory_bytes",
    "predicted_kv_cache_bytes_per_token",
    "predicted_kv_cache_capacity_tokens",
    "predicted_kv_cache_max_concurrency_requests",
    "predicted_memory_bytes",
    "predicted_total_memory_bytes",
    "target_config_fingerprint_info",
    "target_start_time_seconds",
)


# What gpu_memory_used_peak_bytes looks back over, unless configured: so long it shows the boot before, too.
PEAK_WINDOW = 60.0


def boots_of(
    table: Table,
    key: Key,
    *,
    start: float,
    end: float,
    fingerprint: str | None,
    resets: Floats,
    peaks: Sequence[Series],
) -> list[Boot]:
    """The server's boots within the window, and earlier ones of the same configuration; oldest first.

    table: of FAMILIES, also before the start. resets: times at which counters fell, by which the boots of a
    server that does not state its start are told apart. peaks: of each GPU that is the server's alone.
    """
    boots = []
    for booted, first, last in _lives(table, key, start, end, resets):
        in_window = last > start
        said, times = states(table.parts("target_config_fingerprint_info", key), "fingerprint")
        during = [text for text, time in zip(said, times.tolist(), strict=True) if first <= time <= last]
        if not in_window and (fingerprint is None or during[-1:] != [fingerprint]):
            continue
        own_peaks = [
            _between(peak, first if booted is None else booted + PEAK_WINDOW, last) for peak in peaks
        ]
        observed, predicted = _settled(table, key, first, last, own_peaks)
        if observed or predicted or in_window:
            boots.append(Boot(start=booted, observed=observed, predicted=predicted, in_window=in_window))
    return boots


def _lives(
    table: Table, key: Key, start: float, end: float, resets: Floats
) -> Iterator[tuple[float | None, float, float]]:
    """The start that the server states, and from when to when samples are of that boot."""
    starts = largest(list(table.parts("target_start_time_seconds", key).values()))
    if len(starts.times):
        for booted in np.unique(starts.values).tolist():
            times = starts.times[starts.values == booted]
            yield booted, float(times[0]), float(times[-1])
        return
    edges = [start, *resets[(resets > start) & (resets < end)].tolist()]
    for first, last in zip(edges, [*edges[1:], end + 1e-3], strict=True):
        yield None, first, last - 1e-3


def _settled(
    table: Table, key: Key, first: float, last: float, peaks: Sequence[Series]
) -> tuple[dict[str, float], dict[str, float]]:
    def at_last(quantity: str, **labels: str) -> list[float]:
        """The values that the parts had when one of them was last seen in this boot."""
        return _last_values(table.parts(quantity, key, **labels), first, last)

    observed: dict[str, float] = {}
    tokens = at_last("kv_cache_capacity_tokens")
    pool = at_last("kv_cache_capacity_bytes")
    for name, values in (
        ("kv_cache_capacity_bytes", pool),
        ("kv_cache_capacity_tokens", tokens),
        ("weights_bytes", at_last("measured_memory_bytes", component="weights")),
    ):
        if values:
            observed[name] = sum(values)
    if tokens and pool and sum(tokens) > 0:
        observed["kv_cache_bytes_per_token"] = sum(pool) / sum(tokens)
    if at_once := at_last("kv_cache_max_concurrency_requests"):
        observed["kv_cache_max_concurrency_requests"] = min(at_once)
    if highest := [float(peak.values.max()) for peak in peaks if len(peak.values)]:
        observed["memory_used_peak_bytes"] = max(highest)

    # Predictions are of one rank, or of its fullest GPU.
    ranks = max(len({label(part, "rank") for part in table.parts("kv_cache_capacity_tokens", key)}), 1)
    predicted: dict[str, float] = {}
    for name, times, values in (
        ("kv_cache_capacity_bytes", ranks, at_last("predicted_memory_bytes", component="kv_cache")),
        ("kv_cache_capacity_tokens", ranks, at_last("predicted_kv_cache_capacity_tokens")),
        ("kv_cache_bytes_per_token", 1, at_last("predicted_kv_cache_bytes_per_token")),
        ("kv_cache_max_concurrency_requests", 1, at_last("predicted_kv_cache_max_concurrency_requests")),
        ("weights_bytes", ranks, at_last("predicted_memory_bytes", component="weights")),
        ("memory_used_peak_bytes", 1, at_last("predicted_total_memory_bytes")),
    ):
        if values:
            predicted[name] = values[0] * times
    return observed, predicted


def _between(series: Series, first: float, last: float) -> Series:
    there = (series.times >= first) & (series.times <= last)
    return Series(series.times[there], series.values[there])


def _last_values(parts: Parts, first: float, last: float) -> list[float]:
    found: list[tuple[float, float]] = []
    for series in parts.values():
        place = int(np.searchsorted(series.times, last, side="right")) - 1
        if place >= 0 and series.times[place] >= first:
            found.append((float(series.times[place]), float(series.values[place])))
    latest = max((time for time, _ in found), default=0.0)
    return [value for time, value in found if time == latest]
