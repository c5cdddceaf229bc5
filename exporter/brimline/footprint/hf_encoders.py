"""Encoder-decoder models, and encoders of images and sound beside a text model.

Sources: transformers 5.19, modeling_t5.py, modeling_bart.py, modeling_whisper.py and the vision towers named
below; counted by tests/oracles/parameter_counts.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from brimline.footprint.architecture import Architecture, Attention, Encoder, FeedForward, Layer
from brimline.footprint.hf_settings import MAX_LAYERS, Settings
from brimline.footprint.weights import layer_tensors

ENCODER_DECODERS = {"t5", "mt5", "umt5", "bart", "mbart", "whisper"}


# --- Encoders and decoders


def encoder_decoder(name: str, settings: Mapping[str, Any], source: str) -> Architecture:
    """Architecture of a model whose decoder attends to an encoder. Raises FootprintError."""
    config = Settings(settings, source)
    return _t5(name, config) if name.endswith("t5") else _bart(name, config)


def _t5(name: str, config: Settings) -> Architecture:
    """T5 (modeling_t5.py): no biases, relative positions in the first layer of each stack."""
    hidden, heads = config.hidden, config.count("num_heads")
    width = config.count("d_kv")
    activation = str(config.get("feed_forward_proj") or "relu")
    feed_forward = FeedForward(intermediate=config.count("d_ff"), gated=activation.startswith("gated"))
    own = Attention(query_heads=heads, kv_heads=heads, key_dim=width, value_dim=width)
    encoder = Layer(mixers=(own,), feed_forward=feed_forward, norm_elements=2 * hidden)
    decoder = Layer(
        mixers=(own, replace(own, cross=True)), feed_forward=feed_forward, norm_elements=3 * hidden
    )
    encoders = config.count("num_layers", most=MAX_LAYERS)
    decoders = config.count("num_decoder_layers", default=encoders, most=MAX_LAYERS)
    buckets = config.count("relative_attention_num_buckets", default=32) * heads
    # umT5 keeps relative positions in every layer.
    encoder_buckets, decoder_buckets = (encoders, decoders) if name == "umt5" else (1, 1)
    stack = (encoder,) * encoders
    return Architecture(
        model_type=name,
        vocabulary=config.count("vocab_size"),
        hidden=hidden,
        layers=(decoder,) * decoders,
        tied=config.get("tie_word_embeddings") is not False,
        extra_parameters=decoder_buckets * buckets + hidden,
        encoders=(
            Encoder(
                kind="text",
                parameters=_plain_parameters(stack, hidden) + encoder_buckets * buckets + hidden,
                layers=stack,
            ),
        ),
        source=config.source,
    )


def _bart(name: str, config: Settings) -> Architecture:
    """BART, mBART and Whisper (modeling_bart.py, modeling_whisper.py): biases everywhere, learned positions.

    Whisper's keys have no bias; its encoder hears through two convolutions and has fixed positions, which
    transformers stores as weights. mBART adds a norm at the end of each stack.
    """
    hidden = config.hidden
    whisper = name == "whisper"

    def attention(heads: int, *, cross: bool = False) -> Attention:
        if hidden % heads:
            raise config.refuse(f"decoder_attention_heads is {heads}, which does not divide d_model {hidden}")
        width = hidden // heads
        return Attention(
            query_heads=heads, kv_heads=heads, key_dim=width, value_dim=width, qkv_bias=not whisper,
            output_bias=True, cross=cross,
        )  # fmt: skip

    def feed_forward(side: str) -> FeedForward:
        return FeedForward(intermediate=config.count(f"{side}_ffn_dim"), gated=False, bias=True)

    without_keys = 2 * hidden if whisper else 0  # biases of queries and values
    heads = config.count("encoder_attention_heads", "num_attention_heads")
    encoder = Layer(
        mixers=(attention(heads),), feed_forward=feed_forward("encoder"), norm_elements=4 * hidden,
        other_elements=without_keys,
    )  # fmt: skip
    heads = config.count("decoder_attention_heads", "num_attention_heads")
    decoder = Layer(
        mixers=(attention(heads), attention(heads, cross=True)), feed_forward=feed_forward("decoder"),
        norm_elements=6 * hidden, other_elements=2 * without_keys,
    )  # fmt: skip
    stack = (encoder,) * config.count("encoder_layers", most=MAX_LAYERS)
    if whisper:
        bands, sources = config.count("num_mel_bins", default=80), config.count("max_source_positions")
        convolutions = 3 * bands * hidden + hidden + 3 * hidden**2 + hidden
        encoder_extra = convolutions + sources * hidden + 2 * hidden
        positions = config.count("max_target_positions")
        decoder_extra = positions * hidden + 2 * hidden
        tokens: int | None = sources
    else:
        positions = config.count("max_position_embeddings")
        norms = 4 if name == "mbart" else 2
        encoder_extra = decoder_extra = (positions + 2) * hidden + norms * hidden
        tokens = positions
    return Architecture(
        model_type=name,
        vocabulary=config.count("vocab_size"),
        hidden=hidden,
        layers=(decoder,) * config.count("decoder_layers", most=MAX_LAYERS),
        tied=config.get("tie_word_embeddings") is not False,
        max_position=positions,
        extra_parameters=decoder_extra,
        encoders=(
            Encoder(
                kind="audio" if whisper else "text",
                parameters=_plain_parameters(stack, hidden) + encoder_extra,
                layers=stack,
                max_tokens=tokens,
            ),
        ),
        source=config.source,
    )


def _plain_parameters(layers: Sequence[Layer], hidden: int) -> int:
    """Weights of an encoder's layers."""
    return sum(tensor.elements for layer in layers for tensor in layer_tensors(layer, hidden))


