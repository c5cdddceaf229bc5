"""Two variants of an experiment on one screen: predicted, observed, and what may be concluded.

The exporter knows both sides but judges nothing: verdicts are those of `brimline ab watch`, and where none runs
the board says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from brimline import verdicts
from brimline_dashboards.boards.common import (
    AB,
    LINKS,
    OF_JOBS,
    by_server,
    experiment_variable,
    job_variable,
    m,
    m_bucket,
    m_count,
    m_sum,
    recorded,
    restarts,
    values_of,
)
from brimline_dashboards.panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    SKY,
    Board,
    Column,
    Computed,
    Panel,
    Query,
    Row,
    Style,
    Threshold,
    Unit,
    annotation,
    datasource_variable,
    query_variable,
    stat,
    table,
    text,
    timeseries,
)
from brimline_dashboards.queries import ON, ON_GPU

_EXPERIMENT = f'{OF_JOBS},experiment="$experiment"'
_NAMED = f'{_EXPERIMENT},variant!=""'
_JUDGED = 'experiment="$experiment",candidate="$variant_b"'
_WATCHED = 'experiment="$experiment"'
_ANY_GPU = 'gpu!=""'
NO_VERDICT = "No verdict: brimline ab watch does not run for this experiment"
NOT_JUDGED = "not judged"


@dataclass(frozen=True, slots=True)
class Side:
    """One side of the comparison. letter: A or B; variable: the board's variable with its variant."""

    letter: str
    variable: str
    color: str

    @property
    def selector(self) -> str:
        return f'{_EXPERIMENT},variant="${self.variable}"'

    @property
    def legend(self) -> str:
        return f"{self.letter}: ${self.variable}"

    def recorded(self, name: str) -> str:
        """A recorded series of this side's servers."""
        return recorded(name, self.selector)

    def own(self, expr: str) -> str:
        """Of an expression over all servers, those of this side."""
        return f"({expr}) and on ({ON}) {m('target_info', self.selector)}"

    def rate(self, series: str, window: str) -> str:
        """The sum of a counter's rates over this side's servers."""
        return f"sum({self.own(f'rate({series}[{window}])')})"

    def mean(self, histogram: str, window: str) -> str:
        """Mean of a histogram over all servers of this side; absent without traffic."""
        sums, counts = m_sum(histogram, OF_JOBS), m_count(histogram, OF_JOBS)
        return f"{self.rate(sums, window)} / ({self.rate(counts, window)} > 0)"

    def quantile(self, histogram: str, window: str) -> str:
        """Below which 95 % of a histogram of all servers of this side lie; absent without buckets or traffic."""
        buckets = self.own(f"rate({m_bucket(histogram, OF_JOBS)}[{window}])")
        return f"(histogram_quantile(0.95, sum by (le) ({buckets})) > 0)"

    def most_memory(self, window: str) -> str:
        """Memory in use at its highest on the fullest GPU of any server."""
        gpus = self.own(recorded("target:gpu:info", OF_JOBS))
        peak = f"max_over_time({recorded('gpu:memory_used_peak:bytes', _ANY_GPU)}[{window}])"
        return f"max(({gpus}) * on ({ON_GPU}) group_left () {peak})"

    def over(self, name: str, window: str) -> str:
        """Mean of a recorded series over the window, for each server.

        Not avg_over_time: while a server is down its label engine is empty, which makes it two series, and a
        sum of both counts the server twice.
        """
        series = f"{self.recorded(name)}[{window}]"
        return f"sum by ({ON}) (sum_over_time({series})) / sum by ({ON}) (count_over_time({series}))"

    def ratio(self, numerator: str, denominator: str, window: str) -> str:
        """Quotient of two recorded series' sums of means over the window; absent where nothing is below."""
        above, below = self.over(numerator, window), self.over(denominator, window)
        return f"sum({above}) / (sum({below}) > 0)"

    def mean_of(self, name: str, window: str) -> str:
        """Mean of a recorded series over servers and the window."""
        return f"avg({self.over(name, window)})"

    def per_gpu(self, window: str) -> str:
        """Generated tokens per second and GPU; absent where the GPUs are not known."""
        gpus = f"count({self.own(recorded('target:gpu:info', OF_JOBS))})"
        return f"sum({self.over(_TOKENS, window)}) / {gpus}"


A = Side("A", "variant_a", BLUE)
B = Side("B", "variant_b", ORANGE)
SIDES = (A, B)


@dataclass(frozen=True, slots=True)
class Compared:
    """A row of the table.

    metric: its name in verdicts. expr: a side's value over a window, in base units. factor: from these to the
    unit that the title names.
    """

    metric: str
    title: str
    expr: Callable[[Side, str], str]
    factor: float = 1


