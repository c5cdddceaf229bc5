"""What vLLM itself makes of the KV cache of several shapes: vllm_kv_cache.py > ../golden/vllm_kv_cache.json.

Runs in the environment of vLLM (CPU build). Specs, alignment, grouping and the pool are vLLM's own code; the
shapes below are the question, and go into the answer with it.
"""

# mypy: disable-error-code="import-not-found, misc"
# vLLM and torch live in the engine's own environment.

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import vllm
from vllm.model_executor.layers.attention.attention import _largest_kernel_block_within
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateDtypeCalculator, MambaStateShapeCalculator
from vllm.model_executor.models import ModelRegistry
from vllm.platforms.interface import Platform
from vllm.utils.torch_utils import STR_DTYPE_TO_TORCH_DTYPE, nvfp4_kv_cache_full_dim
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend
from vllm.v1.attention.backends.turboquant_attn import TurboQuantAttentionBackend
from vllm.v1.core.kv_cache_utils import (
    generate_scheduler_kv_cache_config,
    get_kv_cache_capacity,
    get_kv_cache_configs,
    get_kv_cache_groups,
)
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    CrossAttentionSpec,
    FullAttentionSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
    SparseCacheRole,
    UniformTypeKVCacheSpecs,
    get_kv_quant_mode,
)
from vllm.v1.kv_cache_layout import KVCacheLayout

GIB = 1 << 30


def attention(heads: int, dim: int, **more: Any) -> dict[str, Any]:
    """Heads of one size, unless value_dim says otherwise."""
    return {"mixer": "attention", "kv_heads": heads, "key_dim": dim, "value_dim": dim, **more}


def gated_delta_net(key_heads: int, value_heads: int, **more: Any) -> dict[str, Any]:
    heads = {"key_heads": key_heads, "value_heads": value_heads}
    return {"mixer": "gated_delta_net", **heads, "key_dim": 128, "value_dim": 128, "conv": 4, **more}


def mamba2(heads: int, groups: int, state_dtype: str) -> dict[str, Any]:
    """Heads of 64 elements, states of 128."""
    return {
        "mixer": "mamba2", "inner": heads * 64, "heads": heads, "head_dim": 64, "groups": groups,
        "state": 128, "conv": 4, "state_dtype": state_dtype,
    }  # fmt: skip


def mostly(
    usual: dict[str, Any], other: dict[str, Any], *, every: int, layers: int, at: int | None = None
) -> list[dict[str, Any]]:
    """One layer of `every` is the other one: the last, or the one at `at`."""
    place = every - 1 if at is None else at
    return [other if n % every == place else usual for n in range(layers)]


MLA = {"mixer": "latent", "kv_lora_rank": 512, "rope_dim": 64}
MAMBA_1 = {"mixer": "mamba1", "inner": 5120, "state": 16, "conv": 4, "state_dtype": "float32"}
GPT_OSS = mostly(attention(8, 64, window=128), attention(8, 64), every=2, layers=24)
GEMMA_3 = mostly(attention(16, 128, window=1024), attention(16, 128), every=6, layers=62)
QWEN_3_5 = mostly(gated_delta_net(16, 48, state_dtype="float32"), attention(4, 256), every=4, layers=64)

