"""Memory of training on one GPU: weights, gradients, optimizer, activations.

Bytes per parameter in mixed precision (16-bit weights and gradients, two Adam moments in fp32):
12 without, 16 with a master copy of the weights in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from brimline.errors import FootprintError
from brimline.estimate import Estimate, between, exact, total

Checkpointing = Literal["none", "selective", "full"]
Method = Literal["full", "lora", "qlora"]

# QLoRA (Dettmers et al. 2023): 4-bit weights in blocks of 64, their scales in 8 bits in blocks of 256.
QLORA_BITS = 4 + 8 / 64 + 32 / (64 * 256)

_ZERO = "ZeRO (Rajbhandari et al. 2020), table 1"
_KORTHIKANTI = "Korthikanti et al. 2022, Reducing Activation Recomputation, equations 1 to 6"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """How a model is trained. world_size: GPUs that the states are divided among (data parallelism).

    master_weights: a copy in fp32 of what is trained. zero_stage: 0 to 3; FSDP's full shard is 3.
    batch: sequences of one step on one GPU. tensor_parallel divides the weights as well.
    sequence_parallel: norms and dropout are divided among the tensor-parallel GPUs too.
    """

    method: Method = "full"
    world_size: int = 1
    zero_stage: int = 0
    master_weights: bool = True
    weight_bytes: float = 2
    gradient_bytes: float = 2
    batch: int = 1
    sequence_tokens: int = 2048
    checkpointing: Checkpointing = "none"
    tensor_parallel: int = 1
    sequence_parallel: bool = False

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise FootprintError(f"zero_stage is {self.zero_stage}; it is 0, 1, 2 or 3")
        if self.checkpointing not in ("none", "selective", "full"):
            raise FootprintError(f"checkpointing is {self.checkpointing!r}; known: none, selective, full")
        if self.method not in ("full", "lora", "qlora"):
            raise FootprintError(f"method is {self.method!r}; known: full, lora, qlora")
        for name in ("world_size", "batch", "sequence_tokens", "tensor_parallel"):
            if getattr(self, name) < 1:
                raise FootprintError(f"{name} is {getattr(self, name)}; it starts at 1")
        if self.weight_bytes <= 0 or self.gradient_bytes <= 0:
            raise FootprintError("weight_bytes and gradient_bytes are above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """Sizes of the model. linear_parameters: those that QLoRA quantizes; None for all but embedding and
    head. trained_parameters: of the adapters; ignored where the whole model is trained."""

    parameters: int
    layers: int
    hidden: int
    heads: int
    vocabulary: int = 0
    linear_parameters: int | None = None
    trained_parameters: int = 0

    def __post_init__(self) -> None:
        if self.parameters < 1 or self.layers < 0 or self.hidden < 0 or self.heads < 0:
            raise FootprintError("a model has parameters, layers, a hidden size and heads")
        if self.trained_parameters < 0 or self.vocabulary < 0:
            raise FootprintError("trained_parameters and vocabulary cannot be negative")
        if self.linear_parameters is not None and not 0 <= self.linear_parameters <= self.parameters:
            raise FootprintError("linear_parameters are a part of the parameters")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFootprint:
    """Bytes on the fullest GPU. frozen: weights that are not trained (LoRA, QLoRA)."""

    frozen: Estimate
    weights: Estimate
    gradients: Estimate
    optimizer: Estimate
    activations: Estimate
    assumptions: tuple[str, ...] = ()

    @property
    def states(self) -> Estimate:
        """All but the activations."""
        return total((self.frozen, self.weights, self.gradients, self.optimizer), "model states")

    @property
    def all(self) -> Estimate:
        """Everything, without the allocator's fragmentation and the CUDA context."""
        return total((self.states, self.activations), "model states and activations")


def layer_activation_bytes(
    *,
    sequence_tokens: int,
    batch: int,
    hidden: int,
    heads: int,
    checkpointing: Checkpointing = "none",
    tensor_parallel: int = 1,
    sequence_parallel: bool = False,
) -> float:
    """Bytes of activations that one layer keeps for its backward pass, at 16 bits.

    none: s*b*h * (34 + 5*a*s/h); full: 2*s*b*h, the layer's input; selective (or fused attention, which
    recomputes the scores): 34*s*b*h. With tensor parallelism t: s*b*h * (10 + 24/t + 5*a*s/(h*t)), and all of
    it over t with sequence parallelism. Korthikanti et al. 2022, equations 1, 2, 4 and 6. It is of a layer
    with an MLP of 4 * hidden, dropout, and as many K/V heads as query heads.
    """
    if min(sequence_tokens, batch, tensor_parallel) < 1 or hidden < 0 or heads < 0:
        raise FootprintError("sequence_tokens, batch and tensor_parallel start at 1")
    unit = sequence_tokens * batch * hidden
    # a*s/h times s*b*h
    scores = 5 * heads * sequence_tokens * sequence_tokens * batch
    t = tensor_parallel
    if checkpointing == "full":
        return 2 * unit / (t if sequence_parallel else 1)
    if checkpointing == "selective":
        scores = 0
    if sequence_parallel:
        return (34 * unit + scores) / t
    return unit * (10 + 24 / t) + scores / t


