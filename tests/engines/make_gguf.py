"""Write a GGUF that llama.cpp serves: make_gguf.py FILE [SHAPE [NAME=NUMBER ...]].

Runs in the engine's own environment. Without a shape, or as `llama`: a tiny random Llama with 8 layers, 4
query heads and 2 KV heads of 128, where one token of KV cache is 2 · 8 · 2 · 128 · 2 bytes = 8192 bytes at
f16. Large enough to spend some milliseconds on a token, so that its work can be watched.

The other shapes are there for the buffers that llama.cpp makes of them. Their weights are zeros that take no
room on disk. NAME=NUMBER changes one size of a shape, such as layers=2.
"""

import os
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path

import gguf
import numpy as np

Tensor = tuple[str, tuple[int, ...]]

LLAMA = {
    "layers": 8, "width": 512, "heads": 4, "kv_heads": 2, "head": 128, "feed_forward": 1024,
    "context": 8192, "vocabulary": 264,
}  # fmt: skip
MIDDLE = LLAMA | {
    "layers": 4, "width": 1024, "heads": 16, "kv_heads": 4, "head": 64, "feed_forward": 3584,
    "vocabulary": 32000,
}  # fmt: skip

# Architecture of llama.cpp, type of the matrices, sizes. `tied`: there is no output head.
SHAPES: dict[str, tuple[str, str, dict[str, int]]] = {
    "llama": ("llama", "F32", LLAMA),
    "dense": ("llama", "F16", MIDDLE),
    "dense-q8_0": ("llama", "Q8_0", MIDDLE | {"tied": 1}),
    "window": (
        "gemma3",
        "F16",
        MIDDLE | {"layers": 6, "head": 256, "heads": 4, "kv_heads": 2, "window": 512, "tied": 1},
    ),
    "experts": ("qwen3moe", "F16", MIDDLE | {"experts": 16, "experts_used": 4, "feed_forward": 384}),
    "latent": (
        "deepseek2",
        "F16",
        MIDDLE | {
            "latent": 512, "rope": 64, "key": 192, "value": 128, "query_latent": 384, "experts": 8,
            "experts_used": 2, "expert_width": 256, "dense": 1,
        },
    ),
    "state": (
        "mamba2",
        "F16",
        MIDDLE | {"inner": 2048, "states": 128, "groups": 1, "conv": 4, "state_heads": 32, "tied": 1},
    ),
    "hybrid": (
        "qwen3next",
        "F16",
        MIDDLE | {
            "layers": 8, "head": 128, "heads": 8, "kv_heads": 2, "inner": 2048, "states": 128, "groups": 8,
            "conv": 4, "state_heads": 16, "experts": 8, "experts_used": 2, "expert_width": 256, "interval": 4,
        },
    ),
    "jamba": (
        "jamba",
        "F16",
        MIDDLE | {
            "layers": 8, "inner": 2048, "states": 16, "conv": 4, "state_heads": 64, "experts": 4,
            "experts_used": 2, "period": 4,
        },
    ),
    "sinks": (
        "gpt-oss",
        "F16",
        MIDDLE | {"window": 128, "experts": 8, "experts_used": 4, "feed_forward": 1024},
    ),
}  # fmt: skip


def attention(block: str, size: dict[str, int], gate: int = 1) -> Iterator[Tensor]:
    width, head = size["width"], size["head"]
    yield block + "attn_q.weight", (gate * size["heads"] * head, width)
    yield block + "attn_k.weight", (size["kv_heads"] * head, width)
    yield block + "attn_v.weight", (size["kv_heads"] * head, width)
    yield block + "attn_output.weight", (width, size["heads"] * head)


def feed_forward(block: str, width: int, inner: int, suffix: str = "") -> Iterator[Tensor]:
    yield block + f"ffn_gate{suffix}.weight", (inner, width)
    yield block + f"ffn_up{suffix}.weight", (inner, width)
    yield block + f"ffn_down{suffix}.weight", (width, inner)


def experts(block: str, width: int, inner: int, count: int) -> Iterator[Tensor]:
    yield block + "ffn_gate_inp.weight", (count, width)
    for name, (rows, columns) in feed_forward(block, width, inner, "_exps"):
        yield name, (count, rows, columns)


def norms(block: str, **elements: int) -> Iterator[Tensor]:
    for name, count in elements.items():
        yield f"{block}{name}.weight", (count,)