# name: layers and what differs from the settings below
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "llama-3-8b": ([attention(8, 128)] * 32, {"available_bytes": int(11.12 * GIB), "max_model_len": 8192}),
    "llama-3.1-8b fp8": ([attention(8, 128)] * 32, {"kv_cache_dtype": "fp8", "max_model_len": 131072}),
    "llama-3.1-8b int8": ([attention(8, 128)] * 32, {"kv_cache_dtype": "int8_per_token_head"}),
    "llama-3.1-8b int4": ([attention(8, 128)] * 32, {"kv_cache_dtype": "int4_per_token_head"}),
    "llama-3.1-8b nvfp4": ([attention(8, 128)] * 32, {"kv_cache_dtype": "nvfp4"}),
    "llama-3.1-8b turboquant, edges unquantized": (
        [attention(8, 128)] * 32,
        {"kv_cache_dtype": "turboquant_k3v4_nc", "skipped_layers": [0, 1, 30, 31]},
    ),
    "gpt-oss-20b fp8, windows unquantized": (
        GPT_OSS,
        {"kv_cache_dtype": "fp8", "skipped_layers": list(range(0, 24, 2))},
    ),
    "gpt-oss-20b nvfp4, windows unquantized": (
        GPT_OSS,
        {"kv_cache_dtype": "nvfp4", "skipped_layers": list(range(0, 24, 2))},
    ),
    "llama-3-70b on 8 GPUs": ([attention(8, 128)] * 80, {"tensor_parallel": 8}),
    "heads replicated": ([attention(2, 128)] * 28, {"tensor_parallel": 8}),
    "multi-head, float32": ([attention(12, 64)] * 12, {"dtype": "float32", "max_model_len": 1024}),
    "multi-query, tiny": ([attention(1, 64)] * 24, {"max_model_len": 2048, "block_size": 32}),
    "values narrower than keys": ([attention(4, 192, value_dim=128)] * 16, {}),
    "pipeline with a remainder": ([attention(8, 128)] * 30, {"pipeline_parallel": 4}),
    "decode context parallel": (
        [attention(2, 128)] * 28,
        {"tensor_parallel": 4, "decode_context_parallel": 2, "max_model_len": 32769},
    ),
    "deepseek-v3": ([MLA] * 61, {"tensor_parallel": 8, "available_bytes": 20 * GIB}),
    "deepseek-v3 fp8_ds_mla": ([MLA] * 61, {"kv_cache_dtype": "fp8_ds_mla", "block_size": 64}),
    "deepseek-v3 fp8": ([MLA] * 61, {"kv_cache_dtype": "fp8", "block_size": 64}),
    "deepseek-v3.2 with index keys": ([{**MLA, "index_dim": 128}] * 61, {"block_size": 64}),
    "mistral-7b v0.1, windows only": ([attention(8, 128, window=4096)] * 32, {}),
    "gpt-oss-20b": (GPT_OSS, {}),
    "gpt-oss-20b, one batch in flight": (GPT_OSS, {"async_scheduling": False}),
    "gpt-oss-20b without the hybrid manager": (GPT_OSS, {"hybrid_cache_manager": False}),
    "gpt-oss-20b with a drafter": (GPT_OSS, {"draft": [attention(8, 64)], "speculative_tokens": 3}),
    "gemma-3-27b, groups padded": (GEMMA_3, {}),
    "gemma-3-27b in two stages": (GEMMA_3, {"pipeline_parallel": 2, "async_scheduling": False}),
    "gemma-4-26b, pages unified by longer blocks": (
        mostly(attention(8, 256, window=1024), attention(2, 512), every=6, layers=30),
        {},
    ),
    "pages unified by padding": (
        mostly(attention(4, 128, window=512), attention(3, 128), every=4, layers=16),
        {},
    ),
    "gemma-3n, 15 layers share K and V": (
        [
            {**layer, "shares_kv": n >= 20}
            for n, layer in enumerate(
                mostly(attention(2, 256, window=512), attention(2, 256), every=5, layers=35)
            )
        ],
        {},
    ),
    "llama-4 scout, chunks": (
        mostly(attention(8, 128, chunk=8192), attention(8, 128), every=4, layers=48),
        {"max_model_len": 131072},
    ),
    "whisper, cross-attention": (
        [{"mixers": [attention(20, 64), attention(20, 64, cross=True)]}] * 32,
        {"max_model_len": 448, "max_num_batched_tokens": 2048},
    ),
    "mamba 1 alone": ([MAMBA_1] * 64, {"prefix_caching": False}),
    "jamba-like, mamba 1 hybrid": (mostly(MAMBA_1, attention(8, 128), every=8, layers=32, at=4), {}),
    "nemotron-h-like, mamba 2 hybrid": (
        mostly(mamba2(128, 8, "float32"), attention(8, 128), every=13, layers=52),
        {},
    ),
    "granite-like, mamba 2 hybrid on 2 GPUs": (
        mostly(mamba2(48, 1, "bfloat16"), attention(4, 128), every=10, layers=40, at=5),
        {"prefix_caching": False, "tensor_parallel": 2},
    ),
    "qwen3-next": (
        mostly(gated_delta_net(16, 32, state_dtype="bfloat16"), attention(2, 256), every=4, layers=48),
        {},
    ),
    "qwen3.6-27b on 2 GPUs, fp8, 3 drafted tokens": (
        QWEN_3_5,
        {
            "tensor_parallel": 2,
            "kv_cache_dtype": "fp8",
            "speculative_tokens": 3,
            "draft": [attention(4, 256)],
        },
    ),
    "qwen3.5-27b without prefix caching": (QWEN_3_5, {"prefix_caching": False}),
    "kimi-linear-like, latent beside delta attention": (
        mostly(gated_delta_net(32, 32, kda=True), MLA, every=4, layers=27),
        {},
    ),
    "lfm2-like, short convolutions on 2 GPUs": (
        mostly(
            {"mixer": "short_convolution", "width": 2048, "conv": 3},
            attention(8, 64),
            every=4,
            layers=16,
            at=2,
        ),
        {"tensor_parallel": 2},
    ),
    "falcon-h1-like, a state space beside every attention": (
        [{"mixers": [mamba2(48, 1, "auto"), attention(2, 128)]}] * 44,
        {"tensor_parallel": 2},
    ),
    "zamba2-like, attention in few layers": (
        [
            {"mixers": [attention(32, 160), mamba2(80, 1, "auto")]} if n % 6 == 5 else mamba2(80, 1, "auto")
            for n in range(54)
        ],
        {"prefix_caching": False},
    ),
    "minimax-text-like, lightning attention": (
        mostly({"mixer": "linear", "heads": 64, "head_dim": 128}, attention(8, 128), every=8, layers=80),
        {"tensor_parallel": 8, "prefix_caching": False},
    ),
}

