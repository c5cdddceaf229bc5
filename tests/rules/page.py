"""What Prometheus scrapes from an exporter, minute by minute, and how a case changes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from brimline.catalog import BY_NAME, PREFIX

GIB = float(1 << 30)
MIB = float(1 << 20)

# A sample, or None where a scrape has no such series.
Value = float | None
Labels = tuple[tuple[str, str], ...]
Key = tuple[str, Labels]


@dataclass(frozen=True)
class During:
    """A course from one minute to before another; outside of them the series is as it was."""

    value: Value | Callable[[int], Value]
    since: int
    until: int | None


# A value, or what it is at a minute.
Course = float | None | Callable[[int], Value] | During


def during(value: Value | Callable[[int], Value], since: int, until: int | None = None) -> During:
    """The course from one minute to before another, or to the end."""
    return During(value, since, until)


# What the scrape adds to every series of the exporter.
SCRAPE = {"job": "brimline", "instance": "10.0.0.7:10778", "namespace": "chat", "pod": "brimline-0"}
GPU_A, GPU_B = "GPU-aaaa", "GPU-bbbb"


def full_name(name: str) -> str:
    """The scraped name of a family of the catalog; other names are as they are."""
    plain = name.removesuffix("_sum").removesuffix("_count")
    return PREFIX + name if name in BY_NAME or plain in BY_NAME else name


def labelled(labels: Mapping[str, str]) -> Labels:
    """Labels in their order; an empty one is none."""
    return tuple(sorted((name, value) for name, value in labels.items() if value))


@dataclass(frozen=True)
class Page:
    """Series with one sample a minute, the first at minute 0."""

    minutes: int
    series: Mapping[Key, tuple[Value, ...]]

    def _course(self, course: Course, before: tuple[Value, ...]) -> tuple[Value, ...]:
        part = course if isinstance(course, During) else During(course, 0, None)
        end = self.minutes if part.until is None else min(part.until, self.minutes)
        value = part.value
        minutes = range(part.since, end)
        new = tuple(map(value, minutes)) if callable(value) else (value,) * len(minutes)
        return (*before[: part.since], *new, *before[part.since + len(new) :])

    def matching(self, name: str, labels: Mapping[str, str]) -> list[Key]:
        """Keys of the series of that name that carry all of the labels."""
        full, wanted = full_name(name), set(labels.items())
        return [key for key in self.series if key[0] == full and wanted <= set(key[1])]

    def changed(self, name: str, course: Course, /, **labels: str) -> Page:
        """With another course of those series; KeyError where there is none."""
        keys = self.matching(name, labels)
        if not keys:
            raise KeyError(f"no series {full_name(name)} with {labels}")
        series = dict(self.series)
        for key in keys:
            series[key] = self._course(course, series[key])
            if all(value is None for value in series[key]):
                del series[key]
        return replace(self, series=series)

    def without(self, name: str, /, **labels: str) -> Page:
        """Without those series."""
        return self.changed(name, None, **labels)

    def added(self, name: str, course: Course, /, **labels: str) -> Page:
        """With that series, too. Labels of the scrape are added to its own, unless it has them."""
        key = (full_name(name), labelled({**SCRAPE, **labels}))
        return replace(
            self,
            series={**self.series, key: self._course(course, self.series.get(key, (None,) * self.minutes))},
        )

    def gone(self, since: int, until: int, /, **labels: str) -> Page:
        """Without all series that carry the labels but `up` for a while, as while a scrape fails."""
        wanted = set(labels.items())
        page = self
        for name, own in self.series:
            if name != "up" and wanted <= set(own):
                page = page.changed(name, during(None, since, until), **dict(own))
        return page

    def relabelled(self, **labels: str) -> Page:
        """With other values of labels that every series carries, as of another exporter."""
        series = {(name, labelled({**dict(own), **labels})): row for (name, own), row in self.series.items()}
        return replace(self, series=series)

    def beside(self, other: Page) -> Page:
        """The series of both."""
        return replace(self, series={**self.series, **other.series})

    def only(self, names: Iterable[str]) -> Page:
        """The series of those scraped names."""
        kept = set(names)
        return replace(self, series={key: row for key, row in self.series.items() if key[0] in kept})

    def but(self, **labels: str) -> Page:
        """The series that do not carry all of the labels."""
        dropped = set(labels.items())
        return replace(
            self, series={key: row for key, row in self.series.items() if not dropped <= set(key[1])}
        )

    def names(self) -> set[str]:
        """Scraped names of all series."""
        return {name for name, _ in self.series}


@dataclass(frozen=True, kw_only=True)
class Server:
    """A healthy vLLM server on one GPU, with its plan. Sizes in bytes."""

    name: str
    gpu: str
    variant: str
    role: str
    calibrated: bool
    weights: float = 15 * GIB
    pool: float = 50 * GIB
    activations: float = 3 * GIB
    activations_high: float = 4 * GIB
    graphs: float = 1 * GIB
    runtime: float = 1 * GIB
    # The expected total, and the bounds that the engine's own budget keeps.
    total: float = 70 * GIB
    total_low: float = 69 * GIB
    total_high: float = 71 * GIB

    @property
    def used(self) -> float:
        """What it uses once it is warm: all that is expected of it."""
        return self.total


CHAT_A = Server(name="chat-a", gpu=GPU_A, variant="long", role="candidate", calibrated=True)
CHAT_B = Server(name="chat-b", gpu=GPU_B, variant="short", role="baseline", calibrated=False)

MODEL = "llama"
# H100 80GB HBM3, driver 570: 81,559 MiB, of which the driver keeps 551; the rest is CUDA's.
CARD, RESERVED = 81559 * MIB, 551 * MIB
CUDA = CARD - RESERVED
FREE = CUDA - CHAT_A.used
STARTED = -86400.0


def _counting(a_minute: float) -> Callable[[int], float]:
    return lambda minute: 1_000_000 + minute * a_minute


def _now(minute: int) -> float:
    return minute * 60.0


def exporter(minutes: int) -> Page:
    """What an exporter says of itself and of its machine."""
    page = Page(minutes, {})
    for name, value, labels in (
        ("up", 1, {}),
        ("build_info", 1, {"version": "0.1.0", "python": "3.11.2"}),
        ("config_last_reload_successful", 1, {}),
        ("config_last_reload_success_timestamp_seconds", STARTED, {}),
        ("nvml_up", 1, {}),
        ("host_memory_total_bytes", 256 * GIB, {}),
        ("host_memory_available_bytes", 192 * GIB, {}),
    ):
        page = page.added(name, value, **labels)
    return page


def gpu(minutes: int, uuid: str, used: float, index: str = "0") -> Page:
    """A GPU as NVML's memory API v2 shows it."""
    page = Page(minutes, {})
    info = {"index": index, "name": "NVIDIA H100 80GB HBM3", "driver": "570.86.15", "memory_api": "v2"}
    page = page.added("gpu_info", 1, gpu=uuid, **info)
    for name, value in (
        ("gpu_up", 1),
        ("gpu_memory_total_bytes", CARD),
        ("gpu_memory_used_bytes", used),
        ("gpu_memory_free_bytes", CUDA - used),
        ("gpu_memory_reserved_bytes", RESERVED),
        ("gpu_memory_used_peak_bytes", used),
    ):
        page = page.added(name, value, gpu=uuid)
    for owner, value in (("other", 0), ("unknown", 0)):
        page = page.added("gpu_process_memory_bytes", value, gpu=uuid, owner=owner)
    return page


