"""A predicted footprint as people read it."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from brimline import units
from brimline.footprint.gpus import Gpu
from brimline.footprint.predict import decode_ceilings, in_order
from brimline.footprint.verdict import judged
from brimline.readings import Footprint, KvCacheFootprint, RankFootprint, Step
from brimline.tables import Console, Table

if TYPE_CHECKING:
    from brimline.footprint.alternatives import Alternative, Figure

# Where the output is no terminal and nobody tells a width.
WIDTH = 100
# Of a source in the table; the whole stands in --explain and in the JSON.
_SOURCE_LENGTH = 90


def print_prediction(
    footprint: Footprint, gpu: Gpu | None, answers: Sequence[Alternative] = (), *, explain: bool = False
) -> None:
    """Print a prediction to standard output, and apart from it what was asked besides."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = max(console.width, WIDTH)
    print_footprint(footprint, console, gpu)
    if explain:
        print_steps(footprint, console)
    for answer in answers:
        print_alternative(answer, console)


def print_footprint(footprint: Footprint, console: Console, gpu: Gpu | None) -> None:
    """Print the fullest GPU's components with their share and source, the KV cache, and what was assumed."""
    rank = footprint.fullest
    where = f" on the fullest of {len(footprint.ranks)} pipeline stages" if len(footprint.ranks) > 1 else ""
    on_gpu = bool(rank.components)
    if on_gpu:
        console.print(_components(footprint, rank, f"Memory of one GPU{where}"))
    else:
        console.print("No GPU memory is predicted: the server runs on the CPU.")
    workers = footprint.tensor_parallel * len(footprint.ranks)
    for name, part in rank.host.items():
        for_each = ", for each GPU" if on_gpu else ", for each worker" if workers > 1 else ""
        console.print(
            _row("host memory", f"{_spread(part.low, part.expected, part.high)} of {name}{for_each}")
        )
    cache = footprint.kv_cache
    context = cache.max_model_len_tokens
    console.print(_row("parameters", units.format_count(footprint.parameters)))
    console.print(_row("KV cache", _per_token(cache, " on each GPU" if on_gpu else "")))
    one = units.format_bytes(cache.full_request_bytes)
    console.print(_row("", f"{one} for one request of {units.format_count(context)} tokens"))
    if cache.num_blocks is not None:
        blocks, tokens = map(units.format_count, (cache.num_blocks.expected, cache.capacity_tokens))
        console.print(_row("", f"{blocks} blocks, {tokens} tokens"))
    if cache.max_concurrency_requests is not None:
        console.print(_row("", f"{cache.max_concurrency_requests:.2f} requests of full length at once"))
    for batch, tokens_, rate in decode_ceilings(footprint):
        load = f"batch {batch} at {units.format_count(tokens_)} tokens"
        said = f"{load}: at most {units.format_count(rate)} tokens/s"
        if footprint.even_ceiling is not None and batch > 1:
            evenly = units.format_count(footprint.even_ceiling(batch, tokens_))
            said += f", {evenly} with experts routed evenly"
        console.print(_row("decode ceiling", said))
    for line in _verdict(footprint, gpu):
        console.print(line)
    for assumption in footprint.assumptions:
        console.print(f"! {assumption}")


def _per_token(cache: KvCacheFootprint, where: str) -> str:
    """What a token costs; of windows, up to which length it does."""
    then = f"{units.format_count(cache.bytes_per_token)} B/token"
    if cache.window_bytes_per_token is None or cache.window_tokens is None:
        return f"{then}{where}"
    within = units.format_count(cache.window_bytes_per_token)
    window = units.format_count(cache.window_tokens)
    return f"{within} B/token{where} up to the window of {window} tokens, {then} beyond"


def _row(title: str, text: str) -> str:
    return f"{title:17} {text}"


def _spread(low: int, expected: int, high: int) -> str:
    size = units.format_bytes(expected)
    return size if low == high else f"{size} ({units.format_bytes(low)} to {units.format_bytes(high)})"


