"""A simulated vLLM V1 engine: real block accounting and scheduling rules, modelled time, made-up traffic.

The blocks, the queue and the preemptions follow the rules of vLLM's V1 engine (v1/core/sched/scheduler.py,
v1/core/block_pool.py): whoever reads the simulated metrics sees the numbers move as they would on a real
server. How long a step takes comes from a bandwidth model, what arrives from a seeded generator. Nothing here
does I/O or reads a clock: the caller says up to which second the engine has run.

One rule differs: where two requests compute the same block at the same time, vLLM lets both copies be found
later; here only the first one is.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

# Bounds of vLLM's histograms (0.20.2, v1/metrics/loggers.py).
TIME_TO_FIRST_TOKEN_BOUNDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
INTER_TOKEN_BOUNDS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_LATENCY_BOUNDS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
)  # fmt: skip

# A block's content is named by (whose tokens, which block of them) in one integer; no prompt has more blocks.
_BLOCKS_PER_OWNER = 1 << 20


def token_count_bounds(max_model_len: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50, … up to max_model_len: vLLM's bounds for prompt and generation lengths."""
    steps = (mantissa * 10**exponent for exponent in range(len(str(max_model_len))) for mantissa in (1, 2, 5))
    return tuple(float(step) for step in steps if step <= max_model_len)


class ObservedHistogram:
    """Counts of observations by upper bound, with their sum. The last count is of those above every bound."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`, as often as `times` says."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        """Number of observations."""
        return sum(self.counts)

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """(upper bound, observations up to it), the last bound infinite."""
        total = 0
        for bound, count in zip((*self.bounds, math.inf), self.counts, strict=True):
            total += count
            yield bound, total


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What a launched engine is bound by, under vLLM's own names."""

    num_gpu_blocks: int
    block_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    enable_prefix_caching: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """How long one engine step takes.

    weight_read_bytes: read once in every step. kv_bytes_per_token: read for every token of context.
    flops_per_token: of the matrices, for a prefilled token. attention_flops_per_pair: for a prefilled token
    and each token that it looks back on. bandwidth, compute: reached, not peak. overhead_seconds:
    scheduling, launch and sampling.
    """

    weight_read_bytes: float
    kv_bytes_per_token: float
    flops_per_token: float
    attention_flops_per_pair: float
    bandwidth_bytes_per_second: float
    compute_flops_per_second: float
    overhead_seconds: float

    def seconds(self, *, context_tokens: int, prefill_tokens: int, prefill_pairs: float) -> float:
        """overhead + (weights + KV read) / bandwidth + prefill FLOPs / compute.

        context_tokens: tokens of KV that all scheduled requests read. prefill_pairs: Σ over prefilled
        tokens of the tokens before them. Real kernels overlap reading and computing, so mixed steps come
        out a little long.
        """
        read_bytes = self.weight_read_bytes + context_tokens * self.kv_bytes_per_token
        flops = prefill_tokens * self.flops_per_token + prefill_pairs * self.attention_flops_per_pair
        return (
            self.overhead_seconds
            + read_bytes / self.bandwidth_bytes_per_second
            + flops / self.compute_flops_per_second
        )


