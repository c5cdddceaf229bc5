"""Catalog and snapshot to a page in an exposition format. Knows no metric by name, and never raises.

Written here and not by the client library, whose lines take ten times as long: with a thousand targets that
would be most of a scrape. The library says which format was asked for and what the exporter's own process_…
families are, and is the oracle of the tests: the page is the same to the byte.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

from brimline.catalog import METRICS, Family, Labels, Row, Sums, is_exposable
from brimline.processes import proc_file
from brimline.readings import Histogram, Snapshot

logger = logging.getLogger(__name__)

_NUMBER = (float, int)
_DISTRIBUTION = (Histogram, Sums)
_go_float: Callable[[float], str] = floatToGoString
# Label values that are remembered while a page is written; most stand in dozens of its lines.
_MAX_REMEMBERED = 50_000

_PIECE_CHARACTERS = 256 << 10

# Rows of a family whose lines are kept until the next page. Those of a thousand targets would be 20 MB.
_MAX_KEPT_ROWS = 64

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

_OWN = CollectorRegistry(auto_describe=False)
ProcessCollector(registry=_OWN)
PlatformCollector(registry=_OWN)


class _Escaped(dict[str, str]):
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


def _number(value: float) -> str:
    """A value as the client library writes it, but for -0.0, which is 0.0 here."""
    if value == 0:  # half of them are 0 or 1
        return "0.0"
    if value == 1:
        return "1.0"
    text = repr(value)
    point = text.find(".")
    if 0 < point <= 6:
        return text
    if point > 6 and value > 0:  # Go writes an exponent sooner than Python
        digits = f"{text[0]}.{text[1:point]}{text[point + 1 :]}"
        return f"{digits.rstrip('0.')}e+{point - 1:02d}"
    return _go_float(value)


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the lines of a family are written; labels stand in the order of their names.

    values: a row's label values in that order. labels: text for them to be put in. before_bound,
    behind_bound: the same with `le` among them, divided where its value goes.
    """

    values: Callable[[Labels], tuple[str, ...]]
    labels: str
    before_bound: str
    behind_bound: str
    split: int


@functools.lru_cache(1024)
def _layout(labels: Labels) -> _Layout:
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
    return _Layout(
        values=values,
        labels=f"{{{','.join(written)}}}" if names else "",
        before_bound=f'{{{before}le="',
        behind_bound=f'"{behind}}}',
        split=split,
    )


def _head(name: str, help_: str, kind: str, *, is_openmetrics: bool) -> str:
    """The lines that describe a family."""
    text = help_.replace("\\", r"\\").replace("\n", r"\n")
    if is_openmetrics:
        text = text.replace('"', r"\"")
        if kind == "counter":
            name = name.removesuffix("_total")
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


