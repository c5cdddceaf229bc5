"""Budget and runtime memory, against published start-up logs of vLLM."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brimline.errors import FootprintError
from brimline.estimate import Estimate, exact
from brimline.footprint.calibration import Calibration
from brimline.footprint.constants import GIB, MIB
from brimline.footprint.runtime import (
    RuntimeSettings,
    SglangSettings,
    context_bytes,
    cuda_graphs_bytes,
    graphs_count_in_budget,
    kv_cache_pool_bytes,
    non_torch_bytes,
    sglang_static_ratio,
    vllm_budget,
    vllm_budget_bytes,
)


@pytest.mark.parametrize(
    ("visible_gib", "utilization", "budget_gib"),
    [  # "Desired GPU memory utilization is (0.9, 71.26 GiB)" and the like, in logs of 0.10.2 to 0.31
        (79.18, 0.9, 71.26),
        (79.25, 0.92, 72.91),
        (139.81, 0.9, 125.83),
        (94.97, 0.97, 92.12),
        (23.99, 0.85, 20.39),
    ],
)
def test_the_budget_is_a_part_of_the_visible_memory(
    visible_gib: float, utilization: float, budget_gib: float
) -> None:
    budget = vllm_budget_bytes(round(visible_gib * GIB), utilization)

    # The log rounds both figures to 0.01 GiB.
    assert budget / GIB == pytest.approx(budget_gib, abs=0.0101)


def test_the_budget_is_rounded_up_to_a_byte() -> None:
    assert vllm_budget_bytes(1001, 0.9) == 901  # 900.9


def test_the_budget_keeps_the_bounds_of_the_visible_memory() -> None:
    assert vllm_budget(Estimate(100, 110, 120, "card"), 0.5) == Estimate(
        50, 55, 60, "ceil(total * gpu_memory_utilization), vLLM 0.32 v1/worker/utils.py; total: card"
    )


@pytest.mark.parametrize("utilization", [0, -0.1, 1.01, float("nan")])
def test_a_utilization_outside_0_to_1_is_refused(utilization: float) -> None:
    with pytest.raises(FootprintError, match="gpu_memory_utilization"):
        vllm_budget_bytes(GIB, utilization)


def gib(size: float) -> Estimate:
    return exact(size * GIB, "log")


@pytest.mark.parametrize(
    ("version", "budget", "weights", "non_torch", "activation", "graphs", "pool"),
    [
        # vLLM PR 12126 (0.6.6): "71.29GiB; model weights take 19.86GiB; non_torch_memory takes 0.16GiB;
        # PyTorch activation peak memory takes 36.63GiB; the rest … is 14.65GiB"
        ("0.6.6", 71.29, 19.86, 0.16, 36.63, 0.5, 14.65),
        # 0.10.2 on H100: weight 14.08, peak activation 1.97, non-torch 0.07, CUDAGraph 0.67
        ("0.10.2", 71.27, 14.08, 0.07, 1.97, 0.67, 55.15),
        # August 2026 on GB200 at TP 4: estimated graphs of 4.99 GiB count
        ("0.26.0", 169.56, 106.69, 0.95, 6.31, 4.99, 50.62),
    ],
)
def test_the_pool_is_what_the_budget_leaves(
    version: str,
    budget: float,
    weights: float,
    non_torch: float,
    activation: float,
    graphs: float,
    pool: float,
) -> None:
    left = kv_cache_pool_bytes(
        gib(budget),
        weights=gib(weights),
        non_torch=gib(non_torch),
        activations=gib(activation),
        graphs=gib(graphs),
        version=version,
    )

    assert left.expected / GIB == pytest.approx(pool, abs=0.026)


def test_graphs_count_in_the_budget_since_0_21() -> None:
    assert not graphs_count_in_budget("0.20.2")
    assert graphs_count_in_budget("0.21.0")
    assert graphs_count_in_budget(None)


def test_where_nothing_is_left_the_pool_is_empty() -> None:
    none = exact(0, "")

    pool = kv_cache_pool_bytes(gib(10), weights=gib(20), non_torch=none, activations=none, graphs=none)

    assert pool.high == 0


def test_eager_mode_has_no_graphs() -> None:
    assert cuda_graphs_bytes(RuntimeSettings(graphs=False)).high == 0


@pytest.mark.parametrize(
    ("version", "logged_gib"),
    # llm-d's 0.19.0 report: 0.51 to 1.85; 0.10.2: 0.67 and 2.37; logs of 2026: 0.23, 0.36, 0.96, 2.04, 2.22
    [
        ("0.19.0", 0.51),
        ("0.19.0", 1.85),
        ("0.10.2", 2.37),
        ("0.31.0", 0.23),
        ("0.27.1", 0.36),
        ("0.25.0", 2.22),
    ],
)
def test_the_bounds_of_graphs_hold_what_logs_say(version: str, logged_gib: float) -> None:
    size = cuda_graphs_bytes(RuntimeSettings(version=version))

    assert size.low <= logged_gib * GIB <= size.high


@pytest.mark.parametrize(
    ("version", "world_size", "logged_gib"),
    [  # llm-d's two reports; vLLM PR 48601; logs of 0.10.2 on H200 and of 0.31 on A100
        ("0.12.0", 1, 0.13), ("0.12.0", 2, 0.55), ("0.10.2", 2, 1.38), ("0.19.0", 1, 0.46),
        ("0.19.0", 2, 2.07), ("0.19.0", 4, 2.17), ("0.25.0", 4, 0.6), ("0.26.0", 4, 0.95),
        ("0.31.0", 1, 0.26),
    ],
)  # fmt: skip
def test_the_bounds_of_library_memory_hold_what_logs_say(
    version: str, world_size: int, logged_gib: float
) -> None:
    size = non_torch_bytes(RuntimeSettings(version=version, world_size=world_size))

    assert size.low <= logged_gib * GIB <= size.high


@pytest.mark.parametrize(
    ("gpu", "world_size", "visible_gib", "free_gib"),
    [  # "Free memory on device (free/visible GiB) on startup"
        ("H100 SXM", 1, 79.18, 78.57),
        ("H100 SXM", 2, 79.18, 77.64),
        ("H100 SXM", 4, 79.11, 77.57),
        ("A100 80GB SXM", 1, 79.25, 78.84),
        ("RTX 3090", 1, 23.47, 23.30),
        ("GB200", 4, 184.31, 181.84),
    ],
)
def test_the_bounds_of_the_context_hold_what_logs_say(
    gpu: str, world_size: int, visible_gib: float, free_gib: float
) -> None:
    size = context_bytes(RuntimeSettings(gpu=gpu, world_size=world_size))

    assert size.low <= (visible_gib - free_gib) * GIB <= size.high


def test_what_a_server_measured_goes_before_the_table() -> None:
    measured = Calibration(
        engine="vllm", version="0.32.0", gpu="H100", cuda_graphs_bytes=GIB, non_torch_bytes=2 * GIB,
        context_bytes=3 * GIB,
    )  # fmt: skip
    setup = RuntimeSettings(version="0.32.0", gpu="H100")

    sizes = [size(setup, measured).expected for size in (cuda_graphs_bytes, non_torch_bytes, context_bytes)]

    assert sizes == [GIB, 2 * GIB, 3 * GIB]
    assert cuda_graphs_bytes(setup, measured).high - GIB < 6 * MIB


def test_sglang_keeps_ten_gib_of_a_large_gpu() -> None:
    # 512 + 1.5 * 8192 + 1 / 8 * 1024 + 2 * 512 = 13,952 MiB of 81,559 are more than 10 GiB
    ratio = sglang_static_ratio(
        81559 * MIB, SglangSettings(chunked_prefill_tokens=8192, decode_max_batch=512)
    )
    # 512 + 1.5 * 2048 + 128 = 3712 MiB are less
    small = sglang_static_ratio(81559 * MIB, SglangSettings(chunked_prefill_tokens=0))

    assert ratio == 0.829
    assert small == 0.874


def test_sglang_keeps_a_twentieth_more_for_vision() -> None:
    plain = sglang_static_ratio(24576 * MIB, SglangSettings(chunked_prefill_tokens=2048))
    vision = sglang_static_ratio(24576 * MIB, SglangSettings(chunked_prefill_tokens=2048, vision=True))

    assert vision == pytest.approx(0.95 * plain)


def test_a_gpu_below_sglangs_reserve_is_refused() -> None:
    with pytest.raises(FootprintError, match="smaller than SGLang's reserve"):
        sglang_static_ratio(GIB, SglangSettings(chunked_prefill_tokens=2048))


sizes = st.tuples(*[st.integers(0, 1 << 40)] * 3).map(
    lambda bounds: Estimate(min(bounds), sorted(bounds)[1], max(bounds), "x")
)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, sizes, sizes, sizes, st.sampled_from(["0.19.0", "0.32.0", None]))
def test_the_bounds_of_the_pool_stay_in_order(
    budget: Estimate,
    weights: Estimate,
    non_torch: Estimate,
    peak: Estimate,
    graphs: Estimate,
    version: str | None,
) -> None:
    pool = kv_cache_pool_bytes(
        budget, weights=weights, non_torch=non_torch, activations=peak, graphs=graphs, version=version
    )

    assert 0 <= pool.low <= pool.expected <= pool.high <= budget.high


def test_stages_of_a_pipeline_take_no_buffers_for_exchange_within_a_layer() -> None:
    """0.07 GiB of library memory on each of two stages, 2.1 at TP 2 (llm-d-planner, vLLM 0.19.0 on H100)."""
    pipeline = RuntimeSettings(engine="vllm", version="0.19.0", gpu="H100", world_size=2, layer_ranks=1)
    tensor = RuntimeSettings(engine="vllm", version="0.19.0", gpu="H100", world_size=2, layer_ranks=2)

    assert non_torch_bytes(pipeline).expected < 0.5 * GIB
    assert non_torch_bytes(tensor).expected > 1.5 * GIB
