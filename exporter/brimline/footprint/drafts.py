"""Speculative decoding in vLLM: what a drafter holds and reads, by --speculative-config.

Rules: vLLM 0.32, config/speculative.py (methods and defaults), v1/spec_decode/llm_base_proposer.py (what a
drafter shares with its target), models/llama_eagle.py, llama_eagle3.py, deepseek_mtp.py and
qwen3_next_mtp.py (layers).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from brimline.errors import FootprintError, SettingError
from brimline.estimate import Estimate, between, exact, total
from brimline.footprint import settings as read
from brimline.footprint.architecture import Architecture, Attention, GatedDeltaNet, LatentAttention, Layer
from brimline.footprint.config_file import read_config
from brimline.footprint.hf_config import architecture_of_config
from brimline.footprint.settings import Settings
from brimline.footprint.weights import (
    Sharding,
    StoredWeights,
    Weight,
    bytes_on_rank,
    layer_tensors,
    stored_weights,
    vocabulary_rows_on_rank,
    weight_bytes,
)

_SOURCE = "vLLM 0.32, config/speculative.py"
# Methods without a model: they look drafts up in what was said before.
WITHOUT_MODEL = ("ngram", "ngram_gpu", "suffix")
_OF_TARGET = ("eagle", "eagle3", "mtp")  # drafters that read the target's hidden states
_COMPUTED = (*WITHOUT_MODEL, *_OF_TARGET, "draft_model")
_OTHER = ("medusa", "mlp_speculator", "dflash", "dspark", "extract_hidden_states", "custom_class")
# Model types whose config.json does not say how many layers predict further tokens (qwen3_next_mtp.py).
_MTP_LAYERS = {"qwen3_next": 1}
# Hidden states of the target that EAGLE-3 reads where its config does not say (llama_eagle3.py).
_AUXILIARY_STATES = 3

# How far the computed size of a drafter may be off, as that of a model is; see weights.py.
_SPREAD = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculativeConfig:
    """--speculative-config, as far as it decides memory. model: a path; None for the target's own layers."""

    method: str
    num_speculative_tokens: int | None = None
    model: str | None = None
    draft_tensor_parallel_size: int | None = None
    kv_cache_dtype: str | None = None
    parallel_drafting: bool = False
    other_vocabulary: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A drafter on one GPU of the last pipeline stage.

    tokens: drafted in a step; passes: of the drafter, one for each token or one for all. layers: those that
    keep K/V in the target's pool. memory: bytes of weights and buffers; None without a model. step_bytes:
    read in each pass, the head included. multi_module: several MTP layers draft one after the other.
    auxiliary_states: hidden states of the target that are kept for it through the forward pass.
    """

    method: str
    tokens: int
    passes: int = 1
    layers: tuple[Layer, ...] = ()
    hidden: int = 0
    memory: Estimate | None = None
    step_bytes: float = 0.0
    multi_module: bool = False
    auxiliary_states: int = 0
    formula: str = ""
    assumptions: tuple[str, ...] = ()


def read_speculative_config(settings: Settings) -> SpeculativeConfig | None:
    """--speculative-config, or --spec-method, --spec-model and --spec-tokens; None without any.

    Raises FootprintError where the method cannot be computed here.
    """
    stated = dict(read.mapping(settings, "speculative_config") or {})
    for flag, key in (
        ("spec_method", "method"),
        ("spec_model", "model"),
        ("spec_tokens", "num_speculative_tokens"),
    ):
        if (value := read.text(settings, flag)) is not None:
            if key in stated:
                raise SettingError(
                    f"{read.flag(flag)} and --speculative-config {key} both are given; give one"
                )
            stated[key] = int(value) if value.isascii() and value.isdigit() and len(value) < 20 else value
    if not stated:
        return None
    method, model = stated.get("method"), stated.get("model")
    if model is not None and not isinstance(model, str):
        raise SettingError(f"--speculative-config: model is {model!r}, no path")
    tokens = _whole(stated, "num_speculative_tokens")
    return SpeculativeConfig(
        method=_method(method, model),
        num_speculative_tokens=tokens,
        model=None if model in (*WITHOUT_MODEL, "[ngram]") else model,
        draft_tensor_parallel_size=_whole(stated, "draft_tensor_parallel_size"),
        kv_cache_dtype=stated.get("kv_cache_dtype"),
        parallel_drafting=bool(stated.get("parallel_drafting")),
        other_vocabulary=bool(stated.get("use_heterogeneous_vocab")),
    )


def _whole(stated: Mapping[str, Any], name: str) -> int | None:
    value = stated.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SettingError(f"--speculative-config: {name} is {value!r}; it is a whole number from 1 on")
    return value


def _method(method: Any, model: str | None) -> str:
    """The method, stated or told by the model's name, as vLLM tells it."""
    if method in ("[ngram]",) or (method is None and model in ("ngram", "[ngram]")):
        return "ngram"
    if isinstance(method, str) and (method == "mtp" or method.endswith("_mtp")):
        return "mtp"
    if method in (None, "draft_model") and model is not None:
        name = model.lower()
        if "eagle3" in name:
            return "eagle3"
        if "eagle-" in name:
            return "eagle"
        return "draft_model"
    if method in _COMPUTED:
        return str(method)
    if method in _OTHER:
        raise FootprintError(
            f"--speculative-config: the memory of {method} is not computed; computed: {', '.join(_COMPUTED)}"
        )
    raise SettingError(f"--speculative-config: unknown method {method!r}; known: {', '.join(_COMPUTED)}")


