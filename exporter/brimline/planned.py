"""A plan as people and programs read it: a table, JSON, CSV."""

from __future__ import annotations

import csv
import io
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from brimline import units
from brimline.estimate import Estimate
from brimline.footprint.settings import flag
from brimline.footprint.what_if import Span
from brimline.plan import (
    NOT_SETTINGS,
    Bounds,
    Plan,
    Row,
    Suggestion,
    best,
    common_settings,
    shown_value,
    suggestions,
)

SCHEMA_VERSION = 1
GIB = 1 << 30
# Sentences of the predictions that are printed below a table, those of most rows first; JSON has all.
MAX_ASSUMPTIONS = 8
# Reasons for rows that cannot be, likewise.
MAX_REASONS = 12
# Longer values of sweeps are numbered.
MAX_CELL = 24

# --- For people


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of results. need: columns of the lowest need are left out first where the width is short."""

    heading: str
    need: int
    cell: Callable[[Row], str]


# Headings of settings that would be too wide in their own words.
_HEADINGS = {
    "max_model_len": "context",
    "tensor_parallel_size": "TP",
    "pipeline_parallel_size": "PP",
    "data_parallel_size": "DP",
    "kv_cache_dtype": "KV type",
    "gpu_memory_utilization": "util.",
    "max_num_seqs": "max seqs",
    "max_num_batched_tokens": "batch tokens",
    "quantization": "quant.",
    "engine_version": "version",
    "gpu": "GPU",
}

_VERDICTS = {"fits": "yes", "budget": "budget", "too_large": "NO", "impossible": "n/a", "unknown": "–"}


def _gib(size: float | None) -> str:
    return "–" if size is None else f"{size / GIB:.1f}"


def _percent(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio * 100:.0f}%"


def short_count(count: float | None) -> str:
    """`431k` for 431,072 and `1.23M` for 1,234,567; whole below 10,000."""
    if count is None:
        return "–"
    if count < 9_999.5:
        return f"{count:,.0f}"
    for divisor, letter in ((1e3, "k"), (1e6, "M"), (1e9, "G")):
        scaled = count / divisor
        if scaled < 999.5:
            return f"{scaled:.3g}{letter}"
    return f"{count:.2g}"


def _requests(count: float | None) -> str:
    if count is None:
        return "–"
    places = 2 if count < 10 else 1 if count < 100 else 0
    return f"{count:,.{places}f}"


def _free(row: Row) -> str:
    """What stays free; where it does not fit, what one request lacks, below zero."""
    if row.outcome == "too_large" and row.room is not None and row.room.low < 0:
        return _gib(row.room.low)
    return _gib(row.headroom.expected if row.headroom is not None else None)


def _together(row: Row) -> str:
    return short_count(row.speed_tokens_per_second)


_COLUMNS = (
    _Column("GPUs", 40, lambda row: "–" if row.gpus is None else str(row.gpus)),
    _Column("used", 30, lambda row: _percent(row.used_ratio)),
    _Column("free GiB", 90, _free),
    _Column("GiB per request", 10, lambda row: _gib(row.full_request_bytes)),
    _Column(
        "KV tokens",
        50,
        lambda row: short_count(row.capacity_tokens.expected if row.capacity_tokens is not None else None),
    ),
    _Column(
        "requests at once",
        95,
        lambda row: _requests(row.concurrency.expected if row.concurrency is not None else None),
    ),
    _Column("longest context", 70, lambda row: units.format_count(row.longest_context_tokens)),
    _Column("tok/s of one", 20, lambda row: short_count(row.decode_one_tokens_per_second)),
    _Column("tok/s together", 60, _together),
)


def print_plan(plan: Plan, rows: Sequence[Row], console: Console) -> None:
    """Print a row for each combination, within the console's width, and below it what there is to say."""
    marked = best(rows)
    reasons = list(dict.fromkeys(row.reason for row in rows if row.outcome == "impossible" and row.reason))
    console.print(", ".join(common_settings(plan, rows)))
    varied = [sweep.name for sweep in plan.sweeps if len(sweep.values) > 1]
    names = varied or [sweep.name for sweep in plan.sweeps]
    keys: list[str] = []
    columns: list[tuple[str, list[str]]] = [
        (
            _HEADINGS.get(name, name.replace("_", " ")),
            _brief(name, [shown_value(row, name) for row in rows], keys),
        )
        for name in names
    ]
    verdicts = [_verdict(row, reasons, is_best=index in marked) for index, row in enumerate(rows)]
    columns.append(("fits", verdicts))
    shown, left_out = _within(columns, rows, console.width)
    columns += shown
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", show_edge=False)
    for place, (heading, cells) in enumerate(columns):
        is_text = place < len(names) and not all(cell[:1].isdigit() for cell in cells)
        left = is_text or heading == "fits"
        width = _width(heading, cells) - 1
        table.add_column(heading, justify="left" if left else "right", overflow="fold", width=width)
    for index, row in enumerate(rows):
        style = "dim" if row.outcome in ("too_large", "impossible") else ""
        table.add_row(*(Text(cells[index]) for _, cells in columns), style=style)
    console.print(table)
    for line in keys:
        console.print(line)
    for line in _notes(rows, reasons, left_out, any_best=bool(marked)):
        console.print(line)
    for line in _changes(plan, suggestions(plan, rows)):
        console.print(line)
    for line in _assumed(rows):
        console.print(line)


