"""Working memory of a step: the forward pass, the sampler, and what multimodal encoders keep.

An engine that profiles itself (vLLM) reserves the peak of one full batch: max_num_batched_tokens through the
layers, then one token of max_num_seqs requests through the sampler. The two follow each other; only the
hidden states, and the experts' work buffers, live through both.
"""

from __future__ import annotations

from dataclasses import dataclass

from brimline.errors import FootprintError
from brimline.estimate import Estimate, between, exact, total
from brimline.footprint.architecture import (
    Architecture,
    Attention,
    Encoder,
    Experts,
    FeedForward,
    GatedDeltaNet,
    LatentAttention,
    Mamba,
    Mixer,
    ShortConvolution,
    kept_with_architecture,
)
from brimline.footprint.constants import Constant, constant, parse_version


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """How many tokens one step works on, on one GPU rank.

    element_bytes: of an activation. pipeline_parallel: stages; last_stage: this rank is of the one that
    samples. data_parallel: replicas that share their experts. expert_parallel: whole experts on each rank
    instead of slices of all. sampler: `v1` or `pytorch`; empty for what the version does by default.
    draft_tokens: that a step verifies for each request. auxiliary_states: hidden states that a drafter reads,
    kept through the forward pass (EAGLE-3: 3).
    """

    max_num_batched_tokens: int
    max_num_seqs: int
    element_bytes: int = 2
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    data_parallel: int = 1
    expert_parallel: bool = False
    last_stage: bool = True
    sampler: str = ""
    draft_tokens: int = 0
    auxiliary_states: int = 0

    def __post_init__(self) -> None:
        for name in (
            "max_num_batched_tokens", "max_num_seqs", "element_bytes", "tensor_parallel", "data_parallel",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise FootprintError(f"{name} is {getattr(self, name)}; it starts at 1")
        if self.pipeline_parallel < 1:
            raise FootprintError(f"pipeline_parallel is {self.pipeline_parallel}; it starts at 1")
        if self.sampler not in ("", "v1", "pytorch"):
            raise FootprintError(f"unknown sampler {self.sampler!r}; known: v1, pytorch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """Peaks in bytes: of the forward pass, of the sampler, and of the step, the larger of both.

    unprofiled: what verifying drafts takes beyond the peak that the profile run saw.
    """

    forward: Estimate
    sampler: Estimate
    peak: Estimate
    unprofiled: Estimate = exact(0, "nothing is drafted")  # noqa: RUF009 (it is frozen)


def _heads(heads: int, tensor_parallel: int) -> int:
    return max(1, heads // tensor_parallel) if heads else 0


def _mixer_width(mixer: Mixer, tensor_parallel: int) -> int:
    """Elements per token that one mixer holds at once: its projections and its output."""
    tp = tensor_parallel
    match mixer:
        case Attention():
            query = _heads(mixer.query_heads, tp) * mixer.key_dim * (2 if mixer.gated else 1)
            key_value = _heads(mixer.kv_heads, tp) * (mixer.key_dim + mixer.value_dim)
            return query + key_value + _heads(mixer.query_heads, tp) * mixer.value_dim
        case LatentAttention():
            heads = _heads(mixer.query_heads, tp)
            latent = (mixer.q_lora_rank or 0) + mixer.kv_lora_rank + mixer.rope_dim
            query = heads * (mixer.nope_dim + mixer.rope_dim)
            # A prompt's K and V are unpacked to full heads; its output is as wide as V.
            return latent + query + heads * (mixer.nope_dim + mixer.rope_dim + 2 * mixer.value_dim)
        case Mamba():
            return 3 * mixer.inner // tp + 2 * mixer.groups * mixer.state
        case GatedDeltaNet():
            keys = _heads(mixer.key_heads, tp) * mixer.key_dim
            values = _heads(mixer.value_heads, tp) * mixer.value_dim
            # q, k, v and the gate z; the convolved copy of q, k, v; the output.
            return 2 * (2 * keys + values) + 2 * values
        case ShortConvolution():
            return 5 * mixer.width // tp  # B, C and x, the convolved product, the output
        case _:
            return 5 * _heads(mixer.heads, tp) * mixer.head_dim


def _dense_width(intermediate: int, gated: bool, tensor_parallel: int) -> int:
    return (3 if gated else 2) * intermediate // tensor_parallel


def _feed_forward_width(part: FeedForward | Experts | None, tensor_parallel: int) -> int:
    """Elements per token of a dense part, or of the experts that all tokens share."""
    match part:
        case FeedForward():
            return _dense_width(part.intermediate, part.gated, tensor_parallel)
        case Experts():
            return part.count + _dense_width(part.shared_intermediate, part.gated, tensor_parallel)
        case None:
            return 0


@kept_with_architecture
def _widest_part(architecture: Architecture, tensor_parallel: int) -> int:
    """Elements per token of the widest mixer or feed-forward part of a rank."""
    widest = 0
    for layer in architecture.layers:
        mixers = max((_mixer_width(mixer, tensor_parallel) for mixer in layer.mixers), default=0)
        widest = max(widest, mixers, _feed_forward_width(layer.feed_forward, tensor_parallel))
    return widest


def moe_workspace_bytes(architecture: Architecture, settings: BatchSettings) -> int:
    """Bytes of the two buffers that fused experts work in; 0 without experts.

    2 * T * top_k * max(gate and up of a rank, hidden) * b: one buffer holds what gate and up give, the other
    what goes in and comes out (as vLLM 0.33's fused_moe sizes its workspaces).
    """
    tp = 1 if settings.expert_parallel else settings.tensor_parallel
    widest = max(
        (
            part.per_token * max((2 if part.gated else 1) * part.intermediate // tp, architecture.hidden)
            for layer in architecture.layers
            if isinstance(part := layer.feed_forward, Experts)
        ),
        default=0,
    )
    return 2 * settings.max_num_batched_tokens * widest * settings.element_bytes


def _is_mxfp4(architecture: Architecture) -> bool:
    return architecture.quantization is not None and architecture.quantization.method == "mxfp4"


def _held_workspace(architecture: Architecture, settings: BatchSettings, version: str | None) -> Estimate:
    """Bytes of the experts' buffers that stay allocated while the sampler runs."""
    size = moe_workspace_bytes(architecture, settings)
    if not size:
        return exact(0, "the model has no experts")
    variant = "mxfp4" if _is_mxfp4(architecture) else ""
    part = constant("moe_workspace_factor", engine="vllm", version=version, variant=variant)
    most = size * part.high * settings.data_parallel
    return between(size * part.low, size * part.expected, most, f"experts: {part.source}")


def hidden_states_bytes(architecture: Architecture, settings: BatchSettings) -> int:
    """Bytes of the hidden states of all batched tokens."""
    return settings.max_num_batched_tokens * architecture.hidden * settings.element_bytes


def forward_elements(architecture: Architecture, settings: BatchSettings) -> int:
    """Elements that the forward pass holds at once for each token: hidden states and the widest part."""
    streams = (4 if settings.pipeline_parallel > 1 else 2) + settings.auxiliary_states
    return streams * architecture.hidden + _widest_part(architecture, settings.tensor_parallel)


def forward_bytes(
    architecture: Architecture, settings: BatchSettings, *, version: str | None = None
) -> Estimate:
    """Peak of the forward pass with fused attention, whose score matrix is never written out.

    T * b * (2 * hidden + the widest mixer or feed-forward part of a rank), times how far measured peaks lie
    from it; the experts' buffers come on top. A pipeline stage holds two more hidden states, its input and
    its residual; EAGLE-3 has those that it reads kept. Replicas that share experts may gather the tokens of
    all of them: high counts that. Sources: the sizes of vLLM's tensors, and the runs named in constants.py.
    """
    per_token = forward_elements(architecture, settings)
    size = settings.max_num_batched_tokens * per_token * settings.element_bytes
    factor = constant("forward_factor", engine="vllm", version=version)
    plain = between(
        size * factor.low, size * factor.expected, size * factor.high, f"forward pass: {factor.source}"
    )
    workspace = moe_workspace_bytes(architecture, settings)
    if not workspace:
        return plain
    most = workspace * 1.25 * settings.data_parallel
    buffers = between(workspace * 0.7, workspace, most, "the experts' two work buffers")
    return total((plain, buffers), f"{plain.source}, and the experts' work buffers")


def sampler_bytes(
    vocabulary: int,
    settings: BatchSettings,
    *,
    hidden: int,
    factor: float | None = None,
    version: str | None = None,
    engine: str = "vllm",
) -> Estimate:
    """Peak of the sampler: the hidden states of all batched tokens, and K * max_num_seqs * vocabulary * 4.

    K counts logits, sorted values and indices, probabilities. It belongs to the engine's version and sampler,
    not to the model, and does not shrink with tensor parallelism: logits are gathered. factor: K as measured
    on a server; else the table's. At most as many requests as tokens sample (vLLM 0.32, gpu_worker.py).
    """
    kept = settings.max_num_batched_tokens * hidden * settings.element_bytes
    logits = 4 * min(settings.max_num_seqs, settings.max_num_batched_tokens) * vocabulary
    if factor is not None:
        if not factor > 0:
            raise FootprintError(f"sampler_bytes_factor is {factor}; it is a number above 0")
        return between(
            kept + 0.97 * factor * logits,
            kept + factor * logits,
            kept + 1.03 * factor * logits,
            "sampler: factor measured on a server",
        )
    row: Constant = constant("sampler_bytes_factor", engine=engine, version=version, variant=settings.sampler)
    return between(
        kept + row.low * logits,
        kept + row.expected * logits,
        kept + row.high * logits,
        f"sampler: {row.source}",
    )


def activations(
    architecture: Architecture,
    settings: BatchSettings,
    *,
    version: str | None = None,
    sampler_factor: float | None = None,
) -> Activations:
    """Peak activation memory that vLLM reserves from a profile run on one rank.

    The larger of the forward pass and the sampler; stages of a pipeline before the last do not sample.
    """
    forward = forward_bytes(architecture, settings, version=version)
    if not settings.last_stage:
        return Activations(
            forward=forward, sampler=exact(0, "an earlier pipeline stage does not sample"), peak=forward
        )
    alone = sampler_bytes(
        architecture.vocabulary, settings, hidden=architecture.hidden, factor=sampler_factor, version=version
    )
    held = _held_workspace(architecture, settings, version)
    sampler = total((alone, held), alone.source) if held.high else alone
    unprofiled = exact(0, "nothing is drafted")
    if settings.draft_tokens:
        profiled, unprofiled = verification_bytes(architecture.vocabulary, settings, version=version)
        sampler = total((sampler, profiled), sampler.source)
    winner = sampler if sampler.expected >= forward.expected else forward
    peak = Estimate(
        max(forward.low, sampler.low),
        max(forward.expected, sampler.expected),
        max(forward.high, sampler.high),
        winner.source,
    )
    return Activations(forward=forward, sampler=sampler, peak=peak, unprofiled=unprofiled)


def encoder_cache_bytes(
    hidden: int,
    *,
    max_tokens_per_item: int,
    cache_tokens: int,
    element_bytes: int = 2,
) -> Estimate:
    """Most bytes of encoder outputs (images, audio) that vLLM keeps beside the K/V cache.

    max(cache_tokens, max_tokens_per_item) * hidden * b; cache_tokens is max_num_batched_tokens unless set
    (vLLM 0.32, v1/core/encoder_cache_manager.py compute_mm_encoder_budget). Nothing is held before requests
    with images come, so low is 0. The profile run holds it, so it is part of the activation peak there.
    """
    if min(hidden, max_tokens_per_item, cache_tokens, element_bytes) < 0:
        raise FootprintError("sizes of an encoder cache cannot be negative")
    if not max_tokens_per_item:
        return exact(0, "no multimodal input")
    size = max(cache_tokens, max_tokens_per_item) * hidden * element_bytes
    return Estimate(0, size, size, "vLLM 0.32, encoder_cache_manager.py compute_mm_encoder_budget")


def encoder_forward_bytes(encoder: Encoder, tokens: int, *, element_bytes: int = 2) -> Estimate:
    """Bytes that encoding images or sounds of so many tokens takes at its peak; 0 where no size is known.

    patches * b * (2 * width + the wider of q, k, v, output and the feed-forward part), as for a decoder; each
    rank encodes whole items. Not checked against a measurement, so the bounds are a half and the double.
    """
    if encoder.width is None or encoder.inner is None:
        return exact(0, "the encoder's sizes are not known")
    widest = max(4 * encoder.width, 3 * encoder.inner)
    size = tokens * encoder.merged * (2 * encoder.width + widest) * element_bytes
    return between(
        size / 2, size, 2 * size, f"encoding {tokens:,} tokens: sizes of its tensors, not measured"
    )


def eager_attention_bytes(*, batch: int, query_heads: int, tokens: int, element_bytes: int = 2) -> Estimate:
    """What if: the score matrix of one layer where attention is written out (`eager`), not fused.

    batch * heads * tokens² elements. Low: the scores once. Expected: scores, their softmax in fp32, and its
    copy in the model's type (transformers 5.19, modeling_llama.py eager_attention_forward). High: the masked
    copy of the scores as well. Fused attention (FlashAttention, SDPA) never holds it.
    """
    if min(batch, query_heads, tokens, element_bytes) < 1:
        raise FootprintError("batch, query_heads, tokens and element_bytes start at 1")
    scores = batch * query_heads * tokens * tokens
    return between(
        scores * element_bytes,
        scores * (2 * element_bytes + 4),
        scores * (3 * element_bytes + 4),
        "batch * heads * tokens², eager attention",
    )


def prompt_logprobs_bytes(vocabulary: int, prompt_tokens: int) -> int:
    """Bytes that a request for prompt_logprobs takes and no engine's profile run has reserved.

    Logits of each prompt token in 16 bits and in fp32: T * V * (2 + 4) (vLLM PR 52054).
    """
    if min(vocabulary, prompt_tokens) < 0:
        raise FootprintError("vocabulary and prompt_tokens cannot be negative")
    return vocabulary * prompt_tokens * 6


# The second model runner, default since 0.31, copies the logits of drafts to fp32 in chunks of 1 GiB
# (vLLM PR 48630).
_CHUNKED_VERIFICATION = (0, 31)
_CHUNK_BYTES = 1 << 30


def verification_bytes(
    vocabulary: int, settings: BatchSettings, *, version: str | None = None
) -> tuple[Estimate, Estimate]:
    """Bytes that verifying drafts takes beside the sampler: in the profile run, and beyond it.

    The first model runner profiles one draft token a request, and the others come at run time: (k - 1) * S *
    V * 4, at most 10 bytes a logit with its copies (vLLM PR 38220; 0.32, v1/sample/rejection_sampler.py). The
    second profiles none; it holds 16-bit logits of all tokens and a chunk of them in fp32 (0.32,
    v1/worker/gpu/spec_decode/rejection_sampler.py). Low is 0: few batches are ever full.
    """
    sampled = min(settings.max_num_seqs, settings.max_num_batched_tokens)
    rows = min(settings.max_num_seqs * (settings.draft_tokens + 1), settings.max_num_batched_tokens)
    if version is None or parse_version(version) >= _CHUNKED_VERIFICATION:
        chunk = max(0, min(_CHUNK_BYTES, rows * vocabulary * 4) - sampled * vocabulary * 4)
        later = (rows - sampled) * vocabulary * settings.element_bytes + chunk
        source = "verifying drafts: vLLM 0.32, v1/worker/gpu/spec_decode/rejection_sampler.py"
        return exact(0, source), Estimate(0, later, later, source)
    one = sampled * vocabulary
    more = max(0, rows - 2 * sampled) * vocabulary
    source = "verifying drafts: vLLM PR 38220"
    return (
        Estimate(0, one * settings.element_bytes, one * 4, source),
        Estimate(0, more * 4, more * 10, source),
    )


def rejection_sampler_bytes(vocabulary: int, max_num_seqs: int, draft_tokens: int) -> int:
    """Bytes of logits that verifying draft tokens takes: (S * k + S) * V * 4 (vLLM PR 38220)."""
    if min(vocabulary, max_num_seqs, draft_tokens) < 0:
        raise FootprintError("vocabulary, max_num_seqs and draft_tokens cannot be negative")
    return (max_num_seqs * draft_tokens + max_num_seqs) * vocabulary * 4
