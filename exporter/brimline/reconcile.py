"""Predicted beside observed: what each GPU's memory is used for, what is left, how far predictions are off.

A predicted size never poses as an observation: every part says whether it was measured.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Literal

import msgspec

from brimline import units
from brimline.readings import (
    COMPONENTS,
    OTHER,
    UNKNOWN,
    DeviceReading,
    EngineReading,
    Footprint,
    MemoryAccount,
    MemoryPart,
    RankFootprint,
    RankReading,
    Snapshot,
    TargetSnapshot,
    Uuid,
)


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """A target as its GPUs know it, whether it can be read at this moment or not.

    footprint: the last one known, since a server that is down will need its memory again.
    """

    name: str
    gpus: tuple[tuple[Uuid, str], ...]
    footprint: Footprint | None


def stages_of_gpus(gpus: Sequence[tuple[Uuid, str]], footprint: Footprint) -> dict[Uuid, RankFootprint]:
    """The part of the footprint that each GPU of a target holds.

    The GPUs of a data-parallel rank in order: all tensor ranks of a stage, then the next stage. Where their
    number is not that of the settings, each is taken for the fullest.
    """
    by_rank: dict[str, list[Uuid]] = {}
    for gpu, rank in gpus:
        by_rank.setdefault(rank, []).append(gpu)
    width = footprint.tensor_parallel
    found = {}
    for group in by_rank.values():
        fits = len(group) == width * len(footprint.ranks)
        for index, gpu in enumerate(group):
            found[gpu] = footprint.ranks[index // width] if fits else footprint.fullest
    return found


def account(
    targets: Sequence[TargetSnapshot],
    tenants: Sequence[Tenant],
    devices: Sequence[DeviceReading],
    *,
    reserve_other_bytes: int = 0,
) -> MemoryAccount:
    """What the memory of every assigned GPU is used for, and what that leaves. Pure."""
    by_uuid = {device.uuid: device for device in devices}
    parts: list[MemoryPart] = []
    errors: dict[tuple[str, str], float] = {}
    ceilings: dict[str, float] = {}
    defects: dict[str, str] = {}
    for target in targets:
        try:
            mine = list(_parts_of(target, by_uuid))
            ratios = _error_ratios(target)
            ceiling = _ceiling_now(target)
        except Exception as error:  # noqa: BLE001 - the edge of one target: a defect must not cost the others
            defects[target.name] = _said_of(error)
            continue
        parts += mine
        errors |= {(target.name, name): ratio for name, ratio in ratios.items()}
        if ceiling is not None:
            ceilings[target.name] = ceiling
    owners = {device.uuid: owned for device in devices if (owned := _process_owners(device, targets))}
    parts += _strangers(owners, targets)
    parts += _remainders(parts, by_uuid)
    plans: dict[str, Mapping[Uuid, int] | None] = {}
    for tenant in tenants:
        try:
            plans[tenant.name] = _plan_of(tenant)
        except Exception as error:  # noqa: BLE001 - as above
            defects.setdefault(tenant.name, _said_of(error))
            plans[tenant.name] = None
    is_read = {target.name for target in targets if target.up}
    headroom = {}
    for tenant in tenants:
        if tenant.name in is_read and tenant.name not in defects:
            left = _headroom(tenant, plans, tenants, by_uuid, reserve_other_bytes)
            if left is not None:
                headroom[tenant.name] = left
    return MemoryAccount(
        parts=tuple(parts),
        headroom_bytes=headroom,
        error_ratio=errors,
        ceiling_tokens_per_second=ceilings,
        process_bytes=owners,
        defects=defects,
    )


def _said_of(error: Exception) -> str:
    """A defect, and where it is."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({PurePath(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {str(error)[:200]}{where}"


# --- what a GPU's memory is used for ---


def _reading_of_one_model(target: TargetSnapshot) -> dict[str, RankReading] | None:
    """Rank readings by rank; None where the target cannot be read, serves several models or sleeps."""
    reading = target.reading
    if reading is None or reading.sleeping or len({rank.model for rank in reading.ranks}) != 1:
        return None
    return {rank.rank: rank for rank in reading.ranks}


