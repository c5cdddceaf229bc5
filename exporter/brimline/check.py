"""`brimline check`: read every target and GPU once and say what was understood."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from brimline import units
from brimline.collect import Collector
from brimline.config import Config
from brimline.fitted_table import print_table
from brimline.footprint.predict import as_json as footprint_as_json
from brimline.readings import (
    GPU_REASONS,
    DeviceReading,
    GpuReading,
    Problem,
    RankReading,
    Snapshot,
    TargetSnapshot,
    combine_ranks,
)
from brimline.reconcile import comparisons
from brimline.saved_page import as_json as readings_as_json

SCHEMA_VERSION = 1
GPU_PATIENCE = 3.0
PREDICTION_PATIENCE = 10.0


async def read_once(config: Config, *, quiet_launch: bool) -> Snapshot:
    """One snapshot of everything, once GPUs were sampled and servers predicted, or patience is at an end."""
    collector = Collector(config, quiet_launch=quiet_launch)
    await collector.start()
    try:
        deadline = asyncio.get_running_loop().time() + GPU_PATIENCE
        # The samples come from threads, which set no event of this loop.
        while not gpu_is_settled(collector.gpu_reading()) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        snapshot = await collector.snapshot()
        deadline = asyncio.get_running_loop().time() + PREDICTION_PATIENCE
        # A scrape does not wait for the first prediction; somebody who looks once does.
        while collector.is_predicting and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.2)
            snapshot = await collector.snapshot()
        return snapshot
    finally:
        await collector.close()


def gpu_is_settled(gpu: GpuReading) -> bool:
    """True once every GPU was sampled, or the library has said why not."""
    if gpu.up is None:
        return True
    if not gpu.up:
        return gpu.problem not in (None, "uninitialized")
    return all(device.used_bytes is not None or device.problem is not None for device in gpu.devices)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Who answered: names of targets. doubtful: of those that are up, with a problem. gpus: what of them."""

    up: tuple[str, ...]
    down: tuple[str, ...]
    doubtful: tuple[str, ...]
    gpus: tuple[str, ...]

    @property
    def is_well(self) -> bool:
        """True where everything could be read."""
        return not (self.down or self.doubtful or self.gpus)

    def line(self) -> str:
        """All of it in a line; why stands in the tables."""
        parts = [f"{len(self.up)} up"]
        for what, names in (("down", self.down), ("up with problems", self.doubtful)):
            if names:
                parts.append(f"{len(names)} {what}: {', '.join(names)}")
        if self.gpus:
            parts.append(f"not read: {', '.join(self.gpus)}")
        return "; ".join(parts).replace(" up; ", " up, ", 1)


def outcome(snapshot: Snapshot, config: Config) -> Outcome:
    """What could be read, and what not.

    A machine without NVIDIA's library is no failure as long as no target names a GPU.
    """
    gpu = snapshot.gpu
    names_gpus = any(target.gpus is not None for target in config.targets)
    unread = [f"GPU {device.index}" for device in gpu.devices if device.problem is not None]
    if gpu.up is False and (gpu.problem != "library_not_found" or names_gpus):
        unread.insert(0, "GPUs")
    return Outcome(
        up=tuple(target.name for target in snapshot.targets if target.up),
        down=tuple(target.name for target in snapshot.targets if not target.up),
        doubtful=tuple(
            target.name
            for target in snapshot.targets
            # Without its GPU it is read all right; whose GPU it is, is another question.
            if target.up and any(problem.reason != "gpu_unassigned" for problem in target.problems)
        ),
        gpus=tuple(unread),
    )


def problem_lines(snapshot: Snapshot, config: Config, places: Mapping[str, str]) -> Iterator[str]:
    """A line for each problem for which something could not be read; none where all is well."""
    found = outcome(snapshot, config)
    for target in snapshot.targets:
        if target.name in found.down or target.name in found.doubtful:
            for problem in target.problems:
                yield f"{target.name}: {_said(problem, places.get(target.name))}"
    if "GPUs" in found.gpus:
        yield f"GPUs: {gpu_problem(snapshot.gpu)}"
    for device in snapshot.gpu.devices:
        if device.problem is not None:
            yield f"GPU {device.index}: {device.problem}: {device.detail}"


def gpu_problem(gpu: GpuReading) -> str:
    """Why GPUs cannot be read, and what to do."""
    reason = gpu.problem or "unknown"
    text = f"{reason}: {GPU_REASONS.get(reason, '')} ({gpu.detail})"
    if reason == "library_not_found":
        text += "; install the driver, mount it into the container, or set gpu: {backend: none}"
    return text


def _pair(used: float | None, capacity: float | None, form: str) -> str:
    shown = units.format_bytes if form == "bytes" else units.format_count
    return f"{shown(used)} of {shown(capacity)}"


