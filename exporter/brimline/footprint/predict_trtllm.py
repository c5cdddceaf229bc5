"""The predicted memory of a trtllm-serve server, component by component, for each GPU rank.

TensorRT-LLM loads the model, runs one full batch, and gives its K/V cache a fraction of what is then *free*
(kv_cache_free_gpu_memory_fraction), not of the card: what other parts take more, the pool takes less, but
never all of it. CUDA graphs are captured afterwards, in what the fraction leaves. Settings: the flags of
trtllm-serve with underscores; those of its options file that decide memory as kv_cache_config.NAME.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brimline.errors import SettingError
from brimline.estimate import Estimate, exact, total
from brimline.footprint import settings as read
from brimline.footprint.activations import BatchSettings, forward_bytes
from brimline.footprint.architecture import Architecture
from brimline.footprint.calibration import Calibration
from brimline.footprint.constants import constant
from brimline.footprint.gpus import Gpu
from brimline.footprint.other_caches import TrtllmCache, TrtllmCacheSettings, trtllm_cache
from brimline.footprint.runtime import RuntimeSettings, context_bytes, cuda_graphs_bytes
from brimline.footprint.settings import Settings
from brimline.footprint.throughput import DecodeCeiling, decode_weights_of_rank, kv_read_bytes
from brimline.footprint.weights import (
    RankWeights,
    Sharding,
    StoredWeights,
    as_if_quantized,
    parameters,
    weight_bytes,
)
from brimline.readings import Certainty, Footprint, KvCacheFootprint, Obstacle, RankFootprint, shown_lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class TrtllmLaunch:
    """trtllm-serve's flags, as far as they decide memory. Defaults of 1.0 (commands/serve.py).

    free_fraction: of the free memory; None for the default. max_tokens: most tokens of the pool.
    """

    dtype: str | None = None
    quantization: str | None = None
    tp_size: int = 1
    pp_size: int = 1
    ep_size: int = 1
    max_seq_len: int | None = None
    max_batch_size: int = 2048
    max_num_tokens: int = 8192
    free_fraction: float | None = None
    kv_cache_dtype: str = "auto"
    tokens_per_block: int = 32
    max_tokens: int | None = None
    cuda_graphs: bool = True


def _of_file(options: Mapping[str, Any], name: str, kind: str) -> Settings:
    """A value of the options file as a setting of its own, for the readers of settings."""
    value = options.get(name)
    return {} if value is None else {kind: str(value).lower() if isinstance(value, bool) else str(value)}


def trtllm_launch(settings: Settings) -> TrtllmLaunch:
    """trtllm-serve's flags by their own names with underscores. Raises FootprintError naming the flag.

    A flag wins over kv_cache_config.
    """
    options = read.mapping(settings, "kv_cache_config") or {}
    merged = dict(settings)
    for name, flag in (
        ("free_gpu_memory_fraction", "kv_cache_free_gpu_memory_fraction"),
        ("dtype", "kv_cache_dtype"),
        ("tokens_per_block", "tokens_per_block"),
        ("max_tokens", "max_tokens"),
    ):
        for key, value in _of_file(options, name, flag).items():
            merged.setdefault(key, value)
    fraction = read.number(merged, "kv_cache_free_gpu_memory_fraction")
    if fraction is None:
        fraction = read.number(merged, "free_gpu_memory_fraction")
    if fraction is not None and not 0 < fraction <= 1:
        raise SettingError(f"--kv_cache_free_gpu_memory_fraction {fraction} must be above 0 and at most 1")
    return TrtllmLaunch(
        dtype=read.text(merged, "dtype"),
        quantization=read.text(merged, "quantization"),
        tp_size=read.count(merged, "tp_size") or 1,
        pp_size=read.count(merged, "pp_size") or 1,
        ep_size=read.count(merged, "ep_size") or 1,
        max_seq_len=read.count(merged, "max_seq_len"),
        max_batch_size=read.count(merged, "max_batch_size") or 2048,
        max_num_tokens=read.count(merged, "max_num_tokens") or 8192,
        free_fraction=fraction,
        kv_cache_dtype=read.text(merged, "kv_cache_dtype") or "auto",
        tokens_per_block=read.count(merged, "tokens_per_block") or 32,
        max_tokens=read.count(merged, "max_tokens"),
        cuda_graphs=settings.get("cuda_graph_config", "").lower() not in ("none", "null"),
    )


# _torch/pyexecutor/model_engine.py _infer_max_seq_len_from_config.
_UNSTATED_CONTEXT = 2048


def _context(architecture: Architecture, launch: TrtllmLaunch, notes: list[str]) -> int:
    """The longest request. TensorRT-LLM lowers --max_seq_len to what the model was made for, with a warning.

    _torch/pyexecutor/model_engine.py _init_max_seq_len.
    """
    longest = architecture.max_position
    if longest is None:
        if launch.max_seq_len is None:
            notes.append(
                f"The model states no context length: TensorRT-LLM serves {_UNSTATED_CONTEXT:,} tokens."
            )
        longest = max(_UNSTATED_CONTEXT, launch.max_seq_len or 0)
    wanted = launch.max_seq_len or longest
    if wanted > longest:
        notes.append(
            f"--max_seq_len {wanted:,} is lowered to the {longest:,} tokens that the model was made for, as "
            "TensorRT-LLM does without TLLM_ALLOW_LONG_MAX_MODEL_LEN=1."
        )
    return min(wanted, longest)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fixed:
    """What a stage holds when the pool is made, and the graphs that come after it."""

    weights: Estimate
    activations: Estimate
    graphs: Estimate
    context: Estimate

    @property
    def taken(self) -> Estimate:
        return total((self.weights, self.activations, self.context), "weights, activations and CUDA context")


def _fixed(
    architecture: Architecture,
    launch: TrtllmLaunch,
    weights: RankWeights,
    gpu: Gpu | None,
    calibration: Calibration | None,
) -> _Fixed:
    world = launch.tp_size * launch.pp_size
    runtime = RuntimeSettings(
        engine="trtllm", gpu=gpu.name if gpu is not None else "", world_size=world, graphs=launch.cuda_graphs
    )
    forward = forward_bytes(
        architecture,
        BatchSettings(
            max_num_batched_tokens=launch.max_num_tokens,
            max_num_seqs=min(launch.max_batch_size, launch.max_num_tokens),
            tensor_parallel=launch.tp_size,
            pipeline_parallel=launch.pp_size,
            expert_parallel=launch.ep_size > 1,
        ),
    )
    logits = min(launch.max_batch_size, launch.max_num_tokens) * architecture.vocabulary * 4
    context = context_bytes(runtime, calibration)
    if calibration is None and world > 1:
        context = constant("context_bytes", engine="vllm", gpu=runtime.gpu, variant="multi").estimate()
    return _Fixed(
        weights=weights.total,
        # The batch that is run at the start has few requests, so that logits may add nothing to its peak.
        activations=Estimate(
            forward.low,
            forward.expected,
            max(forward.high, forward.expected + logits),
            f"a batch of {launch.max_num_tokens} tokens, as measured for vLLM's forward pass",
        ),
        graphs=cuda_graphs_bytes(runtime, calibration),
        context=context,
    )


def predict_trtllm(
    architecture: Architecture,
    settings: Settings,
    *,
    version: str | None = None,
    gpu: Gpu | None = None,
    stored: StoredWeights | None = None,
    calibration: Calibration | None = None,
) -> Footprint:
    """The footprint of a trtllm-serve server. Raises FootprintError naming the flag and the rule it breaks.

    settings: its flags by their own names. Taken from its documentation, not tested against a live server.
    """
    launch = trtllm_launch(settings)
    notes = list(architecture.assumptions)
    if gpu is not None and gpu.assumption:
        notes.append(gpu.assumption)
    architecture, stored = as_if_quantized(architecture, stored, launch.quantization, notes)
    if calibration is not None and not calibration.holds_for(
        "trtllm", version, gpu.name if gpu is not None else ""
    ):
        notes.append(calibration.unused)
        calibration = None
    context = _context(architecture, launch, notes)
    sharding = Sharding(
        tensor=launch.tp_size, pipeline=launch.pp_size, expert=launch.ep_size == launch.tp_size > 1
    )
    stages = [
        rank
        for rank in weight_bytes(architecture, sharding=sharding, dtype=launch.dtype or "auto", stored=stored)
        if rank.tensor_rank == 0
    ]
    fixed = [_fixed(architecture, launch, stage, gpu, calibration) for stage in stages]
    caches = _caches(architecture, launch)
    notes += caches[1].assumptions
    blocks = _blocks(caches, fixed, launch, gpu)
    ranks = tuple(_rank(stage, part, caches, blocks, gpu) for stage, part in enumerate(fixed))
    fits, obstacle = _fit(fixed, caches[1], blocks, context, gpu)
    return Footprint(
        engine="trtllm",
        engine_version=version,
        parameters=parameters(architecture),
        ranks=ranks,
        kv_cache=_kv_cache(caches[1], blocks, context, launch),
        tensor_parallel=launch.tp_size,
        max_running_requests=launch.max_batch_size,
        decode_ceiling=_ceiling(architecture, launch, stages, gpu, notes),
        fits=fits,
        obstacle=obstacle,
        headroom_bytes=None
        if fits is None or gpu is None
        else gpu.visible_bytes.expected - max(rank.total.expected for rank in ranks),
        calibrated=calibration is not None and calibration.context_bytes is not None,
        assumptions=tuple(dict.fromkeys(notes)),
        model_source=architecture.source or architecture.model_type,
    )


def _caches(architecture: Architecture, launch: TrtllmLaunch) -> tuple[TrtllmCache, TrtllmCache, TrtllmCache]:
    """The cache for the low, expected and high fraction of the free memory."""
    row = constant("trtllm_free_fraction", engine="trtllm")
    stated = launch.free_fraction
    fractions = (row.low, row.expected, row.high) if stated is None else (stated,) * 3
    low, expected, high = (
        trtllm_cache(
            architecture,
            TrtllmCacheSettings(
                dtype=launch.dtype,
                kv_cache_dtype=launch.kv_cache_dtype,
                tensor_parallel=launch.tp_size,
                pipeline_parallel=launch.pp_size,
                tokens_per_block=launch.tokens_per_block,
                free_gpu_memory_fraction=fraction,
                max_tokens=launch.max_tokens,
            ),
        )
        for fraction in fractions
    )
    return low, expected, high


def _blocks(
    caches: tuple[TrtllmCache, TrtllmCache, TrtllmCache],
    fixed: Sequence[_Fixed],
    launch: TrtllmLaunch,
    gpu: Gpu | None,
) -> Estimate | None:
    """Blocks of the pool on the fullest stage, which all stages take; None where nothing tells them."""
    if gpu is None:
        if launch.max_tokens is None:
            return None
        return exact(-(-launch.max_tokens // launch.tokens_per_block), "max_tokens")
    visible, (low, expected, high) = gpu.visible_bytes, caches
    fraction = expected.settings.free_gpu_memory_fraction
    return Estimate(
        low.num_blocks(max(0, visible.low - max(part.taken.high for part in fixed))),
        expected.num_blocks(max(0, visible.expected - max(part.taken.expected for part in fixed))),
        high.num_blocks(max(0, visible.high - max(part.taken.low for part in fixed))),
        f"{fraction:g} of what is free after weights and activations; {expected.source}",
    )


def _rank(
    stage: int,
    fixed: _Fixed,
    caches: tuple[TrtllmCache, TrtllmCache, TrtllmCache],
    blocks: Estimate | None,
    gpu: Gpu | None,
) -> RankFootprint:
    components = {
        "weights": fixed.weights,
        "activations": fixed.activations,
        "cuda_graphs": fixed.graphs,
        "runtime": fixed.context,
    }
    cache = caches[1]
    if blocks is not None:
        size = cache.token_bytes * cache.settings.tokens_per_block
        components["kv_cache"] = Estimate(
            blocks.low * size, blocks.expected * size, blocks.high * size, blocks.source
        )
    whole = total(components.values(), "sum of the components")
    if blocks is not None and gpu is not None:
        whole = _with_pool(whole, fixed, caches, gpu)
    return RankFootprint(pipeline_stage=stage, components=components, total=whole)


def _with_pool(
    whole: Estimate, fixed: _Fixed, caches: tuple[TrtllmCache, TrtllmCache, TrtllmCache], gpu: Gpu
) -> Estimate:
    """The total with nearer bounds: of what one part takes more, the pool gives up all but a tenth."""
    low, _, high = caches
    taken, visible = fixed.taken, gpu.visible_bytes
    least = taken.low + low.pool_bytes(max(0, visible.low - taken.low)) + fixed.graphs.low
    most = taken.high + high.pool_bytes(max(0, visible.high - taken.high)) + fixed.graphs.high
    return Estimate(
        min(whole.expected, max(whole.low, least)),
        whole.expected,
        max(whole.expected, min(whole.high, most)),
        "parts, and the fraction that the pool takes of the rest",
    )


def _request_blocks(cache: TrtllmCache, tokens: int) -> int:
    return -(-tokens // cache.settings.tokens_per_block)


def _fit(
    fixed: Sequence[_Fixed], cache: TrtllmCache, blocks: Estimate | None, context: int, gpu: Gpu | None
) -> tuple[bool | None, Obstacle | None]:
    """Whether one request of full length fits the smallest pool, and the graphs beside it."""
    if gpu is None or blocks is None:
        return None, None
    size = cache.token_bytes * cache.settings.tokens_per_block
    wanted = _request_blocks(cache, context)
    room = all(part.taken.high + part.graphs.high + wanted * size <= gpu.visible_bytes.low for part in fixed)
    if not room or blocks.low >= wanted or not size:
        return room, None
    certainty: Certainty = "possible"
    if blocks.high < wanted:
        certainty = "certain"
    elif blocks.expected < wanted:
        certainty = "expected"
    held = {"certain": blocks.high, "expected": blocks.expected, "possible": blocks.low}[certainty]
    tokens = held * cache.settings.tokens_per_block
    obstacle = Obstacle(
        "engine",
        certainty,
        f"the GPU would hold it, but TensorRT-LLM's KV cache has {tokens:,} of the {context:,} tokens of one "
        "request; raise --kv_cache_free_gpu_memory_fraction, or lower --max_seq_len",
    )
    return False, obstacle


def _kv_cache(
    cache: TrtllmCache, blocks: Estimate | None, context: int, launch: TrtllmLaunch
) -> KvCacheFootprint:
    size = cache.token_bytes * launch.tokens_per_block
    return KvCacheFootprint(
        bytes_per_token=float(cache.token_bytes),
        max_model_len_tokens=context,
        full_request_bytes=_request_blocks(cache, context) * size,
        bytes_by_tokens={length: _request_blocks(cache, length) * size for length in shown_lengths(context)},
        block_tokens=launch.tokens_per_block,
        stage_block_bytes=(size,) * launch.pp_size,
        num_blocks=blocks,
        capacity_tokens=None if blocks is None else blocks.expected * launch.tokens_per_block,
        max_concurrency_requests=None
        if blocks is None
        else blocks.expected / _request_blocks(cache, context),
    )


def _ceiling(
    architecture: Architecture,
    launch: TrtllmLaunch,
    stages: Sequence[RankWeights],
    gpu: Gpu | None,
    notes: list[str],
) -> DecodeCeiling | None:
    if gpu is None or gpu.bandwidth_bytes_per_second is None:
        return None
    if launch.pp_size > 1:
        notes.append("No decode ceiling is given for a pipeline of several stages.")
        return None
    element = {"auto": 2.0, "nvfp4": 0.5625}.get(launch.kv_cache_dtype, 1.0)
    return DecodeCeiling(
        weights=decode_weights_of_rank(
            architecture, {part: size.expected for part, size in stages[0].parts.items()}
        ),
        kv_read=lambda tokens: kv_read_bytes(
            architecture, tokens, element_bytes=element, tensor_parallel=launch.tp_size
        ),
        bandwidth_bytes_per_second=gpu.bandwidth_bytes_per_second,
    )
