"""Constants from published start-up logs of vLLM, and what they predict of the servers that wrote them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import brimline.demo
from brimline.errors import FootprintError
from brimline.footprint.calibrate_log import from_log, logged_model
from brimline.footprint.calibration import Calibration, format_calibration, parse_calibration
from brimline.footprint.constants import GIB
from brimline.footprint.findings import Finding, Outcome
from brimline.footprint.gpus import Gpu, find_gpu
from brimline.footprint.hf_config import architecture_of_config
from brimline.footprint.predict import Model, predict, read_model
from brimline.footprint.startup_log import read_startup_log
from published_logs import (
    LOG_0_6_5,
    LOG_0_8,
    LOG_0_10,
    LOG_0_22,
    LOG_0_31,
    LOG_0_32_DEBUG,
    LOG_0_33_DEBUG,
    LOG_CPU,
    log_of_h100,
)

H100, A100 = find_gpu("H100"), find_gpu("A100")
LLAMA_8B = read_model(Path(brimline.demo.__file__).parent / "llama-3.1-8b")


def gib(size: float) -> int:
    return round(size * GIB)


def model_of(**config: Any) -> Model:
    stated = {"torch_dtype": "bfloat16", "max_position_embeddings": 40960, "head_dim": 128, **config}
    return Model(architecture_of_config(stated, "config.json"))


# The published config.json of each, as far as memory is concerned.
QWEN3_0_6B = model_of(
    model_type="qwen3", hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
    num_attention_heads=16, num_key_value_heads=8, vocab_size=151936, tie_word_embeddings=True,
)  # fmt: skip
QWEN3_32B = model_of(
    model_type="qwen3", hidden_size=5120, intermediate_size=25600, num_hidden_layers=64,
    num_attention_heads=64, num_key_value_heads=8, vocab_size=151936, tie_word_embeddings=False,
)  # fmt: skip
LLAMA_70B_FP8 = model_of(
    model_type="llama", hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
    num_attention_heads=64, num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=False,
    quantization_config={
        "quant_method": "compressed-tensors", "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
            }
        },
    },
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A published start: its model and settings, and the pool that it logged, in bytes."""

    model: Model
    log: str
    gpu: Gpu
    version: str
    pool: int
    settings: dict[str, str]

    def outcome(self) -> Outcome:
        return from_log(
            read_startup_log(self.log.splitlines()), self.gpu, model=self.model, version=self.version
        )

    def calibration(self) -> Calibration:
        made = self.outcome().calibration
        assert made is not None
        return made


# llm-d-benchmark's table, and the 0.31 log, whose 460,496 tokens are 28,781 blocks of 2 MiB.
RUNS = {
    "Llama-3.1-8B": Run(
        LLAMA_8B, log_of_h100(weights=14.99, activation=4.76, non_torch=0.13, pool=51.38), H100,
        "0.12.0", gib(51.38), {"max_model_len": "16000"},
    ),
    "Qwen3-0.6B": Run(
        QWEN3_0_6B, log_of_h100(weights=1.12, activation=5.56, non_torch=0.13, pool=64.45), H100,
        "0.12.0", gib(64.45), {"max_model_len": "16000"},
    ),
    "Qwen3-32B": Run(
        QWEN3_32B, log_of_h100(weights=61.03, activation=5.64, non_torch=0.14, pool=4.45), H100,
        "0.12.0", gib(4.45), {"max_model_len": "16000"},
    ),
    "Llama-3.3-70B-FP8": Run(
        LLAMA_70B_FP8,
        log_of_h100(weights=33.88, activation=4.84, non_torch=0.55, pool=32.0, tensor_parallel=2), H100,
        "0.12.0", gib(32.0), {"max_model_len": "16000", "tensor_parallel_size": "2"},
    ),
    "Llama-3.1-8B on A100": Run(LLAMA_8B, LOG_0_31, A100, "0.31.0", 28_781 << 21, {}),
}  # fmt: skip


