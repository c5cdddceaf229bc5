"""All servers: which one needs a look, and why."""

from __future__ import annotations

from brimline_dashboards.boards.common import (
    FLEET,
    LINKS,
    OF_JOBS,
    OF_SERVERS,
    ON,
    SERVER,
    UP,
    common_variables,
    m,
    recorded,
    restarts,
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
    Threshold,
    query_variable,
    stat,
    state_timeline,
    table,
    text,
    timeseries,
    to_board,
)


def _chosen(expr: str) -> str:
    """Of the servers of the chosen experiment and variant only."""
    return f"({expr}) and on ({ON}) " + m(
        "target_info", f'{OF_SERVERS},experiment=~"$experiment",variant=~"$variant"'
    )


def _glance() -> Row:
    none_is_good = (Threshold(None, GREEN), Threshold(1, RED))
    return Row(
        title="State at a glance",
        panels=(
            stat(
                "Servers down",
                "Servers whose page could not be read in the last scrape. Their other numbers are absent.",
                [
                    Query(
                        f"count({_chosen(m('target_up') + ' == 0')}) or 0 * count({_chosen(m('target_up'))})"
                    )
                ],
                "none",
                thresholds=none_is_good,
                no_value="No servers",
            ),
            stat(
                "Lowest headroom",
                "The server with the least memory left on its fullest GPU, once all is taken that is predicted. "
                "Negative: out of memory is to be expected. Absent where nothing is predicted.",
                [Query(f"bottomk(1, {_chosen(recorded('target:memory_headroom:bytes'))})", "{{target}}")],
                "bytes",
                thresholds=(Threshold(None, RED), Threshold(0, ORANGE), Threshold(2 << 30, GREEN)),
                names=True,
                no_value="Not known",
            ),
            stat(
                "Fullest KV cache",
                "The fullest KV cache of all servers. Near 100 % requests wait or are preempted; no crash follows.",
                [Query(f"topk(1, {_chosen(recorded('target:kv_cache_usage:ratio'))})", "{{target}}")],
                "percentunit",
                thresholds=(Threshold(None, BLUE), Threshold(0.9, ORANGE), Threshold(0.97, RED)),
                names=True,
                no_value="Not stated",
            ),
            stat(
                "Preempting",
                "Servers that threw requests out of their KV cache within the last five minutes.",
                [
                    Query(
                        f"count({_chosen(recorded('target:preemptions:rate5m') + ' > 0')})"
                        f" or 0 * count({_chosen(m('target_up'))})"
                    )
                ],
                "none",
                thresholds=none_is_good,
                no_value="No servers",
            ),
            stat(
                "Out of plan",
                "Servers whose plan exceeds the card: everything by its high bound and one full-length request do "
                "not fit. A spike may end them.",
                [
                    Query(
                        f"count({_chosen(m('predicted_fits') + ' == 0')})"
                        f" or 0 * count({_chosen(m('predicted_fits'))})"
                    )
                ],
                "none",
                thresholds=none_is_good,
                no_value="Not predicted",
            ),
            stat(
                "Generated tokens",
                "Tokens per second of all servers together.",
                [Query(f"sum({_chosen(recorded('target:generation_tokens:rate5m'))})")],
                "suffix: tok/s",
                thresholds=(Threshold(None, BLUE),),
                graph=True,
                no_value="Idle",
            ),
        ),
    )


