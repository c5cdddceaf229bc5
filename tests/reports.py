"""Comparisons as the procedure hands them over, made by hand for tests of what is printed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from brimline.ab.result import Comparison, Guard, MetricResult, Report, StaticResult

START = 1_790_000_000.0  # 2026-09-21 14:13:20 UTC
# What people may write into labels, and what a reader of each form would obey.
HOSTILE = "a|b`c`<script>alert(1)</script>\x1b[31m\n[x](http://evil)&\"'\u202e"


def metric(name: str = "inter_token_latency", **changes: Any) -> MetricResult:
    """Time between tokens, 1.2 % better, decided over eight blocks."""
    usual = MetricResult(
        name=name,
        title="mean time between tokens",
        kind="affine",
        unit="s",
        gate=True,
        margin_ratio=0.05,
        more_is_better=False,
        verdict="pass",
        baseline=0.0312,
        candidate=0.0308,
        delta_ratio=-0.012,
        lower_ratio=-0.035,
        upper_ratio=0.011,
        same_concurrency_delta_ratio=-0.009,
        p_worse=0.85,
        blocks=tuple((START + 900.0 * place, -0.012 + 0.01 * (-1) ** place) for place in range(8)),
        noise_floor_ratio=0.021,
    )
    return replace(usual, **changes)


def static(**changes: Any) -> StaticResult:
    """A pool that holds twice as many tokens, as predicted."""
    usual = StaticResult(
        name="kv_cache_capacity_tokens",
        title="tokens that the pool holds",
        unit="tokens",
        baseline=389_872,
        candidate=779_760,
        predicted_baseline=390_000,
        predicted_candidate=780_000,
        tolerance_ratio=0.01,
        verdict="better",
    )
    return replace(usual, **changes)


def comparison(**changes: Any) -> Comparison:
    """One candidate that passes, with a guard of which the series do not tell."""
    usual = Comparison(
        candidate="fp8",
        verdict="pass",
        reasons=("every gate is inside its margin",),
        guards=(
            Guard(name="hardware", passed=True, detail="both on NVIDIA H100 80GB HBM3"),
            Guard(name="routing", passed=None, detail="routing: unknown", cure="state routing in the file"),
        ),
        metrics=(
            metric(),
            metric(
                "request_latency", title="mean latency of a request", gate=False, verdict="inconclusive",
                hours_needed=3.5, noise_floor_ratio=None, same_concurrency_delta_ratio=None,
            ),
        ),
        static=(static(),),
        differing_settings=(("kv_cache_dtype", "auto", "fp8"),),
    )  # fmt: skip
    return replace(usual, **changes)


def report(*comparisons: Comparison, **changes: Any) -> Report:
    """A whole run of eight blocks, one of which was dropped."""
    compared = comparisons or (comparison(),)
    usual = Report(
        experiment="kv-dtype",
        baseline="bf16",
        start=START,
        end=START + 9 * 900.0,
        block_seconds=900.0,
        blocks_used=8,
        verdict=compared[0].verdict,
        comparisons=compared,
        dropped=((START + 7200.0, "chat-b restarted"),),
        fingerprints=(("chat-a", "0123456789ab"), ("chat-b", "ba9876543210")),
        queries=("brimline_target_info",),
    )
    return replace(usual, **changes)


def not_comparable() -> Report:
    """A run that a guard forbids to judge."""
    guard = Guard(
        name="hardware", passed=False, detail="H100 beside A100", cure="run both variants on one kind of card"
    )
    return report(
        comparison(
            verdict="not_comparable",
            guards=(guard,),
            reasons=("hardware",),
            metrics=(metric(verdict="not_comparable", delta_ratio=None, lower_ratio=None, upper_ratio=None),),
        )
    )


def hostile() -> Report:
    """Every text that others write is hostile."""
    bad = HOSTILE
    return report(
        comparison(
            candidate=bad,
            verdict="worse",
            reasons=(bad,),
            guards=(Guard(name=bad, passed=False, detail=bad, cure=bad),),
            metrics=(metric(bad, title=bad, verdict="worse", notes=(bad,), unit=bad),),
            static=(static(title=bad, notes=(bad,), unit=bad),),
            differing_settings=((bad, bad, bad),),
        ),
        experiment=bad,
        baseline=bad,
        dropped=((START, bad),),
        notes=(bad,),
        fingerprints=((bad, bad),),
        queries=(bad,),
    )
