"""Alerts: what wakes somebody, with what it means and what to do now.

Memory in use is no alert: engines take nine tenths of a GPU on purpose. What counts is what is left once the plan
is used up, use beyond the plan, and its growth. Thresholds and durations are those of brimline.thresholds.

Every expression gives a series only while something is wrong, and is silent where a series that it needs is missing:
the absence of readings has alerts of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from brimline import verdicts
from brimline.thresholds import ALERTS, Thresholds
from brimline.units import write_duration
from brimline_dashboards.queries import ON, ON_EXPORTER, ON_GPU, family, identified, quoted

Severity = Literal["info", "warning", "critical"]
Board = Literal["fleet", "server", "gpu", "ab", "exporter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alerting rule.

    for_seconds: how long the expression must hold. summary, description: Go templates, one sentence of what is, and
    what to do now. board: where to look.
    """

    name: str
    severity: Severity
    expr: str
    for_seconds: float
    summary: str
    description: str
    board: Board = "server"


def alerts(thresholds: Thresholds | None = None) -> tuple[Alert, ...]:
    """All alerting rules that are switched on, in the order of ALERTS."""
    chosen = thresholds or Thresholds()
    made = [
        *_of_exporters(chosen),
        *_of_readings(chosen),
        *_of_gpu_memory(chosen),
        *_of_main_memory(chosen),
        *_of_kv_cache(chosen),
        *_of_servers(chosen),
    ]
    order = {name: index for index, name in enumerate(ALERTS)}
    return tuple(
        sorted((alert for alert in made if chosen.is_enabled(alert.name)), key=lambda one: order[one.name])
    )


def _named(expr: str) -> str:
    """With the labels of the server by which alerts are routed."""
    return identified(expr, ROUTING)


def _of_server(expr: str, operation: str = "max") -> str:
    """One series for each server of what is recorded, without the labels that change while an alert stands.

    A range that sees such a change holds two series; elsewhere there is one, which any operation leaves as it is.
    """
    return f"{operation} without (engine, model) (\n{expr}\n)"


def _throughout(operation: str, ranged: str) -> str:
    """The same of a range of recorded series, on one line."""
    return f"{operation} without (engine, model) ({operation}_over_time({ranged}))"


# Of what identifies a server, what stays: engine and model are not told while it is down, and an adapter that is
# loaded makes a second model. An alert whose labels change resolves and begins anew.
ROUTING = "experiment, variant, role"

SERVER = "{{ $labels.target }}"
BYTES = "{{ $value | humanize1024 }}B"
SHARE = "{{ $value | humanizePercentage }}"
DURATION = "{{ $value | humanizeDuration }}"


# --- the exporter itself ---


def _of_exporters(chosen: Thresholds) -> list[Alert]:
    name = "BrimlineExporterDown"
    built = family("build_info")
    job = quoted(chosen.text(name, "job"))
    reload_ok, reload_name = family("config_last_reload_successful"), "BrimlineConfigReloadFailed"
    discovered = family("discovery_up")
    return [
        Alert(
            name=name,
            severity="warning",
            expr=f"up{{job=~{job}}} == 0\nor\n(up == 0 and on ({ON_EXPORTER}) exporter:seen:info)",
            for_seconds=chosen.number(name, "warning_for"),
            summary="Exporter {{ $labels.instance }} cannot be reached",
            description="Nothing is known of the servers and GPUs behind it, and none of their alerts can fire. See "
            "whether its process runs and what it logs, then whether Prometheus reaches {{ $labels.instance }} "
            "(the error is on Prometheus' page of targets).",
            board="exporter",
        ),
        Alert(
            name=name,
            severity="critical",
            expr=f"count(exporter:seen:info) unless count({built})",
            for_seconds=chosen.number(name, "critical_for"),
            summary="No Brimline exporter can be reached any more ({{ $value }} within the last day)",
            description="No memory alert can fire for any server. Look at what all exporters share: the scrape "
            "configuration, service discovery, the network, a rollout.",
            board="exporter",
        ),
        Alert(
            name=reload_name,
            severity="warning",
            expr=f"{reload_ok} == 0\nor on ({ON_EXPORTER})\n{discovered} == 0",
            for_seconds=chosen.number(reload_name, "for"),
            summary="Exporter {{ $labels.instance }} works with an older configuration",
            description="A newer file was refused, or files or pods cannot be read. What was known before is in force, "
            "so that servers added since are not watched. `brimline check --config FILE` names what is wrong and the "
            "cure.",
            board="exporter",
        ),
    ]


