"""Activation memory, against published start-up logs of vLLM.

Runs on H100 with the server's defaults there, 1024 sequences and 8192 batched tokens:
OLD: llm-d-benchmark, config_explorer/empirical-vllm-memory-results.md (79.18 GiB, vLLM 0.11 to 0.13).
NEW: llm-d-planner, docs/accuracy/vllm-v0.19.0-accuracy-report.md (79.19 GiB, utilization 0.95).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brimline.errors import FootprintError
from brimline.estimate import exact
from brimline.footprint.activations import (
    BatchSettings,
    activations,
    eager_attention_bytes,
    encoder_cache_bytes,
    prompt_logprobs_bytes,
    rejection_sampler_bytes,
    sampler_bytes,
)
from brimline.footprint.architecture import (
    Architecture,
    Attention,
    Experts,
    FeedForward,
    LatentAttention,
    Layer,
    Quantization,
)
from brimline.footprint.calibration import sampler_bytes_factor
from brimline.footprint.constants import GIB
from brimline.footprint.runtime import (
    RuntimeSettings,
    cuda_graphs_bytes,
    kv_cache_pool_bytes,
    non_torch_bytes,
    vllm_budget_bytes,
)

H100_DEFAULTS = BatchSettings(max_num_batched_tokens=8192, max_num_seqs=1024)


def dense(vocabulary: int, hidden: int, intermediate: int, heads: int, kv_heads: int) -> Architecture:
    attention = Attention(query_heads=heads, kv_heads=kv_heads, key_dim=128, value_dim=128)
    layer = Layer(mixers=(attention,), feed_forward=FeedForward(intermediate=intermediate), norm_elements=0)
    return Architecture(model_type="llama", vocabulary=vocabulary, hidden=hidden, layers=(layer,), tied=False)


def mixture(
    vocabulary: int, hidden: int, heads: int, experts: Experts, latent: bool = False, method: str = ""
) -> Architecture:
    mixer: Attention | LatentAttention = Attention(query_heads=heads, kv_heads=4, key_dim=128, value_dim=128)
    if latent:
        mixer = LatentAttention(
            query_heads=heads, q_lora_rank=None, kv_lora_rank=512, nope_dim=128, rope_dim=64, value_dim=128
        )
    layer = Layer(mixers=(mixer,), feed_forward=experts, norm_elements=0)
    return Architecture(
        model_type="moe", vocabulary=vocabulary, hidden=hidden, layers=(layer,), tied=False,
        quantization=Quantization(method=method, bits=4) if method else None,
    )  # fmt: skip


LLAMA_8B = dense(128256, 4096, 14336, 32, 8)


@dataclass(frozen=True)
class Run:
    """A published run: its model, GPUs, and what its log says in GiB."""

    name: str
    model: Architecture
    tensor_parallel: int
    utilization: float
    weights: float
    non_torch: float
    activation: float
    pool: float


GPT_OSS = Experts(count=32, per_token=4, intermediate=2880)
OLD = [
    Run("Llama-3.1-8B", LLAMA_8B, 1, 0.9, 14.99, 0.13, 4.76, 51.38),
    Run("Llama-3.3-70B-FP8", dense(128256, 8192, 28672, 64, 8), 2, 0.9, 33.88, 0.55, 4.84, 32.0),
    Run("Qwen3-0.6B", dense(151936, 1024, 3072, 16, 8), 1, 0.9, 1.12, 0.13, 5.56, 64.45),
    Run("Qwen3-32B", dense(151936, 5120, 25600, 64, 8), 1, 0.9, 61.03, 0.14, 5.64, 4.45),
    Run(
        "gpt-oss-20b", mixture(201088, 2880, 64, GPT_OSS, method="mxfp4"), 1, 0.9, 13.47, 0.13, 7.38, 50.28
    ),
    # Its table says a utilization of 0.9, with which its own row does not add up.
    Run(
        "gpt-oss-120b",
        mixture(201088, 2880, 64, replace(GPT_OSS, count=128), method="mxfp4"),
        1, 0.95, 64.38, 0.13, 7.38, 3.33,
    ),
]  # fmt: skip
NEW = [
    Run("Llama-3.1-8B", LLAMA_8B, 1, 0.95, 14.99, 0.25, 1.89, 58.11),
    Run("Qwen2.5-7B", dense(152064, 3584, 18944, 28, 4), 1, 0.95, 14.25, 0.24, 2.21, 58.53),
]


def measured_factor(run: Run) -> float:
    return sampler_bytes_factor(
        round(run.activation * GIB),
        vocabulary=run.model.vocabulary,
        max_num_seqs=1024,
        hidden=run.model.hidden,
        max_num_batched_tokens=8192,
    )


@pytest.mark.parametrize(
    ("runs", "left_out", "version", "card_gib"),
    [(OLD, index, "0.12.0", 79.18) for index in range(len(OLD))]
    + [(NEW, index, "0.19.0", 79.19) for index in range(len(NEW))],
)
def test_the_pool_of_a_run_follows_from_the_factor_of_the_other_runs(
    runs: list[Run], left_out: int, version: str, card_gib: float
) -> None:
    run = runs[left_out]
    # A model stands in several runs; none of them may teach what is asked.
    others = [other for other in runs if other.model.vocabulary != run.model.vocabulary]
    factor = mean(measured_factor(other) for other in others)

    batch = replace(H100_DEFAULTS, tensor_parallel=run.tensor_parallel)
    peak = activations(run.model, batch, version=version, sampler_factor=factor).peak
    pool = kv_cache_pool_bytes(
        exact(vllm_budget_bytes(round(card_gib * GIB), run.utilization), "budget"),
        weights=exact(run.weights * GIB, "log"),
        non_torch=exact(run.non_torch * GIB, "log"),
        activations=peak,
        graphs=exact(0, "not in the budget before 0.21"),
        version=version,
    )

    print(f"{run.name}: K {factor:.3f}, pool {pool.expected / GIB:.2f} GiB, logged {run.pool}")
    # Judged against the card: the pool is what is left of large terms.
    assert abs(pool.expected / GIB - run.pool) / card_gib <= 0.005
    assert pool.low <= run.pool * GIB <= pool.high


# Models of the 0.19.0 report, and what it says of their peak. The table was fitted on these, so this test
# keeps the fit; the one above is the proof.
REPORT = [
    ("Llama-3.1-8B", LLAMA_8B, 1.89),
    ("Qwen2.5-7B", dense(152064, 3584, 18944, 28, 4), 2.21),
    ("Qwen3-8B", dense(151936, 4096, 12288, 32, 8), 2.21),
    ("phi-4", dense(100352, 5120, 17920, 40, 10), 1.52),
    ("granite-3.1-2b", dense(49155, 2048, 8192, 32, 8), 0.75),
    ("granite-3.1-8b", dense(49155, 4096, 12800, 32, 8), 0.85),
    ("CodeLlama-7b", dense(32016, 4096, 11008, 32, 32), 0.77),
    (
        "Qwen3-30B-A3B",
        mixture(151936, 2048, 32, Experts(count=128, per_token=8, intermediate=768)),
        2.68,
    ),
    (
        "Qwen1.5-MoE-A2.7B",
        mixture(
            151936, 2048, 16, Experts(count=60, per_token=4, intermediate=1408, shared_intermediate=5632)
        ),
        2.47,
    ),
    (
        "DeepSeek-V2-Lite",
        mixture(
            102400, 2048, 16,
            Experts(count=64, per_token=6, intermediate=1408, shared_intermediate=2816), latent=True,
        ),
        1.93,
    ),
    ("gpt-oss-20b", mixture(201088, 2880, 64, GPT_OSS, method="mxfp4"), 2.87),
]  # fmt: skip


@pytest.mark.parametrize(("name", "model", "logged"), REPORT, ids=[row[0] for row in REPORT])
def test_the_peaks_of_the_0_19_report_are_met_from_the_table(
    name: str, model: Architecture, logged: float
) -> None:
    peak = activations(model, H100_DEFAULTS, version="0.19.0").peak

    print(f"{name}: {peak.low / GIB:.2f} {peak.expected / GIB:.2f} {peak.high / GIB:.2f}, logged {logged}")
    assert peak.low <= logged * GIB <= peak.high
    assert peak.expected / GIB == pytest.approx(logged, rel=0.15)


def test_the_pool_of_a_0_31_server_is_met_within_a_hundredth_of_its_card() -> None:
    # Log of Llama-3.1-8B on an A100 with the defaults there: 79.25 GiB visible, utilization 0.92, weights
    # 15.0 GiB, pool 56.21 GiB. The table's row of 0.31 was set with this run in view: this test keeps it, and
    # is no proof.
    batch = BatchSettings(max_num_batched_tokens=2048, max_num_seqs=256)
    runs_on = RuntimeSettings(version="0.31.0", gpu="A100 80GB SXM")

    pool = kv_cache_pool_bytes(
        exact(vllm_budget_bytes(round(79.25 * GIB), 0.92), "budget"),
        weights=exact(15.0 * GIB, "log"),
        non_torch=non_torch_bytes(runs_on),
        activations=activations(LLAMA_8B, batch, version="0.31.0").peak,
        graphs=cuda_graphs_bytes(runs_on),
        version="0.31.0",
    )

    print(f"0.31: {pool.low / GIB:.2f} {pool.expected / GIB:.2f} {pool.high / GIB:.2f}, logged 56.21")
    assert pool.low <= 56.21 * GIB <= pool.high
    assert abs(pool.expected / GIB - 56.21) / 79.25 <= 0.01


def test_the_sampler_decides_with_a_large_vocabulary_and_the_forward_pass_with_a_small_one() -> None:
    large = activations(LLAMA_8B, H100_DEFAULTS, version="0.19.0")
    small = activations(dense(32016, 4096, 11008, 32, 32), H100_DEFAULTS, version="0.19.0")

    assert large.peak.expected == large.sampler.expected > large.forward.expected
    assert small.peak.expected == small.forward.expected > small.sampler.expected


def test_the_sampler_does_not_shrink_with_tensor_parallelism() -> None:
    # 1.89 GiB at TP 1, 2 and 4 in the 0.19.0 report
    on_four = activations(LLAMA_8B, replace(H100_DEFAULTS, tensor_parallel=4), version="0.19.0")

    assert on_four.sampler == activations(LLAMA_8B, H100_DEFAULTS, version="0.19.0").sampler


def test_an_earlier_pipeline_stage_does_not_sample() -> None:
    stage = activations(
        LLAMA_8B, replace(H100_DEFAULTS, pipeline_parallel=2, last_stage=False), version="0.19.0"
    )

    # 1.10 GiB at PP 2, 1.05 at PP 4 in the 0.19.0 report
    assert stage.sampler.high == 0
    assert stage.peak.low <= 1.05 * GIB <= 1.10 * GIB <= stage.peak.high


def test_no_more_requests_sample_than_tokens_are_batched() -> None:
    few = BatchSettings(max_num_batched_tokens=512, max_num_seqs=1024)

    size = sampler_bytes(1000, few, hidden=8, factor=1.0)

    # 512 * 8 * 2 of hidden states, 512 * 1000 * 4 of logits
    assert size.expected == 8192 + 2_048_000


def test_a_measured_factor_goes_before_the_table() -> None:
    size = sampler_bytes(128256, H100_DEFAULTS, hidden=4096, factor=9.6, version="0.19.0")

    # 9.6 * 1024 * 128256 * 4 + 8192 * 4096 * 2 = 5,043,231,129.6 + 67,108,864
    assert size.expected == 5_110_339_994
    assert "measured" in size.source


def test_the_encoder_cache_holds_the_larger_of_the_budget_and_one_item() -> None:
    # max(8192, 16384) tokens * 5120 * 2 bytes
    cache = encoder_cache_bytes(5120, max_tokens_per_item=16384, cache_tokens=8192)

    assert (cache.low, cache.expected) == (0, 167_772_160)
    assert encoder_cache_bytes(5120, max_tokens_per_item=0, cache_tokens=8192).high == 0


def test_eager_attention_grows_with_the_square_of_the_context() -> None:
    # 32 heads * 8192² scores * 2 bytes = 4 GiB once; with the softmax in fp32 and its copy 16 GiB
    size = eager_attention_bytes(batch=1, query_heads=32, tokens=8192)

    assert (size.low, size.expected) == (4 * GIB, 16 * GIB)


def test_prompt_logprobs_of_8192_tokens_take_7_gib_that_nobody_reserved() -> None:
    # vLLM PR 52054: about 7.5 GB at 8192 tokens and a vocabulary of 152k
    assert prompt_logprobs_bytes(152064, 8192) == 7_474_249_728


def test_verifying_drafts_takes_logits_of_each_draft_token() -> None:
    # (256 * 3 + 256) * 151936 * 4
    assert rejection_sampler_bytes(151936, 256, 3) == 622_329_856


@pytest.mark.parametrize(
    "wrong", [{"max_num_seqs": 0}, {"tensor_parallel": 0}, {"pipeline_parallel": 0}, {"sampler": "v9"}]
)
def test_batch_settings_that_cannot_be_are_refused_by_name(wrong: dict[str, int]) -> None:
    with pytest.raises(FootprintError, match="|".join(wrong)):
        replace(H100_DEFAULTS, **wrong)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 32768), sequences=st.integers(1, 2048), more=st.integers(0, 4096),
    tensor_parallel=st.sampled_from([1, 2, 4, 8]), version=st.sampled_from(["0.10.0", "0.12.0", "0.19.0"]),
    model=st.sampled_from([row[1] for row in REPORT]),
)  # fmt: skip
def test_the_peak_never_falls_with_a_larger_batch(
    tokens: int, sequences: int, more: int, tensor_parallel: int, version: str, model: Architecture
) -> None:
    batch = BatchSettings(
        max_num_batched_tokens=tokens, max_num_seqs=sequences, tensor_parallel=tensor_parallel
    )
    wider = replace(batch, max_num_batched_tokens=tokens + more)
    longer = replace(batch, max_num_seqs=sequences + more)

    peak = activations(model, batch, version=version).peak

    assert peak.low <= peak.expected <= peak.high
    for larger in (wider, longer):
        grown = activations(model, larger, version=version).peak
        assert (grown.low, grown.expected, grown.high) >= (peak.low, peak.expected, peak.high)


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 64), tokens=st.integers(1, 65536), more=st.integers(0, 4096))
def test_eager_attention_never_falls_with_batch_or_context(batch: int, tokens: int, more: int) -> None:
    size = eager_attention_bytes(batch=batch, query_heads=8, tokens=tokens)

    assert eager_attention_bytes(batch=batch, query_heads=8, tokens=tokens + more).high >= size.high
    assert eager_attention_bytes(batch=batch + more, query_heads=8, tokens=tokens).low >= size.low
