"""The predicted memory of a vLLM server, component by component, for each GPU rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brimline.errors import FootprintError
from brimline.footprint.activations import BatchSettings, activations
from brimline.footprint.architecture import Architecture
from brimline.footprint.calibration import Calibration
from brimline.footprint.constants import batch_defaults, constant, parse_version
from brimline.footprint.estimate import Estimate, between, exact, total
from brimline.footprint.gpus import Gpu
from brimline.footprint.hf_config import read_architecture
from brimline.footprint.lora import LoraSettings, lora_slots_bytes
from brimline.footprint.offload import uva_offload
from brimline.footprint.runtime import (
    RuntimeSettings,
    context_bytes,
    cuda_graphs_bytes,
    kv_cache_pool_bytes,
    non_torch_bytes,
    vllm_budget,
)
from brimline.footprint.throughput import decode_ceiling, decode_weights, kv_read_bytes
from brimline.footprint.vllm_cache import NEWEST_VERSION, VllmCache, VllmCacheSettings, vllm_cache
from brimline.footprint.weights import (
    RankWeights,
    Sharding,
    StoredWeights,
    parameters,
    quantize,
    stored_weights,
    weight_bytes,
)

SCHEMA_VERSION = 1
CEILING_BATCHES = (1, 8, 64, 256)
GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """vLLM's flags, as far as they decide memory. None is what the version does by default."""

    engine_version: str | None = None
    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    enable_expert_parallel: bool = False
    gpu_memory_utilization: float | None = None
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    cpu_offload_gb: float = 0.0
    enforce_eager: bool = False
    max_loras: int = 0
    max_lora_rank: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFootprint:
    """One pipeline stage's GPUs. components: by name; total: all of them, with what is outside the budget."""

    pipeline_stage: int
    components: Mapping[str, Estimate]
    host: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def total(self) -> Estimate:
        return total(self.components.values(), "sum of the components")


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a server should use. ranks: one for each pipeline stage; the tensor ranks of a stage are alike.

    num_blocks: None where neither a GPU nor a pool size is known. fits: whether the server starts and holds
    one request of full length, by the high bounds; None without a GPU.
    """

    parameters: int
    ranks: tuple[RankFootprint, ...]
    cache: VllmCache
    num_blocks: Estimate | None
    decode_ceiling: Sequence[tuple[int, int, float]]
    fits: bool | None
    headroom_bytes: int | None
    assumptions: tuple[str, ...]

    @property
    def fullest(self) -> RankFootprint:
        return max(self.ranks, key=lambda rank: rank.total.expected)


def read_model(path: Path) -> tuple[Architecture, StoredWeights | None]:
    """A model's architecture, and its stored weights where they lie beside it. Raises FootprintError."""
    architecture = read_architecture(path)
    folder = path if path.is_dir() or path.suffix == ".gguf" else path.parent
    return architecture, stored_weights(folder, architecture)


def _defaults(launch: Launch, gpu: Gpu | None, assumptions: list[str]) -> tuple[int, int]:
    """max_num_seqs and max_num_batched_tokens."""
    memory = gpu.memory_bytes if gpu is not None else 80 * GIB
    defaults = batch_defaults(memory, gpu.name if gpu is not None else "")
    if gpu is None and None in (launch.max_num_seqs, launch.max_num_batched_tokens):
        assumptions.append("No GPU is named: the batch defaults are those of a GPU with 70 GiB or more.")
    return launch.max_num_seqs or defaults.max_num_seqs, (
        launch.max_num_batched_tokens or defaults.max_num_batched_tokens
    )


def _context(architecture: Architecture, launch: Launch) -> int:
    longest = architecture.max_position
    wanted = launch.max_model_len or longest
    if wanted is None:
        raise FootprintError("the model states no context length; give --max-model-len")
    if longest is not None and wanted > longest:
        raise FootprintError(
            f"--max-model-len {wanted} is above the {longest} tokens that the model was made for"
        )
    return wanted


