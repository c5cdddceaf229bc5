"""ab: two variants compared, and whether one may replace the other."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brimline.cli.common import (
    EXIT_NEGATIVE,
    EXIT_NO_ANSWER,
    EXIT_USAGE,
    WEB_CONFIG,
    fail,
    open_guard_or_fail,
    say_where,
    set_up_logging,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping

    from rich.console import Console

    from brimline.ab.draft import Server
    from brimline.ab.experiment import Experiment
    from brimline.ab.fetch import Api, Progress
    from brimline.ab.observations import Observations
    from brimline.ab.result import Report
    from brimline.guard import PortGuard

EXIT_NOT_COMPARABLE = 4
EXIT_DATA_SOURCE = 5
EXITS = {
    "better": 0,
    "pass": 0,
    "worse": EXIT_NEGATIVE,
    "inconclusive": EXIT_NO_ANSWER,
    "not_comparable": EXIT_NOT_COMPARABLE,
}
LISTEN = "127.0.0.1:10779"
# Of the same hours, a day earlier.
METHODS = ("auto", "replicas", "days")

_EXPERIMENT = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
_SERIES = click.option(
    "--series",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Read saved series in place of Prometheus: a dump by promtool, or a folder of saved pages.",
)
_JSON = click.option("--json", "as_json_", is_flag=True, help="Print JSON.")


def _output(name: str, help_: str) -> Callable[[Any], Any]:
    return click.option(name, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help=help_)


@click.group()
def ab() -> None:
    """Compare two variants under the same load: better, no worse, worse, or not yet known.

    \b
    brimline ab init -o experiment.yaml     # from the servers that run
    brimline ab plan experiment.yaml        # how many hours it takes
    brimline ab run experiment.yaml         # the verdict now
    brimline ab watch experiment.yaml       # after every block, for Prometheus, Argo Rollouts and Flagger
    """


# --- init ---


@ab.command()
@click.option(
    "--prometheus", "url", default="http://127.0.0.1:9090", show_default=True, help="Prometheus' address."
)
@click.option("--bearer-token-file", type=click.Path(dir_okay=False), help="A file with the token for it.")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Take the variants from a configuration of the exporter in place of Prometheus.",
)
@click.option("--experiment", "name", help="Which experiment, where there are several.")
@click.option("--baseline", help="Which variant is the baseline, where none is declared.")
@_output("-o", "Where to write it; standard output unless given.")
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
def init(
    url: str,
    bearer_token_file: str | None,
    config_path: Path | None,
    name: str | None,
    baseline: str | None,
    o: Path | None,
    force: bool,
) -> None:
    """Write an experiment file from the servers that run."""
    from brimline.ab import draft
    from brimline.ab.experiment import parse

    with _ending_with_what_is_wrong():
        servers = (
            _of_config(config_path)
            if config_path is not None
            else asyncio.run(_of_prometheus(url, bearer_token_file))
        )
        now = time.time()
        text = draft.text(draft.chosen(servers, name), prometheus_url=url, baseline=baseline, now=now)
        if bearer_token_file is not None:
            plain = f"prometheus: {{url: {draft.quoted(url)}"
            text = text.replace(plain, f"{plain}, bearer_token_file: {draft.quoted(bearer_token_file)}", 1)
        parse(text, "the experiment", now=now + 1)
    if o is None:
        click.echo(text, nl=False)
        return
    if o.exists() and not force:
        fail(f"-o {o}: it is there already; name another file, or overwrite it with --force")
    _write(o, "-o", lambda: o.write_text(text, encoding="utf-8"))
    click.echo(f"{o}: written; `brimline ab plan {o}` says how long it takes", err=True)


def _of_config(path: Path) -> list[Server]:
    from brimline.ab.draft import Server
    from brimline.config import load

    return [
        Server(
            target=target.name,
            experiment=target.experiment or "",
            variant=target.variant or "",
            role=target.role or "",
            settings={key: str(value) for key, value in (target.launch or {}).items()},
        )
        for target in load(path).targets
    ]


async def _of_prometheus(url: str, bearer_token_file: str | None) -> list[Server]:
    from brimline.ab.draft import Server
    from brimline.prometheus_api import Connection, open_api

    on = ("job", "instance", "target")
    async with open_api(Connection(url=url, bearer_token_file=bearer_token_file)) as api:
        now = time.time()
        infos = await api.query('last_over_time(brimline_target_info{experiment!=""}[10m])', now)
        said = await api.query("last_over_time(brimline_target_setting_info[10m])", now)
    settings: dict[tuple[str, ...], dict[str, str]] = {}
    for row in said.rows:
        key = tuple(row.labels.get(label, "") for label in on)
        settings.setdefault(key, {})[row.labels.get("setting", "")] = row.labels.get("value", "")
    return [
        Server(
            target=row.labels.get("target", ""),
            experiment=row.labels.get("experiment", ""),
            variant=row.labels.get("variant", ""),
            role=row.labels.get("role", ""),
            settings=settings.get(tuple(row.labels.get(label, "") for label in on), {}),
        )
        for row in infos.rows
    ]


# --- plan ---


@ab.command()
@_EXPERIMENT
@_SERIES
@click.option(
    "--noise",
    "declared",
    multiple=True,
    metavar="[METRIC=]RATIO",
    help="How much a block's difference scatters, in place of history: 0.08, or time_to_first_token=0.1.",
)
@click.option(
    "--noise-floor",
    "noise_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Take the noise from a file of `brimline ab aa`.",
)
@click.option(
    "--replicas", type=click.IntRange(1, 1000), default=1, show_default=True, help="Servers of each variant."
)
@_JSON
def plan(
    file: Path,
    series: Path | None,
    declared: tuple[str, ...],
    noise_file: Path | None,
    replicas: int,
    as_json_: bool,
) -> None:
    """Say how many hours the margins take, from history or from declared noise."""
    _need_libraries()
    import json
    import math

    from brimline import units
    from brimline.ab import noise_floor
    from brimline.ab.experiment import load
    from brimline.ab.needed import Events, deviations, events_of, longest, needed
    from brimline.compared import hours

    with _ending_with_what_is_wrong():
        experiment = load(file, now=time.time())
        noise: Mapping[str, float]
        events: Mapping[str, Events] = {}
        if declared:
            noise, source = _declared(declared, experiment), "--noise"
        elif noise_file is not None:
            floor = noise_floor.read(noise_file)
            length = experiment.block_length / floor.block_seconds
            # Blocks are nearly independent: means of twice as long ones scatter by the root of a half.
            noise = {name: value / math.sqrt(length) for name, value in floor.block_deviation.items()}
            source = str(noise_file)
            if length != 1:
                source += f", which has blocks of {units.format_duration(floor.block_seconds)}"
            events = {
                name: Events(number * length, floor.dispersion.get(name, 1.0))
                for name, number in floor.events_per_block.items()
            }
        else:
            report, source = asyncio.run(_from_history(experiment, series, as_json_))
            noise, events = deviations(report), events_of(report)
        rows = needed(experiment, noise, events, replicas=replicas)
    whole = longest(rows)
    if as_json_:
        click.echo(json.dumps(hours.as_json(experiment, rows, whole, source), indent=2, allow_nan=False))
    else:
        hours.print_needed(experiment, rows, whole, source, _console())
    sys.exit(EXIT_NO_ANSWER if whole is None else 0)


def _declared(texts: tuple[str, ...], experiment: Experiment) -> dict[str, float]:
    from brimline.errors import ConfigError

    known = {metric.name for metric in experiment.metrics}
    noise: dict[str, float] = {}
    for text in texts:
        name, separator, number = text.rpartition("=")
        try:
            ratio = float(number)
        except ValueError:
            ratio = 0.0
        if not 0 < ratio < 10:
            raise ConfigError(f"--noise {text!r} is no ratio; write 0.08 for 8 %")
        if separator and name not in known:
            raise ConfigError(f"--noise {text!r}: unknown metric; known: {', '.join(sorted(known))}")
        for metric in [name] if separator else sorted(known - noise.keys()):
            noise[metric] = ratio
    return noise


async def _from_history(experiment: Experiment, series: Path | None, as_json: bool) -> tuple[Report, str]:
    """A report whose blocks show the noise, and of what."""
    from brimline.ab.estimators import NotEnough
    from brimline.ab.fetch import open_source
    from brimline.ab.needed import deviations
    from brimline.ab.procedure import against_itself, judge

    with _progress(series, as_json) as progress:
        async with open_source(experiment, series) as api:
            seen = await _observe(experiment, api, progress)
            report = judge(experiment, seen)
            gates = {
                one.name for one in experiment.metrics if one.gate and one.kind not in ("static", "rare")
            }
            if deviations(report).keys() & gates:
                return report, "both variants in this window"
            try:
                report = judge(*against_itself(experiment, seen))
                if deviations(report).keys() & gates:
                    return report, "servers of the baseline beside each other"
            except NotEnough:
                pass
            return await _days(experiment, api, progress), "the baseline now and a day earlier"


# --- run ---


@ab.command()
@_EXPERIMENT
@_SERIES
@_JSON
@_output("--markdown", "Append Markdown to a file, such as $GITHUB_STEP_SUMMARY; kept below 1 MiB.")
@_output("--junit", "Write JUnit XML: a test case for each gate.")
@_output("--html", "Write a page with each block drawn.")
@click.option(
    "--noise-floor",
    "noise_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="What equal variants differ by, from `brimline ab aa`, shown beside each difference.",
)
@click.option(
    "--inconclusive-as",
    type=click.Choice(["pass", "fail"]),
    help="Exit 0 or 1 in place of 3 where it is not decided, or the report is not for a gate.",
)
@click.option(
    "--sequential", is_flag=True, help="Bounds that hold however often this is run on one experiment."
)
def run(
    file: Path,
    series: Path | None,
    as_json_: bool,
    markdown: Path | None,
    junit: Path | None,
    html: Path | None,
    noise_file: Path | None,
    inconclusive_as: str | None,
    sequential: bool,
) -> None:
    """Judge an experiment now.

    Exit status: 0 better or no worse, 1 worse, 2 the file is wrong, 3 not decided yet, or not for a gate (as
    with short blocks), 4 the variants cannot be compared, 5 Prometheus could not be read.
    """
    _need_libraries()
    from brimline import compared
    from brimline.ab import noise_floor
    from brimline.ab.experiment import load

    for option, path in (("--markdown", markdown), ("--junit", junit), ("--html", html)):
        if path is not None and not path.parent.is_dir():
            fail(f"{option} {path}: the folder {path.parent} does not exist")
    with _ending_with_what_is_wrong():
        experiment = load(file, now=time.time())
        floor = noise_floor.read(noise_file).noise_floor_ratio if noise_file is not None else None
        report = asyncio.run(
            _judged(experiment, series, "sequential" if sequential else "fixed", floor, as_json_)
        )
    _print(report, as_json=as_json_)
    if markdown is not None:
        _write(markdown, "--markdown", lambda: compared.append_markdown(report, markdown))
    if junit is not None:
        _write(junit, "--junit", lambda: junit.write_text(compared.as_junit(report), encoding="utf-8"))
    if html is not None:
        _write(html, "--html", lambda: html.write_text(compared.as_html(report), encoding="utf-8"))
    status = EXITS[report.verdict]
    if status == 0 and not report.is_gate:
        status = EXIT_NO_ANSWER
        if inconclusive_as is None:
            click.echo(
                f"brimline: {report.verdict}, but {report.no_gate}: exit status {status} in place of 0",
                err=True,
            )
    if status == EXIT_NO_ANSWER and inconclusive_as is not None:
        status = 0 if inconclusive_as == "pass" else EXIT_NEGATIVE
    sys.exit(status)


async def _judged(
    experiment: Experiment,
    series: Path | None,
    mode: Any,
    floor: Mapping[str, float] | None,
    as_json: bool,
) -> Report:
    from brimline.ab.fetch import open_source
    from brimline.ab.procedure import judge

    with _progress(series, as_json) as progress:
        async with open_source(experiment, series) as api:
            seen = await _observe(experiment, api, progress)
    return judge(experiment, seen, mode=mode, noise_floor=floor)


# --- aa ---


@ab.command()
@_EXPERIMENT
@_SERIES
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="auto",
    show_default=True,
    help="replicas: the baseline's servers dealt out to two arms. days: the same hours of the day before.",
)
@_output("-o", "Write what equal variants differ by, for `run --noise-floor` and `plan --noise-floor`.")
@_JSON
def aa(file: Path, series: Path | None, method: str, o: Path | None, as_json_: bool) -> None:
    """Compare the baseline with itself: what equal variants differ by.

    Exit status 0 where a noise floor came of it, 4 where the halves cannot be compared, else 3.
    """
    _need_libraries()
    from brimline.ab import noise_floor
    from brimline.ab.experiment import load
    from brimline.ab.needed import deviations, events_of
    from brimline.ab.procedure import noise_floor_of

    if o is not None and not o.parent.is_dir():
        fail(f"-o {o}: the folder {o.parent} does not exist")
    with _ending_with_what_is_wrong():
        experiment = load(file, now=time.time())
        report, done = asyncio.run(_against_itself(experiment, series, method, as_json_))
    if report.verdict == "not_comparable":
        if not as_json_:
            _print(report, as_json=False)
        reasons = "; ".join(reason for one in report.comparisons for reason in one.reasons)
        click.echo(f"brimline: no noise floor, since the halves are not alike: {reasons}", err=True)
        sys.exit(EXITS[report.verdict])
    events = events_of(report)
    floor = noise_floor.NoiseFloor(
        experiment=experiment.name,
        baseline=experiment.baseline.name,
        method=done,
        start=experiment.start,
        end=experiment.end,
        block_seconds=experiment.block_length,
        blocks=report.blocks_used,
        simulated=report.simulated,
        noise_floor_ratio=noise_floor_of(report),
        block_deviation=deviations(report),
        events_per_block={name: one.per_block for name, one in events.items()},
        dispersion={name: one.dispersion for name, one in events.items()},
    )
    if as_json_:
        click.echo(noise_floor.written(floor), nl=False)
    else:
        _print(report, as_json=False)
    if not floor.noise_floor_ratio:
        click.echo("brimline: no noise floor: too few blocks with traffic in both halves", err=True)
        sys.exit(EXIT_NO_ANSWER)
    if o is not None:
        _write(o, "-o", lambda: o.write_text(noise_floor.written(floor), encoding="utf-8"))


async def _against_itself(
    experiment: Experiment, series: Path | None, method: str, as_json: bool
) -> tuple[Report, Any]:
    import dataclasses

    from brimline.ab.estimators import NotEnough
    from brimline.ab.fetch import open_source
    from brimline.ab.procedure import against_itself, judge

    with _progress(series, as_json) as progress:
        async with open_source(experiment, series) as api:
            if method != "days":
                alone = dataclasses.replace(experiment, candidates=())
                seen = await _observe(alone, api, progress)
                try:
                    return judge(*against_itself(experiment, seen)), "replicas"
                except NotEnough as error:
                    if method == "replicas":
                        fail(f"--method replicas: {error}", EXIT_NO_ANSWER)
            return await _days(experiment, api, progress), "days"


async def _days(experiment: Experiment, api: Api, progress: Progress) -> Report:
    """The baseline beside itself a day earlier."""
    import dataclasses

    from brimline.ab.procedure import judge
    from brimline.ab.two_days import earlier, side_by_side

    now = await _observe(dataclasses.replace(experiment, candidates=()), api, progress)
    before = await _observe(earlier(experiment), api, progress)
    return judge(*side_by_side(experiment, now, before))


# --- watch ---


@ab.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--listen", default=LISTEN, show_default=True, metavar="HOST:PORT", help="Where to serve.")
@WEB_CONFIG
@click.option(
    "--noise-floor",
    "noise_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="What equal variants differ by, from `brimline ab aa`.",
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def watch(
    files: tuple[Path, ...],
    listen: str,
    web_config_path: Path | None,
    noise_file: Path | None,
    log_level: str,
) -> None:
    """Judge experiments after each block, and serve the verdicts: /metrics and /api/v1/ab/NAME.

    Its bounds hold however often one looks, from the experiment's start on. SIGTERM ends it; Prometheus that
    does not answer never does.
    """
    _need_libraries()
    from brimline.ab import noise_floor
    from brimline.config import parse_listen

    set_up_logging(log_level)
    try:
        host, port = parse_listen(listen)
    except ValueError as error:
        fail(f"--listen: {error}")
    with _ending_with_what_is_wrong():
        floor = noise_floor.read(noise_file).noise_floor_ratio if noise_file is not None else None
        guard = open_guard_or_fail(web_config_path)
        sys.exit(asyncio.run(_watch(files, host, port, floor, guard)))


async def _watch(
    files: tuple[Path, ...],
    host: str,
    port: int,
    floor: Mapping[str, float] | None,
    guard: PortGuard | None,
) -> int:
    import logging
    import signal

    from brimline.ab.fetch import open_source
    from brimline.ab.kept import MAX_BYTES, Kept
    from brimline.ab.procedure import judge
    from brimline.port import serve_application
    from brimline.watch import Watch, application

    logger = logging.getLogger(__name__)
    kept: dict[str, Kept] = {}

    async def judged(experiment: Experiment) -> Report:
        known = kept.setdefault(experiment.name, Kept(most_bytes=MAX_BYTES // len(files)))
        async with open_source(experiment) as api:
            seen = await known.observe(experiment, api, now=time.monotonic())
        # Seconds of arithmetic: the port goes on answering meanwhile.
        return await asyncio.to_thread(judge, experiment, seen, mode="sequential", noise_floor=floor)

    watching = Watch(files, judged, guard=guard)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def started(bound: int) -> None:
        watching.ready = True
        say_where(host, bound, guard)

    def stopping() -> None:
        watching.ready = False

    rounds = asyncio.ensure_future(watching.run())
    try:
        await serve_application(
            application(watching), host, port, stop, started=started, stopping=stopping, guard=guard
        )
    except OSError as error:
        click.echo(
            f"brimline: cannot listen on {host}:{port} ({error.strerror}); use --listen HOST:PORT", err=True
        )
        return EXIT_NEGATIVE
    finally:
        rounds.cancel()
        await asyncio.gather(rounds, return_exceptions=True)
    logger.info("stopped")
    return 0


# --- what they share ---


def _need_libraries() -> None:
    """End with the command that installs them where numpy and scipy are missing."""
    from importlib import import_module

    from brimline.extras import install_command

    missing = []
    for name in ("numpy", "scipy"):
        try:
            import_module(name)
        except ModuleNotFoundError:
            missing.append(name)
    if missing:
        fail(
            f"comparing needs {' and '.join(missing)}; install the extra in a clone of this repository: "
            f"{install_command('ab')}"
        )


@contextmanager
def _ending_with_what_is_wrong() -> Iterator[None]:
    """End with status 2 for what the user wrote, and 5 for a data source that cannot be read."""
    from brimline.errors import BrimlineError, DataSourceError, SourceError

    try:
        yield
    except (DataSourceError, SourceError) as error:
        # A file with a token that is not there, or holds none, is named in the experiment file.
        fail(str(error), EXIT_USAGE if error.reason == "credentials" else EXIT_DATA_SOURCE)
    except BrimlineError as error:
        fail(str(error))


async def _observe(experiment: Experiment, api: Api, progress: Progress | None = None) -> Observations:
    from brimline.ab.fetch import observe

    observing: Coroutine[Any, Any, Observations] = (
        observe(experiment, api) if progress is None else observe(experiment, api, progress=progress)
    )
    return await observing


@contextmanager
def _progress(series: Path | None, as_json: bool) -> Iterator[Progress]:
    """A bar on standard error where somebody watches; none where JSON goes to another program."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    # Rich takes some variables of CI for a terminal; a bar belongs on a real one.
    watched = console.is_terminal and sys.stderr.isatty() and (sys.stdout.isatty() or not as_json)
    # How much there is to ask for is known after the first answer.
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"))
    with Progress(*columns, console=console, transient=True, disable=not watched) as bar:
        task = bar.add_task(
            "asking Prometheus" if series is None else "reading what was saved", total=None, count=""
        )

        def told(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what, count=f"{done}/{total}")

        yield told


def _print(report: Report, *, as_json: bool) -> None:
    import json

    from brimline import compared

    if as_json:
        click.echo(json.dumps(compared.as_json(report), indent=2, allow_nan=False))
        return
    compared.print_report(report, _console())


def _console() -> Console:
    """Standard output; of a file or a pipe wide enough for the tables."""
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)
    return console


def _write(path: Path, option: str, write: Callable[[], Any]) -> None:
    try:
        write()
    except OSError as error:
        fail(f"{option} {path}: cannot be written ({error.strerror})")
