"""The command line. What a command needs is imported when it runs, so that each one stays quick and small."""

from __future__ import annotations

import gc
import os
import sys
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


# New objects before garbage is looked for; importing makes 50,000, and hardly any garbage.
_COLLECT_AFTER = 100_000


# Apart from 1, which is an answer: WORSE, does not fit. 128 and the signal's number, as shells have it.
EXIT_DEFECT, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 5, 130, 141


def main() -> None:
    """Entry point of `brimline` and `python -m brimline`."""
    gc.set_threshold(_COLLECT_AFTER)
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("brimline: interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read the output has enough of it; the interpreter would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(EXIT_BROKEN_PIPE)
    except Exception as error:  # noqa: BLE001 - else its status would be 1, which is an answer
        _tell_defect(error)
        sys.exit(EXIT_DEFECT)


def _tell_defect(error: Exception) -> None:
    """One line; with it the traceback where somebody debugs."""
    import logging

    if os.environ.get("BRIMLINE_DEBUG") or logging.getLogger().isEnabledFor(logging.DEBUG):
        import traceback

        traceback.print_exception(error)
    said = " ".join(f"{type(error).__name__}: {error}".split())
    click.echo(
        f"brimline: a defect of Brimline: {said}; report it with what BRIMLINE_DEBUG=1 shows", err=True
    )
