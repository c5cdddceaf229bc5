"""The HTTP port: /metrics and what an operator needs beside it."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from brimline import json_text
from brimline.collect import Collector, Raw, TargetReader
from brimline.config import ConfigFile, masked, read_config
from brimline.errors import ConfigError
from brimline.exposition import Exposition
from brimline.fleet import Fleet
from brimline.port import ConnectionLimits, serve_application
from brimline.readings import EngineReading, Snapshot
from brimline.scrape_targets import scrape_targets
from brimline.threads import in_daemon_thread

if TYPE_CHECKING:
    from brimline.guard import PortGuard
    from brimline.web.plan import Planner

logger = logging.getLogger(__name__)

# What Prometheus needs to take over the answer before its own timeout (blackbox_exporter's default).
TIMEOUT_OFFSET = 0.5
# Smaller pages are sent as they are: to compress the 23 KB of one server takes a seventh of its scrape's CPU,
# and saves 1 KB/s with a scrape each 15 s.
_MIN_COMPRESSED_BYTES = 32 << 10
CONFIG_PATIENCE_SECONDS = 10.0
_SECRET_HEADERS = {"set-cookie", "authorization", "www-authenticate"}


def scrape_budget(header: str | None) -> float | None:
    """Seconds that a scrape may take by X-Prometheus-Scrape-Timeout-Seconds, less half a second.

    None where there is no header or a bad one: a scrape must not fail for it.
    """
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    if not math.isfinite(seconds) or seconds <= 0:
        return None
    return max(seconds - TIMEOUT_OFFSET, seconds / 2)


@dataclass(frozen=True, slots=True)
class _Look:
    """What /debug shows of a target."""

    snapshot: Snapshot
    raw: Raw | None
    trace: tuple[str, ...]


class Exporter:
    """Collector and configuration behind the HTTP port."""

    def __init__(
        self,
        collector: Collector,
        config_path: Path | None,
        listen: str | None = None,
        *,
        planner: Planner | None = None,
        guard: PortGuard | None = None,
        fleet: Fleet | None = None,
    ) -> None:
        self.collector = collector
        self.fleet = fleet or Fleet(collector, collector.config, path=config_path)
        self.guard = guard
        if guard is not None:
            guard.told = lambda problem: collector.note_refusal("web.config.file", problem)
        self._config_path = config_path
        self._listen = listen
        self._exposition = Exposition()
        self._looks: dict[TargetReader, asyncio.Task[_Look]] = {}
        self._known_planner = planner
        self._reading: asyncio.Future[ConfigFile] | None = None
        self._reloading = asyncio.Lock()
        self._next_reload: asyncio.Task[str | None] | None = None  # which has not begun to read
        self._reloads: set[asyncio.Task[str | None]] = set()
        self.ready = False

    def reload_soon(self) -> asyncio.Task[str | None]:
        """Begin to reload once the reload before has ended, as a signal does that nobody waits for."""
        task = self._next_reload
        if task is None:
            task = self._next_reload = asyncio.ensure_future(self._reload_in_turn())
            self._reloads.add(task)
            task.add_done_callback(self._reloads.discard)
        return task

    async def reload(self) -> str | None:
        """Put all files in force as they are from now on; what is wrong where one was refused."""
        # One for all who ask before it reads; it goes on where one of them leaves.
        return await asyncio.shield(self.reload_soon())

    async def _reload_in_turn(self) -> str | None:
        # Else an older reading that took longer would be put in force last.
        async with self._reloading:
            self._next_reload = None
            if self.guard is not None:
                await self.guard.reload()
            refused = await self._reload_config()
            return refused or (self.guard.problem if self.guard is not None else None)

    async def _reload_config(self) -> str | None:
        if self._config_path is None:
            return "started without a configuration file: there is nothing to reload"
        try:
            read = await self._read_config(self._config_path)
        except ConfigError as error:
            self.collector.note_refusal("config", str(error))
            logger.error("config=%s reload=refused detail=%r", self._config_path, str(error))
            return str(error)
        config = read.config
        if self._listen is None and config.listen != self.collector.config.listen:
            logger.warning("listen=%s takes effect at the next start only", config.listen)
        if config.kubernetes != self.collector.config.kubernetes:
            logger.warning("kubernetes takes effect at the next start only")
        await self.fleet.settle(config, read.places)
        self.collector.note_refusal("config", None)
        targets = len(self.collector.config.targets)
        logger.info("config=%s reload=done targets=%d", self._config_path, targets)
        return self.fleet.problem

    async def _read_config(self, path: Path) -> ConfigFile:
        """What the file says; in a thread of its own, as the file's system may hang. Raises ConfigError."""
        # What a reload had given up may be of an older file: it is waited for, and the file read anew.
        if self._reading is None or await self._is_read(self._reading):
            self._reading = in_daemon_thread(lambda: read_config(path), "config")
            if await self._is_read(self._reading):
                return self._reading.result()
        raise ConfigError(f"{path}: has not been read yet; look whether its file system hangs")

    @staticmethod
    async def _is_read(reading: asyncio.Future[ConfigFile]) -> bool:
        done, _ = await asyncio.wait([reading], timeout=CONFIG_PATIENCE_SECONDS)
        return bool(done)

    def application(self) -> web.Application:
        """The routes."""
        application = web.Application(client_max_size=64 << 10)
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/", self._status)
        application.router.add_get("/-/healthy", self._healthy)
        application.router.add_get("/-/ready", self._ready)
        application.router.add_post("/-/reload", self._reload)
        application.router.add_get("/config", self._config)
        application.router.add_get("/sd", self._scrape_targets)
        application.router.add_get("/debug", self._debug)
        application.router.add_get("/plan", self._plan)
        application.router.add_post("/plan/predict", self._plan_predict)
        application.on_shutdown.append(self._end_planning)
        return application

    async def _metrics(self, request: web.Request) -> web.Response:
        if request.headers.get("User-Agent", "").startswith("brimline/"):
            # Answering would wait for the round that waits for this answer.
            return web.json_response(
                {"error": "this is Brimline; name an inference server instead"}, status=421
            )
        budget = scrape_budget(request.headers.get("X-Prometheus-Scrape-Timeout-Seconds"))
        snapshot = await self.collector.snapshot(budget)
        parts, content_type = self._exposition.pieces(snapshot, request.headers.get("Accept", ""))
        headers = {"Content-Type": content_type, "Vary": "Accept-Encoding"}
        first = next(parts)
        if len(first) >= _MIN_COMPRESSED_BYTES and _accepts_gzip(request.headers.get("Accept-Encoding", "")):
            first = b"".join(_compressed(itertools.chain([first], parts)))
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=first + b"".join(parts), headers=headers)

    async def _status(self, _request: web.Request) -> web.Response:
        # Imported at the first look: the templates cost memory that a mere scrape need not pay.
        from brimline.web import status_page

        page = status_page(await self.collector.snapshot())
        return web.Response(text=page, content_type="text/html", charset="utf-8")

    async def _healthy(self, _request: web.Request) -> web.Response:
        # On purpose without a look at GPUs and servers: restarting the exporter would not mend those.
        return web.Response(text="Brimline is healthy.\n")

    async def _ready(self, _request: web.Request) -> web.Response:
        if not self.ready:
            return web.Response(status=503, text="Brimline is starting.\n")
        return web.Response(text="Brimline is ready.\n")

    async def _reload(self, _request: web.Request) -> web.Response:
        refused = await self.reload()
        if refused is not None:
            return web.Response(status=400, text=f"{refused}\n")
        return web.Response(text="Configuration reloaded.\n")

    async def _config(self, request: web.Request) -> web.Response:
        wanted = request.query.get("defaults", "0")
        if wanted not in ("0", "1"):
            return web.Response(status=400, text="defaults is 0 or 1: /config?defaults=1\n")
        shown = masked(self.collector.config, defaults=wanted == "1")
        return web.Response(text=shown, content_type="text/yaml", charset="utf-8")

    async def _scrape_targets(self, _request: web.Request) -> web.Response:
        pages = self.collector.pages()
        if any(page is None for _, page in pages):
            await self.collector.snapshot()
            pages = self.collector.pages()
        return web.json_response(scrape_targets((target, page) for target, page in pages if page is not None))

    async def _debug(self, request: web.Request) -> web.Response:
        name = request.query.get("target", "")
        reader = self.collector.reader(name)
        if reader is None:
            known = ", ".join(target.name for target in self.collector.config.targets) or "none"
            return web.Response(status=404, text=f"There is no target of that name; known: {known}\n")
        look = self._looks.get(reader)
        if look is None:
            # One for all who ask meanwhile: the reader keeps its page for one round only.
            look = self._looks[reader] = asyncio.ensure_future(self._look(reader))
        seen = await asyncio.shield(look)
        target, raw = seen.snapshot.target(name), seen.raw
        if target is None:
            return web.Response(status=404, text="The target was removed meanwhile.\n")
        lines = [
            f"target: {target.name}",
            f"up: {target.up}",
            f"duration_seconds: {target.duration_seconds}",
            *(f"problem: {problem.reason}: {problem.detail}" for problem in target.problems),
            "",
            "requests:",
            *(f"  {line}" for line in seen.trace),
            "",
            "reading:",
            *_described(target.reading),
        ]
        if raw is None:
            why = "; one read within min_interval is not kept" if reader.target.min_interval else ""
            lines += ["", f"no page came in this scrape{why}"]
        else:
            shown = {k: v for k, v in raw.headers.items() if k.lower() not in _SECRET_HEADERS}
            lines += ["", f"answer of {raw.path}:", *(f"  {k}: {v}" for k, v in shown.items())]
            for path, document in raw.documents.items():
                lines += ["", f"{path}:", json_text.beginning(document, 20_000)]
            lines += ["", raw.body.decode("utf-8", "replace")]
        return web.Response(text="\n".join(lines) + "\n", content_type="text/plain", charset="utf-8")

    def _planner(self) -> Planner:
        if self._known_planner is None:
            # As for the status page: a mere scrape need not pay for it.
            from brimline.web.plan import Planner

            self._known_planner = Planner(self.collector)
        return self._known_planner

    async def _plan(self, _request: web.Request) -> web.Response:
        return self._planner().page()

    async def _plan_predict(self, request: web.Request) -> web.Response:
        return await self._planner().predict(request)

    async def _end_planning(self, _application: web.Application) -> None:
        if self._known_planner is not None:
            await self._known_planner.close()

    async def _look(self, reader: TargetReader) -> _Look:
        """A round of which the target's page is kept."""
        reader.keep_raw = True
        try:
            snapshot = await self.collector.snapshot()
            target = snapshot.target(reader.target.name)
            if reader.raw is None and target is not None and target.up and not reader.target.min_interval:
                # A scrape's round was in flight, whose page came before anybody wanted to see it.
                snapshot = await self.collector.snapshot()
            return _Look(snapshot, reader.raw, tuple(reader.trace))
        finally:
            reader.keep_raw, reader.raw = False, None
            del self._looks[reader]


