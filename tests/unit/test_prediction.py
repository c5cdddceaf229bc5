"""Predictions of running servers: what they are made from, when anew, what is said where there is none."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import brimline.demo
from brimline import prediction
from brimline.catalog import METRICS
from brimline.collect import Collector
from brimline.config import Config, GpuConfig, Target
from brimline.errors import FootprintError
from brimline.footprint.gpus import find_gpu
from brimline.footprint.predict import predict, read_model
from brimline.prediction import Card, Question, answer, is_same, release, smallest_card
from brimline.readings import DeviceReading, Footprint, GpuReading, Snapshot, TargetSnapshot, Uuid
from brimline.strict_yaml import Seconds, Size
from fake_servers import FakeServer, FakeVllm, json_answer

GIB = 1 << 30
MIB = 1 << 20
LLAMA_8B = Path(brimline.demo.__file__).parent / "llama-3.1-8b"
# An H100 as NVML's memory v2 describes it: 81,559 MiB in all, 551 of them reserved.
TOTAL, RESERVED = 81_559 * MIB, 551 * MIB
BLOCK_BYTES = 16 * 131072  # 16 tokens of 2 * 32 layers * 8 heads * 128 elements * 2 bytes


class Gpus:
    """Cards whose use a test changes as it goes."""

    def __init__(self, *used_gib: float, name: str = "NVIDIA H100 80GB HBM3") -> None:
        self.name = name
        self.used = [round(used * GIB) for used in used_gib]

    def __call__(self, *_args: Any, **_options: Any) -> Gpus:
        return self

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass

    def read(self) -> GpuReading:
        devices = tuple(
            DeviceReading(
                uuid=Uuid(f"GPU-{index}"),
                index=str(index),
                name=self.name,
                memory_api="v2",
                total_bytes=TOTAL,
                used_bytes=used,
                free_bytes=TOTAL - RESERVED - used,
                reserved_bytes=RESERVED,
                used_peak_bytes=used,
            )
            for index, used in enumerate(self.used)
        )
        return GpuReading(up=True, devices=devices)


def scraped(
    target: Target,
    gpus: Gpus | None = None,
    between: Callable[[int], Awaitable[None]] | None = None,
    *,
    scrapes: int = 1,
    reserve: int = 0,
) -> list[Snapshot]:
    """Snapshots of so many scrapes; `between` is awaited before each."""

    async def run() -> list[Snapshot]:
        gpu = GpuConfig(backend="nvml" if gpus else "none", reserve_other=Size(reserve))
        options = {"open_gpus": gpus} if gpus else {}
        collector = Collector(Config(targets=[target], gpu=gpu), **options)  # type: ignore[arg-type]
        await collector.start()
        try:
            snapshots = []
            for number in range(scrapes):
                if between is not None:
                    await between(number)
                snapshots.append(await settled(collector))
            return snapshots
        finally:
            await collector.close()

    async def settled(collector: Collector) -> Snapshot:
        """A snapshot whose prediction is there; on a loaded machine it may take a scrape more."""
        for _ in range(50):
            snapshot = await collector.snapshot()
            [state] = snapshot.targets
            if state.footprint is not None or state.memory_notes or state.problems or not state.up:
                break
        return snapshot

    return asyncio.run(run())


def target_of(server: FakeServer, **settings: Any) -> Target:
    plain = {"model": str(LLAMA_8B), "launch": {}, "gpus": [0], "timeout": Seconds(60.0)}
    return Target(name="chat", url=server.url, **{**plain, **settings})


def only(snapshot: Snapshot) -> TargetSnapshot:
    [state] = snapshot.targets
    return state


def footprint_of(snapshot: Snapshot) -> Footprint:
    state = only(snapshot)
    assert state.footprint is not None, (state.problems, state.memory_notes)
    return state.footprint


def test_a_running_server_is_predicted_from_its_own_labels_its_model_and_its_flags() -> None:
    """The same as `predict` says of the version, the live labels and the declared flags together."""
    with FakeServer(FakeVllm(version="0.30.0").routes()) as server:
        [snapshot] = scraped(target_of(server, launch={"max_num_seqs": 64}), Gpus(70))

    card = find_gpu("H100")
    expected = predict(
        "vllm",
        read_model(LLAMA_8B),
        {
            "max_num_seqs": "64",
            "max_model_len": "4096",
            "gpu_memory_utilization": "0.9",
            "block_size": "16",
        },
        version="0.30.0",
        gpu=dataclasses.replace(
            card,
            visible_bytes=dataclasses.replace(
                card.visible_bytes, low=TOTAL - 560 * MIB, expected=TOTAL - 560 * MIB, high=TOTAL - 560 * MIB
            ),
        ),
    )
    components = footprint_of(snapshot).fullest.components
    assert components.keys() == expected.fullest.components.keys()
    for name, part in expected.fullest.components.items():
        assert components[name].expected == part.expected, name
    assert footprint_of(snapshot).kv_cache.max_model_len_tokens == 4096


def test_bytes_of_the_cache_are_its_blocks_times_their_predicted_size() -> None:
    with FakeServer(FakeVllm(blocks=1025, kv_usage=0.25).routes()) as server:
        [snapshot] = scraped(target_of(server), Gpus(70))

    reading = only(snapshot).reading
    assert reading is not None
    assert reading.ranks[0].kv_cache_capacity_bytes == 1025 * BLOCK_BYTES
    assert reading.ranks[0].kv_cache_used_bytes == 256 * BLOCK_BYTES
    assert only(snapshot).kv_bytes_source == str(LLAMA_8B / "config.json")


def test_what_is_used_is_split_and_the_split_adds_up() -> None:
    with FakeServer(FakeVllm(blocks=1025).routes()) as server:
        [snapshot] = scraped(target_of(server), Gpus(70))

    parts = {part.component: part for part in snapshot.memory.parts}
    assert sum(part.size_bytes for part in parts.values()) == 70 * GIB
    assert parts["kv_cache_free"].basis == parts["kv_cache_used"].basis == "measured"
    assert parts["weights"].basis == "predicted"
    assert round(parts["weights"].size_bytes / 1e9, 1) == 16.1


def test_headroom_falls_by_what_of_the_plan_is_not_in_use_and_by_the_reserve() -> None:
    with FakeServer(FakeVllm().routes()) as server:
        [plain] = scraped(target_of(server), Gpus(60))
        [reserved] = scraped(target_of(server), Gpus(60), reserve=2 * GIB)

    planned = footprint_of(plain).fullest.total.high
    free = TOTAL - RESERVED - 60 * GIB
    assert plain.memory.headroom_bytes["chat"] == free - (planned - 60 * GIB)
    assert plain.memory.headroom_bytes["chat"] - reserved.memory.headroom_bytes["chat"] == 2 * GIB


def test_without_a_gpu_the_model_is_predicted_and_the_pool_is_not() -> None:
    with FakeServer(FakeVllm().routes()) as server:
        [snapshot] = scraped(target_of(server, gpus=None))

    footprint = footprint_of(snapshot)
    assert round(footprint.fullest.components["weights"].expected / 1e9, 1) == 16.1
    assert "kv_cache" not in footprint.fullest.components
    assert (footprint.fits, footprint.kv_cache.capacity_tokens) == (None, None)
    assert snapshot.memory.headroom_bytes == {}


def test_a_server_on_the_cpu_has_no_gpu_and_says_what_lies_in_main_memory() -> None:
    """Even where it is the only server beside a GPU, which would else be taken for its own."""
    with FakeServer(FakeVllm(version="0.33.0+cpu", blocks=1025).routes()) as server:
        [snapshot] = scraped(target_of(server, gpus=None), Gpus(70))

    state, footprint = only(snapshot), footprint_of(snapshot)
    assert (state.gpus, state.problems) == ((), ())
    assert footprint.fullest.components == {}
    assert round(footprint.fullest.host["weights"].expected / 1e9, 1) == 16.1
    assert state.memory_notes == (
        "it runs on the CPU, so that no GPU memory is predicted; in main memory: weights 14.99 GiB",
    )
    assert state.reading is not None
    assert state.reading.ranks[0].kv_cache_capacity_bytes == 1025 * BLOCK_BYTES
    assert snapshot.memory.headroom_bytes == {}
    exposed = {family.name for family in METRICS if list(family.rows(snapshot))}
    assert "predicted_host_memory_bytes" in exposed
    assert not {name for name in exposed if name.startswith("predicted_memory")}


def test_a_server_that_does_not_say_so_is_on_the_cpu_by_declaration() -> None:
    more = 'vllm:cache_config_info{engine="0",kv_cache_memory_bytes="4294967296",num_gpu_blocks="2048"} 1.0'
    with FakeServer(FakeVllm(more_lines=[more]).routes()) as server:
        [snapshot] = scraped(target_of(server, gpus=None, launch={"device": "cpu"}), Gpus(70))

    assert only(snapshot).gpus == ()
    assert footprint_of(snapshot).fullest.components == {}


def test_a_card_that_no_table_knows_is_taken_as_nvml_describes_it() -> None:
    with FakeServer(FakeVllm().routes()) as server:
        [snapshot] = scraped(target_of(server), Gpus(60, name="NVIDIA Z900 1TB"))

    footprint = footprint_of(snapshot)
    assert footprint.fits is True
    assert footprint.decode_ceiling is None


def test_a_restart_with_other_settings_is_predicted_anew() -> None:
    vllm = FakeVllm(max_model_len=4096)

    async def restart(number: int) -> None:
        if number == 1:
            vllm.max_model_len, vllm.start_time = 8192, vllm.start_time + 100

    with FakeServer(vllm.routes()) as server:
        before, after = scraped(target_of(server), Gpus(60), restart, scrapes=2)

    assert footprint_of(before).kv_cache.max_model_len_tokens == 4096
    assert footprint_of(after).kv_cache.max_model_len_tokens == 8192


def test_a_spike_leaves_no_trace_in_the_headroom() -> None:
    gpus = Gpus(60)

    async def spike(number: int) -> None:
        gpus.used = [round((60, 77.65, 60)[number] * GIB)]

    with FakeServer(FakeVllm().routes()) as server:
        before, during, after = (
            snapshot.memory.headroom_bytes["chat"]
            for snapshot in scraped(target_of(server), gpus, spike, scrapes=3)
        )

    assert during == TOTAL - RESERVED - round(77.65 * GIB)
    assert during < before == after


def test_a_server_that_is_down_has_no_prediction_and_no_headroom() -> None:
    vllm = FakeVllm()
    server = FakeServer(vllm.routes())

    async def end(number: int) -> None:
        if number == 1:
            server.__exit__(None, None, None)

    server.__enter__()
    _, down = scraped(target_of(server), Gpus(60), end, scrapes=2)

    assert only(down).footprint is None
    assert down.memory.headroom_bytes == {}
    assert down.memory.parts == ()


@pytest.mark.parametrize(
    ("settings", "reason", "said"),
    [
        (
            {"launch": {"tensor_parallel_size": 3}, "gpus": [0, 1, 2]},
            "prediction",
            "does not fit 8 K/V heads",
        ),
        (
            {"launch": {"tensor_parallel_size": 2}},
            "gpu_count",
            "gives the server 1 GPU(s), and by its settings it uses 2; correct `gpus`",
        ),
        ({"gpus": [0, 1, 2]}, "gpu_count", "gives the server 3 GPU(s), and by its settings it uses 1"),
        ({"model": "/nowhere/llama"}, "model", "/nowhere/llama does not exist"),
        ({"calibration": "/nowhere/calib.yaml"}, "calibration", "cannot be read"),
    ],
)
def test_what_hinders_a_prediction_is_a_problem_of_a_target_that_is_up(
    settings: dict[str, Any], reason: str, said: str
) -> None:
    with FakeServer(FakeVllm().routes()) as server:
        [snapshot] = scraped(target_of(server, **settings), Gpus(60, 60, 60))

    state = only(snapshot)
    assert state.up
    assert state.footprint is None
    assert [problem.reason for problem in state.problems] == [reason]
    assert said in state.problems[0].detail
    assert (snapshot.memory.parts, snapshot.memory.headroom_bytes) == ((), {})


# Of Llama 3.1 70B where it differs from the 8B.
LLAMA_70B = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
}


def folder_of(path: Path, **changes: Any) -> Path:
    """A folder with the 8B model's config.json, changed."""
    path.mkdir()
    config = json.loads((LLAMA_8B / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))
    return path


