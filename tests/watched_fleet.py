"""What boards are looked at with: real exporters over simulated servers, in a real Prometheus with the rules.

Two variants of one experiment, one of which is restarted; a server without traffic, which a second exporter
without access to GPUs watches under the same name, with memory as dcgm-exporter would tell it; a server that
is gone; and four GPUs, of which one cannot be read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from brimline import verdicts
from brimline.demo.gpu_recording import recording
from brimline.demo.profiles import MODEL_FOLDER, PROFILES, RESIDENT_GPU_BYTES
from exporter_process import running_exporter
from prometheus_server import Prometheus, free_port, running_prometheus
from simulated_server import simulated_vllm
from waiting import eventually

RULES = Path(__file__).parent.parent / "dashboards/generated/rules/brimline-recording.yaml"
EXPERIMENT = "context-window"
BASELINE, CANDIDATE, IDLE, GONE = "short-context", "long-context", "idle", "gone"
BROKEN_GPU = "GPU-51ae0000-0000-4000-8000-00000000dead"
IDLE_GPU = "GPU-51ae0000-0000-4000-8000-000000000003"

POD = {"namespace": "llm", "pod": "idle-0"}
DCGM_GPU = "GPU-51ae0000-0000-4000-8000-00000000dc90"
JUDGED = "judged"
WATCHED = {"experiment": JUDGED, "candidate": PROFILES[CANDIDATE].variant}
OTHERS_SERIES = {
    # MiB, by an exporter that is none of ours.
    "DCGM_FI_DEV_FB_USED": (70_000, {"UUID": DCGM_GPU, **POD}),
    "DCGM_FI_DEV_FB_FREE": (11_000, {"UUID": DCGM_GPU, **POD}),
    "DCGM_FI_DEV_FB_RESERVED": (559, {"UUID": DCGM_GPU, **POD}),
    # An experiment that is watched.
    verdicts.VERDICT: (1, {**WATCHED, "metric": verdicts.OVERALL, "verdict": "pass"}),
    verdicts.BLOCKS: (8, {**WATCHED, "metric": verdicts.OVERALL}),
    verdicts.REQUIRED: (5400, {**WATCHED, "metric": verdicts.OVERALL}),
    verdicts.GATE: (0, {"experiment": JUDGED}),
    verdicts.DELTA: (0.031, {**WATCHED, "metric": "inter_token_latency"}),
}


def gpu_recording() -> Iterator[dict[str, Any]]:
    """The demo's GPUs, one more that serves without traffic, and one that cannot be read."""
    header, *samples = recording()
    [like, *_] = header["gpus"]
    more = [{**like, "uuid": uuid, "index": str(2 + n)} for n, uuid in enumerate((IDLE_GPU, BROKEN_GPU))]
    yield {**header, "gpus": [*header["gpus"], *more]}
    for sample in samples:
        used = {**sample["used_bytes"], IDLE_GPU: RESIDENT_GPU_BYTES, BROKEN_GPU: None}
        yield {**sample, "used_bytes": used}


def _target(name: str, port: int, profile: str, gpu: str | None, role: str | None) -> dict[str, Any]:
    launched = PROFILES[profile]
    target: dict[str, Any] = {
        "name": name,
        "url": f"http://127.0.0.1:{port}",
        "model": str(MODEL_FOLDER),
        "launch": {
            "max_model_len": launched.max_model_len,
            "kv_cache_dtype": launched.kv_cache_dtype,
            "tensor_parallel_size": 1,
        },
    }
    if gpu is not None:
        target["gpus"] = [gpu]
    if role is not None:
        target |= {"experiment": EXPERIMENT, "variant": launched.variant, "role": role}
    return target


def rules(interval: str) -> dict[str, str]:
    """The committed recording rules, evaluated as often as is scraped, and what other exporters would say."""
    said = [
        {"record": name, "expr": f"vector({value})", "labels": labels}
        for name, (value, labels) in OTHERS_SERIES.items()
    ]
    return {
        "recording.yaml": re.sub(r"interval: \w+", f"interval: {interval}", RULES.read_text()),
        "others.yaml": json.dumps({"groups": [{"name": "others", "interval": interval, "rules": said}]}),
    }


@contextmanager
def watched_fleet(folder: Path, *, restart_after: float = 8.0, interval: str = "1s") -> Iterator[Prometheus]:
    """A Prometheus that holds all of it, some seconds after the restart."""
    baseline_port = free_port()
    [first, second] = [profile.gpu_uuid for profile in PROFILES.values()]
    with ExitStack() as first_life, ExitStack() as stack:
        first_life.enter_context(simulated_vllm(BASELINE, port=baseline_port))
        candidate = stack.enter_context(simulated_vllm(CANDIDATE))
        idle = stack.enter_context(simulated_vllm(BASELINE, requests_per_second=1e-9))
        gpus = folder / "gpu.jsonl"
        gpus.write_text("".join(json.dumps(line) + "\n" for line in gpu_recording()))
        targets = [
            _target(BASELINE, baseline_port, BASELINE, first, "baseline"),
            _target(CANDIDATE, candidate.port, CANDIDATE, second, "candidate"),
            _target(IDLE, idle.port, BASELINE, IDLE_GPU, None),
            {"name": GONE, "url": "http://127.0.0.1:9"},
        ]
        config = {"gpu": {"backend": "replay", "path": str(gpus)}, "targets": targets}
        without_gpus = {
            "gpu": {"backend": "none"},
            "targets": [_target(IDLE, idle.port, BASELINE, None, None)],
        }
        exporters = []
        for name, each in (("node", config), ("sidecar", without_gpus)):
            (folder / name).mkdir()
            exporters.append(stack.enter_context(running_exporter(folder / name, json.dumps(each))))
        prometheus = stack.enter_context(
            running_prometheus(
                folder,
                [exporter.port for exporter in exporters],
                interval=interval,
                rules=rules(interval),
                labels_by_port={exporters[1].port: POD},
            )
        )
        asked = f'brimline_target_start_time_seconds{{target="{BASELINE}"}}'
        eventually(
            lambda: prometheus.value(f"time() - min_over_time(timestamp({asked})[1h:1s]) > {restart_after}"),
            within=restart_after + 40,
        )
        first_life.close()
        eventually(lambda: prometheus.value(f'brimline_target_up{{target="{BASELINE}"}} == 0') == 0)
        stack.enter_context(simulated_vllm(BASELINE, port=baseline_port))
        yield prometheus
