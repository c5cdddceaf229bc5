"""The architecture of a model, read from its Hugging Face config.json (or a GGUF header).

What each family builds is taken from the classes of transformers 5.19 (models/FAMILY/configuration_FAMILY.py
and modeling_FAMILY.py): the defaults that a config.json omits, which projections carry biases, how many norms
a layer has, which layers are sparse, windowed or linear. The counts are checked against those classes on the
meta device (tests/oracles/parameter_counts.py).
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from brimline.errors import FootprintError
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
)
from brimline.footprint.gguf import architecture_of_gguf, read_gguf

MAX_CONFIG_BYTES = 4 << 20
MAX_LAYERS = 4096
MAX_EXPERTS = 1 << 16
MAX_WIDTH = 1 << 27  # of anything else that is counted: vocabularies, widths, heads

_HIDDEN = ("hidden_size", "n_embd", "d_model")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "decoder_attention_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
_HEAD_DIM = ("head_dim", "attention_head_dim", "d_kv")
_INTERMEDIATE = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "decoder_ffn_dim")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length", "seq_length")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "top_k_experts", "moe_topk")
_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")

_FULL, _SLIDING, _CHUNKED, _LINEAR = "full", "sliding", "chunked", "linear"
# The words that files of all ages use for the kind of a layer.
_KINDS = {
    "full_attention": _FULL, "attention": _FULL, "global": _FULL, "indexed_attention": _FULL,
    "sliding_attention": _SLIDING, "local": _SLIDING, "sliding_window_attention": _SLIDING,
    "chunked_attention": _CHUNKED,
    "linear_attention": _LINEAR, "mamba": _LINEAR,
}  # fmt: skip


class _Config:
    """The settings of one model, each read under any of its names and checked for sense."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        source: str,
        defaults: Mapping[str, Any] | None = None,
        outer: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings, self.source, self.defaults, self.outer = settings, source, defaults or {}, outer or {}
        self.assumed: dict[str, Any] = {}

    def get(self, *names: str) -> Any:
        """What is stated under the first name that is there; else the family's default; else None."""
        for name in names:
            if self.settings.get(name) is not None:
                return self.settings[name]
        for name in names:
            if name in self.defaults:
                value = self.defaults[name]
                if isinstance(value, int) and not isinstance(value, bool):
                    self.assumed[name] = value
                return value
        return None

    def refuse(self, what: str) -> FootprintError:
        return FootprintError(f"{self.source}: {what}")

    def optional(self, *names: str, least: int = 1, most: int = MAX_WIDTH) -> int | None:
        """A count, or None where it is not stated. Raises FootprintError where it is no sensible count."""
        value = self.get(*names)
        if value is None or value is False:
            return None
        said = next((name for name in names if self.settings.get(name) is not None), names[0])
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refuse(f"{said} is {str(value)[:40]!r}, which is not a whole number")
        if not least <= value <= most:
            raise self.refuse(f"{said} is {value}; it lies between {least} and {most}")
        return value

    def count(self, *names: str, default: int | None = None, least: int = 1, most: int = MAX_WIDTH) -> int:
        value = self.optional(*names, least=least, most=most)
        if value is None:
            if default is None:
                raise self.refuse(f"{names[0]} is missing")
            return default
        return value

    def number(self, name: str, default: int) -> int:
        """A count that may be 0."""
        return self.count(name, default=default, least=0)

    def flag(self, stated: bool | str) -> bool:
        """A constant, or what a setting says; `!name` is its contrary."""
        if isinstance(stated, bool):
            return stated
        value = bool(self.get(stated.removeprefix("!")))
        return not value if stated.startswith("!") else value

    def listed(self, *names: str, length: int) -> list[Any] | None:
        """A list with one entry for each layer. Raises FootprintError where it has another length."""
        value = self.get(*names)
        if not isinstance(value, list):
            return None
        if len(value) != length:
            raise self.refuse(f"{names[0]} has {len(value)} entries for {length} layers")
        return value

    @property
    def hidden(self) -> int:
        return self.count(*_HIDDEN, most=1 << 20)

    @property
    def layers(self) -> int:
        return self.count(*_LAYERS, most=MAX_LAYERS)

    @property
    def heads(self) -> int:
        return self.count(*_HEADS, most=1 << 16)

    @property
    def kv_heads(self) -> int:
        heads, kv_heads = self.heads, self.optional(*_KV_HEADS, most=1 << 16)
        # Falcon's older models say num_kv_heads too, and do not mean it (modeling_falcon.py).
        if self.flag("multi_query") and not self.flag("new_decoder_architecture"):
            return 1
        if kv_heads is None:
            return heads
        if heads % kv_heads:
            raise self.refuse(f"num_key_value_heads is {kv_heads}, which does not divide {heads} heads")
        return kv_heads

    @property
    def head_dim(self) -> int:
        stated = self.optional(*_HEAD_DIM)
        if stated is not None:
            return stated
        if self.hidden % self.heads:
            raise self.refuse(
                f"num_attention_heads is {self.heads}, which does not divide hidden_size {self.hidden}, "
                "and head_dim is not stated"
            )
        return self.hidden // self.heads

    def intermediate(self, index: int = 0, default: int | None = None) -> int:
        """Of a dense feed-forward part; some files list one for each layer (Gemma 3n)."""
        value = self.get("intermediate_size")
        if isinstance(value, list):
            if index >= len(value) or not isinstance(value[index], int) or not 0 < value[index] < MAX_WIDTH:
                raise self.refuse("intermediate_size does not list a sensible width for each layer")
            return int(value[index])
        return self.count(*_INTERMEDIATE, default=default)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """How a family builds its layers. A string among the flags names the setting that says it.

    norms: norm vectors as wide as the model in a layer; norm_width: 2 where a norm has a bias, 0 where it has
    no weights. head_norms: "head" for a query and a key norm over one head, "all" over all heads; where
    head_norms_if names a setting, only if that is true.
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
    kinds: Callable[[_Config], list[str]] | None = None
    mixers: Callable[[_Config, _Family, int, str], tuple[Mixer, ...]] | None = None
    feed_forward: Callable[[_Config, _Family, int], FeedForward | Experts | None] | None = None
    layer_norms: Callable[[_Config, int], int] | None = None
    layer_other: Callable[[_Config, int], int] | None = None
    extra: Callable[[_Config], int] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)


# --- Which layers are of which kind


def _stated_kinds(config: _Config, layers: int) -> list[str] | None:
    listed = config.listed("layer_types", "layers_block_type", length=layers)
    if listed is None:
        return None
    kinds = [_KINDS.get(str(kind)) for kind in listed]
    for word, kind in zip(listed, kinds, strict=True):
        if kind is None:
            raise config.refuse(f"layer_types names {str(word)[:40]!r}, a kind of layer not known here")
    return [kind for kind in kinds if kind is not None]


def _all_full(config: _Config) -> list[str]:
    return [_FULL] * config.layers


def _all_sliding(config: _Config) -> list[str]:
    """Mistral and its kin: a window, once stated, holds for every layer."""
    return [_SLIDING if config.get("sliding_window") else _FULL] * config.layers


def _pattern(default: int) -> Callable[[_Config], list[str]]:
    """Every `sliding_window_pattern`-th layer is full (Gemma 2 and 3, Cohere 2, OLMo 3, EXAONE 4)."""

    def kinds(config: _Config) -> list[str]:
        stated = config.get("sliding_window_pattern", "_sliding_window_pattern")
        if isinstance(stated, str):  # EXAONE 4 writes LLLG
            stated = len(stated)
        period = stated if isinstance(stated, int) and not isinstance(stated, bool) and stated > 0 else default
        if not config.get("sliding_window"):
            return _all_full(config)
        return [_FULL if (index + 1) % period == 0 else _SLIDING for index in range(config.layers)]

    return kinds


def _gemma4_kinds(config: _Config) -> list[str]:
    kinds = _pattern(6)(config)
    return [*kinds[:-1], _FULL]


def _qwen_kinds(config: _Config) -> list[str]:
    """Qwen 2 and 3 slide only where use_sliding_window says so, from max_window_layers on."""
    if not (config.flag("use_sliding_window") and config.get("sliding_window")):
        return _all_full(config)
    first = config.number("max_window_layers", 28)
    return [_SLIDING if index >= first else _FULL for index in range(config.layers)]


def _interval_kinds(config: _Config) -> list[str]:
    period = config.count("full_attention_interval", default=4)
    return [_FULL if (index + 1) % period == 0 else _LINEAR for index in range(config.layers)]


def _llama4_kinds(config: _Config) -> list[str]:
    layers = config.layers
    listed = config.listed("no_rope_layers", length=layers) if config.get("no_rope_layers") else None
    period = config.count("no_rope_layer_interval", default=4)
    rotary = listed or [int((index + 1) % period != 0) for index in range(layers)]
    return [_CHUNKED if each else _FULL for each in rotary]


def _jamba_kinds(config: _Config) -> list[str]:
    period = config.count("attn_layer_period", default=8)
    offset = config.number("attn_layer_offset", 4)
    return [_FULL if index % period == offset else _LINEAR for index in range(config.layers)]


def _bamba_kinds(config: _Config) -> list[str]:
    attention = config.get("attn_layer_indices") or []
    if not isinstance(attention, list):
        raise config.refuse("attn_layer_indices is not a list of layers")
    return [_FULL if index in attention else _LINEAR for index in range(config.layers)]


def _minimax_kinds(config: _Config) -> list[str]:
    listed = config.listed("attn_type_list", length=config.layers)
    if listed is not None:  # the first files: 0 is linear, 1 softmax
        return [_FULL if kind else _LINEAR for kind in listed]
    return [_LINEAR if index % 2 else _FULL for index in range(config.layers)]


def _kimi_kinds(config: _Config) -> list[str]:
    """Kimi Linear's first files list the softmax layers, counted from 1, under linear_attn_config."""
    linear = config.get("linear_attn_config")
    full = linear.get("full_attn_layers") if isinstance(linear, dict) else None
    if not isinstance(full, list):
        raise config.refuse("layer_types is missing")
    return [_FULL if index + 1 in full else _LINEAR for index in range(config.layers)]


