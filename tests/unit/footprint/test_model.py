"""The shape of a model, from config.json and from GGUF headers that the tests write byte by byte."""

from __future__ import annotations

import json
import os
import re
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brimline.errors import FootprintError
from brimline.footprint.model import (
    ModelShape,
    read_gguf_metadata,
    read_shape,
    shape_of_config,
    shape_of_gguf,
)

# https://huggingface.co/meta-llama/Llama-3.1-8B/blob/main/config.json
LLAMA_3_1_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "torch_dtype": "bfloat16",
}


def shape(**config: Any) -> ModelShape:
    return shape_of_config(config, "config.json")


def refusal(**config: Any) -> str:
    with pytest.raises(FootprintError) as caught:
        shape_of_config({**LLAMA_3_1_8B, **config}, "config.json")
    return str(caught.value)


# --- config.json


def test_grouped_query_attention_counts_kv_heads_not_query_heads() -> None:
    assert shape(**LLAMA_3_1_8B) == ModelShape(
        kv_heads=(8,) * 32, key_dim=128, value_dim=128, dtype="bfloat16", source="config.json"
    )


def test_without_kv_heads_every_query_head_has_its_own() -> None:
    assert shape(num_hidden_layers=2, num_attention_heads=12, hidden_size=768).kv_heads == (12, 12)


def test_multi_query_attention_has_one_kv_head() -> None:
    # https://huggingface.co/bigcode/starcoder/blob/main/config.json
    starcoder = shape(n_layer=40, n_head=48, n_embd=6144, multi_query=True, model_type="gpt_bigcode")

    assert (starcoder.kv_heads, starcoder.key_dim) == ((1,) * 40, 128)


def test_the_newer_falcons_mean_their_kv_heads_though_they_say_multi_query() -> None:
    # https://huggingface.co/tiiuae/falcon-40b/blob/main/config.json
    falcon = {"num_hidden_layers": 60, "num_attention_heads": 128, "hidden_size": 8192, "multi_query": True}

    newer = shape(**falcon, num_kv_heads=8, new_decoder_architecture=True)
    older = shape(**falcon, num_kv_heads=71, new_decoder_architecture=False)

    assert (newer.kv_heads, newer.key_dim) == ((8,) * 60, 64)
    assert older.kv_heads == (1,) * 60


def test_chatglm_calls_its_kv_heads_groups() -> None:
    # https://huggingface.co/THUDM/chatglm3-6b/blob/main/config.json
    chatglm = shape(num_layers=28, num_attention_heads=32, hidden_size=4096, multi_query_group_num=2)

    assert (chatglm.kv_heads, chatglm.key_dim) == ((2,) * 28, 128)


def test_a_stated_head_dim_goes_before_width_over_heads() -> None:
    # Qwen3-0.6B: 16 heads of 128 on a width of 1024
    assert shape(num_hidden_layers=28, num_attention_heads=16, hidden_size=1024, head_dim=128).key_dim == 128


def test_the_language_part_of_a_multimodal_model_is_taken() -> None:
    whole = {"model_type": "llava", "text_config": LLAMA_3_1_8B, "vision_config": {"num_hidden_layers": 24}}

    assert shape(**whole).kv_heads == (8,) * 32


def test_the_dtype_of_a_multimodal_model_may_stand_outside() -> None:
    inner = {key: value for key, value in LLAMA_3_1_8B.items() if key != "torch_dtype"}

    assert shape(text_config=inner, torch_dtype="float16").dtype == "float16"
    assert shape(**inner, dtype="torch.bfloat16").dtype == "bfloat16"
    assert shape(**inner).dtype is None


