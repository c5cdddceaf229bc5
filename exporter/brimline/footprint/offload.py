"""Weights and K/V cache that live in host memory: what stays on a GPU, what the host holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from brimline.errors import FootprintError, SettingError
from brimline.estimate import Estimate, between, exact
from brimline.footprint.constants import GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Offload:
    """gpu: bytes of weights left on one GPU. host: bytes of host memory, of all ranks on it together.

    transferred_bytes: what crosses to one GPU in each step.
    """

    gpu: Estimate
    host: Estimate
    transferred_bytes: int


def uva_offload(
    weights_bytes: int, cpu_offload_gib: float, *, ranks: int = 1, largest_parameter_bytes: int = 0
) -> Offload:
    """Weights under vLLM's cpu_offload_gb, which counts GiB per GPU.

    Whole parameters move until the limit is reached, so the last one goes beyond it: at most by its own size
    (vLLM 0.32, model_executor/offloader/uva.py). The host holds them for each of its ranks, pinned.
    """
    if cpu_offload_gib < 0:
        raise SettingError(f"cpu_offload_gb is {cpu_offload_gib}; it is zero or more")
    if ranks < 1 or weights_bytes < 0 or largest_parameter_bytes < 0:
        raise FootprintError("ranks start at 1, and sizes at 0")
    source = "vLLM 0.32, model_executor/offloader/uva.py"
    wanted = min(weights_bytes, round(cpu_offload_gib * GIB))
    most = min(weights_bytes, wanted + largest_parameter_bytes) if wanted else 0
    return Offload(
        gpu=between(weights_bytes - most, weights_bytes - wanted, weights_bytes - wanted, source),
        host=between(ranks * wanted, ranks * wanted, ranks * most, source),
        transferred_bytes=wanted,
    )


def prefetch_offload(
    layers_bytes: Sequence[int],
    other_bytes: int,
    *,
    group_size: int,
    offloaded_in_group: int = 1,
    prefetch_step: int = 1,
    ranks: int = 1,
) -> Offload:
    """Weights under vLLM's prefetch offloading: the last layers of each group of layers live on the host.

    A GPU keeps the rest and prefetch_step buffers of an offloaded layer (vLLM 0.32, config/offload.py and
    model_executor/offloader/prefetch.py). layers_bytes: weights of each layer on one rank. Raises
    FootprintError for settings that vLLM refuses.
    """
    if group_size < 1 or not 1 <= offloaded_in_group <= group_size:
        raise FootprintError(
            f"offload_num_in_group is {offloaded_in_group}, offload_group_size {group_size}; the first lies "
            "between 1 and the second"
        )
    if prefetch_step < 1 or ranks < 1:
        raise FootprintError("offload_prefetch_step and ranks start at 1")
    moved = [
        size
        for index, size in enumerate(layers_bytes)
        if index % group_size >= group_size - offloaded_in_group
    ]
    source = "vLLM 0.32, model_executor/offloader/prefetch.py"
    buffers = min(prefetch_step, len(moved)) * max(moved, default=0)
    kept = other_bytes + sum(layers_bytes) - sum(moved)
    return Offload(
        gpu=exact(kept + buffers, source),
        host=exact(ranks * sum(moved), source),
        transferred_bytes=sum(moved),
    )


def layerwise_offload(layers_bytes: Sequence[int], other_bytes: int, *, ranks: int = 1) -> Offload:
    """What if: every layer lives on the host, and a GPU holds the one at work and the next.

    GPU = 2 * the largest layer + what belongs to no layer; each step moves all layers.
    """
    if ranks < 1 or other_bytes < 0:
        raise FootprintError("ranks start at 1, and sizes at 0")
    source = "what if: two layers at a time on the GPU"
    held = min(2, len(layers_bytes)) * max(layers_bytes, default=0)
    return Offload(
        gpu=exact(other_bytes + held, source),
        host=exact(ranks * sum(layers_bytes), source),
        transferred_bytes=sum(layers_bytes),
    )


def offloaded_tokens_per_second(offload: Offload, link_bytes_per_second: float, batch: int = 1) -> float:
    """Ceiling of decoding, in tokens per second, that the link to the host sets: all of it crosses each step.

    Infinite where nothing crosses.
    """
    if not link_bytes_per_second > 0 or batch < 1:
        raise FootprintError("the link's bandwidth is above 0, and a batch starts at 1")
    if not offload.transferred_bytes:
        return float("inf")
    return batch * link_bytes_per_second / offload.transferred_bytes


def kv_offloading_bytes(kv_offloading_gib: float, *, ranks: int = 1) -> Estimate:
    """Host bytes of vLLM's kv_offloading_size, which counts GiB of all ranks of a replica together.

    ranks: divides it among so many GPUs (vLLM 0.32, config/cache.py, v1/kv_offload/cpu/spec.py). It takes
    nothing of a GPU.
    """
    if kv_offloading_gib < 0:
        raise FootprintError(f"kv_offloading_size is {kv_offloading_gib}; it is zero or more")
    if ranks < 1:
        raise FootprintError("ranks start at 1")
    return exact(kv_offloading_gib * GIB / ranks, "vLLM 0.32, config/cache.py kv_offloading_size")
