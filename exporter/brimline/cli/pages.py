"""read and capture: single pages, without an exporter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brimline import units
from brimline.cli.common import EXIT_NEGATIVE, EXIT_NO_ANSWER, fail

if TYPE_CHECKING:
    from rich.console import Console

    from brimline.collect import TargetReader
    from brimline.config import Config
    from brimline.readings import TargetSnapshot


@click.command()
@click.argument("source", metavar="PAGE|CAPTURE_DIR|-")
@click.option("--engine", help="Read the page as this engine's, where it holds several.")
@click.option("--json", "as_json_", is_flag=True, help="Print JSON; what the page does not state is null.")
def read(source: str, engine: str | None, as_json_: bool) -> None:
    """Print what a saved /metrics page, a capture or standard input says.

    Exit status: 0 read, 2 no such file or engine, 3 no page of an inference engine.
    """
    import json

    from brimline.engines import ENGINES
    from brimline.errors import BrimlineError, EngineError
    from brimline.saved_page import as_json, open_saved, read_saved
    from brimline.spelling import known_names

    if engine is not None and engine not in ENGINES:
        fail(f"unknown engine {engine!r}; {known_names(engine, sorted(ENGINES))}")
    try:
        readings = read_saved(open_saved(source), engine)
    except EngineError as error:
        if as_json_:
            click.echo(
                json.dumps(
                    {**as_json([]), "problem": {"reason": error.reason, "detail": str(error)}}, indent=2
                )
            )
        fail(f"{source}: {error.reason}: {error}", EXIT_NO_ANSWER)
    except BrimlineError as error:
        fail(str(error))
    else:
        if as_json_:
            click.echo(json.dumps(as_json(readings), indent=2))
        else:
            _print_readings(as_json(readings))


def _print_readings(document: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(markup=False, highlight=False)  # names come from servers
    for engine in document["engines"]:
        for model in engine["models"]:
            version = engine["engine_version"] or "(version not stated)"
            title = f"{engine['engine']} {version}: {model['model'] or '(model not named)'}"
            _print_model(title, model, console)
        for quantity in engine["missing_quantities"]:
            console.print(f"! {quantity} is not on the page of this version")
        if engine["unparsed_lines"]:
            console.print(f"! {engine['unparsed_lines']} lines of the page could not be read")


def _print_model(title: str, model: dict[str, Any], console: Console) -> None:
    """Print what is stated of a model, with as many ranks in a table as there is room for."""
    from rich.table import Table

    from brimline.fitted_table import fits, print_table

    ranks = model["ranks"] if len(model["ranks"]) > 1 else []
    rows = {
        name: [value, *(rank[name] for rank in ranks)]
        for name, value in model.items()
        if name not in ("model", "ranks")
    }
    for name in ("measured_memory_bytes", "model_memory_bytes"):
        stated = [rank[name] or {} for rank in model["ranks"]]
        for part in dict.fromkeys(part for parts in stated for part in parts):
            rows[f"{name}: {part}"] = [None] * bool(ranks) + [parts.get(part) for parts in stated]
    headings = ["all ranks" if ranks else "value", *(f"rank {rank['rank']}" for rank in ranks)]

    def table(columns: range) -> Table:
        made = Table(title=title, title_justify="left")
        made.add_column("quantity", no_wrap=True)
        for place in columns:
            made.add_column(headings[place], justify="right", no_wrap=True)
        for name, values in rows.items():
            made.add_row(name, *(_amount(name, values[place]) for place in columns))
        return made

    start = 0
    while start < len(headings):
        end = len(headings)
        while end > start + 1 and not fits(table(range(start, end)), console):
            end -= 1
        # Where not even one has room, a list of all of them is shorter than a list of each.
        end = end if fits(table(range(start, end)), console) else len(headings)
        print_table(table(range(start, end)), console)
        start = end


def _amount(name: str, value: float | None) -> str:
    """A value as people read it, by the unit in the quantity's name."""
    name = name.partition(":")[0]
    if name.endswith("_bytes"):
        return units.format_bytes(value)
    if name.endswith("_ratio"):
        return units.format_ratio(value)
    if name.endswith("_concurrency_requests"):
        return units.format_amount(value, "requests")
    return "–" if value is None else f"{value:,}"


@click.command()
@click.option(
    "--target", "url", required=True, metavar="URL", help="The server, such as http://127.0.0.1:8000."
)
@click.option("-o", "--output", "folder", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--metrics-path", help="Where its metrics page is, if it is not found by itself.")
@click.option("--bearer-token-file", help="File with the token that the server wants.")
def capture(url: str, folder: Path, metrics_path: str | None, bearer_token_file: str | None) -> None:
    """Save a server's metrics page and settings into a new folder, without secrets, for a bug report.

    Exit status: 0 saved, 1 the server could not be read, 2 wrong usage, 3 saved, but it is no page of a known
    engine.
    """
    import asyncio
    import json

    from brimline.capture import write_capture
    from brimline.config import parse
    from brimline.errors import BrimlineError, ConfigError

    target: dict[str, str] = {"name": "captured", "url": url}
    if metrics_path is not None:
        target["metrics_path"] = metrics_path
    if bearer_token_file is not None:
        target["bearer_token_file"] = bearer_token_file
    try:
        config = parse(json.dumps({"targets": [target]}), "capture")
    except ConfigError as error:
        fail(str(error).partition(": ")[2])
    snapshot, reader = asyncio.run(_read_target(config))
    try:
        written = write_capture(folder, snapshot, reader)
    except ConfigError as error:
        fail(str(error))
    except BrimlineError as error:
        fail(str(error), EXIT_NEGATIVE)
    else:
        for path in written:
            click.echo(path)
        for problem in snapshot.problems:
            click.echo(f"brimline: {problem.reason}: {problem.detail}", err=True)
        sys.exit(0 if snapshot.up else EXIT_NO_ANSWER)


async def _read_target(config: Config) -> tuple[TargetSnapshot, TargetReader]:
    import time

    from brimline.collect import TargetReader
    from brimline.fetch import open_session

    async with open_session() as session:
        [target] = config.targets
        reader = TargetReader(
            target,
            session,
            timeout=config.scrape_timeout,
            histograms="full",
            clock=time.time,
            monotonic=time.monotonic,
            quiet=True,
        )
        reader.keep_raw = True
        return await reader.read(), reader
