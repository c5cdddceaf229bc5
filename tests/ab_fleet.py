"""Series of an experiment as Prometheus would have stored them, with all that goes wrong in one.

Two variants of two servers each, every 15 s: `short-b` restarts, `long-a` is not scraped for 20 minutes and
is watched by a second exporter, `long-b` appears later, `short-a` says NaN once and gets another label on
its way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

START = 1_764_000_000.0
HOURS = 4
END = START + HOURS * 3600
INTERVAL = 15.0
RESTART = START + 2 * 3600 + 100
DOWN_SECONDS = 45.0
GAP = (START + 3600, START + 4800)
APPEARS = START + 1830
NAN_AT = START + 900
POD_FROM = START + 5400
BOOTED = START - 5 * 3600 + 0.25
EARLIER_BOOT = START - 30 * 3600 + 0.5

GENERATED_PER_SECOND = 120.0
REQUESTS_PER_SECOND = 0.5
SECONDS_PER_TOKEN = 0.02
CANDIDATE_FACTOR = 1.1
BYTES_PER_TOKEN = 131_072
BUCKETS = {"0.01": 0.2, "0.05": 0.9, "0.1": 1.0, "+Inf": 1.0}

EXPERIMENT = """
name: ctx
variants:
  - {name: short, role: baseline}
  - {name: long, role: candidate}
