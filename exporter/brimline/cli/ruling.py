"""rules: recording rules and alerts as files."""

from __future__ import annotations

import re
from pathlib import Path

import click

from brimline.cli.common import fail

_KUBERNETES_NAME = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_KUBERNETES_VALUE = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_KUBERNETES_KEY = rf"([a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_KUBERNETES_VALUE}"
_RUNBOOK = "docs/runbook.md"


def _check_link(option: str, address: str, example: str) -> None:
    """End with what is wrong with the beginning of the links in alerts."""
    from urllib.parse import urlsplit

    shown, wrong = repr(address), None
    try:
        parts = urlsplit(address)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or not address.isprintable() or " " in address:
        wrong = "is no address"
    elif found := re.search(r"[{}\"'<>\\`]", address):
        wrong = f"holds {found.group()}: it would be a template, or end the text it stands in"
    elif "#" in address:
        wrong = "has a part behind #, where each alert has its own"
    if "@" in address:
        shown = "(not shown)"  # a mistyped address may hold a password anywhere
    if "@" in address.partition("://")[2].partition("/")[0]:
        wrong = "holds a user name, which every alert would show"
    if wrong is not None:
        fail(f"{option} {shown} {wrong}; write it with its scheme, as {example}")


@click.command()
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for the rule files; made if it is not there.",
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration file whose `alerts:` override thresholds and durations.",
)
@click.option(
    "--runbook-url",
    default=_RUNBOOK,
    show_default=True,
    help="Where the runbook can be read, such as https://wiki.internal/brimline-runbook",
)
@click.option(
    "--grafana-url", default="", help="What links to boards begin with, such as https://grafana.internal"
)
@click.option("--namespace", help="Namespace of the PrometheusRule.")
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME=VALUE",
    help="A label of the PrometheusRule, such as release=kube-prometheus-stack. Repeat it for more.",
)
@click.option(
    "--datasource-uid", default="prometheus", show_default=True, help="Data source of Grafana's own rules."
)
@click.option(
    "--dcgm-pod-label",
    default="pod",
    show_default=True,
    help="Label of dcgm-exporter's series with the pod that owns a GPU; exported_pod without honorLabels.",
)
@click.option(
    "--dcgm-namespace-label", default="namespace", show_default=True, help="The same for its namespace."
)
def rules(
    folder: Path,
    config_path: Path | None,
    runbook_url: str,
    grafana_url: str,
    namespace: str | None,
    labels: tuple[str, ...],
    datasource_uid: str,
    dcgm_pod_label: str,
    dcgm_namespace_label: str,
) -> None:
    """Write recording rules and alerts: plain, as a PrometheusRule, and for Grafana's own alerting.

    The plain files and the PrometheusRule hold the same rules: load one of the two. Grafana's alerts need the
    recording rules in Prometheus, too.
    """
    from brimline.errors import ConfigError
    from brimline.thresholds import Thresholds
    from brimline_dashboards.recording import Dcgm
    from brimline_dashboards.rules import Options, files

    overrides = {}
    if config_path is not None:
        from brimline.config import load

        try:
            overrides = load(config_path).alerts
        except ConfigError as error:
            fail(str(error))
    pairs = [label.partition("=") for label in labels]
    for name, separator, value in pairs:
        if not separator or not name:
            fail(f"--label {name!r}: write NAME=VALUE")
        if not re.fullmatch(_KUBERNETES_KEY, name) or not re.fullmatch(_KUBERNETES_VALUE, value):
            fail(f"--label {name}={value}: no label of Kubernetes; write NAME=VALUE, as release=prometheus")
    if namespace is not None and not re.fullmatch(_KUBERNETES_NAME, namespace):
        fail(
            f"--namespace {namespace!r} is no namespace of Kubernetes; "
            "use small letters, digits and -, such as monitoring"
        )
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", datasource_uid):
        fail(
            f"--datasource-uid {datasource_uid!r} is no uid of Grafana; it stands in the address of the data "
            "source's page: letters, digits, - and _, at most 40"
        )
    if grafana_url:
        _check_link("--grafana-url", grafana_url, "https://grafana.internal")
    if runbook_url != _RUNBOOK:
        _check_link("--runbook-url", runbook_url, "https://wiki.internal/brimline-runbook")
    for option, label in (("pod", dcgm_pod_label), ("namespace", dcgm_namespace_label)):
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", label):
            fail(f"--dcgm-{option}-label {label!r} is no label of Prometheus")
    written = files(
        Options(
            thresholds=Thresholds(overrides),
            dcgm=Dcgm(namespace_label=dcgm_namespace_label, pod_label=dcgm_pod_label),
            runbook_url=runbook_url,
            grafana_url=grafana_url,
            namespace=namespace,
            labels={name: value for name, _, value in pairs},
            datasource_uid=datasource_uid,
        )
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in written.items():
            (folder / name).write_text(text, encoding="utf-8")
            click.echo(folder / name)
    except OSError as error:
        fail(f"-o {folder}: cannot be written ({error.strerror})")