# --- whether servers and GPUs can be read ---


def _of_readings(chosen: Thresholds) -> list[Alert]:
    down, slow = "BrimlineTargetDown", "BrimlineTargetSlow"
    page, mismatch, gpu = "BrimlineEnginePageIncomplete", "BrimlineConfigMismatch", "BrimlineGpuUnreadable"
    is_down = _named(f"{family('target_up')} == 0")
    cannot = (
        "The inference server's page could not be read; it may be down, and its numbers are absent. The reason is on "
        f"`{family('target_problem')}` and on the exporter's page. Look at the server's own log and process; where "
        "it ended by itself, look for an out-of-memory in its last lines and in the kernel's log."
    )
    duration = family("target_scrape_duration_seconds")
    incomplete = (
        f"count without (quantity) ({family('target_missing_quantities')} == 1)\n"
        f"or on ({ON})\n"
        f"increase({family('target_unparsed_lines_total')}[15m]) > 0"
    )
    nvml = family("nvml_up")
    return [
        Alert(
            name=down,
            severity="warning",
            expr=is_down,
            for_seconds=chosen.number(down, "warning_for"),
            summary=f"{SERVER} cannot be read",
            description=cannot,
        ),
        Alert(
            name=down,
            severity="critical",
            expr=is_down,
            for_seconds=chosen.number(down, "critical_for"),
            summary=f"{SERVER} has not been read for {write_duration(chosen.number(down, 'critical_for'))}",
            description=cannot,
        ),
        Alert(
            name=slow,
            severity="warning",
            expr=_named(f"avg_over_time({duration}[5m]) > {chosen.number(slow, 'duration'):g}"),
            for_seconds=chosen.number(slow, "for"),
            summary=f"Reading {SERVER} takes {DURATION}",
            description="Its metrics page is slow, which costs the server CPU too. See whether the server is "
            "overloaded or its page is huge (many models, histograms with many buckets); `min_interval` asks it less "
            "often. Near the scrape's timeout its values will be missing.",
            board="exporter",
        ),
        Alert(
            name=page,
            severity="warning",
            expr=_named(incomplete),
            for_seconds=chosen.number(page, "for"),
            summary=f"The page of {SERVER} lacks quantities or holds lines that cannot be read",
            description="Something that this engine should state in its version is missing: an upgrade may have "
            "renamed it, and panels and alerts that need it are silent. The exporter's board names the quantities; "
            "send `brimline capture --target URL` with a bug report.",
            board="exporter",
        ),
        Alert(
            name=mismatch,
            severity="warning",
            expr=_named(f"count without (setting) ({family('target_config_mismatch')} == 1)"),
            for_seconds=chosen.number(mismatch, "for"),
            summary=f"{SERVER} runs with {{{{ $value }}}} setting{{{{ if gt $value 1.0 }}}}s{{{{ end }}}} other than declared",
            description="The server's live settings differ from those in the exporter's configuration: it was not "
            "restarted after a change, or the wrong server answers. The plan uses the live ones. The server's board "
            "names the settings.",
        ),
        Alert(
            name=gpu,
            severity="warning",
            # A card that nobody uses and that was never readable (a display's, a MIG parent) is no loss.
            expr=(
                f"({family('gpu_up')} == 0 and on ({ON_GPU}) "
                f"(target:gpu:info or gpu:seen:info))\n"
                f"or\n({nvml} == 0 and exporter:nvml_seen:info)"
            ),
            for_seconds=chosen.number(gpu, "for"),
            summary="GPU memory {{ with $labels.gpu }}of {{ . }} {{ end }}cannot be read on {{ $labels.instance }}",
            description="Headroom and VRAM alerts are silent for the servers on it. The reason is on "
            f"`{family('gpu_problem')}` or `{family('nvml_problem')}`: gpu_lost means that the card fell off the bus "
            "(look for Xid lines in the kernel's log; the server on it is dead or dying), driver_mismatch that the "
            "driver was upgraded under a running container.",
            board="gpu",
        ),
    ]