def server(minutes: int, one: Server) -> Page:
    """A server with traffic at ease: nobody waits, half of its KV cache is held."""
    page = Page(minutes, {})

    def add(name: str, value: Course, /, **labels: str) -> None:
        nonlocal page
        page = page.added(name, value, target=one.name, **labels)

    add(
        "target_info",
        1,
        engine="vllm",
        engine_version="0.32.0",
        experiment="ctx",
        variant=one.variant,
        role=one.role,
        simulated="false",
    )
    add("model_info", 1, model=MODEL)
    add("target_setting_info", 1, setting="max_model_len", value="131072")
    add("target_config_fingerprint_info", 1, fingerprint="5f3a")
    add("target_gpu_info", 1, gpu=one.gpu, rank="0")
    add("target_up", 1)
    for reason in ("connection", "timeout"):
        add("target_errors_total", 0, reason=reason)
    add("target_scrape_duration_seconds", 0.02)
    add("target_last_success_timestamp_seconds", _now)
    add("target_reading_age_seconds", 0)
    add("target_start_time_seconds", STARTED)
    add("target_config_mismatch", 0, setting="max_model_len")
    add("target_unparsed_lines_total", 0)
    add("target_dropped_series_total", 0)
    add("target_sleeping", 0)

    load = {"model": MODEL, "rank": "0"}
    for name, value in (
        ("requests_running", 8.0),
        ("requests_waiting", 0.0),
        ("kv_cache_usage_ratio", 0.5),
        ("kv_cache_blocks", 25600.0),
        ("kv_cache_used_blocks", 12800.0),
        ("kv_cache_block_tokens", 16.0),
        ("kv_cache_capacity_tokens", 409600.0),
        ("kv_cache_used_tokens", 204800.0),
        ("kv_cache_capacity_bytes", one.pool),
        ("kv_cache_used_bytes", one.pool / 2),
        ("kv_cache_max_concurrency_requests", 3.125),
        ("max_model_len_tokens", 131072.0),
    ):
        add(name, value, **load)
    for name, a_minute in (
        ("prompt_tokens_total", 12000.0),
        ("generation_tokens_total", 6000.0),
        ("preemptions_total", 0.0),
        ("prefix_cache_queries_tokens_total", 12000.0),
        ("prefix_cache_hits_tokens_total", 6000.0),
        ("spec_decode_draft_tokens_total", 4000.0),
        ("spec_decode_accepted_tokens_total", 3000.0),
        ("time_to_first_token_seconds_sum", 15.0),
        ("time_to_first_token_seconds_count", 60.0),
        ("inter_token_latency_seconds_sum", 120.0),
        ("inter_token_latency_seconds_count", 6000.0),
    ):
        add(name, _counting(a_minute), **load)
    add("requests_waiting_by_reason", 0, reason="capacity", **load)
    add("requests_finished_total", _counting(60), reason="stop", **load)

    parts = {
        "weights": (one.weights, one.weights, one.weights),
        "kv_cache": (one.pool - 2 * GIB, one.pool, one.pool + GIB),
        "activations": (2 * GIB, one.activations, one.activations_high),
        "cuda_graphs": (one.graphs / 2, one.graphs, one.graphs * 1.5),
        "runtime": (one.runtime / 2, one.runtime, one.runtime * 1.5),
    }
    for component, (low, expected, high) in parts.items():
        add("predicted_memory_low_bytes", low, component=component)
        add("predicted_memory_bytes", expected, component=component)
        add("predicted_memory_high_bytes", high, component=component)
        add("memory_bytes", expected, component=component, gpu=one.gpu, basis="predicted")
    add("predicted_total_memory_low_bytes", one.total_low)
    add("predicted_total_memory_bytes", one.total)
    add("predicted_total_memory_high_bytes", one.total_high)
    for name, value in (
        ("predicted_kv_cache_bytes_per_token", 131072.0),
        ("predicted_kv_cache_full_request_bytes", 16 * GIB),
        ("predicted_kv_cache_capacity_tokens", 409600.0),
        ("predicted_kv_cache_max_concurrency_requests", 3.125),
        ("predicted_fits", 1.0),
        ("prediction_calibrated", float(one.calibrated)),
        ("predicted_decode_ceiling_tokens_per_second", 900.0),
        # Free, less what of the plan (expected if calibrated, else its high bound) was not yet in use.
        ("memory_headroom_bytes", FREE - (0.0 if one.calibrated else one.total_high - one.used)),
        ("server_host_memory_used_bytes", 12 * GIB),
        ("server_host_memory_limit_bytes", 64 * GIB),
    ):
        add(name, value)
    add("prediction_error_ratio", 0, component="kv_cache")
    add("measured_memory_bytes", one.pool, component="kv_cache", **load)
    return page


