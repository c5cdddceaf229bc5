"""The predicted memory of a vLLM server, component by component, for each GPU rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from brimline.errors import FootprintError
from brimline.estimate import Estimate, exact, total
from brimline.footprint.activations import (
    Activations,
    BatchSettings,
    activations,
    encoder_cache_bytes,
    encoder_forward_bytes,
)
from brimline.footprint.architecture import (
    Architecture,
    Attention,
    Experts,
    has_latents,
    kept_with_architecture,
)
from brimline.footprint.calibrated import (
    measured_gpu,
    measured_parts,
    measured_pool,
    non_kv,
    server_settings,
)
from brimline.footprint.calibration import Calibration
from brimline.footprint.constants import constant, parse_version
from brimline.footprint.drafts import Draft, draft_of
from brimline.footprint.gpus import Gpu
from brimline.footprint.lora import lora_host_bytes, lora_slots_bytes
from brimline.footprint.offload import Offload, kv_offloading_bytes, prefetch_offload, uva_offload
from brimline.footprint.runtime import (
    RuntimeSettings,
    context_bytes,
    cuda_graphs_bytes,
    graphs_count_in_budget,
    kv_cache_pool_bytes,
    non_torch_bytes,
    vllm_budget,
)
from brimline.footprint.settings import Settings, flag
from brimline.footprint.throughput import (
    DecodeCeiling,
    PipelineCeiling,
    Speculation,
    decode_weights_of_rank,
    kv_read_bytes,
)
from brimline.footprint.vllm_cache import NEWEST_VERSION, VllmCache, VllmCacheSettings, vllm_cache
from brimline.footprint.vllm_launch import (
    VllmLaunch,
    batch_of,
    context_of,
    skipped_layers,
    swap_gib,
    vllm_launch,
)
from brimline.footprint.vllm_rules import check_launch
from brimline.footprint.vllm_weights import holds_encoder_whole, vllm_buffers, vllm_rules
from brimline.footprint.weights import (
    RankWeights,
    StoredWeights,
    as_if_quantized,
    largest_matrix_bytes,
    layer_shares,
    parameters,
    weight_bytes,
)
from brimline.readings import (
    Certainty,
    Footprint,
    KvCacheFootprint,
    Obstacle,
    RankFootprint,
    Step,
    shown_lengths,
)
from brimline.units import format_bytes

__all__ = ["VllmLaunch", "VllmServer", "VllmStage", "predict_vllm", "vllm_kv_cache", "vllm_launch"]

# Both are one component to those who read them; within the budget or not decides the size of the K/V pool.
IN_BUDGET, OUTSIDE = "runtime in the budget", "runtime outside the budget"
# Taken at run time, beside the activations that the profile run has seen.
UNPROFILED = "activations beyond the profile"
_UNPUBLISHED = (IN_BUDGET, OUTSIDE, UNPROFILED)
# Tokens of the largest image where the model's files do not say: Qwen2-VL's limit of 16384 patches of 28×28
# pixels (its preprocessor_config.json, max_pixels 12,845,056).
_LARGEST_IMAGE_TOKENS = 16384
# MLA's kernels for a CPU without AMX take no other.
_CPU_BLOCK, _CPU_LATENT_BLOCK = 128, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmServer:
    """A server to be predicted, its defaults filled in. stored: None where only settings tell the weights."""

    architecture: Architecture
    launch: VllmLaunch
    version: str | None
    gpu: Gpu | None
    sequences: int
    batched: int
    stored: StoredWeights | None = None
    calibration: Calibration | None = None
    draft: Draft | None = None

    @property
    def element_bytes(self) -> int:
        return self.launch.element_bytes(self.architecture)


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmStage:
    """One pipeline stage. components: on a GPU, without the K/V pool; host: in main memory, for each GPU.

    profiled: what the profile run sees of components that serving may use less of.
    """

    weights: RankWeights
    components: Mapping[str, Estimate]
    host: Mapping[str, Estimate]
    batch: BatchSettings
    activations: Activations
    profiled: Mapping[str, Estimate]


def vllm_kv_cache(
    architecture: Architecture,
    launch: VllmLaunch,
    version: str | None = None,
    *,
    max_num_batched_tokens: int | None = None,
    draft: Draft | None = None,
) -> VllmCache:
    """The block layout of the server's KV cache. Raises FootprintError."""
    return vllm_cache(
        architecture,
        VllmCacheSettings(
            max_model_len=context_of(architecture, launch, version),
            max_num_batched_tokens=launch.max_num_batched_tokens or max_num_batched_tokens or 2048,
            version=parse_version(version) if version else NEWEST_VERSION,
            dtype=launch.dtype or "auto",
            kv_cache_dtype=launch.kv_cache_dtype or "auto",
            block_size=launch.block_size or (_cpu_block(architecture) if launch.on_cpu else None),
            tensor_parallel=launch.tensor_parallel_size,
            pipeline_parallel=launch.pipeline_parallel_size,
            decode_context_parallel=launch.decode_context_parallel_size,
            async_scheduling=launch.async_scheduling,
            prefix_caching=launch.enable_prefix_caching,
            hybrid_cache_manager=launch.hybrid_cache_manager,
            mamba_cache_mode=launch.mamba_cache_mode,
            mamba_cache_dtype=launch.mamba_cache_dtype,
            mamba_ssm_cache_dtype=launch.mamba_ssm_cache_dtype,
            speculative_tokens=draft.tokens if draft is not None else 0,
            multi_module_mtp=draft.multi_module if draft is not None else False,
            draft_layers=draft.layers if draft is not None else (),
            drafts_from_text=draft is not None and draft.memory is None,
            skipped_layers=skipped_layers(architecture, launch),
            num_gpu_blocks_override=launch.num_gpu_blocks_override,
        ),
    )


