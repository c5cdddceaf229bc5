"""One card or all of them: what is in use, by whom, and what nobody accounts for."""

from __future__ import annotations

from brimline_dashboards.boards.common import (
    GPU,
    LINKS,
    OF_JOBS,
    component_styles,
    job_variable,
    m,
    plan_styles,
    recorded,
)
from brimline_dashboards.panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    Board,
    Column,
    Query,
    Row,
    Style,
    Threshold,
    datasource_variable,
    query_variable,
    stat,
    table,
    timeseries,
)

_GPU = f'{OF_JOBS},gpu=~"$gpu"'
_OTHERS = f'{_GPU},owner="other"'
_UNACCOUNTED = f'{_GPU},component="unaccounted"'


def board() -> Board:
    """brimline-gpu"""
    used, total = recorded("gpu:memory_used:bytes", _GPU), recorded("gpu:memory_total:bytes", _GPU)
    return Board(
        uid=GPU,
        title="Brimline / GPU",
        description="Memory of the cards: in use, peaks, by server, and by processes that belong to none.",
        rows=(
            Row(
                title="Cards",
                panels=(
                    stat(
                        "In use",
                        "Share of the chosen cards' memory in use. Engines take nine tenths on purpose; that alone "
                        "is no reason to look up.",
                        [Query(f"sum({used}) / sum({total})")],
                        "percentunit",
                        thresholds=(Threshold(None, BLUE), Threshold(0.95, ORANGE), Threshold(0.98, RED)),
                        width=4,
                    ),
                    stat(
                        "Least free",
                        "Free memory of the fullest card.",
                        [Query(f"min({recorded('gpu:memory_free:bytes', _GPU)})")],
                        "bytes",
                        thresholds=(
                            Threshold(None, RED),
                            Threshold(1 << 30, ORANGE),
                            Threshold(2 << 30, GREEN),
                        ),
                        width=4,
                    ),
                    stat(
                        "Cards that cannot be read",
                        "Cards whose memory the driver does not tell at present.",
                        [Query(f"sum(1 - {m('gpu_up', _GPU)})")],
                        "none",
                        thresholds=(Threshold(None, GREEN), Threshold(1, RED)),
                        width=4,
                        no_value="Not read through NVML",
                    ),
                    stat(
                        "Foreign processes",
                        "Memory that processes of no known server hold on the chosen cards. Needs gpu.processes.",
                        [Query(f"sum({m('gpu_process_memory_bytes', _OTHERS)})")],
                        "bytes",
                        thresholds=(Threshold(None, GREEN), Threshold(256 << 20, ORANGE)),
                        width=6,
                        no_value="None seen",
                    ),
                    stat(
                        "Not accounted for",
                        "Memory in use that neither measurement nor prediction explains; negative where less is used "
                        "than predicted.",
                        [Query(f"sum({m('memory_bytes', _UNACCOUNTED)})")],
                        "bytes",
                        thresholds=(Threshold(None, GREY),),
                        width=6,
                        no_value="No server on it",
                    ),
                    table(
                        "Cards",
                        "Each card with its server, driver and memory. memory_api v1: use includes what the driver "
                        "keeps, so that it reads a few hundred MiB higher than v2.",
                        [
                            Query(f"max by (gpu, name, driver, index, memory_api) ({m('gpu_info', _GPU)})"),
                            Query(f"max by (gpu) ({used})"),
                            Query(f"max by (gpu) ({recorded('gpu:memory_free:bytes', _GPU)})"),
                            Query(f"max by (gpu) ({total})"),
                            Query(f"max by (gpu) ({m('gpu_memory_reserved_bytes', _GPU)})"),
                            Query(f"max by (gpu) ({recorded('gpu:memory_used_peak:bytes', _GPU)})"),
                        ],
                        [
                            Column(source="index", title="Index", width=70),
                            Column(source="name", title="Card"),
                            Column(source="gpu", title="UUID"),
                            Column(source="driver", title="Driver", width=110),
                            Column(source="memory_api", title="Memory API", width=100),
                            Column(source="Value #B", title="In use", unit="bytes"),
                            Column(source="Value #C", title="Free", unit="bytes"),
                            Column(source="Value #D", title="Total", unit="bytes"),
                            Column(source="Value #E", title="Reserved by the driver", unit="bytes"),
                            Column(source="Value #F", title="Peak of the last minute", unit="bytes"),
                        ],
                        join="gpu",
                        height=7,
                        sort="Index",
                    ),
                ),
            ),
            Row(
                title="Card $gpu",
                repeat="gpu",
                panels=(
                    timeseries(
                        "In use, peak and total",
                        "Memory in use now and the highest within the peak window, which catches spikes between two "
                        "scrapes, beside what the card has.",
                        [
                            Query(used, "in use"),
                            Query(recorded("gpu:memory_used_peak:bytes", _GPU), "peak"),
                            Query(total, "card"),
                        ],
                        "bytes",
                        styles=[*plan_styles(), Style(series="peak", color=ORANGE, dashed=True)],
                        width=8,
                    ),
                    timeseries(
                        "By component and server",
                        "What the memory is used for, stacked; predicted parts say so in their name.",
                        [
                            Query(
                                f"sum by (component, target, basis) ({m('memory_bytes', _GPU)}) > 0",
                                "{{component}} {{target}} ({{basis}})",
                            )
                        ],
                        "bytes",
                        stack=True,
                        styles=component_styles(),
                        width=8,
                        no_value="No server on this card",
                    ),
                    timeseries(
                        "By process owner",
                        "Memory by who owns the process: a server, others, or unknown where a server does not show "
                        "its processes to the exporter. Needs gpu.processes.",
                        [
                            Query(
                                f"sum by (owner) ({m('gpu_process_memory_bytes', _GPU)})",
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
                        no_value="gpu.processes is off",
                    ),
                ),
            ),
        ),
        variables=(
            datasource_variable(),
            job_variable(),
            query_variable("gpu", "GPU", "label_values(gpu:memory_total:bytes{" + OF_JOBS + "}, gpu)"),
        ),
        links=LINKS,
    )
