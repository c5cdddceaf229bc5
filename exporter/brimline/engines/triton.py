"""Triton Inference Server around an LLM backend, TensorRT-LLM or vLLM; not tested against a live server.

Names: the README files of tensorrtllm_backend (0b9d7d5) and vllm_backend (8de0c14). The backends' families
stand on Triton's page among its own `nv_inference_…`; a page of those alone serves models of other kinds and
is no engine, and one of `vllm:` families alone is vLLM's. The TensorRT-LLM backend gives no total of tokens:
its token numbers are gauges, of one iteration, and its memory is that of buffers alone. The vLLM backend
gives counters and histograms only, where the model's REPORT_CUSTOM_METRICS is on.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import msgspec

from brimline.engines import vllm
from brimline.engines.adapter import Adapter, Evidence
from brimline.engines.families import (
    Quantity,
    Scalar,
    engine_reading,
    key_by,
    read_table,
    wanted_names,
)
from brimline.readings import EngineReading


def _requests(kind: str) -> Scalar:
    # Of several versions of one model, each has its own requests.
    return Scalar(("nv_trt_llm_request_metrics",), sum, where={"request_type": kind})


def _blocks(kind: str, **options: Any) -> Scalar:
    return Scalar(("nv_trt_llm_kv_cache_block_metrics",), where={"kv_cache_block_type": kind}, **options)


TABLE: dict[str, Quantity] = {
    "requests_running": _requests("active"),
    "requests_waiting": _requests("waiting"),
    "kv_cache_usage_ratio": _blocks("fraction", ratio=True),
    "kv_cache_blocks": _blocks("max", combine=sum),
    "kv_cache_used_blocks": _blocks("used", combine=sum),
    "kv_cache_block_tokens": _blocks("tokens_per"),
    # Not passed on: shows that the model is there, where its server batches in the old way.
    "old_batching": Scalar(("nv_trt_llm_v1_metrics",)),
}
ELSEWHERE = {
    "kv_cache_usage_ratio": "used over all blocks, where both are there",
    "kv_cache_capacity_tokens": "blocks times the tokens of one",
    "kv_cache_used_tokens": "used blocks times the tokens of one",
} | {
    name: f"vLLM's backend: `{vllm.TABLE[name].names[-1]}`"
    for name in (
        "prompt_tokens_total",
        "generation_tokens_total",
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "request_e2e_latency_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
    )
}
WANTED = wanted_names(TABLE) | vllm.WANTED


def _recognises(names: Set[str], _body: bytes) -> bool:
    return any(name.startswith(("nv_trt_llm_", "vllm:")) for name in names)


def _complete(values: dict[str, Any]) -> None:
    values.pop("old_batching", None)
    blocks, used = values.get("kv_cache_blocks"), values.get("kv_cache_used_blocks")
    if blocks and used is not None and used <= blocks:
        # Of several versions of one model, the share of all blocks.
        values["kv_cache_usage_ratio"] = used / blocks
    if (tokens := values.get("kv_cache_block_tokens")) is not None:
        if blocks is not None:
            values["kv_cache_capacity_tokens"] = blocks * tokens
        if used is not None:
            values["kv_cache_used_tokens"] = used * tokens


def read(evidence: Evidence) -> EngineReading:
    """What the LLM backends of a Triton server say of themselves."""
    table = read_table(evidence.page, TABLE, key_by(("model",)))
    for values in table.values.values():
        _complete(values)
    own = engine_reading("triton", evidence.page, table)
    inner = vllm.read(evidence)
    return msgspec.structs.replace(
        own,
        ranks=own.ranks + inner.ranks,
        bad_values=tuple(sorted({*own.bad_values, *inner.bad_values})),
        dropped_series=own.dropped_series + inner.dropped_series,
    )


ADAPTER = Adapter(
    name="triton",
    versions="the backends of 2025",
    prefixes=("nv_trt_llm_", "nv_inference_"),
    table=TABLE,
    elsewhere=ELSEWHERE,
    besides="a backend for language models speaks there: `nv_trt_llm_` or `vllm:`",
    title="Triton",
    usual_ports=(8002,),
    recognises=_recognises,
    wraps=frozenset({"vllm"}),
    wanted=WANTED,
    read=read,
)
