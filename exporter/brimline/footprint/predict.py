"""The predicted memory of a server of any known engine, and its published JSON form."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from brimline.errors import FootprintError
from brimline.estimate import Estimate
from brimline.footprint.architecture import Architecture
from brimline.footprint.calibration import Calibration
from brimline.footprint.constants import parse_version
from brimline.footprint.gpus import Gpu
from brimline.footprint.hf_config import (
    architecture_of_config,
    architecture_of_file,
    read_architecture,
    read_model_config,
)
from brimline.footprint.settings import Settings, mapping
from brimline.footprint.throughput import DecodeCeiling, PipelineCeiling
from brimline.footprint.weights import StoredWeights, stored_weights
from brimline.readings import COMPONENTS, Footprint, RankFootprint

if TYPE_CHECKING:
    from brimline.footprint.alternatives import Alternative

SCHEMA_VERSION = 1
CEILING_BATCHES = (1, 8, 64, 256)
CEILING_CONTEXT = 1024


@dataclass(frozen=True, slots=True)
class Model:
    """A model as its files tell it. stored: its weights as they lie there; None where only settings do.

    config: its config.json, which overrides are put into; None where it has none.
    """

    architecture: Architecture
    stored: StoredWeights | None = None
    config: Mapping[str, Any] | None = None

    def overridden(self, settings: Settings) -> Model:
        """The model with what the launch settings put in place of its config.json. Raises FootprintError."""
        overrides: dict[str, Any] = {}
        for name in _OVERRIDES:
            is_json = settings.get(name, "").strip().startswith("{")
            if is_json or any(key.startswith(f"{name}.") for key in settings):
                stated = mapping(settings, name) or {}
                overrides |= {"rope_scaling": stated} if name == "rope_scaling" else stated
        if not overrides:
            return self
        if self.config is None:
            raise FootprintError("--hf-overrides: this model has no config.json to put them into")
        source = f"{self.architecture.source} with overrides"
        architecture = architecture_of_config(_merged(self.config, overrides), source)
        return replace(
            self, architecture=replace(architecture, mistral_format=self.architecture.mistral_format)
        )


# Flags whose JSON goes into the model's config.json: of vLLM, its older ones, and of SGLang. (llama.cpp's
# --rope-scaling is a word.)
_OVERRIDES = ("hf_overrides", "rope_scaling", "json_model_override_args")


def _merged(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with others in their place; those of a nested model are put in one by one."""
    merged = dict(config)
    for key, value in overrides.items():
        inner = merged.get(key)
        nests = isinstance(inner, dict) and isinstance(value, dict) and key.endswith("_config")
        merged[key] = _merged(inner, value) if nests and isinstance(inner, dict) else value
    if "rope_scaling" in overrides:  # the older name, which files of today do not carry
        merged.pop("rope_parameters", None)
    return merged


class Predictor(Protocol):
    """Predicts the servers of one engine. settings: its own flags, by their names with underscores.

    Raises FootprintError naming the flag and the rule it breaks.
    """

    def __call__(
        self,
        architecture: Architecture,
        settings: Settings,
        *,
        version: str | None,
        gpu: Gpu | None,
        stored: StoredWeights | None,
        calibration: Calibration | None,
    ) -> Footprint: ...


def _late(name: str) -> Predictor:
    """The predictor in the module of its name, imported when it is asked: a command needs but one of them."""

    def predictor(architecture: Architecture, settings: Settings, **known: Any) -> Footprint:
        module = importlib.import_module(f"brimline.footprint.{name}")
        footprint: Footprint = getattr(module, name)(architecture, settings, **known)
        return footprint

    return predictor


PREDICTORS: dict[str, Predictor] = {
    "llamacpp": _late("predict_llamacpp"),
    "sglang": _late("predict_sglang"),
    "trtllm": _late("predict_trtllm"),
    "vllm": _late("predict_vllm"),
}


# Versions of the engines whose rules are known here: the first and the newest.
KNOWN_VERSIONS: dict[str, tuple[str, str]] = {
    "sglang": ("0.4", "0.5.23"),
    "trtllm": ("1.0", "1.0"),
    "vllm": ("0.6.6", "0.33"),
}
_TITLES = {"sglang": "SGLang", "trtllm": "TensorRT-LLM", "vllm": "vLLM"}