window: {start: "2025-11-24T16:00:00Z", end: "2025-11-24T20:00:00Z"}
treatment: [max_model_len]
"""


@dataclass(frozen=True)
class Server:
    """One server as one exporter sees it."""

    name: str
    instance: str
    variant: str
    gpu: str
    offset: float
    since: float = START - 600
    until: float = END
    gap: tuple[float, float] | None = None
    restart: float | None = None
    sees_gpus: bool = True

    @property
    def role(self) -> str:
        return "baseline" if self.variant == "short" else "candidate"

    def booted(self, time: float) -> float:
        return self.restart + DOWN_SECONDS if self.restart is not None and time > self.restart else BOOTED


SERVERS = (
    Server("short-a", "10.0.0.1:10778", "short", "GPU-a", 1.0),
    Server("short-b", "10.0.0.2:10778", "short", "GPU-b", 4.25, restart=RESTART),
    Server("long-a", "10.0.0.3:10778", "long", "GPU-c", 7.5, gap=GAP),
    Server("long-a", "10.0.0.9:10778", "long", "GPU-c", 11.0, gap=GAP, sees_gpus=False),
    Server("long-b", "10.0.0.4:10778", "long", "GPU-d", 9.0, since=APPEARS),
)


def labels_text(labels: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{value}"' for name, value in labels.items())


def page(server: Server, time: float) -> Iterator[tuple[str, dict[str, str], float]]:
    """Name, labels and value of what the exporter says of the server then."""
    own = {"target": server.name}
    model = {**own, "model": "llama", "rank": "0"}
    down = server.restart is not None and server.restart < time <= server.restart + DOWN_SECONDS
    about = {"experiment": "ctx", "variant": server.variant, "role": server.role}
    said = {"engine": "vllm", "engine_version": "0.33.0", "simulated": "false"}
    yield "target_info", {**own, **about, **({} if down else said)}, 1
    yield "target_up", own, 0 if down else 1
    if server.sees_gpus:
        yield "target_gpu_info", {**own, "gpu": server.gpu, "rank": "0"}, 1
        about_gpu = {
            "gpu": server.gpu,
            "index": "0",
            "name": "NVIDIA H200",
            "driver": "570.1",
            "memory_api": "v2",
        }
        yield "gpu_info", about_gpu, 1
        yield "gpu_memory_total_bytes", {"gpu": server.gpu}, 150e9
        yield "gpu_memory_used_peak_bytes", {"gpu": server.gpu}, 130e9 if 600 < time - START < 620 else 120e9
        other = {"gpu": server.gpu, "component": "other_processes", "basis": "measured"}
        yield "memory_bytes", other, 5e8
    if down:
        return
    up_for = time - server.booted(time)
    length = {"short": "32768", "long": "131072"}[server.variant]
    pool = {"short": 50e9, "long": 48e9}[server.variant]
    slower = CANDIDATE_FACTOR if server.variant == "long" else 1.0
    yield "target_start_time_seconds", own, server.booted(time)
    yield "target_config_fingerprint_info", {**own, "fingerprint": f"f-{server.variant}"}, 1
    for name, value in (("max_model_len", length), ("block_size", "16"), ("model", "llama")):
        yield "target_setting_info", {**own, "setting": name, "value": value}, 1
    yield "model_info", {**own, "model": "llama"}, 1
    tokens, requests = GENERATED_PER_SECOND * up_for, REQUESTS_PER_SECOND * up_for
    yield "generation_tokens_total", model, tokens
    yield "prompt_tokens_total", model, 3 * tokens
    yield "preemptions_total", model, 0
    for reason, share in (("stop", 0.9), ("length", 0.1)):
        yield "requests_finished_total", {**model, "reason": reason}, requests * share
    for name, mean, count in (
        ("time_to_first_token_seconds", 0.4, requests),
        ("inter_token_latency_seconds", SECONDS_PER_TOKEN * slower, tokens),
        ("request_e2e_latency_seconds", 9.0, requests),
        ("request_prompt_tokens", 720.0, requests),
    ):
        yield f"{name}_sum", model, mean * count
        yield f"{name}_count", model, count
        for bound, share in BUCKETS.items():
            yield f"{name}_bucket", {**model, "le": bound}, count * share
    yield "requests_running", model, 6
    yield "requests_waiting", model, 0
    at_nan = server.name == "short-a" and abs(time - NAN_AT) < INTERVAL / 2
    yield "kv_cache_usage_ratio", model, float("nan") if at_nan else 0.5
    yield "kv_cache_used_bytes", model, pool / 2
    yield "kv_cache_used_tokens", model, pool / 2 / BYTES_PER_TOKEN
    yield "kv_cache_capacity_bytes", model, pool
    yield "kv_cache_capacity_tokens", model, pool / BYTES_PER_TOKEN
    yield "measured_memory_bytes", {**model, "component": "weights"}, 15e9
    yield "predicted_memory_bytes", {**own, "component": "weights"}, 15.1e9
    yield "predicted_memory_bytes", {**own, "component": "kv_cache"}, pool * 1.01
    yield "predicted_total_memory_bytes", own, 125e9
    yield "predicted_kv_cache_capacity_tokens", own, pool * 1.01 / BYTES_PER_TOKEN
    yield "predicted_kv_cache_bytes_per_token", own, BYTES_PER_TOKEN


def scrapes(server: Server) -> Iterator[float]:
    """When the server was scraped, to the millisecond."""
    count = 0
    while (time := START - 600 + server.offset + count * INTERVAL) <= END:
        count += 1
        if server.since <= time <= server.until and not (server.gap and server.gap[0] < time < server.gap[1]):
            yield time + 0.001 * (count % 7)


_OF_A_BOOT = ("target_start_time_seconds", "target_config_fingerprint_info", "kv_cache_capacity_tokens")


def open_metrics(servers: tuple[Server, ...] = SERVERS) -> str:
    """All of it as OpenMetrics with timestamps, ready for `promtool tsdb create-blocks-from openmetrics`."""
    lines = []
    for server in servers:
        scraped = {"instance": server.instance, "job": "brimline"}
        for time in scrapes(server):
            added = {"pod": "p-1"} if server.name == "short-a" and time > POD_FROM else {}
            for name, labels, value in page(server, time):
                lines.append(
                    f"brimline_{name}{{{labels_text({**labels, **scraped, **added})}}} {value!r} {time:.3f}"
                )
    # An earlier boot of the same configuration, by which a cold one is known.
    first, earlier = SERVERS[0], []
    for count in range(120):
        time = EARLIER_BOOT + 60 + count * INTERVAL
        for name, labels, value in page(first, time):
            if name in _OF_A_BOOT:
                said = {"target_start_time_seconds": EARLIER_BOOT, "kv_cache_capacity_tokens": value * 1.05}
                text = labels_text({**labels, "instance": first.instance, "job": "brimline"})
                earlier.append(f"brimline_{name}{{{text}}} {said.get(name, value)!r} {time:.3f}")
    lines = earlier + lines
    return "\n".join([*lines, "# EOF", ""]).replace(" nan ", " NaN ")