def _cpu_block(architecture: Architecture) -> int:
    """Tokens of a block on a CPU, where no flag says.

    vLLM 0.32, platforms/cpu.py check_and_update_config.
    """
    return _CPU_LATENT_BLOCK if has_latents(architecture) else _CPU_BLOCK


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
    if launch.on_cpu:
        assumptions += _said_of_cpu(gpu, has_latents(architecture) and launch.block_size is None)
        gpu = None
    if gpu is not None and gpu.assumption:
        assumptions.append(gpu.assumption)
    architecture, stored = as_if_quantized(architecture, stored, launch.quantization, assumptions)
    architecture, stored = _without_senses(architecture, stored, launch.unwanted)
    depth, layers = launch.pipeline_parallel_size, len(architecture.layers)
    if depth > layers:
        raise FootprintError(f"--pipeline-parallel-size {depth} is more than the model's {layers} layers")
    context = context_of(architecture, launch, version)
    if architecture.max_position is None and launch.max_model_len is None:
        assumptions.append(
            f"The model states no context length: vLLM serves {context:,} tokens (--max-model-len)."
        )
    sequences, batched = batch_of(launch, gpu, context, assumptions)
    check_launch(architecture, launch, gpu, version)
    assumptions += _said_of(launch, version)
    if gpu is not None and (launch.kv_cache_dtype or architecture.quantization is not None):
        assumptions.append(f"Whether vLLM has kernels for these types on {gpu.name} is not looked at.")
    stated: dict[str, str] = {}
    if calibration is not None:
        stated = server_settings(
            launch,
            architecture,
            max_num_seqs=sequences,
            max_num_batched_tokens=batched,
            max_model_len=context,
        )
        calibration, left_out = calibration.applied(
            engine="vllm",
            version=version,
            gpu=gpu.name if gpu is not None else "",
            parameters=parameters(architecture),
            settings=stated,
        )
        assumptions += left_out
    if gpu is not None:
        gpu = measured_gpu(gpu, calibration)
    server = VllmServer(
        architecture=architecture,
        launch=launch,
        version=version,
        gpu=gpu,
        sequences=sequences,
        batched=batched,
        stored=stored,
        calibration=calibration,
        draft=_draft(architecture, launch, batched, stored),
    )
    if server.draft is not None:
        assumptions += server.draft.assumptions
    cache = vllm_kv_cache(architecture, launch, version, max_num_batched_tokens=batched, draft=server.draft)
    assumptions += cache.assumptions
    if architecture.rotary is None:
        assumptions.append(
            "Tables of rotary positions are not counted: what this model has is not known here."
        )
    stages = _stages(server, assumptions)
    # Of which stage a sum was measured is not known.
    besides = non_kv(calibration, stated) if len(stages) == 1 else None
    stages = [
        replace(
            stage,
            components=measured_parts(
                stage.components,
                calibration,
                besides,
                in_budget=IN_BUDGET,
                uncounted=(OUTSIDE, UNPROFILED),
                graphs_counted=graphs_count_in_budget(version),
            ),
        )
        for stage in stages
    ]
    budget = None
    if gpu is not None and launch.kv_cache_memory_bytes is None and launch.num_gpu_blocks_override is None:
        budget = _budget(gpu, launch, version)
    blocks = _blocks(cache, stages, launch, version, budget, besides)
    if launch.auto_fit and blocks is not None:
        longest = longest_context(cache, blocks.expected, context)
        cache = replace(cache, settings=replace(cache.settings, max_model_len=max(1, longest)))
        assumptions.append(
            f"--max-model-len is left to vLLM: {longest} tokens are what the pool should hold."
        )
    ranks = [_rank(stage, cache, blocks, budget, version) for stage in stages]
    if launch.on_cpu:
        ranks = [_in_main_memory(rank, stage) for rank, stage in zip(ranks, stages, strict=True)]
    fit = _Fit() if launch.on_cpu else _fit(ranks, stages, cache, blocks, server, assumptions)
    ceiling = _ceiling(server, stages, cache)
    return Footprint(
        engine="vllm",
        engine_version=version,
        parameters=parameters(architecture),
        ranks=tuple(ranks),
        kv_cache=_kv_cache(cache, blocks),
        tensor_parallel=launch.tensor_parallel_size,
        data_parallel=launch.data_parallel_size,
        max_running_requests=sequences,
        decode_ceiling=ceiling,
        speculative_ceiling=_speculative(server, cache, ceiling),
        fits=fit.fits,
        starts=fit.starts,
        longest_start_tokens=fit.longest_start_tokens,
        obstacle=fit.obstacle,
        headroom_bytes=None
        if gpu is None
        else gpu.visible_bytes.expected - max(rank.total.expected for rank in ranks),
        calibrated=calibration is not None and calibration.is_whole(graphs=not launch.enforce_eager),
        assumptions=tuple(dict.fromkeys(assumptions)),
        model_source=architecture.source or architecture.model_type,
        explain=None
        if launch.on_cpu
        else lambda: _explained(server, stages, cache, blocks, budget, ranks, ceiling),
    )