def _mean_of(name: str) -> Callable[[Side, str], str]:
    return lambda side, window: side.mean_of(name, window)


def _quantile(histogram: str) -> Callable[[Side, str], str]:
    return lambda side, window: side.quantile(histogram, window)


def _ratio(numerator: str, denominator: str) -> Callable[[Side, str], str]:
    return lambda side, window: side.ratio(numerator, denominator, window)


def _mean(histogram: str) -> Callable[[Side, str], str]:
    return lambda side, window: side.mean(histogram, window)


_TOKENS, _RUNNING = "target:generation_tokens:rate5m", "target:requests_running:sum"
_MIB, _GIB = 2.0**-20, 2.0**-30
_WEIGHTS = f'{OF_JOBS},component="weights"'

COMPARED = (
    Compared("generation_tokens_per_second", "Generated tokens of a server, tok/s", _mean_of(_TOKENS)),
    Compared("generation_tokens_per_second_per_gpu", "… for each GPU, tok/s", Side.per_gpu),
    Compared(
        "tokens_per_running_request",
        "… for each running request, tok/s",
        _ratio(_TOKENS, _RUNNING),
    ),
    Compared("time_to_first_token", "Time to first token, ms", _mean("time_to_first_token_seconds"), 1e3),
    Compared("inter_token_latency", "Time between tokens, ms", _mean("inter_token_latency_seconds"), 1e3),
    Compared("request_latency", "Time of a whole request, s", _mean("request_e2e_latency_seconds")),
    Compared(
        "inter_token_latency_p95",
        "95 % of times between tokens below, ms",
        _quantile("inter_token_latency_seconds"),
        1e3,
    ),
    Compared(
        "time_to_first_token_p95",
        "95 % of times to first token below, ms",
        _quantile("time_to_first_token_seconds"),
        1e3,
    ),
    Compared("requests_waiting", "Waiting requests of a server", _mean_of("target:requests_waiting:sum")),
    Compared(
        "preemptions",
        "Preemptions per million tokens",
        _ratio("target:preemptions:rate5m", _TOKENS),
        1e6,
    ),
    Compared("kv_cache_usage", "KV cache in use, %", _mean_of("target:kv_cache_usage:ratio"), 100),
    Compared(
        "kv_cache_used_bytes_per_request",
        "KV cache of a running request, MiB",
        _ratio("target:kv_cache_used:bytes", _RUNNING),
        _MIB,
    ),
    Compared(
        "kv_bytes_per_token",
        "KV cache in use for each cached token, KiB",
        _ratio("target:kv_cache_used:bytes", "target:kv_cache_used:tokens"),
        2.0**-10,
    ),
    Compared(
        "kv_cache_bytes_per_token",
        "KV cache of a token, KiB",
        _ratio("target:kv_cache_capacity:bytes", "target:kv_cache_capacity:tokens"),
        2.0**-10,
    ),
    Compared(
        "kv_cache_capacity_bytes",
        "KV cache pool, GiB",
        _mean_of("target:kv_cache_capacity:bytes"),
        _GIB,
    ),
    Compared(
        "kv_cache_max_concurrency_requests",
        "Requests of full length at once",
        lambda side, _: f"avg({side.own(m('kv_cache_max_concurrency_requests', OF_JOBS))})",
    ),
    Compared(
        "kv_cache_capacity_tokens",
        "KV cache capacity, thousand tokens",
        _mean_of("target:kv_cache_capacity:tokens"),
        1e-3,
    ),
    Compared(
        "prefix_cache_hit_ratio", "Prefix cache hits, %", _mean_of("target:prefix_cache_hits:ratio5m"), 100
    ),
    Compared(
        "memory_used_bytes",
        "GPU memory in use, fullest GPU, GiB",
        _mean_of("target:memory_used:bytes"),
        _GIB,
    ),
    Compared("memory_used_peak_bytes", "GPU memory in use at most, fullest GPU, GiB", Side.most_memory, _GIB),
    Compared(
        "weights_bytes",
        "Weights where they are measured, GiB",
        lambda side, _: f"avg({side.own(m('measured_memory_bytes', _WEIGHTS))})",
        _GIB,
    ),
    Compared("memory_headroom_bytes", "Headroom, GiB", _mean_of("target:memory_headroom:bytes"), _GIB),
    Compared(
        "prompt_tokens_per_request",
        "Prompt of a request, tokens (should agree)",
        _mean("request_prompt_tokens"),
    ),
)


