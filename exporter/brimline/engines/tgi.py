"""Text Generation Inference (TGI) up to 3.3.7, its last release; not tested against a live server.

Names: the `metrics::` calls of 3.3.7 (router/src and backends/v3), and an older page. The page has no labels:
one server holds one model, which /info names. It does not say how full the K/V cache is: the batch's
`tgi_batch_current_max_tokens` is what was reserved, not what is used. Of a request it gives the mean time per
token, which is not the time between two tokens, so there is no inter-token latency.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import msgspec

from brimline.engines.adapter import Adapter, Endpoint, Evidence
from brimline.engines.families import (
    MAX_COUNT,
    SIMULATED,
    HistogramOf,
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
from brimline.readings import EngineReading

TABLE: dict[str, Quantity] = {
    "requests_running": gauge("tgi_batch_current_size", note="of the batch that is computed"),
    "requests_waiting": gauge("tgi_queue_size"),
    "prompt_tokens_total": counter("tgi_request_input_length_sum"),
    "generation_tokens_total": counter("tgi_request_generated_tokens_sum"),
    # Set once, by 3.x only.
    "kv_cache_capacity_tokens": gauge(Name("tgi_batch_max_total_tokens", "3.0")),
    "request_e2e_latency_seconds": HistogramOf(("tgi_request_duration",)),
    "request_prompt_tokens": HistogramOf(("tgi_request_input_length",)),
    "request_generation_tokens": HistogramOf(("tgi_request_generated_tokens",)),
}
WANTED = wanted_names(TABLE, SIMULATED)

_LIMITS = frozenset({"max_concurrent_requests", "max_input_tokens", "max_total_tokens"})
_INFO = _LIMITS | {"model_id", "version"}


def _recognises(names: Set[str], _body: bytes) -> bool:
    # vLLM behind the TGIS adapter, and IBM's fork of vLLM, send tgi_ names beside their own.
    return not any(name.startswith("vllm:") for name in names)


def read(evidence: Evidence) -> EngineReading:
    """What a TGI server says of itself."""
    document = evidence.documents.get("/info")
    info: Mapping[str, Any] = document if isinstance(document, dict) else {}
    model, version = info.get("model_id"), info.get("version")
    table = read_table(evidence.page, TABLE, key_by(()))
    reading = engine_reading(
        "tgi",
        evidence.page,
        table,
        engine_version=clean_label(version) if isinstance(version, str) and version else None,
        served_root=model if isinstance(model, str) else None,
    )
    settings = {
        name: normalize(name, info[name])
        for name in sorted(_LIMITS)
        if isinstance(info.get(name), int)
        and not isinstance(info[name], bool)
        and 0 <= info[name] < MAX_COUNT
    }
    if isinstance(model, str):
        settings["model_id"] = clean_label(model)
    # The router refuses requests whose prompt and answer together are longer.
    length = float(settings["max_total_tokens"]) if "max_total_tokens" in settings else None
    ranks = tuple(
        msgspec.structs.replace(
            rank,
            model=settings.get("model_id", ""),
            max_model_len_tokens=length,
            kv_cache_max_concurrency_requests=(
                rank.kv_cache_capacity_tokens / length
                if length and rank.kv_cache_capacity_tokens is not None
                else None
            ),
        )
        for rank in reading.ranks
    )
    return msgspec.structs.replace(reading, ranks=ranks, settings=settings)


ADAPTER = Adapter(
    name="tgi",
    versions="to 3.3.7, its last release",
    prefixes=("tgi_",),
    table=TABLE,
    elsewhere={
        "kv_cache_max_concurrency_requests": "capacity in tokens over context length",
        "max_model_len_tokens": "`max_total_tokens` of /info",
    },
    besides="no name of vLLM's stands beside them: adapters of vLLM send both",
    title="TGI",
    usual_ports=(3000, 8080),
    recognises=_recognises,
    wanted=WANTED,
    endpoints=(Endpoint("/info", fields=_INFO),),
    read=read,
    launch_model_flag="model_id",
)
