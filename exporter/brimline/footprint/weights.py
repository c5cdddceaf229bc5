"""The weights of a model: how many there are, and the bytes that each GPU rank holds of them.

A layer becomes a list of matrices and vectors, each with the way it is split over tensor-parallel ranks. The
same list gives the number of parameters (unsplit) and the bytes of a rank (split, padded, quantized). Where
the folder holds safetensors or GGUF headers, their bytes replace the computed ones, part by part.

Rules of sharding: vLLM 0.32 (model_executor/layers/linear.py, vocab_parallel_embedding.py,
fused_moe/config.py, distributed/utils.py get_pp_indices, models/deepseek_v2.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

from brimline.errors import FootprintError, SettingError
from brimline.estimate import Estimate, between, exact, total
from brimline.footprint.architecture import (
    Architecture,
    Attention,
    Encoder,
    Experts,
    FeedForward,
    GatedDeltaNet,
    LatentAttention,
    Layer,
    LinearAttention,
    Mamba,
    Mixer,
    Quantization,
    ShortConvolution,
    kept_with_architecture,
)
from brimline.footprint.gguf import GGML_BITS, Gguf, GgufLayout, layout_of_gguf, read_gguf
from brimline.footprint.quantized_modules import Schemes, schemes
from brimline.footprint.safetensors import DTYPE_BITS, StoredTensor, has_safetensors, read_safetensors

Part = Literal["embedding", "head", "attention", "mlp", "experts", "norms", "encoder", "other"]
PARTS: tuple[Part, ...] = ("embedding", "head", "attention", "mlp", "experts", "norms", "encoder", "other")
# Those that belong to no layer.
ENDS: tuple[Part, ...] = ("embedding", "head", "encoder", "other")
LINEAR: tuple[Part, ...] = ("attention", "mlp", "experts")

DTYPE_BYTES = {"float64": 8, "float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}

# How far a computed size may be off what an engine holds: 57 runs of llm-d-planner's validation against vLLM
# average 0.9 % for 16-bit checkpoints (llm-d-planner, pull request 205); the others are judged.
_COMPUTED, _QUANTIZED, _MIXED_TYPES, _UNKNOWN = 0.01, 0.02, 0.05, 0.10


# --- What a layer is made of


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A matrix of inputs × outputs, or a vector (inputs 1), `count` times.

    split: over the outputs (column-parallel), the inputs (row-parallel), both kinds for experts, or not at
    all. heads: units that the split outputs come in; replicated: units are repeated, not split, once there
    are more ranks than units. linear: a quantized checkpoint stores it quantized. shared: no weight of its
    own, but a copy that some engines make.
    """

    part: Part
    name: str
    inputs: int
    outputs: int
    count: int = 1
    split: Literal["none", "outputs", "inputs", "experts_outputs", "experts_inputs"] = "none"
    heads: int | None = None
    replicated: bool = False
    linear: bool = True
    shared: bool = False

    @property
    def elements(self) -> int:
        return 0 if self.shared else self.inputs * self.outputs * self.count


def _vector(part: Part, name: str, elements: int, **options: object) -> Iterator[Weight]:
    if elements:
        weight = Weight(part=part, name=name, inputs=1, outputs=elements, linear=False)
        yield replace(weight, **options) if options else weight  # type: ignore[arg-type]


def layer_tensors(layer: Layer, hidden: int) -> Iterator[Weight]:
    """The weights of one layer."""
    for mixer in layer.mixers:
        if not (layer.reuses and isinstance(mixer, Attention)):
            yield from _mixer(mixer, hidden)
    match None if layer.reuses else layer.feed_forward:
        case FeedForward() as dense:
            yield from _feed_forward(dense, hidden)
        case Experts() as experts:
            yield from _experts(experts, hidden)
        case None:
            pass
    yield from _vector("norms", "norm", layer.norm_elements)
    yield from _vector("other", "other", layer.other_elements)


def _mixer(mixer: Mixer, hidden: int) -> Iterator[Weight]:
    match mixer:
        case Attention():
            return _attention(mixer, hidden)
        case LatentAttention():
            return _latent_attention(mixer, hidden)
        case Mamba(version=1):
            return _mamba1(mixer, hidden)
        case Mamba():
            return _mamba2(mixer, hidden)
        case GatedDeltaNet():
            return _delta_net(mixer, hidden)
        case LinearAttention():
            return _linear_attention(mixer, hidden)
        case ShortConvolution():
            return _short_convolution(mixer, hidden)


def _attention(mixer: Attention, hidden: int) -> Iterator[Weight]:
    prefix = "encoder_attn" if mixer.cross else "self_attn"
    queries = mixer.query_heads * mixer.key_dim * (2 if mixer.gated else 1)
    keys, values = mixer.kv_heads * mixer.key_dim, mixer.kv_heads * mixer.value_dim
    inputs = mixer.inputs or hidden

    def columns(name: str, outputs: int, heads: int, *, kv: bool, shared: bool = False) -> Iterator[Weight]:
        yield Weight(
            part="attention", name=f"{prefix}.{name}", inputs=inputs, outputs=outputs, split="outputs",
            heads=heads, replicated=kv, shared=shared,
        )  # fmt: skip
        if mixer.qkv_bias:
            yield from _vector(
                "attention", f"{prefix}.{name}", outputs, split="outputs", heads=heads, replicated=kv
            )

    yield from columns("q_proj", queries, mixer.query_heads, kv=False)
    if not mixer.shares_kv:
        yield from columns("k_proj", keys, mixer.kv_heads, kv=True)
        yield from columns("v_proj", values, mixer.kv_heads, kv=True, shared=mixer.value_is_key)
    output = mixer.query_heads * mixer.value_dim
    yield Weight(part="attention", name=f"{prefix}.o_proj", inputs=output, outputs=hidden, split="inputs")
    if mixer.output_bias:
        yield from _vector("attention", f"{prefix}.o_proj", hidden)
    yield from _vector("norms", f"{prefix}.norm", mixer.norm_elements)
    yield from _vector(
        "attention", f"{prefix}.sinks", mixer.sink_elements, split="outputs", heads=mixer.query_heads
    )


