"""What a panel shows, worked out from its JSON and the answers: lines, tiles, tables, states, heat."""

from __future__ import annotations

import html
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from brimline_dashboards.interpolation import Chosen, in_text
from brimline_dashboards.panels import Json
from brimline_dashboards.preview.asking import Series
from brimline_dashboards.preview.frames import Cell, Row, frames, transformed
from brimline_dashboards.preview.shown import Answer, Window
from brimline_dashboards.preview.written import (
    css_color,
    heat_color,
    mapped,
    marks_written,
    step_between_marks,
    threshold_color,
    written,
)

WIDTH, HEIGHT = 1000.0, 300.0  # of a plot, in its own units; the page stretches it
# Grafana's palette for series without a colour of their own.
_PALETTE = ("#73BF69", "#F2CC0C", "#8AB8FF", "#FF780A", "#F2495C", "#5794F2", "#B877D9", "#705DA0", "#37872D")
_DASHES = {"dash": "6 5", "dot": "1.5 4"}

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Line:
    """A series as it is drawn. dashes: an SVG dash array, empty where the line is solid."""

    name: str
    color: str
    width: float
    dashes: str
    path: str
    area: str
    opacity: float
    last: str
    highest: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark on an axis or in time. at: per cent of the way."""

    at: float
    text: str
    color: str = ""


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines over time."""

    lines: tuple[Line, ...]
    marks_y: tuple[Mark, ...]
    marks_x: tuple[Mark, ...]
    events: tuple[Mark, ...]
    legend_table: bool

    @property
    def letters(self) -> int:
        """Width that the marks of the upright axis need."""
        return max(len(mark.text) for mark in self.marks_y)


@dataclass(frozen=True, slots=True)
class Tile:
    """A value of a tile."""

    text: str
    name: str
    color: str


@dataclass(frozen=True, slots=True)
class TableCell:
    """A cell. share: of a bar, 0 to 1; link: the board that a click opens."""

    text: str
    color: str = ""
    share: float | None = None
    link: str = ""
    is_number: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table's head and cells."""

    head: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]


@dataclass(frozen=True, slots=True)
class Band:
    """A stretch of time in one state, in per cent of the way."""

    start: float
    width: float
    text: str
    color: str
    ink: str


@dataclass(frozen=True, slots=True)
class Bands:
    """States or heat over time, a line of bands for each series."""

    lines: tuple[tuple[str, tuple[Band, ...]], ...]
    marks_x: tuple[Mark, ...]

    @property
    def letters(self) -> int:
        """Width that the names of the lines need."""
        return max(len(name) for name, _ in self.lines)


@dataclass(frozen=True, slots=True)
class Drawn:
    """What stands in a panel: one of the kinds, or what is said where there is nothing."""

    plot: Plot | None = None
    tiles: tuple[Tile, ...] = ()
    table: Table | None = None
    bands: Bands | None = None
    prose: Markup | None = None
    nothing: str = ""


@dataclass(slots=True)
class _Look:
    """How a series is drawn, overrides applied."""

    color: str
    width: float
    fill: float
    stacked: bool
    dashes: str = ""
    properties: dict[str, Any] = field(default_factory=dict)


def drawn(
    panel: Json, chosen: Mapping[str, Chosen], given: Sequence[Answer], window: Window, events: Sequence[Mark]
) -> Drawn:
    """The panel's picture. Raises ValueError for a kind of panel that the boards do not use."""
    kind = panel["type"]
    if kind == "text":
        return Drawn(prose=_prose(panel["options"]["content"]))
    nothing = panel["fieldConfig"]["defaults"]["noValue"]
    if kind == "table":
        table = _table(panel, chosen, given)
        return Drawn(table=table) if table.rows else Drawn(nothing=nothing if nothing != "–" else "No data")
    if not any(series.known for answer in given for series in answer.series):
        return Drawn(nothing=nothing)
    match kind:
        case "timeseries":
            return Drawn(plot=_plot(panel, given, window, events))
        case "stat":
            return Drawn(tiles=tuple(_tiles(panel, given)))
        case "state-timeline" | "status-history":
            return Drawn(bands=_bands(panel, given, window))
    raise ValueError(f"the preview draws no panel of type {kind!r}")


def _named_series(given: Sequence[Answer]) -> Iterator[tuple[str, Series]]:
    for answer in given:
        for name, series in zip(answer.names, answer.series, strict=True):
            if series.known:
                yield name, series


# --- lines ---


