"""A comparison as Markdown."""

from __future__ import annotations

from pathlib import Path

from brimline.compared import append_markdown, as_markdown
from brimline.compared.markdown import MAX_BYTES, escaped
from reports import HOSTILE, START, hostile, not_comparable, report


def test_every_row_of_a_table_has_as_many_cells_as_its_head() -> None:
    for shown in (report(), hostile()):
        heads: int | None = None
        for line in as_markdown(shown).splitlines():
            if not line.startswith("|"):
                heads = None
                continue
            cells = line.replace("\\|", "").count("|")
            heads = heads or cells
            assert cells == heads, line


def test_the_verdict_is_the_heading() -> None:
    assert as_markdown(report()).startswith("### kv\\-dtype: PASS\\: no worse\n")
    assert "hardware\\: H100 beside A100 \\(cure\\: run both" in as_markdown(not_comparable())


def test_names_cannot_be_markup() -> None:
    text = escaped(HOSTILE)

    assert "<" not in text
    assert "\\[x\\]\\(" in text
    assert "\\`c\\`" in text
    assert "\n" not in text
    assert "&lt;script\\>" in text


def test_it_is_appended_to_what_others_wrote(tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("mine\n")

    append_markdown(report(), summary)
    append_markdown(report(), summary)

    assert summary.read_text().startswith("mine\n### kv")
    assert summary.read_text().count("### kv") == 2


def test_it_never_makes_the_summary_too_large(tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("x" * (MAX_BYTES - 1000))

    append_markdown(report(), summary)
    append_markdown(report(), summary)

    assert summary.stat().st_size <= MAX_BYTES < 1 << 20
    assert summary.read_text().endswith("(cut: `--json` has all)\n")


def test_one_that_is_too_long_by_itself_is_cut_at_a_line() -> None:
    long = report(notes=tuple(f"é{START}{place}" * 400 for place in range(400)))

    text = as_markdown(long)

    assert len(text.encode()) <= MAX_BYTES
    assert text.endswith("(cut: `--json` has all)\n")