def _latent_attention(mixer: LatentAttention, hidden: int) -> Iterator[Weight]:
    """MLA. The projections down to the latents are replicated, those up from them split by heads.

    attention_bias puts biases on the projections down and out (transformers 5.19, modeling_deepseek_v3.py).
    """
    heads, key = mixer.query_heads, mixer.nope_dim + mixer.rope_dim
    rank, latent = mixer.q_lora_rank, mixer.kv_lora_rank + mixer.rope_dim

    def matrix(name: str, inputs: int, outputs: int) -> Weight:
        return Weight(part="attention", name=f"self_attn.{name}", inputs=inputs, outputs=outputs)

    if rank is None:
        yield replace(matrix("q_proj", hidden, heads * key), split="outputs", heads=heads)
    else:
        yield matrix("q_a_proj", hidden, rank)
        yield from _vector("norms", "self_attn.q_a_layernorm", rank)
        yield replace(matrix("q_b_proj", rank, heads * key), split="outputs", heads=heads)
    yield matrix("kv_a_proj_with_mqa", hidden, latent)
    yield from _vector("norms", "self_attn.kv_a_layernorm", mixer.kv_lora_rank)
    up = heads * (mixer.nope_dim + mixer.value_dim)
    yield replace(matrix("kv_b_proj", mixer.kv_lora_rank, up), split="outputs", heads=heads)
    yield replace(matrix("o_proj", heads * mixer.value_dim, hidden), split="inputs")
    if mixer.bias:
        yield from _vector("attention", "self_attn.biases", (rank or 0) + latent + hidden)
    if mixer.index_heads is not None and mixer.index_dim is not None:
        index = mixer.index_heads * mixer.index_dim
        yield matrix("indexer.wq_b", rank or hidden, index)
        yield matrix("indexer.wk", hidden, mixer.index_dim)
        yield replace(matrix("indexer.weights_proj", hidden, mixer.index_heads), linear=False)
        yield from _vector("norms", "self_attn.indexer.k_norm", 2 * mixer.index_dim)


def _mamba1(mixer: Mamba, hidden: int) -> Iterator[Weight]:
    inner, state, rank = mixer.inner, mixer.state, mixer.dt_rank

    def vector(name: str, elements: int) -> Iterator[Weight]:
        return _vector("attention", f"mamba.{name}", elements, split="outputs")

    yield Weight(part="attention", name="mamba.in_proj", inputs=hidden, outputs=2 * inner, split="outputs")
    yield from vector("conv1d", inner * (mixer.conv + (1 if mixer.conv_bias else 0)))
    yield Weight(
        part="attention", name="mamba.x_proj", inputs=inner, outputs=rank + 2 * state, split="inputs"
    )
    yield Weight(part="attention", name="mamba.dt_proj", inputs=rank, outputs=inner, split="outputs")
    yield from vector("dt_proj", inner)
    yield from vector("A_log", inner * state)
    yield from vector("D", inner)
    yield Weight(part="attention", name="mamba.out_proj", inputs=inner, outputs=hidden, split="inputs")
    if mixer.projection_bias:
        yield from vector("in_proj", 2 * inner)
        yield from _vector("attention", "mamba.out_proj", hidden)
    yield from _vector("norms", "mamba.norm", mixer.norm_elements)


def _mamba2(mixer: Mamba, hidden: int) -> Iterator[Weight]:
    """Groups of B and C are repeated once there are more ranks than groups (mamba_mixer2.py)."""
    inner, groups = mixer.inner, 2 * mixer.groups * mixer.state
    taps = mixer.conv + (1 if mixer.conv_bias else 0)

    def columns(name: str, outputs: int, heads: int, *, replicated: bool = False) -> Weight:
        return Weight(
            part="attention", name=f"mamba.{name}", inputs=hidden, outputs=outputs, split="outputs",
            heads=heads, replicated=replicated,
        )  # fmt: skip

    yield columns("in_proj", 2 * inner + mixer.heads, mixer.heads)
    yield columns("in_proj", groups, mixer.groups, replicated=True)
    yield replace(columns("conv1d", inner, mixer.heads), inputs=taps, linear=False)
    yield replace(columns("conv1d", groups, mixer.groups, replicated=True), inputs=taps, linear=False)
    yield replace(
        columns("A_log", 3 * mixer.heads, mixer.heads), inputs=1, linear=False
    )  # with D and dt_bias
    yield Weight(part="attention", name="mamba.out_proj", inputs=inner, outputs=hidden, split="inputs")
    if mixer.projection_bias:
        yield replace(columns("in_proj", 2 * inner + mixer.heads, mixer.heads), inputs=1, linear=False)
        yield replace(columns("in_proj", groups, mixer.groups, replicated=True), inputs=1, linear=False)
        yield from _vector("attention", "mamba.out_proj", hidden)
    yield from _vector("norms", "mamba.norm", mixer.norm_elements)


def _delta_net(mixer: GatedDeltaNet, hidden: int) -> Iterator[Weight]:
    keys, values = mixer.key_heads * mixer.key_dim, mixer.value_heads * mixer.value_dim

    def columns(name: str, outputs: int, heads: int) -> Weight:
        return Weight(
            part="attention", name=f"linear_attn.{name}", inputs=hidden, outputs=outputs, split="outputs",
            heads=heads,
        )  # fmt: skip

    yield columns("in_proj_qkvz", 2 * keys, mixer.key_heads)
    yield columns("in_proj_qkvz", values, mixer.value_heads)
    yield replace(columns("conv1d", 2 * keys, mixer.key_heads), inputs=mixer.conv, linear=False)
    yield replace(columns("conv1d", values, mixer.value_heads), inputs=mixer.conv, linear=False)
    if mixer.gate_rank is None:
        yield columns("in_proj_qkvz", values, mixer.value_heads)  # z, the output gate
        yield columns("in_proj_ba", 2 * mixer.value_heads, mixer.value_heads)
        own = 2 * mixer.value_heads  # A_log and dt_bias of each head
    else:
        for name in ("f", "g"):
            yield replace(columns(f"{name}_a_proj", mixer.gate_rank, 1), split="none")
            yield replace(columns(f"{name}_b_proj", values, mixer.value_heads), inputs=mixer.gate_rank)
        yield columns("b_proj", mixer.value_heads, mixer.value_heads)
        own = values + mixer.value_heads
    yield replace(columns("A_log", own, mixer.value_heads), inputs=1, linear=False)
    yield from _vector("norms", "linear_attn.norm", mixer.value_dim)
    yield Weight(part="attention", name="linear_attn.out_proj", inputs=values, outputs=hidden, split="inputs")


def _linear_attention(mixer: LinearAttention, hidden: int) -> Iterator[Weight]:
    width = mixer.heads * mixer.head_dim
    for name, outputs in (("qkv_proj", 3 * width), ("output_gate", width)):
        yield Weight(
            part="attention", name=f"self_attn.{name}", inputs=hidden, outputs=outputs, split="outputs",
            heads=mixer.heads,
        )  # fmt: skip
    yield Weight(part="attention", name="self_attn.out_proj", inputs=width, outputs=hidden, split="inputs")
    yield from _vector("norms", "self_attn.norm", width)


def _short_convolution(mixer: ShortConvolution, hidden: int) -> Iterator[Weight]:
    """B, C and x in one projection (transformers 5.19, modeling_lfm2.py)."""
    width = mixer.width
    yield Weight(part="attention", name="conv.in_proj", inputs=hidden, outputs=3 * width, split="outputs")
    yield from _vector("attention", "conv.conv", width * mixer.conv, split="outputs")
    yield Weight(part="attention", name="conv.out_proj", inputs=width, outputs=hidden, split="inputs")
    if mixer.bias:
        yield from _vector("attention", "conv.in_proj", 3 * width, split="outputs")
        yield from _vector("attention", "conv.conv", width, split="outputs")
        yield from _vector("attention", "conv.out_proj", hidden)


