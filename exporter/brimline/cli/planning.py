"""plan: which combinations of models, GPUs and settings fit, and what they would do."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from brimline.cli.common import EXIT_NEGATIVE, fail
from brimline.cli.prediction import (
    _CALIBRATION,
    _FLAGS,
    _GPU,
    _SETTING,
    DEFAULT_ENGINE,
    Launch,
    _calibration,
    _check_names,
    _is_command_line,
    _launched,
    _own_flags,
    _read_model,
    _with,
    described_card,
    stated_flags,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from brimline.footprint.predict import Model
    from brimline.plan import Plan, Row, Sweep

PLOT_FORMATS = (".png", ".svg")
# A plan that takes longer shows how far it is.
PATIENCE_SECONDS = 1.0
_ORDERS = ("requests", "headroom", "speed", "gpus")


@click.command()
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="MODEL… | -- vllm serve …")
@click.option(
    "--sweep",
    "sweeps",
    multiple=True,
    metavar="NAME=VALUE,…",
    help="A setting and the values to try: any of the server's own, or gpu, model, engine_version. Repeat it "
    "for more settings; every combination is one row.",
)
@click.option(
    "--engine", help=f"Whose servers are compared: {DEFAULT_ENGINE} unless the launch command says another."
)
@click.option("--engine-version", help="Version of the engine; the newest known one unless given.")
@_with(_FLAGS)
@_SETTING
@_with(_GPU)
@_CALIBRATION
@click.option(
    "--allow-hub", is_flag=True, help="Look models up on the Hugging Face hub (needs the extra `hub`)."
)
@click.option(
    "--sort", type=click.Choice(_ORDERS), help="Best first; in the order of the sweeps unless given."
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Draw the room beside one request, and how many run at once, by context length: .png or .svg.",
)
@click.option("--json", "as_json_", is_flag=True, help="Print JSON.")
@click.option("--csv", "as_csv_", is_flag=True, help="Print a line for each combination.")
@click.option("--fail-if-unfit", is_flag=True, help="Exit 1 where nothing fits.")
def plan(
    words: tuple[str, ...],
    sweeps: tuple[str, ...],
    engine: str | None,
    engine_version: str | None,
    more: tuple[str, ...],
    gpu: str | None,
    gpu_memory: str | None,
    gpu_bandwidth: str | None,
    calibration: Path | None,
    allow_hub: bool,
    sort: str | None,
    plot: Path | None,
    as_json_: bool,
    as_csv_: bool,
    fail_if_unfit: bool,
    **flags: str | bool | None,
) -> None:
    """Compare what fits: every combination of models, GPUs and settings, one row for each.

    MODEL is a folder, a config.json or a .gguf file. Flags that are not swept hold for all rows; so do those
    of a launch command behind --, unless they are swept.

    \b
    brimline plan /models/llama-8b --gpu H100 --sweep max_model_len=8k,32k,128k \\
        --sweep kv_cache_dtype=auto,fp8 --sweep tensor_parallel_size=1,2
    brimline plan teacher student --sweep gpu=L4,L40S --sweep quantization=auto,awq
    brimline plan --gpu L40S --sweep max_model_len=16K,32K -- vllm serve /models/llama-8b -tp 2
    """
    from brimline.errors import FootprintError
    from brimline.plan import make_plan

    if as_json_ and as_csv_:
        fail("--json and --csv are two forms of one answer; give one of them")
    if plot is not None and plot.suffix.lower() not in PLOT_FORMATS:
        fail(f"--plot {plot}: the name ends with .png or .svg")
    try:
        named, launch = _named(words, engine)
        engine, launched = launch.engine, launch.settings
        wanted = _sweeps(sweeps, engine)
        read, wanted = _models(named, wanted, allow_hub)
        own = _own_flags(engine, stated_flags(flags), more)
        swept = {sweep.name for sweep in wanted}
        asked = make_plan(
            engine,
            read,
            wanted,
            {**{name: value for name, value in launched.items() if name not in swept}, **own},
            version=engine_version or (None if "engine_version" in swept else launch.version),
            gpu=described_card(gpu, gpu_memory, gpu_bandwidth),
            calibration=_calibration(calibration),
        )
        if fail_if_unfit and asked.gpu is None and not asked.cards:
            raise FootprintError(
                "--fail-if-unfit has nothing to judge by; name a GPU with --gpu or --sweep gpu=…"
            )
        if plot is not None:
            _check_plot(asked, plot)
        if more:
            _check_names(engine, next(iter(read.values())), asked.settings, more)
        rows = [replace(row, assumptions=(*launch.notes, *row.assumptions)) for row in _rows(asked)]
        if all(row.outcome == "impossible" for row in rows):
            reasons = list(dict.fromkeys(row.reason for row in rows))
            raise FootprintError("\n  ".join(["no combination can be:", *map(str, reasons[:5])]))
        _print(asked, _sorted(rows, sort), as_json=as_json_, as_csv=as_csv_)
        if plot is not None:
            _draw(asked, rows, plot)
    except FootprintError as error:
        fail(str(error))
    unfit = not any(row.outcome == "fits" for row in rows)
    sys.exit(EXIT_NEGATIVE if fail_if_unfit and unfit else 0)


def _named(words: Sequence[str], engine: str | None) -> tuple[Sequence[str], Launch]:
    """The models' paths, and what the launch command states, if the words are one."""
    from brimline.engines import ENGINES
    from brimline.engines.launch import starts, unwrapped
    from brimline.errors import FootprintError
    from brimline.plan import check_engine

    adapters = ENGINES.values()
    try:
        inner = unwrapped(words, adapters)
    except ValueError as error:
        raise FootprintError(f"the launch command cannot be read: {error}") from None
    is_launch = any(starts(inner, one) or starts(inner[1:], one) for one in adapters if len(words) > 1)
    if is_launch or _is_command_line(words):
        launch = _launched(None, tuple(words), engine)
        return (launch.model or "",), launch
    engine = engine or DEFAULT_ENGINE
    check_engine(engine)
    return words, Launch(None, engine, {})


