"""Launch settings, given as text under an engine's own flag names, as typed values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from brimline.errors import SettingError
from brimline.units import parse_bytes, parse_count

Settings = Mapping[str, str]


def flag(name: str) -> str:
    """A setting's name as people write it on a command line."""
    return f"--{name.replace('_', '-')}"


def _stated(settings: Settings, name: str) -> str | None:
    """The setting; None where it is not given, or left to the engine."""
    text = settings.get(name)
    return None if text is None or text.strip().lower() in ("", "none", "auto") else text.strip()


def _stated_value(settings: Settings, name: str) -> str | None:
    """The setting, of a flag that takes a value; a command line reads one that stands alone as true."""
    stated = _stated(settings, name)
    if stated == "true":
        raise SettingError(f"{flag(name)} needs a value")
    return stated


def text(settings: Settings, name: str) -> str | None:
    """A word; None where it is not given, or left to the engine."""
    return _stated(settings, name)


# What no count reaches, and no size in bytes or number of GiB; floats hold each of them. It is not repeated
# in a message: it may have thousands of digits.
MOST = 1 << 60


def _below_most(name: str, value: float) -> None:
    if value > MOST:
        raise SettingError(f"{flag(name)}: no server has as many; write a smaller number")


def count(settings: Settings, name: str, *, least: int = 1) -> int | None:
    """A whole number such as 32768, 128k or 128K. Raises SettingError for others and below `least`."""
    stated = _stated_value(settings, name)
    if stated is None:
        return None
    try:
        number = parse_count(stated)
    except ValueError as error:
        raise SettingError(f"{flag(name)}: {error}") from None
    _below_most(name, number)
    if number < least:
        raise SettingError(f"{flag(name)} {stated}: it starts at {least}")
    return number


# More GPUs than any server is spread over; what is larger is refused before anything is made for each.
MOST_RANKS = 4096


def ranks(settings: Settings, name: str, *, least: int = 1) -> int | None:
    """GPUs, or groups of them, among which something is divided. Raises SettingError as `count` does."""
    number = count(settings, name, least=least)
    if number is not None and number > MOST_RANKS:
        raise SettingError(f"{flag(name)} {number}: no server is spread over more than {MOST_RANKS} GPUs")
    return number


def size(settings: Settings, name: str) -> int | None:
    """A size in bytes such as 8GiB, 4294967296 or, as vLLM writes it, 8G. Raises SettingError for others."""
    stated = _stated_value(settings, name)
    if stated is None:
        return None
    try:
        found = parse_count(stated)
    except ValueError:
        try:
            found = parse_bytes(stated)
        except ValueError as error:
            raise SettingError(f"{flag(name)}: {error}") from None
    _below_most(name, found)
    return found


def number(settings: Settings, name: str, *, least: float | None = None) -> float | None:
    """A number. Raises SettingError for others and below `least`."""
    stated = _stated_value(settings, name)
    if stated is None:
        return None
    try:
        value = float(stated)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SettingError(f"{flag(name)}: {stated[:60]!r} is not a number")
    _below_most(name, value)
    if least is not None and value < least:
        raise SettingError(f"{flag(name)} {stated}: it is {least:g} or more")
    return value


def ratio(settings: Settings, name: str) -> float | None:
    """A part of a whole, above 0 and at most 1. Raises SettingError for others."""
    value = number(settings, name)
    if value is not None and not 0 < value <= 1:
        raise SettingError(f"{flag(name)} {settings[name]}: it is above 0 and at most 1")
    return value


def switch(settings: Settings, name: str) -> bool | None:
    """On or off; None where it is not given. Raises SettingError for others."""
    stated = _stated(settings, name)
    if stated is None:
        return None
    if stated.lower() in ("true", "1", "on", "yes"):
        return True
    if stated.lower() in ("false", "0", "off", "no"):
        return False
    raise SettingError(f"{flag(name)}: {stated!r} is neither true nor false")


def mapping(settings: Settings, name: str) -> dict[str, Any] | None:
    """A mapping, given as JSON, as key=value pairs or by dotted names; None where it is not given.

    `{"method": "ngram"}`, `method=ngram,num_speculative_tokens=4` and the settings NAME.method and
    NAME.num_speculative_tokens mean the same; keys are taken with underscores. Raises SettingError.
    """
    found: dict[str, Any] = {}
    stated = _stated(settings, name)
    if stated is not None:
        found = _json_mapping(stated, name) if stated.startswith("{") else _pairs(stated, name)
    for key, value in settings.items():
        if key.startswith(f"{name}."):
            inner = found
            *path, last = key.removeprefix(f"{name}.").replace("-", "_").split(".")
            for step in path:
                nested = inner.setdefault(step, {})
                if not isinstance(nested, dict):
                    raise SettingError(f"{flag(key)}: {step} is a value, not a mapping")
                inner = nested
            inner[last] = _json_value(value)
    if not found and stated is None:
        return None
    return {key.replace("-", "_"): value for key, value in found.items()}


def _json_mapping(text: str, name: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise SettingError(
            f"{flag(name)}: {text[:60]!r} is no JSON object: line {error.lineno}, column {error.colno}: "
            f"{error.msg}"
        ) from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise SettingError(f'{flag(name)}: {text[:60]!r} is no JSON object; write it as {{"key": value}}')
    return found


def _pairs(text: str, name: str) -> dict[str, Any]:
    found = {}
    for pair in text.replace(",", " ").split():
        key, is_pair, value = pair.partition("=")
        if not is_pair or not key:
            raise SettingError(f"{flag(name)}: {pair[:60]!r} is no key=value pair; write JSON, or key=value")
        found[key] = _json_value(value)
    return found


def _json_value(text: str) -> Any:
    """What JSON makes of it; else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def words(settings: Settings, name: str) -> tuple[str, ...]:
    """Words between commas or blanks, or of a JSON list; none where it is not given."""
    stated = _stated(settings, name)
    if stated is None:
        return ()
    listed = _json_value(stated)
    if isinstance(listed, list):
        return tuple(map(str, listed))
    return tuple(stated.replace(",", " ").split())
