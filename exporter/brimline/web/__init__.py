"""The status page: servers and GPUs at a glance, readable on a phone."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import UTC, datetime

import jinja2

from brimline import __version__, units
from brimline.readings import PARTS, DeviceReading, MemoryPart, Snapshot, TargetSnapshot, combine_ranks
from brimline.reconcile import Comparison, comparisons


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of the page.

    ratio: 0 to 1; None where nothing is known. high, full: ratios from which it changes colour.
    """

    label: str
    text: str
    ratio: float | None
    peak: float | None = None
    high: float = 0.8
    full: float = 0.95

    @property
    def level(self) -> str:
        if self.ratio is None:
            return "unknown"
        return "full" if self.ratio >= self.full else "high" if self.ratio >= self.high else "calm"


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a GPU's bar. ratio: of the whole GPU, 0 where less than nothing is left for it."""

    component: str
    label: str
    text: str
    ratio: float
    is_predicted: bool


# So many servers are shown with all that is known of them; of more, it is unfolded one by one.
_UNFOLDED = 4


def _component_name(component: str) -> str:
    """A component as people read it."""
    return component.replace("kv_cache", "KV cache").replace("cuda", "CUDA").replace("_", " ")


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("brimline", "web"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(
        bytes=units.format_bytes,
        count=units.format_count,
        ratio=units.format_ratio,
        duration=units.format_duration,
        difference=units.format_difference,
        amount=units.format_amount,
        component=_component_name,
    )
    return environment.get_template("status.html")


@dataclass(frozen=True, slots=True)
class Beside:
    """Predicted beside observed for one target. on_gpu: False for a server on the CPU."""

    on_gpu: bool
    lines: list[Comparison]
    headroom_bytes: int | None
    is_calibrated: bool
    assumptions: tuple[str, ...]


def _beside(target: TargetSnapshot, snapshot: Snapshot) -> Beside | None:
    if target.footprint is None:
        return None
    return Beside(
        bool(target.footprint.fullest.components),
        comparisons(target, snapshot),
        snapshot.memory.headroom_bytes.get(target.name),
        target.footprint.calibrated,
        target.footprint.assumptions,
    )


def _kv_bars(target: TargetSnapshot) -> list[tuple[str, Bar, list[tuple[str, str]]]]:
    """For each model: its name, the bar of its fullest rank, and facts beside it."""
    bars = []
    for model, ranks in target.reading.by_model().items() if target.reading is not None else ():
        all_ranks = combine_ranks(ranks)
        text = f"{units.format_ratio(all_ranks.kv_cache_usage_ratio)}"
        if all_ranks.kv_cache_capacity_tokens is not None:
            used, capacity = all_ranks.kv_cache_used_tokens, all_ranks.kv_cache_capacity_tokens
            text += f" · {units.format_count(used)} of {units.format_count(capacity)} tokens"
        if ranks[0].kv_cache_capacity_bytes is not None and len(ranks) == 1:
            used, capacity = ranks[0].kv_cache_used_bytes, ranks[0].kv_cache_capacity_bytes
            text += f" · {units.format_bytes(used)} of {units.format_bytes(capacity)}"
        label = "KV cache" if len(ranks) == 1 else f"KV cache, fullest of {len(ranks)} ranks"
        facts = [
            ("running", units.format_count(all_ranks.requests_running)),
            ("waiting", units.format_count(all_ranks.requests_waiting)),
            ("preemptions", units.format_count(all_ranks.preemptions_total)),
            ("tokens generated", units.format_count(all_ranks.generation_tokens_total)),
            ("context window", units.format_count(all_ranks.max_model_len_tokens)),
        ]
        bars.append((model or "(no name)", Bar(label, text, all_ranks.kv_cache_usage_ratio), facts))
    return bars


def _gpu_bar(device: DeviceReading) -> Bar:
    total, used = device.total_bytes, device.used_bytes
    if total is None or used is None or total <= 0:
        return Bar("VRAM", device.detail or device.problem or "not read", None)
    text = f"{units.format_ratio(used / total)} · {units.format_bytes(used)} of {units.format_bytes(total)}"
    peak = None if device.used_peak_bytes is None else device.used_peak_bytes / total
    if device.used_peak_bytes is not None:
        text += f" · peak {units.format_bytes(device.used_peak_bytes)}"
    # Engines take nine tenths of a GPU on purpose; that alone is no reason to look up.
    return Bar("VRAM", text, used / total, peak, high=0.95, full=0.98)


def _segments(device: DeviceReading, snapshot: Snapshot) -> list[Segment]:
    """What the memory in use on the GPU is used for, server by server; empty where nothing of it is known."""
    total = device.total_bytes
    parts = [part for part in snapshot.memory.parts if part.gpu == device.uuid]
    if not total or device.used_bytes is None or not parts:
        return []
    owners = list(dict.fromkeys(part.target for part in parts if part.target))

    def place(part: MemoryPart) -> tuple[int, int]:
        owner = owners.index(part.target) if part.target else len(owners)
        return owner, PARTS.index(part.component)

    segments = []
    for part in sorted(parts, key=place):
        name = _component_name(part.component)
        if len(owners) > 1 and part.target:
            name = f"{part.target} {name}"
        if part.size_bytes or part.component == "unaccounted":
            segments.append(
                Segment(
                    part.component,
                    name,
                    units.format_bytes(part.size_bytes),
                    max(0.0, part.size_bytes / total),
                    part.basis == "predicted" and part.component != "unaccounted",
                )
            )
    return segments


def status_page(snapshot: Snapshot) -> str:
    """The page as HTML."""
    owners: dict[str, list[str]] = {}
    for target in snapshot.targets:
        for uuid, _rank in target.gpus:
            owners.setdefault(uuid, []).append(target.name)
    return _template().render(
        version=__version__,
        time=datetime.fromtimestamp(snapshot.time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        targets=[(target, _kv_bars(target), _beside(target, snapshot)) for target in snapshot.targets],
        gpu=snapshot.gpu,
        unfolded=sum(target.footprint is not None for target in snapshot.targets) <= _UNFOLDED,
        gpus=[
            (device, _gpu_bar(device), _segments(device, snapshot), owners.get(device.uuid, []))
            for device in snapshot.gpu.devices
        ],
        simulated=any(target.reading is not None and target.reading.simulated for target in snapshot.targets),
        reload_successful=snapshot.reload_successful,
        reload_problem=snapshot.reload_problem,
        # What is wrong with files stands in reload_problem already.
        unfound=[each.problem for each in snapshot.discovery if each.problem and each.source != "files"],
        down=sum(not target.up for target in snapshot.targets),
        troubled=sum(target.up and bool(target.problems) for target in snapshot.targets),
        now=snapshot.time,
    )
