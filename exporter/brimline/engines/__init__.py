"""ENGINES: one adapter for each inference engine, by its name in the configuration.

Adding an engine: one file beside this one that defines an `Adapter`, one line in ENGINES, one capture.
"""

from __future__ import annotations

from brimline.engines import dynamo, llamacpp, lmdeploy, nim, ray, sglang, tgi, triton, trtllm, vllm
from brimline.engines.adapter import Adapter, Endpoint, Evidence
from brimline.errors import EngineError
from brimline.exposition_text import families

__all__ = [
    "ASKED_FIRST",
    "ENGINES",
    "METRICS_PATHS",
    "Adapter",
    "Endpoint",
    "Evidence",
    "describe_foreign_page",
    "engine_of_models",
    "engines_on",
    "identify",
]

ENGINES: dict[str, Adapter] = {
    "dynamo": dynamo.ADAPTER,
    "llamacpp": llamacpp.ADAPTER,
    "lmdeploy": lmdeploy.ADAPTER,
    "nim": nim.ADAPTER,
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


def engines_on(body: bytes) -> list[str]:
    """Names of the known engines whose families stand on the page, the one with most families first."""
    names = families(body)
    counts = {
        engine: sum(map(adapter.owns, names))
        for engine, adapter in ENGINES.items()
        if adapter.requires <= names and adapter.recognises(names, body)
    }
    found = {engine for engine, count in counts.items() if count}
    wrapped = {inner for engine in found for inner in ENGINES[engine].wraps}
    return sorted(found - wrapped, key=lambda engine: (-counts[engine], engine))


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
    start = body[:512].lstrip()
    if not start:
        return "the page is empty"
    if start[:1] == b"<":
        return "this is an HTML page, not metrics"
    if start[:1] in (b"{", b"["):
        return "this is JSON, not metrics"
    prefixes: dict[str, int] = {}
    for name in families(body):
        prefix = name.partition("_")[0].partition(":")[0]
        prefixes[prefix] = prefixes.get(prefix, 0) + 1
    top = sorted(prefixes, key=lambda prefix: -prefixes[prefix])[:3]
    seen = ", ".join(f"{prefix}_… ({prefixes[prefix]})" for prefix in top) or "no metric at all"
    known = ", ".join(sorted(ENGINES))
    return f"no metric of a known inference engine ({known}) stands on this page; it has {seen}"
