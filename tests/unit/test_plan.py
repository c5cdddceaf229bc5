"""Plans: what is a row, what fits, and how far."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import brimline.demo
from brimline.errors import FootprintError, SettingError
from brimline.footprint.gpus import described_gpu, find_gpu
from brimline.footprint.hf_config import architecture_of_config
from brimline.footprint.predict import Model, predict, read_model
from brimline.plan import (
    MAX_CURVES,
    Plan,
    Row,
    Sweep,
    best,
    check_curves,
    curves,
    doubling_lengths,
    known_settings,
    longest_context,
    make_plan,
    model_names,
    parse_sweep,
    suggestions,
)

GIB = 1 << 30
CARD_32_GIB = described_gpu(32 * GIB, 1e12)
LLAMA_8B = read_model(Path(brimline.demo.__file__).parent / "llama-3.1-8b")
_LLAMA_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
_MISTRAL_7B = {  # every layer has a window
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
_DEEPSEEK_V2_LITE = {  # latent attention
    "model_type": "deepseek_v2",
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 64,
    "num_experts_per_tok": 6,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 102400,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "max_position_embeddings": 163840,
    "torch_dtype": "bfloat16",
}
_GEMMA_3_4B = {  # five layers with a window to one without
    "model_type": "gemma3_text",
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 34,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "sliding_window": 1024,
    "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16",
}


def model_of(config: Mapping[str, Any]) -> Model:
    return Model(architecture_of_config(dict(config), "config.json"))


def planned(
    *sweeps: str,
    model: Model = LLAMA_8B,
    gpu: str | None = "H100",
    version: str | None = None,
    **settings: str,
) -> tuple[Plan, list[Row]]:
    card = find_gpu(gpu) if gpu is not None else None
    listed = [parse_sweep(text) for text in sweeps]
    plan = make_plan("vllm", {"llama": model}, listed, settings, version=version, gpu=card)
    return plan, list(plan.rows())


# --- What is asked


def test_a_sweep_is_a_setting_and_its_values() -> None:
    assert parse_sweep("max_model_len=8k, 32k") == Sweep("max_model_len", ("8k", "32k"))
    assert parse_sweep("--max-model-len=8k") == Sweep("max_model_len", ("8k",))
    assert parse_sweep("tp=1,2", {"tp": "tensor_parallel_size"}).name == "tensor_parallel_size"


def test_commas_within_brackets_part_nothing() -> None:
    sweep = parse_sweep('speculative_config={"method": "ngram", "num_speculative_tokens": 3},{}')

    assert sweep.values == ('{"method": "ngram", "num_speculative_tokens": 3}', "{}")


@pytest.mark.parametrize("text", ["max_model_len", "max_model_len=", "=8k", "max_model_len=8k,,32k", "--=1"])
def test_another_form_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SettingError, match="write a setting and its values, as max_model_len=8k,32k,128k"):
        parse_sweep(text)


def test_a_value_given_twice_is_refused() -> None:
    with pytest.raises(SettingError, match="--sweep max_model_len: 8k is given twice"):
        parse_sweep("max_model_len=8k,32k,8k")


def test_every_combination_is_a_row_and_the_last_sweep_varies_fastest() -> None:
    plan, rows = planned("kv_cache_dtype=auto,fp8", "max_model_len=8k,32k")

    assert plan.combinations == 4
    assert [tuple(row.chosen.values()) for row in rows] == [
        ("auto", "8k"), ("auto", "32k"), ("fp8", "8k"), ("fp8", "32k"),
    ]  # fmt: skip
    assert [row.context_tokens for row in rows] == [8000, 32000, 8000, 32000]


def test_several_models_are_swept_without_being_named_as_a_sweep() -> None:
    models = {"8b": LLAMA_8B, "70b": model_of(_LLAMA_70B)}

    plan = make_plan("vllm", models, [parse_sweep("max_model_len=8k,32k")], {}, gpu=find_gpu("H100"))

    assert [(row.model, row.outcome) for row in plan.rows()] == [
        ("8b", "fits"), ("8b", "fits"), ("70b", "too_large"), ("70b", "too_large"),
    ]  # fmt: skip


def test_a_misspelt_setting_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(SettingError, match=r"--sweep max_modl_len: .*; did you mean max_model_len\?"):
        planned("max_modl_len=8k")


def test_the_beginning_of_a_name_is_enough_to_be_told_the_whole() -> None:
    with pytest.raises(SettingError, match=r"did you mean tp_size\?"):
        make_plan("sglang", {"llama": LLAMA_8B}, [parse_sweep("tp=1,2")], {})


def test_a_setting_that_is_asked_for_beside_another_only_is_known() -> None:
    known = known_settings("vllm", LLAMA_8B)

    assert {"max_model_len", "tensor_parallel_size", "kv_cache_dtype", "quantization"} <= known
    assert "max_modl_len" not in known


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ("max_model_len=8k,lots", "--sweep max_model_len=lots: 'lots' is not a count"),
        (
            "kv_cache_dtype=auto,fp9",
            "--sweep kv_cache_dtype=fp9: 'fp9' has no layout known here; known: auto",
        ),
        ("tensor_parallel_size=0,1", "--sweep tensor_parallel_size=0: it starts at 1"),
        ("gpu_memory_utilization=0.9,1.5", "--sweep gpu_memory_utilization=1.5: "),
        ("quantization=awq,awqq", "--sweep quantization=awqq: unknown quantization 'awqq'"),
        ("enforce_eager=maybe", "--sweep enforce_eager=maybe: 'maybe' is neither true nor false"),
        ("engine_version=new", "--sweep engine_version: 'new' is not a version"),
    ],
)
def test_a_value_that_its_setting_can_never_have_ends_the_plan(sweep: str, said: str) -> None:
    with pytest.raises(SettingError) as caught:
        planned(sweep)

    assert str(caught.value).startswith(said)


def test_of_several_sweeps_the_error_names_the_one_it_is_about() -> None:
    with pytest.raises(SettingError, match=r"^--sweep gpu_memory_utilization=1\.5: "):
        planned("gpu=H100", "max_num_seqs=64", "gpu_memory_utilization=1.5", gpu=None)


def test_an_unknown_gpu_is_refused() -> None:
    with pytest.raises(SettingError, match="--sweep gpu: unknown GPU 'H99'; known: A10, A100 40GB"):
        planned("gpu=H100,H99", gpu=None)


def test_an_engine_that_is_not_predicted_is_refused() -> None:
    with pytest.raises(SettingError, match=r"--engine ollama: its memory is not predicted; known: .*vllm"):
        make_plan("ollama", {"llama": LLAMA_8B}, [], {})


@pytest.mark.parametrize(
    ("sweep", "stated"),
    [
        ("max_model_len=8k", {"max_model_len": "4k"}),
        ("gpu=L4", {}),
        ("engine_version=0.19.0", {"version": "0.20.0"}),
    ],
)
def test_what_is_swept_is_not_set_as_well(sweep: str, stated: dict[str, str]) -> None:
    with pytest.raises(SettingError, match=r"set the same; give one of them"):
        planned(sweep, **stated)  # type: ignore[arg-type]


def test_a_setting_is_swept_once() -> None:
    with pytest.raises(SettingError, match="max_model_len is given twice; list all its values in one"):
        planned("max_model_len=8k", "max_model_len=32k")


def test_more_combinations_than_are_computed_are_refused_before_any_is() -> None:
    sequences = Sweep("max_num_seqs", tuple(map(str, range(1, 401))))
    batches = Sweep("max_num_batched_tokens", tuple(map(str, range(1024, 1424))))

    with pytest.raises(SettingError, match="400 max_num_seqs × 400 max_num_batched_tokens are 160,000"):
        make_plan("vllm", {"llama": LLAMA_8B}, [sequences, batches], {})


def test_names_of_models_are_short_where_they_differ() -> None:
    assert model_names(["/models/teacher/", "student/config.json"]) == ["teacher", "student"]
    assert model_names(["/a/llama", "/b/llama"]) == ["/a/llama", "/b/llama"]


# --- Rows


def test_a_combination_that_cannot_be_is_a_row_that_says_why() -> None:
    _, rows = planned("tensor_parallel_size=2,3", "max_model_len=8k,200k")

    assert [row.outcome for row in rows] == ["fits", "impossible", "impossible", "impossible"]
    assert "--max-model-len 200000 is above the 131072 tokens that the model was made for" in (
        rows[1].reason or ""
    )
    assert "--tensor-parallel-size 3 does not fit 8 K/V heads" in (rows[2].reason or "")
    assert rows[2].gpus is None
    assert rows[2].room is None


def test_without_a_gpu_nothing_is_said_to_fit() -> None:
    _, rows = planned("max_model_len=8k", gpu=None)

    [row] = rows
    assert (row.outcome, row.headroom, row.used_ratio, row.longest_context_tokens) == (
        "unknown", None, None, None,
    )  # fmt: skip


def test_70b_in_16_bits_needs_two_h100_and_reads_its_weights_24_times_a_second_on_one() -> None:
    """By bandwidth alone 24 tokens/s on one H100, which it does not fit, and 48 on two."""
    sweeps = ("tensor_parallel_size=1,2,4", "max_model_len=1024")
    _, rows = planned(*sweeps, model=model_of(_LLAMA_70B), version="0.19.0")

    assert [row.outcome for row in rows] == ["too_large", "fits", "fits"]
    assert [row.gpus for row in rows] == [1, 2, 4]
    assert [round(row.decode_one_tokens_per_second or 0) for row in rows[:2]] == [24, 48]
    assert "are more than its 79.18 GiB" in (rows[0].reason or "")


def test_32_requests_of_4096_tokens_of_a_70b_take_43_gb() -> None:
    """80 layers, 8 KV heads, head size 128 at 16 bits: 327,680 bytes a token."""
    _, rows = planned("max_model_len=4096", model=model_of(_LLAMA_70B), kv_cache_dtype="bfloat16")

    assert rows[0].full_request_bytes == 327_680 * 4096
    assert round(32 * 327_680 * 4096 / 1e9) == 43


def test_counts_are_of_all_replicas_and_the_speed_of_one_request_is_of_one() -> None:
    _, rows = planned("data_parallel_size=1,2", "max_model_len=32k")

    alone, both = rows
    assert alone.concurrency is not None
    assert both.concurrency is not None
    assert (alone.gpus, both.gpus) == (1, 2)
    assert both.concurrency.expected == pytest.approx(2 * alone.concurrency.expected)
    assert both.decode_one_tokens_per_second == alone.decode_one_tokens_per_second
    assert both.decode_all_requests == 2 * (alone.decode_all_requests or 0)
    assert not any("one of 2 data-parallel ranks" in text for text in both.assumptions)


def test_no_more_requests_run_at_once_than_the_engine_lets_in() -> None:
    _, rows = planned("max_num_seqs=16,1024", "max_model_len=8192")

    few, many = rows
    assert few.decode_all_requests == 16
    assert many.concurrency is not None
    assert many.decode_all_requests == int(many.concurrency.expected)
    assert (many.decode_all_tokens_per_second or 0) > (few.decode_all_tokens_per_second or 0)


def test_a_gpu_that_is_described_is_planned_with_as_any_other() -> None:
    card = described_gpu(96 * GIB, 3.35e12)

    plan = make_plan("vllm", {"llama": LLAMA_8B}, [parse_sweep("max_model_len=8k")], {}, gpu=card)

    [row] = plan.rows()
    assert row.outcome == "fits"
    assert row.card_bytes is card.visible_bytes


def test_a_row_says_what_predict_says() -> None:
    _, rows = planned("max_model_len=32768", "kv_cache_dtype=fp8", "tensor_parallel_size=2")
    settings = {"max_model_len": "32768", "kv_cache_dtype": "fp8", "tensor_parallel_size": "2"}

    footprint = predict("vllm", LLAMA_8B, settings, gpu=find_gpu("H100"))

    [row] = rows
    assert row.total == footprint.fullest.total
    assert row.headroom is not None
    assert row.headroom.expected == footprint.headroom_bytes
    assert row.concurrency is not None
    assert row.concurrency.expected == footprint.kv_cache.max_concurrency_requests
    assert row.capacity_tokens is not None
    assert row.capacity_tokens.expected == footprint.kv_cache.capacity_tokens
    assert row.concurrency.low <= row.concurrency.expected <= row.concurrency.high


def test_a_pool_larger_than_the_gpu_does_not_fit() -> None:
    _, rows = planned("max_model_len=8k", kv_cache_memory_bytes="200GiB")

    assert rows[0].outcome == "too_large"


def test_what_the_gpu_would_hold_and_the_engine_refuses_is_told_apart() -> None:
    """vLLM starts only where its pool holds one request of full length (kv_cache_utils.py)."""
    _, rows = planned("gpu_memory_utilization=0.3,0.9", "max_model_len=128k")

    refused, started = rows
    assert (refused.outcome, started.outcome) == ("budget", "fits")
    assert refused.room is not None
    assert refused.room.low > 0
    assert "raise --gpu-memory-utilization" in (refused.reason or "")


# --- How fast


def test_experts_are_ranked_by_what_even_routing_allows() -> None:
    """A step of many tokens touches all experts of Mixtral: E · (1 − (1 − k/E)^B), 7.92 of 8 for sixteen."""
    mixtral = {
        "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
        "max_position_embeddings": 32768, "num_local_experts": 8, "num_experts_per_tok": 2,
        "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    }  # fmt: skip
    model = Model(architecture_of_config(mixtral, "config.json"))
    plan = make_plan(
        "vllm", {"mixtral": model}, [parse_sweep("max_model_len=8k")], {"tensor_parallel_size": "2"},
        gpu=find_gpu("H100"),
    )  # fmt: skip

    (row,) = plan.rows()

    assert row.decode_all_tokens_per_second is not None
    assert row.speed_tokens_per_second is not None
    assert row.decode_one_tokens_per_second == row.decode_even_one_tokens_per_second
    # With 46.7 B parameters of which 12.9 B are read by the ceiling, and little cache to read.
    assert 0.25 < row.speed_tokens_per_second / row.decode_all_tokens_per_second < 0.8


def test_a_model_without_experts_is_ranked_by_its_ceiling() -> None:
    _, rows = planned("max_model_len=8k")

    assert rows[0].decode_even_all_tokens_per_second is None
    assert rows[0].speed_tokens_per_second == rows[0].decode_all_tokens_per_second


# --- How far


@pytest.mark.parametrize(
    ("config", "gpu", "settings"),
    [
        (_LLAMA_70B, "H200", {"tensor_parallel_size": "1", "quantization": "fp8"}),
        (_MISTRAL_7B, "RTX 4090", {}),
        (_DEEPSEEK_V2_LITE, "A100-40GB", {}),
        (_GEMMA_3_4B, "T4", {}),
    ],
)
def test_the_longest_context_fits_and_one_more_block_does_not(
    config: dict[str, Any], gpu: str, settings: dict[str, str]
) -> None:
    model = model_of(config)
    plan, rows = planned("max_model_len=1024", model=model, gpu=gpu, **settings)
    longest = rows[0].longest_context_tokens
    most = config["max_position_embeddings"]

    assert longest is not None
    assert plan.row({"max_model_len": str(longest)}).outcome == "fits"
    if longest < most:
        assert plan.row({"max_model_len": str(min(longest + 16, most))}).outcome != "fits"


def test_the_longest_context_is_found_in_a_few_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, rows = planned("max_model_len=8k", gpu="L4")
    asked: list[str] = []
    original = type(rows[0].scenario).footprint

    def counted(scenario: Any) -> Any:
        asked.append(scenario.settings["max_model_len"])
        return original(scenario)

    monkeypatch.setattr(type(rows[0].scenario), "footprint", counted)
    longest = longest_context(rows[0].scenario, "max_model_len")

    assert longest == rows[0].longest_context_tokens
    assert len(asked) <= 4
    assert plan.row({"max_model_len": str(longest)}).outcome == "fits"


def test_where_all_of_a_model_fits_the_longest_context_is_its_own() -> None:
    _, rows = planned("max_model_len=8k")

    assert rows[0].longest_context_tokens == 131072


def test_overrides_of_the_models_file_raise_its_longest_context() -> None:
    """YaRN as Qwen's model cards describe it: twice the positions by a factor of 2."""
    yarn = '{"max_position_embeddings": 262144, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}'

    _, rows = planned("max_model_len=8k", gpu="H200", hf_overrides=yarn)

    assert rows[0].longest_context_tokens == 262144