def pool_of(run: Run, calibration: Calibration | None, **changed: str) -> tuple[int, int, int]:
    footprint = predict(
        "vllm", run.model, {**run.settings, **changed}, version=run.version, gpu=run.gpu,
        calibration=calibration,
    )  # fmt: skip
    pool = footprint.fullest.components["kv_cache"]
    return pool.low, pool.expected, pool.high


@pytest.mark.parametrize("name", RUNS)
def test_a_server_is_met_again_within_a_thousandth_of_its_card(name: str) -> None:
    run = RUNS[name]

    low, expected, high = pool_of(run, run.calibration())

    print(f"{name}: {expected / GIB:.3f} GiB, logged {run.pool / GIB:.3f}")
    assert abs(expected - run.pool) <= 0.001 * run.gpu.memory_bytes
    assert low <= run.pool <= high
    # Without it the bounds are gigabytes wide.
    without = pool_of(run, None)
    assert high - low < 0.1 * (without[2] - without[0])


@pytest.mark.parametrize("name", RUNS)
def test_the_file_says_what_the_calibration_says(name: str) -> None:
    made = RUNS[name].calibration()

    assert parse_calibration(format_calibration(made)) == made


@pytest.mark.parametrize("learnt", ["Llama-3.1-8B", "Qwen3-0.6B", "Qwen3-32B"])
@pytest.mark.parametrize("asked", ["Llama-3.1-8B", "Qwen3-0.6B", "Qwen3-32B"])
def test_constants_of_one_model_predict_another(learnt: str, asked: str) -> None:
    """Judged against the card, as the pool is what is left of large terms."""
    run = RUNS[asked]

    _, expected, _ = pool_of(run, RUNS[learnt].calibration())

    assert abs(expected - run.pool) <= 0.005 * run.gpu.memory_bytes


def test_another_context_length_leaves_the_pool_and_widens_its_bounds() -> None:
    run = RUNS["Llama-3.1-8B"]
    made = run.calibration()

    same, longer = pool_of(run, made), pool_of(run, made, max_model_len="131072")

    assert longer[1] == same[1]
    # A block table of 1024 requests and (131072 - 16000) / 16 blocks of 4 bytes is 28 MiB larger.
    assert 28 << 20 <= same[0] - longer[0] <= 32 << 20


def test_another_batch_uses_the_factor_and_not_the_sum() -> None:
    run = RUNS["Llama-3.1-8B"]

    _, expected, _ = pool_of(run, run.calibration(), max_num_seqs="256")

    # 9.6 * 4 * (1024 - 256) * 128256 bytes less of logits, unless the forward pass is the peak then.
    assert 2 * GIB < expected - run.pool < 9.7 * 4 * 768 * 128256


def test_the_factor_is_what_remains_of_the_peak_beside_the_hidden_states() -> None:
    """(4.76 * 2^30 - 8192 * 4096 * 2) / (4 * 1024 * 128256) = 9.601."""
    assert RUNS["Llama-3.1-8B"].calibration().sampler_bytes_factor == pytest.approx(9.601, abs=0.002)


def findings(outcome: Outcome) -> dict[str, Finding]:
    return {finding.name: finding for finding in outcome.findings}


def of(log: str, gpu: Gpu = H100, **options: Any) -> Outcome:
    return from_log(read_startup_log(log.splitlines()), gpu, **options)


def test_what_the_log_prints_is_written_as_it_is() -> None:
    made = RUNS["Llama-3.1-8B"].calibration()

    assert (made.engine, made.version, made.gpu) == ("vllm", "0.12.0", "H100 SXM")
    assert made.parameters == 8_030_261_248
    assert (made.setting("max_num_seqs"), made.setting("max_num_batched_tokens")) == ("1024", "8192")
    assert (made.weights_bytes, made.activation_bytes) == (gib(14.99), gib(4.76))
    assert (made.non_torch_bytes, made.cuda_graphs_bytes) == (gib(0.13), gib(0.39))
    assert made.context_bytes == gib(79.18) - gib(78.57)
    assert made.visible_bytes == gib(79.18)


