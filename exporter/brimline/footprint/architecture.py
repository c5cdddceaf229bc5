"""The architecture of a model as its memory sees it: layers, each with a mixer and a feed-forward part.

Everything here is a count of elements, before quantization and before it is split over GPUs. Who reads a
config.json, a GGUF header or safetensors headers fills these records; weights and caches are computed from
them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Softmax attention that keeps K and V per head.

    key_dim, value_dim: elements of one head's key and value. window: tokens that a sliding window sees;
    chunk: tokens of a local chunk; None for full attention. biases: how many of the q, k, v projections
    carry one. norm_elements: weights of query and key norms. shares_kv: the layer reads another layer's K
    and V and keeps none of its own. cross: attends to an encoder's output, whose K and V are kept once per
    request. gated: the query projection is twice as wide, its second half gating the output (Qwen3-Next).
    value_is_key: no value projection is stored, values are the keys' projection (Gemma 4); both are cached.
    inputs: elements of what its projections read; None for the width of the model (Zamba 2 reads twice that).
    """

    query_heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None
    chunk: int | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    norm_elements: int = 0
    shares_kv: bool = False
    cross: bool = False
    gated: bool = False
    sink_elements: int = 0
    value_is_key: bool = False
    inputs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention (MLA): one compressed vector and one rope key per token, for all heads.

    q_lora_rank: None where queries are projected directly. index_*: the indexer of sparse attention
    (DeepSeek V3.2); None where there is none.
    """

    query_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    bias: bool = False
    index_heads: int | None = None
    index_dim: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba:
    """A selective state-space layer. version 1: heads and head_dim are 0; groups, for version 2, of B and C.

    inner: elements of the expanded stream. state: elements of the state per channel. conv: kernel width.
    dt_rank: version 1 only. norm_elements: weights of the norms within the mixer. state_dtype: the type
    that the config asks for the recurrent state (mamba_ssm_cache_dtype); None where it does not say.
    """

    version: Literal[1, 2]
    inner: int
    state: int
    conv: int
    heads: int = 0
    head_dim: int = 0
    groups: int = 1
    dt_rank: int = 0
    conv_bias: bool = True
    projection_bias: bool = False
    norm_elements: int = 0
    state_dtype: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDeltaNet:
    """Linear attention with a gated delta rule (Qwen3-Next, Qwen3.5). conv: kernel width.

    gate_rank: the gates are low-rank and decay each channel (Kimi Delta Attention); None for one per head.
    state_dtype: the type that the config asks for the recurrent state (mamba_ssm_dtype); None where it does
    not say.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv: int
    gate_rank: int | None = None
    state_dtype: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearAttention:
    """Lightning attention (MiniMax-Text): a head_dim × head_dim state for each head."""

    heads: int
    head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConvolution:
    """A gated convolution over the last tokens, which keeps them and no more (LFM 2). conv: kernel width."""

    width: int
    conv: int
    bias: bool = False


