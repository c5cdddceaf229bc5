"""How many bytes a K/V cache keeps for one head, or one latent vector, of one token, scales included."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from brimline.errors import SettingError

TORCH_ELEMENT_BYTES: dict[str, int] = {
    "float32": 4, "float": 4,
    "float16": 2, "half": 2, "bfloat16": 2,
}  # fmt: skip

# Bytes of a block over its elements (gguf 0.19, GGML_QUANT_SIZES). Only these are cache types of llama.cpp
# (common/arg.cpp, kv_cache_types).
GGML_ELEMENT_BYTES: dict[str, Fraction] = {
    "f32": Fraction(4), "f16": Fraction(2), "bf16": Fraction(2),
    "q8_0": Fraction(34, 32), "q5_1": Fraction(24, 32), "q5_0": Fraction(22, 32),
    "q4_1": Fraction(20, 32), "q4_0": Fraction(18, 32), "iq4_nl": Fraction(18, 32),
}  # fmt: skip

_FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class KvFormat:
    """One way of vLLM to store K and V.

    name: as --kv-cache-dtype spells it, `auto` resolved. head: bytes of one K/V head's key and value of one
    token, from their elements. latent: bytes of one MLA vector of one token, from its elements; None where
    MLA cannot be stored so. source: the place the layout is taken from.
    """

    name: str
    head: Callable[[int, int], int]
    latent: Callable[[int], int] | None
    source: str


def _plain(element_bytes: int) -> tuple[Callable[[int, int], int], Callable[[int], int]]:
    return (
        lambda key, value: (key + value) * element_bytes,
        lambda elements: elements * element_bytes,
    )


def _nvfp4_side(elements: int) -> int:
    # 4 bits each, and an 8-bit scale for every 16
    return elements // 2 + elements // 16


def _turboquant(key_bits: int, value_bits: int) -> Callable[[int, int], int]:
    def head(key: int, value: int) -> int:
        # 8-bit keys need no norm; other keys carry one of 2 bytes, values a scale and a zero of 2 bytes each
        keys = key if key_bits == 8 else math.ceil(key * key_bits / 8) + 2
        both = keys + math.ceil(value * value_bits / 8) + 4
        return both + both % 2

    return head


def _ultraquant(key: int, value: int) -> int:
    return key // 2 + math.ceil(key / 32) + value // 2 + math.ceil(value / 32)


_INTERFACE = "vLLM 0.32, v1/kv_cache_interface.py"
_MLA = "vLLM 0.32, model_executor/layers/attention/mla_attention.py"
_TRITON = "vLLM 0.32, v1/attention/backends/triton_attn.py and mla_attention.py"
_TURBO = "vLLM 0.32, quantization/turboquant/config.py"

_FLOAT = {name: KvFormat(name, *_plain(size), _INTERFACE) for name, size in TORCH_ELEMENT_BYTES.items()}
_BYTE = {name: KvFormat(name, *_plain(1), _INTERFACE) for name in ("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc")}
_PER_TOKEN_HEAD = {
    f"{name}_per_token_head": KvFormat(
        f"{name}_per_token_head",
        lambda key, value: key + value + 2 * _FLOAT32,
        lambda elements: elements + 2 * _FLOAT32,
        _TRITON,
    )
    for name in ("int8", "fp8")
}

# Formats of vLLM's --kv-cache-dtype (config/cache.py CacheDType, 0.32), without `auto`.
VLLM_KV_FORMATS: dict[str, KvFormat] = {
    **_FLOAT,
    **_BYTE,
    **_PER_TOKEN_HEAD,
    "int4_per_token_head": KvFormat(
        "int4_per_token_head",
        lambda key, value: key // 2 + value // 2 + 2 * _FLOAT32,
        lambda elements: elements // 2 + 2 * _FLOAT32,
        _TRITON,
    ),
    # 512 elements of 8 bits, 4 scales of 4 bytes, 64 rope elements of 16 bits
    "fp8_ds_mla": KvFormat("fp8_ds_mla", _plain(1)[0], lambda _elements: 656, _MLA),
    "nvfp4_ds_mla": KvFormat("nvfp4_ds_mla", _plain(1)[0], lambda _elements: 352, _MLA),
    "nvfp4": KvFormat(
        "nvfp4", lambda key, value: _nvfp4_side(key) + _nvfp4_side(value), None,
        "vLLM 0.32, utils/torch_utils.py nvfp4_kv_cache_full_dim",
    ),
    "nvfp4_4over6": KvFormat(
        "nvfp4_4over6", lambda key, value: _nvfp4_side(key) + _nvfp4_side(value), None,
        "vLLM 0.32, utils/torch_utils.py nvfp4_kv_cache_full_dim",
    ),
    "turboquant_k8v4": KvFormat("turboquant_k8v4", _turboquant(8, 4), None, _TURBO),
    "turboquant_4bit_nc": KvFormat("turboquant_4bit_nc", _turboquant(4, 4), None, _TURBO),
    "turboquant_k3v4_nc": KvFormat("turboquant_k3v4_nc", _turboquant(3, 4), None, _TURBO),
    "turboquant_3bit_nc": KvFormat("turboquant_3bit_nc", _turboquant(3, 3), None, _TURBO),
    "ultraquant_4bit": KvFormat(
        "ultraquant_4bit", _ultraquant, None, "vLLM 0.32, v1/attention/ops/ultraquant/format.py"
    ),
}  # fmt: skip

# What a checkpoint may ask for by itself (modelopt's kv_cache_quant_algo; vLLM 0.32, utils/torch_utils.py).
_CHECKPOINT_ASKS = {"fp8": "fp8_e4m3", "nvfp4": "nvfp4"}


def model_run_dtype(asked: str | None, checkpoint: str | None) -> tuple[str, str | None]:
    """The type a torch engine runs a model in, and the assumption made, if any.

    asked: --dtype; `auto` or None: the checkpoint's, float32 cast down to bfloat16 (vLLM 0.32,
    config/model.py _resolve_auto_dtype). Raises SettingError for a type that is not known.
    """
    name = (asked or "auto").removeprefix("torch.")
    assumption = None
    if name == "auto":
        name = (checkpoint or "").removeprefix("torch.")
        if not name:
            name, assumption = "bfloat16", "The model states no dtype: bfloat16 is assumed."
        elif name in ("float32", "float"):
            name, assumption = (
                "bfloat16",
                "A float32 checkpoint runs in bfloat16 unless --dtype says otherwise.",
            )
    if name not in TORCH_ELEMENT_BYTES:
        known = ", ".join(sorted(TORCH_ELEMENT_BYTES))
        raise SettingError(f"--dtype {name!r} is not known; known: auto, {known}")
    return name, assumption


def vllm_kv_format(
    kv_cache_dtype: str, *, model_dtype: str, checkpoint_asks: str | None = None
) -> tuple[KvFormat, str | None]:
    """How vLLM stores K and V under --kv-cache-dtype, and the assumption made, if any.

    `auto` is what the checkpoint asks for, else the type the model runs in. Raises SettingError for a
    format that is not known.
    """
    name, assumption = kv_cache_dtype, None
    if name == "auto":
        if checkpoint_asks is None:
            name = model_dtype
        elif checkpoint_asks in VLLM_KV_FORMATS and checkpoint_asks not in _CHECKPOINT_ASKS:
            name = checkpoint_asks
        elif checkpoint_asks.lower() in _CHECKPOINT_ASKS:
            name = _CHECKPOINT_ASKS[checkpoint_asks.lower()]
        else:
            name = model_dtype
            assumption = (
                f"The checkpoint asks for a K/V cache of type {checkpoint_asks!r}, which vLLM ignores: "
                f"{model_dtype} is assumed."
            )
    if name not in VLLM_KV_FORMATS:
        known = ", ".join(sorted(VLLM_KV_FORMATS))
        raise SettingError(f"--kv-cache-dtype {name!r} has no layout known here; known: auto, {known}")
    return VLLM_KV_FORMATS[name], assumption


def ggml_element_bytes(setting: str, name: str) -> Fraction:
    """Bytes of one element of a llama.cpp cache type. setting: the flag it was given by, for the error.

    Raises SettingError for a type that llama.cpp does not take for its cache.
    """
    if name.lower() not in GGML_ELEMENT_BYTES:
        known = ", ".join(GGML_ELEMENT_BYTES)
        raise SettingError(f"{setting} {name!r} is not a cache type; known: {known}")
    return GGML_ELEMENT_BYTES[name.lower()]
