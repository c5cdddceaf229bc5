"""Boards as Grafana reads them: nothing misplaced, every query sound, absence shown as absence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from brimline import verdicts
from brimline.ab import experiment
from brimline.catalog import BY_NAME
from brimline_dashboards import boards
from brimline_dashboards.boards import ab
from brimline_dashboards.panels import COLUMNS, board_json
from brimline_dashboards.recording import recordings

BOARDS = {uid: board_json(board()) for uid, board in boards.BOARDS.items()}
EACH = pytest.mark.parametrize("uid", BOARDS)
plugins.register_default_plugins()


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All panels with data, those in collapsed rows too."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def queries(board: dict[str, Any]) -> Iterator[str]:
    for panel in panels(board):
        for target in panel.get("targets", []):
            yield target["expr"]
    for annotation in board["annotations"]["list"]:
        if "expr" in annotation:
            yield annotation["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.*), \w+\)", variable["query"]["query"])
            assert found, variable["query"]
            yield found.group(1)


def interpolated(expr: str) -> str:
    """The query as Grafana sends it."""
    for name, value in (("$__rate_interval", "1m"), ("$__range", "1h"), ("$__interval", "15s")):
        expr = expr.replace(name, value)
    return re.sub(r"\$\{?\w+\}?", "x", expr)


def differences(mine: Any, theirs: Any, path: str = "") -> Iterator[str]:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key, value in mine.items():
            if key in theirs:
                yield from differences(value, theirs[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        for index, (one, other) in enumerate(zip(mine, theirs, strict=True)):
            yield from differences(one, other, f"{path}[{index}]")
    elif mine != theirs:
        yield f"{path}: {mine!r} is not {theirs!r}"


@EACH
def test_grafanas_own_types_read_every_key(uid: str) -> None:
    """What the SDK does not know is misplaced, and Grafana would pass over it without a word."""
    board = json.loads(json.dumps(BOARDS[uid]))

    read = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))

    assert list(differences(BOARDS[uid], read)) == []


@EACH
def test_every_query_is_promql(uid: str) -> None:
    for expr in queries(BOARDS[uid]):
        promql_parser.parse(interpolated(expr))


@EACH
def test_every_family_of_ours_is_in_the_catalog(uid: str) -> None:
    names = {name for expr in queries(BOARDS[uid]) for name in re.findall(r"brimline_\w+", expr)}

    assert names
    for name in names - verdicts.FAMILIES:
        plain = re.sub(r"_(sum|count|bucket)$", "", name).removeprefix("brimline_")
        assert name.removeprefix("brimline_") in BY_NAME or plain in BY_NAME, name


@EACH
def test_panels_fill_the_grid_without_overlap(uid: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARDS[uid]["panels"]:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= COLUMNS
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


@EACH
def test_ids_are_unique_and_links_and_uids_stable(uid: str) -> None:
    board = BOARDS[uid]
    ids = [panel["id"] for panel in [*board["panels"], *panels(board)]]

    assert len(set(ids)) == len({id(panel) for panel in [*board["panels"], *panels(board)]})
    assert board["uid"] == uid
    assert re.fullmatch(r"brimline-[a-z]{2,20}", uid)
    for link in re.findall(r"/d/([a-z-]+)", json.dumps(board)):
        assert link in {*BOARDS, "brimline-ab"}


@EACH
def test_every_panel_says_what_it_is_and_what_it_means_when_it_is_empty(uid: str) -> None:
    for panel in panels(BOARDS[uid]):
        assert len(panel["description"]) > 10, panel["title"]
        if panel["type"] != "text":
            assert panel["fieldConfig"]["defaults"]["noValue"], panel["title"]
            assert panel["datasource"]["uid"] == "${datasource}"


@EACH
def test_no_panel_turns_absence_into_zero(uid: str) -> None:
    for expr in queries(BOARDS[uid]):
        assert "vector(0)" not in expr


@EACH
def test_nothing_is_left_of_the_older_dialect(uid: str) -> None:
    text = json.dumps(BOARDS[uid])

    assert BOARDS[uid]["schemaVersion"] == 39
    for legacy in (
        '"sharedCrosshair"',
        '"maxDataPoints": 100,',
        '"intervalFactor"',
        '"noValue": "none"',
        '"gnetId"',
    ):
        assert legacy not in text
    for steps in re.findall(r'"steps": (\[.*?\])', text):
        assert all(isinstance(step["value"], int | float | None) for step in json.loads(steps))


@EACH
def test_columns_of_tables_have_names_and_links_use_columns_that_are_there(uid: str) -> None:
    for panel in panels(BOARDS[uid]):
        if panel["type"] == "table":
            kept = next(each for each in panel["transformations"] if each["id"] == "filterFieldsByName")
            columns = set(kept["options"]["include"]["names"])
            organized = next(each["options"] for each in panel["transformations"] if each["id"] == "organize")
            assert set(organized["renameByName"]) == set(organized["indexByName"]) == columns
            assert set(re.findall(r"__data\.fields\.(\w+)", json.dumps(panel["fieldConfig"]))) <= columns


def test_every_metric_that_is_judged_has_a_row_beside_its_verdict() -> None:
    judged = {*experiment.METRICS, *experiment.STATIC}

    assert judged - {each.metric for each in ab.COMPARED} == set()


def test_the_live_rules_name_metrics_as_verdicts_do() -> None:
    [rule] = (one for one in recordings() if one.record == "variant:ab_metric:mean15m")

    named = set(re.findall(r'"metric", "(\w+)"', rule.expr))
    assert named
    assert named <= set(experiment.METRICS)


@EACH
def test_no_variable_takes_a_name_that_a_server_chooses(uid: str) -> None:
    """Grafana puts them into queries, and does not escape quotes: a model's name could end a matcher."""
    asked = [one["query"]["query"] for one in BOARDS[uid]["templating"]["list"] if one["type"] == "query"]

    labels = {query.rpartition(",")[2].strip(" )") for query in asked}

    assert labels
    assert labels <= {"job", "instance", "target", "experiment", "variant", "gpu"}
