"""Whatever a model is called: every engine's page gives the same numbers under a label that can be shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from brimline.engines.families import clean_label
from brimline.readings import EngineReading
from brimline.saved_page import SavedPage, open_saved, read_saved

CAPTURES = Path(__file__).parent.parent.parent / "captures"

NAMES = {
    "quotes": 'a"b\\"c\\',
    "lines": 'a\nb\r\nvllm:num_requests_running{model_name="m"} 999\n',
    "bidirectional": "gpj.\u202egnp\u2066\u200f",
    "long": "x" * 7_500,  # stands twice on a line of Dynamo, and a line may have 16 KiB
    "PromQL": 'm"} or on() vector(1) #',
    "HTML": "<script>alert(1)</script>&amp;{{constructor}}",
    "braces": "{}},{=\"x\",model_name='y'}",
    "invisible": "\u200b\u00a0m\x00\x1b[31m",
}


def escaped(text: str) -> bytes:
    """A label value as the exposition formats write it."""
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"").encode()


def renamed(value: Any, old: str, new: str) -> Any:
    """A document with every text `old` in it replaced."""
    if isinstance(value, dict):
        return {key: renamed(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [renamed(item, old, new) for item in value]
    return new if value == old else value


def captured() -> Iterator[Any]:
    """Each capture whose engine names its model."""
    for folder in sorted(path for path in CAPTURES.iterdir() if path.is_dir()):
        page = open_saved(str(folder))
        if any(rank.model for reading in read_saved(page) for rank in reading.ranks):
            yield pytest.param(page, id=folder.name)


def with_model(page: SavedPage, old: str, new: str) -> SavedPage:
    documents = {path: renamed(document, old, new) for path, document in page.documents.items()}
    if page.body.lstrip()[:1] == b"{":
        return SavedPage(
            json.dumps(renamed(json.loads(page.body), old, new)).encode(), documents, page.headers
        )
    quoted = page.body.replace(b'="%s"' % old.encode(), b'="%s"' % escaped(new))
    return SavedPage(quoted, documents, page.headers)


def numbers(reading: EngineReading) -> list[Any]:
    """The reading's ranks without the names of their models."""
    return sorted((rank.rank, repr(msgspec.structs.replace(rank, model=""))) for rank in reading.ranks)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("page", list(captured()))
def test_a_hostile_name_changes_no_number_and_can_be_shown(page: SavedPage, kind: str) -> None:
    [before] = read_saved(page)
    old = before.ranks[0].model

    [after] = read_saved(with_model(page, old, NAMES[kind]))

    shown = clean_label(NAMES[kind])
    assert numbers(after) == numbers(before)
    assert {rank.model for rank in after.ranks} == {
        shown if rank.model == old else rank.model for rank in before.ranks
    }
    assert shown.isprintable()
    assert len(shown) <= 128
    assert (after.unparsed_lines, after.bad_values) == (before.unparsed_lines, before.bad_values)
    assert all(value.isprintable() and len(value) <= 128 for value in after.settings.values())
