"""What one server measured at its start: read from its log, kept in a YAML file, used instead of constants.

A calibration holds for one engine, version and GPU. Every field but those is optional.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from brimline.errors import FootprintError
from brimline.footprint.constants import GIB, parse_version

MAX_FILE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Constants measured on one server, of one GPU rank; None for what was not measured.

    sampler_bytes_factor: bytes of the sampler's working set over 4 * max_num_seqs * vocabulary.
    context_bytes: of the CUDA context, NCCL and library handles, outside the engine's budget.
    """

    engine: str
    version: str
    gpu: str
    sampler_bytes_factor: float | None = None
    cuda_graphs_bytes: int | None = None
    non_torch_bytes: int | None = None
    context_bytes: int | None = None
    weights_bytes: int | None = None

    def holds_for(self, engine: str, version: str | None, gpu: str) -> bool:
        """True for the engine, the version up to its patch level, and the GPU that were measured."""
        if version is None:
            return False
        same_version = parse_version(version)[:2] == parse_version(self.version)[:2]
        return engine == self.engine and same_version and gpu.lower() == self.gpu.lower()

    def is_whole(self, *, graphs: bool) -> bool:
        """True where nothing is left to the tables; graphs: whether the server captures CUDA graphs."""
        wanted = [self.sampler_bytes_factor, self.non_torch_bytes, self.context_bytes]
        if graphs:
            wanted.append(self.cuda_graphs_bytes)
        return all(measured is not None for measured in wanted)


_TEXTS = ("engine", "version", "gpu")
_BYTES = ("cuda_graphs_bytes", "non_torch_bytes", "context_bytes", "weights_bytes")
_KEYS = tuple(field.name for field in fields(Calibration))


class _Strict(yaml.SafeLoader):
    """YAML without aliases, merge keys and duplicate keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(None, None, "an alias stands here", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                raise yaml.constructor.ConstructorError(None, None, "a key is no word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_calibration(text: str, name: str = "calibration.yaml") -> Calibration:
    """A calibration from the text of its file; `name` stands in the error messages. Raises FootprintError."""
    try:
        # S506: the loader is a stricter SafeLoader.
        plain = yaml.load(text, Loader=_Strict)  # noqa: S506
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        what = error.problem or "not YAML"
        raise FootprintError(f"{name}:{line}: {what}; write `key: value` lines") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise FootprintError(f"{name}: not YAML; write `key: value` lines") from None
    if not isinstance(plain, dict):
        raise FootprintError(f"{name}: holds no mapping; write `key: value` lines")
    for key in plain:
        if key not in _KEYS:
            raise FootprintError(f"{name}: unknown key {key!r}; known: {', '.join(_KEYS)}")
    for key in _TEXTS:
        if not isinstance(plain.get(key), str) or not plain[key].strip():
            raise FootprintError(f"{name}: {key} is no text; write it in quotes, such as {key}: '0.32.0'")
    parse_version(plain["version"])
    for key in _BYTES:
        value = plain.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise FootprintError(f"{name}: {key} is {value!r}; write whole bytes, zero or more")
    factor = plain.get("sampler_bytes_factor")
    if factor is not None and (
        isinstance(factor, bool)
        or not isinstance(factor, int | float)
        or not math.isfinite(factor)
        or not 0 < factor <= 1000
    ):
        raise FootprintError(f"{name}: sampler_bytes_factor is {factor!r}; write a number above 0")
    return Calibration(**plain)


def read_calibration(path: Path) -> Calibration:
    """The calibration in a file. Raises FootprintError."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise FootprintError(f"{path} cannot be read ({error.strerror})") from None
    if len(content) > MAX_FILE_BYTES:
        raise FootprintError(f"{path} is too large for a calibration; it has a dozen lines")
    try:
        return parse_calibration(content.decode(), str(path))
    except UnicodeDecodeError:
        raise FootprintError(f"{path} is not UTF-8 text") from None


