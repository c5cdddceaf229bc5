"""Architectures from config.json, against published files and against transformers' own classes."""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brimline.errors import FootprintError
from brimline.footprint.architecture import (
    Architecture,
    Attention,
    Experts,
    FeedForward,
    GatedDeltaNet,
    LatentAttention,
    LinearAttention,
    Mamba,
    Quantization,
    ShortConvolution,
)
from brimline.footprint.hf_config import architecture_of_config, read_architecture
from brimline.footprint.hf_families import FAMILIES, NOT_COMPUTED
from brimline.footprint.predict import read_model
from brimline.footprint.vllm_cache import VllmCacheSettings, vllm_cache
from brimline.footprint.weights import Sharding, parameters, weight_bytes

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "parameter_counts.json").read_text())
CASES: dict[str, dict[str, Any]] = {case["name"]: case for case in GOLDEN["cases"]}
WITH_SENSES: dict[str, dict[str, Any]] = {case["name"]: case for case in GOLDEN["with_senses"]}

# https://huggingface.co/meta-llama/Llama-3.1-8B/blob/main/config.json
LLAMA_3_1_8B: dict[str, Any] = CASES["meta-llama/Llama-3.1-8B"]["config"]


def architecture(settings: dict[str, Any] | None = None, /, **config: Any) -> Architecture:
    return architecture_of_config({**(settings or {}), **config}, "config.json")


def refusal(**changes: Any) -> str:
    with pytest.raises(FootprintError) as caught:
        architecture(LLAMA_3_1_8B, **changes)
    return str(caught.value)


def attentions(model: Architecture) -> list[Attention]:
    return [mixer for layer in model.layers for mixer in layer.mixers if isinstance(mixer, Attention)]


# --- Numbers of parameters


@pytest.mark.parametrize("name", CASES)
def test_parameters_equal_those_of_transformers_class(name: str) -> None:
    case = CASES[name]

    model = architecture_of_config(case["config"], "config.json")

    assert parameters(model) == case["parameters"]
    assert model.known


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("Qwen/Qwen3-32B", 32_762_123_264),
        ("openai/gpt-oss-20b", 20_914_757_184),
        ("deepseek_v3 (defaults)", 671_026_404_352),
    ],
)
def test_published_models_have_their_published_number_of_parameters(name: str, published: int) -> None:
    assert parameters(architecture_of_config(CASES[name]["config"], "config.json")) == published


@pytest.mark.parametrize(
    ("published", "config"),
    [  # what huggingface.co states of their safetensors
        (
            7_737_708_544,  # internlm/internlm2_5-7b-chat
            {"model_type": "internlm2", "hidden_size": 4096, "intermediate_size": 14336, "bias": False,
             "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
             "vocab_size": 92544},
        ),
        (
            7_818_448_896,  # LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct
            {"model_type": "exaone", "hidden_size": 4096, "intermediate_size": 14336, "num_layers": 32,
             "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 102400},
        ),
        (
            9_399_951_360,  # THUDM/glm-4-9b-chat
            {"model_type": "chatglm", "hidden_size": 4096, "ffn_hidden_size": 13696, "num_layers": 40,
             "num_attention_heads": 32, "multi_query_group_num": 2, "multi_query_attention": True,
             "padded_vocab_size": 151552, "add_qkv_bias": True, "kv_channels": 128, "seq_length": 131072},
        ),
        (
            2_724_880_896,  # openbmb/MiniCPM-2B-sft-bf16
            {"model_type": "minicpm", "hidden_size": 2304, "intermediate_size": 5760,
             "num_hidden_layers": 40, "num_attention_heads": 36, "vocab_size": 122753},
        ),
        (
            16_375_728_128,  # deepseek-ai/deepseek-moe-16b-base
            {"model_type": "deepseek", "hidden_size": 2048, "intermediate_size": 10944,
             "moe_intermediate_size": 1408, "num_hidden_layers": 28, "num_attention_heads": 16,
             "n_routed_experts": 64, "n_shared_experts": 2, "first_k_dense_replace": 1,
             "num_experts_per_tok": 6, "vocab_size": 102400},
        ),
    ],
)  # fmt: skip
def test_models_that_bring_their_own_code_have_their_published_number_of_parameters(
    published: int, config: dict[str, Any]
) -> None:
    model = architecture(config)

    assert parameters(model) == published
    assert model.known


def test_nemotron_of_an_architecture_search_has_layers_of_unequal_shape() -> None:
    """ffn_mult 5.25 of a width of 8192 is 28672, as in the Llama 3 70B that it was cut from."""
    whole = {"attention": {"n_heads_in_group": 8}, "ffn": {"ffn_mult": 5.25}}
    cut = {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.3125}}
    model = architecture(
        model_type="nemotron-nas", hidden_size=8192, num_attention_heads=64, vocab_size=128256,
        num_hidden_layers=2, block_configs=[whole, cut],
    )  # fmt: skip

    assert model.layers[0].mixers == (Attention(query_heads=64, kv_heads=8, key_dim=128, value_dim=128),)
    assert model.layers[0].feed_forward == FeedForward(intermediate=28672)
    assert (model.layers[1].mixers, model.layers[1].feed_forward) == ((), FeedForward(intermediate=7168))
    assert [layer.norm_elements for layer in model.layers] == [2 * 8192, 8192]