def loaded(vllm: FakeVllm, root: Path | str) -> dict[str, Any]:
    """Routes of a server that says it loaded this model."""
    entry = {"id": "demo-model", "owned_by": "vllm", "root": str(root), "max_model_len": 4096}
    return vllm.routes() | {"/v1/models": json_answer({"object": "list", "data": [entry]})}


def test_a_model_that_the_server_cannot_be_running_gives_no_bytes_and_says_so(tmp_path: Path) -> None:
    """29,751 blocks of 16 tokens, an 8B model's on an H100: 58 GiB of its bytes, 145 of the 70B model's."""
    large = folder_of(tmp_path / "llama-70b", **LLAMA_70B)

    with FakeServer(FakeVllm(blocks=29_751).routes()) as server:
        [wrong] = scraped(target_of(server, model=str(large)), Gpus(73))
        [right] = scraped(target_of(server), Gpus(73))

    state = only(wrong)
    assert state.reading is not None
    assert state.reading.ranks[0].kv_cache_blocks == 29_751
    assert state.reading.ranks[0].kv_cache_capacity_bytes is None
    assert (state.footprint, state.kv_bytes_source) == (None, None)
    assert (wrong.memory.parts, wrong.memory.headroom_bytes, wrong.memory.error_ratio) == ((), {}, {})
    [problem] = state.problems
    assert problem.reason == "model"
    assert f"the server cannot be running {large} with these settings" in problem.detail
    assert "145.27 GiB for the KV cache that the server has" in problem.detail
    assert problem.detail.endswith("correct `model`, or `launch` where it is split over more GPUs")
    assert only(right).problems == ()


