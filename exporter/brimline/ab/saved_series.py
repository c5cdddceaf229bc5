"""Series from files instead of Prometheus: a dump of its samples, or pages of an exporter saved now and then.

A file holds samples with timestamps, as `promtool tsdb dump` and `dump-openmetrics` write them. A folder
holds such files, or pages of `/metrics`: the time of a page stands in its file's name (1764489600.prom,
2026-11-30T08:00:00Z.prom), else it is when the file was written; a folder in it is another exporter.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np

from brimline.errors import DataSourceError
from brimline.exposition_text.series import SeriesReader, TextSeries, TooManySamples
from brimline.files import NotARegularFile, open_regular
from brimline.prometheus_api import MAX_CHUNK_SECONDS, Row, Rows, shortened, stretches

PREFIX = "brimline_"
MAX_FILES = 200_000
SUFFIXES = (".prom", ".txt", ".om", ".openmetrics", ".metrics")
# Of a series' own interval: a reading older than this is none, as Prometheus' staleness has it.
STALE_INTERVALS = 2.5

_EPOCH = re.compile(r"(?<!\d)(\d{10}(?:\.\d+)?|\d{13})(?!\d)")
_DATE = re.compile(r"(\d{4})-?(\d\d)-?(\d\d)[T_ ]?(\d\d)[:\-h]?(\d\d)[:\-m]?(\d\d)")

_MATCHER = re.compile(
    r"""\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`[^`]*`)\s*(?:,|$)"""
)
_SELECTOR = re.compile(r"\s*([a-zA-Z_:][a-zA-Z0-9_:]*)?\s*(?:\{(.*)\})?\s*", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class _Matcher:
    name: str
    accepts: Callable[[str], bool]


class SavedSeries:
    """Answers selectors from what files hold; the interface of PrometheusApi without an engine for PromQL."""

    evaluates = False

    def __init__(self, rows: Sequence[Row], *, unparsed_lines: int = 0) -> None:
        self._warnings = (f"{unparsed_lines} lines could not be read",) if unparsed_lines else ()
        self._by_name: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            self._by_name[row.labels["__name__"]].append(row)

    async def raw_samples(
        self,
        selector: str,
        start: float,
        end: float,
        *,
        chunk: float = MAX_CHUNK_SECONDS,
        after_each: Callable[[], None] = lambda: None,
    ) -> Rows:
        """The samples after the start, up to the end. Raises DataSourceError for what is no selector."""
        found = []
        for row in self._matching(selector):
            first, last = bisect_right(row.times, start), bisect_right(row.times, end)
            if first < last:
                found.append(Row(row.labels, row.times[first:last], row.values[first:last]))
        for _ in stretches(start, end, min(chunk, MAX_CHUNK_SECONDS)):
            after_each()
        return Rows(found, self._warnings)

    async def query_range(self, query: str, start: float, end: float, step: float) -> Rows:
        """What stood there at each step, of selectors only. Raises DataSourceError."""
        count = int((end - start) / step + 1e-6) + 1
        found = []
        for row in self._matching(query):
            reach = STALE_INTERVALS * _interval(row.times)
            times, values = array("d"), array("d")
            for time in (start + place * step for place in range(count)):
                last = bisect_right(row.times, time) - 1
                if last >= 0 and row.times[last] > time - reach:
                    times.append(time)
                    values.append(row.values[last])
            if times:
                found.append(Row(row.labels, times, values))
        return Rows(found, self._warnings)

    def _matching(self, selector: str) -> list[Row]:
        matchers = parse_selector(selector)
        named = [matcher for matcher in matchers if matcher.name == "__name__"]
        rest = [matcher for matcher in matchers if matcher.name != "__name__"]
        return [
            row
            for name, rows in self._by_name.items()
            if all(matcher.accepts(name) for matcher in named)
            for row in rows
            if all(matcher.accepts(row.labels.get(matcher.name, "")) for matcher in rest)
        ]


def _interval(times: Sequence[float]) -> float:
    steps = sorted(later - earlier for earlier, later in pairwise(times))
    return steps[len(steps) // 2] if steps else 60.0


def parse_selector(selector: str) -> list[_Matcher]:
    """The conditions of a selector such as `name{a="b",c=~"d|e"}`. Raises DataSourceError."""
    whole = _SELECTOR.fullmatch(selector)
    if whole is None:
        raise _no_selector(selector)
    matchers = [_Matcher("__name__", _condition("=", whole[1], selector))] if whole[1] else []
    text, place = whole[2] or "", 0
    while place < len(text.rstrip()):
        found = _MATCHER.match(text, place)
        if found is None:
            raise _no_selector(selector)
        matchers.append(_Matcher(found[1], _condition(found[2], _unquoted(found[3]), selector)))
        place = found.end()
    if not matchers:
        raise _no_selector(selector)
    return matchers


def _unquoted(literal: str) -> str:
    if literal[0] == "`":
        return literal[1:-1]
    return _ESCAPE.sub(lambda escape: {"n": "\n", "t": "\t"}.get(escape[1], escape[1]), literal[1:-1])


