"""vLLM's launch flags, as far as they decide memory, and the defaults that they leave to the version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from brimline.errors import FootprintError, SettingError
from brimline.footprint import settings as read
from brimline.footprint.architecture import Architecture, Attention
from brimline.footprint.constants import GIB, batch_defaults, cpu_batch_defaults, parse_version
from brimline.footprint.drafts import SpeculativeConfig, read_speculative_config
from brimline.footprint.gpus import Gpu
from brimline.footprint.lora import RANKS, LoraSettings
from brimline.footprint.settings import Settings
from brimline.footprint.weights import DTYPE_BYTES, Sharding

# The first version whose own engine ignores --swap-space: V1 is the default (vLLM 0.8.0 release notes).
_WITHOUT_SWAP = (0, 8)
_DEFAULT_SWAP_GIB = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmLaunch:
    """vLLM's flags, as far as they decide memory. None is what the version does by default.

    auto_fit: --max-model-len -1, the longest context that the pool holds. unwanted: kinds of input of which
    --limit-mm-per-prompt leaves none, or all of them with --language-model-only. enforce_eager: no CUDA
    graphs are captured, by that flag or by --compilation-config. on_cpu: it runs on no GPU.
    """

    dtype: str | None = None
    quantization: str | None = None
    kv_cache_dtype: str | None = None
    kv_cache_dtype_skip_layers: tuple[str, ...] = ()
    max_model_len: int | None = None
    auto_fit: bool = False
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    enable_chunked_prefill: bool = True
    doubles_batch: bool = False
    block_size: int | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    prefill_context_parallel_size: int = 1
    decode_context_parallel_size: int = 1
    enable_expert_parallel: bool = False
    redundant_experts: int = 0
    gpu_memory_utilization: float | None = None
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    cpu_offload_gb: float = 0.0
    offload_group_size: int = 0
    offload_num_in_group: int = 1
    offload_prefetch_step: int = 1
    kv_offloading_size: float | None = None
    swap_space: float | None = None
    enforce_eager: bool = False
    enable_prefix_caching: bool | None = None
    hybrid_cache_manager: bool = True
    async_scheduling: bool = True
    mamba_cache_dtype: str | None = None
    mamba_ssm_cache_dtype: str | None = None
    mamba_cache_mode: str | None = None
    max_loras: int = 0
    max_lora_rank: int = 16
    max_cpu_loras: int | None = None
    lora_dtype: str | None = None
    fully_sharded_loras: bool = False
    moe_shared_loras: bool = False
    lora_target_modules: tuple[str, ...] = ()
    speculation: SpeculativeConfig | None = None
    unwanted: frozenset[str] = frozenset()
    profiles_images: bool = True
    encoder_sharding: Literal["weights", "data"] = "weights"
    config_format: str | None = None
    on_cpu: bool = False

    @property
    def captures_graphs(self) -> bool:
        return not self.enforce_eager

    def element_bytes(self, architecture: Architecture) -> int:
        """Bytes of an activation, and of an unquantized weight: of --dtype, else 16 bits or the model's."""
        name = self.dtype or architecture.dtype or "bfloat16"
        if self.dtype is None and name in ("float32", "float"):
            return 2  # a float32 checkpoint is cast down unless --dtype says otherwise
        return DTYPE_BYTES.get(name, 2)

    @property
    def sharding(self) -> Sharding:
        return Sharding(
            tensor=self.tensor_parallel_size,
            pipeline=self.pipeline_parallel_size,
            data=self.data_parallel_size,
            expert=self.enable_expert_parallel,
            redundant_experts=self.redundant_experts,
            encoder=self.encoder_sharding,
        )

    def lora_settings(
        self, architecture: Architecture, *, layers: range, first_stage: bool, last_stage: bool
    ) -> LoraSettings | None:
        """Slots for adapters on a stage; None without any. Raises FootprintError."""
        if not self.max_loras:
            return None
        if self.lora_dtype not in (None, "float16", "bfloat16"):
            raise SettingError(
                f"--lora-dtype {self.lora_dtype!r} is not known; known: auto, bfloat16, float16"
            )
        return LoraSettings(
            max_loras=self.max_loras,
            max_lora_rank=self.max_lora_rank,
            max_cpu_loras=self.max_cpu_loras,
            fully_sharded=self.fully_sharded_loras,
            moe_shared=self.moe_shared_loras,
            element_bytes=2 if self.lora_dtype else self.element_bytes(architecture),
            tensor_parallel=self.tensor_parallel_size,
            expert_parallel=self.tensor_parallel_size * self.data_parallel_size
            if self.enable_expert_parallel
            else 1,
            targets=frozenset(self.lora_target_modules) or None,
            stage_layers=layers,
            first_stage=first_stage,
            last_stage=last_stage,
        )