def _gpt_neo_kinds(config: _Config) -> list[str]:
    listed = config.listed("attention_layers", length=config.layers)
    kinds: list[Any] = listed or []
    if listed is None:
        for block in config.get("attention_types") or [[["global"], config.layers]]:
            if not (isinstance(block, list) and len(block) == 2 and isinstance(block[1], int)):
                raise config.refuse("attention_types is not a list of kinds and repetitions")
            kinds += list(block[0]) * min(block[1], MAX_LAYERS)
    if len(kinds) != config.layers:
        raise config.refuse(f"attention_types names {len(kinds)} layers; num_layers is {config.layers}")
    return [_SLIDING if kind == "local" else _FULL for kind in kinds]


# --- Mixers


def _shares_kv(config: _Config, index: int) -> bool:
    """The last num_kv_shared_layers read the K and V of an earlier layer (Gemma 3n and 4)."""
    shared = config.optional("num_kv_shared_layers", least=0)
    return bool(shared) and index >= config.layers - (shared or 0)


def _softmax(config: _Config, family: _Family, index: int, kind: str) -> tuple[Mixer, ...]:
    heads, kv_heads, head_dim = config.heads, config.kv_heads, config.head_dim
    own = _own_settings(config, index)
    if own:
        layer = _Config({**config.settings, **own}, config.source, config.defaults)
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
    window = config.optional("sliding_window", "window_size", "attention_window") if kind == _SLIDING else None
    return (
        Attention(
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
        ),
    )


def _own_settings(config: _Config, index: int) -> Mapping[str, Any]:
    """What per_layer_config says of one layer; its keys are numbers as text, some with leading zeros."""
    stated = config.get("per_layer_config")
    if not isinstance(stated, dict):
        return {}
    for key, own in stated.items():
        if str(key).isdigit() and int(key) == index and isinstance(own, dict):
            return own
    return {}


def _gemma4_mixers(config: _Config, family: _Family, index: int, kind: str) -> tuple[Mixer, ...]:
    """Full layers have wider heads, and where keys are values too, their own number of K/V heads."""
    if kind == _FULL and not isinstance(config.get("per_layer_config"), dict):
        own: dict[str, Any] = {"head_dim": config.count("global_head_dim", default=512)}
        kv_heads = config.optional("num_global_key_value_heads")
        if kv_heads is not None and config.flag("attention_k_eq_v"):
            own["num_key_value_heads"] = kv_heads
        config = _Config({**config.settings, **own}, config.source, config.defaults)
    return _softmax(config, family, index, kind)


def _with_sinks(config: _Config, family: _Family, index: int, kind: str) -> tuple[Mixer, ...]:
    """One learned sink for each query head (gpt-oss)."""
    [attention] = _softmax(config, family, index, kind)
    assert isinstance(attention, Attention)
    return (replace(attention, sink_elements=attention.query_heads),)


def _latent(config: _Config, _family: _Family, _index: int, _kind: str) -> tuple[Mixer, ...]:
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


def _delta_net(config: _Config, family: _Family, index: int, kind: str) -> tuple[Mixer, ...]:
    if kind != _LINEAR:
        return _softmax(config, family, index, kind)
    return (
        GatedDeltaNet(
            key_heads=config.count("linear_num_key_heads"),
            value_heads=config.count("linear_num_value_heads"),
            key_dim=config.count("linear_key_head_dim"),
            value_dim=config.count("linear_value_head_dim"),
            conv=config.count("linear_conv_kernel_dim"),
        ),
    )


def _kimi_delta(config: _Config, family: _Family, index: int, kind: str) -> tuple[Mixer, ...]:
    if kind != _LINEAR:
        return _latent(config, family, index, kind)
    nested = config.get("linear_attn_config")
    linear = _Config(nested if isinstance(nested, dict) else config.settings, config.source)
    heads = linear.count("linear_num_heads", "num_heads", default=32)
    width = linear.count("linear_head_dim", "head_dim", default=128)
    conv = linear.count("linear_conv_kernel_dim", "short_conv_kernel_size", default=4)
    return (
        GatedDeltaNet(
            key_heads=heads, value_heads=heads, key_dim=width, value_dim=width, conv=conv, gate_rank=width
        ),
    )


def _lightning(config: _Config, family: _Family, index: int, kind: str) -> tuple[Mixer, ...]:
    if kind != _LINEAR:
        return _softmax(config, family, index, kind)
    return (LinearAttention(heads=config.heads, head_dim=config.head_dim),)


def _mamba1(config: _Config, *, norms: bool) -> Mamba:
    """A Mamba layer of the first version: its own models, Falcon Mamba and Jamba (which norms dt, B and C)."""
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
    )


