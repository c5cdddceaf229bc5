"""The experiment file: which servers are compared, over which time, by which metrics and margins.

Ten lines suffice; everything else has a default. Mistakes read `FILE:LINE: what; what to do`, as in the
configuration.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from brimline.config import BasicAuth, Tls
from brimline.errors import ConfigError
from brimline.spelling import known_names
from brimline.strict_yaml import Schema, Seconds, Source, read_struct, read_text

Kind = Literal["static", "intensity", "affine", "rare", "tail"]
Role = Literal["baseline", "candidate"]
Routing = Literal["per_request", "sticky", "unknown"]

DEFAULT_BLOCK = Seconds(900.0)
DEFAULT_WARMUP = Seconds(600.0)
DEFAULT_MIN_BLOCKS = 6
# A month of quarters of an hour. Each edge of a block costs a question for each histogram.
MAX_BLOCKS = 3000
# A guess until `brimline ab aa` has looked at the servers' own noise.
DEFAULT_TIME_CONSTANT = Seconds(150.0)
# Identical command lines boot with pools that differ by about as much (vLLM issue 54383 and pull request
# 54479).
DEFAULT_BOOT_DEVIATION = 0.01


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    pass


class PrometheusConfig(_Struct, frozen=True):
    """The Prometheus (or what speaks its API: Mimir, Thanos, VictoriaMetrics) that holds the series."""

    url: str = "http://127.0.0.1:9090"
    bearer_token_file: str | None = None
    basic_auth: BasicAuth | None = None
    headers: dict[str, str] = {}
    tls: Tls | None = None


class Variant(_Struct, frozen=True):
    """One arm. selector: what of brimline_target_info belongs to it, such as `variant="long"`."""

    name: str
    role: Role
    selector: str | None = None


class Window(_Struct, frozen=True):
    """From start to end, or the last so much. Times as RFC 3339; end may be `now`."""

    start: str | None = None
    end: str = "now"
    last: Seconds | None = None


class MetricConfig(_Struct, frozen=True):
    """A metric by its name, with what differs from its default; or one of the user's own, by PromQL.

    query: one value for each arm and block. `$selector`, `$variant` and `$block` in it are replaced.
    """

    name: str
    kind: Kind | None = None
    query: str | None = None
    margin: float | None = None
    direction: Literal["less_is_better", "more_is_better"] | None = None
    gate: bool | None = None


class ExperimentFile(_Struct, frozen=True):
    """The file as it is written."""

    name: str
    variants: list[Variant]
    prometheus: PrometheusConfig = PrometheusConfig()
    window: Window = Window(last=Seconds(6 * 3600.0))
    treatment: list[str] = []
    routing: Routing = "unknown"
    warmup: Seconds = DEFAULT_WARMUP
    block_length: Seconds = DEFAULT_BLOCK
    min_blocks: int = DEFAULT_MIN_BLOCKS
    noise_time_constant: Seconds = DEFAULT_TIME_CONSTANT
    boot_deviation: float = DEFAULT_BOOT_DEVIATION
    load: Literal["requests", "prompt_tokens"] = "requests"
    metrics: list[MetricConfig] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """How one metric is compared.

    numerator, denominator: quantities of the catalog: counters by their growth, gauges by their integral
    over time. query: PromQL of the user instead. margin: a ratio, 0.05 for 5 %. quantile: of tails.
    moved_by_boots: False for what shape and dtype settle.
    """

    name: str
    title: str
    kind: Kind
    numerator: str = ""
    denominator: str = ""
    query: str | None = None
    more_is_better: bool = False
    margin: float = 0.05
    gate: bool = False
    unit: str = ""
    quantile: float = 0.0
    moved_by_boots: bool = True
    # The file itself makes a gate of it: then it is one also where nobody has it.
    demanded: bool = False

    @property
    def harm_margin(self) -> float:
        """The margin as a logarithm of harm: of a loss where more is better, else of a gain."""
        return -math.log1p(-self.margin) if self.more_is_better else math.log1p(self.margin)


# Of rare events three times as many more may be little; 5 is more likely meant to be percent.
MOST_RARE_MARGIN = 4.0
SECONDS = "seconds"
# Seconds of time pass in each arm, for metrics that are rates.
METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="inter_token_latency",
            title="mean time between tokens",
            kind="affine",
            numerator="inter_token_latency_seconds_sum",
            denominator="inter_token_latency_seconds_count",
            gate=True,
            unit="s",
        ),
        Metric(
            name="time_to_first_token",
            title="mean time to first token",
            kind="affine",
            numerator="time_to_first_token_seconds_sum",
            denominator="time_to_first_token_seconds_count",
            gate=True,
            unit="s",
        ),
        Metric(
            name="request_latency",
            title="mean latency of a request",
            kind="affine",
            numerator="request_e2e_latency_seconds_sum",
            denominator="request_e2e_latency_seconds_count",
            unit="s",
        ),
        Metric(
            name="tokens_per_running_request",
            title="tokens/s of a running request",
            kind="affine",
            numerator="generation_tokens_total",
            denominator="requests_running",
            more_is_better=True,
            margin=0.03,
            unit="tok/s",
        ),
        Metric(
            name="kv_bytes_per_token",
            title="KV cache bytes per cached token",
            kind="intensity",
            numerator="kv_cache_used_bytes",
            denominator="kv_cache_used_tokens",
            margin=0.01,
            gate=True,
            unit="B",
            moved_by_boots=False,
        ),
        Metric(
            name="kv_cache_usage",
            title="KV cache in use",
            kind="affine",
            numerator="kv_cache_usage_ratio",
            denominator=SECONDS,
            margin=0.1,
        ),
        Metric(
            name="preemptions",
            title="preemptions per million tokens",
            kind="rare",
            numerator="preemptions_total",
            denominator="generation_tokens_total",
            margin=0.5,
            gate=True,
        ),
        Metric(
            name="inter_token_latency_p95",
            title="95 % of times between tokens below",
            kind="tail",
            numerator="inter_token_latency_seconds",
            margin=0.1,
            unit="s",
            quantile=0.95,
        ),
        Metric(
            name="time_to_first_token_p95",
            title="95 % of times to first token below",
            kind="tail",
            numerator="time_to_first_token_seconds",
            margin=0.1,
            unit="s",
            quantile=0.95,
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticQuantity:
    """What one boot of a server settles. tolerance_ratio: how far apart two boots alike may be."""

    name: str
    title: str
    unit: str
    more_is_better: bool
    tolerance_ratio: float = DEFAULT_BOOT_DEVIATION


# Of all ranks together where they add up; bytes per token and requests as one rank has them.
STATIC: Mapping[str, StaticQuantity] = {
    quantity.name: quantity
    for quantity in (
        StaticQuantity(
            name="kv_cache_capacity_bytes", title="KV cache pool", unit="bytes", more_is_better=True
        ),
        StaticQuantity(
            name="kv_cache_capacity_tokens",
            title="tokens that the pool holds",
            unit="tokens",
            more_is_better=True,
        ),
        # Settled by dtype and shape; only counting in whole blocks moves it.
        StaticQuantity(
            name="kv_cache_bytes_per_token",
            title="KV cache bytes of a token",
            unit="bytes",
            more_is_better=False,
            tolerance_ratio=0.001,
        ),
        StaticQuantity(
            name="kv_cache_max_concurrency_requests",
            title="requests of full length at once",
            unit="requests",
            more_is_better=True,
        ),
        StaticQuantity(name="weights_bytes", title="weights", unit="bytes", more_is_better=False),
        StaticQuantity(
            name="memory_used_peak_bytes",
            title="GPU memory used at most",
            unit="bytes",
            more_is_better=False,
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What the file comes to: arms, times in seconds since the epoch, metrics with their margins."""

    name: str
    prometheus: PrometheusConfig
    baseline: Variant
    candidates: tuple[Variant, ...]
    start: float
    end: float
    treatment: tuple[str, ...]
    routing: Routing
    warmup: float
    block_length: float
    min_blocks: int
    noise_time_constant: float
    boot_deviation: float
    load: str
    metrics: tuple[Metric, ...]
    # The window's start moves with the clock: nothing that is looked at again and again may stand on it.
    is_sliding: bool = False

    @property
    def is_short(self) -> bool:
        """True where the blocks are too short or too few for a gate."""
        return (
            self.block_length < max(DEFAULT_BLOCK, 6 * self.noise_time_constant)
            or self.min_blocks < DEFAULT_MIN_BLOCKS
        )

    @property
    def block_edges(self) -> tuple[float, ...]:
        """Where blocks begin and end, from the start on; only whole blocks, none before the start."""
        count = max(int((self.end - self.start) / self.block_length + 1e-9), 0)
        return tuple(self.start + place * self.block_length for place in range(count + 1))

    def selector(self, variant: Variant) -> str:
        """What of brimline_target_info belongs to the arm."""
        return variant.selector or f'experiment="{self.name}",variant="{variant.name}"'


