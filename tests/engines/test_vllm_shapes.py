"""The KV cache of real vLLM servers of six shapes, as they publish it, against the predicted one.

What a machine chooses for itself (blocks, types of states) is read from the server's labels.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from brimline.exposition_text import scan
from brimline.footprint.architecture import (
    Architecture,
    Attention,
    GatedDeltaNet,
    LatentAttention,
    Layer,
    Mixer,
)
from brimline.footprint.vllm_cache import VllmCacheSettings, vllm_cache
from engines.conftest import HERE, engine_python, vllm_server
from prometheus_server import get_text

LONGEST, BATCH = 4096, 1024
POOL_BYTES = 1 << 30  # VLLM_CPU_KVCACHE_SPACE=1


def attention(kv_heads: int, dim: int, window: int | None = None) -> Attention:
    return Attention(query_heads=8, kv_heads=kv_heads, key_dim=dim, value_dim=dim, window=window)


LATENT = LatentAttention(
    query_heads=4, q_lora_rank=64, kv_lora_rank=512, nope_dim=64, rope_dim=64, value_dim=64
)
DELTA = GatedDeltaNet(key_heads=4, value_heads=8, key_dim=64, value_dim=64, conv=4)

# As make_vllm_shapes.py writes them.
SHAPES: dict[str, list[Mixer]] = {
    "gqa": [attention(2, 32)] * 4,
    "mha": [attention(4, 64)] * 3,
    "windows": [attention(2, 32, 512)] * 4,
    "some-windows": [attention(2, 64) if n % 4 == 3 else attention(2, 64, 512) for n in range(8)],
    "mla": [LATENT] * 3,
    "delta": [attention(2, 64) if n % 4 == 3 else DELTA for n in range(8)],
}
SERVERS = [(shape, "auto") for shape in SHAPES] + [("gqa", "fp8")]


def model_of(shape: str) -> Architecture:
    layers = tuple(Layer(mixers=(mixer,), feed_forward=None, norm_elements=0) for mixer in SHAPES[shape])
    return Architecture(
        model_type=shape, vocabulary=512, hidden=256, layers=layers, tied=False, dtype="bfloat16"
    )


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
    cache = vllm_cache(
        model_of(shape),
        VllmCacheSettings(
            version=(0, 32, 0),
            max_model_len=LONGEST,
            max_num_batched_tokens=BATCH,
            async_scheduling=False,
            block_size=int(labels["block_size"]),
            kv_cache_dtype=labels["cache_dtype"],
            prefix_caching=labels["enable_prefix_caching"] == "True",
            mamba_cache_dtype=labels["mamba_cache_dtype"],
            mamba_ssm_cache_dtype=labels["mamba_ssm_cache_dtype"],
        ),
    )

    blocks = cache.num_blocks(POOL_BYTES)
    assert blocks == int(labels["num_gpu_blocks"])
    assert cache.block_size == int(labels["block_size"])
    assert cache.capacity_tokens(blocks) == int(labels["kv_cache_size_tokens"])
    assert cache.max_concurrency(blocks) == float(labels["kv_cache_max_concurrency"])
    assert labels["cache_dtype"] == kv_cache_dtype
