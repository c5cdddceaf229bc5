"""vLLM's KV cache, block by block: pages of every kind of layer, groups, the pool and its capacity.

vLLM keeps one pool of equal blocks per GPU. A block holds one page of each layer of one group; layers of one
kind form groups of equal size, each with a block table of its own. The formulas follow vLLM 0.32
(v1/kv_cache_interface.py, v1/core/kv_cache_utils.py, platforms/interface.py _align_hybrid_block_size) and
0.33, where the pool is built in v1/core/kv_cache_planning.py by the same rules; where an older version
counts otherwise, the version decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

from brimline.errors import FootprintError, SettingError
from brimline.footprint.architecture import (
    Architecture,
    Attention,
    GatedDeltaNet,
    LatentAttention,
    Layer,
    LinearAttention,
    Mamba,
    Mixer,
    ShortConvolution,
    kept_with_architecture,
)
from brimline.footprint.kv_dtypes import (
    TORCH_ELEMENT_BYTES,
    VLLM_KV_FORMATS,
    KvFormat,
    model_run_dtype,
    vllm_kv_format,
)

Version = tuple[int, ...]

NEWEST_VERSION: Version = (0, 33)

# The group size is the largest layer count instead of the smallest up to this ratio: 1.25 before, 1.5 since
# (vllm-project/vllm pull request 36684, merged in March 2026).
_WIDER_GROUPS: Version = (0, 18)
# Capacity in tokens is max_concurrency * max_model_len (vllm-project/vllm issue 43308).
_CAPACITY_BY_CONCURRENCY: Version = (0, 21)
# The labels kv_cache_size_tokens and kv_cache_max_concurrency exist.
_CAPACITY_PUBLISHED: Version = (0, 24)
# Windows reserve for every batch in flight, not for one (vllm-project/vllm pull request 47728).
_EVERY_BATCH_IN_FLIGHT: Version = (0, 26)
# Prefix caching of models with recurrent states is on by default (vllm-project/vllm pull request 50991).
_HYBRIDS_CACHE_PREFIXES: Version = (0, 28)
# Mamba 2 keeps the state of a block's end out of one prefill (mamba_mixer2.py of 0.32; pull request 57329 is
# younger than 0.28, and which version had it first is not known here).
_MAMBA2_CHECKPOINTS: Version = (0, 32)
# So does a gated delta net (gdn/qwen_gdn_linear_attn.py of 0.33) where FlashInfer prefills it, on blocks of a
# multiple of 64 tokens.
_DELTA_CHECKPOINTS: Version = (0, 33)
_DELTA_CHECKPOINT_TOKENS = 64
# Families whose config.json vLLM asks for the type of recurrent states: from which version, and the type
# where the file says nothing (models/config.py of 0.32; pull requests 29978, 39032 and 34489). All others
# keep states in the type of the convolution, whatever their file says.
_STATED_STATE_TYPES: dict[str, tuple[tuple[Version, str | None], ...]] = {
    "nemotron_h": (((0, 20), "float32"), ((0, 13), "float16")),
    "nemotron_h_puzzle": (((0, 20), "float32"), ((0, 13), "float16")),
    "qwen3_5_text": (((0, 16), None),),
    "qwen3_5_moe_text": (((0, 16), None),),
    "qwen3_5": (((0, 16), None),),
    "qwen3_5_moe": (((0, 16), None),),
}

Kind = Literal["full", "latent", "sliding", "chunked", "cross", "state"]
State = Mamba | GatedDeltaNet | LinearAttention | ShortConvolution
# Layers whose K/V grow with the context without an end; vLLM may put them into one group.
_UNBOUNDED: tuple[Kind, ...] = ("full", "latent")


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmCacheSettings:
    """How a vLLM server is launched, as far as its KV cache sees it.

    dtype, kv_cache_dtype, mamba_cache_dtype, mamba_ssm_cache_dtype: as the flags spell them; None is `auto`.
    block_size: --block-size; None for vLLM's default of 16, raised where the attention kernels take only
    multiples of kernel_block_size. max_concurrent_batches: None derives it from async_scheduling and the
    pipeline. draft_layers: layers of a drafter, which keep K/V in the same pool. drafts_from_text: there are
    none, as with n-grams. multi_module_mtp: several MTP modules draft, one after the other.
    pipeline_partition: VLLM_PP_LAYER_PARTITION.
    skipped_layers: indexes of --kv-cache-dtype-skip-layers, which keep the type the model runs in.
    prefix_caching: None for what the version does by default with such a model.
    """

    max_model_len: int
    max_num_batched_tokens: int
    version: Version = NEWEST_VERSION
    dtype: str | None = None
    kv_cache_dtype: str | None = None
    block_size: int | None = None
    kernel_block_size: int = 16
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    decode_context_parallel: int = 1
    pipeline_partition: tuple[int, ...] | None = None
    async_scheduling: bool = True
    max_concurrent_batches: int | None = None
    prefix_caching: bool | None = None
    hybrid_cache_manager: bool = True
    mamba_cache_mode: str | None = None
    mamba_cache_dtype: str | None = None
    mamba_ssm_cache_dtype: str | None = None
    speculative_tokens: int = 0
    multi_module_mtp: bool = False
    draft_layers: tuple[Layer, ...] = ()
    drafts_from_text: bool = False
    skipped_layers: frozenset[int] = frozenset()
    num_gpu_blocks_override: int | None = None
    kv_cache_layout: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPage:
    """What one layer keeps per block on one GPU.

    index: of the decoder layer; draft layers count on after the model's. block_tokens: tokens of a block;
    for states, the tokens between two kept states. token_bytes: of one token; state_bytes: of one state, the
    other is 0. padded_bytes: the page is filled up to this size. layout: what must be equal for two layers to
    share a group. window, chunk: tokens. checkpoint_states: states of a block's end that one prefill keeps
    beside its last, where blocks are a multiple of checkpoint_tokens. sharded: decode-context parallel ranks
    split its tokens. source: where the formula stands.
    """

    index: int
    kind: Kind
    block_tokens: int
    token_bytes: int = 0
    state_bytes: int = 0
    padded_bytes: int | None = None
    layout: tuple[object, ...] = ()
    window: int | None = None
    chunk: int | None = None
    checkpoint_states: int = 0
    checkpoint_tokens: int = 1
    sharded: bool = True
    source: str = ""

    @property
    def content_bytes(self) -> int:
        """Bytes of a page without what it is padded with."""
        return self.state_bytes if self.kind == "state" else self.block_tokens * self.token_bytes

    @property
    def page_bytes(self) -> int:
        return self.content_bytes if self.padded_bytes is None else self.padded_bytes

    def shares_group_with(self, other: LayerPage) -> bool:
        """True where vLLM sees one and the same kind of page; full attention may differ in its window."""
        first = (self.kind, self.block_tokens, self.page_bytes, self.padded_bytes, self.layout, self.sharded)
        second = (
            other.kind, other.block_tokens, other.page_bytes, other.padded_bytes, other.layout, other.sharded,
        )  # fmt: skip
        if first != second:
            return False
        if self.kind in _UNBOUNDED:
            return self.window is None or other.window is None or self.window == other.window
        return (self.window, self.chunk, self.checkpoint_states) == (
            other.window, other.chunk, other.checkpoint_states,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheGroup:
    """Layers that share one block table.

    page_bytes: of one layer, or of all of them where their pages differ (`mixed`). kinds: the pages that
    differ in more than their layer.
    """

    kind: Kind
    pages: tuple[LayerPage, ...]
    mixed: bool
    kinds: tuple[LayerPage, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        kinds = dict.fromkeys(replace(page, index=0) for page in self.pages)
        object.__setattr__(self, "kinds", tuple(kinds))

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(page.index for page in self.pages)

    @property
    def block_tokens(self) -> int:
        return self.pages[0].block_tokens

    @property
    def page_bytes(self) -> int:
        return sum(page.page_bytes for page in self.pages) if self.mixed else self.pages[0].page_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmCache:
    """The KV cache of one vLLM engine: per GPU rank, for one data-parallel rank.

    block_bytes: of one block on the fullest pipeline stage; stage_block_bytes: of every stage.
    stage_windows: of every stage, window (or chunk) and bytes of a token of each group that has one.
    block_size: the label of cache_config_info after the start, the smallest of all groups.
    """

    settings: VllmCacheSettings
    groups: tuple[CacheGroup, ...]
    stage_block_bytes: tuple[int, ...]
    stage_token_bytes: tuple[Fraction, ...]
    stage_windows: tuple[tuple[tuple[int, Fraction], ...], ...]
    stage_written_bytes: tuple[int, ...]
    format: KvFormat
    assumptions: tuple[str, ...]
    source: str

    @property
    def block_bytes(self) -> int:
        return max(self.stage_block_bytes)

    @property
    def block_size(self) -> int | None:
        return min((group.block_tokens for group in self.groups), default=None)

    @property
    def null_blocks(self) -> int:
        """Blocks that never hold a token: the pool keeps one back (vLLM 0.32, v1/core/block_pool.py)."""
        return 1

    @property
    def bytes_per_token(self) -> Fraction:
        """Bytes that one more token of context costs for good on the fullest GPU, padding included.

        Only layers that see the whole context count, among them those whose window is as long as
        --max-model-len: 0 where all layers have shorter windows, or states.
        """
        longest = self.settings.max_model_len
        return max(
            whole + sum((size for window, size in windows if window >= longest), Fraction(0))
            for whole, windows in zip(self.stage_token_bytes, self.stage_windows, strict=True)
        )

    @property
    def bytes_per_token_within_window(self) -> Fraction:
        """Bytes that one more token costs while no window is full."""
        return max(
            whole + sum((size for _, size in windows), Fraction(0))
            for whole, windows in zip(self.stage_token_bytes, self.stage_windows, strict=True)
        )

    @property
    def window_tokens(self) -> int | None:
        """The shortest window below --max-model-len; None where each layer sees the whole context."""
        listed = (window for windows in self.stage_windows for window, _ in windows)
        return min((window for window in listed if window < self.settings.max_model_len), default=None)

    @property
    def written_bytes_per_token(self) -> int:
        """Bytes that one token writes in all attention layers of the fullest GPU, before any is freed."""
        return max(self.stage_written_bytes)

    @property
    def capacity_is_published(self) -> bool:
        """True where cache_config_info carries kv_cache_size_tokens and kv_cache_max_concurrency."""
        return self.settings.version >= _CAPACITY_PUBLISHED

    def group_blocks(self, tokens: int) -> tuple[int, ...]:
        """Blocks that a request of at most `tokens` tokens may hold in each group.

        What vLLM counts on at the start and on admission; a window keeps the tokens of every batch in flight
        beside its own (v1/kv_cache_interface.py max_memory_usage_bytes).
        """
        if tokens < 0:
            raise FootprintError(f"a request cannot have {tokens} tokens")
        return tuple(
            max(_request_blocks(page, tokens, self.settings) for page in group.kinds) for group in self.groups
        )

    def request_blocks(self, tokens: int) -> int:
        """Blocks that one request of at most `tokens` tokens may hold, of all groups."""
        return sum(self.group_blocks(tokens))

    def bytes_by_tokens(self, tokens: int) -> int:
        """Bytes that one request of at most `tokens` tokens may hold on the fullest GPU."""
        return self.request_blocks(tokens) * self.block_bytes

    def num_blocks(self, available_bytes: int | Sequence[int]) -> int:
        """Blocks of the pool, the null block included.

        available_bytes: what the profiling left on a GPU, or for each pipeline stage in turn. The stage with
        the fewest blocks decides for all (get_kv_cache_configs). --num-gpu-blocks-override wins.
        """
        override = self.settings.num_gpu_blocks_override
        if not self.groups:
            return 1
        if override is not None:
            return override
        stages = len(self.stage_block_bytes)
        listed = [available_bytes] * stages if isinstance(available_bytes, int) else list(available_bytes)
        if len(listed) != stages:
            raise FootprintError(
                f"available bytes are given for {len(listed)} stages, --pipeline-parallel-size is {stages}"
            )
        counts = (
            max(0, free // size)
            for free, size in zip(listed, self.stage_block_bytes, strict=True)
            if size
        )  # fmt: skip
        return min(counts, default=0)

    def pool_bytes(self, num_blocks: int) -> int:
        """Bytes of a pool of so many blocks on the fullest GPU."""
        return num_blocks * self.block_bytes

    def needed_bytes(self) -> int:
        """Bytes below which the server does not start: one request of --max-model-len and the null block.

        vLLM 0.32, get_kv_cache_configs; older versions did not set the null block aside.
        """
        return (self.request_blocks(self.settings.max_model_len) + self.null_blocks) * self.block_bytes

    def max_concurrency(self, num_blocks: int) -> float | None:
        """Requests of --max-model-len that the pool holds at once; None where nothing is cached per request.

        num_blocks / sum of the groups' blocks (get_max_concurrency_for_kv_cache_config).
        """
        blocks = self.request_blocks(self.settings.max_model_len)
        return num_blocks / blocks if blocks else None

    def capacity_tokens(self, num_blocks: int) -> int | None:
        """Tokens of the pool, by the definition of the version.

        From 0.21 int(max_concurrency * max_model_len), the label kv_cache_size_tokens; before, the blocks
        shared out evenly among the groups, times the smallest block and the decode-context parallel ranks.
        Compare bytes or blocks across versions, never these tokens.
        """
        if self.settings.version >= _CAPACITY_BY_CONCURRENCY:
            concurrency = self.max_concurrency(num_blocks)
            return None if concurrency is None else int(concurrency * self.settings.max_model_len)
        if self.block_size is None:
            return None
        return num_blocks // len(self.groups) * self.block_size * self.settings.decode_context_parallel


def vllm_cache(model: Architecture, settings: VllmCacheSettings) -> VllmCache:
    """The KV cache that vLLM builds for a model.

    Raises FootprintError naming the flag where the model cannot be split so, or a layout is not known.
    """
    _check(settings)
    if settings.prefix_caching is None:
        settings = replace(settings, prefix_caching=_caches_prefixes_by_default(model, settings.version))
    if _state_mode(settings) == "none":  # one state is as long as the longest request
        return _laid_out(model, settings)
    # Neither length nor batch decides how blocks are laid out: those that differ in them share a layout.
    alike = replace(settings, max_model_len=1, max_num_batched_tokens=1)
    return replace(_laid_out(model, alike), settings=settings)


@kept_with_architecture
def _laid_out(model: Architecture, settings: VllmCacheSettings) -> VllmCache:
    dtype, assumed_dtype = model_run_dtype(settings.dtype, model.dtype)
    asks = model.quantization.kv_cache if model.quantization is not None else None
    chosen, assumed_format = vllm_kv_format(
        settings.kv_cache_dtype or "auto", model_dtype=dtype, checkpoint_asks=asks
    )
    assumptions = [one for one in (assumed_dtype, assumed_format) if one]
    layers = (*model.layers, *settings.draft_layers)
    if settings.speculative_tokens and not settings.draft_layers and not settings.drafts_from_text:
        assumptions.append("The drafter's own K/V is not counted: its layers are not given.")

    formats = _formats(layers, settings, chosen, VLLM_KV_FORMATS[dtype], assumptions)
    pages = _pages(model.model_type, layers, settings, formats, dtype, assumptions)
    pages = _aligned(pages, _alignment_token_bytes(model.layers, settings, formats), settings)
    pages = _aligned_to_skipped(pages, settings, formats, VLLM_KV_FORMATS[dtype])
    if not settings.hybrid_cache_manager:
        pages = _promoted(pages)
    groups = _groups(pages, settings, assumptions)
    if settings.decode_context_parallel > 1 and any(page.kind == "sliding" for page in pages):
        raise FootprintError(
            "--decode-context-parallel-size cannot split sliding-window layers (vLLM 0.32, SlidingWindowSpec)"
        )
    windowed = any(page.kind in ("sliding", "chunked") for page in pages)
    if windowed and settings.max_concurrent_batches is None and settings.pipeline_parallel > 1:
        assumptions.append("Model runner V2 is assumed: one batch in flight more than pipeline stages.")

    stages = _stages(len(model.layers), len(settings.draft_layers), settings)
    return VllmCache(
        settings=settings,
        groups=groups,
        stage_block_bytes=tuple(_stage_block_bytes(groups, stage) for stage in stages),
        stage_token_bytes=tuple(
            sum(_token_bytes(groups, stage, settings, _UNBOUNDED).values(), Fraction(0)) for stage in stages
        ),
        stage_windows=tuple(
            tuple(
                (page.window or page.chunk or 0, size)
                for page, size in _token_bytes(groups, stage, settings, ("sliding", "chunked")).items()
            )
            for stage in stages
        ),
        stage_written_bytes=tuple(
            sum(
                page.token_bytes
                for group in groups
                for page in group.pages
                if page.index in stage and page.kind != "cross"
            )
            for stage in stages
        ),
        format=chosen,
        assumptions=(*model.assumptions, *assumptions),
        source=f"{model.source or model.model_type}, vLLM {'.'.join(map(str, settings.version))} block rules",
    )


def _check(settings: VllmCacheSettings) -> None:
    for flag, value in (
        ("--max-model-len", settings.max_model_len),
        ("--max-num-batched-tokens", settings.max_num_batched_tokens),
        ("--tensor-parallel-size", settings.tensor_parallel),
        ("--pipeline-parallel-size", settings.pipeline_parallel),
        ("--decode-context-parallel-size", settings.decode_context_parallel),
        ("--block-size", settings.block_size if settings.block_size is not None else 1),
    ):
        if value < 1:
            raise FootprintError(f"{flag} {value} must be at least 1")
    if settings.speculative_tokens < 0:
        raise FootprintError(f"num_speculative_tokens {settings.speculative_tokens} must not be negative")
    if settings.tensor_parallel % settings.decode_context_parallel:
        raise FootprintError(
            f"--decode-context-parallel-size {settings.decode_context_parallel} must divide "
            f"--tensor-parallel-size {settings.tensor_parallel}"
        )
    if settings.mamba_cache_mode not in (None, "none", "align"):
        raise FootprintError(
            f"--mamba-cache-mode {settings.mamba_cache_mode!r} is not known here; known: none, align"
        )


def _stages(model_layers: int, draft_layers: int, settings: VllmCacheSettings) -> tuple[range, ...]:
    """Layer indexes of every pipeline stage.

    What does not divide goes to the last stages but one, upwards (vLLM 0.32, distributed/utils.py
    get_pp_indices); a drafter runs on the last stage.
    """
    count = settings.pipeline_parallel
    if settings.pipeline_partition is not None:
        sizes = list(settings.pipeline_partition)
        if len(sizes) != count or sum(sizes) != model_layers:
            raise FootprintError(
                f"VLLM_PP_LAYER_PARTITION {settings.pipeline_partition} must name {count} stages of together "
                f"{model_layers} layers"
            )
    else:
        sizes = [model_layers // count] * count
        for back in range(2, model_layers % count + 2):
            sizes[-back] += 1
    sizes[-1] += draft_layers
    starts = [sum(sizes[:stage]) for stage in range(count)]
    return tuple(range(start, start + size) for start, size in zip(starts, sizes, strict=True))


def _formats(
    layers: Sequence[Layer],
    settings: VllmCacheSettings,
    chosen: KvFormat,
    unquantized: KvFormat,
    assumptions: list[str],
) -> dict[int, KvFormat]:
    """How every layer stores K and V."""
    skipped = set(settings.skipped_layers)
    hybrid = any(_is_state(mixer) for layer in layers for mixer in layer.mixers)
    if chosen.name.startswith("turboquant_") and not skipped and not hybrid:
        # vLLM 0.32, quantization/turboquant/config.py get_boundary_skip_layers
        model_layers = len(layers) - len(settings.draft_layers)
        edge = min(2, model_layers // 2)
        skipped = {*range(edge), *range(model_layers - edge, model_layers)}
        assumptions.append(f"TurboQuant leaves the first and last {edge} layers in {unquantized.name}.")
    return {index: unquantized if index in skipped else chosen for index in range(len(layers))}


def _is_state(mixer: Mixer) -> bool:
    return isinstance(mixer, State)


def _pages(
    model_type: str,
    layers: Sequence[Layer],
    settings: VllmCacheSettings,
    formats: dict[int, KvFormat],
    dtype: str,
    assumptions: list[str],
) -> tuple[LayerPage, ...]:
    """Pages of all layers that keep anything, before blocks are aligned."""
    block = settings.block_size
    if block is None:
        block = max(16, settings.kernel_block_size)
    heard = _heard_state_type(model_type, settings.version)
    pages: list[LayerPage] = []
    for index, layer in enumerate(layers):
        for mixer in layer.mixers:
            if isinstance(mixer, Attention):
                page = _attention_page(index, mixer, formats[index], block, settings)
                if page is not None:
                    pages.append(page)
            elif isinstance(mixer, LatentAttention):
                pages += _latent_pages(index, mixer, formats[index], block, assumptions)
            else:
                pages.append(_state_page(index, mixer, settings, dtype, heard))
    # With full attention alone a block of another length is made of the same tokens.
    if settings.block_size is None and any(page.kind != "full" for page in pages):
        assumptions.append(f"--block-size is not given: blocks of {block} tokens are assumed.")
    if any(page.checkpoint_tokens > 1 for page in pages):
        assumptions.append(
            "FlashInfer is assumed to prefill the gated delta nets, as on Hopper and Blackwell GPUs: a "
            "request keeps one state more, and blocks are a multiple of 64 tokens."
        )
    return tuple(pages)


def kv_heads_per_rank(kv_heads: int, tensor_parallel: int) -> int:
    """K/V heads that one tensor-parallel rank keeps.

    Replicated, not split, once there are more ranks than heads (vLLM 0.32, config/model.py
    get_num_kv_heads). Raises FootprintError where neither divides the other.
    """
    if kv_heads < 1 or (kv_heads % tensor_parallel and tensor_parallel % kv_heads):
        raise FootprintError(
            f"--tensor-parallel-size {tensor_parallel} does not fit {kv_heads} K/V heads: "
            "one must divide the other"
        )
    return max(1, kv_heads // tensor_parallel)


def _attention_page(
    index: int, mixer: Attention, how: KvFormat, block: int, settings: VllmCacheSettings
) -> LayerPage | None:
    if mixer.shares_kv:
        return None
    heads = kv_heads_per_rank(mixer.kv_heads, settings.tensor_parallel)
    kind: Kind = "full"
    if mixer.cross:
        kind = "cross"
    elif mixer.window is not None:
        kind = "sliding"
    elif mixer.chunk is not None:
        kind = "chunked"
    return LayerPage(
        index=index,
        kind=kind,
        block_tokens=block,
        token_bytes=heads * how.head(mixer.key_dim, mixer.value_dim),
        layout=(heads, mixer.key_dim, mixer.value_dim, how.name),
        window=mixer.window if kind == "sliding" else None,
        chunk=mixer.chunk if kind == "chunked" else None,
        source=f"{heads} K/V heads of {mixer.key_dim} + {mixer.value_dim} as {how.name} ({how.source})",
    )


def _latent_pages(
    index: int, mixer: LatentAttention, how: KvFormat, block: int, assumptions: list[str]
) -> list[LayerPage]:
    """The latent of MLA, whole on every tensor-parallel rank, and the keys of a sparse indexer."""
    sparse = mixer.index_dim is not None
    if sparse and how.name.startswith("fp8") and how.name != "fp8_ds_mla":
        # vLLM 0.32, mla_attention.py _canonicalize_sparse_mla_kv_cache_dtype
        note = f"Sparse MLA is assumed to run on FlashMLA, which stores {how.name} as fp8_ds_mla."
        if note not in assumptions:
            assumptions.append(note)
        how = VLLM_KV_FORMATS["fp8_ds_mla"]
    if how.latent is None:
        raise FootprintError(f"--kv-cache-dtype {how.name!r} does not store latent attention (MLA)")
    elements = mixer.kv_lora_rank + mixer.rope_dim
    pages = [
        LayerPage(
            index=index,
            kind="latent",
            block_tokens=block,
            token_bytes=how.latent(elements),
            layout=(elements, how.name, sparse),
            source=f"latent of {mixer.kv_lora_rank} + {mixer.rope_dim} as {how.name} ({how.source})",
        )
    ]
    if mixer.index_dim is not None:
        # 8-bit keys, and a scale of 4 bytes for every 128 (vLLM 0.32, models/deepseek_v2.py Indexer)
        size = mixer.index_dim + mixer.index_dim // 128 * 4
        pages.append(
            LayerPage(
                index=index,
                kind="latent",
                block_tokens=block,
                token_bytes=size,
                layout=(size, "indexer", False),
                source="index keys of 8 bits with scales (vLLM 0.32, models/deepseek_v2.py)",
            )
        )
    return pages


def _state_elements(mixer: State, settings: VllmCacheSettings) -> tuple[int, int]:
    """Elements of the convolution's and of the recurrent state on one rank.

    vLLM 0.32, model_executor/layers/mamba/mamba_utils.py MambaStateShapeCalculator. With speculation the
    convolution keeps a column more for every drafted token, except in Mamba 1.
    """
    ranks = settings.tensor_parallel
    drafted = settings.speculative_tokens

    def split(count: int, what: str) -> int:
        if count % ranks:
            raise FootprintError(f"--tensor-parallel-size {ranks} does not divide {count} {what}")
        return count // ranks

    if isinstance(mixer, LinearAttention):
        return 0, split(mixer.heads, "linear-attention heads") * mixer.head_dim * mixer.head_dim
    if isinstance(mixer, ShortConvolution):
        return split(mixer.width, "convolution channels") * (mixer.conv - 1 + drafted), 0
    if isinstance(mixer, GatedDeltaNet):
        width = 2 * mixer.key_heads * mixer.key_dim + mixer.value_heads * mixer.value_dim
        heads = split(mixer.value_heads, "value heads of linear attention")
        convolution = split(width, "convolution channels") * (mixer.conv - 1 + drafted)
        return convolution, heads * mixer.value_dim * mixer.key_dim
    if mixer.version == 1:
        inner = split(mixer.inner, "Mamba channels")
        return inner * (mixer.conv - 1), inner * mixer.state
    # groups are replicated where they do not divide
    groups = mixer.groups if mixer.groups % ranks == 0 else ranks
    width = mixer.inner + 2 * groups * mixer.state
    heads = split(mixer.heads, "Mamba heads")
    return (
        split(width, "convolution channels") * (mixer.conv - 1 + drafted),
        heads * mixer.head_dim * mixer.state,
    )


@kept_with_architecture
def _caches_prefixes_by_default(model: Architecture, version: Version) -> bool:
    """vLLM 0.32, config/model.py is_prefix_caching_supported: not without attention, nor with an encoder."""
    mixers = [mixer for layer in model.layers for mixer in layer.mixers]
    if any(isinstance(mixer, Attention) and mixer.cross for mixer in mixers):
        return False
    if not any(_is_state(mixer) for mixer in mixers):
        return True
    return version >= _HYBRIDS_CACHE_PREFIXES and not all(_is_state(mixer) for mixer in mixers)


def _heard_state_type(model_type: str, version: Version) -> tuple[bool, str | None]:
    """Whether the version asks the model's file for the type of its states, and the type if it is silent."""
    for first, default in _STATED_STATE_TYPES.get(model_type, ()):
        if version >= first:
            return True, default
    return False, None