def _parts_of(target: TargetSnapshot, devices: Mapping[Uuid, DeviceReading]) -> Iterator[MemoryPart]:
    if not target.gpus:
        return
    ranks = _reading_of_one_model(target)
    # Where settings and GPUs contradict each other, some of the GPUs may not be its own.
    if ranks is None or target.has_problem("gpu_count"):
        return
    stages = {} if target.footprint is None else stages_of_gpus(target.gpus, target.footprint)
    for gpu, rank_name in target.gpus:
        device = devices.get(gpu)
        if device is None or device.used_bytes is None:
            continue
        # Without a rank of its own a GPU's share of the cache is known only where there is one rank.
        rank = ranks.get(rank_name) or (next(iter(ranks.values())) if len(ranks) == 1 else None)
        stage = stages.get(gpu)
        observed = {} if rank is None else _observed(rank, stage, target.footprint)
        for component, (size, basis) in observed.items():
            yield MemoryPart(gpu=gpu, target=target.name, component=component, basis=basis, size_bytes=size)
        for component, estimate in stage.components.items() if stage is not None else ():
            if component in observed or (component == "kv_cache" and "kv_cache_used" in observed):
                continue
            yield MemoryPart(
                gpu=gpu,
                target=target.name,
                component=component,
                basis="predicted",
                size_bytes=estimate.expected,
            )


Basis = Literal["measured", "predicted"]


def _observed(
    rank: RankReading, stage: RankFootprint | None, footprint: Footprint | None
) -> dict[str, tuple[int, Basis]]:
    """What the engine itself says of its memory on a GPU of this stage, and whether it measured that.

    A cache known in tokens only is told by the predicted bytes of one: how it is divided into used and free
    is the server's word, its size is none.
    """
    said: dict[str, tuple[int, Basis]] = {
        component: (int(size), "measured") for component, size in (rank.measured_memory_bytes or {}).items()
    }
    capacity, used = rank.kv_cache_capacity_bytes, rank.kv_cache_used_bytes
    if capacity is None:
        return said
    basis: Basis = "predicted" if rank.kv_cache_bytes_computed else "measured"
    share = 1.0 if stage is None or footprint is None else _kv_share(stage, footprint)
    if used is None and rank.kv_cache_usage_ratio is not None:
        used = capacity * rank.kv_cache_usage_ratio
    if used is None:
        said["kv_cache"] = int(capacity * share), basis
        return said
    said["kv_cache_used"] = int(used * share), basis
    said["kv_cache_free"] = int(capacity * share) - int(used * share), basis
    return said


def _measured(rank: RankReading, stage: RankFootprint, footprint: Footprint) -> dict[str, int]:
    """What of that was measured."""
    observed = _observed(rank, stage, footprint)
    return {component: size for component, (size, basis) in observed.items() if basis == "measured"}


def _kv_share(stage: RankFootprint, footprint: Footprint) -> float:
    """A stage's share of the bytes that a rank's cache is stated with.

    These are of the fullest stage, or of all devices and the host together.
    """
    cache = footprint.kv_cache
    if cache.stage_block_bytes:
        fullest = max(cache.stage_block_bytes)
        return cache.stage_block_bytes[stage.pipeline_stage] / fullest if fullest else 0.0
    pools = [
        rank.components["kv_cache"].expected for rank in footprint.ranks if "kv_cache" in rank.components
    ]
    if cache.of_all_devices:
        pools += [rank.host["kv_cache"].expected for rank in footprint.ranks if "kv_cache" in rank.host]
    whole = sum(pools) if cache.of_all_devices else max(pools, default=0)
    mine = stage.components.get("kv_cache")
    if not whole:
        return 1.0
    return mine.expected / whole if mine is not None else 0.0


def beyond_card(reading: EngineReading, footprint: Footprint, visible_bytes: int) -> str | None:
    """Why a server with this KV cache cannot be the predicted one; None where it can.

    Its weights and the cache that it has, in this model's bytes, must lie on GPUs of which CUDA shows
    visible_bytes each: a server that answers has loaded them.
    """
    if not footprint.kv_cache.of_all_devices and any("kv_cache" in rank.host for rank in footprint.ranks):
        return None
    capacity = max((rank.kv_cache_capacity_bytes or 0.0 for rank in reading.ranks), default=0.0)
    for stage in footprint.ranks:
        weights = stage.components["weights"].low if "weights" in stage.components else 0
        pool = int(capacity * _kv_share(stage, footprint))
        if weights + pool > visible_bytes:
            sizes = f"{units.format_bytes(weights)} of weights"
            if pool:
                sizes += f" and {units.format_bytes(pool)} for the KV cache that the server has"
            return f"{sizes} are more than the {units.format_bytes(visible_bytes)} that CUDA shows of a GPU"
    return None


