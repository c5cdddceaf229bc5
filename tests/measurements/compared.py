"""Public measurements of servers, beside what the predictor says of the same servers.

The YAML files of this folder hold the shapes of models and what engines said of their memory. Predicted are

- the weights of the fullest GPU;
- the K/V pool, twice: by the table of constants, and as on a calibrated server, where every constant was
  measured on runs of other models alone (leave-one-out);
- blocks, tokens and concurrency of a pool of the logged size: exact, but for the rounding of the log.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from brimline.estimate import exact
from brimline.footprint import constants
from brimline.footprint.activations import (
    BatchSettings,
    activations,
    forward_bytes,
    hidden_states_bytes,
    moe_workspace_bytes,
)
from brimline.footprint.architecture import Architecture
from brimline.footprint.calibration import Calibration
from brimline.footprint.constants import GIB
from brimline.footprint.gpus import Gpu, find_gpu
from brimline.footprint.hf_config import architecture_of_config
from brimline.footprint.predict import Model, predict
from brimline.readings import Footprint

HERE = Path(__file__).parent
_LISTS = ("vllm-0.19.0.yaml", "vllm.yaml", "other-engines.yaml")
# How far a prediction may be off: weights against the measured ones, the pool against the bytes of the card.
WEIGHTS_BAR, POOL_BAR = 0.01, 0.005
# Logs round to a hundredth of a GiB.
ROUNDING_BYTES = math.ceil(0.005 * GIB)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """One server. common: launch settings that it shares with its list; own: those of this run alone.

    visible_gib: what CUDA showed of its GPU, where it is told. measured: what the engine said, by the names
    of the columns; sizes in GiB.
    """

    model: str
    engine: str
    version: str
    gpu: str
    visible_gib: float | None
    common: Mapping[str, str]
    own: Mapping[str, str]
    measured: Mapping[str, float]
    source: str

    @property
    def settings(self) -> dict[str, str]:
        return {**self.common, **self.own}

    @property
    def family(self) -> str:
        """What must not teach the constants that this run is asked for: models of the same vocabulary."""
        return str(architecture(self.model).vocabulary)

    def count(self, setting: str) -> int:
        return int(self.settings.get(setting, "1"))


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@cache
def _models() -> dict[str, dict[str, Any]]:
    listed: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "models.yaml").read_text())
    return listed


def config(model: str) -> dict[str, Any]:
    """The config.json of a model, as far as it decides memory."""
    stated = _models()[model]
    return {**(config(stated["like"]) if "like" in stated else {}), **stated["config"]}


def published_parameters() -> dict[str, int]:
    """The number of weights of each model whose publisher states it."""
    return {name: stated["parameters"] for name, stated in _models().items() if "parameters" in stated}


@cache
def architecture(model: str) -> Architecture:
    read = architecture_of_config(config(model), "config.json")
    return replace(read, mistral_format=_models()[model].get("mistral_format", False))


@cache
def runs() -> tuple[Run, ...]:
    """Every run of the folder's lists."""
    lists = [listed for name in _LISTS for listed in yaml.safe_load((HERE / name).read_text())]
    return tuple(run for listed in lists for run in _runs_of(listed))


def _runs_of(listed: Mapping[str, Any]) -> Iterator[Run]:
    for row in listed["runs"]:
        model, own, *values = row
        measured = dict(zip(listed["columns"][2:], values, strict=True))
        yield Run(
            model=model,
            engine=listed["engine"],
            version=listed["version"],
            gpu=listed["gpu"],
            visible_gib=listed.get("visible_gib"),
            common={name: _text(value) for name, value in listed["launch"].items()},
            own={name: _text(value) for name, value in own.items()},
            measured={name: value for name, value in measured.items() if value is not None},
            source=listed["source"],
        )


@cache
def _beyond() -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = yaml.safe_load((HERE / "beyond.yaml").read_text())
    return listed


def why_beyond(run: Run, quantity: str) -> str | None:
    """Why a prediction of weights or pool is known to miss its bar; None where it is to meet it."""
    for case in _beyond():
        own = {name: _text(value) for name, value in case.get("launch", {}).items()}
        if case["model"] == run.model and case.get("version", run.version) == run.version and own == run.own:
            return str(case[quantity]) if quantity in case else None
    return None


def reasons() -> set[str]:
    """Every reason that stands in the list of what is beyond a bar."""
    return {str(case[quantity]) for case in _beyond() for quantity in ("weights", "pool") if quantity in case}


