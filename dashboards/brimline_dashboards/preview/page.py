"""The page: all boards, one below the other, in Grafana's grid of 24 columns. Opened, it asks for nothing."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jinja2

from brimline import __version__
from brimline_dashboards.interpolation import Chosen, VariableError, in_query
from brimline_dashboards.panels import Board, Json, board_json
from brimline_dashboards.preview.asking import Prometheus
from brimline_dashboards.preview.drawing import Drawn, Mark, drawn
from brimline_dashboards.preview.shown import (
    ShownPanel,
    ShownRow,
    Window,
    answers,
    chosen_variables,
    named,
    rows,
)

# Prometheus answers some queries at once; more would only wait in its queue.
AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class PanelOnPage:
    """A panel in its place, drawn."""

    panel: ShownPanel
    drawn: Drawn

    @property
    def place(self) -> str:
        """CSS: the cells of the grid."""
        grid = self.panel.json["gridPos"]
        return (
            f"--column:{grid['x'] + 1} / span {grid['w']};--row:{self.panel.top + 1} / span {grid['h']};"
            f"--lines:{grid['h']}"
        )


@dataclass(frozen=True, slots=True)
class BoardOnPage:
    """A board with its rows drawn."""

    json: Json
    variables: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[PanelOnPage, ...]], ...]


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("brimline_dashboards", "preview"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("preview.html")


def page(
    boards: Sequence[Board],
    prometheus: Prometheus,
    window: Window,
    wanted: Mapping[str, str] | None = None,
) -> str:
    """The page's HTML. wanted: values of variables. Raises PrometheusError, VariableError."""
    written = [board_json(board) for board in boards]
    single = {
        each["name"]
        for board in written
        for each in board["templating"]["list"]
        if each["type"] == "query" and not each["multi"]
    }
    for name in wanted or {}:
        if name not in single:
            raise VariableError(
                f"{name}: no variable that holds one value; known: {', '.join(sorted(single))}"
            )
    with ThreadPoolExecutor(AT_ONCE) as pool:
        on_page = [_drawn_board(board, prometheus, window, wanted or {}, pool) for board in written]
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(window.end))
    return _template().render(
        boards=on_page, when=when, minutes=round(window.times.range_seconds / 60), version=__version__
    )


def _drawn_board(
    board: Json,
    prometheus: Prometheus,
    window: Window,
    wanted: Mapping[str, str],
    pool: ThreadPoolExecutor,
) -> BoardOnPage:
    chosen = chosen_variables(board, prometheus, window, wanted)
    events = tuple(_events(board, prometheus, window, chosen))

    def draw(panel: ShownPanel) -> PanelOnPage:
        given = answers(panel, prometheus, window)
        return PanelOnPage(panel, drawn(panel.json, panel.chosen, given, window, events))

    def draw_row(row: ShownRow) -> tuple[str, tuple[PanelOnPage, ...]]:
        return row.title, tuple(pool.map(draw, row.panels))

    labels = {each["name"]: each["label"] for each in board["templating"]["list"]}
    return BoardOnPage(
        board,
        tuple((labels[name], each.text) for name, each in chosen.items()),
        tuple(draw_row(row) for row in rows(board, chosen)),
    )


def _events(
    board: Json, prometheus: Prometheus, window: Window, chosen: Mapping[str, Chosen]
) -> Iterator[Mark]:
    """Annotations within the shown time: each moment that a query gives, once."""
    for annotation in board["annotations"]["list"]:
        if "expr" not in annotation:
            continue
        expr = in_query(annotation["expr"], chosen, window.times)
        seen = {
            (named(annotation["titleFormat"], series.labels), value / 1000)
            for series in prometheus.query_range(expr, window.start, window.end, window.times.step_seconds)
            for _, value in series.known
        }
        for title, moment in sorted(seen):
            if window.start < moment < window.end:
                at = (moment - window.start) / window.times.range_seconds * 100
                yield Mark(at, title, annotation["iconColor"])
