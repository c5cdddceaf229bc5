"""The files a model may stand in: what is no model is refused with its path, in bounded time."""

from __future__ import annotations

import json
import os
import re
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import brimline.demo
from brimline.errors import FootprintError
from brimline.footprint.hf_config import read_architecture
from brimline.footprint.predict import predict, read_model

LLAMA_8B = Path(brimline.demo.__file__).parent / "llama-3.1-8b" / "config.json"


def test_a_directory_and_its_config_are_the_same_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(LLAMA_8B.read_bytes())

    assert read_architecture(tmp_path) == read_architecture(tmp_path / "config.json")
    assert read_architecture(tmp_path).source == f"{tmp_path}/config.json"


def test_mistral_s_own_format_is_both_of_its_files(tmp_path: Path) -> None:
    """vLLM 0.19, transformers_utils/config.py get_config: consolidated*.safetensors, and params.json."""
    (tmp_path / "config.json").write_bytes(LLAMA_8B.read_bytes())
    (tmp_path / "params.json").write_text("{}")
    alone = read_architecture(tmp_path)
    header = b'{"norm.weight": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}'
    stored = struct.pack("<Q", len(header)) + header + b"\0\0"
    (tmp_path / "consolidated.safetensors").write_bytes(stored)

    assert not alone.mistral_format
    assert read_architecture(tmp_path).mistral_format
    assert read_model(tmp_path).architecture.mistral_format
    overridden = read_model(tmp_path).overridden({"hf_overrides": '{"max_position_embeddings": 4096}'})
    assert overridden.architecture.mistral_format
    assert overridden.architecture.max_position == 4096


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

    with pytest.raises(FootprintError, match=rf"^{re.escape(str(path))} {why}(: line \d+, column \d+: .*)?$"):
        read_architecture(path)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FootprintError) as caught:
        read_architecture(tmp_path / "none")

    assert str(caught.value) == f"{tmp_path}/none cannot be read (No such file or directory)"


@pytest.mark.parametrize("name", ["config.json", "model.gguf"])
def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    began = time.monotonic()

    with pytest.raises(FootprintError, match="is not a regular file"):
        read_architecture(tmp_path / name)
    assert time.monotonic() - began < 30


def modelopt(folder: Path, algorithm: str = "FP8") -> Path:
    """A checkpoint as ModelOpt 0.29 writes it: config.json says nothing of its quantization."""
    settings = json.loads(LLAMA_8B.read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "quantization_config": None}))
    (folder / "hf_quant_config.json").write_text(
        json.dumps(
            {
                "producer": {"name": "modelopt", "version": "0.29.0"},
                "quantization": {
                    "quant_algo": algorithm, "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"],
                },
            }
        )
    )  # fmt: skip
    return folder


def test_a_model_is_read_with_the_quantization_that_stands_beside_its_config(tmp_path: Path) -> None:
    model = read_model(modelopt(tmp_path))
    plain = read_model(LLAMA_8B)

    assert model.architecture == read_architecture(tmp_path)
    assert model.architecture.quantization is not None
    quantized, whole = (predict("vllm", one, {"max_model_len": "8192"}) for one in (model, plain))
    # 32 layers of 2 · 8 · 128 elements, 8 bits each.
    assert quantized.kv_cache.bytes_per_token == 65536
    assert whole.kv_cache.bytes_per_token == 131072
    weights = quantized.fullest.components["weights"].expected
    assert weights < 0.6 * whole.fullest.components["weights"].expected


def test_the_quantization_beside_a_config_is_one_that_a_flag_may_name(tmp_path: Path) -> None:
    model = read_model(modelopt(tmp_path))

    named = predict("vllm", model, {"max_model_len": "8192", "quantization": "modelopt"})

    assert named.fullest == predict("vllm", model, {"max_model_len": "8192"}).fullest


def test_what_a_config_says_of_its_quantization_wins(tmp_path: Path) -> None:
    modelopt(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(config))

    quantization = read_model(tmp_path).architecture.quantization

    assert quantization is not None
    assert quantization.method == "awq"


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
        read_architecture(path)

    assert str(caught.value) == f"{path} {why}"


def test_an_empty_gguf_cannot_be_read(tmp_path: Path) -> None:
    path = write(tmp_path, b"")

    with pytest.raises(FootprintError, match=rf"^{re.escape(str(path))} cannot be read \("):
        read_architecture(path)


def test_a_gguf_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = gguf(*LLAMA)

    for end in range(4, len(whole)):
        path = write(tmp_path, whole[:end])
        with pytest.raises(FootprintError) as caught:
            read_architecture(path)
        assert str(caught.value) == f"{path} ends within its header"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


@settings(max_examples=300, deadline=None)
@given(position=st.integers(4, len(gguf(*LLAMA)) - 1), garbage=st.binary(min_size=1, max_size=12))
def test_a_gguf_with_garbage_in_it_gives_a_model_or_a_footprint_error(
    scratch: Path, position: int, garbage: bytes
) -> None:
    whole = gguf(*LLAMA)
    path = write(scratch, whole[:position] + garbage + whole[position + len(garbage) :])
    began = time.thread_time()

    try:
        assert len(read_architecture(path).layers) >= 1
    except FootprintError as error:
        assert str(error).startswith(str(path))  # noqa: PT017
    assert time.thread_time() - began < 1
