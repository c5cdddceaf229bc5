"""calibrate: constants measured on one server, in place of those of the tables."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from brimline.cli.common import EXIT_NEGATIVE, EXIT_NO_ANSWER, fail, leave

if TYPE_CHECKING:
    from collections.abc import Iterator

    from brimline.config import Config
    from brimline.footprint.calibrate_live import Observed
    from brimline.footprint.findings import Outcome
    from brimline.footprint.gpus import Gpu
    from brimline.footprint.predict import Model
    from brimline.footprint.startup_log import StartupLog


@click.command()
@click.argument("model", required=False)
@click.option("--log", metavar="FILE|-", help="Start-up log of a vLLM server; - is standard input.")
@click.option(
    "--target", metavar="NAME|URL", help="A running server: of --config by name, or any by its URL."
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration file that names the target.",
)
@click.option("--gpu", metavar="NAME", help="What it ran on, such as H100; this machine's GPU unless given.")
@click.option("--engine-version", help="Version of vLLM, where the log does not say it.")
@click.option("--max-num-seqs", metavar="N", help="With --log: where the log does not say it.")
@click.option("--max-num-batched-tokens", metavar="TOKENS", help="With --log: where the log does not say it.")
@click.option("--launch-command", metavar="TEXT", help="With a URL: how the server was started.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write there, not to stdout."
)
@click.option("--force", is_flag=True, help="Replace the file of -o.")
def calibrate(
    model: str | None,
    log: str | None,
    target: str | None,
    config_path: Path | None,
    gpu: str | None,
    engine_version: str | None,
    max_num_seqs: str | None,
    max_num_batched_tokens: str | None,
    launch_command: str | None,
    output: Path | None,
    force: bool,
) -> None:
    """Measure one server's constants, for predictions that need no table.

    Reads a start-up log of vLLM, or asks a running vLLM or SGLang and its GPUs. Prints what was measured
    beside what the tables say, and writes a small YAML file that `calibration:` of a target names. MODEL is
    the model's folder, config.json or .gguf file.

    An ordinary log of vLLM tells weights, CUDA graphs and the pool; one with VLLM_LOGGING_LEVEL=DEBUG also
    activations, library memory and the CUDA context, whatever the version.

    \b
    brimline calibrate --log vllm.log --gpu H100 /models/llama-8b -o calib.yaml
    docker logs vllm 2>&1 | brimline calibrate --log - /models/llama-8b > calib.yaml
    brimline calibrate --target chat-a --config brimline.yaml -o calib.yaml

    Exit status: 0 written, 1 the server could not be read, 2 wrong usage, 3 nothing could be told.
    """
    from brimline.errors import BrimlineError

    if (log is None) == (target is None):
        fail("give either --log FILE or --target NAME (with --config) or URL")
    if output is not None and output.exists() and not force:
        fail(f"{output} exists; name another file, or replace it with --force")
    flags = {
        name: value
        for name, value in (
            ("max_num_seqs", max_num_seqs),
            ("max_num_batched_tokens", max_num_batched_tokens),
        )
        if value is not None
    }
    try:
        if log is not None:
            for flag, given in (("--config", config_path), ("--launch-command", launch_command)):
                if given is not None:
                    fail(f"{flag} is of a running server, not of a log; give --target, or leave it out")
            outcome = _of_log(log, model, gpu, engine_version, flags)
        else:
            if flags or engine_version is not None:
                fail("a running server says its version and settings; leave such flags to --log")
            outcome = _of_target(target or "", config_path, model, gpu, launch_command)
    except BrimlineError as error:
        fail(str(error))
    _write(outcome, output)


def _of_log(
    log: str, model: str | None, gpu: str | None, engine_version: str | None, flags: dict[str, str]
) -> Outcome:
    from brimline.config import Config
    from brimline.errors import FootprintError
    from brimline.footprint.calibrate_log import from_log, logged_model
    from brimline.footprint.gpus import find_gpu
    from brimline.footprint.settings import count
    from brimline.footprint.startup_log import read_startup_log

    flags = {name: str(count(flags, name)) for name in flags}
    name = "standard input" if log == "-" else log
    try:
        read = read_startup_log(_lines(log))
    except OSError as error:
        raise FootprintError(f"{log} cannot be read ({error.strerror})") from None
    path = Path(model) if model is not None else logged_model(read)
    found = None if path is None else _read_model(path)
    if read.device == "cpu" or not read.says_memory:
        # Which GPU it was does not matter then.
        return from_log(read, find_gpu("H100"), name=name)
    if gpu is not None:
        card, notes = _named_card(gpu, read)
    else:
        from brimline.calibrate import local_gpu

        logging.getLogger("brimline").setLevel(logging.CRITICAL)  # the message says it all
        card, notes = asyncio.run(local_gpu(Config())), ()
    outcome = from_log(read, card, model=found, version=engine_version, flags=flags, name=name)
    return replace(outcome, notes=(*notes, *outcome.notes))


def _named_card(name: str, log: StartupLog) -> tuple[Gpu, tuple[str, ...]]:
    """The GPU of that name, with the log's memory where no table knows it. Raises FootprintError."""
    from brimline.errors import FootprintError
    from brimline.footprint.gpus import find_gpu, live_gpu

    try:
        card = find_gpu(name)
    except FootprintError:
        if log.gpu_bytes is None:
            raise
        note = (
            f"{name!r} is in no table of GPUs: the calibration will hold where the driver names it just so."
        )
        return live_gpu(name, log.gpu_bytes, 0), (note,)
    return card, () if card.assumption is None else (card.assumption,)


