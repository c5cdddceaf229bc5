"""A prediction with what moves around it: the curve over the context length, and the limits of settings."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brimline.estimate import Estimate, exact
from brimline.footprint.controls import CONTROLS, control_of
from brimline.footprint.gpus import Gpu, find_gpu
from brimline.footprint.hf_config import architecture_of_config
from brimline.footprint.predict import Model, predict
from brimline.footprint.what_if import (
    Scenario,
    Span,
    context_lengths,
    headroom,
    room,
    suits,
    surroundings,
)
from brimline.readings import Footprint, KvCacheFootprint, RankFootprint

ROOT = Path(__file__).parent.parent.parent.parent
CONFIG = json.loads((ROOT / "exporter/brimline/demo/llama-3.1-8b/config.json").read_text())
CARD = Gpu(
    name="card",
    memory_bytes=110,
    visible_bytes=Estimate(98, 100, 102, "made up"),
    bandwidth_bytes_per_second=None,
)


def llama(gpu: str | None = "L4", **changes: Any) -> Scenario:
    model = Model(architecture_of_config({**CONFIG, **changes}, "config.json"))
    return Scenario(model=model, engine="vllm", settings={}, gpu=find_gpu(gpu) if gpu else None)


def footprint(*ranks: RankFootprint, **cache: Any) -> Footprint:
    kv_cache = KvCacheFootprint(bytes_per_token=1.0, max_model_len_tokens=10, full_request_bytes=20, **cache)
    return Footprint(engine="vllm", engine_version=None, parameters=1, ranks=ranks, kv_cache=kv_cache)


def rank(stage: int, weights: Estimate, pool: int, total: Estimate) -> RankFootprint:
    components = {"weights": weights, "kv_cache": exact(pool, "made up")}
    return RankFootprint(pipeline_stage=stage, components=components, total=total)


@pytest.mark.parametrize(
    ("longest", "lengths"),
    [
        (16_384, [1024, 1536, 2048, 3072, 4096, 6144, 8192, 12_288, 16_384]),
        (4096, [1024, 1536, 2048, 3072, 4096]),
        (10_000, [1024, 1536, 2048, 3072, 4096, 6144, 8192, 10_000]),
        (1024, [1024]),
        (77, [77]),
        (1, [1]),
    ],
)  # fmt: skip
def test_the_curve_has_two_lengths_for_each_doubling_and_ends_with_the_model(
    longest: int, lengths: list[int]
) -> None:
    assert list(context_lengths(longest)) == lengths


def test_headroom_is_what_the_card_shows_less_the_whole_server() -> None:
    one = footprint(rank(0, exact(60, "made up"), 30, Estimate(85, 90, 99, "made up")))

    assert headroom(one, CARD) == Span(98 - 99, 100 - 90, 102 - 85)


def test_room_is_what_is_left_beside_one_request_whatever_the_pool_is() -> None:
    weights = Estimate(55, 60, 70, "made up")
    small, large = (
        footprint(rank(0, weights, pool, exact(90, "made up")), stage_block_bytes=(4,)) for pool in (5, 500)
    )

    assert room(small, CARD) == room(large, CARD) == Span(98 - 70 - 20, 100 - 60 - 20, 102 - 55 - 20)


def test_of_a_request_that_lies_elsewhere_too_the_gpu_holds_no_more_than_its_pool() -> None:
    split = footprint(rank(0, exact(60, "made up"), 5, exact(65, "made up")))

    assert room(split, CARD).expected == 100 - 60 - 5


def test_room_is_of_the_tightest_stage_with_its_share_of_the_request() -> None:
    stages = [
        rank(stage, exact(size, "made up"), 0, exact(90, "made up")) for stage, size in ((0, 60), (1, 75))
    ]
    # A block is twice as large on the first stage: of the request's 20 bytes the second holds 10.
    both = footprint(*stages, stage_block_bytes=(4, 2))

    assert room(both, CARD).expected == 100 - 75 - 10


@pytest.mark.parametrize(
    ("fits", "starts", "suitable"),
    [
        (None, None, None),
        (None, True, None),
        (True, None, True),
        (True, True, True),
        (True, False, False),
        (False, True, False),
    ],
)  # fmt: skip
def test_what_the_card_holds_suits_only_where_the_engine_starts_too(
    fits: bool | None, starts: bool | None, suitable: bool | None
) -> None:
    one = footprint(rank(0, exact(60, "made up"), 30, exact(90, "made up")))

    assert suits(replace(one, fits=fits, starts=starts)) is suitable


def test_a_longer_context_leaves_less_room_and_serves_fewer_requests() -> None:
    curve = surroundings(llama(), seconds=60.0).curve

    assert [point.context_tokens for point in curve] == list(context_lengths(131_072))
    for shorter, longer in itertools.pairwise(curve):
        assert shorter.room is not None
        assert longer.room is not None
        assert shorter.concurrency is not None
        assert longer.concurrency is not None
        assert shorter.room.expected > longer.room.expected
        assert shorter.concurrency > longer.concurrency
        # 2 * 32 layers * 8 heads * 128 * 2 bytes for each token more.
        more = longer.context_tokens - shorter.context_tokens
        assert shorter.room.expected - longer.room.expected == more * 131_072


def test_the_longest_context_that_fits_is_the_last_one() -> None:
    scenario = llama()
    longest = surroundings(scenario, seconds=60.0).longest_fitting

    assert longest is not None
    assert suits(scenario.having("max_model_len", longest).footprint()) is True
    assert suits(scenario.having("max_model_len", longest + 1).footprint()) is False


def test_on_a_card_with_room_to_spare_the_model_itself_is_the_limit() -> None:
    around = surroundings(llama("H200"), seconds=60.0)

    assert (around.longest_fitting, around.longest_context) == (131_072, 131_072)


def test_no_context_fits_on_a_card_that_is_smaller_than_the_weights() -> None:
    around = surroundings(llama("T4"), seconds=60.0)

    assert around.longest_fitting is None
    assert not any(point.fits for point in around.curve)


def test_without_a_gpu_the_curve_knows_sizes_only() -> None:
    around = surroundings(llama(None), seconds=60.0)

    assert around.longest_fitting is None
    assert {(point.fits, point.room, point.headroom) for point in around.curve} == {(None, None, None)}
    assert around.curve[0].full_request_bytes == 1024 * 131_072


# One of heads and ranks must divide the other (vLLM, config/model.py get_num_kv_heads).
@pytest.mark.parametrize(
    ("heads", "kv_heads", "sizes"),
    [(32, 8, [1, 2, 4, 8, 16, 32]), (24, 6, [1, 2, 3, 6, 12, 24]), (28, 4, [1, 2, 4, 28])],
)
def test_a_model_is_split_only_as_its_heads_divide(heads: int, kv_heads: int, sizes: list[int]) -> None:
    scenario = llama(num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=128)
    around = surroundings(scenario, seconds=60.0)

    assert set(around.tensor_parallel_sizes) <= set(sizes)
    assert {1, 2}.issubset(around.tensor_parallel_sizes)


def test_a_model_without_a_context_length_gets_a_curve_all_the_same() -> None:
    around = surroundings(llama(max_position_embeddings=None), seconds=60.0)

    assert around.curve[-1].context_tokens == 131_072


def test_what_takes_too_long_is_left_out_and_said_so() -> None:
    ticks = itertools.count()
    around = surroundings(llama(), seconds=10.0, clock=lambda: float(next(ticks)))

    assert not around.is_whole
    assert around.longest_fitting is None
    assert len(around.tensor_parallel_sizes) + len(around.curve) < 12


@pytest.mark.parametrize(
    ("engine", "name", "choice"),
    [
        (engine, control.name, choice)
        for engine, controls in CONTROLS.items()
        for control in controls
        for choice in control.choices
    ],
)
def test_every_choice_that_is_offered_is_one_the_predictor_takes(engine: str, name: str, choice: str) -> None:
    latent = {**CONFIG, "model_type": "deepseek_v2", "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    latent |= {"qk_nope_head_dim": 128, "v_head_dim": 128, "q_lora_rank": None, "n_routed_experts": None}
    config = latent if choice.endswith("_mla") else CONFIG

    predict(engine, Model(architecture_of_config(config, "config.json")), {name: choice})


def test_an_engine_that_is_not_known_has_no_controls() -> None:
    assert control_of("abacus", "context") is None