def _of_version(engine: str, version: str | None) -> tuple[str, ...]:
    """What people should know of the version that is predicted; nothing where it is known well."""
    if engine not in KNOWN_VERSIONS:
        return ()
    oldest, newest = KNOWN_VERSIONS[engine]
    if version is None:
        return (f"{_TITLES[engine]} {newest} is assumed, the newest version known here (--engine-version).",)
    stated = parse_version(version)
    if stated < parse_version(oldest):
        if engine == "vllm":
            return (
                f"vLLM {version} is not predicted exactly: up to 0.6.5 the pool pays for the CUDA context.",
            )
        return (f"{_TITLES[engine]} {version} is older than {oldest}, whose rules are taken.",)
    if stated[: len(parse_version(newest))] > parse_version(newest):
        return (
            f"{_TITLES[engine]} {version} is newer than {newest}, the newest known here, and taken as that.",
        )
    return ()


def read_model(path: Path) -> Model:
    """A model's architecture, and its stored weights where they lie beside it. Raises FootprintError."""
    if path.suffix == ".gguf":
        architecture = read_architecture(path)
        return Model(architecture, stored_weights(path, architecture))
    file = path / "config.json" if path.is_dir() else path
    config = read_model_config(file)
    architecture = architecture_of_file(file, config)
    return Model(architecture, stored_weights(file.parent, architecture), config)


def predict(
    engine: str,
    model: Model,
    settings: Settings,
    *,
    version: str | None = None,
    gpu: Gpu | None = None,
    calibration: Calibration | None = None,
    acceptance: float | None = None,
) -> Footprint:
    """The footprint of a server. Raises FootprintError naming the flag and the rule it breaks.

    acceptance: chance that a drafted token is accepted, given those before it were; the decode ceiling then
    is the one with speculation.
    """
    if engine not in PREDICTORS:
        known = ", ".join(sorted(PREDICTORS))
        raise FootprintError(f"the memory of {engine!r} is not predicted; known: {known}")
    model = model.overridden(settings)
    footprint = PREDICTORS[engine](
        model.architecture,
        settings,
        version=version,
        gpu=gpu,
        stored=model.stored,
        calibration=calibration,
    )
    said = (*_of_many_gpus(footprint), *_of_version(engine, version))
    footprint = replace(footprint, assumptions=(*footprint.assumptions, *said))
    return _with_even_ceiling(_with_drafts(footprint, acceptance))


def _of_many_gpus(footprint: Footprint) -> tuple[str, ...]:
    """Of how many GPUs, and of how many replicas, the figures are one."""
    gpus, replicas, stages = footprint.gpu_count, footprint.data_parallel, len(footprint.ranks)
    if not gpus:
        return (f"All figures are of one of {replicas} data-parallel ranks.",) if replicas > 1 else ()
    if replicas > 1:
        return (f"All figures are of one of {replicas} data-parallel ranks; {gpus} GPUs in all.",)
    if gpus > 1:
        of_stages = f" of the fullest of {stages} stages" if stages > 1 else ""
        return (f"All figures are of one GPU{of_stages}; {gpus} GPUs in all.",)
    return ()


def _with_drafts(footprint: Footprint, acceptance: float | None) -> Footprint:
    """The footprint whose ceiling counts speculation, where it is known how many drafted tokens are taken."""
    speculative = footprint.speculative_ceiling
    if speculative is None:
        if acceptance is not None and footprint.decode_ceiling is not None:
            raise FootprintError(
                "--acceptance is of drafted tokens; nothing is drafted here, or over a pipeline of stages"
            )
        return footprint
    if acceptance is None:
        said = (
            "The decode ceiling is the one without speculation: how many drafted tokens are accepted is not "
            "known. Give it with --acceptance, such as 0.8."
        )
        return replace(footprint, assumptions=(*footprint.assumptions, said))
    said = f"The decode ceiling is the one with {acceptance:.0%} of drafted tokens accepted, as given."
    return replace(
        footprint, decode_ceiling=speculative(acceptance), assumptions=(*footprint.assumptions, said)
    )


