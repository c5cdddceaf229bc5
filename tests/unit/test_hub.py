"""Models of the hub, from a hub of our own on this machine: nothing here reaches a network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from brimline.errors import FootprintError
from brimline.hub import is_hub_name, read_hub_model

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16", "tie_word_embeddings": True,
}  # fmt: skip
COMMIT = "a" * 40


def safetensors(shapes: dict[str, list[int]]) -> bytes:
    """A file whose tensors are of bfloat16; what lies behind the header is never asked for."""
    header: dict[str, Any] = {}
    at = 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(at)


WEIGHTS = safetensors(
    {"model.embed_tokens.weight": [256, 64], "model.layers.0.self_attn.q_proj.weight": [64, 64]}
)
SHARDS = {
    "one.safetensors": safetensors({"model.embed_tokens.weight": [256, 64]}),
    "two.safetensors": safetensors({"model.layers.1.mlp.up_proj.weight": [128, 64]}),
}
INDEX = {
    "metadata": {},
    "weight_map": {
        "model.embed_tokens.weight": "one.safetensors",
        "model.layers.1.mlp.up_proj.weight": "two.safetensors",
    },
}
FILES: dict[str, bytes] = {
    "org/whole/config.json": json.dumps(CONFIG).encode(),
    "org/whole/model.safetensors": WEIGHTS,
    "org/sharded/config.json": json.dumps(CONFIG).encode(),
    "org/sharded/model.safetensors.index.json": json.dumps(INDEX).encode(),
    **{f"org/sharded/{name}": content for name, content in SHARDS.items()},
    "org/bare/config.json": json.dumps(CONFIG).encode(),
    "org/modelopt/config.json": json.dumps(CONFIG).encode(),
    "org/modelopt/hf_quant_config.json": json.dumps(
        {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    ).encode(),
    "org/no-config/README.md": b"",
    "org/broken/config.json": b"{",
    "org/huge/config.json": b" " * (5 << 20),
}
REFUSED = {
    "org/gated": (403, "GatedRepo"),
    "org/missing": (404, "RepoNotFound"),
    "org/busy": (503, ""),
}


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does: files by /ORG/NAME/resolve/REVISION/FILE, errors by X-Error-Code."""

    protocol_version = "HTTP/1.1"
    asked: list[tuple[str, str, str | None]] = []  # noqa: RUF012 (one for all requests)

    def _answer(self, *, body: bool) -> None:
        path = self.path.lstrip("/").partition("?")[0]
        repository = "/".join(path.split("/")[:2])
        wanted = self.headers.get("Range")
        self.asked.append((self.command, path, wanted))
        if repository in REFUSED:
            status, code = REFUSED[repository]
            return self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": "no"}, body=body)
        revision, _, name = path.partition("/resolve/")[2].partition("/")
        if revision not in ("main", COMMIT):
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body=body)
        content = FILES.get(f"{repository}/{name}")
        if content is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body=body)
        headers = {"ETag": f'"{zlib.crc32(content):08x}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if wanted is None:
            return self._send(200, content, headers, body=body)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last) + 1 if last else None]
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        return self._send(206, part, headers, body=body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name in the base class)
        pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which huggingface_hub asks this hub."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
        "HF_HOME": str(tmp_path_factory.mktemp("hf")),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    yield environment
    server.shutdown()
    server.server_close()


SCRIPT = """
import json, sys
from brimline.errors import FootprintError
from brimline.hub import read_hub_model
answers = {}
for name in sys.argv[1:]:
    try:
        model = read_hub_model(name)
    except FootprintError as error:
        answers[name] = str(error)
    else:
        answers[name] = [model.architecture.hidden, model.stored and model.stored.total]
        if model.architecture.quantization is not None:
            answers[name].append(model.architecture.quantization.method)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(hub: dict[str, str]) -> dict[str, Any]:
    """What each model of the hub is read as, or refused with, by one process: importing takes long."""
    names = [
        "whole",
        "sharded",
        "bare",
        "modelopt",
        "gated",
        "missing",
        "busy",
        "no-config",
        "broken",
        "huge",
        "whole@other",
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *(f"org/{name}" for name in names)],
        env=hub, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def test_settings_and_headers_are_read(answers: dict[str, Any]) -> None:
    # 256 × 64 and 64 × 64 of 2 bytes; 256 × 64 and 128 × 64 of 2 bytes
    assert answers["org/whole"] == [64, 40960]
    assert answers["org/sharded"] == [64, 49152]


def test_a_model_without_safetensors_is_computed_from_its_settings(answers: dict[str, Any]) -> None:
    assert answers["org/bare"] == [64, None]


def test_the_quantization_that_stands_beside_the_config_is_read(answers: dict[str, Any]) -> None:
    assert answers["org/modelopt"] == [64, None, "fp8"]


def test_weights_are_never_downloaded(answers: dict[str, Any]) -> None:
    whole = [wanted for method, path, wanted in Hub.asked if method == "GET" and path.endswith("tensors")]

    assert whole
    assert all(wanted is not None for wanted in whole)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("org/gated", "accept its terms there and set HF_TOKEN"),
        ("org/missing", "no such model on the hub, or a private one"),
        ("org/busy", "the hub answered with status 503"),
        ("org/no-config", "the model on the hub has no config.json"),
        ("org/broken", "is not JSON"),
        ("org/huge", "too large"),
        ("org/whole@other", "but not that revision"),
    ],
)
def test_what_the_hub_refuses_is_said_with_what_to_do(answers: dict[str, Any], name: str, said: str) -> None:
    assert said in answers[name]


def test_the_command_asks_the_hub_only_where_that_is_allowed(hub: dict[str, str]) -> None:
    command = [sys.executable, "-m", "brimline", "predict", "org/whole", "--json"]

    allowed = subprocess.run([*command, "--allow-hub"], env=hub, capture_output=True, text=True, timeout=60)
    forbidden = subprocess.run(command, env=hub, capture_output=True, text=True, timeout=60)

    assert json.loads(allowed.stdout)["per_gpu"]["components"]["weights"]["source"] == (
        "safetensors headers of org/whole; with rotary tables, allocator"
    )
    assert allowed.stderr == ""
    assert forbidden.returncode == 2
    assert "--allow-hub looks it up" in forbidden.stderr


def test_offline_the_cache_is_what_there_is(hub: dict[str, str]) -> None:
    offline = {**hub, "HF_HUB_OFFLINE": "1", "HF_HOME": hub["HF_HOME"] + "-empty"}
    done = subprocess.run(
        [sys.executable, "-m", "brimline", "predict", "org/whole", "--allow-hub"],
        env=offline, capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert done.returncode == 2
    assert "cannot be reached, and its config.json is not in the cache" in done.stderr


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)

    with pytest.raises(FootprintError, match=rf"{re.escape(sys.executable)} -m pip install '\.\[hub\]'"):
        read_hub_model("org/name")


@pytest.mark.parametrize(
    ("text", "is_name"),
    [
        ("meta-llama/Llama-3.1-8B", True),
        ("org/name@v1.0", True),
        ("name", False),
        ("../name", False),
        ("/models/llama", False),
        ("a/b/c", False),
        ("org/na me", False),
        (str(Path("org") / "..") + "/x", False),
    ],
)
def test_names_of_the_hub_are_told_from_paths(text: str, is_name: bool) -> None:
    assert is_hub_name(text) is is_name