def _model_lines(target: TargetSnapshot) -> Iterator[tuple[str, str]]:
    if target.reading is None:
        return
    for model, ranks in target.reading.by_model().items():
        whole = combine_ranks(ranks)
        yield "model", f"{model or '(no name)'}{f' in {len(ranks)} ranks' if len(ranks) > 1 else ''}"
        yield "context window", f"{units.format_count(whole.max_model_len_tokens)} tokens"
        yield "KV cache", _kv_line(whole)
        per_gpu = ranks[0]
        if per_gpu.kv_cache_capacity_bytes is not None:
            per_token = ""
            if per_gpu.kv_cache_capacity_tokens:
                bytes_per_token = per_gpu.kv_cache_capacity_bytes / per_gpu.kv_cache_capacity_tokens
                per_token = f", {units.format_count(bytes_per_token)} B/token"
            text = _pair(per_gpu.kv_cache_used_bytes, per_gpu.kv_cache_capacity_bytes, "bytes")
            yield "", f"{text}{per_token} (from {target.kv_bytes_source})"
        if (memory := ranks[0].model_memory_bytes) is not None:
            host = memory.get("host")
            rest = f", {units.format_bytes(host)} in main memory, where the CPU works on it" if host else ""
            yield "memory", f"{units.format_bytes(memory.get('gpu'))} on its GPUs{rest}"
        running, waiting = whole.requests_running, whole.requests_waiting
        yield "requests", f"{units.format_count(running)} running, {units.format_count(waiting)} waiting"
        generated = units.format_count(whole.generation_tokens_total)
        yield "tokens", f"{units.format_count(whole.prompt_tokens_total)} prompt, {generated} generated"


def _kv_line(rank: RankReading) -> str:
    text = f"{units.format_ratio(rank.kv_cache_usage_ratio)} used"
    if rank.kv_cache_usage_ratio is None:
        text = "capacity not known" if rank.kv_cache_capacity_tokens is None else "use not known"
    if rank.kv_cache_capacity_tokens is not None:
        text += f", {_pair(rank.kv_cache_used_tokens, rank.kv_cache_capacity_tokens, 'tokens')} tokens"
    if rank.kv_cache_blocks is not None:
        blocks, size = (
            units.format_count(rank.kv_cache_blocks),
            units.format_count(rank.kv_cache_block_tokens),
        )
        text += f" ({blocks} blocks of {size})"
    return text


# Mended in the configuration file, and nowhere else.
_OF_THE_FILE = ("launch", "launch_command", "model", "calibration")


def _said(problem: Problem, place: str | None) -> str:
    where = f"{place}: " if place is not None and problem.reason in _OF_THE_FILE else ""
    return f"{where}{problem.reason}: {problem.detail}"


def _warnings(target: TargetSnapshot, place: str | None) -> Iterator[str]:
    yield from (_said(problem, place) for problem in target.problems)
    for setting, differs in target.mismatches.items():
        if differs:
            declared, live = target.declared.get(setting), target.settings[setting]
            yield f"{setting}: declared {declared}, the server says {live}"
    yield from target.memory_notes
    if target.reading is not None:
        yield from (f"{quantity} is not on the page of this version" for quantity in target.reading.missing)
        yield from target.reading.notes
        if target.reading.unparsed_lines:
            yield f"{target.reading.unparsed_lines} lines of the page could not be read"
        if target.reading.simulated:
            yield "simulated: nothing here was measured"


def print_snapshot(snapshot: Snapshot, console: Console, places: Mapping[str, str]) -> None:
    """Print a table of what was understood. places: where a target stands, FILE:LINE by its name."""
    table = Table(title="Servers", title_justify="left", show_lines=True, expand=False)
    table.add_column("target", overflow="fold")
    table.add_column("state")
    table.add_column("understood", overflow="fold")
    for target in snapshot.targets:
        lines = Text()
        if target.reading is not None:
            version = target.reading.engine_version or "(version not stated)"
            lines.append(f"{target.reading.engine} {version} at {target.url}\n")
        else:
            lines.append(f"{target.url}\n")
        for name, value in _model_lines(target):
            lines.append(f"{name:15}", style="dim").append(f"{value}\n")
        for uuid, rank in target.gpus:
            lines.append(f"{'GPU':15}", style="dim").append(f"{uuid} (rank {rank})\n")
        for warning in _warnings(target, places.get(target.name)):
            lines.append(f"! {warning}\n", style="yellow" if target.up else "red")
        lines.rstrip()
        state = Text("up", style="green") if target.up else Text("down", style="bold red")
        table.add_row(target.name, state, lines)
    if snapshot.targets:
        print_table(table, console)
    else:
        console.print("No targets are configured.")
    for target in snapshot.targets:
        _print_comparison(target, snapshot, console)
    _print_gpus(snapshot, console)


