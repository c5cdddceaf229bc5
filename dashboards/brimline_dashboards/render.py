"""Boards as files: the same bytes for the same boards."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from brimline_dashboards.boards import BOARDS
from brimline_dashboards.panels import Board, board_json


def board_text(board: Board) -> str:
    """The board's JSON, keys sorted, with a newline at its end."""
    return json.dumps(board_json(board), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_boards(folder: Path, boards: Mapping[str, Callable[[], Board]] = BOARDS) -> list[Path]:
    """Write UID.json of each board into the folder, which is made if need be; the files. Raises OSError.

    A file is replaced as a whole: Grafana's provisioning may read it at any moment.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for uid, board in boards.items():
        file = folder / f"{uid}.json"
        beside = folder / f".{uid}.json.new"
        beside.write_text(board_text(board()), encoding="utf-8")
        beside.replace(file)
        written.append(file)
    return written
