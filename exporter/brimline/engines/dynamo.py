"""NVIDIA Dynamo 0.7 to 1.6, worker and frontend; not tested against a live server.

Names: lib/runtime/src/metrics/prometheus_names.rs of 2026, the wheels 0.7.1, 1.0.2 and 1.6.1, and the metric
tables of its documentation. A worker's page (port DYN_SYSTEM_PORT) holds the families of its engine, vLLM,
SGLang or TensorRT-LLM, beside `dynamo_component_…`: what the engine says wins. A page of an engine's families
alone is that engine's.

A frontend stands before all workers of a model. The blocks it gives are one worker's, by the last that
registered, so no capacity is made of them. Its `inflight` requests include its `queued` ones, which last
until the first token, so neither is what an engine runs or lets wait. Where its names begin otherwise
(DYN_METRICS_PREFIX, --metrics-prefix), it is recognised by how they end, once it knows a model.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import msgspec

from brimline.engines import sglang, trtllm, vllm
from brimline.engines.adapter import Adapter, Evidence
from brimline.engines.families import (
    HistogramOf,
    Key,
    Name,
    Quantity,
    TableReading,
    counter,
    engine_reading,
    gauge,
    key_by,
    read_table,
    wanted_names,
)
from brimline.exposition_text import families
from brimline.readings import EngineReading, RankReading

_COMPONENT = "dynamo_component_"
_FRONTEND = "dynamo_frontend_"

TABLE: dict[str, Quantity] = {
    "kv_cache_blocks": gauge(
        Name(_COMPONENT + "total_blocks", "1.0"),
        Name(_COMPONENT + "kvstats_total_blocks", "", "0.7"),
        _FRONTEND + "model_total_kv_blocks",
        note="of one worker",
    ),
    "kv_cache_used_blocks": gauge(Name(_COMPONENT + "kvstats_active_blocks", "", "0.7")),
    "kv_cache_usage_ratio": gauge(
        Name(_COMPONENT + "gpu_cache_usage_percent", "1.0"),
        Name(_COMPONENT + "kvstats_gpu_cache_usage_percent", "", "0.7"),
        ratio=True,
        note="called percent, and runs from 0 to 1",
    ),
    "kv_cache_block_tokens": gauge(_FRONTEND + "model_kv_cache_block_size"),
    "max_model_len_tokens": gauge(_FRONTEND + "model_context_length"),
    "prompt_tokens_total": counter(_FRONTEND + "input_sequence_tokens_sum"),
    "generation_tokens_total": counter(_FRONTEND + "output_tokens_total"),
    "time_to_first_token_seconds": HistogramOf((_FRONTEND + "time_to_first_token_seconds",)),
    "inter_token_latency_seconds": HistogramOf((_FRONTEND + "inter_token_latency_seconds",)),
    "request_e2e_latency_seconds": HistogramOf((_FRONTEND + "request_duration_seconds",)),
    "request_prompt_tokens": HistogramOf((_FRONTEND + "input_sequence_tokens",)),
    "request_generation_tokens": HistogramOf((_FRONTEND + "output_sequence_tokens",)),
}
# Endings of names that only a frontend sends, whatever they begin with.
_TELLING = ("_model_total_kv_blocks", "_model_kv_cache_block_size", "_model_migration_limit")
INNER = (vllm.ADAPTER, sglang.ADAPTER, trtllm.ADAPTER)
ELSEWHERE = {
    quantity: "a worker: as its engine says"
    for adapter in INNER
    for quantity in (*adapter.table, *adapter.elsewhere)
    if quantity in RankReading.__struct_fields__
}
WANTED = wanted_names(TABLE).union(*(adapter.wanted for adapter in INNER))


def _add(table: TableReading, ranks: dict[Key, RankReading]) -> None:
    """Add to the engine's ranks what it does not state itself, in place."""
    for (model, rank), values in table.values.items():
        key = (model, rank)
        if key not in ranks:
            # The component may name the model otherwise than its engine.
            others = [other for other in ranks if other[1] == rank]
            key = others[0] if len(others) == 1 else key
        stated = ranks.get(key, RankReading(model=model, rank=rank))
        new = {name: value for name, value in values.items() if getattr(stated, name) is None}
        ranks[key] = msgspec.structs.replace(stated, **new)


def read(evidence: Evidence) -> EngineReading:
    """What a Dynamo worker or frontend says, with what the worker's engine says."""
    return _read(TABLE, evidence)


def _read(names: Mapping[str, Quantity], evidence: Evidence) -> EngineReading:
    page = evidence.page
    table = read_table(page, names, key_by(("model", "model_name"), ("dp_rank",)))
    own = engine_reading("dynamo", page, table)
    inner = [adapter.read(evidence) for adapter in INNER if any(map(adapter.owns, page.samples))]
    ranks = {(rank.model, rank.rank): rank for reading in inner for rank in reading.ranks}
    _add(table, ranks)
    sleeping = [reading.sleeping for reading in inner if reading.sleeping is not None]
    return msgspec.structs.replace(
        own,
        ranks=tuple(ranks[key] for key in sorted(ranks)),
        settings={name: value for reading in inner for name, value in reading.settings.items()},
        start_time=next((reading.start_time for reading in inner if reading.start_time is not None), None),
        sleeping=any(sleeping) if sleeping else None,
        bad_values=tuple(sorted({*own.bad_values, *(name for one in inner for name in one.bad_values)})),
        dropped_series=own.dropped_series + sum(reading.dropped_series for reading in inner),
    )


def _fit(body: bytes) -> Adapter:
    """The adapter of a frontend whose names begin as its operator chose; the usual one of all others."""
    names = families(body)
    if any(name.startswith((_COMPONENT, _FRONTEND)) for name in names):
        return ADAPTER
    begins = {name.removesuffix(end) + "_" for name in names for end in _TELLING if name.endswith(end)}
    if len(begins) != 1:
        return ADAPTER
    prefix = begins.pop()
    table = {
        name: dataclasses.replace(quantity, names=spellings)
        for name, quantity in TABLE.items()
        if (
            spellings := tuple(
                prefix + one.removeprefix(_FRONTEND) for one in quantity.names if one.startswith(_FRONTEND)
            )
        )
    }
    return dataclasses.replace(
        ADAPTER, table=table, wanted=wanted_names(table), read=functools.partial(_read, table)
    )


ADAPTER = Adapter(
    name="dynamo",
    versions="0.7 to 1.6, worker and frontend",
    prefixes=(_COMPONENT, _FRONTEND),
    suffixes=_TELLING,
    table=TABLE,
    elsewhere=ELSEWHERE,
    title="Dynamo",
    usual_ports=(8081,),
    wraps=frozenset(adapter.name for adapter in INNER),
    wanted=WANTED,
    fit=_fit,
    read=read,
)
