"""The predicted memory of a vLLM server, component by component, for each GPU rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from brimline.errors import FootprintError
from brimline.estimate import Estimate, exact, total
from brimline.footprint import settings as read
from brimline.footprint.activations import BatchSettings, activations
from brimline.footprint.architecture import Architecture
from brimline.footprint.calibration import Calibration
from brimline.footprint.constants import GIB, batch_defaults, constant, parse_version
from brimline.footprint.gpus import Gpu
from brimline.footprint.lora import LoraSettings, lora_slots_bytes
from brimline.footprint.offload import uva_offload
from brimline.footprint.runtime import (
    RuntimeSettings,
    context_bytes,
    cuda_graphs_bytes,
    graphs_count_in_budget,
    kv_cache_pool_bytes,
    non_torch_bytes,
    vllm_budget,
)
from brimline.footprint.settings import Settings
from brimline.footprint.throughput import DecodeCeiling, decode_weights, kv_read_bytes
from brimline.footprint.vllm_cache import NEWEST_VERSION, VllmCache, VllmCacheSettings, vllm_cache
from brimline.footprint.weights import (
    RankWeights,
    Sharding,
    StoredWeights,
    parameters,
    quantize,
    weight_bytes,
)
from brimline.readings import Footprint, KvCacheFootprint, RankFootprint

# Both are one component to those who read them; within the budget or not decides the size of the K/V pool.
_IN_BUDGET, _OUTSIDE = "runtime in the budget", "runtime outside the budget"
# Lengths for which the bytes of one request are told.
LENGTHS = (1024, 8192, 32768, 131072)


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmLaunch:
    """vLLM's flags, as far as they decide memory. None is what the version does by default."""

    dtype: str | None = None
    quantization: str | None = None
    kv_cache_dtype: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    decode_context_parallel_size: int = 1
    enable_expert_parallel: bool = False
    gpu_memory_utilization: float | None = None
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    cpu_offload_gb: float = 0.0
    enforce_eager: bool = False
    enable_prefix_caching: bool = True
    async_scheduling: bool = True
    mamba_cache_dtype: str | None = None
    mamba_ssm_cache_dtype: str | None = None
    max_loras: int = 0
    max_lora_rank: int = 16


def vllm_launch(settings: Settings) -> VllmLaunch:
    """vLLM's flags by their own names with underscores. Raises FootprintError naming the flag."""
    longest = settings.get("max_model_len")
    slots = read.count(settings, "max_loras", least=0)
    if read.switch(settings, "enable_lora"):
        slots = slots or 1
    elif "enable_lora" in settings:
        slots = 0
    return VllmLaunch(
        dtype=read.text(settings, "dtype"),
        quantization=read.text(settings, "quantization"),
        kv_cache_dtype=read.text(settings, "kv_cache_dtype"),
        # -1 has vLLM take what fits, of which the model's own is the most.
        max_model_len=None if longest == "-1" else read.count(settings, "max_model_len"),
        max_num_seqs=read.count(settings, "max_num_seqs"),
        max_num_batched_tokens=read.count(settings, "max_num_batched_tokens"),
        block_size=read.count(settings, "block_size"),
        tensor_parallel_size=read.count(settings, "tensor_parallel_size") or 1,
        pipeline_parallel_size=read.count(settings, "pipeline_parallel_size") or 1,
        data_parallel_size=read.count(settings, "data_parallel_size") or 1,
        decode_context_parallel_size=read.count(settings, "decode_context_parallel_size") or 1,
        enable_expert_parallel=read.switch(settings, "enable_expert_parallel") or False,
        gpu_memory_utilization=read.number(settings, "gpu_memory_utilization"),
        kv_cache_memory_bytes=read.size(settings, "kv_cache_memory_bytes"),
        num_gpu_blocks_override=read.count(settings, "num_gpu_blocks_override"),
        cpu_offload_gb=read.number(settings, "cpu_offload_gb") or 0.0,
        enforce_eager=read.switch(settings, "enforce_eager") or False,
        enable_prefix_caching=read.switch(settings, "enable_prefix_caching") is not False,
        async_scheduling=read.switch(settings, "async_scheduling") is not False,
        mamba_cache_dtype=read.text(settings, "mamba_cache_dtype"),
        mamba_ssm_cache_dtype=read.text(settings, "mamba_ssm_cache_dtype"),
        max_loras=slots or 0,
        max_lora_rank=read.count(settings, "max_lora_rank") or 16,
    )


