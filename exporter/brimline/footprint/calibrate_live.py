"""Constants from what a running server exposes, with the memory of its GPUs.

vLLM has no gauges of memory. It tells gpu_memory_utilization, and the blocks of its pool; with NVML and the
model's files that makes

    budget = ceil((total - reserved) * gpu_memory_utilization)     exact with NVML's memory v2
    pool = blocks * bytes of a block                               right to within one block
    non_kv_bytes = budget - pool                                   so this is, too

The sum holds weights, activation peak, library memory and the estimate of CUDA graphs. No part of it is told
apart, so none is written; whoever shows parts shares the sum out by the table (calibrated.py).

What lies outside the budget is bounded: a server that has reached its activation peak uses budget and
context, one that has not uses less. So what is used beyond the budget is the least that the context can be,
as long as CUDA graphs took what was estimated and nothing else is on the GPU. The most is the table's. Both
are written.

SGLang measures weights, pool and CUDA graphs itself; they are written as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from brimline.estimate import Estimate
from brimline.footprint.calibration import Calibration
from brimline.footprint.findings import (
    Findings,
    Outcome,
    filled_batch,
    launch_of,
    nothing,
    predictable,
    span,
    vllm_runtime,
)
from brimline.footprint.gpus import Gpu
from brimline.footprint.predict import Model, predict
from brimline.footprint.runtime import (
    RuntimeSettings,
    context_bytes,
    cuda_graphs_bytes,
    graphs_count_in_budget,
    non_torch_bytes,
    vllm_budget_bytes,
)
from brimline.readings import DeviceReading, EngineReading, TargetSnapshot
from brimline.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A running server, as one round saw it.

    devices: the GPUs that belong to it. gpu: their kind; None where neither NVML nor the user tells it.
    launch_known: its launch settings are known, so that none is silently a default. others: what else is on
    its GPUs, a sentence each.
    """

    target: TargetSnapshot
    devices: tuple[DeviceReading, ...] = ()
    gpu: Gpu | None = None
    model: Model | None = None
    launch_known: bool = True
    others: tuple[str, ...] = ()

    @property
    def gpu_name(self) -> str:
        """The GPU's name as NVML says it, where it does."""
        known = self.gpu.name if self.gpu is not None else ""
        return next((device.name for device in self.devices if device.name), known)


def from_server(observed: Observed) -> Outcome:
    """What a running server tells. Raises FootprintError where its settings or its model make no sense."""
    target = observed.target
    reading = target.reading
    if reading is None:
        return nothing(*(f"{problem.reason}: {problem.detail}" for problem in target.problems))
    if reading.engine not in _OF_ENGINE:
        known = " and ".join(sorted(_OF_ENGINE))
        return nothing(f"{reading.engine} is not calibrated from what it exposes; {known} are")
    if reading.engine_version is None:
        return nothing("the server does not tell its version; calibrate from its log: --log FILE")
    if reading.sleeping:
        return nothing("the server sleeps and has given up its memory; wake it up first")
    if len(reading.by_model()) != 1:
        return nothing(f"the page shows {len(reading.by_model())} models, whose memory is not told apart")
    outcome = _OF_ENGINE[reading.engine](observed, reading, reading.engine_version)
    if reading.simulated:
        simulated = "The server is simulated: nothing here was measured."
        return replace(outcome, notes=(*outcome.notes, simulated), comments=(*outcome.comments, simulated))
    return outcome


# --- vLLM ---


