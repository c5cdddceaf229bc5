"""What if? Answers to questions about a server, apart from its prediction and never part of its totals.

Most of these no engine does, or no engine does to a model that was not made for it. Each answer says what it
assumes, and where the numbers come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from brimline.errors import SettingError
from brimline.estimate import Estimate, exact
from brimline.footprint.activations import eager_attention_bytes
from brimline.footprint.architecture import (
    Architecture,
    Attention,
    Experts,
    FeedForward,
    LatentAttention,
    Layer,
    Mixer,
)
from brimline.footprint.gpus import Gpu
from brimline.footprint.offload import layerwise_offload, offloaded_tokens_per_second
from brimline.footprint.pod import PodSettings, pod_saving_ratio
from brimline.footprint.predict import Model, predict
from brimline.footprint.settings import Settings
from brimline.footprint.weights import (
    GGUF_FILE_BITS,
    LINEAR,
    METHODS,
    QUANTIZATIONS,
    RankWeights,
    Sharding,
    layer_shares,
    quantize,
    weight_bytes,
)
from brimline.readings import Footprint

Unit = Literal["bytes", "tokens", "tokens_per_second", "requests", "ratio", "parameters"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number: as it is predicted, and as it would be. now: None where the prediction has none."""

    name: str
    unit: Unit
    now: float | None
    then: float | None
    low: float | None = None
    high: float | None = None

    def as_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {"name": self.name, "unit": self.unit, "now": self.now, "then": self.then}
        if self.low is not None or self.high is not None:
            document |= {"then_low": self.low, "then_high": self.high}
        return document


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """The answer to one question. parameters: what it was computed with. notes: what it assumes."""

    name: str
    title: str
    parameters: Mapping[str, float | int | str]
    figures: tuple[Figure, ...]
    source: str
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "parameters": dict(self.parameters),
            "figures": [figure.as_json() for figure in self.figures],
            "source": self.source,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """A prediction and all that it was made from. link_bandwidth: bytes per second to the host, per GPU."""

    engine: str
    model: Model
    settings: Settings
    footprint: Footprint
    version: str | None = None
    gpu: Gpu | None = None
    link_bandwidth: float | None = None

    def again(self, architecture: Architecture) -> Footprint:
        """The prediction with another architecture; its weights are then computed, not read."""
        kept = {name: text for name, text in self.settings.items() if not name.startswith("hf_overrides")}
        return predict(self.engine, Model(architecture), kept, version=self.version, gpu=self.gpu)

    @property
    def architecture(self) -> Architecture:
        """As it runs: with overrides, and quantized where the launch asks for it."""
        architecture = self.model.overridden(self.settings).architecture
        stated = self.settings.get("quantization", "").lower()
        name = METHODS.get(stated, stated)
        if architecture.quantization is None and (name in QUANTIZATIONS or name in GGUF_FILE_BITS):
            return quantize(architecture, name)
        return architecture

    @property
    def weights(self) -> RankWeights:
        """All weights of the fullest GPU, before any is offloaded."""
        architecture = self.architecture
        sharding = Sharding(
            tensor=self.footprint.tensor_parallel,
            pipeline=len(self.footprint.ranks),
            data=1 if self.footprint.gpus else self.footprint.data_parallel,
            expert=self.settings.get("enable_expert_parallel", "").lower() in ("true", "1"),
        )
        stored = (
            self.model.stored if architecture.quantization == self.model.architecture.quantization else None
        )
        ranks = weight_bytes(
            architecture, sharding=sharding, dtype=self.settings.get("dtype", "auto"), stored=stored
        )
        stage = self.footprint.fullest.pipeline_stage
        return next(rank for rank in ranks if rank.pipeline_stage == stage)

    @property
    def context(self) -> int:
        return self.footprint.kv_cache.max_model_len_tokens


Question = Callable[[Predicted, str], Alternative]


def ask(predicted: Predicted, question: str) -> Alternative:
    """The answer to NAME or NAME=VALUE. Raises FootprintError for a question not known, or senseless here."""
    name, _, value = question.partition("=")
    if name not in WHAT_IFS:
        raise SettingError(f"--what-if {name[:40]!r} is not known; known: {', '.join(WHAT_IFS)}")
    return WHAT_IFS[name](predicted, value.strip())


def _ratio(question: str, text: str, *, default: float | None = None) -> float:
    if not text and default is not None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise SettingError(f"--what-if {question}: {text!r} is no number between 0 and 1")
    return value


def _no_value(question: str, text: str) -> None:
    if text:
        raise SettingError(f"--what-if {question} takes no value, and {text[:40]!r} is given")


# --- Keys of distant tokens shared across layers


