"""Bytes of weights of each rank, against published sizes and arithmetic by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brimline.errors import FootprintError
from brimline.footprint.architecture import (
    Architecture,
    Attention,
    Experts,
    FeedForward,
    Layer,
    Quantization,
)
from brimline.footprint.hf_config import architecture_of_config, read_architecture
from brimline.footprint.quantized_modules import Modules
from brimline.footprint.weights import (
    LLAMACPP_RULES,
    QUANTIZATIONS,
    VLLM_RULES,
    Mxfp4Layout,
    Part,
    RankWeights,
    Sharding,
    matrix_bytes,
    part_of,
    pipeline_layers,
    quantize,
    stored_weights,
    weight_bytes,
)

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "parameter_counts.json").read_text())
CONFIGS: dict[str, dict[str, Any]] = {case["name"]: case["config"] for case in GOLDEN["cases"]}
GIB = 2**30


def model(name: str, **changes: Any) -> Architecture:
    return architecture_of_config({**CONFIGS[name], **changes}, "config.json")


LLAMA_8B = model("meta-llama/Llama-3.1-8B")
LLAMA_70B = model("meta-llama/Meta-Llama-3-70B")
MIXTRAL = model("mistralai/Mixtral-8x7B-v0.1")
DEEPSEEK = model("deepseek_v3 (defaults)")
GPT_OSS = model(
    "openai/gpt-oss-20b",
    quantization_config={
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
        ],
    },
)  # fmt: skip


def ranks(architecture: Architecture, **options: Any) -> tuple[RankWeights, ...]:
    sharding = Sharding(**{key: options.pop(key) for key in list(options) if key in Sharding.__slots__})
    return weight_bytes(architecture, sharding=sharding, **options)


def expected(architecture: Architecture, **options: Any) -> int:
    return ranks(architecture, **options)[0].total.expected


def part(architecture: Architecture, name: Part, rank: int = 0, **options: Any) -> int:
    return ranks(architecture, **options)[rank].parts[name].expected


# --- Published and measured sizes


def test_llama_8b_takes_what_vllm_logs() -> None:
    """14.96 GiB (vllm-project/vllm, pull request 10511)."""
    assert expected(LLAMA_8B) / GIB == pytest.approx(14.96, abs=0.005)


def test_mixtral_takes_87_gib_at_16_bits() -> None:
    assert expected(MIXTRAL, dtype="bfloat16") / GIB == pytest.approx(86.991, abs=0.001)


def test_llama_70b_takes_35_gb_on_each_of_four_gpus() -> None:
    assert [rank.total.expected / 1e9 for rank in ranks(LLAMA_70B, tensor=4)] == pytest.approx(
        [35.28] * 4, abs=0.01
    )


def test_llama_70b_as_awq_takes_39_8_gb_with_scales_zeros_and_16_bit_embeddings() -> None:
    """70 billion at 4.156 bits would be 36.7 GB, at 4 bits 35; the embeddings are 4.2 GB of the rest."""
    awq = quantize(LLAMA_70B, "awq")

    assert expected(awq) / 1e9 == pytest.approx(39.8, abs=0.05)
    assert expected(awq, tensor=2) / 1e9 == pytest.approx(19.9, abs=0.05)


def test_llama_70b_as_fp8_takes_one_byte_a_weight_but_for_embeddings() -> None:
    """68,451,041,280 weights of linear layers, 2 · 128256 · 8192 · 2 bytes of tables, 161 norms of 8192."""
    linear = 80 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672)
    scales = 80 * 7 * 4

    assert linear == 68_451_041_280
    assert expected(quantize(LLAMA_70B, "fp8")) == linear + scales + 2 * 128256 * 8192 * 2 + 161 * 8192 * 2


def test_gpt_oss_is_padded_by_its_kernels() -> None:
    """Unpadded 12.82 GiB; hidden width to 3072: 13.45 (vLLM measured 13.47); both padded: 13.67."""
    [rank] = weight_bytes(GPT_OSS)

    def of(*rounding: int) -> float:
        layout = Mxfp4Layout(intermediate=rounding[0], hidden=rounding[1])
        rules = replace(VLLM_RULES, mxfp4=(layout, layout, layout))
        return weight_bytes(GPT_OSS, rules=rules)[0].total.expected / GIB

    assert of(1, 1) == pytest.approx(12.82, abs=0.005)
    assert rank.total.expected / GIB == pytest.approx(13.45, abs=0.005)
    assert of(128, 256) == pytest.approx(13.67, abs=0.005)
    assert rank.total.low / GIB < 12.82 < 13.67 < rank.total.high / GIB


def test_a_gguf_mix_takes_what_llamacpp_s_table_says() -> None:
    """Q4_K_M: 4.58 GiB for Llama-3.1-8B, 43.1 GB for 70B (llama.cpp, tools/quantize/README.md)."""
    small = weight_bytes(quantize(LLAMA_8B, "q4_k_m"))[0].total
    large = weight_bytes(quantize(LLAMA_70B, "Q4_K_M"))[0].total

    assert small.expected / GIB == pytest.approx(4.58, abs=0.01)
    assert large.low / 1e9 < 43.1 < large.high / 1e9


# --- How a matrix is stored


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("awq", 4 + (16 + 4) / 128),
        ("gptq", 4 + (16 + 4) / 128 + 32 / 4096),
        ("gptq-int8", 8 + (16 + 8) / 128 + 32 / 4096),
        ("compressed-tensors", 4 + 16 / 128),
        ("fp8", 8 + 32 / 4096**2),
        ("fp8-channel", 8 + 32 / 4096),
        ("fp8-block", 8 + 32 / 128**2),
        ("int8", 8 + 32 / 4096),
        ("nvfp4", 4 + 8 / 16 + 64 / 4096**2),
        ("mxfp4", 4 + 8 / 32),
        ("mxfp8", 8 + 8 / 32),
        ("bitsandbytes", 4 + 32 / 64),
        ("bitsandbytes-double", 4 + 8 / 64 + 32 / (64 * 256)),
        ("bitsandbytes-int8", 8 + 32 / 4096),
    ],
)
def test_a_square_matrix_takes_the_bits_of_its_format(name: str, bits: float) -> None:
    size = matrix_bytes(4096, 4096, QUANTIZATIONS[name])

    assert float(size) == pytest.approx(4096**2 * bits / 8, rel=1e-12)


def test_scales_follow_the_inputs_of_a_matrix() -> None:
    """512 inputs and 64 outputs in groups of 128: 4 · 64 scales and zero points."""
    assert matrix_bytes(512, 64, QUANTIZATIONS["awq"]) == 512 * 64 / 2 + 4 * 64 * 2 + 4 * 64 / 2


def test_a_partial_block_has_a_whole_scale() -> None:
    assert matrix_bytes(129, 1, QUANTIZATIONS["fp8-block"]) == 129 + 2 * 4


@pytest.mark.parametrize(
    ("entry", "name", "skipped"),
    [
        ("lm_head", "lm_head", True),
        ("re:.*lm_head", "lm_head", True),
        ("re:.*mlp.gate$", "model.layers.3.mlp.gate_up_proj", False),
        ("model.layers.*.self_attn", "model.layers.3.self_attn.q_proj", True),
        ("model.layers.*.self_attn", "model.layers.3.mlp.experts.up_proj", False),
        ("model.layers.1", "model.layers.11.mlp.up_proj", False),
        ("model.layers.1", "model.layers.1.mlp.up_proj", True),
        ("*self_attn*", "model.layers.3.self_attn.o_proj", True),
        ("down_proj", "model.layers.3.mlp.down_proj", True),
        ("visual", "model.layers.3.mlp.down_proj", False),
    ],
)
def test_skipped_modules_are_named_in_each_tool_s_way(entry: str, name: str, skipped: bool) -> None:
    assert (name in Modules([entry])) is skipped


@pytest.mark.parametrize("pattern", ["re:(a+)+$", "re:(", "re:" + "a" * 600])
def test_a_pattern_that_could_hang_or_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(FootprintError, match="pattern"):
        Modules([pattern])


def test_a_skipped_module_stays_in_the_model_s_type() -> None:
    """Per layer of the 8B: o_proj of 4096 × 4096 at 2 bytes instead of 1, without its scale."""
    fp8 = quantize(LLAMA_8B, "fp8")
    assert fp8.quantization is not None
    partly = replace(fp8, quantization=replace(fp8.quantization, skipped=("re:.*o_proj",)))

    assert expected(partly) - expected(fp8) == 32 * (4096 * 4096 - 4)


def test_a_head_is_quantized_only_where_the_checkpoint_says_so() -> None:
    awq = quantize(LLAMA_8B, "awq")
    assert awq.quantization is not None
    both = replace(awq, quantization=replace(awq.quantization, quantizes_head=True))

    assert part(awq, "head") == 128256 * 4096 * 2
    assert part(both, "head") == 128256 * 4096 * (4 + 20 / 128) / 8


def test_mxfp4_reaches_the_experts_only() -> None:
    as_stored = part(GPT_OSS, "attention")

    # 24 layers: 4096 + 2 · 512 outputs of 2880 inputs, 4096 × 2880 back; biases; 64 sinks
    assert as_stored == 24 * 2 * (2880 * 5120 + 4096 * 2880 + 5120 + 2880 + 64)


# --- Types


def test_a_float32_checkpoint_runs_in_16_bits_unless_told_otherwise() -> None:
    wide = replace(LLAMA_8B, dtype="float32")

    assert expected(wide) == expected(LLAMA_8B)
    assert expected(wide, dtype="float32") == 2 * expected(LLAMA_8B)


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(FootprintError, match="dtype 'posit'"):
        expected(LLAMA_8B, dtype="posit")


# --- Tensor parallel


def test_the_vocabulary_is_padded_to_64_before_it_is_split() -> None:
    odd = replace(LLAMA_8B, vocabulary=100)

    assert part(odd, "embedding", tensor=2) == 64 * 4096 * 2
    assert part(odd, "embedding", rules=LLAMACPP_RULES) == 0
    assert ranks(odd, rules=LLAMACPP_RULES)[0].host.expected == 100 * 4096 * 2


def test_kv_heads_are_repeated_once_ranks_exceed_them() -> None:
    """8 K/V heads on 16 ranks: 2 query heads and one K/V head each, of 128."""
    one = part(LLAMA_8B, "attention", tensor=16)

    assert one == 32 * 2 * 4096 * (2 * 128 + 2 * 128 + 2 * 128)


def test_mla_s_projections_down_are_repeated_and_those_up_are_split() -> None:
    """Down: 7168 · (1536 + 576); up: 1536 · 16 · 192 and 512 · 16 · 256; out: 16 · 128 · 7168, on 8 ranks."""
    layer = 7168 * (1536 + 576) + 1536 * 16 * 192 + 512 * 16 * 256 + 16 * 128 * 7168

    assert part(DEEPSEEK, "attention", tensor=8) == 61 * layer * 2


def test_a_quantized_up_projection_of_latents_is_kept_in_16_bits_too() -> None:
    fp8 = quantize(DEEPSEEK, "fp8-block")
    alone = part(fp8, "attention", rules=replace(VLLM_RULES, absorbs_latent=False))

    assert part(fp8, "attention") - alone == 61 * 512 * 128 * 256 * 2


def test_norms_and_routers_are_not_split() -> None:
    assert part(MIXTRAL, "norms", tensor=8) == part(MIXTRAL, "norms")
    # 32 layers of 8 experts, three matrices each, and the router
    assert part(MIXTRAL, "experts", tensor=8) == 32 * 2 * (8 * 3 * 4096 * 14336 // 8 + 8 * 4096)


@pytest.mark.parametrize(
    ("tensor", "said"), [(3, "32 heads cannot be divided among 3 GPUs"), (0, "tensor_parallel_size is 0")]
)
def test_sizes_that_do_not_divide_are_refused(tensor: int, said: str) -> None:
    with pytest.raises(FootprintError, match=said):
        ranks(LLAMA_8B, tensor=tensor)


def test_a_width_that_does_not_divide_is_refused() -> None:
    layer = replace(LLAMA_8B.layers[0], feed_forward=FeedForward(intermediate=14337))

    with pytest.raises(FootprintError, match="width of 14337 cannot be divided among 2 GPUs"):
        ranks(replace(LLAMA_8B, layers=(layer,)), tensor=2)


# --- Experts


def test_experts_are_split_over_tensor_and_data_ranks() -> None:
    alone = part(MIXTRAL, "experts", tensor=4)

    # 32 routers of 8 · 4096 at 2 bytes on each rank
    assert part(MIXTRAL, "experts", tensor=2, data=2) == alone
    assert part(MIXTRAL, "attention", tensor=2, data=2) == part(MIXTRAL, "attention", tensor=2)


def test_expert_parallel_ranks_hold_whole_experts() -> None:
    router = 32 * 8 * 4096 * 2

    assert part(MIXTRAL, "experts", tensor=4, expert=True) == 32 * 2 * 3 * 4096 * 14336 * 2 + router


def test_the_first_ranks_hold_the_experts_that_are_left_over() -> None:
    """8 experts on 3 ranks: 3, 3 and 2 (vLLM 0.32, determine_expert_map)."""
    thin = replace(MIXTRAL, layers=(replace(MIXTRAL.layers[0], mixers=()),), vocabulary=192)
    one = 3 * 4096 * 14336 * 2

    held = [rank.parts["experts"].expected for rank in ranks(thin, tensor=3, expert=True)]

    assert [(size - 8 * 4096 * 2) // one for size in held] == [3, 3, 2]


def test_redundant_experts_are_held_too() -> None:
    more = part(MIXTRAL, "experts", tensor=4, expert=True, redundant_experts=4)

    assert more - part(MIXTRAL, "experts", tensor=4, expert=True) == 32 * 3 * 4096 * 14336 * 2


def test_shared_experts_are_split_like_a_dense_part() -> None:
    """58 layers of 3 · 7168 · 2048, three dense ones of 3 · 7168 · 18432."""
    shared = 58 * 3 * 7168 * 2048 + 3 * 3 * 7168 * 18432

    assert part(DEEPSEEK, "mlp", tensor=8, expert=True) == shared * 2 // 8


# --- Pipeline


@pytest.mark.parametrize(
    ("layers", "stages", "split"),
    [
        # vLLM 0.32, distributed/utils.py get_pp_indices
        (32, 4, (8, 8, 8, 8)), (61, 4, (15, 15, 16, 15)), (62, 4, (15, 16, 16, 15)),
        (63, 4, (16, 16, 16, 15)), (5, 2, (3, 2)),
    ],
)  # fmt: skip
def test_layers_left_over_go_to_the_middle_stages_first(
    layers: int, stages: int, split: tuple[int, ...]
) -> None:
    assert pipeline_layers(layers, Sharding(pipeline=stages)) == split


def test_a_stated_partition_is_taken_if_it_adds_up() -> None:
    assert pipeline_layers(5, Sharding(pipeline=2, layer_partition=(1, 4))) == (1, 4)
    with pytest.raises(FootprintError, match="layer_partition has 6 layers; the model has 5"):
        pipeline_layers(5, Sharding(pipeline=2, layer_partition=(2, 4)))
    with pytest.raises(FootprintError, match="names 1 stages"):
        Sharding(pipeline=2, layer_partition=(5,))
    with pytest.raises(FootprintError, match="pipeline_parallel_size is 6"):
        pipeline_layers(5, Sharding(pipeline=6))


def test_the_embedding_is_on_the_first_stage_and_the_head_on_the_last() -> None:
    first, middle, last = ranks(LLAMA_8B, pipeline=3)
    table = 128256 * 4096 * 2

    assert (first.parts["embedding"].expected, first.parts["head"].expected) == (table, 0)
    assert (middle.parts["embedding"].expected, middle.parts["head"].expected) == (0, 0)
    assert (last.parts["embedding"].expected, last.parts["head"].expected) == (0, table)
    assert [rank.layers for rank in (first, middle, last)] == [range(11), range(11, 22), range(22, 32)]


def test_a_tied_head_is_one_table_on_one_stage_and_a_copy_on_another() -> None:
    tied = model("meta-llama/Llama-3.2-1B")
    table = 128256 * 2048 * 2

    [alone] = ranks(tied)
    first, last = ranks(tied, pipeline=2)

    assert alone.parts["head"].expected == 0
    assert (first.parts["embedding"].expected, last.parts["head"].expected) == (table, table)


def test_encoders_belong_to_the_first_stage() -> None:
    whisper = model("openai/whisper-large-v3")

    first, last = ranks(whisper, pipeline=2)

    assert first.parts["encoder"].expected == whisper.encoders[0].parameters * 2
    assert last.parts["encoder"].expected == 0


# --- What headers say


def header(tensors: dict[str, tuple[str, list[int]]]) -> bytes:
    sizes = {"BF16": 2, "F32": 4, "I32": 4}
    at, record = 0, {}
    for name, (dtype, shape) in tensors.items():
        elements = 1
        for each in shape:
            elements *= each
        record[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + elements * sizes[dtype]]}
        at += elements * sizes[dtype]
    content = json.dumps(record).encode()
    return len(content).to_bytes(8, "little") + content + bytes(at)


TINY: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "torch_dtype": "bfloat16",
}  # fmt: skip
TINY_TENSORS: dict[str, tuple[str, list[int]]] = {
    "model.embed_tokens.weight": ("BF16", [64, 64]),
    "model.layers.0.input_layernorm.weight": ("BF16", [64]),
    "model.layers.0.self_attn.q_proj.weight": ("BF16", [64, 64]),
    "model.layers.0.self_attn.k_proj.weight": ("BF16", [32, 64]),
    "model.layers.0.self_attn.v_proj.weight": ("BF16", [32, 64]),
    "model.layers.0.self_attn.o_proj.weight": ("BF16", [64, 64]),
    "model.layers.0.post_attention_layernorm.weight": ("BF16", [64]),
    "model.layers.0.mlp.gate_proj.weight": ("BF16", [128, 64]),
    "model.layers.0.mlp.up_proj.weight": ("BF16", [128, 64]),
    "model.layers.0.mlp.down_proj.weight": ("BF16", [64, 128]),
    "model.norm.weight": ("BF16", [64]),
    "lm_head.weight": ("BF16", [64, 64]),
}


def stored_folder(folder: Path, tensors: dict[str, tuple[str, list[int]]], **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**TINY, **config}))
    (folder / "model.safetensors").write_bytes(header(tensors))
    return folder


def test_headers_give_exact_bytes_where_config_gives_a_range(tmp_path: Path) -> None:
    folder = stored_folder(tmp_path, TINY_TENSORS)
    tiny = read_architecture(folder)

    [computed] = weight_bytes(tiny)
    [exact] = weight_bytes(tiny, stored=stored_weights(folder, tiny))

    assert exact.total.expected == 2 * (2 * 64 * 64 + 2 * 64 * 96 + 3 * 64 * 128 + 3 * 64)
    assert exact.total.is_exact
    assert "safetensors headers of" in exact.total.source
    assert computed.total.low < computed.total.expected == exact.total.expected < computed.total.high


def test_stored_bytes_are_split_as_the_computed_ones_are(tmp_path: Path) -> None:
    """Twice the K/V heads' ranks: q, o and the rest are quartered, k and v halved."""
    folder = stored_folder(tmp_path, TINY_TENSORS)
    tiny = read_architecture(folder)

    rank = weight_bytes(tiny, sharding=Sharding(tensor=4), stored=stored_weights(folder, tiny))[0]

    assert rank.parts["attention"].expected == 2 * (2 * 64 * 16 + 2 * 64 * 16)
    assert rank.parts["mlp"].expected == 2 * 3 * 64 * 32
    assert rank.parts["norms"].expected + rank.parts["other"].expected == 2 * 3 * 64


