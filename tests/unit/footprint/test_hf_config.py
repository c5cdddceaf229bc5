"""Architectures from config.json, against published files and against transformers' own classes."""

from __future__ import annotations

import contextlib
import json
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
)
from brimline.footprint.hf_config import architecture_of_config, read_architecture
from brimline.footprint.hf_families import FAMILIES
from brimline.footprint.weights import parameters

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "parameter_counts.json").read_text())
CASES: dict[str, dict[str, Any]] = {case["name"]: case for case in GOLDEN["cases"]}

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
    counted = {case["config"]["model_type"] for case in CASES.values()}

    assert set(FAMILIES) - counted <= {"kimi_k2"}  # a name for deepseek_v3's class


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
    """Its encoder without its head: google/siglip-so400m-patch14 has 417 million weights at 896 pixels."""
    vision = {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
        "patch_size": 14, "image_size": 896, "model_type": "siglip_vision_model",
    }  # fmt: skip
    text = CASES["google/gemma-3-27b-it, text"]["config"]

    model = architecture(model_type="gemma3", text_config=text, vision_config=vision)

    assert len(model.layers) == 62
    assert model.encoders[0].kind == "vision"
    assert model.encoders[0].parameters == pytest.approx(417e6 + 1152 * 5376, rel=0.03)
    assert any("vision encoder" in sentence for sentence in model.assumptions)


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
        ({"layer_types": ["conv"] * 32}, "layer_types names 'conv', a kind of layer not known here"),
        ({"layer_types": ["linear_attention"] * 32}, "layer_types names linear layers"),
    ],
)
def test_nonsense_is_refused_by_the_name_of_its_setting(changes: dict[str, Any], said: str) -> None:
    message = refusal(**changes)

    assert message.startswith("config.json: ")
    assert said in message


JUNK: list[Any] = [
    None,
    True,
    -1,
    0,
    3,
    1.5,
    "x",
    "²",
    [],
    {},
    [[]],
    [1],
    [[1, 2]],
    {"0": {"head_dim": "x"}},
    10**30,
]


@given(name=st.sampled_from(sorted(CASES)), number=st.integers(0, 60), junk=st.sampled_from(JUNK))
@settings(max_examples=100, deadline=None)
def test_no_value_of_any_setting_raises_anything_else(name: str, number: int, junk: Any) -> None:
    config = dict(CASES[name]["config"])
    config[list(config)[number % len(config)]] = junk

    with contextlib.suppress(FootprintError):
        parameters(architecture_of_config(config, "config.json"))


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


# --- Quantization


def quantization(**stated: Any) -> Quantization | None:
    return architecture(LLAMA_3_1_8B, quantization_config=stated).quantization


def test_awq_states_bits_group_and_zero_points() -> None:
    # https://huggingface.co/casperhansen/llama-3-70b-instruct-awq/blob/main/config.json
    stated = quantization(
        quant_method="awq", bits=4, group_size=128, zero_point=True, version="gemm",
        modules_to_not_convert=None,
    )  # fmt: skip

    assert stated == Quantization(method="awq", bits=4, group=128, zeros=True)


def test_deepseek_states_blocks_of_fp8() -> None:
    # https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/config.json
    stated = quantization(
        quant_method="fp8", activation_scheme="dynamic", fmt="e4m3", weight_block_size=[128, 128]
    )

    assert stated == Quantization(method="fp8", bits=8, block=(128, 128))


def test_gpt_oss_leaves_all_but_its_experts_alone() -> None:
    # https://huggingface.co/openai/gpt-oss-20b/blob/main/config.json
    skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]

    stated = quantization(quant_method="mxfp4", modules_to_not_convert=skipped)

    assert stated == Quantization(method="mxfp4", bits=4, group=32, scale_bits=8, skipped=tuple(skipped))


def test_compressed_tensors_states_its_groups() -> None:
    # https://huggingface.co/RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16/blob/main/config.json
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}

    stated = quantization(
        quant_method="compressed-tensors", format="pack-quantized", ignore=["lm_head"],
        config_groups={"group_0": {"targets": ["Linear"], "weights": weights}},
    )  # fmt: skip

    assert stated == Quantization(method="compressed-tensors", bits=4, group=128, skipped=("lm_head",))


def test_compressed_tensors_of_channels_and_a_quantized_kv_cache() -> None:
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "group_size": None}

    stated = quantization(
        quant_method="compressed-tensors", config_groups={"group_0": {"weights": weights}},
        kv_cache_scheme={"num_bits": 8, "type": "float"},
    )  # fmt: skip

    assert stated == Quantization(method="compressed-tensors", bits=8, per_channel=True, kv_cache="fp8")


def test_modelopt_states_nvfp4() -> None:
    # https://huggingface.co/nvidia/Llama-3.1-8B-Instruct-FP4/blob/main/config.json
    stated = quantization(
        quant_method="modelopt", quant_algo="NVFP4", ignore=["lm_head"], kv_cache_quant_algo="FP8"
    )

    assert stated == Quantization(
        method="nvfp4", bits=4, group=16, scale_bits=8, skipped=("lm_head",), kv_cache="fp8"
    )


def test_bitsandbytes_of_four_bits_may_quantize_its_scales() -> None:
    stated = quantization(
        quant_method="bitsandbytes", load_in_4bit=True, bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_type="nf4",
    )  # fmt: skip

    assert stated == Quantization(method="bitsandbytes", bits=4, group=64, double_quant=True, scale_bits=32)


def test_a_method_that_is_not_known_is_refused() -> None:
    with pytest.raises(FootprintError, match="quant_method 'magic' is not known here"):
        quantization(quant_method="magic")


def test_groups_of_different_types_are_refused() -> None:
    groups = {
        "a": {"weights": {"num_bits": 4, "type": "int", "group_size": 128}},
        "b": {"weights": {"num_bits": 8, "type": "int", "group_size": 128}},
    }

    with pytest.raises(FootprintError, match="different types"):
        quantization(quant_method="compressed-tensors", config_groups=groups)
