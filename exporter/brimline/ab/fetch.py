"""Fetch what a comparison needs to know of its servers, from Prometheus or from a file of saved series.

Raw samples, because what a range query evaluates fills gaps with what stood before them and hides restarts.
Nothing is made up: what the series do not say is missing from the observations, with a line that says so.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from brimline.ab.boots import FAMILIES
from brimline.ab.experiment import Experiment, Metric, Variant
from brimline.ab.members import ALWAYS, COUNTERS_OF_LIVES, OF_LIVES, Span, labelled, restarts, times_of
from brimline.ab.observations import ArmObservations, Observations, wanted
from brimline.ab.replicas import Tables, named, read_the_same, replica_of, without_second_exporters
from brimline.ab.rows import PREFIX, Key, Table, label, quantity_of, within
from brimline.ab.saved_series import load
from brimline.ab.series import Floats, Series, largest, scrape_interval
from brimline.errors import ConfigError, DataSourceError
from brimline.prometheus_api import (
    MAX_CHUNK_SECONDS,
    MAX_POINTS,
    Connection,
    Rows,
    duration,
    merged,
    one_of,
    open_api,
    shortened,
    stretches,
)

T = TypeVar("T")

# Before the window, so that what counters grew by in its first scrape is known.
LEAD_SECONDS = 300.0
# Earlier boots of the same configuration, for the guard on cold boots.
HISTORY_SECONDS = 7 * 86400.0
HISTORY_POINTS = 500
WINDOW_POINTS = 720
# Of scrape intervals: how far before an edge, or before the end, the last reading may lie.
REACH_INTERVALS = 2.5
# So many samples show how far apart they are.
ENOUGH_SCRAPES = 10
# Of one answer, some 30 bytes each; by a guess at how many ranks, models and reasons a family has.
SAMPLES_AT_ONCE = 2_000_000
PARTS_GUESSED = 16
# A block with fewer says nothing of what was between them.
LEAST_SCRAPES = 4
# Where the samples do not say how far they are apart, because there are none.
USUAL_INTERVAL = 15.0

_BY_BOOT = ("target_config_fingerprint_info", "target_start_time_seconds")
_LAST_OF_TARGETS = ("model_info", "target_setting_info", "target_settings_complete")
_LAST_OF_EXPORTERS = ("gpu_info", "gpu_memory_total_bytes", "gpu_power_limit_watts", "target_gpu_info")

# done, total, what
Progress = Callable[[int, int, str], None]


class Api(Protocol):
    """Where series come from: PrometheusApi or SavedSeries. evaluates: whether it knows all of PromQL."""

    @property
    def evaluates(self) -> bool: ...

    async def raw_samples(
        self,
        selector: str,
        start: float,
        end: float,
        *,
        chunk: float = MAX_CHUNK_SECONDS,
        after_each: Callable[[], None] = lambda: None,
    ) -> Rows: ...

    async def query_range(self, query: str, start: float, end: float, step: float) -> Rows: ...


def families(experiment: Experiment) -> frozenset[str]:
    """Names of all families that are asked for, without the prefix."""
    asked = wanted(experiment)
    return frozenset(
        {
            *asked.counters,
            *asked.gauges,
            *(f"{name}_bucket" for name in asked.histograms),
            *FAMILIES,
            *_LAST_OF_TARGETS,
            *_LAST_OF_EXPORTERS,
            "gpu_memory_used_peak_bytes",
            "gpu_process_memory_bytes",
            "memory_bytes",
            "target_info",
            "target_up",
        }
    )


@asynccontextmanager
async def open_source(experiment: Experiment, saved: Path | None = None) -> AsyncIterator[Api]:
    """The experiment's Prometheus, or the file or folder of saved series instead of it.

    Raises ConfigError and DataSourceError.
    """
    if saved is not None:
        yield load(saved, families(experiment))
        return
    about = experiment.prometheus
    connection = Connection(
        url=about.url,
        bearer_token_file=about.bearer_token_file,
        basic_auth=about.basic_auth,
        headers=about.headers,
        tls=about.tls,
    )
    async with open_api(connection) as api:
        yield api


async def observe(
    experiment: Experiment,
    api: Api,
    *,
    progress: Progress = lambda _done, _total, _what: None,
    history_seconds: float = HISTORY_SECONDS,
) -> Observations:
    """What the series say of the experiment's servers over its window.

    Raises DataSourceError where they cannot be had, ConfigError where a query of the user's own gives more
    than one value for an arm.
    """
    ask = _Questions(api, progress)
    arms = (experiment.baseline, *experiment.candidates)
    start, end = experiment.start - LEAD_SECONDS, experiment.end

    ask.expect(sum(len(stretches(start, end, MAX_CHUNK_SECONDS)) for _ in arms))
    answers = await _together(_servers(experiment, arm, start, end, ask) for arm in arms)
    infos = {arm.name: Table(rows.rows) for arm, rows in zip(arms, answers, strict=True)}
    members, shared = await _members(experiment, arms, infos, ask)
    scraped = [
        series.times
        for arm, keys in members.items()
        for key in keys
        for series in infos[arm].parts("target_info", key).values()
    ]
    interval = scrape_interval(scraped)
    # Not every exporter is scraped as often as the others: the longest of those that show theirs.
    slowest = max((scrape_interval([one]) for one in scraped if len(one) >= ENOUGH_SCRAPES), default=interval)
    if experiment.block_length < LEAST_SCRAPES * slowest:
        raise ConfigError(
            f"block_length: {experiment.block_length:g} s hold fewer than {LEAST_SCRAPES} scrapes, which are "
            f"{slowest:.3g} s apart; write 15m, or at least {duration(math.ceil(LEAST_SCRAPES * slowest))}"
        )
    info = Table(row for rows in answers for row in rows.rows)
    tables, own_metrics = await _both(
        _tables(experiment, ask, info, members, interval, slowest, history_seconds),
        _together(_own_metrics(experiment, arm, ask) for arm in arms),
    )

    for one, other in combinations(arms, 2):
        for key in members[one.name]:
            for second in members[other.name]:
                if key != second and read_the_same(key, second, tables):
                    first = f"{key.target} is in {one.name} as {key.instance} reads it"
                    said = f"{first}, and in {other.name} as {second.instance} does"
                    shared.append((frozenset({one.name, other.name}), said))
    observed = {}
    for arm, metrics in zip(arms, own_metrics, strict=True):
        replicas = {}
        for key, spans in members[arm.name].items():
            replicas[key], gaps = replica_of(
                arm.name,
                key,
                tables,
                wanted(experiment),
                start=experiment.start,
                end=experiment.end,
                spans=spans,
            )
            ask.note(*gaps)
        replicas, notes = without_second_exporters(replicas, tables)
        ask.note(*notes)
        observed[arm.name] = ArmObservations(variant=arm.name, replicas=named(replicas), own_metrics=metrics)
        _note_missing(experiment, observed[arm.name], ask)
    ask.finish()
    return Observations(
        arms=observed,
        scrape_interval=interval if np.isfinite(interval) else None,
        queries=tuple(ask.queries),
        gaps=tuple(ask.gaps),
        warnings=tuple(ask.warnings),
        shared=tuple(shared),
        simulated=any(
            label(part, "simulated") == "true"
            for keys in members.values()
            for key in keys
            for part in info.parts("target_info", key)
        ),
    )


class _Questions:
    """Asks, and keeps what was asked, what was missing and how far it is."""

    def __init__(self, api: Api, progress: Progress) -> None:
        self.api = api
        self.queries: dict[str, None] = {}
        self.gaps: dict[str, None] = {}
        self.warnings: dict[str, None] = {}
        self._progress = progress
        self._done = self._total = 0

    def note(self, *gaps: str) -> None:
        self.gaps.update(dict.fromkeys(gaps))

    def expect(self, steps: int) -> None:
        self._total += steps

    def step(self, what: str) -> None:
        self._done += 1
        self._progress(min(self._done, self._total), self._total, what)

    def finish(self) -> None:
        self._progress(self._total, self._total, "all read")

    def _taken(self, rows: Rows) -> Rows:
        self.note(*(f"the data source warns: {warning}" for warning in rows.warnings))
        self.warnings.update(dict.fromkeys(rows.warnings))
        return rows

    async def raw(
        self, selector: str, start: float, end: float, what: str, chunk: float = MAX_CHUNK_SECONDS
    ) -> Rows:
        """The samples as scraped; one step for each chunk."""
        self.queries[f"{shortened(selector, 400)}[raw samples]"] = None
        return self._taken(
            await self.api.raw_samples(selector, start, end, chunk=chunk, after_each=lambda: self.step(what))
        )

    async def now_and_then(self, selector: str, start: float, end: float, step: float) -> Rows:
        """What stood there at steps from the start on; one step."""
        step = round(step, 3)
        self.queries[f"{shortened(selector, 400)} every {duration(step)}"] = None
        rows = self._taken(await self.api.query_range(selector, start, end, step))
        self.step("sizes of each boot")
        return rows

    async def evaluated(self, query: str, start: float, end: float, step: float) -> Rows:
        """An expression of the user's own; one step."""
        self.queries[f"{shortened(query, 400)} every {duration(step)}"] = None
        rows = self._taken(await self.api.query_range(query, start, end, step))
        self.step("your own metrics")
        return rows


