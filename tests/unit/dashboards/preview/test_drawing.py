"""What a panel shows, from its JSON and the answers."""

from __future__ import annotations

from typing import Any

from brimline_dashboards.interpolation import Times
from brimline_dashboards.panels import (
    BLUE,
    Board,
    Panel,
    Query,
    Style,
    board_json,
    stat,
    state_timeline,
    text,
    timeseries,
)
from brimline_dashboards.panels import Row as BoardRow
from brimline_dashboards.preview.asking import Series
from brimline_dashboards.preview.drawing import Drawn, drawn
from brimline_dashboards.preview.shown import Answer, Window

WINDOW = Window(100.0, Times(range_seconds=100, step_seconds=10, scrape_interval_seconds=1))


def picture(panel: Panel, *series: tuple[str, list[tuple[float, float]]]) -> Drawn:
    [heading, made] = board_json(
        Board(uid="x", title="x", description="x", rows=(BoardRow(title="x", panels=(panel,)),), variables=())
    )["panels"]
    assert heading["type"] == "row"
    answers = [Answer("A", "", (Series({}, tuple(points)),), (name,)) for name, points in series]
    return drawn(made, {}, answers, WINDOW, ())


def lines(*styles: Style, **more: Any) -> Panel:
    return timeseries("t", "d", [Query("x")], "none", styles=styles, no_value="Nobody home", **more)


def test_predicted_lines_are_dashed_and_keep_their_colour() -> None:
    panel = lines(Style(series="/^predicted/", color=BLUE, dashed=True, is_regex=True))

    shown = picture(
        panel, ("in use", [(50.0, 1.0), (60.0, 2.0)]), ("predicted", [(50.0, 2.0), (60.0, 2.0)])
    ).plot

    assert shown is not None
    assert [bool(line.dashes) for line in shown.lines] == [False, True]
    assert shown.lines[1].color == BLUE


def test_lines_break_where_values_are_missing() -> None:
    shown = picture(lines(), ("a", [(10.0, 1.0), (20.0, 1.0), (60.0, 1.0), (70.0, 1.0)])).plot

    assert shown is not None
    assert shown.lines[0].path.count("M") == 2


def test_areas_stand_on_each_other_and_lines_do_not() -> None:
    panel = lines(Style(series="card", fill=0, stack=False), stack=True)

    shown = picture(panel, ("a", [(50.0, 2.0)]), ("b", [(50.0, 3.0)]), ("card", [(50.0, 10.0)])).plot

    assert shown is not None
    # 300 high for 0 to 10: a at 2, b on it at 5, the card's own 10 at the top.
    assert [line.path for line in shown.lines] == ["M500.0 240.0", "M500.0 150.0", "M500.0 0.0"]
    assert [bool(line.area) for line in shown.lines] == [True, True, False]
    assert shown.lines[1].last == "3"


def test_a_panel_without_values_says_why() -> None:
    assert picture(lines(), ("a", [(50.0, float("nan"))])).nothing == "Nobody home"
    assert picture(lines()).nothing == "Nobody home"


def test_tiles_are_words_where_numbers_stand_for_them() -> None:
    panel = stat("t", "d", [Query("x")], "none", mappings={0.0: ("DOWN", "red")}, names=True)

    [tile] = picture(panel, ("chat", [(100.0, 0.0)])).tiles

    assert (tile.text, tile.color, tile.name) == ("DOWN", "red", "chat")


def test_states_that_last_are_one_band() -> None:
    panel = state_timeline("t", "d", [Query("x")], {0.0: ("DOWN", "red"), 1.0: ("up", "green")})

    shown = picture(panel, ("chat", [(10.0, 1.0), (20.0, 1.0), (30.0, 0.0), (60.0, 0.0)])).bands

    assert shown is not None
    [(_, bands)] = shown.lines
    assert [(band.start, band.width, band.text) for band in bands] == [
        (0, 20, "up"),
        (20, 10, "DOWN"),
        (50, 10, "DOWN"),
    ]


def test_prose_cannot_bring_markup_of_its_own() -> None:
    shown = picture(text("t", "**bold** `code` <script>")).prose

    assert shown == "<p><b>bold</b> <code>code</code> &lt;script&gt;</p>"
