"""check, read and capture as commands: what they print and how they exit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_servers import FakeServer, answer
from prometheus_server import free_port
from simulated_server import simulated_vllm

CAPTURES = Path(__file__).parent.parent / "captures"
MODEL = Path(__file__).parent.parent.parent / "exporter/brimline/demo/llama-3.1-8b"


def brimline(
    *arguments: str | Path, stdin: bytes = b"", columns: int = 200
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "brimline", *map(str, arguments)]
    environ = {**os.environ, "COLUMNS": str(columns)}  # so many that no line of a table is folded
    return subprocess.run(command, input=stdin, capture_output=True, timeout=60, env=environ)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A simulated vLLM server."""
    with simulated_vllm("short-context") as running:
        yield running.url


def test_check_prints_what_it_understood_and_exits_0(server: str, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"gpu: {{backend: none}}\ntargets: [{{name: chat, url: '{server}', launch: {{}}}}]\n")

    done = brimline("check", "--config", config)

    printed = done.stdout.decode()
    assert done.returncode == 0, done.stderr
    assert "vllm 0.33.0+simulated" in printed
    assert "32,768 tokens" in printed
    assert "416,480 tokens" in printed
    assert "131,072 B/token" in printed
    assert "chat: predicted beside observed" in printed
    assert re.search(r"weights +│ +14\.99 GiB", printed)
    assert "simulated: nothing here was measured" in printed


def test_check_exits_1_where_a_server_cannot_be_read(server: str, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        f"gpu: {{backend: none}}\ntargets: [{{name: a, url: '{server}'}}, {{name: b, url: 'http://127.0.0.1:9'}}]\n"
    )

    done = brimline("check", "--config", config)

    assert done.returncode == 1
    why = b"connection: 127.0.0.1:9 refuses connections: is the server running there?"
    assert done.stdout.count(why) == 1
    assert done.stderr == b"brimline: 1 up, 1 down: b\n"  # and not the same once more


def test_a_quiet_check_prints_a_line_for_each_problem_and_nothing_else(server: str, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    good = f"gpu: {{backend: none}}\ntargets:\n- {{name: a, url: '{server}'}}\n"
    config.write_text(
        f"{good}- {{name: b, url: 'http://127.0.0.1:9'}}\n- {{name: c, url: '{server}/', model: /no/such}}\n"
    )

    done = brimline("check", "--quiet", "--config", config)

    assert done.returncode == 1
    assert done.stdout.decode().splitlines() == [
        "b: connection: 127.0.0.1:9 refuses connections: is the server running there?",
        f"c: {config}:5: model: /no/such does not exist; correct or remove model",
    ]
    assert b"brimline: 2 up, 1 down: b; 1 up with problems: c\n" in done.stderr


def test_a_quiet_check_says_nothing_where_all_is_well(server: str, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"gpu: {{backend: none}}\ntargets: [{{name: a, url: '{server}'}}]\n")

    done = brimline("check", "--quiet", "--config", config)

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_check_as_json_holds_what_was_read_and_what_was_not(server: str, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "gpu: {backend: none}\ntargets:\n"
        f"- {{name: a, url: '{server}', launch: {{kv_cache_dtype: fp8}}}}\n- {{name: b, url: 'http://127.0.0.1:9'}}\n"
    )

    done = brimline("check", "--json", "--config", config)

    document = json.loads(done.stdout)
    up, down = document["targets"]
    assert done.returncode == 1
    assert (document["schema_version"], document["well"]) == (1, False)
    assert document["gpus"] == {"up": None, "problem": None, "detail": None, "devices": []}
    assert (up["target"], up["up"], up["problems"], up["place"]) == ("a", True, [], f"{config}:3")
    assert up["mismatches"] == [{"setting": "kv_cache_dtype", "declared": "fp8", "live": "auto"}]
    assert up["reading"]["models"][0]["kv_cache_capacity_tokens"] == 416_480
    assert up["prediction"]["parameters"] == 8_030_261_248
    assert "weights" in [line["name"] for line in up["comparison"]]
    assert up["headroom_bytes"] is None
    assert (down["up"], down["reading"], down["prediction"]) == (False, None, None)
    assert down["problems"][0]["reason"] == "connection"


def test_a_check_as_json_that_finds_nothing_is_json_too() -> None:
    done = brimline("check", "--json", "--discover-ports", str(free_port()))

    assert done.returncode == 3
    assert (json.loads(done.stdout)["targets"], json.loads(done.stdout)["well"]) == ([], False)


def test_a_check_is_quiet_or_json() -> None:
    done = brimline("check", "--quiet", "--json")

    assert done.returncode == 2
    assert b"--quiet and --json both say what is printed; give one of them" in done.stderr


def test_check_doubts_targets_that_count_twice(server: str, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "gpu: {backend: none}\ntargets:\n"
        f"  - {{name: a, url: '{server}', experiment: x, variant: one, role: baseline}}\n"
        f"  - {{name: b, url: '{server}/', experiment: x, variant: two, role: baseline}}\n"
    )

    done = brimline("check", "--config", config)

    same_url, baselines = done.stderr.decode().splitlines()
    assert same_url == (
        f"brimline: {config}:4: b has the url of a: sums count that server more than once; keep one"
    )
    assert baselines == (
        f"brimline: {config}:4: experiment x has more than one baseline, the variants one, two; "
        "keep the role at one"
    )
    assert done.stdout.endswith(b"\n2 up\n")
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ("model: /no/such/model", "model: /no/such/model does not exist; correct or remove model"),
        ("launch_command: python serve.py", "launch_command: launch_command does not start vLLM"),
        ("launch: {tensor_paralel_size: 2}", "c.yaml:3: launch: 'tensor_paralel_size' is no flag of vLLM"),
        (
            "launch_command: vllm serve m --tensor-paralel-size 2",
            "c.yaml:3: launch_command: 'tensor_paralel_size' is no flag of vLLM",
        ),
    ],
)
def test_check_exits_1_for_what_cannot_be_so(server: str, declared: str, said: str, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"gpu: {{backend: none}}\ntargets:\n  - name: a\n    url: {server}\n    {declared}\n")

    done = brimline("check", "--config", config)

    printed = re.sub(r"[│\s]+", " ", done.stdout.decode())
    assert said in printed
    assert done.stderr == b"brimline: 1 up, 1 up with problems: a\n"
    assert done.returncode == 1


