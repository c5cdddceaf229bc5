"""Recording rules: what boards and alerts stand on.

Whatever needs GPU memory has two bodies: NVML's families of our own exporter, and dcgm-exporter's where an exporter
has no access to a GPU. Names are `level:metric:operations`. Series of a server carry job, instance and target (and
whatever labels the scrape adds, such as namespace and pod) with engine, experiment, variant, role and model.

In order: Prometheus and vmalert evaluate the rules of a group one after the other, so that each one sees what those
above it have recorded. What looks back a day stands in a group of its own that is evaluated less often.
"""

from __future__ import annotations

from dataclasses import dataclass

from brimline_dashboards.queries import (
    ON,
    ON_EXPORTER,
    ON_GPU,
    family,
    family_count,
    family_sum,
    identified,
    ratio_of,
)

# Every half minute: the rules are cheap, and alerts wait for minutes.
INTERVAL_SECONDS = 30
# What looks back a day is costly, and changes seldom; below half of the five minutes for which a sample counts.
SLOW_INTERVAL_SECONDS = 120
MIB = 1 << 20

# What the driver keeps for itself is part of `used` with memory API v1: 328 to 551 MiB by driver and card.
MEMORY_V1_EXTRA_BYTES = 600 * MIB


@dataclass(frozen=True, slots=True)
class Recording:
    """One recorded series.

    help: what it is and when it is absent, for people who write queries of their own. slow: of the group that is
    evaluated less often.
    """

    record: str
    expr: str
    help: str
    slow: bool = False


@dataclass(frozen=True, slots=True)
class Dcgm:
    """How dcgm-exporter's series name the pod that a GPU belongs to: `exported_pod` without honorLabels."""

    namespace_label: str = "namespace"
    pod_label: str = "pod"


def recordings(dcgm: Dcgm | None = None) -> tuple[Recording, ...]:
    """All recording rules, in the order in which they must be evaluated."""
    return (
        *_seen(),
        *_identity(dcgm or Dcgm()),
        *_gpu_memory(),
        *_plans(),
        *_memory_of_servers(),
        *_kv_cache(),
        *_load(),
        *_variants(),
    )


def _without_ranks(operation: str, expr: str) -> str:
    return f"{operation} without (model, rank) ({expr})"


def _of_gpus(operation: str, gpu_series: str) -> str:
    """A series of GPUs, combined over those of each server."""
    return f"{operation} without (gpu) (target:gpu:info * on ({ON_GPU}) group_left () ({gpu_series}))"


# --- what belongs together ---

_IN_A_POD = 'pod!=""'
_READ = 'engine!=""'


def _only_one(rows: str) -> str:
    """The rows of servers that have just one."""
    return f"({rows} and on ({ON}) count by ({ON}) ({rows}) == 1)"


def _seen() -> tuple[Recording, ...]:
    gpu_up, nvml = family("gpu_up"), family("nvml_up")
    return (
        Recording(
            "exporter:seen:info",
            f"max without (version, python) (max_over_time({family('build_info')}[1d]))",
            "1 for each exporter that was read within the last day.",
            slow=True,
        ),
        Recording(
            "exporter:nvml_seen:info",
            f"max_over_time({nvml}[1d]) == 1",
            "1 for each exporter that could use NVML within the last day.",
            slow=True,
        ),
        Recording(
            "gpu:seen:info",
            f"max_over_time({gpu_up}[1d]) == 1",
            "1 for each GPU that could be read within the last day.",
            slow=True,
        ),
        Recording(
            "target:engine_seen:info",
            f"max by ({ON}, engine) (last_over_time({family('target_info', _READ)}[1d]))",
            "1 for each engine of a server within the last day.",
            slow=True,
        ),
        Recording(
            "target:model_seen:info",
            f"max by ({ON}, model) (last_over_time({family('model_info')}[1d]))",
            "1 for each model of a server within the last day.",
            slow=True,
        ),
    )