_SCHEMA = Schema(
    keys_at={
        (): ExperimentFile,
        ("prometheus",): PrometheusConfig,
        ("prometheus", "basic_auth"): BasicAuth,
        ("prometheus", "tls"): Tls,
        ("variants", 0): Variant,
        ("window",): Window,
        ("metrics", 0): MetricConfig,
    },
    hints={"variants": "a list of {name: …, role: baseline | candidate, selector: …}"},
    secret_keys=frozenset({"basic_auth", "headers", "url"}),
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}")


def parse(text: str, name: str = "experiment.yaml", *, now: float) -> Experiment:
    """The experiment from the text of a file. now: seconds since the epoch. Raises ConfigError."""
    file, source = read_struct(text, name, ExperimentFile, _SCHEMA)
    if not _NAME.fullmatch(file.name):
        raise source.error(
            ("name",),
            f"name {file.name!r} cannot be a label; use letters, digits and . _ : / - (at most 128)",
        )
    baseline, candidates = _arms(file, source)
    start, end = _times(file.window, source, now)
    for key in ("block_length", "noise_time_constant"):
        if getattr(file, key) <= 0:
            raise source.error((key,), f"{key} of zero is no time; write a duration such as 15m")
    if (end - start) / file.block_length > MAX_BLOCKS:
        raise source.error(
            ("window",),
            f"the window holds more than {MAX_BLOCKS} blocks of {file.block_length:g} s; begin it later, or "
            "write a longer block_length",
        )
    if file.min_blocks < 2:
        raise source.error(("min_blocks",), "fewer than 2 blocks have no spread; write 6")
    if not 0 <= file.boot_deviation < 1:
        raise source.error(("boot_deviation",), "boot_deviation is no ratio from 0 to 1; write 0.01")
    return Experiment(
        name=file.name,
        prometheus=file.prometheus,
        baseline=baseline,
        candidates=candidates,
        start=start,
        end=end,
        treatment=tuple(file.treatment),
        routing=file.routing,
        # As plain numbers, which every encoder takes.
        warmup=float(file.warmup),
        block_length=float(file.block_length),
        min_blocks=file.min_blocks,
        noise_time_constant=float(file.noise_time_constant),
        boot_deviation=file.boot_deviation,
        load=file.load,
        metrics=_metrics(file, source),
        is_sliding=file.window.last is not None and file.window.end == "now",
    )


