"""Scan a /metrics page (classic Prometheus text or OpenMetrics) for the wanted names only.

Pages of inference servers are large (58 KB for one vLLM engine, 2 MB for many) and the client library's
parser takes 8 ms for 58 KB and gives up at the first bad line. This scanner looks at a line's name first,
reads only what is wanted, and loses one line for one bad line. The client library is the oracle of its
tests.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

MAX_LINE_BYTES = 16384
MAX_LABELS = 64

# What one page may hold, so that 16 MiB of rubbish cost neither seconds nor hundreds of MiB.
# Lines of 33 bytes, half a million of them, fill 16 MiB; those of vLLM 0.32 have 91 bytes, those of Ray 237.
MAX_LINES = 500_000
# 256 ranks with 195 wanted samples each, and five labels a sample: a rank of vLLM 0.32 has 120 and three.
MAX_SAMPLES = 50_000
MAX_PAGE_LABELS = 250_000
# Names that nobody wants and pairs of label and value, as far as they are remembered. A page of vLLM 0.32 has
# 130 names, and with 256 ranks it would have some 400 pairs.
MAX_NAMES = 10_000
MAX_PAIRS = 20_000

_HASH = ord("#")
_UNDERSCORE = ord("_")  # a character is found in bytes by its number ten times as fast as by itself

_LABEL = re.compile(
    rb'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"([^"\\]*+(?:\\.[^"\\]*+)*+)"[ \t]*(?:,|(?=}))'
)
_PLAIN_LABEL = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*)="([^"\\]*)')
_CLOSE = re.compile(rb"[ \t]*}")
_NAME = re.compile(rb"[a-zA-Z_:][a-zA-Z0-9_:]*")

Pairs = dict[bytes, tuple[str, str]]  # `name="value` as written → name, value

# Bytes of labels that are remembered as they were written, all of a line together, and for how many pages.
# As mappings they take some six times as much, twice.
MAX_REMEMBERED_BYTES = 1 << 20
REMEMBERED_PAGES = 64
# The same for names, of which a page of vLLM 0.32 has 4 KB; for so many sets of wanted ones, two an engine.
MAX_REMEMBERED_NAME_BYTES = 32 << 10
MAX_REMEMBERED_WANTED = 32


class _Remembered:
    """What was seen before, as a server sends the same again: labels, and names that nobody wants.

    What changes leaves nothing behind: labels that did not come again within REMEMBERED_PAGES to twice as
    many are forgotten, and names once they are too many.
    """

    def __init__(self) -> None:
        self.young: dict[bytes, Mapping[str, str]] = {}
        self.old: dict[bytes, Mapping[str, str]] = {}
        self._bytes_held = 0
        self._pages = 0
        self._unwanted: dict[frozenset[bytes], frozenset[bytes]] = {}

    def next_page(self) -> None:
        self._pages += 1
        if self._pages >= REMEMBERED_PAGES or self._bytes_held > MAX_REMEMBERED_BYTES:
            self.young, self.old = {}, self.young
            self._bytes_held = self._pages = 0

    def add(self, raw: bytes, labels: Mapping[str, str]) -> None:
        if self._bytes_held <= MAX_REMEMBERED_BYTES:
            self._bytes_held += len(raw) + 64
            self.young[raw] = labels

    def unwanted(self, wanted: frozenset[bytes]) -> frozenset[bytes]:
        """Well-formed names of pages before that are none of the wanted ones."""
        return self._unwanted.get(wanted, frozenset())

    def keep_unwanted(self, wanted: frozenset[bytes], names: set[bytes]) -> None:
        """Take the place of those of the pages before."""
        if sum(map(len, names)) > MAX_REMEMBERED_NAME_BYTES:
            self._unwanted.pop(wanted, None)
        elif wanted in self._unwanted or len(self._unwanted) < MAX_REMEMBERED_WANTED:
            self._unwanted[wanted] = frozenset(names)


_remembered = _Remembered()


class Sample(NamedTuple):
    """One line: its labels and its value. A tuple, which is made in half the time: a page has hundreds."""

    labels: Mapping[str, str]
    value: float


class Page(msgspec.Struct, frozen=True):
    """The wanted samples of a page, by name, in the page's order.

    unparsed_lines: lines that do not start with a name, and wanted samples that could not be read.
    dropped_samples: wanted samples, or lines of whatever kind, beyond what one page may hold.
    """

    samples: Mapping[str, tuple[Sample, ...]]
    unparsed_lines: int = 0
    dropped_samples: int = 0

    def __contains__(self, name: str) -> bool:
        return name in self.samples

    def get(self, name: str) -> tuple[Sample, ...]:
        """All samples of that name; empty where there is none."""
        return self.samples.get(name, ())


def _unescape(value: str) -> str:
    return "\\".join(part.replace(r"\"", '"').replace(r"\n", "\n") for part in value.split(r"\\"))


def _plain_labels(raw: bytes, pairs: Pairs) -> dict[str, str] | None:
    """Labels written `a="x",b="y"`, as servers write them; None for every other way, right or wrong.

    pairs: what was read before; model, rank and bucket bounds come again on line after line. Where each
    piece is a whole pair, all quotes are paired, so the brace behind `raw` stands in no label value.
    """
    pieces = raw[:-1].split(b'",')
    if raw[-1:] != b'"' or len(pieces) > MAX_LABELS:
        return None
    labels = {}
    for piece in pieces:
        pair = pairs.get(piece)
        if pair is None:
            match = _PLAIN_LABEL.fullmatch(piece)
            if match is None:
                return None
            pair = match.group(1).decode(), match.group(2).decode("utf-8", "replace")
            if len(pairs) < MAX_PAIRS:
                pairs[piece] = pair
        labels[pair[0]] = pair[1]
    return labels if len(labels) == len(pieces) else None


def _any_labels(text: bytes) -> tuple[dict[str, str], bytes] | None:
    """Labels of `text`, which begins behind their opening brace, and what follows; None if malformed."""
    labels: dict[str, str] = {}
    position = 0
    while (match := _LABEL.match(text, position)) is not None:
        name = match.group(1).decode()
        if name in labels or len(labels) >= MAX_LABELS:
            return None
        value = match.group(2).decode("utf-8", "replace")
        if "\\" in value:
            value = _unescape(value)
        labels[name] = value
        position = match.end()
    close = _CLOSE.match(text, position)
    return None if close is None else (labels, text[close.end() :])


def parse_value(text: bytes) -> float | None:
    """A sample's value; None where it is not a number as the exposition formats write them."""
    if _UNDERSCORE in text or len(text) > 64:
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _number(text: bytes) -> float | None:
    """The value where nothing but it stands there, with blanks around it."""
    if len(text) > 64 or _UNDERSCORE in text:
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _value(text: bytes) -> float | None:
    """The value at the start of `text`, before a timestamp and an exemplar; None where there is none."""
    if (number := _number(text)) is not None:
        return number
    fields = text.split(b"#", 1)[0].split(None, 3)
    return parse_value(fields[0]) if 1 <= len(fields) <= 2 else None


