"""Turns, so that a thousand answers do not come in at once and lie in memory together."""

from __future__ import annotations

import asyncio
from types import TracebackType

# How many requests may be on their way, each with up to a page in memory.
MOST = 64
# Whoever takes longer gives its turn back: servers that hang must not hold up the others. A hundred of them
# cost a round of a thousand 0.4 s.
PATIENCE = 0.25


class Turns:
    """So many turns at a time; each ends with its block, or after a while."""

    def __init__(self, most: int = MOST, patience: float = PATIENCE) -> None:
        self._free = asyncio.Semaphore(most)
        self._patience = patience

    def one(self) -> Turn:
        """A turn to wait for: `async with turns.one(): …`."""
        return Turn(self._free, self._patience)


class Turn:
    """One turn."""

    __slots__ = ("_free", "_is_mine", "_patience", "_timer")

    def __init__(self, free: asyncio.Semaphore, patience: float) -> None:
        self._free = free
        self._patience = patience
        self._is_mine = False
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        await self._free.acquire()
        self._is_mine = True
        self._timer = asyncio.get_running_loop().call_later(self._patience, self._give_back)

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._give_back()

    def _give_back(self) -> None:
        if self._is_mine:
            self._is_mine = False
            self._free.release()
        if self._timer is not None:
            self._timer.cancel()
