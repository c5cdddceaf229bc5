"""The architecture of a model, read from its Hugging Face config.json or its GGUF header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from brimline.errors import FootprintError
from brimline.footprint.architecture import Architecture, Quantization
from brimline.footprint.config_file import read_config
from brimline.footprint.gguf import Gguf, read_gguf, settings_of_gguf
from brimline.footprint.hf_context import with_scaled_context
from brimline.footprint.hf_defaults import class_defaults
from brimline.footprint.hf_encoders import ENCODER_DECODERS, encoder_decoder
from brimline.footprint.hf_families import (
    ALIASES,
    FAMILIES,
    FAMILIES_WITH_CODE,
    NOT_COMPUTED,
    Family,
    family_of_unknown,
    flattened,
    layer_embedding_parameters,
    layers_of,
)
from brimline.footprint.hf_quantization import quantization_of_config
from brimline.footprint.hf_rotary import rotary_tables
from brimline.footprint.hf_settings import POSITIONS_NAMES, Settings
from brimline.footprint.hf_towers import encoders_of

# Encoders: no token attends to the one before it alone, and no K/V is kept (vLLM 0.33, models/bert.py and its
# kin; attention.py get_kv_cache_spec of ENCODER_ONLY).
_ENCODERS = frozenset(
    {
        "albert", "bert", "big_bird", "camembert", "convbert", "deberta", "deberta-v2", "distilbert",
        "electra", "ernie", "esm", "eurobert", "gte", "jina_bert", "layoutlm", "longformer", "megatron-bert",
        "modernbert", "mpnet", "neobert", "new", "nomic_bert", "roberta", "roberta-prelayernorm",
        "squeezebert", "xlm-roberta", "xlm-roberta-xl",
    }
)  # fmt: skip
# Heads of tasks other than generation.
_OTHER_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForRewardModel")

# Models whose vision encoder takes images alone: `_mark_tower_model(vllm_config, "image")` in vLLM 0.33,
# model_executor/models.
_IMAGES_ONLY = frozenset(
    {
        "aria", "blip-2", "cohere2_vision", "deepseek_vl_v2", "gemma3", "gemma3n", "kimi_vl", "lfm2_vl",
        "llama4", "llava", "llava_next", "mistral3", "molmo", "paligemma", "phi3_v", "pixtral",
    }
)  # fmt: skip


def read_architecture(path: Path) -> Architecture:
    """Architecture of the model at a directory, a config.json or a .gguf file.

    Raises FootprintError, naming the setting, where it cannot be read or makes no sense.
    """
    if path.suffix == ".gguf":
        return architecture_of_gguf(read_gguf(path), str(path))
    file = path / "config.json" if path.is_dir() else path
    return architecture_of_file(file, read_model_config(file))


def architecture_of_file(file: Path, config: Mapping[str, Any]) -> Architecture:
    """Architecture of a model by the config.json that was read, and by what else lies there.

    Raises FootprintError as above.
    """
    architecture = architecture_of_config(config, str(file))
    return replace(architecture, mistral_format=True) if _has_mistral_format(file.parent) else architecture


def _has_mistral_format(folder: Path) -> bool:
    """As vLLM finds it (0.19, transformers_utils/config.py get_config)."""
    return (folder / "params.json").exists() and any(folder.glob("consolidated*.safetensors"))


def read_model_config(file: Path) -> Mapping[str, Any]:
    """A config.json, with the quantization that a file beside it states. Raises FootprintError."""
    config = read_config(file)
    # ModelOpt up to 0.29 writes it beside config.json; what stands there itself wins (vLLM 0.32,
    # transformers_utils/config.py get_config).
    beside = file.with_name("hf_quant_config.json")
    if config.get("quantization_config") is None and file.name == "config.json" and beside.exists():
        return {**config, "quantization_config": read_config(beside)}
    return config


def architecture_of_gguf(file: Gguf, source: str) -> Architecture:
    """Architecture from a GGUF header. Raises FootprintError as above.

    quantization: bits is the mean over all tensors; what each one takes stands in the table of tensors.
    """
    architecture = architecture_of_config(settings_of_gguf(file, source), source)
    elements = sum(tensor.elements for tensor in file.tensors)
    if not elements:
        return architecture
    bits = 8 * sum(tensor.size_bytes for tensor in file.tensors) / elements
    return replace(architecture, quantization=Quantization(method="gguf", bits=bits))


def architecture_of_config(config: Mapping[str, Any], source: str) -> Architecture:
    """Architecture from the settings of a Hugging Face config.json. Raises FootprintError as above."""
    holder, text = _text_settings(config)
    stated = str(text.get("model_type") or config.get("model_type") or "")
    name = ALIASES.get(stated, stated)
    if name in NOT_COMPUTED:
        raise FootprintError(
            f"{source}: model_type {name!r} {NOT_COMPUTED[name]}, which is not computed here; "
            "take its memory from the running server"
        )
    if (name in _ENCODERS and text.get("is_decoder") is not True) or (
        text is config and _looks_both_ways(text)
    ):
        raise FootprintError(
            f"{source}: {stated or 'the model'} is an encoder, which keeps no K/V cache; only models that "
            "generate are computed here"
        )
    if name in ENCODER_DECODERS:
        architecture = encoder_decoder(name, text, source)
    else:
        architecture = _decoder(name, stated, text, holder, source)
    architecture = with_scaled_context(architecture, text)
    assumptions = list(architecture.assumptions)
    assumptions += _of_other_head(config)
    encoders = (*architecture.encoders, *encoders_of(holder, architecture.hidden, source, assumptions))
    return replace(
        architecture,
        encoders=encoders,
        takes_video=str(config.get("model_type")) not in _IMAGES_ONLY,
        dtype=_dtype(text) or _dtype(config),
        quantization=quantization_of_config(config, source) or quantization_of_config(text, source),
        assumptions=tuple(assumptions),
    )


def _looks_both_ways(text: Mapping[str, Any]) -> bool:
    """True for a decoder that was made an encoder, of embeddings as a rule. Not so PaliGemma."""
    return text.get("is_causal") is False or text.get("use_bidirectional_attention") is True


def _of_other_head(config: Mapping[str, Any]) -> list[str]:
    """What is said of a model whose class in the file does not generate."""
    listed = config.get("architectures")
    named = [str(name) for name in listed[:8]] if isinstance(listed, list) else []
    if not any(name.endswith(_OTHER_HEADS) for name in named):
        return []
    return [
        f"{named[0]} has a small head of its own; the output head over the vocabulary is counted instead."
    ]


def _text_settings(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The settings that hold those of the text model and of its senses, and those of the text model."""
    thinker = config.get("thinker_config")
    holder = thinker if isinstance(thinker, dict) else config
    for name in ("text_config", "llm_config"):
        nested = holder.get(name)
        if isinstance(nested, dict):
            return holder, nested
    return holder, holder