def _look(panel: Json, name: str, number: int) -> _Look:
    custom = panel["fieldConfig"]["defaults"]["custom"]
    properties: dict[str, Any] = {}
    for override in panel["fieldConfig"]["overrides"]:
        wanted = override["matcher"]["options"]
        if override["matcher"]["id"] == "byName":
            fits = wanted == name
        else:
            fits = re.search(wanted.strip("/"), name) is not None
        if fits:
            properties |= {each["id"]: each["value"] for each in override["properties"]}
    color = properties.get("color", {}).get("fixedColor", _PALETTE[number % len(_PALETTE)])
    stacking = properties.get("custom.stacking", custom["stacking"])
    return _Look(
        color=css_color(color),
        width=properties.get("custom.lineWidth", custom["lineWidth"]),
        fill=properties.get("custom.fillOpacity", custom["fillOpacity"]) / 100,
        stacked=stacking["mode"] == "normal",
        dashes=_DASHES.get(properties.get("custom.lineStyle", {}).get("fill", ""), ""),
    )


def _plot(panel: Json, given: Sequence[Answer], window: Window, events: Sequence[Mark]) -> Plot:
    defaults = panel["fieldConfig"]["defaults"]
    unit = defaults["unit"]
    below: dict[float, float] = {}
    shapes: list[tuple[str, _Look, Points, Points, Points]] = []
    for number, (name, series) in enumerate(_named_series(given)):
        look = _look(panel, name, number)
        points: Points = series.known
        floor: Points = tuple((moment, 0.0) for moment, _ in points)
        if look.stacked:
            floor = tuple((moment, below.get(moment, 0.0)) for moment, _ in points)
            points = tuple((moment, value + below.get(moment, 0.0)) for moment, value in points)
            below |= dict(points)
        shapes.append((name, look, points, floor, series.known))
    values = [value for _, _, points, _, _ in shapes for _, value in points]
    low = defaults.get("min", min(values))
    high = defaults.get("max", max(values))
    if high <= low:
        high = low + (abs(low) or 1.0)
    step = step_between_marks(high - low, unit)
    if "min" not in defaults:
        low = math.floor(low / step) * step
    if "max" not in defaults:
        high = math.ceil(high / step - 1e-9) * step

    def place(point: tuple[float, float]) -> str:
        x = (point[0] - window.start) / (window.end - window.start) * WIDTH
        y = HEIGHT - (point[1] - low) / (high - low) * HEIGHT
        return f"{x:.1f} {y:.1f}"

    longest = 1.6 * window.step_seconds(panel)
    lines = []
    for name, look, points, floor, own in shapes:
        path = area = ""
        for start, end in _stretches(points, longest):
            path += "M" + "L".join(map(place, points[start:end]))
            if look.fill and look.stacked:
                back = reversed(floor[start:end])
                area += "M" + "L".join(map(place, [*points[start:end], *back])) + "Z"
        lines.append(
            Line(
                name,
                look.color,
                look.width,
                look.dashes,
                path,
                area,
                look.fill,
                written(own[-1][1], unit),
                written(max(value for _, value in own), unit),
            )
        )
    heights = [low + step * place for place in range(math.floor((high - low) / step + 1e-9) + 1)]
    texts = marks_written(heights, unit)
    return Plot(
        tuple(lines),
        tuple(
            Mark((1 - (mark - low) / (high - low)) * 100, text)
            for mark, text in zip(heights, texts, strict=True)
        ),
        _times(window),
        tuple(events),
        panel["options"]["legend"]["displayMode"] == "table",
    )


def _stretches(points: Points, longest: float) -> Iterator[tuple[int, int]]:
    """Where lines begin and end: they break where values are missing."""
    start = 0
    for place in range(1, len(points)):
        if points[place][0] - points[place - 1][0] > longest:
            yield start, place
            start = place
    yield start, len(points)


def _times(window: Window, count: int = 4) -> tuple[Mark, ...]:
    form = "%H:%M" if window.times.range_seconds > 600 else "%H:%M:%S"
    return tuple(
        Mark(
            100 * (place + 0.5) / count,
            time.strftime(
                form, time.gmtime(window.start + window.times.range_seconds * (place + 0.5) / count)
            ),
        )
        for place in range(count)
    )


# --- tiles ---