def layer(family: str, index: int, size: dict[str, int]) -> Iterator[Tensor]:
    """The tensors of a layer, as llama.cpp's src/models/*.cpp load them."""
    block, width, inner = f"blk.{index}.", size["width"], size["feed_forward"]
    yield from norms(block, attn_norm=width)
    if family in ("llama", "gemma3", "qwen3moe", "gpt-oss"):
        yield from attention(block, size)
    if family in ("gemma3", "qwen3moe"):
        yield from norms(block, attn_q_norm=size["head"], attn_k_norm=size["head"])
    match family:
        case "llama":
            yield from norms(block, ffn_norm=width)
            yield from feed_forward(block, width, inner)
        case "gemma3":
            yield from norms(block, post_attention_norm=width, ffn_norm=width, post_ffw_norm=width)
            yield from feed_forward(block, width, inner)
        case "qwen3moe":
            yield from norms(block, ffn_norm=width)
            yield from experts(block, width, inner, size["experts"])
        case "gpt-oss":
            yield from norms(block, post_attention_norm=width)
            count = size["experts"]
            yield block + "attn_sinks.weight", (size["heads"],)
            yield block + "attn_output.bias", (width,)
            for name, heads in (("q", "heads"), ("k", "kv_heads"), ("v", "kv_heads")):
                yield block + f"attn_{name}.bias", (size[heads] * size["head"],)
            yield from experts(block, width, inner, count)
            yield block + "ffn_gate_inp.bias", (count,)
            for name, rows in (("gate", inner), ("up", inner), ("down", width)):
                yield block + f"ffn_{name}_exps.bias", (count, rows)
        case "deepseek2":
            yield from latent(block, size)
            yield from norms(block, ffn_norm=width)
            if index < size["dense"]:
                yield from feed_forward(block, width, inner)
            else:
                yield from experts(block, width, size["expert_width"], size["experts"])
                yield from feed_forward(block, width, size["expert_width"], "_shexp")
        case "mamba2":
            yield from mamba2(block, size)
        case "qwen3next":
            yield from norms(block, post_attention_norm=width)
            if (index + 1) % size["interval"]:
                yield from delta_net(block, size)
            else:
                yield from attention(block, size, gate=2)
                yield from norms(block, attn_q_norm=size["head"], attn_k_norm=size["head"])
            yield from experts(block, width, size["expert_width"], size["experts"])
            yield block + "ffn_gate_inp_shexp.weight", (width,)
            yield from feed_forward(block, width, size["expert_width"], "_shexp")
        case "jamba":
            if index % size["period"]:
                yield from mamba1(block, size)
            else:
                yield from attention(block, size)
            yield from norms(block, ffn_norm=width)
            if index % 2:
                yield from experts(block, width, inner, size["experts"])
            else:
                yield from feed_forward(block, width, inner)


def latent(block: str, size: dict[str, int]) -> Iterator[Tensor]:
    width, heads, rank, nope = size["width"], size["heads"], size["latent"], size["key"] - size["rope"]
    yield block + "attn_q_a.weight", (size["query_latent"], width)
    yield block + "attn_q_b.weight", (heads * size["key"], size["query_latent"])
    yield from norms(block, attn_q_a_norm=size["query_latent"], attn_kv_a_norm=rank)
    yield block + "attn_kv_a_mqa.weight", (rank + size["rope"], width)
    yield block + "attn_k_b.weight", (heads, rank, nope)
    yield block + "attn_v_b.weight", (heads, size["value"], rank)
    yield block + "attn_output.weight", (width, heads * size["value"])


def mamba1(block: str, size: dict[str, int]) -> Iterator[Tensor]:
    width, inner, states, rank = size["width"], size["inner"], size["states"], size["state_heads"]
    yield block + "ssm_in.weight", (2 * inner, width)
    yield block + "ssm_conv1d.weight", (inner, size["conv"])
    yield block + "ssm_conv1d.bias", (inner,)
    yield block + "ssm_x.weight", (rank + 2 * states, inner)
    yield from norms(block, ssm_dt_norm=rank, ssm_b_norm=states, ssm_c_norm=states)
    yield block + "ssm_dt.weight", (inner, rank)
    yield block + "ssm_dt.bias", (inner,)
    yield block + "ssm_a", (inner, states)
    yield block + "ssm_d", (inner,)
    yield block + "ssm_out.weight", (width, inner)