def _explained(
    server: VllmServer,
    stages: Sequence[VllmStage],
    cache: VllmCache,
    blocks: Estimate | None,
    budget: Estimate | None,
    ranks: Sequence[RankFootprint],
    ceiling: DecodeCeiling | PipelineCeiling | None,
) -> tuple[Step, ...]:
    from brimline.footprint.explain_vllm import explain_vllm  # only where somebody asks

    fullest = max(range(len(ranks)), key=lambda stage: ranks[stage].total.expected)
    return explain_vllm(
        server, stages[fullest], cache, blocks=blocks, budget=budget, rank=ranks[fullest], ceiling=ceiling
    )


def _without_senses(
    architecture: Architecture, stored: StoredWeights | None, unwanted: frozenset[str]
) -> tuple[Architecture, StoredWeights | None]:
    """The model without the encoders that no input reaches: they are not loaded.

    vLLM 0.33, model_executor/models/interfaces.py _mark_tower_model: where the limit of each kind of input
    that an encoder takes is 0.
    """
    senses = {"vision": {"image", "video"} if architecture.takes_video else {"image"}, "audio": {"audio"}}
    kept = tuple(
        encoder
        for encoder in architecture.encoders
        if encoder.kind == "text" or not senses[encoder.kind] <= unwanted
    )
    if len(kept) == len(architecture.encoders):
        return architecture, stored
    if stored is not None:
        whole = sum(encoder.parameters for encoder in architecture.encoders)
        share = sum(encoder.parameters for encoder in kept) / whole if whole else 0
        stored = replace(stored, parts={**stored.parts, "encoder": round(stored.parts["encoder"] * share)})
    return replace(architecture, encoders=kept), stored


def _said_of(launch: VllmLaunch, version: str | None) -> list[str]:
    """What people should know of flags that are not followed, or that the figures are a part of."""
    said = []
    if launch.prefill_context_parallel_size > 1:
        said.append("What --prefill-context-parallel-size splits is not followed: all is counted whole.")
    if launch.swap_space is not None and not swap_gib(launch, version):
        said.append("--swap-space is without effect since vLLM 0.8.")
    return said


def _draft(
    architecture: Architecture, launch: VllmLaunch, batched: int, stored: StoredWeights | None
) -> Draft | None:
    if launch.speculation is None:
        return None
    return draft_of(
        launch.speculation,
        architecture,
        sharding=launch.sharding,
        element_bytes=launch.element_bytes(architecture),
        dtype=launch.dtype or "auto",
        kv_cache_dtype=launch.kv_cache_dtype or "auto",
        max_num_batched_tokens=batched,
        stored=stored,
    )


# --- Components


def _stages(server: VllmServer, assumptions: list[str]) -> list[VllmStage]:
    """All that each stage holds beside the K/V pool, of its fullest rank."""
    architecture, sharding = server.architecture, server.launch.sharding
    if sharding.tensor > 1 and holds_encoder_whole(architecture, server.launch.config_format, server.version):
        sharding = replace(sharding, encoder="data")
        assumptions.append(
            "The image encoder is counted whole on each GPU: vLLM up to 0.19 does not split it where it "
            "takes the model in Mistral's own format."
        )
    gpu = server.gpu.name if server.gpu is not None else ""
    rules = vllm_rules(server.version, gpu)
    ranks = weight_bytes(
        architecture,
        sharding=sharding,
        dtype=server.launch.dtype or "auto",
        rules=rules,
        stored=server.stored,
    )
    first = {rank.pipeline_stage: rank for rank in reversed(ranks)}
    stages = []
    for stage in sorted(first):
        buffers = vllm_buffers(
            architecture,
            first[stage],
            sharding=sharding,
            element_bytes=server.element_bytes,
            rules=rules,
            version=server.version,
            gpu=gpu,
        )
        stages.append(_stage(server, replace(first[stage], buffers=buffers), assumptions))
    return stages


