"""For each alert and severity: what makes it fire and what ends it; quiet_cases has what must not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import yaml

from brimline_dashboards.alerts import Alert, alerts
from brimline_dashboards.rules import plain_files
from rules.page import (
    CHAT_A,
    CHAT_B,
    CUDA,
    GIB,
    GPU_A,
    MIB,
    SCRAPE,
    Page,
    Server,
    down,
    during,
    full_name,
    healthy,
    memory,
    restarted,
)
from rules.promtool import Case, Firing, Gives, RuleSet, nothing_fires, stands_on

BEGINS, ENDS, LAST = 30, 60, 80
BY_KEY: Mapping[tuple[str, str], Alert] = {(alert.name, alert.severity): alert for alert in alerts()}


def named(one: Server, **labels: str) -> dict[str, str]:
    """Labels of an alert about a server."""
    own = {"target": one.name, "experiment": "ctx", "variant": one.variant, "role": one.role}
    return {**SCRAPE, **own, **labels}


@dataclass(frozen=True, kw_only=True)
class Cause:
    """What makes an alert fire.

    page: most change something from BEGINS to before ENDS. holds_from: the first minute at which the
    expression holds; the alert fires when its `for` has passed. over_at: a minute by which it is over.
    labels: beside severity and the alert's name.
    """

    alert: str
    severity: str
    what: str
    page: Page
    summary: str
    holds_from: int = BEGINS
    over_at: int = ENDS
    labels: Mapping[str, str] = field(default_factory=lambda: named(CHAT_A))
    interval_seconds: int = 60

    @property
    def rule(self) -> Alert:
        """The alerting rule; KeyError where there is none of that severity."""
        return BY_KEY[self.alert, self.severity]

    @property
    def name(self) -> str:
        """What it is called in a list of tests."""
        return f"{self.alert}, {self.severity}: {self.what}"

    @property
    def fires_at(self) -> int:
        """The minute at which it is told."""
        return self.holds_from + round(self.rule.for_seconds / 60)

    def _rules(self) -> RuleSet:
        return RuleSet(alerts=(self.rule,), records=stands_on(self.rule.expr)[0])

    def case(self) -> Case:
        """It fires in time and not before, for this series and no other one, and is over in time."""
        series = ({**self.labels, "severity": self.severity}, self.summary)
        expectations = (
            nothing_fires(self.fires_at - 1),
            Firing(self.fires_at, self.alert, (series,)),
            Firing(self.over_at, self.alert),
            Gives(self.page.minutes - 1, 'ALERTS{alertstate="firing"}'),
        )
        page = self.page.only(stands_on(self.rule.expr)[1])
        return Case(
            f"{self.name}: fires and resolves", page, expectations, self._rules(), self.interval_seconds
        )

    def missing(self) -> Case:
        """Without any one of its families the rule neither fails nor fires early or for ever.

        Each family is missing from an exporter of its own, which is called after it.
        """
        page = self.page.only(stands_on(self.rule.expr)[1])
        for other in {CHAT_A.name, CHAT_B.name} - {self.labels.get("target", CHAT_A.name)}:
            page = page.but(target=other)
        copies = Page(page.minutes, {})
        for family in sorted(page.names()):
            copies = copies.beside(page.without(family).relabelled(instance=f"without {family}"))
        expectations = (
            nothing_fires(self.fires_at - 1),
            Gives(self.page.minutes - 1, 'ALERTS{alertstate="firing"}'),
        )
        return Case(f"{self.name}: without each family", copies, expectations, self._rules(), 300)


# --- what happens ---

H = healthy(LAST)


def _exporters() -> list[Cause]:
    name = "BrimlineExporterDown"
    gone = H.gone(BEGINS, ENDS).changed("up", during(0, BEGINS, ENDS))
    other = {**SCRAPE, "job": "sidecars"}
    elsewhere = Page(LAST, {}).added("up", 1, **other).added("build_info", 1, **other, version="0.1.0")
    elsewhere = elsewhere.gone(BEGINS, ENDS).changed("up", during(0, BEGINS, ENDS))
    never = Page(LAST, {}).added("up", during(0, BEGINS, ENDS))
    summary = "Exporter 10.0.0.7:10778 cannot be reached"
    warnings = [
        Cause(
            alert=name,
            severity="warning",
            what=what,
            page=page,
            labels=labels,
            summary=summary,
        )
        for what, page, labels in (
            ("its scrape fails", gone, SCRAPE),
            ("its job is called otherwise", elsewhere, other),
            ("it was never reached", never, SCRAPE),
        )
    ]
    vanished = H.gone(BEGINS, ENDS).changed("up", during(None, BEGINS, ENDS))
    return [
        *warnings,
        *(
            Cause(
                alert=name,
                severity="critical",
                what=what,
                page=page,
                labels={},
                summary="No Brimline exporter can be reached any more (1 within the last day)",
            )
            for what, page in (("its scrape fails", gone), ("service discovery lost it", vanished))
        ),
        Cause(
            alert="BrimlineConfigReloadFailed",
            severity="warning",
            what="a reload was refused",
            page=H.changed("config_last_reload_successful", during(0, BEGINS, ENDS)),
            labels=SCRAPE,
            summary="Exporter 10.0.0.7:10778 works with an older configuration",
        ),
        Cause(
            alert="BrimlineConfigReloadFailed",
            severity="warning",
            what="pods cannot be listed",
            page=H.added("discovery_up", 1, source="kubernetes").changed(
                "discovery_up", during(0, BEGINS, ENDS), source="kubernetes"
            ),
            labels={**SCRAPE, "source": "kubernetes"},
            summary="Exporter 10.0.0.7:10778 works with an older configuration",
        ),
    ]


def _readings() -> list[Cause]:
    page = down(H, CHAT_A.name, since=BEGINS, until=ENDS)
    quantity = {"target": CHAT_A.name, "quantity": "preemptions_total"}

    def counted(minute: int) -> float:
        return min(max(0, minute - BEGINS + 1), ENDS - BEGINS)

    mismatch = H.added(
        "target_config_mismatch", during(1, BEGINS, ENDS), target=CHAT_A.name, setting="kv_cache_dtype"
    ).changed("target_config_mismatch", during(1, BEGINS, ENDS), target=CHAT_A.name)
    lost = H.changed("gpu_up", during(0, BEGINS, ENDS), gpu=GPU_A)
    for family in ("total", "used", "free", "reserved", "used_peak"):
        lost = lost.changed(f"gpu_memory_{family}_bytes", during(None, BEGINS, ENDS), gpu=GPU_A)
    never = lost.changed("gpu_up", during(None, 0, BEGINS), gpu=GPU_A)
    never = never.changed("gpu_up", during(None, ENDS), gpu=GPU_A)
    driver = H.changed("nvml_up", during(0, BEGINS, ENDS))
    for key in H.series:
        if "gpu" in dict(key[1]) and key[0] != full_name("target_gpu_info"):
            driver = driver.changed(key[0], during(None, BEGINS, ENDS), **dict(key[1]))
    return [
        Cause(
            alert="BrimlineTargetDown",
            severity="warning",
            what="it cannot be read",
            page=page,
            summary="chat-a cannot be read",
        ),
        Cause(
            alert="BrimlineTargetDown",
            severity="warning",
            what="it cannot be read for two hours",
            page=down(healthy(180), CHAT_A.name, since=BEGINS, until=160),
            over_at=160,
            summary="chat-a cannot be read",
        ),
        Cause(
            alert="BrimlineTargetDown",
            severity="critical",
            what="it cannot be read",
            page=page,
            summary="chat-a has not been read for 20m",
        ),
        Cause(
            alert="BrimlineTargetSlow",
            severity="warning",
            what="its page takes seconds",
            page=H.changed("target_scrape_duration_seconds", during(3, BEGINS, ENDS), target=CHAT_A.name),
            holds_from=BEGINS + 1,  # the mean of five minutes
            over_at=ENDS + 4,
            summary="Reading chat-a takes 3s",
        ),
        Cause(
            alert="BrimlineEnginePageIncomplete",
            severity="warning",
            what="a quantity is missing",
            page=H.added("target_missing_quantities", during(1, BEGINS, ENDS), **quantity),
            summary="The page of chat-a lacks quantities or holds lines that cannot be read",
        ),
        Cause(
            alert="BrimlineEnginePageIncomplete",
            severity="warning",
            what="lines cannot be read",
            page=H.changed("target_unparsed_lines_total", counted, target=CHAT_A.name),
            over_at=ENDS + 15,
            summary="The page of chat-a lacks quantities or holds lines that cannot be read",
        ),
        Cause(
            alert="BrimlineConfigMismatch",
            severity="warning",
            what="one setting differs",
            page=H.changed("target_config_mismatch", during(1, BEGINS, ENDS), target=CHAT_A.name),
            summary="chat-a runs with 1 setting other than declared",
        ),
        Cause(
            alert="BrimlineConfigMismatch",
            severity="warning",
            what="two settings differ",
            page=mismatch,
            summary="chat-a runs with 2 settings other than declared",
        ),
        Cause(
            alert="BrimlineGpuUnreadable",
            severity="warning",
            what="a card is lost",
            page=lost,
            labels={**SCRAPE, "gpu": GPU_A},
            summary="GPU memory of GPU-aaaa cannot be read on 10.0.0.7:10778",
        ),
        Cause(
            alert="BrimlineGpuUnreadable",
            severity="warning",
            what="a server's card cannot be read since the exporter started",
            page=never,
            labels={**SCRAPE, "gpu": GPU_A},
            summary="GPU memory of GPU-aaaa cannot be read on 10.0.0.7:10778",
        ),
        Cause(
            alert="BrimlineGpuUnreadable",
            severity="warning",
            what="NVML is lost",
            page=driver,
            labels=SCRAPE,
            summary="GPU memory cannot be read on 10.0.0.7:10778",
        ),
    ]


def _low_headroom(severity: str, left: float, told: str, window: int, ending: str) -> list[Cause]:
    """By the calibrated plan, and by peaks. window: minutes for which a peak is told."""
    name = "BrimlineVramHeadroomLow"
    long = healthy(ENDS + window + 10)
    headroom = H.changed("memory_headroom_bytes", during(left, BEGINS, ENDS), target=CHAT_A.name)
    peaks = long.changed("gpu_memory_used_peak_bytes", during(CUDA - left, BEGINS, ENDS), gpu=CHAT_B.gpu)
    once = long.changed("gpu_memory_used_peak_bytes", during(CUDA - left, BEGINS, BEGINS + 1), gpu=GPU_A)
    return [
        Cause(
            alert=name,
            severity=severity,
            what="the calibrated plan will take it",
            page=headroom,
            summary=f"chat-a has {told} {ending}",
        ),
        Cause(
            alert=name,
            severity=severity,
            what="peaks reach the brim",
            page=peaks,
            over_at=ENDS + window,
            labels=named(CHAT_B),
            summary=f"chat-b has {told} {ending}",
        ),
        Cause(
            alert=name,
            severity=severity,
            what="one peak reached the brim",
            page=once,
            over_at=BEGINS + 1 + window,
            summary=f"chat-a has {told} {ending}",
        ),
    ]


def _gpu_memory() -> list[Cause]:
    hours = healthy(540)
    leak = memory(hours, GPU_A, lambda minute: CHAT_A.used + 1.6 * MIB * (minute - 60), since=60, until=480)
    fast = memory(
        healthy(140), GPU_A, lambda minute: CHAT_A.used + 0.1 * GIB * (minute - 60), since=60, until=100
    )
    slow = memory(
        healthy(240), GPU_A, lambda minute: CHAT_A.used + 2 * GIB * (minute - 60) / 60, since=60, until=200
    )
    unplanned = slow
    for _, labels in slow.matching("predicted_total_memory_high_bytes", {"target": CHAT_A.name}):
        unplanned = unplanned.without("predicted_total_memory_high_bytes", **dict(labels))
    for family in ("predicted_total_memory_bytes", "predicted_memory_bytes", "predicted_memory_high_bytes"):
        unplanned = unplanned.without(family, target=CHAT_A.name)
    unplanned = unplanned.without("memory_headroom_bytes", target=CHAT_A.name)
    v1 = H.changed("gpu_info", None, gpu=GPU_A).added(
        "gpu_info", 1, gpu=GPU_A, index="0", name="NVIDIA H100 80GB HBM3", driver="470.82", memory_api="v1"
    )
    spike = during(CHAT_A.total_high + GIB, BEGINS, BEGINS + 1)
    return [
        *_low_headroom(
            "critical", 64 * MIB, "64MiB", 15, "of GPU memory left: the next larger request may end it"
        ),
        *_low_headroom(
            "warning", 400 * MIB, "400MiB", 60, "of GPU memory left, at its peak or once its plan is used up"
        ),
        Cause(
            alert="BrimlineVramHeadroomLow",
            severity="critical",
            what="the plan wants more than there is",
            page=H.changed("memory_headroom_bytes", during(-2 * GIB, BEGINS, ENDS), target=CHAT_A.name),
            summary="chat-a has -2GiB of GPU memory left: the next larger request may end it",
        ),
        Cause(
            alert="BrimlineVramWillExhaust",
            severity="critical",
            what="fast growth beyond the plan",
            page=fast,
            # 0.1 GiB a minute from 70 GiB on: what is left lasts less than an hour below 6 GiB of 79.1.
            holds_from=92,
            over_at=100,
            summary="chat-a will run out of GPU memory in 56m 5s",
        ),
        Cause(
            alert="BrimlineVramWillExhaust",
            severity="warning",
            what="growth beyond the plan",
            page=slow,
            holds_from=97,
            over_at=200,
            summary="chat-a will run out of GPU memory in 3h 53m 35s if use grows as in the last hour",
        ),
        Cause(
            alert="BrimlineVramWillExhaust",
            severity="warning",
            what="growth without a plan",
            page=unplanned,
            holds_from=97,
            over_at=201,
            summary="chat-a will run out of GPU memory in 3h 53m 35s if use grows as in the last hour",
        ),
        Cause(
            alert="BrimlineVramAbovePlan",
            severity="warning",
            what="something holds more",
            page=memory(H, GPU_A, CHAT_A.total_high + 512 * MIB, since=BEGINS, until=ENDS),
            summary="chat-a uses, or used at a peak, 512MiB more GPU memory than its plan's high bound",
        ),
        Cause(
            alert="BrimlineVramAbovePlan",
            severity="warning",
            what="something holds more, and an adapter is loaded before it is told",
            page=memory(H, GPU_A, CHAT_A.total_high + 512 * MIB, since=BEGINS, until=ENDS).added(
                "model_info", during(1, BEGINS + 3), target=CHAT_A.name, model="lora"
            ),
            summary="chat-a uses, or used at a peak, 512MiB more GPU memory than its plan's high bound",
        ),
        Cause(
            alert="BrimlineVramAbovePlan",
            severity="warning",
            what="something holds more than the driver's share, which API v1 counts as used",
            page=memory(v1, GPU_A, CHAT_A.total_high + 600 * MIB + 512 * MIB, since=BEGINS, until=ENDS),
            summary="chat-a uses, or used at a peak, 512MiB more GPU memory than its plan's high bound",
        ),
        Cause(
            alert="BrimlineVramAbovePlan",
            severity="warning",
            what="a spike between two scrapes, and another ten minutes later",
            page=H.changed("gpu_memory_used_peak_bytes", spike, gpu=GPU_A).changed(
                "gpu_memory_used_peak_bytes",
                during(CHAT_A.total_high + GIB, BEGINS + 10, BEGINS + 11),
                gpu=GPU_A,
            ),
            # The second one is within the quarter of an hour until this minute.
            over_at=BEGINS + 10 + 16,
            summary="chat-a uses, or used at a peak, 1GiB more GPU memory than its plan's high bound",
        ),
        Cause(
            alert="BrimlineVramPlanExceedsGpu",
            severity="warning",
            what="the high bounds exceed the card",
            page=H.changed(
                "predicted_total_memory_high_bytes", during(CUDA + GIB, BEGINS, ENDS), target=CHAT_A.name
            ),
            summary="The plan of chat-a exceeds its GPU by 1GiB",
        ),
        Cause(
            alert="BrimlineVramPlanExceedsGpu",
            severity="warning",
            what="one request of full length does not fit",
            page=H.changed("predicted_fits", during(0, BEGINS, ENDS), target=CHAT_A.name),
            summary="The plan of chat-a exceeds its GPU",
        ),
        Cause(
            alert="BrimlineVramGrowth",
            severity="warning",
            what="a slow leak within the plan",
            page=leak,
            holds_from=300,  # five hours before, something is known
            over_at=480,
            # At minute 315 the best of the last hour is that of minute 255, 195 minutes into the leak.
            summary="GPU memory of chat-a has grown by 312MiB within six hours and does not come back",
            interval_seconds=300,
        ),
        Cause(
            alert="BrimlineVramGrowth",
            severity="warning",
            what="a slow leak within the plan while an adapter is loaded",
            page=leak.added("model_info", during(1, 250), target=CHAT_A.name, model="lora"),
            holds_from=300,
            over_at=480,
            summary="GPU memory of chat-a has grown by 312MiB within six hours and does not come back",
            interval_seconds=300,
        ),
        Cause(
            alert="BrimlineVramGrowth",
            severity="warning",
            what="a slow leak of a server that does not tell its start",
            page=leak.without("target_start_time_seconds"),
            holds_from=365,  # up for more than six hours, at evaluations of five minutes
            over_at=480,
            summary="GPU memory of chat-a has grown by 416MiB within six hours and does not come back",
            interval_seconds=300,
        ),
        Cause(
            alert="BrimlineForeignProcessOnGpu",
            severity="warning",
            what="a notebook on the card",
            page=H.changed("gpu_process_memory_bytes", during(GIB, BEGINS, ENDS), gpu=GPU_A, owner="other"),
            labels={**SCRAPE, "gpu": GPU_A, "owner": "other"},
            summary="Processes of no server hold 1GiB of a server's GPU GPU-aaaa",
        ),
    ]


def _main_memory() -> list[Cause]:
    causes = []
    for severity, ratio, told in (("critical", 0.984375, "98.44%"), ("warning", 0.9375, "93.75%")):
        own = H.changed(
            "server_host_memory_used_bytes", during(ratio * 64 * GIB, BEGINS, ENDS), target=CHAT_A.name
        )
        machine = H.changed("host_memory_available_bytes", during((1 - ratio) * 256 * GIB, BEGINS, ENDS))
        whose = {"chat-a": (own, named(CHAT_A)), "The machine of 10.0.0.7:10778": (machine, SCRAPE)}
        for who, (page, labels) in whose.items():
            causes.append(
                Cause(
                    alert="BrimlineHostMemoryLow",
                    severity=severity,
                    what="the server's limit" if page is own else "the machine",
                    page=page,
                    labels=labels,
                    summary=f"{who} uses {told} of its main memory",
                )
            )
    # From 0.5 on, 0.005 a minute: an hour after the minute at which it is 0.705, it would be 1.005.
    leak = healthy(120).changed(
        "server_host_memory_used_bytes",
        during(lambda minute: (0.5 + 0.005 * (minute - 30)) * 64 * GIB, 30, 90),
        target=CHAT_A.name,
    )
    causes.append(
        Cause(
            alert="BrimlineHostMemoryLow",
            severity="warning",
            what="growth towards the limit",
            page=leak,
            holds_from=71,
            over_at=90,
            summary="chat-a uses 75.5% of its main memory",
        )
    )
    return causes


def _kv_cache() -> list[Cause]:
    a = CHAT_A.name

    def rising(minute: int) -> float:
        return 0.502 + 0.005 * (minute - 30)

    full = H.changed("kv_cache_usage_ratio", during(0.97, BEGINS, ENDS), target=a)
    waiting = H.changed("requests_waiting", during(5, BEGINS, ENDS), target=a)
    unstated = H.without("kv_cache_max_concurrency_requests", target=a)
    unfit = "One request of the full context window does not fit the KV cache of chat-a"
    return [
        Cause(
            alert="BrimlineKvCacheWillSaturate",
            severity="info",
            what="ever longer conversations",
            page=healthy(140).changed("kv_cache_usage_ratio", during(rising, 30, 110), target=a),
            holds_from=78,  # least squares by hand over the hour before: 1.01 an hour on; at minute 77 1.00
            over_at=120,
            summary="The KV cache of chat-a will be full within 1h",
        ),
        Cause(
            alert="BrimlineKvCacheSaturated",
            severity="warning",
            what="full, and requests wait",
            page=full.changed("requests_waiting", during(6, BEGINS, ENDS), target=a),
            over_at=ENDS + 5,
            summary="The KV cache of chat-a gets 97% full and requests wait",
        ),
        Cause(
            alert="BrimlineKvCacheSaturated",
            severity="warning",
            what="full but for moments, and requests wait but for moments",
            page=H.changed(
                "kv_cache_usage_ratio",
                during(lambda minute: 0.7 if minute % 3 == 2 else 0.97, BEGINS, ENDS),
                target=a,
            ).changed(
                "requests_waiting", during(lambda minute: 0 if minute % 4 == 3 else 6, BEGINS, ENDS), target=a
            ),
            over_at=ENDS + 5,
            summary="The KV cache of chat-a gets 97% full and requests wait",
        ),
        Cause(
            alert="BrimlineKvCachePreempting",
            severity="warning",
            what="three a minute",
            page=waiting.changed(
                "preemptions_total", lambda minute: 3 * min(max(0, minute - 29), 30), target=a
            ),
            holds_from=BEGINS + 1,  # the rate of five minutes
            over_at=ENDS + 5,
            summary="chat-a throws 3 requests a minute out of its KV cache",
        ),
        Cause(
            alert="BrimlineKvCachePoolBelowPrediction",
            severity="warning",
            what="a tenth is missing",
            page=H.changed(
                "prediction_error_ratio", during(-0.1, BEGINS, ENDS), target=a, component="kv_cache"
            ),
            # 45 GiB observed, 48 at least predicted
            summary="The KV cache of chat-a is 3GiB smaller than the least predicted",
        ),
        Cause(
            alert="BrimlineContextWindowDoesNotFit",
            severity="warning",
            what="the engine says so",
            page=H.changed("kv_cache_max_concurrency_requests", during(0.75, BEGINS, ENDS), target=a),
            summary=f"{unfit} (75% of it does)",
        ),
        Cause(
            alert="BrimlineContextWindowDoesNotFit",
            severity="warning",
            what="by its bytes, where the engine says nothing",
            page=unstated.changed("kv_cache_capacity_bytes", during(8 * GIB, BEGINS, ENDS), target=a),
            summary=f"{unfit} (50% of it does)",
        ),
    ]


def _servers() -> list[Cause]:
    a = CHAT_A.name
    name = "BrimlineServerRestartedAfterLowHeadroom"
    page = healthy(110)
    brim = page.changed("gpu_memory_used_peak_bytes", during(CUDA - 64 * MIB, 25, 30), gpu=GPU_A)
    by_plan = page.changed("memory_headroom_bytes", during(64 * MIB, 25, 30), target=a)
    by_host = page.changed("server_host_memory_used_bytes", during(63 * GIB, 25, 30), target=a)
    once = [
        Cause(
            alert=name,
            severity="warning",
            what=what,
            page=restarted(before, CHAT_A, at=30),
            holds_from=34,
            over_at=50,
            summary="chat-a has restarted after low headroom",
        )
        for what, before in (("peaks", brim), ("the plan", by_plan), ("main memory", by_host))
    ]
    thrice = brim
    for at in (30, 50, 70):
        thrice = restarted(thrice, CHAT_A, at=at)

    loaded = healthy(260).changed("requests_waiting", 4, target=a)

    def halved(minute: int) -> float:
        return 6000 * min(minute, 120) + 3000 * max(0, min(minute, 180) - 120) + 6000 * max(0, minute - 180)

    # Load of two hours, an idle hour, and load again at half the speed: the mean of all would be below it.
    evening = healthy(320).changed(
        "requests_waiting", lambda minute: 0 if 120 <= minute < 220 or minute >= 280 else 4, target=a
    )

    def at_work(a_minute: float) -> Callable[[int], float]:
        return lambda minute: a_minute * (min(minute, 120) + 0.5 * max(0, minute - 220))

    evening = evening.changed("generation_tokens_total", at_work(6000), target=a)
    evening = evening.changed("prompt_tokens_total", at_work(12000), target=a)
    verdict = {"experiment": "ctx", "candidate": "long", "metric": "overall", "verdict": "worse"}
    watch = {"job": "brimline-ab", "instance": "10.0.0.7:10779", "namespace": "", "pod": ""}
    return [
        *once,
        Cause(
            alert=name,
            severity="critical",
            what="three restarts",
            page=thrice,
            holds_from=74,
            over_at=90,
            summary="chat-a has restarted 3 times within an hour, after low headroom",
        ),
        Cause(
            alert="BrimlineThroughputRegression",
            severity="warning",
            what="half as fast while requests wait",
            page=loaded.changed("generation_tokens_total", halved, target=a),
            # A mean of half an hour, of which 22 minutes are at half, beside that of the hour before.
            holds_from=142,
            over_at=200,
            summary="chat-a generates 50.95% of the tokens per second that it did under load the day before",
            interval_seconds=30,
        ),
        Cause(
            alert="BrimlineThroughputRegression",
            severity="warning",
            what="half as fast under load, after idle hours",
            page=evening,
            holds_from=240,
            over_at=300,
            summary="chat-a generates 50.77% of the tokens per second that it did under load the day before",
            interval_seconds=30,
        ),
        Cause(
            alert="BrimlineVariantWorse",
            severity="warning",
            what="a verdict",
            page=H.added("brimline_ab_verdict", during(1, BEGINS, ENDS), **watch, **verdict)
            .added("brimline_ab_verdict", 0, **watch, **{**verdict, "verdict": "pass"})
            # What is no gate may be worse.
            .added("brimline_ab_verdict", 1, **watch, **{**verdict, "metric": "kv_cache_usage"})
            .added("brimline_ab_gate", 1, **watch, experiment="ctx")
            # Nor is an experiment of short blocks one.
            .added("brimline_ab_verdict", 1, **watch, **{**verdict, "experiment": "a-look"})
            .added("brimline_ab_gate", 0, **watch, experiment="a-look"),
            labels={**{name: value for name, value in watch.items() if value}, **verdict},
            summary="Experiment ctx: long is worse than the baseline",
        ),
    ]


def causes() -> list[Cause]:
    """All of them, in the order of the alerts."""
    return [*_exporters(), *_readings(), *_gpu_memory(), *_main_memory(), *_kv_cache(), *_servers()]


# --- where they lead ---

LINKS = {
    "BrimlineExporterDown, warning: its scrape fails": "/d/brimline-exporter?var-job=brimline",
    "BrimlineExporterDown, critical: its scrape fails": "/d/brimline-exporter",
    "BrimlineTargetDown, warning: it cannot be read": (
        "/d/brimline-server?var-job=brimline&var-instance=10.0.0.7:10778&var-target=chat-a"
    ),
    "BrimlineGpuUnreadable, warning: a card is lost": "/d/brimline-gpu?var-job=brimline&var-gpu=GPU-aaaa",
    "BrimlineGpuUnreadable, warning: NVML is lost": "/d/brimline-gpu?var-job=brimline",
    "BrimlineHostMemoryLow, critical: the machine": (
        "/d/brimline-server?var-job=brimline&var-instance=10.0.0.7:10778"
    ),
    "BrimlineVariantWorse, warning: a verdict": "/d/brimline-ab?var-experiment=ctx",
}


def links() -> list[Case]:
    """What the templates of links to boards come to: evaluated in place of the summary."""
    by_name = {cause.name: cause for cause in causes()}
    written = yaml.safe_load(plain_files()["brimline-alerts.yaml"])["groups"][0]["rules"]
    templates = {
        (rule["alert"], rule["labels"]["severity"]): rule["annotations"]["dashboard_url"] for rule in written
    }
    made = []
    for name, link in LINKS.items():
        cause = by_name[name]
        rule = replace(cause.rule, summary=templates[cause.alert, cause.severity])
        series = ({**cause.labels, "severity": cause.severity}, link)
        case = cause.case()
        made.append(
            replace(
                case,
                name=f"{name}: link to its board",
                expectations=(Firing(cause.fires_at, cause.alert, (series,)),),
                rules=replace(case.rules, alerts=(rule,)),
            )
        )
    return made
