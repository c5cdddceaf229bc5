"""Options for all tests."""

from __future__ import annotations

import gc

import pytest
from hypothesis import settings

# The same examples in each run, so that a test fails where something has changed, and not by chance;
# `pytest --hypothesis-profile default` draws others.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update",
        action="store_true",
        help="write the golden files anew; read the difference before committing it",
    )
    parser.addoption(
        "--fuzz-seconds",
        type=float,
        default=3.0,
        help="how long random pages are read, all tests of them together; 3, and 60 in `make fuzz`",
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests recorded, such as how many pages were fuzzed."""
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: {name}: {value}")


def pytest_collection_finish() -> None:
    """Leave the thousands of collected tests, which stay to the end, out of each garbage collection."""
    gc.collect()
    gc.freeze()
