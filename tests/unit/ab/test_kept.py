"""What is kept from look to look: an observation is that of a whole fetch, and asks only for what is new."""

from __future__ import annotations

import asyncio
import dataclasses
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ab_alike import same
from brimline.ab.experiment import Experiment, PrometheusConfig, parse
from brimline.ab.fetch import observe
from brimline.ab.kept import LEAST_OVERLAP_SECONDS, MAX_AGE_SECONDS, MOST_GAP_SECONDS, Kept
from brimline.ab.observations import Observations
from brimline.ab.saved_series import SavedSeries
from brimline.errors import DataSourceError
from brimline.prometheus_api import MAX_CHUNK_SECONDS, Row, Rows

START = 1_764_000_000.0
BLOCK, INTERVAL = 300.0, 15.0
EXPERIMENT = """
name: e
variants: [{{name: a, role: baseline}}, {{name: b, role: candidate}}]
window: {{start: "{start}"}}
block_length: {block}s
"""


def experiment(end: float, block: float = BLOCK) -> Experiment:
    start = datetime.fromtimestamp(START, UTC).isoformat()
    return parse(EXPERIMENT.format(start=start, block=block), now=end)


# --- a world that goes on


@dataclass
class Server:
    """One server. restarts: times after which its counters begin anew. gone: when nothing is scraped.

    becomes: when its label moves to another variant, and to which.
    """

    name: str
    variant: str
    appears: float = START - 3600
    leaves: float = START + 1e6
    restarts: list[float] = field(default_factory=list)
    becomes: tuple[float, str] | None = None

    def booted(self, time: float) -> float:
        return max((one for one in self.restarts if one <= time), default=self.appears - 1000)

    def rows(self, times: Sequence[float]) -> list[Row]:
        about = {"job": "j", "instance": "i", "target": self.name}
        there = [time for time in times if self.appears <= time < self.leaves]

        def row(name: str, value: Callable[[float], float], /, **labels: str) -> Row:
            return of(there, name, value, **labels)

        def of(times: list[float], name: str, value: Callable[[float], float], /, **labels: str) -> Row:
            return Row(
                {"__name__": f"brimline_{name}", **about, **labels},
                array("d", times),
                array("d", map(value, times)),
            )

        def counted(per_second: float) -> Callable[[float], float]:
            return lambda time: round(per_second * (time - self.booted(time)), 3)

        moves, following = self.becomes or (np.inf, "")
        spans = {
            self.variant: [time for time in there if time < moves],
            following: [time for time in there if time >= moves],
        }
        info = {"experiment": "e", "role": "", "engine": "vllm"}
        return [
            *(
                of(times, "target_info", lambda _: 1, variant=variant, **info)
                for variant, times in spans.items()
                if times
            ),
            row("target_up", lambda _: 1),
            row("target_start_time_seconds", self.booted),
            row("target_config_fingerprint_info", lambda _: 1, fingerprint=self.variant),
            row("target_setting_info", lambda _: 1, setting="block_size", value="16"),
            row("kv_cache_capacity_tokens", lambda time: 100 + self.booted(time) % 7, rank="0"),
            row("requests_running", lambda time: time % 5, rank="0"),
            *(row("generation_tokens_total", counted(100 + rank / 3), rank=str(rank)) for rank in range(3)),
            *(
                row("time_to_first_token_seconds_bucket", counted(share), le=bound, rank="0")
                for bound, share in (("0.1", 0.5), ("+Inf", 1.7))
            ),
        ]


@dataclass
class World:
    """Servers, and what a Prometheus has of them.

    late: from when to when samples come together, and how much later than the last of them.
    """

    servers: list[Server]
    outages: list[tuple[float, float]] = field(default_factory=list)
    late: list[tuple[float, float, float]] = field(default_factory=list)

    def source(self, now: float) -> SavedSeries:
        """What is stored at a time."""
        times = [START - 600 + INTERVAL * place for place in range(int((now - START + 600) / INTERVAL) + 1)]
        times = [time for time in times if self._arrives(time) <= now]
        return SavedSeries([row for server in self.servers for row in server.rows(times) if len(row.times)])

    def _arrives(self, time: float) -> float:
        if any(first <= time < last for first, last in self.outages):
            return np.inf
        return max([time, *(last + delay for first, last, delay in self.late if first <= time < last)])