def _utilization(launch: Launch) -> Estimate:
    """gpu_memory_utilization in millionths, so that its bounds add up as whole numbers."""
    if launch.gpu_memory_utilization is not None:
        return exact(round(launch.gpu_memory_utilization * 1e6), "--gpu-memory-utilization")
    row = constant("gpu_memory_utilization", engine="vllm", version=launch.engine_version)
    return between(row.low * 1e6, row.expected * 1e6, row.high * 1e6, row.source)


def _budget(gpu: Gpu, launch: Launch) -> Estimate:
    ratio = _utilization(launch)
    low, expected, high = (
        vllm_budget(gpu.visible_bytes, value / 1e6) for value in (ratio.low, ratio.expected, ratio.high)
    )
    return Estimate(low.low, expected.expected, high.high, f"{expected.source}; {ratio.source}")


def predict(
    architecture: Architecture,
    launch: Launch,
    *,
    gpu: Gpu | None = None,
    stored: StoredWeights | None = None,
    calibration: Calibration | None = None,
) -> Footprint:
    """The footprint of a vLLM server. Raises FootprintError naming the flag and the rule it breaks."""
    assumptions = [*architecture.assumptions]
    if gpu is not None and gpu.assumption:
        assumptions.append(gpu.assumption)
    if launch.quantization is not None and architecture.quantization is None:
        architecture = quantize(architecture, launch.quantization)
        stored = None
        assumptions.append(f"The weights are taken as if quantized with {launch.quantization}.")
    sharding = Sharding(
        tensor=launch.tensor_parallel_size,
        pipeline=launch.pipeline_parallel_size,
        data=launch.data_parallel_size,
        expert=launch.enable_expert_parallel,
    )
    context = _context(architecture, launch)
    sequences, batched = _defaults(launch, gpu, assumptions)
    version = parse_version(launch.engine_version) if launch.engine_version else NEWEST_VERSION
    cache = vllm_cache(
        architecture,
        VllmCacheSettings(
            max_model_len=context,
            max_num_batched_tokens=batched,
            version=version,
            dtype=launch.dtype,
            kv_cache_dtype=launch.kv_cache_dtype,
            block_size=launch.block_size,
            tensor_parallel=launch.tensor_parallel_size,
            pipeline_parallel=launch.pipeline_parallel_size,
            num_gpu_blocks_override=launch.num_gpu_blocks_override,
        ),
    )
    assumptions += cache.assumptions
    by_stage = {
        rank.pipeline_stage: rank
        for rank in reversed(weight_bytes(architecture, sharding=sharding, dtype=launch.dtype, stored=stored))
    }
    fixed = [
        _fixed(architecture, launch, by_stage[stage], sequences, batched, gpu, calibration)
        for stage in sorted(by_stage)
    ]
    pools = _pools(fixed, launch, gpu)
    blocks = None if pools is None else _blocks(cache, pools)
    ranks = []
    for stage, (components, host) in enumerate(fixed):
        if blocks is not None:
            size = cache.stage_block_bytes[stage]
            components["kv_cache"] = Estimate(
                blocks.low * size,
                blocks.expected * size,
                blocks.high * size,
                f"{cache.source}; {blocks.source}",
            )
        ranks.append(RankFootprint(pipeline_stage=stage, components=components, host=host))
    fits, headroom = _fit(ranks, cache, gpu)
    return Footprint(
        parameters=parameters(architecture),
        ranks=tuple(ranks),
        cache=cache,
        num_blocks=blocks,
        decode_ceiling=_ceiling(architecture, launch, by_stage, cache, gpu, context, assumptions),
        fits=fits,
        headroom_bytes=headroom,
        assumptions=tuple(dict.fromkeys(assumptions)),
    )