@dataclass(eq=False, slots=True)
class Request:
    """One prompt and how far the engine has come with it.

    prefix_group, prefix_tokens: the system prompt at its start that other requests share; None where it has
    none. computed_tokens: those whose KV lies in `blocks`; 0 again after a preemption.
    """

    number: int
    arrival: float
    prompt_tokens: int
    output_tokens: int
    prefix_group: int | None = None
    prefix_tokens: int = 0
    finished_reason: str = "stop"
    computed_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    last_token_time: float | None = None
    blocks: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Prompt and generated tokens so far."""
        return self.prompt_tokens + self.generated_tokens

    def block_key(self, index: int, block_size: int) -> int:
        """Name of the content of its index-th block; equal for requests that share all tokens up to its end.

        vLLM chains the hash of each block to the one before, so a block with one token of its own is its own.
        """
        if self.prefix_group is not None and (index + 1) * block_size <= self.prefix_tokens:
            owner = -1 - self.prefix_group
        else:
            owner = self.number
        return owner * _BLOCKS_PER_OWNER + index


class BlockPool:
    """The KV blocks of one engine: referenced, free and empty, or free with content that may be found again.

    Block 0 is the null block: it belongs to nobody and is never handed out. Free blocks are taken from the
    head of a queue, least recently freed first; a taken block's old content is forgotten.
    """

    def __init__(self, num_gpu_blocks: int, *, enable_prefix_caching: bool = True) -> None:
        if num_gpu_blocks < 2:
            raise ValueError("a pool needs the null block and one more")
        self.num_gpu_blocks = num_gpu_blocks
        self.enable_prefix_caching = enable_prefix_caching
        self.reference_counts = [0] * num_gpu_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_gpu_blocks))
        self._key_of: list[int | None] = [None] * num_gpu_blocks
        self._block_of: dict[int, int] = {}

    @property
    def free_blocks(self) -> int:
        """Blocks that nobody refers to, with or without content."""
        return len(self._free)

    @property
    def cached_blocks(self) -> int:
        """Blocks whose content can be found, referenced or not."""
        return len(self._block_of)

    @property
    def usage_ratio(self) -> float:
        """Share of the blocks without the null block that are referenced."""
        return 1.0 - len(self._free) / (self.num_gpu_blocks - 1)

    def find(self, request: Request, block_size: int) -> list[int]:
        """The blocks that hold the start of a request, as far as they are there without a gap.

        At least one token is left to compute, or there would be nothing to sample from.
        """
        found: list[int] = []
        if not self.enable_prefix_caching:
            return found
        for index in range((request.tokens - 1) // block_size):
            block = self._block_of.get(request.block_key(index, block_size))
            if block is None:
                break
            found.append(block)
        return found

    def free_among(self, blocks: Sequence[int]) -> int:
        """How many of these blocks are free, and so no longer to be had once they are referenced."""
        return sum(1 for block in blocks if not self.reference_counts[block])

    def refer(self, blocks: Sequence[int]) -> None:
        """Count one more reference to each of these blocks."""
        for block in blocks:
            if not self.reference_counts[block]:
                del self._free[block]
            self.reference_counts[block] += 1

    def take(self, count: int) -> list[int]:
        """`count` free blocks, now referenced once. Raises ValueError where there are not so many."""
        if count > len(self._free):
            raise ValueError(f"{count} blocks are wanted and {len(self._free)} are free")
        taken = []
        for _ in range(count):
            block, _none = self._free.popitem(last=False)
            key = self._key_of[block]
            if key is not None:
                del self._block_of[key]
                self._key_of[block] = None
            self.reference_counts[block] = 1
            taken.append(block)
        return taken

    def remember(self, block: int, key: int) -> None:
        """Let a full block be found by its content, unless another block holds the same."""
        if self.enable_prefix_caching and key not in self._block_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def release(self, blocks: Sequence[int]) -> None:
        """Take back one reference to each block, last block first: a prompt's start is kept longest."""
        for block in reversed(blocks):
            self.reference_counts[block] -= 1
            if not self.reference_counts[block]:
                self._free[block] = None


