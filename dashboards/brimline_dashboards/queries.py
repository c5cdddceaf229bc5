"""Pieces of PromQL that boards and rules share. Names of families come from the catalog, never from text."""

from __future__ import annotations

from brimline.catalog import BY_NAME

# What series of one server are joined on: several exporters may use one target name.
ON = "job, instance, target"
ON_GPU = "job, instance, gpu"
ON_EXPORTER = "job, instance"

# What recorded series of a server carry beside their own labels.
IDENTITY = "engine, experiment, variant, role, model"


def family(name: str, selector: str = "") -> str:
    """A family of the catalog, with a selector if there is one; KeyError for one that is not there."""
    return BY_NAME[name].full_name + (f"{{{selector}}}" if selector else "")


def family_sum(name: str, selector: str = "") -> str:
    """The `_sum` of a histogram."""
    return f"{BY_NAME[name].full_name}_sum" + (f"{{{selector}}}" if selector else "")


def family_count(name: str, selector: str = "") -> str:
    """The `_count` of a histogram."""
    return f"{BY_NAME[name].full_name}_count" + (f"{{{selector}}}" if selector else "")


def identified(expr: str, labels: str = IDENTITY) -> str:
    """One series for each server, with labels of its identity."""
    return f"({expr})\n* on ({ON}) group_left ({labels})\ntarget:identity:info"


def ratio_of(numerator: str, denominator: str) -> str:
    """A quotient that is absent, not NaN, where nothing happens."""
    return f"({numerator}) / ({denominator} > 0)"


def quoted(text: str) -> str:
    """Text as a PromQL string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