def _condition(operator: str, text: str, selector: str) -> Callable[[str], bool]:
    if operator in ("=", "!="):
        return lambda value: (value == text) == (operator == "=")
    try:
        pattern = re.compile(text, re.DOTALL)
    except re.error as error:
        raise DataSourceError(
            "query", f"{shortened(selector)}: {text!r} is no expression ({error})"
        ) from None
    return lambda value: (pattern.fullmatch(value) is not None) == (operator == "=~")


def _no_selector(selector: str) -> DataSourceError:
    return DataSourceError(
        "query",
        f"saved series answer selectors only, not {shortened(selector)!r}; ask Prometheus for the rest",
    )


# --- files ---


def load(path: Path, families: Set[str] | None = None) -> SavedSeries:
    """The series of a file or a folder, of these families only. Raises DataSourceError if there are none."""

    def is_wanted(name: str) -> bool:
        return name.startswith(PREFIX) and (families is None or name.removeprefix(PREFIX) in families)

    reader = SeriesReader(is_wanted)
    for file, group in _files(path):
        try:
            with open_regular(file) as opened:
                reader.read(opened, at=time_of(file) if path.is_dir() else None, group=group)
        except NotARegularFile:
            continue
        except TooManySamples:
            raise DataSourceError("limit", f"{path} holds too many samples; save less time at once") from None
        except OSError as error:
            raise DataSourceError("file", f"{file} cannot be read ({error.strerror})") from None
    rows = _as_rows(reader.series_by_group())
    if not rows:
        raise DataSourceError(
            "file",
            f"{path} holds no samples of {PREFIX}… with timestamps; give what `promtool tsdb dump` wrote, "
            "or a folder of saved pages",
        )
    return SavedSeries(rows, unparsed_lines=reader.unparsed_lines)


def _files(path: Path) -> list[tuple[Path, str]]:
    """The files to read in order, each with the exporter that it is of."""
    if not path.is_dir():
        return [(path, "")]
    try:
        files = [file for file in path.rglob("*") if file.suffix in SUFFIXES]
    except OSError as error:
        raise DataSourceError("file", f"{path} cannot be read ({error.strerror})") from None
    if len(files) > MAX_FILES:
        raise DataSourceError("limit", f"{path} holds {len(files)} files; at most {MAX_FILES} are read")
    if not files:
        raise DataSourceError("file", f"{path} holds no files that end with {', '.join(SUFFIXES)}")
    return [(file, file.parent.relative_to(path).as_posix().removeprefix(".")) for file in sorted(files)]


def time_of(file: Path) -> float:
    """When a page was saved: by its file's name, else by when that was written. Raises OSError."""
    if (epoch := _EPOCH.search(file.name)) is not None:
        time = float(epoch[1])
        return time / 1000 if time >= 1e11 else time
    if (date := _DATE.search(file.name)) is not None:
        try:
            year, month, day, hour, minute, second = map(int, date.groups())
            return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()
        except ValueError:
            pass
    return file.stat().st_mtime


def _as_rows(series: Mapping[str, Sequence[TextSeries]]) -> list[Row]:
    rows = []
    for group, found in series.items():
        for each in found:
            if not each.times:
                continue
            labels = {"job": "saved", "instance": group or "saved", **each.labels, "__name__": each.name}
            times, values = each.times, each.values
            if len(times) > 1 and bool((np.diff(np.frombuffer(times)) <= 0).any()):
                ordered = dict(sorted(zip(times, values, strict=True), key=lambda pair: pair[0]))
                times, values = array("d", ordered.keys()), array("d", ordered.values())
            rows.append(Row(labels, times, values))
    return rows