def test_layers_of_one_kind_are_no_hybrid() -> None:
    assert shape(**LLAMA_3_1_8B, layer_types=["full_attention"] * 32).layers == 32


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"kv_lora_rank": 512, "model_type": "deepseek_v3"}, "deepseek_v3 has latent attention (MLA)"),
        ({"mamba_d_state": 128, "model_type": "jamba"}, "jamba has state-space layers"),
        ({"ssm_state_size": 128, "model_type": "nemotron_h"}, "nemotron_h has state-space layers"),
        (
            {"linear_num_value_heads": 32, "model_type": "qwen3_next"},
            "qwen3_next has linear-attention layers",
        ),
        ({"attn_type_list": [0, 1], "model_type": "minimax"}, "minimax has linear-attention layers"),
        ({"num_kv_shared_layers": 15, "model_type": "gemma3n"}, "gemma3n has layers that share their K/V"),
        ({"attention_chunk_size": 8192, "model_type": "llama4_text"}, "llama4_text has chunked attention"),
        ({"is_encoder_decoder": True, "model_type": "t5"}, "t5 has cross-attention"),
        (
            {"block_configs": [{}], "num_key_value_heads": None, "model_type": "nemotron-nas"},
            "nemotron-nas has layers of unequal shape",
        ),
        (
            {"layer_types": ["full_attention", "sliding_attention"], "model_type": "gemma3_text"},
            "gemma3_text mixes full_attention and sliding_attention",
        ),
    ],
)
def test_attention_without_one_k_and_v_for_each_head_is_refused(config: dict[str, Any], why: str) -> None:
    assert refusal(**config) == f"config.json: {why}, so a token has no single K/V size"


def test_a_zero_where_latent_attention_would_be_is_no_latent_attention() -> None:
    assert shape(**LLAMA_3_1_8B, kv_lora_rank=0, num_kv_shared_layers=None).layers == 32


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"num_hidden_layers": None}, "num_hidden_layers and num_attention_heads are not both there"),
        ({"num_hidden_layers": True}, "num_hidden_layers and num_attention_heads are not both there"),
        ({"num_attention_heads": "32"}, "num_hidden_layers and num_attention_heads are not both there"),
        ({"num_attention_heads": -1}, "num_hidden_layers and num_attention_heads are not both there"),
        ({"hidden_size": 4095}, "neither head_dim nor a hidden_size that its heads divide is there"),
        ({"hidden_size": None}, "neither head_dim nor a hidden_size that its heads divide is there"),
        ({"num_hidden_layers": 10**12}, "1000000000000 layers cannot be"),
    ],
)
def test_a_config_that_lacks_its_shape_is_refused(config: dict[str, Any], why: str) -> None:
    assert refusal(**config) == f"config.json: {why}"


@pytest.mark.parametrize(
    ("quantization", "asks"),
    [
        (None, False),
        ({"quant_method": "awq", "bits": 4}, False),
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8}}, True),
        ({"quant_method": "modelopt", "kv_cache_quant_algo": "FP8"}, True),
        ("fp8", False),
    ],
)
def test_a_checkpoint_may_ask_for_a_quantized_cache(quantization: object, asks: bool) -> None:
    read = shape(**LLAMA_3_1_8B, quantization_config=quantization)

    assert (read.kv_dtype is not None) is asks


KEYS = st.sampled_from(
    [
        *LLAMA_3_1_8B,
        *(
            "layer_types",
            "kv_lora_rank",
            "text_config",
            "head_dim",
            "multi_query",
            "quantization_config",
            "dtype",
        ),
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(KEYS, JSON, max_size=6))
def test_any_config_gives_a_shape_or_a_footprint_error(config: dict[str, Any]) -> None:
    try:
        read = shape_of_config({**LLAMA_3_1_8B, **config}, "config.json")
    except FootprintError:
        return
    assert read.layers >= 1
    assert min(*read.kv_heads, read.key_dim, read.value_dim) >= 1


# --- files


def test_a_directory_and_its_config_are_the_same_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_1_8B))

    assert read_shape(tmp_path) == read_shape(tmp_path / "config.json")
    assert read_shape(tmp_path).source == f"{tmp_path}/config.json"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "does not hold a model's settings"),
        (b" " * (4 << 20) + b"{}", "is too large for a model's config.json"),
    ],
    ids=["empty", "cut", "binary", "nested", "list", "large"],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)

    with pytest.raises(FootprintError, match=rf"^{re.escape(str(path))} {why}$"):
        read_shape(path)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FootprintError) as caught:
        read_shape(tmp_path / "none")

    assert str(caught.value) == f"{tmp_path}/none cannot be read (No such file or directory)"


