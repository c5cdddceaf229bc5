"""SGLang 0.3.5 to 0.5.23, with `--enable-metrics`; not tested against a live server.

Names by version: read from the metric declarations of 25 releases, 0.4.0 to 0.5.23, and the documentation's
sample of 0.3.5. Gateways re-export their workers' pages with `sglang_` and a `worker_addr` label. What a page
does not state (the version, before 0.5.6 the capacity) comes from /server_info and /v1/models.

The token counters move when a request ends, not as it runs. With several data-parallel ranks the front end's
counters and latencies carry no `dp_rank`: they stand at rank 0, for all ranks together. `num_queue_reqs` does
not count the queues of disaggregated prefill and decode, nor that of grammars. Gauges of an idle server keep
their last value for up to half a minute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from brimline.engines.adapter import Adapter, Endpoint, Evidence
from brimline.engines.families import (
    MAX_COUNT,
    SIMULATED,
    START_TIME,
    ByLabel,
    HistogramOf,
    Key,
    Name,
    Quantity,
    Scalar,
    TableReading,
    clean_label,
    counter,
    engine_reading,
    key_by,
    read_table,
    spelled,
    wanted_names,
)
from brimline.engines.launch import normalize
from brimline.exposition_text import Page
from brimline.readings import EngineReading

_GIB = 1 << 30
_ROUNDING = 0.0051  # of a figure with two decimals

# With priority scheduling, the rows of each priority stand beside their total, whose priority is empty.
_TOTAL = {"priority": ""}


def _named(*names: str) -> tuple[str, ...]:
    """The names as the server spells them and as gateways do."""
    return tuple(spelled(name, prefix + name) for name in names for prefix in ("sglang:", "sglang_"))


def _total(
    *names: str,
    combine: Callable[[Iterable[float]], float] = max,
    ratio: bool = False,
    note: str = "",
) -> Scalar:
    """A scheduler's number; each tensor-parallel rank may show a copy, so the largest is taken."""
    return Scalar(_named(*names), combine, where=_TOTAL, ratio=ratio, note=note)


_AT_END = "moves when a request ends"

TABLE: dict[str, Quantity] = {
    # The last names of several are those of 0.3.5.
    "requests_running": _total(Name("num_running_reqs", "0.4.0"), Name("num_requests_running", "", "0.3.5")),
    "requests_waiting": _total(
        Name("num_queue_reqs", "0.4.0"),
        Name("num_requests_waiting", "", "0.3.5"),
        note="not the queues of grammars, nor those of disaggregated prefill and decode",
    ),
    "prompt_tokens_total": counter(*_named("prompt_tokens_total"), note=f"with cached ones; {_AT_END}"),
    "generation_tokens_total": counter(*_named("generation_tokens_total"), note=_AT_END),
    # The last one is a gauge that only grows. num_retracted_reqs starts anew at every log line.
    "preemptions_total": _total(
        Name("num_retracted_requests_total", "0.5.7"),
        Name("num_retracted_requests", "0.5.7"),
        Name("total_retracted_reqs", "0.4.10", "0.5.2"),
    ),
    # Split by `cache_source` since 0.5.9, where `total` holds the requests whose source is not known.
    "prefix_cache_hits_tokens_total": counter(
        *_named(Name("cached_tokens_total", "0.4.5")),
        note=f"from GPU, host and storage; absent until the first; {_AT_END}",
    ),
    "kv_cache_usage_ratio": _total(
        "token_usage", ratio=True, note="rounded to two decimals; of a hybrid model that of its fullest pool"
    ),
    "kv_cache_used_tokens": _total(
        Name("kv_used_tokens", "0.5.11"), "num_used_tokens", note="cached prefixes count as free"
    ),
    "kv_cache_capacity_tokens": _total(Name("max_total_num_tokens", "0.5.6")),
    "kv_cache_blocks": _total(Name("num_pages", "0.5.11")),
    "kv_cache_block_tokens": _total(Name("page_size", "0.5.11")),
    "max_model_len_tokens": _total(Name("context_len", "0.5.11")),
    "time_to_first_token_seconds": HistogramOf(_named("time_to_first_token_seconds")),
    # The second name counted tokens as well.
    "inter_token_latency_seconds": HistogramOf(
        _named(
            Name("inter_token_latency_seconds", "0.4.5"), Name("time_per_output_token_seconds", "", "0.4.3")
        )
    ),
    "request_e2e_latency_seconds": HistogramOf(_named("e2e_request_latency_seconds")),
    "request_prompt_tokens": HistogramOf(
        _named("prompt_tokens_histogram", Name("request_prompt_tokens", "", "0.3.5"))
    ),
    "request_generation_tokens": HistogramOf(
        _named("generation_tokens_histogram", Name("request_generation_tokens", "", "0.3.5"))
    ),
    # Not passed on as they are: each pool's usage, unrounded since 0.5.10, and GiB since 0.5.18.
    "full_usage": _total(Name("full_token_usage", "0.5.10"), ratio=True),
    "window_usage": _total(Name("swa_token_usage", "0.5.2"), ratio=True),
    "mamba_usage": _total(Name("mamba_usage", "0.5.5"), ratio=True),
    "kv_cache_gib": _total(Name("kv_cache_memory_usage_gb", "0.5.18")),
    "weights_gib": _total(Name("weight_memory_usage_gb", "0.5.18")),
    "graphs_gib": ByLabel(_named(Name("graph_memory_usage_gb", "0.5.18")), "phase", max),
}
ELSEWHERE = {
    "kv_cache_usage_ratio": (
        "since 0.5.10 the largest of `sglang:full_token_usage`, `swa_token_usage` and `mamba_usage`, all "
        "exact; before, used over capacity, where that agrees with the rounded figure"
    ),
    "kv_cache_used_bytes": "the usage's share of the capacity",
    "kv_cache_capacity_tokens": (
        "before 0.5.6 `max_total_num_tokens` of /get_server_info, or `token_capacity` of its `memory_usage`"
    ),
    "kv_cache_capacity_bytes": (
        "`sglang:kv_cache_memory_usage_gb` (GiB) since 0.5.18; since 0.4.9 `kvcache` of `memory_usage` in "
        "/server_info or /get_server_info, to two decimals"
    ),
    "kv_cache_blocks": "in 0.5.9 and 0.5.10 the label `num_pages` of `sglang:cache_config_info`",
    "kv_cache_block_tokens": "in 0.5.9 and 0.5.10 its label `page_size`; before, `page_size` of the settings",
    "kv_cache_max_concurrency_requests": "capacity in tokens over context length",
    "max_model_len_tokens": "before 0.5.11 `max_model_len` of /v1/models",
    "prefix_cache_queries_tokens_total": "the prompt tokens, once there are cached ones",
    "measured_memory_bytes": (
        "`sglang:weight_memory_usage_gb` and `graph_memory_usage_gb` of all phases since 0.5.18 (GiB); since "
        "0.4.9 `weight` and `graph` of the same `memory_usage`; of the rank that keeps statistics"
    ),
}