def vllm_kv_cache(
    architecture: Architecture,
    launch: VllmLaunch,
    version: str | None = None,
    *,
    max_num_batched_tokens: int | None = None,
) -> VllmCache:
    """The block layout of the server's KV cache. Raises FootprintError."""
    return vllm_cache(
        architecture,
        VllmCacheSettings(
            max_model_len=_context(architecture, launch),
            max_num_batched_tokens=launch.max_num_batched_tokens or max_num_batched_tokens or 2048,
            version=parse_version(version) if version else NEWEST_VERSION,
            dtype=launch.dtype or "auto",
            kv_cache_dtype=launch.kv_cache_dtype or "auto",
            block_size=launch.block_size,
            tensor_parallel=launch.tensor_parallel_size,
            pipeline_parallel=launch.pipeline_parallel_size,
            decode_context_parallel=launch.decode_context_parallel_size,
            async_scheduling=launch.async_scheduling,
            prefix_caching=launch.enable_prefix_caching,
            mamba_cache_dtype=launch.mamba_cache_dtype,
            mamba_ssm_cache_dtype=launch.mamba_ssm_cache_dtype,
            num_gpu_blocks_override=launch.num_gpu_blocks_override,
        ),
    )


def _batch(launch: VllmLaunch, gpu: Gpu | None, assumptions: list[str]) -> tuple[int, int]:
    """max_num_seqs and max_num_batched_tokens."""
    memory = gpu.memory_bytes if gpu is not None else 80 * GIB
    defaults = batch_defaults(memory, gpu.name if gpu is not None else "")
    if gpu is None and None in (launch.max_num_seqs, launch.max_num_batched_tokens):
        assumptions.append("No GPU is named: the batch defaults are those of a GPU with 70 GiB or more.")
    return launch.max_num_seqs or defaults.max_num_seqs, (
        launch.max_num_batched_tokens or defaults.max_num_batched_tokens
    )


def _context(architecture: Architecture, launch: VllmLaunch) -> int:
    longest = architecture.max_position
    wanted = launch.max_model_len or longest
    if wanted is None:
        raise FootprintError("the model states no context length; give --max-model-len")
    if longest is not None and wanted > longest:
        raise FootprintError(
            f"--max-model-len {wanted} is above the {longest} tokens that the model was made for"
        )
    return wanted


def _budget(gpu: Gpu, launch: VllmLaunch, version: str | None) -> Estimate:
    if launch.gpu_memory_utilization is not None:
        ratios, source = (launch.gpu_memory_utilization,) * 3, "--gpu-memory-utilization"
    else:
        row = constant("gpu_memory_utilization", engine="vllm", version=version)
        ratios, source = (row.low, row.expected, row.high), row.source
    low, expected, high = (vllm_budget(gpu.visible_bytes, ratio) for ratio in ratios)
    return Estimate(low.low, expected.expected, high.high, f"{expected.source}; {source}")