def _labelled(expr: str, label: str, value: str) -> str:
    return f'label_replace({expr}, "{label}", "{value}", "", "")'


def _union(exprs: Sequence[str]) -> str:
    return "\n or ".join(exprs)


def _compared(side: Side) -> str:
    """One row for each metric, over the shown time range."""
    return _union(
        [
            _labelled(f"{each.factor:.12g} * ({each.expr(side, '$__range')})", "metric", each.metric)
            for each in COMPARED
        ]
    )


def _lines(*, titles: bool) -> str:
    """A row for each metric whether or not it has values; its number is the place in the table."""
    there = f"group({m('target_info', _EXPERIMENT)})"
    rows = []
    for place, each in enumerate(COMPARED, start=1):
        row = _labelled(f"{place} * {there}", "metric", each.metric)
        rows.append(_labelled(row, "title", each.title) if titles else row)
    return _union(rows)


def _verdict_number(selector: str) -> str:
    """The verdict that holds, as its place among WORDS: a tile turns it into words again."""
    states = [
        f'{place} * ({verdicts.VERDICT}{{{selector},verdict="{verdict}"}} == 1)'
        for place, verdict in enumerate(verdicts.WORDS, start=1)
    ]
    return f"max by (metric) ({' or '.join(states)})"


_VERDICT_WORDS = {
    float(place): (words, color)
    for place, (words, color) in enumerate(
        zip(verdicts.WORDS.values(), (GREEN, GREEN, GREY, RED, ORANGE), strict=True), start=1
    )
}


