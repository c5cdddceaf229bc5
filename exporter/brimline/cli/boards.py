"""dashboards: the Grafana boards as files, and a preview of them where there is no Grafana."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from brimline.cli.common import fail

EXIT_DATA_SOURCE = 5
# As many points of a line as a panel of a third of a screen shows.
POINTS = 150


@click.command()
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write one JSON file for each board there; for Grafana's provisioning or its import page.",
)
@click.option(
    "--preview",
    "preview",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.html",
    help="Draw the boards into one page, without a Grafana, from what --prometheus answers.",
)
@click.option("--prometheus", "url", metavar="URL", help="The Prometheus that a preview asks.")
@click.option(
    "--last", default="1h", show_default=True, metavar="TIME", help="How much time a preview shows."
)
@click.option(
    "--scrape-interval",
    default="15s",
    show_default=True,
    metavar="TIME",
    help="The scrape interval of that Prometheus, as set in Grafana's data source.",
)
@click.option(
    "--variable",
    "variables",
    multiple=True,
    metavar="NAME=VALUE",
    help="In a preview, what a variable that holds one value is: target=chat-a for the server's board.",
)
def dashboards(
    folder: Path | None,
    preview: Path | None,
    url: str | None,
    last: str,
    scrape_interval: str,
    variables: tuple[str, ...],
) -> None:
    """Write the Grafana boards, or draw a preview of them (needs the extra `dashboards`).

    Exit status: 0 written, 2 usage, 5 the Prometheus could not be asked.

    \b
    brimline dashboards -o /var/lib/grafana/dashboards
    brimline dashboards --preview boards.html --prometheus http://127.0.0.1:9090 --last 15m
    """
    _check_library()
    if folder is None and preview is None:
        fail("nothing to do; give -o DIR for the boards' files, or --preview FILE.html")
    if (preview is None) != (url is None):
        fail("--preview and --prometheus belong together: the page, and where its numbers come from")
    if folder is not None:
        _write(folder)
    if preview is not None and url is not None:
        range_seconds, scrape_seconds = (
            _duration("--last", last),
            _duration("--scrape-interval", scrape_interval),
        )
        _draw(preview, url, range_seconds, scrape_seconds, _wanted(variables))


def _check_library() -> None:
    import importlib.util

    from brimline.extras import install_command

    if importlib.util.find_spec("grafanalib") is None:
        fail(
            "dashboards needs grafanalib; install the extra in a clone of this repository: "
            f"{install_command('dashboards')}"
        )


def _write(folder: Path) -> None:
    from brimline_dashboards.render import write_boards

    try:
        for file in write_boards(folder):
            click.echo(str(file))
    except OSError as error:
        fail(f"-o {folder}: the boards cannot be written ({error.strerror}); give a folder that can be")


def _duration(option: str, text: str) -> float:
    from brimline.units import parse_duration

    try:
        seconds = parse_duration(text)
    except ValueError as error:
        fail(f"{option}: {error}")
    if seconds < 1:
        fail(f"{option} {text}: less than a second; write 15s, 30m or 6h")
    return seconds


def _wanted(variables: Sequence[str]) -> Mapping[str, str]:
    wanted: dict[str, str] = {}
    for text in variables:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            fail(f"--variable {text!r}: write NAME=VALUE, such as target=chat-a")
        wanted[name] = value
    return wanted


def _draw(
    file: Path, url: str, range_seconds: float, scrape_seconds: float, wanted: Mapping[str, str]
) -> None:
    from brimline_dashboards.boards import BOARDS
    from brimline_dashboards.interpolation import Times, VariableError
    from brimline_dashboards.preview.asking import Prometheus, PrometheusError
    from brimline_dashboards.preview.page import page
    from brimline_dashboards.preview.shown import Window

    times = Times(
        range_seconds=range_seconds,
        step_seconds=max(range_seconds / POINTS, scrape_seconds),
        scrape_interval_seconds=scrape_seconds,
    )
    try:
        text = page(
            [board() for board in BOARDS.values()], Prometheus(url), Window(time.time(), times), wanted
        )
        file.write_text(text, encoding="utf-8")
    except PrometheusError as error:
        fail(f"--prometheus {error}", EXIT_DATA_SOURCE)
    except VariableError as error:
        fail(f"--variable {error}")
    except OSError as error:
        fail(f"--preview {file}: it cannot be written ({error.strerror})")
    click.echo(str(file))
