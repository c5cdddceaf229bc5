"""What one server measured at its start, kept in a YAML file and used instead of constants.

Every field but engine, version and GPU is optional. What a measurement holds for differs:

- of the engine, version and GPU: `sampler_bytes_factor`, for any model and batch; `visible_bytes`, under the
  driver that was there;
- and for as many GPUs working together: `non_torch_bytes` and `context_bytes`;
- and for the same model: `cuda_graphs_bytes`;
- and for the same launch settings: `weights_bytes`, `activation_bytes`, `cuda_graphs_estimate_bytes` and
  `non_kv_bytes`. These are of this server, and give its K/V pool again to within a block.

`non_kv_bytes` is what a running vLLM tells without its log: its budget less its pool, which is weights,
activation peak, library memory and (since 0.21) the estimate of CUDA graphs together. One sum does not tell
its parts; they are shared out by the table where they are shown (see calibrated.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from brimline.errors import FootprintError
from brimline.files import NotARegularFile, open_regular
from brimline.footprint.constants import parse_version
from brimline.footprint.gpus import find_gpu
from brimline.spelling import known_names

MAX_FILE_BYTES = 1 << 16

# How many GPUs work together, by the flags of the engines.
_PARALLEL = (
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "tp_size", "pp_size", "dp_size",
)  # fmt: skip
_OF_PARALLEL = ("non_torch_bytes", "context_bytes", "context_high_bytes")
_OF_MODEL = ("cuda_graphs_bytes",)
_OF_SERVER = ("cuda_graphs_estimate_bytes", "weights_bytes", "activation_bytes", "non_kv_bytes")
# Those that move the sum by little (see calibrated.py), and are named without spoiling it.
LOOSE_SETTINGS = ("max_model_len", "kv_cache_dtype")


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was measured on one server, of its fullest GPU rank; None for what was not.

    parameters: of the model that ran, as its config.json counts them. settings: the launch settings that it
    ran with and that decide memory, by the engine's own names; empty where they are not said, which lets all
    of it hold for any settings.
    visible_bytes: what CUDA shows of the GPU.
    sampler_bytes_factor: bytes of the sampler's working set over 4 * max_num_seqs * vocabulary.
    non_torch_bytes: of CUDA libraries, within the engine's budget.
    context_bytes: of the CUDA context, NCCL and library handles, outside the engine's budget.
    context_high_bytes: where context_bytes is the least that it can be, the most.
    cuda_graphs_bytes: as captured; cuda_graphs_estimate_bytes: as the budget counts them.
    activation_bytes: the peak of the profile run, without graphs.
    non_kv_bytes: all of the budget that is not the K/V pool.
    """

    engine: str
    version: str
    gpu: str
    parameters: int | None = None
    settings: tuple[tuple[str, str], ...] = ()
    visible_bytes: int | None = None
    sampler_bytes_factor: float | None = None
    non_torch_bytes: int | None = None
    context_bytes: int | None = None
    context_high_bytes: int | None = None
    cuda_graphs_bytes: int | None = None
    cuda_graphs_estimate_bytes: int | None = None
    weights_bytes: int | None = None
    activation_bytes: int | None = None
    non_kv_bytes: int | None = None

    def holds_for(self, engine: str, version: str | None, gpu: str) -> bool:
        """True for the engine, the version up to its patch level, and the kind of GPU that were measured.

        What a simulated server said holds for simulated ones only.
        """
        return (
            version is not None
            and engine == self.engine
            and parse_version(version)[:2] == parse_version(self.version)[:2]
            and ("simulated" in version) == ("simulated" in self.version)
            and same_gpu(gpu, self.gpu)
        )

    def applied(
        self,
        *,
        engine: str,
        version: str | None,
        gpu: str,
        parameters: int | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> tuple[Calibration | None, tuple[str, ...]]:
        """The calibration with only what holds for a server, and what is left out of it, a sentence each.

        None where nothing holds. settings: those of `server_settings`; None where they are not to be
        compared. A setting that either side does not state is no difference.
        """
        if not self.holds_for(engine, version, gpu):
            return None, (
                f"The calibration is of {self.engine} {self.version} on {self.gpu}, and is not used here.",
            )
        given = settings or {}
        differing = [
            f"{name} {value} (here {given[name]})"
            for name, value in self.settings
            if name not in LOOSE_SETTINGS and name in given and given[name] != value
        ]
        other_parallel = any(difference.split()[0] in _PARALLEL for difference in differing)
        other_model = None not in (self.parameters, parameters) and self.parameters != parameters
        if other_model:
            differing.insert(0, f"a model of {self.parameters:,} parameters (here {parameters:,})")
        if not differing:
            return self, ()
        dropped = [*_OF_SERVER]
        if other_model or other_parallel:
            dropped += _OF_MODEL
        if other_parallel:
            dropped += _OF_PARALLEL
        lost = [name for name in dropped if getattr(self, name) is not None]
        nothing: dict[str, Any] = dict.fromkeys(dropped)
        left = replace(self, **nothing)
        said = f"The calibration is of a server with {', '.join(differing)}"
        return left, (f"{said}: its {', '.join(lost)} are not used.",) if lost else ()

    def setting(self, name: str) -> str | None:
        """A launch setting of the server that was measured; None where it is not said."""
        return dict(self.settings).get(name)

    @property
    def unused(self) -> str:
        """A sentence for a server that the calibration does not hold for."""
        return f"The calibration is of {self.engine} {self.version} on {self.gpu}, and is not used here."

    def is_whole(self, *, graphs: bool) -> bool:
        """True where nothing is left to the tables; graphs: whether the server captures CUDA graphs."""
        if self.context_bytes is None:
            return False
        if self.non_kv_bytes is not None:
            return True
        wanted = [self.sampler_bytes_factor, self.non_torch_bytes]
        if graphs:
            wanted.append(self.cuda_graphs_bytes)
        return all(measured is not None for measured in wanted)


def same_gpu(one: str, other: str) -> bool:
    """True where two names, of people or of NVML, mean one kind of GPU; unknown ones compare as text."""
    try:
        return find_gpu(one).name == find_gpu(other).name
    except FootprintError:
        return one.lower().split() == other.lower().split()


_TEXTS = ("engine", "version", "gpu")
_KEYS = tuple(field.name for field in fields(Calibration))
_BYTES = tuple(name for name in _KEYS if name.endswith("_bytes"))


def parse_calibration(text: str, name: str = "calibration.yaml") -> Calibration:
    """A calibration from the text of its file; `name` stands in the error messages. Raises FootprintError."""
    # Imported late: a prediction without a calibration needs no YAML.
    from brimline.footprint.strict_yaml import NotStrictYamlError, strict_yaml

    try:
        plain = strict_yaml(text)
    except NotStrictYamlError as error:
        line = "" if error.line is None else f":{error.line}"
        raise FootprintError(f"{name}{line}: {error}; write `key: value` lines") from None
    if not isinstance(plain, dict):
        raise FootprintError(f"{name}: holds no mapping; write `key: value` lines")
    for key in plain:
        if key not in _KEYS:
            raise FootprintError(f"{name}: unknown key {key!r}; {known_names(key, _KEYS)}")
    for key in _TEXTS:
        if not isinstance(plain.get(key), str) or not plain[key].strip():
            raise FootprintError(f"{name}: {key} is no text; write it in quotes, such as {key}: '0.32.0'")
    parse_version(plain["version"])
    for key in (*_BYTES, "parameters"):
        value = plain.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            what = "a whole number" if key == "parameters" else "whole bytes"
            raise FootprintError(f"{name}: {key} is {value!r}; write {what}, zero or more")
    factor = plain.get("sampler_bytes_factor")
    if factor is not None and (
        isinstance(factor, bool)
        or not isinstance(factor, int | float)
        or not math.isfinite(factor)
        or not 0 < factor <= 1000
    ):
        raise FootprintError(f"{name}: sampler_bytes_factor is {factor!r}; write a number above 0")
    plain["settings"] = _settings(plain.get("settings"), name)
    made = Calibration(**plain)
    _refuse_contradictions(made, name)
    return made


def _settings(stated: Any, name: str) -> tuple[tuple[str, str], ...]:
    if stated is None:
        return ()
    if not isinstance(stated, dict) or not all(isinstance(key, str) for key in stated):
        raise FootprintError(f"{name}: settings is {stated!r}; write a mapping of launch settings")
    for key, value in stated.items():
        if not isinstance(value, str | int | float):
            raise FootprintError(f"{name}: settings.{key} is {value!r}; write text, a number, true or false")
    return plain_settings(stated)


def plain_settings(settings: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    """Launch settings as text, sorted by name; what is None is left out."""
    return tuple(
        (name, str(value).lower() if isinstance(value, bool) else str(value))
        for name, value in sorted(settings.items())
        if value is not None
    )


def _refuse_contradictions(made: Calibration, name: str) -> None:
    """Refuse parts that are larger than what they are a part of."""
    for part, whole in (
        ("context_bytes", "context_high_bytes"),
        ("weights_bytes", "non_kv_bytes"),
        ("non_kv_bytes", "visible_bytes"),
    ):
        small, large = getattr(made, part), getattr(made, whole)
        if small is not None and large is not None and small > large:
            raise FootprintError(
                f"{name}: {part} ({small}) is more than {whole} ({large}), of which it is a part"
            )
    if made.context_high_bytes is not None and made.context_bytes is None:
        raise FootprintError(f"{name}: context_high_bytes stands without context_bytes; write both")


def read_calibration(path: Path) -> Calibration:
    """The calibration in a file. Raises FootprintError."""
    try:
        with open_regular(path) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except NotARegularFile:
        raise FootprintError(f"{path} is not a regular file; name a YAML file") from None
    except OSError as error:
        raise FootprintError(f"{path} cannot be read ({error.strerror})") from None
    if len(content) > MAX_FILE_BYTES:
        raise FootprintError(f"{path} is too large for a calibration; it has a dozen lines")
    try:
        return parse_calibration(content.decode(), str(path))
    except UnicodeDecodeError:
        raise FootprintError(f"{path} is not UTF-8 text") from None


def format_calibration(calibration: Calibration, comments: Iterable[str] = ()) -> str:
    """The text of a calibration's file, comments first; what was not measured is left out."""
    stated: dict[str, Any] = {
        key: getattr(calibration, key) for key in _KEYS if getattr(calibration, key) not in (None, ())
    }
    if "settings" in stated:
        stated["settings"] = {name: _unquoted(value) for name, value in calibration.settings}
    heads = ("Measured on one server; see `brimline calibrate`.", *comments)
    lines = [f"# {line}" for comment in heads for line in comment.splitlines()]
    import yaml  # as above

    text: str = yaml.safe_dump(stated, sort_keys=False)
    return "\n".join([*lines, text])


def _unquoted(text: str) -> str | int | bool:
    """The number or truth value that a setting's text stands for, where it is written so and no other way."""
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.isascii() and text.isdigit() and str(int(text)) == text else text


def sampler_bytes_factor(
    activation_bytes: int,
    *,
    vocabulary: int,
    max_num_seqs: int,
    hidden: int,
    max_num_batched_tokens: int,
    element_bytes: int = 2,
) -> float:
    """The sampler's factor that a measured activation peak means, for a model without experts.

    The inverse of activations.sampler_bytes: what is left beside the hidden states of all batched tokens,
    over 4 * max_num_seqs * vocabulary. It says something of the sampler only where the sampler is the peak.
    Raises FootprintError where nothing is left.
    """
    left = activation_bytes - max_num_batched_tokens * hidden * element_bytes
    if left <= 0:
        raise FootprintError("the activation peak is below the hidden states; check the batch settings")
    return left / (4 * min(max_num_seqs, max_num_batched_tokens) * vocabulary)
