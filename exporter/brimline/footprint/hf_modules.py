"""Names of modules, as files of many families write them, in the words that weights are counted under.

weights.py calls a module `model.layers.3.self_attn.q_proj`, whatever the checkpoint calls it. Lists of
modules that are (or are not) quantized are translated to those words once, when they are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# What stands before `layers.` where a text model is part of another, or of an older family.
_WRAPPERS = (
    "model.language_model.model.", "language_model.model.", "model.language_model.", "language_model.",
    "model.text_model.", "text_model.model.", "thinker.model.", "backbone.", "transformer.", "model.decoder.",
    "decoder.", "llm.model.", "llm.",
)  # fmt: skip
_SENSES = re.compile(r"vision|visual|audio|vit\b|speech|image|^mm_|projector")

_SEGMENTS = {
    "feed_forward": "mlp", "block_sparse_moe": "mlp", "ffn": "mlp", "moe": "mlp",
    "self_attention": "self_attn", "attention": "self_attn", "attn": "self_attn",
    "shared_expert": "shared_experts", "shared_mlp": "shared_experts",
}  # fmt: skip
# The last word of a name, to the words that are counted.
_PROJECTIONS = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"), "query_key_value": ("q_proj", "k_proj", "v_proj"),
    "qkv": ("q_proj", "k_proj", "v_proj"), "W_pack": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"), "w1": ("gate_proj",), "w3": ("up_proj",), "w2": ("down_proj",),
    "w13": ("gate_proj", "up_proj"), "fc1": ("up_proj",), "fc2": ("down_proj",),
    "dense_h_to_4h": ("up_proj",), "dense_4h_to_h": ("down_proj",),
    "in_proj_qkv": ("in_proj_qkvz",), "in_proj_z": ("in_proj_qkvz",), "in_proj_b": ("in_proj_ba",),
    "in_proj_a": ("in_proj_ba",),
}  # fmt: skip
# Nemotron-H calls everything a mixer.
_MIXED = {
    **dict.fromkeys(("in_proj", "out_proj", "conv1d"), "mamba"),
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj"), "self_attn"),
}  # fmt: skip
_EXPERT_UPS = ("gate_proj", "up_proj", "w1", "w3", "w13", "gate_up_proj")


def module_names(stated: Iterable[str]) -> tuple[str, ...]:
    """The names and patterns in the words of weights.py, each once, in their order."""
    return tuple(dict.fromkeys(name for entry in stated for name in _translated(entry)))


def _translated(entry: str) -> Iterator[str]:
    if entry.startswith("re:"):
        yield _regular(entry)
        return
    before, _, _ = entry.partition("layers.")
    if _SENSES.search(before):
        yield entry
        return
    for wrapper in _WRAPPERS:
        if entry.startswith((f"{wrapper}layers.", f"{wrapper}*")):
            entry = f"model.{entry.removeprefix(wrapper)}"
            break
    yield from _segments(entry.split("."))


def _segments(words: list[str]) -> Iterator[str]:
    words = [_SEGMENTS.get(word, word) for word in words]
    if "experts" in words[:-1]:
        place = words.index("experts")
        if words[place + 1].isdigit() or words[place + 1] == "*":
            del words[place + 1]
        if words[-1] in _EXPERT_UPS:
            yield ".".join((*words[:-1], "gate_up_proj"))
            yield ".".join((*words[:-1], "up_proj"))
            return
    if "mixer" in words:
        place = words.index("mixer")
        kinds = (_MIXED.get(words[-1], "mlp"),) if words[-1] != "mixer" else ("mamba", "self_attn", "mlp")
        for kind in kinds:
            yield from _segments([*words[:place], kind, *words[place + 1 :]])
        return
    for last in _PROJECTIONS.get(words[-1], (words[-1],)):
        yield ".".join((*words[:-1], last))


def _regular(entry: str) -> str:
    """A regular expression, with the same words within it; dots may be escaped."""
    for wrapper in _WRAPPERS:
        escaped = wrapper.replace(".", r"\.")
        for written in (escaped, wrapper):
            if entry.removeprefix("re:").removeprefix("^").startswith(f"{written}layers"):
                entry = f"re:model.{entry.removeprefix('re:').removeprefix('^').removeprefix(written)}"
                break
    entry = re.sub(r"\b(?:feed_forward|block_sparse_moe)\b", "mlp", entry)
    entry = re.sub(r"\bself_attention\b", "self_attn", entry)
    return re.sub(r"\bshared_expert\b(?!s)", "shared_experts", entry)
