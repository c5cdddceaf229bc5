"""Which GPUs belong to a target."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from brimline.config import GpuSource, Target
from brimline.files import NotARegularFile, open_regular
from brimline.processes import descendants, listening_pid
from brimline.readings import DeviceReading, Problem, Uuid

_UUID = re.compile(r"\b(?:GPU|MIG)-[0-9A-Za-z/-]+")
MAX_FILE_BYTES = 64 << 10

Assigned = tuple[tuple[Uuid, str], ...]


def uuids_in(text: str) -> list[str]:
    """GPU UUIDs in what `nvidia-smi -L` printed, or one to a line; MIG instances instead of their parents."""
    found: list[str] = []
    for line in text.splitlines():
        for uuid in _UUID.findall(line):
            # `nvidia-smi -L` indents an instance below its parent.
            if uuid.startswith("MIG-") and line[:1].isspace() and found and found[-1].startswith("GPU-"):
                found.pop()
            found.append(uuid)
    return list(dict.fromkeys(found))


def _ranked(devices: Sequence[DeviceReading], ranks: Sequence[str]) -> Assigned:
    """Each GPU with its data-parallel rank: the GPUs in order, as many for each rank.

    Where they cannot be shared out evenly, no rank is told.
    """
    if not ranks or len(devices) % len(ranks):
        return tuple((device.uuid, "0" if len(ranks) < 2 else "") for device in devices)
    in_order = sorted(ranks, key=lambda rank: (len(rank), rank))  # "2" comes before "10"
    share = len(devices) // len(ranks)
    return tuple((device.uuid, in_order[index // share]) for index, device in enumerate(devices))


def _pick(
    wanted: Sequence[str | int], devices: Sequence[DeviceReading]
) -> tuple[list[DeviceReading], list[str]]:
    by_uuid = {str(device.uuid): device for device in devices}
    by_index = {device.index: device for device in devices}
    picked, unknown = [], []
    for name in wanted:
        device = by_index.get(str(name)) if isinstance(name, int) else by_uuid.get(name) or by_index.get(name)
        if device is None:
            unknown.append(str(name))
        elif device not in picked:
            picked.append(device)
    return picked, unknown


def assign_gpus(
    target: Target,
    devices: Sequence[DeviceReading],
    *,
    ranks: Sequence[str],
    world_size: int | None,
    targets: int,
    find_listener: Callable[[int], int | None] = listening_pid,
    find_descendants: Callable[[int], frozenset[int]] = descendants,
) -> tuple[Assigned, tuple[Problem, ...]]:
    """The GPUs of a target with their ranks, and what is wrong with that.

    Without `gpus` they are known only when this is the one target and its world size equals the visible GPUs:
    anything else would be a guess, and would count a GPU twice where two exporters guess alike.
    Where `gpus` names another number than the settings, the two contradict each other, which is a problem.
    world_size: None where the launch settings do not say, 0 for a server on the CPU. Reads files and /proc
    where `gpus` asks for it.
    """
    if not devices or (target.gpus is None and world_size == 0):
        return (), ()
    if target.gpus is None:
        return _assign_all(devices, ranks, world_size, targets)
    assigned, problems = _assign_named(target, devices, ranks, find_listener, find_descendants)
    if assigned and not problems and world_size is not None and world_size != len(assigned):
        why = (
            f"`gpus` gives the server {len(assigned)} GPU(s), and by its settings it uses {world_size}; "
            "correct `gpus`, or the parallel sizes in `launch`"
        )
        problems = (Problem("gpu_count", why),)
    return assigned, problems


def _assign_all(
    devices: Sequence[DeviceReading], ranks: Sequence[str], world_size: int | None, targets: int
) -> tuple[Assigned, tuple[Problem, ...]]:
    if targets == 1 and world_size == len(devices):
        return _ranked(devices, ranks), ()
    if targets > 1:
        why = f"there are {targets} targets"
    elif world_size is None:
        why = "the server's launch settings, and with them how many GPUs it uses, are not known"
    else:
        why = f"the server uses {world_size} GPU(s) and {len(devices)} are visible"
    return (), (Problem("gpu_unassigned", f"{why}; list the target's `gpus`"),)


def _assign_named(
    target: Target,
    devices: Sequence[DeviceReading],
    ranks: Sequence[str],
    find_listener: Callable[[int], int | None],
    find_descendants: Callable[[int], frozenset[int]],
) -> tuple[Assigned, tuple[Problem, ...]]:
    source = target.gpus
    if isinstance(source, list):
        return _assign_listed(source, devices, ranks)
    if isinstance(source, GpuSource) and source.file is not None:
        try:
            with open_regular(source.file) as file:
                text = file.read(MAX_FILE_BYTES).decode("utf-8", "replace")
        except NotARegularFile:
            return (), (Problem("gpu_unassigned", f"{source.file} cannot be read (not a regular file)"),)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            return (), (Problem("gpu_unassigned", f"{source.file} cannot be read ({why})"),)
        listed = uuids_in(text)
        if not listed:
            return (), (
                Problem("gpu_unassigned", f"{source.file} names no GPU UUID; write `nvidia-smi -L` into it"),
            )
        return _assign_listed(listed, devices, ranks)
    return _assign_listener(target.port, devices, ranks, find_listener, find_descendants)


def _assign_listed(
    wanted: Sequence[str | int], devices: Sequence[DeviceReading], ranks: Sequence[str]
) -> tuple[Assigned, tuple[Problem, ...]]:
    picked, unknown = _pick(wanted, devices)
    problems = (
        (Problem("gpu_unknown", f"not visible here: {', '.join(unknown)}; see `nvidia-smi -L`"),)
        if unknown
        else ()
    )
    return _ranked(picked, ranks), problems


def _assign_listener(
    port: int,
    devices: Sequence[DeviceReading],
    ranks: Sequence[str],
    find_listener: Callable[[int], int | None],
    find_descendants: Callable[[int], frozenset[int]],
) -> tuple[Assigned, tuple[Problem, ...]]:
    pid = find_listener(port)
    if pid is None:
        why = f"no process that listens on port {port} is visible; share the process namespace or list `gpus`"
        return (), (Problem("gpu_unassigned", why),)
    family = find_descendants(pid)
    used = [device for device in devices if device.pids is not None and device.pids & family]
    if not used:
        why = f"the driver lists no GPU memory of process {pid} or its children; list `gpus`"
        return (), (Problem("gpu_unassigned", why),)
    return _ranked(used, ranks), ()


def wants_pids(targets: Sequence[Target]) -> bool:
    """True where some target takes its GPUs from the listening process, so that processes must be listed."""
    return any(isinstance(target.gpus, GpuSource) and target.gpus.listener for target in targets)
