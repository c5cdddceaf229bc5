"""dashboards: the Grafana boards as files."""

from __future__ import annotations

from pathlib import Path

import click

from brimline.cli.common import fail


@click.command()
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write one JSON file for each board there; for Grafana's provisioning or its import page.",
)
def dashboards(folder: Path | None) -> None:
    """Write the Grafana boards (needs brimline[dashboards]).

    \b
    brimline dashboards -o /var/lib/grafana/dashboards
    """
    _check_library()
    if folder is None:
        fail("nothing to do; give -o DIR for the boards' files")
    _write(folder)


def _check_library() -> None:
    import importlib.util

    if importlib.util.find_spec("grafanalib") is None:
        fail("dashboards needs grafanalib; install it with: pip install 'brimline[dashboards]'")


def _write(folder: Path) -> None:
    from brimline_dashboards.render import write_boards

    try:
        for file in write_boards(folder):
            click.echo(str(file))
    except OSError as error:
        fail(f"-o {folder}: the boards cannot be written ({error.strerror}); give a folder that can be")
