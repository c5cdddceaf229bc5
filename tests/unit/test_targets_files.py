"""Targets from further files: what is found, what is refused, and what is kept."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from brimline import targets_files
from brimline.strict_yaml import read_text
from brimline.targets_files import FoundTargets, TargetsFiles

MORE = ["*.yaml", "*.json"]


def write(path: Path, *names: str, **more: object) -> Path:
    """A file of targets, one a line from line 2 on."""
    lines = [json.dumps({"name": name, "url": "http://127.0.0.1:8000", **more}) for name in names]
    path.write_text("targets: [\n" + ",\n".join(lines) + "\n]\n")
    return path


class Looking:
    """Files that are looked at again and again."""

    def __init__(self, folder: Path, patterns: list[str] | None = None) -> None:
        self._files = TargetsFiles(folder)
        self._patterns = MORE if patterns is None else patterns

    def look(self, taken: Mapping[str, str] | None = None) -> tuple[list[str], list[str]]:
        """Names of the targets, and problems."""
        found = self.found(taken)
        return [target.name for target in found.targets], list(found.problems)

    def found(self, taken: Mapping[str, str] | None = None) -> FoundTargets:
        return self._files.read(self._patterns, taken or {})


def test_files_are_found_by_pattern_in_the_order_of_their_names(tmp_path: Path) -> None:
    write(tmp_path / "b.yaml", "b1", "b2")
    write(tmp_path / "a.yaml", "a1")
    (tmp_path / "c.json").write_text('{"targets": [{"name": "c1", "url": "http://[::1]:1"}]}')
    write(tmp_path / "d.yaml~", "left by an editor")
    write(tmp_path / ".e.yaml", "hidden")

    assert Looking(tmp_path).look() == (["a1", "b1", "b2", "c1"], [])


def test_a_file_of_two_patterns_is_read_once(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "a1")

    assert Looking(tmp_path, ["a.yaml", "*.yaml", f"{tmp_path}/a.yaml"]).look() == (["a1"], [])


def test_targets_come_change_and_go_with_their_files(tmp_path: Path) -> None:
    looking = Looking(tmp_path)
    assert looking.look() == ([], [])

    path = write(tmp_path / "a.yaml", "a1")
    assert looking.look() == (["a1"], [])
    write(path, "a1", "a2", engine="vllm")
    assert looking.look() == (["a1", "a2"], [])
    assert {target.engine for target in looking.found().targets} == {"vllm"}
    path.unlink()
    assert looking.look() == ([], [])


def test_only_what_has_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    plain = read_text

    def counting(path: Path) -> str:
        read.append(path.name)
        return plain(path)

    monkeypatch.setattr(targets_files, "read_text", counting)  # the reading is what is counted
    write(tmp_path / "a.yaml", "a1")
    write(tmp_path / "b.yaml", "b1")
    looking = Looking(tmp_path)
    looking.look()
    looking.look()
    write(tmp_path / "b.yaml", "b1", "b2")
    looking.look()

    assert read == ["a.yaml", "b.yaml", "b.yaml"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("targets:\n- {name: a2, url: 'http://a:1', modle: x}\n", ":2: unknown key 'modle' in targets[0]"),
        (
            "targets:\n- {name: a2, url: 'http://a:1'}\n- {name: a2, url: 'http://a:1'}\n",
            ":3: the target name",
        ),
        ("targets: {", ":1: not YAML:"),
        ("- {name: a2, url: 'http://a:1'}\n", ":1: the file holds a list; write keys such as `targets:`"),
        ("listen: ':1'\ntargets: []\n", ":1: unknown key 'listen'; known: targets"),
        ("", ":1: the key 'targets' is missing; add it"),
    ],
)
def test_a_file_that_turns_bad_keeps_what_was_read_of_it(tmp_path: Path, content: str, said: str) -> None:
    path = write(tmp_path / "a.yaml", "a1")
    write(tmp_path / "b.yaml", "b1")
    looking = Looking(tmp_path)
    looking.look()

    path.write_text(content)
    for _ in range(2):
        names, [problem] = looking.look()
        assert names == ["a1", "b1"]
        assert problem.startswith(f"{path}{said}")
    write(path, "a3")
    assert looking.look() == (["a3", "b1"], [])


def test_a_bad_file_at_the_start_leaves_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("targets: 7\n")
    write(tmp_path / "b.yaml", "b1")

    names, [problem] = Looking(tmp_path).look()

    assert names == ["b1"]
    assert problem == f"{tmp_path}/a.yaml:1: targets: found the number 7; write a list"


def test_a_name_in_two_files_is_refused_with_both_places(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "a1", "same")
    write(tmp_path / "b.yaml", "same", "b1")
    looking = Looking(tmp_path)

    names, problems = looking.look()

    assert names == ["a1", "same"]
    assert problems == [
        f"{tmp_path}/b.yaml:2: the target name 'same' stands in {tmp_path}/a.yaml:3, too; rename one"
    ]
    write(tmp_path / "a.yaml", "a1")
    assert looking.look() == (["a1", "same", "b1"], [])


def test_a_file_that_takes_the_name_of_another_is_the_one_that_is_refused(tmp_path: Path) -> None:
    """Whatever their order: a mistake in one team's file must not cost another team its targets."""
    write(tmp_path / "a.yaml", "a1")
    write(tmp_path / "b.yaml", "b1")
    looking = Looking(tmp_path)
    looking.look()

    write(tmp_path / "a.yaml", "a2", "b1")
    for _ in range(2):
        names, [problem] = looking.look()
        assert names == ["a1", "b1"]
        assert problem.startswith(f"{tmp_path}/a.yaml:3: the target name 'b1' stands in {tmp_path}/b.yaml:2")


