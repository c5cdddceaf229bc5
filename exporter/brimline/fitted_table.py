"""Tables of rich that fit their terminal: no word or number is cut, however narrow it is."""

from __future__ import annotations

from collections.abc import Iterable

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

_INDENT = 4


def print_table(table: Table, console: Console) -> None:
    """Print a table, or where its words do not fit beside each other, each row's cells below each other."""
    if fits(table, console):
        console.print(table)
        return
    if table.title:
        console.print(Text(str(table.title), style="italic"))
    title, *others = table.columns
    for first, *cells in zip(title.cells, *(column.cells for column in others), strict=True):
        console.print(first if isinstance(first, Text) else Text(str(first), style="bold"))
        for column, cell in zip(others, cells, strict=True):
            if not str(cell):
                continue
            says_itself = "\n" in str(cell) or not column.header or len(others) == 1
            said = Text.assemble("" if says_itself else f"{column.header}: ", cell)
            for line in said.split():
                # A long name stays whole if only it may begin at the edge.
                indent = _INDENT if _longest(line.plain.split()) <= console.width - _INDENT else 0
                console.print(Padding(line, (0, 0, 0, indent), expand=False))


def fits(table: Table, console: Console) -> bool:
    """Give each column its width, the widest giving way first; False where words or numbers would be cut.

    Rich itself narrows columns below their longest word while others have room.
    """
    least, widths = zip(*map(_span, table.columns), strict=True)
    unbounded = console.options.update(max_width=sum(widths) + 100 * len(widths))
    frame = table.__rich_measure__(console, unbounded).maximum - sum(widths)
    given = list(widths)
    while frame + sum(given) > console.width:
        widest = max(
            (i for i in range(len(given)) if given[i] > least[i]), key=given.__getitem__, default=None
        )
        if widest is None:
            return False
        given[widest] -= 1
    for column, width in zip(table.columns, given, strict=True):
        column.width = width
    return True


def _span(column: Column) -> tuple[int, int]:
    """The least and the most width that a column can use."""
    cells = [str(cell) for cell in (column.header, *column.cells)]
    most = _longest(line for cell in cells for line in cell.splitlines())
    return (most if column.no_wrap else _longest(word for cell in cells for word in cell.split())), most


def _longest(parts: Iterable[str]) -> int:
    return max(map(cell_len, parts), default=0)
