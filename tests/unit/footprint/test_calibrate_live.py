"""Constants from running servers, as one round of the exporter sees them.

The server is the demo's: Llama-3.1-8B on an H100 with 79.11 GiB that CUDA sees, utilization 0.9. Its budget
is ceil(84,943,044,608 * 0.9) = 76,448,740,148 bytes, its pool 26,030 blocks of 2 MiB = 54,588,866,560 bytes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

import brimline.demo
from brimline.footprint.calibrate_live import Observed, from_server
from brimline.footprint.constants import GIB, MIB
from brimline.footprint.findings import Finding, Outcome
from brimline.footprint.gpus import find_gpu, live_gpu
from brimline.footprint.predict import predict, read_model
from brimline.readings import DeviceReading, EngineReading, Problem, RankReading, TargetSnapshot, Uuid

MODEL = read_model(Path(brimline.demo.__file__).parent / "llama-3.1-8b")
NAME = "NVIDIA H100 80GB HBM3"
BUDGET = 76_448_740_148
POOL = 26_030 << 21
SETTINGS = {
    "block_size": "16", "gpu_memory_utilization": "0.9", "kv_cache_dtype": "auto", "max_model_len": "32768",
    "model": "/models/llama", "tensor_parallel_size": "1",
}  # fmt: skip


def device(used: int | None = BUDGET + 590_558_003, **changed: Any) -> DeviceReading:
    """0.55 GiB more than the budget is used."""
    given = {"reserved_bytes": 551 * MIB, "memory_api": "v2", "name": NAME, "index": "0", **changed}
    return DeviceReading(uuid=Uuid("GPU-1"), total_bytes=81_559 * MIB, used_bytes=used, **given)


def observed(
    *,
    settings: dict[str, str] | None = None,
    blocks: float | None = 26_030,
    devices: tuple[DeviceReading, ...] = (device(),),
    reading: dict[str, Any] | None = None,
    **changed: Any,
) -> Observed:
    rank = RankReading(model="llama", kv_cache_blocks=blocks, kv_cache_block_tokens=16)
    said = EngineReading(
        **{"engine": "vllm", "engine_version": "0.33.0", "ranks": (rank,), **(reading or {})}
    )
    target = TargetSnapshot(
        name="chat", url="http://127.0.0.1:8000", up=True, reading=said,
        settings=SETTINGS if settings is None else settings,
    )  # fmt: skip
    card = live_gpu(NAME, 81_559 * MIB, devices[0].reserved_bytes) if devices else None
    return Observed(**{"target": target, "devices": devices, "gpu": card, "model": MODEL, **changed})


def findings(outcome: Outcome) -> dict[str, Finding]:
    return {finding.name: finding for finding in outcome.findings}


def test_budget_less_pool_is_all_that_is_not_the_cache() -> None:
    made = from_server(observed()).calibration

    assert made is not None
    assert made.non_kv_bytes == BUDGET - POOL == 21_859_873_588
    assert made.visible_bytes == 81_008 * MIB
    assert (made.engine, made.version, made.gpu) == ("vllm", "0.33.0", NAME)
    assert made.parameters == 8_030_261_248


def test_no_part_of_the_sum_is_told() -> None:
    outcome = from_server(observed())
    made = outcome.calibration

    assert made is not None
    assert (made.sampler_bytes_factor, made.non_torch_bytes) == (None, None)
    assert (made.cuda_graphs_bytes, made.weights_bytes, made.activation_bytes) == (None, None, None)
    assert "not told apart; a start-up log tells it" in findings(outcome)["activation_bytes"].basis


def test_the_server_is_met_again_to_the_block() -> None:
    found = observed()
    outcome = from_server(found)

    footprint = predict(
        "vllm", MODEL, {**SETTINGS, "max_num_seqs": "1024", "max_num_batched_tokens": "8192"},
        version="0.33.0", gpu=found.gpu, calibration=outcome.calibration,
    )  # fmt: skip

    blocks = footprint.kv_cache.num_blocks
    assert blocks is not None
    assert blocks.expected == 26_030
    assert blocks.low <= 26_030 <= blocks.high
    assert blocks.high - blocks.low < 20
    assert footprint.calibrated
    # All parts together are the budget and what lies outside it.
    assert footprint.fullest.total.expected == pytest.approx(BUDGET + 590_558_003, abs=2 * MIB)


def test_the_parts_share_out_what_the_sum_leaves_beside_the_weights() -> None:
    found = observed()
    outcome = from_server(found)

    parts = predict(
        "vllm", MODEL, SETTINGS, version="0.33.0", gpu=found.gpu, calibration=outcome.calibration
    ).fullest.components

    # The runtime's part of it is what lies in the budget: 0.55 GiB lie outside.
    shared = parts["activations"].expected + parts["cuda_graphs"].expected + parts["runtime"].expected
    assert shared - 590_558_003 == pytest.approx(21_859_873_588 - parts["weights"].expected, abs=4)


def test_what_is_used_beyond_the_budget_is_the_least_that_the_context_can_be() -> None:
    outcome = from_server(observed())

    made = outcome.calibration
    assert made is not None
    assert made.context_bytes == 590_558_003
    # The most is the table's for an H100, where 0.61 GiB were measured.
    assert made.context_high_bytes == 1 * GIB


@pytest.mark.parametrize(
    ("used", "said"),
    [
        (
            BUDGET - 3 * GIB,
            "used are 3.00 GiB less than the budget, so the activation peak was not reached yet",
        ),
        (BUDGET + 100 * MIB, "used are 100.00 MiB more than the budget, so the activation peak was not"),
        (BUDGET + 5 * GIB, "5.00 GiB are used beyond the budget, more than a context is known to take"),
        (None, "NVML does not tell here what is used on its GPU"),
    ],
)
def test_a_context_that_cannot_be_is_not_written(used: int | None, said: str) -> None:
    outcome = from_server(observed(devices=(device(used),)))

    assert outcome.calibration is not None
    assert outcome.calibration.context_bytes is None
    assert outcome.calibration.non_kv_bytes == BUDGET - POOL
    assert said in findings(outcome)["context_bytes"].basis


def test_other_processes_spoil_the_context_and_not_the_sum() -> None:
    outcome = from_server(observed(others=("GPU 0 has memory of other processes too (4711)",)))

    assert outcome.calibration is not None
    assert outcome.calibration.context_bytes is None
    assert outcome.calibration.non_kv_bytes == BUDGET - POOL
    assert "other processes too (4711); calibrate while" in findings(outcome)["context_bytes"].basis


def test_an_old_driver_tells_no_context_and_no_visible_memory() -> None:
    outcome = from_server(observed(devices=(device(reserved_bytes=None, memory_api="v1"),)))

    assert outcome.calibration is not None
    assert (outcome.calibration.context_bytes, outcome.calibration.visible_bytes) == (None, None)
    assert "memory v1" in findings(outcome)["context_bytes"].basis


def test_the_fullest_of_several_gpus_counts() -> None:
    settings = {**SETTINGS, "tensor_parallel_size": "2"}
    second = msgspec.structs.replace(device(BUDGET + 2 * GIB), uuid=Uuid("GPU-2"))
    # Half of each block on each GPU.
    outcome = from_server(
        observed(settings=settings, devices=(device(BUDGET + 1 * GIB), second), blocks=2 * 30_000)
    )

    assert outcome.calibration is not None
    assert outcome.calibration.context_bytes == 2 * GIB
    assert outcome.calibration.non_kv_bytes == BUDGET - 60_000 * MIB
    assert outcome.calibration.setting("tensor_parallel_size") == "2"


def test_without_nvml_the_named_gpus_table_is_taken() -> None:
    outcome = from_server(observed(devices=(), gpu=find_gpu("H100")))

    assert outcome.calibration is not None
    # ceil(81,080 MiB * 0.9) - 26,030 blocks; what CUDA shows is not known exactly, so not written.
    assert outcome.calibration.non_kv_bytes == pytest.approx(81_080 * MIB * 0.9 - POOL, abs=2)
    assert outcome.calibration.visible_bytes is None
    assert outcome.calibration.gpu == "H100 SXM"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"launch_known": False}, "its launch settings are not known"),
        ({"model": None}, "the files of its model are not known; name MODEL"),
        ({"gpu": None}, "its GPU is not known (none could be read); list the target's `gpus`"),
        (
            {"settings": {**SETTINGS, "kv_cache_memory_bytes": "1073741824"}},
            "set by hand (kv_cache_memory_bytes",
        ),
        (
            {"settings": {**SETTINGS, "num_gpu_blocks_override": "100"}},
            "set by hand (num_gpu_blocks_override",
        ),
        ({"settings": {**SETTINGS, "pipeline_parallel_size": "2"}}, "its pipeline stages share one count"),
        ({"settings": {"tensor_parallel_size": "1"}}, "does not state gpu_memory_utilization"),
        ({"blocks": None}, "does not state num_gpu_blocks"),
        ({"reading": {"engine_version": None}}, "does not tell its version"),
        ({"reading": {"sleeping": True}}, "the server sleeps"),
        ({"reading": {"engine": "tgi"}}, "tgi is not calibrated from what it exposes; sglang and vllm are"),
        ({"reading": {"ranks": ()}}, "the page shows 0 models"),
        # Settings that are not this server's: half the blocks' bytes would leave 27 GiB more.
        ({"blocks": 33_000}, "settings or model are not those of this server"),
    ],
)
def test_what_cannot_be_told_is_refused_with_its_reason(changed: dict[str, Any], said: str) -> None:
    outcome = from_server(observed(**changed))

    assert outcome.calibration is None
    assert any(said in note for note in outcome.notes), outcome.notes


def test_the_reason_why_a_gpu_is_not_assigned_is_passed_on() -> None:
    found = observed(gpu=None)
    problem = Problem("gpu_unassigned", "there are 2 targets; list the target's `gpus`")

    outcome = from_server(replace(found, target=msgspec.structs.replace(found.target, problems=(problem,))))

    assert "there are 2 targets" in outcome.notes[0]


def test_more_than_the_tables_know_is_written_and_said() -> None:
    outcome = from_server(observed(blocks=20_000))

    assert outcome.calibration is not None
    assert outcome.calibration.non_kv_bytes == BUDGET - (20_000 << 21)
    assert any("more than the tables know" in note for note in outcome.notes)


def test_a_simulated_server_is_said_to_be_one() -> None:
    outcome = from_server(observed(reading={"simulated": True, "engine_version": "0.33.0+simulated"}))

    assert outcome.calibration is not None
    assert outcome.calibration.version == "0.33.0+simulated"
    assert "simulated: nothing here was measured" in outcome.notes[-1]
    assert outcome.comments[-1] == outcome.notes[-1]


def test_a_server_that_could_not_be_read_gives_its_problems() -> None:
    found = observed()
    down = msgspec.structs.replace(
        found.target, reading=None, problems=(Problem("connection", "it refuses connections"),)
    )

    outcome = from_server(replace(found, target=down))

    assert outcome.notes == ("connection: it refuses connections",)


# --- SGLang


def sglang(settings: dict[str, str] | None = None, **measured: float) -> Observed:
    # Gauges of SGLang's own test of them: 15.284 GiB of weights, 0.126 + 0.314 of graphs.
    rank = RankReading(model="m", measured_memory_bytes=measured or None)
    return observed(
        settings={"tp_size": "2", "model_path": "/m"} if settings is None else settings,
        reading={"engine": "sglang", "engine_version": "0.5.23", "ranks": (rank,)},
    )


def test_sglang_measures_weights_and_graphs_itself() -> None:
    outcome = from_server(sglang(weights=15.284 * GIB, cuda_graphs=0.44 * GIB))

    made = outcome.calibration
    assert made is not None
    assert (made.engine, made.version) == ("sglang", "0.5.23")
    assert (made.weights_bytes, made.cuda_graphs_bytes) == (int(15.284 * GIB), int(0.44 * GIB))
    assert made.settings == (("tp_size", "2"),)
    assert "activations, not told apart" in findings(outcome)["context_bytes"].basis


def test_an_sglang_without_gauges_tells_nothing() -> None:
    outcome = from_server(sglang())

    assert outcome.calibration is None
    assert "no such gauge" in findings(outcome)["weights_bytes"].basis


def test_an_sglang_whose_settings_are_hidden_tells_nothing() -> None:
    assert "/server_info is not readable" in from_server(sglang(settings={})).notes[0]