def _process_owners(device: DeviceReading, targets: Sequence[TargetSnapshot]) -> dict[str, int]:
    """Bytes of a GPU's processes by owner; empty where they are not listed or the driver does not tell.

    A process that belongs to no visible target is a stranger only where every target of the GPU shows its
    processes; a target in another PID namespace would be taken for one.
    """
    sizes = {pid: size for pid, size in (device.processes or {}).items() if size is not None}
    if not sizes:
        return {}
    here = [target for target in targets if any(gpu == device.uuid for gpu, _ in target.gpus)]
    families = {target.name: target.process.pids for target in targets if target.process is not None}
    all_known = all(target.name in families for target in here)
    owners: dict[str, int] = {}
    for pid, size in sizes.items():
        owner = next((name for name, family in families.items() if pid in family), None)
        name = owner if owner is not None else OTHER if all_known else UNKNOWN
        owners[name] = owners.get(name, 0) + size
    return owners


def _strangers(
    owners: Mapping[Uuid, Mapping[str, int]], targets: Sequence[TargetSnapshot]
) -> Iterator[MemoryPart]:
    """What processes of no target hold on GPUs that belong to one."""
    assigned = {gpu for target in targets for gpu, _ in target.gpus}
    for gpu, sizes in owners.items():
        if gpu in assigned and OTHER in sizes:
            yield MemoryPart(
                gpu=gpu, target="", component="other_processes", basis="measured", size_bytes=sizes[OTHER]
            )


def _remainders(parts: Sequence[MemoryPart], devices: Mapping[Uuid, DeviceReading]) -> Iterator[MemoryPart]:
    """What no target accounts for on each GPU with a part; negative where less is used than said.

    Of a GPU whose target tells no parts, that is all but what strangers hold. Measured less measured is
    measured; a remainder that holds the error of a prediction is not.
    """
    accounted: dict[Uuid, int] = {}
    estimated = {part.gpu for part in parts if part.basis == "predicted"}
    for part in parts:
        accounted[part.gpu] = accounted.get(part.gpu, 0) + part.size_bytes
    for gpu in accounted:
        device = devices.get(gpu)
        if device is not None and device.used_bytes is not None:
            yield MemoryPart(
                gpu=gpu,
                target="",
                component="unaccounted",
                basis="predicted" if gpu in estimated else "measured",
                size_bytes=device.used_bytes - accounted[gpu],
            )


# --- what is left ---


def _plan_of(tenant: Tenant) -> dict[Uuid, int] | None:
    """What the tenant should use of each of its GPUs; None where that is not predicted."""
    footprint = tenant.footprint
    if footprint is None:
        return None
    return {
        gpu: rank.total.expected if footprint.calibrated else rank.total.high
        for gpu, rank in stages_of_gpus(tenant.gpus, footprint).items()
    }


def _headroom(
    tenant: Tenant,
    plans: Mapping[str, Mapping[Uuid, int] | None],
    tenants: Sequence[Tenant],
    devices: Mapping[Uuid, DeviceReading],
    reserve_other_bytes: int,
) -> int | None:
    """Least over the target's GPUs of free - max(0, planned - used) - reserve.

    What was in use once and given back is wanted again, as is the memory of a server that sleeps: the plan
    counts against what is used now. None where one of its GPUs cannot be read or a target on them has no
    prediction: half a plan would promise room that is not there.
    """
    if not tenant.gpus:
        return None
    left = []
    for gpu, _ in tenant.gpus:
        device = devices.get(gpu)
        if device is None or device.free_bytes is None or device.used_bytes is None:
            return None
        planned = 0
        for other in tenants:
            if all(gpu != mine for mine, _ in other.gpus):
                continue
            plan = plans[other.name]
            if plan is None:
                return None
            planned += plan[gpu]
        left.append(device.free_bytes - max(0, planned - device.used_bytes) - reserve_other_bytes)
    return min(left)


# --- the ceiling at the present load ---


def _ceiling_now(target: TargetSnapshot) -> float | None:
    """The decode ceiling at the target's present batch and mean context, of all its ranks together."""
    ranks = _reading_of_one_model(target)
    if ranks is None or target.footprint is None or target.footprint.decode_ceiling is None:
        return None
    total = 0.0
    for rank in ranks.values():
        if not rank.requests_running or rank.kv_cache_used_tokens is None:
            continue
        batch = max(1, round(rank.requests_running))
        total += target.footprint.decode_ceiling(batch, round(rank.kv_cache_used_tokens / batch))
    return total or None


