"""`brimline calibrate`: ask a running server and its GPUs, and print what was found."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from brimline.check import gpu_is_settled, gpu_problem
from brimline.collect import Collector
from brimline.config import Config, GpuConfig
from brimline.errors import FootprintError
from brimline.fitted_table import print_table
from brimline.footprint.calibrate_live import Observed
from brimline.footprint.findings import Outcome
from brimline.footprint.gpus import Gpu, live_gpu
from brimline.footprint.predict import Model
from brimline.gpu import GpuReader, open_gpu_reader
from brimline.processes import descendants, listening_pid
from brimline.readings import DeviceReading, GpuReading, Snapshot, Uuid

# How long the GPUs may take to be sampled for the first time.
GPU_PATIENCE = 3.0


async def observe(
    config: Config,
    name: str,
    *,
    quiet_launch: bool,
    read_model: Callable[[Path], Model],
    gpu: Gpu | None = None,
) -> Observed:
    """One round over the configuration's target of that name, and its GPUs.

    gpu: its kind where NVML does not tell it. Raises FootprintError where its model cannot be read, and where
    its GPUs contradict its settings.
    """
    collector = Collector(config, quiet_launch=quiet_launch, open_gpus=_with_processes)
    await collector.start()
    try:
        await _settled(collector.gpu_reading)
        snapshot = await collector.snapshot()
        target, reader = snapshot.target(name), collector.reader(name)
        if target is None or reader is None:
            raise FootprintError(f"the configuration names no target {name!r}")
        for problem in target.problems:
            if problem.reason == "gpu_count":
                raise FootprintError(problem.detail)
        path = None if target.reading is None else reader.model_path(target.reading)
        launch_known = reader.is_launch_known(target)
        port = reader.target.port if reader.target.is_loopback else None
    finally:
        await collector.close()
    assigned = {uuid for uuid, _ in target.gpus}
    devices = tuple(device for device in snapshot.gpu.devices if device.uuid in assigned)
    mine, mixed = (devices, ()) if port is None else of_server(devices, port)
    apart = {device.uuid for device, whole in zip(mine, devices, strict=True) if device != whole}
    return Observed(
        target=target,
        devices=mine,
        gpu=_kind(devices) or gpu,
        model=None if path is None else read_model(path),
        launch_known=launch_known,
        others=(*_sharing(snapshot, name, mine_alone=apart), *mixed),
    )


def _with_processes(config: GpuConfig, peak_window: float, *, want_pids: bool = False) -> GpuReader:
    """A reader that lists processes too: once, it is worth what it costs the driver."""
    del want_pids
    return open_gpu_reader(config, peak_window, want_pids=True)


async def _settled(read: Callable[[], GpuReading]) -> GpuReading:
    """The GPUs once each was sampled, or the library has said why not, or patience ends."""
    deadline = asyncio.get_running_loop().time() + GPU_PATIENCE
    # The samples come from threads, which set no event of this loop.
    while not gpu_is_settled(read()) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return read()


def _kind(devices: Sequence[DeviceReading]) -> Gpu | None:
    """The kind of the GPU that fills first; None where none could be read."""
    gpus = [
        live_gpu(device.name or "GPU", device.total_bytes, device.reserved_bytes)
        for device in devices
        if device.total_bytes is not None
    ]
    return min(gpus, key=lambda gpu: gpu.visible_bytes.expected, default=None)


def _sharing(snapshot: Snapshot, name: str, *, mine_alone: Collection[Uuid]) -> Iterator[str]:
    """Other targets on the same GPUs, but for those where the target's own use is told apart."""
    target = snapshot.target(name)
    mine = {uuid for uuid, _ in target.gpus} if target is not None else set()
    for other in snapshot.targets:
        for uuid, _ in other.gpus:
            if other.name != name and uuid in mine and uuid not in mine_alone:
                yield f"the target {other.name} is on {uuid} too"


def of_server(
    devices: Sequence[DeviceReading],
    port: int,
    *,
    find_listener: Callable[[int], int | None] = listening_pid,
    find_descendants: Callable[[int], frozenset[int]] = descendants,
) -> tuple[tuple[DeviceReading, ...], tuple[str, ...]]:
    """The GPUs with only the server's own use where others use them too, and which could not be told apart.

    A process is another's only where the server's own are seen beside it: else the numbers are of another
    namespace, or not for us to see.
    """
    pid = find_listener(port)
    if pid is None:
        return tuple(devices), ()
    family = find_descendants(pid)
    mine, mixed = [], []
    for device in devices:
        processes = device.processes or {}
        own = [size for process, size in processes.items() if process in family]
        others = sorted(process for process in processes if process not in family)
        if own and others and not any(size is None for size in own):
            device = replace(device, used_bytes=sum(size or 0 for size in own))
        elif own and others:
            shown = ", ".join(map(str, others[:5]))
            mixed.append(f"GPU {device.index} has memory of other processes too ({shown})")
        mine.append(device)
    return tuple(mine), tuple(mixed)


async def local_gpu(config: Config) -> Gpu:
    """The kind of this machine's GPUs. Raises FootprintError where there is not one kind."""
    reader = open_gpu_reader(config.gpu, config.peak_window)
    reader.start()
    try:
        reading = await _settled(reader.read)
    finally:
        reader.close()
    kinds = {device.name for device in reading.devices}
    if len(kinds) > 1:
        raise FootprintError(f"this machine has {', '.join(map(str, kinds))}; name the log's with --gpu")
    gpu = _kind(reading.devices)
    if gpu is None:
        why = "" if reading.up is not False else f" ({gpu_problem(reading)})"
        raise FootprintError(f"this machine shows no GPU{why}; name the log's with --gpu, such as --gpu H100")
    return gpu


def print_outcome(outcome: Outcome, console: Console) -> None:
    """Print a row for each constant: what was measured, what the table says, and how it is known."""
    if outcome.findings:
        table = Table(title="Constants, per GPU", title_justify="left")
        table.add_column("constant")
        table.add_column("measured", justify="right", no_wrap=True)
        table.add_column("by the table", justify="right", overflow="fold")
        table.add_column("how it is known, or why not", overflow="fold")
        for finding in outcome.findings:
            table.add_row(finding.name, finding.measured or "–", finding.table or "–", finding.basis)
        print_table(table, console)
    for note in outcome.notes:
        console.print(f"! {note}")