@pytest.mark.parametrize("name", ["config.json", "model.gguf"])
def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    began = time.monotonic()

    with pytest.raises(FootprintError, match="is not a regular file"):
        read_shape(tmp_path / name)
    assert time.monotonic() - began < 1


# --- GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

UINT32, STRING, ARRAY = 4, 8, 9


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def number(key: str, value: int) -> bytes:
    return entry(key, UINT32, struct.pack("<I", value))


def numbers(key: str, *values: int) -> bytes:
    return entry(key, ARRAY, struct.pack(f"<IQ{len(values)}I", UINT32, len(values), *values))


def gguf(*entries: bytes, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, 0, len(entries)) + b"".join(entries)


LLAMA = (
    entry("general.architecture", STRING, text("llama")),
    entry("general.tags", ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + text("b")),
    entry("llama.rope.freq_base", 6, struct.pack("<f", 500000.0)),
    number("llama.block_count", 32),
    number("llama.embedding_length", 4096),
    number("llama.attention.head_count", 32),
    number("llama.attention.head_count_kv", 8),
)


def write(folder: Path, content: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_a_gguf_header_tells_the_shape(tmp_path: Path, version: int) -> None:
    path = write(tmp_path, gguf(*LLAMA, version=version))

    assert read_shape(path) == ModelShape(
        kv_heads=(8,) * 32, key_dim=128, value_dim=128, dtype=None, source=str(path)
    )


def test_every_kind_of_value_is_passed_over_in_its_size(tmp_path: Path) -> None:
    kinds = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    path = write(
        tmp_path,
        gguf(*(entry(f"x.{kind}", kind, struct.pack(f"<{code}", 1)) for kind, code in kinds.items()), *LLAMA),
    )

    metadata = read_gguf_metadata(path)

    assert {key: value for key, value in metadata.items() if key.startswith("x.")} == {
        f"x.{k}": 1 for k in kinds
    }
    assert metadata["general.tags"] == ["a", "b"]
    assert metadata["llama.block_count"] == 32


def test_the_vocabulary_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, gguf(*LLAMA, entry("tokenizer.ggml.tokens", 99, b"not even a value")))

    assert read_shape(path).layers == 32


def test_stated_head_sizes_go_before_width_over_heads(tmp_path: Path) -> None:
    sizes = (number("llama.attention.key_length", 192), number("llama.attention.value_length", 64))

    read = read_shape(write(tmp_path, gguf(*LLAMA, *sizes)))

    assert (read.key_dim, read.value_dim) == (192, 64)


def test_heads_may_differ_by_layer(tmp_path: Path) -> None:
    content = gguf(
        entry("general.architecture", STRING, text("openelm")),
        number("openelm.block_count", 3),
        number("openelm.embedding_length", 1280),
        numbers("openelm.attention.head_count", 12, 16, 20),
        numbers("openelm.attention.head_count_kv", 3, 4, 5),
    )

    read = read_shape(write(tmp_path, content))

    assert (read.kv_heads, read.key_dim) == ((3, 4, 5), 64)


def test_without_kv_heads_every_query_head_of_a_gguf_has_its_own() -> None:
    metadata = {
        "general.architecture": "gpt2",
        "gpt2.block_count": 2,
        "gpt2.embedding_length": 768,
        "gpt2.attention.head_count": 12,
    }

    assert shape_of_gguf(metadata, "x").kv_heads == (12, 12)


