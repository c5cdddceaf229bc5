"""Every query of every board, asked of a real Prometheus as Grafana would ask it."""

from __future__ import annotations

import asyncio
import html
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from brimline_dashboards.boards import BOARDS
from brimline_dashboards.boards.ab import COMPARED, NO_VERDICT, NOT_JUDGED
from brimline_dashboards.interpolation import Chosen, Times, VariableError, in_query
from brimline_dashboards.panels import board_json
from brimline_dashboards.preview.asking import Prometheus
from brimline_dashboards.preview.frames import frames, transformed
from brimline_dashboards.preview.page import page
from brimline_dashboards.preview.shown import (
    Answer,
    ShownPanel,
    Window,
    answers,
    chosen_variables,
    legend_labels,
    rows,
)
from browser import CHROMIUM, opened
from waiting import eventually
from watched_fleet import (
    BASELINE,
    BROKEN_GPU,
    CANDIDATE,
    DCGM_GPU,
    EXPERIMENT,
    GONE,
    IDLE,
    JUDGED,
    watched_fleet,
)


@dataclass(frozen=True)
class Asked:
    """A panel with what its queries gave."""

    panel: ShownPanel
    answers: list[Answer]


@dataclass(frozen=True)
class Fleet:
    """Answers to all boards, and the Prometheus that gave them."""

    prometheus: Prometheus
    window: Window
    boards: dict[str, dict[str, Any]]
    chosen: dict[str, dict[str, Chosen]]
    panels: dict[str, list[Asked]]

    def panel(self, uid: str, title: str) -> Asked:
        """The first panel of that title."""
        return next(asked for asked in self.panels[uid] if asked.panel.title == title)

    def values(self, uid: str, title: str, letter: str = "A") -> dict[str, float]:
        """The last values of a query by the names of its series."""
        [answer] = (each for each in self.panel(uid, title).answers if each.letter == letter)
        return {name: series.points[-1][1] for name, series in zip(answer.names, answer.series, strict=True)}

    def table(self, uid: str, title: str) -> list[dict[str, Any]]:
        """The rows of a table as it is shown."""
        asked = self.panel(uid, title)
        made = frames({each.letter: each.series for each in asked.answers})
        return transformed(made, asked.panel.json["transformations"])


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with watched_fleet(tmp_path_factory.mktemp("fleet")) as running:
        # The restarted server has ended requests again, and the rules have seen it.
        ended = f'rate(brimline_request_e2e_latency_seconds_count{{target="{BASELINE}"}}[4s]) > 0'
        eventually(lambda: running.query(ended))
        eventually(lambda: running.query(f'target:memory_headroom:bytes{{target="{BASELINE}"}}'))
        time.sleep(2)
        prometheus = Prometheus(running.url)
        window = Window(time.time(), Times(range_seconds=60, step_seconds=2, scrape_interval_seconds=1))
        boards = {uid: board_json(board()) for uid, board in BOARDS.items()}
        wanted = {"target": BASELINE}
        chosen = {
            uid: chosen_variables(board, prometheus, window, wanted if uid == "brimline-server" else None)
            for uid, board in boards.items()
        }
        panels = {
            uid: [
                Asked(panel, answers(panel, prometheus, window))
                for row in rows(board, chosen[uid])
                for panel in row.panels
            ]
            for uid, board in boards.items()
        }
        yield Fleet(prometheus, window, boards, chosen, panels)