def _vllm_blockers(observed: Observed, reading: EngineReading) -> Iterator[str]:
    """Why a running vLLM tells nothing, and what to do."""
    target = observed.target
    if not observed.launch_known:
        yield (
            "its launch settings are not known, and without them neither are the bytes of a block; give "
            "launch or launch_command in the configuration, or --launch-command"
        )
    if observed.model is None:
        yield "the files of its model are not known; name MODEL, or `model` in the configuration"
    if observed.gpu is None:
        reasons = ("gpu_unassigned", "gpu_unknown")
        details = [problem.detail for problem in target.problems if problem.reason in reasons]
        yield (
            f"its GPU is not known ({'; '.join(details) or 'none could be read'}); list the target's `gpus`, "
            "or name its kind with --gpu"
        )
    launch = launch_of(target.settings)
    for setting in ("kv_cache_memory_bytes", "num_gpu_blocks_override"):
        if getattr(launch, setting) is not None:
            yield (
                f"its K/V pool was set by hand ({setting}, as a server on CPU always has it), so it does not "
                "tell what else is needed; start the server once without that setting"
            )
    if launch.pipeline_parallel_size > 1:
        yield "its pipeline stages share one count of blocks, the fullest one's; calibrate from its log"
    if launch.gpu_memory_utilization is None:
        yield "it does not state gpu_memory_utilization; calibrate from its log: --log FILE"
    if any(not rank.kv_cache_blocks for rank in reading.ranks):
        yield "its page does not state num_gpu_blocks (no front end in Rust does); calibrate from its log"


def _of_vllm(observed: Observed, reading: EngineReading, version: str) -> Outcome:
    reasons = list(_vllm_blockers(observed, reading))
    target, gpu, model = observed.target, observed.gpu, observed.model
    if reasons or gpu is None or model is None:
        return nothing(*reasons)
    found = Findings()
    settings = filled_batch(target.settings, gpu, version, found.notes)
    launch = launch_of(settings)
    footprint = predict("vllm", model, predictable(settings), version=version, gpu=gpu)
    found.notes += footprint.assumptions
    blocks = int(min(rank.kv_cache_blocks or 0 for rank in reading.ranks))
    block = footprint.kv_cache.block_bytes or 0
    utilization = launch.gpu_memory_utilization or 0.0
    low, budget, high = (
        vllm_budget_bytes(size, utilization)
        for size in (gpu.visible_bytes.low, gpu.visible_bytes.expected, gpu.visible_bytes.high)
    )
    runtime = vllm_runtime(version, gpu, launch)
    weights, parts = _table_parts(footprint.fullest.components, runtime)
    besides = budget - blocks * block - weights.expected
    least, most = (sum(getattr(part, bound) for part in parts.values()) for bound in ("low", "high"))
    slack = weights.high - weights.low + high - low
    if besides + slack < least:
        return nothing(
            f"the budget of {format_bytes(budget)} less a pool of {format_bytes(blocks * block)} leaves "
            f"{format_bytes(besides)} beside the weights, less than any such server needs "
            f"({format_bytes(least)}): settings or model are not those of this server; correct them"
        )
    if besides > most + slack:
        found.notes.append(
            f"{format_bytes(besides)} beside weights and pool are more than the tables know "
            f"({format_bytes(most)}): an encoder or a draft model, or settings that are not declared."
        )
    _of_vllm_gpu(observed, gpu, budget, runtime, found)
    found.told(
        "non_kv_bytes",
        budget - blocks * block,
        max(block, budget - low, high - budget),
        f"{span(weights)} of weights, {format_bytes(least)} – {format_bytes(most)} of all else",
        f"budget {format_bytes(budget)} less {blocks:,} blocks of {format_bytes(block)}",
    )
    for name, component in (
        ("activation_bytes", "activations"),
        ("non_torch_bytes", "non_torch"),
        ("cuda_graphs_bytes", "cuda_graphs"),
    ):
        if component in parts:
            why = "in the sum, not told apart; a start-up log tells it: --log FILE"
            found.unknown(name, span(parts[component]), why)
    return found.outcome(
        Calibration(engine="vllm", version=version, gpu=observed.gpu_name),
        model,
        footprint,
        settings,
        comments=(f"From a running vLLM {version} on {observed.gpu_name}.",),
    )


