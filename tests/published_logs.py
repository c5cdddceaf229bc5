"""Start-up logs of vLLM as they were published, cut to the lines that matter, and what they are of."""

from __future__ import annotations

# Llama-3-8B on H100: vLLM PR 10511.
LOG_0_6_5 = """\
INFO 12-13 19:54:18 worker.py:243] Memory profiling results:
INFO 12-13 19:54:18 worker.py:243] duration     0.75 seconds
INFO 12-13 19:54:18 worker.py:243] total_gpu_memory     79.22GiB
INFO 12-13 19:54:18 worker.py:243] gpu_memory_utilization       0.90
INFO 12-13 19:54:18 worker.py:243] the current vLLM instance can use    71.29GiB
INFO 12-13 19:54:18 worker.py:243] model weights take   14.96GiB
INFO 12-13 19:54:18 worker.py:243] non_torch_memory     1.79GiB
INFO 12-13 19:54:18 worker.py:243] PyTorch activation peak memory       1.26GiB
INFO 12-13 19:54:18 worker.py:243] available_kv_cache_memory    53.29GiB
"""
LOG_0_8 = """\
INFO 03-25 21:32:47 model_runner.py:1116] Loading model weights took 14.9888 GB
INFO 03-25 21:32:48 worker.py:266] Memory profiling takes 0.71 seconds
INFO 03-25 21:32:48 worker.py:266] the current vLLM instance can use total_gpu_memory (22.07GiB) x \
gpu_memory_utilization (0.90) = 19.86GiB
INFO 03-25 21:32:48 worker.py:266] model weights take 14.99GiB; non_torch_memory takes 0.05GiB; PyTorch \
activation peak memory takes 0.22GiB; the rest of the memory reserved for KV Cache is 4.60GiB.
"""
LOG_0_10 = """\
(EngineCore_DP0 pid=3021) INFO 09-23 18:12:05 [core.py:76] Initializing a V1 LLM engine (v0.10.2) with \
config: x
(EngineCore_DP0 pid=3021) INFO 09-23 18:12:21 [gpu_model_runner.py:2392] Model loading took 14.0786 GiB and \
10.247948 seconds
(EngineCore_DP0 pid=3021) INFO 09-23 18:12:33 [gpu_worker.py:298] Available KV cache memory: 55.15 GiB
(EngineCore_DP0 pid=3021) INFO 09-23 18:12:34 [kv_cache_utils.py:864] GPU KV cache size: 451,744 tokens
(EngineCore_DP0 pid=3021) INFO 09-23 18:12:39 [gpu_model_runner.py:3118] Graph capturing finished in 5 secs, \
took 0.67 GiB
(EngineCore_DP0 pid=3021) INFO 09-23 18:12:39 [gpu_worker.py:391] Free memory on device (78.66/79.19 GiB) on \
startup. Desired GPU memory utilization is (0.9, 71.27 GiB). Actual usage is 14.08 GiB for weight, 1.97 \
GiB for \
peak activation, 0.07 GiB for non-torch memory, and 0.67 GiB for CUDAGraph memory. Replace \
gpu_memory_utilization config with `--kv-cache-memory=58333988249` to fit into requested memory.
"""
# Gemma-4-E4B on a GPU of 24 GB: a complete start, which does not say what of the GPU was free.
LOG_0_22 = """\
(APIServer pid=1) INFO 06-07 08:54:54 [utils.py:344]  ▄▄ ▄█ █     █     █ ▀▄▀ █  version 0.22.1
(APIServer pid=1) INFO 06-07 08:54:54 [utils.py:278] non-default args: {'model_tag': \
'google/gemma-4-E4B-it', 'host': '0.0.0.0', 'port': 8020, 'model': 'google/gemma-4-E4B-it', \
'max_model_len': 32768, 'gpu_memory_utilization': 0.9}
(EngineCore pid=111) INFO 06-07 08:55:37 [core.py:112] Initializing a V1 LLM engine (v0.22.1) with config: \
model='google/gemma-4-E4B-it', speculative_config=None, dtype=torch.bfloat16, max_seq_len=32768, \
tensor_parallel_size=1, pipeline_parallel_size=1, data_parallel_size=1, quantization=None, \
enforce_eager=False, kv_cache_dtype=auto, device_config=cuda, enable_prefix_caching=True
(EngineCore pid=111) INFO 06-07 08:56:00 [gpu_model_runner.py:5132] Model loading took 15.18 GiB memory and \
2.640207 seconds
(EngineCore pid=111) INFO 06-07 08:56:43 [gpu_model_runner.py:6365] Estimated CUDA graph memory: 0.79 GiB \
total
(EngineCore pid=111) INFO 06-07 08:56:43 [gpu_worker.py:466] Available KV cache memory: 4.1 GiB
(EngineCore pid=111) INFO 06-07 08:56:43 [kv_cache_utils.py:1733] GPU KV cache size: 224,353 tokens
(EngineCore pid=111) INFO 06-07 08:56:50 [gpu_model_runner.py:6456] Graph capturing finished in 7 secs, took \
0.71 GiB
(EngineCore pid=111) INFO 06-07 08:56:50 [gpu_worker.py:619] CUDA graph pool memory: 0.71 GiB (actual), 0.79 \
GiB (estimated), difference: 0.07 GiB (10.1%).
"""
LOG_2026_08 = """\
(Worker_TP2_EP2 pid=4155526) INFO 08-20 17:28:08 [gpu_worker.py:793] CUDA graph pool memory: 4.13 GiB \
(actual), \
4.99 GiB (estimated), difference: 0.86 GiB (20.9%).
(Worker_TP2_EP2 pid=4155526) INFO 08-20 17:28:08 [gpu_worker.py:857] Free memory on device \
(181.84/184.31 GiB) \
on startup. Desired GPU memory utilization is (0.92, 169.56 GiB). Actual usage is 106.69 GiB for weight, \
6.31 \
GiB for peak activation, 0.95 GiB for non-torch memory, and 4.13 GiB for CUDAGraph memory.
"""
# Llama-3.1-8B on A100-80 with 256 sequences.
LOG_0_31 = """\
(EngineCore pid=326) INFO 10-06 17:00:11 [model_runner.py:407] Model loading took 15.0 GiB memory and \
5.42 seconds
(EngineCore pid=326) INFO 10-06 17:00:33 [kv_cache_utils.py:2464] GPU KV cache size: 460,496 tokens, Maximum \
concurrency for 131,072 tokens per request: 3.51x
(EngineCore pid=326) INFO 10-06 17:00:41 [gpu_worker.py:955] Free memory on device (78.84/79.25 GiB) on \
startup. \
Desired GPU memory utilization is (0.92, 72.91 GiB). Actual usage is 15.26 GiB for consumed memory \
(weights + \
non-torch), 1.44 GiB for peak activation, and 0.23 GiB for CUDAGraph memory.
(EngineCore pid=326) INFO 10-06 17:00:33 [gpu_worker.py:692] Available KV cache memory: 56.21 GiB
"""
LOG_0_32_DEBUG = """\
DEBUG 11-01 10:00:00 [gpu_worker.py:756] Memory profiling takes 3.20 seconds. Total non KV cache memory: \
16.7GiB; torch peak memory increase: 1.2GiB; total consumed (from mem_get_info): 15.26GiB; weights \
memory: 15.0GiB.
INFO 11-01 10:00:01 [gpu_model_runner.py:6475] Estimated CUDA graph memory: 0.36 GiB total
"""
# As 0.33 formats it (v1/worker/gpu_worker.py determine_available_memory: "Requested memory: %f (util)").
LOG_0_33_DEBUG = """\
DEBUG 11-20 10:00:00 [gpu_worker.py:760] Initial free memory: 78.57 GiB; Requested memory: 0.900000 (util), \
71.26 GiB
DEBUG 11-20 10:00:00 [gpu_worker.py:766] Free memory after profiling: 62.1 GiB (total), 54.79 GiB (within \
requested)
DEBUG 11-20 10:00:00 [gpu_worker.py:771] Memory profiling takes 3.20 seconds. Total non KV cache memory: \
16.7GiB; torch peak memory increase: 1.2GiB; total consumed (from mem_get_info): 15.26GiB; weights \
memory: 15.0GiB.
INFO 11-20 10:00:00 [gpu_worker.py:772] Available KV cache memory: 54.2 GiB
"""
# vLLM 0.32.0+cpu with a tiny random Llama, as it came.
LOG_CPU = """\
(APIServer pid=329) INFO 11-22 23:57:37 [api_utils.py:347]  ▄▄ ▄█ █     █     █ ▀▄▀ █  version 0.32.0
(APIServer pid=329) INFO 11-22 23:57:37 [api_utils.py:286] non-default args: {'model_tag': '/models/tiny', \
'host': '127.0.0.1', 'port': 8123, 'model': '/models/tiny', 'dtype': 'bfloat16', 'max_model_len': 2048, \
'load_format': 'dummy', 'max_num_seqs': 16}
(EngineCore pid=439) INFO 11-22 23:57:47 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: \
model='/models/tiny', speculative_config=None, dtype=torch.bfloat16, max_seq_len=2048, download_dir=None, \
load_format=dummy, tensor_parallel_size=1, pipeline_parallel_size=1, data_parallel_size=1, \
decode_context_parallel_size=1, quantization=None, enforce_eager=False, kv_cache_dtype=auto, \
device_config=cpu
(Worker pid=481) INFO 11-22 23:58:03 [base_loader.py:82] Initializing model took 0.192138 seconds
(Worker pid=481) INFO 11-22 23:58:48 [cpu_worker.py:260] Explicitly set (1.0/10.84) GiB for KV cache on node \
0.
(EngineCore pid=439) INFO 11-22 23:58:48 [kv_cache_utils.py:2327] CPU KV cache size: 1,048,576 tokens, \
Maximum concurrency for 2,048 tokens per request: 512.00x
"""