CONFIG_INFO = _named("cache_config_info")  # 0.5.9 and 0.5.10 only
WANTED = wanted_names(TABLE, SIMULATED, START_TIME, *CONFIG_INFO)

# Names as server_args.py of 0.5 spells them: all that decides memory or speed.
FLAGS = frozenset(
    {
        "attention_backend",
        "attn_dp_size",
        "chunked_prefill_size",
        "context_length",
        "cpu_offload_gb",
        "cuda_graph_max_bs",
        "cuda_graph_max_bs_decode",
        "disable_cuda_graph",
        "disable_hybrid_swa_memory",
        "disable_piecewise_cuda_graph",
        "disable_prefill_cuda_graph",
        "disable_radix_cache",
        "dp_size",
        "dtype",
        "enable_dp_attention",
        "enable_dp_lm_head",
        "enable_lora",
        "ep_size",
        "json_model_override_args",
        "kv_cache_dtype",
        "lora_paths",
        "lora_target_modules",
        "mamba_full_memory_ratio",
        "mamba_ssm_dtype",
        "max_lora_rank",
        "max_loras_per_batch",
        "max_mamba_cache_size",
        "max_prefill_tokens",
        "max_running_requests",
        "max_total_tokens",
        "mem_fraction_static",
        "nnodes",
        "page_size",
        "pp_size",
        "quantization",
        "schedule_policy",
        "speculative_algorithm",
        "swa_full_tokens_ratio",
        "tp_size",
    }
)
# /server_info repeats every server argument; the document also holds the server's API keys.
_SETTINGS = FLAGS | {"model_path"}
_OVERRIDES = "json_model_override_args"  # JSON, which must not be cut
_SERVER_INFO = _SETTINGS | {
    "version", "max_total_num_tokens", "internal_states", "memory_usage", "kvcache", "weight", "graph",
    "token_capacity",
}  # fmt: skip

_model_and_rank = key_by(("model_name", "name", "model"), ("dp_rank",))


def _key(labels: Mapping[str, str]) -> Key:
    model, rank = _model_and_rank(labels)
    if worker := labels.get("worker_addr"):
        rank = clean_label(worker if rank == "0" else f"{worker}#{rank}")
    return model, rank


