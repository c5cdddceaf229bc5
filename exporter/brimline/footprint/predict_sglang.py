"""The predicted memory of an SGLang server, component by component, for each GPU rank.

SGLang measures what is free before it loads a model, and gives a share of that (--mem-fraction-static) to
weights and caches together. What is left, the slack, is for the working memory of steps, for CUDA graphs and
for the table of requests; the engine measures none of them, so that a slack that is too small shows as an
out-of-memory error under load. The pool is therefore known as well as the weights are, while the activations
stand between what a full prefill needs and all of the slack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from brimline.errors import FootprintError, SettingError
from brimline.estimate import Estimate, exact, total
from brimline.footprint import settings as read
from brimline.footprint.activations import BatchSettings, forward_bytes
from brimline.footprint.architecture import Architecture, LatentAttention
from brimline.footprint.calibrated import measured_weights
from brimline.footprint.calibration import Calibration, plain_settings
from brimline.footprint.constants import GIB, Name, constant
from brimline.footprint.gpus import Gpu
from brimline.footprint.lora import LoraSettings, linears, lora_slots_bytes
from brimline.footprint.other_caches import SglangCache, SglangCacheSettings, SglangPool, sglang_cache
from brimline.footprint.runtime import (
    RuntimeSettings,
    SglangSettings,
    context_bytes,
    cuda_graphs_bytes,
    sglang_batch_defaults,
    sglang_prefill_graphs,
    sglang_static_ratio,
)
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
from brimline.units import format_bytes

# Graphs of prefill are captured by default; for MLA up to so many tokens.
_LATENT_PREFILL_TOKENS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class SglangLaunch:
    """SGLang's flags, as far as they decide memory. None is what the version does by default."""

    dtype: str | None = None
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    context_length: int | None = None
    max_running_requests: int | None = None
    max_total_tokens: int | None = None
    chunked_prefill_size: int | None = None
    max_prefill_tokens: int = 16384
    cuda_graph_max_bs: int | None = None
    disable_cuda_graph: bool = False
    disable_prefill_graph: bool = False
    page_size: int = 1
    mem_fraction_static: float | None = None
    tp_size: int = 1
    pp_size: int = 1
    dp_size: int = 1
    ep_size: int = 1
    enable_dp_attention: bool = False
    swa_full_tokens_ratio: float = 0.8
    hybrid_windows: bool = True
    mamba_full_memory_ratio: float = 0.9
    max_mamba_cache_size: int | None = None
    mamba_ssm_dtype: str | None = None
    cpu_offload_gb: float = 0.0
    enable_lora: bool = False
    max_loras_per_batch: int = 8
    max_lora_rank: int | None = None
    lora_target_modules: tuple[str, ...] = ()

    @property
    def attention_ranks(self) -> int:
        """GPUs that share one request's attention."""
        return self.tp_size // self.dp_size if self.enable_dp_attention else self.tp_size