def _sweeps(texts: Sequence[str], engine: str) -> list[Sweep]:
    from brimline.engines import ENGINES
    from brimline.plan import parse_sweep

    adapter = ENGINES.get(engine)
    return [parse_sweep(text, adapter.launch_flags if adapter is not None else None) for text in texts]


def _models(
    named: Sequence[str], sweeps: Sequence[Sweep], allow_hub: bool
) -> tuple[dict[str, Model], list[Sweep]]:
    """The models by short names, and the sweeps with those names in place of paths."""
    from brimline.errors import FootprintError
    from brimline.plan import MODEL, Sweep, model_names

    swept = [path for sweep in sweeps if sweep.name == MODEL for path in sweep.values]
    if named and swept:
        raise FootprintError("models are named by arguments and by --sweep model; do it in one way")
    paths = list(dict.fromkeys(swept or named))
    if not paths:
        raise FootprintError("no model is named; give a folder, a config.json or a .gguf file")
    names = dict(zip(paths, model_names(paths), strict=True))
    models = {names[path]: _read_model(path, allow_hub) for path in paths}
    return models, [Sweep(MODEL, tuple(models)) if sweep.name == MODEL else sweep for sweep in sweeps]


def _rows(asked: Plan) -> list[Row]:
    """All rows; a progress bar shows on standard error where they take long and somebody watches."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    begun, rows = time.monotonic(), []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("combinations", total=asked.combinations, visible=False)
        for row in asked.rows():
            rows.append(row)
            if time.monotonic() - begun > PATIENCE_SECONDS:
                progress.update(task, completed=len(rows), visible=True)
    return rows


def _sorted(rows: Sequence[Row], order: str | None) -> Sequence[Row]:
    """Best first, those that fit before the others; what is not known comes last."""
    if order is None:
        return rows

    def key(row: Row) -> float | None:
        match order:
            case "requests":
                return row.concurrency.expected if row.concurrency is not None else None
            case "headroom":
                return row.room.expected if row.room is not None else None
            case "speed":
                return row.speed_tokens_per_second
            case _:
                return -row.gpus if row.gpus is not None else None

    def place(row: Row) -> tuple[bool, bool, float]:
        value = key(row)
        return row.outcome != "fits", value is None, -(value or 0.0)

    return sorted(rows, key=place)


def _print(asked: Plan, rows: Sequence[Row], *, as_json: bool, as_csv: bool) -> None:
    import json

    from brimline import planned

    if as_json:
        click.echo(json.dumps(planned.as_json(asked, rows), indent=2))
    elif as_csv:
        click.echo(planned.as_csv(asked, rows), nl=False)
    else:
        from rich.console import Console

        planned.print_plan(asked, rows, Console(markup=False, highlight=False))


def _check_plot(asked: Plan, file: Path) -> None:
    """Raise FootprintError for what would keep the plot from being drawn, before anything is computed."""
    from brimline.errors import FootprintError
    from brimline.plan import check_curves
    from brimline.plotted import check_library

    if not file.parent.is_dir():
        raise FootprintError(f"--plot {file}: the folder {file.parent} does not exist")
    check_library()
    check_curves(asked)


def _draw(asked: Plan, rows: Sequence[Row], file: Path) -> None:
    from brimline.plan import curves
    from brimline.plotted import draw

    try:
        draw(asked, curves(asked, rows), file)
    except OSError as error:
        fail(f"--plot {file}: it cannot be written ({error.strerror})")
