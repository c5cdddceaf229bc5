"""How fast decoding can be: the bytes that a step must read, over the bandwidth of the GPU's memory.

A ceiling, not a promise: it counts every byte once at full bandwidth and nothing for communication or
launches. All bytes are of one GPU rank; tokens per second are of its replica.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from brimline.errors import FootprintError
from brimline.footprint.architecture import (
    Architecture,
    Attention,
    Experts,
    GatedDeltaNet,
    LatentAttention,
    Mamba,
    Mixer,
    ShortConvolution,
    kept_with_architecture,
)
from brimline.footprint.constants import constant
from brimline.footprint.kv_dtypes import KvFormat
from brimline.footprint.weights import Part


class DecodeRate(NamedTuple):
    """Tokens per second of all requests together, for a batch of requests of one context length."""

    batch: int
    context_tokens: int
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class ExpertLayer:
    """The experts of one layer. bytes_each: of one expert's part on this rank."""

    bytes_each: float
    count: int
    per_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeWeights:
    """Weights that one rank reads in a decode step.

    dense_bytes: all but the experts; an input embedding that is not the head as well is looked up, not read.
    """

    dense_bytes: float
    experts: tuple[ExpertLayer, ...] = ()

    def ceiling_bytes(self) -> float:
        """Least bytes of a step: all tokens go to the same experts."""
        return self.dense_bytes + sum(layer.bytes_each * layer.per_token for layer in self.experts)

    def expected_bytes(self, tokens: int) -> float:
        """Expected bytes of a step of so many tokens, routed uniformly."""
        return self.dense_bytes + sum(
            layer.bytes_each * experts_touched(layer.count, layer.per_token, tokens) for layer in self.experts
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """Speculative decoding. acceptance: chance that a draft token is accepted, given those before it were.

    draft_weights_bytes: read in each pass of the drafter; 0 for n-grams. draft_kv_bytes_per_token: of its own
    cache. passes: of the drafter in a step; None for one for each draft token.
    """

    draft_tokens: int
    acceptance: float
    draft_weights_bytes: float = 0
    draft_kv_bytes_per_token: float = 0
    passes: int | None = None

    def __post_init__(self) -> None:
        if self.draft_tokens < 1:
            raise FootprintError(f"draft_tokens is {self.draft_tokens}; it starts at 1")
        if not 0 <= self.acceptance <= 1:
            raise FootprintError(f"acceptance is {self.acceptance}; it lies between 0 and 1")
        if self.draft_weights_bytes < 0 or self.draft_kv_bytes_per_token < 0:
            raise FootprintError("sizes of a draft cannot be negative")


def experts_touched(count: int, per_token: int, tokens: int) -> float:
    """Expected experts of a layer that a step of so many tokens reads, routed uniformly.

    E * (1 - (1 - k/E)^B). Real routing is uneven and touches fewer.
    """
    if not 1 <= per_token <= count:
        raise FootprintError(f"{per_token} experts per token of {count} cannot be")
    if tokens < 0:
        raise FootprintError("a step has zero or more tokens")
    return float(count * (1 - (1 - per_token / count) ** tokens))


def expected_tokens_per_step(draft_tokens: int, acceptance: float) -> float:
    """Expected tokens that a request gains in one step: (1 - a^(k+1)) / (1 - a).

    Leviathan et al. 2023, Fast Inference from Transformers via Speculative Decoding, equation 1. Without a
    draft it is 1.
    """
    if draft_tokens < 0 or not 0 <= acceptance <= 1:
        raise FootprintError("draft_tokens is zero or more, acceptance between 0 and 1")
    return float(sum(acceptance**position for position in range(draft_tokens + 1)))


def decode_weights(
    architecture: Architecture,
    weights_bytes: float,
    *,
    embedding_element_bytes: float = 2,
    expert_element_bytes: float = 2,
    encoder_element_bytes: float = 2,
    tensor_parallel: int = 1,
    expert_parallel: bool = False,
) -> DecodeWeights:
    """What one rank reads of weights_bytes, all that it holds.

    Left out: an untied input embedding and one for all layers (looked up), encoders of images and audio, and
    experts that no token is routed to. A rank's share of an expert is 1 / tensor_parallel of it; with expert
    parallelism a rank holds whole experts, and reads the same share on average. element bytes: effective,
    with scales.
    """
    if tensor_parallel < 1 or weights_bytes < 0:
        raise FootprintError("tensor_parallel starts at 1, weights at 0")
    hidden = architecture.hidden
    skipped = sum(encoder.parameters for encoder in architecture.encoders) * encoder_element_bytes
    skipped += architecture.layer_embedding_parameters * embedding_element_bytes
    if not architecture.tied:
        skipped += architecture.vocabulary * hidden * embedding_element_bytes
    layers = []
    for layer in architecture.layers:
        part = layer.feed_forward
        if isinstance(part, Experts):
            elements = (3 if part.gated else 2) * hidden * part.intermediate
            if part.bias:
                elements += (2 if part.gated else 1) * part.intermediate + hidden
            layers.append(
                ExpertLayer(elements * expert_element_bytes / tensor_parallel, part.count, part.per_token)
            )
    all_experts = sum(layer.bytes_each * layer.count for layer in layers)
    dense = weights_bytes - skipped / tensor_parallel - all_experts
    if dense < 0:
        raise FootprintError(
            f"the experts and the embedding are larger than all weights of {weights_bytes:.0f} bytes; "
            f"check the element sizes{' and expert parallelism' if expert_parallel else ''}"
        )
    return DecodeWeights(dense_bytes=dense, experts=tuple(layers))


def decode_weights_of_rank(architecture: Architecture, parts: Mapping[Part, float]) -> DecodeWeights:
    """What one rank reads of the parts that it holds, by their bytes: quantized as they are stored.

    Left out as in decode_weights. The experts of a rank, slices of all or some of them whole, are shared out
    among the layers by their size, so that a token's experts are the same part of them on every rank.
    """
    routed = [layer.feed_forward for layer in architecture.layers if isinstance(layer.feed_forward, Experts)]
    routers = sum(part.count * architecture.hidden * 2 for part in routed)  # whole on every rank, 16 bits
    held = max(0.0, parts["experts"] - routers) if routed else 0.0
    sizes = [part.count * part.intermediate for part in routed]
    experts = tuple(
        ExpertLayer(held * size / sum(sizes) / part.count, part.count, part.per_token)
        for part, size in zip(routed, sizes, strict=True)
    )
    table, layered = architecture.vocabulary * architecture.hidden, architecture.layer_embedding_parameters
    looked_up = parts["embedding"] * (layered / (table + layered) if architecture.tied else 1)
    dense = sum(parts.values()) - parts["encoder"] - looked_up - held
    return DecodeWeights(dense_bytes=dense, experts=experts)


def _rank_heads(heads: int, tensor_parallel: int) -> int:
    return max(1, heads // tensor_parallel) if heads else 0


def _mixer_read_bytes(
    mixer: Mixer,
    tokens: int,
    encoder_tokens: int,
    element: float,
    state: float,
    tp: int,
    form: KvFormat | None,
) -> float:
    match mixer:
        case Attention():
            seen = encoder_tokens if mixer.cross else tokens
            if mixer.window is not None:
                seen = min(seen, mixer.window)
            if mixer.chunk is not None and seen:
                # What came in the current chunk so far.
                seen = (seen - 1) % mixer.chunk + 1
            width = mixer.key_dim + mixer.value_dim
            one = width * element if form is None else form.head(mixer.key_dim, mixer.value_dim)
            return seen * _rank_heads(mixer.kv_heads, tp) * one
        case LatentAttention():
            # The latent is on every rank in full; a sparse indexer's keys are read for all tokens.
            width = mixer.kv_lora_rank + mixer.rope_dim
            one = width * element if form is None or form.latent is None else form.latent(width)
            return tokens * (one + (mixer.index_dim or 0) * element)
        case Mamba():
            inner = mixer.inner // tp
            width = inner + (2 * mixer.groups * mixer.state // tp if mixer.version == 2 else 0)
            # Read and written.
            return 2 * (width * (mixer.conv - 1) * element + inner * mixer.state * state)
        case GatedDeltaNet():
            keys = _rank_heads(mixer.key_heads, tp) * mixer.key_dim
            values = _rank_heads(mixer.value_heads, tp) * mixer.value_dim
            return 2 * ((2 * keys + values) * (mixer.conv - 1) * element + values * mixer.key_dim * state)
        case ShortConvolution():
            return 2 * (mixer.width // tp) * (mixer.conv - 1) * element
        case _:
            return 2 * _rank_heads(mixer.heads, tp) * mixer.head_dim**2 * state


def kv_read_bytes(
    architecture: Architecture,
    context_tokens: int,
    *,
    element_bytes: float = 2,
    state_element_bytes: float = 4,
    tensor_parallel: int = 1,
    encoder_tokens: int = 0,
    form: KvFormat | None = None,
) -> float:
    """Bytes of cache that one request's next token reads on one rank.

    form: how K, V and latents are stored, scales included, in place of element_bytes.

    Full attention reads every token, a window its last ones, a chunk what came in it, latent attention the
    latents; recurrent state is read and written whole. Layers that share another's cache read it again. Of
    sparse attention (DeepSeek V3.2) all latents are counted, which makes the ceiling a low one.
    """
    if context_tokens < 0 or encoder_tokens < 0 or tensor_parallel < 1:
        raise FootprintError("tokens are zero or more, tensor_parallel starts at 1")
    return sum(
        count
        * _mixer_read_bytes(
            mixer, context_tokens, encoder_tokens, element_bytes, state_element_bytes, tensor_parallel, form
        )
        for mixer, count in _mixers(architecture).items()
    )


@kept_with_architecture
def _mixers(architecture: Architecture) -> Mapping[Mixer, int]:
    """The different mixers, and how often each is there."""
    return Counter(mixer for layer in architecture.layers for mixer in layer.mixers)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeCeiling:
    """The ceiling of one server as a function of its load, in tokens per second.

    kv_read: bytes that one request reads at a context length. See decode_ceiling. even: tokens are routed
    evenly among the experts, instead of all of them to the same ones.
    """

    weights: DecodeWeights
    kv_read: Callable[[int], float]
    bandwidth_bytes_per_second: float
    speculation: Speculation | None = None
    even: bool = False

    def __call__(self, batch: int, context_tokens: int) -> float:
        [rate] = _rates(
            self.weights.expected_bytes if self.even else lambda _: self.weights.ceiling_bytes(),
            self.kv_read,
            self.bandwidth_bytes_per_second,
            (batch,),
            (context_tokens,),
            self.speculation,
            0,
            None,
        )
        return rate.tokens_per_second

    def evenly(self) -> DecodeCeiling | None:
        """What bandwidth allows where tokens are routed evenly; None for a model without experts."""
        return replace(self, even=True) if self.weights.experts else None


@dataclass(frozen=True, slots=True)
class PipelineCeiling:
    """The ceiling of a pipeline, in tokens per second: stages work one after the other on one request.

    A request gains no token before all stages have read their weights and its cache in turn, and a stage
    reads its weights once and the cache of every request for each token that all of them gain. The lower of
    both is the ceiling.
    """

    stages: tuple[DecodeCeiling, ...]

    def __call__(self, batch: int, context_tokens: int) -> float:
        in_turn = batch / sum(1 / stage(1, context_tokens) for stage in self.stages)
        return min(in_turn, *(stage(batch, context_tokens) for stage in self.stages))

    def evenly(self) -> PipelineCeiling | None:
        """As of its stages; None where none has experts."""
        stages = [stage.evenly() for stage in self.stages]
        if not any(stages):
            return None
        return PipelineCeiling(tuple(even or own for even, own in zip(stages, self.stages, strict=True)))


def _rates(
    weights: Callable[[int], float],
    kv_read: Callable[[int], float],
    bandwidth: float,
    batches: Sequence[int],
    contexts: Sequence[int],
    speculation: Speculation | None,
    active_parameters: float,
    flops_per_second: float | None,
) -> list[DecodeRate]:
    if not bandwidth > 0 or (flops_per_second is not None and not flops_per_second > 0):
        raise FootprintError("bandwidth and FLOP/s are above 0")
    rates = []
    for batch in batches:
        if batch < 1:
            raise FootprintError(f"a batch of {batch} requests cannot be; it starts at 1")
        for context in contexts:
            drafts = speculation.draft_tokens if speculation else 0
            checked = batch * (drafts + 1)
            read = weights(checked) + batch * kv_read(context)
            gained = 1.0
            if speculation is not None:
                draft_kv = batch * context * speculation.draft_kv_bytes_per_token
                passes = drafts if speculation.passes is None else speculation.passes
                read += passes * (speculation.draft_weights_bytes + draft_kv)
                gained = expected_tokens_per_step(drafts, speculation.acceptance)
            seconds = read / bandwidth
            if flops_per_second is not None:
                seconds = max(seconds, 2 * active_parameters * checked / flops_per_second)
            if not seconds > 0:
                raise FootprintError("a step that reads nothing has no ceiling; give the weights' bytes")
            rates.append(DecodeRate(batch, context, batch * gained / seconds))
    return rates


def decode_ceiling(
    weights: DecodeWeights,
    kv_read: Callable[[int], float],
    *,
    bandwidth_bytes_per_second: float,
    batches: Sequence[int],
    contexts: Sequence[int],
    speculation: Speculation | None = None,
    active_parameters: float = 0,
    flops_per_second: float | None = None,
) -> list[DecodeRate]:
    """Tokens per second that no server can exceed, for each batch and context length.

    batch * tokens gained / (bytes of the step / bandwidth), or what computing allows where FLOP/s and the
    active parameters of a rank are given. Of experts only those count that a single token needs. A step with
    speculation works on batch * (draft_tokens + 1) tokens and pays for the draft; then the ceiling holds at
    the given acceptance. kv_read: bytes that one request reads at a context length (see kv_read_bytes).
    """
    return _rates(
        lambda _: weights.ceiling_bytes(),
        kv_read,
        bandwidth_bytes_per_second,
        batches,
        contexts,
        speculation,
        active_parameters,
        flops_per_second,
    )


def decode_expected(
    weights: DecodeWeights,
    kv_read: Callable[[int], float],
    *,
    bandwidth_bytes_per_second: float,
    batches: Sequence[int],
    contexts: Sequence[int],
    speculation: Speculation | None = None,
    active_parameters: float = 0,
    flops_per_second: float | None = None,
) -> list[DecodeRate]:
    """Tokens per second to expect: uniform routing of experts, and the part of the bandwidth GPUs reach.

    The part is `roofline_bandwidth_ratio` of constants.py, not a measurement of this server.
    """
    reached = constant("roofline_bandwidth_ratio").expected
    return _rates(
        weights.expected_bytes,
        kv_read,
        bandwidth_bytes_per_second * reached,
        batches,
        contexts,
        speculation,
        active_parameters,
        None if flops_per_second is None else flops_per_second * reached,
    )