def test_a_problem_of_a_target_that_is_up_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with FakeServer(FakeVllm().routes()) as server:
        scraped(target_of(server, launch={"tensor_parallel_size": 2}), Gpus(60), scrapes=3)

    [line] = [record.message for record in caplog.records if "problem=" in record.message]
    assert line.startswith("target=chat problem=gpu_count detail='`gpus` gives the server 1 GPU(s)")


def test_settings_that_the_server_cannot_be_running_with_are_a_problem_of_the_prediction(
    tmp_path: Path,
) -> None:
    """The server names the model itself, so that it can only be split otherwise than declared."""
    large = folder_of(tmp_path / "llama-70b", **LLAMA_70B)

    with FakeServer(loaded(FakeVllm(), large)) as server:
        [snapshot] = scraped(target_of(server, model=None), Gpus(73))

    [problem] = only(snapshot).problems
    assert problem.reason == "prediction"
    assert problem.detail.endswith("correct `launch` or `launch_command`")
    assert only(snapshot).footprint is None


def test_the_model_that_the_server_loaded_comes_before_the_configured_one(tmp_path: Path) -> None:
    large = folder_of(tmp_path / "llama-70b", **LLAMA_70B)

    with FakeServer(loaded(FakeVllm(), LLAMA_8B)) as server:
        [snapshot] = scraped(target_of(server, model=str(large)), Gpus(60))

    assert only(snapshot).kv_bytes_source == str(LLAMA_8B / "config.json")
    assert only(snapshot).problems == ()
    [note] = only(snapshot).memory_notes
    assert note == (
        f"the server says that it loaded {LLAMA_8B}, which is what is predicted; `model` names {large}: "
        "correct or remove it"
    )


