"""Memory of training on one GPU: weights, gradients, optimizer, activations.

Bytes per parameter in mixed precision (16-bit weights and gradients, two Adam moments in fp32):
12 without, 16 with a master copy of the weights in fp32 (Rajbhandari et al. 2020, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from brimline.errors import FootprintError
from brimline.estimate import Estimate, between, exact, total
from brimline.footprint.architecture import Architecture, Attention, Experts, LatentAttention
from brimline.footprint.lora import adapter_parameters
from brimline.footprint.part import Part
from brimline.footprint.weights import layer_tensors, parameters

Checkpointing = Literal["none", "selective", "full"]
Method = Literal["full", "lora", "qlora"]

# QLoRA (Dettmers et al. 2023): 4-bit weights in blocks of 64, their scales in 8 bits in blocks of 256.
QLORA_BITS = 4 + 8 / 64 + 32 / (64 * 256)


@dataclass(frozen=True, slots=True)
class Optimizer:
    """What an optimizer keeps of each trained parameter. moments: how many, in the type of --moments.

    quantized: its moments are of 8 bits, with a scale in fp32 for each block; moments' type is ignored then.
    """

    moments: int
    source: str
    quantized: bool = False


OPTIMIZERS: dict[str, Optimizer] = {
    "adam": Optimizer(2, "Adam: two moments"),
    "adamw": Optimizer(2, "AdamW: two moments"),
    # Blocks of 256 (0.45 and later) or 2048 elements (before): bitsandbytes, optim/optimizer.py init_state.
    "adamw-8bit": Optimizer(2, "bitsandbytes, optim/optimizer.py: two moments of 8 bits", quantized=True),
    "adagrad": Optimizer(1, "Adagrad: one sum"),
    "sgd-momentum": Optimizer(1, "SGD with momentum: one buffer"),
    "sgd": Optimizer(0, "plain SGD keeps no state"),
}
_BLOCKS_OF_8_BITS = (2048, 256)

_ZERO = "ZeRO (Rajbhandari et al. 2020), table 1"
_KORTHIKANTI = "Korthikanti et al. 2022, Reducing Activation Recomputation, equations 1 to 6"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """How a model is trained. world_size: GPUs that the states are divided among (data parallelism).

    optimizer: a key of OPTIMIZERS. moment_bytes: of one of its moments.
    master_weights: a copy in fp32 of what is trained. zero_stage: 0 to 3; FSDP's full shard is 3.
    batch: sequences of one step on one GPU. tensor_parallel divides the weights as well.
    sequence_parallel: norms and dropout are divided among the tensor-parallel GPUs too.
    """

    method: Method = "full"
    optimizer: str = "adam"
    moment_bytes: float = 4
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
        if self.optimizer not in OPTIMIZERS:
            raise FootprintError(f"optimizer is {self.optimizer!r}; known: {', '.join(OPTIMIZERS)}")
        for name in ("world_size", "batch", "sequence_tokens", "tensor_parallel"):
            if getattr(self, name) < 1:
                raise FootprintError(f"{name} is {getattr(self, name)}; it starts at 1")
        if min(self.weight_bytes, self.gradient_bytes, self.moment_bytes) <= 0:
            raise FootprintError("weight_bytes, gradient_bytes and moment_bytes are above 0")


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
    assumptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.parameters < 1 or self.layers < 0 or self.hidden < 0 or self.heads < 0:
            raise FootprintError("a model has parameters, layers, a hidden size and heads")
        if self.trained_parameters < 0 or self.vocabulary < 0:
            raise FootprintError("trained_parameters and vocabulary cannot be negative")
        if self.linear_parameters is not None and not 0 <= self.linear_parameters <= self.parameters:
            raise FootprintError("linear_parameters are a part of the parameters")


def trained_model(
    architecture: Architecture, *, rank: int | None = None, targets: frozenset[str] | None = None
) -> TrainedModel:
    """The sizes of a model, and of adapters of that rank on those linear layers (None: on all of them).

    Raises FootprintError for targets that the model does not have.
    """
    mixers = [mixer for layer in architecture.layers for mixer in layer.mixers]
    heads = (mixer.query_heads for mixer in mixers if isinstance(mixer, Attention | LatentAttention))
    assumptions = [*architecture.assumptions]
    if any(isinstance(layer.feed_forward, Experts) for layer in architecture.layers) or not all(
        isinstance(mixer, Attention) for mixer in mixers
    ):
        assumptions.append(
            "The model's layers are not those of the activation formula (attention and one dense part); its "
            "activations may lie outside the bounds."
        )
    return TrainedModel(
        parameters=parameters(architecture),
        layers=len(architecture.layers),
        hidden=architecture.hidden,
        heads=max(heads, default=0),
        vocabulary=architecture.vocabulary,
        linear_parameters=sum(
            weight.elements
            for layer in architecture.layers
            for weight in layer_tensors(layer, architecture.hidden)
            if weight.linear
        ),
        trained_parameters=0 if rank is None else adapter_parameters(architecture, rank, targets),
        assumptions=tuple(assumptions),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFootprint:
    """Bytes on the fullest GPU, part by part. assumptions: what was taken for granted, a sentence each."""

    parts: tuple[Part, ...]
    assumptions: tuple[str, ...] = ()

    def part(self, name: str) -> Estimate:
        """A part by its name; nothing where there is none."""
        return next((part.size for part in self.parts if part.name == name), exact(0, "none"))

    @property
    def activations(self) -> Estimate:
        """What the backward pass needs of the forward pass."""
        return self.part("activations")

    @property
    def states(self) -> Estimate:
        """All but the activations."""
        return total((part.size for part in self.parts if part.name != "activations"), "model states")

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

    With full checkpointing one layer is computed anew at a time and held whole on top of the inputs, without
    its scores where attention is fused (high: with them); low counts the inputs alone, as the paper does.
    Bounds are wide, since real layers differ from the paper's.
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
    if settings.checkpointing != "full" or not model.layers:
        return between(0.7 * kept, kept + ends, 1.3 * kept + 2 * ends, _KORTHIKANTI)
    at_work, with_scores = of_layers("selective"), of_layers("none")
    return between(kept, kept + at_work + ends, 1.3 * (kept + with_scores) + 2 * ends, _KORTHIKANTI)


def _moments(settings: TrainingSettings) -> tuple[Estimate, str]:
    """Bytes that the optimizer keeps of 2^20 parameters, so that fractions of a byte count, and as text."""
    kind, unit = OPTIMIZERS[settings.optimizer], 1 << 20
    if kind.quantized:
        low, high = (kind.moments * (1 + 4 / block) for block in _BLOCKS_OF_8_BITS)
        return between(low * unit, high * unit, high * unit, kind.source), f"{high:.3g} B"
    each = kind.moments * settings.moment_bytes
    return exact(each * unit, kind.source), f"{kind.moments} × {settings.moment_bytes:g} B"


def training_footprint(model: TrainedModel, settings: TrainingSettings) -> TrainingFootprint:
    """Bytes on one GPU of training.

    Of each trained parameter: weight_bytes + gradient_bytes, the optimizer's moments (8 of Adam in fp32), and
    4 for a master copy. ZeRO divides optimizer and master copy from stage 1 on, gradients from 2, weights
    (frozen ones too) from 3. QLoRA keeps linear layers at 4.127 bits and embeddings, head and norms at 16.
    Tensor parallelism divides all. Gathered layers and communication buffers of stage 3 are not counted: see
    deepspeed_zero3. Raises FootprintError for adapters without trained_parameters.
    """
    assumptions = [*model.assumptions]
    trained, parts = model.parameters, []
    if settings.method != "full":
        trained = model.trained_parameters
        if not trained:
            raise FootprintError(f"{settings.method} trains adapters; give trained_parameters")
        parts.append(_frozen(model, settings, assumptions))
        assumptions.append("Adapters keep as many activations as training the whole model.")
    moments, moments_text = _moments(settings)
    parts += [
        _part("weights", trained, settings.weight_bytes, settings, from_stage=3),
        _part("gradients", trained, settings.gradient_bytes, settings, from_stage=2),
    ]
    if settings.master_weights:
        parts.append(_part("master weights", trained, 4, settings, from_stage=1))
    low, expected, high = (
        trained * bound / (1 << 20) / settings.tensor_parallel / _ways(settings, 1)
        for bound in (moments.low, moments.expected, moments.high)
    )
    parts.append(
        Part(
            "optimizer",
            between(low, expected, high, moments.source),
            f"{trained:,} × {moments_text}{_divisors(settings, 1)}",
        )
    )
    if not settings.master_weights and settings.weight_bytes < settings.moment_bytes:
        assumptions.append(
            "Moments are kept in fp32; PyTorch's own optimizers keep them in the type of the weights."
        )
    if settings.zero_stage == 3 and settings.world_size > 1:
        assumptions.append("The layers that ZeRO 3 gathers for a moment are not counted.")
    if model.layers:
        parts.append(Part("activations", activation_bytes(model, settings), _activation_formula(settings)))
        if not model.vocabulary:
            assumptions.append("The vocabulary is not given, so logits are not counted.")
    else:
        assumptions.append("Activations are not counted: the model's layers are not known.")
    return TrainingFootprint(parts=tuple(parts), assumptions=tuple(assumptions))


def _ways(settings: TrainingSettings, from_stage: int) -> int:
    """GPUs that ZeRO divides a part among."""
    return settings.world_size if settings.zero_stage >= from_stage else 1


def _divisors(settings: TrainingSettings, from_stage: int) -> str:
    ways = (settings.tensor_parallel, _ways(settings, from_stage))
    return "".join(f" / {count}" for count in ways if count > 1)


def _part(name: str, count: int, each: float, settings: TrainingSettings, *, from_stage: int) -> Part:
    size = count * each / settings.tensor_parallel / _ways(settings, from_stage)
    source = _ZERO if _ways(settings, from_stage) > 1 else "bytes per parameter"
    return Part(name, exact(size, source), f"{count:,} × {each:g} B{_divisors(settings, from_stage)}")


def _frozen(model: TrainedModel, settings: TrainingSettings, assumptions: list[str]) -> Part:
    """The weights below the adapters."""
    if settings.method == "lora":
        return _part("frozen weights", model.parameters, settings.weight_bytes, settings, from_stage=3)
    linear = model.linear_parameters
    if linear is None:
        linear = max(0, model.parameters - 2 * model.vocabulary * model.hidden)
        assumptions.append("All parameters but an embedding and a head of one size are quantized.")
    others = model.parameters - linear
    size = (linear * QLORA_BITS / 8 + others * 2) / settings.tensor_parallel / _ways(settings, 3)
    formula = f"{linear:,} × {QLORA_BITS:.4g} / 8 B + {others:,} × 2 B{_divisors(settings, 3)}"
    return Part("frozen weights", exact(size, "QLoRA (Dettmers et al. 2023)"), formula)


def _activation_formula(settings: TrainingSettings) -> str:
    unit = f"{settings.batch} × {settings.sequence_tokens:,} tokens"
    kept = {
        "none": "34 h + 5 a s of each layer",
        "selective": "34 h of each layer (no score matrix)",
        "full": "2 h of each layer, 34 h of the one at work",
    }[settings.checkpointing]
    return f"{unit}: {kept}, 4 (h + V) of the output"


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
