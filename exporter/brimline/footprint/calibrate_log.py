"""Constants from vLLM's start-up log.

It tells nearly all: weights, activation peak, library memory, CUDA graphs (their estimate and what they
took), the pool, and what of the GPU was taken before. The sampler's factor follows from the activation peak
and the model's sizes, but only where the sampler and not the forward pass made that peak. Every figure is
rounded to 0.01 GiB, so that a sum of two is right within 10 MiB.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from brimline.errors import FootprintError
from brimline.estimate import Estimate
from brimline.footprint.calibrated import SUM_ROUNDING_BYTES
from brimline.footprint.calibration import Calibration
from brimline.footprint.constants import LOG_ROUNDING_BYTES, constant, parse_version
from brimline.footprint.findings import (
    Findings,
    Outcome,
    filled_batch,
    launch_of,
    nothing,
    predictable,
    span,
    vllm_runtime,
)
from brimline.footprint.gpus import Gpu
from brimline.footprint.predict import Model, predict
from brimline.footprint.runtime import (
    RuntimeSettings,
    context_bytes,
    cuda_graphs_bytes,
    graphs_count_in_budget,
    non_torch_bytes,
    vllm_budget_bytes,
)
from brimline.footprint.settings import Settings
from brimline.footprint.startup_log import StartupLog
from brimline.footprint.vllm_launch import VllmLaunch
from brimline.readings import Footprint
from brimline.units import format_bytes

# MODEL is taken for another one than the log's beyond this; kernels pad weights by 7 % at most (MXFP4).
_WEIGHTS_TOLERANCE = 0.10
_GPU_DEVICES = ("cuda", "rocm", "xpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Server:
    """The server of a log. footprint: what the tables predict for it; None without its model."""

    log: StartupLog
    gpu: Gpu
    version: str
    settings: Settings
    launch: VllmLaunch
    runtime: RuntimeSettings
    model: Model | None
    footprint: Footprint | None


def from_log(
    log: StartupLog,
    gpu: Gpu,
    *,
    model: Model | None = None,
    version: str | None = None,
    flags: Settings | None = None,
    name: str = "the log",
) -> Outcome:
    """What a start-up log tells. gpu: that it ran on. flags: settings that go before the log's.

    Raises FootprintError for what the user can correct: no version, another GPU or model than the log's.
    """
    if log.device is not None and log.device not in _GPU_DEVICES:
        return nothing(
            f"{name} is of a server on {log.device}, which takes its cache from main memory and has none of "
            "the parts that are calibrated; give the log of a server on a GPU"
        )
    if not log.says_memory:
        return nothing(
            f"{name} says nothing of memory; give the whole log of the server's start, with the lines "
            "'Model loading took …' and 'Available KV cache memory: …'"
        )
    stated = version or log.version
    if stated is None:
        raise FootprintError(f"{name} does not say vLLM's version; give --engine-version")
    parse_version(stated)
    _refuse_other_gpu(log, gpu, name)
    found = Findings()
    settings = filled_batch({**log.settings, **(flags or {})}, gpu, stated, found.notes)
    footprint = None if model is None else _predicted(model, settings, stated, gpu, found)
    launch = launch_of(settings)
    server = _Server(
        log=log,
        gpu=gpu,
        version=stated,
        settings=settings,
        launch=launch,
        runtime=vllm_runtime(stated, gpu, launch),
        model=model,
        footprint=footprint,
    )
    _refuse_other_model(server, name)
    _of_gpu(server, found)
    _of_activations(server, found)
    _of_runtime(server, found)
    _of_sum(server, found)
    _say_what_more_would_tell(log, found)
    return found.outcome(
        Calibration(engine="vllm", version=stated, gpu=gpu.name),
        model,
        server.footprint,
        server.settings,
        comments=(f"From the start-up log of vLLM {stated} on {gpu.name}.",),
    )


def _say_what_more_would_tell(log: StartupLog, found: Findings) -> None:
    """The cure for a log that leaves out what vLLM prints at debug level only (in most of its versions)."""
    missing = [
        what
        for what, size in (
            ("the CUDA context", log.context_bytes),
            ("activations", log.activation_bytes),
            ("library memory", log.in_budget_non_torch_bytes),
        )
        if size is None
    ]
    if missing and log.settings.get("kv_cache_memory_bytes") is None:
        found.notes.append(
            f"The log does not tell {', '.join(missing)}: an ordinary one has weights, CUDA graphs and the "
            "pool. Start the server once with VLLM_LOGGING_LEVEL=DEBUG for the rest."
        )


def logged_model(log: StartupLog) -> Path | None:
    """The model's folder or file as the log names it, where it is on this machine."""
    path = Path(log.settings.get("model", ""))
    return path if path.is_absolute() and path.exists() else None


