"""vLLM 0.4 to 0.33, engines V0 and V1, the Python and the Rust front end.

Names by version: read from the `name="vllm:…"` calls of 32 releases, 0.4.2 to 0.33.0. What a page does not
state (max_model_len, the version) comes from /v1/models and /version.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from brimline.engines.adapter import Adapter, Endpoint, Evidence
from brimline.engines.families import (
    MAX_COUNT,
    ByLabel,
    HistogramOf,
    Key,
    Name,
    Quantity,
    TableReading,
    clean_label,
    counter,
    gauge,
    missing_quantities,
    parse_version,
    read_table,
    wanted_names,
)
from brimline.engines.launch import names_image, normalize
from brimline.exposition_text import Page, Sample
from brimline.readings import EngineReading, RankReading

# V1 declares every family with its labels at start; V0 only after the first request, so it owes nothing.
V1 = (0, 8, 5)

_PREFIX_UNIT = "up to 0.8.5 blocks, which are turned into tokens; V0 gives a rate of hits, which is not read"

TABLE: dict[str, Quantity] = {
    "requests_running": gauge("vllm:num_requests_running", expected=True, since=V1),
    "requests_waiting": gauge(
        "vllm:num_requests_waiting",
        expected=True,
        since=V1,
        note="since 0.33 with the requests that the scheduler has put off",
    ),
    "requests_waiting_by_reason": ByLabel(
        (Name("vllm:num_requests_waiting_by_reason", "0.20.2"),), "reason", max, expected=True, since=(0, 21)
    ),
    "requests_finished_total": ByLabel(
        ("vllm:request_success_total", "vllm:request_success"), "finished_reason"
    ),
    "prompt_tokens_total": counter(
        "vllm:prompt_tokens_total", expected=True, since=V1, note="with those that came from a cache"
    ),
    "generation_tokens_total": counter("vllm:generation_tokens_total", expected=True, since=V1),
    "preemptions_total": counter(Name("vllm:num_preemptions_total", "0.5.0"), expected=True, since=V1),
    # 0.9.2 to 0.10 send both; 0.11 the older one only where it is asked to show what is hidden.
    "prefix_cache_queries_tokens_total": counter(
        Name("vllm:prefix_cache_queries_total", "0.9.2"),
        Name("vllm:gpu_prefix_cache_queries_total", "0.7.3", "0.11"),
        expected=True,
        since=V1,
        note=_PREFIX_UNIT,
    ),
    "prefix_cache_hits_tokens_total": counter(
        Name("vllm:prefix_cache_hits_total", "0.9.2"),
        Name("vllm:gpu_prefix_cache_hits_total", "0.7.3", "0.11"),
        expected=True,
        since=V1,
        note=_PREFIX_UNIT,
    ),
    "spec_decode_draft_tokens_total": counter(Name("vllm:spec_decode_num_draft_tokens_total", "0.8.5")),
    "spec_decode_accepted_tokens_total": counter(Name("vllm:spec_decode_num_accepted_tokens_total", "0.8.5")),
    # The only name up to 0.8; 0.9.2 to 0.10 send both; 0.11 where asked; from 0.12 the new one alone.
    "kv_cache_usage_ratio": gauge(
        Name("vllm:kv_cache_usage_perc", "0.9.2"),
        Name("vllm:gpu_cache_usage_perc", "", "0.11"),
        ratio=True,
        expected=True,
        since=V1,
    ),
    "time_to_first_token_seconds": HistogramOf(
        ("vllm:time_to_first_token_seconds",), expected=True, since=V1
    ),
    "inter_token_latency_seconds": HistogramOf(
        (
            Name("vllm:inter_token_latency_seconds", "0.10.2"),
            Name("vllm:time_per_output_token_seconds", "", "0.12"),
        ),
        expected=True,
        since=V1,
    ),
    "request_e2e_latency_seconds": HistogramOf(
        ("vllm:e2e_request_latency_seconds",), expected=True, since=V1
    ),
    "request_prompt_tokens": HistogramOf(("vllm:request_prompt_tokens",), expected=True, since=V1),
    "request_generation_tokens": HistogramOf(("vllm:request_generation_tokens",), expected=True, since=V1),
}

ELSEWHERE = {
    "kv_cache_blocks": (
        "label `num_gpu_blocks` of `vllm:cache_config_info`, divided by the data-parallel ranks, over which "
        "it is summed; absent with the Rust front end"
    ),
    "kv_cache_used_blocks": "the usage of all blocks but one, which since 0.9 is never handed out",
    "kv_cache_block_tokens": (
        "label `block_size` of `vllm:cache_config_info`; of a hybrid model its smallest group's"
    ),
    "kv_cache_capacity_tokens": (
        "since 0.24 the label `kv_cache_size_tokens`, of each rank; before, blocks times `block_size` (times "
        "the GPUs that share a context), unless a label names a sliding window or a Mamba state"
    ),
    "kv_cache_used_tokens": "the used blocks' share of the capacity",
    "kv_cache_capacity_bytes": (
        "since 0.10.2 the label `kv_cache_memory_bytes`, where the server was given that budget"
    ),
    "kv_cache_used_bytes": "the used blocks' share of the capacity",
    "kv_cache_max_concurrency_requests": (
        "since 0.24 the label `kv_cache_max_concurrency`; before, capacity in tokens over context length"
    ),
    "max_model_len_tokens": "`max_model_len` of /v1/models",
}

CONFIG_INFO = "vllm:cache_config_info"
SLEEP_STATE = "vllm:engine_sleep_state"
SIMULATED = "brimline_simulated_server_info"
START_TIME = "process_start_time_seconds"
WANTED = wanted_names(TABLE, CONFIG_INFO, SLEEP_STATE, SIMULATED, START_TIME, "python_info")

# Labels of cache_config_info that repeat a launch setting, by the name of the flag.
SETTING_LABELS = {
    "block_size": "block_size",
    "cache_dtype": "kv_cache_dtype",
    "cpu_offload_gb": "cpu_offload_gb",
    "enable_prefix_caching": "enable_prefix_caching",
    "gpu_memory_utilization": "gpu_memory_utilization",
    "kv_cache_memory_bytes": "kv_cache_memory_bytes",
    "kv_offloading_size": "kv_offloading_size",
    "mamba_cache_dtype": "mamba_cache_dtype",
    "num_gpu_blocks_override": "num_gpu_blocks_override",
    "prefix_caching_hash_algo": "prefix_caching_hash_algo",
}


def _key(labels: Mapping[str, str]) -> Key:
    # Triton's vLLM backend labels `model`; V0 and pages before 0.8.5 have no `engine`.
    model = labels.get("model_name") or labels.get("model") or ""
    return clean_label(model), clean_label(labels.get("engine") or "0")


def _number(text: str | None) -> float | None:
    """A label's number; None for "None", which is how Python's None arrives."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < MAX_COUNT else None


