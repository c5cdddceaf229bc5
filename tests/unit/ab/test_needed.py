"""How long an experiment takes."""

from __future__ import annotations

import dataclasses
import io
import json
import math

import pytest
from rich.console import Console

from brimline.ab.experiment import Experiment, parse
from brimline.ab.needed import Events, Needed, deviations, events_of, longest, needed
from brimline.compared.hours import as_json, print_needed
from reports import comparison, metric, report


def experiment(more: str = "") -> Experiment:
    return parse(
        "name: kv\nvariants: [{name: a, role: baseline}, {name: b, role: candidate}]\n"
        "metrics: [{name: kv_bytes_per_token, gate: false}]\n" + more,
        now=1_790_000_000.0,
    )


def row(rows: tuple[Needed, ...], name: str) -> Needed:
    return next(one for one in rows if one.metric.name == name)


def test_noise_of_8_percent_needs_hours_for_5_percent_and_far_more_for_2() -> None:
    # By normal quantiles n = (1.645 + 0.842)^2 (0.08 / ln 1.05)^2 = 16.6; one or two more by t.
    noise = {"inter_token_latency": 0.08, "time_to_first_token": 0.08}
    wide = needed(experiment(), noise, replicas=3)
    metrics = tuple(dataclasses.replace(one, margin=0.02) for one in experiment().metrics)
    narrow = needed(dataclasses.replace(experiment(), metrics=metrics), noise, replicas=3)

    assert row(wide, "inter_token_latency").blocks in (18, 19)
    assert row(wide, "inter_token_latency").hours == pytest.approx(18.5 / 4 + 1 / 6, abs=0.2)
    assert 100 <= (row(narrow, "inter_token_latency").blocks or 0) <= 105


def test_fewer_blocks_than_the_least_are_never_planned() -> None:
    rows = needed(experiment(), {"inter_token_latency": 0.001}, replicas=3)

    assert row(rows, "inter_token_latency").blocks == 6


def test_boots_that_differ_by_more_than_the_margin_are_mended_by_no_time() -> None:
    one = needed(experiment("boot_deviation: 0.05\n"), {"inter_token_latency": 0.01})
    three = needed(experiment("boot_deviation: 0.05\n"), {"inter_token_latency": 0.01}, replicas=3)

    assert math.isinf(row(one, "inter_token_latency").blocks or 0)
    assert row(three, "inter_token_latency").blocks == 6


def test_a_little_noise_needs_a_few_blocks_also_of_one_server_each() -> None:
    # Of five blocks 3.07 * hypot(0.0141, 0.0089) = 0.0514, of six 0.0479; a margin of 5 % is 0.0488.
    rows = needed(experiment(), {one.name: 0.02 for one in experiment().metrics})

    assert row(rows, "inter_token_latency").blocks == 6
    assert longest(rows) is not None
    assert math.isfinite(longest(rows) or math.inf)


def test_no_boot_is_counted_for_what_shape_and_dtype_settle() -> None:
    noise = {"kv_bytes_per_token": 0.001}

    assert row(needed(experiment("boot_deviation: 0.05\n"), noise), "kv_bytes_per_token").blocks == 6


def test_looking_after_every_block_takes_longer() -> None:
    noise = {"inter_token_latency": 0.04, "time_to_first_token": 0.04}

    rows = needed(experiment(), noise, replicas=3)
    once, watched = longest(rows), longest(rows, watched=True)
    file = io.StringIO()
    print_needed(experiment(), rows, once, "--noise", Console(file=file, width=120, markup=False))

    assert once is not None
    assert watched is not None
    assert watched >= max(1.5 * once, 2.5)
    assert "Looked at after every block (`ab watch`" in file.getvalue()
    assert as_json(experiment(), rows, once, "x")["hours_watched"] == watched


def test_gates_come_first_and_the_longest_of_them_counts() -> None:
    rows = needed(
        experiment(),
        {"inter_token_latency": 0.02, "time_to_first_token": 0.08, "kv_cache_usage": 1.0},
        replicas=3,
    )

    assert [one.metric.gate for one in rows] == sorted((one.metric.gate for one in rows), reverse=True)
    assert longest(rows) == row(rows, "time_to_first_token").hours


