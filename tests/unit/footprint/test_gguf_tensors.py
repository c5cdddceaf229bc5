"""The table of tensors of GGUF files, which the tests write byte by byte."""

from __future__ import annotations

import contextlib
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brimline.errors import FootprintError
from brimline.footprint.architecture import Attention, LatentAttention
from brimline.footprint.gguf import GGML_BITS, GgufTensor, read_gguf, settings_of_gguf
from brimline.footprint.hf_config import architecture_of_gguf, read_architecture
from brimline.footprint.weights import LLAMACPP_RULES, stored_weights, weight_bytes

Q4_K, Q6_K, F32 = 12, 14, 0


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def entry(key: str, value: Any) -> bytes:
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    if isinstance(value, list) and value and isinstance(value[0], str):
        return text(key) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(text(each) for each in value)
    if isinstance(value, list):
        return text(key) + struct.pack("<IIQ", 9, 4, len(value)) + struct.pack(f"<{len(value)}I", *value)
    return text(key) + struct.pack("<II", 4, value)


def gguf(metadata: dict[str, Any], tensors: list[tuple[str, list[int], int]]) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    body = b"".join(entry(key, value) for key, value in metadata.items())
    for name, shape, kind in tensors:
        body += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, 0)
    return head + body


LLAMA = {
    "general.architecture": "llama", "llama.block_count": 2, "llama.embedding_length": 512,
    "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.feed_forward_length": 1024,
    "tokenizer.ggml.tokens": [f"t{number}" for number in range(256)],
}  # fmt: skip
TENSORS: list[tuple[str, list[int], int]] = [("token_embd.weight", [512, 256], Q6_K)]
for layer in range(2):
    TENSORS += [
        (f"blk.{layer}.attn_norm.weight", [512], F32),
        (f"blk.{layer}.attn_q.weight", [512, 512], Q4_K),
        (f"blk.{layer}.attn_k.weight", [512, 256], Q4_K),
        (f"blk.{layer}.attn_v.weight", [512, 256], Q6_K),
        (f"blk.{layer}.attn_output.weight", [512, 512], Q4_K),
        (f"blk.{layer}.ffn_norm.weight", [512], F32),
        (f"blk.{layer}.ffn_gate.weight", [512, 1024], Q4_K),
        (f"blk.{layer}.ffn_up.weight", [512, 1024], Q4_K),
        (f"blk.{layer}.ffn_down.weight", [1024, 512], Q6_K),
    ]
TENSORS.append(("output_norm.weight", [512], F32))

# Elements over 256, times the bytes of a block.
Q4_K_BYTES, Q6_K_BYTES = 144 / 256, 210 / 256


def write(file: Path, metadata: dict[str, Any] = LLAMA, tensors: Any = TENSORS) -> Path:
    file.write_bytes(gguf(metadata, tensors))
    return file


def test_tensors_take_whole_blocks_of_their_type(tmp_path: Path) -> None:
    tensors = read_gguf(write(tmp_path / "m.gguf")).tensors

    assert tensors[0] == GgufTensor("token_embd.weight", (512, 256), "q6_k", 107520)
    assert len(tensors) == len(TENSORS)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        # gguf 0.19 GGML_QUANT_SIZES; q8_1 from ggml-common.h
        ("f32", 32), ("bf16", 16), ("q4_0", 4.5), ("q4_1", 5), ("q5_0", 5.5), ("q5_1", 6), ("q8_0", 8.5),
        ("q8_1", 9), ("q2_k", 2.625), ("q3_k", 3.4375), ("q4_k", 4.5), ("q5_k", 5.5), ("q6_k", 6.5625),
        ("q8_k", 9.125), ("iq1_s", 1.5625), ("iq1_m", 1.75), ("iq2_xxs", 2.0625), ("iq2_xs", 2.3125),
        ("iq2_s", 2.5625), ("iq3_xxs", 3.0625), ("iq3_s", 3.4375), ("iq4_xs", 4.25), ("iq4_nl", 4.5),
        ("tq1_0", 1.6875), ("tq2_0", 2.0625), ("mxfp4", 4.25), ("nvfp4", 4.5), ("q1_0", 1.125),
    ],
)  # fmt: skip
def test_types_have_their_bits_a_weight(name: str, bits: float) -> None:
    assert float(GGML_BITS[name]) == bits


def test_the_vocabulary_is_read_over_but_counted(tmp_path: Path) -> None:
    file = read_gguf(write(tmp_path / "m.gguf"))

    assert file.metadata["tokenizer.ggml.tokens"] == 256


def test_an_architecture_comes_from_the_header(tmp_path: Path) -> None:
    model = read_architecture(write(tmp_path / "m.gguf"))

    assert (model.vocabulary, model.hidden, len(model.layers), model.tied) == (256, 512, 2, True)
    assert model.layers[0].mixers == (Attention(query_heads=4, kv_heads=2, key_dim=128, value_dim=128),)
    assert model.quantization is not None
    assert 4.5 < model.quantization.bits < 6.5625


