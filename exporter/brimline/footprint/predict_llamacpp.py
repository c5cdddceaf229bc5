"""The predicted memory of a llama.cpp server, for each GPU and for the host.

llama.cpp plans with no share of the card. It allocates all of it at the start: the weights, layer by layer on
the device that has the layer, the K/V cache beside them, and the compute buffers of one step. So each GPU is
a rank of its own here, in the order of --tensor-split, and what lies in host memory stands with the first.

Which devices there are no flag says. A GPU is taken to be there where one is named, or where a flag speaks of
one (--n-gpu-layers above 0, --tensor-split, --device, --main-gpu, --split-mode). Otherwise the server is
taken for one on the CPU: then there is nothing on a GPU, and all of it is host memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from brimline.errors import FootprintError, SettingError
from brimline.estimate import Estimate, exact, total
from brimline.footprint import settings as read
from brimline.footprint.architecture import Architecture, Attention, Experts, Layer
from brimline.footprint.calibration import Calibration
from brimline.footprint.constants import MIB, constant
from brimline.footprint.gpus import Gpu
from brimline.footprint.hf_config import read_architecture
from brimline.footprint.kv_dtypes import ggml_element_bytes
from brimline.footprint.llamacpp_buffers import (
    GraphSettings,
    device_compute_bytes,
    host_compute_bytes,
    output_bytes,
)
from brimline.footprint.other_caches import LlamacppCache, LlamacppCacheSettings, llamacpp_cache
from brimline.footprint.runtime import RuntimeSettings, context_bytes
from brimline.footprint.settings import Settings
from brimline.footprint.throughput import DecodeCeiling, DecodeWeights, ExpertLayer, kv_read_bytes
from brimline.footprint.weights import (
    LLAMACPP_RULES,
    PARTS,
    Sharding,
    StoredWeights,
    as_if_quantized,
    parameters,
    stored_weights,
    weight_bytes,
)
from brimline.readings import Footprint, KvCacheFootprint, RankFootprint, shown_lengths

# Builds from which a default holds. 6325: pull request 15434; the next two were merged with pull requests
# 16736 and 16653, and the builds around them are those of their days; 9464: a server's graph reserves logits
# for its slots only (pull request 23861), which 9444 did not.
_ALL_LAYERS_AND_FLASH = 6325
_SHARED_SLOTS = 6930
_FITS_ITSELF = 7410
_FEW_OUTPUTS = 9464

_SLOTS_BY_DEFAULT = 4
_LEAST_FITTED_CONTEXT = 4096  # --fit-ctx
_CELL_STEP = 256

# Flags whose memory is not in the model's own file.
_NOT_COUNTED = {
    "mmproj": "The projector of --mmproj is not counted.",
    "lora": "The adapters of --lora are not counted.",
    "override_tensor": "--override-tensor is not followed: tensors are placed by their layers.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamacppLaunch:
    """llama-server's flags, as far as they decide memory. None is what the build does by default.

    gpu_layers: layers, the output counted as one, that GPUs hold; None for all of them. devices: GPUs it may
    use; None where no flag says how many. tensor_split: shares of the GPUs. slot_context: `n_ctx`, no flag,
    but what a running server says that one slot has.
    """

    ctx_size: int | None = None
    slot_context: int | None = None
    parallel: int | None = None
    kv_unified: bool | None = None
    kv_unified_per_slot: int | None = None
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    batch_size: int = 2048
    ubatch_size: int = 512
    swa_full: bool = False
    flash_attn: bool | None = None
    gpu_layers: int | Literal["all"] | None = None
    devices: int | None = None
    tensor_split: tuple[float, ...] = ()
    split_mode: str = "layer"
    main_gpu: int | None = None
    kv_offload: bool = True
    op_offload: bool = True
    cpu_experts: int = 0
    fit: bool | None = None
    fit_target_mib: int | None = None
    fit_ctx: int = _LEAST_FITTED_CONTEXT
    embedding: bool = False
    cache_ram_mib: int = 8192
    quantization: str | None = None
    dtype: str = "auto"

    @property
    def names_gpu(self) -> bool:
        """Whether a flag speaks of a GPU."""
        return bool(self.gpu_layers or self.devices or self.tensor_split or self.main_gpu is not None)


def llamacpp_build(version: str | None) -> int | None:
    """The number of a build such as `b6470-1234abc`; None where it is not said."""
    match = re.match(r"b?(\d+)(?![.\d])", (version or "").strip())
    number = int(match[1]) if match else 0
    return number if number >= 1000 else None


def _flash(settings: Settings) -> bool | None:
    stated = read.text(settings, "flash_attn")
    return None if stated is None or stated == "-1" else read.switch(settings, "flash_attn")


def _gpu_layers(settings: Settings) -> int | Literal["all"] | None:
    stated = read.text(settings, "n_gpu_layers")
    if stated is None or stated == "-1":
        return None
    return "all" if stated in ("all", "-2") else read.count(settings, "n_gpu_layers", least=0)


def _tensor_split(settings: Settings) -> tuple[float, ...]:
    stated = read.text(settings, "tensor_split")
    if stated is None:
        return ()
    try:
        shares = tuple(float(share) for share in re.split(r"[,/]+", stated.strip(",/")))
    except ValueError:
        shares = ()
    if not shares or min(shares) < 0 or not 0 < sum(shares) < 1e12 or len(shares) > 128:
        raise SettingError(f"--tensor-split {stated[:60]!r} is no list of shares; write it as 3,1")
    return shares


def _devices(settings: Settings) -> int | None:
    stated = read.text(settings, "device") if settings.get("device", "").lower() != "none" else "none"
    if stated is None:
        return None
    return 0 if stated == "none" else len([name for name in stated.split(",") if name.strip()])


def llamacpp_launch(settings: Settings) -> LlamacppLaunch:
    """llama-server's flags by their own names with underscores. Raises SettingError naming the flag."""
    slots = settings.get("parallel", "")
    split_mode = read.text(settings, "split_mode") or settings.get("split_mode") or "layer"
    if split_mode not in ("none", "layer", "row", "tensor"):
        raise SettingError(f"--split-mode {split_mode[:40]!r} is not known; known: none, layer, row, tensor")
    experts = read.count(settings, "n_cpu_moe", least=0) or 0
    return LlamacppLaunch(
        ctx_size=read.count(settings, "ctx_size", least=0),
        slot_context=read.count(settings, "n_ctx"),
        parallel=None if slots == "-1" else read.count(settings, "parallel"),
        kv_unified=read.switch(settings, "kv_unified"),
        kv_unified_per_slot=read.count(settings, "kv_unified_per_slot", least=0) or None,
        cache_type_k=read.text(settings, "cache_type_k") or "f16",
        cache_type_v=read.text(settings, "cache_type_v") or "f16",
        batch_size=read.count(settings, "batch_size") or 2048,
        ubatch_size=read.count(settings, "ubatch_size") or 512,
        swa_full=read.switch(settings, "swa_full") or False,
        flash_attn=_flash(settings),
        gpu_layers=_gpu_layers(settings),
        devices=_devices(settings),
        tensor_split=_tensor_split(settings),
        split_mode=split_mode,
        main_gpu=read.count(settings, "main_gpu", least=0),
        kv_offload=read.switch(settings, "kv_offload") is not False,
        op_offload=read.switch(settings, "op_offload") is not False,
        cpu_experts=1 << 16 if read.switch(settings, "cpu_moe") else experts,
        fit=read.switch(settings, "fit"),
        fit_target_mib=read.count(settings, "fit_target", least=0),
        fit_ctx=read.count(settings, "fit_ctx") or _LEAST_FITTED_CONTEXT,
        embedding=read.switch(settings, "embedding") or read.switch(settings, "embeddings") or False,
        cache_ram_mib=_cache_ram(settings),
        quantization=read.text(settings, "quantization"),
        dtype=read.text(settings, "dtype") or "auto",
    )


