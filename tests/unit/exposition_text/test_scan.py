"""The page scanner, against the exposition formats' own rules and against the client library's parser."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_classic

from brimline.exposition_text import Sample, looks_complete, scan


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
        expected = [(dict(sample.labels), str(sample.value)) for sample in parsed if sample.name == name]
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
