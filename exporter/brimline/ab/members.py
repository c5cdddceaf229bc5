"""Which variant a server was at which time, where its labels changed within the window.

On one GPU the same server is stopped and started with other settings, and its variant's label is changed
with it: one name, one port, two variants one after the other. A label that moves while the server runs on is
no change of it: that is how rollouts end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from brimline.ab.rows import Key, Table, states
from brimline.ab.series import Floats, largest

# By which a server's lives are told apart, and of one that does not state its start, counters that fall.
OF_LIVES = ("target_start_time_seconds", "target_config_fingerprint_info")
COUNTERS_OF_LIVES = ("generation_tokens_total", "prompt_tokens_total", "requests_finished_total")
# A label is written down some time before or after the server is restarted.
RELABELLED_WITHIN_SECONDS = 900.0

# A new start and the settings that come with it are seen within some scrapes: one restart.
_ONE_RESTART_SECONDS = 60.0

# From the first sample to the last one, both of them in it.
Span = tuple[float, float]
ALWAYS: tuple[Span, ...] = ((-math.inf, math.inf),)


def labelled(times_of_arms: Mapping[str, Floats]) -> list[tuple[float, float, str]]:
    """Stretches in which a server had one arm's labels: the first sample, the last one, the arm."""
    stamped = sorted((time, arm) for arm, times in times_of_arms.items() for time in times.tolist())
    runs: list[tuple[float, float, str]] = []
    for time, arm in stamped:
        if runs and runs[-1][2] == arm:
            runs[-1] = (runs[-1][0], time, arm)
        else:
            runs.append((time, time, arm))
    return runs


def restarts(table: Table, key: Key) -> list[Span]:
    """For each new start, or new configuration, the last sample before it and the first one after it."""
    found: list[Span] = []
    starts = largest(list(table.parts(OF_LIVES[0], key).values()))
    found += _changes(starts.values.tolist(), starts.times)
    said, times = states(table.parts(OF_LIVES[1], key), "fingerprint")
    found += _changes(said, times)
    if not len(starts.times):
        for name in COUNTERS_OF_LIVES:
            for series in table.parts(name, key).values():
                fallen = np.flatnonzero(np.diff(series.values) < 0)
                found += [(float(series.times[at]), float(series.times[at + 1])) for at in fallen]
    merged: list[Span] = []
    for ended, began in sorted(found):
        if merged and ended - merged[-1][1] < _ONE_RESTART_SECONDS:
            merged[-1] = (merged[-1][0], max(began, merged[-1][1]))
        else:
            merged.append((ended, began))
    return merged


def _changes(values: Sequence[object], times: Floats) -> Iterator[Span]:
    for (before, ended), (after, began) in pairwise(zip(values, times.tolist(), strict=True)):
        if before != after:
            yield ended, began


def times_of(runs: Sequence[tuple[float, float, str]], changed: Sequence[Span]) -> dict[str, list[Span]]:
    """For each arm when the server belonged to it.

    runs: of `labelled`. changed: of `restarts`. A label that moved belongs to the restart nearest to it;
    without one near by it says nothing, and the server stays what it was.
    """
    arm, since = runs[0][2], -math.inf
    spans: dict[str, list[Span]] = {}
    for (_, ended, _), (began, _, following) in pairwise(runs):
        distance, restart = min(
            ((max(one[0] - began, ended - one[1], 0.0), one) for one in changed if one[1] > since),
            default=(math.inf, (0.0, 0.0)),
        )
        if following == arm or distance > RELABELLED_WITHIN_SECONDS:
            continue
        spans.setdefault(arm, []).append((since, restart[0]))
        arm, since = following, restart[1]
    spans.setdefault(arm, []).append((since, math.inf))
    return spans
