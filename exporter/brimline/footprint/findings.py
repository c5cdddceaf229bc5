"""What was found out about a server's constants: a row for each, and the calibration that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from brimline.estimate import Estimate
from brimline.footprint.calibrated import server_settings
from brimline.footprint.calibration import Calibration, plain_settings
from brimline.footprint.constants import batch_defaults, parse_version
from brimline.footprint.gpus import Gpu
from brimline.footprint.predict import Model
from brimline.footprint.runtime import RuntimeSettings
from brimline.footprint.settings import Settings
from brimline.footprint.vllm_launch import VllmLaunch, vllm_launch
from brimline.footprint.weights import parameters, quantize
from brimline.readings import Footprint
from brimline.units import format_bytes

# The batch defaults of older versions than this are not known here.
_KNOWN_DEFAULTS_SINCE = (0, 9)

# Useless without the model that they belong to.
_NEED_MODEL = (
    "cuda_graphs_bytes", "cuda_graphs_estimate_bytes", "weights_bytes", "activation_bytes", "non_kv_bytes",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One constant, for people. measured: empty where it was not told; basis then says why, and the cure."""

    name: str
    measured: str = ""
    table: str = ""
    basis: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was found. calibration: None where nothing could be told; notes then say why.

    notes: what was taken for granted, and what is odd. comments: for the head of the file.
    """

    calibration: Calibration | None
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    comments: tuple[str, ...] = ()


def nothing(*reasons: str, findings: Sequence[Finding] = ()) -> Outcome:
    """No calibration, and why."""
    return Outcome(calibration=None, findings=tuple(findings), notes=reasons)


@dataclass(slots=True)
class Findings:
    """Collects constants, beside what the table says instead."""

    values: dict[str, int | float] = field(default_factory=dict)
    rows: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def told(self, name: str, size_bytes: int, error_bytes: int, table: str, basis: str) -> None:
        """A size that was measured, right within error_bytes."""
        error = f" ± {format_bytes(error_bytes)}" if error_bytes else ""
        self.values[name] = size_bytes
        self.rows.append(
            Finding(name=name, measured=f"{format_bytes(size_bytes)}{error}", table=table, basis=basis)
        )

    def told_factor(self, name: str, factor: float, error: float, table: str, basis: str) -> None:
        """A factor that was measured."""
        self.values[name] = round(factor, 4)
        self.rows.append(Finding(name=name, measured=f"{factor:.2f} ± {error:.2f}", table=table, basis=basis))

    def unknown(self, name: str, table: str, why: str) -> None:
        """A constant that was not told."""
        self.rows.append(Finding(name=name, table=table, basis=why))

    def outcome(
        self,
        head: Calibration,
        model: Model | None,
        footprint: Footprint | None,
        settings: Settings,
        comments: tuple[str, ...],
    ) -> Outcome:
        """The calibration of what was told. head: engine, version and GPU; footprint: what was predicted."""
        values: dict[str, Any] = dict(self.values)
        if model is None:
            lost = [name for name in _NEED_MODEL if values.pop(name, None) is not None]
            if lost:
                self.notes.append(
                    f"{', '.join(lost)}: not written, since they are of one model only; name MODEL."
                )
        if set(values) <= {"visible_bytes"}:
            return nothing(*(self.notes or ["none of the constants could be told"]), findings=self.rows)
        calibration = replace(
            head,
            parameters=_parameters(model, footprint),
            settings=_stated_settings(head.engine, model, settings),
            **values,
        )
        return Outcome(
            calibration=calibration, findings=tuple(self.rows), notes=tuple(self.notes), comments=comments
        )


def _parameters(model: Model | None, footprint: Footprint | None) -> int | None:
    if footprint is not None:
        return footprint.parameters
    return None if model is None else parameters(model.architecture)


def _stated_settings(engine: str, model: Model | None, settings: Settings) -> tuple[tuple[str, str], ...]:
    """The settings to write: those that decide what of the calibration holds elsewhere."""
    if engine != "vllm":
        return plain_settings(settings)
    launch = launch_of(settings)
    if model is None or launch.max_num_seqs is None or launch.max_num_batched_tokens is None:
        names = ("pipeline_parallel_size", "tensor_parallel_size")
        return plain_settings({name: getattr(launch, name) for name in names})
    architecture = model.architecture
    if launch.quantization is not None and architecture.quantization is None:
        architecture = quantize(architecture, launch.quantization)
    stated = server_settings(
        launch,
        architecture,
        max_num_seqs=launch.max_num_seqs,
        max_num_batched_tokens=launch.max_num_batched_tokens,
        max_model_len=launch.max_model_len or architecture.max_position,
    )
    return plain_settings(stated)


def launch_of(settings: Settings) -> VllmLaunch:
    """vLLM's flags in settings that may also name the model. Raises FootprintError naming the flag."""
    return vllm_launch(predictable(settings))


def predictable(settings: Settings) -> dict[str, str]:
    """The settings without the model's own name, which is no setting to predict by."""
    return {name: value for name, value in settings.items() if name != "model"}


def filled_batch(settings: Settings, gpu: Gpu, version: str, notes: list[str]) -> dict[str, str]:
    """The settings with vLLM's batch defaults where nothing says them, as far as the version's are known."""
    filled = dict(settings)
    missing = [name for name in ("max_num_seqs", "max_num_batched_tokens") if name not in settings]
    if missing and parse_version(version) >= _KNOWN_DEFAULTS_SINCE:
        defaults = batch_defaults(gpu.memory_bytes, gpu.name)
        filled |= {name: str(getattr(defaults, name)) for name in missing}
        said = ", ".join(f"{name} {filled[name]}" for name in missing)
        notes.append(f"{said}: vLLM's default on {gpu.name} is taken, since nothing says otherwise.")
    return filled


def vllm_runtime(version: str, gpu: Gpu, launch: VllmLaunch) -> RuntimeSettings:
    """What the table of constants is asked by."""
    return RuntimeSettings(
        engine="vllm",
        version=version,
        gpu=gpu.name,
        world_size=launch.tensor_parallel_size * launch.pipeline_parallel_size,
        graphs=launch.captures_graphs,
    )


def span(estimate: Estimate) -> str:
    """`51.20 MiB – 256.00 MiB – 471.04 MiB`; one size where the bounds leave no room."""
    if estimate.is_exact:
        return format_bytes(estimate.expected)
    return " – ".join(map(format_bytes, (estimate.low, estimate.expected, estimate.high)))
