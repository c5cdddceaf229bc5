"""GGUF files: their metadata and their table of tensors, read from the header alone.

Format: ggml-org/ggml, docs/gguf.md (versions 2 and 3). Block sizes: gguf 0.19, constants.py GGML_QUANT_SIZES,
checked against ggml/src/ggml-common.h; Q8_1 is 36 bytes a block there (the Python table says 40).
"""

from __future__ import annotations

import math
import mmap
import os
import re
import stat
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from brimline.errors import FootprintError

# Arrays within arrays: GGUF allows any depth, models use none.
MAX_ARRAY_DEPTH = 4
MAX_ARRAY_LENGTH = 1 << 16
MAX_SKIPPED = 1 << 22
MAX_TENSORS = 1 << 20
MAX_DIMENSIONS = 8
MAX_SHARDS = 4096
MAX_TENSOR_ELEMENTS = 1 << 48

# Type number: name, elements of a block, bytes of a block.
GGML_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("f32", 1, 4), 1: ("f16", 1, 2), 30: ("bf16", 1, 2), 28: ("f64", 1, 8),
    24: ("i8", 1, 1), 25: ("i16", 1, 2), 26: ("i32", 1, 4), 27: ("i64", 1, 8),
    2: ("q4_0", 32, 18), 3: ("q4_1", 32, 20), 6: ("q5_0", 32, 22), 7: ("q5_1", 32, 24),
    8: ("q8_0", 32, 34), 9: ("q8_1", 32, 36),
    10: ("q2_k", 256, 84), 11: ("q3_k", 256, 110), 12: ("q4_k", 256, 144), 13: ("q5_k", 256, 176),
    14: ("q6_k", 256, 210), 15: ("q8_k", 256, 292),
    16: ("iq2_xxs", 256, 66), 17: ("iq2_xs", 256, 74), 18: ("iq3_xxs", 256, 98), 19: ("iq1_s", 256, 50),
    20: ("iq4_nl", 32, 18), 21: ("iq3_s", 256, 110), 22: ("iq2_s", 256, 82), 23: ("iq4_xs", 256, 136),
    29: ("iq1_m", 256, 56), 34: ("tq1_0", 256, 54), 35: ("tq2_0", 256, 66),
    39: ("mxfp4", 32, 17), 40: ("nvfp4", 64, 36), 41: ("q1_0", 128, 18),
}  # fmt: skip

# Bits of a weight, scales included, by the name of its type.
GGML_BITS: dict[str, Fraction] = {
    name: Fraction(8 * size, elements) for name, elements, size in GGML_TYPES.values()
}

_FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor. shape: the contiguous dimension first, as the file has it."""

    name: str
    shape: tuple[int, ...]
    type: str
    size_bytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Gguf:
    """What the header of a GGUF file says. metadata: without the contents of the tokenizer's lists."""

    metadata: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]


@dataclass(frozen=True, slots=True)
class GgufLayer:
    """Bytes of one layer. experts: of its routed experts. largest: of its largest tensor."""

    size: int
    experts: int
    largest: int


@dataclass(frozen=True, slots=True)
class GgufLayout:
    """Bytes of a GGUF by the place that llama.cpp gives them (src/llama-arch.cpp, LLM_TENSOR_INFOS).

    input: tables that tokens are looked up in, which stay in host memory; embedding: of them the one that a
    tied head is a copy of. output: the head and what else belongs to no layer. largest_output: its largest
    tensor. Layers beyond the model's own, which only a draft needs, are left out.
    """

    input: int
    embedding: int
    output: int
    largest_output: int
    tied: bool
    layers: tuple[GgufLayer, ...]


_OF_LAYER = re.compile(r"blk\.(\d+)\.")
_EXPERTS = re.compile(r"\.ffn_(?:up|down|gate|gate_up)_(?:ch|)exps")  # common/common.h, LLM_FFN_EXPS_REGEX
_INPUT = re.compile(r"(?:token_embd|position_embd|token_types|per_layer_token_embd)\.")


def layout_of_gguf(file: Gguf, layers: int) -> GgufLayout:
    """Where the bytes of a model with so many layers lie."""
    sizes: list[list[int]] = [[0, 0, 0] for _ in range(layers)]
    looked_up, embedding, output, largest = 0, 0, 0, 0
    for tensor in file.tensors:
        placed = _OF_LAYER.match(tensor.name)
        if placed is not None:
            if int(placed[1]) < layers:
                row = sizes[int(placed[1])]
                row[0] += tensor.size_bytes
                row[1] += tensor.size_bytes if _EXPERTS.search(tensor.name) else 0
                row[2] = max(row[2], tensor.size_bytes)
        elif _INPUT.match(tensor.name):
            looked_up += tensor.size_bytes
            if tensor.name == "token_embd.weight":
                embedding = tensor.size_bytes
        else:
            output += tensor.size_bytes
            largest = max(largest, tensor.size_bytes)
    return GgufLayout(
        input=looked_up,
        embedding=embedding,
        output=output,
        largest_output=largest,
        tied=all(tensor.name != "output.weight" for tensor in file.tensors),
        layers=tuple(GgufLayer(*row) for row in sizes),
    )


