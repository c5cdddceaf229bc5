"""Memory of a vector index over embeddings. It lies in host memory as a rule, beside no GPU's."""

from __future__ import annotations

import math
from dataclasses import dataclass

from brimline.errors import FootprintError
from brimline.estimate import Estimate, between, exact

_FAISS = "Faiss, wiki: Guidelines to choose an index"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """How many vectors of how many dimensions. element_bytes: 4 for fp32, 2 for fp16, 1 for int8."""

    count: int
    dimensions: int
    element_bytes: int = 4

    def __post_init__(self) -> None:
        if self.count < 0 or self.dimensions < 1 or self.element_bytes < 1:
            raise FootprintError("an index has zero or more vectors of one or more dimensions")


def flat_bytes(vectors: Vectors) -> Estimate:
    """A flat index: the vectors, n * d * b."""
    return exact(vectors.count * vectors.dimensions * vectors.element_bytes, _FAISS)


def hnsw_bytes(vectors: Vectors, links: int = 32) -> Estimate:
    """An HNSW graph: n * (d * b + M * 2 * 4). links: M, of each vector and layer.

    Low and expected: that formula, the links of the bottom layer. High: 20 % more, for the layers above and
    for allocation (ScyllaDB reckons with N * (D * B + m * 16) * 1.2).
    """
    if not 1 <= links <= 4096:
        raise FootprintError(f"M of an HNSW graph is {links}; common are 4 to 64")
    each = vectors.dimensions * vectors.element_bytes + links * 2 * 4
    size = vectors.count * each
    return between(size, size, size * 1.2, f"{_FAISS}, HNSW; high: ScyllaDB's documentation")


def ivf_bytes(vectors: Vectors, lists: int) -> Estimate:
    """An inverted file over flat vectors: vectors, centroids of fp32, and an id of each vector.

    n * (d * b + id) + lists * d * 4; ids of 8 bytes in Faiss, of 4 elsewhere (low).
    """
    if lists < 1:
        raise FootprintError(f"an inverted file has {lists} lists; it starts at 1")
    body = vectors.count * vectors.dimensions * vectors.element_bytes + lists * vectors.dimensions * 4
    return between(
        body + vectors.count * 4, body + vectors.count * 8, body + vectors.count * 8, f"{_FAISS}, IVF"
    )


def _code_bytes(dimensions: int, parts: int, bits: int) -> int:
    if parts < 1 or dimensions % parts:
        raise FootprintError(f"{dimensions} dimensions cannot be cut into {parts} parts of one size")
    if not 1 <= bits <= 24:
        raise FootprintError(f"a code has {bits} bits; it has 1 to 24, as a rule 8")
    return math.ceil(parts * bits / 8)


def pq_bytes(vectors: Vectors, parts: int, bits: int = 8) -> Estimate:
    """Product quantization: parts * bits / 8 of each vector, and code books of 2^bits * d * 4."""
    code = _code_bytes(vectors.dimensions, parts, bits)
    books = (1 << bits) * vectors.dimensions * 4
    return exact(vectors.count * code + books, f"{_FAISS}, PQ")


def ivf_pq_bytes(vectors: Vectors, lists: int, parts: int, bits: int = 8) -> Estimate:
    """An inverted file over codes: code and id of each vector, centroids, code books."""
    if lists < 1:
        raise FootprintError(f"an inverted file has {lists} lists; it starts at 1")
    code = _code_bytes(vectors.dimensions, parts, bits)
    fixed = lists * vectors.dimensions * 4 + (1 << bits) * vectors.dimensions * 4
    return between(
        vectors.count * (code + 4) + fixed,
        vectors.count * (code + 8) + fixed,
        vectors.count * (code + 8) + fixed,
        f"{_FAISS}, IVF and PQ",
    )
