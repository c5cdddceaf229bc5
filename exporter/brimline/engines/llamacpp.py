"""llama.cpp's server (`llama-server --metrics`).

Its page has lost the KV cache figures (kv_cache_usage_ratio went in May 2025, commit 797f2ac06), so these
come from /props and, in rounds in which a request runs, /slots. The page has no labels: one server holds one
model; one that loads several (a router) answers 400 for want of a model's name, and is not read.

/slots is not asked of an idle server, because that keeps one with --sleep-idle-seconds awake, and loads the
model of one that sleeps; /metrics and /props do neither (tried with the server of 2026.10).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from brimline.engines.adapter import Adapter, Endpoint, Evidence
from brimline.engines.families import (
    MAX_COUNT,
    Key,
    Name,
    Quantity,
    clean_label,
    counter,
    gauge,
    missing_quantities,
    read_table,
    wanted_names,
)
from brimline.exposition_text import Page
from brimline.readings import EngineReading, RankReading

# tools/server writes every value with six digits (2025 and 2026).
_SIX_DIGITS = "six digits: above a million it moves in steps of ten and more"

TABLE: dict[str, Quantity] = {
    "requests_running": gauge("llamacpp:requests_processing", expected=True),
    "requests_waiting": gauge("llamacpp:requests_deferred", expected=True),
    # Unlike other engines' counters of that name.
    "prompt_tokens_total": counter(
        "llamacpp:prompt_tokens_total",
        expected=True,
        note=f"without the tokens that came from the cache; {_SIX_DIGITS}",
    ),
    "generation_tokens_total": counter("llamacpp:tokens_predicted_total", expected=True, note=_SIX_DIGITS),
    "prefix_cache_hits_tokens_total": counter(Name("llamacpp:prompt_tokens_cached_total", "2026")),
    "spec_decode_draft_tokens_total": counter("llamacpp:spec_decode_num_draft_tokens_total"),
    "spec_decode_accepted_tokens_total": counter("llamacpp:spec_decode_num_accepted_tokens_total"),
    "kv_cache_usage_ratio": gauge(Name("llamacpp:kv_cache_usage_ratio", "", "May 2025"), ratio=True),
    "kv_cache_used_tokens": gauge(Name("llamacpp:kv_cache_tokens", "", "May 2025")),
}
ELSEWHERE = {
    "prefix_cache_queries_tokens_total": "tokens that were processed and tokens that came from the cache",
    "kv_cache_usage_ratio": "used over capacity, in tokens",
    "kv_cache_used_tokens": (
        "`n_prompt_tokens` of the slots of /slots that are at work, which holds what they generated, too; 0 "
        "while no request runs"
    ),
    "kv_cache_capacity_tokens": (
        "`n_ctx` of all slots together, of one where they share their cache; absent where nothing tells "
        "whether they do, as the launch settings would"
    ),
    "kv_cache_max_concurrency_requests": "capacity over context length",
    "max_model_len_tokens": "`n_ctx` of a slot",
}
PROCESSING = "llamacpp:requests_processing"
MAX_SLOTS = 4096
SIMULATED = "brimline_simulated_server_info"
WANTED = wanted_names(TABLE, SIMULATED)

_PROPS = frozenset(
    {
        "build_info",
        "default_generation_settings",
        "endpoint_metrics",
        "endpoint_slots",
        "is_sleeping",
        "model_alias",
        "model_ftype",
        "model_path",
        "n_ctx",
        "total_slots",
    }
)
_SLOT = frozenset({"id", "id_task", "is_processing", "n_ctx", "n_decoded", "n_prompt_tokens", "next_token"})

_TRUE = {"true", "1", "on", "yes"}
_FALSE = {"false", "0", "off", "no"}


def _key(_labels: Mapping[str, str]) -> Key:
    return "", "0"


def _whole(value: Any) -> int | None:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return value if is_number and 0 <= value < MAX_COUNT else None


def _is_busy(page: Page) -> bool:
    """True unless the page says that no request runs."""
    return not any(sample.value == 0 for sample in page.get(PROCESSING))


def _slots(evidence: Evidence, props: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The slots by /slots; of an idle server, which is not asked for them, by /props."""
    slots = evidence.documents.get("/slots")
    if isinstance(slots, list):
        return [slot for slot in slots if isinstance(slot, dict)]
    defaults = props.get("default_generation_settings")
    context = _whole(defaults.get("n_ctx")) if isinstance(defaults, dict) else None
    count = _whole(props.get("total_slots"))
    if _is_busy(evidence.page) or not context or not count:
        return []
    return [{"n_ctx": context, "is_processing": False}] * min(count, MAX_SLOTS)


