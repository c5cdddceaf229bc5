"""The command line. What a command needs is imported when it runs, so that each one stays quick and small."""

from __future__ import annotations

import gc
from importlib import import_module

import click

from brimline import __version__

# Every command, in the order of the help, and the module of this package that defines it by its name.
COMMANDS = {
    "serve": "serving",
    "check": "serving",
    "read": "pages",
    "capture": "pages",
    "predict": "prediction",
    "plan": "planning",
    "calibrate": "calibrating",
    "estimate": "estimating",
    "ab": "comparing",
    "dashboards": "boards",
    "rules": "ruling",
    "demo": "serving",
}


class LateGroup(click.Group):
    """Commands whose modules are imported when they are asked for, or listed in the help."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's own)
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 (click's own)
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"brimline.cli.{COMMANDS[cmd_name]}"), cmd_name)
        return command


@click.group(
    cls=LateGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="brimline")
def cli() -> None:
    """How near an LLM inference server's memory stands to the brim."""


# New objects before garbage is looked for; importing makes tens of thousands, and hardly any garbage.
_COLLECT_AFTER = 50_000


def main() -> None:
    """Entry point of `brimline` and `python -m brimline`."""
    gc.set_threshold(_COLLECT_AFTER)
    cli()
