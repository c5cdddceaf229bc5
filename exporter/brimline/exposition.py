"""Catalog and snapshot to a page in an exposition format. Knows no metric by name, and never raises.

Written here and not by the client library, whose lines take ten times as long: with a thousand targets that
would be most of a scrape. The library says which format was asked for and what the exporter's own process_…
families are, and is the oracle of the tests: the page is the same to the byte.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import operator
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder

from brimline.catalog import METRICS, Column, Family, Labels, Table
from brimline.exposition_lines import Escaped, FamilyLines, head, layout_of, number
from brimline.processes import proc_file
from brimline.readings import Snapshot

logger = logging.getLogger(__name__)

_PIECE_CHARACTERS = 256 << 10

# Rows of the largest table of a page whose lines are kept until the next one. Those of a thousand targets
# would be 20 MB.
_MAX_KEPT_ROWS = 64
# Rows of a table whose labels are kept as they are written, which with a thousand targets is 300 KB.
_MAX_KEPT_LABELS = 4096

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

_OWN = CollectorRegistry(auto_describe=False)
ProcessCollector(registry=_OWN)
PlatformCollector(registry=_OWN)


@dataclass(frozen=True, slots=True)
class _Form:
    """What the lines of a page depend on beside the columns. histograms: which each target is to have."""

    histograms: list[tuple[str, str]]
    is_openmetrics: bool


@dataclass(slots=True, eq=False)
class _Page:
    """A page that is being written. with_buckets: some target wants them. head: which one of a family's."""

    snapshot: Snapshot
    escaped: Escaped
    with_buckets: bool
    head: int


class _Read(NamedTuple):
    """What a page has of a table. labels: of its rows, as they are written. columns: one for each family."""

    labels: Sequence[str]
    columns: Sequence[tuple[Any, ...]]
    is_unique: bool


class _Writer:
    """Writes a family."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._is_number = family.column is not None and family.column.is_number
        self._lines = FamilyLines(family)
        # A page where no target asked for buckets carries sums and counts alone, and calls the family a
        # summary, which may have those.
        kinds = ("summary" if family.kind == "histogram" else family.kind, family.kind)
        self._heads = [
            head(family.full_name, family.help, kind, is_openmetrics=is_openmetrics)
            for kind in kinds
            for is_openmetrics in (False, True)
        ]

    def by_rows(self, page: _Page) -> str:
        """The family as it stands on the page, with what describes it; empty where it has no rows."""
        rows = self.family.rows(page.snapshot)
        lines = self._lines.of_rows(rows, page.escaped, with_buckets=page.with_buckets)
        return self._heads[page.head] + lines if lines else ""

    def in_table(self, read: _Read, index: int, page: _Page) -> str:
        """The same, by the family's column in a table."""
        if not self._is_number:
            return self.by_rows(page)
        lines = self._lines.of_column(read.labels, read.columns[index], is_unique=read.is_unique)
        return self._heads[page.head] + lines if lines else ""


def _all_of(columns: Sequence[Column]) -> Callable[[Any], tuple[Any, ...]]:
    """What reads the values of these columns, fields first, from one thing of their table."""
    fields = [column.value for column in columns if isinstance(column.value, str)]
    calls = [column.value for column in columns if not isinstance(column.value, str)]
    if len(fields) < 2:  # of one field alone it would be no tuple
        calls = [*map(operator.attrgetter, fields), *calls]
        return lambda thing: tuple([call(thing) for call in calls])
    of_fields = operator.attrgetter(*fields)
    if not calls:
        return of_fields
    return lambda thing: (*of_fields(thing), *[call(thing) for call in calls])


