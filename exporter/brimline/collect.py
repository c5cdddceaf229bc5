"""One scrape is one concurrent round over all targets, shared by all scrapers in flight, with a deadline.

A target that fails in a round has no reading in that round: nothing older than the round, or than the
target's own min_interval, is ever handed on.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from brimline import units
from brimline.assignment import Assigned, assign_gpus, wants_pids
from brimline.config import Config, GpuSource, PidSource, Target
from brimline.engines import (
    ASKED_FIRST,
    ENGINES,
    METRICS_PATHS,
    Adapter,
    Endpoint,
    adapter_of,
    describe_foreign_page,
    engine_of_models,
    engine_of_queue,
    engines_on,
    evidence_of,
    identify,
    page_paths,
)
from brimline.engines.families import clean_label
from brimline.engines.launch import (
    config_file,
    mismatches,
    misspelt,
    normalize,
    parse_launch,
    split_command,
    starts,
)
from brimline.errors import EngineError, FootprintError, SourceError
from brimline.exposition_text import Page
from brimline.fetch import Answer, Client, get_json, open_session
from brimline.gpu import GpuReader, open_gpu_reader
from brimline.listeners import Listeners
from brimline.prediction import (
    Answers,
    CalibrationError,
    ModelError,
    Prediction,
    Question,
    is_readable,
    is_same,
    smallest_card,
)
from brimline.processes import command_line, listening_pid, read_memory
from brimline.readings import (
    TARGET_REASONS,
    DeviceReading,
    DiscoveryReading,
    EngineReading,
    Footprint,
    GpuReading,
    HostReading,
    MemoryAccount,
    Problem,
    ProcessReading,
    RankReading,
    Snapshot,
    TargetSnapshot,
    Uuid,
)
from brimline.reconcile import Tenant, account, beyond_card
from brimline.threads import in_daemon_thread
from brimline.turns import Turns

logger = logging.getLogger(__name__)

Finish = Callable[["TargetReader", TargetSnapshot], Awaitable[TargetSnapshot]]

# How long a round waits for the model's files when they are read for the first time; later rounds have them.
MODEL_PATIENCE = 0.5
# How long the first round waits for a prediction, which imports the predictor; later rounds a tenth of it.
PREDICTION_PATIENCE = 2.0
# The settings of a server that shows neither its start time nor a counter's reset are asked again after this.
DOCUMENTS_MAX_AGE = 300.0
# An endpoint with settings that did not answer is asked again after this; a model that could not be read too.
RETRY_AFTER = 30.0
# At most so long does one such endpoint hold up the page.
DOCUMENT_TIMEOUT = 2.0
# Several replicas behind one address look like a restart in each scrape: no more than so many in so long.
REDETECT_AFTER = 30.0
MAX_RESTARTS = 3
# A server that takes longer for its page is busy with it, which its users may notice: worth a word, and an
# alert (BrimlineTargetSlow), but never a reason to look less often unasked.
SLOW_SECONDS = 1.0
# How long the GPUs that a file or the listening process names are taken as known, as long as the visible ones
# and their processes are the same.
GPU_SOURCE_MAX_AGE = 10.0
_Visible = list[tuple[Uuid, frozenset[int] | None]]
# How long targets of one round share what is known of the GPUs; and how long it may be exposed after that.
GPU_SHARED_FOR = 0.2
GPU_EXPOSED_FOR = 0.02


@dataclass(frozen=True, slots=True)
class MetricsPage:
    """The metrics page of a server. path: None where it has none that Prometheus reads."""

    engine: str = ""
    path: str | None = None


@dataclass(slots=True)
class _Detected:
    """What was found out about a server, valid until it restarts.

    launch_read: the launch settings that are being read, with the problems that are met meanwhile; None once
    they are known.
    """

    adapter: Adapter
    metrics_path: str
    documents: Mapping[str, Any]
    since: float
    problems: tuple[Problem, ...] = ()
    unread: tuple[Endpoint, ...] = ()
    unread_problems: tuple[Problem, ...] = ()
    start: tuple[float | None, str | None] = (None, None)
    token_count: float | None = None
    launch: Mapping[str, str] = field(default_factory=dict)
    launch_known: bool = False
    unread_config: bool = False
    launch_read: tuple[asyncio.Future[tuple[dict[str, str], bool, bool]], list[Problem]] | None = None
    is_outdated: bool = False

    def take_launch(self) -> None:
        """Take the launch settings over, as soon as they have been read."""
        if self.launch_read is not None and self.launch_read[0].done():
            future, met = self.launch_read
            self.launch_read = None
            self.launch, self.launch_known, self.unread_config = future.result()
            self.problems += tuple(met)


@dataclass(frozen=True, slots=True)
class _Queue:
    """A path that answered with an engine's queue, which reading it emptied.

    documents: what the server said of itself then; when it says something else, it is another server.
    """

    owner: str
    path: str
    documents: Mapping[str, Any]


@dataclass(slots=True)
class _Understood:
    """What follows from a server's settings, kept for as long as it states the same."""

    detected: _Detected
    launch: Mapping[str, str]
    stated: Mapping[str, str]
    settings: Mapping[str, str]
    declared: Mapping[str, str]
    mismatches: Mapping[str, bool]
    predicted_from: tuple[tuple[str, str], ...]
    _fingerprinted: tuple[tuple[str, str | None, frozenset[str]], str] | None = None

    @classmethod
    def of(cls, detected: _Detected, stated: Mapping[str, str]) -> _Understood:
        live = {name: clean_label(value) for name, value in stated.items()}
        declared = _visible(detected.launch, detected.adapter)
        settings = dict(sorted((declared | live).items()))
        predicted_from = tuple(sorted({**detected.launch, **stated}.items()))
        differing = mismatches(declared, live)
        return cls(detected, detected.launch, stated, settings, declared, differing, predicted_from)

    def holds(self, detected: _Detected, stated: Mapping[str, str]) -> bool:
        """True as long as the server is the same, states the same, and its launch was not read meanwhile."""
        return self.detected is detected and self.launch is detected.launch and self.stated == stated

    def fingerprint(self, reading: EngineReading) -> str:
        """A digest of the engine, its models and the settings."""
        of = (reading.engine, reading.engine_version, frozenset(rank.model for rank in reading.ranks))
        if self._fingerprinted is None or self._fingerprinted[0] != of:
            engine, version, models = of
            said = json.dumps([engine, version, sorted(models), sorted(self.settings.items())])
            self._fingerprinted = of, hashlib.sha256(said.encode()).hexdigest()[:16]
        return self._fingerprinted[1]