def test_where_the_weights_do_not_fit_there_is_no_longest_context() -> None:
    _, rows = planned("max_model_len=8k", model=model_of(_LLAMA_70B))

    assert rows[0].longest_context_tokens is None


def test_the_longest_context_does_not_depend_on_the_one_that_is_set() -> None:
    _, rows = planned("max_model_len=8k,32k,128k", gpu="L4")

    assert len({row.longest_context_tokens for row in rows}) == 1


def test_most_requests_are_marked_once_for_each_model_and_length() -> None:
    _, rows = planned("max_model_len=8k,128k", "kv_cache_dtype=auto,fp8", gpu="L40S")

    marked = {tuple(rows[index].chosen.values()) for index in best(rows)}

    assert marked == {("8k", "fp8"), ("128k", "fp8")}


def test_a_row_that_nothing_compares_with_has_no_mark() -> None:
    _, rows = planned("max_model_len=8k,32k")

    assert [row.outcome for row in rows] == ["fits", "fits"]
    assert best(rows) == frozenset()


def test_rows_that_do_not_fit_are_never_the_best() -> None:
    _, rows = planned("max_model_len=8k", model=model_of(_LLAMA_70B))

    assert best(rows) == frozenset()


@pytest.mark.parametrize(("engine", "setting"), [("sglang", "context_length"), ("trtllm", "max_seq_len")])
def test_the_longest_context_is_known_of_other_engines(engine: str, setting: str) -> None:
    plan = make_plan(engine, {"llama": LLAMA_8B}, [parse_sweep(f"{setting}=8k")], {}, gpu=CARD_32_GIB)

    [row] = plan.rows()

    longest = row.longest_context_tokens
    assert longest is not None
    assert 8000 < longest < 131072
    assert plan.row({setting: str(longest)}).outcome == "fits"
    assert plan.row({setting: str(longest + 64)}).outcome != "fits"


