"""NVML's faults as /metrics shows them: one exporter over the fake library, driven by the state file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter_process import Exporter, running_exporter
from fake_nvml import State, build
from simulated_server import simulated_vllm
from waiting import eventually

GIB = 1 << 30
TWO_GPUS: dict[str, int | str] = {
    "count": 2,
    "driver": "580.95.05",
    "total": 80 * GIB,
    "reserved": GIB // 2,
    "used.0": 10 * GIB,
    "used.1": 20 * GIB,
    "uuid.0": "GPU-fake-0",
    "uuid.1": "GPU-fake-1",
}
CONFIG = (
    "gpu: {sample_interval: 100ms}\ntargets: [{name: chat, url: 'http://127.0.0.1:9', gpus: [GPU-fake-1]}]\n"
)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> State:
    return State(tmp_path_factory.mktemp("nvml"), TWO_GPUS)


@pytest.fixture(scope="module")
def machine(state: State, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    folder = tmp_path_factory.mktemp("library")
    build(folder)
    environ = {**state.environment, "LD_LIBRARY_PATH": str(folder)}
    with running_exporter(tmp_path_factory.mktemp("exporter"), CONFIG, environ=environ) as running:
        yield running


def used(metrics: dict[str, float]) -> dict[str, float]:
    """GiB in use by GPU."""
    prefix = 'gpu_memory_used_bytes{gpu="'
    return {name[len(prefix) : -2]: value / GIB for name, value in metrics.items() if name.startswith(prefix)}


def problems(metrics: dict[str, float]) -> list[str]:
    return sorted(name for name in metrics if name.startswith(("gpu_problem", "nvml_problem")))


def is_healthy(metrics: dict[str, float]) -> bool:
    return used(metrics) == {"GPU-fake-0": 10, "GPU-fake-1": 20} and not problems(metrics)


@pytest.fixture
def exporter(machine: Exporter) -> Exporter:
    """The one process, healthy before the test."""
    eventually(lambda: is_healthy(machine.metrics()))
    return machine


def test_used_total_free_reserved_and_identity(exporter: Exporter) -> None:
    metrics = exporter.metrics()

    assert metrics['gpu_memory_total_bytes{gpu="GPU-fake-0"}'] == 80 * GIB
    assert metrics['gpu_memory_reserved_bytes{gpu="GPU-fake-0"}'] == GIB // 2
    assert metrics['gpu_memory_free_bytes{gpu="GPU-fake-0"}'] == 80 * GIB - 10 * GIB - GIB // 2
    assert metrics["nvml_up"] == 1
    info = [name for name in metrics if name.startswith("gpu_info") and "GPU-fake-0" in name]
    assert len(info) == 1
    assert 'driver="580.95.05"' in info[0]
    assert 'memory_api="v2"' in info[0]
    assert metrics['target_gpu_info{gpu="GPU-fake-1",rank="0",target="chat"}'] == 1


def test_a_spike_between_two_scrapes_stays_in_the_peak(exporter: Exporter, state: State) -> None:
    calls = state.calls()["nvmlDeviceGetMemoryInfo_v2 0"]
    with state.during({"used.0": 79 * GIB}):
        # Nobody scrapes meanwhile: two samples are enough to have seen it.
        eventually(lambda: state.calls()["nvmlDeviceGetMemoryInfo_v2 0"] >= calls + 3)
    metrics = eventually(
        lambda: (page := exporter.metrics()) and (page if used(page)["GPU-fake-0"] == 10 else None)
    )

    assert metrics['gpu_memory_used_peak_bytes{gpu="GPU-fake-0"}'] == 79 * GIB
    assert metrics['gpu_memory_used_peak_bytes{gpu="GPU-fake-1"}'] == 20 * GIB


ONE_GPU = {
    "gpu_lost": {"err.nvmlDeviceGetMemoryInfo.0": 15, "err.nvmlDeviceGetHandleByIndex.0": 15},
    "not_supported": {"err.nvmlDeviceGetMemoryInfo.0": 3},
    "no_permission": {"err.nvmlDeviceGetMemoryInfo.0": 4},
    "unknown": {"err.nvmlDeviceGetMemoryInfo.0": 999},
    "hang": {"hang.nvmlDeviceGetMemoryInfo.0": 600},
}


@pytest.mark.parametrize("reason", ONE_GPU)
def test_a_gpu_that_fails_has_no_value_and_the_other_is_right(
    exporter: Exporter, state: State, reason: str
) -> None:
    before = exporter.metrics()
    with state.during(dict(ONE_GPU[reason])):
        wanted = f'gpu_problem{{gpu="GPU-fake-0",reason="{reason}"}}'
        during = eventually(lambda: (page := exporter.metrics()) and (page if wanted in page else None))
    after = eventually(lambda: (page := exporter.metrics()) and (page if is_healthy(page) else None))

    print(f"{reason}: before {used(before)}, during {used(during)} {problems(during)}, after {used(after)}")
    assert used(during) == {"GPU-fake-1": 20}
    assert not [name for name in during if name.startswith("gpu_memory") and "GPU-fake-0" in name]
    assert during['gpu_up{gpu="GPU-fake-0"}'] == 0
    assert during['gpu_up{gpu="GPU-fake-1"}'] == 1
    assert during["nvml_up"] == 1


WHOLE_LIBRARY = {
    "driver_mismatch": {
        "err.nvmlDeviceGetMemoryInfo": 18,
        "err.nvmlInitWithFlags": 18,
        "err.nvmlDeviceGetCount": 18,
    },
    "driver_not_loaded": {
        "err.nvmlDeviceGetMemoryInfo": 9,
        "err.nvmlInitWithFlags": 9,
        "err.nvmlDeviceGetCount": 9,
    },
    "no_gpus": {"count": 0, "err.nvmlDeviceGetMemoryInfo": 15},
}


@pytest.mark.parametrize("reason", WHOLE_LIBRARY)
def test_a_library_that_fails_takes_all_gpu_values_and_nothing_else(
    exporter: Exporter, state: State, reason: str
) -> None:
    with state.during(dict(WHOLE_LIBRARY[reason])):
        wanted = f'nvml_problem{{reason="{reason}"}}'
        during = eventually(
            lambda: (page := exporter.metrics()) and (page if wanted in page else None), within=80
        )
    after = eventually(lambda: (page := exporter.metrics()) and (page if is_healthy(page) else None))

    print(f"{reason}: during {used(during)} {problems(during)}, after {used(after)}")
    assert used(during) == {}
    assert during["nvml_up"] == 0
    assert during['target_up{target="chat"}'] == 0
    assert "host_memory_total_bytes" in during


def test_mig_instances_take_the_place_of_their_gpu(state: State, tmp_path: Path) -> None:
    build(tmp_path)
    own = State(
        tmp_path,
        {**TWO_GPUS, "mig.0": 2, "err.nvmlDeviceGetMemoryInfo.0": 4, "used.0.0": GIB, "used.0.1": 2 * GIB},
    )
    environ = {**own.environment, "LD_LIBRARY_PATH": str(tmp_path)}

    with running_exporter(tmp_path, CONFIG, environ=environ) as exporter:
        metrics = eventually(
            lambda: (page := exporter.metrics()) and (page if len(used(page)) == 3 else None)
        )

    assert sorted(used(metrics).values()) == [1, 2, 20]
    assert "GPU-fake-0" not in used(metrics)
    assert problems(metrics) == []


def test_the_listening_process_tells_which_gpu_is_the_targets(tmp_path: Path) -> None:
    build(tmp_path)
    state = State(tmp_path, TWO_GPUS)
    environ = {**state.environment, "LD_LIBRARY_PATH": str(tmp_path)}
    owned = 'target_gpu_info{gpu="GPU-fake-1",rank="0",target="chat"}'
    with simulated_vllm("long-context") as server:
        config = (
            "gpu: {sample_interval: 100ms}\n"
            f"targets: [{{name: chat, url: '{server.url}', gpus: {{listener: true}}}}]\n"
        )
        with running_exporter(tmp_path, config, environ=environ) as exporter:
            before = eventually(
                lambda: (page := exporter.metrics()) and (page if len(used(page)) == 2 else None)
            )
            state.set({"pids.1": str(server.pid), "pids.0": "1"})
            after = eventually(lambda: (page := exporter.metrics()) and (page if owned in page else None))

    assert owned not in before
    assert before['target_problem{reason="gpu_unassigned",target="chat"}'] == 1
    assert not [name for name in after if name.startswith("target_gpu_info") and name != owned]
    assert 'target_problem{reason="gpu_unassigned",target="chat"}' not in after


def test_without_the_library_the_exporter_is_up_and_finds_it_when_it_comes(tmp_path: Path) -> None:
    state = State(tmp_path, TWO_GPUS)
    library = tmp_path / "later"
    library.mkdir()
    environ = {**state.environment, "LD_LIBRARY_PATH": str(library)}

    with running_exporter(tmp_path, CONFIG, environ=environ) as exporter:
        before = eventually(
            lambda: (
                (page := exporter.metrics())
                and (page if 'nvml_problem{reason="library_not_found"}' in page else None)
            )
        )
        build(library)
        after = eventually(lambda: (page := exporter.metrics()) and (page if is_healthy(page) else None))

    assert used(before) == {}
    assert before["nvml_up"] == 0
    assert after["nvml_up"] == 1


@pytest.mark.parametrize("function", ["nvmlInitWithFlags", "nvmlDeviceGetMemoryInfo"])
def test_sigterm_ends_it_within_two_seconds_while_nvml_hangs(function: str, tmp_path: Path) -> None:
    build(tmp_path)
    state = State(tmp_path, {**TWO_GPUS, f"hang.{function}": 600})
    environ = {**state.environment, "LD_LIBRARY_PATH": str(tmp_path)}

    with running_exporter(tmp_path, CONFIG, environ=environ) as exporter:
        eventually(lambda: any("hang" in name for name in problems(exporter.metrics())))
        exporter.process.terminate()
        begun = time.monotonic()
        status = exporter.process.wait(60)
        taken = time.monotonic() - begun

    assert status == 0
    assert taken < 8  # two seconds, and the rest for a busy machine


def test_two_sidecars_of_a_machine_tell_each_gpu_once(state: State, tmp_path: Path) -> None:
    """Both see both GPUs, as containers do; each takes its server's from the file that the server wrote."""
    build(tmp_path)
    environ = {**state.environment, "LD_LIBRARY_PATH": str(tmp_path)}
    told: list[list[str]] = []

    for number in (0, 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "gpus.txt").write_text(f"GPU 0: NVIDIA H100 (UUID: GPU-fake-{number})\n")
        config = (
            "gpu: {devices: targets, sample_interval: 100ms}\n"
            f"targets: [{{name: chat, url: 'http://127.0.0.1:9', gpus: {{file: {folder}/gpus.txt}}}}]\n"
        )
        with running_exporter(folder, config, environ=environ) as running:
            eventually(lambda running=running: used(running.metrics()))  # type: ignore[misc]
            told.append(sorted(used(running.metrics())))

    assert told == [["GPU-fake-0"], ["GPU-fake-1"]]
