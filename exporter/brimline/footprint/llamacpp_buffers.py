"""llama.cpp's compute buffers: what one step of its graph needs on each device.

llama.cpp builds the graph of a full micro batch at the start, has ggml-alloc place its tensors, and allocates
what that took, for each backend (src/llama-context.cpp, sched_reserve). A tensor's memory is used again as
soon as nobody reads it, so the buffer is as large as the widest moment: within the widest layer, or when the
logits are made. Around it stay the tensors that the whole graph reads: the attention masks, and copies of the
hidden states.

The moments below follow src/models/*.cpp and src/llama-graph.cpp of build 11434. They were checked against
its own dry run (llama_get_memory_breakdown with no_alloc) for eight families in twenty sizes, on a CPU, on
one and on several devices: the parts that grow with context and batch are exact, the rest lies within BOUND.
Known to lie outside is Jamba whose attention is split from its other layers: three times the buffer where
some layers are on the host, and twelve times the host's with --no-kv-offload.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from brimline.estimate import Estimate, between
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
)

# How far a buffer may be off, as a part of it, beside FLOOR_BYTES of it: ggml-alloc leaves gaps that no
# formula knows. Recurrent states of a pipeline pass between devices in more copies than the others' inputs.
BOUND = 0.25
STATES_IN_PIPELINE_BOUND = 1.25
FLOOR_BYTES = 2 << 20

# Hidden states of the whole micro batch that live beside the widest moment of a layer. A device that takes
# the embeddings from the host holds more of them than one that takes them from another device; with several
# devices in a pipeline every input is held four times over (ggml-backend.cpp, GGML_SCHED_MAX_COPIES).
_STATES_ALONE_ON_HOST = 5
_STATES_ON_DEVICE = 4
_STATES_ON_HOST_BESIDE_DEVICE = 4
_STATES_ON_FIRST_OF_PIPELINE = 16
_STATES_ON_NEXT_OF_PIPELINE = 11
_STATES_ON_HOST_BESIDE_PIPELINE = 10
_STATES_BESIDE_EXPERTS = 2
_STATES_BESIDE_HOSTS_EXPERTS = 3
PIPELINE_COPIES = 4

_FLOAT, _HALF, _INDEX = 4, 2, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSettings:
    """The graph that is reserved.

    tokens: of a micro batch. outputs: rows of logits. cells, window_cells: of attention that a token sees, in
    layers without and with a window. pipelined: several devices work on parts of a batch at once.
    experts_on_host: the CPU works on experts of layers that GPUs hold.
    """

    tokens: int
    slots: int
    outputs: int
    cells: int
    window_cells: int
    flash_attention: bool
    pipelined: bool = False
    experts_on_host: bool = False


def _attentions(layers: Iterable[Layer]) -> Iterable[Attention | LatentAttention]:
    for layer in layers:
        for mixer in layer.mixers:
            if isinstance(mixer, Attention | LatentAttention):
                yield mixer


def _has_window(mixer: Mixer) -> bool:
    return isinstance(mixer, Attention) and (mixer.window is not None or mixer.chunk is not None)


def mask_bytes(layers: Sequence[Layer], graph: GraphSettings) -> int:
    """Masks that say which cells a token sees, and where its values go.

    A row of 16 bits a cell for each token, of 32 without flash attention; slots with caches of their own
    share the rows. Without flash attention values are kept transposed, and each element has an index.
    """
    element = _HALF if graph.flash_attention else _FLOAT
    size = 0
    attentions = set(_attentions(layers))
    for windowed, cells in ((False, graph.cells), (True, graph.window_cells)):
        mixers = [mixer for mixer in attentions if _has_window(mixer) == windowed]
        if mixers:
            size += cells * graph.tokens * element
            if not graph.flash_attention:
                widest = max(
                    (m.kv_heads * m.value_dim for m in mixers if isinstance(m, Attention)), default=0
                )
                size += graph.tokens * widest * _INDEX
    return size


def _mixer_bytes(mixer: Mixer, hidden: int, graph: GraphSettings) -> int:
    """Bytes beside the hidden states at the widest moment of a mixer."""
    row = graph.tokens * _FLOAT
    match mixer:
        case Attention():
            query = row * mixer.query_heads * mixer.key_dim
            # The output finds room in a hole left by hidden states unless it is wider than they are.
            size = query + (query if mixer.query_heads * mixer.key_dim > hidden else 0)
            size += query if mixer.gated else 0
            return size + _scores_bytes(mixer.query_heads, _has_window(mixer), graph)
        case LatentAttention():
            absorbed = mixer.query_heads * (mixer.kv_lora_rank + mixer.rope_dim)
            attended = mixer.query_heads * (mixer.kv_lora_rank + 2 * mixer.value_dim)
            return row * (absorbed + attended) + _scores_bytes(mixer.query_heads, False, graph)
        case Mamba(version=1):
            return row * 4 * mixer.inner + graph.slots * _FLOAT * mixer.inner * mixer.state
        case Mamba():
            mixed = mixer.inner + 2 * mixer.groups * mixer.state
            projected = mixer.inner + mixed + mixer.heads
            state = mixer.heads * mixer.head_dim * mixer.state + mixed * (mixer.conv - 1)
            return row * (projected + 2 * mixed + mixer.inner) + graph.slots * _FLOAT * state
        case GatedDeltaNet():
            keys, values = mixer.key_heads * mixer.key_dim, mixer.value_heads * mixer.value_dim
            state = values * mixer.key_dim
            return row * (2 * keys + values + keys + 3 * values) + (2 * graph.slots - 1) * _FLOAT * state
        case LinearAttention():
            return row * 5 * mixer.heads * mixer.head_dim
        case _:
            return row * 5 * mixer.width  # a gated convolution: B, C and x, their product, the output


def _scores_bytes(heads: int, windowed: bool, graph: GraphSettings) -> int:
    """Scores of all heads, which only flash attention does without."""
    if graph.flash_attention:
        return 0
    return graph.tokens * _FLOAT * heads * (graph.window_cells if windowed else graph.cells)


def _feed_forward_bytes(part: FeedForward | Experts | None, hidden: int, graph: GraphSettings) -> int:
    """Bytes beside the hidden states at the widest moment of a feed-forward part."""
    row = graph.tokens * _FLOAT
    match part:
        case FeedForward():
            # Gate, up and their product; without a gate the activation is in place.
            return row * part.intermediate * (3 if part.gated else 1)
        case Experts():
            inner = row * part.per_token * part.intermediate
            outputs = row * part.per_token * hidden
            # What the experts give is placed where gate and up were, if it fits there.
            chosen = inner * (3 if part.gated else 2) + (outputs if outputs > 2 * inner else 0)
            return max(chosen, row * part.shared_intermediate * 3)
        case None:
            return 0


def _widest(layers: Sequence[Layer], hidden: int, graph: GraphSettings, *, ends: bool) -> int:
    """Bytes of the widest moment. ends: the last of the layers is the model's last.

    Behind the attention of the last layer only those tokens go on whose logits are asked for.
    """
    mixers = {mixer for layer in layers for mixer in layer.mixers}
    few = ends and graph.outputs < graph.tokens
    parts = {layer.feed_forward for layer in (layers[:-1] if few else layers)}
    return max(
        max((_mixer_bytes(mixer, hidden, graph) for mixer in mixers), default=0),
        max((_feed_forward_bytes(part, hidden, graph) for part in parts), default=0),
    )


def _bounded(size: int, *, more: int = 0, bound: float = BOUND) -> Estimate:
    """A buffer within BOUND. more: bytes of the host's weights that a device copies to work on them."""
    return between(
        max(0, size * (1 - BOUND) - FLOOR_BYTES),
        size + more,
        size * (1 + bound) + FLOOR_BYTES + 2 * more,
        f"graph of a micro batch, as ggml-alloc places it, within {bound:.0%}",
    )