def test_the_estimate_of_graphs_is_told_apart_where_the_log_prints_it() -> None:
    made = of(LOG_0_31 + LOG_0_32_DEBUG, A100, model=LLAMA_8B, version="0.31.0").calibration

    assert made is not None
    assert (made.cuda_graphs_bytes, made.cuda_graphs_estimate_bytes) == (gib(0.23), gib(0.36))
    assert made.activation_bytes == gib(1.44) - gib(0.36)
    # ((1.44 - 0.36) * 2^30 - 2048 * 4096 * 2) / (4 * 256 * 128256)
    assert made.sampler_bytes_factor == pytest.approx(8.70, abs=0.01)


def test_where_peak_and_estimate_are_one_figure_the_factor_is_not_told() -> None:
    outcome = of(LOG_0_31, A100, model=LLAMA_8B, version="0.31.0")

    assert outcome.calibration is not None
    assert outcome.calibration.sampler_bytes_factor is None
    assert "apart from the estimate of CUDA graphs" in findings(outcome)["activation_bytes"].basis


def test_where_the_forward_pass_may_be_the_peak_the_factor_is_not_told() -> None:
    """CodeLlama-7b: 0.77 GiB, of which the forward pass explains all (llm-d-planner's report of 0.19)."""
    codellama = model_of(
        model_type="llama", hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=32, vocab_size=32016, tie_word_embeddings=False,
    )  # fmt: skip
    log = log_of_h100(weights=12.55, activation=0.77, non_torch=0.24, pool=57.7).replace("0.12.0", "0.19.0")

    outcome = of(log, model=codellama)

    assert outcome.calibration is not None
    assert outcome.calibration.sampler_bytes_factor is None
    assert outcome.calibration.activation_bytes == gib(0.77)
    assert "the forward pass" in findings(outcome)["sampler_bytes_factor"].basis


def test_without_a_model_only_what_holds_for_any_is_written() -> None:
    outcome = of(LOG_0_10)

    assert outcome.calibration is not None
    assert outcome.calibration.parameters is None
    assert outcome.calibration.non_torch_bytes == gib(0.07)
    assert (outcome.calibration.weights_bytes, outcome.calibration.non_kv_bytes) == (None, None)
    assert any("name MODEL" in note for note in outcome.notes)


def test_without_the_line_of_what_was_free_the_sum_stands_on_the_table_of_gpus() -> None:
    gemma = model_of(
        model_type="llama", hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=False,
    )  # fmt: skip
    outcome = of(LOG_0_22, find_gpu("RTX 3090"), model=gemma)

    assert outcome.calibration is not None
    assert (outcome.calibration.visible_bytes, outcome.calibration.context_bytes) == (None, None)
    # ceil(24,125 MiB * 0.9) - 4.1 GiB
    assert outcome.calibration.non_kv_bytes == pytest.approx(24_125 * 0.9 * (1 << 20) - 4.1 * GIB, abs=100)
    assert any("does not say what CUDA shows" in note for note in outcome.notes)


def test_the_default_batch_is_said_and_of_old_versions_not_guessed() -> None:
    new, old = (
        of(log_of_h100(weights=14.99, activation=4.76, non_torch=0.13, pool=51.38)),
        of(LOG_0_8, find_gpu("A10G"), model=LLAMA_8B, version="0.8.2"),
    )

    assert "max_num_seqs 1024, max_num_batched_tokens 8192: vLLM's default" in new.notes[0]
    assert "give --max-num-seqs" in findings(old)["sampler_bytes_factor"].basis


def test_flags_go_before_the_log() -> None:
    made = of(
        log_of_h100(weights=14.99, activation=4.76, non_torch=0.13, pool=51.38), model=LLAMA_8B,
        flags={"max_num_seqs": "512", "max_num_batched_tokens": "8192"},
    ).calibration  # fmt: skip

    assert made is not None
    assert made.setting("max_num_seqs") == "512"
    # Half as many logits make twice the factor.
    assert made.sampler_bytes_factor == pytest.approx(2 * 9.601, abs=0.01)


