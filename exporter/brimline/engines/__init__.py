"""ENGINES: one adapter for each inference engine, by its name in the configuration.

Adding an engine: one file beside this one that defines an `Adapter`, one line in ENGINES, one capture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brimline import json_text
from brimline.engines import dynamo, llamacpp, lmdeploy, nim, ollama, ray, sglang, tgi, triton, trtllm, vllm
from brimline.engines.adapter import Adapter, Endpoint, Evidence
from brimline.engines.foreign import describe
from brimline.errors import EngineError
from brimline.exposition_text import Page, families, scan

__all__ = [
    "ASKED_FIRST",
    "ENGINES",
    "METRICS_PATHS",
    "Adapter",
    "Endpoint",
    "Evidence",
    "adapter_of",
    "describe_foreign_page",
    "engine_of_models",
    "engine_of_queue",
    "engines_on",
    "evidence_of",
    "identify",
    "page_paths",
    "state_of",
]

ENGINES: dict[str, Adapter] = {
    "dynamo": dynamo.ADAPTER,
    "llamacpp": llamacpp.ADAPTER,
    "lmdeploy": lmdeploy.ADAPTER,
    "nim": nim.ADAPTER,
    "ollama": ollama.ADAPTER,
    "ray": ray.ADAPTER,
    "sglang": sglang.ADAPTER,
    "tgi": tgi.ADAPTER,
    "triton": triton.ADAPTER,
    "trtllm": trtllm.ADAPTER,
    "vllm": vllm.ADAPTER,
}

# What costs a server nothing and often tells the engine.
ASKED_FIRST = (Endpoint("/version"), Endpoint("/v1/models"))

# In this order: a GET of trtllm-serve's /metrics drains its queue, so its Prometheus page is tried before.
METRICS_PATHS = ("/prometheus/metrics", "/metrics", "/v1/metrics")


def page_paths() -> tuple[str, ...]:
    """Where an unknown server's page is looked for: the usual paths, then those of single engines."""
    own = (path for adapter in ENGINES.values() for path in adapter.metrics_paths)
    return tuple(dict.fromkeys((*METRICS_PATHS, *own)))


def state_of(body: bytes) -> Any:
    """The decoded JSON object that a body is; None for every other body, such as a page of metrics."""
    if body[:512].lstrip()[:1] != b"{":
        return None
    return json_text.decode(body)


def engines_on(body: bytes) -> list[str]:
    """Names of the known engines whose families stand on the page, the one with most families first.

    Of an engine without a page of metrics: whose JSON the body is.
    """
    if (state := state_of(body)) is not None:
        return [
            name
            for name, adapter in ENGINES.items()
            if adapter.is_state is not None and adapter.is_state(state)
        ]
    names = families(body)
    counts = {
        engine: sum(map(adapter.owns, names))
        for engine, adapter in ENGINES.items()
        if adapter.requires <= names and adapter.recognises(names, body)
    }
    found = {engine for engine, count in counts.items() if count}
    wrapped = {inner for engine in found for inner in ENGINES[engine].wraps}
    return sorted(found - wrapped, key=lambda engine: (-counts[engine], engine))


def adapter_of(engine: str, body: bytes) -> Adapter:
    """The adapter of that engine, fitted to the names on this page where an operator chose them."""
    adapter = ENGINES[engine]
    return adapter if adapter.fit is None else adapter.fit(body)


def evidence_of(
    adapter: Adapter,
    body: bytes,
    documents: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    launch: Mapping[str, str] | None = None,
    *,
    with_buckets: bool = True,
) -> Evidence:
    """What an adapter reads of a server's answers; its histograms without buckets where nobody wants them."""
    has_page = adapter.is_state is None
    return Evidence(
        page=scan(body, adapter.wanted if with_buckets else adapter.wanted_without_buckets)
        if has_page
        else Page({}),
        documents=documents or {},
        headers=headers or {},
        launch=launch or {},
        state=None if has_page else state_of(body),
    )


def engine_of_queue(body: bytes) -> str | None:
    """The engine whose queue has just been emptied by reading this; None where it is none."""
    return next((name for name, adapter in ENGINES.items() if adapter.drains(body)), None)


def engine_of_models(models: object) -> str | None:
    """The engine that /v1/models names in `owned_by`; None where it names none that is known."""
    entries = models.get("data") if isinstance(models, dict) else None
    for entry in entries if isinstance(entries, list) else []:
        owner = entry.get("owned_by") if isinstance(entry, dict) else None
        for engine, adapter in ENGINES.items():
            if owner is not None and owner == adapter.owned_by:
                return engine
    return None


def identify(body: bytes, wanted: str = "auto") -> str:
    """The engine of a page. Raises EngineError where it is none, or not the wanted one."""
    found = engines_on(body)
    if wanted != "auto":
        if wanted in found:
            return wanted
        what = f"a page of {found[0]}" if found else "no page of an inference engine"
        raise EngineError("wrong_engine", f"the configuration says {wanted}, but this is {what}")
    if found:
        return found[0]
    raise EngineError("not_an_engine", describe_foreign_page(body))


def describe_foreign_page(body: bytes) -> str:
    """Why a page is not one of a known engine, with what it seems to be instead."""
    return describe(body, sorted(ENGINES))