def _state_page(
    index: int, mixer: State, settings: VllmCacheSettings, dtype: str, heard: tuple[bool, str | None]
) -> LayerPage:
    """One state. Its types: --mamba-cache-dtype, and --mamba-ssm-cache-dtype for the recurrent part.

    `auto` is what the file says where vLLM listens to it, float32 for Kimi Delta Attention (mamba_utils.py
    kda_state_dtype), else the convolution's type.
    """
    convolution, recurrent = _state_elements(mixer, settings)
    conv_dtype = settings.mamba_cache_dtype or "auto"
    conv_dtype = dtype if conv_dtype == "auto" else conv_dtype
    state_dtype = settings.mamba_ssm_cache_dtype or "auto"
    if isinstance(mixer, LinearAttention | ShortConvolution):
        state_dtype = conv_dtype
    elif isinstance(mixer, GatedDeltaNet) and mixer.gate_rank is not None and state_dtype == "auto":
        state_dtype = "float32"
    elif state_dtype == "auto":
        listens, default = heard
        stated = mixer.state_dtype or default if listens else None
        state_dtype = (stated or conv_dtype).removeprefix("torch.")
    for flag, name in (("--mamba-cache-dtype", conv_dtype), ("--mamba-ssm-cache-dtype", state_dtype)):
        if name not in TORCH_ELEMENT_BYTES:
            raise SettingError(f"{flag} {name!r} is not known; known: auto, float32, float16, bfloat16")
    mode = _state_mode(settings)
    return LayerPage(
        index=index,
        kind="state",
        block_tokens=settings.max_model_len if mode == "none" else settings.block_size or 16,
        state_bytes=convolution * TORCH_ELEMENT_BYTES[conv_dtype]
        + recurrent * TORCH_ELEMENT_BYTES[state_dtype],
        layout=(type(mixer).__name__, convolution, recurrent, conv_dtype, state_dtype),
        checkpoint_states=_checkpoint_states(mixer, settings),
        checkpoint_tokens=_DELTA_CHECKPOINT_TOKENS if _has_delta_checkpoints(mixer, settings) else 1,
        sharded=False,
        source=f"state of {convolution} {conv_dtype} and {recurrent} {state_dtype} elements",
    )


