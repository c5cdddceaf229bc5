"""Count the parameters of many models with transformers' own classes: parameter_counts.py > FILE.

Runs in the environment of the vLLM engine (torch and transformers). Models are built on torch's meta device,
so nothing is allocated. A case is either what a published config.json says, written down as it stands there
(with what it leaves out left out), or the defaults of a class, sometimes with changes that reach its other
branches; those are stored as transformers would save them. Prints JSON: transformers' version and the cases.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch
import transformers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

# Published files, without what does not change the number of parameters.
PUBLISHED: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.1-8B": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "attention_bias": False,
        "mlp_bias": False, "tie_word_embeddings": False, "max_position_embeddings": 131072,
        "torch_dtype": "bfloat16",
    },
    "meta-llama/Meta-Llama-3-70B": {
        "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256, "attention_bias": False,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    },
    "meta-llama/Llama-3.2-1B": {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "head_dim": 64,
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
    },
    "Qwen/Qwen3-32B": {
        "model_type": "qwen3", "hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "attention_bias": False, "tie_word_embeddings": False,
    },
    "Qwen/Qwen2.5-0.5B": {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
        "tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": 32768,
    },
    "Qwen/Qwen3-30B-A3B": {
        "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936,
        "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "attention_bias": False, "tie_word_embeddings": False,
    },
    "mistralai/Mixtral-8x7B-v0.1": {
        "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8,
        "num_experts_per_tok": 2, "sliding_window": None, "tie_word_embeddings": False,
    },
    "openai/gpt-oss-20b": {
        "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201088,
        "num_local_experts": 32, "num_experts_per_tok": 4, "sliding_window": 128, "attention_bias": True,
        "tie_word_embeddings": False,
    },
    "google/gemma-2-9b": {
        "model_type": "gemma2", "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 256000,
        "sliding_window": 4096, "attention_bias": False,
    },
    "google/gemma-3-27b-it, text": {
        "model_type": "gemma3_text", "hidden_size": 5376, "intermediate_size": 21504,
        "num_hidden_layers": 62, "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128,
        "sliding_window": 1024,
    },
    "deepseek-ai/DeepSeek-V2-Lite": {
        "model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944, "num_hidden_layers": 27,
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 102400, "kv_lora_rank": 512,
        "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
        "moe_intermediate_size": 1408, "first_k_dense_replace": 1, "moe_layer_freq": 1,
        "tie_word_embeddings": False,
    },
    "tiiuae/falcon-40b": {
        "model_type": "falcon", "hidden_size": 8192, "num_hidden_layers": 60, "num_attention_heads": 128,
        "num_kv_heads": 8, "vocab_size": 65024, "new_decoder_architecture": True, "multi_query": True,
        "parallel_attn": True, "bias": False, "alibi": False,
    },
    "facebook/opt-350m": {
        "model_type": "opt", "hidden_size": 1024, "ffn_dim": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "vocab_size": 50272, "word_embed_proj_dim": 512,
        "do_layer_norm_before": False, "max_position_embeddings": 2048,
    },
    "nvidia/Minitron-8B-Base": {
        "model_type": "nemotron", "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32,
        "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 256000,
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
    },
    "openai/whisper-large-v3": {
        "model_type": "whisper", "d_model": 1280, "encoder_layers": 32, "decoder_layers": 32,
        "encoder_attention_heads": 20, "decoder_attention_heads": 20, "encoder_ffn_dim": 5120,
        "decoder_ffn_dim": 5120, "num_mel_bins": 128, "vocab_size": 51866, "max_source_positions": 1500,
        "max_target_positions": 448, "is_encoder_decoder": True,
    },
    "facebook/bart-large": {
        "model_type": "bart", "d_model": 1024, "encoder_layers": 12, "decoder_layers": 12,
        "encoder_attention_heads": 16, "decoder_attention_heads": 16, "encoder_ffn_dim": 4096,
        "decoder_ffn_dim": 4096, "vocab_size": 50265, "max_position_embeddings": 1024,
        "is_encoder_decoder": True,
    },
}  # fmt: skip

# Published files of models with other senses: nested records leave out what their classes have by default.
_GEMMA_3_EYES = {
    "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "model_type": "siglip_vision_model",
    "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
MULTIMODAL: dict[str, dict[str, Any]] = {
    "google/gemma-3-4b-it": {
        "model_type": "gemma3", "mm_tokens_per_image": 256,
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
            "num_hidden_layers": 34, "sliding_window": 1024,
        },
        "vision_config": _GEMMA_3_EYES,
    },
    "google/gemma-3-27b-it": {
        "model_type": "gemma3", "mm_tokens_per_image": 256,
        "text_config": {
            "head_dim": 128, "hidden_size": 5376, "intermediate_size": 21504, "model_type": "gemma3_text",
            "num_attention_heads": 32, "num_hidden_layers": 62, "num_key_value_heads": 16,
            "sliding_window": 1024,
        },
        "vision_config": _GEMMA_3_EYES,
    },
    "llava-hf/llava-1.5-7b-hf": {
        "model_type": "llava", "projector_hidden_act": "gelu",
        "text_config": {"max_position_embeddings": 4096, "model_type": "llama", "vocab_size": 32064},
        "vision_config": {
            "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096,
            "model_type": "clip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 24,
            "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
        },
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "vocab_size": 32064,
    },
    "google/paligemma-3b-pt-224": {
        "model_type": "paligemma", "hidden_size": 2048, "vocab_size": 257216, "projection_dim": 2048,
        "text_config": {
            "hidden_size": 2048, "intermediate_size": 16384, "model_type": "gemma", "num_attention_heads": 8,
            "num_hidden_layers": 18, "num_image_tokens": 256, "num_key_value_heads": 1, "vocab_size": 257216,
        },
        "vision_config": {
            "hidden_size": 1152, "intermediate_size": 4304, "model_type": "siglip_vision_model",
            "num_attention_heads": 16, "num_hidden_layers": 27, "num_image_tokens": 256, "patch_size": 14,
            "projection_dim": 2048, "projector_hidden_act": "gelu_fast", "vision_use_head": False,
        },
    },
    "Qwen/Qwen2-VL-7B-Instruct": {
        "model_type": "qwen2_vl", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
        "tie_word_embeddings": False, "max_position_embeddings": 32768, "use_sliding_window": False,
        "vision_config": {
            "depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3,
            "hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
    },
    "Qwen/Qwen2.5-VL-7B-Instruct": {
        "model_type": "qwen2_5_vl", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
        "tie_word_embeddings": False, "max_position_embeddings": 128000, "use_sliding_window": False,
        "vision_config": {
            "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420,
            "num_heads": 16, "in_chans": 3, "out_hidden_size": 3584, "patch_size": 14,
            "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2, "temporal_patch_size": 2,
        },
    },
    "Qwen/Qwen3-VL-8B-Instruct": {
        "model_type": "qwen3_vl", "tie_word_embeddings": False,
        "text_config": {
            "attention_bias": False, "head_dim": 128, "hidden_size": 4096, "intermediate_size": 12288,
            "max_position_embeddings": 262144, "model_type": "qwen3_vl_text", "num_attention_heads": 32,
            "num_hidden_layers": 36, "num_key_value_heads": 8, "vocab_size": 151936,
        },
        "vision_config": {
            "deepstack_visual_indexes": [8, 16, 24], "depth": 27, "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 1152, "in_channels": 3, "intermediate_size": 4304, "model_type": "qwen3_vl",
            "num_heads": 16, "num_position_embeddings": 2304, "out_hidden_size": 4096, "patch_size": 16,
            "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
    },
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": {
        "model_type": "mistral3", "multimodal_projector_bias": False, "projector_hidden_act": "gelu",
        "spatial_merge_size": 2, "tie_word_embeddings": False, "vision_feature_layer": -1,
        "text_config": {
            "head_dim": 128, "hidden_size": 5120, "intermediate_size": 32768,
            "max_position_embeddings": 131072, "model_type": "mistral", "num_attention_heads": 32,
            "num_hidden_layers": 40, "num_key_value_heads": 8, "sliding_window": None, "vocab_size": 131072,
        },
        "vision_config": {
            "head_dim": 64, "hidden_act": "silu", "hidden_size": 1024, "image_size": 1540,
            "intermediate_size": 4096, "model_type": "pixtral", "num_attention_heads": 16,
            "num_channels": 3, "num_hidden_layers": 24, "patch_size": 14,
        },
    },
    "meta-llama/Llama-4-Scout-17B-16E": {
        "model_type": "llama4",
        "text_config": {
            "attention_bias": False, "attention_chunk_size": 8192, "head_dim": 128, "hidden_size": 5120,
            "interleave_moe_layer_step": 1, "intermediate_size": 8192, "intermediate_size_mlp": 16384,
            "max_position_embeddings": 262144, "model_type": "llama4_text", "num_attention_heads": 40,
            "num_experts_per_tok": 1, "num_hidden_layers": 48, "num_key_value_heads": 8,
            "num_local_experts": 16, "vocab_size": 202048,
        },
        "vision_config": {
            "hidden_act": "gelu", "hidden_size": 1408, "image_size": 336, "intermediate_size": 5632,
            "model_type": "llama4_vision_model", "multi_modal_projector_bias": False,
            "num_attention_heads": 16, "num_channels": 3, "num_hidden_layers": 34, "patch_size": 14,
            "pixel_shuffle_ratio": 0.5, "projector_input_dim": 4096, "projector_output_dim": 4096,
            "vision_output_dim": 4096,
        },
    },
    "Qwen/Qwen2-Audio-7B-Instruct": {
        "model_type": "qwen2_audio",
        "audio_config": {
            "model_type": "qwen2_audio_encoder", "num_mel_bins": 128, "encoder_layers": 32,
            "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "d_model": 1280,
            "max_source_positions": 1500,
        },
        "text_config": {
            "model_type": "qwen2", "intermediate_size": 11008, "max_position_embeddings": 8192,
            "vocab_size": 156032,
        },
        "vocab_size": 156032,
    },
}  # fmt: skip

# Classes of such models, and what is changed in their defaults.
SENSES: dict[str, dict[str, Any]] = {
    "llava": {}, "llava_next": {}, "llava, two layers of features": {"vision_feature_layer": [-2, -5]},
    "llava_onevision": {}, "gemma3": {}, "paligemma": {}, "internvl": {},
    "internvl, biases and norms": {
        "vision_config": {"attention_bias": True, "use_qk_norm": True, "norm_type": "rms_norm"},
    },
    "cohere2_vision": {}, "mistral3": {}, "lighton_ocr": {},
    "llama4": {"text_config": {"num_hidden_layers": 4}},
    "idefics3": {"pad_token_id": 0}, "smolvlm": {"pad_token_id": 0}, "lfm2_vl": {}, "paddleocr_vl": {},
    "aya_vision": {
        "vision_config": {"model_type": "siglip_vision_model", "num_attention_heads": 16},
        "alignment_intermediate_size": 28672,
    },
    "qwen2_vl": {}, "qwen2_5_vl": {}, "qwen3_vl": {}, "qwen3_vl_moe": {}, "qwen3_5": {}, "qwen3_5_moe": {},
    "exaone4_5": {}, "glm4v": {}, "glm4v_moe": {"text_config": {"head_dim": 128}}, "glm46v": {},
    "glm_ocr": {}, "kimi_k25": {},
    "gemma4": {"vision_config": {}, "audio_config": {}}, "phi4_multimodal": {}, "qwen2_audio": {},
    "voxtral": {}, "qwen3_asr": {}, "qwen2_5_omni_thinker": {},
    "qwen3_omni_moe_thinker": {"text_config": {"head_dim": 128}}, "ernie4_5_vl_moe": {}, "mistral4": {},
}  # fmt: skip

# Classes, and what is changed in their defaults.
CLASSES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {},
    "ministral": {"head_dim": 128, "layer_types": ["sliding_attention", "full_attention"] * 16},
    "ministral3": {}, "mixtral": {"num_hidden_layers": 4}, "qwen2": {}, "qwen2_moe": {},
    "qwen2_moe, every second layer sparse": {"decoder_sparse_step": 2, "mlp_only_layers": [3]},
    "qwen3": {}, "qwen3_moe": {}, "qwen3_next": {}, "qwen3_5_text": {}, "qwen3_5_moe_text": {},
    "gemma": {}, "gemma2": {}, "gemma3_text": {}, "gemma3n_text": {}, "gemma4_text": {},
    "gemma4_text, experts, keys as values, shared": {
        "enable_moe_block": True, "num_experts": 16, "top_k_experts": 2, "moe_intermediate_size": 704,
        "attention_k_eq_v": True, "num_global_key_value_heads": 2, "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 6, "use_double_wide_mlp": True,
    },
    "phi": {"qk_layernorm": True}, "phi3": {}, "phimoe": {"attention_bias": True, "lm_head_bias": True},
    "gpt2": {}, "gpt_bigcode": {}, "gpt_neo": {}, "gpt_neox": {}, "gptj": {}, "codegen": {}, "opt": {},
    "bloom": {}, "falcon": {}, "mpt": {}, "starcoder2": {},
    "stablelm": {"qk_layernorm": True, "use_qkv_bias": True},
    "stablelm, parallel": {"use_parallel_residual": True},
    "olmo": {}, "olmo2": {}, "olmo3": {}, "olmoe": {}, "cohere": {"use_qk_norm": True}, "cohere2": {},
    "deepseek_v2": {}, "deepseek_v3": {}, "deepseek_v3, biases": {"attention_bias": True},
    "deepseek_v32": {}, "glm": {}, "glm4": {}, "glm4_moe": {"use_qk_norm": True, "head_dim": 128},
    "glm4_moe_lite": {}, "glm_moe_dsa": {}, "gpt_oss": {}, "granite": {}, "granitemoe": {},
    "granitemoeshared": {"shared_intermediate_size": 1024}, "granitemoehybrid": {},
    "exaone4": {}, "jamba": {}, "mamba": {}, "falcon_mamba": {}, "mamba2": {},
    "bamba": {"attn_layer_indices": [9, 18, 27]}, "falcon_h1": {},
    "falcon_h1, normed": {"mamba_rms_norm": True, "projectors_bias": True}, "minimax": {}, "minimax_m2": {},
    "llama4_text": {"num_hidden_layers": 4}, "llama4_text, every second layer sparse":
        {"num_hidden_layers": 4, "interleave_moe_layer_step": 2},
    "smollm3": {}, "ernie4_5": {}, "ernie4_5_moe": {}, "seed_oss": {}, "apertus": {}, "arcee": {},
    "persimmon": {}, "kimi_linear": {}, "nemotron_h": {},
    "lfm2": {}, "lfm2, convolutions": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "lfm2, unadjusted, biases": {
        "layer_types": ["conv", "full_attention"] * 16, "conv_bias": True, "block_auto_adjust_ff_dim": False,
    },
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "olmo_hybrid": {}, "zamba2": {},
    "zamba2, two blocks, adapters": {
        "num_mem_blocks": 2, "use_shared_attention_adapter": True, "n_mamba_heads": 80, "mamba_ngroups": 2,
    },
    "exaone_moe": {}, "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 8, "moe_topk": 2}, "hy_v3": {}, "mimo_v2_flash": {},
    "minicpm3": {}, "solar_open": {}, "axk1": {}, "cwm": {}, "flex_olmo": {},
    "cohere2_moe": {"num_shared_experts": 2}, "vaultgemma": {}, "helium": {}, "granite_swa": {},
    "longcat_flash": {"num_layers": 4, "zero_expert_num": 0},
    "dots1": {"n_routed_experts": 32, "n_shared_experts": 2, "first_k_dense_replace": 1},
    "deepseek_v3, without shared experts": {"n_shared_experts": 0, "num_hidden_layers": 5}, "t5": {},
    "t5, gated": {"feed_forward_proj": "gated-gelu"}, "mbart": {"scale_embedding": True},
}  # fmt: skip

# Names that transformers adds to every file.
_NOISE = ("label2id", "id2label", "transformers_version", "architectures", "_name_or_path", "problem_type")


def build(config: Any) -> int:
    with torch.device("meta"):
        if config.model_type == "whisper":
            model = AutoModelForSpeechSeq2Seq.from_config(config)
        elif getattr(config, "is_encoder_decoder", False):
            model = AutoModelForSeq2SeqLM.from_config(config)
        else:
            model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def build_with_senses(config: Any) -> int:
    """As above, of the whole model: not every class of it is registered under the same task."""
    with torch.device("meta"):
        for kind in (AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModelForCausalLM, AutoModel):
            if type(config) in kind._model_mapping:  # the one table that tells
                return sum(parameter.numel() for parameter in kind.from_config(config).parameters())
    raise TypeError(f"transformers has no model of {config.model_type}")


def plain(config: Any) -> dict[str, Any]:
    """The settings as a config.json would hold them, without infinities, which JSON has not."""
    return _cleaned(config.to_diff_dict())


def _cleaned(settings: dict[str, Any]) -> dict[str, Any]:
    dropped = (*_NOISE, "time_step_limit", "rope_parameters", "image_grid_pinpoints")
    return {
        key: _cleaned(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if key not in dropped
    }


def cases() -> list[dict[str, Any]]:
    found = []
    for name, settings in PUBLISHED.items():
        rest = {key: value for key, value in settings.items() if key != "model_type"}
        config = CONFIG_MAPPING[settings["model_type"]](**rest)
        found.append({"name": name, "config": settings, "parameters": build(config)})
    for name, changes in CLASSES.items():
        config = CONFIG_MAPPING[name.split(",")[0]](**changes)
        found.append({"name": f"{name} (defaults)", "config": plain(config), "parameters": build(config)})
    return found


def cases_with_senses() -> list[dict[str, Any]]:
    found = []
    for name, settings in MULTIMODAL.items():
        rest = {key: value for key, value in settings.items() if key != "model_type"}
        config = CONFIG_MAPPING[settings["model_type"]](**rest)
        found.append({"name": name, "config": settings, "parameters": build_with_senses(config)})
    for name, changes in SENSES.items():
        config = CONFIG_MAPPING[name.split(",")[0]](**changes)
        case = {"name": f"{name} (defaults)", "config": plain(config)}
        found.append({**case, "parameters": build_with_senses(config)})
    return found


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    document = {
        "transformers": transformers.__version__, "cases": cases(), "with_senses": cases_with_senses(),
    }  # fmt: skip
    json.dump(document, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
