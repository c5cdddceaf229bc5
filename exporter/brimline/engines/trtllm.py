"""TensorRT-LLM's own server, trtllm-serve, 1.0 to the main branch of 2026; not tested against a live server.

Names: tensorrt_llm/metrics/collector.py of the main branch (050f80d). 1.0 and 1.1 sent five of them without a
prefix, which only the label `engine_type` tells from other servers'; Dynamo 0.7 spelled them `trtllm:`. The
load and the K/V cache are there with `enable_iter_perf_stats: true`, the rest with
`return_perf_metrics: true`.

The Prometheus page is /prometheus/metrics. /metrics and /perf_metrics are queues that a reader empties, so
neither is ever asked. `time_per_output_token_seconds` is a request's mean, not the time between two tokens.
`gpu_memory_usage_bytes` is not read: whether it is the server's memory or the whole card's was not verified.
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
    Name,
    Quantity,
    clean_label,
    counter,
    engine_reading,
    gauge,
    key_by,
    read_table,
    wanted_names,
)
from brimline.engines.launch import normalize
from brimline.exposition_text import Page
from brimline.readings import EngineReading

_AT_END = "moves when a request ends"
_BARE = frozenset({"request_success_total", "e2e_request_latency_seconds_count"})


def _named(*names: str) -> tuple[str, ...]:
    return tuple(prefix + name for name in names for prefix in ("trtllm_", "trtllm:"))


def _first_five(name: str) -> tuple[str, ...]:
    """A name that 1.0 and 1.1 sent without a prefix."""
    return (*_named(name), Name(name, "1.0", "1.1"))


_OF_ITERATIONS = "with enable_iter_perf_stats"

TABLE: dict[str, Quantity] = {
    "requests_running": gauge(*_named("num_requests_running"), note=_OF_ITERATIONS),
    "requests_waiting": gauge(*_named("num_requests_waiting"), note=_OF_ITERATIONS),
    "requests_finished_total": ByLabel(_first_five("request_success_total"), "finished_reason"),
    "prompt_tokens_total": counter(*_named("prompt_tokens_total"), note=_AT_END),
    "generation_tokens_total": counter(*_named("generation_tokens_total"), note=_AT_END),
    "prefix_cache_hits_tokens_total": counter(*_named("prompt_cached_tokens_total"), note=_AT_END),
    "spec_decode_draft_tokens_total": counter(*_named("spec_decode_num_draft_tokens_total")),
    "spec_decode_accepted_tokens_total": counter(*_named("spec_decode_num_accepted_tokens_total")),
    "kv_cache_usage_ratio": gauge(
        *_named("kv_cache_utilization"),
        ratio=True,
        note=f"{_OF_ITERATIONS}; whether cached prefixes count as used was not verified",
    ),
    "kv_cache_blocks": gauge(*_named("kv_cache_max_blocks"), note=_OF_ITERATIONS),
    "kv_cache_used_blocks": gauge(*_named("kv_cache_used_blocks"), note=_OF_ITERATIONS),
    "kv_cache_block_tokens": gauge(*_named("kv_cache_tokens_per_block"), note=_OF_ITERATIONS),
    "time_to_first_token_seconds": HistogramOf(_first_five("time_to_first_token_seconds")),
    "request_e2e_latency_seconds": HistogramOf(_first_five("e2e_request_latency_seconds")),
    # Not passed on as they are: blocks, where the cached tokens are not counted.
    "reused_blocks": counter(*_named("kv_cache_reused_blocks_total")),
    "missed_blocks": counter(*_named("kv_cache_missed_blocks_total")),
}
ELSEWHERE = {
    "kv_cache_capacity_tokens": "blocks times the tokens of one",
    "kv_cache_used_tokens": "used blocks times the tokens of one",
    "prefix_cache_queries_tokens_total": (
        "the prompt tokens; where cached ones are not counted, `trtllm_kv_cache_reused_blocks_total` and "
        "`missed_blocks_total` together, times the tokens of one"
    ),
    "prefix_cache_hits_tokens_total": (
        "else `trtllm_kv_cache_reused_blocks_total` times the tokens of one block"
    ),
}
_OWN = wanted_names(TABLE)
# Info rows, by what their labels repeat of the launch settings; which labels there are differs by version.
CONFIG_LABELS: dict[str, dict[str, str]] = {
    "model_config_info": {"model": "model", "dtype": "dtype", "quantization": "quantization"},
    "parallel_config_info": {"tp_size": "tp_size", "pp_size": "pp_size", "ep_size": "ep_size"},
    "kv_cache_config_info": {"page_size": "tokens_per_block"},
}
WANTED = _OWN | wanted_names({}, SIMULATED, START_TIME, *_named(*CONFIG_LABELS))

_model_and_rank = key_by(("model_name", "model"))


def _key(labels: Mapping[str, str]) -> Key:
    model, rank = _model_and_rank(labels)
    return "" if model == "undefined" else model, rank  # what 1.0 and 1.1 write for every label


def _recognises(names: Set[str], body: bytes) -> bool:
    prefixed = any(name.startswith(("trtllm_", "trtllm:")) for name in names)
    return prefixed or (names >= _BARE and b'engine_type="' in body)


def _settings(page: Page) -> dict[str, str]:
    settings = {}
    for name, labels in CONFIG_LABELS.items():
        for row in next((rows for one in _named(name) if (rows := page.get(one))), ())[:1]:
            for label, setting in labels.items():
                if (value := row.labels.get(label, "None")) not in ("None", "", "undefined"):
                    settings[setting] = normalize(setting, clean_label(value))
    return settings


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
        reused, missed = values.pop("reused_blocks", None), values.pop("missed_blocks", None)
        if "prompt_tokens_total" in values and "prefix_cache_hits_tokens_total" in values:
            # Both count when a request ends, and the prompt includes what came from the cache.
            values["prefix_cache_queries_tokens_total"] = values["prompt_tokens_total"]
        elif block_tokens is not None and reused is not None and missed is not None:
            values["prefix_cache_hits_tokens_total"] = reused * block_tokens
            values["prefix_cache_queries_tokens_total"] = (reused + missed) * block_tokens
    document = evidence.documents.get("/version")
    version = document.get("version") if isinstance(document, dict) else None
    return engine_reading(
        "trtllm",
        evidence.page,
        table,
        engine_version=clean_label(version) if isinstance(version, str) and version else None,
        settings=_settings(evidence.page),
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
    versions="1.0 to the main branch of 2026",
    prefixes=("trtllm_", "trtllm:"),
    names=frozenset(map(bytes.decode, _OWN)),
    table=TABLE,
    elsewhere=ELSEWHERE,
    besides="or, without a prefix, two of the first five names and a label `engine_type`",
    title="TensorRT-LLM",
    owned_by="tensorrt_llm",  # so that its /metrics, which drains its queue, is never tried
    usual_ports=(8000,),
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
