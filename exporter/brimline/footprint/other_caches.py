"""The KV caches of SGLang, llama.cpp and TensorRT-LLM: bytes of a token, of the pool, and tokens it holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from brimline.errors import FootprintError
from brimline.footprint.architecture import (
    Architecture,
    Attention,
    GatedDeltaNet,
    LatentAttention,
    LinearAttention,
    Mamba,
    Mixer,
    ShortConvolution,
)
from brimline.footprint.kv_dtypes import TORCH_ELEMENT_BYTES, ggml_element_bytes, model_run_dtype

State = Mamba | GatedDeltaNet | LinearAttention | ShortConvolution


def _at_least_one(values: dict[str, int]) -> None:
    for flag, value in values.items():
        if value < 1:
            raise FootprintError(f"{flag} {value} must be at least 1")


def _heads_per_rank(kv_heads: int, ranks: int, flag: str) -> int:
    """K/V heads of one rank: replicated once there are more ranks than heads."""
    if kv_heads < 1 or (kv_heads % ranks and ranks % kv_heads):
        raise FootprintError(f"{flag} {ranks} does not fit {kv_heads} K/V heads: one must divide the other")
    return max(1, kv_heads // ranks)


def _state_elements(mixer: State, ranks: int, flag: str) -> tuple[int, int]:
    """Elements of the convolution's columns and of the recurrent state on one rank."""
    if isinstance(mixer, LinearAttention):
        heads, convolution, recurrent = mixer.heads, 0, mixer.heads * mixer.head_dim * mixer.head_dim
    elif isinstance(mixer, ShortConvolution):
        heads, convolution, recurrent = mixer.width, mixer.width * (mixer.conv - 1), 0
    elif isinstance(mixer, GatedDeltaNet):
        heads = mixer.value_heads
        width = 2 * mixer.key_heads * mixer.key_dim + mixer.value_heads * mixer.value_dim
        convolution = width * (mixer.conv - 1)
        recurrent = mixer.value_heads * mixer.value_dim * mixer.key_dim
    elif mixer.version == 1:
        heads = mixer.inner
        convolution, recurrent = mixer.inner * (mixer.conv - 1), mixer.inner * mixer.state
    else:
        heads = mixer.heads
        groups = mixer.groups if mixer.groups % ranks == 0 else ranks
        convolution = (mixer.inner + 2 * groups * mixer.state) * (mixer.conv - 1)
        recurrent = mixer.heads * mixer.head_dim * mixer.state
    if heads % ranks or convolution % ranks:
        raise FootprintError(f"{flag} {ranks} does not divide the recurrent state of {heads} heads")
    return convolution // ranks, recurrent // ranks


# SGLang


_SGLANG_FORMATS = {"fp8_e5m2": 1, "fp8_e4m3": 1, "mxfp8": 1, "bf16": 2, "bfloat16": 2}
_SGLANG_FP4 = ("nvfp4", "fp4_mx_block16", "fp4_e2m1")
_SGLANG_DSA_ROW_BYTES = 656


