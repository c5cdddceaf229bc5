"""Which GPUs belong to a target: listed, from a file, from the listening process, or left open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from brimline.assignment import Assigned, assign_gpus, uuids_in, wants_pids
from brimline.config import GpuSource, Target
from brimline.readings import DeviceReading, Problem, Uuid

A, B, C, D = (Uuid(f"GPU-{letter * 8}-0000-0000-0000-000000000000") for letter in "abcd")
MIG = Uuid("MIG-eeeeeeee-0000-0000-0000-000000000000")


def devices(*uuids: Uuid, pids: dict[Uuid, set[int]] | None = None) -> list[DeviceReading]:
    return [
        DeviceReading(
            uuid=uuid,
            index=str(index),
            processes=None if pids is None else dict.fromkeys(pids.get(uuid, set())),
        )
        for index, uuid in enumerate(uuids)
    ]


def assign(
    gpus: list[str | int] | GpuSource | None,
    visible: list[DeviceReading],
    *,
    ranks: tuple[str, ...] = ("0",),
    world_size: int | None = None,
    targets: int = 1,
    **finders: Any,
) -> tuple[Assigned, tuple[Problem, ...]]:
    target = Target(name="a", url="http://127.0.0.1:8000", gpus=gpus)
    return assign_gpus(target, visible, ranks=ranks, world_size=world_size, targets=targets, **finders)


def unassigned(why: str) -> tuple[Assigned, tuple[Problem, ...]]:
    return (), (Problem("gpu_unassigned", why),)


# --- nothing said


def test_the_only_target_has_the_only_gpu() -> None:
    assert assign(None, devices(A), world_size=1) == (((A, "0"),), ())


def test_the_only_target_has_all_gpus_where_its_world_size_is_their_number() -> None:
    assert assign(None, devices(A, B), world_size=2) == (((A, "0"), (B, "0")), ())


@pytest.mark.parametrize(
    ("world_size", "why"),
    [
        (1, "the server uses 1 GPU(s) and 2 are visible; list the target's `gpus`"),
        (4, "the server uses 4 GPU(s) and 2 are visible; list the target's `gpus`"),
        (
            None,
            (
                "the server's launch settings, and with them how many GPUs it uses, are not known; "
                "list the target's `gpus`"
            ),
        ),
    ],
)
def test_nothing_is_guessed_where_numbers_differ(world_size: int | None, why: str) -> None:
    assert assign(None, devices(A, B), world_size=world_size) == unassigned(why)


def test_nothing_is_guessed_among_several_targets() -> None:
    assert assign(None, devices(A), world_size=1, targets=2) == unassigned(
        "there are 2 targets; list the target's `gpus`"
    )


@pytest.mark.parametrize("gpus", [None, [0], GpuSource(file="/none"), GpuSource(listener=True)])
def test_without_visible_gpus_there_is_nothing_to_ask(gpus: list[str | int] | GpuSource | None) -> None:
    assert assign(gpus, []) == ((), ())


# --- listed


@pytest.mark.parametrize("gpus", [[B, A], [1, 0], ["1", "0"], [B, 0], [1, B, 0, A, "0"]])
def test_listed_gpus_are_taken_once_in_their_order(gpus: list[str | int]) -> None:
    assert assign(gpus, devices(A, B, C), targets=5) == (((B, "0"), (A, "0")), ())


def test_a_listed_gpu_that_is_not_visible_is_named_and_the_others_are_kept() -> None:
    assert assign([A, "GPU-gone", 7], devices(A, B)) == (
        ((A, "0"),),
        (Problem("gpu_unknown", "not visible here: GPU-gone, 7; see `nvidia-smi -L`"),),
    )


@pytest.mark.parametrize("world_size", [1, 4])
def test_listed_gpus_that_are_not_as_many_as_the_server_uses_are_a_contradiction(world_size: int) -> None:
    """They are kept, as what the server holds on them is not the neighbours' to plan with."""
    assigned, [problem] = assign([0, 1], devices(A, B, C), world_size=world_size)

    assert assigned == ((A, "0"), (B, "0"))
    assert problem.reason == "gpu_count"
    assert f"gives the server 2 GPU(s), and by its settings it uses {world_size}" in problem.detail


@pytest.mark.parametrize("world_size", [2, None])
def test_listed_gpus_are_enough_where_the_settings_name_as_many_or_none(world_size: int | None) -> None:
    assert assign([0, 1], devices(A, B, C), world_size=world_size) == (((A, "0"), (B, "0")), ())


def test_a_gpu_that_is_not_visible_is_the_one_problem_of_a_list_that_is_long_enough() -> None:
    _, problems = assign([0, "GPU-gone"], devices(A, B), world_size=2)

    assert [problem.reason for problem in problems] == ["gpu_unknown"]


def test_gpus_are_shared_out_among_the_ranks_in_order() -> None:
    assigned, problems = assign([0, 1, 2, 3], devices(A, B, C, D), ranks=("0", "1"))

    assert assigned == ((A, "0"), (B, "0"), (C, "1"), (D, "1"))
    assert problems == ()


