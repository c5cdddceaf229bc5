"""All servers: which one needs a look, and why."""

from __future__ import annotations

from brimline_dashboards.boards.common import (
    AB,
    FLEET,
    LINKS,
    OF_EXPORTERS,
    OF_JOBS,
    OF_SERVERS,
    SERVER,
    UP,
    by_server,
    common_variables,
    experiment_variable,
    m,
    of_all,
    recorded,
    restarts,
    values_of,
)
from brimline_dashboards.panels import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    Board,
    Column,
    Query,
    Row,
    Style,
    Threshold,
    query_variable,
    stat,
    state_timeline,
    status_history,
    table,
    text,
    timeseries,
    to_board,
)
from brimline_dashboards.queries import ON

_CHOSEN = f'{OF_SERVERS},experiment=~"$experiment",variant=~"$variant"'
_NONE_IS_GOOD = (Threshold(None, GREEN), Threshold(1, RED))
_LOW = (Threshold(None, RED), Threshold(0, ORANGE), Threshold(2 << 30, GREEN))


def _chosen(expr: str) -> str:
    """Of the servers of the chosen experiment and variant only."""
    return f"({expr}) and on ({ON}) {m('target_info', _CHOSEN)}"


def _named(name: str) -> str:
    return _chosen(by_server(name))


def _glance() -> Row:
    used, free = by_server("target:memory_used:bytes"), by_server("target:memory_free:bytes")
    up = _chosen(m("target_up"))
    return Row(
        title="State at a glance",
        panels=(
            stat(
                "Servers down",
                "Servers whose page could not be read in the last scrape. Their other numbers are absent. Open "
                "the one that the table below shows as DOWN; its board says why.",
                [Query(of_all(_chosen(f"{m('target_up')} == 0"), up))],
                "none",
                thresholds=_NONE_IS_GOOD,
                no_value="No servers",
            ),
            stat(
                "Lowest headroom",
                "The server with the least memory left on its fullest GPU, once all is taken that is predicted. "
                "Negative: out of memory is to be expected; lower its context window, batch or memory share "
                "before it happens. Absent where nothing is predicted.",
                [Query(f"bottomk(1, {_named('target:memory_headroom:bytes')})", "{{target}}")],
                "bytes",
                thresholds=_LOW,
                names=True,
                no_value="Not known",
            ),
            stat(
                "Out of plan",
                "Servers on whose fullest GPU more is in use than all plans together allow by their high bounds. "
                "Something that nobody planned holds memory: open the GPU's board.",
                [
                    Query(
                        of_all(
                            _chosen(f"{recorded('target:memory_above_plan:bytes')} > 0"),
                            _named("target:memory_above_plan:bytes"),
                        )
                    )
                ],
                "none",
                thresholds=_NONE_IS_GOOD,
                no_value="Not predicted",
            ),
            stat(
                "Plan exceeds the card",
                "Servers of which everything by its high bound and one full-length request do not fit the card. A "
                "spike may end them without a trend before it: give them less to hold.",
                [Query(of_all(_chosen(f"{m('predicted_fits')} == 0"), _chosen(m("predicted_fits"))))],
                "none",
                thresholds=_NONE_IS_GOOD,
                no_value="Not predicted",
            ),
            stat(
                "Soonest out of memory",
                "The server whose free memory reaches zero first, if use goes on growing as in the last hour. "
                "A server that started within the hour is not judged yet.",
                [Query(f"bottomk(1, {_named('target:memory_exhaustion:seconds')})", "{{target}}")],
                "s",
                thresholds=(Threshold(None, RED), Threshold(3600, ORANGE), Threshold(86400, GREEN)),
                names=True,
                no_value="None that is up for an hour is growing",
            ),
            stat(
                "GPUs that cannot be read",
                "GPUs whose memory the driver does not tell at present. Nothing can be said about memory there; "
                "the exporter's board gives the reason.",
                [Query(f"sum(1 - {m('gpu_up', OF_EXPORTERS)})")],
                "none",
                thresholds=_NONE_IS_GOOD,
                no_value="Not read through NVML",
            ),
            stat(
                "Preempting",
                "Servers that threw requests out of their KV cache within the last five minutes. It costs tokens, "
                "and is no crash: give the cache more memory or admit fewer requests.",
                [
                    Query(
                        of_all(
                            _chosen(f"{recorded('target:preemptions:rate5m')} > 0"),
                            _named("target:preemptions:rate5m"),
                        )
                    )
                ],
                "none",
                thresholds=(Threshold(None, GREEN), Threshold(1, ORANGE)),
                no_value="Not stated",
            ),
            stat(
                "Fullest KV cache",
                "The fullest KV cache of all servers. Near 100 % requests wait or are preempted; no crash follows.",
                [Query(f"topk(1, {_named('target:kv_cache_usage:ratio')})", "{{target}}")],
                "percentunit",
                thresholds=(Threshold(None, BLUE), Threshold(0.9, ORANGE), Threshold(0.97, RED)),
                names=True,
                no_value="Not stated",
            ),
            stat(
                "No room for a full request",
                "Servers whose KV cache could not take one more request of the whole context window now. A long "
                "prompt would wait there, or push others out.",
                [
                    Query(
                        of_all(
                            _chosen(f"{recorded('target:kv_cache_full_requests_left:count')} < 1"),
                            _named("target:kv_cache_full_requests_left:count"),
                        )
                    )
                ],
                "none",
                thresholds=(Threshold(None, GREEN), Threshold(1, ORANGE)),
                no_value="Not stated",
            ),
            stat(
                "Waiting requests",
                "Requests that wait to be computed, on all servers. Beside a full KV cache memory binds, beside a "
                "free one computing does.",
                [Query(f"sum({_named('target:requests_waiting:sum')})")],
                "none",
                thresholds=(Threshold(None, BLUE),),
                no_value="No servers",
            ),
            stat(
                "Generated tokens",
                "Tokens per second of all servers together, over the last five minutes.",
                [Query(f"sum({_named('target:generation_tokens:rate5m')})")],
                "suffix: tok/s",
                thresholds=(Threshold(None, BLUE),),
                decimals=0,
                no_value="No servers",
            ),
            stat(
                "Servers with a problem",
                "Servers of which something could not be read, understood or predicted. The exporter's board lists "
                "what.",
                [Query(of_all(f"count by ({ON}) ({_chosen(m('target_problem'))})", up))],
                "none",
                thresholds=(Threshold(None, GREEN), Threshold(1, ORANGE)),
                no_value="No servers",
            ),
            status_history(
                "Heat: GPU memory in use",
                "Share of the fullest GPU's memory in use, for each server; darker is fuller. Engines take nine "
                "tenths on purpose: look for a line that darkens.",
                [Query(_chosen(f"{used} / on ({ON}) ({used} + on ({ON}) {free})"), "{{target}}")],
                "percentunit",
                maximum=1,
                no_value="No GPU is known for these servers",
            ),
            status_history(
                "Heat: KV cache in use",
                "Share of the KV cache that requests hold, for each server, fullest rank; darker is fuller. A dark "
                "line beside light ones: requests are spread unevenly.",
                [Query(_named("target:kv_cache_usage:ratio"), "{{target}}")],
                "percentunit",
                maximum=1,
                no_value="Not stated",
            ),
        ),
    )