def test_stored_bytes_are_grouped_by_module(tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf")

    stored = stored_weights(file, read_architecture(file))

    assert stored is not None
    assert stored.parts["embedding"] == 512 * 256 * Q6_K_BYTES
    assert stored.parts["attention"] == 2 * (
        (2 * 512 * 512 + 512 * 256) * Q4_K_BYTES + 512 * 256 * Q6_K_BYTES
    )
    assert stored.parts["mlp"] == 2 * 512 * 1024 * (2 * Q4_K_BYTES + Q6_K_BYTES)
    assert stored.parts["norms"] == 5 * 512 * 4
    assert stored.total == sum(tensor.size_bytes for tensor in read_gguf(file).tensors)


def test_llamacpp_keeps_the_embedding_on_the_host_and_a_copy_of_it_as_tied_head(tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf")
    model = read_architecture(file)

    [rank] = weight_bytes(model, rules=LLAMACPP_RULES, stored=stored_weights(file, model))

    assert rank.host.expected == 512 * 256 * Q6_K_BYTES
    assert rank.parts["embedding"].expected == 0
    assert rank.parts["head"].expected == 512 * 256 * Q6_K_BYTES
    assert rank.total.is_exact


def test_a_model_in_parts_is_read_whole(tmp_path: Path) -> None:
    first, second = TENSORS[:5], TENSORS[5:]
    write(tmp_path / "m-00001-of-00002.gguf", {**LLAMA, "split.count": 2}, first)
    write(tmp_path / "m-00002-of-00002.gguf", {"split.count": 2}, second)

    whole = read_gguf(tmp_path / "m-00001-of-00002.gguf")

    assert [tensor.name for tensor in whole.tensors] == [name for name, _, _ in TENSORS]
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(FootprintError, match="cannot be read"):
        read_gguf(tmp_path / "m-00001-of-00002.gguf")


def test_kv_heads_may_differ_by_layer(tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf", {**LLAMA, "llama.attention.head_count_kv": [4, 2]})

    mixers = [layer.mixers[0] for layer in read_architecture(file).layers]

    assert [mixer.kv_heads for mixer in mixers if isinstance(mixer, Attention)] == [4, 2]


def test_deepseek_s_heads_stand_apart_from_its_cache(tmp_path: Path) -> None:
    """deepseek2 since mid 2025: key_length 576 is of the cache, key_length_mla 192 of a head."""
    family = {
        "block_count": 2, "embedding_length": 512, "attention.head_count": 4, "attention.head_count_kv": 1,
        "attention.key_length": 576, "attention.value_length": 512, "attention.key_length_mla": 192,
        "attention.value_length_mla": 128, "attention.kv_lora_rank": 512, "attention.q_lora_rank": 256,
        "rope.dimension_count": 64, "feed_forward_length": 1024, "vocab_size": 256,
        "expert_feed_forward_length": 128, "expert_count": 8, "expert_used_count": 2,
        "expert_shared_count": 1, "leading_dense_block_count": 1,
    }  # fmt: skip
    metadata = {f"deepseek2.{name}": value for name, value in family.items()}
    file = write(tmp_path / "m.gguf", {"general.architecture": "deepseek2", **metadata}, [])

    model = architecture_of_gguf(read_gguf(file), "m.gguf")

    assert model.layers[0].mixers == (
        LatentAttention(
            query_heads=4, q_lora_rank=256, kv_lora_rank=512, nope_dim=128, rope_dim=64, value_dim=128
        ),
    )


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ([("w", [512, 256], 99)], "of type 99"),
        ([("w", [100, 256], Q4_K)], "no shape that q4_k can have"),
        ([("w", [1 << 40, 1 << 40], F32)], "no shape that f32 can have"),
        ([("w", [1] * 9, F32)], "9 dimensions"),
    ],
)
def test_a_tensor_that_cannot_be_is_refused(tmp_path: Path, tensors: Any, said: str) -> None:
    with pytest.raises(FootprintError, match=said):
        read_gguf(write(tmp_path / "m.gguf", LLAMA, tensors))


def test_a_claim_of_countless_tensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0))

    with pytest.raises(FootprintError, match="more than 1048576"):
        read_gguf(tmp_path / "m.gguf")


def test_a_header_without_an_architecture_is_refused(tmp_path: Path) -> None:
    file = read_gguf(write(tmp_path / "m.gguf", {"general.name": "x"}, []))

    with pytest.raises(FootprintError, match=r"general\.architecture is missing"):
        settings_of_gguf(file, "m.gguf")


@given(cut=st.integers(0, 10_000), junk=st.binary(max_size=40))
@settings(deadline=None)
def test_no_bytes_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, cut: int, junk: bytes
) -> None:
    whole = gguf(LLAMA, TENSORS)
    file = tmp_path_factory.getbasetemp() / "cut.gguf"
    file.write_bytes(whole[: cut % len(whole)] + junk + b"\0")

    with contextlib.suppress(FootprintError):
        read_architecture(file)


def test_a_list_that_no_setting_has_is_passed_over(tmp_path: Path) -> None:
    """A sparse file of a made-up length must cost neither memory nor time."""
    key = b"llama.evil"
    path = tmp_path / "sparse.gguf"
    with open(path, "wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key)
        file.write(struct.pack("<I", 9) + struct.pack("<IQ", 0, 150 << 20))
        file.truncate(151 << 20)
    begun = time.process_time()

    assert read_gguf(path).metadata == {"llama.evil": None}
    assert time.process_time() - begun < 2