def _feed_forward(dense: FeedForward, hidden: int, name: str = "mlp") -> Iterator[Weight]:
    width = dense.intermediate
    for projection in ("gate_proj", "up_proj") if dense.gated else ("up_proj",):
        full = f"{name}.{projection}"
        yield Weight(part="mlp", name=full, inputs=hidden, outputs=width, split="outputs")
        if dense.bias:
            yield from _vector("mlp", full, width, split="outputs")
    yield Weight(part="mlp", name=f"{name}.down_proj", inputs=width, outputs=hidden, split="inputs")
    if dense.bias:
        yield from _vector("mlp", f"{name}.down_proj", hidden)


def _experts(experts: Experts, hidden: int) -> Iterator[Weight]:
    """Routers are replicated and stay unquantized; shared experts are split like a dense part."""
    width, count = experts.intermediate, experts.count
    router = Weight(part="experts", name="mlp.gate", inputs=hidden, outputs=count, linear=False)
    yield router
    if experts.router_bias:
        yield replace(router, inputs=1)
    up = Weight(
        part="experts", name="mlp.experts.gate_up_proj" if experts.gated else "mlp.experts.up_proj",
        inputs=hidden, outputs=width * (2 if experts.gated else 1), count=count, split="experts_outputs",
    )  # fmt: skip
    down = Weight(
        part="experts", name="mlp.experts.down_proj", inputs=width, outputs=hidden, count=count,
        split="experts_inputs",
    )  # fmt: skip
    yield up
    yield down
    if experts.bias:
        yield replace(up, inputs=1, linear=False)
        yield replace(down, inputs=1, linear=False)
    if experts.shared_intermediate:
        shared = FeedForward(intermediate=experts.shared_intermediate, gated=experts.gated)
        yield from _feed_forward(shared, hidden, "mlp.shared_experts")
        if experts.shared_gate:
            yield from _vector("mlp", "mlp.shared_expert_gate", hidden)


@kept_with_architecture
def parameters(architecture: Architecture) -> int:
    """The number of weights of the model as its checkpoint stores them, encoders included, drafts not."""
    layers = sum(
        tensor.elements
        for layer in architecture.layers
        for tensor in layer_tensors(layer, architecture.hidden)
    )
    table = architecture.vocabulary * architecture.hidden
    head = (0 if architecture.tied else table) + (architecture.vocabulary if architecture.head_bias else 0)
    encoders = sum(encoder.parameters for encoder in architecture.encoders)
    extra = architecture.extra_parameters + architecture.layer_embedding_parameters
    return table + head + layers + extra + encoders


# --- How a matrix is stored


def matrix_bytes(inputs: int, outputs: int, quantization: Quantization) -> Fraction:
    """Bytes of one quantized inputs × outputs matrix with its scales and zero points.

    Sources, vLLM 0.32 model_executor/layers/quantization: auto_awq.py (qweight, qzeros and 16-bit scales
    for each group of inputs), auto_gptq.py (the same and g_idx, int32 for each input), fp8.py (32-bit scales:
    one, or one for each 128×128 block), modelopt.py (NVFP4: an fp8 scale for 16 weights, two fp32 for the
    matrix), mxfp4.py (an 8-bit exponent for 32 weights). bitsandbytes: 32-bit absmax for 64 weights, or 8-bit
    with one fp32 for 256 of them where doubly quantized (QLoRA, arXiv 2305.14314). GGUF: its table of types.
    """
    elements = inputs * outputs
    bits = Fraction(quantization.bits)
    if quantization.method == "gguf":
        return elements * bits / 8
    grouped = quantization.group is not None
    scale = Fraction(quantization.scale_bits or (16 if grouped else 32), 8)
    if quantization.block is not None:
        rows, columns = quantization.block
        scales = Fraction(math.ceil(outputs / rows) * math.ceil(inputs / columns))
    elif quantization.method == "bitsandbytes" and grouped:
        blocks = math.ceil(elements / (quantization.group or 1))
        if quantization.double_quant:
            return elements * bits / 8 + blocks + Fraction(4 * math.ceil(blocks / 256))
        scales = Fraction(blocks)
    elif quantization.group is not None:
        scales = Fraction(math.ceil(inputs / quantization.group) * outputs)
    else:
        scales = Fraction(outputs if quantization.per_channel else 1)
    size = elements * bits / 8 + scales * scale
    if quantization.zeros:
        size += scales * bits / 8
    if quantization.method == "gptq":
        size += 4 * inputs
    if quantization.method in ("nvfp4", "compressed-tensors") and quantization.scale_bits == 8:
        size += 8  # fp32 scales of the matrix and of its input
    return size


