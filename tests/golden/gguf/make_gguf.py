"""GGUF files of the small models beside this directory, as llama.cpp's converter writes them.

Needs: pip install torch safetensors numpy gguf; for --check also xllamacpp
Usage: python make_gguf.py GOLDEN_DIR OUT_DIR [--check]
For each family F below, reads GOLDEN_DIR/F (config.json, model.safetensors or its shards) and writes OUT_DIR/F.gguf: matrices in
the type of the checkpoint, vectors in float32, no vocabulary. What the converter changes on the way is changed here: rows of query
and key projections of llama are interleaved, norms of Gemma are stored as 1 + w, Llama 3's scaling of the rotation becomes the
tensor rope_freqs.weight, a tied head is left out. --check writes each once more in float32 with a vocabulary, lets llama.cpp go on
from GOLDEN_DIR/F/reference.safetensors, and compares the greedy text and the probabilities of its first token.
"""
import json, math, os, sys, tempfile
import gguf, numpy as np, torch
from safetensors.torch import load_file

TYPE = {torch.float32: gguf.GGMLQuantizationType.F32, torch.float16: gguf.GGMLQuantizationType.F16, torch.bfloat16: gguf.GGMLQuantizationType.BF16}
FAMILIES = {"gemma": "gemma", "gemma3": "gemma3", "llama_bf16_sharded": "llama", "llama3_long": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
MODULES = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm"}
GEMMA3_MODULES = {**MODULES, "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"}

def tensors(directory):
    found = {}
    for name in sorted(os.listdir(directory)):
        if name.startswith("model") and name.endswith(".safetensors"): found.update(load_file(f"{directory}/{name}"))
    return found

def spelled(name, arch):
    if name == "model.embed_tokens.weight": return "token_embd.weight"
    if name == "model.norm.weight": return "output_norm.weight"
    if name == "lm_head.weight": return "output.weight"
    _, _, layer, module = name.split(".", 3); module, kind = module.rsplit(".", 1)
    return f"blk.{layer}.{(GEMMA3_MODULES if arch == 'gemma3' else MODULES)[module]}.{kind}"

def interleaved(w, n_heads):
    return w.reshape(n_heads, 2, w.shape[0] // n_heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)

def rope_divisors(rope, head_dim):
    freqs = 1.0 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    factor, low, high, old = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    def divisor(f):
        wavelength = 2 * math.pi / f
        if wavelength < old / high: return 1.0
        if wavelength > old / low: return factor
        smooth = (old / wavelength - low) / (high - low)
        return 1 / ((1 - smooth) / factor + smooth)
    return torch.tensor([divisor(f) for f in freqs.tolist()], dtype=torch.float32)

def write(path, directory, arch, with_vocabulary, as_float32):
    c = json.load(open(f"{directory}/config.json")); head_dim = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    w = gguf.GGUFWriter(path, arch)
    w.add_context_length(c["max_position_embeddings"]); w.add_embedding_length(c["hidden_size"]); w.add_block_count(c["num_hidden_layers"])
    w.add_feed_forward_length(c["intermediate_size"]); w.add_head_count(c["num_attention_heads"]); w.add_head_count_kv(c["num_key_value_heads"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    if arch != "qwen2": w.add_key_length(head_dim); w.add_value_length(head_dim)
    rope = c["rope_parameters"]
    if arch == "gemma3":
        full = rope["full_attention"]
        w.add_rope_freq_base(full["rope_theta"]); w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR); w.add_rope_scaling_factor(full["factor"])
        # The converter leaves out the next, which is 6 in every published model.
        w.add_sliding_window(c["sliding_window"]); w.add_sliding_window_pattern(c["layer_types"].index("full_attention") + 1)
    elif arch != "gemma":
        w.add_rope_freq_base(rope["rope_theta"])
    if arch == "llama":
        w.add_vocab_size(c["vocab_size"]); w.add_rope_dimension_count(head_dim)
        if rope["rope_type"] == "llama3": w.add_tensor("rope_freqs.weight", rope_divisors(rope, head_dim).numpy())
    if with_vocabulary:
        w.add_tokenizer_model("gpt2"); w.add_tokenizer_pre("gpt-2"); w.add_token_list([chr(33 + i) for i in range(c["vocab_size"])])
        w.add_token_types([1] * c["vocab_size"]); w.add_token_merges(['! "']); w.add_add_bos_token(False)
    else:
        w.add_tokenizer_model("none")
    w.add_bos_token_id(1); w.add_eos_token_id(2)
    for name, t in sorted(tensors(directory).items()):
        if name == "lm_head.weight" and c["tie_word_embeddings"]: continue
        if arch.startswith("gemma") and name.endswith("norm.weight"): t = t.float() + 1
        if arch == "llama" and ".q_proj." in name: t = interleaved(t, c["num_attention_heads"])
        if arch == "llama" and ".k_proj." in name: t = interleaved(t, c["num_key_value_heads"])
        kind = gguf.GGMLQuantizationType.F32 if t.ndim == 1 or as_float32 else TYPE[t.dtype]
        # 32-bit values of all three types are exact, so quantizing them gives the checkpoint's own bits
        w.add_tensor(spelled(name, arch), gguf.quants.quantize(t.float().contiguous().numpy(), kind), raw_dtype=kind)
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()

def check(path, directory):
    import xllamacpp
    ref = load_file(f"{directory}/reference.safetensors"); ids, greedy = ref["input_ids"], ref["greedy"]
    p = xllamacpp.CommonParams(); p.model.path = path; p.n_ctx = 256; p.n_parallel = 1; p.cpuparams.n_threads = 1; p.warmup = False
    p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32; p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(p); worst = 0.0; same = 0
    for row in range(ids.shape[0]):
        answer = server.handle_completions(dict(prompt=ids[row].tolist(), n_predict=16, temperature=0, n_probs=20, cache_prompt=False))
        answer = json.loads(answer) if isinstance(answer, str) else answer
        ours = torch.log_softmax(ref["logits"][row, -1].double(), -1)
        steps = answer["choices"][0]["logprobs"]["content"]
        for token in steps[0]["top_logprobs"]: worst = max(worst, abs(ours[token["id"]].item() - token["logprob"]))
        said, expected = [step["id"] for step in steps], greedy[row, ids.shape[1]:].tolist()
        same += said == expected[:len(said)] and (len(said) == 16 or expected[len(said) - 1] == 2 or expected[len(said)] == 2)   # it stops at the end token
    print(f"  llama.cpp: greedy text of {same} of {ids.shape[0]} rows is the same, log probabilities differ by {worst:.1e}")

golden, out = sys.argv[1:3]; os.makedirs(out, exist_ok=True)
for family, arch in FAMILIES.items():
    write(f"{out}/{family}.gguf", f"{golden}/{family}", arch, False, False)
    print(family, os.path.getsize(f"{out}/{family}.gguf"), "bytes")
    if "--check" in sys.argv:
        with tempfile.TemporaryDirectory() as tmp:
            write(f"{tmp}/m.gguf", f"{golden}/{family}", arch, True, True); check(f"{tmp}/m.gguf", f"{golden}/{family}")
