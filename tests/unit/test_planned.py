"""A plan as a table, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

import brimline.demo
from brimline.footprint.gpus import find_gpu
from brimline.footprint.predict import read_model
from brimline.plan import Plan, Row, make_plan, parse_sweep
from brimline.planned import as_csv, as_json, print_plan, short_count

LLAMA_8B = read_model(Path(brimline.demo.__file__).parent / "llama-3.1-8b")
SWEEPS = ("gpu=H100,L4", "max_model_len=8k,128k", "tensor_parallel_size=1,3")


def planned(*sweeps: str, gpu: str | None = None, **settings: str) -> tuple[Plan, list[Row]]:
    card = find_gpu(gpu) if gpu is not None else None
    plan = make_plan("vllm", {"llama": LLAMA_8B}, [parse_sweep(text) for text in sweeps], settings, gpu=card)
    return plan, list(plan.rows())


def printed(plan: Plan, rows: Sequence[Row], width: int = 80, *, colour: bool = False) -> str:
    console = Console(
        file=io.StringIO(),
        width=width,
        markup=False,
        highlight=False,
        force_terminal=colour,
        color_system=None,
    )
    print_plan(plan, rows, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


# --- For people


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    plan, rows = planned(*SWEEPS, "kv_cache_dtype=auto,fp8", "quantization=auto,awq")

    text = printed(plan, rows, width)

    assert max(map(len, text.splitlines())) <= width


def test_every_combination_is_one_line_of_the_table() -> None:
    plan, rows = planned(*SWEEPS, "kv_cache_dtype=auto,fp8")

    lines = printed(plan, rows).splitlines()

    assert sum(line.startswith(("H100 SXM ", "L4 ")) for line in lines) == len(rows) == 16


def test_columns_that_there_is_no_room_for_are_named() -> None:
    plan, rows = planned(*SWEEPS, "kv_cache_dtype=auto,fp8", "quantization=auto,awq")

    assert "Not shown for want of width: " in printed(plan, rows, 80)
    assert "Not shown" not in printed(plan, rows, 160)


def test_verdicts_are_words_and_say_why() -> None:
    plan, rows = planned(*SWEEPS)

    lines = printed(plan, rows).splitlines()

    assert any(line.split()[:5] == ["H100", "SXM", "8,000", "1", "yes"] for line in lines)
    assert any(line.split()[:4] == ["L4", "128,000", "1", "NO"] for line in lines)
    assert any(line.split()[:5] == ["L4", "8,000", "3", "n/a", "1"] for line in lines)
    assert any(line.startswith("n/a 1: --tensor-parallel-size 3 does not fit 8 K/V heads") for line in lines)
    assert any(line.startswith("NO: beside all else, by the high bounds") for line in lines)


def test_what_does_not_fit_is_dimmed() -> None:
    plan, rows = planned("max_model_len=8k,128k", gpu="L4")
    console = Console(
        file=io.StringIO(), width=80, force_terminal=True, color_system="standard", no_color=True
    )

    print_plan(plan, rows, console)

    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert ["\x1b[2m" in line for line in lines if "8,000" in line[:20]] == [False, True]


def test_what_is_free_is_below_zero_where_it_does_not_fit() -> None:
    plan, rows = planned("max_model_len=128k", gpu="L4")

    [line] = [line for line in printed(plan, rows).splitlines() if line.startswith("128,000")]

    assert float(line.split()[4]) < 0


def test_what_all_rows_share_is_said_once() -> None:
    plan, rows = planned("max_model_len=8k,32k", "kv_cache_dtype=fp8", gpu="H100", max_num_seqs="64")

    text = printed(plan, rows, 120)

    first = text.splitlines()[0]
    assert first.startswith("llama, H100 SXM (79.18 GiB that CUDA shows), vllm")
    assert first.endswith("max_num_seqs=64, kv_cache_dtype=fp8")
    assert text.count("fp8") == 1


def test_long_values_are_numbered_and_explained_below() -> None:
    long = '{"method":"ngram","num_speculative_tokens":4}'
    plan, rows = planned(f"speculative_config={{}},{long}", gpu="H100")

    lines = printed(plan, rows, 120).splitlines()

    assert [line.split()[0] for line in lines if " yes " in line] == ["{}", "#1"]
    assert f"speculative_config #1: {long}" in lines


def test_where_nothing_fits_it_says_what_would() -> None:
    plan, rows = planned("max_model_len=128k", gpu="L4")

    text = printed(plan, rows, 120)

    assert "Nothing fits. Each of these would:\n" in text
    assert f"  --max-model-len {rows[0].longest_context_tokens}: " in text


def test_without_a_gpu_it_says_what_is_missing() -> None:
    plan, rows = planned("max_model_len=8k")

    assert "Whether it fits is not known without --gpu or --sweep gpu=…" in printed(plan, rows)


def test_assumptions_are_printed_once() -> None:
    plan, rows = planned("max_model_len=8k,32k", gpu="H100")

    assert printed(plan, rows).count("! H100 was taken as the SXM card with 80 GB") == 1


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (None, "–"),
        (0, "0"),
        (9999, "9,999"),
        (35_808, "35.8k"),
        (452_560, "453k"),
        (999_600, "1M"),
        (2.04e6, "2.04M"),
    ],
)
def test_large_counts_are_shortened(count: float | None, shown: str) -> None:
    assert short_count(count) == shown


# --- For programs


def test_json_has_a_schema_version_and_a_row_for_each_combination() -> None:
    plan, rows = planned(*SWEEPS)

    document = json.loads(json.dumps(as_json(plan, rows)))

    assert document["schema_version"] == 1
    assert document["sweeps"] == {
        "gpu": ["H100", "L4"], "max_model_len": ["8k", "128k"], "tensor_parallel_size": ["1", "3"],
    }  # fmt: skip
    assert [row["outcome"] for row in document["rows"]] == [row.outcome for row in rows]
    first, impossible = document["rows"][:2]
    assert first["settings"] == {"max_model_len": "8k", "tensor_parallel_size": "1"}
    assert (first["gpu"], first["gpus"], first["fits"], first["context_tokens"]) == (
        "H100 SXM",
        1,
        True,
        8000,
    )
    assert first["total_bytes"]["low"] <= first["total_bytes"]["expected"] <= first["total_bytes"]["high"]
    assert (impossible["fits"], impossible["total_bytes"], impossible["gpus"]) == (False, None, None)
    assert impossible["reason"].startswith("--tensor-parallel-size 3 does not fit 8 K/V heads")


def test_what_fits_without_a_gpu_is_null() -> None:
    plan, rows = planned("max_model_len=8k")

    [row] = as_json(plan, rows)["rows"]

    assert (row["fits"], row["headroom_bytes"], row["used_ratio"]) == (None, None, None)


def test_csv_is_one_line_for_each_combination_under_names_with_units() -> None:
    plan, rows = planned(*SWEEPS, max_num_seqs="64")

    lines = list(csv.DictReader(io.StringIO(as_csv(plan, rows))))

    assert len(lines) == len(rows)
    first, impossible = lines[:2]
    assert (first["max_num_seqs"], first["max_model_len"], first["gpu"]) == ("64", "8k", "H100 SXM")
    assert (first["fits"], first["best"], impossible["fits"]) == ("true", "true", "false")
    for name, value in first.items():
        if name.endswith(("_bytes", "_tokens", "_requests")) and "concurrency" not in name:
            assert value.lstrip("-").isdigit(), name
    assert int(first["full_request_bytes"]) == 8000 * 131072
    assert impossible["headroom_low_bytes"] == ""
    assert impossible["reason"].startswith("--tensor-parallel-size 3 does not fit")


def test_names_of_numbers_in_csv_carry_their_unit() -> None:
    plan, rows = planned("max_model_len=8k", gpu="H100")
    words = {
        "model",
        "gpu",
        "engine",
        "engine_version",
        "max_model_len",
        "outcome",
        "fits",
        "best",
        "reason",
        "gpus",
    }

    [header] = list(csv.reader(io.StringIO(as_csv(plan, rows))))[:1]

    units = ("_bytes", "_tokens", "_requests", "_ratio", "_tokens_per_second")
    assert [name for name in header if name not in words and not name.endswith(units)] == []
