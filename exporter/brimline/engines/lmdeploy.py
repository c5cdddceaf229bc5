"""LMDeploy 0.16; not tested against a live server.

Names: lmdeploy/metrics/loggers.py of 0.16.0; older releases were not read. The page gives neither blocks nor
tokens of the K/V cache: `lmdeploy:backend_config_info` is declared and never filled. Whether it sleeps, and
has given its memory up, is at /is_sleeping.
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
    "requests_running": gauge("lmdeploy:num_requests_running"),
    "requests_waiting": gauge(
        "lmdeploy:num_requests_waiting", note="and those of `lmdeploy:num_api_requests_waiting`"
    ),
    "requests_finished_total": ByLabel(
        ("lmdeploy:request_success_total", "lmdeploy:request_success"), "finished_reason"
    ),
    "prompt_tokens_total": counter("lmdeploy:prompt_tokens_total"),
    "generation_tokens_total": counter("lmdeploy:generation_tokens_total"),
    "spec_decode_draft_tokens_total": counter("lmdeploy:spec_decode_num_draft_tokens_total"),
    "spec_decode_accepted_tokens_total": counter("lmdeploy:spec_decode_num_accepted_tokens_total"),
    "prefix_cache_hits_tokens_total": counter("lmdeploy:cached_tokens_total"),
    "kv_cache_usage_ratio": gauge(
        "lmdeploy:gpu_cache_usage_perc",
        ratio=True,
        note="whether cached prefixes count as used was not read",
    ),
    "time_to_first_token_seconds": HistogramOf(("lmdeploy:time_to_first_token_seconds",)),
    # time_per_output_token_seconds is a request's mean.
    "inter_token_latency_seconds": HistogramOf(
        ("lmdeploy:iter_token_latency",), note="seconds, though its name does not say so"
    ),
    "request_e2e_latency_seconds": HistogramOf(("lmdeploy:e2e_request_latency_seconds",)),
    "request_prompt_tokens": HistogramOf(("lmdeploy:request_prompt_tokens",)),
    "request_generation_tokens": HistogramOf(("lmdeploy:request_generation_tokens",)),
    # Not passed on by itself: requests that have not reached the engine, for want of a free handle.
    "waiting_for_handle": gauge("lmdeploy:num_api_requests_waiting"),
}
WANTED = wanted_names(TABLE, SIMULATED, START_TIME)


def _root(documents: Mapping[str, Any]) -> str | None:
    models = documents.get("/v1/models")
    entries = models.get("data") if isinstance(models, dict) else None
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("root"), str):
            return str(entry["root"])
    return None


def read(evidence: Evidence) -> EngineReading:
    """What an LMDeploy server says of itself."""
    table = read_table(evidence.page, TABLE, key_by(("model_name",), ("engine",)))
    for values in table.values.values():
        outside = values.pop("waiting_for_handle", None)
        if outside is not None and "requests_waiting" in values:
            values["requests_waiting"] += outside
    root = _root(evidence.documents)
    document = evidence.documents.get("/is_sleeping")
    sleeping = document.get("is_sleeping") if isinstance(document, dict) else None
    return engine_reading(
        "lmdeploy",
        evidence.page,
        table,
        settings={} if root is None else {"model_path": clean_label(root)},
        served_root=root,
        sleeping=sleeping if isinstance(sleeping, bool) else None,
    )


ADAPTER = Adapter(
    name="lmdeploy",
    versions="0.16",
    prefixes=("lmdeploy:",),
    table=TABLE,
    title="LMDeploy",
    usual_ports=(23333,),
    owned_by="lmdeploy",
    metrics_switch="without --disable-metrics",
    wanted=WANTED,
    endpoints=(Endpoint("/v1/models"), Endpoint("/is_sleeping", live=True)),
    read=read,
    launch_model_flag="model_path",
)
