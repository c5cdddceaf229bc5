"""`brimline ab` over simulated servers, an exporter and a real Prometheus, which scrapes the watch, too."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from brimline import verdicts
from brimline.ab.experiment import load
from brimline.demo.gpu_recording import write_recording
from brimline.demo.profiles import PROFILES
from brimline.demo.run import exporter_config
from brimline_dashboards.boards import BOARDS
from brimline_dashboards.interpolation import Times
from brimline_dashboards.panels import board_json
from brimline_dashboards.preview.asking import Prometheus as Asked
from brimline_dashboards.preview.frames import frames, transformed
from brimline_dashboards.preview.shown import Window, answers, chosen_variables, rows
from exporter_process import running_exporter
from prometheus_server import Prometheus, free_port, get_text, is_up, running_prometheus
from simulated_server import simulated_vllm
from waiting import eventually

RULES = Path(__file__).parent.parent.parent / "dashboards/generated/rules/brimline-recording.yaml"
EXPERIMENT = "context-window"
BLOCK = 5


@dataclass
class World:
    """All that runs."""

    folder: Path
    prometheus: Prometheus
    watch_port: int
    watch: subprocess.Popen[bytes]
    end_prometheus: ExitStack

    @property
    def file(self) -> Path:
        return self.folder / "experiment.yaml"

    def verdict(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(
            get_text(f"http://127.0.0.1:{self.watch_port}/api/v1/ab/{EXPERIMENT}")
        )
        return document


def brimline(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "brimline", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "200"}
    )


def short_blocks(text: str) -> str:
    """The file with an experiment that is over in seconds, from now on."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    text = re.sub(r"^window:.*$", f"window: {{start: '{now}'}}", text, flags=re.MULTILINE)
    return text + f"block_length: {BLOCK}s\nwarmup: 0s\nmin_blocks: 3\nnoise_time_constant: 1s\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("ab")
    watch_port = free_port()
    with ExitStack() as stack:
        servers = [stack.enter_context(simulated_vllm(name)) for name in PROFILES]
        gpus = folder / "gpu.jsonl"
        write_recording(gpus)
        config = json.loads(exporter_config(1, [server.port for server in servers], gpus))
        del config["listen"]
        exporter = stack.enter_context(running_exporter(folder, json.dumps(config)))
        ended = stack.enter_context(ExitStack())
        prometheus = ended.enter_context(
            running_prometheus(
                folder,
                [exporter.port],
                rules={"recording.yaml": re.sub(r"interval: \w+", "interval: 1s", RULES.read_text())},
                more={"ab": watch_port},
            )
        )
        generated = 'rate(brimline_request_e2e_latency_seconds_count{target="long-context"}[4s]) > 0'
        eventually(lambda: prometheus.query(generated))
        made = brimline("ab", "init", "--prometheus", prometheus.url, "-o", folder / "experiment.yaml")
        assert made.returncode == 0, made.stderr
        (folder / "as-written.yaml").write_text((folder / "experiment.yaml").read_text())
        file = folder / "experiment.yaml"
        file.write_text(short_blocks(file.read_text()))
        with open(folder / "watch.log", "wb") as log:
            watch = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "brimline",
                    "ab",
                    "watch",
                    str(file),
                    "--listen",
                    f"127.0.0.1:{watch_port}",
                ],
                stdout=log,
                stderr=log,
            )
        try:
            eventually(lambda: is_up(f"http://127.0.0.1:{watch_port}/-/ready"))
            yield World(folder, prometheus, watch_port, watch, ended)
        finally:
            watch.terminate()
            watch.wait(60)


def judged(world: World, blocks: int) -> dict[str, Any]:
    def enough() -> dict[str, Any] | None:
        document = world.verdict()
        return document if (document.get("blocks") or 0) >= blocks else None

    return eventually(enough)


def test_an_experiment_file_is_written_from_what_runs(world: World) -> None:
    experiment = load(world.folder / "as-written.yaml", now=time.time() + 1)

    assert experiment.name == EXPERIMENT
    assert experiment.baseline.name == "ctx-32k"
    assert [one.name for one in experiment.candidates] == ["ctx-128k"]
    assert experiment.treatment == ("kv_cache_dtype", "max_model_len")
    assert experiment.prometheus.url == world.prometheus.url


