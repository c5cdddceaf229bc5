"""What must not become slow: ratios within one run, of CPU time, of the best of several tries."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

import brimline.demo
from brimline.collect import Collector
from brimline.config import parse
from brimline.engines.vllm import ADAPTER
from brimline.exposition import Exposition, render
from brimline.exposition_text import scan
from brimline.readings import Snapshot
from page_server import address, running_pages
from prometheus_server import free_port
from vllm_pages import page

MODEL = Path(brimline.demo.__file__).parent / "llama-3.1-8b"


def best(tries: int, call: Callable[[], object]) -> float:
    """Least CPU seconds of a call."""
    taken = []
    for _ in range(tries):
        begun = time.process_time()
        call()
        taken.append(time.process_time() - begun)
    return min(taken)


def test_the_scanner_takes_an_eighth_of_the_client_librarys_time_at_most() -> None:
    body = page()
    text = body.decode()

    ours = best(15, lambda: scan(body, ADAPTER.wanted))
    theirs = best(5, lambda: [list(family.samples) for family in text_string_to_metric_families(text)])

    assert ours <= 0.12 * theirs


async def cheapest(config: str, scrapes: int, write: Callable[[Snapshot], object]) -> tuple[float, Snapshot]:
    """CPU seconds of the cheapest of so many scrapes, and what the last one read."""
    collector = Collector(parse(config))
    await collector.start()
    try:
        taken = []
        for _ in range(scrapes):
            begun = time.process_time()
            snapshot = await collector.snapshot()
            write(snapshot)
            taken.append(time.process_time() - begun)
            assert all(target.up for target in snapshot.targets)
        return min(taken), snapshot
    finally:
        await collector.close()


def test_a_scrape_of_one_target_takes_a_third_of_the_client_librarys_time_for_its_page_at_most() -> None:
    port = free_port()
    text = page().decode()

    config = (
        "gpu: {backend: none}\n"
        f"targets: [{{name: chat, url: 'http://{address(0)}:{port}', model: {MODEL}, "
        "launch: {max_model_len: 2048}}]"
    )
    exposition = Exposition()

    with running_pages(port):
        ours, snapshot = asyncio.run(cheapest(config, 60, lambda seen: b"".join(exposition.pieces(seen)[0])))
    assert snapshot.targets[0].footprint is not None
    theirs = best(5, lambda: [list(family.samples) for family in text_string_to_metric_families(text)])

    assert ours <= theirs / 3


def test_a_target_costs_the_same_among_three_hundred_as_among_thirty() -> None:
    port = free_port()

    async def seconds_per_target(targets: int) -> float:
        lines = [
            f"  - {{name: chat-{number}, url: 'http://{address(number)}:{port}'}}"
            for number in range(targets)
        ]
        config = "\n".join(["scrape_timeout: 120s", "gpu: {backend: none}", "targets:", *lines])
        taken, _ = await cheapest(config, 6, render)
        return taken / targets

    with running_pages(port):
        few, many = (asyncio.run(seconds_per_target(targets)) for targets in (30, 300))

    assert many <= 2 * few
