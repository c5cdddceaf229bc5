"""Read launch settings from a command line such as `vllm serve MODEL -tp 2 --max-model-len 128k`."""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    {
        "host",
        "port",
        "served_model_name",
        "alias",
        "root_path",
        "uds",
        "log_file",
        "config",
        "extra_llm_api_options",
    }
)


_SHELLS = frozenset({"sh", "bash", "dash", "zsh"})
_PARTS_COMMANDS = frozenset({"&&", "||", ";", "|", "&"})


def split_command(command: str) -> list[str]:
    """Words of a shell command, line continuations removed. Raises ValueError for unbalanced quotes."""
    return shlex.split(command.replace("\\\n", " "))


def unwrapped(words: Sequence[str], adapters: Iterable[Adapter]) -> list[str]:
    """The command within `bash -c '…'` that starts one of these engines; the words themselves elsewhere.

    A container may stand around the shell. Raises ValueError for unbalanced quotes.
    """
    for index, word in enumerate(words[:-1]):
        behind = words[index + 1]
        if PurePath(word).name not in _SHELLS or not behind.startswith("-") or not behind.endswith("c"):
            continue
        for inner in words[index + 2 : index + 3]:
            listed = list(adapters)
            for part in _commands(split_command(inner.replace(";", " ; "))):
                if any(starts(part, adapter) for adapter in listed):
                    return part
    return list(words)


def _commands(words: Sequence[str]) -> Iterator[list[str]]:
    """The commands that a shell runs one after the other, without what they are run by."""
    part: list[str] = []
    for word in (*words, ";"):
        if word in _PARTS_COMMANDS:
            yield part
            part = []
        elif part or (word != "exec" and not re.fullmatch(r"\w+=.*", word)):
            part.append(word)


def config_file(words: Sequence[str], adapter: Adapter) -> str | None:
    """The file of further settings that a command line names; None without one."""
    for index, word in enumerate(words):
        flag, has_value, value = word.partition("=")
        if flag.startswith("--") and flag.lstrip("-").replace("-", "_") in adapter.config_flags:
            return value if has_value else next(iter(words[index + 1 : index + 2]), None)
    return None


def image_version(words: Sequence[str], adapter: Adapter) -> str | None:
    """The version in the tag of a container image, as in vllm/vllm-openai:v0.19.0; None elsewhere."""
    index = _image_at(words, adapter)
    if index is None:
        return None
    _, has_tag, tag = words[index].rpartition(":")
    match = re.match(r"v?(\d+\.\d+(?:\.\d+)*)", tag)
    return match.group(1) if match is not None and has_tag else None


def settings_of_config(stated: Mapping[str, object], adapter: Adapter) -> dict[str, str]:
    """Settings of a file whose keys are flags without their dashes, as they would stand on a command line."""
    settings = {}
    for key, value in stated.items():
        name = key.lstrip("-").replace("-", "_")
        name = adapter.launch_flags.get(name, name)
        text = json.dumps(value) if isinstance(value, dict | list) else value
        settings[name] = normalize(name, text)
    return {name: value for name, value in settings.items() if name not in _NOT_SETTINGS}


def parse_launch(words: Sequence[str], adapter: Adapter) -> dict[str, str]:
    """Settings of a command line, by the engine's own flag names with underscores.

    `--no-x` becomes x=false, a flag without value x=true; the model may be positional. Of several, the last
    one wins.
    """
    index = _first_argument(words, adapter)
    settings = dict(adapter.launch_implies(words[:index]))
    last: str | None = None
    while index < len(words):
        word = words[index]
        index += 1
        if not word.startswith("-") or word in ("-", "--"):
            # Behind a flag that may take several words, a word is not surely the model.
            if adapter.launch_model_flag not in settings and (last is None or last in adapter.flags):
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
        last = name
    return {name: value for name, value in settings.items() if name not in _NOT_SETTINGS}


def starts(words: Sequence[str], adapter: Adapter) -> bool:
    """True where the command line starts this engine, itself or in a container of its image."""
    return adapter.launch_program(words) or _image_at(words, adapter) is not None


def names_image(word: str, parts: Iterable[str]) -> bool:
    """True for the name of a container image with one of these parts, not for a path that has one in it."""
    return not word.startswith(("/", ".", "~", "-")) and any(part in word for part in parts)


# Options of `docker run` behind which an image may follow; others are followed by their values.
_SWITCHES_OF_CONTAINERS = re.compile(
    r"-[ditP]+|--(rm|detach|interactive|tty|init|privileged|read-only)|.*=.*"
)


def _image_at(words: Sequence[str], adapter: Adapter) -> int | None:
    """Where the image of this engine stands: before its program, and rather not as the value of an option."""
    found = [
        index
        for index, word in enumerate(words)
        if names_image(word, adapter.launch_images) and not adapter.launch_program(words[:index])
    ]
    surely = (
        index
        for index in found
        if not index
        or not words[index - 1].startswith("-")
        or _SWITCHES_OF_CONTAINERS.fullmatch(words[index - 1])
    )
    return next(surely, found[0] if found else None)


def misspelt(settings: Mapping[str, str], adapter: Adapter, where: str = "") -> list[str]:
    """A sentence for each declared setting that is nearly, but not quite, a flag that matters to memory.

    where: what it stands in, where that has to be said.
    """
    known = sorted({*adapter.flags, adapter.launch_model_flag})
    doubts = []
    for name in settings:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.85) if name not in known else []
        if near and name not in adapter.other_flags:
            doubt = f"{name!r} is no flag of {adapter.title} known here; did you mean {near[0]!r}?"
            doubts.append(f"{where}: {doubt}" if where else doubt)
    return doubts


def _is_value(word: str) -> bool:
    if not word.startswith("-"):
        return True
    number = word[1:]
    return number.replace(".", "", 1).isdigit()


def _first_argument(words: Sequence[str], adapter: Adapter) -> int:
    """Index behind the program: behind `serve`, the module after Python's `-m`, the script or the image."""
    image = _image_at(words, adapter)
    if image is not None:
        return image + 1  # `docker run … vllm/vllm-openai:v0.9 --model …`: the rest is the server's
    in_options_of_python = False
    for index, word in enumerate(words):
        # Of llama-server, -m is the model.
        if in_options_of_python and word == "-m":
            behind = index + 2
            return behind + 1 if behind < len(words) and words[behind] == "serve" else behind
        if PurePath(word).name.endswith("-serve"):  # trtllm-serve, whose own `serve` may be left out
            return index + 2 if words[index + 1 : index + 2] == ["serve"] else index + 1
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

    A declared `auto` or -1 is the engine's own choice and never differs. Paths compare by their last part,
    because a container sees its model elsewhere.
    """
    compared = {}
    for name, value in declared.items():
        if name not in live or value in ("auto", "-1"):
            continue
        mine, theirs = normalize(name, value), normalize(name, live[name])
        if name == "model":
            mine, theirs = mine.rstrip("/").rsplit("/", 1)[-1], theirs.rstrip("/").rsplit("/", 1)[-1]
        compared[name] = mine != theirs
    return compared
