"""The catalog: what is published keeps its name, its labels and its help."""

from __future__ import annotations

import math
import re

import pytest

from brimline.catalog import BY_NAME, METRICS, Family, Sums, is_exposable
from brimline.readings import (
    TARGET_REASONS,
    DeviceReading,
    EngineReading,
    GpuReading,
    Histogram,
    HostReading,
    Problem,
    RankReading,
    Snapshot,
    TargetSnapshot,
    Uuid,
)

RANK = ("target", "model", "rank")

# What dashboards, rules and scripts hold on to: names without the prefix, with their labels.
PUBLISHED: dict[str, tuple[str, ...]] = {
    "build_info": ("version", "python"),
    "target_info": (
        "target", "engine", "engine_version", "experiment", "variant", "role", "simulated",
    ),
    "model_info": ("target", "model"),
    "target_setting_info": ("target", "setting", "value"),
    "target_settings_complete": ("target",),
    "target_config_fingerprint_info": ("target", "fingerprint"),
    "target_gpu_info": ("target", "gpu", "rank"),
    "gpu_info": ("gpu", "index", "name", "driver", "memory_api"),
    "target_up": ("target",),
    "target_problem": ("target", "reason"),
    "target_errors_total": ("target", "reason"),
    "target_scrape_duration_seconds": ("target",),
    "target_last_success_timestamp_seconds": ("target",),
    "target_reading_age_seconds": ("target",),
    "target_start_time_seconds": ("target",),
    "target_config_changed_timestamp_seconds": ("target",),
    "target_config_mismatch": ("target", "setting"),
    "target_missing_quantities": ("target", "quantity"),
    "target_unparsed_lines_total": ("target",),
    "target_dropped_series_total": ("target",),
    "target_sleeping": ("target",),
    "nvml_up": (),
    "gpu_up": ("gpu",),
    "gpu_problem": ("gpu", "reason"),
    "config_last_reload_successful": (),
    "config_last_reload_success_timestamp_seconds": (),
    "requests_running": RANK,
    "requests_waiting": RANK,
    "requests_waiting_by_reason": (*RANK, "reason"),
    "requests_finished_total": (*RANK, "reason"),
    "prompt_tokens_total": RANK,
    "generation_tokens_total": RANK,
    "preemptions_total": RANK,
    "prefix_cache_queries_tokens_total": RANK,
    "prefix_cache_hits_tokens_total": RANK,
    "spec_decode_draft_tokens_total": RANK,
    "spec_decode_accepted_tokens_total": RANK,
    "time_to_first_token_seconds": RANK,
    "inter_token_latency_seconds": RANK,
    "request_e2e_latency_seconds": RANK,
    "request_prompt_tokens": RANK,
    "request_generation_tokens": RANK,
    "kv_cache_usage_ratio": RANK,
    "kv_cache_blocks": RANK,
    "kv_cache_used_blocks": RANK,
    "kv_cache_block_tokens": RANK,
    "kv_cache_capacity_tokens": RANK,
    "kv_cache_used_tokens": RANK,
    "kv_cache_capacity_bytes": RANK,
    "kv_cache_used_bytes": RANK,
    "kv_cache_max_concurrency_requests": RANK,
    "max_model_len_tokens": RANK,
    "gpu_memory_total_bytes": ("gpu",),
    "gpu_memory_used_bytes": ("gpu",),
    "gpu_memory_free_bytes": ("gpu",),
    "gpu_memory_reserved_bytes": ("gpu",),
    "gpu_memory_used_peak_bytes": ("gpu",),
    "gpu_power_limit_watts": ("gpu",),
    "host_memory_total_bytes": (),
    "host_memory_available_bytes": (),
}  # fmt: skip


def rows(name: str, snapshot: Snapshot) -> dict[tuple[str, ...], object]:
    """The rows of a family; no two have the same labels."""
    found = list(BY_NAME[name].rows(snapshot))
    assert len({labels for labels, _ in found}) == len(found)
    return dict(found)


def snapshot(
    *targets: TargetSnapshot, gpu: GpuReading | None = None, host: HostReading | None = None
) -> Snapshot:
    return Snapshot(time=1000.0, targets=targets, gpu=gpu or GpuReading(), host=host or HostReading())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_name_keeps_its_labels(name: str) -> None:
    assert BY_NAME[name].labels == PUBLISHED[name]
    assert BY_NAME[name].full_name == f"brimline_{name}"


