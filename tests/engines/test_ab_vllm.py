"""`brimline ab run` over two real vLLM servers: what differs when they do, and nothing when they are alike.

Each server has one core, and requests one by one that leave it idle for most of the time, so that they do not
measure each other. The second one is started with other settings first, then with those of the first.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from engines.conftest import VLLM_ENVIRONMENT, Server, engine_python, served
from exporter_process import running_exporter
from prometheus_server import Prometheus, free_port, get_text, running_prometheus
from waiting import eventually

EXPERIMENT = "kv-dtype"
BASELINE, CANDIDATE = "short", "long"
COMMON = ("--max-model-len", "1024", "--block-size", "128", "--kv-cache-dtype", "auto")
CHANGED = ("--max-model-len", "1536", "--block-size", "64", "--kv-cache-dtype", "fp8")
TREATMENT = ("block_size", "kv_cache_dtype", "max_model_len")
# No divisor of the scrapes' interval: else each scrape would see the same moment of a request.
REQUEST_SECONDS, REQUEST_TOKENS = 0.47, 32
SHORT_BLOCK, SHORT_BLOCKS = 8, 3
BLOCK, BLOCKS = 20, 5
SETTLED_BY_THE_SERVER = (
    "kv_cache_max_concurrency",
    "kv_cache_memory_bytes",
    "kv_cache_size_tokens",
    "num_cpu_blocks",
    "num_gpu_blocks",
)
# What else runs on the machine takes from one core more than from the other.
LATENCY_MARGIN = 0.2
# Of blocks as short as these: what passes is not for a gate.
EXIT_STATUS = {"better": 3, "pass": 3, "worse": 1, "inconclusive": 3, "not_comparable": 4}


@contextmanager
def bound_server(model: Path, folder: Path, port: int, place: int, *settings: str) -> Iterator[Server]:
    """vLLM with 1 GiB of KV cache and one core of its own: the place-th of those that there are."""
    cores = sorted(os.sched_getaffinity(0))
    python = engine_python("vllm")
    command: list[str | Path] = [python, python.parent / "vllm", "serve", model, "--load-format", "dummy"]
    # Without compiling, which takes longer than all that is measured here.
    command += ["--dtype", "bfloat16", "--enforce-eager", "--max-num-seqs", "8"]
    command += ["--host", "127.0.0.1", "--port", str(port), *settings]
    environ = {
        **VLLM_ENVIRONMENT,
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": str(cores[place % len(cores)]),
    }
    folder.mkdir()
    with served(command, port, model, "/health", folder, environ) as server:
        yield server


@dataclass
class Load:
    """The same requests at the same rate for each server, half a period apart."""

    servers: tuple[Server, ...]
    answered: list[int]

    @classmethod
    @contextmanager
    def on(cls, *servers: Server) -> Iterator[Load]:
        """As long as the context lasts; what a request fails with is raised at its end."""
        load = cls(servers, [0] * len(servers))
        done = threading.Event()
        start = time.monotonic()
        with ThreadPoolExecutor(len(servers)) as pool:
            running = [pool.submit(load._ask, place, start, done) for place in range(len(servers))]
            try:
                yield load
            finally:
                done.set()
        for each in running:
            each.result()

    def _ask(self, place: int, start: float, done: threading.Event) -> None:
        server = self.servers[place]
        due = start + place * REQUEST_SECONDS / len(self.servers)
        while not done.wait(max(due - time.monotonic(), 0)):
            number = self.answered[place]
            server.post(
                "/v1/completions",
                {
                    "model": str(server.model),
                    "prompt": f"{number} times the memory of the server fills to the brim",
                    "max_tokens": REQUEST_TOKENS,
                    "ignore_eos": True,
                },
            )
            self.answered[place] += 1
            # Never two at once, and none made up for: a slow moment does not become a burst.
            due = max(due + REQUEST_SECONDS, time.monotonic())


def printed(server: Server) -> dict[str, float]:
    """What the server itself says of its KV cache, by the labels of cache_config_info."""
    [line] = re.findall(r"^vllm:cache_config_info\{(.*)\} 1\.0$", get_text(f"{server.url}/metrics"), re.M)
    labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
    numbers = ("num_gpu_blocks", "block_size", "kv_cache_size_tokens", "kv_cache_max_concurrency")
    return {name: float(labels[name]) for name in numbers}


def brimline_ab_run(file: Path) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "brimline", "ab", "run", str(file), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, report


def experiment_file(
    folder: Path, prometheus: Prometheus, start: float, block: int, blocks: int, treatment: tuple[str, ...]
) -> Path:
    """From start on for so many blocks, far too short for a gate. One may be left out: machines stall."""
    first, last = (
        datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for at in (start, start + block * blocks)
    )
    file = folder / f"experiment-{block}.yaml"
    file.write_text(
        f"name: {EXPERIMENT}\n"
        f"prometheus: {{url: '{prometheus.url}'}}\n"
        f"variants: [{{name: {BASELINE}, role: baseline}}, {{name: {CANDIDATE}, role: candidate}}]\n"
        f"treatment: [{', '.join(treatment)}]\n"
        f"window: {{start: '{first}', end: '{last}'}}\n"
        "routing: per_request\nwarmup: 0s\nnoise_time_constant: 1s\n"
        f"block_length: {block}s\nmin_blocks: {blocks - 1}\n"
        "metrics:\n"
        f"- {{name: inter_token_latency, margin: {LATENCY_MARGIN}}}\n"
        f"- {{name: time_to_first_token, margin: {LATENCY_MARGIN}}}\n"
    )
    return file


def under_load(
    servers: tuple[Server, Server], seconds: float, prometheus: Prometheus
) -> tuple[float, tuple[int, ...]]:
    """When the load began to be seen in the series, and how many requests each server has answered."""
    with Load.on(*servers) as load:

        def both_count() -> bool:
            grown = "increase(brimline_time_to_first_token_seconds_count[4s]) > 0"
            return len(prometheus.query(grown)) == len(servers)

        eventually(both_count)
        start = float(math.ceil(time.time()))
        # The last block ends with a sample after it.
        time.sleep(max(start + seconds + 2 - time.time(), 0))
    return start, tuple(load.answered)


def until_counted(prometheus: Prometheus, answered: tuple[int, ...]) -> None:
    """Waits until the series count as many requests since each server's start as were answered."""

    def counts() -> list[float | None]:
        family = "brimline_time_to_first_token_seconds_count"
        return [prometheus.value(f'{family}{{target="{variant}"}}') for variant in (BASELINE, CANDIDATE)]

    eventually(lambda: counts() == list(answered))