def _stage(server: VllmServer, weights: RankWeights, assumptions: list[str]) -> VllmStage:
    launch, architecture, draft = server.launch, server.architecture, server.draft
    last = weights.pipeline_stage == launch.pipeline_parallel_size - 1
    calibration = server.calibration
    # Replicas of a dense model know nothing of each other.
    replicas = launch.data_parallel_size if _has_experts(architecture) else 1
    runtime = RuntimeSettings(
        engine="vllm",
        version=server.version,
        gpu=server.gpu.name if server.gpu is not None else "",
        world_size=launch.tensor_parallel_size * launch.pipeline_parallel_size * replicas,
        layer_ranks=launch.tensor_parallel_size * replicas,
        graphs=not launch.enforce_eager,
    )
    batch = BatchSettings(
        max_num_batched_tokens=server.batched,
        max_num_seqs=server.sequences,
        element_bytes=server.element_bytes,
        tensor_parallel=launch.tensor_parallel_size,
        pipeline_parallel=launch.pipeline_parallel_size,
        data_parallel=replicas,
        expert_parallel=launch.enable_expert_parallel,
        last_stage=last,
        draft_tokens=draft.tokens if draft is not None and last else 0,
        auxiliary_states=draft.auxiliary_states if draft is not None else 0,
    )
    peak = activations(
        architecture,
        batch,
        version=server.version,
        sampler_factor=calibration.sampler_bytes_factor if calibration is not None else None,
    )
    on_gpu, host = _offloaded(server, weights)
    components = {
        "weights": on_gpu,
        "activations": peak.peak,
        "cuda_graphs": cuda_graphs_bytes(runtime, calibration),
        IN_BUDGET: non_torch_bytes(runtime, calibration),
        OUTSIDE: context_bytes(runtime, calibration),
    }
    if peak.unprofiled.high:
        components[UNPROFILED] = peak.unprofiled
    if draft is not None and draft.memory is not None and last:
        components["draft_model"] = draft.memory
    adapters = launch.lora_settings(
        architecture, layers=weights.layers, first_stage=weights.pipeline_stage == 0, last_stage=last
    )
    if adapters is not None:
        components["lora"] = lora_slots_bytes(architecture, adapters)
        host["lora"] = lora_host_bytes(architecture, adapters)
    profiled = {}
    cached, encoding = _encoder_cache(server, assumptions) if weights.pipeline_stage == 0 else (None, None)
    if encoding is not None and launch.profiles_images:
        components["activations"] = _larger(peak.peak, encoding)
    if cached is not None:
        components["encoder_cache"] = cached
        # The profile run fills it with whole items: more than half of it, at most all.
        least = cached.expected // 2 if launch.profiles_images else 0
        most = cached.high if launch.profiles_images else 0
        profiled["encoder_cache"] = Estimate(least, min(most, cached.expected), most, cached.source)
    return VllmStage(
        weights=weights,
        components=components,
        host=host,
        batch=batch,
        activations=peak,
        profiled=profiled,
    )


def _larger(one: Estimate, other: Estimate) -> Estimate:
    """The peak of two that follow each other; its low bound is that of the first."""
    source = other.source if other.expected > one.expected else one.source
    return Estimate(one.low, max(one.expected, other.expected), max(one.high, other.high), source)


@kept_with_architecture
def _has_experts(architecture: Architecture) -> bool:
    return any(isinstance(layer.feed_forward, Experts) for layer in architecture.layers)


def _offloaded(server: VllmServer, weights: RankWeights) -> tuple[Estimate, dict[str, Estimate]]:
    """Weights that stay on a GPU, and what lies in host memory for each GPU."""
    launch, whole = server.launch, weights.total
    host: dict[str, Estimate] = {}
    moved: Offload | None = None
    flag = ""
    if launch.offload_group_size:
        shares = layer_shares(server.architecture, weights.layers)
        ends = weights.beside_layers.expected
        in_layers = whole.expected - ends
        moved = prefetch_offload(
            [round(in_layers * share) for share in shares],
            ends,
            group_size=launch.offload_group_size,
            offloaded_in_group=launch.offload_num_in_group,
            prefetch_step=launch.offload_prefetch_step,
        )
        flag = "--offload-group-size"
    elif launch.cpu_offload_gb:
        largest = largest_matrix_bytes(
            server.architecture, server.launch.sharding, element_bytes=server.element_bytes
        )
        moved = uva_offload(whole.expected, launch.cpu_offload_gb, largest_parameter_bytes=largest)
        flag = "--cpu-offload-gb"
    on_gpu = whole
    if moved is not None:
        kept = moved.gpu
        on_gpu = Estimate(
            max(0, kept.low - (whole.expected - whole.low)),
            kept.expected,
            kept.high + (whole.high - whole.expected),
            f"{whole.source}; {flag}",
        )
        host["weights"] = moved.host
    kv_host = []
    if launch.kv_offloading_size is not None:
        ranks = launch.tensor_parallel_size * launch.pipeline_parallel_size
        kv_host.append(kv_offloading_bytes(launch.kv_offloading_size, ranks=ranks))
    if swapped := swap_gib(launch, server.version):
        kv_host.append(exact(swapped * (1 << 30), "--swap-space, GiB for each GPU (vLLM before 0.8)"))
    if kv_host:
        host["kv_cache"] = total(kv_host, "; ".join(part.source for part in kv_host))
    return on_gpu, host


