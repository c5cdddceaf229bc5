"""METRICS: every family that is exported, defined once.

A published name is frozen. Help strings end with when a series is absent. Units are in the names: bytes,
seconds, tokens, blocks, ratio (0 to 1).
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

import msgspec

from brimline import __version__
from brimline.estimate import Estimate, total
from brimline.readings import (
    COMPONENTS,
    GPU_REASONS,
    PARTS,
    TARGET_REASONS,
    DeviceReading,
    DiscoveryReading,
    Footprint,
    Histogram,
    RankReading,
    Snapshot,
    TargetSnapshot,
)

PREFIX = "brimline_"

Kind = Literal["gauge", "counter", "histogram"]
Labels = tuple[str, ...]


class Sums(msgspec.Struct, frozen=True):
    """A histogram of which only the sum and the count are passed on."""

    sum: float
    count: float


Value = float | Histogram | Sums
Row = tuple[Labels, Value]
Parts = Mapping[str, Estimate]


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Things of a snapshot that many families tell something of, such as the ranks of all servers.

    labels: names of the label values that come with each of them. is_lasting: they are the same things for
    many snapshots, so that it pays to look whether they are.
    """

    labels: Labels
    things: Callable[[Snapshot], Iterable[tuple[Labels, Any]]]
    is_lasting: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """What a family has in a table. value: of one thing, or the name of its field; None where it has none.

    is_number: it is the number of the family's row; else it is all that rows of that thing are made of.
    """

    table: Table
    value: str | Callable[[Any], object]
    is_number: bool = True


@dataclass(frozen=True, slots=True)
class Family:
    """One exported family. rows: pairs of label values and a value, from a snapshot.

    column: the same in a table, which is read at once for all families that share it; equal columns have
    equal rows, which need not be made to know that.
    """

    name: str
    kind: Kind
    help: str
    labels: Labels
    rows: Callable[[Snapshot], Iterable[Row]]
    group: str
    column: Column | None = None

    @property
    def full_name(self) -> str:
        """The name as it is scraped; a histogram's without its suffixes."""
        return PREFIX + self.name


# --- where rows come from ---


def _in_column(
    name: str,
    help_: str,
    table: Table,
    value: str | Callable[[Any], float | bool | None],
    *,
    kind: Kind = "gauge",
    group: str,
) -> Family:
    """A family of one number for each thing of a table."""
    value_of = attrgetter(value) if isinstance(value, str) else value

    def rows(snapshot: Snapshot) -> Iterator[Row]:
        for labels, thing in table.things(snapshot):
            said = value_of(thing)
            if said is not None:
                yield labels, float(said)

    return Family(name, kind, help_, table.labels, rows, group, Column(table, value))


_THIS = Table((), lambda snapshot: [((), snapshot)])
_SOURCES = Table(("source",), lambda snapshot: [((each.source,), each) for each in snapshot.discovery])
_TARGETS = Table(("target",), lambda snapshot: [((target.name,), target) for target in snapshot.targets])
_RANKS = Table(
    ("target", "model", "rank"),
    lambda snapshot: [((target.name, rank.model, rank.rank), rank) for target, rank in _ranks(snapshot)],
)
_DEVICES = Table(("gpu",), lambda snapshot: [((device.uuid,), device) for device in snapshot.gpu.devices])
# A footprint stays the same one while its question does.
_FOOTPRINTS = Table(
    ("target",),
    lambda snapshot: [((target.name,), footprint) for target, footprint in _footprints(snapshot)],
    is_lasting=True,
)


def _exporter(
    name: str,
    help_: str,
    value: str | Callable[[Snapshot], float | bool | None],
    group: str = "exporter",
) -> Family:
    """A family of one number without labels."""
    return _in_column(name, help_, _THIS, value, group=group)


def _discovery(
    name: str, help_: str, value: str | Callable[[DiscoveryReading], float | None], kind: Kind = "gauge"
) -> Family:
    help_ = f"{help_} source: files, kubernetes. Absent where it is not used."
    return _in_column(name, help_, _SOURCES, value, kind=kind, group="exporter")


