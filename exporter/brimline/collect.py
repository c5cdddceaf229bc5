"""One scrape is one concurrent round over all targets, shared by all scrapers in flight, with a deadline.

A target that fails in a round has no reading in that round: nothing older than the round, or than the
target's own min_interval, is ever handed on.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from brimline.assignment import assign_gpus, wants_pids
from brimline.config import Config, PidSource, Target, is_secret_setting
from brimline.engines import (
    ASKED_FIRST,
    ENGINES,
    METRICS_PATHS,
    Adapter,
    Endpoint,
    Evidence,
    describe_foreign_page,
    engine_of_models,
    engines_on,
    identify,
)
from brimline.engines.launch import mismatches, misspelt, normalize, parse_launch, split_command, starts
from brimline.errors import EngineError, FootprintError, SourceError
from brimline.exposition_text import Page, scan
from brimline.fetch import Answer, Client, get_json, open_session
from brimline.footprint.kv_cache import KV_LAYOUTS
from brimline.footprint.model import ModelShape, read_shape
from brimline.gpu import GpuReader, open_gpu_reader
from brimline.processes import command_line, listening_pid, read_memory
from brimline.readings import (
    TARGET_REASONS,
    EngineReading,
    GpuReading,
    HostReading,
    Problem,
    RankReading,
    Snapshot,
    TargetSnapshot,
)
from brimline.threads import in_daemon_thread

logger = logging.getLogger(__name__)

# How long a round waits for the model's files when they are read for the first time; later rounds have them.
MODEL_PATIENCE = 0.5
# The settings of a server that shows neither its start time nor a counter's reset are asked again after this.
DOCUMENTS_MAX_AGE = 300.0
MAX_SETTINGS = 64


@dataclass(slots=True)
class _Detected:
    """What was found out about a server, valid until it restarts."""

    adapter: Adapter
    metrics_path: str
    documents: Mapping[str, Any]
    since: float
    problems: tuple[Problem, ...] = ()
    start: tuple[float | None, str | None] = (None, None)
    token_count: float | None = None
    launch: Mapping[str, str] = field(default_factory=dict)
    launch_known: bool = False


@dataclass(slots=True)
class Raw:
    """The last answer of a target as it came, for /debug."""

    at: float
    path: str
    headers: Mapping[str, str]
    body: bytes
    documents: Mapping[str, Any]


class TargetReader:
    """Reads one target, round after round.

    What it remembers is health and configuration, never readings to serve again, but for `min_interval`.
    """

    def __init__(
        self,
        target: Target,
        session: aiohttp.ClientSession,
        *,
        timeout: float,
        histograms: str,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        quiet_launch: bool = False,
        quiet: bool = False,
    ) -> None:
        self._quiet = quiet
        self.target = target
        self.timeout = timeout
        self.keep_raw = False  # a thousand targets' pages would be a lot of memory to keep for nobody
        self.raw: Raw | None = None
        self._client = Client(session, target)
        self._histograms = histograms
        self._clock = clock
        self._monotonic = monotonic
        self._quiet_launch = quiet_launch
        self._detected: _Detected | None = None
        self._errors = dict.fromkeys(TARGET_REASONS, 0)
        self._was: tuple[bool, str] | None = None
        self._last_success: float | None = None
        self._fingerprint: str | None = None
        self._config_changed: float | None = None
        self._unparsed_total = 0
        self._dropped_total = 0
        self._kept: tuple[float, TargetSnapshot] | None = None
        self._shapes: dict[str, asyncio.Future[ModelShape]] = {}

    def is_like(self, other: TargetReader) -> bool:
        """True where the other one was told the same."""
        return (self.target, self.timeout, self._histograms) == (
            other.target,
            other.timeout,
            other._histograms,
        )

    # --- one round ---

    async def read(self) -> TargetSnapshot:
        """This round's snapshot. Never raises but for cancellation."""
        started = self._monotonic()
        if self._kept is not None and started - self._kept[0] < self.target.min_interval:
            at, kept = self._kept
            return dataclasses.replace(kept, age_seconds=started - at) if kept.up else kept
        self._client.trace.clear()
        try:
            async with asyncio.timeout(self.timeout):
                snapshot = await self._read()
        except TimeoutError:
            return self.failed(
                "timeout",
                f"no whole answer within {self.timeout:g} s: it hangs, or needs a longer timeout",
                started,
            )
        except SourceError as error:
            return self.failed(error.reason, str(error), started)
        except Exception as error:  # the edge of one source: a defect here must not cost the others
            if self._was != (False, "internal"):  # once, and not at every scrape
                logger.exception("target=%s unexpected error", self.target.name)
            return self.failed("internal", f"{type(error).__name__}: {error}", started)
        snapshot = dataclasses.replace(
            snapshot, duration_seconds=self._monotonic() - started, age_seconds=0.0
        )
        self._kept = (started, snapshot)
        self._log_change(True, "")
        return snapshot

    def failed(self, reason: str, detail: str, started: float) -> TargetSnapshot:
        """The snapshot of a round in which the target could not be read."""
        self._errors[reason] += 1
        if reason in ("not_found", "not_an_engine", "wrong_engine", "metrics_disabled", "connection", "dns"):
            self._detected = None  # another server may answer there next time
        self._log_change(False, reason, detail)
        snapshot = self._snapshot(
            up=False, problems=(Problem(reason, detail),), duration_seconds=self._monotonic() - started
        )
        # min_interval holds for a server that fails too: it may be failing under its load.
        self._kept = (started, snapshot)
        return snapshot

    def timed_out(self, started: float) -> TargetSnapshot:
        """The snapshot of a round that ended before the target answered."""
        return self.failed("timeout", "no whole answer before the scrape's deadline", started)

    def _snapshot(self, **fields: Any) -> TargetSnapshot:
        target = self.target
        return TargetSnapshot(
            name=target.name,
            url=f"{target.origin}{target.base_path}",
            experiment=target.experiment,
            variant=target.variant,
            role=target.role,
            histograms=self._histograms,
            errors=dict(self._errors),
            last_success=self._last_success,
            unparsed_lines_total=self._unparsed_total,
            dropped_series_total=self._dropped_total,
            config_changed=self._config_changed,
            **fields,
        )

    def _log_change(self, up: bool, reason: str, detail: str = "") -> None:
        if self._quiet or self._was == (up, reason):
            return
        self._was = (up, reason)
        if up:
            logger.info("target=%s state=up", self.target.name)
        else:
            logger.warning("target=%s state=down reason=%s detail=%r", self.target.name, reason, detail)

    @property
    def trace(self) -> list[str]:
        """What was asked in the last round, and how it was answered."""
        return list(self._client.trace)

    async def _read(self) -> TargetSnapshot:
        detected = self._detected
        answer: Answer | None = None
        if detected is None:
            detected, answer = await self._detect()
        live = [endpoint for endpoint in detected.adapter.endpoints if endpoint.live]
        documents = dict(detected.documents)
        problems = list(detected.problems)
        tasks = [self._document(endpoint, problems) for endpoint in live]
        if answer is None:
            answer, *answers = await asyncio.gather(self._client.get_page(detected.metrics_path), *tasks)
        else:
            answers = await asyncio.gather(*tasks)
        documents |= {
            e.path: document for e, document in zip(live, answers, strict=True) if document is not None
        }
        if self.keep_raw:
            self.raw = Raw(self._clock(), detected.metrics_path, answer.headers, answer.body, documents)
        page = scan(answer.body, detected.adapter.wanted)
        if self._is_foreign(page, answer.body, detected.adapter):
            self._detected = None
            return await self._read()  # says what answers there now
        evidence = Evidence(page, documents, answer.headers, detected.launch)
        reading = detected.adapter.read(evidence)
        if self._has_restarted(detected, reading):
            self._detected = None
            return await self._read()
        self._detected = detected
        return await self._understand(detected, reading, problems)

    @staticmethod
    def _is_foreign(page: Page, body: bytes, adapter: Adapter) -> bool:
        """True where the page is not that engine's any more: another server answers, or it lost its metrics.

        What every Python program exposes (its start time) does not count.
        """
        return not any(map(adapter.owns, page.samples)) and adapter.name not in engines_on(body)

    def _has_restarted(self, detected: _Detected, reading: EngineReading) -> bool:
        """True where the server is another process than the one whose settings were read, or may be."""
        tokens = sum(rank.generation_tokens_total or 0.0 for rank in reading.ranks)
        if detected.token_count is None:
            detected.start, detected.token_count = (reading.start_time, reading.start_token), tokens
            return False
        restarted = (
            (reading.start_time, reading.start_token) != detected.start
            or tokens < detected.token_count
            or (reading.start_time is None and self._monotonic() - detected.since > DOCUMENTS_MAX_AGE)
        )
        detected.token_count = tokens
        return restarted

    # --- detection ---

    async def _document(self, endpoint: Endpoint, problems: list[Problem]) -> Any:
        try:
            return endpoint.keep(await get_json(self._client, endpoint.path))
        except SourceError as error:
            if error.reason in ("connection", "dns", "tls", "credentials"):
                raise
            self._errors["config_endpoint"] += 1
            problems.append(Problem("config_endpoint", str(error)))
            return None

    async def _detect(self) -> tuple[_Detected, Answer]:
        """Find the engine and its metrics page. Raises SourceError.

        Asked first are /version and /v1/models, which cost nothing and often tell the engine; then the
        metrics paths, in an order that disturbs no engine.
        """
        problems: list[Problem] = []
        documents: dict[str, Any] = {}
        wanted = self.target.engine
        for endpoint in ASKED_FIRST if wanted == "auto" else ():
            documents[endpoint.path] = await self._document(endpoint, problems)
        hint = engine_of_models(documents.get("/v1/models")) if wanted == "auto" else wanted
        if self.target.metrics_path is not None:
            paths: Sequence[str] = (self.target.metrics_path,)
        else:
            paths = ENGINES[hint].metrics_paths if hint is not None else METRICS_PATHS
        adapter, answer = await self._find_page(paths, hint)
        rest = [
            endpoint for endpoint in adapter.endpoints if not endpoint.live and endpoint.path not in documents
        ]
        answers = await asyncio.gather(*(self._document(endpoint, problems) for endpoint in rest))
        documents |= {endpoint.path: document for endpoint, document in zip(rest, answers, strict=True)}
        detected = _Detected(
            adapter,
            answer.path,
            {path: document for path, document in documents.items() if document is not None},
            self._monotonic(),
        )
        detected.launch, detected.launch_known = self._launch(adapter, problems)
        if self.target.model is not None and await self._is_missing(Path(self.target.model)):
            problems.append(Problem("model", f"{self.target.model} does not exist; correct or remove model"))
        detected.problems = tuple(problems)
        return detected, answer

    async def _find_page(self, paths: Sequence[str], hint: str | None) -> tuple[Adapter, Answer]:
        refusal: SourceError | None = None
        for path in paths:
            try:
                answer = await self._client.get_page(path)
            except SourceError as error:
                if error.reason not in ("not_found", "redirect", "http_status", "unauthorized"):
                    raise
                if refusal is None or refusal.reason == "not_found":
                    refusal = error  # what an existing page answers says more than that others do not exist
                continue
            if self.keep_raw:
                self.raw = Raw(self._clock(), path, answer.headers, answer.body, {})
            try:
                return ENGINES[identify(answer.body, self.target.engine)], answer
            except EngineError as error:
                refusal = error
                if hint is not None and self.target.engine == "auto":
                    title = ENGINES[hint].title
                    raise EngineError(
                        "metrics_disabled",
                        f"/v1/models says this is {title}, but {path} has none of its metrics: "
                        f"{describe_foreign_page(answer.body)}; start it with its statistics on",
                    ) from None
        if isinstance(refusal, EngineError):
            raise refusal
        tried = ", ".join(paths)
        if refusal is not None and refusal.reason != "not_found":
            raise refusal
        cure = "set metrics_path" if self.target.metrics_path is None else "correct or remove metrics_path"
        raise SourceError("not_found", f"{self.target.url} has no page at {tried}; {cure}")

    def _launch(self, adapter: Adapter, problems: list[Problem]) -> tuple[dict[str, str], bool]:
        """Declared launch settings, and whether the whole command line is known."""
        target = self.target
        words: list[str] = []
        if target.launch is not None:
            settings = {name: normalize(name, value) for name, value in target.launch.items()}
            problems += [Problem("launch_command", doubt) for doubt in misspelt(settings, adapter)]
            return settings, True
        if isinstance(target.launch_command, str):
            try:
                words = split_command(target.launch_command)
            except ValueError as error:
                problems.append(Problem("launch_command", f"launch_command is not a command line: {error}"))
            if words and not starts(words, adapter):
                words = []
                why = f"launch_command does not start {adapter.title}; write the server's own command line"
                problems.append(Problem("launch_command", why))
        elif isinstance(target.launch_command, PidSource) or self._quiet_launch:
            pid = listening_pid(target.port)
            words = command_line(pid) if pid is not None else []
            if words and not starts(words, adapter):
                words = []
            if not words and not self._quiet_launch:
                why = f"no visible process that listens on port {target.port} was started as {adapter.title}"
                problems.append(Problem("launch_command", f"{why}; write the command down instead"))
        settings = parse_launch(words, adapter) if words else {}
        return settings, bool(words)

    # --- understanding ---

    async def _understand(
        self, detected: _Detected, reading: EngineReading, problems: list[Problem]
    ) -> TargetSnapshot:
        settings = _visible({**detected.launch, **reading.settings})
        reading, source = await self._with_kv_bytes(detected, reading, problems)
        if reading.bad_values:
            self._errors["bad_values"] += 1
            problems.append(Problem("bad_values", f"impossible values of {', '.join(reading.bad_values)}"))
        if reading.dropped_series:
            self._errors["too_many_series"] += 1
            problems.append(Problem("too_many_series", f"{reading.dropped_series} series were dropped"))
        self._unparsed_total += reading.unparsed_lines
        self._dropped_total += reading.dropped_series
        self._last_success = self._clock()
        fingerprint = _fingerprint(reading, settings)
        if self._fingerprint is not None and fingerprint != self._fingerprint:
            self._config_changed = self._last_success
            logger.info("target=%s configuration changed fingerprint=%s", self.target.name, fingerprint)
        self._fingerprint = fingerprint
        return self._snapshot(
            up=True,
            reading=reading,
            problems=tuple(problems),
            settings=settings,
            mismatches=mismatches(detected.launch, reading.settings),
            declared=_visible(detected.launch),
            fingerprint=fingerprint,
            kv_bytes_source=source,
        )

    async def _with_kv_bytes(
        self, detected: _Detected, reading: EngineReading, problems: list[Problem]
    ) -> tuple[EngineReading, str | None]:
        """The reading with its KV cache in bytes, where they are known, and what they come from."""
        if any(rank.kv_cache_capacity_bytes is not None for rank in reading.ranks):
            return reading, "the server's own budget"
        path = self._model_path(reading)
        kv_layout = detected.adapter.kv_layout
        if path is None or kv_layout is None or not (detected.launch_known or self._may_assume_defaults()):
            return reading, None
        try:
            shape = await self._shape(path)
            if shape is None:
                return reading, None
            layout = KV_LAYOUTS[kv_layout]
            per_token = layout(shape, {**detected.launch, **reading.settings})
        except FootprintError as error:
            if self.target.model is not None and not any(p.reason == "model" for p in problems):
                self._errors["model"] += 1
                problems.append(Problem("model", str(error)))
            return reading, None
        ranks = tuple(_with_bytes(rank, per_token) for rank in reading.ranks)
        return dataclasses.replace(reading, ranks=ranks), shape.source

    @staticmethod
    async def _is_missing(path: Path) -> bool:
        """True where the path is surely not there; a file system that hangs says nothing."""
        future = in_daemon_thread(path.exists, "model")
        await asyncio.wait([future], timeout=MODEL_PATIENCE)
        return future.done() and future.exception() is None and not future.result()

    def _may_assume_defaults(self) -> bool:
        """True where a configured model without launch settings means the engine's defaults.

        Not where several GPUs are listed: the cache is then split in a way that nobody stated.
        """
        several = isinstance(self.target.gpus, list) and len(self.target.gpus) > 1
        return self.target.model is not None and not several

    def _model_path(self, reading: EngineReading) -> Path | None:
        """The configured model, else the path that a server on this machine says it loaded."""
        if self.target.model is not None:
            return Path(self.target.model)
        root = reading.served_root
        return Path(root) if root is not None and root.startswith("/") and self.target.is_loopback else None

    async def _shape(self, path: Path) -> ModelShape | None:
        """The model's shape; None where it is still being read. Raises FootprintError."""
        key = str(path)
        future = self._shapes.get(key)
        if future is None:
            self._shapes = {key: (future := in_daemon_thread(lambda: read_shape(path), "model"))}
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait([future], timeout=MODEL_PATIENCE)
        return future.result() if future.done() else None

    def world_size(self, snapshot: TargetSnapshot) -> int | None:
        """GPUs that the server uses by its launch settings; None where they are not known."""
        detected = self._detected
        if detected is None or not detected.launch_known:
            return None
        return detected.adapter.world_size(snapshot.settings)