class Counting:
    """A source that counts the samples it gives, and fails at one question."""

    evaluates = False

    def __init__(self, source: SavedSeries, *, fails_at: int | None = None, warnings: tuple[str, ...] = ()):
        self.source = source
        self.fails_at = fails_at
        self.warnings = warnings
        self.questions = self.samples = 0

    def _asked(self) -> None:
        self.questions += 1
        if self.questions == self.fails_at:
            raise DataSourceError("http_status", "answered 503")

    def _given(self, found: Rows) -> Rows:
        self.samples += sum(len(row.times) for row in found.rows)
        return Rows(found.rows, self.warnings)

    async def raw_samples(
        self,
        selector: str,
        start: float,
        end: float,
        *,
        chunk: float = MAX_CHUNK_SECONDS,
        after_each: Callable[[], None] = lambda: None,
    ) -> Rows:
        self._asked()
        return self._given(
            await self.source.raw_samples(selector, start, end, chunk=chunk, after_each=after_each)
        )

    async def query_range(self, query: str, start: float, end: float, step: float) -> Rows:
        self._asked()
        return self._given(await self.source.query_range(query, start, end, step))


def look(kept: Kept, source: SavedSeries | Counting, end: float, block: float = BLOCK) -> Observations:
    return asyncio.run(kept.observe(experiment(end, block), source, now=end))


def whole(source: SavedSeries | Counting, end: float, block: float = BLOCK) -> Observations:
    return asyncio.run(observe(experiment(end, block), source))


def world() -> World:
    return World([Server("s", "a"), Server("t", "b")])


# --- the same as a whole fetch

moments = st.integers(0, 120).map(lambda place: START + 30 * place)


@st.composite
def worlds(draw: st.DrawFn, block: float) -> World:
    servers = [Server("s", "a"), Server("t", "b")]
    if draw(st.booleans()):
        servers.append(Server("u", draw(st.sampled_from("ab")), appears=draw(moments)))
    if draw(st.booleans()):
        servers[1].leaves = draw(moments)
    for server in servers:
        server.restarts = draw(st.lists(moments, max_size=2))
    stretches = st.tuples(moments, st.sampled_from([30.0, 200.0, 900.0]))
    if draw(st.booleans()):
        # With a restart at the same time, long before or without one.
        servers[0].becomes = (draw(moments), "b")
        servers[0].restarts += [servers[0].becomes[0] - draw(st.sampled_from([0.0, 100.0, 1800.0]))]
    outages = [(first, first + length) for first, length in draw(st.lists(stretches, max_size=2))]
    late = [
        (first, first + length, delay)
        for (first, length), delay in draw(
            st.lists(st.tuples(stretches, st.sampled_from([0.1, 0.5, 0.9])), max_size=2)
        )
    ]
    # Half of what is fetched again: as late as that, it is always noticed.
    late = [(first, last, share * max(block, LEAST_OVERLAP_SECONDS / 2)) for first, last, share in late]
    return World(servers, outages, late)


@pytest.mark.parametrize("block", [60.0, BLOCK])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_whatever_happens_a_look_through_what_is_kept_is_that_of_a_whole_fetch(
    block: float, data: st.DataObject
) -> None:
    going_on = data.draw(worlds(block))
    steps = data.draw(st.lists(st.sampled_from([20.0, 300.0, 320.0, 700.0]), min_size=3, max_size=6))
    failures = data.draw(st.lists(st.none() | st.integers(1, 40), min_size=6, max_size=6))
    kept, now = Kept(), START + 40
    for step, fails_at in zip(steps, failures, strict=False):
        now += step
        source = going_on.source(now)
        try:
            found = look(kept, Counting(source, fails_at=fails_at), now, block)
        except DataSourceError:
            continue
        same(found, whole(source, now, block))


def test_a_look_asks_for_the_last_blocks_only() -> None:
    kept, going_on = Kept(), world()
    asked = {}
    for place in range(1, 25):
        now = START + place * BLOCK + 20
        counting = Counting(going_on.source(now))
        look(kept, counting, now)
        asked[place] = counting.samples
    everything = Counting(going_on.source(now))
    whole(everything, now)

    # The block that is new and two more: an eighth of 24, and what is asked at the end alone.
    assert asked[24] < everything.samples / 5
    assert asked[24] == asked[12]