def load(path: Path, *, now: float) -> Experiment:
    """The experiment from a file. Raises ConfigError, also where the file cannot be read."""
    return parse(read_text(path), str(path), now=now)


def _arms(file: ExperimentFile, source: Source) -> tuple[Variant, tuple[Variant, ...]]:
    seen: set[str] = set()
    for index, variant in enumerate(file.variants):
        if not _NAME.fullmatch(variant.name):
            raise source.error(
                ("variants", index, "name"),
                f"name {variant.name!r} cannot be a label; use letters, digits and . _ : / - (at most 128)",
            )
        if variant.name in seen:
            raise source.error(
                ("variants", index, "name"), f"the variant {variant.name!r} stands twice; rename one"
            )
        seen.add(variant.name)
        if variant.selector is not None and not variant.selector.strip():
            raise source.error(
                ("variants", index, "selector"),
                f"an empty selector chooses nothing; remove the key to choose by variant {variant.name!r}",
            )
        if variant.selector is not None and re.search(r"[{}\n]", variant.selector):
            raise source.error(
                ("variants", index, "selector"),
                'a selector is what stands between the braces; write variant="long"',
            )
    baselines = [variant for variant in file.variants if variant.role == "baseline"]
    candidates = tuple(variant for variant in file.variants if variant.role == "candidate")
    if len(baselines) != 1 or not candidates:
        raise source.error(
            ("variants",),
            f"{len(baselines)} baselines and {len(candidates)} candidates; "
            "write one variant with role: baseline and at least one with role: candidate",
        )
    return baselines[0], candidates


