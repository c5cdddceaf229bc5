"""Give a tiny model another shape: make_vllm_shapes.py DIR SHAPE, after make_vllm_model.py has written DIR.

Runs in the engine's own environment. Only config.json is replaced: servers load random weights.
"""

import sys
from pathlib import Path
from typing import Any

from transformers import (
    DeepseekV3Config,
    FalconH1Config,
    Gemma3TextConfig,
    JambaConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    NemotronHConfig,
    PreTrainedConfig,
    Qwen3NextConfig,
    Zamba2Config,
)

COMMON: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "max_position_embeddings": 8192,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None, "torch_dtype": "bfloat16",
}  # fmt: skip

SHAPES: dict[str, PreTrainedConfig] = {
    "gqa": LlamaConfig(
        architectures=["LlamaForCausalLM"], num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2,
        **COMMON,
    ),
    "mha": LlamaConfig(
        architectures=["LlamaForCausalLM"], num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
        **COMMON,
    ),
    "windows": MistralConfig(
        architectures=["MistralForCausalLM"], num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=2, sliding_window=512, **COMMON,
    ),
    "some-windows": Gemma3TextConfig(
        architectures=["Gemma3ForCausalLM"], num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, sliding_window=512,
        layer_types=["full_attention" if n % 4 == 3 else "sliding_attention" for n in range(8)], **COMMON,
    ),
    "mla": DeepseekV3Config(
        architectures=["DeepseekV3ForCausalLM"], num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, q_lora_rank=64, kv_lora_rank=512, qk_nope_head_dim=64, qk_rope_head_dim=64,
        v_head_dim=64, first_k_dense_replace=3, n_routed_experts=8, n_group=1, topk_group=1,
        num_experts_per_tok=2, moe_intermediate_size=64, num_nextn_predict_layers=0, **COMMON,
    ),
    "delta": Qwen3NextConfig(
        architectures=["Qwen3NextForCausalLM"], num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, linear_num_key_heads=4, linear_num_value_heads=8,
        linear_key_head_dim=64, linear_value_head_dim=64, linear_conv_kernel_dim=4, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=64, shared_expert_intermediate_size=64,
        layer_types=["full_attention" if n % 4 == 3 else "linear_attention" for n in range(8)], **COMMON,
    ),
    "mamba": MambaConfig(
        architectures=["MambaForCausalLM"], num_hidden_layers=3, state_size=16, **COMMON,
    ),
    "mamba-hybrid": JambaConfig(
        architectures=["JambaForCausalLM"], num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=2,
        attn_layer_period=4, attn_layer_offset=2, num_experts=2, **COMMON,
    ),
    "mamba-2-hybrid": NemotronHConfig(
        architectures=["NemotronHForCausalLM"], num_attention_heads=4, num_key_value_heads=2, head_dim=64,
        layers_block_type=[
            "linear_attention", "mlp", "linear_attention", "full_attention", "mlp", "linear_attention",
        ],
        mamba_num_heads=8, mamba_head_dim=64, ssm_state_size=64, n_groups=2, **COMMON,
    ),
    "mamba-2-in-parallel": FalconH1Config(
        architectures=["FalconH1ForCausalLM"], num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, mamba_d_ssm=512, mamba_n_heads=8, mamba_d_state=64, **COMMON,
    ),
    "shared-attention": Zamba2Config(
        architectures=["Zamba2ForCausalLM"], num_hidden_layers=6, num_attention_heads=4,
        layers_block_type=["linear_attention", "linear_attention", "hybrid"] * 2, n_mamba_heads=8,
        mamba_d_state=64, use_mem_rope=True, **COMMON,
    ),
    "convolutions": Lfm2Config(
        architectures=["Lfm2ForCausalLM"], num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=2,
        conv_dim=256, block_dim=256, block_ff_dim=512,
        layer_types=["full_attention" if n % 4 == 3 else "conv" for n in range(8)], **COMMON,
    ),
}  # fmt: skip

SHAPES[sys.argv[2]].save_pretrained(Path(sys.argv[1]))
