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
    table.add_column("from", overflow="fold")
    for row in ROWS:
        table.add_row(*row)
    table.add_section()
    table.add_row(*TOTAL)
    out = StringIO()
    rich.console.Console(file=out, width=width, markup=False, highlight=False).print(table)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_a_long_name_goes_on_in_the_next_line_behind_a_joint_of_it() -> None:
    table = Table("")
    table.add_column("size", no_wrap=True)
    table.add_column("from")
    table.add_row("1.00 GiB", "see docs/accuracy/vllm-v0.19.0-report.md")

    assert [line[13:-2].rstrip() for line in table.lines(30)[3:-1]] == [
        "see", "docs/accuracy/", "vllm-v0.19.0-", "report.md",
    ]  # fmt: skip


def test_a_table_for_which_there_is_no_room_becomes_a_list() -> None:
    assert drawn(40)[:11] == [
        "Memory of one GPU",
        "weights",
        "    expected: 14.81 GiB",
        "    share: 20.4 %",
        "    from: computed from config.json at",
        "    its dtype; config.json",
        "kv_cache",
        "    expected: 55.24 GiB",
        "    share: 75.2 %",
        "    from: config.json, block rules;",
        "    a/word/that/is/wider/than/its/column",
    ]


@pytest.mark.parametrize("width", range(24, 100))
def test_no_line_is_wider_than_the_terminal_and_no_number_cut(width: int) -> None:
    lines = drawn(width)

    assert max(map(len, lines)) <= width
    assert all(any(size in line for line in lines) for size in ("14.81 GiB", "55.24 GiB", "73.50 GiB"))


@pytest.mark.parametrize("width", [80, 100, 200])
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