def _brief(name: str, values: list[str], keys: list[str]) -> list[str]:
    """The values; long ones, such as JSON, by numbers that are explained in keys."""
    long = [value for value in dict.fromkeys(values) if len(value) > MAX_CELL]
    numbers = {value: f"#{number}" for number, value in enumerate(long, 1)}
    keys += [f"{name} {number}: {value}" for value, number in numbers.items()]
    return [numbers.get(value, value) for value in values]


def _verdict(row: Row, reasons: Sequence[str], *, is_best: bool) -> str:
    verdict = _VERDICTS[row.outcome]
    if row.outcome == "impossible" and row.reason is not None:
        return f"{verdict} {reasons.index(row.reason) + 1}"
    return f"{verdict} *" if is_best else verdict


def _width(heading: str, cells: Iterable[str]) -> int:
    return max(*(len(word) for word in heading.split()), *(len(cell) for cell in cells)) + 1


def _within(
    first: Sequence[tuple[str, list[str]]], rows: Sequence[Row], width: int
) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """The columns of results that there is room for, with their cells, and the headings of the others.

    Columns that no row fills are left out unsaid.
    """
    made = [(column, [column.cell(row) for row in rows]) for column in _COLUMNS]
    made = [(column, cells) for column, cells in made if any(cell != "–" for cell in cells)]
    taken = sum(_width(heading, cells) for heading, cells in first)
    kept: set[str] = set()
    for column, cells in sorted(made, key=lambda one: -one[0].need):
        needed = _width(column.heading, cells)
        if taken + needed > width + 1:
            break
        taken += needed
        kept.add(column.heading)
    shown = [(column.heading, cells) for column, cells in made if column.heading in kept]
    return shown, [column.heading for column, _ in made if column.heading not in kept]


def _notes(
    rows: Sequence[Row], reasons: Sequence[str], left_out: Sequence[str], *, any_best: bool
) -> Iterable[str]:
    if any_best:
        yield "* holds the most requests of full length of those that fit with this model and context"
    outcomes = {row.outcome for row in rows}
    for number, reason in enumerate(reasons[:MAX_REASONS], 1):
        yield f"n/a {number}: {reason}"
    if len(reasons) > MAX_REASONS:
        yield f"n/a: {len(reasons) - MAX_REASONS} more reasons, which --csv and --json have"
    if "budget" in outcomes:
        told = next(row.reason for row in rows if row.outcome == "budget")
        yield f"budget: {told}"
    if "too_large" in outcomes:
        yield (
            "NO: beside all else, by the high bounds, there is no room for one request of full length; "
            "free GiB then says what it lacks"
        )
    if "unknown" in outcomes:
        yield "Whether it fits is not known without --gpu or --sweep gpu=…"
    if any((row.replicas or 1) > 1 for row in rows):
        yield "Tokens, requests and tok/s together are of all data-parallel replicas."
    if any(row.decode_one_tokens_per_second is not None for row in rows):
        yield (
            "tok/s: ceilings by memory bandwidth, of one request alone and of as many as run at once, each "
            "at full context; real servers stay below"
        )
    if any(row.decode_even_all_tokens_per_second is not None for row in rows):
        yield "tok/s together count as many experts as tokens routed evenly need, where a model has experts."
    if left_out:
        yield f"Not shown for want of width: {', '.join(left_out)} (--csv and --json have all)."


def _changes(plan: Plan, found: Sequence[Suggestion]) -> Iterable[str]:
    if not found:
        return
    yield "Nothing fits. Each of these would:"
    swept = [sweep.name for sweep in plan.sweeps if len(sweep.values) > 1]
    for one in found:
        change = " ".join(f"{flag(name)} {shlex.quote(value)}" for name, value in one.change.items())
        rest = [f"{name}={shown_value(one.row, name)}" for name in swept if name not in one.change]
        beside = f" with {', '.join(rest)}" if rest else ""
        held = one.row.concurrency
        requests = f": {_requests(held.expected)} requests at once" if held is not None else ""
        gpus = f" on {one.row.gpus} GPUs" if (one.row.gpus or 1) > 1 else ""
        yield f"  {change}{beside}{requests}{gpus}"
    yield "  (Whether the engine has kernels for a type on this GPU is not looked at.)"


def _assumed(rows: Sequence[Row]) -> Iterable[str]:
    counted = Counter(text for row in rows for text in row.assumptions)
    texts = [text for text, _ in counted.most_common()]
    for text in texts[:MAX_ASSUMPTIONS]:
        yield f"! {text}"
    if len(texts) > MAX_ASSUMPTIONS:
        yield f"! and {len(texts) - MAX_ASSUMPTIONS} more assumptions, which --json lists with each row"


# --- For programs


