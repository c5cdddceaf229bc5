"""Every engine's prediction, in one stage and in two, beside what its server says: shares, bytes, room."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import pytest

from brimline.collect import with_kv_bytes
from brimline.errors import FootprintError
from brimline.footprint.gpus import find_gpu
from brimline.footprint.hf_config import architecture_of_config
from brimline.footprint.predict import PREDICTORS, Model, as_json, predict
from brimline.footprint.what_if import Scenario, room, surroundings, what_if_json
from brimline.readings import (
    DeviceReading,
    EngineReading,
    Footprint,
    MemoryAccount,
    RankReading,
    TargetSnapshot,
    Uuid,
)
from brimline.reconcile import Tenant, account, beyond_card

GIB = 1 << 30
H100 = find_gpu("H100")
# Of 33 layers, so that two stages are not alike.
LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 33,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
WINDOWS = {
    **LLAMA, "model_type": "gemma3_text", "head_dim": 256, "sliding_window": 1024,
    "sliding_window_pattern": 6,
}  # fmt: skip
TOKEN = 2 * 8 * 128 * 2  # of one layer

TWO_STAGES: Mapping[str, dict[str, str]] = {
    "llamacpp": {"tensor_split": "1,1"},
    "sglang": {"pp_size": "2"},
    "trtllm": {"pp_size": "2"},
    "vllm": {"pipeline_parallel_size": "2"},
}
CONTEXT = {
    "llamacpp": "ctx_size", "sglang": "context_length", "trtllm": "max_seq_len", "vllm": "max_model_len",
}  # fmt: skip


def of(engine: str, config: Mapping[str, Any] = LLAMA, **settings: object) -> Footprint:
    model = Model(architecture_of_config(config, "config.json"), None, config)
    stated = {CONTEXT[engine]: "8192", **{name: str(value) for name, value in settings.items()}}
    return predict(engine, model, stated, gpu=H100)


def settled(footprint: Footprint, rank: RankReading, *, used_gib: int = 60) -> MemoryAccount:
    gpus = tuple((Uuid(f"GPU-{stage.pipeline_stage}"), "0") for stage in footprint.ranks)
    reading, _ = with_kv_bytes(EngineReading(engine=footprint.engine, ranks=(rank,)), footprint)
    target = TargetSnapshot(
        name="chat", url="http://h", up=True, reading=reading, gpus=gpus, footprint=footprint
    )
    devices = [
        DeviceReading(
            uuid=gpu, index="0", total_bytes=80 * GIB, used_bytes=used_gib * GIB,
            free_bytes=(80 - used_gib) * GIB,
        )
        for gpu, _ in gpus
    ]  # fmt: skip
    beyond_card(reading, footprint, 80 * GIB)
    return account([target], [Tenant(name="chat", gpus=gpus, footprint=footprint)], devices)


def sizes(memory: MemoryAccount, stage: int) -> dict[tuple[str, str], int]:
    return {
        (part.component, part.basis): part.size_bytes for part in memory.parts if part.gpu == f"GPU-{stage}"
    }


def test_every_predictor_has_a_setting_for_two_stages() -> None:
    assert set(TWO_STAGES) == set(CONTEXT) == set(PREDICTORS)


@pytest.mark.parametrize("engine", sorted(PREDICTORS))
@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("config", [LLAMA, WINDOWS], ids=["plain", "windows"])
def test_a_server_is_reconciled_and_planned_in_every_number_of_stages(
    engine: str, stages: int, config: dict[str, Any]
) -> None:
    settings = TWO_STAGES[engine] if stages == 2 else {}
    footprint = of(engine, config, **settings)
    assert len(footprint.ranks) == stages
    said = RankReading(
        model="m", kv_cache_blocks=1000, kv_cache_usage_ratio=0.5, kv_cache_capacity_tokens=8192,
        kv_cache_used_tokens=100, requests_running=2,
    )  # fmt: skip

    for reading in (said, RankReading(model="m", kv_cache_capacity_bytes=10e9, kv_cache_used_bytes=1e9)):
        memory = settled(footprint, reading)

        assert memory.defects == {}
        assert list(memory.headroom_bytes) == ["chat"]
        for stage in range(stages):
            assert sum(sizes(memory, stage).values()) == 60 * GIB
    model = Model(architecture_of_config(config, "config.json"), None, config)
    scenario = Scenario(model=model, engine=engine, settings=dict(settings), gpu=H100)
    assert room(footprint, H100).low <= room(footprint, H100).high
    around = surroundings(scenario, seconds=30)
    assert what_if_json(scenario, footprint, around)["prediction"] == as_json(footprint)


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_a_stage_with_fewer_layers_has_less_of_the_cache(engine: str) -> None:
    """33 layers in two stages are 16 and 17; what the server states is of the fullest GPU."""
    footprint = of(engine, LLAMA, **TWO_STAGES[engine])
    block = footprint.kv_cache.block_tokens or 1

    assert sorted(footprint.kv_cache.stage_block_bytes) == [16 * TOKEN * block, 17 * TOKEN * block]
    said = RankReading(model="m", kv_cache_capacity_bytes=17.0 * GIB, kv_cache_used_bytes=0.0)
    memory = settled(footprint, said)
    fullest = footprint.kv_cache.stage_block_bytes.index(17 * TOKEN * block)
    assert sizes(memory, fullest)["kv_cache_free", "measured"] == 17 * GIB
    assert sizes(memory, 1 - fullest)["kv_cache_free", "measured"] == 16 * GIB


def test_a_pool_of_sglang_is_smaller_on_a_stage_with_fewer_layers() -> None:
    first, last = of("sglang", pp_size=2).ranks

    assert first.components["kv_cache"].expected * 17 == last.components["kv_cache"].expected * 16


# --- sizes from anywhere ---


@pytest.mark.parametrize("number", [300_000_000, 10**15])
@pytest.mark.parametrize(
    ("engine", "name"),
    [
        *(("vllm", f"{kind}_parallel_size") for kind in ("tensor", "pipeline", "data")),
        ("vllm", "decode_context_parallel_size"), ("vllm", "prefill_context_parallel_size"),
        *(("sglang", f"{kind}_size") for kind in ("tp", "pp", "dp", "ep", "attn_dp")),
        *(("trtllm", f"{kind}_size") for kind in ("tp", "pp", "ep")),
        ("llamacpp", "main_gpu"),
    ],
)  # fmt: skip
def test_a_server_over_more_gpus_than_there_are_is_refused_at_once(
    engine: str, name: str, number: int
) -> None:
    """A server states its sizes itself: one page must not take the exporter's memory."""
    flag = name if engine == "trtllm" else name.replace("_", "-")
    with pytest.raises(FootprintError, match=f"--{flag} {number}: no server is spread"):
        of(engine, LLAMA, **{name: number, "split_mode": "none"})


