"""The examples of deploy/ that go by verdicts: they parse, and ask for what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from brimline.verdicts import EXPOSED, FAMILIES, WORDS

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
DOCUMENTED = (DEPLOY / "flagger/metrictemplate.yaml").read_text()
FLAGGER: list[dict[str, Any]] = list(yaml.safe_load_all(DOCUMENTED))
[ARGO] = yaml.safe_load_all((DEPLOY / "argo-rollouts/analysistemplate.yaml").read_text())
[METRIC] = ARGO["spec"]["metrics"]


def test_argo_asks_the_watch_and_every_word_has_one_meaning() -> None:
    url = METRIC["provider"]["web"]["url"]
    success = set(re.findall(r'"(\w+)"', METRIC["successCondition"]))
    failure = set(re.findall(r'"(\w+)"', METRIC["failureCondition"]))

    assert ARGO["kind"] == "AnalysisTemplate"
    assert url == "{{args.watch}}/api/v1/ab/{{args.experiment}}"
    assert success == {"better", "pass"}
    assert failure == {"worse", "not_comparable"}
    assert set(WORDS) - success - failure == {"inconclusive"}


def test_argo_goes_by_no_old_verdict_and_by_none_that_is_for_looking_only() -> None:
    for condition in ("successCondition", "failureCondition"):
        assert "result.age_seconds < {{args.longest-age}}" in METRIC[condition]
        assert "&& result.is_gate &&" in METRIC[condition]


def test_every_argument_of_argo_is_declared() -> None:
    declared = {each["name"] for each in ARGO["spec"]["args"]}

    assert set(re.findall(r"\{\{args\.([\w-]+)\}\}", str(METRIC))) == declared


@pytest.mark.parametrize("template", FLAGGER, ids=lambda template: template["metadata"]["name"])
def test_flagger_asks_promql_for_families_and_labels_of_the_watch(template: dict[str, Any]) -> None:
    query = template["spec"]["query"].replace("{{ variables.experiment }}", "kv-dtype")
    labels = {label for one in EXPOSED for label in one.labels}

    promql_parser.parse(query)
    assert template["kind"] == "MetricTemplate"
    assert set(re.findall(r"brimline_\w+", query)) <= FAMILIES
    assert set(re.findall(r"(\w+)=~?\"", query)) <= labels


def test_what_the_comment_shows_of_a_canary_is_yaml_that_names_the_templates() -> None:
    shown = "\n".join(
        line.removeprefix("#   ") for line in DOCUMENTED.splitlines() if line.startswith("#   ")
    )
    analysis = yaml.safe_load(shown)["spec"]["analysis"]

    named = {each["templateRef"]["name"] for each in analysis["metrics"]}
    assert named == {template["metadata"]["name"] for template in FLAGGER}
    assert {hook["type"] for hook in analysis["webhooks"]} == {"confirm-promotion", "rollback"}
