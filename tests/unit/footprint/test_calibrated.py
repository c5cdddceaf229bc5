"""How a prediction takes what was measured."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brimline.estimate import Estimate, exact
from brimline.footprint.calibrated import (
    SUM_ROUNDING_BYTES,
    measured_gpu,
    measured_parts,
    measured_pool,
    non_kv,
    shared_out,
)
from brimline.footprint.calibration import Calibration, plain_settings
from brimline.footprint.constants import MIB
from brimline.footprint.gpus import find_gpu, live_gpu


def calibrated(**measured: Any) -> Calibration:
    return Calibration(engine="vllm", version="0.32.0", gpu="H100", **measured)


PARTS = {
    "activations": Estimate(100, 300, 900, "table"),
    "cuda_graphs": Estimate(10, 50, 250, "table"),
    "libraries": Estimate(5, 20, 40, "table"),
}


def test_parts_move_by_the_room_that_their_bounds_leave() -> None:
    """820 of room for 205 more, a quarter each: 600 / 4, 200 / 4, 20 / 4."""
    shared = shared_out(PARTS, exact(370 + 205, "measured"))

    assert {name: part.expected for name, part in shared.items()} == {
        "activations": 450, "cuda_graphs": 100, "libraries": 25,
    }  # fmt: skip


def test_bounds_narrow_to_what_the_sum_allows() -> None:
    """Of 400 at most 400 - 10 - 5 are activations, and at least 400 - 250 - 40."""
    shared = shared_out(PARTS, exact(400, "measured"))

    assert (shared["activations"].low, shared["activations"].high) == (110, 385)


def test_what_the_tables_do_not_know_goes_to_the_part_with_the_widest_bounds() -> None:
    shared = shared_out(PARTS, exact(2000, "measured"))

    assert shared["cuda_graphs"].expected == 250
    assert shared["activations"].expected == 2000 - 250 - 40


sizes = st.integers(0, 1 << 40)
estimates = st.tuples(sizes, sizes, sizes).map(
    lambda three: Estimate(min(three), sum(three) - min(three) - max(three), max(three), "table")
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text("abc", min_size=1, max_size=2), estimates, min_size=1, max_size=4), sizes)
def test_parts_add_up_to_any_sum_and_stay_ordered(parts: dict[str, Estimate], whole: int) -> None:
    shared = shared_out(parts, exact(whole, "measured"))

    assert sum(part.expected for part in shared.values()) == whole
    assert set(shared) == set(parts)


def test_no_parts_share_nothing() -> None:
    assert shared_out({}, exact(5, "measured")) == {}


COMPONENTS = {
    "weights": Estimate(900, 1000, 1100, "config.json"),
    "context": Estimate(1, 2, 3, "table"),
    **PARTS,
}


def parts_of(
    calibration: Calibration | None, whole: Estimate | None, *, counted: bool = True
) -> dict[str, int]:
    parts = measured_parts(
        COMPONENTS, calibration, whole, in_budget="libraries", uncounted=("context",), graphs_counted=counted
    )
    return {name: part.expected for name, part in parts.items()}


def test_without_a_calibration_nothing_changes() -> None:
    assert parts_of(None, None) == {name: part.expected for name, part in COMPONENTS.items()}


def test_measured_parts_stand_as_they_are_and_the_others_share_the_rest() -> None:
    made = calibrated(weights_bytes=1050, non_torch_bytes=20, non_kv_bytes=1500)

    parts = parts_of(made, exact(1500, "measured"))

    assert (parts["weights"], parts["libraries"], parts["context"]) == (1050, 20, 2)
    assert parts["activations"] + parts["cuda_graphs"] == 1500 - 1050 - 20


def test_graphs_are_charged_by_their_estimate_and_shown_by_what_they_took() -> None:
    made = calibrated(cuda_graphs_bytes=50, cuda_graphs_estimate_bytes=200, non_kv_bytes=1500)

    parts = parts_of(made, exact(1500, "measured"))

    assert parts["cuda_graphs"] == 50
    assert parts["activations"] + parts["libraries"] == 1500 - 1000 - 200


def test_graphs_that_the_budget_does_not_count_take_no_part_in_the_sum() -> None:
    parts = parts_of(calibrated(non_kv_bytes=1500), exact(1500, "measured"), counted=False)

    assert parts["cuda_graphs"] == 50
    assert parts["activations"] + parts["libraries"] == 500


def test_the_pool_is_what_a_measured_sum_leaves_of_the_budget() -> None:
    pool = measured_pool(Estimate(90, 100, 110, "budget"), Estimate(20, 30, 40, "measured"))

    assert (pool.low, pool.expected, pool.high) == (50, 70, 90)


STATED = {"max_model_len": "8192", "kv_cache_dtype": "auto", "max_num_seqs": "256"}


def test_a_sum_of_a_log_is_right_within_two_roundings() -> None:
    made = calibrated(non_kv_bytes=1 << 34, settings=plain_settings(STATED))

    size = non_kv(made, STATED)

    assert size is not None
    assert (size.expected - size.low, size.high - size.expected) == (SUM_ROUNDING_BYTES, SUM_ROUNDING_BYTES)
    assert non_kv(calibrated(), STATED) is None
    assert non_kv(None, STATED) is None


def test_another_cache_type_may_bring_another_work_buffer() -> None:
    made = calibrated(non_kv_bytes=1 << 34, settings=plain_settings(STATED))

    size = non_kv(made, {**STATED, "kv_cache_dtype": "fp8"})

    # vLLM 0.32, envs.py VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE: 394 MiB
    assert size is not None
    assert size.high - size.expected == size.expected - size.low == 394 * MIB + SUM_ROUNDING_BYTES


@pytest.mark.parametrize(("length", "low", "high"), [("16384", 0, 512), ("4096", 256, 0)])
def test_another_context_length_takes_a_block_table_of_another_size(length: str, low: int, high: int) -> None:
    """4 bytes for each of 256 requests and 16 tokens: 512 KiB for 8,192 tokens more, 256 for 4,096 less."""
    made = calibrated(non_kv_bytes=1 << 34, settings=plain_settings(STATED))

    size = non_kv(made, {**STATED, "max_model_len": length})

    assert size is not None
    assert size.expected - size.low == SUM_ROUNDING_BYTES + low * 1024
    assert size.high - size.expected == SUM_ROUNDING_BYTES + high * 1024


def test_what_cuda_shows_is_taken_from_the_calibration_unless_nvml_has_told_it() -> None:
    made = calibrated(visible_bytes=81_200 * MIB)

    by_table, live = find_gpu("H100"), live_gpu("NVIDIA H100 80GB HBM3", 81_559 * MIB, 551 * MIB)

    assert measured_gpu(by_table, made).visible_bytes.expected == 81_200 * MIB
    assert measured_gpu(live, made).visible_bytes.expected == 81_008 * MIB
    assert measured_gpu(by_table, None) == by_table
    # Of another kind of GPU than this, it cannot be.
    assert measured_gpu(find_gpu("L4"), made).visible_bytes.expected < 24 * 1024 * MIB
