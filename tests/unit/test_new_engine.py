"""Adding an engine is one file, one line in ENGINES and one capture: a toy one goes all the way."""

from __future__ import annotations

import asyncio
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import brimline.engines
from brimline.cli import cli
from brimline.collect import Collector
from brimline.config import parse
from brimline.discovery import usual_ports
from brimline.engines import ENGINES, engines_on
from brimline.engines.adapter import Adapter, Endpoint, Evidence
from brimline.engines.families import (
    START_TIME,
    HistogramOf,
    Name,
    Quantity,
    clean_label,
    counter,
    engine_reading,
    gauge,
    key_by,
    read_table,
    wanted_names,
)
from brimline.exposition import render
from brimline.readings import EngineReading, Snapshot
from fake_servers import FakeServer, answer, json_answer

ROOT = Path(__file__).parent.parent.parent

# --- the one file

TABLE: dict[str, Quantity] = {
    "requests_running": gauge("toy_running"),
    "generation_tokens_total": counter(
        Name("toy_generated_tokens_total", "2.0"), Name("toy_tokens_total", "", "1.9")
    ),
    "kv_cache_usage_ratio": gauge("toy_cache_fill", ratio=True, note="of its fullest shard"),
    "time_to_first_token_seconds": HistogramOf(("toy_first_token_seconds",)),
}


def read(evidence: Evidence) -> EngineReading:
    """What a toy server says of itself."""
    version = evidence.documents.get("/toy/info", {}).get("version")
    table = read_table(evidence.page, TABLE, key_by(("model",), ("shard",)))
    return engine_reading(
        "toy", evidence.page, table, engine_version=clean_label(version) if version else None
    )


TOY = Adapter(
    name="toy",
    title="Toy",
    versions="1.0 to 2.0",
    prefixes=("toy_",),
    table=TABLE,
    wanted=wanted_names(TABLE, START_TIME),
    metrics_paths=("/toy/metrics",),
    usual_ports=(4711,),
    endpoints=(Endpoint("/toy/info"),),
    read=read,
)

PAGE = """\
# TYPE toy_running gauge
toy_running{model="m",shard="0"} 2
toy_generated_tokens_total{model="m",shard="0"} 77
toy_cache_fill{model="m",shard="0"} 0.25
toy_first_token_seconds_bucket{model="m",shard="0",le="+Inf"} 4
toy_first_token_seconds_sum{model="m",shard="0"} 1.5
toy_first_token_seconds_count{model="m",shard="0"} 4
"""


@pytest.fixture(autouse=True)
def _the_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "toy", TOY)


@pytest.fixture(name="capture")
def _the_one_capture(tmp_path: Path) -> Path:
    folder = tmp_path / "toy-2.0"
    folder.mkdir()
    (folder / "metrics.prom").write_text(PAGE)
    (folder / "toy_info.json").write_text(json.dumps({"version": "2.0"}))
    return folder


def snapshot_of(configuration: str) -> Snapshot:
    async def scenario() -> Snapshot:
        collector = Collector(parse(configuration))
        await collector.start()
        try:
            return await collector.snapshot()
        finally:
            await collector.close()

    return asyncio.run(scenario())


@pytest.mark.parametrize("engine", ["auto", "toy"])
def test_the_configuration_detection_and_a_round_know_it(engine: str) -> None:
    routes = {"/toy/metrics": answer(PAGE), "/toy/info": json_answer({"version": "2.0"})}
    with FakeServer(routes) as server:
        snapshot = snapshot_of(
            f"gpu: {{backend: none}}\ntargets: [{{name: t, url: '{server.url}', engine: {engine}}}]"
        )
        page, _ = render(snapshot)

    [target] = snapshot.targets
    assert (target.up, target.problems) == (True, ())
    assert target.reading is not None
    assert (target.reading.engine, target.reading.engine_version) == ("toy", "2.0")
    assert 'brimline_generation_tokens_total{model="m",rank="0",target="t"} 77.0' in page.decode()


def test_its_page_is_told_from_others_and_found_locally() -> None:
    assert engines_on(PAGE.encode()) == ["toy"]
    assert 4711 in usual_ports()


def test_read_prints_its_capture(capture: Path) -> None:
    done = CliRunner().invoke(cli, ["read", str(capture), "--json"])

    assert done.exit_code == 0, done.output
    [engine] = json.loads(done.output)["engines"]
    assert (engine["engine"], engine["engine_version"]) == ("toy", "2.0")
    assert engine["models"][0]["generation_tokens_total"] == 77


def test_the_document_of_engines_has_its_section_and_its_column() -> None:
    document = runpy.run_path(str(ROOT / "tools/generate_docs.py"))["engines"]()

    assert "| [Toy](#toy) | 1.0 to 2.0 | **not tested live** | 4711 |" in document
    names = "`toy_generated_tokens_total` (since 2.0), `toy_tokens_total` (up to 1.9)"
    assert f"| `generation_tokens_total` | {names} |" in document
    assert "| `kv_cache_usage_ratio` | `toy_cache_fill`; of its fullest shard |" in document
    assert "- Asked: `/toy/metrics`, `/toy/info` at each start." in document


def test_nothing_else_names_the_engines() -> None:
    """A further place with a list of names would have to be found and edited."""
    sources = Path(brimline.engines.__file__).parent.parent
    names = {f'"{name}"' for name in ENGINES if name != "toy"}
    listing: dict[str, int] = {}
    for path in sources.rglob("*.py"):
        text = path.read_text()
        named: Any = {name for name in names if name in text}
        if len(named) > len(names) // 2:
            listing[path.relative_to(sources).as_posix()] = len(named)

    assert listing == {"engines/__init__.py": len(names)}
