"""How an adapter says where its quantities stand on a page: names newest first, and a rule for labels.

An adapter is data first. A `Gauge`, `Counter`, `ByLabel` or `HistogramOf` names the sample and how rows that
differ only in labels nobody asked for (several `pid`s, say) combine: ratios by max, counts by sum.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from brimline.exposition_text import Page, Sample
from brimline.readings import EngineReading, Histogram, RankReading

# A page with more (model, rank) rows than this is an attack or a mistake; the rest is dropped and counted.
MAX_RANKS = 256
MAX_REASONS = 32
MAX_BUCKETS = 128
MAX_LABEL_CHARS = 128
# No server has so many of anything, bytes included; what is computed from less cannot overflow.
MAX_COUNT = 1 << 63
# Series that one page can turn into: 64 ranks with 192 each (vLLM's have 125 buckets and some 40 others), or
# 256 ranks with 48 each, which then keep the sums of their histograms.
MAX_SERIES = 12_288

START_TIME = "process_start_time_seconds"
SIMULATED = "brimline_simulated_server_info"

Key = tuple[str, str]  # model, rank
KeyOf = Callable[[Mapping[str, str]], Key]
Samples = tuple[Sample, ...]


class Name(str):
    """A sample name with the versions of its engine that send it; empty for the first and last ones read."""

    __slots__ = ("since", "to")
    since: str
    to: str

    def __new__(cls, text: str, since: str = "", to: str = "") -> Name:
        name = super().__new__(cls, text)
        name.since, name.to = since, to
        return name

    def spelled(self, text: str) -> Name:
        """Another spelling, sent by the same versions."""
        return Name(text, self.since, self.to)


def spelled(name: str, text: str) -> str:
    """Another spelling of a name, sent by the same versions."""
    return name.spelled(text) if isinstance(name, Name) else text


@dataclass(frozen=True, slots=True)
class Scalar:
    """One number for each (model, rank).

    names: sample names, newest first; the first one on the page is taken, never two added up.
    combine: for rows that differ in other labels.
    where: labels that a row must carry; an empty value also stands for a label that is not there.
    ratio: the value must lie in 0..1.
    since, until: versions that give it, the second exclusive; None is open. `expected` says whether a server
    in that range always does, so that its absence is worth a word.
    note: what is to be known of it beside its name, for people.
    """

    names: tuple[str, ...]
    combine: Callable[[Iterable[float]], float] = max
    where: Mapping[str, str] = field(default_factory=dict)
    ratio: bool = False
    expected: bool = False
    since: tuple[int, ...] | None = None
    until: tuple[int, ...] | None = None
    note: str = ""

    def sample_names(self) -> Iterable[str]:
        return self.names


def gauge(*names: str, **options: Any) -> Scalar:
    """A gauge; rows that differ in `pid` only are copies of each other, so the largest is taken."""
    return Scalar(names, max, **options)


def counter(*names: str, **options: Any) -> Scalar:
    """A counter, named as scraped; some servers leave `_total` out, so both spellings are looked for."""
    spellings = (s for n in names for s in (n, spelled(n, n.removesuffix("_total"))))
    return Scalar(tuple(dict.fromkeys(spellings)), sum, **options)


@dataclass(frozen=True, slots=True)
class ByLabel:
    """One number for each value of a label, for each (model, rank)."""

    names: tuple[str, ...]
    label: str
    combine: Callable[[Iterable[float]], float] = sum
    expected: bool = False
    since: tuple[int, ...] | None = None
    until: tuple[int, ...] | None = None
    note: str = ""

    def sample_names(self) -> Iterable[str]:
        return self.names


@dataclass(frozen=True, slots=True)
class HistogramOf:
    """A histogram for each (model, rank); names without `_bucket`, `_sum`, `_count`, newest first."""

    names: tuple[str, ...]
    expected: bool = False
    since: tuple[int, ...] | None = None
    until: tuple[int, ...] | None = None
    note: str = ""
    _samples: tuple[tuple[str, str, str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        samples = tuple((f"{name}_bucket", f"{name}_sum", f"{name}_count") for name in self.names)
        object.__setattr__(self, "_samples", samples)

    def sample_names(self) -> Iterable[str]:
        return itertools.chain.from_iterable(self._samples)

    def on(self, page: Page) -> tuple[Samples, Samples, Samples] | None:
        """Buckets, sums and counts of the newest of the names that is on the page; None where none is."""
        found = page.samples
        for bucket, total, count in self._samples:
            if count in found:
                return found.get(bucket, ()), found.get(total, ()), found[count]
        return None


Quantity = Scalar | ByLabel | HistogramOf


def wanted_names(table: Mapping[str, Quantity], *more: str) -> frozenset[bytes]:
    """The sample names that the scanner must look for."""
    names = {name for quantity in table.values() for name in quantity.sample_names()}
    return frozenset(name.encode() for name in names.union(more))


def clean_label(text: str) -> str:
    """A label value fit to pass on: without control and bidirectional characters, at most 128 characters.

    A longer one is cut in its middle, and ends with a checksum: two paths that differ there stay two.
    """
    if len(text) <= MAX_LABEL_CHARS and text.isascii() and text.isprintable():
        return text  # nearly all are, and a page has hundreds
    kept = "".join(
        c
        for c in text
        if c.isprintable() and not 0x202A <= ord(c) <= 0x202E and not 0x2066 <= ord(c) <= 0x2069
    )
    if len(kept) <= MAX_LABEL_CHARS:
        return kept
    checksum = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    tail = (MAX_LABEL_CHARS - len(checksum) - 2) // 3
    return f"{kept[: MAX_LABEL_CHARS - len(checksum) - 2 - tail]}…{kept[-tail:]}~{checksum}"


@dataclass(slots=True)
class TableReading:
    """What a table gave for a page.

    values: quantity name → number, mapping or Histogram, for each (model, rank).
    bad: quantities with impossible values, which were dropped.
    dropped: rows and series beyond the caps, with the samples that the scanner left out.
    """

    values: dict[Key, dict[str, Any]] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)
    dropped: int = 0

    def slot(self, key: Key) -> dict[str, Any] | None:
        """The values of one (model, rank); None where the page has too many of them."""
        if key not in self.values:
            if len(self.values) >= MAX_RANKS:
                self.dropped += 1
                return None
            self.values[key] = {}
        return self.values[key]


def read_table(page: Page, table: Mapping[str, Quantity], key_of: KeyOf) -> TableReading:
    """Every quantity of the table that the page states, combined by each one's rule."""
    reading = TableReading(dropped=page.dropped_samples)
    # Dozens of samples have the same labels, which the scanner then made once, and which the page keeps.
    known: dict[int, Key] = {}

    def key(labels: Mapping[str, str]) -> Key:
        found = known.get(id(labels))
        if found is None:
            found = known[id(labels)] = key_of(labels)
        return found

    for name, quantity in table.items():
        if isinstance(quantity, Scalar):
            _read_scalar(page, name, quantity, key, reading)
        elif isinstance(quantity, ByLabel):
            _read_by_label(page, name, quantity, key, reading)
        else:
            _read_histogram(page, name, quantity, key, reading)
    if 2 * sum(map(len, page.samples.values())) > MAX_SERIES:  # a sample makes two series at most
        _cap_series(reading)
    return reading


