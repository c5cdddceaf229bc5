"""`brimline calibrate` as a command: from logs, and from a simulated server with a replayed GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import brimline.demo
from brimline.demo.gpu_recording import write_recording
from brimline.footprint.calibration import parse_calibration, read_calibration
from published_logs import LOG_0_31, LOG_CPU, log_of_h100
from simulated_server import SimulatedServer, simulated_vllm

MODEL = Path(brimline.demo.__file__).parent / "llama-3.1-8b"
LOG = log_of_h100(weights=14.99, activation=4.76, non_torch=0.13, pool=51.38)


def calibrate(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "brimline", "calibrate", *map(str, arguments)]
    environ = {**os.environ, "COLUMNS": "200"}  # so that no line of a table is folded
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, env=environ)


def predict(*flags: str | Path) -> dict[str, Any]:
    """What `brimline predict` says of the demo's model on an H100."""
    command = [sys.executable, "-m", "brimline", "predict", MODEL, "--gpu", "H100", "--json", *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "vllm.log"
    path.write_text(LOG)
    return path


def test_a_log_becomes_a_file_that_predictions_take(log: Path, tmp_path: Path) -> None:
    output = tmp_path / "calib.yaml"

    done = calibrate("--log", log, "--gpu", "H100", MODEL, "-o", output)

    assert done.returncode == 0, done.stderr
    assert "sampler_bytes_factor" in done.stdout
    assert "9.4 – 9.6 – 10.3" in done.stdout
    assert done.stdout.endswith(f"written to {output}\n")
    predicted = predict("--max-model-len", "16000", "--engine-version", "0.12.0", "--calibration", output)
    pool = predicted["per_gpu"]["components"]["kv_cache"]
    # 51.38 GiB were logged; a thousandth of the card is 81 MiB.
    assert abs(pool["expected"] - 51.38 * 2**30) < 81 << 20


def test_a_file_is_not_replaced_unless_asked_for(log: Path, tmp_path: Path) -> None:
    output = tmp_path / "calib.yaml"
    output.write_text("mine\n")

    refused = calibrate("--log", log, "--gpu", "H100", "-o", output)
    kept = output.read_text()
    forced = calibrate("--log", log, "--gpu", "H100", "-o", output, "--force")

    assert (refused.returncode, kept) == (2, "mine\n")
    assert "replace it with --force" in refused.stderr
    assert forced.returncode == 0
    assert read_calibration(output).non_torch_bytes == round(0.13 * 2**30)
    assert [path.name for path in tmp_path.iterdir() if path != log] == ["calib.yaml"]


def test_the_file_goes_to_stdout_and_the_table_beside_it() -> None:
    done = calibrate("--log", "-", "--gpu", "NVIDIA H100 80GB HBM3", MODEL, stdin=LOG)

    made = parse_calibration(done.stdout)
    assert done.returncode == 0
    assert (made.gpu, made.parameters) == ("H100 SXM", 8_030_261_248)
    assert "Constants, per GPU" in done.stderr
    assert "the start-up log of vLLM 0.12.0" in done.stdout


def test_a_gpu_that_no_table_knows_is_taken_by_its_name_and_the_logs_memory() -> None:
    done = calibrate("--log", "-", "--gpu", "NVIDIA H300", "--engine-version", "0.31.0", stdin=LOG_0_31)

    made = parse_calibration(done.stdout)
    assert done.returncode == 0, done.stderr
    assert made.gpu == "NVIDIA H300"
    assert made.holds_for("vllm", "0.31.2", "nvidia h300")
    assert "'NVIDIA H300' is in no table of GPUs" in done.stderr


def test_a_file_that_cannot_be_written_exits_2(log: Path, tmp_path: Path) -> None:
    for output in (tmp_path / "no" / "calib.yaml", log / "calib.yaml"):
        done = calibrate("--log", log, "--gpu", "H100", "-o", output)

        assert done.returncode == 2
        assert f"{output} cannot be written" in done.stderr


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (LOG_CPU, "is of a server on cpu"),
        ("INFO: Started server process [1]\n", "says nothing of memory"),
        ("\x00\xff" * 1000, "says nothing of memory"),
        ("", "says nothing of memory"),
    ],
)
def test_a_log_that_tells_nothing_exits_3(log: str, said: str) -> None:
    done = calibrate("--log", "-", stdin=log)

    assert done.returncode == 3
    assert said in done.stdout
    assert "nothing could be told, so nothing is written" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give either --log FILE or --target NAME"),
        (("--log", "x", "--target", "y"), "give either --log FILE or --target NAME"),
        (("--log", "/no/such.log", "--gpu", "H100"), "/no/such.log cannot be read"),
        (("--log", "-", "--gpu", "L4", "--engine-version", "0.31.0"), "--gpu L4 has 22.49 GiB"),
        (("--target", "http://127.0.0.1:9", "--gpu", "H99"), "unknown GPU 'H99'"),
        (("--log", "-", "--gpu", "H100"), "does not say vLLM's version; give --engine-version"),
        (("--log", "-", "--gpu", "H100", "--max-num-seqs", "lots"), "--max-num-seqs: 'lots' is not a count"),
        (("--log", "-", "--gpu", "H100", "/no/such/model"), "/no/such/model does not exist here"),
        (("--log", "-", "--config", "x.yaml"), "--config is of a running server"),
        (("--target", "chat"), "--target 'chat' is no URL"),
        (("--target", "http://127.0.0.1:9", "--engine-version", "1.0"), "leave such flags to --log"),
        (("--target", "http://user@h:1"), "use basic_auth"),
    ],
)
def test_mistakes_exit_2_and_name_the_flag(arguments: tuple[str, ...], said: str) -> None:
    done = calibrate(*arguments, stdin=LOG_0_31)

    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


