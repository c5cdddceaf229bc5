"""`brimline ab watch`: experiments judged anew after each block, on a port of its own.

Prometheus scrapes the verdicts, and whoever rolls out asks for one by its name. A data source that fails ends
nothing: the last verdict stays, with its age and what is wrong.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from brimline import verdicts
from brimline.ab.experiment import Experiment, load
from brimline.ab.result import Comparison, Report
from brimline.compared import as_json
from brimline.compared.document import SCHEMA_VERSION
from brimline.errors import BrimlineError, ConfigError
from brimline.exposition import encoder_of

if TYPE_CHECKING:
    from brimline.guard import PortGuard

logger = logging.getLogger(__name__)

DEFAULT_LISTEN = "127.0.0.1:10779"
MAX_EXPERIMENTS = 64
# So many experiments are fetched and judged at once.
MAX_AT_ONCE = 2
MAX_JUDGING_SECONDS = 900.0
# After a block's end, so that its last scrape is stored.
GRACE_SECONDS = 20.0
# Between two judgements, whatever the blocks.
LEAST_PAUSE, MOST_PAUSE = 5.0, 3600.0
FIRST_RETRY, LAST_RETRY = 10.0, 300.0

NOT_YET = "not judged yet"
_FIGURES = re.compile(r"\d+")

# From an experiment to its report. Raises BrimlineError.
Judge = Callable[[Experiment], Awaitable[Report]]


@dataclass(slots=True)
class Watched:
    """One experiment and what is known of it now.

    problem: what is wrong since the last attempt; None while all is well. is_up: whether that succeeded, if
    perhaps on a partial answer.
    changed: for each candidate whose verdict became another one, when.
    """

    path: Path
    name: str
    report: Report | None = None
    judged_at: float | None = None
    problem: str | None = NOT_YET
    is_up: bool | None = None
    errors: int = 0
    changed: dict[str, float] = field(default_factory=dict)

    def take(self, report: Report, now: float) -> None:
        """Let a new report hold."""
        before = {one.candidate: one.verdict for one in self.report.comparisons} if self.report else {}
        for one in report.comparisons:
            known = before.get(one.candidate)
            if known is not None and known != one.verdict:
                self.changed[one.candidate] = now
            if known != one.verdict:
                logger.info(
                    "experiment=%r candidate=%r verdict=%s blocks=%d",
                    self.name,
                    one.candidate,
                    one.verdict,
                    one.blocks_used,
                )
        problem = None
        if report.warnings:
            problem = f"the answer may be partial: {'; '.join(report.warnings)}"
        if problem is not None and not _is_same(problem, self.problem):
            logger.warning("experiment=%r state=partial detail=%r", self.name, problem)
        elif problem is None and self.is_up is not None and self.problem is not None:
            logger.info("experiment=%r state=up", self.name)
        self.report, self.judged_at, self.problem, self.is_up = report, now, problem, True

    def fail(self, problem: str, defect: Exception | None = None) -> None:
        """Note that an attempt failed; the last report stays. One line for each state, whatever it lasts."""
        if self.is_up is not False or not _is_same(problem, self.problem):
            logger.warning("experiment=%r state=down detail=%r", self.name, problem, exc_info=defect)
        self.problem, self.is_up = problem, False
        self.errors += 1


def _is_same(problem: str, known: str | None) -> bool:
    """True for one problem told twice: times and durations in it are others with each attempt."""
    return known is not None and _FIGURES.sub("", problem) == _FIGURES.sub("", known)


def document(watched: Watched, now: float) -> dict[str, Any]:
    """What is answered about an experiment: always with a verdict, its age, and what is wrong."""
    answer: dict[str, Any] = (
        as_json(watched.report)
        if watched.report is not None
        else {
            "schema_version": SCHEMA_VERSION,
            "experiment": watched.name,
            "verdict": "inconclusive",
            "is_gate": False,
            "no_gate": NOT_YET,
            "comparisons": [],
        }
    )
    age = None if watched.judged_at is None else max(now - watched.judged_at, 0.0)
    return {**answer, "judged_at": watched.judged_at, "age_seconds": age, "problem": watched.problem}


# --- judging again and again ---


class Watch:
    """Judges experiments after each of their blocks. judge: how. clock, sleep: of tests."""

    def __init__(
        self,
        paths: Sequence[Path],
        judge: Judge,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        guard: PortGuard | None = None,
    ) -> None:
        """Raises ConfigError where a file is wrong, or two name one experiment."""
        if len(paths) > MAX_EXPERIMENTS:
            raise ConfigError(
                f"{len(paths)} experiments; at most {MAX_EXPERIMENTS} are watched by one process"
            )
        self.experiments: dict[str, Watched] = {}
        for path in paths:
            name = _load(path, clock()).name
            if name in self.experiments:
                raise ConfigError(
                    f"{path}: the experiment {name!r} is in {self.experiments[name].path}, too; rename one"
                )
            self.experiments[name] = Watched(path, name)
        self.clock = clock
        self.guard = guard
        self.ready = False
        self._judge = judge
        self._sleep = sleep
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)

    async def run(self) -> None:
        """Judge until cancelled; nothing else ends it."""
        async with asyncio.TaskGroup() as group:
            for watched in self.experiments.values():
                group.create_task(self._keep_judging(watched))

    async def _keep_judging(self, watched: Watched) -> None:
        failures = 0
        while True:
            experiment = await self._attempt(watched)
            failures = 0 if watched.is_up else failures + 1
            if experiment is None or failures:
                pause = min(FIRST_RETRY * 2 ** min(failures - 1, 10), LAST_RETRY)
            else:
                pause = pause_after(experiment, self.clock())
            await self._sleep(pause)

    async def _attempt(self, watched: Watched) -> Experiment | None:
        """Judge once. The experiment as its file is now; None where that is wrong."""
        experiment = None
        try:
            # Read again, so that a margin may be changed, and because `now` in it is now.
            experiment = _load(watched.path, self.clock())
            if experiment.name != watched.name:
                raise ConfigError(
                    f"{watched.path}: the experiment is now {experiment.name!r}; start the watch anew"
                )
            async with self._slots, asyncio.timeout(MAX_JUDGING_SECONDS):
                report = await self._judge(experiment)
        except BrimlineError as error:
            watched.fail(str(error))
        except TimeoutError:
            watched.fail(f"not judged within {MAX_JUDGING_SECONDS:g} s; is Prometheus overloaded?")
        except Exception as error:  # noqa: BLE001 - a defect in one must end neither the watch nor the others
            watched.fail(f"a defect of Brimline: {type(error).__name__}; see the log", error)
        else:
            watched.take(report, self.clock())
        return experiment


def _load(path: Path, now: float) -> Experiment:
    """The experiment. Raises ConfigError, also for a window on which looking again and again cannot stand."""
    experiment = load(path, now=now)
    if experiment.is_sliding:
        start = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        raise ConfigError(
            f"{path}: the window slides, and the bounds of a watch hold from one start on; "
            f"write its start, such as `window: {{start: {start}}}`"
        )
    return experiment


def pause_after(experiment: Experiment, now: float) -> float:
    """Seconds until the block that runs now has ended and its last scrape is stored."""
    length = experiment.block_length
    grace = min(GRACE_SECONDS, length / 4)
    since = now - experiment.start - grace
    following = (math.floor(since / length) + 1) * length
    return min(max(following - since, LEAST_PAUSE), MOST_PAUSE)


# --- what Prometheus sees ---

_Row = tuple[tuple[str, ...], float]


def _rows(watched: Watched) -> Iterator[tuple[str, _Row]]:
    """Rows of all families, each with the family's name."""
    name = watched.name
    yield verdicts.ERRORS, ((name,), watched.errors)
    if watched.is_up is not None:
        yield verdicts.UP, ((name,), float(watched.is_up))
    if watched.judged_at is not None:
        yield verdicts.JUDGED, ((name,), watched.judged_at)
    if watched.report is None:
        return
    yield verdicts.STARTED, ((name,), watched.report.start)
    yield verdicts.GATE, ((name,), float(watched.report.is_gate))
    for comparison in watched.report.comparisons:
        changed = watched.changed.get(comparison.candidate)
        if changed is not None:
            yield verdicts.CHANGED, ((name, comparison.candidate, comparison.verdict), changed)
        yield from _of_comparison(name, comparison)


