"""How the prediction of a vLLM server came about, step by step, with its numbers filled in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from brimline.estimate import Estimate
from brimline.footprint.activations import forward_elements, moe_workspace_bytes
from brimline.footprint.architecture import Experts, Layer
from brimline.footprint.constants import constant
from brimline.footprint.gpus import Gpu
from brimline.footprint.predict_vllm import (
    IN_BUDGET,
    OUTSIDE,
    UNPROFILED,
    VllmServer,
    VllmStage,
    pool_of,
)
from brimline.footprint.runtime import graphs_count_in_budget
from brimline.footprint.throughput import DecodeCeiling, PipelineCeiling, expected_tokens_per_step
from brimline.footprint.vllm_cache import CacheGroup, VllmCache
from brimline.footprint.vllm_weights import MLA_WORKSPACE, ROTARY, rotary_rows
from brimline.footprint.weights import LINEAR, PARTS, Weight, layer_tensors, vocabulary_rows_on_rank
from brimline.readings import RankFootprint, Step
from brimline.units import format_bytes, format_count

_BUDGET_ROWS = (
    ("weights", "weights"),
    (IN_BUDGET, "library memory"),
    ("activations", "activation peak"),
    ("lora", "slots for adapters"),
    ("draft_model", "drafter"),
    ("encoder_cache", "encoder outputs"),
)


def explain_vllm(
    server: VllmServer,
    stage: VllmStage,
    cache: VllmCache,
    *,
    blocks: Estimate | None,
    budget: Estimate | None,
    rank: RankFootprint,
    ceiling: DecodeCeiling | PipelineCeiling | None,
) -> tuple[Step, ...]:
    """Every component of one GPU, its KV layout, the budget, the fit and the decode ceiling."""
    return (
        *_weights(server, stage),
        *_activations(server, stage),
        *_other_parts(server, stage),
        *_layout(cache),
        *_budget(server, stage, cache, budget, blocks),
        *_fit(server, stage, cache, rank),
        *_ceiling(server, ceiling),
    )


def _size(count: float | Fraction) -> str:
    return format_bytes(float(count))


def _bounds(estimate: Estimate) -> str:
    """`1.89 GiB (0.75 to 4.86)`, or the one number of an exact one."""
    if estimate.is_exact:
        return _size(estimate.expected)
    return f"{_size(estimate.expected)} ({_size(estimate.low)} to {_size(estimate.high)})"


# --- Weights


def _weights(server: VllmServer, stage: VllmStage) -> Iterator[Step]:
    architecture, launch, weights = server.architecture, server.launch, stage.weights
    shapes = Counter(architecture.layers[index] for index in weights.layers)
    tp = launch.tensor_parallel_size
    for part in PARTS:
        size = weights.parts[part]
        if not size.high:
            continue
        formula, numbers = _part(server, part, shapes)
        if server.stored is not None:
            formula = "stored bytes of the part × the share of it on this GPU"
            kept = server.stored.parts.get(part, 0)
            share = size.expected / kept if kept else None
            numbers = f"{_size(kept)} × {share:.4g}" if share is not None else numbers
        yield Step(f"weights: {part}", formula, f"{numbers} = {_bounds(size)}", size.source)
    for name, size in weights.buffers.items():
        if size.high:
            formula, numbers = _buffer(server, name)
            yield Step(f"weights: {name}", formula, f"{numbers} = {_bounds(size)}", size.source)
    if stage.components["weights"].expected != weights.total.expected:
        moved = weights.total.expected - stage.components["weights"].expected
        yield Step(
            "weights: offloaded",
            "weights − what lies in host memory",
            f"{_size(weights.total.expected)} − {_size(moved)} = {_bounds(stage.components['weights'])}",
            stage.components["weights"].source,
        )
    if tp > 1:
        yield Step(
            "weights: sharding",
            "column- and row-parallel matrices ÷ TP; K/V heads repeated once TP exceeds them",
            f"TP {tp}"
            + (
                f", experts on {tp * launch.data_parallel_size} ranks"
                if launch.enable_expert_parallel
                else ""
            ),
            "vLLM 0.32, model_executor/layers/linear.py, distributed/utils.py",
        )


def _buffer(server: VllmServer, name: str) -> tuple[str, str]:
    """Formula and numbers of what lies beside the weights from the load on."""
    if name == ROTARY:
        tables = [
            f"{rotary_rows(table):,} × {table.width} × {table.element_bytes or server.element_bytes} B"
            for table in server.architecture.rotary or ()
        ]
        return "positions × rotated elements of a head × bytes, whole on each GPU", " + ".join(tables)
    if name == MLA_WORKSPACE:
        return "128 MiB for each backend that allocates when it is looked at", "read from its source"
    return (
        "what is left of each tensor's segment of memory, where it is at most 1 MiB",
        "all tensors of this GPU in the order of the model",
    )


def _part(server: VllmServer, part: str, shapes: Mapping[Layer, int]) -> tuple[str, str]:
    """Formula and numbers of a kind of module, unsplit."""
    architecture, element = server.architecture, server.element_bytes
    hidden, tp = architecture.hidden, server.launch.tensor_parallel_size
    by = f" ÷ TP {tp} where split" if tp > 1 else ""
    form = architecture.quantization
    stored = form is not None and part in LINEAR
    each = f" at {form.bits:g} bits ({form.method}) with scales" if form and stored else f" × {element} B"
    if part in ("embedding", "head"):
        rows = vocabulary_rows_on_rank(architecture.vocabulary, server.launch.sharding)
        return (
            "vocabulary padded to 64, split over TP × hidden × bytes",
            f"{rows:,} rows × {hidden:,} × {element} B",
        )
    if part == "encoder":
        count = sum(encoder.parameters for encoder in architecture.encoders)
        return "parameters × bytes", f"{count:,} × {element} B{by}"
    if part == "other":
        return "weights that belong to no layer × bytes", f"{architecture.extra_parameters:,} × {element} B"
    terms = []
    for layer, count in shapes.items():
        matrices = [weight for weight in layer_tensors(layer, hidden) if weight.part == part]
        if text := " + ".join(_matrix(weight) for weight in matrices if weight.elements):
            terms.append(f"{count} layers × ({text})")
    summed = f"({' + '.join(terms)})" if len(terms) > 1 else "".join(terms)
    return "layers × their matrices, inputs×outputs", f"{summed}{each}{by}"


def _matrix(weight: Weight) -> str:
    name = weight.name.rpartition(".")[2]
    shape = f"{weight.inputs:,}×{weight.outputs:,}" if weight.inputs > 1 else f"{weight.outputs:,}"
    return f"{name} {shape}" + (f" ×{weight.count}" if weight.count > 1 else "")


# --- Activations and what else is beside the cache


def _activations(server: VllmServer, stage: VllmStage) -> Iterator[Step]:
    peaks, architecture = stage.activations, server.architecture
    elements, differ = forward_elements(architecture, stage.batch), constant("forward_factor", engine="vllm")
    work = moe_workspace_bytes(architecture, stage.batch)
    yield Step(
        "activations: forward",
        "batched tokens × elements at once (hidden states and the widest part) × bytes × how far measured "
        "peaks lie from it" + (", and the experts' two work buffers" if work else ""),
        f"{server.batched:,} × {elements:,} × {server.element_bytes} B × {differ.expected:g} "
        f"({differ.low:g} to {differ.high:g})"
        + (f" + {_size(work)}" if work else "")
        + f" = {_bounds(peaks.forward)}",
        peaks.forward.source,
    )
    if peaks.sampler.high:
        sampled = min(server.sequences, server.batched)
        yield Step(
            "activations: sampler",
            "hidden states + K × sampled requests × vocabulary × 4 B"
            + (", and what experts' buffers stay" if work else ""),
            f"{server.batched:,} × {architecture.hidden:,} × {server.element_bytes} B + {_factor(server)} × "
            f"{sampled:,} × {architecture.vocabulary:,} × 4 B = {_bounds(peaks.sampler)}",
            peaks.sampler.source,
        )
    yield Step(
        "activations: peak",
        "the larger of the steps that follow each other",
        _bounds(stage.components["activations"]),
        stage.components["activations"].source,
    )
    if UNPROFILED in stage.components and server.draft is not None:
        yield Step(
            "activations: drafts",
            "logits of drafted tokens, which the profile run does not see",
            f"{server.sequences:,} requests × {server.draft.tokens} tokens × {architecture.vocabulary:,} = "
            f"{_bounds(stage.components[UNPROFILED])}",
            stage.components[UNPROFILED].source,
        )


def _factor(server: VllmServer) -> str:
    """K of the sampler, measured or from the table."""
    if server.calibration is not None and server.calibration.sampler_bytes_factor is not None:
        return f"{server.calibration.sampler_bytes_factor:.3g}"
    row = constant("sampler_bytes_factor", engine="vllm", version=server.version)
    return f"{row.expected:g} ({row.low:g} to {row.high:g})"


def _other_parts(server: VllmServer, stage: VllmStage) -> Iterator[Step]:
    parts, launch = stage.components, server.launch
    if "draft_model" in parts and server.draft is not None:
        yield Step(
            "draft_model",
            f"{server.draft.method}: {server.draft.formula}",
            _bounds(parts["draft_model"]),
            parts["draft_model"].source,
        )
    if "lora" in parts:
        yield Step(
            "lora",
            "slots × rank × Σ (inputs + outputs) × bytes",
            f"{launch.max_loras} × {launch.max_lora_rank} × "
            f"{parts['lora'].expected / (launch.max_loras * launch.max_lora_rank):,.0f} B = "
            f"{_bounds(parts['lora'])}",
            parts["lora"].source,
        )
    if "encoder_cache" in parts:
        yield Step(
            "encoder_cache",
            "max(batched tokens, tokens of one item) × hidden × bytes",
            f"{parts['encoder_cache'].expected // (server.architecture.hidden * server.element_bytes):,} × "
            f"{server.architecture.hidden:,} × {server.element_bytes} B = "
            f"{_bounds(parts['encoder_cache'])}",
            parts["encoder_cache"].source,
        )
    yield Step(
        "cuda_graphs",
        "from the table of constants",
        _bounds(parts["cuda_graphs"]),
        parts["cuda_graphs"].source,
    )
    yield Step(
        "runtime: in the budget",
        "CUDA libraries past torch's allocator, from the table of constants",
        _bounds(parts[IN_BUDGET]),
        parts[IN_BUDGET].source,
    )
    yield Step(
        "runtime: outside",
        "CUDA context, NCCL and handles, from the table of constants; NVML counts it, the budget does not",
        _bounds(parts[OUTSIDE]),
        parts[OUTSIDE].source,
    )


# --- The layout of the cache


def _layout(cache: VllmCache) -> Iterator[Step]:
    count = len(cache.groups)
    for number, group in enumerate(cache.groups, 1):
        yield Step(
            f"layout: group {number} of {count}",
            f"{group.kind}, block of {group.block_tokens:,} tokens",
            _group(group),
            group.pages[0].source,
        )
    yield Step(
        "layout: block",
        "pages of the largest group, one of each of its layers (of those on this stage)",
        f"{cache.block_bytes:,} B = {_size(cache.block_bytes)}; one token of context "
        f"{format_count(float(cache.bytes_per_token))} B",
        cache.source,
    )
    context = cache.settings.max_model_len
    by_group = cache.group_blocks(context)
    yield Step(
        "layout: one request",
        f"blocks of a request of {context:,} tokens, of all groups × bytes of a block",
        f"{' + '.join(f'{blocks:,}' for blocks in by_group)} = {sum(by_group):,} blocks × "
        f"{cache.block_bytes:,} B = {_size(cache.bytes_by_tokens(context))}",
        "vLLM 0.32, v1/kv_cache_interface.py max_memory_usage_bytes",
    )


def _group(group: CacheGroup) -> str:
    page = group.pages[0]
    layers = group.layers
    listed = ", ".join(map(str, layers[:4])) + (", …" if len(layers) > 4 else "")
    if page.state_bytes:
        content = f"state of {page.state_bytes:,} B"
    else:
        content = f"{page.block_tokens:,} tokens × {page.token_bytes:,} B = {page.content_bytes:,} B"
    padded = page.page_bytes - page.content_bytes
    if padded:
        content += f", padded by {padded:,} B ({padded / page.page_bytes:.2%}) to {page.page_bytes:,} B"
    if page.window is not None:
        content += f", window {page.window:,}"
    if page.chunk is not None:
        content += f", chunk {page.chunk:,}"
    if group.mixed:
        content += f"; pages of all its layers together {group.page_bytes:,} B"
    return f"{len(layers)} layers ({listed}), page {content}"


# --- Budget, pool and fit


def _budget(
    server: VllmServer, stage: VllmStage, cache: VllmCache, budget: Estimate | None, blocks: Estimate | None
) -> Iterator[Step]:
    size = cache.stage_block_bytes[stage.weights.pipeline_stage]
    if budget is not None and server.gpu is not None:
        pool = pool_of(stage, budget, server.version)
        parts = {**stage.components, **stage.profiled}
        yield Step(
            "budget",
            "ceil(CUDA-visible memory × --gpu-memory-utilization)",
            f"{_size(server.gpu.visible_bytes.expected)} × "
            f"{budget.expected / server.gpu.visible_bytes.expected:.4g} = {_bounds(budget)}",
            budget.source,
        )
        rows = [(name, title) for name, title in _BUDGET_ROWS if name in parts]
        if graphs_count_in_budget(server.version):
            rows.append(("cuda_graphs", "CUDA graphs"))
        less = " − ".join(f"{_size(parts[name].expected)} {title}" for name, title in rows)
        yield Step(
            "budget: pool",
            "budget − all else that counts in it",
            f"{_size(budget.expected)} − {less} = {_bounds(pool)}",
            pool.source,
        )
    if blocks is None or not size:
        return
    usable = max(0, blocks.expected - cache.null_blocks)
    yield Step(
        "budget: blocks",
        "floor(pool ÷ bytes of a block), the least of all stages; one of them stays empty (null block)",
        f"{blocks.expected:,} blocks ({blocks.low:,} to {blocks.high:,}) × {size:,} B = "
        f"{_size(blocks.expected * size)}; {usable:,} are used",
        blocks.source,
    )
    concurrency, capacity = cache.max_concurrency(blocks.expected), cache.capacity_tokens(blocks.expected)
    if concurrency is not None and capacity is not None:
        request = cache.request_blocks(cache.settings.max_model_len)
        yield Step(
            "budget: capacity",
            "blocks ÷ blocks of one full request; × --max-model-len since vLLM 0.21",
            f"{blocks.expected:,} ÷ {request:,} = {concurrency:.2f} requests, {capacity:,} tokens",
            "vLLM 0.32, v1/core/kv_cache_utils.py get_max_concurrency_for_kv_cache_config",
        )


def _fit(server: VllmServer, stage: VllmStage, cache: VllmCache, rank: RankFootprint) -> Iterator[Step]:
    gpu: Gpu | None = server.gpu
    if gpu is None:
        return
    besides = sum(part.high for name, part in rank.components.items() if name != "kv_cache")
    needed = cache.request_blocks(cache.settings.max_model_len) + cache.null_blocks
    request = needed * cache.stage_block_bytes[stage.weights.pipeline_stage]
    seen = gpu.visible_bytes.low
    said = "≤" if besides + request <= seen else ">"
    yield Step(
        "fit: on the GPU",
        "all but the KV cache, by the high bounds, + one full request ≤ CUDA-visible memory",
        f"{_size(besides)} + {_size(request)} = {_size(besides + request)} {said} {_size(seen)}",
        "the definition of `fits`",
    )
    pool = rank.components.get("kv_cache")
    if pool is not None:
        said = "≥" if pool.low >= request else "<"
        yield Step(
            "fit: start of vLLM",
            "pool, by the low bound ≥ one full request and the null block",
            f"{_size(pool.low)} {said} {_size(request)}",
            "vLLM 0.32, v1/core/kv_cache_utils.py get_kv_cache_configs",
        )


# --- The ceiling


def _ceiling(server: VllmServer, ceiling: DecodeCeiling | PipelineCeiling | None) -> Iterator[Step]:
    if ceiling is None:
        return
    context = 1024
    if isinstance(ceiling, PipelineCeiling):
        rates = [stage(1, context) for stage in ceiling.stages]
        yield Step(
            "ceiling: pipeline",
            "batch ÷ the time of all stages in turn for one request, or the slowest stage's ceiling",
            f"1 ÷ ({' + '.join(f'1/{rate:,.0f}' for rate in rates)}) s = {ceiling(1, context):,.0f} tokens/s "
            f"for one request; {ceiling(64, context):,.0f} tokens/s for 64, at {context:,} tokens",
            "throughput.py; bandwidth alone, no communication, no launches",
        )
        return
    bandwidth, read = ceiling.bandwidth_bytes_per_second, ceiling.weights.ceiling_bytes()
    numbers = f"{read / 1e9:,.2f} GB"
    if ceiling.weights.experts:
        routed = _routed(server)
        numbers = (
            f"{ceiling.weights.dense_bytes / 1e9:,.2f} GB dense + {routed[0].per_token} of {routed[0].count} "
            f"experts in {len(routed)} layers = {numbers}"
        )
    yield Step(
        "ceiling: weights",
        "weights read in a step: all but looked-up embeddings, encoders and experts not routed to",
        numbers,
        "throughput.py; bandwidth alone, no communication, no launches",
    )
    for batch in (1, 64):
        kv = ceiling.kv_read(context)
        yield Step(
            f"ceiling: batch {batch}",
            "batch × bandwidth ÷ (weights + batch × KV cache read for one request)",
            f"{batch} × {bandwidth / 1e12:.4g} TB/s ÷ ({read / 1e9:,.2f} GB + {batch} × {kv / 1e9:,.4f} GB) "
            f"at {context:,} tokens = {format_count(ceiling(batch, context))} tokens/s",
            server.gpu.source if server.gpu is not None else "",
        )
    if server.draft is not None:
        tokens = server.draft.tokens
        yield Step(
            "ceiling: drafts",
            "tokens gained in a step at acceptance a: (1 − a^(k+1)) ÷ (1 − a); each pass reads the drafter",
            f"k = {tokens}: {expected_tokens_per_step(tokens, 0.8):.2f} at a = 0.8; "
            f"{server.draft.passes} × {server.draft.step_bytes / 1e9:,.2f} GB for the drafter",
            "Leviathan et al. 2023, equation 1",
        )


def _routed(server: VllmServer) -> Sequence[Experts]:
    return [
        layer.feed_forward for layer in server.architecture.layers if isinstance(layer.feed_forward, Experts)
    ]