# --- Sharding


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """How a model is spread over GPUs, in the words of vLLM's flags.

    expert: --enable-expert-parallel. layer_partition: layers of each pipeline stage
    (VLLM_PP_LAYER_PARTITION). redundant_experts: copies that load balancing adds (EPLB). encoder: whether
    encoders are split over the tensor ranks or each rank holds all of them (--mm-encoder-tp-mode).
    Raises FootprintError where a size is below 1 or the partition has another number of stages.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: bool = False
    redundant_experts: int = 0
    encoder: Literal["weights", "data"] = "weights"
    layer_partition: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("tensor", "pipeline", "data"):
            if not 1 <= getattr(self, name) <= 1 << 16:
                raise FootprintError(f"{name}_parallel_size is {getattr(self, name)}; sizes start at 1")
        if self.redundant_experts < 0:
            raise FootprintError(f"redundant_experts is {self.redundant_experts}; it cannot be below 0")
        if self.layer_partition is not None and len(self.layer_partition) != self.pipeline:
            raise FootprintError(
                f"layer_partition names {len(self.layer_partition)} stages; "
                f"pipeline_parallel_size is {self.pipeline}"
            )


def pipeline_layers(layers: int, sharding: Sharding) -> tuple[int, ...]:
    """Layers of each pipeline stage.

    layers // stages each; of the remainder one each goes to the last but one, the one before it and so on
    (vLLM 0.32, distributed/utils.py get_pp_indices). Raises FootprintError where a partition does not add up,
    or there are more stages than layers.
    """
    if sharding.layer_partition is not None:
        if sum(sharding.layer_partition) != layers or min(sharding.layer_partition) < 0:
            raise FootprintError(
                f"layer_partition has {sum(sharding.layer_partition)} layers; the model has {layers}"
            )
        return sharding.layer_partition
    if sharding.pipeline > layers:
        raise FootprintError(f"pipeline_parallel_size is {sharding.pipeline}; the model has {layers} layers")
    stages = [layers // sharding.pipeline] * sharding.pipeline
    for place in range(2, layers % sharding.pipeline + 2):
        stages[-place] += 1
    return tuple(stages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mxfp4Layout:
    """How a kernel stores experts of MXFP4: one 4-bit value each, an 8-bit exponent for 32 of them.

    intermediate, hidden: multiples of an expert's widths that the layer is built with. inputs, outputs: what
    values are padded to when the kernel orders them anew, and scale_groups, scale_outputs: their scales.
    keeps_scales: the scales as loaded stay beside the ordered ones. bias_bytes: of one element of a bias;
    None for the model's own type.
    """

    intermediate: int = 1
    hidden: int = 1
    inputs: int = 1
    outputs: int = 1
    scale_groups: int = 1
    scale_outputs: int = 1
    keeps_scales: bool = False
    bias_bytes: int | None = None

    def values_bytes(self, inputs: int, outputs: int) -> int:
        return -(-_round_up(inputs, self.inputs) * _round_up(outputs, self.outputs) // 2)

    def scales_bytes(self, inputs: int, outputs: int) -> tuple[int, ...]:
        """Of the ordered scales, and of the loaded ones where they stay."""
        groups = -(-inputs // _MXFP4_GROUP)
        ordered = _round_up(groups, self.scale_groups) * _round_up(outputs, self.scale_outputs)
        return (ordered, groups * outputs) if self.keeps_scales else (ordered,)


_MXFP4_GROUP = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRules:
    """What an engine makes of the stored weights.

    vocabulary_multiple: rows that embedding and head are padded to. copies_shared_values: keys that are
    values too are stored twice (vLLM, models/gemma4.py). absorbs_latent: a quantized up-projection of latents
    is kept once more in 16 bits (vLLM, layers/attention/mla_attention.py process_weights_after_loading).
    mxfp4: how experts of MXFP4 are stored, for the least, the expected and the most bytes; it depends on the
    kernel that is chosen. tied_head_copy: a tied head is a copy (llama.cpp). embedding_on_host: the input
    embedding stays in host memory (llama.cpp, llama-model.cpp: the input layer is never offloaded).
    casts_float32: a float32 checkpoint runs in 16 bits.
    """

    vocabulary_multiple: int = 64
    copies_shared_values: bool = True
    absorbs_latent: bool = True
    mxfp4: tuple[Mxfp4Layout, Mxfp4Layout, Mxfp4Layout] = (
        Mxfp4Layout(intermediate=32, hidden=32),
        Mxfp4Layout(intermediate=64, hidden=256),
        Mxfp4Layout(intermediate=128, hidden=256),
    )
    tied_head_copy: bool = False
    embedding_on_host: bool = False
    casts_float32: bool = True


VLLM_RULES = WeightRules()
LLAMACPP_RULES = WeightRules(
    vocabulary_multiple=1,
    copies_shared_values=False,
    absorbs_latent=False,
    mxfp4=(Mxfp4Layout(), Mxfp4Layout(), Mxfp4Layout()),
    tied_head_copy=True,
    embedding_on_host=True,
    casts_float32=False,
)
_AS_STORED = replace(LLAMACPP_RULES, tied_head_copy=False, embedding_on_host=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankWeights:
    """Weights of one GPU rank (of the first data-parallel replica, whose ranks are the fullest).

    parts: by kind of module, every one of PARTS. host: what stays in host memory. buffers: what an engine
    holds beside them from the load on, by name; no weights, and in no checkpoint.
    """

    pipeline_stage: int
    tensor_rank: int
    layers: range
    parts: Mapping[Part, Estimate]
    host: Estimate
    buffers: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def total(self) -> Estimate:
        sources = list(dict.fromkeys(part.source for part in self.parts.values()))
        if self.buffers:
            sources.append(f"with {', '.join(self.buffers)}")
        return total([*self.parts.values(), *self.buffers.values()], "; ".join(sources))

    @property
    def beside_layers(self) -> Estimate:
        """What belongs to no layer: tables, encoders and buffers."""
        held = [*(self.parts[part] for part in ENDS), *self.buffers.values()]
        return total(held, "embedding, head, encoders and buffers")


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


@dataclass(frozen=True, slots=True)
class _Split:
    """One rank's place: the sizes it divides by, and which of the layouts is asked for."""

    sharding: Sharding
    rank: int
    mxfp4: Mxfp4Layout
    rules: WeightRules

    def local_experts(self, count: int) -> int:
        """E // ranks, and one more on the first E % ranks (vLLM 0.32, determine_expert_map)."""
        if not self.sharding.expert:
            return count
        count += self.sharding.redundant_experts
        ranks = self.sharding.tensor * self.sharding.data
        return count // ranks + (1 if self.rank < count % ranks else 0)

    def of(self, weight: Weight, *, rounded: bool) -> tuple[int, int, int]:
        """Inputs, outputs and count of a weight here. Raises FootprintError where it does not divide."""
        inputs, outputs, count, ranks = weight.inputs, weight.outputs, weight.count, self.sharding.tensor
        if weight.split == "outputs":
            outputs = self._units(weight, outputs, ranks)
        elif weight.split == "inputs":
            inputs = self._whole(weight.name, inputs, ranks)
        elif weight.split.startswith("experts"):
            count = self.local_experts(count)
            flat = 1 if self.sharding.expert else ranks * self.sharding.data
            narrow, wide = (self.mxfp4.intermediate, self.mxfp4.hidden) if rounded else (1, 1)
            gates = 2 if weight.name.endswith("gate_up_proj") else 1
            if weight.split == "experts_outputs":
                outputs = gates * self._expert_width(weight.name, outputs // gates, flat, narrow)
                inputs = _round_up(inputs, wide) if inputs > 1 else inputs
            else:
                # A bias of the way down has no inputs to split.
                inputs = self._expert_width(weight.name, inputs, flat, narrow) if inputs > 1 else inputs
                outputs = _round_up(outputs, wide)
        return inputs, outputs, count

    def _units(self, weight: Weight, outputs: int, ranks: int) -> int:
        if weight.heads is None:
            return self._whole(weight.name, outputs, ranks)
        if weight.heads % ranks == 0:
            return outputs // ranks
        if weight.replicated and ranks % weight.heads == 0:
            return outputs // weight.heads
        raise FootprintError(f"{weight.name}: {weight.heads} heads cannot be divided among {ranks} GPUs")

    def _expert_width(self, name: str, width: int, ranks: int, multiple: int) -> int:
        whole = self._whole(name, width, ranks)
        return _round_up(whole, multiple)

    def _whole(self, name: str, width: int, ranks: int) -> int:
        if width % ranks:
            raise FootprintError(f"{name}: a width of {width} cannot be divided among {ranks} GPUs")
        return width // ranks


def _scheme(name: str, weight: Weight, stored: Schemes | None) -> Quantization | None:
    """How a weight is quantized; None where it stays in the model's own type."""
    return None if stored is None else stored.of(name, weight.part, linear=weight.linear)


def _dtype_bytes(architecture: Architecture, dtype: str, rules: WeightRules) -> tuple[int, str]:
    """Bytes of an unquantized weight, and where that comes from."""
    name, source = dtype, f"--dtype {dtype}"
    if dtype == "auto":
        name, source = architecture.dtype or "bfloat16", "its dtype"
        if architecture.dtype is None:
            source = "bfloat16, which is assumed"
        elif architecture.dtype in ("float32", "float") and rules.casts_float32:
            name, source = "bfloat16", "16 bits, which float32 is cast to"
    if name not in DTYPE_BYTES:
        raise FootprintError(f"the element size of weights of dtype {name[:40]!r} is not known here")
    return DTYPE_BYTES[name], source


def weight_bytes(
    architecture: Architecture,
    *,
    sharding: Sharding | None = None,
    dtype: str = "auto",
    quantization: Quantization | None = None,
    rules: WeightRules = VLLM_RULES,
    stored: StoredWeights | None = None,
) -> tuple[RankWeights, ...]:
    """Bytes of weights of every rank: pipeline stages in order, within each its tensor ranks.

    quantization: in place of the checkpoint's own. stored: what headers say; then each part is the stored
    bytes times the share of it that the rank computes to hold. Raises FootprintError where sizes do not
    divide.
    """
    sharding = sharding or Sharding()
    quantization = quantization or architecture.quantization
    element_bytes, dtype_source = _dtype_bytes(architecture, dtype, rules)
    stages = pipeline_layers(len(architecture.layers), sharding)
    whole = (
        _parts(
            architecture, range(len(architecture.layers)), Sharding(), 0, 1, quantization, element_bytes,
            _AS_STORED, 1,
        )
        if stored is not None
        else {}
    )  # fmt: skip
    # Only the widths of MXFP4 experts and the places of encoders are not certain.
    is_certain = not architecture.encoders and (quantization is None or quantization.method != "mxfp4")
    roundings = (1, 1, 1) if is_certain else (0, 1, 2)
    ranks: list[RankWeights] = []
    first = 0
    for stage, count in enumerate(stages):
        layers = range(first, first + count)
        first += count
        for rank in range(sharding.tensor):
            if rank and not _ranks_differ(architecture, sharding):
                ranks.append(replace(ranks[-1], tensor_rank=rank))
                continue
            computed = [
                _parts(
                    architecture, layers, sharding, rank, len(stages), quantization, element_bytes, rules,
                    which, stage=stage,
                )
                for which in roundings
            ]  # fmt: skip
            parts = {
                part: _estimate(
                    part, [sizes[part] for sizes in computed], whole, stored, architecture, quantization,
                    dtype_source, Fraction(count, len(architecture.layers)),
                )
                for part in PARTS
            }  # fmt: skip
            host = exact(0, "nothing stays in host memory")
            if rules.embedding_on_host:
                host = replace(parts["embedding"], source="the input embedding stays in host memory")
                parts["embedding"] = exact(0, "the input embedding stays in host memory")
            ranks.append(
                RankWeights(pipeline_stage=stage, tensor_rank=rank, layers=layers, parts=parts, host=host)
            )
    return tuple(ranks)


def _ranks_differ(architecture: Architecture, sharding: Sharding) -> bool:
    """Tensor ranks hold the same, but for experts that do not divide evenly."""
    if not sharding.expert:
        return False
    counts = {
        layer.feed_forward.count for layer in architecture.layers if isinstance(layer.feed_forward, Experts)
    }
    return any((count + sharding.redundant_experts) % (sharding.tensor * sharding.data) for count in counts)


def _layer_schemes(
    index: int, layer: Layer, hidden: int, stored: Schemes | None
) -> tuple[Quantization | None, ...]:
    """How each weight of a layer is stored, where that may differ between layers of one kind."""
    if stored is None or not stored.names_layers:
        return ()
    return tuple(
        _scheme(f"model.layers.{index}.{weight.name}", weight, stored)
        for weight in layer_tensors(layer, hidden)
    )


def _layer_parts(
    index: int,
    weights: Iterable[Weight],
    split: _Split,
    stored: Schemes | None,
    element_bytes: int,
    rules: WeightRules,
) -> dict[Part, Fraction]:
    """Bytes of one layer on a rank, by part."""
    sizes: dict[Part, Fraction] = {}
    for weight in weights:
        if weight.shared and not rules.copies_shared_values:
            continue
        name = f"model.layers.{index}.{weight.name}"
        size = sum(_tensors(name, weight, split, stored, element_bytes), Fraction(0))
        scheme = _scheme(name, weight, stored)
        if scheme is not None and rules.absorbs_latent and weight.name == "self_attn.kv_b_proj":
            inputs, outputs, count = split.of(weight, rounded=False)
            size += inputs * outputs * count * element_bytes
        sizes[weight.part] = sizes.get(weight.part, Fraction(0)) + size
    return sizes


@kept_with_architecture
def _parts(
    architecture: Architecture,
    layers: range,
    sharding: Sharding,
    rank: int,
    stages: int,
    quantization: Quantization | None,
    element_bytes: int,
    rules: WeightRules,
    which: int,
    *,
    stage: int = 0,
) -> Mapping[Part, Fraction]:
    """Bytes of one rank by part. which: the rounding for the least (0), the expected or the most (2)."""
    split = _Split(sharding, rank, rules.mxfp4[which], rules)
    sizes: dict[Part, Fraction] = dict.fromkeys(PARTS, Fraction(0))
    experts = any(isinstance(layer.feed_forward, Experts) for layer in architecture.layers)
    stored = schemes(quantization, experts) if quantization is not None else None
    known: dict[object, Mapping[Part, Fraction]] = {}
    for index in layers:
        layer = architecture.layers[index]
        alike = (layer, _layer_schemes(index, layer, architecture.hidden, stored))
        own = known.get(alike)
        if own is None:
            weights = layer_tensors(layer, architecture.hidden)
            own = known[alike] = _layer_parts(index, weights, split, stored, element_bytes, rules)
        for part, size in own.items():
            sizes[part] += size
    rows = vocabulary_rows_on_rank(architecture.vocabulary, sharding, rules)

    def table(part: Part) -> Fraction:
        name = "model.embed_tokens" if part == "embedding" else "lm_head"
        weight = Weight(part=part, name=name, inputs=architecture.hidden, outputs=rows)
        scheme = _scheme(name, weight, stored)
        return _stored_on_rank((architecture.hidden, rows, 1), scheme, element_bytes)

    last = stage == stages - 1
    if stage == 0:
        sizes["embedding"] += table("embedding")
        sizes["embedding"] += (
            Fraction(architecture.layer_embedding_parameters, sharding.tensor) * element_bytes
        )
    if last and (not architecture.tied or rules.tied_head_copy):
        sizes["head"] += table("head")
    elif last and stage != 0:
        sizes["head"] += table("embedding")  # a tied head on another stage is a copy
    if last and architecture.head_bias:
        sizes["head"] += rows * element_bytes
    if last:
        sizes["other"] += architecture.extra_parameters * element_bytes
    for encoder in architecture.encoders:
        sizes["encoder"] += _encoder_bytes(encoder, sharding, stage, which, element_bytes)
    return sizes


def _encoder_bytes(
    encoder: Encoder, sharding: Sharding, stage: int, which: int, element_bytes: int
) -> Fraction:
    """Encoders belong to the first stage; that the others hold them too is taken for the most."""
    if stage and which < 2:
        return Fraction(0)
    ranks = sharding.tensor if sharding.encoder == "weights" and which < 2 else 1
    return Fraction(encoder.parameters * element_bytes, ranks)


def bytes_on_rank(
    weights: Iterable[tuple[str, Weight]],
    *,
    sharding: Sharding,
    element_bytes: int,
    quantization: Quantization | None = None,
    rules: WeightRules = VLLM_RULES,
) -> Fraction:
    """Bytes of named weights on the fullest rank of a tensor-parallel group, scales included.

    For parts that belong to no layer of the model, such as a drafter's. Raises FootprintError where sizes do
    not divide.
    """
    split = _Split(sharding, 0, rules.mxfp4[1], rules)
    listed = list(weights)
    experts = any(weight.part == "experts" for _, weight in listed)
    stored = schemes(quantization, experts) if quantization is not None else None
    return sum(
        (size for name, weight in listed for size in _tensors(name, weight, split, stored, element_bytes)),
        Fraction(0),
    )


def tensor_sizes(
    architecture: Architecture,
    layers: range,
    *,
    sharding: Sharding,
    element_bytes: int,
    rules: WeightRules = VLLM_RULES,
) -> tuple[int, ...]:
    """Bytes of each tensor that a rank of vLLM allocates for some layers and for its tables, in order.

    q, k and v are one, and gate and up; so are MLA's projections down to the latents (models/deepseek_v2.py).
    Values and scales are tensors of their own. Encoders are left out. Raises FootprintError where sizes do
    not divide.
    """
    split = _Split(sharding, 0, rules.mxfp4[1], rules)
    experts = any(isinstance(layer.feed_forward, Experts) for layer in architecture.layers)
    quantization = architecture.quantization
    stored = schemes(quantization, experts) if quantization is not None else None
    table = vocabulary_rows_on_rank(architecture.vocabulary, sharding, rules) * architecture.hidden
    sizes = [table * element_bytes] if layers.start == 0 else []
    known: dict[object, list[int]] = {}
    for index in layers:
        layer = architecture.layers[index]
        alike = (layer, _layer_schemes(index, layer, architecture.hidden, stored))
        own = known.get(alike)
        if own is None:
            joined: dict[str, list[Fraction]] = {}
            for weight in layer_tensors(layer, architecture.hidden):
                name = f"model.layers.{index}.{weight.name}"
                place = joined.setdefault(f"{_joined(weight.name)} {weight.inputs > 1}", [])
                for number, size in enumerate(_tensors(name, weight, split, stored, element_bytes)):
                    place[number : number + 1] = [size + sum(place[number : number + 1])]
            own = known[alike] = [math.ceil(size) for place in joined.values() for size in place]
        sizes += own
    if layers.stop == len(architecture.layers) and not (architecture.tied and layers.start == 0):
        sizes.append(table * element_bytes)
    return tuple(sizes)


def _joined(name: str) -> str:
    """The name of the tensor that a projection is stored in, together with others."""
    name = re.sub(r"(?:gate|up)_proj$", "gate_up_proj", re.sub(r"[qkv]_proj$", "qkv_proj", name))
    return re.sub(r"(?:q_a_proj|kv_a_proj_with_mqa)$", "fused_qkv_a_proj", name)


@kept_with_architecture
def largest_matrix_bytes(architecture: Architecture, sharding: Sharding, element_bytes: int) -> int:
    """Bytes of the largest parameter that one rank allocates: q, k and v are one, and gate and up are."""
    largest = Fraction(0)
    for layer in dict.fromkeys(architecture.layers):
        joined: dict[str, list[tuple[str, Weight]]] = {}
        for weight in layer_tensors(layer, architecture.hidden):
            joined.setdefault(_joined(weight.name), []).append((weight.name, weight))
        for weights in joined.values():
            size = bytes_on_rank(
                weights,
                sharding=sharding,
                element_bytes=element_bytes,
                quantization=architecture.quantization,
            )
            largest = max(largest, size)
    return math.ceil(largest)


@kept_with_architecture
def layer_shares(architecture: Architecture, layers: range) -> tuple[float, ...]:
    """The part of some layers' weights that each of them holds."""
    sizes = [
        sum(weight.elements for weight in layer_tensors(architecture.layers[index], architecture.hidden))
        for index in layers
    ]
    whole = sum(sizes)
    return tuple(size / whole if whole else 0.0 for size in sizes)


def vocabulary_rows_on_rank(vocabulary: int, sharding: Sharding, rules: WeightRules = VLLM_RULES) -> int:
    """Rows of an embedding or head on one rank, padding included. Raises FootprintError."""
    padded = _round_up(vocabulary, rules.vocabulary_multiple)
    rows, left = divmod(padded, sharding.tensor)
    if left:
        raise FootprintError(f"a vocabulary of {padded} rows cannot be divided among {sharding.tensor} GPUs")
    return rows


def _tensors(
    name: str, weight: Weight, split: _Split, stored: Schemes | None, element_bytes: int
) -> tuple[Fraction, ...]:
    """Bytes of the tensors that a weight becomes on a rank: its values, and its scales where it has any."""
    scheme = matrix = _scheme(name, weight, stored)
    if stored is not None and weight.split.startswith("experts"):
        matrix = stored.of(name, weight.part, linear=True)  # its biases are laid out with it
    if matrix is not None and matrix.method == "mxfp4":
        inputs, outputs, count = split.of(weight, rounded=True)
        if scheme is None:  # a bias
            return (Fraction(inputs * outputs * count * (split.mxfp4.bias_bytes or element_bytes)),)
        scales = split.mxfp4.scales_bytes(inputs, outputs)
        return tuple(Fraction(count * size) for size in (split.mxfp4.values_bytes(inputs, outputs), *scales))
    shape = split.of(weight, rounded=False)
    whole = _stored_on_rank(shape, scheme, element_bytes)
    if scheme is None:
        return (whole,)
    values = math.prod(shape) * Fraction(scheme.bits) / 8
    return (values, whole - values)


def _stored_on_rank(shape: tuple[int, int, int], scheme: Quantization | None, element_bytes: int) -> Fraction:
    inputs, outputs, count = shape
    if scheme is None:
        return Fraction(inputs * outputs * count * element_bytes)
    return count * matrix_bytes(inputs, outputs, scheme)


def _estimate(
    part: Part,
    sizes: list[Fraction],
    whole: Mapping[Part, Fraction],
    stored: StoredWeights | None,
    architecture: Architecture,
    quantization: Quantization | None,
    dtype_source: str,
    layer_share: Fraction,
) -> Estimate:
    low, expected, high = min(sizes), sizes[1], max(sizes)
    if stored is not None:
        # A tied head that is a copy is as large as the stored embedding.
        measured: Part = "embedding" if part == "head" and not whole.get("head") else part
        base = whole.get(measured) or Fraction(0)
        kept = stored.parts.get(measured, 0)
        if base:
            low, expected, high = (kept * size / base for size in (low, expected, high))
        elif kept:  # tensors that the settings told nothing of: whole on each rank of their stage
            low = expected = high = kept * layer_share
        return between(float(low), float(expected), float(high), stored.source)
    if not expected and not high:
        return exact(0, architecture.source or "config.json")
    spread = _COMPUTED
    source = f"computed from {architecture.source or 'config.json'} at {dtype_source}"
    if quantization is not None:
        spread = _MIXED_TYPES if quantization.method == "gguf" else _QUANTIZED
        source = f"computed from {architecture.source or 'config.json'} as {quantization.method}"
    if not architecture.known:
        spread = _UNKNOWN
    elif part == "encoder":
        # An engine leaves out what it does not need of one: a pooling head, the last layers.
        spread = _MIXED_TYPES if all(encoder.known for encoder in architecture.encoders) else _UNKNOWN
    return between(float(low) * (1 - spread), float(expected), float(high) * (1 + spread), source)


# --- What headers say


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeights:
    """Bytes that the headers of a checkpoint add up to, as an engine loads them.

    parts: by kind of module. draft: layers beyond the model's own, which only speculation loads;
    draft_parts: the same by kind. parameters: stored elements by type; packed types count as stored (eight
    4-bit weights in an int32 are one). layout: of a GGUF, by layer.
    """

    parts: Mapping[Part, int]
    draft: int
    parameters: Mapping[str, int]
    source: str
    draft_parts: Mapping[Part, int] = field(default_factory=dict)
    layout: GgufLayout | None = None

    @property
    def total(self) -> int:
        return sum(self.parts.values())


_INDEX = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|blk)\.(\d+)\.")
_ENCODER = re.compile(
    r"(?:^|\.)(?:vision_tower|vision_model|visual|vision_encoder|vision_embedder|vit|audio_tower|audio_model|"
    r"audio_encoder|multi_modal_projector|mm_projector|embed_vision|embed_audio|patch_merge\w*|"
    r"vision_language_adapter|connector|mlp1)(?:\.|$)|^(?:model\.)?encoder\.|^v\.|^mm\."
)
# First match wins; checked on the name without its layer.
_PARTS_BY_NAME: tuple[tuple[Part, re.Pattern[str]], ...] = (
    ("head", re.compile(r"(?:^|\.)(?:lm_head|embed_out|output_layer|proj_out)(?:\.|$)|^output\.weight$")),
    ("norms", re.compile(r"norm|(?:^|\.)ln_|layer_?norm|\.ln\d|norm_f")),
    (
        "embedding",
        re.compile(r"embed_tokens|(?:^|\.)wte\.|word_embeddings|embed_in\.|tok_embeddings|token_embd|"
                   r"^(?:backbone|model|transformer)\.embeddings?\.|^shared\.|tokens_embed"),
    ),
    ("mlp", re.compile(r"shared_experts?|shared_mlp|_shexp")),
    (
        "experts",
        re.compile(r"experts?\.|\.router\b|_exps|ffn_gate_inp|block_sparse_moe|(?:mlp|moe|mixer)\.gate\.|"
                   r"\.experts$|exp_probs|e_score_correction"),
    ),
    (
        "attention",
        re.compile(r"attn|attention|mamba|mixer|ssm_|linear_attn|self_attention|\.conv\.|(?:q|k|v|o)_proj|"
                   r"query_key_value"),
    ),
    ("mlp", re.compile(r"mlp|ffn|feed_forward|\.fc\d|dense_h|w[123]\.|gate_proj|up_proj|down_proj")),
)  # fmt: skip