def test_ranks_are_ordered_as_numbers() -> None:
    ranks = ("0", "1", "10", "2")

    assert [rank for _, rank in assign([0, 1, 2, 3], devices(A, B, C, Uuid("GPU-d")), ranks=ranks)[0]] == [
        "0",
        "1",
        "2",
        "10",
    ]


def test_gpus_that_do_not_divide_among_the_ranks_have_none() -> None:
    assert assign([0, 1, 2], devices(A, B, C), ranks=("0", "1"))[0] == ((A, ""), (B, ""), (C, ""))
    assert assign([0, 1], devices(A, B), ranks=())[0] == ((A, "0"), (B, "0"))


# --- from a file


@pytest.mark.parametrize("path", ["/dev/zero", "bad\0name"])
def test_what_is_no_regular_file_is_not_read(path: str) -> None:
    gpus, problems = assign(GpuSource(file=path), devices(A))

    assert gpus == ()
    assert [problem.reason for problem in problems] == ["gpu_unassigned"]


def test_a_file_lists_gpus_as_nvidia_smi_does(tmp_path: Path) -> None:
    path = tmp_path / "gpus.txt"
    path.write_text(f"GPU 1: NVIDIA H100 80GB HBM3 (UUID: {B})\nGPU 0: NVIDIA H100 80GB HBM3 (UUID: {A})\n")

    assert assign(GpuSource(file=str(path)), devices(A, B, C), targets=3) == (((B, "0"), (A, "0")), ())


def test_a_file_without_a_uuid_assigns_nothing(tmp_path: Path) -> None:
    path = tmp_path / "gpus.txt"
    path.write_bytes(b"none yet \xff\n")

    assert assign(GpuSource(file=str(path)), devices(A)) == unassigned(
        f"{path} names no GPU UUID; write `nvidia-smi -L` into it"
    )


def test_a_file_that_cannot_be_read_assigns_nothing(tmp_path: Path) -> None:
    path = tmp_path / "none.txt"

    assert assign(GpuSource(file=str(path)), devices(A)) == unassigned(
        f"{path} cannot be read (No such file or directory)"
    )


def test_one_uuid_to_a_line_is_read() -> None:
    assert uuids_in(f"{A}\n{B}\n{A}\n") == [A, B]


def test_instances_stand_for_their_parent_but_not_for_other_gpus() -> None:
    listing = (
        f"GPU 0: NVIDIA A100-SXM4-80GB (UUID: {A})\n"
        "  MIG 3g.40gb     Device  0: (UUID: MIG-11111111-0000-0000-0000-000000000000)\n"
        "  MIG 3g.40gb     Device  1: (UUID: MIG-22222222-0000-0000-0000-000000000000)\n"
        f"GPU 1: NVIDIA A100-SXM4-80GB (UUID: {B})\n"
    )

    assert uuids_in(listing) == [
        "MIG-11111111-0000-0000-0000-000000000000",
        "MIG-22222222-0000-0000-0000-000000000000",
        B,
    ]


def test_a_plain_list_may_hold_gpus_and_instances() -> None:
    assert uuids_in(f"{A}\n{MIG}\n") == [A, MIG]


def test_the_older_names_of_instances_hold_their_parents() -> None:
    assert uuids_in(f"MIG-{A}/1/0") == [f"MIG-{A}/1/0"]


# --- from the listening process


def test_the_gpus_of_the_listeners_process_tree_are_taken() -> None:
    visible = devices(A, B, C, pids={A: {900}, B: {61, 900}, C: {62}})
    asked: list[int] = []

    def find_listener(port: int) -> int | None:
        asked.append(port)
        return 60

    assigned = assign(
        GpuSource(listener=True),
        visible,
        ranks=("0", "1"),
        targets=2,
        find_listener=find_listener,
        find_descendants=lambda pid: frozenset({pid, 61, 62}),
    )

    assert assigned == (((B, "0"), (C, "1")), ())
    assert asked == [8000]


def test_an_invisible_listener_assigns_nothing() -> None:
    assert assign(GpuSource(listener=True), devices(A, pids={}), find_listener=lambda _: None) == unassigned(
        "no process that listens on port 8000 is visible; share the process namespace or list `gpus`"
    )


@pytest.mark.parametrize("pids", [None, {}, {A: {900}}])
def test_a_listener_without_gpu_memory_assigns_nothing(pids: dict[Uuid, set[int]] | None) -> None:
    assert assign(
        GpuSource(listener=True),
        devices(A, pids=pids),
        find_listener=lambda _: 60,
        find_descendants=lambda pid: frozenset({pid}),
    ) == unassigned("the driver lists no GPU memory of process 60 or its children; list `gpus`")


def test_processes_are_listed_only_where_a_target_asks_for_its_listener() -> None:
    def target(gpus: list[str | int] | GpuSource | None) -> Target:
        return Target(name="a", url="http://127.0.0.1:8000", gpus=gpus)

    assert not wants_pids([])
    assert not wants_pids([target(None), target([0]), target(GpuSource(file="/x"))])
    assert wants_pids([target([0]), target(GpuSource(listener=True))])
