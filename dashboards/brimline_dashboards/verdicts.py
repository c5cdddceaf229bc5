"""What `brimline ab watch` exposes on its own port, and the board of variants reads: names and words, once.

They are not in the catalog of `brimline serve`, which knows nothing of verdicts. Until a watch runs none of
them exists, and the board says so.
"""

from __future__ import annotations

from brimline.catalog import PREFIX

# Each with the labels experiment and metric; the verdict with `verdict` besides, 1 for the one that holds.
VERDICT = f"{PREFIX}ab_verdict"
DELTA = f"{PREFIX}ab_delta_ratio"
DELTA_LOWER = f"{PREFIX}ab_delta_lower_ratio"
DELTA_UPPER = f"{PREFIX}ab_delta_upper_ratio"
BLOCKS = f"{PREFIX}ab_blocks"
REQUIRED = f"{PREFIX}ab_required_seconds"
FAMILIES = frozenset({VERDICT, DELTA, DELTA_LOWER, DELTA_UPPER, BLOCKS, REQUIRED})

# The value of the label `metric` for the verdict over all metrics.
OVERALL = "overall"

# The values of the label `verdict`, best first, and how they read.
WORDS = {
    "better": "BETTER",
    "pass": "PASS: no worse",
    "inconclusive": "INCONCLUSIVE: more time needed",
    "worse": "WORSE",
    "not_comparable": "NOT COMPARABLE",
}
