"""TensorRT-LLM's own server, trtllm-serve, 1.0 to the main branch of 2026; not tested against a live server.

Names: tensorrt_llm/metrics/collector.py of the main branch (050f80d). 1.0 and 1.1 sent five of them without a
prefix, which only the label `engine_type` tells from other servers'; Dynamo 0.7 spelled them `trtllm:`. The
load and the K/V cache are there with `enable_iter_perf_stats: true`, the rest with
`return_perf_metrics: true`.

The Prometheus page is /prometheus/metrics. /metrics and /perf_metrics are queues that a reader empties, so
neither is ever asked. `time_per_output_token_seconds` is a request's mean, not the time between two tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import PurePath

from brimline.engines.adapter import Adapter, Endpoint, Evidence
from brimline.engines.families import (
    SIMULATED,
    START_TIME,
    ByLabel,
    HistogramOf,
    Key,
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

_BARE = frozenset({"request_success_total", "e2e_request_latency_seconds_count"})


def _named(*names: str) -> tuple[str, ...]:
    return tuple(prefix + name for name in names for prefix in ("trtllm_", "trtllm:"))


def _first_five(name: str) -> tuple[str, ...]:
    """A name that 1.0 and 1.1 sent without a prefix."""
    return (*_named(name), name)


TABLE: dict[str, Quantity] = {
    "requests_running": gauge(*_named("num_requests_running")),
    "requests_waiting": gauge(*_named("num_requests_waiting")),
    "requests_finished_total": ByLabel(_first_five("request_success_total"), "finished_reason"),
    "prompt_tokens_total": counter(*_named("prompt_tokens_total")),
    "generation_tokens_total": counter(*_named("generation_tokens_total")),
    "prefix_cache_hits_tokens_total": counter(*_named("prompt_cached_tokens_total")),
    "spec_decode_draft_tokens_total": counter(*_named("spec_decode_num_draft_tokens_total")),
    "spec_decode_accepted_tokens_total": counter(*_named("spec_decode_num_accepted_tokens_total")),
    "kv_cache_usage_ratio": gauge(*_named("kv_cache_utilization"), ratio=True),
    "kv_cache_blocks": gauge(*_named("kv_cache_max_blocks")),
    "kv_cache_used_blocks": gauge(*_named("kv_cache_used_blocks")),
    "kv_cache_block_tokens": gauge(*_named("kv_cache_tokens_per_block")),
    "time_to_first_token_seconds": HistogramOf(_first_five("time_to_first_token_seconds")),
    "request_e2e_latency_seconds": HistogramOf(_first_five("e2e_request_latency_seconds")),
}
_OWN = wanted_names(TABLE)
WANTED = _OWN | wanted_names({}, SIMULATED, START_TIME)

_model_and_rank = key_by(("model_name", "model"))


def _key(labels: Mapping[str, str]) -> Key:
    model, rank = _model_and_rank(labels)
    return "" if model == "undefined" else model, rank  # what 1.0 and 1.1 write for every label


def _recognises(names: Set[str], body: bytes) -> bool:
    prefixed = any(name.startswith(("trtllm_", "trtllm:")) for name in names)
    return prefixed or (names >= _BARE and b'engine_type="' in body)


def _drains(body: bytes) -> bool:
    """True for a list of iterations or requests, empty where nothing has run since the last reader."""
    start = body[:512].lstrip()
    return start.startswith(b"[") and (b'"iter' in start or not start[1:].lstrip().strip(b"] \r\n"))


def read(evidence: Evidence) -> EngineReading:
    """What a trtllm-serve server says of itself."""
    table = read_table(evidence.page, TABLE, _key)
    for values in table.values.values():
        block_tokens = values.get("kv_cache_block_tokens")
        for blocks, tokens in (
            ("kv_cache_blocks", "kv_cache_capacity_tokens"),
            ("kv_cache_used_blocks", "kv_cache_used_tokens"),
        ):
            if block_tokens is not None and blocks in values:
                values[tokens] = values[blocks] * block_tokens
        if "prompt_tokens_total" in values and "prefix_cache_hits_tokens_total" in values:
            # Both count when a request ends, and the prompt includes what came from the cache.
            values["prefix_cache_queries_tokens_total"] = values["prompt_tokens_total"]
    document = evidence.documents.get("/version")
    version = document.get("version") if isinstance(document, dict) else None
    return engine_reading(
        "trtllm",
        evidence.page,
        table,
        engine_version=clean_label(version) if isinstance(version, str) and version else None,
    )


def _is_program(words: Sequence[str]) -> bool:
    return any(PurePath(word).name == "trtllm-serve" for word in words[:4])


# Names as commands/serve.py of 1.0 spells them.
FLAGS = frozenset(
    {
        "backend",
        "cuda_graph_config",
        "dtype",
        "ep_size",
        "free_gpu_memory_fraction",
        "kv_cache_config",
        "kv_cache_dtype",
        "kv_cache_free_gpu_memory_fraction",
        "max_batch_size",
        "max_num_tokens",
        "max_seq_len",
        "max_tokens",
        "pp_size",
        "quantization",
        "tokens_per_block",
        "tp_size",
    }
)

ADAPTER = Adapter(
    name="trtllm",
    title="TensorRT-LLM",
    owned_by="tensorrt_llm",  # so that its /metrics, which drains its queue, is never tried
    usual_ports=(8000,),
    owns=lambda name: name.startswith(("trtllm_", "trtllm:")) or name.encode() in _OWN,
    recognises=_recognises,
    metrics_paths=("/prometheus/metrics",),
    drains=_drains,
    metrics_switch="with return_perf_metrics: true and enable_iter_perf_stats: true in its options",
    wanted=WANTED,
    endpoints=(Endpoint("/version"),),
    read=read,
    launch_program=_is_program,
    # "Path to a YAML file that overwrites the parameters specified by trtllm-serve" (commands/serve.py).
    config_flags=frozenset({"extra_llm_api_options", "config"}),
    config_wins=True,
    launch_flags={
        "tensor_parallel_size": "tp_size",
        "pipeline_parallel_size": "pp_size",
        "moe_expert_parallel_size": "ep_size",
    },
    flags=FLAGS,
    launch_switches=frozenset({"trust_remote_code"}),
    predictor="trtllm",
)
