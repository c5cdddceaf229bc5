"""Which modules a checkpoint stores quantized, and that no pattern takes long."""

from __future__ import annotations

import time

import pytest

from brimline.errors import FootprintError
from brimline.footprint.architecture import Quantization
from brimline.footprint.quantized_modules import Modules, Schemes

NAMES = [
    f"model.layers.{index}.{module}_proj"
    for index in range(1024)
    for module in ("self_attn.q", "self_attn.o", "mlp.gate", "mlp.down", "mlp.experts.gate_up")
]


def test_a_pattern_without_a_number_means_every_layer_and_one_with_a_number_its_own() -> None:
    assert "model.layers.77.mlp.down_proj" in Modules([r"re:.*layers\.\d+\.mlp\..*"])
    assert "model.layers.7.mlp.down_proj" in Modules([r"re:.*layers\.(7|8)\.mlp.*"])
    assert "model.layers.17.mlp.down_proj" not in Modules([r"re:.*layers\.(7|8)\.mlp.*"])


def test_experts_are_known_by_the_name_of_the_first_of_them() -> None:
    assert "model.layers.0.mlp.experts.gate_up_proj" in Modules([r"re:.*experts\.\d+\.gate_proj$"])


def test_names_that_begin_alike_are_one_entry_with_a_star() -> None:
    """nvidia/DeepSeek-R1-FP4 lists model.layers.N.self_attn* for each of its 61 layers."""
    modules = Modules([f"model.layers.{n}.self_attn*" for n in range(61)])

    assert "model.layers.60.self_attn.kv_b_proj" in modules
    assert "model.layers.6.mlp.down_proj" not in modules
    assert "model.layers.61.self_attn.kv_b_proj" not in modules


def test_a_pattern_of_one_layer_means_no_other() -> None:
    modules = Modules(["model.layers.1.*gate*", r"re:.*layers\.12\..*down.*"])

    assert "model.layers.1.mlp.gate_proj" in modules
    assert "model.layers.11.mlp.gate_proj" not in modules
    assert "model.layers.12.mlp.down_proj" in modules


def test_what_a_further_scheme_names_wins_over_the_first() -> None:
    eight = Quantization(method="fp8", bits=8, targets=("down_proj",))
    four = Quantization(method="awq", bits=4, skipped=("model.layers.1",), others=(eight,))
    schemes = Schemes(four, experts=False)

    assert schemes.of("model.layers.0.mlp.up_proj", "mlp", linear=True) is four
    assert schemes.of("model.layers.0.mlp.down_proj", "mlp", linear=True) is eight
    assert schemes.of("model.layers.1.mlp.down_proj", "mlp", linear=True) is None
    assert schemes.of("model.layers.0.norm", "norms", linear=False) is None


def test_a_scheme_with_targets_leaves_all_else_alone() -> None:
    schemes = Schemes(Quantization(method="fp8", bits=8, targets=("re:.*mlp.*",)), experts=False)

    assert schemes.of("model.layers.0.mlp.up_proj", "mlp", linear=True) is not None
    assert schemes.of("model.layers.0.self_attn.q_proj", "attention", linear=True) is None


@pytest.mark.parametrize("entry", ["re:(", "re:" + "a" * 600, "*" * 600, r"re:(a)\1", "re:a(?<!b)"])
def test_a_pattern_that_is_none_or_of_another_syntax_is_refused(entry: str) -> None:
    with pytest.raises(FootprintError, match="pattern"):
        Modules([entry])


def test_a_pattern_of_one_digit_means_layers_of_one_digit() -> None:
    modules = Modules([r"re:.*layers\.\d\.mlp"])

    assert "model.layers.7.mlp.up_proj" in modules
    assert "model.layers.17.mlp.up_proj" not in modules


def test_all_that_is_not_named_is_left_alone_by_looking_ahead() -> None:
    """Quark and llm-compressor leave all but the experts alone so."""
    modules = Modules([r"re:^(?!.*\.mlp\.experts(?:\.|$)).*$"])

    assert "model.layers.3.self_attn.q_proj" in modules
    assert "model.layers.3.mlp.experts.gate_up_proj" not in modules


def test_patterns_of_all_schemes_together_are_matched_within_one_effort(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Patched to be small, so that the test is quick."""
    monkeypatch.setattr("brimline.footprint.module_patterns._MAX_STEPS", 20_000)
    others = tuple(Quantization(method="fp8", bits=8, targets=(f"re:.*{n}.*{n}.*z",)) for n in range(10, 60))
    schemes = Schemes(Quantization(method="awq", bits=4, others=others), experts=False)

    with pytest.raises(FootprintError, match="take longer to match than is waited"):
        [schemes.of(name, "mlp", linear=True) for name in NAMES]


def test_more_patterns_than_anybody_writes_are_refused() -> None:
    with pytest.raises(FootprintError, match="3000 patterns name modules, more than are read"):
        Modules([f"re:x{chr(97 + n % 26)}{'y' * (n // 26)}" for n in range(3000)])


@pytest.mark.parametrize(
    "entries",
    [
        ["re:.*e.*e.*z"],
        ["re:.*e.*e.*1z"],
        [f"re:.*{letter}.*e.*z" for letter in "abcdefghijklm"],
        [f"model.layers.{n}.self_attn.q_proj" for n in range(100_000)],
        [f"*{letter}*e*z" for letter in "abcdefghijklm"],
        [f"model.layers.{n}.*attn*" for n in range(1000)],
        [f"model.layers.{n}.self_attn*" for n in range(5000)],
        [rf"re:.*layers\.{n}\..*attn.*z" for n in range(150)],
    ],
)
def test_every_list_that_is_read_is_matched_within_a_second(entries: list[str]) -> None:
    modules = Modules(entries)

    started = time.process_time()
    for name in NAMES:
        name in modules  # noqa: B015 (only the time matters)
    assert time.process_time() - started < 1
