"""Files that somebody else names: opened where they are regular, because anything else could hang, and shown
without the folders that they lie in.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import BinaryIO

# An absolute path, up to what a sentence may put behind one; none within a URL, a ratio or a relative path.
_PATH = re.compile(r"(?<![\w.:/%)\]>-])/(?:[^\s/:;,'\"()]+/)*([^\s/:;,'\"()]+)/?")


def without_folders(text: str, *known: str) -> str:
    """The text with each absolute path as its last part, for people who need not know this machine's folders.

    known: paths that stand in it, which may hold what a sentence may not; what lies within them keeps its
    way there.
    """
    for path in sorted(known, key=len, reverse=True):
        if path.startswith("/") and PurePath(path).name:
            text = text.replace(path.rstrip("/"), PurePath(path).name)
    return _PATH.sub(r"\1", text)


def stamp(path: Path) -> tuple[int, int, int, int]:
    """Another one once the file was written or replaced. Raises OSError."""
    seen = path.stat()
    return seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino, seen.st_size


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