def healthy(minutes: int) -> Page:
    """An exporter with two servers under traffic, each on a GPU of its own."""
    page = exporter(minutes)
    for index, one in enumerate((CHAT_A, CHAT_B)):
        page = page.beside(server(minutes, one)).beside(gpu(minutes, one.gpu, one.used, index=str(index)))
    return page


LOAD_COUNTERS = (
    "prompt_tokens_total",
    "generation_tokens_total",
    "preemptions_total",
    "prefix_cache_queries_tokens_total",
    "prefix_cache_hits_tokens_total",
    "spec_decode_draft_tokens_total",
    "spec_decode_accepted_tokens_total",
    "time_to_first_token_seconds_sum",
    "time_to_first_token_seconds_count",
    "inter_token_latency_seconds_sum",
    "inter_token_latency_seconds_count",
    "requests_finished_total",
)


def idle(page: Page, *, since: int = 0) -> Page:
    """Without traffic: counters stand still, nothing runs or waits, the KV cache is free."""
    for name in LOAD_COUNTERS:
        for key in page.matching(name, {}):
            last = page.series[key][max(since - 1, 0)]
            page = page.changed(name, during(last, since), **dict(key[1]))
    for name in (
        "requests_running",
        "requests_waiting",
        "kv_cache_usage_ratio",
        "kv_cache_used_blocks",
        "kv_cache_used_tokens",
        "kv_cache_used_bytes",
    ):
        page = page.changed(name, during(0, since))
    return page.changed("predicted_decode_ceiling_tokens_per_second", during(None, since))


