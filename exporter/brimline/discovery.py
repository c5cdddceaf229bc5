"""Find inference servers on this machine at the engines' usual ports, for a start without configuration."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

import aiohttp
import msgspec

from brimline.collect import Collector, TargetReader
from brimline.config import Config, Target
from brimline.engines import ENGINES
from brimline.fetch import open_session
from brimline.readings import TargetSnapshot

logger = logging.getLogger(__name__)

INTERVAL = 10.0
# A port where something else answers is left alone, at last for this long.
FOREIGN_PATIENCE = 120.0
CONNECT_TIMEOUT = 0.5
READ_TIMEOUT = 5.0


def usual_ports() -> tuple[int, ...]:
    """The ports that the known engines listen on by default."""
    return tuple(sorted({port for adapter in ENGINES.values() for port in adapter.usual_ports}))


async def _is_open(port: int) -> bool:
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(CONNECT_TIMEOUT):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return True
    return False


class Discovery:
    """Looks for servers again and again; one that was found stays a target, up or down."""

    def __init__(self, ports: Sequence[int], *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.ports = tuple(ports)
        self.found: dict[int, Target] = {}
        self._refused: dict[int, tuple[float, float]] = {}  # when to look again, and for how long it was left
        self._monotonic = monotonic

    async def look(self) -> list[Target]:
        """Targets that were not known before."""
        now = self._monotonic()
        candidates = [
            port
            for port in self.ports
            if port not in self.found and now >= self._refused.get(port, (0.0, 0.0))[0]
        ]
        opened = await asyncio.gather(*(_is_open(port) for port in candidates))
        ports = [port for port, is_open in zip(candidates, opened, strict=True) if is_open]
        targets = [Target(name=f"127.0.0.1:{port}", url=f"http://127.0.0.1:{port}") for port in ports]
        async with open_session() as session:
            # All at once: a port that hangs must not keep the others from being found.
            snapshots = await asyncio.gather(*(self._read(target, session) for target in targets))
        fresh = []
        for port, target, snapshot in zip(ports, targets, snapshots, strict=True):
            if snapshot.reading is not None:
                self.found[port] = target
                fresh.append(target)
                models = ", ".join(snapshot.reading.by_model()) or "no model yet"
                logger.info("found=%s engine=%s models=%r", target.url, snapshot.reading.engine, models)
            else:
                reason = snapshot.problems[0].reason if snapshot.problems else "unknown"
                # Something that is no engine is soon left alone; an engine may be loading its model still.
                patience = FOREIGN_PATIENCE if reason in ("not_an_engine", "not_found") else INTERVAL
                left = min(2 * self._refused.get(port, (0.0, patience / 2))[1], FOREIGN_PATIENCE)
                self._refused[port] = (now + left, left)
                logger.debug("port=%d not taken reason=%s", port, reason)
        return fresh

    async def _read(self, target: Target, session: aiohttp.ClientSession) -> TargetSnapshot:
        reader = TargetReader(
            target,
            session,
            timeout=READ_TIMEOUT,
            histograms="none",
            clock=time.time,
            monotonic=self._monotonic,
            quiet_launch=True,
            quiet=True,
        )
        return await reader.read()

    def config(self, base: Config) -> Config:
        """The base configuration with what was found as its targets."""
        return msgspec.structs.replace(base, targets=[self.found[port] for port in sorted(self.found)])


async def keep_looking(discovery: Discovery, collector: Collector, base: Config) -> None:
    """Add each server found to the collector's targets; runs until cancelled."""
    said_nothing = False
    while True:
        if await discovery.look():
            collector.configure(discovery.config(base))
        elif not discovery.found and not said_nothing:
            said_nothing = True
            ports = ", ".join(map(str, discovery.ports))
            logger.warning(
                "no inference server answers on 127.0.0.1 at the usual ports (%s); still looking every %g s. "
                "Name yours in a file and start with --config FILE",
                ports,
                INTERVAL,
            )
        await asyncio.sleep(INTERVAL)
