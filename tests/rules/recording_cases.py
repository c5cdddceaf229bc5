"""What each recorded series holds, with memory from NVML, from dcgm-exporter, and from neither."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from brimline_dashboards.recording import Dcgm, recordings
from rules import alert_cases
from rules.page import (
    CARD,
    CHAT_A,
    CHAT_B,
    CUDA,
    FREE,
    GIB,
    GPU_A,
    GPU_B,
    MIB,
    RESERVED,
    SCRAPE,
    Page,
    Server,
    down,
    during,
    exporter,
    full_name,
    gpu,
    healthy,
    idle,
    memory,
    restarted,
    server,
)
from rules.promtool import Case, Expectation, Gives, RuleSet

# A minute at which the rates of five minutes are settled.
AT, LAST = 15, 18
USED = CHAT_A.used
Rows = tuple[tuple[Mapping[str, str], float], ...]


def named(one: Server) -> dict[str, str]:
    """Labels of a recorded series of a server."""
    return {**alert_cases.named(one), "engine": "vllm", "model": "llama"}


def _gives(record: str, *rows: tuple[Mapping[str, str], float], at: int = AT) -> Gives:
    """All series of a recording, with their labels."""
    return Gives(at, record, tuple(({"__name__": record, **labels}, value) for labels, value in rows))


def _of_target(record: str, value: float | None, one: Server = CHAT_A, at: int = AT, **labels: str) -> Gives:
    """The one series of a server, or none."""
    rows = () if value is None else (({"__name__": record, **named(one), **labels}, value),)
    return Gives(at, f'{record}{{target="{one.name}"}}', rows)


def _case(name: str, page: Page, *expectations: Expectation, dcgm: Dcgm | None = None) -> Case:
    records = frozenset(one.record for one in recordings())
    return Case(name, page, expectations, RuleSet(alerts=(), dcgm=dcgm or Dcgm(), records=records))


def _scraped(one: Server) -> dict[str, str]:
    """Labels of a series as it is scraped."""
    return {**SCRAPE, "target": one.name}


def of_gpu(uuid: str = GPU_A, *, whole: bool = True, **labels: str) -> dict[str, str]:
    """Labels of a GPU's series: as scraped, or what GPUs are joined on."""
    joined = {name: SCRAPE[name] for name in ("job", "instance")}
    return {**(SCRAPE if whole else joined), "gpu": uuid, **labels}


# --- NVML ---

# What the healthy page comes to for each series of a server: chat-a, whose prediction is calibrated.
OF_CHAT_A: Mapping[str, float | None] = {
    "target:identity:info": 1,
    "target:memory_planned_high:bytes": 71 * GIB,
    "target:memory_planned:bytes": 70 * GIB,
    "target:uptime:seconds": 86400 + AT * 60,
    "target:memory_used:bytes": 70 * GIB,
    "target:memory_free:bytes": FREE,
    "target:memory_free_at_peak:bytes": FREE,
    "target:memory_free:ratio": FREE / CUDA,
    "target:memory_headroom:bytes": FREE,
    "target:memory_above_plan:bytes": -GIB,
    "target:memory_peak_above_plan:bytes": -GIB,
    "target:memory_beyond_gpu:bytes": 71 * GIB - CUDA,
    "target:memory_exhaustion:seconds": None,
    "target:host_memory:ratio": 12 / 64,
    "target:kv_cache_usage:ratio": 0.5,
    "target:kv_cache_usage:max10m": 0.5,
    "target:kv_cache_used:tokens": 204800,
    "target:kv_cache_capacity:tokens": 409600,
    "target:kv_cache_used:bytes": 25 * GIB,
    "target:kv_cache_capacity:bytes": 50 * GIB,
    "target:kv_cache_full_requests_left:count": 3.125 / 2,
    "target:requests_running:sum": 8,
    "target:requests_waiting:sum": 0,
    "target:preemptions:rate5m": 0,
    "target:generation_tokens:rate5m": 100,
    "target:prompt_tokens:rate5m": 200,
    "target:tokens_under_load:rate5m": None,
    "target:prompt_tokens_under_load:rate5m": None,
    "target:time_to_first_token:mean5m": 0.25,
    "target:inter_token_latency:mean5m": 0.02,
    "target:prefix_cache_hits:ratio5m": 0.5,
    "target:spec_decode_acceptance:ratio5m": 0.75,
}
# What is other for chat-b, whose prediction comes from tables.
OF_CHAT_B = {
    **OF_CHAT_A,
    "target:memory_planned:bytes": 71 * GIB,
    "target:memory_headroom:bytes": FREE - GIB,
}