def _lines(log: str) -> Iterator[str]:
    """Lines of the log, whatever bytes are in it, a very long one in pieces. Raises OSError."""
    from brimline.footprint.startup_log import MAX_LINE

    with contextlib.nullcontext(sys.stdin.buffer) if log == "-" else open(log, "rb") as file:
        while raw := file.readline(MAX_LINE):
            yield raw.decode("utf-8", "replace")


def _read_model(path: Path) -> Model:
    from brimline.errors import FootprintError
    from brimline.footprint.predict import read_model

    if not path.exists():
        raise FootprintError(f"{path} does not exist here; give a folder, a config.json or a .gguf file")
    return read_model(path)


def _of_target(
    target: str, config_path: Path | None, model: str | None, gpu: str | None, launch_command: str | None
) -> Outcome:
    from brimline.calibrate import observe
    from brimline.footprint.calibrate_live import from_server
    from brimline.footprint.gpus import find_gpu

    card: Gpu | None = None if gpu is None else find_gpu(gpu)
    logging.getLogger("brimline").setLevel(logging.CRITICAL)  # the table says it all
    is_url = "://" in target
    config = _config(target, config_path, model, launch_command, is_url=is_url)
    name = "server" if is_url else target
    observed: Observed = asyncio.run(
        observe(config, name, quiet_launch=is_url, read_model=_read_model, gpu=card)
    )
    if observed.target.reading is None:
        for problem in observed.target.problems:
            click.echo(f"brimline: {target}: {problem.reason}: {problem.detail}", err=True)
        leave(EXIT_NEGATIVE)
    return from_server(observed)


def _config(
    target: str, config_path: Path | None, model: str | None, launch_command: str | None, *, is_url: bool
) -> Config:
    """The configuration with that target, without the calibration that is about to be replaced."""
    import json

    import msgspec

    from brimline.cli.common import all_targets_or_fail, open_config_or_fail
    from brimline.config import parse
    from brimline.errors import ConfigError

    if is_url:
        if config_path is not None:
            fail("--config names its targets; give --target NAME, or a URL without --config")
        described = {"name": "server", "url": target, "model": model, "launch_command": launch_command}
        stated = {key: value for key, value in described.items() if value is not None}
        try:
            return parse(json.dumps({"targets": [stated]}), "--target")
        except ConfigError as error:
            fail(str(error))
    if config_path is None:
        fail(f"--target {target!r} is no URL; write http://HOST:PORT, or name the file with --config")
    if launch_command is not None:
        fail("--launch-command is for a URL; write launch_command into the configuration")
    config = all_targets_or_fail(open_config_or_fail(config_path)).config
    known = [one.name for one in config.targets]
    if target not in known:
        fail(f"{config_path}: no target is named {target!r}; known: {', '.join(known) or 'none'}")
    targets = [
        msgspec.structs.replace(one, calibration=None, **({} if model is None else {"model": model}))
        if one.name == target
        else one
        for one in config.targets
    ]
    return msgspec.structs.replace(config, targets=targets)


def _write(outcome: Outcome, output: Path | None) -> None:
    """Print what was found and write the calibration: to -o, else to stdout, and then the table to stderr."""
    from rich.console import Console

    from brimline.calibrate import print_outcome
    from brimline.footprint.calibration import format_calibration

    to_stdout = output is None and outcome.calibration is not None
    print_outcome(outcome, Console(stderr=to_stdout, markup=False, highlight=False))
    if outcome.calibration is None:
        click.echo("brimline: nothing could be told, so nothing is written", err=True)
        leave(EXIT_NO_ANSWER)
    text = format_calibration(outcome.calibration, outcome.comments)
    if output is None:
        click.echo(text, nl=False)
        leave(0)
    unfinished = output.with_name(f".{output.name}.new")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(output)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        fail(f"{output} cannot be written ({error.strerror}); name another file with -o")
    click.echo(f"written to {output}")
    leave(0)
