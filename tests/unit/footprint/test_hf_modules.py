"""Names of modules as published files write them, in the words of weights.py."""

from __future__ import annotations

import pytest

from brimline.footprint.hf_modules import module_names


@pytest.mark.parametrize(
    ("stated", "names"),
    [
        ("lm_head", ["lm_head"]),
        ("model.layers.3.self_attn.q_proj", ["model.layers.3.self_attn.q_proj"]),
        # nvidia/Llama-4-Scout-17B-16E-Instruct-FP4
        ("language_model.model.layers.0.self_attn*", ["model.layers.0.self_attn*"]),
        ("language_model.model.layers.0.feed_forward.shared_expert", ["model.layers.0.mlp.shared_experts"]),
        # Qwen/Qwen3-VL-30B-A3B-Instruct-FP8: its eyes stay theirs
        ("model.visual.blocks.0.attn.proj", ["model.visual.blocks.0.attn.proj"]),
        ("vision_tower.encoder.layers.0.mlp.fc1", ["vision_tower.encoder.layers.0.mlp.fc1"]),
        ("model.language_model.layers.4.mlp.gate", ["model.layers.4.mlp.gate"]),
        # Mixtral
        (
            "model.layers.0.block_sparse_moe.experts.3.w1",
            ["model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.up_proj"],
        ),
        ("model.layers.0.block_sparse_moe.experts.3.w2", ["model.layers.0.mlp.experts.down_proj"]),
        # Nemotron-H
        ("backbone.layers.7.mixer.in_proj", ["model.layers.7.mamba.in_proj"]),
        ("backbone.layers.7.mixer.o_proj", ["model.layers.7.self_attn.o_proj"]),
        ("backbone.layers.7.mixer.up_proj", ["model.layers.7.mlp.up_proj"]),
        (
            "backbone.layers.7.mixer",
            ["model.layers.7.mamba", "model.layers.7.self_attn", "model.layers.7.mlp"],
        ),
        # fused projections
        ("model.layers.0.self_attn.qkv_proj", [f"model.layers.0.self_attn.{one}_proj" for one in "qkv"]),
        ("model.layers.0.mlp.gate_up_proj", ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"]),
        ("model.layers.0.linear_attn.in_proj_z", ["model.layers.0.linear_attn.in_proj_qkvz"]),
        # patterns
        ("re:.*lm_head", ["re:.*lm_head"]),
        (r"re:language_model\.model\.layers\.\d+\.feed_forward", [r"re:model.layers\.\d+\.mlp"]),
        (r"re:.*block_sparse_moe\.gate", [r"re:.*mlp\.gate"]),
    ],
)
def test_a_module_is_known_by_the_words_it_is_counted_under(stated: str, names: list[str]) -> None:
    assert list(module_names([stated])) == names


def test_the_experts_of_one_layer_are_named_once() -> None:
    listed = [f"model.layers.0.mlp.experts.{n}.down_proj" for n in range(512)]

    assert module_names(listed) == ("model.layers.0.mlp.experts.down_proj",)