def _table() -> Row:
    columns = [
        Column(
            source="target",
            title="Server",
            link=(
                "Open this server",
                to_board(
                    SERVER,
                    target="${__value.text}",
                    job="${__data.fields.job}",
                    instance="${__data.fields.instance}",
                ),
            ),
        ),
        Column(source="job", title="Job", width=80),
        Column(source="instance", title="Exporter", width=130),
        Column(source="engine", title="Engine", width=70),
        Column(
            source="experiment",
            title="Experiment",
            width=120,
            link=(
                "Compare its variants",
                to_board(AB, experiment="${__value.text}", job="${__data.fields.job}"),
            ),
        ),
        Column(source="variant", title="Variant", width=100),
        Column(source="Value #B", title="State", mappings=UP, width=70),
        Column(source="Value #C", title="Headroom", unit="bytes", thresholds=_LOW, width=90),
        Column(source="Value #D", title="Observed", unit="bytes", width=90),
        Column(source="Value #E", title="Predicted", unit="bytes", width=90),
        Column(source="Value #F", title="KV used", unit="percentunit", bar=True, width=140),
        Column(source="Value #G", title="Full requests left", unit="none", decimals=1, width=125),
        Column(source="Value #H", title="Running", unit="none", width=75),
        Column(source="Value #I", title="Waiting", unit="none", width=75),
        Column(source="Value #J", title="Generated", unit="suffix: tok/s", decimals=0, width=100),
        Column(source="Value #K", title="Problems", unit="none", width=80),
    ]

    def by_server(expr: str) -> str:
        return f"max by ({ON}) ({_chosen(expr)})"

    identity = f"max by ({ON}, engine, experiment, variant) ({m('target_info', _CHOSEN)})"
    measured = [
        m("target_up"),
        *map(
            recorded,
            (
                "target:memory_headroom:bytes",
                "target:memory_used:bytes",
                "target:memory_planned:bytes",
                "target:kv_cache_usage:ratio",
                "target:kv_cache_full_requests_left:count",
                "target:requests_running:sum",
                "target:requests_waiting:sum",
                "target:generation_tokens:rate5m",
            ),
        ),
        f"count by ({ON}) ({m('target_problem')})",
    ]
    return Row(
        title="Servers",
        panels=(
            table(
                "Servers",
                "Every server with what it has left, predicted beside observed on its fullest GPU. A click on a "
                "name opens its board, one on an experiment compares its variants. “–” means that it is not "
                "known, never zero.",
                [Query(identity), *(Query(by_server(expr)) for expr in measured)],
                columns,
                height=10,
                sort="Headroom",
            ),
        ),
    )