# --- GPU memory ---

# Of the growth in a window each of two halves must have this much: a single step lies in one of them.
_SHARE_OF_GROWTH = 0.15


def _keeps_growing(minutes: int) -> str:
    """Least left in the last minutes, in as many before and in as many before those: it fell both times."""
    now, before, first = (
        _throughout("min", f"target:memory_free_at_peak:bytes[{minutes}m]{offset}")
        for offset in ("", f" offset {minutes}m", f" offset {2 * minutes}m")
    )
    share = f"> {_SHARE_OF_GROWTH:g} * ({first} - {now})"
    return f"{before} - {now}\n{share}\nand on ({ON}) {first} - {before}\n{share}"


def _of_gpu_memory(chosen: Thresholds) -> list[Alert]:
    return [*_headroom(chosen), *_beyond_the_plan(chosen), *_strangers(chosen)]


def _headroom(chosen: Thresholds) -> list[Alert]:
    low, will = "BrimlineVramHeadroomLow", "BrimlineVramWillExhaust"
    calibrated = f"on ({ON}) {family('prediction_calibrated')} == 1"

    def below(key: str, window: str, seconds: int) -> str:
        """Too little is left, now or at the worst moment since the server is warm."""
        limit = f"{chosen.number(low, key):.0f}"
        worst = f"min_over_time(target:memory_free_at_peak:bytes[{window}])"
        return _of_server(
            f"(target:memory_headroom:bytes < {limit} and {calibrated})\n"
            f"or on ({ON})\n"
            f"target:memory_free_at_peak:bytes < {limit}\n"
            f"or on ({ON})\n"
            f"({worst} < {limit} and on ({ON}) target:uptime:seconds > {seconds})",
            "min",
        )

    asleep = f"on ({ON}) max_over_time({family('target_sleeping')}[1h]) > 0"
    beyond = f"on ({ON}) target:memory_above_plan:bytes > 0"
    within_plan = f"on ({ON}) target:memory_above_plan:bytes <= 0"
    soon = chosen.number(will, "critical_within")
    later = chosen.number(will, "warning_within")
    little = chosen.number(will, "free_ratio")
    what_now = (
        "Find what allocates it: the server's board shows which part grows (unaccounted: the engine itself or "
        "another process; activations: longer prompts, images, logprobs). To gain time, send it less traffic; to "
        "end it, restart the server when its load allows, with a lower --gpu-memory-utilization or "
        "--max-num-batched-tokens if it comes back."
    )
    return [
        Alert(
            name=low,
            severity="critical",
            expr=below("critical_headroom", "15m", 900),
            for_seconds=chosen.number(low, "critical_for"),
            summary=f"{SERVER} has {BYTES} of GPU memory left: the next larger request may end it",
            description="Either less than that is free at the peaks of each minute, or the calibrated plan will take "
            "it. Move traffic away or limit it now (shorter prompts, fewer images or logprobs), then restart with a "
            "lower --gpu-memory-utilization. Look for a second process on the card.",
        ),
        Alert(
            name=low,
            severity="warning",
            expr=below("warning_headroom", "1h", 3600),
            for_seconds=chosen.number(low, "warning_for"),
            summary=f"{SERVER} has {BYTES} of GPU memory left, at its peak or once its plan is used up",
            description="There is no room for what the plan does not know: lazily loaded kernels, prompt logprobs, "
            "fragmentation. At the next restart lower --gpu-memory-utilization (or --kv-cache-memory-bytes) by what "
            "is missing; see whether something else runs on the card.",
        ),
        Alert(
            name=will,
            severity="critical",
            expr=_of_server(
                f"(\n  target:memory_free_at_peak:bytes / -(deriv(target:memory_free_at_peak:bytes[15m]) < 0) "
                f"< {soon:.0f}\n)\n"
                f"and {beyond}\n"
                f"and on ({ON}) target:uptime:seconds > 900\n"
                # Steps that follow each other are growth, too, once the hour is of one warm server.
                f"and on ({ON}) (\n"
                f"{_keeps_growing(5)}\n"
                f"or on ({ON})\n"
                f"{_keeps_growing(20)}\n"
                f"and on ({ON}) target:uptime:seconds > 3600\n"
                ")\n"
                f"unless {asleep}"
            ),
            for_seconds=chosen.number(will, "critical_for"),
            summary=f"{SERVER} will run out of GPU memory in {DURATION}",
            description=f"Use is beyond the plan's high bound and has grown for a quarter of an hour. {what_now}",
        ),
        Alert(
            name=will,
            severity="warning",
            expr=_of_server(
                f"target:memory_exhaustion:seconds < {later:.0f}\n"
                f"and on ({ON}) (target:memory_free:ratio < {little:g} or target:memory_above_plan:bytes > 0)\n"
                f"and on ({ON}) {_keeps_growing(20)}\n"
                f"unless {within_plan}"
            ),
            for_seconds=chosen.number(will, "warning_for"),
            summary=f"{SERVER} will run out of GPU memory in {DURATION} if use grows as in the last hour",
            description=f"Growth within the plan does not count here: this is beyond it, or there is no plan. {what_now}",
        ),
    ]


