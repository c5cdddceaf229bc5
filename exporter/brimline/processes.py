"""What /proc tells of the process that listens on a port: its command line and its descendants.

Only processes that this one may look at are seen; in another PID namespace there are none. Every function
takes the root of /proc, so that recorded trees can stand in for it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import struct
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
_LISTEN = "0A"


def _address(text: str) -> str:
    """IP address of a /proc/net/tcp field, which holds it as 32-bit words in host order."""
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return str(ipaddress.ip_address(packed))


def listening_inodes(port: int, proc: Path = PROC) -> set[str]:
    """Socket inodes that listen on the port at a loopback or unspecified address."""
    inodes = set()
    for table in ("net/tcp", "net/tcp6"):
        try:
            lines = (proc / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if len(fields) < 10 or fields[3] != _LISTEN:
                continue
            host, _, number = fields[1].rpartition(":")
            if int(number, 16) != port:
                continue
            address = ipaddress.ip_address(_address(host))
            if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
                address = address.ipv4_mapped
            if address.is_loopback or address.is_unspecified:
                inodes.add(fields[9])
    return inodes


def _pids(proc: Path) -> Iterator[int]:
    try:
        entries = list(proc.iterdir())
    except OSError:
        return
    yield from sorted(int(entry.name) for entry in entries if entry.name.isdigit())


def listening_pid(port: int, proc: Path = PROC) -> int | None:
    """The process that listens on the port; the oldest where children share the socket. None where none is
    seen.
    """
    wanted = {f"socket:[{inode}]" for inode in listening_inodes(port, proc)}
    if not wanted:
        return None
    owners = []
    for pid in _pids(proc):
        if not wanted.isdisjoint(_open_files(pid, proc)):
            owners.append(pid)
    parents = {pid: parent_of(pid, proc) for pid in owners}
    return next((pid for pid in owners if parents[pid] not in owners), None)


def _open_files(pid: int, proc: Path) -> Iterator[str]:
    try:
        descriptors = list((proc / str(pid) / "fd").iterdir())
    except OSError:
        return
    for descriptor in descriptors:
        # A busy server closes descriptors all the time; one that is gone says nothing about the others.
        with contextlib.suppress(OSError):
            yield str(descriptor.readlink())


def parent_of(pid: int, proc: Path = PROC) -> int | None:
    """The parent of a process; None where it cannot be read."""
    try:
        stat = (proc / str(pid) / "stat").read_text(errors="replace")  # a process names itself as it likes
    except OSError:
        return None
    # The name in parentheses may hold blanks and parentheses of its own.
    fields = stat.rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 else None


def command_line(pid: int, proc: Path = PROC) -> list[str]:
    """Words of a process's command line; empty where it cannot be read."""
    try:
        raw = (proc / str(pid) / "cmdline").read_bytes()
    except OSError:
        return []
    return [word.decode("utf-8", "replace") for word in raw.rstrip(b"\0").split(b"\0")] if raw else []


def descendants(pid: int, proc: Path = PROC) -> frozenset[int]:
    """The process and all that it started, as they are now."""
    children: dict[int, list[int]] = {}
    for other in _pids(proc):
        parent = parent_of(other, proc)
        if parent is not None:
            children.setdefault(parent, []).append(other)
    found = {pid}
    open_ends = [pid]
    while open_ends:
        for child in children.get(open_ends.pop(), []):
            if child not in found:
                found.add(child)
                open_ends.append(child)
    return frozenset(found)


def read_memory(proc: Path = PROC) -> tuple[int | None, int | None]:
    """Total and available bytes of this machine's main memory."""
    values: dict[str, int] = {}
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                values[name] = int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return None, None
    return values.get("MemTotal"), values.get("MemAvailable")
