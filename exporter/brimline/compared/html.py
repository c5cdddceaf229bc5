"""A comparison as one page of HTML that loads nothing, with each block drawn."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import jinja2

from brimline import __version__
from brimline.ab.result import MetricResult, Report
from brimline.compared import wording
from brimline.verdicts import WORDS

WIDTH, HEIGHT = 640, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 8, 10, 22


@dataclass(frozen=True, slots=True)
class Plot:
    """A metric's blocks in pixels.

    points: place and what it says. band: top and height of the interval. lines: height, style and label of
    the reference lines. first, last: the two ends of time.
    """

    title: str
    points: tuple[tuple[float, float, str], ...]
    band: tuple[float, float] | None
    lines: tuple[tuple[float, str, str], ...]
    first: str
    last: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT


def plot(metric: MetricResult) -> Plot | None:
    """The difference of each block in percent over time; None for a metric without blocks."""
    sign = {start: value for start, value in metric.blocks if math.isfinite(value)}
    if not sign:
        return None
    values = {start: math.expm1(max(-20.0, min(20.0, value))) for start, value in sign.items()}
    bound = -metric.margin_ratio if metric.more_is_better else metric.margin_ratio
    lower, upper = _finite(metric.lower_ratio), _finite(metric.upper_ratio)
    delta = _finite(metric.delta_ratio)
    # Bounds may be as far off as they like; the blocks and the margin are what is looked at.
    seen = [*values.values(), 0.0, bound]
    low, high = min(seen), max(seen)
    room = 0.08 * (high - low)
    low, high = low - room, high + room
    start, end = min(values), max(values)

    def x(moment: float) -> float:
        share = 0.5 if end == start else (moment - start) / (end - start)
        return round(_LEFT + 6 + share * (WIDTH - _LEFT - _RIGHT - 12), 1)

    def y(ratio: float) -> float:
        share = (max(low, min(high, ratio)) - low) / (high - low)
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)

    band = None
    if lower is not None and upper is not None:
        band = (y(upper), max(round(y(lower) - y(upper), 1), 1.0))
    lines = [(y(0.0), "zero", "equal"), (y(bound), "margin", f"margin {bound * 100:+.3g} %")]
    if delta is not None:
        lines.append((y(delta), "delta", wording.difference(delta)))
    return Plot(
        title=wording.plain(metric.title),
        points=tuple(
            (x(moment), y(ratio), f"{wording.moment(moment)}: {wording.difference(ratio)}")
            for moment, ratio in sorted(values.items())
        ),
        band=band,
        lines=tuple(_apart(lines)),
        first=wording.moment(start),
        last=wording.moment(end),
    )


def _apart(lines: list[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    """The lines, without the labels of those that would be written over another's."""
    shown: list[tuple[float, str, str]] = []
    for height, style, label in reversed(lines):
        free = all(abs(height - other) >= 11 for other, _, said in shown if said)
        shown.append((height, style, label if free else ""))
    return shown


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def as_html(report: Report) -> str:
    """The page."""
    return _template().render(report=report, words=WORDS, wording=wording, plot=plot, version=__version__)


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("brimline", "compared"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = wording.plain
    return environment.get_template("report.html")
