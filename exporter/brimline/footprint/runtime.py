"""What a server takes beside weights, cache and activations, and the budget that all of it must fit.

In the budget of an engine: CUDA graphs, library memory. Outside of it, yet in what NVML counts: the CUDA
context, NCCL and library handles, which exist before the engine takes its first snapshot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from brimline.errors import FootprintError, SettingError
from brimline.estimate import Estimate, between, exact, total
from brimline.footprint.calibration import Calibration
from brimline.footprint.constants import LOG_ROUNDING_BYTES, MIB, Name, constant, parse_version


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSettings:
    """Which engine runs on which GPU.

    world_size: GPUs of one replica. layer_ranks: those that exchange data within a layer, all of them unless
    given; stages of a pipeline hand on little and take no such buffers (0.07 GiB of library memory at two
    stages, 2.1 at TP 2: llm-d-planner, vLLM 0.19). graphs: False for enforce_eager.
    """

    engine: str = "vllm"
    version: str | None = None
    gpu: str = ""
    world_size: int = 1
    layer_ranks: int | None = None
    graphs: bool = True

    def __post_init__(self) -> None:
        if self.world_size < 1:
            raise FootprintError(f"world_size is {self.world_size}; it starts at 1")


def _measured(size: int, what: str) -> Estimate:
    return between(
        max(0, size - LOG_ROUNDING_BYTES), size, size + LOG_ROUNDING_BYTES, f"{what}: measured on a server"
    )


def _from_table(name: Name, settings: RuntimeSettings, ranks: int | None = None) -> Estimate:
    engine = settings.engine
    variant = "multi" if (ranks or settings.world_size) > 1 else ""
    row = constant(name, engine=engine, version=settings.version, gpu=settings.gpu, variant=variant)
    return row.estimate()


def vllm_budget_bytes(visible_bytes: int, gpu_memory_utilization: float) -> int:
    """Bytes that vLLM plans with: ceil(CUDA-visible total * gpu_memory_utilization).

    vLLM 0.32, v1/worker/utils.py request_memory. The total is the CUDA-visible one, not NVML's. Raises
    FootprintError for a utilization that is not in (0, 1].
    """
    if not 0 < gpu_memory_utilization <= 1:
        raise SettingError(f"gpu_memory_utilization is {gpu_memory_utilization}; it is above 0 and at most 1")
    # As vLLM multiplies: in floating point.
    return math.ceil(visible_bytes * gpu_memory_utilization)


def vllm_budget(visible: Estimate, gpu_memory_utilization: float) -> Estimate:
    """vllm_budget_bytes of a total that is known within bounds."""
    return Estimate(
        vllm_budget_bytes(visible.low, gpu_memory_utilization),
        vllm_budget_bytes(visible.expected, gpu_memory_utilization),
        vllm_budget_bytes(visible.high, gpu_memory_utilization),
        f"ceil(total * gpu_memory_utilization), vLLM 0.32 v1/worker/utils.py; total: {visible.source}",
    )


def cuda_graphs_bytes(settings: RuntimeSettings, calibration: Calibration | None = None) -> Estimate:
    """Bytes of captured CUDA graphs on one GPU; 0 where the server runs eagerly."""
    if not settings.graphs:
        return exact(0, "no CUDA graphs (enforce_eager)")
    if calibration is not None and calibration.cuda_graphs_bytes is not None:
        return _measured(calibration.cuda_graphs_bytes, "CUDA graphs")
    return _from_table("cuda_graphs_bytes", settings)


def graphs_count_in_budget(version: str | None) -> bool:
    """True where vLLM takes its estimate of CUDA graphs off the K/V pool: by default since 0.21.

    vLLM 0.32, v1/worker/gpu_worker.py; VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS=0 turns it off. An unknown
    version counts as new.
    """
    return version is None or parse_version(version) >= (0, 21)


def non_torch_bytes(settings: RuntimeSettings, calibration: Calibration | None = None) -> Estimate:
    """Bytes within the budget that CUDA libraries take past torch's allocator, NCCL's buffers among them."""
    if calibration is not None and calibration.non_torch_bytes is not None:
        return _measured(calibration.non_torch_bytes, "non-torch memory")
    if settings.engine != "vllm":
        return exact(0, "counted with the context of this engine")
    return _from_table("non_torch_bytes", settings, settings.layer_ranks)


def context_bytes(settings: RuntimeSettings, calibration: Calibration | None = None) -> Estimate:
    """Bytes outside the budget, inside NVML's count: CUDA context, NCCL, library handles."""
    if calibration is not None and calibration.context_bytes is not None:
        measured = _measured(calibration.context_bytes, "CUDA context")
        high = max(measured.high, calibration.context_high_bytes or 0)
        return Estimate(measured.low, measured.expected, high, measured.source)
    return _from_table("context_bytes", settings)