def _checkpoint_states(mixer: State, settings: VllmCacheSettings) -> int:
    """States of a block's end that one prefill keeps beside its last."""
    if isinstance(mixer, Mamba):
        return int(mixer.version == 2 and settings.version >= _MAMBA2_CHECKPOINTS)
    return int(_has_delta_checkpoints(mixer, settings))


def _has_delta_checkpoints(mixer: Mixer, settings: VllmCacheSettings) -> bool:
    if not isinstance(mixer, GatedDeltaNet) or mixer.gate_rank is not None:
        return False
    return settings.version >= _DELTA_CHECKPOINTS and _state_mode(settings) == "align"


def _state_mode(settings: VllmCacheSettings) -> str:
    """`align` with prefix caching, else `none` (vLLM 0.32, models/config.py MambaModelConfig)."""
    if not settings.prefix_caching:
        return "none"
    return settings.mamba_cache_mode or "align"


def _alignment_token_bytes(
    layers: Sequence[Layer], settings: VllmCacheSettings, formats: dict[int, KvFormat]
) -> int:
    """Bytes of a token by which a hybrid's blocks are aligned: of the model's heads, values wide as keys."""
    sizes = [0]
    for index, layer in enumerate(layers):
        for mixer in layer.mixers:
            how = formats[index]
            if isinstance(mixer, Attention):
                heads = kv_heads_per_rank(mixer.kv_heads, settings.tensor_parallel)
                sizes.append(heads * how.head(mixer.key_dim, mixer.key_dim))
            elif isinstance(mixer, LatentAttention) and how.latent is not None:
                sizes.append(how.latent(mixer.kv_lora_rank + mixer.rope_dim))
    return max(sizes)


