"""The scenarios: what goes wrong or does not, and which alerts ought to say so.

They are fixed before any rule is tuned on them: change one only where it is wrong as a picture of a server.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from brimline.readings import Uuid
from scenarios.plans import GIB, MIB, Plan, plan
from scenarios.server import BATCH_THAT_HALVES_SPEED, OverTime, Server, Spike, Traffic, ramp, steady, wave
from scenarios.world import World

MINUTE, HOUR = 60.0, 3600.0
SEEDS = 20

EVENTS = {
    "out_of_memory": "out of memory",
    "host_out_of_memory": "killed for main memory",
    "first_preemption": "first preemption",
    "first_refusal": "first request refused",
}

# As the rules name them, without the prefix Brimline.
ALERTS = (
    "ExporterDown",
    "TargetDown",
    "TargetSlow",
    "EnginePageIncomplete",
    "ConfigReloadFailed",
    "ConfigMismatch",
    "GpuUnreadable",
    "VramHeadroomLow",
    "VramWillExhaust",
    "VramAbovePlan",
    "VramPlanExceedsGpu",
    "VramGrowth",
    "AllocatorRetries",
    "FragmentationHigh",
    "ForeignProcessOnGpu",
    "HostMemoryLow",
    "KvCacheWillSaturate",
    "KvCacheSaturated",
    "KvCachePreempting",
    "KvCachePoolBelowPrediction",
    "ContextWindowDoesNotFit",
    "ServerRestartedAfterLowHeadroom",
    "ThroughputRegression",
    "VariantWorse",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A story told 20 times over.

    event: a word of EVENTS; None where nothing is wrong, and every critical alert is a false one. alerts: of
    ALERTS, those that ought to warn of the event; for a healthy one, those that may fire as a warning.
    grows_beyond_plan: more than the predicted high is in use for half an hour and longer before the event.
    """

    name: str
    about: str
    build: Callable[[random.Random], World] = field(repr=False)
    event: str | None = None
    alerts: frozenset[str] = frozenset()
    grows_beyond_plan: bool = False

    def world(self, seed: int) -> World:
        """The machine of one seed, before its first scrape."""
        return self.build(random.Random(f"{self.name}/{seed}"))


# --- what the scenarios are made of ---

# Cards with the shares of them that engines are commonly given; the last leaves little beside the plan.
_BUDGETS = {"H100": (0.85, 0.88, 0.9, 0.92), "A100-40": (0.85, 0.88, 0.9), "L4": (0.75, 0.78, 0.8)}
_SGLANG_BUDGETS = {"H100": (0.78, 0.82, 0.85), "A100-40": (0.75, 0.8), "L4": (0.72, 0.76)}


def _some_plan(
    draw: random.Random,
    *,
    engines: tuple[str, ...] = ("vllm",),
    cards: tuple[str, ...] = ("H100", "A100-40", "L4"),
    calibrated: bool | None = None,
    **given: Any,
) -> Plan:
    engine, card = draw.choice(engines), draw.choice(cards)
    budget = draw.choice((_BUDGETS if engine == "vllm" else _SGLANG_BUDGETS)[card])
    known = draw.random() < 0.5 if calibrated is None else calibrated
    return plan(engine, card, **{"utilization": budget, "calibrated": known, **given})


def _traffic(
    draw: random.Random,
    launched: Plan,
    share: OverTime,
    *,
    output: float | None = None,
    running_when_full: float | None = None,
) -> Traffic:
    """Requests that fill such a share of the K/V cache, by time, with a constant length."""
    answer = output or draw.uniform(250, 600)
    full = running_when_full or draw.uniform(110, 190)
    capacity = launched.footprint.kv_cache.capacity_tokens or 0
    prompt = max(120.0, capacity / full - answer / 2)
    decode = draw.uniform(20, 40)

    def requests(now: float) -> float:
        running = share(now) * capacity / (prompt + answer / 2)
        return running * decode / (1 + running / BATCH_THAT_HALVES_SPEED) / answer

    return Traffic(
        requests_per_second=requests,
        prompt_tokens=steady(prompt),
        output_tokens=steady(answer),
        decode_tokens_per_second=decode,
        prefill_tokens_per_second=draw.uniform(8_000, 25_000),
    )


