"""Seconds of random pages, the same ones in each run; `make fuzz` reads more of them.

Pages of at most 2 KiB: what a scanner gets wrong, it gets wrong on a small page too, and more of these fit
into a minute. How many there were is told at the end of the run.
"""

from __future__ import annotations

import json
import math
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families as parse_classic

from brimline.engines import ENGINES, adapter_of, describe_foreign_page, engines_on, evidence_of
from brimline.engines.families import MAX_LABEL_CHARS
from brimline.exposition import render
from brimline.exposition_text import families, looks_complete, scan
from brimline.readings import Snapshot, TargetSnapshot

CAPTURES = Path(__file__).parent.parent.parent / "captures"
MAX_BYTES = 2048
SEED = 20_261_130
# No page may take longer, whatever stands on it; the usual one takes a few ten microseconds. A busy machine
# takes more of the processor for the same work, and the collector of garbage comes when it comes.
MOST_SECONDS = 0.25

Mutator = Callable[[random.Random, bytes], bytes]

LABELS = ("model_name", "model", "engine", "le", "pid", "finished_reason", "engine_index", "type", "job", "x")
NUMBERS = ("0", "1", "0.5", "-1", "1e308", "1e999", "NaN", "+Inf", "-Inf", "12345678", "1_0", "0x1", "", "١")
PIECES = (
    b"{", b"}", b'"', b"\\", b'\\"', b"\\n", b",", b"=", b" ", b"\t", b"\n", b"\r", b"\0", b"#", b"# {",
    b"# EOF\n", b"<html>", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xae", b"\xed\xa0\x80", b'{x="', b'"} 1\n',
    b" 1700000000", b"NaN", b"# TYPE a counter\n", b'{"vllm:x",a="b"} 1\n', b"_total", b"_bucket",
    b'le="', b"}{" * 40, b"\\\\" * 40,
)  # fmt: skip


def written(rng: random.Random, name: str) -> str:
    """A line as a server might write it."""
    labels = ",".join(
        f'{label}="{rng.choice(("m", "0", "1", "stop", "0.001", "+Inf", "a b", "é", "q", ""))}"'
        for label in rng.sample(LABELS, rng.randrange(4))
    )
    return f"{name}{{{labels}}} {rng.choice(NUMBERS)}" if labels else f"{name} {rng.randrange(10**6)}.0"


def seeds(rng: random.Random) -> list[bytes]:
    """Pieces of real pages, and for each engine pages of the names that it is read by."""
    found = []
    for file in sorted(CAPTURES.glob("*/*.prom")):
        lines = file.read_bytes().splitlines(keepends=True)
        found += [b"".join(lines[start : start + 14])[:MAX_BYTES] for start in range(0, len(lines), 14)]
    for adapter in ENGINES.values():
        names = sorted(name.decode() for name in adapter.wanted)
        for _ in range(12 if names else 0):
            lines_of = [written(rng, rng.choice(names)) for _ in range(20)]
            found.append(("\n".join(lines_of) + "\n").encode()[:MAX_BYTES])
    models = [
        {"name": "m:8b", "model": "m:8b", "size": 5 << 30, "size_vram": 5 << 30, "context_length": 4096}
    ]
    found.append(json.dumps({"models": models}).encode())
    return found


def cut(rng: random.Random, page: bytes) -> tuple[int, int]:
    start = rng.randrange(len(page) + 1)
    return start, min(start + int(rng.expovariate(0.05)), len(page))


def without_a_piece(rng: random.Random, page: bytes) -> bytes:
    start, end = cut(rng, page)
    return page[:start] + page[end:]


def with_a_piece_twice(rng: random.Random, page: bytes) -> bytes:
    start, end = cut(rng, page)
    return page[:end] + page[start:end] * rng.choice((1, 1, 2, 30)) + page[end:]


def with_a_piece_more(rng: random.Random, page: bytes) -> bytes:
    start, _ = cut(rng, page)
    return page[:start] + rng.choice(PIECES) + page[start:]