def _identity(dcgm: Dcgm) -> tuple[Recording, ...]:
    info = family("target_info")
    # As within the last day: these are not told while a server is down, and a restart must not make two series.
    engines = _only_one(f"max by ({ON}, engine) ({family('target_info', _READ)} or target:engine_seen:info)")
    models = _only_one(f"max by ({ON}, model) ({family('model_info')} or target:model_seen:info)")
    server = f"max without (engine, engine_version, simulated) ({info})"
    own_gpus = family("target_gpu_info")
    reads_gpus = f"({family('nvml_up')} == 1)"
    pods = (
        f"max by (namespace, pod, {ON_EXPORTER}) ({family('target_info', _IN_A_POD)}"
        f" unless on ({ON_EXPORTER}) {own_gpus} unless on ({ON_EXPORTER}) {reads_gpus})"
    )
    pod_of_gpu = _dcgm_pods(dcgm)
    only_target = f"({info} and on ({ON_EXPORTER}) count by ({ON_EXPORTER}) ({info}) == 1)"
    return (
        Recording(
            "target:engine:info",
            f"{server} * on ({ON}) group_left (engine) {engines}\nor on ({ON})\n{server}",
            "1 for each server; engine as within the last day.",
        ),
        Recording(
            "target:identity:info",
            f"target:engine:info * on ({ON}) group_left (model) {models}\nor on ({ON})\ntarget:engine:info",
            "1 for each server; model as within the last day, and empty where it served several.",
        ),
        Recording(
            "gpu:dcgm:info",
            f"max by ({ON_GPU}) ({own_gpus} unless on ({ON_EXPORTER}) {reads_gpus})\n"
            "or\n"
            f"max by ({ON_GPU}) (\n"
            f"  {pod_of_gpu}\n"
            f"  * on (namespace, pod) group_left ({ON_EXPORTER})\n"
            f"  ({pods} and on (namespace, pod) count by (namespace, pod) ({pods}) == 1)\n"
            ")",
            "1 for each GPU whose memory is taken from dcgm-exporter: the exporter cannot read it, and either names "
            "the GPU or runs in the pod that owns it.",
        ),
        Recording(
            "target:gpu:info",
            f"max without (rank) ({own_gpus})\n"
            "or\n"
            f"(gpu:dcgm:info unless on ({ON_EXPORTER}) {own_gpus})\n"
            f"* on ({ON_EXPORTER}) group_left (target, namespace, pod) {only_target}",
            "1 for each GPU of a server. Absent where it is not known which ones belong to it.",
        ),
    )


def _dcgm_pods(dcgm: Dcgm) -> str:
    """Which GPUs belong to which pod, as dcgm-exporter says. A MIG instance shares its card's UUID: left out."""
    labelled = f'DCGM_FI_DEV_FB_USED{{GPU_I_ID="",{dcgm.pod_label}!=""}}'
    labelled = f'label_replace({labelled}, "gpu", "$1", "UUID", "(.+)")'
    if dcgm.namespace_label != "namespace":
        labelled = f'label_replace({labelled}, "namespace", "$1", "{dcgm.namespace_label}", "(.+)")'
    if dcgm.pod_label != "pod":
        labelled = f'label_replace({labelled}, "pod", "$1", "{dcgm.pod_label}", "(.+)")'
    return f"(max by (namespace, pod, gpu) ({labelled}) * 0 + 1)"


# --- memory of GPUs ---


def _dcgm_bytes(field: str) -> str:
    """A field of dcgm-exporter in bytes (it counts in MiB), one series for each GPU."""
    return f'max by (gpu) (label_replace({field}{{GPU_I_ID=""}}, "gpu", "$1", "UUID", "(.+)")) * {MIB}'


def _either(name: str, dcgm_expr: str) -> str:
    return f"{family(name)}\nor on ({ON_GPU})\ngpu:dcgm:info * on (gpu) group_left () ({dcgm_expr})"


