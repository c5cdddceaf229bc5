"""A comparison as people and programs read it: a table, JSON, Markdown, JUnit, a page of HTML.

Names come from configurations and labels that others write: each form escapes them in its own way.
"""

from brimline.compared.document import SCHEMA_VERSION, as_json
from brimline.compared.html import as_html
from brimline.compared.junit import as_junit
from brimline.compared.markdown import append_markdown, as_markdown
from brimline.compared.table import print_report

__all__ = [
    "SCHEMA_VERSION",
    "append_markdown",
    "as_html",
    "as_json",
    "as_junit",
    "as_markdown",
    "print_report",
]