class _Cursor:
    def __init__(self, data: mmap.mmap | bytes, name: str) -> None:
        self.data, self.at, self.name = data, 0, name

    def take(self, code: str) -> Any:
        size = struct.calcsize("<" + code)
        if self.at + size > len(self.data):
            raise FootprintError(f"{self.name} ends within its header")
        [value] = struct.unpack_from("<" + code, self.data, self.at)
        self.at += size
        return value

    def skip(self, length: int) -> None:
        if length > len(self.data) - self.at:
            raise FootprintError(f"{self.name} ends within its header")
        self.at += length

    def text(self) -> str:
        start = self.at + 8
        self.skip(self.take("Q"))
        return self.data[start : self.at].decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _FIXED:
            return self.take(_FIXED[kind])
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            start = self.at
            item, length = self.array(depth)
            if length > MAX_ARRAY_LENGTH:
                # No setting of a model is a list as long as that; and the file may come from anybody.
                self.at = start
                self.skip_value(_ARRAY, depth)
                return None
            return [self.value(item, depth + 1) for _ in range(length)]
        raise FootprintError(f"{self.name} holds a value of unknown type {kind}")

    def array(self, depth: int) -> tuple[int, int]:
        item, length = self.take("I"), self.take("Q")
        if length > len(self.data):
            raise FootprintError(f"{self.name} ends within its header")
        if depth >= MAX_ARRAY_DEPTH:
            raise FootprintError(f"{self.name} nests arrays too deep")
        return item, length

    def skip_value(self, kind: int, depth: int = 0) -> int | None:
        """Passes over a value; the length of a list, None for anything else."""
        if kind in _FIXED:
            self.skip(struct.calcsize(_FIXED[kind]))
        elif kind == _STRING:
            self.skip(self.take("Q"))
        elif kind == _ARRAY:
            item, length = self.array(depth)
            if item in _FIXED:
                self.skip(length * struct.calcsize(_FIXED[item]))
            elif length > MAX_SKIPPED:
                raise FootprintError(f"{self.name} holds a list of {length} values")
            else:
                for _ in range(length):
                    self.skip_value(item, depth + 1)
            return length
        else:
            raise FootprintError(f"{self.name} holds a value of unknown type {kind}")
        return None


_Read = TypeVar("_Read")


def _mapped(path: Path, parse: Callable[[mmap.mmap, str], _Read]) -> _Read:
    try:
        # Non-blocking: a FIFO must not hang us.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise FootprintError(f"{path} is not a regular file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return parse(data, str(path))
    except (OSError, ValueError) as error:
        raise FootprintError(f"{path} cannot be read ({error})") from None


def read_gguf(path: Path) -> Gguf:
    """Metadata and tensors of a GGUF file, and of its other parts where it is one of several.

    Lists of the tokenizer are read over; `tokenizer.ggml.tokens` becomes their number. Parts are named
    NAME-00001-of-00003.gguf (llama.cpp, llama_split_path); the metadata stand in the first.
    Raises FootprintError.
    """
    first = _mapped(path, _parse_gguf)
    count = first.metadata.get("split.count", 0)
    if not isinstance(count, int) or isinstance(count, bool) or count <= 1:
        return first
    if count > MAX_SHARDS:
        raise FootprintError(f"{path} says it is one of {count} parts, more than {MAX_SHARDS}")
    stem, dash, numbers = path.stem.rpartition("-of-")
    prefix, number = stem[:-5], stem[-5:]
    if not (dash and number.isdigit() and numbers == f"{count:05d}"):
        raise FootprintError(
            f"{path} is one of {count} parts, but is not named NAME-00001-of-{count:05d}.gguf"
        )
    parts = [
        _mapped(path.with_name(f"{prefix}{index:05d}-of-{count:05d}.gguf"), _parse_gguf)
        for index in range(1, count + 1)
    ]
    return Gguf(parts[0].metadata, tuple(tensor for part in parts for tensor in part.tensors))


def _head(data: mmap.mmap | bytes, name: str) -> tuple[_Cursor, int, int]:
    """A cursor behind the magic and the version, the number of tensors and of metadata."""
    cursor = _Cursor(data, name)
    if bytes(data[:4]) != b"GGUF":
        raise FootprintError(f"{name} is not a GGUF file")
    cursor.at = 4
    version = cursor.take("I")
    if version not in (2, 3):
        raise FootprintError(f"{name} is GGUF version {version}; versions 2 and 3 are read")
    return cursor, cursor.take("Q"), cursor.take("Q")


