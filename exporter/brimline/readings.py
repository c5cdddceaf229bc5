"""What the layers hand to each other: frozen records of one round.

None means "not said" everywhere; nothing is ever 0 for want of a value. Ratios run from 0 to 1, times are in
seconds, timestamps in seconds since 1970, sizes in bytes.

What each round makes anew are structs of msgspec, which take a fifth of the time of dataclasses; footprints,
which last, are dataclasses. A copy of a struct with changes is `msgspec.structs.replace`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NewType

import msgspec

from brimline.estimate import Estimate

Uuid = NewType("Uuid", str)

# Every reason that the label `reason` of brimline_target_problem and brimline_target_errors_total can take.
TARGET_REASONS: dict[str, str] = {
    "dns": "the host name could not be resolved",
    "connection": "no connection could be made, or it broke",
    "tls": "no TLS: the server's certificate (expired, unknown issuer, another name) or ours is refused",
    "timeout": "the whole answer did not arrive in time",
    "unauthorized": "the server wants credentials, or refuses those given (401 or 403)",
    "not_found": "no metrics page at the paths that were tried",
    "metrics_disabled": "the engine runs with its metrics switched off",
    "http_status": "the server answered with another HTTP error",
    "redirect": "the server answered with a redirect, which is not followed",
    "too_large": "the answer is larger than 16 MiB, or is JSON of more than 1 MiB or 32768 values",
    "truncated": "the answer ends in the middle",
    "encoding": "the answer is compressed in a way that was not asked for, or damaged",
    "not_an_engine": "the page is not one of a known inference engine",
    "wrong_engine": "the page belongs to another engine than the configuration says",
    "credentials": "the file with the token or password cannot be read",
    "config_endpoint": "an endpoint with the server's settings could not be read",
    "launch": "a setting under `launch` is spelt nearly, but not quite, like a known one",
    "launch_command": "the launch command could not be read, or one of its flags is misspelt",
    "model": "the model's files could not be read, or the server cannot be running that model",
    "prediction": "the server's memory could not be predicted from its model and settings",
    "calibration": "the calibration file could not be read",
    "gpu_unassigned": "which GPUs belong to the server is not known",
    "gpu_unknown": "a configured GPU is not visible",
    "gpu_count": "the server's GPUs are not as many as its settings say that it uses",
    "bad_values": "the page holds impossible values, which were dropped",
    "too_many_series": "the page holds more models, ranks or histogram buckets than are read",
    "internal": "a defect in Brimline itself",
}

GPU_REASONS: dict[str, str] = {
    "library_not_found": "libnvidia-ml.so.1 is not on this machine",
    "driver_not_loaded": "the NVIDIA driver is not loaded",
    "driver_mismatch": "library and driver differ in version; restart the container or reboot",
    "no_permission": "this process may not read it",
    "no_gpus": "the driver lists no GPU",
    "gpu_lost": "the GPU fell off the bus or is being reset",
    "not_supported": "this GPU does not report its memory",
    "old_driver": "the driver lacks the function",
    "uninitialized": "the library lost its state and is being started anew",
    "hang": "a call into the driver has not come back",
    "replay": "the recording cannot be read",
    "unknown": "the driver gave another error",
}


class Histogram(msgspec.Struct, frozen=True):
    """A cumulative histogram. buckets: (upper bound, count up to it), ascending, the last bound infinite."""

    buckets: tuple[tuple[float, float], ...]
    sum: float
    count: float


class RankReading(msgspec.Struct, frozen=True, kw_only=True):
    """What one engine core (one data-parallel rank) of one model says of itself.

    measured_memory_bytes: by component, on each GPU of the rank, where the engine itself measures it.
    model_memory_bytes: of all that the model takes together, by place: `gpu`, on all of them, and `host`.
    kv_cache_bytes_computed: the cache's bytes are tokens times the bytes that are predicted for one. No
    measurement; blocks that the server counted, times the bytes of one, pass for one.
    stated_for_all: quantities that this rank states for all ranks of its model together, as a front end does.
    """

    model: str
    rank: str = "0"
    requests_running: float | None = None
    requests_waiting: float | None = None
    requests_waiting_by_reason: Mapping[str, float] | None = None
    requests_finished_total: Mapping[str, float] | None = None
    prompt_tokens_total: float | None = None
    generation_tokens_total: float | None = None
    preemptions_total: float | None = None
    prefix_cache_queries_tokens_total: float | None = None
    prefix_cache_hits_tokens_total: float | None = None
    spec_decode_draft_tokens_total: float | None = None
    spec_decode_accepted_tokens_total: float | None = None
    kv_cache_usage_ratio: float | None = None
    kv_cache_blocks: float | None = None
    kv_cache_used_blocks: float | None = None
    kv_cache_block_tokens: float | None = None
    kv_cache_capacity_tokens: float | None = None
    kv_cache_used_tokens: float | None = None
    kv_cache_capacity_bytes: float | None = None
    kv_cache_used_bytes: float | None = None
    kv_cache_bytes_computed: bool = False
    kv_cache_max_concurrency_requests: float | None = None
    max_model_len_tokens: float | None = None
    measured_memory_bytes: Mapping[str, float] | None = None
    model_memory_bytes: Mapping[str, float] | None = None
    stated_for_all: frozenset[str] = frozenset()
    time_to_first_token_seconds: Histogram | None = None
    inter_token_latency_seconds: Histogram | None = None
    request_e2e_latency_seconds: Histogram | None = None
    request_prompt_tokens: Histogram | None = None
    request_generation_tokens: Histogram | None = None


# How several ranks of one model combine on pages for people: the fullest rank preempts while the others idle.
_COMBINED_BY_MAX = {"kv_cache_usage_ratio", "kv_cache_block_tokens", "max_model_len_tokens"}
_NUMBERS = [name for name, kind in RankReading.__annotations__.items() if kind == "float | None"]


def combine_ranks(ranks: Sequence[RankReading]) -> RankReading:
    """One reading for a model: counts and capacities summed, ratios and lengths of the fullest rank.

    A quantity that any rank does not state is None, unless one rank states it for all: half a sum would pass
    for a whole one. The mappings and histograms are left out. Raises ValueError for no ranks or ranks of
    several models.
    """
    models = {rank.model for rank in ranks}
    if len(models) != 1:
        raise ValueError("ranks of one model are wanted")
    combined: dict[str, float | None] = {}
    for name in _NUMBERS:
        stating = [rank for rank in ranks if name in rank.stated_for_all] or ranks
        values = [getattr(rank, name) for rank in stating]
        if any(value is None for value in values):
            combined[name] = None
        else:
            combined[name] = max(values) if name in _COMBINED_BY_MAX else sum(values)
    return RankReading(model=models.pop(), rank="all", **combined)  # type: ignore[arg-type]


class EngineReading(msgspec.Struct, frozen=True, kw_only=True):
    """One engine as its own pages describe it.

    settings: what the live server states of its launch settings, under that engine's own flag names.
    served_root: the path or name of the model that the server says it loaded.
    start_token: a text that changes whenever the server starts anew, where it is no time.
    missing: quantities that this version of the engine should give and does not.
    bad_values: values that cannot be (a ratio above 1, a negative count), which were dropped.
    notes: what an operator can do to learn more from this server.
    """

    engine: str
    engine_version: str | None = None
    ranks: tuple[RankReading, ...] = ()
    settings: Mapping[str, str] = msgspec.field(default_factory=dict)
    served_root: str | None = None
    start_time: float | None = None
    start_token: str | None = None
    sleeping: bool | None = None
    simulated: bool = False
    missing: tuple[str, ...] = ()
    bad_values: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unparsed_lines: int = 0
    dropped_series: int = 0

    def by_model(self) -> dict[str, tuple[RankReading, ...]]:
        """The ranks of each model, in the order of the page."""
        grouped: dict[str, list[RankReading]] = {}
        for rank in self.ranks:
            grouped.setdefault(rank.model, []).append(rank)
        return {model: tuple(ranks) for model, ranks in grouped.items()}


class DeviceReading(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU or MIG instance now, and its highest use within the peak window.

    memory_api: `v2` where used and reserved are told apart, `v1` where used includes reserved, `none`.
    problem: a word of GPU_REASONS where the memory could not be read; the memory is then None.
    power_limit_watts: what it may draw, as the driver enforces it now; None where it does not tell.
    processes: those with memory on it, by number, with its bytes, where they were asked for; the bytes are
    None where the driver does not tell them.
    """

    uuid: Uuid
    index: str
    name: str | None = None
    driver: str | None = None
    memory_api: str = "none"
    total_bytes: int | None = None
    used_bytes: int | None = None
    free_bytes: int | None = None
    reserved_bytes: int | None = None
    used_peak_bytes: int | None = None
    power_limit_watts: float | None = None
    problem: str | None = None
    detail: str = ""
    processes: Mapping[int, int | None] | None = None

    @property
    def pids(self) -> frozenset[int] | None:
        """Processes with memory on it, where they were asked for."""
        return None if self.processes is None else frozenset(self.processes)