def _mamba2(config: _Config, *, norm: bool = True) -> Mamba:
    heads = config.count("mamba_n_heads", "mamba_num_heads", "num_heads", default=128)
    head_dim = config.get("mamba_d_head", "mamba_head_dim", "head_dim")
    if head_dim in (None, "auto"):
        head_dim = config.count("mamba_expand", "expand", default=2) * config.hidden // heads
    else:
        head_dim = config.count("mamba_d_head", "mamba_head_dim", "head_dim")
    inner = config.optional("mamba_d_ssm") or heads * head_dim
    return Mamba(
        version=2,
        inner=inner,
        state=config.count("mamba_d_state", "ssm_state_size", "state_size", default=128),
        conv=config.count("mamba_d_conv", "conv_kernel", default=4),
        heads=heads,
        head_dim=head_dim,
        groups=config.count("mamba_n_groups", "n_groups", default=1),
        conv_bias=_default_true(config, "mamba_conv_bias", "use_conv_bias"),
        projection_bias=config.flag("mamba_proj_bias") or config.flag("use_bias"),
        norm_elements=inner if norm else 0,
    )


def _default_true(config: _Config, *names: str) -> bool:
    value = config.get(*names)
    return True if value is None else bool(value)


def _jamba_mixers(config: _Config, family: _Family, index: int, kind: str) -> tuple[Mixer, ...]:
    return (_mamba1(config, norms=True),) if kind == _LINEAR else _softmax(config, family, index, kind)


def _mamba1_mixers(config: _Config, _family: _Family, _index: int, _kind: str) -> tuple[Mixer, ...]:
    return (_mamba1(config, norms=False),)


def _mamba2_mixers(config: _Config, _family: _Family, _index: int, _kind: str) -> tuple[Mixer, ...]:
    return (_mamba2(config),)


def _mamba2_or_softmax(config: _Config, family: _Family, index: int, kind: str) -> tuple[Mixer, ...]:
    return (_mamba2(config),) if kind == _LINEAR else _softmax(config, family, index, kind)


def _falcon_h1_mixers(config: _Config, family: _Family, index: int, _kind: str) -> tuple[Mixer, ...]:
    """A state space and attention side by side in every layer."""
    return (_mamba2(config, norm=config.flag("mamba_rms_norm")), *_softmax(config, family, index, _FULL))


# --- Feed-forward parts


def _dense(config: _Config, family: _Family, index: int) -> FeedForward:
    return FeedForward(
        intermediate=config.intermediate(index, default=None if family.gated else 4 * config.hidden),
        gated=family.gated,
        bias=config.flag(family.feed_forward_bias),
    )


def _experts(config: _Config, *, intermediate: int, shared: int = 0, gate: bool = False) -> Experts:
    count = config.count(*_EXPERTS, most=MAX_EXPERTS)
    return Experts(
        count=count,
        per_token=min(config.count(*_PER_TOKEN, default=1, most=MAX_EXPERTS), count),
        intermediate=intermediate,
        shared_intermediate=shared,
        shared_gate=gate,
    )


def _all_sparse(config: _Config, _family: _Family, _index: int) -> Experts:
    """Mixtral and its kin: every layer is sparse, experts as wide as intermediate_size says."""
    return _experts(config, intermediate=config.intermediate())


def _gpt_oss_experts(config: _Config, _family: _Family, _index: int) -> Experts:
    return replace(_experts(config, intermediate=config.intermediate()), bias=True, router_bias=True)


def _granite_experts(config: _Config, family: _Family, index: int) -> FeedForward | Experts:
    shared = config.number("shared_intermediate_size", 0)
    if not config.optional(*_EXPERTS, least=0):
        return FeedForward(intermediate=shared or config.intermediate(index), gated=family.gated)
    return _experts(config, intermediate=config.intermediate(), shared=shared)


def _is_sparse(config: _Config, index: int) -> bool | None:
    listed = config.listed("mlp_layer_types", length=config.layers)
    return None if listed is None else listed[index] == "sparse"


def _qwen_experts(config: _Config, family: _Family, index: int) -> FeedForward | Experts:
    dense = config.get("mlp_only_layers") or []
    step = config.count("decoder_sparse_step", default=1)
    sparse = _is_sparse(config, index)
    if sparse is None:
        sparse = index not in dense and (index + 1) % step == 0
    if not sparse or not config.optional(*_EXPERTS, least=0):
        return _dense(config, family, index)
    shared = config.number("shared_expert_intermediate_size", 0)
    return _experts(
        config, intermediate=config.count("moe_intermediate_size"), shared=shared, gate=bool(shared)
    )


def _deepseek_experts(config: _Config, family: _Family, index: int) -> FeedForward | Experts:
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
    if not sparse or not config.optional(*_EXPERTS, least=0):
        return _dense(config, family, index)
    intermediate = config.count("moe_intermediate_size")
    shared = config.optional(*_SHARED, least=0, most=MAX_EXPERTS) or 0
    return _experts(config, intermediate=intermediate, shared=shared * intermediate)


def _ernie_experts(config: _Config, family: _Family, index: int) -> FeedForward | Experts:
    first, last = config.number("moe_layer_start_index", 1), config.get("moe_layer_end_index")
    if not isinstance(last, int) or last < 0:
        last = config.layers - 1
    every = config.count("moe_layer_interval", default=1)
    if not (first <= index <= last and (index + 1) % every == 0):
        return _dense(config, family, index)
    intermediate = config.count("moe_intermediate_size")
    shared = config.optional(*_SHARED, least=0, most=MAX_EXPERTS) or 0
    return _experts(config, intermediate=intermediate, shared=shared * intermediate)


def _ernie_is_sparse(config: _Config, index: int) -> int:
    """The score correction of the router, which this family stores as a weight."""
    return (
        config.count(*_EXPERTS) if isinstance(_ernie_experts(config, _Family(), index), Experts) else 0
    )


def _llama4_experts(config: _Config, _family: _Family, index: int) -> FeedForward | Experts:
    step = config.count("interleave_moe_layer_step", default=1)
    listed = config.get("moe_layers")
    sparse = index in listed if isinstance(listed, list) else (index + 1) % step == 0
    if not sparse:
        return FeedForward(intermediate=config.count("intermediate_size_mlp"))
    width = config.intermediate()
    return _experts(config, intermediate=width, shared=width)


def _jamba_experts(config: _Config, family: _Family, index: int) -> FeedForward | Experts:
    period, offset = config.count("expert_layer_period", default=2), config.number("expert_layer_offset", 1)
    if index % period != offset or config.count(*_EXPERTS, default=16) == 1:
        return _dense(config, family, index)
    return _experts(config, intermediate=config.intermediate())


def _gemma4_feed_forward(config: _Config, _family: _Family, index: int) -> FeedForward | Experts:
    """A dense part in every layer and, where enable_moe_block says so, experts beside it."""
    wide = config.flag("use_double_wide_mlp") and _shares_kv(config, index)
    width = config.intermediate() * (2 if wide else 1)
    if not config.flag("enable_moe_block"):
        return FeedForward(intermediate=width)
    return _experts(config, intermediate=config.count("moe_intermediate_size"), shared=width)


def _none(_config: _Config, _family: _Family, _index: int) -> None:
    return None


# --- Weights that belong to no projection


