"""Memory of embeddings: tables that are looked up, and indexes that are searched.

An index lies in main memory as a rule, beside no GPU's; Faiss can hold it on one. GB are 10^9 bytes in what
Faiss and ScyllaDB publish; here everything is in bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from brimline.errors import FootprintError
from brimline.estimate import Estimate, between, exact, total
from brimline.footprint.constants import GIB, MIB
from brimline.footprint.part import Part

_FAISS = "Faiss, wiki: Guidelines to choose an index"
_FAISS_TABLE = "Faiss, wiki: Faiss indexes, bytes of a vector"
_SCYLLA = "ScyllaDB Cloud documentation, vector search, sizing: N * (D * B + m * 16) * 1.2"
_FAISS_GPU = "Faiss, gpu/StandardGpuResources.cpp: temporary memory"
_ADAGRAD = "FBGEMM, rowwise_adagrad: one sum for each row"

Kind = Literal["flat", "hnsw", "ivf", "pq", "ivf-pq", "table"]
KINDS: tuple[Kind, ...] = ("flat", "hnsw", "ivf", "pq", "ivf-pq", "table")

# Bytes of one element; `binary` packs eight dimensions into a byte.
ELEMENT_BYTES: dict[str, float] = {
    "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "binary": 0.125,
}  # fmt: skip

# Bytes that training a table adds: for each element, and for each row.
TABLE_OPTIMIZERS: dict[str, tuple[int, int, str]] = {
    "none": (0, 0, "not trained"),
    "sgd": (0, 0, "plain SGD keeps no state"),
    "adam": (8, 0, "two moments in fp32"),
    "adagrad": (4, 0, "one sum in fp32 for each element"),
    "rowwise-adagrad": (0, 4, _ADAGRAD),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """How many vectors of how many dimensions. element_bytes: see ELEMENT_BYTES."""

    count: int
    dimensions: int
    element_bytes: float = 4

    def __post_init__(self) -> None:
        if self.count < 0 or self.dimensions < 1 or self.element_bytes <= 0:
            raise FootprintError("an index has zero or more vectors of one or more dimensions")

    @property
    def vector_bytes(self) -> int:
        """Bytes of one vector."""
        return math.ceil(self.dimensions * self.element_bytes)


def whole(parts: Sequence[Part]) -> Estimate:
    """All parts together."""
    return total((part.size for part in parts), "sum of the parts")


def _raw(vectors: Vectors, name: str = "vectors") -> Part:
    size = vectors.count * vectors.vector_bytes
    formula = f"{vectors.count:,} × {vectors.dimensions:,} × {vectors.element_bytes:g} B"
    return Part(name, exact(size, f"{_FAISS}, Flat"), formula)


def flat(vectors: Vectors) -> tuple[Part, ...]:
    """A flat index: the vectors, n * d * b."""
    return (_raw(vectors),)


def hnsw(vectors: Vectors, links: int = 32) -> tuple[Part, ...]:
    """An HNSW graph: n * (d * b + M * 2 * 4). links: M, of each vector and layer.

    Low and expected: that formula, the links of the bottom layer. High: what ScyllaDB sizes by,
    n * (d * b + M * 16) * 1.2, with room for the layers above and for requests.
    """
    if not 1 <= links <= 4096:
        raise FootprintError(f"--links {links}: M of an HNSW graph is 1 to 4096; common are 4 to 64")
    edges = vectors.count * links * 2 * 4
    raw = _raw(vectors)
    most = math.ceil(vectors.count * (vectors.vector_bytes + links * 16) * 1.2) - raw.size.high
    return (
        raw,
        Part(
            "links",
            between(edges, edges, max(edges, most), f"{_FAISS}, HNSW; high: {_SCYLLA}"),
            f"{vectors.count:,} × {links} × 2 × 4 B",
        ),
    )


def _lists(vectors: Vectors, lists: int) -> tuple[Part, ...]:
    if lists < 1:
        raise FootprintError(f"--lists {lists}: an inverted file has one list or more")
    count = vectors.count
    return (
        Part("ids", between(count * 4, count * 8, count * 8, f"{_FAISS_TABLE}, IVF"), f"{count:,} × 8 B"),
        Part(
            "centroids",
            exact(lists * vectors.dimensions * 4, f"{_FAISS}, IVF"),
            f"{lists:,} × {vectors.dimensions:,} × 4 B",
        ),
    )


def ivf(vectors: Vectors, lists: int) -> tuple[Part, ...]:
    """An inverted file over flat vectors: vectors, an id of each, and centroids in fp32.

    n * (d * b + id) + lists * d * 4; ids of 8 bytes in Faiss, of 4 elsewhere (low).
    """
    return (_raw(vectors), *_lists(vectors, lists))


def _codes(vectors: Vectors, parts: int, bits: int) -> tuple[Part, ...]:
    if parts < 1 or vectors.dimensions % parts:
        raise FootprintError(
            f"--parts {parts}: {vectors.dimensions} dimensions cannot be cut into {parts} parts of one size"
        )
    if not 1 <= bits <= 24:
        raise FootprintError(f"--bits {bits}: a code has 1 to 24 bits, as a rule 8")
    code = math.ceil(parts * bits / 8)
    return (
        Part(
            "codes",
            exact(vectors.count * code, f"{_FAISS_TABLE}, PQ"),
            f"{vectors.count:,} × ⌈{parts} × {bits} / 8⌉ B",
        ),
        Part(
            "code books",
            exact((1 << bits) * vectors.dimensions * 4, f"{_FAISS}, PQ"),
            f"2^{bits} × {vectors.dimensions:,} × 4 B",
        ),
    )


def pq(vectors: Vectors, parts: int, bits: int = 8) -> tuple[Part, ...]:
    """Product quantization: parts * bits / 8 of each vector, and code books of 2^bits * d * 4."""
    return _codes(vectors, parts, bits)


def ivf_pq(vectors: Vectors, lists: int, parts: int, bits: int = 8) -> tuple[Part, ...]:
    """An inverted file over codes: code and id of each vector, centroids, code books."""
    return (*_codes(vectors, parts, bits), *_lists(vectors, lists))


def table(rows: Vectors, optimizer: str = "none") -> tuple[Part, ...]:
    """A table of embeddings that is looked up by row: n * d * b, and what its optimizer keeps of it.

    Gradients are those of the rows that a batch touches, and are not counted. Raises FootprintError for an
    optimizer that is not known.
    """
    if optimizer not in TABLE_OPTIMIZERS:
        known = ", ".join(TABLE_OPTIMIZERS)
        raise FootprintError(f"--optimizer {optimizer!r} is not known for a table; known: {known}")
    element, row, source = TABLE_OPTIMIZERS[optimizer]
    state = rows.count * (rows.dimensions * element + row)
    parts = (_raw(rows, "rows"),)
    if not state:
        return parts
    formula = (
        f"{rows.count:,} × {rows.dimensions:,} × {element} B" if element else f"{rows.count:,} × {row} B"
    )
    return (*parts, Part("optimizer", exact(state, source), formula))


def default_lists(vectors: Vectors) -> int:
    """Lists of an inverted file: 4 * sqrt(n), the least that Faiss's guidelines name."""
    return max(1, round(4 * math.sqrt(vectors.count)))


def default_parts(vectors: Vectors) -> int | None:
    """Parts of a code: one for every eight dimensions; None where they do not divide."""
    return None if vectors.dimensions % 8 else vectors.dimensions // 8


def gpu_search_bytes(gpu_memory_bytes: int) -> Part:
    """What Faiss sets aside on a GPU for searching, whatever the index."""
    size = 1536 * MIB
    if gpu_memory_bytes <= 8 * GIB:
        size = 512 * MIB if gpu_memory_bytes <= 4 * GIB else 1024 * MIB
    return Part("search buffer", exact(size, _FAISS_GPU), "by the size of the GPU")