def test_a_float32_checkpoint_counts_in_the_type_it_is_loaded_to(tmp_path: Path) -> None:
    wide = {name: ("F32", shape) for name, (_, shape) in TINY_TENSORS.items()}
    folder = stored_folder(tmp_path, wide, torch_dtype="float32")
    tiny = read_architecture(folder)

    stored = stored_weights(folder, tiny)

    assert stored is not None
    assert stored.total == 2 * (2 * 64 * 64 + 2 * 64 * 96 + 3 * 64 * 128 + 3 * 64)
    assert stored.parameters == {"F32": stored.total // 2}


def test_layers_beyond_the_model_s_own_are_its_draft(tmp_path: Path) -> None:
    drafted = {**TINY_TENSORS, "model.layers.1.eh_proj.weight": ("BF16", [64, 128])}
    folder = stored_folder(tmp_path, drafted)

    stored = stored_weights(folder, read_architecture(folder))

    assert stored is not None
    assert stored.draft == 2 * 64 * 128
    assert stored.parts["other"] == 0


def test_a_stored_head_is_left_out_where_it_is_tied(tmp_path: Path) -> None:
    folder = stored_folder(tmp_path, TINY_TENSORS, tie_word_embeddings=True)
    tiny = read_architecture(folder)

    [rank] = weight_bytes(tiny, stored=stored_weights(folder, tiny))

    assert rank.parts["head"].expected == 0
    assert rank.parts["embedding"].expected == 64 * 64 * 2


def test_packed_weights_and_scales_keep_their_stored_bytes(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.gate_proj"
    packed: dict[str, tuple[str, list[int]]] = {
        **{key: value for key, value in TINY_TENSORS.items() if not key.startswith(name)},
        f"{name}.qweight": ("I32", [64, 16]),
        f"{name}.scales": ("F32", [1, 128]),
    }
    config = {
        "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": False}
    }
    folder = stored_folder(tmp_path, packed, **config)

    stored = stored_weights(folder, read_architecture(folder))

    assert stored is not None
    assert stored.parts["mlp"] == 2 * 2 * 64 * 128 + 4 * 64 * 16 + 4 * 128
    assert stored.parameters["I32"] == 64 * 16


def test_a_folder_without_weights_has_none_stored(tmp_path: Path) -> None:
    assert stored_weights(tmp_path, LLAMA_8B) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("transformer.wte.weight", "embedding"),
        ("token_embd.weight", "embedding"),
        ("lm_head.weight", "head"),
        ("output.weight", "head"),
        ("model.layers.0.self_attn.q_norm.weight", "norms"),
        ("blk.0.attn_norm.weight", "norms"),
        ("model.layers.0.self_attn.qkv_proj.weight", "attention"),
        ("model.layers.0.linear_attn.in_proj_qkvz.weight", "attention"),
        ("backbone.layers.0.mixer.A_log", "attention"),
        ("model.layers.0.mlp.experts.7.down_proj.weight_scale_inv", "experts"),
        ("model.layers.0.mlp.experts.gate_up_proj_blocks", "experts"),
        ("model.layers.0.block_sparse_moe.experts.3.w1.weight", "experts"),
        ("model.layers.0.mlp.gate.weight", "experts"),
        ("blk.0.ffn_gate_exps.weight", "experts"),
        ("model.layers.0.mlp.shared_experts.up_proj.weight", "mlp"),
        ("blk.0.ffn_up_shexp.weight", "mlp"),
        ("model.layers.0.mlp.gate_proj.weight", "mlp"),
        ("transformer.h.0.mlp.c_fc.weight", "mlp"),
        ("visual.blocks.0.mlp.fc1.weight", "encoder"),
        ("model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight", "encoder"),
        ("multi_modal_projector.linear_1.weight", "encoder"),
        ("model.layers.0.something", "other"),
    ],
)
def test_stored_tensors_are_grouped_by_the_names_in_use(name: str, kind: str) -> None:
    assert part_of(name) == kind


