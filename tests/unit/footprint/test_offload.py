"""Weights and cache in host memory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brimline.errors import FootprintError
from brimline.footprint.constants import GIB
from brimline.footprint.offload import (
    kv_offloading_bytes,
    layerwise_offload,
    offloaded_tokens_per_second,
    prefetch_offload,
    uva_offload,
)


def test_cpu_offload_takes_gib_of_each_gpu() -> None:
    # vLLM's own example: 26 GiB of weights, a GPU of 24 GB, 10 GiB offloaded
    offload = uva_offload(26 * GIB, 10, ranks=2)

    assert offload.gpu.expected == 16 * GIB
    assert offload.host.expected == 20 * GIB


def test_no_more_is_offloaded_than_there_is() -> None:
    offload = uva_offload(5 * GIB, 10)

    assert (offload.gpu.high, offload.host.high) == (0, 5 * GIB)


def test_the_last_parameter_goes_beyond_the_limit() -> None:
    offload = uva_offload(26 * GIB, 10, largest_parameter_bytes=GIB)

    assert (offload.gpu.low, offload.gpu.high) == (15 * GIB, 16 * GIB)
    assert offload.host.high == 11 * GIB


def test_without_a_limit_nothing_is_offloaded() -> None:
    offload = uva_offload(26 * GIB, 0, largest_parameter_bytes=GIB)

    assert (offload.gpu.low, offload.host.high) == (26 * GIB, 0)


def test_prefetching_offloads_the_last_layers_of_each_group() -> None:
    # Groups of 8, 2 offloaded: layers 6, 7, 14, 15 (vLLM 0.32, config/offload.py); one buffer of a layer
    offload = prefetch_offload([100] * 16, 50, group_size=8, offloaded_in_group=2, prefetch_step=1)

    assert offload.host.expected == 400
    assert offload.gpu.expected == 50 + 1200 + 100


def test_prefetching_further_ahead_needs_more_buffers() -> None:
    near = prefetch_offload([100] * 16, 0, group_size=4, prefetch_step=1)
    far = prefetch_offload([100] * 16, 0, group_size=4, prefetch_step=3)

    assert far.gpu.expected - near.gpu.expected == 200


@pytest.mark.parametrize(("group", "moved", "step"), [(0, 1, 1), (2, 3, 1), (2, 0, 1), (2, 1, 0)])
def test_prefetch_settings_that_vllm_refuses_are_refused(group: int, moved: int, step: int) -> None:
    with pytest.raises(FootprintError, match="offload_"):
        prefetch_offload([100], 0, group_size=group, offloaded_in_group=moved, prefetch_step=step)


def test_layer_by_layer_a_gpu_holds_two_layers() -> None:
    offload = layerwise_offload([100, 120, 110], 50)

    assert (offload.gpu.expected, offload.host.expected) == (50 + 240, 330)


def test_the_link_to_the_host_bounds_the_speed() -> None:
    # 140 GB over 64 GB/s: 0.457 steps a second
    offload = layerwise_offload([1_750_000_000] * 80, 0)

    assert offloaded_tokens_per_second(offload, 64e9) == pytest.approx(0.457, abs=0.001)
    assert offloaded_tokens_per_second(offload, 64e9, batch=10) == pytest.approx(4.57, abs=0.01)
    assert offloaded_tokens_per_second(uva_offload(GIB, 0), 64e9) == float("inf")


def test_kv_offloading_counts_all_ranks_together() -> None:
    # vLLM 0.32, config/cache.py: GiB summed across tensor-parallel ranks
    assert kv_offloading_bytes(40).expected == 40 * GIB


@pytest.mark.parametrize("size", [-1, -0.5])
def test_negative_sizes_are_refused(size: float) -> None:
    with pytest.raises(FootprintError, match="cpu_offload_gb"):
        uva_offload(GIB, size)
    with pytest.raises(FootprintError, match="kv_offloading_size"):
        kv_offloading_bytes(size)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1 << 42), st.floats(0, 2000), st.floats(0, 100), st.integers(0, 1 << 33))
def test_offloading_more_never_leaves_more_on_the_gpu(
    weights: int, limit: float, more: float, largest: int
) -> None:
    offload = uva_offload(weights, limit, largest_parameter_bytes=largest)

    assert uva_offload(weights, limit + more, largest_parameter_bytes=largest).gpu.high <= offload.gpu.high
    assert offload.gpu.expected + offload.host.expected == weights
