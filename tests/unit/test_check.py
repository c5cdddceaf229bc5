"""What `brimline check` says of GPUs; its tables and servers: tests/integration/test_commands.py."""

import json
from io import StringIO
from types import MappingProxyType

import pytest
from rich.console import Console

from brimline.check import as_json, print_snapshot, problem_lines
from brimline.config import Config, Target
from brimline.readings import DeviceReading, GpuReading, Problem, Snapshot, TargetSnapshot, Uuid

GIB = 1 << 30
READ = DeviceReading(
    uuid=Uuid("GPU-a"),
    index="0",
    name="NVIDIA H100 80GB HBM3",
    memory_api="v2",
    total_bytes=80 * GIB,
    used_bytes=0,
    processes=MappingProxyType({17: GIB}),
)
LOST = DeviceReading(uuid=Uuid("GPU-b"), index="1", problem="lost", detail="GPU is lost")


def snapshot(*targets: TargetSnapshot, gpu: GpuReading) -> Snapshot:
    return Snapshot(time=0.0, targets=targets, gpu=gpu)


def test_a_gpu_as_json_keeps_0_apart_from_what_is_not_known() -> None:
    seen = snapshot(gpu=GpuReading(up=True, devices=(READ, LOST)))

    first, second = json.loads(json.dumps(as_json(seen, Config(), {})))["gpus"]["devices"]

    assert (first["gpu"], first["used_bytes"], first["reserved_bytes"]) == ("GPU-a", 0, None)
    assert (second["used_bytes"], second["problem"], second["detail"]) == (None, "lost", "GPU is lost")
    assert "processes" not in first


def test_a_lost_gpu_is_a_line_of_its_own() -> None:
    seen = snapshot(gpu=GpuReading(up=True, devices=(READ, LOST)))

    assert list(problem_lines(seen, Config(), {})) == ["GPU 1: lost: GPU is lost"]


@pytest.mark.parametrize(("gpus", "lines"), [(None, 0), (["GPU-a"], 1)])
def test_a_machine_without_the_library_is_a_problem_where_a_target_names_a_gpu(
    gpus: list[str | int] | None, lines: int
) -> None:
    config = Config(targets=[Target(name="a", url="http://a:1", gpus=gpus)])
    seen = snapshot(gpu=GpuReading(up=False, problem="library_not_found", detail="libnvidia-ml.so.1"))

    assert len(list(problem_lines(seen, config, {}))) == lines


def test_an_unassigned_gpu_is_no_line_as_it_is_no_failure() -> None:
    up = TargetSnapshot(name="a", url="", up=True, problems=(Problem("gpu_unassigned", "name it"),))

    assert list(problem_lines(snapshot(up, gpu=GpuReading()), Config(), {})) == []


def test_all_is_well_only_where_there_is_a_target_and_no_pod_was_refused() -> None:
    up = TargetSnapshot(name="a", url="", up=True)

    assert as_json(snapshot(up, gpu=GpuReading()), Config(), {})["well"] is True
    assert as_json(snapshot(gpu=GpuReading()), Config(), {})["well"] is False
    assert as_json(snapshot(up, gpu=GpuReading()), Config(), {}, problems=["pod x: no"])["well"] is False


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_gpu_stands_with_its_whole_uuid_and_its_problem(width: int) -> None:
    uuid = "GPU-51ae0000-0000-4000-8000-000000000001"
    lost = DeviceReading(uuid=Uuid(uuid), index="1", name="NVIDIA H100", problem="lost", detail="GPU is lost")
    out = StringIO()

    print_snapshot(
        snapshot(gpu=GpuReading(up=True, devices=(READ, lost))), Console(file=out, width=width), {}
    )

    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert any(uuid in line for line in lines)
    assert any("! lost: GPU is lost" in line for line in lines)
    assert any("80.00 GiB" in line for line in lines)
    assert any("reserved, memory API v2" in line for line in lines)
