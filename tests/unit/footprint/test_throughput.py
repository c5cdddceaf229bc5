"""Ceilings of decoding, from sizes that can be worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brimline.errors import FootprintError
from brimline.footprint.architecture import (
    Architecture,
    Attention,
    Encoder,
    Experts,
    FeedForward,
    GatedDeltaNet,
    LatentAttention,
    Layer,
    Mixer,
)
from brimline.footprint.kv_dtypes import VLLM_KV_FORMATS
from brimline.footprint.throughput import (
    DecodeCeiling,
    DecodeRate,
    DecodeWeights,
    ExpertLayer,
    PipelineCeiling,
    Speculation,
    decode_ceiling,
    decode_expected,
    decode_weights,
    decode_weights_of_rank,
    expected_tokens_per_step,
    experts_touched,
    kv_read_bytes,
)
from brimline.footprint.weights import PARTS, Part

H100 = 3.35e12  # bytes per second

GQA = Attention(query_heads=32, kv_heads=8, key_dim=128, value_dim=128)


def model(
    *mixers: Mixer, part: FeedForward | Experts, hidden: int = 4096, tied: bool = False, encoder: int = 0
) -> Architecture:
    return Architecture(
        model_type="x",
        vocabulary=128256,
        hidden=hidden,
        layers=tuple(Layer(mixers=(mixer,), feed_forward=part, norm_elements=0) for mixer in mixers),
        tied=tied,
        encoders=(Encoder(kind="vision", parameters=encoder),) if encoder else (),
    )


LLAMA_8B = model(*[GQA] * 32, part=FeedForward(intermediate=14336))
LLAMA_8B_BYTES = 2 * 8_030_261_248  # parameters: transformers' meta device


def test_an_untied_input_embedding_is_looked_up_and_not_read() -> None:
    # 8,030,261,248 - 128256 * 4096 parameters of 2 bytes
    assert decode_weights(LLAMA_8B, LLAMA_8B_BYTES).dense_bytes == 15_009_849_344


def test_a_tied_embedding_is_read_as_the_head() -> None:
    tied = model(GQA, part=FeedForward(intermediate=1), tied=True)

    assert decode_weights(tied, 1000).dense_bytes == 1000


def test_encoders_of_images_are_not_read() -> None:
    seeing = model(GQA, part=FeedForward(intermediate=1), tied=True, encoder=100)

    assert decode_weights(seeing, 1000).dense_bytes == 800


@pytest.mark.parametrize(
    ("batch", "context", "tokens_per_second"),
    # By hand, rounded: B * 3.35e12 / (15.01e9 + B * N * 131072) for Llama-3.1-8B in 16 bits on one H100.
    [(1, 1024, 221), (1, 32768, 174), (64, 4096, 4343), (256, 4096, 5626)],
)
def test_the_ceilings_of_llama_3_1_8b_on_an_h100(batch: int, context: int, tokens_per_second: int) -> None:
    [rate] = decode_ceiling(
        decode_weights(LLAMA_8B, LLAMA_8B_BYTES),
        lambda tokens: kv_read_bytes(LLAMA_8B, tokens),
        bandwidth_bytes_per_second=H100,
        batches=[batch],
        contexts=[context],
    )

    assert rate[:2] == (batch, context)
    assert rate.tokens_per_second == pytest.approx(tokens_per_second, abs=0.6)


@pytest.mark.parametrize(("gpus", "tokens_per_second"), [(1, 24), (2, 48)])
def test_70b_parameters_of_16_bits_by_bandwidth_alone(gpus: int, tokens_per_second: int) -> None:
    # 140 GB over 3.35 TB/s
    [rate] = decode_ceiling(
        DecodeWeights(dense_bytes=140e9 / gpus),
        lambda _: 0,
        bandwidth_bytes_per_second=H100,
        batches=[1],
        contexts=[1],
    )

    assert round(rate.tokens_per_second) == tokens_per_second


@pytest.mark.parametrize(
    ("count", "per_token", "tokens", "touched"),
    [
        # Mixtral-8x7B
        (8, 2, 1, 2), (8, 2, 4, 5.47), (8, 2, 16, 7.92),
        # DeepSeek-V3
        (256, 8, 1, 8), (256, 8, 32, 163), (256, 8, 128, 252),
    ],
)  # fmt: skip
def test_more_tokens_touch_more_experts(count: int, per_token: int, tokens: int, touched: float) -> None:
    assert experts_touched(count, per_token, tokens) == pytest.approx(
        touched, abs=0.005 if touched < 10 else 0.5
    )


def test_the_ceiling_counts_the_experts_of_one_token_and_the_expectation_those_of_the_batch() -> None:
    weights = DecodeWeights(dense_bytes=100, experts=(ExpertLayer(10, 8, 2),) * 3)

    assert weights.ceiling_bytes() == 160
    assert weights.expected_bytes(16) == pytest.approx(100 + 30 * 7.92, abs=0.1)


def test_the_active_weights_of_mixtral_are_12_9b_parameters() -> None:
    # 46,702,792,704 parameters; 12.9 B active with the input embedding (Mixtral's paper), of 2 bytes
    mixtral = Architecture(
        model_type="mixtral", vocabulary=32000, hidden=4096, tied=False,
        layers=(
            Layer(
                mixers=(GQA,), norm_elements=0,
                feed_forward=Experts(count=8, per_token=2, intermediate=14336),
            ),
        ) * 32,
    )  # fmt: skip
    weights = decode_weights(mixtral, 2 * 46_702_792_704)

    assert (weights.ceiling_bytes() / 2 + 32000 * 4096) / 1e9 == pytest.approx(12.88, abs=0.01)


def test_tokens_that_are_routed_evenly_read_more_experts_than_the_ceiling_counts() -> None:
    # Mixtral touches 2 experts for one token, 7.92 of 8 for sixteen: E · (1 − (1 − k/E)^B)
    ceiling = DecodeCeiling(
        weights=DecodeWeights(dense_bytes=100, experts=(ExpertLayer(10, 8, 2),) * 3),
        kv_read=lambda _: 0,
        bandwidth_bytes_per_second=1000,
    )

    even = ceiling.evenly()

    assert even is not None
    assert even(1, 1) == pytest.approx(ceiling(1, 1)) == 1000 / 160
    assert ceiling(16, 1) == 16 * 1000 / 160
    assert even(16, 1) == pytest.approx(16 * 1000 / (100 + 30 * 7.92), rel=0.001)
    assert PipelineCeiling((ceiling, ceiling)).evenly() == PipelineCeiling((even, even))


def test_a_model_without_experts_has_one_ceiling() -> None:
    dense = DecodeCeiling(
        weights=DecodeWeights(dense_bytes=1), kv_read=lambda _: 0, bandwidth_bytes_per_second=1
    )

    assert dense.evenly() is None
    assert PipelineCeiling((dense,)).evenly() is None


def test_weights_smaller_than_their_experts_are_refused() -> None:
    with pytest.raises(FootprintError, match="check the element sizes"):
        decode_weights(LLAMA_8B, 10)


# --- speculation


@pytest.mark.parametrize(("drafts", "tokens"), [(0, 1.0), (1, 1.8), (3, 2.952)])
def test_accepted_drafts_add_to_a_step(drafts: int, tokens: float) -> None:
    # (1 - 0.8^(k+1)) / 0.2
    assert expected_tokens_per_step(drafts, 0.8) == pytest.approx(tokens)


def test_drafts_that_are_always_accepted_all_count() -> None:
    assert expected_tokens_per_step(3, 1.0) == 4


def test_speculation_pays_for_its_draft() -> None:
    def rate(draft_bytes: float) -> float:
        [one] = decode_ceiling(
            DecodeWeights(dense_bytes=100), lambda _: 0, bandwidth_bytes_per_second=1000, batches=[1],
            contexts=[1],
            speculation=Speculation(draft_tokens=3, acceptance=0.8, draft_weights_bytes=draft_bytes),
        )  # fmt: skip
        return one.tokens_per_second

    assert rate(0) == pytest.approx(29.52)  # 2.952 tokens of 100 bytes
    assert rate(10) == pytest.approx(29.52 / 1.3)  # three drafts of 10 bytes


def test_speculation_works_on_the_drafts_of_all_requests() -> None:
    # 4 requests with 3 drafts each: experts of 16 tokens, and computing for 16
    [rate] = decode_expected(
        DecodeWeights(dense_bytes=0, experts=(ExpertLayer(10, 8, 2),)), lambda _: 0,
        bandwidth_bytes_per_second=1000, batches=[4], contexts=[1],
        speculation=Speculation(draft_tokens=3, acceptance=0.8),
    )  # fmt: skip
    [computed] = decode_ceiling(
        DecodeWeights(dense_bytes=1), lambda _: 0, bandwidth_bytes_per_second=1e9, batches=[4], contexts=[1],
        speculation=Speculation(draft_tokens=3, acceptance=0.8), active_parameters=50, flops_per_second=1600,
    )  # fmt: skip

    # 4 * 2.952 tokens / (7.92 * 10 bytes / 800 bytes a second)
    assert rate.tokens_per_second == pytest.approx(4 * 2.952 / (79.2 / 800), rel=1e-3)
    # 2 * 50 * 16 operations at 1600 a second: one step a second
    assert computed.tokens_per_second == pytest.approx(4 * 2.952)


def test_stages_of_a_pipeline_work_in_turn_for_one_request_and_at_once_for_many() -> None:
    # two stages of 50 and 100 bytes of weights, 1 byte of cache a request, 1000 bytes a second
    pipeline = PipelineCeiling(
        tuple(
            DecodeCeiling(
                weights=DecodeWeights(dense_bytes=size), kv_read=lambda _: 1, bandwidth_bytes_per_second=1000
            )
            for size in (50, 100)
        )
    )

    # 1000 / (51 + 101); 100 requests: 100 of them at once through the slower stage
    assert pipeline(1, 10) == pytest.approx(1000 / 152)
    assert pipeline(2, 10) == pytest.approx(2 * 1000 / 152)
    assert pipeline(1000, 10) == pytest.approx(1000 * 1000 / 1100)


def test_a_draft_that_comes_in_one_pass_is_read_once() -> None:
    def rate(passes: int | None) -> float:
        [one] = decode_ceiling(
            DecodeWeights(dense_bytes=100), lambda _: 0, bandwidth_bytes_per_second=1000, batches=[1],
            contexts=[1],
            speculation=Speculation(draft_tokens=3, acceptance=1, draft_weights_bytes=10, passes=passes),
        )  # fmt: skip
        return one.tokens_per_second

    # 4 tokens for 100 bytes and three drafts of 10, or one
    assert rate(None) == pytest.approx(4 * 1000 / 130)
    assert rate(1) == pytest.approx(4 * 1000 / 110)


def test_quantized_experts_count_by_the_bytes_that_the_rank_holds() -> None:
    part = Experts(count=8, per_token=2, intermediate=100)
    mixture = model(GQA, GQA, part=part, hidden=16)
    parts: dict[Part, float] = dict.fromkeys(PARTS, 0.0)
    # two layers; of the experts' bytes 8 · 16 of 2 bytes are each layer's router
    parts |= {"experts": 8000.0 + 2 * 256, "attention": 1000.0, "embedding": 5000.0, "head": 5000.0}

    weights = decode_weights_of_rank(mixture, parts)

    assert weights.dense_bytes == 1000 + 5000 + 512
    assert [layer.bytes_each for layer in weights.experts] == [500, 500]
    assert weights.ceiling_bytes() == 6512 + 2 * 2 * 500


def test_keys_and_values_are_read_as_they_are_stored_scales_included() -> None:
    one = model(GQA, part=FeedForward(intermediate=1))

    # int8 with a scale of 4 bytes for each key and value: 8 · (128 + 128 + 8)
    assert kv_read_bytes(one, 10, form=VLLM_KV_FORMATS["int8_per_token_head"]) == 10 * 8 * 264


@pytest.mark.parametrize("wrong", [{"draft_tokens": 0}, {"acceptance": 1.5}, {"draft_weights_bytes": -1}])
def test_speculation_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(FootprintError):
        Speculation(**{"draft_tokens": 1, "acceptance": 0.5, **wrong})  # type: ignore[arg-type]


# --- what one request reads of its cache


def read(mixer: Mixer, tokens: int, tensor_parallel: int = 1, **more: Any) -> float:
    one = model(mixer, part=FeedForward(intermediate=1))
    return kv_read_bytes(one, tokens, tensor_parallel=tensor_parallel, **more)


def attention(window: int | None = None, chunk: int | None = None, cross: bool = False) -> Attention:
    return Attention(
        query_heads=8, kv_heads=8, key_dim=128, value_dim=128, window=window, chunk=chunk, cross=cross
    )


def test_attention_reads_keys_and_values_of_every_token() -> None:
    assert read(GQA, 1000) == 1000 * 8 * 256 * 2


def test_heads_are_divided_until_each_gpu_has_one() -> None:
    assert read(GQA, 1000, 4) == 1000 * 2 * 256 * 2
    assert read(GQA, 1000, 16) == 1000 * 256 * 2


def test_a_window_bounds_what_is_read() -> None:
    assert read(attention(window=128), 1000) == 128 * 8 * 256 * 2
    assert read(attention(window=128), 100) == 100 * 8 * 256 * 2


def test_a_chunk_starts_anew() -> None:
    assert read(attention(chunk=512), 512) == 512 * 8 * 256 * 2
    assert read(attention(chunk=512), 513) == 8 * 256 * 2


def test_cross_attention_reads_the_encoders_tokens() -> None:
    assert read(attention(cross=True), 1000, encoder_tokens=1500) == 1500 * 8 * 256 * 2


def test_latents_are_read_on_every_gpu() -> None:
    # DeepSeek-V3: 576 elements of 2 bytes
    latent = LatentAttention(
        query_heads=128, q_lora_rank=1536, kv_lora_rank=512, nope_dim=128, rope_dim=64, value_dim=128
    )

    assert read(latent, 1000) == read(latent, 1000, 8) == 1000 * 1152


def test_recurrent_state_is_read_and_written_whatever_the_context() -> None:
    # Qwen3-Next: 32 value heads of 128, 16 key heads of 128, kernel of 4
    delta = GatedDeltaNet(key_heads=16, value_heads=32, key_dim=128, value_dim=128, conv=4)

    # 2 * ((2 * 2048 + 4096) * 3 * 2 + 32 * 128 * 128 * 4)
    assert read(delta, 1) == read(delta, 10**6) == 2 * (49_152 + 2_097_152)


def test_every_batch_meets_every_context() -> None:
    rates = decode_ceiling(
        DecodeWeights(dense_bytes=100), lambda tokens: tokens, bandwidth_bytes_per_second=1000,
        batches=[1, 2], contexts=[0, 100],
    )  # fmt: skip

    # 1000 / (100 + B * N) * B
    assert rates[:3] == [DecodeRate(1, 0, 10.0), DecodeRate(1, 100, 5.0), DecodeRate(2, 0, 20.0)]
    assert rates[3].tokens_per_second == pytest.approx(6.667, abs=0.001)


@pytest.mark.parametrize(("batch", "bandwidth"), [(0, 1.0), (1, 0.0), (1, float("nan"))])
def test_a_ceiling_needs_a_batch_and_a_bandwidth(batch: int, bandwidth: float) -> None:
    with pytest.raises(FootprintError):
        decode_ceiling(
            DecodeWeights(dense_bytes=1), lambda _: 0, bandwidth_bytes_per_second=bandwidth, batches=[batch],
            contexts=[1],
        )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 512),
    st.integers(0, 1 << 20),
    st.integers(0, 1 << 16),
    st.integers(1, 8),
    st.integers(1, 8),
)
def test_longer_contexts_never_decode_faster_and_the_ceiling_is_never_below_the_expectation(
    batch: int, context: int, more: int, per_token: int, extra: int
) -> None:
    weights = DecodeWeights(dense_bytes=1e9, experts=(ExpertLayer(1e6, per_token + extra, per_token),))
    for rates in (decode_ceiling, decode_expected):
        short, long = rates(
            weights, lambda tokens: kv_read_bytes(LLAMA_8B, tokens), bandwidth_bytes_per_second=H100,
            batches=[batch], contexts=[context, context + more],
        )  # fmt: skip
        assert long.tokens_per_second <= short.tokens_per_second
    both = {"bandwidth_bytes_per_second": H100, "batches": [batch], "contexts": [context]}
    [ceiling] = decode_ceiling(weights, float, **both)  # type: ignore[arg-type]
    [expected] = decode_expected(weights, float, **both)  # type: ignore[arg-type]
    assert expected.tokens_per_second <= ceiling.tokens_per_second
