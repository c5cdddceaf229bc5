"""Files that others name: what people who need not know this machine's folders are shown of them."""

from __future__ import annotations

import pytest

from brimline.files import without_folders


@pytest.mark.parametrize(
    ("text", "known", "shown"),
    [
        ("/srv/models/llama/config.json cannot be read", (), "config.json cannot be read"),
        ("safetensors headers of /srv/models/llama; config", (), "safetensors headers of llama; config"),
        ("/srv/models/llama/config.json: bad", ("/srv/models/llama",), "llama/config.json: bad"),
        ("of /srv/my models (old)/llama: bad", ("/srv/my models (old)/llama",), "of llama: bad"),
        ("of '/srv/models/llama/'", ("/srv/models/llama/",), "of 'llama/'"),
        ("/etc (No such file)", (), "etc (No such file)"),
        (
            "see https://example.org/a/b and 3/4 of 5 GiB/s",
            (),
            "see https://example.org/a/b and 3/4 of 5 GiB/s",
        ),
        ("vLLM 0.32, config/model.py; a / b", (), "vLLM 0.32, config/model.py; a / b"),
        ("config.json", ("config.json",), "config.json"),
        ("/", ("/",), "/"),
    ],
)
def test_absolute_paths_lose_their_folders_and_all_else_stays(
    text: str, known: tuple[str, ...], shown: str
) -> None:
    assert without_folders(text, *known) == shown