# --- What a drafter holds


def draft_of(
    config: SpeculativeConfig,
    target: Architecture,
    *,
    sharding: Sharding,
    element_bytes: int,
    dtype: str,
    kv_cache_dtype: str,
    max_num_batched_tokens: int,
    stored: StoredWeights | None = None,
) -> Draft:
    """The drafter of a target. Raises FootprintError where it cannot be read, or vLLM refuses it.

    stored: the target's weights as they lie in its files. dtype, kv_cache_dtype: of the target, which its
    drafter takes.
    """
    if config.kv_cache_dtype not in (None, kv_cache_dtype):
        raise FootprintError(
            f"--speculative-config: kv_cache_dtype {config.kv_cache_dtype!r} beside the target's "
            f"{kv_cache_dtype!r} is not computed here"
        )
    if config.draft_tensor_parallel_size not in (None, sharding.tensor):
        # 1 is allowed for some drafters only; nothing says what those put on the other ranks.
        raise FootprintError(
            f"--speculative-config: draft_tensor_parallel_size {config.draft_tensor_parallel_size} must be "
            f"the target's {sharding.tensor}"
        )
    if config.method in WITHOUT_MODEL:
        if config.num_speculative_tokens is None:
            raise FootprintError("--speculative-config: num_speculative_tokens is missing")
        return Draft(method=config.method, tokens=config.num_speculative_tokens)
    on_rank = replace(sharding, pipeline=1, layer_partition=None)
    common = _Common(on_rank, element_bytes, sharding.pipeline > 1, max_num_batched_tokens)
    if config.method == "mtp":
        draft = _mtp(config, target, common, stored)
    elif config.model is None:
        raise FootprintError(
            f"--speculative-config: method {config.method} needs a model, the folder of the drafter"
        )
    elif config.method == "draft_model":
        draft = _draft_model(config, target, common, dtype)
    else:
        draft = _eagle(config, target, common)
    return draft


@dataclass(frozen=True, slots=True)
class _Common:
    """How a drafter lies on a rank. alone: its embedding is not the target's, which is on another stage."""

    sharding: Sharding
    element_bytes: int
    alone: bool
    max_num_batched_tokens: int

    def table_bytes(self, vocabulary: int, hidden: int) -> int:
        return vocabulary_rows_on_rank(vocabulary, self.sharding) * hidden * self.element_bytes

    def buffers(self, hidden: int, *, reads_target: bool) -> Estimate:
        """Hidden states and embeddings of a whole batch, which stay allocated.

        Both in the first model runner; in the second the first alone, and neither for a drafter that reads
        nothing of its target (v1/worker/gpu/spec_decode).
        """
        one = self.max_num_batched_tokens * hidden * self.element_bytes
        least = one if reads_target else 0
        return Estimate(least, least, 2 * one, "vLLM 0.32, v1/spec_decode/llm_base_proposer.py: its buffers")

    def of(
        self, weights: Iterator[tuple[str, Weight]], model: Architecture, *, split: bool = True
    ) -> Fraction:
        return bytes_on_rank(
            weights,
            sharding=self.sharding if split else Sharding(),
            element_bytes=self.element_bytes,
            quantization=model.quantization,
        )


