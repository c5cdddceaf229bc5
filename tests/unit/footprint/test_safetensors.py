"""Safetensors headers, written here byte by byte."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brimline.errors import FootprintError
from brimline.footprint.safetensors import StoredTensor, has_safetensors, parse_header, read_safetensors


def tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HEADER: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "model.embed_tokens.weight": tensor("BF16", [4, 8], 0, 64),
    "model.norm.weight": tensor("F32", [8], 64, 96),
}


def write(file: Path, header: dict[str, Any], data: int = 96) -> Path:
    content = json.dumps(header).encode()
    file.write_bytes(len(content).to_bytes(8, "little") + content + bytes(data))
    return file


def refusal(header: Any, data: int = 96) -> str:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    with pytest.raises(FootprintError) as caught:
        parse_header(content, data, "file")
    return str(caught.value)


def test_a_file_tells_its_tensors(tmp_path: Path) -> None:
    stored = read_safetensors(write(tmp_path / "model.safetensors", HEADER))

    assert stored == (
        StoredTensor("model.embed_tokens.weight", "BF16", (4, 8), 64),
        StoredTensor("model.norm.weight", "F32", (8,), 32),
    )
    assert stored[0].elements == 32


def test_a_folder_is_read_by_its_index(tmp_path: Path) -> None:
    names = [name for name in HEADER if name != "__metadata__"]
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    write(tmp_path / files[0], {names[0]: HEADER[names[0]]})
    write(tmp_path / files[1], {names[1]: HEADER[names[1]]})
    write(tmp_path / "adapter.safetensors", {"other": tensor("F32", [1], 0, 4)})
    index = {"metadata": {}, "weight_map": dict(zip(names, files, strict=True))}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    stored = read_safetensors(tmp_path)

    assert [each.name for each in stored] == names
    assert has_safetensors(tmp_path)
    assert read_safetensors(tmp_path / "model.safetensors.index.json") == stored


def test_a_folder_without_an_index_is_all_its_files_once(tmp_path: Path) -> None:
    """Mistral's repositories hold the same weights twice, the second time as consolidated.safetensors."""
    write(tmp_path / "model.safetensors", HEADER)
    write(tmp_path / "consolidated.safetensors", {"tok_embeddings.weight": tensor("BF16", [4, 8], 0, 64)})

    assert len(read_safetensors(tmp_path)) == 2


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    assert not has_safetensors(tmp_path)
    with pytest.raises(FootprintError, match="holds no"):
        read_safetensors(tmp_path)


def test_packed_types_take_less_than_a_byte() -> None:
    [packed] = parse_header(json.dumps({"w": tensor("F4", [4, 32], 0, 64)}).encode(), 64, "file")

    assert (packed.elements, packed.size_bytes) == (128, 64)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (tensor("BF16", [4, 8], 0, 63), "63 bytes, which its type and shape do not make"),
        (tensor("BF16", [4, 8], 64, 128), "lies outside of the file"),
        (tensor("BF16", [4, 8], 64, 0), "lies outside of the file"),
        (tensor("BF16", [-4, -8], 0, 64), "no sound shape"),
        (tensor("BF16", [True, 32], 0, 64), "no sound shape"),
        (tensor("BF16", [1] * 17, 0, 2), "no sound shape"),
        (tensor("BF16", [1 << 80], 0, 64), "no sound shape"),
        (tensor("X7", [4], 0, 4), "is of type 'X7'"),
        ([1], "is no record"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0]}, "no sound shape"),
    ],
)
def test_a_tensor_that_cannot_be_is_refused(record: Any, said: str) -> None:
    assert said in refusal({"w": record})


def test_a_tensor_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    assert "twice" in refusal(b'{"w": {}, "w": {}}')

    write(tmp_path / "a.safetensors", HEADER)
    write(tmp_path / "b.safetensors", HEADER)
    with pytest.raises(FootprintError, match="stored in another file too"):
        read_safetensors(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"w":'])
def test_a_header_that_is_no_record_is_refused(content: bytes) -> None:
    assert "header" in refusal(content)


@pytest.mark.parametrize("content", [b"", b"1234567", (1 << 62).to_bytes(8, "little"), b"\x09" + bytes(15)])
def test_a_header_longer_than_its_file_is_refused_without_reading_it(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)

    with pytest.raises(FootprintError, match="ends within its header"):
        read_safetensors(file)


def test_a_header_beyond_the_format_s_limit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes((100_000_001).to_bytes(8, "little"))
    os.truncate(file, 200_000_000)  # sparse

    with pytest.raises(FootprintError, match="more than 100000000"):
        read_safetensors(file)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "model.bin", ""])
def test_an_index_cannot_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))

    with pytest.raises(FootprintError, match=r"no \.safetensors file beside it"):
        read_safetensors(tmp_path)


def test_a_pipe_does_not_hang_the_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")

    started = time.monotonic()
    with pytest.raises(FootprintError, match="not a regular file"):
        read_safetensors(tmp_path / "model.safetensors")
    assert time.monotonic() - started < 30


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_no_bytes_raise_anything_else(content: bytes) -> None:
    with contextlib.suppress(FootprintError):
        parse_header(content, 100, "file")
