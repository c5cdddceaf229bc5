"""The planning page: what a server would use with other settings.

The browser names a running target or a model of the configuration, or sends a config.json, never a path. What
it sends is kept nowhere. The computing is done by a process of its own (see PlanProcess), one question at a
time, so that scrapes never wait for it.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import jinja2
import msgspec
from aiohttp import web

from brimline import __version__
from brimline.collect import Collector, TargetReader
from brimline.engines import ENGINES
from brimline.errors import BrimlineError
from brimline.files import without_folders
from brimline.footprint.controls import CONTROLS
from brimline.footprint.gpus import GPUS
from brimline.footprint.settings import flag
from brimline.prediction import Card, release, smallest_card
from brimline.readings import COMPONENTS, EngineReading, Snapshot, TargetSnapshot
from brimline.reconcile import comparisons
from brimline.web.plan_process import PlanProcess, PlanTimeoutError, PlanUnavailableError

logger = logging.getLogger(__name__)

# A config.json of 4 MiB, of which JSON within JSON makes up to twice as much, and the settings beside it.
MAX_BODY_BYTES = (8 << 20) + (64 << 10)
BODY_SECONDS = 10.0
# Requests that are read or wait for their turn, the one that is computed included.
MAX_REQUESTS = 4
# What a running server says of itself is asked for once in so long, however fast a slider moves.
FACTS_MAX_AGE = 30.0
RETRY_AFTER_SECONDS = 2
_CURVE_SECONDS = 2.0


class PlanRefusedError(BrimlineError):
    """A request that is not answered with a prediction; the text is for the user."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


# --- what the browser may send ---


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Source(_Strict, frozen=True):
    """One of: the name of a target, the name of a model, the text of a config.json (kept as it came)."""

    target: str | None = None
    model: str | None = None
    config: msgspec.Raw = msgspec.Raw()


class GpuChoice(_Strict, frozen=True):
    """One of: a name of the table, the target's own, this machine's, or memory and bandwidth."""

    name: str | None = None
    target: bool = False
    machine: bool = False
    memory: str | None = None
    terabytes_per_second: float | None = None


