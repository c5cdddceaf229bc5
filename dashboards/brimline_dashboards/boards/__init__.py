"""The boards, one module each, and all of them by uid."""

from __future__ import annotations

from collections.abc import Callable

from brimline_dashboards.boards import ab, exporter, fleet, gpu, server
from brimline_dashboards.boards.common import AB, EXPORTER, FLEET, GPU, SERVER
from brimline_dashboards.panels import Board

# In the order in which a person meets them.
BOARDS: dict[str, Callable[[], Board]] = {
    FLEET: fleet.board,
    SERVER: server.board,
    GPU: gpu.board,
    AB: ab.board,
    EXPORTER: exporter.board,
}
