"""Rows of an answer, sorted by the server that they are of and by their part of it (rank, model, bucket)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from brimline.ab.series import EMPTY, Floats, Series
from brimline.prometheus_api import Row

PREFIX = "brimline_"
# Labels of Brimline's own. Whatever else a row carries was added on its way, by relabelling or a second
# Prometheus, and may come and go.
_PARTS = frozenset({"basis", "component", "gpu", "le", "model", "owner", "rank", "reason"})
_IDENTITY = frozenset(
    {
        "driver",
        "engine",
        "engine_version",
        "experiment",
        "fingerprint",
        "gpu",
        "index",
        "memory_api",
        "model",
        "name",
        "rank",
        "role",
        "setting",
        "simulated",
        "value",
        "variant",
    }
)
# Of a scrape interval: two samples nearer than this are one scrape read twice, by two Prometheus servers or
# under two sets of labels.
_SAME_SCRAPE_RATIO = 0.6


class Key(NamedTuple):
    """By what a server's series are joined: an exporter's address, and its name for the server."""

    job: str
    instance: str
    target: str


Part = frozenset[tuple[str, str]]


def key_of(labels: Mapping[str, str]) -> Key:
    """The server that a row is of; an empty target where it is the exporter's own."""
    return Key(labels.get("job", ""), labels.get("instance", ""), labels.get("target", ""))


def quantity_of(labels: Mapping[str, str]) -> str:
    """The name of a row's family without the prefix."""
    return labels.get("__name__", "").removeprefix(PREFIX)


def _part_of(labels: Mapping[str, str], quantity: str) -> Part:
    own = _IDENTITY if quantity.endswith("_info") else _PARTS
    return frozenset((name, value) for name, value in labels.items() if name in own)


def series_of(row: Row) -> Series:
    """The row's samples that are numbers: NaN says nothing."""
    times, values = np.frombuffer(row.times), np.frombuffer(row.values)
    kept = np.isfinite(values)
    return Series(times, values) if kept.all() else Series(times[kept], values[kept])


def joined(pieces: Sequence[Series]) -> Series:
    """One part's samples from rows that differ only in labels added on their way.

    The fullest one stands; the others fill what it lacks. Where they stand beside it they are the same
    scrape, or the same server scraped once more, and no second server.
    """
    pieces = sorted((piece for piece in pieces if len(piece.times)), key=lambda piece: -len(piece.times))
    if len(pieces) <= 1:
        return pieces[0] if pieces else EMPTY
    whole = pieces[0]
    for piece in pieces[1:]:
        interval = float(np.median(np.diff(whole.times))) if len(whole.times) > 1 else 0.0
        behind = np.searchsorted(whole.times, piece.times)
        padded = np.concatenate([[-np.inf], whole.times, [np.inf]])
        distance = np.minimum(piece.times - padded[behind], padded[behind + 1] - piece.times)
        kept = distance > _SAME_SCRAPE_RATIO * interval
        times = np.concatenate([whole.times, piece.times[kept]])
        values = np.concatenate([whole.values, piece.values[kept]])
        order = np.argsort(times, kind="stable")
        whole = Series(times[order], values[order])
    return whole


Parts = Mapping[Part, Series]


class Table:
    """Series by quantity, server and part."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        pieces: dict[tuple[str, Key], dict[Part, list[Row]]] = {}
        for row in rows:
            quantity = quantity_of(row.labels)
            place = pieces.setdefault((quantity, key_of(row.labels)), defaultdict(list))
            place[_part_of(row.labels, quantity)].append(row)
        # In one order whichever came first, so that sums are the same to the last bit.
        self._parts = {
            place: {
                part: joined([series_of(row) for row in _ordered(parts[part])]) for part in _sorted(parts)
            }
            for place, parts in pieces.items()
        }

    def parts(self, quantity: str, key: Key, **labels: str) -> Parts:
        """Series of that quantity and server whose labels are these, by all their labels."""
        found = self._parts.get((quantity, key), {})
        wanted = set(labels.items())
        return {part: series for part, series in found.items() if wanted <= part and len(series.times)}

    def keys(self, quantity: str) -> list[Key]:
        """The servers that have the quantity."""
        return [key for name, key in self._parts if name == quantity]

    def during(self, key: Key, spans: Sequence[tuple[float, float]]) -> Table:
        """What it holds of that server and of its exporter, in those spans of time."""
        table = Table()
        of_exporter = key._replace(target="")
        table._parts = {
            (quantity, whose): {part: within(series, spans) for part, series in parts.items()}
            for (quantity, whose), parts in self._parts.items()
            if whose in (key, of_exporter)
        }
        return table


def within(series: Series, spans: Sequence[tuple[float, float]]) -> Series:
    """The samples in any of the spans, both of their ends included."""
    kept = np.zeros(len(series.times), dtype=bool)
    for first, last in spans:
        kept |= (series.times >= first) & (series.times <= last)
    return Series(series.times[kept], series.values[kept])


def _sorted(parts: Iterable[Part]) -> list[Part]:
    found = list(parts)
    return sorted(found, key=sorted) if len(found) > 1 else found


def _ordered(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: sorted(row.labels.items())) if len(rows) > 1 else rows


def label(part: Part, name: str) -> str:
    """A label of a part; empty where it has none."""
    for label_name, value in part:
        if label_name == name:
            return value
    return ""


def states(parts: Parts, name: str) -> tuple[list[str], Floats]:
    """What a label said, sample by sample, and when: of rows of which one stands at a time."""
    times = [series.times for series in parts.values()]
    if not times:
        return [], np.empty(0)
    said = [label(part, name) for part, series in parts.items() for _ in range(len(series.times))]
    stamps = np.concatenate(times)
    order = np.argsort(stamps, kind="stable")
    return [said[place] for place in order], stamps[order]


def newest(parts: Parts) -> Parts:
    """The parts that stood at the last scrape that any of them was in."""
    last = max((float(series.times[-1]) for series in parts.values()), default=0.0)
    return {part: series for part, series in parts.items() if float(series.times[-1]) == last}