def _usual_share(draw: random.Random) -> OverTime:
    """A share of the cache in use that comes and goes, and stays well below its size."""
    mean = draw.uniform(0.15, 0.5)
    return wave(mean, draw.uniform(0.05, 0.3), draw.uniform(1.5, 6) * HOUR, draw.random())


def _uuid(draw: random.Random) -> Uuid:
    return Uuid(
        f"GPU-{draw.getrandbits(32):08x}-{draw.getrandbits(16):04x}-4000-8000-{draw.getrandbits(48):012x}"
    )


def _beyond_expected(draw: random.Random, launched: Plan) -> float:
    """How far a healthy server's plateau lies from what is expected of it.

    A calibrated one is met but for what the profile run does not see: a few tenths of a GiB. Else it lies
    anywhere in the lower half of the bounds.
    """
    if launched.footprint.calibrated:
        return draw.uniform(-0.3, 0.15) * GIB
    upper = min(0.5 * (launched.high_bytes - launched.expected_bytes), 1.0 * GIB)
    return draw.uniform(-0.3 * GIB, upper)


def _server(draw: random.Random, launched: Plan, **given: Any) -> Server:
    visible = given.pop("visible", draw.random() < 0.7)
    count = int(given.pop("gpus", 1))
    gibs = draw.uniform(6, 20)
    limit = given.pop("host_limit_bytes", round(draw.choice((48, 64, 96)) * GIB) if visible else None)
    usual: dict[str, Any] = {
        "name": draw.choice(("chat", "summaries", "code", "search")),
        "plan": launched,
        "gpus": tuple(_uuid(draw) for _ in range(count)),
        "draw": draw,
        "beyond_expected_bytes": _beyond_expected(draw, launched),
        "warm_bytes": draw.uniform(0.2, 0.8) * GIB,
        "warm_seconds": draw.uniform(10, 40) * MINUTE,
        "load_seconds": draw.uniform(50, 150),
        "restart_seconds": draw.uniform(10, 60),
        "first_start": -draw.uniform(0.5, 12) * 24 * HOUR,
        "host_bytes": (lambda _now, _age: gibs * GIB) if visible else None,
        "host_limit_bytes": limit,
        "processes_listed": visible and draw.random() < 0.5,
        "hiccups": draw.choice((0.0, 0.0, 0.001)),
    }
    if "traffic" not in given:
        usual["traffic"] = _traffic(draw, launched, _usual_share(draw))
    return Server(**{**usual, **given})


def _world(draw: random.Random, *servers: Server, **given: Any) -> World:
    cards = {uuid: server.plan.card for server in servers for uuid in server.gpus}
    usual: dict[str, Any] = {
        "cards": tuple(cards.items()),
        "servers": list(servers),
        "draw": draw,
        "scrapes_missed": draw.choice((0.0, 0.001, 0.004)),
        "jitter_seconds": draw.choice((0.0, 0.02, 0.5)),
    }
    return World(**{**usual, **given})


def _room(server: Server) -> float:
    """Bytes between a server's plateau and what its card can give."""
    return server.plan.card.visible_bytes - server.plan.expected_bytes - server.beyond_expected_bytes


def _room_beyond_plan(server: Server) -> float:
    """Bytes between the predicted high, or the plateau where it lies higher, and what its card can give."""
    return min(_room(server), server.plan.card.visible_bytes - server.plan.high_bytes)


def _between(draw: random.Random, least: float, most: float) -> float:
    """A time drawn so that short and long ones are as likely."""
    return math.exp(draw.uniform(math.log(least), math.log(max(least, most))))


def _uneven(draw: random.Random) -> OverTime:
    """Time that runs now faster and now slower, as a leak does with the load, by at most a quarter."""
    swing, period, phase = draw.uniform(0, 0.25), draw.uniform(0.5, 3) * HOUR, draw.random()
    turn = 2 * math.pi

    def lasted(seconds: float) -> float:
        wobble = math.sin(turn * (seconds / period + phase)) - math.sin(turn * phase)
        return max(0.0, seconds + swing * period / turn * wobble)

    return lasted


