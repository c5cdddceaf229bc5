"""Who listens on which port: one look at /proc for all targets, and one reading of memory in a round."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from brimline import listeners
from brimline.listeners import MAX_AGE, Listeners
from brimline.processes import ProcessFamily, families_on
from brimline.readings import ProcessReading
from proc_tree import LISTEN, socket_line, write_process, write_sockets


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def two_servers(proc: Path) -> None:
    """Process 10 with a child listens on 8000, process 20 on 8001."""
    write_sockets(proc, socket_line("127.0.0.1", 8000, 1), socket_line("0.0.0.0", 8001, 2, LISTEN))
    write_process(proc, 10, command=b"vllm\0", inodes=(1,))
    write_process(proc, 11, parent=10)
    write_process(proc, 20, command=b"sglang\0", inodes=(2,))
    for pid, size in ((10, 100), (11, 20), (20, 7)):
        (proc / str(pid) / "status").write_text(f"RssAnon:\t{size} kB\n")


@pytest.fixture(name="looks")
def _looks(monkeypatch: pytest.MonkeyPatch) -> list[frozenset[int]]:
    """The ports of each look."""
    seen: list[frozenset[int]] = []

    def counted(ports: frozenset[int], known: dict[int, int], proc: Path) -> dict[int, ProcessFamily]:
        seen.append(ports)
        return families_on(ports, known, proc)

    monkeypatch.setattr(listeners, "families_on", counted)
    return seen


def test_one_look_serves_all_targets(tmp_path: Path, looks: list[frozenset[int]]) -> None:
    two_servers(tmp_path)
    clock = Clock()
    found = Listeners(clock, proc=tmp_path)
    for port in (8000, 8001, 8002):
        found.add(port)

    async def read() -> list[ProcessReading | None]:
        return await asyncio.gather(*(found.read(port, since=clock.now) for port in (8000, 8001, 8002)))

    readings = asyncio.run(read())

    assert readings == [
        ProcessReading(pids=frozenset({10, 11}), host_memory_used_bytes=120 * 1024),
        ProcessReading(pids=frozenset({20}), host_memory_used_bytes=7 * 1024),
        None,
    ]
    assert looks == [frozenset({8000, 8001, 8002})]


def test_a_round_never_gets_memory_from_before_it(tmp_path: Path) -> None:
    two_servers(tmp_path)
    clock = Clock()
    found = Listeners(clock, proc=tmp_path)

    async def used(since: float) -> int | None:
        reading = await found.read(8001, since=since)
        return None if reading is None else reading.host_memory_used_bytes

    async def rounds() -> list[int | None]:
        sizes = [await used(100.0)]
        (tmp_path / "20" / "status").write_text("RssAnon:\t9 kB\n")
        sizes.append(await used(100.0))  # of the same round
        clock.now = 101.0
        sizes.append(await used(101.0))
        return sizes

    assert asyncio.run(rounds()) == [7 * 1024, 7 * 1024, 9 * 1024]


def test_who_listens_is_looked_at_again_in_time_and_for_a_new_port(
    tmp_path: Path, looks: list[frozenset[int]]
) -> None:
    two_servers(tmp_path)
    clock = Clock()
    found = Listeners(clock, proc=tmp_path)

    async def rounds() -> None:
        await found.read(8000, since=clock.now)
        clock.now += MAX_AGE / 2
        await found.read(8000, since=clock.now)
        await found.read(8001, since=clock.now)
        found.keep({8001})
        clock.now += MAX_AGE
        await found.read(8001, since=clock.now)

    asyncio.run(rounds())

    assert looks == [frozenset({8000}), frozenset({8000, 8001}), frozenset({8001})]


def test_a_listener_that_is_known_and_alive_is_not_searched_for(tmp_path: Path) -> None:
    two_servers(tmp_path)
    before = families_on({8000, 8001}, {}, tmp_path)
    write_sockets(tmp_path, socket_line("127.0.0.1", 8001, 2))  # 8000 is closed; its process lives

    after = families_on({8000, 8001}, {8000: 10}, tmp_path)

    assert (
        after
        == before
        == {
            8000: ProcessFamily(10, frozenset({10, 11})),
            8001: ProcessFamily(20, frozenset({20})),
        }
    )
