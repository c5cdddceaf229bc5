"""The process that works predictions out for the planning page: `python -m brimline.footprint.worker`.

A process of its own, because what a model's config.json makes it compute may take long, and cannot be stopped
in a thread. It answers one question
after the other, each within limits of processor time and memory that the kernel keeps, and ends when its
standard input does.

Frames in both directions: 4 bytes of length, big-endian, then JSON; answers begin with a byte that says what
they are (see Kind).
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import resource
import struct
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from brimline.errors import FootprintError
from brimline.files import without_folders
from brimline.footprint.calibration import read_calibration
from brimline.footprint.config_file import parse_config
from brimline.footprint.controls import control_of
from brimline.footprint.gpus import Gpu, described_gpu, find_gpu, live_gpu
from brimline.footprint.hf_config import QUANTIZATION_FILE, architecture_of_config
from brimline.footprint.predict import Model, read_model
from brimline.footprint.what_if import Scenario, Surroundings, surroundings, what_if_json
from brimline.units import parse_bytes

# Address space, of which a Python that has read the headers of a large model needs the half.
MAX_MEMORY_BYTES = 512 << 20
# Of processor time for one question; whoever asks gives up before.
MAX_SECONDS = 10.0
MAX_QUESTION_BYTES = 9 << 20
DROPPED = "config.json"  # what a file from the browser is called in messages

_LENGTH = struct.Struct(">I")


class Kind(Enum):
    """What an answer is: a prediction, what the user should correct, or a defect of ours."""

    PREDICTION = b"="
    REFUSAL = b"!"
    DEFECT = b"*"


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A GPU as NVML describes it."""

    name: str
    total_bytes: int
    reserved_bytes: int | None = None


class GpuQuestion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of: a name of the table, memory and bandwidth as people write them, a card of this machine."""

    name: str | None = None
    memory: str | None = None
    terabytes_per_second: float | None = None
    card: Card | None = None


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A server to be predicted.

    path: of a model on this machine; config: the text of a config.json instead. seconds: how long the curve
    may take.
    """

    engine: str
    settings: dict[str, str]
    path: str | None = None
    config: str | None = None
    version: str | None = None
    gpu: GpuQuestion | None = None
    calibration: str | None = None
    seconds: float = 2.0


@dataclass(slots=True)
class Memory:
    """What the last question left behind, so that moving a slider reads nothing twice."""

    model_key: object = None
    model: Model | None = None
    around_key: object = None
    around: Surroundings | None = None

    def forget(self) -> None:
        self.model_key = self.model = self.around_key = self.around = None


def answer(content: bytes, memory: Memory) -> bytes:
    """The answer to a question, its kind first. Never raises but for what ends the process.

    It is for a browser, which is told no folders of this machine.
    """
    known: tuple[str, ...] = ()
    try:
        question = msgspec.json.decode(content, type=Question)
        known = tuple(path for path in (question.path, question.calibration) if path is not None)
        shown = _without_folders(_predicted(question, memory), known)
        return Kind.PREDICTION.value + msgspec.json.encode(shown)
    except FootprintError as error:
        return _said(Kind.REFUSAL, without_folders(str(error), *known))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _said(Kind.REFUSAL, f"the question is not understood: {error}")
    except RecursionError:
        return _said(Kind.REFUSAL, "the model's settings are nested too deeply")
    except MemoryError:
        memory.forget()
        return _said(Kind.REFUSAL, "the model's settings need more memory to read than this page may take")
    except Exception as error:  # noqa: BLE001 - a defect here must not end the process
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        said = without_folders(str(error)[:200], *known)
        return _said(Kind.DEFECT, f"{type(error).__name__}: {said} ({where})")


def _without_folders(document: Any, known: Sequence[str]) -> Any:
    """The document with its texts as a browser may see them."""
    match document:
        case str():
            return without_folders(document, *known) if "/" in document else document
        case dict():
            return {key: _without_folders(value, known) for key, value in document.items()}
        case list() | tuple():
            return [_without_folders(value, known) for value in document]
        case _:
            return document


def _said(kind: Kind, text: str) -> bytes:
    return kind.value + msgspec.json.encode(text[:4000])


