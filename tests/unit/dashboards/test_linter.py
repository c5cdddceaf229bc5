"""The rules of Grafana's dashboard-linter (v0.2.0), restated, with every exception written down."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import promql_parser
import pytest
import yaml

from brimline import verdicts
from brimline.catalog import METRICS
from brimline_dashboards.boards import BOARDS as MAKE
from brimline_dashboards.boards.common import AB
from brimline_dashboards.coverage import UNUSED
from brimline_dashboards.interpolation import Chosen, Times, in_query, variable_query
from brimline_dashboards.panels import Unit, board_json
from brimline_dashboards.recording import recordings

BOARDS = {uid: board_json(make()) for uid, make in MAKE.items()}
EACH = pytest.mark.parametrize("uid", BOARDS)
GENERATED = Path(__file__).parent.parent.parent.parent / "dashboards/generated"
TIMES = Times(range_seconds=3600, step_seconds=15)

# Rules that a board does not follow, and why.
NO_INSTANCE = {AB: "variants are compared over all exporters of a job"}
OTHER_WINDOWS = {
    AB: "means over the shown range, or over the five minutes that recorded series cover",
}
# Series that are not found by job: GPUs by their UUID, verdicts by their experiment.
BY_OTHER_LABELS = {"gpu", "experiment"}
COUNTERS = {family.full_name for family in METRICS if family.kind != "gauge"}


def panels(uid: str) -> Iterator[dict[str, Any]]:
    for panel in BOARDS[uid]["panels"]:
        yield from panel["panels"] if panel["type"] == "row" else [panel]


def expressions(uid: str) -> Iterator[Any]:
    """Every query, parsed, its variables by their names."""
    names = {variable["name"]: Chosen((variable["name"],)) for variable in BOARDS[uid]["templating"]["list"]}
    for panel in panels(uid):
        for target in panel.get("targets", []):
            yield promql_parser.parse(in_query(target["expr"], names, TIMES))


def nodes(expr: Any) -> Iterator[Any]:
    found: list[Any] = []
    promql_parser.walk(expr, found.append)
    yield from found


def selectors(uid: str) -> Iterator[Any]:
    for expr in expressions(uid):
        for node in nodes(expr):
            if isinstance(node, promql_parser.VectorSelector):
                yield node


@EACH
def test_template_datasource(uid: str) -> None:
    first = BOARDS[uid]["templating"]["list"][0]

    assert (first["name"], first["type"], first["query"]) == ("datasource", "datasource", "prometheus")
    assert first["label"] == "Data source"


@EACH
def test_template_job_and_instance(uid: str) -> None:
    variables = {each["name"]: each for each in BOARDS[uid]["templating"]["list"]}

    assert variables["job"]["multi"]
    assert variables["job"]["label"] == "Job"
    # An exception: All is a list of our jobs instead of `.+`, so that `up` of other jobs stays out.
    assert "allValue" not in variables["job"]
    assert ("instance" in variables) != (uid in NO_INSTANCE)


@EACH
def test_template_label_promql_and_on_time_change_reload(uid: str) -> None:
    for variable in BOARDS[uid]["templating"]["list"][1:]:
        selector, label = variable_query(variable)
        promql_parser.parse(in_query(selector, {}, TIMES))
        assert label
        assert variable["refresh"] == 2, variable["name"]
        assert variable["datasource"]["uid"] == "${datasource}"


@EACH
def test_variables_are_chained_to_those_before_them(uid: str) -> None:
    before: set[str] = {"datasource"}
    for variable in BOARDS[uid]["templating"]["list"][1:]:
        used = set(re.findall(r"\$(\w+)", variable["query"]["query"]))
        assert used <= before, variable["name"]
        if variable["name"] != "job":
            assert "job" in used or "target" in used, variable["name"]
        before.add(variable["name"])


@EACH
def test_panel_datasource_title_description_units_and_targets(uid: str) -> None:
    for panel in panels(uid):
        assert panel["title"]
        assert panel["description"].strip().endswith((".", "?", "”")) or panel["type"] == "text", panel[
            "title"
        ]
        if panel["type"] == "text":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["targets"], panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        if panel["type"] in ("timeseries", "stat", "status-history"):
            assert panel["fieldConfig"]["defaults"]["unit"] in get_args(Unit), panel["title"]


@EACH
def test_target_rate_interval(uid: str) -> None:
    if uid in OTHER_WINDOWS:
        return
    for panel in panels(uid):
        for target in panel.get("targets", []):
            windows = re.findall(r"\b(?:rate|increase|irate)\([^()]*\[([^\]]+)\]", target["expr"])
            assert set(windows) <= {"$__rate_interval"}, (panel["title"], windows)


@EACH
def test_target_job_and_instance(uid: str) -> None:
    for selector in selectors(uid):
        names = {matcher.name for matcher in selector.matchers.matchers}
        # Both ports expose whether their files could be read again.
        of_watch = selector.name in verdicts.FAMILIES - {verdicts.RELOADED}
        if selector.name.startswith("gpu:") or of_watch:
            assert names & BY_OTHER_LABELS, selector.name
        else:
            assert "job" in names or names & BY_OTHER_LABELS, selector.name
            assert uid in NO_INSTANCE or "instance" in names or names & BY_OTHER_LABELS, selector.name


@EACH
def test_target_counter_agg(uid: str) -> None:
    """A counter is never shown as it stands."""
    for expr in expressions(uid):
        found = list(nodes(expr))
        counted = [node.name or "" for node in found if isinstance(node, promql_parser.VectorSelector)]
        ranged = [
            inner.vector_selector.name if hasattr(inner, "vector_selector") else inner.selector.name
            for node in found
            if isinstance(node, promql_parser.Call) and node.func.name in ("rate", "increase")
            for inner in node.args
        ]
        plain = [name for name in counted if re.sub(r"_(sum|count|bucket)$", "", name) in COUNTERS]
        assert sorted(plain) == sorted(name for name in ranged if name in plain), expr.prettify()


@EACH
def test_uneditable_and_found_again(uid: str) -> None:
    assert BOARDS[uid]["editable"] is False
    assert BOARDS[uid]["tags"] == ["brimline"]
    [link] = BOARDS[uid]["links"]
    assert (link["type"], link["keepTime"], link["includeVars"]) == ("dashboards", True, True)


@EACH
def test_tiles_are_wide_enough_for_a_phone_and_of_now(uid: str) -> None:
    for panel in panels(uid):
        assert panel["gridPos"]["w"] >= 4, panel["title"]
        if panel["type"] in ("stat", "table"):
            assert all(target["instant"] for target in panel["targets"]), panel["title"]


@EACH
def test_states_are_words_beside_their_colours(uid: str) -> None:
    """A value that only a colour would judge is also written; red at 80 is nobody's leftover."""
    for panel in panels(uid):
        defaults = panel.get("fieldConfig", {}).get("defaults", {})
        for step in defaults.get("thresholds", {}).get("steps", []):
            assert step["value"] != 80, panel["title"]
            assert step["color"].startswith("#"), panel["title"]
        for mapping in defaults.get("mappings", []):
            assert all(each["text"] for each in mapping["options"].values())