def _gpu_memory() -> tuple[Recording, ...]:
    used, free = _dcgm_bytes("DCGM_FI_DEV_FB_USED"), _dcgm_bytes("DCGM_FI_DEV_FB_FREE")
    reserved = _dcgm_bytes("DCGM_FI_DEV_FB_RESERVED")
    peak = family("gpu_memory_used_peak_bytes")
    return (
        Recording(
            "gpu:memory_used:bytes",
            _either("gpu_memory_used_bytes", used),
            "Memory in use on a GPU. Absent while neither NVML nor dcgm-exporter tells.",
        ),
        Recording(
            "gpu:memory_free:bytes",
            _either("gpu_memory_free_bytes", free),
            "Memory not in use. Absent as gpu:memory_used:bytes is.",
        ),
        Recording(
            "gpu:memory_total:bytes",
            _either("gpu_memory_total_bytes", f"{used} + {free} + ({reserved} or {used} * 0)"),
            "Memory of the GPU; by dcgm-exporter without what the driver reserves, unless it exports that.",
        ),
        Recording(
            "gpu:memory_used_peak:bytes",
            f"{peak}\nor on ({ON_GPU})\ngpu:memory_used:bytes",
            "Most memory in use within the peak window; by dcgm-exporter what is in use now: a spike between two "
            "scrapes is not seen there.",
        ),
        Recording(
            "gpu:memory_free_at_peak:bytes",
            f"gpu:memory_free:bytes - on ({ON_GPU})\n"
            f"clamp_min(gpu:memory_used_peak:bytes - on ({ON_GPU}) gpu:memory_used:bytes, 0)",
            "Memory that was left at the highest use within the peak window.",
        ),
    )


# --- what the plan says ---


def _plans() -> tuple[Recording, ...]:
    calibrated = f"({family('prediction_calibrated')} == 1)"
    low, high = family("predicted_memory_bytes", _NOT_KV), family("predicted_memory_high_bytes", _NOT_KV)
    pool = f"max without (rank) (sum without (model) ({family('kv_cache_capacity_bytes')}))"
    parts = f"sum without (component) ({low}) and on ({ON}) {calibrated}"
    parts_high = f"sum without (component) ({high})"
    total, total_high = family("predicted_total_memory_bytes"), family("predicted_total_memory_high_bytes")
    every_server = (
        f"and on ({ON_GPU})\n"
        f"(count by ({ON_GPU}) (target:gpu:info) == count by ({ON_GPU}) "
        f"(target:gpu:info * on ({ON}) group_left () target:memory_planned_high:bytes))"
    )

    def on_gpu(series: str) -> str:
        joined = f"target:gpu:info * on ({ON}) group_left () {series}"
        return f"sum by ({ON_GPU}) ({joined})\n{every_server}"

    return (
        Recording(
            "target:memory_planned_high:bytes",
            identified(f"{total_high} or ({parts_high} + on ({ON}) group_left () {pool})"),
            "Most memory that the server may take on its fullest GPU, by its plan; without access to the GPU its "
            "parts and the KV cache that it states. Absent where nothing is predicted.",
        ),
        Recording(
            "target:memory_planned:bytes",
            identified(
                f"({total} and on ({ON}) {calibrated})\n"
                f"or on ({ON}) {total_high}\n"
                f"or on ({ON}) (({parts}) + on ({ON}) group_left () {pool})"
            )
            + f"\nor on ({ON}) target:memory_planned_high:bytes",
            "What headroom counts on: the expected total where the prediction is calibrated, else its high bound.",
        ),
        Recording(
            "gpu:memory_planned:bytes",
            on_gpu("target:memory_planned:bytes"),
            "The plans of all servers on a GPU together. Absent where one of them has none.",
        ),
        Recording(
            "gpu:memory_planned_high:bytes",
            on_gpu("target:memory_planned_high:bytes"),
            "The high bounds of the plans of all servers on a GPU. Absent where one of them has none.",
        ),
    )


_NOT_KV = 'component!="kv_cache"'


# --- memory of servers ---

_MEMORY_V1 = 'memory_api="v1"'