def _leak(server: Server, *, begin: float, seconds: float, uneven: OverTime, place: int = 0) -> None:
    """Fill all the room of a GPU within so many seconds."""
    rate = _room(server) / seconds

    def size(gpu: int, now: float, age: float) -> float:
        since = now - begin if server.lives == 0 else age - server.load_seconds
        return rate * uneven(since) if gpu == place and since > 0 else 0.0

    server.beside_plan = size


# --- out of memory ---


def _slow_leak(draw: random.Random) -> World:
    server = _server(draw, _some_plan(draw))
    onset = draw.uniform(20, 90) * MINUTE
    # Long enough for 40 minutes beyond the plan at the quickest.
    least = 50 * MINUTE * _room(server) / _room_beyond_plan(server)
    seconds = _between(draw, least, 20 * HOUR)
    _leak(server, begin=onset, seconds=seconds, uneven=_uneven(draw))
    return _world(draw, server, event="out_of_memory", onset=onset, duration=onset + 1.6 * seconds + HOUR)


def _fast_leak(draw: random.Random) -> World:
    server = _server(draw, _some_plan(draw, engines=("vllm", "vllm", "sglang")))
    onset = draw.uniform(60, 120) * MINUTE
    seconds = _between(draw, 5 * MINUTE, 30 * MINUTE)
    _leak(server, begin=onset, seconds=seconds, uneven=_uneven(draw))
    return _world(draw, server, event="out_of_memory", onset=onset, duration=onset + 2 * HOUR)


def _leak_from_start(draw: random.Random) -> World:
    server = _server(draw, _some_plan(draw), first_start=draw.uniform(0, 30))
    onset = server.first_start + server.load_seconds
    least = 50 * MINUTE * _room(server) / _room_beyond_plan(server)
    seconds = _between(draw, least, 5 * HOUR)
    _leak(server, begin=onset, seconds=seconds, uneven=_uneven(draw))
    return _world(draw, server, event="out_of_memory", onset=onset, duration=onset + 1.6 * seconds + HOUR)


def _second_gpu_leak(draw: random.Random) -> World:
    card = draw.choice(("H100", "A100-40"))
    budget = draw.choice((0.85, 0.88) if card == "H100" else (0.76, 0.8))
    launched = plan("vllm", card, utilization=budget, calibrated=draw.random() < 0.5, gpus=2)
    server = _server(draw, launched, gpus=2)
    onset = draw.uniform(20, 60) * MINUTE
    least = 50 * MINUTE * _room(server) / _room_beyond_plan(server)
    seconds = _between(draw, least, 8 * HOUR)
    _leak(server, begin=onset, seconds=seconds, uneven=_uneven(draw), place=1)
    return _world(draw, server, event="out_of_memory", onset=onset, duration=onset + 1.6 * seconds + HOUR)


def _growing_spikes(
    draw: random.Random,
    server: Server,
    *,
    onset: float,
    seconds: float,
    every: float,
    lasting: tuple[float, float],
) -> None:
    """Spikes that come by chance and grow to what the card cannot give."""
    room = _room(server)
    now = onset
    while now < onset + 1.5 * seconds:
        now += draw.expovariate(1 / every)
        size = room * (0.2 + 0.9 * (now - onset) / seconds) * draw.uniform(0.75, 1.05)
        server.spikes.append(Spike(now, draw.uniform(*lasting), round(size)))


def _multimodal_spikes(draw: random.Random) -> World:
    server = _server(draw, _some_plan(draw))
    onset = draw.uniform(30, 60) * MINUTE
    seconds = draw.uniform(1.5, 5) * HOUR
    every = draw.uniform(40, 240)
    _growing_spikes(draw, server, onset=onset, seconds=seconds, every=every, lasting=(0.5, 4))
    return _world(draw, server, event="out_of_memory", onset=onset, duration=onset + 2 * seconds)


def _logprob_spikes(draw: random.Random) -> World:
    server = _server(draw, _some_plan(draw))
    onset = draw.uniform(30, 60) * MINUTE
    seconds = draw.uniform(1, 4) * HOUR
    every = draw.uniform(4, 15) * MINUTE
    _growing_spikes(draw, server, onset=onset, seconds=seconds, every=every, lasting=(1, 2.5))
    return _world(draw, server, event="out_of_memory", onset=onset, duration=onset + 3 * seconds)


