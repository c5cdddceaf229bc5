"""One server: what its memory is used for, what is left, and how it serves."""

from __future__ import annotations

from brimline_dashboards.boards.common import (
    GPU,
    LINKS,
    OF_SERVER,
    ON,
    SERVER,
    UP,
    YES_NO,
    common_variables,
    component_styles,
    m,
    m_count,
    m_sum,
    plan_styles,
    ratio_of,
    recorded,
    restarts,
)
from brimline_dashboards.panels import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    SKY,
    Board,
    Column,
    Json,
    Query,
    Row,
    Style,
    Threshold,
    query_variable,
    stat,
    table,
    text,
    timeseries,
    to_board,
)

_GPU = 'job=~"$job",gpu=~"$gpu"'


def _gpu_variable() -> Json:
    return query_variable("gpu", "GPU", f"label_values({m('target_gpu_info', OF_SERVER)}, gpu)")


def _rate(name: str) -> str:
    return f"sum by (target) (rate({m(name, OF_SERVER)}[$__rate_interval]))"


def _mean(name: str) -> str:
    return ratio_of(
        f"sum by (target) (rate({m_sum(name, OF_SERVER)}[$__rate_interval]))",
        f"sum by (target) (rate({m_count(name, OF_SERVER)}[$__rate_interval]))",
    )


def _at_a_glance() -> Row:
    low = (Threshold(None, RED), Threshold(0, ORANGE), Threshold(2 << 30, GREEN))
    return Row(
        title="At a glance",
        panels=(
            stat(
                "State",
                "Whether the server's page was read and understood in the last scrape. DOWN: look at the "
                "problems below; every other number is then absent, not old.",
                [Query(m("target_up", OF_SERVER))],
                "none",
                mappings=UP,
                width=3,
            ),
            stat(
                "Headroom",
                "What stays free on the fullest GPU once all servers on it have taken what they are predicted "
                "to. Negative: out of memory is to be expected. Absent without a prediction or without a GPU: "
                "see the runbook.",
                [Query(recorded("target:memory_headroom:bytes", OF_SERVER))],
                "bytes",
                thresholds=low,
                graph=True,
                width=4,
                no_value="Not known",
            ),
            stat(
                "Time to exhaustion",
                "Time until nothing is free on the fullest GPU, if memory goes on growing as in the last hour. "
                "“Not growing” is the usual state.",
                [Query(recorded("target:memory_exhaustion:seconds", OF_SERVER))],
                "s",
                thresholds=(Threshold(None, RED), Threshold(3600, ORANGE), Threshold(86400, GREEN)),
                width=4,
                no_value="Not growing",
            ),
            stat(
                "KV cache in use",
                "Share of the KV cache that requests hold, of the fullest rank. Near 100 % requests wait or "
                "are preempted: that costs speed, and is no out-of-memory.",
                [Query(recorded("target:kv_cache_usage:ratio", OF_SERVER))],
                "percentunit",
                thresholds=(Threshold(None, BLUE), Threshold(0.9, ORANGE), Threshold(0.97, RED)),
                graph=True,
                width=3,
            ),
            stat(
                "Room for full-length requests",
                "How many more requests of the whole context window fit into the KV cache now.",
                [Query(recorded("target:kv_cache_full_requests_left:count", OF_SERVER))],
                "none",
                thresholds=(Threshold(None, RED), Threshold(1, BLUE)),
                decimals=1,
                width=4,
                no_value="Not stated",
            ),
            stat(
                "Fits its GPU",
                "Whether everything by its high bound and one request of full length fit the card. NO: the plan "
                "exceeds the card, a spike may end the server. The only warning before a spike.",
                [Query(m("predicted_fits", OF_SERVER))],
                "none",
                mappings=YES_NO,
                width=3,
                no_value="Not predicted",
            ),
            stat(
                "Generated tokens",
                "Tokens that the server generates per second, over the last five minutes.",
                [Query(recorded("target:generation_tokens:rate5m", OF_SERVER))],
                "suffix: tok/s",
                thresholds=(Threshold(None, BLUE),),
                graph=True,
                width=3,
                no_value="Idle",
            ),
        ),
    )