# --- What would fit


def test_nothing_is_suggested_where_something_fits() -> None:
    plan, rows = planned("max_model_len=8k,128k", gpu="L4")

    assert any(row.outcome == "fits" for row in rows)
    assert suggestions(plan, rows) == ()


def test_where_nothing_fits_single_changes_that_do_are_suggested() -> None:
    plan, rows = planned("max_model_len=2048", model=model_of(_LLAMA_70B), version="0.19.0")

    found = suggestions(plan, rows)

    changes = [dict(one.change) for one in found]
    assert {"tensor_parallel_size": "2"} in changes
    assert {"quantization": "awq"} in changes
    assert all(one.row.outcome == "fits" for one in found)


def test_a_context_that_is_too_long_is_shortened_to_the_longest_that_fits() -> None:
    plan, rows = planned("max_model_len=128k", gpu="L4")

    found = suggestions(plan, rows)

    assert {"max_model_len": str(rows[0].longest_context_tokens)} in [dict(one.change) for one in found]


# --- Curves


def test_lengths_double_up_to_the_models_own() -> None:
    assert doubling_lengths(8192) == (1024, 2048, 4096, 8192)
    assert doubling_lengths(10000) == (1024, 2048, 4096, 8192, 10000)
    assert doubling_lengths(512) == (512,)