def _tokens(config: SpeculativeConfig, predicted: int | None) -> int:
    """Tokens drafted in a step; predicted: how many the drafter's layers predict, None for any."""
    tokens = config.num_speculative_tokens
    if tokens is None:
        if predicted is None:
            raise FootprintError("--speculative-config: num_speculative_tokens is missing")
        return predicted
    if predicted is not None and tokens > predicted and tokens % predicted:
        raise FootprintError(
            f"--speculative-config: num_speculative_tokens {tokens} must be divisible by the {predicted} "
            f"tokens that the model's layers predict ({_SOURCE})"
        )
    return tokens


# --- Layers of the target itself (multi-token prediction)


def _mtp(
    config: SpeculativeConfig, target: Architecture, common: _Common, stored: StoredWeights | None
) -> Draft:
    model = target
    if config.model is not None:
        model, stored = _read(config.model)
    count = model.draft_layers or _MTP_LAYERS.get(model.model_type, 0)
    if not count:
        raise FootprintError(
            "--speculative-config: the model has no layers that predict further tokens "
            "(num_nextn_predict_layers); choose another method"
        )
    template = next(
        (layer for layer in reversed(model.layers) if any(_sees_all(mixer) for mixer in layer.mixers)), None
    )
    if template is None:
        raise FootprintError("--speculative-config: no layer of the model attends to the whole context")
    layers = (template,) * count
    on_rank = common.of(_mtp_weights(layers, model), model)
    source = "layers as the model's last one, vLLM 0.32, models/deepseek_mtp.py"
    weights = between(float(on_rank) * (1 - _SPREAD), float(on_rank), float(on_rank) * (1 + _SPREAD), source)
    own = {part: size for part, size in (stored.draft_parts if stored else {}).items() if part not in _TABLES}
    if stored is not None and own:
        share = on_rank / common.of(_mtp_weights(layers, model), model, split=False)
        weights = exact(float(sum(own.values()) * share), f"{stored.source}, its layers for further tokens")
    parts = [weights, common.buffers(model.hidden, reads_target=True)]
    if common.alone:
        table = common.table_bytes(model.vocabulary, model.hidden)
        parts.append(exact(table, "an embedding of its own, the target's lies on another stage"))
    return Draft(
        method="mtp",
        tokens=(tokens := _tokens(config, count)),
        passes=tokens,
        layers=layers,
        hidden=model.hidden,
        memory=_sum(parts),
        step_bytes=float(on_rank) / count + common.table_bytes(model.vocabulary, model.hidden),
        multi_module=min(count, tokens) > 1,
        formula=f"{count} layer(s) of the model itself, embedding and head shared with it",
        assumptions=(
            "Layers that predict further tokens are taken to be like the last one with full attention.",
        ),
    )


_TABLES = ("embedding", "head")


def _sees_all(mixer: object) -> bool:
    if isinstance(mixer, Attention):
        return mixer.window is None and mixer.chunk is None and not mixer.cross and not mixer.shares_kv
    return isinstance(mixer, LatentAttention)


def _mtp_weights(layers: tuple[Layer, ...], model: Architecture) -> Iterator[tuple[str, Weight]]:
    """Layers beyond the model's, with the projection that joins embedding and hidden state, and three norms.

    DeepSeek's projection is whole on every rank, Qwen's split over its outputs.
    """
    hidden = model.hidden
    is_split = any(isinstance(mixer, GatedDeltaNet) for layer in model.layers for mixer in layer.mixers)
    for index, layer in enumerate(layers, start=len(model.layers)):
        prefix = f"model.layers.{index}"
        for weight in layer_tensors(layer, hidden):
            yield f"{prefix}.{weight.name}", weight
        yield (
            f"{prefix}.eh_proj",
            Weight(
                part="other", name="eh_proj", inputs=2 * hidden, outputs=hidden, linear=False,
                split="outputs" if is_split else "none",
            ),
        )  # fmt: skip
        yield (
            f"{prefix}.norms",
            Weight(part="norms", name="norms", inputs=1, outputs=3 * hidden, linear=False),
        )


