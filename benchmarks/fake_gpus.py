"""A libnvidia-ml.so.1 of GPUs that never change, for a program to load: the fake one of the tests."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import fake_nvml

STATE: dict[str, int | str] = {
    "name": "NVIDIA H100 80GB HBM3",
    "total": 85_520_809_984,
    "used": 60_000_000_000,
    "reserved": 577_634_304,
}


def environment(folder: Path, gpus: int = 8, *, stubs: Iterable[str] = ()) -> dict[str, str]:
    """The variables with which a program loads it. stubs: functions that it has, and does not support."""
    source = Path(fake_nvml.__file__).with_name("fake_nvml.c").read_text()
    missing = set(stubs) - set(re.findall(r"\b(nvml\w+)\(", source))
    source += "".join(f"int {name}(void) {{ return NOT_SUPPORTED; }}\n" for name in sorted(missing))
    file = folder / "fake_gpus.c"
    file.write_text(source)
    library = folder / fake_nvml.SONAME
    options = ["-O1", "-shared", "-fPIC", "-pthread", f"-Wl,-soname,{library.name}"]
    subprocess.run(["gcc", *options, "-o", library, file], check=True)
    variables = fake_nvml.State(folder, {**STATE, "count": gpus}).environment
    del variables["FAKE_NVML_CALLS"]  # a file of all calls is no part of what is measured
    return {**variables, "LD_LIBRARY_PATH": str(folder)}