def _models(documents: Mapping[str, Any]) -> list[dict[str, Any]]:
    models = documents.get("/v1/models")
    entries = models.get("data") if isinstance(models, dict) else None
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _length(entry: Mapping[str, Any]) -> int | None:
    """A model's max_model_len; None where it states none that can be."""
    value = entry.get("max_model_len")
    return value if isinstance(value, int) and 0 < value < 1 << 53 else None


def _base_model(documents: Mapping[str, Any]) -> dict[str, Any]:
    """The first entry of /v1/models that is no LoRA adapter (those name a parent)."""
    return next((entry for entry in _models(documents) if not entry.get("parent")), {})


def _version(documents: Mapping[str, Any]) -> str | None:
    version = documents.get("/version")
    text = version.get("version") if isinstance(version, dict) else None
    return clean_label(text) if isinstance(text, str) and text else None


def _release(text: str | None) -> tuple[int, ...] | None:
    """The release that a version names; None for a build from a checkout (`0.1.dev1234+g…`)."""
    release = parse_version(text)
    return None if release is not None and release[:2] == (0, 1) and "dev" in (text or "") else release


def _prefix_tokens(
    page: Page, values: dict[str, Any], version: tuple[int, ...] | None, block: float | None
) -> None:
    """Turn prefix-cache counts into tokens, in place.

    Up to 0.8.5 the V1 counters count blocks, from 0.9.0 tokens; the name changed later, at 0.9.2. Where only
    the old name is there and the version is not known, the unit is not known either.
    """
    names = ("prefix_cache_queries_tokens_total", "prefix_cache_hits_tokens_total")
    if "vllm:prefix_cache_queries_total" in page or "vllm:prefix_cache_queries" in page:
        return
    if version is not None and version >= (0, 9):
        return
    for name in names:
        if name in values:
            if version is None or block is None:
                del values[name]
            else:
                values[name] *= block


