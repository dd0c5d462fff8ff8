"""llama.cpp's server in a process of its own, so that its memory and its loading can be measured.

Usage: generation_peer.py MODEL.gguf THREADS SLOTS CONTEXT
Prints one line of JSON: the address and the seconds until it answered; then serves until its standard input closes.
"""

import json
import sys
import time

import xllamacpp

model, threads, slots, context = sys.argv[1], *map(int, sys.argv[2:5])
params = xllamacpp.CommonParams()
params.model.path = model
params.n_ctx = context
params.n_parallel = slots
params.cpuparams.n_threads = threads
params.cpuparams_batch.n_threads = threads
params.cache_prompt = False
params.n_gpu_layers = 0
params.warmup = False
begun = time.monotonic()
server = xllamacpp.Server(params)
loaded = time.monotonic() - begun
print(json.dumps({"address": server.listening_address, "load_seconds": loaded}), flush=True)
sys.stdin.read()