def activation_bytes(model: TrainedModel, settings: TrainingSettings) -> Estimate:
    """Activations of all layers, and of the output: 4*s*b*(h + V) of the last norm, logits and loss.

    With full checkpointing one layer is computed anew at a time and held whole on top of the inputs: low
    counts the inputs alone, as the paper does. Bounds are wide, since real layers differ from the paper's.
    """

    def of_layers(checkpointing: Checkpointing) -> float:
        return layer_activation_bytes(
            sequence_tokens=settings.sequence_tokens,
            batch=settings.batch,
            hidden=model.hidden,
            heads=model.heads,
            checkpointing=checkpointing,
            tensor_parallel=settings.tensor_parallel,
            sequence_parallel=settings.sequence_parallel,
        )

    kept = model.layers * of_layers(settings.checkpointing)
    ends = 4 * settings.sequence_tokens * settings.batch * (model.hidden + model.vocabulary)
    ends = ends // settings.tensor_parallel
    at_work = of_layers("none") if settings.checkpointing == "full" and model.layers else 0.0
    low = kept if settings.checkpointing == "full" else 0.7 * kept
    return between(low, kept + at_work + ends, 1.3 * (kept + at_work) + 2 * ends, _KORTHIKANTI)


def _divided(size: float, settings: TrainingSettings, from_stage: int) -> Estimate:
    if settings.zero_stage >= from_stage:
        size /= settings.world_size
    return exact(size, _ZERO if settings.world_size > 1 else "bytes per parameter")


def training_footprint(model: TrainedModel, settings: TrainingSettings) -> TrainingFootprint:
    """Bytes on one GPU of training with Adam.

    Of each trained parameter: weight_bytes + gradient_bytes + 8 (two moments in fp32) + 4 for a master copy.
    ZeRO divides the optimizer from stage 1 on, gradients from 2, weights (frozen ones too) from 3. QLoRA
    keeps linear layers at 4.127 bits and embeddings, head and norms at 16. Tensor parallelism divides all.
    Gathered layers and communication buffers of stage 3 are not counted: see deepspeed_zero3.
    """
    assumptions = []
    t = settings.tensor_parallel
    trained = model.parameters
    frozen = 0.0
    if settings.method != "full":
        trained = model.trained_parameters
        if not trained:
            raise FootprintError(f"{settings.method} trains adapters; give trained_parameters")
        frozen = model.parameters * settings.weight_bytes
        if settings.method == "qlora":
            linear = model.linear_parameters
            if linear is None:
                linear = max(0, model.parameters - 2 * model.vocabulary * model.hidden)
                assumptions.append("All parameters but an embedding and a head of one size are quantized.")
            frozen = linear * QLORA_BITS / 8 + (model.parameters - linear) * 2
        assumptions.append("Adapters keep as many activations as training the whole model.")
    moments = 8 + (4 if settings.master_weights else 0)
    if not model.vocabulary:
        assumptions.append("The vocabulary is not given, so logits are not counted.")
    return TrainingFootprint(
        frozen=_divided(frozen / t, settings, 3),
        weights=_divided(trained * settings.weight_bytes / t, settings, 3),
        gradients=_divided(trained * settings.gradient_bytes / t, settings, 2),
        optimizer=_divided(trained * moments / t, settings, 1),
        activations=activation_bytes(model, settings),
        assumptions=tuple(assumptions),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSpeedNeeds:
    """Bytes of model states as DeepSpeed's own estimators say: of one GPU, and of one node's host."""

    gpu_bytes: int
    host_bytes: int


def deepspeed_zero2(
    parameters: int, *, gpus_per_node: int = 1, nodes: int = 1, offload: bool = False, buffers: float = 1.5
) -> DeepSpeedNeeds:
    """What estimate_zero2_model_states_mem_needs says (DeepSpeed 0.19.8, runtime/zero/stage_1_and_2.py).

    GPU: 2P + 18P/n, with the optimizer offloaded 2P. Host: 4P * GPUs of the node * buffers; offloaded
    P * max(4n, 16) * buffers. Unlike the paper it counts gradients in fp32 as well.
    """
    gpus = _gpus(parameters, gpus_per_node, nodes)
    if offload:
        return DeepSpeedNeeds(
            gpu_bytes=2 * parameters, host_bytes=int(parameters * max(4 * gpus, 16) * buffers)
        )
    return DeepSpeedNeeds(
        gpu_bytes=2 * parameters + int(18 * parameters / gpus),
        host_bytes=int(parameters * 4 * gpus_per_node * buffers),
    )


def deepspeed_zero3(
    parameters: int,
    largest_layer_parameters: int,
    *,
    gpus_per_node: int = 1,
    nodes: int = 1,
    offload_optimizer: bool = False,
    offload_parameters: bool = False,
    zero_init: bool = True,
    buffers: float = 1.5,
) -> DeepSpeedNeeds:
    """What estimate_zero3_model_states_mem_needs says (DeepSpeed 0.19.8, runtime/zero/stage3.py).

    GPU: 4 * largest layer, and 18P/n, or 2P/n with the optimizer offloaded, or nothing more with the
    parameters offloaded too. Parameters are offloaded only together with the optimizer.
    """
    gpus = _gpus(parameters, gpus_per_node, nodes)
    if offload_parameters and not offload_optimizer:
        raise FootprintError("parameters are offloaded only together with the optimizer")
    largest = 4 * largest_layer_parameters
    if not offload_optimizer:
        loaded = largest_layer_parameters if zero_init else parameters
        return DeepSpeedNeeds(
            gpu_bytes=largest + int(18 * parameters / gpus),
            host_bytes=int(loaded * 4 * gpus_per_node * buffers),
        )
    each = (18 if offload_parameters else 16) / nodes
    host = each if zero_init else max(4 * gpus_per_node, each)
    left = 0 if offload_parameters else int(2 * parameters / gpus)
    return DeepSpeedNeeds(gpu_bytes=largest + left, host_bytes=int(parameters * host * buffers))


def _gpus(parameters: int, gpus_per_node: int, nodes: int) -> int:
    if min(parameters, gpus_per_node, nodes) < 1:
        raise FootprintError("parameters, gpus_per_node and nodes start at 1")
    return gpus_per_node * nodes