# What an exporter says of a server that it cannot read.
SAID_WHILE_DOWN = {
    full_name(name)
    for name in (
        "target_up",
        "target_gpu_info",
        "target_errors_total",
        "target_scrape_duration_seconds",
        "target_last_success_timestamp_seconds",
        "target_unparsed_lines_total",
        "target_dropped_series_total",
    )
}


def down(page: Page, target: str, *, since: int, until: int | None = None) -> Page:
    """While a server cannot be read: its readings and predictions are absent, its engine is not said."""
    info = [key for key in page.matching("target_info", {"target": target}) if dict(key[1]).get("engine")]
    for name, labels in page.series:
        if dict(labels).get("target") == target and name not in SAID_WHILE_DOWN:
            page = page.changed(name, during(None, since, until), **dict(labels))
    for _, labels in info:
        unsaid = {**dict(labels), "engine": "", "engine_version": "", "simulated": ""}
        page = page.added("target_info", during(1, since, until), **unsaid)
    page = page.changed("target_up", during(0, since, until), target=target)
    return page.added("target_problem", during(1, since, until), target=target, reason="connection")


def memory(
    page: Page, uuid: str, used: float | Callable[[int], float], *, since: int = 0, until: int | None = None
) -> Page:
    """With another use of a GPU, its peak and what is free following it."""

    def at(minute: int) -> float:
        return used(minute) if callable(used) else used

    for name, course in (
        ("gpu_memory_used_bytes", at),
        ("gpu_memory_used_peak_bytes", at),
        ("gpu_memory_free_bytes", lambda minute: CUDA - at(minute)),
    ):
        page = page.changed(name, during(course, since, until), gpu=uuid)
    return page


def restarted(page: Page, one: Server, *, at: int, loading: int = 4, growing: int = 6) -> Page:
    """A server that ends at a minute, loads for minutes, and has grown to its plan some minutes later."""
    up = at + loading
    warm = up + growing
    loaded = one.total - one.activations

    def used(minute: int) -> float:
        if minute < up:
            return loaded * (minute - at) / loading
        return loaded + (one.total - loaded) * (minute - up) / growing

    page = memory(page, one.gpu, used, since=at, until=warm)
    planned = one.total if one.calibrated else one.total_high
    if page.matching("memory_headroom_bytes", {"target": one.name}):
        page = page.changed(
            "memory_headroom_bytes",
            during(lambda minute: CUDA - used(minute) - max(0.0, planned - used(minute)), up, warm),
            target=one.name,
        )
    if page.matching("target_start_time_seconds", {"target": one.name}):
        page = page.changed("target_start_time_seconds", during(at * 60.0, at), target=one.name)
    for name in LOAD_COUNTERS:
        for key in page.matching(name, {"target": one.name}):
            page = page.changed(name, during(_from_zero(page.series[key], up), up), **dict(key[1]))
    return down(page, one.name, since=at, until=up)


def _from_zero(counter: tuple[Value, ...], start: int) -> Callable[[int], Value]:
    """The counter of a process that starts at that minute."""

    def course(minute: int) -> Value:
        value, first = counter[minute], counter[start]
        return None if value is None or first is None else value - first

    return course
