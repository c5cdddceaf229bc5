"""Variables go into queries as Grafana's Prometheus data source puts them there."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from brimline_dashboards.interpolation import (
    Chosen,
    Times,
    VariableError,
    choose,
    in_query,
    in_text,
    variable_query,
)
from brimline_dashboards.panels import query_variable

TIMES = Times(range_seconds=3600, step_seconds=30, scrape_interval_seconds=15)


def test_several_values_are_one_regular_expression() -> None:
    chosen = {"target": Chosen(("a.b", "c"), is_regex=True)}

    assert in_query('up{t=~"$target"}', chosen, TIMES) == r'up{t=~"(a\\.b|c)"}'


def test_one_value_of_many_stands_without_brackets_and_is_escaped() -> None:
    assert Chosen(("10.0.0.1:80",), is_regex=True).in_query == r"10\\.0\\.0\\.1:80"


def test_a_single_value_is_a_string_and_no_expression() -> None:
    assert Chosen((r"a.b\c",)).in_query == r"a.b\\c"


def test_all_with_a_value_of_its_own_is_that_value() -> None:
    chosen = Chosen(("a", "b"), all_value=".+", is_regex=True)

    assert (chosen.in_query, chosen.text) == (".+", "All")


def test_a_rate_covers_four_scrapes_at_least() -> None:
    assert in_query("rate(x[$__rate_interval])", {}, TIMES) == "rate(x[60000ms])"
    wide = Times(range_seconds=86400, step_seconds=600, scrape_interval_seconds=15)
    assert in_query("${__rate_interval} $__range", {}, wide) == "615000ms 86400s"


def test_an_unknown_variable_stays_as_it_is() -> None:
    assert in_query('x{a="$nobody"}', {}, TIMES) == 'x{a="$nobody"}'


def test_titles_hold_the_words() -> None:
    assert in_text("A: $variant_a", {"variant_a": Chosen(("ctx-32k",))}) == "A: ctx-32k"


def test_variables_are_chosen_one_after_the_other() -> None:
    asked = []

    def ask(selector: str, label: str) -> Sequence[str]:
        asked.append((selector, label))
        return {"job": ["b", "a"], "target": ["y", "x", ""]}[label]

    variables = [
        query_variable("job", "Job", "label_values(up, job)"),
        query_variable(
            "target", "Server", 'label_values(up{job=~"$job"}, target)', multi=False, include_all=False
        ),
    ]

    first = choose(variables, ask, TIMES)
    other = choose(variables, ask, TIMES, {"target": "y", "job": "b"})

    assert asked[:2] == [("up", "job"), ('up{job=~"(a|b)"}', "target")]
    assert first["target"].values == ("x",)
    assert other["target"].values == ("y",)
    assert other["job"].values == ("a", "b")


def test_a_value_that_there_is_not_is_told() -> None:
    variables = [
        query_variable("target", "Server", "label_values(up, target)", multi=False, include_all=False)
    ]

    with pytest.raises(VariableError, match="target=nosuch: there is no such value; known: x, y"):
        choose(variables, lambda _selector, _label: ["y", "x"], TIMES, {"target": "nosuch"})
    with pytest.raises(VariableError, match="known: none in the shown time"):
        choose(variables, lambda _selector, _label: [], TIMES, {"target": "nosuch"})


def test_another_kind_of_variable_query_is_refused() -> None:
    with pytest.raises(ValueError, match="label_values"):
        variable_query(query_variable("x", "X", "query_result(up)"))
