"""A comparison as a table."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from brimline.ab.result import Report
from brimline.compared import print_report
from reports import comparison, hostile, metric, not_comparable, report


def printed(shown: Report, width: int = 140) -> str:
    file = io.StringIO()
    print_report(shown, Console(file=file, width=width, markup=False, highlight=False, color_system=None))
    return file.getvalue()


def line(text: str, word: str) -> str:
    return next(each for each in text.splitlines() if word in each)


def test_a_metric_has_its_values_interval_margin_floor_and_verdict_with_the_sample_size() -> None:
    row = line(printed(report()), "mean time between tokens ")

    assert row.split("  ")[0].startswith("* mean time between tokens")
    for part in (
        "31.2 ms",
        "30.8 ms",
        "-1.2 %",
        "-3.5 … +1.1 %",
        "≤ +5 %",
        "±2.1 %",
        "PASS: no worse (8 blocks)",
    ):
        assert part in row


def test_what_is_undecided_says_how_much_longer() -> None:
    assert "INCONCLUSIVE (8 blocks, 3.5 h more)" in line(printed(report()), "mean latency of a request")


def test_more_is_better_has_a_margin_below() -> None:
    shown = report(comparison(metrics=(metric(more_is_better=True, margin_ratio=0.03),)))

    assert "≥ −3 %" in printed(shown)


def test_static_quantities_show_the_predicted_difference_beside_the_observed_one() -> None:
    row = line(printed(report()), "tokens that the pool holds")

    assert " ".join(row.split()) == (
        "tokens that the pool holds 389,872 779,760 +100.0 % +100.0 % ±1 % BETTER"
    )


def test_guards_in_the_way_stand_with_their_cure() -> None:
    text = printed(not_comparable())

    assert "kv-dtype: NOT COMPARABLE" in text
    assert "not comparable: hardware: H100 beside A100" in text
    assert "cure: run both variants on one kind of card" in text


def test_dropped_blocks_have_their_reasons_and_guards_are_counted() -> None:
    text = printed(report())

    assert "2026-09-21 16:13:20: chat-b restarted" in text
    assert "guards: 1 of 2 hold" in text
    assert "not known: routing: routing: unknown" in text


def test_many_dropped_blocks_are_counted() -> None:
    shown = report(dropped=tuple((900.0 * place, "gap") for place in range(100)))

    assert printed(shown).count(": gap") == 20
    assert "and 80 more" in printed(shown)


def test_both_estimands_are_told() -> None:
    assert "mean time between tokens: -0.9 % at equal running requests, -1.2 % at equal load" in printed(
        report()
    )


def test_short_blocks_and_simulated_servers_are_named_first() -> None:
    lines = printed(report(no_gate="short blocks: not for a gate", simulated=True)).splitlines()

    assert lines[2:4] == ["! simulated: no server and no GPU was measured", "! short blocks: not for a gate"]
    assert "!" not in printed(report()).replace("!=", "")


def test_what_has_no_bound_is_infinite_and_what_is_not_known_a_dash() -> None:
    shown = report(
        comparison(
            metrics=(metric(baseline=None, lower_ratio=-1.0, upper_ratio=float("inf"), delta_ratio=None),)
        )
    )

    row = line(printed(shown), "* mean time")
    assert "-100.0 … +∞ %" in row
    assert "–" in row


def test_a_hostile_name_reaches_no_terminal() -> None:
    text = printed(hostile(), 400)

    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[x](http://evil)" in text  # no markup is read


def test_a_report_without_anything_compared_is_printed() -> None:
    assert "INCONCLUSIVE" in printed(replace(report(), comparisons=(), verdict="inconclusive", dropped=()))


def test_on_a_narrow_terminal_no_word_is_broken() -> None:
    lines = printed(report(), width=40).splitlines()

    place = lines.index("* mean time between tokens")
    assert lines[place + 1 : place + 8] == [
        "    base: 31.2 ms",
        "    candidate: 30.8 ms",
        "    Δ: -1.2 %",
        "    95 %: -3.5 … +1.1 %",
        "    margin: ≤ +5 %",
        "    floor: ±2.1 %",
        "    verdict: PASS: no worse (8 blocks)",
    ]
    assert "  tokens that the pool holds" in lines
    assert max(map(len, lines)) <= 40


def test_blocks_left_out_for_one_candidate_are_not_told_as_left_out_for_all() -> None:
    one = report()
    two = report(comparison(), comparison(candidate="int4"))

    assert "1 block left out, in both variants:" in printed(one)
    whom = "for a candidate that is named beside that candidate alone, for bf16 beside all of them"
    assert f"1 block left out: {whom}:" in printed(two)