def _healthy() -> Case:
    gpus: dict[str, tuple[float, bool]] = {
        "gpu:memory_used:bytes": (USED, True),
        "gpu:memory_free:bytes": (FREE, True),
        "gpu:memory_total:bytes": (CARD, True),
        "gpu:memory_used_peak:bytes": (USED, True),
        "gpu:memory_free_at_peak:bytes": (FREE, False),
        "gpu:memory_planned_high:bytes": (71 * GIB, False),
    }
    both = (GPU_A, GPU_B)
    of_exporter = {name: SCRAPE[name] for name in ("job", "instance")}
    return _case(
        "two servers, memory from NVML",
        healthy(LAST),
        *(_of_target(record, value) for record, value in OF_CHAT_A.items()),
        *(_of_target(record, value, CHAT_B) for record, value in OF_CHAT_B.items()),
        _gives("exporter:seen:info", (SCRAPE, 1)),
        _gives("exporter:nvml_seen:info", (SCRAPE, 1)),
        _gives("gpu:seen:info", *((of_gpu(uuid), 1) for uuid in both)),
        *(
            _gives(
                f"target:{label}_seen:info",
                *(
                    ({**of_exporter, "target": one.name, label: named(one)[label]}, 1)
                    for one in (CHAT_A, CHAT_B)
                ),
            )
            for label in ("engine", "model")
        ),
        _gives("gpu:dcgm:info"),
        *(
            _gives(record, *((of_gpu(uuid, whole=whole), value) for uuid in both))
            for record, (value, whole) in gpus.items()
        ),
        _gives(
            "gpu:memory_planned:bytes",
            (of_gpu(GPU_A, whole=False), 70 * GIB),
            (of_gpu(GPU_B, whole=False), 71 * GIB),
        ),
        _gives(
            "target:gpu:info",
            (of_gpu(GPU_A, target="chat-a"), 1),
            (of_gpu(GPU_B, target="chat-b"), 1),
        ),
    )


