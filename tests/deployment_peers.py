"""Answers questions about files of deploy/, with packages that the project itself does not need.

Run by the Python that tools/deployment.sh brings. A list of questions in, a list of answers out, as JSON.
"""

from __future__ import annotations

import functools
import json
import sys
from typing import Any

Json = dict[str, Any]


def render(question: Json) -> Json:
    """Helm's rendering of a chart: `manifests` by template, or what Helm refuses, as `error`."""
    import helm_python

    try:
        values = question["values"]
        for text in question.get("sets", []):
            values = merged(values, helm_python.parse_set_string(text))
        with helm_python.Chart.load(question["chart"]) as chart:
            manifests = chart.render(
                values, name=question.get("name", "brimline"), namespace=question["namespace"]
            )
    except helm_python.HelmError as error:
        return {"error": str(error)}
    return {"manifests": manifests}


def merged(values: Json, more: Json) -> Json:
    """The values with more laid over them."""
    out = dict(values)
    for key, value in more.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if both else value
    return out


def lint(question: Json) -> Json:
    """Helm's findings about a chart."""
    import helm_python

    return {"findings": helm_python.lint(question["chart"], question["values"], strict=True)}


def package(question: Json) -> Json:
    """Path of the chart's archive."""
    import helm_python

    return {"archive": helm_python.package(question["chart"], destination=question["destination"])}


def validate(question: Json) -> Json:
    """What Kubernetes' own schema of a version refuses of objects; kinds that it does not know apart."""
    import kubernetes_validate

    # It reads the definitions, which are large, anew for each object.
    kubernetes_validate.utils.schema_contents = _read_once(kubernetes_validate.utils.schema_contents)
    refused, unknown = [], []
    for each in question["objects"]:
        name = f"{each['kind']}/{each['metadata']['name']}"
        try:
            kubernetes_validate.validate(each, question["version"], strict=True)
        except kubernetes_validate.utils.SchemaNotFoundError:
            unknown.append(name)
        except kubernetes_validate.ValidationError as error:
            refused.append(f"{name}: {'.'.join(map(str, error.path))}: {error.message}")
    return {"refused": refused, "unknown": unknown}


def compose(question: Json) -> Json:
    """What a strict reader of the Compose specification refuses; empty where nothing."""
    from compose_spec import PyCompose

    try:
        PyCompose.from_yaml(question["text"]).validate()
    except ValueError as error:
        return {"error": str(error)}
    return {"error": ""}


def _read_once(read: Any) -> Any:
    """The function, asked once for each question."""
    return read if hasattr(read, "cache_info") else functools.cache(read)


ANSWERS = {"render": render, "lint": lint, "package": package, "validate": validate, "compose": compose}

if __name__ == "__main__":
    print(json.dumps([ANSWERS[question["ask"]](question) for question in json.load(sys.stdin)]))
