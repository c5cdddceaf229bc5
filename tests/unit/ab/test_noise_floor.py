"""The file of what equal variants differ by."""

from __future__ import annotations

from pathlib import Path

import pytest

from brimline.ab.noise_floor import NoiseFloor, read, written
from brimline.errors import ConfigError

FLOOR = NoiseFloor(
    experiment="kv",
    baseline="short",
    method="days",
    start=0.0,
    end=86400.0,
    block_seconds=900.0,
    blocks=96,
    noise_floor_ratio={"inter_token_latency": 0.021},
    block_deviation={"inter_token_latency": 0.08},
)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "floor.json"
    path.write_text(written(FLOOR))

    assert read(path) == FLOOR


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        written(FLOOR).replace("0.021", "-0.021"),
        written(FLOOR).replace('"schema_version": 1', '"schema_version": 2'),
        written(FLOOR).replace('"blocks"', '"blocs"'),
    ],
)
def test_what_is_none_is_refused_with_what_to_do(text: str, tmp_path: Path) -> None:
    path = tmp_path / "floor.json"
    path.write_text(text)

    with pytest.raises(ConfigError, match=r"no file of `brimline ab aa` .*; make it anew"):
        read(path)
