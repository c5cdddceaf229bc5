"""One server: what its memory is used for, what is left, and how it serves."""

from __future__ import annotations

from brimline_dashboards.boards.common import (
    COMPONENTS_FROM_BELOW,
    GPU,
    LINKS,
    OF_SERVER,
    SERVER,
    YES_NO,
    by_server,
    component_styles,
    m,
    m_bucket,
    m_count,
    m_sum,
    once,
    plan_styles,
    recorded,
    restarts,
    server_variables,
)
from brimline_dashboards.panels import (
    BLUE,
    GREEN,
    GREY,
    INK,
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
from brimline_dashboards.queries import ON, ratio_of

_GPU = 'gpu=~"$gpu"'
_PLAIN = (Threshold(None, BLUE),)


def _gpu_variable() -> Json:
    return query_variable("gpu", "GPU", f"label_values({recorded('target:gpu:info', OF_SERVER)}, gpu)")


def _rate(name: str, *by: str) -> str:
    return f"sum by ({', '.join(by or ('target',))}) (rate({m(name, OF_SERVER)}[$__rate_interval]))"


def _mean(name: str) -> str:
    return ratio_of(
        f"sum by (target) (rate({m_sum(name, OF_SERVER)}[$__rate_interval]))",
        f"sum by (target) (rate({m_count(name, OF_SERVER)}[$__rate_interval]))",
    )


def _quantile(name: str) -> str:
    """The 95th percentile; absent without buckets, and without traffic."""
    buckets = f"sum by (target, le) (rate({m_bucket(name, OF_SERVER)}[$__rate_interval]))"
    counted = f"sum by (target) (rate({m_count(name, OF_SERVER)}[$__rate_interval])) > 0"
    return f"histogram_quantile(0.95, {buckets}) and on (target) ({counted})"


def _one(name: str) -> str:
    """A recorded series of this server, as one line."""
    return by_server(name, OF_SERVER)


def _counted(place: str) -> str:
    """What the engine itself counts for each loaded model there."""
    selector = f'{OF_SERVER},place="{place}"'
    return f"sum by (model) ({m('model_memory_bytes', selector)})"


def _at_a_glance() -> Row:
    low = (Threshold(None, RED), Threshold(0, ORANGE), Threshold(2 << 30, GREEN))
    up = m("target_up", OF_SERVER)
    return Row(
        title="At a glance",
        panels=(
            stat(
                "State",
                "Whether the server's page was read and understood in the last scrape. DOWN: look at the "
                "problems below; every other number is then absent, not old. Asleep: it has given up GPU memory "
                "on purpose.",
                [Query(f"{up} + on ({ON}) ({m('target_sleeping', OF_SERVER)} == 1) or {up}")],
                "none",
                mappings={0.0: ("DOWN", RED), 1.0: ("up", GREEN), 2.0: ("asleep", GREY)},
                no_value="No such server",
            ),
            stat(
                "Headroom",
                "What stays free on the fullest GPU once all servers on it have taken what they are predicted "
                "to. Negative: out of memory is to be expected: lower the context window, the batch or the "
                "memory share. Absent without a prediction or without a GPU.",
                [Query(_one("target:memory_headroom:bytes"))],
                "bytes",
                thresholds=low,
                no_value="Not known",
            ),
            stat(
                "Time to exhaustion",
                "Time until nothing is free on the fullest GPU, if memory goes on growing as in the last hour. "
                "It takes an hour of samples: until then, after a start, nothing is said.",
                [Query(_one("target:memory_exhaustion:seconds"))],
                "s",
                thresholds=(Threshold(None, RED), Threshold(3600, ORANGE), Threshold(86400, GREEN)),
                no_value="Not growing, or started within the hour",
            ),
            stat(
                "Plan fits its GPU",
                "Whether everything by its high bound and one request of full length fit the card. NO: the plan "
                "exceeds the card, a spike may end the server. The only warning before a spike.",
                [Query(m("predicted_fits", OF_SERVER))],
                "none",
                mappings=YES_NO,
                no_value="Not predicted",
            ),
            stat(
                "Context window fits",
                "How many requests of the whole context window the KV cache of the smallest rank holds at once. "
                "Below 1 the context window does not fit: such a request can never finish. Lower max_model_len or "
                "give the cache more memory.",
                [Query(f"min({m('kv_cache_max_concurrency_requests', OF_SERVER)})")],
                "suffix: ×",
                thresholds=(Threshold(None, RED), Threshold(1, ORANGE), Threshold(2, GREEN)),
                decimals=2,
                no_value="Not stated",
            ),
            stat(
                "Room for full-length requests",
                "How many more requests of the whole context window fit into the KV cache now.",
                [Query(_one("target:kv_cache_full_requests_left:count"))],
                "none",
                thresholds=(Threshold(None, RED), Threshold(1, BLUE)),
                decimals=1,
                no_value="Not stated",
            ),
            stat(
                "KV cache in use",
                "Share of the KV cache that requests hold, of the fullest rank. Near 100 % requests wait or "
                "are preempted: that costs speed, and is no out-of-memory.",
                [Query(_one("target:kv_cache_usage:ratio"))],
                "percentunit",
                thresholds=(Threshold(None, BLUE), Threshold(0.9, ORANGE), Threshold(0.97, RED)),
                no_value="Not stated",
            ),
            stat(
                "Generated tokens",
                "Tokens that the server generates per second, over the last five minutes.",
                [Query(_one("target:generation_tokens:rate5m"))],
                "suffix: tok/s",
                thresholds=_PLAIN,
                decimals=0,
                no_value="Not read",
            ),
            stat(
                "Running",
                "Requests that are being computed now.",
                [Query(_one("target:requests_running:sum"))],
                "suffix: req",
                thresholds=_PLAIN,
                no_value="Not read",
            ),
            stat(
                "Waiting",
                "Requests that wait to be computed now. Beside a full KV cache memory binds, beside a free one "
                "computing does.",
                [Query(_one("target:requests_waiting:sum"))],
                "suffix: req",
                thresholds=(Threshold(None, BLUE), Threshold(1, ORANGE)),
                no_value="Not read",
            ),
            stat(
                "Preemptions",
                "Requests thrown out of the KV cache per second, over five minutes. They are computed again, which "
                "costs tokens; no crash follows.",
                [Query(_one("target:preemptions:rate5m"))],
                "cps",
                thresholds=(Threshold(None, GREEN), Threshold(0.001, ORANGE)),
                no_value="Not stated",
            ),
            stat(
                "Prediction calibrated",
                "Whether activations, CUDA graphs and runtime were measured on this engine, version and GPU. NO: "
                "they come from tables and the bounds are wide; `brimline calibrate` narrows them.",
                [Query(m("prediction_calibrated", OF_SERVER))],
                "none",
                mappings={0.0: ("NO: from tables", ORANGE), 1.0: ("yes", GREEN)},
                no_value="Not predicted",
            ),
        ),
    )


def _together(expr: str) -> str:
    """A row of the table by component for all of them."""
    return f'label_replace(max({expr}), "component", "all together", "", "")'


def _memory() -> Row:
    def planned(name: str) -> str:
        return f"max({recorded(name, _GPU)})"

    gpus = f"count({once(recorded('gpu:memory_total:bytes', _GPU))})"
    parts = [
        f"sum by (component, basis) (max by (gpu, target, component, basis) "
        f"({m('memory_bytes', f'{_GPU},{matcher}')}))"
        for matcher in COMPONENTS_FROM_BELOW
    ]
    remainder = once(m("memory_bytes", f'{_GPU},component="unaccounted"'))
    return Row(
        title="GPU memory: what it is used for",
        panels=(
            timeseries(
                "Memory by component",
                "What the memory in use on the chosen GPUs is used for, stacked. `measured` parts come from the "
                "engine or the driver, `predicted` parts from the model and its settings; what neither explains "
                "is `unaccounted` (shown where it is positive; where less is used than predicted it is negative, "
                "see the table). Dashed: the prediction for this server, expected and by its high bound. Red: the "
                "cards' memory. Use that climbs above the dashed high line is not in the plan: find out what "
                "allocates it.",
                [
                    *(Query(part, "{{component}} ({{basis}})") for part in parts),
                    Query(f"clamp_min(sum({remainder}), 0)", "unaccounted"),
                    Query(f"sum({once(recorded('gpu:memory_used:bytes', _GPU))})", "in use"),
                    Query(f"sum({once(recorded('gpu:memory_total:bytes', _GPU))})", "card"),
                    Query(
                        f"sum({m('predicted_total_memory_bytes', OF_SERVER)}) * {gpus}",
                        "predicted, expected",
                    ),
                    Query(
                        f"sum({m('predicted_total_memory_high_bytes', OF_SERVER)}) * {gpus}",
                        "predicted, high bound",
                    ),
                ],
                "bytes",
                stack=True,
                styles=[*component_styles(), *plan_styles()],
                width=14,
                height=12,
                no_value="No GPU is known to belong to this server",
                legend_table=True,
            ),
            table(
                "Predicted beside observed",
                "Each component on the fullest GPU: expected, bounds, what the engine measured itself (of all "
                "together: what is in use), and how far that is off. A pool smaller than predicted means that something else took memory while the "
                "server started.",
                [
                    *(
                        Query(
                            f"sum by (component) ({m(f'predicted_memory{bound}bytes', OF_SERVER)}) or "
                            + _together(m(f"predicted_total_memory{bound}bytes", OF_SERVER))
                        )
                        for bound in ("_", "_low_", "_high_")
                    ),
                    Query(
                        f"max by (component) ({m('measured_memory_bytes', OF_SERVER)} or "
                        f'label_replace({m("kv_cache_capacity_bytes", OF_SERVER)}, "component", "kv_cache", "", ""))'
                        f" or {_together(recorded('target:memory_used:bytes', OF_SERVER))}"
                    ),
                    Query(f"sum by (component) ({m('prediction_error_ratio', OF_SERVER)})"),
                ],
                [
                    Column(source="component", title="Component"),
                    Column(source="Value #A", title="Predicted", unit="bytes"),
                    Column(source="Value #B", title="Low", unit="bytes"),
                    Column(source="Value #C", title="High", unit="bytes"),
                    Column(source="Value #D", title="Observed", unit="bytes"),
                    Column(
                        source="Value #E",
                        title="Off by",
                        unit="percentunit",
                        decimals=1,
                        thresholds=(Threshold(None, ORANGE), Threshold(-0.05, BLUE), Threshold(0.05, ORANGE)),
                    ),
                ],
                width=10,
                height=12,
                sort="Predicted",
                descending=True,
                no_value="not measured",
            ),
            timeseries(
                "Fullest GPU beside its plan",
                "Memory in use on this server's fullest GPU and, dashed, what all servers on it are predicted to "
                "take, expected and by their high bounds. Use above the upper dashed line is out of plan. Works "
                "with memory from dcgm-exporter, too. Ollama counts each loaded model itself, on all GPUs together.",
                [
                    Query(_one("target:memory_used:bytes"), "in use"),
                    Query(planned("gpu:memory_planned:bytes"), "predicted, all servers"),
                    Query(planned("gpu:memory_planned_high:bytes"), "predicted, all by high bounds"),
                    Query(
                        f"{_one('target:memory_used:bytes')} + on ({ON}) {_one('target:memory_free:bytes')}",
                        "card",
                    ),
                    Query(_counted("gpu"), "{{model}}, as the engine counts it"),
                ],
                "bytes",
                styles=plan_styles(),
                width=8,
                no_value="No GPU is known to belong to this server",
            ),
            timeseries(
                "Headroom and forecast",
                "What is free on the fullest GPU, what stays free once the plan is used up, and (dashed) what will "
                "be free in an hour if use goes on as in the last hour (absent until the server has run for one). A "
                "forecast below zero: act now, with what the lines by component say grows.",
                [
                    Query(_one("target:memory_headroom:bytes"), "headroom"),
                    Query(_one("target:memory_free:bytes"), "free now"),
                    Query(
                        f"max by ({ON}) (predict_linear({recorded('target:memory_free:bytes', OF_SERVER)}[1h], 3600))"
                        f" and on ({ON}) {_one('target:uptime:seconds')} > 3600",
                        "predicted free in an hour",
                    ),
                ],
                "bytes",
                minimum=None,
                styles=[
                    Style(series="headroom", color=BLUE, width=2),
                    Style(series="free now", color=SKY),
                    Style(series="/^predicted/", color=SKY, dashed=True, is_regex=True),
                ],
                width=8,
                no_value="Not known",
            ),
            timeseries(
                "Main memory of the server",
                "Main memory of the server's own cgroup (or processes) beside its limit. A server that reaches "
                "its limit is killed by the kernel, without any word in its log. Dashed: what is predicted to be "
                "offloaded there. A model of which Ollama keeps a part here is computed by the CPU, many times "
                "slower.",
                [
                    Query(m("server_host_memory_used_bytes", OF_SERVER), "in use"),
                    Query(m("server_host_memory_limit_bytes", OF_SERVER), "limit"),
                    Query(f"sum({m('predicted_host_memory_bytes', OF_SERVER)})", "predicted, offloaded"),
                    Query(_counted("host"), "{{model}}, as the engine counts it"),
                ],
                "bytes",
                styles=plan_styles(),
                width=8,
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
                "count as free. One rank full beside others that idle: requests are spread unevenly.",
                [Query(m("kv_cache_usage_ratio", OF_SERVER), "rank {{rank}} {{model}}")],
                "percentunit",
                maximum=1,
                width=8,
                no_value="Not stated by this engine",
            ),
            timeseries(
                "KV cache in blocks",
                "Blocks that requests hold beside all blocks, for each rank. The server hands out memory in "
                "blocks: short prompts leave theirs half empty.",
                [
                    Query(m("kv_cache_used_blocks", OF_SERVER), "in use, rank {{rank}}"),
                    Query(m("kv_cache_blocks", OF_SERVER), "capacity, rank {{rank}}"),
                ],
                "short",
                styles=plan_styles(),
                width=8,
                no_value="Not stated by this engine",
            ),
            timeseries(
                "KV cache in tokens",
                "Tokens in use beside the capacity, over all ranks, and the capacity that was predicted (dashed). "
                "Versions of an engine count tokens differently: compare bytes across versions.",
                [
                    Query(_one("target:kv_cache_used:tokens"), "in use"),
                    Query(_one("target:kv_cache_capacity:tokens"), "capacity"),
                    Query(
                        f"sum by (target) ({m('predicted_kv_cache_capacity_tokens', OF_SERVER)}"
                        f" * on ({ON}) group_left count by ({ON}) ({m('kv_cache_usage_ratio', OF_SERVER)}))",
                        "predicted capacity",
                    ),
                ],
                "suffix: tok",
                styles=plan_styles(),
                width=8,
                no_value="Not stated by this engine",
            ),
            timeseries(
                "KV cache in bytes",
                "Bytes of KV cache in use and in all, over all ranks, and (dashed) what one request of the whole "
                "context window may take. A capacity below the dashed line cannot serve it.",
                [
                    Query(_one("target:kv_cache_used:bytes"), "in use"),
                    Query(_one("target:kv_cache_capacity:bytes"), "capacity"),
                    Query(
                        m("predicted_kv_cache_full_request_bytes", OF_SERVER),
                        "predicted, one request of full length",
                    ),
                ],
                "bytes",
                styles=plan_styles(),
                width=8,
                no_value="Not known for this model",
            ),
            timeseries(
                "Requests that fit at once",
                "Requests of the whole context window that the KV cache holds at once, as the server says and as "
                "predicted. Below 1 (red) the context window does not fit: such a request can never finish.",
                [
                    Query(m("kv_cache_max_concurrency_requests", OF_SERVER), "rank {{rank}}"),
                    Query(
                        m("predicted_kv_cache_max_concurrency_requests", OF_SERVER), "predicted, each rank"
                    ),
                    Query(f"0 * {m('target_up', OF_SERVER)} + 1", "one request"),
                ],
                "none",
                styles=plan_styles(),
                width=8,
                no_value="Not stated by this engine",
            ),
            timeseries(
                "Length of requests",
                "Mean prompt and generated tokens of requests that ended, beside the longest context that is "
                "allowed. Means that climb towards it fill the cache.",
                [
                    Query(_mean("request_prompt_tokens"), "prompt"),
                    Query(_mean("request_generation_tokens"), "generated"),
                    Query(f"max by (target) ({m('max_model_len_tokens', OF_SERVER)})", "context window"),
                ],
                "suffix: tok",
                styles=plan_styles(),
                width=8,
                no_value="No request ended",
            ),
            timeseries(
                "Prefix cache hits",
                "Share of prompt tokens that were found in the prefix cache. Prefixes shorter than one block "
                "never hit: see the block size beside it.",
                [Query(_one("target:prefix_cache_hits:ratio5m"), "hits")],
                "percentunit",
                maximum=1,
                width=8,
                no_value="No traffic",
            ),
            stat(
                "Block size",
                "Tokens in one block of the KV cache. A prefix that is shorter is never shared.",
                [Query(f"max({m('kv_cache_block_tokens', OF_SERVER)})")],
                "suffix: tok",
                thresholds=_PLAIN,
                height=8,
                no_value="Not stated",
            ),
            stat(
                "Bytes of one token",
                "KV cache that one more token of context takes on the fullest GPU, as predicted from the model.",
                [Query(m("predicted_kv_cache_bytes_per_token", OF_SERVER))],
                "bytes",
                thresholds=_PLAIN,
                height=8,
                no_value="Not predicted",
            ),
            stat(
                "Context window",
                "Longest context of one request, as the server says. It decides what a full-length request takes.",
                [Query(f"max({m('max_model_len_tokens', OF_SERVER)})")],
                "suffix: tok",
                thresholds=_PLAIN,
                height=8,
                no_value="Not stated",
            ),
            stat(
                "Tokens that fit",
                "Tokens that the smallest rank's KV cache holds: no request can be longer, whatever the context "
                "window says.",
                [Query(f"min({m('kv_cache_capacity_tokens', OF_SERVER)})")],
                "suffix: tok",
                thresholds=_PLAIN,
                height=8,
                no_value="Not stated",
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
                ],
                "suffix: req",
                styles=[
                    Style(series="running", color=BLUE),
                    Style(series="waiting", color=ORANGE, width=2),
                ],
                width=8,
                no_value="Not read",
            ),
            timeseries(
                "Waiting by cause",
                "Waiting requests by the engine's own reason, stacked. `capacity`: the KV cache has no room; "
                "others wait for something that was put off on purpose.",
                [
                    Query(
                        f"sum by (reason) ({m('requests_waiting_by_reason', OF_SERVER)})",
                        "waiting for {{reason}}",
                    ),
                ],
                "suffix: req",
                stack=True,
                styles=[Style(series="waiting for capacity", color=ORANGE)],
                width=8,
                no_value="Not stated by this engine",
            ),
            timeseries(
                "Preemptions",
                "Requests thrown out of the KV cache to be computed again, per second. Any lasting rate costs "
                "tokens: lower max_num_seqs or give the cache more memory.",
                [Query(_one("target:preemptions:rate5m"), "preemptions")],
                "cps",
                styles=[Style(series="preemptions", color=RED)],
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
                no_value="Not read",
            ),
            timeseries(
                "Time to first token",
                "Mean time from a request's arrival to its first token, and the 95th percentile where the target "
                "has `histograms: full`. Means hide tails.",
                [
                    Query(_one("target:time_to_first_token:mean5m"), "mean"),
                    Query(_quantile("time_to_first_token_seconds"), "95th percentile"),
                ],
                "s",
                styles=_latency_styles(),
                width=8,
                no_value="No traffic",
            ),
            timeseries(
                "Time between tokens",
                "Mean time between two outputs of a request, and the 95th percentile where the target has "
                "`histograms: full`. It grows with the batch.",
                [
                    Query(_one("target:inter_token_latency:mean5m"), "mean"),
                    Query(_quantile("inter_token_latency_seconds"), "95th percentile"),
                ],
                "s",
                styles=_latency_styles(),
                width=8,
                no_value="No traffic",
            ),
            timeseries(
                "Time of whole requests",
                "Mean time from a request's arrival to its end, and the 95th percentile where the target has "
                "`histograms: full`.",
                [
                    Query(_mean("request_e2e_latency_seconds"), "mean"),
                    Query(_quantile("request_e2e_latency_seconds"), "95th percentile"),
                ],
                "s",
                styles=_latency_styles(),
                width=8,
                no_value="No traffic",
            ),
            timeseries(
                "Requests that ended, by reason",
                "Requests that ended per second, by the engine's own reason. `length` grows where answers are "
                "cut off, `abort` where clients go away.",
                [Query(_rate("requests_finished_total", "reason"), "{{reason}}")],
                "cps",
                stack=True,
                width=8,
                no_value="Not stated by this engine",
            ),
            timeseries(
                "Speculative decoding",
                "Share of proposed tokens that the model accepted. Low acceptance wastes computing: propose fewer.",
                [Query(_one("target:spec_decode_acceptance:ratio5m"), "accepted")],
                "percentunit",
                maximum=1,
                width=8,
                no_value="Not in use",
            ),
        ),
    )


