"""Bytes of K/V cache that one token occupies on one GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction

from brimline.errors import FootprintError
from brimline.footprint.model import ModelShape

_TORCH_BYTES = {
    "float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2,
    "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "int8": 1,
}  # fmt: skip

# Bytes of one element: block size over elements of a block (ggml/src/ggml-common.h).
_GGML_BYTES = {
    "f32": Fraction(4), "f16": Fraction(2), "bf16": Fraction(2),
    "q8_0": Fraction(34, 32), "q5_1": Fraction(24, 32), "q5_0": Fraction(22, 32),
    "q4_1": Fraction(20, 32), "q4_0": Fraction(18, 32), "iq4_nl": Fraction(18, 32),
}  # fmt: skip


def vllm_element_bytes(shape: ModelShape, settings: Mapping[str, str]) -> int:
    """Bytes of one element of vLLM's K/V cache.

    `auto` is the type the model runs in: --dtype, else the checkpoint's, where float32 is cast down to 16
    bits (vLLM 0.32, config/model.py _resolve_auto_dtype). Raises FootprintError for types with scales of
    their own, and where the checkpoint asks for a quantized cache by itself.
    """
    kv_dtype = settings.get("kv_cache_dtype", "auto")
    if kv_dtype == "auto":
        if shape.kv_dtype is not None:
            raise FootprintError(
                "the checkpoint asks for a quantized K/V cache, whose layout is not known here"
            )
        run_as = settings.get("dtype", "auto")
        if run_as == "auto":
            run_as = "bfloat16" if shape.dtype is None or shape.dtype == "float32" else shape.dtype
        kv_dtype = run_as
    if kv_dtype not in _TORCH_BYTES:
        raise FootprintError(f"the element size of a K/V cache of type {kv_dtype!r} is not known here")
    return _TORCH_BYTES[kv_dtype]


def kv_cache_bytes_per_token(
    shape: ModelShape, *, element_bytes: float, tensor_parallel: int = 1, pipeline_parallel: int = 1
) -> int:
    """Bytes of K/V cache that one token occupies on the fullest GPU of a rank.

    K and V for each layer of the longest pipeline stage: kv_heads_per_rank * (key_dim + value_dim) *
    element_bytes. K/V heads are replicated, not split, once tensor_parallel exceeds them (vLLM 0.32,
    config/model.py get_num_kv_heads). Raises FootprintError where the heads cannot be divided.
    """
    if tensor_parallel < 1 or pipeline_parallel < 1:
        raise FootprintError("parallel sizes start at 1")
    per_layer = []
    for heads in shape.kv_heads:
        if heads % tensor_parallel and tensor_parallel % heads:
            raise FootprintError(f"{heads} K/V heads cannot be divided among {tensor_parallel} GPUs")
        on_one_gpu = max(1, heads // tensor_parallel) if heads else 0
        per_layer.append(on_one_gpu * (shape.key_dim + shape.value_dim) * element_bytes)
    stage = math.ceil(len(per_layer) / pipeline_parallel)
    return int(sum(sorted(per_layer, reverse=True)[:stage]))


def llamacpp_kv_cache_bytes_per_token(
    shape: ModelShape, *, key_type: str = "f16", value_type: str = "f16"
) -> Fraction:
    """Bytes of K/V cache that one token occupies in llama.cpp, on all its devices together.

    Raises FootprintError for a cache type that is not known.
    """
    for name in (key_type, value_type):
        if name not in _GGML_BYTES:
            raise FootprintError(f"unknown cache type {name!r}; known: {', '.join(_GGML_BYTES)}")
    key, value = _GGML_BYTES[key_type], _GGML_BYTES[value_type]
    return sum(
        (heads * (shape.key_dim * key + shape.value_dim * value) for heads in shape.kv_heads), Fraction(0)
    )


def _torch_layout(shape: ModelShape, settings: Mapping[str, str]) -> float:
    sizes = {}
    for kind in ("tensor", "pipeline"):
        text = settings.get(f"{kind}_parallel_size", "1")
        if not (text.isascii() and text.isdigit()) or int(text) < 1:
            raise FootprintError(f"{kind}_parallel_size {text!r} is not a whole number")
        sizes[kind] = int(text)
    return kv_cache_bytes_per_token(
        shape,
        element_bytes=vllm_element_bytes(shape, settings),
        tensor_parallel=sizes["tensor"],
        pipeline_parallel=sizes["pipeline"],
    )


def _ggml_layout(shape: ModelShape, settings: Mapping[str, str]) -> float:
    key_type, value_type = settings.get("cache_type_k", "f16"), settings.get("cache_type_v", "f16")
    return float(llamacpp_kv_cache_bytes_per_token(shape, key_type=key_type, value_type=value_type))


# How engines lay out their K/V cache: settings under the flag names of the engines that use the layout.
KV_LAYOUTS: dict[str, Callable[[ModelShape, Mapping[str, str]], float]] = {
    "torch": _torch_layout,
    "ggml": _ggml_layout,
}