def sglang_launch(settings: Settings) -> SglangLaunch:
    """SGLang's flags by their own names with underscores. Raises FootprintError naming the flag."""
    chunked = settings.get("chunked_prefill_size")
    launch = SglangLaunch(
        dtype=read.text(settings, "dtype"),
        quantization=read.text(settings, "quantization"),
        kv_cache_dtype=read.text(settings, "kv_cache_dtype") or "auto",
        context_length=read.count(settings, "context_length"),
        max_running_requests=read.count(settings, "max_running_requests"),
        max_total_tokens=read.count(settings, "max_total_tokens"),
        # -1 turns chunking off: then whole prompts are prefilled.
        chunked_prefill_size=0 if chunked == "-1" else read.count(settings, "chunked_prefill_size"),
        max_prefill_tokens=read.count(settings, "max_prefill_tokens") or 16384,
        cuda_graph_max_bs=read.count(settings, "cuda_graph_max_bs")
        or read.count(settings, "cuda_graph_max_bs_decode"),
        disable_cuda_graph=read.switch(settings, "disable_cuda_graph") or False,
        disable_prefill_graph=any(
            read.switch(settings, name) or False
            for name in ("disable_prefill_cuda_graph", "disable_piecewise_cuda_graph", "disable_cuda_graph")
        ),
        page_size=read.count(settings, "page_size") or 1,
        mem_fraction_static=read.number(settings, "mem_fraction_static"),
        tp_size=read.count(settings, "tp_size") or 1,
        pp_size=read.count(settings, "pp_size") or 1,
        dp_size=read.count(settings, "dp_size") or 1,
        ep_size=read.count(settings, "ep_size") or 1,
        enable_dp_attention=read.switch(settings, "enable_dp_attention") or False,
        swa_full_tokens_ratio=_or(read.number(settings, "swa_full_tokens_ratio"), 0.8),
        hybrid_windows=not read.switch(settings, "disable_hybrid_swa_memory"),
        mamba_full_memory_ratio=_or(read.number(settings, "mamba_full_memory_ratio"), 0.9),
        max_mamba_cache_size=read.count(settings, "max_mamba_cache_size"),
        mamba_ssm_dtype=read.text(settings, "mamba_ssm_dtype"),
        cpu_offload_gb=read.number(settings, "cpu_offload_gb") or 0.0,
        enable_lora=bool(read.switch(settings, "enable_lora"))
        or read.text(settings, "lora_paths") is not None,
        max_loras_per_batch=read.count(settings, "max_loras_per_batch") or 8,
        max_lora_rank=read.count(settings, "max_lora_rank"),
        lora_target_modules=read.words(settings, "lora_target_modules"),
    )
    ratio = launch.mem_fraction_static
    if ratio is not None and not 0 < ratio < 1:
        raise SettingError(f"--mem-fraction-static {ratio} must be between 0 and 1")
    if launch.enable_dp_attention and launch.tp_size % launch.dp_size:
        raise FootprintError(f"--dp-size {launch.dp_size} must divide --tp-size {launch.tp_size}")
    return launch


def _or(number: float | None, default: float) -> float:
    return default if number is None else number


# --- what a version and a GPU give by default


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """prefill_tokens: that one step works on at most. graph_batch: the largest captured decode batch."""

    prefill_tokens: int
    graph_batch: int
    prefill_graphs: int
    latent: bool


def _batch(architecture: Architecture, launch: SglangLaunch, gpu: Gpu | None, notes: list[str]) -> _Batch:
    memory = gpu.memory_bytes if gpu is not None else 80 * GIB
    if gpu is None:
        notes.append("No GPU is named: the batch defaults are those of a GPU with 80 GiB.")
    chunk, largest = sglang_batch_defaults(memory, launch.tp_size)
    chunk = chunk if launch.chunked_prefill_size is None else launch.chunked_prefill_size
    if launch.cuda_graph_max_bs is not None:
        largest = launch.cuda_graph_max_bs
    elif launch.max_running_requests is not None:
        largest = min(largest, launch.max_running_requests)
    latent = any(isinstance(m, LatentAttention) for layer in architecture.layers for m in layer.mixers)
    tokens = chunk or launch.max_prefill_tokens
    captured = min(tokens, _LATENT_PREFILL_TOKENS) if latent else tokens
    if launch.max_total_tokens is not None:
        captured = min(captured, launch.max_total_tokens)
    return _Batch(
        prefill_tokens=tokens,
        graph_batch=0 if launch.disable_cuda_graph else largest,
        prefill_graphs=0 if launch.disable_prefill_graph else sglang_prefill_graphs(captured),
        latent=latent,
    )


def _static_ratio(
    architecture: Architecture, launch: SglangLaunch, batch: _Batch, gpu: Gpu
) -> tuple[float, str]:
    if launch.mem_fraction_static is not None:
        return launch.mem_fraction_static, "--mem-fraction-static"
    vision = any(encoder.kind in ("vision", "audio") for encoder in architecture.encoders)
    ratio = sglang_static_ratio(
        gpu.memory_bytes,
        SglangSettings(
            chunked_prefill_tokens=batch.prefill_tokens,
            tensor_parallel=launch.tp_size,
            pipeline_parallel=launch.pp_size,
            decode_max_batch=batch.graph_batch,
            prefill_graph_batches=batch.prefill_graphs,
            vision=vision,
            latent=batch.latent,
            attention_replicas=launch.dp_size if launch.enable_dp_attention else 1,
        ),
    )
    return ratio, "the default of SGLang 0.5.23"