# --- EAGLE


def _eagle(config: SpeculativeConfig, target: Architecture, common: _Common) -> Draft:
    """EAGLE and EAGLE-3: layers of their own that read the target's hidden states.

    The embedding is the target's where the drafter brings none, or an equal one; EAGLE's head is the
    target's, EAGLE-3's has a vocabulary of its own.
    """
    folder = Path(config.model or "")
    settings, stated = _draft_config(folder)
    model = architecture_of_config(settings, str(folder))
    stored = stored_weights(folder if folder.is_dir() else folder.parent, model)
    third = config.method == "eagle3"
    states = _auxiliary_states(stated) if third else 1
    target_hidden = _count(stated, "target_hidden_size") or target.hidden
    own = model.vocabulary
    if third:
        own = _count(stated, "draft_vocab_size") or model.vocabulary
    weights = list(_eagle_weights(model, len(target.layers), states * target_hidden, third=third))
    on_rank = common.of(iter(weights), model)
    mapping = 8 * own if third and own != target.vocabulary else 0  # int64 places in the target's vocabulary
    source = f"computed from {model.source}, vLLM 0.32, models/llama_{config.method}.py"
    measured = between(
        float(on_rank) * (1 - _SPREAD) + mapping,
        float(on_rank) + mapping,
        float(on_rank) * (1 + _SPREAD) + mapping,
        source,
    )
    if stored is not None:
        share = on_rank / common.of(iter(weights), model, split=False)
        kept = sum(size for part, size in stored.parts.items() if part not in _TABLES)
        measured = exact(float(kept * share), stored.source)
    parts = [measured, common.buffers(model.hidden, reads_target=True)]
    parts += _eagle_tables(model, target, own, common, stored, third=third)
    tokens = _tokens(config, None)
    return Draft(
        method=config.method,
        tokens=tokens,
        passes=1 if config.parallel_drafting else tokens,
        layers=model.layers,
        hidden=model.hidden,
        memory=_sum(parts),
        step_bytes=float(on_rank) + common.table_bytes(own, model.hidden),
        auxiliary_states=states if third else 0,
        formula=f"{len(model.layers)} layer(s), {states + (not third)} × {target_hidden:,} inputs joined",
        assumptions=model.assumptions,
    )


