"""How an optional part of Brimline is installed."""

from __future__ import annotations

import shlex
import sys


def install_command(extra: str) -> str:
    """The command that installs an extra into the Python that runs this."""
    return f"{shlex.quote(sys.executable or 'python3')} -m pip install '.[{extra}]'"