# --- side by side, for people ---


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One line of predicted beside observed. unit: bytes, tokens or requests.

    low, high: None where the prediction has no bounds of its own. observed: None where nothing measures it.
    """

    name: str
    unit: Literal["bytes", "tokens", "requests"]
    expected: float
    low: float | None = None
    high: float | None = None
    observed: float | None = None

    @property
    def difference_ratio(self) -> float | None:
        """(observed - predicted) / predicted."""
        if self.observed is None or not self.expected:
            return None
        return (self.observed - self.expected) / self.expected


def _measured_components(target: TargetSnapshot, footprint: Footprint) -> dict[str, int]:
    """Bytes of each component on the target's fullest GPU, where all its ranks measure it.

    Of several ranks the one with the least cache, and else the one that holds most.
    """
    ranks = _reading_of_one_model(target) or {}
    fullest = footprint.fullest
    measured = [_by_component(_measured(rank, fullest, footprint)) for rank in ranks.values()]
    if not measured:
        return {}
    first, *others = measured
    return {
        component: (min if component == "kv_cache" else max)([said[component] for said in measured])
        for component in COMPONENTS
        if component in first and all(component in said for said in others)
    }


def _error_ratios(target: TargetSnapshot) -> dict[str, float]:
    """(observed - predicted) / predicted of each component that is measured and predicted."""
    footprint = target.footprint
    if footprint is None:
        return {}
    ratios = {}
    for name, size in _measured_components(target, footprint).items():
        estimate = footprint.fullest.components.get(name)
        if estimate is not None and estimate.expected:
            ratios[name] = (size - estimate.expected) / estimate.expected
    return ratios


def _component_comparisons(target: TargetSnapshot) -> list[Comparison]:
    """Predicted beside measured for each component of the target's fullest GPU."""
    if target.footprint is None:
        return []
    components = target.footprint.fullest.components
    measured = _measured_components(target, target.footprint)
    return [
        Comparison(
            name=component,
            unit="bytes",
            expected=components[component].expected,
            low=components[component].low,
            high=components[component].high,
            observed=measured.get(component),
        )
        for component in COMPONENTS
        if component in components
    ]


def comparisons(target: TargetSnapshot, snapshot: Snapshot) -> list[Comparison]:
    """Predicted beside observed for one target: its fullest GPU by component, the whole, and its KV cache.

    Empty where nothing is predicted. The whole is compared with what is in use on a GPU only where the target
    has it for itself.
    """
    footprint = target.footprint
    if footprint is None:
        return []
    ranks = _reading_of_one_model(target) or {}
    fullest = footprint.fullest
    lines = _component_comparisons(target)
    whole = fullest.total
    if "kv_cache" in fullest.components:
        lines.append(
            Comparison(
                name="whole GPU",
                unit="bytes",
                expected=whole.expected,
                low=whole.low,
                high=whole.high,
                observed=_used_alone(target, snapshot),
            )
        )
    readings = list(ranks.values())
    for name, unit, predicted, field in (
        (
            "KV cache capacity in tokens",
            "tokens",
            footprint.kv_cache.capacity_tokens,
            "kv_cache_capacity_tokens",
        ),
        (
            "full-length requests at once",
            "requests",
            footprint.kv_cache.max_concurrency_requests,
            "kv_cache_max_concurrency_requests",
        ),
    ):
        said = [getattr(rank, field) for rank in readings]
        if predicted is not None:
            least = min(said) if said and None not in said else None
            lines.append(Comparison(name=name, unit=unit, expected=predicted, observed=least))  # type: ignore[arg-type]
    return lines


def _by_component(measured: dict[str, int]) -> dict[str, int]:
    """The same with the K/V cache whole, where it is told as used and free."""
    if "kv_cache_used" in measured:
        measured["kv_cache"] = measured["kv_cache_used"] + measured["kv_cache_free"]
    return measured


def _used_alone(target: TargetSnapshot, snapshot: Snapshot) -> int | None:
    """Most memory in use on a GPU of the target; None where it shares one, or one cannot be read."""
    mine = {gpu for gpu, _ in target.gpus}
    shared = {gpu for other in snapshot.targets if other.name != target.name for gpu, _ in other.gpus}
    used = [device.used_bytes for device in snapshot.gpu.devices if device.uuid in mine]
    if not used or mine & shared or len(used) != len(mine):
        return None
    known = [size for size in used if size is not None]
    return max(known) if len(known) == len(used) else None