def _agrees(declared: int, slots: int, context: int, *, unified: bool) -> bool:
    """True where a declared --ctx-size gives slots this context, rounded up to 256 (0: the model's)."""
    share = declared if unified else -(-declared // slots)
    return declared == 0 or context == -(-share // 256) * 256


def _is_unified(slots: int, context: int, launch: Mapping[str, str]) -> bool | None:
    """Whether the slots share one KV cache; None where nothing tells, or what is declared is not so.

    /slots shows the same for both. A server started without --parallel chooses the number of slots and a
    unified cache by itself; with --parallel the cache is split unless --kv-unified is given (common/arg.cpp
    and tools/server, 2026). But either can also come from the environment, so that only a stated size or a
    stated number is taken for proof.
    """
    if slots <= 1:
        return False
    if launch.get("parallel", "-1") not in ("-1", str(slots)):
        return None
    stated = launch.get("kv_unified", "").lower()
    choices = [stated in _TRUE] if stated in _TRUE | _FALSE else [False, True]
    size = launch.get("ctx_size", "0")
    if size.isascii() and size.isdigit() and int(size) > 0:
        fitting = [choice for choice in choices if _agrees(int(size), slots, context, unified=choice)]
        return fitting[0] if len(fitting) == 1 else None
    if len(choices) == 1:
        return choices[0]
    return False if launch.get("parallel") == str(slots) else None


def _kv_cache(slots: Sequence[Mapping[str, Any]], launch: Mapping[str, str]) -> dict[str, float]:
    """KV cache in tokens: used by the slots at work, of all slots' contexts.

    `n_prompt_tokens` of a slot already includes what it has generated. Idle slots keep their last value; what
    they hold can be dropped at any time, so it counts as free.
    """
    contexts = [_whole(slot.get("n_ctx")) for slot in slots]
    if not slots or any(context is None for context in contexts):
        return {}
    used = [_whole(slot.get("n_prompt_tokens")) for slot in slots if slot.get("is_processing")]
    values = {"max_model_len_tokens": float(max(c for c in contexts if c is not None))}
    known_use = None if any(tokens is None for tokens in used) else sum(t for t in used if t is not None)
    if known_use is not None:
        values["kv_cache_used_tokens"] = float(known_use)
    unified = _is_unified(len(slots), int(values["max_model_len_tokens"]), launch)
    if unified is None:
        return values
    capacity = (
        sum(c for c in contexts if c is not None)
        if not unified
        else max(c for c in contexts if c is not None)
    )
    if known_use is not None and known_use > capacity and len(slots) > 1:
        return values  # the slots hold more than that: it cannot be the capacity
    values["kv_cache_capacity_tokens"] = float(capacity)
    values["kv_cache_max_concurrency_requests"] = (
        capacity / values["max_model_len_tokens"] if capacity else 0.0
    )
    if known_use is not None and capacity:
        values["kv_cache_usage_ratio"] = min(
            known_use / capacity, 1.0
        )  # a context is shifted when it is full
    return values


def _cache_settings(slots: Sequence[Mapping[str, Any]], launch: Mapping[str, str]) -> dict[str, str]:
    """What the slots say of the cache's size: the context of one (`n_ctx`), and whether they share it."""
    context = max((_whole(slot.get("n_ctx")) or 0 for slot in slots), default=0)
    if not context:
        return {}
    settings = {"n_ctx": str(context)}
    unified = _is_unified(len(slots), context, launch)
    if len(slots) > 1 and unified is not None and "kv_unified" not in launch:
        settings["kv_unified"] = str(unified).lower()
    return settings


def _model(documents: Mapping[str, Any], props: Mapping[str, Any]) -> str:
    models = documents.get("/v1/models")
    entries = models.get("data") if isinstance(models, dict) else None
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("id"), str):
            return clean_label(entry["id"])
    alias = props.get("model_alias") or props.get("model_path")
    return clean_label(alias) if isinstance(alias, str) else ""


def read(evidence: Evidence) -> EngineReading:
    """What a llama.cpp server says of itself."""
    table = read_table(evidence.page, TABLE, _key)
    values = next(iter(table.values.values()), {})
    missing = list(missing_quantities(TABLE, table, None))
    raw_props = evidence.documents.get("/props")
    props: Mapping[str, Any] = raw_props if isinstance(raw_props, dict) else {}
    slots = _slots(evidence, props)
    if slots:
        values |= _kv_cache(slots, evidence.launch)
    if evidence.documents and "kv_cache_used_tokens" not in values and "kv_cache_usage_ratio" not in values:
        missing.append("kv_cache_used_tokens")
    processed, cached = values.get("prompt_tokens_total"), values.get("prefix_cache_hits_tokens_total")
    if processed is not None and cached is not None:
        values["prefix_cache_queries_tokens_total"] = processed + cached
    build = props.get("build_info")
    root = props.get("model_path")
    settings = {"model": clean_label(root)} if isinstance(root, str) else {}
    if isinstance(props.get("total_slots"), int):
        settings["parallel"] = str(props["total_slots"])
    settings |= _cache_settings(slots, evidence.launch)
    sleeping = props.get("is_sleeping")
    notes: tuple[str, ...] = ()
    if len(slots) > 1 and "kv_cache_capacity_tokens" not in values:
        notes = (
            (
                f"whether the {len(slots)} slots share one KV cache is not on its pages, so its capacity is "
                "not known: say how it was started, with launch_command or launch: {parallel: N}"
            ),
        )
    return EngineReading(
        engine="llamacpp",
        engine_version=clean_label(build) if isinstance(build, str) and build else None,
        ranks=(RankReading(model=_model(evidence.documents, props), **values),),
        settings=settings,
        served_root=root if isinstance(root, str) else None,
        # No time (a build of 2026 sent 1326153533, a date in 2012), but another number at each start.
        start_token=evidence.headers.get("process-start-time-unix"),
        sleeping=sleeping if isinstance(sleeping, bool) else None,
        simulated=SIMULATED in evidence.page,
        missing=tuple(missing),
        bad_values=tuple(sorted(table.bad)),
        notes=notes,
        unparsed_lines=evidence.page.unparsed_lines,
        dropped_series=table.dropped,
    )


def _is_program(words: Sequence[str]) -> bool:
    return any(PurePath(word).name in ("llama-server", "llama.cpp-server") for word in words[:3])


FLAGS = frozenset(
    {
        "batch_size",
        "cache_ram",
        "cache_type_k",
        "cache_type_k_draft",
        "cache_type_v",
        "cache_type_v_draft",
        "cont_batching",
        "cpu_moe",
        "ctx_size",
        "ctx_size_draft",
        "device",
        "dtype",
        "embedding",
        "embeddings",
        "fit",
        "fit_ctx",
        "fit_target",
        "flash_attn",
        "hf_repo",
        "kv_offload",
        "kv_unified",
        "kv_unified_per_slot",
        "lora",
        "main_gpu",
        "mmproj",
        "model_draft",
        "n_cpu_moe",
        "n_gpu_layers",
        "n_gpu_layers_draft",
        "op_offload",
        "override_tensor",
        "parallel",
        "quantization",
        "split_mode",
        "swa_full",
        "tensor_split",
        "threads",
        "ubatch_size",
    }
)

ADAPTER = Adapter(
    name="llamacpp",
    versions="2024 to 2026",
    tested_live="2026.10",
    prefixes=("llamacpp:",),
    table=TABLE,
    elsewhere=ELSEWHERE,
    title="llama.cpp",
    usual_ports=(8080, 8081),
    owned_by="llamacpp",
    metrics_switch="with --metrics",
    wanted=WANTED,
    endpoints=(
        Endpoint("/v1/models"),
        Endpoint("/props", live=True, fields=_PROPS),
        Endpoint("/slots", live=True, when=_is_busy, fields=_SLOT),
    ),
    read=read,
    launch_program=_is_program,
    launch_images=("llama.cpp:",),
    launch_flags={
        "c": "ctx_size",
        "np": "parallel",
        "m": "model",
        "b": "batch_size",
        "ub": "ubatch_size",
        "ctk": "cache_type_k",
        "ctv": "cache_type_v",
        "ngl": "n_gpu_layers",
        "gpu_layers": "n_gpu_layers",
        "fa": "flash_attn",
        "kvu": "kv_unified",
        "no_kvu": "no_kv_unified",
        "ts": "tensor_split",
        "sm": "split_mode",
        "mg": "main_gpu",
        "a": "alias",
        "t": "threads",
        "hf": "hf_repo",
        "hft": "hf_token",
        "nkvo": "no_kv_offload",
        "md": "model_draft",
        "ngld": "n_gpu_layers_draft",
        "gpu_layers_draft": "n_gpu_layers_draft",
        "cd": "ctx_size_draft",
        "ctkd": "cache_type_k_draft",
        "ctvd": "cache_type_v_draft",
        "cb": "cont_batching",
    },
    flags=FLAGS,
    launch_switches=frozenset(
        {"kv_unified", "cont_batching", "metrics", "slots", "props", "jinja", "mlock", "embedding"}
    ),
    launch_model_flag="model",
    # It spreads over every visible GPU unless told otherwise, so its settings do not say.
    world_size=lambda _settings: None,
    predictor="llamacpp",
)