def _print_comparison(target: TargetSnapshot, snapshot: Snapshot, console: Console) -> None:
    """What the server should use beside what it uses, on its fullest GPU."""
    lines = comparisons(target, snapshot)
    if not lines or target.footprint is None:
        return
    fullest = ", fullest GPU" if target.footprint.fullest.components else ""
    table = Table(title=f"{target.name}: predicted beside observed{fullest}", title_justify="left")
    table.add_column("", overflow="fold")
    for column in ("predicted", "low", "high", "observed", "difference"):
        table.add_column(column, justify="right", no_wrap=True)
    for line in lines:
        numbers = (line.expected, line.low, line.high, line.observed)
        shown = [units.format_amount(number, line.unit) for number in numbers]
        table.add_row(line.name, *shown, units.format_difference(line.difference_ratio))
    print_table(table, console)
    headroom = snapshot.memory.headroom_bytes.get(target.name)
    if headroom is not None:
        basis = "calibrated" if target.footprint.calibrated else "by the high bounds, not calibrated"
        console.print(f"headroom {units.format_bytes(headroom)} ({basis})")
    for assumption in target.footprint.assumptions:
        console.print(f"  {assumption}", style="dim")


def _print_gpus(snapshot: Snapshot, console: Console) -> None:
    gpu = snapshot.gpu
    if gpu.up is None:
        console.print("GPUs are not read (gpu.backend is none).")
        return
    if not gpu.up:
        console.print(Text(f"GPUs: {gpu_problem(gpu)}", style="yellow"))
    if not gpu.devices:
        return
    table = Table(title="GPUs", title_justify="left")
    table.add_column("")
    table.add_column("", overflow="fold")
    for column in ("used", "total"):
        table.add_column(column, justify="right", no_wrap=True)
    for device in gpu.devices:
        sizes = map(units.format_bytes, (device.used_bytes, device.total_bytes))
        table.add_row(f"GPU {device.index}", _of_gpu(device), *sizes)
    print_table(table, console)


def _of_gpu(device: DeviceReading) -> Text:
    """What a GPU is, below each other, so that its UUID fits a narrow terminal."""
    lines = Text("\n".join(filter(None, (device.name, device.uuid))))
    if device.memory_api != "none":
        reserved = units.format_bytes(device.reserved_bytes)
        lines.append(f"\n{reserved} reserved, memory API {device.memory_api}", style="dim")
    if device.problem:
        lines.append(f"\n! {device.problem}: {device.detail}", style="yellow")
    return lines


# --- the published JSON form ---


def as_json(
    snapshot: Snapshot,
    config: Config,
    places: Mapping[str, str],
    *,
    warnings: Sequence[str] = (),
    problems: Sequence[str] = (),
) -> dict[str, Any]:
    """What was read in its published form: bytes, and null for what is not known.

    places: where a target stands, FILE:LINE by its name. warnings: what is doubtful in the configuration.
    problems: what could not become a target.
    """
    found = outcome(snapshot, config)
    return {
        "schema_version": SCHEMA_VERSION,
        "well": found.is_well and bool(snapshot.targets) and not problems,
        "targets": [_target_json(target, snapshot, places.get(target.name)) for target in snapshot.targets],
        "gpus": {
            "up": snapshot.gpu.up,
            "problem": None if snapshot.gpu.up is not False else snapshot.gpu.problem,
            "detail": snapshot.gpu.detail or None,
            "devices": [_device_json(device) for device in snapshot.gpu.devices],
        },
        "warnings": list(warnings),
        "problems": list(problems),
    }


def _target_json(target: TargetSnapshot, snapshot: Snapshot, place: str | None) -> dict[str, Any]:
    engines = [] if target.reading is None else readings_as_json([target.reading])["engines"]
    return {
        "target": target.name,
        "url": target.url,
        "place": place,
        "experiment": target.experiment or None,
        "variant": target.variant or None,
        "role": target.role or None,
        "up": target.up,
        "problems": [{"reason": problem.reason, "detail": problem.detail} for problem in target.problems],
        "mismatches": [
            {"setting": setting, "declared": target.declared.get(setting), "live": target.settings[setting]}
            for setting, differs in target.mismatches.items()
            if differs
        ],
        "notes": [*target.memory_notes, *(target.reading.notes if target.reading is not None else ())],
        "reading": engines[0] if engines else None,
        "kv_cache_bytes_source": target.kv_bytes_source,
        "gpus": [{"gpu": uuid, "rank": rank} for uuid, rank in target.gpus],
        "prediction": None if target.footprint is None else footprint_as_json(target.footprint),
        "comparison": [
            {
                "name": line.name,
                "unit": line.unit,
                "expected": line.expected,
                "low": line.low,
                "high": line.high,
                "observed": line.observed,
                "difference_ratio": line.difference_ratio,
            }
            for line in comparisons(target, snapshot)
        ],
        "headroom_bytes": snapshot.memory.headroom_bytes.get(target.name),
    }


def _device_json(device: DeviceReading) -> dict[str, Any]:
    fields = (name for name in DeviceReading.__struct_fields__ if name not in ("uuid", "detail", "processes"))
    document = {name: getattr(device, name) for name in fields}
    return {"gpu": device.uuid, **document, "detail": device.detail or None}