def _aligned(
    pages: tuple[LayerPage, ...], token_bytes: int, settings: VllmCacheSettings
) -> tuple[LayerPage, ...]:
    """Pages of a hybrid: attention blocks as long as a state needs, states padded to the attention page.

    vLLM 0.32, platforms/interface.py _align_hybrid_block_size.
    """
    states = [page for page in pages if page.kind == "state"]
    caches = [page for page in pages if page.kind != "state"]
    if not states or not caches or not token_bytes:
        return pages
    state_bytes = max(page.state_bytes for page in states)
    block = caches[0].block_tokens
    step = max(settings.kernel_block_size, block)
    if any(page.kind == "latent" for page in caches):
        step = max(step, 128)
    step = math.lcm(step, *(page.checkpoint_tokens for page in states))
    needed = step * math.ceil(state_bytes / (step * token_bytes))
    needed = settings.kernel_block_size * math.ceil(needed / settings.kernel_block_size)
    block = max(block, needed)
    padded = block * token_bytes
    in_blocks = _state_mode(settings) == "align"

    def fit(page: LayerPage) -> LayerPage:
        if page.kind != "state":
            return replace(page, block_tokens=block)
        tokens = block if in_blocks else page.block_tokens
        return replace(page, block_tokens=tokens, padded_bytes=padded if padded != state_bytes else None)

    return tuple(fit(page) for page in pages)


