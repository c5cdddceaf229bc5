"""How each family of models builds its layers.

What a family builds is taken from its classes in transformers 5.19 (models/FAMILY/configuration_FAMILY.py and
modeling_FAMILY.py): the defaults that a config.json omits, which projections carry biases, how many norms a
layer has, which layers are sparse, windowed or linear. The numbers of parameters are checked against those
classes on the meta device (tests/oracles/parameter_counts.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from brimline.errors import FootprintError
from brimline.footprint.architecture import (
    Attention,
    Experts,
    FeedForward,
    GatedDeltaNet,
    LatentAttention,
    Layer,
    LinearAttention,
    Mamba,
    Mixer,
    ShortConvolution,
)
from brimline.footprint.hf_settings import (
    EXPERTS_NAMES,
    MAX_EXPERTS,
    MAX_LAYERS,
    MAX_WIDTH,
    PER_TOKEN_NAMES,
    POSITIONS_NAMES,
    SHARED_NAMES,
    Settings,
)

_FULL, _SLIDING, _CHUNKED, _LINEAR, _CONVOLUTION, _HYBRID = (
    "full", "sliding", "chunked", "linear", "convolution", "hybrid",
)  # fmt: skip
# The words that files of all ages use for the kind of a layer.
_KINDS = {
    "full_attention": _FULL, "attention": _FULL, "global": _FULL, "indexed_attention": _FULL,
    "sliding_attention": _SLIDING, "local": _SLIDING, "sliding_window_attention": _SLIDING,
    "chunked_attention": _CHUNKED,
    "linear_attention": _LINEAR, "mamba": _LINEAR,
    "conv": _CONVOLUTION, "hybrid": _HYBRID,
}  # fmt: skip
_STATES = (_LINEAR, _CONVOLUTION, _HYBRID)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How a family builds its layers. A string among the flags names the setting that says it.

    norms: norm vectors as wide as the model in a layer; norm_width: 2 where a norm has a bias, 0 where it has
    no weights. head_norms: "head" for a query and a key norm over one head, "all" over all heads; where
    head_norms_if names a setting, only if that is true. mixes: the kinds of layers besides attention that its
    mixers build. reuses: whether a layer's attention and feed-forward part are those of an earlier one.
    """

    gated: bool = True
    qkv_bias: bool | str = False
    output_bias: bool | str = False
    feed_forward_bias: bool | str = False
    head_bias: bool | str = False
    norms: int = 2
    norm_width: int = 1
    head_norms: str = ""
    head_norms_if: str = ""
    final_norms: int = 1
    tied: bool = False
    gated_attention: bool = False
    kinds: Callable[[Settings], list[str]] | None = None
    mixes: tuple[str, ...] = ()
    mixers: Callable[[Settings, Family, int, str], tuple[Mixer, ...]] | None = None
    feed_forward: Callable[[Settings, Family, int], FeedForward | Experts | None] | None = None
    layer_norms: Callable[[Settings, int], int] | None = None
    layer_other: Callable[[Settings, int], int] | None = None
    model_other: Callable[[Settings], int] | None = None
    reuses: Callable[[Settings, int], bool] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)


# --- Which layers are of which kind


def _stated_kinds(config: Settings, layers: int) -> list[str] | None:
    listed = config.listed("layer_types", "layers_block_type", length=layers)
    if listed is None:
        return None
    kinds = [_KINDS.get(str(kind)) for kind in listed]
    for word, kind in zip(listed, kinds, strict=True):
        if kind is None:
            raise config.refuse(f"layer_types names {str(word)[:40]!r}, a kind of layer not known here")
    return [kind for kind in kinds if kind is not None]


def _all_full(config: Settings) -> list[str]:
    return [_FULL] * config.layers


def _all_sliding(config: Settings) -> list[str]:
    """Mistral and its kin: a window, once stated, holds for every layer."""
    return [_SLIDING if config.get("sliding_window") else _FULL] * config.layers


def _pattern(default: int) -> Callable[[Settings], list[str]]:
    """Every `sliding_window_pattern`-th layer is full (Gemma 2 and 3, Cohere 2, OLMo 3, EXAONE 4)."""

    def kinds(config: Settings) -> list[str]:
        stated = config.get("sliding_window_pattern", "_sliding_window_pattern")
        if isinstance(stated, str):  # EXAONE 4 writes LLLG
            stated = len(stated)
        period = (
            stated if isinstance(stated, int) and not isinstance(stated, bool) and stated > 0 else default
        )
        if not config.get("sliding_window"):
            return _all_full(config)
        return [_FULL if (index + 1) % period == 0 else _SLIDING for index in range(config.layers)]

    return kinds


def _gemma4_kinds(config: Settings) -> list[str]:
    kinds = _pattern(6)(config)
    return [*kinds[:-1], _FULL]


def _qwen_kinds(config: Settings) -> list[str]:
    """Qwen 2 and 3 slide only where use_sliding_window says so, from max_window_layers on."""
    if not (config.flag("use_sliding_window") and config.get("sliding_window")):
        return _all_full(config)
    first = config.number("max_window_layers", 28)
    return [_SLIDING if index >= first else _FULL for index in range(config.layers)]


def _interval_kinds(config: Settings) -> list[str]:
    period = config.count("full_attention_interval", default=4)
    return [_FULL if (index + 1) % period == 0 else _LINEAR for index in range(config.layers)]


def _llama4_kinds(config: Settings) -> list[str]:
    layers = config.layers
    listed = config.listed("no_rope_layers", length=layers) if config.get("no_rope_layers") else None
    period = config.count("no_rope_layer_interval", default=4)
    rotary = listed or [int((index + 1) % period != 0) for index in range(layers)]
    return [_CHUNKED if each else _FULL for each in rotary]


def _jamba_kinds(config: Settings) -> list[str]:
    period = config.count("attn_layer_period", default=8)
    offset = config.number("attn_layer_offset", 4)
    return [_FULL if index % period == offset else _LINEAR for index in range(config.layers)]


def _bamba_kinds(config: Settings) -> list[str]:
    if not isinstance(config.get("attn_layer_indices") or [], list):
        raise config.refuse("attn_layer_indices is not a list of layers")
    attention = config.indexes("attn_layer_indices")
    return [_FULL if index in attention else _LINEAR for index in range(config.layers)]


def _minimax_kinds(config: Settings) -> list[str]:
    listed = config.listed("attn_type_list", length=config.layers)
    if listed is not None:  # the first files: 0 is linear, 1 softmax
        return [_FULL if kind else _LINEAR for kind in listed]
    return [_LINEAR if index % 2 else _FULL for index in range(config.layers)]


def _kimi_kinds(config: Settings) -> list[str]:
    """Kimi Linear's first files list the softmax layers, counted from 1, under linear_attn_config."""
    linear = config.get("linear_attn_config")
    if not isinstance(linear, dict) or not isinstance(linear.get("full_attn_layers"), list):
        raise config.refuse("layer_types is missing")
    full = Settings(linear, config.source).indexes("full_attn_layers")
    return [_FULL if index + 1 in full else _LINEAR for index in range(config.layers)]


def _lfm2_kinds(config: Settings) -> list[str]:
    """LFM 2's first files list the layers of attention; without a list all of them are."""
    if not isinstance(config.get("full_attn_idxs"), list):
        return _all_full(config)
    full = config.indexes("full_attn_idxs")
    return [_FULL if index in full else _CONVOLUTION for index in range(config.layers)]