# Queries that find nothing in this fleet, by board, panel and letter, and why.
_NO_WATCH = "brimline ab watch does not run"
_NO_PROCESSES = "a recording of GPUs names no processes"
_NO_OLLAMA = "Ollama alone says what a model takes"
EMPTY = {
    ("brimline-fleet", "Soonest out of memory", "A"): "nothing grows, and nothing has run for an hour",
    ("brimline-server", "Time to exhaustion", "A"): "nothing grows, and nothing has run for an hour",
    ("brimline-server", "Headroom and forecast", "C"): "nothing has run for an hour",
    ("brimline-server", "Main memory of the server", "B"): "the simulated server's cgroup has no limit",
    ("brimline-server", "Main memory of the server", "C"): "nothing is offloaded",
    ("brimline-server", "Main memory of the server", "D"): _NO_OLLAMA,
    ("brimline-server", "Fullest GPU beside its plan", "E"): _NO_OLLAMA,
    ("brimline-server", "Speculative decoding", "A"): "not in use",
    ("brimline-server", "Declared otherwise than live", "A"): "it runs as declared",
    ("brimline-server", "Problems now", "A"): "there is none",
    ("brimline-gpu", "Foreign processes", "A"): _NO_PROCESSES,
    ("brimline-gpu", "By process owner", "A"): _NO_PROCESSES,
    ("brimline-gpu", "In use, peak and total", "D"): "dcgm-exporter's card has no reading of ours",
    ("brimline-gpu", "By component and server", "A"): "dcgm-exporter's card is split by nobody",
    ("brimline-gpu", "By component and server", "B"): "dcgm-exporter's card is split by nobody",
    ("brimline-gpu", "By component and server", "C"): "dcgm-exporter's card is split by nobody",
    ("brimline-gpu", "By component and server", "D"): "dcgm-exporter's card is split by nobody",
    ("brimline-ab", "Verdict", "A"): _NO_WATCH,
    ("brimline-ab", "Sample size", "A"): _NO_WATCH,
    ("brimline-ab", "Time still needed", "A"): _NO_WATCH,
    ("brimline-ab", "Judged", "A"): _NO_WATCH,
    ("brimline-ab", "May it decide a rollout?", "A"): _NO_WATCH,
    ("brimline-ab", "Mean of the last four hours", "B"): "fewer than four quarters of an hour",
    ("brimline-ab", "Mean of the last four hours", "C"): "fewer than four quarters of an hour",
    ("brimline-ab", "Verdict for each metric", "A"): _NO_WATCH,
    ("brimline-ab", "A beside B", "E"): _NO_WATCH,
    ("brimline-ab", "A beside B", "F"): _NO_WATCH,
    ("brimline-ab", "A beside B", "G"): _NO_WATCH,
    ("brimline-exporter", "Lines and series that were dropped", "A"): "all lines are understood",
    ("brimline-exporter", "Lines and series that were dropped", "B"): "no limit is met",
    ("brimline-exporter", "Quantities that are missing", "A"): "none is missing",
}
# Whether main memory shows depends on where the tests run.
# Whether a quarter of an hour ends while they run, on when.
PERHAPS = {("brimline-server", "Main memory of the server", letter) for letter in "AB"} | {
    ("brimline-ab", "Mean of the last four hours", letter) for letter in "AD"
}
EACH = pytest.mark.parametrize("uid", BOARDS)


@EACH
def test_every_query_finds_what_there_is(uid: str, fleet: Fleet) -> None:
    empty: set[tuple[str, str, str]] = set()
    full: set[tuple[str, str, str]] = set()
    for asked in fleet.panels[uid]:
        if BROKEN_GPU not in asked.panel.title and not _is_broken(asked.panel):
            for answer in asked.answers:
                where = (uid, asked.panel.title, answer.letter)
                (full if answer.series else empty).add(where)

    expected = {where for where in EMPTY if where[0] == uid}
    assert empty - expected - PERHAPS == set()
    assert expected - empty - PERHAPS == set()
    assert full


def _is_broken(panel: ShownPanel) -> bool:
    return "gpu" in panel.chosen and panel.chosen["gpu"].values == (BROKEN_GPU,)


def test_a_card_that_cannot_be_read_has_a_row_of_its_own_that_says_so(fleet: Fleet) -> None:
    broken = [asked for asked in fleet.panels["brimline-gpu"] if _is_broken(asked.panel)]

    assert len(broken) == 3
    assert all(not answer.series for asked in broken for answer in asked.answers)
    assert broken[0].panel.json["fieldConfig"]["defaults"]["noValue"] == "This card cannot be read"
    [row] = [row for row in fleet.table("brimline-gpu", "Cards") if row["gpu"] == BROKEN_GPU]
    assert row["Value #G"] == 0
    assert row["Value #B"] is None


