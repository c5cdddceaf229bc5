"""The page scanner, against the exposition formats' own rules and against the client library's parser."""

from __future__ import annotations

import gc
import math
import time
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_classic

from brimline import exposition_text
from brimline.exposition_text import (
    MAX_LABELS,
    MAX_LINES,
    MAX_NAMES,
    MAX_PAGE_LABELS,
    MAX_SAMPLES,
    Sample,
    families,
    looks_complete,
    scan,
)


def values(body: str, *names: str) -> dict[str, tuple[Sample, ...]]:
    return dict(scan(body.encode(), [name.encode() for name in names]).samples)


def test_wanted_names_are_read_and_others_passed_over() -> None:
    page = scan(b'# HELP a x\n# TYPE a gauge\na{x="1"} 2.5\nab 3\nb 4\n', [b"a", b"b"])

    assert page.samples == {"a": (Sample({"x": "1"}, 2.5),), "b": (Sample({}, 4.0),)}
    assert page.unparsed_lines == 0


def test_one_bad_line_costs_one_line() -> None:
    page = scan(b'a 1\na{x="1} 2\na{x="1"} nope\n<html>\na{x="2"} 3\n', [b"a"])

    assert page.samples == {"a": (Sample({}, 1.0), Sample({"x": "2"}, 3.0))}
    assert page.unparsed_lines == 3


def test_label_values_are_unescaped() -> None:
    assert values(r'a{x="q\"q",y="b\\n",z="l\nl",w="}"} 1', "a") == {
        "a": (Sample({"x": 'q"q', "y": r"b\n", "z": "l\nl", "w": "}"}, 1.0),)
    }


def test_a_brace_or_hash_inside_a_label_value_ends_nothing() -> None:
    assert values('a{x="}{",y="#"} 7', "a") == {"a": (Sample({"x": "}{", "y": "#"}, 7.0),)}


def test_timestamps_and_exemplars_are_ignored() -> None:
    body = 'a_total{x="1"} 5 1700000000 # {trace_id="ab"} 0.5 1700000000\na_total 6 # {trace_id="cd"} 1\n'

    assert values(body, "a_total") == {"a_total": (Sample({"x": "1"}, 5.0), Sample({}, 6.0))}


def test_blanks_around_the_name_and_the_labels_are_legal() -> None:
    assert values(' a 1\n\ta\t2\na {x="1", y = "2" ,} 3\n', "a") == {
        "a": (Sample({}, 1.0), Sample({}, 2.0), Sample({"x": "1", "y": "2"}, 3.0))
    }


def test_numbers_that_only_python_reads_are_refused() -> None:
    page = scan(b"a 1_000\na 0x10\na +Inf\na NaN\n", [b"a"])

    assert page.get("a")[0].value == math.inf
    assert math.isnan(page.get("a")[1].value)
    assert page.unparsed_lines == 2


def test_duplicate_label_names_are_a_bad_line() -> None:
    assert scan(b'a{x="1",x="2"} 1\n', [b"a"]).unparsed_lines == 1


def test_an_overlong_line_is_a_bad_line() -> None:
    page = scan(b'a{x="' + b"y" * 20000 + b'"} 1\na 2\n', [b"a"])

    assert page.samples == {"a": (Sample({}, 2.0),)}
    assert page.unparsed_lines == 1


@pytest.mark.parametrize(
    ("written", "labels"),
    [
        ("{}", {}),
        ("{ }", {}),
        ('{x="1",}', {"x": "1"}),
        ('{x="1",y=""}', {"x": "1", "y": ""}),
        ('{x="",y=","}', {"x": "", "y": ","}),
        ('{x="a\\",b",y="}"}', {"x": 'a",b', "y": "}"}),
        (r'{x="\\\\n\\\n\q"}', {"x": "\\\\n\\\n\\q"}),
        ('{x=",y=",z="}",w="{"}', {"x": ",y=", "z": "}", "w": "{"}),
    ],
)
def test_labels_are_read_however_they_are_written(written: str, labels: dict[str, str]) -> None:
    assert values(f"a{written} 1\n", "a") == {"a": (Sample(labels, 1.0),)}


