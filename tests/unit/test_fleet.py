"""The targets of all sources, put in force at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from brimline import fleet as fleet_module
from brimline import server
from brimline.collect import Collector
from brimline.config import Config, ConfigFile, GpuConfig, Target, read_config
from brimline.fleet import Fleet
from brimline.readings import DiscoveryReading
from brimline.server import Exporter
from brimline.targets_files import FoundTargets, TargetsFiles

PATIENCE = 60.0
OWN = Target(name="own", url="http://127.0.0.1:9")
CONFIG = Config(targets=[OWN], targets_files=["*.yaml"], gpu=GpuConfig(backend="none"))


def write(path: Path, *names: str) -> None:
    entries = ", ".join(f"{{name: {name}, url: 'http://127.0.0.1:9'}}" for name in names)
    path.write_text(f"targets: [{entries}]\n")


class Pods:
    """Pods that tests set, in place of those of a cluster."""

    def __init__(self) -> None:
        self.found: list[Target] = []
        self.changed: Callable[[], None] = lambda: None
        self.is_known = True

    def start(self, changed: Callable[[], None]) -> None:
        self.changed = changed

    def stop(self) -> None:
        pass

    def targets(self) -> tuple[Target, ...]:
        return tuple(self.found)

    def reading(self) -> DiscoveryReading:
        return DiscoveryReading(source="kubernetes", up=True, targets=len(self.found))


@asynccontextmanager
async def running(folder: Path, pods: Pods | None = None) -> AsyncIterator[tuple[Fleet, Collector]]:
    collector = Collector(CONFIG)
    await collector.start()
    fleet = Fleet(collector, CONFIG, path=folder / "brimline.yaml", pods=pods)  # type: ignore[arg-type]
    await fleet.start()
    try:
        yield fleet, collector
    finally:
        fleet.close()
        await collector.close()


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(PATIENCE):
            await scenario()

    asyncio.run(limited())


def names(collector: Collector) -> list[str]:
    return [target.name for target in collector.config.targets]


async def soon(check: Callable[[], object]) -> None:
    while not check():  # noqa: ASYNC110 - it is about what other threads have done
        await asyncio.sleep(0.01)


def test_a_reload_puts_the_configuration_and_its_files_in_force_at_once(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "a1")

    async def scenario() -> None:
        async with running(tmp_path) as (fleet, collector):
            assert names(collector) == ["own", "a1"]
            write(tmp_path / "a.yaml", "a2")
            seen = set()
            settling = asyncio.ensure_future(
                fleet.settle(msgspec.structs.replace(CONFIG, targets=[Target(name="new", url=OWN.url)]), {})
            )
            while not settling.done():
                seen.add(tuple(names(collector)))
                await asyncio.sleep(0)
            seen.add(tuple(names(collector)))
            assert seen == {("own", "a1"), ("new", "a2")}
            await fleet.settle(Config(targets=[OWN], gpu=CONFIG.gpu), {})
            assert names(collector) == ["own"]
            assert fleet.readings() == ()

    run(scenario)


def test_targets_that_count_twice_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.yaml", "a1", "a2")

    async def scenario() -> None:
        async with running(tmp_path) as (fleet, _):
            await fleet.settle()
            write(tmp_path / "a.yaml", "a1", "a2", "a3")
            await fleet.settle()

    with caplog.at_level("WARNING"):
        run(scenario)

    place = f"{tmp_path}/a.yaml:1: "
    said = "have the url of own: sums count that server more than once; keep one"
    assert [line for line in caplog.messages if "the url of" in line] == [
        f"targets detail={f'{place}a1, a2 {said}'!r}",
        f"targets detail={f'{place}a1, a2, a3 {said}'!r}",
    ]


def test_a_file_system_that_hangs_keeps_the_targets_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.yaml", "a1")
    hang = threading.Event()
    plain = TargetsFiles.read
    looks = []

    def read(self: TargetsFiles, *arguments: Any) -> FoundTargets:
        looks.append(1)
        hang.wait(PATIENCE)
        return plain(self, *arguments)

    async def scenario() -> None:
        async with running(tmp_path) as (fleet, collector):
            monkeypatch.setattr(fleet_module, "LOOK_PATIENCE_SECONDS", 0.05)
            monkeypatch.setattr(TargetsFiles, "read", read)  # a file system cannot be made to hang here
            write(tmp_path / "a.yaml", "a2")
            await fleet.settle()
            await fleet.settle()
            snapshot = await collector.snapshot(0.1)
            assert names(collector) == ["own", "a1"]
            assert not snapshot.reload_successful
            [reading] = fleet.readings()
            assert not reading.up
            assert "a file system may hang" in (reading.problem or "")
            assert len(looks) == 1
            hang.set()
            await soon(lambda: fleet.problem is None)
            await fleet.settle()
            assert names(collector) == ["own", "a2"]
            assert (await collector.snapshot(0.1)).reload_successful

    run(scenario)


def test_pods_are_put_in_force_as_they_change_and_give_way_to_other_targets(tmp_path: Path) -> None:
    pods = Pods()
    pods.found = [Target(name="llm/a", url=OWN.url), Target(name="own", url="http://10.0.0.1:1")]

    async def scenario() -> None:
        async with running(tmp_path, pods) as (fleet, collector):
            assert names(collector) == ["own", "llm/a"]
            assert collector.config.targets[0] == OWN
            pods.found = [Target(name="llm/b", url=OWN.url)]
            await asyncio.to_thread(pods.changed)
            await soon(lambda: names(collector) == ["own", "llm/b"])
            assert [reading.source for reading in fleet.readings()] == ["files", "kubernetes"]

    run(scenario)


def test_files_of_the_configuration_before_come_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.yaml", "a1")
    go_on = threading.Event()
    plain = TargetsFiles.read

    def read(self: TargetsFiles, *arguments: Any) -> FoundTargets:
        go_on.wait(PATIENCE)
        return plain(self, *arguments)

    async def scenario() -> None:
        async with running(tmp_path) as (fleet, collector):
            monkeypatch.setattr(TargetsFiles, "read", read)  # so that a look is in flight
            looking = asyncio.ensure_future(fleet._look(CONFIG, {}))
            await asyncio.sleep(0)
            await fleet.settle(Config(targets=[OWN], gpu=CONFIG.gpu), {})
            go_on.set()
            await looking
            fleet.apply()
            assert names(collector) == ["own"]
            await fleet.settle(CONFIG, {})
            assert names(collector) == ["own", "a1"]

    run(scenario)


def test_a_configuration_whose_file_system_hangs_is_refused_and_read_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "brimline.yaml"
    path.write_text("targets: []\n")
    go_on = threading.Event()

    def read(path: Path) -> ConfigFile:
        go_on.wait(PATIENCE)
        return read_config(path)

    async def scenario() -> None:
        async with running(tmp_path) as (fleet, collector):
            exporter = Exporter(collector, path, fleet=fleet)
            path.write_text("targets: [{name: new, url: 'http://127.0.0.1:9'}]\n")
            monkeypatch.setattr(server, "read_config", read)
            monkeypatch.setattr(server, "CONFIG_PATIENCE_SECONDS", 0.05)
            for _ in range(2):
                assert await exporter.reload() == (
                    f"{path}: has not been read yet; look whether its file system hangs"
                )
                assert names(collector) == ["own"]
            assert [thread.name for thread in threading.enumerate()].count("brimline-config") == 1
            go_on.set()
            monkeypatch.setattr(server, "CONFIG_PATIENCE_SECONDS", PATIENCE)
            assert await exporter.reload() is None
            assert names(collector) == ["new"]

    run(scenario)


def test_the_newest_of_two_reloads_is_in_force_whichever_took_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.yaml", "a1")
    path = tmp_path / "brimline.yaml"
    text = "gpu: {{backend: none}}\ntargets: [{{name: {name}, url: 'http://127.0.0.1:9'}}]\n{files}"
    path.write_text(text.format(name="old", files="targets_files: ['*.d.yaml', a.yaml]\n"))
    go_on = threading.Event()
    plain = TargetsFiles.read
    looks = []

    def read(self: TargetsFiles, *arguments: Any) -> FoundTargets:
        looks.append(1)
        go_on.wait(PATIENCE)
        return plain(self, *arguments)

    async def scenario() -> None:
        async with running(tmp_path) as (fleet, collector):
            exporter = Exporter(collector, path, fleet=fleet)
            monkeypatch.setattr(TargetsFiles, "read", read)  # so that the first takes longer
            first = asyncio.ensure_future(exporter.reload())
            await soon(lambda: looks)
            path.write_text(text.format(name="new", files=""))
            others = [asyncio.ensure_future(exporter.reload()) for _ in range(5)]
            await asyncio.sleep(0)
            others[0].cancel()  # a client that leaves takes the reload from nobody
            asyncio.get_running_loop().call_later(0.05, go_on.set)
            assert await asyncio.gather(first, *others[1:]) == [None] * 5
            assert names(collector) == ["new"]

    run(scenario)