def _memory_of_servers() -> tuple[Recording, ...]:
    start, up = family("target_start_time_seconds"), family("target_up")
    asleep, tokens = family("target_sleeping"), family("generation_tokens_total")
    # A server may load for most of an hour after its start. An hour more than alerts look back: of exactly six hours
    # only every other evaluation would see them all.
    was_down = "max_over_time(target:down:timestamp[7h])"
    first_up = "min_over_time(target:up:timestamp[7h])"
    by_dcgm = (
        f"gpu:memory_free:bytes - on ({ON_GPU}) "
        f"clamp_min(gpu:memory_planned:bytes - on ({ON_GPU}) gpu:memory_used:bytes, 0) and on ({ON_GPU}) gpu:dcgm:info"
    )
    v1 = f"{family('gpu_info', _MEMORY_V1)} * {MEMORY_V1_EXTRA_BYTES}"
    planned_in_use = f"(gpu:memory_planned_high:bytes + on ({ON_GPU}) max by ({ON_GPU}) ({v1}) or gpu:memory_planned_high:bytes)"
    headroom = family("memory_headroom_bytes")
    used, limit = family("server_host_memory_used_bytes"), family("server_host_memory_limit_bytes")
    return (
        Recording(
            "target:up:timestamp",
            f"time() * ({up} == 1)",
            "The time, while a server can be read. Absent else.",
        ),
        Recording(
            "target:down:timestamp",
            f"time() * (max_over_time({up}[3m]) == bool 0) > 0\n"
            "or\n"
            f"time() * (max without (model, rank) (resets({tokens}[5m])) > bool 0) > 0",
            "The time, while a server could not be read for three minutes, or where its counters began anew within five. "
            "Absent else.",
        ),
        Recording(
            "target:start:timestamp",
            start,
            "When the server started, as its engine tells. Absent where it does not.",
        ),
        Recording(
            # Not by changes(): of times that waver by parts of a second each would count, and some databases count
            # the first sample, too.
            "target:restart:seconds",
            f"{start} - last_over_time(target:start:timestamp[2h] offset 1s) > 1",
            "How much later the server started than the time before, at the one evaluation that sees it first: the "
            "samples are restarts. Absent else.",
        ),
        Recording(
            "target:uptime:seconds",
            identified(
                f"time() - ({start} > {was_down}\nor on ({ON}) {was_down}\nor on ({ON}) {start}\n"
                f"or on ({ON}) {first_up})"
            ),
            "Time since the server started, or could be read again after three minutes or more, as far back as seven "
            "hours where its engine does not tell its start.",
        ),
        Recording(
            "target:memory_used:bytes",
            identified(_of_gpus("max", "gpu:memory_used:bytes")),
            "Memory in use on the server's fullest GPU, by all that runs there.",
        ),
        Recording(
            "target:memory_free:bytes",
            identified(_of_gpus("min", "gpu:memory_free:bytes")),
            "Memory left on the server's fullest GPU.",
        ),
        Recording(
            "target:memory_free_at_peak:bytes",
            identified(_of_gpus("min", "gpu:memory_free_at_peak:bytes")),
            "Memory that was left on the server's fullest GPU at its peak.",
        ),
        Recording(
            "target:memory_free:ratio",
            identified(
                _of_gpus(
                    "min",
                    f"gpu:memory_free_at_peak:bytes / on ({ON_GPU}) (gpu:memory_used:bytes + on ({ON_GPU}) "
                    "gpu:memory_free:bytes)",
                )
            ),
            "Share of what CUDA can have that was left on the server's fullest GPU at its peak.",
        ),
        Recording(
            "target:memory_headroom:bytes",
            identified(headroom) + f"\nor on ({ON})\n" + identified(_of_gpus("min", by_dcgm)),
            "What stays free on the fullest GPU once all servers on it have taken what they are planned to. "
            "Absent where a prediction or the GPU is missing.",
        ),
        Recording(
            "target:memory_above_plan:bytes",
            identified(_of_gpus("max", f"gpu:memory_used:bytes - on ({ON_GPU}) {planned_in_use}")),
            "Memory in use beyond the plan's high bound on any GPU of the server; negative where it is below. "
            "Absent where nothing is predicted.",
        ),
        Recording(
            "target:memory_peak_above_plan:bytes",
            identified(_of_gpus("max", f"gpu:memory_used_peak:bytes - on ({ON_GPU}) {planned_in_use}")),
            "The same at the highest use within the peak window: spikes between two scrapes.",
        ),
        Recording(
            "target:memory_beyond_gpu:bytes",
            identified(
                _of_gpus(
                    "max",
                    f"gpu:memory_planned_high:bytes - on ({ON_GPU}) (gpu:memory_used:bytes + on ({ON_GPU}) "
                    "gpu:memory_free:bytes)",
                )
            ),
            "How much more the plans of all servers on a GPU may take, by their high bounds, than CUDA can have; "
            "negative where they fit.",
        ),
        Recording(
            "target:memory_exhaustion:seconds",
            f"(target:memory_free_at_peak:bytes / -(deriv(target:memory_free_at_peak:bytes[1h]) < 0) < 604800)\n"
            f"and on ({ON}) target:uptime:seconds > 3600\n"
            f"unless on ({ON}) max_over_time({asleep}[1h]) > 0",
            "Time until nothing is left on the fullest GPU if use grows on as in the last hour. Absent where it does "
            "not grow, would take over a week, or the server started or slept within the hour.",
        ),
        Recording(
            "target:host_memory:ratio",
            identified(f"{used} / {limit}"),
            "Share of its own limit of main memory that the server uses. Absent without a limit.",
        ),
    )