def _fixed(
    architecture: Architecture,
    launch: Launch,
    weights: RankWeights,
    sequences: int,
    batched: int,
    gpu: Gpu | None,
    calibration: Calibration | None,
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """All components of a stage but the K/V pool, and what lies on the host."""
    last = weights.pipeline_stage == launch.pipeline_parallel_size - 1
    runtime = RuntimeSettings(
        engine="vllm",
        version=launch.engine_version,
        gpu=gpu.name if gpu is not None else "",
        world_size=launch.tensor_parallel_size * launch.pipeline_parallel_size,
        graphs=not launch.enforce_eager,
    )
    peak = activations(
        architecture,
        BatchSettings(
            max_num_batched_tokens=batched,
            max_num_seqs=sequences,
            tensor_parallel=launch.tensor_parallel_size,
            pipeline_parallel=launch.pipeline_parallel_size,
            expert_parallel=launch.enable_expert_parallel,
            last_stage=last,
        ),
        version=launch.engine_version,
        sampler_factor=calibration.sampler_bytes_factor if calibration is not None else None,
    ).peak
    on_gpu, host = weights.total, {}
    if launch.cpu_offload_gb:
        moved = uva_offload(on_gpu.expected, launch.cpu_offload_gb)
        on_gpu = Estimate(
            max(0, on_gpu.low - moved.transferred_bytes),
            moved.gpu.expected,
            max(moved.gpu.high, on_gpu.high - moved.transferred_bytes),
            f"{on_gpu.source}; --cpu-offload-gb",
        )
        host["weights"] = moved.host
    components = {
        "weights": on_gpu,
        "activations": peak,
        "cuda_graphs": cuda_graphs_bytes(runtime, calibration),
        "runtime_in_budget": non_torch_bytes(runtime, calibration),
        "runtime_outside_budget": context_bytes(runtime, calibration),
    }
    if launch.max_loras:
        components["lora"] = lora_slots_bytes(
            architecture,
            LoraSettings(
                max_loras=launch.max_loras,
                max_lora_rank=launch.max_lora_rank,
                tensor_parallel=launch.tensor_parallel_size,
                stage_layers=weights.layers,
                first_stage=weights.pipeline_stage == 0,
                last_stage=last,
            ),
        )
    return components, host


def _pools(
    fixed: Sequence[tuple[dict[str, Estimate], dict[str, Estimate]]], launch: Launch, gpu: Gpu | None
) -> list[Estimate] | None:
    """Bytes left for the K/V cache on each stage; None where nothing tells."""
    if launch.kv_cache_memory_bytes is not None:
        return [exact(launch.kv_cache_memory_bytes, "--kv-cache-memory-bytes")] * len(fixed)
    if gpu is None:
        return (
            [exact(0, "--num-gpu-blocks-override")] * len(fixed) if launch.num_gpu_blocks_override else None
        )
    budget = _budget(gpu, launch)
    return [
        kv_cache_pool_bytes(
            budget,
            weights=components["weights"],
            non_torch=components["runtime_in_budget"],
            activations=components["activations"],
            graphs=components["cuda_graphs"],
            version=launch.engine_version,
            others=(components["lora"],) if "lora" in components else (),
        )
        for components, _ in fixed
    ]


def _blocks(cache: VllmCache, pools: Sequence[Estimate]) -> Estimate:
    low, expected, high = (
        cache.num_blocks([getattr(pool, bound) for pool in pools]) for bound in ("low", "expected", "high")
    )
    return Estimate(low, expected, high, pools[0].source)


def _fit(ranks: Sequence[RankFootprint], cache: VllmCache, gpu: Gpu | None) -> tuple[bool | None, int | None]:
    """Whether one request of full length fits beside all else on every stage, and what then stays free."""
    if gpu is None:
        return None, None
    fits = True
    for rank in ranks:
        besides = sum(part.high for name, part in rank.components.items() if name != "kv_cache")
        stage = rank.pipeline_stage
        request = (cache.request_blocks(cache.settings.max_model_len) + cache.null_blocks) * (
            cache.stage_block_bytes[stage]
        )
        fits = fits and besides + request <= gpu.visible_bytes.low
    fullest = max(rank.total.expected for rank in ranks)
    return fits, gpu.visible_bytes.expected - fullest


def _ceiling(
    architecture: Architecture,
    launch: Launch,
    by_stage: Mapping[int, RankWeights],
    cache: VllmCache,
    gpu: Gpu | None,
    context: int,
    assumptions: list[str],
) -> list[tuple[int, int, float]]:
    if gpu is None:
        return []
    if launch.pipeline_parallel_size > 1:
        assumptions.append("No decode ceiling is given for a pipeline of several stages.")
        return []
    weights = decode_weights(
        architecture,
        by_stage[0].total.expected,
        tensor_parallel=launch.tensor_parallel_size,
        expert_parallel=launch.enable_expert_parallel,
    )
    element = cache.format.head(128, 128) / 256  # with its scales, as heads of the usual size have them
    rates = decode_ceiling(
        weights,
        lambda tokens: kv_read_bytes(
            architecture, tokens, element_bytes=element, tensor_parallel=launch.tensor_parallel_size
        ),
        bandwidth_bytes_per_second=gpu.bandwidth_bytes_per_second,
        batches=CEILING_BATCHES,
        contexts=sorted({min(1024, context), context}),
    )
    return [(rate.batch, rate.context_tokens, rate.tokens_per_second) for rate in rates]


# --- the published JSON form ---

# Both halves of the runtime are one component to those who read it.
_RUNTIME = ("runtime_in_budget", "runtime_outside_budget")


def _bounds(estimate: Estimate) -> dict[str, Any]:
    return {
        "low": estimate.low,
        "expected": estimate.expected,
        "high": estimate.high,
        "source": estimate.source,
    }


def published_components(rank: RankFootprint) -> dict[str, Estimate]:
    """A rank's components under their published names."""
    shown = {name: part for name, part in rank.components.items() if name not in _RUNTIME}
    both = [rank.components[name] for name in _RUNTIME]
    shown["runtime"] = total(both, "; ".join(part.source for part in both))
    return shown


def as_json(footprint: Footprint) -> dict[str, Any]:
    """The footprint in its published form: bytes, and null for what is not known."""
    cache, blocks = footprint.cache, footprint.num_blocks
    expected = blocks.expected if blocks is not None else None
    context = cache.settings.max_model_len
    lengths = sorted({length for length in (1024, 8192, 32768, 131072) if length < context} | {context})
    return {
        "schema_version": SCHEMA_VERSION,
        "parameters": footprint.parameters,
        "per_gpu": _rank_json(footprint.fullest),
        "ranks": [{"pipeline_stage": rank.pipeline_stage, **_rank_json(rank)} for rank in footprint.ranks],
        "kv_cache": {
            "bytes_per_token": float(cache.bytes_per_token),
            "bytes_by_tokens": {str(length): cache.bytes_by_tokens(length) for length in lengths},
            "bytes_per_block": cache.block_bytes,
            "num_blocks": expected,
            "num_blocks_low": blocks.low if blocks is not None else None,
            "num_blocks_high": blocks.high if blocks is not None else None,
            "capacity_tokens": None if expected is None else cache.capacity_tokens(expected),
            "max_concurrency": None if expected is None else cache.max_concurrency(expected),
            "bytes_for_one_full_request": cache.bytes_by_tokens(context),
        },
        "throughput": {
            "decode_ceiling": [
                {"batch": batch, "context_tokens": tokens, "tokens_per_second": rate}
                for batch, tokens, rate in footprint.decode_ceiling
            ]
        },
        "fits": footprint.fits,
        "headroom_bytes": footprint.headroom_bytes,
        "assumptions": list(footprint.assumptions),
    }


def _rank_json(rank: RankFootprint) -> dict[str, Any]:
    return {
        "components": {name: _bounds(part) for name, part in published_components(rank).items()},
        "host": {name: _bounds(part) for name, part in rank.host.items()},
        "total": _bounds(rank.total),
    }
