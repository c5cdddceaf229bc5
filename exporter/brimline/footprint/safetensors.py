"""Safetensors headers: names, types and shapes of stored tensors, without their contents.

Format: huggingface/safetensors 0.6, README "Format": 8 bytes little-endian length of the header, the header
as JSON, then the bytes that its data_offsets point at. Sharded: model.safetensors.index.json, whose
weight_map names the file of each tensor.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brimline.errors import FootprintError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit (safetensors 0.6, tensor.rs MAX_HEADER_SIZE)
MAX_INDEX_BYTES = 64 << 20
MAX_FILES = 4096
MAX_DIMENSIONS = 16

# Bits of one element (safetensors 0.6, tensor.rs Dtype).
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One stored tensor. dtype: as the file names it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read_safetensors(path: Path) -> tuple[StoredTensor, ...]:
    """Tensors of a .safetensors file, of a model.safetensors.index.json or of a directory holding either.

    Raises FootprintError where there are none, or where a header is not sound: a length beyond the file, a
    tensor outside of the data, bytes that its type and shape do not make, the same tensor twice.
    """
    if path.is_dir():
        files = _files_of(path)
    elif path.name.endswith(".index.json"):
        files = _indexed(path)
    else:
        files = [path]
    found: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in _read_file(file):
            if tensor.name in found:
                raise FootprintError(f"{file}: {tensor.name[:80]!r} is stored in another file too")
            found[tensor.name] = tensor
    return tuple(found.values())


def has_safetensors(path: Path) -> bool:
    """True where the directory, or the file itself, holds weights that read_safetensors takes."""
    if path.is_dir():
        return (path / "model.safetensors.index.json").exists() or any(path.glob("*.safetensors"))
    return path.suffix == ".safetensors"


def _files_of(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return _indexed(index)
    files = sorted(folder.glob("*.safetensors"))
    # Mistral's repositories hold the same weights once more as consolidated*.safetensors.
    named = [file for file in files if not file.name.startswith("consolidated")]
    files = named or files
    if not files:
        raise FootprintError(f"{folder} holds no .safetensors files")
    if len(files) > MAX_FILES:
        raise FootprintError(f"{folder} holds more than {MAX_FILES} .safetensors files")
    return files


def _indexed(index: Path) -> list[Path]:
    content = _bounded(index, MAX_INDEX_BYTES)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise FootprintError(f"{index} is not JSON") from None
    placed = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(placed, dict) or not placed:
        raise FootprintError(f"{index} has no weight_map")
    names = sorted({str(name) for name in placed.values()})
    if len(names) > MAX_FILES:
        raise FootprintError(f"{index} names more than {MAX_FILES} files")
    for name in names:
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise FootprintError(f"{index} names {name[:80]!r}, which is no .safetensors file beside it")
    return [index.parent / name for name in names]


def _open(file: Path) -> tuple[int, int]:
    """A descriptor of a regular file, and its size. Non-blocking: a FIFO must not hang us."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise FootprintError(f"{file} cannot be read ({error.strerror})") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise FootprintError(f"{file} is not a regular file")
    return descriptor, status.st_size


def _bounded(file: Path, limit: int) -> bytes:
    descriptor, size = _open(file)
    with os.fdopen(descriptor, "rb") as opened:
        if size > limit:
            raise FootprintError(f"{file} is larger than {limit} bytes")
        return opened.read(limit + 1)


def _read_file(file: Path) -> list[StoredTensor]:
    descriptor, size = _open(file)
    with os.fdopen(descriptor, "rb") as opened:
        prefix = opened.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > size - 8:
            raise FootprintError(f"{file} ends within its header")
        if length > MAX_HEADER_BYTES:
            raise FootprintError(f"{file} has a header of {length} bytes, more than {MAX_HEADER_BYTES}")
        content = opened.read(length)
    return parse_header(content, size - 8 - length, str(file))


def parse_header(content: bytes, data_bytes: int, name: str) -> list[StoredTensor]:
    """Tensors of a header, where the data behind it are data_bytes long. Raises FootprintError."""
    try:
        header = json.loads(content, object_pairs_hook=_without_twins)
    except (ValueError, RecursionError):
        raise FootprintError(f"{name} has a header that is not JSON, or names a tensor twice") from None
    if not isinstance(header, dict):
        raise FootprintError(f"{name} has a header that is no record of tensors")
    return [_tensor(key, record, data_bytes, name) for key, record in header.items() if key != "__metadata__"]


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a key is there twice")
    return record


def _tensor(key: str, record: Any, data_bytes: int, name: str) -> StoredTensor:
    where = f"{name}: {key[:80]!r}"
    if not isinstance(record, Mapping):
        raise FootprintError(f"{where} is no record of a tensor")
    dtype = record.get("dtype")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise FootprintError(f"{where} is of type {str(dtype)[:20]!r}, which is not known here")
    shape, offsets = _counts(record.get("shape")), _counts(record.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2 or len(shape) > MAX_DIMENSIONS:
        raise FootprintError(f"{where} has no sound shape and data_offsets")
    begin, end = offsets
    if not begin <= end <= data_bytes:
        raise FootprintError(f"{where} lies outside of the file")
    if math.prod(shape) * DTYPE_BITS[dtype] != 8 * (end - begin):
        raise FootprintError(f"{where} has {end - begin} bytes, which its type and shape do not make")
    return StoredTensor(key, dtype, shape, end - begin)


def _counts(value: Any) -> tuple[int, ...] | None:
    """The numbers of a list of counts; None where it is none."""
    if not isinstance(value, list):
        return None
    numbers = [each for each in value if isinstance(each, int) and not isinstance(each, bool)]
    return tuple(numbers) if len(numbers) == len(value) and all(0 <= n < 1 << 62 for n in numbers) else None