def _second_process(draw: random.Random) -> World:
    server = _server(draw, _some_plan(draw, engines=("vllm", "vllm", "sglang")), visible=draw.random() < 0.8)
    onset = draw.uniform(40, 90) * MINUTE
    first = draw.uniform(0.55, 0.85) * _room(server)
    later = onset + _between(draw, 12 * MINUTE, 2 * HOUR)
    begin, growth = draw.uniform(20, 90), draw.uniform(30, 600)

    def strangers(_gpu: int, now: float) -> float:
        return ramp(onset, onset + begin, 0, first)(now) + ramp(later, later + growth, 0, _room(server))(now)

    return _world(
        draw, server, event="out_of_memory", onset=onset, duration=later + 2 * HOUR, strangers=strangers
    )


def _lora_at_run_time(draw: random.Random) -> World:
    server = _server(draw, _some_plan(draw))
    onset = draw.uniform(30, 60) * MINUTE
    adapters = draw.randint(7, 14)
    each = _room_beyond_plan(server) / adapters
    every = draw.uniform(8, 20) * MINUTE
    # Loading begins within the plan, and goes on beyond it.
    count = math.ceil(_room(server) / each) + 1
    times = [onset + every * (place + draw.uniform(-0.2, 0.2)) for place in range(count)]

    def loaded(_gpu: int, now: float, _age: float) -> float:
        return each * sum(1 for time in times if time <= now) if server.lives == 0 else 0.0

    server.beside_plan = loaded
    return _world(draw, server, event="out_of_memory", onset=onset, duration=times[-1] + HOUR)


def _fragmentation(draw: random.Random) -> World:
    server = _server(draw, _some_plan(draw))
    onset = draw.uniform(20, 60) * MINUTE
    seconds = draw.uniform(4, 12) * HOUR
    room = _room(server)
    bend, steps = draw.uniform(0.6, 0.85), draw.randint(25, 60)

    def reserved(_gpu: int, now: float, _age: float) -> float:
        # In steps, quick at first: each new peak takes segments that are never whole again.
        share = max(0.0, (now - onset) / seconds) if server.lives == 0 else 0.0
        return room / steps * math.floor(steps * math.pow(share, bend))

    server.beside_plan = reserved
    return _world(draw, server, event="out_of_memory", onset=onset, duration=onset + 1.4 * seconds)


def _restart_loop(draw: random.Random) -> World:
    server = _server(draw, _some_plan(draw), restart_seconds=draw.uniform(10, 90))
    life = draw.uniform(20, 60) * MINUTE
    room, uneven = _room(server), _uneven(draw)
    phase = draw.uniform(0, 0.5) * life

    def leaked(_gpu: int, now: float, age: float) -> float:
        since = now + phase if server.lives == 0 else age - server.load_seconds
        return room / life * uneven(max(0.0, since))

    server.beside_plan = leaked
    return _world(draw, server, event="out_of_memory", event_count=3, duration=6 * life + HOUR)


def _plan_exceeds_card(draw: random.Random) -> World:
    launched = draw.choice(
        (
            plan("vllm", "L4", utilization=0.9, quantized=False, max_model_len=8192),
            plan("vllm", "A100-40", utilization=0.95),
            plan("vllm", "A100-40", utilization=0.96),
            plan("vllm", "H100", utilization=0.97),
        )
    )
    server = _server(draw, launched)
    at = draw.uniform(1, 5) * HOUR
    small = [
        Spike(draw.uniform(0, at), draw.uniform(0.3, 1.5), round(draw.uniform(0.05, 0.35) * _room(server)))
        for _ in range(draw.randint(0, 12))
    ]
    fatal = Spike(at, 2.0, round(1.05 * _room(server)) + 64 * MIB)
    server.spikes = [*sorted(small, key=lambda spike: spike.at), fatal]
    return _world(draw, server, event="out_of_memory", duration=at + HOUR)


