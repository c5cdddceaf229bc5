"""`brimline predict` as a command."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import brimline.demo
from brimline.footprint.gpus import find_gpu

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
    assert "! vLLM 0.33 is assumed, the newest version known here" in done.stdout


def test_what_does_not_fit_is_an_exit_status_where_asked_for() -> None:
    assert predict(MODEL, "--gpu", "L4").returncode == 0
    assert predict(MODEL, "--gpu", "L4", "--fail-if-unfit").returncode == 1
    assert predict(MODEL, "--gpu", "H100", "--fail-if-unfit").returncode == 0
    # The card is large enough, its budget is not.
    refused = predict(MODEL, "--gpu", "H100", "--gpu-memory-utilization", "0.25", "--fail-if-unfit")
    assert refused.returncode == 1
    assert "WILL NOT START" in refused.stdout


def test_a_gate_without_a_gpu_decides_nothing_and_says_what_it_lacks() -> None:
    done = predict(MODEL, "--fail-if-unfit")

    assert done.returncode == 2
    assert "name the GPU with --gpu" in done.stderr


@pytest.mark.parametrize(
    "command", [("predict",), ("plan",), ("estimate", "training"), ("estimate", "index")]
)
def test_every_gpu_that_help_names_is_known(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "brimline", *command, "--help"], capture_output=True, text=True, timeout=60
    )

    text = " ".join(done.stdout.split())
    (listed,) = re.findall(r"such as (H100[^.]*)\.", text, re.IGNORECASE)
    for name in listed.split(", "):
        assert find_gpu(name).memory_bytes > 0


def test_a_described_gpu_needs_no_bandwidth_but_for_ceilings() -> None:
    without = json.loads(predict(MODEL, "--gpu-memory", "96GiB", "--json").stdout)
    with_it = json.loads(
        predict(MODEL, "--gpu-memory", "96GiB", "--gpu-bandwidth", "3.35TB/s", "--json").stdout
    )

    assert without["fits"] is True
    assert without["throughput"]["decode_ceiling"] == []
    # Llama-3.1-8B at 3.35 TB/s: 221 tokens/s
    assert round(with_it["throughput"]["decode_ceiling"][0]["tokens_per_second"]) == 221


def test_mistakes_exit_2_and_name_the_flag() -> None:
    for arguments, said in (
        ((MODEL, "--max-model-len", "lots"), "--max-model-len: 'lots' is not a count"),
        ((MODEL, "-tp", "3"), "--tensor-parallel-size 3 does not fit 8 K/V heads"),
        (("/no/such/model",), "/no/such/model does not exist here"),
        ((MODEL, "--gpu", "H99"), "unknown GPU 'H99'"),
        ((MODEL, "--gpu", "H99"), "describe it with --gpu-memory"),
        ((MODEL, "--gpu", "H100", "--gpu-bandwidth", "1TB"), "--gpu-bandwidth is of a GPU that --gpu-memory"),
        ((MODEL, "--gpu-memory", "96GiB", "--gpu-bandwidth", "fast"), "'fast' is no bandwidth"),
        ((MODEL, "--gpu-memory", "1000TB"), "--gpu-memory"),
        (("--", "python", "serve.py"), "does not start vLLM"),
        (("--", "vllm", "serve", "--gpu-memory-utilization", "0.9"), "no model is named"),
        ((MODEL, "--engine", "ollama"), "the memory of 'ollama' is not predicted; known:"),
        (("--engine", "sglang", "--", "vllm", "serve", MODEL), "the launch command starts vllm"),
        ((MODEL, "--engine", "llamacpp", "--max-num-seqs", "8"), "--max-num-seqs: no flag of llama.cpp"),
        ((MODEL, "--setting", "seed"), "--setting 'seed': write NAME=VALUE"),
        ((MODEL, "--setting", "max_modell_len=8k"), "--setting max_modell_len: the memory of vllm does not"),
        ((MODEL, "--setting", "max_modell_len=8k"), "did you mean max_model_len?"),
        (
            (MODEL, "-tp", "2", "--setting", "tensor_parallel_size=4"),
            "--tensor-parallel-size 2 and --setting tensor_parallel_size=4 contradict each other",
        ),
        ((MODEL, "-tp", "2", "--setting", "tp=4"), "--tensor-parallel-size 2 and --setting tp=4"),
        (("--", "vllm", "serve", MODEL, "-tp"), "--tensor-parallel-size needs a value"),
        (("--", "vllm", "serve", MODEL, "-tp", "--seed", "1"), "--tensor-parallel-size needs a value"),
        ((MODEL, "--what-if", "magic"), "--what-if 'magic' is not known"),
        ((MODEL, "--gpu", "H100", "--acceptance", "0.8"), "nothing is drafted"),
        ((MODEL, "--speculative-config", "{"), "--speculative-config: '{' is no JSON object"),
    ):
        done = predict(*arguments)

        assert done.returncode == 2
        assert said in done.stderr


def test_the_model_may_stand_in_the_launch_command_or_before_it() -> None:
    """A container sees its model elsewhere: then the path here is given first."""
    launch = ("vllm", "serve", "/in/the/container", "-tp", "2")

    elsewhere = predict("--json", "--", *launch)
    here = predict(MODEL, "--json", "--", *launch)
    in_one_word = predict("--json", "--", f"vllm serve {MODEL} -tp 2")

    assert elsewhere.returncode == 2
    assert "/in/the/container does not exist here" in elsewhere.stderr
    assert json.loads(here.stdout)["kv_cache"]["bytes_per_token"] == 65536
    assert in_one_word.stdout == here.stdout


def test_the_launch_command_tells_the_engine() -> None:
    launch = ("python", "-m", "sglang.launch_server", "--model-path", MODEL, "--tp", "2")

    done = predict("--gpu", "H100", "--json", "--", *launch)

    document = json.loads(done.stdout)
    assert document["engine"] == "sglang"
    assert document["tensor_parallel"] == 2


def test_the_file_of_settings_that_a_launch_command_names_is_read(tmp_path: Path) -> None:
    """vLLM 0.33, utils/argparse_utils.py: keys are flags without dashes, the command line wins."""
    file = tmp_path / "serve.yaml"
    file.write_text("max-model-len: 16384\ntensor-parallel-size: 2\nkv-cache-dtype: fp8\nport: 1\n")

    done = predict("--gpu", "H100", "--json", "--", "vllm", "serve", MODEL, "--config", file, "-tp", "4")

    document = json.loads(done.stdout)
    assert document["tensor_parallel"] == 4
    # 131,072 bytes of a token in 16 bits, half of it in fp8, on one of four GPUs
    assert document["kv_cache"]["bytes_for_one_full_request"] == 16384 * 131072 // 2 // 4


def test_the_options_file_of_trtllm_serve_wins_over_its_command_line(tmp_path: Path) -> None:
    """commands/serve.py: "Path to a YAML file that overwrites the parameters specified by trtllm-serve"."""
    file = tmp_path / "options.yaml"
    file.write_text("max_seq_len: 8192\nkv_cache_config:\n  dtype: fp8\n")
    launch = ("trtllm-serve", MODEL, "--max_seq_len", "4096", "--extra_llm_api_options", file)

    document = json.loads(predict("--gpu", "H100", "--json", "--", *launch).stdout)

    assert document["kv_cache"]["bytes_for_one_full_request"] == 8192 * 131072 // 2


def test_a_file_of_settings_that_is_elsewhere_is_said_not_to_be_known(tmp_path: Path) -> None:
    file = tmp_path / "is_not_there.yaml"

    done = predict("--gpu", "H100", "--json", "--", "vllm", "serve", MODEL, "--config", file)

    assert any("its settings are not known" in text for text in json.loads(done.stdout)["assumptions"])


def test_a_file_of_settings_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("- max-model-len\n")

    for path, said in ((file, "holds no YAML mapping"), (tmp_path, "cannot be read (Is a directory)")):
        done = predict("--gpu", "H100", "--", "vllm", "serve", MODEL, "--config", path)

        assert done.returncode == 2
        assert said in done.stderr


def test_a_misspelt_flag_of_a_launch_command_is_doubted() -> None:
    done = predict("--json", "--", "vllm", "serve", MODEL, "--max-modell-len", "8192", "--trust-remote-code")

    (doubt,) = [text for text in json.loads(done.stdout)["assumptions"] if "did you mean" in text]
    assert doubt.endswith("'max_modell_len' is no flag of vLLM known here; did you mean 'max_model_len'?")


def test_a_shell_around_the_launch_command_is_looked_into() -> None:
    plain = predict("--json", "--", "vllm", "serve", MODEL, "-tp", "2")
    in_a_shell = predict("--json", "--", "bash", "-c", f"export X=1; exec vllm serve {MODEL} -tp 2")

    assert in_a_shell.stdout == plain.stdout


def test_the_tag_of_an_image_tells_the_version() -> None:
    image = ("docker", "run", "vllm/vllm-openai:v0.19.0", "--model", "/in/the/container")

    tagged = json.loads(predict(MODEL, "--json", "--", *image).stdout)
    stated = json.loads(predict(MODEL, "--json", "--engine-version", "0.18.0", "--", *image).stdout)

    assert tagged["engine_version"] == "0.19.0"
    assert stated["engine_version"] == "0.18.0"


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (None, "vLLM 0.33 is assumed"),
        ("0.33.1", None),
        ("0.19.0", None),
        ("9.9.9", "vLLM 9.9.9 is newer than 0.33"),
        ("0.6.5", "vLLM 0.6.5 is not predicted exactly"),
    ],
)
def test_a_version_that_is_not_known_is_said(version: str | None, said: str | None) -> None:
    flags = ("--engine-version", version) if version is not None else ()

    notes = json.loads(predict(MODEL, "--json", *flags).stdout)["assumptions"]

    about = [text for text in notes if text.startswith("vLLM ")]
    assert (about == []) if said is None else about[0].startswith(said)


def test_json_in_a_launch_command_is_read() -> None:
    done = predict(
        "--gpu", "H100", "--json", "--", "vllm", "serve", MODEL, "--max-model-len", "200000",
        "--speculative-config", '{"method": "ngram", "num_speculative_tokens": 4}',
        "--hf-overrides", '{"max_position_embeddings": 262144}', "--fully-sharded-loras", "--enable-lora",
    )  # fmt: skip

    document = json.loads(done.stdout)
    assert document["kv_cache"]["bytes_for_one_full_request"] == 200_000 * 131072
    assert any("without speculation" in text for text in document["assumptions"])


def test_what_ifs_stand_apart_from_the_prediction() -> None:
    plain = predict(MODEL, "--gpu", "H100", "--json")
    asked = predict(MODEL, "--gpu", "H100", "--json", "--what-if", "cla=2", "--what-if", "pod")

    document = json.loads(asked.stdout)
    answers = document.pop("what_if")
    assert document == json.loads(plain.stdout)
    assert [answer["name"] for answer in answers] == ["cla", "pod"]


def test_each_number_is_explained_on_request() -> None:
    table = predict(MODEL, "--gpu", "H100", "--explain")
    document = json.loads(predict(MODEL, "--gpu", "H100", "--explain", "--json").stdout)

    assert "How each number came about" in table.stdout
    assert max(map(len, table.stdout.splitlines())) <= 100
    assert {"topic", "formula", "numbers", "source"} == set(document["explanation"][0])


def test_a_prediction_answers_in_less_than_0_3_seconds_of_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best of several: others on the machine slow a run down, and nothing speeds one up.

    As where it is installed, the modules are compiled once and not in each run.
    """
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path))

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert predict(MODEL, "--gpu", "H100").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert any(seconds() < 0.3 for _ in range(10))


def test_predicting_imports_none_of_the_heavy_libraries() -> None:
    script = (
        "import sys; sys.argv[1:] = ['predict', sys.argv[1], '--gpu', 'H100', '--json']\n"
        "from brimline.cli import cli\n"
        "try: cli()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'vllm', 'aiohttp', 'asyncio', 'huggingface_hub'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, MODEL], capture_output=True, text=True, timeout=60)

    assert done.stderr.strip() == "[]"


def test_a_server_on_the_cpu_is_told_without_a_gpus_table() -> None:
    done = predict("--", "VLLM_CPU_KVCACHE_SPACE=4", "vllm", "serve", MODEL, "--max-model-len", "4096")

    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0] == "No GPU memory is predicted: the server runs on the CPU."
    assert "host memory       4.00 GiB of kv_cache" in lines
    assert "--gpu" not in done.stdout
    assert "each GPU" not in done.stdout