# --- who takes part ---


async def _servers(experiment: Experiment, arm: Variant, start: float, end: float, ask: _Questions) -> Rows:
    """brimline_target_info of an arm. Raises ConfigError for a selector that is none."""
    try:
        return await ask.raw(
            f"{PREFIX}target_info{{{experiment.selector(arm)}}}", start, end, "finding the servers"
        )
    except DataSourceError as error:
        if error.reason == "query" and arm.selector is not None:
            raise ConfigError(f"the selector of {arm.name}: {error}") from None
        raise


# For each arm its servers, and when they belong to it.
_Members = dict[str, dict[Key, tuple[Span, ...]]]


async def _members(
    experiment: Experiment, arms: Sequence[Variant], infos: Mapping[str, Table], ask: _Questions
) -> tuple[_Members, list[tuple[frozenset[str], str]]]:
    """The servers of each arm, and those that two of them have at one time.

    Whose label changes with a restart is of one arm before it and of another one after it. Who changes arms
    while it runs stays in the first: labels move when a rollout ends.
    """
    belongs: dict[Key, dict[str, Floats]] = {}
    for arm in arms:
        keys = infos[arm.name].keys("target_info")
        for key in keys:
            times = largest(list(infos[arm.name].parts("target_info", key).values())).times
            belongs.setdefault(key, {})[arm.name] = times
        if not keys:
            ask.note(
                f"{arm.name}: no brimline_target_info{{{experiment.selector(arm)}}} within the window; "
                "check the selector, and experiment and variant in the exporter's configuration"
            )
    members: _Members = {arm.name: {} for arm in arms}
    shared = []
    relabelled = []
    for key, times_of_arms in sorted(belongs.items()):
        at_once = [
            pair
            for pair in combinations(times_of_arms, 2)
            if len(np.intersect1d(times_of_arms[pair[0]], times_of_arms[pair[1]]))
        ]
        shared += [
            (frozenset(pair), f"{key.target} ({key.instance}) is in {pair[0]} and in {pair[1]}")
            for pair in at_once
        ]
        if at_once:
            for name in dict.fromkeys(name for pair in at_once for name in pair):
                members[name][key] = ALWAYS
        elif len(times_of_arms) == 1:
            members[next(iter(times_of_arms))][key] = ALWAYS
        else:
            relabelled.append(key)
    if relabelled:
        lives = await _lives(experiment, relabelled, ask)
        for key in relabelled:
            _place(key, belongs[key], lives, members, ask)
    return members, shared


