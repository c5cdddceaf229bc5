"""What a page is that belongs to no known engine, in words for whoever pointed the exporter at it."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from brimline.exposition_text import families


@dataclass(frozen=True, slots=True)
class Foreign:
    """A program that is often taken for an inference engine, or stands before one.

    says: what it is, and what to do. is_its: whether a page with these sample names and bytes is its.
    """

    says: str
    is_its: Callable[[Set[str], bytes], bool]


def _begins(*prefixes: str) -> Callable[[Set[str], bytes], bool]:
    return lambda names, _body: any(name.startswith(prefixes) for name in names)


FOREIGN: tuple[Foreign, ...] = (
    Foreign(
        # The page's first line; then names, a tab and a value, and labels without quotes (MLC-LLM 79d603f).
        "this is MLC-LLM, whose page is not valid in Prometheus' format and says nothing of its KV cache",
        lambda _names, body: body.lstrip().startswith(b"# NOTE: these metrics count token"),
    ),
    Foreign(
        "this is MindIE, an engine for NPUs, which is not read",
        lambda names, _body: "npu_cache_usage_perc" in names,
    ),
    Foreign(
        "this is LiteLLM, a gateway: name the inference servers behind it",
        _begins("litellm_"),
    ),
    Foreign(
        "this is Triton, and no backend for language models speaks on its page: for vLLM's, set "
        "REPORT_CUSTOM_METRICS in the model's configuration; TensorRT-LLM's needs in-flight batching",
        _begins("nv_inference_"),
    ),
    Foreign(
        "this is Ray without vLLM's metrics: name the page of the node on which Ray Serve LLM runs, with "
        "log_engine_metrics on",
        _begins("ray_"),
    ),
    Foreign(
        "this is the page of an endpoint picker, a gateway: name the inference servers behind it",
        _begins("inference_pool_", "inference_model_", "inference_extension_"),
    ),
    Foreign("this is dcgm-exporter, which says how GPUs are, and nothing of a server", _begins("DCGM_FI_")),
)


def describe(body: bytes, known: Sequence[str]) -> str:
    """Why a page is not one of the known engines, with what it seems to be instead."""
    start = body[:512].lstrip()
    if not start:
        return "the page is empty"
    if start[:1] == b"<":
        return "this is an HTML page, not metrics"
    if start[:1] in (b"{", b"["):
        return "this is JSON, not metrics"
    names = families(body)
    for foreign in FOREIGN:
        if foreign.is_its(names, body):
            return foreign.says
    prefixes: dict[str, int] = {}
    for name in names:
        prefix = name.partition("_")[0].partition(":")[0]
        prefixes[prefix] = prefixes.get(prefix, 0) + 1
    top = sorted(prefixes, key=lambda prefix: (-prefixes[prefix], prefix))[:3]
    seen = ", ".join(f"{prefix}_… ({prefixes[prefix]})" for prefix in top) or "no metric at all"
    return f"no metric of a known inference engine ({', '.join(known)}) stands on this page; it has {seen}"
