"""`brimline predict` as a command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import brimline.demo

MODEL = Path(brimline.demo.__file__).parent / "llama-3.1-8b"


def predict(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "brimline", "predict", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_flags_and_the_launch_command_itself_say_the_same() -> None:
    by_flags = predict(MODEL, "--gpu", "H100", "-tp", "2", "--max-model-len", "32K", "--json")
    by_command = predict(
        "--gpu", "H100", "--json", "--", "vllm", "serve", MODEL, "-tp", "2", "--max-model-len", "32K"
    )

    assert by_flags.returncode == 0, by_flags.stderr
    assert by_flags.stdout == by_command.stdout
    document = json.loads(by_flags.stdout)
    assert document["schema_version"] == 1
    assert document["kv_cache"]["bytes_per_token"] == 65536
    assert document["fits"] is True


def test_people_get_a_table_with_sources_and_assumptions() -> None:
    done = predict(MODEL, "--gpu", "H100", "--max-model-len", "32768")

    assert "weights" in done.stdout
    assert "131,072 B/token" in done.stdout
    assert "! --block-size is not given" in done.stdout


def test_what_does_not_fit_is_an_exit_status_where_asked_for() -> None:
    assert predict(MODEL, "--gpu", "L4").returncode == 0
    assert predict(MODEL, "--gpu", "L4", "--fail-if-unfit").returncode == 1


def test_mistakes_exit_2_and_name_the_flag() -> None:
    for arguments, said in (
        ((MODEL, "--max-model-len", "lots"), "--max-model-len: 'lots' is not a count"),
        ((MODEL, "-tp", "3"), "--tensor-parallel-size 3 does not fit 8 K/V heads"),
        (("/no/such/model",), "/no/such/model does not exist here"),
        ((MODEL, "--gpu", "H99"), "unknown GPU 'H99'"),
        (("--", "python", "serve.py"), "does not start vLLM"),
    ):
        done = predict(*arguments)

        assert done.returncode == 2
        assert said in done.stderr


def test_predicting_imports_none_of_the_heavy_libraries() -> None:
    script = (
        "import sys; sys.argv[1:] = ['predict', sys.argv[1], '--gpu', 'H100', '--json']\n"
        "from brimline.cli import cli\n"
        "try: cli()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'vllm', 'aiohttp'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, MODEL], capture_output=True, text=True, timeout=60)

    assert done.stderr.strip() == "[]"
