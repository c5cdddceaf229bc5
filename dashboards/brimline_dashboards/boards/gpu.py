"""One card or all of them: what is in use, by whom, and what nobody accounts for.

It stands on the recorded `gpu:*` and `target:*` series, so it works the same where memory comes from
dcgm-exporter instead of NVML; what only NVML tells then says so.
"""

from __future__ import annotations

from brimline_dashboards.boards.common import (
    COMPONENTS_FROM_BELOW,
    GPU,
    LINKS,
    OF_EXPORTERS,
    OF_JOBS,
    SERVER,
    by_server,
    component_styles,
    job_variable,
    m,
    once,
    plan_styles,
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
    Board,
    Column,
    Json,
    Query,
    Row,
    Style,
    Threshold,
    datasource_variable,
    query_variable,
    stat,
    table,
    timeseries,
    to_board,
)
from brimline_dashboards.queries import ON, family

_GPU = f'{OF_EXPORTERS},gpu=~"$gpu"'
_NOT_NVML = "Not read through NVML"


def _of_gpu(name: str) -> str:
    """A recorded series of the chosen cards, each once."""
    return once(recorded(name, _GPU))


def _cards() -> Row:
    used, total = _of_gpu("gpu:memory_used:bytes"), _of_gpu("gpu:memory_total:bytes")
    foreign = m("gpu_process_memory_bytes", f'{_GPU},owner="other"')
    unaccounted = m("memory_bytes", f'{_GPU},component="unaccounted"')
    return Row(
        title="Cards",
        panels=(
            stat(
                "In use",
                "Share of the chosen cards' memory in use. Engines take nine tenths on purpose; that alone "
                "is no reason to look up.",
                [Query(f"sum({used}) / sum({total})")],
                "percentunit",
                thresholds=(Threshold(None, BLUE), Threshold(0.95, ORANGE), Threshold(0.98, RED)),
                no_value="No GPU is read",
            ),
            stat(
                "Least free",
                "Free memory of the fullest card. Below a GiB a spike of activations may not fit.",
                [Query(f"bottomk(1, {_of_gpu('gpu:memory_free:bytes')})", "{{gpu}}")],
                "bytes",
                thresholds=(Threshold(None, RED), Threshold(1 << 30, ORANGE), Threshold(2 << 30, GREEN)),
                no_value="No GPU is read",
            ),
            stat(
                "Least free at a peak",
                "What was left on the fullest card at the highest use of the last peak window: spikes between "
                "two scrapes count. This is how near out-of-memory was.",
                [Query(f"min({_of_gpu('gpu:memory_free_at_peak:bytes')})")],
                "bytes",
                thresholds=(Threshold(None, RED), Threshold(1 << 29, ORANGE), Threshold(1 << 30, GREEN)),
                no_value="No peaks are read",
            ),
            stat(
                "Cards that cannot be read",
                "Cards whose memory the driver does not tell at present; the exporter's board says why.",
                [Query(f"sum(1 - {once(m('gpu_up', _GPU))})")],
                "none",
                thresholds=(Threshold(None, GREEN), Threshold(1, RED)),
                no_value=_NOT_NVML,
            ),
            stat(
                "Foreign processes",
                "Memory that processes of no known server hold on the chosen cards. Needs gpu.processes. Find them "
                "with nvidia-smi; they eat the headroom of the servers.",
                [Query(f"sum({once(foreign)})")],
                "bytes",
                thresholds=(Threshold(None, GREEN), Threshold(256 << 20, ORANGE)),
                no_value="None seen",
            ),
            stat(
                "Not accounted for",
                "Memory in use that neither measurement nor prediction explains; negative where less is used "
                "than predicted.",
                [Query(f"sum({once(unaccounted)})")],
                "bytes",
                thresholds=(Threshold(None, GREY),),
                no_value="No server on it",
            ),
            table(
                "Cards",
                "Each card with its driver and memory. memory_api v1: use includes what the driver keeps, so that "
                "it reads a few hundred MiB higher than v2. A card without numbers cannot be read.",
                [
                    Query(
                        "max by (gpu, name, driver, index, memory_api) "
                        f"({m('gpu_info', _GPU)}) or on (gpu) {total}"
                    ),
                    Query(used),
                    Query(_of_gpu("gpu:memory_free:bytes")),
                    Query(total),
                    Query(once(m("gpu_memory_reserved_bytes", _GPU))),
                    Query(_of_gpu("gpu:memory_used_peak:bytes")),
                    Query(once(m("gpu_up", _GPU))),
                ],
                [
                    Column(source="index", title="Index", width=70),
                    Column(source="name", title="Card"),
                    Column(source="gpu", title="UUID"),
                    Column(
                        source="Value #G",
                        title="Readable",
                        mappings={0.0: ("NO", RED), 1.0: ("yes", GREEN)},
                        width=90,
                    ),
                    Column(source="Value #B", title="In use", unit="bytes"),
                    Column(source="Value #F", title="Peak of the last minute", unit="bytes"),
                    Column(source="Value #C", title="Free", unit="bytes"),
                    Column(source="Value #E", title="Reserved by the driver", unit="bytes"),
                    Column(source="Value #D", title="Total", unit="bytes"),
                    Column(source="driver", title="Driver", width=110),
                    Column(source="memory_api", title="Memory API", width=100),
                ],
                height=7,
                sort="Index",
            ),
        ),
    )


