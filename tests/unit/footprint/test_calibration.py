"""Calibration files, and the memory lines of vLLM's logs as its versions wrote them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brimline.errors import FootprintError
from brimline.footprint.calibration import (
    Calibration,
    StartupLog,
    calibrate,
    format_calibration,
    parse_calibration,
    read_calibration,
    read_startup_log,
    sampler_bytes_factor,
)
from brimline.footprint.constants import GIB

# Published logs, cut to the lines that speak of memory.
LOG_0_6_5 = """\
INFO 12-13 19:54:18 worker.py:243] Memory profiling results:
INFO 12-13 19:54:18 worker.py:243] duration     0.75 seconds
INFO 12-13 19:54:18 worker.py:243] total_gpu_memory     79.22GiB
INFO 12-13 19:54:18 worker.py:243] gpu_memory_utilization       0.90
INFO 12-13 19:54:18 worker.py:243] the current vLLM instance can use    71.29GiB
INFO 12-13 19:54:18 worker.py:243] model weights take   14.96GiB
INFO 12-13 19:54:18 worker.py:243] non_torch_memory     1.79GiB
INFO 12-13 19:54:18 worker.py:243] PyTorch activation peak memory       1.26GiB
INFO 12-13 19:54:18 worker.py:243] available_kv_cache_memory    53.29GiB
"""
LOG_0_8 = """\
INFO 03-25 21:32:47 model_runner.py:1116] Loading model weights took 14.9888 GB
INFO 03-25 21:32:48 worker.py:266] Memory profiling takes 0.71 seconds
INFO 03-25 21:32:48 worker.py:266] the current vLLM instance can use total_gpu_memory (22.07GiB) x \
gpu_memory_utilization (0.90) = 19.86GiB
INFO 03-25 21:32:48 worker.py:266] model weights take 14.99GiB; non_torch_memory takes 0.05GiB; PyTorch \
activation peak memory takes 0.22GiB; the rest of the memory reserved for KV Cache is 4.60GiB.
"""
LOG_0_10 = """\
(EngineCore_DP0 pid=3021) INFO 09-23 18:12:05 [core.py:76] Initializing a V1 LLM engine (v0.10.2) with \
config: x
(EngineCore_DP0 pid=3021) INFO 09-23 18:12:21 [gpu_model_runner.py:2392] Model loading took 14.0786 GiB and \
10.247948 seconds
(EngineCore_DP0 pid=3021) INFO 09-23 18:12:33 [gpu_worker.py:298] Available KV cache memory: 55.15 GiB
(EngineCore_DP0 pid=3021) INFO 09-23 18:12:34 [kv_cache_utils.py:864] GPU KV cache size: 451,744 tokens
(EngineCore_DP0 pid=3021) INFO 09-23 18:12:39 [gpu_model_runner.py:3118] Graph capturing finished in 5 secs, \
took 0.67 GiB
(EngineCore_DP0 pid=3021) INFO 09-23 18:12:39 [gpu_worker.py:391] Free memory on device (78.66/79.19 GiB) on \
startup. Desired GPU memory utilization is (0.9, 71.27 GiB). Actual usage is 14.08 GiB for weight, 1.97 \
GiB for \
peak activation, 0.07 GiB for non-torch memory, and 0.67 GiB for CUDAGraph memory. Replace \
gpu_memory_utilization config with `--kv-cache-memory=58333988249` to fit into requested memory.
"""
LOG_2026_08 = """\
(Worker_TP2_EP2 pid=4155526) INFO 08-20 17:28:08 [gpu_worker.py:793] CUDA graph pool memory: 4.13 GiB \
(actual), \
4.99 GiB (estimated), difference: 0.86 GiB (20.9%).
(Worker_TP2_EP2 pid=4155526) INFO 08-20 17:28:08 [gpu_worker.py:857] Free memory on device \
(181.84/184.31 GiB) \
on startup. Desired GPU memory utilization is (0.92, 169.56 GiB). Actual usage is 106.69 GiB for weight, \
6.31 \
GiB for peak activation, 0.95 GiB for non-torch memory, and 4.13 GiB for CUDAGraph memory.
"""
LOG_0_31 = """\
(EngineCore pid=326) INFO 10-06 17:00:11 [model_runner.py:407] Model loading took 15.0 GiB memory and \
5.42 seconds
(EngineCore pid=326) INFO 10-06 17:00:33 [kv_cache_utils.py:2464] GPU KV cache size: 460,496 tokens, Maximum \
concurrency for 131,072 tokens per request: 3.51x
(EngineCore pid=326) INFO 10-06 17:00:41 [gpu_worker.py:955] Free memory on device (78.84/79.25 GiB) on \
startup. \
Desired GPU memory utilization is (0.92, 72.91 GiB). Actual usage is 15.26 GiB for consumed memory \
(weights + \
non-torch), 1.44 GiB for peak activation, and 0.23 GiB for CUDAGraph memory.
(EngineCore pid=326) INFO 10-06 17:00:33 [gpu_worker.py:692] Available KV cache memory: 56.21 GiB
"""
LOG_0_32_DEBUG = """\
DEBUG 11-01 10:00:00 [gpu_worker.py:756] Memory profiling takes 3.20 seconds. Total non KV cache memory: \
16.7GiB; torch peak memory increase: 1.2GiB; total consumed (from mem_get_info): 15.26GiB; weights \
memory: 15.0GiB.
INFO 11-01 10:00:01 [gpu_model_runner.py:6475] Estimated CUDA graph memory: 0.36 GiB total
"""


def gib(size: float) -> int:
    return round(size * GIB)


def read(text: str) -> StartupLog:
    return read_startup_log(text.splitlines())


def test_the_table_of_0_6_5_is_read() -> None:
    assert read(LOG_0_6_5) == StartupLog(
        weights_bytes=gib(14.96), non_torch_bytes=gib(1.79), peak_activation_bytes=gib(1.26),
        kv_cache_bytes=gib(53.29), visible_bytes=gib(79.22), gpu_memory_utilization=0.9,
    )  # fmt: skip


def test_the_sentence_of_0_8_is_read() -> None:
    assert read(LOG_0_8) == StartupLog(
        weights_bytes=gib(14.99), non_torch_bytes=gib(0.05), peak_activation_bytes=gib(0.22),
        kv_cache_bytes=gib(4.60), visible_bytes=gib(22.07), gpu_memory_utilization=0.9,
    )  # fmt: skip


def test_the_lines_of_0_10_are_read() -> None:
    assert read(LOG_0_10) == StartupLog(
        version="0.10.2", weights_bytes=gib(14.08), non_torch_bytes=gib(0.07),
        peak_activation_bytes=gib(1.97), cuda_graphs_bytes=gib(0.67), kv_cache_bytes=gib(55.15),
        kv_cache_tokens=451_744, free_bytes=gib(78.66), visible_bytes=gib(79.19), gpu_memory_utilization=0.9,
    )  # fmt: skip


def test_the_lines_of_summer_2026_tell_the_estimate_of_graphs() -> None:
    log = read(LOG_2026_08)

    assert (log.cuda_graphs_bytes, log.cuda_graphs_estimate_bytes) == (gib(4.13), gib(4.99))
    # Here the peak is without the estimate: 169.56 - 106.69 - 6.31 - 0.95 - 4.99 = 50.62, as logged.
    assert log.activation_bytes == gib(6.31)


def test_the_lines_of_0_31_are_read() -> None:
    assert read(LOG_0_31) == StartupLog(
        weights_bytes=gib(15.0), consumed_bytes=gib(15.26), peak_activation_bytes=gib(1.44),
        cuda_graphs_bytes=gib(0.23), kv_cache_bytes=gib(56.21), kv_cache_tokens=460_496,
        free_bytes=gib(78.84), visible_bytes=gib(79.25), gpu_memory_utilization=0.92,
    )  # fmt: skip


def test_where_weights_and_library_memory_are_one_figure_the_rest_is_library_memory() -> None:
    assert read(LOG_0_31).in_budget_non_torch_bytes == gib(15.26) - gib(15.0)


def test_the_newest_peak_includes_the_estimate_of_graphs_and_is_told_without() -> None:
    log = read(LOG_0_31 + LOG_0_32_DEBUG)

    assert log.activation_bytes == gib(1.44) - gib(0.36)


def test_the_debug_line_of_0_32_is_read() -> None:
    log = read(LOG_0_32_DEBUG)

    assert (log.consumed_bytes, log.weights_bytes) == (gib(15.26), gib(15.0))


def test_the_fullest_rank_counts() -> None:
    log = read(
        "INFO Model loading took 10.0 GiB memory\nINFO Model loading took 11.5 GiB memory\n"
        "INFO Available KV cache memory: 6.87 GiB\nINFO Available KV cache memory: 6.50 GiB\n"
    )

    assert (log.weights_bytes, log.kv_cache_bytes) == (gib(11.5), gib(6.5))


def test_a_negative_figure_is_passed_over() -> None:
    # vLLM 0.11 to 0.13 print such for graphs at times
    log = read("INFO Graph capturing finished in 5 secs, took -0.45 GiB")

    assert log.cuda_graphs_bytes is None


def test_what_the_context_takes_is_missing_at_the_start() -> None:
    assert read(LOG_0_10).context_bytes == gib(79.19) - gib(78.66)
    assert read(LOG_0_8).context_bytes is None


def test_a_log_that_says_nothing_says_nothing() -> None:
    assert read("hello\nworld") == StartupLog()


# --- from a log to a calibration


def test_a_log_makes_a_calibration() -> None:
    made = calibrate(read(LOG_0_10), gpu="H100 SXM")

    assert made == Calibration(
        engine="vllm", version="0.10.2", gpu="H100 SXM", cuda_graphs_bytes=gib(0.67),
        non_torch_bytes=gib(0.07), context_bytes=gib(79.19) - gib(78.66), weights_bytes=gib(14.08),
    )  # fmt: skip


def test_the_samplers_factor_follows_from_the_models_sizes() -> None:
    # llm-d-benchmark: Llama-3.1-8B on H100 with 4.76 GiB; 1024 sequences and 8192 tokens by default.
    # (4.76 * 2^30 - 8192 * 4096 * 2) / (4 * 1024 * 128256) = 9.601
    factor = sampler_bytes_factor(
        gib(4.76), vocabulary=128256, max_num_seqs=1024, hidden=4096, max_num_batched_tokens=8192
    )

    assert factor == pytest.approx(9.601, abs=0.001)


def test_without_the_estimate_of_graphs_the_newest_logs_give_no_factor() -> None:
    sizes = {"vocabulary": 128256, "hidden": 4096, "max_num_seqs": 256, "max_num_batched_tokens": 2048}

    plain = calibrate(read(LOG_0_31), gpu="A100", version="0.31.0", **sizes)
    told = calibrate(read(LOG_0_31 + LOG_0_32_DEBUG), gpu="A100", version="0.31.0", **sizes)

    assert plain.sampler_bytes_factor is None
    # ((1.44 - 0.36) * 2^30 - 2048 * 4096 * 2) / (4 * 256 * 128256)
    assert told.sampler_bytes_factor == pytest.approx(8.70, abs=0.01)


def test_a_log_without_a_version_needs_one() -> None:
    with pytest.raises(FootprintError, match="does not say vLLM's version; give it"):
        calibrate(read(LOG_0_31), gpu="A100")


def test_a_log_without_memory_is_refused() -> None:
    with pytest.raises(FootprintError, match="says nothing of memory"):
        calibrate(StartupLog(), gpu="A100", version="0.31.0")


def test_a_peak_below_the_hidden_states_is_refused() -> None:
    with pytest.raises(FootprintError, match="below the hidden states"):
        sampler_bytes_factor(10, vocabulary=10, max_num_seqs=1, hidden=10, max_num_batched_tokens=1)


# --- the file


def test_a_calibration_survives_its_file(tmp_path: Path) -> None:
    made = Calibration(
        engine="vllm", version="0.32", gpu="NVIDIA H100 80GB HBM3", sampler_bytes_factor=9.6,
        cuda_graphs_bytes=1, non_torch_bytes=2, context_bytes=3, weights_bytes=4,
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
        (HEAD + "sampler: 1\n", "unknown key 'sampler'; known: engine, version"),
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


def test_a_file_that_is_too_large_or_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calibration.yaml"
    path.write_bytes(b"#" * 70_000)
    with pytest.raises(FootprintError, match="too large"):
        read_calibration(path)

    path.write_bytes(b"engine: \xff")
    with pytest.raises(FootprintError, match="not UTF-8"):
        read_calibration(path)


def test_a_calibration_holds_for_its_engine_minor_version_and_gpu() -> None:
    made = Calibration(engine="vllm", version="0.32.0", gpu="H100 SXM")

    assert made.holds_for("vllm", "0.32.1", "h100 sxm")
    assert not made.holds_for("vllm", "0.33.0", "H100 SXM")
    assert not made.holds_for("sglang", "0.32.0", "H100 SXM")
    assert not made.holds_for("vllm", "0.32.0", "A100")
    assert not made.holds_for("vllm", None, "H100 SXM")


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_a_calibration_or_refused(text: str) -> None:
    try:
        parse_calibration(text)
    except FootprintError:
        return
    pytest.fail("a calibration needs three keys")  # pragma: no cover - random text has them not


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=80) | st.sampled_from((LOG_0_10 + LOG_0_31).splitlines()), max_size=12))
def test_any_lines_are_read(lines: list[str]) -> None:
    assert isinstance(read_startup_log(lines), StartupLog)