def _target(
    name: str,
    help_: str,
    value: str | Callable[[TargetSnapshot], float | bool | None],
    *,
    kind: Kind = "gauge",
    group: str = "health",
) -> Family:
    return _in_column(name, help_, _TARGETS, value, kind=kind, group=group)


def _target_rows(
    name: str,
    help_: str,
    labels: Labels,
    value: Callable[[TargetSnapshot], Iterable[Row]],
    *,
    kind: Kind = "gauge",
    group: str = "health",
    of: str | None = None,
) -> Family:
    """A family of several rows for each target. of: the field that they are made of, where it is only one."""

    def rows(snapshot: Snapshot) -> Iterator[Row]:
        for target in snapshot.targets:
            for rest, said in value(target):
                yield (target.name, *rest), said

    column = Column(_TARGETS, of or (lambda target: list(value(target))), is_number=False)
    return Family(name, kind, help_, ("target", *labels), rows, group, column)


def _of_snapshot(
    name: str, help_: str, labels: Labels, rows: Callable[[Snapshot], Iterable[Row]], of: str, group: str
) -> Family:
    """A family of several rows. of: the field of a snapshot that they are made of."""
    return Family(name, "gauge", help_, labels, rows, group, Column(_THIS, of, is_number=False))


def _of_devices(
    name: str,
    help_: str,
    labels: Labels,
    row: Callable[[DeviceReading], tuple[Labels, float] | None],
    group: str,
) -> Family:
    """A family of one row for each GPU, with labels beside its own."""

    def rows(snapshot: Snapshot) -> Iterator[Row]:
        return (said for device in snapshot.gpu.devices if (said := row(device)) is not None)

    return Family(name, "gauge", help_, labels, rows, group, Column(_DEVICES, row, is_number=False))


def _ranks(snapshot: Snapshot) -> Iterator[tuple[TargetSnapshot, RankReading]]:
    for target in snapshot.targets:
        if target.reading is not None:
            for rank in target.reading.ranks:
                yield target, rank


def _rank(name: str, help_: str, *, kind: Kind = "gauge", group: str = "load") -> Family:
    """A family of one number for each rank, read from the RankReading's field of the same name."""
    return _in_column(name, help_, _RANKS, name, kind=kind, group=group)


def _rank_by(
    name: str, help_: str, *, kind: Kind = "gauge", label: str = "reason", group: str = "load"
) -> Family:
    """A family of one number for each rank and reason, or another label."""

    def rows(snapshot: Snapshot) -> Iterator[Row]:
        for labels, rank in _RANKS.things(snapshot):
            said: Mapping[str, float] | None = getattr(rank, name)
            for reason, value in (said or {}).items():
                yield (*labels, reason), value

    column = Column(_RANKS, name, is_number=False)
    return Family(name, kind, help_, (*_RANKS.labels, label), rows, group, column)


def _rank_histogram(name: str, help_: str) -> Family:
    def rows(snapshot: Snapshot) -> Iterator[Row]:
        for target, rank in _ranks(snapshot):
            said: Histogram | None = getattr(rank, name)
            if said is None or target.histograms == "none":
                continue
            labels = (target.name, rank.model, rank.rank)
            if target.histograms == "full" and said.buckets:
                yield labels, said
            else:
                yield labels, Sums(said.sum, said.count)

    column = Column(_RANKS, name, is_number=False)
    return Family(name, "histogram", help_, _RANKS.labels, rows, "load", column)


def _gpu(
    name: str, help_: str, value: str | Callable[[DeviceReading], float | bool | None], group: str = "gpu"
) -> Family:
    return _in_column(name, help_, _DEVICES, value, group=group)


def _footprints(snapshot: Snapshot) -> Iterator[tuple[TargetSnapshot, Footprint]]:
    for target in snapshot.targets:
        if target.footprint is not None:
            yield target, target.footprint