async def _lives(experiment: Experiment, keys: Sequence[Key], ask: _Questions) -> Table:
    """What tells when those servers were started anew."""
    where = (
        f"job=~{one_of([k.job for k in keys])},instance=~{one_of([k.instance for k in keys])},"
        f"target=~{one_of([k.target for k in keys])}"
    )
    start, end = experiment.start - LEAD_SECONDS, experiment.end
    names = (*OF_LIVES, *COUNTERS_OF_LIVES)
    ask.expect(len(names) * len(stretches(start, end, MAX_CHUNK_SECONDS)))
    answers = await _together(
        ask.raw(f"{PREFIX}{name}{{{where}}}", start, end, "finding the servers") for name in names
    )
    return Table(row for rows in answers for row in rows.rows)


def _place(
    key: Key, times_of_arms: Mapping[str, Floats], lives: Table, members: _Members, ask: _Questions
) -> None:
    runs = labelled(times_of_arms)
    spans = times_of(runs, restarts(lives, key))
    for name, each in spans.items():
        members[name][key] = tuple(each) if len(spans) > 1 else ALWAYS
    if len(spans) > 1:
        turns = sorted((first, name) for name, each in spans.items() for first, _ in each)
        told = ", then ".join(name for _, name in turns)
        ask.note(f"{key.target} ({key.instance}) was {told}, started anew for each")
    for name in times_of_arms:
        if name not in spans:
            ask.note(
                f"{key.target} ({key.instance}) is labelled {runs[0][2]} and {name} within the window, and "
                f"was not started anew near the change; it is counted for {runs[0][2]}, where it was first"
            )