def _refuse_other_gpu(log: StartupLog, gpu: Gpu, name: str) -> None:
    if log.gpu_bytes is None:
        return
    if not 0.9 * gpu.memory_bytes < log.gpu_bytes <= gpu.memory_bytes + log.gpu_error_bytes:
        raise FootprintError(
            f"--gpu {gpu.name} has {format_bytes(gpu.memory_bytes)}, but {name} is of a GPU with "
            f"{format_bytes(log.gpu_bytes)}; name that one"
        )


def _predicted(model: Model, settings: dict[str, str], version: str, gpu: Gpu, found: Findings) -> Footprint:
    """What the tables predict for the server of the log; a quantization that they do not know is dropped."""
    try:
        return predict("vllm", model, predictable(settings), version=version, gpu=gpu)
    except FootprintError:
        if "quantization" not in settings:
            raise
        unknown = settings.pop("quantization")
        footprint = predict("vllm", model, predictable(settings), version=version, gpu=gpu)
        found.notes.append(f"quantization {unknown} is not known here; the model is taken as it is stored.")
        return footprint


def _refuse_other_model(server: _Server, name: str) -> None:
    size = server.log.weights_bytes
    if size is None or server.footprint is None or server.model is None or server.launch.cpu_offload_gb:
        return
    weights = server.footprint.fullest.components["weights"]
    if not (1 - _WEIGHTS_TOLERANCE) * weights.low <= size <= (1 + _WEIGHTS_TOLERANCE) * weights.high:
        raise FootprintError(
            f"the weights of {server.model.architecture.source or 'MODEL'} take "
            f"{format_bytes(weights.expected)} on a GPU, those of {name} {format_bytes(size)}; name the "
            "model, and the settings, of that server"
        )


def _of_gpu(server: _Server, found: Findings) -> None:
    log, table = server.log, context_bytes(server.runtime)
    if log.gpu_bytes is not None:
        basis = "as printed" if log.visible_bytes is not None else "requested memory over its utilization"
        found.told("visible_bytes", log.gpu_bytes, log.gpu_error_bytes, "", basis)
    size = log.context_bytes
    if size is None:
        why = "the log does not say how much of the GPU was free at the start"
        found.unknown("context_bytes", span(table), why)
    elif size > table.high:
        found.unknown(
            "context_bytes",
            span(table),
            f"{format_bytes(size)} were taken before the server measured, more than a context is known to "
            "take: other processes were on the GPU; start it on an empty one",
        )
    else:
        basis = "total less free at the start; other processes on the GPU then would be in it"
        error = LOG_ROUNDING_BYTES + log.gpu_error_bytes
        found.told("context_bytes", size, error, span(table), basis)


def _of_activations(server: _Server, found: Findings) -> None:
    log = server.log
    row = constant("sampler_bytes_factor", engine="vllm", version=server.version)
    table = f"{row.low:g} – {row.expected:g} – {row.high:g}"
    peak = "" if server.footprint is None else span(server.footprint.fullest.components["activations"])
    measured = log.activation_bytes
    if measured is None:
        why = "the log does not tell it"
        if log.peak_activation_bytes is not None:
            why += " apart from the estimate of CUDA graphs; 'Estimated CUDA graph memory' is not in it"
        found.unknown("activation_bytes", peak, why)
        found.unknown("sampler_bytes_factor", table, "follows from the activation peak, which is not told")
        return
    found.told("activation_bytes", measured, LOG_ROUNDING_BYTES, peak, "peak of the profile run")
    seqs, tokens = server.launch.max_num_seqs, server.launch.max_num_batched_tokens
    if server.model is None:
        why = "needs the model's vocabulary and hidden size; name MODEL"
        found.unknown("sampler_bytes_factor", table, why)
    elif seqs is None or tokens is None:
        flag = "--max-num-seqs" if seqs is None else "--max-num-batched-tokens"
        why = f"the defaults of {server.version} are not known here; give {flag}"
        found.unknown("sampler_bytes_factor", table, why)
    else:
        _of_sampler(server, server.model, measured, table, found)


def _of_sampler(server: _Server, model: Model, measured: int, table: str, found: Findings) -> None:
    """The sampler's factor that the prediction needs to arrive at the measured peak."""
    # The peak grows with the factor in a line, once it is large enough for the sampler to be the peak.
    none, some, more = (_predicted_peak(server, model, factor) for factor in (1e-6, 1e3, 2e3))
    slope = (more.expected - some.expected) / 1e3
    factor = 1e3 + (measured - some.expected) / slope
    if factor <= 0:
        why = "the peak is below the hidden states; check max_num_seqs, max_num_batched_tokens and MODEL"
        found.unknown("sampler_bytes_factor", table, why)
    elif measured <= none.high:
        forward = format_bytes(none.high)
        why = f"the forward pass (up to {forward}) may be the peak; the factor is at most {factor:.2f}"
        found.unknown("sampler_bytes_factor", table, why)
    else:
        basis = "(peak - hidden states - what experts hold) / (4 * max_num_seqs * vocabulary)"
        found.told_factor("sampler_bytes_factor", factor, LOG_ROUNDING_BYTES / slope, table, basis)