def key_by(models: Sequence[str], ranks: Sequence[str] = ()) -> KeyOf:
    """The model and rank of a row: the first of these labels that is not empty; "" and "0" where none is."""

    def key(labels: Mapping[str, str]) -> Key:
        model = next((labels[name] for name in models if labels.get(name)), "")
        rank = next((labels[name] for name in ranks if labels.get(name)), "0")
        return clean_label(model), clean_label(rank)

    return key


def engine_reading(engine: str, page: Page, table: TableReading, **more: Any) -> EngineReading:
    """The reading of an engine that says no more of its ranks than its table does.

    more: fields of the EngineReading beside those that the page and the table give.
    """
    starts = [s.value for s in page.get(START_TIME) if math.isfinite(s.value) and s.value > 0]
    fields: dict[str, Any] = {
        "engine": engine,
        "ranks": tuple(
            RankReading(model=model, rank=rank, **values)
            for (model, rank), values in sorted(table.values.items())
        ),
        "start_time": starts[0] if starts else None,
        "simulated": SIMULATED in page,
        "bad_values": tuple(sorted(table.bad)),
        "unparsed_lines": page.unparsed_lines,
        "dropped_series": table.dropped,
    }
    return EngineReading(**fields | more)


def _first_present(page: Page, names: Sequence[str]) -> Samples:
    found = page.samples
    for name in names:
        if name in found:
            return found[name]
    return ()


def _is_possible(value: float) -> bool:
    return 0 <= value < MAX_COUNT


def _read_scalar(page: Page, name: str, quantity: Scalar, key_of: KeyOf, reading: TableReading) -> None:
    rows: dict[Key, list[float]] = {}
    where, ratio = quantity.where, quantity.ratio
    for labels, value in _first_present(page, quantity.names):
        if where and any(labels.get(label, "") != text for label, text in where.items()):
            continue
        if not _is_possible(value) or (ratio and value > 1.0001):
            reading.bad.add(name)
            continue
        if ratio and value > 1:
            value = 1.0
        key = key_of(labels)
        if key in rows:
            rows[key].append(value)
        else:
            rows[key] = [value]
    for key, values in rows.items():
        if (slot := reading.slot(key)) is not None:
            slot[name] = values[0] if len(values) == 1 else quantity.combine(values)