def _encoder_cache(server: VllmServer, assumptions: list[str]) -> tuple[Estimate | None, Estimate | None]:
    """Outputs of encoders of images and sounds, kept beside the K/V cache, and the peak of encoding them.

    None without such an encoder. As many items as the cache holds are encoded at once in the profile run, of
    the sense with the longest ones (vLLM 0.32, multimodal/encoder_budget.py).
    """
    seeing = [encoder for encoder in server.architecture.encoders if encoder.kind != "text"]
    if not seeing or _attends_to_encoder(server.architecture):
        return None, None
    hidden, element = server.architecture.hidden, server.element_bytes
    stated = [encoder.max_tokens for encoder in seeing if encoder.max_tokens is not None]
    tokens = max(server.batched, *stated, 0)
    cached = encoder_cache_bytes(
        hidden, max_tokens_per_item=tokens, cache_tokens=server.batched, element_bytes=element
    )
    kinds = " and ".join(sorted({encoder.kind for encoder in seeing}))
    if len(stated) < len(seeing) and tokens < _LARGEST_IMAGE_TOKENS:
        cached = replace(cached, high=_LARGEST_IMAGE_TOKENS * hidden * element)
        assumptions.append(
            f"How many tokens one {kinds} input may have is not known: the encoder cache is counted for "
            f"{tokens:,} (--max-num-batched-tokens), at most {_LARGEST_IMAGE_TOKENS:,}."
        )
    working = max(
        (encoder_forward_bytes(encoder, tokens, element_bytes=element) for encoder in seeing),
        key=lambda one: one.high,
    )
    if not server.launch.profiles_images:
        assumptions.append(
            "Encoding is not profiled (--skip-mm-profiling): its memory comes on top at run time."
        )
    elif working.high:
        assumptions.append(
            f"The working memory of the {kinds} encoder is bounded by the sizes of its tensors, which no "
            "measurement confirms."
        )
    else:
        assumptions.append(
            f"The working memory of the {kinds} encoder is not counted: its sizes are not known."
        )
    return cached, working if working.high else None


def _attends_to_encoder(architecture: Architecture) -> bool:
    return any(
        isinstance(mixer, Attention) and mixer.cross
        for layer in architecture.layers
        for mixer in layer.mixers
    )


# --- The K/V pool


def _blocks(
    cache: VllmCache,
    stages: Sequence[VllmStage],
    launch: VllmLaunch,
    version: str | None,
    budget: Estimate | None,
    besides: Estimate | None,
) -> Estimate | None:
    """Blocks of the pool; None where nothing tells its size. besides: all else in the budget, measured."""
    if launch.num_gpu_blocks_override is not None:
        return exact(launch.num_gpu_blocks_override, "--num-gpu-blocks-override")
    if launch.kv_cache_memory_bytes is not None:
        blocks = cache.num_blocks([launch.kv_cache_memory_bytes] * len(stages))
        return exact(blocks, "--kv-cache-memory-bytes")
    if budget is None:
        return None
    pools = [
        measured_pool(budget, besides) if besides is not None else pool_of(stage, budget, version)
        for stage in stages
    ]
    low, expected, high = (
        cache.num_blocks([getattr(pool, bound) for pool in pools]) for bound in ("low", "expected", "high")
    )
    return Estimate(low, expected, high, pools[0].source)


def pool_of(stage: VllmStage, budget: Estimate, version: str | None) -> Estimate:
    """What a stage leaves of the budget for its K/V cache."""
    parts = {**stage.components, **stage.profiled}
    return kv_cache_pool_bytes(
        budget,
        weights=parts["weights"],
        non_torch=parts[IN_BUDGET],
        activations=parts["activations"],
        graphs=parts["cuda_graphs"],
        version=version,
        others=tuple(parts[name] for name in ("lora", "draft_model", "encoder_cache") if name in parts),
    )


def longest_context(cache: VllmCache, blocks: int, most: int) -> int:
    """The longest request, at most `most` tokens, that so many blocks hold beside the null block; 0 for none.

    As vLLM 0.32 searches it (v1/core/kv_cache_utils.py, _estimate_max_model_len_from_groups).
    """
    # The pages of a group that is not mixed are alike, so one of them tells its blocks.
    groups = tuple(group if group.mixed else replace(group, pages=group.pages[:1]) for group in cache.groups)
    slim = replace(cache, groups=groups)

    def holds(tokens: int) -> bool:
        return slim.request_blocks(tokens) + cache.null_blocks <= blocks

    if holds(most):
        return most
    held, above = 0, most
    while above - held > 1:
        middle = (held + above) // 2
        if holds(middle):
            held = middle
        else:
            above = middle
    return held


