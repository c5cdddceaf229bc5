"""Which combinations of models, GPUs and launch settings fit, and what they would do: one row for each.

A sweep is a setting with the values to try. Every combination is predicted; one that cannot be, such as more
GPUs than heads divide among, is a row that says why.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from brimline import units
from brimline.errors import FootprintError, SettingError
from brimline.estimate import Estimate
from brimline.footprint.calibration import Calibration
from brimline.footprint.constants import parse_version
from brimline.footprint.controls import Role, control_of
from brimline.footprint.gpus import GPUS, Gpu, find_gpu
from brimline.footprint.predict import PREDICTORS, Model, predict
from brimline.footprint.settings import Settings, flag
from brimline.footprint.verdict import judged
from brimline.footprint.what_if import Scenario, Span, headroom, room
from brimline.readings import Footprint
from brimline.spelling import nearest

MAX_COMBINATIONS = 100_000
# Swept like settings, though no flags of the server: what is predicted, on which card, of which version.
MODEL, GPU, ENGINE_VERSION = "model", "gpu", "engine_version"
NOT_SETTINGS = (MODEL, GPU, ENGINE_VERSION)
# Where the search for the longest context begins for a model that states none.
_LONGEST_UNSTATED = 1 << 20
SHORTEST_CURVE_TOKENS = 1024
# What a picture can tell apart: seven colours, three strokes.
MAX_CURVES = 21

# Settings of engines that the planning page does not offer.
_MORE_SETTINGS: dict[tuple[str, Role], str] = {
    ("sglang", "context"): "context_length",
    ("sglang", "kv_dtype"): "kv_cache_dtype",
    ("sglang", "tensor_parallel"): "tp_size",
    ("sglang", "quantization"): "quantization",
    ("trtllm", "context"): "max_seq_len",
    ("trtllm", "kv_dtype"): "kv_cache_dtype",
    ("trtllm", "tensor_parallel"): "tp_size",
    ("trtllm", "quantization"): "quantization",
}
_OF_ONE_REPLICA = "All figures are of one"

# What judged() says, or impossible: no such server can be.
Outcome = Literal["fits", "budget", "too_large", "impossible", "unknown"]


def setting_of(engine: str, role: Role) -> str | None:
    """The engine's setting in that role; None where it has none, or none is known."""
    control = control_of(engine, role)
    return control.name if control is not None else _MORE_SETTINGS.get((engine, role))


# --- What is asked


@dataclass(frozen=True, slots=True)
class Sweep:
    """A setting and the values to try, as text. name: the engine's own, with underscores; or model, gpu."""

    name: str
    values: tuple[str, ...]


def _split(text: str) -> list[str]:
    """The parts between commas; a comma within brackets or quotes, as in JSON, parts nothing."""
    parts, depth, quoted, start = [], 0, False, 0
    for place, letter in enumerate(text):
        if letter == '"':
            quoted = not quoted
        elif not quoted and letter in "[{":
            depth += 1
        elif not quoted and letter in "]}":
            depth -= 1
        elif letter == "," and not quoted and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


def parse_sweep(text: str, aliases: Mapping[str, str] | None = None) -> Sweep:
    """The sweep in `max_model_len=8k,32k`. aliases: short names of settings, to their own.

    Raises SettingError for another form.
    """
    name, sign, rest = text.partition("=")
    name = name.strip().lstrip("-").replace("-", "_")
    values = tuple(value.strip() for value in _split(rest))
    if not sign or not name or not all(values):
        raise SettingError(f"--sweep {text!r}: write a setting and its values, as max_model_len=8k,32k,128k")
    name = (aliases or {}).get(name, name)
    for value, times in Counter(values).items():
        if times > 1:
            raise SettingError(f"--sweep {name}: {value} is given twice")
    return Sweep(name, values)