def test_a_gpu_that_others_used_tells_no_context() -> None:
    log = log_of_h100(weights=14.99, activation=4.76, non_torch=0.13, pool=51.38).replace("78.57", "60.12")

    outcome = of(log, model=LLAMA_8B)

    assert outcome.calibration is not None
    assert outcome.calibration.context_bytes is None
    assert "other processes were on the GPU" in findings(outcome)["context_bytes"].basis


def test_a_pool_set_by_hand_tells_no_sum() -> None:
    log = "non-default args: {'kv_cache_memory_bytes': 1073741824}\n" + LOG_0_10

    assert "set by hand" in findings(of(log, model=None))["non_kv_bytes"].basis


def test_pipeline_stages_tell_no_sum() -> None:
    log = log_of_h100(weights=14.99, activation=4.76, non_torch=0.55, pool=51.38, tensor_parallel=2).replace(
        "pipeline_parallel_size=1", "pipeline_parallel_size=2"
    )

    outcome = of(log)

    assert "several pipeline stages" in findings(outcome)["non_kv_bytes"].basis


def test_a_log_of_a_cpu_gets_a_clear_answer() -> None:
    outcome = of(LOG_CPU)

    assert outcome.calibration is None
    [said] = outcome.notes
    assert "of a server on cpu, which takes its cache from main memory" in said
    assert "give the log of a server on a GPU" in said


def test_a_log_without_memory_gets_a_clear_answer() -> None:
    outcome = of("INFO: Started server process [1]\nINFO: Application startup complete.\n")

    assert outcome.calibration is None
    assert "says nothing of memory; give the whole log of the server's start" in outcome.notes[0]


@pytest.mark.parametrize(
    ("log", "gpu", "options", "said"),
    [
        (LOG_0_31, A100, {}, "does not say vLLM's version; give --engine-version"),
        (LOG_0_31, H100, {"version": "main"}, "'main' is not a version"),
        (LOG_0_10, find_gpu("L4"), {}, "--gpu L4 has 22.49 GiB, but the log is of a GPU with 79.19 GiB"),
        (
            LOG_0_6_5,
            H100,
            {"version": "0.6.5", "model": QWEN3_32B},
            "those of the log 14.96 GiB; name the model",
        ),
    ],
)
def test_what_the_user_can_correct_is_said(log: str, gpu: Gpu, options: dict[str, Any], said: str) -> None:
    with pytest.raises(FootprintError, match=said):
        of(log, gpu, **options)


def test_the_model_of_the_log_is_taken_where_it_is_here(tmp_path: Path) -> None:
    line = "non-default args: {'model': '%s'}\n"

    assert logged_model(read_startup_log([line % tmp_path])) == tmp_path
    assert logged_model(read_startup_log([line % "/no/such/model"])) is None
    assert logged_model(read_startup_log([line % "meta-llama/Llama-3.1-8B"])) is None
    assert logged_model(read_startup_log([])) is None


def test_an_ordinary_log_says_what_a_detailed_one_would_add() -> None:
    """0.22 prints "Actual usage is …" at debug level only."""
    card = find_gpu("RTX 3090")
    outcome = from_log(read_startup_log(LOG_0_22.splitlines()), card, name="the log")

    (cure,) = [note for note in outcome.notes if "VLLM_LOGGING_LEVEL=DEBUG" in note]
    assert cure.startswith("The log does not tell the CUDA context, activations, library memory")


def test_a_detailed_log_tells_the_context() -> None:
    log = read_startup_log(LOG_0_33_DEBUG.splitlines())

    outcome = from_log(log, H100, version="0.33.0", name="the log")

    assert outcome.calibration is not None
    # 79.18 − 78.57 GiB
    assert outcome.calibration.context_bytes == pytest.approx(0.61 * GIB, abs=12 << 20)
    assert not any("the CUDA context" in note for note in outcome.notes)
