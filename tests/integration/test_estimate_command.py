"""`brimline estimate` as a command: what it prints, its JSON, and how it exits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import brimline.demo

MODEL = Path(brimline.demo.__file__).parent / "llama-3.1-8b"


def estimate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "brimline", "estimate", *map(str, arguments)]
    environ = {**os.environ, "COLUMNS": "200"}  # so that no line of a table is folded
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)


def document(*arguments: str | Path) -> dict[str, Any]:
    done = estimate(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert said["schema_version"] == 1
    return said


@pytest.mark.parametrize(("flag", "gigabytes"), [("--no-fp32-master", 84), ("--fp32-master", 112)])
def test_adam_trains_7b_in_84_gb_and_in_112_with_master_weights(flag: str, gigabytes: int) -> None:
    said = document("training", "--parameters", "7B", flag)

    assert said["total"]["expected"] == gigabytes * 10**9
    assert "Activations are not counted: the model's layers are not known." in said["assumptions"]


def test_people_get_gib_and_gb_with_the_formula() -> None:
    printed = estimate("training", "--parameters", "7B").stdout

    lines = {line.split("│")[1].strip(): line for line in printed.splitlines() if line.startswith("│")}
    assert "104.31" in lines["total"]
    assert "112.00" in lines["total"]
    assert "7,000,000,000 × 2 × 4 B" in lines["optimizer"]


def test_a_model_is_trained_on_a_gpu_that_it_fits_or_not() -> None:
    small = document(
        "training", MODEL, "--lora-rank", "16", "--lora-targets", "q_proj,v_proj", "--qlora", "--gpu", "L4"
    )
    large = estimate("training", MODEL, "--gpu", "H100", "--fail-if-unfit")

    assert small["fits"] is True
    # 32 layers * 16 * (4096 + 4096 + 4096 + 1024) at 2 bytes
    assert small["components"]["weights"]["expected"] == 6_815_744 * 2
    assert small["components"]["activations"]["low"] < small["components"]["activations"]["expected"]
    assert large.returncode == 1
    # 16 bytes of 8,030,261,248 parameters are 119.66 GiB before activations.
    assert "DOES NOT FIT" in large.stdout


def test_zero_3_divides_all_states_among_the_gpus() -> None:
    said = document("training", "--parameters", "7.5B", "--zero", "3", "--gpus", "64")

    # ZeRO (Rajbhandari et al. 2020), figure 1: 1.88 GB
    assert said["total"]["expected"] / 1e9 == pytest.approx(1.88, abs=0.01)


def test_all_searched_indexes_are_compared_and_said_to_lie_in_main_memory() -> None:
    printed = estimate("index", "--vectors", "100M", "--dimensions", "768").stdout
    types = document("index", "--vectors", "100M", "--dimensions", "768")["types"]

    assert list(types) == ["flat", "hnsw", "ivf", "pq", "ivf-pq"]
    assert types["flat"]["total"]["expected"] == 307_200_000_000
    # Faiss's wiki: d * 4 + M * 2 * 4 of a vector
    assert types["hnsw"]["total"]["expected"] == 10**8 * (768 * 4 + 32 * 2 * 4)
    assert "This is main memory" in printed
    assert "--lists 40,000 is taken" in printed


def test_one_index_is_told_part_by_part_and_fits_a_host_or_not() -> None:
    flags = ("index", "--vectors", "1e8", "--dimensions", "768", "--type", "hnsw", "--links", "16")

    fits = document(*flags, "--memory", "512GiB")
    not_fits = estimate(*flags, "--memory", "256GiB", "--fail-if-unfit")

    assert fits["fits"] is True
    assert fits["components"]["links"]["expected"] == 10**8 * 16 * 8
    assert fits["components"]["links"]["formula"] == "100,000,000 × 16 × 2 × 4 B"
    assert not_fits.returncode == 1


def test_an_index_on_a_gpu_takes_a_search_buffer_too() -> None:
    said = document(
        "index", "--vectors", "1B", "--dimensions", "96", "--type", "pq", "--parts", "48", "--gpu", "A100"
    )

    assert said["components"]["search_buffer"]["expected"] == 1536 << 20
    assert said["components"]["codes"]["expected"] == 48 * 10**9
    assert said["fits"] is True
    assert said["where"] == "This is the memory of one GPU (A100 80GB SXM)."


def test_a_table_is_no_index() -> None:
    said = document(
        "index", "--vectors", "10M", "--dimensions", "128", "--type", "table", "--optimizer", "adam"
    )

    assert said["total"]["expected"] == 10**7 * 128 * (4 + 8)
    assert "or in main memory" in said["where"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("training",), "give either MODEL or --parameters"),
        (("training", MODEL, "--parameters", "7B"), "give either MODEL or --parameters"),
        (("training", "--parameters", "lots"), "--parameters: 'lots' is not a count; write it as 7B"),
        (("training", "--parameters", "nan"), "--parameters: 'nan' is not a count"),
        (("training", "--parameters", "1e30"), "--parameters: '1e30' is more than 10^15"),
        (("training", "--parameters", "7B", "--fail-if-unfit"), "name the GPU with --gpu"),
        (("index", "--vectors", "1M", "--dimensions", "8", "--fail-if-unfit"), "give --memory, or --gpu"),
        (("training", "--parameters", "7B", "--gpu", "H99"), "or leave --gpu out"),
        (("training", "--parameters", "1e999"), "--parameters: '1e999' is not a count"),
        (("training", "--parameters", "7B", "--zero", "4"), "'--zero': 4 is not in the range"),
        (("training", "--parameters", "7B", "--zero", "3"), "--zero 3 divides among --gpus"),
        (
            ("training", "--parameters", "7B", "--gpus", "8", "--tensor-parallel", "3"),
            "--gpus 8 cannot be shared",
        ),
        (("training", "--parameters", "7B", "--qlora"), "--qlora is of adapters; give --lora-rank too"),
        (("training", "--parameters", "7B", "--lora-rank", "8"), "--lora-rank needs the model's layers"),
        (("training", MODEL, "--lora-rank", "8", "--lora-targets", "xyz"), "the model has no xyz"),
        (("training", MODEL, "--sequence", "long"), "--sequence: 'long' is not a count"),
        (("training", MODEL, "--dtype", "float32", "--fp32-master"), "--fp32-master is a second copy"),
        (("training", MODEL, "--optimizer", "adamx"), "'--optimizer': 'adamx' is not one of"),
        (("training", "/no/such/model"), "/no/such/model does not exist here"),
        (("training", MODEL, "--gpu", "H99"), "unknown GPU 'H99'"),
        (("index", "--dimensions", "8"), "Missing option '--vectors'"),
        (("index", "--vectors", "many", "--dimensions", "8"), "--vectors: 'many' is not a count"),
        (
            ("index", "--vectors", "1M", "--dimensions", "100", "--type", "pq"),
            "--parts is needed: 100 dimensions",
        ),
        (
            ("index", "--vectors", "1M", "--dimensions", "768", "--type", "pq", "--parts", "100"),
            "--parts 100: 768 dimensions cannot be cut",
        ),
        (
            ("index", "--vectors", "1M", "--dimensions", "8", "--memory", "big"),
            "--memory: 'big' is not a size",
        ),
        (
            ("index", "--vectors", "1M", "--dimensions", "8", "--memory", "1GiB", "--gpu", "L4"),
            "--gpu and --memory name two places",
        ),
        (("index", "--vectors", "1M", "--dimensions", "8", "--optimizer", "adam"), "give --type table too"),
    ],
)
def test_mistakes_exit_2_and_name_the_flag(arguments: tuple[str | Path, ...], said: str) -> None:
    done = estimate(*arguments)

    assert done.returncode == 2, done.stdout
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_estimating_imports_none_of_the_heavy_libraries() -> None:
    script = (
        "import sys; sys.argv[1:] = ['estimate', 'training', sys.argv[1], '--json']\n"
        "from brimline.cli import cli\n"
        "try: cli()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'vllm', 'aiohttp'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, MODEL], capture_output=True, text=True, timeout=60)

    assert done.stderr.strip() == "[]"