def _zamba2_kinds(config: Settings) -> list[str]:
    """hybrid_layer_ids lists the layers with attention; `flattened` fills it from layers_block_type."""
    hybrids = config.indexes("hybrid_layer_ids")
    if not hybrids:
        raise config.refuse("layers_block_type is missing")
    return [_HYBRID if index in hybrids else _LINEAR for index in range(config.layers)]


def _cwm_kinds(config: Settings) -> list[str]:
    """The first of every four layers is full (CWM, Granite with windows)."""
    return [_FULL if index % 4 == 0 else _SLIDING for index in range(config.layers)]


def _mimo_kinds(config: Settings) -> list[str]:
    """MiMo V2: hybrid_layer_pattern has a 1 for a window; else the first and every sixth layer are full."""
    listed = config.listed("hybrid_layer_pattern", length=config.layers)
    if listed is not None:
        return [_SLIDING if each else _FULL for each in listed]
    return [_FULL if not index or (index + 1) % 6 == 0 else _SLIDING for index in range(config.layers)]


def _gpt_neo_kinds(config: Settings) -> list[str]:
    listed = config.listed("attention_layers", length=config.layers)
    kinds: list[Any] = listed or []
    if listed is None:
        for block in config.get("attention_types") or [[["global"], config.layers]]:
            match block:
                case [list(repeated), int(times)] if len(kinds) <= MAX_LAYERS:
                    kinds += repeated[:MAX_LAYERS] * min(max(times, 0), MAX_LAYERS)
                case _:
                    raise config.refuse("attention_types is not a list of kinds and repetitions")
    if len(kinds) != config.layers:
        raise config.refuse(f"attention_types names {len(kinds)} layers; num_layers is {config.layers}")
    return [_SLIDING if kind == "local" else _FULL for kind in kinds]


# --- Mixers


def _shares_kv(config: Settings, index: int) -> bool:
    """The last num_kv_shared_layers read the K and V of an earlier layer (Gemma 3n and 4)."""
    shared = config.optional("num_kv_shared_layers", least=0)
    return bool(shared) and index >= config.layers - (shared or 0)


def _softmax(config: Settings, family: Family, index: int, kind: str) -> tuple[Mixer, ...]:
    return (_attention(config, family, index, kind),)


def _attention(config: Settings, family: Family, index: int, kind: str) -> Attention:
    heads, kv_heads, head_dim = config.heads, config.kv_heads, config.head_dim
    own = _own_settings(config, index)
    if own:
        layer = config.over(own)
        heads, kv_heads, head_dim = layer.heads, layer.kv_heads, layer.head_dim
    shares = _shares_kv(config, index)
    norms = family.head_norms if not family.head_norms_if or config.flag(family.head_norms_if) else ""
    norm_elements = 0
    if norms == "head":
        norm_elements = head_dim * (1 if shares else 2)
    elif norms == "head_and_bias":
        norm_elements = head_dim * 4
    elif norms == "all":
        norm_elements = (heads + kv_heads) * head_dim
    window = (
        config.optional("sliding_window", "window_size", "attention_window") if kind == _SLIDING else None
    )
    return Attention(
        query_heads=heads,
        kv_heads=kv_heads,
        key_dim=head_dim,
        value_dim=head_dim,
        window=window,
        chunk=config.optional("attention_chunk_size") if kind == _CHUNKED else None,
        qkv_bias=config.flag(family.qkv_bias),
        output_bias=config.flag(family.output_bias),
        norm_elements=norm_elements,
        shares_kv=shares,
        gated=family.gated_attention,
        value_is_key=config.flag("attention_k_eq_v") and kind == _FULL and not shares,
    )


def _own_settings(config: Settings, index: int) -> Mapping[str, Any]:
    """What per_layer_config says of one layer; its keys are numbers as text, filled up with zeros."""
    stated = config.get("per_layer_config")
    if isinstance(stated, dict):
        for width in range(1, 5):
            own = stated.get(f"{index:0{width}d}")
            if isinstance(own, dict):
                return own
    return {}


def _gemma4_mixers(config: Settings, family: Family, index: int, kind: str) -> tuple[Mixer, ...]:
    """Full layers have wider heads, and where keys are values too, their own number of K/V heads."""
    if kind == _FULL and not isinstance(config.get("per_layer_config"), dict):
        own: dict[str, Any] = {"head_dim": config.count("global_head_dim", default=512)}
        kv_heads = config.optional("num_global_key_value_heads")
        if kv_heads is not None and config.flag("attention_k_eq_v"):
            own["num_key_value_heads"] = kv_heads
        config = config.over(own)
    return _softmax(config, family, index, kind)


def _with_sinks(config: Settings, family: Family, index: int, kind: str) -> tuple[Mixer, ...]:
    """One learned sink for each query head (gpt-oss)."""
    return (replace(_attention(config, family, index, kind), sink_elements=config.heads),)


def _latent(config: Settings, _family: Family, _index: int, _kind: str) -> tuple[Mixer, ...]:
    return (
        LatentAttention(
            query_heads=config.heads,
            q_lora_rank=config.optional("q_lora_rank"),
            kv_lora_rank=config.count("kv_lora_rank"),
            nope_dim=config.count("qk_nope_head_dim"),
            rope_dim=config.count("qk_rope_head_dim"),
            value_dim=config.count("v_head_dim"),
            bias=config.flag("attention_bias"),
            index_heads=config.optional("index_n_heads"),
            index_dim=config.optional("index_head_dim"),
        ),
    )


def _two_latents(config: Settings, family: Family, index: int, kind: str) -> tuple[Mixer, ...]:
    """LongCat-Flash attends twice in each layer."""
    return 2 * _latent(config, family, index, kind)


def _delta_net(config: Settings, family: Family, index: int, kind: str) -> tuple[Mixer, ...]:
    if kind != _LINEAR:
        return _softmax(config, family, index, kind)
    return (
        GatedDeltaNet(
            key_heads=config.count("linear_num_key_heads"),
            value_heads=config.count("linear_num_value_heads"),
            key_dim=config.count("linear_key_head_dim"),
            value_dim=config.count("linear_value_head_dim"),
            conv=config.count("linear_conv_kernel_dim"),
            state_dtype=_state_dtype(config),
        ),
    )


def _state_dtype(config: Settings) -> str | None:
    """The type of recurrent states, where the file names one."""
    stated = config.get("mamba_ssm_dtype", "mamba_ssm_cache_dtype")
    return str(stated).removeprefix("torch.") if isinstance(stated, str) else None