def _rank(
    stage: VllmStage,
    cache: VllmCache,
    blocks: Estimate | None,
    budget: Estimate | None,
    version: str | None,
) -> RankFootprint:
    components = stage.components
    published = {name: part for name, part in components.items() if name not in _UNPUBLISHED}
    if UNPROFILED in components:
        both = [components["activations"], components[UNPROFILED]]
        published["activations"] = total(both, "; ".join(part.source for part in both))
    runtime = [components[IN_BUDGET], components[OUTSIDE]]
    published["runtime"] = total(runtime, "; ".join(part.source for part in runtime))
    if blocks is not None:
        size = cache.stage_block_bytes[stage.weights.pipeline_stage]
        published["kv_cache"] = Estimate(
            blocks.low * size,
            blocks.expected * size,
            blocks.high * size,
            f"{cache.source}; {blocks.source}",
        )
    whole = total(published.values(), "sum of the components")
    if budget is not None:
        whole = _within_budget(whole, stage, budget, version)
    return RankFootprint(
        pipeline_stage=stage.weights.pipeline_stage, components=published, total=whole, host=stage.host
    )


# Of a GPU's components those that a CPU has, too. Its activations, libraries and what its kernels pack anew
# nobody has published.
_ON_CPU = ("kv_cache", "lora", "draft_model", "encoder_cache")


def _in_main_memory(rank: RankFootprint, stage: VllmStage) -> RankFootprint:
    """A worker on the CPU: what would lie on its GPU, as far as it is known, lies in main memory."""
    parts = {"weights": stage.weights.total}
    parts |= {name: rank.components[name] for name in _ON_CPU if name in rank.components}
    if "lora" in rank.host and "lora" in parts:
        both = [parts["lora"], rank.host["lora"]]
        parts["lora"] = total(both, "; ".join(part.source for part in both))
    return replace(rank, components={}, total=exact(0, "nothing on a GPU"), host=parts)


def _said_of_cpu(gpu: Gpu | None, block_is_assumed: bool) -> list[str]:
    text = (
        "The server runs on the CPU: no GPU memory is predicted. Its weights and KV cache lie in main "
        "memory; what activations, libraries and repacked weights take there beside them is not predicted."
    )
    said = [text]
    if gpu is not None:
        said.append(f"{gpu.name} is left out.")
    if block_is_assumed:
        said.append(
            f"A block of {_CPU_LATENT_BLOCK} tokens is assumed; with AMX it has {_CPU_BLOCK} (--block-size)."
        )
    return said


def _within_budget(whole: Estimate, stage: VllmStage, budget: Estimate, version: str | None) -> Estimate:
    """The total with the bounds of the budget: what one component takes more, the K/V pool takes less.

    Outside the budget are the CUDA context, what is not profiled, and CUDA graphs by as much as they differ
    from their estimate, or wholly before the version that counts them. Where all else exceeds the budget the
    sum stands: such a server does not start.
    """
    if not pool_of(stage, budget, version).expected:
        return whole
    outside = stage.components[OUTSIDE]
    later = stage.components.get(UNPROFILED)
    graphs = stage.components["cuda_graphs"]
    counted = graphs.expected if graphs_count_in_budget(version) else 0
    # What the profile run has held, and serving may not use.
    idle = sum(
        max(0, profiled.high - stage.components[name].low) for name, profiled in stage.profiled.items()
    )
    least = budget.low + outside.low + max(0, graphs.low - counted) - idle
    most = budget.high + outside.high + max(0, graphs.high - counted) + (later.high if later else 0)
    return Estimate(
        min(whole.expected, max(whole.low, least)),
        whole.expected,
        max(whole.expected, min(whole.high, most)),
        "budget of the engine and what lies outside it",
    )


# --- Whether it fits, and whether it starts


@dataclass(frozen=True, slots=True)
class _Fit:
    """Footprint's fields of the same names."""

    fits: bool | None = None
    starts: bool | None = None
    longest_start_tokens: int | None = None
    obstacle: Obstacle | None = None