def model_names(paths: Sequence[str]) -> list[str]:
    """Short names of models by their paths: the folder's or file's own; whole paths where two are alike."""
    short = []
    for path in paths:
        parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
        if len(parts) > 1 and parts[-1] == "config.json":
            parts.pop()
        short.append(parts[-1] if parts else path)
    return [path if short.count(name) > 1 else name for path, name in zip(paths, short, strict=True)]


class _Asked(dict[str, str]):
    """Settings that remember which names a predictor asks for: those are the ones it knows."""

    def __init__(self, stated: Settings) -> None:
        super().__init__(stated)
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return super().__contains__(name)


def known_settings(engine: str, model: Model, *stated: Settings) -> frozenset[str]:
    """Names of the settings that a predictor asks for. stated: settings under which it asks for more."""
    names: set[str] = set()
    for settings in ({}, *stated):
        asked = _Asked(settings)
        with contextlib.suppress(FootprintError):  # the names asked for up to there count
            predict(engine, model, asked)
        names |= asked.names
    return frozenset(names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be compared. sweeps: in the order of the rows, the last one varying fastest.

    cards: the GPUs by the names they are swept by.
    """

    engine: str
    models: Mapping[str, Model]
    sweeps: tuple[Sweep, ...]
    settings: Settings
    version: str | None
    gpu: Gpu | None
    cards: Mapping[str, Gpu]
    calibration: Calibration | None = None

    @property
    def combinations(self) -> int:
        """How many rows there will be."""
        return math.prod(len(sweep.values) for sweep in self.sweeps)

    @property
    def context_setting(self) -> str | None:
        """The engine's setting of the longest request; None where it is not known here."""
        return setting_of(self.engine, "context")

    def rows(self) -> Iterator[Row]:
        """One row for each combination. Raises SettingError for a value that its setting can never have."""
        longest: dict[tuple[object, ...], int | None] = {}
        for values in itertools.product(*(sweep.values for sweep in self.sweeps)):
            chosen = {sweep.name: value for sweep, value in zip(self.sweeps, values, strict=True)}
            try:
                row = self.row(chosen)
                yield replace(row, longest_context_tokens=self._longest_context(row, longest))
            except SettingError as error:
                raise _named(error, chosen) from None

    def row(self, chosen: Mapping[str, str]) -> Row:
        """The row of one combination, without its longest context. chosen: the swept names' values."""
        label = chosen.get(MODEL) or next(iter(self.models))
        gpu = self.cards[chosen[GPU]] if GPU in chosen else self.gpu
        scenario = Scenario(
            model=self.models[label],
            engine=self.engine,
            settings={
                **self.settings,
                **{name: value for name, value in chosen.items() if name not in NOT_SETTINGS},
            },
            version=chosen.get(ENGINE_VERSION, self.version),
            gpu=gpu,
            calibration=self.calibration,
        )
        return _row(label, chosen, scenario)

    def _longest_context(self, row: Row, found: dict[tuple[object, ...], int | None]) -> int | None:
        """The longest context that fits with all else as in the row. found: those worked out before."""
        context = self.context_setting
        if context is None or row.scenario.gpu is None:
            return None
        rest = tuple((name, value) for name, value in row.scenario.settings.items() if name != context)
        key = (row.model, row.scenario.gpu.name, row.scenario.version, rest)
        if key not in found:
            found[key] = longest_context(row.scenario, context)
        return found[key]


def make_plan(
    engine: str,
    models: Mapping[str, Model],
    sweeps: Sequence[Sweep],
    settings: Settings,
    *,
    version: str | None = None,
    gpu: Gpu | None = None,
    calibration: Calibration | None = None,
) -> Plan:
    """The plan, once all of its names are known. models: by the names they are shown under.

    Raises FootprintError naming the flag: for a setting that is unknown or given twice, an unknown GPU, too
    many combinations.
    """
    check_engine(engine)
    swept = [sweep.name for sweep in sweeps]
    for name in swept:
        if swept.count(name) > 1:
            raise SettingError(f"--sweep {name} is given twice; list all its values in one")
        if name in settings or (name == GPU and gpu is not None):
            raise SettingError(f"{flag(name)} and --sweep {name} set the same; give one of them")
        if name == ENGINE_VERSION and version is not None:
            raise SettingError(f"--engine-version and --sweep {name} set the same; give one of them")
    if MODEL not in swept and len(models) > 1:
        sweeps = (Sweep(MODEL, tuple(models)), *sweeps)
    count = math.prod(len(sweep.values) for sweep in sweeps)
    if count > MAX_COMBINATIONS:
        listed = " × ".join(f"{len(sweep.values)} {sweep.name}" for sweep in sweeps)
        raise SettingError(
            f"--sweep: {listed} are {count:,} combinations, at most {MAX_COMBINATIONS:,} are computed; "
            "leave out values"
        )
    values = {sweep.name: sweep.values for sweep in sweeps}
    if version is not None:
        _check_version("--engine-version", version)
    for swept_version in values.get(ENGINE_VERSION, ()):
        _check_version(f"--sweep {ENGINE_VERSION}", swept_version)
    _check_names(engine, models, values, settings)
    return Plan(
        engine=engine,
        models=models,
        sweeps=tuple(sweeps),
        settings=settings,
        version=version,
        gpu=gpu,
        cards={name: _swept_gpu(name) for name in values.get(GPU, ())},
        calibration=calibration,
    )


def check_engine(engine: str) -> None:
    """Raise SettingError for an engine that is not predicted."""
    if engine not in PREDICTORS:
        raise SettingError(f"--engine {engine}: its memory is not predicted; known: {', '.join(PREDICTORS)}")


def _check_version(stated: str, version: str) -> None:
    try:
        parse_version(version)
    except FootprintError as error:
        raise SettingError(f"{stated}: {error}") from None


def _swept_gpu(name: str) -> Gpu:
    try:
        return find_gpu(name)
    except FootprintError as error:
        raise SettingError(f"--sweep gpu: {error}") from None


def _check_names(
    engine: str, models: Mapping[str, Model], values: Mapping[str, tuple[str, ...]], settings: Settings
) -> None:
    """Raise SettingError for a setting that nothing depends on: misspelt, or not of this engine.

    Some are asked for only beside others, which the first or the last values of the sweeps turn on.
    """
    swept = {name: listed for name, listed in values.items() if name not in NOT_SETTINGS}
    tried = [{**settings, **{name: listed[place] for name, listed in swept.items()}} for place in (0, -1)]
    _check_read("--sweep", engine, next(iter(models.values())), tried, swept)


def check_settings(engine: str, model: Model, settings: Settings, names: Iterable[str]) -> None:
    """Raise SettingError for a --setting among names that nothing depends on."""
    _check_read("--setting", engine, model, [settings], names)


def _check_read(
    given_by: str, engine: str, model: Model, tried: Sequence[Settings], names: Iterable[str]
) -> None:
    known = known_settings(engine, model, *tried)
    for name in names:
        if name not in known and not _is_read(engine, model, tried[-1], name):
            more = NOT_SETTINGS if given_by == "--sweep" else ()
            raise SettingError(
                f"{given_by} {name}: the memory of {engine} does not depend on such a setting, as far as is "
                f"known here{_near(name, {*known, *more})}"
            )


def _is_read(engine: str, model: Model, settings: Settings, name: str) -> bool:
    """True where no value whatever is taken for the setting: of predictors that read all settings at once."""
    try:
        predict(engine, model, {**settings, name: "?"})
    except SettingError:
        return True
    except FootprintError:
        return False
    return False


def _near(name: str, known: Iterable[str]) -> str:
    listed = sorted(known)
    near = nearest(name, listed)
    return f"; did you mean {near}?" if near else f"; known: {', '.join(listed)}"


def _named(error: SettingError, chosen: Mapping[str, str]) -> SettingError:
    """The error with the sweep that it comes from, where it speaks of a swept setting."""
    text = str(error)
    for name, value in chosen.items():
        if name in NOT_SETTINGS:  # looked at before anything was computed
            continue
        if re.match(rf"{flag(name)}(?![\w-])", text):
            said = text.removeprefix(flag(name)).lstrip(": ").removeprefix(f"{value}: ")
            return SettingError(f"--sweep {name}={value}: {said}")
        if re.search(rf"\b{name}\b", text):
            return SettingError(f"--sweep {name}={value}: {text}")
    return error


# --- What comes of it


class Bounds(NamedTuple):
    """A count with bounds, such as requests that a KV cache holds."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One combination. All bytes are of one GPU, the fullest; counts are of all replicas together.

    chosen: values of the sweeps. reason: why it does not fit or cannot be. gpus: of the whole deployment.
    headroom: what stays free beside the server. room: what is left beside all but the KV cache and one
    request of full length. decode_one_tokens_per_second: the ceiling for a request alone, at full length;
    decode_all: for decode_all_requests of them, as many as the cache holds and the engine runs at once.
    decode_even_…: the same where tokens are routed evenly among experts; None for a model without any. What
    is None is not known, or the combination cannot be.
    """

    model: str
    chosen: Mapping[str, str]
    scenario: Scenario
    outcome: Outcome
    reason: str | None = None
    tensor_parallel: int | None = None
    replicas: int | None = None
    gpus: int | None = None
    total: Estimate | None = None
    headroom: Span | None = None
    room: Span | None = None
    context_tokens: int | None = None
    full_request_bytes: int | None = None
    capacity_tokens: Bounds | None = None
    concurrency: Bounds | None = None
    decode_one_tokens_per_second: float | None = None
    decode_all_requests: int | None = None
    decode_all_tokens_per_second: float | None = None
    decode_even_one_tokens_per_second: float | None = None
    decode_even_all_tokens_per_second: float | None = None
    longest_context_tokens: int | None = None
    calibrated: bool | None = None
    assumptions: tuple[str, ...] = ()

    @property
    def card_bytes(self) -> Estimate | None:
        """What CUDA shows of the GPU's memory."""
        return self.scenario.gpu.visible_bytes if self.scenario.gpu is not None else None

    @property
    def speed_tokens_per_second(self) -> float | None:
        """All requests together, by what to expect of experts where there are any."""
        if self.decode_even_all_tokens_per_second is not None:
            return self.decode_even_all_tokens_per_second
        return self.decode_all_tokens_per_second

    @property
    def used_ratio(self) -> float | None:
        """Expected total over what CUDA shows of the GPU."""
        if self.total is None or self.card_bytes is None:
            return None
        return self.total.expected / self.card_bytes.expected


def _row(model: str, chosen: Mapping[str, str], scenario: Scenario) -> Row:
    """A row without its longest context. Raises SettingError."""
    try:
        footprint = scenario.footprint()
    except SettingError:
        raise
    except FootprintError as error:
        return Row(model=model, chosen=chosen, scenario=scenario, outcome="impossible", reason=str(error))
    cache, gpu, replicas = footprint.kv_cache, scenario.gpu, footprint.data_parallel
    verdict = judged(footprint, gpu)
    one, requests, together = _decode(footprint, footprint.decode_ceiling)
    even_one, _, even_together = _decode(footprint, footprint.even_ceiling)
    return Row(
        model=model,
        chosen=chosen,
        scenario=scenario,
        outcome=verdict.outcome,
        reason=verdict.reason,
        tensor_parallel=footprint.tensor_parallel,
        replicas=replicas,
        gpus=footprint.gpu_count,
        total=footprint.fullest.total,
        headroom=headroom(footprint, gpu) if gpu is not None else None,
        room=room(footprint, gpu) if gpu is not None else None,
        context_tokens=cache.max_model_len_tokens,
        full_request_bytes=cache.full_request_bytes,
        capacity_tokens=_bounded(footprint, cache.capacity_tokens),
        concurrency=_bounded(footprint, cache.max_concurrency_requests),
        decode_one_tokens_per_second=one,
        decode_all_requests=requests,
        decode_all_tokens_per_second=together,
        decode_even_one_tokens_per_second=even_one,
        decode_even_all_tokens_per_second=even_together,
        calibrated=footprint.calibrated,
        # One copy of sentences that thousands of rows share; counts here are of all replicas.
        assumptions=tuple(
            sys.intern(text) for text in footprint.assumptions if not text.startswith(_OF_ONE_REPLICA)
        ),
    )


def _bounded(footprint: Footprint, expected: float | None) -> Bounds | None:
    """A count that goes with the size of the KV cache, of all replicas."""
    pool = footprint.kv_cache.num_blocks or footprint.fullest.components.get("kv_cache")
    if expected is None or pool is None:
        return None
    whole = expected * footprint.data_parallel
    if not pool.expected:
        return Bounds(0.0, whole, whole)
    return Bounds(whole * pool.low / pool.expected, whole, whole * pool.high / pool.expected)


def _decode(
    footprint: Footprint, ceiling: Callable[[int, int], float] | None
) -> tuple[float | None, int | None, float | None]:
    """The ceiling of one request, and that of as many as run at once, all of full length."""
    cache = footprint.kv_cache
    if ceiling is None:
        return None, None, None
    length, limits = cache.max_model_len_tokens, []
    if cache.max_concurrency_requests is not None:
        limits.append(int(cache.max_concurrency_requests))
    if footprint.max_running_requests is not None:
        limits.append(footprint.max_running_requests)
    one, batch = ceiling(1, length), min(limits, default=0)
    if batch < 1 or cache.max_concurrency_requests is None:
        return one, None, None
    return one, batch * footprint.data_parallel, ceiling(batch, length) * footprint.data_parallel


def longest_context(scenario: Scenario, setting: str) -> int | None:
    """The longest context that fits, all else as in the scenario; None where none does.

    The memory of a request rises with its length, nearly in proportion: what the longest one lacks tells
    where to look, and two predictions confirm it. Where they do not, halving finds it.
    """
    gpu, most = scenario.gpu, longest_of_model(scenario)
    whole, outcome = _tried(scenario.having(setting, most))
    if whole is None or gpu is None:
        return None
    if outcome == "fits":
        return most
    cache = whole.kv_cache
    step = cache.block_tokens or 1
    fitting, failing = 0, -(-most // step)  # in steps
    guess = most
    if cache.bytes_per_token:
        guess += math.floor(room(whole, gpu).low / cache.bytes_per_token)
    if whole.longest_start_tokens is not None:
        guess = min(guess, whole.longest_start_tokens)
    likely = iter((max(1, guess // step), guess // step + 1))
    while failing - fitting > 1:
        steps = next(likely, (fitting + failing) // 2)
        if not fitting < steps < failing:
            continue
        if _tried(scenario.having(setting, steps * step))[1] == "fits":
            fitting = steps
        else:
            failing = steps
    return fitting * step or None


def longest_of_model(scenario: Scenario) -> int:
    """The longest context that the model was made for, with what the settings put in place of its file."""
    model = scenario.model
    with contextlib.suppress(FootprintError):
        model = model.overridden(scenario.settings)
    return model.architecture.max_position or _LONGEST_UNSTATED


def _tried(scenario: Scenario) -> tuple[Footprint | None, Outcome]:
    try:
        footprint = scenario.footprint()
    except FootprintError:
        return None, "impossible"
    return footprint, judged(footprint, scenario.gpu).outcome


def best(rows: Sequence[Row]) -> frozenset[int]:
    """Indexes of the rows that hold most requests at once, of those that fit: one for each model and length.

    Of two that hold as many, the one with fewer GPUs; then the first. A row that nothing compares with has
    no mark.
    """
    compared = Counter((row.model, row.context_tokens) for row in rows)
    leading: dict[tuple[str, int | None], int] = {}
    for index, row in enumerate(rows):
        if row.outcome != "fits" or row.concurrency is None:
            continue
        key = (row.model, row.context_tokens)
        if key not in leading or _rank(row) > _rank(rows[leading[key]]):
            leading[key] = index
    return frozenset(index for key, index in leading.items() if compared[key] > 1)


def _rank(row: Row) -> tuple[float, int]:
    return (row.concurrency.expected if row.concurrency is not None else 0.0, -(row.gpus or 0))


# --- What would fit


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A change to a row that does not fit, and the row it makes, which does."""

    change: Mapping[str, str]
    row: Row


MIN_USEFUL_TOKENS = 1024
_TENSOR_SIZES = (2, 4, 8, 16)
# Tried one after the other, the gentlest first.
_CHANGES: tuple[tuple[Role, str], ...] = (
    ("memory_ratio", "0.95"),
    ("kv_dtype", "fp8"),
    ("quantization", "fp8"),
    ("quantization", "awq"),
)


def suggestions(plan: Plan, rows: Sequence[Row]) -> tuple[Suggestion, ...]:
    """Where nothing fits: what would, by one change to the nearest row, and a shorter context where needed.

    Changes that keep the context come first, then those that leave the longest one.
    """
    near = [row for row in rows if row.room is not None]
    context = plan.context_setting
    if not near or context is None or any(row.outcome == "fits" for row in rows):
        return ()
    nearest = max(near, key=lambda row: row.room.low if row.room is not None else 0)
    longest = max(near, key=lambda row: row.longest_context_tokens or 0)
    found: list[Suggestion] = []
    if longest.longest_context_tokens:
        found += _changed(longest, {context: str(longest.longest_context_tokens)})
    for choices in _changes(plan, nearest):
        tries = [(change, _changed(nearest, change)) for change in choices]
        whole = next((made for _, made in tries if made), None)
        found += whole or _shortened(nearest, choices, context)
    return tuple(sorted(found, key=lambda one: -(one.row.context_tokens or 0)))


def _changes(plan: Plan, row: Row) -> Iterator[list[dict[str, str]]]:
    """Kinds of changes to try on a row; of each kind the first that fits is enough."""
    for role, value in _CHANGES:
        name = setting_of(plan.engine, role)
        if name is not None and row.scenario.settings.get(name) != value:
            yield [{name: value}]
    name = setting_of(plan.engine, "tensor_parallel")
    if name is not None and row.tensor_parallel is not None:
        yield [{name: str(size)} for size in _TENSOR_SIZES if size > row.tensor_parallel]
    yield [{GPU: name} for name in _larger_cards(row)]


def _changed(row: Row, change: Mapping[str, str]) -> list[Suggestion]:
    scenario = _with_change(row.scenario, change)
    try:
        changed = _row(row.model, row.chosen, scenario)
    except SettingError:
        return []
    return [Suggestion(change, changed)] if changed.outcome == "fits" else []


def _with_change(scenario: Scenario, change: Mapping[str, str]) -> Scenario:
    for name, value in change.items():
        scenario = replace(scenario, gpu=find_gpu(value)) if name == GPU else scenario.having(name, value)
    return scenario


def _shortened(row: Row, choices: Sequence[Mapping[str, str]], context: str) -> list[Suggestion]:
    """The change that leaves the longest context, where it leaves a useful one."""
    if not choices or GPU in choices[0]:
        return []
    lengths = [
        (longest_context(_with_change(row.scenario, change), context) or 0, change) for change in choices
    ]
    length, change = max(lengths, key=lambda pair: pair[0])
    if length <= max(row.longest_context_tokens or 0, MIN_USEFUL_TOKENS):
        return []
    return _changed(row, {**change, context: str(length)})


def _larger_cards(row: Row) -> list[str]:
    card = row.scenario.gpu
    if card is None or card.name not in GPUS:
        return []
    larger = [gpu for gpu in GPUS.values() if gpu.memory_bytes > card.memory_bytes]
    return [gpu.name for gpu in sorted(larger, key=lambda gpu: gpu.memory_bytes)]


# --- By context length


@dataclass(frozen=True, slots=True)
class Curve:
    """Rows of one combination of all that is swept but the context length, by rising length."""

    chosen: Mapping[str, str]
    rows: tuple[Row, ...]


def curves(plan: Plan, rows: Sequence[Row]) -> tuple[Curve, ...]:
    """The rows by context length. Where it is not swept, lengths that double up to the model's own.

    Rows that cannot be are left out. Raises FootprintError as check_curves does.
    """
    check_curves(plan)
    context = plan.context_setting or ""
    grouped: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in rows:
        rest = tuple((name, value) for name, value in row.chosen.items() if name != context)
        grouped.setdefault(rest, []).append(row)
    made = []
    for rest, listed in grouped.items():
        chosen = dict(rest)
        points = listed
        if context not in {sweep.name for sweep in plan.sweeps}:
            most = longest_of_model(listed[0].scenario)
            points = [plan.row({**chosen, context: str(length)}) for length in doubling_lengths(most)]
        seen = {row.context_tokens: row for row in points if row.context_tokens is not None}
        made.append(Curve(chosen, tuple(seen[length] for length in sorted(seen))))
    return tuple(made)


def doubling_lengths(most: int) -> tuple[int, ...]:
    """1024 tokens, each time twice as many, and the most."""
    lengths = []
    length = SHORTEST_CURVE_TOKENS
    while length < most:
        lengths.append(length)
        length *= 2
    return (*lengths, most)


def check_curves(plan: Plan) -> None:
    """Raise FootprintError where the plan gives no curves, or more than a picture can tell apart."""
    if plan.context_setting is None:
        raise FootprintError(f"--plot: the context length of {plan.engine} has no setting known here")
    if plan.gpu is None and not plan.cards:
        raise FootprintError("--plot needs a GPU; name it with --gpu or --sweep gpu=…")
    count = math.prod(len(sweep.values) for sweep in plan.sweeps if sweep.name != plan.context_setting)
    if count > MAX_CURVES:
        raise FootprintError(
            f"--plot: {count:,} curves cannot be told apart, at most {MAX_CURVES} are drawn; leave out values"
        )


# --- In words


def shown_value(row: Row, name: str) -> str:
    """The value of a sweep as people compare it: lengths in tokens, cards by their full names."""
    if name == GPU and row.scenario.gpu is not None:
        return row.scenario.gpu.name
    text = row.chosen.get(name, "")
    if name.endswith(("_len", "_length", "_tokens", "ctx_size")):
        with contextlib.suppress(ValueError):
            return units.format_count(units.parse_count(text))
    return text


def common_settings(plan: Plan, rows: Sequence[Row]) -> list[str]:
    """What all rows have in common: the model, the GPU, the engine, settings that do not vary."""
    swept = {sweep.name: sweep.values for sweep in plan.sweeps}
    said = [next(iter(plan.models))] if len(plan.models) == 1 else []
    card = rows[0].scenario.gpu if len(swept.get(GPU, ())) < 2 else None
    if card is not None:
        said.append(f"{card.name} ({units.format_bytes(card.visible_bytes.expected)} that CUDA shows)")
    if len(swept.get(ENGINE_VERSION, ())) < 2:
        said.append(f"{plan.engine} {rows[0].scenario.version or '(newest known version)'}")
    common = {**plan.settings, **{name: values[0] for name, values in swept.items() if len(values) == 1}}
    return said + [f"{name}={value}" for name, value in common.items() if name not in NOT_SETTINGS]
