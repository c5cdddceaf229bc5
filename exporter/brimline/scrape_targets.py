"""The metrics pages of the servers themselves, as Prometheus' HTTP service discovery wants them.

Format: prometheus.io/docs/prometheus/latest/http_sd (of 2026): a list of {"targets": [HOST:PORT], "labels"}.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from brimline.collect import MetricsPage
from brimline.config import Target


def scrape_targets(pages: Iterable[tuple[Target, MetricsPage]]) -> list[dict[str, Any]]:
    """What Prometheus scrapes where it reads the servers' own pages. Nothing of it is secret.

    The engine is a label of discovery only (`__meta_…`), because vLLM's own series bear a label `engine`,
    which a label of the target would drive away.
    """
    return [_entry(target, page) for target, page in pages if page.path is not None]


def _entry(target: Target, page: MetricsPage) -> dict[str, Any]:
    host = urlsplit(target.url).hostname or ""
    shown = f"[{host}]" if ":" in host else host
    labels = {
        "__scheme__": urlsplit(target.url).scheme,
        "__metrics_path__": f"{target.base_path}{page.path}",
        "__meta_brimline_engine": page.engine,
        "target": target.name,
        "experiment": target.experiment,
        "variant": target.variant,
        "role": target.role,
    }
    return {
        "targets": [f"{shown}:{target.port}"],
        "labels": {name: value for name, value in labels.items() if value},
    }
