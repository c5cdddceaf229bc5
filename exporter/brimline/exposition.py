"""Catalog and snapshot to a Prometheus exposition. Knows no metric by name, and never raises."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from brimline.catalog import METRICS, Family, Row, Sums, is_exposable
from brimline.readings import Histogram, Snapshot

logger = logging.getLogger(__name__)


def _bound(bound: float) -> str:
    """A bucket's bound as the exposition formats write it."""
    return "+Inf" if math.isinf(bound) else repr(bound)


def _add_histograms(
    metric: Metric, name: str, rows: Sequence[tuple[dict[str, str], Histogram | Sums]], *, with_buckets: bool
) -> None:
    """Add rows of sums, or of whole histograms.

    A histogram needs at least its infinite bucket to be valid. A page where no target asked for buckets
    carries sums and counts alone, and calls the family a summary, which may have those.
    """
    if not with_buckets:
        metric.type = "summary"
    for labels, value in rows:
        if isinstance(value, Histogram):
            for bound, count in value.buckets:
                metric.add_sample(f"{name}_bucket", {**labels, "le": _bound(bound)}, count)
        elif metric.type == "histogram":
            metric.add_sample(f"{name}_bucket", {**labels, "le": "+Inf"}, value.count)
        metric.add_sample(f"{name}_count", labels, value.count)
        metric.add_sample(f"{name}_sum", labels, value.sum)


def _encodable(label: str) -> str:
    """The label value without halves of characters, one of which would cost the whole page its encoding."""
    return label if label.isascii() else label.encode("utf-8", "replace").decode("utf-8")


def to_metric(family: Family, snapshot: Snapshot) -> Metric | None:
    """The family with its rows; None where it has none. Of rows with equal labels the first is taken."""
    name = family.full_name
    unique: dict[tuple[str, ...], Row] = {}
    for row in family.rows(snapshot):
        if is_exposable(row[1]):
            unique.setdefault(row[0], row)
    if not unique:
        return None
    metric = Metric(
        name.removesuffix("_total") if family.kind == "counter" else name, family.help, family.kind
    )
    named = [
        (dict(zip(family.labels, map(_encodable, labels), strict=True)), value)
        for labels, value in unique.values()
    ]
    if family.kind == "histogram":
        # By the configuration, not by the rows: a target that goes down must not change another one's type.
        with_buckets = any(target.histograms == "full" for target in snapshot.targets)
        histograms = [(labels, v) for labels, v in named if isinstance(v, Histogram | Sums)]
        _add_histograms(metric, name, histograms, with_buckets=with_buckets)
    else:
        for labels, value in named:
            if isinstance(value, float | int):
                metric.add_sample(name, labels, value)
    return metric


class SnapshotCollector(Collector):
    """The families of one snapshot. A family that fails is left out, logged once, and costs no other."""

    _logged: set[str] = set()  # noqa: RUF012 - shared on purpose: one line for each defect, not one for each scrape

    def __init__(self, snapshot: Snapshot, families: Iterable[Family] = METRICS) -> None:
        self._snapshot = snapshot
        self._families = families

    def describe(self) -> list[Metric]:
        """Nothing: describing must not ask servers and GPUs."""
        return []

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            try:
                metric = to_metric(family, self._snapshot)
            except Exception:  # the exposition goes on without a family that has a defect
                if family.name not in self._logged:
                    self._logged.add(family.name)
                    logger.exception("family=%s could not be exposed", family.name)
                continue
            if metric is not None:
                yield metric


_OWN = CollectorRegistry(auto_describe=False)
ProcessCollector(registry=_OWN)
PlatformCollector(registry=_OWN)


def render(
    snapshot: Snapshot, accept: str = "", *, families: Iterable[Family] = METRICS
) -> tuple[bytes, str]:
    """The page, and its content type by the Accept header: classic text or OpenMetrics."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SnapshotCollector(snapshot, families))
    registry.register(_Nested(_OWN))
    encoder, content_type = choose_encoder(accept)
    return encoder(registry), content_type


class _Nested(Collector):
    """Another registry's families: the exporter's own process_… and python_info."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        yield from self._registry.collect()