def _context(architecture: Architecture, launch: SglangLaunch) -> int:
    longest = architecture.max_position
    wanted = launch.context_length or longest
    if wanted is None:
        raise FootprintError("the model states no context length; give --context-length")
    if longest is not None and wanted > longest:
        raise FootprintError(
            f"--context-length {wanted} is above the {longest} tokens that the model was made for"
        )
    return wanted


# --- the parts


def _weights(
    architecture: Architecture, launch: SglangLaunch, stored: StoredWeights | None
) -> list[RankWeights]:
    """The weights of the first rank of each stage.

    The remainder of the layers goes to the last stages (distributed/utils.py get_pp_indices). With data
    parallel attention a rank holds more of the attention than of the rest.
    """
    count = len(architecture.layers)
    if launch.pp_size > count:
        raise FootprintError(f"--pp-size {launch.pp_size} is more than the model's {count} layers")
    sizes = [count // launch.pp_size] * launch.pp_size
    for back in range(1, count % launch.pp_size + 1):
        sizes[-back] += 1

    def ranks(tensor: int) -> list[RankWeights]:
        sharding = Sharding(
            tensor=tensor,
            pipeline=launch.pp_size,
            expert=launch.ep_size == launch.tp_size > 1,
            layer_partition=tuple(sizes),
        )
        found = weight_bytes(architecture, sharding=sharding, dtype=launch.dtype or "auto", stored=stored)
        return [rank for rank in found if rank.tensor_rank == 0]

    rotary = sum(4 * table.rows * table.width for table in architecture.rotary or ())
    source = "tables of rotary positions in 32 bits (SGLang 0.5.23, layers/rotary_embedding/base.py)"
    buffers = {"rotary tables": exact(rotary, source)} if rotary else {}
    whole = [replace(rank, buffers=buffers) for rank in ranks(launch.tp_size)]
    if launch.attention_ranks == launch.tp_size:
        return whole
    wider = ranks(launch.attention_ranks)
    return [
        replace(rank, parts={**rank.parts, "attention": other.parts["attention"]})
        for rank, other in zip(whole, wider, strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fixed:
    """All of a stage but its pool. static: what of it lies in the static part. lora: 0 without adapters."""

    weights: Estimate
    lora: Estimate
    forward: Estimate
    graphs: Estimate
    context: Estimate
    host: Mapping[str, Estimate]

    @property
    def static(self) -> Estimate:
        return total((self.weights, self.lora), self.weights.source) if self.lora.high else self.weights


# Names by which SGLang stacks modules, and the router, which takes no adapter (0.5.23, lora/utils.py).
_STACKED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def _lora_bytes(architecture: Architecture, launch: SglangLaunch, layers: range) -> Estimate:
    """Slots for adapters, filled or not, which SGLang takes before it sizes its pool.

    For each module A holds slots * rank * inputs, B slots * outputs * rank, split as the module is (SGLang
    0.5.23, lora/mem_pool.py get_lora_A_shape, get_lora_B_shape). Modules of unnamed targets are those of the
    adapters: at most all.
    """
    if not launch.enable_lora or launch.max_lora_rank is None:
        return exact(0, "no adapters")
    known = {
        one.name.removeprefix("experts.")
        for index in layers
        for one in linears(architecture.layers[index], architecture.hidden)
        if one.name != "gate"
    }
    named = [part for name in launch.lora_target_modules for part in _STACKED.get(name, (name,))]
    targets = frozenset(known if not named or "all" in named else named)
    of_rank_one = lora_slots_bytes(
        architecture,
        LoraSettings(
            max_loras=launch.max_loras_per_batch,
            max_lora_rank=1,
            tensor_parallel=launch.tp_size,
            expert_parallel=launch.ep_size,
            targets=targets,
            stage_layers=layers,
        ),
    )
    size = of_rank_one.high * launch.max_lora_rank
    least = size if launch.lora_target_modules else 0
    return Estimate(least, size, size, "slots for adapters, SGLang 0.5.23 lora/mem_pool.py")


def _said_of_lora(launch: SglangLaunch) -> list[str]:
    if not launch.enable_lora:
        return []
    if launch.max_lora_rank is None:
        return ["The slots for adapters are not counted: give --max-lora-rank, and --lora-target-modules."]
    if not launch.lora_target_modules:
        return ["Slots are counted for adapters on every linear layer: --lora-target-modules names fewer."]
    return []


def _fixed(
    architecture: Architecture,
    launch: SglangLaunch,
    batch: _Batch,
    weights: RankWeights,
    gpu: Gpu | None,
    calibration: Calibration | None,
) -> _Fixed:
    runtime = RuntimeSettings(
        engine="sglang",
        gpu=gpu.name if gpu is not None else "",
        world_size=launch.tp_size * launch.pp_size,
        graphs=not launch.disable_cuda_graph,
    )
    running = min(launch.max_running_requests or batch.graph_batch or 256, batch.prefill_tokens)
    forward = forward_bytes(
        architecture,
        BatchSettings(
            max_num_batched_tokens=batch.prefill_tokens,
            max_num_seqs=running,
            tensor_parallel=launch.tp_size,
            pipeline_parallel=launch.pp_size,
            expert_parallel=launch.ep_size > 1,
        ),
    )
    # Logits of the last token of each request, in 16 bits and in fp32.
    logits = running * architecture.vocabulary * 6
    forward = Estimate(
        forward.low,
        max(forward.expected, logits),
        max(forward.high, logits),
        f"a prefill of {batch.prefill_tokens} tokens, as measured for vLLM's forward pass",
    )
    on_gpu, host = weights.total, {}
    if launch.pp_size == 1 and not launch.cpu_offload_gb:  # else what was measured is not told
        on_gpu = measured_weights(calibration) or on_gpu
    if launch.cpu_offload_gb:
        moved = min(on_gpu.low, round(launch.cpu_offload_gb * GIB))
        on_gpu = Estimate(
            on_gpu.low - moved, on_gpu.expected - moved, on_gpu.high - moved,
            f"{on_gpu.source}; --cpu-offload-gb",
        )  # fmt: skip
        host["weights"] = exact(moved, "--cpu-offload-gb")
    return _Fixed(
        weights=on_gpu,
        lora=_lora_bytes(architecture, launch, weights.layers),
        forward=forward,
        graphs=cuda_graphs_bytes(runtime, calibration),
        context=_context_bytes(runtime, calibration),
        host=host,
    )


def _context_bytes(runtime: RuntimeSettings, calibration: Calibration | None) -> Estimate:
    """What is taken before SGLang looks at the free memory: the CUDA context, and NCCL among several GPUs."""
    if calibration is None and runtime.world_size > 1:
        name: Name = "context_bytes"
        return constant(name, engine="vllm", gpu=runtime.gpu, variant="multi").estimate()
    return context_bytes(runtime, calibration)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pools:
    """The pool for each of the three bounds, and the slack beside it; slack None without a GPU.

    visible_bytes: most that the GPU shows, which pool, slack and all else fill.
    """

    low: SglangPool
    expected: SglangPool
    high: SglangPool
    slack: Estimate | None
    visible_bytes: int
    source: str

    @property
    def bytes(self) -> Estimate:
        return Estimate(
            self.low.kv_bytes + self.low.state_bytes,
            self.expected.kv_bytes + self.expected.state_bytes,
            self.high.kv_bytes + self.high.state_bytes,
            self.source,
        )

    @property
    def pages(self) -> Estimate:
        return Estimate(self.low.tokens, self.expected.tokens, self.high.tokens, self.source)


def _pools(
    cache: SglangCache, launch: SglangLaunch, fixed: Sequence[_Fixed], gpu: Gpu | None, ratio: float, why: str
) -> _Pools | None:
    """The pool that the fullest stage leaves, which all stages take; None where nothing tells its size."""
    if gpu is None:
        if launch.max_total_tokens is None:
            return None
        enough = 1 << 62
        if cache.state_slot_bytes and launch.max_mamba_cache_size is None:
            return None
        pool = cache.pool(enough)
        return _Pools(
            low=pool, expected=pool, high=pool, slack=None, visible_bytes=0, source="--max-total-tokens"
        )
    visible = gpu.visible_bytes

    def available(free: int, weights: int) -> int:
        return max(0, int(free * ratio) - weights)

    free = Estimate(
        max(0, visible.low - max(part.context.high for part in fixed)),
        max(0, visible.expected - max(part.context.expected for part in fixed)),
        max(0, visible.high - max(part.context.low for part in fixed)),
        visible.source,
    )
    left = (
        available(free.low, max(part.static.high for part in fixed)),
        available(free.expected, max(part.static.expected for part in fixed)),
        available(free.high, max(part.static.low for part in fixed)),
    )
    low, expected, high = (_pool(cache, size) for size in left)
    rest = 1 - ratio
    slack = Estimate(int(free.low * rest), int(free.expected * rest), int(free.high * rest), why)
    return _Pools(
        low=low,
        expected=expected,
        high=high,
        slack=slack,
        visible_bytes=visible.high,
        source=f"{cache.source}; {ratio:g} of the free memory ({why}) less weights",
    )


def _pool(cache: SglangCache, available: int) -> SglangPool:
    """The pool; an empty one where not even the recurrent states of one request fit."""
    try:
        return cache.pool(available)
    except FootprintError:
        return SglangPool(tokens=0, window_tokens=None, states=0, kv_bytes=0, state_bytes=0)


def _request_table(launch: SglangLaunch, pools: _Pools | None, context: int) -> Estimate:
    """The table from requests and positions to cells of the cache: 4 bytes each.

    2048 to 4096 requests unless --max-running-requests says how many (kv_cache_configurator.py
    resolve_max_num_reqs).
    """
    if pools is None:
        return exact(0, "the pool is not known")
    tokens = pools.expected.tokens
    requests = launch.max_running_requests or max(min(tokens * 512 // context, 4096), 2048)
    if pools.expected.states is not None:
        requests = min(requests, pools.expected.states)
    rows = min(requests, tokens // 2)
    return exact(rows * (context + 4) * 4, "table of requests, SGLang 0.5.23 kv_cache_configurator.py")


def predict_sglang(
    architecture: Architecture,
    settings: Settings,
    *,
    version: str | None = None,
    gpu: Gpu | None = None,
    stored: StoredWeights | None = None,
    calibration: Calibration | None = None,
) -> Footprint:
    """The footprint of an SGLang server. Raises FootprintError naming the flag and the rule it breaks.

    settings: its flags by their own names with underscores. The rules are those of SGLang 0.5.23; of other
    versions the default of --mem-fraction-static may differ, which a server states of itself.
    """
    launch = sglang_launch(settings)
    notes = list(architecture.assumptions)
    if gpu is not None and gpu.assumption:
        notes.append(gpu.assumption)
    architecture, stored = as_if_quantized(architecture, stored, launch.quantization, notes)
    if settings.get("speculative_algorithm", "").lower() not in ("", "none"):
        notes.append("The draft model of --speculative-algorithm is not counted.")
    notes += _said_of_lora(launch)
    if calibration is not None:
        calibration, left_out = calibration.applied(
            engine="sglang",
            version=version,
            gpu=gpu.name if gpu is not None else "",
            parameters=parameters(architecture),
            settings=_server_settings(launch),
        )
        notes += left_out
    context = _context(architecture, launch)
    cache = sglang_cache(architecture, _cache_settings(launch))
    notes += cache.assumptions
    batch = _batch(architecture, launch, gpu, notes)
    stages = _weights(architecture, launch, stored)
    fixed = [_fixed(architecture, launch, batch, weights, gpu, calibration) for weights in stages]
    ratio, why = _static_ratio(architecture, launch, batch, gpu) if gpu is not None else (0.0, "")
    pools = _pools(cache, launch, fixed, gpu, ratio, why)
    table = _request_table(launch, pools, context)
    ranks = tuple(_rank(stage, part, pools, table) for stage, part in enumerate(fixed))
    fit = _fit(ranks, fixed, table, cache, pools, context, gpu)
    return Footprint(
        engine="sglang",
        engine_version=version,
        parameters=parameters(architecture),
        ranks=ranks,
        kv_cache=_kv_cache(cache, launch, pools, context),
        tensor_parallel=launch.tp_size,
        data_parallel=launch.dp_size,
        gpus=launch.tp_size * launch.pp_size if launch.enable_dp_attention else 0,
        max_running_requests=launch.max_running_requests,
        decode_ceiling=_ceiling(architecture, launch, stages, gpu, notes),
        fits=fit.fits,
        starts=fit.starts,
        obstacle=fit.obstacle,
        headroom_bytes=fit.headroom_bytes,
        calibrated=calibration is not None and calibration.context_bytes is not None,
        assumptions=tuple(dict.fromkeys(notes)),
        model_source=architecture.source or architecture.model_type,
    )


def _server_settings(launch: SglangLaunch) -> dict[str, str]:
    """The launch settings that a calibration states of a server (calibrate_live.py)."""
    return dict(
        plain_settings(
            {
                "tp_size": launch.tp_size,
                "pp_size": launch.pp_size,
                "dp_size": launch.dp_size,
                "dtype": launch.dtype,
                "quantization": launch.quantization,
            }
        )
    )


def _cache_settings(launch: SglangLaunch) -> SglangCacheSettings:
    return SglangCacheSettings(
        dtype=launch.dtype,
        kv_cache_dtype=launch.kv_cache_dtype,
        tensor_parallel=launch.attention_ranks,
        pipeline_parallel=launch.pp_size,
        page_size=launch.page_size,
        hybrid_windows=launch.hybrid_windows,
        swa_full_tokens_ratio=launch.swa_full_tokens_ratio,
        mamba_full_memory_ratio=launch.mamba_full_memory_ratio,
        max_mamba_cache_size=launch.max_mamba_cache_size,
        mamba_ssm_dtype=launch.mamba_ssm_dtype,
        max_total_tokens=launch.max_total_tokens,
    )


def _rank(stage: int, fixed: _Fixed, pools: _Pools | None, table: Estimate) -> RankFootprint:
    working = fixed.forward
    if pools is not None and pools.slack is not None:
        # Nothing holds the working memory to what it needs but the slack itself.
        besides = fixed.graphs.low + table.low
        most = max(working.expected, pools.slack.high - besides)
        working = Estimate(
            min(working.low, most), working.expected, most, f"{working.source}; at most the slack"
        )
    components = {
        "weights": fixed.weights,
        "activations": working,
        "cuda_graphs": fixed.graphs,
        "runtime": total((fixed.context, table), f"{fixed.context.source}; {table.source}"),
    }
    if fixed.lora.high:
        components["lora"] = fixed.lora
    if pools is not None:
        components["kv_cache"] = pools.bytes
    whole = total(components.values(), "sum of the components")
    if pools is not None and pools.slack is not None:
        # What the weights take more, the pool takes less; beside both there is the slack and no more.
        parts = (fixed.static, pools.bytes)
        static = sum(part.expected for part in parts)
        most = max(whole.expected, pools.visible_bytes)
        least = static + fixed.context.low + fixed.graphs.low + table.low + working.low
        if pools.bytes.expected:  # else weights exceed the static part, and the plain sum stands
            whole = Estimate(
                min(whole.expected, least), whole.expected, min(whole.high, most),
                "static part, CUDA context and slack",
            )  # fmt: skip
    return RankFootprint(pipeline_stage=stage, components=components, total=whole, host=fixed.host)


@dataclass(frozen=True, slots=True)
class _Fit:
    """Footprint's fields of the same names."""

    fits: bool | None = None
    starts: bool | None = None
    obstacle: Obstacle | None = None
    headroom_bytes: int | None = None


def _fit(
    ranks: Sequence[RankFootprint],
    fixed: Sequence[_Fixed],
    table: Estimate,
    cache: SglangCache,
    pools: _Pools | None,
    context: int,
    gpu: Gpu | None,
) -> _Fit:
    """Whether a request of full length lies beside all else, and in the smallest pool; whether SGLang starts.

    It starts with any pool that is not empty (0.5.23, pool_configurator.py MemoryPoolConfig), and then takes
    no request longer than the pool (tp_worker.py max_req_len): so nothing fits that its pool does not hold.
    What the slack lacks shows as an out-of-memory error under load.
    """
    if gpu is None or pools is None or pools.slack is None:
        return _Fit()
    request = cache.request_bytes(context)
    slack, visible = pools.slack, gpu.visible_bytes
    # Of the activations what a prefill needs, not all of the slack.
    besides = [
        total((part.static, part.forward, part.graphs, part.context, table), "all but the pool")
        for part in fixed
    ]
    fits = all(one.high + request <= visible.low for one in besides)
    working = max(
        (total((part.forward, part.graphs), "a prefill and the graphs") for part in fixed),
        key=lambda one: one.expected,
    )
    obstacle = None
    if fits:
        obstacle = _small_pool(cache, pools, context)
        if obstacle is None and working.expected > slack.low:
            obstacle = Obstacle(
                "engine",
                "certain" if working.low > slack.high else "possible",
                f"a prefill and the CUDA graphs take {format_bytes(working.expected)}, and the static part "
                f"leaves {format_bytes(slack.expected)} for them; lower --mem-fraction-static",
            )
    return _Fit(
        fits=fits and obstacle is None,
        starts=not cache.cell_bytes or pools.low.tokens > 0,
        obstacle=obstacle,
        headroom_bytes=visible.expected - max(rank.total.expected for rank in ranks),
    )


def _small_pool(cache: SglangCache, pools: _Pools, context: int) -> Obstacle | None:
    """Where the static part leaves no pool, or one that is smaller than a request of full length."""
    if not cache.cell_bytes or pools.low.tokens >= context:
        return None
    low, expected, high = pools.low.tokens, pools.expected.tokens, pools.high.tokens
    if not low:
        text = "the GPU would hold it, but the static part leaves no KV cache beside the weights"
        certainty: Certainty = "possible" if expected else "expected" if high else "certain"
        at_worst = ", at worst" if certainty == "possible" else ""
        return Obstacle("engine", certainty, f"{text}{at_worst}; raise --mem-fraction-static")
    certainty = "certain" if high < context else "expected" if expected < context else "possible"
    tokens = {"certain": high, "expected": expected, "possible": low}[certainty]
    return Obstacle(
        "engine",
        certainty,
        f"the GPU would hold it, but SGLang's KV cache has {tokens:,} of the {context:,} tokens of one "
        "request, and it takes none that is longer; raise --mem-fraction-static, or lower --context-length",
    )


def _kv_cache(
    cache: SglangCache, launch: SglangLaunch, pools: _Pools | None, context: int
) -> KvCacheFootprint:
    page = launch.page_size
    plain = not cache.window_token_bytes and not cache.state_slot_bytes
    pages = None
    if pools is not None:
        tokens = pools.pages
        pages = Estimate(tokens.low // page, tokens.expected // page, tokens.high // page, tokens.source)
    return KvCacheFootprint(
        bytes_per_token=float(cache.bytes_per_token),
        max_model_len_tokens=context,
        full_request_bytes=cache.request_bytes(context),
        bytes_by_tokens={length: cache.request_bytes(length) for length in shown_lengths(context)},
        block_tokens=page,
        stage_block_bytes=(cache.full_token_bytes * page,) if plain else (),
        num_blocks=pages,
        capacity_tokens=None if pools is None else pools.expected.tokens,
        max_concurrency_requests=None if pools is None else pools.expected.tokens / context,
        is_proportional=plain and page == 1,
    )


def _ceiling(
    architecture: Architecture,
    launch: SglangLaunch,
    stages: Sequence[RankWeights],
    gpu: Gpu | None,
    notes: list[str],
) -> DecodeCeiling | None:
    if gpu is None or gpu.bandwidth_bytes_per_second is None:
        return None
    if launch.pp_size > 1 or launch.enable_dp_attention:
        notes.append("No decode ceiling is given for a pipeline, nor with data-parallel attention.")
        return None
    element = 1.0 if launch.kv_cache_dtype.startswith(("fp8", "mxfp8")) else 2.0
    return DecodeCeiling(
        weights=decode_weights_of_rank(
            architecture, {part: size.expected for part, size in stages[0].parts.items()}
        ),
        kv_read=lambda tokens: kv_read_bytes(
            architecture, tokens, element_bytes=element, tensor_parallel=launch.tp_size
        ),
        bandwidth_bytes_per_second=gpu.bandwidth_bytes_per_second,
    )