@EACH
def test_no_value_is_nan_or_infinite(uid: str, fleet: Fleet) -> None:
    for asked in fleet.panels[uid]:
        for answer in asked.answers:
            values = [value for series in answer.series for _, value in series.points]
            assert all(map(math.isfinite, values)), (asked.panel.title, answer.expr)


@EACH
def test_legends_name_each_series_by_labels_that_it_has(uid: str, fleet: Fleet) -> None:
    for asked in fleet.panels[uid]:
        for answer, target in zip(asked.answers, asked.panel.json.get("targets", []), strict=True):
            for series in answer.series:
                for label in legend_labels(target):
                    assert series.labels.get(label), (asked.panel.title, answer.expr, series.labels)
            # Two exporters watch the idle server under one name, on purpose.
            names = [name for name in answer.names if IDLE not in name]
            if asked.panel.json["type"] != "table":
                assert len(names) == len(set(names)), (asked.panel.title, names)


@EACH
def test_tables_hold_a_row_for_each_thing_and_something_in_each_column(uid: str, fleet: Fleet) -> None:
    for asked in fleet.panels[uid]:
        if asked.panel.json["type"] == "table":
            title = asked.panel.title
            rows_ = fleet.table(uid, title)
            missing = {letter for board, panel, letter in EMPTY if (board, panel) == (uid, title)}
            if not rows_:
                assert missing, title
                continue
            for column in rows_[0]:
                if column.removeprefix("Value #") not in missing:
                    assert any(row[column] not in (None, "") for row in rows_), (title, column)
            assert len({tuple(map(str, row.values())) for row in rows_}) == len(rows_), title


def test_variables_offer_what_there_is(fleet: Fleet) -> None:
    fleet_board, server, ab = (fleet.chosen[f"brimline-{name}"] for name in ("fleet", "server", "ab"))

    assert fleet_board["target"].values == tuple(sorted((BASELINE, CANDIDATE, IDLE, GONE)))
    assert len(fleet_board["instance"].values) == 2
    assert fleet_board["experiment"].values == (EXPERIMENT,)
    assert len(server["instance"].values) == len(server["gpu"].values) == 1
    assert (ab["variant_a"].values, ab["variant_b"].values) == (("ctx-32k",), ("ctx-128k",))
    assert len(fleet.chosen["brimline-gpu"]["gpu"].values) == 5


def test_the_fleet_board_says_who_needs_a_look(fleet: Fleet) -> None:
    def tile(title: str) -> list[float]:
        return list(fleet.values("brimline-fleet", title).values())

    assert tile("Servers down") == [1]
    assert tile("GPUs that cannot be read") == [1]
    assert tile("Out of plan") == [0]
    assert tile("Preempting") == [0]
    table = {(row["target"], row["instance"]): row for row in fleet.table("brimline-fleet", "Servers")}
    assert len(table) == 5
    [gone] = [row for (name, _), row in table.items() if name == GONE]
    assert gone["Value #B"] == 0
    assert [gone[f"Value #{letter}"] for letter in "CDEFGHIJ"] == [None] * 8
    assert gone["Value #K"] == 1
    [baseline] = [row for (name, _), row in table.items() if name == BASELINE]
    assert (baseline["engine"], baseline["experiment"], baseline["variant"]) == (
        "vllm",
        EXPERIMENT,
        "ctx-32k",
    )
    assert baseline["Value #B"] == 1
    # By two ways, on the fullest card: 80 GB in use of what is planned by its bounds.
    assert 70e9 < baseline["Value #D"] < 85.6e9
    assert 70e9 < baseline["Value #E"] < 85.6e9


def test_parts_of_memory_add_up_to_what_is_in_use(fleet: Fleet) -> None:
    title = "Memory by component"
    parts = {
        name: value
        for letter in "ABC"
        for name, value in fleet.values("brimline-server", title, letter).items()
    }
    rest = fleet.values("brimline-server", title, "D")
    [in_use] = fleet.values("brimline-server", title, "E").values()

    # What is negative of the rest is not drawn.
    assert sum(parts.values()) + sum(rest.values()) == pytest.approx(in_use, rel=0.05)
    assert "kv_cache_free (measured)" in parts
    assert "weights (predicted)" in parts