class _Writer:
    """Writes a family, page after page.

    Most rows of a small exporter say what they said a page before: settings, predictions, counts of errors.
    The lines of equal rows are equal, and comparing takes a tenth of writing.

    heads: the lines that describe the family, by whether some target wants buckets, then by format.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self._rows_of = family.rows
        self._source_of = family.source
        self._is_histogram = family.kind == "histogram"
        self._name = family.full_name
        self._layout = _layout(family.labels)
        # A page where no target asked for buckets carries sums and counts alone, and calls the family a
        # summary, which may have those.
        kinds = ("summary" if self._is_histogram else family.kind, family.kind)
        self.heads = [
            [_head(self._name, family.help, kind, is_openmetrics=each) for each in (False, True)]
            for kind in kinds
        ]
        self._source: object = None
        self._kept: tuple[list[Row], bool] | None = None
        self._kept_lines = ""
        self._labels: dict[Labels, str] = {}  # as they are written, by their values

    def lines(self, snapshot: Snapshot, escaped: _Escaped, *, with_buckets: bool) -> str:
        """The lines of the family's rows; empty where it has none."""
        source = None
        if self._source_of is not None and self._kept is not None:
            source = self._source_of(snapshot)
            if self._source == source:
                return self._kept_lines
        if len(self._labels) >= _MAX_KEPT_ROWS:
            self._labels = {}  # else what is gone would keep the place of what has come
        rest = iter(self._rows_of(snapshot))
        rows = list(itertools.islice(rest, _MAX_KEPT_ROWS + 1))
        if len(rows) > _MAX_KEPT_ROWS:
            self._kept = None
            return self._written(itertools.chain(rows, rest), escaped, with_buckets=with_buckets)
        written_of = rows, with_buckets
        if self._kept != written_of:
            self._kept_lines = self._written(rows, escaped, with_buckets=with_buckets)
            self._kept = written_of
        self._source = source
        return self._kept_lines

    def _written(self, rows: Iterable[Row], escaped: _Escaped, *, with_buckets: bool) -> str:
        if self._is_histogram:
            return "".join(self._histograms(rows, escaped, with_buckets=with_buckets))
        return "".join(self._numbers(rows, escaped))

    def _labels_of(self, row: Labels, escaped: _Escaped) -> str:
        """A row's labels as they are written, which is remembered for so many rows."""
        written = self._layout.labels % self._texts(row, escaped)
        if len(self._labels) < _MAX_KEPT_ROWS:
            self._labels[row] = written
        return written

    def _texts(self, row: Labels, escaped: _Escaped) -> tuple[str, ...]:
        """Label values as they are written, in the order of their names."""
        if len(row) != len(self.family.labels):
            raise ValueError(f"{len(row)} labels instead of {len(self.family.labels)}")
        return tuple([escaped[each] for each in self._layout.values(row)])

    def _numbers(self, rows: Iterable[Row], escaped: _Escaped) -> list[str]:
        """Lines of numbers. Of rows with equal labels the first is taken; NaN is never exposed."""
        known = self._labels
        written: dict[str, str] = {}
        for row, value in rows:
            if not isinstance(value, _NUMBER) or value != value:
                continue
            written.setdefault(known.get(row) or self._labels_of(row, escaped), _number(value))
        name = self._name
        return [f"{name}{each} {value}\n" for each, value in written.items()]

    def _histograms(self, rows: Iterable[Row], escaped: _Escaped, *, with_buckets: bool) -> list[str]:
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
            count = _number(value.count)
            buckets = value.buckets if isinstance(value, Histogram) else ()
            if buckets or (with_buckets and isinstance(value, Sums)):
                texts = self._texts(row, escaped)
                before = f"{name}_bucket{layout.before_bound % texts[: layout.split]}"
                behind = f"{layout.behind_bound % texts[layout.split :]} "
                lines += [f"{before}{_bound(bound)}{behind}{_number(number)}\n" for bound, number in buckets]
                if not isinstance(value, Histogram):
                    lines.append(f"{before}+Inf{behind}{count}\n")
            lines.append(f"{name}_count{labels} {count}\n")
            lines.append(f"{name}_sum{labels} {_number(value.sum)}\n")
        return lines


_logged: set[str] = set()  # one line for each defect, not one for each scrape


def _open_files() -> int:
    """How many files this process has open."""
    counted = os.stat("/proc/self/fd").st_size  # noqa: PTH116 - in each scrape
    if counted:
        return counted
    with os.scandir("/proc/self/fd") as entries:  # Linux before 6.2
        return sum(1 for _ in entries) - 1  # less the one that lists them


def _measured() -> dict[str, float]:
    """What changes of what the client library's collectors say of this process, by their names."""
    size, resident = proc_file("/proc/self/statm").split()[:2]
    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return {
        "process_virtual_memory_bytes": int(size) * _PAGE_BYTES,
        "process_resident_memory_bytes": int(resident) * _PAGE_BYTES,
        "process_cpu_seconds_total": time.process_time(),
        "process_open_fds": _open_files(),
        "process_max_fds": math.inf if most_files == resource.RLIM_INFINITY else most_files,
    }


