"""The boards drawn from a Prometheus, without a Grafana: a preview, which says that it is one."""