def summary(report: dict[str, Any]) -> str:
    """The report as evidence in a few lines."""
    [comparison] = report["comparisons"]
    lines = [f"{report['verdict']}, {report['blocks']} blocks, gate: {report['is_gate']}"]
    lines += [f"  reason: {reason}" for reason in comparison["reasons"]]
    for one in comparison["differing_settings"]:
        lines.append(f"  {one['setting']}: {one['baseline']} against {one['candidate']}")
    lines += [f"  guard {one['name']}: {one['passed']} {one['detail']}" for one in comparison["guards"]]
    for row in comparison["static"]:
        lines.append(
            f"  {row['name']}: {row['baseline']} against {row['candidate']}, observed "
            f"{row['observed_delta_ratio']}, predicted {row['predicted_delta_ratio']}: {row['verdict']}"
        )
    for row in comparison["metrics"]:
        lines.append(
            f"  {'*' if row['gate'] else ' '} {row['name']}: {row['baseline']} against {row['candidate']}, "
            f"{row['delta_ratio']} ({row['lower_ratio']} to {row['upper_ratio']}): {row['verdict']}"
        )
    lines += [f"  left out {one}" for one in report["dropped"]]
    lines += [f"  note: {note}" for note in report["notes"]]
    return "\n".join(lines)


@dataclass(frozen=True)
class Judged:
    """One run of the command: its exit status and report, and what the servers said themselves."""

    status: int
    report: dict[str, Any]
    printed: tuple[dict[str, float], dict[str, float]]
    answered: tuple[int, ...]

    @property
    def comparison(self) -> dict[str, Any]:
        [comparison] = self.report["comparisons"]
        return dict(comparison)

    def rows(self, of: str) -> Mapping[str, dict[str, Any]]:
        return {row["name"]: row for row in self.comparison[of]}


