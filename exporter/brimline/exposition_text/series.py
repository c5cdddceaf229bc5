"""Read series with timestamps: OpenMetrics or classic text as dumps of a Prometheus hold them.

`name{labels} value timestamp`, in seconds or milliseconds, in any order; also promtool's own
`{__name__="name", …} value timestamp`. One bad line costs that line.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from brimline.exposition_text import Pairs, _any_labels, _plain_labels, parse_value

MAX_LINE_BYTES = 16384
# Seconds since the epoch have ten digits, and will have for 250 years; milliseconds have thirteen.
_LEAST_MILLISECONDS = 1e11
_HASH = ord("#")


class TooManySamples(Exception):  # noqa: N818 - what it is, not what went wrong
    """The text holds more samples than are read."""


@dataclass(slots=True)
class TextSeries:
    """One series. times: seconds since the epoch, in the order of the text."""

    name: str
    labels: Mapping[str, str]
    times: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))


class SeriesReader:
    """Collects series of the wanted names from one text after another."""

    def __init__(self, wanted: Callable[[str], bool], *, max_samples: int = 50_000_000) -> None:
        self._wanted = wanted
        self._known: dict[tuple[str, bytes], TextSeries | None] = {}
        self._pairs: Pairs = {}
        self._left = max_samples
        self.unparsed_lines = 0

    def series_by_group(self) -> dict[str, list[TextSeries]]:
        """All that was read, by the group it was read for."""
        found: dict[str, list[TextSeries]] = {}
        for (group, _), each in self._known.items():
            if each is not None:
                found.setdefault(group, []).append(each)
        return found

    def read(self, lines: Iterable[bytes], *, at: float | None = None, group: str = "") -> None:
        """Take what the lines hold. Raises TooManySamples.

        at: the time of samples without a timestamp, as on a saved page; without it they are not read. group:
        keeps apart what has the same labels, as pages of several exporters do.
        """
        known, left = self._known, self._left
        for line in lines:
            if line[0] == _HASH:
                continue
            head, brace, tail = line.rpartition(b"}")
            if not brace:
                head, _, tail = line.lstrip().partition(b" ")
            elif b"# {" in line:
                # An exemplar has braces of its own. A label may hold the same three characters.
                head, tail = _without_exemplar(line)
            try:
                series = known[group, head]
            except KeyError:
                if len(line) > MAX_LINE_BYTES or not tail.split():
                    self.unparsed_lines += bool(line.strip())
                    continue
                series = known[group, head] = self._new(head, bool(brace))
            if series is None:
                continue
            fields = tail.split()
            try:
                # As parse_value has it, which would be called twice for each of millions of lines.
                text, stamp = fields
                value, time = float(text), float(stamp)
                if b"_" in tail or len(tail) > 128:
                    raise ValueError
                if time >= _LEAST_MILLISECONDS:
                    time /= 1000
            except ValueError:
                alone = parse_value(fields[0]) if len(fields) == 1 else None
                if at is None or alone is None:
                    self.unparsed_lines += 1
                    continue
                value, time = alone, at
            series.times.append(time)
            series.values.append(value)
            left -= 1
            if left < 0:
                raise TooManySamples
        self._left = left

    def _new(self, head: bytes, has_labels: bool) -> TextSeries | None:
        """The series of a name and labels as written; None where it is not wanted or malformed."""
        raw_name, _, raw = head.partition(b"{")
        labels: Mapping[str, str] | None = None if b"{" in head and not has_labels else {}
        if has_labels:
            labels = _plain_labels(raw, self._pairs)
            if labels is None:
                found = _any_labels(raw + b"}")
                labels = None if found is None else found[0]
        if labels is None:
            self.unparsed_lines += 1
            return None
        name = raw_name.strip().decode("utf-8", "replace") or labels.get("__name__", "")
        if not self._wanted(name):
            return None
        return TextSeries(name, {key: value for key, value in labels.items() if key != "__name__"})


def _without_exemplar(line: bytes) -> tuple[bytes, bytes]:
    """Name with labels, and value with timestamp, of a line that may have an exemplar behind them."""
    _, brace, raw = line.partition(b"{")
    found = _any_labels(raw) if brace else None
    if found is None:
        head, _, tail = line.rpartition(b"}")
        return head, tail
    tail = found[1]
    head = line[: len(line) - len(tail)].rstrip()
    return head.removesuffix(b"}"), tail.split(b"#", 1)[0]
