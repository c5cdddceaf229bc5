"""CPU seconds of a plan of 1,000 combinations, for models of few and many layers; the bar is 2 s.

The first sweep repeats its context lengths, so that the longest one is searched for 200 times; in the second
every combination needs a search of its own.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import brimline.demo
from brimline.footprint.hf_config import architecture_of_config
from brimline.footprint.predict import Model, read_model
from brimline.plan import make_plan, parse_sweep

LLAMA_8B = Path(brimline.demo.__file__).parent / "llama-3.1-8b"
# Public configurations, as far as memory depends on them.
LLAMA_405B = {
    "model_type": "llama",
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 3,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "vocab_size": 129280,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "max_position_embeddings": 163840,
    "torch_dtype": "bfloat16",
}
COMMON = (
    "gpu=H100,H200,B200,L40S,A100-40GB",
    "kv_cache_dtype=auto,fp8",
    "tensor_parallel_size=1,2,4,8",
    "quantization=auto,fp8,awq,gptq,nvfp4",
)
SWEEPS = {
    "context lengths": (*COMMON, "max_model_len=4k,8k,16k,32k,128k"),
    "sequences": (*COMMON, "max_num_seqs=16,32,64,128,256"),
}


def main() -> None:
    models: dict[str, Callable[[], Model]] = {
        "Llama-3.1-8B": lambda: read_model(LLAMA_8B),
        "Llama-3.1-405B": lambda: Model(architecture_of_config(LLAMA_405B, "config.json")),
        "DeepSeek-V3": lambda: Model(architecture_of_config(DEEPSEEK_V3, "config.json")),
    }
    print(
        f"{'model':15} {'swept beside GPU, KV type, TP, quantization':44} {'rows':>5} {'CPU':>7} {'fit':>4}"
    )
    for name, read in models.items():
        for what, sweeps in SWEEPS.items():
            begun = time.process_time()
            plan = make_plan("vllm", {name: read()}, [parse_sweep(text) for text in sweeps], {})
            rows = list(plan.rows())
            spent = time.process_time() - begun
            fitting = sum(row.outcome == "fits" for row in rows)
            print(f"{name:15} {what:44} {len(rows):5} {spent:5.2f} s {fitting:4}")
    command = [sys.executable, "-m", "brimline", "plan", str(LLAMA_8B), "--csv"]
    for text in SWEEPS["sequences"]:
        command += ["--sweep", text]
    begun = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    print(f"the command itself, with CSV, from start to end: {time.perf_counter() - begun:.2f} s")


if __name__ == "__main__":
    main()