def test_of_what_nobody_writes_no_more_is_asked_for_as_time_goes_on() -> None:
    kept, going_on = Kept(), world()
    for server in going_on.servers:
        server.leaves = START + 2 * 3600
    asked: dict[int, float] = {}

    class Asking(Counting):
        async def raw_samples(self, selector: str, start: float, end: float, **more: Any) -> Rows:
            asked[place] = max(asked.get(place, 0.0), end - start)
            return await super().raw_samples(selector, start, end, **more)

    for place in range(1, 65):
        now = START + place * BLOCK + 20
        look(kept, Asking(going_on.source(now)), now)

    # What the engine lacks, and what has ended: an hour and what may still change, where no look is whole.
    assert max(asked[place] for place in range(20, 65)) <= MOST_GAP_SECONDS + 4 * BLOCK


# --- a past that changes


def test_samples_that_come_late_within_two_blocks_are_had() -> None:
    going_on = world()
    going_on.late = [(START + 5 * BLOCK, START + 5 * BLOCK + 100, 200.0)]
    kept = Kept()
    for now in (START + 5 * BLOCK + 120, START + 6 * BLOCK + 20):
        found = look(kept, going_on.source(now), now)

        same(found, whole(going_on.source(now), now))


def test_where_the_overlap_is_not_as_it_was_everything_is_read_anew() -> None:
    """A remote write that was behind by an hour: the block before last shows it first."""
    going_on = world()
    behind = START + 3600
    going_on.late = [(START, behind, 400.0)]
    kept = Kept()
    now = behind - 100
    look(kept, going_on.source(now), now)
    now = behind + 420
    counting = Counting(going_on.source(now))

    found = look(kept, counting, now)

    same(found, whole(going_on.source(now), now))


def test_a_past_that_was_deleted_is_noticed() -> None:
    kept, going_on = Kept(), world()
    now = START + 3600
    look(kept, going_on.source(now), now)
    going_on.outages = [(START - 600, now)]
    now += BLOCK

    found = look(kept, going_on.source(now), now)

    same(found, whole(going_on.source(now), now))


def test_what_came_later_than_that_is_seen_when_everything_is_read_anew() -> None:
    kept, going_on = Kept(), world()
    going_on.late = [(START + 600, START + 900, 3000.0)]
    now = START + 2 * 3600 - 1
    first = START + 3000
    look(kept, going_on.source(first), first)
    found = look(kept, going_on.source(now), now)
    seen, there = (one.arms["a"].replicas[0].up.times for one in (found, whole(going_on.source(now), now)))
    assert len(seen) < len(there)

    later = first + MAX_AGE_SECONDS

    same(look(kept, going_on.source(later), later), whole(going_on.source(later), later))


def test_an_answer_with_a_warning_is_not_kept() -> None:
    kept, going_on = Kept(), world()
    partly = World(going_on.servers[:1])
    now = START + 3600
    found = look(kept, Counting(partly.source(now), warnings=("a store did not answer",)), now)
    assert "the data source warns: a store did not answer" in found.gaps
    now += BLOCK

    same(look(kept, going_on.source(now), now), whole(going_on.source(now), now))


# --- bounds


def test_what_is_kept_is_bounded() -> None:
    kept, going_on = Kept(), world()
    now = START + 3600
    look(kept, going_on.source(now), now)
    enough = kept.bytes
    small = Kept(most_bytes=enough // 2)

    for _ in range(3):
        same(look(small, going_on.source(now), now), whole(going_on.source(now), now))
        assert small.bytes == 0
        now += BLOCK
    # Two rows of each family and some overhead: less than twice the samples themselves.
    samples = Counting(going_on.source(START + 3600))
    whole(samples, START + 3600)
    assert enough < 16 * samples.samples + 1e6


def test_of_a_window_that_slides_nothing_is_kept_from_before_it() -> None:
    kept, going_on = Kept(), world()
    text = EXPERIMENT.format(start="", block=BLOCK).replace('start: ""', "last: 30m")
    sizes = []
    for place in range(12):
        now = START + 3600 + place * BLOCK
        planned = parse(text, now=now)
        source = going_on.source(now)

        found = asyncio.run(kept.observe(planned, source, now=now))

        same(found, asyncio.run(observe(planned, source)))
        sizes.append(kept.bytes)
    assert max(sizes[2:]) < 1.2 * sizes[0]


def test_another_source_begins_anew() -> None:
    kept, going_on = Kept(), world()
    now = START + 3600
    look(kept, going_on.source(now), now)
    elsewhere = World([Server("s", "a", restarts=[START + 1000]), Server("t", "b")]).source(now)
    planned = dataclasses.replace(experiment(now), prometheus=PrometheusConfig(url="http://elsewhere:9090"))

    same(asyncio.run(kept.observe(planned, elsewhere, now=now)), whole(elsewhere, now))
