"""The processes that listen on the ports of local targets, with their main memory: one look for all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from brimline.processes import (
    PROC,
    Cgroup,
    ProcessFamily,
    cgroup_memory,
    cgroup_of_its_own,
    families_on,
    resident_bytes,
)
from brimline.readings import ProcessReading
from brimline.threads import in_daemon_thread

# How long it is taken as known who listens.
MAX_AGE = 10.0
# How long a round waits for the look; later rounds have what it found.
PATIENCE = 0.5


_Seen = tuple[dict[int, ProcessFamily], dict[ProcessFamily, Cgroup | None]]


def _look(ports: Collection[int], known: Mapping[int, int], proc: Path) -> _Seen:
    """The processes behind each port, and where the memory of each is counted."""
    families = families_on(ports, known, proc)
    return families, {each: cgroup_of_its_own(each.listener, proc) for each in families.values()}


class Listeners:
    """Who listens on which port; shared by the readers of all targets.

    A thousand targets of a machine that each looked through all its processes would do nothing else.
    """

    def __init__(self, monotonic: Callable[[], float], *, proc: Path = PROC) -> None:
        self._monotonic = monotonic
        self._proc = proc
        self._ports: set[int] = set()
        self._looked_for: frozenset[int] = frozenset()
        self._looked_at: float | None = None
        self._look: asyncio.Future[_Seen] | None = None
        self._families: dict[int, ProcessFamily] = {}
        self._cgroups: dict[ProcessFamily, Cgroup | None] = {}
        self._memory: dict[ProcessFamily, tuple[float, ProcessReading]] = {}

    def add(self, port: int) -> None:
        """Look for that port, too."""
        self._ports.add(port)

    def keep(self, ports: Collection[int]) -> None:
        """Look for no others from now on."""
        self._ports &= set(ports)

    async def read(self, port: int, *, since: float) -> ProcessReading | None:
        """The processes behind the port with their main memory; None where they are not visible.

        since: when the caller's round began. Memory that was read after that is of this round, and is not
        read once more for the next target that the same process serves.
        """
        family = await self._family(port)
        if family is None:
            return None
        known = self._memory.get(family)
        if known is not None and known[0] >= since:
            return known[1]
        at = self._monotonic()
        cgroup = self._cgroups.get(family)
        counted = None if cgroup is None else cgroup_memory(cgroup)
        if counted is None:
            used, limit = resident_bytes(family.pids, self._proc), None
        else:
            used, limit = counted
        reading = ProcessReading(pids=family.pids, host_memory_used_bytes=used, host_memory_limit_bytes=limit)
        self._memory[family] = at, reading
        return reading

    async def _family(self, port: int) -> ProcessFamily | None:
        now = self._monotonic()
        is_due = self._looked_at is None or now - self._looked_at >= MAX_AGE
        if self._look is None and (is_due or port not in self._looked_for):
            self._ports.add(port)
            self._looked_at, self._looked_for = now, frozenset(self._ports)
            ports, known = self._looked_for, {p: each.listener for p, each in self._families.items()}
            self._look = in_daemon_thread(lambda: _look(ports, known, self._proc), "processes")
        look = self._look
        if look is not None:
            if not look.done():
                await asyncio.wait([look], timeout=PATIENCE)
            if look.done() and look is self._look:
                self._look = None
                self._families, self._cgroups = ({}, {}) if look.exception() is not None else look.result()
                self._memory.clear()
        return self._families.get(port)
