"""Start a program with the calls that a systemd unit leaves it: `system_call_filter.py UNIT PROGRAM …`.

What systemd does of it, with the same library (libseccomp) and systemd's own sets of calls.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | 1  # EPERM
_NOT_HERE = -1


def calls(words: list[str]) -> set[str]:
    """The calls of a line of SystemCallFilter, with what its sets hold."""
    found = set()
    for word in words:
        if word.startswith("@"):
            done = subprocess.run(
                ["systemd-analyze", "syscall-filter", word], check=True, capture_output=True, text=True
            )
            lines = (line.strip() for line in done.stdout.splitlines()[1:])
            found |= calls([line for line in lines if line and not line.startswith("#")])
        else:
            found.add(word)
    return found


def allowed(unit: Path) -> set[str]:
    """What the unit leaves: the first line allows, those with ~ take away."""
    left: set[str] = set()
    for line in unit.read_text().splitlines():
        if line.startswith("SystemCallFilter=~"):
            left -= calls(line.partition("~")[2].split())
        elif line.startswith("SystemCallFilter="):
            left |= calls(line.partition("=")[2].split())
    return left | calls(["@default"])


def install(names: set[str]) -> None:
    """Refuse every other call from now on, in this process and all that it starts."""
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_REFUSE)))
    for name in sorted(names):
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number != _NOT_HERE:
            library.seccomp_rule_add_array(context, ctypes.c_uint32(_ALLOW), number, 0, None)
    if library.seccomp_load(context) != 0:
        raise OSError("the filter cannot be put in force")


if __name__ == "__main__":
    install(allowed(Path(sys.argv[1])))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 (no shell is wanted)