def with_other_bytes(rng: random.Random, page: bytes) -> bytes:
    other = bytearray(page)
    for _ in range(rng.choice((1, 2, 8))):
        if other:
            other[rng.randrange(len(other))] = rng.randrange(256)
    return bytes(other)


def in_another_order(rng: random.Random, page: bytes) -> bytes:
    lines = page.split(b"\n")
    rng.shuffle(lines)
    return b"\n".join(lines)


def cut_off(rng: random.Random, page: bytes) -> bytes:
    return page[: rng.randrange(len(page) + 1)]


# What endpoints with settings answer, in the form in which an engine that is read does.
DOCUMENTS: dict[str, object] = {
    "/version": {"version": "0.33.0"},
    "/api/version": {"version": "0.9.0"},
    "/v1/models": {"data": [{"id": "m", "owned_by": "vllm", "root": "/m", "max_model_len": 4096}]},
    "/props": {"build_info": "b7000", "total_slots": 2, "model_path": "/m.gguf", "model_alias": "m",
               "default_generation_settings": {"n_ctx": 2048}},
    "/slots": [{"id": 0, "n_ctx": 2048, "is_processing": True, "n_prompt_tokens": 7}] * 2,
    "/info": {"model_id": "m", "version": "3.0", "max_total_tokens": 4096, "max_input_tokens": 4000},
    "/server_info": {"version": "0.5", "model_path": "/m", "max_total_num_tokens": 4096, "tp_size": 1,
                     "dp_size": 1, "page_size": 1, "context_length": 4096,
                     "internal_states": [{"memory_usage": {"kvcache": 1.5, "weight": 2.5, "graph": 0.5}}]},
}  # fmt: skip
ODD_VALUES: tuple[object, ...] = (
    None, True, -1, 0, 10**400, 1e308, float("inf"), float("nan"), "", "9" * 5000, "m\n\u202e", "\ud800", [],
    {}, [[]], {"a": 1}, [None, 7, {"id": 5}],
)  # fmt: skip


def odd(rng: random.Random, value: object) -> object:
    """The document with some of its values replaced by others that JSON can hold."""
    if rng.random() < 0.1:
        return rng.choice(ODD_VALUES)
    if isinstance(value, dict):
        return {key: odd(rng, inner) for key, inner in value.items()}
    return [odd(rng, inner) for inner in value] if isinstance(value, list) else value


MUTATORS: tuple[Mutator, ...] = (
    without_a_piece, with_a_piece_twice, with_a_piece_more, with_a_piece_more, with_other_bytes,
    in_another_order, cut_off,
)  # fmt: skip