def _parse_gguf(data: mmap.mmap | bytes, name: str) -> Gguf:
    cursor, count, entries = _head(data, name)
    if count > MAX_TENSORS:
        raise FootprintError(f"{name} claims {count} tensors, more than {MAX_TENSORS}")
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        key = cursor.text()
        kind = cursor.take("I")
        if key.startswith("tokenizer."):
            length = cursor.skip_value(kind)
            if length is not None:
                metadata[key] = length
        else:
            metadata[key] = cursor.value(kind)
    return Gguf(metadata, tuple(_tensor(cursor) for _ in range(count)))


def _tensor(cursor: _Cursor) -> GgufTensor:
    tensor, dimensions = cursor.text(), cursor.take("I")
    if dimensions > MAX_DIMENSIONS:
        raise FootprintError(f"{cursor.name}: {tensor[:80]!r} has {dimensions} dimensions")
    shape = tuple(cursor.take("Q") for _ in range(dimensions))
    kind = cursor.take("I")
    cursor.take("Q")  # where it lies
    if kind not in GGML_TYPES:
        raise FootprintError(f"{cursor.name}: {tensor[:80]!r} is of type {kind}, which is not known here")
    name, elements, size = GGML_TYPES[kind]
    total = math.prod(shape)
    if total > MAX_TENSOR_ELEMENTS or (shape and shape[0] % elements):
        raise FootprintError(f"{cursor.name}: {tensor[:80]!r} has no shape that {name} can have")
    return GgufTensor(tensor, shape, name, total // elements * size)


# --- The settings of a model, under the names of config.json

# general.architecture (llama.cpp, llama-arch.cpp) to model_type.
_MODEL_TYPES = {
    "llama": "llama", "llama4": "llama4_text", "qwen2": "qwen2", "qwen2moe": "qwen2_moe", "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe", "qwen3next": "qwen3_next", "qwen2vl": "qwen2", "qwen3vl": "qwen3",
    "qwen35": "qwen3_5_text", "qwen35moe": "qwen3_5_moe_text",
    "gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3_text", "gemma3n": "gemma3n_text",
    "phi2": "phi", "phi3": "phi3", "phimoe": "phimoe", "gpt2": "gpt2", "gptneox": "gpt_neox",
    "gptj": "gptj", "bloom": "bloom", "falcon": "falcon", "mpt": "mpt", "starcoder": "gpt_bigcode",
    "starcoder2": "starcoder2", "stablelm": "stablelm", "olmo": "olmo", "olmo2": "olmo2", "olmoe": "olmoe",
    "command-r": "cohere", "cohere2": "cohere2", "deepseek2": "deepseek_v2", "glm4": "glm4",
    "glm4moe": "glm4_moe", "gpt-oss": "gpt_oss", "granite": "granite", "granitemoe": "granitemoe",
    "nemotron": "nemotron", "exaone4": "exaone4", "jamba": "jamba", "mamba": "mamba", "mamba2": "mamba2",
    "minimax-m2": "minimax_m2", "smollm3": "smollm3", "ernie4_5": "ernie4_5",
    "ernie4_5-moe": "ernie4_5_moe", "seed_oss": "seed_oss", "apertus": "apertus", "arcee": "arcee",
}  # fmt: skip

_NAMES = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attention.chunk_size": "attention_chunk_size",
    "attention.kv_lora_rank": "kv_lora_rank",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.shared_kv_layers": "num_kv_shared_layers",
    "feed_forward_length": "intermediate_size",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_shared_count": "n_shared_experts",
    "leading_dense_block_count": "first_k_dense_replace",
    "context_length": "max_position_embeddings",
    "full_attention_interval": "full_attention_interval",
    "ssm.conv_kernel": "mamba_d_conv",
    "ssm.state_size": "mamba_d_state",
}