def test_no_name_stands_twice() -> None:
    names = [family.name for family in METRICS]

    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("family", METRICS, ids=lambda family: family.name)
def test_help_ends_with_when_the_series_is_absent(family: Family) -> None:
    text = family.help
    last_sentence = re.split(r"[.;] ", text)[-1]

    assert re.match(
        r"(Never absent|never absent|Absent (while|where|until|before|with|without|as) )", last_sentence
    )
    assert text.endswith(".")
    assert "\n" not in text


@pytest.mark.parametrize("family", METRICS, ids=lambda family: family.name)
def test_names_are_in_base_units(family: Family) -> None:
    words = family.name.split("_")

    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", family.name)
    assert not {"ms", "us", "kb", "mb", "gb", "kib", "mib", "gib", "percent", "perc", "minutes"} & set(words)
    assert (family.kind == "counter") == (words[-1] == "total")
    if family.kind == "histogram":
        assert words[-1] in ("seconds", "tokens")
    if "memory" in words or "duration" in words or "time" in words or "timestamp" in words:
        assert words[-1] in ("bytes", "seconds")


@pytest.mark.parametrize("family", METRICS, ids=lambda family: family.name)
def test_labels_are_plain_names(family: Family) -> None:
    labels = family.labels

    assert len(set(labels)) == len(labels)
    assert all(re.fullmatch(r"[a-z][a-z_]*", label) for label in labels)
    assert not {"le", "quantile", "job", "instance"} & set(labels)


# --- rows


def test_every_number_of_a_rank_has_its_family() -> None:
    others = ("model", "rank", "kv_cache_bytes_computed", "stated_for_all")
    numbers = [name for name in RankReading.__struct_fields__ if name not in others]

    assert [name for name in numbers if name not in BY_NAME] == []


def test_a_target_that_cannot_be_read_still_has_its_health() -> None:
    down = snapshot(
        TargetSnapshot(name="a", url="http://h", up=False, problems=(Problem("timeout", "slow"),))
    )

    assert rows("target_up", down) == {("a",): 0.0}
    assert rows("target_problem", down) == {("a", "timeout"): 1.0}
    assert rows("target_info", down) == {("a", "", "", "", "", "", ""): 1.0}
    assert rows("target_reading_age_seconds", down) == {}
    assert rows("requests_running", down) == {}
    assert rows("model_info", down) == {}


def test_a_problem_met_twice_is_one_row() -> None:
    target = TargetSnapshot(
        name="a", url="u", problems=(Problem("config_endpoint", "x"), Problem("config_endpoint", "y"))
    )

    assert rows("target_problem", snapshot(target)) == {("a", "config_endpoint"): 1.0}


def test_a_target_has_one_info_row_however_many_models_it_serves() -> None:
    reading = EngineReading(
        engine="vllm",
        engine_version="0.32.0",
        simulated=True,
        ranks=(RankReading(model="a"), RankReading(model="a", rank="1"), RankReading(model="b")),
    )
    target = TargetSnapshot(
        name="t", url="u", up=True, reading=reading, experiment="e", variant="v", role="candidate"
    )

    assert rows("target_info", snapshot(target)) == {
        ("t", "vllm", "0.32.0", "e", "v", "candidate", "true"): 1.0
    }
    assert rows("model_info", snapshot(target)) == {("t", "a"): 1.0, ("t", "b"): 1.0}


def test_ranks_are_apart_and_never_combined_under_one_name() -> None:
    reading = EngineReading(
        engine="vllm",
        ranks=(
            RankReading(model="m", rank="0", kv_cache_usage_ratio=0.5, requests_finished_total={"stop": 2}),
            RankReading(model="m", rank="1", kv_cache_usage_ratio=0.0),
        ),
    )
    shown = snapshot(TargetSnapshot(name="t", url="u", up=True, reading=reading))

    assert rows("kv_cache_usage_ratio", shown) == {("t", "m", "0"): 0.5, ("t", "m", "1"): 0.0}
    assert rows("requests_finished_total", shown) == {("t", "m", "0", "stop"): 2}
    assert rows("kv_cache_blocks", shown) == {}


