"""NVIDIA NIM for LLMs 1.x; not tested against a live server.

Names: a page of NIM 1.x; 2.x was not seen. They are vLLM's without a prefix, so two of them together are
asked for that no other server is known to send. The page is at /v1/metrics and says nothing of blocks or
tokens of the K/V cache.
"""

from __future__ import annotations

from brimline.engines.adapter import Adapter, Evidence
from brimline.engines.families import (
    SIMULATED,
    START_TIME,
    ByLabel,
    HistogramOf,
    Quantity,
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


def read(evidence: Evidence) -> EngineReading:
    """What a NIM server says of itself."""
    return engine_reading("nim", evidence.page, read_table(evidence.page, TABLE, key_by(("model_name",))))


ADAPTER = Adapter(
    name="nim",
    title="NVIDIA NIM",
    usual_ports=(8000,),
    owns=lambda name: name.encode() in _OWN,
    requires=frozenset({MAX_REQUESTS, "gpu_cache_usage_perc"}),
    metrics_paths=("/v1/metrics",),
    wanted=WANTED,
    read=read,
)
