"""Options for all tests."""

from __future__ import annotations

import gc

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update",
        action="store_true",
        help="write the golden files anew; read the difference before committing it",
    )


def pytest_collection_finish() -> None:
    """Leave the thousands of collected tests, which stay to the end, out of each garbage collection."""
    gc.collect()
    gc.freeze()
