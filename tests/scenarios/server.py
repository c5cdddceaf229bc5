"""A server of the scenarios: what it takes of a GPU's memory, and what its requests do to its K/V cache.

Time is in seconds since the run began. Load is a fluid: requests come, wait for room in the cache, hold a
context that grows with each token, and leave; where the cache overflows, some are thrown out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from brimline.readings import EngineReading, Histogram, RankReading, Uuid
from scenarios.plans import GIB, MIB, Plan

# CUDA hands out memory in pages of 2 MiB.
PAGE_BYTES = 2 * MIB

# Running requests at which each is decoded half as fast as alone.
BATCH_THAT_HALVES_SPEED = 400

# Of the fluid; a good deal shorter than a request lasts.
STEP_SECONDS = 3.0

OverTime = Callable[[float], float]


def steady(value: float) -> OverTime:
    """The same at all times."""
    return lambda _now: value


def ramp(begin: float, end: float, before: float, after: float) -> OverTime:
    """From one value to another between two times, and constant outside of them."""

    def at(now: float) -> float:
        share = min(1.0, max(0.0, (now - begin) / (end - begin)))
        return before + share * (after - before)

    return at


def wave(mean: float, swing: float, period: float, phase: float) -> OverTime:
    """A sine around the mean. swing: its amplitude as a share of the mean. phase: share of a period."""
    return lambda now: mean * (1 + swing * math.sin(2 * math.pi * (now / period + phase)))


@dataclass(slots=True, kw_only=True)
class Traffic:
    """What is asked of a server. decode_tokens_per_second: of one request when few run."""

    requests_per_second: OverTime
    prompt_tokens: OverTime
    output_tokens: OverTime
    decode_tokens_per_second: float = 60.0
    prefill_tokens_per_second: float = 12_000.0
    max_running: int = 256


@dataclass(frozen=True, slots=True)
class Spike:
    """Memory taken for moments: activations of an image, logits of a long prompt."""

    at: float
    seconds: float
    size_bytes: int


@dataclass(slots=True)
class Load:
    """A server's requests and counters since it started."""

    running: int = 0
    waiting: int = 0
    kv_tokens: float = 0.0
    prompt_tokens: float = 0.0
    generated_tokens: float = 0.0
    prefix_hits: float = 0.0
    preemptions: int = 0
    admitted: int = 0
    finished: int = 0
    first_token_seconds: float = 0.0
    between_tokens_seconds: float = 0.0
    finished_prompt_tokens: float = 0.0
    finished_generated_tokens: float = 0.0
    rest: float = 0.0  # of a finished request


State = Literal["up", "loading", "down"]