def _pool(
    labels: Mapping[str, str],
    ranks: int,
    values: dict[str, Any],
    version: tuple[int, ...] | None,
    context_parallel: int = 1,
) -> None:
    """Add what cache_config_info says of one rank's KV pool to its values, in place.

    The front end sums num_gpu_blocks over its data-parallel ranks and prints the sum on every rank's row
    (0.33.0, v1/engine/core_client.py); kv_cache_size_tokens stays per rank.
    """
    blocks = _number(labels.get("num_gpu_blocks"))
    block_tokens = _number(labels.get("block_size"))
    tokens = _number(labels.get("kv_cache_size_tokens"))
    if blocks is not None:
        blocks = float(int(blocks) // ranks)
    # A hybrid model's block_size label is the smallest of its groups', so blocks × block_size is not its
    # capacity.
    uniform = all(
        labels.get(name, "None") in ("None", "") for name in ("mamba_page_size_padded", "sliding_window")
    )
    if tokens is None and uniform and blocks is not None and block_tokens is not None:
        tokens = blocks * block_tokens * context_parallel
    usage = values.get("kv_cache_usage_ratio")
    values["kv_cache_blocks"] = blocks
    values["kv_cache_block_tokens"] = block_tokens
    values["kv_cache_capacity_tokens"] = tokens
    values["kv_cache_max_concurrency_requests"] = _number(labels.get("kv_cache_max_concurrency"))
    # The user's explicit budget for each GPU. An override of the block count makes it untrue.
    if _number(labels.get("num_gpu_blocks_override")) is None:
        values["kv_cache_capacity_bytes"] = _number(labels.get("kv_cache_memory_bytes"))
    if usage is None:
        return
    share = usage
    if blocks:
        # V1 keeps one null block out of the pool since 0.9, and usage is the share of the others.
        pool = blocks - 1 if version is None or version >= (0, 9) else blocks
        used = float(round(usage * pool))
        values["kv_cache_used_blocks"] = used
        share = used / blocks
    for unit in ("tokens", "bytes"):
        capacity = values.get(f"kv_cache_capacity_{unit}")
        if capacity is not None:
            values[f"kv_cache_used_{unit}"] = float(round(share * capacity))


def _context_parallel(launch: Mapping[str, str]) -> int:
    """GPUs that share a sequence's tokens: each block then holds so many times its size."""
    sizes = [launch.get(f"{kind}_context_parallel_size", "1") for kind in ("decode", "prefill")]
    return math.prod(int(size) if size.isascii() and size.isdigit() else 1 for size in sizes)


def _add_pools(
    page: Page, table: TableReading, version: tuple[int, ...] | None, context_parallel: int
) -> None:
    rows: dict[str, Sample] = {clean_label(s.labels.get("engine") or "0"): s for s in page.get(CONFIG_INFO)}
    for rank, row in rows.items():
        # The row names no model. Where several models share the page, it is not known whose pool this is.
        # A model that waits for another engine has rows, but no cache. Where none states its usage, as after
        # an upgrade that renamed it, the pool is still that of the only model.
        models = [key for key in table.values if key[1] == rank]
        owners = [key for key in models if "kv_cache_usage_ratio" in table.values[key]] or models
        if len(owners) == 1:
            _pool(row.labels, len(rows), table.values[owners[0]], version, context_parallel)
    for (_, rank), values in table.values.items():
        labels = rows[rank].labels if rank in rows else {}
        _prefix_tokens(page, values, version, _number(labels.get("block_size")))


@functools.lru_cache(256)
def _settings_of(labels: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """The settings that labels of cache_config_info repeat; they come again scrape after scrape."""
    settings = {}
    for label, value in labels:
        if label in SETTING_LABELS and value not in ("None", ""):
            settings[SETTING_LABELS[label]] = normalize(SETTING_LABELS[label], clean_label(value))
    return settings


def _settings(page: Page, base: Mapping[str, Any]) -> dict[str, str]:
    settings = {}
    for row in page.get(CONFIG_INFO)[:1]:
        settings.update(_settings_of(tuple(row.labels.items())))
    if (length := _length(base)) is not None:
        settings["max_model_len"] = str(length)
    if isinstance(base.get("root"), str):
        settings["model"] = clean_label(base["root"])
    return settings


def _on_cpu(page: Page, version: str | None) -> dict[str, str]:
    """The device of a server that is surely on the CPU; nothing elsewhere, where the page does not tell.

    Builds of vLLM's index for CPUs have versions such as 0.32.0+cpu. The label was there from 0.9.2 to
    0.20.2, and `None` on GPUs.
    """
    of_cpu = version is not None and "cpu" in version.partition("+")[2].split(".")
    stated = any(
        row.labels.get("cpu_kvcache_space_bytes", "None") not in ("None", "") for row in page.get(CONFIG_INFO)
    )
    return {"device": "cpu"} if of_cpu or stated else {}


def _implied(words: Sequence[str]) -> dict[str, str]:
    """What stands before the flags: an image for the CPU, and the pool of a server on it, in whole GiB."""
    settings: dict[str, str] = {}
    if words and names_image(words[-1], ("vllm-cpu",)):
        settings["device"] = "cpu"
    for word in words:
        name, _, value = word.partition("=")
        if name != "VLLM_CPU_KVCACHE_SPACE" or not re.fullmatch("[0-9]{1,6}", value):
            continue
        if int(value):  # 0 leaves it to the server, and says nothing of the device
            settings["device"] = "cpu"
            settings["kv_cache_memory_bytes"] = str(int(value) << 30)
    return settings


def _is_v0(page: Page, version: tuple[int, ...] | None) -> bool:
    """True for engine V0, which lived beside V1 until 0.10 and whose rows carry no `engine`."""
    if version is None or version >= (0, 11):
        return False
    return not any("engine" in sample.labels for samples in page.samples.values() for sample in samples)


def _is_rust_front_end(evidence: Evidence) -> bool:
    """True for VLLM_USE_RUST_FRONTEND=1: OpenMetrics without being asked, and no cache_config_info."""
    return "openmetrics" in evidence.headers.get("content-type", "") and "python_info" not in evidence.page


def read(evidence: Evidence) -> EngineReading:
    """What a vLLM server says of itself."""
    page = evidence.page
    version_text = _version(evidence.documents)
    version = _release(version_text)
    table = read_table(page, TABLE, _key)
    missing = [] if _is_v0(page, version) else list(missing_quantities(TABLE, table, version))
    _add_pools(page, table, version, _context_parallel(evidence.launch))
    has_pool = any(values.get("kv_cache_blocks") is not None for values in table.values.values())
    if version is not None and version >= (0, 9) and not has_pool and not _is_rust_front_end(evidence):
        missing.append("kv_cache_blocks")
    lengths = {
        clean_label(entry["id"]): float(entry["max_model_len"])
        for entry in _models(evidence.documents)
        if isinstance(entry.get("id"), str) and _length(entry) is not None
    }
    asleep = [s.labels.get("sleep_state") for s in page.get(SLEEP_STATE) if s.value == 1]
    is_asleep = any(state != "awake" for state in asleep) if asleep else None
    ranks = []
    for (model, rank), values in sorted(table.values.items()):
        length = lengths.get(model)
        tokens = values.get("kv_cache_capacity_tokens")
        if values.get("kv_cache_max_concurrency_requests") is None and tokens is not None and length:
            values["kv_cache_max_concurrency_requests"] = tokens / length
        if is_asleep:
            # The pool is described still, but its memory has been given up.
            values["kv_cache_capacity_bytes"] = values["kv_cache_used_bytes"] = None
        ranks.append(RankReading(model=model, rank=rank, max_model_len_tokens=length, **values))
    starts = [s.value for s in page.get(START_TIME) if math.isfinite(s.value) and s.value > 0]
    base = _base_model(evidence.documents)
    return EngineReading(
        engine="vllm",
        engine_version=version_text,
        ranks=tuple(ranks),
        settings={**_settings(page, base), **_on_cpu(page, version_text)},
        served_root=base["root"] if isinstance(base.get("root"), str) else None,
        start_time=starts[0] if starts else None,
        sleeping=is_asleep,
        simulated=SIMULATED in page,
        missing=tuple(missing),
        bad_values=tuple(sorted(table.bad)),
        unparsed_lines=page.unparsed_lines,
        dropped_series=table.dropped,
    )


def _is_program(words: Sequence[str]) -> bool:
    names = [PurePath(word).name for word in words[:4]]
    return ("vllm" in names and "serve" in words) or any(
        word.startswith("vllm.entrypoints.") or word.endswith("/vllm/entrypoints/openai/api_server.py")
        for word in words
    )


def _world_size(settings: Mapping[str, str]) -> int | None:
    """GPUs of all ranks on this machine: tensor × pipeline × data × prefill-context parallel.

    0 on the CPU. None where they are spread over machines, as Ray may do it too. A server that is one
    data-parallel rank of many (data_parallel_rank) has that rank's alone.
    """
    if settings.get("device") == "cpu":
        return 0
    if settings.get("nnodes", "1") != "1" or settings.get("distributed_executor_backend") == "ray":
        return None
    sizes = [settings.get(f"{kind}_parallel_size", "1") for kind in ("tensor", "pipeline", "prefill_context")]
    if "data_parallel_rank" not in settings:
        replicas = settings.get("data_parallel_size", "1")
        sizes.append(settings.get("data_parallel_size_local", replicas))
    return math.prod(map(int, sizes)) if all(size.isascii() and size.isdigit() for size in sizes) else None


FLAGS = frozenset(
    {
        *SETTING_LABELS.values(),
        "async_scheduling",
        "attention_backend",
        "compilation_config",
        "config_format",
        "data_parallel_rank",
        "data_parallel_size",
        "data_parallel_size_local",
        "decode_context_parallel_size",
        "device",
        "disable_hybrid_kv_cache_manager",
        "disable_log_stats",
        "distributed_executor_backend",
        "dtype",
        "enable_chunked_prefill",
        "enable_eplb",
        "enable_expert_parallel",
        "enable_lora",
        "enable_moe_shared_loras",
        "enable_prefix_caching",
        "enforce_eager",
        "eplb_config",
        "fully_sharded_loras",
        "hf_overrides",
        "kv_cache_dtype_skip_layers",
        "language_model_only",
        "limit_mm_per_prompt",
        "load_format",
        "lora_dtype",
        "lora_target_modules",
        "mamba_cache_mode",
        "mamba_ssm_cache_dtype",
        "max_cpu_loras",
        "max_lora_rank",
        "max_loras",
        "max_model_len",
        "max_num_batched_tokens",
        "max_num_seqs",
        "max_seq_len_to_capture",
        "mm_encoder_tp_mode",
        "nnodes",
        "node_rank",
        "num_speculative_tokens",
        "offload_group_size",
        "offload_num_in_group",
        "offload_prefetch_step",
        "performance_mode",
        "pipeline_parallel_size",
        "prefill_context_parallel_size",
        "quantization",
        "revision",
        "scheduling_policy",
        "seed",
        "skip_mm_profiling",
        "spec_method",
        "spec_model",
        "spec_tokens",
        "speculative_config",
        "swap_space",
        "tensor_parallel_size",
    }
)

ADAPTER = Adapter(
    name="vllm",
    versions="0.4.2 to 0.33, engines V0 and V1, the Python and the Rust front end",
    tested_live="0.32 on CPU",
    prefixes=("vllm:",),
    table=TABLE,
    elsewhere=ELSEWHERE,
    title="vLLM",
    usual_ports=(8000, 8001, 8002, 8003),
    owned_by="vllm",
    metrics_switch="without --disable-log-stats",
    wanted=WANTED,
    endpoints=(Endpoint("/version"), Endpoint("/v1/models")),
    read=read,
    launch_program=_is_program,
    launch_implies=_implied,
    launch_images=("vllm-openai", "vllm-cpu"),
    config_flags=frozenset({"config"}),  # 0.33, utils/argparse_utils.py _pull_args_from_config
    launch_flags={
        "tp": "tensor_parallel_size",
        "pp": "pipeline_parallel_size",
        "dp": "data_parallel_size",
        "pcp": "prefill_context_parallel_size",
        "dcp": "decode_context_parallel_size",
        "q": "quantization",
        "n": "nnodes",
        "r": "node_rank",
        "O": "compilation_config",
        "cc": "compilation_config",
        "sc": "speculative_config",
        "ep": "enable_expert_parallel",
        "dpn": "data_parallel_rank",
        "dpl": "data_parallel_size_local",
    },
    flags=FLAGS,
    launch_switches=frozenset(
        {
            "disable_hybrid_kv_cache_manager",
            "enable_eplb",
            "enable_expert_parallel",
            "enable_lora",
            "enable_moe_shared_loras",
            "enforce_eager",
            "fully_sharded_loras",
            "language_model_only",
            "skip_mm_profiling",
            "trust_remote_code",
        }
    ),
    launch_model_flag="model",
    world_size=_world_size,
    predictor="vllm",
)
