"""Segments, blocks, and what of them counts (PyTorch 2, c10/cuda/CUDACachingAllocator.cpp)."""

from __future__ import annotations

from brimline.footprint.constants import MIB
from brimline.footprint.cuda_allocator import allocated_bytes


def test_what_is_left_of_a_segment_counts_up_to_one_mib() -> None:
    assert allocated_bytes([75 * MIB]) == 76 * MIB
    assert allocated_bytes([76 * MIB]) == 76 * MIB
    assert allocated_bytes([75 * MIB - 512]) == 75 * MIB - 512


def test_tensors_below_10_mib_share_segments_of_20() -> None:
    # 8 + 8 leave 4, which takes 3.5 and what is left; the next one opens a segment again.
    assert allocated_bytes([8 * MIB, 8 * MIB, 3 * MIB + MIB // 2]) == 20 * MIB
    assert allocated_bytes([8 * MIB] * 3) == 24 * MIB


def test_what_a_large_tensor_leaves_is_for_the_next_small_one() -> None:
    left = 2 * MIB - MIB // 4

    assert allocated_bytes([30 * MIB - left, left]) == 30 * MIB


def test_a_limit_on_splitting_gives_large_tensors_whole_segments() -> None:
    assert allocated_bytes([32 * MIB + 512], max_split_bytes=20 * MIB) == 34 * MIB
    assert allocated_bytes([12 * MIB + 512], max_split_bytes=20 * MIB) == 12 * MIB + 512


def test_small_tensors_are_rounded_to_512_bytes() -> None:
    assert allocated_bytes([1, 512, 513, MIB]) == 512 + 512 + 1024 + MIB


def test_phi_4_takes_two_mib_more_in_each_layer() -> None:
    """75 and 175 MiB take 76 and 176, 50 and 350 fit: 0.08 GiB in 40 layers, as in its 27.39 GiB.

    The log stands in tests/measurements/vllm-0.19.0.yaml.
    """
    layer = [75 * MIB, 50 * MIB, 350 * MIB, 175 * MIB]

    assert allocated_bytes(layer * 40) - sum(layer) * 40 == 80 * MIB
