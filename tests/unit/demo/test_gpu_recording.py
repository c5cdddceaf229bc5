"""The recording of the simulated GPUs: its form, its arithmetic, and that it says what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from brimline.demo.gpu_recording import write_recording

FIRST = "GPU-51ae0000-0000-4000-8000-000000000001"
SECOND = "GPU-51ae0000-0000-4000-8000-000000000002"
# H100 80GB HBM3: 81,559 MiB by NVML, 551 MiB of them reserved.
TOTAL = 85_520_809_984
RESERVED = 577_765_376


@pytest.fixture(name="documents")
def _documents(tmp_path: Path) -> list[dict[str, Any]]:
    path = tmp_path / "gpus.jsonl"
    write_recording(path)
    text = path.read_text(encoding="utf-8")
    assert text.endswith("}\n")
    return [json.loads(line) for line in text.splitlines()]


def used_by(documents: list[dict[str, Any]], uuid: str) -> list[int]:
    return [document["used_bytes"][uuid] for document in documents[1:]]


def test_the_first_line_names_two_simulated_gpus(documents: list[dict[str, Any]]) -> None:
    gpu = {
        "name": "Simulated H100 80GB",
        "driver": "simulated",
        "total_bytes": TOTAL,
        "reserved_bytes": RESERVED,
    }

    assert documents[0] == {
        "brimline_gpu_recording": 1,
        "gpus": [{"uuid": FIRST, "index": "0", **gpu}, {"uuid": SECOND, "index": "1", **gpu}],
    }


def test_every_second_of_four_minutes_states_both_gpus(documents: list[dict[str, Any]]) -> None:
    assert [document["t"] for document in documents[1:]] == list(range(240))
    assert all(list(document["used_bytes"]) == [FIRST, SECOND] for document in documents[1:])


@pytest.mark.parametrize("uuid", [FIRST, SECOND])
def test_a_started_server_holds_its_budget_and_never_overflows(
    documents: list[dict[str, Any]], uuid: str
) -> None:
    used = used_by(documents, uuid)

    assert min(used) > 0.9 * (TOTAL - RESERVED)
    assert max(used) < TOTAL - RESERVED


@pytest.mark.parametrize("uuid", [FIRST, SECOND])
def test_the_end_joins_the_start(documents: list[dict[str, Any]], uuid: str) -> None:
    used = used_by(documents, uuid)

    assert abs(used[-1] - used[0]) < 64 << 20


def test_one_short_spike_on_the_second_gpu_is_gone_in_two_seconds(documents: list[dict[str, Any]]) -> None:
    usual = 74 << 30  # the budget, the context and every small spike are below this
    high = [second for second, used in enumerate(used_by(documents, SECOND)) if used > usual]

    assert len(high) == 2
    assert high[1] == high[0] + 1
    assert max(used_by(documents, FIRST)) < usual


def test_the_recording_is_the_same_each_time(tmp_path: Path, documents: list[dict[str, Any]]) -> None:
    path = tmp_path / "again.jsonl"
    write_recording(path)

    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == documents