SOUND: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.embedding_length": 128,
    "llama.attention.head_count": 4,
}
NOT_SOUND = "block_count and attention.head_count are not both there and sound"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"general.architecture": None}, "general.architecture is missing"),
        ({"llama.block_count": 0}, NOT_SOUND),
        ({"llama.block_count": 2**32 - 1}, "4294967295 layers cannot be"),
        ({"llama.attention.head_count": None}, NOT_SOUND),
        ({"llama.attention.head_count": []}, NOT_SOUND),
        ({"llama.attention.head_count": [4]}, NOT_SOUND),
        ({"llama.attention.head_count": ["a", "b"]}, NOT_SOUND),
        ({"llama.attention.head_count_kv": [4, 4, 4]}, NOT_SOUND),
        ({"llama.attention.head_count_kv": "four"}, NOT_SOUND),
        ({"llama.attention.head_count_kv": -4}, NOT_SOUND),
        ({"llama.embedding_length": None}, "the size of an attention head is not there"),
        ({"llama.attention.head_count": 0}, "the size of an attention head is not there"),
        (
            {"llama.attention.kv_lora_rank": 512},
            "llama has latent attention (MLA), so a token has no single K/V size",
        ),
        ({"llama.ssm.state_size": 16}, "llama has state-space layers, so a token has no single K/V size"),
        (
            {"llama.attention.sliding_window": 1024},
            "llama has sliding-window layers, so a token has no single K/V size",
        ),
        (
            {"llama.attention.shared_kv_layers": 10},
            "llama has layers that share their K/V, so a token has no single K/V size",
        ),
    ],
)
def test_metadata_without_one_shape_is_refused(change: Mapping[str, Any], why: str) -> None:
    with pytest.raises(FootprintError) as caught:
        shape_of_gguf({**SOUND, **change}, "x.gguf")

    assert str(caught.value) == f"x.gguf: {why}"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (gguf(magic=b"GGML"), "is not a GGUF file"),
        (b"GG", "is not a GGUF file"),
        (gguf(version=1), "is GGUF version 1; versions 2 and 3 are read"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "is GGUF version 50331648; versions 2 and 3 are read"),
        (b"GGUF", "ends within its header"),
        (gguf(entry("x", 99, b"")), "holds a value of unknown type 99"),
        (gguf(struct.pack("<Q", 2**63)), "ends within its header"),
        (gguf(entry("x", ARRAY, struct.pack("<IQ", UINT32, 2**60))), "ends within its header"),
        (gguf(entry("x", ARRAY, struct.pack("<IQ", ARRAY, 1) * 5000)), "nests arrays too deep"),
    ],
)
def test_a_damaged_gguf_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    path = write(tmp_path, content)

    with pytest.raises(FootprintError) as caught:
        read_shape(path)

    assert str(caught.value) == f"{path} {why}"


def test_an_empty_gguf_cannot_be_read(tmp_path: Path) -> None:
    path = write(tmp_path, b"")

    with pytest.raises(FootprintError, match=rf"^{re.escape(str(path))} cannot be read \("):
        read_shape(path)


def test_a_gguf_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = gguf(*LLAMA)

    for end in range(4, len(whole)):
        path = write(tmp_path, whole[:end])
        with pytest.raises(FootprintError) as caught:
            read_shape(path)
        assert str(caught.value) == f"{path} ends within its header"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


@settings(max_examples=300, deadline=None)
@given(position=st.integers(4, len(gguf(*LLAMA)) - 1), garbage=st.binary(min_size=1, max_size=12))
def test_a_gguf_with_garbage_in_it_gives_a_shape_or_a_footprint_error(
    scratch: Path, position: int, garbage: bytes
) -> None:
    whole = gguf(*LLAMA)
    path = write(scratch, whole[:position] + garbage + whole[position + len(garbage) :])
    began = time.monotonic()

    try:
        assert read_shape(path).layers >= 1
    except FootprintError as error:
        assert str(error).startswith(str(path))  # noqa: PT017
    assert time.monotonic() - began < 1
