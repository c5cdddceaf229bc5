"""Serve a GGUF with llama.cpp's own HTTP server: serve_llamacpp.py FILE PORT CONTEXT SLOTS [NAME=VALUE ...].

Runs in the engine's own environment until it is ended. The xllamacpp wheel holds llama.cpp's server code;
what answers on the port is that server, with --metrics and --slots switched on. NAME=VALUE sets one more
launch parameter, as xllamacpp names it: kv_unified=true, cache_type_k=q8_0, flash_attn_type=disabled.
"""

import sys
import threading

import xllamacpp

# Parameters that are words of an enumeration, whose members begin so.
WORDS = {
    "cache_type_k": (xllamacpp.ggml_type, "GGML_TYPE_"),
    "cache_type_v": (xllamacpp.ggml_type, "GGML_TYPE_"),
    "flash_attn_type": (xllamacpp.llama_flash_attn_type, "LLAMA_FLASH_ATTN_TYPE_"),
}

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.hostnames = ["127.0.0.1"]
params.port = int(sys.argv[2])
params.n_ctx = int(sys.argv[3])
params.n_parallel = int(sys.argv[4])
params.endpoint_metrics = True
params.endpoint_slots = True
params.warmup = False
params.cpuparams.n_threads = 1
for change in sys.argv[5:]:
    name, _, text = change.partition("=")
    if name in WORDS:
        words, beginning = WORDS[name]
        value = getattr(words, beginning + text.upper())
    else:
        value = text == "true" if text in ("true", "false") else int(text)
    setattr(params, name, value)
server = xllamacpp.Server(params)
print("listening", server.listening_address, flush=True)
threading.Event().wait()