class _TableReader:
    """Reads a table once a page, for all families that have a column in it.

    Most columns of a small exporter say what they said a page before (settings, predictions, counts of
    errors), and comparing takes a tenth of writing. What is equal in another order keeps its lines.

    families: their places on the page, and what writes them. changed: those whose column on the page that was
    read last is not what it was on the one before.
    """

    def __init__(self, table: Table, families: Sequence[tuple[int, _Writer, Column]]) -> None:
        # In the order in which _all_of reads them.
        families = sorted(families, key=lambda each: not isinstance(each[2].value, str))
        self.families = [(place, writer) for place, writer, _ in families]
        self.changed: list[int] = []
        self._table = table
        self._layout = layout_of(table.labels)
        self._values_of = _all_of([column for _, _, column in families])
        self._all = range(len(families))
        self._rows: list[Labels] | None = None
        self._labels: list[str] = []  # of these rows, as they are written
        self._is_unique = True
        self._things: list[tuple[Labels, Any]] = []  # of a table whose things last
        self._before: _Read | None = None

    def forget(self) -> None:
        """Take every column of the next page for changed."""
        self._before, self._things = None, []

    def read(self, page: _Page) -> _Read:
        """The table of this page. Raises whatever a family's value raises, which then has a defect."""
        before, self._before = self._before, None
        things = list(self._table.things(page.snapshot))
        if before is not None and self._table.is_lasting and things == self._things:
            self.changed, self._before = [], before
            return before
        rows = [row for row, _ in things]
        is_same = rows == self._rows
        labels, is_unique = (self._labels, self._is_unique) if is_same else self._written(rows, page.escaped)
        values_of = self._values_of
        columns = list(zip(*[values_of(thing) for _, thing in things], strict=True))
        read = _Read(labels, columns or [()] * len(self._all), is_unique)
        if before is not None and is_same:
            self.changed = list(itertools.compress(self._all, map(operator.ne, before.columns, read.columns)))
        else:
            self.changed = list(self._all)
        # To compare other things with those of the page before would keep a whole snapshot in memory.
        self._things = things if self._table.is_lasting else []
        self._before = read
        return read

    def _written(self, rows: list[Labels], escaped: Escaped) -> tuple[list[str], bool]:
        """The labels of these rows, and whether no two are equal; so many are kept."""
        self._rows, self._labels = None, []
        form, texts_of = self._layout.labels, self._layout.texts
        labels = [form % texts_of(row, escaped) for row in rows]
        is_unique = len(set(labels)) == len(labels)
        if len(rows) <= _MAX_KEPT_LABELS:
            self._rows, self._labels, self._is_unique = rows, labels, is_unique
        return labels, is_unique


_logged: set[str] = set()  # one line for each defect, not one for each scrape
_TABLES = "tables"  # which is no family's name


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
        # By format: the lines with places for numbers, and the names of these.
        self._forms: dict[bool, tuple[str, list[str]]] = {}

    def text(self, *, is_openmetrics: bool) -> str:
        """The families with their numbers of now."""
        form = self._forms.get(is_openmetrics)
        if form is None:
            lines = list(self._collected(is_openmetrics=is_openmetrics))
            text = "".join(line.replace("%", "%%") + (" %s\n" if name else "") for line, name in lines)
            form = self._forms[is_openmetrics] = text, [name for _, name in lines if name]
        numbers = _measured()
        return form[0] % tuple([number(numbers[name]) for name in form[1]])

    def _collected(self, *, is_openmetrics: bool) -> Iterator[tuple[str, str]]:
        escaped = Escaped()
        changing = _measured()
        for metric in self._registry.collect():
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            kind = "unknown" if metric.type == "untyped" else metric.type
            yield head(name, metric.documentation, kind, is_openmetrics=is_openmetrics), ""
            for sample in metric.samples:
                labels = ",".join(f'{key}="{escaped[value]}"' for key, value in sorted(sample.labels.items()))
                line = f"{sample.name}{f'{{{labels}}}' if labels else ''}"
                if sample.name in changing:
                    yield line, sample.name
                else:
                    yield f"{line} {number(sample.value)}\n", ""


