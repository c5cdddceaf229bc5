"""How many bytes PyTorch counts as allocated on a GPU for tensors of given sizes.

Its allocator asks the driver for segments and cuts them into blocks; what is left of a segment stays part of
the block where it is no more than 1 MiB (PyTorch 2, c10/cuda/CUDACachingAllocator.cpp, functions
get_allocation_size and should_split). A tensor of 75 MiB takes a segment of 76 and all of it; one of 74.5
leaves 1.5 for others.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from brimline.footprint.constants import MIB

_LEAST_BLOCK_BYTES = 512
_SMALL_BYTES = MIB
_SEGMENT_BYTES, _OWN_SEGMENT_BYTES = 20 * MIB, 10 * MIB
_SEGMENT_MULTIPLE_BYTES = 2 * MIB


def allocated_bytes(sizes: Iterable[int], *, max_split_bytes: int | None = None) -> int:
    """Bytes counted for tensors that are allocated in this order, none of them freed.

    max_split_bytes: blocks from this size on are not cut (max_split_size_mb); None: all are.
    """
    free: list[int] = []  # of each block that is left of a segment, sorted
    allocated = 0
    for size in sizes:
        wanted = -(-size // _LEAST_BLOCK_BYTES) * _LEAST_BLOCK_BYTES
        if wanted <= _SMALL_BYTES:  # from segments of their own kind, which are always cut
            allocated += wanted
            continue
        best = bisect_left(free, wanted)
        block = free.pop(best) if best < len(free) else _segment_bytes(wanted)
        left = block - wanted
        if left > _SMALL_BYTES and (max_split_bytes is None or wanted < max_split_bytes):
            insort(free, left)
            allocated += wanted
        else:
            allocated += block
    return allocated


def _segment_bytes(wanted: int) -> int:
    if wanted < _OWN_SEGMENT_BYTES:
        return _SEGMENT_BYTES
    return -(-wanted // _SEGMENT_MULTIPLE_BYTES) * _SEGMENT_MULTIPLE_BYTES