@pytest.mark.parametrize(
    "written", ["{", '{x="1"', "{,}", '{x="1",,}', '{x="1" y="2"}', "{x=1}", '{1x="1"}', '{"x"}']
)
def test_malformed_labels_are_a_bad_line(written: str) -> None:
    page = scan(f"a{written} 1\n".encode(), [b"a"])

    assert (page.samples, page.unparsed_lines) == ({}, 1)


@pytest.mark.parametrize(("labels", "unparsed"), [(MAX_LABELS, 0), (MAX_LABELS + 1, 1)])
@pytest.mark.parametrize("separator", [",", ", "])
def test_a_line_with_too_many_labels_is_a_bad_line(labels: int, unparsed: int, separator: str) -> None:
    inside = separator.join(f'l{i}="{i}"' for i in range(labels))

    assert scan(f"a{{{inside}}} 1\n".encode(), [b"a"]).unparsed_lines == unparsed


# --- what is remembered


def test_a_name_that_was_not_wanted_is_read_as_soon_as_it_is() -> None:
    body = b'a{x="1"} 1\nb{x="1"} 2\n'

    found = [scan(body, wanted).samples.keys() for wanted in ([b"a"], [b"b"], [b"a"], [b"a", b"b"])]

    assert [set(names) for names in found] == [{"a"}, {"b"}, {"a"}, {"a", "b"}]


def test_bad_names_count_on_each_page() -> None:
    body = b'good{x="1"} 1\nb-d{x="1"} 2\n'

    assert [scan(body, [b"a"]).unparsed_lines for _ in range(3)] == [1, 1, 1]


def test_names_that_change_with_each_page_leave_little_behind() -> None:
    def page(number: int) -> bytes:
        return b"".join(b'name_%d_%d{x="1"} 1\n' % (number, line) for line in range(5_000))

    scan(page(0), [b"a"])
    tracemalloc.start()
    try:
        for number in range(1, 20):
            scan(page(number), [b"a"])
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert held < 256 << 10


# --- limits


def test_wanted_samples_beyond_the_limit_are_dropped_and_counted() -> None:
    page = scan(b"a 1\n" * (MAX_SAMPLES - 1) + b"b 2\n" * 4 + b"a nope\n", [b"a", b"b"])

    assert (len(page.get("a")), len(page.get("b"))) == (MAX_SAMPLES - 1, 1)
    assert page.dropped_samples == 4
    assert page.unparsed_lines == 0


def test_samples_whose_labels_go_beyond_the_limit_are_dropped_and_counted() -> None:
    inside = ",".join(f'l{i}="{i}"' for i in range(50))
    fitting = MAX_PAGE_LABELS // 50

    page = scan(f"a{{{inside}}} 1\n".encode() * (fitting + 3), [b"a"])

    assert len(page.get("a")) == fitting
    assert page.dropped_samples == 3


def test_lines_beyond_the_limit_are_counted_without_being_read() -> None:
    page = scan(b"b 1\n" * MAX_LINES + b"a 1\n" * 3, [b"a"])

    assert (page.samples, page.dropped_samples) == ({}, 3)


def test_a_wanted_name_is_found_behind_any_number_of_other_names() -> None:
    body = "".join(f"n{i} 1\n" for i in range(MAX_NAMES + 5)) + "a 1\n<html>\n"

    page = scan(body.encode(), [b"a"])

    assert page.get("a") == (Sample({}, 1.0),)
    assert (page.unparsed_lines, page.dropped_samples) == (1, 0)


def test_families_are_the_first_names_of_a_page() -> None:
    body = "# TYPE a gauge\na 1\n" + "".join(f'n{i}_total{{x="1"}} 1\n' for i in range(MAX_NAMES + 5))

    names = families(body.encode())

    assert len(names) == MAX_NAMES
    assert {"a", "n0_total"} <= names


def best_cpu(body: bytes) -> float:
    """CPU seconds of reading a page, the least of several."""
    taken = []
    gc.disable()  # its cost depends on what the whole test run has piled up
    try:
        for _ in range(5):
            begun = time.process_time()
            scan(body, [b"a"])
            families(body)
            taken.append(time.process_time() - begun)
    finally:
        gc.enable()
    return min(taken)