DEFAULTS: dict[str, Any] = {
    "available_bytes": 40 * GIB, "max_model_len": 32768, "max_num_batched_tokens": 8192, "dtype": "bfloat16",
    "kv_cache_dtype": "auto", "block_size": 16, "tensor_parallel": 1, "pipeline_parallel": 1,
    "decode_context_parallel": 1, "async_scheduling": True, "prefix_caching": True, "speculative_tokens": 0,
    "hybrid_cache_manager": True, "skipped_layers": [], "draft": [],
}  # fmt: skip


class PacksNvfp4(TritonAttentionBackend):
    """FlashInfer's packing (v1/attention/backends/flashinfer.py), which only imports on a GPU machine."""

    @classmethod
    def customize_spec(cls, spec: Any) -> Any:
        if not spec.kv_quant_mode.is_nvfp4:
            return spec
        return replace(
            spec,
            num_head_slots=2 * spec.num_kv_heads,
            state_content_bytes=nvfp4_kv_cache_full_dim(spec.head_size),
        )


# Which backend packs a format; the others keep the dense layout.
BACKENDS: dict[str, Any] = {
    "int8_per_token_head": TritonAttentionBackend,
    "int4_per_token_head": TritonAttentionBackend,
    "nvfp4": PacksNvfp4,
    "turboquant_k3v4_nc": TurboQuantAttentionBackend,
}


