"""What /proc tells of the process that listens on a port: its command line and its descendants.

Only processes that this one may look at are seen; in another PID namespace there are none. Every function
takes the root of /proc, so that recorded trees can stand in for it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_LISTEN = "0A"


def _address(text: str) -> str:
    """IP address of a /proc/net/tcp field, which holds it as 32-bit words in host order."""
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return str(ipaddress.ip_address(packed))


def listening_sockets(ports: Collection[int], proc: Path) -> dict[str, int]:
    """Inodes of the sockets that listen on one of the ports at a loopback or unspecified address, with it."""
    found: dict[str, int] = {}
    for table in ("net/tcp", "net/tcp6"):
        # Line by line: a host with many short connections has tens of thousands, of which a few listen.
        with contextlib.suppress(OSError), open(proc / table) as lines:
            for line in lines:
                if _LISTEN not in line:
                    continue
                fields = line.split()
                if len(fields) < 10 or fields[3] != _LISTEN:
                    continue
                host, _, number = fields[1].rpartition(":")
                port = int(number, 16)
                if port not in ports:
                    continue
                address = ipaddress.ip_address(_address(host))
                if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
                    address = address.ipv4_mapped
                if address.is_loopback or address.is_unspecified:
                    found[fields[9]] = port
    return found


def _pids(proc: Path) -> list[int]:
    try:
        with os.scandir(proc) as entries:
            return sorted(int(entry.name) for entry in entries if entry.name.isdigit())
    except OSError:
        return []


def listening_pids(ports: Collection[int], proc: Path = PROC) -> dict[int, int]:
    """The process that listens on each port, as far as one is seen; the oldest where children share the
    socket.

    One look through the open files of all processes, for however many ports.
    """
    wanted = {f"socket:[{inode}]": port for inode, port in listening_sockets(ports, proc).items()}
    if not wanted:
        return {}
    owners: dict[int, list[int]] = {}
    for pid in _pids(proc):
        for port in {wanted[file] for file in _open_files(pid, proc) if file in wanted}:
            owners.setdefault(port, []).append(pid)
    found = {}
    for port, pids in owners.items():
        oldest = next((pid for pid in pids if parent_of(pid, proc) not in pids), None)
        if oldest is not None:
            found[port] = oldest
    return found


def listening_pid(port: int, proc: Path = PROC) -> int | None:
    """The process that listens on the port; the oldest where children share the socket. None where none is
    seen.
    """
    return listening_pids({port}, proc).get(port)


def _open_files(pid: int, proc: Path) -> Iterator[str]:
    # One by one: a server may have thousands.
    with contextlib.suppress(OSError), os.scandir(f"{proc}/{pid}/fd") as descriptors:
        for descriptor in descriptors:
            # A busy server closes descriptors all the time; one that is gone says nothing about the others.
            with contextlib.suppress(OSError):
                yield os.readlink(descriptor.path)  # noqa: PTH115 - no Path for each of thousands


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


def _children(proc: Path) -> dict[int, list[int]]:
    """What each process started, as far as it runs still."""
    children: dict[int, list[int]] = {}
    for pid in _pids(proc):
        parent = parent_of(pid, proc)
        if parent is not None:
            children.setdefault(parent, []).append(pid)
    return children


def _with_descendants(pid: int, children: Mapping[int, list[int]]) -> frozenset[int]:
    found = {pid}
    open_ends = [pid]
    while open_ends:
        for child in children.get(open_ends.pop(), []):
            if child not in found:
                found.add(child)
                open_ends.append(child)
    return frozenset(found)


def descendants(pid: int, proc: Path = PROC) -> frozenset[int]:
    """The process and all that it started, as they are now."""
    return _with_descendants(pid, _children(proc))


@dataclass(frozen=True, slots=True)
class ProcessFamily:
    """The process that listens, and all that it started with itself."""

    listener: int
    pids: frozenset[int]


def families_on(
    ports: Collection[int], known: Mapping[int, int], proc: Path = PROC
) -> dict[int, ProcessFamily]:
    """The processes behind each port, as far as they are seen; one look for all ports.

    known: who listened before. Who listens is a look through the open files of all processes; whether it is
    still alive is one file.
    """
    listeners = {port: known[port] for port in ports if port in known and command_line(known[port], proc)}
    listeners |= listening_pids([port for port in ports if port not in listeners], proc)
    children = _children(proc) if listeners else {}
    families = {pid: ProcessFamily(pid, _with_descendants(pid, children)) for pid in set(listeners.values())}
    return {port: families[pid] for port, pid in listeners.items()}


# --- the memory of processes ---

CGROUPS = Path("/sys/fs/cgroup")
# What version 1 writes where there is no limit: the largest multiple of a page.
_NO_LIMIT = 1 << 62
_READ_BYTES = 16 << 10


def proc_file(path: str) -> bytes:
    """A file of the kernel's, as it is now. Raises OSError.

    By system calls, as several are read in each scrape: a file object takes twice as long, Path.read_text
    four times. Only for files that the kernel writes in one piece, as these are (/proc/net/tcp is not):
    what is shorter than asked for is all.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = os.read(descriptor, _READ_BYTES)
        if len(content) == _READ_BYTES:
            while part := os.read(descriptor, _READ_BYTES):
                content += part
        return content
    finally:
        os.close(descriptor)