def _beyond_the_plan(chosen: Thresholds) -> list[Alert]:
    above, exceeds, growth = "BrimlineVramAbovePlan", "BrimlineVramPlanExceedsGpu", "BrimlineVramGrowth"

    def of_card(operation: str, series: str) -> str:
        """A series of servers, combined over all that share a GPU, for each of them."""
        on_gpu = f"{operation} by ({ON_GPU}) (target:gpu:info * on ({ON}) group_left () {series})"
        return f"on ({ON}) target:gpu:info * on ({ON_GPU}) group_left () {on_gpu}"

    slept = f"max_over_time({family('target_sleeping')}[6h])"
    least = chosen.number(growth, "growth")
    free = "target:memory_free:bytes"
    # What was left in each hour at best: a spike that is given back is no growth.
    before, between, now = (
        _throughout("max", f"{free}[1h]{offset}") for offset in (" offset 5h", " offset 2h30m", "")
    )
    return [
        Alert(
            name=above,
            severity="warning",
            expr=_of_server(
                f"target:memory_above_plan:bytes > {chosen.number(above, 'above'):.0f}\n"
                f"or on ({ON})\n"
                f"(max_over_time(target:memory_peak_above_plan:bytes[15m]) > {chosen.number(above, 'peak_above'):.0f}\n"
                f"and on ({ON}) target:uptime:seconds > 900)"
            ),
            for_seconds=chosen.number(above, "for"),
            summary=f"{SERVER} uses, or used at a peak, {BYTES} more GPU memory than its plan's high bound",
            description="Something that is not in the plan holds memory on its card, or takes it for moments (the peak on "
            "the server's board): images, logprobs, long prompts. The board shows the "
            "part that grows: other processes (see who runs there), or unaccounted (a leak, or features that the "
            "settings do not show). Where the server is known to be well, `brimline calibrate` measures its own "
            "constants.",
        ),
        Alert(
            name=exceeds,
            severity="warning",
            expr=_of_server(
                f"target:memory_beyond_gpu:bytes > 0\n"
                f"or on ({ON})\n" + _named(f"{family('predicted_fits')} == 0")
            ),
            for_seconds=chosen.number(exceeds, "for"),
            summary=f"The plan of {SERVER} exceeds its GPU"
            "{{ if gt $value 0.0 }} by {{ $value | humanize1024 }}B{{ end }}",
            description="By their high bounds the parts of the plan do not fit the card together with one request of "
            "full length. It is the only warning before a spike: nothing will grow first. Lower "
            "--gpu-memory-utilization, --max-num-seqs, --max-num-batched-tokens or --max-model-len (`brimline plan` "
            "shows what each brings), or calibrate: without that the bounds are wide.",
        ),
        Alert(
            name=growth,
            severity="warning",
            expr=(
                f"({before} - {now} > {least:.0f}\n"
                f"and {between} - {now} > {least / 2:.0f})\n"
                # A neighbour that starts or wakes takes what it is planned to.
                f"and on ({ON}) target:uptime:seconds > 21600\n"
                f"unless {of_card('min', 'target:uptime:seconds')} <= 21600\n"
                f"unless {of_card('max', slept)} > 0"
            ),
            for_seconds=chosen.number(growth, "for"),
            summary=f"GPU memory of {SERVER} has grown by {BYTES} within six hours and does not come back",
            description="A server that is warm does not grow: this looks like a leak, or like pieces of freed memory "
            "that fit nothing. There is time: note the version and settings, watch the unaccounted part on the "
            "server's board, plan a restart, and search the engine's issues.",
        ),
    ]


