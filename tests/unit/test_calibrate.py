"""Asking a server and its GPUs for constants: whose memory it is, and what is printed."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from brimline.calibrate import local_gpu, observe, of_server, print_outcome
from brimline.config import Config, GpuConfig, Target
from brimline.errors import FootprintError
from brimline.footprint.findings import Finding, Outcome
from brimline.footprint.predict import read_model
from brimline.readings import DeviceReading, Uuid
from fake_servers import FakeServer, FakeVllm

MIB = 1 << 20


def seen(
    processes: Mapping[int, int | None] | None, listener: int | None = 10
) -> tuple[int | None, tuple[str, ...]]:
    """What is used by the server 10 and its child 11, of 900 on the GPU, and what could not be told apart."""
    device = DeviceReading(uuid=Uuid("GPU-1"), index="0", used_bytes=900, processes=processes)
    [mine], mixed = of_server(
        [device],
        8000,
        find_listener=lambda _: listener,
        find_descendants=lambda pid: frozenset({pid, 11}),
    )
    return mine.used_bytes, mixed


def test_of_a_gpu_that_others_use_too_only_the_servers_own_counts() -> None:
    assert seen({10: 100, 11: 500, 4711: 250}) == (600, ())


def test_a_gpu_of_its_own_counts_whole() -> None:
    """What the driver adds up by process may be less than what is used."""
    assert seen({10: 100, 11: 500}) == (900, ())


def test_where_the_driver_tells_no_bytes_the_others_are_named() -> None:
    used, mixed = seen({11: None, 4712: None, 4711: None})

    assert used == 900
    assert mixed == ("GPU 0 has memory of other processes too (4711, 4712)",)


@pytest.mark.parametrize(
    ("processes", "listener"),
    [
        (None, 10),  # not listed by this driver
        ({4711: 250}, 10),  # numbers of another namespace, as seen from a container
        ({11: 500, 4711: 250}, None),  # a server that is not visible here
    ],
)
def test_what_cannot_be_seen_is_not_said(
    processes: Mapping[int, int | None] | None, listener: int | None
) -> None:
    assert seen(processes, listener) == (900, ())


def recording(path: Path, *names: str) -> Config:
    gpus = [
        {"uuid": f"GPU-{index}", "name": name, "total_bytes": 81_559 * MIB, "reserved_bytes": 551 * MIB}
        for index, name in enumerate(names)
    ]
    used = {gpu["uuid"]: MIB for gpu in gpus}
    lines = [{"brimline_gpu_recording": 1, "gpus": gpus}, {"t": 0, "used_bytes": used}]
    path.write_text("\n".join(map(json.dumps, lines)))
    return Config(gpu=GpuConfig(backend="replay", path=str(path)))


def test_the_gpu_of_this_machine_is_taken_where_it_has_one_kind(tmp_path: Path) -> None:
    config = recording(tmp_path / "gpus.jsonl", "NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3")

    gpu = asyncio.run(local_gpu(config))

    assert (gpu.name, gpu.visible_bytes.expected) == ("H100 SXM", 81_008 * MIB)


def test_of_several_kinds_one_is_to_be_named(tmp_path: Path) -> None:
    config = recording(tmp_path / "gpus.jsonl", "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB")

    with pytest.raises(FootprintError, match="name the log's with --gpu"):
        asyncio.run(local_gpu(config))


def test_without_a_gpu_one_is_to_be_named() -> None:
    with pytest.raises(FootprintError, match="this machine shows no GPU; name the log's with --gpu"):
        asyncio.run(local_gpu(Config(gpu=GpuConfig(backend="none"))))


def test_gpus_that_contradict_the_settings_calibrate_nothing(tmp_path: Path) -> None:
    config = recording(tmp_path / "gpus.jsonl", "NVIDIA H100 80GB HBM3")
    with FakeServer(FakeVllm().routes()) as server:
        config.targets.append(
            Target(name="chat", url=server.url, gpus=[0], launch={"tensor_parallel_size": 2})
        )

        with pytest.raises(FootprintError, match="by its settings it uses 2"):
            asyncio.run(observe(config, "chat", quiet_launch=True, read_model=read_model))


def test_a_row_says_what_was_measured_or_why_it_was_not() -> None:
    printed = io.StringIO()
    outcome = Outcome(
        calibration=None,
        findings=(
            Finding(name="context_bytes", measured="0.55 GiB", table="0.4 – 1 GiB", basis="as printed"),
            Finding(name="non_kv_bytes", basis="set by hand; start without it once"),
        ),
        notes=("A note [not markup].",),
    )

    print_outcome(outcome, Console(file=printed, width=160, markup=False, highlight=False))

    lines = printed.getvalue().splitlines()
    assert any("context_bytes" in line and "0.55 GiB" in line and "0.4 – 1 GiB" in line for line in lines)
    assert any("non_kv_bytes" in line and "–" in line and "start without it once" in line for line in lines)
    assert lines[-1] == "! A note [not markup]."
