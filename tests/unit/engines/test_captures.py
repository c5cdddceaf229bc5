"""Pages that real servers sent, from a folder outside this repository.

BRIMLINE_EXTRA_CAPTURES names a folder of files `ENGINE-VERSION-N.prom` (`synthetic_` or `docsample_` in front
where no server sent them). The expected numbers are found with a regular expression in the page itself.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from brimline.engines import ENGINES, Evidence, engines_on, identify
from brimline.errors import EngineError
from brimline.exposition_text import scan
from brimline.readings import EngineReading, RankReading

FOLDER = os.environ.get("BRIMLINE_EXTRA_CAPTURES")
FILES = sorted(Path(FOLDER).glob("*.prom")) if FOLDER else []
VLLM = [path for path in FILES if re.fullmatch(r"(synthetic_)?vllm-.*", path.stem)]

pytestmark = pytest.mark.skipif(not FOLDER, reason="BRIMLINE_EXTRA_CAPTURES names no folder of captures")


def read(path: Path) -> EngineReading:
    body = path.read_bytes()
    adapter = ENGINES[identify(body)]
    return adapter.read(Evidence(scan(body, adapter.wanted)))


def on_page(path: Path, name: str, **labels: str) -> float | None:
    """The value of the first row of that name with these labels; None where there is none."""
    for row in re.finditer(rf"^{name}\{{([^}}]*)\}} (\S+)$", path.read_text(), re.MULTILINE):
        if all(f'{label}="{value}"' in row.group(1) for label, value in labels.items()):
            return float(row.group(2))
    return None


def label_on_page(path: Path, label: str) -> str | None:
    """That label of cache_config_info."""
    found = re.search(
        rf'^vllm:cache_config_info.*[{{,]{label}="([^"]*)"', "\n" + path.read_text(), re.MULTILINE
    )
    return found.group(1) if found else None


def with_cache(path: Path) -> list[RankReading]:
    return [rank for rank in read(path).ranks if rank.kv_cache_usage_ratio is not None]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_page_is_one_of_an_engine_or_refused_in_words(path: Path) -> None:
    try:
        reading = read(path)
    except EngineError as error:
        assert error.reason == "not_an_engine"  # noqa: PT017
        assert engines_on(path.read_bytes()) == []
    else:
        assert reading.engine in ENGINES
        if not path.stem.startswith("docsample_"):  # documents leave lines out
            assert reading.unparsed_lines == 0


@pytest.mark.parametrize("path", VLLM, ids=lambda path: path.stem)
def test_a_page_of_vllm_gives_the_numbers_on_it(path: Path) -> None:
    reading = read(path)

    assert reading.engine == "vllm"
    assert reading.bad_values == ()
    for rank in reading.ranks:
        labels = {"model_name": rank.model}
        if 'engine="' in path.read_text():
            labels["engine"] = rank.rank
        for field, name in {
            "requests_running": "vllm:num_requests_running",
            "requests_waiting": "vllm:num_requests_waiting",
            "prompt_tokens_total": "vllm:prompt_tokens_total",
            "generation_tokens_total": "vllm:generation_tokens_total",
            "preemptions_total": "vllm:num_preemptions_total",
            "prefix_cache_queries_tokens_total": "vllm:prefix_cache_queries_total",
            "prefix_cache_hits_tokens_total": "vllm:prefix_cache_hits_total",
        }.items():
            assert getattr(rank, field) == on_page(path, name, **labels), field
        usage = on_page(path, "vllm:kv_cache_usage_perc", **labels)
        assert rank.kv_cache_usage_ratio == (
            usage if usage is not None else on_page(path, "vllm:gpu_cache_usage_perc", **labels)
        )
        latency = rank.time_to_first_token_seconds
        assert (latency.sum if latency else None) == on_page(
            path, "vllm:time_to_first_token_seconds_sum", **labels
        )


@pytest.mark.parametrize("path", VLLM, ids=lambda path: path.stem)
def test_the_pool_of_vllm_is_shared_out_among_its_ranks(path: Path) -> None:
    ranks = with_cache(path)
    blocks = label_on_page(path, "num_gpu_blocks")
    block_size = label_on_page(path, "block_size")

    for rank in ranks:
        expected = None if blocks is None else int(blocks) // len(ranks)
        assert rank.kv_cache_blocks == expected
        assert rank.kv_cache_block_tokens == (None if block_size is None else int(block_size))
        assert rank.kv_cache_capacity_tokens == (
            None if expected is None or block_size is None else expected * int(block_size)
        )


@pytest.mark.parametrize("stem", ["litellm-1", "ray_head-1"])
def test_a_gateway_and_a_cluster_head_are_no_engines(stem: str) -> None:
    [path] = [path for path in FILES if path.stem == stem] or pytest.skip(f"no {stem} among the captures")

    with pytest.raises(EngineError) as caught:
        read(path)

    assert caught.value.reason == "not_an_engine"