def _history() -> Row:
    here = to_board(SERVER, target="${__field.labels.target}", instance="${__field.labels.instance}")
    links = ({"title": "Open this server", "url": here},)
    return Row(
        title="Over time",
        panels=(
            state_timeline(
                "Up and down",
                "When each server could be read. Gaps: the exporter itself was away.",
                [Query(_chosen(m("target_up")), "{{target}}")],
                UP,
                no_value="No servers",
            ),
            timeseries(
                "Headroom by server",
                "What stays free on each server's fullest GPU once the plan is used up. A line that falls for an "
                "hour and more is growth that nobody planned.",
                [Query(_named("target:memory_headroom:bytes"), "{{target}}")],
                "bytes",
                minimum=None,
                no_value="Not known",
                links=links,
            ),
            timeseries(
                "KV cache by server",
                "Share of the KV cache in use, fullest rank.",
                [Query(_named("target:kv_cache_usage:ratio"), "{{target}}")],
                "percentunit",
                maximum=1,
                no_value="Not stated",
                links=links,
            ),
            timeseries(
                "Tokens per second by server",
                "Tokens that each server generates (solid) and prompt tokens that it reads (dotted), over five "
                "minutes.",
                [
                    Query(_named("target:generation_tokens:rate5m"), "{{target}}"),
                    Query(_named("target:prompt_tokens:rate5m"), "{{target}}: prompt"),
                ],
                "suffix: tok/s",
                styles=[Style(series="/: prompt$/", dotted=True, is_regex=True)],
                no_value="No servers",
                links=links,
            ),
            timeseries(
                "Waiting requests by server",
                "Requests that wait to be computed.",
                [Query(_named("target:requests_waiting:sum"), "{{target}}")],
                "suffix: req",
                no_value="No servers",
                links=links,
            ),
            timeseries(
                "How far the KV pool is from its prediction",
                "(observed − predicted) / predicted of each server's KV cache. A pool much smaller than predicted "
                "was squeezed by something else on the GPU when the server started: free it and restart.",
                [
                    Query(
                        _chosen(m("prediction_error_ratio", f'{OF_SERVERS},component="kv_cache"')),
                        "{{target}}",
                    )
                ],
                "percentunit",
                minimum=None,
                no_value="Nothing is predicted",
                links=links,
            ),
            text(
                "Where the numbers come from",
                "Memory, headroom and rates stand on the recording rules that come with Brimline; without them "
                "those panels are empty. “Observed” is measured by NVML or dcgm-exporter, “predicted” is computed "
                "from the model and the launch settings. Simulated servers say so on their own board.",
                height=3,
            ),
        ),
    )


def board() -> Board:
    """brimline-fleet"""
    return Board(
        uid=FLEET,
        title="Brimline / Fleet",
        description="All inference servers: which one needs a look, and why.",
        rows=(_glance(), _table(), _history()),
        variables=(
            *common_variables(),
            experiment_variable(),
            query_variable(
                "variant",
                "Variant",
                values_of("variant", f'{OF_JOBS},experiment=~"$experiment"'),
                all_value=".*",
            ),
        ),
        annotations=restarts(OF_SERVERS),
        links=LINKS,
    )