def _host_leak(draw: random.Random) -> World:
    limit = draw.choice((32, 48, 64)) * GIB
    server = _server(draw, _some_plan(draw, engines=("vllm", "sglang")), visible=True, host_limit_bytes=limit)
    onset = draw.uniform(20, 60) * MINUTE
    seconds = _between(draw, HOUR, 10 * HOUR)
    base = draw.uniform(0.2, 0.5) * limit

    def held(now: float, _age: float) -> float:
        leaked = max(0.0, (now - onset) / seconds) * (limit - base) if server.lives == 0 else 0.0
        return base + leaked + draw.random() * 0.01 * GIB

    server.host_bytes = held
    return _world(draw, server, event="host_out_of_memory", onset=onset, duration=onset + 1.3 * seconds)


# --- the K/V cache ---


def _lengthening(draw: random.Random, seconds: tuple[float, float], longest_share: float) -> World:
    """Prompts that grow until the cache is full, at the same number of requests."""
    launched = _some_plan(draw, engines=("vllm", "vllm", "sglang"))
    share = draw.uniform(0.2, 0.35)
    traffic = _traffic(draw, launched, steady(share), running_when_full=draw.uniform(150, 250))
    onset = draw.uniform(40, 80) * MINUTE
    lasting = _between(draw, *seconds)
    prompt = traffic.prompt_tokens(0)
    growth = (longest_share / share) * (1 + traffic.output_tokens(0) / 2 / prompt)
    traffic.prefill_tokens_per_second = 200_000.0  # most of a conversation is in the prefix cache
    traffic.prompt_tokens = ramp(
        onset, onset + lasting, prompt, min(growth * prompt, 0.85 * launched.max_model_len)
    )
    server = _server(draw, launched, traffic=traffic)
    return _world(draw, server, event="first_preemption", onset=onset, duration=onset + 1.3 * lasting + HOUR)


def _context_creep(draw: random.Random) -> World:
    return _lengthening(draw, (4 * HOUR, 12 * HOUR), 1.4)


def _long_prompts(draw: random.Random) -> World:
    return _lengthening(draw, (15 * MINUTE, 60 * MINUTE), 1.8)


def _preemption_storm(draw: random.Random) -> World:
    launched = _some_plan(draw, engines=("vllm", "vllm", "sglang"))
    onset = draw.uniform(40, 90) * MINUTE
    share = ramp(onset, onset + draw.uniform(5, 20) * MINUTE, draw.uniform(0.3, 0.5), draw.uniform(1.6, 2.5))
    traffic = _traffic(draw, launched, share, output=draw.uniform(400, 900), running_when_full=100)
    traffic.prefill_tokens_per_second = 60_000.0
    server = _server(draw, launched, traffic=traffic)
    return _world(draw, server, event="first_preemption", onset=onset, duration=onset + 3 * HOUR)


def _smaller_pool(draw: random.Random) -> World:
    card = draw.choice(("H100", "A100-40", "L4"))
    longest = {"H100": 131_072, "A100-40": 131_072, "L4": 32_768}[card]
    budget = {"H100": 0.82, "A100-40": 0.82, "L4": 0.78}[card]
    launched = plan("sglang", card, utilization=budget, max_model_len=longest, calibrated=draw.random() < 0.5)
    capacity = launched.footprint.kv_cache.capacity_tokens or 0
    left = draw.uniform(0.45, 0.85) * longest / capacity
    lost = (1 - left) * launched.footprint.fullest.components["kv_cache"].expected
    server = _server(draw, launched, traffic=_traffic(draw, launched, steady(0.3 * left)))
    onset = draw.uniform(40, 70) * MINUTE

    def shrink(restarted: Server) -> None:
        restarted.pool_share = left
        restarted.beyond_expected_bytes -= lost

    server.restarts.append((onset, shrink))
    leaves = onset + draw.uniform(5, 30) * MINUTE

    def strangers(_gpu: int, now: float) -> float:
        return 0.98 * lost if onset <= now < leaves else 0.0

    asked = onset + draw.uniform(30, 150) * MINUTE
    return _world(
        draw,
        server,
        event="first_refusal",
        onset=onset,
        duration=asked + HOUR,
        strangers=strangers,
        refused_tokens=lambda now: round(0.95 * longest) if now >= asked else None,
    )