class Engine:
    """One simulated engine core.

    now: the simulated second up to which it has run; it may be one step ahead of what it was asked for.
    generation_tokens_total and the like count as vLLM's counters of the same name do.
    """

    def __init__(self, limits: EngineLimits, step_time: StepTime) -> None:
        self.limits = limits
        self.step_time = step_time
        self.pool = BlockPool(limits.num_gpu_blocks, enable_prefix_caching=limits.enable_prefix_caching)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.now = 0.0
        self.steps_total = 0
        self.prompt_tokens_total = 0
        self.generation_tokens_total = 0
        self.preemptions_total = 0
        self.prefix_cache_queries_tokens_total = 0
        self.prefix_cache_hits_tokens_total = 0
        self.finished_total = {"stop": 0, "length": 0, "abort": 0, "error": 0, "repetition": 0}
        lengths = token_count_bounds(limits.max_model_len)
        self.time_to_first_token_seconds = ObservedHistogram(TIME_TO_FIRST_TOKEN_BOUNDS)
        self.inter_token_latency_seconds = ObservedHistogram(INTER_TOKEN_BOUNDS)
        self.e2e_request_latency_seconds = ObservedHistogram(REQUEST_LATENCY_BOUNDS)
        self.request_prompt_tokens = ObservedHistogram(lengths)
        self.request_generation_tokens = ObservedHistogram(lengths)

    @property
    def kv_cache_usage_ratio(self) -> float:
        """Share of the pool that running requests refer to."""
        return self.pool.usage_ratio

    def submit(self, request: Request) -> None:
        """Put a request at the end of the queue. Raises ValueError for one that could never finish."""
        tokens = request.prompt_tokens + request.output_tokens
        if request.prompt_tokens < 1 or request.output_tokens < 1 or tokens > self.limits.max_model_len:
            raise ValueError(f"{tokens} tokens do not fit a context of {self.limits.max_model_len}")
        if self._blocks_for(tokens) > self.limits.num_gpu_blocks - 1:
            raise ValueError(f"{tokens} tokens do not fit {self.limits.num_gpu_blocks - 1} blocks")
        self.waiting.append(request)

    def step(self) -> float:
        """Run one batch and return the seconds that it took; 0.0 where there is nothing to run."""
        batch = self._schedule()
        if not batch:
            return 0.0
        seconds = self._seconds_of(batch)
        started = self.now
        self.now = started + seconds
        self.steps_total += 1
        self._finish_step(batch, started, seconds)
        return seconds

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.limits.block_size)

    def _schedule(self) -> list[tuple[Request, int]]:
        """Requests of the next step, each with its number of new tokens: running ones, then the queue."""
        batch: list[tuple[Request, int]] = []
        budget = self.limits.max_num_batched_tokens
        preempted = False
        running = self.running
        block_size = self.limits.block_size
        position = 0
        while position < len(running) and budget > 0:
            request = running[position]
            new_tokens = min(request.tokens - request.computed_tokens, budget)
            wanted = self._blocks_for(request.computed_tokens + new_tokens) - len(request.blocks)
            while wanted > self.pool.free_blocks:
                preempted = True
                if self._preempt_last() is request:
                    break
            else:
                if wanted:
                    request.blocks += self.pool.take(wanted)
                if new_tokens > 1 or not (request.computed_tokens + 1) % block_size:
                    self._remember_full(request, new_tokens)
                batch.append((request, new_tokens))
                budget -= new_tokens
                position += 1
        # Whoever was put back in this step would only be let in and put back again.
        if not preempted:
            self._admit(batch, budget)
        return batch

    def _admit(self, batch: list[tuple[Request, int]], budget: int) -> None:
        """Let requests in from the head of the queue while tokens, seats and blocks last.

        The whole sequence must fit, not only its first chunk (scheduler_reserve_full_isl, on by default).
        """
        while self.waiting and budget > 0 and len(self.running) < self.limits.max_num_seqs:
            request = self.waiting[0]
            found = self.pool.find(request, self.limits.block_size)
            computed = len(found) * self.limits.block_size
            wanted_in_the_end = self._blocks_for(request.tokens) - len(found)
            if wanted_in_the_end + self.pool.free_among(found) > self.pool.free_blocks:
                return
            self.waiting.popleft()
            self.running.append(request)
            # vLLM counts the second look of a preempted request apart, and does not publish it.
            if self.limits.enable_prefix_caching and not request.preemptions:
                self.prefix_cache_queries_tokens_total += request.tokens
                self.prefix_cache_hits_tokens_total += computed
            self.pool.refer(found)
            new_tokens = min(request.tokens - computed, budget)
            request.blocks = found + self.pool.take(self._blocks_for(computed + new_tokens) - len(found))
            request.computed_tokens = computed
            self._remember_full(request, new_tokens)
            batch.append((request, new_tokens))
            budget -= new_tokens

    def _remember_full(self, request: Request, new_tokens: int) -> None:
        block_size = self.limits.block_size
        first = request.computed_tokens // block_size
        for index in range(first, (request.computed_tokens + new_tokens) // block_size):
            self.pool.remember(request.blocks[index], request.block_key(index, block_size))

    def _preempt_last(self) -> Request:
        """Free the request that was let in last and put it at the head of the queue, to be computed anew."""
        request = self.running.pop()
        self.pool.release(request.blocks)
        request.blocks = []
        request.computed_tokens = 0
        request.preemptions += 1
        self.preemptions_total += 1
        self.waiting.appendleft(request)
        return request

    def _seconds_of(self, batch: Sequence[tuple[Request, int]]) -> float:
        context_tokens = prefill_tokens = 0
        prefill_pairs = 0.0
        for request, new_tokens in batch:
            context_tokens += request.computed_tokens + new_tokens
            if new_tokens > 1:
                prefill_tokens += new_tokens
                prefill_pairs += new_tokens * (request.computed_tokens + new_tokens / 2)
        return self.step_time.seconds(
            context_tokens=context_tokens, prefill_tokens=prefill_tokens, prefill_pairs=prefill_pairs
        )

    def _finish_step(self, batch: Sequence[tuple[Request, int]], started: float, seconds: float) -> None:
        """Give a token to every request whose known tokens are all computed; let the complete ones go."""
        in_step = tokens = 0
        any_done = False
        for request, new_tokens in batch:
            request.computed_tokens += new_tokens
            if request.computed_tokens < request.prompt_tokens + request.generated_tokens:
                continue
            tokens += 1
            request.generated_tokens += 1
            last = request.last_token_time
            if last == started:
                in_step += 1
            elif last is None:
                self.prompt_tokens_total += request.prompt_tokens
                self.time_to_first_token_seconds.observe(self.now - request.arrival)
            else:
                self.inter_token_latency_seconds.observe(self.now - last)
            request.last_token_time = self.now
            if request.generated_tokens == request.output_tokens:
                any_done = True
        self.generation_tokens_total += tokens
        if in_step:
            self.inter_token_latency_seconds.observe(seconds, in_step)
        if any_done:
            self._let_go()

    def _let_go(self) -> None:
        still_running = []
        for request in self.running:
            if request.generated_tokens < request.output_tokens:
                still_running.append(request)
                continue
            self.pool.release(request.blocks)
            request.blocks = []
            self.finished_total[request.finished_reason] += 1
            self.e2e_request_latency_seconds.observe(self.now - request.arrival)
            self.request_prompt_tokens.observe(request.prompt_tokens)
            self.request_generation_tokens.observe(request.generated_tokens)
        self.running = still_running


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What users send.

    requests_per_second: mean of a Poisson process whose rate swings by `swing` (0..1) of itself, once in
    period_seconds, starting upwards. Lengths are lognormal, given by median and sigma of the logarithm.
    max_output_tokens: where an answer is cut off, and ends with the reason `length`.
    prefix_tokens: lengths of the system prompts; shared_ratio of all requests start with one of them.
    """

    requests_per_second: float
    swing: float
    period_seconds: float
    prompt_median_tokens: float
    prompt_sigma: float
    output_median_tokens: float
    output_sigma: float
    max_output_tokens: int
    shared_ratio: float
    prefix_tokens: tuple[int, ...]

    def rate(self, time: float) -> float:
        """Requests per second expected at that second."""
        return self.requests_per_second * (
            1 + self.swing * math.sin(2 * math.pi * time / self.period_seconds)
        )


def requests(workload: Workload, *, max_model_len: int, seed: int) -> Iterator[Request]:
    """Requests in the order of their arrival, without end; the same for the same arguments.

    Arrivals are thinned from a process at the highest rate: exact also where the rate moves. Every
    candidate draws the same numbers, kept or not, so that two context windows see the same traffic up to
    the clipping.
    """
    generator = random.Random(seed)
    highest = workload.requests_per_second * (1 + workload.swing)
    time = 0.0
    number = 0
    while True:
        time += generator.expovariate(highest)
        kept = generator.random() * highest < workload.rate(time)
        prompt = generator.lognormvariate(math.log(workload.prompt_median_tokens), workload.prompt_sigma)
        output = generator.lognormvariate(math.log(workload.output_median_tokens), workload.output_sigma)
        shared = generator.random() < workload.shared_ratio
        group = generator.randrange(len(workload.prefix_tokens)) if workload.prefix_tokens else None
        if not kept:
            continue
        prefix = workload.prefix_tokens[group] if shared and group is not None else 0
        most = min(workload.max_output_tokens, max_model_len // 2)
        output_tokens = min(max(1, round(output)), most)
        prompt_tokens = min(prefix + max(1, round(prompt)), max_model_len - output_tokens)
        yield Request(
            number=number,
            arrival=time,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            prefix_group=group if prefix else None,
            prefix_tokens=min(prefix, prompt_tokens),
            finished_reason="length" if output_tokens == most else "stop",
        )
        number += 1


class Simulation:
    """An engine and the requests that arrive at it."""

    def __init__(self, engine: Engine, arrivals: Iterator[Request]) -> None:
        self.engine = engine
        self._arrivals = arrivals
        self._next = next(arrivals, None)

    def advance_to(self, time: float) -> None:
        """Run every step that starts before that second."""
        engine = self.engine
        while engine.now < time:
            while self._next is not None and self._next.arrival <= engine.now:
                engine.submit(self._next)
                self._next = next(self._arrivals, None)
            if engine.step() == 0.0:
                engine.now = time if self._next is None else min(self._next.arrival, time)