def test_a_name_of_the_configuration_itself_wins(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "a1", "chat")
    looking = Looking(tmp_path)
    looking.look()

    names, [problem] = looking.look({"chat": "brimline.yaml:7"})

    assert names == ["a1"]
    assert problem == (
        f"{tmp_path}/a.yaml:3: the target name 'chat' stands in brimline.yaml:7, too; rename one"
    )
    assert looking.look() == (["a1", "chat"], [])


def test_a_listed_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    looking = Looking(tmp_path, ["a.yaml"])

    assert looking.look() == (
        [],
        [f"{tmp_path}/a.yaml: there is no such file; write it, or remove it from targets_files"],
    )


def test_a_folder_that_cannot_be_listed_takes_no_target_away(tmp_path: Path) -> None:
    folder = tmp_path / "targets"
    folder.mkdir()
    write(folder / "a.yaml", "a1")
    looking = Looking(tmp_path, ["targets/*.yaml"])
    looking.look()

    folder.rename(tmp_path / "moved")
    names, problems = looking.look()
    assert names == ["a1"]
    assert problems[0] == (
        f"{folder}: cannot be listed (No such file or directory); check the path and its permissions"
    )
    (tmp_path / "moved").rename(folder)
    assert looking.look() == (["a1"], [])


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")

    names, [problem] = Looking(tmp_path).look()

    assert names == []
    assert problem == f"{tmp_path}/a.yaml: not a regular file; name a YAML file"


def test_a_link_that_is_turned_to_another_folder_is_seen(tmp_path: Path) -> None:
    """How Kubernetes replaces a mounted ConfigMap."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "a.yaml", name)
    (tmp_path / "targets").mkdir()
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "targets/a.yaml").symlink_to("../..data/a.yaml")
    looking = Looking(tmp_path, ["targets/*.yaml"])
    assert looking.look() == (["one"], [])

    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").replace(tmp_path / "..data")

    assert looking.look() == (["two"], [])


def test_a_thousand_targets_in_files_are_read(tmp_path: Path) -> None:
    for number in range(10):
        write(tmp_path / f"{number}.yaml", *(f"team-{number}/server-{index}" for index in range(100)))

    names, problems = Looking(tmp_path).look()

    assert len(names) == 1000
    assert problems == []


def test_files_beyond_the_limit_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets_files, "MAX_FILES", 2)  # rather than a thousand files
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.yaml", name)

    names, [problem] = Looking(tmp_path).look()

    assert names == ["a", "b"]
    assert (
        problem == "targets_files: 3 files match, of which the first 2 are read; write more targets into one"
    )
