"""Save a server's page and settings for a bug report, without secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from brimline import __version__
from brimline.collect import TargetReader
from brimline.config import SECRET_MASK, is_secret_setting
from brimline.engines import state_of
from brimline.errors import BrimlineError, ConfigError
from brimline.readings import TargetSnapshot
from brimline.saved_page import CAPTURE_FILE, PAGE_FILE, file_of

_KEPT_HEADERS = ("content-type", "server")
_LABEL = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


def strip_document(document: Any) -> Any:
    """A JSON document with the values of secret keys replaced, at any depth."""
    if isinstance(document, dict):
        return {
            key: SECRET_MASK
            if is_secret_setting(key) and isinstance(value, str) and value
            else strip_document(value)
            for key, value in document.items()
        }
    return [strip_document(item) for item in document] if isinstance(document, list) else document


def strip_page(body: bytes) -> bytes:
    """A page with the values of secret labels replaced."""

    def mask(label: re.Match[bytes]) -> bytes:
        if is_secret_setting(label.group(1).decode()):
            return label.group(1) + b'="' + SECRET_MASK.encode() + b'"'
        return label.group(0)

    return _LABEL.sub(mask, body)


def write_capture(folder: Path, snapshot: TargetSnapshot, reader: TargetReader) -> list[Path]:
    """Write what the reader last saw into a new or empty folder; the files written.

    Raises ConfigError where the folder holds something, BrimlineError where it cannot be written or nothing
    was seen.
    """
    raw = reader.raw
    if raw is None:
        why = "; ".join(problem.detail for problem in snapshot.problems) or "the server gave no page"
        raise BrimlineError(f"nothing to save: {why}")
    reading = snapshot.reading
    about: Mapping[str, Any] = {
        "brimline": __version__,
        "captured_at": datetime.fromtimestamp(raw.at, UTC).isoformat(timespec="seconds"),
        "metrics_path": raw.path,
        "engine": reading.engine if reading is not None else None,
        "engine_version": reading.engine_version if reading is not None else None,
        "problems": [f"{problem.reason}: {problem.detail}" for problem in snapshot.problems],
        "headers": {name: raw.headers[name] for name in _KEPT_HEADERS if name in raw.headers},
    }
    files = {CAPTURE_FILE: _json(about)}
    if reading is not None and (state := state_of(raw.body)) is not None:
        files[file_of(raw.path)] = _json(strip_document(state))
    else:
        files[PAGE_FILE] = strip_page(raw.body)
    for path, document in raw.documents.items():
        files[file_of(path)] = _json(strip_document(document))
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty; name a new folder")
        for name, content in sorted(files.items()):
            (folder / name).write_bytes(content)
            written.append(folder / name)
    except OSError as error:
        raise BrimlineError(f"{folder}: cannot be written ({error.strerror}); name another folder") from None
    return written


def _json(document: Any) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