def _predicted(question: Question, memory: Memory) -> object:
    model_key, model = _model(question, memory)
    context = control_of(question.engine, "context")
    settings = {name: value for name, value in question.settings.items() if value != ""}
    scenario = Scenario(
        model=model,
        engine=question.engine,
        settings=settings,
        version=question.version,
        gpu=_gpu(question.gpu),
        calibration=None if question.calibration is None else read_calibration(Path(question.calibration)),
    )
    footprint = scenario.footprint()
    fixed = {name: value for name, value in settings.items() if context is None or name != context.name}
    around_key = (
        model_key, question.engine, tuple(sorted(fixed.items())), question.version, scenario.gpu,
        question.calibration,
    )  # fmt: skip
    around = memory.around if memory.around_key == around_key else None
    if around is None:
        around = surroundings(scenario, seconds=question.seconds)
        memory.around_key, memory.around = around_key, around
    return what_if_json(scenario, footprint, around)


def _model(question: Question, memory: Memory) -> tuple[object, Model]:
    """The model, read anew only where it is another one or its config.json has changed."""
    key: object
    if question.config is not None:
        key = hashlib.sha256(question.config.encode("utf-8", "surrogatepass")).digest()
    elif question.path is not None:
        key = (question.path, _stamp(Path(question.path)))
    else:
        raise FootprintError("no model is named")
    if memory.model is None or memory.model_key != key:
        memory.forget()
        if question.config is not None:
            settings = parse_config(question.config, DROPPED)
            model = Model(architecture_of_config(settings, DROPPED), None, settings)
        else:
            model = _read(Path(question.path or ""))
        memory.model_key, memory.model = key, model
    return key, memory.model


def _read(path: Path) -> Model:
    try:
        return read_model(path)
    except OSError as error:
        raise FootprintError(f"{path} cannot be read ({error.strerror})") from None


def _stamp(path: Path) -> tuple[tuple[int, int] | None, ...]:
    """Tells a model's files from those that they are replaced by."""
    file = path / "config.json" if path.is_dir() else path
    return tuple(map(_stamp_of_file, (file, file.with_name(QUANTIZATION_FILE))))


def _stamp_of_file(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _gpu(asked: GpuQuestion | None) -> Gpu | None:
    if asked is None:
        return None
    if asked.card is not None:
        return live_gpu(asked.card.name, asked.card.total_bytes, asked.card.reserved_bytes)
    if asked.name is not None:
        return find_gpu(asked.name)
    if asked.memory is None or asked.terabytes_per_second is None:
        raise FootprintError("a described GPU needs its memory, such as 96GiB, and its bandwidth in TB/s")
    try:
        size = parse_bytes(asked.memory)
    except ValueError as error:
        raise FootprintError(f"the GPU's memory: {error}") from None
    if not math.isfinite(asked.terabytes_per_second):
        raise FootprintError("the GPU's bandwidth is not a number; write it in TB/s, such as 3.35")
    return described_gpu(size, asked.terabytes_per_second * 1e12)


# --- the process ---


def read_frame(stream: BinaryIO) -> bytes | None:
    """The next question; None at the end. Raises ValueError for one that is too long."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > MAX_QUESTION_BYTES:
        raise ValueError(f"a question of {length} bytes is too long")
    content = stream.read(length)
    return content if len(content) == length else None


def frame(content: bytes) -> bytes:
    """The content with its length in front."""
    return _LENGTH.pack(len(content)) + content


def _limit_this_process(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # a lower limit is in force already
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    with contextlib.suppress(OSError):
        os.nice(10)  # scrapes go first
    # Where memory runs out this process goes, not the exporter.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("800")


def _limit_processor_seconds(seconds: float) -> None:
    """Have the kernel end this process should a question take longer; its parent may be gone by then."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(used + seconds)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def main() -> None:
    """Answer questions until there are no more."""
    _limit_this_process(MAX_MEMORY_BYTES)
    # Whatever prints by mistake must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    memory = Memory()
    while (content := read_frame(sys.stdin.buffer)) is not None:
        _limit_processor_seconds(MAX_SECONDS)
        answers.write(frame(answer(content, memory)))
        answers.flush()


if __name__ == "__main__":
    main()