def test_check_shows_both_values_of_a_mismatch(server: str, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        f"gpu: {{backend: none}}\ntargets: [{{name: a, url: '{server}', launch: {{kv_cache_dtype: fp8}}}}]\n"
    )

    done = brimline("check", "--config", config)

    assert "kv_cache_dtype: declared fp8, the server says auto" in done.stdout.decode()


def test_check_exits_3_where_no_target_is_configured(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("gpu: {backend: none}\n")

    done = brimline("check", "--config", tmp_path / "c.yaml")

    assert done.returncode == 3
    assert b"names no targets; add `targets:`" in done.stderr


def test_check_exits_2_for_a_bad_configuration(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("targets:\n  - {name: a, uri: http://x}\n")

    done = brimline("check", "--config", config)

    assert done.returncode == 2
    assert f"brimline: {config}:2: unknown key 'uri' in targets[0]".encode() in done.stderr


def test_check_says_what_it_looked_for_where_nothing_is_found() -> None:
    done = brimline("check", "--discover-ports", str(free_port()))

    assert done.returncode == 3
    assert b"no inference server answers on 127.0.0.1" in done.stderr


def test_check_finds_a_server_without_a_configuration(server: str) -> None:
    done = brimline("check", "--discover-ports", server.rpartition(":")[2])

    assert b"vllm 0.33.0+simulated" in done.stdout
    assert done.returncode == 0, done.stderr


def test_capture_saves_what_read_understands(server: str, tmp_path: Path) -> None:
    saved = brimline("capture", "--target", server, "-o", tmp_path / "saved")
    read = brimline("read", tmp_path / "saved", "--json")

    assert saved.returncode == 0, saved.stderr
    [engine] = json.loads(read.stdout)["engines"]
    [model] = engine["models"]
    assert (engine["engine"], engine["engine_version"]) == ("vllm", "0.33.0+simulated")
    assert model["kv_cache_capacity_tokens"] == 416_480
    assert model["max_model_len_tokens"] == 32_768
    assert model["spec_decode_draft_tokens_total"] is None


def test_capture_does_not_write_into_a_folder_that_holds_something(server: str, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")

    done = brimline("capture", "--target", server, "-o", tmp_path)

    assert done.returncode == 2
    assert b"is not empty; name a new folder" in done.stderr


def test_capture_saves_a_page_that_is_no_engines_and_exits_3(tmp_path: Path) -> None:
    with FakeServer({"/metrics": answer(b"<html>hello</html>\n", content_type="text/html")}) as website:
        done = brimline("capture", "--target", website.url, "-o", tmp_path / "saved")

    assert done.returncode == 3
    assert b"not_an_engine: this is an HTML page, not metrics" in done.stderr
    assert (tmp_path / "saved/metrics.prom").read_bytes() == b"<html>hello</html>\n"


def test_capture_of_a_dead_server_exits_1_and_writes_nothing(tmp_path: Path) -> None:
    done = brimline("capture", "--target", "http://127.0.0.1:9", "-o", tmp_path / "saved")

    assert done.returncode == 1
    assert b"nothing to save" in done.stderr
    assert not (tmp_path / "saved").exists()


def test_capture_strips_secrets(tmp_path: Path) -> None:
    from brimline.capture import strip_document, strip_page

    document = {"api_key": "s3cret", "nested": [{"hf_token": "s3cret", "next_token": [{"n_decoded": 3}]}]}
    page = b'a{api_key="s3cret",model="m"} 1\n'

    assert strip_document(document) == {
        "api_key": "<secret>",
        "nested": [{"hf_token": "<secret>", "next_token": [{"n_decoded": 3}]}],
    }
    assert strip_page(page) == b'a{api_key="<secret>",model="m"} 1\n'


def test_read_takes_a_page_from_standard_input_and_leaves_unsaid_things_null() -> None:
    page = b'vllm:num_requests_running{model_name="m"} 3\nvllm:gpu_cache_usage_perc{model_name="m"} 0.5\n'

    done = brimline("read", "-", "--json", stdin=page)

    [model] = json.loads(done.stdout)["engines"][0]["models"]
    assert done.returncode == 0
    assert (model["model"], model["requests_running"], model["kv_cache_usage_ratio"]) == ("m", 3, 0.5)
    assert model["requests_waiting"] is None
    assert model["kv_cache_blocks"] is None


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (b"<html>hello</html>", b"this is an HTML page, not metrics"),
        (b'{"a": 1}', b"this is JSON, not metrics"),
        (b"", b"the page is empty"),
        (b"node_cpu_seconds_total 1\nnode_load1 2\n", b"node_\xe2\x80\xa6 (2)"),
    ],
)
def test_read_refuses_a_page_that_is_no_engines(page: bytes, why: bytes) -> None:
    done = brimline("read", "-", stdin=page)

    assert done.returncode == 3
    assert b"not_an_engine" in done.stderr
    assert why in done.stderr


def test_read_of_a_missing_file_exits_2(tmp_path: Path) -> None:
    done = brimline("read", tmp_path / "none.prom")

    assert done.returncode == 2
    assert b"cannot be read (No such file or directory)" in done.stderr


def test_read_prints_a_table_for_people() -> None:
    done = brimline("read", CAPTURES / "vllm-0.32.0-cpu")

    assert done.returncode == 0
    assert b"1,048,576" in done.stdout


def test_read_prints_bytes_and_ratios_with_their_units() -> None:
    done = brimline("read", CAPTURES / "sglang-0.5.23", columns=80)

    printed = done.stdout.decode()
    assert re.search(r"kv_cache_capacity_bytes +│ +51\.19 GiB", printed)
    assert re.search(r"kv_cache_usage_ratio +│ +15\.6 %", printed)
    assert re.search(r"measured_memory_bytes: weights +│ +15\.27 GiB", printed)
    assert re.search(r"kv_cache_capacity_tokens +│ +372,736", printed)


def test_read_prints_as_many_ranks_beside_each_other_as_there_is_room_for() -> None:
    wide, narrow, thin = (
        brimline("read", CAPTURES / "vllm-0.8.5-dp2", columns=width).stdout.decode() for width in (80, 60, 40)
    )

    assert re.search(r"all ranks ┃ +rank 0 ┃ +rank 1 ┃", wide)
    assert re.search(r"all ranks ┃ +rank 0 ┃\n", narrow)
    assert re.search(r"quantity +┃ +rank 1 ┃\n", narrow)
    assert "kv_cache_capacity_tokens\n    all ranks: 893,568\n    rank 0: 446,784\n" in thin


@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize(
    "arguments",
    [
        ("read", CAPTURES / "sglang-0.5.23"),
        ("read", CAPTURES / "vllm-0.8.5-dp2"),
        ("predict", MODEL, "--gpu", "H100", "--explain"),
        (
            "plan",
            MODEL,
            "--gpu",
            "H100",
            "--sweep",
            "max_model_len=8K,32K",
            "--sweep",
            "kv_cache_dtype=auto,fp8",
        ),
        ("estimate", "training", "--parameters", "7B", "--gpus", "8", "--zero", "3"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_no_line_is_wider_than_the_terminal(arguments: tuple[str | Path, ...], columns: int) -> None:
    done = brimline(*arguments, columns=columns)

    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    # What cannot be broken, such as an address, is longer than a very narrow terminal.
    assert [line for line in lines if len(line) > columns and " " in line.strip()] == []


@pytest.mark.parametrize("columns", [80, 40])
def test_check_keeps_to_the_terminals_width(server: str, tmp_path: Path, columns: int) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "gpu: {backend: none}\ntargets:\n"
        f"- {{name: chat-long-context-candidate.prod, url: '{server}', launch: {{}}}}\n"
    )

    done = brimline("check", "--config", config, columns=columns)

    printed = done.stdout.decode()
    assert max(map(len, printed.splitlines())) <= columns
    assert "chat-long-context-candidate.prod" in printed
    assert "14.99 GiB" in printed
    assert "131,072 B/token" in printed
