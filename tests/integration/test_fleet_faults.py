"""A thousand targets of which a fifth is broken, and thousands of scrapes while everything changes."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fake_servers import dead_port
from faulty_fleet import Ports, running_fleet
from serving import Serving, serving, take, write_config

TIMEOUT = 5.0  # the default
SCRAPES, WARM_UP = 5000, 2000
MIB = 1 << 20


@pytest.fixture(name="fleet", scope="module")
def _fleet() -> Iterator[Ports]:
    with running_fleet() as ports:
        yield ports


@pytest.mark.long
def test_of_a_thousand_targets_the_broken_ones_cost_no_more_than_the_timeout(
    tmp_path: Path, fleet: Ports, record_property: Callable[[str, object], None]
) -> None:
    targets: dict[str, object] = {}
    took, ups = [], []
    with dead_port() as dead:
        for number in range(1000):
            kind = {0: "dead", 1: "hanging"}.get(number % 10, "well")
            port = {"dead": dead, "hanging": fleet.hanging, "well": fleet.well}[kind]
            host = "127.0.0.1" if kind == "dead" else f"127.1.{number // 250}.{number % 250 + 1}"
            targets[f"{kind}-{number}"] = {"url": f"http://{host}:{port}"}
            if kind == "well":  # a busy machine may need more time than that for so many
                targets[f"{kind}-{number}"] = {"url": f"http://{host}:{port}", "timeout": "100s"}
        with serving(tmp_path, targets, scrape_timeout=f"{TIMEOUT:g}s") as exporter:
            for _ in range(2):
                begun = time.monotonic()
                got = exporter.metrics()
                took.append(time.monotonic() - begun)
                up = got.values("brimline_target_up")
                ups.append(sum(up.values()))

    record_property("seconds", ", ".join(f"{s:.2f} ({up:.0f} up)" for s, up in zip(took, ups, strict=True)))
    assert max(took) < TIMEOUT + 60  # half a second is the bar, and the rest for a busy machine
    assert {name.partition("-")[0] for name, value in up.items() if value} == {"well"}
    assert ups == [800, 800]
    # Of those that are down: a busy machine may be late with what a server says of itself beside its page.
    whys = Counter(reason for name, reason in got.problems().items() if not up[name])
    assert whys == {"connection": 100, "timeout": 100}
    assert set(got.values("brimline_generation_tokens_total")) == {n for n, value in up.items() if value}


def _rss_bytes(exporter: Serving) -> int:
    match = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{exporter.process.pid}/status").read_text(), re.M)
    assert match is not None
    return int(match.group(1)) << 10


@pytest.mark.long
def test_five_thousand_scrapes_of_servers_that_change_leave_nothing_behind(
    tmp_path: Path, fleet: Ports, record_property: Callable[[str, object], None]
) -> None:
    """Other models, restarts, failures of each kind and reloads, all the time."""

    def targets(turn: int) -> dict[str, object]:
        changing = {f"changing-{n}": f"http://127.2.0.{n + 1}:{fleet.changing}" for n in range(2)}
        return {**changing, f"new-{turn}": f"http://127.3.0.1:{fleet.well}"}

    samples = []
    with serving(tmp_path, targets(0), scrape_timeout="30s") as exporter:
        connection = exporter.connection()
        for scrape in range(SCRAPES):
            if scrape % 50 == 0:
                if scrape % 150 == 100:
                    (tmp_path / "brimline.yaml").write_text(f"targets: [{{name: bad-{scrape}}}]\n")
                else:
                    write_config(tmp_path, targets(scrape), scrape_timeout="30s")
                exporter.reload()
            connection.request("GET", "/metrics")
            got = take(connection)
            assert got.status == 200
            if scrape >= WARM_UP and scrape % 50 == 49:
                samples.append(_rss_bytes(exporter))
        connection.close()

    # The lowest of the first and of the last few: a scrape's own page comes and goes.
    growth = min(samples[-5:]) - min(samples[:5])
    record_property("growth", f"{growth / MIB:.2f} MiB of {samples[-1] / MIB:.1f} MiB")
    assert growth < MIB
    assert b"model-" in got.body
