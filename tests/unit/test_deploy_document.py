"""What docs/deploy.md leads to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deployment import REPOSITORY

DOCUMENT = REPOSITORY / "docs/deploy.md"
LINKS = sorted(set(re.findall(r"\]\((?!https?:)([^)]+)\)", DOCUMENT.read_text())))


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("link", LINKS)
def test_a_link_leads_somewhere(link: str) -> None:
    path, _, anchor = link.partition("#")
    target = (DOCUMENT.parent / path).resolve() if path else DOCUMENT

    assert target.exists()
    assert not anchor or anchor in anchors(target)


def test_every_example_is_named() -> None:
    text = DOCUMENT.read_text()
    deploy = REPOSITORY / "deploy"
    examples = [
        *deploy.glob("prometheus/*.yml"),
        *deploy.glob("systemd/*"),
        *deploy.glob("kubernetes/overlays/*"),
        *deploy.glob("helm/*"),
        deploy / "kubernetes/ab-watch",
        deploy / "compose/compose.yaml",
        deploy / "docker/Dockerfile",
    ]

    assert [path for path in examples if path.relative_to(REPOSITORY).as_posix() not in text] == []
