"""A setting that no server takes is refused by its flag as the command line spells it, and the rule."""

from __future__ import annotations

import pytest

from brimline.engines import ENGINES
from brimline.errors import FootprintError
from brimline.footprint.gpus import find_gpu
from brimline.footprint.hf_config import architecture_of_config
from brimline.footprint.predict import Model, predict

LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 8192, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("engine", "settings", "said"),
    [
        ("vllm", {"cpu_offload_gb": "-5"}, "--cpu-offload-gb -5: it is 0 or more"),
        ("vllm", {"kv_offloading_size": "-1"}, "--kv-offloading-size -1: it is 0 or more"),
        (
            "vllm",
            {"gpu_memory_utilization": "1.2"},
            "--gpu-memory-utilization 1.2: it is above 0 and at most 1",
        ),
        ("vllm", {"gpu_memory_utilization": "0"}, "--gpu-memory-utilization 0: it is above 0 and at most 1"),
        ("vllm", {"max_loras": "1", "max_lora_rank": "17"}, "--max-lora-rank 17: vLLM knows 1, 8, 16, 32,"),
        (
            "vllm",
            {"max_loras": "4", "max_cpu_loras": "2"},
            "--max-cpu-loras 2: it is at least --max-loras, which is 4",
        ),
        (
            "vllm",
            {"offload_group_size": "2", "offload_num_in_group": "5"},
            "--offload-num-in-group 5: it is at most --offload-group-size, which is 2",
        ),
        (
            "vllm",
            {"pipeline_parallel_size": "40"},
            "--pipeline-parallel-size 40 is more than the model's 32 layers",
        ),
        ("sglang", {"cpu_offload_gb": "-1"}, "--cpu-offload-gb -1: it is 0 or more"),
        ("sglang", {"mamba_full_memory_ratio": "-1"}, "--mamba-full-memory-ratio -1: it is 0 or more"),
        ("sglang", {"pp_size": "40"}, "--pp-size 40 is more than the model's 32 layers"),
        ("trtllm", {"pp_size": "40"}, "--pp_size 40 is more than the model's 32 layers"),
        ("trtllm", {"tp_size": "3"}, "--tp_size 3 does not fit 8 K/V heads"),
        ("trtllm", {"max_seq_len": "long"}, "--max_seq_len: 'long' is not a count"),
        ("trtllm", {"max_batch_size": "0"}, "--max_batch_size 0: it starts at 1"),
    ],
)
def test_a_setting_that_no_server_takes_is_named_as_the_user_wrote_it(
    engine: str, settings: dict[str, str], said: str
) -> None:
    model = Model(architecture_of_config(LLAMA, "config.json"), None, LLAMA)

    with pytest.raises(FootprintError) as error:
        predict(engine, model, settings, gpu=find_gpu("H100"))

    assert str(error.value).startswith(said)


@pytest.mark.parametrize("value", ["9" * 4000, "9" * 5000, f"{'9' * 4000}k", "1e300", str(1 << 60)])
@pytest.mark.parametrize("engine", ["llamacpp", "sglang", "trtllm", "vllm"])
def test_no_setting_is_too_large_to_be_refused(engine: str, value: str) -> None:
    model = Model(architecture_of_config(LLAMA, "config.json"), None, LLAMA)

    for name in sorted(ENGINES[engine].flags - {"config", "model"}):
        try:
            predict(engine, model, {name: value}, gpu=find_gpu("H100"))
        except FootprintError:
            continue


@pytest.mark.parametrize(
    ("engine", "name"),
    [
        ("vllm", "max_num_batched_tokens"),
        ("vllm", "num_gpu_blocks_override"),
        ("vllm", "cpu_offload_gb"),
        ("vllm", "kv_cache_memory_bytes"),
        ("sglang", "chunked_prefill_size"),
        ("llamacpp", "ctx_size"),
        ("trtllm", "max_num_tokens"),
    ],
)
def test_a_number_that_no_server_has_is_refused_without_its_thousands_of_digits(
    engine: str, name: str
) -> None:
    model = Model(architecture_of_config(LLAMA, "config.json"), None, LLAMA)

    with pytest.raises(FootprintError) as error:
        predict(engine, model, {name: "9" * 300}, gpu=find_gpu("H100"))

    assert "no server has as many; write a smaller number" in str(error.value)
    assert "99" not in str(error.value)