def _strangers(chosen: Thresholds) -> list[Alert]:
    name = "BrimlineForeignProcessOnGpu"
    others = family("gpu_process_memory_bytes", 'owner="other"')
    return [
        Alert(
            name=name,
            severity="warning",
            expr=(f"{others} > {chosen.number(name, 'memory'):.0f}\nand on ({ON_GPU}) target:gpu:info"),
            for_seconds=chosen.number(name, "for"),
            summary=f"Processes of no server hold {BYTES} of a server's GPU {{{{ $labels.gpu }}}}",
            description="The server planned with the whole card; memory that another process takes is missing at its "
            "next spike, and from its KV cache at its next start. `nvidia-smi` names the process; a notebook, a "
            "second server or what is left of a dead one are the usual ones.",
            board="gpu",
        )
    ]


# --- main memory ---


def _of_main_memory(chosen: Thresholds) -> list[Alert]:
    name = "BrimlineHostMemoryLow"
    total, available = family("host_memory_total_bytes"), family("host_memory_available_bytes")

    def used(key: str) -> str:
        ratio = f"{chosen.number(name, key):g}"
        return f"target:host_memory:ratio > {ratio}\nor\n1 - {available} / {total} > {ratio}"

    within = chosen.number(name, "within")
    growing = (
        f"(target:host_memory:ratio > {chosen.number(name, 'growing_ratio'):g}\n"
        f"and on ({ON}) predict_linear(target:host_memory:ratio[30m], {within:.0f}) > 1\n"
        f"and on ({ON}) target:uptime:seconds > 1800)"
    )
    of_whom = (
        f"{{{{ with $labels.target }}}}{{{{ . }}}} uses{{{{ else }}}}The machine of {{{{ $labels.instance }}}} uses"
        f"{{{{ end }}}} {SHARE} of its main memory"
    )
    what_now = (
        "When main memory ends the kernel kills the server at once, without a word in its log. Offloaded weights and "
        "KV cache, CPU copies of adapters, images in flight and the page cache of a tmpfs (/dev/shm) count. Raise the "
        "limit, or lower what is offloaded; a share that only grows is a leak: restart before it ends by itself."
    )
    return [
        Alert(
            name=name,
            severity="critical",
            expr=_of_server(used("critical_ratio")),
            for_seconds=chosen.number(name, "critical_for"),
            summary=of_whom,
            description=what_now,
        ),
        Alert(
            name=name,
            severity="warning",
            expr=_of_server(f"{used('warning_ratio')}\nor on ({ON})\n{growing}"),
            for_seconds=chosen.number(name, "warning_for"),
            summary=of_whom,
            description=what_now,
        ),
    ]


# --- KV cache ---


