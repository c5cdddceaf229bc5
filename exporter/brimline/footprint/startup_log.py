"""What vLLM's log says of its start: memory by component, version, and the settings it ran with."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from brimline.footprint.constants import GIB, LOG_ROUNDING_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupLog:
    """Memory in bytes of the fullest rank, and settings; None for what the log does not say.

    The log rounds to 0.01 GiB, so a figure is right within 5 MiB. consumed_bytes: weights and non-torch
    together (0.27 and later). peak_activation_bytes: as printed; beside consumed_bytes it includes the
    estimate of CUDA graphs (0.32, v1/worker/gpu_worker.py), which activation_bytes leaves out.
    settings: by vLLM's own flag names, as far as they decide memory. device: what it ran on: cuda, cpu, ….
    """

    version: str | None = None
    device: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    weights_bytes: int | None = None
    consumed_bytes: int | None = None
    non_torch_bytes: int | None = None
    peak_activation_bytes: int | None = None
    cuda_graphs_bytes: int | None = None
    cuda_graphs_estimate_bytes: int | None = None
    kv_cache_bytes: int | None = None
    kv_cache_tokens: int | None = None
    free_bytes: int | None = None
    visible_bytes: int | None = None
    requested_bytes: int | None = None
    gpu_memory_utilization: float | None = None

    @property
    def gpu_bytes(self) -> int | None:
        """What CUDA shows of the GPU: as printed, or as what was requested of it tells."""
        if self.visible_bytes is not None or not self.gpu_memory_utilization:
            return self.visible_bytes
        return (
            None
            if self.requested_bytes is None
            else round(self.requested_bytes / self.gpu_memory_utilization)
        )

    @property
    def gpu_error_bytes(self) -> int:
        """How far gpu_bytes may be off."""
        ratio = 1.0 if self.visible_bytes is not None else self.gpu_memory_utilization or 1.0
        return math.ceil(LOG_ROUNDING_BYTES / ratio)

    @property
    def in_budget_non_torch_bytes(self) -> int | None:
        """Non-torch bytes, as printed or as what is consumed beyond the weights."""
        if self.non_torch_bytes is not None:
            return self.non_torch_bytes
        if self.consumed_bytes is None or self.weights_bytes is None:
            return None
        return max(0, self.consumed_bytes - self.weights_bytes)

    @property
    def activation_bytes(self) -> int | None:
        """Peak of the activations alone; None where it cannot be told from the estimate of CUDA graphs."""
        if self.peak_activation_bytes is None or self.consumed_bytes is None:
            return self.peak_activation_bytes
        if self.cuda_graphs_estimate_bytes is not None:
            return max(0, self.peak_activation_bytes - self.cuda_graphs_estimate_bytes)
        # Nothing was captured, so nothing was estimated.
        return self.peak_activation_bytes if self.settings.get("enforce_eager") == "true" else None

    @property
    def context_bytes(self) -> int | None:
        """What was taken of the GPU before the engine measured: context, NCCL, and other processes."""
        if self.gpu_bytes is None or self.free_bytes is None:
            return None
        return max(0, self.gpu_bytes - self.free_bytes)

    @property
    def says_memory(self) -> bool:
        """True where any figure was found."""
        return any(
            figure is not None
            for figure in (
                self.weights_bytes,
                self.consumed_bytes,
                self.peak_activation_bytes,
                self.kv_cache_bytes,
            )
        )


_NUMBER = r"(-?\d+(?:\.\d+)?)"
# Each pattern: the fields that its groups fill, in GiB (or GB as versions before 0.8 wrote GiB).
_GIB_LINES: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = (
    # 0.32 v1/worker/gpu_model_runner.py and gpu/model_runner.py; 0.7: "Loading model weights took 14.9888 GB"
    (re.compile(rf"(?:Model loading|Loading model weights) took {_NUMBER} Gi?B"), ("weights_bytes",)),
    # 0.9 to 0.33
    (re.compile(rf"Available KV cache memory: {_NUMBER} GiB"), ("kv_cache_bytes",)),
    (re.compile(rf"Graph capturing finished in \d+ secs?, took {_NUMBER} GiB"), ("cuda_graphs_bytes",)),
    (re.compile(rf"Estimated CUDA graph memory: {_NUMBER} GiB"), ("cuda_graphs_estimate_bytes",)),
    (
        re.compile(rf"CUDA graph pool memory: {_NUMBER} GiB \(actual\), {_NUMBER} GiB \(estimated\)"),
        ("cuda_graphs_bytes", "cuda_graphs_estimate_bytes"),
    ),
    (
        re.compile(rf"Free memory on device[^(]*\({_NUMBER}/{_NUMBER} GiB\) on startup"),
        ("free_bytes", "visible_bytes"),
    ),
    # 0.33 v1/worker/gpu_worker.py determine_available_memory, at debug level
    (
        re.compile(rf"Initial free memory: {_NUMBER} GiB; Requested memory: [\d.]+ \(util\), {_NUMBER} GiB"),
        ("free_bytes", "requested_bytes"),
    ),
    # 0.10.2 to about 0.26
    (
        re.compile(
            rf"Actual usage is {_NUMBER} GiB for weight, {_NUMBER} GiB for peak activation, "
            rf"{_NUMBER} GiB for non-torch memory, and {_NUMBER} GiB for CUDAGraph memory"
        ),
        ("weights_bytes", "peak_activation_bytes", "non_torch_bytes", "cuda_graphs_bytes"),
    ),
    # about 0.27 to 0.33
    (
        re.compile(
            rf"Actual usage is {_NUMBER} GiB for consumed memory \(weights \+ non-torch\), "
            rf"{_NUMBER} GiB for peak activation, and {_NUMBER} GiB for CUDAGraph memory"
        ),
        ("consumed_bytes", "peak_activation_bytes", "cuda_graphs_bytes"),
    ),
    # 0.6.5: a table
    (re.compile(rf"total_gpu_memory\s+{_NUMBER}\s*GiB"), ("visible_bytes",)),
    (re.compile(rf"non_torch_memory\s+{_NUMBER}\s*GiB"), ("non_torch_bytes",)),
    (re.compile(rf"PyTorch activation peak memory\s+{_NUMBER}\s*GiB"), ("peak_activation_bytes",)),
    (re.compile(rf"available_kv_cache_memory\s+{_NUMBER}\s*GiB"), ("kv_cache_bytes",)),
    # 0.7 and 0.8: one sentence after "Memory profiling takes 0.71 seconds"
    (re.compile(rf"model weights take\s+{_NUMBER}\s*GiB"), ("weights_bytes",)),
    (re.compile(rf"non_torch_memory takes\s+{_NUMBER}\s*GiB"), ("non_torch_bytes",)),
    (re.compile(rf"PyTorch activation peak memory takes\s+{_NUMBER}\s*GiB"), ("peak_activation_bytes",)),
    (re.compile(rf"reserved for KV Cache is\s+{_NUMBER}\s*GiB"), ("kv_cache_bytes",)),
    (re.compile(rf"total_gpu_memory \({_NUMBER}GiB\)"), ("visible_bytes",)),
    # 0.32 utils/mem_utils.py, at debug level
    (
        re.compile(rf"total consumed \(from mem_get_info\): {_NUMBER}GiB; weights memory: {_NUMBER}GiB"),
        ("consumed_bytes", "weights_bytes"),
    ),
    # 0.9 to 0.25 of the same, at debug level
    (
        re.compile(
            rf"torch peak memory increase: {_NUMBER}GiB; non-torch forward increase memory: {_NUMBER}GiB; "
            rf"weights memory: {_NUMBER}GiB"
        ),
        ("peak_activation_bytes", "non_torch_bytes", "weights_bytes"),
    ),
)
_TOKENS = re.compile(r"(?:GPU|CPU|XPU) KV cache size: ([\d,]+) tokens")
_UTILIZATION = re.compile(
    rf"Desired GPU memory utilization is \({_NUMBER},|gpu_memory_utilization(?: \(|\s+){_NUMBER}"
    rf"|Requested memory: {_NUMBER} \(util\)"
)
# Best first: the engine's own line, that of the front end, its banner.
_VERSIONS = (
    re.compile(r"Initializing an? (?:V1 )?LLM engine \(v?(\d+\.\d+[\w.+-]*)\)"),
    re.compile(r"vLLM API server version v?(\d+\.\d+[\w.+-]*)"),
    re.compile(r"[█▀▄]\s+version v?(\d+\.\d+[\w.+-]*)"),
)
# The first lines of a start. Further ones of the same start stand before any figure.
_START = re.compile(r"vLLM API server version|Initializing an? (?:V1 )?LLM engine|[█▀▄]\s+version v?\d")
# What is least on the fullest rank; of all else the most counts.
_SMALLEST = ("kv_cache_bytes", "kv_cache_tokens", "free_bytes", "visible_bytes", "requested_bytes")

# Flags as they stand in "non-default args: {'max_num_seqs': 16, …}", "args: Namespace(max_num_seqs=256, …)"
# and "Initializing a V1 LLM engine (…) with config: …, tensor_parallel_size=1, …".
_COUNT, _RATIO, _SWITCH, _WORD = r"-?\d+", r"\d+(?:\.\d+)?", r"True|False", r"[^'\",\s)}\]]+"
_SETTINGS: dict[str, str] = {
    "block_size": _COUNT,
    "cpu_offload_gb": _RATIO,
    "data_parallel_size": _COUNT,
    "decode_context_parallel_size": _COUNT,
    "dtype": _WORD,
    "enable_expert_parallel": _SWITCH,
    "enable_lora": _SWITCH,
    "enable_prefix_caching": _SWITCH,
    "enforce_eager": _SWITCH,
    "gpu_memory_utilization": _RATIO,
    "kv_cache_dtype": _WORD,
    "kv_cache_memory_bytes": _COUNT,
    "max_lora_rank": _COUNT,
    "max_loras": _COUNT,
    "max_model_len": _COUNT,
    "max_num_batched_tokens": _COUNT,
    "max_num_seqs": _COUNT,
    "max_seq_len": _COUNT,
    "model": _WORD,
    "num_gpu_blocks_override": _COUNT,
    "pipeline_parallel_size": _COUNT,
    "quantization": _WORD,
    "tensor_parallel_size": _COUNT,
}
_SETTING = re.compile(rf"\b(?P<name>{'|'.join(_SETTINGS)})['\"]?\s*[:=]\s*['\"]?(?P<value>{_WORD})['\"]?")
_STATES_SETTINGS = re.compile(
    r"non-default args: \{|args: Namespace\(|LLM engine \(v?[\w.+-]+\) with config: "
)
_NESTED = re.compile(r"\{[^{}]*\}|\[[^\[\]]*\]|\([^()]*\)")
MAX_NESTING = 16
_CHUNKED = re.compile(r"Chunked prefill is enabled with max_num_batched_tokens=(\d+)")
_DEVICE = re.compile(r"\bdevice_config=(\w+)")
_CPU = re.compile(r"cpu_worker\.py:\d+\]|CPU KV cache size:")
# A line of a log is seldom longer; a file that is no log may be one line.
MAX_LINE = 1 << 16


def read_startup_log(lines: Iterable[str]) -> StartupLog:
    """What vLLM's log says, of any of its versions from 0.6.5 to 0.33; of several starts, of the last.

    Where ranks print different figures the worst is taken: most used, least left. Lines that say nothing of
    memory are passed over; a negative figure (which vLLM 0.11 prints for graphs at times) is passed over too.
    """
    start = _Start()
    last = whole = None
    for line in lines:
        text = line[:MAX_LINE]
        if start.found and _START.search(text):
            last, whole = start, start if start.is_whole else whole
            start = _Start()
        start.read(text)
    # A start that failed before it had a cache does not hide the one before it.
    if start.is_whole or whole is None:
        return (start if start.found or last is None else last).log()
    return whole.log()


class _Start:
    """One start of the server, as its lines go by."""

    def __init__(self) -> None:
        self.found: dict[str, list[int]] = {}
        self._settings: dict[str, str] = {}
        self._versions: dict[int, str] = {}
        self._utilization: float | None = None
        self._device: str | None = None

    @property
    def is_whole(self) -> bool:
        """True once the size of the cache was told, which comes after all else but the graphs."""
        return "kv_cache_bytes" in self.found

    def read(self, line: str) -> None:
        """Take in what a line says."""
        for name, size in _figures(line):
            self.found.setdefault(name, []).append(size)
        if self._utilization is None and (match := _UTILIZATION.search(line)):
            self._utilization = float(next(group for group in match.groups() if group))
        for rank, pattern in enumerate(_VERSIONS):
            if match := pattern.search(line):
                self._versions.setdefault(rank, match.group(1))
        if match := _CHUNKED.search(line):
            self._settings.setdefault("max_num_batched_tokens", match.group(1))
        if match := _DEVICE.search(line):
            self._device = match.group(1)
        elif self._device is None and _CPU.search(line):
            self._device = "cpu"
        if match := _STATES_SETTINGS.search(line):
            for name, value in _settings_in(line[match.end() :]):
                self._settings.setdefault(name, value)

    def log(self) -> StartupLog:
        """What was said of this start."""
        worst = {name: (min if name in _SMALLEST else max)(sizes) for name, sizes in self.found.items()}
        stated = self._settings.get("gpu_memory_utilization")
        if (longest := self._settings.pop("max_seq_len", None)) is not None:
            self._settings.setdefault("max_model_len", longest)
        return StartupLog(
            version=self._versions[min(self._versions)] if self._versions else None,
            device=self._device,
            settings=dict(sorted(self._settings.items())),
            gpu_memory_utilization=self._utilization if stated is None else float(stated),
            **worst,
        )


def _figures(line: str) -> Iterator[tuple[str, int]]:
    for pattern, names in _GIB_LINES:
        if match := pattern.search(line):
            for name, text in zip(names, match.groups(), strict=True):
                size = float(text) * GIB
                if 0 <= size < math.inf:
                    yield name, round(size)
    if match := _TOKENS.search(line):
        yield "kv_cache_tokens", int(match.group(1).replace(",", "") or 0)


def _settings_in(text: str) -> Iterator[tuple[str, str]]:
    """Flags and their values; None and what stands in nested settings, as of a draft model, are left out."""
    for _ in range(MAX_NESTING):
        text, count = _NESTED.subn("", text)
        if not count:
            break
    for match in _SETTING.finditer(text):
        name, value = match.group("name"), match.group("value").removeprefix("torch.")
        if value != "None" and re.fullmatch(_SETTINGS[name], value):
            yield name, value.lower() if value in ("True", "False") else value
