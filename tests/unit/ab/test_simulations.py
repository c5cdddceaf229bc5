"""A small version of the simulations in docs/ab.md."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ONE_ROW = ("--only", "no_effect", "--only", "harmed", "--only", "at_margin", "--rows", "shared demand")


@pytest.mark.parametrize("parts", [ONE_ROW, pytest.param((), marks=pytest.mark.long)], ids=["one row", "all"])
def test_error_rates_and_power_are_within_the_bars(parts: tuple[str, ...]) -> None:
    # Threads of a linear algebra library would only get into each other's way.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    checked = subprocess.run(
        [sys.executable, ROOT / "tools/simulate_ab.py", "--check", *parts],
        capture_output=True,
        text=True,
        env=environment,
    )

    assert checked.returncode == 0, checked.stderr
    assert "flagged WORSE" in checked.stdout