@pytest.mark.parametrize("root", ["meta-llama/Llama-3.1-8B", "/nowhere/llama-8b", "/dev"])
def test_a_model_that_is_not_readable_here_gives_way_to_the_configured_one(root: str) -> None:
    with FakeServer(loaded(FakeVllm(), root)) as server:
        [snapshot] = scraped(target_of(server), Gpus(60))

    assert footprint_of(snapshot).model_source == str(LLAMA_8B / "config.json")
    assert only(snapshot).memory_notes == ()


def test_a_copy_of_the_servers_model_is_the_same_model(tmp_path: Path) -> None:
    copy = folder_of(tmp_path / "copy")
    link = tmp_path / "link"
    link.symlink_to(copy)

    with FakeServer(loaded(FakeVllm(), copy)) as server:
        [linked] = scraped(target_of(server, model=str(link / "config.json")), Gpus(60))
    shutil.copy(copy / "config.json", tmp_path / "llama.json")
    with FakeServer(loaded(FakeVllm(), copy)) as server:
        [copied] = scraped(target_of(server, model=str(tmp_path / "llama.json")), Gpus(60))

    assert only(linked).memory_notes == only(copied).memory_notes == ()


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ({"model": None}, "name the folder of its model in `model`"),
        ({"launch": None, "gpus": [0, 1]}, "without launch settings"),
    ],
)
def test_what_is_missing_for_a_prediction_is_said_with_its_cure(settings: dict[str, Any], note: str) -> None:
    with FakeServer(FakeVllm().routes()) as server:
        [snapshot] = scraped(target_of(server, **settings), Gpus(60, 60))

    state = only(snapshot)
    assert state.problems == ()
    assert any(note in line for line in state.memory_notes)


def test_a_model_that_is_mounted_later_is_predicted_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brimline.collect.RETRY_AFTER", 0.0)
    folder = tmp_path / "llama"

    async def mount(number: int) -> None:
        if number == 2:
            shutil.copytree(LLAMA_8B, folder)
            await asyncio.sleep(0.01)

    with FakeServer(FakeVllm().routes()) as server:
        snapshots = scraped(target_of(server, model=str(folder)), Gpus(60), mount, scrapes=4)

    assert only(snapshots[0]).footprint is None
    assert only(snapshots[-1]).footprint is not None


