"""The HTTP port: /metrics and what an operator needs beside it."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from brimline.collect import Collector, Raw, TargetReader
from brimline.config import Config, load, masked
from brimline.errors import ConfigError
from brimline.exposition import render
from brimline.port import ConnectionLimits, serve_application
from brimline.readings import EngineReading, Snapshot

if TYPE_CHECKING:
    from brimline.guard import PortGuard
    from brimline.web.plan import Planner

logger = logging.getLogger(__name__)

# What Prometheus needs to take over the answer before its own timeout (blackbox_exporter's default).
TIMEOUT_OFFSET = 0.5
GZIP_FROM_BYTES = 1024
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
    ) -> None:
        self.collector = collector
        self.guard = guard
        if guard is not None:
            guard.told = lambda problem: collector.note_refusal("web.config.file", problem)
        self._config_path = config_path
        self._listen = listen
        self._looks: dict[TargetReader, asyncio.Task[_Look]] = {}
        self._known_planner = planner
        self.ready = False

    def reload(self) -> str | None:
        """Put the configuration file in force again; what is wrong with it where it was refused."""
        if self._config_path is None:
            return "started without a configuration file: there is nothing to reload"
        try:
            config = load(self._config_path)
        except ConfigError as error:
            self.collector.note_refusal("config", str(error))
            logger.error("config=%s reload=refused detail=%r", self._config_path, str(error))
            return str(error)
        if self._listen is None and config.listen != self.collector.config.listen:
            logger.warning("listen=%s takes effect at the next start only", config.listen)
        self.collector.configure(config)
        self.collector.note_refusal("config", None)
        logger.info("config=%s reload=done targets=%d", self._config_path, len(config.targets))
        return None

    def application(self) -> web.Application:
        """The routes."""
        application = web.Application(client_max_size=64 << 10)
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/", self._status)
        application.router.add_get("/-/healthy", self._healthy)
        application.router.add_get("/-/ready", self._ready)
        application.router.add_post("/-/reload", self._reload)
        application.router.add_get("/config", self._config)
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
        body, content_type = render(snapshot, request.headers.get("Accept", ""))
        headers = {"Content-Type": content_type}
        if len(body) >= GZIP_FROM_BYTES and _accepts_gzip(request.headers.get("Accept-Encoding", "")):
            body = gzip.compress(body, compresslevel=1)
            headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        return web.Response(body=body, headers=headers)

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
        refused = self.reload()
        if self.guard is not None:
            self.guard.expire()
            await self.guard.refresh()
            refused = refused or self.guard.problem
        if refused is not None:
            return web.Response(status=400, text=f"{refused}\n")
        return web.Response(text="Configuration reloaded.\n")

    async def _config(self, _request: web.Request) -> web.Response:
        return web.Response(text=masked(self.collector.config), content_type="text/yaml", charset="utf-8")

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
                lines += ["", f"{path}:", json.dumps(document, indent=2)[:20000]]
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
    for field in dataclasses.fields(reading):
        if field.name != "ranks":
            yield f"  {field.name}: {getattr(reading, field.name)}"
    for rank in reading.ranks:
        yield f"  model {rank.model!r} rank {rank.rank}:"
        for field in dataclasses.fields(rank):
            if (value := getattr(rank, field.name)) is not None and field.name not in ("model", "rank"):
                yield f"    {field.name}: {value}"


def _accepts_gzip(header: str) -> bool:
    for part in header.split(","):
        name, _, options = part.strip().partition(";")
        if name.strip().lower() == "gzip":
            return options.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


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


def open_config(path: Path | None, listen: str | None) -> Config:
    """The configuration of a start: the file's, or an empty one; `listen` overrides. Raises ConfigError."""
    config = load(path) if path is not None else Config()
    if listen is None:
        return config
    return msgspec.structs.replace(config, listen=listen)
