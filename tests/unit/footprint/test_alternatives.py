"""Answers to what-if questions: numbers of papers and of shapes worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import brimline.demo
from brimline.errors import FootprintError
from brimline.footprint.alternatives import Alternative, Figure, Predicted, ask
from brimline.footprint.gpus import find_gpu
from brimline.footprint.hf_config import architecture_of_config
from brimline.footprint.predict import Model, as_json, predict, read_model

GIB = 1 << 30
LLAMA_8B = Path(brimline.demo.__file__).parent / "llama-3.1-8b"
MLA = {
    "model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944, "num_hidden_layers": 4,
    "num_attention_heads": 16, "num_key_value_heads": 16, "kv_lora_rank": 512, "q_lora_rank": None,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 102400,
    "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "moe_intermediate_size": 1408,
    "first_k_dense_replace": 1, "max_position_embeddings": 32768, "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}  # fmt: skip


def predicted(
    model: Model | None = None, *, link_bandwidth: float | None = None, **settings: str
) -> Predicted:
    model = model or read_model(LLAMA_8B)
    given = {"max_model_len": "32768", **settings}
    gpu = find_gpu("H100")
    return Predicted(
        engine="vllm", model=model, settings=given, gpu=gpu, link_bandwidth=link_bandwidth,
        footprint=predict("vllm", model, given, gpu=gpu),
    )  # fmt: skip


def figure(answer: Alternative, name: str) -> Figure:
    [found] = [one for one in answer.figures if one.name == name]
    return found


def then(answer: Alternative, name: str) -> float:
    value = figure(answer, name).then
    assert value is not None
    return value


def test_answers_are_no_part_of_the_prediction() -> None:
    asked = predicted()

    document = as_json(asked.footprint, [ask(asked, "cla=2"), ask(asked, "pod")])

    plain = as_json(asked.footprint)
    assert {key: value for key, value in document.items() if key != "what_if"} == plain
    assert [answer["name"] for answer in document["what_if"]] == ["cla", "pod"]
    assert "what_if" not in plain
    assert json.dumps(document)


# --- POD


def test_pod_saves_what_the_paper_saves_at_32k_and_nothing_at_4096() -> None:
    answer = ask(predicted(), "pod")

    # arXiv 2412.02252: 35 % at 32,768 tokens, with 16 first and 4080 recent tokens kept
    assert then(answer, "part of its keys and values saved at 32,768 tokens") == pytest.approx(0.35, abs=1e-9)
    assert then(answer, "part saved at 4,096 tokens") == 0
    assert then(answer, "KV cache of one request of 32,768 tokens") == round(0.65 * 4 * GIB)
    assert answer.parameters == {"first_tokens": 16, "recent_tokens": 4080, "shared_ratio": 0.8}


def test_the_shared_part_can_be_given() -> None:
    answer = ask(predicted(), "pod=0.4")

    assert then(answer, "part of its keys and values saved at 32,768 tokens") == pytest.approx(
        0.175, abs=1e-9
    )


def test_latents_have_no_keys_to_share() -> None:
    asked = predicted(Model(architecture_of_config(MLA, "config.json")))

    with pytest.raises(FootprintError, match="no layer of the model keeps a key"):
        ask(asked, "pod")


def test_a_window_is_kept_as_it_is() -> None:
    config: dict[str, Any] = {
        "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201088,
        "num_local_experts": 32, "num_experts_per_tok": 4, "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 12, "max_position_embeddings": 131072,
        "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    }  # fmt: skip
    asked = predicted(Model(architecture_of_config(config, "config.json")))

    request = figure(ask(asked, "pod"), "KV cache of one request of 32,768 tokens")

    # 12 layers of 8 heads of 64 + 64 see all 32,768 tokens: 0.75 GiB, of which 35 % go
    assert request.now is not None
    assert request.then is not None
    assert request.now - request.then == round(0.35 * 0.75 * GIB)


# --- Layers on the host


def test_layer_by_layer_a_gpu_holds_two_of_32_layers_and_what_is_in_none() -> None:
    answer = ask(predicted(link_bandwidth=64e9), "layerwise-offload")

    # a layer: 4096² · 2 + 2 · 4096 · 1024 + 3 · 4096 · 14336 + 2 · 4096 elements; tables: 2 · 128256 · 4096
    layer = 2 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096)
    ends = 2 * (2 * 128256 * 4096 + 4096)
    assert then(answer, "weights on the GPU") == pytest.approx(2 * layer + ends, rel=1e-6)
    assert then(answer, "weights in host memory, for each GPU") == pytest.approx(32 * layer, rel=1e-6)
    # 64 GB/s over 13.96 GB
    assert then(answer, "decode ceiling, batch 1 at 32,768 tokens") == pytest.approx(
        64e9 / (32 * layer), rel=1e-6
    )


def test_without_the_links_bandwidth_its_speed_is_not_made_up() -> None:
    answer = ask(predicted(), "layerwise-offload")

    assert not any(one.unit == "tokens_per_second" for one in answer.figures)
    assert any("--link-bandwidth" in note for note in answer.notes)


def test_a_link_faster_than_the_gpu_does_not_speed_it_up() -> None:
    answer = ask(predicted(link_bandwidth=1e15), "layerwise-offload")

    one = figure(answer, "decode ceiling, batch 1 at 32,768 tokens")
    assert one.then == one.now


# --- Attention written out


def test_the_score_matrix_grows_with_the_square_of_the_context() -> None:
    answer = ask(predicted(), "eager-attention")

    # 32 heads × 32768² scores × 2 bytes once; × 8 with the fp32 softmax and its copy
    one = figure(answer, "scores of one layer for one prompt of 32,768 tokens")
    assert one.low == 32 * 32768**2 * 2
    assert one.then == 32 * 32768**2 * 8
    assert one.now == 32 * 32768 * 4


def test_each_gpu_writes_out_its_own_heads() -> None:
    answer = ask(predicted(tensor_parallel_size="4"), "eager-attention")

    assert answer.parameters["query_heads_on_one_gpu"] == 8


# --- Pruning


def test_zeros_anywhere_save_no_bytes() -> None:
    one = figure(ask(predicted(), "pruning=unstructured:0.5"), "weights on the GPU")

    assert one.then == one.now


def test_two_of_four_take_nine_sixteenths_of_16_bits() -> None:
    answer = ask(predicted(), "pruning=2:4")

    # arXiv 2104.08378: two values of 16 bits and two indexes of 2 bits for four values of 16 bits
    linear = figure(answer, "of that, linear layers")
    assert linear.now is not None
    assert linear.then == pytest.approx(linear.now * 36 / 64)
    # embedding, head and norms stay whole
    assert then(answer, "weights on the GPU") > linear.then  # type: ignore[operator]


def test_pruned_shapes_are_computed_anew() -> None:
    answer = ask(predicted(), "pruning=structured:0.25")

    # 6 of 8 K/V heads with 24 of 32 query heads, 10752 of 14336 channels
    per_layer = 2 * 4096 * 3072 + 2 * 4096 * 768 + 3 * 4096 * 10752 + 2 * 4096
    assert then(answer, "parameters") == 32 * per_layer + 2 * 128256 * 4096 + 4096
    assert then(answer, "KV cache of one token") == 131072 * 6 / 8


def test_pruned_heads_still_divide_among_the_gpus() -> None:
    answer = ask(predicted(tensor_parallel_size="4"), "pruning=structured:0.25")

    # 8 heads on 4 GPUs: 6 would not divide, so 8 or 4 are left
    assert then(answer, "KV cache of one token") in (131072 / 4, 131072 / 8)


def test_nothing_pruned_is_the_model() -> None:
    for one in ask(predicted(), "pruning=structured:0").figures:
        assert one.then == pytest.approx(one.now)


# --- Shared K and V


@pytest.mark.parametrize(("factor", "layers"), [(1, 32), (2, 16), (3, 11), (32, 1)])
def test_layers_that_share_keep_one_cache_for_all_of_them(factor: int, layers: int) -> None:
    answer = ask(predicted(), f"cla={factor}")

    # ceil(32 / factor) layers of 4096 bytes
    assert then(answer, "KV cache of one token") == layers * 4096
    assert then(answer, "parameters") == 8_030_261_248 - (32 - layers) * 2 * 4096 * 1024


# --- Questions


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("magic", "'magic' is not known; known: pod, layerwise-offload"),
        ("pod=2", "'2' is no number between 0 and 1"),
        ("pruning", "write structured:0.3, unstructured:0.5 or 2:4"),
        ("pruning=structured:many", "'many' is no number between 0 and 1"),
        ("cla=half", "write cla=2"),
        ("cla=0", "write cla=2"),
        ("eager-attention=1", "takes no value"),
    ],
)
def test_questions_without_sense_are_refused_with_how_to_write_them(question: str, said: str) -> None:
    asked = predicted()

    with pytest.raises(FootprintError, match="--what-if") as refused:
        ask(asked, question)

    assert said in str(refused.value)


def test_every_answer_has_a_source_and_says_what_it_assumes() -> None:
    asked = predicted(link_bandwidth=64e9)
    questions = [
        "pod", "layerwise-offload", "eager-attention", "pruning=structured:0.3", "pruning=unstructured:0.5",
        "pruning=2:4", "cla=2",
    ]  # fmt: skip

    for answer in (ask(asked, question) for question in questions):
        assert answer.source
        assert answer.notes
        assert answer.figures