def _predicted(name: str, help_: str, value: str | Callable[[Footprint], float | bool | None]) -> Family:
    """A family of one number for each target whose memory is predicted."""
    return _in_column(name, f"{help_} {_NOT_PREDICTED}", _FOOTPRINTS, value, group="prediction")


def _predicted_parts(
    name: str, help_: str, value: Callable[[Estimate], int], parts: Callable[[Footprint], Parts]
) -> Family:
    """A family of one number for each target and component."""

    def rows(snapshot: Snapshot) -> Iterator[Row]:
        for target, footprint in _footprints(snapshot):
            said = parts(footprint)
            for component in COMPONENTS:
                if component in said:
                    yield (target.name, component), float(value(said[component]))

    column = Column(_FOOTPRINTS, lambda footprint: footprint, is_number=False)
    help_ = f"{help_} {_NOT_PREDICTED}"
    return Family(name, "gauge", help_, ("target", "component"), rows, "prediction", column)


def _whole(footprint: Footprint, bound: Callable[[Estimate], int]) -> int | None:
    """A bound of all components together; None where the size of the K/V pool is not known: half a sum."""
    return bound(footprint.fullest.total) if "kv_cache" in footprint.fullest.components else None


def _host_parts(footprint: Footprint) -> Parts:
    """What lies in main memory, of all GPUs together."""
    parts: dict[str, list[Estimate]] = {}
    for rank in footprint.ranks:
        for component, estimate in rank.host.items():
            parts.setdefault(component, []).extend([estimate] * footprint.tensor_parallel)
    return {component: total(each, each[0].source) for component, each in parts.items()}


def _process_memory(snapshot: Snapshot) -> Iterator[Row]:
    for gpu, owners in snapshot.memory.process_bytes.items():
        for owner, size in owners.items():
            yield (gpu, owner), float(size)


def _memory_parts(snapshot: Snapshot) -> Iterator[Row]:
    for part in snapshot.memory.parts:
        yield (part.gpu, part.target, part.component, part.basis), float(part.size_bytes)


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _target_info(target: TargetSnapshot) -> Iterator[Row]:
    reading = target.reading
    engine, version, simulated = (
        ("", "", "")
        if reading is None
        else (
            reading.engine,
            reading.engine_version or "",
            _flag(reading.simulated),
        )
    )
    yield (engine, version, target.experiment, target.variant, target.role, simulated), 1.0


def _models(target: TargetSnapshot) -> Iterator[Row]:
    if target.reading is not None:
        for model in target.reading.by_model():
            yield (model,), 1.0


def _problems(target: TargetSnapshot) -> Iterator[Row]:
    for reason in dict.fromkeys(problem.reason for problem in target.problems):
        yield (reason,), 1.0


def _missing(target: TargetSnapshot) -> Iterator[Row]:
    if target.reading is not None:
        for quantity in target.reading.missing:
            yield (quantity,), 1.0


def _start_time(target: TargetSnapshot) -> float | None:
    return None if target.reading is None else target.reading.start_time


def _sleeping(target: TargetSnapshot) -> bool | None:
    return None if target.reading is None else target.reading.sleeping


def _gpu_info(device: DeviceReading) -> tuple[Labels, float]:
    return (device.uuid, device.index, device.name or "", device.driver or "", device.memory_api), 1.0


def _gpu_problem(device: DeviceReading) -> tuple[Labels, float] | None:
    return None if device.problem is None else ((device.uuid, device.problem), 1.0)


def _nvml_problem(snapshot: Snapshot) -> Iterator[Row]:
    if snapshot.gpu.problem is not None:
        yield (snapshot.gpu.problem,), 1.0


_NOT_UP = "Absent while the server cannot be read."
_NOT_SAID = "Absent where the engine does not state it."
_NOT_PREDICTED = "Absent where the model or its launch settings are not known, and while the server is down."