def _gemma4_norms(config: _Config, _index: int) -> int:
    per_layer = 1 if config.optional("hidden_size_per_layer_input", least=0) else 0
    return (4 + per_layer + (3 if config.flag("enable_moe_block") else 0)) * config.hidden


def _per_layer_input(config: _Config, _index: int) -> int:
    """The gate and the projection of per-layer embeddings; the scales of Gemma 4's router."""
    width = config.optional("hidden_size_per_layer_input", least=0) or 0
    router = config.hidden + config.count(*_EXPERTS) if config.flag("enable_moe_block") else 0
    return 2 * width * config.hidden + router


def _per_layer_embeddings(config: _Config) -> int:
    """One table for all layers, its projection and its norm (Gemma 3n and 4)."""
    width = config.optional("hidden_size_per_layer_input", least=0) or 0
    if not width:
        return 0
    packed = config.layers * width
    return config.count("vocab_size_per_layer_input") * packed + config.hidden * packed + width


def _gemma3n_norms(config: _Config, _index: int) -> int:
    """Four of the layer, one each of AltUp's router, LAuReL and the per-layer input."""
    return 7 * config.hidden


def _gemma3n_other(config: _Config, _index: int) -> int:
    """AltUp (scale, coefficients, router), LAuReL (two low-rank matrices) and the per-layer input."""
    hidden, streams = config.hidden, config.count("altup_num_inputs", default=4)
    altup = hidden + streams**2 + streams**3 + streams * hidden
    laurel = 2 * hidden * config.count("laurel_rank", default=64)
    return altup + laurel + _per_layer_input(config, _index)


def _gemma3n_extra(config: _Config) -> int:
    streams = config.count("altup_num_inputs", default=4)
    return _per_layer_embeddings(config) + 2 * (streams - 1) * config.hidden**2


def _learned_positions(config: _Config) -> int:
    return config.count(*_POSITIONS) * config.hidden


def _opt_extra(config: _Config) -> int:
    """Positions start at 2; narrower embeddings are projected; the final norm may be missing."""
    hidden, narrow = config.hidden, config.count("word_embed_proj_dim", default=config.hidden)
    before = _default_true(config, "do_layer_norm_before") and not config.flag("_remove_final_layer_norm")
    positions = (config.count(*_POSITIONS) + 2) * hidden
    vocabulary = config.count("vocab_size") * (narrow - hidden)
    return positions + (2 * hidden if before else 0) + (vocabulary + 2 * narrow * hidden if narrow != hidden else 0)


def _bloom_extra(config: _Config) -> int:
    """The norm after the embeddings."""
    return 2 * config.hidden


def _falcon_norms(config: _Config, _index: int) -> int:
    if config.flag("new_decoder_architecture"):
        norms = config.count("num_ln_in_parallel_attn", default=2)
    else:
        norms = 1 if _default_true(config, "parallel_attn") else 2
    return 2 * norms * config.hidden


def _stablelm_norms(config: _Config, _index: int) -> int:
    return 2 * (1 if config.flag("use_parallel_residual") else 2) * config.hidden


def _apertus_other(_config: _Config, _index: int) -> int:
    """The two learned numbers of its activation, xIELU."""
    return 2


