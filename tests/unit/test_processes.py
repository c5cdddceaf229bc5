"""What /proc tells, from trees that the tests write."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from brimline.processes import (
    cgroup_memory,
    cgroup_of_its_own,
    command_line,
    descendants,
    listening_pid,
    listening_sockets,
    parent_of,
    proc_file,
    read_memory,
    resident_bytes,
)
from proc_tree import ESTABLISHED, socket_line, write_process, write_sockets


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "0.0.0.0"])
def test_a_socket_at_a_loopback_or_unspecified_address_is_found(tmp_path: Path, host: str) -> None:
    write_sockets(tmp_path, socket_line(host, 8000, 111))

    assert set(listening_sockets({8000}, tmp_path)) == {"111"}


@pytest.mark.parametrize("host", ["::1", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0"])
def test_ipv6_sockets_are_found_too(tmp_path: Path, host: str) -> None:
    write_sockets(tmp_path)
    write_sockets(tmp_path, socket_line(host, 8000, 222), table="tcp6")

    assert set(listening_sockets({8000}, tmp_path)) == {"222"}


@pytest.mark.parametrize(
    "line",
    [
        socket_line("127.0.0.1", 8001, 1),
        socket_line("10.0.0.5", 8000, 1),
        socket_line("127.0.0.1", 8000, 1, ESTABLISHED),
        socket_line("::ffff:10.0.0.5", 8000, 1),
        socket_line("fe80::1", 8000, 1),
        "garbage\n",
    ],
    ids=["port", "address", "state", "mapped", "link-local", "garbage"],
)
def test_another_port_address_or_state_is_not_the_listener(tmp_path: Path, line: str) -> None:
    write_sockets(tmp_path, line)

    assert set(listening_sockets({8000}, tmp_path)) == set()


def test_the_connections_of_a_busy_host_are_not_held_in_memory(tmp_path: Path) -> None:
    others = (socket_line("127.0.0.1", 8000, number, ESTABLISHED) for number in range(20_000))
    write_sockets(tmp_path, socket_line("127.0.0.1", 8000, 111), *others)

    tracemalloc.start()
    found = set(listening_sockets({8000}, tmp_path))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert found == {"111"}
    assert (tmp_path / "net/tcp").stat().st_size > 2_500_000
    assert peak_bytes < 200_000


def test_without_socket_tables_nothing_listens(tmp_path: Path) -> None:
    assert set(listening_sockets({8000}, tmp_path)) == set()
    assert listening_pid(8000, tmp_path) is None
    assert listening_pid(8000, tmp_path / "none") is None


def test_the_process_that_holds_the_socket_is_the_listener(tmp_path: Path) -> None:
    write_sockets(tmp_path, socket_line("127.0.0.1", 8000, 111))
    write_process(tmp_path, 50, inodes=(999,))
    write_process(tmp_path, 60, inodes=(998, 111))
    (tmp_path / "self").mkdir()

    assert listening_pid(8000, tmp_path) == 60


def test_of_a_family_that_shares_the_socket_the_parent_is_the_listener(tmp_path: Path) -> None:
    # the child has the lower number: numbers start again at the machine's limit
    write_sockets(tmp_path, socket_line("0.0.0.0", 8000, 111))
    write_process(tmp_path, 40, parent=4000, inodes=(111,))
    write_process(tmp_path, 4000, parent=1, inodes=(111,))
    write_process(tmp_path, 4001, parent=4000, inodes=(111,))

    assert listening_pid(8000, tmp_path) == 4000


def test_a_socket_of_an_invisible_process_has_no_listener(tmp_path: Path) -> None:
    write_sockets(tmp_path, socket_line("127.0.0.1", 8000, 111))
    write_process(tmp_path, 50, inodes=(999,))

    assert listening_pid(8000, tmp_path) is None


def test_a_descriptor_that_is_gone_hides_no_other(tmp_path: Path) -> None:
    write_sockets(tmp_path, socket_line("127.0.0.1", 8000, 111))
    for pid in (50, 60):
        write_process(tmp_path, pid)
        for number in (*range(3, 20), *range(21, 40)):
            (tmp_path / str(pid) / "fd" / str(number)).write_text("")  # reading it as a link fails
    (tmp_path / "60" / "fd" / "20").symlink_to("socket:[111]")

    assert listening_pid(8000, tmp_path) == 60


def test_a_process_without_readable_descriptors_hides_no_other(tmp_path: Path) -> None:
    write_sockets(tmp_path, socket_line("127.0.0.1", 8000, 111))
    (tmp_path / "50").mkdir()
    write_process(tmp_path, 60, inodes=(111,))

    assert listening_pid(8000, tmp_path) == 60


# --- families


@pytest.mark.parametrize(
    "name",
    [b"vllm", b"a) b (c", b"tmux: server", b"\xff\xfe name", b""],
    ids=["plain", "parens", "blank", "raw", "none"],
)
def test_a_parent_is_found_behind_any_name(tmp_path: Path, name: bytes) -> None:
    write_process(tmp_path, 7, parent=5, name=name)

    assert parent_of(7, tmp_path) == 5


def test_a_process_that_is_gone_has_no_parent(tmp_path: Path) -> None:
    (tmp_path / "8").mkdir()
    (tmp_path / "8" / "stat").write_text("")

    assert parent_of(7, tmp_path) is None
    assert parent_of(8, tmp_path) is None


def test_descendants_are_the_process_its_children_and_theirs(tmp_path: Path) -> None:
    for pid, parent in {10: 1, 11: 10, 12: 10, 13: 12, 20: 1, 21: 20}.items():
        write_process(tmp_path, pid, parent=parent)

    assert descendants(10, tmp_path) == {10, 11, 12, 13}
    assert descendants(13, tmp_path) == {13}


def test_a_circle_of_parents_ends(tmp_path: Path) -> None:
    write_process(tmp_path, 10, parent=11)
    write_process(tmp_path, 11, parent=10)

    assert descendants(10, tmp_path) == {10, 11}


def test_a_process_that_is_not_there_is_its_own_family(tmp_path: Path) -> None:
    assert descendants(10, tmp_path) == {10}


# --- command lines


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (
            b"vllm\0serve\0my model\0--max-model-len\x00128k\0",
            ["vllm", "serve", "my model", "--max-model-len", "128k"],
        ),
        (b"vllm\0serve\0\0--port\0", ["vllm", "serve", "", "--port"]),
        (b"renamed process", ["renamed process"]),
        (b"caf\xe9\0", ["caf\ufffd"]),
        (b"", []),
    ],
)
def test_a_command_line_is_its_words(tmp_path: Path, raw: bytes, words: list[str]) -> None:
    write_process(tmp_path, 7, command=raw)

    assert command_line(7, tmp_path) == words


def test_a_process_that_is_gone_has_no_command_line(tmp_path: Path) -> None:
    assert command_line(7, tmp_path) == []


# --- memory


def test_memory_is_bytes_though_the_file_says_kb(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(
        "MemTotal:       131886412 kB\nMemFree:         1024 kB\nMemAvailable:   98304000 kB\n"
    )

    assert read_memory(tmp_path) == (131_886_412 * 1024, 98_304_000 * 1024)


@pytest.mark.parametrize(
    ("content", "memory"),
    [
        ("MemTotal: 8 kB\n", (8192, None)),
        ("", (None, None)),
        ("MemTotal: x kB\n", (None, None)),
        ("MemTotal:\n", (None, None)),
    ],
)
def test_memory_that_is_not_stated_is_none(
    tmp_path: Path, content: str, memory: tuple[int | None, int | None]
) -> None:
    (tmp_path / "meminfo").write_text(content)

    assert read_memory(tmp_path) == memory


@pytest.mark.parametrize("size", [0, 1, (16 << 10) - 1, 16 << 10, (16 << 10) + 1, 100_000])
def test_a_file_is_read_whole(tmp_path: Path, size: int) -> None:
    content = bytes(index % 251 for index in range(size))
    (tmp_path / "file").write_bytes(content)

    assert proc_file(str(tmp_path / "file")) == content


def test_without_meminfo_memory_is_not_stated(tmp_path: Path) -> None:
    assert read_memory(tmp_path) == (None, None)


# --- the memory of processes ---


def group(root: Path, path: str, **values: object) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def in_group(proc: Path, pid: int | str, line: str) -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup").write_text(line + "\n")


def memory_of(pid: int, proc: Path, cgroups: Path) -> tuple[int, int | None] | None:
    cgroup = cgroup_of_its_own(pid, proc, cgroups)
    return None if cgroup is None else cgroup_memory(cgroup)


def test_a_cgroups_memory_is_told_without_caches_that_can_be_dropped(tmp_path: Path) -> None:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    in_group(proc, 7, "0::/system.slice/vllm.service")
    in_group(proc, "self", "0::/system.slice/brimline.service")
    stat = "anon 900\ninactive_file 300\nactive_file 50"
    group(cgroups, "system.slice/vllm.service", memory__current=1300, memory__max=2000, memory__stat=stat)

    assert memory_of(7, proc, cgroups) == (1000, 2000)


def test_the_level_with_least_left_binds(tmp_path: Path) -> None:
    """A pod's limit may be reached before its container's."""
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    in_group(proc, 7, "0::/pod/container")
    in_group(proc, "self", "0::/other")
    group(cgroups, "pod/container", memory__current=1000, memory__max=5000)
    group(cgroups, "pod", memory__current=2900, memory__max=3000)

    assert memory_of(7, proc, cgroups) == (2900, 3000)


def test_without_a_limit_only_the_use_is_told(tmp_path: Path) -> None:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    in_group(proc, 7, "0::/vllm")
    in_group(proc, "self", "0::/other")
    group(cgroups, "vllm", memory__current=1000, memory__max="max")

    assert memory_of(7, proc, cgroups) == (1000, None)


def test_version_1_is_read_too(tmp_path: Path) -> None:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    in_group(proc, 7, "5:cpu,cpuacct:/a\n4:memory:/docker/abc\n0::/")
    in_group(proc, "self", "4:memory:/docker/us")
    group(
        cgroups,
        "memory/docker/abc",
        memory__usage_in_bytes=1300,
        memory__limit_in_bytes=2000,
        memory__stat="total_inactive_file 300",
    )
    group(
        cgroups,
        "memory/docker",
        memory__usage_in_bytes=9000,
        memory__limit_in_bytes=9223372036854771712,
    )

    assert memory_of(7, proc, cgroups) == (1000, 2000)


@pytest.mark.parametrize("line", ["0::/ours", "0::/", "0::/../elsewhere", ""])
def test_our_own_cgroup_the_root_and_what_is_not_visible_are_no_cgroup_of_a_server(
    line: str, tmp_path: Path
) -> None:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    in_group(proc, 7, line)
    in_group(proc, "self", "0::/ours")
    group(cgroups, "ours", memory__current=1000, memory__max=2000)

    assert memory_of(7, proc, cgroups) is None


def test_processes_without_a_cgroup_are_told_by_what_they_hold_shared_memory_once(tmp_path: Path) -> None:
    for pid, own, shared in ((7, 100, 50), (8, 30, 50)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "status").write_text(
            f"Name:\tvllm\nVmRSS:\t999 kB\nRssAnon:\t{own} kB\nRssFile:\t400 kB\nRssShmem:\t{shared} kB\n"
        )

    assert resident_bytes(frozenset({7, 8, 9}), tmp_path) == (130 + 50) * 1024
    assert resident_bytes(frozenset({9}), tmp_path) is None
