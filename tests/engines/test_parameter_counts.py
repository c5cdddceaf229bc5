"""The golden numbers of parameters, counted anew by the transformers that vLLM runs with."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from engines.conftest import engine_python

TESTS = Path(__file__).parents[1]


def test_the_golden_counts_are_those_of_the_installed_transformers() -> None:
    """Regenerate: the engine's python on tests/oracles/parameter_counts.py > the golden file."""
    command = [engine_python("vllm"), TESTS / "oracles" / "parameter_counts.py"]
    golden = json.loads((TESTS / "golden" / "parameter_counts.json").read_text())

    printed = subprocess.run(
        command, check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    ).stdout

    assert json.loads(printed) == golden