def mamba2(block: str, size: dict[str, int]) -> Iterator[Tensor]:
    width, inner, heads, groups = size["width"], size["inner"], size["state_heads"], size["groups"]
    mixed = inner + 2 * groups * size["states"]
    yield block + "ssm_in.weight", (inner + mixed + heads, width)
    yield block + "ssm_conv1d.weight", (mixed, size["conv"])
    yield block + "ssm_conv1d.bias", (mixed,)
    yield block + "ssm_dt.bias", (heads,)
    yield block + "ssm_a", (heads, 1)
    yield block + "ssm_d", (heads, 1)
    yield block + "ssm_norm.weight", (groups, inner // groups)
    yield block + "ssm_out.weight", (width, inner)


def delta_net(block: str, size: dict[str, int]) -> Iterator[Tensor]:
    width, heads, keys = size["width"], size["state_heads"], size["groups"] * size["states"]
    values = heads * size["states"]
    yield block + "attn_qkv.weight", (2 * keys + values, width)
    yield block + "attn_gate.weight", (values, width)
    yield block + "ssm_conv1d.weight", (2 * keys + values, size["conv"])
    yield block + "ssm_dt.bias", (heads,)
    yield block + "ssm_a", (heads,)
    yield block + "ssm_ba.weight", (2 * heads, width)
    yield from norms(block, ssm_norm=size["states"])
    yield block + "ssm_out.weight", (width, values)


def tensors(family: str, size: dict[str, int]) -> Iterator[Tensor]:
    """Names and shapes, rows first."""
    yield "token_embd.weight", (size["vocabulary"], size["width"])
    yield "output_norm.weight", (size["width"],)
    if not size.get("tied"):
        yield "output.weight", (size["vocabulary"], size["width"])
    for index in range(size["layers"]):
        yield from layer(family, index, size)


def metadata(writer: gguf.GGUFWriter, family: str, size: dict[str, int]) -> None:
    writer.add_name("brimline-tiny")
    writer.add_context_length(size["context"])
    writer.add_embedding_length(size["width"])
    writer.add_block_count(size["layers"])
    writer.add_feed_forward_length(0 if family == "mamba2" else size["feed_forward"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    attends = family != "mamba2"
    if attends:
        writer.add_head_count(size["heads"])
        writer.add_rope_dimension_count(size.get("rope", size["head"]))
    if family == "jamba":
        writer.add_head_count_kv(
            [0 if n % size["period"] else size["kv_heads"] for n in range(size["layers"])]
        )
    elif family == "deepseek2":
        writer.add_head_count_kv(1)
        writer.add_key_length(size["latent"] + size["rope"])
        writer.add_value_length(size["latent"])
        writer.add_key_length_mla(size["key"])
        writer.add_value_length_mla(size["value"])
        writer.add_kv_lora_rank(size["latent"])
        writer.add_q_lora_rank(size["query_latent"])
        writer.add_leading_dense_block_count(size["dense"])
        writer.add_expert_shared_count(1)
    elif attends:
        writer.add_head_count_kv(size["kv_heads"])
        writer.add_key_length(size["head"])
        writer.add_value_length(size["head"])
    if "window" in size:
        writer.add_sliding_window(size["window"])
    if "experts" in size:
        writer.add_expert_count(size["experts"])
        writer.add_expert_used_count(size["experts_used"])
        if family != "jamba":
            writer.add_expert_feed_forward_length(size.get("expert_width", size["feed_forward"]))
        if family == "qwen3next":
            writer.add_expert_shared_feed_forward_length(size["expert_width"])
    if "inner" in size:
        writer.add_ssm_inner_size(size["inner"])
        writer.add_ssm_state_size(size["states"])
        writer.add_ssm_conv_kernel(size["conv"])
        writer.add_ssm_time_step_rank(size["state_heads"])
        if "groups" in size:
            writer.add_ssm_group_count(size["groups"])
    tokenizer(writer, size["vocabulary"])


def tokenizer(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += ["▁", "a", "b", "▁a", "▁b"]
    types = [2, 3, 3] + [6] * 256 + [1] * 5
    more = vocabulary - len(tokens)
    tokens += [f"▁w{number}" for number in range(more)]
    types += [1] * more
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """What a converter leaves in float32: vectors, routers, convolutions and the states' parameters."""
    plain = ("ffn_gate_inp.", "ssm_conv1d.", "ssm_a", "ssm_d", "ssm_x.", "ssm_norm.")
    return len(shape) > 1 and name.endswith(".weight") and not any(part in name for part in plain)


def write_zeros(writer: gguf.GGUFWriter, file: str, family: str, kind: str, size: dict[str, int]) -> None:
    """The header, and a hole as long as the weights."""
    total = 0
    for name, shape in tensors(family, size):
        stored = gguf.GGMLQuantizationType[kind if is_matrix(name, shape) else "F32"]
        elements, block = gguf.GGML_QUANT_SIZES[stored]
        bytes_ = prod(shape) // elements * block
        writer.add_tensor_info(name, shape, np.dtype(np.float32), bytes_, raw_dtype=stored)
        total += gguf.GGUFWriter.ggml_pad(bytes_, gguf.GGUF_DEFAULT_ALIGNMENT)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header = gguf.GGUFWriter.ggml_pad(Path(file).stat().st_size, gguf.GGUF_DEFAULT_ALIGNMENT)
    os.truncate(file, header + total)


def write_random(writer: gguf.GGUFWriter, family: str, size: dict[str, int]) -> None:
    random = np.random.default_rng(0)
    for name, shape in tensors(family, size):
        values = np.ones(shape) if len(shape) == 1 else random.normal(0, 0.02, shape)
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(file: str, shape: str = "llama", *changes: str) -> None:
    family, kind, size = SHAPES[shape]
    size = dict(size)
    for change in changes:
        name, _, number = change.partition("=")
        if name == "type":
            kind = number
        else:
            size[name] = int(number)
    writer = gguf.GGUFWriter(file, family)
    metadata(writer, family, size)
    if shape == "llama" and not changes:
        write_random(writer, family, size)
    else:
        write_zeros(writer, file, family, kind, size)


if __name__ == "__main__":
    main(*sys.argv[1:])
