"""The files of the boards: what is committed is what the code says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from brimline.cli import cli
from brimline_dashboards.boards import BOARDS
from brimline_dashboards.panels import GENERATED
from brimline_dashboards.render import write_boards

COMMITTED = Path(__file__).parent.parent.parent.parent / "dashboards/generated"


def test_committed_boards_are_what_the_code_says(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """`pytest --update` writes them anew; `brimline dashboards -o dashboards/generated` does, too."""
    if request.config.getoption("--update"):
        write_boards(COMMITTED)

    written = write_boards(tmp_path)

    assert {file.name for file in COMMITTED.glob("*.json")} == {file.name for file in written}
    for file in written:
        assert (COMMITTED / file.name).read_bytes() == file.read_bytes(), file.name


def test_the_command_names_the_files_that_it_wrote(tmp_path: Path) -> None:
    folder = tmp_path / "new/boards"

    done = CliRunner().invoke(cli, ["dashboards", "-o", str(folder)])

    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [str(folder / f"{uid}.json") for uid in BOARDS]
    for uid in BOARDS:
        board = json.loads((folder / f"{uid}.json").read_text())
        assert board["uid"] == uid
        assert board["description"].endswith(GENERATED)
    assert sorted(file.name for file in folder.iterdir()) == sorted(f"{uid}.json" for uid in BOARDS)


def test_a_folder_that_cannot_be_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    done = CliRunner().invoke(cli, ["dashboards", "-o", str(tmp_path / "file/below")])

    assert done.exit_code == 2
    assert "cannot be written" in done.output


def test_without_grafanalib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)

    done = CliRunner().invoke(cli, ["dashboards", "-o", str(tmp_path)])

    assert done.exit_code == 2
    assert f"{sys.executable} -m pip install '.[dashboards]'" in done.output
    assert list(tmp_path.iterdir()) == []
