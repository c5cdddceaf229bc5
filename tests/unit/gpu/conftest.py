"""Our own NVML inside this process, with two GPUs."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pynvml
import pytest

from fake_nvml import State, build

GIB = 1 << 30
TWO_GPUS: dict[str, int | str] = {
    "count": 2, "driver": "570.1", "total": 80 * GIB, "used.0": 10 * GIB, "used.1": 20 * GIB, "reserved": GIB,
}  # fmt: skip


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = build(tmp_path_factory.mktemp("nvml"))
    ctypes.CDLL(str(path))  # held, so that the sampler finds it by its soname after unloading it
    return path


@pytest.fixture
def state(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    state = State(tmp_path, TWO_GPUS)
    for name, value in state.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(library)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return state
