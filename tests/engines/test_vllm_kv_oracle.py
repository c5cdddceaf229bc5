"""The golden file of vLLM's KV cache still says what the installed vLLM answers."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from engines.conftest import VLLM_ENVIRONMENT, engine_python

TESTS = Path(__file__).parents[1]
GOLDEN = TESTS / "golden" / "vllm_kv_cache.json"


def test_the_golden_answers_are_those_of_the_installed_vllm(request: pytest.FixtureRequest) -> None:
    script = TESTS / "oracles" / "vllm_kv_cache.py"

    answer = subprocess.run(
        [engine_python("vllm"), script],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **VLLM_ENVIRONMENT},
    ).stdout

    if request.config.getoption("--update", default=False):
        GOLDEN.write_text(answer)
    assert json.loads(answer) == json.loads(GOLDEN.read_text())
