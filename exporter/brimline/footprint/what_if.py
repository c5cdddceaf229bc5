"""What a server would use with other settings: a prediction, its curve over the context, and its limits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from brimline.errors import FootprintError
from brimline.footprint.calibration import Calibration
from brimline.footprint.controls import control_of
from brimline.footprint.gpus import Gpu
from brimline.footprint.predict import Model, as_json, predict
from brimline.footprint.settings import Settings
from brimline.readings import Footprint

# Where the curve begins, unless the model ends before.
SHORTEST_CONTEXT = 1024
# Where it ends for a model that states no context length.
LONGEST_UNSTATED = 131072
# Sizes of one stage that machines are built for; those that the model cannot be split into are left out.
TENSOR_PARALLEL_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A server to be predicted. settings: the engine's own flags, by their names with underscores."""

    model: Model
    engine: str
    settings: Settings
    version: str | None = None
    gpu: Gpu | None = None
    calibration: Calibration | None = None

    def footprint(self) -> Footprint:
        """Raises FootprintError."""
        return predict(
            self.engine,
            self.model,
            self.settings,
            version=self.version,
            gpu=self.gpu,
            calibration=self.calibration,
        )

    def having(self, name: str, value: object) -> Scenario:
        """The same server with one setting changed."""
        return replace(self, settings={**self.settings, name: str(value)})


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes with bounds that, unlike those of an Estimate, may be negative: what is left or lacking."""

    low: int
    expected: int
    high: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One context length. fits: see suits(); headroom, room: see there.

    context_tokens: as the setting says it. concurrency: requests at once of the length that it allows each.
    """

    context_tokens: int
    full_request_bytes: int
    fits: bool | None
    headroom: Span | None
    room: Span | None
    concurrency: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What does not depend on the context length that is set.

    curve: in ascending order. longest_context: of the model. longest_fitting: the longest context length that
    fits; None where none does, or without a GPU. tensor_parallel_sizes: those the model can be split into.
    is_whole: False where time ran out and points or sizes are missing.
    """

    curve: tuple[CurvePoint, ...]
    longest_context: int
    longest_fitting: int | None
    tensor_parallel_sizes: tuple[int, ...]
    is_whole: bool


def suits(footprint: Footprint) -> bool | None:
    """Whether the GPU holds it and the engine starts, both by the cautious bounds; None without a GPU."""
    return None if footprint.fits is None else footprint.fits and footprint.starts is not False


def headroom(footprint: Footprint, gpu: Gpu) -> Span:
    """What stays free on the fullest GPU once the server has taken all it will."""
    whole, visible = footprint.fullest.total, gpu.visible_bytes
    return Span(visible.low - whole.high, visible.expected - whole.expected, visible.high - whole.low)


def room(footprint: Footprint, gpu: Gpu) -> Span:
    """What is left beside all but the KV cache and one request of full length, on the tightest stage.

    Below zero the server does not start; `fits` asks for it by `low`.
    """
    cache, visible = footprint.kv_cache, gpu.visible_bytes
    spans = []
    for rank in footprint.ranks:
        request = cache.full_request_bytes
        pool = rank.components.get("kv_cache")
        if cache.stage_block_bytes and cache.block_bytes:
            request = request * cache.stage_block_bytes[rank.pipeline_stage] // cache.block_bytes
        elif pool is not None:
            # Without blocks a request may lie on several devices, or on the host.
            request = min(request, pool.expected)
        others = [part for name, part in rank.components.items() if name != "kv_cache"]
        spans.append(
            Span(
                visible.low - sum(part.high for part in others) - request,
                visible.expected - sum(part.expected for part in others) - request,
                visible.high - sum(part.low for part in others) - request,
            )
        )
    return min(spans, key=lambda span: span.low)


def context_lengths(longest: int) -> tuple[int, ...]:
    """Context lengths from 1024 tokens on, two for each doubling, up to the longest."""
    lengths = []
    length = min(SHORTEST_CONTEXT, longest)
    while length < longest:
        lengths += [length, length * 3 // 2] if length * 3 // 2 < longest else [length]
        length *= 2
    return (*lengths, longest)


def surroundings(
    scenario: Scenario, *, seconds: float, clock: Callable[[], float] = time.monotonic
) -> Surroundings:
    """The curve and the limits of a server, as far as they can be worked out in so many seconds."""
    deadline = clock() + seconds
    longest = scenario.model.architecture.max_position or LONGEST_UNSTATED
    context = control_of(scenario.engine, "context")
    tensor = control_of(scenario.engine, "tensor_parallel")
    curve: list[CurvePoint] = []
    fitting: int | None = None
    sizes: list[int] = []
    if tensor is not None:
        for size in _until(deadline, clock, TENSOR_PARALLEL_SIZES):
            if _footprint_or_none(scenario.having(tensor.name, size)) is not None:
                sizes.append(size)
    if context is not None:
        for length in _until(deadline, clock, context_lengths(longest)):
            footprint = _footprint_or_none(scenario.having(context.name, length))
            if footprint is not None:
                curve.append(_point(footprint, scenario.gpu, length))
        fitting = _longest_fitting(scenario, context.name, curve, deadline, clock)
    is_whole = clock() < deadline
    return Surroundings(
        curve=tuple(curve),
        longest_context=longest,
        longest_fitting=fitting if is_whole else None,
        tensor_parallel_sizes=tuple(sizes),
        is_whole=is_whole,
    )


def _until(deadline: float, clock: Callable[[], float], values: Iterable[int]) -> Iterator[int]:
    for value in values:
        if clock() >= deadline:
            return
        yield value


def _footprint_or_none(scenario: Scenario) -> Footprint | None:
    """None where the engine would refuse these settings."""
    try:
        return scenario.footprint()
    except FootprintError:
        return None


def _point(footprint: Footprint, gpu: Gpu | None, length: int) -> CurvePoint:
    return CurvePoint(
        context_tokens=length,
        full_request_bytes=footprint.kv_cache.full_request_bytes,
        fits=suits(footprint),
        headroom=headroom(footprint, gpu) if gpu is not None else None,
        room=room(footprint, gpu) if gpu is not None else None,
        concurrency=footprint.kv_cache.max_concurrency_requests,
    )


def _longest_fitting(
    scenario: Scenario,
    name: str,
    curve: list[CurvePoint],
    deadline: float,
    clock: Callable[[], float],
) -> int | None:
    """By halving between the last point of the curve that fits and the one behind it."""
    fitting = [point.context_tokens for point in curve if point.fits]
    if not fitting:
        return None
    low = max(fitting)
    high = min((point.context_tokens for point in curve if point.context_tokens > low), default=low)
    while high - low > 1 and clock() < deadline:
        middle = (low + high) // 2
        footprint = _footprint_or_none(scenario.having(name, middle))
        if footprint is not None and suits(footprint):
            low = middle
        else:
            high = middle
    return low


# --- the answer as JSON ---


def what_if_json(scenario: Scenario, footprint: Footprint, around: Surroundings) -> dict[str, Any]:
    """The prediction in its published form, with what a planning page shows around it."""
    gpu = scenario.gpu
    architecture = scenario.model.architecture
    quantization = architecture.quantization
    return {
        "prediction": as_json(footprint),
        "gpu": None if gpu is None else _gpu_json(gpu),
        "headroom": None if gpu is None else _span_json(headroom(footprint, gpu)),
        "room": None if gpu is None else _span_json(room(footprint, gpu)),
        "context_tokens": footprint.kv_cache.max_model_len_tokens,
        "starts": footprint.starts,
        "longest_start_tokens": footprint.longest_start_tokens,
        "gpus": footprint.gpu_count,
        "model": {
            "type": architecture.model_type,
            "layers": len(architecture.layers),
            "dtype": architecture.dtype,
            "quantization": None if quantization is None else quantization.method,
        },
        "curve": [
            {
                "context_tokens": point.context_tokens,
                "full_request_bytes": point.full_request_bytes,
                "fits": point.fits,
                "headroom": None if point.headroom is None else _span_json(point.headroom),
                "room": None if point.room is None else _span_json(point.room),
                "concurrency": point.concurrency,
            }
            for point in around.curve
        ],
        "limits": {
            "longest_context": around.longest_context,
            "longest_fitting": around.longest_fitting,
            "tensor_parallel_sizes": list(around.tensor_parallel_sizes),
            "is_whole": around.is_whole,
        },
    }


def _span_json(span: Span) -> dict[str, int]:
    return {"low": span.low, "expected": span.expected, "high": span.high}


def _gpu_json(gpu: Gpu) -> dict[str, Any]:
    visible = gpu.visible_bytes
    return {
        "name": gpu.name,
        "memory_bytes": gpu.memory_bytes,
        "visible": {
            "low": visible.low,
            "expected": visible.expected,
            "high": visible.high,
            "source": visible.source,
        },
        "bandwidth_bytes_per_second": gpu.bandwidth_bytes_per_second,
        "source": gpu.source,
    }
