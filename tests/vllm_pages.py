"""Pages of vLLM servers of any size, made from a captured one."""

from __future__ import annotations

import re
from pathlib import Path

CAPTURE = Path(__file__).parent / "captures/vllm-0.32.0-cpu"
# Families that engines before 0.10 do not have; without them, and without `_created`, a page has 24 KB.
_NEWER = re.compile(
    r"^vllm:(?:iteration|request_(?:params|prefill|decode|inference|queue)|prompt_tokens_by|mm_|external|estim"
    r"|request_(?:max|time))"
)


def page(engines: int = 1) -> bytes:
    """The page of a server with so many data-parallel ranks: 58 KB for one, 206 KB for 5, 2 MB for 52."""
    one = (CAPTURE / "metrics.prom").read_text()
    samples = [line for line in one.splitlines() if not line.startswith("#") and 'engine="0"' in line]
    more = [line.replace('engine="0"', f'engine="{rank}"') for rank in range(1, engines) for line in samples]
    return (one + "".join(f"{line}\n" for line in more)).encode()


def small_page() -> bytes:
    """A page of 24 KB, as of an older engine: fewer families, and none that says when it was created."""
    lines = (CAPTURE / "metrics.prom").read_text().splitlines()
    names = [line.split()[2] if line.startswith("#") else line for line in lines]
    kept = [
        line
        for line, name in zip(lines, names, strict=True)
        if not re.search(r"_created(?:\{|$| )", name) and not _NEWER.match(name)
    ]
    return ("\n".join(kept) + "\n").encode()


def document(name: str) -> bytes:
    """A settings document of the captured server: `version.json` or `v1_models.json`."""
    return (CAPTURE / name).read_bytes()