class PlanRequest(_Strict, frozen=True):
    """A question of the page. page: tells one open page from another. settings: those that were turned.

    A setting that is empty is left to the engine.
    """

    source: Source
    page: str = ""
    engine: str | None = None
    engine_version: str | None = None
    settings: dict[str, str] = {}
    gpu: GpuChoice | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetFacts:
    """What a running server says of itself, as far as it decides its memory.

    observed: what was read of its KV cache and GPU. notes: what could not be read.
    """

    reader: TargetReader
    at: float
    engine: str
    version: str | None
    path: str
    settings: Mapping[str, str]
    card: Card | None
    observed: Mapping[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the process is asked, and what the page is told beside the answer."""

    question: Mapping[str, Any]
    beside: Mapping[str, Any]


class Planner:
    """The page and its answers. One for each exporter."""

    def __init__(
        self,
        collector: Collector,
        process: PlanProcess | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._collector = collector
        self._process = process or PlanProcess()
        self._monotonic = monotonic
        self._turn = asyncio.Lock()
        self._inside = 0
        self._newest: dict[str, object] = {}
        self._facts: dict[str, TargetFacts] = {}

    async def close(self) -> None:
        """End the process that computes."""
        await self._process.close()

    def page(self) -> web.Response:
        """The page. It shows names; what is behind them is read when one is picked."""
        text, policy = _page(self._choices())
        return web.Response(
            text=text,
            content_type="text/html",
            charset="utf-8",
            headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"},
        )

    async def predict(self, request: web.Request) -> web.Response:
        """The answer to a question of the page, or why there is none: JSON with an `error`."""
        try:
            _refuse_foreign(request)
            if self._inside >= MAX_REQUESTS:
                raise PlanRefusedError(503, "others are planning at this moment; try again in a few seconds")
            self._inside += 1
            try:
                body = await self._answer(_decoded(await _body(request)))
            finally:
                self._inside -= 1
        except PlanRefusedError as refusal:
            return _refused(refusal)
        return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})

    # --- one question ---

    async def _answer(self, request: PlanRequest) -> bytes:
        ticket = object()
        self._newest[request.page] = ticket
        try:
            asked = await self._asked(request)
            async with self._turn:
                if self._newest.get(request.page) is not ticket:
                    raise PlanRefusedError(409, "the page has asked for something newer")
                return await self._computed(asked)
        finally:
            if self._newest.get(request.page) is ticket:
                del self._newest[request.page]

    async def _computed(self, asked: _Asked) -> bytes:
        try:
            answer = await self._process.ask(msgspec.json.encode(asked.question))
        except PlanTimeoutError as error:
            raise PlanRefusedError(422, f"{error}: these settings are no ordinary model's") from None
        except PlanUnavailableError as error:
            raise PlanRefusedError(503, str(error)) from None
        kind, content = answer[:1], answer[1:]
        if kind == b"=":
            return msgspec.json.encode({**asked.beside, "answer": msgspec.Raw(content)})
        text = msgspec.json.decode(content, type=str)
        if kind == b"!":
            raise PlanRefusedError(422, text)
        logger.error("plan=failed detail=%r", text)
        raise PlanRefusedError(500, f"a defect in Brimline itself: {text}")

    async def _asked(self, request: PlanRequest) -> _Asked:
        source = request.source
        config = bytes(source.config)
        named = [given for given in (source.target, source.model, config or None) if given is not None]
        if len(named) != 1:
            raise PlanRefusedError(400, "source: name a target or a model, or send a config; one of them")
        facts = None
        question: dict[str, Any] = {"seconds": _CURVE_SECONDS}
        if source.target is not None:
            facts = await self._facts_of(source.target)
            question |= {"engine": facts.engine, "version": release(facts.version), "path": facts.path}
            question |= {"calibration": facts.reader.target.calibration}
        else:
            engine = request.engine or next(iter(CONTROLS))
            if engine not in CONTROLS:
                raise PlanRefusedError(
                    400, f"engine: {engine[:40]!r} is not planned for; known: {', '.join(CONTROLS)}"
                )
            question |= {"engine": engine, "version": request.engine_version or None}
            if source.model is not None:
                question |= {"path": self._path_of(source.model)}
            else:
                question |= {"config": msgspec.Raw(config)}
        base = {} if facts is None else dict(facts.settings)
        settings = _merged(question["engine"], base, request.settings)
        gpu, is_own = self._gpu(request.gpu, facts)
        question |= {"settings": settings, "gpu": gpu}
        beside: dict[str, Any] = {"engine": question["engine"], "settings": settings, "base": base}
        beside |= {"notes": list(facts.notes) if facts else []}
        if facts is not None:
            beside |= {
                "engine_version": facts.version,
                "observed": facts.observed,
                "card": None if facts.card is None else facts.card.name,
                # A server whose GPU is not known may well run on the one that was picked.
                "unchanged": (is_own or facts.card is None) and settings == base,
            }
        return _Asked(question, beside)

    def _path_of(self, name: str) -> str:
        models = self._collector.config.models
        if name not in models:
            raise PlanRefusedError(
                404, "the configuration lists no model of that name any more; reload the page"
            )
        return models[name]

    def _gpu(self, choice: GpuChoice | None, facts: TargetFacts | None) -> tuple[dict[str, Any] | None, bool]:
        """The GPU as the process takes it, and whether it is the target's own."""
        if choice is None:
            return None, False
        if choice.target:
            card = facts.card if facts is not None else None
            if card is None:
                return None, True
            return {"card": asdict(card)}, True
        if choice.machine:
            card = smallest_card(list(self._collector.gpu_reading().devices))
            if card is None:
                raise PlanRefusedError(422, "no GPU of this machine can be read; pick another")
            return {"card": asdict(card)}, False
        return {
            "name": choice.name,
            "memory": choice.memory,
            "terabytes_per_second": choice.terabytes_per_second,
        }, False

    # --- running servers ---

    async def _facts_of(self, name: str) -> TargetFacts:
        """What the target says of itself, asked for anew after a while. Raises PlanRefusedError."""
        reader = self._collector.reader(name)
        if reader is None:
            self._facts.pop(name, None)
            raise PlanRefusedError(404, "there is no target of that name any more; reload the page")
        known = self._facts.get(name)
        if known is not None and known.reader is reader and self._monotonic() - known.at < FACTS_MAX_AGE:
            return known
        snapshot = await self._collector.snapshot()
        target = snapshot.target(name)
        if target is None:
            raise PlanRefusedError(404, "there is no target of that name any more; reload the page")
        facts = self._facts[name] = _facts(reader, target, snapshot, self._monotonic())
        return facts

    def _choices(self) -> dict[str, Any]:
        """What can be picked."""
        config = self._collector.config
        machine = smallest_card(list(self._collector.gpu_reading().devices))
        return {
            "targets": [target.name for target in config.targets],
            "models": list(config.models),
            "machine": None if machine is None else machine.name,
            "gpus": [
                {
                    "name": gpu.name,
                    "memory_bytes": gpu.memory_bytes,
                    "bandwidth_bytes_per_second": gpu.bandwidth_bytes_per_second,
                }
                for gpu in GPUS.values()
            ],
            # A list: the first one is what a model is planned with unless another is picked.
            "engines": [
                {
                    "name": engine,
                    "title": ENGINES[engine].title,
                    "controls": [{**asdict(control), "flag": flag(control.name)} for control in controls],
                }
                for engine, controls in CONTROLS.items()
            ],
        }


# --- requests ---


def _refuse_foreign(request: web.Request) -> None:
    """Refuse what another site's page sends, and what is no JSON. Raises PlanRefusedError."""
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    if site is not None:
        is_ours = site == "same-origin"
    else:  # an old browser, one that does not trust plain HTTP, or no browser at all
        is_ours = origin is None or urlsplit(origin).netloc == request.host
    if not is_ours:
        raise PlanRefusedError(403, "this is answered to the planning page only")
    if request.content_type != "application/json" or "Content-Encoding" in request.headers:
        raise PlanRefusedError(415, "send application/json, not compressed")
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise _too_large()


def _too_large() -> PlanRefusedError:
    return PlanRefusedError(413, "the file is too large for a model's config.json, which has 4 MiB at most")


async def _body(request: web.Request) -> bytes:
    """The whole body. Raises PlanRefusedError where it is too large or does not come."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.content.iter_any():
                size += len(part)
                if size > MAX_BODY_BYTES:
                    raise _too_large()
                parts.append(part)
    except TimeoutError:
        raise PlanRefusedError(408, "the request did not arrive in time") from None
    return b"".join(parts)


def _decoded(body: bytes) -> PlanRequest:
    try:
        request = msgspec.json.decode(body, type=PlanRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlanRefusedError(400, f"the request is not understood: {error}") from None
    words = [request.page, request.engine_version or "", *request.settings, *request.settings.values()]
    if any(len(word) > 64 for word in words):
        raise PlanRefusedError(400, "a setting is longer than any that is known")
    return request


def _merged(engine: str, base: Mapping[str, str], turned: Mapping[str, str]) -> dict[str, str]:
    """The settings with those that were turned. Raises PlanRefusedError for one that no control sets."""
    known = [control.name for control in CONTROLS.get(engine, ())]
    for name in turned:
        if name not in known:
            raise PlanRefusedError(
                400, f"settings: {name!r} cannot be set here; known: {', '.join(known) or 'none'}"
            )
    merged = {**base, **turned}
    return {name: merged[name] for name in sorted(merged) if merged[name] != ""}


def _refused(refusal: PlanRefusedError) -> web.Response:
    headers = {"Cache-Control": "no-store"}
    if refusal.status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return web.json_response({"error": str(refusal)}, status=refusal.status, headers=headers)


# --- a target's facts ---


def _facts(reader: TargetReader, target: TargetSnapshot, snapshot: Snapshot, at: float) -> TargetFacts:
    """Raises PlanRefusedError where too little is known of the server to plan with."""
    reading = target.reading
    if reading is None:
        why = "; ".join(f"{problem.reason}: {problem.detail}" for problem in target.problems)
        why = without_folders(why)
        raise PlanRefusedError(
            422, f"{target.name} cannot be read at this moment ({why}); plan with its model instead"
        )
    if len(reading.by_model()) > 1:
        raise PlanRefusedError(
            422, f"{target.name} serves several models; pick one of the configuration's models"
        )
    adapter = ENGINES[reading.engine]
    if adapter.predictor is None:
        raise PlanRefusedError(422, f"the memory of {adapter.title} is not predicted")
    path = model_path(reader, reading)
    if path is None:
        raise PlanRefusedError(
            422,
            f"the files of {target.name}'s model are not known; name their folder in `model` of the target",
        )
    known = [one for one in (path, reader.target.model) if one is not None]
    devices = [device for device in snapshot.gpu.devices if device.uuid in dict(target.gpus)]
    settings = {
        name: value for name, value in target.settings.items() if name != adapter.launch_model_flag and value
    }
    return TargetFacts(
        reader=reader,
        at=at,
        engine=adapter.predictor,
        version=reading.engine_version,
        path=path,
        settings=dict(sorted(settings.items())),
        card=smallest_card(devices),
        observed=_observed(target, reading, snapshot),
        notes=tuple(without_folders(note, *known) for note in target.memory_notes),
    )


def model_path(reader: TargetReader, reading: EngineReading) -> str | None:
    """Where the target's model lies on this machine; None where it is not known."""
    path = reader.model_path(reading)
    return None if path is None else str(path)


def _observed(target: TargetSnapshot, reading: EngineReading, snapshot: Snapshot) -> dict[str, Any]:
    """What was measured: of the rank with the least KV cache, and by component on the fullest GPU."""
    seen: dict[str, Any] = {"ranks": len(reading.ranks), "simulated": reading.simulated}
    for name, field in (
        ("num_blocks", "kv_cache_blocks"),
        ("capacity_tokens", "kv_cache_capacity_tokens"),
        ("max_concurrency", "kv_cache_max_concurrency_requests"),
    ):
        values = [getattr(rank, field) for rank in reading.ranks]
        seen[name] = min(values) if values and None not in values else None
    seen["components"] = {
        line.name: line.observed
        for line in comparisons(target, snapshot)
        if line.name in COMPONENTS and line.observed is not None
    }
    return seen


# --- the page ---


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("brimline", "web"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("plan.html")


@functools.cache
def _part(name: str) -> tuple[str, str]:
    """The text of a file of this package, and its hash as a content security policy names it."""
    text = resources.files("brimline.web").joinpath(name).read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return text, f"'sha256-{digest}'"


def _page(choices: Mapping[str, Any]) -> tuple[str, str]:
    """The page as HTML, and its content security policy: this style, this script, and nothing else."""
    style, style_hash = _part("plan.css")
    script, script_hash = _part("plan.js")
    text = _template().render(version=__version__, style=style, script=script, choices=choices)
    policy = (
        f"default-src 'none'; style-src {style_hash}; script-src {script_hash}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )
    return text, policy