def _read_by_label(
    page: Page,
    name: str,
    quantity: ByLabel,
    key_of: KeyOf,
    reading: TableReading,
) -> None:
    rows: dict[Key, dict[str, list[float]]] = {}
    for sample in _first_present(page, quantity.names):
        if not _is_possible(sample.value):
            reading.bad.add(name)
            continue
        of_key = rows.setdefault(key_of(sample.labels), {})
        reason = clean_label(sample.labels.get(quantity.label, ""))
        if reason not in of_key and len(of_key) >= MAX_REASONS:
            reading.dropped += 1
            continue
        of_key.setdefault(reason, []).append(sample.value)
    for key, reasons in rows.items():
        if (slot := reading.slot(key)) is not None:
            slot[name] = {reason: quantity.combine(values) for reason, values in reasons.items()}


def _bound(text: str) -> float | None:
    """A bucket's upper bound; None for what cannot be one."""
    try:
        bound = float(text)
    except ValueError:
        return None
    return None if math.isnan(bound) or bound == -math.inf else bound


def _read_histogram(
    page: Page,
    name: str,
    quantity: HistogramOf,
    key_of: KeyOf,
    reading: TableReading,
) -> None:
    found = quantity.on(page)
    if found is None:
        return
    bucket_samples, sum_samples, count_samples = found
    sums: dict[Key, float] = {}
    counts: dict[Key, float] = {}
    buckets: dict[Key, dict[float, float]] = {}
    for samples, into in ((sum_samples, sums), (count_samples, counts)):
        for labels, value in samples:
            key = key_of(labels)
            into[key] = into.get(key, 0.0) + value
    for labels, value in bucket_samples:
        bound = _bound(labels.get("le", ""))
        if bound is not None:
            of_key = buckets.setdefault(key_of(labels), {})
            of_key[bound] = of_key.get(bound, 0.0) + value
    for key, count in counts.items():
        if key not in sums or not _is_possible(count) or not math.isfinite(sums[key]):
            reading.bad.add(name)
            continue
        slot = reading.slot(key)
        if slot is None:
            continue
        bounds = tuple(sorted(buckets[key].items())) if key in buckets else ()
        if not _is_cumulative(bounds, count):
            reading.bad.add(name)
            bounds = ()
        slot[name] = Histogram(bounds, sums[key], count)


def _is_cumulative(buckets: tuple[tuple[float, float], ...], count: float) -> bool:
    if not buckets:
        return True
    counts = [value for _, value in buckets]
    return (
        len(buckets) <= MAX_BUCKETS
        and math.isinf(buckets[-1][0])
        and counts[-1] == count
        and all(before <= after for before, after in itertools.pairwise(counts))
    )


def _series_without_buckets(value: Any) -> int:
    if isinstance(value, Histogram):
        return 2  # sum and count
    return len(value) if isinstance(value, dict) else 1


def _cap_series(reading: TableReading) -> None:
    """Drop what goes beyond MAX_SERIES, in place: buckets first, then whole ranks.

    A rank keeps all its buckets or none, and the first ranks keep them: which ones do stays the same from
    scrape to scrape, as the order of a server's page does.
    """
    left = MAX_SERIES
    for key, values in list(reading.values.items()):
        count = sum(map(_series_without_buckets, values.values()))
        if count > left:
            reading.dropped += count
            left = 0
            del reading.values[key]
        else:
            left -= count
    for values in reading.values.values():
        histograms = {name: value for name, value in values.items() if isinstance(value, Histogram)}
        count = sum(len(histogram.buckets) for histogram in histograms.values())
        if count > left:
            reading.dropped += count
            left = 0
            values.update((name, Histogram((), h.sum, h.count)) for name, h in histograms.items())
        else:
            left -= count


def parse_version(text: str | None) -> tuple[int, ...] | None:
    """Leading numbers of a version: (0, 9, 2) for `0.9.2.dev5+cpu`; None where there are none."""
    numbers = []
    for part in (text or "").lstrip("v").split("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers) or None


def missing_quantities(
    table: Mapping[str, Quantity], reading: TableReading, version: tuple[int, ...] | None
) -> tuple[str, ...]:
    """Quantities that this version always gives and no row of the page has: an upgrade renamed something."""
    found = {name for values in reading.values.values() for name in values}
    return tuple(
        name
        for name, quantity in table.items()
        if quantity.expected
        and name not in found
        and name not in reading.bad
        and (quantity.since is None or (version is not None and version >= quantity.since))
        and (quantity.until is None or (version is not None and version < quantity.until))
    )
