"""Towers that see or hear beside a text model, and the projectors between: their numbers of weights.

What a tower builds is taken from its class in transformers 5.19 (models/FAMILY/modeling_FAMILY.py), and
counted there on the meta device (tests/oracles/parameter_counts.py). A tower that is not known here is
counted as plain transformer layers, and said to be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from brimline.footprint.architecture import Encoder
from brimline.footprint.hf_defaults import class_defaults
from brimline.footprint.hf_settings import HEADS_NAMES, MAX_LAYERS, Settings

_WIDTH_NAMES = ("hidden_size", "embed_dim", "d_model", "width", "vt_hidden_size")
_DEPTH_NAMES = (
    "num_hidden_layers", "depth", "encoder_layers", "layers", "vt_num_hidden_layers", "num_blocks",
)  # fmt: skip
_INNER_NAMES = ("intermediate_size", "encoder_ffn_dim", "ffn_dim", "vt_intermediate_size")
_MAX_SIDE = 1 << 16

# MobileNet V5 of 300 million (timm 1.0.31, mobilenetv5_300m_enc). The sum with the rest is the number of
# weights of google/gemma-3n-E4B-it.
_MOBILENET_V5 = 294_126_912

Kind = Literal["vision", "audio"]


def encoders_of(
    whole: Mapping[str, Any], hidden: int, source: str, assumptions: list[str]
) -> tuple[Encoder, ...]:
    """Vision and audio encoders that the settings of the whole model tell of; adds what was assumed."""
    family = str(whole.get("model_type"))
    if family == "phi4mm":
        assumptions.append("the encoders' weights are not counted: config.json tells no sizes of them")
    found = []
    sides: tuple[tuple[str, Kind], ...] = (("vision_config", "vision"), ("audio_config", "audio"))
    for key, kind in sides:
        settings = whole.get(key)
        if not isinstance(settings, dict) or (not settings and family not in _ENCODERS_BY_DEFAULT):
            continue
        tower = str(settings.get("model_type") or _DEFAULT_TOWERS.get((family, kind), ""))
        tower = _SAME_TOWERS.get(tower, tower)
        config = Settings(_unpaired(settings), f"{source}: {key}", class_defaults(tower))
        outer = Settings(whole, source, class_defaults(family))
        count = TOWERS.get(tower)
        if count is not None:
            parameters = count(config, outer, hidden) + _projector(tower, family, config, outer, hidden)
            width, inner = _widths(tower, config)
            merged = _MERGES[tower](config) if tower in _MERGES else 1
            merged = _MERGED_OUTSIDE[family](config, outer) if family in _MERGED_OUTSIDE else merged
            found.append(
                Encoder(
                    kind=kind, parameters=parameters, width=width, inner=inner, merged=merged,
                    max_tokens=_ITEM_TOKENS[family](config, outer) if family in _ITEM_TOKENS else None,
                )
            )  # fmt: skip
            continue
        plain = _plain(config, hidden)
        if plain is None:
            assumptions.append(f"the {kind} encoder's weights are not counted: {key} tells no size")
            continue
        assumptions.append(f"the {kind} encoder is counted as plain transformer layers, within some percent")
        width = config.optional(*_WIDTH_NAMES)
        inner = config.optional(*_INNER_NAMES)
        found.append(Encoder(kind=kind, parameters=plain, width=width, inner=inner, known=False))
    return tuple(found)


def _unpaired(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the first of two where a size is written for height and width."""
    sizes = ("patch_size", "image_size")
    return {
        key: value[0] if key in sizes and isinstance(value, list) and value else value
        for key, value in settings.items()
    }


# --- Parts of towers


def _linear(inputs: int, outputs: int, *, bias: bool = True) -> int:
    return inputs * outputs + (outputs if bias else 0)


def _block(
    width: int,
    inner: int,
    *,
    gated: bool = False,
    attention_bias: bool = True,
    bias: bool = True,
    norm: int = 2,
    kv_width: int | None = None,
) -> int:
    """One transformer layer. norm: weights of a norm per element, 2 with a bias; there are two of them."""
    keys = width if kv_width is None else kv_width
    attention = 2 * _linear(width, width, bias=attention_bias) + 2 * _linear(width, keys, bias=attention_bias)
    ups = (2 if gated else 1) * _linear(width, inner, bias=bias)
    return attention + ups + _linear(inner, width, bias=bias) + 2 * norm * width


def _width(config: Settings) -> int:
    return config.count(*_WIDTH_NAMES, most=1 << 20)


