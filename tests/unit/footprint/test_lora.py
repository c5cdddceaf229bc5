"""Slots for adapters as vLLM allocates them, for models whose numbers can be worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brimline.errors import FootprintError
from brimline.footprint.architecture import (
    Architecture,
    Attention,
    Experts,
    FeedForward,
    LatentAttention,
    Layer,
    Mixer,
)
from brimline.footprint.lora import RANKS, LoraSettings, adapter_parameters, lora_host_bytes, lora_slots_bytes


def model(
    mixer: Mixer,
    part: FeedForward | Experts,
    *,
    layers: int = 1,
    hidden: int = 4096,
    vocabulary: int = 128256,
) -> Architecture:
    layer = Layer(mixers=(mixer,), feed_forward=part, norm_elements=0)
    return Architecture(
        model_type="x", vocabulary=vocabulary, hidden=hidden, layers=(layer,) * layers, tied=False
    )


GQA = Attention(query_heads=32, kv_heads=8, key_dim=128, value_dim=128)
LLAMA_8B = model(GQA, FeedForward(intermediate=14336), layers=32)
NO_ENDS = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})


def test_an_adapter_of_llama_3_1_8b_of_rank_16_has_41_943_040_parameters() -> None:
    # Published for all linear layers of Llama-3-8B: q, o: 8192; k, v: 5120; gate, up, down: 18432
    # 16 * 32 * (2 * 8192 + 2 * 5120 + 3 * 18432)
    assert adapter_parameters(LLAMA_8B, 16) == 41_943_040


def test_an_adapter_of_query_and_value_alone_is_smaller() -> None:
    # 8 * 32 * (8192 + 5120): 3,407,872 parameters, as PEFT prints for Llama-3-8B
    assert adapter_parameters(LLAMA_8B, 8, frozenset({"q_proj", "v_proj"})) == 3_407_872


def test_a_target_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(FootprintError, match="the model has no c_attn; its linear layers: down_proj"):
        adapter_parameters(LLAMA_8B, 8, frozenset({"c_attn"}))


def test_slots_take_what_whole_adapters_take_on_one_gpu() -> None:
    size = lora_slots_bytes(LLAMA_8B, LoraSettings(max_loras=4, max_lora_rank=16, targets=NO_ENDS))

    assert size.expected == 4 * 41_943_040 * 2


def test_embedding_and_head_hold_the_vocabulary_where_adapters_may_be_on_them() -> None:
    every = lora_slots_bytes(LLAMA_8B, LoraSettings(max_lora_rank=16))

    # both: 16 * (128256 + 4096) * 2 bytes
    assert every.expected - every.low == 2 * 16 * (128256 + 4096) * 2


def test_tensor_parallelism_divides_one_side_of_each_slot() -> None:
    size = lora_slots_bytes(LLAMA_8B, LoraSettings(max_lora_rank=16, tensor_parallel=4, targets=NO_ENDS))

    # q: 4096 + 1024; k, v: 4096 + 256; o: 1024 + 4096; gate, up: 4096 + 3584; down: 3584 + 4096
    assert size.expected == 16 * 32 * (5120 + 2 * 4352 + 5120 + 3 * 7680) * 2


def test_fully_sharded_slots_divide_both_sides() -> None:
    size = lora_slots_bytes(
        LLAMA_8B, LoraSettings(max_lora_rank=16, tensor_parallel=4, fully_sharded=True, targets=NO_ENDS)
    )

    # column: rank 4 of A, all inputs; rank 16 of B. row: rank 16 of A, inputs / 4; B with 1024 outputs
    column = 4 * 4096 * 5 + 16 * (1024 + 2 * 256 + 2 * 3584)
    row = 16 * (1024 + 1024) + 16 * (3584 + 1024)
    assert size.expected == 32 * (column + row) * 2


def test_key_and_value_heads_are_replicated_once_there_are_more_gpus() -> None:
    only = frozenset({"k_proj"})

    eight = lora_slots_bytes(LLAMA_8B, LoraSettings(tensor_parallel=8, targets=only))
    sixteen = lora_slots_bytes(LLAMA_8B, LoraSettings(tensor_parallel=16, targets=only))

    # 16 * 32 * (4096 + 128) * 2
    assert eight.expected == sixteen.expected == 4_325_376


MIXTRAL = model(GQA, Experts(count=8, per_token=2, intermediate=14336), vocabulary=32000)
EXPERTS = frozenset({"experts"})

# What vLLM itself allocates (tests/oracles/lora_slots.py).
ORACLE = json.loads((Path(__file__).parents[2] / "golden" / "lora_slots.json").read_text())


@pytest.mark.parametrize("name", ORACLE["cases"])
def test_slots_take_what_vllm_allocates(name: str) -> None:
    case: dict[str, Any] = ORACLE["cases"][name]
    config, flags = case["config"], case["flags"]
    attention = Attention(
        query_heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        key_dim=config["hidden_size"] // config["num_attention_heads"],
        value_dim=config["hidden_size"] // config["num_attention_heads"],
    )
    part: FeedForward | Experts = FeedForward(intermediate=config["intermediate_size"])
    if experts := config.get("num_local_experts"):
        part = Experts(
            count=experts, per_token=config["num_experts_per_tok"], intermediate=config["intermediate_size"]
        )
    architecture = model(
        attention,
        part,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        vocabulary=config["vocab_size"],
    )
    targets = flags.get("lora_target_modules")
    setup = LoraSettings(
        max_loras=flags.get("max_loras", 1),
        max_lora_rank=flags["max_lora_rank"],
        tensor_parallel=flags.get("tensor_parallel_size", 1),
        fully_sharded=flags.get("fully_sharded_loras", False),
        targets=None if targets is None else frozenset(targets),
    )

    assert lora_slots_bytes(architecture, setup).expected == sum(case["slots"].values())


def test_each_expert_has_its_own_slot() -> None:
    size = lora_slots_bytes(MIXTRAL, LoraSettings(max_lora_rank=16, targets=EXPERTS))

    # 8 experts * 16 * 3 * (4096 + 14336) * 2 bytes
    assert size.expected == 8 * 16 * 3 * 18432 * 2


def test_shared_outer_factors_are_kept_once() -> None:
    size = lora_slots_bytes(MIXTRAL, LoraSettings(max_lora_rank=16, moe_shared=True, targets=EXPERTS))

    # A of gate and up, B of down once; the others for 8 experts
    assert size.expected == 16 * (3 * 4096 + 8 * 3 * 14336) * 2


def test_expert_parallelism_keeps_whole_experts_of_a_rank() -> None:
    size = lora_slots_bytes(
        MIXTRAL, LoraSettings(max_lora_rank=16, tensor_parallel=3, expert_parallel=3, targets=EXPERTS)
    )

    # the fullest of three ranks has 3 of 8 experts
    assert size.expected == 3 * 16 * 3 * 18432 * 2


def test_latent_attention_has_down_projections_that_are_not_divided() -> None:
    latent = LatentAttention(
        query_heads=128, q_lora_rank=1536, kv_lora_rank=512, nope_dim=128, rope_dim=64, value_dim=128
    )
    deepseek = model(latent, FeedForward(intermediate=8), hidden=7168)
    setup = LoraSettings(max_lora_rank=16, targets=frozenset({"q_a_proj", "kv_a_proj_with_mqa"}))

    # 16 * (7168 + 1536 + 7168 + 576) * 2
    assert lora_slots_bytes(deepseek, setup).expected == 526_336
    assert lora_slots_bytes(deepseek, replace(setup, tensor_parallel=8)).expected == 526_336


def test_a_stage_holds_the_slots_of_its_layers() -> None:
    whole = LoraSettings(targets=NO_ENDS)

    half = lora_slots_bytes(LLAMA_8B, replace(whole, stage_layers=range(16)))

    assert half.expected * 2 == lora_slots_bytes(LLAMA_8B, whole).expected


def test_the_host_keeps_whole_adapters() -> None:
    size = lora_host_bytes(
        LLAMA_8B, LoraSettings(max_loras=2, max_lora_rank=16, max_cpu_loras=10, tensor_parallel=4)
    )

    assert (size.low, size.expected) == (0, 10 * 41_943_040 * 2)


def test_a_vocabulary_too_large_for_vllm_is_refused() -> None:
    gemma = replace(LLAMA_8B, vocabulary=262144)

    with pytest.raises(FootprintError, match="leave lm_head out of the targets"):
        lora_slots_bytes(gemma, LoraSettings())
    assert lora_slots_bytes(gemma, LoraSettings(targets=NO_ENDS)).expected


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_lora_rank": 7}, "max_lora_rank is 7; vLLM knows 1, 8, 16"),
        ({"max_loras": 0}, "max_loras is 0"),
        ({"max_loras": 4, "max_cpu_loras": 2}, "max_cpu_loras is 2; it is at least max_loras"),
        ({"max_lora_rank": 8, "tensor_parallel": 16, "fully_sharded": True}, "cannot be divided"),
    ],
)
def test_flags_that_vllm_refuses_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(FootprintError, match=message):
        LoraSettings(**wrong)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(RANKS), st.sampled_from(RANKS), st.integers(1, 64), st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([LLAMA_8B, MIXTRAL]),
)  # fmt: skip
def test_a_larger_rank_or_more_slots_never_take_less(
    rank: int, other: int, slots: int, tensor_parallel: int, architecture: Architecture
) -> None:
    low, high = sorted((rank, other))
    setup = LoraSettings(max_lora_rank=low, max_loras=slots, tensor_parallel=tensor_parallel)

    size = lora_slots_bytes(architecture, setup)

    assert size.low <= size.expected <= size.high
    assert lora_slots_bytes(architecture, replace(setup, max_lora_rank=high)).expected >= size.expected
    assert lora_slots_bytes(architecture, replace(setup, max_loras=slots + 1)).expected > size.expected
