"""The process that computes for the planning page, question by question."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from brimline.footprint import worker
from brimline.footprint.worker import MAX_QUESTION_BYTES, Kind, Memory, answer, frame, read_frame

LLAMA = Path(__file__).parent.parent.parent.parent / "exporter/brimline/demo/llama-3.1-8b"


def ask(memory: Memory, **question: Any) -> tuple[Kind, Any]:
    said = answer(json.dumps({"engine": "vllm", "settings": {}, **question}).encode(), memory)
    return Kind(said[:1]), json.loads(said[1:])


def test_a_model_is_read_once_and_its_curve_worked_out_once_while_only_the_context_moves() -> None:
    memory = Memory()
    ask(memory, path=str(LLAMA), gpu={"name": "L4"})
    model, around = memory.model, memory.around
    kind, said = ask(memory, path=str(LLAMA), gpu={"name": "L4"}, settings={"max_model_len": "2048"})

    assert kind is Kind.PREDICTION
    assert said["context_tokens"] == 2048
    assert memory.model is model
    assert memory.around is around


@pytest.mark.parametrize(
    "change",
    [
        {"gpu": {"name": "H100"}},
        {"gpu": None},
        {"settings": {"kv_cache_dtype": "fp8"}},
        {"version": "0.19.0"},
    ],
)
def test_the_curve_is_worked_out_anew_where_anything_else_changes(change: dict[str, Any]) -> None:
    memory = Memory()
    ask(memory, path=str(LLAMA), gpu={"name": "L4"})
    model, around = memory.model, memory.around
    ask(memory, path=str(LLAMA), **{"gpu": {"name": "L4"}, **change})

    assert memory.model is model
    assert memory.around is not around


def test_a_model_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    config = json.loads((LLAMA / "config.json").read_text())
    shutil.copytree(LLAMA, tmp_path / "model")
    memory = Memory()
    _, before = ask(memory, path=str(tmp_path / "model"))
    (tmp_path / "model/config.json").write_text(json.dumps({**config, "num_hidden_layers": 16}))
    os.utime(tmp_path / "model/config.json", (1, 1))
    _, after = ask(memory, path=str(tmp_path / "model"))

    assert (before["model"]["layers"], after["model"]["layers"]) == (32, 16)


def test_a_card_of_this_machine_is_known_by_its_own_memory() -> None:
    # 81,559 - 551 MiB: the logged 79.11 GiB of an H100.
    card = {"name": "NVIDIA H100 80GB HBM3", "total_bytes": 81559 << 20, "reserved_bytes": 551 << 20}
    _, said = ask(Memory(), path=str(LLAMA), gpu={"card": card})

    assert said["gpu"]["visible"]["low"] == said["gpu"]["visible"]["high"] == 81008 << 20
    assert said["gpu"]["bandwidth_bytes_per_second"] == 3.35e12


def test_a_card_that_is_in_no_table_is_a_card() -> None:
    card = {"name": "NVIDIA Z900", "total_bytes": 200 << 30, "reserved_bytes": None}
    kind, said = ask(Memory(), path=str(LLAMA), gpu={"card": card})

    assert kind is Kind.PREDICTION
    assert said["gpu"]["bandwidth_bytes_per_second"] is None
    assert said["prediction"]["throughput"]["decode_ceiling"] == []


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ({}, "no model is named"),
        ({"path": "/no/where"}, "where cannot be read"),
        ({"path": str(LLAMA), "engine": "abacus"}, "'abacus'"),
        ({"path": str(LLAMA), "gpu": {}}, "needs its memory"),
        ({"path": str(LLAMA), "more": 1}, "more"),
        ({"config": "{}"}, "config.json: num_hidden_layers is missing"),
        ({"path": str(LLAMA), "calibration": "/no/where.yaml"}, "where.yaml"),
    ],
)
def test_what_cannot_be_predicted_is_refused_in_words(question: dict[str, Any], said: str) -> None:
    kind, text = ask(Memory(), **question)

    assert kind is Kind.REFUSAL
    assert said in text


def test_running_out_of_memory_is_an_answer_and_lets_go_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: Any) -> Any:
        raise MemoryError

    memory = Memory()
    ask(memory, path=str(LLAMA))
    # There is no file that takes half a gigabyte within the size that is read.
    monkeypatch.setattr(worker, "parse_config", greedy)
    kind, text = ask(memory, config="{}")

    assert kind is Kind.REFUSAL
    assert "more memory" in text
    assert memory.model is None


def test_a_defect_is_an_answer_that_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(worker, "parse_config", broken)
    kind, text = ask(Memory(), config="{}")

    assert kind is Kind.DEFECT
    assert text.startswith("ZeroDivisionError: division by zero (test_worker.py:")


def test_frames_come_back_as_they_were_sent_until_the_stream_ends() -> None:
    stream = io.BytesIO(frame(b"one") + frame(b"") + frame(b"three")[:-1])

    assert [read_frame(stream) for _ in range(4)] == [b"one", b"", None, None]


def test_a_frame_that_is_too_long_is_not_read() -> None:
    stream = io.BytesIO((MAX_QUESTION_BYTES + 1).to_bytes(4, "big"))

    with pytest.raises(ValueError, match="too long"):
        read_frame(stream)


@pytest.mark.parametrize("folder", ["models", "my models (old)"])
def test_no_answer_tells_the_folders_of_this_machine(tmp_path: Path, folder: str) -> None:
    model = tmp_path / folder / "llama"
    shutil.copytree(LLAMA, model)
    drafts = json.dumps({"method": "eagle3", "model": f"{tmp_path}/draft", "num_speculative_tokens": 3})

    for question in (
        {"path": str(model), "gpu": {"name": "H100"}},
        {"path": str(tmp_path / folder / "none")},
        {"path": str(model), "calibration": str(tmp_path / "none.yaml")},
        {"path": str(model), "settings": {"speculative_config": drafts}},
        {"path": str(model), "settings": {"tensor_parallel_size": "3"}},
    ):
        _, said = ask(Memory(), **question)

        assert str(tmp_path) not in json.dumps(said), said
    _, said = ask(Memory(), path=str(model), gpu={"name": "H100"})
    source = said["prediction"]["per_gpu"]["components"]["weights"]["source"]
    assert "llama/config.json" in source


def test_a_quantization_that_is_laid_beside_a_config_is_read_anew(tmp_path: Path) -> None:
    shutil.copytree(LLAMA, tmp_path / "model")
    memory = Memory()
    _, before = ask(memory, path=str(tmp_path / "model"))
    (tmp_path / "model/hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    _, after = ask(memory, path=str(tmp_path / "model"))

    assert (before["model"]["quantization"], after["model"]["quantization"]) == (None, "fp8")