def vllm_launch(settings: Settings) -> VllmLaunch:
    """vLLM's flags by their own names with underscores. Raises FootprintError naming the flag."""
    longest = (settings.get("max_model_len") or "").strip().lower()
    auto_fit = longest in ("-1", "auto")
    captures = _captures_graphs(settings)
    _check_offloading(settings)
    _check_adapters(settings)
    return VllmLaunch(
        on_cpu=settings.get("device") == "cpu",
        dtype=read.text(settings, "dtype"),
        quantization=read.text(settings, "quantization"),
        kv_cache_dtype=read.text(settings, "kv_cache_dtype"),
        kv_cache_dtype_skip_layers=read.words(settings, "kv_cache_dtype_skip_layers"),
        max_model_len=None if auto_fit else read.count(settings, "max_model_len"),
        auto_fit=auto_fit,
        max_num_seqs=read.count(settings, "max_num_seqs"),
        max_num_batched_tokens=read.count(settings, "max_num_batched_tokens"),
        enable_chunked_prefill=read.switch(settings, "enable_chunked_prefill") is not False,
        doubles_batch=read.text(settings, "performance_mode") == "throughput",
        block_size=read.count(settings, "block_size"),
        tensor_parallel_size=read.ranks(settings, "tensor_parallel_size") or 1,
        pipeline_parallel_size=read.ranks(settings, "pipeline_parallel_size") or 1,
        data_parallel_size=read.ranks(settings, "data_parallel_size") or 1,
        prefill_context_parallel_size=read.ranks(settings, "prefill_context_parallel_size") or 1,
        decode_context_parallel_size=read.ranks(settings, "decode_context_parallel_size") or 1,
        enable_expert_parallel=read.switch(settings, "enable_expert_parallel") or False,
        redundant_experts=_redundant_experts(settings),
        gpu_memory_utilization=read.ratio(settings, "gpu_memory_utilization"),
        kv_cache_memory_bytes=read.size(settings, "kv_cache_memory_bytes"),
        num_gpu_blocks_override=read.count(settings, "num_gpu_blocks_override"),
        cpu_offload_gb=read.number(settings, "cpu_offload_gb", least=0) or 0.0,
        offload_group_size=read.count(settings, "offload_group_size", least=0) or 0,
        offload_num_in_group=read.count(settings, "offload_num_in_group") or 1,
        offload_prefetch_step=read.count(settings, "offload_prefetch_step", least=0) or 1,
        kv_offloading_size=read.number(settings, "kv_offloading_size", least=0),
        swap_space=read.number(settings, "swap_space"),
        enforce_eager=read.switch(settings, "enforce_eager") or not captures,
        enable_prefix_caching=read.switch(settings, "enable_prefix_caching"),
        hybrid_cache_manager=not read.switch(settings, "disable_hybrid_kv_cache_manager"),
        async_scheduling=read.switch(settings, "async_scheduling") is not False,
        mamba_cache_dtype=read.text(settings, "mamba_cache_dtype"),
        mamba_ssm_cache_dtype=read.text(settings, "mamba_ssm_cache_dtype"),
        mamba_cache_mode=_mamba_mode(settings),
        max_loras=_slots(settings),
        max_lora_rank=read.count(settings, "max_lora_rank") or 16,
        max_cpu_loras=read.count(settings, "max_cpu_loras", least=0) or None,
        lora_dtype=read.text(settings, "lora_dtype"),
        fully_sharded_loras=read.switch(settings, "fully_sharded_loras") or False,
        moe_shared_loras=read.switch(settings, "enable_moe_shared_loras") or False,
        lora_target_modules=read.words(settings, "lora_target_modules"),
        speculation=read_speculative_config(settings),
        unwanted=_unwanted(settings),
        profiles_images=not read.switch(settings, "skip_mm_profiling"),
        encoder_sharding="data" if read.text(settings, "mm_encoder_tp_mode") == "data" else "weights",
        config_format=read.text(settings, "config_format"),
    )