def _verdicts() -> Row:
    overall = f'{_JUDGED},metric="{verdicts.OVERALL}"'
    metrics = f'{_JUDGED},metric!="{verdicts.OVERALL}"'
    variants = f"count(count by (variant) ({m('target_info', _NAMED)}))"
    load = {side.letter: side.rate(m("prompt_tokens_total", OF_JOBS), "$__range") for side in SIDES}
    return Row(
        title="Verdict: B ($variant_b) against A ($variant_a)",
        panels=(
            stat(
                "Variants of this experiment",
                "How many variants report. With fewer than two there is nothing to compare: give two targets the "
                "same `experiment` and different `variant` in the exporter's configuration.",
                [Query(variants)],
                "none",
                mappings={1.0: ("ONE ONLY: nothing to compare", ORANGE)},
                thresholds=(Threshold(None, ORANGE), Threshold(2, BLUE)),
                no_value="NONE: set experiment and variant on two targets",
            ),
            stat(
                "Verdict",
                "The verdict over all metrics that are gates. PASS: no worse than the margins allow. BETTER: PASS, "
                "and better than nothing. INCONCLUSIVE is no pass: wait. NOT COMPARABLE: the two differ in more "
                "than the treatment; `brimline ab run` says in what.",
                [Query(_verdict_number(overall))],
                "none",
                mappings=_VERDICT_WORDS,
                width=8,
                no_value=NO_VERDICT,
            ),
            stat(
                "Sample size",
                "Pairs of time blocks in which both served, on which the verdict stands. Below six (`min_blocks`) nothing "
                "is concluded.",
                [Query(f"max({verdicts.BLOCKS}{{{overall}}})")],
                "suffix: blocks",
                thresholds=(Threshold(None, ORANGE), Threshold(6, BLUE)),
                no_value="Not judged",
            ),
            stat(
                "Time still needed",
                "How much longer both variants must serve until every gate can be told apart from noise. Empty too "
                "once it is decided, and where it cannot be told.",
                [Query(f"max({verdicts.REQUIRED}{{{overall}}})")],
                "s",
                thresholds=(Threshold(None, BLUE),),
                no_value="None, or not known",
            ),
            stat(
                "Load of B beside A",
                "Prompt tokens of B divided by those of A over the shown time. Outside of 0.67 to 1.5 the two do "
                "not do the same work, and only numbers for each request or token compare.",
                [Query(f"{load['B']} / ({load['A']} > 0)")],
                "suffix: ×",
                thresholds=(Threshold(None, ORANGE), Threshold(0.67, BLUE), Threshold(1.5, ORANGE)),
                decimals=2,
                no_value="No traffic, or no two variants",
            ),
            stat(
                "Judged",
                "How long ago the verdict was reached; after each block it is reached anew. Empty while the watch cannot "
                "ask Prometheus: then the verdict beside is an old one, and the watch's log says why.",
                [
                    Query(
                        f"(time() - max({verdicts.JUDGED}{{{_WATCHED}}})) and on () max({verdicts.UP}{{{_WATCHED}}}) == 1"
                    )
                ],
                "s",
                height=5,
                thresholds=(Threshold(None, BLUE), Threshold(7200, ORANGE)),
                no_value="Not judged, or data source fails",
            ),
            stat(
                "May it decide a rollout?",
                "Whether the verdict is for a gate. NO: its blocks are shorter or fewer than its bounds need "
                "(`block_length`, `min_blocks` below the defaults): watch it, and decide nothing by it. The alert "
                "BrimlineVariantWorse and `/api/v1/confirm` heed it, too.",
                [Query(f"min({verdicts.GATE}{{{_WATCHED}}})")],
                "none",
                height=5,
                mappings={1.0: ("YES", GREEN), 0.0: ("NO: for looking only", ORANGE)},
                no_value="Not judged",
            ),
            stat(
                "Verdict for each metric",
                "What `brimline ab watch` concludes of each metric since the experiment's start; it may be looked "
                "at at any time without harm.",
                [Query(_verdict_number(metrics), "{{metric}}")],
                "none",
                mappings=_VERDICT_WORDS,
                width=16,
                height=5,
                names=True,
                no_value=NO_VERDICT,
            ),
            table(
                "A beside B",
                "Each metric over the shown time range: the mean of A, of B, the difference, and what is concluded. "
                "The difference alone proves nothing: noise between two equal servers is often 5 % and more. "
                "“–”: not known for this engine, or no traffic. “not judged”: no metric of the experiment, or no "
                "`brimline ab watch` runs.",
                [
                    Query(
                        f"{_lines(titles=True)} or on (metric) "  # the experiment's own metrics, after the rest
                        f"label_replace(max by (metric) ({verdicts.VERDICT}{{{metrics}}}) * 0 + {len(COMPARED) + 1}, "
                        '"title", "$1", "metric", "(.+)")'
                    ),
                    Query(_compared(A)),
                    Query(_compared(B)),
                    Query(
                        f"max by (metric, verdict) ({verdicts.VERDICT}{{{metrics}}} == 1) or on (metric) "
                        + _labelled(f"({_lines(titles=False)})", "verdict", NOT_JUDGED)
                    ),
                    Query(f"max by (metric) ({verdicts.DELTA}{{{metrics}}})"),
                    Query(f"max by (metric) ({verdicts.DELTA_LOWER}{{{metrics}}})"),
                    Query(f"max by (metric) ({verdicts.DELTA_UPPER}{{{metrics}}})"),
                ],
                [
                    Column(source="Value #A", title="#", width=45),
                    Column(source="title", title="Metric", width=330),
                    Column(source="Value #B", title="A: $variant_a", decimals=2),
                    Column(source="Value #C", title="B: $variant_b", decimals=2),
                    Column(source="difference", title="Δ", decimals=2),
                    Column(source="relative", title="Δ %", unit="percentunit", decimals=1),
                    Column(source="verdict", title="Verdict"),
                    Column(source="Value #E", title="Δ % judged", unit="percentunit", decimals=1),
                    Column(source="Value #F", title="at least", unit="percentunit", decimals=1),
                    Column(source="Value #G", title="at most", unit="percentunit", decimals=1),
                ],
                computed=(
                    Computed(name="difference", left="Value #C", operator="-", right="Value #B"),
                    Computed(name="relative", left="difference", operator="/", right="Value #B"),
                ),
                height=17,
                sort="#",
            ),
        ),
    )


def _live() -> Row:
    chosen = 'experiment="$experiment",variant="$variant_b"'

    def percent(record: str) -> str:
        return f"exp({recorded(record, chosen)}) - 1"

    return Row(
        title="Live: differences without a verdict",
        panels=(
            timeseries(
                "Difference of a quarter of an hour",
                "B against the baseline over the last quarter of an hour, by metric, as the recording rules have it: not "
                "at equal load, without warm-up and restarts left out. It wanders by noise alone; what it proves, the "
                "verdict says.",
                [Query(percent("ab:log_ratio:15m"), "{{metric}}")],
                "percentunit",
                minimum=None,
                width=12,
                no_value="No traffic, or not one baseline: see role in the exporter's configuration",
            ),
            table(
                "Mean of the last four hours",
                "Mean of the quarters of the last four hours, and two standard errors to each side. It describes what "
                "was, and is no bound: seen over days, such an interval leaves out 0 for equal variants, too. The "
                "bounds that may be looked at are those of the verdict.",
                [
                    Query(percent("ab:log_ratio:mean4h")),
                    Query(percent("ab:log_ratio:lower4h")),
                    Query(percent("ab:log_ratio:upper4h")),
                    Query(recorded("ab:log_ratio:blocks4h", chosen)),
                ],
                [
                    Column(source="metric", title="Metric"),
                    Column(source="Value #A", title="Mean Δ %", unit="percentunit", decimals=1),
                    Column(source="Value #B", title="less two errors", unit="percentunit", decimals=1),
                    Column(source="Value #C", title="and two errors", unit="percentunit", decimals=1),
                    Column(source="Value #D", title="Quarters", unit="none"),
                ],
                width=12,
                height=8,
                sort="Metric",
                no_value="less than an hour",
            ),
        ),
    )


