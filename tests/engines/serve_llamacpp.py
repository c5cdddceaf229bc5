"""Serve a GGUF with llama.cpp's own HTTP server: serve_llamacpp.py FILE PORT CONTEXT SLOTS.

Runs in the engine's own environment until it is ended. The xllamacpp wheel holds llama.cpp's server code;
what answers on the port is that server, with --metrics and --slots switched on.
"""

import sys
import threading

import xllamacpp

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
if len(sys.argv) > 5:
    params.kv_unified = sys.argv[5] == "unified"
server = xllamacpp.Server(params)
print("listening", server.listening_address, flush=True)
threading.Event().wait()
