"""How figures, verdicts and names of a comparison read, in every form for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from brimline import units
from brimline.ab.result import NO_BLOCK, Comparison, Guard, MetricResult, Report, StaticResult
from brimline.verdicts import WORDS

# Rows of dropped blocks that are listed one by one.
MAX_DROPPED = 20
# Characters of a guard that is not known.
MAX_TEXT = 240

SIMULATED = "simulated: no server and no GPU was measured"


def plain(text: str) -> str:
    """The text without what a terminal or a reader would obey: control and direction characters."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


def brief(text: str) -> str:
    """The text, cut where it is an enumeration of everything there is."""
    text = plain(text)
    return (
        text
        if len(text) <= MAX_TEXT
        else f"{text[:MAX_TEXT].rpartition(', ')[0] or text[:MAX_TEXT]}, … (--json has all)"
    )


def counted(number: int, noun: str) -> str:
    """`1 block`, `8 blocks`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def amount(value: float | None, unit: str) -> str:
    """A value with its unit; `–` where nothing is known."""
    if value is None or not math.isfinite(value):
        return "–"
    match unit:
        case "s":
            return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"
        case "B" | "bytes":
            return units.format_bytes(value)
        case "tokens":
            return units.format_count(value)
        case "requests":
            return f"{value:,.2f}"
        case "":
            return f"{value:.4g}"
        case _:
            return f"{value:.4g} {plain(unit)}"


def difference(ratio: float | None) -> str:
    """`+3.1 %`; `–` where nothing is known."""
    return units.format_difference(None if ratio is None or not math.isfinite(ratio) else ratio)


def interval(lower: float | None, upper: float | None) -> str:
    """`−1.0 … +5.2 %`, ∞ where a side has no bound; empty where there is none at all."""
    if lower is None and upper is None:
        return ""

    def side(ratio: float | None, otherwise: str) -> str:
        return otherwise if ratio is None or not math.isfinite(ratio) else f"{ratio * 100:+.1f}"

    return f"{side(lower, '−∞')} … {side(upper, '+∞')} %"


def margin(metric: MetricResult) -> str:
    """How far the candidate may be off: `≤ +5 %` of what should be small."""
    percent = f"{metric.margin_ratio * 100:.3g} %"
    return f"≥ −{percent}" if metric.more_is_better else f"≤ +{percent}"


def hours(value: float | None) -> str:
    """`3.5 h`, `12 min`; empty where nothing is needed or known."""
    if value is None or not math.isfinite(value):
        return ""
    return units.format_duration(value * 3600)


def blocks(metric: MetricResult, comparison: Comparison) -> int:
    """The sample size: of counts of rare events, all blocks at once."""
    return len(metric.blocks) or comparison.blocks_used


def verdict_of_metric(metric: MetricResult, comparison: Comparison) -> str:
    """The verdict in words with the sample size, and what is still needed."""
    words = WORDS[metric.verdict]
    if metric.verdict == "inconclusive":
        words = words.partition(":")[0]
    count = blocks(metric, comparison)
    size = counted(count, "block") if count else ""
    needed = f"{hours(metric.hours_needed)} more" if metric.hours_needed is not None else ""
    more = ", ".join(part for part in (size, needed) if part)
    return f"{words} ({more})" if more else words


def verdict_of_static(static: StaticResult) -> str:
    """The verdict in words; it stands on one start of each."""
    words = WORDS[static.verdict]
    return words.partition(":")[0] if static.verdict == "inconclusive" else words


def moment(seconds: float) -> str:
    """A time as people read it, in UTC."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):
        return "–"


def sample(report: Report) -> str:
    """Over which time and how many blocks it was judged."""
    length = units.format_duration(report.block_seconds)
    blocks_used = counted(report.blocks_used, "block")
    return f"{moment(report.start)} to {moment(report.end)} UTC, {blocks_used} of {length}"


def warnings(report: Report) -> list[str]:
    """What everyone must know who reads a verdict."""
    found = [SIMULATED] if report.simulated else []
    if report.no_gate is not None:
        found.append(plain(report.no_gate))
    return list(dict.fromkeys([*found, *map(plain, report.notes)]))


def hours_needed(comparison: Comparison) -> str:
    """A sentence on how much longer it must run; empty where there is none."""
    if comparison.hours_needed is None or not math.isfinite(comparison.hours_needed):
        return ""
    return f"about {hours(comparison.hours_needed)} more of both variants until every gate can be decided"


def red(comparison: Comparison) -> list[Guard]:
    """The guards that forbid the comparison."""
    return [guard for guard in comparison.guards if guard.passed is False]


def untold(comparison: Comparison) -> list[Guard]:
    """The guards of which the series do not tell, without those that only wait for data."""
    return [
        guard
        for guard in comparison.guards
        if guard.passed is None and guard.detail != NO_BLOCK and guard.detail not in comparison.reasons
    ]


def ordered(comparison: Comparison) -> list[MetricResult]:
    """The gates, then the others, each in the order of the experiment."""
    return sorted(comparison.metrics, key=lambda metric: not metric.gate)


def left_out(report: Report) -> str:
    """How many blocks were left out, and of which comparisons."""
    count = counted(len(report.dropped), "block")
    if len(report.comparisons) <= 1:
        return f"{count} left out, in both variants"
    return (
        f"{count} left out: for a candidate that is named beside that candidate alone, for "
        f"{plain(report.baseline)} beside all of them"
    )


def dropped(report: Report) -> list[str]:
    """The blocks that were left out, each with its reason; of many the first ones."""
    lines = [f"{moment(start)}: {plain(reason)}" for start, reason in report.dropped[:MAX_DROPPED]]
    if len(report.dropped) > MAX_DROPPED:
        lines.append(f"and {len(report.dropped) - MAX_DROPPED} more, which --json lists")
    return lines


def notes(rows: Sequence[MetricResult | StaticResult]) -> list[str]:
    """What is to be said of single rows."""
    return [f"{plain(row.title)}: {plain(note)}" for row in rows for note in row.notes]


def estimands(comparison: Comparison) -> list[str]:
    """Differences at equal running requests beside those at equal offered load."""
    return [
        f"{plain(metric.title)}: {difference(metric.same_concurrency_delta_ratio)} "
        f"at equal running requests, {difference(metric.delta_ratio)} at equal load"
        for metric in comparison.metrics
        if metric.same_concurrency_delta_ratio is not None
    ]