def _observed(side: Side) -> str:
    """Bytes on the fullest GPU that are measured, by component, mean over the side's servers."""
    measured = side.own(m("measured_memory_bytes", f'{OF_JOBS},component!="kv_cache"'))
    pool = side.own(m("kv_cache_capacity_bytes", OF_JOBS))
    whole = f"avg({side.recorded('target:memory_used:bytes')})"
    return _union(
        [
            f"avg by (component) ({measured})",
            f"avg by (component) ({_labelled(pool, 'component', 'kv_cache')})",
            _labelled(whole, "component", "all in use"),
        ]
    )


def _predicted(side: Side) -> str:
    whole = f"avg({side.own(m('predicted_total_memory_bytes', OF_JOBS))})"
    return _union(
        [
            f"avg by (component) ({side.own(m('predicted_memory_bytes', OF_JOBS))})",
            _labelled(whole, "component", "all in use"),
        ]
    )


def _counts(side: Side, *, predicted: bool) -> str:
    names = {
        "KV cache capacity of a rank, tokens": (
            "predicted_kv_cache_capacity_tokens",
            "kv_cache_capacity_tokens",
        ),
        "Requests of full length at once": (
            "predicted_kv_cache_max_concurrency_requests",
            "kv_cache_max_concurrency_requests",
        ),
    }
    rows = [
        _labelled(f"avg({side.own(m(ours if predicted else theirs, OF_JOBS))})", "quantity", title)
        for title, (ours, theirs) in names.items()
    ]
    token = (
        f"avg({side.own(m('predicted_kv_cache_bytes_per_token', OF_JOBS))})"
        if predicted
        else f"avg({side.own(m('kv_cache_capacity_bytes', OF_JOBS) + ' / ' + m('kv_cache_capacity_tokens', OF_JOBS))})"
    )
    return _union([*rows, _labelled(token, "quantity", "KV cache of a token, bytes")])


def _predicted_beside_observed() -> Row:
    return Row(
        title="Predicted difference beside observed difference",
        panels=(
            table(
                "Memory by component",
                "Bytes on the fullest GPU, by component: what B should take more than A, and what it does. Sizes are "
                "set when a server starts, so this needs no statistics: it holds within one start. Where the two "
                "differences disagree, the prediction or the launch is not what you think.",
                [
                    Query(_predicted(A)),
                    Query(_predicted(B)),
                    Query(_observed(A)),
                    Query(_observed(B)),
                ],
                [
                    Column(source="component", title="Component"),
                    Column(source="Value #A", title="A predicted", unit="bytes"),
                    Column(source="Value #B", title="B predicted", unit="bytes"),
                    Column(source="predicted", title="Predicted Δ", unit="bytes"),
                    Column(source="Value #C", title="A observed", unit="bytes"),
                    Column(source="Value #D", title="B observed", unit="bytes"),
                    Column(source="observed", title="Observed Δ", unit="bytes"),
                    Column(source="off", title="Off by", unit="bytes"),
                ],
                computed=(
                    Computed(name="predicted", left="Value #B", operator="-", right="Value #A"),
                    Computed(name="observed", left="Value #D", operator="-", right="Value #C"),
                    Computed(name="off", left="observed", operator="-", right="predicted"),
                ),
                width=14,
                height=8,
                sort="A predicted",
                descending=True,
                no_value="not measured",
            ),
            table(
                "Capacity",
                "What the KV cache holds: B divided by A, as predicted and as observed. fp8 in place of 16 bit "
                "should read ×2.00 in both.",
                [
                    Query(_counts(A, predicted=True)),
                    Query(_counts(B, predicted=True)),
                    Query(_counts(A, predicted=False)),
                    Query(_counts(B, predicted=False)),
                ],
                [
                    Column(source="quantity", title="Quantity"),
                    Column(source="Value #C", title="A", unit="short"),
                    Column(source="Value #D", title="B", unit="short"),
                    Column(source="predicted", title="Predicted B÷A", unit="suffix: ×", decimals=2),
                    Column(source="observed", title="Observed B÷A", unit="suffix: ×", decimals=2),
                ],
                computed=(
                    Computed(name="predicted", left="Value #B", operator="/", right="Value #A"),
                    Computed(name="observed", left="Value #D", operator="/", right="Value #C"),
                ),
                width=10,
                height=8,
                no_value="not stated",
            ),
        ),
    )


