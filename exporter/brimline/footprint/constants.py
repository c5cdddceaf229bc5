"""Numbers that no formula gives: measured once, published somewhere, or written in an engine's source.

ONE table. A row says for which engine, versions, GPU and variant it holds, and where it comes from. A live
server's own measurement (brimline.footprint.calibration) replaces any of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from brimline.errors import FootprintError
from brimline.estimate import Estimate, between

MIB = 1 << 20
GIB = 1 << 30

# Figures of logs are rounded to 0.01 GiB.
LOG_ROUNDING_BYTES = 5 * MIB + 1

Version = tuple[int, ...]

Name = Literal[
    "context_bytes",
    "cuda_graphs_bytes",
    "custom_all_reduce_bytes",
    "flashinfer_workspace_bytes",
    "forward_factor",
    "gpu_memory_utilization",
    "llamacpp_fit_margin_bytes",
    "moe_workspace_factor",
    "non_torch_bytes",
    "nvml_reserved_ratio",
    "roofline_bandwidth_ratio",
    "sampler_bytes_factor",
    "trtllm_free_fraction",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """One number with bounds, and where it holds.

    since, before: versions of the engine, the second excluded; empty for all. gpu: part of the GPU's name in
    lower case; empty for any. variant: what else must be so, such as `multi` for more than one GPU.
    """

    name: Name
    low: float
    expected: float
    high: float
    source: str
    engine: str = ""
    since: Version = ()
    before: Version = ()
    gpu: str = ""
    variant: str = ""

    def estimate(self) -> Estimate:
        """The number as bytes."""
        return between(self.low, self.expected, self.high, self.source)


_LLMD_OLD = "llm-d-benchmark, config_explorer/empirical-vllm-memory-results.md (H100, vLLM 0.11 to 0.13)"
_LLMD_019 = "llm-d-planner, docs/accuracy/vllm-v0.19.0-accuracy-report.md (H100, vLLM 0.19.0)"
_LLMD_SWEEP = "llm-d-planner pull request 205, one model on vLLM 0.15 to 0.18 (H100)"

CONSTANTS: tuple[Constant, ...] = (
    # --- Bytes of the sampler's working set over 4 * max_num_seqs * vocabulary, beside the hidden states.
    # A full sort (values, 64-bit indices, probabilities) in PyTorch; FlashInfer where it was installed.
    Constant(
        name="sampler_bytes_factor", engine="vllm", before=(0, 11, 1), low=3.9, expected=9.6, high=10.4,
        source="vLLM PR 10511 (0.6.5, 1.26 GiB for Llama-3-8B with 256 sequences) up, "
        f"Mistral-Small on 0.11.0 with FlashInfer down: {_LLMD_OLD}",
    ),
    Constant(
        name="sampler_bytes_factor", engine="vllm", since=(0, 11, 1), before=(0, 17), low=9.4, expected=9.6,
        high=10.3, source=f"fitted on five models, 9.56 to 9.64: {_LLMD_OLD}; so up to 0.16: {_LLMD_SWEEP}",
    ),
    # Triton's top-k and top-p kernel needs no sort: 5.64 GiB on 0.16, 2.23 on 0.17.
    Constant(
        name="sampler_bytes_factor", engine="vllm", since=(0, 17), before=(0, 31), low=3.6, expected=3.74,
        high=4.3, source=f"fitted on eight models, 3.68 to 4.20: {_LLMD_019}",
    ),
    # The second model runner is the default (0.31 logs, 0.32 config/vllm.py use_v2_model_runner). Its factor
    # differs with what GPU and samplers are there; few runs are published, so the bounds stay wide until a
    # server is calibrated.
    Constant(
        name="sampler_bytes_factor", engine="vllm", since=(0, 31), low=1.4, expected=3.74, high=9.8,
        source="low: 1.54 GiB for Qwen3.6-27B on H100 (vLLM PR 48601); high: 1.44 GiB with graphs for "
        "Llama-3.1-8B with 256 sequences on A100 (0.31 log); expected: the first model runner",
    ),
    Constant(
        name="sampler_bytes_factor", engine="vllm", since=(0, 17), variant="v1", low=3.6, expected=3.74,
        high=4.3, source=f"first model runner: {_LLMD_019}",
    ),
    Constant(
        name="sampler_bytes_factor", engine="vllm", variant="pytorch", low=9.4, expected=9.6, high=10.4,
        source=f"sampling by a sort in PyTorch: {_LLMD_OLD}",
    ),
    # --- Peak of the forward pass over the sum of its largest tensors (see activations.py).
    Constant(
        name="forward_factor", engine="vllm", low=0.9, expected=1.2, high=1.6,
        source=f"CodeLlama-7b 0.77 GiB, granite-3.1-8b 0.85 GiB, where the forward pass decides: {_LLMD_019}",
    ),
    # --- Part of the experts' two work buffers that stays allocated while tokens are sampled.
    Constant(
        name="moe_workspace_factor", engine="vllm", before=(0, 16), low=0.0, expected=0.0, high=1.0,
        source=f"gpt-oss-20b and -120b show none: {_LLMD_OLD}",
    ),
    Constant(
        name="moe_workspace_factor", engine="vllm", since=(0, 16), low=0.7, expected=0.95, high=1.25,
        source=f"Qwen3-30B-A3B, Qwen1.5-MoE, DeepSeek-V2-Lite, Kimi-VL show 0.78 to 1.05: {_LLMD_019}",
    ),
    Constant(
        name="moe_workspace_factor", engine="vllm", variant="mxfp4", low=0.0, expected=0.0, high=1.0,
        source=f"gpt-oss shows none: {_LLMD_019}",
    ),
    # --- Memory of CUDA libraries within the budget of the engine.
    Constant(
        name="non_torch_bytes", engine="vllm", before=(0, 18), low=0.05 * GIB, expected=0.13 * GIB,
        high=0.26 * GIB, source=f"one GPU, 0.13 to 0.14 GiB: {_LLMD_OLD}; {_LLMD_SWEEP}",
    ),
    Constant(
        name="non_torch_bytes", engine="vllm", before=(0, 16), variant="multi", low=0.5 * GIB,
        expected=0.6 * GIB, high=1.4 * GIB, source=f"0.55 GiB at TP 2: {_LLMD_OLD}; 1.38 on H200 with 0.10.2",
    ),
    Constant(
        name="non_torch_bytes", engine="vllm", since=(0, 18), low=0.05 * GIB, expected=0.25 * GIB,
        high=0.46 * GIB, source=f"one GPU, 0.24 to 0.46 GiB: {_LLMD_019}",
    ),
    Constant(
        name="non_torch_bytes", engine="vllm", since=(0, 16), before=(0, 20), variant="multi", low=0.5 * GIB,
        expected=2.1 * GIB, high=2.25 * GIB, source=f"2.07 GiB at TP 2, 2.13 to 2.17 at TP 4: {_LLMD_019}",
    ),
    Constant(
        name="non_torch_bytes", engine="vllm", since=(0, 20), variant="multi", low=0.5 * GIB,
        expected=0.8 * GIB, high=2.25 * GIB,
        source="vLLM PR 48601 (0.6 GiB, H100, TP 4), start-up log of August 2026 (0.95 GiB, GB200, TP 4); "
        f"high: {_LLMD_019}",
    ),
    # --- CUDA context, NCCL and library handles: outside the engine's budget, inside what NVML counts.
    Constant(
        name="context_bytes", engine="vllm", low=0.15 * GIB, expected=0.5 * GIB, high=1.0 * GIB,
        source="start-up logs 'Free memory on device (free/total)': 0.17 GiB (RTX 3090), 0.41 (A100), "
        "0.49 (A100-40), 0.56 (RTX PRO 6000)",
    ),
    Constant(
        name="context_bytes", engine="vllm", gpu="h100", low=0.4 * GIB, expected=0.61 * GIB, high=1.0 * GIB,
        source=f"78.57 of 79.18 GiB free at the start: {_LLMD_OLD}",
    ),
    Constant(
        name="context_bytes", engine="vllm", gpu="a100", low=0.3 * GIB, expected=0.45 * GIB, high=0.8 * GIB,
        source="start-up logs: 78.84 of 79.25 GiB (vLLM 0.31), 39.0 of 39.49 GiB (0.10.2)",
    ),
    Constant(
        name="context_bytes", engine="vllm", variant="multi", low=0.5 * GIB, expected=1.54 * GIB,
        high=3.4 * GIB,
        source=f"77.64 of 79.18 GiB at TP 2: {_LLMD_OLD}; 77.57 of 79.11 at TP 4: vLLM PR 48601; high: "
        "91.64 of 94.97 GiB (RTX PRO 6000, TP 2, September 2026)",
    ),
    Constant(
        name="context_bytes", low=0.15 * GIB, expected=0.5 * GIB, high=1.0 * GIB,
        source="as measured for vLLM's start-up on one GPU",
    ),
    Constant(
        name="context_bytes", engine="llamacpp", low=0.15 * GIB, expected=453 * MIB, high=1.0 * GIB,
        source="llama.cpp PR 15860: 451 to 456 MiB unaccounted for on an RTX 4090; bounds as for vLLM",
    ),
    # --- CUDA graphs. Their estimate counts within the budget since 0.21; it has been wrong both ways.
    Constant(
        name="cuda_graphs_bytes", engine="vllm", before=(0, 21), low=0.05 * GIB, expected=1.0 * GIB,
        high=2.4 * GIB,
        source=f"0.51 to 1.85 GiB, mean 1.04: {_LLMD_019}; high: 2.37 GiB (H200, TP 2, 0.10.2)",
    ),
    Constant(
        name="cuda_graphs_bytes", engine="vllm", since=(0, 21), low=0.04 * GIB, expected=0.5 * GIB,
        high=2.3 * GIB,
        source="start-up logs of 2026: 0.23 GiB (0.31, A100), 0.36 (0.27), 0.96 (TP 1, 55 GiB of weights), "
        "2.04 (vLLM PR 48601), 2.22 (vLLM issue 50722); mixtures of experts over several GPUs: up to 4.13",
    ),
    Constant(
        name="cuda_graphs_bytes", low=0.0, expected=0.5 * GIB, high=2.3 * GIB,
        source="as measured for vLLM; not measured for this engine",
    ),
    # --- Total of NVML that the driver keeps for itself, as a part of it.
    Constant(
        name="nvml_reserved_ratio", low=0.002, expected=0.0069, high=0.0110,
        source="328, 454, 516 and 551 of 81,559 MiB (H100), 638 of 97,887 (RTX PRO 6000), "
        "870 of 81,920 (A100-80)",
    ),
    # --- Defaults of launch settings.
    Constant(
        name="gpu_memory_utilization", engine="vllm", before=(0, 20), low=0.9, expected=0.9, high=0.9,
        source="vLLM 0.6.4 to 0.19, engine arguments",
    ),
    Constant(
        name="gpu_memory_utilization", engine="vllm", since=(0, 20), before=(0, 27), low=0.9, expected=0.92,
        high=0.92, source="0.9 up to 0.19, 0.92 in the logs of 0.27; when it changed is not known here",
    ),
    Constant(
        name="gpu_memory_utilization", engine="vllm", since=(0, 27), low=0.92, expected=0.92, high=0.92,
        source="vLLM 0.32, config/cache.py",
    ),
    Constant(
        name="trtllm_free_fraction", engine="trtllm", low=0.85, expected=0.9, high=0.9,
        source="TensorRT-LLM, LLM API (0.9 of what is free); 0.85 in the older C++ documentation",
    ),
    Constant(
        name="llamacpp_fit_margin_bytes", engine="llamacpp", low=1024 * MIB, expected=1024 * MIB,
        high=1024 * MIB, source="llama.cpp PR 16653, --fit",
    ),
    # --- Work buffers with a fixed size.
    Constant(
        name="flashinfer_workspace_bytes", engine="vllm", low=394 * MIB, expected=394 * MIB, high=394 * MIB,
        source="vLLM 0.32, envs.py VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE",
    ),
    Constant(
        name="flashinfer_workspace_bytes", engine="vllm", variant="batch_invariant", low=2048 * MIB,
        expected=2048 * MIB, high=2048 * MIB, source="vLLM 0.32, v1/attention/backends/flashinfer.py",
    ),
    Constant(
        name="custom_all_reduce_bytes", engine="vllm", low=8 * MIB, expected=8 * MIB, high=16 * MIB,
        source="vLLM 0.33, custom all-reduce, max_size",
    ),
    # --- Part of a GPU's bandwidth that decoding reaches; a ceiling counts all of it.
    Constant(
        name="roofline_bandwidth_ratio", low=0.5, expected=0.8, high=1.0,
        source="aiconfigurator 0.12, systems/*.yaml (0.8, not official); low: its Intel B60",
    ),
)  # fmt: skip


def parse_version(text: str) -> Version:
    """`0.32.0+cpu` as (0, 32, 0); only the leading numbers count. Raises FootprintError where none is."""
    match = re.match(r"[vV]?(\d+(?:\.\d+)*)", text.strip())
    if match is None:
        raise FootprintError(f"{text!r} is not a version; write it as 0.32.0")
    return tuple(int(part) for part in match.group(1).split("."))


def constant(
    name: Name, *, engine: str = "", version: str | None = None, gpu: str = "", variant: str = ""
) -> Constant:
    """The row that fits best; of an unknown version the newest.

    The variant weighs most, then the engine, then the GPU. Raises FootprintError where no row fits.
    """
    stated = None if version is None else parse_version(version)
    fitting = [
        row
        for row in CONSTANTS
        if row.name == name
        and row.engine in ("", engine)
        and row.variant in ("", variant)
        and (not row.gpu or row.gpu in gpu.lower())
        and (stated is None or (stated >= row.since and (not row.before or stated < row.before)))
    ]
    if not fitting:
        raise FootprintError(f"no {name} is known for {engine or 'any engine'} {version or ''}".rstrip())
    return max(fitting, key=lambda row: (bool(row.variant), bool(row.engine), bool(row.gpu), row.since))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchDefaults:
    """What vLLM's API server runs with where the flags are not given."""

    max_num_seqs: int
    max_num_batched_tokens: int
    source: str


