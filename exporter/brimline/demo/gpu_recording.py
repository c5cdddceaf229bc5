"""The recording that stands in for the GPUs of the two simulated servers.

One JSON document a line: first what the GPUs are, then what is used on each in each second. The last second
joins the first, so that the recording can be played round and round.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from brimline.demo.profiles import (
    GPU_NAME,
    GPU_RESERVED_BYTES,
    GPU_TOTAL_BYTES,
    LONG_CONTEXT,
    MAX_NUM_BATCHED_TOKENS,
    RESIDENT_GPU_BYTES,
    SHORT_CONTEXT,
    VOCABULARY,
)

LOOP_SECONDS = 240
PROFILES_BY_GPU = (SHORT_CONTEXT, LONG_CONTEXT)

# CUDA hands out memory in pages of 2 MiB, so what is used moves by no less.
PAGE_BYTES = 2 << 20
ACTIVATION_SWING_BYTES = 192 << 20  # between the trough and the peak of the load: a round figure
ACTIVATION_SPIKE_BYTES = (128 << 20, 448 << 20)
ACTIVATION_SPIKES_PER_LOOP = 9

# A request for the log-probabilities of its prompt: logits of a whole chunk in bf16 and fp32, which vLLM's
# profile run does not foresee (vLLM pull request 52054). Two seconds that a scrape every 15 s mostly
# misses.
LOGPROBS_SPIKE_BYTES = MAX_NUM_BATCHED_TOKENS * VOCABULARY * (2 + 4)
LOGPROBS_SPIKE_SECONDS = (157, 158)


def _pages(size_bytes: float) -> int:
    return round(size_bytes / PAGE_BYTES) * PAGE_BYTES


def _used_bytes(generator: random.Random, *, logprobs: bool) -> list[int]:
    """Bytes used in each second of the loop, without what the driver reserves."""
    used = []
    for second in range(LOOP_SECONDS):
        load = (1 + math.sin(2 * math.pi * second / LOOP_SECONDS)) / 2
        flicker = generator.random() * ACTIVATION_SWING_BYTES / 8
        used.append(RESIDENT_GPU_BYTES + _pages(load * ACTIVATION_SWING_BYTES + flicker))
    for second in generator.sample(range(LOOP_SECONDS), ACTIVATION_SPIKES_PER_LOOP):
        used[second] += _pages(generator.uniform(*ACTIVATION_SPIKE_BYTES))
    if logprobs:
        for second in LOGPROBS_SPIKE_SECONDS:
            used[second] += _pages(LOGPROBS_SPIKE_BYTES)
    return used


# Half an hour until the card is full; then the server is killed and starts anew.
LEAK_SECONDS = 1800
LEAK_BEGINS_SECONDS = 60
Scenario = Literal["normal", "leak"]


def recording(seed: int = 1, scenario: Scenario = "normal") -> Iterator[dict[str, Any]]:
    """The documents of the recording in order; the same for the same seed.

    scenario: in a leak the first server takes ever more beside its plan, until nothing is free; the round
    then begins again, as after a restart.
    """
    generator = random.Random(seed)
    yield {
        "brimline_gpu_recording": 1,
        "gpus": [
            {
                "uuid": profile.gpu_uuid,
                "name": GPU_NAME,
                "index": str(index),
                "driver": "simulated",
                "total_bytes": GPU_TOTAL_BYTES,
                "reserved_bytes": GPU_RESERVED_BYTES,
            }
            for index, profile in enumerate(PROFILES_BY_GPU)
        ],
    }
    used = {
        profile.gpu_uuid: _used_bytes(generator, logprobs=profile is LONG_CONTEXT)
        for profile in PROFILES_BY_GPU
    }
    for second in range(LEAK_SECONDS if scenario == "leak" else LOOP_SECONDS):
        now = {uuid: series[second % LOOP_SECONDS] for uuid, series in used.items()}
        if scenario == "leak":
            now[SHORT_CONTEXT.gpu_uuid] = _leaked(now[SHORT_CONTEXT.gpu_uuid], second)
        yield {"t": second, "used_bytes": now}


def _leaked(used_bytes: int, second: int) -> int:
    """What is used with the leak of so many seconds on top; never more than there is."""
    grown = max(0, second - LEAK_BEGINS_SECONDS) / (LEAK_SECONDS - LEAK_BEGINS_SECONDS)
    free_bytes = GPU_TOTAL_BYTES - GPU_RESERVED_BYTES - RESIDENT_GPU_BYTES
    return min(used_bytes + _pages(grown * free_bytes), GPU_TOTAL_BYTES - GPU_RESERVED_BYTES)


def write_recording(path: Path, scenario: Scenario = "normal") -> None:
    """Write the recording for `gpu: {backend: replay, path: …}`. Raises OSError."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(document) + "\n" for document in recording(scenario=scenario))
