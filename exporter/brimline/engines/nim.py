"""NVIDIA NIM for LLMs 1.x; not tested against a live server.

Names: a page of NIM 1.x; 2.x was not seen. They are vLLM's without a prefix, so two of them together are
asked for that no other server is known to send. The page is at /v1/metrics and says nothing of blocks or
tokens of the K/V cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brimline.engines.adapter import Adapter, Endpoint, Evidence
from brimline.engines.families import (
    SIMULATED,
    START_TIME,
    ByLabel,
    HistogramOf,
    Quantity,
    clean_label,
    counter,
    engine_reading,
    gauge,
    key_by,
    read_table,
    wanted_names,
)
from brimline.readings import EngineReading

TABLE: dict[str, Quantity] = {
    "requests_running": gauge("num_requests_running"),
    "requests_waiting": gauge("num_requests_waiting"),
    "requests_finished_total": ByLabel(("request_finish_total", "request_finish"), "finished_reason"),
    "prompt_tokens_total": counter("prompt_tokens_total"),
    "generation_tokens_total": counter("generation_tokens_total"),
    "kv_cache_usage_ratio": gauge("gpu_cache_usage_perc", ratio=True),
    "time_to_first_token_seconds": HistogramOf(("time_to_first_token_seconds",)),
    # Counts every token but each request's first, so it is the time between two of them.
    "inter_token_latency_seconds": HistogramOf(("time_per_output_token_seconds",)),
    "request_e2e_latency_seconds": HistogramOf(("e2e_request_latency_seconds",)),
    "request_prompt_tokens": HistogramOf(("request_prompt_tokens",)),
    "request_generation_tokens": HistogramOf(("request_generation_tokens",)),
}
MAX_REQUESTS = "num_request_max"
_OWN = wanted_names(TABLE, MAX_REQUESTS)
WANTED = _OWN | wanted_names({}, SIMULATED, START_TIME)


def _models(documents: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    models = documents.get("/v1/models")
    entries = models.get("data") if isinstance(models, dict) else None
    return [
        entry
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and isinstance(entry.get("id"), str)
    ]


def read(evidence: Evidence) -> EngineReading:
    """What a NIM server says of itself."""
    models = _models(evidence.documents)
    lengths = {
        clean_label(entry["id"]): float(length)
        for entry in models
        if isinstance(length := entry.get("max_model_len"), int) and 0 < length < 1 << 53
    }
    table = read_table(evidence.page, TABLE, key_by(("model_name",)))
    for (model, _), values in table.values.items():
        if model in lengths:
            values["max_model_len_tokens"] = lengths[model]
    base = next((entry for entry in models if not entry.get("parent")), {})
    root = base.get("root")
    return engine_reading("nim", evidence.page, table, served_root=root if isinstance(root, str) else None)


ADAPTER = Adapter(
    name="nim",
    versions="1.x",
    names=frozenset(map(bytes.decode, _OWN)),
    table=TABLE,
    elsewhere={"max_model_len_tokens": "`max_model_len` of /v1/models, where it stands there"},
    besides=f"`{MAX_REQUESTS}` and `gpu_cache_usage_perc` both stand there",
    title="NVIDIA NIM",
    usual_ports=(8000,),
    requires=frozenset({MAX_REQUESTS, "gpu_cache_usage_perc"}),
    metrics_paths=("/v1/metrics",),
    wanted=WANTED,
    endpoints=(Endpoint("/v1/models"),),
    read=read,
)