def _note_missing(experiment: Experiment, arm: ArmObservations, ask: _Questions) -> None:
    """Say which quantities no server of the arm has, and who appeared or left."""
    if not arm.replicas:
        return
    asked = wanted(experiment)
    for names, had in (
        (asked.counters, {name for replica in arm.replicas for name in replica.series.counters}),
        (asked.gauges, {name for replica in arm.replicas for name in replica.series.gauges}),
    ):
        for name in sorted(names - had):
            ask.note(f"{arm.variant}: {PREFIX}{name} has no samples in the window")
    for name in sorted(asked.histograms - {one for each in arm.replicas for one in each.series.buckets}):
        ask.note(
            f"{arm.variant}: {PREFIX}{name}_bucket has no samples in the window; "
            "with `histograms: full` for its targets the exporter gives them"
        )
    for replica in arm.replicas:
        times = replica.up.times[replica.up.times > experiment.start]
        if not len(times):
            ask.note(f"{replica.name}: brimline_target_up has no samples in the window")
            continue
        if times[0] - experiment.start > experiment.block_length:
            ask.note(f"{replica.name}: not there during the first {times[0] - experiment.start:.0f} s")
        if experiment.end - times[-1] > experiment.block_length:
            ask.note(f"{replica.name}: not there during the last {experiment.end - times[-1]:.0f} s")


# --- what is asked ---


async def _tables(
    experiment: Experiment,
    ask: _Questions,
    info: Table,
    members: _Members,
    interval: float,
    slowest: float,
    history_seconds: float,
) -> Tables:
    # Of jitter free, so that one look asks for the same as the one before.
    interval, slowest = (
        max(round(one, 1), 0.1) if np.isfinite(one) else USUAL_INTERVAL for one in (interval, slowest)
    )
    reach = REACH_INTERVALS * max(interval, slowest)
    keys = list(dict.fromkeys(key for names in members.values() for key in names))
    if not keys:
        return Tables(info=info, raw=Table(), slow=Table(), last={}, buckets={}, reach=reach)
    start, end = experiment.start - LEAD_SECONDS, experiment.end
    asked = wanted(experiment)
    exporters = f"job=~{one_of([k.job for k in keys])},instance=~{one_of([k.instance for k in keys])}"
    servers = f"{exporters},target=~{one_of([k.target for k in keys])}"
    chunk = interval * min(MAX_POINTS, max(SAMPLES_AT_ONCE / (len(keys) * PARTS_GUESSED), 100))
    chunk = min(chunk, MAX_CHUNK_SECONDS)

    plain = ("target_up", *_BY_BOOT, *sorted(asked.counters | asked.gauges))
    selectors = [f"{PREFIX}{name}{{{servers}}}" for name in plain]
    selectors += [
        f"{PREFIX}gpu_memory_used_peak_bytes{{{exporters}}}",
        f'{PREFIX}memory_bytes{{{exporters},component="other_processes"}}',
        f'{PREFIX}gpu_process_memory_bytes{{{exporters},owner="other"}}',
    ]
    chunks = len(stretches(start, end, chunk))
    ask.expect(len(selectors) * chunks)

    edges = experiment.block_edges
    histograms = sorted(asked.histograms)
    # Whole histograms are the most of all samples, and only what stands at the edges of blocks is looked at.
    at_edges = experiment.block_length > 4 * reach
    ask.expect(len(histograms) * (len(edges) if at_edges else chunks))

    async def buckets(name: str) -> list[tuple[float, Table]]:
        selector = f"{PREFIX}{name}_bucket{{{servers}}}"
        if not at_edges:
            whole = Table((await ask.raw(selector, start, end, "histograms", chunk)).rows)
            return [(edge, whole) for edge in edges]
        found = await _together(ask.raw(selector, edge - reach, edge, "histograms") for edge in edges)
        return [(edge, Table(rows.rows)) for edge, rows in zip(edges, found, strict=True)]

    async def slow() -> list[Rows]:
        settled = "|".join(PREFIX + name for name in FAMILIES if name not in _BY_BOOT)
        spans = [(settled, experiment.start, end, _step(end - experiment.start, interval))]
        if history_seconds > 0:
            every = "|".join(PREFIX + name for name in FAMILIES)
            step = max(interval, history_seconds / HISTORY_POINTS)
            # Up to where the raw samples begin.
            before = start - int(history_seconds / step) * step
            spans.insert(0, (every, before, start, step))
        ask.expect(len(spans))
        return await _together(
            ask.now_and_then(f'{{__name__=~"{names}",{servers}}}', first, last, step)
            for names, first, last, step in spans
        )

    (raw, bucket_tables), (slow_rows, last) = await _both(
        _both(
            _together(ask.raw(selector, start, end, "samples", chunk) for selector in selectors),
            _together(buckets(name) for name in histograms),
        ),
        _both(slow(), _last_states(ask, info, members, end, reach, servers, exporters)),
    )
    rows = [row for answer in raw for row in answer.rows]
    by_boot = Rows([row for row in rows if quantity_of(row.labels) in _BY_BOOT])
    return Tables(
        info=info,
        raw=Table(rows),
        slow=Table(merged([slow_rows[0], by_boot, *slow_rows[1:]]).rows),
        last=last,
        buckets=dict(zip(histograms, bucket_tables, strict=True)),
        reach=reach,
    )