_STYLES = (
    Style(series="/^A: /", color=BLUE, width=2, is_regex=True),
    Style(series="/^B: /", color=ORANGE, width=2, is_regex=True),
    Style(series="/^predicted A: /", color=BLUE, dashed=True, is_regex=True),
    Style(series="/^predicted B: /", color=ORANGE, dashed=True, is_regex=True),
    Style(series="equal", color=GREY, dotted=True),
)


def _overlay(
    title: str,
    description: str,
    observed: dict[str, str],
    unit: Unit,
    *,
    predicted: dict[str, str] | None = None,
    minimum: float | None = 0,
    maximum: float | None = None,
    no_value: str = "Neither variant has this",
) -> Panel:
    """Both sides on one axis: A blue, B orange, what is predicted of each dashed."""
    queries = [Query(observed[side.letter], side.legend) for side in SIDES]
    if predicted is not None:
        queries += [Query(predicted[side.letter], f"predicted {side.legend}") for side in SIDES]
    return timeseries(
        title,
        description,
        queries,
        unit,
        minimum=minimum,
        maximum=maximum,
        styles=_STYLES,
        width=8,
        no_value=no_value,
    )


def _both(name: str, how: str = "avg") -> dict[str, str]:
    return {side.letter: f"{how}({side.recorded(name)})" for side in SIDES}


def _overlays() -> Row:
    own = {
        name: {side.letter: f"avg({side.own(m(name, OF_JOBS))})" for side in SIDES}
        for name in (
            "predicted_kv_cache_capacity_tokens",
            "predicted_decode_ceiling_tokens_per_second",
        )
    }
    return Row(
        title="On one axis",
        panels=(
            _overlay(
                "KV cache in use",
                "Share of the KV cache in use, mean over each variant's servers, of each one's fullest rank.",
                _both("target:kv_cache_usage:ratio"),
                "percentunit",
                maximum=1,
            ),
            _overlay(
                "KV cache capacity",
                "Tokens that the KV cache of one server holds, and (dashed) what was predicted for a rank. Steps: "
                "the server started anew and found more or less memory.",
                _both("target:kv_cache_capacity:tokens"),
                "suffix: tok",
                predicted=own["predicted_kv_cache_capacity_tokens"],
            ),
            _overlay(
                "GPU memory in use, fullest GPU",
                "Memory in use on the fullest GPU of each variant's servers, and (dashed) what each server itself is "
                "planned to take there.",
                _both("target:memory_used:bytes"),
                "bytes",
                predicted=_both("target:memory_planned:bytes"),
                no_value="No GPU is known for these servers",
            ),
            _overlay(
                "Headroom",
                "What stays free on the fullest GPU once the plan is used up, of the server with least.",
                _both("target:memory_headroom:bytes", "min"),
                "bytes",
                minimum=None,
                no_value="Not known",
            ),
            _overlay(
                "Generated tokens of a server",
                "Tokens per second, mean over each variant's servers, and (dashed) the ceiling that memory "
                "bandwidth sets at the present batch.",
                _both("target:generation_tokens:rate5m"),
                "suffix: tok/s",
                predicted=own["predicted_decode_ceiling_tokens_per_second"],
            ),
            _overlay(
                "Time to first token",
                "Mean over five minutes and all servers of a variant.",
                {side.letter: side.mean("time_to_first_token_seconds", "5m") for side in SIDES},
                "s",
                no_value="No traffic",
            ),
            _overlay(
                "Time between tokens",
                "Mean over five minutes and all servers of a variant.",
                {side.letter: side.mean("inter_token_latency_seconds", "5m") for side in SIDES},
                "s",
                no_value="No traffic",
            ),
            _overlay(
                "Requests running",
                "Running requests of all servers of a variant.",
                _both("target:requests_running:sum", "sum"),
                "suffix: req",
            ),
            _overlay(
                "Requests waiting",
                "Waiting requests of all servers of a variant. One side waits and the other does not: compare them "
                "at a load that both can serve.",
                _both("target:requests_waiting:sum", "sum"),
                "suffix: req",
            ),
        ),
    )


