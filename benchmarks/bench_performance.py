"""What the exporter costs: its scanner, a scrape of 1 to 1,000 targets, memory, start, and its neighbours.

Prints tables; `--write` puts them into docs/performance.md, too. Ratios of one run are what can be compared
between machines; times are medians of CPU time, of the best of several blocks, as others use the machine too.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import fleet  # noqa: E402
import neighbours  # noqa: E402
import scanning  # noqa: E402

DOCUMENT = ROOT / "docs/performance.md"
BEGIN, END = "<!-- begin: printed by `make bench` -->\n", "<!-- end -->\n"


def table(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Rows as Markdown, the first being the head."""
    for index, row in enumerate(rows):
        yield f"| {' | '.join(row)} |"
        if index == 0:
            yield f"|{'---|' * len(row)}"


def cpu_model() -> str:
    """The processor's own name."""
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found.group(1) if found else platform.machine()


def sections() -> Iterator[str]:
    """The tables, line by line, as they are measured."""
    yield f"{cpu_model()}, {os.cpu_count()} cores, Python {platform.python_version()}."
    yield ""
    yield "**Scanning a page.** Both of what a `histograms: sums` and a `full` target reads of it."
    yield ""
    yield from table(scanning.rows())
    yield ""
    measured = []
    for targets, gpus, blocks, scrapes in (
        (1, 0, 40, 40),
        (1, 1, 40, 40),
        (1, 8, 40, 40),
        (100, 8, 6, 20),
        (1000, 8, 4, 6),
    ):
        measured.append(fleet.measure(targets, gpus=gpus, blocks=blocks, scrapes=scrapes))
    yield "**A scrape**, with Prometheus' headers, every target's memory predicted."
    yield ""
    yield from table(fleet.rows_by_targets(measured))
    yield ""
    per_target = {each.targets: each.cpu_seconds / each.targets for each in measured}
    yield f"CPU per target with 1,000 ÷ with 100: **{per_target[1000] / per_target[100]:.2f}** (bar 1.5)."
    yield ""
    yield "**With broken servers.**"
    yield ""
    yield from table(fleet.rows_with_faults())
    yield ""
    yield "**Histograms**, with 100 targets."
    yield ""
    yield from table(fleet.rows_by_histograms())
    yield ""
    yield "**Start and rest.**"
    yield ""
    yield from table(fleet.rows_of_start())
    yield ""
    yield "**Beside it.** What they expose differs, so these are sizes to compare with, not a race."
    yield ""
    one = next(each for each in measured if (each.targets, each.gpus) == (1, 8))
    own = f"{one.cpu_seconds * 1e3:.2f} ms", f"{one.rss_bytes / 2**20:.0f} MiB", str(one.series)
    yield from table(neighbours.rows(own))
    yield ""
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    yield f"Load of the machine at the end (1, 5, 15 minutes): {load}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    arguments = parser.parse_args()
    lines = []
    for line in sections():
        print(line, flush=True)
        lines.append(line)
    if arguments.write:
        before, begin, rest = DOCUMENT.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        assert begin, f"{DOCUMENT} lacks {BEGIN}"
        assert end, f"{DOCUMENT} lacks {END}"
        DOCUMENT.write_text("".join((before, BEGIN, "\n", "\n".join(lines), "\n\n", END, after)))


if __name__ == "__main__":
    main()
