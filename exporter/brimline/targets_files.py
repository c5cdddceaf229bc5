"""The files of `targets_files`: found by pattern, read where they have changed, kept where they turn bad."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from brimline.config import ReadTargets, Target, parse_targets
from brimline.errors import ConfigError
from brimline.files import stamp
from brimline.strict_yaml import read_text

MAX_FILES = 1000

_Signature = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Known:
    """A file as it was last looked at.

    accepted: what is in force of it. offered: what it says now; None where that is no list of targets.
    """

    signature: _Signature | None = None
    accepted: ReadTargets = field(default_factory=ReadTargets)
    offered: ReadTargets | None = None
    problem: str | None = None

    @property
    def has_changed(self) -> bool:
        return self.offered is not None and self.offered is not self.accepted


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundTargets:
    """The targets of all files, and what is wrong with some: `FILE:LINE: what; what to do`.

    places: FILE:LINE of each target by its name.
    """

    targets: tuple[Target, ...] = ()
    problems: tuple[str, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)


class TargetsFiles:
    """Reads the files again and again. Not for several threads at once."""

    def __init__(self, folder: Path) -> None:
        """folder: where relative patterns begin, that of the configuration file."""
        self._folder = folder
        self._known: dict[Path, _Known] = {}

    def read(self, patterns: Sequence[str], taken: Mapping[str, str]) -> FoundTargets:
        """The targets of the files there are now.

        taken: names that are in use already, with their places. A file that is new or has changed gives way
        to one that has not; of two, the one that comes later in order.
        """
        paths, problems = self._find(patterns)
        known = {path: self._look(path) for path in paths}
        places = dict(taken)
        accepted: dict[Path, ReadTargets] = {}
        for path in sorted(paths, key=lambda path: known[path].has_changed):
            seen = known[path]
            if seen.problem is not None:
                problems.append(seen.problem)
            offered = seen.accepted if seen.offered is None else seen.offered
            clash = _clash(offered, places)
            if clash is not None:
                problems.append(clash)
                offered = _without(seen.accepted, places)
            accepted[path] = offered
            places.update(offered.places)
            known[path] = _Known(seen.signature, offered, seen.offered, seen.problem)
        self._known = known
        return FoundTargets(
            targets=tuple(target for path in paths for target in accepted[path].targets),
            problems=tuple(problems),
            places={name: where for path in paths for name, where in accepted[path].places.items()},
        )

    def _find(self, patterns: Sequence[str]) -> tuple[list[Path], list[str]]:
        """The files of the patterns in their order, each once, and what is wrong with folders.

        A folder that cannot be listed keeps the files that were known in it: what is not seen is not gone.
        """
        found: dict[Path, None] = {}
        problems = []
        for pattern in patterns:
            path = self._folder / pattern
            try:
                names = sorted(entry.name for entry in path.parent.iterdir())
            except OSError as error:
                problems.append(
                    f"{path.parent}: cannot be listed ({error.strerror}); check the path and its permissions"
                )
                names = sorted(known.name for known in self._known if known.parent == path.parent)
            matching = [name for name in names if _matches(name, path.name)]
            if not matching and not any(character in path.name for character in "*?["):
                problems.append(f"{path}: there is no such file; write it, or remove it from targets_files")
            found |= dict.fromkeys(path.parent / name for name in matching)
        if len(found) > MAX_FILES:
            problems.append(
                f"targets_files: {len(found)} files match, of which the first {MAX_FILES} are read; "
                "write more targets into one"
            )
        return list(found)[:MAX_FILES], problems

    def _look(self, path: Path) -> _Known:
        """The file now; read only where it has changed since the last look."""
        before = self._known.get(path, _Known())
        try:
            signature = stamp(path)
        except OSError as error:
            problem = f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
            return _Known(None, before.accepted, None, problem)
        if signature == before.signature and before.problem is None:
            return before
        try:
            offered = parse_targets(read_text(path), str(path))
        except ConfigError as error:
            return _Known(signature, before.accepted, None, str(error))
        return _Known(signature, before.accepted, offered, None)


def _matches(name: str, pattern: str) -> bool:
    if name.startswith(".") and not pattern.startswith("."):
        return False  # as in a shell; Kubernetes and editors put things there
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _clash(offered: ReadTargets, places: Mapping[str, str]) -> str | None:
    """The first name that stands elsewhere already, with both places."""
    for target in offered.targets:
        if target.name in places:
            return (
                f"{offered.places[target.name]}: the target name {target.name!r} stands in "
                f"{places[target.name]}, too; rename one"
            )
    return None


def _without(known: ReadTargets, places: Mapping[str, str]) -> ReadTargets:
    """What was in force of a file, less what others have taken meanwhile."""
    if _clash(known, places) is None:
        return known
    targets = tuple(target for target in known.targets if target.name not in places)
    return ReadTargets(targets=targets, places={target.name: known.places[target.name] for target in targets})