def test_the_watch_judges_and_answers_by_name(world: World) -> None:
    document = judged(world, 4)

    assert document["verdict"] in verdicts.WORDS
    assert document["problem"] is None
    assert document["simulated"] is True
    assert document["is_gate"] is False
    for hook in ("confirm", "rollback"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            get_text(f"http://127.0.0.1:{world.watch_port}/api/v1/{hook}/{EXPERIMENT}")
        assert refused.value.code == 403
        refused.value.close()
    [comparison] = document["comparisons"]
    static = {row["name"]: row for row in comparison["static"]}
    # 8 bits in place of 16, as the simulation and the predictor each have it.
    for name, ratio in (("kv_cache_capacity_tokens", 1.0), ("kv_cache_bytes_per_token", -0.5)):
        assert static[name]["observed_delta_ratio"] == pytest.approx(ratio, abs=0.01)
        assert static[name]["predicted_delta_ratio"] == pytest.approx(ratio, abs=0.01)
        assert static[name]["verdict"] == "better"
    with pytest.raises(urllib.error.HTTPError) as unknown:
        get_text(f"http://127.0.0.1:{world.watch_port}/api/v1/ab/nobody")
    assert unknown.value.code == 404
    unknown.value.close()


def test_prometheus_scrapes_the_verdict(world: World) -> None:
    judged(world, 4)

    def scraped() -> float | None:
        return world.prometheus.value(
            f'sum({verdicts.VERDICT}{{experiment="{EXPERIMENT}",metric="overall"}})'
        )

    # One of all words holds.
    assert eventually(scraped) == 1
    assert world.prometheus.value(f"{verdicts.UP}") == 1


def test_tiles_and_table_of_the_board_are_filled(world: World) -> None:
    judged(world, 4)
    board = board_json(BOARDS["brimline-ab"]())
    asked = Asked(world.prometheus.url)

    def shown() -> dict[str, Any] | None:
        window = Window(time.time(), Times(range_seconds=30, step_seconds=1, scrape_interval_seconds=1))
        chosen = chosen_variables(board, asked, window, None)
        panels = {panel.title: panel for row in rows(board, chosen) for panel in row.panels}
        found = {
            title: answers(panels[title], asked, window)
            for title in ("Verdict", "Sample size", "Judged", "Verdict for each metric", "A beside B")
        }
        return found if all(answer.series for each in found.values() for answer in each) else None

    found = eventually(shown)
    [sample] = found["Sample size"]
    assert sample.series[0].points[-1][1] >= 3  # what was scraped may be of the block before
    [age] = found["Judged"]
    assert 0 <= age.series[0].points[-1][1] < 3 * BLOCK + 5
    [each] = found["Verdict for each metric"]
    assert {"kv_cache_capacity_tokens", "inter_token_latency"} <= {
        one.labels["metric"] for one in each.series
    }
    window = Window(time.time(), Times(range_seconds=30, step_seconds=1, scrape_interval_seconds=1))
    chosen = chosen_variables(board, asked, window, None)
    [table] = [p for row in rows(board, chosen) for p in row.panels if p.title == "A beside B"]
    made = frames({one.letter: one.series for one in found["A beside B"]})
    by_title = {row["title"]: row for row in transformed(made, table.json["transformations"])}
    capacity = by_title["KV cache capacity, thousand tokens"]
    assert capacity["verdict"] == "better"
    assert capacity["Value #E"] == pytest.approx(1.0, abs=0.01)


def test_run_prints_the_verdict_and_leaves_files_for_a_ci(world: World) -> None:
    judged(world, 4)
    files = {name: world.folder / f"out.{name}" for name in ("md", "xml", "html")}

    done = brimline(
        *(
            "ab",
            "run",
            world.file,
            "--markdown",
            files["md"],
            "--junit",
            files["xml"],
            "--html",
            files["html"],
        )
    )

    assert done.returncode in (1, 3), done.stderr  # never 0: such blocks are not for a gate
    assert "simulated: no server and no GPU was measured" in done.stdout
    assert "short blocks: not for a gate" in done.stdout
    assert re.search(r"tokens that the pool holds +416,480 +832,976 +\+100\.0 % +\+100\.0 %", done.stdout)
    told = [line for line in done.stderr.splitlines() if "short blocks: not for a gate" not in line]
    assert told == []  # no bar where nobody watches
    assert files["md"].read_text().startswith("### context\\-window")
    assert files["xml"].read_text().startswith("<?xml")
    assert "<circle" in files["html"].read_text()


def test_run_refuses_variants_that_differ_in_more_than_the_treatment(world: World, tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(
        re.sub(r"^treatment:.*$", "treatment: [max_model_len]", world.file.read_text(), flags=re.M)
    )

    done = brimline("ab", "run", file)

    assert done.returncode == 4
    assert "NOT COMPARABLE" in done.stdout
    assert "kv_cache_dtype" in done.stdout


def test_the_watch_outlives_prometheus_and_says_how_old_its_verdict_is(world: World) -> None:
    before = judged(world, 4)["verdict"]
    world.end_prometheus.close()

    failed = eventually(lambda: (document := world.verdict())["problem"] and document)

    assert failed["verdict"] in verdicts.WORDS
    assert before in verdicts.WORDS
    assert failed["age_seconds"] > 0
    assert world.watch.poll() is None
    page = get_text(f"http://127.0.0.1:{world.watch_port}/metrics")
    assert f'{verdicts.UP}{{experiment="{EXPERIMENT}"}} 0.0' in page
    assert f'{verdicts.VERDICT}{{candidate="ctx-128k"' in page
    done = brimline("ab", "run", world.file)
    assert done.returncode == 5
    assert "prometheus.url" in done.stderr