def predict_vllm(
    architecture: Architecture,
    settings: Settings,
    *,
    version: str | None = None,
    gpu: Gpu | None = None,
    stored: StoredWeights | None = None,
    calibration: Calibration | None = None,
) -> Footprint:
    """The footprint of a vLLM server. Raises FootprintError naming the flag and the rule it breaks.

    settings: its flags by their own names with underscores. calibration: taken only where it is of this
    version and GPU.
    """
    launch = vllm_launch(settings)
    assumptions = [*architecture.assumptions]
    if gpu is not None and gpu.assumption:
        assumptions.append(gpu.assumption)
    if launch.quantization is not None and architecture.quantization is None:
        architecture = quantize(architecture, launch.quantization)
        stored = None
        assumptions.append(f"The weights are taken as if quantized with {launch.quantization}.")
    if calibration is not None and not calibration.holds_for(
        "vllm", version, gpu.name if gpu is not None else ""
    ):
        assumptions.append(
            f"The calibration is of {calibration.engine} {calibration.version} on {calibration.gpu}, and is "
            "not used here."
        )
        calibration = None
    sequences, batched = _batch(launch, gpu, assumptions)
    cache = vllm_kv_cache(architecture, launch, version, max_num_batched_tokens=batched)
    assumptions += cache.assumptions
    sharding = Sharding(
        tensor=launch.tensor_parallel_size,
        pipeline=launch.pipeline_parallel_size,
        data=launch.data_parallel_size,
        expert=launch.enable_expert_parallel,
    )
    by_stage = {
        rank.pipeline_stage: rank
        for rank in reversed(
            weight_bytes(architecture, sharding=sharding, dtype=launch.dtype or "auto", stored=stored)
        )
    }
    fixed = [
        _fixed(architecture, launch, version, by_stage[stage], sequences, batched, gpu, calibration)
        for stage in sorted(by_stage)
    ]
    budget = None
    if gpu is not None and launch.kv_cache_memory_bytes is None and launch.num_gpu_blocks_override is None:
        budget = _budget(gpu, launch, version)
    blocks = _blocks(cache, fixed, launch, version, budget)
    ranks = [
        _rank(stage, components, host, cache, blocks, budget, version)
        for stage, (components, host) in enumerate(fixed)
    ]
    fits, headroom = _fit(ranks, cache, gpu)
    return Footprint(
        engine="vllm",
        engine_version=version,
        parameters=parameters(architecture),
        ranks=tuple(ranks),
        kv_cache=_kv_cache(cache, blocks),
        tensor_parallel=launch.tensor_parallel_size,
        decode_ceiling=_ceiling(architecture, launch, by_stage, cache, gpu, assumptions),
        fits=fits,
        headroom_bytes=headroom,
        calibrated=calibration is not None and calibration.is_whole(graphs=not launch.enforce_eager),
        assumptions=tuple(dict.fromkeys(assumptions)),
        model_source=architecture.source or architecture.model_type,
    )


