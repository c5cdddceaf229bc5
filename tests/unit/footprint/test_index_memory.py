"""Memory of vector indexes, by formulas of Faiss's wiki and ScyllaDB's documentation."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brimline.errors import FootprintError
from brimline.footprint.index_memory import (
    Vectors,
    flat_bytes,
    hnsw_bytes,
    ivf_bytes,
    ivf_pq_bytes,
    pq_bytes,
)

MILLION = Vectors(count=1_000_000, dimensions=768)


def test_a_flat_index_holds_the_vectors() -> None:
    # 3072 bytes each
    assert flat_bytes(MILLION).expected == 3_072_000_000
    assert flat_bytes(Vectors(count=1000, dimensions=768, element_bytes=1)).expected == 768_000


def test_a_graph_adds_eight_bytes_for_each_link() -> None:
    # n * (d * 4 + M * 2 * 4) = 10^6 * (3072 + 256)
    size = hnsw_bytes(MILLION, links=32)

    assert (size.expected, size.high) == (3_328_000_000, 3_993_600_000)


def test_an_inverted_file_adds_centroids_and_an_id_each() -> None:
    # 1024 centroids * 3072 bytes = 3,145,728; ids of 4 or 8 bytes
    size = ivf_bytes(MILLION, lists=1024)

    assert (size.low, size.expected) == (3_079_145_728, 3_083_145_728)


def test_a_code_of_96_parts_takes_96_bytes_and_code_books() -> None:
    # 10^6 * 96 + 256 * 768 * 4
    assert pq_bytes(MILLION, parts=96).expected == 96_786_432


def test_a_code_of_four_bits_takes_half() -> None:
    # 10^6 * 48 + 16 * 768 * 4
    assert pq_bytes(MILLION, parts=96, bits=4).expected == 48_049_152


def test_codes_in_an_inverted_file_add_centroids_ids_and_code_books() -> None:
    # 10^6 * (96 + 8) + 3,145,728 + 786,432
    assert ivf_pq_bytes(MILLION, lists=1024, parts=96).expected == 107_932_160


def test_parts_divide_the_dimensions() -> None:
    with pytest.raises(FootprintError, match="768 dimensions cannot be cut into 100 parts"):
        pq_bytes(MILLION, parts=100)


@pytest.mark.parametrize(("count", "dimensions"), [(-1, 8), (1, 0)])
def test_an_index_has_vectors_with_dimensions(count: int, dimensions: int) -> None:
    with pytest.raises(FootprintError):
        Vectors(count=count, dimensions=dimensions)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 10**6), st.integers(1, 4096), st.integers(1, 128))
def test_more_vectors_never_take_less(count: int, more: int, dimensions: int, links: int) -> None:
    few, many = (
        Vectors(count=count, dimensions=dimensions),
        Vectors(count=count + more, dimensions=dimensions),
    )

    for size in (flat_bytes, hnsw_bytes, lambda of: ivf_bytes(of, links), lambda of: pq_bytes(of, 1)):
        one = size(few)
        assert one.low <= one.expected <= one.high
        assert size(many).expected >= one.expected
    assert hnsw_bytes(few, links + 1).low >= hnsw_bytes(few, links).low