def _predicted_peak(server: _Server, model: Model, factor: float) -> Estimate:
    """The activations that are predicted with a factor of the sampler, where tokens are sampled."""
    assumed = Calibration(
        engine="vllm", version=server.version, gpu=server.gpu.name, sampler_bytes_factor=factor
    )
    settings = predictable(server.settings)
    footprint = predict("vllm", model, settings, version=server.version, gpu=server.gpu, calibration=assumed)
    return footprint.ranks[-1].components["activations"]


def _of_runtime(server: _Server, found: Findings) -> None:
    log, table = server.log, span(non_torch_bytes(server.runtime))
    size = log.in_budget_non_torch_bytes
    if size is None:
        found.unknown("non_torch_bytes", table, "the log does not tell it")
    elif log.non_torch_bytes is not None:
        found.told("non_torch_bytes", size, LOG_ROUNDING_BYTES, table, "as printed")
    else:
        basis = "what was consumed beyond the weights"
        found.told("non_torch_bytes", size, SUM_ROUNDING_BYTES, table, basis)
    if not server.runtime.graphs:
        return
    table = span(cuda_graphs_bytes(server.runtime))
    if log.cuda_graphs_bytes is not None:
        found.told("cuda_graphs_bytes", log.cuda_graphs_bytes, LOG_ROUNDING_BYTES, table, "as captured")
    else:
        why = "the log does not tell it; it ends before the graphs were captured"
        found.unknown("cuda_graphs_bytes", table, why)
    estimate = log.cuda_graphs_estimate_bytes
    if estimate is not None and graphs_count_in_budget(server.version):
        basis = "what the budget was charged for them"
        found.told("cuda_graphs_estimate_bytes", estimate, LOG_ROUNDING_BYTES, table, basis)


def _of_sum(server: _Server, found: Findings) -> None:
    log = server.log
    predicted = None if server.footprint is None else server.footprint.fullest.components["weights"]
    if (weights := log.weights_bytes) is not None:
        table = "" if predicted is None else span(predicted)
        found.told("weights_bytes", weights, LOG_ROUNDING_BYTES, table, "as loaded")
    if server.launch.kv_cache_memory_bytes is not None:
        why = (
            "the pool was set by hand (kv_cache_memory_bytes), so nothing was profiled; start without it once"
        )
        found.unknown("non_kv_bytes", "", why)
    elif log.kv_cache_bytes is None:
        found.unknown("non_kv_bytes", "", "the log does not tell the memory for the K/V cache")
    elif server.launch.pipeline_parallel_size > 1:
        why = "several pipeline stages: of which of them the pool is the least is not told"
        found.unknown("non_kv_bytes", "", why)
    else:
        budget = _budget(server, found)
        size = budget.expected - log.kv_cache_bytes
        error = LOG_ROUNDING_BYTES + max(budget.high - budget.expected, budget.expected - budget.low)
        if size < (weights or 1):
            why = f"a budget of {format_bytes(budget.expected)} less the pool leaves less than the weights"
            found.unknown("non_kv_bytes", "", f"{why}; check --gpu")
        else:
            found.told("non_kv_bytes", size, error, "", "budget less pool: all that is not the K/V cache")


def _budget(server: _Server, found: Findings) -> Estimate:
    """vLLM's budget, as far as the log tells what it is made of."""
    log, gpu, ratio = server.log, server.gpu, server.log.gpu_memory_utilization
    if ratio is None:
        ratio = constant("gpu_memory_utilization", engine="vllm", version=server.version).expected
        found.notes.append(
            f"gpu_memory_utilization {ratio:g}: the default of {server.version} is taken, since the log does "
            "not say it."
        )
    if log.gpu_bytes is not None:
        low, high = (log.gpu_bytes + error for error in (-log.gpu_error_bytes, log.gpu_error_bytes))
        visible = Estimate(low, log.gpu_bytes, high, "log")
    else:
        visible = gpu.visible_bytes
        if not visible.is_exact:
            found.notes.append(
                f"The log does not say what CUDA shows of the GPU: {format_bytes(visible.expected)} are "
                f"taken ({format_bytes(visible.low)} – {format_bytes(visible.high)} by the driver)."
            )
    low, expected, high = (
        vllm_budget_bytes(size, ratio) for size in (visible.low, visible.expected, visible.high)
    )
    return Estimate(low, expected, high, visible.source)
