"""Read a saved /metrics page or a capture directory, without a server."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brimline.engines import (
    ENGINES,
    adapter_of,
    describe_foreign_page,
    engines_on,
    evidence_of,
    page_paths,
)
from brimline.errors import BrimlineError, EngineError
from brimline.readings import EngineReading, Histogram, RankReading, combine_ranks

SCHEMA_VERSION = 1
PAGE_FILE = "metrics.prom"
CAPTURE_FILE = "capture.json"
MAX_BYTES = 64 << 20

# The quantities of a model in JSON, in this order; those that are not stated are null.
QUANTITIES = (
    "requests_running",
    "requests_waiting",
    "kv_cache_usage_ratio",
    "kv_cache_blocks",
    "kv_cache_used_blocks",
    "kv_cache_block_tokens",
    "kv_cache_capacity_tokens",
    "kv_cache_used_tokens",
    "kv_cache_capacity_bytes",
    "kv_cache_used_bytes",
    "kv_cache_max_concurrency_requests",
    "prompt_tokens_total",
    "generation_tokens_total",
    "preemptions_total",
    "prefix_cache_queries_tokens_total",
    "prefix_cache_hits_tokens_total",
    "spec_decode_draft_tokens_total",
    "spec_decode_accepted_tokens_total",
    "max_model_len_tokens",
)
_MAPPINGS = (
    "requests_waiting_by_reason",
    "requests_finished_total",
    "measured_memory_bytes",
    "model_memory_bytes",
)
_HISTOGRAMS = (
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "request_e2e_latency_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
)


@dataclass(frozen=True, slots=True)
class SavedPage:
    """A page with the documents that were saved beside it."""

    body: bytes
    documents: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


def file_of(path: str) -> str:
    """Name of the file that holds an endpoint's document: `v1_models.json` for /v1/models."""
    return path.strip("/").replace("/", "_") + ".json"


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BrimlineError(
            f"{path}: cannot be read ({error.strerror}); name a saved page or a capture"
        ) from None
    if len(content) > MAX_BYTES:
        raise BrimlineError(f"{path}: larger than 64 MiB; that is no page of metrics")
    return content


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise BrimlineError(f"{path}: not JSON ({error}); capture the server again") from None


def open_saved(source: str) -> SavedPage:
    """The page at a path, in a capture directory, or on standard input (`-`).

    Raises BrimlineError where it cannot be read.
    """
    if source == "-":
        return SavedPage(sys.stdin.buffer.read(MAX_BYTES))
    path = Path(source)
    if not path.is_dir():
        return SavedPage(_read(path))
    # An engine without a page of metrics answers JSON in its place.
    pages = [PAGE_FILE, *(file_of(page) for page in page_paths())]
    body = _read(path / next((name for name in pages if (path / name).exists()), PAGE_FILE))
    paths = {endpoint.path for adapter in ENGINES.values() for endpoint in adapter.endpoints}
    documents = {p: _read_json(path / file_of(p)) for p in sorted(paths) if (path / file_of(p)).exists()}
    about = _read_json(path / CAPTURE_FILE) if (path / CAPTURE_FILE).exists() else {}
    headers = about.get("headers") if isinstance(about, dict) else None
    return SavedPage(body, documents, headers if isinstance(headers, dict) else {})


def read_saved(page: SavedPage, engine: str | None = None) -> list[EngineReading]:
    """A reading for each engine on the page, or for the one that is asked for.

    Raises EngineError where there is none.
    """
    found = engines_on(page.body)
    if engine is not None:
        if engine not in found:
            what = f"a page of {found[0]}" if found else describe_foreign_page(page.body)
            raise EngineError("wrong_engine", f"no metric of {engine} stands on this page: {what}")
        found = [engine]
    if not found:
        raise EngineError("not_an_engine", describe_foreign_page(page.body))
    readings = []
    for name in found:
        adapter = adapter_of(name, page.body)
        wanted = {endpoint.path: endpoint for endpoint in adapter.endpoints}
        documents = {p: wanted[p].keep(document) for p, document in page.documents.items() if p in wanted}
        readings.append(adapter.read(evidence_of(adapter, page.body, documents, page.headers)))
    return readings


def _number(value: float | None) -> float | int | None:
    return int(value) if value is not None and float(value).is_integer() else value


def _quantities(rank: RankReading) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in QUANTITIES:
        values[name] = _number(getattr(rank, name))
    return values


def _rank(rank: RankReading) -> dict[str, Any]:
    values: dict[str, Any] = {"rank": rank.rank, **_quantities(rank)}
    for name in _MAPPINGS:
        said: Mapping[str, float] | None = getattr(rank, name)
        values[name] = None if said is None else {reason: _number(count) for reason, count in said.items()}
    for name in _HISTOGRAMS:
        histogram: Histogram | None = getattr(rank, name)
        values[name] = (
            None if histogram is None else {"sum": histogram.sum, "count": _number(histogram.count)}
        )
    return values


def as_json(readings: list[EngineReading]) -> dict[str, Any]:
    """The readings in the published JSON form; what is not stated is null."""
    engines = []
    for reading in readings:
        models = [
            {"model": model, **_quantities(combine_ranks(ranks)), "ranks": [_rank(rank) for rank in ranks]}
            for model, ranks in reading.by_model().items()
        ]
        engines.append(
            {
                "engine": reading.engine,
                "engine_version": reading.engine_version,
                "models": models,
                "settings": dict(reading.settings),
                "sleeping": reading.sleeping,
                "simulated": reading.simulated,
                "missing_quantities": list(reading.missing),
                "bad_values": list(reading.bad_values),
                "unparsed_lines": reading.unparsed_lines,
            }
        )
    return {"schema_version": SCHEMA_VERSION, "engines": engines}