# --- What if


def test_every_method_makes_the_model_smaller() -> None:
    plain = expected(LLAMA_8B)

    for name in [*QUANTIZATIONS, "q8_0", "q4_0", "iq2_xxs"]:
        if name == "experts_int8":  # of which this model has none
            continue
        assert expected(quantize(LLAMA_8B, name)) < plain


def test_a_quantized_model_is_not_quantized_again() -> None:
    with pytest.raises(FootprintError, match="stored as mxfp4 already"):
        quantize(GPT_OSS, "awq")


def test_an_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(FootprintError, match=r"unknown quantization 'q9'; known: awq, gptq, .*q4_k_m"):
        quantize(LLAMA_8B, "q9")


def test_a_quantization_may_be_handed_in_for_the_checkpoint_s_own() -> None:
    fp8 = Quantization(method="fp8", bits=8)

    assert expected(LLAMA_8B, quantization=fp8) == expected(quantize(LLAMA_8B, "fp8"))


def test_bounds_widen_with_what_is_not_known() -> None:
    unknown = replace(LLAMA_8B, known=False)

    def spread(architecture: Architecture) -> float:
        total = weight_bytes(architecture)[0].total
        return (total.high - total.low) / total.expected

    assert spread(LLAMA_8B) == pytest.approx(0.02)
    assert spread(quantize(LLAMA_8B, "awq")) == pytest.approx(0.04)
    assert spread(unknown) == pytest.approx(0.2)


def test_shared_values_are_stored_twice_by_vllm() -> None:
    """Gemma 4's full layers project keys only; vLLM loads them into the place of the values too."""
    attention = Attention(query_heads=4, kv_heads=2, key_dim=16, value_dim=16, value_is_key=True)
    layer = Layer(mixers=(attention,), feed_forward=None, norm_elements=0)
    small = Architecture(model_type="x", vocabulary=64, hidden=64, layers=(layer,), tied=True)

    assert part(small, "attention") == 2 * 64 * (64 + 32 + 32 + 64)
    assert part(small, "attention", rules=LLAMACPP_RULES) == 2 * 64 * (64 + 32 + 64)


def test_experts_without_gates_have_two_matrices() -> None:
    experts = Experts(count=4, per_token=2, intermediate=32, gated=False)
    layer = Layer(mixers=(), feed_forward=experts, norm_elements=0)
    small = Architecture(model_type="x", vocabulary=64, hidden=64, layers=(layer,), tied=True)

    assert part(small, "experts") == 2 * (4 * 2 * 64 * 32 + 4 * 64)
