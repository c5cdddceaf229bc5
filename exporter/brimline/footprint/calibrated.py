"""How a prediction takes what was measured: the parts of a GPU rank, and the pool that they leave.

A calibration that holds for the very server gives `non_kv_bytes`, all of vLLM's budget but the K/V pool, to
within a block. Its parts are what was measured of them, and the table's for the others, shared out so that
they add up to that sum.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from brimline.estimate import Estimate, between
from brimline.footprint.calibration import Calibration, plain_settings
from brimline.footprint.constants import LOG_ROUNDING_BYTES, constant
from brimline.footprint.gpus import Gpu

if TYPE_CHECKING:
    from brimline.footprint.architecture import Architecture
    from brimline.footprint.vllm_launch import VllmLaunch

# A sum of a log comes from two figures.
SUM_ROUNDING_BYTES = 2 * LOG_ROUNDING_BYTES


def server_settings(
    launch: VllmLaunch,
    architecture: Architecture,
    *,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    max_model_len: int | None,
) -> dict[str, str]:
    """The launch settings that decide what a vLLM server needs beside its K/V pool, defaults filled in.

    A log tells what vLLM made of `auto`, a launch command may not say it: dtype is `auto` for any type of 16
    bits, and quantization the model's own method, however vLLM calls it.
    """
    speculation, own = launch.speculation, architecture.quantization
    return dict(
        plain_settings(
            {
                "cpu_offload_gb": f"{launch.cpu_offload_gb:g}",
                "data_parallel_size": launch.data_parallel_size,
                "decode_context_parallel_size": launch.decode_context_parallel_size,
                "dtype": "auto" if launch.element_bytes(architecture) == 2 else launch.dtype,
                "enable_expert_parallel": launch.enable_expert_parallel,
                "enforce_eager": not launch.captures_graphs,
                "kv_cache_dtype": launch.kv_cache_dtype or "auto",
                "max_lora_rank": launch.max_lora_rank if launch.max_loras else 0,
                "max_loras": launch.max_loras,
                "max_model_len": max_model_len,
                "max_num_batched_tokens": max_num_batched_tokens,
                "max_num_seqs": max_num_seqs,
                "num_speculative_tokens": 0 if speculation is None else speculation.num_speculative_tokens,
                "pipeline_parallel_size": launch.pipeline_parallel_size,
                "quantization": "none" if own is None else own.method,
                "tensor_parallel_size": launch.tensor_parallel_size,
            }
        )
    )


def measured_gpu(gpu: Gpu, calibration: Calibration | None) -> Gpu:
    """The GPU with the CUDA-visible memory that was measured, unless NVML has told it."""
    if calibration is None or calibration.visible_bytes is None or gpu.visible_bytes.is_exact:
        return gpu
    if calibration.visible_bytes > gpu.memory_bytes:
        return gpu
    size = calibration.visible_bytes
    return replace(
        gpu,
        visible_bytes=between(
            size - LOG_ROUNDING_BYTES,
            size,
            min(size + LOG_ROUNDING_BYTES, gpu.memory_bytes),
            "measured on a server",
        ),
    )


def _measured(size: int, what: str) -> Estimate:
    low, high = max(0, size - LOG_ROUNDING_BYTES), size + LOG_ROUNDING_BYTES
    return Estimate(low, size, high, f"{what}: measured on a server")


def measured_weights(calibration: Calibration | None) -> Estimate | None:
    """The weights as they were measured; None where they were not."""
    if calibration is None or calibration.weights_bytes is None:
        return None
    return _measured(calibration.weights_bytes, "weights")


def non_kv(calibration: Calibration | None, settings: Mapping[str, str]) -> Estimate | None:
    """All of the budget but the K/V pool, as measured; None where it was not.

    Another context length takes a block table of another size (4 bytes for each block and request), and
    another K/V type may bring an attention backend with another work buffer (FlashInfer's is the largest).
    """
    if calibration is None or calibration.non_kv_bytes is None:
        return None
    size = calibration.non_kv_bytes
    less = more = SUM_ROUNDING_BYTES
    length, now = calibration.setting("max_model_len"), settings.get("max_model_len")
    if length is not None and now is not None and length.isdigit() and now.isdigit():
        # Blocks of 16 tokens, the smallest that is usual, make the largest table.
        table = 4 * int(settings.get("max_num_seqs", "1024")) * (int(now) - int(length)) // 16
        less, more = less + max(0, -table), more + max(0, table)
    cached = calibration.setting("kv_cache_dtype")
    if cached is not None and settings.get("kv_cache_dtype", cached) != cached:
        buffer = constant("flashinfer_workspace_bytes", engine="vllm").expected
        less, more = int(less + buffer), int(more + buffer)
    return Estimate(
        max(0, size - less), size, size + more, "all but the cache: measured on this server's settings"
    )


def measured_pool(budget: Estimate, others: Estimate) -> Estimate:
    """The K/V pool that a measured sum of all else leaves of the budget."""
    return Estimate(
        max(0, budget.low - others.high),
        max(0, budget.expected - others.expected),
        max(0, budget.high - others.low),
        "budget less all else, as measured on a server",
    )


def measured_parts(
    components: Mapping[str, Estimate],
    calibration: Calibration | None,
    whole: Estimate | None,
    *,
    in_budget: str,
    uncounted: Collection[str],
    graphs_counted: bool,
) -> dict[str, Estimate]:
    """The components of a rank with what was measured of them, adding up to `whole` where that is known.

    in_budget: the name of library memory; it and graphs come from the calibration already (runtime.py).
    uncounted: names of components that lie outside the budget. graphs_counted: they count in the budget, by
    their estimate, which may be another size than what they took.
    """
    parts = dict(components)
    if calibration is None:
        return parts
    measured = {
        "weights": calibration.weights_bytes,
        "activations": calibration.activation_bytes,
        "cuda_graphs": calibration.cuda_graphs_bytes,
        in_budget: calibration.non_torch_bytes,
    }
    for name in ("weights", "activations"):
        if (size := measured[name]) is not None:
            parts[name] = _measured(size, name)
    if whole is None:
        return parts
    left, open_parts = whole, {}
    for name, part in parts.items():
        if name in uncounted or (name == "cuda_graphs" and not graphs_counted):
            continue
        if name != "weights" and measured.get(name) is None:
            open_parts[name] = part
            continue
        if name == "cuda_graphs" and calibration.cuda_graphs_estimate_bytes is not None:
            part = _measured(calibration.cuda_graphs_estimate_bytes, name)
        left = Estimate(
            max(0, left.low - part.high),
            max(0, left.expected - part.expected),
            max(0, left.high - part.low),
            left.source,
        )
    return parts | shared_out(open_parts, left)


def shared_out(parts: Mapping[str, Estimate], whole: Estimate) -> dict[str, Estimate]:
    """The parts, moved within their bounds so that they add up to `whole`.

    Each moves by the room that its bounds leave on that side, and its bounds narrow to what the sum allows.
    Where the bounds of all together leave too little room, the surplus goes to the part with the widest, or
    what is missing is taken from all alike.
    """
    if not parts:
        return {}
    target = whole.expected
    missing = target - sum(part.expected for part in parts.values())
    if missing >= 0:
        rooms = {name: part.high - part.expected for name, part in parts.items()}
    else:
        rooms = {name: part.expected - part.low for name, part in parts.items()}
    room = sum(rooms.values())
    share = min(1.0, abs(missing) / room) if room else 0.0
    sizes = {
        name: part.expected + (1 if missing >= 0 else -1) * int(rooms[name] * share)
        for name, part in parts.items()
    }
    if missing < 0 and sum(sizes.values()) > target:
        scale = target / sum(sizes.values())
        sizes = {name: int(size * scale) for name, size in sizes.items()}
    widest = max(parts, key=lambda name: (parts[name].high - parts[name].low, sizes[name]))
    sizes[widest] = max(0, sizes[widest] + target - sum(sizes.values()))
    lows = sum(part.low for part in parts.values())
    highs = sum(part.high for part in parts.values())
    return {
        name: Estimate(
            min(sizes[name], max(part.low, whole.low - (highs - part.high))),
            sizes[name],
            max(sizes[name], min(part.high, whole.high - (lows - part.low))),
            f"{part.source}; so that all add up to what was measured",
        )
        for name, part in parts.items()
    }
