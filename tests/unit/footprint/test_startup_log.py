"""The lines of vLLM's logs that tell of memory, as its versions wrote them."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brimline.footprint.constants import GIB
from brimline.footprint.startup_log import StartupLog, read_startup_log
from published_logs import (
    LOG_0_6_5,
    LOG_0_8,
    LOG_0_10,
    LOG_0_22,
    LOG_0_31,
    LOG_0_32_DEBUG,
    LOG_0_33_DEBUG,
    LOG_2026_08,
    LOG_CPU,
)


def gib(size: float) -> int:
    return round(size * GIB)


def read(text: str) -> StartupLog:
    return read_startup_log(text.splitlines())


def memory(log: StartupLog) -> StartupLog:
    """The log without what is no figure of memory."""
    return replace(log, settings={}, device=None)


def test_the_table_of_0_6_5_is_read() -> None:
    assert memory(read(LOG_0_6_5)) == StartupLog(
        weights_bytes=gib(14.96), non_torch_bytes=gib(1.79), peak_activation_bytes=gib(1.26),
        kv_cache_bytes=gib(53.29), visible_bytes=gib(79.22), gpu_memory_utilization=0.9,
    )  # fmt: skip


def test_the_sentence_of_0_8_is_read() -> None:
    assert memory(read(LOG_0_8)) == StartupLog(
        weights_bytes=gib(14.99), non_torch_bytes=gib(0.05), peak_activation_bytes=gib(0.22),
        kv_cache_bytes=gib(4.60), visible_bytes=gib(22.07), gpu_memory_utilization=0.9,
    )  # fmt: skip


def test_what_was_requested_of_a_gpu_tells_how_large_it_is() -> None:
    """At debug level: 71.26 GiB are 0.9 of 79.18, of which 78.57 were free."""
    log = read(LOG_0_33_DEBUG)

    assert log.free_bytes == gib(78.57)
    assert log.gpu_memory_utilization == 0.9
    assert log.gpu_bytes == pytest.approx(gib(79.18), abs=log.gpu_error_bytes)
    assert log.context_bytes == pytest.approx(gib(0.61), abs=2 * log.gpu_error_bytes)
    assert log.visible_bytes is None


def test_the_lines_of_0_10_are_read() -> None:
    assert memory(read(LOG_0_10)) == StartupLog(
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
    assert memory(read(LOG_0_31)) == StartupLog(
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


# --- settings, version and device


def test_flags_stand_in_the_non_default_arguments_and_in_the_engines_own_line() -> None:
    log = read(LOG_0_22)

    assert log.version == "0.22.1"
    assert log.device == "cuda"
    assert log.settings == {
        "data_parallel_size": "1", "dtype": "bfloat16", "enable_prefix_caching": "true",
        "enforce_eager": "false", "gpu_memory_utilization": "0.9", "kv_cache_dtype": "auto",
        "max_model_len": "32768", "model": "google/gemma-4-E4B-it", "pipeline_parallel_size": "1",
        "tensor_parallel_size": "1",
    }  # fmt: skip
    assert log.gpu_memory_utilization == 0.9


def test_flags_of_the_oldest_logs_stand_in_a_namespace() -> None:
    log = read(
        "INFO 11-20 10:00:00 api_server.py:585] args: Namespace(host=None, api_key='s3cret', model='m', "
        "max_model_len=None, max_num_batched_tokens=None, max_num_seqs=256, enforce_eager=True, "
        "cpu_offload_gb=4.0)\n"
    )

    assert log.settings == {
        "cpu_offload_gb": "4.0", "enforce_eager": "true", "max_num_seqs": "256", "model": "m",
    }  # fmt: skip


def test_flags_of_a_draft_model_are_not_the_servers() -> None:
    log = read(
        "INFO [api_utils.py:286] non-default args: {'speculative_config': {'model': 'draft', "
        "'max_model_len': 512, 'nested': {'quantization': 'fp8'}}, 'model': 'target', 'max_num_seqs': 8}\n"
    )

    assert log.settings == {"max_num_seqs": "8", "model": "target"}


def test_the_chunked_prefill_line_tells_the_batched_tokens() -> None:
    log = read("INFO [scheduler.py:239] Chunked prefill is enabled with max_num_batched_tokens=65536.")

    assert log.settings == {"max_num_batched_tokens": "65536"}


def test_a_version_of_something_else_is_not_vllms() -> None:
    assert read("INFO CUDA runtime version 12.8 and NCCL version 2.27.5").version is None
    assert read("INFO [api_server.py:1289] vLLM API server version 0.9.2").version == "0.9.2"


def test_a_log_of_a_cpu_says_so_and_tells_no_memory_of_a_gpu() -> None:
    log = read(LOG_CPU)

    assert (log.device, log.version) == ("cpu", "0.32.0")
    assert not log.says_memory
    assert log.settings["max_num_seqs"] == "16"


def test_of_several_starts_the_last_counts() -> None:
    log = read(LOG_0_10 + LOG_0_22)

    assert (log.version, log.weights_bytes, log.kv_cache_bytes) == ("0.22.1", gib(15.18), gib(4.1))
    assert log.free_bytes is None


def test_a_start_that_failed_does_not_hide_the_one_before() -> None:
    failed = LOG_0_22[: LOG_0_22.index("(EngineCore pid=111) INFO 06-07 08:56:43")]

    log = read(LOG_0_10 + failed)

    assert (log.version, log.weights_bytes) == ("0.10.2", gib(14.08))


def test_a_start_that_failed_is_read_where_there_is_no_other() -> None:
    failed = LOG_0_22[: LOG_0_22.index("(EngineCore pid=111) INFO 06-07 08:56:43")]

    assert read(failed).weights_bytes == gib(15.18)


def test_without_graphs_the_newest_peak_is_the_activations_alone() -> None:
    eager = "INFO [core.py:1] Initializing a V1 LLM engine (v0.31.0) with config: enforce_eager=True\n"

    assert read(LOG_0_31).activation_bytes is None
    assert read(eager + LOG_0_31).activation_bytes == gib(1.44)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=80) | st.sampled_from((LOG_0_10 + LOG_0_22).splitlines()), max_size=12))
def test_any_lines_are_read(lines: list[str]) -> None:
    assert isinstance(read_startup_log(lines), StartupLog)


@pytest.mark.parametrize("line", ["{" * 60_000, "non-default args: {" + "[{(" * 20_000, "model" * 12_000])
def test_a_line_made_to_be_slow_is_not(line: str) -> None:
    start = time.thread_time()
    read(line)

    assert time.thread_time() - start < 1.0