def log_of_h100(
    *, weights: float, activation: float, non_torch: float, pool: float, tensor_parallel: int = 1
) -> str:
    """A start on H100 in the form of vLLM 0.12, with the figures of a row of llm-d's table.

    llm-d-benchmark, config_explorer/empirical-vllm-memory-results.md: 79.18 GiB, utilization 0.9, 1024
    sequences and 8192 tokens by default.
    """
    free = 78.57 if tensor_parallel == 1 else 77.64
    return (
        "INFO [core.py:76] Initializing a V1 LLM engine (v0.12.0) with config: model='x', "
        f"dtype=torch.bfloat16, max_seq_len=16000, tensor_parallel_size={tensor_parallel}, "
        "pipeline_parallel_size=1, quantization=None, enforce_eager=False, kv_cache_dtype=auto, "
        "device_config=cuda\n"
        f"INFO [gpu_model_runner.py:2392] Model loading took {weights} GiB and 31.46 seconds\n"
        f"INFO [gpu_worker.py:298] Available KV cache memory: {pool} GiB\n"
        f"INFO [gpu_worker.py:391] Free memory on device ({free}/79.18 GiB) on startup. Desired GPU memory "
        f"utilization is (0.9, 71.26 GiB). Actual usage is {weights} GiB for weight, {activation} GiB for "
        f"peak activation, {non_torch} GiB for non-torch memory, and 0.39 GiB for CUDAGraph memory.\n"
    )
