"""What is computed of an architecture is kept with it."""

from __future__ import annotations

from dataclasses import replace

from brimline.footprint.architecture import MAX_COMPUTED, Architecture, kept_with_architecture


def model(hidden: int = 64) -> Architecture:
    return Architecture(model_type="tiny", vocabulary=100, hidden=hidden, layers=(), tied=True)


def test_a_result_is_computed_once_for_each_architecture_and_options() -> None:
    computed: list[tuple[int, int]] = []

    @kept_with_architecture
    def doubled(architecture: Architecture, times: int) -> int:
        computed.append((architecture.hidden, times))
        return architecture.hidden * times

    small, large = model(64), model(128)

    assert [doubled(small, 2), doubled(small, 2), doubled(small, 3), doubled(large, 2)] == [
        128,
        128,
        192,
        256,
    ]
    assert computed == [(64, 2), (64, 3), (128, 2)]


def test_what_was_kept_is_no_part_of_what_an_architecture_is() -> None:
    @kept_with_architecture
    def width(architecture: Architecture) -> int:
        return architecture.hidden

    first, second = model(), model()
    width(first)

    assert first == second
    assert hash(first) == hash(second)
    assert width(replace(first, hidden=32)) == 32


def test_what_is_kept_does_not_grow_without_end() -> None:
    @kept_with_architecture
    def plus(architecture: Architecture, number: int) -> int:
        return architecture.hidden + number

    one = model()
    for number in range(3 * MAX_COMPUTED):
        plus(one, number)

    assert len(one.computed) <= MAX_COMPUTED


def test_functions_of_one_name_do_not_get_each_others_results() -> None:
    def made(factor: int) -> int:
        @kept_with_architecture
        def scaled(architecture: Architecture) -> int:
            return architecture.hidden * factor

        return scaled(shared)

    shared = model()

    assert [made(1), made(2)] == [64, 128]