def _table() -> Row:
    columns = [
        Column(
            source="target",
            title="Server",
            link=("Open this server", to_board(SERVER, target="${__value.text}", job="${__data.fields.job}")),
        ),
        Column(source="job", title="Job", width=110),
        Column(source="engine", title="Engine", width=90),
        Column(source="variant", title="Variant", width=110),
        Column(source="Value #A", title="State", mappings=UP, width=80),
        Column(
            source="Value #B",
            title="Headroom",
            unit="bytes",
            thresholds=(Threshold(None, RED), Threshold(0, ORANGE), Threshold(2 << 30, GREEN)),
        ),
        Column(source="Value #C", title="In use, fullest GPU", unit="bytes"),
        Column(source="Value #D", title="Planned", unit="bytes"),
        Column(source="Value #E", title="KV cache", unit="percentunit", bar=True),
        Column(source="Value #F", title="Running", unit="none", width=90),
        Column(source="Value #G", title="Waiting", unit="none", width=90),
        Column(source="Value #H", title="Generated", unit="suffix: tok/s", decimals=0),
        Column(source="Value #I", title="Room for full requests", unit="none", decimals=1),
    ]
    by = "max by (job, instance, target, engine, variant)"
    info = m("target_info", f'{OF_SERVERS},experiment=~"$experiment",variant=~"$variant"')

    def joined(expr: str) -> str:
        return f"{by} (({expr}) * on ({ON}) group_left (engine, variant) {info})"

    return Row(
        title="Servers",
        panels=(
            table(
                "Servers",
                "Every server with what it has left, predicted beside observed. A click on a name opens its board. "
                "“–” means that it is not known, never zero.",
                [
                    Query(joined(m("target_up"))),
                    Query(joined(_bare(recorded("target:memory_headroom:bytes")))),
                    Query(joined(_bare(recorded("target:memory_used:bytes")))),
                    Query(joined(_bare(recorded("target:memory_planned:bytes")))),
                    Query(joined(_bare(recorded("target:kv_cache_usage:ratio")))),
                    Query(joined(_bare(recorded("target:requests_running:sum")))),
                    Query(joined(_bare(recorded("target:requests_waiting:sum")))),
                    Query(joined(_bare(recorded("target:generation_tokens:rate5m")))),
                    Query(joined(_bare(recorded("target:kv_cache_full_requests_left:count")))),
                ],
                columns,
                join="target",
                height=10,
                sort="Headroom",
            ),
        ),
    )


def _bare(expr: str) -> str:
    """Without the labels that recorded series carry besides, so that those of target_info join."""
    return f"max by ({ON}) ({expr})"


def _history() -> Row:
    return Row(
        title="Over time",
        panels=(
            state_timeline(
                "Up and down",
                "When each server could be read.",
                [Query(_chosen(m("target_up")), "{{target}}")],
                UP,
                no_value="No servers",
            ),
            timeseries(
                "Headroom by server",
                "What stays free on each server's fullest GPU once the plan is used up.",
                [Query(_chosen(recorded("target:memory_headroom:bytes")), "{{target}}")],
                "bytes",
                minimum=None,
                no_value="Not known",
            ),
            timeseries(
                "KV cache by server",
                "Share of the KV cache in use, fullest rank.",
                [Query(_chosen(recorded("target:kv_cache_usage:ratio")), "{{target}}")],
                "percentunit",
                maximum=1,
                no_value="Not stated",
            ),
            timeseries(
                "Generated tokens by server",
                "Tokens per second of each server.",
                [Query(_chosen(recorded("target:generation_tokens:rate5m")), "{{target}}")],
                "suffix: tok/s",
                no_value="Idle",
            ),
            timeseries(
                "Waiting requests by server",
                "Requests that wait to be computed.",
                [Query(_chosen(recorded("target:requests_waiting:sum")), "{{target}}")],
                "suffix: req",
            ),
            timeseries(
                "How far the KV pool is from its prediction",
                "(observed − predicted) / predicted of each server's KV cache. A pool much smaller than predicted "
                "was squeezed by something else on the GPU when the server started.",
                [
                    Query(
                        _chosen(m("prediction_error_ratio", f'{OF_SERVERS},component="kv_cache"')),
                        "{{target}}",
                    )
                ],
                "percentunit",
                minimum=None,
                no_value="Nothing is predicted",
            ),
            text(
                "Where the numbers come from",
                "Memory and headroom stand on the recording rules that come with Brimline; without them those "
                "panels are empty. Simulated servers say so on their own board.",
                height=3,
            ),
        ),
    )


def board() -> Board:
    """brimline-fleet"""
    info = m("target_info", OF_JOBS)
    return Board(
        uid=FLEET,
        title="Brimline / Fleet",
        description="All inference servers: which one needs a look, and why.",
        rows=(_glance(), _table(), _history()),
        variables=(
            *common_variables(),
            query_variable("experiment", "Experiment", f"label_values({info}, experiment)"),
            query_variable("variant", "Variant", f"label_values({info}, variant)"),
        ),
        annotations=restarts(OF_SERVERS),
        links=LINKS,
    )
