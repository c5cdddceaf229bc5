"""serve, check and demo."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from brimline.cli.common import (
    CONFIG,
    EXIT_NEGATIVE,
    EXIT_NO_ANSWER,
    PORTS,
    WEB_CONFIG,
    all_targets_or_fail,
    fail,
    leave,
    open_config_or_fail,
    open_guard_or_fail,
    open_pods_or_fail,
    parse_ports,
    raise_open_file_limit,
    say_where,
    set_up_logging,
    with_pods_of_now,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from brimline.config import Config, ConfigFile
    from brimline.demo.gpu_recording import Scenario
    from brimline.guard import PortGuard
    from brimline.pods import PodWatch

logger = logging.getLogger(__name__)

# New objects before garbage is looked for. A connection that its server closes leaves eight in a circle
# (asyncio's transport and its own method): of a start's 100,000 some 8 MiB would lie about. With
# the interpreter's 700 a round of a thousand targets would be interrupted some 280 times.
_COLLECT_AFTER = 5_000


@click.command()
@CONFIG
@click.option("--listen", metavar="HOST:PORT", help="Where to serve; overrides the configuration.")
@WEB_CONFIG
@PORTS
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def serve(
    config_path: Path | None,
    listen: str | None,
    web_config_path: Path | None,
    discover_ports: str | None,
    log_level: str,
) -> None:
    """Read servers and GPUs when Prometheus asks, and expose what they say.

    SIGHUP or POST /-/reload reads the configuration again; SIGTERM ends.
    """
    set_up_logging(log_level)
    read = open_config_or_fail(config_path, listen)
    if config_path is not None and discover_ports is not None:
        fail("--discover-ports works without --config only; name the targets in the file")
    ports = parse_ports(discover_ports) if config_path is None else ()
    pods = open_pods_or_fail(read.config)
    guard = open_guard_or_fail(web_config_path)
    raise_open_file_limit()
    code = asyncio.run(_serve(read, listen, ports, guard, pods))
    leave(code)


async def _serve(
    read: ConfigFile,
    listen: str | None,
    ports: Sequence[int],
    guard: PortGuard | None,
    pods: PodWatch | None,
) -> int:
    from brimline.collect import Collector
    from brimline.config import parse_listen
    from brimline.discovery import Discovery, keep_looking
    from brimline.fleet import Fleet
    from brimline.server import Exporter
    from brimline.server import serve as serve_port

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    config = read.config
    collector = Collector(config, quiet_launch=read.path is None)
    fleet = Fleet(collector, config, path=read.path, places=read.places, pods=pods)
    exporter = Exporter(collector, read.path, listen, guard=guard, fleet=fleet)
    loop.add_signal_handler(signal.SIGHUP, exporter.reload_soon)
    host, port = parse_listen(config.listen)
    await collector.start()
    looking: asyncio.Task[None] | None = None
    if read.path is None:
        looking = asyncio.ensure_future(keep_looking(Discovery(ports), collector, config))
        looking.add_done_callback(_report_end)
    else:
        await fleet.start()
        if not collector.config.targets:
            logger.warning("config=%s names no targets yet; only GPUs are exported", read.path)

    def started(bound: int) -> None:
        say_where(host, bound, guard)
        # What is loaded stays; not counted, it does not put off the collection of what comes and goes. Some
        # hundred objects of garbage among it stay, too: to find them took 15 ms, a thirtieth of a start.
        gc.freeze()
        gc.set_threshold(_COLLECT_AFTER)

    try:
        await serve_port(exporter, host, port, stop, started=started)
    except OSError as error:
        click.echo(
            f"brimline: cannot listen on {config.listen} ({error.strerror}); use --listen HOST:PORT", err=True
        )
        return EXIT_NEGATIVE  # not 2: an address may be there later, and a supervisor is to try again
    finally:
        if looking is not None:
            looking.cancel()
        fleet.close()
        await collector.close()
    logger.info("stopped")
    return 0


@click.command()
@CONFIG
@WEB_CONFIG
@PORTS
@click.option(
    "--quiet", is_flag=True, help="Print a line for each problem, and nothing at all where all is well."
)
@click.option("--json", "as_json_", is_flag=True, help="Print JSON; what is not known is null.")
def check(
    config_path: Path | None,
    web_config_path: Path | None,
    discover_ports: str | None,
    quiet: bool,
    as_json_: bool,
) -> None:
    """Read every server and GPU once, and print what was understood.

    Exit status: 0 all was read, 1 something could not be read, 2 the configuration is wrong, 3 nothing was
    found.
    """
    import json

    from rich.console import Console

    from brimline.check import as_json, outcome, print_snapshot, problem_lines, read_once
    from brimline.config import doubts
    from brimline.readings import Snapshot

    if quiet and as_json_:
        fail("--quiet and --json both say what is printed; give one of them")
    is_plain = not (quiet or as_json_)
    logging.getLogger("brimline").setLevel(logging.CRITICAL)  # what is printed says it all
    read = all_targets_or_fail(open_config_or_fail(config_path))
    config = read.config
    _check_web_config(web_config_path, says_right=is_plain)
    config, of_pods = with_pods_of_now(config, open_pods_or_fail(config))
    if config_path is not None and discover_ports is not None:
        fail("--discover-ports works without --config only; name the targets in the file")
    raise_open_file_limit()
    if config_path is None:
        config = asyncio.run(_discovered(config, discover_ports))
        if not config.targets:
            if as_json_:
                click.echo(json.dumps(as_json(Snapshot(time=time.time()), config, {}), indent=2))
            ports = ", ".join(map(str, parse_ports(discover_ports)))
            fail(
                f"no inference server answers on 127.0.0.1 at the ports {ports}; "
                "name yours with --config FILE",
                3,
            )
    snapshot = asyncio.run(read_once(config, quiet_launch=config_path is None))
    warnings = doubts(config.targets, read.places)
    if as_json_:
        document = as_json(snapshot, config, read.places, warnings=warnings, problems=of_pods)
        click.echo(json.dumps(document, indent=2))
    elif quiet:
        for line in problem_lines(snapshot, config, read.places):
            click.echo(line)
    else:
        print_snapshot(snapshot, Console(markup=False, highlight=False), read.places)
    for line in (*warnings, *of_pods):
        click.echo(f"brimline: {line}", err=True)
    if not snapshot.targets:
        click.echo(
            f"brimline: {config_path}: names no targets; add `targets:`, or start without --config", err=True
        )
        leave(EXIT_NO_ANSWER)
    done = outcome(snapshot, config)
    if not done.is_well:
        click.echo(f"brimline: {done.line()}", err=True)
        leave(EXIT_NEGATIVE)
    if is_plain:
        click.echo(done.line())
    leave(EXIT_NEGATIVE if of_pods else 0)


def _check_web_config(path: Path | None, *, says_right: bool) -> None:
    """Say what the file of the port does, or end with what is wrong with it."""
    guard = open_guard_or_fail(path)
    if guard is None:
        return
    if says_right:
        click.echo(f"{path}: right: {guard.config.describe()}")
    notes = [f"of no effect: {note}" for note in guard.config.notes]
    doubt = guard.config.certificate_doubt(time.time())
    for line in (*notes, *((doubt,) if doubt else ())):
        click.echo(f"brimline: {path}: {line}", err=True)


async def _discovered(config: Config, discover_ports: str | None) -> Config:
    from brimline.discovery import Discovery

    discovery = Discovery(parse_ports(discover_ports))
    await discovery.look()
    return discovery.config(config)


@click.command()
@click.option(
    "--scenario",
    type=click.Choice(["normal", "leak"]),
    default="normal",
    show_default=True,
    help="leak: one server takes more and more memory beside its plan, dies after 30 minutes and restarts.",
)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Where the exporter serves, instead of a free port on loopback: 0.0.0.0:10778 in a container.",
)
def demo(scenario: Scenario, listen: str | None) -> None:
    """Watch two simulated servers, a replayed GPU, the exporter and a Prometheus, on any machine.

    Prometheus has the recording rules and alerts; an Alertmanager on PATH gets what fires.
    """
    from brimline.config import parse_listen
    from brimline.demo.run import run
    from brimline.errors import BrimlineError
    from brimline_dashboards.rules import plain_files

    try:
        address = None if listen is None else parse_listen(listen)
    except ValueError as error:
        fail(f"--listen {error}")
    try:
        run(click.echo, plain_files(), scenario, address)
    except BrimlineError as error:
        fail(str(error), EXIT_NEGATIVE)


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("discovery ended", exc_info=task.exception())
