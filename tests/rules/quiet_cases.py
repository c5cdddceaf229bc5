"""What must wake nobody: idle and starting servers, missing series, and what only looks like trouble."""

from __future__ import annotations

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
from rules.promtool import Case, RuleSet, nothing_fires, stands_on

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
        _case("a queue without a full KV cache", page.changed("requests_waiting", during(20, 30), target=a)),
        _case(
            "preemptions without a queue",
            page.changed("preemptions_total", lambda minute: 3.0 * minute, target=a),
            "BrimlineKvCachePreempting",
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
        _case("the engine says that a full request fits, the prediction not", unfit),
        _case("one scrape of a server fails", blip),
        _case("headroom by tables alone is negative", uncalibrated),
        _case(
            "a restart of a server whose headroom is negative by tables alone",
            restarted(uncalibrated, CHAT_B, at=45),
        ),
        _case(
            "a card that is 99 % full within its plan",
            tight.changed("predicted_total_memory_high_bytes", CUDA - 600 * MIB, target=b),
        ),
        _case("a server is taken out of the configuration", removed),
        _case("an exporter restarts", exporter_restart),
        _case(
            "a spare GPU that belongs to no server",
            page.beside(gpu(90, "GPU-cccc", CUDA - 10 * MIB, index="2")),
        ),
    ]