def having(*columns: str, engine: str = "vllm") -> list[Run]:
    """The runs of an engine that measured all of these."""
    return [run for run in runs() if run.engine == engine and set(columns) <= set(run.measured)]


# --- predictions


def _gpu(run: Run) -> Gpu | None:
    if "CPU" in run.gpu:
        return None
    gpu = find_gpu(run.gpu)
    if run.visible_gib is None:
        return gpu
    return replace(gpu, visible_bytes=exact(run.visible_gib * GIB, "its log"))


def footprint(run: Run, calibration: Calibration | None = None, **changed: object) -> Footprint:
    """The prediction of a run, by the product's own way."""
    settings = {**run.settings, **{name: _text(value) for name, value in changed.items()}}
    return predict(
        run.engine,
        Model(architecture(run.model)),
        settings,
        version=run.version,
        gpu=_gpu(run),
        calibration=calibration,
    )


def weights_off(run: Run) -> float:
    """(predicted - measured) / measured."""
    measured = run.measured["weights_gib"] * GIB
    return (footprint(run).fullest.components["weights"].expected - measured) / measured


def pool_off(run: Run, predicted: Footprint) -> float:
    """(predicted - measured) / bytes of the card: the pool is what is left of large terms."""
    assert run.visible_gib is not None
    return (pool_bytes(predicted) / GIB - run.measured["pool_gib"]) / run.visible_gib


def pool_bytes(predicted: Footprint) -> int:
    """The K/V pool of the fullest GPU."""
    return max(rank.components["kv_cache"].expected for rank in predicted.ranks)


def blocks_of_logged_pool(run: Run) -> range:
    """Blocks of a pool of the logged size; several, as the log rounds it."""
    size = round(run.measured["pool_gib"] * GIB)
    few, many = (
        footprint(run, kv_cache_memory_bytes=size + error).kv_cache.num_blocks
        for error in (-ROUNDING_BYTES, ROUNDING_BYTES)
    )
    assert few is not None
    assert many is not None
    return range(few.expected, many.expected + 1)


def exact_cache(run: Run) -> tuple[int, int, float]:
    """Blocks, tokens and concurrency of a server whose pool is set."""
    cache = footprint(run).kv_cache
    assert cache.num_blocks is not None
    assert cache.capacity_tokens is not None
    assert cache.max_concurrency_requests is not None
    return cache.num_blocks.expected, cache.capacity_tokens, cache.max_concurrency_requests


def with_blocks(run: Run, blocks: int) -> Footprint:
    """The prediction for a pool of so many blocks."""
    return footprint(run, num_gpu_blocks_override=blocks)


# --- constants from the runs of other models


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """Constants as runs of other models measured them; None where none of them tells one."""

    sampler_factor: float | None
    forward_factor: float | None
    experts_factor: float | None
    non_torch_bytes: int | None


def _batch(run: Run) -> BatchSettings:
    return BatchSettings(
        max_num_batched_tokens=run.count("max_num_batched_tokens"),
        max_num_seqs=run.count("max_num_seqs"),
        element_bytes=4 if run.settings.get("dtype") == "float32" else 2,
        tensor_parallel=run.count("tensor_parallel_size"),
        pipeline_parallel=run.count("pipeline_parallel_size"),
    )


@cache
def _kind(run: Run) -> str:
    """Which constant decides a run's activation peak: of the sampler, the forward pass or the experts."""
    model, batch = architecture(run.model), _batch(run)
    if model.encoders:
        return "encoder"
    if moe_workspace_bytes(model, batch):
        is_mxfp4 = model.quantization is not None and model.quantization.method == "mxfp4"
        return "experts" if not is_mxfp4 else "sampler"
    peak = activations(model, batch, version=run.version)
    return "sampler" if peak.sampler.expected >= peak.forward.expected else "forward"


@cache
def _forward(run: Run) -> int:
    return forward_bytes(architecture(run.model), _batch(run), version=run.version).expected


def _logits_bytes(run: Run) -> int:
    return 4 * run.count("max_num_seqs") * architecture(run.model).vocabulary


def _left_of_peak(run: Run) -> float:
    return run.measured["activations_gib"] * GIB - hidden_states_bytes(architecture(run.model), _batch(run))


def _mean(values: Sequence[float]) -> float | None:
    return mean(values) if values else None


