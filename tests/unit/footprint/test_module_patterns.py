"""Patterns of module names: they mean what `re` takes them to mean, in a bounded number of steps."""

from __future__ import annotations

import fnmatch
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brimline.errors import FootprintError
from brimline.footprint.module_patterns import Effort, Matcher, Patterns, glob, regular_expression

NAME = "model.layers.17.self_attn.q_proj"

# From checkpoints of the hub and the documentation of compressed-tensors, GPTQModel, llm-compressor, Quark.
WRITTEN = [
    "re:.*lm_head", "re:.*mlp.gate$",
    r"re:.*layers\.\d+\.mlp\..*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
    "re:vision_tower.*", r"re:.*\.18\..*gate.*", r"re:^model\.layers\.(0|1|2)\.", "re:.*(q|k|v)_proj$",
    r"re:model\.layers\.([0-9]|1[0-5])\..*", r"re:.*linear_attn\.in_proj_[ab]$", "re:.*down.*",
    r"re:^(?!.*\.mlp\.experts(?:\.|$)).*$", "re:^(?!.*experts).*$", r"re:model\.layers\.\d{1,2}\.self_attn",
    r"re:(?!.*visual).*_proj",
]  # fmt: skip
NAMES = [
    "lm_head", "model.lm_head", NAME, "model.layers.3.mlp.gate", "model.layers.3.mlp.gate_proj",
    "model.layers.18.mlp.gate_up_proj", "vision_tower.blocks.0.qkv",
    "model.layers.1.mlp.experts.0.down_proj",
    "model.layers.15.linear_attn.in_proj_a", "visual.blocks.1.q_proj", "model.layers.123.self_attn.v_proj",
    "",
]  # fmt: skip

ATTACKS = [
    ".?" * 28 + "!", "(|.)" * 28 + "!", r"\w?" * 28 + "!", "(a+)+$", "(.*)*!", "(.|.)*!", "(?:.?.?.?)+!",
    ".*" * 100 + "!", "(a|a?)+!", "(.*.*)*!", ".{0,64}" * 8 + "!", "((((.?)?)?)?)*!", "(?=(.*)*!)x",
    "(.+)*(.+)*!",
]  # fmt: skip


def matches(pattern: str, name: str) -> bool:
    return Patterns([regular_expression(pattern)], Effort()).matches(name)


@pytest.mark.parametrize("entry", WRITTEN)
def test_what_quantizers_write_means_what_python_takes_it_to_mean(entry: str) -> None:
    pattern = entry.removeprefix("re:")
    for name in NAMES:
        assert matches(pattern, name) is (re.match(pattern, name) is not None), name


@pytest.mark.parametrize("pattern", ATTACKS)
def test_no_pattern_takes_more_than_its_states_for_each_character(pattern: str) -> None:
    """Python's own matcher would take 2^28 steps or more for these on a name of 32 characters."""
    effort = Effort()
    read = regular_expression(pattern)
    patterns = Patterns([read], effort)

    assert not patterns.matches(NAME)
    assert effort.steps <= 3 * (len(NAME) + 2) * effort.states


def test_a_name_that_was_met_costs_no_more_than_its_length() -> None:
    effort = Effort()
    patterns = Patterns([regular_expression(".*a.*b.*c.*!")], effort)
    patterns.matches(NAME)
    before = effort.steps

    patterns.matches(NAME)

    assert effort.steps - before <= 2 * len(NAME)


@pytest.mark.parametrize(
    "pattern",
    [
        "(", ")", "a)", "[a", "[", "*a", "a**", "a*+", "a++", "a?+", "{2}", "a{2", "a{,3}", "a{3,2}",
    "a{1,999}",
        "a{1}{2}", r"\b", r"\1", r"(a)\1", r"\x41", "\\", "(?P<n>a)", "(?i)a", "(?<=a)b", "(?>a)", "a(?!b)",
        "(?!a)b|c", "(?#a)", "^*", "[^]", "[z-a]", "[[a]", r"[\W]", "(" * 40 + ")" * 40,
    ],
)  # fmt: skip
def test_all_other_syntax_is_refused(pattern: str) -> None:
    with pytest.raises(FootprintError, match="is not read here"):
        regular_expression(pattern)


def test_more_states_than_are_read_are_refused() -> None:
    nodes = [regular_expression("(" + "a{64}" * 8 + "){64}").node] * 20

    with pytest.raises(FootprintError, match="larger than is read"):
        Matcher(nodes, Effort())


@settings(deadline=None)
@given(
    st.recursive(
        st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\.", r"\d", r"\w", r"[\da]"]),
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from(["", "*", "+", "?", "{2}", "{0,2}", "{1,}", "*?"])).map(
                lambda pair: f"(?:{pair[0]}){pair[1]}"
            ),
            st.lists(inner, max_size=3).map(lambda parts: "".join(parts)),
            st.lists(inner, min_size=1, max_size=3).map(lambda parts: "(" + "|".join(parts) + ")"),
        ),
        max_leaves=6,
    ),
    st.sampled_from(["", "^"]),
    st.sampled_from(["", "$"]),
    st.text("ab.1", max_size=6),
)
def test_a_pattern_means_what_python_takes_it_to_mean(inner: str, start: str, end: str, name: str) -> None:
    pattern = f"{start}{inner}{end}"

    assert matches(pattern, name) is (re.match(pattern, name) is not None)


@settings(deadline=None)
@given(st.text("ab.*?[]!-", max_size=6), st.text("ab.", max_size=6))
def test_a_glob_means_the_module_and_all_within_it(pattern: str, name: str) -> None:
    wanted = fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, pattern + ".*")
    if re.search(r"\[.*-.*\]", pattern):
        return  # ranges that fnmatch itself repairs

    assert Patterns([glob(pattern)], Effort()).matches(name) is wanted
