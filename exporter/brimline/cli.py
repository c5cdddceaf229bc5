"""The command line. What a command needs is imported when it runs, so that `serve` stays small."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from brimline import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from brimline.collect import TargetReader
    from brimline.config import Config
    from brimline.footprint.gpus import Gpu
    from brimline.footprint.predict import Launch
    from brimline.readings import TargetSnapshot

logger = logging.getLogger(__name__)

EXIT_NEGATIVE = 1
EXIT_USAGE = 2
EXIT_NO_ANSWER = 3

_CONFIG = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration file. Without one, servers on this machine are found by themselves.",
)
_PORTS = click.option(
    "--discover-ports",
    metavar="PORTS",
    help="Ports on 127.0.0.1 to look at without a configuration, such as 8000,8080.",
)


def _fail(text: str, code: int = EXIT_USAGE) -> NoReturn:
    click.echo(f"brimline: {text}", err=True)
    sys.exit(code)


def _set_up_logging(level: str) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format="%(asctime)s level=%(levelname)s logger=%(name)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S%z",
    )


def _raise_open_file_limit() -> None:
    """A thousand targets need more than the usual 1024 open files."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _ports(text: str | None) -> tuple[int, ...]:
    from brimline.discovery import usual_ports

    if text is None:
        return usual_ports()
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and 0 < int(word) < 65536 for word in words):
        _fail(f"--discover-ports {text!r} is not a list of ports; write 8000,8080")
    return tuple(map(int, words))


def _open_config(config_path: Path | None, listen: str | None = None) -> Config:
    from brimline.config import parse_listen
    from brimline.errors import ConfigError
    from brimline.server import open_config

    try:
        config = open_config(config_path, listen)
        parse_listen(config.listen)
    except ConfigError as error:
        _fail(str(error))
    except ValueError as error:
        _fail(f"--listen: {error}")
    return config


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="brimline")
def cli() -> None:
    """How near an LLM inference server's memory stands to the brim."""


@cli.command()
@_CONFIG
@click.option("--listen", metavar="HOST:PORT", help="Where to serve; overrides the configuration.")
@_PORTS
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def serve(config_path: Path | None, listen: str | None, discover_ports: str | None, log_level: str) -> None:
    """Read servers and GPUs when Prometheus asks, and expose what they say.

    SIGHUP or POST /-/reload reads the configuration again; SIGTERM ends.
    """
    _set_up_logging(log_level)
    config = _open_config(config_path, listen)
    if config_path is not None and discover_ports is not None:
        _fail("--discover-ports works without --config only; name the targets in the file")
    ports = _ports(discover_ports) if config_path is None else ()
    _raise_open_file_limit()
    code = asyncio.run(_serve(config, config_path, listen, ports))
    _leave(code)