# --- nothing is wrong ---


def _daily_load(draw: random.Random) -> World:
    launched = _some_plan(draw, engines=("vllm", "vllm", "sglang"))
    share = wave(draw.uniform(0.25, 0.42), draw.uniform(0.5, 0.9), 24 * HOUR, draw.random())
    server = _server(draw, launched, traffic=_traffic(draw, launched, share))
    swing, settling = draw.uniform(0, 0.1) * GIB, draw.uniform(0, 0.2) * GIB
    phase = draw.random()

    def moving(_gpu: int, now: float, _age: float) -> float:
        # Activations follow the load, and the allocator keeps a little more of each new peak.
        day = math.sin(2 * math.pi * (now / (24 * HOUR) + phase))
        return swing * day + settling * (1 - math.exp(-now / (6 * HOUR)))

    server.beside_plan = moving
    return _world(draw, server, duration=26 * HOUR)


def _warm_up(draw: random.Random) -> World:
    launched = _some_plan(draw, engines=("vllm", "vllm", "sglang"))
    upper = 0.7 * (launched.high_bytes - launched.expected_bytes)
    beyond = (
        draw.uniform(0, 0.1) * GIB
        if launched.footprint.calibrated
        else min(upper, draw.uniform(0, 1.5) * GIB)
    )
    server = _server(
        draw,
        launched,
        first_start=draw.uniform(0, 30),
        beyond_expected_bytes=beyond,
        warm_bytes=draw.uniform(0.6, 2.0) * GIB,
        warm_seconds=draw.uniform(10, 60) * MINUTE,
    )
    return _world(draw, server, duration=5 * HOUR)


def _batch_job(draw: random.Random) -> World:
    launched = _some_plan(draw, engines=("vllm", "vllm", "sglang"))
    begin, lasting = draw.uniform(30, 90) * MINUTE, draw.uniform(1, 4) * HOUR
    output = draw.uniform(2, 6)
    prompt = draw.uniform(0.004, 0.006) * (launched.footprint.kv_cache.capacity_tokens or 0)
    # Each answer is a word or two, so that a request hardly grows; it stays while others' prompts are read.
    stays = draw.uniform(8, 20)
    possible = (launched.footprint.kv_cache.capacity_tokens or 0) / prompt / stays
    traffic = Traffic(
        requests_per_second=lambda now: possible * (1.05 if begin <= now < begin + lasting else 0.1),
        prompt_tokens=steady(prompt),
        output_tokens=steady(output),
        decode_tokens_per_second=1.4 * output / stays,
        prefill_tokens_per_second=10 * possible * prompt,
    )
    server = _server(draw, launched, traffic=traffic)
    return _world(draw, server, duration=begin + lasting + 2 * HOUR)


def _sleep_mode(draw: random.Random) -> World:
    launched = _some_plan(draw)
    server = _server(draw, launched)
    now = draw.uniform(30, 80) * MINUTE
    for _ in range(draw.randint(2, 4)):
        wakes = now + draw.uniform(10, 70) * MINUTE
        server.naps.append((now, wakes))
        now = wakes + draw.uniform(20, 90) * MINUTE
    return _world(draw, server, duration=now)


def _idle_night(draw: random.Random) -> World:
    launched = _some_plan(draw, engines=("vllm", "vllm", "sglang"))
    begin = draw.uniform(0.5, 2) * HOUR
    busy = draw.uniform(0.2, 0.5)

    def share(now: float) -> float:
        falls, rises = (
            ramp(begin, begin + HOUR, busy, 0.0)(now),
            ramp(begin + 7 * HOUR, begin + 8 * HOUR, 0.0, busy)(now),
        )
        return max(falls, rises)

    server = _server(draw, launched, traffic=_traffic(draw, launched, share))
    return _world(draw, server, duration=begin + 9 * HOUR)


