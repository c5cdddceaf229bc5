"""A predicted footprint as people read it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from brimline import units
from brimline.footprint.gpus import Gpu
from brimline.footprint.predict import decode_ceilings, in_order
from brimline.readings import Footprint


def print_footprint(footprint: Footprint, console: Console, gpu: Gpu | None) -> None:
    """Print the fullest GPU's components with their share and source, the KV cache, and what was assumed."""
    rank, cache = footprint.fullest, footprint.kv_cache
    whole = rank.total
    where = f" on the fullest of {len(footprint.ranks)} pipeline stages" if len(footprint.ranks) > 1 else ""
    table = Table(title=f"Memory of one GPU{where}", title_justify="left")
    for column, justify in (
        ("component", "left"),
        ("low", "right"),
        ("expected", "right"),
        ("high", "right"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    table.add_column("share", justify="right")
    table.add_column("from", overflow="fold")
    for name, part in in_order(rank.components).items():
        sizes = map(units.format_bytes, (part.low, part.expected, part.high))
        share = part.expected / whole.expected if whole.expected else None
        table.add_row(name, *sizes, units.format_ratio(share), part.source)
    table.add_section()
    table.add_row("total", *map(units.format_bytes, (whole.low, whole.expected, whole.high)), "", "")
    console.print(table)
    context = cache.max_model_len_tokens
    console.print(f"parameters        {units.format_count(footprint.parameters)}")
    console.print(f"KV cache          {units.format_count(cache.bytes_per_token)} B/token on each GPU")
    one = units.format_bytes(cache.full_request_bytes)
    console.print(f"                  {one} for one request of {units.format_count(context)} tokens")
    if cache.num_blocks is not None:
        blocks, tokens = map(units.format_count, (cache.num_blocks.expected, cache.capacity_tokens))
        console.print(f"                  {blocks} blocks, {tokens} tokens")
    if cache.max_concurrency_requests is not None:
        console.print(
            f"                  {cache.max_concurrency_requests:.2f} requests of full length at once"
        )
    for batch, tokens_, rate in decode_ceilings(footprint):
        load = f"batch {batch} at {units.format_count(tokens_)} tokens"
        console.print(f"decode ceiling    {load}: at most {units.format_count(rate)} tokens/s")
    if footprint.fits is not None and gpu is not None:
        headroom = units.format_bytes(footprint.headroom_bytes)
        said = f"fits; {headroom} stay free" if footprint.fits else "DOES NOT FIT, by the high bounds"
        console.print(
            f"{gpu.name:17} {said} of {units.format_bytes(gpu.visible_bytes.expected)} that CUDA shows"
        )
    else:
        console.print("Whether it fits is not known without --gpu.")
    for assumption in footprint.assumptions:
        console.print(f"! {assumption}")
