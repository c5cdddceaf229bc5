"""How long a model's context is, where rotary positions are scaled.

Rules: vLLM 0.32, config/model.py _get_and_verify_max_len, and transformers_utils/config.py for the names of
old files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from brimline.footprint.architecture import Architecture
from brimline.footprint.hf_settings import MAX_WIDTH

# Types whose max_position_embeddings is the scaled context already, so that their factor is not applied.
_SCALED_ALREADY = frozenset(
    {"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling", "telechat3-yarn"}
)


def with_scaled_context(architecture: Architecture, settings: Mapping[str, Any]) -> Architecture:
    """The architecture with the context that its rope scaling gives it. settings: of the text model."""
    longest = architecture.max_position
    if longest is None:
        return architecture
    yarn, usual, factor = None, None, 1.0
    for entry in _rope_entries(settings):
        kind = str(entry.get("rope_type") or entry.get("type") or "default")
        stated = entry.get("factor")
        scale = stated if isinstance(stated, int | float) and 0 < stated < 1 << 20 else 1.0
        original = _count(entry.get("original_max_position_embeddings"))
        if kind in ("yarn", "deepseek_yarn") and original is not None:
            yarn = min(int(original * scale), MAX_WIDTH)
        elif kind in ("longrope", "su"):
            usual = _count(settings.get("original_max_position_embeddings")) or original
        if kind not in _SCALED_ALREADY:
            factor = scale
    if "gemma3" not in architecture.model_type:  # its context is the scaled one, whatever the type
        longest = min(int(longest * factor), MAX_WIDTH)
    return replace(
        architecture,
        max_position=longest,
        yarn_position=yarn if yarn != longest else None,
        usual_position=usual if usual is not None and usual < longest else None,
    )


def _rope_entries(settings: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """rope_parameters or, in older files, rope_scaling; newer ones may have one for each kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        stated = settings.get(name)
        if not isinstance(stated, dict):
            continue
        nested = [entry for entry in stated.values() if isinstance(entry, dict)]
        if nested and len(nested) == len(stated):
            yield from nested
        else:
            yield stated
        return


def _count(value: object) -> int | None:
    return (
        value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_WIDTH else None
    )
