"""Plans as pictures."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

import brimline.demo
from brimline.errors import FootprintError
from brimline.footprint.gpus import find_gpu
from brimline.footprint.predict import read_model
from brimline.plan import Plan, curves, make_plan, parse_sweep
from brimline.plotted import check_library, draw

LLAMA_8B = read_model(Path(brimline.demo.__file__).parent / "llama-3.1-8b")


def drawn(file: Path, *sweeps: str) -> str:
    plan: Plan = make_plan(
        "vllm", {"llama": LLAMA_8B}, [parse_sweep(text) for text in sweeps], {}, gpu=find_gpu("L4")
    )
    draw(plan, curves(plan, list(plan.rows())), file)
    return file.read_text() if file.suffix == ".svg" else ""


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_a_png_is_written(tmp_path: Path) -> None:
    drawn(tmp_path / "plan.PNG", "kv_cache_dtype=auto,fp8")

    content = (tmp_path / "plan.PNG").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) > 20_000


def test_both_panels_have_titles_and_units_and_the_legend_names_what_differs(tmp_path: Path) -> None:
    said = texts(drawn(tmp_path / "plan.svg", "kv_cache_dtype=auto,fp8", "tensor_parallel_size=1"))

    assert "Room beside all but the KV cache and one request of full length" in said
    assert "Requests of full length that the KV cache holds" in said
    assert "GiB on the fullest GPU" in said
    assert said.count("context length (tokens)") == 2
    assert [text for text in said if text.startswith("kv_cache_dtype")] == [
        "kv_cache_dtype=auto",
        "kv_cache_dtype=fp8",
    ]
    assert any("tensor_parallel_size=1" in text for text in said)


def test_lengths_double_unless_they_are_swept(tmp_path: Path) -> None:
    doubling = texts(drawn(tmp_path / "a.svg", "kv_cache_dtype=auto,fp8"))
    swept = texts(drawn(tmp_path / "b.svg", "max_model_len=8k,32K"))

    assert {"1K", "2K", "4K", "8K", "16K", "32K", "64K", "128K"} <= set(doubling)
    assert {"8,000", "32K"} <= set(swept)
    assert "16K" not in swept


def test_one_curve_needs_no_legend(tmp_path: Path) -> None:
    assert 'id="legend_1"' not in drawn(tmp_path / "one.svg")
    assert 'id="legend_1"' in drawn(tmp_path / "two.svg", "kv_cache_dtype=auto,fp8")


def test_the_same_plan_makes_the_same_file(tmp_path: Path) -> None:
    assert drawn(tmp_path / "a.svg") == drawn(tmp_path / "b.svg")


def test_weights_that_do_not_fit_at_all_are_drawn_as_what_is_lacking(tmp_path: Path) -> None:
    """No logarithm shows a cache of no tokens: the right panel stays empty, and nothing fails."""
    plan = make_plan("vllm", {"llama": LLAMA_8B}, [], {"cpu_offload_gb": "0"}, gpu=find_gpu("T4"))

    draw(plan, curves(plan, list(plan.rows())), tmp_path / "plan.svg")

    assert "does not fit" in (tmp_path / "plan.svg").read_text()


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)

    with pytest.raises(FootprintError, match=rf"{re.escape(sys.executable)} -m pip install '\.\[plot\]'"):
        check_library()
