"""Calibration files: what is written, read again and refused, and what a calibration holds for."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from brimline.errors import FootprintError
from brimline.footprint.calibration import (
    Calibration,
    format_calibration,
    parse_calibration,
    plain_settings,
    read_calibration,
    same_gpu,
    sampler_bytes_factor,
)
from brimline.footprint.constants import GIB


def gib(size: float) -> int:
    return round(size * GIB)


def test_the_samplers_factor_follows_from_the_models_sizes() -> None:
    # llm-d-benchmark: Llama-3.1-8B on H100 with 4.76 GiB; 1024 sequences and 8192 tokens by default.
    # (4.76 * 2^30 - 8192 * 4096 * 2) / (4 * 1024 * 128256) = 9.601
    factor = sampler_bytes_factor(
        gib(4.76), vocabulary=128256, max_num_seqs=1024, hidden=4096, max_num_batched_tokens=8192
    )

    assert factor == pytest.approx(9.601, abs=0.001)


def test_a_peak_below_the_hidden_states_is_refused() -> None:
    with pytest.raises(FootprintError, match="below the hidden states"):
        sampler_bytes_factor(10, vocabulary=10, max_num_seqs=1, hidden=10, max_num_batched_tokens=1)


# --- the file


def test_a_calibration_survives_its_file(tmp_path: Path) -> None:
    made = Calibration(
        engine="vllm", version="0.32", gpu="NVIDIA H100 80GB HBM3", parameters=8_030_261_248,
        settings=plain_settings({"enforce_eager": False, "max_num_seqs": 256, "dtype": "auto"}),
        visible_bytes=99, sampler_bytes_factor=9.6, cuda_graphs_bytes=1, cuda_graphs_estimate_bytes=2,
        non_torch_bytes=2, context_bytes=3, context_high_bytes=7, weights_bytes=4, activation_bytes=5,
        non_kv_bytes=20,
    )  # fmt: skip
    path = tmp_path / "calibration.yaml"
    path.write_text(format_calibration(made), encoding="utf-8")

    assert read_calibration(path) == made


def test_what_was_not_measured_is_left_out_of_the_file() -> None:
    text = format_calibration(Calibration(engine="vllm", version="0.32.0", gpu="H100"))

    assert "weights_bytes" not in text
    assert parse_calibration(text).weights_bytes is None


HEAD = "engine: vllm\nversion: '0.32.0'\ngpu: H100\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no mapping"),
        ("- 1\n", "holds no mapping"),
        ("engine: vllm\n", "version is no text"),
        (HEAD.replace("'0.32.0'", "0.32"), "version is no text; write it in quotes"),
        (HEAD.replace("'0.32.0'", "main"), "'main' is not a version"),
        (
            HEAD + "sampler: 1\n",
            "unknown key 'sampler'; did you mean 'sampler_bytes_factor'? known: engine, version",
        ),
        (HEAD + "gpu: A100\n", "c.yaml:4: the key 'gpu' stands twice"),
        (HEAD + "weights_bytes: 1.5\n", "weights_bytes is 1.5; write whole bytes"),
        (HEAD + "weights_bytes: -1\n", "weights_bytes is -1"),
        (HEAD + "weights_bytes: true\n", "weights_bytes is True"),
        (HEAD + "sampler_bytes_factor: 0\n", "sampler_bytes_factor is 0; write a number above 0"),
        (HEAD + "sampler_bytes_factor: .nan\n", "sampler_bytes_factor is nan"),
        (HEAD + "sampler_bytes_factor: '9'\n", "sampler_bytes_factor is '9'"),
        ("engine: &a vllm\nversion: *a\n", "c.yaml:2: an alias stands here"),
        (HEAD + "weights_bytes: [\n", "c.yaml:5"),
        (HEAD + "<<: {weights_bytes: 1}\n", "a key is no word"),
        ("? [1]\n: 2\n", "a key is no word"),
        (HEAD + "parameters: 7B\n", "parameters is '7B'; write a whole number"),
        (HEAD + "settings: 1\n", "settings is 1; write a mapping"),
        (HEAD + "settings: {a: [1]}\n", "settings.a is [1]; write text"),
        (HEAD + "weights_bytes: 9\nnon_kv_bytes: 8\n", "weights_bytes (9) is more than non_kv_bytes (8)"),
        (HEAD + "non_kv_bytes: 9\nvisible_bytes: 8\n", "non_kv_bytes (9) is more than visible_bytes (8)"),
        (HEAD + "context_high_bytes: 9\n", "context_high_bytes stands without context_bytes"),
        ("engine: !!python/name:os.system\n", "c.yaml:1"),
    ],
)
def test_a_file_with_a_mistake_is_refused(text: str, message: str) -> None:
    with pytest.raises(FootprintError) as refused:
        parse_calibration(text, "c.yaml")

    assert str(refused.value).startswith("c.yaml") or "is not a version" in str(refused.value)
    assert message in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FootprintError, match="cannot be read"):
        read_calibration(tmp_path / "none.yaml")


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(FootprintError, match="not a regular file"):
        read_calibration(tmp_path / "pipe")


def test_comments_stand_at_the_head_of_the_file_and_settings_read_as_people_write_them() -> None:
    made = Calibration(
        engine="vllm", version="0.32.0", gpu="H100", context_bytes=1,
        settings=plain_settings({"max_num_seqs": 256, "enforce_eager": False}),
    )  # fmt: skip

    text = format_calibration(made, ["From a log.\nOf two lines."])

    assert text.splitlines()[:3] == [
        "# Measured on one server; see `brimline calibrate`.", "# From a log.", "# Of two lines.",
    ]  # fmt: skip
    assert "  enforce_eager: false\n  max_num_seqs: 256\n" in text
    assert parse_calibration(text) == made


def test_a_file_that_is_too_large_or_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calibration.yaml"
    path.write_bytes(b"#" * 70_000)
    with pytest.raises(FootprintError, match="too large"):
        read_calibration(path)

    path.write_bytes(b"engine: \xff")
    with pytest.raises(FootprintError, match="not UTF-8"):
        read_calibration(path)


# --- what it holds for


def test_a_calibration_holds_for_its_engine_minor_version_and_gpu() -> None:
    made = Calibration(engine="vllm", version="0.32.0", gpu="H100 SXM")

    assert made.holds_for("vllm", "0.32.1", "h100 sxm")
    assert not made.holds_for("vllm", "0.33.0", "H100 SXM")
    assert not made.holds_for("sglang", "0.32.0", "H100 SXM")
    assert not made.holds_for("vllm", "0.32.0", "A100")
    assert not made.holds_for("vllm", None, "H100 SXM")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        # As people write it, and as nvidia-smi -L prints it.
        ("H100", "NVIDIA H100 80GB HBM3", True),
        ("a100-80gb", "NVIDIA A100-SXM4-80GB", True),
        ("A100", "NVIDIA A100-SXM4-40GB", False),
        ("H100", "NVIDIA H200", False),
        # Not in the table: plain text.
        ("NVIDIA RTX 6000 Ada Generation", "nvidia rtx 6000  ada generation", True),
        ("NVIDIA RTX 6000 Ada Generation", "NVIDIA RTX A6000", False),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H100 80GB HBM3", False),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", True),
    ],
)
def test_gpus_are_compared_by_what_their_names_mean(one: str, other: str, same: bool) -> None:
    assert same_gpu(one, other) is same
    assert same_gpu(other, one) is same


def test_what_a_simulated_server_said_holds_for_simulated_ones_only() -> None:
    made = Calibration(engine="vllm", version="0.33.0+simulated", gpu="H100")

    assert made.holds_for("vllm", "0.33.0+simulated", "H100")
    assert not made.holds_for("vllm", "0.33.0", "H100")


WHOLE = Calibration(
    engine="vllm", version="0.32.0", gpu="H100", parameters=8_030_261_248,
    settings=plain_settings(
        {"max_num_seqs": 256, "tensor_parallel_size": 2, "max_model_len": 8192, "kv_cache_dtype": "auto"}
    ),
    visible_bytes=100, sampler_bytes_factor=9.6, non_torch_bytes=1, context_bytes=2, cuda_graphs_bytes=3,
    cuda_graphs_estimate_bytes=4, weights_bytes=5, activation_bytes=6, non_kv_bytes=20,
)  # fmt: skip
SAME = {"max_num_seqs": "256", "tensor_parallel_size": "2", "max_model_len": "8192", "kv_cache_dtype": "auto"}


def applied(parameters: int = 8_030_261_248, **other: str) -> tuple[Calibration | None, tuple[str, ...]]:
    return WHOLE.applied(
        engine="vllm", version="0.32.0", gpu="H100", parameters=parameters, settings={**SAME, **other}
    )


def test_on_the_very_server_all_of_it_holds() -> None:
    assert applied() == (WHOLE, ())


def test_context_length_and_cache_type_leave_the_sum_as_it_is() -> None:
    assert applied(max_model_len="131072", kv_cache_dtype="fp8") == (WHOLE, ())


def test_another_batch_leaves_the_constants_and_takes_the_sums() -> None:
    left, said = applied(max_num_seqs="1024")

    assert left is not None
    assert (left.sampler_bytes_factor, left.non_torch_bytes, left.cuda_graphs_bytes) == (9.6, 1, 3)
    assert (left.weights_bytes, left.activation_bytes, left.non_kv_bytes) == (None, None, None)
    assert "a server with max_num_seqs 256 (here 1024)" in said[0]


def test_another_model_takes_the_graphs_too() -> None:
    left, said = applied(parameters=751_632_384)

    assert left is not None
    assert (left.sampler_bytes_factor, left.non_torch_bytes, left.cuda_graphs_bytes) == (9.6, 1, None)
    assert "a model of 8,030,261,248 parameters (here 751,632,384)" in said[0]


def test_another_number_of_gpus_takes_what_they_share() -> None:
    left, _ = applied(tensor_parallel_size="4")

    assert left is not None
    assert (left.sampler_bytes_factor, left.visible_bytes) == (9.6, 100)
    assert (left.non_torch_bytes, left.context_bytes, left.cuda_graphs_bytes) == (None, None, None)


def test_on_another_gpu_nothing_holds() -> None:
    left, said = WHOLE.applied(engine="vllm", version="0.32.0", gpu="A100")

    assert left is None
    assert said == ("The calibration is of vllm 0.32.0 on H100, and is not used here.",)


def test_what_a_file_does_not_say_is_no_difference() -> None:
    plain = Calibration(engine="vllm", version="0.32.0", gpu="H100", weights_bytes=5)

    assert plain.applied(
        engine="vllm", version="0.32.0", gpu="H100", parameters=1, settings={"max_num_seqs": "1"}
    ) == (plain, ())


def test_a_sum_and_the_context_leave_nothing_to_the_tables() -> None:
    summed = Calibration(engine="vllm", version="0.32.0", gpu="H100", non_kv_bytes=9, context_bytes=1)
    parts = Calibration(
        engine="vllm", version="0.32.0", gpu="H100", sampler_bytes_factor=9.6, non_torch_bytes=1,
        context_bytes=2,
    )  # fmt: skip

    assert summed.is_whole(graphs=True)
    assert not replace(summed, context_bytes=None).is_whole(graphs=True)
    assert parts.is_whole(graphs=False)
    assert not parts.is_whole(graphs=True)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text("abc_", min_size=1, max_size=8),
        st.text(max_size=8) | st.integers() | st.booleans(),
        max_size=4,
    ),
    st.integers(0, 1 << 50),
)
@example({"_": "\x85"}, 0)  # a line break to YAML, which written as it is would fold into a blank
def test_any_settings_survive_their_file(stated: dict[str, object], size: int) -> None:
    made = Calibration(
        engine="vllm", version="0.32", gpu="x", settings=plain_settings(stated), context_bytes=size
    )

    assert parse_calibration(format_calibration(made)) == made


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_a_calibration_or_refused(text: str) -> None:
    try:
        parse_calibration(text)
    except FootprintError:
        return
    pytest.fail("a calibration needs three keys")  # pragma: no cover - random text has them not