# --- KV cache ---


def _kv_cache() -> tuple[Recording, ...]:
    usage, concurrency = family("kv_cache_usage_ratio"), family("kv_cache_max_concurrency_requests")
    capacity, longest = family("kv_cache_capacity_tokens"), family("max_model_len_tokens")
    fits = f"({concurrency} or {capacity} / ({longest} > 0))"
    sums = tuple(
        Recording(
            f"target:kv_cache_{what}:{unit}",
            identified(_without_ranks("sum", family(f"kv_cache_{what}_{unit}"))),
            f"{'Capacity' if what == 'capacity' else 'Use'} of the KV cache in {unit}, of all ranks together"
            f"{', on one GPU of each rank' if unit == 'bytes' else ''}.",
        )
        for what in ("used", "capacity")
        for unit in ("tokens", "bytes")
    )
    return (
        Recording(
            "target:kv_cache_usage:ratio",
            identified(_without_ranks("max", usage)),
            "Share of the KV cache that requests hold, of the fullest rank.",
        ),
        Recording(
            "target:kv_cache_usage:max10m",
            "max_over_time(target:kv_cache_usage:ratio[10m])",
            "The same at its highest within ten minutes: it is peaks that preempt.",
        ),
        *sums,
        Recording(
            "target:kv_cache_full_requests_left:count",
            identified(_without_ranks("sum", f"{fits} * (1 - {usage})")),
            "How many more requests of the whole context window fit now, over all ranks.",
        ),
    )


# --- load ---


def _rate(name: str) -> str:
    return _without_ranks("sum", f"rate({family(name)}[5m])")


def _mean(name: str) -> str:
    return ratio_of(
        _without_ranks("sum", f"rate({family_sum(name)}[5m])"),
        _without_ranks("sum", f"rate({family_count(name)}[5m])"),
    )


def _load() -> tuple[Recording, ...]:
    waiting, running = family("requests_waiting"), family("requests_running")
    return (
        Recording(
            "target:requests_running:sum",
            identified(_without_ranks("sum", running)),
            "Requests that are being computed, over all ranks.",
        ),
        Recording(
            "target:requests_waiting:sum",
            identified(_without_ranks("sum", waiting)),
            "Requests that wait, over all ranks.",
        ),
        Recording(
            "target:preemptions:rate5m",
            identified(_rate("preemptions_total")),
            "Requests thrown out of the KV cache, per second.",
        ),
        Recording(
            "target:generation_tokens:rate5m",
            identified(_rate("generation_tokens_total")),
            "Tokens generated per second.",
        ),
        Recording(
            "target:prompt_tokens:rate5m",
            identified(_rate("prompt_tokens_total")),
            "Prompt tokens per second.",
        ),
        Recording(
            "target:tokens_under_load:rate5m",
            f"(target:generation_tokens:rate5m and on ({ON}) min_over_time(target:requests_waiting:sum[5m]) > 0)",
            "Tokens generated per second while requests wait: what the server can do. Absent at night.",
        ),
        Recording(
            "target:prompt_tokens_under_load:rate5m",
            f"(target:prompt_tokens:rate5m and on ({ON}) min_over_time(target:requests_waiting:sum[5m]) > 0)",
            "Prompt tokens per second while requests wait. Absent at night.",
        ),
        Recording(
            "target:time_to_first_token:mean5m",
            identified(_mean("time_to_first_token_seconds")),
            "Mean time to the first token, in seconds. Absent without traffic.",
        ),
        Recording(
            "target:inter_token_latency:mean5m",
            identified(_mean("inter_token_latency_seconds")),
            "Mean time between two tokens, in seconds. Absent without traffic.",
        ),
        Recording(
            "target:prefix_cache_hits:ratio5m",
            identified(
                ratio_of(_rate("prefix_cache_hits_tokens_total"), _rate("prefix_cache_queries_tokens_total"))
            ),
            "Share of prompt tokens found in the prefix cache. Absent without traffic.",
        ),
        Recording(
            "target:spec_decode_acceptance:ratio5m",
            identified(
                ratio_of(_rate("spec_decode_accepted_tokens_total"), _rate("spec_decode_draft_tokens_total"))
            ),
            "Share of proposed tokens that the model accepted. Absent without speculative decoding.",
        ),
    )