def _of_kv_cache(chosen: Thresholds) -> list[Alert]:
    will, full, preempting = (
        "BrimlineKvCacheWillSaturate",
        "BrimlineKvCacheSaturated",
        "BrimlineKvCachePreempting",
    )
    usage = "target:kv_cache_usage:ratio"
    no_crash = (
        "A full KV cache is no out-of-memory: requests wait or are computed again, and nothing crashes."
    )
    less = (
        "Send fewer or shorter requests here, or add a replica. For good: a larger cache (--gpu-memory-utilization, "
        "fp8 K/V with --kv-cache-dtype, a larger tensor-parallel size) or a lower --max-num-seqs."
    )
    return [
        Alert(
            name=will,
            severity="info",
            expr=_of_server(
                f"predict_linear(target:kv_cache_usage:max10m[1h], {chosen.number(will, 'within'):.0f}) > 1\n"
                f"and on ({ON}) target:kv_cache_usage:max10m > {chosen.number(will, 'usage'):g}\n"
                f"and on ({ON}) target:uptime:seconds > 3600\n"
                f"unless on ({ON}) {usage} > {chosen.number(full, 'usage'):g}"
            ),
            for_seconds=chosen.number(will, "for"),
            summary=f"The KV cache of {SERVER} will be full within "
            f"{write_duration(chosen.number(will, 'within'))}",
            description=f"By how its peaks have grown for an hour. {no_crash} {less}",
        ),
        Alert(
            name=full,
            severity="warning",
            expr=_of_server(
                # A cache that frees a large request now and then is full all the same.
                f"max_over_time({usage}[5m]) > {chosen.number(full, 'usage'):g}\n"
                f"and on ({ON}) avg_over_time(target:requests_waiting:sum[5m]) >= 1"
            ),
            for_seconds=chosen.number(full, "for"),
            summary=f"The KV cache of {SERVER} gets {SHARE} full and requests wait",
            description=f"{no_crash} Users wait longer for their first token. {less}",
        ),
        Alert(
            name=preempting,
            severity="warning",
            expr=_of_server(
                f"target:preemptions:rate5m * 60 >= {chosen.number(preempting, 'per_minute'):g}\n"
                f"and on ({ON}) max_over_time(target:requests_waiting:sum[5m]) > 0"
            ),
            for_seconds=chosen.number(preempting, "for"),
            summary=f"{SERVER} throws {{{{ $value | humanize }}}} requests a minute out of its KV cache",
            description=f"Each one is computed again from its start: tokens per second fall, latencies rise. {no_crash} "
            f"{less}",
        ),
        *_pools(chosen),
    ]


def _pools(chosen: Thresholds) -> list[Alert]:
    below, unfit = "BrimlineKvCachePoolBelowPrediction", "BrimlineContextWindowDoesNotFit"
    kv = 'component="kv_cache"'
    expected, low = family("predicted_memory_bytes", kv), family("predicted_memory_low_bytes", kv)
    error = family("prediction_error_ratio", kv)
    observed = f"({expected} * (1 + {error}))"
    request = family("predicted_kv_cache_full_request_bytes")
    pool = f"min without (model, rank) ({family('kv_cache_capacity_bytes')})"
    concurrency = f"min without (model, rank) ({family('kv_cache_max_concurrency_requests')})"
    return [
        Alert(
            name=below,
            severity="warning",
            expr=_named(f"max without (component) ({low} - {observed}) > 0"),
            for_seconds=chosen.number(below, "for"),
            summary=f"The KV cache of {SERVER} is {BYTES} smaller than the least predicted",
            description="Something else held GPU memory while the server measured what is left for its cache: another "
            "process, what an earlier one left behind, a first start with cold caches. It serves fewer requests at "
            "once until it is restarted on a clean card; see the card's processes first.",
        ),
        Alert(
            name=unfit,
            severity="warning",
            # What the engine says outweighs what is predicted.
            expr=_named(f"({concurrency}\nor on ({ON})\n{pool} / ({request} > 0)) < 1"),
            for_seconds=chosen.number(unfit, "for"),
            summary=f"One request of the full context window does not fit the KV cache of {SERVER} "
            f"({SHARE} of it does)",
            description="Such a request can never finish: it is refused, or preempted again and again. Lower "
            "--max-model-len to what fits (`brimline plan --sweep max_model_len=…` tells), or give the cache more "
            "memory or a smaller type.",
        ),
    ]


