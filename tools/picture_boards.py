"""Take the pictures of docs/boards.md: `tools/picture_boards.py http://127.0.0.1:9090`.

The Prometheus should hold a quarter of an hour of two variants, as the one that `make demo` starts does.
Needs Chromium.
"""

from __future__ import annotations

import asyncio
import io
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from brimline_dashboards.boards import BOARDS  # noqa: E402
from brimline_dashboards.interpolation import Times  # noqa: E402
from brimline_dashboards.preview.asking import Prometheus  # noqa: E402
from brimline_dashboards.preview.page import page  # noqa: E402
from brimline_dashboards.preview.shown import Window  # noqa: E402
from browser import opened  # noqa: E402 (of the tests' folder)

SECONDS = 900.0
# Name of the picture: board, rows that stay, width of the window.
PICTURES = {
    "board-fleet": ("brimline-fleet", 3, 1400),
    "board-server": ("brimline-server", 3, 1400),
    "board-gpu": ("brimline-gpu", 4, 1400),
    "board-ab": ("brimline-ab", 4, 1400),
    "board-server-phone": ("brimline-server", 2, 390),
}
_ONLY = """
for (const board of document.querySelectorAll('.board')) if (board.id !== '{board}') board.remove();
const headings = [...document.querySelectorAll('h2')].slice({rows});
for (const heading of headings) {{ heading.nextElementSibling.remove(); heading.remove(); }}
"""


async def take(file: Path, board: str, rows: int, width: int, folder: Path) -> bytes:
    """A PNG of the first rows of a board."""
    async with opened(f"file://{file}", folder / f"{board}-{width}", width=width) as tab:
        await tab.evaluate(_ONLY.format(board=board, rows=rows) + "true")
        return await tab.screenshot()


def main(url: str) -> None:
    """Draw the preview once, and take every picture of it."""
    times = Times(range_seconds=SECONDS, step_seconds=6, scrape_interval_seconds=5)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "boards.html"
        boards = [make() for make in BOARDS.values()]
        wanted = {"target": "short-context"}
        file.write_text(page(boards, Prometheus(url), Window(time.time(), times), wanted))
        for name, (board, rows, width) in PICTURES.items():
            picture = Image.open(io.BytesIO(asyncio.run(take(file, board, rows, width, Path(folder)))))
            # A few colours are all it has: a third of the size.
            picture.convert("RGB").quantize(256).save(ROOT / "docs" / f"{name}.png", optimize=True)
            print(ROOT / "docs" / f"{name}.png")


if __name__ == "__main__":
    main(sys.argv[1])