def _fixed(
    architecture: Architecture,
    launch: VllmLaunch,
    version: str | None,
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
        version=version,
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
        version=version,
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
        _IN_BUDGET: non_torch_bytes(runtime, calibration),
        _OUTSIDE: context_bytes(runtime, calibration),
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


def _blocks(
    cache: VllmCache,
    fixed: Sequence[tuple[dict[str, Estimate], dict[str, Estimate]]],
    launch: VllmLaunch,
    version: str | None,
    budget: Estimate | None,
) -> Estimate | None:
    """Blocks of the pool; None where nothing tells its size."""
    if launch.num_gpu_blocks_override is not None:
        return exact(launch.num_gpu_blocks_override, "--num-gpu-blocks-override")
    if launch.kv_cache_memory_bytes is not None:
        blocks = cache.num_blocks([launch.kv_cache_memory_bytes] * len(fixed))
        return exact(blocks, "--kv-cache-memory-bytes")
    if budget is None:
        return None
    pools = [
        kv_cache_pool_bytes(
            budget,
            weights=components["weights"],
            non_torch=components[_IN_BUDGET],
            activations=components["activations"],
            graphs=components["cuda_graphs"],
            version=version,
            others=(components["lora"],) if "lora" in components else (),
        )
        for components, _ in fixed
    ]
    low, expected, high = (
        cache.num_blocks([getattr(pool, bound) for pool in pools]) for bound in ("low", "expected", "high")
    )
    return Estimate(low, expected, high, pools[0].source)


def _rank(
    stage: int,
    components: Mapping[str, Estimate],
    host: Mapping[str, Estimate],
    cache: VllmCache,
    blocks: Estimate | None,
    budget: Estimate | None,
    version: str | None,
) -> RankFootprint:
    published = {name: part for name, part in components.items() if name not in (_IN_BUDGET, _OUTSIDE)}
    runtime = [components[_IN_BUDGET], components[_OUTSIDE]]
    published["runtime"] = total(runtime, "; ".join(part.source for part in runtime))
    if blocks is not None:
        size = cache.stage_block_bytes[stage]
        published["kv_cache"] = Estimate(
            blocks.low * size,
            blocks.expected * size,
            blocks.high * size,
            f"{cache.source}; {blocks.source}",
        )
    whole = total(published.values(), "sum of the components")
    if budget is not None:
        whole = _within_budget(whole, components, budget, version)
    return RankFootprint(pipeline_stage=stage, components=published, total=whole, host=host)


def _within_budget(
    whole: Estimate, components: Mapping[str, Estimate], budget: Estimate, version: str | None
) -> Estimate:
    """The total with the bounds of the budget: what one component takes more, the K/V pool takes less.

    Outside the budget are the CUDA context, and CUDA graphs by as much as they differ from their estimate, or
    wholly before the version that counts them. Where all else exceeds the budget the sum stands: such a
    server does not start.
    """
    outside = components[_OUTSIDE]
    graphs = components["cuda_graphs"]
    counted = graphs.expected if graphs_count_in_budget(version) else 0
    least = budget.low + outside.low + max(0, graphs.low - counted)
    most = budget.high + outside.high + max(0, graphs.high - counted)
    return Estimate(
        min(whole.expected, max(whole.low, least)),
        whole.expected,
        max(whole.expected, min(whole.high, most)),
        "budget of the engine and what lies outside it",
    )


def _fit(ranks: Sequence[RankFootprint], cache: VllmCache, gpu: Gpu | None) -> tuple[bool | None, int | None]:
    """Whether one request of full length fits beside all else on every stage, and what then stays free."""
    if gpu is None:
        return None, None
    fits = True
    for rank in ranks:
        besides = sum(part.high for name, part in rank.components.items() if name != "kv_cache")
        request = (cache.request_blocks(cache.settings.max_model_len) + cache.null_blocks) * (
            cache.stage_block_bytes[rank.pipeline_stage]
        )
        fits = fits and besides + request <= gpu.visible_bytes.low
    fullest = max(rank.total.expected for rank in ranks)
    return fits, gpu.visible_bytes.expected - fullest


def _kv_cache(cache: VllmCache, blocks: Estimate | None) -> KvCacheFootprint:
    context = cache.settings.max_model_len
    return KvCacheFootprint(
        bytes_per_token=float(cache.bytes_per_token),
        max_model_len_tokens=context,
        full_request_bytes=cache.bytes_by_tokens(context),
        bytes_by_tokens={
            length: cache.bytes_by_tokens(length)
            for length in sorted({length for length in LENGTHS if length < context} | {context})
        },
        block_tokens=cache.block_size,
        stage_block_bytes=cache.stage_block_bytes,
        num_blocks=blocks,
        capacity_tokens=None if blocks is None else cache.capacity_tokens(blocks.expected),
        max_concurrency_requests=None if blocks is None else cache.max_concurrency(blocks.expected),
    )


def _ceiling(
    architecture: Architecture,
    launch: VllmLaunch,
    by_stage: Mapping[int, RankWeights],
    cache: VllmCache,
    gpu: Gpu | None,
    assumptions: list[str],
) -> DecodeCeiling | None:
    if gpu is None or gpu.bandwidth_bytes_per_second is None:
        return None
    if launch.pipeline_parallel_size > 1:
        assumptions.append("No decode ceiling is given for a pipeline of several stages.")
        return None
    element = cache.format.head(128, 128) / 256  # with its scales, as heads of the usual size have them
    return DecodeCeiling(
        weights=decode_weights(
            architecture,
            by_stage[0].total.expected,
            tensor_parallel=launch.tensor_parallel_size,
            expert_parallel=launch.enable_expert_parallel,
        ),
        kv_read=lambda tokens: kv_read_bytes(
            architecture, tokens, element_bytes=element, tensor_parallel=launch.tensor_parallel_size
        ),
        bandwidth_bytes_per_second=gpu.bandwidth_bytes_per_second,
    )
