"""Bytes of the adapter slots that vLLM allocates for models: lora_slots.py > ../golden/lora_slots.json.

Runs in the environment of vLLM (CPU build). Each case starts a tiny model with random weights in this process
and adds up the stacked tensors of its LoRA layers; with two ranks, of the first one. The models and flags are
the question, and go into the answer with it. With an argument, only cases whose name contains it.
"""

# mypy: disable-error-code="import-not-found, misc"
# vLLM lives in the engine's own environment.

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512, "hidden_size": 256,
    "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
MIXTRAL = {
    **LLAMA, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4,
    "num_experts_per_tok": 2,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "llama": {"config": LLAMA, "flags": {"max_loras": 3, "max_lora_rank": 16}},
    "llama tied": {"config": {**LLAMA, "tie_word_embeddings": True}, "flags": {"max_lora_rank": 8}},
    "llama targets": {
        "config": LLAMA,
        "flags": {"max_lora_rank": 64, "lora_target_modules": ["o_proj", "down_proj"]},
    },
    "llama one kv head on two ranks": {
        "config": {**LLAMA, "num_key_value_heads": 1},
        "flags": {"max_loras": 2, "max_lora_rank": 16, "tensor_parallel_size": 2},
    },
    "llama fully sharded on two ranks": {
        "config": LLAMA,
        "flags": {"max_lora_rank": 16, "tensor_parallel_size": 2, "fully_sharded_loras": True},
    },
    "mixtral": {"config": MIXTRAL, "flags": {"max_loras": 2, "max_lora_rank": 8}},
}


def slots_of(worker: Any) -> dict[str, int]:
    """Bytes by module of one rank."""
    found = {}
    for name, module in worker.model_runner.get_model().named_modules():
        # By storage: experts keep views of the same tensors under further names.
        storages = {}
        for attribute, value in vars(module).items():
            if "lora_" in attribute and attribute.endswith("_stacked"):
                for tensor in value if isinstance(value, tuple | list) else [value]:
                    storage = tensor.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
        if storages:
            found[name] = sum(storages.values())
    return found


def answer(case: dict[str, Any]) -> dict[str, int]:
    from vllm import LLM

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(case["config"]))
        engine = LLM(
            folder, skip_tokenizer_init=True, load_format="dummy", enforce_eager=True, enable_lora=True,
            max_model_len=128, max_num_seqs=4, **case["flags"],
        )  # fmt: skip
        slots: dict[str, int] = engine.collective_rpc(slots_of)[0]
        return slots


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "--case":
        # One engine a process: vLLM does not give up its memory and groups.
        logging.disable(logging.WARNING)
        print("\n" + json.dumps(answer(CASES[sys.argv[2]])))
        return
    import vllm

    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    environ = {
        **os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1",
        # Two ranks on one NUMA node.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }  # fmt: skip
    cases = {}
    for name, case in CASES.items():
        if wanted in name:
            done = subprocess.run(
                [sys.executable, __file__, "--case", name], env=environ, stdout=subprocess.PIPE, text=True
            )
            if done.returncode:
                sys.exit(f"{name}: vLLM ended with {done.returncode}")
            cases[name] = {**case, "slots": json.loads(done.stdout.splitlines()[-1])}
    print(json.dumps({"vllm": vllm.__version__, "cases": cases}, indent=1))


if __name__ == "__main__":
    main()
