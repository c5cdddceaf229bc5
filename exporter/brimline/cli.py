"""The command line. What a command needs is imported when it runs, so that `serve` stays small."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from brimline import __version__

if TYPE_CHECKING:
    from brimline.config import Config

logger = logging.getLogger(__name__)

EXIT_NEGATIVE = 1
EXIT_USAGE = 2
EXIT_NO_ANSWER = 3

_CONFIG = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration file. Without one, servers on this machine are found by themselves.",
)
_PORTS = click.option(
    "--discover-ports",
    metavar="PORTS",
    help="Ports on 127.0.0.1 to look at without a configuration, such as 8000,8080.",
)


def _fail(text: str, code: int = EXIT_USAGE) -> None:
    click.echo(f"brimline: {text}", err=True)
    sys.exit(code)


def _set_up_logging(level: str) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format="%(asctime)s level=%(levelname)s logger=%(name)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S%z",
    )


def _raise_open_file_limit() -> None:
    """A thousand targets need more than the usual 1024 open files."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _ports(text: str | None) -> tuple[int, ...]:
    from brimline.discovery import usual_ports

    if text is None:
        return usual_ports()
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and 0 < int(word) < 65536 for word in words):
        _fail(f"--discover-ports {text!r} is not a list of ports; write 8000,8080")
    return tuple(map(int, words))


def _open_config(config_path: Path | None, listen: str | None = None) -> Config:
    from brimline.config import parse_listen
    from brimline.errors import ConfigError
    from brimline.server import open_config

    try:
        config = open_config(config_path, listen)
        parse_listen(config.listen)
    except ConfigError as error:
        _fail(str(error))
        raise
    except ValueError as error:
        _fail(f"--listen: {error}")
        raise
    return config


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="brimline")
def cli() -> None:
    """How near an LLM inference server's memory stands to the brim."""


@cli.command()
@_CONFIG
@click.option("--listen", metavar="HOST:PORT", help="Where to serve; overrides the configuration.")
@_PORTS
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def serve(config_path: Path | None, listen: str | None, discover_ports: str | None, log_level: str) -> None:
    """Read servers and GPUs when Prometheus asks, and expose what they say.

    SIGHUP or POST /-/reload reads the configuration again; SIGTERM ends.
    """
    _set_up_logging(log_level)
    config = _open_config(config_path, listen)
    if config_path is not None and discover_ports is not None:
        _fail("--discover-ports works without --config only; name the targets in the file")
    _raise_open_file_limit()
    code = asyncio.run(_serve(config, config_path, listen, discover_ports))
    # Daemon threads may hang in a driver; the interpreter's own farewell could trip over them.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


async def _serve(
    config: Config, config_path: Path | None, listen: str | None, discover_ports: str | None
) -> int:
    from brimline.collect import Collector
    from brimline.config import parse_listen
    from brimline.discovery import Discovery, keep_looking
    from brimline.server import Exporter
    from brimline.server import serve as serve_port

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    collector = Collector(config, quiet_launch=config_path is None)
    exporter = Exporter(collector, config_path, listen)
    loop.add_signal_handler(signal.SIGHUP, exporter.reload)
    host, port = parse_listen(config.listen)
    await collector.start()
    looking: asyncio.Task[None] | None = None
    if config_path is None:
        looking = asyncio.ensure_future(keep_looking(Discovery(_ports(discover_ports)), collector, config))
        looking.add_done_callback(_report_end)
    elif not config.targets:
        logger.warning("config=%s names no targets; only GPUs are exported", config_path)

    def started(bound: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        logger.info("listening=http://%s:%d version=%s", shown, bound, __version__)
        if not _is_loopback(host):
            logger.warning("listen=%s is reachable from other machines, without authentication", host)

    try:
        await serve_port(exporter, host, port, stop, started=started)
    except OSError as error:
        click.echo(
            f"brimline: cannot listen on {config.listen} ({error.strerror}); use --listen HOST:PORT", err=True
        )
        return EXIT_USAGE
    finally:
        if looking is not None:
            looking.cancel()
        await collector.close()
    logger.info("stopped")
    return 0


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("discovery ended", exc_info=task.exception())


def _is_loopback(host: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main() -> None:
    """Entry point of `brimline` and `python -m brimline`."""
    cli()