Mixer = Attention | LatentAttention | Mamba | GatedDeltaNet | LinearAttention | ShortConvolution


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForward:
    """A dense feed-forward part. gated: three matrices (up, gate, down) instead of two."""

    intermediate: int
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A mixture of experts. shared_intermediate: of all shared experts together; 0 for none."""

    count: int
    per_token: int
    intermediate: int
    gated: bool = True
    bias: bool = False
    router_bias: bool = False
    shared_intermediate: int = 0
    shared_gate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One decoder layer. mixers: usually one; two in an encoder-decoder. norm_elements: of all norms.

    reuses: its attention and its feed-forward part are those of an earlier layer, stored once (Zamba 2); what
    it keeps per token is its own.
    """

    mixers: tuple[Mixer, ...]
    feed_forward: FeedForward | Experts | None
    norm_elements: int
    other_elements: int = 0
    reuses: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """A vision, audio or text encoder beside the decoder.

    parameters: all of its weights, those of `layers` included, and of the projector to the decoder.
    max_tokens: of one item, as the decoder gets them. width, inner: of its hidden states and feed-forward
    parts; merged: of its patches that become one token. None where the settings do not say. known: whether
    its weights were counted as its class builds them.
    """

    kind: Literal["vision", "audio", "text"]
    parameters: int
    layers: tuple[Layer, ...] = ()
    max_tokens: int | None = None
    width: int | None = None
    inner: int | None = None
    merged: int = 1
    known: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryTable:
    """Cosines and sines of every position, by which queries and keys are turned: rows × width elements.

    No weights: they are computed, and stand in no checkpoint. element_bytes: None for the model's own type.
    sections: positions of images and videos are told in three coordinates; vLLM keeps four times the rows.
    """

    rows: int
    width: int
    element_bytes: int | None = None
    sections: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How a checkpoint stores its linear layers.

    method: awq gptq fp8 compressed-tensors nvfp4 mxfp4 bitsandbytes int8 …, as the config names it. bits:
    of a weight, without scales. group: weights that share a scale; None per tensor or channel (see block).
    zeros: zero points are stored. block: rows and columns that share a scale. skipped: names or patterns of
    modules left in the model's own type. kv_cache: the checkpoint asks for a quantized K/V cache.
    scale_bits: of one scale; None: 16 for groups, 32 for tensors, channels and blocks. targets: names or
    patterns of the modules that are stored so; none for all linear layers. others: how other modules are
    stored, each with targets of its own, which win over these.
    """

    method: str
    bits: float
    group: int | None = None
    zeros: bool = False
    block: tuple[int, int] | None = None
    per_channel: bool = False
    double_quant: bool = False
    skipped: tuple[str, ...] = ()
    quantizes_head: bool = False
    kv_cache: str | None = None
    scale_bits: int | None = None
    targets: tuple[str, ...] = ()
    others: tuple[Quantization, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A model.

    dtype: the type of its unquantized weights, as torch names it. tied: the output head is the input
    embedding. extra_parameters: weights that belong to no layer (position embeddings, final norm,
    projections). layer_embedding_parameters: of a second table of token embeddings, one for all layers
    (Gemma 3n and 4), beside the extra ones. assumptions: what was not stated and taken for granted, a
    sentence each, for people; a model type that is not known puts one here. source: the file that was read.
    yarn_position: what vLLM before 0.32 takes for max_position, where YaRN's factor says another.
    usual_position: the context that is served unless a longer one is asked for (LongRoPE). takes_video: its
    vision encoder takes videos as well as images.
    rotary: the distinct tables of rotary positions; None where what they are is not known. mistral_format:
    the weights lie there in Mistral's own format (too), which vLLM prefers.
    computed: see kept_with_architecture.
    """

    model_type: str
    vocabulary: int
    hidden: int
    layers: tuple[Layer, ...]
    tied: bool
    max_position: int | None = None
    dtype: str | None = None
    head_bias: bool = False
    extra_parameters: int = 0
    layer_embedding_parameters: int = 0
    encoders: tuple[Encoder, ...] = ()
    quantization: Quantization | None = None
    draft_layers: int = 0
    known: bool = True
    assumptions: tuple[str, ...] = ()
    source: str = ""
    yarn_position: int | None = None
    usual_position: int | None = None
    rotary: tuple[RotaryTable, ...] | None = None
    mistral_format: bool = False
    takes_video: bool = True
    computed: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)


MAX_COMPUTED = 1024

_Options = ParamSpec("_Options")
_Result = TypeVar("_Result")


def kept_with_architecture(
    function: Callable[Concatenate[Architecture, _Options], _Result],
) -> Callable[Concatenate[Architecture, _Options], _Result]:
    """The function, computed once for each architecture and options.

    For pure functions whose options are hashable and whose result nobody changes. What was computed goes with
    the architecture, so that nothing is kept of models that were looked at once.
    """

    @functools.wraps(function)
    def kept(architecture: Architecture, /, *args: _Options.args, **options: _Options.kwargs) -> _Result:
        key = (function, args, tuple(options.items()))
        if key in (computed := architecture.computed):
            result: _Result = computed[key]
            return result
        result = function(architecture, *args, **options)
        if len(computed) >= MAX_COMPUTED:
            computed.clear()
        computed[key] = result
        return result

    return kept


@kept_with_architecture
def has_latents(architecture: Architecture) -> bool:
    """True where any layer keeps latents in place of K and V (MLA)."""
    return any(isinstance(mixer, LatentAttention) for layer in architecture.layers for mixer in layer.mixers)
