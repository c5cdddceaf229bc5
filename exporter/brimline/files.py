"""Open files that somebody else names: regular ones only, because anything else could hang."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


class NotARegularFile(Exception):  # noqa: N818 - what it is, not what went wrong
    """A FIFO, a device or the like stands at the path."""


@contextmanager
def open_regular(path: str | Path) -> Iterator[BinaryIO]:
    """A regular file, open for reading. Raises OSError, and NotARegularFile without having waited for it."""
    # By an opener, because fdopen would leave the descriptor of a directory open.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise NotARegularFile(str(path))
        yield file