def _memory() -> Row:
    explained = m("memory_bytes", f'{_GPU},component!="unaccounted"')
    remainder = m("memory_bytes", f'{_GPU},component="unaccounted"')
    return Row(
        title="GPU memory: what it is used for",
        panels=(
            timeseries(
                "Memory by component",
                "What the memory in use on the chosen GPUs is used for, stacked. `measured` parts come from the "
                "engine or the driver, `predicted` parts from the model and its settings; what neither explains "
                "is `unaccounted` (shown where it is positive; where less is used than predicted it is negative, "
                "see the table). Dashed: the prediction, expected and by its high bound. Red: the cards' memory. "
                "Use that climbs above the dashed high line is not in the plan: find out what allocates it.",
                [
                    Query(f"sum by (component, basis) ({explained})", "{{component}} ({{basis}})"),
                    Query(f"clamp_min(sum({remainder}), 0)", "unaccounted"),
                    Query(f"sum({recorded('gpu:memory_used:bytes', _GPU)})", "in use"),
                    Query(f"sum({recorded('gpu:memory_total:bytes', _GPU)})", "card"),
                    Query(
                        f"sum({m('predicted_total_memory_bytes', OF_SERVER)})"
                        f" * count({recorded('gpu:memory_total:bytes', _GPU)})",
                        "predicted, expected",
                    ),
                    Query(
                        f"sum({m('predicted_total_memory_high_bytes', OF_SERVER)})"
                        f" * count({recorded('gpu:memory_total:bytes', _GPU)})",
                        "predicted, high bound",
                    ),
                ],
                "bytes",
                stack=True,
                styles=[*component_styles(), *plan_styles()],
                width=16,
                height=12,
                no_value="No GPU belongs to this server",
                legend_table=True,
            ),
            table(
                "Predicted beside observed",
                "Each component on the fullest GPU: expected, bounds, and how far a measured one is off. A pool "
                "smaller than predicted means that something else took memory while the server started.",
                [
                    Query(f"sum by (component) ({m('predicted_memory_bytes', OF_SERVER)})"),
                    Query(f"sum by (component) ({m('predicted_memory_low_bytes', OF_SERVER)})"),
                    Query(f"sum by (component) ({m('predicted_memory_high_bytes', OF_SERVER)})"),
                    Query(f"sum by (component) ({m('prediction_error_ratio', OF_SERVER)})"),
                ],
                [
                    Column(source="component", title="Component"),
                    Column(source="Value #A", title="Predicted", unit="bytes"),
                    Column(source="Value #B", title="Low", unit="bytes"),
                    Column(source="Value #C", title="High", unit="bytes"),
                    Column(
                        source="Value #D",
                        title="Observed − predicted",
                        unit="percentunit",
                        decimals=1,
                        thresholds=(Threshold(None, ORANGE), Threshold(-0.05, BLUE), Threshold(0.05, ORANGE)),
                    ),
                ],
                join="component",
                width=8,
                height=12,
                no_value="not measured",
            ),
            timeseries(
                "Headroom",
                "What stays free on the fullest GPU once the plan is used up. Below zero the plan exceeds what "
                "is there.",
                [
                    Query(recorded("target:memory_headroom:bytes", OF_SERVER), "headroom"),
                    Query(recorded("target:memory_free:bytes", OF_SERVER), "free now"),
                ],
                "bytes",
                minimum=None,
                styles=[
                    Style(series="headroom", color=BLUE, width=2),
                    Style(series="free now", color=SKY, dashed=True),
                ],
                no_value="Not known",
            ),
            timeseries(
                "Main memory of the server",
                "Main memory of the server's own cgroup (or processes) beside its limit. A server that reaches "
                "its limit is killed by the kernel, without any word in its log.",
                [
                    Query(m("server_host_memory_used_bytes", OF_SERVER), "in use"),
                    Query(m("server_host_memory_limit_bytes", OF_SERVER), "card: limit"),
                    Query(f"sum({m('predicted_host_memory_bytes', OF_SERVER)})", "predicted, offloaded"),
                ],
                "bytes",
                styles=plan_styles(),
                no_value="Not visible from the exporter",
            ),
        ),
    )


