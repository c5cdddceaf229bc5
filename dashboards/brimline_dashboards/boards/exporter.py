"""The exporter itself: is what it says to be trusted, and what does it cost."""

from __future__ import annotations

from brimline_dashboards.boards.common import (
    EXPORTER,
    LINKS,
    OF_EXPORTERS,
    UP,
    YES_NO,
    common_variables,
    m,
    of_all,
)
from brimline_dashboards.panels import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    Board,
    Column,
    Query,
    Row,
    Threshold,
    annotation,
    stat,
    state_timeline,
    table,
    timeseries,
)
from brimline_dashboards.queries import ON


def board() -> Board:
    """brimline-exporter"""
    return Board(
        uid=EXPORTER,
        title="Brimline / Exporter",
        description="Health of the exporters: what could be read, how long it took, and what went wrong.",
        rows=(
            Row(
                title="Exporters",
                panels=(
                    stat(
                        "Exporters up",
                        "Exporters that Prometheus reached in its last scrape.",
                        [Query(f"sum(up{{{OF_EXPORTERS}}})")],
                        "none",
                        thresholds=(Threshold(None, RED), Threshold(1, GREEN)),
                    ),
                    stat(
                        "Exporters down",
                        "Exporters that Prometheus could not reach. Nothing is known of their servers then.",
                        [Query(f"sum(1 - up{{{OF_EXPORTERS}}})")],
                        "none",
                        thresholds=(Threshold(None, GREEN), Threshold(1, RED)),
                    ),
                    stat(
                        "Configuration in force",
                        "Whether the newest configuration file was taken. NO: a newer one was refused; the one "
                        "before it is in force.",
                        [Query(f"min({m('config_last_reload_successful', OF_EXPORTERS)})")],
                        "none",
                        mappings=YES_NO,
                    ),
                    stat(
                        "GPUs are read",
                        "Whether NVML works on all exporters that read GPUs.",
                        [Query(f"min({m('nvml_up', OF_EXPORTERS)})")],
                        "none",
                        mappings=YES_NO,
                        no_value="No exporter reads GPUs",
                    ),
                    stat(
                        "Slowest server",
                        "The longest time that reading one server took in the last scrape. Above a second it is "
                        "the server's page that is slow.",
                        [Query(f"topk(1, {m('target_scrape_duration_seconds')})", "{{target}}")],
                        "s",
                        thresholds=(Threshold(None, BLUE), Threshold(1, ORANGE), Threshold(4, RED)),
                        names=True,
                    ),
                    stat(
                        "Servers with a problem",
                        "Servers that are up, but of which something could not be read or understood.",
                        [Query(of_all(f"count by ({ON}) ({m('target_problem')})", m("target_up")))],
                        "none",
                        thresholds=(Threshold(None, GREEN), Threshold(1, ORANGE)),
                    ),
                    table(
                        "Versions",
                        "Exporters with their version.",
                        [Query(f"max by (instance, version, python) ({m('build_info', OF_EXPORTERS)})")],
                        [
                            Column(source="instance", title="Exporter"),
                            Column(source="version", title="Brimline"),
                            Column(source="python", title="Python"),
                        ],
                        width=8,
                        height=6,
                    ),
                    table(
                        "Problems now",
                        "What hinders reading servers, by reason. The metrics reference explains each.",
                        [Query(f"max by (target, reason) ({m('target_problem')})")],
                        [Column(source="target", title="Server"), Column(source="reason", title="Reason")],
                        width=8,
                        height=6,
                        no_value="None",
                    ),
                    table(
                        "GPU problems now",
                        "Why GPUs cannot be read.",
                        [
                            Query(
                                f"max by (instance, gpu, reason) ({m('gpu_problem', OF_EXPORTERS)}"
                                f" or {m('nvml_problem', OF_EXPORTERS)})"
                            )
                        ],
                        [
                            Column(source="reason", title="Reason", width=110),
                            Column(source="instance", title="Exporter", width=130),
                            Column(source="gpu", title="GPU"),
                        ],
                        width=8,
                        height=6,
                        no_value="None",
                    ),
                ),
            ),
            Row(
                title="Reading servers",
                panels=(
                    state_timeline(
                        "Up and down",
                        "When each server could be read.",
                        [Query(m("target_up"), "{{target}}")],
                        UP,
                    ),
                    timeseries(
                        "Time to read a server",
                        "Time that reading each server took, successful or not.",
                        [Query(m("target_scrape_duration_seconds"), "{{target}}")],
                        "s",
                    ),
                    timeseries(
                        "Errors by reason",
                        "Problems met per second, by reason.",
                        [
                            Query(
                                f"sum by (reason) (rate({m('target_errors_total')}[$__rate_interval])) > 0",
                                "{{reason}}",
                            )
                        ],
                        "cps",
                        no_value="None",
                    ),
                    timeseries(
                        "Age of readings",
                        "Age of what is served for a server with a min_interval; 0 for all others.",
                        [
                            Query(m("target_reading_age_seconds"), "{{target}}"),
                            Query(
                                f"time() - {m('target_last_success_timestamp_seconds')}",
                                "{{target}}: last read",
                            ),
                        ],
                        "s",
                    ),
                    timeseries(
                        "Lines and series that were dropped",
                        "Lines of pages that could not be read, and series beyond the limits, per second. Either "
                        "may follow an upgrade of the engine.",
                        [
                            Query(
                                f"rate({m('target_unparsed_lines_total')}[$__rate_interval]) > 0",
                                "{{target}}: lines",
                            ),
                            Query(
                                f"rate({m('target_dropped_series_total')}[$__rate_interval]) > 0",
                                "{{target}}: series",
                            ),
                        ],
                        "cps",
                        no_value="None",
                    ),
                    table(
                        "Quantities that are missing",
                        "What an engine's page should give in its version and does not: it may have been renamed.",
                        [Query(f"max by (target, quantity) ({m('target_missing_quantities')})")],
                        [
                            Column(source="target", title="Server"),
                            Column(source="quantity", title="Quantity"),
                        ],
                        width=12,
                        no_value="None",
                    ),
                ),
            ),
            Row(
                title="What the exporters cost, and their machines",
                panels=(
                    timeseries(
                        "Time of a scrape",
                        "Time that Prometheus waited for each exporter. Near the scrape timeout values go missing: "
                        "raise the timeout, or find the slow server above.",
                        [Query(f"scrape_duration_seconds{{{OF_EXPORTERS}}}", "{{instance}}")],
                        "s",
                        width=8,
                    ),
                    timeseries(
                        "Series of an exporter",
                        "Samples that each scrape of an exporter holds. A jump: a server shows more models, ranks or "
                        "reasons than before.",
                        [Query(f"scrape_samples_scraped{{{OF_EXPORTERS}}}", "{{instance}}")],
                        "short",
                        width=8,
                    ),
                    timeseries(
                        "Processor time",
                        "Share of one processor that each exporter uses.",
                        [
                            Query(
                                f"rate(process_cpu_seconds_total{{{OF_EXPORTERS}}}[$__rate_interval])",
                                "{{instance}}",
                            )
                        ],
                        "percentunit",
                        width=8,
                    ),
                    timeseries(
                        "The exporter's own memory",
                        "Main memory that each exporter holds itself.",
                        [Query(f"process_resident_memory_bytes{{{OF_EXPORTERS}}}", "{{instance}}")],
                        "bytes",
                        width=8,
                    ),
                    timeseries(
                        "Main memory of the machine",
                        "Main memory that programs can still get, beside all of it.",
                        [
                            Query(m("host_memory_available_bytes", OF_EXPORTERS), "{{instance}} available"),
                            Query(m("host_memory_total_bytes", OF_EXPORTERS), "{{instance}} total"),
                        ],
                        "bytes",
                        width=8,
                    ),
                    timeseries(
                        "Last reload of the configuration",
                        "Time since the configuration in force was read.",
                        [
                            Query(
                                f"time() - {m('config_last_reload_success_timestamp_seconds', OF_EXPORTERS)}",
                                "{{instance}}",
                            )
                        ],
                        "s",
                        width=8,
                    ),
                ),
            ),
        ),
        variables=common_variables(),
        annotations=(
            annotation(
                "Configuration read",
                f"1000 * {m('config_last_reload_success_timestamp_seconds', OF_EXPORTERS)}",
                PURPLE,
                "{{instance}} read its configuration",
                "The exporter took a configuration file here.",
            ),
        ),
        links=LINKS,
    )
