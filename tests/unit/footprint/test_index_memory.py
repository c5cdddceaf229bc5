"""Memory of embeddings and their indexes, by formulas of Faiss's wiki and ScyllaDB's documentation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brimline.errors import FootprintError
from brimline.footprint.index_memory import (
    ELEMENT_BYTES,
    Vectors,
    default_lists,
    default_parts,
    flat,
    gpu_search_bytes,
    hnsw,
    ivf,
    ivf_pq,
    pq,
    table,
    whole,
)

MILLION = Vectors(count=1_000_000, dimensions=768)
GIB, MIB = 1 << 30, 1 << 20


def test_a_flat_index_holds_the_vectors() -> None:
    # 3072 bytes each
    assert whole(flat(MILLION)).expected == 3_072_000_000


@pytest.mark.parametrize(
    ("element", "each"),
    # ScyllaDB, bytes of a dimension by quantization: f32 4, f16 and bf16 2, i8 1, b1 0.125
    [("float32", 3072), ("float16", 1536), ("bfloat16", 1536), ("int8", 768), ("binary", 96)],
)
def test_a_vector_takes_its_elements(element: str, each: int) -> None:
    assert Vectors(count=1, dimensions=768, element_bytes=ELEMENT_BYTES[element]).vector_bytes == each


def test_a_graph_adds_eight_bytes_for_each_link() -> None:
    """Faiss's wiki: (d * 4 + M * 2 * 4) bytes of a vector, 10^6 * (3072 + 256).

    ScyllaDB sizes by N * (D * B + m * 16) * 1.2: 10^6 * (3072 + 512) * 1.2.
    """
    size = whole(hnsw(MILLION, links=32))

    assert (size.low, size.expected, size.high) == (3_328_000_000, 3_328_000_000, 4_300_800_000)


def test_an_inverted_file_adds_centroids_and_an_id_each() -> None:
    # 1024 centroids * 3072 bytes = 3,145,728; ids of 4 or 8 bytes
    size = whole(ivf(MILLION, lists=1024))

    assert (size.low, size.expected) == (3_079_145_728, 3_083_145_728)


def test_a_code_of_96_parts_takes_96_bytes_and_code_books() -> None:
    # 10^6 * 96 + 256 * 768 * 4
    assert whole(pq(MILLION, parts=96)).expected == 96_786_432


def test_a_code_of_four_bits_takes_half() -> None:
    # 10^6 * 48 + 16 * 768 * 4
    assert whole(pq(MILLION, parts=96, bits=4)).expected == 48_049_152


def test_codes_in_an_inverted_file_add_centroids_ids_and_code_books() -> None:
    # 10^6 * (96 + 8) + 3,145,728 + 786,432
    assert whole(ivf_pq(MILLION, lists=1024, parts=96)).expected == 107_932_160


def test_a_table_holds_its_rows() -> None:
    """An input embedding of Llama-3.1: 128256 rows of 4096 in 16 bits are 1,050,673,152 bytes."""
    rows = Vectors(count=128_256, dimensions=4096, element_bytes=2)

    assert whole(table(rows)).expected == 1_050_673_152
    assert [part.name for part in table(rows)] == ["rows"]


@pytest.mark.parametrize(
    ("optimizer", "state"),
    # Two moments of 4 bytes, one sum of 4, and one sum for each row (FBGEMM's rowwise_adagrad)
    [
        ("none", 0),
        ("sgd", 0),
        ("adam", 1000 * 128 * 8),
        ("adagrad", 1000 * 128 * 4),
        ("rowwise-adagrad", 4000),
    ],
)
def test_a_trained_table_keeps_what_its_optimizer_keeps(optimizer: str, state: int) -> None:
    rows = Vectors(count=1000, dimensions=128)

    assert whole(table(rows, optimizer)).expected == 1000 * 128 * 4 + state


def test_each_part_says_its_formula() -> None:
    assert [part.formula for part in ivf_pq(MILLION, lists=1024, parts=96)] == [
        "1,000,000 × ⌈96 × 8 / 8⌉ B",
        "2^8 × 768 × 4 B",
        "1,000,000 × 8 B",
        "1,024 × 768 × 4 B",
    ]


def test_lists_and_parts_have_usual_sizes() -> None:
    """Faiss's guidelines: 4 * sqrt(N) to 16 * sqrt(N) lists."""
    assert default_lists(MILLION) == 4000
    assert default_parts(MILLION) == 96
    assert default_parts(Vectors(count=1, dimensions=100)) is None


@pytest.mark.parametrize(("memory", "buffer"), [(4 * GIB, 512), (8 * GIB, 1024), (80 * GIB, 1536)])
def test_searching_on_a_gpu_takes_a_buffer_by_its_size(memory: int, buffer: int) -> None:
    """Faiss, gpu/StandardGpuResources.cpp: 512 MiB up to 4 GiB, 1 GiB up to 8, else 1.5 GiB."""
    assert gpu_search_bytes(memory).size.expected == buffer * MIB


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: pq(MILLION, parts=100), "--parts 100: 768 dimensions cannot be cut into 100 parts"),
        (lambda: pq(MILLION, parts=96, bits=25), "--bits 25: a code has 1 to 24 bits"),
        (lambda: hnsw(MILLION, links=0), "--links 0: M of an HNSW graph is 1 to 4096"),
        (lambda: ivf(MILLION, lists=0), "--lists 0: an inverted file has one list or more"),
        (lambda: table(MILLION, "adamx"), "--optimizer 'adamx' is not known for a table"),
        (lambda: Vectors(count=-1, dimensions=8), "zero or more vectors"),
        (lambda: Vectors(count=1, dimensions=0), "zero or more vectors"),
    ],
)
def test_sizes_that_cannot_be_are_refused_by_the_name_of_their_flag(
    make: Callable[[], object], said: str
) -> None:
    with pytest.raises(FootprintError, match=said):
        make()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 10**6), st.integers(1, 4096), st.integers(1, 128))
def test_more_vectors_never_take_less(count: int, more: int, dimensions: int, links: int) -> None:
    few, many = (
        Vectors(count=count, dimensions=dimensions),
        Vectors(count=count + more, dimensions=dimensions),
    )

    for size in (flat, table, lambda of: hnsw(of, links), lambda of: ivf(of, links), lambda of: pq(of, 1)):
        one = whole(size(few))
        assert one.low <= one.expected <= one.high
        assert whole(size(many)).expected >= one.expected
    assert whole(hnsw(few, links + 1)).low >= whole(hnsw(few, links)).low
