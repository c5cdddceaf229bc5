"""The Dockerfile and what lies beside it."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import brimline
from deployment import DEPLOY, REPOSITORY, deployment_tool

DOCKERFILE = DEPLOY / "docker/Dockerfile"
TEXT = DOCKERFILE.read_text()
PINNED = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(
        [deployment_tool("hadolint"), "--no-color", "--failure-threshold=style", DOCKERFILE],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stdout


def test_hadolint_would_refuse_a_moving_base(tmp_path: Path) -> None:
    """The check above checks something."""
    moving = tmp_path / "Dockerfile"
    moving.write_text(re.sub(r"(FROM python):\S+", r"\1:latest", TEXT))

    done = subprocess.run([deployment_tool("hadolint"), moving], capture_output=True, text=True, timeout=60)

    assert done.returncode != 0


def test_both_stages_stand_on_the_same_version_of_a_glibc_base() -> None:
    bases = set(re.findall(r"^FROM (\S+)", TEXT, re.MULTILINE))

    [base] = bases
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", base)


def test_the_image_is_nobody_by_number_and_sees_gpus_through_nvml_alone() -> None:
    final = TEXT.rpartition("\nFROM ")[2]

    assert "USER 65534:65534" in final
    assert "NVIDIA_VISIBLE_DEVICES=all" in final
    assert "NVIDIA_DRIVER_CAPABILITIES=utility" in final
    assert not re.search(r"^(RUN|SHELL|ADD)", final, re.MULTILINE)
    assert re.search(r"^ENTRYPOINT \[", final, re.MULTILINE)
    assert "curl" not in TEXT


def test_its_version_is_the_packages() -> None:
    assert f'image.version="{brimline.__version__}"' in TEXT


@pytest.mark.parametrize(
    ("file", "extra"),
    [("requirements.txt", "kubernetes"), ("requirements-ab.txt", "ab"), ("build-requirements.txt", None)],
)
def test_every_dependency_is_pinned_with_its_hashes(file: str, extra: str | None) -> None:
    document = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wanted: list[str] = document["build-system"]["requires"]
    if extra is not None:
        project = document["project"]
        wanted = [*project["dependencies"], *project["optional-dependencies"][extra]]
    text = (DEPLOY / "docker" / file).read_text()
    pinned = dict(PINNED.findall(text))

    for requirement in wanted:
        name = re.split(r"[^A-Za-z0-9_-]", requirement)[0].lower().replace("_", "-")
        assert name in pinned, f"{name} is missing: run tools/pin_image.sh"
        for operator, version in re.findall(r"(>=|<|==)([0-9.]+)", requirement):
            assert _compare(pinned[name], operator, version), f"{requirement}: run tools/pin_image.sh"
    blocks = re.split(r"\n(?=\S)", text.partition("\n")[2])
    assert all("--hash=sha256:" in block for block in blocks if PINNED.match(block))


def _compare(pinned: str, operator: str, version: str) -> bool:
    left, right = (
        tuple(int(part) for part in text.split(".") if part.isdigit()) for text in (pinned, version)
    )
    return {">=": left >= right, "<": left < right, "==": left == right}[operator]


def test_what_is_copied_is_in_the_context_and_the_rest_is_not() -> None:
    lines = (DEPLOY / "docker/Dockerfile.dockerignore").read_text().splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)", TEXT, re.MULTILINE)
        for source in line.split()[:-1]
    ]

    assert "*" in lines
    for source in copied:
        assert (REPOSITORY / source).exists()
        assert any(source == entry or source.startswith(f"{entry}/") for entry in kept), source
    for private in (".git", ".venv", "tests", "docs"):
        assert not any(fnmatch.fnmatch(private, entry) for entry in kept)