def test_a_gate_whose_noise_is_not_known_leaves_the_whole_unknown() -> None:
    rows = needed(experiment(), {"inter_token_latency": 0.02}, replicas=3)

    assert longest(rows) is None
    assert row(rows, "time_to_first_token").hours is None


def test_what_boots_do_not_move_is_not_kept_waiting_for_more_of_them() -> None:
    rows = needed(experiment("boot_deviation: 0.05\n"), {"kv_bytes_per_token": 0.0001})

    assert row(rows, "kv_bytes_per_token").blocks == 6


def test_static_quantities_are_not_planned() -> None:
    assert "kv_cache_capacity_tokens" not in {one.metric.name for one in needed(experiment(), {})}


def test_rare_events_are_planned_by_how_many_there_were() -> None:
    noise = {"inter_token_latency": 0.02, "time_to_first_token": 0.02}
    unknown = needed(experiment(), noise, replicas=3)
    none = needed(experiment(), noise, {"preemptions": Events(0.0)}, replicas=3)
    few = needed(experiment(), noise, {"preemptions": Events(2.0)}, replicas=3)
    in_bursts = needed(experiment(), noise, {"preemptions": Events(2.0, 3.0)}, replicas=3)

    assert row(unknown, "preemptions").blocks is None
    assert longest(unknown) == row(unknown, "inter_token_latency").hours
    assert row(none, "preemptions").blocks == 6
    # By normal quantiles (1.645 + 0.842)^2 * 4 / ln(1.5)^2 = 150 events, two in each block.
    assert 70 <= (row(few, "preemptions").blocks or 0) <= 85
    assert longest(few) == row(few, "preemptions").hours
    assert (row(in_bursts, "preemptions").blocks or 0) == pytest.approx(
        3 * (row(few, "preemptions").blocks or 0), rel=0.1
    )


def test_of_several_candidates_the_one_with_the_fewest_events_counts() -> None:
    found = events_of(
        report(
            comparison(metrics=(metric("preemptions", events_per_block=8.0, dispersion=4.0),)),
            comparison(metrics=(metric("preemptions", events_per_block=3.0, dispersion=1.0),)),
        )
    )

    assert found == {"preemptions": Events(8.0, 4.0)}


def test_the_deviation_is_that_of_the_blocks_of_the_noisiest_candidate() -> None:
    # 1, -1, 1, -1 hundredths: sqrt(4/3) hundredths.
    calm = metric(blocks=tuple((900.0 * n, 0.01 * (-1) ** n) for n in range(4)))
    wild = metric(blocks=tuple((900.0 * n, 0.02 * (-1) ** n) for n in range(4)))
    few = metric("time_to_first_token", blocks=((0.0, 0.1), (900.0, 0.2)))

    found = deviations(report(comparison(metrics=(calm, few)), comparison(metrics=(wild,))))

    assert found == {"inter_token_latency": pytest.approx(0.02 * math.sqrt(4 / 3))}


def test_the_table_and_json_say_what_no_time_mends_and_what_is_not_known() -> None:
    one = experiment("boot_deviation: 0.05\n")
    rows = needed(one, {"inter_token_latency": 0.01})
    file = io.StringIO()

    print_needed(one, rows, math.inf, "--noise", Console(file=file, width=120, markup=False))
    document = json.loads(json.dumps(as_json(one, rows, math.inf, "--noise"), allow_nan=False))

    assert "no time suffices" in file.getvalue()
    assert "Run three servers of each variant" in file.getvalue()
    assert (document["hours"], document["enough"]) == (None, False)
    by_name = {each["name"]: each for each in document["metrics"]}
    assert by_name["inter_token_latency"]["enough"] is False
    assert by_name["time_to_first_token"]["enough"] is None
    assert as_json(one, rows, None, "x")["enough"] is None
