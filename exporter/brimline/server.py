"""The HTTP port: /metrics and what an operator needs beside it."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from brimline import __version__
from brimline.collect import Collector
from brimline.config import Config, load, masked
from brimline.errors import ConfigError
from brimline.exposition import render
from brimline.readings import EngineReading

logger = logging.getLogger(__name__)

# What Prometheus needs to take over the answer before its own timeout (blackbox_exporter's default).
TIMEOUT_OFFSET = 0.5
GZIP_FROM_BYTES = 1024
_SECRET_HEADERS = {"set-cookie", "authorization", "www-authenticate"}

_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "Referrer-Policy": "no-referrer",
}


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


class Exporter:
    """Collector and configuration behind the HTTP port."""

    def __init__(self, collector: Collector, config_path: Path | None, listen: str | None = None) -> None:
        self.collector = collector
        self._config_path = config_path
        self._listen = listen
        self.ready = False

    def reload(self) -> str | None:
        """Put the configuration file in force again; what is wrong with it where it was refused."""
        if self._config_path is None:
            return "started without a configuration file: there is nothing to reload"
        try:
            config = load(self._config_path)
        except ConfigError as error:
            self.collector.reload_successful = False
            self.collector.reload_problem = str(error)
            logger.error("config=%s reload=refused detail=%r", self._config_path, str(error))
            return str(error)
        if self._listen is None and config.listen != self.collector.config.listen:
            logger.warning("listen=%s takes effect at the next start only", config.listen)
        self.collector.configure(config)
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
        application.on_response_prepare.append(_add_headers)
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
        reader.keep_raw = True
        try:
            snapshot = await self.collector.snapshot()
            raw = reader.raw
        finally:
            reader.keep_raw, reader.raw = False, None
        target = snapshot.target(name)
        if target is None:
            return web.Response(status=404, text="The target was removed meanwhile.\n")
        lines = [
            f"target: {target.name}",
            f"up: {target.up}",
            f"duration_seconds: {target.duration_seconds}",
            *(f"problem: {problem.reason}: {problem.detail}" for problem in target.problems),
            "",
            "requests:",
            *(f"  {line}" for line in reader.trace),
            "",
            "reading:",
            *_described(target.reading),
        ]
        if raw is None:
            kept = "; one read within min_interval is not kept" if target.up else ""
            lines += ["", f"no page came in this scrape{kept}"]
        else:
            shown = {k: v for k, v in raw.headers.items() if k not in _SECRET_HEADERS}
            lines += ["", f"answer of {raw.path}:", *(f"  {k}: {v}" for k, v in shown.items())]
            for path, document in raw.documents.items():
                lines += ["", f"{path}:", json.dumps(document, indent=2)[:20000]]
            lines += ["", raw.body.decode("utf-8", "replace")]
        return web.Response(text="\n".join(lines) + "\n", content_type="text/plain", charset="utf-8")


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


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = f"brimline/{__version__}"
    for name, value in _SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)


def _is_our_fault(record: logging.LogRecord) -> bool:
    """False for what a client did wrong: a port scanner must not fill the log with tracebacks."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


async def serve(
    exporter: Exporter,
    host: str,
    port: int,
    stop: asyncio.Event,
    *,
    started: Callable[[int], None] | None = None,
) -> None:
    """Serve until `stop` is set; then answer the scrapes in flight and return within a second.

    started: called with the port once it is open. Raises OSError where it cannot be opened.
    """
    protocol_logger = logging.getLogger(f"{__name__}.protocol")
    protocol_logger.addFilter(_is_our_fault)
    runner = web.AppRunner(
        exporter.application(),
        access_log=None,
        logger=protocol_logger,
        handle_signals=False,
        shutdown_timeout=1.0,
        keepalive_timeout=75.0,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, backlog=512)
        await site.start()
        exporter.ready = True
        address = runner.addresses[0]
        if started is not None:
            started(address[1])
        await stop.wait()
        exporter.ready = False
        exporter.collector.end_round_within(0.7)
    finally:
        await runner.cleanup()


def open_config(path: Path | None, listen: str | None) -> Config:
    """The configuration of a start: the file's, or an empty one; `listen` overrides. Raises ConfigError."""
    config = load(path) if path is not None else Config()
    if listen is None:
        return config
    return msgspec.structs.replace(config, listen=listen)