def _kv_cache() -> Row:
    return Row(
        title="KV cache and context window",
        panels=(
            timeseries(
                "KV cache in use",
                "Share of the KV cache that requests hold, for each rank. Cached prefixes that may be dropped "
                "count as free.",
                [Query(m("kv_cache_usage_ratio", OF_SERVER), "rank {{rank}}")],
                "percentunit",
                maximum=1,
                no_value="Not stated by this engine",
            ),
            timeseries(
                "KV cache in tokens",
                "Tokens in use beside the capacity, over all ranks, and the capacity that was predicted (dashed). "
                "Versions of an engine count tokens differently: compare bytes across versions.",
                [
                    Query(recorded("target:kv_cache_used:tokens", OF_SERVER), "in use"),
                    Query(recorded("target:kv_cache_capacity:tokens", OF_SERVER), "card: capacity"),
                    Query(
                        f"sum by (target) ({m('predicted_kv_cache_capacity_tokens', OF_SERVER)}"
                        f" * on ({ON}) group_left count by ({ON}) ({m('kv_cache_usage_ratio', OF_SERVER)}))",
                        "predicted capacity",
                    ),
                ],
                "suffix: tok",
                styles=plan_styles(),
                no_value="Not stated by this engine",
            ),
            timeseries(
                "KV cache in bytes",
                "Bytes of KV cache in use and in all, over all ranks.",
                [
                    Query(recorded("target:kv_cache_used:bytes", OF_SERVER), "in use"),
                    Query(recorded("target:kv_cache_capacity:bytes", OF_SERVER), "card: capacity"),
                ],
                "bytes",
                styles=plan_styles(),
                no_value="Not known for this model",
            ),
            timeseries(
                "Requests that fit at once",
                "Requests of the whole context window that the KV cache holds at once, as the server says and as "
                "predicted. Below 1 the context window does not fit: such a request can never finish.",
                [
                    Query(m("kv_cache_max_concurrency_requests", OF_SERVER), "rank {{rank}}"),
                    Query(
                        m("predicted_kv_cache_max_concurrency_requests", OF_SERVER), "predicted, each rank"
                    ),
                ],
                "none",
                styles=plan_styles(),
                no_value="Not stated by this engine",
            ),
            timeseries(
                "Length of requests",
                "Mean prompt and generated tokens of requests that ended, beside the longest context that is "
                "allowed. Means that climb towards it fill the cache.",
                [
                    Query(_mean("request_prompt_tokens"), "prompt"),
                    Query(_mean("request_generation_tokens"), "generated"),
                    Query(
                        f"max by (target) ({m('max_model_len_tokens', OF_SERVER)})", "card: context window"
                    ),
                ],
                "suffix: tok",
                styles=plan_styles(),
                no_value="No request ended",
            ),
            timeseries(
                "Prefix cache hits",
                "Share of prompt tokens that were found in the prefix cache. Prefixes shorter than one block "
                "never hit.",
                [Query(recorded("target:prefix_cache_hits:ratio5m", OF_SERVER), "hits")],
                "percentunit",
                maximum=1,
                no_value="No traffic",
            ),
        ),
    )