def _of_comparison(name: str, comparison: Comparison) -> Iterator[tuple[str, _Row]]:
    def labels(metric: str, *more: str) -> tuple[str, ...]:
        return (name, comparison.candidate, metric, *more)

    verdict_of = {verdicts.OVERALL: comparison.verdict}
    yield verdicts.BLOCKS, (labels(verdicts.OVERALL), comparison.blocks_used)
    if comparison.hours_needed is not None:
        yield verdicts.REQUIRED, (labels(verdicts.OVERALL), comparison.hours_needed * 3600)
    for metric in comparison.metrics:
        own = labels(metric.name)
        verdict_of.setdefault(metric.name, metric.verdict)
        yield verdicts.BLOCKS, (own, len(metric.blocks) or comparison.blocks_used)
        for family, value in (
            (verdicts.DELTA, metric.delta_ratio),
            (verdicts.DELTA_LOWER, metric.lower_ratio),
            (verdicts.DELTA_UPPER, metric.upper_ratio),
            (verdicts.REQUIRED, None if metric.hours_needed is None else metric.hours_needed * 3600),
        ):
            if value is not None:
                yield family, (own, value)
    for static in comparison.static:
        verdict_of.setdefault(static.name, static.verdict)
        if static.observed_delta_ratio is not None:
            yield verdicts.DELTA, (labels(static.name), static.observed_delta_ratio)
    for metric_name, verdict in verdict_of.items():
        for word in verdicts.WORDS:
            yield verdicts.VERDICT, (labels(metric_name, word), float(word == verdict))