def _times(window: Window, source: Source, now: float) -> tuple[float, float]:
    if (window.last is None) == (window.start is None):
        raise source.error(("window",), "window needs one of `last: 6h` and `start: 2026-11-30T08:00:00Z`")
    end = now if window.end == "now" else _instant(window.end, source, "end")
    start = end - window.last if window.last is not None else _instant(window.start or "", source, "start")
    if start >= end and window.end != "now":
        raise source.error(("window",), "the window ends before it starts; swap its times")
    # One that begins later holds nothing yet.
    return start, max(min(end, now), start)


def _instant(text: str, source: Source, key: str) -> float:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise source.error(
            ("window", key), f"{text!r} is no time; write it as 2026-11-30T08:00:00Z"
        ) from None
    return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()


def _metrics(file: ExperimentFile, source: Source) -> tuple[Metric, ...]:
    """The default metrics with what the file changes, and those of the file's own after them."""
    chosen = dict(METRICS)
    seen: set[str] = set()
    for index, wanted in enumerate(file.metrics):
        place = ("metrics", index)
        if wanted.name in seen:
            raise source.error(
                (*place, "name"), f"the metric {wanted.name!r} stands twice; write its keys into one entry"
            )
        seen.add(wanted.name)
        known = METRICS.get(wanted.name) or _static(wanted.name)
        if known is None and wanted.query is None:
            names = known_names(wanted.name, [*METRICS, *STATIC])
            raise source.error(
                (*place, "name"), f"unknown metric {wanted.name!r}; {names}; or give a query of your own"
            )
        if known is not None and wanted.kind is not None and not _may_be(known.kind, wanted.kind):
            raise source.error((*place, "kind"), f"the kind of {wanted.name} is {known.kind}; remove the key")
        if known is None and wanted.kind in ("static", "rare", "tail"):
            raise source.error(
                (*place, "kind"),
                "a query gives one value for each arm and block; its kind is intensity, or affine if it "
                "grows with load",
            )
        most = MOST_RARE_MARGIN if known is not None and known.kind == "rare" else 1.0
        if wanted.margin is not None and not 0 < wanted.margin < most:
            raise source.error(
                (*place, "margin"),
                f"margin {wanted.margin:g} is no ratio from 0 to {most:g}; write 0.05 for 5 %",
            )
        base = known or Metric(name=wanted.name, title=wanted.name, kind="intensity", query=wanted.query)
        chosen[wanted.name] = Metric(
            name=base.name,
            title=base.title,
            kind=wanted.kind or base.kind,
            numerator=base.numerator,
            denominator=base.denominator,
            query=wanted.query,
            more_is_better=base.more_is_better
            if wanted.direction is None
            else wanted.direction == "more_is_better",
            margin=base.margin if wanted.margin is None else wanted.margin,
            gate=base.gate if wanted.gate is None else wanted.gate,
            demanded=wanted.gate is True,
            unit=base.unit,
            quantile=base.quantile,
            moved_by_boots=base.moved_by_boots,
        )
    return tuple(chosen.values())


def _may_be(kind: Kind, wanted: Kind) -> bool:
    """True where what a metric is made of can be compared in that way, too."""
    return kind == wanted or {kind, wanted} == {"intensity", "affine"}


def _static(name: str) -> Metric | None:
    """A static quantity as a metric, for those whom the file makes a gate of."""
    quantity = STATIC.get(name)
    if quantity is None:
        return None
    return Metric(
        name=name,
        title=quantity.title,
        kind="static",
        more_is_better=quantity.more_is_better,
        margin=quantity.tolerance_ratio,
        unit=quantity.unit,
    )


__all__ = [
    "METRICS",
    "STATIC",
    "ConfigError",
    "Experiment",
    "Metric",
    "PrometheusConfig",
    "Variant",
    "load",
    "parse",
]
