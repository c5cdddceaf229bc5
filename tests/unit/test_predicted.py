"""What people see of a prediction."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest

import brimline.demo
from brimline.footprint.alternatives import Predicted, ask
from brimline.footprint.gpus import find_gpu
from brimline.footprint.predict import predict, read_model
from brimline.predicted import WIDTH, print_alternative, print_footprint, print_steps
from brimline.readings import Footprint
from brimline.tables import Console

LLAMA_8B = Path(brimline.demo.__file__).parent / "llama-3.1-8b"
H100 = find_gpu("H100")


def of_8b(**flags: Any) -> Footprint:
    settings = {name: str(value) for name, value in flags.items()}
    return predict("vllm", read_model(LLAMA_8B), settings, gpu=H100)


def shown(footprint: Footprint, *, steps: bool = False) -> str:
    out = StringIO()
    console = Console(file=out, width=WIDTH)
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
    assert "DOES NOT FIT" in shown(of_8b(gpu_memory_utilization=0.3))
    assert "fits; " in shown(of_8b())


def test_a_doubtful_start_comes_with_the_length_that_starts() -> None:
    footprint = of_8b(gpu_memory_utilization=0.3, max_model_len=32768)

    assert f"it may not start; --max-model-len {footprint.longest_start_tokens:,} surely" in shown(footprint)


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

    print_alternative(ask(asked, "pod"), Console(file=out, width=WIDTH))

    text = out.getvalue()
    assert "What if: Keys of distant tokens shared" in text
    assert "35.0 %" in text
    assert "with first_tokens 16, recent_tokens 4,080, shared_ratio 0.8" in text
    assert "source: arXiv 2412.02252" in text
    assert max(map(len, text.splitlines())) <= WIDTH
