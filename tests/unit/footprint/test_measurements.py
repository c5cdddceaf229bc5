"""Predictions against public measurements: the bars, the cases beyond them, and the tables of the document.

The numbers of every test are in tests/measurements/*.yaml, each list with its source.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from brimline.footprint.weights import parameters
from measurements import compared
from measurements.compared import POOL_BAR, WEIGHTS_BAR, Run

ROOT = Path(__file__).parent.parent.parent.parent
WEIGHED = [run for run in compared.having("weights_gib") if run.visible_gib is not None]
POOLED = [run for run in WEIGHED if "pool_gib" in run.measured]
CALIBRATED = [run for run in POOLED if compared.learned_from_others(run, WEIGHED).sampler_factor is not None]
LOGGED = compared.having("pool_gib", "blocks")
SET = compared.having("blocks", "tokens", "concurrency")


def named(run: Run) -> str:
    return "-".join([run.model, run.version, *(f"{name}={value}" for name, value in run.own.items())])


@pytest.mark.parametrize(("model", "published"), list(compared.published_parameters().items()))
def test_the_shapes_have_the_parameters_that_their_publishers_state(model: str, published: int) -> None:
    assert parameters(compared.architecture(model)) == published


@pytest.mark.parametrize("run", WEIGHED, ids=named)
def test_weights_are_within_a_hundredth_of_the_measured_ones(run: Run) -> None:
    off = compared.weights_off(run)

    print(f"{named(run)}: weights {100 * off:+.2f} %")
    # What is known to be beyond must stay there, or the list is stale.
    assert (abs(off) > WEIGHTS_BAR) == (compared.why_beyond(run, "weights") is not None)


@pytest.mark.parametrize("run", CALIBRATED, ids=named)
def test_the_pool_is_met_within_half_a_percent_of_the_card_by_constants_of_other_models(run: Run) -> None:
    off = compared.pool_off(run, compared.calibrated_by_others(run, WEIGHED))

    print(f"{named(run)}: pool {100 * off:+.2f} % of the card")
    assert (abs(off) > POOL_BAR) == (compared.why_beyond(run, "pool") is not None)


def test_nearly_all_runs_are_within_the_bars() -> None:
    light = [run for run in WEIGHED if abs(compared.weights_off(run)) <= WEIGHTS_BAR]
    near = [
        run
        for run in CALIBRATED
        if abs(compared.pool_off(run, compared.calibrated_by_others(run, WEIGHED))) <= POOL_BAR
    ]

    print(f"weights {len(light)} of {len(WEIGHED)}, pools {len(near)} of {len(CALIBRATED)}")
    assert len(WEIGHED) >= 60
    assert len(light) / len(WEIGHED) > 0.97
    assert len(near) / len(CALIBRATED) > 0.97


def test_no_model_teaches_itself() -> None:
    [llama] = [run for run in POOLED if run.model == "llama-3.1-8b" and run.version == "0.12.0"]

    alone = compared.learned_from_others(llama, [run for run in WEIGHED if run.family == llama.family])

    assert alone == compared.Learned(
        sampler_factor=None, forward_factor=None, experts_factor=None, non_torch_bytes=None
    )


@pytest.mark.parametrize("run", LOGGED, ids=named)
def test_a_pool_of_the_logged_size_has_the_logged_blocks(run: Run) -> None:
    assert run.measured["blocks"] in compared.blocks_of_logged_pool(run)


@pytest.mark.parametrize("run", compared.having("blocks", "tokens"), ids=named)
def test_so_many_blocks_hold_the_logged_tokens(run: Run) -> None:
    cache = compared.with_blocks(run, int(run.measured["blocks"])).kv_cache

    assert cache.capacity_tokens == run.measured["tokens"]


@pytest.mark.parametrize("run", [run for run in SET if "CPU" in run.gpu], ids=named)
def test_real_servers_have_the_predicted_blocks_tokens_and_concurrency(run: Run) -> None:
    measured = (run.measured["blocks"], run.measured["tokens"], run.measured["concurrency"])

    assert compared.exact_cache(run) == measured


@pytest.mark.parametrize("run", [run for run in compared.runs() if run.engine != "vllm"], ids=named)
def test_a_token_costs_the_bytes_that_other_engines_say(run: Run) -> None:
    predicted = compared.footprint(run)

    # Their logs round K and V to 0.01 GiB each.
    for name, measured, size, unit in compared.quantities(run, predicted):
        if unit == "GiB" and name != "weights":
            assert size == pytest.approx(measured, abs=0.011)


def test_every_case_beyond_a_bar_is_of_a_run_and_told_by_a_source() -> None:
    reasons = {compared.why_beyond(run, quantity) for run in WEIGHED for quantity in ("weights", "pool")} - {
        None
    }

    assert compared.reasons() == reasons
    assert all(run.source for run in compared.runs())


def test_the_tables_of_the_document_are_what_the_code_says() -> None:
    tool = ROOT / "tools/generate_footprint_table.py"

    checked = subprocess.run([sys.executable, tool, "--check"], capture_output=True, text=True)

    assert checked.returncode == 0, checked.stderr


def test_the_worked_example_of_headroom_adds_up() -> None:
    """free - max(0, P - used) on a card with 79.18 GiB, row by row."""
    text = (ROOT / "docs/footprint.md").read_text()
    rows = re.findall(r"^\| [^|]+\| ([\d.]+) \| ([\d.]+) \| ([^|]+)\| \*\*(.?[\d.]+) GiB", text, re.M)

    assert len(rows) == 7
    for used, free, to_come, headroom in rows:
        later = float(to_come.rpartition("=")[2].strip())
        assert float(used) + float(free) == pytest.approx(79.18)
        assert float(free) - later == pytest.approx(float(headroom.replace("−", "-")), abs=0.005)
