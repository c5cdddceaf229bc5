"""Durations, byte sizes and token counts: parsed from what people write, printed as people read them.

Arithmetic elsewhere is in bytes, tokens and seconds; nothing but this module knows of GiB.
"""

from __future__ import annotations

import functools
import math
import re
from fractions import Fraction

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]i?B|B|)")
_BYTE_UNITS = {
    "": 1, "B": 1,
    "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "kiB": 2**10, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip

# vLLM's human_readable_int (0.32, engine/arg_utils.py): lower case is decimal, upper case binary.
_COUNT = re.compile(r"(\d+(?:\.\d+)?)([kmgtKMGT]?)")
_COUNT_UNITS = {
    "": 1,
    "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
    "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40,
}  # fmt: skip


def parse_duration(text: str) -> float:
    """Seconds in a duration such as `5s`, `1m30s` or `250ms`. Raises ValueError."""
    parts = list(_DURATION.finditer(text))
    if not parts or "".join(part.group(0) for part in parts) != text:
        raise ValueError(f"{text!r} is not a duration; write it with a unit, such as 250ms, 5s or 1m30s")
    seconds = sum(float(part.group(1)) * _SECONDS[part.group(2)] for part in parts)
    if not math.isfinite(seconds):
        raise ValueError(f"{text[:20]!r}… is too long a duration; write a shorter one, such as 5s")
    return seconds


def parse_bytes(text: str) -> int:
    """Bytes in a size such as `512MiB`, `2GiB` or `1000000`. Raises ValueError."""
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size in bytes; write it as 512MiB, 2GiB or a plain number")
    return int(Fraction(match.group(1)) * _BYTE_UNITS[match.group(2)])


@functools.lru_cache(4096)  # live settings come again with each scrape
def parse_count(text: str) -> int:
    """Number in a token count such as `131072`, `128k` (128,000) or `128K` (131,072). Raises ValueError."""
    match = _COUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a count; write it as 131072, 128k (128,000) or 128K (131,072)")
    value = Fraction(match.group(1)) * _COUNT_UNITS[match.group(2)]
    if value != int(value):
        raise ValueError(f"{text!r} is not a whole number")
    return int(value)


def write_duration(seconds: float) -> str:
    """`1h30m` for 5400: whole seconds as parse_duration and PromQL read them; fractions are dropped."""
    rest = int(seconds)
    written = ""
    for unit in ("d", "h", "m", "s"):
        count, rest = divmod(rest, int(_SECONDS[unit]))
        written += f"{count}{unit}" if count else ""
    return written or "0s"


def write_bytes(count: float) -> str:
    """`512MiB` for 536870912: as parse_bytes reads it, in the largest unit that is exact."""
    whole = int(count)
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if whole and whole % _BYTE_UNITS[unit] == 0:
            return f"{whole // _BYTE_UNITS[unit]}{unit}"
    return str(whole)


def format_bytes(count: float | None) -> str:
    """`1.50 GiB` for 1610612736; `–` where nothing is known."""
    if count is None:
        return "–"
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1024
    return f"{size:.2f} TiB"


def format_count(count: float | None) -> str:
    """`1,048,576`; `–` where nothing is known."""
    return "–" if count is None else f"{count:,.0f}"


def format_ratio(ratio: float | None) -> str:
    """`37.3 %` for 0.373; `–` where nothing is known."""
    return "–" if ratio is None else f"{ratio * 100:.1f} %"


def format_amount(amount: float | None, unit: str) -> str:
    """An amount of `bytes`, `tokens` or `requests`; `–` where nothing is known."""
    if amount is None:
        return "–"
    if unit == "bytes":
        return format_bytes(amount)
    return f"{amount:.2f}" if unit == "requests" else format_count(amount)


def format_difference(ratio: float | None) -> str:
    """`+3.1 %` for 0.031; `–` where nothing is known."""
    return "–" if ratio is None else f"{ratio * 100:+.1f} %"


def format_duration(seconds: float | None) -> str:
    """`3 d 4 h`, `12 min`, `4.2 s` or `35 ms`; `–` where nothing is known."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds // 86400:.0f} d {seconds % 86400 // 3600:.0f} h"