def format_calibration(calibration: Calibration) -> str:
    """The text of a calibration's file; what was not measured is left out."""
    stated = {key: getattr(calibration, key) for key in _KEYS if getattr(calibration, key) is not None}
    text: str = yaml.safe_dump(stated, sort_keys=False, allow_unicode=True)
    return f"# Measured on one server; see `brimline calibrate`.\n{text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupLog:
    """What vLLM's log says about memory, in bytes of the fullest rank; None for what it does not say.

    The log rounds to 0.01 GiB, so a figure is right within 5 MiB. consumed_bytes: weights and non-torch
    together (0.26 and later). peak_activation_bytes: as printed; from then on it includes the estimate of
    CUDA graphs (0.32, v1/worker/gpu_worker.py), which activation_bytes leaves out.
    """

    version: str | None = None
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
    gpu_memory_utilization: float | None = None

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
        """Peak of the activations alone, without the estimate of CUDA graphs that newer versions add."""
        if self.peak_activation_bytes is None:
            return None
        if self.consumed_bytes is None:
            return self.peak_activation_bytes
        return max(0, self.peak_activation_bytes - (self.cuda_graphs_estimate_bytes or 0))

    @property
    def context_bytes(self) -> int | None:
        """What was taken of the GPU before the engine measured: context, NCCL, and other processes."""
        if self.visible_bytes is None or self.free_bytes is None:
            return None
        return max(0, self.visible_bytes - self.free_bytes)


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
    # 0.10.2 to about 0.25
    (
        re.compile(
            rf"Actual usage is {_NUMBER} GiB for weight, {_NUMBER} GiB for peak activation, "
            rf"{_NUMBER} GiB for non-torch memory, and {_NUMBER} GiB for CUDAGraph memory"
        ),
        ("weights_bytes", "peak_activation_bytes", "non_torch_bytes", "cuda_graphs_bytes"),
    ),
    # about 0.26 to 0.33
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
)
_VERSION = re.compile(
    r"(?:initializing a V1 LLM engine|initializing an LLM engine|vLLM API server version|version) "
    r"\(?v?(\d+\.\d+[\w.+-]*)",
    re.IGNORECASE,
)
# What is least on the fullest rank; of all else the most counts.
_SMALLEST = ("kv_cache_bytes", "kv_cache_tokens", "free_bytes", "visible_bytes")


def read_startup_log(lines: Iterable[str]) -> StartupLog:
    """Memory figures in vLLM's log, of any of its versions from 0.6.5 to 0.33.

    Where ranks print different figures the worst is taken: most used, least left. Lines that say nothing of
    memory are passed over; a negative figure (which vLLM 0.11 prints for graphs at times) is passed over too.
    """
    found: dict[str, list[int]] = {}
    version: str | None = None
    utilization: float | None = None
    for line in lines:
        for pattern, names in _GIB_LINES:
            if match := pattern.search(line):
                for name, text in zip(names, match.groups(), strict=True):
                    if (size := float(text)) >= 0:
                        found.setdefault(name, []).append(round(size * GIB))
        if match := _TOKENS.search(line):
            found.setdefault("kv_cache_tokens", []).append(int(match.group(1).replace(",", "") or 0))
        if utilization is None and (match := _UTILIZATION.search(line)):
            utilization = float(match.group(1) or match.group(2))
        if version is None and (match := _VERSION.search(line)):
            version = match.group(1)
    worst = {name: (min if name in _SMALLEST else max)(sizes) for name, sizes in found.items()}
    return StartupLog(version=version, gpu_memory_utilization=utilization, **worst)


def sampler_bytes_factor(
    activation_bytes: int,
    *,
    vocabulary: int,
    max_num_seqs: int,
    hidden: int,
    max_num_batched_tokens: int,
    element_bytes: int = 2,
) -> float:
    """The sampler's factor that a measured activation peak means.

    The inverse of activations.sampler_bytes: what is left beside the hidden states of all batched tokens,
    over 4 * max_num_seqs * vocabulary. It says something of the sampler only where the sampler is the peak.
    Raises FootprintError where nothing is left.
    """
    left = activation_bytes - max_num_batched_tokens * hidden * element_bytes
    if left <= 0:
        raise FootprintError("the activation peak is below the hidden states; check the batch settings")
    return left / (4 * min(max_num_seqs, max_num_batched_tokens) * vocabulary)


def calibrate(
    log: StartupLog,
    *,
    gpu: str,
    version: str | None = None,
    vocabulary: int | None = None,
    hidden: int | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    element_bytes: int = 2,
) -> Calibration:
    """The calibration that a start-up log of vLLM gives.

    The sampler's factor needs the model's sizes and batch settings; without them it stays None. Raises
    FootprintError where neither the log nor the caller says the version, or where the log says no memory.
    """
    stated = version or log.version
    if stated is None:
        raise FootprintError("the log does not say vLLM's version; give it")
    if log.weights_bytes is None and log.consumed_bytes is None:
        raise FootprintError("the log says nothing of memory; give the log of the server's start")
    factor = None
    if (
        log.activation_bytes is not None
        and vocabulary is not None
        and hidden is not None
        and max_num_seqs is not None
        and max_num_batched_tokens is not None
        and (log.consumed_bytes is None or log.cuda_graphs_estimate_bytes is not None)
    ):
        factor = sampler_bytes_factor(
            log.activation_bytes,
            vocabulary=vocabulary,
            max_num_seqs=max_num_seqs,
            hidden=hidden,
            max_num_batched_tokens=max_num_batched_tokens,
            element_bytes=element_bytes,
        )
    return Calibration(
        engine="vllm",
        version=stated,
        gpu=gpu,
        sampler_bytes_factor=factor,
        cuda_graphs_bytes=log.cuda_graphs_bytes,
        non_torch_bytes=log.in_budget_non_torch_bytes,
        context_bytes=log.context_bytes,
        weights_bytes=log.weights_bytes,
    )
