"""What `brimline ab watch` exposes on its own port, and the board of variants reads: names and words, once.

They are not in the catalog of `brimline serve`, which knows nothing of verdicts. Until a watch runs none of
them exists, and the board says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from brimline.catalog import PREFIX

# The values of the label `verdict`, best first, and how they read.
WORDS = {
    "better": "BETTER",
    "pass": "PASS: no worse",
    "inconclusive": "INCONCLUSIVE: more time needed",
    "worse": "WORSE",
    "not_comparable": "NOT COMPARABLE",
}

# The value of the label `metric` for the verdict over all metrics.
OVERALL = "overall"


@dataclass(frozen=True, slots=True)
class Exposed:
    """A family of the watch's page."""

    name: str
    kind: Literal["gauge", "counter"]
    labels: tuple[str, ...]
    help: str


_OF_METRIC = ("experiment", "candidate", "metric")

VERDICT = f"{PREFIX}ab_verdict"
DELTA = f"{PREFIX}ab_delta_ratio"
DELTA_LOWER = f"{PREFIX}ab_delta_lower_ratio"
DELTA_UPPER = f"{PREFIX}ab_delta_upper_ratio"
BLOCKS = f"{PREFIX}ab_blocks"
REQUIRED = f"{PREFIX}ab_required_seconds"
UP = f"{PREFIX}ab_up"
ERRORS = f"{PREFIX}ab_errors_total"
GATE = f"{PREFIX}ab_gate"
JUDGED = f"{PREFIX}ab_judged_timestamp_seconds"
STARTED = f"{PREFIX}ab_started_timestamp_seconds"
CHANGED = f"{PREFIX}ab_verdict_changed_timestamp_seconds"
RELOADED = f"{PREFIX}config_last_reload_successful"

EXPOSED = (
    Exposed(
        VERDICT,
        "gauge",
        (*_OF_METRIC, "verdict"),
        "1 for the verdict that holds, 0 for each other one; metric=overall for that over all gates. It is "
        "of ab_judged_timestamp_seconds, and stays while the data source fails. Absent before the first "
        "verdict.",
    ),
    Exposed(
        DELTA,
        "gauge",
        _OF_METRIC,
        "Candidate over baseline less 1, at equal load where the metric depends on it. Absent where it "
        "cannot be estimated yet.",
    ),
    Exposed(
        DELTA_LOWER,
        "gauge",
        _OF_METRIC,
        "Lower bound of ab_delta_ratio, which holds however often one looks. Absent as that is.",
    ),
    Exposed(
        DELTA_UPPER,
        "gauge",
        _OF_METRIC,
        "Upper bound of ab_delta_ratio, which holds however often one looks. Absent as that is.",
    ),
    Exposed(
        BLOCKS,
        "gauge",
        _OF_METRIC,
        "Blocks of time that the metric was compared over, both variants at once. Absent before the first "
        "verdict.",
    ),
    Exposed(
        REQUIRED,
        "gauge",
        _OF_METRIC,
        "How much longer both variants must serve until the margin can be told from noise; metric=overall "
        "for the longest of all gates. Absent where it is decided, and where it cannot be told.",
    ),
    Exposed(
        UP,
        "gauge",
        ("experiment",),
        "1 where the last attempt to judge succeeded, 0 where Prometheus could not be asked or its answer "
        "not used. Absent before the first attempt.",
    ),
    Exposed(
        ERRORS,
        "counter",
        ("experiment",),
        "Attempts to judge that failed since the watch started. Never absent.",
    ),
    Exposed(
        GATE,
        "gauge",
        ("experiment",),
        "1 where the verdict may decide a rollout, 0 where it is for looking only: blocks are shorter or "
        "fewer than its bounds need. Absent before the first verdict.",
    ),
    Exposed(
        JUDGED,
        "gauge",
        ("experiment",),
        "When the verdict that is shown was reached. Absent before the first verdict.",
    ),
    Exposed(
        STARTED,
        "gauge",
        ("experiment",),
        "From when on blocks are counted. Absent before the first verdict.",
    ),
    Exposed(
        CHANGED,
        "gauge",
        ("experiment", "candidate", "verdict"),
        "When the overall verdict became what it is. Absent until it changes while it is watched.",
    ),
    Exposed(
        RELOADED,
        "gauge",
        (),
        "1 if the web configuration in force is the newest one, 0 if a newer one was refused. Absent without "
        "--web.config.file.",
    ),
)
FAMILIES = frozenset(one.name for one in EXPOSED)