def _positive(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value < MAX_COUNT else None


def _server_info(documents: Mapping[str, Any]) -> Mapping[str, Any]:
    for path in ("/server_info", "/get_server_info"):
        if isinstance(document := documents.get(path), dict):
            return document
    return {}


def _memory_usage(info: Mapping[str, Any]) -> Mapping[str, float]:
    """GiB on a GPU, and tokens of the pool, by the server's own words.

    Of several schedulers, whose order in the document is that of their answers, what all state alike.
    """
    states = info.get("internal_states")
    usages = [
        state.get("memory_usage") if isinstance(state, dict) else None
        for state in (states if isinstance(states, list) else [])
    ]
    stated: dict[str, float] = {}
    for name in ("kvcache", "weight", "graph", "token_capacity"):
        values = {_positive(usage.get(name)) if isinstance(usage, dict) else None for usage in usages}
        if len(values) == 1 and (value := values.pop()) is not None:
            stated[name] = value
    return stated


def _max_model_lens(documents: Mapping[str, Any]) -> dict[str, float]:
    models = documents.get("/v1/models")
    entries = models.get("data") if isinstance(models, dict) else None
    return {
        clean_label(entry["id"]): length
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
        and isinstance(entry.get("id"), str)
        and (length := _positive(entry.get("max_model_len"))) is not None
    }


def _pages(page: Page) -> dict[Key, dict[str, float]]:
    """Pages of the pool by cache_config_info, for each rank."""
    pages: dict[Key, dict[str, float]] = {}
    for row in (sample for name in CONFIG_INFO for sample in page.get(name)):
        for quantity, label in (("kv_cache_blocks", "num_pages"), ("kv_cache_block_tokens", "page_size")):
            if row.labels.get(label, "").isdecimal():
                pages.setdefault(_key(row.labels), {})[quantity] = float(row.labels[label])
    return pages


def _usage(values: dict[str, Any], capacity: float | None) -> float | None:
    """The usage of the fullest pool, as exactly as it is stated."""
    pools = [values.pop(name, None) for name in ("full_usage", "window_usage", "mamba_usage")]
    rounded: float | None = values.get("kv_cache_usage_ratio")
    if pools[0] is not None:
        return max((usage for usage in pools if usage is not None), default=rounded)
    used = values.get("kv_cache_used_tokens")
    if rounded is None or used is None or not capacity:
        return rounded
    # Of a hybrid model the rounded figure may be another pool's than the tokens are.
    exact: float = used / capacity
    return exact if abs(exact - rounded) <= _ROUNDING and exact <= 1 else rounded


def _bytes(gib: float) -> float:
    return float(round(gib * _GIB))


def _complete(values: dict[str, Any], stated: Mapping[str, float | None], usage: Mapping[str, float]) -> None:
    """Turn what the table read into the reading's quantities, in place.

    stated: quantities by /server_info and others, which the page goes before. usage: GiB by /server_info.
    """
    # Zero where the engine keeps its pool outside the allocator that it asks, or where it was not measured.
    gib = {
        "kvcache": values.pop("kv_cache_gib", None) or usage.get("kvcache"),
        "weight": values.pop("weights_gib", None) or usage.get("weight"),
        "graph": sum((values.pop("graphs_gib", None) or {}).values()) or usage.get("graph"),
    }
    for quantity, value in stated.items():
        if value is not None:
            values.setdefault(quantity, value)
    if (ratio := _usage(values, values.get("kv_cache_capacity_tokens"))) is not None:
        values["kv_cache_usage_ratio"] = ratio
    capacity, length = values.get("kv_cache_capacity_tokens"), values.get("max_model_len_tokens")
    if capacity is not None and length:
        values["kv_cache_max_concurrency_requests"] = capacity / length
    if (size := gib["kvcache"]) is not None:
        values["kv_cache_capacity_bytes"] = _bytes(size)
        if ratio is not None:
            values["kv_cache_used_bytes"] = float(round(ratio * _bytes(size)))
    values["measured_memory_bytes"] = {
        component: _bytes(size)
        for component, name in (("weights", "weight"), ("cuda_graphs", "graph"))
        if (size := gib[name]) is not None
    } or None
    if "prompt_tokens_total" in values and "prefix_cache_hits_tokens_total" in values:
        # Both count when a request ends, and the prompt includes what came from the cache.
        values["prefix_cache_queries_tokens_total"] = values["prompt_tokens_total"]


# What the front end counts, without a label of the rank.
_OF_FRONT_END = ("prompt_tokens_total", "generation_tokens_total", "prefix_cache_hits_tokens_total",
                 "prefix_cache_queries_tokens_total")  # fmt: skip


def _note_front_end(table: TableReading) -> None:
    """Note what the first of several ranks of a model states for all of them, in place."""
    for (model, rank), values in table.values.items():
        others = [theirs for (name, other), theirs in table.values.items() if name == model and other != rank]
        if rank == "0" and others:
            values["stated_for_all"] = frozenset(
                name for name in _OF_FRONT_END if name in values and all(name not in one for one in others)
            )


def read(evidence: Evidence) -> EngineReading:
    """What an SGLang server says of itself."""
    page, info = evidence.page, _server_info(evidence.documents)
    table = read_table(page, TABLE, _key)
    lengths = _max_model_lens(evidence.documents)
    pages = _pages(page)
    usage = _memory_usage(info)
    # Not behind a gateway, whose own documents these would be.
    is_alone = len({model for model, _ in table.values}) == 1 and all(r.isdecimal() for _, r in table.values)
    for key, values in table.values.items():
        stated: dict[str, float | None] = {**pages.get(key, {}), "max_model_len_tokens": lengths.get(key[0])}
        if is_alone:
            pool = _positive(info.get("max_total_num_tokens")) if len(table.values) == 1 else None
            stated["kv_cache_capacity_tokens"] = pool or usage.get("token_capacity")
            stated.setdefault("kv_cache_block_tokens", _positive(info.get("page_size")))
        _complete(values, stated, usage if is_alone else {})
    _note_front_end(table)
    version, path = info.get("version"), info.get("model_path")
    return engine_reading(
        "sglang",
        page,
        table,
        engine_version=clean_label(version) if isinstance(version, str) and version else None,
        settings={
            name: normalize(name, str(info[name]) if name == _OVERRIDES else clean_label(str(info[name])))
            for name in sorted(_SETTINGS)
            if isinstance(info.get(name), str | int | float)
        },
        served_root=path if isinstance(path, str) else None,
    )


def _is_program(words: Sequence[str]) -> bool:
    names = [PurePath(word).name for word in words[:4]]
    return ("sglang" in names and "serve" in words) or any(
        word == "sglang.launch_server" or word.endswith("/sglang/launch_server.py") for word in words
    )


def _world_size(settings: Mapping[str, str]) -> int | None:
    """GPUs of all ranks: tensor × pipeline parallel.

    None on several machines, and where it is not said whether data-parallel ranks share the GPUs.
    """
    if settings.get("nnodes", "1") != "1":
        return None
    sizes = [settings.get("tp_size", "1"), settings.get("pp_size", "1")]
    shares = settings.get("enable_dp_attention") == "true" and settings.get("attn_dp_size", "1") == "1"
    if not shares and settings.get("dp_size", "1") != "1":
        if "enable_dp_attention" not in settings:
            return None
        sizes.append(settings["dp_size"])
    return math.prod(map(int, sizes)) if all(size.isascii() and size.isdigit() for size in sizes) else None


ADAPTER = Adapter(
    name="sglang",
    versions="0.3.5 to 0.5.23",
    prefixes=("sglang:", "sglang_"),
    table=TABLE,
    elsewhere=ELSEWHERE,
    title="SGLang",
    usual_ports=(30000,),
    owned_by="sglang",
    metrics_switch="with --enable-metrics",
    wanted=WANTED,
    endpoints=(
        Endpoint("/server_info", fields=_SERVER_INFO),  # since 0.5.6
        Endpoint("/get_server_info", fields=_SERVER_INFO),
        Endpoint("/v1/models"),
    ),
    read=read,
    launch_program=_is_program,
    launch_images=("lmsysorg/sglang",),
    config_flags=frozenset({"config"}),  # 0.5.23, utils/server_args_config_parser.py
    launch_flags={
        "model": "model_path",
        "tp": "tp_size",
        "tensor_parallel_size": "tp_size",
        "pp": "pp_size",
        "pipeline_parallel_size": "pp_size",
        "dp": "dp_size",
        "data_parallel_size": "dp_size",
        "attention_data_parallel_size": "attn_dp_size",
        "ep": "ep_size",
        "expert_parallel_size": "ep_size",
    },
    flags=FLAGS,
    other_flags=frozenset(
        {
            "cuda_graph_bs_decode",
            "dcp_size",
            "dwdp_size",
            "enable_lean_attention",
            "mm_attention_backend",
        }
    ),
    launch_switches=frozenset(
        {
            "disable_cuda_graph",
            "disable_hybrid_swa_memory",
            "disable_piecewise_cuda_graph",
            "disable_prefill_cuda_graph",
            "enable_dp_attention",
            "enable_dp_lm_head",
            "enable_lora",
            "trust_remote_code",
        }
    ),
    launch_model_flag="model_path",
    world_size=_world_size,
    predictor="sglang",
    states_launch=lambda settings: "tp_size" in settings,
)