def _new_configuration(draw: random.Random) -> World:
    engine, card = "vllm", draw.choice(("H100", "A100-40"))
    before, after = sorted(draw.sample(_BUDGETS[card], 2), reverse=draw.random() < 0.3)
    known = draw.random() < 0.5
    first = plan(engine, card, utilization=before, calibrated=known)
    second = plan(engine, card, utilization=after, max_model_len=32_768, calibrated=known)
    server = _server(
        draw,
        first,
        experiment="budget",
        variant="before",
        role="baseline",
        warm_bytes=draw.uniform(0.2, 0.6) * GIB,
    )

    def change(restarted: Server) -> None:
        restarted.plan = second
        restarted.beyond_expected_bytes = _beyond_expected(draw, second)

    at = draw.uniform(1, 2) * HOUR
    server.restarts = [(at, change)]
    if draw.random() < 0.4:  # a second deployment of the same
        server.restarts.append((at + draw.uniform(20, 60) * MINUTE, lambda _server: None))
    return _world(draw, server, duration=at + 4 * HOUR)


def _exporter_restarts(draw: random.Random) -> World:
    server = _server(draw, _some_plan(draw, engines=("vllm", "vllm", "sglang")))
    gaps, now = [], 0.0
    for _ in range(draw.randint(3, 6)):
        now += draw.uniform(20, 60) * MINUTE
        gaps.append((now, now + draw.uniform(20, 100)))
    return _world(
        draw, server, exporter_down=gaps, scrapes_missed=draw.uniform(0.005, 0.03), duration=now + HOUR
    )


def _wide_bounds(draw: random.Random) -> World:
    launched = _some_plan(draw, engines=("vllm", "sglang"), calibrated=False)
    server = _server(draw, launched)
    return _world(draw, server, duration=8 * HOUR)


def _two_servers(draw: random.Random) -> World:
    known = draw.random() < 0.5
    card = draw.choice(("H100", "H100", "A100-40"))
    shares = (0.45, 0.38) if card == "H100" else (0.42, 0.38)
    first = plan(
        "vllm", card, utilization=shares[0], calibrated=known, quantized=card == "A100-40", max_model_len=8192
    )
    second = plan("vllm", card, utilization=shares[1], calibrated=known, quantized=True, max_model_len=8192)
    small = draw.uniform(-0.2, 0.1) * GIB
    one = _server(draw, first, name="chat", beyond_expected_bytes=small)
    two = _server(draw, second, name="search", gpus=1, beyond_expected_bytes=small)
    two.gpus = one.gpus
    return _world(draw, one, two, duration=8 * HOUR)


_VRAM = frozenset({"VramHeadroomLow", "VramWillExhaust", "VramAbovePlan", "VramGrowth"})
_KV = frozenset({"KvCacheWillSaturate", "KvCacheSaturated"})

SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        name="slow-leak",
        about="Memory beside the K/V pool grows over hours, until a request finds none.",
        build=_slow_leak,
        event="out_of_memory",
        alerts=_VRAM,
        grows_beyond_plan=True,
    ),
    Scenario(
        name="fast-leak",
        about="Memory beside the pool grows to the end of the card within 5 to 30 minutes.",
        build=_fast_leak,
        event="out_of_memory",
        alerts=_VRAM,
    ),
    Scenario(
        name="leak-from-start",
        about="A leak that begins as soon as the server answers, so that it looks like its warming up.",
        build=_leak_from_start,
        event="out_of_memory",
        alerts=_VRAM,
        grows_beyond_plan=True,
    ),
    Scenario(
        name="second-gpu-leak",
        about="Of two GPUs that share a model, only the second one's memory grows.",
        build=_second_gpu_leak,
        event="out_of_memory",
        alerts=_VRAM,
        grows_beyond_plan=True,
    ),
    Scenario(
        name="multimodal-spikes",
        about="Larger and larger images take activations for seconds, mostly between two scrapes.",
        build=_multimodal_spikes,
        event="out_of_memory",
        alerts=_VRAM,
    ),
    Scenario(
        name="logprob-spikes",
        about="Now and then someone asks for the log-probabilities of a longer prompt.",
        build=_logprob_spikes,
        event="out_of_memory",
        alerts=_VRAM,
    ),
    Scenario(
        name="second-process",
        about="Another process starts on the card, and later takes more.",
        build=_second_process,
        event="out_of_memory",
        alerts=_VRAM | {"ForeignProcessOnGpu"},
    ),
    Scenario(
        name="lora-at-run-time",
        about="Adapters that no launch setting foresees are loaded one after the other.",
        build=_lora_at_run_time,
        event="out_of_memory",
        alerts=_VRAM,
        grows_beyond_plan=True,
    ),
    Scenario(
        name="fragmentation",
        about="The allocator keeps more and more memory that it cannot hand out in one piece.",
        build=_fragmentation,
        event="out_of_memory",
        alerts=_VRAM | {"FragmentationHigh", "AllocatorRetries"},
        grows_beyond_plan=True,
    ),
    Scenario(
        name="restart-loop",
        about="A server leaks, dies and comes back within the hour, over and over; the third death counts.",
        build=_restart_loop,
        event="out_of_memory",
        alerts=_VRAM | {"ServerRestartedAfterLowHeadroom"},
    ),
    Scenario(
        name="plan-exceeds-card",
        about="By its high bound the server does not fit from the start; then one step takes that much.",
        build=_plan_exceeds_card,
        event="out_of_memory",
        alerts=frozenset({"VramPlanExceedsGpu", "VramHeadroomLow"}),
    ),
    Scenario(
        name="host-leak",
        about="The server's main memory grows to the limit of its cgroup.",
        build=_host_leak,
        event="host_out_of_memory",
        alerts=frozenset({"HostMemoryLow"}),
    ),
    Scenario(
        name="context-creep",
        about="Conversations grow longer over hours, until their contexts no longer fit the cache together.",
        build=_context_creep,
        event="first_preemption",
        alerts=_KV,
    ),
    Scenario(
        name="long-prompts",
        about="Within the hour a new client sends prompts several times as long.",
        build=_long_prompts,
        event="first_preemption",
        alerts=_KV,
    ),
    Scenario(
        name="preemption-storm",
        about="Within minutes twice as many requests come as the cache can hold.",
        build=_preemption_storm,
        event="first_preemption",
        alerts=_KV | {"KvCachePreempting"},
    ),
    Scenario(
        name="smaller-pool",
        about="A restart beside a stranger leaves a cache that one long request does not fit; then it comes.",
        build=_smaller_pool,
        event="first_refusal",
        alerts=frozenset({"KvCachePoolBelowPrediction", "ContextWindowDoesNotFit"}),
    ),
    Scenario(
        name="daily-load",
        about="Load rises and falls with the day, over 26 hours.",
        build=_daily_load,
    ),
    Scenario(
        name="warm-up",
        about="After a start memory grows for an hour or so to a plateau within the plan.",
        build=_warm_up,
        alerts=frozenset({"VramHeadroomLow", "VramPlanExceedsGpu"}),
    ),
    Scenario(
        name="batch-job",
        about="Thousands of short questions at once fill the cache to the last block, and wait their turn.",
        build=_batch_job,
        alerts=_KV | {"KvCachePreempting", "VramHeadroomLow"},
    ),
    Scenario(
        name="sleep-mode",
        about="The server gives up its memory, sleeps, and takes it back at once.",
        build=_sleep_mode,
    ),
    Scenario(
        name="idle-night",
        about="No request comes for six hours.",
        build=_idle_night,
    ),
    Scenario(
        name="new-configuration",
        about="The server is started anew with another budget and a longer context.",
        build=_new_configuration,
        alerts=frozenset({"TargetDown"}),
    ),
    Scenario(
        name="exporter-restarts",
        about="The exporter is restarted a few times, and scrapes fail.",
        build=_exporter_restarts,
        alerts=frozenset({"ExporterDown"}),
    ),
    Scenario(
        name="wide-bounds",
        about="A healthy server without a calibration, whose high bound is far from what it uses.",
        build=_wide_bounds,
        alerts=frozenset({"VramHeadroomLow", "VramPlanExceedsGpu"}),
    ),
    Scenario(
        name="two-servers",
        about="Two servers share a card as planned.",
        build=_two_servers,
        alerts=frozenset({"VramHeadroomLow", "VramPlanExceedsGpu"}),
    ),
)

BY_NAME: dict[str, Scenario] = {scenario.name: scenario for scenario in SCENARIOS}