def test_an_untied_t5_counts_its_own_head() -> None:
    """783,150,080 is what https://huggingface.co/google/flan-t5-large states of its safetensors."""
    flan = architecture(
        model_type="t5", d_model=1024, d_ff=2816, d_kv=64, num_layers=24, num_decoder_layers=24,
        num_heads=16, vocab_size=32128, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip

    assert parameters(flan) == 783_150_080


def test_gemma_4_of_26_billion_has_its_published_size() -> None:
    """google/gemma-4-26B-A4B: 48.067 GiB at 16 bits (transformers 5.23), of that 572,792,112 for vision."""
    gemma = architecture(
        model_type="gemma4_text", hidden_size=2816, num_hidden_layers=30, num_attention_heads=16,
        num_key_value_heads=8, head_dim=256, global_head_dim=512, num_global_key_value_heads=2,
        attention_k_eq_v=True, intermediate_size=2112, enable_moe_block=True, num_experts=128,
        top_k_experts=8, moe_intermediate_size=704, vocab_size=262144, hidden_size_per_layer_input=0,
        sliding_window=1024,
    )  # fmt: skip

    assert 2 * (parameters(gemma) + 572_792_112) / 2**30 == pytest.approx(48.067, abs=0.0005)


def test_qwen_3_5_of_27_billion_has_its_published_size() -> None:
    """Qwen/Qwen3.5-27B, text: 50.098 GiB at 16 bits (transformers 5.23)."""
    qwen = architecture(
        model_type="qwen3_5_text", hidden_size=5120, num_hidden_layers=64, num_attention_heads=24,
        num_key_value_heads=4, head_dim=256, intermediate_size=17408, linear_num_key_heads=16,
        linear_num_value_heads=48, vocab_size=248320,
    )  # fmt: skip

    assert 2 * parameters(qwen) / 2**30 == pytest.approx(50.098, abs=0.0005)


def test_every_family_is_counted_by_the_oracle() -> None:
    configs = [case["config"] for case in (*CASES.values(), *WITH_SENSES.values())]
    nested = [config["text_config"] for config in configs if isinstance(config.get("text_config"), dict)]
    counted = {config.get("model_type") for config in (*configs, *nested)}

    assert set(FAMILIES) - counted <= {"kimi_k2"}  # a name for deepseek_v3's class


def test_more_than_a_hundred_classes_of_transformers_are_counted_exactly() -> None:
    """95 of text models and 36 of models with other senses at transformers 5.19."""
    text = {case["config"]["model_type"] for case in CASES.values()}
    senses = {case["config"]["model_type"] for case in WITH_SENSES.values()}

    assert len(text | senses) > 100


def test_longcat_flash_has_its_published_size() -> None:
    """560 billion (meituan-longcat/LongCat-Flash-Chat): two attentions and two dense parts in each layer."""
    model = architecture(
        model_type="longcat_flash", vocab_size=131072, hidden_size=6144, num_layers=28,
        num_attention_heads=64, ffn_hidden_size=12288, q_lora_rank=1536, kv_lora_rank=512,
        qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, moe_topk=12, n_routed_experts=512,
        zero_expert_num=256, expert_ffn_hidden_size=2048,
    )  # fmt: skip

    assert parameters(model) == pytest.approx(560e9, rel=0.005)
    assert len(model.layers[0].mixers) == 2


# --- Shapes


def test_a_model_of_grouped_queries_is_read_layer_by_layer() -> None:
    model = architecture(LLAMA_3_1_8B)

    assert (model.vocabulary, model.hidden, len(model.layers)) == (128256, 4096, 32)
    assert model.layers[31].mixers == (Attention(query_heads=32, kv_heads=8, key_dim=128, value_dim=128),)
    assert model.layers[31].feed_forward == FeedForward(intermediate=14336)
    assert (model.tied, model.dtype, model.max_position) == (False, "bfloat16", 131072)
    assert (model.known, model.assumptions, model.quantization) == (True, (), None)


def test_gemma_ties_its_head_though_its_file_does_not_say_so() -> None:
    assert architecture(CASES["google/gemma-2-9b"]["config"]).tied


def test_what_the_whole_model_says_of_tying_wins_over_its_text_model() -> None:
    """vLLM 0.32, config/vllm.py: the text model's own word is overwritten."""
    text = {**LLAMA_3_1_8B, "tie_word_embeddings": False}

    assert architecture(model_type="llava", tie_word_embeddings=True, text_config=text).tied


def test_gemma_2_slides_in_every_other_layer_and_gemma_3_in_five_of_six() -> None:
    gemma2 = attentions(architecture(CASES["google/gemma-2-9b"]["config"]))
    gemma3 = attentions(architecture(CASES["google/gemma-3-27b-it, text"]["config"]))

    assert [mixer.window for mixer in gemma2[:4]] == [4096, None, 4096, None]
    assert [mixer.window for mixer in gemma3[:7]] == [1024] * 5 + [None, 1024]
    assert sum(mixer.window is None for mixer in gemma3) == 10  # 62 layers


def test_listed_layer_types_win_over_the_pattern() -> None:
    model = architecture(
        model_type="gemma3_text", num_hidden_layers=3, sliding_window=512,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
    )  # fmt: skip

    assert [mixer.window for mixer in attentions(model)] == [None, 512, 512]


def test_a_missing_window_size_is_the_class_default_and_is_told() -> None:
    model = architecture(model_type="gemma3_text", num_hidden_layers=1)

    assert attentions(model)[0].window == 4096
    assert "sliding_window is not stated: 4096 is taken" in " ".join(model.assumptions)


def test_mistral_slides_in_all_layers_only_where_a_window_is_stated() -> None:
    first = architecture(CASES["mistral (defaults)"]["config"])
    third = architecture(CASES["mistral (defaults)"]["config"], sliding_window=None)

    assert {mixer.window for mixer in attentions(first)} == {4096}
    assert {mixer.window for mixer in attentions(third)} == {None}


def test_qwen_slides_only_where_it_uses_its_window_and_from_max_window_layers_on() -> None:
    config = {**CASES["Qwen/Qwen2.5-0.5B"]["config"], "max_window_layers": 21}

    unused = attentions(architecture(config))
    used = attentions(architecture(config, use_sliding_window=True))

    assert {mixer.window for mixer in unused} == {None}
    assert [mixer.window for mixer in used] == [None] * 21 + [32768] * 3


def test_llama_4_chunks_all_but_every_fourth_layer() -> None:
    config = {**CASES["llama4_text (defaults)"]["config"], "layer_types": None, "no_rope_layers": None}

    assert [mixer.chunk for mixer in attentions(architecture(config))] == [8192, 8192, 8192, None]


def test_mla_keeps_its_latent_widths() -> None:
    lite = architecture(CASES["deepseek-ai/DeepSeek-V2-Lite"]["config"])

    assert lite.layers[0].mixers == (
        LatentAttention(
            query_heads=16, q_lora_rank=None, kv_lora_rank=512, nope_dim=128, rope_dim=64, value_dim=128
        ),
    )
    assert lite.layers[0].feed_forward == FeedForward(intermediate=10944)
    assert lite.layers[1].feed_forward == Experts(
        count=64, per_token=6, intermediate=1408, shared_intermediate=2816
    )


def test_sparse_attention_carries_its_indexer() -> None:
    [mixer] = architecture(CASES["deepseek_v32 (defaults)"]["config"]).layers[0].mixers

    assert isinstance(mixer, LatentAttention)
    assert (mixer.index_heads, mixer.index_dim) == (64, 128)


def test_qwen3_next_has_softmax_attention_in_every_fourth_layer() -> None:
    config = {**CASES["qwen3_next (defaults)"]["config"], "layer_types": None}

    mixers = [layer.mixers[0] for layer in architecture(config).layers]

    assert mixers[0] == GatedDeltaNet(key_heads=16, value_heads=32, key_dim=128, value_dim=128, conv=4)
    assert [isinstance(mixer, Attention) for mixer in mixers[:8]] == [False, False, False, True] * 2
    assert isinstance(mixers[3], Attention)
    assert mixers[3].gated


def test_jamba_has_attention_at_its_offset_and_experts_in_every_second_layer() -> None:
    layers = architecture(CASES["jamba (defaults)"]["config"]).layers

    assert [index for index, layer in enumerate(layers) if isinstance(layer.mixers[0], Attention)] == [
        4, 12, 20, 28,
    ]  # fmt: skip
    assert [isinstance(layer.feed_forward, Experts) for layer in layers[:4]] == [False, True, False, True]
    assert isinstance(layers[0].mixers[0], Mamba)
    assert layers[0].mixers[0].inner == 8192


def test_falcon_h1_runs_a_state_space_beside_attention_in_each_layer() -> None:
    [first, second] = architecture(CASES["falcon_h1 (defaults)"]["config"]).layers[0].mixers

    assert isinstance(first, Mamba)
    assert (first.version, first.inner, first.heads, first.head_dim) == (2, 1024, 128, 8)
    assert isinstance(second, Attention)


def test_minimax_lists_its_softmax_layers_as_ones() -> None:
    config = {**CASES["minimax (defaults)"]["config"], "layer_types": None, "model_type": "minimax_text_01"}

    mixers = [
        layer.mixers[0] for layer in architecture(config, attn_type_list=[0] * 7 + [1] + [0] * 24).layers
    ]

    assert [index for index, mixer in enumerate(mixers) if isinstance(mixer, Attention)] == [7]
    assert mixers[0] == LinearAttention(heads=32, head_dim=128)


def test_nemotron_h_is_one_thing_a_layer_as_its_pattern_says() -> None:
    config = {**CASES["nemotron_h (defaults)"]["config"], "layers_block_type": None}

    layers = architecture(config, hybrid_override_pattern="M-*E").layers

    assert isinstance(layers[0].mixers[0], Mamba)
    assert (layers[1].mixers, layers[3].mixers) == ((), ())
    assert layers[1].feed_forward == FeedForward(intermediate=21504, gated=False)
    assert isinstance(layers[2].mixers[0], Attention)
    assert isinstance(layers[3].feed_forward, Experts)


def test_gemma_3n_shares_the_kv_of_its_last_layers() -> None:
    model = architecture(CASES["gemma3n_text (defaults)"]["config"])

    assert [mixer.shares_kv for mixer in attentions(model)] == [False] * 20 + [True] * 15


def test_an_encoder_decoder_attends_to_its_encoder_in_every_decoder_layer() -> None:
    whisper = architecture(CASES["openai/whisper-large-v3"]["config"])

    assert [mixer.cross for mixer in attentions(whisper)[:2]] == [False, True]
    assert len(whisper.encoders[0].layers) == 32
    assert whisper.encoders[0].max_tokens == 1500


def test_a_text_model_within_a_model_that_sees_is_found() -> None:
    model = architecture(WITH_SENSES["google/gemma-3-27b-it"]["config"])

    assert len(model.layers) == 62
    assert [encoder.kind for encoder in model.encoders] == ["vision"]


def test_what_a_nested_record_leaves_out_is_its_class_s_default_and_is_told() -> None:
    """llava-hf/llava-1.5-7b-hf states neither the width nor the layers of its text model."""
    model = architecture(WITH_SENSES["llava-hf/llava-1.5-7b-hf"]["config"])

    assert (model.hidden, len(model.layers)) == (4096, 32)
    [told] = [sentence for sentence in model.assumptions if "what llama has by default" in sentence]
    assert "hidden_size 4096" in told
    assert "num_hidden_layers 32" in told


def test_a_top_level_that_leaves_out_a_size_is_refused_not_filled_in() -> None:
    assert "hidden_size is missing" in refusal(hidden_size=None)


def test_a_null_that_is_stated_is_no_default() -> None:
    """llava-hf/llava-v1.6-mistral-7b-hf writes that its text model has no window."""
    text = {"model_type": "mistral", "vocab_size": 32064, "sliding_window": None}
    without = {"model_type": "mistral", "vocab_size": 32064}

    stated = attentions(architecture(model_type="llava_next", text_config=text))
    silent = attentions(architecture(model_type="llava_next", text_config=without))

    assert ({mixer.window for mixer in stated}, {mixer.window for mixer in silent}) == ({None}, {4096})


def test_the_thinker_of_an_omni_model_is_its_text_model() -> None:
    thinker = WITH_SENSES["qwen2_5_omni_thinker (defaults)"]

    model = architecture(model_type="qwen2_5_omni", thinker_config=thinker["config"], talker_config={"x": 1})

    assert parameters(model) == thinker["parameters"]
    assert {encoder.kind for encoder in model.encoders} == {"audio", "vision"}


def test_lfm_2_has_convolutions_where_it_has_no_attention() -> None:
    layers = architecture(CASES["lfm2, convolutions (defaults)"]["config"]).layers

    assert layers[0].mixers == (ShortConvolution(width=2560, conv=3),)
    assert isinstance(layers[2].mixers[0], Attention)


def test_zamba_2_stores_its_attention_once_for_every_block_and_keeps_its_kv_in_every_hybrid_layer() -> None:
    model = architecture(CASES["zamba2, two blocks, adapters (defaults)"]["config"])

    hybrids = [layer for layer in model.layers if isinstance(layer.mixers[0], Attention)]
    assert [layer.reuses for layer in hybrids] == [False, False, *[True] * 7]
    assert hybrids[0].mixers[0] == Attention(
        query_heads=32, kv_heads=32, key_dim=160, value_dim=160, inputs=5120
    )


def test_mimo_has_more_heads_and_sinks_in_its_windows_and_narrower_values() -> None:
    full, window = attentions(architecture(CASES["mimo_v2_flash (defaults)"]["config"]))[:2]

    assert (full.kv_heads, full.key_dim, full.value_dim, full.sink_elements) == (4, 192, 128, 0)
    assert (window.kv_heads, window.window, window.sink_elements) == (8, 128, 64)


def test_mimo_s_own_file_names_its_windows_in_a_pattern() -> None:
    config = {**CASES["mimo_v2_flash (defaults)"]["config"], "layer_types": None}

    model = architecture(
        config, hybrid_layer_pattern=[0] + [1] * 46 + [0], swa_num_key_value_heads=16
    )  # fmt: skip

    assert [mixer.window for mixer in attentions(model)] == [None, *[128] * 46, None]
    assert attentions(model)[1].kv_heads == 16


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("qwen3_5_text (defaults)", "mamba_ssm_dtype"),
        ("nemotron_h (defaults)", "mamba_ssm_cache_dtype"),
        ("jamba (defaults)", "mamba_ssm_dtype"),
    ],
)
def test_a_file_may_name_the_type_of_its_recurrent_states(name: str, setting: str) -> None:
    model = architecture(CASES[name]["config"], **{setting: "torch.float32"})

    states = [
        mixer for layer in model.layers for mixer in layer.mixers if isinstance(mixer, Mamba | GatedDeltaNet)
    ]
    assert {mixer.state_dtype for mixer in states} == {"float32"}


