"""What the commands share: exit codes, options, and how they end."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from brimline.config import Config, ConfigFile
    from brimline.guard import PortGuard
    from brimline.pods import PodWatch

PODS_PATIENCE_SECONDS = 15.0

EXIT_NEGATIVE = 1
EXIT_USAGE = 2
EXIT_NO_ANSWER = 3

CONFIG = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration file. Without one, servers on this machine are found by themselves.",
)
PORTS = click.option(
    "--discover-ports",
    metavar="PORTS",
    help="Ports on 127.0.0.1 to look at without a configuration, such as 8000,8080.",
)
WEB_CONFIG = click.option(
    "--web.config.file",
    "web_config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="TLS, users and headers of the port, in the format of Prometheus' exporters.",
)


def fail(text: str, code: int = EXIT_USAGE) -> NoReturn:
    """Say what is wrong and end."""
    click.echo(f"brimline: {text}", err=True)
    sys.exit(code)


def set_up_logging(level: str) -> None:
    """Log to standard error."""
    import logging

    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format="%(asctime)s level=%(levelname)s logger=%(name)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S%z",
    )


def raise_open_file_limit() -> None:
    """A thousand targets need more than the usual 1024 open files."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def parse_ports(text: str | None) -> Sequence[int]:
    """Ports of --discover-ports; the usual ones without it."""
    from brimline.discovery import usual_ports

    if text is None:
        return usual_ports()
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and 0 < int(word) < 65536 for word in words):
        fail(f"--discover-ports {text!r} is not a list of ports; write 8000,8080")
    return tuple(map(int, words))


def open_config_or_fail(config_path: Path | None, listen: str | None = None) -> ConfigFile:
    """The configuration, or an end with what is wrong with it."""
    from brimline.config import parse_listen
    from brimline.errors import ConfigError
    from brimline.server import open_config

    try:
        read = open_config(config_path, listen)
        parse_listen(read.config.listen)
    except ConfigError as error:
        fail(str(error))
    except ValueError as error:
        fail(f"--listen: {error}")
    return read


def all_targets_or_fail(read: ConfigFile) -> ConfigFile:
    """The configuration with the targets of its further files, or an end with what is wrong with these."""
    import dataclasses

    import msgspec

    from brimline.targets_files import TargetsFiles

    if read.path is None or not read.config.targets_files:
        return read
    found = TargetsFiles(read.path.parent).read(read.config.targets_files, read.places)
    if found.problems:
        fail("\nbrimline: ".join(found.problems))
    config = msgspec.structs.replace(read.config, targets=[*read.config.targets, *found.targets])
    return dataclasses.replace(read, config=config, places={**found.places, **read.places})


def open_guard_or_fail(web_config_path: Path | None) -> PortGuard | None:
    """What admits clients to the port, or an end with what is wrong with its file; None for nothing."""
    if web_config_path is None:
        return None
    from brimline.errors import ConfigError
    from brimline.guard import PortGuard

    try:
        return PortGuard(web_config_path)
    except ConfigError as error:
        fail(str(error))


def open_pods_or_fail(config: Config) -> PodWatch | None:
    """The watch of the pods that are targets, or an end with what is wrong with it; None without one."""
    if config.kubernetes is None:
        return None
    from brimline.errors import ConfigError
    from brimline.pods import open_watch

    try:
        return open_watch(config.kubernetes, config.models, os.environ)
    except ConfigError as error:
        fail(str(error))


def with_pods_of_now(config: Config, pods: PodWatch | None) -> tuple[Config, list[str]]:
    """The configuration with the pods of now as targets, and what is wrong with these."""
    import time

    import msgspec

    if pods is None:
        return config, []
    from brimline.fleet import with_pods

    pods.start(lambda: None)
    deadline = time.monotonic() + PODS_PATIENCE_SECONDS
    while not pods.is_known and time.monotonic() < deadline:
        time.sleep(0.05)
    pods.stop()
    targets = with_pods(config.targets, pods)
    problem = pods.reading().problem or ("" if pods.is_known else "kubernetes: the pods are not known yet")
    return msgspec.structs.replace(config, targets=targets), problem.splitlines()


def say_where(host: str, port: int, guard: PortGuard | None) -> None:
    """Log where the port is, and what is wrong with its being there."""
    import logging

    from brimline import __version__

    logger = logging.getLogger(__name__)
    shown = f"[{host}]" if ":" in host else host
    logger.info(
        "listening=%s://%s:%d version=%s", guard.scheme if guard else "http", shown, port, __version__
    )
    if guard is not None:
        guard.say_notes()
    if is_loopback(host):
        return
    if guard is None or not guard.config.authenticates:
        logger.warning(
            "listen=%s is reachable from other machines, without authentication; protect it with "
            "--web.config.file, or listen on 127.0.0.1",
            host,
        )
    elif guard.config.users and guard.config.tls is None:
        logger.warning(
            "listen=%s takes passwords over an unencrypted network; add tls_server_config to the web "
            "configuration",
            host,
        )


def leave(code: int) -> NoReturn:
    """End at once: daemon threads may hang in a driver, and the interpreter's farewell could trip over it."""
    import logging

    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_loopback(host: str) -> bool:
    """True for an address that no other machine reaches."""
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
