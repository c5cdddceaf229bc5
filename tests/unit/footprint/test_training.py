"""Memory of training, against the papers' and DeepSpeed's own figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import brimline.demo
from brimline.errors import FootprintError
from brimline.footprint.hf_config import architecture_of_config, read_architecture
from brimline.footprint.training import (
    TrainedModel,
    TrainingSettings,
    activation_bytes,
    deepspeed_zero2,
    deepspeed_zero3,
    layer_activation_bytes,
    trained_model,
    training_footprint,
)

GIB = 1 << 30

SEVEN = TrainedModel(parameters=7_000_000_000, layers=32, hidden=4096, heads=32, vocabulary=32000)


@pytest.mark.parametrize(("master_weights", "gigabytes"), [(False, 84), (True, 112)])
def test_adam_takes_12_bytes_a_parameter_and_16_with_master_weights(
    master_weights: bool, gigabytes: int
) -> None:
    states = training_footprint(SEVEN, TrainingSettings(master_weights=master_weights)).states

    assert states.expected == gigabytes * 10**9


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.88)])
def test_zero_divides_optimizer_gradients_and_weights_in_turn(stage: int, gigabytes: float) -> None:
    # ZeRO (Rajbhandari et al. 2020), figure 1: 7.5B parameters on 64 GPUs
    paper = TrainedModel(parameters=7_500_000_000, layers=0, hidden=0, heads=0)

    states = training_footprint(paper, TrainingSettings(world_size=64, zero_stage=stage)).states

    assert states.expected / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_lora_keeps_the_model_and_trains_the_adapters() -> None:
    adapted = replace(SEVEN, trained_parameters=40_000_000)

    footprint = training_footprint(adapted, TrainingSettings(method="lora"))

    # 7e9 * 2, and 4e7 * 16
    assert footprint.part("frozen weights").expected == 14 * 10**9
    assert footprint.states.expected == 14 * 10**9 + 640_000_000


def test_qlora_leaves_embedding_and_head_at_16_bits() -> None:
    adapted = replace(SEVEN, trained_parameters=40_000_000)

    frozen = training_footprint(adapted, TrainingSettings(method="qlora")).part("frozen weights")

    # 262,144,000 parameters of an embedding and a head at 2 bytes, the others at 4.127 bits
    assert frozen.expected == pytest.approx(262_144_000 * 2 + 6_737_856_000 * 4.127 / 8, rel=1e-4)


def test_what_was_taken_for_granted_is_said() -> None:
    adapted = replace(SEVEN, trained_parameters=1)

    assert len(training_footprint(adapted, TrainingSettings(method="qlora")).assumptions) == 2
    assert training_footprint(SEVEN, TrainingSettings()).assumptions == ()


def parts_of(**settings: Any) -> dict[str, int]:
    """Bytes of each part of training 7B."""
    return {
        part.name: part.size.expected
        for part in training_footprint(SEVEN, TrainingSettings(**settings)).parts
    }


def test_the_parts_of_adam_in_mixed_precision_are_2_2_4_and_8_bytes() -> None:
    """ZeRO (Rajbhandari et al. 2020), section 3.1: 2 + 2 + (4 + 4 + 4) = 16 bytes of a parameter."""
    parts = parts_of()

    assert {name: size / 7e9 for name, size in parts.items() if name != "activations"} == {
        "weights": 2, "gradients": 2, "master weights": 4, "optimizer": 8,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("optimizer", "each"),
    # Hugging Face, GPU memory usage: 8 bytes of Adam, 2 of Adam in 8 bits; beside those a scale of 4 bytes
    # for each block of 256 and moment.
    [("adam", 8), ("adamw", 8), ("sgd-momentum", 4), ("sgd", 0), ("adagrad", 4), ("adamw-8bit", 2 + 8 / 256)],
)
def test_an_optimizer_keeps_its_moments(optimizer: str, each: float) -> None:
    assert parts_of(optimizer=optimizer)["optimizer"] == pytest.approx(each * 7e9, rel=1e-6)


def test_older_releases_keep_8_bit_moments_in_larger_blocks() -> None:
    """bitsandbytes, optim/optimizer.py init_state: 256 elements, before that 2048."""
    footprint = training_footprint(SEVEN, TrainingSettings(optimizer="adamw-8bit"))

    assert footprint.part("optimizer").low == pytest.approx((2 + 8 / 2048) * 7e9, rel=1e-6)


def test_moments_in_16_bits_take_half() -> None:
    assert parts_of(moment_bytes=2)["optimizer"] == 4 * 7 * 10**9


def test_training_in_fp32_takes_16_bytes_too() -> None:
    states = training_footprint(
        SEVEN, TrainingSettings(weight_bytes=4, gradient_bytes=4, master_weights=False)
    ).states

    assert states.expected == 112 * 10**9


def test_each_part_says_its_formula() -> None:
    footprint = training_footprint(SEVEN, TrainingSettings(world_size=8, zero_stage=1, tensor_parallel=2))

    formulas = {part.name: part.formula for part in footprint.parts}
    assert formulas["weights"] == "7,000,000,000 × 2 B / 2"
    assert formulas["optimizer"] == "7,000,000,000 × 2 × 4 B / 2 / 8"


def test_without_layers_activations_are_said_not_to_be_counted() -> None:
    footprint = training_footprint(
        TrainedModel(parameters=7_000_000_000, layers=0, hidden=0, heads=0), TrainingSettings()
    )

    assert "activations" not in {part.name for part in footprint.parts}
    assert "Activations are not counted: the model's layers are not known." in footprint.assumptions


# --- from a model's files


LLAMA_8B = read_architecture(Path(brimline.demo.__file__).parent / "llama-3.1-8b")


def test_a_models_sizes_come_from_its_config() -> None:
    """Llama-3.1-8B: 8,030,261,248 parameters, of which 2 * 128256 * 4096 are embedding and head."""
    model = trained_model(LLAMA_8B)

    assert (model.parameters, model.layers, model.hidden, model.heads) == (8_030_261_248, 32, 4096, 32)
    assert model.vocabulary == 128_256
    # 32 layers of q, o (4096²), k, v (4096 * 1024) and three of 4096 * 14336
    assert model.linear_parameters == 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert model.assumptions == ()


def test_adapters_of_q_and_v_take_rank_times_inputs_and_outputs() -> None:
    model = trained_model(LLAMA_8B, rank=8, targets=frozenset({"q_proj", "v_proj"}))

    # 32 layers * 8 * (4096 + 4096 + 4096 + 1024)
    assert model.trained_parameters == 3_407_872


def test_a_target_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(FootprintError, match="the model has no query_key_value; its linear layers"):
        trained_model(LLAMA_8B, rank=8, targets=frozenset({"query_key_value"}))


def test_layers_that_the_formula_does_not_know_are_said() -> None:
    mixtral = architecture_of_config(
        {
            "model_type": "mixtral", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "num_local_experts": 4,
            "num_experts_per_tok": 2, "max_position_embeddings": 128, "tie_word_embeddings": False,
        },
        "config.json",
    )  # fmt: skip

    assert any("may lie outside the bounds" in said for said in trained_model(mixtral).assumptions)


def test_adapters_need_their_number_of_parameters() -> None:
    with pytest.raises(FootprintError, match="lora trains adapters; give trained_parameters"):
        training_footprint(SEVEN, TrainingSettings(method="lora"))


# --- activations: Korthikanti et al. 2022


@pytest.mark.parametrize(
    ("hidden", "heads", "factor"),
    # The paper: 5as/h is 80 for GPT-3 and 64 for MT-NLG, both with 2048 tokens
    [(12288, 96, 80), (20480, 128, 64)],
)
def test_a_layer_keeps_34_and_5as_h_times_its_input(hidden: int, heads: int, factor: int) -> None:
    kept = layer_activation_bytes(sequence_tokens=2048, batch=1, hidden=hidden, heads=heads)

    assert kept == 2048 * hidden * (34 + factor)


def test_full_checkpointing_keeps_the_input_of_each_layer() -> None:
    kept = layer_activation_bytes(sequence_tokens=2048, batch=4, hidden=4096, heads=32, checkpointing="full")

    assert kept == 2 * 2048 * 4 * 4096


def test_selective_checkpointing_drops_the_scores() -> None:
    kept = layer_activation_bytes(
        sequence_tokens=2048, batch=1, hidden=12288, heads=96, checkpointing="selective"
    )

    assert kept == 34 * 2048 * 12288


def test_tensor_parallelism_leaves_ten_parts_undivided() -> None:
    # s*b*h * (10 + 24/8 + 80/8), with sequence parallelism s*b*h/8 * 114
    plain = layer_activation_bytes(sequence_tokens=2048, batch=1, hidden=12288, heads=96, tensor_parallel=8)
    sequence = layer_activation_bytes(
        sequence_tokens=2048, batch=1, hidden=12288, heads=96, tensor_parallel=8, sequence_parallel=True
    )

    assert plain == 2048 * 12288 * 23
    assert sequence == 2048 * 12288 * 114 / 8


def test_checkpointing_holds_one_layer_at_work_beside_the_inputs() -> None:
    small = TrainedModel(parameters=1, layers=32, hidden=4096, heads=32)

    size = activation_bytes(small, TrainingSettings(checkpointing="full"))

    # 32 layers * 2 * s*h; one layer of s*h * 34, or 34 + 80 with its scores; 4*s*h of the last norm
    unit = 2048 * 4096
    assert size.low == 64 * unit
    assert size.expected == (64 + 34 + 4) * unit
    assert size.high == pytest.approx((1.3 * (64 + 114) + 8) * unit, abs=1)


# --- DeepSpeed's estimators; documentation of memory requirements, 1 node with 8 GPUs


@pytest.mark.parametrize(
    ("offload_parameters", "offload_optimizer", "zero_init", "host_gib", "gpu_gib"),
    [
        (True, True, True, 71.71, 0.12),
        (True, True, False, 127.48, 0.12),
        (False, True, True, 63.74, 0.79),
        (False, True, False, 127.48, 0.79),
        (False, False, True, 1.47, 6.10),
        (False, False, False, 127.48, 6.10),
    ],
)
def test_zero_3_needs_what_deepspeed_says_for_t5_3b(
    offload_parameters: bool, offload_optimizer: bool, zero_init: bool, host_gib: float, gpu_gib: float
) -> None:
    # t5-3b: 2,851,598,336 parameters, the largest layer's 32,899,072 (32128 * 1024)
    needs = deepspeed_zero3(
        2_851_598_336, 32_899_072, gpus_per_node=8, offload_parameters=offload_parameters,
        offload_optimizer=offload_optimizer, zero_init=zero_init,
    )  # fmt: skip

    assert (round(needs.host_bytes / GIB, 2), round(needs.gpu_bytes / GIB, 2)) == (host_gib, gpu_gib)


def test_zero_2_with_offload_needs_what_deepspeed_says() -> None:
    # 2851e6 parameters: 127.45 GB of the host, 5.31 GB of each GPU
    needs = deepspeed_zero2(2_851_000_000, gpus_per_node=8, offload=True)

    assert (round(needs.host_bytes / GIB, 2), round(needs.gpu_bytes / GIB, 2)) == (127.45, 5.31)


def test_zero_2_counts_2_bytes_and_18_divided() -> None:
    # DeepSpeed PR 5099: 2P + 18P/n; before it was 4P + 16P/n
    needs = deepspeed_zero2(2_851_000_000, gpus_per_node=8)

    assert needs.gpu_bytes == 2 * 2_851_000_000 + 6_414_750_000


def test_parameters_are_offloaded_only_with_the_optimizer() -> None:
    with pytest.raises(FootprintError, match="only together with the optimizer"):
        deepspeed_zero3(10, 1, offload_parameters=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"optimizer": "adamx"},
        {"moment_bytes": 0},
        {"zero_stage": 4},
        {"checkpointing": "some"},
        {"method": "x"},
        {"batch": 0},
        {"world_size": 0},
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(wrong: dict[str, int | str]) -> None:
    with pytest.raises(FootprintError, match=next(iter(wrong))):
        TrainingSettings(**wrong)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 64), st.integers(1, 32768), st.integers(1, 4096),
    st.sampled_from(["none", "selective", "full"]), st.integers(0, 3), st.integers(1, 64), st.integers(1, 8),
)  # fmt: skip
def test_more_batch_or_sequence_never_takes_less_and_more_sharding_never_more(
    batch: int, tokens: int, more: int, checkpointing: str, stage: int, world_size: int, tensor_parallel: int
) -> None:
    plan = TrainingSettings(
        batch=batch, sequence_tokens=tokens, checkpointing=checkpointing, zero_stage=stage,  # type: ignore[arg-type]
        world_size=world_size, tensor_parallel=tensor_parallel,
    )  # fmt: skip

    size = training_footprint(SEVEN, plan)

    assert size.all.low <= size.all.expected <= size.all.high
    assert training_footprint(SEVEN, replace(plan, batch=batch + more)).all.expected >= size.all.expected
    longer = training_footprint(SEVEN, replace(plan, sequence_tokens=tokens + more))
    assert longer.all.expected >= size.all.expected
    if stage < 3:
        sharded = training_footprint(SEVEN, replace(plan, zero_stage=stage + 1))
        assert sharded.states.expected <= size.states.expected
