"""What people see of a prediction."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import brimline.demo
from brimline.footprint.alternatives import Predicted, ask
from brimline.footprint.gpus import find_gpu
from brimline.footprint.hf_config import architecture_of_config
from brimline.footprint.predict import Model, predict, read_model
from brimline.predicted import WIDTH, print_alternative, print_footprint, print_steps
from brimline.readings import Footprint

LLAMA_8B = Path(brimline.demo.__file__).parent / "llama-3.1-8b"
H100 = find_gpu("H100")


def of_8b(**flags: Any) -> Footprint:
    settings = {name: str(value) for name, value in flags.items()}
    return predict("vllm", read_model(LLAMA_8B), settings, gpu=H100)


def shown(footprint: Footprint, *, steps: bool = False) -> str:
    out = StringIO()
    console = Console(file=out, width=WIDTH, markup=False, highlight=False)
    if steps:
        print_steps(footprint, console)
    else:
        print_footprint(footprint, console, H100)
    return out.getvalue()


def test_a_table_of_components_names_the_file_and_not_its_path() -> None:
    text = shown(of_8b())

    assert "config.json" in text
    assert str(LLAMA_8B) not in text
    for component in ("weights", "kv_cache", "activations", "cuda_graphs", "runtime", "total"):
        assert component in text


@pytest.mark.parametrize("steps", [False, True])
def test_nothing_is_wider_than_the_terminal(steps: bool) -> None:
    text = shown(of_8b(), steps=steps)

    assert max(map(len, text.splitlines())) <= WIDTH


def test_what_does_not_fit_is_said_in_capitals() -> None:
    too_large = shown(of_8b(kv_cache_memory_bytes=100 << 30))

    assert "DOES NOT FIT into the 79.18 GiB that CUDA shows: --kv-cache-memory-bytes asks" in too_large
    assert "fits; " in shown(of_8b())


def test_what_the_engine_refuses_is_not_said_to_be_too_large() -> None:
    refused = shown(of_8b(gpu_memory_utilization=0.3))

    assert "WILL NOT START: the GPU would hold it" in refused
    assert "FIT" not in refused


def test_a_doubtful_start_comes_with_the_length_that_starts() -> None:
    footprint = of_8b(gpu_memory_utilization=0.3, max_model_len=32768)

    text = " ".join(shown(footprint).split())
    assert "MAY NOT START: " in text
    assert f"(at most {footprint.longest_start_tokens:,} tokens surely start)" in text


def test_host_memory_is_shown_beside_the_gpu() -> None:
    assert "host memory       4.00 GiB (4.00 GiB to 4.22 GiB) of weights, for each GPU" in shown(
        of_8b(cpu_offload_gb=4)
    )


def test_steps_stand_under_their_topic_with_their_numbers_filled_in() -> None:
    text = shown(of_8b(), steps=True)

    assert "\nweights\n  embedding         128,256 rows × 4,096 × 2 B = 1002.00 MiB" in text
    assert (
        "\nlayout\n  group 1 of 1      32 layers (0, 1, 2, 3, …), page 16 tokens × 4,096 B = 65,536 B" in text
    )
    assert "source: " in text


def test_without_steps_the_whole_sources_are_shown() -> None:
    """Other engines may give none."""
    from dataclasses import replace

    footprint = replace(of_8b(), explain=None)

    assert "vLLM 0.32, config/cache.py" not in shown(footprint)
    assert "budget less weights, non-torch memory, activations and CUDA graphs" in " ".join(
        shown(footprint, steps=True).split()
    )


def test_an_answer_is_a_table_of_its_own_with_its_parameters_and_source() -> None:
    footprint = of_8b(max_model_len=32768)
    model = read_model(LLAMA_8B)
    asked = Predicted(
        engine="vllm", model=model, settings={"max_model_len": "32768"}, footprint=footprint, gpu=H100
    )
    out = StringIO()

    print_alternative(ask(asked, "pod"), Console(file=out, width=WIDTH, markup=False, highlight=False))

    text = out.getvalue()
    assert "What if: Keys of distant tokens shared" in text
    assert "35.0 %" in text
    assert "with first_tokens 16, recent_tokens 4,080, shared_ratio 0.8" in text
    assert "source: arXiv 2412.02252" in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_a_window_says_up_to_where_a_token_costs_what() -> None:
    config = {
        "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "sliding_window": 4096,
        "max_position_embeddings": 32768, "torch_dtype": "bfloat16",
    }  # fmt: skip
    model = Model(architecture_of_config(config, "config.json"))

    text = shown(predict("vllm", model, {}, gpu=H100))

    assert "131,072 B/token on each GPU up to the window of 4,096 tokens, 0 B/token beyond" in text


def test_terms_of_a_sum_stand_in_brackets_before_they_are_multiplied() -> None:
    """Layers with and without experts are of two kinds; 16 bits go with the attention of both."""
    config = {
        "model_type": "qwen2_moe", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 4,
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 1000,
        "max_position_embeddings": 1024, "num_experts": 8, "num_experts_per_tok": 2,
        "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "mlp_only_layers": [0],
        "torch_dtype": "bfloat16",
    }  # fmt: skip
    model = Model(architecture_of_config(config, "config.json"))

    text = " ".join(shown(predict("vllm", model, {}, gpu=H100), steps=True).split())

    assert "attention (1 layers × (" in text
    assert ")) × 2 B" in text
