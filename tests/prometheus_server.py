"""A real Prometheus for tests: started, asked over its HTTP API, ended."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from waiting import eventually


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get_text(url: str, headers: dict[str, str] | None = None, timeout: float = 60.0) -> str:
    """Body of a GET."""
    request = urllib.request.Request(url, headers=headers or {})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return str(answer.read().decode())


def is_up(url: str) -> bool:
    """True where a GET is answered with 200."""
    try:
        get_text(url, timeout=2)
    except OSError:
        return False
    return True


def tool(name: str) -> str:
    """Path of `prometheus` or `promtool`; `make test` puts them on PATH."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(
            f"{name} is not on PATH; run `make test`, or put the folder that tools/prometheus.sh "
            "prints on PATH"
        )
    return path


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and values of an instant query."""
        url = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        document: dict[str, Any] = json.loads(get_text(url))
        return [(row["metric"], float(row["value"][1])) for row in document["data"]["result"]]

    def value(self, expression: str) -> float | None:
        """The one value of an instant query; None where it is empty."""
        rows = self.query(expression)
        assert len(rows) <= 1, f"{expression}: {rows}"
        return rows[0][1] if rows else None

    def rule_health(self) -> dict[str, str]:
        """Every rule by its name: `ok`, the error of its last evaluation, or `unknown` before the first."""
        document = json.loads(get_text(f"{self.url}/api/v1/rules"))
        rules = [rule for group in document["data"]["groups"] for rule in group["rules"]]
        return {rule["name"]: rule.get("lastError") or rule["health"] for rule in rules}


@contextmanager
def running_prometheus(
    folder: Path,
    ports: list[int],
    *,
    interval: str = "1s",
    labels: Mapping[str, str] | None = None,
    labels_by_port: Mapping[int, Mapping[str, str]] | None = None,
    more: Mapping[str, int] | None = None,
    rules: Mapping[str, str] | None = None,
    alertmanager_port: int | None = None,
    scrape: Mapping[str, Any] | None = None,
    jobs: Sequence[Mapping[str, Any]] = (),
    flags: Sequence[str] = (),
) -> Iterator[Prometheus]:
    """Prometheus that scrapes exporters on the ports as one job.

    labels: what the scrape adds to the exporters' series; labels_by_port: to those of one. more: other jobs
    by name, with their ports; the labels of their pages stand as they are. rules: files of rules by name.
    scrape: how the exporters are scraped, in the words of a scrape configuration. jobs: further ones, whole.
    flags: more of its command line.
    """
    port = free_port()
    targets = [
        {
            "targets": [f"127.0.0.1:{exporter}"],
            "labels": {**(labels or {}), **(labels_by_port or {}).get(exporter, {})},
        }
        for exporter in ports
    ]
    scraped: list[dict[str, Any]] = [{"job_name": "brimline", "static_configs": targets, **(scrape or {})}]
    for name, other in (more or {}).items():
        scraped.append(
            {
                "job_name": name,
                "honor_labels": True,
                "static_configs": [{"targets": [f"127.0.0.1:{other}"]}],
            }
        )
    for name, text in (rules or {}).items():
        (folder / name).write_text(text)
    document: dict[str, Any] = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "scrape_configs": [*scraped, *jobs],
        "rule_files": [str(folder / name) for name in rules or {}],
    }
    if alertmanager_port is not None:
        address = {"static_configs": [{"targets": [f"127.0.0.1:{alertmanager_port}"]}]}
        document["alerting"] = {"alertmanagers": [address]}
    config = folder / "prometheus.yml"
    config.write_text(json.dumps(document))
    with open(folder / "prometheus.log", "wb") as log:
        process = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
                *flags,
            ],
            stdout=log,
            stderr=log,
        )
    try:
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        eventually(lambda: is_up(f"{prometheus.url}/-/ready"))
        yield prometheus
    finally:
        process.terminate()
        process.wait(60)