def kv_cache_pool_bytes(
    budget: Estimate,
    *,
    weights: Estimate,
    non_torch: Estimate,
    activations: Estimate,
    graphs: Estimate,
    version: str | None = None,
    others: tuple[Estimate, ...] = (),
) -> Estimate:
    """What vLLM has left for its K/V cache: the budget less all else that counts in it; 0 where nothing is.

    budget - weights - non_torch - activation peak (- graphs since 0.21) (vLLM 0.32, v1/worker/gpu_worker.py
    determine_available_memory). kv_cache_memory_bytes, where set, is the pool instead.
    """
    parts = [weights, non_torch, activations, *others]
    if graphs_count_in_budget(version):
        parts.append(graphs)
    spent = total(parts, "")
    return Estimate(
        max(0, budget.low - spent.high),
        max(0, budget.expected - spent.expected),
        max(0, budget.high - spent.low),
        "budget less weights, non-torch memory, activations"
        + (" and CUDA graphs" if graphs_count_in_budget(version) else ""),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SglangSettings:
    """Launch settings that SGLang derives its reserve from.

    decode_max_batch: largest captured batch; 0 without decode graphs. prefill_graph_batches: how many prefill
    graphs are captured. latent: the model has MLA, whose prefill graphs cost 1.5 GiB. attention_replicas:
    --dp-size with --enable-dp-attention; 1 without.
    """

    chunked_prefill_tokens: int
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    decode_max_batch: int = 0
    prefill_graph_batches: int = 0
    vision: bool = False
    latent: bool = False
    attention_replicas: int = 1


def sglang_batch_defaults(gpu_memory_bytes: int, tensor_parallel: int) -> tuple[int, int]:
    """--chunked-prefill-size and the largest captured decode batch of a GPU.

    SGLang 0.5.23, arg_groups/memory_hook.py handle_gpu_memory_settings.
    """
    mib = gpu_memory_bytes / MIB
    wide = tensor_parallel >= 4
    if mib < 20 * 1024:
        return 2048, 8
    if mib < 35 * 1024:
        return 4096, 160 if wide else 48
    if mib < 60 * 1024:
        return 4096, 160 if wide else 32
    if mib < 160 * 1024:
        return 8192, 512 if wide else 256
    return 16384, 512


def sglang_prefill_graphs(max_tokens: int) -> int:
    """How many sizes of prefill graphs are captured up to so many tokens.

    SGLang 0.5.23, arg_groups/cuda_graph_hook.py generate_prefill_cuda_graph_batch_sizes.
    """
    sizes = [
        *range(4, 33, 4), *range(48, 257, 16), *range(288, 513, 32), *range(576, 1025, 64),
        *range(1280, 4097, 256), *range(4608, max_tokens + 1, 512),
    ]  # fmt: skip
    return sum(size <= max_tokens for size in sizes)


def sglang_static_ratio(gpu_memory_bytes: int, settings: SglangSettings) -> float:
    """Part of the GPU that SGLang plans for weights and cache where mem_fraction_static is not given.

    (memory - reserve) / memory, rounded to three places; reserve in MiB: 512 + 1.5 * max(chunked prefill,
    2048) + tp * pp / 8 * 1024 + 2 * largest decode batch (3 or 4.5 more for each replica of the attention) +
    8 * prefill graphs, or 1536 for MLA; at least 10 GiB beyond 60 GiB; 0.95 of the result for vision models
    (SGLang 0.5.23, arg_groups/memory_hook.py, without DeepEP; the size of a vision tower moves the 0.95).
    Raises FootprintError where nothing is left.
    """
    batch = settings.decode_max_batch
    reserve_mib = (
        512
        + Fraction(3, 2) * max(settings.chunked_prefill_tokens, 2048)
        + Fraction(settings.tensor_parallel * settings.pipeline_parallel, 8) * 1024
        + 2 * batch
    )
    if settings.attention_replicas > 1:
        reserve_mib += batch * settings.attention_replicas * (Fraction(9, 2) if batch > 300 else 3)
    if settings.prefill_graph_batches:
        reserve_mib += 1536 if settings.latent else 8 * settings.prefill_graph_batches
    if gpu_memory_bytes > 60 * 1024 * MIB:
        reserve_mib = max(reserve_mib, Fraction(10 * 1024))
    left = gpu_memory_bytes - reserve_mib * MIB
    if left <= 0:
        raise FootprintError(f"a GPU of {gpu_memory_bytes} bytes is smaller than SGLang's reserve")
    return round(float(left / gpu_memory_bytes), 3) * (0.95 if settings.vision else 1.0)
