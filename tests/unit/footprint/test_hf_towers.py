"""Encoders of images and sound: their weights against transformers' own classes and published sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from brimline.errors import FootprintError
from brimline.footprint.architecture import Architecture
from brimline.footprint.hf_config import architecture_of_config
from brimline.footprint.hf_towers import TOWERS
from brimline.footprint.weights import parameters

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "parameter_counts.json").read_text())
CASES: dict[str, dict[str, Any]] = {case["name"]: case for case in GOLDEN["with_senses"]}


def architecture(name: str, **changes: Any) -> Architecture:
    return architecture_of_config({**CASES[name]["config"], **changes}, "config.json")


@pytest.mark.parametrize("name", CASES)
def test_parameters_equal_those_of_transformers_class(name: str) -> None:
    model = architecture(name)

    assert parameters(model) == CASES[name]["parameters"]
    assert model.known
    assert all(encoder.known for encoder in model.encoders)


@pytest.mark.parametrize(
    ("name", "published"),
    [  # what huggingface.co states of their safetensors
        ("google/gemma-3-4b-it", 4_300_079_472),
        ("google/gemma-3-27b-it", 27_432_406_640),
        ("llava-hf/llava-1.5-7b-hf", 7_063_427_072),
        ("google/paligemma-3b-pt-224", 2_923_466_480),
        ("Qwen/Qwen2-VL-7B-Instruct", 8_291_375_616),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8_292_166_656),
        ("Qwen/Qwen3-VL-8B-Instruct", 8_767_123_696),
        ("mistralai/Mistral-Small-3.1-24B-Instruct-2503", 24_011_361_280),
        ("meta-llama/Llama-4-Scout-17B-16E", 108_641_793_536),
        ("Qwen/Qwen2-Audio-7B-Instruct", 8_397_094_912),
    ],
)
def test_published_models_have_their_published_number_of_parameters(name: str, published: int) -> None:
    assert parameters(architecture(name)) == published


def test_gemma_3n_has_its_published_size_and_stores_the_kv_that_its_last_layers_do_not_use() -> None:
    """google/gemma-3n-E4B-it: 7,849,978,192, of that K, V and a key norm of 15 layers that share others'."""
    e4b = architecture_of_config(
        {
            "model_type": "gemma3n",
            "text_config": {"model_type": "gemma3n_text", "intermediate_size": [16384] * 35},
            "vision_config": {"model_type": "gemma3n_vision", "architecture": "mobilenetv5_300m_enc"},
            "audio_config": {"model_type": "gemma3n_audio"},
        },
        "config.json",
    )

    unused = 15 * (2 * 2 * 256 * 2048 + 256)
    assert parameters(e4b) == 7_849_978_192 - unused


def test_every_tower_is_counted_by_the_oracle() -> None:
    senses = [
        case["config"][key]
        for case in CASES.values()
        for key in ("vision_config", "audio_config")
        if isinstance(case["config"].get(key), dict)
    ]
    counted = {sense.get("model_type") for sense in senses}

    # Gemma 3n's eyes need a package that the engine's environment has not; its published size stands above.
    assert set(TOWERS) - counted == {"gemma3n_vision", "gemma3n_audio"}


def test_internvl_s_own_file_is_read_by_its_own_names() -> None:
    """OpenGVLab/InternVL2_5-8B: 8,075,365,376 with its text model of 7,737,708,544 (internlm2_5-7b-chat)."""
    model = architecture_of_config(
        {
            "model_type": "internvl_chat", "downsample_ratio": 0.5,
            "llm_config": {
                "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
                "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
                "vocab_size": 92553,
            },
            "vision_config": {
                "model_type": "intern_vit_6b", "hidden_size": 1024, "image_size": 448,
                "intermediate_size": 4096, "norm_type": "layer_norm", "num_attention_heads": 16,
                "num_hidden_layers": 24, "patch_size": 14, "qk_normalization": False, "qkv_bias": True,
            },
        },
        "config.json",
    )  # fmt: skip

    [encoder] = model.encoders
    assert encoder.parameters == 8_075_365_376 - (7_737_708_544 + 2 * 9 * 4096)  # 9 tokens more


def test_older_files_name_a_tower_like_the_whole_model() -> None:
    vision = {**CASES["Qwen/Qwen2-VL-7B-Instruct"]["config"]["vision_config"], "model_type": "qwen2_vl"}

    model = architecture("Qwen/Qwen2-VL-7B-Instruct", vision_config=vision)

    assert parameters(model) == CASES["Qwen/Qwen2-VL-7B-Instruct"]["parameters"]


def test_a_tower_that_is_not_known_is_counted_as_plain_layers_and_said_to_be() -> None:
    """Within a tenth of the tower that it stands for."""
    name = "google/gemma-3-27b-it"
    vision = {**CASES[name]["config"]["vision_config"], "model_type": "brandnew_vision"}

    known, unknown = architecture(name), architecture(name, vision_config=vision)

    assert not unknown.encoders[0].known
    assert any("counted as plain transformer layers" in sentence for sentence in unknown.assumptions)
    assert not any("counted as plain" in sentence for sentence in known.assumptions)
    assert unknown.encoders[0].parameters == pytest.approx(known.encoders[0].parameters, rel=0.1)


def test_a_tower_without_a_size_is_not_counted_and_said_not_to_be() -> None:
    vision = {"model_type": "brandnew_vision", "tokens": 4}

    model = architecture("google/gemma-3-27b-it", vision_config=vision)

    assert model.encoders == ()
    assert any("weights are not counted" in sentence for sentence in model.assumptions)


@pytest.mark.parametrize(
    ("name", "width", "inner", "merged", "tokens"),
    [
        ("google/gemma-3-27b-it", 1152, 4304, 16, 256),  # 64 × 64 patches, pooled 4 × 4
        ("llava-hf/llava-1.5-7b-hf", 1024, 4096, 1, 576),
        ("Qwen/Qwen2-VL-7B-Instruct", 1280, 5120, 4, None),
        ("mistralai/Mistral-Small-3.1-24B-Instruct-2503", 1024, 4096, 4, 3025),  # 110 × 110 patches
        ("Qwen/Qwen2-Audio-7B-Instruct", 1280, 5120, 2, 750),
    ],
)
def test_what_one_image_or_sound_becomes_is_told_where_the_file_says(
    name: str, width: int, inner: int, merged: int, tokens: int | None
) -> None:
    [encoder] = architecture(name).encoders

    assert (encoder.width, encoder.inner) == (width, inner)
    assert (encoder.merged, encoder.max_tokens) == (merged, tokens)


def test_nonsense_of_a_tower_is_refused_by_its_setting() -> None:
    with pytest.raises(FootprintError, match=r"^config\.json: vision_config: hidden_size is 'wide'"):
        architecture("google/gemma-3-27b-it", vision_config={"hidden_size": "wide"})