@dataclass(slots=True)
class Raw:
    """The last answer of a target as it came, for /debug."""

    at: float
    path: str
    headers: Mapping[str, str]
    body: bytes
    documents: Mapping[str, Any]


async def _all_or_none(*calls: Coroutine[Any, Any, Any]) -> list[Any]:
    """Results of concurrent calls. Where one fails, the others are cancelled and waited for."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


class Shared:
    """What the readers of all targets have together."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.turns = Turns()
        self.listeners = Listeners(monotonic)
        self.answers = Answers(monotonic)


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
        shared: Shared | None = None,
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
        self._page: MetricsPage | None = None  # as it was read last; it stays while the server is down
        self._errors = dict.fromkeys(TARGET_REASONS, 0)
        self._was: tuple[bool, str] | None = None
        self._defect: str | None = None
        self._is_slow = False
        self._troubles: frozenset[str] = frozenset()
        self._last_success: float | None = None
        self._fingerprint: str | None = None
        self._config_changed: float | None = None
        self._unparsed_total = 0
        self._dropped_total = 0
        self._kept: tuple[float, TargetSnapshot] | None = None
        self._problems: tuple[Problem, ...] = ()
        shared = shared or Shared(monotonic)
        self._turns = shared.turns
        self._listeners = shared.listeners
        if target.is_loopback:
            self._listeners.add(target.port)
        self._prediction = Prediction(
            shared.answers, monotonic=monotonic, patience=PREDICTION_PATIENCE, retry_after=RETRY_AFTER
        )
        self._round_began = 0.0
        self._asked_at = 0.0
        self._understood: _Understood | None = None
        # Paths are made once: each takes as long as reading a dozen samples.
        self._model = None if target.model is None else Path(target.model)
        self._calibration = None if target.calibration is None else Path(target.calibration)
        self._served: tuple[str, Path] | None = None
        self._readable_model: Path | None = None
        self._looked_at_model: tuple[Path | None, float] = (None, 0.0)
        self._model_look: asyncio.Future[tuple[Path, bool, bool]] | None = None
        self._is_model_another = False
        self._footprint: Footprint | None = None
        self._gpus: Assigned = ()
        self._found: tuple[dict[str, Any], tuple[Adapter, str] | None] = ({}, None)
        self._queue: _Queue | None = None
        self._in_flight: asyncio.Task[TargetSnapshot] | None = None
        self._restarts: list[float] = []
        self._ranks: tuple[str, ...] = ()
        self._gpu_future: asyncio.Future[tuple[_Visible, tuple[Assigned, tuple[Problem, ...]]]] | None = None
        # Since when they are known, of which visible GPUs with their processes, and the answer.
        self._gpu_known: tuple[float, _Visible, tuple[Assigned, tuple[Problem, ...]]] | None = None

    def is_like(self, other: TargetReader) -> bool:
        """True where the other one was told the same."""
        return (self.target, self.timeout, self._histograms) == (
            other.target,
            other.timeout,
            other._histograms,
        )

    # --- one round ---

    def start(self, finish: Finish) -> asyncio.Task[TargetSnapshot]:
        """The read in flight, or a new one: two rounds at once (after a reload) ask the server once."""
        if self._in_flight is None or self._in_flight.done():
            self._in_flight = asyncio.ensure_future(self._run(finish))
        return self._in_flight

    async def _run(self, finish: Finish) -> TargetSnapshot:
        started = self._round_began = self._monotonic()
        kept = self._problems
        try:
            snapshot = await self.read()
        except asyncio.CancelledError:  # the round is over
            snapshot = self.failed(
                "timeout", "no whole answer before the scrape's deadline", started, keep=False
            )
        try:
            snapshot = await finish(self, snapshot)
        except Exception as error:  # the edge of one source: a defect here must not cost the others
            logger.exception("target=%s unexpected error", self.target.name)
            trouble = Problem("internal", f"{type(error).__name__}: {error}")
            snapshot = msgspec.structs.replace(snapshot, problems=(*snapshot.problems, trouble))
        self._log_troubles(snapshot)
        for problem in snapshot.problems:
            # What min_interval serves again was not met again.
            if not any(problem is known for known in kept):
                self._errors[problem.reason] += 1
        if snapshot.errors != self._errors:
            snapshot = msgspec.structs.replace(snapshot, errors=dict(self._errors))
        return snapshot

    async def read(self) -> TargetSnapshot:
        """What the server says now. Never raises but for cancellation."""
        started = self._monotonic()
        if self._kept is not None and started - self._kept[0] < self.target.min_interval:
            at, kept = self._kept
            return msgspec.structs.replace(kept, age_seconds=started - at) if kept.up else kept
        self._client.trace.clear()
        is_known = self._detected is not None
        try:
            async with self._turns.one():
                started = self._asked_at = self._monotonic()
                async with asyncio.timeout(self.timeout):
                    snapshot = await self._read()
        except TimeoutError:
            detail = f"no whole answer within {self.timeout:g} s: it hangs, or needs a longer timeout"
            return self.failed("timeout", detail, started)
        except SourceError as error:
            return self.failed(error.reason, str(error), started)
        except Exception as error:  # the edge of one source: a defect here must not cost the others
            if self._was != (False, "internal"):  # once, and not at every scrape
                logger.exception("target=%s unexpected error", self.target.name)
            return self.failed("internal", f"{type(error).__name__}: {error}", started)
        self._keep(started, snapshot)
        self._log_change(True, "")
        if is_known:  # else it was asked for more than its page
            self._log_slowness(snapshot.duration_seconds)
        return snapshot

    def failed(self, reason: str, detail: str, started: float, *, keep: bool = True) -> TargetSnapshot:
        """The snapshot of a round in which the target could not be read.

        keep: let min_interval hold for it, since a server may be failing under its load. Not where a scraper
        was in a hurry: that says nothing about the server.
        """
        if reason in ("not_found", "not_an_engine", "wrong_engine", "metrics_disabled", "connection", "dns"):
            self._detected = None  # another server may answer there next time
            self._found = ({}, None)
        if reason in ("connection", "dns"):
            self._queue = None
        self._log_change(False, reason, detail)
        snapshot = self._snapshot(
            up=False, problems=(Problem(reason, detail),), duration_seconds=self._monotonic() - started
        )
        if keep:
            self._keep(started, snapshot)
        return snapshot

    def _keep(self, at: float, snapshot: TargetSnapshot) -> None:
        self._problems = snapshot.problems
        if self.target.min_interval > 0:
            self._kept = at, snapshot

    def unfinished(self) -> TargetSnapshot:
        """The snapshot for a scraper that cannot wait for the read in flight."""
        detail = "no whole answer before the scrape's deadline"
        return self._snapshot(up=False, problems=(Problem("timeout", detail),))

    def without_prediction(self, snapshot: TargetSnapshot, detail: str, *, is_new: bool) -> TargetSnapshot:
        """The snapshot where what is predicted met a defect of ours, which must not cost other targets."""
        if is_new:
            self._errors["internal"] += 1
            if self._defect != detail and not self._quiet:  # once, and not at every scrape
                logger.error("target=%s unexpected error detail=%r", self.target.name, detail)
        self._defect = detail
        problems = (*snapshot.problems, Problem("internal", detail))
        return msgspec.structs.replace(snapshot, footprint=None, problems=problems, errors=dict(self._errors))

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

    def _log_slowness(self, seconds: float | None) -> None:
        is_slow = seconds is not None and seconds > SLOW_SECONDS
        if self._quiet or self._is_slow == is_slow:
            return
        self._is_slow = is_slow
        if is_slow:
            why = "its page takes longer than a second; min_interval asks for it less often"
            logger.warning("target=%s slow=true seconds=%.2f detail=%r", self.target.name, seconds, why)
        else:
            logger.info("target=%s slow=false seconds=%.2f", self.target.name, seconds)

    def _log_troubles(self, snapshot: TargetSnapshot) -> None:
        """A line for each problem that a target has newly while it is up."""
        if self._quiet or not snapshot.up:
            return
        for problem in snapshot.problems:
            if problem.reason not in self._troubles:
                name = self.target.name
                logger.warning("target=%s problem=%s detail=%r", name, problem.reason, problem.detail)
        self._troubles = frozenset(problem.reason for problem in snapshot.problems)

    @property
    def page(self) -> MetricsPage | None:
        """The server's own metrics page, read or declared; None where nobody knows yet."""
        if self._page is not None or self.target.engine == "auto":
            declared = self.target.metrics_path
            return self._page if self._page is not None or declared is None else MetricsPage("", declared)
        adapter = ENGINES[self.target.engine]
        if adapter.is_state is not None:
            return MetricsPage(adapter.name)
        path = self.target.metrics_path
        if path is None and len(adapter.metrics_paths) == 1:
            path = adapter.metrics_paths[0]
        return None if path is None else MetricsPage(adapter.name, path)

    @property
    def trace(self) -> list[str]:
        """What was asked in the last round, and how it was answered."""
        return list(self._client.trace)

    async def _read(self) -> TargetSnapshot:
        detected = self._detected
        answer: Answer | None = None
        if detected is None:
            detected, answer = await self._detect()
        all_live = [endpoint for endpoint in detected.adapter.endpoints if endpoint.live]
        live = [endpoint for endpoint in all_live if endpoint.when is None]
        detected.take_launch()
        problems = list(detected.problems)
        if detected.launch_read is not None:
            why = "the process list is slow to read; the launch command is not known yet"
            problems.append(Problem("launch_command", why))
        calls = [self._document(endpoint, problems) for endpoint in live]
        answers: list[Any] = []
        if answer is not None:
            answers = await _all_or_none(*calls)
        elif calls or self._is_to_read_again(detected):
            again = self._read_again(detected)
            answer, _, *answers = await _all_or_none(
                self._client.get_page(detected.metrics_path), again, *calls
            )
        else:  # the usual case, without a task for each of them
            answer = await self._client.get_page(detected.metrics_path)
        problems += detected.unread_problems
        documents = dict(detected.documents)
        documents |= {
            e.path: document for e, document in zip(live, answers, strict=True) if document is not None
        }
        evidence = evidence_of(
            detected.adapter,
            answer.body,
            documents,
            answer.headers,
            detected.launch,
            with_buckets=self._histograms == "full",
        )
        late = [e for e in all_live if e.when is not None and e.when(evidence.page)]
        if late:
            answers = await _all_or_none(*(self._document(endpoint, problems) for endpoint in late))
            documents |= {e.path: one for e, one in zip(late, answers, strict=True) if one is not None}
            evidence = msgspec.structs.replace(evidence, documents=documents)
        if self.keep_raw:
            self.raw = Raw(self._clock(), detected.metrics_path, answer.headers, answer.body, documents)
        if self._is_foreign(evidence.page, answer.body, detected.adapter):
            self._detected = None
            return await self._read()  # says what answers there now
        reading = detected.adapter.read(evidence)
        if self._has_restarted(detected, reading):
            self._detected = None
            return await self._read()
        self._detected = detected
        has_page = detected.adapter.is_state is None
        self._page = MetricsPage(detected.adapter.name, detected.metrics_path if has_page else None)
        return await self._understand(detected, reading, problems)

    async def _read_again(self, detected: _Detected) -> None:
        """Ask once more for settings that could not be read, but not in each scrape."""
        if self._is_to_read_again(detected):
            detected.since = self._monotonic()
            await self._read_documents(detected, detected.unread)

    def _is_to_read_again(self, detected: _Detected) -> bool:
        return bool(detected.unread) and self._monotonic() - detected.since >= RETRY_AFTER

    async def _read_documents(self, detected: _Detected, endpoints: Sequence[Endpoint]) -> None:
        """Add the endpoints' documents to what is known, and note which of them could not be read."""
        failures: list[tuple[Endpoint, Problem]] = []

        async def one(endpoint: Endpoint) -> tuple[str, Any]:
            problems: list[Problem] = []
            document = await self._document(endpoint, problems)
            failures.extend((endpoint, problem) for problem in problems)
            return endpoint.path, document

        read = await _all_or_none(*(one(endpoint) for endpoint in endpoints))
        found = {path: document for path, document in read if document is not None}
        detected.documents = {**detected.documents, **found}
        detected.unread = tuple(endpoint for endpoint, _ in failures)
        detected.unread_problems = tuple(problem for _, problem in failures)

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
            or (
                reading.start_time is None
                and reading.start_token is None
                and self._monotonic() - detected.since > DOCUMENTS_MAX_AGE
            )
        )
        detected.token_count = tokens
        detected.start = (reading.start_time, reading.start_token)
        detected.is_outdated = detected.is_outdated or restarted
        if not detected.is_outdated:
            return False
        now = self._monotonic()
        self._restarts = [at for at in self._restarts if now - at < REDETECT_AFTER]
        if len(self._restarts) >= MAX_RESTARTS:
            return False  # looked at again later
        self._restarts.append(now)
        return True

    # --- detection ---

    async def _document(self, endpoint: Endpoint, problems: list[Problem]) -> Any:
        """An endpoint's document; None where there is none, or it was not given (then with a problem)."""
        try:
            async with asyncio.timeout(min(DOCUMENT_TIMEOUT, self.timeout / 2)):
                return endpoint.keep(await get_json(self._client, endpoint.path))
        except TimeoutError:
            problems.append(Problem("config_endpoint", f"{endpoint.path} gave no whole answer in time"))
        except SourceError as error:
            if error.reason in ("connection", "dns", "tls", "credentials"):
                raise
            problems.append(Problem("config_endpoint", str(error)))
        return None

    async def _detect(self) -> tuple[_Detected, Answer]:
        """Find the engine and its metrics page. Raises SourceError.

        Asked first are /version and /v1/models, which cost nothing and often tell the engine; then the
        metrics paths, in an order that disturbs no engine. What a slow server has answered is kept for the
        next round.
        """
        wanted = self.target.engine
        documents, found = self._found
        known = _Detected(next(iter(ENGINES.values())), "", documents, self._monotonic())
        if found is None:
            if wanted == "auto" and not documents:
                await self._read_documents(known, ASKED_FIRST)
                self._found = (dict(known.documents), None)
            hint = self._hint(known.documents) if wanted == "auto" else wanted
            if self.target.metrics_path is not None:
                paths: Sequence[str] = (self.target.metrics_path,)
            else:
                paths = ENGINES[hint].metrics_paths if hint is not None else page_paths()
            adapter, answer = await self._find_page(paths, hint, known.documents)
            self._found = (dict(known.documents), (adapter, answer.path))
        else:
            adapter, path = found
            answer = await self._client.get_page(path)
        detected = _Detected(adapter, answer.path, known.documents, self._monotonic())
        asked = {endpoint.path for endpoint in ASKED_FIRST} if wanted == "auto" else set()
        own = [endpoint for endpoint in adapter.endpoints if not endpoint.live]
        await self._read_documents(detected, [endpoint for endpoint in own if endpoint.path not in asked])
        paths_wanted = {endpoint.path for endpoint in own}
        for endpoint, problem in zip(known.unread, known.unread_problems, strict=True):
            if endpoint.path in paths_wanted:
                detected.unread = (*detected.unread, endpoint)
                detected.unread_problems = (*detected.unread_problems, problem)
        met: list[Problem] = []
        launch = in_daemon_thread(lambda: self._launch(adapter, met), "launch")
        detected.launch_read = launch, met
        await asyncio.wait([launch], timeout=MODEL_PATIENCE)
        detected.take_launch()
        if self.target.model is not None and await self._is_missing(Path(self.target.model)):
            missing = Problem("model", f"{self.target.model} does not exist; correct or remove model")
            detected.problems = (*detected.problems, missing)
        self._found = ({}, None)
        return detected, answer

    def _hint(self, documents: Mapping[str, Any]) -> str | None:
        """The engine that the server names, or whose queue was read here before; None where nothing tells."""
        named = engine_of_models(documents.get("/v1/models"))
        queue = self._known_queue(documents)
        return queue.owner if named is None and queue is not None else named

    def _known_queue(self, documents: Mapping[str, Any]) -> _Queue | None:
        """The queue that was read here; None where none was, or the server may be another one by now."""
        return self._queue if self._queue is not None and self._queue.documents == documents else None

    async def _find_page(
        self, paths: Sequence[str], hint: str | None, documents: Mapping[str, Any]
    ) -> tuple[Adapter, Answer]:
        refusal: SourceError | None = None
        queue = self._known_queue(documents)
        for path in paths:
            if queue is not None and queue.path == path:
                raise self._is_a_queue(queue)
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
            if (owner := engine_of_queue(answer.body)) is not None:
                # It is not read again: no other reader must lose more.
                self._queue = _Queue(owner, path, dict(documents))
                raise self._is_a_queue(self._queue)
            try:
                engine = identify(answer.body, self.target.engine)
                return adapter_of(engine, answer.body), answer
            except EngineError as error:
                if not isinstance(refusal, EngineError) or path in METRICS_PATHS:
                    refusal = error  # a path of one engine alone says nothing of what else it may be
                if hint is not None and self.target.engine == "auto":
                    why = f"{path} has none of its metrics: {describe_foreign_page(answer.body)}"
                    raise self._without_metrics(ENGINES[hint], why) from None
        if isinstance(refusal, EngineError):
            raise refusal
        tried = ", ".join(paths)
        if self.target.base_path.endswith("/v1") and self.target.metrics_path is None:
            # What a client of OpenAI's API is given; with an API key vLLM answers 401 for all that is below.
            what = f"{self.target.url} has no metrics page" if refusal is None else str(refusal)
            reason = "not_found" if refusal is None else refusal.reason
            raise SourceError(reason, f"{what}; drop /v1 from the url: the metrics page lies beside it")
        if refusal is not None and refusal.reason != "not_found":
            raise refusal
        if hint is not None and self.target.engine == "auto" and self.target.metrics_path is None:
            raise self._without_metrics(ENGINES[hint], f"there is no page at {tried}")
        cure = "set metrics_path" if self.target.metrics_path is None else "correct or remove metrics_path"
        if hint is not None and ENGINES[hint].metrics_switch:
            cure += f", or start it {ENGINES[hint].metrics_switch}"
        raise SourceError("not_found", f"{self.target.url} has no page at {tried}; {cure}")

    def _is_a_queue(self, queue: _Queue) -> EngineError:
        what = f"{queue.path} is a queue that each reading empties, not its metrics"
        if self.target.metrics_path is not None:
            return self._without_metrics(ENGINES[queue.owner], f"{what}; remove metrics_path")
        return self._without_metrics(ENGINES[queue.owner], what)

    def _without_metrics(self, adapter: Adapter, why: str) -> EngineError:
        cure = f"; start it {adapter.metrics_switch}" if adapter.metrics_switch else ""
        return EngineError("metrics_disabled", f"{self.target.url} is {adapter.title}, but {why}{cure}")

    def _launch(self, adapter: Adapter, problems: list[Problem]) -> tuple[dict[str, str], bool, bool]:
        """Declared launch settings, whether the command line is known, and names a file that is not read."""
        target = self.target
        words: list[str] = []
        if target.launch is not None:
            settings = {name: normalize(name, value) for name, value in target.launch.items()}
            problems += [Problem("launch", doubt) for doubt in misspelt(settings, adapter)]
            return settings, True, False
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
        problems += [Problem("launch_command", doubt) for doubt in misspelt(settings, adapter)]
        unread_config = bool(words) and config_file(words, adapter) is not None
        if unread_config:  # of another file system, as a rule
            why = "the file of settings that the launch command names is not read; write them in launch"
            problems.append(Problem("launch_command", why))
        return settings, bool(words), unread_config

    # --- understanding ---

    async def _understand(
        self, detected: _Detected, reading: EngineReading, problems: list[Problem]
    ) -> TargetSnapshot:
        adapter = detected.adapter
        known = self._understood
        if known is None or not known.holds(detected, reading.settings):
            known = self._understood = _Understood.of(detected, reading.settings)
        if reading.bad_values:
            problems.append(Problem("bad_values", f"impossible values of {', '.join(reading.bad_values)}"))
        if reading.dropped_series:
            problems.append(Problem("too_many_series", f"{reading.dropped_series} series were dropped"))
        self._unparsed_total += reading.unparsed_lines
        self._dropped_total += reading.dropped_series
        self._last_success = self._clock()
        self._ranks = tuple(dict.fromkeys(rank.rank for rank in reading.ranks))
        # Settings that could not be asked for, or a page that names no model yet, are no other configuration.
        fingerprint = None if detected.unread or not reading.ranks else known.fingerprint(reading)
        if fingerprint is not None:
            if self._fingerprint is not None and fingerprint != self._fingerprint:
                self._config_changed = self._last_success
                logger.info("target=%s configuration changed fingerprint=%s", self.target.name, fingerprint)
            self._fingerprint = fingerprint
        return self._snapshot(
            up=True,
            reading=reading,
            problems=tuple(problems),
            duration_seconds=self._monotonic() - self._asked_at,
            age_seconds=0.0,
            settings=known.settings,
            settings_complete=adapter.states_launch(reading.settings)
            or (detected.launch_known and not detected.unread_config),
            mismatches=known.mismatches,
            declared=known.declared,
            fingerprint=fingerprint,
        )

    @staticmethod
    async def _is_missing(path: Path) -> bool:
        """True where the path is surely not there; a file system that hangs says nothing."""
        future = in_daemon_thread(path.exists, "model")
        await asyncio.wait([future], timeout=MODEL_PATIENCE)
        return future.done() and future.exception() is None and not future.result()

    def _has_one_gpu(self) -> bool:
        """True where a configured model runs on one listed GPU: then nothing is split, stated or not."""
        return (
            self.target.model is not None
            and isinstance(self.target.gpus, list)
            and len(self.target.gpus) == 1
        )

    def model_path(self, reading: EngineReading) -> Path | None:
        """The path that a server on this machine says it loaded, else the configured model.

        With a configured model the server's path counts where it could be read here: it may be one of another
        file system.
        """
        named = self._named_model(reading)
        if self._model is None or (named is not None and self._readable_model == named):
            return named
        return self._model

    def _named_model(self, reading: EngineReading) -> Path | None:
        root = reading.served_root
        if root is None or not root.startswith("/") or not self.target.is_loopback:
            return None
        if self._served is None or self._served[0] != root:
            self._served = root, Path(root)
        return self._served[1]

    async def _look_at_named_model(self, reading: EngineReading) -> None:
        """Find out whether the model that the server names can be read here, where one is configured too."""
        named, configured = self._named_model(reading), self.target.model
        if named is None or configured is None or named == self._readable_model:
            return
        now = self._monotonic()
        if self._model_look is None:
            if self._looked_at_model[0] == named and now - self._looked_at_model[1] < RETRY_AFTER:
                return
            self._looked_at_model = (named, now)
            self._model_look = in_daemon_thread(
                lambda: (named, is_readable(named), is_same(named, Path(configured))), "model"
            )
            await asyncio.wait([self._model_look], timeout=MODEL_PATIENCE)
        # A file system that hangs says nothing, and is not asked a second time.
        if self._model_look.done():
            looked_at, readable, same = self._model_look.result()
            self._model_look = None
            self._readable_model = looked_at if readable else None
            self._is_model_another = readable and not same

    # --- the prediction ---

    async def finish(self, gpu: GpuReading, targets: int, snapshot: TargetSnapshot) -> TargetSnapshot:
        """The snapshot with the GPUs that belong to the target, and with what it should use."""
        snapshot = await self._assign(gpu, targets, snapshot)
        self._gpus = snapshot.gpus
        if snapshot.reading is None:
            return snapshot
        process = None
        if self.target.is_loopback:
            process = await self._listeners.read(self.target.port, since=self._round_began)
        return await self._predict(gpu, snapshot, snapshot.reading, process)

    @property
    def is_predicting(self) -> bool:
        """True while the target's prediction is being worked out, so that a later round will have it."""
        awaits_launch = self._detected is not None and self._detected.launch_read is not None
        return awaits_launch or self._prediction.is_pending

    def tenant(self) -> Tenant:
        """The target as its GPUs know it."""
        return Tenant(name=self.target.name, gpus=self._gpus, footprint=self._footprint)

    async def _predict(
        self,
        gpu: GpuReading,
        snapshot: TargetSnapshot,
        reading: EngineReading,
        process: ProcessReading | None,
    ) -> TargetSnapshot:
        problems = list(snapshot.problems)
        notes: list[str] = []
        await self._look_at_named_model(reading)
        question = self._question(gpu, snapshot, reading, notes)
        footprint = None
        if question is not None:
            try:
                footprint = await self._prediction.ask(question)
            except CalibrationError as error:
                problems.append(Problem("calibration", str(error)))
            except FootprintError as error:
                reason = "model" if isinstance(error, ModelError) else "prediction"
                if self.target.model is None:
                    notes.append(f"its memory is not predicted: {error}")
                elif not any(problem.reason == reason for problem in problems):
                    problems.append(Problem(reason, str(error)))
        if question is not None and footprint is not None and question.card is not None:
            with_bytes, _ = with_kv_bytes(reading, footprint)
            why = beyond_card(with_bytes, footprint, question.card.visible_bytes)
            if why is not None:
                problems.append(self._wrong_model(question, why))
                footprint = None
        self._footprint = footprint
        if footprint is not None and not any(rank.components for rank in footprint.ranks):
            notes.append(_in_main_memory(footprint))
        reading, source = with_kv_bytes(reading, footprint)
        return msgspec.structs.replace(
            snapshot,
            reading=reading,
            footprint=footprint,
            process=process,
            kv_bytes_source=source,
            problems=tuple(problems),
            memory_notes=tuple(notes),
        )

    def _wrong_model(self, question: Question, why: str) -> Problem:
        """What to say where a server that runs cannot be what was predicted, as it would not fit."""
        if self.target.model is not None and question.model == Path(self.target.model):
            said = f"the server cannot be running {question.model} with these settings: {why}"
            return Problem("model", f"{said}; correct `model`, or `launch` where it is split over more GPUs")
        said = f"the server cannot be running with these settings: {why}"
        return Problem("prediction", f"{said}; correct `launch` or `launch_command`")

    def _question(
        self, gpu: GpuReading, snapshot: TargetSnapshot, reading: EngineReading, notes: list[str]
    ) -> Question | None:
        """What is to be predicted; None, with a note, where too little is known for it."""
        detected, understood = self._detected, self._understood
        if detected is None or understood is None or detected.adapter.predictor is None or not reading.ranks:
            return None
        if snapshot.has_problem("gpu_count"):
            return None  # whether the list or the settings are wrong is not known
        if len(reading.by_model()) > 1:
            notes.append("its memory is not predicted: it serves several models")
            return None
        path = self.model_path(reading)
        if path is None:
            notes.append("its memory is not predicted: name the folder of its model in `model`")
            return None
        if self._model is not None and self._is_model_another and path != self._model:
            notes.append(
                f"the server says that it loaded {path}, which is what is predicted; `model` names "
                f"{self.target.model}: correct or remove it"
            )
        if not self.is_launch_known(snapshot) and not self._has_one_gpu():
            notes.append("its memory is not predicted without launch settings; give launch or launch_command")
            return None
        mine = {uuid for uuid, _ in snapshot.gpus}
        return Question(
            engine=detected.adapter.predictor,
            version=reading.engine_version,
            model=path,
            settings=understood.predicted_from,
            card=smallest_card([device for device in gpu.devices if device.uuid in mine]),
            calibration=self._calibration,
            start=detected.since,
        )

    async def _assign(self, gpu: GpuReading, targets: int, snapshot: TargetSnapshot) -> TargetSnapshot:
        world_size = self._world_size(snapshot)

        def assigned() -> tuple[Assigned, tuple[Problem, ...]]:
            return assign_gpus(
                self.target, gpu.devices, ranks=self._ranks, world_size=world_size, targets=targets
            )

        if isinstance(self.target.gpus, GpuSource):
            gpus, problems = await self._from_gpu_source(assigned, gpu.devices)
        else:
            gpus, problems = assigned()
        if not snapshot.up and self.target.gpus is None:
            return snapshot  # a server that does not answer need not be told of a GPU question
        if not gpus and not problems:
            return snapshot
        return msgspec.structs.replace(snapshot, gpus=gpus, problems=(*snapshot.problems, *problems))

    async def _from_gpu_source(
        self,
        assigned: Callable[[], tuple[Assigned, tuple[Problem, ...]]],
        devices: Sequence[DeviceReading],
    ) -> tuple[Assigned, tuple[Problem, ...]]:
        """GPUs that a file or /proc names, read in a thread of their own: either may hang or be slow."""
        now = self._monotonic()
        visible = [(device.uuid, device.pids) for device in devices]
        if self._gpu_known is not None:
            since, when_visible, known = self._gpu_known
            if now - since < GPU_SOURCE_MAX_AGE and visible == when_visible:
                return known
        if self._gpu_future is None:
            self._gpu_future = in_daemon_thread(lambda: (visible, assigned()), "gpus")
        future = self._gpu_future
        await asyncio.wait([future], timeout=MODEL_PATIENCE)
        if not future.done():
            return (), (Problem("gpu_unassigned", "what names the target's GPUs has not been read yet"),)
        self._gpu_future = None
        when_visible, result = future.result()
        if not result[1]:  # what went wrong is looked at again in the next scrape
            self._gpu_known = (now, when_visible, result)
        return result

    def is_launch_known(self, snapshot: TargetSnapshot) -> bool:
        """True where no launch setting is silently a default: all are declared, or the server states them."""
        detected = self._detected
        if detected is None or snapshot.reading is None:
            return False
        return detected.launch_known or detected.adapter.states_launch(snapshot.reading.settings)

    def _world_size(self, snapshot: TargetSnapshot) -> int | None:
        """GPUs that the server uses by its settings; None where they are not known."""
        if self._detected is None or not self.is_launch_known(snapshot):
            return None
        return self._detected.adapter.world_size(snapshot.settings)