def _dtype(config: Mapping[str, Any]) -> str | None:
    stated = config.get("dtype") or config.get("torch_dtype")
    return str(stated).removeprefix("torch.") if stated else None


def _decoder(
    name: str, stated: str, text: Mapping[str, Any], whole: Mapping[str, Any], source: str
) -> Architecture:
    assumptions = []
    family = FAMILIES.get(name) or FAMILIES_WITH_CODE.get(name)
    known = family is not None
    if family is None:
        family = family_of_unknown(text)
        assumptions.append(
            f"model_type {stated!r} is not known here: read as a decoder with gated feed-forward parts, "
            "two norms a layer and no other weights"
        )
    settings = flattened(name, text, source)
    nested = text is not whole
    defaults = class_defaults(stated) or class_defaults(name) if nested else {}
    config = Settings(settings, source, {**defaults, **family.defaults})
    layers = layers_of(config, family)
    hidden = config.hidden
    extra = family.model_other(config) if family.model_other else 0
    tied = _tied(text, whole, family, known, assumptions)
    vocabulary = config.count("vocab_size", "padded_vocab_size")
    max_position = config.optional(*POSITIONS_NAMES)
    if nested and config.assumed:
        taken = ", ".join(f"{key} {value}" for key, value in config.assumed.items())
        assumptions.append(f"The text model's settings leave out what {name} has by default: {taken}.")
    else:
        for key, value in config.assumed.items():
            assumptions.append(
                f"{key} is not stated: {value} is taken, the default of {name} in transformers"
            )
    return Architecture(
        model_type=stated or "unknown",
        vocabulary=vocabulary,
        hidden=hidden,
        layers=layers,
        tied=tied,
        max_position=max_position,
        head_bias=config.flag(family.head_bias),
        layer_embedding_parameters=layer_embedding_parameters(config)
        if "hidden_size_per_layer_input" in family.defaults
        else 0,
        extra_parameters=extra + family.final_norms * family.norm_width * hidden,
        draft_layers=config.optional("num_nextn_predict_layers", "mtp_num_hidden_layers", least=0) or 0,
        known=known,
        assumptions=tuple(assumptions),
        source=source,
        rotary=rotary_tables(name, config, layers) if known else None,
    )


def _tied(
    text: Mapping[str, Any], whole: Mapping[str, Any], family: Family, known: bool, assumptions: list[str]
) -> bool:
    # What the whole model says wins over its text model (vLLM 0.32, config/vllm.py with_hf_config).
    for settings in (whole, text):
        for key in ("tie_word_embeddings", "tie_embedding"):
            if isinstance(settings.get(key), bool):
                return bool(settings[key])
    if not known:
        assumptions.append("tie_word_embeddings is not stated: an output head of its own is counted")
    return family.tied
