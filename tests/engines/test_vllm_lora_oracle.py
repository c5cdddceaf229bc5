"""The golden file of vLLM's adapter slots still says what the installed vLLM allocates."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from engines.conftest import engine_python

TESTS = Path(__file__).parents[1]
GOLDEN = TESTS / "golden" / "lora_slots.json"


def test_the_golden_slots_are_those_of_the_installed_vllm(request: pytest.FixtureRequest) -> None:
    script = TESTS / "oracles" / "lora_slots.py"

    answer = subprocess.run(
        [engine_python("vllm"), script], check=True, stdout=subprocess.PIPE, text=True
    ).stdout

    if request.config.getoption("--update", default=False):
        GOLDEN.write_text(answer)
    assert json.loads(answer) == json.loads(GOLDEN.read_text())