class _Page(Collector):
    """The families of all experiments."""

    def __init__(self, watched: Iterable[Watched], guard: PortGuard | None) -> None:
        self._watched = watched
        self._guard = guard

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        rows: dict[str, dict[tuple[str, ...], float]] = {one.name: {} for one in verdicts.EXPOSED}
        for watched in self._watched:
            for family, (labels, value) in _rows(watched):
                if math.isfinite(value):
                    rows[family].setdefault(labels, value)
        if self._guard is not None:
            rows[verdicts.RELOADED][()] = float(self._guard.problem is None)
        for one in verdicts.EXPOSED:
            if rows[one.name]:
                metric = Metric(one.name.removesuffix("_total"), one.help, one.kind)
                for labels, value in rows[one.name].items():
                    metric.add_sample(one.name, dict(zip(one.labels, labels, strict=True)), value)
                yield metric


def render(
    watched: Iterable[Watched], accept: str = "", *, guard: PortGuard | None = None
) -> tuple[bytes, str]:
    """The page, and its content type by the Accept header."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Page(watched, guard))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    encoder, content_type = encoder_of(accept)
    return encoder(registry), content_type


# --- the port ---

_GOOD, _BAD = frozenset({"better", "pass"}), frozenset({"worse", "not_comparable"})


def _hook(watch: Watch, request: web.Request, wanted: frozenset[str]) -> web.Response:
    """200 where the verdict is one of those, young enough, and for a gate; else 403.

    For hooks that know yes and no: what is for looking only confirms nothing and takes nothing back.
    """
    watched = watch.experiments.get(request.match_info["name"])
    if watched is None:
        return web.Response(status=404, text="There is no experiment of that name.\n")
    try:
        longest = float(request.query.get("max_age", "inf"))
    except ValueError:
        return web.Response(status=400, text="max_age is no number of seconds.\n")
    answer = document(watched, watch.clock())
    verdict, age = answer["verdict"], answer["age_seconds"]
    if age is None:
        return web.Response(status=403, text=f"{verdict}: {watched.problem}\n")
    said = f"{verdict}, {age:.0f} s ago"
    if not age <= longest:
        return web.Response(status=403, text=f"{said}: too old ({watched.problem or 'not judged since'})\n")
    if answer["no_gate"] is not None:
        return web.Response(status=403, text=f"{said}, but {answer['no_gate']}\n")
    if wanted is _GOOD and watched.problem is not None and watched.is_up:
        # Half the servers may be missing from it: nothing is promoted by that.
        return web.Response(status=403, text=f"{said}: {watched.problem}\n")
    reasons = "; ".join(reason for one in answer["comparisons"] for reason in one["reasons"])
    status = 200 if verdict in wanted else 403
    return web.Response(status=status, text=f"{said}: {reasons}\n")


def application(watch: Watch) -> web.Application:
    """The routes."""

    async def metrics(request: web.Request) -> web.Response:
        accept = request.headers.get("Accept", "")
        body, content_type = render(watch.experiments.values(), accept, guard=watch.guard)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def experiment(request: web.Request) -> web.Response:
        watched = watch.experiments.get(request.match_info["name"])
        if watched is None:
            known = sorted(watch.experiments)
            return _json({"error": "there is no experiment of that name", "known": known}, status=404)
        return _json(document(watched, watch.clock()))

    async def confirm(request: web.Request) -> web.Response:
        return _hook(watch, request, _GOOD)

    async def rollback(request: web.Request) -> web.Response:
        return _hook(watch, request, _BAD)

    async def experiments(_request: web.Request) -> web.Response:
        return _json(
            {
                "schema_version": SCHEMA_VERSION,
                "experiments": [
                    {
                        "experiment": one.name,
                        "verdict": one.report.verdict if one.report else "inconclusive",
                        "judged_at": one.judged_at,
                        "problem": one.problem,
                    }
                    for one in watch.experiments.values()
                ],
            }
        )

    async def healthy(_request: web.Request) -> web.Response:
        return web.Response(text="Brimline is healthy.\n")

    async def ready(_request: web.Request) -> web.Response:
        if not watch.ready:
            return web.Response(status=503, text="Brimline is starting.\n")
        return web.Response(text="Brimline is ready.\n")

    made = web.Application(client_max_size=1 << 10)
    made.router.add_get("/metrics", metrics)
    made.router.add_get("/api/v1/ab", experiments)
    made.router.add_get("/api/v1/ab/{name:.+}", experiment)
    for method in ("GET", "POST"):
        made.router.add_route(method, "/api/v1/confirm/{name:.+}", confirm)
        made.router.add_route(method, "/api/v1/rollback/{name:.+}", rollback)
    made.router.add_get("/-/healthy", healthy)
    made.router.add_get("/-/ready", ready)
    return made


def _json(answer: dict[str, Any], status: int = 200) -> web.Response:
    return web.json_response(answer, status=status, dumps=lambda value: json.dumps(value, allow_nan=False))
