from io import StringIO

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from brimline.fitted_table import print_table

UUID = "GPU-51ae0000-0000-4000-8000-000000000001"


def printed(width: int, *, box: bool = True) -> list[str]:
    table = Table(title="GPUs", title_justify="left") if box else Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column("UUID", overflow="fold")
    table.add_column("name")
    table.add_column("used", justify="right", no_wrap=True)
    table.add_column("what of it", overflow="fold")
    table.add_row(
        "GPU 0", UUID, "NVIDIA H100 80GB HBM3", "551.00 MiB", Text("up\nand well, as far as is known")
    )
    table.add_row("GPU 1", UUID, "", "–", "")
    out = StringIO()
    print_table(table, Console(file=out, width=width, markup=False, highlight=False))
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("box", [True, False])
@pytest.mark.parametrize("width", range(40, 130, 3))
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut(width: int, box: bool) -> None:
    lines = printed(width, box=box)

    assert max(map(len, lines)) <= width
    assert any(UUID in line for line in lines)
    assert any("551.00 MiB" in line for line in lines)
    assert "…" not in "".join(lines)


def test_a_wide_terminal_shows_a_table() -> None:
    assert "━" in "".join(printed(140))


def test_a_column_of_short_words_gives_way_to_one_long_name() -> None:
    assert "━" in "".join(printed(100))  # though rich would fold the UUID, which is the widest


def test_a_narrow_terminal_shows_each_rows_cells_below_each_other() -> None:
    assert printed(40) == [
        "GPUs",
        "GPU 0",
        "UUID:",
        UUID,
        "    name: NVIDIA H100 80GB HBM3",
        "    used: 551.00 MiB",
        "    up",
        "    and well, as far as is known",
        "GPU 1",
        "UUID:",
        UUID,
        "    used: –",
    ]
