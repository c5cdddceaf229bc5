"""The servers of the scenarios as they are launched, and what is predicted for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from brimline.demo.profiles import MODEL_FOLDER
from brimline.footprint.calibration import Calibration
from brimline.footprint.gpus import live_gpu
from brimline.footprint.predict import predict, read_model
from brimline.readings import Footprint

MIB, GIB = 1 << 20, 1 << 30

VERSIONS = {"vllm": "0.31.0", "sglang": "0.5.9"}
CONTEXT_FLAG = {"vllm": "max_model_len", "sglang": "context_length"}
BUDGET_FLAG = {"vllm": "gpu_memory_utilization", "sglang": "mem_fraction_static"}
PARALLEL_FLAG = {"vllm": "tensor_parallel_size", "sglang": "tp_size"}

# What a calibration of this model found on one of our servers: round figures within the tables' bounds.
_WEIGHTS, _ACTIVATIONS, _GRAPHS, _LIBRARIES, _CONTEXT = 14.99, 1.3, 0.5, 0.14, 0.55


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A kind of GPU as NVML tells it. reserved_bytes: what the driver keeps of it.

    quantization: with which the model of 8 billion parameters leaves room for a cache.
    """

    name: str
    total_bytes: int
    reserved_bytes: int
    quantization: str | None = None

    @property
    def visible_bytes(self) -> int:
        """What CUDA can hand out."""
        return self.total_bytes - self.reserved_bytes


CARDS = {
    "H100": Card(name="NVIDIA H100 80GB HBM3", total_bytes=81_559 * MIB, reserved_bytes=551 * MIB),
    "A100-40": Card(name="NVIDIA A100-SXM4-40GB", total_bytes=40_960 * MIB, reserved_bytes=522 * MIB),
    "L4": Card(name="NVIDIA L4", total_bytes=23_034 * MIB, reserved_bytes=440 * MIB, quantization="fp8"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A server as it is launched, with its prediction."""

    engine: str
    version: str
    card: Card
    settings: Mapping[str, str]
    footprint: Footprint

    @property
    def max_model_len(self) -> int:
        """Longest context of one request."""
        return self.footprint.kv_cache.max_model_len_tokens

    @property
    def high_bytes(self) -> int:
        """Most memory that it is predicted to take on one GPU."""
        return self.footprint.fullest.total.high

    @property
    def expected_bytes(self) -> int:
        """Memory that it is predicted to take on one GPU."""
        return self.footprint.fullest.total.expected


@lru_cache(maxsize=512)
def plan(
    engine: str,
    card_name: str,
    *,
    utilization: float,
    max_model_len: int = 16_384,
    calibrated: bool = False,
    gpus: int = 1,
    quantized: bool | None = None,
) -> Plan:
    """Llama-3.1-8B on so many cards of a kind.

    utilization: the share of the card that the engine plans with. quantized: None as the card needs it.
    """
    card = CARDS[card_name]
    settings = {
        BUDGET_FLAG[engine]: f"{utilization:g}",
        CONTEXT_FLAG[engine]: str(max_model_len),
        PARALLEL_FLAG[engine]: str(gpus),
    }
    is_quantized = card.quantization is not None if quantized is None else quantized
    if is_quantized:
        settings["quantization"] = card.quantization or "fp8"
    calibration = None
    if calibrated:
        calibration = Calibration(
            engine=engine,
            version=VERSIONS[engine],
            gpu=card.name,
            weights_bytes=round((0.55 if is_quantized else 1.0) * _WEIGHTS * GIB / gpus),
            activation_bytes=round(_ACTIVATIONS * GIB),
            cuda_graphs_bytes=round(_GRAPHS * GIB),
            non_torch_bytes=round(_LIBRARIES * GIB),
            context_bytes=round(_CONTEXT * GIB),
        )
    footprint = predict(
        engine,
        read_model(MODEL_FOLDER),
        settings,
        version=VERSIONS[engine],
        gpu=live_gpu(card.name, card.total_bytes, card.reserved_bytes),
        calibration=calibration,
    )
    return Plan(engine=engine, version=VERSIONS[engine], card=card, settings=settings, footprint=footprint)
