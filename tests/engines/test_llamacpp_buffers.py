"""Predicted buffers against those that a real llama.cpp server says it allocated, for models of ten shapes.

The server runs on the CPU, so that all of it is in host memory. Its log rounds to 0.01 MiB.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from brimline.footprint.predict import predict, read_model
from engines.conftest import HERE, engine_python, served
from prometheus_server import free_port

MIB = 1 << 20
ROUNDING = 0.0051
BUFFER = re.compile(r"(model|output|KV|RS|compute) buffer size = +([\d.]+) MiB")

# Sizes of a GGUF (make_gguf.py), launch flags, and the same as xllamacpp's parameters.
CASES: dict[str, tuple[str, dict[str, str], tuple[str, ...]]] = {
    "dense": ("dense", {}, ()),
    "slots that do not divide the context": ("dense", {"ctx_size": "1000", "parallel": "3"}, ()),
    "eight slots": ("dense", {"ctx_size": "8192", "parallel": "8"}, ()),
    "one cache for all": (
        "dense",
        {"ctx_size": "5000", "parallel": "3", "kv_unified": "true"},
        ("kv_unified=true",),
    ),
    "quantized cache": (
        "dense",
        {"cache_type_k": "q8_0", "cache_type_v": "q4_0"},
        ("cache_type_k=q8_0", "cache_type_v=q4_0"),
    ),
    "no flash attention": ("dense", {"flash_attn": "off"}, ("flash_attn_type=disabled",)),
    "small micro batch": ("dense", {"ubatch_size": "64"}, ("n_ubatch=64",)),
    "large micro batch": ("dense", {"ubatch_size": "2048"}, ("n_ubatch=2048",)),
    "the model's own context": ("dense", {"ctx_size": "0", "parallel": "1"}, ()),
    "the model's own context for each slot": ("dense", {"ctx_size": "0"}, ()),
    "quantized and tied": ("dense-q8_0", {}, ()),
    "window": ("window", {}, ()),
    "window in one cache": ("window", {"kv_unified": "true"}, ("kv_unified=true",)),
    "window kept whole": ("window", {"swa_full": "true"}, ("swa_full=true",)),
    "experts": ("experts", {}, ()),
    "experts with sinks and windows": ("sinks", {}, ()),
    "latent attention": ("latent", {}, ()),
    "latent attention, quantized": (
        "latent",
        {"cache_type_k": "q8_0", "cache_type_v": "q8_0"},
        ("cache_type_k=q8_0", "cache_type_v=q8_0"),
    ),
    "states": ("state", {"parallel": "4"}, ()),
    "states and attention": ("hybrid", {}, ()),
    "states of Mamba and attention": ("jamba", {"parallel": "3"}, ()),
}


def buffers(
    model: Path, folder: Path, settings: dict[str, str], parameters: tuple[str, ...]
) -> dict[str, float]:
    """MiB of each kind of buffer that the server's log names, and its slots and their context."""
    port = free_port()
    command: list[str | Path] = [engine_python("llamacpp"), HERE / "serve_llamacpp.py", model, str(port)]
    command += [settings["ctx_size"], settings["parallel"], "verbosity=4", *parameters]
    with served(command, port, model, "/health", folder) as server:
        slots = server.get("/slots")
    found = {"slots": float(len(slots)), "slot_context": float(slots[0]["n_ctx"])}
    for kind, size in BUFFER.findall((folder / "server.log").read_text()):
        found[kind] = found.get(kind, 0.0) + float(size)
    return found


@pytest.mark.parametrize("case", CASES)
def test_what_a_server_allocates_is_what_was_predicted(case: str, tmp_path: Path) -> None:
    shape, changed, parameters = CASES[case]
    settings = {"ctx_size": "4096", "parallel": "2", "kv_unified": "false", **changed}
    file = tmp_path / "model.gguf"
    subprocess.run([engine_python("llamacpp"), HERE / "make_gguf.py", file, shape], check=True)

    footprint = predict("llamacpp", read_model(file), settings)
    real = buffers(file, tmp_path, settings, parameters)

    [rank] = footprint.ranks
    host = {name: part.expected / MIB for name, part in rank.host.items()}
    print(case, {name: round(size, 2) for name, size in host.items()}, real)
    assert rank.components == {}
    assert host["weights"] == pytest.approx(real["model"], abs=ROUNDING)
    # Each of two caches is rounded.
    assert host["kv_cache"] == pytest.approx(real.get("KV", 0) + real.get("RS", 0), abs=3 * ROUNDING)
    working = rank.host["activations"]
    assert working.low / MIB <= real["compute"] + real["output"] <= working.high / MIB
    assert host["activations"] == pytest.approx(real["compute"] + real["output"], rel=0.1)
    assert footprint.kv_cache.max_model_len_tokens == real["slot_context"]
    assert footprint.max_running_requests == real["slots"]