def test_draft_layers_are_counted_apart() -> None:
    assert architecture(CASES["deepseek_v3 (defaults)"]["config"]).draft_layers == 1


# --- What is not known or makes no sense


def test_an_unknown_model_type_is_read_as_a_gated_decoder_and_says_so() -> None:
    model = architecture(LLAMA_3_1_8B, model_type="brandnew")

    assert not model.known
    assert "model_type 'brandnew' is not known here" in model.assumptions[0]
    assert parameters(model) == 8_030_261_248


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"hidden_size": 1 << 40}, "hidden_size is 1099511627776"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide', which is not a whole number"),
        ({"hidden_size": 4097}, "num_attention_heads is 32, which does not divide hidden_size 4097"),
        ({"num_key_value_heads": 7}, "num_key_value_heads is 7, which does not divide 32 heads"),
        ({"num_attention_heads": None}, "num_attention_heads is missing"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"intermediate_size": True}, "intermediate_size is 'True'"),
        ({"layer_types": ["full_attention"]}, "layer_types has 1 entries for 32 layers"),
        ({"layer_types": ["compressed"] * 32}, "layer_types names 'compressed', a kind of layer not known"),
        ({"layer_types": ["conv"] * 32}, "layer_types names convolution layers"),
        ({"layer_types": ["linear_attention"] * 32}, "layer_types names linear layers"),
        ({"hidden_size": 1e308}, "hidden_size is '1e+308', which is not a whole number"),
        ({"hidden_size": 10**30}, "hidden_size is a number of more than 19 digits; it lies between"),
        ({"vocab_size": [1] * 10**6}, "vocab_size is 'a list', which is not a whole number"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000; it lies between 1 and 1024"),
    ],
)
def test_nonsense_is_refused_by_the_name_of_its_setting(changes: dict[str, Any], said: str) -> None:
    message = refusal(**changes)

    assert message.startswith("config.json: ")
    assert said in message