# --- servers ---


def _of_servers(chosen: Thresholds) -> list[Alert]:
    restarted = "BrimlineServerRestartedAfterLowHeadroom"
    slower, worse = "BrimlineThroughputRegression", "BrimlineVariantWorse"
    restart = "target:restart:seconds"
    little = f"{chosen.number(restarted, 'headroom'):.0f}"
    host = f"{chosen.number(restarted, 'host_ratio'):g}"
    was_low = (
        # Bounds from tables are wide: by them alone every planned restart would be one.
        f"(\n  min_over_time(target:memory_headroom:bytes[1h]) < {little}"
        f" and on ({ON}) {family('prediction_calibrated')} == 1\n"
        f"  or on ({ON}) min_over_time(target:memory_free_at_peak:bytes[1h]) < {little}\n"
        f"  or on ({ON}) max_over_time(target:host_memory:ratio[1h]) > {host}\n)"
    )
    many = f"{chosen.number(restarted, 'restarts'):g}"
    ratio = f"{chosen.number(slower, 'ratio'):g}"
    load, reading = "target:tokens_under_load:rate5m", "target:prompt_tokens_under_load:rate5m"
    usual = _throughout("avg", f"{load}[1d] offset 1h")
    why = (
        "No source sees an out-of-memory itself, but within the hour before there was next to nothing left. Look for "
        "'out of memory' in the server's log before the restart and for oom-kill in the kernel's. Its plan is on the "
        "server's board: lower --gpu-memory-utilization or what the peak came from."
    )
    return [
        Alert(
            name=restarted,
            severity="critical",
            expr=_named(f"count_over_time({restart}[1h]) >= {many}") + f"\nand on ({ON}) {was_low}",
            for_seconds=0,
            summary=f"{SERVER} has restarted {{{{ $value }}}} times within an hour, after low headroom",
            description=f"It will go on so. {why}",
        ),
        Alert(
            name=restarted,
            severity="warning",
            expr=_named(f"count_over_time({restart}[15m]) > 0") + f"\nand on ({ON}) {was_low}",
            for_seconds=0,
            summary=f"{SERVER} has restarted after low headroom",
            description=why,
        ),
        Alert(
            name=slower,
            severity="warning",
            expr=(
                f"{_throughout('avg', f'{load}[30m]')} / ({usual} > 0) < {ratio}\n"
                f"and on ({ON}) sum without (engine, model) (count_over_time({load}[30m])) > 30\n"
                f"and on ({ON}) sum without (engine, model) (count_over_time({load}[1d] offset 1h)) > 120\n"
                # A shift from writing to reading is no regression.
                f"and on ({ON}) {_throughout('avg', f'{reading}[30m]')} "
                f"<= 1.2 * {_throughout('avg', f'{reading}[1d] offset 1h')}"
            ),
            for_seconds=chosen.number(slower, "for"),
            summary=f"{SERVER} generates {SHARE} of the tokens per second that it did under load the day before",
            description="Requests wait, so that load is no excuse; neither do longer prompts explain it. Look for "
            "preemptions, a smaller KV cache after a restart, another process on the card, clocks (power or heat), "
            "and a changed configuration (the marks on the board).",
        ),
        Alert(
            name=worse,
            severity="warning",
            # Of all gates together: a metric that is no gate, or a quantity that was meant to shrink, is no alarm.
            # Nor is what is for looking only: short blocks find harm too often.
            expr=f'{verdicts.VERDICT}{{metric="{verdicts.OVERALL}",verdict="worse"}} == 1\n'
            f"and on (job, instance, experiment) {verdicts.GATE} == 1",
            for_seconds=chosen.number(worse, "for"),
            summary="Experiment {{ $labels.experiment }}: {{ $labels.candidate }} is worse than the baseline",
            description="The verdict holds at any time of looking. The A/B board shows in what, by how much and since when; "
            "take the candidate back, or accept the price knowingly.",
            board="ab",
        ),
    ]