# --- Senses


def encoders_of(
    whole: Mapping[str, Any], hidden: int, source: str, assumptions: list[str]
) -> tuple[Encoder, ...]:
    """Vision and audio encoders that the settings of the whole model tell of; adds what was assumed."""
    found = []
    for key, kind in (("vision_config", "vision"), ("audio_config", "audio")):
        settings = whole.get(key)
        if not isinstance(settings, dict) or not settings:
            continue
        config = Settings(_unpaired(settings), f"{source}: {key}")
        parameters = _encoder_parameters(config, str(whole.get("model_type")), whole, hidden)
        if parameters is None:
            assumptions.append(f"the {kind} encoder's weights are not counted: {key} tells no size")
            continue
        assumptions.append(f"the {kind} encoder is counted as plain transformer layers, within some percent")
        found.append(Encoder(kind="vision" if kind == "vision" else "audio", parameters=parameters))
    return tuple(found)


def _unpaired(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the first of two where a size is written for height and width."""
    sizes = ("patch_size", "image_size")
    return {
        key: value[0] if key in sizes and isinstance(value, list) and value else value
        for key, value in settings.items()
    }


def _encoder_parameters(
    config: Settings, model_type: str, whole: Mapping[str, Any], hidden: int
) -> int | None:
    """Weights of an encoder as its settings tell: layers, patches, positions and a projector.

    The towers in use (transformers 5.19: siglip, clip, pixtral, qwen2_vl, qwen2_5_vl, qwen3_vl, llama4)
    differ in biases and special tokens, which this does not follow: within 1 % for those. None without a
    size.
    """
    width = config.optional("embed_dim", "hidden_size", "d_model", "width")
    depth = config.optional("depth", "num_hidden_layers", "encoder_layers", "layers", most=MAX_LAYERS)
    if width is None or depth is None:
        return None
    ratio = config.get("mlp_ratio")
    wide = int(ratio * width) if isinstance(ratio, int | float) and 0 < ratio <= 64 else 4 * width
    inner = config.count("intermediate_size", "encoder_ffn_dim", "ffn_dim", default=wide)
    gated = "silu" in str(config.get("hidden_act")) or config.get("model_type") == "pixtral"
    layers = depth * (4 * width**2 + (3 if gated else 2) * width * inner + inner + 9 * width)
    patch = config.count("patch_size", "spatial_patch_size", default=1, most=1024)
    patches = 3 * config.count("temporal_patch_size", default=1, most=1024) * patch**2 * width
    image = config.optional("image_size", most=1 << 16)
    learned = config.get("model_type") != "pixtral" and image is not None
    tokens = (image // patch) ** 2 if learned and image is not None else 0
    tokens = config.count("num_position_embeddings", default=tokens, least=0)
    merge = config.optional("spatial_merge_size", most=1024)
    if merge is not None:  # Qwen: neighbouring patches are joined, and once more for each deep stack
        # Qwen2-VL calls its own width embed_dim, and the width it gives to the text model hidden_size.
        given = config.optional("hidden_size") if config.get("embed_dim") else None
        out = config.count("out_hidden_size", default=given or hidden)
        stacks = config.get("deepstack_visual_indexes")
        mergers = 1 + (len(stacks) if isinstance(stacks, list) else 0)
        joined = width * merge**2
        projector = mergers * (joined**2 + joined * out)
    elif model_type in ("gemma3", "paligemma"):
        projector = width * hidden
    elif model_type == "llama4":
        adapter, out = config.count("projector_output_dim", default=4096), config.count("vision_output_dim")
        projector = inner * adapter + adapter**2 + out * hidden
    else:
        projector = width * hidden + hidden**2
        outer = whole.get("spatial_merge_size")
        if isinstance(outer, int) and 0 < outer < 1024:  # Mistral 3
            projector += (width * outer) ** 2
    return layers + patches + (tokens + 2) * width + projector
