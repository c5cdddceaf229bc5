"""A /proc that tests write: sockets and processes."""

from __future__ import annotations

import ipaddress
import struct
from pathlib import Path

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LISTEN, ESTABLISHED = "0A", "01"


def address(text: str, port: int) -> str:
    """An address as /proc/net/tcp prints it: 32-bit words in this machine's byte order."""
    packed = ipaddress.ip_address(text).packed
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"


def socket_line(text: str, port: int, inode: int, state: str = LISTEN) -> str:
    return (
        f"   0: {address(text, port)} {address(text, 0)} {state} 00000000:00000000 00:00000000 00000000  1000"
        f"        0 {inode} 1 0000000000000000 100 0 0 10 0\n"
    )


def write_sockets(proc: Path, *lines: str, table: str = "tcp") -> None:
    (proc / "net").mkdir(exist_ok=True)
    (proc / "net" / table).write_text(HEADER + "".join(lines))


def write_process(
    proc: Path,
    pid: int,
    *,
    parent: int = 1,
    name: bytes = b"python3",
    command: bytes = b"",
    inodes: tuple[int, ...] = (),
) -> None:
    folder = proc / str(pid)
    (folder / "fd").mkdir(parents=True)
    (folder / "stat").write_bytes(b"%d (%s) S %d %d 1 0 -1 4194560" % (pid, name, parent, pid))
    (folder / "cmdline").write_bytes(command)
    for number, inode in enumerate(inodes, start=3):
        (folder / "fd" / str(number)).symlink_to(f"socket:[{inode}]")


# --- who listens
