"""The example for Alertmanager: amtool reads it, and it routes and silences the alerts that there are."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from brimline_dashboards.alerts import alerts
from prometheus_server import tool

EXAMPLE = Path(__file__).parent.parent.parent / "deploy/alertmanager/alertmanager.yml"
CONFIG: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())


def amtool(*arguments: str | Path) -> str:
    done = subprocess.run([tool("amtool"), *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_amtool_reads_it() -> None:
    assert "SUCCESS" in amtool("check-config", EXAMPLE)


@pytest.mark.parametrize(
    ("severity", "receiver"), [("critical", "on-call"), ("warning", "team-chat"), ("info", "nobody")]
)
def test_severity_decides_who_is_told(severity: str, receiver: str) -> None:
    [name, *_] = [alert.name for alert in alerts() if alert.severity == severity]

    routed = amtool(
        "config", "routes", "test", f"--config.file={EXAMPLE}", f"alertname={name}", f"severity={severity}"
    )

    assert routed.strip() == receiver


def test_every_inhibition_names_alerts_that_there_are() -> None:
    names = {alert.name for alert in alerts()}
    for rule in CONFIG["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            label, operator, value = re.fullmatch(r"(\w+)(=~|!=|=)\"(.*)\"", matcher).groups()  # type: ignore[union-attr]
            if label == "alertname":
                pattern = value if operator == "=~" else re.escape(value)
                assert [name for name in names if re.fullmatch(pattern, name)], matcher