# --- variants of an experiment ---

# Blocks of a quarter of an hour that do not overlap: steps of a subquery lie at multiples of their own length. The
# range ends a second short of four hours: of exactly four, a Prometheus 2 takes 17 steps and a Prometheus 3, whose
# ranges leave out their beginning, 16; of 239 minutes they differ once in each block. Of this, never.
_BLOCK, _BLOCKS = "15m", "[239m59s:15m]"
# Of fewer, a spread means nothing.
_LEAST_BLOCKS = 4


def _mean_of_variants() -> str:
    """Ratios of sums over each variant's servers, never means of ratios; the metrics' names are those of verdicts."""

    def grown(series: str) -> str:
        return _of_variants(f"rate({series}[{_BLOCK}])")

    def held(name: str) -> str:
        return _of_variants(f"avg_over_time({family(name)}[{_BLOCK}])")

    def mean(histogram: str) -> str:
        return ratio_of(grown(family_sum(histogram)), grown(family_count(histogram)))

    ratios = {
        "inter_token_latency": mean("inter_token_latency_seconds"),
        "time_to_first_token": mean("time_to_first_token_seconds"),
        "tokens_per_running_request": ratio_of(
            grown(family("generation_tokens_total")), held("requests_running")
        ),
        "kv_bytes_per_token": ratio_of(held("kv_cache_used_bytes"), held("kv_cache_used_tokens")),
    }
    return "\nor\n".join(
        f'label_replace({expr}, "metric", "{metric}", "", "")' for metric, expr in ratios.items()
    )


def _of_variants(expr: str) -> str:
    """Summed over ranks and servers of each variant of an experiment."""
    in_experiment = 'target:identity:info{experiment!="",variant!=""}'
    joined = (
        f"({_without_ranks('sum', expr)}) * on ({ON}) group_left (experiment, variant, role) {in_experiment}"
    )
    return f"sum by (experiment, variant, role) ({joined})"


def _variants() -> tuple[Recording, ...]:
    """Differences as they come, for the board. They carry no verdict: that is `brimline ab watch`'s."""
    candidates = '(variant:ab_metric:mean15m{role="candidate"} > 0)'
    baselines = '(variant:ab_metric:mean15m{role="baseline"} > 0)'
    enough = f"(ab:log_ratio:blocks4h >= {_LEAST_BLOCKS})"
    return (
        Recording(
            "variant:ab_metric:mean15m",
            _mean_of_variants(),
            "A metric (label metric) of each variant of an experiment over a quarter of an hour: a ratio of sums over its "
            "servers. Absent without traffic.",
        ),
        Recording(
            "ab:log_ratio:15m",
            f"ln({candidates})\n- on (experiment, metric) group_left ()\n"
            f"ln({baselines} and on (experiment, metric) count by (experiment, metric) ({baselines}) == 1)",
            "Logarithm of each candidate's metric over the baseline's. Absent where an experiment has no baseline, or two.",
        ),
        Recording(
            "ab:log_ratio:blocks4h",
            f"count_over_time(ab:log_ratio:15m{_BLOCKS})",
            "Quarters of an hour, of the last sixteen, in which both had traffic.",
        ),
        Recording(
            "ab:log_ratio:mean4h",
            f"avg_over_time(ab:log_ratio:15m{_BLOCKS})",
            "Mean of the last four hours' quarters. It describes, and proves nothing.",
        ),
        Recording(
            "ab:log_ratio:se4h",
            f"stddev_over_time(ab:log_ratio:15m{_BLOCKS}) / sqrt({enough} - 1)",
            "Standard error of that mean. Absent below four quarters.",
        ),
        Recording(
            "ab:log_ratio:lower4h",
            "ab:log_ratio:mean4h - 2 * ab:log_ratio:se4h",
            "The mean less two standard errors. Over a window that slides it excludes 0 sooner or later for equal "
            "variants, too: it is no verdict.",
        ),
        Recording(
            "ab:log_ratio:upper4h",
            "ab:log_ratio:mean4h + 2 * ab:log_ratio:se4h",
            "The mean and two standard errors; no verdict either.",
        ),
    )