def _pod(predicted: Predicted, text: str) -> Alternative:
    settings = PodSettings(shared_ratio=_ratio("pod", text, default=PodSettings().shared_ratio))
    keys, values = _key_value_elements(predicted.architecture)
    if not keys:
        raise SettingError("--what-if pod: no layer of the model keeps a key for every token of the context")
    cache, context = predicted.footprint.kv_cache, predicted.context
    saving = pod_saving_ratio(context, settings, key_dim=keys, value_dim=values)
    # What has a window or a state is kept as it is.
    growing = min(cache.full_request_bytes, round(cache.bytes_per_token * context))
    request = round(cache.full_request_bytes - saving * growing)
    figures = [
        Figure(
            name=f"KV cache of one request of {context:,} tokens",
            unit="bytes",
            now=cache.full_request_bytes,
            then=request,
            low=request,
            high=cache.full_request_bytes,
        ),
        Figure(
            name=f"part of its keys and values saved at {context:,} tokens", unit="ratio", now=0, then=saving
        ),
    ]
    figures += [
        Figure(
            name=f"part saved at {length:,} tokens",
            unit="ratio",
            now=0,
            then=pod_saving_ratio(length, settings, key_dim=keys, value_dim=values),
        )
        for length in (4096, 32768, 131072)
        if length != context
    ]
    if cache.max_concurrency_requests is not None and request:
        more = cache.max_concurrency_requests * cache.full_request_bytes / request
        figures.append(
            Figure(
                name="requests of full length at once",
                unit="requests",
                now=cache.max_concurrency_requests,
                then=more,
            )
        )
    return Alternative(
        name="pod",
        title="Keys of distant tokens shared across layers (POD)",
        parameters={
            "first_tokens": settings.first_tokens,
            "recent_tokens": settings.recent_tokens,
            "shared_ratio": settings.shared_ratio,
        },
        figures=tuple(figures),
        source="arXiv 2412.02252: keys of all but the first and recent tokens come from a lower layer; "
        "key / (key + value) * shared_ratio * distant / all tokens. 0.8 is what its 35 % at 32,768 imply",
        notes=(
            "The model must be trained further for it, and no serving engine does it.",
            "Values are not shared, so no more than the keys' part can be saved.",
        ),
    )


def _key_value_elements(architecture: Architecture) -> tuple[int, int]:
    """Elements of keys and of values that a token keeps in layers that see the whole context."""
    keys = values = 0
    for layer in architecture.layers:
        for mixer in layer.mixers:
            if _sees_all(mixer) and isinstance(mixer, Attention):
                keys += mixer.kv_heads * mixer.key_dim
                values += mixer.kv_heads * mixer.value_dim
    return keys, values


def _sees_all(mixer: Mixer) -> bool:
    if not isinstance(mixer, Attention):
        return False
    return mixer.window is None and mixer.chunk is None and not mixer.shares_kv and not mixer.cross


# --- Layers on the host


def _layerwise_offload(predicted: Predicted, text: str) -> Alternative:
    _no_value("layerwise-offload", text)
    weights = predicted.weights
    whole = weights.total.expected
    ends = weights.beside_layers.expected
    layers = [round((whole - ends) * share) for share in layer_shares(predicted.architecture, weights.layers)]
    moved = layerwise_offload(layers, ends)
    figures = [
        Figure(name="weights on the GPU", unit="bytes", now=whole, then=moved.gpu.expected),
        Figure(name="weights in host memory, for each GPU", unit="bytes", now=0, then=moved.host.expected),
        Figure(name="bytes over the link in each step", unit="bytes", now=0, then=moved.transferred_bytes),
    ]
    notes = ["The pool would grow by what the weights no longer take."]
    link = predicted.link_bandwidth
    if link is None:
        notes.append("Tokens per second need --link-bandwidth, such as 64e9 (PCIe 5.0, 16 lanes).")
    else:
        ceiling = predicted.footprint.decode_ceiling
        for batch in (1, 8, 64):
            now = None if ceiling is None else ceiling(batch, predicted.context)
            over_link = offloaded_tokens_per_second(moved, link, batch)
            figures.append(
                Figure(
                    name=f"decode ceiling, batch {batch} at {predicted.context:,} tokens",
                    unit="tokens_per_second",
                    now=now,
                    then=over_link if now is None else min(now, over_link),
                )
            )
    return Alternative(
        name="layerwise-offload",
        title="Every layer in host memory, two at a time on the GPU",
        parameters={} if link is None else {"link_bandwidth_bytes_per_second": link},
        figures=tuple(figures),
        source="GPU = 2 * the largest layer + what is in no layer; tokens/s <= batch * link / bytes moved",
        notes=tuple(notes),
    )


