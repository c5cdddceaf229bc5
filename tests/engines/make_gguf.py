"""Write a tiny random Llama as GGUF that llama.cpp serves: make_gguf.py FILE.

Runs in the engine's own environment. 8 layers, 4 query heads and 2 KV heads of 128: one token of KV cache is
2 · 8 · 2 · 128 · 2 bytes = 8192 bytes at f16. Large enough to spend some milliseconds on a token, so that its
work can be watched.
"""

import sys

import gguf
import numpy as np

LAYERS, WIDTH, HEADS, KV_HEADS, FEED_FORWARD, CONTEXT = 8, 512, 4, 2, 1024, 8192
HEAD = WIDTH // HEADS

tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", "a", "b", "▁a", "▁b"]
types = [2, 3, 3] + [6] * 256 + [1] * 5

writer = gguf.GGUFWriter(sys.argv[1], "llama")
writer.add_name("brimline-tiny")
writer.add_context_length(CONTEXT)
writer.add_embedding_length(WIDTH)
writer.add_block_count(LAYERS)
writer.add_feed_forward_length(FEED_FORWARD)
writer.add_head_count(HEADS)
writer.add_head_count_kv(KV_HEADS)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_dimension_count(HEAD)
writer.add_file_type(gguf.LlamaFileType.ALL_F32)
writer.add_tokenizer_model("llama")
writer.add_token_list(tokens)
writer.add_token_scores([0.0] * len(tokens))
writer.add_token_types(types)
writer.add_unk_token_id(0)
writer.add_bos_token_id(1)
writer.add_eos_token_id(2)

random = np.random.default_rng(0)


def add(name: str, *shape: int) -> None:
    writer.add_tensor(name, random.normal(0, 0.02, shape).astype(np.float32))


def add_norm(name: str) -> None:
    writer.add_tensor(name, np.ones(WIDTH, dtype=np.float32))


add("token_embd.weight", len(tokens), WIDTH)
add_norm("output_norm.weight")
add("output.weight", len(tokens), WIDTH)
for layer in range(LAYERS):
    block = f"blk.{layer}."
    add_norm(block + "attn_norm.weight")
    add(block + "attn_q.weight", WIDTH, WIDTH)
    add(block + "attn_k.weight", KV_HEADS * HEAD, WIDTH)
    add(block + "attn_v.weight", KV_HEADS * HEAD, WIDTH)
    add(block + "attn_output.weight", WIDTH, WIDTH)
    add_norm(block + "ffn_norm.weight")
    add(block + "ffn_gate.weight", FEED_FORWARD, WIDTH)
    add(block + "ffn_up.weight", FEED_FORWARD, WIDTH)
    add(block + "ffn_down.weight", WIDTH, FEED_FORWARD)

writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
