"""What all boards share: selectors, variables, colours of components, annotations."""

from __future__ import annotations

from brimline.catalog import BY_NAME
from brimline_dashboards.panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    YELLOW,
    Json,
    Style,
    annotation,
    board_links,
    datasource_variable,
    query_variable,
)

FLEET, SERVER, GPU, AB, EXPORTER = (
    "brimline-fleet",
    "brimline-server",
    "brimline-gpu",
    "brimline-ab",
    "brimline-exporter",
)

# What series of one server are joined on: several exporters may use one target name.
ON = "job, instance, target"

OF_JOBS = 'job=~"$job"'
OF_SERVERS = f'{OF_JOBS},target=~"$target"'
OF_SERVER = f'{OF_JOBS},target="$target"'


def m(name: str, selector: str = OF_SERVERS) -> str:
    """A family of the catalog with a selector; KeyError for one that is not there."""
    return f"{BY_NAME[name].full_name}{{{selector}}}"


def m_sum(name: str, selector: str = OF_SERVERS) -> str:
    """The `_sum` of a histogram."""
    return f"{BY_NAME[name].full_name}_sum{{{selector}}}"


def m_count(name: str, selector: str = OF_SERVERS) -> str:
    """The `_count` of a histogram."""
    return f"{BY_NAME[name].full_name}_count{{{selector}}}"


def recorded(name: str, selector: str = OF_SERVERS) -> str:
    """A recorded series with a selector."""
    return f"{name}{{{selector}}}"


def ratio_of(numerator: str, denominator: str) -> str:
    """A quotient that is absent, not NaN, where nothing happens."""
    return f"({numerator}) / ({denominator} > 0)"


# One colour for each component, on every board; in the order in which they are stacked.
COMPONENT_COLORS = {
    "weights": BLUE,
    "kv_cache_used": ORANGE,
    "kv_cache_free": YELLOW,
    "kv_cache": YELLOW,
    "activations": SKY,
    "cuda_graphs": PURPLE,
    "runtime": GREY,
    "lora": "#4B0092",
    "encoder_cache": "#785EF0",
    "draft_model": "#004D40",
    "other_processes": RED,
    "unaccounted": "#B0B0B0",
}


def component_styles() -> list[Style]:
    """Fixed colours of components, by the beginning of the legend."""
    return [
        Style(series=f"/^{component}( |$)/", color=color, is_regex=True)
        for component, color in COMPONENT_COLORS.items()
    ]


def plan_styles() -> list[Style]:
    """Lines of the prediction: dashed, not stacked, not filled."""
    return [
        Style(series="/^predicted/", color=GREEN, dashed=True, fill=0, stack=False, width=2, is_regex=True),
        Style(series="/^card/", color=RED, fill=0, stack=False, width=2, is_regex=True),
        Style(series="/^in use/", color="#000000", fill=0, stack=False, width=2, is_regex=True),
    ]


def job_variable() -> Json:
    """The scrape job of our exporters."""
    return query_variable("job", "Job", f"label_values({BY_NAME['target_info'].full_name}, job)")


def target_variable(*, multi: bool = True) -> Json:
    """The servers of the chosen jobs."""
    return query_variable(
        "target",
        "Server",
        f"label_values({m('target_info', OF_JOBS)}, target)",
        multi=multi,
        include_all=multi,
    )


def common_variables(*, multi: bool = True) -> tuple[Json, ...]:
    """Data source, job and server, chained in this order."""
    return (datasource_variable(), job_variable(), target_variable(multi=multi))


def restarts(selector: str) -> tuple[Json, ...]:
    """Marks where a server started anew, and where its configuration changed."""
    return (
        annotation(
            "Restarts",
            f"1000 * {m('target_start_time_seconds', selector)}",
            ORANGE,
            "{{target}} started",
            "The server's process started here.",
        ),
        annotation(
            "Configuration changes",
            f"1000 * {m('target_config_changed_timestamp_seconds', selector)}",
            PURPLE,
            "{{target}} has another configuration",
            "Engine, version, model or settings changed here; see the settings on the server's board.",
        ),
    )


LINKS = (board_links(),)

# How a server's state reads, by target_up.
UP = {0.0: ("DOWN", RED), 1.0: ("up", GREEN)}
YES_NO = {0.0: ("NO", RED), 1.0: ("yes", GREEN)}