def test_a_file_system_that_hangs_costs_the_prediction_and_not_the_scrape(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    os.mkfifo(folder / "config.json")

    with FakeServer(FakeVllm(generation_tokens=5).routes()) as server:
        [snapshot] = scraped(target_of(server, model=str(folder)), Gpus(60))

    state = only(snapshot)
    assert state.up
    assert state.reading is not None
    assert state.reading.ranks[0].generation_tokens_total == 5


def test_a_model_of_an_unknown_kind_is_predicted_with_its_assumptions_said(tmp_path: Path) -> None:
    config = json.loads((LLAMA_8B / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "tomorrow"}))

    with FakeServer(FakeVllm().routes()) as server:
        [snapshot] = scraped(target_of(server, model=str(tmp_path)), Gpus(60))

    assert any("tomorrow" in text for text in footprint_of(snapshot).assumptions)


def test_a_calibrated_plan_counts_as_expected(tmp_path: Path) -> None:
    file = tmp_path / "calib.yaml"
    file.write_text(
        "engine: vllm\nversion: 0.30.0\ngpu: H100\nsampler_bytes_factor: 2.0\ncuda_graphs_bytes: 500000000\n"
        "non_torch_bytes: 150000000\ncontext_bytes: 600000000\n"
    )

    with FakeServer(FakeVllm(version="0.30.0").routes()) as server:
        [wide] = scraped(target_of(server), Gpus(60))
        [close] = scraped(target_of(server, calibration=str(file)), Gpus(60))

    footprint = footprint_of(close)
    assert footprint.calibrated
    assert footprint.fullest.total.high < footprint_of(wide).fullest.total.high
    free = TOTAL - RESERVED - 60 * GIB
    planned = footprint.fullest.total.expected
    assert close.memory.headroom_bytes["chat"] == free - (planned - 60 * GIB)


@pytest.mark.parametrize(
    ("stated", "taken"),
    [
        ("0.32.0", "0.32.0"),
        ("v0.9.2", "v0.9.2"),
        ("b6470-1a2b3c4", "b6470-1a2b3c4"),
        ("0.1.dev1234+g1a2b3c4", None),
        ("unknown", None),
        (None, None),
    ],
)
def test_a_build_from_a_checkout_is_no_release(stated: str | None, taken: str | None) -> None:
    assert release(stated) == taken


def test_the_card_that_fills_first_stands_for_all() -> None:
    def device(total: int, reserved: int | None) -> DeviceReading:
        return DeviceReading(
            uuid=Uuid("GPU-0"), index="0", name="X", total_bytes=total, reserved_bytes=reserved
        )

    assert smallest_card([device(80 * GIB, GIB), device(40 * GIB, None)]) == Card("X", 40 * GIB, None)
    assert smallest_card([]) is None
    assert smallest_card([DeviceReading(uuid=Uuid("GPU-0"), index="0")]) is None


def test_reserved_memory_that_moves_a_little_is_the_same_card() -> None:
    def card(reserved: int) -> Card | None:
        return smallest_card(
            [
                DeviceReading(
                    uuid=Uuid("GPU-0"), index="0", name="X", total_bytes=80 * GIB, reserved_bytes=reserved
                )
            ]
        )

    assert card(551 * MIB) == card(552 * MIB)


def test_copies_of_one_config_are_the_same_model_unless_one_is_quantized(tmp_path: Path) -> None:
    for name in ("one", "copy", "quantized"):
        shutil.copytree(LLAMA_8B, tmp_path / name)
    (tmp_path / "quantized" / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')

    assert is_same(tmp_path / "one", tmp_path / "copy")
    assert not is_same(tmp_path / "one", tmp_path / "quantized")


def test_replicas_that_are_found_together_are_predicted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Question] = []

    def counted(question: Question) -> Footprint:
        asked.append(question)
        if question.engine == "broken":
            raise FootprintError("no")
        return answer(question)

    monkeypatch.setattr(prediction, "answer", counted)
    now = 100.0

    def question(start: float, engine: str = "vllm") -> Question:
        return Question(
            engine=engine,
            version="0.32.0",
            model=LLAMA_8B,
            settings=(("max_model_len", "2048"),),
            card=None,
            calibration=None,
            start=start,
        )

    async def run() -> None:
        nonlocal now
        answers = prediction.Answers(lambda: now)
        together = [await answers.to(question(start)) for start in (1.0, 2.0, 3.0)]
        assert together[0] is together[1] is together[2]
        for _ in range(2):  # what failed is tried again
            with pytest.raises(FootprintError):
                await answers.to(question(1.0, "broken"))
        now += prediction.SHARED_FOR
        assert await answers.to(question(4.0)) is not together[0]

    asyncio.run(run())

    assert [each.start for each in asked] == [1.0, 1.0, 1.0, 4.0]