def rank_heads(heads: int, ranks: int) -> int:
    return max(1, heads // ranks)


def config_of(settings: dict[str, Any]) -> Any:
    """As much of a VllmConfig as planning the cache reads."""
    batches = settings["pipeline_parallel"] + (1 if settings["async_scheduling"] else 0)
    return SimpleNamespace(
        model_config=SimpleNamespace(
            max_model_len=settings["max_model_len"], original_max_model_len=settings["max_model_len"]
        ),
        cache_config=SimpleNamespace(
            cache_dtype=settings["kv_cache_dtype"], block_size=settings["block_size"], mamba_block_size=None,
            mamba_page_size_padded=None, skip_page_size_padded=None, kv_cache_dtype_skip_layers=[],
            mamba_cache_mode="align" if settings["prefix_caching"] else "none",
            num_gpu_blocks_override=None, prefix_cache_retention_interval=None,
            get_resolved_kv_cache_layout=lambda: KVCacheLayout.LBNHC,
        ),
        parallel_config=SimpleNamespace(
            tensor_parallel_size=settings["tensor_parallel"],
            pipeline_parallel_size=settings["pipeline_parallel"],
            decode_context_parallel_size=settings["decode_context_parallel"],
        ),
        scheduler_config=SimpleNamespace(
            disable_hybrid_kv_cache_manager=not settings["hybrid_cache_manager"],
            max_num_encoder_input_tokens=settings["max_num_batched_tokens"],
        ),
        attention_config=SimpleNamespace(hisparse_config=None),
        speculative_config=None,
        kv_transfer_config=None,
        num_prefill_lookahead_tokens=0,
        num_speculative_tokens=settings["speculative_tokens"],
        max_in_flight_tokens=batches * settings["max_num_batched_tokens"],
    )  # fmt: skip


def state_of(mixer: dict[str, Any], settings: dict[str, Any]) -> tuple[Any, Any]:
    """Shapes and types of one state, by vLLM's calculators."""
    ranks, drafted = settings["tensor_parallel"], settings["speculative_tokens"]
    model = STR_DTYPE_TO_TORCH_DTYPE[settings["dtype"]]
    asked = mixer.get("state_dtype", "auto")
    if mixer["mixer"] == "linear":
        return (
            MambaStateShapeCalculator.linear_attention_state_shape(mixer["heads"], ranks, mixer["head_dim"]),
            MambaStateDtypeCalculator.linear_attention_state_dtype(model, "auto"),
        )
    if mixer["mixer"] == "short_convolution":
        return (
            MambaStateShapeCalculator.short_conv_state_shape(ranks, mixer["width"], mixer["conv"], drafted),
            MambaStateDtypeCalculator.short_conv_state_dtype(model, "auto"),
        )
    if mixer["mixer"] == "mamba1":
        return (
            MambaStateShapeCalculator.mamba1_state_shape(
                ranks, mixer["inner"], mixer["state"], mixer["conv"]
            ),
            MambaStateDtypeCalculator.mamba1_state_dtype(model, "auto", asked),
        )
    if mixer["mixer"] == "mamba2":
        return (
            MambaStateShapeCalculator.mamba2_state_shape(
                ranks, mixer["inner"], mixer["groups"], mixer["heads"], mixer["head_dim"], mixer["state"],
                mixer["conv"], drafted,
            ),
            MambaStateDtypeCalculator.mamba2_state_dtype(model, "auto", asked),
        )  # fmt: skip
    if mixer.get("kda"):
        return (
            MambaStateShapeCalculator.kda_state_shape(
                ranks, mixer["value_heads"], mixer["value_dim"], mixer["key_heads"], mixer["key_dim"],
                mixer["conv"], drafted,
            ),
            MambaStateDtypeCalculator.kda_state_dtype(model, "auto", "auto"),
        )  # fmt: skip
    return (
        MambaStateShapeCalculator.gated_delta_net_state_shape(
            ranks, mixer["key_heads"], mixer["value_heads"], mixer["key_dim"], mixer["value_dim"],
            mixer["conv"], drafted,
        ),
        MambaStateDtypeCalculator.gated_delta_net_state_dtype(model, "auto", asked),
    )  # fmt: skip


def mixers_of(layer: dict[str, Any]) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = layer.get("mixers", [layer])
    return listed


def align(config: Any, layers: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """vLLM's own alignment of a hybrid's, or a partly quantized model's, blocks."""
    mixers = [mixer for layer in layers for mixer in mixers_of(layer)]
    states = [m for m in mixers if m["mixer"] not in ("attention", "latent")]
    caches = [m for m in mixers if m["mixer"] in ("attention", "latent")]
    backend = BACKENDS.get(settings["kv_cache_dtype"], TritonAttentionBackend)
    cache = config.cache_config
    cache.kv_cache_dtype_skip_layers = [str(n) for n in settings["skipped_layers"]]
    cache.mamba_block_size = (
        settings["max_model_len"] if cache.mamba_cache_mode == "none" else settings["block_size"]
    )
    if not caches:
        return
    first = caches[0]
    latent = first["mixer"] == "latent"
    config.model_config.use_mla = latent
    config.model_config.dtype = STR_DTYPE_TO_TORCH_DTYPE[settings["dtype"]]
    config.model_config.architecture = "Oracle"
    config.model_config.get_num_kv_heads = lambda _: (
        1 if latent else rank_heads(first["kv_heads"], settings["tensor_parallel"])
    )
    config.model_config.get_head_size = lambda: (
        first["kv_lora_rank"] + first["rope_dim"] if latent else first["key_dim"]
    )
    if states:
        shapes, dtypes = state_of(states[0], settings)
        model = SimpleNamespace(
            get_mamba_state_shape_from_config=lambda _: shapes,
            get_mamba_state_dtype_from_config=lambda _: dtypes,
        )
        with (
            mock.patch.object(ModelRegistry, "resolve_model_cls", return_value=(model, "Oracle")),
            mock.patch("vllm.config.vllm.set_current_vllm_config", mock.MagicMock()),
            mock.patch.object(Platform, "_find_non_ssm_backends", classmethod(lambda *_: [backend])),
        ):
            Platform._align_hybrid_block_size(config, backend)
    if settings["skipped_layers"]:
        with mock.patch("vllm.config.vllm.set_current_vllm_config", mock.MagicMock()):
            Platform._align_heterogeneous_kv_block_size(config, backend)


def window_spec(common: dict[str, Any], window: int, backend: Any, cache: Any) -> Any:
    """A window's blocks fit the page that layers of another type share (attention.py get_kv_cache_spec)."""
    shared = cache.skip_page_size_padded
    one = backend.customize_spec(SlidingWindowSpec(**{**common, "block_size": 1}, sliding_window=window))
    size = one.real_page_size_bytes
    block = _largest_kernel_block_within(
        backend, size, shared or size * cache.block_size, cache.block_size, one
    )
    fitted = {**common, "block_size": block}
    return SlidingWindowSpec(**fitted, sliding_window=window, page_size_padded=shared)


def spec_of(mixer: dict[str, Any], index: int, config: Any, settings: dict[str, Any]) -> Any:
    """What the layer's get_kv_cache_spec returns, packed by its backend."""
    cache = config.cache_config
    if mixer["mixer"] not in ("attention", "latent"):
        shapes, dtypes = state_of(mixer, settings)
        return MambaSpec(
            shapes=tuple(shapes), dtypes=tuple(dtypes), block_size=cache.mamba_block_size,
            page_size_padded=cache.mamba_page_size_padded, mamba_cache_mode=cache.mamba_cache_mode,
            num_speculative_blocks=settings["speculative_tokens"],
            num_prefill_checkpoint_blocks=1 if mixer["mixer"] == "mamba2" else 0,
        )  # fmt: skip
    name = "auto" if index in settings["skipped_layers"] else settings["kv_cache_dtype"]
    dtype = STR_DTYPE_TO_TORCH_DTYPE[settings["dtype"] if name == "auto" else name]
    if mixer["mixer"] == "latent":
        return MLAAttentionSpec(
            block_size=cache.block_size, num_kv_heads=1, max_tp_shards=1, dtype=dtype, cache_dtype_str=name,
            head_size=mixer["kv_lora_rank"] + mixer["rope_dim"], kv_quant_mode=get_kv_quant_mode(name),
            state_content_bytes={"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}.get(name),
            is_index_group_leader="index_dim" in mixer,
        )  # fmt: skip
    common = {
        "block_size": cache.block_size,
        "num_kv_heads": rank_heads(mixer["kv_heads"], settings["tensor_parallel"]),
        "head_size": mixer["key_dim"], "head_size_v": mixer["value_dim"], "dtype": dtype,
        "kv_quant_mode": get_kv_quant_mode(name),
    }  # fmt: skip
    if mixer.get("cross"):
        spec: Any = CrossAttentionSpec(**common)
    elif "window" in mixer:
        spec = window_spec(common, mixer["window"], BACKENDS.get(name, TritonAttentionBackend), cache)
    elif "chunk" in mixer:
        spec = ChunkedLocalAttentionSpec(**common, attention_chunk_size=mixer["chunk"])
    else:
        spec = FullAttentionSpec(**common)
    return BACKENDS[name].customize_spec(spec) if name in BACKENDS else spec


def stage_specs(layers: list[dict[str, Any]], config: Any, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Specs of every pipeline stage; tensor-parallel ranks of a stage are alike."""
    from vllm.distributed.utils import get_pp_indices

    stages = []
    for rank in range(settings["pipeline_parallel"]):
        start, end = get_pp_indices(len(layers), rank, settings["pipeline_parallel"])
        listed = list(enumerate(layers))[start:end]
        if rank == settings["pipeline_parallel"] - 1:
            listed += list(enumerate(settings["draft"], start=len(layers)))
        specs: dict[str, Any] = {}
        for index, layer in listed:
            for place, mixer in enumerate(mixers_of(layer)):
                if mixer.get("shares_kv"):
                    continue
                name = f"layers.{index}.{place}"
                specs[name] = spec_of(mixer, index, config, settings)
                if "index_dim" in mixer:
                    specs[f"{name}.index"] = MLAAttentionSpec(
                        block_size=config.cache_config.block_size, num_kv_heads=1, max_tp_shards=1,
                        head_size=mixer["index_dim"] + mixer["index_dim"] // 128 * 4, dtype=torch.uint8,
                        cache_role=SparseCacheRole.INDEXER,
                    )  # fmt: skip
        stages.append(specs)
    return stages


def answer(layers: list[dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    """The pool that vLLM plans."""
    config = config_of(settings)
    align(config, layers, settings)
    stages = stage_specs(layers, config, settings)
    merged = {name: spec for stage in stages for name, spec in stage.items()}
    groups = get_kv_cache_groups(config, dict(merged))
    planned = get_kv_cache_configs(config, stages, [settings["available_bytes"]] * len(stages))
    whole = generate_scheduler_kv_cache_config(planned)
    tokens, concurrency = get_kv_cache_capacity(config, planned[0])
    return {
        "groups": [
            {
                "layers": len(group.layer_names),
                "block_tokens": group.kv_cache_spec.block_size,
                "page_bytes": group.kv_cache_spec.page_size_bytes,
                "mixed": isinstance(group.kv_cache_spec, UniformTypeKVCacheSpecs),
                "request_blocks": -(
                    -group.kv_cache_spec.max_memory_usage_bytes(config) // group.kv_cache_spec.page_size_bytes
                ),
            }
            for group in groups
        ],
        "num_blocks": whole.num_blocks,
        "pool_bytes": [stage.kv_cache_tensors[0].size for stage in planned],
        "capacity_tokens": tokens,
        "max_concurrency": concurrency,
        "mamba_page_size_padded": config.cache_config.mamba_page_size_padded,
    }


def main() -> None:
    """Print every case with its answer: kinds of layers, and the kind of each layer."""
    logging.disable(logging.CRITICAL)
    cases = []
    for name, (layers, changes) in CASES.items():
        settings = {**DEFAULTS, **changes}
        kinds = [layer for n, layer in enumerate(layers) if layer not in layers[:n]]
        case = {"name": name, "settings": settings, "kinds": kinds, "layers": list(map(kinds.index, layers))}
        cases.append(json.dumps({**case, "expected": answer(layers, settings)}))
    joined = ",\n".join(cases)
    sys.stdout.write(f'{{"vllm": "{vllm.__version__}", "cases": [\n{joined}\n]}}\n')


if __name__ == "__main__":
    main()