_ATTENTION_BIAS = {"qkv_bias": "attention_bias", "output_bias": "attention_bias"}
_QWEN3: dict[str, Any] = {**_ATTENTION_BIAS, "head_norms": "head"}
_GPT2: dict[str, Any] = {
    "gated": False, "qkv_bias": True, "output_bias": True, "feed_forward_bias": True, "norm_width": 2,
    "extra": _learned_positions, "tied": True,
}  # fmt: skip
_GPTJ = _Family(
    gated=False, feed_forward_bias=True, norms=1, norm_width=2, head_bias=True, kinds=_all_full
)  # fmt: skip
_LLAMA = _Family(**_ATTENTION_BIAS, feed_forward_bias="mlp_bias")
_MISTRAL = _Family(kinds=_all_sliding)
_MIXTRAL = _Family(kinds=_all_sliding, feed_forward=_all_sparse)
_DEEPSEEK = _Family(mixers=_latent, feed_forward=_deepseek_experts)
_QWEN3_NEXT = _Family(
    **_QWEN3, gated_attention=True, kinds=_interval_kinds, mixers=_delta_net, feed_forward=_qwen_experts,
    defaults={"head_dim": 256, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
              "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32},
)  # fmt: skip
_DSA_DEFAULTS = {"first_k_dense_replace": 3}

# Families by model_type. Defaults are those of transformers' configuration classes, for what files leave out.
FAMILIES: dict[str, _Family] = {
    "llama": _LLAMA,
    "mistral": replace(_MISTRAL, defaults={"num_key_value_heads": 8}),
    "ministral": replace(_MISTRAL, defaults={"num_key_value_heads": 8}),
    "ministral3": replace(_MISTRAL, defaults={"head_dim": 128}),
    "mixtral": replace(_MIXTRAL, defaults={"num_key_value_heads": 8}),
    "qwen2": _Family(qkv_bias=True, kinds=_qwen_kinds),
    "qwen2_moe": _Family(
        qkv_bias="qkv_bias", kinds=_qwen_kinds, feed_forward=_qwen_experts, defaults={"qkv_bias": True}
    ),
    "qwen3": _Family(**_QWEN3, kinds=_qwen_kinds, defaults={"head_dim": 128}),
    "qwen3_moe": _Family(**_QWEN3, kinds=_qwen_kinds, feed_forward=_qwen_experts),
    "qwen3_next": _QWEN3_NEXT,
    "qwen3_5_text": replace(_QWEN3_NEXT, feed_forward=None),
    "qwen3_5_moe_text": _QWEN3_NEXT,
    "gemma": _Family(**_ATTENTION_BIAS, tied=True, defaults={"head_dim": 256}),
    "gemma2": _Family(
        **_ATTENTION_BIAS, tied=True, norms=4, kinds=_pattern(2),
        defaults={"head_dim": 256, "sliding_window": 4096},
    ),
    "gemma3_text": _Family(
        **_QWEN3, tied=True, norms=4, kinds=_pattern(6),
        defaults={"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
                  "sliding_window": 4096, "max_position_embeddings": 131072, "hidden_size": 2304,
                  "intermediate_size": 9216, "num_hidden_layers": 26},
    ),
    "gemma3n_text": _Family(
        **_QWEN3, tied=True, kinds=_pattern(5), layer_norms=_gemma3n_norms, layer_other=_gemma3n_other,
        extra=_gemma3n_extra,
        defaults={"vocab_size": 262400, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256,
                  "sliding_window": 512, "vocab_size_per_layer_input": 262144,
                  "hidden_size_per_layer_input": 256, "num_kv_shared_layers": 15},
    ),
    "gemma4_text": _Family(
        **_QWEN3, tied=True, kinds=_gemma4_kinds, mixers=_gemma4_mixers, feed_forward=_gemma4_feed_forward,
        layer_norms=_gemma4_norms, layer_other=_per_layer_input, extra=_per_layer_embeddings,
        defaults={"head_dim": 256, "sliding_window": 512, "vocab_size_per_layer_input": 262144,
                  "hidden_size_per_layer_input": 256},
    ),
    "phi": _Family(
        gated=False, qkv_bias=True, output_bias=True, feed_forward_bias=True, head_bias=True, norms=1,
        norm_width=2, head_norms="head_and_bias", head_norms_if="qk_layernorm",
    ),
    "phi3": _MISTRAL,
    "phimoe": _Family(
        **_ATTENTION_BIAS, head_bias="lm_head_bias", norm_width=2, kinds=_all_sliding,
        feed_forward=_all_sparse,
    ),
    "gpt2": _Family(**_GPT2),
    "gpt_bigcode": _Family(**_GPT2, defaults={"multi_query": True}),
    "gpt_neo": _Family(
        gated=False, output_bias=True, feed_forward_bias=True, norm_width=2, extra=_learned_positions,
        tied=True, kinds=_gpt_neo_kinds, defaults={"window_size": 256},
    ),
    "gpt_neox": _Family(
        gated=False, **_ATTENTION_BIAS, feed_forward_bias=True, norm_width=2,
        defaults={"attention_bias": True},
    ),
    "gptj": _GPTJ,
    "codegen": _GPTJ,
    "opt": _Family(
        gated=False, qkv_bias="enable_bias", output_bias="enable_bias", feed_forward_bias="enable_bias",
        norm_width=2, final_norms=0, tied=True, extra=_opt_extra, defaults={"enable_bias": True},
    ),
    "bloom": _Family(
        gated=False, qkv_bias=True, output_bias=True, feed_forward_bias=True, norm_width=2, tied=True,
        extra=_bloom_extra,
    ),
    "falcon": _Family(
        gated=False, qkv_bias="bias", output_bias="bias", feed_forward_bias="bias", norm_width=2, tied=True,
        layer_norms=_falcon_norms, defaults={"multi_query": True},
    ),
    "mpt": _Family(gated=False, tied=True),
    "starcoder2": _Family(
        gated=False, qkv_bias="use_bias", output_bias="use_bias", feed_forward_bias="use_bias", norm_width=2,
        tied=True, kinds=_all_sliding, defaults={"use_bias": True},
    ),
    "stablelm": _Family(
        qkv_bias="use_qkv_bias", norm_width=2, head_norms="all", head_norms_if="qk_layernorm",
        layer_norms=_stablelm_norms,
    ),
    "olmo": _Family(**_ATTENTION_BIAS, norm_width=0),
    "olmo2": _Family(**_ATTENTION_BIAS, head_norms="all"),
    "olmo3": _Family(
        **_ATTENTION_BIAS, head_norms="all", kinds=_pattern(4), defaults={"sliding_window": 4096}
    ),
    "olmoe": _Family(**_ATTENTION_BIAS, head_norms="all", feed_forward=_all_sparse),
    "cohere": _Family(
        **_ATTENTION_BIAS, norms=1, head_norms="all", head_norms_if="use_qk_norm", tied=True
    ),
    "cohere2": _Family(
        **_ATTENTION_BIAS, norms=1, tied=True, kinds=_pattern(4), defaults={"sliding_window": 4096}
    ),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": replace(_DEEPSEEK, defaults={"first_k_dense_replace": 3}),
    "deepseek_v32": replace(_DEEPSEEK, defaults=_DSA_DEFAULTS),
    "glm4_moe_lite": replace(_DEEPSEEK, defaults={"first_k_dense_replace": 1}),
    "glm_moe_dsa": replace(_DEEPSEEK, defaults=_DSA_DEFAULTS),
    "kimi_k2": _DEEPSEEK,
    "kimi_linear": _Family(
        kinds=_kimi_kinds, mixers=_kimi_delta, feed_forward=_deepseek_experts,
        defaults={"first_k_dense_replace": 1},
    ),
    "glm": _Family(qkv_bias="attention_bias", defaults={"attention_bias": True, "head_dim": 128}),
    "glm4": _Family(qkv_bias="attention_bias", norms=4, defaults={"attention_bias": True, "head_dim": 128}),
    "glm4_moe": _Family(
        qkv_bias="attention_bias", head_norms="head", head_norms_if="use_qk_norm",
        feed_forward=_deepseek_experts, defaults={"first_k_dense_replace": 1},
    ),
    "gpt_oss": _Family(
        **_ATTENTION_BIAS, kinds=_pattern(2), mixers=_with_sinks, feed_forward=_gpt_oss_experts,
        defaults={"attention_bias": True, "head_dim": 64, "sliding_window": 128},
    ),
    "granite": _LLAMA,
    "granitemoe": _Family(**_ATTENTION_BIAS, feed_forward=_granite_experts),
    "granitemoeshared": _Family(**_ATTENTION_BIAS, feed_forward=_granite_experts),
    "granitemoehybrid": _Family(
        **_ATTENTION_BIAS, mixers=_mamba2_or_softmax, feed_forward=_granite_experts,
        defaults={"mamba_d_state": 256},
    ),
    "nemotron": _Family(gated=False, **_ATTENTION_BIAS, feed_forward_bias="mlp_bias", norm_width=2),
    "exaone4": _Family(head_norms="head", kinds=_pattern(4)),
    "jamba": _Family(kinds=_jamba_kinds, mixers=_jamba_mixers, feed_forward=_jamba_experts),
    "mamba": _Family(norms=1, tied=True, mixers=_mamba1_mixers, feed_forward=_none),
    "falcon_mamba": _Family(norms=1, tied=True, mixers=_mamba1_mixers, feed_forward=_none),
    "mamba2": _Family(norms=1, mixers=_mamba2_mixers, feed_forward=_none, defaults={"n_groups": 8}),
    "bamba": _Family(
        **_ATTENTION_BIAS, feed_forward_bias="mlp_bias", kinds=_bamba_kinds, mixers=_mamba2_or_softmax,
        defaults={"mamba_d_state": 256},
    ),
    "falcon_h1": _Family(
        **_ATTENTION_BIAS, feed_forward_bias="mlp_bias", mixers=_falcon_h1_mixers,
        defaults={"mamba_d_state": 256, "mamba_d_ssm": 1024},
    ),
    "minimax": _Family(kinds=_minimax_kinds, mixers=_lightning, feed_forward=_all_sparse),
    "minimax_m2": _Family(head_norms="all", feed_forward=_all_sparse),
    "llama4_text": _Family(
        **_ATTENTION_BIAS, kinds=_llama4_kinds, feed_forward=_llama4_experts,
        defaults={"head_dim": 128, "attention_chunk_size": 8192},
    ),
    "smollm3": _Family(
        **_ATTENTION_BIAS, feed_forward_bias="mlp_bias", tied=True, kinds=_qwen_kinds,
        defaults={"max_window_layers": 0},
    ),
    "ernie4_5": _Family(
        qkv_bias="use_bias", output_bias="use_bias", feed_forward_bias="use_bias", tied=True,
        defaults={"head_dim": 128},
    ),
    "ernie4_5_moe": _Family(
        qkv_bias="use_bias", output_bias="use_bias", tied=True, feed_forward=_ernie_experts,
        layer_other=_ernie_is_sparse,
    ),
    "seed_oss": _Family(
        qkv_bias="attention_bias", output_bias="attention_out_bias", feed_forward_bias="mlp_bias",
        defaults={"attention_bias": True, "head_dim": 128},
    ),
    "apertus": _Family(**_ATTENTION_BIAS, gated=False, head_norms="head", layer_other=_apertus_other),
    "arcee": _Family(**_ATTENTION_BIAS, gated=False, feed_forward_bias="mlp_bias"),
    "persimmon": _Family(
        gated=False, qkv_bias=True, output_bias=True, feed_forward_bias=True, norm_width=2,
        head_norms="head_and_bias", head_norms_if="qk_layernorm", defaults={"qk_layernorm": True},
    ),
}  # fmt: skip

# Names of the whole model, and other names of a family, to the family of the text model.
_ALIASES = {
    "gemma3": "gemma3_text", "gemma3n": "gemma3n_text", "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_text", "gemma4_unified_text": "gemma4_text",
    "qwen2_vl": "qwen2", "qwen2_vl_text": "qwen2", "qwen2_5_vl": "qwen2", "qwen2_5_vl_text": "qwen2",
    "qwen3_vl": "qwen3", "qwen3_vl_text": "qwen3", "qwen3_vl_moe": "qwen3_moe",
    "qwen3_vl_moe_text": "qwen3_moe", "qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text",
    "llama4": "llama4_text", "mistral3": "mistral", "pixtral": "mistral", "llava": "llama",
    "llava_next": "llama", "paligemma": "gemma", "minimax_text_01": "minimax", "minimax_vl_01": "minimax",
    "axk1": "deepseek_v3",
}  # fmt: skip

_ENCODER_DECODERS = {"t5", "mt5", "umt5", "bart", "mbart", "whisper"}


# --- Reading


def read_architecture(path: Path) -> Architecture:
    """Architecture of the model at a directory, a config.json or a .gguf file.

    Raises FootprintError, naming the setting, where it cannot be read or makes no sense.
    """
    if path.suffix == ".gguf":
        return architecture_of_gguf(read_gguf(path), str(path))
    file = path / "config.json" if path.is_dir() else path
    return architecture_of_config(read_config(file), str(file))


def read_config(file: Path) -> dict[str, Any]:
    """Settings of a config.json. Raises FootprintError."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not hang us
        with os.fdopen(descriptor, "rb") as opened:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise FootprintError(f"{file} is not a regular file")
            content = opened.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise FootprintError(f"{file} cannot be read ({error.strerror})") from None
    if len(content) > MAX_CONFIG_BYTES:
        raise FootprintError(f"{file} is too large for a model's config.json")
    try:
        config = json.loads(content)
    except (ValueError, RecursionError):
        raise FootprintError(f"{file} is not JSON") from None
    if not isinstance(config, dict):
        raise FootprintError(f"{file} does not hold a model's settings")
    return config


def architecture_of_config(config: Mapping[str, Any], source: str) -> Architecture:
    """Architecture from the settings of a Hugging Face config.json. Raises FootprintError as above."""
    text = _text_settings(config)
    stated = str(text.get("model_type") or config.get("model_type") or "")
    name = _ALIASES.get(stated, stated)
    if name in _ENCODER_DECODERS:
        architecture = _encoder_decoder(name, text, source)
    else:
        architecture = _decoder(name, stated, text, config, source)
    assumptions = list(architecture.assumptions)
    encoders = (*architecture.encoders, *_encoders(config, architecture.hidden, source, assumptions))
    return replace(
        architecture,
        encoders=encoders,
        dtype=_dtype(text) or _dtype(config),
        quantization=quantization_of_config(config, source) or quantization_of_config(text, source),
        assumptions=tuple(assumptions),
    )


def _text_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the text model within those of a model with other senses."""
    for name in ("text_config", "llm_config", "thinker_config"):
        nested = config.get(name)
        if isinstance(nested, dict):
            return _text_settings(nested) if name == "thinker_config" else nested
    return config


def _dtype(config: Mapping[str, Any]) -> str | None:
    stated = config.get("dtype") or config.get("torch_dtype")
    return str(stated).removeprefix("torch.") if stated else None


def _decoder(
    name: str, stated: str, text: Mapping[str, Any], whole: Mapping[str, Any], source: str
) -> Architecture:
    assumptions = []
    family = FAMILIES.get(name)
    known = family is not None
    if family is None:
        family = _family_of_unknown(text)
        assumptions.append(
            f"model_type {stated!r} is not known here: read as a decoder with gated feed-forward parts, "
            "two norms a layer and no other weights"
        )
    settings = _flattened(name, text)
    config = _Config(settings, source, family.defaults)
    if name == "nemotron_h":  # pragma: no cover - replaced below
        raise config.refuse("nemotron_h is read by its own reader")
    layers = _layers(config, family)
    hidden = config.hidden
    extra = family.extra(config) if family.extra else 0
    tied = _tied(text, whole, family, known, assumptions)
    for key, value in config.assumed.items():
        assumptions.append(f"{key} is not stated: {value} is taken, the default of {name} in transformers")
    return Architecture(
        model_type=stated or "unknown",
        vocabulary=config.count("vocab_size", "padded_vocab_size"),
        hidden=hidden,
        layers=layers,
        tied=tied,
        max_position=config.optional(*_POSITIONS),
        head_bias=config.flag(family.head_bias),
        extra_parameters=extra + family.final_norms * family.norm_width * hidden,
        draft_layers=config.optional("num_nextn_predict_layers", "mtp_num_hidden_layers", least=0) or 0,
        known=known,
        assumptions=tuple(assumptions),
        source=source,
    )


def _layers(config: _Config, family: _Family) -> tuple[Layer, ...]:
    count = config.layers
    kinds = _stated_kinds(config, count) or (family.kinds or _all_full)(config)
    mixers = family.mixers or _softmax
    feed_forward = family.feed_forward or _dense
    layers = []
    for index in range(count):
        if kinds[index] == _LINEAR and family.mixers is None:
            raise config.refuse("layer_types names linear layers, which this model_type is not known to have")
        norms = family.norms * family.norm_width * config.hidden
        layers.append(
            Layer(
                mixers=mixers(config, family, index, kinds[index]),
                feed_forward=feed_forward(config, family, index),
                norm_elements=family.layer_norms(config, index) if family.layer_norms else norms,
                other_elements=family.layer_other(config, index) if family.layer_other else 0,
            )
        )
    return tuple(layers)


def _flattened(name: str, text: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings that a family keeps in a nested record, beside the others."""
    nested = text.get("attn_config")
    if name == "mpt" and isinstance(nested, dict):
        kv_heads = nested.get("kv_n_heads")
        return {**text, "intermediate_size": _mpt_width(text), "num_key_value_heads": kv_heads}
    return text


def _mpt_width(text: Mapping[str, Any]) -> int | None:
    ratio, width = text.get("expansion_ratio", 4), text.get("d_model")
    return ratio * width if isinstance(ratio, int) and isinstance(width, int) else None


def _family_of_unknown(text: Mapping[str, Any]) -> _Family:
    """What the settings themselves tell: latent attention, experts, head norms."""
    family = replace(_LLAMA, kinds=_all_sliding)
    if text.get("kv_lora_rank"):
        family = replace(family, mixers=_latent)
    if text.get("moe_intermediate_size") and any(text.get(name) for name in _EXPERTS):
        sparse = _deepseek_experts if any(text.get(name) for name in _SHARED) else _qwen_experts
        family = replace(family, feed_forward=sparse)
    elif any(text.get(name) for name in _EXPERTS):
        family = replace(family, feed_forward=_all_sparse)
    return family


def _tied(
    text: Mapping[str, Any], whole: Mapping[str, Any], family: _Family, known: bool, assumptions: list[str]
) -> bool:
    for settings in (text, whole):
        if isinstance(settings.get("tie_word_embeddings"), bool):
            return bool(settings["tie_word_embeddings"])
    if not known:
        assumptions.append("tie_word_embeddings is not stated: an output head of its own is counted")
    return family.tied


# --- Encoders and decoders


def _encoder_decoder(name: str, settings: Mapping[str, Any], source: str) -> Architecture:
    config = _Config(settings, source)
    return _t5(name, config) if name.endswith("t5") else _bart(name, config)


def _t5(name: str, config: _Config) -> Architecture:
    """T5 (modeling_t5.py): no biases, relative positions in the first layer of each stack."""
    hidden, heads = config.hidden, config.count("num_heads")
    width = config.count("d_kv")
    activation = str(config.get("feed_forward_proj") or "relu")
    feed_forward = FeedForward(intermediate=config.count("d_ff"), gated=activation.startswith("gated"))
    own = Attention(query_heads=heads, kv_heads=heads, key_dim=width, value_dim=width)
    encoder = Layer(mixers=(own,), feed_forward=feed_forward, norm_elements=2 * hidden)
    decoder = Layer(
        mixers=(own, replace(own, cross=True)), feed_forward=feed_forward, norm_elements=3 * hidden
    )
    encoders = config.count("num_layers", most=MAX_LAYERS)
    decoders = config.count("num_decoder_layers", default=encoders, most=MAX_LAYERS)
    buckets = config.count("relative_attention_num_buckets", default=32) * heads
    # umT5 keeps relative positions in every layer.
    encoder_buckets, decoder_buckets = (encoders, decoders) if name == "umt5" else (1, 1)
    stack = (encoder,) * encoders
    return Architecture(
        model_type=name,
        vocabulary=config.count("vocab_size"),
        hidden=hidden,
        layers=(decoder,) * decoders,
        tied=config.get("tie_word_embeddings") is not False,
        extra_parameters=decoder_buckets * buckets + hidden,
        encoders=(
            Encoder(
                kind="text",
                parameters=_plain_parameters(stack, hidden) + encoder_buckets * buckets + hidden,
                layers=stack,
            ),
        ),
        source=config.source,
    )


def _bart(name: str, config: _Config) -> Architecture:
    """BART, mBART and Whisper (modeling_bart.py, modeling_whisper.py): biases everywhere, learned positions.

    Whisper's keys have no bias; its encoder hears through two convolutions and has fixed positions, which
    transformers stores as weights. mBART adds a norm at the end of each stack.
    """
    hidden = config.hidden
    whisper = name == "whisper"

    def attention(heads: int, *, cross: bool = False) -> Attention:
        if hidden % heads:
            raise config.refuse(f"decoder_attention_heads is {heads}, which does not divide d_model {hidden}")
        width = hidden // heads
        return Attention(
            query_heads=heads, kv_heads=heads, key_dim=width, value_dim=width, qkv_bias=not whisper,
            output_bias=True, cross=cross,
        )  # fmt: skip

    def feed_forward(side: str) -> FeedForward:
        return FeedForward(intermediate=config.count(f"{side}_ffn_dim"), gated=False, bias=True)

    without_keys = 2 * hidden if whisper else 0  # biases of queries and values
    heads = config.count("encoder_attention_heads", "num_attention_heads")
    encoder = Layer(
        mixers=(attention(heads),), feed_forward=feed_forward("encoder"), norm_elements=4 * hidden,
        other_elements=without_keys,
    )  # fmt: skip
    heads = config.count("decoder_attention_heads", "num_attention_heads")
    decoder = Layer(
        mixers=(attention(heads), attention(heads, cross=True)), feed_forward=feed_forward("decoder"),
        norm_elements=6 * hidden, other_elements=2 * without_keys,
    )  # fmt: skip
    stack = (encoder,) * config.count("encoder_layers", most=MAX_LAYERS)
    if whisper:
        bands, sources = config.count("num_mel_bins", default=80), config.count("max_source_positions")
        convolutions = 3 * bands * hidden + hidden + 3 * hidden**2 + hidden
        encoder_extra = convolutions + sources * hidden + 2 * hidden
        positions = config.count("max_target_positions")
        decoder_extra = positions * hidden + 2 * hidden
        tokens: int | None = sources
    else:
        positions = config.count("max_position_embeddings")
        norms = 4 if name == "mbart" else 2
        encoder_extra = decoder_extra = (positions + 2) * hidden + norms * hidden
        tokens = positions
    return Architecture(
        model_type=name,
        vocabulary=config.count("vocab_size"),
        hidden=hidden,
        layers=(decoder,) * config.count("decoder_layers", most=MAX_LAYERS),
        tied=config.get("tie_word_embeddings") is not False,
        max_position=positions,
        extra_parameters=decoder_extra,
        encoders=(
            Encoder(
                kind="audio" if whisper else "text",
                parameters=_plain_parameters(stack, hidden) + encoder_extra,
                layers=stack,
                max_tokens=tokens,
            ),
        ),
        source=config.source,
    )


def _plain_parameters(layers: Sequence[Layer], hidden: int) -> int:
    """Weights of layers with softmax attention and dense feed-forward parts."""
    total = 0
    for layer in layers:
        total += layer.norm_elements + layer.other_elements
        for mixer in layer.mixers:
            assert isinstance(mixer, Attention)
            queries, keys = mixer.query_heads * mixer.key_dim, mixer.kv_heads * mixer.key_dim
            values, output = mixer.kv_heads * mixer.value_dim, mixer.query_heads * mixer.value_dim
            total += hidden * (queries + keys + values + output)
            total += (queries + keys + values if mixer.qkv_bias else 0) + (hidden if mixer.output_bias else 0)
        dense = layer.feed_forward
        assert isinstance(dense, FeedForward)
        total += (3 if dense.gated else 2) * hidden * dense.intermediate
        total += ((2 if dense.gated else 1) * dense.intermediate + hidden) if dense.bias else 0
    return total


# --- Senses


def _encoders(
    whole: Mapping[str, Any], hidden: int, source: str, assumptions: list[str]
) -> tuple[Encoder, ...]:
    found = []
    for key, kind in (("vision_config", "vision"), ("audio_config", "audio")):
        settings = whole.get(key)
        if isinstance(settings, dict) and settings:
            encoder = _transformer_encoder(settings, kind, hidden, source, assumptions)
            if encoder is not None:
                found.append(encoder)
    return tuple(found)


def _transformer_encoder(
    settings: Mapping[str, Any], kind: str, hidden: int, source: str, assumptions: list[str]
) -> Encoder | None:
    """An encoder as its settings tell: layers of attention and a feed-forward part, patches, a projector.

    A plain vision transformer (12·width² a layer where the feed-forward part is 4 widths): the towers in use
    differ in biases, gates and projectors, so this is an estimate and says so.
    """
    config = _Config(settings, f"{source}: {kind}_config")
    width = config.optional("hidden_size", "embed_dim", "d_model", "width")
    depth = config.optional("num_hidden_layers", "depth", "encoder_layers", "layers", most=MAX_LAYERS)
    if width is None or depth is None:
        assumptions.append(f"{kind}_config does not tell the size of its encoder: its weights are not counted")
        return None
    ratio = settings.get("mlp_ratio")
    wide = int(ratio * width) if isinstance(ratio, int | float) and 0 < ratio <= 64 else 4 * width
    inner = config.count("intermediate_size", "encoder_ffn_dim", "ffn_dim", default=wide)
    gated = "silu" in str(settings.get("hidden_act") or "")
    per_layer = 4 * width * width + 4 * width + (3 if gated else 2) * width * inner + inner + width + 4 * width
    patch = config.optional("patch_size", "spatial_patch_size") or 0
    frames = config.optional("temporal_patch_size") or 1
    patches = 3 * frames * patch * patch * width
    image = settings.get("image_size")
    tokens = (image // patch) ** 2 if isinstance(image, int) and patch and 0 < image < 1 << 16 else None
    merge = config.optional("spatial_merge_size") or 1
    merged = width * merge * merge
    out = config.optional("out_hidden_size") or hidden
    projector = merged * merged + merged * out if merge > 1 else width * out
    assumptions.append(
        f"the weights of the {kind} encoder are estimated from {depth} plain transformer layers of {width}"
    )
    parameters = depth * per_layer + patches + (tokens or 0) * width + 2 * width + projector
    return Encoder(kind="vision" if kind == "vision" else "audio", parameters=parameters)


# --- How the checkpoint is quantized


def quantization_of_config(config: Mapping[str, Any], source: str) -> Quantization | None:
    """What quantization_config says; None where there is none.

    Raises FootprintError for a method not known here: its bytes would be a guess. Sources: vLLM 0.32,
    model_executor/layers/quantization/*.py from_config; compressed-tensors 0.17, quant_scheme.py.
    """
    stated = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(stated, dict) or not stated:
        return None
    settings = _Config(stated, f"{source}: quantization_config")
    method = str(stated.get("quant_method") or "").lower()
    if not method and "quant_algo" in stated:
        method = "modelopt"
    skipped = _skipped(stated)
    head = bool(stated.get("lm_head") is True)
    kv_cache = _quantized_kv_cache(stated)
    if method in ("awq", "gptq", "awq_marlin", "gptq_marlin", "auto-round", "intel/auto-round"):
        family = "awq" if "awq" in method else "gptq"
        group = stated.get("group_size", stated.get("q_group_size", 128))
        return Quantization(
            method=family,
            bits=settings.count("bits", "w_bit", default=4, most=16),
            group=group if isinstance(group, int) and 0 < group <= MAX_WIDTH else None,
            zeros=bool(stated.get("zero_point", True)) if family == "awq" else True,
            skipped=skipped,
            quantizes_head=head,
            kv_cache=kv_cache,
        )
    if method in ("fp8", "fbgemm_fp8"):
        block = _block(stated.get("weight_block_size"), settings)
        return Quantization(
            method="fp8",
            bits=8,
            block=block,
            per_channel=method == "fbgemm_fp8",
            skipped=skipped,
            kv_cache=kv_cache,
        )
    if method == "compressed-tensors":
        return _compressed_tensors(stated, settings, skipped, kv_cache)
    if method.startswith("modelopt"):
        return _modelopt(stated, method, skipped, kv_cache, settings)
    if method in ("mxfp4", "gpt_oss_mxfp4"):
        return Quantization(method="mxfp4", bits=4, group=32, scale_bits=8, skipped=skipped)
    if method == "bitsandbytes":
        four = bool(stated.get("load_in_4bit", stated.get("_load_in_4bit")))
        return Quantization(
            method="bitsandbytes",
            bits=4 if four else 8,
            group=64 if four else None,
            per_channel=not four,
            double_quant=four and bool(stated.get("bnb_4bit_use_double_quant")),
            scale_bits=32,
            skipped=skipped,
        )
    raise settings.refuse(f"quant_method {method[:40]!r} is not known here")


def _skipped(stated: Mapping[str, Any]) -> tuple[str, ...]:
    found: list[str] = []
    for key in ("modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules", "llm_int8_skip_modules"):
        value = stated.get(key)
        if isinstance(value, list):
            found += [str(each) for each in value[: 1 << 16]]
    dynamic = stated.get("dynamic")  # GPTQModel: "-:" excludes
    if isinstance(dynamic, dict):
        found += [f"re:{key[2:]}" for key in dynamic if str(key).startswith("-:")]
    return tuple(found)


def _quantized_kv_cache(stated: Mapping[str, Any]) -> str | None:
    scheme = stated.get("kv_cache_scheme") or stated.get("kv_cache_quant_algo")
    if isinstance(scheme, dict):
        bits = scheme.get("num_bits")
        return "fp8" if bits == 8 and scheme.get("type") == "float" else f"{scheme.get('type')}{bits}"
    return str(scheme).lower() if scheme else None


def _block(stated: Any, settings: _Config) -> tuple[int, int] | None:
    if stated is None:
        return None
    match stated:
        case [int(rows), int(columns)] if 0 < rows < MAX_WIDTH and 0 < columns < MAX_WIDTH:
            return (rows, columns)
    raise settings.refuse("weight_block_size is not a pair of sizes")


def _compressed_tensors(
    stated: Mapping[str, Any], settings: _Config, skipped: tuple[str, ...], kv_cache: str | None
) -> Quantization:
    """The scheme of the weights, from the first group that states one. All groups are taken to be alike."""
    groups = stated.get("config_groups")
    records = [group for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
    schemes = [group["weights"] for group in records if isinstance(group.get("weights"), dict)]
    if not schemes:
        raise settings.refuse("config_groups states no weights")
    sizes = {(scheme.get("num_bits"), scheme.get("type"), scheme.get("group_size")) for scheme in schemes}
    if len(sizes) > 1:
        raise settings.refuse("config_groups store their weights in different types: give the folder of weights")
    scheme = schemes[0]
    weights = _Config(scheme, f"{settings.source} config_groups weights")
    bits = weights.count("num_bits", most=16)
    strategy = str(scheme.get("strategy") or "tensor")
    group = weights.optional("group_size", least=-1)
    float4 = scheme.get("type") == "float" and bits == 4
    float8_groups = float4 and (group or 16) in (16, 32)
    targets = [str(each) for record in records for each in record.get("targets") or []]
    return Quantization(
        method="compressed-tensors",
        bits=bits,
        group=group if group and group > 0 else None,
        zeros=scheme.get("symmetric") is False,
        block=_block(scheme.get("block_structure"), settings) if strategy == "block" else None,
        per_channel=strategy == "channel",
        scale_bits=8 if float8_groups else None,
        skipped=skipped,
        quantizes_head=any("lm_head" in target for target in targets),
        kv_cache=kv_cache,
    )


def _modelopt(
    stated: Mapping[str, Any], method: str, skipped: tuple[str, ...], kv_cache: str | None, settings: _Config
) -> Quantization:
    nested = stated.get("quantization")
    record: Mapping[str, Any] = nested if isinstance(nested, dict) else stated
    algorithm = str(record.get("quant_algo") or method.removeprefix("modelopt_")).upper()
    skipped = skipped or _skipped(record)
    kv_cache = kv_cache or _quantized_kv_cache(record)
    if "NVFP4" in algorithm or algorithm == "FP4":
        return Quantization(
            method="nvfp4", bits=4, group=16, scale_bits=8, skipped=skipped, kv_cache=kv_cache
        )
    if "MXFP8" in algorithm:
        return Quantization(
            method="mxfp8", bits=8, group=32, scale_bits=8, skipped=skipped, kv_cache=kv_cache
        )
    if "FP8" in algorithm:
        return Quantization(
            method="fp8",
            bits=8,
            block=(128, 128) if "PB" in algorithm or "BLOCK" in algorithm else None,
            per_channel="PC" in algorithm or "CHANNEL" in algorithm,
            skipped=skipped,
            kv_cache=kv_cache,
        )
    raise settings.refuse(f"quant_algo {algorithm[:40]!r} is not known here")
