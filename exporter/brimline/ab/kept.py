"""What was fetched of an experiment's past is kept, so that each look asks only for what is new.

The last blocks before each look are fetched again with the next one, because samples may arrive late. Where
they differ from what was read, older ones may do so, too: then everything is read anew, as it is now and then
in any case. An observation through what is kept is that of a whole fetch, to the last sample.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from brimline.ab.experiment import Experiment, PrometheusConfig
from brimline.ab.fetch import Api, observe
from brimline.ab.observations import Observations
from brimline.prometheus_api import MAX_CHUNK_SECONDS, Row, Rows, merged, stretches

# Before the end of a look, what may still change: a scrape is stored once it is over, a remote write later.
OVERLAP_BLOCKS = 2
LEAST_OVERLAP_SECONDS = 120.0
# Of a longer gap in all that a question asks for, only the end is asked for again.
MOST_GAP_SECONDS = 3600.0
# Whatever came later than that is seen by reading everything anew.
MAX_AGE_SECONDS = 6 * 3600.0
# Of all experiments of one watch; a day of eight servers takes some 15 MiB.
MAX_BYTES = 512 << 20
# Of a row without its samples: labels, two arrays, a place in a dictionary.
_ROW_BYTES = 1000

_Labels = frozenset[tuple[str, str]]


@dataclass(slots=True)
class _Stretch:
    """Samples after the start, up to the end, as they will be for good. Of evaluated ones both are points.

    recent: those of the block after the end as they were at the last look. used: in the present look.
    """

    start: float
    end: float
    rows: dict[_Labels, Row] = field(default_factory=dict)
    recent_end: float = 0.0
    recent: dict[_Labels, tuple[bytes, bytes]] = field(default_factory=dict)
    used: bool = True


class Kept:
    """Samples of one experiment from look to look. most_bytes: beyond that nothing is kept."""

    def __init__(self, *, most_bytes: int = MAX_BYTES) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self._source: PrometheusConfig | None = None
        self._since = 0.0
        self._raw: dict[str, list[_Stretch]] = {}
        self._evaluated: dict[tuple[str, float], _Stretch] = {}

    async def observe(self, experiment: Experiment, api: Api, *, now: float) -> Observations:
        """As `fetch.observe`, asking only for what is new. now: of any clock. Raises what that raises."""
        if self._source != experiment.prometheus or not 0 <= now - self._since < MAX_AGE_SECONDS:
            self._forget(experiment, now)
        look = _Look(api, self, experiment)
        try:
            seen = await observe(experiment, look)
        finally:
            # Also where a question failed: the next look would not see it any more.
            if look.past_changed:
                self._forget(experiment, now)
        if look.past_changed:
            seen = await observe(experiment, _Look(api, self, experiment))
        self._end_look(experiment, now)
        return seen

    def _forget(self, experiment: Experiment, now: float) -> None:
        self._source, self._since = experiment.prometheus, now
        self._raw, self._evaluated = {}, {}

    def all(self) -> Iterable[_Stretch]:
        for listed in self._raw.values():
            yield from listed
        yield from self._evaluated.values()

    def _end_look(self, experiment: Experiment, now: float) -> None:
        """Drop what was not asked for: of servers that are no part of it now, of a window that slid on."""
        self._raw = {
            selector: used
            for selector, listed in self._raw.items()
            if (used := [stretch for stretch in listed if stretch.used])
        }
        self._evaluated = {key: stretch for key, stretch in self._evaluated.items() if stretch.used}
        self.bytes = sum(
            _ROW_BYTES + 16 * len(row.times) for stretch in self.all() for row in stretch.rows.values()
        )
        if self.bytes > self.most_bytes:
            self._forget(experiment, now)
            self.bytes = 0

    # --- for a look ---

    def raw(self, selector: str, start: float) -> _Stretch | None:
        """The samples of a selector that reach on from the start, without what was before."""
        for stretch in self._raw.get(selector, ()):
            if stretch.start <= start <= stretch.end:
                if start > stretch.start:
                    stretch.rows = _cut(stretch.rows, start, stretch.end)
                    stretch.start = start
                return stretch
        return None

    def keep_raw(self, selector: str, stretch: _Stretch) -> None:
        self._raw.setdefault(selector, []).append(stretch)

    def evaluated(self, query: str, start: float, step: float) -> _Stretch | None:
        """The values of an expression from a point on that is one of this question's own."""
        stretch = self._evaluated.get((query, step))
        if stretch is None or not stretch.start <= start <= stretch.end:
            return None
        points = (start - stretch.start) / step
        return stretch if abs(points - round(points)) * step < 5e-4 else None

    def keep_evaluated(self, query: str, step: float, stretch: _Stretch) -> None:
        self._evaluated[query, step] = stretch


