"""Variables as Grafana chooses them and puts them into queries, for the preview and for tests.

Formats are those of Grafana's Prometheus data source (11.6, plugins/datasource/prometheus): a variable of
several values, or with All, goes into a query as a regular expression with its special characters escaped;
one of a single value as a string.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from brimline.errors import BrimlineError
from brimline_dashboards.panels import Json

_REFERENCE = re.compile(r"\$(\w+)|\$\{(\w+)(?::\w+)?\}")
_LABEL_VALUES = re.compile(r"label_values\((?P<selector>.*), (?P<label>\w+)\)", re.DOTALL)

# (selector, label) -> the label's values
AskValues = Callable[[str, str], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a variable stands for. all_value: what stands for All in queries; is_regex: matched with =~."""

    values: tuple[str, ...]
    all_value: str | None = None
    is_regex: bool = False

    @property
    def in_query(self) -> str:
        """As it stands between the quotes of a label's matcher."""
        if self.all_value is not None:
            return self.all_value
        if not self.is_regex:
            return "".join(value.replace("\\", "\\\\").replace('"', '\\"') for value in self.values[:1])
        escaped = [
            re.sub(r"[$^*{}\[\]'+?.()|]", r"\\\\\g<0>", value.replace("\\", r"\\\\")) for value in self.values
        ]
        return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})" if escaped else ""

    @property
    def text(self) -> str:
        """As it stands in titles and legends."""
        return "All" if self.all_value is not None else " + ".join(self.values)


class VariableError(BrimlineError):
    """A variable was given a value that it cannot have, or does not exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """The shown time. step: between two points of a line; scrape_interval: that of the data source."""

    range_seconds: float
    step_seconds: float
    scrape_interval_seconds: float = 15.0

    @property
    def macros(self) -> Mapping[str, str]:
        """Grafana's own variables."""
        scrape = self.scrape_interval_seconds
        rate = max(self.step_seconds + scrape, 4 * scrape)
        return {
            "__rate_interval": f"{round(rate * 1000)}ms",
            "__interval": f"{round(self.step_seconds * 1000)}ms",
            "__range": f"{round(self.range_seconds)}s",
            "__range_s": f"{round(self.range_seconds)}",
        }


def in_query(expr: str, chosen: Mapping[str, Chosen], times: Times) -> str:
    """A query with its variables replaced; unknown ones stay, and Prometheus will complain."""
    known = {**times.macros, **{name: each.in_query for name, each in chosen.items()}}
    return _REFERENCE.sub(lambda found: known.get(found[1] or found[2], found[0]), expr)


def in_text(text: str, chosen: Mapping[str, Chosen]) -> str:
    """A title or legend with its variables replaced."""
    known = {name: each.text for name, each in chosen.items()}
    return _REFERENCE.sub(lambda found: known.get(found[1] or found[2], found[0]), text)


def variable_query(variable: Json) -> tuple[str, str]:
    """The selector and the label of a query variable. Raises ValueError for another kind of query."""
    found = _LABEL_VALUES.fullmatch(variable["query"]["query"])
    if found is None:
        raise ValueError(
            f"variable {variable['name']}: {variable['query']['query']!r} is not label_values(…, …)"
        )
    return found["selector"], found["label"]


def choose(
    variables: Sequence[Json], ask: AskValues, times: Times, wanted: Mapping[str, str] | None = None
) -> dict[str, Chosen]:
    """Each variable as Grafana chooses it on a first visit: All, or the first value.

    wanted: for variables that hold one value, another one. Raises VariableError where there is no such value.
    """
    chosen: dict[str, Chosen] = {}
    for variable in variables:
        name = variable["name"]
        if variable["type"] != "query":
            continue
        selector, label = variable_query(variable)
        options = sorted({value for value in ask(in_query(selector, chosen, times), label) if value})
        is_regex = bool(variable["multi"] or variable["includeAll"])
        if wanted is not None and name in wanted and not variable["multi"]:
            if wanted[name] not in options:
                known = ", ".join(options) or "none in the shown time"
                raise VariableError(f"{name}={wanted[name]}: there is no such value; known: {known}")
            chosen[name] = Chosen((wanted[name],), None, is_regex)
        elif variable["includeAll"]:
            chosen[name] = Chosen(tuple(options), variable.get("allValue"), is_regex)
        else:
            chosen[name] = Chosen(tuple(options[:1]), None, is_regex)
    return chosen