def part_of(name: str) -> Part:
    """The kind of module that a stored tensor belongs to, from its name."""
    if _ENCODER.search(name):
        return "encoder"
    for part, pattern in _PARTS_BY_NAME:
        if pattern.search(name):
            return part
    return "other"


def stored_weights(
    path: Path, architecture: Architecture, *, dtype: str = "auto", rules: WeightRules = VLLM_RULES
) -> StoredWeights | None:
    """Bytes of the weights in a folder, a .safetensors file or a .gguf file; None where there are none.

    Unquantized tensors of a wider or narrower float type count in the type that they are loaded to. A stored
    head is left out where the head is tied, and layers beyond the model's own count as its draft.
    Raises FootprintError where headers are not sound.
    """
    if path.suffix == ".gguf":
        return stored_in_gguf(read_gguf(path), architecture, str(path))
    if not has_safetensors(path):
        return None
    element_bytes, _ = _dtype_bytes(architecture, dtype, rules)
    return stored_in_safetensors(read_safetensors(path), architecture, element_bytes, str(path))


def _is_draft(name: str, architecture: Architecture) -> bool:
    if name.startswith(("mtp.", "model.mtp.")):
        return True
    placed = _INDEX.search(name)
    return placed is not None and not _ENCODER.search(name) and int(placed[1]) >= len(architecture.layers)


