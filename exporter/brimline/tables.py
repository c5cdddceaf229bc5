"""Tables and lines of text on a terminal, as rich draws them, for a command that has no time to import it.

Only what a prediction needs: one look, columns to the left or to the right, lines that wrap between words.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TextIO

Justify = Literal["left", "right"]


@dataclass(slots=True)
class Column:
    """A column. no_wrap: its cells stay in one line, whatever room that leaves to others."""

    title: str
    justify: Justify = "left"
    no_wrap: bool = False


@dataclass(slots=True)
class Table:
    """Rows of cells under their columns. None among the rows is a line between them."""

    title: str
    columns: list[Column] = field(default_factory=list)
    rows: list[tuple[str, ...] | None] = field(default_factory=list)

    def add_column(self, title: str, *, justify: Justify = "left", no_wrap: bool = False) -> None:
        """Add a column, behind the others."""
        self.columns.append(Column(title, justify, no_wrap))

    def add_row(self, *cells: str) -> None:
        """Add a row; cells that are left out are empty."""
        self.rows.append((*cells, *[""] * (len(self.columns) - len(cells))))

    def add_section(self) -> None:
        """Draw a line below the last row."""
        self.rows.append(None)

    def lines(self, width: int) -> list[str]:
        """The table in lines of at most so many characters, without cutting a word or a number.

        Where these do not fit beside each other, each row's cells stand below each other.
        """
        widths = self._widths(width)
        if widths is None:
            return self._below_each_other(width)
        whole = sum(widths) + 3 * len(widths) + 1
        drawn = _wrapped(self.title, whole) if self.title else []
        drawn.append(_rule("┏┳┓", "━", widths))
        drawn += self._row(tuple(column.title for column in self.columns), widths, "┃")
        drawn.append(_rule("┡╇┩", "━", widths))
        for index, row in enumerate(self.rows):
            if row is not None:
                drawn += self._row(row, widths, "│")
            elif index < len(self.rows) - 1:
                drawn.append(_rule("├┼┤", "─", widths))
        return [*drawn, _rule("└┴┘", "─", widths)]

    def _widths(self, width: int) -> list[int] | None:
        """Each column as wide as its widest cell; where that is too much, the widest that wrap give way.

        None where one would have to be narrower than the parts of its words.
        """
        cells = [[column.title for column in self.columns], *[row for row in self.rows if row is not None]]
        widths = [max(len(row[index]) for row in cells) for index in range(len(self.columns))]
        least = [
            widths[index]
            if column.no_wrap
            else max((len(part) for row in cells for part in _parts(row[index])), default=0)
            for index, column in enumerate(self.columns)
        ]
        for _ in range(sum(widths) + 3 * len(widths) + 1 - width):
            narrower = [index for index in range(len(widths)) if widths[index] > least[index]]
            if not narrower:
                return None
            widths[max(narrower, key=widths.__getitem__)] -= 1
        return widths

    def _below_each_other(self, width: int) -> list[str]:
        drawn = _wrapped(self.title, width) if self.title else []
        for first, *others in (row for row in self.rows if row is not None):
            drawn += _wrapped(first, width)
            for column, cell in zip(self.columns[1:], others, strict=True):
                if cell:
                    said = f"{column.title}: {cell}" if column.title else cell
                    drawn += [f"    {line}" for line in _cell(said, width - 4)]
        return drawn

    def _row(self, cells: Sequence[str], widths: Sequence[int], edge: str) -> list[str]:
        wrapped = [_cell(cell, width) for cell, width in zip(cells, widths, strict=True)]
        drawn = []
        for index in range(max(map(len, wrapped), default=0)):
            parts = [
                _justified(lines[index] if index < len(lines) else "", width, column.justify)
                for lines, width, column in zip(wrapped, widths, self.columns, strict=True)
            ]
            drawn.append(edge + edge.join(f" {part} " for part in parts) + edge)
        return drawn


# Where a long name, such as a path, may go on in the next line.
_JOINT = re.compile(r"(?<=\w[/_-])(?=\w)")


def _parts(text: str) -> list[str]:
    """What of a text must not be cut."""
    return [part for word in text.split() for part in _JOINT.split(word)]


def _cell(text: str, width: int) -> list[str]:
    """The text in lines between words; a word that is longer than a line goes on in the next."""
    lines = []
    for line in textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False) or [""]:
        rest = line
        while len(rest) > width:
            joints = [joint.start() for joint in _JOINT.finditer(rest) if 0 < joint.start() <= width]
            end = joints[-1] if joints else width
            lines.append(rest[:end])
            rest = rest[end:]
        lines.append(rest)
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    """The text in lines between words; a word that is longer than a line begins one of its own."""
    if len(text) <= width:
        return [text]
    lines = textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)
    return [line[at : at + width] for line in lines for at in range(0, len(line), width)] or [""]


def _justified(text: str, width: int, justify: Justify) -> str:
    return text.rjust(width) if justify == "right" else text.ljust(width)


def _rule(corners: str, line: str, widths: Sequence[int]) -> str:
    return corners[0] + corners[1].join(line * (width + 2) for width in widths) + corners[2]


class Console:
    """Where it is printed: standard output unless a file is given. width: that of the terminal, else 80."""

    def __init__(self, file: TextIO | None = None, width: int | None = None) -> None:
        self._file = file
        self.is_terminal = self._out.isatty()
        self.width = shutil.get_terminal_size().columns if width is None else width

    @property
    def _out(self) -> TextIO:
        return sys.stdout if self._file is None else self._file

    def print(self, shown: str | Table = "", *, soft_wrap: bool = False) -> None:
        """Print a table, or a text whose lines are wrapped between words, unless by the terminal itself."""
        if isinstance(shown, Table):
            lines = shown.lines(self.width)
            if self.is_terminal and "NO_COLOR" not in os.environ:
                lines = [f"\x1b[1m{line}\x1b[0m" if "┃" in line else line for line in lines]
        else:
            lines = shown.split("\n")
            if not soft_wrap:
                lines = [piece for line in lines for piece in _wrapped(line, self.width)]
        self._out.write("".join(f"{line}\n" for line in lines))
