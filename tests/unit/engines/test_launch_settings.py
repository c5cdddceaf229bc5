"""What a prediction reads of a server's settings beside what its adapter knows and the live server states.

A setting that decides memory and is dropped on the way would silently be a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from brimline.engines import ENGINES
from brimline.engines.adapter import Adapter, Evidence
from brimline.engines.vllm import SETTING_LABELS
from brimline.exposition_text import scan
from brimline.footprint import settings as readers
from brimline.footprint.gpus import find_gpu
from brimline.footprint.hf_config import architecture_of_config
from brimline.footprint.predict import PREDICTORS, Model, predict

LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 4,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 8192, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
PREDICTED = sorted(adapter.name for adapter in ENGINES.values() if adapter.predictor is not None)
# Words that only Brimline puts there: what a slot of a running llama.cpp has.
NOT_FLAGS = {"n_ctx"}


class Recorded(dict[str, str]):
    """Settings that note which of them are asked for."""

    def __init__(self, settings: Mapping[str, str], names: set[str]) -> None:
        super().__init__(settings)
        self.names = names

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return super().__contains__(name)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of settings that readers were asked for; patched, as readers may be given copies."""
    names: set[str] = set()
    stated = readers._stated

    def noted(settings: Mapping[str, str], name: str) -> str | None:
        names.add(name)
        return stated(settings, name)

    monkeypatch.setattr(readers, "_stated", noted)
    return names


def names_read(engine: str, names: set[str]) -> set[str]:
    """Names of settings that the engine's predictor asks for, without those of other engines' overrides."""
    model = Model(architecture_of_config(LLAMA, "config.json"), None, LLAMA)
    for gpu in (None, find_gpu("H100")):
        predict(PREDICTED_AS[engine], model, Recorded({}, names), gpu=gpu)
    overrides = {"hf_overrides", "rope_scaling", "json_model_override_args"}
    return names - NOT_FLAGS - (overrides - ENGINES[engine].flags)


PREDICTED_AS = {name: ENGINES[name].predictor or "" for name in PREDICTED}


def test_every_predictor_has_an_engine() -> None:
    assert set(PREDICTED_AS.values()) == set(PREDICTORS)


@pytest.mark.parametrize("engine", PREDICTED)
def test_every_setting_that_a_prediction_reads_is_a_flag_that_the_adapter_knows(
    engine: str, read: set[str]
) -> None:
    assert names_read(engine, read) - ENGINES[engine].flags == set()


def live_settings(adapter: Adapter, document: Mapping[str, Any]) -> Mapping[str, str]:
    """What the adapter takes of a server that repeats all its arguments in one document."""
    path = adapter.endpoints[0].path
    page = scan(b"sglang:num_running_reqs 1\n", adapter.wanted)
    return adapter.read(Evidence(page, {path: adapter.endpoints[0].keep(dict(document))})).settings


def test_a_server_that_states_its_launch_states_all_that_a_prediction_reads(read: set[str]) -> None:
    """Of the engines only SGLang's document holds every argument, whether it was given or not."""
    stating = [name for name, adapter in ENGINES.items() if adapter.states_launch({"tp_size": "1"})]
    assert stating == ["sglang"]
    wanted = names_read("sglang", read)

    live = live_settings(ENGINES["sglang"], dict.fromkeys(wanted, "1"))

    assert wanted - set(live) == set()


def test_what_a_server_states_of_its_settings_may_be_shown() -> None:
    sglang = ENGINES["sglang"]

    live = live_settings(sglang, dict.fromkeys([*sglang.flags, "api_key", "ssl_keyfile_password"], "1"))

    assert set(live) == sglang.flags
    assert set(SETTING_LABELS.values()) <= ENGINES["vllm"].flags


def test_overrides_of_the_model_are_not_cut() -> None:
    override = '{"max_position_embeddings": 8192, "rope_scaling": ' + " " * 200 + "null}"

    live = live_settings(ENGINES["sglang"], {"json_model_override_args": override, "tp_size": 2})

    assert live["json_model_override_args"] == override
