"""Memory of training, against the papers' and DeepSpeed's own figures."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brimline.errors import FootprintError
from brimline.footprint.training import (
    TrainedModel,
    TrainingSettings,
    activation_bytes,
    deepspeed_zero2,
    deepspeed_zero3,
    layer_activation_bytes,
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
    assert footprint.frozen.expected == 14 * 10**9
    assert footprint.states.expected == 14 * 10**9 + 640_000_000


def test_qlora_leaves_embedding_and_head_at_16_bits() -> None:
    adapted = replace(SEVEN, trained_parameters=40_000_000)

    frozen = training_footprint(adapted, TrainingSettings(method="qlora")).frozen

    # 262,144,000 parameters of an embedding and a head at 2 bytes, the others at 4.127 bits
    assert frozen.expected == pytest.approx(262_144_000 * 2 + 6_737_856_000 * 4.127 / 8, rel=1e-4)


def test_what_was_taken_for_granted_is_said() -> None:
    adapted = replace(SEVEN, trained_parameters=1)

    assert len(training_footprint(adapted, TrainingSettings(method="qlora")).assumptions) == 2
    assert training_footprint(SEVEN, TrainingSettings()).assumptions == ()


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

    # 32 layers * 2 * s*h; one layer of s*h * (34 + 80); 4*s*h of the last norm
    unit = 2048 * 4096
    assert size.low == 64 * unit
    assert size.expected == (64 + 114 + 4) * unit


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
    "wrong", [{"zero_stage": 4}, {"checkpointing": "some"}, {"method": "x"}, {"batch": 0}, {"world_size": 0}]
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
