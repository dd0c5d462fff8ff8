"""Answers prompts greedily with llama.cpp, in this process: llama_cpp.py MODEL.gguf [LORA.gguf], with
{"requests": [{"messages": [...]} | {"prompt": text or ids}, ...], "max_tokens": N} on stdin; a JSON list of texts on
stdout. A conversation is rendered by the chat template in the GGUF file."""
import json
import sys

import xllamacpp

asked = json.load(sys.stdin)
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx = 2048
params.n_parallel = 1
params.cpuparams.n_threads = 1  # more would spin while they wait for one another
params.warmup = False
params.fit_params = False
# The default cache rounds keys and values to halves.
params.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
if len(sys.argv) > 2:
    adapter = xllamacpp.CommonAdapterLoraInfo()
    adapter.path, adapter.scale = sys.argv[2], 1.0
    params.lora_adapters = [adapter]
server = xllamacpp.Server(params)
greedy = {"temperature": 0, "top_k": 1, "seed": 0, "cache_prompt": False}
answers = []
for request in asked["requests"]:
    if "messages" in request:
        said = server.handle_chat_completions({**request, "max_tokens": asked["max_tokens"], **greedy})
        answers.append(said["choices"][0]["message"]["content"])
    else:
        said = server.handle_completions({**request, "max_tokens": asked["max_tokens"], **greedy})
        answers.append(said["choices"][0]["text"])
json.dump(answers, sys.stdout)