def _table_parts(
    components: Mapping[str, Estimate], runtime: RuntimeSettings
) -> tuple[Estimate, dict[str, Estimate]]:
    """Weights, and by name what else counts in the budget beside the pool, by the table of constants."""
    parts = dict(components)
    weights = parts.pop("weights")
    for name in ("kv_cache", "runtime"):
        parts.pop(name, None)
    if not graphs_count_in_budget(runtime.version) or not runtime.graphs:
        parts.pop("cuda_graphs", None)
    return weights, parts | {"non_torch": non_torch_bytes(runtime)}


def _of_vllm_gpu(
    observed: Observed, gpu: Gpu, budget: int, runtime: RuntimeSettings, found: Findings
) -> None:
    """What CUDA shows, and what lies outside the budget, on the fullest of the GPUs."""
    table = context_bytes(runtime)
    used = [device.used_bytes for device in observed.devices if device.used_bytes is not None]
    visible = gpu.visible_bytes
    if used and visible.is_exact:
        found.told("visible_bytes", visible.expected, 0, "", "NVML's total less reserved")
    least = max(used, default=0) - budget
    why = None
    if not used:
        why = "NVML does not tell here what is used on its GPU"
    elif not visible.is_exact:
        why = "this driver counts its own memory as used (memory v1); a newer one tells them apart"
    elif observed.others:
        why = f"{'; '.join(observed.others)}; calibrate while the server has its GPU to itself"
    elif least > table.high:
        why = (
            f"{format_bytes(least)} are used beyond the budget, more than a context is known to take: other "
            "processes, or CUDA graphs beyond their estimate; a start-up log tells which: --log FILE"
        )
    elif least < table.low:
        why = (
            f"used are {format_bytes(abs(least))} {'less' if least < 0 else 'more'} than the budget, so the "
            "activation peak was not reached yet; try again once full batches were served"
        )
    if why is not None:
        found.unknown("context_bytes", span(table), why)
        return
    basis = (
        f"used beyond the budget: the least it can be; the most, {format_bytes(table.high)}, is the table's"
    )
    found.told("context_bytes", least, 0, span(table), basis)
    found.values["context_high_bytes"] = table.high


# --- SGLang ---


def _of_sglang(observed: Observed, reading: EngineReading, version: str) -> Outcome:
    settings = observed.target.settings
    if observed.gpu is None:
        return nothing("its GPU is not known; list the target's `gpus`, or name its kind with --gpu")
    if "tp_size" not in settings:
        return nothing("its /server_info is not readable, and with it its launch settings; allow it")
    found = Findings()
    measured: dict[str, float] = {}
    for rank in reading.ranks:
        for component, size in (rank.measured_memory_bytes or {}).items():
            measured[component] = max(size, measured.get(component, 0.0))
    sizes = [settings.get(name, "1") for name in ("tp_size", "pp_size")]
    runtime = RuntimeSettings(
        engine="sglang",
        version=version,
        gpu=observed.gpu.name,
        world_size=int(sizes[0]) * int(sizes[1]) if all(size.isdecimal() for size in sizes) else 1,
    )
    for name, component, table in (
        ("weights_bytes", "weights", ""),
        ("cuda_graphs_bytes", "cuda_graphs", span(cuda_graphs_bytes(runtime))),
    ):
        if component in measured:
            found.told(name, int(measured[component]), 0, table, "the server's own gauge")
        else:
            found.unknown(name, table, "the server has no such gauge (SGLang since 0.5.18)")
    why = "what is used beside weights, cache and graphs is context and activations, not told apart"
    found.unknown("context_bytes", span(context_bytes(runtime)), why)
    kept = ("dp_size", "dtype", "pp_size", "quantization", "tp_size")
    return found.outcome(
        Calibration(engine="sglang", version=version, gpu=observed.gpu_name),
        observed.model,
        None,
        {name: settings[name] for name in kept if name in settings},
        comments=(f"From a running SGLang {version} on {observed.gpu_name}.",),
    )


_OF_ENGINE: dict[str, Callable[[Observed, EngineReading, str], Outcome]] = {
    "vllm": _of_vllm,
    "sglang": _of_sglang,
}