def test_a_restart_is_marked_once(fleet: Fleet) -> None:
    for uid, board in fleet.boards.items():
        for annotation in board["annotations"]["list"]:
            if annotation["name"] == "Restarts":
                expr = in_query(annotation["expr"], fleet.chosen[uid], fleet.window.times)
                started = fleet.prometheus.query_range(expr, fleet.window.start, fleet.window.end, 1)
                times = {each.labels["target"]: {value for _, value in each.points} for each in started}
                assert len(times[BASELINE]) == 2
                assert all(abs(moment / 1000 - fleet.window.end) < 120 for moment in times[BASELINE])
                if CANDIDATE in times:
                    assert len(times[CANDIDATE]) == 1


def test_an_8_bit_cache_is_predicted_and_observed_to_hold_twice_as_much(fleet: Fleet) -> None:
    table = {row["quantity"]: row for row in fleet.table("brimline-ab", "Capacity")}

    capacity = table["KV cache capacity of a rank, tokens"]
    assert capacity["predicted"] == pytest.approx(2, rel=0.01)
    assert capacity["observed"] == pytest.approx(2, rel=0.01)
    token = table["KV cache of a token, bytes"]
    assert (token["Value #C"], token["Value #D"]) == (131072, 65536)
    memory = {row["component"]: row for row in fleet.table("brimline-ab", "Memory by component")}
    assert memory["weights"]["predicted"] == 0
    assert memory["kv_cache"]["off"] == pytest.approx(0, abs=2**30)


def test_settings_that_differ_are_the_treatment(fleet: Fleet) -> None:
    table = {row["setting"]: row for row in fleet.table("brimline-ab", "Settings that differ")}

    assert (table["max_model_len"]["value_a"], table["max_model_len"]["value_b"]) == ("32768", "131072")
    assert table["kv_cache_dtype"]["value_b"] == "fp8"
    assert "gpu_memory_utilization" not in table
    assert "tensor_parallel_size" not in table


def test_a_beside_b_says_what_is_not_judged(fleet: Fleet) -> None:
    rows_ = fleet.table("brimline-ab", "A beside B")

    assert len(rows_) == len(COMPARED)
    assert {row["verdict"] for row in rows_} == {NOT_JUDGED}
    [token] = [row for row in rows_ if row["title"] == "KV cache of a token, KiB"]
    assert (token["Value #B"], token["Value #C"], token["difference"], token["relative"]) == (
        128,
        64,
        -64,
        -0.5,
    )
    by_title = {row["title"]: row for row in rows_}
    for letter in "BC":
        # One server with one GPU on each side; A's restart within the window counts nothing twice.
        of_server = by_title["Generated tokens of a server, tok/s"][f"Value #{letter}"]
        assert by_title["… for each GPU, tok/s"][f"Value #{letter}"] == pytest.approx(of_server)
    for title in ("Verdict", "Verdict for each metric"):
        tile = fleet.panel("brimline-ab", title).panel.json
        assert "brimline ab watch" in tile["fieldConfig"]["defaults"]["noValue"]


def test_a_verdict_stands_on_the_board_in_words(fleet: Fleet) -> None:
    chosen = {**fleet.chosen["brimline-ab"], "experiment": Chosen((JUDGED,))}

    def tile(title: str) -> tuple[dict[str, Any], float]:
        panel = fleet.panel("brimline-ab", title).panel
        [answer] = answers(replace(panel, chosen=chosen), fleet.prometheus, fleet.window)
        [series] = answer.series
        return panel.json["fieldConfig"]["defaults"], series.points[-1][1]

    defaults, number = tile("Verdict")
    assert defaults["mappings"][0]["options"][f"{number:g}"]["text"] == "PASS: no worse"
    defaults, number = tile("May it decide a rollout?")
    assert defaults["mappings"][0]["options"][f"{number:g}"]["text"] == "NO: for looking only"
    assert tile("Sample size")[1] == 8
    assert tile("Time still needed")[1] == 5400
    panel = replace(fleet.panel("brimline-ab", "A beside B").panel, chosen=chosen)
    given = {each.letter: each.series for each in answers(panel, fleet.prometheus, fleet.window)}
    assert [series.points[-1][1] for series in given["E"]] == [0.031]