def _changes() -> list[Case]:
    page = healthy(LAST)
    peak = page.changed("gpu_memory_used_peak_bytes", USED + 2 * GIB, gpu=GPU_A)
    # API v1: used includes the driver's share, and free with it is all of the card.
    v1 = (
        page.without("gpu_info", gpu=GPU_A)
        .added("gpu_info", 1, gpu=GPU_A, index="0", name="NVIDIA A10", driver="470.82", memory_api="v1")
        .without("gpu_memory_reserved_bytes", gpu=GPU_A)
        .changed("gpu_memory_used_bytes", USED + RESERVED, gpu=GPU_A)
        .changed("gpu_memory_used_peak_bytes", USED + RESERVED, gpu=GPU_A)
    )
    growing = memory(healthy(90), GPU_A, lambda minute: USED + 0.0625 * GIB * minute)
    waiting = page.changed("requests_waiting", 3, target="chat-a")
    unnamed = page.without("model_info", target="chat-a")
    no_start = page.without("target_start_time_seconds", target="chat-a")
    died = down(healthy(60), "chat-a", since=20, until=30)
    gone = healthy(60).gone(20, 25, instance=SCRAPE["instance"]).changed("up", during(0, 20, 25))
    return [
        _case(
            "a peak between two scrapes",
            peak,
            _of_target("target:memory_used:bytes", USED),
            _of_target("target:memory_free:bytes", FREE),
            _of_target("target:memory_free_at_peak:bytes", FREE - 2 * GIB),
            _of_target("target:memory_free:ratio", (FREE - 2 * GIB) / CUDA),
            _of_target("target:memory_above_plan:bytes", -GIB),
            _of_target("target:memory_peak_above_plan:bytes", GIB),
            _of_target("target:memory_free_at_peak:bytes", FREE, CHAT_B),
        ),
        _case(
            "memory API v1 counts the driver's share as used",
            v1,
            _of_target("target:memory_used:bytes", USED + RESERVED),
            # 600 MiB are granted to the driver, of which it takes 551.
            _of_target("target:memory_above_plan:bytes", USED + RESERVED - (71 * GIB + 600 * MIB)),
            _of_target("target:memory_above_plan:bytes", -GIB, CHAT_B),
        ),
        _case(
            "use that grows by 64 MiB a minute",
            growing,
            Gives(
                80,
                "round(target:memory_exhaustion:seconds)",
                ((named(CHAT_A), round((FREE - 5 * GIB) / (0.0625 * GIB) * 60)),),
            ),
        ),
        _case(
            "requests wait",
            waiting,
            _of_target("target:tokens_under_load:rate5m", 100),
            _of_target("target:prompt_tokens_under_load:rate5m", 200),
        ),
        _case(
            "no model is named",
            unnamed,
            Gives(AT, 'count(target:identity:info{target="chat-a", model=""})', (({}, 1),)),
        ),
        _case("a start that is not told", no_start, _of_target("target:uptime:seconds", AT * 60)),
        _case(
            "a server that starts anew",
            page.changed("target_start_time_seconds", during(600.0, 12), target="chat-a"),
            _gives("target:start:timestamp", (_scraped(CHAT_A), -86400), (_scraped(CHAT_B), -86400), at=11),
            _gives("target:start:timestamp", (_scraped(CHAT_A), 600), (_scraped(CHAT_B), -86400), at=12),
            Gives(
                17,
                "last_over_time(target:restart:seconds[10m])",
                (({"__name__": "target:restart:seconds", **_scraped(CHAT_A)}, 87000),),
            ),
            Gives(17, "count_over_time(target:restart:seconds[10m])", ((_scraped(CHAT_A), 1),)),
        ),
        _case(
            "a server that is down for ten minutes, and starts anew",
            died,
            _gives("target:up:timestamp", (_scraped(CHAT_A), 19 * 60), (_scraped(CHAT_B), 19 * 60), at=19),
            _gives("target:up:timestamp", (_scraped(CHAT_B), 25 * 60), at=25),
            _gives("target:down:timestamp", at=19),
            _gives("target:down:timestamp", (_scraped(CHAT_A), 25 * 60), at=25),
            # Down until minute 29, as seen by what was up within the three minutes before.
            _of_target("target:uptime:seconds", 15 * 60, at=44),
            # Engine and model stay known: a restart makes no second series.
            _of_target("target:engine:info", 1, at=25, model=""),
            _of_target("target:identity:info", 1, at=25),
        ),
        _case(
            "counters that begin anew with a server",
            restarted(healthy(70), CHAT_A, at=20),
            # Neither negative nor a leap up, in any of these minutes.
            Gives(60, f"round(max(max_over_time({_rates(CHAT_A)})), 5)", (({}, 100),)),
            Gives(60, f"min(min_over_time({_rates(CHAT_A)})) >= bool 0", (({}, 1),)),
        ),
        _case(
            "series after the restart of an exporter",
            gone,
            _of_target("target:memory_used:bytes", None, at=22),
            _of_target("target:memory_used:bytes", USED, at=25),
            _of_target("target:uptime:seconds", 86400 + 50 * 60, at=50),
            _of_target("target:generation_tokens:rate5m", 100, at=50),
        ),
    ]


def _rates(one: Server) -> str:
    """Tokens a second of a server, as recorded over most of an hour."""
    return f'target:generation_tokens:rate5m{{target="{one.name}"}}[50m:15s]'