@pytest.fixture(scope="module")
def judged(vllm_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Judged]]:
    """The same two targets twice: with other settings for the second server, then with those of the first."""
    folder = tmp_path_factory.mktemp("ab")
    ports = (free_port(), free_port())
    targets = [
        {
            "name": variant,
            "url": f"http://127.0.0.1:{port}",
            "launch_command": {"from_pid": True},
            "experiment": EXPERIMENT,
            "variant": variant,
            "role": role,
        }
        for variant, port, role in zip((BASELINE, CANDIDATE), ports, ("baseline", "candidate"), strict=True)
    ]
    found: dict[str, Judged] = {}
    begun, earlier = time.monotonic(), 0
    with ExitStack() as stack:
        exporter = stack.enter_context(running_exporter(folder, json.dumps({"targets": targets})))
        prometheus = stack.enter_context(running_prometheus(folder, [exporter.port]))
        second = stack.enter_context(ExitStack())
        with ThreadPoolExecutor(2) as pool:  # both start at once
            starting = [
                pool.submit(
                    where.enter_context,
                    bound_server(vllm_model, folder / str(place), ports[place], place, *what),
                )
                for place, (where, what) in enumerate(((stack, COMMON), (second, CHANGED)))
            ]
        first_server, second_server = (each.result() for each in starting)
        # The first series are judged once more by a file that does not declare all that differs.
        runs: tuple[tuple[str, int, int, dict[str, tuple[str, ...]]], ...] = (
            ("changed", SHORT_BLOCK, SHORT_BLOCKS, {"changed": TREATMENT, "undeclared": TREATMENT[1:]}),
            ("alike", BLOCK, BLOCKS, {"alike": ()}),
        )
        for name, block, blocks, treatments in runs:
            if name == "alike":
                second.close()
                again = bound_server(vllm_model, folder / "again", ports[1], 1, *COMMON)
                second_server = second.enter_context(again)
            servers = (first_server, second_server)
            start, answered = under_load(servers, block * blocks, prometheus)
            until_counted(prometheus, (earlier + answered[0], answered[1]))
            earlier += answered[0]
            says = (printed(servers[0]), printed(servers[1]))
            print(f"\n{name}, {time.monotonic() - begun:.0f} s after the beginning, requests {answered}:")
            print(*says, sep="\n")
            for title, treatment in treatments.items():
                file = experiment_file(folder, prometheus, start, block, blocks, treatment)
                status, report = brimline_ab_run(file)
                found[title] = Judged(status, report, says, answered)
                print(f"{title}: exit status {status}, {summary(report)}")
        yield found


def test_what_is_settled_at_start_is_what_the_servers_print(judged: dict[str, Judged]) -> None:
    run = judged["changed"]
    static = run.rows("static")

    assert run.comparison["differing_settings"]
    for quantity, label in (
        ("kv_cache_capacity_tokens", "kv_cache_size_tokens"),
        ("kv_cache_max_concurrency_requests", "kv_cache_max_concurrency"),
    ):
        base, other = (says[label] for says in run.printed)
        assert base != other
        row = static[quantity]
        assert (row["baseline"], row["candidate"]) == (base, other)
        assert row["observed_delta_ratio"] == pytest.approx(other / base - 1, abs=1e-12)
    # The tokens are the blocks that the server counts, of its block size.
    for arm, says in zip(("baseline", "candidate"), run.printed, strict=True):
        assert static["kv_cache_capacity_tokens"][arm] == says["num_gpu_blocks"] * says["block_size"]
        assert static["kv_cache_capacity_bytes"][arm] == 1 << 30