@pytest.mark.parametrize("name", NOT_COMPUTED)
def test_a_model_whose_cache_cannot_be_told_is_refused_not_guessed(name: str) -> None:
    assert f"model_type {name!r} keeps" in refusal(model_type=name)


DEEP: list[Any] = []
for _ in range(200):
    DEEP = [DEEP]
JUNK: list[Any] = [
    None, True, -1, 0, 1, 3, 7, 1023, 1 << 20, 1 << 27, 10**6, 10**9, 10**30, -(10**30), 1.5, 1e308, -1e308,
    float("nan"), float("inf"), "x", "²", "auto", [], {}, [[]], [1], [[1, 2]], DEEP, [0] * 10_000,
    ["full_attention"] * 10_000, "y" * 10_000, {"0": {"head_dim": "x"}}, {str(n): n for n in range(1000)},
]  # fmt: skip
QUANTIZED: list[dict[str, Any]] = [
    {"quant_method": "fp8", "modules_to_not_convert": [f"model.layers.{n}.x" for n in range(5000)]},
    {"quant_method": "awq", "modules_to_not_convert": ["re:.*a.*b.*c"] * 100},
    {
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {f"model.layers.{n}.mlp.down_proj": {"quant_algo": "FP8"} for n in range(5000)},
    },
    {
        "quant_method": "compressed-tensors",
        "config_groups": {"a": {"targets": ["re:.*q_proj"], "weights": {"num_bits": 8}}},
    },
]