# --- running servers


@pytest.fixture(scope="module")
def server() -> Iterator[SimulatedServer]:
    """A simulated vLLM server."""
    with simulated_vllm("short-context") as running:
        yield running


@pytest.fixture
def config(server: SimulatedServer, tmp_path: Path) -> Path:
    """Two targets, one of them with the first of two replayed GPUs."""
    recording = tmp_path / "gpu.jsonl"
    write_recording(recording)
    first = json.loads(recording.read_text().splitlines()[0])["gpus"][0]["uuid"]
    path = tmp_path / "brimline.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "gpu": {"backend": "replay", "path": str(recording)},
                "targets": [
                    {
                        "name": "chat-a", "url": server.url, "model": str(MODEL), "gpus": [first],
                        "launch": {"max_num_seqs": 1024}, "calibration": "/no/such/old.yaml",
                    },
                    {"name": "down", "url": "http://127.0.0.1:9"},
                ],
            }
        )
    )  # fmt: skip
    return path


def test_a_running_server_tells_what_lies_beside_its_cache(config: Path, tmp_path: Path) -> None:
    output = tmp_path / "calib.yaml"

    done = calibrate("--target", "chat-a", "--config", config, "-o", output)

    made = read_calibration(output)
    assert done.returncode == 0, done.stderr
    # ceil(81,008 MiB * 0.9) less 26,030 blocks of 2 MiB.
    assert made.non_kv_bytes == 76_448_740_148 - (26_030 << 21)
    assert made.visible_bytes == 81_008 << 20
    assert made.version == "0.33.0+simulated"
    # The recording starts 0.55 GiB and some activations beyond the budget.
    assert made.context_bytes is not None
    assert 0.55 * 2**30 < made.context_bytes < 1 << 30
    assert "simulated: nothing here was measured" in output.read_text()
    assert "26,030 blocks" in done.stdout


def test_the_server_of_a_calibration_is_predicted_to_the_block(config: Path, tmp_path: Path) -> None:
    output = tmp_path / "calib.yaml"
    calibrate("--target", "chat-a", "--config", config, "-o", output)

    document = predict(
        "--engine-version", "0.33.0+simulated", "--max-model-len", "32768", "--gpu-memory-utilization", "0.9",
        "--calibration", output,
    )  # fmt: skip

    assert document["calibrated"] is True
    assert abs(document["kv_cache"]["num_blocks"] - 26_030) <= 3


def test_a_url_needs_the_launch_settings_and_the_gpu(server: SimulatedServer) -> None:
    alone = calibrate("--target", server.url)
    told = calibrate("--target", server.url, "--launch-command", "vllm serve /m", "--gpu", "H100", MODEL)

    assert alone.returncode == 3
    assert "its launch settings are not known" in alone.stdout
    assert "its GPU is not known" in alone.stdout
    assert told.returncode == 0, told.stderr
    assert parse_calibration(told.stdout).parameters == 8_030_261_248
    assert "NVML does not tell here what is used" in told.stderr


def test_a_server_that_does_not_answer_exits_1(config: Path) -> None:
    done = calibrate("--target", "down", "--config", config)

    assert done.returncode == 1
    assert "down: connection: 127.0.0.1:9 refuses connections" in done.stderr


def test_a_target_that_is_not_configured_exits_2(config: Path) -> None:
    done = calibrate("--target", "chat-z", "--config", config)

    assert done.returncode == 2
    assert "no target is named 'chat-z'; known: chat-a, down" in done.stderr