async def _serve(config: Config, config_path: Path | None, listen: str | None, ports: Sequence[int]) -> int:
    from brimline.collect import Collector
    from brimline.config import parse_listen
    from brimline.discovery import Discovery, keep_looking
    from brimline.server import Exporter
    from brimline.server import serve as serve_port

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    collector = Collector(config, quiet_launch=config_path is None)
    exporter = Exporter(collector, config_path, listen)
    loop.add_signal_handler(signal.SIGHUP, exporter.reload)
    host, port = parse_listen(config.listen)
    await collector.start()
    looking: asyncio.Task[None] | None = None
    if config_path is None:
        looking = asyncio.ensure_future(keep_looking(Discovery(ports), collector, config))
        looking.add_done_callback(_report_end)
    elif not config.targets:
        logger.warning("config=%s names no targets; only GPUs are exported", config_path)

    def started(bound: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        logger.info("listening=http://%s:%d version=%s", shown, bound, __version__)
        if not _is_loopback(host):
            logger.warning("listen=%s is reachable from other machines, without authentication", host)

    try:
        await serve_port(exporter, host, port, stop, started=started)
    except OSError as error:
        click.echo(
            f"brimline: cannot listen on {config.listen} ({error.strerror}); use --listen HOST:PORT", err=True
        )
        return EXIT_USAGE
    finally:
        if looking is not None:
            looking.cancel()
        await collector.close()
    logger.info("stopped")
    return 0


@cli.command()
@_CONFIG
@_PORTS
def check(config_path: Path | None, discover_ports: str | None) -> None:
    """Read every server and GPU once, and print what was understood.

    Exit status: 0 all was read, 1 something could not be read, 2 the configuration is wrong, 3 nothing was
    found.
    """
    from rich.console import Console

    from brimline.check import failures, print_snapshot, read_once

    logging.getLogger("brimline").setLevel(logging.CRITICAL)  # the table says it all
    config = _open_config(config_path)
    if config_path is not None and discover_ports is not None:
        _fail("--discover-ports works without --config only; name the targets in the file")
    _raise_open_file_limit()
    if config_path is None:
        config = asyncio.run(_discovered(config, discover_ports))
        if not config.targets:
            ports = ", ".join(map(str, _ports(discover_ports)))
            _fail(
                f"no inference server answers on 127.0.0.1 at the ports {ports}; "
                "name yours with --config FILE",
                3,
            )
    snapshot = asyncio.run(read_once(config, quiet_launch=config_path is None))
    print_snapshot(snapshot, Console(markup=False, highlight=False))
    lines = failures(snapshot, config)
    for line in lines:
        click.echo(f"brimline: {line}", err=True)
    if not snapshot.targets:
        click.echo(
            f"brimline: {config_path}: names no targets; add `targets:`, or start without --config", err=True
        )
        _leave(EXIT_NO_ANSWER)
    _leave(EXIT_NEGATIVE if lines else 0)


async def _discovered(config: Config, discover_ports: str | None) -> Config:
    from brimline.discovery import Discovery

    discovery = Discovery(_ports(discover_ports))
    await discovery.look()
    return discovery.config(config)


def _leave(code: int) -> NoReturn:
    """End at once: daemon threads may hang in a driver, and the interpreter's farewell could trip over it."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@cli.command()
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

    if engine is not None and engine not in ENGINES:
        _fail(f"unknown engine {engine!r}; known: {', '.join(sorted(ENGINES))}")
    try:
        readings = read_saved(open_saved(source), engine)
    except EngineError as error:
        if as_json_:
            click.echo(
                json.dumps(
                    {**as_json([]), "problem": {"reason": error.reason, "detail": str(error)}}, indent=2
                )
            )
        _fail(f"{source}: {error.reason}: {error}", EXIT_NO_ANSWER)
    except BrimlineError as error:
        _fail(str(error))
    else:
        if as_json_:
            click.echo(json.dumps(as_json(readings), indent=2))
        else:
            _print_readings(as_json(readings))


def _print_readings(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)  # names come from servers
    for engine in document["engines"]:
        for model in engine["models"]:
            version = engine["engine_version"] or "(version not stated)"
            table = Table(title=f"{engine['engine']} {version}: {model['model'] or '(model not named)'}")
            table.title_justify = "left"
            table.add_column("quantity")
            ranks = model["ranks"] if len(model["ranks"]) > 1 else []
            table.add_column("all ranks" if ranks else "value", justify="right")
            for rank in ranks:
                table.add_column(f"rank {rank['rank']}", justify="right")
            for name, value in model.items():
                if name not in ("model", "ranks"):
                    cells = [value, *(rank[name] for rank in ranks)]
                    table.add_row(name, *("–" if cell is None else f"{cell:,}" for cell in cells))
            console.print(table)
        for quantity in engine["missing_quantities"]:
            console.print(f"! {quantity} is not on the page of this version")
        if engine["unparsed_lines"]:
            console.print(f"! {engine['unparsed_lines']} lines of the page could not be read")


@cli.command()
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
        _fail(str(error).partition(": ")[2])
    snapshot, reader = asyncio.run(_read_target(config))
    try:
        written = write_capture(folder, snapshot, reader)
    except ConfigError as error:
        _fail(str(error))
    except BrimlineError as error:
        _fail(str(error), EXIT_NEGATIVE)
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


@cli.command()
def demo() -> None:
    """Watch two simulated servers, a replayed GPU, the exporter and a Prometheus, on any machine."""
    from brimline.demo.run import run
    from brimline.errors import BrimlineError

    try:
        run(click.echo)
    except BrimlineError as error:
        _fail(str(error), EXIT_NEGATIVE)


def _count(text: str | None, flag: str) -> int | None:
    from brimline.units import parse_count

    if text is None:
        return None
    try:
        return parse_count(text)
    except ValueError as error:
        _fail(f"{flag}: {error}")


def _size(text: str | None, flag: str) -> int | None:
    from brimline.units import parse_bytes

    if text is None:
        return None
    try:
        return parse_bytes(text)
    except ValueError as error:
        _fail(f"{flag}: {error}")


@cli.command(context_settings={"ignore_unknown_options": False})
@click.argument("model", required=False)
@click.argument("launch_command", nargs=-1, type=click.UNPROCESSED, metavar="[-- vllm serve …]")
@click.option("--engine-version", help="Version of vLLM; the newest known one unless given.")
@click.option("--dtype", default="auto", show_default=True)
@click.option("--quantization", help="Predict as if the weights were quantized so: fp8, awq, gptq, nvfp4, …")
@click.option("--kv-cache-dtype", default="auto", show_default=True)
@click.option("--max-model-len", metavar="TOKENS", help="Such as 32768, 128k (128,000) or 128K (131,072).")
@click.option("--max-num-seqs", metavar="N")
@click.option("--max-num-batched-tokens", metavar="TOKENS")
@click.option("--block-size", type=int)
@click.option("--tensor-parallel-size", "-tp", type=int, default=1, show_default=True)
@click.option("--pipeline-parallel-size", "-pp", type=int, default=1, show_default=True)
@click.option("--data-parallel-size", "-dp", type=int, default=1, show_default=True)
@click.option("--enable-expert-parallel", is_flag=True)
@click.option("--gpu-memory-utilization", type=float)
@click.option("--kv-cache-memory-bytes", metavar="SIZE")
@click.option("--num-gpu-blocks-override", type=int)
@click.option("--cpu-offload-gb", type=float, default=0.0)
@click.option("--enforce-eager", is_flag=True)
@click.option("--max-loras", type=int, default=0, help="Slots for adapters; 0 without --enable-lora.")
@click.option("--max-lora-rank", type=int, default=16, show_default=True)
@click.option("--gpu", metavar="NAME", help="Such as H100, A100-80, L4.")
@click.option("--gpu-memory", metavar="SIZE", help="Memory of a GPU that is not in the table, such as 96GiB.")
@click.option("--gpu-bandwidth", type=float, metavar="BYTES/S", help="Its memory bandwidth, such as 3.35e12.")
@click.option("--json", "as_json_", is_flag=True, help="Print JSON.")
@click.option("--fail-if-unfit", is_flag=True, help="Exit 1 where it does not fit.")
def predict(
    model: str | None,
    launch_command: tuple[str, ...],
    gpu: str | None,
    gpu_memory: str | None,
    gpu_bandwidth: float | None,
    as_json_: bool,
    fail_if_unfit: bool,
    **flags: Any,
) -> None:
    """Predict the memory of a vLLM server before it is started, component by component.

    MODEL is a folder, a config.json or a .gguf file. Flags are vLLM's own; or give the launch command itself
    behind --, as in: brimline predict --gpu H100 -- vllm serve /models/llama -tp 2
    """
    import json

    from brimline.errors import FootprintError
    from brimline.footprint.predict import as_json, read_model
    from brimline.footprint.predict import predict as predict_footprint

    try:
        path, launch = _predicted_launch(model, launch_command, flags)
        architecture, stored = read_model(path)
        card = _predicted_gpu(gpu, gpu_memory, gpu_bandwidth)
        footprint = predict_footprint(architecture, launch, gpu=card, stored=stored)
    except FootprintError as error:
        _fail(str(error))
    if as_json_:
        click.echo(json.dumps(as_json(footprint), indent=2))
    else:
        from rich.console import Console

        from brimline.predicted import print_footprint

        print_footprint(footprint, Console(markup=False, highlight=False), card)
    sys.exit(EXIT_NEGATIVE if fail_if_unfit and footprint.fits is False else 0)


def _predicted_launch(
    model: str | None, words: tuple[str, ...], flags: dict[str, Any]
) -> tuple[Path, Launch]:
    from brimline.engines import ENGINES
    from brimline.engines.launch import parse_launch, starts
    from brimline.errors import FootprintError
    from brimline.footprint.predict import Launch

    command = [word for word in (model, *words) if word is not None]
    if len(command) > 1:
        adapter = ENGINES["vllm"]
        if not starts(command, adapter):
            raise FootprintError(
                f"{' '.join(command[:2])!r} does not start vLLM; write -- vllm serve MODEL …"
            )
        stated = parse_launch(command, adapter)
        model = stated.pop("model", None)
        context = click.get_current_context()
        for name, value in stated.items():
            given = context.get_parameter_source(name)
            if name in flags and given is click.core.ParameterSource.DEFAULT:
                flags[name] = value
    if model is None:
        raise FootprintError("no model is named; give a folder, a config.json or a .gguf file")
    if not Path(model).exists():
        raise FootprintError(f"{model} does not exist here; give a folder, a config.json or a .gguf file")
    counts = ("max_model_len", "max_num_seqs", "max_num_batched_tokens")
    known: dict[str, Any] = {}
    for name, value in flags.items():
        option = f"--{name.replace('_', '-')}"
        if name in counts:
            known[name] = _count(value, option)
        elif name == "kv_cache_memory_bytes":
            known[name] = _size(value, option)
        elif isinstance(value, str) and name not in (
            "dtype",
            "quantization",
            "kv_cache_dtype",
            "engine_version",
        ):
            known[name] = _typed(value, option)
        else:
            known[name] = value
    return Path(model), Launch(**known)


def _typed(text: str, option: str) -> bool | int | float:
    if text in ("true", "false"):
        return text == "true"
    try:
        number = float(text)
    except ValueError:
        _fail(f"{option}: {text!r} is not a number")
    return int(number) if number.is_integer() and option != "--cpu-offload-gb" else number


def _predicted_gpu(name: str | None, memory: str | None, bandwidth: float | None) -> Gpu | None:
    from brimline.errors import FootprintError
    from brimline.footprint.gpus import described_gpu, find_gpu

    if name is not None and memory is not None:
        raise FootprintError("--gpu and --gpu-memory name two GPUs; give one of them")
    if memory is not None:
        size = _size(memory, "--gpu-memory")
        if bandwidth is None or size is None:
            raise FootprintError("--gpu-memory needs --gpu-bandwidth beside it, such as 3.35e12")
        return described_gpu(size, bandwidth)
    return find_gpu(name) if name is not None else None


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("discovery ended", exc_info=task.exception())


def _is_loopback(host: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main() -> None:
    """Entry point of `brimline` and `python -m brimline`."""
    cli()