# One line of about so many bytes.
HOSTILE_LINES: dict[str, Callable[[int], str]] = {
    "braces": lambda size: 'a{x="' + "}" * size + '"} 1\n',
    "braces, unclosed": lambda size: 'a{x="' + "}" * size,
    "braces outside": lambda size: "a" + "{}" * (size // 2) + " 1\n",
    "quotes": lambda size: 'a{x="' + '"' * size + '"} 1\n',
    "quoted braces": lambda size: "a{" + '"}"' * (size // 3) + "} 1\n",
    "escapes": lambda size: 'a{x="' + "\\\\" * (size // 2) + '"} 1\n',
    "escaped quotes": lambda size: 'a{x="' + '\\"}' * (size // 3) + '"} 1\n',
    "escapes, unclosed": lambda size: 'a{x="' + "\\\\" * (size // 2),
    "blanks": lambda size: "a{" + " " * size + "x",
    "commas": lambda size: 'a{x="' + '",' * (size // 2) + "} 1\n",
    "label name": lambda size: "a{" + "x" * size + "} 1\n",
    "labels": lambda size: "a{" + ",".join(f'l{i}="}}"' for i in range(size // 10)) + "} 1\n",
    "number": lambda size: "a " + "1" * size + "\n",
    "fields": lambda size: "a" + " 1" * (size // 2) + "\n",
    "hashes": lambda size: 'a{x="' + "#" * size + '"} 1 ' + "#" * size + "\n",
    "name": lambda size: "a" * size + " 1\n",
    "blanks before": lambda size: " " * size + "a 1\n",
}


@pytest.mark.parametrize("shape", HOSTILE_LINES)
def test_time_grows_no_faster_than_a_hostile_line(shape: str) -> None:
    line = HOSTILE_LINES[shape]
    quarter, whole = ("\n".join([line(size)] * 60).encode() for size in (1750, 7000))

    # Quadratic time would be 16 times as long; a busy machine is given the rest.
    assert best_cpu(whole) <= 10 * best_cpu(quarter) + 0.005


@pytest.mark.parametrize("shape", HOSTILE_LINES)
def test_an_endless_line_costs_next_to_nothing(shape: str) -> None:
    body = HOSTILE_LINES[shape](1 << 20).encode()

    assert best_cpu(body) < 0.5


HOSTILE_PAGES: dict[str, Callable[[int], str]] = {
    "one sample": lambda size: "a 1\n" * (size // 4),
    "new labels": lambda size: "".join(f'a{{x="{i:06}"}} 1\n' for i in range(size // 16)),
    "many labels": lambda size: "".join(
        "a{" + ",".join(f'l{j}_{i}="{j}{i}"' for j in range(60)) + "} 1\n" for i in range(size // 900)
    ),
    "new names": lambda size: "".join(f"n{i:06} 1\n" for i in range(size // 10)),
    "bad labels": lambda size: "".join(f"a{{{i:06}}} 1\n" for i in range(size // 12)),
    "bad values": lambda size: "".join(f'a{{x="{i:06}"}} z\n' for i in range(size // 16)),
    "short lines": lambda size: "b\n" * (size // 2),
    "braces": lambda size: ('a{x="' + "}" * 15_000 + '"} 1\n') * (size // 15_000),
}


@pytest.mark.parametrize("shape", HOSTILE_PAGES)
def test_time_grows_no_faster_than_a_hostile_page(shape: str) -> None:
    quarter, whole = (HOSTILE_PAGES[shape](size).encode() for size in (50_000, 200_000))

    assert best_cpu(whole) <= 10 * best_cpu(quarter) + 0.005


@pytest.mark.parametrize("shape", ["new labels", "many labels", "new names"])
def test_a_page_beyond_the_limits_takes_little_memory(shape: str) -> None:
    body = HOSTILE_PAGES[shape](4 << 20).encode()  # every limit lies below this size

    tracemalloc.start()
    scan(body, [b"a"])
    families(body)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak_bytes < 64 << 20  # four times the largest page that is fetched


def test_a_number_cut_off_at_the_end_is_told_from_a_whole_page() -> None:
    assert looks_complete(b"a 12345678\n", "text/plain; version=0.0.4")
    assert not looks_complete(b"a 1234", "text/plain; version=0.0.4")
    assert looks_complete(b"a 1\n# EOF", "application/openmetrics-text; version=1.0.0")
    assert not looks_complete(b"a 1\n", "application/openmetrics-text; version=1.0.0")


names = st.sampled_from(["a", "ab", "vllm:x", "a_total", "_z"])
label_names = st.sampled_from(["x", "y", "model_name", "le"])
label_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x85\u2028\u2029"))
numbers = st.floats(allow_nan=False) | st.integers(-(10**12), 10**12)


def escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


@st.composite
def sample_lines(draw: st.DrawFn) -> str:
    name = draw(names)
    labels: dict[str, str] = draw(st.dictionaries(label_names, label_text, max_size=4))
    inside = ",".join(f'{key}="{escape(value)}"' for key, value in labels.items())
    empty_braces: bool = draw(st.booleans())
    braces = f"{{{inside}}}" if labels or empty_braces else ""
    stamp: str = draw(st.sampled_from(["", " 1700000000000"]))
    return f"{name}{braces} {draw(numbers)!r}{stamp}"


@settings(max_examples=300, deadline=None)
@given(st.lists(sample_lines(), max_size=8), names)
def test_the_client_librarys_parser_reads_the_same_values(lines: list[str], wanted: str) -> None:
    body = "\n".join(lines) + "\n"
    expected = [
        (dict(sample.labels), sample.value)
        for family in parse_classic(body)
        for sample in family.samples
        if sample.name == wanted
    ]

    page = scan(body.encode(), [wanted.encode()])

    assert [(dict(sample.labels), sample.value) for sample in page.get(wanted)] == expected
    assert page.unparsed_lines == 0


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text('a{}"=,\\# \t\n1.x', max_size=60).map(str.encode))
def test_where_the_client_librarys_parser_accepts_a_page_the_values_agree(body: bytes) -> None:
    page = scan(body, [b"a", b"x"])
    try:
        text = body.decode()
        parsed = [sample for family in parse_classic(text) for sample in family.samples]
    except (ValueError, UnicodeDecodeError, KeyError, IndexError):
        return
    if "\r" in text or any(len(line.splitlines()) > 1 for line in text.split("\n")):
        return  # the oracle also splits at characters that end no line in the format

    for name in ("a", "x"):
        expected = [(dict(s.labels), str(float(s.value))) for s in parsed if s.name == name]
        assert [(dict(sample.labels), str(sample.value)) for sample in page.get(name)] == expected


def test_openmetrics_with_exemplars_agrees_with_the_client_library() -> None:
    body = (
        "# TYPE a counter\n# HELP a x\n"
        'a_total{x="1"} 5.0 # {trace_id="ab"} 0.5 1700000000.0\n'
        'a_created{x="1"} 1.7e9\n# EOF\n'
    )
    expected = {
        s.name: s.value
        for family in parse_openmetrics(body)  # type: ignore[no-untyped-call]
        for s in family.samples
    }

    page = scan(body.encode(), [b"a_total", b"a_created"])

    assert {name: samples[0].value for name, samples in page.samples.items()} == expected


def test_labels_that_were_seen_before_are_read_as_the_first_time() -> None:
    body = (
        b'a{x="1",y="2"} 3\na{x="1",y="2"} 4 1700000000\na{x="1",y="2"} 5 # {z="}"} 6\na{x="1",y="2"} 7_0\n'
    )

    first, second = scan(body, [b"a"]), scan(body, [b"a"])

    assert first == second
    assert [(dict(sample.labels), sample.value) for sample in second.get("a")] == [
        ({"x": "1", "y": "2"}, value) for value in (3.0, 4.0, 5.0)
    ]
    assert second.unparsed_lines == 1


def test_no_more_labels_are_remembered_than_their_bytes_allow() -> None:
    lines = "".join(f'a{{x="{number:0900}"}} 1\n' for number in range(3000))

    page = scan(lines.encode(), [b"a"])

    assert len(page.get("a")) == 3000
    for held in (exposition_text._remembered.young, exposition_text._remembered.old):
        assert sum(map(len, held)) <= 1.01 * exposition_text.MAX_REMEMBERED_BYTES


def test_labels_that_do_not_come_again_are_forgotten() -> None:
    scan(b'a{x="once"} 1\n', [b"a"])
    for _ in range(2 * exposition_text.REMEMBERED_PAGES):
        scan(b'a{x="always"} 1\n', [b"a"])

    held = {**exposition_text._remembered.young, **exposition_text._remembered.old}

    assert b'x="always"' in held
    assert b'x="once"' not in held