def _in_main_memory(footprint: Footprint) -> str:
    """What to say of a server on the CPU, of which no GPU memory is predicted."""
    said = "it runs on the CPU, so that no GPU memory is predicted"
    sizes: dict[str, int] = {}
    for rank in footprint.ranks:
        for component, part in rank.host.items():
            name = component.replace("kv_cache", "KV cache").replace("_", " ")
            sizes[name] = sizes.get(name, 0) + part.expected * footprint.tensor_parallel
    shown = [f"{name} {units.format_bytes(size)}" for name, size in sizes.items()]
    return f"{said}; in main memory: {', '.join(shown)}" if shown else said


def _visible(settings: Mapping[str, str], adapter: Adapter) -> dict[str, str]:
    """Those of declared settings that may be shown: of known flags only, so that no secret is among them."""
    shown = adapter.shown_flags
    return {name: clean_label(value) for name, value in sorted(settings.items()) if name in shown}


def with_kv_bytes(reading: EngineReading, footprint: Footprint | None) -> tuple[EngineReading, str | None]:
    """The reading with its KV cache in bytes, where they are known, and what they come from."""
    if reading.sleeping:
        return reading, None  # the memory has been given up
    if any(rank.kv_cache_capacity_bytes is not None for rank in reading.ranks):
        return reading, "the server's own budget"
    if footprint is None:
        return reading, None
    ranks = tuple(_rank_with_bytes(rank, footprint) for rank in reading.ranks)
    if all(rank.kv_cache_capacity_bytes is None for rank in ranks):
        return reading, None
    return msgspec.structs.replace(reading, ranks=ranks), footprint.model_source


