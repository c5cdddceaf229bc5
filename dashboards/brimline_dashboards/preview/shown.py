"""A board as a visitor sees it: variables chosen, rows repeated for each value, queries answered."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from brimline_dashboards.interpolation import Chosen, Times, choose, in_query, in_text
from brimline_dashboards.panels import Json
from brimline_dashboards.preview.asking import Labels, Prometheus, Series

_LABEL = re.compile(r"\{\{\s*(\w+)\s*\}\}")


@dataclass(frozen=True, slots=True)
class Window:
    """The time that is shown, up to `end`."""

    end: float
    times: Times

    @property
    def start(self) -> float:
        return self.end - self.times.range_seconds

    def step_seconds(self, panel: Json) -> float:
        """Time between two points of a panel; longer where it wants fewer of them."""
        points = panel.get("maxDataPoints")
        return max(self.times.step_seconds, self.times.range_seconds / points if points else 0.0)


@dataclass(frozen=True, slots=True)
class ShownPanel:
    """A panel in its place, with the variables that hold there. top: its place among the rows' lines."""

    json: Json
    chosen: Mapping[str, Chosen]
    top: int

    @property
    def title(self) -> str:
        return in_text(self.json["title"], self.chosen)


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A heading and its panels."""

    title: str
    panels: tuple[ShownPanel, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one query of a panel gave. names: of the series, as the legend says."""

    letter: str
    expr: str
    series: tuple[Series, ...]
    names: tuple[str, ...]


def chosen_variables(
    board: Json, prometheus: Prometheus, window: Window, wanted: Mapping[str, str] | None = None
) -> dict[str, Chosen]:
    """The board's variables, chosen as on a first visit; wanted values instead where they are given."""

    def ask(selector: str, label: str) -> Sequence[str]:
        return prometheus.label_values(selector, label, window.start, window.end)

    return choose(board["templating"]["list"], ask, window.times, wanted)


def rows(board: Json, chosen: Mapping[str, Chosen]) -> Iterator[ShownRow]:
    """Rows of the board, a repeated one once for each value of its variable."""
    for heading, panels in _grouped(board["panels"]):
        repeat = heading.get("repeat")
        if repeat is None:
            yield _row(heading, panels, chosen)
            continue
        for value in chosen[repeat].values:
            yield _row(
                heading, panels, {**chosen, repeat: replace(chosen[repeat], values=(value,), all_value=None)}
            )


def _row(heading: Json, panels: Sequence[Json], chosen: Mapping[str, Chosen]) -> ShownRow:
    first = heading["gridPos"]["y"] + 1
    shown = tuple(ShownPanel(panel, chosen, panel["gridPos"]["y"] - first) for panel in panels)
    return ShownRow(in_text(heading["title"], chosen), shown)


def _grouped(panels: Sequence[Json]) -> Iterator[tuple[Json, list[Json]]]:
    heading: Json | None = None
    below: list[Json] = []
    for panel in panels:
        if panel["type"] != "row":
            below.append(panel)
            continue
        if heading is not None:
            yield heading, below
        heading, below = panel, list(panel["panels"])
    if heading is not None:
        yield heading, below


def answers(panel: ShownPanel, prometheus: Prometheus, window: Window) -> list[Answer]:
    """What the panel's queries give, in their order. Raises PrometheusError."""
    given = []
    for target in panel.json.get("targets", ()):
        step = window.step_seconds(panel.json)
        expr = in_query(target["expr"], panel.chosen, replace(window.times, step_seconds=step))
        if target["instant"]:
            series = prometheus.query(expr, window.end)
        else:
            series = prometheus.query_range(expr, window.start, window.end, step)
        legend = in_text(target["legendFormat"], panel.chosen)
        names = tuple(_name(legend, each.labels) for each in series)
        given.append(Answer(target["refId"], expr, tuple(series), names))
    return given


def legend_labels(target: Json) -> list[str]:
    """The labels that a query's legend is made of."""
    return _LABEL.findall(target["legendFormat"])


def named(text: str, labels: Labels) -> str:
    """A legend or title with the labels of a series in place of their names."""
    return _LABEL.sub(lambda found: labels.get(found[1], ""), text).strip()


def _name(legend: str, labels: Labels) -> str:
    if legend:
        return named(legend, labels)
    inner = ", ".join(f'{name}="{value}"' for name, value in labels.items() if name != "__name__")
    return labels.get("__name__", "") + (f"{{{inner}}}" if inner else "")
