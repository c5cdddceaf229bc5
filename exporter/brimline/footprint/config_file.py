"""A model's config.json, read with care: it may come from anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from brimline.errors import FootprintError
from brimline.files import NotARegularFile, open_regular

MAX_CONFIG_BYTES = 4 << 20


def read_config(file: Path) -> dict[str, Any]:
    """Settings of a config.json. Raises FootprintError."""
    try:
        with open_regular(file) as opened:
            content = opened.read(MAX_CONFIG_BYTES + 1)
    except NotARegularFile:
        raise FootprintError(f"{file} is not a regular file") from None
    except OSError as error:
        raise FootprintError(f"{file} cannot be read ({error.strerror})") from None
    return parse_config(content, str(file))


def parse_config(content: bytes | str, source: str) -> dict[str, Any]:
    """Settings in the text of a config.json; `source` stands in the messages. Raises FootprintError."""
    if len(content) > MAX_CONFIG_BYTES:
        raise FootprintError(f"{source} is too large for a model's config.json")
    try:
        config = json.loads(content)
    except json.JSONDecodeError as error:
        raise FootprintError(
            f"{source} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    except (ValueError, RecursionError):
        raise FootprintError(f"{source} is not JSON") from None
    if not isinstance(config, dict):
        raise FootprintError(f"{source} does not hold a model's settings")
    return config