def _check_offloading(settings: Settings) -> None:
    group = read.count(settings, "offload_group_size", least=0) or 0
    moved = read.count(settings, "offload_num_in_group") or 1
    if group and moved > group:
        raise SettingError(
            f"--offload-num-in-group {moved}: it is at most --offload-group-size, which is {group}"
        )


def _check_adapters(settings: Settings) -> None:
    rank = read.count(settings, "max_lora_rank")
    if rank is not None and rank not in RANKS:
        raise SettingError(f"--max-lora-rank {rank}: vLLM knows {', '.join(map(str, RANKS))}")
    slots, on_host = _slots(settings), read.count(settings, "max_cpu_loras", least=0)
    if on_host and on_host < slots:
        raise SettingError(f"--max-cpu-loras {on_host}: it is at least --max-loras, which is {slots}")


def _slots(settings: Settings) -> int:
    """Slots for adapters: --max-loras of --enable-lora; of --max-loras alone, as if the other were there."""
    slots = read.count(settings, "max_loras", least=0)
    enabled = read.switch(settings, "enable_lora")
    if enabled is False:
        return 0
    return (slots or 1) if enabled else slots or 0


def _captures_graphs(settings: Settings) -> bool:
    """True where --compilation-config leaves CUDA graphs on; only what turns them off is read."""
    stated = settings.get("compilation_config", "").strip()
    if stated.isdigit():  # -O0, -O3
        return stated != "0"
    config = read.mapping(settings, "compilation_config") or {}
    mode = str(config.get("cudagraph_mode", "")).rpartition(".")[2].upper()
    return mode not in ("NONE", "0")


def _mamba_mode(settings: Settings) -> str | None:
    """--mamba-cache-mode; None is what the version does. (`none` is a mode here, not an unstated value.)"""
    stated = settings.get("mamba_cache_mode", "").strip().lower()
    return stated or None


def _redundant_experts(settings: Settings) -> int:
    """Experts that --eplb-config adds, where --enable-eplb is given."""
    if not read.switch(settings, "enable_eplb"):
        return 0
    stated = (read.mapping(settings, "eplb_config") or {}).get("num_redundant_experts", 0)
    if not isinstance(stated, int) or isinstance(stated, bool) or stated < 0:
        raise SettingError(f"--eplb-config: num_redundant_experts is {stated!r}, no whole number from 0 on")
    return stated


_SENSES = frozenset({"image", "video", "audio"})


def _unwanted(settings: Settings) -> frozenset[str]:
    """Kinds of input that no prompt may have. One that is not named keeps its limit of 999."""
    if read.switch(settings, "language_model_only"):
        return _SENSES
    found = set()
    for name, limit in (read.mapping(settings, "limit_mm_per_prompt") or {}).items():
        count = limit.get("count", 999) if isinstance(limit, dict) else limit
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise SettingError(f"--limit-mm-per-prompt: {name} is {limit!r}, no whole number from 0 on")
        if not count:
            found.add(name)
    return frozenset(found)


def swap_gib(launch: VllmLaunch, version: str | None) -> float:
    """GiB of host memory that old versions set aside for swapped K/V on each GPU; 0 since 0.8."""
    if version is None or parse_version(version) >= _WITHOUT_SWAP:
        return 0.0
    if launch.swap_space is not None and launch.swap_space < 0:
        raise SettingError(f"--swap-space {launch.swap_space} is below 0")
    return _DEFAULT_SWAP_GIB if launch.swap_space is None else launch.swap_space