def settings_of_gguf(file: Gguf, source: str) -> dict[str, Any]:
    """The settings of a GGUF header under the names of a Hugging Face config.json.

    Raises FootprintError where the header does not say what is needed.
    """
    metadata = file.metadata
    family = metadata.get("general.architecture")
    if not isinstance(family, str):
        raise FootprintError(f"{source}: general.architecture is missing")
    settings: dict[str, Any] = {"model_type": _MODEL_TYPES.get(family, family)}
    for name, translated in _NAMES.items():
        value = metadata.get(f"{family}.{name}")
        if value is not None:
            settings[translated] = value
    if family == "llama" and settings.get("num_experts"):
        settings["model_type"] = "mixtral"
    drafts = metadata.get(f"{family}.nextn_predict_layers")
    if isinstance(drafts, int) and isinstance(settings.get("num_hidden_layers"), int):
        # llama.cpp counts the layers that only predict further tokens as blocks (src/llama-hparams.cpp).
        settings["num_nextn_predict_layers"] = drafts
        settings["num_hidden_layers"] -= drafts
        for name, value in settings.items():
            if isinstance(value, list):
                settings[name] = value[: settings["num_hidden_layers"]]
    _unlist(settings)
    if settings.get("kv_lora_rank"):
        _latent_settings(settings, metadata, family)
    if family in ("qwen3next", "qwen35", "qwen35moe"):
        _delta_net_settings(settings, metadata, family)
    if family in ("mamba", "mamba2", "jamba"):
        _state_space_settings(settings, metadata, family)
    pattern = metadata.get(f"{family}.attention.sliding_window_pattern")
    if isinstance(pattern, list):
        kinds = ["sliding_attention" if each else "full_attention" for each in pattern]
        settings["layer_types"] = kinds[: settings.get("num_hidden_layers")]
    names = {tensor.name for tensor in file.tensors}
    embedding = next((t for t in file.tensors if t.name == "token_embd.weight"), None)
    tokens = metadata.get(f"{family}.vocab_size") or metadata.get("tokenizer.ggml.tokens")
    settings["vocab_size"] = embedding.shape[-1] if embedding and len(embedding.shape) == 2 else tokens
    if names:
        settings["tie_word_embeddings"] = "output.weight" not in names
        settings["attention_bias"] = "blk.0.attn_q.bias" in names
    return settings


def _unlist(settings: dict[str, Any]) -> None:
    """Values listed for each layer: one where all agree; otherwise what each layer has of its own."""
    own: dict[str, dict[str, Any]] = {}
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        listed = settings.get(name)
        if not isinstance(listed, list) or not listed:
            continue
        numbers = [each for each in listed if isinstance(each, int) and each > 0]
        if name == "intermediate_size" and len(set(listed)) > 1:
            continue  # the reader of config.json takes lists of widths
        settings[name] = max(numbers, default=0) or None
        if name == "num_key_value_heads" and 0 in listed:
            kinds = ["full_attention" if each else "linear_attention" for each in listed]
            settings["layer_types"] = kinds
        if len(set(numbers)) > 1:
            for index, each in enumerate(listed):
                own.setdefault(str(index), {})[name] = each
    if own:
        settings["per_layer_config"] = own


def _latent_settings(settings: dict[str, Any], metadata: Mapping[str, Any], family: str) -> None:
    """MLA: the widths of a head's key and value stand apart from those of the cache (llama.cpp 2025 on)."""
    rope = metadata.get(f"{family}.rope.dimension_count")
    key = metadata.get(f"{family}.attention.key_length_mla", metadata.get(f"{family}.attention.key_length"))
    value = metadata.get(
        f"{family}.attention.value_length_mla", metadata.get(f"{family}.attention.value_length")
    )
    settings.update(num_key_value_heads=None, head_dim=None, qk_rope_head_dim=rope, v_head_dim=value)
    if isinstance(rope, int) and isinstance(key, int):
        settings["qk_nope_head_dim"] = key - rope


def _delta_net_settings(settings: dict[str, Any], metadata: Mapping[str, Any], family: str) -> None:
    """Gated delta nets stand under ssm.*: groups are key heads, time_step_rank the value heads."""
    inner, heads = metadata.get(f"{family}.ssm.inner_size"), metadata.get(f"{family}.ssm.time_step_rank")
    settings["linear_num_key_heads"] = metadata.get(f"{family}.ssm.group_count")
    settings["linear_num_value_heads"] = heads
    settings["linear_key_head_dim"] = metadata.get(f"{family}.ssm.state_size")
    settings["linear_conv_kernel_dim"] = metadata.get(f"{family}.ssm.conv_kernel")
    if isinstance(inner, int) and isinstance(heads, int) and heads:
        settings["linear_value_head_dim"] = inner // heads


def _state_space_settings(settings: dict[str, Any], metadata: Mapping[str, Any], family: str) -> None:
    inner, rank = metadata.get(f"{family}.ssm.inner_size"), metadata.get(f"{family}.ssm.time_step_rank")
    hidden = settings.get("hidden_size")
    if family == "mamba2":
        settings["n_groups"] = metadata.get(f"{family}.ssm.group_count")
        settings["mamba_n_heads"] = rank  # llama.cpp keeps the number of heads there
        if isinstance(inner, int) and isinstance(rank, int) and rank:
            settings["mamba_d_head"] = inner // rank
    else:
        settings["mamba_dt_rank"] = rank
    if isinstance(inner, int) and isinstance(hidden, int) and hidden:
        settings["mamba_expand"] = inner // hidden
    if family != "jamba":
        settings["intermediate_size"] = inner
