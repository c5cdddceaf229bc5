"""One machine with its GPUs, its servers and the exporter beside them, over time.

What happens to memory is made up here; what the exporter makes of it is the exporter's own code, from the
account of a GPU's memory to the rows of each family.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from brimline.readings import (
    TARGET_REASONS,
    DeviceReading,
    GpuReading,
    HostReading,
    Problem,
    ProcessReading,
    Snapshot,
    TargetSnapshot,
    Uuid,
)
from brimline.reconcile import Tenant, account
from scenarios.plans import GIB, Card
from scenarios.server import Server, Spike

SCRAPE_SECONDS = 15.0
PEAK_WINDOW_SECONDS = 60.0
# Before the first scrape, so that its servers are found at work.
ROLL_IN_SCRAPES = 120
# The exporter looks at the GPUs each second, and sees what lasts shorter only by luck.
SAMPLE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Event:
    """What ought to have been warned of. kind: a word of scenarios.EVENTS."""

    kind: str
    at: float
    target: str


@dataclass(slots=True, kw_only=True)
class World:
    """A machine.

    duration: after which a run ends at the latest; a run ends `aftermath` seconds after its event. event: the
    kind that ends it, None for a healthy run; after how many of them. onset: when what leads to the event
    begins: before it nothing is wrong. strangers: bytes that processes of no server hold on a GPU, by its
    place. scrapes_missed: chance that a scrape fails. exporter_down: from when to when there is no exporter.
    refused_tokens: of a request that can never fit, by time; None while there is none.
    """

    cards: tuple[tuple[Uuid, Card], ...]
    servers: list[Server]
    draw: random.Random
    duration: float
    onset: float = 0.0
    event: str | None = None
    event_count: int = 1
    aftermath: float = 600.0
    strangers: Callable[[int, float], float] = lambda _gpu, _now: 0.0
    exporter_down: list[tuple[float, float]] = field(default_factory=list)
    scrapes_missed: float = 0.0
    jitter_seconds: float = 0.0
    host_total_bytes: int = 256 * GIB
    host_others_bytes: float = 40.0 * GIB
    refused_tokens: Callable[[float], int | None] = lambda _now: None

    events: list[Event] = field(default_factory=list)
    beyond_plan_since: float | None = None

    # what the exporter keeps
    _errors: dict[str, dict[str, int]] = field(default_factory=dict)
    _last_success: dict[str, float] = field(default_factory=dict)
    _known: dict[str, Tenant] = field(default_factory=dict)
    _fingerprints: dict[str, tuple[str, float | None]] = field(default_factory=dict)
    _peaks: dict[Uuid, list[tuple[float, int]]] = field(default_factory=dict)
    _spikes_seen: set[Spike] = field(default_factory=set)

    def named_event(self) -> Event | None:
        """The event of this run; None before it happened, and in a healthy run."""
        events = [event for event in self.events if event.kind == self.event and event.at >= self.onset]
        return events[self.event_count - 1] if len(events) >= self.event_count else None

    def scrapes(self, epoch: float) -> Iterator[tuple[float, Snapshot | None]]:
        """Each scrape's time in seconds since 1970, and what it brought; None for a scrape that failed."""
        for step in range(-ROLL_IN_SCRAPES, 0):
            for server in self.servers:
                server.advance(step * SCRAPE_SECONDS, SCRAPE_SECONDS)
        now = self.draw.random() * SCRAPE_SECONDS
        end = self.duration
        while now <= end:
            devices = self._advance(now)
            stamp = epoch + now
            # Prometheus scrapes by its own clock; what it writes is late now and then.
            if self.jitter_seconds and self.draw.random() < 0.1:
                stamp += self.draw.random() * self.jitter_seconds
            yield round(stamp, 3), self._scraped(now, epoch, devices)
            found = self.named_event()
            if found is not None:
                end = min(end, found.at + self.aftermath)
            now += SCRAPE_SECONDS

    # --- what happens ---

    def _advance(self, now: float) -> list[DeviceReading]:
        for server in self.servers:
            if server.advance(now, SCRAPE_SECONDS):
                self.events.append(Event("first_preemption", now, server.name))
            asked = self.refused_tokens(now)
            if asked is not None and server.state(now) == "up" and asked > server.capacity_tokens:
                self.events.append(Event("first_refusal", now, server.name))
            self._host(server, now)
        return [self._device(place, now) for place in range(len(self.cards))]

    def _host(self, server: Server, now: float) -> None:
        if server.host_bytes is None or server.host_limit_bytes is None or server.state(now) != "up":
            return
        if server.host_bytes(now, now - server.started) >= server.host_limit_bytes:
            self.events.append(Event("host_out_of_memory", now, server.name))
            server.die(now)

    def _device(self, place: int, now: float) -> DeviceReading:
        uuid, card = self.cards[place]
        mine = [server for server in self.servers if uuid in server.gpus]
        strange = int(self.strangers(place, now))
        begin = now - SCRAPE_SECONDS
        sizes = {server.name: server.bytes_on(server.gpus.index(uuid), now) for server in mine}
        used = highest = sum(sizes.values()) + strange
        for server in mine:
            if server.state(now) != "up" or server.sleeps(now):
                continue
            top = 0
            for spike in server.spikes_within(begin, now):
                until = spike.at + spike.seconds
                if spike.at > begin and used + spike.size_bytes > card.visible_bytes:
                    top = max(top, card.visible_bytes - used + 1)
                    continue
                if spike.seconds >= SAMPLE_SECONDS or self.draw.random() < spike.seconds / SAMPLE_SECONDS:
                    highest = max(highest, used + spike.size_bytes)
                if spike.at <= now < until:
                    top = max(top, spike.size_bytes)
            if used + top > card.visible_bytes:
                self.events.append(Event("out_of_memory", now, server.name))
                highest = card.visible_bytes
                server.die(now)
                used -= sizes[server.name]
                sizes[server.name] = 0
                break
            used += top
        used = min(used, card.visible_bytes)
        highest = max(used, min(highest, card.visible_bytes))
        peaks = [(at, size) for at, size in self._peaks.get(uuid, []) if at > now - PEAK_WINDOW_SECONDS] + [
            (now, highest)
        ]
        self._peaks[uuid] = peaks
        self._follow_plan(mine, used, now, place)
        listed = any(server.processes_listed for server in mine)
        processes: dict[int, int | None] = {
            _pid(server): sizes[server.name] for server in mine if sizes[server.name]
        }
        if strange:
            processes[9000 + place] = strange
        return DeviceReading(
            uuid=uuid,
            index=str(place),
            name=card.name,
            driver="570.133.20",
            memory_api="v2",
            total_bytes=card.total_bytes,
            reserved_bytes=card.reserved_bytes,
            used_bytes=used,
            free_bytes=card.visible_bytes - used,
            used_peak_bytes=max(size for _, size in peaks),
            processes=processes if listed else None,
        )

    def _follow_plan(self, mine: list[Server], used: int, now: float, place: int) -> None:
        """Keep since when more is used than the highest that is predicted, on end, until an event.

        Of several GPUs the one that is beyond it counts: the place with the most beside its plan.
        """
        if (
            self.events
            or place != self._fullest_place(now)
            or not mine
            or any(s.state(now) != "up" for s in mine)
        ):
            return
        if used > sum(server.plan.high_bytes for server in mine):
            if self.beyond_plan_since is None:
                self.beyond_plan_since = now
        else:
            self.beyond_plan_since = None

    def _fullest_place(self, now: float) -> int:
        server = self.servers[0]
        beside = [server.beside_plan(place, now, now - server.started) for place in range(len(server.gpus))]
        return beside.index(max(beside))

    # --- what the exporter makes of it ---

    def _scraped(self, now: float, epoch: float, devices: list[DeviceReading]) -> Snapshot | None:
        down = [begin for begin, end in self.exporter_down if begin <= now < end]
        if down:
            # It forgets what it saw.
            for kept in (self._errors, self._last_success, self._known):
                kept.clear()
            self._fingerprints.clear()
            return None
        targets = [self._target(server, now, epoch) for server in self.servers]
        tenants = [self._known[server.name] for server in self.servers]
        if self.scrapes_missed and self.draw.random() < self.scrapes_missed:
            return None
        served = sum(
            server.host_bytes(now, now - server.started) for server in self.servers if server.host_bytes
        )
        available = self.host_total_bytes - self.host_others_bytes - served
        return Snapshot(
            time=epoch + now,
            targets=tuple(targets),
            gpu=GpuReading(up=True, devices=tuple(devices)),
            memory=account(targets, tenants, devices),
            host=HostReading(self.host_total_bytes, max(0, int(available))),
            reload_success_time=epoch - 3600,
        )

    def _target(self, server: Server, now: float, epoch: float) -> TargetSnapshot:
        name = server.name
        errors = self._errors.setdefault(name, dict.fromkeys(TARGET_REASONS, 0))
        problem = None
        if server.state(now) != "up":
            problem = Problem("connection", "connection refused")
        elif server.hiccups and self.draw.random() < server.hiccups:
            problem = Problem("timeout", "no whole answer")
        gpus = tuple((uuid, "0") for uuid in server.gpus)
        known = self._known.get(name)
        footprint = server.plan.footprint if problem is None else known.footprint if known else None
        self._known[name] = Tenant(name=name, gpus=gpus, footprint=footprint)
        fingerprint = self._fingerprints.get(name)
        if problem is not None:
            errors[problem.reason] += 1
        else:
            self._last_success[name] = epoch + now
            digest = f"{zlib.crc32(json.dumps(dict(server.plan.settings)).encode()):016x}"
            if fingerprint is None or fingerprint[0] != digest:
                changed = None if fingerprint is None else epoch + now
                fingerprint = self._fingerprints[name] = (digest, changed)
        return TargetSnapshot(
            name=name,
            url="http://127.0.0.1:8000",
            experiment=server.experiment,
            variant=server.variant,
            role=server.role,
            up=problem is None,
            reading=server.reading(now, epoch) if problem is None else None,
            problems=() if problem is None else (problem,),
            errors=errors,
            duration_seconds=5.0
            if problem and problem.reason == "timeout"
            else 0.004 + 0.003 * self.draw.random(),
            age_seconds=0.0 if problem is None else None,
            last_success=self._last_success.get(name),
            settings=server.plan.settings if problem is None else {},
            fingerprint=fingerprint[0] if fingerprint and problem is None else None,
            config_changed=fingerprint[1] if fingerprint else None,
            gpus=gpus,
            footprint=footprint if problem is None else None,
            process=self._process(server, now) if problem is None else None,
        )

    @staticmethod
    def _process(server: Server, now: float) -> ProcessReading | None:
        if server.host_bytes is None:
            return None
        return ProcessReading(
            pids=frozenset({_pid(server)}),
            host_memory_used_bytes=int(server.host_bytes(now, now - server.started)),
            host_memory_limit_bytes=server.host_limit_bytes,
        )


def _pid(server: Server) -> int:
    return 1000 + server.lives + 100 * (sum(server.name.encode()) % 50)
