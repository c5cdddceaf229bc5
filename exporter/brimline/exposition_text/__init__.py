"""Scan a /metrics page (classic Prometheus text or OpenMetrics) for the wanted names only.

Pages of inference servers are large (58 KB for one vLLM engine, 2 MB for many) and the client library's
parser takes 8 ms for 58 KB and gives up at the first bad line. This scanner looks at a line's name first,
reads only what is wanted, and loses one line for one bad line. The client library is the oracle of its
tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MAX_LINE_BYTES = 16384
MAX_LABELS = 64

_HASH = ord("#")

_LABEL = re.compile(rb'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"[ \t]*(?:,|(?=$))')
_NAME = re.compile(rb"[a-zA-Z_:][a-zA-Z0-9_:]*")
_ESCAPE = re.compile(r'\\(["\\n])')
_UNESCAPED = {"n": "\n", "\\": "\\", '"': '"'}


@dataclass(frozen=True, slots=True)
class Sample:
    """One line: its labels and its value."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Page:
    """The wanted samples of a page, by name, in the page's order.

    unparsed_lines: lines that do not start with a name, and wanted samples that could not be read.
    """

    samples: Mapping[str, tuple[Sample, ...]]
    unparsed_lines: int = 0

    def __contains__(self, name: str) -> bool:
        return name in self.samples

    def get(self, name: str) -> tuple[Sample, ...]:
        """All samples of that name; empty where there is none."""
        return self.samples.get(name, ())


def _parse_labels(raw: bytes) -> dict[str, str] | None:
    """Labels between the braces, unescaped; None where they are malformed."""
    labels: dict[str, str] = {}
    position = 0
    end = len(raw)
    while position < end:
        match = _LABEL.match(raw, position)
        if match is None:
            return {} if not raw.strip(b" \t") else None
        name = match.group(1).decode()
        if name in labels or len(labels) >= MAX_LABELS:
            return None
        value = match.group(2).decode("utf-8", "replace")
        if "\\" in value:
            value = _ESCAPE.sub(lambda escape: _UNESCAPED[escape.group(1)], value)
        labels[name] = value
        position = match.end()
    return labels


def _find_label_end(line: bytes, start: int) -> int:
    """Index of the brace that closes the labels opened at start; -1 where there is none."""
    if b"\\" not in line:
        # Without escapes, a brace inside a value stands after an odd number of quotes.
        position = line.find(b"}", start)
        while position >= 0 and line.count(b'"', start, position) % 2:
            position = line.find(b"}", position + 1)
        return position
    quoted = escaped = False
    for index in range(start, len(line)):
        byte = line[index]
        if escaped:
            escaped = False
        elif byte == 0x5C and quoted:
            escaped = True
        elif byte == 0x22:
            quoted = not quoted
        elif byte == 0x7D and not quoted:
            return index
    return -1


def parse_value(text: bytes) -> float | None:
    """A sample's value; None where it is not a number as the exposition formats write them."""
    if b"_" in text or len(text) > 64:
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _parse_sample(rest: bytes, label_cache: dict[bytes, dict[str, str] | None]) -> Sample | None:
    """The sample behind a name: `{labels} value …` or ` value …`; None where it is malformed."""
    labels: dict[str, str] | None = {}
    if rest[:1] == b"{":
        close = _find_label_end(rest, 1)
        if close < 0:
            return None
        raw = rest[1:close]
        if raw in label_cache:
            labels = label_cache[raw]
        else:
            labels = label_cache[raw] = _parse_labels(raw)
        rest = rest[close + 1 :]
    fields = rest.split(b"#", 1)[0].split(None, 3)
    if labels is None or not 1 <= len(fields) <= 2:
        return None
    value = parse_value(fields[0])
    return None if value is None else Sample(labels, value)


def scan(body: bytes, wanted: Iterable[bytes]) -> Page:
    """The samples of `body` whose names are in `wanted` (exact sample names, such as `x_total`, `x_bucket`).

    Never raises; time is linear in the body. Exemplars and timestamps are ignored. A label value that is not
    UTF-8 is read with replacement characters.
    """
    names = wanted if isinstance(wanted, set | frozenset) else frozenset(wanted)
    found: dict[bytes, list[Sample]] = {}
    label_cache: dict[bytes, dict[str, str] | None] = {}
    others: set[bytes] = set()  # well-formed names that nobody wants
    unparsed = 0
    for line in body.split(b"\n"):
        if not line or line[0] == _HASH:
            continue
        brace = line.find(b"{")
        name = line[:brace] if brace > 0 else line
        if name in others:
            continue
        if name not in names:
            # No labels, or blanks around the name: the name is the first word.
            words = name.split(None, 1)
            if not words or words[0][:1] in (b"#", b"{"):
                continue  # a blank line, an indented comment, or a quoted UTF-8 name, which no engine uses
            name = words[0]
            if name not in names:
                if name not in others:
                    if _NAME.fullmatch(name):
                        others.add(name)
                    else:
                        unparsed += 1
                continue
        start = line.index(name) + len(name)
        rest = line[start:].lstrip(b" \t") if line[start : start + 1] in (b" ", b"\t", b"{") else b""
        sample = _parse_sample(rest, label_cache) if len(line) <= MAX_LINE_BYTES else None
        if sample is None:
            unparsed += 1
        else:
            found.setdefault(name, []).append(sample)
    return Page({name.decode(): tuple(samples) for name, samples in found.items()}, unparsed)


def families(body: bytes) -> set[str]:
    """Names of all samples on a page, with the suffixes that they carry."""
    names = set()
    for line in body.split(b"\n"):
        if line[:1] != b"#" and (match := _NAME.match(line)):
            names.add(match.group(0).decode())
    return names


def looks_complete(body: bytes, content_type: str) -> bool:
    """True where the page's last byte shows that nothing was cut off.

    An answer that ends with the connection may be cut anywhere, and `12345678` cut to `1234` still parses.
    Classic text ends with a newline; OpenMetrics ends with `# EOF` (the newline after it is optional).
    """
    if "openmetrics" in content_type.lower():
        return body.endswith((b"\n# EOF\n", b"\n# EOF")) or body in (b"# EOF\n", b"# EOF")
    return body.endswith(b"\n")
