"""Ten lines suffice, and mistakes are named with their line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from brimline.ab.experiment import METRICS, STATIC, load, parse
from brimline.errors import ConfigError

NOW = 1_700_000_000.0
VARIANTS = "variants:\n- {name: a, role: baseline}\n- {name: b, role: candidate}\n"
SHORTEST = "name: ctx-128k\n" + VARIANTS


def test_four_lines_are_an_experiment() -> None:
    planned = parse(SHORTEST, now=NOW)

    assert planned.baseline.name == "a"
    assert planned.end - planned.start == 6 * 3600
    assert planned.is_sliding
    assert not planned.is_short
    assert len(planned.block_edges) == 25
    assert {metric.name for metric in planned.metrics} == set(METRICS)
    assert planned.selector(planned.baseline) == 'experiment="ctx-128k",variant="a"'


def test_only_whole_blocks_count() -> None:
    planned = parse(SHORTEST + 'window: {start: "2023-11-14T22:13:20Z"}\n', now=NOW + 2000)

    assert planned.block_edges == (NOW, NOW + 900, NOW + 1800)
    assert not planned.is_sliding


@pytest.mark.parametrize("key", ["block_length: 5m", "min_blocks: 4", "noise_time_constant: 300s"])
def test_blocks_too_short_or_few_are_known(key: str) -> None:
    assert parse(f"{SHORTEST}{key}\n", now=NOW).is_short


def test_a_margin_is_one_of_harm() -> None:
    planned = parse(
        SHORTEST + "metrics:\n"
        "- {name: tokens_per_running_request, margin: 0.1}\n"
        "- {name: inter_token_latency, margin: 0.1}\n",
        now=NOW,
    )

    margins = {metric.name: metric.harm_margin for metric in planned.metrics}
    assert margins["tokens_per_running_request"] == pytest.approx(-math.log(0.9))
    assert margins["inter_token_latency"] == pytest.approx(math.log(1.1))


def test_rare_events_may_be_a_few_times_as_many() -> None:
    planned = parse(SHORTEST + "metrics:\n- {name: preemptions, margin: 2}\n", now=NOW)

    [margin] = [metric.harm_margin for metric in planned.metrics if metric.name == "preemptions"]
    assert margin == pytest.approx(math.log(3))


def test_a_static_quantity_can_be_named() -> None:
    planned = parse(SHORTEST + "metrics:\n- {name: kv_cache_capacity_tokens, gate: true}\n", now=NOW)

    pool = next(metric for metric in planned.metrics if metric.kind == "static")
    assert pool.gate
    assert pool.more_is_better
    assert pool.margin == STATIC["kv_cache_capacity_tokens"].tolerance_ratio


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            SHORTEST + "metrics:\n- name: speed\n",
            "e.yaml:6: unknown metric 'speed'; known: inter_token_latency",
        ),
        (SHORTEST + "blocks: 3\n", "e.yaml:5: unknown key 'blocks'; did you mean 'min_blocks'? known: "),
        (SHORTEST + "metrics:\n- {name: preemptions, margin: 5}\n", "e.yaml:6: margin 5 is no ratio"),
        (
            SHORTEST + "metrics:\n- {name: inter_token_latency, margin: 1.5}\n",
            "e.yaml:6: margin 1.5 is no ratio",
        ),
        (
            SHORTEST + "metrics:\n- {name: inter_token_latency, kind: tail}\n",
            "e.yaml:6: the kind of inter_token_latency is affine; remove the key",
        ),
        (
            SHORTEST + "metrics:\n- {name: preemptions, kind: affine}\n",
            "e.yaml:6: the kind of preemptions is rare",
        ),
        (
            SHORTEST + "metrics:\n- {name: inter_token_latency_p95, kind: intensity}\n",
            "e.yaml:6: the kind of inter_token_latency_p95 is tail",
        ),
        (
            SHORTEST + "metrics:\n- {name: preemptions}\n- {name: preemptions, gate: false}\n",
            "e.yaml:7: the metric 'preemptions' stands twice; write its keys into one entry",
        ),
        (
            SHORTEST.replace("role: candidate", 'role: candidate, selector: ""'),
            "e.yaml:4: an empty selector chooses nothing; remove the key to choose by variant 'b'",
        ),
        (SHORTEST + "block_length: 0.5ms\n", "e.yaml:1: the window holds more than 3000 blocks of 0.0005 s"),
        (SHORTEST + "window: {last: 100000d}\n", "e.yaml:5: the window holds more than 3000 blocks of 900 s"),
        (SHORTEST + "window: {start: '0001-01-01'}\n", "e.yaml:5: the window holds more than 3000 blocks"),
        (SHORTEST + "metrics:\n- {name: own, query: q, kind: tail}\n", "e.yaml:6: a query gives one value"),
        (
            SHORTEST + "metrics:\n- {name: weights_bytes, kind: affine}\n",
            "e.yaml:6: the kind of weights_bytes",
        ),
        (SHORTEST + "window: {last: 6h, start: x}\n", "e.yaml:5: window needs one of"),
        (SHORTEST + "window: {start: yesterday}\n", "e.yaml:5: 'yesterday' is no time"),
        (SHORTEST + "min_blocks: 1\n", "e.yaml:5: fewer than 2 blocks"),
        (SHORTEST + "block_length: 0s\n", "e.yaml:5: block_length of zero"),
        (SHORTEST + "boot_deviation: 2\n", "e.yaml:5: boot_deviation is no ratio"),
        ("name: x\nvariants:\n- {name: a, role: baseline}\n", "e.yaml:2: 1 baselines and 0 candidates"),
        (
            "name: x\n" + VARIANTS + "- {name: a, role: candidate}\n",
            "e.yaml:5: the variant 'a' stands twice",
        ),
        ("name: 'a{b'\n" + VARIANTS, "e.yaml:1: name 'a{b' cannot be a label"),
    ],
)
def test_mistakes_are_named_with_their_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "e.yaml", now=NOW)

    assert str(caught.value).startswith(message)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.yaml", now=NOW)
