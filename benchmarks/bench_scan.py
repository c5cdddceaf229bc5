"""The page scanner against the client library's parser, on pages of one to many engines.

Prints medians of CPU time and their ratio; ratios of one run are what can be compared between machines.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from brimline.engines.vllm import WANTED
from brimline.exposition_text import scan

CAPTURE = Path(__file__).parent.parent / "tests/captures/vllm-0.32.0-cpu/metrics.prom"


def median_cpu(call: Callable[[], object], rounds: int) -> float:
    """Median CPU seconds of a call."""
    taken = []
    for _ in range(rounds):
        begun = time.process_time()
        call()
        taken.append(time.process_time() - begun)
    return statistics.median(taken)


def page_of(engines: int) -> bytes:
    """The captured page with its engine's rows repeated under further ranks."""
    one = CAPTURE.read_text()
    lines = [line for line in one.splitlines() if not line.startswith("#")]
    more = [line.replace('engine="0"', f'engine="{rank}"') for rank in range(1, engines) for line in lines]
    return (one + "\n".join(more) + ("\n" if more else "")).encode()


def main() -> None:
    print(f"{'page':>10} {'scanner':>10} {'client':>10} {'ratio':>7}")
    for engines in (1, 4, 40):
        page = page_of(engines)
        text = page.decode()
        rounds = max(5, 60 // engines)
        ours = median_cpu(lambda page=page: scan(page, WANTED), rounds)  # type: ignore[misc]
        theirs = median_cpu(
            lambda text=text: [list(f.samples) for f in text_string_to_metric_families(text)],  # type: ignore[misc]
            max(3, rounds // 6),
        )
        print(f"{len(page) / 1024:7.0f} KB {ours * 1e3:7.2f} ms {theirs * 1e3:7.2f} ms {ours / theirs:7.3f}")


if __name__ == "__main__":
    main()
