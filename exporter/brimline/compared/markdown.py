"""A comparison as Markdown, for a CI's summary."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from brimline.ab.result import Comparison, Report
from brimline.compared import wording
from brimline.verdicts import WORDS

# GitHub drops a step's summary above 1 MiB whole. Other steps' share of it is theirs.
MAX_BYTES = 960 << 10
_CUT = "\n\n(cut: `--json` has all)\n"

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+\-.!|~>@:$])")


def escaped(text: str) -> str:
    """Text that Markdown and the HTML in it show as it is, also in a cell of a table."""
    text = wording.plain(text).replace("&", "&amp;").replace("<", "&lt;")
    return _SPECIAL.sub(r"\\\1", text)


def as_markdown(report: Report) -> str:
    """The verdict with tables of metrics, static quantities and guards."""
    return _within("\n".join(_lines(report)) + "\n", MAX_BYTES)


def append_markdown(report: Report, path: Path) -> None:
    """Append the Markdown to a file, which other steps may have written to. Raises OSError."""
    text = as_markdown(report)
    with open(path, "a", encoding="utf-8") as file:
        room = MAX_BYTES - file.tell()
        if room < len(_CUT) + 200:
            return
        file.write(_within(text, room))


def _within(text: str, size: int) -> str:
    """The beginning of the text, up to a line's end, in at most so many bytes."""
    whole = text.encode()
    if len(whole) <= size:
        return text
    kept = whole[: size - len(_CUT.encode())].decode("utf-8", "ignore")
    return kept.rpartition("\n")[0] + _CUT


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _lines(report: Report) -> Iterator[str]:
    yield f"### {escaped(report.experiment)}: {escaped(WORDS[report.verdict])}"
    yield ""
    yield f"baseline {escaped(report.baseline)}, {escaped(wording.sample(report))}"
    for warning in wording.warnings(report):
        yield ""
        yield f"> {escaped(warning)}"
    for comparison in report.comparisons:
        yield from _comparison(report, comparison)
    if report.dropped:
        yield ""
        yield f"{escaped(wording.left_out(report))}:"
        yield ""
        yield from (f"- {escaped(line)}" for line in wording.dropped(report))


def _comparison(report: Report, comparison: Comparison) -> Iterator[str]:
    yield ""
    yield (
        f"#### {escaped(comparison.candidate)} beside {escaped(report.baseline)}: "
        f"{escaped(WORDS[comparison.verdict])}"
    )
    lines = [
        *comparison.reasons,
        *(
            f"not comparable: {guard.name}: {guard.detail}" + (f" (cure: {guard.cure})" if guard.cure else "")
            for guard in wording.red(comparison)
        ),
        *(f"{setting}: {before} → {after}" for setting, before, after in comparison.differing_settings),
    ]
    if needed := wording.hours_needed(comparison):
        lines.append(needed)
    if lines:
        yield ""
        yield from (f"- {escaped(line)}" for line in lines)
    if comparison.metrics:
        yield ""
        yield _row(("metric", "base", "candidate", "Δ", "95 %", "margin", "floor", "verdict"))
        yield _row(("---", "--:", "--:", "--:", "--:", "--:", "--:", "---"))
        for metric in wording.ordered(comparison):
            title = escaped(metric.title)
            cells = (
                wording.amount(metric.baseline, metric.unit),
                wording.amount(metric.candidate, metric.unit),
                wording.difference(metric.delta_ratio),
                wording.interval(metric.lower_ratio, metric.upper_ratio),
                wording.margin(metric),
                "" if metric.noise_floor_ratio is None else f"±{abs(metric.noise_floor_ratio) * 100:.1f} %",
                wording.verdict_of_metric(metric, comparison),
            )
            yield _row((f"**{title}**" if metric.gate else title, *map(escaped, cells)))
        yield ""
        yield "Bold: gates, which all decide the verdict. Floor: what equal variants differ by."
    if comparison.static:
        yield ""
        yield _row(("settled at the start", "base", "candidate", "Δ", "predicted Δ", "verdict"))
        yield _row(("---", "--:", "--:", "--:", "--:", "---"))
        for static in comparison.static:
            values = (
                wording.amount(static.baseline, static.unit),
                wording.amount(static.candidate, static.unit),
                wording.difference(static.observed_delta_ratio),
                wording.difference(static.predicted_delta_ratio),
                wording.verdict_of_static(static),
            )
            title = escaped(static.title)
            yield _row((f"**{title}**" if static.gate else title, *map(escaped, values)))
    more = [
        *wording.estimands(comparison),
        *wording.notes([*comparison.metrics, *comparison.static]),
        *(f"not known: {guard.name}: {wording.brief(guard.detail)}" for guard in wording.untold(comparison)),
    ]
    if more:
        yield ""
        yield from (f"- {escaped(line)}" for line in more)
