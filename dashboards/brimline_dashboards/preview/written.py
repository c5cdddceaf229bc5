"""Numbers in the units of panels, about as Grafana writes them; colours by thresholds and mappings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from brimline_dashboards.panels import Json

_IEC = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SHORT = ("", " K", " Mil", " Bil", " Tri")
_TIMES = ((86400.0, "days"), (3600.0, "hours"), (60.0, "mins"), (1.0, "s"), (1e-3, "ms"))


def plain(value: float, decimals: int | None) -> str:
    """The number itself, to three digits or so unless decimals says more."""
    if decimals is None:
        size = abs(value)
        decimals = 0 if size >= 100 or value == int(value) else 1 if size >= 10 else 2 if size >= 0.1 else 3
    return f"{value:,.{decimals}f}"


def written(value: float, unit: str | None, decimals: int | None = None) -> str:
    """The value with its unit."""
    if not math.isfinite(value):
        return ""
    if unit == "bytes":
        return _scaled(value, 1024, _IEC, decimals, " ")
    if unit == "short":
        return _scaled(value, 1000, _SHORT, decimals, "")
    if unit == "percentunit":
        return f"{plain(value * 100, decimals)}%"
    if unit == "s":
        size = abs(value)
        each, name = next((one for one in _TIMES if size >= one[0]), _TIMES[-1])
        return "0 s" if value == 0 else f"{plain(value / each, decimals)} {name}"
    if unit == "cps":
        return f"{plain(value, decimals)} c/s"
    if unit is not None and unit.startswith("suffix:"):
        suffix = unit.removeprefix("suffix:")
        return plain(value, decimals) + (suffix if suffix.startswith(" ") else f" {suffix}")
    return plain(value, decimals)


def marks_written(marks: Sequence[float], unit: str | None) -> list[str]:
    """The marks of an axis, with as few digits as tell them apart."""
    for decimals in range(5):
        texts = [written(mark, unit, decimals) for mark in marks]
        if len(set(texts)) == len(texts):
            break
    return texts


def _scaled(value: float, base: int, names: Sequence[str], decimals: int | None, between: str) -> str:
    place = 0
    while abs(value) >= base and place < len(names) - 1:
        value, place = value / base, place + 1
    return f"{plain(value, decimals)}{between}{names[place]}"


def step_between_marks(span: float, unit: str | None, marks: int = 4) -> float:
    """A round distance of the axis' marks: round in GiB for bytes, in decimals else."""
    rough = span / marks if span > 0 else 1.0
    base = 1024.0 ** int(math.log(rough, 1024)) if unit == "bytes" and rough >= 1 else 1.0
    rough /= base
    power = 10.0 ** math.floor(math.log10(rough))
    return base * power * next(each for each in (1, 2, 5, 10) if each * power >= rough * 0.999)


def mapped(value: float, mappings: Sequence[Json]) -> tuple[str, str] | None:
    """The words and the colour that stand for the value."""
    for mapping in mappings:
        found: Mapping[str, Any] | None = mapping["options"].get(f"{value:g}")
        if found is not None:
            return found["text"], found["color"]
    return None


def threshold_color(value: float, thresholds: Json) -> str:
    """The colour of the last step that the value reaches."""
    color = ""
    for step in thresholds["steps"]:
        if step["value"] is None or value >= step["value"]:
            color = step["color"]
    return str(color)


def css_color(color: str) -> str:
    """Grafana's named colours as CSS."""
    return "currentColor" if color == "text" else color


def heat_color(share: float) -> tuple[str, str]:
    """Background and text: from pale to dark blue, as the scheme continuous-blues runs."""
    share = min(max(share, 0.0), 1.0)
    pale, dark = (222, 235, 247), (8, 48, 107)
    red, green, blue = (round(low + (high - low) * share) for low, high in zip(pale, dark, strict=True))
    return f"rgb({red},{green},{blue})", "#fff" if share > 0.45 else "#111"