def test_the_predicted_difference_stands_beside_the_observed_one(judged: dict[str, Judged]) -> None:
    """Half the bits: half the bytes of a token, twice the tokens, of which 1.5 times make a request."""
    static = judged["changed"].rows("static")

    for quantity, observed, verdict in (
        ("kv_cache_capacity_bytes", 0.0, "pass"),
        ("kv_cache_capacity_tokens", 1.0, "better"),
        ("kv_cache_bytes_per_token", -0.5, "better"),
        ("kv_cache_max_concurrency_requests", 2 / 1.5 - 1, "better"),
    ):
        row = static[quantity]
        assert row["observed_delta_ratio"] == pytest.approx(observed, abs=1e-3), quantity
        assert row["predicted_delta_ratio"] == pytest.approx(row["observed_delta_ratio"], abs=1e-9), quantity
        assert row["verdict"] == verdict, quantity


def test_the_bytes_of_what_is_cached_are_halved_under_load_too(judged: dict[str, Judged]) -> None:
    row = judged["changed"].rows("metrics")["kv_bytes_per_token"]

    # In blocks this short it may be that no scrape meets a request.
    assert row["delta_ratio"] in (pytest.approx(-0.5), None)
    assert row["verdict"] == ("better" if row["delta_ratio"] else "inconclusive")


def test_what_differs_is_found_in_the_settings_and_nothing_else(judged: dict[str, Judged]) -> None:
    run = judged["changed"]
    differing = {one["setting"] for one in run.comparison["differing_settings"]}
    guards = run.rows("guards")

    # What the server makes of its settings is listed, too.
    assert set(TREATMENT) <= differing <= {*TREATMENT, *SETTLED_BY_THE_SERVER}, differing
    assert guards["settings"]["passed"] is not False, guards["settings"]
    assert guards["model"]["passed"] is not False
    assert run.status == EXIT_STATUS[run.report["verdict"]]
    assert run.report["simulated"] is False


def test_a_difference_that_is_not_declared_is_refused_by_name(judged: dict[str, Judged]) -> None:
    run = judged["undeclared"]

    assert (run.status, run.report["verdict"]) == (4, "not_comparable")
    guard = run.rows("guards")["settings"]
    assert guard["passed"] is False
    assert f"{TREATMENT[0]} (128 against 64)" in guard["detail"]
    assert not [name for name in TREATMENT[1:] if name in guard["detail"]]


def test_two_servers_alike_are_not_called_worse(judged: dict[str, Judged]) -> None:
    run = judged["alike"]

    assert run.printed[0] == run.printed[1]
    assert run.report["verdict"] in ("better", "pass", "inconclusive"), summary(run.report)
    assert run.status == EXIT_STATUS[run.report["verdict"]]
    assert run.report["blocks"] >= BLOCKS - 1
    assert run.comparison["differing_settings"] == []
    gates = {name: row for name, row in run.rows("metrics").items() if row["gate"]}
    assert {"inter_token_latency", "time_to_first_token", "preemptions"} <= gates.keys()
    assert not [name for name, row in gates.items() if row["verdict"] == "worse"]
    settled = [row for row in run.rows("static").values() if row["baseline"] is not None]
    assert len(settled) == 4
    for row in settled:
        assert (row["observed_delta_ratio"], row["predicted_delta_ratio"]) == (0, 0)
        assert row["verdict"] == "pass"


def test_so_few_and_short_blocks_are_no_gate(judged: dict[str, Judged]) -> None:
    run = judged["alike"]

    assert run.report["is_gate"] is False
    assert run.report["is_sequential"] is False
    assert any("short blocks: not for a gate" in note for note in run.report["notes"])


def test_the_load_was_alike_and_no_server_waited(judged: dict[str, Judged]) -> None:
    run = judged["alike"]
    guards = run.rows("guards")

    assert min(run.answered) > 10 * BLOCKS
    for name in ("load", "prompts", "saturation", "cold_boot", "mid_run_change"):
        assert guards[name]["passed"] is True, guards[name]