@pytest.mark.parametrize(
    ("engine", "name"), [("sglang", "pp_size"), ("trtllm", "pp_size"), ("vllm", "pipeline_parallel_size")]
)
def test_more_stages_than_layers_are_refused(engine: str, name: str) -> None:
    with pytest.raises(FootprintError, match="34 is more than the model's 33 layers"):
        of(engine, LLAMA, **{name: 34})


@pytest.mark.parametrize(
    ("engine", "name"),
    [("sglang", "chunked_prefill_size"), ("llamacpp", "n_cpu_moe"), ("llamacpp", "parallel")],
)
def test_a_huge_count_takes_no_more_memory_or_time_than_a_small_one(engine: str, name: str) -> None:
    """Nothing is made for each of 10^15: this test would not come back."""
    with contextlib.suppress(FootprintError):
        of(engine, LLAMA, **{name: 10**15})


# --- what is measured ---


def test_a_server_of_sglang_that_states_its_tokens_only_has_bytes_that_are_no_measurement() -> None:
    footprint = of("sglang", pp_size=2)

    memory = settled(
        footprint, RankReading(model="m", kv_cache_capacity_tokens=65536, kv_cache_used_tokens=0)
    )

    assert sizes(memory, 1)["kv_cache_free", "predicted"] == 65536 * 17 * TOKEN
    assert sizes(memory, 0)["kv_cache_free", "predicted"] == 65536 * 16 * TOKEN
    assert memory.error_ratio == {}


def test_blocks_that_a_server_counted_pass_for_a_measurement() -> None:
    footprint = of("vllm")
    assert footprint.kv_cache.num_blocks is not None

    memory = settled(
        footprint,
        RankReading(model="m", kv_cache_blocks=1000, kv_cache_used_blocks=250, kv_cache_usage_ratio=0.25),
    )

    block = 33 * TOKEN * (footprint.kv_cache.block_tokens or 0)
    assert sizes(memory, 0)["kv_cache_used", "measured"] == 250 * block
    ratio = 1000 * block / footprint.fullest.components["kv_cache"].expected - 1
    assert memory.error_ratio["chat", "kv_cache"] == pytest.approx(ratio)


@pytest.mark.parametrize("layers", [16, 99])
def test_the_cache_of_llama_cpp_is_split_as_predicted_and_never_measured(layers: int) -> None:
    """Of 33 layers and the output, the last 16 of 34 are on the GPU: 15 layers of K and V in 16 bits."""
    footprint = of("llamacpp", n_gpu_layers=layers, ctx_size=32768, parallel=1, n_ctx=32768)

    memory = settled(
        footprint, RankReading(model="m", kv_cache_capacity_tokens=32768, kv_cache_used_tokens=1024)
    )

    on_gpu = 15 if layers == 16 else 33
    assert sizes(memory, 0)["kv_cache_used", "predicted"] == 1024 * on_gpu * TOKEN
    assert sizes(memory, 0)["kv_cache_free", "predicted"] == (32768 - 1024) * on_gpu * TOKEN
    assert memory.error_ratio == {}