def _fit(
    ranks: Sequence[RankFootprint],
    stages: Sequence[VllmStage],
    cache: VllmCache,
    blocks: Estimate | None,
    server: VllmServer,
    assumptions: list[str],
) -> _Fit:
    """Whether a full request lies beside all else, whether vLLM starts, and the longest request for that.

    A GPU that is large enough is not all: vLLM takes what --gpu-memory-utilization leaves it, and does not
    start where that holds no full request. A pool of a given size must lie on the GPU whole.
    """
    gpu, wanted, launch = server.gpu, cache.settings.max_model_len, server.launch
    needed = cache.request_blocks(wanted) + cache.null_blocks
    given = launch.kv_cache_memory_bytes is not None or launch.num_gpu_blocks_override is not None
    fits = None
    if gpu is not None:
        pools = [_held(rank, cache, needed, whole=given) for rank in ranks]
        fits = all(
            _besides(rank).high + pool <= gpu.visible_bytes.low
            for rank, pool in zip(ranks, pools, strict=True)
        )
        if given:
            obstacle = _of_given_pool(ranks, pools, gpu, launch)
            if obstacle is not None:
                return _Fit(fits=False, starts=False, obstacle=obstacle)
    if blocks is None:
        return _Fit(fits)
    refused = _asks_for_more_than_is_free(stages, server, assumptions)
    if refused is not None:
        return _Fit(fits, starts=False, longest_start_tokens=0, obstacle=refused)
    least = cache.request_blocks(1) + cache.null_blocks if launch.auto_fit else needed
    starts = blocks.low >= least
    most = max(server.architecture.max_position or wanted, wanted)
    longest = longest_context(cache, blocks.low, most)
    obstacle = None
    if not starts and fits is not False:
        obstacle = _pool_too_small(cache, blocks, 1 if launch.auto_fit else wanted, longest, given=given)
    return _Fit(fits, starts, longest, obstacle)


def _besides(rank: RankFootprint) -> Estimate:
    """All of a rank but its K/V pool."""
    return total((part for name, part in rank.components.items() if name != "kv_cache"), "")


def _held(rank: RankFootprint, cache: VllmCache, request_blocks: int, *, whole: bool) -> int:
    """Bytes of one request, the null block included; of the whole pool where its size is given."""
    pool = rank.components.get("kv_cache")
    request = request_blocks * cache.stage_block_bytes[rank.pipeline_stage]
    return max(request, pool.high) if whole and pool is not None else request


def _of_given_pool(
    ranks: Sequence[RankFootprint], pools: Sequence[int], gpu: Gpu, launch: VllmLaunch
) -> Obstacle | None:
    """Where the pool that is asked for lies on no GPU beside all else: vLLM takes it unasked and runs out.

    vLLM 0.33, v1/worker/gpu_worker.py determine_available_memory and v1/core/kv_cache_planning.py
    get_kv_cache_configs: neither flag is held to what is free.
    """
    visible = gpu.visible_bytes
    tightest = max(range(len(ranks)), key=lambda stage: _besides(ranks[stage]).high + pools[stage])
    besides, size = _besides(ranks[tightest]), pools[tightest]
    asked = ranks[tightest].components.get("kv_cache")
    rest, pool = format_bytes(besides.expected), format_bytes(size)
    if besides.expected > visible.expected:
        return Obstacle(
            "card",
            "certain" if besides.low > visible.high else "expected",
            f"weights and all else take {rest}, more than the GPU has without any KV cache",
        )
    if besides.high + size <= visible.low or asked is None or asked.high < size:
        return None  # or what lacks room is one request, whatever pool is asked for
    name = (
        "num_gpu_blocks_override" if launch.num_gpu_blocks_override is not None else "kv_cache_memory_bytes"
    )
    certainty: Certainty = "possible"
    if besides.low + size > visible.high:
        certainty = "certain"
    elif besides.expected + size > visible.expected:
        certainty = "expected"
    left = max(0, visible.low - besides.high)
    text = (
        f"{flag(name)} asks for a KV cache of {pool}; with the {rest} of all else that is more than the GPU "
        "has"
        + (", by the high bounds" if certainty == "possible" else "")
        + (f". At most {format_bytes(left)} surely lie there" if left else "")
    )
    return Obstacle("card", certainty, text)


def _asks_for_more_than_is_free(
    stages: Sequence[VllmStage], server: VllmServer, assumptions: list[str]
) -> Obstacle | None:
    """Where vLLM refuses at its first look: free memory below the utilization's share of the card.

    vLLM 0.33, v1/worker/utils.py request_memory; with a pool of a given size too.
    """
    if server.gpu is None:
        return None
    budget = _budget(server.gpu, server.launch, server.version)
    free = [_free_at_start(stage, server.gpu) for stage in stages]
    if any(one.high < budget.low for one in free):
        least = min(one.high for one in free)
        return Obstacle(
            "engine",
            "certain",
            f"--gpu-memory-utilization asks for {format_bytes(budget.expected)}, and at most "
            f"{format_bytes(least)} are free beside the CUDA context; lower it",
        )
    if any(one.expected < budget.expected for one in free):
        assumptions.append(
            "vLLM may not start: --gpu-memory-utilization asks for more than should be free beside the CUDA "
            "context."
        )
    return None


