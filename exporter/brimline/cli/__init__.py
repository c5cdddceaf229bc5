"""The command line. What a command needs is imported when it runs, so that `serve` stays small."""

from __future__ import annotations

import click

from brimline import __version__
from brimline.cli.pages import capture, read
from brimline.cli.prediction import predict
from brimline.cli.serving import check, demo, serve


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="brimline")
def cli() -> None:
    """How near an LLM inference server's memory stands to the brim."""


for _command in (serve, check, read, capture, predict, demo):
    cli.add_command(_command)


def main() -> None:
    """Entry point of `brimline` and `python -m brimline`."""
    cli()