def _add_draft(parts: dict[Part, int], name: str, size: int) -> None:
    """Count a tensor of a draft layer; DeepSeek stores a copy of the head as shared_head.head."""
    part: Part = "head" if re.search(r"shared_head[._]head", name) else part_of(name)
    parts[part] = parts.get(part, 0) + size


def stored_in_safetensors(
    tensors: Iterable[StoredTensor], architecture: Architecture, element_bytes: int, source: str
) -> StoredWeights:
    """As stored_weights, from tensors that were read."""
    listed = list(tensors)
    parts: dict[Part, int] = dict.fromkeys(PARTS, 0)
    counted: dict[str, int] = {}
    draft: dict[Part, int] = {}
    for tensor in listed:
        counted[tensor.dtype] = counted.get(tensor.dtype, 0) + tensor.elements
        part = part_of(tensor.name)
        size = tensor.size_bytes
        # Scales of quantized checkpoints keep their type; what is cast is the weights of unquantized ones.
        is_float = tensor.dtype in ("F64", "F32", "F16", "BF16")
        if is_float and (architecture.quantization is None or DTYPE_BITS[tensor.dtype] > 32):
            size = tensor.elements * element_bytes
        if _is_draft(tensor.name, architecture):
            _add_draft(draft, tensor.name, size)
        elif not (part == "head" and architecture.tied):
            parts[part] += size
    return StoredWeights(
        parts=parts,
        draft=sum(draft.values()),
        draft_parts=draft,
        parameters=counted,
        source=f"safetensors headers of {source}",
    )


