"""Tables as Grafana makes them of instant queries: a frame for each query, then the transformations."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from brimline_dashboards.panels import Json
from brimline_dashboards.preview.asking import Series

Cell = str | float | None
Row = dict[str, Cell]

_OPERATORS: Mapping[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


def frames(answers: Mapping[str, Sequence[Series]]) -> list[list[Row]]:
    """A frame for each query by its letter: labels, and the value as `Value` or, of several, `Value #A`."""
    made: list[list[Row]] = []
    for letter, series in answers.items():
        value = "Value" if len(answers) == 1 else f"Value #{letter}"
        made.append([{**each.labels, value: each.known[-1][1]} for each in series if each.known])
    return made


def transformed(made: Sequence[Sequence[Row]], transformations: Sequence[Json]) -> list[Row]:
    """The rows that the panel shows, by the names that its columns had before they were renamed.

    Raises ValueError for a transformation that the boards do not use.
    """
    tables = [list(frame) for frame in made if frame]
    for transformation in transformations:
        options: dict[str, Any] = transformation["options"]
        match transformation["id"]:
            case "merge":
                tables = [merged(tables)] if tables else []
            case "calculateField":
                tables = [[_calculated(row, options) for row in rows] for rows in tables]
            case "filterFieldsByName":
                kept = options["include"]["names"]
                tables = [[{name: row.get(name) for name in kept} for row in rows] for rows in tables]
            case "organize":
                pass  # names and order are the columns', applied where they are written
            case other:
                raise ValueError(f"the preview knows no transformation {other!r}")
    return [row for rows in tables for row in rows]


def merged(tables: Sequence[Sequence[Row]]) -> list[Row]:
    """Rows of all frames, one where they agree in every field that all frames have."""
    shared = set.intersection(*({name for row in rows for name in row} for rows in tables))
    by_key: dict[tuple[Cell, ...], list[Row]] = {}
    for rows in tables:
        for row in rows:
            alike = by_key.setdefault(tuple(row.get(name) for name in sorted(shared)), [])
            for other in alike:
                if all(other.get(name, value) == value for name, value in row.items()):
                    other.update(row)
                    break
            else:
                alike.append(dict(row))
    return [row for alike in by_key.values() for row in alike]


def _calculated(row: Row, options: Json) -> Row:
    binary = options["binary"]
    left, right = row.get(binary["left"]), row.get(binary["right"])
    result: Cell = None
    if (
        isinstance(left, float)
        and isinstance(right, float)
        and not (binary["operator"] == "/" and right == 0)
    ):
        result = _OPERATORS[binary["operator"]](left, right)
    return {**row, options["alias"]: result}
