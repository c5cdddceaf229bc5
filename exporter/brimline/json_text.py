"""JSON that a server sends, decoded within bounds: few KiB of it can stand for hundreds of MiB of objects."""

from __future__ import annotations

import json
import re
from typing import Any

# The largest that is expected: SGLang's /server_info repeats some 500 settings for each data-parallel rank.
MAX_BYTES = 1 << 20
MAX_VALUES = 32_768
MAX_DEPTH = 32

# A text without an end is one, too: to look for the end of each anew would take quadratic time.
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


def _count(body: bytes) -> int:
    """Values that the text can hold, by what separates and opens them; never too few."""
    return sum(map(body.count, (b",", b"[", b"{")))


def excess(body: bytes) -> str | None:
    """In which way the text is larger than a document may be; None where it is not."""
    if len(body) > MAX_BYTES:
        return f"larger than {MAX_BYTES >> 20} MiB"
    # What users wrote, such as prompts at llama.cpp's /slots, may hold many commas.
    if _count(body) > MAX_VALUES and _count(_TEXT.sub(b"", body)) > MAX_VALUES:
        return f"more than {MAX_VALUES} values"
    return None


def decode(body: bytes) -> Any:
    """The decoded document; None where the text is none, or beyond the bounds."""
    if excess(body) is not None:
        return None
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return None if _is_deep(document) else document


def _is_deep(document: Any) -> bool:
    level = [document]
    for _ in range(MAX_DEPTH):
        lists = [value for value in level if isinstance(value, list)]
        level = [item for value in lists for item in value] + [
            item for value in level if isinstance(value, dict) for item in value.values()
        ]
        if not level:
            return False
    return True


def beginning(document: Any, characters: int) -> str:
    """The first characters of the document, indented for people; the rest is never written."""
    written: list[str] = []
    size = 0
    for part in json.JSONEncoder(indent=2).iterencode(document):
        written.append(part)
        size += len(part)
        if size >= characters:
            break
    return "".join(written)[:characters]
