"""vLLM under Ray Serve LLM, on the page of Ray's agent; not tested against a live server.

Names: vLLM's with `ray_` before them, spelled `ray_vllm:` (a page of Ray 2.32) or `ray_vllm_` (newer Ray,
which replaces the colon). Ray adds labels of replica, worker, node and session, which are new after every
start; they are dropped, and the replicas of a model on the page count together: counts summed, ratios by the
fullest. The page's process_start_time_seconds is the agent's, not the engine's. A page of Ray alone is no
engine.
"""

from __future__ import annotations

import dataclasses
import itertools

import msgspec

from brimline.engines import vllm
from brimline.engines.adapter import Adapter, Evidence
from brimline.engines.families import Quantity, Scalar, spelled
from brimline.exposition_text import Page, Sample
from brimline.readings import EngineReading


def _rays(name: str) -> tuple[str, ...]:
    """vLLM's name as Ray spells it, older and newer."""
    return spelled(name, f"ray_{name}"), spelled(name, f"ray_{name.replace(':', '_')}")


TABLE: dict[str, Quantity] = {
    quantity: dataclasses.replace(source, names=tuple(one for name in source.names for one in _rays(name)))
    for quantity, source in vllm.TABLE.items()
}
ELSEWHERE = {
    quantity: f"{source}; where the page holds one model and one pool"
    for quantity, source in vllm.ELSEWHERE.items()
    if quantity.startswith("kv_cache_")
}
_NAMES = sorted(name for name in map(bytes.decode, vllm.WANTED) if name.startswith("vllm:"))
_SPELLINGS = {name: _rays(name) for name in _NAMES}
WANTED = frozenset(spelling.encode() for spellings in _SPELLINGS.values() for spelling in spellings)

# The labels that vLLM's families carry; all others are Ray's.
_KEPT = frozenset({"engine", "finished_reason", "le", "model_name", "reason", "sleep_state"})
_BY_MAX = {vllm.SLEEP_STATE}.union(
    *(quantity.names for quantity in vllm.TABLE.values() if isinstance(quantity, Scalar) and quantity.ratio)
)


def _combined(name: str, samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
    """The rows without Ray's labels, those that are then alike as one."""
    rows: dict[tuple[tuple[str, str], ...], list[float]] = {}
    for sample in samples:
        labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k in _KEPT))
        rows.setdefault(labels, []).append(sample.value)
    combine = max if name in _BY_MAX else sum
    return tuple(Sample(dict(labels), float(combine(values))) for labels, values in rows.items())


def _as_vllm_page(page: Page) -> Page:
    found = {name: next(filter(None, map(page.get, spellings)), ()) for name, spellings in _SPELLINGS.items()}
    samples = {name: _combined(name, rows) for name, rows in found.items() if rows}
    # The row of the pool names no model: whose it is shows only where the page holds one.
    pools = found[vllm.CONFIG_INFO]
    rows = itertools.chain.from_iterable(samples.values())
    models = {row.labels["model_name"] for row in rows if "model_name" in row.labels}
    samples.pop(vllm.CONFIG_INFO, None)
    if len(pools) == 1 and len(models) == 1:
        samples[vllm.CONFIG_INFO] = pools
    return msgspec.structs.replace(page, samples=samples)


def read(evidence: Evidence) -> EngineReading:
    """What the vLLM engines under a Ray agent say of themselves."""
    return msgspec.structs.replace(vllm.read(Evidence(_as_vllm_page(evidence.page))), engine="ray")


ADAPTER = Adapter(
    name="ray",
    versions="2.32 to 2026",
    prefixes=("ray_vllm:", "ray_vllm_"),
    table=TABLE,
    elsewhere=ELSEWHERE,
    title="Ray Serve LLM",
    wanted=WANTED,
    read=read,
)
