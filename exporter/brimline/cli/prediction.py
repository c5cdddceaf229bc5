"""predict: what a server should use, before it is started."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brimline.cli.common import EXIT_NEGATIVE, fail

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from brimline.footprint.gpus import Gpu

    Command = Callable[..., Any]


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
    click.option("--enable-expert-parallel", is_flag=True),
    click.option("--gpu-memory-utilization", metavar="RATIO"),
    click.option("--kv-cache-memory-bytes", metavar="SIZE"),
    click.option("--num-gpu-blocks-override", metavar="N"),
    click.option("--cpu-offload-gb", metavar="GIB"),
    click.option("--enforce-eager", is_flag=True),
    click.option("--max-loras", metavar="N", help="Slots for adapters; 0 without --enable-lora."),
    click.option("--max-lora-rank", metavar="N"),
)
_GPU = (
    click.option("--gpu", metavar="NAME", help="Such as H100, A100-80, L4."),
    click.option(
        "--gpu-memory", metavar="SIZE", help="Memory of a GPU that is not in the table, such as 96GiB."
    ),
    click.option("--gpu-bandwidth", type=float, metavar="BYTES/S", help="Its bandwidth, such as 3.35e12."),
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
@click.option("--engine-version", help="Version of vLLM; the newest known one unless given.")
@_with(_FLAGS)
@_with(_GPU)
@click.option("--json", "as_json_", is_flag=True, help="Print JSON.")
@click.option("--fail-if-unfit", is_flag=True, help="Exit 1 where it does not fit.")
def predict(
    model: str | None,
    launch_command: tuple[str, ...],
    engine_version: str | None,
    gpu: str | None,
    gpu_memory: str | None,
    gpu_bandwidth: float | None,
    as_json_: bool,
    fail_if_unfit: bool,
    **flags: str | bool | None,
) -> None:
    """Predict the memory of a vLLM server before it is started, component by component.

    MODEL is a folder, a config.json or a .gguf file. Flags are vLLM's own; or give the launch command itself
    behind --, as in: brimline predict --gpu H100 -- vllm serve /models/llama -tp 2
    """
    import json

    from brimline.errors import FootprintError
    from brimline.footprint.predict import as_json, read_model
    from brimline.footprint.predict import predict as predict_footprint

    try:
        path, settings = _launched(model, launch_command, stated_flags(flags))
        card = described_card(gpu, gpu_memory, gpu_bandwidth)
        footprint = predict_footprint("vllm", read_model(path), settings, version=engine_version, gpu=card)
    except FootprintError as error:
        fail(str(error))
    if as_json_:
        click.echo(json.dumps(as_json(footprint), indent=2))
    else:
        from rich.console import Console

        from brimline.predicted import print_footprint

        print_footprint(footprint, Console(markup=False, highlight=False), card)
    sys.exit(EXIT_NEGATIVE if fail_if_unfit and footprint.fits is False else 0)


def stated_flags(flags: Mapping[str, str | bool | None]) -> dict[str, str]:
    """The flags that were given, as text."""
    return {
        name: "true" if value is True else str(value)
        for name, value in flags.items()
        if value is not None and value is not False
    }


def _launched(
    model: str | None, words: tuple[str, ...], flags: Mapping[str, str]
) -> tuple[Path, dict[str, str]]:
    """The model's path and the settings; flags of our own command go before those of the launch command."""
    from brimline.engines import ENGINES
    from brimline.engines.launch import parse_launch, starts
    from brimline.errors import FootprintError

    stated: dict[str, str] = {}
    command = [word for word in (model, *words) if word is not None]
    if len(command) > 1:
        adapter = ENGINES["vllm"]
        if not starts(command, adapter):
            raise FootprintError(
                f"{' '.join(command[:2])!r} does not start vLLM; write -- vllm serve MODEL …"
            )
        stated = parse_launch(command, adapter)
        model = stated.pop("model", None)
    if model is None:
        raise FootprintError("no model is named; give a folder, a config.json or a .gguf file")
    if not Path(model).exists():
        raise FootprintError(f"{model} does not exist here; give a folder, a config.json or a .gguf file")
    return Path(model), {**stated, **flags}


def described_card(name: str | None, memory: str | None, bandwidth: float | None) -> Gpu | None:
    """The GPU that the flags name or describe; None without one. Raises FootprintError."""
    from brimline.errors import FootprintError
    from brimline.footprint.gpus import described_gpu, find_gpu
    from brimline.units import parse_bytes

    if name is not None and memory is not None:
        raise FootprintError("--gpu and --gpu-memory name two GPUs; give one of them")
    if memory is None:
        return find_gpu(name) if name is not None else None
    if bandwidth is None:
        raise FootprintError("--gpu-memory needs --gpu-bandwidth beside it, such as 3.35e12")
    try:
        size = parse_bytes(memory)
    except ValueError as error:
        raise FootprintError(f"--gpu-memory: {error}") from None
    return described_gpu(size, bandwidth)