@dataclass(frozen=True, slots=True, kw_only=True)
class SglangCacheSettings:
    """How an SGLang server is launched, as far as its KV cache sees it.

    Names and defaults of the flags of SGLang 0.5.23 (arg_groups/fields). tensor_parallel: ranks that share
    one attention, --tp-size over --dp-size with DP attention. hybrid_windows: windows get a pool of their
    own (off with --disable-hybrid-swa-memory). mamba_ssm_dtype: SGLANG_MAMBA_SSM_DTYPE.
    """

    dtype: str | None = None
    kv_cache_dtype: str = "auto"
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    page_size: int = 1
    hybrid_windows: bool = True
    swa_full_tokens_ratio: float = 0.8
    mamba_full_memory_ratio: float = 0.9
    max_mamba_cache_size: int | None = None
    mamba_ssm_dtype: str | None = None
    max_total_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SglangPool:
    """What fits. tokens: max_total_num_tokens, a label of the server; window_tokens: of the windows' pool.

    states: slots for recurrent states, without the one that pads. kv_bytes, state_bytes: on one GPU.
    """

    tokens: int
    window_tokens: int | None
    states: int | None
    kv_bytes: int
    state_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SglangCache:
    """SGLang's KV cache on the fullest GPU.

    full_token_bytes, window_token_bytes: of one token in the layers with full attention and with windows.
    windows: span and bytes of a token of each layer with a window. state_slot_bytes: of one request's
    recurrent states.
    """

    settings: SglangCacheSettings
    full_token_bytes: int
    window_token_bytes: int
    windows: tuple[tuple[int, int], ...]
    state_slot_bytes: int
    assumptions: tuple[str, ...]
    source: str

    def request_bytes(self, tokens: int) -> int:
        """Bytes that a request of so many tokens holds, in whole pages; windows: what they see and a page.

        Tokens that have left every window are given back (SGLang 0.5.23, mem_cache/swa_memory_pool.py).
        """
        page = self.settings.page_size
        held = sum(row * min(_rounded_up(tokens, page), span + page) for span, row in self.windows)
        return self.full_token_bytes * _rounded_up(tokens, page) + held + self.state_slot_bytes

    @property
    def cell_bytes(self) -> float:
        """Bytes that one token of max_total_num_tokens costs (pool_configurator.py _recompute_cell_size)."""
        if not self.window_token_bytes:
            return self.full_token_bytes
        if not self.full_token_bytes:
            return self.window_token_bytes
        return self.full_token_bytes + self.settings.swa_full_tokens_ratio * self.window_token_bytes

    @property
    def bytes_per_token(self) -> Fraction:
        """Bytes that one more token of context costs for good, in layers with full attention."""
        return Fraction(self.full_token_bytes)

    def pool(self, available_bytes: int) -> SglangPool:
        """The pool that SGLang makes of the memory left (see sglang_available_bytes).

        States first, by --max-mamba-cache-size or their share; then tokens in whole pages.
        """
        states, state_bytes = self._states(available_bytes)
        left = max(0, available_bytes - state_bytes)
        page = self.settings.page_size
        tokens = int(left // self.cell_bytes) if self.cell_bytes else 0
        if self.settings.max_total_tokens is not None:
            tokens = min(tokens, self.settings.max_total_tokens)
        tokens = tokens // page * page
        if not self.window_token_bytes:
            return SglangPool(
                tokens=tokens, window_tokens=None, states=states, state_bytes=state_bytes,
                kv_bytes=tokens * self.full_token_bytes,
            )  # fmt: skip
        windows = tokens
        if self.full_token_bytes:
            windows = int(tokens * self.settings.swa_full_tokens_ratio) // page * page
        return SglangPool(
            tokens=tokens,
            window_tokens=windows,
            states=states,
            kv_bytes=tokens * self.full_token_bytes + windows * self.window_token_bytes,
            state_bytes=state_bytes,
        )

    def _states(self, available_bytes: int) -> tuple[int | None, int]:
        if not self.state_slot_bytes:
            return None, 0
        count = self.settings.max_mamba_cache_size
        if count is None:
            ratio = self.settings.mamba_full_memory_ratio
            budget = available_bytes * ratio / (1 + ratio)
            count = int((budget - self.state_slot_bytes) // self.state_slot_bytes)
        if count < 1:
            raise FootprintError(
                "no slot is left for recurrent states: raise --mem-fraction-static or lower "
                "--max-mamba-cache-size"
            )
        return count, (count + 1) * self.state_slot_bytes


def sglang_available_bytes(
    *, free_before_load: int, free_after_load: int, mem_fraction_static: float, reserved_bytes: int = 0
) -> int:
    """Bytes that SGLang gives to its pools.

    free_now - free_before_load * (1 - mem_fraction_static), less what multimodal transport reserves
    (SGLang 0.5.23, mem_cache/kv_cache_configurator.py _profile_available_bytes).
    """
    if not 0 < mem_fraction_static < 1:
        raise FootprintError(f"--mem-fraction-static {mem_fraction_static} must be between 0 and 1")
    slack = free_before_load * (1 - mem_fraction_static)
    return max(0, math.floor(free_after_load - slack) - reserved_bytes)


def sglang_cache(model: Architecture, settings: SglangCacheSettings) -> SglangCache:
    """SGLang's KV cache (SGLang 0.5.23, model_executor/pool_configurator.py).

    Layers of a pipeline: the remainder goes to the last stages (distributed/utils.py get_pp_indices).
    Raises FootprintError for formats and splits that are not known.
    """
    _at_least_one(
        {
            "--tp-size": settings.tensor_parallel,
            "--pp-size": settings.pipeline_parallel,
            "--page-size": settings.page_size,
        }
    )
    if not 0 < settings.swa_full_tokens_ratio <= 1:
        raise FootprintError(
            f"--swa-full-tokens-ratio {settings.swa_full_tokens_ratio} must be above 0 and at most 1"
        )
    dtype, assumed = model_run_dtype(settings.dtype, model.dtype)
    assumptions = [assumed] if assumed else []
    bounded = [isinstance(m, Attention) and bool(m.window or m.chunk) for m in _mixers(model)]
    # Models whose layers all have a window keep the whole context (configs/model_config.py
    # is_hybrid_swa_model lists those that do not; Mistral and Phi-3 are none of them).
    hybrid = settings.hybrid_windows and not all(bounded)
    if any(bounded):
        assumptions.append(
            "SGLang is assumed to know the windows of this model type and to give them a pool of their own."
            if hybrid
            else "Layers with windows keep the whole context."
        )
    name = settings.kv_cache_dtype
    if name in _SGLANG_FP4:
        assumptions.append(
            "The K/V cache in 4 bits is assumed to keep one layout of scales and no workspace."
        )

    count = settings.pipeline_parallel
    sizes = [len(model.layers) // count] * count
    for back in range(1, len(model.layers) % count + 1):
        sizes[-back] += 1
    stages = []
    for stage in range(count):
        start = sum(sizes[:stage])
        full = states = 0
        windows: list[tuple[int, int]] = []
        for layer in model.layers[start : start + sizes[stage]]:
            for mixer in layer.mixers:
                if isinstance(mixer, State):
                    states += _sglang_state_bytes(mixer, settings)
                elif isinstance(mixer, LatentAttention):
                    full += _sglang_latent_bytes(mixer, name, dtype)
                elif not mixer.shares_kv:
                    heads = _heads_per_rank(mixer.kv_heads, settings.tensor_parallel, "--tp-size")
                    size = _sglang_bytes(heads * (mixer.key_dim + mixer.value_dim), name, dtype)
                    span = mixer.window or mixer.chunk
                    if hybrid and span:
                        windows.append((span, size))
                    else:
                        full += size
        stages.append((full, windows, states))
    widest = max((stage[1] for stage in stages), key=lambda rows: sum(row for _, row in rows))
    return SglangCache(
        settings=settings,
        full_token_bytes=max(stage[0] for stage in stages),
        window_token_bytes=sum(row for _, row in widest),
        windows=tuple(widest),
        state_slot_bytes=max(stage[2] for stage in stages),
        assumptions=(*model.assumptions, *assumptions),
        source=f"{model.source or model.model_type}, cell size of SGLang 0.5.23",
    )


def _mixers(model: Architecture) -> Sequence[Mixer]:
    return [mixer for layer in model.layers for mixer in layer.mixers]


def _sglang_bytes(elements: int, name: str, dtype: str) -> int:
    """Bytes of so many elements in one layer; mxfp8 adds a byte for every 32, 4 bits one for every 16."""
    if name == "auto":
        return elements * TORCH_ELEMENT_BYTES[dtype]
    if name in _SGLANG_FP4:
        return elements // 2 + elements // 16
    if name not in _SGLANG_FORMATS:
        known = ", ".join([*_SGLANG_FORMATS, *_SGLANG_FP4])
        raise FootprintError(f"--kv-cache-dtype {name!r} is not known here; known: auto, {known}")
    return elements * _SGLANG_FORMATS[name] + (elements // 32 if name == "mxfp8" else 0)


def _sglang_latent_bytes(mixer: LatentAttention, name: str, dtype: str) -> int:
    """One latent, and the keys of a sparse indexer: 8 bits and a scale of 4 bytes for every 128."""
    elements = mixer.kv_lora_rank + mixer.rope_dim
    if mixer.index_dim is None:
        return _sglang_bytes(elements, name, dtype)
    keys = mixer.index_dim + mixer.index_dim // 128 * 4
    if name == "fp8_e4m3":
        return _SGLANG_DSA_ROW_BYTES + keys
    return _sglang_bytes(elements, name, dtype) + keys


def _sglang_state_bytes(mixer: State, settings: SglangCacheSettings) -> int:
    """One state: the convolution in bfloat16, the rest in float32 unless the model or the environment says.

    SGLang 0.5.23, configs/mamba_utils.py mamba2_state_dtype.
    """
    convolution, recurrent = _state_elements(mixer, settings.tensor_parallel, "--tp-size")
    stated = mixer.state_dtype if isinstance(mixer, Mamba | GatedDeltaNet) else None
    name = (settings.mamba_ssm_dtype or stated or "float32").removeprefix("torch.")
    if name not in TORCH_ELEMENT_BYTES:
        raise FootprintError(
            f"SGLANG_MAMBA_SSM_DTYPE {name!r} is not known; known: float32, bfloat16, float16"
        )
    return convolution * 2 + recurrent * TORCH_ELEMENT_BYTES[name]


# llama.cpp


_CELL_STEP = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamacppCacheSettings:
    """How llama-server is launched, as far as its KV cache sees it.

    context: --ctx-size of all slots together; 0 for the model's own. slots: --parallel. unified:
    --kv-unified. batch, micro_batch: --batch-size, --ubatch-size. swa_full: --swa-full.
    """

    context: int = 0
    slots: int = 1
    unified: bool = False
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    batch: int = 2048
    micro_batch: int = 512
    swa_full: bool = False
    flash_attention: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamacppCache:
    """llama.cpp's cache, allocated whole at the start.

    slot_context: tokens that one slot may hold. cells: tokens of all slots together, a unified cache counted
    once. window_cells: that one slot has in layers with windows, of all slots where the cache is unified.
    layer_bytes: of every layer, K, V and recurrent state, so that a split over devices can be summed.
    window_bytes: span and bytes of a cell of each layer with a window that keeps no more.
    """

    slot_context: int
    cells: int
    window_cells: int
    layer_bytes: tuple[int, ...]
    kv_bytes: int
    state_bytes: int
    slot_state_bytes: int
    bytes_per_token: Fraction
    window_bytes: tuple[tuple[int, int], ...]
    assumptions: tuple[str, ...]
    source: str

    @property
    def total_bytes(self) -> int:
        return self.kv_bytes + self.state_bytes

    def request_bytes(self, tokens: int) -> int:
        """Bytes that a request of so many tokens fills, in layers with windows no more than they see."""
        held = sum(row * min(tokens, span) for span, row in self.window_bytes)
        return math.ceil(self.bytes_per_token * tokens) + held + self.slot_state_bytes


def _rounded_up(value: int, step: int) -> int:
    return -(-value // step) * step


def llamacpp_cache(model: Architecture, settings: LlamacppCacheSettings) -> LlamacppCache:
    """llama.cpp's cache.

    The context of each slot is rounded up to 256 cells (llama.cpp, src/llama-context.cpp; 1000 tokens in 3
    slots make 3 of 512). Windows get min(context, window * (slots where unified) + micro batch) cells,
    rounded up to 256 (src/llama-kv-cache-iswa.cpp). MLA keeps one latent and no V (src/llama-kv-cache.cpp).
    Recurrent states are float32, one for each slot (src/llama-memory-recurrent.cpp).
    Raises FootprintError for cache types that are not known or do not divide a row.
    """
    _at_least_one(
        {
            "--parallel": settings.slots,
            "--batch-size": settings.batch,
            "--ubatch-size": settings.micro_batch,
        }
    )
    context = settings.context or model.max_position
    if context is None or context < 1:
        raise FootprintError("--ctx-size is 0 and the model does not state its context length")
    key_bytes = ggml_element_bytes("--cache-type-k", settings.cache_type_k)
    value_bytes = ggml_element_bytes("--cache-type-v", settings.cache_type_v)
    if not settings.flash_attention and value_bytes < 2:
        raise FootprintError(f"--cache-type-v {settings.cache_type_v} needs --flash-attn")
    latent = any(isinstance(mixer, LatentAttention) for mixer in _mixers(model))
    if latent and settings.cache_type_k.lower() != settings.cache_type_v.lower():
        raise FootprintError(
            f"--cache-type-k {settings.cache_type_k} and --cache-type-v {settings.cache_type_v} must be the "
            "same for a model with latent attention (MLA), which keeps one of both"
        )

    assumptions: list[str] = []
    total = _rounded_up(context, _CELL_STEP)
    slot_context = total if settings.unified else _rounded_up(total // settings.slots, _CELL_STEP)
    streams = 1 if settings.unified else settings.slots
    micro = min(context, settings.batch, settings.micro_batch)
    mixers = _mixers(model)
    if any(isinstance(m, Attention) and (m.window or m.chunk) for m in mixers):
        assumptions.append("llama.cpp is assumed to honour the windows of this model type.")
    if any(isinstance(m, LatentAttention) and m.index_dim is not None for m in mixers):
        assumptions.append("The index keys of sparse attention are not counted.")
    if any(isinstance(m, LinearAttention) for m in mixers):
        assumptions.append("llama.cpp is assumed to keep lightning attention's state in float32.")
    widest_value = max((m.kv_heads * m.value_dim for m in mixers if isinstance(m, Attention)), default=0)

    layer_bytes, kv_total, state_total, per_token = [], 0, 0, Fraction(0)
    widest_window, windows = 0, []
    for layer in model.layers:
        kv = state = 0
        for mixer in layer.mixers:
            if isinstance(mixer, State):
                convolution, recurrent = _state_elements(mixer, 1, "--parallel")
                state += settings.slots * 4 * (convolution + recurrent)
                continue
            if isinstance(mixer, Attention) and (mixer.shares_kv or mixer.cross):
                continue
            if isinstance(mixer, LatentAttention):
                keys, values, span = mixer.kv_lora_rank + mixer.rope_dim, 0, None
            else:
                keys, span = mixer.kv_heads * mixer.key_dim, mixer.window or mixer.chunk
                # without flash attention V is kept transposed, in rows as wide as the widest layer's
                values = mixer.kv_heads * mixer.value_dim if settings.flash_attention else widest_value
            row = _row_bytes(keys, key_bytes, "--cache-type-k", settings.cache_type_k)
            row += _row_bytes(values, value_bytes, "--cache-type-v", settings.cache_type_v)
            cells = slot_context
            if span is not None and not settings.swa_full:
                held = span * (settings.slots if settings.unified else 1) + micro
                cells = _rounded_up(min(slot_context, held), _CELL_STEP)
                windows.append((span, row))
            if span is not None:
                widest_window = max(widest_window, cells)
            if span is None or settings.swa_full:
                per_token += row
            kv += streams * cells * row
        layer_bytes.append(kv + state)
        kv_total += kv
        state_total += state
    return LlamacppCache(
        slot_context=slot_context,
        cells=slot_context * streams,
        window_cells=widest_window,
        layer_bytes=tuple(layer_bytes),
        kv_bytes=kv_total,
        state_bytes=state_total,
        slot_state_bytes=state_total // settings.slots,
        bytes_per_token=per_token,
        window_bytes=tuple(windows),
        assumptions=(*model.assumptions, *assumptions),
        source=f"{model.source or model.model_type}, llama.cpp cache of {settings.cache_type_k} and "
        f"{settings.cache_type_v}",
    )


def _row_bytes(elements: int, element_bytes: Fraction, flag: str, name: str) -> int:
    if element_bytes.denominator > 1 and elements % 32:
        raise FootprintError(f"{flag} {name} needs rows of whole blocks of 32 elements, not {elements}")
    return elements * element_bytes.numerator // element_bytes.denominator


# TensorRT-LLM


@dataclass(frozen=True, slots=True, kw_only=True)
class TrtllmCacheSettings:
    """How trtllm-serve is launched, as far as its KV cache sees it (kv_cache_config of the LLM API)."""

    dtype: str | None = None
    kv_cache_dtype: str = "auto"
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    tokens_per_block: int = 32
    free_gpu_memory_fraction: float = 0.9
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrtllmCache:
    """TensorRT-LLM's KV cache on the fullest GPU. token_bytes: of one token in all attention layers there."""

    settings: TrtllmCacheSettings
    token_bytes: int
    has_windows: bool
    assumptions: tuple[str, ...]
    source: str

    @property
    def bytes_per_token(self) -> Fraction:
        return Fraction(self.token_bytes)

    def num_blocks(self, free_bytes: int) -> int:
        """Blocks of the pool. free_bytes: left on the GPU after weights and activations.

        A fraction of what is *free*, not of the GPU, and no more than max_tokens (TensorRT-LLM docs,
        reference/memory.md).
        """
        if not self.token_bytes:
            return 0
        block_bytes = self.token_bytes * self.settings.tokens_per_block
        blocks = int(free_bytes * self.settings.free_gpu_memory_fraction) // block_bytes
        if self.settings.max_tokens is not None:
            blocks = min(blocks, math.ceil(self.settings.max_tokens / self.settings.tokens_per_block))
        return max(0, blocks)

    def pool_bytes(self, free_bytes: int) -> int:
        return self.num_blocks(free_bytes) * self.token_bytes * self.settings.tokens_per_block

    def capacity_tokens(self, free_bytes: int) -> int:
        return self.num_blocks(free_bytes) * self.settings.tokens_per_block


def trtllm_cache(model: Architecture, settings: TrtllmCacheSettings) -> TrtllmCache:
    """TensorRT-LLM's KV cache: K and V of every attention layer on the fullest stage.

    Raises FootprintError for formats that are not known, and for models with recurrent states.
    """
    _at_least_one(
        {
            "--tp_size": settings.tensor_parallel,
            "--pp_size": settings.pipeline_parallel,
            "tokens_per_block": settings.tokens_per_block,
        }
    )
    if not 0 < settings.free_gpu_memory_fraction <= 1:
        raise FootprintError(
            f"free_gpu_memory_fraction {settings.free_gpu_memory_fraction} must be above 0 and at most 1"
        )
    dtype, assumed = model_run_dtype(settings.dtype, model.dtype)
    assumptions = [assumed] if assumed else []
    sizes = []
    windows = False
    for layer in model.layers:
        size = 0
        for mixer in layer.mixers:
            if isinstance(mixer, State):
                raise FootprintError("the cache of TensorRT-LLM is not known here for recurrent states")
            if isinstance(mixer, LatentAttention):
                size += _trtllm_bytes(mixer.kv_lora_rank + mixer.rope_dim, settings.kv_cache_dtype, dtype)
            elif not mixer.shares_kv:
                heads = _heads_per_rank(mixer.kv_heads, settings.tensor_parallel, "--tp_size")
                windows = windows or mixer.window is not None or mixer.chunk is not None
                size += _trtllm_bytes(
                    heads * (mixer.key_dim + mixer.value_dim), settings.kv_cache_dtype, dtype
                )
        sizes.append(size)
    if windows:
        assumptions.append("Layers with windows are counted as if they kept the whole context.")
    stage = math.ceil(len(sizes) / settings.pipeline_parallel)
    return TrtllmCache(
        settings=settings,
        token_bytes=sum(sorted(sizes, reverse=True)[:stage]),
        has_windows=windows,
        assumptions=(*model.assumptions, *assumptions),
        source=f"{model.source or model.model_type}, TensorRT-LLM reference/memory.md",
    )


def _trtllm_bytes(elements: int, name: str, dtype: str) -> int:
    if name == "auto":
        return elements * TORCH_ELEMENT_BYTES[dtype]
    if name in ("fp8", "int8"):
        return elements
    if name == "nvfp4":
        return elements // 2 + elements // 16
    raise FootprintError(f"kv_cache_config.dtype {name!r} is not known here; known: auto, fp8, int8, nvfp4")