def _described(reading: EngineReading | None) -> Iterator[str]:
    """A reading for people, a quantity to a line."""
    if reading is None:
        yield "  none"
        return
    for name in reading.__struct_fields__:
        if name != "ranks":
            yield f"  {name}: {getattr(reading, name)}"
    for rank in reading.ranks:
        yield f"  model {rank.model!r} rank {rank.rank}:"
        for name in rank.__struct_fields__:
            if (value := getattr(rank, name)) is not None and name not in ("model", "rank"):
                yield f"    {name}: {value}"


def _accepts_gzip(header: str) -> bool:
    for part in header.split(","):
        name, _, options = part.strip().partition(";")
        if name.strip().lower() == "gzip":
            return options.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _compressed(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The parts as one gzip stream, at the level that costs least CPU."""
    compressor = zlib.compressobj(level=1, wbits=31)
    for part in parts:
        yield compressor.compress(part)
    yield compressor.flush()


async def serve(
    exporter: Exporter,
    host: str,
    port: int,
    stop: asyncio.Event,
    *,
    started: Callable[[int], None] | None = None,
    limits: ConnectionLimits | None = None,
) -> None:
    """Serve until `stop` is set; then answer the scrapes in flight and return within a second.

    started: called with the port once it is open. limits: None for those that suit this process.
    Raises OSError where the port cannot be opened.
    """

    def opened(bound: int) -> None:
        exporter.ready = True
        if started is not None:
            started(bound)

    def stopping() -> None:
        exporter.ready = False
        exporter.collector.end_round_within(0.7)

    await serve_application(
        exporter.application(),
        host,
        port,
        stop,
        started=opened,
        stopping=stopping,
        limits=limits,
        guard=exporter.guard,
    )


def open_config(path: Path | None, listen: str | None) -> ConfigFile:
    """The configuration of a start: the file's, or an empty one; `listen` overrides. Raises ConfigError."""
    read = ConfigFile() if path is None else read_config(path)
    if listen is None:
        return read
    return dataclasses.replace(read, config=msgspec.structs.replace(read.config, listen=listen))
