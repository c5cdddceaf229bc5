"""What must wake nobody: idle and starting servers, missing series, and what only looks like trouble."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from brimline_dashboards.alerts import alerts
from rules.alert_cases import BY_KEY
from rules.page import (
    CHAT_A,
    CHAT_B,
    CUDA,
    GIB,
    GPU_A,
    MIB,
    Page,
    Server,
    during,
    exporter,
    gpu,
    healthy,
    idle,
    memory,
    restarted,
    server,
)
from rules.promtool import Case, Gives, RuleSet, nothing_fires, stands_on

Key = tuple[str, str]
EVERY: frozenset[Key] = frozenset(BY_KEY)

# What an exporter predicts of a server, for one whose model or settings it does not know.
PREDICTIONS = (
    "predicted_memory_low_bytes",
    "predicted_memory_bytes",
    "predicted_memory_high_bytes",
    "predicted_total_memory_low_bytes",
    "predicted_total_memory_bytes",
    "predicted_total_memory_high_bytes",
    "predicted_kv_cache_bytes_per_token",
    "predicted_kv_cache_full_request_bytes",
    "predicted_kv_cache_capacity_tokens",
    "predicted_kv_cache_max_concurrency_requests",
    "predicted_fits",
    "prediction_calibrated",
    "predicted_decode_ceiling_tokens_per_second",
    "prediction_error_ratio",
    "memory_headroom_bytes",
)


def unplanned(page: Page, one: Server) -> Page:
    """Without predictions of a server."""
    for name in PREDICTIONS:
        if page.matching(name, {"target": one.name}):
            page = page.without(name, target=one.name)
    return page


def _case(name: str, page: Page, *only: str, interval_seconds: int = 120) -> Case:
    """Nothing fires from the first minute to the last: of all alerts, or of those of some names."""
    if not only:
        return Case(name, page, (nothing_fires(page.minutes - 1),), interval_seconds=interval_seconds)
    some = tuple(alert for alert in alerts() if alert.name in only)
    needed = [stands_on(alert.expr) for alert in some]
    records = frozenset[str]().union(*(one for one, _ in needed))
    scraped = frozenset[str]().union(*(one for _, one in needed))
    rules = RuleSet(alerts=some, records=records)
    expectations = (nothing_fires(page.minutes - 1),)
    return Case(name, page.only(scraped), expectations, rules, interval_seconds)


def everyday() -> list[Case]:
    """Traffic at ease."""
    return [_case("healthy servers", healthy(90))]


def without_traffic() -> list[Case]:
    """All alerts, while nobody asks anything."""
    page = healthy(70)
    return [
        _case("idle from the start", idle(page), interval_seconds=60),
        _case("traffic ends", idle(page, since=30), interval_seconds=60),
    ]


def after_start() -> list[Case]:
    """All alerts, from the end of a process through loading and growing to its plan."""
    page = healthy(75)
    young = page
    for key in page.series:
        young = young.changed(key[0], during(None, 0, 10), **dict(key[1]))
    both = restarted(restarted(page, CHAT_A, at=20), CHAT_B, at=40)
    return [
        _case("new servers", restarted(restarted(page, CHAT_A, at=0), CHAT_B, at=0), interval_seconds=60),
        _case("new exporter", young, interval_seconds=60),
        _case("one after the other is restarted", both, interval_seconds=60),
    ]


def without_families() -> list[Case]:
    """All alerts, where a family ends, as after an upgrade of the engine that renamed it.

    Each family ends at an exporter of its own, which is called after it.
    """
    page = healthy(40)
    copies = Page(page.minutes, {})
    for family in families():
        copies = copies.beside(page.changed(family, during(None, 8)).relabelled(instance=f"without {family}"))
    return [_case("healthy servers of which each family ends", copies)]


def families() -> list[str]:
    """What any alert stands on of what is scraped from healthy servers."""
    names = frozenset[str]().union(*(stands_on(alert.expr)[1] for alert in alerts()))
    return sorted(names & healthy(1).names())


def traps() -> list[Case]:
    """What looks like trouble and is none."""
    a, b = CHAT_A.name, CHAT_B.name
    page = healthy(90)
    long = healthy(200)
    trends = ("BrimlineVramWillExhaust", "BrimlineVramGrowth", "BrimlineVramHeadroomLow")
    full = page.changed("kv_cache_usage_ratio", during(0.99, 30), target=a)

    old_engine = unplanned(long, CHAT_A).without("target_start_time_seconds", target=a)

    def load_of_a_day(minute: int) -> float:
        return 6000 * min(minute, 120) + 600 * max(0, minute - 120)

    night = long.changed("requests_waiting", during(4, 0, 120), target=a).changed(
        "generation_tokens_total", load_of_a_day, target=a
    )

    def asleep(minute: int) -> float:
        return 2 * GIB if 60 <= minute < 120 else CHAT_A.used

    sleeper = memory(unplanned(long, CHAT_A), GPU_A, asleep).changed(
        "target_sleeping", during(1, 60, 120), target=a
    )
    no_gpu = exporter(90).changed("nvml_up", 0).beside(server(90, CHAT_A))
    unfit = page.changed("predicted_kv_cache_full_request_bytes", during(64 * GIB, 30), target=a)
    blip = page.changed("target_up", during(0, 30, 31), target=a)
    uncalibrated = page.changed("memory_headroom_bytes", -GIB, target=b)
    tight = memory(page, CHAT_B.gpu, CUDA - 700 * MIB)
    removed = page
    for key in page.series:
        if "target" in dict(key[1]) and dict(key[1])["target"] == a:
            removed = removed.changed(key[0], during(None, 30), **dict(key[1]))
    exporter_restart = page.gone(30, 32, instance="10.0.0.7:10778").changed("up", during(0, 30, 32))
    return [
        _case("a full KV cache without a queue", full),
        _case(
            "a full KV cache and a queue for one moment",
            page.changed("kv_cache_usage_ratio", during(0.99, 30, 32), target=a).changed(
                "requests_waiting", during(20, 30, 32), target=a
            ),
            "BrimlineKvCacheSaturated",
        ),
        _case("a queue without a full KV cache", page.changed("requests_waiting", during(20, 30), target=a)),
        _case(
            "preemptions without a queue",
            page.changed("preemptions_total", lambda minute: 3.0 * minute, target=a),
            "BrimlineKvCachePreempting",
        ),
        _case(
            "a start time that wavers by parts of a second, at low headroom",
            page.changed(
                "target_start_time_seconds", lambda minute: 0.4 + minute % 2 * 0.9, target=a
            ).changed("gpu_memory_used_peak_bytes", CUDA - 64 * MIB, gpu=GPU_A),
            "BrimlineServerRestartedAfterLowHeadroom",
        ),
        _case(
            "a server that is seen for the first time, at low headroom",
            page.changed("target_start_time_seconds", during(None, 0, 40), target=a).changed(
                "gpu_memory_used_peak_bytes", CUDA - 64 * MIB, gpu=GPU_A
            ),
            "BrimlineServerRestartedAfterLowHeadroom",
        ),
        _case("less traffic at night", night, "BrimlineThroughputRegression", interval_seconds=30),
        _case("a server that sleeps and wakes, without a plan", sleeper, *trends),
        _case(
            "a restart of a server without a plan that does not tell its start",
            restarted(old_engine, CHAT_A, at=60),
            *trends,
        ),
        _case(
            "a server without a plan that loads for 25 minutes",
            restarted(unplanned(long, CHAT_A), CHAT_A, at=60, loading=25),
            *trends,
        ),
        _case(
            "a quick restart of a server without a plan that does not tell its start",
            restarted(old_engine, CHAT_A, at=60, loading=1),
            *trends,
        ),
        _case(
            "a server without a plan that loads for 40 minutes",
            restarted(unplanned(long, CHAT_A), CHAT_A, at=60, loading=40),
            *trends,
        ),
        _case("an exporter that never had a GPU", no_gpu),
        _case(
            "a card that was never readable and belongs to no server",
            page.added("gpu_up", 0, gpu="GPU-cccc").added(
                "gpu_problem", 1, gpu="GPU-cccc", reason="not_supported"
            ),
        ),
        _case("the engine says that a full request fits, the prediction not", unfit),
        _case("one scrape of a server fails", blip),
        _case("headroom by tables alone is negative", uncalibrated),
        _case(
            "a restart of a server whose headroom is negative by tables alone",
            restarted(uncalibrated, CHAT_B, at=45),
        ),
        _case(
            "a card that is nearly full within its plan",
            tight.changed("predicted_total_memory_high_bytes", CUDA - 600 * MIB, target=b),
        ),
        _case("a server is taken out of the configuration", removed),
        _case("an exporter restarts", exporter_restart),
        _case(
            "a spare GPU that belongs to no server",
            page.beside(gpu(90, "GPU-cccc", CUDA - 10 * MIB, index="2")).changed(
                "gpu_process_memory_bytes", 70 * GIB, gpu="GPU-cccc", owner="other"
            ),
        ),
    ]


def near_thresholds() -> list[Case]:
    """A little less than it takes, everywhere at once."""
    a, b = CHAT_A.name, CHAT_B.name

    def page(left: float, beyond: float, stranger: float, main_memory: float, *, cache: float) -> Page:
        """left: by the plan of chat-a, and at the peaks of chat-b. beyond: the plan of chat-a."""
        page = memory(healthy(90), GPU_A, CHAT_A.total_high + beyond)
        return (
            page.changed("memory_headroom_bytes", left, target=a)
            .changed("gpu_memory_used_peak_bytes", CUDA - left, gpu=CHAT_B.gpu)
            .changed("gpu_process_memory_bytes", stranger, gpu=GPU_A, owner="other")
            .changed("server_host_memory_used_bytes", main_memory * 64 * GIB, target=a)
            .changed("host_memory_available_bytes", (1 - main_memory) * 256 * GIB)
            .changed("kv_cache_usage_ratio", cache, target=a)
            .changed("requests_waiting", 5, target=a)
            .changed("preemptions_total", lambda minute: 0.9 * minute, target=a)
            .changed("target_scrape_duration_seconds", 0.95, target=a)
            .changed("kv_cache_max_concurrency_requests", 1.01, target=b)
            .changed("predicted_total_memory_high_bytes", CUDA - MIB, target=b)
        )

    warnings = page(520 * MIB, 250 * MIB, 250 * MIB, 0.89, cache=0.94)
    # Restarts after that much headroom, too.
    warnings = restarted(warnings, CHAT_B, at=60)
    criticals = page(130 * MIB, 250 * MIB, 250 * MIB, 0.96, cache=0.94)
    fired = 'count by (alertname) (count_over_time(ALERTS{alertstate="firing", severity="critical"}[2h]))'
    return [
        _case("a little less than a warning takes", warnings),
        Case(
            "a little less than a critical alert takes", criticals, (Gives(89, fired),), interval_seconds=120
        ),
    ]


def growth() -> list[Case]:
    """Use of GPU memory that grows for a reason."""
    a = CHAT_A.name
    trends = ("BrimlineVramWillExhaust", "BrimlineVramGrowth")
    page, day = healthy(150), healthy(560)

    def within_plan(minute: int) -> float:
        return 50 * GIB + 0.3 * GIB * max(0, min(60, minute - 60))

    def naps(minute: int) -> bool:
        return 60 <= minute < 120 or 225 <= minute < 270

    overweight = replace(CHAT_A, total=CHAT_A.total_high + 100 * MIB)
    heavy = memory(page, GPU_A, overweight.total)
    wakes = memory(page, GPU_A, lambda minute: 2 * GIB if 60 <= minute < 90 else overweight.total)
    sleeper = memory(day, GPU_A, lambda minute: 2 * GIB if naps(minute) else CHAT_A.used)
    # Beyond the plan from then on, with some noise.
    step = memory(
        page,
        GPU_A,
        lambda minute: CUDA - (7 * GIB if minute < 90 else 5 * GIB) + 50 * MIB * (minute * 7 % 4),
    )
    step = step.changed("predicted_total_memory_high_bytes", CUDA - 5.2 * GIB, target=a)
    roomy = memory(
        unplanned(healthy(240), CHAT_A), GPU_A, lambda minute: 30 * GIB + 0.13 * GIB * max(0, minute - 60)
    )
    # A second server on the card, from minute 300 on; another that wakes then.
    small = replace(CHAT_B, gpu=GPU_A)
    shared = exporter(560).beside(server(560, CHAT_A)).beside(server(560, small))
    shared = shared.beside(gpu(560, GPU_A, 40 * GIB))
    shared = memory(shared, GPU_A, 60 * GIB, since=300)
    neighbour = shared
    for key in shared.series:
        if dict(key[1]).get("target") == small.name:
            neighbour = neighbour.changed(key[0], during(None, 0, 300), **dict(key[1]))
    neighbour = neighbour.changed("target_start_time_seconds", during(18000.0, 300), target=small.name)
    waking = shared.changed("target_sleeping", during(1, 0, 300), target=small.name)
    return [
        _case("a neighbour starts on the card", neighbour, *trends, interval_seconds=300),
        _case("a neighbour wakes on the card", waking, *trends, interval_seconds=300),
        _case("fast growth within the plan", memory(page, GPU_A, within_plan), *trends),
        _case("a start that ends a little beyond the plan", restarted(heavy, overweight, at=60), *trends),
        _case(
            "a server that wakes to a little more than its plan",
            wakes.changed("target_sleeping", during(1, 60, 90), target=a),
            *trends,
        ),
        _case(
            "a server that sleeps twice within six hours",
            sleeper.changed("target_sleeping", lambda minute: float(naps(minute)), target=a),
            *trends,
            interval_seconds=300,
        ),
        _case("growth without a plan on a card with much room", roomy, *trends),
        _case("one step beyond the plan", step, "BrimlineVramWillExhaust", interval_seconds=30),
        _case(
            "one step without a plan",
            unplanned(step, CHAT_A),
            "BrimlineVramWillExhaust",
            interval_seconds=30,
        ),
        _case(
            "a KV cache that fills after a start",
            restarted(healthy(150), CHAT_A, at=30).changed(
                "kv_cache_usage_ratio", during(lambda minute: min(0.9, 0.09 * (minute - 34)), 34), target=a
            ),
            "BrimlineKvCacheWillSaturate",
        ),
    ]


def slower() -> list[Case]:
    """Fewer tokens per second for a reason, or with too little to compare with."""
    a, name = CHAT_A.name, "BrimlineThroughputRegression"
    page = healthy(220)

    def halved(since: int) -> Callable[[int], float]:
        return lambda minute: 6000 * min(minute, since) + 3000 * max(0, minute - since)

    loaded = page.changed("requests_waiting", 4, target=a).changed(
        "generation_tokens_total", halved(130), target=a
    )
    longer_prompts = loaded.changed(
        "prompt_tokens_total", lambda minute: 12000 * minute + 12000 * max(0, minute - 130), target=a
    )
    young = page.changed("requests_waiting", during(4, 80), target=a).changed(
        "generation_tokens_total", halved(110), target=a
    )
    seldom = page.changed(
        "requests_waiting", lambda minute: 4 if minute < 130 or minute % 30 < 15 else 0, target=a
    )
    seldom = seldom.changed("generation_tokens_total", halved(130), target=a)
    return [
        _case("longer prompts", longer_prompts, name, interval_seconds=30),
        _case("an hour of load is no yardstick", young, name, interval_seconds=30),
        _case("requests wait now and then", seldom, name, interval_seconds=30),
    ]
