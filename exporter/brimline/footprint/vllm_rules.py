"""Launches that vLLM itself refuses, as far as its source surely says so. Kernels are not looked at."""

from __future__ import annotations

from collections.abc import Iterator

from brimline.errors import FootprintError
from brimline.footprint.architecture import (
    Architecture,
    Attention,
    FeedForward,
    has_latents,
)
from brimline.footprint.constants import parse_version
from brimline.footprint.gpus import Gpu
from brimline.footprint.quantized_modules import schemes
from brimline.footprint.vllm_launch import VllmLaunch
from brimline.footprint.weights import Weight, layer_tensors

# Compute capability below 8.0: 7.0 and 7.5.
_WITHOUT_BFLOAT16 = ("V100", "T4")
# Attention kernels for NVIDIA and AMD GPUs take multiples of it (0.33, v1/attention/backends,
# get_supported_kernel_block_sizes; AMD's for MLA takes any). Which version asked for it first is not known.
_BLOCK_TOKENS, _BLOCKS_CHECKED_SINCE = 16, (0, 32)


def check_launch(
    architecture: Architecture, launch: VllmLaunch, gpu: Gpu | None, version: str | None
) -> None:
    """Raise FootprintError, naming the flag and the rule, for a launch that vLLM refuses."""
    _check_context_parallel(architecture, launch)
    _check_block_size(architecture, launch, version)
    _check_blocks_of_scales(architecture, launch)
    dtype = launch.dtype or ""
    if gpu is not None and dtype == "bfloat16" and gpu.name.startswith(_WITHOUT_BFLOAT16):
        raise FootprintError(
            f"--dtype bfloat16 needs compute capability 8.0, which {gpu.name} has not; write --dtype half "
            "(vLLM 0.33, platforms/cuda.py check_if_supports_dtype)"
        )


def _attention(architecture: Architecture) -> Iterator[Attention]:
    for layer in architecture.layers:
        for mixer in layer.mixers:
            if isinstance(mixer, Attention):
                yield mixer


def _check_context_parallel(architecture: Architecture, launch: VllmLaunch) -> None:
    """vLLM 0.33, config/model.py verify_with_parallel_config."""
    parts, tensor = launch.decode_context_parallel_size, launch.tensor_parallel_size
    mixers = list(_attention(architecture)) if parts > 1 else []
    if not mixers or has_latents(architecture):
        return
    heads = max(mixer.kv_heads for mixer in mixers)
    if tensor <= heads:
        raise FootprintError(
            f"--decode-context-parallel-size {parts} needs --tensor-parallel-size above the model's {heads} "
            f"K/V heads, and {tensor} is given (vLLM, config/model.py)"
        )
    if parts > tensor // heads:
        raise FootprintError(
            f"--decode-context-parallel-size {parts} is more than {tensor // heads}, the ranks of "
            f"--tensor-parallel-size {tensor} that share one of {heads} K/V heads (vLLM, config/model.py)"
        )


def _check_block_size(architecture: Architecture, launch: VllmLaunch, version: str | None) -> None:
    size = launch.block_size
    if size is None or size % _BLOCK_TOKENS == 0 or has_latents(architecture):
        return
    if next(_attention(architecture), None) is None:
        return
    if version is None or parse_version(version) >= _BLOCKS_CHECKED_SINCE:
        raise FootprintError(
            f"--block-size {size}: attention kernels take multiples of {_BLOCK_TOKENS} (vLLM 0.33, "
            "v1/attention/backends, get_supported_kernel_block_sizes)"
        )


def _check_blocks_of_scales(architecture: Architecture, launch: VllmLaunch) -> None:
    """Rows and columns that share a scale are not cut by tensor parallelism, but among experts.

    vLLM 0.33, quantization/utils/fp8_utils.py validate_fp8_block_shape; experts are refined or padded
    (fused_moe/oracle/fp8.py resolve_fp8_moe_weight_block_shape).
    """
    form, ranks = architecture.quantization, launch.tensor_parallel_size
    if form is None or form.block is None or form.method != "fp8" or ranks == 1:
        return
    rows, columns = form.block
    known = schemes(form, False)
    first = {layer: index for index, layer in reversed(list(enumerate(architecture.layers)))}
    for layer, index in first.items():
        if not isinstance(layer.feed_forward, FeedForward):
            continue
        for weight in layer_tensors(layer, architecture.hidden):
            if (
                weight.part != "mlp"
                or known.of(f"model.layers.{index}.{weight.name}", "mlp", linear=True) is None
            ):
                continue
            width, block = _split_width(weight), rows if weight.split == "outputs" else columns
            if width and (width % ranks or width // ranks % block):
                raise FootprintError(
                    f"--tensor-parallel-size {ranks}: {width:,} of {weight.name} are {width // ranks:,} on "
                    f"each rank, no multiple of the {block} that share a scale in FP8 (vLLM, "
                    "quantization/utils/fp8_utils.py validate_fp8_block_shape)"
                )


def _split_width(weight: Weight) -> int:
    if not weight.linear or weight.inputs == 1:
        return 0
    return {"outputs": weight.outputs, "inputs": weight.inputs}.get(weight.split, 0)