def _normalized() -> Row:
    window = "5m"

    def each(metric: str) -> dict[str, str]:
        [one] = (compared for compared in COMPARED if compared.metric == metric)
        return {side.letter: one.expr(side, window) for side in SIDES}

    def relative(metric: str) -> str:
        sides = each(metric)
        return f"({sides['B']}) / ({sides['A']})"

    return Row(
        title="For equal load: by request, token and GPU",
        panels=(
            _overlay(
                "KV cache of a running request",
                "Bytes of KV cache in use, divided by running requests, over five minutes. Longer prompts raise it "
                "on both sides alike.",
                each("kv_cache_used_bytes_per_request"),
                "bytes",
                no_value="No traffic",
            ),
            _overlay(
                "KV cache of a token",
                "Bytes of KV cache divided by the tokens that it holds, beside (dashed) what is predicted from the "
                "model. Only the model and its dtype decide.",
                each("kv_cache_bytes_per_token"),
                "bytes",
                predicted={
                    side.letter: f"avg({side.own(m('predicted_kv_cache_bytes_per_token', OF_JOBS))})"
                    for side in SIDES
                },
                no_value="Not known for this model",
            ),
            _overlay(
                "Tokens per second of a running request",
                "Generated tokens per second, divided by running requests, over five minutes: what one user sees. "
                "It falls with the batch.",
                each("tokens_per_running_request"),
                "suffix: tok/s",
                no_value="No traffic",
            ),
            _overlay(
                "Tokens per second of a GPU",
                "Generated tokens per second, divided by the GPUs that each variant's servers hold: what a card "
                "earns, if both are asked for the same.",
                each("generation_tokens_per_second_per_gpu"),
                "suffix: tok/s",
                no_value="Not known which GPUs belong to the servers",
            ),
            _overlay(
                "Preemptions per token",
                "Requests thrown out of the KV cache, divided by generated tokens, over five minutes.",
                each("preemptions"),
                "short",
                no_value="Not stated, or no traffic",
            ),
            timeseries(
                "B divided by A",
                "Ratios of B to A over five minutes; on the dotted line both are equal. Lines wander: what they "
                "prove, the verdict says.",
                [
                    Query(relative("tokens_per_running_request"), "tok/s of a request"),
                    Query(relative("inter_token_latency"), "time between tokens"),
                    Query(relative("time_to_first_token"), "time to first token"),
                    Query(f"group({m('target_info', _EXPERIMENT)})", "equal"),
                ],
                "suffix: ×",
                styles=[
                    Style(series="tok/s of a request", color=GREEN, width=2),
                    Style(series="time between tokens", color=RED),
                    Style(series="time to first token", color=SKY, dotted=True),
                    Style(series="equal", color=GREY, dotted=True),
                ],
                width=8,
                no_value="No traffic, or no two variants",
            ),
        ),
    )


def _configuration() -> Row:
    def settings(side: Side) -> str:
        return side.own(m("target_setting_info", OF_JOBS))

    def only(side: Side, other: Side, label: str) -> str:
        """Settings of a side whose value no server of the other side has, the value in a label of its own."""
        alone = f"({settings(side)}) unless on (setting, value) ({settings(other)})"
        return f'group by (setting, {label}) (label_replace({alone}, "{label}", "$1", "value", "(.*)"))'

    def named(expr: str, *labels: str) -> str:
        """With the variant of the server, counted by it and the labels."""
        info = m("target_info", _EXPERIMENT)
        return (
            f"count by ({', '.join(('variant', *labels))}) (({expr}) * on ({ON}) group_left (variant) {info})"
        )

    cards = f"{m('target_gpu_info', OF_JOBS)} * on (job, instance, gpu) group_left (name) {m('gpu_info', OF_JOBS)}"
    return Row(
        title="What differs",
        panels=(
            table(
                "Settings that differ",
                "Settings whose value in A no server of B has, and the other way round; declared or live. This "
                "should be the treatment and nothing else. “–”: that side does not state it.",
                [Query(only(A, B, "value_a")), Query(only(B, A, "value_b"))],
                [
                    Column(source="setting", title="Setting"),
                    Column(source="value_a", title="A: $variant_a"),
                    Column(source="value_b", title="B: $variant_b"),
                ],
                width=9,
                sort="Setting",
            ),
            table(
                "Servers of the experiment",
                "Each variant's engine, version, cards and digests of its configuration, with how many servers. "
                "Unlike cards or versions make a comparison worthless unless they are the treatment.",
                [
                    Query(
                        "count by (variant, role, engine, engine_version, simulated) "
                        f"({m('target_info', _EXPERIMENT)})"
                    ),
                    Query(named(m("target_config_fingerprint_info", OF_JOBS), "fingerprint")),
                    Query(named(cards, "name")),
                ],
                [
                    Column(source="variant", title="Variant"),
                    Column(source="role", title="Role"),
                    Column(source="Value #A", title="Servers", unit="none", width=80),
                    Column(source="engine", title="Engine"),
                    Column(source="engine_version", title="Version"),
                    Column(source="fingerprint", title="Configuration"),
                    Column(source="name", title="Card"),
                    Column(source="Value #C", title="Cards", unit="none", width=70),
                    Column(source="simulated", title="Simulated"),
                ],
                width=15,
                sort="Variant",
            ),
            text(
                "How to read this board",
                "**A** is blue, **B** orange; solid lines are measured, **dashed lines are predicted**. Nothing here "
                "is a verdict but the row at the top: a difference that shows on a graph may be noise, and looking "
                "until it appears finds one always. Fewer than two variants: all of A and B stays empty.",
                height=3,
            ),
        ),
    )


