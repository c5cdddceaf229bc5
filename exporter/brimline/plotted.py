"""A plan as a picture: room and concurrency by context length. The only door to matplotlib."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from brimline.errors import FootprintError
from brimline.extras import install_command
from brimline.footprint.what_if import Span
from brimline.plan import Bounds, Curve, Plan, Row, common_settings, shown_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GIB = 1 << 30
# Okabe and Ito, Color Universal Design: told apart with every kind of colour vision. Yellow, too pale for a
# line on white, is left out. Marks differ with the colours, strokes beyond them.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_STROKES = ("-", "--", ":")


class _Style(NamedTuple):
    colour: str
    mark: str
    stroke: str


def check_library() -> None:
    """Raise FootprintError where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise FootprintError(
            "--plot needs matplotlib; install the extra in a clone of this repository: "
            f"{install_command('plot')}"
        )


def draw(plan: Plan, curves: Sequence[Curve], file: Path) -> None:
    """Write the picture; the file's name says whether as PNG or SVG. Raises OSError."""
    import matplotlib
    from matplotlib.figure import Figure

    lines = [(_label(plan, curve), curve) for curve in curves if curve.rows]
    # Text stays text in SVG, and the same plan makes the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "brimline"}):
        figure = Figure(figsize=(11, 5.2 + 0.22 * -(-len(lines) // 2)), layout="constrained")
        left, right = figure.subplots(1, 2)
        for index, (label, curve) in enumerate(lines):
            place = index % len(_COLOURS)
            style = _Style(_COLOURS[place], _MARKS[place], _STROKES[index // len(_COLOURS) % len(_STROKES)])
            rooms = [(row, _gib(row.room)) for row in curve.rows if row.room is not None]
            held = [(row, row.concurrency) for row in curve.rows if row.concurrency is not None]
            _line(left, rooms, style, label)
            # No logarithm shows a cache of no tokens.
            _line(right, [(row, bounds) for row, bounds in held if bounds.expected > 0], style, label)
        _finish(left, right, [row for _, curve in lines for row in curve.rows])
        title = ", ".join(common_settings(plan, [row for _, curve in lines for row in curve.rows]))
        figure.suptitle(textwrap.fill(title, 110), size=12)
        if len(lines) > 1:
            handles, labels = left.get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        if file.suffix.lower() == ".svg":
            figure.savefig(file, format="svg", metadata={"Date": None})
        else:
            figure.savefig(file, format="png", dpi=150)


def _label(plan: Plan, curve: Curve) -> str:
    varied = [sweep.name for sweep in plan.sweeps if len(sweep.values) > 1 and sweep.name in curve.chosen]
    values = {name: shown_value(curve.rows[0], name) for name in varied}
    return ", ".join(
        value if name in ("model", "gpu") else f"{name}={value}" for name, value in values.items()
    )


def _gib(span: Span) -> Bounds:
    return Bounds(span.low / GIB, span.expected / GIB, span.high / GIB)


def _line(axes: Axes, points: Sequence[tuple[Row, Bounds]], style: _Style, label: str) -> None:
    """A line of what is expected in a band of its bounds; rows that do not fit have an empty mark."""
    lengths = [row.context_tokens or 0 for row, _ in points]
    low, expected, high = ([bounds[place] for _, bounds in points] for place in range(3))
    axes.fill_between(lengths, low, high, color=style.colour, alpha=0.13, linewidth=0)
    axes.plot(
        lengths, expected, label=label, color=style.colour, linestyle=style.stroke, linewidth=1.8,
        marker=style.mark, markersize=5,
    )  # fmt: skip
    empty = [(row.context_tokens or 0, bounds.expected) for row, bounds in points if row.outcome != "fits"]
    axes.plot(
        [length for length, _ in empty], [value for _, value in empty], color=style.colour, linestyle="none",
        marker=style.mark, markersize=5, markerfacecolor="white",
    )  # fmt: skip


def _finish(left: Axes, right: Axes, rows: Sequence[Row]) -> None:
    """Scales, titles and what the marks mean."""
    lengths = sorted({row.context_tokens for row in rows if row.context_tokens is not None})
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        names = [_tokens(length) for length in lengths]
        axes.set_xticks(lengths, names, rotation=45 if len(lengths) > 10 else 0)
        axes.minorticks_off()
        axes.set_xlabel("context length (tokens)")
        axes.grid(visible=True, color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    left.set_title(
        "Room beside all but the KV cache and one request of full length\n"
        "(line: expected; it fits where all of its band is above 0)",
        size=10,
    )
    left.set_ylabel("GiB on the fullest GPU")
    left.axhline(0, color="black", linewidth=1)
    lowest = left.get_ylim()[0]
    if lowest < 0:
        left.axhspan(lowest, 0, color="black", alpha=0.05, linewidth=0)
        left.set_ylim(bottom=lowest)
    right.set_title("Requests of full length that the KV cache holds\n(empty marks: does not fit)", size=10)
    right.set_ylabel("requests at once, on all replicas")
    right.set_yscale("log")
    right.yaxis.set_major_formatter(lambda value, _place: f"{value:,.10g}")
    right.axhline(1, color="black", linewidth=1)


def _tokens(length: int) -> str:
    """`128K` for 131,072 tokens, `128,000` for 128,000."""
    return f"{length >> 10}K" if length >= 1024 and length & (length - 1) == 0 else f"{length:,}"
