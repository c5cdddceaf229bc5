"""Our own libnvidia-ml.so.1, and the file that tells it what to answer; see fake_nvml.c for the keys."""

from __future__ import annotations

import itertools
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SONAME = "libnvidia-ml.so.1"
_SERIAL = itertools.count()


def build(directory: Path, *macros: str) -> Path:
    """The library, compiled into `directory` with -D of each macro; replaces one already there in one go."""
    source = Path(__file__).with_name("fake_nvml.c")
    library = directory / SONAME
    draft = directory / f".{SONAME}.{next(_SERIAL)}"
    options = [*(f"-D{macro}" for macro in macros), "-shared", "-fPIC", f"-Wl,-soname,{SONAME}"]
    subprocess.run(["gcc", "-O1", "-Wall", "-Wextra", "-Werror", *options, "-o", draft, source], check=True)
    draft.replace(library)
    return library


class State:
    """The state file of the fake and the file of its calls."""

    def __init__(self, directory: Path, values: dict[str, int | str]) -> None:
        self.path = directory / "nvml-state"
        self.calls_path = directory / "nvml-calls"
        self._values: dict[str, int | str] = {}
        self.set(values)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make the fake look here."""
        return {"FAKE_NVML_STATE": str(self.path), "FAKE_NVML_CALLS": str(self.calls_path)}

    def set(self, values: dict[str, int | str]) -> None:
        """Add or change keys, all of them at the same moment."""
        self._write({**self._values, **values})

    def replace(self, values: dict[str, int | str]) -> None:
        """These keys and no others."""
        self._write(values)

    def remove(self, *keys: str) -> None:
        """Take keys away; those that are not there are passed over."""
        self._write({key: value for key, value in self._values.items() if key not in keys})

    @contextmanager
    def during(self, values: dict[str, int | str]) -> Iterator[None]:
        """These keys for a while, then what was there before."""
        before = dict(self._values)
        self.set(values)
        try:
            yield
        finally:
            self._write(before)

    def calls(self) -> Counter[str]:
        """How often each function was called, by `FUNCTION DEVICE`."""
        text = self.calls_path.read_text() if self.calls_path.exists() else ""
        return Counter(line.strip() for line in text.splitlines())

    def _write(self, values: dict[str, int | str]) -> None:
        self._values = values
        draft = self.path.with_suffix(".draft")
        draft.write_text("".join(f"{key}={value}\n" for key, value in values.items()))
        draft.replace(self.path)