def _together() -> list[Case]:
    """What belongs to what: GPUs that are shared, ranks, exporters, models."""
    shared = exporter(LAST).beside(gpu(LAST, GPU_A, 60 * GIB))
    half = 30 * GIB
    a = Server(
        name="chat-a",
        gpu=GPU_A,
        variant="long",
        role="candidate",
        calibrated=True,
        total=half,
        total_low=half,
        total_high=half + GIB,
    )
    b = Server(
        name="chat-b",
        gpu=GPU_A,
        variant="short",
        role="baseline",
        calibrated=False,
        total=half,
        total_low=half,
        total_high=half + 2 * GIB,
    )
    shared = shared.beside(server(LAST, a)).beside(server(LAST, b))
    half_planned = shared
    for name in (
        "predicted_total_memory_high_bytes",
        "predicted_total_memory_bytes",
        "predicted_memory_high_bytes",
    ):
        half_planned = half_planned.without(name, target="chat-b")

    ranks = (
        healthy(LAST).but(target="chat-b").added("target_gpu_info", 1, target="chat-a", gpu=GPU_B, rank="1")
    )
    second = {"target": "chat-a", "model": "llama", "rank": "1"}
    for name, value in (
        ("kv_cache_usage_ratio", 0.75),
        ("kv_cache_used_tokens", 307200),
        ("kv_cache_capacity_tokens", 409600),
        ("kv_cache_capacity_bytes", 50 * GIB),
        ("kv_cache_max_concurrency_requests", 3.125),
        ("requests_running", 4),
        ("requests_waiting", 2),
        ("generation_tokens_total", lambda minute: 3000.0 * minute),
    ):
        ranks = ranks.added(name, value, **second)
    ranks = memory(ranks, GPU_B, USED + GIB)

    # The same configuration beside two servers of the same name; their GPUs have other UUIDs.
    other = healthy(LAST).relabelled(instance="10.0.0.8:10778", pod="brimline-1")
    other = memory(other, GPU_A, USED + 3 * GIB)
    two_exporters = healthy(LAST).beside(other)
    elsewhere = {"instance": "10.0.0.8:10778", "pod": "brimline-1"}

    models = healthy(LAST).added("model_info", 1, target="chat-a", model="qwen")
    for name, value in (
        ("kv_cache_usage_ratio", 0.25),
        ("kv_cache_capacity_tokens", 1000),
        ("kv_cache_capacity_bytes", 10 * GIB),
        ("requests_running", 1),
    ):
        models = models.added(name, value, target="chat-a", model="qwen", rank="0")
    return [
        _case(
            "two servers share a GPU",
            shared,
            _gives("gpu:memory_planned:bytes", (of_gpu(whole=False), half + half + 2 * GIB)),
            _gives("gpu:memory_planned_high:bytes", (of_gpu(whole=False), 2 * half + 3 * GIB)),
            _of_target("target:memory_used:bytes", 60 * GIB, a),
            _of_target("target:memory_used:bytes", 60 * GIB, b),
            _of_target("target:memory_above_plan:bytes", -3 * GIB, a),
            _of_target("target:memory_above_plan:bytes", -3 * GIB, b),
            _of_target("target:memory_beyond_gpu:bytes", 63 * GIB - CUDA, b),
        ),
        _case(
            "two servers share a GPU, and one has no plan",
            half_planned,
            _gives("gpu:memory_planned:bytes"),
            _gives("gpu:memory_planned_high:bytes"),
            _of_target("target:memory_above_plan:bytes", None, a),
            _of_target("target:memory_used:bytes", 60 * GIB, a),
        ),
        _case(
            "two data-parallel ranks on two GPUs",
            ranks,
            _of_target("target:kv_cache_usage:ratio", 0.75),
            _of_target("target:kv_cache_used:tokens", 204800 + 307200),
            _of_target("target:kv_cache_capacity:tokens", 819200),
            _of_target("target:kv_cache_capacity:bytes", 100 * GIB),
            _of_target("target:kv_cache_full_requests_left:count", 3.125 * 0.5 + 3.125 * 0.25),
            _of_target("target:requests_running:sum", 12),
            _of_target("target:requests_waiting:sum", 2),
            _of_target("target:generation_tokens:rate5m", 150),
            _of_target("target:memory_used:bytes", USED + GIB),
            _of_target("target:memory_free:bytes", FREE - GIB),
            _of_target("target:memory_above_plan:bytes", 0),
        ),
        _case(
            "two exporters with servers of the same names",
            two_exporters,
            Gives(
                AT,
                'target:memory_used:bytes{target="chat-a"}',
                (
                    ({"__name__": "target:memory_used:bytes", **named(CHAT_A)}, USED),
                    ({"__name__": "target:memory_used:bytes", **named(CHAT_A), **elsewhere}, USED + 3 * GIB),
                ),
            ),
            Gives(AT, "count(target:memory_headroom:bytes)", (({}, 4),)),
            Gives(AT, "count(target:memory_above_plan:bytes)", (({}, 4),)),
            Gives(AT, "count(target:identity:info)", (({}, 4),)),
        ),
        _case(
            "a server with two models",
            models,
            _gives(
                "target:kv_cache_usage:ratio",
                ({**named(CHAT_B)}, 0.5),
                ({name: value for name, value in named(CHAT_A).items() if name != "model"}, 0.5),
            ),
            Gives(AT, 'sum(target:kv_cache_capacity:tokens{target="chat-a"})', (({}, 410600),)),
            Gives(AT, 'sum(target:kv_cache_capacity:bytes{target="chat-a"})', (({}, 60 * GIB),)),
            Gives(AT, 'sum(target:requests_running:sum{target="chat-a"})', (({}, 9),)),
            Gives(AT, 'count(target:identity:info{target="chat-a"})', (({}, 1),)),
        ),
    ]