def _with_even_ceiling(footprint: Footprint) -> Footprint:
    ceiling = footprint.decode_ceiling
    evenly = ceiling.evenly() if isinstance(ceiling, DecodeCeiling | PipelineCeiling) else None
    return footprint if evenly is None else replace(footprint, even_ceiling=evenly)


# --- the published JSON form ---


def in_order(components: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Components in the order in which people read them."""
    return {name: components[name] for name in COMPONENTS if name in components}


def decode_ceilings(footprint: Footprint) -> list[tuple[int, int, float]]:
    """Batch, context length and tokens per second, for a few of each; empty without a bandwidth."""
    if footprint.decode_ceiling is None:
        return []
    context = footprint.kv_cache.max_model_len_tokens
    return [
        (batch, tokens, footprint.decode_ceiling(batch, tokens))
        for batch in CEILING_BATCHES
        for tokens in sorted({min(CEILING_CONTEXT, context), context})
    ]


def as_json(footprint: Footprint, what_if: Sequence[Alternative] = ()) -> dict[str, Any]:
    """The footprint in its published form: bytes, and null for what is not known.

    what_if: answers to questions of the user, apart from the prediction.
    """
    cache = footprint.kv_cache
    blocks = cache.num_blocks
    return {
        "schema_version": SCHEMA_VERSION,
        "engine": footprint.engine,
        "engine_version": footprint.engine_version,
        "parameters": footprint.parameters,
        "tensor_parallel": footprint.tensor_parallel,
        "pipeline_parallel": len(footprint.ranks),
        "data_parallel": footprint.data_parallel,
        "gpus": footprint.gpu_count,
        "per_gpu": _rank_json(footprint.fullest),
        "ranks": [{"pipeline_stage": rank.pipeline_stage, **_rank_json(rank)} for rank in footprint.ranks],
        "kv_cache": {
            "bytes_per_token": cache.bytes_per_token,
            "bytes_per_token_within_window": cache.window_bytes_per_token,
            "window_tokens": cache.window_tokens,
            "bytes_by_tokens": {str(tokens): size for tokens, size in cache.bytes_by_tokens.items()},
            "bytes_per_block": cache.block_bytes,
            "block_tokens": cache.block_tokens,
            "num_blocks": blocks.expected if blocks is not None else None,
            "num_blocks_low": blocks.low if blocks is not None else None,
            "num_blocks_high": blocks.high if blocks is not None else None,
            "capacity_tokens": cache.capacity_tokens,
            "max_concurrency": cache.max_concurrency_requests,
            "bytes_for_one_full_request": cache.full_request_bytes,
        },
        "throughput": {
            "decode_ceiling": [
                {
                    "batch": batch,
                    "context_tokens": tokens,
                    "tokens_per_second": rate,
                    "tokens_per_second_routed_evenly": footprint.even_ceiling(batch, tokens)
                    if footprint.even_ceiling is not None
                    else None,
                }
                for batch, tokens, rate in decode_ceilings(footprint)
            ]
        },
        "fits": footprint.fits,
        "starts": footprint.starts,
        "longest_start_tokens": footprint.longest_start_tokens,
        "obstacle": None
        if footprint.obstacle is None
        else {"certainty": footprint.obstacle.certainty, "text": footprint.obstacle.text},
        "headroom_bytes": footprint.headroom_bytes,
        "calibrated": footprint.calibrated,
        "assumptions": list(footprint.assumptions),
        **({"what_if": [alternative.as_json() for alternative in what_if]} if what_if else {}),
    }


def _rank_json(rank: RankFootprint) -> dict[str, Any]:
    return {
        "components": {name: _bounds(part) for name, part in in_order(rank.components).items()},
        "host": {name: _bounds(part) for name, part in rank.host.items()},
        "total": _bounds(rank.total),
    }


def _bounds(estimate: Estimate) -> dict[str, Any]:
    return {
        "low": estimate.low,
        "expected": estimate.expected,
        "high": estimate.high,
        "source": estimate.source,
    }
