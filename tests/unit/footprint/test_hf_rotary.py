"""Tables of rotary positions: how many, how long, how wide.

Values are those of vLLM 0.19's classes (model_executor/layers/rotary_embedding) for published files.
"""

from __future__ import annotations

from typing import Any

import pytest

from brimline.footprint.architecture import RotaryTable
from brimline.footprint.constants import GIB, MIB
from brimline.footprint.hf_config import architecture_of_config
from brimline.footprint.vllm_weights import rotary_bytes, rotary_rows
from measurements import compared

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 1024,
    "max_position_embeddings": 4096,
}


def tables(**config: Any) -> set[tuple[int, int]]:
    found = architecture_of_config({**SMALL, **config}, "config.json").rotary
    assert found is not None
    return {(rotary_rows(table), table.width) for table in found}


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("llama-3.1-8b", 32 * MIB),
        ("qwen2.5-7b", 8 * MIB),
        # Full layers count to 8 × 131,072 positions, those with windows to 131,072.
        ("gemma-3-4b", 512 * MIB + 64 * MIB),
        ("gemma-3-27b", 256 * MIB + 32 * MIB),
        ("llama-4-scout", 2.5 * GIB),
        ("deepseek-v2-lite", 20 * MIB),
        ("phi-2", 2048 * 32 * 2),
        # In 32 bits (models/gpt_oss.py).
        ("gpt-oss-20b", 32 * MIB),
    ],
)
def test_published_models_have_tables_of_these_sizes(model: str, size: float) -> None:
    assert sum(rotary_bytes(compared.architecture(model), 2)) == size


@pytest.mark.parametrize(
    ("scaling", "rows"),
    [
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 512}, 4096),
        ({"rope_type": "linear", "factor": 2.5}, 10240),
        ({"type": "dynamic", "factor": 4.0}, 16384),
        ({"type": "dynamic", "alpha": 1000.0}, 4096),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}, 8192),
        ({"rope_type": "longrope", "original_max_position_embeddings": 1024}, 5120),
        ({"type": "mrope", "mrope_section": [16, 24, 24]}, 16384),
    ],
)
def test_scaling_decides_how_long_a_table_is(scaling: dict[str, Any], rows: int) -> None:
    assert tables(rope_scaling=scaling) == {(rows, 128)}


@pytest.mark.parametrize(
    ("config", "width"),
    [
        ({"partial_rotary_factor": 0.5}, 64),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}, 32),
        ({"model_type": "glm4"}, 64),
        ({"model_type": "gpt_neox"}, 32),
        ({"model_type": "gptj", "rotary_dim": 48}, 48),
        ({"model_type": "stablelm"}, 32),
    ],
)
def test_a_part_of_a_head_may_be_turned(config: dict[str, Any], width: int) -> None:
    assert tables(**config) == {(4096, width)}


def test_kinds_of_layers_with_entries_of_their_own_have_tables_of_their_own() -> None:
    stated = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    }
    config = {"model_type": "gemma3_text", "num_hidden_layers": 6, "sliding_window": 512, "head_dim": 128}

    assert tables(**config, rope_parameters=stated) == {(32768, 128), (4096, 128)}
    assert tables(**config, rope_scaling={"rope_type": "linear", "factor": 8.0}) == {
        (32768, 128),
        (4096, 128),
    }


@pytest.mark.parametrize("name", ["gpt2", "opt", "bloom", "mpt"])
def test_learned_positions_and_slopes_need_no_table(name: str) -> None:
    assert tables(model_type=name) == set()


def test_an_unknown_model_or_scaling_has_none_that_is_known() -> None:
    assert architecture_of_config({**SMALL, "model_type": "strange"}, "config.json").rotary is None
    scaled = {**SMALL, "rope_scaling": {"rope_type": "strange"}}
    assert architecture_of_config(scaled, "config.json").rotary is None


def test_tables_are_no_parameters() -> None:
    model = compared.architecture("gpt-oss-20b")

    assert model.rotary == (RotaryTable(rows=131072, width=64, element_bytes=4),)