def test_memory_of_dcgm_exporter_stands_on_the_same_boards(fleet: Fleet) -> None:
    cards = {row["gpu"]: row for row in fleet.table("brimline-gpu", "Cards")}
    servers = {row["gpu"]: row for row in fleet.table("brimline-gpu", "By server")}

    assert cards[DCGM_GPU]["Value #B"] == 70_000 << 20
    assert cards[DCGM_GPU]["Value #D"] == 81_559 << 20
    assert cards[DCGM_GPU]["Value #G"] is None
    assert servers[DCGM_GPU]["target"] == IDLE
    assert servers[DCGM_GPU]["Value #A"] == 70_000 << 20
    board, window = fleet.boards["brimline-server"], fleet.window
    [sidecar] = [
        row["instance"] for row in fleet.table("brimline-gpu", "By server") if row["gpu"] == DCGM_GPU
    ]
    wanted = {"target": IDLE, "instance": sidecar}
    chosen = chosen_variables(board, fleet.prometheus, window, wanted)
    assert chosen["gpu"].values == (DCGM_GPU,)
    panels = {panel.title: panel for row in rows(board, chosen) for panel in row.panels}
    [used, planned, _, card, _] = answers(panels["Fullest GPU beside its plan"], fleet.prometheus, window)
    assert used.series[0].points[-1][1] == 70_000 << 20
    assert planned.series
    assert card.series[0].points[-1][1] == 81_000 << 20


@EACH
def test_without_any_server_queries_fail_nowhere(uid: str, fleet: Fleet) -> None:
    nobody = {name: Chosen(("nobody",), None, each.is_regex) for name, each in fleet.chosen[uid].items()}

    for row in rows(fleet.boards[uid], nobody):
        for panel in row.panels:
            for answer in answers(panel, fleet.prometheus, fleet.window):
                assert not answer.series, (panel.title, answer.expr)


def test_the_preview_holds_every_panel_and_asks_for_nothing(fleet: Fleet) -> None:
    text = page([make() for make in BOARDS.values()], fleet.prometheus, fleet.window, {"target": BASELINE})

    assert "Preview, not Grafana" in text
    for asked in (asked for panels in fleet.panels.values() for asked in panels):
        assert html.escape(asked.panel.title, quote=False) in html.unescape(text).replace("&", "&amp;")
    assert "stroke-dasharray" in text
    assert NO_VERDICT in text
    assert "This card cannot be read" in text
    assert f"{BASELINE} started" in text
    assert not re.search(r"""(?:src|href)=["'](?!#)""", text)
    assert "<script" not in text
    assert len(text) < 2 << 20


def test_a_server_that_there_is_not_is_told_in_place_of_a_preview(fleet: Fleet) -> None:
    boards = [make() for make in BOARDS.values()]

    with pytest.raises(VariableError, match=f"^target=nosuch: there is no such value; known: .*{BASELINE}"):
        page(boards, fleet.prometheus, fleet.window, {"target": "nosuch"})


@pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: apt-get install chromium to look at the preview"
)
@pytest.mark.parametrize("width", [390, 1400])
def test_the_preview_can_be_read_at_every_width(width: int, fleet: Fleet, tmp_path: Path) -> None:
    file = tmp_path / "boards.html"
    boards = [make() for make in BOARDS.values()]
    file.write_text(page(boards, fleet.prometheus, fleet.window, {"target": BASELINE}))

    async def look() -> None:
        async with opened(f"file://{file}", tmp_path / "profile", width=width) as tab:
            assert await tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
            # No panel is so narrow or so low that nothing of it can be read, and none lies on another.
            panels = "[...document.querySelectorAll('.panel')]"
            small = f"{panels}.filter(p => p.clientWidth < 120 || p.clientHeight < 70)"
            assert await tab.evaluate(f"{small}.map(p => p.innerText)") == []
            columns = f"new Set({panels}.map(p => p.offsetLeft)).size"
            assert (await tab.evaluate(columns) == 1) == (width < 600)
            assert tab.problems == []
            assert tab.requested == [f"file://{file}"]

    asyncio.run(look())
