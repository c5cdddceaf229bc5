"""Ollama's /api/ps, written from its definitions (server/routes.go), not saved from a server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from brimline.engines import ENGINES, METRICS_PATHS, engines_on, evidence_of, page_paths
from brimline.engines.ollama import ADAPTER
from brimline.readings import EngineReading, RankReading

GIB = 1 << 30


def loaded(name: str, *, size: Any = 6 * GIB, on_gpu: Any = 6 * GIB, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "model": name,
        "size": size,
        "digest": "9f4b",
        "details": {"format": "gguf", "family": "llama", "parameter_size": "8.0B",
                    "quantization_level": "Q4_K_M"},
        "expires_at": "2026-11-30T10:05:00Z",
        "size_vram": on_gpu,
        "context_length": 8192,
        **more,
    }  # fmt: skip


def reading_of(*models: Any, launch: dict[str, str] | None = None, version: Any = None) -> EngineReading:
    body = json.dumps({"models": list(models)}).encode()
    documents = {} if version is None else {"/api/version": version}
    return ADAPTER.read(evidence_of(ADAPTER, body, documents, {}, launch))


def test_each_loaded_model_has_its_memory_by_place_and_its_context() -> None:
    reading = reading_of(
        loaded("llama3.1:8b"), loaded("qwen3:32b", size=24 * GIB, on_gpu=15 * GIB, context_length=4096)
    )

    assert reading.ranks == (
        RankReading(
            model="llama3.1:8b",
            max_model_len_tokens=8192,
            model_memory_bytes={"gpu": 6 * GIB, "host": 0},
        ),
        RankReading(
            model="qwen3:32b",
            max_model_len_tokens=4096,
            model_memory_bytes={"gpu": 15 * GIB, "host": 9 * GIB},
        ),
    )
    assert reading.missing == ()


def test_it_says_nothing_of_requests_and_tokens() -> None:
    [rank] = reading_of(loaded("m")).ranks

    assert (rank.requests_running, rank.generation_tokens_total, rank.kv_cache_usage_ratio) == (None,) * 3
    assert rank.measured_memory_bytes is None  # weights, cache and buffers are not told apart


def test_without_a_loaded_model_it_is_up_and_serves_none() -> None:
    assert reading_of() == EngineReading(engine="ollama")


def test_an_older_server_does_not_state_the_context() -> None:
    entry = loaded("m")
    del entry["context_length"]

    [rank] = reading_of(entry).ranks

    assert rank.max_model_len_tokens is None


def test_the_settings_are_those_of_the_only_loaded_model() -> None:
    assert reading_of(loaded("llama3.1:8b")).settings == {
        "context_length": "8192",
        "model": "llama3.1:8b",
        "quantization": "Q4_K_M",
    }
    assert reading_of(loaded("a"), loaded("b")).settings == {}


@pytest.mark.parametrize(
    ("parallel", "capacity", "requests"),
    [("4", 32768, 4), ("1", 8192, 1), ("0", None, None), ("x", None, None)],
)
def test_every_declared_parallel_request_has_a_context_of_its_own(
    parallel: str, capacity: float | None, requests: float | None
) -> None:
    [rank] = reading_of(loaded("m"), launch={"num_parallel": parallel}).ranks

    assert rank.kv_cache_capacity_tokens == capacity
    assert rank.kv_cache_max_concurrency_requests == requests


@pytest.mark.parametrize(
    ("version", "said"),
    [({"version": "0.13.1"}, "0.13.1"), ({"version": ""}, None), ({"version": 5}, None), ([], None)],
)
def test_the_version_comes_from_its_own_endpoint(version: Any, said: str | None) -> None:
    assert reading_of(version=version).engine_version == said


@pytest.mark.parametrize(
    ("size", "on_gpu"), [(-1, 0), (1.5, 0), ("6", 0), (None, 0), (True, 0), (1, 2), (1 << 70, 0), (5, None)]
)
def test_memory_that_cannot_be_is_dropped_and_named(size: Any, on_gpu: Any) -> None:
    reading = reading_of(loaded("m", size=size, on_gpu=on_gpu))

    [rank] = reading.ranks
    assert rank.model_memory_bytes is None
    assert rank.max_model_len_tokens == 8192
    assert reading.bad_values == ("model_memory_bytes",)


def test_models_beyond_the_limit_are_dropped_and_counted() -> None:
    reading = reading_of(*(loaded(f"m{number}") for number in range(300)))

    assert (len(reading.ranks), reading.dropped_series) == (256, 44)


def test_a_hostile_name_is_short_and_printable() -> None:
    [rank] = reading_of(loaded('m"\n\u202e<b>' + "x" * 10_000)).ranks

    assert rank.model.startswith('m"<b>xxx')
    assert len(rank.model) <= 128
    assert rank.model.isprintable()


@pytest.mark.parametrize(
    ("document", "engines"),
    [
        ({"models": []}, ["ollama"]),
        ({"models": [loaded("m")]}, ["ollama"]),
        ({"models": [{"name": "m", "size": 1}]}, []),  # what /api/tags answers: models on the disk
        ({"models": [None]}, []),
        ({"models": {}}, []),
        ({"version": "0.13.1"}, []),
        ({"status": "ok"}, []),
        ([], []),
    ],
)
def test_its_state_is_known_by_its_shape(document: Any, engines: list[str]) -> None:
    assert engines_on(json.dumps(document).encode()) == engines


@pytest.mark.parametrize("body", [b"{", b'{"models": [}', b"{" * 100_000, b'{"a":' * 100_000 + b"1"])
def test_damaged_json_is_no_engines(body: bytes) -> None:
    assert engines_on(body) == []


def test_it_is_looked_for_behind_all_metrics_pages() -> None:
    assert page_paths() == (*METRICS_PATHS, "/api/ps")
    assert ENGINES["ollama"].metrics_paths == ("/api/ps",)


@pytest.mark.parametrize(
    ("words", "starts"),
    [
        (["ollama", "serve"], True),
        (["/usr/local/bin/ollama", "serve"], True),
        (["ollama", "run", "m"], False),
        (["serve"], False),
    ],
)
def test_the_program_is_known(words: list[str], starts: bool) -> None:
    assert ADAPTER.launch_program(words) is starts
