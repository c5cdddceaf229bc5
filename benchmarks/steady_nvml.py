"""A libnvidia-ml.so.1 of eight GPUs that never change: the tests' fake one, without its state file.

The fake reads a file several times in each call, which would be most of what a sampling exporter costs.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "tests/fake_nvml/fake_nvml.c"
STATE = {
    "count": 8,
    "name": "NVIDIA H100 80GB HBM3",
    "total": 85520809984,
    "used": 60000000000,
    "reserved": 577634304,
}


def environment(folder: Path, *, stubs: Iterable[str] = ()) -> dict[str, str]:
    """The variables with which a program loads it. stubs: functions that it has, and does not support."""
    state = "".join(f"{key}={value}\\n" for key, value in STATE.items())
    source = SOURCE.read_text()
    steady = re.sub(r'path \? fopen\(path, "r"\) : NULL', 'fmemopen(steady, sizeof steady - 1, "r")', source)
    assert steady != source
    steady = steady.replace(
        "static int references", f'static char steady[] = "{state}";\nstatic int references', 1
    )
    steady = steady.replace('const char *path = getenv("FAKE_NVML_STATE");', "")
    defined = set(re.findall(r"\b(nvml\w+)\(", source))
    steady += "".join(
        f"int {name}(void) {{ return NOT_SUPPORTED; }}\n" for name in sorted(set(stubs) - defined)
    )
    file = folder / "steady_nvml.c"
    file.write_text(steady)
    library = folder / "libnvidia-ml.so.1"
    options = ["-O1", "-shared", "-fPIC", f"-Wl,-soname,{library.name}"]
    subprocess.run(["gcc", *options, "-o", library, file], check=True)
    return {"LD_LIBRARY_PATH": str(folder)}