def places(record: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Every setting, of nested records too."""
    for key, value in record.items():
        yield record, key
        if isinstance(value, dict):
            yield from places(value)


def footprint_of(config: dict[str, Any], tensor_parallel: int) -> None:
    model = architecture_of_config(config, "config.json")
    parameters(model)
    weight_bytes(model, sharding=Sharding(tensor=tensor_parallel))
    launched = VllmCacheSettings(
        max_model_len=131_072, max_num_batched_tokens=8192, tensor_parallel=tensor_parallel
    )
    vllm_cache(model, launched)


@given(
    name=st.sampled_from(sorted([*CASES, *WITH_SENSES])),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.sampled_from(JUNK)), min_size=1, max_size=3),
    quantization=st.sampled_from([None, None, *QUANTIZED]),
    layers=st.sampled_from([None, None, 1024]),
    tensor_parallel=st.sampled_from([1, 2, 8]),
)
@settings(max_examples=150, deadline=None)
def test_no_value_of_any_setting_raises_anything_else_or_takes_a_second(
    name: str,
    changes: list[tuple[int, Any]],
    quantization: dict[str, Any] | None,
    layers: int | None,
    tensor_parallel: int,
) -> None:
    config = copy.deepcopy({**CASES, **WITH_SENSES}[name]["config"])
    if quantization is not None:
        config["quantization_config"] = copy.deepcopy(quantization)
    if layers is not None:
        config = {key: value for key, value in config.items() if not key.endswith(("_types", "_type_list"))}
        config["num_hidden_layers"] = layers
    for number, junk in changes:
        listed = list(places(config))
        record, key = listed[number % len(listed)]
        record[key] = copy.deepcopy(junk)

    started = time.process_time()
    with contextlib.suppress(FootprintError):
        footprint_of(config, tensor_parallel)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("name", ["deepseek_v3 (defaults)", "gemma3_text (defaults)", "jamba (defaults)"])
def test_a_real_model_is_read_within_a_moment(name: str) -> None:
    config = CASES[name]["config"]
    footprint_of(config, 1)  # once to import and compile

    started = time.process_time()
    architecture_of_config(config, "config.json")
    assert time.process_time() - started < 0.1


def test_a_config_that_is_no_file_or_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")

    with pytest.raises(FootprintError, match="does not hold a model's settings"):
        read_architecture(tmp_path)
    with pytest.raises(FootprintError, match="cannot be read"):
        read_architecture(tmp_path / "nothing")


def test_a_folder_is_read_by_its_config_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_1_8B))

    assert read_architecture(tmp_path) == read_architecture(tmp_path / "config.json")
    assert read_architecture(tmp_path).source == str(tmp_path / "config.json")


def test_modelopt_s_own_file_beside_config_json_is_read(tmp_path: Path) -> None:
    """ModelOpt up to 0.29 writes hf_quant_config.json (nvidia/Llama-3.1-8B-Instruct-FP8)."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_1_8B))
    beside = {
        "producer": {"name": "modelopt", "version": "0.27.0"},
        "quantization": {
            "quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"],
        },
    }  # fmt: skip
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside))

    stated = Quantization(method="fp8", bits=8, skipped=("lm_head",), kv_cache="fp8")

    assert read_architecture(tmp_path).quantization == stated
    assert read_model(tmp_path).architecture.quantization == stated


def test_what_config_json_says_of_quantization_wins_over_the_file_beside(tmp_path: Path) -> None:
    awq = {"quant_method": "awq", "bits": 4, "group_size": 128}
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_3_1_8B, "quantization_config": awq}))
    (tmp_path / "hf_quant_config.json").write_text("no JSON, and not looked at")

    stated = read_architecture(tmp_path).quantization

    assert stated is not None
    assert stated.method == "awq"
