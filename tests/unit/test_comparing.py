"""`brimline ab` as a command: what is refused, and with which status, before anything is asked."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from brimline.ab.inference import Verdict
from brimline.ab.noise_floor import NoiseFloor, written
from brimline.ab.result import Report
from brimline.cli import cli, comparing, main
from brimline.verdicts import WORDS
from reports import comparison, report

FILE = (
    "name: kv\nprometheus: {url: 'http://127.0.0.1:9'}\n"
    "variants: [{name: a, role: baseline}, {name: b, role: candidate}]\n"
)


def ab(*words: object) -> Result:
    return CliRunner().invoke(cli, ["ab", *map(str, words)])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize("command", [["run"], ["plan"], ["aa"], ["watch"]])
def test_a_wrong_file_is_told_with_its_line(command: Sequence[str], file: Path) -> None:
    file.write_text(FILE + "windw: 1\n")

    done = ab(*command, file)

    assert done.exit_code == 2
    assert f"{file}:4: unknown key 'windw'" in done.output


@pytest.mark.parametrize("command", [["run"], ["plan"], ["aa"]])
def test_a_prometheus_that_does_not_answer_is_status_5(command: Sequence[str], file: Path) -> None:
    done = ab(*command, file)

    assert done.exit_code == 5
    assert "http://127.0.0.1:9" in done.output
    assert "check prometheus.url" in done.output


@pytest.mark.parametrize(
    ("content", "told"), [(None, "cannot be read"), ("two\nlines\n", "more than one line")]
)
def test_a_token_that_cannot_be_read_is_the_files_mistake(
    content: str | None, told: str, file: Path, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    if content is not None:
        token.write_text(content)
    file.write_text(FILE.replace("'}", f"', bearer_token_file: {token}}}", 1))

    done = ab("run", file)

    assert done.exit_code == 2
    assert f"{token}" in done.output
    assert told in done.output


def test_saved_series_that_are_not_there_are_status_5(file: Path, tmp_path: Path) -> None:
    assert ab("run", file, "--series", tmp_path / "none").exit_code == 5


@pytest.mark.parametrize("option", ["--markdown", "--junit", "--html"])
def test_a_folder_that_is_missing_is_told_before_anything_is_asked(
    option: str, file: Path, tmp_path: Path
) -> None:
    done = ab("run", file, option, tmp_path / "no/x")

    assert done.exit_code == 2
    assert "does not exist" in done.output


def test_a_plan_by_declared_noise_asks_nobody(file: Path) -> None:
    done = ab("plan", file, "--noise", "0.08", "--noise", "kv_bytes_per_token=0.001", "--replicas", "3")

    assert done.exit_code == 0
    assert "noise from --noise" in done.output
    assert "All gates: " in done.output


def test_a_plan_takes_the_noise_that_aa_has_measured(file: Path, tmp_path: Path) -> None:
    floor = NoiseFloor(
        experiment="kv",
        baseline="a",
        method="replicas",
        start=0.0,
        end=1.0,
        block_seconds=900.0,
        blocks=9,
        noise_floor_ratio={},
        block_deviation={"inter_token_latency": 0.05},
    )
    path = tmp_path / "floor.json"
    path.write_text(written(floor))

    done = ab("plan", file, "--noise-floor", path)

    # Of one gate alone.
    assert done.exit_code == 3
    assert "5.0 %" in done.output
    assert "The noise of time_to_first_token, kv_bytes_per_token is not known" in done.output.replace(
        "\n", " "
    )


@pytest.mark.parametrize(
    ("noise", "told"),
    [("x", "is no ratio"), ("0", "is no ratio"), ("nan", "is no ratio"), ("latency=0.1", "unknown metric")],
)
def test_noise_that_is_none_is_refused(noise: str, told: str, file: Path) -> None:
    done = ab("plan", file, "--noise", noise)

    assert done.exit_code == 2
    assert told in done.output


def test_a_watch_refuses_an_address_that_is_none(file: Path) -> None:
    assert "is not HOST:PORT" in ab("watch", file, "--listen", "10779").output


def test_init_by_a_configuration_takes_its_targets(tmp_path: Path) -> None:
    config = tmp_path / "brimline.yaml"
    config.write_text(
        "targets:\n"
        "- {name: x, url: 'http://a:1', experiment: kv, variant: long, role: candidate, launch: {seed: 9}}\n"
        "- {name: y, url: 'http://b:1', experiment: kv, variant: short, role: baseline, launch: {seed: 8}}\n"
    )
    output = tmp_path / "experiment.yaml"

    first = ab("init", "--config", config, "-o", output)
    second = ab("init", "--config", config, "-o", output)

    assert first.exit_code == 0, first.output
    assert 'treatment: ["seed"]' in output.read_text()
    assert second.exit_code == 2
    assert "--force" in second.output
    assert ab("init", "--config", config, "-o", output, "--force").exit_code == 0


def test_init_without_an_experiment_says_how_to_make_one(tmp_path: Path) -> None:
    config = tmp_path / "brimline.yaml"
    config.write_text("targets: [{name: x, url: 'http://a:1'}]\n")

    done = ab("init", "--config", config)

    assert done.exit_code == 2
    assert "give two targets the same `experiment`" in done.output


def test_missing_libraries_are_named_with_the_command_that_installs_them(file: Path) -> None:
    without = (
        "import sys, importlib.abc\n"
        "class No(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.split('.')[0] in ('numpy', 'scipy'): raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, No())\n"
        "from brimline.cli import cli\n"
        f"cli(['ab', 'run', {str(file)!r}])\n"
    )

    done = subprocess.run([sys.executable, "-c", without], capture_output=True, text=True)

    assert done.returncode == 2
    assert "comparing needs numpy and scipy; install the extra in a clone of this repository: " in done.stderr
    # Into the environment that runs, such as the one that `make demo` made.
    assert f"{sys.executable} -m pip install '.[ab]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["ab", "--help"], ["ab", "init", "--help"], ["ab", "watch", "--help"]])
def test_help_imports_no_heavy_library(words: Sequence[str]) -> None:
    code = (
        "import sys\n"
        "from brimline.cli import cli\n"
        f"cli({list(words)!r}, standalone_mode=False)\n"
        "print([name for name in ('numpy', 'scipy', 'aiohttp') if name in sys.modules])\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.endswith("[]\n")


# --- the exit status is all that a CI reads


def judged_as(monkeypatch: pytest.MonkeyPatch, answer: Report | BaseException) -> None:
    """Let the experiment be judged so: series that come to each verdict would be hours of them."""

    async def judged(*_: object) -> Report:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(comparing, "_judged", judged)


@pytest.mark.parametrize(
    ("verdict", "gate", "looking", "as_pass", "as_fail"),
    [
        ("better", 0, 3, 0, 1),
        ("pass", 0, 3, 0, 1),
        ("worse", 1, 1, 1, 1),
        ("inconclusive", 3, 3, 0, 1),
        ("not_comparable", 4, 4, 4, 4),
    ],
)
def test_what_is_for_looking_only_never_exits_as_a_gate_that_passed(
    verdict: Verdict,
    gate: int,
    looking: int,
    as_pass: int,
    as_fail: int,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged_as(monkeypatch, report(comparison(verdict=verdict)))
    assert ab("run", file).exit_code == gate

    judged_as(monkeypatch, report(comparison(verdict=verdict), no_gate="short blocks: not for a gate"))
    done = ab("run", file)

    assert done.exit_code == looking
    assert WORDS[verdict] in done.output
    assert ("exit status 3 in place of 0" in done.output) is (gate == 0)
    assert ab("run", file, "--inconclusive-as", "pass").exit_code == as_pass
    assert ab("run", file, "--inconclusive-as", "fail").exit_code == as_fail


@pytest.mark.parametrize(("verdict", "status"), [("pass", 0), ("not_comparable", 4)])
def test_halves_that_are_not_alike_leave_no_noise_floor_behind(
    verdict: Verdict, status: int, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def against_itself(*_: object) -> tuple[Report, str]:
        return report(comparison(verdict=verdict, reasons=("hardware: unlike GPU",))), "replicas"

    monkeypatch.setattr(comparing, "_against_itself", against_itself)
    floor = tmp_path / "floor.json"

    done = ab("aa", file, "-o", floor)

    assert done.exit_code == status
    assert floor.exists() is (status == 0)
    assert ("the halves are not alike: hardware: unlike GPU" in done.output) is (status == 4)


@pytest.mark.parametrize(("error", "status"), [(TypeError("of\nours"), 5), (KeyboardInterrupt(), 130)])
def test_what_is_no_answer_never_exits_as_worse(
    error: BaseException,
    status: int,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    judged_as(monkeypatch, error)
    monkeypatch.setattr(sys, "argv", ["brimline", "ab", "run", str(file)])

    with pytest.raises(SystemExit) as ended:
        main()

    said = capsys.readouterr().err
    assert ended.value.code == status
    assert said.strip().splitlines() == [
        "brimline: a defect of Brimline: TypeError: of ours; report it with what BRIMLINE_DEBUG=1 shows"
        if status == 5
        else "brimline: interrupted"
    ]


def test_a_defect_has_its_traceback_where_somebody_debugs(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judged_as(monkeypatch, TypeError("x"))
    monkeypatch.setattr(sys, "argv", ["brimline", "ab", "run", str(file)])
    monkeypatch.setenv("BRIMLINE_DEBUG", "1")

    with pytest.raises(SystemExit):
        main()

    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "status"), [(["--help"], 0), (["--version"], 0), (["ab", "nonsense"], 2)])
def test_the_command_line_keeps_its_own_statuses(
    words: Sequence[str], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["brimline", *words])

    try:
        main()
        code: object = 0
    except SystemExit as ended:
        code = ended.code

    assert (code or 0) == status
    assert not capsys.readouterr().err.startswith("brimline: a defect")
