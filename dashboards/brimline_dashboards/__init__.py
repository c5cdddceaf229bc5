"""Grafana boards, recording rules and alerts, generated from the catalog of metrics."""