class _ThisProcess:
    """The families of this process: numbers without timestamps, from the client library's collectors.

    These are asked once; from then on only the numbers that change are read, in a fifth of the time.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        # By format: the lines, each with the name of the number that belongs behind it, empty for none.
        self._lines: dict[bool, list[tuple[str, str]]] = {}

    def text(self, *, is_openmetrics: bool) -> str:
        """The families with their numbers of now."""
        lines = self._lines.get(is_openmetrics)
        if lines is None:
            lines = self._lines[is_openmetrics] = list(self._collected(is_openmetrics=is_openmetrics))
        numbers = _measured()
        return "".join(f"{line} {_number(numbers[name])}\n" if name else line for line, name in lines)

    def _collected(self, *, is_openmetrics: bool) -> Iterator[tuple[str, str]]:
        escaped = _Escaped()
        changing = _measured()
        for metric in self._registry.collect():
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            kind = "unknown" if metric.type == "untyped" else metric.type
            yield _head(name, metric.documentation, kind, is_openmetrics=is_openmetrics), ""
            for sample in metric.samples:
                labels = ",".join(f'{key}="{escaped[value]}"' for key, value in sorted(sample.labels.items()))
                line = f"{sample.name}{f'{{{labels}}}' if labels else ''}"
                if sample.name in changing:
                    yield line, sample.name
                else:
                    yield f"{line} {_number(sample.value)}\n", ""


class Exposition:
    """Writes these families page after page."""

    def __init__(self, families: Iterable[Family] = METRICS) -> None:
        self._writers = [_Writer(family) for family in families]
        self._process = _ThisProcess(_OWN)

    def pieces(self, snapshot: Snapshot, accept: str = "") -> tuple[Iterator[bytes], str]:
        """The page in pieces, and its content type by the Accept header: classic text or OpenMetrics.

        In pieces, because a page of a thousand targets has 10 MB, and compressed half a megabyte.
        """
        _, content_type = encoder_of(accept)
        is_openmetrics = content_type.startswith("application/openmetrics-text")
        kind, separator, escaping = content_type.partition("; escaping=")
        if separator and escaping != "allow-utf-8":
            # Names as they are need none, and are what every scheme but `dots` and `values` makes of them.
            content_type = f"{kind}; escaping=underscores"
        return self._pieces(snapshot, is_openmetrics=is_openmetrics), content_type

    def _pieces(self, snapshot: Snapshot, *, is_openmetrics: bool) -> Iterator[bytes]:
        """A page, family by family. One that fails is left out, logged once, and costs no other."""
        escaped = _Escaped()
        # By the configuration, not by the rows: a target that goes down must not change another one's type.
        with_buckets = any(target.histograms == "full" for target in snapshot.targets)
        held: list[str] = []
        size = 0
        for writer in self._writers:
            try:
                lines = writer.lines(snapshot, escaped, with_buckets=with_buckets)
            except Exception:  # the exposition goes on without a family that has a defect
                if writer.family.name not in _logged:
                    _logged.add(writer.family.name)
                    logger.exception("family=%s could not be exposed", writer.family.name)
                continue
            if not lines:
                continue
            held += (writer.heads[with_buckets][is_openmetrics], lines)
            size += len(lines)
            if size > _PIECE_CHARACTERS:
                yield "".join(held).encode("utf-8", "replace")
                held, size = [], 0
        try:
            held.append(self._process.text(is_openmetrics=is_openmetrics))
        except Exception:  # the library's collector fails where a limit of /proc is missing
            if "process" not in _logged:
                _logged.add("process")
                logger.exception("family=process could not be exposed")
        if is_openmetrics:
            held.append("# EOF\n")
        yield "".join(held).encode("utf-8", "replace")


@functools.lru_cache(16)
def encoder_of(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    """The client library's encoder by the Accept header, with its content type."""
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is none
        return choose_encoder("")


def render(
    snapshot: Snapshot, accept: str = "", *, families: Iterable[Family] = METRICS
) -> tuple[bytes, str]:
    """A page as a whole, and its content type."""
    parts, content_type = Exposition(families).pieces(snapshot, accept)
    return b"".join(parts), content_type