# --- Attention written out


def _eager_attention(predicted: Predicted, text: str) -> Alternative:
    _no_value("eager-attention", text)
    tp = predicted.footprint.tensor_parallel
    heads = max(
        (
            max(1, mixer.query_heads // tp)
            for layer in predicted.architecture.layers
            for mixer in layer.mixers
            if isinstance(mixer, Attention | LatentAttention)
        ),
        default=0,
    )
    if not heads:
        raise SettingError("--what-if eager-attention: the model has no softmax attention")
    figures = []
    for tokens in sorted({min(4096, predicted.context), predicted.context}):
        scores = eager_attention_bytes(batch=1, query_heads=heads, tokens=tokens)
        figures.append(
            Figure(
                name=f"scores of one layer for one prompt of {tokens:,} tokens",
                unit="bytes",
                now=4 * heads * tokens,
                then=scores.expected,
                low=scores.low,
                high=scores.high,
            )
        )
    return Alternative(
        name="eager-attention",
        title="Attention written out (eager) instead of fused (FlashAttention)",
        parameters={"query_heads_on_one_gpu": heads, "batch": 1},
        figures=tuple(figures),
        source="heads * tokens² elements, softmax in fp32 and its copy (transformers 5.19, modeling_llama.py "
        "eager_attention_forward); now: FlashAttention's statistics, 4 B for each head and token "
        "(arXiv 2307.08691)",
        notes=("Engines for serving never write the scores out; this is what a plain implementation takes.",),
    )


# --- Pruning


def _pruning(predicted: Predicted, text: str) -> Alternative:
    kind, _, ratio = text.partition(":")
    if text == "2:4":
        return _half_sparse(predicted)
    if kind == "unstructured":
        return _unstructured(predicted, _ratio("pruning=unstructured", ratio))
    if kind == "structured":
        return _structured(predicted, _ratio("pruning=structured", ratio))
    raise SettingError(
        f"--what-if pruning: {text[:40]!r} is not known; write structured:0.3, unstructured:0.5 or 2:4"
    )


def _unstructured(predicted: Predicted, ratio: float) -> Alternative:
    held = predicted.weights.total.expected
    return Alternative(
        name="pruning",
        title=f"{ratio:.0%} of the weights set to zero, wherever they stand",
        parameters={"kind": "unstructured", "ratio": ratio},
        figures=(Figure(name="weights on the GPU", unit="bytes", now=held, then=held),),
        source="a matrix with zeros in it is stored as it was: engines multiply dense matrices",
        notes=("It saves no bytes and no time; only whole rows, columns or a 2:4 pattern do.",),
    )


# Two of four values stay, with an index of two bits each.
_KEPT, _GROUP, _INDEX_BITS = 2, 4, 2


def _half_sparse(predicted: Predicted) -> Alternative:
    weights, quantization = predicted.weights, predicted.architecture.quantization
    bits = quantization.bits if quantization is not None else 16
    ratio = _KEPT * (bits + _INDEX_BITS) / (_GROUP * bits)
    linear = sum(weights.parts[part].expected for part in LINEAR)
    whole = weights.total.expected
    return Alternative(
        name="pruning",
        title="Two of every four weights of linear layers zero, stored packed (2:4)",
        parameters={"kind": "2:4", "bits": float(bits), "stored_ratio": ratio},
        figures=(
            Figure(name="weights on the GPU", unit="bytes", now=whole, then=whole - linear + linear * ratio),
            Figure(name="of that, linear layers", unit="bytes", now=linear, then=linear * ratio),
        ),
        source="arXiv 2104.08378: of four values two, and two bits of index for each of them",
        notes=("Embeddings, heads and norms stay whole. The model must be pruned to the pattern.",),
    )


def _structured(predicted: Predicted, ratio: float) -> Alternative:
    tp = predicted.footprint.tensor_parallel
    before = predicted.model.overridden(predicted.settings).architecture
    after = replace(before, layers=tuple(_thinner(layer, ratio, tp) for layer in before.layers))
    smaller = predicted.again(after)
    return Alternative(
        name="pruning",
        title=f"{ratio:.0%} of the heads and of the feed-forward width taken out",
        parameters={"kind": "structured", "ratio": ratio},
        figures=_compared(predicted.footprint, smaller),
        source="computed anew from the shapes that are left",
        notes=(
            "Query heads go with their K/V head, feed-forward channels in multiples of 64 on each GPU.",
            "Recurrent layers, embeddings and the number of layers stay.",
            "What the model still knows afterwards is another question.",
        ),
    )


def _thinner(layer: Layer, ratio: float, tp: int) -> Layer:
    part = layer.feed_forward
    if isinstance(part, FeedForward):
        part = replace(part, intermediate=_narrower(part.intermediate, ratio, 64 * tp))
    elif isinstance(part, Experts):
        part = replace(
            part,
            intermediate=_narrower(part.intermediate, ratio, 64 * tp),
            shared_intermediate=_narrower(part.shared_intermediate, ratio, 64 * tp),
        )
    return replace(
        layer, mixers=tuple(_fewer_heads(mixer, ratio, tp) for mixer in layer.mixers), feed_forward=part
    )


def _narrower(width: int, ratio: float, multiple: int) -> int:
    """A width less its part, in whole multiples; never wider than it was, nor empty."""
    if width <= multiple:
        return width
    return min(width, max(multiple, round(width * (1 - ratio) / multiple) * multiple))


def _fewer_heads(mixer: Mixer, ratio: float, tp: int) -> Mixer:
    if isinstance(mixer, Attention):
        kept = _narrower(mixer.kv_heads, ratio, tp)
        return replace(mixer, kv_heads=kept, query_heads=mixer.query_heads // mixer.kv_heads * kept)
    if isinstance(mixer, LatentAttention):
        return replace(mixer, query_heads=_narrower(mixer.query_heads, ratio, tp))
    return mixer


# --- K and V shared by neighbouring layers


def _cross_layer(predicted: Predicted, text: str) -> Alternative:
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise SettingError(f"--what-if cla: {text[:40]!r} is no number of layers; write cla=2")
    factor = int(text)
    before = predicted.model.overridden(predicted.settings).architecture
    if not any(_sees_all(mixer) for layer in before.layers for mixer in layer.mixers):
        raise SettingError(
            "--what-if cla: no layer of the model keeps K and V for every token of the context"
        )
    shared = predicted.again(replace(before, layers=tuple(_sharing(before.layers, factor))))
    return Alternative(
        name="cla",
        title=f"K and V shared by {factor} neighbouring layers (cross-layer attention)",
        parameters={"factor": factor},
        figures=_compared(predicted.footprint, shared),
        source="arXiv 2405.12981: of every `factor` layers one keeps K and V; the others have no projections",
        notes=("The model must be trained so.",),
    )


def _sharing(layers: Iterable[Layer], factor: int) -> Iterable[Layer]:
    """Layers of which only each factor-th one with full attention keeps K and V of its own."""
    seen = 0
    for layer in layers:
        if not any(_sees_all(mixer) for mixer in layer.mixers):
            yield layer
            continue
        if seen % factor:
            yield replace(
                layer,
                mixers=tuple(
                    replace(mixer, shares_kv=True)
                    if isinstance(mixer, Attention) and _sees_all(mixer)
                    else mixer
                    for mixer in layer.mixers
                ),
            )
        else:
            yield layer
        seen += 1


def _compared(now: Footprint, then: Footprint) -> tuple[Figure, ...]:
    """The figures of two predictions that a smaller model moves."""
    context = now.kv_cache.max_model_len_tokens

    def weights(footprint: Footprint) -> Estimate:
        return footprint.fullest.components.get("weights", exact(0, ""))

    figures = [
        Figure(name="parameters", unit="parameters", now=now.parameters, then=then.parameters),
        Figure(
            name="weights on the GPU",
            unit="bytes",
            now=weights(now).expected,
            then=weights(then).expected,
            low=weights(then).low,
            high=weights(then).high,
        ),
        Figure(
            name="KV cache of one token",
            unit="bytes",
            now=now.kv_cache.bytes_per_token,
            then=then.kv_cache.bytes_per_token,
        ),
        Figure(
            name=f"KV cache of one request of {context:,} tokens",
            unit="bytes",
            now=now.kv_cache.full_request_bytes,
            then=then.kv_cache.full_request_bytes,
        ),
    ]
    if now.kv_cache.max_concurrency_requests is not None:
        figures.append(
            Figure(
                name="requests of full length at once",
                unit="requests",
                now=now.kv_cache.max_concurrency_requests,
                then=then.kv_cache.max_concurrency_requests,
            )
        )
    if now.decode_ceiling is not None and then.decode_ceiling is not None:
        figures.append(
            Figure(
                name=f"decode ceiling, batch 1 at {context:,} tokens",
                unit="tokens_per_second",
                now=now.decode_ceiling(1, context),
                then=then.decode_ceiling(1, context),
            )
        )
    return tuple(figures)


WHAT_IFS: dict[str, Question] = {
    "pod": _pod,
    "layerwise-offload": _layerwise_offload,
    "eager-attention": _eager_attention,
    "pruning": _pruning,
    "cla": _cross_layer,
}
