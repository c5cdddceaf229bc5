"""A comparison as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from brimline.ab.result import Comparison, Report
from brimline.compared import wording
from brimline.fitted_table import print_table
from brimline.verdicts import WORDS

_STYLES = {
    "better": "green",
    "pass": "green",
    "worse": "bold red",
    "not_comparable": "yellow",
    "inconclusive": "",
}


def print_report(report: Report, console: Console) -> None:
    """Print the verdict, each candidate's metrics, static quantities and guards, and what was left out."""
    name = wording.plain(report.experiment)
    console.print(Text.assemble(f"{name}: ", (WORDS[report.verdict], _STYLES[report.verdict])))
    console.print(Text(f"baseline {wording.plain(report.baseline)}, {wording.sample(report)}"))
    for warning in wording.warnings(report):
        console.print(Text(f"! {warning}"))
    for comparison in report.comparisons:
        console.print()
        _print_comparison(report, comparison, console)
    if report.dropped:
        console.print(f"\n{wording.left_out(report)}:")
        for line in wording.dropped(report):
            console.print(Text(f"  {line}"))
    if report.is_sequential:
        console.print("Intervals hold however often one looks.")


def _print_comparison(report: Report, comparison: Comparison, console: Console) -> None:
    title = f"{wording.plain(comparison.candidate)} beside {wording.plain(report.baseline)}: "
    console.print(Text.assemble(title, (WORDS[comparison.verdict], _STYLES[comparison.verdict])))
    for reason in comparison.reasons:
        console.print(Text(f"  {wording.plain(reason)}"))
    for guard in wording.red(comparison):
        console.print(Text(f"  not comparable: {wording.plain(guard.name)}: {wording.plain(guard.detail)}"))
        if guard.cure:
            console.print(Text(f"    cure: {wording.plain(guard.cure)}"))
    if needed := wording.hours_needed(comparison):
        console.print(f"  {needed}")
    for setting, before, after in comparison.differing_settings:
        console.print(Text(f"  {wording.plain(setting)}: {wording.plain(before)} → {wording.plain(after)}"))
    if comparison.metrics:
        _print_metrics(comparison, console)
        console.print("* a gate: all of them decide the verdict. floor: what equal variants differ by.")
    if comparison.static:
        _print_static(comparison, console)
    for line in wording.estimands(comparison):
        console.print(Text(f"  {line}"))
    for note in wording.notes([*comparison.metrics, *comparison.static]):
        console.print(Text(f"! {note}"))
    passed = sum(guard.passed is True for guard in comparison.guards)
    if comparison.guards:
        console.print(f"guards: {passed} of {len(comparison.guards)} hold")
    for guard in wording.untold(comparison):
        console.print(Text(f"  not known: {wording.plain(guard.name)}: {wording.brief(guard.detail)}"))


Cell = str | Text


def _print_table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", show_edge=False)
    for place, heading in enumerate(headings):
        last = place == len(headings) - 1
        is_text = place == 0 or last
        table.add_column(
            heading, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text
        )
    for row in rows:
        table.add_row(*row)
    print_table(table, console)


def _print_metrics(comparison: Comparison, console: Console) -> None:
    headings = ("metric", "base", "candidate", "Δ", "95 %", "margin", "floor", "verdict")
    rows: list[tuple[Cell, ...]] = [
        (
            Text(f"{'* ' if metric.gate else '  '}{wording.plain(metric.title)}"),
            wording.amount(metric.baseline, metric.unit),
            wording.amount(metric.candidate, metric.unit),
            wording.difference(metric.delta_ratio),
            wording.interval(metric.lower_ratio, metric.upper_ratio),
            wording.margin(metric),
            _floor(metric.noise_floor_ratio),
            Text(wording.verdict_of_metric(metric, comparison), style=_STYLES[metric.verdict]),
        )
        for metric in wording.ordered(comparison)
    ]
    _print_table(console, headings, rows)


def _floor(ratio: float | None) -> str:
    return "" if ratio is None else f"±{abs(ratio) * 100:.1f} %"


def _print_static(comparison: Comparison, console: Console) -> None:
    headings = ("settled at the start", "base", "candidate", "Δ", "predicted Δ", "tolerance", "verdict")
    rows: list[tuple[Cell, ...]] = [
        (
            Text(f"{'* ' if static.gate else '  '}{wording.plain(static.title)}"),
            wording.amount(static.baseline, static.unit),
            wording.amount(static.candidate, static.unit),
            wording.difference(static.observed_delta_ratio),
            wording.difference(static.predicted_delta_ratio),
            f"±{static.tolerance_ratio * 100:.2g} %",
            Text(wording.verdict_of_static(static), style=_STYLES[static.verdict]),
        )
        for static in comparison.static
    ]
    _print_table(console, headings, rows)
