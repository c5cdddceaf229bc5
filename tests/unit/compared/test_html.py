"""A comparison as a page of HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from brimline.ab.result import Guard
from brimline.compared import as_html
from brimline.compared.html import HEIGHT, WIDTH, plot
from reports import comparison, hostile, metric, not_comparable, report

VOID = {"meta"}


class Tags(HTMLParser):
    """Every tag, and whether each that opens is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, _attributes: object) -> None:
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, _attributes: object) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def tags(page: str) -> list[str]:
    reader = Tags()
    reader.feed(page)
    assert reader.open == []
    return reader.seen


def test_every_block_is_a_dot_with_its_time() -> None:
    page = as_html(report())

    assert tags(page).count("circle") == 16
    assert "2026-09-21 14:13:20: " in page
    assert "Settled at the start" in page


def test_it_loads_nothing_and_runs_nothing() -> None:
    page = as_html(report())

    assert not re.search(r"\b(src|href)=|url\(|@import|https?:", page)
    assert "script" not in tags(page)
    assert "default-src 'none'" in page


def test_hostile_names_are_text() -> None:
    page = as_html(hostile())

    assert "script" not in tags(page)
    assert "&lt;script&gt;" in page
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_a_guard_in_the_way_stands_at_the_top() -> None:
    page = as_html(not_comparable())

    assert page.index("H100 beside A100") < page.index("<table>")


def test_what_is_drawn_stays_in_the_picture() -> None:
    far = metric(
        blocks=((0.0, 5.0), (900.0, -3.0), (1800.0, float("nan"))),
        lower_ratio=-1.0,
        upper_ratio=1e9,
        delta_ratio=3.0,
    )

    drawn = plot(far)

    assert drawn is not None
    assert len(drawn.points) == 2
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y, _ in drawn.points)
    assert drawn.band is not None
    assert 0 <= drawn.band[0] <= drawn.band[0] + drawn.band[1] <= HEIGHT
    assert all(0 <= y <= HEIGHT for y, _, _ in drawn.lines)


def test_one_block_and_none_are_no_trouble() -> None:
    assert plot(metric(blocks=())) is None
    assert "circle" in tags(as_html(report(comparison(metrics=(metric(blocks=((0.0, 0.1),)),)))))


def test_a_guard_that_may_yet_hold_is_told_from_one_that_is_not_known() -> None:
    load = Guard(name="load", passed=None, detail="1.6 times the load (so far)", pending=True)

    page = as_html(report(comparison(guards=(load, Guard(name="routing", passed=None, detail="?")))))

    assert "load: does not hold yet: 1.6 times the load (so far)" in page
    assert "routing: not known" in page
