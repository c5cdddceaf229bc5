"""The file in which `brimline ab aa` leaves what equal variants differ by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from brimline.errors import ConfigError
from brimline.strict_yaml import read_text


class NoiseFloor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """By how much two arms alike may differ, by metric: the farther bound of the interval, as a ratio.

    method: how the arms came about: servers dealt out to two arms, or one day beside another.
    block_deviation: by metric, the standard deviation of a block's difference (of its logarithm).
    events_per_block, dispersion: of rare events, in both arms together.
    """

    schema_version: Literal[1] = 1
    experiment: str
    baseline: str
    method: Literal["replicas", "days"]
    start: float
    end: float
    block_seconds: float
    blocks: int
    simulated: bool = False
    noise_floor_ratio: dict[str, Annotated[float, msgspec.Meta(ge=0)]]
    block_deviation: dict[str, Annotated[float, msgspec.Meta(ge=0)]] = {}
    events_per_block: dict[str, Annotated[float, msgspec.Meta(ge=0)]] = {}
    dispersion: dict[str, Annotated[float, msgspec.Meta(ge=1)]] = {}


def written(floor: NoiseFloor) -> str:
    """The file's text."""
    return json.dumps(msgspec.to_builtins(floor), indent=2, allow_nan=False) + "\n"


def read(path: Path) -> NoiseFloor:
    """The file as it was written. Raises ConfigError."""
    try:
        return msgspec.json.decode(read_text(path), type=NoiseFloor)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path}: no file of `brimline ab aa` ({error}); make it anew") from None
