"""The page scanner against the client library's parser, on pages of one to many engines."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from brimline.engines.vllm import ADAPTER
from brimline.exposition_text import scan
from vllm_pages import page, small_page

PAGES: dict[str, Callable[[], bytes]] = {
    "24 KB, an older engine": small_page,
    "58 KB, one engine": page,
    "206 KB, 5 ranks": lambda: page(5),
    "2 MB, 52 ranks": lambda: page(52),
}


def cpu_seconds_of(call: Callable[[], object]) -> float:
    """CPU time of one call."""
    begun = time.process_time()
    call()
    return time.process_time() - begun


def parse(text: str) -> list[Sample]:
    """All samples, by the client library."""
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def client_seconds(rounds: int = 9) -> float:
    """Median CPU seconds in which the client library parses the page of one engine."""
    text = page().decode()
    return statistics.median(cpu_seconds_of(lambda: parse(text)) for _ in range(rounds))


def rows() -> Iterator[tuple[str, ...]]:
    """For each page: the ratios, and the medians that they are of, measured by turns.

    Both with the sums of histograms alone, as the exporter reads unless told otherwise, and with all buckets.
    """
    wanted = {"sums": ADAPTER.wanted_without_buckets, "full": ADAPTER.wanted}
    yield (
        "page",
        "scanner ÷ client parser (bar 0.05)",
        "the same, with all buckets",
        "scanner",
        "with all buckets",
        "client parser",
        "samples read",
        "of",
    )
    for name, make in PAGES.items():
        body = make()
        text = body.decode()
        ours: dict[str, list[float]] = {"sums": [], "full": []}
        theirs = []
        for _ in range(max(7, min(31, 3_000_000 // len(body)))):
            theirs.append(cpu_seconds_of(functools.partial(parse, text)))
            for kind, taken in ours.items():
                read = functools.partial(scan, body, wanted[kind])
                taken += [cpu_seconds_of(read) for _ in range(5)]
        sums, full = (statistics.median(ours[kind]) for kind in ("sums", "full"))
        parser = statistics.median(theirs)
        counts = [sum(map(len, scan(body, wanted[kind]).samples.values())) for kind in ("sums", "full")]
        yield (
            name,
            f"{sums / parser:.3f}",
            f"{full / parser:.3f}",
            f"{sums * 1e3:.2f} ms",
            f"{full * 1e3:.2f} ms",
            f"{parser * 1e3:.2f} ms",
            f"{counts[0]}, {counts[1]}",
            str(len(parse(text))),
        )