def _latency_styles() -> list[Style]:
    return [
        Style(series="mean", color=BLUE, width=2),
        Style(series="95th percentile", color=INK, dotted=True),
    ]


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
                height=12,
                sort="Setting",
                no_value="Not known",
            ),
            table(
                "Identity",
                "What the server is, and a digest of its whole configuration: another digest is another "
                "configuration. simulated = true: none of these numbers is of a real GPU.",
                [
                    Query(
                        f"max by (engine, engine_version, experiment, variant, role, simulated) "
                        f"({m('target_info', OF_SERVER)})"
                    ),
                    Query(f"max by (fingerprint) ({m('target_config_fingerprint_info', OF_SERVER)})"),
                ],
                [
                    Column(source="engine", title="Engine"),
                    Column(source="engine_version", title="Version"),
                    Column(source="experiment", title="Experiment"),
                    Column(source="variant", title="Variant"),
                    Column(source="role", title="Role"),
                    Column(source="fingerprint", title="Configuration"),
                    Column(source="simulated", title="Simulated"),
                ],
                width=16,
                height=4,
            ),
            table(
                "Models",
                "Models that the server serves.",
                [Query(f"max by (model) ({m('model_info', OF_SERVER)})")],
                [Column(source="model", title="Model")],
                width=8,
                height=4,
                no_value="Not read",
            ),
            table(
                "GPUs of this server",
                "The GPUs that belong to the server, with the data-parallel rank on each. A click opens the "
                "GPU's board.",
                [Query(f"max by (gpu, rank) ({m('target_gpu_info', OF_SERVER)})")],
                [
                    Column(
                        source="gpu",
                        title="GPU",
                        link=("Open this GPU", to_board(GPU, gpu="${__value.text}")),
                    ),
                    Column(source="rank", title="Rank", width=70),
                ],
                width=8,
                height=4,
                no_value="Not known",
            ),
            table(
                "Declared otherwise than live",
                "Settings whose declared value differs from the live one. Empty is good; else correct `launch:` of "
                "the target, or restart the server as declared.",
                [Query(f"max by (setting) ({m('target_config_mismatch', OF_SERVER)}) == 1")],
                [Column(source="setting", title="Setting")],
                width=8,
                height=4,
                no_value="None",
            ),
            table(
                "Problems now",
                "What hinders reading the server or predicting its memory. Empty is good; the metrics reference "
                "explains each reason.",
                [Query(f"max by (reason) ({m('target_problem', OF_SERVER)})")],
                [Column(source="reason", title="Reason")],
                width=8,
                height=4,
                no_value="None",
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
        variables=(*server_variables(), _gpu_variable()),
        annotations=restarts(OF_SERVER),
        links=LINKS,
    )