def _load() -> Row:
    return Row(
        title="Load and speed",
        panels=(
            timeseries(
                "Requests",
                "Requests at work and waiting. Waiting beside a full KV cache: memory binds; waiting beside a "
                "free one: computing binds.",
                [
                    Query(f"sum by (target) ({m('requests_running', OF_SERVER)})", "running"),
                    Query(f"sum by (target) ({m('requests_waiting', OF_SERVER)})", "waiting"),
                    Query(
                        f"sum by (reason) ({m('requests_waiting_by_reason', OF_SERVER)})",
                        "waiting for {{reason}}",
                    ),
                ],
                "suffix: req",
                styles=[
                    Style(series="running", color=BLUE),
                    Style(series="waiting", color=ORANGE, width=2),
                    Style(series="/^waiting for/", dashed=True, is_regex=True),
                ],
                width=8,
            ),
            timeseries(
                "Preemptions",
                "Requests thrown out of the KV cache to be computed again, per second. Any lasting rate costs "
                "tokens: lower max_num_seqs or give the cache more memory.",
                [Query(recorded("target:preemptions:rate5m", OF_SERVER), "preemptions")],
                "cps",
                width=8,
                no_value="Not stated by this engine",
            ),
            timeseries(
                "Tokens per second beside the bandwidth ceiling",
                "Generated and prompt tokens per second, and the ceiling that memory bandwidth sets at the "
                "present batch and context (dashed; a ceiling, not a promise). Far below it with requests "
                "waiting: something else binds.",
                [
                    Query(_rate("generation_tokens_total"), "generated"),
                    Query(_rate("prompt_tokens_total"), "prompt"),
                    Query(
                        m("predicted_decode_ceiling_tokens_per_second", OF_SERVER), "predicted decode ceiling"
                    ),
                ],
                "suffix: tok/s",
                styles=[
                    Style(series="generated", color=BLUE, width=2),
                    Style(series="prompt", color=SKY),
                    *plan_styles(),
                ],
                width=8,
            ),
            timeseries(
                "Time to first token",
                "Mean time from a request's arrival to its first token. Means hide tails: quantiles need "
                "`histograms: full`.",
                [Query(recorded("target:time_to_first_token:mean5m", OF_SERVER), "mean")],
                "s",
                width=8,
                no_value="No traffic",
            ),
            timeseries(
                "Time between tokens",
                "Mean time between two outputs of a request.",
                [Query(recorded("target:inter_token_latency:mean5m", OF_SERVER), "mean")],
                "s",
                width=8,
                no_value="No traffic",
            ),
            timeseries(
                "Speculative decoding",
                "Share of proposed tokens that the model accepted.",
                [Query(recorded("target:spec_decode_acceptance:ratio5m", OF_SERVER), "accepted")],
                "percentunit",
                maximum=1,
                width=8,
                no_value="Not in use",
            ),
        ),
    )


def _configuration() -> Row:
    return Row(
        title="Configuration and problems",
        panels=(
            table(
                "Settings",
                "Settings of the server, declared or live, the live value winning.",
                [Query(f"max by (setting, value) ({m('target_setting_info', OF_SERVER)})")],
                [Column(source="setting", title="Setting"), Column(source="value", title="Value")],
                width=8,
                sort="Setting",
                no_value="Not known",
            ),
            table(
                "Declared otherwise than live",
                "Settings whose declared value differs from the live one. Empty is good.",
                [Query(f"max by (setting) ({m('target_config_mismatch', OF_SERVER)}) == 1")],
                [Column(source="setting", title="Setting")],
                width=5,
                no_value="None",
            ),
            table(
                "Problems now",
                "What hinders reading the server or predicting its memory. Empty is good; the metrics reference "
                "explains each reason.",
                [Query(f"max by (reason) ({m('target_problem', OF_SERVER)})")],
                [Column(source="reason", title="Reason")],
                width=5,
                no_value="None",
            ),
            table(
                "GPUs of this server",
                "The GPUs that belong to the server, with the data-parallel rank on each.",
                [Query(f"max by (gpu, rank) ({m('target_gpu_info', OF_SERVER)})")],
                [
                    Column(
                        source="gpu",
                        title="GPU",
                        link=("Open this GPU", to_board(GPU, gpu="${__value.text}")),
                    ),
                    Column(source="rank", title="Rank"),
                ],
                width=6,
                no_value="Not known",
            ),
            text(
                "How to read this board",
                "Solid lines are measured, **dashed lines are predicted**, red lines are limits. An empty panel "
                "says why it is empty; no number here is ever an old one.",
                height=3,
            ),
        ),
    )


def board() -> Board:
    """brimline-server"""
    return Board(
        uid=SERVER,
        title="Brimline / Server",
        description="Memory, KV cache, load and configuration of one inference server, predicted beside observed.",
        rows=(_at_a_glance(), _memory(), _kv_cache(), _load(), _configuration()),
        variables=(*common_variables(multi=False), _gpu_variable()),
        annotations=restarts(OF_SERVER),
        links=LINKS,
    )