def stored_in_gguf(file: Gguf, architecture: Architecture, source: str) -> StoredWeights:
    """As stored_weights, from a GGUF header; tensors keep their types."""
    parts: dict[Part, int] = dict.fromkeys(PARTS, 0)
    counted: dict[str, int] = {}
    draft: dict[Part, int] = {}
    for tensor in file.tensors:
        counted[tensor.type] = counted.get(tensor.type, 0) + tensor.elements
        if _is_draft(tensor.name, architecture):
            _add_draft(draft, tensor.name, tensor.size_bytes)
        else:
            parts[part_of(tensor.name)] += tensor.size_bytes
    return StoredWeights(
        parts=parts,
        draft=sum(draft.values()),
        draft_parts=draft,
        parameters=counted,
        source=f"GGUF header of {source}",
        layout=layout_of_gguf(file, len(architecture.layers)),
    )


# --- What if it were quantized


QUANTIZATIONS: dict[str, Quantization] = {
    "awq": Quantization(method="awq", bits=4, group=128, zeros=True),
    "gptq": Quantization(method="gptq", bits=4, group=128, zeros=True),
    "gptq-int8": Quantization(method="gptq", bits=8, group=128, zeros=True),
    "compressed-tensors": Quantization(method="compressed-tensors", bits=4, group=128),
    "fp8": Quantization(method="fp8", bits=8),
    "fp8-channel": Quantization(method="fp8", bits=8, per_channel=True),
    "fp8-block": Quantization(method="fp8", bits=8, block=(128, 128)),
    "int8": Quantization(method="int8", bits=8, per_channel=True),
    "experts_int8": Quantization(method="int8", bits=8, per_channel=True, targets=("mlp.experts",)),
    "nvfp4": Quantization(method="nvfp4", bits=4, group=16, scale_bits=8),
    "mxfp4": Quantization(method="mxfp4", bits=4, group=32, scale_bits=8),
    "mxfp8": Quantization(method="mxfp8", bits=8, group=32, scale_bits=8),
    "bitsandbytes": Quantization(method="bitsandbytes", bits=4, group=64, scale_bits=32),
    "bitsandbytes-double": Quantization(
        method="bitsandbytes", bits=4, group=64, scale_bits=32, double_quant=True
    ),
    "bitsandbytes-int8": Quantization(method="bitsandbytes", bits=8, per_channel=True, scale_bits=32),
}

