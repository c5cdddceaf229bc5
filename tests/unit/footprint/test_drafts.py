"""Speculative decoding: what the flag says, what a drafter holds, and what verifying takes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import brimline.demo
from brimline.errors import FootprintError
from brimline.footprint.activations import BatchSettings, verification_bytes
from brimline.footprint.architecture import Architecture
from brimline.footprint.drafts import Draft, SpeculativeConfig, draft_of, read_speculative_config
from brimline.footprint.gpus import find_gpu
from brimline.footprint.hf_config import architecture_of_config
from brimline.footprint.predict import Model, predict, read_model
from brimline.footprint.safetensors import StoredTensor
from brimline.footprint.weights import Sharding, stored_in_safetensors
from brimline.readings import Footprint

LLAMA_8B = Path(brimline.demo.__file__).parent / "llama-3.1-8b"
# EAGLE3-LLaMA3.1-Instruct-8B
EAGLE3 = {
    "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 1, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128256, "draft_vocab_size": 32000, "max_position_embeddings": 2048,
    "torch_dtype": "float16", "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_1B = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
    "max_position_embeddings": 131072, "torch_dtype": "bfloat16", "tie_word_embeddings": True,
}  # fmt: skip
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
    "num_key_value_heads": 128, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "first_k_dense_replace": 3, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280, "num_nextn_predict_layers": 1,
    "max_position_embeddings": 163840, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
# Buffers of a drafter that reads its target: hidden states of a batch of 8192 tokens, of 2 bytes
BUFFER = 8192 * 4096 * 2


def folder(path: Path, config: dict[str, Any]) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def drafted(target: Architecture, sharding: Sharding | None = None, **config: Any) -> Draft:
    return draft_of(
        SpeculativeConfig(**config),
        target,
        sharding=sharding or Sharding(),
        element_bytes=2,
        dtype="auto",
        kv_cache_dtype="auto",
        max_num_batched_tokens=8192,
    )


def of_8b(gpu: str = "H100", **settings: str) -> Footprint:
    return predict("vllm", read_model(LLAMA_8B), {"max_model_len": "32768", **settings}, gpu=find_gpu(gpu))


# --- What the flag says


@pytest.mark.parametrize(
    "settings",
    [
        {"speculative_config": '{"method": "ngram", "num_speculative_tokens": 4}'},
        {"speculative_config": '{"method": "ngram", "num-speculative-tokens": 4}'},
        {"speculative_config": "method=ngram,num_speculative_tokens=4"},
        {"speculative_config": "model=[ngram] num_speculative_tokens=4"},
        {"speculative_config.method": "ngram", "speculative_config.num_speculative_tokens": "4"},
        {"spec_method": "ngram", "spec_tokens": "4"},
        {"speculative_config": '{"method": "ngram"}', "spec_tokens": "4"},
    ],
)
def test_all_spellings_of_the_flag_mean_the_same(settings: dict[str, str]) -> None:
    assert read_speculative_config(settings) == SpeculativeConfig(method="ngram", num_speculative_tokens=4)


@pytest.mark.parametrize(
    ("model", "method"),
    [
        ("yuhuili/EAGLE3-LLaMA3.1-Instruct-8B", "eagle3"),
        ("/models/EAGLE-llama3-8b", "eagle"),
        ("/models/llama-1b", "draft_model"),
    ],
)
def test_the_method_is_told_by_the_models_name_as_vllm_tells_it(model: str, method: str) -> None:
    config = read_speculative_config({"speculative_config": json.dumps({"model": model})})

    assert config is not None
    assert (config.method, config.model) == (method, model)


def test_names_of_one_family_of_drafts_are_mtp() -> None:
    config = read_speculative_config({"speculative_config": "method=deepseek_mtp"})

    assert config == SpeculativeConfig(method="mtp")


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ("{method: ngram}", "no JSON object"),
        ("ngram", "no key=value pair"),
        ("method=medusa,model=/m", "the memory of medusa is not computed"),
        ("method=eagle9,num_speculative_tokens=1", "unknown method 'eagle9'"),
        ("method=ngram,num_speculative_tokens=0", "num_speculative_tokens is 0; it is a whole number from 1"),
        ("method=ngram,num_speculative_tokens=many", "num_speculative_tokens is 'many'"),
    ],
)
def test_nonsense_is_refused_by_the_name_of_the_flag(stated: str, said: str) -> None:
    with pytest.raises(FootprintError, match="--speculative-config") as refused:
        read_speculative_config({"speculative_config": stated})

    assert said in str(refused.value)


def test_a_value_given_twice_is_refused() -> None:
    with pytest.raises(FootprintError, match="--spec-tokens and --speculative-config"):
        read_speculative_config(
            {"speculative_config": "method=ngram,num_speculative_tokens=4", "spec_tokens": "3"}
        )


# --- What a drafter holds


def test_looking_drafts_up_takes_no_weights_and_no_cache() -> None:
    plain, looked_up = of_8b(), of_8b(speculative_config="method=ngram,num_speculative_tokens=4")

    assert "draft_model" not in looked_up.fullest.components
    assert looked_up.kv_cache.bytes_per_token == plain.kv_cache.bytes_per_token == 131072


def test_eagle_3_brings_its_layer_its_projection_and_its_head(tmp_path: Path) -> None:
    target = read_model(LLAMA_8B).architecture

    draft = drafted(target, method="eagle3", model=folder(tmp_path / "e", EAGLE3), num_speculative_tokens=3)

    # fc 3·4096×4096, q 8192×4096, k and v 8192×1024, o 4096², three matrices of 4096×14336, a head of
    # 32000×4096, four norms of 4096: the layer's two, of the hidden states, and at the end; 32000 places
    elements = 12288 * 4096 + 8192 * 6144 + 4096**2 + 3 * 4096 * 14336 + 32000 * 4096 + 4 * 4096
    assert draft.memory is not None
    assert draft.memory.expected == pytest.approx(2 * elements + 8 * 32000 + BUFFER, abs=10)
    assert draft.auxiliary_states == 3


def test_eagle_3_adds_a_layer_to_the_pool(tmp_path: Path) -> None:
    config = {"method": "eagle3", "model": folder(tmp_path / "e", EAGLE3), "num_speculative_tokens": 3}

    footprint = of_8b(speculative_config=json.dumps(config))

    # 33 layers of 8 heads of 128 + 128, of 2 bytes
    assert footprint.kv_cache.bytes_per_token == 33 * 4096
    assert footprint.fullest.components["draft_model"].expected > 0


def test_a_model_of_its_own_is_held_whole_and_keeps_its_cache_in_the_same_pool(tmp_path: Path) -> None:
    target = read_model(LLAMA_8B).architecture

    draft = drafted(
        target, method="draft_model", model=folder(tmp_path / "m", LLAMA_1B), num_speculative_tokens=5
    )

    # Llama-3.2-1B has 1,235,814,400 parameters
    assert draft.memory is not None
    assert draft.memory.expected == pytest.approx(2 * 1_235_814_400, rel=0.0001)
    assert len(draft.layers) == 16


def test_deepseeks_own_layer_is_11_5_billion_parameters_without_embedding_and_head() -> None:
    # DeepSeek-V3, README_WEIGHTS.md: 11.5B unique parameters beside the shared embedding and head
    draft = drafted(architecture_of_config(DEEPSEEK_V3, "config.json"), method="mtp")

    assert draft.memory is not None
    weights = draft.memory.expected - 8192 * 7168 * 2
    assert weights / 2 == pytest.approx(11.5e9, rel=0.015)
    assert (draft.tokens, len(draft.layers), draft.multi_module) == (1, 1, False)


def test_stored_layers_of_the_model_go_before_computed_ones() -> None:
    target = architecture_of_config({**DEEPSEEK_V3, "num_hidden_layers": 4}, "config.json")
    stored = stored_in_safetensors(
        [
            StoredTensor("model.layers.4.mlp.experts.0.up_proj.weight", "BF16", (1000, 1000), 2_000_000),
            # Copies of the target's, which share its memory.
            StoredTensor("model.layers.4.embed_tokens.weight", "BF16", (1000, 1000), 2_000_000),
            StoredTensor("model.layers.4.shared_head.head.weight", "BF16", (1000, 1000), 2_000_000),
        ],
        target,
        2,
        "model.safetensors",
    )

    draft = draft_of(
        SpeculativeConfig(method="mtp"), target, sharding=Sharding(), element_bytes=2, dtype="auto",
        kv_cache_dtype="auto", max_num_batched_tokens=1, stored=stored,
    )  # fmt: skip

    assert draft.memory is not None
    assert draft.memory.expected == 2_000_000 + 7168 * 2


def test_behind_another_pipeline_stage_the_embedding_is_a_copy(tmp_path: Path) -> None:
    target = read_model(LLAMA_8B).architecture
    config: dict[str, Any] = {
        "method": "eagle3",
        "model": folder(tmp_path / "e", EAGLE3),
        "num_speculative_tokens": 3,
    }

    near, far = drafted(target, **config), drafted(target, Sharding(pipeline=2), **config)

    assert near.memory is not None
    assert far.memory is not None
    assert far.memory.expected - near.memory.expected == 128256 * 4096 * 2


def test_layers_of_speculators_are_nested_in_their_config(tmp_path: Path) -> None:
    layer = {key: value for key, value in EAGLE3.items() if key not in ("draft_vocab_size", "architectures")}
    nested = {
        "speculators_model_type": "eagle3", "draft_vocab_size": 32000, "transformer_layer_config": layer,
    }  # fmt: skip
    target = read_model(LLAMA_8B).architecture

    plain, wrapped = (
        drafted(target, method="eagle3", model=folder(tmp_path / name, config), num_speculative_tokens=3)
        for name, config in (("plain", EAGLE3), ("wrapped", nested))
    )

    assert plain.memory is not None
    assert wrapped.memory is not None
    assert wrapped.memory.expected == plain.memory.expected


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"method": "eagle3", "num_speculative_tokens": 3}, "method eagle3 needs a model"),
        (
            {"method": "eagle3", "model": "/no/such", "num_speculative_tokens": 3},
            "/no/such does not exist here",
        ),
        ({"method": "mtp"}, "no layers that predict further tokens"),
        ({"method": "ngram"}, "num_speculative_tokens is missing"),
        (
            {"method": "ngram", "num_speculative_tokens": 1, "draft_tensor_parallel_size": 2},
            "must be the target's 1",
        ),
        ({"method": "ngram", "num_speculative_tokens": 1, "kv_cache_dtype": "fp8"}, "kv_cache_dtype 'fp8'"),
    ],
)
def test_what_vllm_refuses_is_refused(config: dict[str, Any], said: str) -> None:
    target = read_model(LLAMA_8B).architecture

    with pytest.raises(FootprintError, match="--speculative-config") as refused:
        drafted(target, **config)

    assert said in str(refused.value)


def test_a_drafter_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    target = read_model(LLAMA_8B).architecture
    other = folder(tmp_path / "m", {**LLAMA_1B, "vocab_size": 32000})

    with pytest.raises(FootprintError, match="vocabulary of 32000 tokens is not the target's 128256"):
        drafted(target, method="draft_model", model=other, num_speculative_tokens=2)


def test_tokens_are_a_multiple_of_what_the_layers_predict() -> None:
    target = replace(architecture_of_config(DEEPSEEK_V3, "config.json"), draft_layers=2)

    assert drafted(target, method="mtp", num_speculative_tokens=4).multi_module
    with pytest.raises(FootprintError, match="num_speculative_tokens 3 must be divisible by the 2"):
        drafted(target, method="mtp", num_speculative_tokens=3)


# --- Verifying, and the speed


def test_the_first_model_runner_has_not_profiled_all_drafts() -> None:
    # vLLM PR 38220: 200 requests of 5 drafts, a vocabulary of 131072: 400 rows profiled (209 MB), 1200 come
    # (629 MB)
    batch = BatchSettings(max_num_batched_tokens=8192, max_num_seqs=200, draft_tokens=5)

    _, later = verification_bytes(131072, batch, version="0.18.0")

    assert (later.low, later.expected) == (0, 629_145_600 - 209_715_200)


def test_the_second_model_runner_copies_no_more_than_a_chunk() -> None:
    # vLLM PR 48630: Qwen3-8B, 1024 requests of 7 drafts, a vocabulary of 151936: the copy tried to take
    # 4.12 GiB in fp32, and takes 1 GiB since; beside it stand the 16-bit logits
    batch = BatchSettings(max_num_batched_tokens=8192, max_num_seqs=1024, draft_tokens=7)

    profiled, later = verification_bytes(151936, batch, version="0.32.0")

    copies = (1 << 30) - 1024 * 151936 * 4
    assert profiled.high == 0
    assert later.expected == 7 * 1024 * 151936 * 2 + copies


def test_what_is_not_profiled_takes_nothing_of_the_pool_and_adds_to_what_the_gpu_holds() -> None:
    plain = of_8b(enforce_eager="true")
    drafting = of_8b(enforce_eager="true", speculative_config="method=ngram,num_speculative_tokens=4")

    before, after = plain.fullest, drafting.fullest
    assert after.components["kv_cache"].expected == before.components["kv_cache"].expected
    more = after.components["activations"].expected - before.components["activations"].expected
    assert more > 0
    assert after.total.expected - before.total.expected == more
    assert after.total.high <= before.total.high + more


def test_without_an_acceptance_the_ceiling_is_the_plain_one_and_says_so() -> None:
    plain, drafting = of_8b(), of_8b(speculative_config="method=ngram,num_speculative_tokens=4")

    assert plain.decode_ceiling is not None
    assert drafting.decode_ceiling is not None
    assert drafting.decode_ceiling(1, 1024) == plain.decode_ceiling(1, 1024)
    assert any("without speculation" in text for text in drafting.assumptions)


def test_the_given_acceptance_speeds_the_ceiling_up() -> None:
    settings = {"max_model_len": "32768", "speculative_config": "method=ngram,num_speculative_tokens=3"}
    model = read_model(LLAMA_8B)

    footprint = predict("vllm", model, settings, gpu=find_gpu("H100"), acceptance=0.8)

    # 1 + 0.8 + 0.64 + 0.512 tokens a step; n-grams read nothing more than the 221 tokens/s of one
    assert footprint.decode_ceiling is not None
    assert footprint.decode_ceiling(1, 1024) == pytest.approx(2.952 * 221.2, rel=0.001)


def test_a_drafter_is_read_once_for_each_token_it_drafts(tmp_path: Path) -> None:
    draft = folder(tmp_path / "m", LLAMA_1B)
    config = {"method": "draft_model", "model": draft, "num_speculative_tokens": 3}
    settings = {"max_model_len": "32768", "speculative_config": json.dumps(config)}

    footprint = predict("vllm", read_model(LLAMA_8B), settings, gpu=find_gpu("H100"), acceptance=0.8)

    # by hand: 15.01 GB and 1024 tokens of 131072 bytes, and three times 2.4716 GB and 1024 of 32768 bytes
    read = 15_009_849_344 + 1024 * 131072 + 3 * (2 * 1_235_814_400 + 1024 * 32768)
    assert footprint.decode_ceiling is not None
    assert footprint.decode_ceiling(1, 1024) == pytest.approx(2.952 * 3.35e12 / read, rel=0.001)


def test_an_acceptance_without_drafts_is_refused() -> None:
    with pytest.raises(FootprintError, match="--acceptance is of drafted tokens"):
        predict("vllm", Model(read_model(LLAMA_8B).architecture), {}, gpu=find_gpu("H100"), acceptance=0.5)