def _has_states(architecture: Architecture) -> bool:
    return any(isinstance(mixer, Mamba) for layer in architecture.layers for mixer in layer.mixers)


def device_compute_bytes(
    architecture: Architecture,
    layers: Sequence[Layer],
    graph: GraphSettings,
    *,
    first: bool,
    ends: bool,
    logits: bool,
    copied_weight_bytes: int = 0,
) -> Estimate:
    """Compute buffer of one GPU.

    layers: that it holds; first: they are the first on any GPU; ends: they reach the model's last. logits: it
    holds the head. copied_weight_bytes: of the largest matrix on the host, which a GPU copies to work on it
    for a large batch.
    """
    state = graph.tokens * _FLOAT * architecture.hidden
    head = graph.outputs * _FLOAT * architecture.vocabulary if logits else 0
    if not layers:
        # The head alone takes in few hidden states, or, where a further prediction may want them, all.
        plain = _bounded(head, more=copied_weight_bytes)
        return replace(plain, high=plain.high + (6 * state if logits else 0))
    states = _STATES_ON_DEVICE + (_STATES_BESIDE_HOSTS_EXPERTS if graph.experts_on_host else 0)
    masks = mask_bytes(layers, graph)
    bound = BOUND
    if graph.pipelined:
        states = _STATES_ON_FIRST_OF_PIPELINE if first else _STATES_ON_NEXT_OF_PIPELINE
        masks *= PIPELINE_COPIES
        bound = STATES_IN_PIPELINE_BOUND if _has_states(architecture) else BOUND
    around = masks + states * state
    widest = max(_widest(layers, architecture.hidden, graph, ends=ends), head)
    found = _bounded(around + widest, more=copied_weight_bytes, bound=bound)
    # Families that predict further tokens take all tokens through the last layer.
    all_tokens = around + _widest(layers, architecture.hidden, graph, ends=False)
    return replace(found, high=max(found.high, all_tokens + all_tokens // 10 + copied_weight_bytes))


def host_compute_bytes(
    architecture: Architecture, layers: Sequence[Layer], graph: GraphSettings, *, holds_cache: bool = False
) -> Estimate:
    """Compute buffer in host memory.

    layers: that the CPU works on; none where GPUs hold all of them. holds_cache: the cache of the GPUs'
    layers lies on the host (--no-kv-offload), which then works on their attention.
    """
    state = graph.tokens * _FLOAT * architecture.hidden
    masks = mask_bytes(architecture.layers, graph)
    if layers:
        logits = graph.outputs * _FLOAT * architecture.vocabulary
        widest = max(_widest(layers, architecture.hidden, graph, ends=False), logits)
        return _bounded(masks + _STATES_ALONE_ON_HOST * state + widest)
    if graph.pipelined:
        return _bounded(PIPELINE_COPIES * masks + _STATES_ON_HOST_BESIDE_PIPELINE * state)
    size = masks + _STATES_ON_HOST_BESIDE_DEVICE * state
    if graph.experts_on_host:
        parts = [layer.feed_forward for layer in architecture.layers]
        widest = max(
            _feed_forward_bytes(part, architecture.hidden, graph)
            for part in parts
            if isinstance(part, Experts)
        )
        size = max(size, masks + _STATES_BESIDE_EXPERTS * state + widest)
    plain = _bounded(size)
    if not holds_cache:
        return plain
    mixers = [mixer for layer in architecture.layers for mixer in layer.mixers]
    attended = max((_mixer_bytes(mixer, architecture.hidden, graph) for mixer in mixers), default=0)
    return replace(plain, high=plain.high + attended)


def output_bytes(architecture: Architecture, slots: int) -> int:
    """The buffer that logits are handed out in: a row for each slot (llama-context.cpp, output_reserve)."""
    return slots * _FLOAT * architecture.vocabulary