def as_json(plan: Plan, rows: Sequence[Row]) -> dict[str, Any]:
    """The plan in its published form: bytes, and null for what is not known."""
    marked = best(rows)
    return {
        "schema_version": SCHEMA_VERSION,
        "engine": plan.engine,
        "sweeps": {sweep.name: list(sweep.values) for sweep in plan.sweeps},
        "rows": [{**_row_json(row), "best": index in marked} for index, row in enumerate(rows)],
        "suggestions": [
            {"change": dict(one.change), "row": _row_json(one.row)} for one in suggestions(plan, rows)
        ],
    }


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "model": row.model,
        "gpu": row.scenario.gpu.name if row.scenario.gpu is not None else None,
        "engine_version": row.scenario.version,
        "settings": dict(row.scenario.settings),
        "outcome": row.outcome,
        "fits": None if row.outcome == "unknown" else row.outcome == "fits",
        "reason": row.reason,
        "gpus": row.gpus,
        "context_tokens": row.context_tokens,
        "total_bytes": _spread(row.total),
        "card_bytes": _spread(row.card_bytes),
        "used_ratio": row.used_ratio,
        "headroom_bytes": _spread(row.headroom),
        "room_bytes": _spread(row.room),
        "full_request_bytes": row.full_request_bytes,
        "kv_cache_capacity_tokens": _spread(row.capacity_tokens, whole=True),
        "max_concurrency_requests": _spread(row.concurrency),
        "longest_context_tokens": row.longest_context_tokens,
        "decode_ceiling_one": _rate(1, row.decode_one_tokens_per_second),
        "decode_ceiling_all": _rate(row.decode_all_requests, row.decode_all_tokens_per_second),
        "decode_routed_evenly_one": _rate(1, row.decode_even_one_tokens_per_second),
        "decode_routed_evenly_all": _rate(row.decode_all_requests, row.decode_even_all_tokens_per_second),
        "calibrated": row.calibrated,
        "assumptions": list(row.assumptions),
    }


def _rate(requests: int | None, tokens_per_second: float | None) -> dict[str, Any] | None:
    if tokens_per_second is None:
        return None
    return {"requests": requests, "tokens_per_second": tokens_per_second}


def _spread(bounds: Estimate | Span | Bounds | None, *, whole: bool = False) -> dict[str, Any] | None:
    if bounds is None:
        return None
    low, expected, high = bounds.low, bounds.expected, bounds.high
    if whole:
        low, expected, high = int(low), int(expected), int(high)
    return {"low": low, "expected": expected, "high": high}


def as_csv(plan: Plan, rows: Sequence[Row]) -> str:
    """One line for each combination under names that carry their unit; bytes are whole numbers."""
    stated = dict.fromkeys((*plan.settings, *(sweep.name for sweep in plan.sweeps)))
    names = [name for name in stated if name not in NOT_SETTINGS]
    marked = best(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for index, row in enumerate(rows):
        cells = _cells(row, names, is_best=index in marked)
        if not index:
            writer.writerow(cells)
        writer.writerow("" if value is None else value for value in cells.values())
    return text.getvalue()


def _cells(row: Row, names: Iterable[str], *, is_best: bool) -> dict[str, object]:
    document = {**_row_json(row), "best": is_best}
    cells: dict[str, object] = {"model": row.model, "gpu": document["gpu"], "engine": row.scenario.engine}
    cells["engine_version"] = row.scenario.version
    cells |= {name: row.scenario.settings.get(name) for name in names}
    for name in ("outcome", "fits", "best", "reason", "gpus"):
        value = document[name]
        cells[name] = str(value).lower() if isinstance(value, bool) else value
    cells["context_tokens"] = row.context_tokens
    for name in ("total_bytes", "card_bytes", "headroom_bytes", "room_bytes"):
        cells |= _three(name, document[name])
    cells["used_ratio"] = None if row.used_ratio is None else round(row.used_ratio, 6)
    cells["full_request_bytes"] = row.full_request_bytes
    for name in ("kv_cache_capacity_tokens", "max_concurrency_requests"):
        cells |= _three(name, document[name])
    cells["longest_context_tokens"] = row.longest_context_tokens
    for name in ("decode_ceiling_one", "decode_ceiling_all"):
        rate = document[name] or {}
        cells[f"{name}_requests"] = rate.get("requests")
        cells[f"{name}_tokens_per_second"] = _rounded(rate.get("tokens_per_second"))
    for name in ("decode_routed_evenly_one", "decode_routed_evenly_all"):
        cells[f"{name}_tokens_per_second"] = _rounded((document[name] or {}).get("tokens_per_second"))
    return cells


def _rounded(speed: float | None) -> float | None:
    return None if speed is None else round(speed, 3)


def _three(name: str, bounds: Mapping[str, float] | None) -> dict[str, object]:
    what, _, unit = name.rpartition("_")
    found = bounds or {}
    return {
        f"{what}_{bound}_{unit}": round(value, 3) if isinstance(value := found.get(bound), float) else value
        for bound in ("low", "expected", "high")
    }
