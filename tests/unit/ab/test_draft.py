"""An experiment file from the servers that run."""

from __future__ import annotations

import pytest

from brimline.ab.draft import Server, arms, chosen, differing, text
from brimline.ab.experiment import parse
from brimline.errors import ConfigError

NOW = 1_790_000_000.0


def server(variant: str, role: str = "", experiment: str = "kv", **settings: str) -> Server:
    return Server(target=variant, experiment=experiment, variant=variant, role=role, settings=settings)


LONG = server("long", "candidate", max_model_len="131072", kv_cache_dtype="fp8", dtype="auto")
SHORT = server("short", "baseline", max_model_len="32768", dtype="auto", seed="1")


def test_what_is_written_is_read_with_the_treatment_that_differs() -> None:
    written = text([LONG, SHORT], prometheus_url="http://p:9090", baseline=None, now=NOW)

    experiment = parse(written, now=NOW + 60)
    assert (experiment.name, experiment.baseline.name) == ("kv", "short")
    assert [one.name for one in experiment.candidates] == ["long"]
    # What one side does not state differs from nothing.
    assert experiment.treatment == ("max_model_len",)
    assert experiment.prometheus.url == "http://p:9090"
    assert not experiment.is_sliding


def test_ten_lines_say_what_an_experiment_needs() -> None:
    written = text([LONG, SHORT], prometheus_url="http://p:9090", baseline=None, now=NOW)

    assert len([line for line in written.splitlines() if not line.startswith("#")]) <= 10


def test_hostile_settings_and_addresses_stay_text() -> None:
    bad = 'a", role: b}\n- {x: \u2028"'
    hostile = [server("long", "candidate", **{bad: "1"}), server("short", "baseline", **{bad: "2"})]

    written = text(hostile, prometheus_url=bad, baseline=None, now=NOW)

    experiment = parse(written, now=NOW + 60)
    assert experiment.treatment == (bad,)
    assert experiment.prometheus.url == bad


def test_one_experiment_is_chosen_by_name_where_there_are_several() -> None:
    other = server("x", experiment="other")

    assert chosen([LONG, other], "kv") == [LONG]
    assert chosen([LONG, server("", experiment="")], None) == [LONG]
    with pytest.raises(ConfigError, match="kv, other; choose one with --experiment"):
        chosen([LONG, other], None)
    with pytest.raises(ConfigError, match="there is no experiment 'kw'; there are: kv"):
        chosen([LONG], "kw")
    with pytest.raises(ConfigError, match="no server belongs to an experiment"):
        chosen([], None)


def test_the_baseline_is_the_declared_or_the_named_one() -> None:
    assert arms([LONG, SHORT, server("third")], None) == ("short", ["long", "third"])
    assert arms([LONG, SHORT], "long") == ("long", ["short"])
    with pytest.raises(ConfigError, match="only the variant 'long' runs"):
        arms([LONG], None)
    with pytest.raises(ConfigError, match="none is declared `role: baseline`; name it with --baseline"):
        arms([LONG, server("third")], None)
    with pytest.raises(ConfigError, match="the variants fourth, short are declared"):
        arms([LONG, SHORT, server("fourth", "baseline")], None)
    with pytest.raises(ConfigError, match="there is no variant 'nobody'"):
        arms([LONG, SHORT], "nobody")


def test_replicas_that_agree_differ_in_nothing() -> None:
    twin = server("short", "baseline", max_model_len="32768", dtype="auto")

    assert differing([LONG, SHORT, twin], "short") == ["max_model_len"]
    assert differing([SHORT, server("same", max_model_len="32768")], "short") == []
