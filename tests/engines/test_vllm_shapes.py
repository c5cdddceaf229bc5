"""The KV cache of real vLLM servers of many shapes, as they publish it, against the predicted one.

The prediction starts from the config.json that is served. What a machine chooses for itself (blocks, types of
states) is read from the server's labels. Mamba 1 starts on a CPU and publishes its cache; its kernels cannot
answer requests there, which is not asked of it.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from brimline.exposition_text import scan
from brimline.footprint.hf_config import read_architecture
from brimline.footprint.vllm_cache import VllmCacheSettings, vllm_cache
from engines.conftest import HERE, engine_python, vllm_server
from prometheus_server import get_text

LONGEST, BATCH = 4096, 1024
POOL_BYTES = 1 << 30  # VLLM_CPU_KVCACHE_SPACE=1

# As make_vllm_shapes.py writes them.
SHAPES = [
    "gqa", "mha", "windows", "some-windows", "mla", "delta", "mamba", "mamba-hybrid", "mamba-2-hybrid",
    "mamba-2-in-parallel", "shared-attention", "convolutions",
]  # fmt: skip
SERVERS = [(shape, "auto") for shape in SHAPES] + [("gqa", "fp8")]


def cpu_has(flag: str) -> bool:
    return flag in Path("/proc/cpuinfo").read_text().split()


def cache_labels(page: str) -> dict[str, str]:
    [info] = scan(page.encode(), [b"vllm:cache_config_info"]).get("vllm:cache_config_info")
    return dict(info.labels)


@pytest.mark.parametrize(("shape", "kv_cache_dtype"), SERVERS)
def test_blocks_tokens_and_concurrency_are_those_of_the_server(
    shape: str, kv_cache_dtype: str, vllm_model: Path, tmp_path: Path
) -> None:
    if kv_cache_dtype == "fp8" and not cpu_has("avx512f"):
        pytest.skip("vLLM keeps an fp8 cache on CPUs with AVX-512 only")
    folder = tmp_path / shape
    shutil.copytree(vllm_model, folder)
    subprocess.run([engine_python("vllm"), HERE / "make_vllm_shapes.py", folder, shape], check=True)
    arguments = ["--enforce-eager", "--no-async-scheduling", "--kv-cache-dtype", kv_cache_dtype]
    arguments += ["--max-model-len", str(LONGEST), "--max-num-batched-tokens", str(BATCH)]
    arguments += ["--max-num-seqs", "4"]

    with vllm_server(folder, tmp_path, *arguments) as server:
        labels = cache_labels(get_text(f"{server.url}/metrics"))
    launched = VllmCacheSettings(
        version=(0, 32, 0),
        max_model_len=LONGEST,
        max_num_batched_tokens=BATCH,
        async_scheduling=False,
        block_size=int(labels["block_size"]),
        kv_cache_dtype=labels["cache_dtype"],
        mamba_cache_dtype=labels["mamba_cache_dtype"],
        mamba_ssm_cache_dtype=labels["mamba_ssm_cache_dtype"],
        # Elsewhere it is left to the version's default for such a model; MLA on a CPU has none.
        prefix_caching=False if shape == "mla" else None,
    )
    cache = vllm_cache(read_architecture(folder), launched)

    blocks = cache.num_blocks(POOL_BYTES)
    assert blocks == int(labels["num_gpu_blocks"])
    assert cache.block_size == int(labels["block_size"])
    assert cache.capacity_tokens(blocks) == int(labels["kv_cache_size_tokens"])
    assert cache.max_concurrency(blocks) == float(labels["kv_cache_max_concurrency"])
    assert labels["cache_dtype"] == kv_cache_dtype
    assert str(cache.settings.prefix_caching) == labels["enable_prefix_caching"]