# vLLM's own names (0.33, quantization/__init__.py and config/quantization.py) for one of these. ModelOpt's
# plain name is its FP8 (modelopt.py ModelOptFp8Config).
METHODS: dict[str, str] = {
    "auto_awq": "awq", "awq_marlin": "awq", "auto_gptq": "gptq", "gptq_marlin": "gptq",
    "fp8_per_tensor": "fp8", "modelopt": "fp8", "fp8_per_channel": "fp8-channel", "ptpc_fp8": "fp8-channel",
    "fbgemm_fp8": "fp8-channel", "fp8_per_block": "fp8-block", "int8_per_channel_weight_only": "int8",
    "modelopt_fp4": "nvfp4", "nvfp4_per_token": "nvfp4", "modelopt_mxfp8": "mxfp8", "gpt_oss_mxfp4": "mxfp4",
}  # fmt: skip
# Names of loaders, not of formats; moe_wna16 loads AWQ and GPTQ.
_MANY_FORMATS = frozenset(
    {
        "gguf", "torchao", "quark", "inc", "auto-round", "humming", "online", "fp_quant", "moe_wna16",
        "modelopt_mixed"
    }
)  # fmt: skip
# Formats of which an engine loads one only as what it is.
_LOADED_ALONE = frozenset({"awq", "gptq", "fp8", "mxfp4", "bitsandbytes"})

# Bits of a weight over the whole file where a name stands for a mix of types: of Llama-3.1-8B (llama.cpp,
# tools/quantize/README.md, commit 311c2c9); q3_k_m, which that table leaves out, of Llama 2 7B (b8c1476).
GGUF_FILE_BITS: dict[str, float] = {
    "iq1_s": 2.0042, "iq1_m": 2.1460, "iq2_xxs": 2.3824, "iq2_xs": 2.5882, "iq2_s": 2.7403, "iq2_m": 2.9294,
    "iq3_xxs": 3.2548, "iq3_xs": 3.4977, "iq3_s": 3.6606, "iq3_m": 3.7628, "iq4_xs": 4.4597, "iq4_nl": 4.6818,
    "q2_k_s": 2.9697, "q2_k": 3.1593, "q3_k_s": 3.6429, "q3_k_m": 3.91, "q3_k_l": 4.2979, "q4_k_s": 4.6672,
    "q4_k_m": 4.8944, "q5_k_s": 5.5704, "q5_k_m": 5.7036, "q6_k": 6.5633, "q8_0": 8.5008,
}  # fmt: skip


def as_if_quantized(
    architecture: Architecture, stored: StoredWeights | None, name: str | None, assumptions: list[str]
) -> tuple[Architecture, StoredWeights | None]:
    """The model as a launch flag has it quantized, where it is not so already; said among the assumptions.

    What is stored is then no longer what is loaded. Raises FootprintError as quantize does, and for a method
    that is not the checkpoint's, which engines refuse (vLLM 0.33, config/model.py _verify_quantization).
    """
    if name is None:
        return architecture, stored
    kept, wanted = architecture.quantization, METHODS.get(name.lower(), name.lower())
    if kept is not None:
        if {kept.method, wanted} <= _LOADED_ALONE and kept.method != wanted:
            raise FootprintError(
                f"--quantization {name} is not how the model is stored, which is {kept.method}; leave it out"
            )
        return architecture, stored
    taken = f", that is as {wanted}" if wanted != name.lower() else ""
    assumptions.append(f"The weights are taken as if quantized with {name}{taken}.")
    if wanted == "compressed-tensors":
        assumptions.append(
            "compressed-tensors is taken as 4 bits in groups of 128; write fp8-channel or int8 for 8 bits."
        )
    return quantize(architecture, name), None


@kept_with_architecture
def quantize(architecture: Architecture, name: str) -> Architecture:
    """The same model, stored as `name`: a method of QUANTIZATIONS or a GGUF type such as q4_k_m.

    Raises FootprintError for a name not known here, and where the model is quantized already.
    """
    if architecture.quantization is not None:
        raise FootprintError(
            f"the model is stored as {architecture.quantization.method} already; start from one that is not"
        )
    wanted = METHODS.get(name.lower(), name.lower())
    if wanted in _MANY_FORMATS:
        raise SettingError(
            f"--quantization {name} stands for several formats, which the model's files would name; write "
            f"what is meant: {', '.join(QUANTIZATIONS)}, or a GGUF type such as q4_k_m"
        )
    if wanted in QUANTIZATIONS:
        return replace(architecture, quantization=QUANTIZATIONS[wanted])
    bits = GGUF_FILE_BITS.get(wanted) or GGML_BITS.get(wanted)
    if bits is None:
        known = ", ".join([*QUANTIZATIONS, *GGUF_FILE_BITS, *GGML_BITS])
        raise SettingError(f"unknown quantization {name[:40]!r}; known: {known}")
    return replace(architecture, quantization=Quantization(method="gguf", bits=float(bits)))
