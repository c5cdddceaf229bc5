"""The table of constants: which row holds, and that every row says where it comes from."""

from __future__ import annotations

import pytest

from brimline.errors import FootprintError
from brimline.footprint.constants import (
    CONSTANTS,
    GIB,
    MIB,
    Constant,
    batch_defaults,
    constant,
    parse_version,
)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("0.32.0", (0, 32, 0)),
        ("v0.31.0", (0, 31, 0)),
        ("0.6.4.post1", (0, 6, 4)),
        ("0.33.0rc1", (0, 33, 0)),
        ("0.32.0+cpu", (0, 32, 0)),
    ],
)
def test_only_the_leading_numbers_of_a_version_count(text: str, version: tuple[int, ...]) -> None:
    assert parse_version(text) == version


def test_what_is_no_version_is_refused() -> None:
    with pytest.raises(FootprintError, match="'main' is not a version"):
        parse_version("main")


@pytest.mark.parametrize(
    "row", CONSTANTS, ids=lambda row: f"{row.name}-{row.engine}-{row.since}-{row.variant}"
)
def test_every_constant_has_a_source_and_bounds_in_order(row: Constant) -> None:
    assert row.source
    assert 0 <= row.low <= row.expected <= row.high


def test_no_two_constants_hold_for_the_same_thing() -> None:
    places = [(row.name, row.engine, row.since, row.before, row.gpu, row.variant) for row in CONSTANTS]

    assert len(places) == len(set(places))


@pytest.mark.parametrize(
    ("version", "expected"),
    # 0.9 of vLLM 0.6.4's and 0.19's documentation; 0.92 of 0.32, config/cache.py
    [("0.6.4", 0.9), ("0.19.0", 0.9), ("0.32.0", 0.92), ("0.33.0", 0.92)],
)
def test_the_default_utilization_follows_the_version(version: str, expected: float) -> None:
    assert constant("gpu_memory_utilization", engine="vllm", version=version).expected == expected


def test_an_unknown_version_counts_as_the_newest() -> None:
    assert constant("gpu_memory_utilization", engine="vllm") == constant(
        "gpu_memory_utilization", engine="vllm", version="99.0"
    )


def test_where_the_version_is_uncertain_the_bounds_hold_both() -> None:
    row = constant("gpu_memory_utilization", engine="vllm", version="0.22.0")

    assert (row.low, row.high) == (0.9, 0.92)


def test_a_row_of_the_gpu_goes_before_one_for_all() -> None:
    row = constant("context_bytes", engine="vllm", gpu="NVIDIA H100 80GB HBM3")

    # 79.18 - 78.57 GiB
    assert row.expected == pytest.approx(0.61 * GIB)


def test_a_row_of_several_gpus_goes_before_one_of_the_gpu() -> None:
    row = constant("context_bytes", engine="vllm", gpu="H100 SXM", variant="multi")

    # 79.18 - 77.64 GiB
    assert row.expected == pytest.approx(1.54 * GIB)


def test_what_no_row_holds_is_refused_by_name() -> None:
    with pytest.raises(FootprintError, match="no trtllm_free_fraction is known for vllm"):
        constant("trtllm_free_fraction", engine="vllm")


def test_flashinfer_keeps_394_mib() -> None:
    # vLLM 0.32, envs.py
    assert constant("flashinfer_workspace_bytes", engine="vllm").expected == 394 * MIB


@pytest.mark.parametrize(
    ("memory_gib", "name", "offline", "sequences", "tokens"),
    [  # vLLM 0.32, engine/arg_utils.py get_batch_defaults
        (179, "NVIDIA B200", False, 1024, 16384),
        (79, "NVIDIA H100 80GB HBM3", False, 1024, 8192),
        (79, "NVIDIA H100 80GB HBM3", True, 1024, 16384),
        (79, "NVIDIA A100-SXM4-80GB", False, 256, 2048),
        (44, "NVIDIA L40S", False, 256, 2048),
        (44, "NVIDIA L40S", True, 256, 8192),
    ],
)
def test_default_batches_follow_the_size_of_the_gpu(
    memory_gib: int, name: str, offline: bool, sequences: int, tokens: int
) -> None:
    defaults = batch_defaults(memory_gib * GIB, name, offline=offline)

    assert (defaults.max_num_seqs, defaults.max_num_batched_tokens) == (sequences, tokens)
