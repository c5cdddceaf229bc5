"""What checks the files of deploy/: programs that tools/deployment.sh brings, and what they print."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parent.parent
DEPLOY = REPOSITORY / "deploy"

Json = dict[str, Any]


def deployment_tool(name: str) -> str:
    """Path of `hadolint`, `kubectl` or `deployment-python`; `make test` puts them on PATH."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(
            f"{name} is not on PATH; run `make test`, or put the folder that tools/deployment.sh "
            "prints on PATH"
        )
    return path


def ask_peers(questions: Sequence[Json]) -> list[Json]:
    """What Helm, Kubernetes' schemas or the reader of Compose files answer: see deployment_peers.py."""
    done = subprocess.run(
        [deployment_tool("deployment-python"), Path(__file__).with_name("deployment_peers.py")],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    answers: list[Json] = json.loads(done.stdout)
    return answers


def documents(text: str) -> list[Json]:
    """The documents of a YAML stream that hold something."""
    return [document for document in yaml.safe_load_all(text) if document]


def built(folder: Path) -> list[Json]:
    """What `kubectl kustomize` makes of a folder, with the limits that `kubectl apply -k` has."""
    done = subprocess.run(
        [deployment_tool("kubectl"), "kustomize", folder], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return documents(done.stdout)


def only(objects: Sequence[Json], kind: str, **metadata: str) -> Json:
    """The one object of that kind."""
    [found] = [
        each for each in objects if each["kind"] == kind and metadata.items() <= _metadata(each).items()
    ]
    return found


def of_kind(objects: Sequence[Json], kind: str) -> list[Json]:
    """All objects of that kind."""
    return [each for each in objects if each["kind"] == kind]


def _metadata(each: Json) -> Mapping[str, str]:
    return {key: value for key, value in each["metadata"].items() if isinstance(value, str)}
