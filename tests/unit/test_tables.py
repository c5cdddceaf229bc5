"""Tables drawn without rich look as rich draws them."""

from __future__ import annotations

from io import StringIO

import pytest
import rich.console
import rich.table

from brimline.tables import Console, Table

ROWS = [
    ("weights", "14.81 GiB", "20.4 %", "computed from config.json at its dtype; config.json"),
    ("kv_cache", "55.24 GiB", "75.2 %", "config.json, block rules; a/word/that/is/wider/than/its/column"),
    ("runtime", "0.50 GiB", "", ""),
]  # fmt: skip
TOTAL = ("total", "73.50 GiB", "", "budget")


def drawn(width: int, title: str = "Memory of one GPU") -> list[str]:
    table = Table(title)
    table.add_column("component", no_wrap=True)
    table.add_column("expected", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("from")
    for row in ROWS:
        table.add_row(*row)
    table.add_section()
    table.add_row(*TOTAL)
    out = StringIO()
    Console(file=out, width=width).print(table)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def drawn_by_rich(width: int, title: str = "Memory of one GPU") -> list[str]:
    table = rich.table.Table(title=title, title_justify="left")
    table.add_column("component", no_wrap=True)
    table.add_column("expected", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("from")
    for row in ROWS:
        table.add_row(*row)
    table.add_section()
    table.add_row(*TOTAL)
    out = StringIO()
    rich.console.Console(file=out, width=width, markup=False, highlight=False).print(table)
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("width", [70, 80, 100, 200])
def test_a_table_is_drawn_as_rich_draws_it(width: int) -> None:
    assert drawn(width) == drawn_by_rich(width)


@pytest.mark.parametrize(
    "text", ["", "short", "word " * 40, "parameters        8,030\n  indented", "x" * 150]
)
def test_lines_wrap_as_those_of_rich(text: str) -> None:
    ours, theirs = StringIO(), StringIO()

    Console(file=ours, width=60).print(text)
    rich.console.Console(file=theirs, width=60, markup=False, highlight=False).print(text)

    assert [line.rstrip() for line in ours.getvalue().splitlines()] == [
        line.rstrip() for line in theirs.getvalue().splitlines()
    ]


def test_a_text_that_the_terminal_wraps_stays_in_its_lines() -> None:
    out = StringIO()

    Console(file=out, width=20).print("word " * 20, soft_wrap=True)

    assert out.getvalue() == "word " * 20 + "\n"