# --- dcgm-exporter ---

NODE = {
    "job": "dcgm",
    "instance": "10.0.0.9:9400",
    "Hostname": "node-7",
    "modelName": "NVIDIA H100 80GB HBM3",
    "namespace": "",
    "pod": "",
}
# Without access to the GPU an exporter predicts parts but no total: the plan is those and the pool as stated.
WITHOUT_GPU = (
    "predicted_total_memory_low_bytes",
    "predicted_total_memory_bytes",
    "predicted_total_memory_high_bytes",
)
PARTS, PARTS_HIGH = (15 + 3 + 1 + 1 + 50) * GIB, (15 + 4 + 1.5 + 1.5 + 50) * GIB


def sidecar(one: Server = CHAT_A) -> Page:
    """An exporter without access to a GPU, with one server."""
    page = exporter(LAST).without("nvml_up").beside(server(LAST, one))
    for name in (*WITHOUT_GPU, "memory_headroom_bytes", "memory_bytes", "target_gpu_info"):
        page = page.without(name)
    return page


def dcgm(used: float = USED, uuid: str = GPU_A, /, **labels: str) -> Page:
    """A GPU on a page of dcgm-exporter, which counts in MiB."""
    page = Page(LAST, {})
    for field, value in (("USED", used), ("FREE", CUDA - used), ("RESERVED", RESERVED)):
        own = {**NODE, "UUID": uuid, "gpu": "0", "device": "nvidia0", **labels}
        page = page.added(f"DCGM_FI_DEV_FB_{field}", value / MIB, **own)
    return page