def _components(footprint: Footprint, rank: RankFootprint, title: str) -> Table:
    whole = rank.total
    table = Table(title)
    table.add_column("component", no_wrap=True)
    for bound in ("low", "expected", "high"):
        table.add_column(bound, justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("from")
    for name, part in in_order(rank.components).items():
        sizes = map(units.format_bytes, (part.low, part.expected, part.high))
        share = part.expected / whole.expected if whole.expected else None
        table.add_row(name, *sizes, units.format_ratio(share), _short(part.source, footprint.model_source))
    table.add_section()
    sizes = map(units.format_bytes, (whole.low, whole.expected, whole.high))
    table.add_row("total", *sizes, "", whole.source)
    return table


def _short(source: str, model_source: str) -> str:
    """A source that fits a table: the model's file by its name, and no more than a few lines."""
    if model_source:
        source = source.replace(model_source, PurePath(model_source).name)
    parts = list(dict.fromkeys(source.split("; ")))
    return textwrap.shorten("; ".join(parts), _SOURCE_LENGTH, placeholder=" …")


def _verdict(footprint: Footprint, gpu: Gpu | None) -> list[str]:
    """Whether it fits, and where the engine has a rule of its own, whether it starts."""
    if not footprint.fullest.components:
        return []
    found = judged(footprint, gpu)
    if found.outcome == "unknown" or gpu is None:
        return ["Whether it fits is not known without --gpu."]
    seen = units.format_bytes(gpu.visible_bytes.expected)
    if found.outcome == "fits":
        headroom = units.format_bytes(footprint.headroom_bytes)
        return [_row(gpu.name, f"fits; {headroom} stay free of {seen} that CUDA shows")]
    where = f" into the {seen} that CUDA shows" if found.outcome == "too_large" else ""
    return [_row(gpu.name, f"{found.word}{where}: {found.reason}")]


def print_steps(footprint: Footprint, console: Console) -> None:
    """Print how the prediction came about, step by step; the sources alone where no steps are known."""
    console.print("\nHow each number came about")
    steps = footprint.explain() if footprint.explain is not None else _bare(footprint)
    topic = ""
    width = min(console.width, 120)
    for step in steps:
        head, _, name = step.topic.partition(": ")
        if head != topic:
            console.print(f"\n{head}")
            topic = head
        source = step.source.replace(footprint.model_source, PurePath(footprint.model_source).name)
        for place, text in enumerate((step.numbers, step.formula, f"source: {source}" if source else "")):
            if text:
                title = (name or head) if not place else ""
                console.print(
                    textwrap.fill(
                        text,
                        width,
                        initial_indent=f"  {title:16}  " if place == 0 else " " * 20,
                        subsequent_indent=" " * 22,
                        break_long_words=False,
                        break_on_hyphens=False,
                    ),
                    soft_wrap=True,
                )


def _bare(footprint: Footprint) -> tuple[Step, ...]:
    rank = footprint.fullest
    parts = {
        **in_order(rank.components),
        **{f"{name} in host memory": part for name, part in rank.host.items()},
    }
    return tuple(
        Step(name, "", _spread(part.low, part.expected, part.high), part.source)
        for name, part in parts.items()
    )


def print_alternative(answer: Alternative, console: Console) -> None:
    """Print the answer to a question, which is no part of the prediction."""
    console.print()
    table = Table(f"What if: {answer.title}")
    table.add_column("")
    bounded = any(figure.low is not None for figure in answer.figures)
    for column in ("predicted", "then", "least", "most")[: 4 if bounded else 2]:
        table.add_column(column, justify="right", no_wrap=True)
    for figure in answer.figures:
        values = (figure.now, figure.then, figure.low, figure.high)[: 4 if bounded else 2]
        table.add_row(figure.name, *(_figure(figure, value) for value in values))
    console.print(table)
    if answer.parameters:
        stated = ", ".join(f"{name} {_parameter(value)}" for name, value in answer.parameters.items())
        console.print(f"with {stated}")
    console.print(f"source: {answer.source}")
    for note in answer.notes:
        console.print(f"! {note}")


def _parameter(value: float | int | str) -> str:
    return value if isinstance(value, str) else f"{value:,g}"


def _figure(figure: Figure, value: float | None) -> str:
    if value is None:
        return ""
    match figure.unit:
        case "bytes":
            return units.format_bytes(value)
        case "ratio":
            return units.format_ratio(value)
        case "requests":
            return f"{value:.2f}"
        case "tokens_per_second":
            return f"{value:,.2f}/s" if value < 100 else f"{value:,.0f}/s"
        case _:
            return units.format_count(value)
