"""`brimline plan` as a command."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import brimline.demo

MODEL = Path(brimline.demo.__file__).parent / "llama-3.1-8b"
SWEEPS = (
    "--sweep", "max_model_len=8k,32k,128k",
    "--sweep", "kv_cache_dtype=auto,fp8",
    "--sweep", "tensor_parallel_size=1,2",
)  # fmt: skip


def plan(*arguments: str | Path, columns: int = 80) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "brimline", "plan", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": str(columns)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def test_a_table_of_what_fits_is_printed_within_80_columns() -> None:
    done = plan(MODEL, "--gpu", "H100", *SWEEPS)

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(" yes " in line for line in lines) == 12
    assert sum(" yes * " in line for line in lines) == 3


def test_json_and_csv_have_the_same_rows() -> None:
    as_json = plan(MODEL, "--gpu", "H100", *SWEEPS, "--json")
    as_csv = plan(MODEL, "--gpu", "H100", *SWEEPS, "--csv")

    document = json.loads(as_json.stdout)
    lines = list(csv.DictReader(io.StringIO(as_csv.stdout)))
    assert document["schema_version"] == 1
    assert len(document["rows"]) == len(lines) == 12
    for row, line in zip(document["rows"], lines, strict=True):
        assert row["total_bytes"]["expected"] == int(line["total_expected_bytes"])
        assert row["settings"]["kv_cache_dtype"] == line["kv_cache_dtype"]


def test_several_models_at_once_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for name, layers in (("teacher", 32), ("student", 16)):
        config = json.loads((MODEL / "config.json").read_text())
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))

    done = plan(
        tmp_path / "teacher",
        tmp_path / "student",
        "--gpu",
        "L4",
        "--sweep",
        "quantization=auto,awq",
        "--json",
    )

    rows = json.loads(done.stdout)["rows"]
    assert [(row["model"], row["settings"]["quantization"]) for row in rows] == [
        ("teacher", "auto"), ("teacher", "awq"), ("student", "auto"), ("student", "awq"),
    ]  # fmt: skip
    assert rows[0]["total_bytes"]["high"] > rows[3]["total_bytes"]["low"]
    swept = plan("--sweep", f"model={tmp_path / 'teacher'},{tmp_path / 'student'}", "--gpu", "L4", "--json")
    assert [row["model"] for row in json.loads(swept.stdout)["rows"]] == ["teacher", "student"]


def test_the_settings_of_a_launch_command_hold_unless_they_are_swept() -> None:
    command = ("--", "vllm", "serve", MODEL, "-tp", "2", "--max-model-len", "4096", "--port", "8000")

    done = plan("--gpu", "L4", "--sweep", "max_model_len=8K,16K", "--json", *command)

    rows = json.loads(done.stdout)["rows"]
    assert [row["context_tokens"] for row in rows] == [8192, 16384]
    assert [row["gpus"] for row in rows] == [2, 2]


def test_other_engines_are_planned_with_their_own_settings() -> None:
    done = plan(MODEL, "--engine", "llamacpp", "--gpu", "L4", "--sweep", "ctx_size=8192,32768", "--json")

    assert [row["context_tokens"] for row in json.loads(done.stdout)["rows"]] == [8192, 32768]


def test_rows_are_sorted_where_asked_for() -> None:
    done = plan(MODEL, "--gpu", "L4", *SWEEPS, "--sort", "requests", "--json")

    fitting = [row for row in json.loads(done.stdout)["rows"] if row["fits"]]
    requests = [row["max_concurrency_requests"]["expected"] for row in fitting]
    assert requests == sorted(requests, reverse=True)
    assert [row["fits"] for row in json.loads(done.stdout)["rows"]][: len(fitting)] == [True] * len(fitting)


def test_where_nothing_fits_that_is_an_exit_status_where_asked_for() -> None:
    unfit = (MODEL, "--gpu", "L4", "--sweep", "max_model_len=128k")

    assert plan(*unfit).returncode == 0
    assert plan(*unfit, "--fail-if-unfit").returncode == 1
    assert plan(MODEL, "--gpu", "L4", "--sweep", "max_model_len=8k,128k", "--fail-if-unfit").returncode == 0
    undecided = plan(MODEL, "--sweep", "max_model_len=8k", "--fail-if-unfit")
    assert undecided.returncode == 2
    assert "name a GPU with --gpu or --sweep gpu=" in undecided.stderr


def test_a_launch_command_brings_its_file_its_version_and_its_doubts(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("tensor-parallel-size: 2\nkv-cache-dtyp: fp8\n")
    image = ("docker", "run", "vllm/vllm-openai:v0.19.0", "--model", MODEL, "--config", file)

    document = json.loads(plan("--gpu", "H100", "--sweep", "max_model_len=8k", "--json", "--", *image).stdout)

    (row,) = document["rows"]
    assert row["engine_version"] == "0.19.0"
    assert row["settings"]["tensor_parallel_size"] == "2"
    assert any("'kv_cache_dtyp' is no flag of vLLM" in text for text in row["assumptions"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no model is named"),
        (("/no/such/model", "--gpu", "H100"), "/no/such/model does not exist here"),
        ((MODEL, "--sweep", "max_modl_len=8k"), "--sweep max_modl_len: "),
        ((MODEL, "--sweep", "max_model_len"), "write a setting and its values"),
        ((MODEL, "--sweep", "max_model_len=8k,lots"), "--sweep max_model_len=lots: 'lots' is not a count"),
        ((MODEL, "--dtype", "float12"), "--dtype 'float12' is not known"),
        ((MODEL, "--sweep", "gpu=H99"), "--sweep gpu: unknown GPU 'H99'"),
        ((MODEL, "--sweep", "gpu=L4", "--gpu", "H100"), "--gpu and --sweep gpu set the same"),
        ((MODEL, "--sweep", "tp=3"), "no combination can be:\n  --tensor-parallel-size 3 does not fit"),
        ((MODEL, "--engine", "ollama"), "--engine ollama: its memory is not predicted"),
        ((MODEL, MODEL, "--sweep", f"model={MODEL}"), "models are named by arguments and by --sweep model"),
        ((MODEL, "--json", "--csv"), "--json and --csv are two forms of one answer"),
        ((MODEL, "--plot", "plan.pdf"), "--plot plan.pdf: the name ends with .png or .svg"),
        ((MODEL, "--plot", "plan.png"), "--plot needs a GPU"),
        (
            (MODEL, "--gpu", "L4", "--plot", "/no/such/folder/a.png"),
            "the folder /no/such/folder does not exist",
        ),
    ],
)
def test_mistakes_exit_2_and_name_the_flag(arguments: tuple[str | Path, ...], said: str) -> None:
    done = plan(*arguments)

    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_a_picture_is_drawn_beside_the_table(tmp_path: Path) -> None:
    picture, vector = tmp_path / "plan.png", tmp_path / "plan.svg"

    for file in (picture, vector):
        done = plan(MODEL, "--gpu", "L4", "--sweep", "kv_cache_dtype=auto,fp8", "--plot", file)
        assert done.returncode == 0, done.stderr
        assert "KV" in done.stdout

    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "kv_cache_dtype=fp8" in vector.read_text()


def test_a_picture_that_cannot_be_written_is_named() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    folder = Path("/proc/self")

    done = plan(MODEL, "--gpu", "L4", "--plot", folder / "plan.svg")

    assert done.returncode == 2
    assert "it cannot be written" in done.stderr


def test_a_thousand_combinations_take_seconds() -> None:
    """The bar is 2 s, measured by benchmarks/bench_plan.py; the machines of tests are busy."""
    begun = time.monotonic()
    done = plan(
        MODEL, "--csv",
        "--sweep", "gpu=H100,H200,L4,L40S,A100-40GB",
        "--sweep", "max_num_seqs=16,32,64,128,256",
        "--sweep", "kv_cache_dtype=auto,fp8",
        "--sweep", "tensor_parallel_size=1,2,4,8",
        "--sweep", "quantization=auto,fp8,awq,gptq,nvfp4",
    )  # fmt: skip

    assert time.monotonic() - begun < 50
    assert len(done.stdout.splitlines()) == 1001


def test_planning_imports_none_of_the_heavy_libraries_unless_it_draws() -> None:
    script = (
        "import sys; sys.argv[1:] = ['plan', sys.argv[1], '--gpu', 'H100', '--sweep', 'tp=1,2']\n"
        "from brimline.cli import cli\n"
        "try: cli()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'vllm', 'matplotlib', 'aiohttp'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, MODEL], capture_output=True, text=True, timeout=60)

    assert done.stderr.strip() == "[]"


def test_a_plan_that_takes_long_shows_its_progress_to_those_who_watch() -> None:
    """On a terminal, that is. The patience is cut to a tenth: rows for a whole second of it are many."""
    if shutil.which("script") is None:
        pytest.skip("no script(1) to make a terminal with")
    hasty = "from brimline.cli import main, planning; planning.PATIENCE_SECONDS /= 10; main()"
    sequences = ",".join(map(str, range(1, 501)))
    command = (
        f"{sys.executable} -c '{hasty}' plan {MODEL} --gpu H100 --sweep max_num_seqs={sequences} "
        "--sweep kv_cache_dtype=auto,fp8 --csv 2>&1 >/dev/null"
    )

    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )

    assert done.returncode == 0
    assert "combinations" in done.stdout