def _rank_with_bytes(rank: RankReading, footprint: Footprint) -> RankReading:
    """The rank with its cache in bytes: of its blocks where it counts them, as tokens may be logical."""
    cache = footprint.kv_cache
    block_bytes = cache.block_bytes
    if block_bytes is not None and rank.kv_cache_blocks is not None:
        return msgspec.structs.replace(
            rank,
            kv_cache_capacity_bytes=_times(rank.kv_cache_blocks, block_bytes),
            kv_cache_used_bytes=_times(rank.kv_cache_used_blocks, block_bytes),
        )
    if not cache.is_proportional or rank.kv_cache_capacity_tokens is None:
        return rank
    return msgspec.structs.replace(
        rank,
        kv_cache_capacity_bytes=_times(rank.kv_cache_capacity_tokens, cache.bytes_per_token),
        kv_cache_used_bytes=_times(rank.kv_cache_used_tokens, cache.bytes_per_token),
        kv_cache_bytes_computed=True,
    )


def _times(count: float | None, size_bytes: float) -> float | None:
    return None if count is None else float(int(count * size_bytes))


# --- all targets ---


class _Round:
    """A round in flight. It lasts as long as the most patient of its scrapers; others take what is there."""

    def __init__(self, readers: Sequence[TargetReader], finish: Finish, deadline: float) -> None:
        self._loop = asyncio.get_running_loop()
        self.readers = readers
        self.tasks = [reader.start(finish) for reader in readers]
        self._deadline = deadline
        self._timer = self._loop.call_at(deadline, self._end)
        # Targets whose numbers met a defect, which each scraper of the round meets, but which counts once.
        self.defective: set[str] = set()

    def is_over(self) -> bool:
        return all(task.done() for task in self.tasks)

    def _end(self) -> None:
        for task in self.tasks:
            task.cancel()

    def last_until(self, deadline: float) -> None:
        if deadline > self._deadline:
            self.end_at(deadline)

    def end_at(self, deadline: float) -> None:
        self._deadline = deadline
        self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._end)

    async def snapshots(self, deadline: float) -> list[TargetSnapshot]:
        """One for each reader, those that are not done by the deadline as unfinished."""
        # A little later than the round's own end, so that its outcome is seen and counted.
        timeout = deadline - self._loop.time() + 0.02
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=max(timeout, 0.0))
        if self.is_over():
            self._timer.cancel()
        return [
            task.result() if task.done() and not task.cancelled() else reader.unfinished()
            for reader, task in zip(self.readers, self.tasks, strict=True)
        ]


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
        self._shared = Shared(monotonic)
        self._config = config
        self._readers: tuple[TargetReader, ...] = ()
        self._gpu: GpuReader | None = None
        self._gpu_key: tuple[Any, ...] | None = None
        self._gpu_recently: tuple[float, GpuReading] | None = None
        self._rounds: list[_Round] = []
        self._refusals: dict[str, str] = {}
        self.reload_success_time: float | None = None
        self.discovery: Callable[[], tuple[DiscoveryReading, ...]] = tuple

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
        for begun in self._rounds:
            begun.end_at(0.0)
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
        self._shared.listeners.keep({target.port for target in config.targets if target.is_loopback})
        gpu_key = (config.gpu, config.peak_window, wants_pids(config.targets))
        if gpu_key != self._gpu_key:
            if self._gpu is not None:
                self._gpu.close()
            self._gpu = self._open_gpus(config.gpu, config.peak_window, want_pids=wants_pids(config.targets))
            self._gpu.start()
            self._gpu_key = gpu_key
            self._gpu_recently = None
        self._config = config
        self.reload_success_time = self._clock()

    def note_refusal(self, source: str, problem: str | None) -> None:
        """Remember what is wrong with the newest form of a part of the configuration; None for nothing."""
        if problem is None:
            self._refusals.pop(source, None)
        else:
            self._refusals[source] = problem

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
            shared=self._shared,
            quiet_launch=self._quiet_launch,
        )

    def pages(self) -> list[tuple[Target, MetricsPage | None]]:
        """The metrics pages of the targets themselves; None where nobody knows one yet."""
        return [(reader.target, reader.page) for reader in self._readers]

    def reader(self, name: str) -> TargetReader | None:
        """The reader of a configured target."""
        return next((reader for reader in self._readers if reader.target.name == name), None)

    @property
    def is_predicting(self) -> bool:
        """True while the prediction of some target is being worked out."""
        return any(reader.is_predicting for reader in self._readers)

    async def snapshot(self, budget: float | None = None) -> Snapshot:
        """A snapshot of now: of the round in flight, or of a new one.

        budget: seconds until an answer must be there; what has not answered by then counts as timed out, for
        this scraper alone where others have more time.
        """
        loop_time = asyncio.get_running_loop().time()
        patience = max((reader.timeout for reader in self._readers), default=0.0) + 0.1
        deadline = loop_time + (patience if budget is None else min(budget, patience))
        self._rounds = [begun for begun in self._rounds if not begun.is_over()]
        # After a reload, a round of the old targets may be in flight still: its scrapers keep it.
        current = next((begun for begun in self._rounds if begun.readers is self._readers), None)
        if current is None:
            self._gpu_recently = None
            current = _Round(self._readers, self._finish, deadline)
            self._rounds.append(current)
        else:
            current.last_until(deadline)
        targets = await current.snapshots(deadline)
        total, available = read_memory()
        gpu = self._recent_gpus(GPU_EXPOSED_FOR)
        if self._config.gpu.devices == "targets":
            # What others on this machine tell, too, must not be told twice.
            own = {uuid for target in targets for uuid, _ in target.gpus}
            gpu = msgspec.structs.replace(
                gpu, devices=tuple(each for each in gpu.devices if each.uuid in own)
            )
        memory = self._account(targets, current.readers, gpu)
        for index, reader in enumerate(current.readers):
            detail = memory.defects.get(reader.target.name)
            if detail is not None:
                is_new = reader.target.name not in current.defective
                current.defective.add(reader.target.name)
                targets[index] = reader.without_prediction(targets[index], detail, is_new=is_new)
        return Snapshot(
            time=self._clock(),
            targets=tuple(targets),
            gpu=gpu,
            memory=memory,
            host=HostReading(total, available),
            reload_successful=not self._refusals,
            reload_success_time=self.reload_success_time,
            reload_problem="\n".join(self._refusals.values()) or None,
            discovery=self.discovery(),
        )

    async def _finish(self, reader: TargetReader, snapshot: TargetSnapshot) -> TargetSnapshot:
        # A thousand targets that finish together need not put it together a thousand times.
        return await reader.finish(self._recent_gpus(GPU_SHARED_FOR), len(self._readers), snapshot)

    def _recent_gpus(self, age: float) -> GpuReading:
        """The GPUs as they were known so many seconds ago at most, in this round."""
        now = self._monotonic()
        if self._gpu_recently is None or not 0 <= now - self._gpu_recently[0] < age:
            self._gpu_recently = now, self.gpu_reading()
        return self._gpu_recently[1]

    def _account(
        self, targets: Sequence[TargetSnapshot], readers: Sequence[TargetReader], gpu: GpuReading
    ) -> MemoryAccount:
        return account(
            targets,
            [reader.tenant() for reader in readers],
            gpu.devices,
            reserve_other_bytes=self._config.gpu.reserve_other,
        )

    def gpu_reading(self) -> GpuReading:
        """The GPUs as they are known now."""
        return self._gpu.read() if self._gpu is not None else GpuReading()

    def end_round_within(self, seconds: float) -> None:
        """Cut what is in flight short, so that its scrapers are answered before the process ends."""
        for begun in self._rounds:
            begun.end_at(asyncio.get_running_loop().time() + seconds)