def test_a_context_that_is_not_swept_is_drawn_at_doubling_lengths() -> None:
    plan, rows = planned("kv_cache_dtype=auto,fp8")

    drawn = curves(plan, rows)

    assert [dict(curve.chosen) for curve in drawn] == [{"kv_cache_dtype": "auto"}, {"kv_cache_dtype": "fp8"}]
    assert [row.context_tokens for row in drawn[0].rows] == [1024 << step for step in range(8)]
    concurrency = [row.concurrency.expected for row in drawn[0].rows if row.concurrency is not None]
    assert concurrency == sorted(concurrency, reverse=True)


def test_a_context_that_is_swept_is_drawn_where_it_was_and_impossible_rows_are_left_out() -> None:
    plan, rows = planned("max_model_len=32k,8k,200k", "tensor_parallel_size=1,2")

    drawn = curves(plan, rows)

    assert [[row.context_tokens for row in curve.rows] for curve in drawn] == [[8000, 32000]] * 2


def test_curves_need_a_gpu_and_are_few_enough_to_be_told_apart() -> None:
    with pytest.raises(FootprintError, match="--plot needs a GPU"):
        check_curves(planned("max_model_len=8k", gpu=None)[0])
    with pytest.raises(FootprintError, match=f"40 curves cannot be told apart, at most {MAX_CURVES}"):
        check_curves(
            planned("max_num_seqs=1,2,3,4,5,6,7,8,9,10", "kv_cache_dtype=auto,fp8", "quantization=auto,awq")[
                0
            ]
        )
