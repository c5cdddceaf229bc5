"""estimate: what else takes memory besides serving: training, embeddings and the indexes over them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brimline.cli.common import EXIT_NEGATIVE, fail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from brimline.estimated import Estimated
    from brimline.footprint.gpus import Gpu
    from brimline.footprint.index_memory import Vectors
    from brimline.footprint.part import Part
    from brimline.footprint.training import TrainedModel

_GPU = click.option("--gpu", metavar="NAME", help="Say whether it fits this one, such as H100, A100-80, L4.")
_JSON = click.option("--json", "as_json_", is_flag=True, help="Print JSON.")
_FAIL = click.option("--fail-if-unfit", is_flag=True, help="Exit 1 where it does not fit.")
# In the order of ELEMENT_BYTES.
_ELEMENTS = ("float32", "float16", "bfloat16", "int8", "binary")
_WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@click.group()
def estimate() -> None:
    """Estimate memory that no server shows: of training, and of embeddings and their indexes."""


@estimate.command()
@click.argument("model", required=False)
@click.option("--parameters", metavar="N", help="Without MODEL: how many, such as 7B (7 × 10^9).")
@click.option(
    "--optimizer",
    type=click.Choice(("adam", "adamw", "adamw-8bit", "adagrad", "sgd-momentum", "sgd")),
    default="adamw",
    show_default=True,
)
@click.option(
    "--dtype",
    type=click.Choice(tuple(_WEIGHT_BYTES)),
    default="bfloat16",
    show_default=True,
    help="Of weights and gradients.",
)
@click.option(
    "--moments",
    type=click.Choice(("float32", "bfloat16")),
    default="float32",
    show_default=True,
    help="Type of the optimizer's moments.",
)
@click.option(
    "--fp32-master/--no-fp32-master",
    "fp32_master",
    default=None,
    help="A copy of the trained weights in fp32; there unless --dtype float32.",
)
@click.option(
    "--zero", "zero_stage", type=click.IntRange(0, 3), default=0, show_default=True,
    help="ZeRO stage; 3 is FSDP's full shard.",
)  # fmt: skip
@click.option(
    "--gpus", type=click.IntRange(1), default=1, show_default=True, help="All GPUs of the training."
)
@click.option("--tensor-parallel", type=click.IntRange(1), default=1, show_default=True)
@click.option("--lora-rank", type=click.IntRange(1), metavar="R", help="Train adapters of this rank only.")
@click.option(
    "--lora-targets", metavar="NAMES", help="Such as q_proj,v_proj; every linear layer unless given."
)
@click.option("--qlora", is_flag=True, help="Keep the frozen weights in 4 bits; needs --lora-rank.")
@click.option(
    "--batch", type=click.IntRange(1), default=1, show_default=True, help="Sequences of one step on a GPU."
)
@click.option(
    "--sequence", metavar="TOKENS", default="2048", show_default=True,
    help="Tokens of each: 8192, 32k (32,000) or 32K (32,768).",
)  # fmt: skip
@click.option(
    "--checkpointing",
    type=click.Choice(("none", "selective", "full")),
    default="selective",
    show_default=True,
    help="Activations kept: all, all but attention scores (as fused attention does), or each layer's input.",
)
@_GPU
@_JSON
@_FAIL
def training(model: str | None, as_json_: bool, fail_if_unfit: bool, **flags: Any) -> None:
    """Estimate the memory of training on each GPU: weights, gradients, optimizer, activations.

    MODEL is a folder, a config.json or a .gguf file; without one, --parameters, and activations are not
    counted. GB are 10^9 bytes, GiB 2^30.

    \b
    brimline estimate training --parameters 7B --no-fp32-master
    brimline estimate training /models/llama-8b --lora-rank 16 --lora-targets q_proj,v_proj --qlora --gpu L4
    brimline estimate training /models/llama-8b --zero 3 --gpus 8 --sequence 8192 --checkpointing full \\
        --gpu H100
    """
    from brimline.errors import FootprintError

    if fail_if_unfit and flags["gpu"] is None:
        fail("--fail-if-unfit has nothing to judge by; name the GPU with --gpu")
    try:
        estimated = _training(model, flags)
    except FootprintError as error:
        fail(str(error))
    _show(estimated, as_json_, fail_if_unfit)


def _training(model: str | None, flags: dict[str, Any]) -> Estimated:
    from brimline.errors import FootprintError
    from brimline.estimated import Estimated
    from brimline.footprint.constants import constant
    from brimline.footprint.gpus import find_gpu
    from brimline.footprint.part import Part
    from brimline.footprint.settings import count
    from brimline.footprint.training import TrainingSettings, training_footprint

    gpus, tensor = flags["gpus"], flags["tensor_parallel"]
    if gpus % tensor:
        raise FootprintError(
            f"--gpus {gpus} cannot be shared out by --tensor-parallel {tensor}; divide evenly"
        )
    if flags["zero_stage"] and gpus == tensor:
        raise FootprintError(
            f"--zero {flags['zero_stage']} divides among --gpus, of which there is one; name more"
        )
    if flags["lora_rank"] is None:
        for name in ("qlora", "lora_targets"):
            if flags[name]:
                raise FootprintError(f"--{name.replace('_', '-')} is of adapters; give --lora-rank too")
    master = flags["fp32_master"]
    if flags["dtype"] == "float32" and master:
        raise FootprintError(
            "--fp32-master is a second copy where --dtype is float32 already; drop one of them"
        )
    settings = TrainingSettings(
        method="full" if flags["lora_rank"] is None else "qlora" if flags["qlora"] else "lora",
        optimizer=flags["optimizer"],
        moment_bytes=_WEIGHT_BYTES[flags["moments"]],
        world_size=gpus // tensor,
        zero_stage=flags["zero_stage"],
        master_weights=flags["dtype"] != "float32" if master is None else master,
        weight_bytes=_WEIGHT_BYTES[flags["dtype"]],
        gradient_bytes=_WEIGHT_BYTES[flags["dtype"]],
        batch=flags["batch"],
        sequence_tokens=count({"sequence": flags["sequence"]}, "sequence") or 1,
        checkpointing=flags["checkpointing"],
        tensor_parallel=tensor,
    )
    trained = _trained_model(model, flags)
    gpu = None if flags["gpu"] is None else find_gpu(flags["gpu"], instead="leave --gpu out")
    footprint = training_footprint(trained, settings)
    parts, assumptions = [*footprint.parts], [*footprint.assumptions]
    if gpu is not None:
        variant = "multi" if gpus > 1 else ""
        row = constant("context_bytes", engine="vllm", gpu=gpu.name, variant=variant)
        parts.append(Part("context", row.estimate(), "CUDA context and libraries, as measured for vLLM"))
        assumptions += [gpu.assumption] if gpu.assumption else []
        assumptions.append("The allocator's fragmentation is not counted.")
    if gpus > tensor and not flags["zero_stage"]:
        assumptions.append("Without --zero each GPU, or group of --tensor-parallel, holds all of it.")
    whose = f"each of {gpus} GPUs" if gpus > 1 else "one GPU"
    where = f"This is the memory of {whose}{'' if gpu is None else f' ({gpu.name})'}."
    return Estimated(
        title=_title(trained, settings.method),
        where=where,
        parts=tuple(parts),
        capacity=None if gpu is None else gpu.visible_bytes,
        assumptions=tuple(dict.fromkeys(assumptions)),
    )


def _title(trained: TrainedModel, method: str) -> str:
    if method == "full":
        return f"Training {trained.parameters:,} parameters"
    return f"Training {trained.trained_parameters:,} parameters of adapters beside {trained.parameters:,}"


def _trained_model(model: str | None, flags: dict[str, Any]) -> TrainedModel:
    """The model of MODEL or --parameters. Raises FootprintError."""
    from brimline.errors import FootprintError
    from brimline.footprint.hf_config import read_architecture
    from brimline.footprint.training import TrainedModel, trained_model

    if (model is None) == (flags["parameters"] is None):
        raise FootprintError("the size is not known; give either MODEL or --parameters, such as 7B")
    rank = flags["lora_rank"]
    if model is not None:
        if not Path(model).exists():
            raise FootprintError(f"{model} does not exist here; give a folder, a config.json or a .gguf file")
        targets = flags["lora_targets"]
        names = None if targets is None else frozenset(name.strip() for name in targets.split(","))
        return trained_model(read_architecture(Path(model)), rank=rank, targets=names)
    if rank is not None:
        raise FootprintError("--lora-rank needs the model's layers to know its adapters; give MODEL")
    count = _count(flags["parameters"], "--parameters")
    return TrainedModel(parameters=count, layers=0, hidden=0, heads=0)


@estimate.command()
@click.option("--vectors", required=True, metavar="N", help="How many, such as 100M (10^8) or 1e8.")
@click.option("--dimensions", required=True, type=click.IntRange(1), metavar="D")
@click.option(
    "--type",
    "kind",
    type=click.Choice(("flat", "hnsw", "ivf", "pq", "ivf-pq", "table")),
    help="table: embeddings that are looked up by row, not searched. All searched ones unless given.",
)
@click.option("--element", type=click.Choice(_ELEMENTS), default="float32", show_default=True)
@click.option(
    "--links", type=int, default=32, show_default=True, metavar="M", help="Of a vector in an HNSW graph."
)
@click.option("--lists", type=int, metavar="N", help="Of an inverted file; 4 × √vectors unless given.")
@click.option("--parts", type=int, metavar="P", help="Of a code; one for 8 dimensions unless given.")
@click.option("--bits", type=int, default=8, show_default=True, help="Of each part of a code.")
@click.option(
    "--optimizer",
    type=click.Choice(("none", "sgd", "adam", "adagrad", "rowwise-adagrad")),
    default="none",
    show_default=True,
    help="That trains a table.",
)
@click.option("--memory", metavar="SIZE", help="Say whether it fits a host with so much, such as 256GiB.")
@_GPU
@_JSON
@_FAIL
def index(as_json_: bool, fail_if_unfit: bool, **flags: Any) -> None:
    """Estimate the memory of embeddings: an index over them, or a table of them.

    An index lies in main memory as a rule; --gpu asks for one that Faiss holds on a GPU.

    \b
    brimline estimate index --vectors 100M --dimensions 768
    brimline estimate index --vectors 100M --dimensions 768 --type hnsw --links 16 --memory 512GiB
    brimline estimate index --vectors 1B --dimensions 96 --type ivf-pq --lists 262144 --parts 48 --gpu A100
    brimline estimate index --vectors 10M --dimensions 128 --type table --optimizer rowwise-adagrad
    """
    from brimline.errors import FootprintError

    if fail_if_unfit and flags["gpu"] is None and flags["memory"] is None:
        fail("--fail-if-unfit has nothing to judge by; give --memory, or --gpu")
    try:
        rows = _indexes(flags)
    except FootprintError as error:
        fail(str(error))
    if len(rows) == 1:
        _show(rows[0][1], as_json_, fail_if_unfit)
    _show_comparison(rows, as_json_, fail_if_unfit)


def _indexes(flags: dict[str, Any]) -> list[tuple[str, Estimated]]:
    """The asked index, or all that can be made of these vectors."""
    from brimline.errors import FootprintError
    from brimline.estimate import exact
    from brimline.estimated import Estimated
    from brimline.footprint.gpus import find_gpu
    from brimline.footprint.index_memory import ELEMENT_BYTES, KINDS, Vectors, gpu_search_bytes
    from brimline.units import parse_bytes

    if flags["gpu"] is not None and flags["memory"] is not None:
        raise FootprintError("--gpu and --memory name two places; give one of them")
    if flags["optimizer"] != "none" and flags["kind"] != "table":
        raise FootprintError("--optimizer trains a table of embeddings; give --type table too")
    vectors = Vectors(
        count=_count(flags["vectors"], "--vectors"),
        dimensions=flags["dimensions"],
        element_bytes=ELEMENT_BYTES[flags["element"]],
    )
    gpu: Gpu | None = None if flags["gpu"] is None else find_gpu(flags["gpu"], instead="give its --memory")
    capacity = None if gpu is None else gpu.visible_bytes
    if flags["memory"] is not None:
        try:
            capacity = exact(parse_bytes(flags["memory"]), "--memory")
        except ValueError as error:
            raise FootprintError(f"--memory: {error}") from None
    rows = []
    for kind in [flags["kind"]] if flags["kind"] else [one for one in KINDS if one != "table"]:
        assumptions: list[str] = []
        parts = _index_parts(kind, vectors, flags, assumptions)
        if gpu is not None:
            parts = (*parts, gpu_search_bytes(gpu.memory_bytes)) if kind != "table" else parts
            assumptions += [gpu.assumption] if gpu.assumption else []
        rows.append(
            (
                kind,
                Estimated(
                    title=f"{vectors.count:,} vectors of {vectors.dimensions:,} dimensions",
                    where=_place(kind, gpu),
                    parts=parts,
                    capacity=capacity,
                    assumptions=tuple(assumptions),
                ),
            )
        )
    return rows


def _place(kind: str, gpu: Gpu | None) -> str:
    if gpu is not None:
        return f"This is the memory of one GPU ({gpu.name})."
    if kind == "table":
        return "A table lies where it is looked up: on the GPU with its model, or in main memory."
    return (
        "This is main memory: an index lies in the RAM of its host, not on a GPU, unless it is moved there."
    )


def _index_parts(
    kind: str, vectors: Vectors, flags: dict[str, Any], assumptions: list[str]
) -> tuple[Part, ...]:
    """The parts of an index of that kind. Raises FootprintError naming the flag."""
    from brimline.errors import FootprintError
    from brimline.footprint import index_memory as memory

    lists, parts, bits = flags["lists"], flags["parts"], flags["bits"]
    if lists is None and kind in ("ivf", "ivf-pq"):
        lists = memory.default_lists(vectors)
        assumptions.append(f"--lists {lists:,} is taken: 4 × √vectors, the least of Faiss's guidelines.")
    if parts is None and kind in ("pq", "ivf-pq"):
        parts = memory.default_parts(vectors)
        if parts is None:
            raise FootprintError(f"--parts is needed: {vectors.dimensions} dimensions are no multiple of 8")
        assumptions.append(f"--parts {parts} is taken: one for every 8 dimensions.")
    match kind:
        case "flat":
            return memory.flat(vectors)
        case "hnsw":
            return memory.hnsw(vectors, flags["links"])
        case "ivf":
            return memory.ivf(vectors, lists)
        case "pq":
            return memory.pq(vectors, parts, bits)
        case "ivf-pq":
            return memory.ivf_pq(vectors, lists, parts, bits)
        case _:
            return memory.table(vectors, flags["optimizer"])


def _count(text: str, flag: str) -> int:
    """A decimal count as people write it: 7B, 100M, 1e8. Raises FootprintError naming the flag."""
    from brimline.errors import FootprintError

    powers = {"k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
    plain = text.strip().replace(",", "").replace("_", "")
    power = powers.get(plain[-1:].lower(), 1)
    try:
        value = float(plain[:-1] if power > 1 else plain) * power
        whole = round(value)
    except (ValueError, OverflowError):
        whole = 0
    if whole > 10**15:
        raise FootprintError(f"{flag}: {text!r} is more than 10^15; write it as 7B, 100M or 1e8")
    if whole < 1:
        raise FootprintError(f"{flag}: {text!r} is not a count; write it as 7B, 100M or 1e8")
    return whole


def _show(estimated: Estimated, as_json_: bool, fail_if_unfit: bool) -> None:
    import json

    from brimline.estimated import as_json, print_estimated

    if as_json_:
        click.echo(json.dumps(as_json(estimated), indent=2))
    else:
        print_estimated(estimated, _console())
    sys.exit(EXIT_NEGATIVE if fail_if_unfit and estimated.fits is False else 0)


def _show_comparison(rows: Sequence[tuple[str, Estimated]], as_json_: bool, fail_if_unfit: bool) -> None:
    import json

    from brimline.estimated import SCHEMA_VERSION, as_json, print_comparison

    if as_json_:
        types = {kind: as_json(estimated) for kind, estimated in rows}
        click.echo(json.dumps({"schema_version": SCHEMA_VERSION, "types": types}, indent=2))
    else:
        print_comparison(rows, _console())
    fits = any(estimated.fits is not False for _, estimated in rows)
    sys.exit(EXIT_NEGATIVE if fail_if_unfit and not fits else 0)


def _console() -> Any:
    from rich.console import Console

    return Console(markup=False, highlight=False)