def _shape(run: Run) -> tuple[int, bool]:
    """How many GPUs share a layer, and whether there are stages: what library memory depends on."""
    return run.count("tensor_parallel_size"), run.count("pipeline_parallel_size") > 1


def _treated_alike(one: Run, other: Run, name: constants.Name) -> bool:
    """Whether the table has one row for the versions of both."""
    return constants.constant(name, engine="vllm", version=one.version) == constants.constant(
        name, engine="vllm", version=other.version
    )


def learned_from_others(run: Run, of: Sequence[Run]) -> Learned:
    """What runs on the same kind of card, but of models with other vocabularies, measured.

    Only versions that the table treats alike teach each other.
    """
    others = [other for other in of if other.gpu == run.gpu and other.family != run.family]
    told = [
        other
        for other in others
        if "activations_gib" in other.measured and _treated_alike(run, other, "sampler_bytes_factor")
    ]
    sampler = _mean([_left_of_peak(one) / _logits_bytes(one) for one in told if _kind(one) == "sampler"])
    plain = constants.constant("forward_factor", engine="vllm", version=run.version).expected
    forward = _mean(
        [
            one.measured["activations_gib"] * GIB * plain / _forward(one)
            for one in told
            if _kind(one) == "forward"
        ]
    )
    experts = None
    if sampler is not None:
        experts = _mean(
            [
                (_left_of_peak(one) - sampler * _logits_bytes(one))
                / moe_workspace_bytes(architecture(one.model), _batch(one))
                for one in told
                if _kind(one) == "experts"
            ]
        )
    alike = [
        other.measured["non_torch_gib"]
        for other in others
        if "non_torch_gib" in other.measured
        and _treated_alike(run, other, "non_torch_bytes")
        and _shape(other) == _shape(run)
    ]
    return Learned(
        sampler_factor=sampler,
        forward_factor=forward,
        experts_factor=experts,
        non_torch_bytes=round(mean(alike) * GIB) if alike else None,
    )


@contextmanager
def _table_with(learned: Learned) -> Iterator[None]:
    """The table of constants with what was learned, for those that a calibration does not carry."""
    changes = {"forward_factor": learned.forward_factor, "moe_workspace_factor": learned.experts_factor}
    before = constants.CONSTANTS
    constants.CONSTANTS = tuple(
        replace(row, low=value, expected=value, high=value)
        if (value := changes.get(row.name)) is not None and row.variant != "mxfp4"
        else row
        for row in before
    )
    try:
        yield
    finally:
        constants.CONSTANTS = before


def calibrated_by_others(run: Run, of: Sequence[Run]) -> Footprint:
    """The prediction of a run on a server that runs of other models calibrated (leave-one-out)."""
    learned = learned_from_others(run, of)
    calibration = Calibration(
        engine=run.engine,
        version=run.version,
        gpu=find_gpu(run.gpu).name,
        sampler_bytes_factor=learned.sampler_factor,
        non_torch_bytes=learned.non_torch_bytes,
    )
    with _table_with(learned):
        return footprint(run, calibration)


def activations_off(run: Run, of: Sequence[Run]) -> float | None:
    """(predicted - measured) / measured of the peak; None where no other run tells the sampler's constant."""
    if learned_from_others(run, of).sampler_factor is None:
        return None
    measured = run.measured["activations_gib"] * GIB
    peak = calibrated_by_others(run, of).fullest.components["activations"].expected
    return (peak - measured) / measured


# --- engines of which few measurements are public


def quantities(run: Run, predicted: Footprint) -> Iterator[tuple[str, float, float, str]]:
    """What a run measured, the measured and the predicted size, and their unit."""
    cache, measured = predicted.kv_cache, run.measured
    if "weights_gib" in measured:
        weights = predicted.fullest.components["weights"].expected
        yield "weights", measured["weights_gib"], weights / GIB, "GiB"
    if {"tokens", "kv_gib"} <= set(measured):
        held = measured["tokens"] * cache.bytes_per_token
        yield f"{measured['tokens']:,} tokens", measured["kv_gib"], held / GIB, "GiB"
        if cache.capacity_tokens is not None:
            yield "tokens of the pool", measured["tokens"], cache.capacity_tokens, "tokens"
    elif "kv_gib" in measured:
        pools = [rank.components.get("kv_cache") or rank.host["kv_cache"] for rank in predicted.ranks]
        yield "K/V cache", measured["kv_gib"], sum(pool.expected for pool in pools) / GIB, "GiB"