def _pool_too_small(
    cache: VllmCache, blocks: Estimate, wanted: int, longest: int, *, given: bool
) -> Obstacle:
    """The pool holds no request of full length, at worst at least (vLLM 0.33, get_kv_cache_configs)."""
    needed = cache.request_blocks(wanted) + cache.null_blocks
    request = format_bytes(cache.request_blocks(wanted) * cache.block_bytes)
    certainty: Certainty = "possible"
    if blocks.high < needed:
        certainty = "certain"
    elif blocks.expected < needed:
        certainty = "expected"
    size = {"certain": blocks.high, "expected": blocks.expected, "possible": blocks.low}[certainty]
    how = {"certain": "at most ", "expected": "", "possible": "at worst "}[certainty]
    if blocks.is_exact:
        how = ""
    held = format_bytes(max(0, size - cache.null_blocks) * cache.block_bytes)
    raised = "give the pool more" if given else "raise --gpu-memory-utilization"
    surely = f"at most {longest:,} tokens surely start" if longest else "no length surely starts"
    return Obstacle(
        "engine",
        certainty,
        f"the GPU would hold it, but of the {request} that one request of {wanted:,} tokens takes, vLLM's KV "
        f"cache pool has {how}{held}; {raised}, or lower --max-model-len ({surely})",
    )


def _free_at_start(stage: VllmStage, gpu: Gpu) -> Estimate:
    """What is free of a GPU when vLLM takes its first snapshot: all but the CUDA context."""
    context = stage.components[OUTSIDE]
    visible = gpu.visible_bytes
    return Estimate(
        max(0, visible.low - context.high),
        max(0, visible.expected - context.expected),
        max(0, visible.high - context.low),
        "CUDA-visible memory less the context",
    )


def _kv_cache(cache: VllmCache, blocks: Estimate | None) -> KvCacheFootprint:
    context = cache.settings.max_model_len
    return KvCacheFootprint(
        bytes_per_token=float(cache.bytes_per_token),
        window_bytes_per_token=None
        if cache.window_tokens is None
        else float(cache.bytes_per_token_within_window),
        window_tokens=cache.window_tokens,
        max_model_len_tokens=context,
        full_request_bytes=cache.bytes_by_tokens(context),
        bytes_by_tokens={length: cache.bytes_by_tokens(length) for length in shown_lengths(context)},
        block_tokens=cache.block_size,
        stage_block_bytes=cache.stage_block_bytes,
        num_blocks=blocks,
        capacity_tokens=None if blocks is None else cache.capacity_tokens(blocks.expected),
        max_concurrency_requests=None if blocks is None else cache.max_concurrency(blocks.expected),
    )


# --- How fast it can be


def _ceiling(
    server: VllmServer, stages: Sequence[VllmStage], cache: VllmCache
) -> DecodeCeiling | PipelineCeiling | None:
    gpu = server.gpu
    if gpu is None or gpu.bandwidth_bytes_per_second is None:
        return None
    alone = [_stage_ceiling(server, stage, cache, gpu.bandwidth_bytes_per_second) for stage in stages]
    return alone[0] if len(alone) == 1 else PipelineCeiling(tuple(alone))


def _stage_ceiling(
    server: VllmServer, stage: VllmStage, cache: VllmCache, bandwidth_bytes_per_second: float
) -> DecodeCeiling:
    launch, form, architecture = server.launch, cache.format, server.architecture
    if launch.pipeline_parallel_size > 1:
        # A tied head stands among the last stage's own weights then.
        layers = tuple(architecture.layers[index] for index in stage.weights.layers)
        architecture = replace(architecture, layers=layers, tied=False)
    return DecodeCeiling(
        weights=decode_weights_of_rank(
            architecture, {part: size.expected for part, size in stage.weights.parts.items()}
        ),
        kv_read=lambda tokens: kv_read_bytes(
            architecture,
            math.ceil(tokens / launch.decode_context_parallel_size),
            tensor_parallel=launch.tensor_parallel_size,
            form=form,
        ),
        bandwidth_bytes_per_second=bandwidth_bytes_per_second,
    )


def _speculative(
    server: VllmServer, cache: VllmCache, ceiling: DecodeCeiling | PipelineCeiling | None
) -> Callable[[float], DecodeCeiling] | None:
    """The ceiling at a given acceptance of drafts; None without speculation, and for a pipeline."""
    draft = server.draft
    if draft is None or not isinstance(ceiling, DecodeCeiling):
        return None
    drafter = Architecture(
        model_type="drafter", vocabulary=1, hidden=draft.hidden or 1, layers=draft.layers, tied=True
    )
    a_token = kv_read_bytes(drafter, 1, tensor_parallel=server.launch.tensor_parallel_size, form=cache.format)

    def at(acceptance: float) -> DecodeCeiling:
        return replace(
            ceiling,
            speculation=Speculation(
                draft_tokens=draft.tokens,
                acceptance=acceptance,
                draft_weights_bytes=draft.step_bytes,
                draft_kv_bytes_per_token=a_token,
                passes=draft.passes,
            ),
        )

    return at
