"""What all boards share: selectors, variables, colours of components, annotations."""

from __future__ import annotations

from brimline_dashboards.panels import (
    BLUE,
    GREEN,
    GREY,
    INK,
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
from brimline_dashboards.queries import ON, family, family_count, family_sum

FLEET, SERVER, GPU, AB, EXPORTER = (
    "brimline-fleet",
    "brimline-server",
    "brimline-gpu",
    "brimline-ab",
    "brimline-exporter",
)

# Which series a board looks at, by its variables.
OF_JOBS = 'job=~"$job"'
OF_EXPORTERS = f'{OF_JOBS},instance=~"$instance"'
OF_SERVERS = f'{OF_EXPORTERS},target=~"$target"'
# Exactly one server, although several exporters may use its name.
OF_SERVER = f'{OF_JOBS},instance="$instance",target="$target"'


def m(name: str, selector: str = OF_SERVERS) -> str:
    """A family of the catalog with a selector; KeyError for one that is not there."""
    return family(name, selector)


def m_sum(name: str, selector: str = OF_SERVERS) -> str:
    """The `_sum` of a histogram."""
    return family_sum(name, selector)


def m_count(name: str, selector: str = OF_SERVERS) -> str:
    """The `_count` of a histogram."""
    return family_count(name, selector)


def m_bucket(name: str, selector: str = OF_SERVERS) -> str:
    """The `_bucket` of a histogram; there only with `histograms: full`."""
    return f"{family(name)}_bucket{{{selector}}}"


def recorded(name: str, selector: str = OF_SERVERS) -> str:
    """A recorded series with a selector."""
    return f"{name}{{{selector}}}"


# One colour for each component, on every board; in the order in which they are stacked.
COMPONENT_COLORS = {
    "weights": BLUE,
    "kv_cache_used": ORANGE,
    "kv_cache_free": YELLOW,
    "kv_cache": YELLOW,
    "activations": SKY,
    "cuda_graphs": PURPLE,
    "runtime": GREY,
    "lora": "#AA4499",
    "encoder_cache": "#8F7BF0",
    "draft_model": "#44AA99",
    "other_processes": RED,
    "unaccounted": "#B0B0B0",
}


# What areas of components are stacked of, from below: what a server holds for good, then its KV cache, whose
# border between used and free is what moves.
COMPONENTS_FROM_BELOW = (
    'component!~"kv_cache.*|unaccounted"',
    'component="kv_cache_used"',
    'component=~"kv_cache|kv_cache_free"',
)


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
        Style(
            series="/^(card|capacity|context window|limit|one request)/",
            color=RED,
            fill=0,
            stack=False,
            width=2,
            is_regex=True,
        ),
        Style(series="/^in use/", color=INK, fill=0, stack=False, width=2, is_regex=True),
    ]


def values_of(label: str, selector: str) -> str:
    """The query for the values of a label of target_info."""
    return f"label_values({m('target_info', selector)}, {label})"


def job_variable() -> Json:
    """The scrape job of our exporters. All is a list, so that `up` of other jobs stays out."""
    return query_variable("job", "Job", f"label_values({family('target_info')}, job)")


def common_variables() -> tuple[Json, ...]:
    """Data source, job, exporter and servers, chained in this order."""
    return (
        datasource_variable(),
        job_variable(),
        query_variable("instance", "Exporter", values_of("instance", OF_JOBS), all_value=".+"),
        query_variable("target", "Server", values_of("target", OF_EXPORTERS), all_value=".+"),
    )


def server_variables() -> tuple[Json, ...]:
    """Data source, job, one server, and the one exporter that reads it, chained in this order."""
    return (
        datasource_variable(),
        job_variable(),
        query_variable(
            "target",
            "Server",
            values_of("target", OF_JOBS),
            multi=False,
            include_all=False,
        ),
        query_variable(
            "instance",
            "Exporter",
            values_of("instance", f'{OF_JOBS},target="$target"'),
            multi=False,
            include_all=False,
            description="Which exporter, where several use this server's name.",
        ),
    )


def experiment_variable(*, multi: bool = True) -> Json:
    """Experiments of the chosen jobs. All: servers of no experiment, too."""
    return query_variable(
        "experiment",
        "Experiment",
        values_of("experiment", OF_JOBS),
        multi=multi,
        include_all=multi,
        all_value=".*" if multi else None,
    )


def once(expr: str, *labels: str) -> str:
    """Each GPU or server once, although several exporters may read it."""
    return f"max by ({', '.join(labels or ('gpu',))}) ({expr})"


def by_server(name: str, selector: str = OF_SERVERS) -> str:
    """A recorded series of servers, one line each: its label engine is empty while a server is down."""
    return f"max by ({ON}) ({recorded(name, selector)})"


def of_all(expr: str, whole: str) -> str:
    """How many there are; 0 only where there are some that could be, absent where there are none."""
    return f"count({expr}) or 0 * count({whole})"


def restarts(selector: str, among: str = "") -> tuple[Json, ...]:
    """Marks where a server started anew, and where its configuration changed. among: narrows the servers."""
    return (
        annotation(
            "Restarts",
            f"1000 * {m('target_start_time_seconds', selector)}{among}",
            ORANGE,
            "{{target}} started",
            "The server's process started here.",
        ),
        annotation(
            "Configuration changes",
            f"1000 * {m('target_config_changed_timestamp_seconds', selector)}{among}",
            PURPLE,
            "{{target}} has another configuration",
            "Engine, version, model or settings changed here; see the settings on the server's board.",
        ),
    )


LINKS = (board_links(),)

# How a server's state reads, by target_up.
UP = {0.0: ("DOWN", RED), 1.0: ("up", GREEN)}
YES_NO = {0.0: ("NO", RED), 1.0: ("yes", GREEN)}
