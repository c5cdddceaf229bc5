"""CPU of fetching a day of an experiment from a real Prometheus: 2 variants of 4 servers, every 15 s."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import ab_fleet  # noqa: E402
from brimline.ab.experiment import Experiment, parse  # noqa: E402
from brimline.ab.fetch import observe, open_source  # noqa: E402
from brimline.ab.kept import Kept  # noqa: E402
from brimline.ab.observations import wanted  # noqa: E402
from prometheus_server import running_prometheus, tool  # noqa: E402

HOURS = 24
END = ab_fleet.START + HOURS * 3600
EXPERIMENT = ab_fleet.EXPERIMENT.replace("2025-11-24T20:00", "2025-11-25T16:00")
# As many buckets as vLLM's histograms of latencies have.
BOUNDS = {f"{0.001 * 1.6**n:.4g}": n / 20 for n in range(1, 20)} | {"+Inf": 1.0}
SERVERS = [
    ab_fleet.Server(f"{variant}-{n}", f"10.0.{n}.{m}:10778", variant, f"GPU-{variant}-{n}", 1.0 + n + 3 * m)
    for m, variant in enumerate(("short", "long"))
    for n in range(4)
]


def lines() -> Iterator[str]:
    """A day of all series as OpenMetrics."""
    texts: dict[tuple[str, str], str] = {}
    ab_fleet.BUCKETS.clear()
    ab_fleet.BUCKETS.update(BOUNDS)
    for server in SERVERS:
        scraped = {"instance": server.instance, "job": "brimline"}
        time_of_scrape = ab_fleet.START - 600 + server.offset
        while time_of_scrape < END:
            for name, labels, value in ab_fleet.page(server, time_of_scrape):
                key = (server.name, name + "".join(labels.values()))
                if key not in texts:
                    texts[key] = f"brimline_{name}{{{ab_fleet.labels_text({**labels, **scraped})}}}"
                yield f"{texts[key]} {value!r} {time_of_scrape:.3f}\n"
            time_of_scrape += ab_fleet.INTERVAL
    yield "# EOF\n"


def main() -> None:
    experiment = parse(EXPERIMENT, now=2e9)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dump = folder / "day.om"
        with open(dump, "w") as file:
            file.writelines(lines())
        subprocess.run(
            [
                tool("promtool"),
                "tsdb",
                "create-blocks-from",
                "openmetrics",
                "-q",
                str(dump),
                str(folder / "tsdb"),
            ],
            check=True,
        )
        with running_prometheus(folder, [], flags=["--storage.tsdb.retention.time=100y"]) as prometheus:
            about = f'{EXPERIMENT}prometheus: {{url: "{prometheus.url}"}}'
            measure("Prometheus", parse(about, now=2e9), None)
            measure("Prometheus", parse(about, now=2e9), None)
            measure_watch(parse(about, now=2e9))
        measure(f"a dump of {dump.stat().st_size >> 20} MiB", experiment, dump)


def measure_watch(experiment: Experiment) -> None:
    """The look after a block that follows another look."""
    kept = Kept()

    async def look(end: float) -> None:
        planned = replace(experiment, end=end)
        async with open_source(planned) as source:
            await kept.observe(planned, source, now=0.0)

    asyncio.run(look(END - experiment.block_length))
    cpu, wall = time.process_time(), time.monotonic()
    asyncio.run(look(END))
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    print(
        f"the next look of a watch, a block later: {cpu:.2f} s of CPU, {wall:.2f} s in all; "
        f"{kept.bytes / 2**20:.0f} MiB kept"
    )


def measure(where: str, experiment: Experiment, saved: Path | None) -> None:
    asked = wanted(experiment)

    async def fetch() -> int:
        async with open_source(experiment, saved) as source:
            found = await observe(experiment, source)
        return sum(
            len(series.times)
            for arm in found.arms.values()
            for each in arm.replicas
            for series in (*each.series.counters.values(), *each.series.gauges.values())
        )

    cpu, wall = time.process_time(), time.monotonic()
    samples = asyncio.run(fetch())
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    print(
        f"{HOURS} h of {len(asked.counters)} counters, {len(asked.gauges)} gauges and "
        f"{len(asked.histograms)} histograms of {len(SERVERS)} servers, {samples} samples, from {where}: "
        f"{cpu:.2f} s of CPU, {wall:.2f} s in all"
    )


if __name__ == "__main__":
    main()
