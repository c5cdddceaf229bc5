"""Encoder-decoder models.

Sources: transformers 5.19, modeling_t5.py, modeling_bart.py and modeling_whisper.py; counted by
tests/oracles/parameter_counts.py.
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
        rotary=(),
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
        rotary=(),
    )


def _plain_parameters(layers: Sequence[Layer], hidden: int) -> int:
    """Weights of an encoder's layers."""
    return sum(tensor.elements for layer in layers for tensor in layer_tensors(layer, hidden))