def _by_dcgm(**labels: str) -> tuple[Expectation, ...]:
    """What chat-a's memory comes to, whatever tells that the GPU is its own."""
    joined = of_gpu(whole=False)
    return (
        _gives("gpu:dcgm:info", (joined, 1)),
        _gives("target:gpu:info", ({**of_gpu(), "target": "chat-a", **labels}, 1)),
        _gives("gpu:memory_used:bytes", (joined, USED)),
        _gives("gpu:memory_free:bytes", (joined, FREE)),
        _gives("gpu:memory_total:bytes", (joined, CARD)),
        _gives("gpu:memory_used_peak:bytes", (joined, USED)),
        _gives("gpu:memory_free_at_peak:bytes", (joined, FREE)),
        _gives("gpu:memory_planned:bytes", (joined, PARTS)),
        _gives("gpu:memory_planned_high:bytes", (joined, PARTS_HIGH)),
        _of_target("target:memory_planned:bytes", PARTS),
        _of_target("target:memory_planned_high:bytes", PARTS_HIGH),
        _of_target("target:memory_used:bytes", USED),
        _of_target("target:memory_free:bytes", FREE),
        _of_target("target:memory_free_at_peak:bytes", FREE),
        _of_target("target:memory_free:ratio", FREE / CUDA),
        _of_target("target:memory_headroom:bytes", FREE),
        _of_target("target:memory_above_plan:bytes", USED - PARTS_HIGH),
        # There is no peak beside what is in use.
        _of_target("target:memory_peak_above_plan:bytes", USED - PARTS_HIGH),
        _of_target("target:memory_beyond_gpu:bytes", PARTS_HIGH - CUDA),
        _of_target("target:memory_exhaustion:seconds", None),
    )


def _without_nvml() -> list[Case]:
    pod = {"namespace": "chat", "pod": "brimline-0", "container": "server"}
    of_dcgm = {"namespace": "gpu-operator", "pod": "dcgm-exporter-x7k2p", "container": "dcgm-exporter"}
    exported = {f"exported_{name}": value for name, value in pod.items()}
    neighbour = dcgm(GIB, GPU_B, **{**pod, "pod": "other-0"})
    by_uuid = sidecar().added("target_gpu_info", 1, target="chat-a", gpu=GPU_A, rank="0")
    bare = by_uuid.relabelled(namespace="", pod="")
    mig = dcgm(**pod).beside(dcgm(GIB, **pod, GPU_I_ID="7", GPU_I_PROFILE="1g.10gb"))
    starting = sidecar().beside(dcgm(USED - 2 * GIB, **pod))
    without_reserved = sidecar().beside(dcgm(**pod)).without("DCGM_FI_DEV_FB_RESERVED")
    models = sidecar().added("model_info", 1, target="chat-a", model="qwen")
    models = models.added("kv_cache_capacity_bytes", 10 * GIB, target="chat-a", model="qwen", rank="0")
    ranks = sidecar().added("kv_cache_capacity_bytes", 49 * GIB, target="chat-a", model="llama", rank="1")
    silent = (
        _gives("gpu:dcgm:info"),
        _gives("target:gpu:info"),
        _gives("gpu:memory_used:bytes"),
        _gives("target:memory_headroom:bytes"),
        _gives("target:memory_used:bytes"),
    )
    return [
        _case("dcgm-exporter names the pod", sidecar().beside(dcgm(**pod)).beside(neighbour), *_by_dcgm()),
        _case(
            "dcgm-exporter's pod labels come as exported_pod",
            sidecar().beside(dcgm(**of_dcgm, **exported)),
            *_by_dcgm(),
            dcgm=Dcgm(namespace_label="exported_namespace", pod_label="exported_pod"),
        ),
        _case(
            "exported_pod without the option joins nothing",
            sidecar().beside(dcgm(**of_dcgm, **exported)),
            *silent,
        ),
        _case(
            "the configuration names the GPU, memory from dcgm-exporter", by_uuid.beside(dcgm()), *_by_dcgm()
        ),
        _case(
            "the configuration names the GPU, NVML fails, memory from dcgm-exporter",
            by_uuid.added("nvml_up", 0).beside(dcgm()),
            *_by_dcgm(),
        ),
        _case(
            "outside of Kubernetes",
            bare.beside(dcgm()),
            _of_target("target:memory_used:bytes", USED, namespace="", pod=""),
            _of_target("target:memory_headroom:bytes", FREE, namespace="", pod=""),
        ),
        _case("a MIG instance has its card's UUID", sidecar().beside(mig), *_by_dcgm()),
        _case(
            "less in use than planned",
            starting,
            _of_target("target:memory_headroom:bytes", FREE),
            _of_target("target:memory_free:bytes", FREE + 2 * GIB),
        ),
        _case(
            "dcgm-exporter does not export what the driver reserves",
            without_reserved,
            _gives("gpu:memory_total:bytes", (of_gpu(whole=False), CUDA)),
            _of_target("target:memory_used:bytes", USED),
        ),
        _case(
            "two dcgm-exporters show one GPU",
            sidecar().beside(dcgm(**pod)).beside(dcgm(**pod).relabelled(instance="10.0.0.9:9401")),
            *_by_dcgm(),
        ),
        _case(
            "two exporters in one pod: whose GPU it is is not known",
            sidecar().beside(sidecar().relabelled(instance="10.0.0.7:10779")).beside(dcgm(**pod)),
            *silent,
        ),
        _case(
            "two servers of one exporter: whose GPU it is is not known",
            sidecar().beside(sidecar(CHAT_B)).beside(dcgm(**pod)),
            _gives("target:gpu:info"),
            _gives("target:memory_headroom:bytes"),
            _gives("target:memory_used:bytes"),
        ),
        _case(
            "the plan holds the pools of all models",
            models.beside(dcgm(**pod)),
            _gives("gpu:memory_planned_high:bytes", (of_gpu(whole=False), PARTS_HIGH + 10 * GIB)),
        ),
        _case(
            "the plan holds the pool of the rank with most",
            ranks.beside(dcgm(**pod)),
            _gives("gpu:memory_planned_high:bytes", (of_gpu(whole=False), PARTS_HIGH)),
        ),
        _case(
            "NVML is preferred to dcgm-exporter",
            healthy(LAST).beside(dcgm(GIB, **pod)),
            _gives("gpu:dcgm:info"),
            _of_target("target:memory_used:bytes", USED),
        ),
        _case(
            "no access to a GPU at all",
            sidecar(),
            *silent,
            *(
                _of_target(record, value)
                for record, value in OF_CHAT_A.items()
                if not record.startswith("target:memory_")
            ),
            _of_target("target:memory_planned:bytes", PARTS),
            _of_target("target:memory_planned_high:bytes", PARTS_HIGH),
        ),
    ]