def _visible(settings: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value[:128] for name, value in settings.items() if not is_secret_setting(name)}
    return dict(sorted(kept.items())[:MAX_SETTINGS])


def _fingerprint(reading: EngineReading, settings: Mapping[str, str]) -> str:
    models = sorted({rank.model for rank in reading.ranks})
    said = json.dumps([reading.engine, reading.engine_version, models, sorted(settings.items())])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _with_bytes(rank: RankReading, per_token: float) -> RankReading:
    capacity, used = rank.kv_cache_capacity_tokens, rank.kv_cache_used_tokens
    return dataclasses.replace(
        rank,
        kv_cache_capacity_bytes=None if capacity is None else float(int(capacity * per_token)),
        kv_cache_used_bytes=None if used is None else float(int(used * per_token)),
    )


# --- all targets ---


class _Round:
    """A round in flight. Its deadline may be moved earlier by a scraper that has less time."""

    def __init__(self, readers: Sequence[TargetReader], deadline: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks = [asyncio.ensure_future(reader.read()) for reader in readers]
        self._deadline = deadline
        self._timer = self._loop.call_at(deadline, self._end)
        self.result: asyncio.Task[list[TargetSnapshot | BaseException]] = asyncio.ensure_future(
            self._gather()
        )

    async def _gather(self) -> list[TargetSnapshot | BaseException]:
        try:
            return await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            self._timer.cancel()

    def _end(self) -> None:
        for task in self._tasks:
            task.cancel()

    def end_by(self, deadline: float) -> None:
        if deadline < self._deadline:
            self._deadline = deadline
            self._timer.cancel()
            self._timer = self._loop.call_at(deadline, self._end)


class Collector:
    """Reads all targets and GPUs, for as long as the exporter runs; `configure` replaces the targets."""

    def __init__(
        self,
        config: Config,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        quiet_launch: bool = False,
        open_gpus: Callable[..., GpuReader] = open_gpu_reader,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._quiet_launch = quiet_launch
        self._open_gpus = open_gpus
        self._session: aiohttp.ClientSession | None = None
        self._config = config
        self._readers: tuple[TargetReader, ...] = ()
        self._gpu: GpuReader | None = None
        self._gpu_key: tuple[Any, ...] | None = None
        self._round: tuple[_Round, asyncio.Task[Snapshot]] | None = None
        self.reload_successful = True
        self.reload_problem: str | None = None
        self.reload_success_time: float | None = None

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._config

    async def start(self) -> None:
        """Open the session and start the GPU reader. To be called in the loop that will scrape."""
        self._session = open_session()
        self.configure(self._config)

    async def close(self) -> None:
        """Stop everything, without waiting for calls that hang."""
        if self._round is not None:
            self._round[1].cancel()
        if self._gpu is not None:
            self._gpu.close()
        if self._session is not None:
            await self._session.close()

    def configure(self, config: Config) -> None:
        """Put a configuration in force, all at once; targets that did not change keep what they remember."""
        if self._session is None:
            raise RuntimeError("start() comes first")
        old = {reader.target.name: reader for reader in self._readers}
        readers = []
        for target in config.targets:
            fresh = self._new_reader(config, target)
            known = old.get(target.name)
            readers.append(known if known is not None and known.is_like(fresh) else fresh)
        self._readers = tuple(readers)
        gpu_key = (config.gpu, config.peak_window, wants_pids(config.targets))
        if gpu_key != self._gpu_key:
            if self._gpu is not None:
                self._gpu.close()
            self._gpu = self._open_gpus(config.gpu, config.peak_window, want_pids=wants_pids(config.targets))
            self._gpu.start()
            self._gpu_key = gpu_key
        self._config = config
        self._round = None  # its scrapers get the old targets still; who comes from now on gets the new ones
        self.reload_successful, self.reload_problem = True, None
        self.reload_success_time = self._clock()

    def _new_reader(self, config: Config, target: Target) -> TargetReader:
        if self._session is None:
            raise RuntimeError("start() comes first")
        return TargetReader(
            target,
            self._session,
            timeout=config.timeout_of(target),
            histograms=config.histograms_of(target),
            clock=self._clock,
            monotonic=self._monotonic,
            quiet_launch=self._quiet_launch,
        )

    def reader(self, name: str) -> TargetReader | None:
        """The reader of a configured target."""
        return next((reader for reader in self._readers if reader.target.name == name), None)

    async def snapshot(self, budget: float | None = None) -> Snapshot:
        """A snapshot of now: of the round in flight, or of a new one.

        budget: seconds until an answer must be there; the round is cut short for it, and what has not
        answered by then counts as timed out.
        """
        loop_time = asyncio.get_running_loop().time()
        patience = max((reader.timeout for reader in self._readers), default=0.0) + 0.25
        deadline = loop_time + (patience if budget is None else min(budget, patience))
        if self._round is not None and not self._round[1].done():
            self._round[0].end_by(deadline)
        else:
            readers = self._readers
            begun = _Round(readers, deadline)
            task = asyncio.ensure_future(self._finish(begun, readers, self._monotonic()))
            self._round = (begun, task)
        # Shielded: a scraper that hangs up must not take the round away from the others.
        return await asyncio.shield(self._round[1])

    def gpu_reading(self) -> GpuReading:
        """The GPUs as they are known now."""
        return self._gpu.read() if self._gpu is not None else GpuReading()

    def end_round_within(self, seconds: float) -> None:
        """Cut the round in flight short, so that its scrapers are answered before the process ends."""
        if self._round is not None:
            self._round[0].end_by(asyncio.get_running_loop().time() + seconds)

    async def _finish(self, begun: _Round, readers: Sequence[TargetReader], started: float) -> Snapshot:
        results = await begun.result
        snapshots = []
        for reader, result in zip(readers, results, strict=True):
            if isinstance(result, TargetSnapshot):
                snapshots.append(result)
            elif isinstance(result, asyncio.CancelledError):
                snapshots.append(reader.timed_out(started))
            else:
                snapshots.append(reader.failed("internal", f"{type(result).__name__}: {result}", started))
        gpu = self.gpu_reading()
        total, available = read_memory()
        return Snapshot(
            time=self._clock(),
            targets=tuple(
                self._with_gpus(reader, s, gpu, readers) for reader, s in zip(readers, snapshots, strict=True)
            ),
            gpu=gpu,
            host=HostReading(total, available),
            reload_successful=self.reload_successful,
            reload_success_time=self.reload_success_time,
            reload_problem=self.reload_problem,
        )

    def _with_gpus(
        self, reader: TargetReader, snapshot: TargetSnapshot, gpu: GpuReading, readers: Sequence[TargetReader]
    ) -> TargetSnapshot:
        ranks = sorted({rank.rank for rank in snapshot.reading.ranks}) if snapshot.reading is not None else []
        assigned, problems = assign_gpus(
            reader.target,
            gpu.devices,
            ranks=ranks,
            world_size=reader.world_size(snapshot),
            targets=len(readers),
        )
        if not snapshot.up and reader.target.gpus is None:
            return snapshot  # a server that does not answer need not be told of a GPU question
        return dataclasses.replace(snapshot, gpus=assigned, problems=(*snapshot.problems, *problems))
