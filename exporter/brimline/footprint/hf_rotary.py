"""The tables of rotary positions that a model's settings ask for.

vLLM keeps the cosines and sines of every position in a table on each GPU: one for each kind of rotation that
its layers name, whatever --max-model-len is. Rules: vLLM 0.19, model_executor/layers/rotary_embedding
(get_rope and the classes that it chooses among) and what each of model_executor/models/*.py asks it for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from brimline.footprint.architecture import Attention, LatentAttention, Layer, RotaryTable
from brimline.footprint.hf_settings import MAX_WIDTH, POSITIONS_NAMES, Settings

# Without rotations: learned positions, ALiBi, or none at all.
_NONE = frozenset(
    {
        "bloom", "falcon_mamba", "gpt2", "gpt_bigcode", "gpt_neo", "jamba", "kimi_linear", "mamba", "mamba2",
        "mpt", "nemotron_h", "opt",
    }
)  # fmt: skip
# Its tables depend on --max-model-len too (minimax_text_01.py).
_UNKNOWN = frozenset({"minimax"})
# Parts of a head that are rotated where the settings do not say (each family's configuration class in
# transformers, and in vLLM chatglm.py, glm.py, glm4.py).
_PARTIAL = {
    "chatglm": 0.5, "gpt_neox": 0.25, "glm": 0.5, "glm4": 0.5, "glm4_moe": 0.5, "nemotron": 0.5,
    "persimmon": 0.5, "phi": 0.5, "qwen3_next": 0.25, "qwen3_5_text": 0.25, "qwen3_5_moe_text": 0.25,
    "stablelm": 0.25,
}  # fmt: skip
# Elements of a head that are rotated, by the setting that says so (gpt_j.py, minimax_m2.py, bamba.py,
# falcon_h1.py).
_ELEMENTS = {
    "gptj": "rotary_dim", "codegen": "rotary_dim", "minimax_m2": "rotary_dim", "bamba": "attn_rotary_emb",
    "falcon_h1": "attn_rotary_emb",
}  # fmt: skip
# Layers with a window rotate by a base of their own, unscaled (gemma3.py, gemma3n.py, olmo2.py,
# mimo_v2_flash.py), where no entry of rope_parameters is theirs.
_OWN_IN_WINDOWS = frozenset({"gemma3_text", "gemma3n_text", "olmo3", "mimo_v2_flash"})
# Kept in 32 bits, whatever the model's type is (gpt_oss.py).
_WIDE = {"gpt_oss": 4}

_YARN = frozenset({"yarn", "deepseek_yarn", "deepseek_llama_scaling"})
_AS_LONG_AS_STATED = frozenset({"default", "mrope", "llama3", "ntk", "xdrope", "proportional"})


def rotary_tables(name: str, config: Settings, layers: Iterable[Layer]) -> tuple[RotaryTable, ...] | None:
    """The tables of a family; None where its settings do not tell how long they are.

    Raises FootprintError for a setting that makes no sense.
    """
    if name in _NONE or _has_none(name, config):
        return ()
    longest = config.optional("model_max_length", *POSITIONS_NAMES) if name.startswith("cohere") else None
    longest = longest or config.optional(*POSITIONS_NAMES)
    if longest is None or name in _UNKNOWN:
        return None
    found: dict[tuple[object, ...], RotaryTable] = {}
    for layer in dict.fromkeys(layers):
        for mixer in layer.mixers:
            if not isinstance(mixer, Attention | LatentAttention):
                continue
            windowed = isinstance(mixer, Attention) and (mixer.window or mixer.chunk) is not None
            which, entry = _entry(name, config, windowed=windowed)
            rows, width = _rows(entry, config, longest), _width(name, config, entry, mixer)
            if rows is None:
                return None
            table = RotaryTable(
                rows=rows,
                width=width,
                element_bytes=_WIDE.get(name),
                sections="mrope_section" in entry,
            )
            found[which, width] = table
            # The indexer of sparse attention turns its keys the other way round (deepseek_v2.py).
            if isinstance(mixer, LatentAttention) and mixer.index_heads is not None:
                found["indexer", width] = table
    return tuple(found.values())


def _has_none(name: str, config: Settings) -> bool:
    match name:
        case "falcon":
            return config.flag("alibi")
        case "zamba2":
            return not config.get("use_mem_rope")
        case "granitemoehybrid":
            return str(config.get("position_embedding_type")) != "rope"
        case "olmo_hybrid":
            stated = config.get("rope_parameters")
            return not stated or (isinstance(stated, dict) and stated.get("rope_theta", 1) is None)
    return False


def _entry(name: str, config: Settings, *, windowed: bool) -> tuple[str, Mapping[str, Any]]:
    """What the settings say of the rotation of one kind of layer, and which kind it is of; `` is all."""
    kind = "sliding_attention" if windowed else "full_attention"
    for key in ("rope_parameters", "rope_scaling"):
        stated = config.get(key)
        if not isinstance(stated, dict):
            continue
        if stated and all(isinstance(each, dict) for each in stated.values()):
            return kind, stated.get(kind) or {}
        if windowed and name in _OWN_IN_WINDOWS:
            return kind, {}
        return "", stated
    return (kind if name in _OWN_IN_WINDOWS else ""), {}


def _rows(entry: Mapping[str, Any], config: Settings, longest: int) -> int | None:
    """Positions of the table of one rotation; None for a kind that is not known here."""
    kind = str(entry.get("rope_type") or entry.get("type") or "default")
    stated = entry.get("factor")
    is_number = isinstance(stated, int | float) and not isinstance(stated, bool)
    factor = float(stated) if is_number and 0 < stated < 1 << 20 else 1.0  # type: ignore[operator, arg-type]
    original = entry.get("original_max_position_embeddings")
    if original is None:
        original = config.get("original_max_position_embeddings")
    if not isinstance(original, int) or isinstance(original, bool) or not 0 < original <= MAX_WIDTH:
        original = longest
    if kind in _AS_LONG_AS_STATED or (kind == "dynamic" and "alpha" in entry):
        rows = longest
    elif kind in ("linear", "dynamic"):
        rows = math.ceil(longest * factor)
    elif kind in _YARN:
        rows = math.ceil(original * factor)
    elif kind in ("longrope", "su"):
        rows = original + longest  # one for short contexts, one for long ones
    else:
        return None
    return min(rows, MAX_WIDTH)


def _width(name: str, config: Settings, entry: Mapping[str, Any], mixer: Attention | LatentAttention) -> int:
    """Cosines and sines of one position: as many as a head has rotated elements."""
    if isinstance(mixer, LatentAttention):
        return mixer.rope_dim
    if name in _ELEMENTS and (elements := config.optional(_ELEMENTS[name])):
        return min(elements, mixer.key_dim)
    if entry.get("rope_type") == "proportional":  # the rest of the head is turned by nothing (gemma4_rope.py)
        return mixer.key_dim
    part = entry.get("partial_rotary_factor")
    if part is None:
        part = config.get("partial_rotary_factor", "rotary_pct", "rotary_emb_fraction")
    if not isinstance(part, int | float) or isinstance(part, bool) or not 0 < part <= 1:
        part = _PARTIAL.get(name, 1.0)
    return int(mixer.key_dim * part)