class GpuReading(msgspec.Struct, frozen=True, kw_only=True):
    """All GPUs of this machine. up: None where no GPU is to be read (backend none)."""

    up: bool | None = None
    problem: str | None = None
    detail: str = ""
    devices: tuple[DeviceReading, ...] = ()


class HostReading(msgspec.Struct, frozen=True):
    """This machine's main memory."""

    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None


class DiscoveryReading(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a source of targets beside the configuration file: `files` or `kubernetes`.

    up: whether the newest of it is known. targets: how many there are of it. success_time: when it was last
    read whole. errors: how often it could not be.
    """

    source: str
    up: bool
    targets: int = 0
    success_time: float | None = None
    errors: int = 0
    problem: str | None = None


class ProcessReading(msgspec.Struct, frozen=True, kw_only=True):
    """The server's own processes on this machine. pids: the one that listens, and all that it started.

    host_memory_used_bytes, host_memory_limit_bytes: of its cgroup without caches that can be dropped, at the
    level where least is left; without a cgroup of its own, of its processes, and then without a limit.
    """

    pids: frozenset[int]
    host_memory_used_bytes: int | None = None
    host_memory_limit_bytes: int | None = None


# Every component of a prediction; `kv_cache` is the whole pool.
COMPONENTS = (
    "weights",
    "kv_cache",
    "activations",
    "cuda_graphs",
    "runtime",
    "lora",
    "encoder_cache",
    "draft_model",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFootprint:
    """What each GPU of one pipeline stage should hold; the tensor ranks of a stage are alike.

    components: by the names of COMPONENTS. total: of all of them; where the engine gives its KV cache what is
    left of a budget, the bounds of the total are narrower than those of its parts together. host: what lies
    in main memory instead, for each GPU.
    """

    pipeline_stage: int
    components: Mapping[str, Estimate]
    total: Estimate
    host: Mapping[str, Estimate] = field(default_factory=dict)


# Lengths for which the bytes of one request are told, beside the longest.
_SHOWN_LENGTHS = (1024, 8192, 32768, 131072)


def shown_lengths(longest: int) -> list[int]:
    """The lengths, ascending, for which KvCacheFootprint.bytes_by_tokens tells the bytes of one request."""
    return [*(length for length in _SHOWN_LENGTHS if length < longest), longest]


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCacheFootprint:
    """The predicted KV cache on the fullest GPU of one data-parallel rank; of_all_devices: on all of them and
    the host together (llama.cpp).

    bytes_per_token: that one more token of context costs for good; layers with windows shorter than the
    context or with states cost none. window_bytes_per_token: the same up to window_tokens, where the first
    window is full; None where no layer has one that is shorter than the context.
    full_request_bytes: most that one request of max_model_len_tokens may hold. bytes_by_tokens: the same for
    other lengths. stage_block_bytes: of a block on each pipeline stage, as many as Footprint.ranks; empty
    where there are no blocks.
    num_blocks, capacity_tokens, max_concurrency_requests: None where the pool's size is not known.
    is_proportional: no windows or states, and tokens that are none but the cache's own, so that bytes are
    tokens times bytes_per_token.
    """

    bytes_per_token: float
    max_model_len_tokens: int
    full_request_bytes: int
    bytes_by_tokens: Mapping[int, int] = field(default_factory=dict)
    block_tokens: int | None = None
    stage_block_bytes: tuple[int, ...] = ()
    num_blocks: Estimate | None = None
    capacity_tokens: int | None = None
    max_concurrency_requests: float | None = None
    is_proportional: bool = False
    window_bytes_per_token: float | None = None
    window_tokens: int | None = None
    of_all_devices: bool = False

    @property
    def block_bytes(self) -> int | None:
        """Bytes of one block on the fullest stage."""
        return max(self.stage_block_bytes, default=None)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a computation, for people who check it.

    topic: the component, or budget, layout, fit, ceiling. formula: in words; numbers: the same filled in.
    """

    topic: str
    formula: str
    numbers: str
    source: str


# By all bounds, as expected, or at worst.
Certainty = Literal["certain", "expected", "possible"]


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a server does not start, or may not, beyond one request that finds no room on its GPU.

    of: the engine, which refuses though the card would hold it, or the card. text: a clause for people, with
    the cure.
    """

    of: Literal["engine", "card"]
    certainty: Certainty
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a server should use by its model and launch settings.

    ranks: one for each pipeline stage. tensor_parallel: GPUs of a stage. data_parallel: replicas of it all,
    or of the attention alone where gpus says that they share GPUs. gpus: in all; 0 for the product of these.
    max_running_requests: that one replica works on at once; None where only its K/V cache limits them.
    decode_ceiling: tokens per second that a batch (first argument) of requests of one context length (second)
    cannot exceed; None where the GPU's bandwidth is not known. even_ceiling: the same where tokens are routed
    evenly among experts, as is to be expected; None for a model without experts. speculative_ceiling: the
    same at a given chance that a draft token is accepted; None without speculation. fits: whether one request
    of full length
    lies on the GPU beside all else, by the high bounds; None without a GPU. starts: whether the engine itself
    would start, by the low bound of its pool; longest_start_tokens: the longest request with which it would,
    0 for none. None where the engine has no such rule, or no pool is known. obstacle: why the engine does
    not start, or a pool of a given size finds no room. headroom_bytes: what stays free on the fullest GPU
    beside `expected`.
    calibrated: activations, graphs and runtime were measured on this engine, version and GPU.
    model_source: the file the model was read from. explain: how it was computed, for the fullest GPU.
    """

    engine: str
    engine_version: str | None
    parameters: int
    ranks: tuple[RankFootprint, ...]
    kv_cache: KvCacheFootprint
    tensor_parallel: int = 1
    data_parallel: int = 1
    gpus: int = 0
    max_running_requests: int | None = None
    decode_ceiling: Callable[[int, int], float] | None = None
    even_ceiling: Callable[[int, int], float] | None = None
    speculative_ceiling: Callable[[float], Callable[[int, int], float]] | None = None
    fits: bool | None = None
    starts: bool | None = None
    longest_start_tokens: int | None = None
    obstacle: Obstacle | None = None
    headroom_bytes: int | None = None
    calibrated: bool = False
    assumptions: tuple[str, ...] = ()
    model_source: str = ""
    explain: Callable[[], tuple[Step, ...]] | None = None

    def __post_init__(self) -> None:
        stages = [rank.pipeline_stage for rank in self.ranks]
        if not stages or stages != list(range(len(stages))):
            raise ValueError(f"the stages of a footprint are counted from 0, not {stages[:20]}")
        sizes = self.kv_cache.stage_block_bytes
        if len(sizes) not in (0, len(stages)):
            raise ValueError(f"{len(stages)} stages, but {len(sizes)} sizes of a block")

    @property
    def gpu_count(self) -> int:
        """GPUs of the whole deployment; 0 where it runs on the CPU."""
        if not any(rank.components for rank in self.ranks):
            return 0
        return self.gpus or self.tensor_parallel * len(self.ranks) * self.data_parallel

    @property
    def fullest(self) -> RankFootprint:
        """The stage whose GPUs hold most."""
        return max(self.ranks, key=lambda rank: rank.total.expected)


class MemoryPart(msgspec.Struct, frozen=True, kw_only=True):
    """A part of one GPU's memory in use.

    target: empty for what belongs to none. component: a word of PARTS. basis: whether the size was measured,
    or is what the prediction says. The remainder (`unaccounted`) may be negative, and is measured only where
    all other parts of its GPU are: else it holds the prediction's error.
    """

    gpu: Uuid
    target: str
    component: str
    basis: Literal["measured", "predicted"]
    size_bytes: int


# Owners of processes on a GPU that are no target's name.
OTHER, UNKNOWN = "other", "unknown"

PARTS = (
    "weights",
    "kv_cache_used",
    "kv_cache_free",
    "kv_cache",
    "activations",
    "cuda_graphs",
    "runtime",
    "lora",
    "encoder_cache",
    "draft_model",
    "other_processes",
    "unaccounted",
)


class Problem(msgspec.Struct, frozen=True):
    """Something wrong with a target; reason is a word of TARGET_REASONS, detail is for people."""

    reason: str
    detail: str


class TargetSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One target in one round: its health, and apart from it what was read.

    up: the metrics page was read and understood in this round (or within min_interval). Where it is False,
    reading is None: nothing old is ever handed on.
    settings: declared and live settings together, the live ones winning.
    settings_complete: every flag that settings do not have is at its engine's default; None while it is down.
    mismatches: for each setting that is both declared and live, whether the two differ.
    gpus: the GPUs that belong to it, with their rank.
    footprint: what it should use; None where its model or settings are not known. memory_notes: why not, and
    what to do. process: None where the server's process is not visible from here.
    """

    name: str
    url: str
    experiment: str = ""
    variant: str = ""
    role: str = ""
    up: bool = False
    reading: EngineReading | None = None
    histograms: str = "sums"
    problems: tuple[Problem, ...] = ()
    errors: Mapping[str, int] = msgspec.field(default_factory=dict)
    duration_seconds: float | None = None
    age_seconds: float | None = None
    last_success: float | None = None
    settings: Mapping[str, str] = msgspec.field(default_factory=dict)
    settings_complete: bool | None = None
    mismatches: Mapping[str, bool] = msgspec.field(default_factory=dict)
    declared: Mapping[str, str] = msgspec.field(default_factory=dict)
    fingerprint: str | None = None
    config_changed: float | None = None
    unparsed_lines_total: int = 0
    dropped_series_total: int = 0
    gpus: tuple[tuple[Uuid, str], ...] = ()
    kv_bytes_source: str | None = None
    footprint: Footprint | None = None
    memory_notes: tuple[str, ...] = ()
    process: ProcessReading | None = None

    def has_problem(self, reason: str) -> bool:
        """True while there is a problem of that word of TARGET_REASONS."""
        return any(problem.reason == reason for problem in self.problems)


class MemoryAccount(msgspec.Struct, frozen=True, kw_only=True):
    """Predicted beside observed, in one round.

    parts: of each GPU that belongs to a target. headroom_bytes: by target. error_ratio: observed less
    predicted over predicted, by target and component, where the observation is measured.
    ceiling_tokens_per_second: what a target cannot exceed at the load it has now. process_bytes: by GPU and
    owner: a target's name, OTHER for processes of none, UNKNOWN where that cannot be told. defects: what went
    wrong here with a target, by its name; it has no numbers then.
    """

    parts: tuple[MemoryPart, ...] = ()
    headroom_bytes: Mapping[str, int] = msgspec.field(default_factory=dict)
    error_ratio: Mapping[tuple[str, str], float] = msgspec.field(default_factory=dict)
    ceiling_tokens_per_second: Mapping[str, float] = msgspec.field(default_factory=dict)
    process_bytes: Mapping[Uuid, Mapping[str, int]] = msgspec.field(default_factory=dict)
    defects: Mapping[str, str] = msgspec.field(default_factory=dict)


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one scrape exposes."""

    time: float
    targets: tuple[TargetSnapshot, ...] = ()
    gpu: GpuReading = msgspec.field(default_factory=GpuReading)
    memory: MemoryAccount = msgspec.field(default_factory=lambda: MemoryAccount())
    host: HostReading = msgspec.field(default_factory=HostReading)
    reload_successful: bool = True
    reload_success_time: float | None = None
    reload_problem: str | None = None
    discovery: tuple[DiscoveryReading, ...] = ()

    def target(self, name: str) -> TargetSnapshot | None:
        """The target of that name."""
        return next((target for target in self.targets if target.name == name), None)
