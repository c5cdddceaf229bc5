"""Memory of LoRA adapters. vLLM allocates max_loras slots of max_lora_rank at its start, loaded or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from brimline.errors import FootprintError, SettingError
from brimline.estimate import Estimate, between, exact
from brimline.footprint.architecture import (
    Architecture,
    Attention,
    Experts,
    FeedForward,
    GatedDeltaNet,
    LatentAttention,
    Layer,
    LinearAttention,
    Mamba,
    Mixer,
    ShortConvolution,
)

# vLLM 0.32, config/lora.py MaxLoRARanks.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

# vLLM 0.32, lora/layers/logits_processor.py: a larger vocabulary cannot have an adapter on its head.
MAX_HEAD_VOCABULARY = 258048

Split = Literal["column", "row", "replicated"]


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer that takes an adapter. copies: experts."""

    name: str
    inputs: int
    outputs: int
    split: Split
    copies: int = 1
    kv_heads: int = 0


def _attention(mixer: Attention, hidden: int) -> Iterator[Linear]:
    query = mixer.query_heads * mixer.key_dim
    yield Linear("q_proj", hidden, query * (2 if mixer.gated else 1), "column")
    if not mixer.shares_kv:
        yield Linear("k_proj", hidden, mixer.kv_heads * mixer.key_dim, "column", kv_heads=mixer.kv_heads)
        yield Linear("v_proj", hidden, mixer.kv_heads * mixer.value_dim, "column", kv_heads=mixer.kv_heads)
    yield Linear("o_proj", mixer.query_heads * mixer.value_dim, hidden, "row")


def _latent(mixer: LatentAttention, hidden: int) -> Iterator[Linear]:
    query = mixer.query_heads * (mixer.nope_dim + mixer.rope_dim)
    if mixer.q_lora_rank is None:
        yield Linear("q_proj", hidden, query, "column")
    else:
        yield Linear("q_a_proj", hidden, mixer.q_lora_rank, "replicated")
        yield Linear("q_b_proj", mixer.q_lora_rank, query, "column")
    yield Linear("kv_a_proj_with_mqa", hidden, mixer.kv_lora_rank + mixer.rope_dim, "replicated")
    unpacked = mixer.query_heads * (mixer.nope_dim + mixer.value_dim)
    yield Linear("kv_b_proj", mixer.kv_lora_rank, unpacked, "column")
    yield Linear("o_proj", mixer.query_heads * mixer.value_dim, hidden, "row")


def _mixer(mixer: Mixer, hidden: int) -> Iterator[Linear]:
    match mixer:
        case Attention():
            yield from _attention(mixer, hidden)
        case LatentAttention():
            yield from _latent(mixer, hidden)
        case Mamba():
            extra = 2 * mixer.groups * mixer.state + mixer.heads if mixer.version == 2 else 0
            yield Linear("in_proj", hidden, 2 * mixer.inner + extra, "column")
            yield Linear("out_proj", mixer.inner, hidden, "row")
        case GatedDeltaNet():
            keys, values = mixer.key_heads * mixer.key_dim, mixer.value_heads * mixer.value_dim
            yield Linear("in_proj_qkvz", hidden, 2 * keys + 2 * values, "column")
            yield Linear("in_proj_ba", hidden, 2 * mixer.value_heads, "column")
            yield Linear("out_proj", values, hidden, "row")
        case LinearAttention():
            width = mixer.heads * mixer.head_dim
            yield Linear("qkv_proj", hidden, 3 * width, "column")
            yield Linear("out_proj", width, hidden, "row")
        case ShortConvolution():
            yield Linear("in_proj", hidden, 3 * mixer.width, "column")
            yield Linear("out_proj", mixer.width, hidden, "row")


def _dense(intermediate: int, gated: bool, hidden: int) -> Iterator[Linear]:
    if gated:
        yield Linear("gate_proj", hidden, intermediate, "column")
    yield Linear("up_proj", hidden, intermediate, "column")
    yield Linear("down_proj", intermediate, hidden, "row")


def _feed_forward(part: FeedForward | Experts | None, hidden: int) -> Iterator[Linear]:
    match part:
        case FeedForward():
            yield from _dense(part.intermediate, part.gated, hidden)
        case Experts():
            yield Linear("gate", hidden, part.count, "replicated")
            for one in _dense(part.intermediate, part.gated, hidden):
                yield Linear(f"experts.{one.name}", one.inputs, one.outputs, one.split, copies=part.count)
            if part.shared_intermediate:
                yield from _dense(part.shared_intermediate, part.gated, hidden)


def linears(layer: Layer, hidden: int) -> Iterator[Linear]:
    """The linear layers of one layer that take an adapter."""
    for mixer in layer.mixers:
        yield from _mixer(mixer, hidden)
    yield from _feed_forward(layer.feed_forward, hidden)