def _olmo_hybrid_mixers(config: Settings, family: Family, index: int, kind: str) -> tuple[Mixer, ...]:
    """Heads and their widths follow from the attention's, where they are not stated."""
    keys = config.count("linear_num_key_heads", default=config.heads)
    width = config.count("linear_key_head_dim", default=max(1, 3 * config.hidden // (4 * keys)))
    own = {
        "linear_num_key_heads": keys,
        "linear_num_value_heads": config.count("linear_num_value_heads", default=config.heads),
        "linear_key_head_dim": width,
        "linear_value_head_dim": config.count("linear_value_head_dim", default=2 * width),
    }
    return _delta_net(config.over(own), family, index, kind)


def _short_convolution(config: Settings, family: Family, index: int, kind: str) -> tuple[Mixer, ...]:
    if kind != _CONVOLUTION:
        return _softmax(config, family, index, kind)
    return (
        ShortConvolution(
            width=config.count("conv_dim", default=config.hidden),
            conv=config.count("conv_L_cache", default=3),
            bias=config.flag("conv_bias"),
        ),
    )


def _mimo_mixers(config: Settings, family: Family, index: int, kind: str) -> tuple[Mixer, ...]:
    """Windows have sinks, and twice as many K/V heads unless swa_num_key_value_heads says otherwise."""
    value_dim = config.count("v_head_dim")
    if kind != _SLIDING:
        return (replace(_attention(config, family, index, kind), value_dim=value_dim),)
    own = {"num_key_value_heads": config.count("swa_num_key_value_heads", default=2 * config.kv_heads)}
    attention = _attention(config.over(own), family, index, kind)
    return (replace(attention, value_dim=value_dim, sink_elements=attention.query_heads),)


def _zamba2_mixers(config: Settings, family: Family, index: int, kind: str) -> tuple[Mixer, ...]:
    """A hybrid layer attends to twice the width (the stream and the embeddings), then runs a state space."""
    state = _mamba2(config)
    if kind != _HYBRID:
        return (state,)
    width = 2 * config.hidden
    if width % config.heads:
        raise config.refuse(f"num_attention_heads is {config.heads}, which does not divide {width}")
    attention = _attention(config.over({"head_dim": width // config.heads}), family, index, _FULL)
    return (replace(attention, inputs=width), state)


def _zamba2_hybrids(config: Settings, index: int) -> int | None:
    """How many hybrid layers come before this one; None where it is none itself."""
    hybrids = config.indexes("hybrid_layer_ids")
    return sum(each < index for each in hybrids) if index in hybrids else None


def _zamba2_reuses(config: Settings, index: int) -> bool:
    before = _zamba2_hybrids(config, index)
    return before is not None and before >= config.count("num_mem_blocks", default=1)


def _zamba2_norms(config: Settings, index: int) -> int:
    shared = _zamba2_hybrids(config, index) is not None and not _zamba2_reuses(config, index)
    return (4 if shared else 1) * config.hidden


def _zamba2_other(config: Settings, index: int) -> int:
    """A hybrid layer's own projection of the shared block's output, and its low-rank adapters."""
    if _zamba2_hybrids(config, index) is None:
        return 0
    hidden, rank = config.hidden, config.count("adapter_rank", default=128)
    adapters = rank * (hidden + 2 * config.intermediate(default=4 * hidden))
    if config.flag("use_shared_attention_adapter"):
        adapters += 3 * 2 * rank * 2 * hidden
    return hidden**2 + adapters


def _kimi_delta(config: Settings, family: Family, index: int, kind: str) -> tuple[Mixer, ...]:
    if kind != _LINEAR:
        return _latent(config, family, index, kind)
    nested = config.get("linear_attn_config")
    linear = Settings(nested if isinstance(nested, dict) else config.stated, config.source)
    heads = linear.count("linear_num_heads", "num_heads", default=32)
    width = linear.count("linear_head_dim", "head_dim", default=128)
    conv = linear.count("linear_conv_kernel_dim", "short_conv_kernel_size", default=4)
    return (
        GatedDeltaNet(
            key_heads=heads, value_heads=heads, key_dim=width, value_dim=width, conv=conv, gate_rank=width
        ),
    )


def _lightning(config: Settings, family: Family, index: int, kind: str) -> tuple[Mixer, ...]:
    if kind != _LINEAR:
        return _softmax(config, family, index, kind)
    return (LinearAttention(heads=config.heads, head_dim=config.head_dim),)


def _mamba1(config: Settings, *, norms: bool) -> Mamba:
    """A Mamba layer of the first version (Mamba, Falcon Mamba, and Jamba, which norms dt, B and C)."""
    inner = config.optional("intermediate_size") if config.get("expand", "state_size") else None
    if inner is None:
        inner = config.count("mamba_expand", "expand", default=2) * config.hidden
    state = config.count("mamba_d_state", "state_size", default=16)
    rank = config.get("mamba_dt_rank", "time_step_rank")
    if rank in (None, "auto"):
        rank = -(-config.hidden // 16)
    else:
        rank = config.count("mamba_dt_rank", "time_step_rank")
    return Mamba(
        version=1,
        inner=inner,
        state=state,
        conv=config.count("mamba_d_conv", "conv_kernel", default=4),
        dt_rank=rank,
        conv_bias=_default_true(config, "mamba_conv_bias", "use_conv_bias"),
        projection_bias=config.flag("mamba_proj_bias") or config.flag("use_bias"),
        norm_elements=rank + 2 * state if norms else 0,
        state_dtype=_state_dtype(config),
    )


def _mamba2(config: Settings, *, norm: bool = True) -> Mamba:
    heads = config.count("mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "num_heads", default=128)
    names = ("mamba_d_head", "mamba_head_dim", "mamba_headdim", "head_dim")
    head_dim = config.get(*names)
    if head_dim is None or head_dim == "auto":
        head_dim = max(1, config.count("mamba_expand", "expand", default=2) * config.hidden // heads)
    else:
        head_dim = config.count(*names)
    inner = config.optional("mamba_d_ssm") or heads * head_dim
    return Mamba(
        version=2,
        inner=inner,
        state=config.count("mamba_d_state", "ssm_state_size", "state_size", default=128),
        conv=config.count("mamba_d_conv", "conv_kernel", default=4),
        heads=heads,
        head_dim=head_dim,
        groups=config.count("mamba_n_groups", "n_groups", "mamba_ngroups", default=1),
        conv_bias=_default_true(config, "mamba_conv_bias", "use_conv_bias"),
        projection_bias=any(map(config.flag, ("mamba_proj_bias", "use_bias", "add_bias_linear"))),
        norm_elements=inner if norm else 0,
        state_dtype=_state_dtype(config),
    )


def _default_true(config: Settings, *names: str) -> bool:
    value = config.get(*names)
    return True if value is None else bool(value)


def _jamba_mixers(config: Settings, family: Family, index: int, kind: str) -> tuple[Mixer, ...]:
    return (_mamba1(config, norms=True),) if kind == _LINEAR else _softmax(config, family, index, kind)


def _mamba1_mixers(config: Settings, _family: Family, _index: int, _kind: str) -> tuple[Mixer, ...]:
    return (_mamba1(config, norms=False),)


def _mamba2_mixers(config: Settings, _family: Family, _index: int, _kind: str) -> tuple[Mixer, ...]:
    return (_mamba2(config),)


def _mamba2_or_softmax(config: Settings, family: Family, index: int, kind: str) -> tuple[Mixer, ...]:
    return (_mamba2(config),) if kind == _LINEAR else _softmax(config, family, index, kind)


def _nemotron_h_mixers(config: Settings, family: Family, index: int, _kind: str) -> tuple[Mixer, ...]:
    """Each layer is one thing: a state space, attention, or a feed-forward part."""
    match _NEMOTRON_H_BLOCKS[config.stated["blocks"][index]]:
        case "mamba":
            return (_mamba2(config),)
        case "attention":
            return _softmax(config, family, index, _FULL)
    return ()


def _nemotron_h_feed_forward(config: Settings, family: Family, index: int) -> FeedForward | Experts | None:
    match _NEMOTRON_H_BLOCKS[config.stated["blocks"][index]]:
        case "mlp":
            return _dense(config, family, index)
        case "moe":
            if config.optional("moe_latent_size", least=0):
                raise config.refuse("moe_latent_size is stated; experts behind projections are not read here")
            shared = (
                config.number("moe_shared_expert_intermediate_size", 0) if config.get(*SHARED_NAMES) else 0
            )
            width = config.count("moe_intermediate_size")
            return replace(_experts(config, intermediate=width, shared=shared), gated=False)
    return None


# What each layer is, from layers_block_type or a hybrid_override_pattern such as `M-M*-`.
_NEMOTRON_H_BLOCKS = {
    "M": "mamba", "*": "attention", "-": "mlp", "E": "moe", "mamba": "mamba", "linear_attention": "mamba",
    "attention": "attention", "full_attention": "attention", "mlp": "mlp", "moe": "moe",
}  # fmt: skip


def _falcon_h1_other(config: Settings, _index: int) -> int:
    """The bias on the way out of the state space."""
    return config.hidden if config.flag("projectors_bias") else 0


def _falcon_h1_mixers(config: Settings, family: Family, index: int, _kind: str) -> tuple[Mixer, ...]:
    """A state space and attention side by side in every layer."""
    return (_mamba2(config, norm=config.flag("mamba_rms_norm")), *_softmax(config, family, index, _FULL))


# --- Feed-forward parts


def _dense(config: Settings, family: Family, index: int) -> FeedForward:
    return FeedForward(
        intermediate=config.intermediate(index, default=None if family.gated else 4 * config.hidden),
        gated=family.gated,
        bias=config.flag(family.feed_forward_bias),
    )


def _experts(config: Settings, *, intermediate: int, shared: int = 0, gate: bool = False) -> Experts:
    count = config.count(*EXPERTS_NAMES, most=MAX_EXPERTS)
    return Experts(
        count=count,
        per_token=min(config.count(*PER_TOKEN_NAMES, default=1, most=MAX_EXPERTS), count),
        intermediate=intermediate,
        shared_intermediate=shared,
        shared_gate=gate,
    )


def _all_sparse(config: Settings, _family: Family, _index: int) -> Experts:
    """Mixtral and its kin: every layer is sparse, experts as wide as intermediate_size says."""
    return _experts(config, intermediate=config.intermediate())


def _gpt_oss_experts(config: Settings, _family: Family, _index: int) -> Experts:
    return replace(_experts(config, intermediate=config.intermediate()), bias=True, router_bias=True)


def _granite_experts(config: Settings, family: Family, index: int) -> FeedForward | Experts:
    shared = config.number("shared_intermediate_size", 0)
    if not config.optional(*EXPERTS_NAMES, least=0):
        return FeedForward(intermediate=shared or config.intermediate(index), gated=family.gated)
    return _experts(config, intermediate=config.intermediate(), shared=shared)


def _is_sparse(config: Settings, index: int) -> bool | None:
    listed = config.listed("mlp_layer_types", length=config.layers)
    return None if listed is None else listed[index] == "sparse"


def _qwen_experts(config: Settings, family: Family, index: int) -> FeedForward | Experts:
    step = config.count("decoder_sparse_step", default=1)
    sparse = _is_sparse(config, index)
    if sparse is None:
        sparse = index not in config.indexes("mlp_only_layers") and (index + 1) % step == 0
    if not sparse or not config.optional(*EXPERTS_NAMES, least=0):
        return _dense(config, family, index)
    shared = config.number("shared_expert_intermediate_size", 0)
    return _experts(
        config, intermediate=config.count("moe_intermediate_size"), shared=shared, gate=bool(shared)
    )


def _deepseek_experts(config: Settings, family: Family, index: int) -> FeedForward | Experts:
    """Dense below first_k_dense_replace, then every moe_layer_freq-th layer is sparse."""
    sparse = _is_sparse(config, index)
    if sparse is None:
        every = config.get("moe_layer_freq")
        if isinstance(every, list):
            listed = config.listed("moe_layer_freq", length=config.layers)
            sparse = bool(listed and listed[index])
        else:
            first = config.number("first_k_dense_replace", 0)
            sparse = index >= first and index % config.count("moe_layer_freq", default=1) == 0
    if not sparse or not config.optional(*EXPERTS_NAMES, least=0):
        return _dense(config, family, index)
    intermediate = config.count("moe_intermediate_size")
    shared = config.optional(*SHARED_NAMES, least=0, most=MAX_EXPERTS) or 0
    return _experts(config, intermediate=intermediate, shared=shared * intermediate)


def _ernie_experts(config: Settings, family: Family, index: int) -> FeedForward | Experts:
    first, last = config.number("moe_layer_start_index", 1), config.get("moe_layer_end_index")
    if not isinstance(last, int) or last < 0:
        last = config.layers - 1
    every = config.count("moe_layer_interval", default=1)
    if not (first <= index <= last and (index + 1) % every == 0):
        return _dense(config, family, index)
    intermediate = config.count("moe_intermediate_size")
    shared = config.optional(*SHARED_NAMES, least=0, most=MAX_EXPERTS) or 0
    return _experts(config, intermediate=intermediate, shared=shared * intermediate)


def _ernie_is_sparse(config: Settings, index: int) -> int:
    """The score correction of the router, which this family stores as a weight."""
    return config.count(*EXPERTS_NAMES) if isinstance(_ernie_experts(config, Family(), index), Experts) else 0


def _llama4_experts(config: Settings, _family: Family, index: int) -> FeedForward | Experts:
    step = config.count("interleave_moe_layer_step", default=1)
    listed = isinstance(config.get("moe_layers"), list)
    sparse = index in config.indexes("moe_layers") if listed else (index + 1) % step == 0
    if not sparse:
        return FeedForward(intermediate=config.count("intermediate_size_mlp"))
    width = config.intermediate()
    return _experts(config, intermediate=width, shared=width)


def _jamba_experts(config: Settings, family: Family, index: int) -> FeedForward | Experts:
    period, offset = config.count("expert_layer_period", default=2), config.number("expert_layer_offset", 1)
    if index % period != offset or config.count(*EXPERTS_NAMES, default=16) == 1:
        return _dense(config, family, index)
    return _experts(config, intermediate=config.intermediate())


def _gemma4_feed_forward(config: Settings, _family: Family, index: int) -> FeedForward | Experts:
    """A dense part in every layer and, where enable_moe_block says so, experts beside it."""
    wide = config.flag("use_double_wide_mlp") and _shares_kv(config, index)
    width = config.intermediate() * (2 if wide else 1)
    if not config.flag("enable_moe_block"):
        return FeedForward(intermediate=width)
    return _experts(config, intermediate=config.count("moe_intermediate_size"), shared=width)


def _lfm2_dense(config: Settings, _family: Family, _index: int) -> FeedForward:
    """Two thirds of what is stated, times a multiplier, rounded up (modeling_lfm2.py Lfm2MLP)."""
    width = config.count("block_ff_dim", default=config.intermediate())
    if _default_true(config, "block_auto_adjust_ff_dim"):
        width = 2 * width // 3
        multiplier = config.get("block_ffn_dim_multiplier")
        if isinstance(multiplier, int | float) and 0 < multiplier <= 64:
            width = int(multiplier * width)
        multiple = config.count("block_multiple_of", default=256)
        width = max(1, -(-width // multiple)) * multiple
    return FeedForward(intermediate=width)


def _lfm2_experts(config: Settings, _family: Family, index: int) -> FeedForward | Experts:
    if index < config.number("num_dense_layers", 2):
        return FeedForward(intermediate=config.intermediate())
    return _experts(config, intermediate=config.count("moe_intermediate_size"))


def _zamba2_dense(config: Settings, family: Family, index: int) -> FeedForward | None:
    if _zamba2_hybrids(config, index) is None:
        return None
    return (
        _dense(config, family, index)
        if config.get("intermediate_size")
        else FeedForward(intermediate=4 * config.hidden, bias=config.flag(family.feed_forward_bias))
    )


def _cohere_experts(config: Settings, _family: Family, index: int) -> FeedForward | Experts:
    width = config.intermediate()
    if _is_sparse(config, index) is False:
        return FeedForward(intermediate=config.count("prefix_dense_intermediate_size", default=width))
    shared = config.optional(*SHARED_NAMES, least=0, most=MAX_EXPERTS) or 0
    return _experts(config, intermediate=width, shared=shared * width)


def _hunyuan_experts(config: Settings, _family: Family, index: int) -> Experts:
    """Every layer is sparse, with one shared expert as wide as a dense part."""
    return _experts(config, intermediate=config.intermediate(index), shared=config.intermediate(index))


def _ernie_vl_experts(config: Settings, family: Family, index: int) -> FeedForward | Experts:
    """Experts for text and others for images, as many of each: counted as experts of both widths together."""
    widths = config.get("moe_intermediate_size")
    if _is_sparse(config, index) is False:
        return _dense(config, family, index)
    match widths:
        case [int(text), int(vision)] if 0 < text <= MAX_WIDTH and 0 < vision <= MAX_WIDTH:
            shared = config.optional(*SHARED_NAMES, least=0, most=MAX_EXPERTS) or 0
            return _experts(config, intermediate=text + vision, shared=shared * text)
    raise config.refuse("moe_intermediate_size is not a pair of widths")


def _ernie_vl_other(config: Settings, index: int) -> int:
    """The router of the experts for images, and the score corrections of both."""
    if isinstance(_ernie_vl_experts(config, Family(), index), FeedForward):
        return 0
    return config.count(*EXPERTS_NAMES) * (config.hidden + 2)


def _longcat_experts(config: Settings, _family: Family, _index: int) -> Experts:
    """Experts beside two dense parts, which are as wide together as one shared expert would be."""
    width = config.count("expert_ffn_hidden_size")
    return _experts(config, intermediate=width, shared=2 * config.count("ffn_hidden_size"))


def _longcat_other(config: Settings, _index: int) -> int:
    """The router also chooses among experts that compute nothing."""
    return config.number("zero_expert_num", 256) * config.hidden


def _nas_block(config: Settings, index: int, part: str) -> Mapping[str, Any] | None:
    """What block_configs says of a layer's attention or ffn; None where it has none (Nemotron-NAS)."""
    listed = config.listed("block_configs", length=config.layers)
    block = listed[index] if listed else None
    record = block.get(part) if isinstance(block, dict) else None
    if not isinstance(record, dict):
        raise config.refuse(f"block_configs says nothing of the {part} of layer {index}")
    if record.get("replace_with_linear"):
        raise config.refuse(f"block_configs replaces the {part} of layer {index}, which is not read here")
    return None if record.get("no_op") else record


def _nas_mixers(config: Settings, family: Family, index: int, kind: str) -> tuple[Mixer, ...]:
    block = _nas_block(config, index, "attention")
    if block is None:
        return ()
    group = Settings(block, config.source).count("n_heads_in_group", most=1 << 16)
    if config.heads % group:
        raise config.refuse(f"n_heads_in_group is {group}, which does not divide {config.heads} heads")
    return _softmax(config.over({"num_key_value_heads": config.heads // group}), family, index, kind)


def _nas_feed_forward(config: Settings, family: Family, index: int) -> FeedForward | None:
    """Two thirds of ffn_mult times the width, rounded up to 256 (vLLM 0.32, nemotron_nas.py)."""
    block = _nas_block(config, index, "ffn")
    if block is None:
        return None
    times = block.get("ffn_mult")
    if isinstance(times, bool) or not isinstance(times, int | float) or not 0 < times <= 64:
        raise config.refuse(f"ffn_mult of layer {index} is no sensible number")
    width = -(-int(2 * times * config.hidden / 3) // 256) * 256
    return FeedForward(intermediate=max(256, width), bias=config.flag(family.feed_forward_bias))


def _nas_norms(config: Settings, index: int) -> int:
    parts = [_nas_block(config, index, part) for part in ("attention", "ffn")]
    return sum(part is not None for part in parts) * config.hidden


def _axk1_norms(config: Settings, index: int) -> int:
    """One norm more behind the experts."""
    sparse = isinstance(_deepseek_experts(config, Family(), index), Experts)
    return (3 if sparse else 2) * config.hidden


def _none(_config: Settings, _family: Family, _index: int) -> None:
    return None


# --- Weights that belong to no projection


def _gemma4_norms(config: Settings, _index: int) -> int:
    per_layer = 1 if config.optional("hidden_size_per_layer_input", least=0) else 0
    return (4 + per_layer + (3 if config.flag("enable_moe_block") else 0)) * config.hidden


def _per_layer_input(config: Settings, _index: int) -> int:
    """The gate and the projection of per-layer embeddings; the scales of Gemma 4's router."""
    width = config.optional("hidden_size_per_layer_input", least=0) or 0
    router = config.hidden + config.count(*EXPERTS_NAMES) if config.flag("enable_moe_block") else 0
    return 2 * width * config.hidden + router


def _per_layer_embeddings(config: Settings) -> int:
    """The projection and the norm of per-layer embeddings (Gemma 3n and 4)."""
    width = config.optional("hidden_size_per_layer_input", least=0) or 0
    return config.hidden * config.layers * width + width


def layer_embedding_parameters(config: Settings) -> int:
    width = config.optional("hidden_size_per_layer_input", least=0) or 0
    table = config.optional("vocab_size_per_layer_input") if width else None
    return (table or 0) * config.layers * width


def _gemma3n_norms(config: Settings, _index: int) -> int:
    """Four of the layer, one each of AltUp's router, LAuReL and the per-layer input."""
    return 7 * config.hidden


def _gemma3n_other(config: Settings, _index: int) -> int:
    """AltUp (scale, coefficients, router), LAuReL (two low-rank matrices) and the per-layer input."""
    hidden, streams = config.hidden, config.count("altup_num_inputs", default=4)
    altup = hidden + streams**2 + streams**3 + streams * hidden
    laurel = 2 * hidden * config.count("laurel_rank", default=64)
    return altup + laurel + _per_layer_input(config, _index)


def _gemma3n_extra(config: Settings) -> int:
    streams = config.count("altup_num_inputs", default=4)
    return _per_layer_embeddings(config) + 2 * (streams - 1) * config.hidden**2


def _learned_positions(config: Settings) -> int:
    return config.count(*POSITIONS_NAMES) * config.hidden


def _opt_extra(config: Settings) -> int:
    """Positions start at 2; narrower embeddings are projected; the final norm may be missing."""
    hidden, narrow = config.hidden, config.count("word_embed_proj_dim", default=config.hidden)
    before = _default_true(config, "do_layer_norm_before") and not config.flag("_remove_final_layer_norm")
    positions = (config.count(*POSITIONS_NAMES) + 2) * hidden
    vocabulary = config.count("vocab_size") * (narrow - hidden)
    return (
        positions
        + (2 * hidden if before else 0)
        + (vocabulary + 2 * narrow * hidden if narrow != hidden else 0)
    )


def _bloom_extra(config: Settings) -> int:
    """The norm after the embeddings."""
    return 2 * config.hidden


def _falcon_norms(config: Settings, _index: int) -> int:
    if config.flag("new_decoder_architecture"):
        norms = config.count("num_ln_in_parallel_attn", default=2)
    else:
        norms = 1 if _default_true(config, "parallel_attn") else 2
    return 2 * norms * config.hidden


def _stablelm_norms(config: Settings, _index: int) -> int:
    return 2 * (1 if config.flag("use_parallel_residual") else 2) * config.hidden


def _apertus_other(_config: Settings, _index: int) -> int:
    """The two learned numbers of its activation, xIELU."""
    return 2


_ATTENTION_BIAS: dict[str, Any] = {"qkv_bias": "attention_bias", "output_bias": "attention_bias"}
_QWEN3: dict[str, Any] = {**_ATTENTION_BIAS, "head_norms": "head"}
_GPT2: dict[str, Any] = {
    "gated": False, "qkv_bias": True, "output_bias": True, "feed_forward_bias": True, "norm_width": 2,
    "model_other": _learned_positions, "tied": True,
}  # fmt: skip
_GPTJ = Family(
    gated=False, feed_forward_bias=True, norms=1, norm_width=2, head_bias=True, kinds=_all_full
)  # fmt: skip
_LLAMA = Family(**_ATTENTION_BIAS, feed_forward_bias="mlp_bias")
_MISTRAL = Family(kinds=_all_sliding)
_MIXTRAL = Family(kinds=_all_sliding, feed_forward=_all_sparse)
_DEEPSEEK = Family(mixers=_latent, feed_forward=_deepseek_experts)
_QWEN3_NEXT = Family(
    **_QWEN3, gated_attention=True, kinds=_interval_kinds, mixes=(_LINEAR,), mixers=_delta_net,
    feed_forward=_qwen_experts,
    defaults={"head_dim": 256, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
              "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32},
)  # fmt: skip
_DSA_DEFAULTS = {"first_k_dense_replace": 3}

# Families by model_type. Defaults are those of transformers' configuration classes, for what files leave out.
FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": replace(_MISTRAL, defaults={"num_key_value_heads": 8}),
    "ministral": replace(_MISTRAL, defaults={"num_key_value_heads": 8}),
    "ministral3": replace(_MISTRAL, defaults={"head_dim": 128}),
    "mixtral": replace(_MIXTRAL, defaults={"num_key_value_heads": 8}),
    "qwen2": Family(qkv_bias=True, kinds=_qwen_kinds),
    "qwen2_moe": Family(
        qkv_bias="qkv_bias", kinds=_qwen_kinds, feed_forward=_qwen_experts, defaults={"qkv_bias": True}
    ),
    "qwen3": Family(**_QWEN3, kinds=_qwen_kinds, defaults={"head_dim": 128}),
    "qwen3_moe": Family(**_QWEN3, kinds=_qwen_kinds, feed_forward=_qwen_experts),
    "qwen3_next": _QWEN3_NEXT,
    "qwen3_5_text": replace(_QWEN3_NEXT, feed_forward=None),
    "qwen3_5_moe_text": _QWEN3_NEXT,
    "gemma": Family(**_ATTENTION_BIAS, tied=True, defaults={"head_dim": 256}),
    "gemma2": Family(
        **_ATTENTION_BIAS, tied=True, norms=4, kinds=_pattern(2),
        defaults={"head_dim": 256, "sliding_window": 4096},
    ),
    "gemma3_text": Family(
        **_QWEN3, tied=True, norms=4, kinds=_pattern(6),
        defaults={"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
                  "sliding_window": 4096, "max_position_embeddings": 131072, "hidden_size": 2304,
                  "intermediate_size": 9216, "num_hidden_layers": 26},
    ),
    "gemma3n_text": Family(
        **_QWEN3, tied=True, kinds=_pattern(5), layer_norms=_gemma3n_norms, layer_other=_gemma3n_other,
        model_other=_gemma3n_extra,
        defaults={"vocab_size": 262400, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256,
                  "sliding_window": 512, "vocab_size_per_layer_input": 262144,
                  "hidden_size_per_layer_input": 256, "num_kv_shared_layers": 15},
    ),
    "gemma4_text": Family(
        **_QWEN3, tied=True, kinds=_gemma4_kinds, mixers=_gemma4_mixers, feed_forward=_gemma4_feed_forward,
        layer_norms=_gemma4_norms, layer_other=_per_layer_input, model_other=_per_layer_embeddings,
        defaults={"head_dim": 256, "sliding_window": 512, "vocab_size_per_layer_input": 262144,
                  "hidden_size_per_layer_input": 256},
    ),
    "phi": Family(
        gated=False, qkv_bias=True, output_bias=True, feed_forward_bias=True, head_bias=True, norms=1,
        norm_width=2, head_norms="head_and_bias", head_norms_if="qk_layernorm",
    ),
    "phi3": _MISTRAL,
    "phimoe": Family(
        **_ATTENTION_BIAS, head_bias="lm_head_bias", norm_width=2, kinds=_all_sliding,
        feed_forward=_all_sparse,
    ),
    "gpt2": Family(**_GPT2),
    "gpt_bigcode": Family(**_GPT2, defaults={"multi_query": True}),
    "gpt_neo": Family(
        gated=False, output_bias=True, feed_forward_bias=True, norm_width=2, model_other=_learned_positions,
        tied=True, kinds=_gpt_neo_kinds, defaults={"window_size": 256},
    ),
    "gpt_neox": Family(
        gated=False, **_ATTENTION_BIAS, feed_forward_bias=True, norm_width=2,
        defaults={"attention_bias": True},
    ),
    "gptj": _GPTJ,
    "codegen": _GPTJ,
    "opt": Family(
        gated=False, qkv_bias="enable_bias", output_bias="enable_bias", feed_forward_bias="enable_bias",
        norm_width=2, final_norms=0, tied=True, model_other=_opt_extra, defaults={"enable_bias": True},
    ),
    "bloom": Family(
        gated=False, qkv_bias=True, output_bias=True, feed_forward_bias=True, norm_width=2, tied=True,
        model_other=_bloom_extra,
    ),
    "falcon": Family(
        gated=False, qkv_bias="bias", output_bias="bias", feed_forward_bias="bias", norm_width=2, tied=True,
        layer_norms=_falcon_norms, defaults={"multi_query": True},
    ),
    "mpt": Family(gated=False, tied=True),
    "starcoder2": Family(
        gated=False, qkv_bias="use_bias", output_bias="use_bias", feed_forward_bias="use_bias", norm_width=2,
        tied=True, kinds=_all_sliding, defaults={"use_bias": True},
    ),
    "stablelm": Family(
        qkv_bias="use_qkv_bias", norm_width=2, head_norms="all", head_norms_if="qk_layernorm",
        layer_norms=_stablelm_norms,
    ),
    "olmo": Family(**_ATTENTION_BIAS, norm_width=0),
    "olmo2": Family(**_ATTENTION_BIAS, head_norms="all"),
    "olmo3": Family(
        **_ATTENTION_BIAS, head_norms="all", kinds=_pattern(4), defaults={"sliding_window": 4096}
    ),
    "olmoe": Family(**_ATTENTION_BIAS, head_norms="all", feed_forward=_all_sparse),
    "cohere": Family(
        **_ATTENTION_BIAS, norms=1, head_norms="all", head_norms_if="use_qk_norm", tied=True
    ),
    "cohere2": Family(
        **_ATTENTION_BIAS, norms=1, tied=True, kinds=_pattern(4), defaults={"sliding_window": 4096}
    ),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": replace(_DEEPSEEK, defaults={"first_k_dense_replace": 3}),
    "deepseek_v32": replace(_DEEPSEEK, defaults=_DSA_DEFAULTS),
    "glm4_moe_lite": replace(_DEEPSEEK, defaults={"first_k_dense_replace": 1}),
    "glm_moe_dsa": replace(_DEEPSEEK, defaults=_DSA_DEFAULTS),
    "kimi_k2": _DEEPSEEK,
    "kimi_linear": Family(
        kinds=_kimi_kinds, mixes=(_LINEAR,), mixers=_kimi_delta, feed_forward=_deepseek_experts,
        defaults={"first_k_dense_replace": 1},
    ),
    "glm": Family(qkv_bias="attention_bias", defaults={"attention_bias": True, "head_dim": 128}),
    "glm4": Family(qkv_bias="attention_bias", norms=4, defaults={"attention_bias": True, "head_dim": 128}),
    "glm4_moe": Family(
        qkv_bias="attention_bias", head_norms="head", head_norms_if="use_qk_norm",
        feed_forward=_deepseek_experts, defaults={"first_k_dense_replace": 1},
    ),
    "gpt_oss": Family(
        **_ATTENTION_BIAS, kinds=_pattern(2), mixers=_with_sinks, feed_forward=_gpt_oss_experts,
        defaults={"attention_bias": True, "head_dim": 64, "sliding_window": 128},
    ),
    "granite": _LLAMA,
    "granitemoe": Family(**_ATTENTION_BIAS, feed_forward=_granite_experts),
    "granitemoeshared": Family(**_ATTENTION_BIAS, feed_forward=_granite_experts),
    "granitemoehybrid": Family(
        **_ATTENTION_BIAS, mixes=(_LINEAR,), mixers=_mamba2_or_softmax, feed_forward=_granite_experts,
        defaults={"mamba_d_state": 256},
    ),
    "nemotron": Family(gated=False, **_ATTENTION_BIAS, feed_forward_bias="mlp_bias", norm_width=2),
    "exaone4": Family(head_norms="head", kinds=_pattern(4)),
    "jamba": Family(
        kinds=_jamba_kinds, mixes=(_LINEAR,), mixers=_jamba_mixers, feed_forward=_jamba_experts
    ),
    "mamba": Family(norms=1, tied=True, mixes=(_LINEAR,), mixers=_mamba1_mixers, feed_forward=_none),
    "falcon_mamba": Family(norms=1, tied=True, mixes=(_LINEAR,), mixers=_mamba1_mixers, feed_forward=_none),
    "mamba2": Family(
        norms=1, mixes=(_LINEAR,), mixers=_mamba2_mixers, feed_forward=_none, defaults={"n_groups": 8}
    ),
    "bamba": Family(
        **_ATTENTION_BIAS, feed_forward_bias="mlp_bias", kinds=_bamba_kinds, mixes=(_LINEAR,),
        mixers=_mamba2_or_softmax, defaults={"mamba_d_state": 256},
    ),
    "falcon_h1": Family(
        **_ATTENTION_BIAS, feed_forward_bias="mlp_bias", mixes=_STATES, mixers=_falcon_h1_mixers,
        layer_other=_falcon_h1_other,
        defaults={"mamba_d_state": 256, "mamba_d_ssm": 1024},
    ),
    "nemotron_h": Family(
        gated=False, **_ATTENTION_BIAS, feed_forward_bias="mlp_bias", norms=1, mixes=_STATES,
        mixers=_nemotron_h_mixers, feed_forward=_nemotron_h_feed_forward,
        defaults={"head_dim": 128, "n_groups": 8},
    ),
    "minimax": Family(kinds=_minimax_kinds, mixes=(_LINEAR,), mixers=_lightning, feed_forward=_all_sparse),
    "minimax_m2": Family(head_norms="all", feed_forward=_all_sparse),
    "llama4_text": Family(
        **_ATTENTION_BIAS, kinds=_llama4_kinds, feed_forward=_llama4_experts,
        defaults={"head_dim": 128, "attention_chunk_size": 8192},
    ),
    "smollm3": Family(
        **_ATTENTION_BIAS, feed_forward_bias="mlp_bias", tied=True, kinds=_qwen_kinds,
        defaults={"max_window_layers": 0},
    ),
    "ernie4_5": Family(
        qkv_bias="use_bias", output_bias="use_bias", feed_forward_bias="use_bias", tied=True,
        defaults={"head_dim": 128},
    ),
    "ernie4_5_moe": Family(
        qkv_bias="use_bias", output_bias="use_bias", tied=True, feed_forward=_ernie_experts,
        layer_other=_ernie_is_sparse,
    ),
    "seed_oss": Family(
        qkv_bias="attention_bias", output_bias="attention_out_bias", feed_forward_bias="mlp_bias",
        defaults={"attention_bias": True, "head_dim": 128},
    ),
    "apertus": Family(**_ATTENTION_BIAS, gated=False, head_norms="head", layer_other=_apertus_other),
    "arcee": Family(**_ATTENTION_BIAS, gated=False, feed_forward_bias="mlp_bias"),
    "lfm2": Family(
        head_norms="head", tied=True, kinds=_lfm2_kinds, mixes=(_CONVOLUTION,), mixers=_short_convolution,
        feed_forward=_lfm2_dense,
    ),
    "lfm2_moe": Family(
        head_norms="head", tied=True, kinds=_lfm2_kinds, mixes=(_CONVOLUTION,), mixers=_short_convolution,
        feed_forward=_lfm2_experts,
    ),
    "olmo_hybrid": Family(
        **_ATTENTION_BIAS, head_norms="all", kinds=_interval_kinds, mixes=(_LINEAR,),
        mixers=_olmo_hybrid_mixers, defaults={"linear_conv_kernel_dim": 4},
    ),
    "zamba2": Family(
        tied=True, feed_forward_bias="add_bias_linear", kinds=_zamba2_kinds, mixes=(_LINEAR, _HYBRID),
        mixers=_zamba2_mixers, feed_forward=_zamba2_dense, layer_norms=_zamba2_norms,
        layer_other=_zamba2_other, reuses=_zamba2_reuses, defaults={"mamba_d_state": 64},
    ),
    "exaone_moe": Family(
        head_norms="head", kinds=_pattern(4), feed_forward=_deepseek_experts,
        defaults={"first_k_dense_replace": 1},
    ),
    "hunyuan_v1_dense": Family(**_QWEN3),
    "hunyuan_v1_moe": Family(**_QWEN3, feed_forward=_hunyuan_experts),
    "hy_v3": Family(
        **_QWEN3, feed_forward_bias="mlp_bias", feed_forward=_deepseek_experts,
        defaults={"first_k_dense_replace": 1, "head_dim": 128},
    ),
    "mimo_v2_flash": Family(
        **_ATTENTION_BIAS, kinds=_mimo_kinds, mixers=_mimo_mixers, feed_forward=_deepseek_experts,
        defaults={"first_k_dense_replace": 1, "head_dim": 192, "v_head_dim": 128, "sliding_window": 128},
    ),
    "minicpm3": replace(_DEEPSEEK, feed_forward=None),
    "mistral4": _DEEPSEEK,
    "solar_open": Family(
        **_ATTENTION_BIAS, feed_forward=_deepseek_experts, defaults={"head_dim": 128}
    ),
    "axk1": replace(_DEEPSEEK, layer_norms=_axk1_norms, defaults={"first_k_dense_replace": 1}),
    "cwm": Family(
        feed_forward_bias="mlp_bias", kinds=_cwm_kinds,
        defaults={"head_dim": 128, "sliding_window": 8192},
    ),
    "flex_olmo": Family(**_ATTENTION_BIAS, head_norms="all", feed_forward=_all_sparse),
    "cohere2_moe": Family(
        **_ATTENTION_BIAS, norms=1, tied=True, kinds=_pattern(4), feed_forward=_cohere_experts,
        defaults={"head_dim": 128, "sliding_window": 4096},
    ),
    "vaultgemma": Family(
        **_ATTENTION_BIAS, tied=True, kinds=_pattern(2), defaults={"head_dim": 256, "sliding_window": 4096}
    ),
    "helium": Family(
        qkv_bias="attention_bias", feed_forward_bias="mlp_bias", defaults={"head_dim": 128}
    ),
    "granite_swa": Family(
        **_ATTENTION_BIAS, feed_forward_bias="mlp_bias", kinds=_cwm_kinds, mixers=_with_sinks,
        defaults={"sliding_window": 128},
    ),
    "dots1": Family(**_QWEN3, feed_forward=_deepseek_experts),
    "ernie4_5_vl_moe_text": Family(
        qkv_bias="use_bias", output_bias="use_bias", tied=True, feed_forward=_ernie_vl_experts,
        layer_other=_ernie_vl_other,
    ),
    "glm_ocr_text": Family(norms=4),
    "longcat_flash": replace(
        _DEEPSEEK, norms=4, mixers=_two_latents, feed_forward=_longcat_experts, layer_other=_longcat_other
    ),
    "persimmon": Family(
        gated=False, qkv_bias=True, output_bias=True, feed_forward_bias=True, norm_width=2,
        head_norms="head_and_bias", head_norms_if="qk_layernorm", defaults={"qk_layernorm": True},
    ),
}  # fmt: skip

# Families of code that comes with a model, as vLLM 0.32 builds them (models/internlm2.py, internlm3.py,
# exaone.py, chatglm.py, minicpm.py, mimo.py, deepseek_v2.py, nemotron_nas.py). Most are checked against
# published sizes.
FAMILIES_WITH_CODE: dict[str, Family] = {
    "internlm2": Family(qkv_bias="bias", output_bias="bias"),
    "internlm3": Family(qkv_bias="qkv_bias", output_bias="bias", feed_forward_bias="bias"),
    "exaone": Family(),
    "chatglm": Family(qkv_bias="add_qkv_bias"),
    "minicpm": Family(tied=True),
    "mimo": Family(qkv_bias=True, kinds=_qwen_kinds),
    "deepseek": Family(**_ATTENTION_BIAS, feed_forward=_deepseek_experts),
    "nemotron-nas": Family(
        **_ATTENTION_BIAS, feed_forward_bias="mlp_bias", mixers=_nas_mixers,
        feed_forward=_nas_feed_forward, layer_norms=_nas_norms,
    ),
}  # fmt: skip

# Names of the whole model, and other names of a family, to the family of the text model.
ALIASES = {
    "gemma3": "gemma3_text", "gemma3n": "gemma3n_text", "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_text", "gemma4_unified_text": "gemma4_text",
    "qwen2_vl": "qwen2", "qwen2_vl_text": "qwen2", "qwen2_5_vl": "qwen2", "qwen2_5_vl_text": "qwen2",
    "qwen3_vl": "qwen3", "qwen3_vl_text": "qwen3", "qwen3_vl_moe": "qwen3_moe",
    "qwen3_vl_moe_text": "qwen3_moe", "qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text",
    "llama4": "llama4_text", "mistral3": "mistral", "pixtral": "mistral", "llava": "llama",
    "llava_next": "llama", "paligemma": "gemma", "minimax_text_01": "minimax", "minimax_vl_01": "minimax",
    "glm4v": "glm4", "glm4v_text": "glm4", "glm46v": "glm4", "glm_ocr": "glm_ocr_text",
    "glm4v_moe": "glm4_moe", "glm4v_moe_text": "glm4_moe", "ernie4_5_vl_moe": "ernie4_5_vl_moe_text",
    "qwen2_5_omni": "qwen2", "qwen2_5_omni_thinker": "qwen2", "qwen2_5_omni_text": "qwen2",
    "qwen3_omni_moe": "qwen3_moe", "qwen3_omni_moe_thinker": "qwen3_moe", "qwen3_omni_moe_text": "qwen3_moe",
    "phi4_multimodal": "phi3", "phi4mm": "phi3", "idefics3": "llama", "smolvlm": "llama",
    "lfm2_vl": "lfm2", "voxtral": "llama", "paddleocr_vl_text": "ernie4_5", "exaone4_5_text": "exaone4",
    "kimi_k25": "deepseek_v3", "kimi_vl": "deepseek_v3", "nemotron_h_puzzle": "nemotron_h",
}  # fmt: skip


# Families whose caches are not what the records of architecture.py can say: a number for them would be wrong,
# not rough.
NOT_COMPUTED = {
    "deepseek_v4": "keeps compressed keys beside windows",
    "deepseek_v41": "keeps compressed keys beside windows",
    "glm5_next": "keeps pooled index keys",
    "glm5_next_text": "keeps pooled index keys",
    "minimax_m3_vl": "keeps index keys beside K and V",
    "minimax_m3_vl_text": "keeps index keys beside K and V",
    "qwen4_exp": "keeps index keys and states of several sizes",
    "qwen4_exp_text": "keeps index keys and states of several sizes",
    "kimi_k3": "keeps states beside latents in blocks of its own",
}


# --- Layers


def layers_of(config: Settings, family: Family) -> tuple[Layer, ...]:
    count = config.layers
    kinds = _stated_kinds(config, count) or (family.kinds or _all_full)(config)
    mixers = family.mixers or _softmax
    feed_forward = family.feed_forward or _dense
    layers = []
    for index in range(count):
        if kinds[index] in _STATES and kinds[index] not in family.mixes:
            raise config.refuse(
                f"layer_types names {kinds[index]} layers, which this model_type is not known to have"
            )
        norms = family.norms * family.norm_width * config.hidden
        layers.append(
            Layer(
                mixers=mixers(config, family, index, kinds[index]),
                feed_forward=feed_forward(config, family, index),
                norm_elements=family.layer_norms(config, index) if family.layer_norms else norms,
                other_elements=family.layer_other(config, index) if family.layer_other else 0,
                reuses=family.reuses is not None and family.reuses(config, index),
            )
        )
    return tuple(layers)


def flattened(name: str, text: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """Settings that a family keeps in a nested record, beside the others."""
    if name == "nemotron_h":
        listed = text.get("layers_block_type") or text.get("hybrid_override_pattern")
        if not isinstance(listed, list | str) or not 0 < len(listed) <= MAX_LAYERS:
            raise FootprintError(f"{source}: hybrid_override_pattern is missing")
        for block in listed:
            if str(block) not in _NEMOTRON_H_BLOCKS:
                raise FootprintError(f"{source}: hybrid_override_pattern names {str(block)[:40]!r}")
        blocks = [str(block) for block in listed]
        return {**text, "num_hidden_layers": len(blocks), "layers_block_type": None, "blocks": blocks}
    listed = text.get("layers_block_type")
    if name == "zamba2" and isinstance(listed, list):
        return {**text, "hybrid_layer_ids": [n for n, kind in enumerate(listed) if kind == "hybrid"]}
    nested = text.get("attn_config")
    if name == "mpt" and isinstance(nested, dict):
        kv_heads = nested.get("kv_n_heads")
        return {**text, "intermediate_size": _mpt_width(text), "num_key_value_heads": kv_heads}
    return text


def _mpt_width(text: Mapping[str, Any]) -> int | None:
    ratio, width = text.get("expansion_ratio", 4), text.get("d_model")
    return ratio * width if isinstance(ratio, int) and isinstance(width, int) else None


def family_of_unknown(text: Mapping[str, Any]) -> Family:
    """What the settings themselves tell: latent attention, experts, head norms."""
    family = replace(_LLAMA, kinds=_all_sliding)
    if text.get("kv_lora_rank"):
        family = replace(family, mixers=_latent)
    if text.get("moe_intermediate_size") and any(text.get(name) for name in EXPERTS_NAMES):
        sparse = _deepseek_experts if any(text.get(name) for name in SHARED_NAMES) else _qwen_experts
        family = replace(family, feed_forward=sparse)
    elif any(text.get(name) for name in EXPERTS_NAMES):
        family = replace(family, feed_forward=_all_sparse)
    return family