def _aligned_to_skipped(
    pages: tuple[LayerPage, ...],
    settings: VllmCacheSettings,
    formats: dict[int, KvFormat],
    unquantized: KvFormat,
) -> tuple[LayerPage, ...]:
    """Pages where some layers stay unquantized: a quantized page must hold a kernel block of theirs.

    vLLM 0.32, platforms/interface.py _align_heterogeneous_kv_block_size; windows are then padded to the
    quantized page (attention.py get_kv_cache_spec).
    """
    quantized = [
        page for page in pages if page.kind != "state" and formats[page.index].name != unquantized.name
    ]
    skipped = [page for page in pages if page.kind != "state" and page not in quantized]
    if not quantized or not skipped:
        return pages
    if any(page.kind == "state" for page in pages):
        raise FootprintError(
            "--kv-cache-dtype-skip-layers of a model with recurrent states is not computed here"
        )
    primary = max(page.token_bytes for page in quantized)
    widest = max(page.token_bytes for page in skipped)
    if widest == primary:
        return pages
    block = quantized[0].block_tokens
    kernel = settings.kernel_block_size
    step = max(kernel, block)
    block = max(block, step * math.ceil(widest * kernel / (step * primary)))
    shared = block * primary

    def fit(page: LayerPage) -> LayerPage:
        if page.kind != "sliding":
            return replace(page, block_tokens=block)
        tokens = max(kernel, shared // page.token_bytes // kernel * kernel)
        return replace(page, block_tokens=tokens, padded_bytes=shared)

    return tuple(fit(page) for page in pages)


def _promoted(pages: tuple[LayerPage, ...]) -> tuple[LayerPage, ...]:
    """Windows and chunks kept as full attention (--disable-hybrid-kv-cache-manager), where there is any.

    vLLM 0.32, v1/core/kv_cache_utils.py unify_hybrid_kv_cache_specs. Raises FootprintError where layers of
    different kinds remain.
    """
    if not pages:
        return pages
    if any(page.kind in _UNBOUNDED for page in pages):
        pages = tuple(
            replace(page, kind="full") if page.kind in ("sliding", "chunked") else page for page in pages
        )
    if not _same_type(pages):
        kinds = ", ".join(sorted({page.kind for page in pages}))
        raise FootprintError(f"--disable-hybrid-kv-cache-manager cannot unify layers of these kinds: {kinds}")
    return pages


def _same_type(pages: Sequence[LayerPage]) -> bool:
    """True where all layers need the same number of blocks, whatever their pages (is_uniform_type)."""
    first = pages[0]
    if len({(page.block_tokens, page.sharded) for page in pages}) > 1:
        return False
    if first.kind in _UNBOUNDED:
        return all(page.kind in _UNBOUNDED for page in pages)
    if any(page.kind != first.kind for page in pages):
        return False
    if first.kind == "state":
        return len({(page.page_bytes, page.checkpoint_states) for page in pages}) == 1
    return len({(page.window, page.chunk) for page in pages}) == 1


def _groups(
    pages: tuple[LayerPage, ...], settings: VllmCacheSettings, assumptions: list[str]
) -> tuple[CacheGroup, ...]:
    """Layers put into groups (vLLM 0.32, v1/core/kv_cache_utils.py get_kv_cache_groups)."""
    if not pages:
        return ()
    if len(_buckets(pages)) == 1:
        return (CacheGroup(kind=pages[0].kind, pages=pages, mixed=False),)
    if _same_type(pages):
        return (CacheGroup(kind=pages[0].kind, pages=pages, mixed=True),)
    layout = settings.kv_cache_layout or ""
    if layout.startswith("B") and len({page.page_bytes for page in pages}) > 1:
        raise FootprintError(
            f"VLLM_KV_CACHE_LAYOUT {layout} packs pages of different sizes, which is not computed here"
        )
    pages = _with_one_page_size(pages)
    return tuple(
        CacheGroup(kind=bucket[0].kind, pages=tuple(bucket[start::count]), mixed=False)
        for bucket, count in _split(_buckets(pages), settings, assumptions)
        for start in range(count)
    )


def _with_one_page_size(pages: tuple[LayerPage, ...]) -> tuple[LayerPage, ...]:
    """Smaller pages made as large as the largest: longer blocks where it divides, else padding.

    vLLM 0.32, v1/core/kv_cache_utils.py unify_kv_cache_spec_page_size. Latents are never padded.
    """
    largest = max(page.page_bytes for page in pages)

    def grow(page: LayerPage) -> LayerPage:
        if page.page_bytes == largest:
            return page
        if page.kind == "state":
            return replace(page, padded_bytes=largest)
        if largest % page.page_bytes == 0 and page.padded_bytes is None:
            return replace(page, block_tokens=page.block_tokens * (largest // page.page_bytes))
        if page.kind == "latent":
            raise FootprintError(
                f"a latent page of {page.page_bytes} bytes cannot be unified with pages of {largest} bytes: "
                "choose another --block-size"
            )
        return replace(page, padded_bytes=largest)

    return tuple(grow(page) for page in pages)


def _buckets(pages: tuple[LayerPage, ...]) -> list[list[LayerPage]]:
    """Pages that may share a group, each in the first bucket whose every page it may share one with."""
    buckets: list[list[LayerPage]] = []
    distinct: list[set[LayerPage]] = []  # of each bucket, pages that differ in more than their layer
    for page in pages:
        alike = replace(page, index=0)
        for bucket, kinds in zip(buckets, distinct, strict=True):
            if alike in kinds or all(one.shares_group_with(page) for one in kinds):
                bucket.append(page)
                kinds.add(alike)
                break
        else:
            buckets.append([page])
            distinct.append({alike})
    return buckets


def _split(
    buckets: list[list[LayerPage]], settings: VllmCacheSettings, assumptions: list[str]
) -> list[tuple[list[LayerPage], int]]:
    """Every bucket and the number of groups it makes.

    The group size is the smallest bucket, or the largest where it is not much larger: the last group of a
    bucket is padded (vLLM 0.32, _get_kv_cache_groups_uniform_page_size).
    """
    counts = [len(bucket) for bucket in buckets]
    ratio = 1.5 if settings.version >= _WIDER_GROUPS else 1.25
    size = max(counts) if max(counts) < min(counts) * ratio else min(counts)
    for bucket in buckets:
        padding = -len(bucket) % size
        if padding:
            assumptions.append(
                f"Groups of {size} layers: {padding} of {len(bucket) + padding} places for {bucket[0].kind} "
                "layers stay empty."
            )
    return [(bucket, math.ceil(len(bucket) / size)) for bucket in buckets]


def _stage_block_bytes(groups: tuple[CacheGroup, ...], stage: range) -> int:
    """Bytes of a block on one stage: the largest group's pages of the layers that live there."""
    return max(
        (sum(page.page_bytes for page in group.pages if page.index in stage) for group in groups), default=0
    )


def _token_bytes(
    groups: tuple[CacheGroup, ...], stage: range, settings: VllmCacheSettings, kinds: tuple[Kind, ...]
) -> dict[LayerPage, Fraction]:
    """Bytes of a token on one stage, of each group of these kinds, by its first page."""
    block_bytes = _stage_block_bytes(groups, stage)
    return {
        group.pages[0]: Fraction(
            block_bytes,
            group.block_tokens * (settings.decode_context_parallel if group.pages[0].sharded else 1),
        )
        for group in groups
        if group.kind in kinds
    }


def _full_blocks(page: LayerPage, tokens: int, settings: VllmCacheSettings) -> int:
    if page.sharded:
        tokens = math.ceil(tokens / settings.decode_context_parallel)
    return math.ceil(tokens / page.block_tokens)


def _sliding_blocks(page: LayerPage, tokens: int, settings: VllmCacheSettings) -> int:
    # a window need not begin with a block, so it may touch one more
    window = (page.window or 0) - 1 + _retained_tokens(settings) + _in_flight_tokens(settings)
    return math.ceil(min(window, tokens) / page.block_tokens) + 1


def _chunked_blocks(page: LayerPage, tokens: int, settings: VllmCacheSettings) -> int:
    return math.ceil(min((page.chunk or 0) + _in_flight_tokens(settings), tokens) / page.block_tokens)


def _cross_blocks(page: LayerPage, tokens: int, settings: VllmCacheSettings) -> int:  # noqa: ARG001 (one shape)
    # max_num_encoder_input_tokens is max_num_batched_tokens (vLLM 0.32, config/scheduler.py)
    return math.ceil(settings.max_num_batched_tokens / page.block_tokens)


def _state_blocks(page: LayerPage, tokens: int, settings: VllmCacheSettings) -> int:  # noqa: ARG001 (one shape)
    drafted = settings.speculative_tokens
    if _state_mode(settings) == "align":
        return 2 + drafted + page.checkpoint_states
    return 1 + drafted


_REQUEST_BLOCKS: dict[Kind, Callable[[LayerPage, int, VllmCacheSettings], int]] = {
    "full": _full_blocks,
    "latent": _full_blocks,
    "sliding": _sliding_blocks,
    "chunked": _chunked_blocks,
    "cross": _cross_blocks,
    "state": _state_blocks,
}


def _request_blocks(page: LayerPage, tokens: int, settings: VllmCacheSettings) -> int:
    return _REQUEST_BLOCKS[page.kind](page, tokens, settings)


def _in_flight_tokens(settings: VllmCacheSettings) -> int:
    """Tokens that may be scheduled and not yet settled (vLLM 0.32, config/vllm.py max_in_flight_tokens)."""
    if settings.version < _EVERY_BATCH_IN_FLIGHT:
        return settings.max_num_batched_tokens
    batches = settings.max_concurrent_batches
    if batches is None:
        batches = settings.pipeline_parallel + (1 if settings.async_scheduling else 0)
    return batches * settings.max_num_batched_tokens


def _retained_tokens(settings: VllmCacheSettings) -> int:
    """Tokens kept below a window, for MTP modules that draft one after the other."""
    return max(0, settings.speculative_tokens - 1) if settings.multi_module_mtp else 0