def _number(path: str) -> int | None:
    """The whole number in a file; None where there is none."""
    try:
        return int(proc_file(path))
    except (OSError, ValueError):
        return None


def _field(content: bytes, name: bytes) -> int | None:
    """The number on the line that begins with the name; None where there is none."""
    _, found, behind = (b"\n" + content).partition(b"\n" + name)
    try:
        return int(behind.split(None, 1)[0]) if found else None
    except (IndexError, ValueError):
        return None


def cgroup_of(pid: int | str, proc: Path = PROC) -> tuple[str, str] | None:
    """The version and path of the cgroup that counts a process's memory: `v2` or `v1`; None without one."""
    try:
        lines = (proc / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return None
    split = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    for _, controllers, path in split:
        if "memory" in controllers.split(","):
            return "v1", path
    return next(
        (("v2", path) for number, controllers, path in split if (number, controllers) == ("0", "")), None
    )


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A cgroup's folders, its own first, then those that it lies in. version: `v2` or `v1`."""

    version: str
    levels: tuple[str, ...]


def cgroup_of_its_own(pid: int, proc: Path = PROC, cgroups: Path = CGROUPS) -> Cgroup | None:
    """The cgroup of a process; None where it has none of its own, shares ours, or it is not visible."""
    found = cgroup_of(pid, proc)
    if found is None or found == cgroup_of("self", proc):
        return None
    version, path = found
    parts = [part for part in path.split("/") if part]
    if not parts or ".." in parts:
        return None
    root = cgroups if version == "v2" else cgroups / "memory"
    return Cgroup(version, tuple(str(root.joinpath(*parts[:depth])) for depth in range(len(parts), 0, -1)))


def cgroup_memory(cgroup: Cgroup) -> tuple[int, int | None] | None:
    """Used bytes and limit of a cgroup, without file caches that can be dropped; None where it is gone.

    Of all levels that have a limit the one with least left, as a pod's may bind before its container's.
    """
    own: tuple[int, int | None] | None = None
    for level in cgroup.levels:
        if cgroup.version == "v2":
            used, limit = _number(f"{level}/memory.current"), _number(f"{level}/memory.max")
            cached = b"inactive_file "
        else:
            used = _number(f"{level}/memory.usage_in_bytes")
            limit = _number(f"{level}/memory.limit_in_bytes")
            limit = None if limit is None or limit >= _NO_LIMIT else limit
            cached = b"total_inactive_file "
        if used is None:
            continue
        with contextlib.suppress(OSError):  # without a memory.stat all of it counts
            used = max(0, used - (_field(proc_file(f"{level}/memory.stat"), cached) or 0))
        if own is None or (limit is not None and (own[1] is None or limit - used < own[1] - own[0])):
            own = used, limit
    return own


def resident_bytes(pids: frozenset[int], proc: Path = PROC) -> int | None:
    """Main memory that processes hold for themselves; what they share counts once. None where none is seen.

    Mapped files are left out: the kernel may drop them.
    """
    own, shared = 0, 0
    seen = False
    for pid in pids:
        try:
            status = proc_file(f"{proc}/{pid}/status")
        except OSError:
            continue
        anonymous, shmem = _field(status, b"RssAnon:"), _field(status, b"RssShmem:")
        seen = seen or anonymous is not None or shmem is not None
        own += (anonymous or 0) * 1024
        shared = max(shared, (shmem or 0) * 1024)
    return own + shared if seen else None


def read_memory(proc: Path = PROC) -> tuple[int | None, int | None]:
    """Total and available bytes of this machine's main memory."""
    try:
        content = proc_file(f"{proc}/meminfo")
    except OSError:
        return None, None
    total, available = _field(content, b"MemTotal:"), _field(content, b"MemAvailable:")
    return None if total is None else total * 1024, None if available is None else available * 1024