# --- variants ---

_VARIANTS = (
    "variant:ab_metric:mean15m",
    "ab:log_ratio:15m",
    "ab:log_ratio:blocks4h",
    "ab:log_ratio:mean4h",
    "ab:log_ratio:se4h",
    "ab:log_ratio:lower4h",
    "ab:log_ratio:upper4h",
)
_AN_AFTERNOON = 256
_SLOWER = 0.1


def _seconds_by_quarters(minute: int) -> float:
    """Seconds between tokens, of 6000 a minute: in logarithms a tenth above and below 20 ms, by turns."""
    above, below = (120 * math.exp(sign * _SLOWER) for sign in (1, -1))
    whole, rest = divmod(minute, 15)
    turns = (whole + 1) // 2 * above + whole // 2 * below
    return 1000 + 15 * turns + rest * (below if whole % 2 else above)


def _of_candidate(record: str, metric: str = "inter_token_latency") -> str:
    """To four places: of sums over samples the last digits differ."""
    return f'round({record}{{metric="{metric}"}}, 0.0001)'


def _variants() -> list[Case]:
    """Live differences of two variants: chat-a is the candidate, chat-b the baseline."""
    names = {
        full_name(name)
        for name in (
            "target_info",
            "model_info",
            "requests_running",
            "kv_cache_used_bytes",
            "kv_cache_used_tokens",
            "generation_tokens_total",
            *(f"{one}_seconds_{part}" for one in _LATENCIES for part in ("sum", "count")),
        )
    }
    long = healthy(_AN_AFTERNOON).only(names)
    turning = long.changed("inter_token_latency_seconds_sum", _seconds_by_quarters, target="chat-a")
    a = {"experiment": "ctx", "variant": "long", "role": "candidate", "metric": "inter_token_latency"}
    b = {**a, "variant": "short", "role": "baseline"}
    error = _SLOWER / math.sqrt(15)

    def gives(at: int, record: str, *values: float) -> Gives:
        return Gives(at, _of_candidate(record), tuple((a, round(value, 4)) for value in values))

    def live(name: str, page: Page, *expectations: Expectation) -> Case:
        records = frozenset({"target:engine:info", "target:identity:info", *_VARIANTS})
        return Case(name, page, expectations, RuleSet(alerts=(), records=records))

    short = healthy(40).only(names)
    two_baselines = short.beside(
        server(40, dataclasses.replace(CHAT_B, name="chat-c", variant="other")).only(names)
    )
    one_more = short.beside(
        server(40, dataclasses.replace(CHAT_B, name="chat-c"))
        .only(names)
        .changed("inter_token_latency_seconds_sum", lambda minute: 1000.0 + 360 * minute)
    )
    return [
        live(
            "two variants over an afternoon",
            turning,
            Gives(
                240,
                'round(1e5 * variant:ab_metric:mean15m{metric="inter_token_latency"})',
                ((a, round(2000 * math.exp(-_SLOWER))), (b, 2000)),
            ),
            *(
                Gives(
                    240,
                    f'round(variant:ab_metric:mean15m{{metric="{metric}",role="baseline"}}, 0.01)',
                    (({**b, "metric": metric}, value),),
                )
                for metric, value in (
                    ("time_to_first_token", 0.25),
                    ("tokens_per_running_request", 12.5),
                    ("kv_bytes_per_token", 131072),
                )
            ),
            gives(225, "ab:log_ratio:15m", _SLOWER),
            gives(240, "ab:log_ratio:15m", -_SLOWER),
            # Quarters are as many just before the next one, at whose minute one version counts one more.
            *(gives(at, "ab:log_ratio:blocks4h", 16) for at in (240, 247, 254)),
            gives(240, "ab:log_ratio:mean4h", 0),
            gives(240, "ab:log_ratio:se4h", error),
            gives(240, "ab:log_ratio:lower4h", -2 * error),
            gives(240, "ab:log_ratio:upper4h", 2 * error),
        ),
        live(
            "three quarters of an hour have a mean and no spread",
            turning,
            gives(47, "ab:log_ratio:blocks4h", 3),
            gives(47, "ab:log_ratio:mean4h", _SLOWER / 3),
            gives(47, "ab:log_ratio:se4h"),
            gives(47, "ab:log_ratio:lower4h"),
        ),
        live(
            "variants are ratios of sums over their servers",
            one_more,
            # 6000 tokens of 20 ms and 6000 of 60 ms.
            Gives(
                30,
                'round(1e5 * variant:ab_metric:mean15m{metric="inter_token_latency",role="baseline"})',
                ((b, 4000),),
            ),
            gives(30, "ab:log_ratio:15m", -math.log(2)),
        ),
        live(
            "two baselines are none",
            two_baselines,
            Gives(30, 'count(variant:ab_metric:mean15m{role="baseline"})', (({}, 8),)),
            Gives(30, "ab:log_ratio:15m", ()),
        ),
        live(
            "without traffic there is no difference but of what is settled",
            idle(healthy(40)).only(names),
            Gives(30, "ab:log_ratio:15m", ()),
            Gives(30, "variant:ab_metric:mean15m", ()),
        ),
        live(
            "one variant alone",
            short.but(target="chat-b"),
            Gives(30, "count(variant:ab_metric:mean15m)", (({}, 4),)),
            Gives(30, "ab:log_ratio:15m", ()),
        ),
    ]


_LATENCIES = ("inter_token_latency", "time_to_first_token")


def cases() -> list[Case]:
    """All cases of recorded series."""
    return [_healthy(), *_changes(), *_together(), *_without_nvml(), *_variants()]