def adapter_parameters(architecture: Architecture, rank: int, targets: frozenset[str] | None = None) -> int:
    """Parameters of one adapter of this rank: rank * (inputs + outputs) for each target, on all GPUs.

    targets: names such as q_proj and down_proj; None for every linear layer, experts included, without
    embeddings. Raises FootprintError for a target that the model does not have.
    """
    if rank < 1:
        raise FootprintError(f"the rank of an adapter is {rank}; it starts at 1")
    found = 0
    seen: set[str] = set()
    for layer in architecture.layers:
        for one in linears(layer, architecture.hidden):
            plain = one.name.removeprefix("experts.")
            seen |= {one.name, plain}
            if targets is None or one.name in targets or plain in targets:
                found += one.copies * rank * (one.inputs + one.outputs)
    if unknown := (targets or frozenset()) - seen:
        raise FootprintError(
            f"the model has no {', '.join(sorted(unknown))}; its linear layers: {', '.join(sorted(seen))}"
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """vLLM's flags. targets: target_modules; None for every module. stage_layers: layers of this rank's
    pipeline stage, None for all. first_stage, last_stage: it holds the embedding, the head."""

    max_loras: int = 1
    max_lora_rank: int = 16
    max_cpu_loras: int | None = None
    fully_sharded: bool = False
    moe_shared: bool = False
    element_bytes: int = 2
    tensor_parallel: int = 1
    expert_parallel: int = 1
    targets: frozenset[str] | None = None
    stage_layers: range | None = None
    first_stage: bool = True
    last_stage: bool = True

    def __post_init__(self) -> None:
        if self.max_lora_rank not in RANKS:
            raise SettingError(
                f"max_lora_rank is {self.max_lora_rank}; vLLM knows {', '.join(map(str, RANKS))}"
            )
        for name in ("max_loras", "element_bytes", "tensor_parallel", "expert_parallel"):
            if getattr(self, name) < 1:
                raise FootprintError(f"{name} is {getattr(self, name)}; it starts at 1")
        if self.max_cpu_loras is not None and self.max_cpu_loras < self.max_loras:
            raise FootprintError(f"max_cpu_loras is {self.max_cpu_loras}; it is at least max_loras")
        if self.fully_sharded and self.max_lora_rank % self.tensor_parallel:
            raise FootprintError(
                f"fully_sharded_loras: max_lora_rank {self.max_lora_rank} cannot be divided by "
                f"{self.tensor_parallel} GPUs"
            )


def _wanted(name: str, targets: frozenset[str] | None) -> bool:
    plain = name.removeprefix("experts.")
    return targets is None or name in targets or plain in targets or name.split(".")[0] in targets


def _slot_elements(one: Linear, settings: LoraSettings) -> int:
    """Elements of A and B of one slot on one rank."""
    tp, rank = settings.tensor_parallel, settings.max_lora_rank
    experts = one.copies > 1
    copies = one.copies
    if experts and settings.expert_parallel > 1:
        # Whole experts on each rank; the fullest has one more.
        copies, tp = -(-one.copies // settings.expert_parallel), 1
    copies_a = copies_b = copies
    inputs, outputs, rank_a = one.inputs, one.outputs, rank
    if one.split == "column":
        if one.kv_heads:
            outputs = one.outputs // one.kv_heads * max(1, one.kv_heads // tp)
        else:
            outputs = one.outputs // tp
        rank_a = rank // tp if settings.fully_sharded else rank
        if experts and settings.moe_shared:
            copies_a = 1
    elif one.split == "row":
        inputs = one.inputs // tp
        if settings.fully_sharded:
            outputs = one.outputs // tp
        if experts and settings.moe_shared:
            copies_b = 1
    return copies_a * rank_a * inputs + copies_b * outputs * rank


def lora_slots_bytes(architecture: Architecture, settings: LoraSettings) -> Estimate:
    """Bytes of the slots for adapters on one GPU, whether or not adapters are loaded.

    For each linear layer A holds max_loras * rank * inputs, B max_loras * outputs * rank. Column-parallel:
    all inputs, outputs / tp; row-parallel: inputs / tp, all outputs; with fully_sharded_loras also A's rank
    or B's outputs are divided (vLLM 0.32, lora/layers/base_linear.py, fused_moe.py). The embedding holds
    rank * (vocabulary + hidden) and so does the head, neither divided (vocab_parallel_embedding.py,
    logits_processor.py); models that do not name them as modules for adapters have neither, so low leaves
    them out. Raises FootprintError where the vocabulary is too large for an adapter on the head.
    """
    kept = architecture.layers
    if settings.stage_layers is not None:
        kept = tuple(architecture.layers[index] for index in settings.stage_layers)
    elements = sum(
        _slot_elements(one, settings)
        for layer in kept
        for one in linears(layer, architecture.hidden)
        if _wanted(one.name, settings.targets)
    )
    ends = 0
    width = settings.max_lora_rank * (architecture.vocabulary + architecture.hidden)
    if settings.first_stage and _wanted("embed_tokens", settings.targets):
        ends += width
    if settings.last_stage and _wanted("lm_head", settings.targets):
        if architecture.vocabulary > MAX_HEAD_VOCABULARY:
            raise FootprintError(
                f"a vocabulary of {architecture.vocabulary} has no adapter on its head; vLLM takes at most "
                f"{MAX_HEAD_VOCABULARY}; leave lm_head out of the targets"
            )
        ends += width
    scale = settings.element_bytes * settings.max_loras
    return between(
        scale * elements,
        scale * (elements + ends),
        scale * (elements + ends),
        "vLLM 0.32, lora/layers: max_loras * rank * (inputs + outputs) of each module",
    )


def lora_host_bytes(architecture: Architecture, settings: LoraSettings) -> Estimate:
    """Bytes of host memory for adapters: up to max_cpu_loras of them, whole, of the largest rank.

    Each worker process keeps them undivided (vLLM 0.32, lora/model_manager.py), so this is per GPU. Low is 0:
    nothing is held before adapters are loaded. Adapters on the embedding or head are not counted.
    """
    held = settings.max_cpu_loras if settings.max_cpu_loras is not None else settings.max_loras
    whole = 0
    for layer in architecture.layers:
        for one in linears(layer, architecture.hidden):
            if _wanted(one.name, settings.targets):
                whole += one.copies * settings.max_lora_rank * (one.inputs + one.outputs)
    if not whole:
        return exact(0, "no module takes an adapter")
    size = held * whole * settings.element_bytes
    return between(0, size, size, "max_cpu_loras whole adapters of max_lora_rank")
