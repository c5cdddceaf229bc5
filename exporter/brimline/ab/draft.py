"""An experiment file written from what runs: variants, what they differ in, and where Prometheus is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from brimline.ab.experiment import METRICS
from brimline.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A target of an experiment. settings: as its engine publishes or its configuration declares them."""

    target: str
    experiment: str
    variant: str
    role: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)


def chosen(servers: Iterable[Server], name: str | None) -> list[Server]:
    """The servers of one experiment: the named one, or the only one. Raises ConfigError."""
    labelled = [server for server in servers if server.experiment and server.variant]
    names = sorted({server.experiment for server in labelled})
    if not names:
        raise ConfigError(
            "no server belongs to an experiment; give two targets the same `experiment` and different "
            "`variant` in brimline.yaml, one of them `role: baseline`"
        )
    if name is None and len(names) > 1:
        raise ConfigError(f"there are several experiments: {', '.join(names)}; choose one with --experiment")
    wanted = name or names[0]
    if wanted not in names:
        raise ConfigError(f"there is no experiment {wanted!r}; there are: {', '.join(names)}")
    return [server for server in labelled if server.experiment == wanted]


def arms(servers: Sequence[Server], baseline: str | None) -> tuple[str, list[str]]:
    """The baseline's variant and the candidates'. Raises ConfigError."""
    variants = list(dict.fromkeys(server.variant for server in servers))
    if len(variants) < 2:
        raise ConfigError(
            f"only the variant {variants[0]!r} runs; the other one must run, too (on one GPU they take turns)"
        )
    if baseline is None:
        declared = sorted({server.variant for server in servers if server.role == "baseline"})
        if len(declared) != 1:
            said = f"the variants {', '.join(declared)} are" if declared else "none is"
            raise ConfigError(
                f"{said} declared `role: baseline`; name it with --baseline, one of: {', '.join(variants)}"
            )
        baseline = declared[0]
    if baseline not in variants:
        raise ConfigError(f"there is no variant {baseline!r}; there are: {', '.join(variants)}")
    return baseline, sorted(variant for variant in variants if variant != baseline)


def differing(servers: Sequence[Server], baseline: str) -> list[str]:
    """Settings of which a candidate has another value than the baseline."""

    def values(of_baseline: bool) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for server in servers:
            if (server.variant == baseline) == of_baseline:
                for setting, value in server.settings.items():
                    found.setdefault(setting, set()).add(value)
        return found

    base, other = values(True), values(False)
    return sorted(setting for setting in base.keys() & other.keys() if base[setting] != other[setting])


def text(servers: Sequence[Server], *, prometheus_url: str, baseline: str | None, now: float) -> str:
    """The file's text, which `experiment.parse` reads. Raises ConfigError."""
    base, candidates = arms(servers, baseline)
    treatment = differing(servers, base)
    gates = ", ".join(name for name, metric in METRICS.items() if metric.gate)
    start = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    lines = [
        f"name: {quoted(servers[0].experiment)}",
        f"prometheus: {{url: {quoted(prometheus_url)}}}",
        "variants:",
        f"  - {{name: {quoted(base)}, role: baseline}}",
        *(f"  - {{name: {quoted(name)}, role: candidate}}" for name in candidates),
        "# What is meant to differ. Any other difference makes the variants not comparable.",
        f"treatment: [{', '.join(map(quoted, treatment))}]",
        "# From one start on, so that looking again and again is allowed for.",
        f"window: {{start: {quoted(start)}}}",
        "# How requests find a server: per_request, or sticky (a user stays on one).",
        "routing: unknown",
        f"# Gates unless changed: {gates}. Margins are ratios.",
        "metrics:",
        "  - {name: inter_token_latency, margin: 0.05}",
    ]
    return "\n".join(lines) + "\n"


def quoted(text_: str) -> str:
    """Text as YAML, whatever is in it."""
    return json.dumps(text_, ensure_ascii=True)
