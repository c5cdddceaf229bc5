"""What a version of vLLM makes of weights on a kind of GPU, and what it holds beside them from the load on.

All of it is in the engine's own figure of what loading took, which is what PyTorch has allocated for it
(vLLM 0.19, v1/worker/gpu_model_runner.py load_model, utils/mem_utils.py DeviceMemoryProfiler).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from brimline.estimate import Estimate, exact
from brimline.footprint.architecture import (
    Architecture,
    RotaryTable,
    has_latents,
    kept_with_architecture,
)
from brimline.footprint.constants import MIB, parse_version
from brimline.footprint.cuda_allocator import allocated_bytes
from brimline.footprint.vllm_cache import NEWEST_VERSION
from brimline.footprint.weights import (
    VLLM_RULES,
    Mxfp4Layout,
    RankWeights,
    Sharding,
    WeightRules,
    tensor_sizes,
)

_HOPPER = re.compile(r"\bg?h\d+", re.IGNORECASE)
_BLACKWELL = re.compile(r"\bg?b\d+", re.IGNORECASE)
_NOT_NVIDIA = re.compile(r"\bmi\d+|\barc\b|\bgaudi", re.IGNORECASE)

# --- Experts of MXFP4: fused_moe/oracle/mxfp4.py (quantization/mxfp4.py up to 0.18), select_mxfp4_moe_backend
# and mxfp4_round_up_hidden_size_and_intermediate_size; third_party/triton_kernels,
# tensor_details/layout_details/hopper_value.py and hopper_scale.py.

# Triton's kernels on Hopper. Values are padded in both ways from 0.17 to 0.21; the loaded scales, of which no
# use is made any more, are deleted since 0.25.
_TRITON = Mxfp4Layout(
    intermediate=64, inputs=64, outputs=16, scale_groups=2, scale_outputs=256, keeps_scales=True, bias_bytes=4
)
_PADS_VALUES, _PADS_NO_VALUES, _DELETES_SCALES = (0, 17), (0, 22), (0, 25)
# FlashInfer's kernels of TensorRT-LLM on Blackwell: to 256 up to 0.25 at least, to 128 in 0.29.
_TRTLLM = Mxfp4Layout(intermediate=256, hidden=256, bias_bytes=4)
_NARROWER_TRTLLM = (0, 29)
# All other NVIDIA GPUs.
_MARLIN = Mxfp4Layout(intermediate=128, hidden=256)


def vllm_rules(version: str | None, gpu: str) -> WeightRules:
    """The rules of a version (None: the newest) on a GPU by its name; empty where none is named."""
    if _NOT_NVIDIA.search(gpu):
        return VLLM_RULES
    low, _, high = VLLM_RULES.mxfp4
    return replace(VLLM_RULES, mxfp4=(low, _mxfp4(_version(version), gpu), high))


def _version(version: str | None) -> tuple[int, ...]:
    return parse_version(version) if version else NEWEST_VERSION


def _mxfp4(version: tuple[int, ...], gpu: str) -> Mxfp4Layout:
    if _BLACKWELL.search(gpu):
        return _TRTLLM if version < _NARROWER_TRTLLM else replace(_TRTLLM, intermediate=128)
    if gpu and not _HOPPER.search(gpu):
        return _MARLIN
    layout = replace(_TRITON, keeps_scales=version < _DELETES_SCALES)
    if _PADS_VALUES <= version < _PADS_NO_VALUES:
        return replace(layout, inputs=128, outputs=64)
    return layout


# --- Encoders

# PixtralForConditionalGeneration, the class of Mistral's own format, has plain linear layers up to 0.19
# (models/pixtral.py); since 0.20 it splits them.
_SPLITS_MISTRAL_ENCODERS = (0, 20)


def holds_encoder_whole(architecture: Architecture, config_format: str | None, version: str | None) -> bool:
    """Whether each rank holds all of an image encoder because the model is taken in Mistral's own format.

    config_format: --config-format; None for auto.
    """
    is_taken = config_format == "mistral" or (config_format is None and architecture.mistral_format)
    sees = any(encoder.kind == "vision" for encoder in architecture.encoders)
    return sees and is_taken and _version(version) < _SPLITS_MISTRAL_ENCODERS


# --- Beside the weights

# Tensors that a backend of MLA allocates when its module is read; and all that a GPU knows are read in order
# to choose one (platforms/cuda.py get_valid_backends). FlashInfer's allocates when it is used since 0.25.
_MLA_WORKSPACE_BYTES = 128 * MIB
_ALLOCATES_LATER = (0, 25)

# What the allocator may cut while a model is loaded (v1/worker/gpu_worker.py _scoped_allocator_max_split).
_LIMITS_SPLITS, _MAX_SPLIT_BYTES = (0, 21), 20 * MIB

ROTARY, MLA_WORKSPACE, ALLOCATOR = "rotary tables", "MLA workspace", "allocator"


def vllm_buffers(
    architecture: Architecture,
    weights: RankWeights,
    *,
    sharding: Sharding,
    element_bytes: int,
    rules: WeightRules,
    version: str | None,
    gpu: str,
) -> Mapping[str, Estimate]:
    """What a rank holds beside its weights, by name. Raises FootprintError as tensor_sizes does."""
    found: dict[str, Estimate] = {}
    tables = rotary_bytes(architecture, element_bytes)
    if tables:
        found[ROTARY] = exact(
            sum(tables), "tables of rotary positions (vLLM 0.19, layers/rotary_embedding/base.py)"
        )
    workspace = _mla_workspace_bytes(architecture, _version(version), gpu)
    if workspace:
        found[MLA_WORKSPACE] = exact(
            workspace, "workspace of MLA backends (vLLM 0.19, v1/attention/backends/mla/flashinfer_mla.py)"
        )
    rounded = _rounding_bytes(
        architecture,
        weights.layers,
        sharding=sharding,
        element_bytes=element_bytes,
        rules=rules,
        max_split_bytes=None if _version(version) < _LIMITS_SPLITS else _MAX_SPLIT_BYTES,
    )
    if rounded:
        # None of it where the allocator's segments grow (expandable_segments).
        found[ALLOCATOR] = Estimate(
            0, rounded, rounded, "blocks of PyTorch's allocator (c10/cuda/CUDACachingAllocator.cpp)"
        )
    return found


@kept_with_architecture
def _rounding_bytes(
    architecture: Architecture,
    layers: range,
    *,
    sharding: Sharding,
    element_bytes: int,
    rules: WeightRules,
    max_split_bytes: int | None,
) -> int:
    """Bytes allocated beyond the sizes of a rank's tensors. Rotary tables come with the first layer."""
    sizes = tensor_sizes(architecture, layers, sharding=sharding, element_bytes=element_bytes, rules=rules)
    sizes = (*sizes[:1], *rotary_bytes(architecture, element_bytes), *sizes[1:])
    return allocated_bytes(sizes, max_split_bytes=max_split_bytes) - sum(sizes)


def rotary_rows(table: RotaryTable) -> int:
    """Positions of a table. Videos count theirs by seconds: four times as many (mrope.py)."""
    return table.rows * (4 if table.sections else 1)


def rotary_bytes(architecture: Architecture, element_bytes: int) -> tuple[int, ...]:
    """Bytes of each table of rotary positions, whole on every rank; none where they are not known."""
    return tuple(
        rotary_rows(table) * table.width * (table.element_bytes or element_bytes)
        for table in architecture.rotary or ()
    )


def _mla_workspace_bytes(architecture: Architecture, version: tuple[int, ...], gpu: str) -> int:
    if not has_latents(architecture) or _NOT_NVIDIA.search(gpu):
        return 0
    if _BLACKWELL.search(gpu):  # CUTLASS's, too (cutlass_mla.py g_sm100_workspace)
        return 2 * _MLA_WORKSPACE_BYTES
    return _MLA_WORKSPACE_BYTES if version < _ALLOCATES_LATER else 0
