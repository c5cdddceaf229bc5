"""Every saved server under tests/captures reads as its golden file says.

A new capture (`brimline capture`) fails here until `pytest --update` has written its golden file and somebody
has read it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brimline.saved_page import as_json, open_saved, read_saved

TESTS = Path(__file__).parent.parent
CAPTURES = sorted(path for path in (TESTS / "captures").iterdir() if path.is_dir())


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.name)
def test_a_capture_reads_as_its_golden_file_says(capture: Path, request: pytest.FixtureRequest) -> None:
    read = json.dumps(as_json(read_saved(open_saved(str(capture)))), indent=2, sort_keys=True) + "\n"
    golden = TESTS / "golden" / f"{capture.name}.json"

    if request.config.getoption("--update"):
        golden.write_text(read)

    assert golden.exists(), f"run pytest --update and read {golden}"
    assert read == golden.read_text()


def test_captures_hold_no_secret() -> None:
    kept = b"".join(path.read_bytes() for capture in CAPTURES for path in capture.iterdir())

    assert b"Authorization" not in kept
    assert b'"prompt"' not in kept  # what users wrote
