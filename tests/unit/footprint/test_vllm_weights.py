"""What vLLM holds beside weights, and how its kernels lay experts out, by version and GPU.

Measured sizes are of tests/measurements/*.yaml; versions are those whose sources were read.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from brimline.footprint.architecture import Architecture
from brimline.footprint.constants import GIB, MIB
from brimline.footprint.gpus import find_gpu
from brimline.footprint.predict_vllm import predict_vllm
from brimline.footprint.vllm_weights import holds_encoder_whole, vllm_buffers, vllm_rules
from brimline.footprint.weights import Sharding, weight_bytes
from brimline.readings import Footprint
from measurements import compared


def buffers(model: Architecture, version: str | None = "0.19.0", gpu: str = "H100 SXM") -> dict[str, int]:
    rules, sharding = vllm_rules(version, gpu), Sharding()
    [rank] = weight_bytes(model, rules=rules)
    held = vllm_buffers(
        model, rank, sharding=sharding, element_bytes=2, rules=rules, version=version, gpu=gpu
    )
    return {name: size.expected for name, size in held.items()}


def predicted(model: Architecture, version: str = "0.19.0", **settings: str) -> Footprint:
    return predict_vllm(model, settings, version=version, gpu=find_gpu("H100 SXM"))


def weights(footprint: Footprint) -> float:
    return footprint.fullest.components["weights"].expected / GIB


@pytest.mark.parametrize(
    ("version", "gpu", "size"),
    [
        # v1/attention/backends/mla/flashinfer_mla.py: at its import up to 0.24, when it is used since 0.25.
        ("0.12.0", "H100 SXM", 128 * MIB),
        ("0.24.0", "A100 80GB SXM", 128 * MIB),
        ("0.25.0", "H100 SXM", 0),
        (None, "", 0),
        # cutlass_mla.py, of which Hopper knows nothing.
        ("0.19.0", "B200", 256 * MIB),
        ("0.19.0", "MI300X", 0),
    ],
)
def test_mla_has_a_workspace(version: str | None, gpu: str, size: int) -> None:
    assert buffers(compared.architecture("deepseek-v2-lite"), version, gpu).get("MLA workspace", 0) == size


def test_other_attention_has_no_workspace() -> None:
    assert "MLA workspace" not in buffers(compared.architecture("llama-3.1-8b"))


@pytest.mark.parametrize(
    ("version", "model", "tensor", "measured"),
    [
        ("0.12.0", "gpt-oss-20b", 1, 13.47),
        ("0.12.0", "gpt-oss-120b", 1, 64.38),
        ("0.19.0", "gpt-oss-20b", 1, 13.64),
        ("0.19.0", "gpt-oss-20b", 2, 7.01),
        ("0.19.0", "gpt-oss-20b", 4, 3.63),
    ],
)
def test_experts_of_mxfp4_are_laid_out_as_the_version_s_kernel_wants_them(
    version: str, model: str, tensor: int, measured: float
) -> None:
    found = weights(predicted(compared.architecture(model), version, tensor_parallel_size=str(tensor)))

    assert found == pytest.approx(measured, abs=0.015)


def test_scales_that_are_of_no_use_any_more_are_deleted_since_0_25() -> None:
    """24 layers of 32 experts with 90 groups for each of 8640 outputs, one byte each."""
    before, since = (
        weight_bytes(compared.architecture("gpt-oss-20b"), rules=vllm_rules(version, "H100 SXM"))[0]
        for version in ("0.24.0", "0.25.0")
    )

    assert before.total.expected - since.total.expected == 24 * 32 * 90 * 8640


@pytest.mark.parametrize(("gpu", "size"), [("A100 80GB SXM", 13.67), ("B200", 14.13)])
def test_other_gpus_choose_other_kernels(gpu: str, size: float) -> None:
    """Marlin pads both widths to 2944 and 3072, TensorRT-LLM's kernels both to 3072 with 32-bit biases."""
    [rank] = weight_bytes(compared.architecture("gpt-oss-20b"), rules=vllm_rules("0.19.0", gpu))

    assert rank.total.expected / GIB == pytest.approx(size, abs=0.01)


def test_mistral_s_own_format_has_the_image_encoder_whole_on_every_gpu() -> None:
    """mistralai/Mistral-Small-3.1-24B-Instruct-2503 on four H100: 11.86 GiB each."""
    model = compared.architecture("mistral-small-3.1-24b")
    alone = predicted(model, tensor_parallel_size="4")
    split = predicted(model, tensor_parallel_size="4", config_format="hf")
    newer = predicted(model, "0.20.0", tensor_parallel_size="4")

    assert weights(alone) == pytest.approx(11.86, abs=0.01)
    assert weights(alone) - weights(split) == pytest.approx(0.613, abs=0.01)
    assert weights(newer) == pytest.approx(weights(split), abs=0.001)
    assert any("whole on each GPU" in said for said in alone.assumptions)
    assert not any("whole on each GPU" in said for said in split.assumptions)


def test_the_format_is_asked_for_or_found() -> None:
    model = replace(compared.architecture("mistral-small-3.1-24b"), mistral_format=False)
    text = compared.architecture("llama-3.1-8b")

    assert holds_encoder_whole(model, "mistral", "0.19.0")
    assert not holds_encoder_whole(model, None, "0.19.0")
    assert not holds_encoder_whole(replace(text, mistral_format=True), None, "0.19.0")


def test_a_model_whose_rotary_tables_are_not_known_is_said_to_have_none_counted() -> None:
    model = replace(compared.architecture("llama-3.1-8b"), rotary=None)
    known = predicted(compared.architecture("llama-3.1-8b"))

    footprint = predicted(model)

    assert "rotary tables" not in buffers(model)
    assert weights(known) - weights(footprint) == pytest.approx(0.03125, abs=1e-4)
    assert any("rotary positions are not counted" in said for said in footprint.assumptions)


def test_the_explanation_shows_what_lies_beside_the_weights() -> None:
    footprint = predicted(compared.architecture("deepseek-v2-lite"))
    assert footprint.explain is not None

    steps = {step.topic: step for step in footprint.explain()}

    assert steps["weights: rotary tables"].numbers == "163,840 × 64 × 2 B = 20.00 MiB"
    assert steps["weights: MLA workspace"].numbers.endswith("= 128.00 MiB")
    assert "weights: allocator" in steps
