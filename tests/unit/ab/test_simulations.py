"""A small version of the simulations in docs/ab.md."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_error_rates_and_power_are_within_the_bars() -> None:
    # Threads of a linear algebra library would only get into each other's way.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    checked = subprocess.run(
        [sys.executable, ROOT / "tools/simulate_ab.py", "--check"],
        capture_output=True,
        text=True,
        env=environment,
    )

    assert checked.returncode == 0, checked.stderr
    assert "flagged WORSE" in checked.stdout
