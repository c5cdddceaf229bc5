"""The golden numbers of parameters, and the defaults of classes, by the transformers that vLLM runs with."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from engines.conftest import engine_python

ROOT = Path(__file__).parents[2]
WRITTEN = {
    "parameter_counts.py": ROOT / "tests" / "golden" / "parameter_counts.json",
    "config_defaults.py": ROOT / "exporter" / "brimline" / "footprint" / "hf_defaults.json",
}


@pytest.mark.parametrize("script", WRITTEN)
def test_what_is_kept_is_what_the_installed_transformers_says(
    script: str, request: pytest.FixtureRequest
) -> None:
    command = [engine_python("vllm"), ROOT / "tests" / "oracles" / script]

    printed = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    ).stdout

    if request.config.getoption("--update", default=False):
        WRITTEN[script].write_text(printed)
    assert printed == WRITTEN[script].read_text()
