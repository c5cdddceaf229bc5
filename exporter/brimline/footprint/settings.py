"""Launch settings, given as text under an engine's own flag names, as typed values."""

from __future__ import annotations

import math
from collections.abc import Mapping

from brimline.errors import FootprintError
from brimline.units import parse_bytes, parse_count

Settings = Mapping[str, str]


def flag(name: str) -> str:
    """A setting's name as people write it on a command line."""
    return f"--{name.replace('_', '-')}"


def _stated(settings: Settings, name: str) -> str | None:
    """The setting; None where it is not given, or left to the engine."""
    text = settings.get(name)
    return None if text is None or text.strip().lower() in ("", "none", "auto") else text.strip()


def text(settings: Settings, name: str) -> str | None:
    """A word; None where it is not given, or left to the engine."""
    return _stated(settings, name)


def count(settings: Settings, name: str, *, least: int = 1) -> int | None:
    """A whole number such as 32768, 128k or 128K. Raises FootprintError for others and below `least`."""
    stated = _stated(settings, name)
    if stated is None:
        return None
    try:
        number = parse_count(stated)
    except ValueError as error:
        raise FootprintError(f"{flag(name)}: {error}") from None
    if number < least:
        raise FootprintError(f"{flag(name)} {stated}: it starts at {least}")
    return number


def size(settings: Settings, name: str) -> int | None:
    """A size in bytes such as 8GiB or 4294967296. Raises FootprintError for others."""
    stated = _stated(settings, name)
    if stated is None:
        return None
    try:
        return parse_bytes(stated)
    except ValueError as error:
        raise FootprintError(f"{flag(name)}: {error}") from None


def number(settings: Settings, name: str) -> float | None:
    """A number. Raises FootprintError for others."""
    stated = _stated(settings, name)
    if stated is None:
        return None
    try:
        value = float(stated)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise FootprintError(f"{flag(name)}: {stated!r} is not a number")
    return value


def switch(settings: Settings, name: str) -> bool | None:
    """On or off; None where it is not given. Raises FootprintError for others."""
    stated = _stated(settings, name)
    if stated is None:
        return None
    if stated.lower() in ("true", "1", "on", "yes"):
        return True
    if stated.lower() in ("false", "0", "off", "no"):
        return False
    raise FootprintError(f"{flag(name)}: {stated!r} is neither true nor false")
