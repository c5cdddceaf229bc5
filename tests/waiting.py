"""Waiting for a condition instead of for a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, TypeVar

T = TypeVar("T")


def eventually(check: Callable[[], T | Literal[False] | None], *, within: float = 60.0) -> T:
    """The first truthy result of `check`; AssertionError with the last one after `within` seconds.

    As long as it is, the deadline costs nothing where the condition comes, and a busy machine needs it.
    """
    deadline = time.monotonic() + within
    while True:
        result = check()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:g} s; the last result was {result!r}")
        time.sleep(0.02)