def batch_of(launch: VllmLaunch, gpu: Gpu | None, context: int, assumptions: list[str]) -> tuple[int, int]:
    """max_num_seqs and max_num_batched_tokens.

    vLLM 0.32, engine/arg_utils.py get_batch_defaults and _set_default_max_num_seqs_and_batched_tokens_args.
    """
    memory = gpu.memory_bytes if gpu is not None else 80 * GIB
    defaults = batch_defaults(memory, gpu.name if gpu is not None else "")
    if launch.on_cpu:
        defaults = cpu_batch_defaults(launch.tensor_parallel_size * launch.pipeline_parallel_size)
    elif gpu is None and None in (launch.max_num_seqs, launch.max_num_batched_tokens):
        assumptions.append("No GPU is named: the batch defaults are those of a GPU with 70 GiB or more.")
    twice = 2 if launch.doubles_batch else 1
    sequences = launch.max_num_seqs or defaults.max_num_seqs * twice
    batched = launch.max_num_batched_tokens
    if batched is None:
        batched = defaults.max_num_batched_tokens * twice
        if not launch.enable_chunked_prefill:
            batched = max(batched, context)
        batched = min(batched, sequences * context)
    if launch.max_num_seqs is None:
        sequences = min(sequences, batched)
    # vLLM 0.33, config/scheduler.py verify_max_model_len.
    if batched < sequences:
        raise FootprintError(
            f"--max-num-seqs {sequences} is more than --max-num-batched-tokens {batched}; vLLM asks for a "
            "token of the batch for each request"
        )
    if batched < context and not launch.enable_chunked_prefill:
        raise FootprintError(
            f"--max-num-batched-tokens {batched} is less than --max-model-len {context}, which "
            "--no-enable-chunked-prefill does not allow"
        )
    return sequences, batched


# YaRN's factor no longer multiplies the context (vllm-project/vllm pull request 56446).
_WITHOUT_YARN_FACTOR = (0, 32)
# LongRoPE models serve their original context unless a longer one is asked for (pull request 27431).
_SHORT_LONGROPE = (0, 11, 1)


# What vLLM serves of a model that states no length (0.33, config/model.py _get_and_verify_max_len).
UNSTATED_CONTEXT = 2048


def context_of(architecture: Architecture, launch: VllmLaunch, version: str | None = None) -> int:
    """The longest request, in tokens. Raises FootprintError above what the model was made for.

    vLLM 0.32, config/model.py _get_and_verify_max_len.
    """
    release = None if version is None else parse_version(version)
    longest = usual = architecture.max_position
    if architecture.yarn_position is not None and release is not None and release < _WITHOUT_YARN_FACTOR:
        longest = usual = architecture.yarn_position
    if architecture.usual_position is not None and (release is None or release >= _SHORT_LONGROPE):
        usual = architecture.usual_position
    wanted = launch.max_model_len or usual or UNSTATED_CONTEXT
    if longest is not None and wanted > longest:
        raise FootprintError(
            f"--max-model-len {wanted} is above the {longest} tokens that the model was made for; raise them "
            "with --hf-overrides (rope_scaling and max_position_embeddings). vLLM itself also takes it with "
            "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1, at the price of nonsense beyond"
        )
    return wanted


def skipped_layers(architecture: Architecture, launch: VllmLaunch) -> frozenset[int]:
    """Layers of --kv-cache-dtype-skip-layers: indexes, and `sliding_window` for all with a window."""
    found = set()
    for word in launch.kv_cache_dtype_skip_layers:
        if word == "sliding_window":
            found |= {
                index
                for index, layer in enumerate(architecture.layers)
                if any(isinstance(mixer, Attention) and mixer.window is not None for mixer in layer.mixers)
            }
        elif word.isascii() and word.isdigit() and len(word) < 9 and int(word) < len(architecture.layers):
            found.add(int(word))
        else:
            raise SettingError(
                f"--kv-cache-dtype-skip-layers {word[:60]!r}: write indexes of the "
                f"{len(architecture.layers)} layers, or sliding_window"
            )
    return frozenset(found)
