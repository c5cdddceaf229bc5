"""predict: what a server should use, before it is started."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from brimline.cli.common import EXIT_NEGATIVE, fail

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from brimline.engines.adapter import Adapter
    from brimline.footprint.alternatives import Alternative
    from brimline.footprint.gpus import Gpu
    from brimline.footprint.predict import Model

    Command = Callable[..., Any]

DEFAULT_ENGINE = "vllm"

# Flags of the server that is predicted, by name; all are text, which the engine's own reader types.
_FLAGS = (
    click.option("--dtype", help="Such as bfloat16; auto unless given."),
    click.option(
        "--quantization", help="Predict as if the weights were quantized so: fp8, awq, gptq, nvfp4, …"
    ),
    click.option("--kv-cache-dtype", help="Such as fp8; auto unless given."),
    click.option(
        "--max-model-len", metavar="TOKENS", help="Such as 32768, 128k (128,000) or 128K (131,072)."
    ),
    click.option("--max-num-seqs", metavar="N"),
    click.option("--max-num-batched-tokens", metavar="TOKENS"),
    click.option("--block-size", metavar="TOKENS"),
    click.option("--tensor-parallel-size", "-tp", metavar="N"),
    click.option("--pipeline-parallel-size", "-pp", metavar="N"),
    click.option("--data-parallel-size", "-dp", metavar="N"),
    click.option("--decode-context-parallel-size", "-dcp", metavar="N"),
    click.option("--enable-expert-parallel", "-ep", is_flag=True),
    click.option("--gpu-memory-utilization", metavar="RATIO"),
    click.option("--kv-cache-memory-bytes", metavar="SIZE"),
    click.option("--num-gpu-blocks-override", metavar="N"),
    click.option("--cpu-offload-gb", metavar="GIB", help="Weights in host memory, for each GPU."),
    click.option(
        "--kv-offloading-size", metavar="GIB", help="KV cache in host memory, of all GPUs together."
    ),
    click.option("--swap-space", metavar="GIB", help="Of vLLM before 0.8: host memory for each GPU."),
    click.option("--enforce-eager", is_flag=True),
    click.option("--enable-lora", is_flag=True),
    click.option("--max-loras", metavar="N", help="Slots for adapters; 0 without --enable-lora."),
    click.option("--max-lora-rank", metavar="N"),
    click.option(
        "--max-cpu-loras", metavar="N", help="Adapters in host memory; as many as slots unless given."
    ),
    click.option("--lora-dtype", help="float16 or bfloat16; that of the model unless given."),
    click.option("--fully-sharded-loras", is_flag=True),
    click.option(
        "--speculative-config",
        "-sc",
        metavar="JSON",
        help='Such as \'{"method": "eagle3", "model": "/models/eagle3", "num_speculative_tokens": 3}\', or '
        "method=ngram,num_speculative_tokens=4.",
    ),
    click.option(
        "--hf-overrides", metavar="JSON", help="Put in place of settings of the model's config.json."
    ),
)
_GPU = (
    click.option("--gpu", metavar="NAME", help="Such as H100, A100-80, L4."),
    click.option(
        "--gpu-memory", metavar="SIZE", help="Memory of a GPU that is not in the table, such as 96GiB."
    ),
    click.option(
        "--gpu-bandwidth",
        metavar="BYTES/S",
        help="Its bandwidth, such as 3.35e12 or 3.35TB/s; without it there are no decode ceilings.",
    ),
)


_SETTING = click.option(
    "--setting",
    "more",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any other flag of the engine, by its own name. Repeat it for more.",
)
_CALIBRATION = click.option(
    "--calibration",
    type=click.Path(path_type=Path, dir_okay=False),
    help="What was measured on such a server (`brimline calibrate` writes it).",
)


def _with(options: Sequence[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.command()
@click.argument("model", required=False)
@click.argument("launch_command", nargs=-1, type=click.UNPROCESSED, metavar="[-- vllm serve …]")
@click.option(
    "--engine",
    help=f"Whose server is predicted: {DEFAULT_ENGINE} unless the launch command says another.",
)
@click.option("--engine-version", help="Version of the engine; the newest known one unless given.")
@_with(_FLAGS)
@_SETTING
@_with(_GPU)
@_CALIBRATION
@click.option(
    "--acceptance",
    type=click.FloatRange(0, 1),
    metavar="RATIO",
    help="Part of drafted tokens that is accepted, such as 0.8; the decode ceiling then counts speculation.",
)
@click.option(
    "--what-if",
    "questions",
    multiple=True,
    metavar="QUESTION",
    help="Shown apart from the prediction: pod[=SHARE], layerwise-offload, eager-attention, "
    "pruning=structured:0.3|unstructured:0.5|2:4, cla=2. Repeat it for more.",
)
@click.option(
    "--link-bandwidth",
    type=click.FloatRange(0, min_open=True),
    metavar="BYTES/S",
    help="Between a GPU and the host, for layerwise-offload; 64e9 is PCIe 5.0 with 16 lanes.",
)
@click.option("--explain", is_flag=True, help="Show how each number came about.")
@click.option(
    "--allow-hub", is_flag=True, help="Look MODEL up on the Hugging Face hub (needs the extra `hub`)."
)
@click.option("--json", "as_json_", is_flag=True, help="Print JSON.")
@click.option("--fail-if-unfit", is_flag=True, help="Exit 1 where it does not fit or may not start.")
def predict(
    model: str | None,
    launch_command: tuple[str, ...],
    engine: str | None,
    engine_version: str | None,
    more: tuple[str, ...],
    gpu: str | None,
    gpu_memory: str | None,
    gpu_bandwidth: str | None,
    calibration: Path | None,
    acceptance: float | None,
    questions: tuple[str, ...],
    link_bandwidth: float | None,
    explain: bool,
    allow_hub: bool,
    as_json_: bool,
    fail_if_unfit: bool,
    **flags: str | bool | None,
) -> None:
    """Predict the memory of a server before it is started, component by component.

    MODEL is a folder, a config.json, a .gguf file or, with --allow-hub, the name of a model on the hub. Flags
    are vLLM's own; or give the launch command itself behind --, which may name the model:

    \b
    brimline predict /models/llama-8b --gpu H100 -tp 2 --max-model-len 32K
    brimline predict --gpu H100 -- vllm serve /models/llama-8b -tp 2
    brimline predict --gpu L4 -- llama-server -m llama.gguf -c 32768
    """
    import json

    from brimline.errors import FootprintError
    from brimline.footprint.predict import as_json
    from brimline.footprint.predict import predict as predict_footprint
    from brimline.footprint.verdict import judged

    if fail_if_unfit and gpu is None and gpu_memory is None:
        fail("--fail-if-unfit has nothing to judge by; name the GPU with --gpu, or --gpu-memory")
    try:
        launch = _launched(model, launch_command, engine)
        engine, version = launch.engine, engine_version or launch.version
        settings = {**launch.settings, **_own_flags(engine, stated_flags(flags), more)}
        card = described_card(gpu, gpu_memory, gpu_bandwidth)
        read = _read_model(launch.model or "", allow_hub)
        _check_names(engine, read, settings, more)
        footprint = predict_footprint(
            engine,
            read,
            settings,
            version=version,
            gpu=card,
            calibration=_calibration(calibration),
            acceptance=acceptance,
        )
        footprint = replace(footprint, assumptions=(*launch.notes, *footprint.assumptions))
        answers: list[Alternative] = []
        if questions:
            from brimline.footprint.alternatives import Predicted, ask

            predicted = Predicted(
                engine=engine,
                model=read,
                settings=settings,
                footprint=footprint,
                version=version,
                gpu=card,
                link_bandwidth=link_bandwidth,
            )
            answers = [ask(predicted, question) for question in questions]
    except FootprintError as error:
        fail(str(error))
    if as_json_:
        document = as_json(footprint, answers)
        if explain and footprint.explain is not None:
            document["explanation"] = [
                {"topic": step.topic, "formula": step.formula, "numbers": step.numbers, "source": step.source}
                for step in footprint.explain()
            ]
        click.echo(json.dumps(document, indent=2))
    else:
        from brimline.predicted import print_prediction

        print_prediction(footprint, card, answers, explain=explain)
    sys.exit(EXIT_NEGATIVE if fail_if_unfit and judged(footprint, card).outcome != "fits" else 0)


def stated_flags(flags: Mapping[str, str | bool | None]) -> dict[str, str]:
    """The flags that were given, as text."""
    return {
        name: "true" if value is True else str(value)
        for name, value in flags.items()
        if value is not None and value is not False
    }


def _own_flags(engine: str, flags: Mapping[str, str], more: Sequence[str]) -> dict[str, str]:
    """The settings that our own command line gives. Raises FootprintError for flags of another engine."""
    if not more and (engine == DEFAULT_ENGINE or not flags):
        return dict(flags)
    from brimline.engines import ENGINES
    from brimline.engines.launch import normalize
    from brimline.errors import FootprintError

    settings = dict(flags)
    adapter = ENGINES.get(engine)
    if engine != DEFAULT_ENGINE and flags and adapter is not None:
        foreign = sorted(set(flags) - adapter.flags)
        if foreign:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in foreign)
            raise FootprintError(
                f"{named}: no flag of {adapter.title}; give its own as --setting NAME=VALUE, or its launch "
                "command behind --"
            )
    given = {name: f"--{name.replace('_', '-')} {value}" for name, value in flags.items()}
    for text in more:
        stated, is_pair, value = text.partition("=")
        if not is_pair or not stated:
            raise FootprintError(f"--setting {text!r}: write NAME=VALUE, such as max_model_len=32768")
        name = stated.lstrip("-").replace("-", "_")
        name = adapter.launch_flags.get(name, name) if adapter is not None else name
        if name in settings and normalize(name, value) != normalize(name, settings[name]):
            raise FootprintError(
                f"{given[name]} and --setting {text} contradict each other; give one of them"
            )
        settings[name] = value
        given[name] = f"--setting {text}"
    return settings


def _check_names(engine: str, model: Model, settings: Mapping[str, str], more: Sequence[str]) -> None:
    """Raise FootprintError for a --setting on which no memory depends: misspelt, or of another engine."""
    if not more:
        return
    from brimline.engines import ENGINES

    adapter = ENGINES.get(engine)
    flags = adapter.flags if adapter is not None else frozenset()
    stated = [text.partition("=")[0].lstrip("-").replace("-", "_").partition(".")[0] for text in more]
    named = [adapter.launch_flags.get(name, name) if adapter is not None else name for name in stated]
    if unlisted := [name for name in named if name not in flags]:
        from brimline.plan import check_settings

        check_settings(engine, model, settings, unlisted)


class Launch(NamedTuple):
    """What a command line starts. version: where its image names it. notes: what it leaves open."""

    model: str | None
    engine: str
    settings: dict[str, str]
    version: str | None = None
    notes: tuple[str, ...] = ()


def _launched(model: str | None, words: tuple[str, ...], engine: str | None) -> Launch:
    """The model, the engine and the settings that the launch command states. Raises FootprintError."""
    from brimline.errors import FootprintError
    from brimline.footprint.predict import PREDICTORS

    command = [word for word in (model, *words) if word is not None]
    if len(command) > 1 or _is_command_line(command):
        launch = _parsed(command, engine)
        if engine is not None and engine != launch.engine:
            raise FootprintError(f"--engine {engine}, yet the launch command starts {launch.engine}")
    else:
        launch = Launch(model, engine or DEFAULT_ENGINE, {})
    if launch.engine not in PREDICTORS:
        known = ", ".join(sorted(PREDICTORS))
        raise FootprintError(f"the memory of {launch.engine!r} is not predicted; known: {known}")
    if launch.model is None:
        raise FootprintError("no model is named; give a folder, a config.json or a .gguf file")
    return launch


def _is_command_line(command: Sequence[str]) -> bool:
    """True for one word that is a whole command line, as in -- "vllm serve /models/llama"."""
    return len(command) == 1 and len(command[0].split()) > 1 and not Path(command[0]).exists()


def _is_model(word: str) -> bool:
    """True for what is a model rather than a program: a folder, a file of settings, a name of the hub."""
    from brimline.hub import is_hub_name

    path = Path(word)
    if path.exists():
        return path.is_dir() or path.suffix in (".json", ".gguf")
    return is_hub_name(word)


def _parsed(command: list[str], engine: str | None) -> Launch:
    """What a launch command states, which may stand behind a MODEL of ours. Raises FootprintError."""
    from brimline.engines import ENGINES
    from brimline.engines.launch import (
        image_version,
        misspelt,
        parse_launch,
        split_command,
        starts,
        unwrapped,
    )
    from brimline.errors import FootprintError

    behind_model = [(command[0], command[1:])] if _is_model(command[0]) else []
    for model, words in (*behind_model, (None, command)):
        try:
            if _is_command_line(words):
                words = split_command(words[0])
            inner = unwrapped(words, ENGINES.values())
        except ValueError as error:
            raise FootprintError(f"the launch command cannot be read: {error}") from None
        for name, adapter in ENGINES.items():
            if inner and starts(inner, adapter):
                stated = parse_launch(inner, adapter)
                notes = misspelt(stated, adapter, "the launch command")
                stated = _with_config_file(inner, stated, adapter, notes)
                named = stated.pop(adapter.launch_model_flag, None)
                return Launch(
                    model or named,
                    adapter.predictor or name,
                    stated,
                    image_version(words, adapter),
                    tuple(notes),
                )
    wanted = ENGINES[engine].title if engine in ENGINES else "vLLM or another engine known here"
    raise FootprintError(
        f"{' '.join(command[:2])!r} does not start {wanted}; write -- vllm serve MODEL …, or the like"
    )


# Of a server's file of settings.
_MAX_CONFIG_BYTES = 1 << 20


def _with_config_file(
    words: Sequence[str], stated: dict[str, str], adapter: Adapter, notes: list[str]
) -> dict[str, str]:
    """The settings, with those of the file that the command names, if any. Raises FootprintError."""
    import yaml

    from brimline.engines.launch import config_file, misspelt, settings_of_config
    from brimline.errors import FootprintError
    from brimline.files import NotARegularFile, open_regular

    name = config_file(words, adapter)
    if name is None:
        return stated
    try:
        with open_regular(name) as file:
            content = file.read(_MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        notes.append(
            f"{name}, which the launch command names, does not exist here: its settings are not known."
        )
        return stated
    except NotARegularFile:
        raise FootprintError(
            f"{name} is not a regular file; the launch command names it for settings"
        ) from None
    except OSError as error:
        raise FootprintError(f"{name} cannot be read ({error.strerror})") from None
    try:
        plain = yaml.safe_load(content) if len(content) <= _MAX_CONFIG_BYTES else None
    except (yaml.YAMLError, ValueError, RecursionError):
        plain = None
    if not isinstance(plain, dict) or not all(isinstance(key, str) for key in plain):
        raise FootprintError(f"{name} holds no YAML mapping of settings, as the launch command says it does")
    read = settings_of_config(plain, adapter)
    notes += misspelt(read, adapter, name)
    return {**stated, **read} if adapter.config_wins else {**read, **stated}


def _read_model(name: str, allow_hub: bool) -> Model:
    """The model at a path, or of the hub where that is allowed. Raises FootprintError."""
    from brimline.errors import FootprintError
    from brimline.footprint.predict import read_model

    path = Path(name)
    if path.exists():
        return read_model(path)
    from brimline.hub import is_hub_name, read_hub_model

    if not is_hub_name(name):
        raise FootprintError(f"{name} does not exist here; give a folder, a config.json or a .gguf file")
    if not allow_hub:
        raise FootprintError(f"{name} does not exist here; --allow-hub looks it up on the Hugging Face hub")
    return read_hub_model(name)


def _calibration(path: Path | None) -> Any:
    if path is None:
        return None
    from brimline.footprint.calibration import read_calibration

    return read_calibration(path)


def described_card(name: str | None, memory: str | None, bandwidth: str | None) -> Gpu | None:
    """The GPU that the flags name or describe; None without one. Raises FootprintError."""
    from brimline.errors import FootprintError
    from brimline.footprint.gpus import described_gpu, find_gpu
    from brimline.units import parse_bytes

    if name is not None and memory is not None:
        raise FootprintError("--gpu and --gpu-memory name two GPUs; give one of them")
    if bandwidth is not None and memory is None:
        raise FootprintError("--gpu-bandwidth is of a GPU that --gpu-memory describes; give that, too")
    if name is not None:
        return find_gpu(name, instead="describe it with --gpu-memory 96GiB --gpu-bandwidth 3.35e12")
    if memory is None:
        return None
    try:
        size = parse_bytes(memory)
    except ValueError as error:
        raise FootprintError(f"--gpu-memory: {error}") from None
    try:
        return described_gpu(size, None if bandwidth is None else _bandwidth(bandwidth))
    except FootprintError as error:
        raise FootprintError(f"--gpu-memory, --gpu-bandwidth: {error}") from None


def _bandwidth(text: str) -> float:
    """Bytes per second in 3.35e12 or 3.35TB/s. Raises FootprintError."""
    from brimline.errors import FootprintError
    from brimline.units import parse_bytes

    stated = text.strip().removesuffix("/s")
    try:
        return float(stated)
    except ValueError:
        pass
    try:
        return float(parse_bytes(stated))
    except ValueError:
        raise FootprintError(f"{text!r} is no bandwidth; write it as 3.35e12 or 3.35TB/s") from None