def _step(seconds: float, interval: float) -> float:
    """Between looks at a window from its start on: doubled as it grows, so that old looks stay the same."""
    return interval * 2.0 ** max(math.ceil(math.log2(max(seconds, 1.0) / (WINDOW_POINTS * interval))), 0)


async def _last_states(
    ask: _Questions,
    info: Table,
    members: _Members,
    end: float,
    reach: float,
    servers: str,
    exporters: str,
) -> dict[tuple[str, Key], Table]:
    """What stood on each server's series when its arm last had it: mostly at the window's end."""
    seen = {}
    for arm, keys in members.items():
        for key, spans in keys.items():
            ends = [within(series, spans).times[-1:] for series in info.parts("target_info", key).values()]
            last = float(np.max(np.concatenate(ends), initial=-np.inf))
            if np.isfinite(last):
                seen[arm, key] = end if end - last < reach / 2 else last
    selectors = [
        f'{{__name__=~"{"|".join(PREFIX + name for name in names)}",{where}}}'
        for names, where in ((_LAST_OF_TARGETS, servers), (_LAST_OF_EXPORTERS, exporters))
    ]
    times = sorted(set(seen.values()))
    ask.expect(len(times) * len(selectors))

    async def at(time: float) -> Table:
        found = await _together(ask.raw(selector, time - reach, time, "settings") for selector in selectors)
        return Table(row for rows in found for row in rows.rows)

    tables = dict(zip(times, await _together(at(time) for time in times), strict=True))
    return {which: tables[time] for which, time in seen.items()}


# --- metrics of the user's own ---


async def _own_metrics(experiment: Experiment, arm: Variant, ask: _Questions) -> dict[str, Series]:
    metrics = [metric for metric in experiment.metrics if metric.query is not None]
    edges = experiment.block_edges
    if not metrics or len(edges) < 2:
        return {}
    if not ask.api.evaluates:
        ask.note(*(f"{metric.name}: saved series answer no PromQL; ask Prometheus" for metric in metrics))
        return {}
    ask.expect(len(metrics))
    series = await _together(_own_metric(experiment, arm, metric, ask) for metric in metrics)
    return {metric.name: each for metric, each in zip(metrics, series, strict=True)}


async def _own_metric(experiment: Experiment, arm: Variant, metric: Metric, ask: _Questions) -> Series:
    words = {
        "selector": experiment.selector(arm),
        "variant": arm.name,
        "block": duration(experiment.block_length),
    }
    query = re.sub(r"\$(selector|variant|block)\b", lambda word: words[word[1]], metric.query or "")
    ends = np.array(experiment.block_edges[1:])
    try:
        rows = (await ask.evaluated(query, ends[0], ends[-1], experiment.block_length)).rows
    except DataSourceError as error:
        if error.reason == "query":
            raise ConfigError(f"metric {metric.name!r}: {error}") from None
        raise DataSourceError(error.reason, f"metric {metric.name!r}: {error}") from None
    if len(rows) > 1:
        raise ConfigError(
            f"metric {metric.name!r}: its query gives {len(rows)} series for {arm.name}; "
            "make it one, as by sum(…) or avg(…)"
        )
    values = np.full(len(ends), np.nan)
    for row in rows:
        places = np.rint((np.frombuffer(row.times) - ends[0]) / experiment.block_length).astype(int)
        values[places] = np.frombuffer(row.values)
    values[~np.isfinite(values)] = np.nan
    if np.isnan(values).any():
        ask.note(f"{arm.name}: {metric.name} has no answer for {int(np.isnan(values).sum())} blocks")
    return Series(ends, values)


# --- side by side ---


async def _together(questions: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All answers in order; the first error ends the other questions."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(question) for question in questions]
    except BaseExceptionGroup as errors:
        raise _first(errors) from None
    return [task.result() for task in tasks]


U = TypeVar("U")


async def _both(one: Coroutine[Any, Any, T], other: Coroutine[Any, Any, U]) -> tuple[T, U]:
    """As _together, of two kinds."""
    try:
        async with asyncio.TaskGroup() as group:
            first, second = group.create_task(one), group.create_task(other)
    except BaseExceptionGroup as errors:
        raise _first(errors) from None
    return first.result(), second.result()


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
