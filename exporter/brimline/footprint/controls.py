"""The settings that a person turns when planning a server, for each engine that is predicted.

Data only, so that a page can offer them without the predictor. Whatever is not listed here cannot be set from
a page: some flags of engines are paths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["context", "kv_dtype", "tensor_parallel", "sequences", "memory_ratio", "quantization"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """One setting. name: the engine's own, with underscores. choices: the words it may be; empty for numbers.

    least, most: of a number; None where the model says it.
    """

    role: Role
    name: str
    title: str
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None


# --quantization as the predictor takes it for a model that is stored unquantized.
_TORCH_FORMATS = ("fp8", "int8", "awq", "gptq", "bitsandbytes", "nvfp4", "mxfp4")
_GGML_CACHE_TYPES = ("f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")

# --kv-cache-dtype (vLLM 0.32, config/cache.py CacheDType) without aliases.
_VLLM = (
    Control(role="context", name="max_model_len", title="Context length"),
    Control(
        role="kv_dtype",
        name="kv_cache_dtype",
        title="KV cache type",
        choices=(
            "bfloat16",
            "fp8",
            "fp8_per_token_head",
            "int8_per_token_head",
            "int4_per_token_head",
            "nvfp4",
            "turboquant_k8v4",
            "turboquant_4bit_nc",
            "fp8_ds_mla",
            "nvfp4_ds_mla",
        ),
    ),
    Control(role="tensor_parallel", name="tensor_parallel_size", title="Tensor parallel size"),
    Control(role="sequences", name="max_num_seqs", title="Requests at once, at most", least=1, most=1024),
    Control(
        role="memory_ratio",
        name="gpu_memory_utilization",
        title="GPU memory utilization",
        least=0.3,
        most=0.99,
    ),
    Control(
        role="quantization",
        name="quantization",
        title="Quantize the weights",
        choices=_TORCH_FORMATS,
    ),
)

# SGLang 0.5.23, arg_groups/fields.
_SGLANG = (
    Control(role="context", name="context_length", title="Context length"),
    Control(
        role="kv_dtype",
        name="kv_cache_dtype",
        title="KV cache type",
        choices=("bfloat16", "fp8_e4m3", "fp8_e5m2", "mxfp8", "nvfp4"),
    ),
    Control(role="tensor_parallel", name="tp_size", title="Tensor parallel size"),
    Control(
        role="sequences", name="max_running_requests", title="Requests at once, at most", least=1, most=4096
    ),
    Control(
        role="memory_ratio", name="mem_fraction_static", title="Static memory fraction", least=0.3, most=0.98
    ),
    Control(role="quantization", name="quantization", title="Quantize the weights", choices=_TORCH_FORMATS),
)

# llama.cpp, common/arg.cpp. Its context is of all slots together.
_LLAMACPP = (
    Control(role="context", name="ctx_size", title="Context of all slots"),
    Control(role="kv_dtype", name="cache_type_k", title="Type of keys", choices=_GGML_CACHE_TYPES),
    Control(role="kv_dtype", name="cache_type_v", title="Type of values", choices=_GGML_CACHE_TYPES),
    Control(role="sequences", name="parallel", title="Slots", least=1, most=64),
    Control(
        role="quantization",
        name="quantization",
        title="Quantize the weights",
        choices=("q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs", "q3_k_m", "q2_k"),
    ),
)

# TensorRT-LLM 1.0, commands/serve.py.
_TRTLLM = (
    Control(role="context", name="max_seq_len", title="Context length"),
    Control(role="kv_dtype", name="kv_cache_dtype", title="KV cache type", choices=("fp8", "nvfp4")),
    Control(role="tensor_parallel", name="tp_size", title="Tensor parallel size"),
    Control(role="sequences", name="max_batch_size", title="Requests at once, at most", least=1, most=4096),
    Control(
        role="memory_ratio",
        name="kv_cache_free_gpu_memory_fraction",
        title="Fraction of free memory for KV",
        least=0.3,
        most=0.98,
    ),
    Control(role="quantization", name="quantization", title="Quantize the weights", choices=_TORCH_FORMATS),
)

CONTROLS: dict[str, tuple[Control, ...]] = {
    "vllm": _VLLM,
    "sglang": _SGLANG,
    "llamacpp": _LLAMACPP,
    "trtllm": _TRTLLM,
}


def control_of(engine: str, role: Role) -> Control | None:
    """The engine's setting in that role; None where it has none."""
    return next((control for control in CONTROLS.get(engine, ()) if control.role == role), None)