def pages(seconds: float) -> Iterator[tuple[random.Random, bytes]]:
    """Mutated pages, and what chance goes on with, until the time is over."""
    rng = random.Random(SEED)
    known = seeds(rng)
    over = time.thread_time() + seconds  # so that a busy machine reads as many of them
    while time.thread_time() < over:
        for _ in range(50):  # a look at the clock is worth a page
            page = rng.choice(known)
            if rng.random() < 0.1:
                page = page[: len(page) // 2] + rng.choice(known)
            for _ in range(rng.choice((1, 1, 2, 4))):
                page = rng.choice(MUTATORS)(rng, page)[:MAX_BYTES]
            yield rng, page


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> float:
    """A third of what was asked for: there are three of these tests."""
    asked: float = request.config.getoption("--fuzz-seconds")
    return asked / 3


def test_no_page_raises_or_takes_long(seconds: float, record_property: Callable[[str, object], None]) -> None:
    wanted = frozenset().union(*(adapter.wanted for adapter in ENGINES.values()))
    count, slowest = 0, 0.0
    for _, page in pages(seconds):
        begun = time.thread_time()
        found = scan(page, wanted)
        families(page)
        looks_complete(page, "text/plain")
        if count % 10 == 0:  # what is asked once for each server, and takes longer
            engines_on(page)
            describe_foreign_page(page)
        slowest = max(slowest, time.thread_time() - begun)
        count += 1

        lines = page.count(b"\n") + 1
        assert found.unparsed_lines + found.dropped_samples <= lines, page
        assert sum(map(len, found.samples.values())) <= lines, page
        assert slowest < MOST_SECONDS, page

    record_property("pages scanned", f"{count:,}, the slowest in {slowest * 1000:.1f} ms")
    assert count > 100


def test_whatever_a_page_holds_each_engine_reads_it_and_what_is_shown_of_it_is_well_formed(
    seconds: float, record_property: Callable[[str, object], None]
) -> None:
    count = 0
    engines = sorted(ENGINES)
    for rng, page in pages(seconds):
        adapter = adapter_of(rng.choice(engines), page)
        documents = {path: odd(rng, DOCUMENTS.get(path, {})) for path in (e.path for e in adapter.endpoints)}
        assert json.loads(json.dumps(documents)) is not None  # they could have come over the wire
        reading = adapter.read(evidence_of(adapter, page, documents))
        target = TargetSnapshot(name="t", url="http://t", up=True, reading=reading, histograms="full")
        body, _ = render(Snapshot(time=0.0, targets=(target,)))
        count += 1

        assert body.endswith(b"\n"), page
        if count % 20 == 0:  # the oracle takes longer than all else
            for family in parse_classic(body.decode()):
                for sample in family.samples:
                    assert not math.isnan(sample.value), page
                    for value in sample.labels.values():
                        assert len(value) <= MAX_LABEL_CHARS, page
                        assert value.isprintable(), page

    record_property("pages read and shown", f"{count:,}")
    assert count > 100


# The format's own grammar of a line: the client library takes lines that are none. Nor is a number of more
# characters than the scanner takes for one.
LINE = re.compile(
    r"""[ \t]*(\#.*|[a-zA-Z_:][\w:]*[ \t]*
        (\{([ \t]*[a-zA-Z_]\w*[ \t]*=[ \t]*"([^"\\]|\\.)*"[ \t]*(,|(?=\})))*[ \t]*\})?
        [ \t]*(?<![\w:])[-+.\w]{1,64}([ \t]+[-+\d]+)?[ \t]*)?""",
    re.ASCII | re.VERBOSE,
)


def oracle(
    parse: Callable[[str], Iterable[Metric]], text: str
) -> dict[str, list[tuple[dict[str, str], str]]] | None:
    """The samples that the client library finds, by name; None where it takes the text for malformed."""
    found: dict[str, list[tuple[dict[str, str], str]]] = {}
    try:
        for family in parse(text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((dict(sample.labels), str(float(sample.value))))
    except (ValueError, KeyError, IndexError, AttributeError, TypeError):
        return None
    return found


def test_where_the_client_library_accepts_a_page_or_a_line_the_values_are_the_same(
    seconds: float, record_property: Callable[[str, object], None]
) -> None:
    wanted = frozenset().union(*(adapter.wanted for adapter in ENGINES.values()))
    compared = {"pages": 0, "lines": 0}
    for rng, page in pages(seconds):
        try:
            text = page.decode()
        except UnicodeDecodeError:
            continue
        if any(len(line.splitlines()) > 1 for line in text.split("\n")):
            continue  # the client library also ends a line where the format does not
        if not all(map(LINE.fullmatch, text.split("\n"))):
            continue  # and it takes more for a number, and more behind it, than the format knows
        is_whole = rng.random() < 0.5
        if not is_whole:
            text = rng.choice(text.split("\n")) + "\n"
        expected = oracle(parse_classic, text)
        if expected is None:
            continue
        compared["pages" if is_whole else "lines"] += 1
        found = scan(text.encode(), wanted)
        said = {
            name: [(dict(sample.labels), str(sample.value)) for sample in samples]
            for name, samples in found.samples.items()
        }

        assert said == {name: rows for name, rows in expected.items() if name.encode() in wanted}, text

    record_property(
        "compared with the client library", f"{compared['pages']:,} pages and {compared['lines']:,} lines"
    )
    assert compared["pages"] > 10
