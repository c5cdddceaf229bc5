"""The predicted memory of a server of any known engine, and its published JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from brimline.errors import FootprintError
from brimline.estimate import Estimate
from brimline.footprint.architecture import Architecture
from brimline.footprint.calibration import Calibration
from brimline.footprint.gpus import Gpu
from brimline.footprint.hf_config import read_architecture
from brimline.footprint.predict_vllm import predict_vllm
from brimline.footprint.settings import Settings
from brimline.footprint.weights import StoredWeights, stored_weights
from brimline.readings import COMPONENTS, Footprint, RankFootprint

SCHEMA_VERSION = 1
CEILING_BATCHES = (1, 8, 64, 256)
CEILING_CONTEXT = 1024


@dataclass(frozen=True, slots=True)
class Model:
    """A model as its files tell it. stored: its weights as they lie there; None where only settings do."""

    architecture: Architecture
    stored: StoredWeights | None = None


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


PREDICTORS: dict[str, Predictor] = {
    "vllm": predict_vllm,
}


def read_model(path: Path) -> Model:
    """A model's architecture, and its stored weights where they lie beside it. Raises FootprintError."""
    architecture = read_architecture(path)
    folder = path if path.is_dir() or path.suffix == ".gguf" else path.parent
    return Model(architecture, stored_weights(folder, architecture))


def predict(
    engine: str,
    model: Model,
    settings: Settings,
    *,
    version: str | None = None,
    gpu: Gpu | None = None,
    calibration: Calibration | None = None,
) -> Footprint:
    """The footprint of a server. Raises FootprintError naming the flag and the rule it breaks."""
    if engine not in PREDICTORS:
        known = ", ".join(sorted(PREDICTORS))
        raise FootprintError(f"the memory of {engine!r} is not predicted; known: {known}")
    return PREDICTORS[engine](
        model.architecture,
        settings,
        version=version,
        gpu=gpu,
        stored=model.stored,
        calibration=calibration,
    )


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


def as_json(footprint: Footprint) -> dict[str, Any]:
    """The footprint in its published form: bytes, and null for what is not known."""
    cache = footprint.kv_cache
    blocks = cache.num_blocks
    return {
        "schema_version": SCHEMA_VERSION,
        "engine": footprint.engine,
        "engine_version": footprint.engine_version,
        "parameters": footprint.parameters,
        "per_gpu": _rank_json(footprint.fullest),
        "ranks": [{"pipeline_stage": rank.pipeline_stage, **_rank_json(rank)} for rank in footprint.ranks],
        "kv_cache": {
            "bytes_per_token": cache.bytes_per_token,
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
                {"batch": batch, "context_tokens": tokens, "tokens_per_second": rate}
                for batch, tokens, rate in decode_ceilings(footprint)
            ]
        },
        "fits": footprint.fits,
        "headroom_bytes": footprint.headroom_bytes,
        "calibrated": footprint.calibrated,
        "assumptions": list(footprint.assumptions),
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
