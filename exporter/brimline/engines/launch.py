"""Read launch settings from a command line such as `vllm serve MODEL -tp 2 --max-model-len 128k`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from brimline.engines.adapter import Adapter
from brimline.units import parse_count

# Settings whose value is a count that the engines also read with a unit (vLLM: 128k, 128K).
_COUNTS = {
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_seqs",
    "kv_cache_memory_bytes",
    "num_gpu_blocks_override",
    "ctx_size",
}


# Where a server listens and what it calls itself sets no memory apart: two variants differ in it by nature.
_NOT_SETTINGS = frozenset(
    {"host", "port", "served_model_name", "alias", "root_path", "uds", "log_file", "config"}
)


def split_command(command: str) -> list[str]:
    """Words of a shell command, line continuations removed. Raises ValueError for unbalanced quotes."""
    return shlex.split(command.replace("\\\n", " "))


def parse_launch(words: Sequence[str], adapter: Adapter) -> dict[str, str]:
    """Settings of a command line, by the engine's own flag names with underscores.

    `--no-x` becomes x=false, a flag without value x=true; the model may be positional. Of several, the last
    one wins.
    """
    settings: dict[str, str] = {}
    index = _first_argument(words, adapter)
    while index < len(words):
        word = words[index]
        index += 1
        if not word.startswith("-") or word in ("-", "--"):
            if adapter.launch_model_flag not in settings:
                settings[adapter.launch_model_flag] = word
            continue
        flag, has_value, value = word.partition("=")
        name = flag.lstrip("-").replace("-", "_")
        name = adapter.launch_flags.get(name, name)
        if (
            not has_value
            and index < len(words)
            and name not in adapter.launch_switches
            and not name.startswith("no_")
            and _is_value(words[index])
        ):
            value, has_value = words[index], "="
            index += 1
        if not has_value:
            if name.startswith("no_"):
                name, value = name.removeprefix("no_"), "false"
            else:
                value = "true"
        settings[name] = normalize(name, value)
    return {name: value for name, value in settings.items() if name not in _NOT_SETTINGS}


def _is_value(word: str) -> bool:
    if not word.startswith("-"):
        return True
    number = word[1:]
    return number.replace(".", "", 1).isdigit()


def _first_argument(words: Sequence[str], adapter: Adapter) -> int:
    """Index behind the program: behind `serve`, the module after Python's `-m`, the script or the image."""
    for index, word in enumerate(words):
        if index and any(image in word for image in adapter.launch_images):
            return index + 1  # `docker run … vllm/vllm-openai:v0.9 --model …`: the rest is the server's
    in_options_of_python = False
    for index, word in enumerate(words):
        # Of llama-server, -m is the model.
        if in_options_of_python and word == "-m":
            behind = index + 2
            return behind + 1 if behind < len(words) and words[behind] == "serve" else behind
        if word == "serve" or word.endswith(".py"):
            return index + 1
        if word.startswith("-") and not in_options_of_python:
            return index
        if not word.startswith("-"):
            in_options_of_python = PurePath(word).name.startswith("python")
    return 1


def normalize(name: str, value: object) -> str:
    """A setting's value as text, so that 131072, `128K` and 131072.0 compare equal."""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    if name in _COUNTS:
        try:
            return str(parse_count(text))
        except ValueError:
            return text
    if text in ("True", "False"):
        return text.lower()
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)


def mismatches(declared: Mapping[str, str], live: Mapping[str, str]) -> dict[str, bool]:
    """For each setting that is both declared and live, whether they differ.

    `auto` or -1 on either side is the engine's own choice and never differs; paths compare by their last
    part, because a container sees its model elsewhere.
    """
    compared = {}
    for name, value in declared.items():
        if name not in live or {"auto", "-1"} & {value, live[name]}:
            continue
        mine, theirs = normalize(name, value), normalize(name, live[name])
        if name == "model":
            mine, theirs = mine.rstrip("/").rsplit("/", 1)[-1], theirs.rstrip("/").rsplit("/", 1)[-1]
        compared[name] = mine != theirs
    return compared