def _tiles(panel: Json, given: Sequence[Answer]) -> Iterator[Tile]:
    defaults, options = panel["fieldConfig"]["defaults"], panel["options"]
    for name, series in _named_series(given):
        value = series.known[-1][1]
        words = mapped(value, defaults["mappings"])
        text, color = words or (
            written(value, defaults["unit"], defaults.get("decimals")),
            threshold_color(value, defaults["thresholds"]),
        )
        yield Tile(text, name if options["textMode"] == "value_and_name" else "", css_color(color))


# --- tables ---


def _table(panel: Json, chosen: Mapping[str, Chosen], given: Sequence[Answer]) -> Table:
    made = transformed(frames({each.letter: each.series for each in given}), panel["transformations"])
    organized = next(each["options"] for each in panel["transformations"] if each["id"] == "organize")
    there = {name for row in made for name, cell in row.items() if cell is not None}
    sources = [
        name for name in sorted(organized["indexByName"], key=organized["indexByName"].get) if name in there
    ]
    titles = {name: organized["renameByName"][name] for name in sources}
    for each in panel["options"]["sortBy"]:
        source = next((name for name, title in titles.items() if title == each["displayName"]), None)
        if source is not None:
            made = _sorted(made, source, descending=each["desc"])
    looks = {
        override["matcher"]["options"]: {each["id"]: each["value"] for each in override["properties"]}
        for override in panel["fieldConfig"]["overrides"]
    }
    defaults = panel["fieldConfig"]["defaults"]
    return Table(
        tuple(in_text(titles[name], chosen) for name in sources),
        tuple(tuple(_cell(row.get(name), looks[titles[name]], defaults) for name in sources) for row in made),
    )


def _sorted(rows: Sequence[Row], source: str, *, descending: bool) -> list[Row]:
    known = [row for row in rows if row.get(source) not in (None, "")]
    numbers = all(isinstance(row[source], float) for row in known)

    def key(row: Row) -> Any:
        return row[source] if numbers else str(row[source])

    return sorted(known, key=key, reverse=descending) + [row for row in rows if row.get(source) in (None, "")]


def _cell(value: Cell, look: Mapping[str, Any], defaults: Json) -> TableCell:
    if value is None or value == "":
        return TableCell(defaults["noValue"])
    [link] = look.get("links") or [{"url": ""}]
    board = re.match(r"/d/([a-z-]+)", link["url"])
    target = f"#{board[1]}" if board else ""
    if isinstance(value, str):
        return TableCell(value, link=target)
    words = mapped(value, look.get("mappings", []))
    text = words[0] if words else written(value, look.get("unit"), look.get("decimals"))
    color = words[1] if words else threshold_color(value, look["thresholds"]) if "thresholds" in look else ""
    share = min(max(value, 0.0), 1.0) if look.get("custom.cellOptions", {}).get("type") == "gauge" else None
    return TableCell(text, css_color(color), share, target, is_number=True)


# --- states and heat ---


def _bands(panel: Json, given: Sequence[Answer], window: Window) -> Bands:
    defaults = panel["fieldConfig"]["defaults"]
    is_heat = panel["type"] == "status-history"
    step = window.step_seconds(panel)
    lines = []
    for name, series in _named_series(given):
        bands: list[Band] = []
        state: float | None = None
        ended = window.start
        for moment, value in series.known:
            start = max((moment - step - window.start) / window.times.range_seconds * 100, 0.0)
            width = (moment - window.start) / window.times.range_seconds * 100 - start
            if bands and not is_heat and value == state and moment - ended < 1.6 * step:
                last = bands.pop()
                bands.append(Band(last.start, start + width - last.start, last.text, last.color, last.ink))
            elif width > 0:
                bands.append(Band(start, width, *_band_look(value, defaults, is_heat=is_heat)))
            state, ended = value, moment
        lines.append((name, tuple(bands)))
    return Bands(tuple(lines), _times(window))


def _band_look(value: float, defaults: Json, *, is_heat: bool) -> tuple[str, str, str]:
    if is_heat:
        text = written(value, defaults["unit"], defaults.get("decimals"))
        return text, *heat_color(value / defaults["max"])
    words, color = mapped(value, defaults["mappings"]) or (written(value, None), "#8E8E8E")
    return words, color, "#fff"


# --- words ---


def _prose(markdown: str) -> Markup:
    """The little Markdown that the boards use: bold, code, paragraphs."""
    text = html.escape(markdown, quote=False)
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)
    text = re.sub(r"`(.+?)`", r"<code>\1</code>", text)
    return Markup("<p>" + text.replace("\n\n", "</p><p>") + "</p>")  # noqa: S704 (escaped above)
