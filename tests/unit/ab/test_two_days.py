"""The baseline beside itself a day earlier."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ab_traffic import START, Traffic, simulate
from brimline.ab.experiment import Experiment, parse
from brimline.ab.observations import Observations
from brimline.ab.procedure import judge, noise_floor_of
from brimline.ab.two_days import DAY_SECONDS, earlier, side_by_side

HOURS = 4.0


def experiment() -> Experiment:
    return parse(
        "name: test\nvariants: [{name: a, role: baseline}, {name: b, role: candidate}]\n"
        'window: {start: "2023-11-14T22:13:20Z"}\nrouting: per_request\ntreatment: [max_model_len]\n',
        now=START + HOURS * 3600,
    )


def seen(planned: Experiment, seed: int) -> Observations:
    return simulate(planned, Traffic(), np.random.default_rng(seed)).observations


def test_the_day_before_is_asked_for_the_baseline_alone() -> None:
    before = earlier(experiment())

    assert (before.start, before.end) == (START - DAY_SECONDS, START + HOURS * 3600 - DAY_SECONDS)
    assert before.candidates == ()


def test_two_days_become_two_arms_at_one_time() -> None:
    yesterday = replace(experiment(), start=START - DAY_SECONDS, end=experiment().end - DAY_SECONDS)

    twofold, both = side_by_side(experiment(), seen(experiment(), 1), seen(yesterday, 2))

    first, second = (both.arms[name].replicas[0] for name in ("a (now)", "a (before)"))
    assert twofold.baseline.name == "a (now)"
    for quantity in first.series.counters:
        times = [one.series.counters[quantity].times[[0, -1]] for one in (first, second)]
        assert times[0] == pytest.approx(times[1], abs=60)


def test_they_give_a_noise_floor_as_two_servers_would() -> None:
    yesterday = replace(experiment(), start=START - DAY_SECONDS, end=experiment().end - DAY_SECONDS)

    report = judge(*side_by_side(experiment(), seen(experiment(), 1), seen(yesterday, 2)))

    floor = noise_floor_of(report)
    assert report.blocks_used >= 12
    assert 0 < floor["inter_token_latency"] < 0.5
    assert {one.verdict for one in report.comparisons[0].metrics if one.gate} & {"pass", "inconclusive"}
