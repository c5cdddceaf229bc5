"""`brimline ab` from saved series to files for the next command, and its bar on a real terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

import ab_fleet

# Of a terminal that takes back what was written: up a line, and clear it.
TAKEN_BACK = "\x1b[2K"
BAR = "━"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment file, and a dump of two servers of each variant."""
    made = tmp_path_factory.mktemp("ab")
    (made / "experiment.yaml").write_text(f"{ab_fleet.EXPERIMENT}min_blocks: 3\nrouting: per_request\n")
    (made / "dump.om").write_text(ab_fleet.open_metrics())
    return made


def command(folder: Path, *words: str) -> list[str]:
    name, *more = words
    ab = [sys.executable, "-m", "brimline", "ab", name, str(folder / "experiment.yaml")]
    return [*ab, "--series", str(folder / "dump.om"), *more]


def done(folder: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *words), capture_output=True, text=True, timeout=120, env={**os.environ, **environ}
    )


def test_what_aa_measures_stands_beside_the_differences_and_in_the_plan(folder: Path) -> None:
    floor = folder / "floor.json"

    aa = done(folder, "aa", "--method", "replicas", "-o", str(floor))
    run = done(folder, "run", "--json", "--noise-floor", str(floor))
    plan = done(folder, "plan", "--json", "--noise-floor", str(floor))

    assert aa.returncode == 0, aa.stderr
    measured = json.loads(floor.read_text())
    assert measured["method"] == "replicas"
    assert measured["block_seconds"] == 900
    assert measured["noise_floor_ratio"]["inter_token_latency"] >= 0
    [comparison] = json.loads(run.stdout)["comparisons"]
    beside = {one["name"]: one["noise_floor_ratio"] for one in comparison["metrics"]}
    assert beside["inter_token_latency"] == measured["noise_floor_ratio"]["inter_token_latency"]
    planned = json.loads(plan.stdout)
    assert planned["noise_from"] == str(floor)
    by_name = {one["name"]: one for one in planned["metrics"]}
    deviation = by_name["inter_token_latency"]["block_deviation"]
    assert deviation == measured["block_deviation"]["inter_token_latency"]


def test_run_exits_as_is_asked_where_nothing_is_decided(folder: Path) -> None:
    # From when on all servers are there; more blocks than there will be.
    text = ab_fleet.EXPERIMENT.replace("16:00", "16:45") + "min_blocks: 1000\n"
    (folder / "undecided").mkdir()
    (folder / "undecided/experiment.yaml").write_text(text)
    (folder / "undecided/dump.om").symlink_to(folder / "dump.om")

    codes = [
        done(folder / "undecided", "run", "--json", *more).returncode
        for more in ([], ["--inconclusive-as", "pass"], ["--inconclusive-as", "fail"])
    ]

    assert codes == [3, 0, 1]


# --- the bar


def on_a_terminal(words: Sequence[str], *, stdout_too: bool) -> tuple[str, str]:
    """What a command wrote to the terminal, and to a pipe as its standard output."""
    master, slave = pty.openpty()
    seen: list[bytes] = []

    def watch() -> None:
        while True:
            try:
                read = os.read(master, 65536)
            except OSError:  # the other end is closed
                return
            if not read:
                return
            seen.append(read)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        process = subprocess.Popen(
            words,
            stdin=slave,
            stdout=slave if stdout_too else subprocess.PIPE,
            stderr=slave,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"},
        )
        os.close(slave)
        piped = process.communicate(timeout=120)[0] or b""
        watching.join(30)
    finally:
        os.close(master)
    return b"".join(seen).decode(), piped.decode()


def test_a_bar_shows_how_far_it_is_and_is_gone_at_the_end(folder: Path) -> None:
    terminal, _ = on_a_terminal(command(folder, "run"), stdout_too=True)

    bar, _, report = terminal.rpartition(BAR)
    assert "reading what was saved" in bar
    assert TAKEN_BACK in report
    assert "ctx: " in report


def test_the_bar_is_there_too_where_the_report_goes_to_a_file(folder: Path) -> None:
    terminal, piped = on_a_terminal(command(folder, "run"), stdout_too=False)

    assert BAR in terminal
    assert "ctx: " in piped
    assert BAR not in piped
    assert "\x1b" not in piped


def test_no_bar_beside_json_for_another_program(folder: Path) -> None:
    terminal, piped = on_a_terminal(command(folder, "run", "--json"), stdout_too=False)

    assert terminal == ""
    assert json.loads(piped)["experiment"] == "ctx"


def test_no_bar_where_nobody_watches_though_colours_are_wanted(folder: Path) -> None:
    """Workflows of GitHub set FORCE_COLOR, which rich takes for a terminal."""
    assert done(folder, "run", FORCE_COLOR="1").stderr == ""
