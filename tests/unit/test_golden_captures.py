"""Every saved server under tests/captures reads as its golden file says.

A new capture (`brimline capture`) fails here until `pytest --update` has written its golden file and somebody
has read it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from brimline.engines import ENGINES
from brimline.readings import RankReading
from brimline.saved_page import as_json, open_saved, read_saved

TESTS = Path(__file__).parent.parent
CAPTURES = sorted(path for path in (TESTS / "captures").iterdir() if path.is_dir())
RANK_FIELDS = set(RankReading.__struct_fields__) - {"model", "rank"}
# What depends on launch settings, which no page states.
UNSHOWN = {"ollama": {"kv_cache_capacity_tokens", "kv_cache_max_concurrency_requests"}}


def _engines() -> Iterator[dict[str, Any]]:
    for capture in CAPTURES:
        yield from json.loads((TESTS / "golden" / f"{capture.name}.json").read_text())["engines"]


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.name)
def test_a_capture_reads_as_its_golden_file_says(capture: Path, request: pytest.FixtureRequest) -> None:
    read = json.dumps(as_json(read_saved(open_saved(str(capture)))), indent=2, sort_keys=True) + "\n"
    golden = TESTS / "golden" / f"{capture.name}.json"

    if request.config.getoption("--update"):
        golden.write_text(read)

    assert golden.exists(), f"run pytest --update and read {golden}"
    assert read == golden.read_text()


def test_a_capture_says_whether_a_server_was_asked_or_who_wrote_it() -> None:
    said = {path.name: json.loads((path / "capture.json").read_text()).keys() for path in CAPTURES}

    assert {
        name for name, keys in said.items() if ("captured_at" in keys) == ("written_from" in keys)
    } == set()
    assert {name for name, keys in said.items() if "captured_at" in keys} == {
        "llamacpp-2026.10",
        "vllm-0.32.0-cpu",
    }


def test_every_engine_has_a_capture() -> None:
    engines = {engine["engine"] for engine in _engines()}

    assert engines == set(ENGINES)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_gives_what_its_document_says_and_nothing_else(engine: str) -> None:
    """docs/engines.md is made of the adapters' `table` and `elsewhere`."""
    adapter = ENGINES[engine]
    claimed = {name for name in (*adapter.table, *adapter.elsewhere) if name in RANK_FIELDS}
    given = {
        name
        for one in _engines()
        if one["engine"] == engine
        for model in one["models"]
        for rank in model["ranks"]
        for name, value in rank.items()
        if value is not None and name in RANK_FIELDS
    }

    assert given <= claimed
    # Behind Dynamo stand several engines, and not every one of them has a page among the captures.
    assert engine == "dynamo" or claimed - given == UNSHOWN.get(engine, set())


def test_captures_hold_no_secret() -> None:
    kept = b"".join(path.read_bytes() for capture in CAPTURES for path in capture.iterdir())

    assert b"Authorization" not in kept
    assert b'"prompt"' not in kept  # what users wrote
