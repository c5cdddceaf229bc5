"""The two simulated variants: one model on one GPU each, with a short and a long context window.

Both get the same traffic, so that they can be compared; the long one keeps its KV cache in 8 bits.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from brimline.demo.scheduler import (
    Engine,
    EngineLimits,
    Simulation,
    StepTime,
    Workload,
    requests,
)

MODEL_NAME = "simulated-llama-3.1-8b"
MODEL_FOLDER = Path(__file__).parent / "llama-3.1-8b"

# Llama-3.1-8B, by its config.json; the count of parameters by transformers 5.23 on the meta device.
LAYERS = 32
KV_HEADS = 8
ATTENTION_HEADS = 32
HEAD_DIM = 128
HIDDEN_SIZE = 4096
VOCABULARY = 128_256
PARAMETERS = 8_030_261_248
WEIGHT_BYTES = 2 * PARAMETERS
# Of the input; the head has as many, as they are not tied.
EMBEDDING_PARAMETERS = VOCABULARY * HIDDEN_SIZE
KV_ELEMENTS_PER_TOKEN = 2 * LAYERS * KV_HEADS * HEAD_DIM  # 65,536: 131,072 bytes in bf16, 65,536 in fp8

# H100 SXM. Peaks by NVIDIA's data sheet: 3.35 TB/s, 989 TFLOP/s in dense bf16. Reached: 0.8 of the
# bandwidth is what aiconfigurator takes for every NVIDIA GPU; half of the FLOPs is a round figure for large
# matrices.
BANDWIDTH_BYTES_PER_SECOND = 0.8 * 3.35e12
COMPUTE_FLOPS_PER_SECOND = 0.5 * 989e12
STEP_OVERHEAD_SECONDS = 0.002  # scheduling, graph launch and sampling: a round figure

# H100 80GB HBM3 as NVML tells it: 81,559 MiB in all, of which the driver keeps 551 MiB; CUDA sees the rest.
GPU_NAME = "Simulated H100 80GB"
GPU_TOTAL_BYTES = 81_559 << 20
GPU_RESERVED_BYTES = 551 << 20
GPU_VISIBLE_BYTES = GPU_TOTAL_BYTES - GPU_RESERVED_BYTES

GPU_MEMORY_UTILIZATION = 0.9
BUDGET_BYTES = math.ceil(GPU_VISIBLE_BYTES * GPU_MEMORY_UTILIZATION)
# What the profile run sets aside from the budget besides the weights. llm-d measured 4.76 GiB peak
# activation for this model on an H100 (the sampler of 1024 sequences) and 0.14 GiB outside torch; graphs:
# 0.17 to 2.2 GiB in logs.
ACTIVATION_BYTES = round(4.76 * 2**30)
NON_TORCH_BYTES = round(0.14 * 2**30)
CUDA_GRAPH_BYTES = round(0.5 * 2**30)
# CUDA context and cuBLAS handles: there before vLLM takes its first look, so outside of the budget. A round
# figure.
OUTSIDE_BUDGET_BYTES = round(0.55 * 2**30)
# A server that has started holds all this, whatever its load; only activations move.
RESIDENT_GPU_BYTES = BUDGET_BYTES + OUTSIDE_BUDGET_BYTES

BLOCK_SIZE = 16  # vLLM's default on CUDA
MAX_NUM_SEQS = 1024  # vLLM's defaults for a server on 70 GiB and more (0.33, engine/arg_utils.py)
MAX_NUM_BATCHED_TOKENS = 8192

# Around each peak the bf16 pool overflows for a minute or more, and the queue is empty again in the trough;
# the fp8 pool holds twice as many tokens and stays below 0.8 (16 periods of 4 seeds).
WORKLOAD = Workload(
    requests_per_second=3.8,
    swing=0.7,
    period_seconds=240.0,
    prompt_median_tokens=1500.0,
    prompt_sigma=0.8,
    output_median_tokens=600.0,
    output_sigma=0.6,
    max_output_tokens=2048,
    shared_ratio=0.5,
    prefix_tokens=(600, 1000, 1750),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerProfile:
    """One simulated server.

    name: what the command line calls it. variant: its place in the comparison. gpu_uuid: fixed, and made up.
    kv_cache_dtype: the launch setting; kv_element_bytes: what it comes to.
    """

    name: str
    variant: str
    gpu_uuid: str
    max_model_len: int
    kv_cache_dtype: str
    kv_element_bytes: int
    workload: Workload = WORKLOAD

    @property
    def kv_cache_bytes_per_token(self) -> int:
        """Bytes of KV cache that one token occupies."""
        return KV_ELEMENTS_PER_TOKEN * self.kv_element_bytes

    @property
    def num_gpu_blocks(self) -> int:
        """KV blocks that fit the budget next to weights, activations and graphs."""
        # ceil(visible · 0.9)  76,448,740,148 B   71.20 GiB
        # weights             −16,060,522,496 B  −14.96 GiB
        # activations          −5,111,011,082 B   −4.76 GiB
        # outside torch          −150,323,855 B   −0.14 GiB
        # graphs                 −536,870,912 B   −0.50 GiB
        # KV cache             54,590,011,803 B   50.84 GiB: 26,030 blocks of 2 MiB, or 52,061 of 1 MiB
        pool_bytes = BUDGET_BYTES - WEIGHT_BYTES - ACTIVATION_BYTES - NON_TORCH_BYTES - CUDA_GRAPH_BYTES
        return pool_bytes // (BLOCK_SIZE * self.kv_cache_bytes_per_token)

    @property
    def capacity_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.num_gpu_blocks * BLOCK_SIZE

    def limits(self) -> EngineLimits:
        """What the engine is bound by."""
        return EngineLimits(
            num_gpu_blocks=self.num_gpu_blocks,
            block_size=BLOCK_SIZE,
            max_model_len=self.max_model_len,
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
        )

    def step_time(self) -> StepTime:
        """How long this server's steps take.

        The input embedding is looked up, not read; the head is applied to the last token of each request
        only, so prefill pays for neither. Attention: 2 products of 2 FLOPs for each head's dimension.
        """
        return StepTime(
            weight_read_bytes=WEIGHT_BYTES - 2 * EMBEDDING_PARAMETERS,
            kv_bytes_per_token=self.kv_cache_bytes_per_token,
            flops_per_token=2.0 * (PARAMETERS - 2 * EMBEDDING_PARAMETERS),
            attention_flops_per_pair=4.0 * LAYERS * ATTENTION_HEADS * HEAD_DIM,
            bandwidth_bytes_per_second=BANDWIDTH_BYTES_PER_SECOND,
            compute_flops_per_second=COMPUTE_FLOPS_PER_SECOND,
            overhead_seconds=STEP_OVERHEAD_SECONDS,
        )

    def simulation(self, *, seed: int, requests_per_second: float | None = None) -> Simulation:
        """This server with its traffic from second 0; requests_per_second replaces the profile's mean."""
        workload = self.workload
        if requests_per_second is not None:
            workload = dataclasses.replace(workload, requests_per_second=requests_per_second)
        engine = Engine(self.limits(), self.step_time())
        return Simulation(engine, requests(workload, max_model_len=self.max_model_len, seed=seed))


SHORT_CONTEXT = ServerProfile(
    name="short-context",
    variant="ctx-32k",
    gpu_uuid="GPU-51ae0000-0000-4000-8000-000000000001",
    max_model_len=32_768,
    kv_cache_dtype="auto",
    kv_element_bytes=2,
)
LONG_CONTEXT = ServerProfile(
    name="long-context",
    variant="ctx-128k",
    gpu_uuid="GPU-51ae0000-0000-4000-8000-000000000002",
    max_model_len=131_072,
    kv_cache_dtype="fp8",
    kv_element_bytes=1,
)
PROFILES: dict[str, ServerProfile] = {profile.name: profile for profile in (SHORT_CONTEXT, LONG_CONTEXT)}