def _cache_ram(settings: Settings) -> int:
    stated = read.number(settings, "cache_ram")
    return 8192 if stated is None else int(stated)


# --- where the weights lie


@dataclass(frozen=True, slots=True, kw_only=True)
class _LayerWeights:
    """Weights of one layer. experts: of them the routed experts'. largest: its largest matrix."""

    whole: Estimate
    experts: Estimate
    largest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weights:
    """The weights by the place that llama.cpp gives them; a tied head is a copy of `embedding`."""

    input: Estimate
    embedding: Estimate
    output: Estimate
    largest_output: int
    tied: bool
    layers: tuple[_LayerWeights, ...]
    source: str


def _weights(architecture: Architecture, launch: LlamacppLaunch, stored: StoredWeights | None) -> _Weights:
    if stored is not None and stored.layout is not None:
        layout, source = stored.layout, stored.source
        return _Weights(
            input=exact(layout.input, source),
            embedding=exact(layout.embedding, source),
            output=exact(layout.output, source),
            largest_output=layout.largest_output,
            tied=layout.tied,
            layers=tuple(
                _LayerWeights(
                    whole=exact(layer.size, source),
                    experts=exact(layer.experts, source),
                    largest=layer.largest,
                )
                for layer in layout.layers
            ),
            source=source,
        )
    count = len(architecture.layers)
    rules = replace(LLAMACPP_RULES, tied_head_copy=False)
    stages = weight_bytes(
        architecture,
        sharding=Sharding(pipeline=count, layer_partition=(1,) * count),
        dtype=launch.dtype,
        rules=rules,
        stored=stored,
    )
    first, last = stages[0], stages[-1]
    inside = [part for part in PARTS if part not in ("embedding", "head", "other", "encoder")]
    layers = []
    for stage in stages:
        parts = [stage.parts[part] for part in inside]
        experts = stage.parts["experts"]
        layers.append(
            _LayerWeights(
                whole=total(parts, experts.source),
                experts=experts,
                largest=max(part.expected // 3 for part in parts),
            )
        )
    outside = [last.parts["other"], *([] if architecture.tied else [last.parts["head"]])]
    return _Weights(
        input=first.host,
        embedding=first.host,
        output=total(outside, last.parts["head"].source),
        largest_output=last.parts["head"].expected,
        tied=architecture.tied,
        layers=tuple(layers),
        source=stages[0].total.source,
    )


def _sum(parts: Sequence[Estimate], source: str) -> Estimate:
    return total(parts, source) if parts else exact(0, source)


# --- which device holds what


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placement:
    """The GPU that has each layer; None for the host. output: of the head."""

    gpus: int
    layers: tuple[int | None, ...]
    output: int | None
    cpu_experts: int


def _placement(
    launch: LlamacppLaunch, architecture: Architecture, gpus: int, gpu_layers: int, cpu_experts: int
) -> _Placement:
    """Layers from the first that is offloaded, in order, by the shares of --tensor-split.

    The last gpu_layers of all layers and the output go to GPUs; layer i of them to the first GPU whose
    cumulated share is above i / their number (src/llama-model.cpp, load_tensors).
    """
    count = len(architecture.layers) + architecture.draft_layers
    offloaded = min(gpu_layers, count + 1) if gpus else 0
    start = count + 1 - offloaded
    shares = [1.0] * gpus
    if launch.split_mode == "none":
        shares = [1.0 if index == (launch.main_gpu or 0) else 0.0 for index in range(gpus)]
    elif launch.tensor_split:
        shares = [*launch.tensor_split, *[0.0] * gpus][:gpus]
    whole = sum(shares)

    def device(index: int) -> int | None:
        if index < start:
            return None
        reached = 0.0
        for gpu, share in enumerate(shares):
            reached += share
            if reached / whole > (index - start) / offloaded:
                return gpu
        return gpus - 1

    return _Placement(
        gpus=gpus,
        layers=tuple(device(index) for index in range(len(architecture.layers))),
        output=device(count),
        cpu_experts=cpu_experts,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Device:
    """What one GPU, or the host, holds."""

    weights: Estimate
    kv_cache: Estimate
    activations: Estimate

    @property
    def total(self) -> Estimate:
        return total((self.weights, self.kv_cache, self.activations), "sum")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """A server with one context and one placement: its GPUs, its host memory, and its cache."""

    cache: LlamacppCache
    placement: _Placement
    context: int
    gpus: tuple[_Device, ...]
    host: _Device


class _Server:
    """A server whose context and placement are still to be found."""

    def __init__(
        self,
        architecture: Architecture,
        launch: LlamacppLaunch,
        build: int | None,
        stored: StoredWeights | None,
    ) -> None:
        self.architecture, self.launch, self.build = architecture, launch, build
        self.weights = _weights(architecture, launch, stored)
        since = build if build is not None else _FEW_OUTPUTS
        # A running server states its slots, not whether it chose them: four without a word are the default.
        automatic = launch.parallel is None or (
            launch.slot_context is not None and launch.parallel == _SLOTS_BY_DEFAULT
        )
        self.slots = launch.parallel or (_SLOTS_BY_DEFAULT if since >= _SHARED_SLOTS else 1)
        self.unified = (
            launch.kv_unified
            if launch.kv_unified is not None
            else automatic and since >= _SHARED_SLOTS and self.slots > 1
        )
        self.flash = launch.flash_attn if launch.flash_attn is not None else since >= _ALL_LAYERS_AND_FLASH
        self.few_outputs = since >= _FEW_OUTPUTS and not launch.embedding
        self.fits_itself = launch.fit if launch.fit is not None else since >= _FITS_ITSELF
        if launch.slot_context is not None:
            self.fits_itself = False  # it has done so
        self.all_layers = len(architecture.layers) + architecture.draft_layers + 1
        self.layers_by_default = self.all_layers if since >= _ALL_LAYERS_AND_FLASH else 0
        self._caches: dict[int, LlamacppCache] = {}

    @property
    def streams(self) -> int:
        return 1 if self.unified else self.slots

    def context(self) -> int:
        """Tokens of all slots together before the server fits itself. Raises FootprintError."""
        launch = self.launch
        if launch.slot_context is not None and not self._explains(launch.slot_context):
            return launch.slot_context * self.streams
        if launch.ctx_size:
            return launch.ctx_size
        if launch.ctx_size is None and launch.kv_unified_per_slot:
            return self.slots * launch.kv_unified_per_slot
        longest = self.architecture.max_position
        if longest is None:
            raise FootprintError("--ctx-size is 0 and the model does not state its context length")
        return longest * (self.streams if self.fits_itself else 1)

    def _explains(self, slot_context: int) -> bool:
        """Whether --ctx-size gives a slot that context, of which no slot serves more than the model's own."""
        if not self.launch.ctx_size:
            return False
        cells = self.cache(self.launch.ctx_size).slot_context
        return min(cells, self.architecture.max_position or cells) == slot_context

    def cache(self, context: int) -> LlamacppCache:
        """The cache for a context; fitting asks for the same one many times. Raises FootprintError."""
        if context not in self._caches:
            launch = self.launch
            self._caches[context] = llamacpp_cache(
                self.architecture,
                LlamacppCacheSettings(
                    context=context,
                    slots=self.slots,
                    unified=self.unified,
                    cache_type_k=launch.cache_type_k,
                    cache_type_v=launch.cache_type_v,
                    batch=launch.batch_size,
                    micro_batch=launch.ubatch_size,
                    swa_full=launch.swa_full,
                    flash_attention=self.flash,
                ),
            )
        return self._caches[context]

    def graph(self, context: int, cache: LlamacppCache, pipelined: bool) -> GraphSettings:
        launch = self.launch
        micro = min(context, launch.batch_size, launch.ubatch_size)
        return GraphSettings(
            tokens=-(-micro // self.slots) * self.slots,
            slots=self.slots,
            outputs=min(micro, self.slots) if self.few_outputs else micro,
            cells=cache.slot_context,
            window_cells=cache.window_cells,
            flash_attention=self.flash,
            pipelined=pipelined,
        )

    def layout(self, gpus: int, gpu_layers: int, context: int, cpu_experts: int) -> _Layout:
        """Everything allocated at the start."""
        architecture, launch = self.architecture, self.launch
        placement = _placement(launch, architecture, gpus, gpu_layers, cpu_experts)
        cache = self.cache(context)
        # src/llama-context.cpp: all layers and the output on several GPUs, and nothing kept on the host.
        pipelined = (
            gpus > 1
            and gpu_layers >= self.all_layers
            and launch.split_mode == "layer"
            and launch.kv_offload
            and not cpu_experts
        )
        given_up = {index for index in range(cpu_experts) if index < len(placement.layers)}
        stays = not launch.op_offload and any(
            placement.layers[index] is not None and self.weights.layers[index].experts.high
            for index in given_up
        )
        graph = replace(self.graph(context, cache, pipelined), experts_on_host=stays)
        copied = self._copied(placement) if launch.op_offload else 0
        holders = sorted({gpu for gpu in placement.layers if gpu is not None})
        devices = []
        for gpu in range(gpus):
            held = [index for index, where in enumerate(placement.layers) if where == gpu]
            devices.append(
                _Device(
                    weights=self._gpu_weights(placement, gpu),
                    kv_cache=self._kv(cache, held if launch.kv_offload else []),
                    activations=device_compute_bytes(
                        architecture,
                        self._worked_on(held, given_up if stays else set()),
                        graph,
                        first=not holders or gpu == holders[0],
                        ends=len(architecture.layers) - 1 in held,
                        logits=placement.output == gpu,
                        copied_weight_bytes=copied if gpu == 0 else 0,
                    ),
                )
            )
        on_host = [index for index, where in enumerate(placement.layers) if where is None]
        outputs = exact(output_bytes(architecture, self.slots), "a row of logits for each slot")
        compute = host_compute_bytes(
            architecture, self._layers(on_host), graph, holds_cache=bool(gpus) and not launch.kv_offload
        )
        host = _Device(
            weights=self._host_weights(placement),
            kv_cache=self._kv(cache, on_host if launch.kv_offload else range(len(architecture.layers))),
            activations=total((compute, outputs), compute.source),
        )
        return _Layout(cache=cache, placement=placement, context=context, gpus=tuple(devices), host=host)

    def _layers(self, indexes: Sequence[int]) -> list[Layer]:
        return [self.architecture.layers[index] for index in indexes]

    def _worked_on(self, indexes: Sequence[int], given_up: set[int]) -> list[Layer]:
        """The layers as a GPU works on them, without the experts that the CPU works on."""
        layers = self.architecture.layers
        return [
            replace(layers[index], feed_forward=None)
            if index in given_up and isinstance(layers[index].feed_forward, Experts)
            else layers[index]
            for index in indexes
        ]

    def _kv(self, cache: LlamacppCache, indexes: Sequence[int]) -> Estimate:
        return exact(sum(cache.layer_bytes[index] for index in indexes), cache.source)

    def _split(self, placement: _Placement, index: int) -> tuple[Estimate, Estimate]:
        """What of a layer goes to its device, and what --n-cpu-moe keeps on the host."""
        layer = self.weights.layers[index]
        if index >= placement.cpu_experts:
            return layer.whole, exact(0, layer.whole.source)
        rest = Estimate(
            max(0, layer.whole.low - layer.experts.low),
            max(0, layer.whole.expected - layer.experts.expected),
            max(0, layer.whole.high - layer.experts.high),
            layer.whole.source,
        )
        return rest, layer.experts

    def _gpu_weights(self, placement: _Placement, gpu: int) -> Estimate:
        weights = self.weights
        parts = [self._split(placement, index)[0] for index, at in enumerate(placement.layers) if at == gpu]
        if placement.output == gpu:
            parts.append(weights.output)
            if weights.tied:
                parts.append(weights.embedding)  # duplicated: the input stays on the host
        held = _sum(parts, weights.source)
        if self.launch.split_mode not in ("row", "tensor") or placement.gpus < 2:
            return held
        # Rows of every matrix lie on all GPUs; vectors stay with their layer.
        largest = max((layer.whole.high for layer in weights.layers), default=0)
        return Estimate(max(0, held.low - largest), held.expected, held.high + largest, held.source)

    def _host_weights(self, placement: _Placement) -> Estimate:
        weights = self.weights
        parts = [weights.input]
        for index, where in enumerate(placement.layers):
            on_device, on_host = self._split(placement, index)
            parts.append(on_host)
            if where is None:
                parts.append(on_device)
        if placement.output is None:
            parts.append(weights.output)
        return total(parts, weights.source)

    def _copied(self, placement: _Placement) -> int:
        """The largest matrix on the host that the first GPU copies to work on it for a large batch."""
        if not placement.gpus:
            return 0
        largest = [
            self.weights.layers[index].largest
            for index, where in enumerate(placement.layers)
            if where is None or (index < placement.cpu_experts and self.weights.layers[index].experts.high)
        ]
        if placement.output is None and not self.few_outputs:
            largest.append(
                self.weights.embedding.expected if self.weights.tied else self.weights.largest_output
            )
        return max(largest, default=0)


# --- what --fit makes of it


def _fitted(
    server: _Server, gpus: int, free_bytes: int, start: tuple[int, int], notes: list[str]
) -> tuple[int, int, int]:
    """Context, GPU layers and layers whose experts stay on the host, after the server fitted itself.

    Flags that are given stay. First the context shrinks, down to --fit-ctx for each cache, along a straight
    line between the most and the least; then experts go to the host, then layers (common/fit.cpp, which also
    splits layers; here they stay whole). free_bytes: of each GPU, less what --fit-target leaves.
    """
    context, layers = start
    launch, experts = server.launch, server.launch.cpu_experts

    def used(context: int, layers: int, experts: int) -> list[int]:
        layout = server.layout(gpus, layers, context, experts)
        return [device.total.expected for device in layout.gpus]

    def holds(context: int, layers: int, experts: int) -> bool:
        return max(used(context, layers, experts)) <= free_bytes

    if holds(context, layers, experts):
        return context, layers, experts
    full = sum(used(context, layers, experts))
    if launch.ctx_size is None and not launch.kv_unified_per_slot and full > gpus * free_bytes:
        least = min(context, launch.fit_ctx * server.streams)
        spare = gpus * free_bytes - sum(used(least, layers, experts))
        if spare > 0:
            step = _CELL_STEP * server.streams
            wider = least + (context - least) * spare // (full - gpus * free_bytes + spare)
            context = max(wider // step * step, least)
        else:
            context = least
        notes.append(f"--fit lowers the context to {context:,} tokens, so that it fits the GPU.")
        if holds(context, layers, experts):
            return context, layers, experts
    if launch.gpu_layers is not None or launch.tensor_split or launch.split_mode == "row":
        return context, layers, experts
    count = len(server.architecture.layers)
    if any(layer.experts.expected for layer in server.weights.layers):
        experts = _least(experts, count, lambda kept: holds(context, layers, kept))
        notes.append(f"--fit keeps the experts of {experts} layers in host memory.")
    if not holds(context, layers, experts):
        kept = _least(0, layers, lambda given_up: holds(context, layers - given_up, experts))
        layers -= kept
        notes.append(f"--fit leaves {layers} of {server.all_layers} layers on the GPU.")
    return context, layers, experts


def _least(low: int, high: int, enough: Callable[[int], bool]) -> int:
    """The least number in the range that is enough; the highest where none is."""
    while low < high:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle + 1
    return low


# --- the prediction


def predict_llamacpp(
    architecture: Architecture,
    settings: Settings,
    *,
    version: str | None = None,
    gpu: Gpu | None = None,
    stored: StoredWeights | None = None,
    calibration: Calibration | None = None,
) -> Footprint:
    """The footprint of a llama.cpp server. Raises FootprintError naming the flag and the rule it breaks.

    settings: llama-server's flags by their own names with underscores. version: of a build (`b6470`); an
    unknown one is taken for the newest. gpu: of each GPU. calibration: its context_bytes are taken where it
    is of this build and GPU.
    """
    launch = llamacpp_launch(settings)
    build = llamacpp_build(version)
    assumptions = list(architecture.assumptions)
    architecture, stored = as_if_quantized(architecture, stored, launch.quantization, assumptions)
    if gpu is not None and gpu.assumption:
        assumptions.append(gpu.assumption)
    assumptions += [sentence for name, sentence in _NOT_COUNTED.items() if settings.get(name)]
    gpus = _gpu_count(launch, gpu, assumptions)
    server = _Server(architecture, launch, build, stored)
    runtime = _runtime(version, gpu, calibration, assumptions)
    layout = _resolved(server, gpus, gpu, runtime, assumptions)
    assumptions += layout.cache.assumptions
    _mention(server, layout, assumptions)
    drafters = _draft(server, layout, settings, assumptions)
    ranks = _ranks(layout, runtime, [_draft_bytes(device, server.slots) for device in drafters])
    fits, headroom = _fit(ranks, gpu if gpus else None)
    return Footprint(
        engine="llamacpp",
        engine_version=version,
        parameters=parameters(architecture),
        ranks=ranks,
        kv_cache=_kv_cache(server, layout),
        max_running_requests=server.slots,
        decode_ceiling=_ceiling(server, layout, gpu, assumptions),
        fits=fits,
        headroom_bytes=headroom,
        assumptions=tuple(dict.fromkeys(assumptions)),
        model_source=architecture.source or architecture.model_type,
    )


# --- a drafter


def _draft(
    server: _Server, layout: _Layout, settings: Settings, assumptions: list[str]
) -> tuple[_Device, ...]:
    """What the model of --model-draft takes on each GPU, and last on the host; nothing where it is not read.

    It has a context for each slot, as long as the slot's and with caches of its own types (tools/server,
    slot.ctx_dft). Weights lie where --n-gpu-layers-draft says, on all GPUs unless it is given.
    """
    name = read.text(settings, "model_draft")
    if name is None:
        return ()
    path = Path(name)
    try:
        architecture = read_architecture(path)
        stored = stored_weights(
            path if path.is_dir() or path.suffix == ".gguf" else path.parent, architecture
        )
    except (FootprintError, OSError) as error:
        assumptions.append(f"The draft model is not counted: {error}.")
        return ()
    stated = read.text(settings, "n_gpu_layers_draft")
    drafter = _Server(
        architecture,
        replace(
            server.launch,
            ctx_size=read.count(settings, "ctx_size_draft", least=0) or layout.cache.slot_context,
            slot_context=None,
            parallel=1,
            kv_unified=None,
            kv_unified_per_slot=None,
            cache_type_k=read.text(settings, "cache_type_k_draft") or "f16",
            cache_type_v=read.text(settings, "cache_type_v_draft") or "f16",
            quantization=None,
            fit=False,
        ),
        server.build,
        stored,
    )
    layers = drafter.layers_by_default
    if stated is not None and stated not in ("-1", "all", "-2"):
        layers = read.count(settings, "n_gpu_layers_draft", least=0) or 0
    elif stated is not None:
        layers = drafter.all_layers
    context = drafter.context()
    placed = drafter.layout(len(layout.gpus), layers, context, 0)
    assumptions.append(
        f"The draft model is counted with a context of {context:,} tokens for each of {server.slots} slots."
    )
    return (*placed.gpus, placed.host)


def _draft_bytes(device: _Device, slots: int) -> Estimate:
    """Weights once, cache and compute buffers for each slot; at least for one."""
    once, each = device.weights, total((device.kv_cache, device.activations), "")
    return Estimate(
        once.low + each.low,
        once.expected + slots * each.expected,
        once.high + slots * each.high,
        f"{once.source}; a context of its own for each slot",
    )


def _gpu_count(launch: LlamacppLaunch, gpu: Gpu | None, assumptions: list[str]) -> int:
    if launch.devices == 0:
        return 0
    if gpu is None and not launch.names_gpu:
        if launch.gpu_layers is None:
            assumptions.append(
                "No GPU is named and no flag speaks of one: a server on the CPU is assumed, all of it in "
                "host memory. Name the GPU, or state --n-gpu-layers, for a server that has one."
            )
        return 0
    stated = launch.devices or len(launch.tensor_split)
    if launch.main_gpu is not None and launch.split_mode == "none":
        return stated or launch.main_gpu + 1
    if not stated:
        assumptions.append(
            "llama.cpp spreads over every GPU that it sees: one is assumed; say how many with --tensor-split "
            "or --device."
        )
    if stated and launch.tensor_split and launch.devices and launch.devices < len(launch.tensor_split):
        raise SettingError(
            f"--tensor-split names {len(launch.tensor_split)} GPUs, --device only {launch.devices}"
        )
    return stated or 1


def _runtime(
    version: str | None, gpu: Gpu | None, calibration: Calibration | None, assumptions: list[str]
) -> Estimate:
    """The CUDA context of one GPU, and what libraries take with it."""
    name = gpu.name if gpu is not None else ""
    if calibration is not None and not _is_of(calibration, version, name):
        assumptions.append(calibration.unused)
        calibration = None
    return context_bytes(RuntimeSettings(engine="llamacpp", gpu=name), calibration)


def _is_of(calibration: Calibration, version: str | None, gpu: str) -> bool:
    return (
        calibration.engine == "llamacpp"
        and llamacpp_build(calibration.version) == llamacpp_build(version) is not None
        and calibration.gpu.lower() == gpu.lower()
    )


def _resolved(
    server: _Server, gpus: int, gpu: Gpu | None, runtime: Estimate, assumptions: list[str]
) -> _Layout:
    """The server with its defaults, fitted to the GPU where it does that by itself."""
    launch = server.launch
    wanted = launch.gpu_layers
    layers = server.layers_by_default if wanted is None else server.all_layers if wanted == "all" else wanted
    context, experts = server.context(), launch.cpu_experts
    if server.fits_itself and gpus and gpu is not None:
        margin = (
            launch.fit_target_mib * MIB
            if launch.fit_target_mib is not None
            else constant("llamacpp_fit_margin_bytes", engine="llamacpp").estimate().expected
        )
        free = gpu.visible_bytes.expected - runtime.expected - margin
        context, layers, experts = _fitted(server, gpus, max(0, free), (context, layers), assumptions)
    return server.layout(gpus, layers, context, experts)


def _mention(server: _Server, layout: _Layout, assumptions: list[str]) -> None:
    launch = server.launch
    longest = server.architecture.max_position
    if launch.slot_context is not None and launch.kv_unified is None and server.slots > 1:
        shared = "share one cache" if server.unified else "have a cache each"
        assumptions.append(
            f"The {server.slots} slots are taken to {shared}: the server does not say. State kv_unified."
        )
    if launch.ctx_size and longest is not None and layout.cache.slot_context > longest + _CELL_STEP:
        assumptions.append(
            f"A slot has {layout.cache.slot_context:,} cells, of which the server uses {longest:,}: the "
            "model was made for no more."
        )
    if launch.cache_ram_mib:
        most = f"{launch.cache_ram_mib:,} MiB" if launch.cache_ram_mib > 0 else "any amount"
        assumptions.append(f"Prompts kept in main memory for later (--cache-ram, {most}) are not counted.")
    if launch.split_mode in ("row", "tensor") and layout.placement.gpus > 1:
        assumptions.append(
            f"--split-mode {launch.split_mode}: each GPU is taken to hold as much as by layers."
        )


def _ranks(layout: _Layout, runtime: Estimate, drafters: Sequence[Estimate]) -> tuple[RankFootprint, ...]:
    """A rank for each GPU; the host's memory stands with the first. drafters: on each GPU and on the host."""
    host = {
        "weights": layout.host.weights,
        "kv_cache": layout.host.kv_cache,
        "activations": layout.host.activations,
    }
    if drafters:
        host["draft_model"] = drafters[-1]
    host = {name: part for name, part in host.items() if part.high}
    if not layout.gpus:
        return (
            RankFootprint(pipeline_stage=0, components={}, total=exact(0, "nothing on a GPU"), host=host),
        )
    ranks = []
    for stage, device in enumerate(layout.gpus):
        components = {
            "weights": device.weights,
            "kv_cache": device.kv_cache,
            "activations": device.activations,
            "runtime": runtime,
        }
        if drafters and drafters[stage].high:
            components["draft_model"] = drafters[stage]
        whole = total(components.values(), "sum of the components")
        ranks.append(
            RankFootprint(
                pipeline_stage=stage, components=components, total=whole, host=host if stage == 0 else {}
            )
        )
    return tuple(ranks)


def _fit(ranks: Sequence[RankFootprint], gpu: Gpu | None) -> tuple[bool | None, int | None]:
    """All of it is allocated at the start, so all of it must fit every GPU."""
    if gpu is None:
        return None, None
    fits = all(rank.total.high <= gpu.visible_bytes.low for rank in ranks)
    return fits, gpu.visible_bytes.expected - max(rank.total.expected for rank in ranks)


def _kv_cache(server: _Server, layout: _Layout) -> KvCacheFootprint:
    """The cache on all devices together; capacity in cells, a unified cache counted once."""
    cache = layout.cache
    longest = cache.slot_context
    for most in (server.launch.kv_unified_per_slot, server.architecture.max_position):
        longest = min(longest, most or longest)
    return KvCacheFootprint(
        bytes_per_token=float(cache.bytes_per_token),
        max_model_len_tokens=longest,
        full_request_bytes=cache.request_bytes(longest),
        bytes_by_tokens={length: cache.request_bytes(length) for length in shown_lengths(longest)},
        capacity_tokens=cache.cells,
        max_concurrency_requests=min(float(server.slots), cache.cells / longest),
        is_proportional=not (cache.window_bytes or cache.state_bytes),
    )


def _ceiling(
    server: _Server, layout: _Layout, gpu: Gpu | None, assumptions: list[str]
) -> DecodeCeiling | None:
    """A token passes all GPUs one after the other, so that together they are as fast as one."""
    if gpu is None or gpu.bandwidth_bytes_per_second is None or not layout.gpus:
        return None
    if layout.placement.output is None or None in layout.placement.layers or layout.placement.cpu_experts:
        assumptions.append("No decode ceiling is given where the CPU works on some layers.")
        return None
    layers = []
    for layer, held in zip(server.architecture.layers, server.weights.layers, strict=True):
        part = layer.feed_forward
        if isinstance(part, Experts):
            layers.append(ExpertLayer(held.experts.expected / part.count, part.count, part.per_token))
    weights = sum(device.weights.expected for device in layout.gpus)
    dense = weights - sum(layer.bytes_each * layer.count for layer in layers)
    keys = ggml_element_bytes("--cache-type-k", server.launch.cache_type_k)
    values = ggml_element_bytes("--cache-type-v", server.launch.cache_type_v)
    architecture = server.architecture
    return DecodeCeiling(
        weights=DecodeWeights(dense_bytes=max(0.0, dense), experts=tuple(layers)),
        kv_read=lambda tokens: kv_read_bytes(
            architecture, tokens, element_bytes=_mean_element(architecture, float(keys), float(values))
        ),
        bandwidth_bytes_per_second=gpu.bandwidth_bytes_per_second,
    )


def _mean_element(architecture: Architecture, keys: float, values: float) -> float:
    mixers = [m for layer in architecture.layers for m in layer.mixers if isinstance(m, Attention)]
    key = sum(mixer.kv_heads * mixer.key_dim for mixer in mixers)
    value = sum(mixer.kv_heads * mixer.value_dim for mixer in mixers)
    return (key * keys + value * values) / (key + value) if mixers else keys