def _each_variant() -> Row:
    chosen = f'{_EXPERIMENT},variant=~"$variant"'

    def line(title: str, description: str, name: str, unit: Unit, *, maximum: float | None = None) -> Panel:
        """Each server of the variant; where the axis has no natural end, a line that is the same for all."""
        queries = [Query(by_server(name, chosen), "{{target}}")]
        if maximum is None:
            highest = f"max(max_over_time({recorded(name, _EXPERIMENT)}[$__range] @ end()))"
            queries.append(Query(highest, "highest of all variants"))
        return timeseries(
            title,
            description,
            queries,
            unit,
            maximum=maximum,
            styles=[Style(series="highest of all variants", color=GREY, dotted=True)],
            width=6,
            no_value="Not known of this variant",
        )

    used, free = by_server("target:memory_used:bytes", chosen), by_server("target:memory_free:bytes", chosen)
    share = f"{used} / on ({ON}) ({used} + on ({ON}) {free})"
    return Row(
        title="Variant $variant",
        repeat="variant",
        panels=(
            line(
                "KV cache in use",
                "Share of the KV cache in use, by server. The axis is that of all variants.",
                "target:kv_cache_usage:ratio",
                "percentunit",
                maximum=1,
            ),
            timeseries(
                "GPU memory in use",
                "Share of the fullest GPU's memory in use, by server. The axis is that of all variants.",
                [Query(share, "{{target}}")],
                "percentunit",
                maximum=1,
                width=6,
                no_value="No GPU is known for these servers",
            ),
            line(
                "Generated tokens",
                "Tokens per second, by server. The dotted line is the highest of all variants, so that every "
                "variant has the same axis.",
                "target:generation_tokens:rate5m",
                "suffix: tok/s",
            ),
            line(
                "Time between tokens",
                "Mean time between two outputs of a request, by server. The dotted line is the highest of all "
                "variants, so that every variant has the same axis.",
                "target:inter_token_latency:mean5m",
                "s",
            ),
        ),
    )


def board() -> Board:
    """brimline-ab"""
    return Board(
        uid=AB,
        title="Brimline / A/B",
        description="Two variants of an experiment: predicted, observed, and what may be concluded.",
        rows=(
            _verdicts(),
            _live(),
            _predicted_beside_observed(),
            _overlays(),
            _normalized(),
            _configuration(),
            _each_variant(),
        ),
        variables=(
            datasource_variable(),
            job_variable(),
            experiment_variable(multi=False),
            query_variable(
                "variant_a",
                "A",
                values_of("variant", f'{_NAMED},role!="candidate"'),
                multi=False,
                include_all=False,
                description="The baseline: any variant whose role is not candidate.",
            ),
            query_variable(
                "variant_b",
                "B",
                values_of("variant", f'{_NAMED},variant!="$variant_a"'),
                multi=False,
                include_all=False,
                description="What is compared with it: any other variant.",
            ),
            query_variable(
                "variant",
                "Shown below",
                values_of("variant", _NAMED),
                description="Variants that stand side by side at the end of the board.",
            ),
        ),
        annotations=(
            *restarts(OF_JOBS, f" and on ({ON}) {m('target_info', _EXPERIMENT)}"),
            annotation(
                "Experiment",
                f"1000 * max by (experiment) ({verdicts.STARTED}{{{_WATCHED}}})",
                BLUE,
                "{{experiment}} began",
                "From here on blocks are counted.",
            ),
            annotation(
                "Verdict",
                f"1000 * max by (candidate, verdict) ({verdicts.CHANGED}{{{_WATCHED}}})",
                GREEN,
                "{{candidate}}: {{verdict}}",
                "The verdict over all gates became another one here.",
            ),
        ),
        links=LINKS,
    )