def batch_defaults(memory_bytes: int, gpu_name: str, *, offline: bool = False) -> BatchDefaults:
    """Defaults of max_num_seqs and max_num_batched_tokens on a GPU; offline: the LLM class, not the server.

    vLLM 0.32, engine/arg_utils.py get_batch_defaults. An A100 keeps the small batch, whatever its memory.
    Without chunked prefill, and on CPUs (cpu_batch_defaults) and TPUs, other numbers hold.
    """
    source = "vLLM 0.32, engine/arg_utils.py get_batch_defaults"
    if memory_bytes >= 160 * GIB:
        return BatchDefaults(max_num_seqs=1024, max_num_batched_tokens=16384, source=source)
    if memory_bytes >= 70 * GIB and "a100" not in gpu_name.lower():
        tokens = 16384 if offline else 8192
        return BatchDefaults(max_num_seqs=1024, max_num_batched_tokens=tokens, source=source)
    return BatchDefaults(max_num_seqs=256, max_num_batched_tokens=8192 if offline else 2048, source=source)


def cpu_batch_defaults(world_size: int) -> BatchDefaults:
    """The same on a CPU, by its workers (vLLM 0.32, engine/arg_utils.py get_batch_defaults)."""
    return BatchDefaults(
        max_num_seqs=128 * world_size,
        max_num_batched_tokens=2048 * world_size,
        source="vLLM 0.32, engine/arg_utils.py get_batch_defaults",
    )