class Exposition:
    """Writes these families page after page."""

    def __init__(self, families: Iterable[Family] = METRICS) -> None:
        self._writers = [_Writer(family) for family in families]
        self._alone: list[tuple[int, _Writer]] = []
        tables: dict[Table, list[tuple[int, _Writer, Column]]] = {}
        for place, writer in enumerate(self._writers):
            column = writer.family.column
            if column is None:
                self._alone.append((place, writer))
            else:
                tables.setdefault(column.table, []).append((place, writer, column))
        self._tables = [_TableReader(table, sharing) for table, sharing in tables.items()]
        self._process = _ThisProcess(_OWN)
        self._form: _Form | None = None
        self._texts: list[str] = []  # by family: what stood on the page before, where that is kept

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
        form = _Form([(target.name, target.histograms) for target in snapshot.targets], is_openmetrics)
        # By the configuration, not by the rows: a target that goes down must not change another one's type.
        with_buckets = any(kind == "full" for _, kind in form.histograms)
        page = _Page(snapshot, Escaped(), with_buckets, 2 * with_buckets + is_openmetrics)
        if form != self._form:
            self._forget()
        self._form = None  # until all is written: whatever stops it, nothing of it is taken for kept
        reads = self._read(page)
        held: list[str] | None = None
        if max(map(len, [read.labels for read in reads]), default=_MAX_KEPT_ROWS + 1) <= _MAX_KEPT_ROWS:
            with contextlib.suppress(Exception):  # said below, where the family that fails is written again
                held = self._kept_and_changed(page, reads)
                self._form = form
        if held is None:
            self._forget()
            held, size = [], 0
            for text in self._anew(page, reads):
                held.append(text)
                size += len(text)
                if size > _PIECE_CHARACTERS:
                    yield "".join(held).encode("utf-8", "replace")
                    held, size = [], 0
        own = self._tried("process", lambda: self._process.text(is_openmetrics=is_openmetrics))
        yield "".join([*held, own, "# EOF\n" if is_openmetrics else ""]).encode("utf-8", "replace")

    def _read(self, page: _Page) -> list[_Read]:
        """All tables; none where one of them cannot be read, so that each family is written by its rows."""
        try:
            return [table.read(page) for table in self._tables]
        except Exception:
            if _TABLES not in _logged:
                _logged.add(_TABLES)
                logger.exception("tables could not be read at once: the page takes longer to write")
            return []

    def _forget(self) -> None:
        """Let go of the page before."""
        self._texts = [""] * len(self._writers)
        for table in self._tables:
            table.forget()

    def _kept_and_changed(self, page: _Page, reads: Sequence[_Read]) -> list[str]:
        """All families, most of which say what they said a page before. Raises what one of them raises."""
        texts = self._texts
        for table, read in zip(self._tables, reads, strict=True):
            for index in table.changed:
                place, writer = table.families[index]
                texts[place] = writer.in_table(read, index, page)
        for place, writer in self._alone:
            texts[place] = writer.by_rows(page)
        return texts

    def _anew(self, page: _Page, reads: Sequence[_Read]) -> Iterator[str]:
        """All families, one after the other, of which nothing is kept. One that fails costs no other."""
        columns = {
            place: (read, index)
            for table, read in zip(self._tables, reads, strict=False)
            for index, (place, _) in enumerate(table.families)
        }
        for place, writer in enumerate(self._writers):
            if place in columns:
                write = functools.partial(writer.in_table, *columns[place], page)
            else:
                write = functools.partial(writer.by_rows, page)
            yield self._tried(writer.family.name, write)

    @staticmethod
    def _tried(family: str, write: Callable[[], str]) -> str:
        """What is written; empty where that fails, which is logged once."""
        try:
            return write()
        except Exception:  # the exposition goes on without a family that has a defect
            if family not in _logged:
                _logged.add(family)
                logger.exception("family=%s could not be exposed", family)
            return ""


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
