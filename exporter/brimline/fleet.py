"""The targets of an exporter: of its configuration, of further files and of pods, as they come and go."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from brimline.collect import Collector
from brimline.config import Config, Target, doubts
from brimline.readings import DiscoveryReading
from brimline.targets_files import FoundTargets, TargetsFiles
from brimline.threads import in_daemon_thread

if TYPE_CHECKING:
    from brimline.pods import PodWatch

logger = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 5.0
# A reload waits so long for the files; a dead file system must not keep it longer.
LOOK_PATIENCE_SECONDS = 5.0
# Pods are waited for so long at the start.
PODS_PATIENCE_SECONDS = 5.0
# Many pods change at once in a rollout.
PODS_SETTLE_SECONDS = 0.5
FILES = "files"
HANGS = "targets_files: not read within 5 s; a file system may hang, and the targets known before stay"


class Fleet:
    """Puts the targets of all sources in force, all at once; a source that fails keeps those known before."""

    def __init__(
        self,
        collector: Collector,
        config: Config,
        *,
        path: Path | None = None,
        places: Mapping[str, str] | None = None,
        pods: PodWatch | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """path: of the configuration file, where relative patterns begin. places: where its targets stand."""
        self._collector = collector
        self._base = config
        self._places = places or {}
        self._pods = pods
        self._clock = clock
        self._files = TargetsFiles(Path() if path is None else path.parent)
        self._found = FoundTargets()
        self._files_read_at: float | None = None
        self._files_errors = 0
        self._looking: asyncio.Future[FoundTargets] | None = None
        self._outdated: asyncio.Future[FoundTargets] | None = None  # a look in flight that nobody wants
        self._hangs = False
        self._doubts: frozenset[str] | None = None
        self._applying: asyncio.TimerHandle | None = None
        self._watching: asyncio.Task[None] | None = None
        collector.discovery = self.readings

    async def start(self) -> None:
        """Put the targets of now in force, and keep looking for others."""
        if self._pods is not None:
            self._pods.start(self._in_loop())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PODS_PATIENCE_SECONDS):
                    while not self._pods.is_known:  # noqa: ASYNC110 - threads set no event of this loop
                        await asyncio.sleep(0.02)
        await self.settle()
        self._watching = asyncio.ensure_future(self._keep_looking())
        self._watching.add_done_callback(_report_end)

    def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        if self._pods is not None:
            self._pods.stop()

    def _in_loop(self) -> Callable[[], None]:
        """What threads call where pods have changed."""
        loop = asyncio.get_running_loop()

        def changed() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._apply_soon)

        return changed

    def _apply_soon(self) -> None:
        if self._applying is None:
            loop = asyncio.get_running_loop()
            self._applying = loop.call_later(PODS_SETTLE_SECONDS, self._apply_pods)

    def _apply_pods(self) -> None:
        self._applying = None
        self.apply()

    @property
    def problem(self) -> str | None:
        """What is wrong with files; None for nothing."""
        hangs = (HANGS,) if self._hangs else ()
        return "\n".join((*hangs, *self._found.problems)) or None

    async def settle(self, config: Config | None = None, places: Mapping[str, str] | None = None) -> None:
        """Put in force what files say now, at once with another configuration where one is given."""
        base = self._base if config is None else config
        taken = self._places if places is None else places
        if base.targets_files:
            if self._looking is not None:  # for the configuration before
                await asyncio.wait([self._looking], timeout=LOOK_PATIENCE_SECONDS)
            await self._look(base, taken)
        else:
            # What is still being read belongs to the configuration before, and nothing would remove it later.
            self._outdated = self._looking
            self._found, self._hangs = FoundTargets(), False
        self._base, self._places = base, taken
        self.apply(is_new=config is not None)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_SECONDS)
            if self._base.targets_files:
                await self._look(self._base, self._places)
                self.apply()

    async def _look(self, config: Config, taken: Mapping[str, str]) -> None:
        """Read the files. While a file system hangs nothing else is begun, and the old targets stay."""
        if self._looking is None:
            patterns = config.targets_files
            self._looking = in_daemon_thread(lambda: self._files.read(patterns, taken), "targets-files")
            self._looking.add_done_callback(self._take_found)
        done, _ = await asyncio.wait([self._looking], timeout=LOOK_PATIENCE_SECONDS)
        if not done and not self._hangs:
            self._hangs = True
            self._files_errors += 1
            logger.error("targets_files state=hanging detail=%r", HANGS)

    def _take_found(self, looked: asyncio.Future[FoundTargets]) -> None:
        outdated, self._outdated = self._outdated, None
        self._looking, self._hangs = None, False
        if looked.cancelled() or looked is outdated:
            return
        if (error := looked.exception()) is not None:
            logger.error("targets_files could not be read", exc_info=error)
            self._note(FoundTargets(targets=self._found.targets, problems=(f"targets_files: {error!r}",)))
            return
        self._note(looked.result())

    def _note(self, found: FoundTargets) -> None:
        for problem in found.problems:
            if problem not in self._found.problems:
                self._files_errors += 1
                logger.error("targets_files state=refused detail=%r", problem)
        if self._found.problems and not found.problems:
            logger.info("targets_files state=read targets=%d", len(found.targets))
        self._found = found
        if not found.problems:
            self._files_read_at = self._clock()

    def readings(self) -> tuple[DiscoveryReading, ...]:
        """How well the sources beside the configuration file are known."""
        found = []
        if self._base.targets_files:
            found.append(
                DiscoveryReading(
                    source=FILES,
                    up=self.problem is None,
                    targets=len(self._found.targets),
                    success_time=self._files_read_at,
                    errors=self._files_errors,
                    problem=self.problem,
                )
            )
        if self._pods is not None:
            found.append(self._pods.reading())
        return tuple(found)

    def _say_doubts(self, targets: Sequence[Target]) -> None:
        """Log what was not doubtful before."""
        said = doubts(targets, {**self._found.places, **self._places})
        for doubt in said:
            if doubt not in (self._doubts or ()):
                logger.warning("targets detail=%r", doubt)
        self._doubts = frozenset(said)

    def apply(self, *, is_new: bool = False) -> None:
        """Put the targets in force that are known now. is_new: also where nothing differs from before."""
        targets = with_pods([*self._base.targets, *self._found.targets], self._pods)
        self._collector.note_refusal("targets_files", self.problem)
        config = msgspec.structs.replace(self._base, targets=targets)
        if self._doubts is None:
            self._say_doubts(targets)
        if is_new or config != self._collector.config:
            before = len(self._collector.config.targets)
            self._collector.configure(config)
            self._say_doubts(targets)
            if before != len(targets):
                logger.info("targets=%d before=%d", len(targets), before)


def with_pods(targets: Sequence[Target], pods: PodWatch | None) -> list[Target]:
    """The targets, and the pods of now whose names none of them has."""
    names = {target.name for target in targets}
    found = () if pods is None else pods.targets()
    return [*targets, *(target for target in found if target.name not in names)]


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("looking for targets ended", exc_info=task.exception())
