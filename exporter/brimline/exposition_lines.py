"""The lines of a family in an exposition format, as the client library writes them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from prometheus_client.utils import floatToGoString

from brimline.catalog import Family, Labels, Row, Sums, is_exposable
from brimline.readings import Histogram

_NUMBER = (float, int)
_DISTRIBUTION = (Histogram, Sums)
_go_float: Callable[[float], str] = floatToGoString
# From here on Go writes an exponent, sooner than Python. By the digits before the point.
_MILLION = 1e6
_EXPONENTS = tuple(f"e+{digits - 1:02d}" for digits in range(20))
# Label values that are remembered while a page is written; most stand in dozens of its lines.
_MAX_REMEMBERED = 50_000
# Rows of a family whose labels are remembered from one page to the next; then all are forgotten at once.
_MAX_KNOWN_ROWS = 64


class Escaped(dict[str, str]):
    """Label values as the formats write them."""

    def __missing__(self, value: str) -> str:
        # Halves of characters, one of which would cost the whole page its encoding, are replaced.
        text = value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
        text = text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
        if len(self) < _MAX_REMEMBERED:
            self[value] = text
        return text


@functools.lru_cache(4096)
def _bound(bound: float) -> str:
    """A bucket's bound as the exposition formats write it."""
    return "+Inf" if math.isinf(bound) else repr(bound)


def number(value: float) -> str:
    """A value as the client library writes it, but for -0.0, which is 0.0 here."""
    if -_MILLION < value < _MILLION:
        return repr(value + 0.0)
    text = repr(float(value))
    point = text.find(".")
    if point > 6 and value > 0:
        return f"{text[0]}.{text[1:point]}{text[point + 1 :]}".rstrip("0.") + _EXPONENTS[point]
    return _go_float(value)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the lines of a family are written; labels stand in the order of their names.

    names: of the labels, in the order of their values in a row. values: a row's label values in the order of
    their names. labels: text for them to be put in. before_bound, behind_bound: the same with `le` among
    them, divided where its value goes.
    """

    names: Labels
    values: Callable[[Labels], tuple[str, ...]]
    labels: str
    before_bound: str
    behind_bound: str
    split: int

    def texts(self, row: Labels, escaped: Escaped) -> tuple[str, ...]:
        """Label values as they are written, in the order of their names."""
        if len(row) != len(self.names):
            raise ValueError(f"{len(row)} labels instead of {len(self.names)}")
        return tuple([escaped[each] for each in self.values(row)])


@functools.lru_cache(1024)
def layout_of(labels: Labels) -> Layout:
    order = sorted(range(len(labels)), key=labels.__getitem__)
    names = [labels[index] for index in order]
    if len(order) > 1:
        values: Callable[[Labels], tuple[str, ...]] = itemgetter(*order)
    else:
        values = tuple
    written = [f'{name}="%s"' for name in names]
    split = sum(name < "le" for name in names)
    before = "".join(f"{each}," for each in written[:split])
    behind = "".join(f",{each}" for each in written[split:])
    return Layout(
        names=labels,
        values=values,
        labels=f"{{{','.join(written)}}}" if names else "",
        before_bound=f'{{{before}le="',
        behind_bound=f'"{behind}}}',
        split=split,
    )


def head(name: str, help_: str, kind: str, *, is_openmetrics: bool) -> str:
    """The lines that describe a family."""
    text = help_.replace("\\", r"\\").replace("\n", r"\n")
    if is_openmetrics:
        text = text.replace('"', r"\"")
        if kind == "counter":
            name = name.removesuffix("_total")
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


class FamilyLines:
    """How a family is written. Of rows with equal labels the first one counts, and NaN is never exposed."""

    def __init__(self, family: Family) -> None:
        self._name = family.full_name
        self._is_histogram = family.kind == "histogram"
        self._layout = layout_of(family.labels)
        self._labels: dict[Labels, str] = {}  # as they are written, by their values

    def of_rows(self, rows: Iterable[Row], escaped: Escaped, *, with_buckets: bool) -> str:
        """The lines of these rows; a histogram's with buckets, or its sum and count alone."""
        if len(self._labels) >= _MAX_KNOWN_ROWS:
            self._labels = {}  # else what is gone would keep the place of what has come
        if self._is_histogram:
            return "".join(self._histograms(rows, escaped, with_buckets=with_buckets))
        return self._numbers(rows, escaped)

    def of_column(self, labels: Iterable[str], values: Iterable[Any], *, is_unique: bool) -> str:
        """The lines of numbers, None for none, with labels as they are written."""
        said = [
            (text, value)
            for text, value in zip(labels, values, strict=True)
            if value is not None and value == value
        ]
        if not is_unique:
            first: dict[str, Any] = {}
            for text, value in said:
                first.setdefault(text, value)
            said = list(first.items())
        name = self._name
        return "".join([f"{name}{text} {number(value)}\n" for text, value in said])

    def _labels_of(self, row: Labels, escaped: Escaped) -> str:
        """A row's labels as they are written, which is remembered for so many rows."""
        written = self._layout.labels % self._layout.texts(row, escaped)
        if len(self._labels) < _MAX_KNOWN_ROWS:
            self._labels[row] = written
        return written

    def _numbers(self, rows: Iterable[Row], escaped: Escaped) -> str:
        """Lines of numbers."""
        known = self._labels
        labels, values = [], []
        for row, value in rows:
            if isinstance(value, _NUMBER):
                labels.append(known.get(row) or self._labels_of(row, escaped))
                values.append(value)
        return self.of_column(labels, values, is_unique=len(set(labels)) == len(labels))

    def _histograms(self, rows: Iterable[Row], escaped: Escaped, *, with_buckets: bool) -> list[str]:
        """Lines of sums, or of whole histograms, which need at least their infinite bucket."""
        name, layout, known = self._name, self._layout, self._labels
        lines: list[str] = []
        seen: set[str] = set()
        for row, value in rows:
            if not isinstance(value, _DISTRIBUTION) or not is_exposable(value):
                continue
            labels = known.get(row) or self._labels_of(row, escaped)
            if labels in seen:
                continue
            seen.add(labels)
            count = number(value.count)
            buckets = value.buckets if isinstance(value, Histogram) else ()
            if buckets or (with_buckets and isinstance(value, Sums)):
                texts = layout.texts(row, escaped)
                before = f"{name}_bucket{layout.before_bound % texts[: layout.split]}"
                behind = f"{layout.behind_bound % texts[layout.split :]} "
                lines += [f"{before}{_bound(bound)}{behind}{number(upto)}\n" for bound, upto in buckets]
                if not isinstance(value, Histogram):
                    lines.append(f"{before}+Inf{behind}{count}\n")
            lines.append(f"{name}_count{labels} {count}\n")
            lines.append(f"{name}_sum{labels} {number(value.sum)}\n")
        return lines
