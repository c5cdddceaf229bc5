"""Ollama, main branch of 2026 and older; not tested against a live server.

It has no metrics page (its routes, server/routes.go, 2026): what is known stands in /api/ps, asked in every
round, and /api/version. /api/ps lists the models that are loaded, each with the memory that Ollama counts
for it, on GPUs and in main memory, and newer servers add its context length. Nothing is said of requests,
tokens, or how full a K/V cache is, so there are no tokens per second and no latencies. A model that has not
been used for a while is unloaded; that is no fault, and its series end then.

`size` and `size_vram` are of weights, K/V cache and compute buffers together, on all GPUs: what the model's
runner reports, and in older servers (EstimatedVRAM in server/sched.go) what was estimated ahead of loading.
Beside NVML's figures they say what Ollama means to use, so they are passed on as its count, not as measured.
Where less lies on the GPUs than in all, the rest is computed by the CPU, many times slower. /api/show is not
asked: it takes a POST for each model, and tells how long a context the model was trained for, not the one
that it runs with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from brimline.engines.adapter import Adapter, Endpoint, Evidence
from brimline.engines.families import MAX_RANKS, clean_label
from brimline.readings import EngineReading, RankReading

MAX_BYTES = 1 << 60

ELSEWHERE = {
    "max_model_len_tokens": "`context_length` of /api/ps; older servers do not state it",
    "model_memory_bytes": (
        "`size_vram` of /api/ps on the GPUs, what `size` is more in main memory; weights, K/V cache and "
        "buffers together"
    ),
    "kv_cache_capacity_tokens": "context length times `num_parallel`, where `launch` declares that",
    "kv_cache_max_concurrency_requests": "`num_parallel`, where `launch` declares it",
}


def _entries(state: Any) -> list[dict[str, Any]]:
    models = state.get("models") if isinstance(state, dict) else None
    return [entry for entry in models if isinstance(entry, dict)] if isinstance(models, list) else []


def _is_state(document: Any) -> bool:
    """True for what /api/ps answers: a list of models, each with its memory on the GPUs; it may be empty."""
    if not isinstance(document, dict) or not isinstance(document.get("models"), list):
        return False
    return all(isinstance(entry, dict) and "size_vram" in entry for entry in document["models"])


def _whole(value: Any) -> int | None:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return value if is_number and 0 <= value < MAX_BYTES else None


def _memory(entry: Mapping[str, Any]) -> dict[str, float] | None:
    """Bytes by place; None where they cannot be."""
    total, on_gpu = _whole(entry.get("size")), _whole(entry.get("size_vram"))
    if total is None or on_gpu is None or on_gpu > total:
        return None
    return {"gpu": float(on_gpu), "host": float(total - on_gpu)}


def _rank(model: str, entry: Mapping[str, Any], parallel: int | None) -> RankReading:
    length = _whole(entry.get("context_length")) or None
    return RankReading(
        model=model,
        max_model_len_tokens=None if length is None else float(length),
        model_memory_bytes=_memory(entry),
        # Every parallel request has a context of its own.
        kv_cache_capacity_tokens=None if length is None or parallel is None else float(length * parallel),
        kv_cache_max_concurrency_requests=None if parallel is None else float(parallel),
    )


def _settings(entries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The settings of the only loaded model; of several, none would be the server's."""
    if len(entries) != 1:
        return {}
    [entry] = entries
    settings = {}
    if isinstance(entry.get("name"), str):
        settings["model"] = clean_label(entry["name"])
    if (length := _whole(entry.get("context_length"))) is not None:
        settings["context_length"] = str(length)
    details = entry.get("details")
    level = details.get("quantization_level") if isinstance(details, dict) else None
    if isinstance(level, str) and level:
        settings["quantization"] = clean_label(level)
    return settings


def read(evidence: Evidence) -> EngineReading:
    """What an Ollama server says of the models that it has loaded."""
    declared = evidence.launch.get("num_parallel", "")
    parallel = int(declared) if declared.isascii() and declared.isdigit() and len(declared) < 5 else None
    entries = _entries(evidence.state)
    ranks: dict[str, RankReading] = {}
    dropped = 0
    for entry in entries:
        model = clean_label(entry["name"]) if isinstance(entry.get("name"), str) else ""
        if model in ranks or len(ranks) >= MAX_RANKS:
            dropped += 1
            continue
        ranks[model] = _rank(model, entry, parallel or None)
    document = evidence.documents.get("/api/version")
    version = document.get("version") if isinstance(document, dict) else None
    bad = any(rank.model_memory_bytes is None for rank in ranks.values())
    return EngineReading(
        engine="ollama",
        engine_version=clean_label(version) if isinstance(version, str) and version else None,
        ranks=tuple(ranks[model] for model in sorted(ranks)),
        settings=_settings(entries),
        bad_values=("model_memory_bytes",) if bad else (),
        dropped_series=dropped,
    )


def _is_program(words: Sequence[str]) -> bool:
    return any(
        PurePath(word).name == "ollama" and "serve" in words[place + 1 : place + 2]
        for place, word in enumerate(words[:2])
    )


ADAPTER = Adapter(
    name="ollama",
    versions="main branch of 2026",
    elsewhere=ELSEWHERE,
    title="Ollama",
    usual_ports=(11434,),
    wanted=frozenset(),
    metrics_paths=("/api/ps",),
    is_state=_is_state,
    endpoints=(Endpoint("/api/version"),),
    read=read,
    launch_program=_is_program,
    launch_images=("ollama/ollama",),
    # It is set up by the environment, OLLAMA_NUM_PARALLEL and so on; the names are those, in lower case.
    flags=frozenset(
        {
            "context_length",
            "flash_attention",
            "gpu_overhead",
            "kv_cache_type",
            "max_loaded_models",
            "num_parallel",
            "quantization",
            "sched_spread",
        }
    ),
)
