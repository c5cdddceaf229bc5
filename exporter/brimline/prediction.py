"""The prediction of a running server: from what it says of itself, then its model's files, then its flags.

The predictor is imported when the first server with a known model is seen, so that an exporter without one
stays small.
"""

from __future__ import annotations

import asyncio
import filecmp
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from brimline.errors import FootprintError
from brimline.files import NotARegularFile, open_regular
from brimline.readings import DeviceReading, Footprint
from brimline.threads import in_daemon_thread

# What may say beside config.json how the weights are quantized (footprint/hf_config.py, imported later).
_QUANTIZATION = "hf_quant_config.json"

# Reserved memory that differs by less than this does not make another GPU of it.
_RESERVED_STEP = 16 << 20


# A thousand servers found at once must not compute at once beside the scrape that waits for them. Files are
# read outside of it: a file system that hangs holds up its own server only.
_COMPUTING = threading.BoundedSemaphore(2)
# Servers that are found in one round, which the first of them may delay.
SHARED_FOR = 2.0


class ModelError(FootprintError):
    """The model's files cannot be read."""


class CalibrationError(FootprintError):
    """The calibration file cannot be used."""


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU as NVML describes it. reserved_bytes: None with memory API v1."""

    name: str
    total_bytes: int
    reserved_bytes: int | None

    @property
    def visible_bytes(self) -> int:
        """What CUDA shows of it; with memory API v1 no less than that."""
        return self.total_bytes - (self.reserved_bytes or 0)


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """All that a prediction depends on. start: tells one start of the server from the next."""

    engine: str
    version: str | None
    model: Path
    settings: tuple[tuple[str, str], ...]
    card: Card | None
    calibration: Path | None
    start: object


def smallest_card(devices: list[DeviceReading]) -> Card | None:
    """The card that fills first among a server's GPUs; None where none could be read."""
    cards = [
        Card(
            device.name or "GPU",
            device.total_bytes,
            None if device.reserved_bytes is None else _rounded(device.reserved_bytes),
        )
        for device in devices
        if device.total_bytes is not None
    ]
    return min(cards, key=lambda card: card.visible_bytes, default=None)


def _rounded(reserved_bytes: int) -> int:
    return -(-reserved_bytes // _RESERVED_STEP) * _RESERVED_STEP


def is_readable(model: Path) -> bool:
    """True where a model's files can be read here. Reads files: not for the event loop."""
    try:
        with open_regular(_description(model)):
            return True
    except (OSError, NotARegularFile):
        return False


def is_same(model: Path, other: Path) -> bool:
    """True where two models, both readable or not, are described by the same file or by copies of it."""
    first, second = _description(model), _description(other)
    try:
        if first.samefile(second):
            return True
        return (
            first.name.endswith(".json")
            and filecmp.cmp(first, second, shallow=False)
            and _are_alike(first.with_name(_QUANTIZATION), second.with_name(_QUANTIZATION))
        )
    except OSError:
        return False


def _are_alike(first: Path, second: Path) -> bool:
    """True for copies of one file, and where neither is there."""
    if first.exists() and second.exists():
        return filecmp.cmp(first, second, shallow=False)
    return first.exists() == second.exists()


def _description(model: Path) -> Path:
    """The file that describes a model."""
    return model / "config.json" if model.is_dir() else model


def answer(question: Question) -> Footprint:
    """The footprint. Reads files and computes: not for the event loop. Raises FootprintError."""
    from brimline.footprint.calibration import read_calibration
    from brimline.footprint.gpus import live_gpu
    from brimline.footprint.predict import predict, read_model

    card = question.card
    gpu = None if card is None else live_gpu(card.name, card.total_bytes, card.reserved_bytes)
    calibration = None
    if question.calibration is not None:
        try:
            calibration = read_calibration(question.calibration)
        except FootprintError as error:
            raise CalibrationError(str(error)) from None
    try:
        model = read_model(question.model)
    except (FootprintError, OSError, ValueError) as error:
        raise ModelError(str(error)) from None
    with _COMPUTING:
        return predict(
            question.engine,
            model,
            dict(question.settings),
            version=release(question.version),
            gpu=gpu,
            calibration=calibration,
        )


def release(text: str | None) -> str | None:
    """A release; None for a build from a checkout (`0.1.dev1234+g…`), which counts as the newest."""
    if text is None or not text.lstrip("vVb")[:1].isdigit() or ("dev" in text and text.startswith("0.1.")):
        return None
    return text


class Answers:
    """Works out what several servers ask alike once: a thousand replicas are one question.

    Only what is asked within SHARED_FOR of each other is shared, so that a server which starts with other
    files than its replicas is predicted from those.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._recent: dict[Question, tuple[float, asyncio.Future[Footprint]]] = {}

    def to(self, question: Question) -> asyncio.Future[Footprint]:
        """The answer, which comes from a thread of its own."""
        now = self._monotonic()
        self._recent = {q: each for q, each in self._recent.items() if now - each[0] < SHARED_FOR}
        alike = msgspec.structs.replace(question, start=None)
        known = self._recent.get(alike)
        if known is None or (known[1].done() and known[1].exception() is not None):
            self._recent[alike] = now, in_daemon_thread(lambda: answer(question), "prediction")
        return self._recent[alike][1]


class Prediction:
    """The answer to the latest question, worked out in a thread of its own and kept.

    Rounds never wait longer than `patience`; a failure is looked into again after `retry_after`, because the
    model may be mounted later. While a server that restarted is looked at anew, nothing old is given.
    """

    def __init__(
        self, answers: Answers, *, monotonic: Callable[[], float], patience: float, retry_after: float
    ) -> None:
        self._answers = answers
        self._monotonic = monotonic
        self._patience = patience
        self._retry_after = retry_after
        self._question: Question | None = None
        self._asked_at = 0.0
        self._future: asyncio.Future[Footprint] | None = None

    @property
    def is_pending(self) -> bool:
        """True while an answer is being worked out."""
        return self._future is not None and not self._future.done()

    async def ask(self, question: Question) -> Footprint | None:
        """The footprint; None where it is still being worked out. Raises what `answer` raises."""
        is_new = self._future is None or question != self._question
        if self._future is None or is_new:
            self._question = question
            self._asked_at = self._monotonic()
            self._future = self._answers.to(question)
        future = self._future
        if not future.done():
            # Only the first round waits for long: files that hang must not slow every scrape.
            await asyncio.wait([future], timeout=self._patience if is_new else self._patience / 10)
        if not future.done():
            return None
        if future.exception() is not None and self._monotonic() - self._asked_at > self._retry_after:
            self._future = None
        return future.result()