def _labelled_sample(text: bytes, pairs: Pairs) -> Sample | None:
    """The sample of a line, from behind its opening brace; None where it is malformed."""
    raw, _, rest = text.partition(b"}")
    labels = _remembered.old.get(raw) or _plain_labels(raw, pairs)
    if labels is None:
        labels_and_rest = _any_labels(text)
        if labels_and_rest is None:
            return None
        labels, rest = labels_and_rest
    else:
        _remembered.add(raw, labels)
    value = _value(rest)
    return None if value is None else Sample(labels, value)


def _plain_sample(text: bytes) -> Sample | None:
    """The sample of a line without labels, from behind its name; None where it is malformed."""
    value = _value(text)
    return None if value is None else Sample({}, value)


def scan(body: bytes, wanted: Iterable[bytes]) -> Page:
    """The samples of `body` whose names are in `wanted` (exact sample names, such as `x_total`, `x_bucket`).

    Never raises; time is linear in the body, and memory is bounded by the MAX_… of this module. Exemplars
    and timestamps are ignored. A label value that is not UTF-8 is read with replacement characters.
    """
    wanted = frozenset(wanted)
    found: dict[bytes, list[Sample]] = {}
    pairs: Pairs = {}
    _remembered.next_page()
    remembered = _remembered.young.get
    new = tuple.__new__  # Sample's own is a function of Python's
    known = _remembered.unwanted(wanted)
    others = set(known)
    find = found.get
    unparsed = dropped = 0
    samples_left, labels_left = MAX_SAMPLES, MAX_PAGE_LABELS
    lines = io.BytesIO(body)  # line by line: a list of all lines would be larger than the body
    for line in itertools.islice(lines, MAX_LINES):
        if line[0] == _HASH:
            continue
        name, brace, behind_brace = line.partition(b"{")
        if name in others:
            continue
        rows = find(name) if brace else None
        behind_name = b""
        if rows is None and brace and name in wanted:
            rows = found[name] = []
        if rows is None:
            # No labels, or blanks around the name: the name is the first word.
            words = name.split(None, 1)
            if not words or words[0][:1] == b"#":
                continue  # a blank line, an indented comment, or a quoted UTF-8 name, which no engine uses
            name, behind_name = words[0], words[1] if len(words) > 1 else b""
            if name not in wanted:
                if name not in others:
                    if not _NAME.fullmatch(name):
                        unparsed += 1
                    elif len(others) < MAX_NAMES:
                        others.add(name)
                continue
            rows = found.setdefault(name, [])
        if len(line) > MAX_LINE_BYTES:
            unparsed += 1
            continue
        if samples_left <= 0 or labels_left <= 0:
            dropped += 1
            continue
        if brace and not behind_name:
            # Most lines: labels that were seen before, and a number alone.
            raw, _, rest = behind_brace.partition(b"}")
            labels = remembered(raw)
            if labels is not None and len(rest) <= 64 and _UNDERSCORE not in rest:
                try:
                    rows.append(new(Sample, (labels, float(rest))))
                except ValueError:
                    pass  # a timestamp or an exemplar, which the other way reads
                else:
                    samples_left -= 1
                    labels_left -= len(labels)
                    continue
            sample = _labelled_sample(behind_brace, pairs)
        else:
            sample = _plain_sample(behind_name)
        if sample is None:
            unparsed += 1
            continue
        rows.append(sample)
        samples_left -= 1
        labels_left -= len(sample.labels)
    dropped += body.count(b"\n", lines.tell())
    if len(others) > len(known):
        _remembered.keep_unwanted(wanted, others)
    return Page({name.decode(): tuple(rows) for name, rows in found.items() if rows}, unparsed, dropped)


def families(body: bytes) -> set[str]:
    """Names of the samples on a page, with the suffixes that they carry; the first MAX_NAMES of them."""
    names: set[bytes] = set()
    for line in itertools.islice(io.BytesIO(body), MAX_LINES):
        if line[0] != _HASH and (match := _NAME.match(line)):
            names.add(match.group())
            if len(names) >= MAX_NAMES:
                break
    return {name.decode() for name in names}


def looks_complete(body: bytes, content_type: str) -> bool:
    """True where the page's last byte shows that nothing was cut off.

    An answer that ends with the connection may be cut anywhere, and `12345678` cut to `1234` still parses.
    Classic text ends with a newline; OpenMetrics ends with `# EOF` (the newline after it is optional).
    """
    if "openmetrics" in content_type.lower():
        return body.endswith((b"\n# EOF\n", b"\n# EOF")) or body in (b"# EOF\n", b"# EOF")
    return body.endswith(b"\n")