def test_every_recorded_series_of_a_board_is_recorded() -> None:
    recorded = {rule.record for rule in recordings()}

    for uid in BOARDS:
        named = {selector.name for selector in selectors(uid) if ":" in (selector.name or "")}
        assert named <= recorded, uid


def test_every_family_is_on_a_board_or_named_as_unused() -> None:
    """On a board by itself, or through the recorded series that one stands on."""
    rules = {rule.record: rule.expr for rule in recordings()}
    text = "\n".join(
        target["expr"] for uid in BOARDS for panel in panels(uid) for target in panel.get("targets", [])
    )
    text += "\n" + "\n".join(
        annotation.get("expr", "") for board in BOARDS.values() for annotation in board["annotations"]["list"]
    )
    seen: set[str] = set()
    while named := set(re.findall(r"\b(?:target|gpu):\w+:\w+", text)) - seen:
        seen |= named
        text += "\n" + "\n".join(rules[name] for name in named)

    shown = {
        family.name for family in METRICS if re.search(rf"\b{family.full_name}(_sum|_count|_bucket)?\b", text)
    }
    assert {family.name for family in METRICS} - shown == set(UNUSED)
    assert all(len(reason) > 20 for reason in UNUSED.values())


def test_links_of_alerts_lead_to_boards_and_variables_that_are_there() -> None:
    alerts = yaml.safe_load((GENERATED / "rules/brimline-alerts.yaml").read_text())

    links = {rule["annotations"]["dashboard_url"] for group in alerts["groups"] for rule in group["rules"]}
    assert links
    for link in links:
        found = re.search(r"/d/([a-z-]+)(.*)", link)
        assert found, link
        variables = {each["name"] for each in BOARDS[found[1]]["templating"]["list"]}
        assert set(re.findall(r"var-(\w+)=", found[2])) <= variables, link