def _servers() -> Row:
    on_card = f"{ON}, gpu"
    belongs = f"max by ({on_card}) ({recorded('target:gpu:info', _GPU)})"

    def here(name: str) -> str:
        """Of servers that hold one of the chosen cards, once for each of these."""
        return f"{belongs} * on ({ON}) group_left () max by ({ON}) ({recorded(name, OF_EXPORTERS)})"

    def of_these(name: str) -> str:
        return f"{by_server(name, OF_EXPORTERS)} and on ({ON}) {recorded('target:gpu:info', _GPU)}"

    return Row(
        title="Servers on these cards",
        panels=(
            table(
                "By server",
                "Each server on its cards: what is in use and free on its fullest card, what the server itself "
                "is planned to take there, and what stays free once all plans are used up.",
                [
                    Query(here("target:memory_used:bytes")),
                    Query(here("target:memory_planned:bytes")),
                    Query(here("target:memory_free:bytes")),
                    Query(here("target:memory_headroom:bytes")),
                ],
                [
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
                    Column(source="job", title="Job", width=90),
                    Column(source="instance", title="Exporter", width=140),
                    Column(source="gpu", title="GPU"),
                    Column(source="Value #A", title="In use", unit="bytes"),
                    Column(source="Value #B", title="Predicted", unit="bytes"),
                    Column(source="Value #C", title="Free", unit="bytes"),
                    Column(
                        source="Value #D",
                        title="Headroom",
                        unit="bytes",
                        thresholds=(Threshold(None, RED), Threshold(0, ORANGE), Threshold(2 << 30, GREEN)),
                    ),
                ],
                height=6,
                sort="Headroom",
            ),
            timeseries(
                "In use by server",
                "Memory in use on each server's fullest card. Two servers of one card show the same line: the card "
                "is what runs full.",
                [
                    Query(of_these("target:memory_used:bytes"), "{{target}}"),
                    Query(recorded("target:memory_planned:bytes", OF_EXPORTERS), "{{target}}: predicted"),
                ],
                "bytes",
                styles=[Style(series="/: predicted$/", dashed=True, is_regex=True)],
                width=24,
                height=7,
                no_value="No server's memory is known",
            ),
        ),
    )


def _each() -> Row:
    def parts(matcher: str) -> str:
        memory = m("memory_bytes", f"{_GPU},{matcher}")
        return f"sum by (component, target, basis) (max by (gpu, component, target, basis) ({memory})) > 0"

    return Row(
        title="Card $gpu",
        repeat="gpu",
        panels=(
            timeseries(
                "In use, peak and total",
                "Memory in use now and (dotted) the highest within the peak window, which catches spikes between "
                "two scrapes, beside what the card has and what the driver keeps of it. A peak at the top is an "
                "out-of-memory that nearly was.",
                [
                    Query(_of_gpu("gpu:memory_used:bytes"), "in use"),
                    Query(_of_gpu("gpu:memory_used_peak:bytes"), "peak"),
                    Query(_of_gpu("gpu:memory_total:bytes"), "card"),
                    Query(once(m("gpu_memory_reserved_bytes", _GPU)), "reserved by the driver"),
                ],
                "bytes",
                styles=[
                    *plan_styles(),
                    Style(series="peak", color=ORANGE, dotted=True, width=2),
                    Style(series="reserved by the driver", color=GREY),
                ],
                width=8,
                no_value="This card cannot be read",
            ),
            timeseries(
                "By component and server",
                "What the memory is used for, stacked; predicted parts say so in their name.",
                [
                    *(
                        Query(parts(f'target!="",{matcher}'), "{{component}} {{target}} ({{basis}})")
                        for matcher in COMPONENTS_FROM_BELOW
                    ),
                    Query(parts('target=""'), "{{component}}"),
                ],
                "bytes",
                stack=True,
                styles=component_styles(),
                width=8,
                no_value="No server is known to be on this card",
            ),
            timeseries(
                "By process owner",
                "Memory by who owns the process: a server, others (foreign), or unknown where a server does not "
                "show its processes to the exporter. Needs gpu.processes.",
                [
                    Query(
                        f"max by (owner) ({m('gpu_process_memory_bytes', _GPU)})",
                        "{{owner}}",
                    )
                ],
                "bytes",
                stack=True,
                styles=[
                    Style(series="other", color=RED),
                    Style(series="unknown", color=GREY),
                ],
                width=8,
                no_value="gpu.processes is off, or memory is not read through NVML",
            ),
        ),
    )


def _variables() -> tuple[Json, ...]:
    # A card that cannot be read has no memory, and one of dcgm-exporter no gpu_info: either makes it known.
    known = f'{{__name__=~"{family("gpu_info")}|gpu:memory_total:bytes",{OF_EXPORTERS}}}'
    return (
        datasource_variable(),
        job_variable(),
        query_variable("instance", "Exporter", values_of("instance", OF_JOBS), all_value=".+"),
        query_variable("gpu", "GPU", f"label_values({known}, gpu)"),
    )


def board() -> Board:
    """brimline-gpu"""
    return Board(
        uid=GPU,
        title="Brimline / GPU",
        description="Memory of the cards: in use, peaks, by server, and by processes that belong to none. Memory "
        "may come from NVML or from dcgm-exporter.",
        rows=(_cards(), _servers(), _each()),
        variables=_variables(),
        annotations=restarts(OF_EXPORTERS),
        links=LINKS,
    )