def _draft_config(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Settings of the drafter's layers, and all that its config.json states (speculators nest the layers)."""
    if not os.path.exists(folder):  # noqa: PTH110 - as in _read
        raise FootprintError(f"--speculative-config: {folder} does not exist here; name the drafter's folder")
    stated = read_config(folder / "config.json" if folder.is_dir() else folder)
    nested = stated.get("transformer_layer_config") or stated.get("model")
    if isinstance(nested, dict):
        inner = {
            key: value for key, value in stated.items() if key not in ("transformer_layer_config", "model")
        }
        stated = {**nested, **inner, "model_type": nested.get("model_type", "llama")}
    layers = dict(stated)
    layers.setdefault("tie_word_embeddings", False)
    return layers, stated


def _auxiliary_states(stated: Mapping[str, Any]) -> int:
    nested = stated.get("eagle_config")
    own = nested if isinstance(nested, dict) else {}
    if own.get("use_aux_hidden_state") is False:
        return 0
    listed = own.get("eagle_aux_hidden_state_layer_ids") or stated.get("eagle_aux_hidden_state_layer_ids")
    return _count(stated, "num_aux_hidden_states") or (len(listed) if listed else _AUXILIARY_STATES)


def _count(stated: Mapping[str, Any], name: str) -> int | None:
    value = stated.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 27 else None


def _eagle_weights(
    model: Architecture, first: int, joined: int, *, third: bool
) -> Iterator[tuple[str, Weight]]:
    """Layers; the projection of the joined hidden states, whole on every rank; norms.

    EAGLE-3's first layer reads embedding and hidden state side by side.
    """
    hidden = model.hidden
    for index, layer in enumerate(model.layers):
        for weight in layer_tensors(layer, hidden):
            doubled = third and not index and weight.name.endswith(("q_proj", "k_proj", "v_proj"))
            wide = replace(weight, inputs=2 * hidden) if doubled and weight.inputs == hidden else weight
            yield f"model.layers.{first + index}.{weight.name}", wide
    inputs = joined if third else 2 * hidden
    if inputs:
        yield "fc", Weight(part="other", name="fc", inputs=inputs, outputs=hidden)
    norms = (len(model.layers) + 1) * hidden if third else 0
    if norms:
        yield "norms", Weight(part="norms", name="norms", inputs=1, outputs=norms, linear=False)


def _eagle_tables(
    model: Architecture,
    target: Architecture,
    own: int,
    common: _Common,
    stored: StoredWeights | None,
    *,
    third: bool,
) -> Iterator[Estimate]:
    """The embedding and the head, as far as they are not the target's."""
    embedding = common.table_bytes(model.vocabulary, model.hidden)
    if common.alone or model.hidden != target.hidden:
        yield exact(embedding, "an embedding of its own")
    elif stored is None or stored.parts.get("embedding"):
        # Whether a stored one equals the target's is not in the headers; those of published heads do.
        yield Estimate(0, 0, embedding, "its embedding is taken to be the target's")
    head = common.table_bytes(own, model.hidden)
    if third and own != target.vocabulary:
        yield exact(head, f"a head of {own:,} tokens")
    elif stored is None or stored.parts.get("head"):
        yield Estimate(0, head if third else 0, head, "its head may be the target's")


# --- A model of its own


def _draft_model(config: SpeculativeConfig, target: Architecture, common: _Common, dtype: str) -> Draft:
    model, stored = _read(config.model or "")
    if model.vocabulary != target.vocabulary and not config.other_vocabulary:
        raise FootprintError(
            f"--speculative-config: the drafter's vocabulary of {model.vocabulary} tokens is not the "
            f"target's {target.vocabulary} ({_SOURCE})"
        )
    sharding = replace(common.sharding, data=1, redundant_experts=0)
    # The fullest of its ranks, which are alike but for experts that do not divide.
    rank = max(
        weight_bytes(model, sharding=sharding, dtype=dtype, stored=stored), key=lambda one: one.total.expected
    )
    tokens = _tokens(config, None)
    looked_up = 0 if model.tied else rank.parts["embedding"].expected
    return Draft(
        method="draft_model",
        tokens=tokens,
        passes=1 if config.parallel_drafting else tokens,
        layers=model.layers,
        hidden=model.hidden,
        memory=_sum([rank.total, common.buffers(model.hidden, reads_target=False)]),
        step_bytes=float(rank.total.expected - looked_up),
        formula=f"all weights of {config.model}, embedding and head its own",
        assumptions=model.assumptions,
    )


def _sum(parts: list[Estimate]) -> Estimate:
    return total(parts, "; ".join(dict.fromkeys(part.source for part in parts if part.high)))


def _read(model: str) -> tuple[Architecture, StoredWeights | None]:
    """A drafter's architecture and stored weights. Raises FootprintError."""
    path = Path(model)
    if not os.path.exists(path):  # noqa: PTH110 - a name that is too long is none that exists
        raise FootprintError(
            f"--speculative-config: {model[:200]} does not exist here; name the drafter's folder"
        )
    file = path / "config.json" if path.is_dir() else path
    try:
        changed = file.stat().st_mtime_ns
    except OSError as error:
        raise FootprintError(f"--speculative-config: {file} cannot be read ({error.strerror})") from None
    return _read_once(path, file, changed)


@functools.lru_cache(maxsize=4)
def _read_once(path: Path, file: Path, changed: int) -> tuple[Architecture, StoredWeights | None]:  # noqa: ARG001 (part of the key)
    architecture = architecture_of_config(read_config(file), str(file))
    return architecture, stored_weights(path if path.is_dir() else path.parent, architecture)