@dataclass(slots=True, kw_only=True)
class Server:
    """One server on its GPUs.

    beside_plan: bytes on each GPU that no plan knows, by GPU's place, run time and age.
    beyond_expected_bytes: how far its plateau lies from what is expected. warm_bytes: what it takes only
    under load, within warm_seconds or so. pool_share: of the K/V cache that is predicted. restart_seconds:
    until it is started again after it died; None for never. restarts: planned ones, each with what changes
    in it. naps: from when to when it sleeps. host_bytes: its main memory, by run time and age; None where its
    process is not visible. hiccups: chance that a scrape finds it too busy to answer.
    """

    name: str
    plan: Plan
    gpus: tuple[Uuid, ...]
    traffic: Traffic
    draw: random.Random
    beside_plan: Callable[[int, float, float], float] = lambda _gpu, _now, _age: 0.0
    beyond_expected_bytes: float = 0.0
    warm_bytes: float = 0.6 * GIB
    warm_seconds: float = 1200.0
    load_seconds: float = 90.0
    pool_share: float = 1.0
    restart_seconds: float | None = 30.0
    first_start: float = -86_400.0
    restarts: list[tuple[float, Callable[[Server], None]]] = field(default_factory=list)
    naps: list[tuple[float, float]] = field(default_factory=list)
    spikes: list[Spike] = field(default_factory=list)
    host_bytes: Callable[[float, float], float] | None = None
    host_limit_bytes: int | None = None
    processes_listed: bool = False
    hiccups: float = 0.0
    experiment: str = ""
    variant: str = ""
    role: str = ""

    load: Load = field(default_factory=Load)
    started: float = 0.0
    down_until: float | None = None
    lives: int = 0
    was_full: bool = False
    served_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._begin(self.first_start)
        if self.first_start < -self.load_seconds:
            self.served_seconds = 1e9  # long warm

    def _begin(self, now: float) -> None:
        self.started = now
        self.down_until = None
        self.load = Load()
        self.served_seconds = 0.0

    def die(self, now: float) -> None:
        """End the process."""
        self.lives += 1
        self.down_until = math.inf if self.restart_seconds is None else now + self.restart_seconds

    def state(self, now: float) -> State:
        """Whether it serves."""
        if self.down_until is not None or now < self.started:
            return "down"
        return "loading" if now < self.started + self.load_seconds else "up"

    def sleeps(self, now: float) -> bool:
        """True while it has given up its memory on purpose."""
        return any(begin <= now < end for begin, end in self.naps)

    def advance(self, now: float, seconds: float) -> int:
        """Let time pass up to now; how many requests were preempted in it."""
        if self.restarts and now >= self.restarts[0][0]:
            _, change = self.restarts.pop(0)
            change(self)
            self.lives += 1
            self._begin(now + 10)
        if self.down_until is not None and now >= self.down_until:
            self._begin(now)
        if self.state(now) != "up" or self.sleeps(now):
            return 0
        self.served_seconds += seconds
        steps = math.ceil(seconds / STEP_SECONDS)
        return sum(self._serve(now, seconds / steps) for _ in range(steps))

    # --- requests ---

    @property
    def capacity_tokens(self) -> int:
        """Tokens that the K/V cache holds."""
        cache = self.plan.footprint.kv_cache
        block = cache.block_tokens or 1
        return int((cache.capacity_tokens or 0) * self.pool_share) // block * block

    def _poisson(self, mean: float) -> int:
        if mean > 30:
            return max(0, round(self.draw.gauss(mean, math.sqrt(mean))))
        limit, count, product = math.exp(-mean), 0, self.draw.random()
        while product > limit:
            count += 1
            product *= self.draw.random()
        return count

    def _serve(self, now: float, seconds: float) -> int:
        load, traffic, capacity = self.load, self.traffic, self.capacity_tokens
        prompt = max(1.0, traffic.prompt_tokens(now))
        output = max(1.0, traffic.output_tokens(now))
        load.waiting += self._poisson(max(0.0, traffic.requests_per_second(now)) * seconds)

        speed = traffic.decode_tokens_per_second / (1 + load.running / BATCH_THAT_HALVES_SPEED)
        mean_context = load.kv_tokens / load.running if load.running else prompt
        generated = load.running * speed * seconds
        load.rest += min(load.running, load.running * speed * seconds / output)
        finished = min(load.running, int(load.rest))
        load.rest -= finished
        # Who leaves holds more than the mean: its whole prompt and answer.
        leaving = mean_context * (prompt + output) / (prompt + output / 2)
        load.kv_tokens = max(0.0, load.kv_tokens + generated - finished * leaving)
        load.running -= finished
        if not load.running:
            load.kv_tokens = 0.0

        preempted = self._preempted(finished, prompt, output)

        room = max(0.0, 0.995 * capacity - load.kv_tokens)
        admitted = min(
            load.waiting,
            traffic.max_running - load.running,
            int(room / prompt),
            int(traffic.prefill_tokens_per_second * seconds / prompt) + 1,
        )
        admitted = max(0, admitted)
        load.waiting -= admitted
        load.running += admitted
        load.kv_tokens = min(capacity, load.kv_tokens + admitted * prompt)

        self.was_full = load.waiting > 0 and load.kv_tokens >= 0.97 * capacity

        rate = max(0.01, traffic.requests_per_second(now))
        load.prompt_tokens += round(admitted * prompt)
        load.prefix_hits += round(0.3 * admitted * prompt)
        load.generated_tokens += round(generated)
        load.admitted += admitted
        load.finished += finished
        delay = load.waiting / rate + prompt / traffic.prefill_tokens_per_second
        load.first_token_seconds += admitted * delay
        load.between_tokens_seconds += generated / speed
        load.finished_prompt_tokens += finished * prompt
        load.finished_generated_tokens += finished * output
        return preempted

    def _preempted(self, finished: int, prompt: float, output: float) -> int:
        """Throw out requests where the cache is full, and return how many.

        Whoever waits is let in as soon as its prompt fits, which leaves half a prompt free on average, while
        the others grow by one answer from one departure to the next. Where that is not enough, the last one
        in is thrown out again.
        """
        load, capacity = self.load, self.capacity_tokens
        if not load.running or not (self.was_full or load.kv_tokens > capacity):
            return 0
        chance = output / prompt * (1 - math.exp(-prompt / output))
        preempted = self._poisson(0.25 * finished * chance) if load.waiting else 0
        each = load.kv_tokens / load.running
        if load.kv_tokens > capacity:
            preempted = max(preempted, math.ceil((load.kv_tokens - capacity) / each))
        preempted = min(load.running, preempted)
        load.kv_tokens = max(0.0, load.kv_tokens - preempted * each)
        load.running -= preempted
        load.waiting += preempted
        load.preemptions += preempted
        return preempted

    # --- memory ---

    def bytes_on(self, place: int, now: float) -> int:
        """Bytes that it holds on the GPU of that place, without spikes."""
        state = self.state(now)
        if state == "down":
            return 0
        plateau = self.plan.expected_bytes + self.beyond_expected_bytes
        age = now - self.started
        if state == "loading":
            # Weights come first, then the cache at one stroke, then graphs.
            weights = self.plan.footprint.fullest.components["weights"].expected
            share = age / self.load_seconds
            return _pages(weights * share / 0.7 if share < 0.7 else plateau - self.warm_bytes)
        if self.sleeps(now):
            return _pages(2.2 * GIB)  # the CUDA context, libraries and what is not given up
        cold = self.warm_bytes * math.exp(-self.served_seconds / self.warm_seconds)
        flicker = self.draw.random() * 24 * MIB
        return _pages(plateau - cold + flicker + self.beside_plan(place, now, age))

    def spikes_within(self, begin: float, end: float) -> list[Spike]:
        """Its spikes that touch the time after begin and up to end; those before are forgotten."""
        while self.spikes and self.spikes[0].at + self.spikes[0].seconds < begin:
            self.spikes.pop(0)
        return [spike for spike in self.spikes[:8] if spike.at <= end]

    # --- what its page says ---

    def reading(self, now: float, epoch: float) -> EngineReading:
        """What the exporter reads of it. epoch: the run's beginning in seconds since 1970."""
        load, traffic, cache = self.load, self.traffic, self.plan.footprint.kv_cache
        block = cache.block_tokens or 1
        blocks = self.capacity_tokens // block
        used = min(blocks, math.ceil(load.kv_tokens / block))
        is_vllm = self.plan.engine == "vllm"
        asleep = self.sleeps(now)
        block_bytes = cache.block_bytes
        prompt = round(load.finished_prompt_tokens)
        rank = RankReading(
            model="llama-3.1-8b",
            requests_running=float(load.running),
            requests_waiting=float(load.waiting),
            requests_waiting_by_reason=(
                {"capacity": float(load.waiting), "deferred": 0.0} if is_vllm else None
            ),
            requests_finished_total=(
                {"stop": float(load.finished), "length": 0.0, "abort": 0.0} if is_vllm else None
            ),
            prompt_tokens_total=load.prompt_tokens,
            generation_tokens_total=load.generated_tokens,
            preemptions_total=float(load.preemptions),
            prefix_cache_queries_tokens_total=load.prompt_tokens,
            prefix_cache_hits_tokens_total=load.prefix_hits,
            kv_cache_usage_ratio=used / blocks if is_vllm else round(used / blocks, 2),
            kv_cache_blocks=float(blocks) if is_vllm else None,
            kv_cache_used_blocks=float(used) if is_vllm else None,
            kv_cache_block_tokens=float(block),
            kv_cache_capacity_tokens=float(blocks * block),
            kv_cache_used_tokens=float(used * block),
            kv_cache_capacity_bytes=_cache_bytes(blocks, block_bytes, asleep),
            kv_cache_used_bytes=_cache_bytes(used, block_bytes, asleep),
            kv_cache_max_concurrency_requests=blocks * block / self.plan.max_model_len if is_vllm else None,
            max_model_len_tokens=float(self.plan.max_model_len),
            measured_memory_bytes=(
                None
                if is_vllm
                else {
                    name: float(self.plan.footprint.fullest.components[name].expected)
                    for name in ("weights", "cuda_graphs")
                }
            ),
            time_to_first_token_seconds=Histogram((), load.first_token_seconds, float(load.admitted)),
            inter_token_latency_seconds=Histogram((), load.between_tokens_seconds, load.generated_tokens),
            request_e2e_latency_seconds=Histogram(
                (),
                load.finished_generated_tokens / traffic.decode_tokens_per_second + load.first_token_seconds,
                float(load.finished),
            ),
            request_prompt_tokens=Histogram((), float(prompt), float(load.finished)),
            request_generation_tokens=Histogram(
                (), float(round(load.finished_generated_tokens)), float(load.finished)
            ),
        )
        return EngineReading(
            engine=self.plan.engine,
            engine_version=self.plan.version,
            ranks=(rank,),
            settings=self.plan.settings,
            start_time=epoch + round(self.started, 2),
            sleeping=asleep if is_vllm else None,
        )


def _cache_bytes(blocks: int, block_bytes: int | None, asleep: bool) -> float | None:
    return None if asleep or block_bytes is None else float(blocks * block_bytes)


def _pages(size_bytes: float) -> int:
    return max(0, round(size_bytes / PAGE_BYTES) * PAGE_BYTES)