def _depth(config: Settings) -> int:
    return config.count(*_DEPTH_NAMES, most=MAX_LAYERS)


def _inner(config: Settings) -> int:
    return config.count(*_INNER_NAMES, default=4 * _width(config))


def _side(config: Settings) -> int:
    """Patches along one side of an image."""
    image = config.count("image_size", default=224, most=_MAX_SIDE)
    return max(1, image // _patch(config))


def _patch(config: Settings) -> int:
    return config.count("patch_size", "spatial_patch_size", default=14, most=4096)


def _patches(config: Settings, *, frames: bool = False) -> int:
    """The projection of a patch, without a bias; of two frames at once where a model sees videos so."""
    times = config.count("temporal_patch_size", default=2, most=1024) if frames else 1
    return 3 * times * _patch(config) ** 2 * _width(config)


def _number(config: Settings, name: str, default: float) -> float:
    value = config.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1024
    return float(value) if is_number else default


# --- Eyes


def _siglip(config: Settings, _outer: Settings, _hidden: int, *, head: bool | None = None) -> int:
    """SigLIP (modeling_siglip.py); its pooling head is there unless vision_use_head is false."""
    width, inner = _width(config), _inner(config)
    size = _depth(config) * _block(width, inner)
    positions = config.optional("num_patches")  # SigLIP 2 states them
    size += _patches(config) + width + (positions or _side(config) ** 2) * width + 2 * width
    pools = config.get("vision_use_head") is not False if head is None else head
    if pools:
        size += width + _linear(width, 3 * width) + _linear(width, width) + 2 * width
        size += _linear(width, inner) + _linear(inner, width)
    return size


def _siglip_without_head(config: Settings, outer: Settings, hidden: int) -> int:
    """Idefics 3, SmolVLM, PaddleOCR-VL."""
    return _siglip(config, outer, hidden, head=False)


def _clip(config: Settings, _outer: Settings, _hidden: int) -> int:
    """CLIP (modeling_clip.py): a class token, norms before and after, patches without a bias."""
    width = _width(config)
    return (
        _depth(config) * _block(width, _inner(config))
        + _patches(config)
        + (_side(config) ** 2 + 2) * width
        + 4 * width
    )


def _internvl(config: Settings, _outer: Settings, _hidden: int) -> int:
    """InternViT (modeling_internvl.py), and the original's own names of its settings."""
    width = _width(config)
    norm = 1 if str(config.get("norm_type")) == "rms_norm" else 2
    biased = config.flag("attention_bias") or config.flag("qkv_bias")
    block = _block(width, _inner(config), attention_bias=biased, norm=norm) + 2 * width
    block += 0 if biased else width  # the projection out has a bias anyway
    if config.flag("use_qk_norm") or config.flag("qk_normalization"):
        block += 2 * width
    size = _depth(config) * block + _patches(config) + width + width
    if config.get("use_absolute_position_embeddings") is not False:
        size += (_side(config) ** 2 + 1) * width
    if config.flag("use_mask_token"):
        size += width
    return size


def _pixtral(config: Settings, _outer: Settings, _hidden: int) -> int:
    """Pixtral (modeling_pixtral.py): no biases, gated, rotary positions."""
    width = _width(config)
    block = _block(width, _inner(config), gated=True, attention_bias=False, bias=False, norm=1)
    return _depth(config) * block + _patches(config) + width


def _llama4(config: Settings, _outer: Settings, _hidden: int) -> int:
    """Llama 4 (modeling_llama4.py) with its adapter."""
    width, inner = _width(config), _inner(config)
    size = _depth(config) * _block(width, inner) + _patches(config)
    size += (_side(config) ** 2 + 2) * width + 4 * width
    wide = config.count("projector_output_dim")
    return size + inner * config.count("projector_input_dim") + wide**2


def _merged(config: Settings) -> int:
    """Elements of neighbouring patches, joined."""
    merge = config.count("spatial_merge_size", default=2, most=1024)
    return int(_width(config)) * merge**2


def _qwen2_vl(config: Settings, _outer: Settings, hidden: int) -> int:
    """Qwen2-VL (modeling_qwen2_vl.py) calls its width embed_dim, and the text model's hidden_size."""
    width = config.count("embed_dim", most=1 << 20)
    tower = config.over({"hidden_size": width})
    inner = int(_number(config, "mlp_ratio", 4) * width)
    joined = _merged(tower)
    size = _depth(config) * _block(width, inner) + _patches(tower, frames=True) + 2 * width
    return size + _linear(joined, joined) + _linear(joined, config.count("hidden_size", default=hidden))


def _qwen2_5_vl(config: Settings, _outer: Settings, hidden: int) -> int:
    """Qwen2.5-VL and Omni (modeling_qwen2_5_vl.py); EXAONE 4.5 has fewer K/V heads."""
    width, joined = _width(config), _merged(config)
    heads = config.count("num_heads", *HEADS_NAMES, default=16, most=1 << 16)
    kv_heads = config.count("num_key_value_heads", default=heads, most=1 << 16)
    block = _block(width, _inner(config), gated=True, norm=1, kv_width=width * kv_heads // heads)
    out = config.count("out_hidden_size", default=hidden)
    size = _depth(config) * block + _patches(config, frames=True) + width
    return size + _linear(joined, joined) + _linear(joined, out)


def _qwen3_vl(config: Settings, _outer: Settings, hidden: int) -> int:
    """Qwen3-VL and Qwen3.5 (modeling_qwen3_vl.py), with a merger more for each deep stack."""
    width, joined = _width(config), _merged(config)
    out = config.count("out_hidden_size", default=hidden)
    size = _depth(config) * _block(width, _inner(config)) + _patches(config, frames=True) + width
    size += config.count("num_position_embeddings", default=2304, least=0) * width
    stacks = config.get("deepstack_visual_indexes")
    deep = min(len(stacks), MAX_LAYERS) if isinstance(stacks, list) else 0
    merger = _linear(joined, joined) + _linear(joined, out)
    return size + 2 * width + merger + deep * (2 * joined + merger)


def _glm4v(config: Settings, _outer: Settings, hidden: int) -> int:
    """GLM-4V (modeling_glm4v.py): its layers are as wide inside as the text model."""
    width, out = _width(config), config.count("out_hidden_size", default=hidden)
    biased = config.flag("attention_bias")
    block = _block(width, out, gated=True, attention_bias=biased, bias=False, norm=1)
    size = _depth(config) * block + _side(config) ** 2 * width + 2 * width
    return size + _glm_ends(config, out, config.count("intermediate_size"))


def _glm_ocr(config: Settings, _outer: Settings, hidden: int) -> int:
    """GLM-OCR (modeling_glm_ocr.py): biases, norms of queries and keys, no learned positions."""
    width, out = _width(config), config.count("out_hidden_size", default=hidden)
    heads = config.count("num_heads", *HEADS_NAMES, default=16, most=1 << 16)
    biased = config.flag("attention_bias")
    block = _block(width, _inner(config), gated=True, attention_bias=biased, bias=biased, norm=1)
    block += 2 * (width // heads)
    channels = config.count("in_channels", "num_channels", default=3, most=1024)
    return _depth(config) * block + width + _glm_ends(config, out, out * channels)


def _ernie_vl(config: Settings, _outer: Settings, hidden: int) -> int:
    """ERNIE 4.5 VL (modeling_ernie4_5_vl_moe.py): patches are joined in space, then in time."""
    joined = _merged(config)
    frames = config.count("temporal_merge_size", default=2, most=1024)
    size = _depth(config) * _block(_width(config), _inner(config)) + _patches(config) + 2 * _width(config)
    size += _linear(joined, joined) + _linear(joined * frames, joined)
    return size + 2 * (_linear(joined, joined) + 2 * joined) + _linear(joined, hidden) + hidden


def _glm_ends(config: Settings, out: int, inner: int) -> int:
    """Patches of two frames, and the way down to the text model's width through a gated part."""
    merge = config.count("spatial_merge_size", default=2, most=1024)
    width = _width(config)
    down = width * out * merge**2 + out
    return _patches(config, frames=True) + width + down + out**2 + 2 * out + 3 * out * inner


def _moonvit(config: Settings, _outer: Settings, _hidden: int) -> int:
    """MoonViT (Kimi-VL, Kimi K2.5; modeling_kimi_k25.py)."""
    width = _width(config)
    height = config.count("pos_emb_height", "init_pos_emb_height", default=64, most=_MAX_SIDE)
    across = config.count("pos_emb_width", "init_pos_emb_width", default=64, most=_MAX_SIDE)
    size = _depth(config) * _block(width, _inner(config)) + _patches(config) + width
    return size + height * across * width + 2 * width


def _gemma4_vision(config: Settings, _outer: Settings, _hidden: int) -> int:
    """Gemma 4 (modeling_gemma4.py): two tables of positions, six norms a layer."""
    width, head = _width(config), config.head_dim
    queries, keys = config.heads * head, config.kv_heads * head
    attention = 2 * width * queries + 2 * width * keys + 2 * head
    block = attention + 3 * width * _inner(config) + 4 * width
    positions = 2 * config.count("position_embedding_size", default=10240) * width
    return _depth(config) * block + positions + _patches(config)


def _gemma3n_vision(config: Settings, _outer: Settings, _hidden: int) -> int:
    """MobileNet V5 and the table of its own tokens."""
    if str(config.get("architecture")) != "mobilenetv5_300m_enc":
        raise config.refuse("architecture is not mobilenetv5_300m_enc, the one that is known here")
    return _MOBILENET_V5 + _own_tokens(config)


def _own_tokens(config: Settings) -> int:
    """Gemma 3n's table of the tokens of one sense, with two norms."""
    return (config.count("vocab_size") + 2) * _width(config)


def _phi4_vision(config: Settings, outer: Settings, hidden: int) -> int:
    """Phi-4 multimodal (modeling_phi4_multimodal.py): SigLIP with its head, two marks between pictures."""
    width = _width(config)
    return _siglip(config, outer, hidden, head=True) + 2 * width


# --- Ears


def _whisper(config: Settings, _outer: Settings, _hidden: int) -> int:
    """Whisper's encoder (Qwen2-Audio, Voxtral): keys have no bias, positions are stored."""
    return _whisper_layers(config) + config.count("max_source_positions", default=1500) * _width(config)


def _whisper_layers(config: Settings) -> int:
    width = _width(config)
    bands = config.count("num_mel_bins", default=128, most=4096)
    convolutions = 3 * bands * width + width + 3 * width**2 + width
    return _depth(config) * (_block(width, _inner(config)) - width) + convolutions + 2 * width


def _omni_audio(config: Settings, _outer: Settings, hidden: int) -> int:
    """Qwen2.5-Omni: Whisper's layers without stored positions, two marks and a projection."""
    out = config.count("output_dim", default=hidden)
    return _whisper_layers(config) + 2 * out + _linear(_width(config), out)


def _qwen3_audio(config: Settings, _outer: Settings, hidden: int) -> int:
    """Qwen3-ASR and Qwen3-Omni (modeling_qwen3_asr.py): three convolutions over time and frequency."""
    width, channels = _width(config), config.count("downsample_hidden_size", default=480, most=1 << 16)
    bands = config.count("num_mel_bins", default=128, most=4096)
    rows = bands
    for _ in range(3):  # each convolution halves them, rounding up
        rows = -(-rows // 2)
    size = _depth(config) * _block(width, _inner(config)) + 2 * width
    size += 10 * channels + 2 * (9 * channels**2 + channels) + rows * channels * width
    return size + _linear(width, width) + _linear(width, config.count("output_dim", default=hidden))


def _conformer(config: Settings, width: int, layers: int, heads: int, kernel: int) -> int:
    """The conformer of Gemma 3n and 4: two feed-forward parts, relative attention, a light convolution."""
    feed_forward = 2 * (2 * width * 4 * width + 2 * width)
    attention = 5 * width**2 + width // heads
    convolution = 3 * width**2 + kernel * width + 2 * width
    first, second = _channels(config)
    return layers * (feed_forward + attention + convolution + 3 * width) + (
        9 * first + first + 9 * first * second + second
    )


def _channels(config: Settings) -> tuple[int, int]:
    match config.get("subsampling_conv_channels", "sscp_conv_channel_size"):
        case [int(first), int(second)] if 0 < first <= _MAX_SIDE and 0 < second <= _MAX_SIDE:
            return first, second
    raise config.refuse("the channels of its two convolutions are no pair of sizes")


def _gemma4_audio(config: Settings, _outer: Settings, _hidden: int) -> int:
    width = _width(config)
    first, second = _channels(config)
    kernel = config.count("conv_kernel_size", default=5, most=4096)
    size = _conformer(config, width, _depth(config), config.heads, kernel) + first // 4 * second * width
    return size + _linear(width, config.count("output_proj_dims"))


def _gemma3n_audio(config: Settings, _outer: Settings, _hidden: int) -> int:
    width = _width(config)
    heads = config.count("conf_num_attention_heads", default=8, most=1 << 16)
    layers = config.count("conf_num_hidden_layers", default=12, most=MAX_LAYERS)
    kernel = config.count("conf_conv_kernel_size", default=5, most=4096)
    bands = config.count("input_feat_size", default=128, most=4096)
    size = _conformer(config, width, layers, heads, kernel)
    return size + bands // 4 * _channels(config)[1] * width + _own_tokens(config)


def _phi4_audio(config: Settings, _outer: Settings, hidden: int) -> int:
    """Phi-4 multimodal's conformer, with projections for speech alone and beside pictures."""
    width, inner = _width(config), _inner(config)
    heads = config.count("num_attention_heads", most=1 << 16)
    feed_forward = 2 * (2 * width + _linear(width, 2 * inner) + _linear(inner, width))
    attention = 4 * _linear(width, width) + 4 * width  # and the norms around it
    out = config.count("ext_pw_out_channel", default=width)
    depthwise = config.count("depthwise_multiplier", default=1, most=1024)
    separable = config.count("depthwise_separable_out_channel", default=width)
    kernel = config.count("kernel_size", default=3, most=4096)
    convolution = 2 * width + _linear(width, 2 * out) + 2 * out + _linear(out, width)
    convolution += width * depthwise * (kernel + 1) + _linear(width * depthwise, separable)
    channels = config.count("nemo_conv_channels", default=width)
    first = 9 * channels + channels
    later = 2 * (9 * channels + channels + channels**2 + channels)
    out_of_them = _linear(channels * config.count("nemo_final_size", default=10, most=4096), width)
    distances = config.count("bias_max_distance", default=1000) * (1 if config.flag("bias_symmetric") else 2)
    layers = _depth(config) * (feed_forward + attention + convolution)
    rate = config.count("downsample_rate", default=1, most=1024)
    projections = 2 * (_linear(width * rate, hidden) + _linear(hidden, hidden))
    return layers + first + later + out_of_them + distances * heads + projections


# Towers by their own model_type.
TOWERS: dict[str, Callable[[Settings, Settings, int], int]] = {
    "siglip_vision_model": _siglip,
    "siglip2_vision_model": _siglip,
    "clip_vision_model": _clip,
    "idefics3_vision": _siglip_without_head,
    "smolvlm_vision": _siglip_without_head,
    "paddleocr_vl_vision": _siglip_without_head,
    "internvl_vision": _internvl,
    "pixtral": _pixtral,
    "llama4_vision_model": _llama4,
    "qwen2_vl_vision": _qwen2_vl,
    "qwen2_5_vl_vision": _qwen2_5_vl,
    "qwen2_5_omni_vision_encoder": _qwen2_5_vl,
    "exaone4_5_vision": _qwen2_5_vl,
    "qwen3_vl_vision": _qwen3_vl,
    "qwen3_vl_moe_vision": _qwen3_vl,
    "qwen3_5_vision": _qwen3_vl,
    "qwen3_5_moe_vision": _qwen3_vl,
    "qwen3_omni_moe_vision_encoder": _qwen3_vl,
    "glm4v_vision": _glm4v,
    "glm4v_moe_vision": _glm4v,
    "glm_ocr_vision": _glm_ocr,
    "ernie4_5_vl_moe_vision": _ernie_vl,
    "kimi_k25_vision": _moonvit,
    "gemma3n_vision": _gemma3n_vision,
    "gemma4_vision": _gemma4_vision,
    "phi4_multimodal_vision": _phi4_vision,
    "qwen2_audio_encoder": _whisper,
    "voxtral_encoder": _whisper,
    "qwen2_5_omni_audio_encoder": _omni_audio,
    "qwen3_asr_encoder": _qwen3_audio,
    "qwen3_omni_moe_audio_encoder": _qwen3_audio,
    "gemma3n_audio": _gemma3n_audio,
    "gemma4_audio": _gemma4_audio,
    "phi4_multimodal_audio": _phi4_audio,
}

# Other names of a tower: of files of an older transformers, and of code that comes with a model.
_SAME_TOWERS = {
    "qwen2_vl": "qwen2_vl_vision", "qwen2_5_vl": "qwen2_5_vl_vision", "qwen3_vl": "qwen3_vl_vision",
    "qwen3_vl_moe": "qwen3_vl_moe_vision", "qwen3_5": "qwen3_5_vision", "qwen3_5_moe": "qwen3_5_moe_vision",
    "glm4v": "glm4v_vision", "glm4v_moe": "glm4v_moe_vision", "siglip": "siglip_vision_model",
    "clip": "clip_vision_model", "idefics3": "idefics3_vision", "smolvlm": "smolvlm_vision",
    "moonvit": "kimi_k25_vision", "kimi_k25": "kimi_k25_vision", "intern_vit_6b": "internvl_vision",
}  # fmt: skip

# The tower of a model whose file does not name it, from the model's own configuration class.
_DEFAULT_TOWERS: dict[tuple[str, Kind], str] = {
    ("llava", "vision"): "clip_vision_model",
    ("llava_next", "vision"): "clip_vision_model",
    ("llava_onevision", "vision"): "siglip_vision_model",
    ("paligemma", "vision"): "siglip_vision_model",
    ("gemma3", "vision"): "siglip_vision_model",
    ("gemma3n", "vision"): "gemma3n_vision",
    ("gemma3n", "audio"): "gemma3n_audio",
    ("gemma4", "vision"): "gemma4_vision",
    ("gemma4", "audio"): "gemma4_audio",
    ("cohere2_vision", "vision"): "siglip_vision_model",
    ("aya_vision", "vision"): "siglip_vision_model",
    ("internvl", "vision"): "internvl_vision",
    ("internvl_chat", "vision"): "internvl_vision",
    ("mistral3", "vision"): "pixtral",
    ("llama4", "vision"): "llama4_vision_model",
    ("idefics3", "vision"): "idefics3_vision",
    ("smolvlm", "vision"): "smolvlm_vision",
    ("lfm2_vl", "vision"): "siglip2_vision_model",
    ("qwen2_vl", "vision"): "qwen2_vl_vision",
    ("qwen2_5_vl", "vision"): "qwen2_5_vl_vision",
    ("qwen3_vl", "vision"): "qwen3_vl_vision",
    ("qwen3_vl_moe", "vision"): "qwen3_vl_moe_vision",
    ("qwen3_5", "vision"): "qwen3_5_vision",
    ("qwen3_5_moe", "vision"): "qwen3_5_moe_vision",
    ("glm4v", "vision"): "glm4v_vision",
    ("glm46v", "vision"): "glm4v_vision",
    ("glm4v_moe", "vision"): "glm4v_moe_vision",
    ("glm_ocr", "vision"): "glm_ocr_vision",
    ("kimi_vl", "vision"): "kimi_k25_vision",
    ("kimi_k25", "vision"): "kimi_k25_vision",
    ("paddleocr_vl", "vision"): "paddleocr_vl_vision",
    ("qwen2_audio", "audio"): "qwen2_audio_encoder",
    ("voxtral", "audio"): "voxtral_encoder",
    ("phi4_multimodal", "vision"): "phi4_multimodal_vision",
    ("phi4_multimodal", "audio"): "phi4_multimodal_audio",
}
# Models that have an encoder where its settings are there and empty.
_ENCODERS_BY_DEFAULT = {family for family, _ in _DEFAULT_TOWERS}


# --- Projectors


def _projector(tower: str, family: str, config: Settings, outer: Settings, hidden: int) -> int:
    """Weights between a tower and the text model; 0 where the tower counts its own."""
    if tower in _PROJECTED_TOWERS:
        return _PROJECTED_TOWERS[tower](config, outer, hidden)
    build = _PROJECTORS.get(family)
    return build(config, outer, hidden) if build else 0


def _llava(config: Settings, outer: Settings, hidden: int) -> int:
    """LLaVA (modeling_llava.py); vision_feature_layer may list several layers, whose outputs are joined."""
    layers = outer.get("vision_feature_layer")
    times = max(1, min(len(layers), MAX_LAYERS)) if isinstance(layers, list) else 1
    biased = outer.get("multimodal_projector_bias") is not False
    return _linear(times * _width(config), hidden, bias=biased) + _linear(hidden, hidden, bias=biased)


def _llava_with_newline(config: Settings, outer: Settings, hidden: int) -> int:
    return _llava(config, outer, hidden) + hidden


def _mistral3(config: Settings, outer: Settings, hidden: int) -> int:
    """Mistral 3 and LightOnOCR (modeling_mistral3.py): patches are merged before they are projected."""
    width = _width(config)
    merge = outer.count("spatial_merge_size", default=2, most=1024)
    biased = outer.flag("multimodal_projector_bias")
    size = width + width**2 * merge**2
    return size + _linear(width, hidden, bias=biased) + _linear(hidden, hidden, bias=biased)


def _gemma3(config: Settings, _outer: Settings, hidden: int) -> int:
    return _width(config) * hidden + _width(config)


def _paligemma(config: Settings, outer: Settings, hidden: int) -> int:
    stated = config.optional("projection_dim") or outer.optional("projection_dim")
    return _linear(_width(config), stated or hidden)


def _internvl_projector(config: Settings, outer: Settings, hidden: int) -> int:
    ratio = _number(outer, "downsample_ratio", 0.5)
    joined = round(_width(config) / min(ratio, 1) ** 2)
    return 2 * joined + _linear(joined, hidden) + _linear(hidden, hidden)


def _cohere2_vision(config: Settings, outer: Settings, hidden: int) -> int:
    """Cohere's gate halves the width between the two projections (modeling_cohere2_vision.py)."""
    joined = _width(config) * outer.count("downsample_factor", default=2, most=1024) ** 2
    wide = outer.count("alignment_intermediate_size", default=36864)
    return _linear(joined, wide) + _linear(wide // 2, hidden)


def _aya_vision(config: Settings, outer: Settings, hidden: int) -> int:
    joined = _width(config) * outer.count("downsample_factor", default=2, most=1024) ** 2
    wide = outer.count("alignment_intermediate_size", default=hidden)
    return 2 * joined + _linear(joined, wide) + _linear(wide // 2, hidden)


def _idefics3(config: Settings, outer: Settings, hidden: int) -> int:
    return _width(config) * outer.count("scale_factor", default=2, most=1024) ** 2 * hidden


def _lfm2_vl(config: Settings, outer: Settings, hidden: int) -> int:
    joined = _width(config) * outer.count("downsample_factor", default=2, most=1024) ** 2
    wide = outer.count("projector_hidden_size", default=2560)
    biased = outer.get("projector_bias") is not False
    size = _linear(joined, wide, bias=biased) + _linear(wide, hidden, bias=biased)
    return size + (0 if outer.get("projector_use_layernorm") is False else 2 * joined)


def _kimi(config: Settings, _outer: Settings, hidden: int) -> int:
    """Kimi joins 2 × 2 patches (merge_kernel_size)."""
    match config.get("merge_kernel_size"):
        case [int(rows), int(columns)] if 0 < rows <= 64 and 0 < columns <= 64:
            joined = _width(config) * rows * columns
        case _:
            joined = _width(config) * 4
    return 2 * _width(config) + _linear(joined, joined) + _linear(joined, hidden)


def _paddleocr(config: Settings, _outer: Settings, hidden: int) -> int:
    joined = _merged(config)
    return 2 * _width(config) + _linear(joined, joined) + _linear(joined, hidden)


def _one_linear(config: Settings, _outer: Settings, hidden: int) -> int:
    return _linear(_width(config), hidden)


def _voxtral(config: Settings, _outer: Settings, hidden: int) -> int:
    """As many frames are joined as the feed-forward part is wider than the tower."""
    return _inner(config) * hidden + hidden**2


def _without_bias(config: Settings, _outer: Settings, hidden: int) -> int:
    return _width(config) * hidden


def _gemma4_ears(config: Settings, _outer: Settings, hidden: int) -> int:
    return config.count("output_proj_dims") * hidden


def _llama4_projector(config: Settings, _outer: Settings, hidden: int) -> int:
    return config.count("vision_output_dim") * hidden


def _phi4_projector(config: Settings, _outer: Settings, hidden: int) -> int:
    return _linear(_width(config), hidden) + _linear(hidden, hidden)


# By the tower, where that decides; else by the whole model.
_PROJECTED_TOWERS: dict[str, Callable[[Settings, Settings, int], int]] = {
    "kimi_k25_vision": _kimi,
    "gemma3n_vision": _without_bias,
    "gemma3n_audio": _without_bias,
    "gemma4_vision": _without_bias,
    "gemma4_audio": _gemma4_ears,
    "llama4_vision_model": _llama4_projector,
    "phi4_multimodal_vision": _phi4_projector,
    "paddleocr_vl_vision": _paddleocr,
    "qwen2_audio_encoder": _one_linear,
    "voxtral_encoder": _voxtral,
    "internvl_vision": _internvl_projector,
}
_PROJECTORS: dict[str, Callable[[Settings, Settings, int], int]] = {
    "llava": _llava,
    "llava_next": _llava_with_newline,
    "llava_next_video": _llava_with_newline,
    "llava_onevision": _llava_with_newline,
    "mistral3": _mistral3,
    "lighton_ocr": _mistral3,
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "cohere2_vision": _cohere2_vision,
    "aya_vision": _aya_vision,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
    "lfm2_vl": _lfm2_vl,
}


# --- What comes out of a tower


def _widths(tower: str, config: Settings) -> tuple[int | None, int | None]:
    """Of its hidden states and its feed-forward parts; None for one that is no transformer."""
    if tower == "gemma3n_vision":
        return None, None
    if tower == "qwen2_vl_vision":
        width = config.count("embed_dim")
        return width, int(_number(config, "mlp_ratio", 4) * width)
    if tower in ("glm4v_vision", "glm4v_moe_vision"):
        return _width(config), config.count("out_hidden_size", default=_inner(config))
    return _width(config), _inner(config)


def _square(config: Settings) -> int:
    return config.count("spatial_merge_size", default=2, most=1024) ** 2


def _pooled(config: Settings) -> int:
    return config.count("pooling_kernel_size", default=3, most=1024) ** 2


# Patches, or frames of sound, that a tower itself makes one token.
_MERGES: dict[str, Callable[[Settings], int]] = {
    **dict.fromkeys(
        (
            "qwen2_vl_vision", "qwen2_5_vl_vision", "qwen2_5_omni_vision_encoder", "exaone4_5_vision",
            "qwen3_vl_vision", "qwen3_vl_moe_vision", "qwen3_5_vision", "qwen3_5_moe_vision",
            "qwen3_omni_moe_vision_encoder", "glm4v_vision", "glm4v_moe_vision", "glm_ocr_vision",
            "paddleocr_vl_vision",
        ),
        _square,
    ),
    "gemma4_vision": _pooled,
    "internvl_vision": lambda _config: 4,  # downsample_ratio 0.5
    "llama4_vision_model": lambda _config: 4,  # pixel_shuffle_ratio 0.5
    "kimi_k25_vision": lambda _config: 4,
    "qwen2_audio_encoder": lambda _config: 2,
    "voxtral_encoder": lambda _config: 4,
}  # fmt: skip


def _gemma3_tokens(_config: Settings, outer: Settings) -> int:
    return outer.count("mm_tokens_per_image", default=256, most=1 << 20)


def _gemma3_merged(config: Settings, outer: Settings) -> int:
    return max(1, _side(config) ** 2 // _gemma3_tokens(config, outer))


def _every_patch(config: Settings, _outer: Settings) -> int:
    return _side(config) ** 2


def _mistral3_merged(_config: Settings, outer: Settings) -> int:
    return outer.count("spatial_merge_size", default=2, most=1024) ** 2


def _mistral3_tokens(config: Settings, outer: Settings) -> int:
    return max(1, _side(config) ** 2 // _mistral3_merged(config, outer))


def _scaled(name: str) -> Callable[[Settings, Settings], int]:
    return lambda _config, outer: outer.count(name, default=2, most=1024) ** 2


# The same, where the whole model's settings decide.
_MERGED_OUTSIDE: dict[str, Callable[[Settings, Settings], int]] = {
    "gemma3": _gemma3_merged,
    "mistral3": _mistral3_merged,
    "lighton_ocr": _mistral3_merged,
    "idefics3": _scaled("scale_factor"),
    "smolvlm": _scaled("scale_factor"),
    "cohere2_vision": _scaled("downsample_factor"),
    "aya_vision": _scaled("downsample_factor"),
    "lfm2_vl": _scaled("downsample_factor"),
}
# Tokens of the largest item, where config.json alone says; elsewhere the processor's settings decide.
_ITEM_TOKENS: dict[str, Callable[[Settings, Settings], int]] = {
    "gemma3": _gemma3_tokens,
    "llava": _every_patch,
    "paligemma": _every_patch,
    "mistral3": _mistral3_tokens,
    "lighton_ocr": _mistral3_tokens,
    "qwen2_audio": lambda config, _outer: config.count("max_source_positions", default=1500) // 2 or 1,
}


# --- Towers that are not known


def _plain(config: Settings, hidden: int) -> int | None:
    """Weights of plain transformer layers, patches, positions and two projections; None without a size."""
    width = config.optional(*_WIDTH_NAMES, most=1 << 20)
    depth = config.optional(*_DEPTH_NAMES, most=MAX_LAYERS)
    if width is None or depth is None:
        return None
    inner = config.optional(*_INNER_NAMES) or int(_number(config, "mlp_ratio", 4) * width)
    gated = "silu" in str(config.get("hidden_act")) or "swiglu" in str(config.get("hidden_act"))
    size = depth * _block(width, max(1, inner), gated=gated)
    if config.optional("patch_size", most=4096):
        size += _patches(config) + width
    if config.optional("image_size", most=_MAX_SIDE):
        size += _side(config) ** 2 * width
    return size + 2 * width + _linear(width, hidden) + _linear(hidden, hidden)
