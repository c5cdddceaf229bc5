"""Predicted beside observed: sums, headroom, and what is never passed off as an observation."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from brimline.estimate import Estimate, exact
from brimline.readings import (
    DeviceReading,
    EngineReading,
    Footprint,
    GpuReading,
    KvCacheFootprint,
    MemoryAccount,
    Problem,
    ProcessReading,
    RankFootprint,
    RankReading,
    Snapshot,
    TargetSnapshot,
    Uuid,
)
from brimline.reconcile import Tenant, account, beyond_card, comparisons, stages_of_gpus

GIB = 1 << 30
A, B, C, D = (Uuid(f"GPU-{letter}") for letter in "abcd")


def rank_footprint(stage: int = 0, *, high: int = 70, **components: int) -> RankFootprint:
    """Components in GiB; the total's high bound is given."""
    parts = {name: exact(size * GIB, "test") for name, size in components.items()}
    whole = sum(components.values()) * GIB
    return RankFootprint(
        pipeline_stage=stage, components=parts, total=Estimate(0, whole, max(whole, high * GIB), "sum")
    )


def footprint(*ranks: RankFootprint, tensor_parallel: int = 1, **changes: object) -> Footprint:
    plain = Footprint(
        engine="vllm",
        engine_version="0.32.0",
        parameters=8,
        ranks=ranks or (rank_footprint(weights=16, kv_cache=40, activations=4, runtime=2),),
        kv_cache=KvCacheFootprint(
            bytes_per_token=131072.0,
            max_model_len_tokens=4096,
            full_request_bytes=GIB,
            stage_block_bytes=(2 << 20,) * max(1, len(ranks)),
        ),
        tensor_parallel=tensor_parallel,
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def target(
    name: str = "chat",
    gpus: tuple[tuple[Uuid, str], ...] = ((A, "0"),),
    predicted: Footprint | None = None,
    *ranks: RankReading,
) -> TargetSnapshot:
    rows = ranks or (
        RankReading(model="m", kv_cache_capacity_bytes=38.0 * GIB, kv_cache_used_bytes=10.0 * GIB),
    )
    return TargetSnapshot(
        name=name,
        url="http://h",
        up=True,
        reading=EngineReading(engine="vllm", ranks=rows),
        gpus=gpus,
        footprint=predicted or footprint(),
    )


def device(uuid: Uuid = A, *, used: int = 62, total: int = 80, peak: int | None = None) -> DeviceReading:
    return DeviceReading(
        uuid=uuid,
        index="0",
        total_bytes=total * GIB,
        used_bytes=used * GIB,
        free_bytes=(total - used) * GIB,
        used_peak_bytes=None if peak is None else peak * GIB,
    )


def tenant(of: TargetSnapshot) -> Tenant:
    return Tenant(name=of.name, gpus=of.gpus, footprint=of.footprint)


def settled(
    targets: list[TargetSnapshot], devices: list[DeviceReading], *, reserve: int = 0
) -> MemoryAccount:
    return account(targets, [tenant(one) for one in targets], devices, reserve_other_bytes=reserve * GIB)


def in_gib(memory: MemoryAccount, gpu: Uuid = A) -> dict[tuple[str, str, str], float]:
    return {
        (part.target, part.component, part.basis): part.size_bytes / GIB
        for part in memory.parts
        if part.gpu == gpu
    }


# --- what a GPU's memory is used for ---


def test_all_parts_of_a_gpu_add_up_to_what_is_used_and_say_their_basis() -> None:
    memory = settled([target()], [device(used=62)])

    assert in_gib(memory) == {
        ("chat", "kv_cache_used", "measured"): 10,
        ("chat", "kv_cache_free", "measured"): 28,
        ("chat", "weights", "predicted"): 16,
        ("chat", "activations", "predicted"): 4,
        ("chat", "runtime", "predicted"): 2,
        ("", "unaccounted", "predicted"): 2,
    }
    assert sum(part.size_bytes for part in memory.parts) == 62 * GIB


def test_less_used_than_said_is_a_negative_remainder() -> None:
    memory = settled([target()], [device(used=58)])

    assert in_gib(memory)["", "unaccounted", "predicted"] == -2


def test_two_servers_on_one_gpu_are_both_accounted_for() -> None:
    small = footprint(rank_footprint(weights=4, kv_cache=5, high=10))
    other = target(
        "embed",
        ((A, "0"),),
        small,
        RankReading(model="e", kv_cache_capacity_bytes=5.0 * GIB, kv_cache_used_bytes=0.0),
    )

    memory = settled([target(), other], [device(used=72)])

    assert sum(part.size_bytes for part in memory.parts) == 72 * GIB
    assert in_gib(memory)["", "unaccounted", "predicted"] == 72 - 60 - 9


def test_a_remainder_is_measured_only_beside_parts_that_are_all_measured() -> None:
    bare = msgspec.structs.replace(target("bare", ((B, "0"),)), footprint=None)

    memory = settled([target(), bare], [device(A), device(B)])

    remainders = {part.gpu: part.basis for part in memory.parts if part.component == "unaccounted"}
    assert remainders == {A: "predicted", B: "measured"}


def test_what_the_engine_measured_stands_in_place_of_what_was_predicted() -> None:
    reading = RankReading(model="m", measured_memory_bytes={"weights": 15.0 * GIB})

    parts = in_gib(settled([target("chat", ((A, "0"),), None, reading)], [device()]))

    assert parts["chat", "weights", "measured"] == 15
    assert ("chat", "weights", "predicted") not in parts
    assert parts["chat", "kv_cache", "predicted"] == 40


def test_a_server_without_prediction_shows_what_it_measures_and_nothing_else() -> None:
    bare = msgspec.structs.replace(target(), footprint=None)

    assert in_gib(settled([bare], [device(used=62)])) == {
        ("chat", "kv_cache_used", "measured"): 10,
        ("chat", "kv_cache_free", "measured"): 28,
        ("", "unaccounted", "measured"): 24,
    }


def test_a_gpu_that_cannot_be_read_or_belongs_to_nobody_has_no_parts() -> None:
    lost = msgspec.structs.replace(device(), used_bytes=None, free_bytes=None, problem="gpu_lost")

    assert settled([target()], [lost]).parts == ()
    assert settled([target("chat", ())], [device()]).parts == ()


def test_a_sleeping_server_has_given_its_memory_up() -> None:
    assert settled([asleep()], [device(used=3)]).parts == ()


def asleep() -> TargetSnapshot:
    awake = target()
    assert awake.reading is not None
    return msgspec.structs.replace(awake, reading=msgspec.structs.replace(awake.reading, sleeping=True))


def test_gpus_that_contradict_the_settings_are_given_no_parts_of_the_server() -> None:
    state = msgspec.structs.replace(target(), footprint=None, problems=(Problem("gpu_count", "2 and not 1"),))

    memory = settled([state], [device()])

    assert (memory.parts, memory.headroom_bytes) == ((), {})


def test_strangers_beside_a_server_without_parts_add_up_to_what_is_used() -> None:
    """Neither a sleeping server nor one whose model is not known tells parts; the stranger's are told."""
    processes = {1: 40 * GIB, 2: 5 * GIB}
    busy = msgspec.structs.replace(device(used=60), processes=processes)
    for state in (
        msgspec.structs.replace(asleep(), process=ProcessReading(pids=frozenset({1}))),
        msgspec.structs.replace(
            target("chat", ((A, "0"),), None, RankReading(model="m")),
            footprint=None,
            process=ProcessReading(pids=frozenset({1})),
        ),
    ):
        memory = settled([state], [busy])

        assert in_gib(memory) == {
            ("", "other_processes", "measured"): 5,
            ("", "unaccounted", "measured"): 55,
        }


# --- a defect in one target's numbers ---


def test_a_defect_costs_its_target_and_no_other() -> None:
    def broken(_batch: int, _tokens: int) -> float:
        raise IndexError("tuple index out of range")

    busy = RankReading(
        model="m", kv_cache_capacity_bytes=38.0 * GIB, requests_running=1, kv_cache_used_tokens=100
    )
    bad = target("bad", ((A, "0"),), footprint(decode_ceiling=broken), busy)
    good = target("good", ((B, "0"),))

    memory = settled([bad, good], [device(A), device(B)])

    assert list(memory.defects) == ["bad"]
    assert memory.defects["bad"].startswith("IndexError: tuple index out of range (test_reconcile.py:")
    assert in_gib(memory, A) == {}
    assert in_gib(memory, B)["good", "kv_cache_used", "measured"] == 10
    assert list(memory.headroom_bytes) == ["good"]


def test_a_footprint_has_a_size_of_a_block_for_each_stage_or_none() -> None:
    two = (rank_footprint(0, weights=9), rank_footprint(1, weights=9))

    with pytest.raises(ValueError, match="2 stages, but 1 sizes of a block"):
        footprint(*two, kv_cache=dataclasses.replace(footprint().kv_cache, stage_block_bytes=(2 << 20,)))
    with pytest.raises(ValueError, match="counted from 0"):
        footprint(two[1])


# --- what is measured, and what is computed from a prediction ---


def test_tokens_times_predicted_bytes_are_no_measurement() -> None:
    computed = RankReading(
        model="m",
        kv_cache_capacity_bytes=38.0 * GIB,
        kv_cache_used_bytes=10.0 * GIB,
        kv_cache_bytes_computed=True,
    )
    state = target("chat", ((A, "0"),), None, computed)

    memory = settled([state], [device()])

    parts = in_gib(memory)
    assert parts["chat", "kv_cache_used", "predicted"] == 10
    assert parts["chat", "kv_cache_free", "predicted"] == 28
    assert memory.error_ratio == {}
    lines = {line.name: line.observed for line in comparisons(state, Snapshot(time=0))}
    assert lines["kv_cache"] is None


def test_layers_in_main_memory_keep_their_part_of_the_cache_there() -> None:
    """Of a cache of 40 GiB, 30 lie on the GPU and 10 beside layers that the CPU has."""
    cache = KvCacheFootprint(
        bytes_per_token=1.0, max_model_len_tokens=1, full_request_bytes=1, of_all_devices=True
    )
    on_gpu = dataclasses.replace(
        rank_footprint(weights=16, kv_cache=30), host={"kv_cache": exact(10 * GIB, "test")}
    )
    said = RankReading(model="m", kv_cache_capacity_bytes=40.0 * GIB, kv_cache_used_bytes=20.0 * GIB)

    parts = in_gib(
        settled([target("chat", ((A, "0"),), footprint(on_gpu, kv_cache=cache), said)], [device()])
    )

    assert parts["chat", "kv_cache_used", "measured"] == 15
    assert parts["chat", "kv_cache_free", "measured"] == 15


def test_a_cache_that_lies_in_main_memory_alone_is_none_of_the_gpus() -> None:
    cache = KvCacheFootprint(
        bytes_per_token=1.0, max_model_len_tokens=1, full_request_bytes=1, of_all_devices=True
    )
    nothing = dataclasses.replace(rank_footprint(weights=16), host={"kv_cache": exact(40 * GIB, "test")})
    said = RankReading(model="m", kv_cache_capacity_bytes=40.0 * GIB, kv_cache_used_bytes=20.0 * GIB)

    parts = in_gib(
        settled([target("chat", ((A, "0"),), footprint(nothing, kv_cache=cache), said)], [device()])
    )

    assert parts["chat", "kv_cache_used", "measured"] == 0


# --- a server that cannot be the predicted one ---


def reading_of(capacity_gib: float | None) -> EngineReading:
    capacity = None if capacity_gib is None else capacity_gib * GIB
    return EngineReading(engine="vllm", ranks=(RankReading(model="m", kv_cache_capacity_bytes=capacity),))


@pytest.mark.parametrize(("pool", "is_beyond"), [(None, False), (38.0, False), (64.0, False), (65.0, True)])
def test_weights_and_the_cache_that_a_server_has_lie_on_its_gpu(pool: float | None, is_beyond: bool) -> None:
    """16 GiB of weights on a GPU of 80."""
    assert (beyond_card(reading_of(pool), footprint(), 80 * GIB) is not None) is is_beyond


def test_weights_alone_that_no_gpu_holds_are_not_those_of_a_server_that_answers() -> None:
    huge = footprint(rank_footprint(weights=141))

    assert beyond_card(reading_of(None), huge, 80 * GIB) == (
        "141.00 GiB of weights are more than the 80.00 GiB that CUDA shows of a GPU"
    )


def test_a_cache_without_blocks_lies_on_all_gpus_together() -> None:
    cache = KvCacheFootprint(
        bytes_per_token=1.0, max_model_len_tokens=1, full_request_bytes=1, of_all_devices=True
    )
    two = (rank_footprint(0, weights=20, kv_cache=50), rank_footprint(1, weights=20, kv_cache=50))

    assert beyond_card(reading_of(100.0), footprint(*two, kv_cache=cache), 80 * GIB) is None
    assert beyond_card(reading_of(130.0), footprint(*two, kv_cache=cache), 80 * GIB) is not None


def test_a_cache_in_main_memory_fits_no_gpu_and_need_not() -> None:
    rank = dataclasses.replace(rank_footprint(weights=16), host={"kv_cache": exact(100 * GIB, "test")})

    assert beyond_card(reading_of(100.0), footprint(rank), 80 * GIB) is None


# --- which GPU holds which part ---


def test_gpus_of_a_rank_are_tensor_ranks_first_then_pipeline_stages() -> None:
    staged = footprint(rank_footprint(0, weights=9), rank_footprint(1, weights=11), tensor_parallel=2)

    stages = stages_of_gpus(((A, "0"), (B, "0"), (C, "0"), (D, "0")), staged)

    assert [stages[gpu].pipeline_stage for gpu in (A, B, C, D)] == [0, 0, 1, 1]


def test_another_number_of_gpus_than_the_settings_say_counts_each_as_the_fullest() -> None:
    staged = footprint(rank_footprint(0, weights=9), rank_footprint(1, weights=11))

    stages = stages_of_gpus(((A, "0"), (B, "0"), (C, "0")), staged)

    assert [stages[gpu].pipeline_stage for gpu in (A, B, C)] == [1, 1, 1]


def test_each_data_parallel_rank_has_gpus_and_a_cache_of_its_own() -> None:
    ranks = [
        RankReading(model="m", rank=name, kv_cache_capacity_bytes=38.0 * GIB, kv_cache_used_bytes=used * GIB)
        for name, used in (("0", 1.0), ("1", 30.0))
    ]

    memory = settled([target("chat", ((A, "0"), (B, "1")), None, *ranks)], [device(A), device(B)])

    assert in_gib(memory, A)["chat", "kv_cache_used", "measured"] == 1
    assert in_gib(memory, B)["chat", "kv_cache_used", "measured"] == 30


def test_a_stage_with_fewer_layers_holds_less_of_the_cache() -> None:
    cache = KvCacheFootprint(
        bytes_per_token=1.0, max_model_len_tokens=1, full_request_bytes=1, stage_block_bytes=(3, 4)
    )
    staged = footprint(
        rank_footprint(0, weights=9, kv_cache=30), rank_footprint(1, weights=9, kv_cache=40), kv_cache=cache
    )
    reading = RankReading(model="m", kv_cache_capacity_bytes=40.0 * GIB, kv_cache_used_bytes=20.0 * GIB)

    memory = settled([target("chat", ((A, "0"), (B, "0")), staged, reading)], [device(A), device(B)])

    assert in_gib(memory, A)["chat", "kv_cache_used", "measured"] == 15
    assert in_gib(memory, B)["chat", "kv_cache_used", "measured"] == 20


# --- headroom ---


def test_headroom_is_what_is_free_less_what_of_the_plan_is_not_in_use() -> None:
    """free 18, planned 70 by the high bound, in use 62: 8 are still to come."""
    assert settled([target()], [device(used=62)]).headroom_bytes == {"chat": 10 * GIB}


def test_a_calibrated_plan_counts_as_expected_not_at_its_high_bound() -> None:
    calibrated = footprint(calibrated=True)

    memory = settled([target("chat", ((A, "0"),), calibrated)], [device(used=60)])

    assert memory.headroom_bytes == {"chat": (20 - 2) * GIB}


def test_what_was_once_in_use_and_given_back_is_wanted_again() -> None:
    """A spike to 75 leaves 5 while it lasts, and afterwards what was left before it."""
    assert settled([target()], [device(used=75, peak=75)]).headroom_bytes == {"chat": 5 * GIB}
    assert settled([target()], [device(used=62, peak=75)]).headroom_bytes == {"chat": 10 * GIB}


@pytest.mark.parametrize("used", [0, 5, 40, 62, 70])
def test_below_the_plan_headroom_is_the_card_less_the_plan_however_much_is_in_use(used: int) -> None:
    assert settled([target()], [device(used=used)]).headroom_bytes == {"chat": (80 - 70) * GIB}


def test_more_in_use_than_planned_takes_nothing_off_twice() -> None:
    assert settled([target()], [device(used=75)]).headroom_bytes == {"chat": 5 * GIB}


def test_a_plan_above_the_card_is_a_negative_headroom() -> None:
    huge = footprint(rank_footprint(weights=60, kv_cache=16, high=90))

    assert settled([target("chat", ((A, "0"),), huge)], [device(used=76)]).headroom_bytes == {
        "chat": -10 * GIB
    }


def test_the_fullest_gpu_decides_and_the_reserve_is_taken_off() -> None:
    both = target("chat", ((A, "0"), (B, "0")), footprint(tensor_parallel=2))

    memory = settled([both], [device(A, used=70), device(B, used=75)], reserve=2)

    assert memory.headroom_bytes == {"chat": 3 * GIB}


def test_servers_that_share_a_gpu_share_its_headroom() -> None:
    small = footprint(rank_footprint(weights=2, kv_cache=3, high=8))
    other = target("embed", ((A, "0"),), small)

    memory = settled([target(), other], [device(used=67)])

    assert memory.headroom_bytes == {"chat": (13 - 11) * GIB, "embed": (13 - 11) * GIB}


def test_a_neighbour_that_is_down_still_counts_with_its_plan() -> None:
    small = footprint(rank_footprint(weights=2, kv_cache=3, high=8))
    other = target("embed", ((A, "0"),), small)
    down = msgspec.structs.replace(other, up=False, reading=None, footprint=None)

    memory = account([target(), down], [tenant(target()), tenant(other)], [device(used=62)])

    assert memory.headroom_bytes == {"chat": (18 - (78 - 62)) * GIB}


def test_half_a_plan_gives_no_headroom() -> None:
    unknown = msgspec.structs.replace(target("embed", ((A, "0"),)), footprint=None)
    lost = msgspec.structs.replace(device(B), used_bytes=None, free_bytes=None)
    two = target("chat", ((A, "0"), (B, "0")), footprint(tensor_parallel=2))

    assert settled([target(), unknown], [device()]).headroom_bytes == {}
    assert settled([two], [device(A), lost]).headroom_bytes == {}
    assert settled([target("chat", ())], [device()]).headroom_bytes == {}


def test_a_sleeping_server_will_want_its_memory_back() -> None:
    """Asleep with 5 of 80 GiB in use and a plan of 70: 65 are still to come."""
    assert settled([asleep()], [device(used=5)]).headroom_bytes == {"chat": 10 * GIB}


# --- errors ---


def test_errors_are_told_of_measured_components_only() -> None:
    memory = settled([target()], [device()])

    assert memory.error_ratio == {("chat", "kv_cache"): (38 - 40) / 40}


def test_the_rank_with_the_least_cache_stands_for_the_error() -> None:
    ranks = [
        RankReading(model="m", rank=str(index), kv_cache_capacity_bytes=size * GIB)
        for index, size in enumerate((40.0, 30.0))
    ]

    memory = settled([target("chat", (), None, *ranks)], [])

    assert memory.error_ratio == {("chat", "kv_cache"): -0.25}


def test_measured_weights_and_graphs_have_errors_too() -> None:
    predicted = footprint(rank_footprint(weights=16, cuda_graphs=2))
    reading = RankReading(model="m", measured_memory_bytes={"weights": 17.0 * GIB, "cuda_graphs": 1.0 * GIB})

    memory = settled([target("chat", (), predicted, reading)], [])

    assert memory.error_ratio == {("chat", "weights"): 1 / 16, ("chat", "cuda_graphs"): -0.5}


# --- the decode ceiling at the present load ---


def test_the_ceiling_is_that_of_the_present_batch_and_mean_context_of_all_ranks() -> None:
    def rate(batch: int, context: int) -> float:
        return batch * 1000.0 + context

    ranks = [
        RankReading(model="m", rank="0", requests_running=4.0, kv_cache_used_tokens=4000.0),
        RankReading(model="m", rank="1", requests_running=2.0, kv_cache_used_tokens=200.0),
    ]
    predicted = footprint(decode_ceiling=rate)

    memory = settled([target("chat", (), predicted, *ranks)], [])

    assert memory.ceiling_tokens_per_second == {"chat": 4000.0 + 1000 + 2000 + 100}


def test_an_idle_server_has_no_ceiling() -> None:
    idle = RankReading(model="m", requests_running=0.0, kv_cache_used_tokens=0.0)

    memory = settled([target("chat", (), footprint(decode_ceiling=lambda _b, _c: 1.0), idle)], [])

    assert memory.ceiling_tokens_per_second == {}


# --- side by side ---


def shown(
    of: TargetSnapshot, *devices: DeviceReading, others: tuple[TargetSnapshot, ...] = ()
) -> dict[str, object]:
    snapshot = Snapshot(time=0.0, targets=(of, *others), gpu=GpuReading(up=True, devices=devices))
    return {line.name: (line.expected, line.observed) for line in comparisons(of, snapshot)}


def test_people_see_each_component_and_the_whole_beside_what_is_observed() -> None:
    assert shown(target(), device(used=61)) == {
        "weights": (16 * GIB, None),
        "kv_cache": (40 * GIB, 38 * GIB),
        "activations": (4 * GIB, None),
        "runtime": (2 * GIB, None),
        "whole GPU": (62 * GIB, 61 * GIB),
    }


def test_a_shared_gpu_is_not_compared_as_a_whole() -> None:
    assert shown(target(), device(used=61), others=(target("embed"),))["whole GPU"] == (62 * GIB, None)


def test_without_a_prediction_there_is_nothing_to_compare() -> None:
    assert shown(msgspec.structs.replace(target(), footprint=None), device()) == {}


# --- processes ---


def on_gpu(processes: dict[int, int | None], used: int = 72) -> DeviceReading:
    sizes = {pid: None if size is None else size * GIB for pid, size in processes.items()}
    return msgspec.structs.replace(device(used=used), processes=sizes)


def visible(*pids: int) -> TargetSnapshot:
    return msgspec.structs.replace(target(), process=ProcessReading(pids=frozenset(pids)))


def test_a_process_of_no_target_is_a_stranger_and_taken_off_the_remainder() -> None:
    memory = settled([visible(10, 11)], [on_gpu({10: 40, 11: 20, 99: 8})])

    assert memory.process_bytes == {A: {"chat": 60 * GIB, "other": 8 * GIB}}
    assert in_gib(memory)["", "other_processes", "measured"] == 8
    assert in_gib(memory)["", "unaccounted", "predicted"] == 72 - 60 - 8


def test_where_a_targets_processes_are_not_visible_nobody_is_called_a_stranger() -> None:
    memory = settled([target()], [on_gpu({10: 60, 99: 8})])

    assert memory.process_bytes == {A: {"unknown": 68 * GIB}}
    assert ("", "other_processes", "measured") not in in_gib(memory)


def test_a_driver_that_does_not_tell_the_bytes_tells_nothing() -> None:
    assert settled([visible(10)], [on_gpu({10: None})]).process_bytes == {}
    assert settled([visible(10)], [device()]).process_bytes == {}