class _Look:
    """A source that answers from what is kept as far as it goes, and asks for the rest.

    past_changed: of what was fetched again, something older than a block was not as it had been.
    """

    def __init__(self, api: Api, kept: Kept, experiment: Experiment) -> None:
        self.past_changed = False
        self.evaluates = api.evaluates
        self._api = api
        self._kept = kept
        overlap = max(OVERLAP_BLOCKS * experiment.block_length, LEAST_OVERLAP_SECONDS)
        self._settled = round(experiment.end - overlap, 3)
        # The older half of what is fetched again.
        self._recent = round(experiment.end - overlap / 2, 3)
        for stretch in kept.all():
            stretch.used = False

    async def raw_samples(
        self,
        selector: str,
        start: float,
        end: float,
        *,
        chunk: float = MAX_CHUNK_SECONDS,
        after_each: Callable[[], None] = lambda: None,
    ) -> Rows:
        """As PrometheusApi.raw_samples."""
        start, end = round(start, 3), round(end, 3)
        known = self._kept.raw(selector, start)
        if known is None:
            answer = await self._api.raw_samples(selector, start, end, chunk=chunk)
            if self._is_whole(answer) and start < self._settled:
                made = _Stretch(start, start)
                self._extend(made, start, answer, end, end)
                self._kept.keep_raw(selector, made)
        else:
            known.used = True
            before = known.end
            answer = Rows(tuple(_cut(known.rows, start, end).values()))
            if end > before:
                new = await self._api.raw_samples(selector, before, end, chunk=chunk)
                self._compare(known, before, new)
                answer = merged([answer, new])
                if self._is_whole(new):
                    self._extend(known, before, new, end, end)
        for _ in stretches(start, end, min(chunk, MAX_CHUNK_SECONDS)):
            after_each()
        return answer

    async def query_range(self, query: str, start: float, end: float, step: float) -> Rows:
        """As PrometheusApi.query_range."""
        step = max(round(step, 3), 0.001)
        last = start + int((end - start) / step + 1e-6) * step
        known = self._kept.evaluated(query, start, step)
        if known is None:
            answer = await self._api.query_range(query, start, end, step)
            if self._is_whole(answer) and start <= self._settled:
                made = _Stretch(start, start)
                self._extend(made, start, answer, last, self._last_point(start, last, step))
                self._kept.keep_evaluated(query, step, made)
            return answer
        known.used = True
        answer = Rows(tuple(_cut(known.rows, start - step / 2, last + step / 2).values()))
        before = known.end
        if before + step > last + step / 2:
            return answer
        new = await self._api.query_range(query, before + step, last, step)
        self._compare(known, before, new)
        if self._is_whole(new):
            self._extend(known, before, new, last, self._last_point(before, last, step))
        return merged([answer, new])

    def _last_point(self, start: float, last: float, step: float) -> float:
        """The last point that is settled."""
        return start + int((min(self._settled, last) - start) / step + 1e-6) * step

    @staticmethod
    def _is_whole(answer: Rows) -> bool:
        """False for an answer with a warning: a store that did not take part may do so next time."""
        return not answer.warnings

    def _extend(self, stretch: _Stretch, before: float, new: Rows, end: float, settled: float) -> None:
        """Keep what is settled of samples after `before`, and what the block after them looks like now."""
        if stretch.end != before:  # the same question twice in one look, and the other answer came first
            return
        settled = min(settled, self._settled)
        if end > self._settled:
            # After the last sample of all rows everything may be yet to come, as long as a gap is short.
            newest = max((row.times[-1] for row in new.rows if len(row.times)), default=before)
            settled = min(settled, max(newest, self._settled - MOST_GAP_SECONDS))
        stretch.end = max(settled, stretch.end)
        for row in new.rows:
            last = bisect_right(row.times, stretch.end + 5e-4)
            if not last:
                continue
            key = frozenset(row.labels.items())
            if (known := stretch.rows.get(key)) is None:
                stretch.rows[key] = Row(row.labels, row.times[:last], row.values[:last])
            else:
                known.times.extend(row.times[:last])
                known.values.extend(row.values[:last])
        stretch.recent_end = min(end, self._recent)
        stretch.recent = _between(new.rows, stretch.end, stretch.recent_end)

    def _compare(self, known: _Stretch, before: float, new: Rows) -> None:
        if known.end != before or not self._is_whole(new):
            return
        if known.recent != _between(new.rows, before, known.recent_end):
            self.past_changed = True


def _cut(rows: Mapping[_Labels, Row], start: float, end: float) -> dict[_Labels, Row]:
    """Copies of the samples after the start, up to the end."""
    found = {}
    for key, row in rows.items():
        first, last = bisect_right(row.times, start), bisect_right(row.times, end)
        if first < last:
            found[key] = Row(row.labels, row.times[first:last], row.values[first:last])
    return found


def _between(rows: Iterable[Row], start: float, end: float) -> dict[_Labels, tuple[bytes, bytes]]:
    """Samples of each row after the start, up to the end, to compare: NaN is what it is."""
    found = {}
    for row in rows:
        first, last = bisect_right(row.times, start + 5e-4), bisect_right(row.times, end + 5e-4)
        if first < last:
            of_row = row.times[first:last].tobytes(), row.values[first:last].tobytes()
            found[frozenset(row.labels.items())] = of_row
    return found