def test_the_errors_of_a_target_start_at_zero_for_every_reason() -> None:
    target = TargetSnapshot(name="a", url="u", errors=dict.fromkeys(TARGET_REASONS, 0))

    assert rows("target_errors_total", snapshot(target)) == {("a", reason): 0.0 for reason in TARGET_REASONS}


@pytest.mark.parametrize(
    ("histograms", "expected"),
    [
        ("none", {}),
        ("sums", {("t", "m", "0"): Sums(9.5, 4.0)}),
        ("full", {("t", "m", "0"): Histogram(((1.0, 1.0), (math.inf, 4.0)), 9.5, 4.0)}),
    ],
)
def test_a_target_says_how_much_of_its_histograms_is_passed_on(
    histograms: str, expected: dict[tuple[str, ...], object]
) -> None:
    rank = RankReading(model="m", request_prompt_tokens=Histogram(((1.0, 1.0), (math.inf, 4.0)), 9.5, 4.0))
    reading = EngineReading(engine="vllm", ranks=(rank,))
    target = TargetSnapshot(name="t", url="u", up=True, reading=reading, histograms=histograms)

    assert rows("request_prompt_tokens", snapshot(target)) == expected


def test_a_histogram_without_buckets_is_passed_on_as_sums() -> None:
    reading = EngineReading(
        engine="vllm", ranks=(RankReading(model="m", request_prompt_tokens=Histogram((), 9.5, 4.0)),)
    )
    target = TargetSnapshot(name="t", url="u", up=True, reading=reading, histograms="full")

    assert rows("request_prompt_tokens", snapshot(target)) == {("t", "m", "0"): Sums(9.5, 4.0)}


def test_a_gpu_that_cannot_be_read_is_down_and_has_no_memory() -> None:
    gpu = GpuReading(
        up=True,
        devices=(
            DeviceReading(uuid=Uuid("GPU-a"), index="0", used_bytes=5, total_bytes=9, memory_api="v2"),
            DeviceReading(uuid=Uuid("GPU-b"), index="1", problem="gpu_lost"),
        ),
    )

    assert rows("gpu_up", snapshot(gpu=gpu)) == {("GPU-a",): 1.0, ("GPU-b",): 0.0}
    assert rows("gpu_problem", snapshot(gpu=gpu)) == {("GPU-b", "gpu_lost"): 1.0}
    assert rows("gpu_memory_used_bytes", snapshot(gpu=gpu)) == {("GPU-a",): 5.0}
    assert rows("gpu_memory_free_bytes", snapshot(gpu=gpu)) == {}
    assert rows("gpu_info", snapshot(gpu=gpu)) == {
        ("GPU-a", "0", "", "", "v2"): 1.0,
        ("GPU-b", "1", "", "", "none"): 1.0,
    }


@pytest.mark.parametrize(
    ("gpu", "up", "problem"),
    [
        (GpuReading(up=None), {}, {}),
        (GpuReading(up=True), {(): 1.0}, {}),
        (GpuReading(up=False, problem="no_gpus"), {(): 0.0}, {("no_gpus",): 1.0}),
    ],
)
def test_nvml_is_up_down_or_not_asked(
    gpu: GpuReading, up: dict[tuple[str, ...], object], problem: dict[tuple[str, ...], object]
) -> None:
    assert rows("nvml_up", snapshot(gpu=gpu)) == up
    assert rows("nvml_problem", snapshot(gpu=gpu)) == problem


def test_zero_is_a_reading_and_none_is_none() -> None:
    assert rows("host_memory_available_bytes", snapshot(host=HostReading(8192, 0))) == {(): 0.0}
    assert rows("host_memory_available_bytes", snapshot(host=HostReading(8192, None))) == {}


@pytest.mark.parametrize(
    ("value", "exposable"),
    [
        (0.0, True),
        (math.inf, True),
        (math.nan, False),
        (Sums(1.0, 1.0), True),
        (Sums(math.nan, 1.0), False),
        (Histogram((), 1.0, math.nan), False),
    ],
)
def test_nan_is_never_exposed(value: float | Sums | Histogram, exposable: bool) -> None:
    assert is_exposable(value) is exposable