METRICS: tuple[Family, ...] = (
    # identity
    Family(
        "build_info",
        "gauge",
        "1, with the version of Brimline and of Python. Never absent.",
        ("version", "python"),
        lambda _snapshot: [((__version__, platform.python_version()), 1.0)],
        "exporter",
        Column(_THIS, lambda _snapshot: __version__, is_number=False),
    ),
    _target_rows(
        "target_info",
        "1 for each target, with what it is; exactly one row each, so that joins are safe. engine, "
        "engine_version and "
        "simulated are empty while the server cannot be read. Never absent.",
        ("engine", "engine_version", "experiment", "variant", "role", "simulated"),
        _target_info,
        group="identity",
    ),
    _target_rows(
        "model_info",
        f"1 for each model that the server serves. {_NOT_UP}",
        ("model",),
        _models,
        group="identity",
    ),
    _target_rows(
        "target_setting_info",
        f"1 for each known setting of the server, declared or live, the live value winning. {_NOT_UP}",
        ("setting", "value"),
        lambda target: (((name, value), 1.0) for name, value in target.settings.items()),
        group="identity",
        of="settings",
    ),
    _target(
        "target_settings_complete",
        "1 where every launch flag that target_setting_info does not have is at the engine's default, "
        "because the whole launch command is known or the server states all its settings; 0 where flags "
        f"may be set that nobody sees. {_NOT_UP}",
        "settings_complete",
        group="identity",
    ),
    _target_rows(
        "target_config_fingerprint_info",
        "1, with a digest of engine, version, models and settings; another digest is another "
        f"configuration. {_NOT_UP}",
        ("fingerprint",),
        lambda target: [] if target.fingerprint is None else [((target.fingerprint,), 1.0)],
        group="identity",
        of="fingerprint",
    ),
    _target_rows(
        "target_gpu_info",
        "1 for each GPU that belongs to the server, with the data-parallel rank that it holds. "
        "Absent where it is not "
        "known which ones do (see target_problem).",
        ("gpu", "rank"),
        lambda target: ((pair, 1.0) for pair in target.gpus),
        group="identity",
        of="gpus",
    ),
    _of_devices(
        "gpu_info",
        "1 for each GPU or MIG instance. memory_api: v2 where used and reserved memory are told "
        "apart, v1 where used "
        "includes what the driver reserves, none where memory cannot be read. Absent without NVML.",
        ("gpu", "index", "name", "driver", "memory_api"),
        _gpu_info,
        "identity",
    ),
    # health
    _target(
        "target_up",
        "1 if the server's page was read and understood in this scrape, 0 if not (why: "
        "target_problem). Never absent.",
        "up",
    ),
    _target_rows(
        "target_problem",
        f"1 while there is a problem with a target. reason: {', '.join(TARGET_REASONS)}. Absent while "
        "there is none.",
        ("reason",),
        _problems,
        of="problems",
    ),
    _target_rows(
        "target_errors_total",
        "How often each kind of problem was met. Starts at 0 for each reason; never absent.",
        ("reason",),
        lambda target: (((reason,), float(count)) for reason, count in target.errors.items()),
        kind="counter",
        of="errors",
    ),
    _target(
        "target_scrape_duration_seconds",
        "Time that reading the server took in this scrape, successful or not. Absent before the first one.",
        "duration_seconds",
    ),
    _target(
        "target_last_success_timestamp_seconds",
        "When the server was last read. Absent until it was.",
        "last_success",
    ),
    _target(
        "target_reading_age_seconds",
        f"Age of the reading that this scrape serves: 0, or up to the target's min_interval. {_NOT_UP}",
        lambda target: target.age_seconds if target.up else None,
    ),
    _target(
        "target_start_time_seconds",
        f"When the server's process started. {_NOT_SAID}",
        _start_time,
    ),
    _target(
        "target_config_changed_timestamp_seconds",
        "When the server was first seen with its present configuration, after another one. Absent "
        "until it changes.",
        "config_changed",
    ),
    _target_rows(
        "target_config_mismatch",
        "1 for each setting whose declared value differs from the live one, 0 where they agree. "
        "Absent where only one "
        "of the two is known.",
        ("setting",),
        lambda target: (((name,), float(differs)) for name, differs in target.mismatches.items()),
        of="mismatches",
    ),
    _target_rows(
        "target_missing_quantities",
        "1 for each quantity that this version of the engine should give and does not: an upgrade "
        "may have renamed it. "
        "Absent where nothing is missing.",
        ("quantity",),
        _missing,
    ),
    _target(
        "target_unparsed_lines_total",
        "Lines of the server's page that could not be read; each cost one line only. Never absent.",
        "unparsed_lines_total",
        kind="counter",
    ),
    _target(
        "target_dropped_series_total",
        "Series dropped because the page held too many models, ranks, reasons or histogram buckets. "
        "Never absent.",
        "dropped_series_total",
        kind="counter",
    ),
    _target(
        "target_sleeping",
        f"1 while the engine sleeps and has given up GPU memory on purpose. {_NOT_SAID}",
        _sleeping,
    ),
    _exporter(
        "nvml_up",
        "1 if at least one GPU is listed and read through NVML, 0 if not (why: nvml_problem). Absent with "
        "gpu.backend none.",
        "gpu.up",
        "health",
    ),
    _of_snapshot(
        "nvml_problem",
        f"1 while NVML as a whole cannot be read. reason: {', '.join(GPU_REASONS)}. Absent while it can.",
        ("reason",),
        _nvml_problem,
        "gpu.problem",
        "health",
    ),
    _gpu(
        "gpu_up",
        "1 if the memory of this GPU was read, 0 if not (why: gpu_problem). Absent without NVML.",
        lambda device: device.problem is None and device.used_bytes is not None,
        group="health",
    ),
    _of_devices(
        "gpu_problem",
        f"1 while the memory of this GPU cannot be read. reason: {', '.join(GPU_REASONS)}. Absent "
        "while it can.",
        ("gpu", "reason"),
        _gpu_problem,
        "health",
    ),
    _exporter(
        "config_last_reload_successful",
        "1 if the configuration in force is the newest one read, 0 if a newer one was refused. Never absent.",
        "reload_successful",
    ),
    _exporter(
        "config_last_reload_success_timestamp_seconds",
        "When the configuration in force was read. Never absent.",
        "reload_success_time",
    ),
    _discovery(
        "discovery_up",
        "1 if the newest targets from this source are known, 0 while it or a part of it cannot be read; "
        "those known before stay.",
        "up",
    ),
    _discovery(
        "discovery_targets",
        "Targets that come from this source.",
        "targets",
    ),
    _discovery(
        "discovery_last_success_timestamp_seconds",
        "When this source was last read whole; absent before that.",
        "success_time",
    ),
    _discovery(
        "discovery_errors_total",
        "How often this source, or a part of it, turned unreadable.",
        "errors",
        kind="counter",
    ),
    # load
    _rank("requests_running", f"Requests that are being computed. {_NOT_UP}"),
    _rank("requests_waiting", f"Requests that wait to be computed. {_NOT_UP}"),
    _rank_by("requests_waiting_by_reason", f"Requests that wait, by the engine's own reason. {_NOT_SAID}"),
    _rank_by(
        "requests_finished_total",
        f"Requests that ended, by the engine's own reason. {_NOT_SAID}",
        kind="counter",
    ),
    _rank(
        "prompt_tokens_total",
        "Prompt tokens of requests, tokens found in the prefix cache included (llama.cpp: not included). "
        f"Restarts from 0 with the server. {_NOT_UP}",
        kind="counter",
    ),
    _rank(
        "generation_tokens_total",
        f"Tokens generated (llama.cpp: counted when their request ends, so rates come in bursts). {_NOT_UP}",
        kind="counter",
    ),
    _rank(
        "preemptions_total",
        f"Requests thrown out of the KV cache to be computed again, because it was full. {_NOT_SAID}",
        kind="counter",
    ),
    _rank(
        "prefix_cache_queries_tokens_total",
        f"Prompt tokens looked up in the prefix cache. {_NOT_SAID}",
        kind="counter",
    ),
    _rank(
        "prefix_cache_hits_tokens_total",
        f"Prompt tokens found in the prefix cache. {_NOT_SAID}",
        kind="counter",
    ),
    _rank(
        "spec_decode_draft_tokens_total",
        f"Tokens proposed by speculative decoding. {_NOT_SAID}",
        kind="counter",
    ),
    _rank(
        "spec_decode_accepted_tokens_total",
        f"Proposed tokens that the model accepted. {_NOT_SAID}",
        kind="counter",
    ),
    _rank_histogram(
        "time_to_first_token_seconds", f"Time from a request's arrival to its first token. {_NOT_SAID}"
    ),
    _rank_histogram("inter_token_latency_seconds", f"Time between two outputs of a request. {_NOT_SAID}"),
    _rank_histogram("request_e2e_latency_seconds", f"Time from a request's arrival to its end. {_NOT_SAID}"),
    _rank_histogram("request_prompt_tokens", f"Prompt length of requests. {_NOT_SAID}"),
    _rank_histogram("request_generation_tokens", f"Generated length of requests. {_NOT_SAID}"),
    # KV cache
    _rank(
        "kv_cache_usage_ratio",
        "Share of the KV cache that requests hold; cached prefixes that may be dropped count as "
        "free. Near 1, "
        f"requests wait or are preempted. {_NOT_SAID}",
        group="kv_cache",
    ),
    _rank(
        "kv_cache_blocks",
        f"Blocks in the KV cache of this rank. {_NOT_SAID}",
        group="kv_cache",
    ),
    _rank("kv_cache_used_blocks", f"Blocks that requests hold. {_NOT_SAID}", group="kv_cache"),
    _rank(
        "kv_cache_block_tokens",
        f"Tokens in one block; for hybrid models the smallest of their groups. {_NOT_SAID}",
        group="kv_cache",
    ),
    _rank(
        "kv_cache_capacity_tokens",
        "Tokens that the KV cache of this rank holds. Absent where the engine does not state it and "
        "blocks times block "
        "size would not be it.",
        group="kv_cache",
    ),
    _rank(
        "kv_cache_used_tokens", f"Tokens' worth of KV cache that requests hold. {_NOT_SAID}", group="kv_cache"
    ),
    _rank(
        "kv_cache_capacity_bytes",
        "Bytes of the KV cache on each GPU of this rank (llama.cpp: on all its devices together). "
        "Absent where the "
        "bytes of one token are not known from the server or the model.",
        group="kv_cache",
    ),
    _rank(
        "kv_cache_used_bytes",
        "Bytes of KV cache that requests hold, on each GPU of this rank. Absent as "
        "kv_cache_capacity_bytes is.",
        group="kv_cache",
    ),
    _rank(
        "kv_cache_max_concurrency_requests",
        f"Requests of full context length that fit at once. {_NOT_SAID}",
        group="kv_cache",
    ),
    _rank("max_model_len_tokens", f"Longest context of one request. {_NOT_SAID}", group="kv_cache"),
    _rank_by(
        "measured_memory_bytes",
        f"Memory of a component on each GPU of this rank, as the engine itself measured it. {_NOT_SAID}",
        label="component",
        group="reconciliation",
    ),
    _rank_by(
        "model_memory_bytes",
        "Memory that the engine counts for a loaded model: weights, KV cache and buffers together (Ollama). "
        "place: gpu, all GPUs together, or host, main memory, where the CPU works on it. "
        f"{_NOT_SAID}",
        label="place",
        group="reconciliation",
    ),
    # prediction
    _predicted_parts(
        "predicted_memory_bytes",
        f"Memory that a component should take on the fullest GPU. component: {', '.join(COMPONENTS)}.",
        lambda estimate: estimate.expected,
        lambda footprint: footprint.fullest.components,
    ),
    _predicted_parts(
        "predicted_memory_low_bytes",
        "Least memory that a component may take on the fullest GPU.",
        lambda estimate: estimate.low,
        lambda footprint: footprint.fullest.components,
    ),
    _predicted_parts(
        "predicted_memory_high_bytes",
        "Most memory that a component may take on the fullest GPU.",
        lambda estimate: estimate.high,
        lambda footprint: footprint.fullest.components,
    ),
    _predicted(
        "predicted_total_memory_bytes",
        "Memory that the server should take on its fullest GPU. Absent without a GPU, too.",
        lambda footprint: _whole(footprint, lambda total: total.expected),
    ),
    _predicted(
        "predicted_total_memory_low_bytes",
        "Least memory that the server may take on its fullest GPU. More than the least of its components "
        "together where an engine gives its KV cache what the others leave. Absent without a GPU, too.",
        lambda footprint: _whole(footprint, lambda total: total.low),
    ),
    _predicted(
        "predicted_total_memory_high_bytes",
        "Most memory that the server may take on its fullest GPU. Less than the most of its components "
        "together where an engine gives its KV cache what the others leave. Absent without a GPU, too.",
        lambda footprint: _whole(footprint, lambda total: total.high),
    ),
    _predicted_parts(
        "predicted_host_memory_bytes",
        "Main memory that a component should take, for all GPUs of a data-parallel rank together.",
        lambda estimate: estimate.expected,
        _host_parts,
    ),
    _predicted(
        "predicted_kv_cache_bytes_per_token",
        "KV cache that one more token of context takes for good, on the fullest GPU; 0 where all layers have "
        "windows shorter than the context, or states.",
        "kv_cache.bytes_per_token",
    ),
    _predicted(
        "predicted_kv_cache_full_request_bytes",
        "Most KV cache that one request of full context length may take on the fullest GPU.",
        "kv_cache.full_request_bytes",
    ),
    _predicted(
        "predicted_kv_cache_capacity_tokens",
        "Tokens that the KV cache of one rank should hold, as this version of the engine counts them. Absent "
        "without a GPU, too.",
        "kv_cache.capacity_tokens",
    ),
    _predicted(
        "predicted_kv_cache_max_concurrency_requests",
        "Requests of full context length that should fit at once in one rank. Absent without a GPU, too.",
        "kv_cache.max_concurrency_requests",
    ),
    _predicted(
        "predicted_fits",
        "1 if all else by its high bound and one request of full length fit the GPU, 0 if not. Absent "
        "without a GPU, too.",
        "fits",
    ),
    _predicted(
        "prediction_calibrated",
        "1 if activations, CUDA graphs and runtime were measured on this engine, version and GPU; 0 if they "
        "come from tables, and the bounds are wide.",
        "calibrated",
    ),
    _of_snapshot(
        "predicted_decode_ceiling_tokens_per_second",
        "Tokens per second that memory bandwidth allows at the present batch and mean context, of all ranks "
        "together; a ceiling, not a promise. Absent while no request runs, and without a GPU of known "
        "bandwidth.",
        ("target",),
        lambda snapshot: (
            ((target,), rate) for target, rate in snapshot.memory.ceiling_tokens_per_second.items()
        ),
        "memory.ceiling_tokens_per_second",
        "prediction",
    ),
    # reconciliation
    _of_snapshot(
        "memory_bytes",
        "What the memory in use on a GPU is used for. basis: measured (by the engine or NVML) or predicted. "
        "A KV cache is measured where the server tells its bytes, or its blocks, whose size the model tells; "
        "one that is known in tokens only is predicted. "
        f"component: {', '.join(PARTS)}. All parts of a GPU add up to gpu_memory_used_bytes; target is empty "
        "for what belongs to none. unaccounted is the remainder: negative where less is used than predicted, "
        "and measured only where all other parts of the GPU are, as else it holds the prediction's error. "
        "Absent where the GPU belongs to no server, and while it cannot be read.",
        ("gpu", "target", "component", "basis"),
        _memory_parts,
        "memory.parts",
        "reconciliation",
    ),
    _of_snapshot(
        "memory_headroom_bytes",
        "Memory that stays free on the target's fullest GPU once all servers on it have taken what they are "
        "predicted to: free memory, less what of the prediction is not in use now, less gpu.reserve_other. "
        "Negative: out of memory is to be expected. Past peaks do not count: see gpu_memory_used_peak_bytes. "
        "Absent where a prediction or the GPU is missing.",
        ("target",),
        lambda snapshot: (
            ((target,), float(left)) for target, left in snapshot.memory.headroom_bytes.items()
        ),
        "memory.headroom_bytes",
        "reconciliation",
    ),
    _of_snapshot(
        "prediction_error_ratio",
        "(observed - predicted) / predicted for a component whose observation is measured, of the rank with "
        "the least cache. Of a KV cache in blocks it is the error of their number, not of their size. "
        "Absent where nothing is measured.",
        ("target", "component"),
        lambda snapshot: ((key, ratio) for key, ratio in snapshot.memory.error_ratio.items()),
        "memory.error_ratio",
        "reconciliation",
    ),
    # GPU and host
    _gpu(
        "gpu_memory_total_bytes",
        "Memory of the GPU. Absent while it cannot be read.",
        "total_bytes",
    ),
    _gpu(
        "gpu_memory_used_bytes",
        "Memory in use, at most two sample intervals ago. With memory_api v1 it includes what the "
        "driver reserves. "
        "Absent while it cannot be read.",
        "used_bytes",
    ),
    _gpu("gpu_memory_free_bytes", "Memory not in use. Absent while it cannot be read.", "free_bytes"),
    _gpu(
        "gpu_memory_reserved_bytes",
        "Memory that the driver keeps for itself. Absent with memory_api v1, and while it cannot be read.",
        "reserved_bytes",
    ),
    _gpu(
        "gpu_memory_used_peak_bytes",
        "Most memory in use within peak_window (a minute unless configured): what falls between two "
        "scrapes. Absent "
        "while it cannot be read.",
        "used_peak_bytes",
    ),
    _gpu(
        "gpu_power_limit_watts",
        "Power that the GPU may draw, by whichever limit the driver enforces now; looked at once a minute. "
        "Absent where the driver does not tell it (MIG instances, some integrated GPUs), and while the GPU "
        "cannot be read.",
        "power_limit_watts",
    ),
    _of_snapshot(
        "gpu_process_memory_bytes",
        "Memory that processes hold on a GPU. owner: the target whose process it is, other for processes of "
        "no target, unknown where a target of this GPU does not show its processes here. Absent without "
        "gpu.processes, and where the driver does not tell.",
        ("gpu", "owner"),
        _process_memory,
        "memory.process_bytes",
        "gpu",
    ),
    _target(
        "server_host_memory_used_bytes",
        "Main memory of the server's cgroup without file caches that can be dropped, or of its processes "
        "where it has no cgroup of its own. Absent where its processes are not visible from here.",
        lambda target: None if target.process is None else target.process.host_memory_used_bytes,
        group="gpu",
    ),
    _target(
        "server_host_memory_limit_bytes",
        "Most main memory that the server's cgroup may use, of all levels the one with least left. Absent "
        "where there is no limit, and where its processes are not visible from here.",
        lambda target: None if target.process is None else target.process.host_memory_limit_bytes,
        group="gpu",
    ),
    _exporter(
        "host_memory_total_bytes",
        "Main memory of this machine. Absent without /proc/meminfo.",
        "host.memory_total_bytes",
        "gpu",
    ),
    _exporter(
        "host_memory_available_bytes",
        "Main memory that programs can still get. Absent without /proc/meminfo.",
        "host.memory_available_bytes",
        "gpu",
    ),
)

BY_NAME: dict[str, Family] = {family.name: family for family in METRICS}


def is_exposable(value: Value) -> bool:
    """False for NaN, which is never exposed: an absent reading is an absent series."""
    if isinstance(value, float | int):
        return not math.isnan(value)
    return math.isfinite(value.sum) and math.isfinite(value.count)
