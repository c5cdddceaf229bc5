"""Every saved page of a folder outside the project: the right engine, and values equal to the page's text.

The folder is named by the environment variable BRIMLINE_EXTRA_CAPTURES. The values are compared with plain
regular expressions over the raw text, which share nothing with the adapters.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

FOLDER = os.environ.get("BRIMLINE_EXTRA_CAPTURES")
PAGES = sorted(Path(FOLDER).glob("*.prom")) if FOLDER else []

# By the start of the file's name; None for pages that are no inference engine's.
ENGINE_OF = {
    "docsample_dynamo_sglang": "sglang",
    "docsample_dynamo_tensorrt-llm": "trtllm",
    "docsample_dynamo_vllm": "vllm",
    # The sample shows the backend's own families without Triton's, so nothing on it says Triton.
    "docsample_triton_vllm": "vllm",
    "litellm": None,
    "nim": "nim",
    "ray_head": None,
    "ray_serve_vllm": "ray",
    "sglang": "sglang",
    "synthetic_lmdeploy": "lmdeploy",
    "synthetic_vllm": "vllm",
    "tgi": "tgi",
    "triton-": None,
    "triton_trtllm": "triton",
    "vllm": "vllm",
}

# For each engine: quantity → names of samples that are added up. Of several tuples, the first with a row
# counts; none means that the page states no such thing.
_VLLM: dict[str, list[tuple[str, ...]]] = {
    "requests_running": [("vllm:num_requests_running",)],
    "requests_waiting": [("vllm:num_requests_waiting",)],
    "kv_cache_usage_ratio": [("vllm:kv_cache_usage_perc",), ("vllm:gpu_cache_usage_perc",)],
    "prompt_tokens_total": [("vllm:prompt_tokens_total",)],
    "generation_tokens_total": [("vllm:generation_tokens_total",)],
}
STATED: dict[str, dict[str, list[tuple[str, ...]]]] = {
    "lmdeploy": {
        "requests_running": [("lmdeploy:num_requests_running",)],
        "requests_waiting": [("lmdeploy:num_requests_waiting", "lmdeploy:num_api_requests_waiting")],
        "kv_cache_usage_ratio": [("lmdeploy:gpu_cache_usage_perc",)],
        "prompt_tokens_total": [("lmdeploy:prompt_tokens_total",)],
        "generation_tokens_total": [("lmdeploy:generation_tokens_total",)],
    },
    "nim": {quantity: [(names[-1][0].removeprefix("vllm:"),)] for quantity, names in _VLLM.items()},
    "ray": {quantity: [(f"ray_{name[0]}",) for name in names] for quantity, names in _VLLM.items()},
    "sglang": {
        "requests_running": [("sglang:num_running_reqs",), ("sglang:num_requests_running",)],
        "requests_waiting": [("sglang:num_queue_reqs",), ("sglang:num_requests_waiting",)],
        "kv_cache_usage_ratio": [("sglang:token_usage",)],
        "kv_cache_capacity_tokens": [("sglang:max_total_num_tokens",)],
        "kv_cache_used_tokens": [("sglang:num_used_tokens",)],
        "prompt_tokens_total": [("sglang:prompt_tokens_total",)],
        "generation_tokens_total": [("sglang:generation_tokens_total",)],
    },
    "tgi": {
        "requests_running": [("tgi_batch_current_size",)],
        "requests_waiting": [("tgi_queue_size",)],
        "kv_cache_usage_ratio": [],
        "prompt_tokens_total": [("tgi_request_input_length_sum",)],
        "generation_tokens_total": [("tgi_request_generated_tokens_sum",)],
    },
    "triton": {
        "requests_running": [('nv_trt_llm_request_metrics.*request_type="active"',)],
        "requests_waiting": [('nv_trt_llm_request_metrics.*request_type="waiting"',)],
        "kv_cache_blocks": [('nv_trt_llm_kv_cache_block_metrics.*block_type="max"',)],
        "kv_cache_used_blocks": [('nv_trt_llm_kv_cache_block_metrics.*block_type="used"',)],
        "prompt_tokens_total": [],
        "generation_tokens_total": [],
    },
    "trtllm": {
        "requests_running": [("trtllm_num_requests_running",)],
        "requests_waiting": [("trtllm_num_requests_waiting",)],
        "kv_cache_usage_ratio": [("trtllm_kv_cache_utilization",)],
        "prompt_tokens_total": [("trtllm_prompt_tokens_total",)],
        "generation_tokens_total": [("trtllm_generation_tokens_total",)],
    },
    "vllm": _VLLM,
}

HISTOGRAMS = {
    "lmdeploy": "lmdeploy:e2e_request_latency_seconds",
    "nim": "e2e_request_latency_seconds",
    "ray": "ray_vllm:e2e_request_latency_seconds",
    "sglang": "sglang:e2e_request_latency_seconds",
    "tgi": "tgi_request_duration",
    "trtllm": "trtllm_e2e_request_latency_seconds",
    "vllm": "vllm:e2e_request_latency_seconds",
}

pytestmark = pytest.mark.skipif(
    FOLDER is None, reason="BRIMLINE_EXTRA_CAPTURES names no folder of saved pages"
)


def expected_engine(page: Path) -> str | None:
    starts = [start for start in ENGINE_OF if page.name.startswith(start)]
    assert starts, f"{page.name}: say in ENGINE_OF whose page this is"
    return ENGINE_OF[max(starts, key=len)]


def read(page: Path) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "brimline", "read", str(page), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, json.loads(done.stdout)


def plain(page: Path, names: Iterable[str], combine: Callable[[Iterable[float]], float]) -> dict[str, float]:
    """The values of these samples by model, straight from the text; `names` are regular expressions."""
    rows: dict[str, list[float]] = {}
    for line in page.read_text().splitlines():
        for name in names:
            if match := re.match(rf"{name}(?=[{{ ,]|\")(.*) (\S+)$", line):
                model = re.search(r'[{,](?:model_name|model|name)="([^"]*)"', line)
                rows.setdefault(model.group(1) if model else "", []).append(float(match.group(2)))
    return {model: combine(values) for model, values in rows.items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_is_the_engines_that_it_was_saved_from(page: Path) -> None:
    status, document = read(page)

    expected = expected_engine(page)
    assert [engine["engine"] for engine in document["engines"]] == ([] if expected is None else [expected])
    assert status == (3 if expected is None else 0)
    if expected is None:
        assert document["problem"]["reason"] == "not_an_engine"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if expected_engine(page) is not None], ids=lambda page: page.name
)
def test_values_equal_those_of_the_text(page: Path) -> None:
    _, document = read(page)

    [engine] = document["engines"]
    read_values = {model["model"]: model for model in engine["models"]}
    for quantity, alternatives in STATED[engine["engine"]].items():
        combine = max if quantity == "kv_cache_usage_ratio" else sum
        stated = next((found for names in alternatives if (found := plain(page, names, combine))), {})
        assert {
            model: values[quantity] for model, values in read_values.items() if values[quantity] is not None
        } == {model: pytest.approx(value, rel=1e-12) for model, value in stated.items()}, quantity


@pytest.mark.parametrize(
    "page", [page for page in PAGES if expected_engine(page) in HISTOGRAMS], ids=lambda page: page.name
)
def test_sums_and_counts_of_latencies_equal_those_of_the_text(page: Path) -> None:
    _, document = read(page)

    [engine] = document["engines"]
    name = HISTOGRAMS[engine["engine"]]
    for part in ("sum", "count"):
        stated = plain(page, [f"{name}_{part}"], sum)
        found = {
            model["model"]: sum(rank["request_e2e_latency_seconds"][part] for rank in model["ranks"])
            for model in engine["models"]
            if any(rank["request_e2e_latency_seconds"] for rank in model["ranks"])
        }
        assert found == pytest.approx(stated)
