"""LoRA training in PyTorch and PEFT, timed: one process, so that its memory can be measured.

Usage: training_peer.py CHECKPOINT THREADS BATCH SEQ RANK STEPS [recompute] [bf16]
Prints one line of JSON. All linears of the blocks, dropout, AdamW and loss on every token as `llamaduo bench train`;
float32, or with bf16 under autocast.
"""

import json
import pathlib
import statistics
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

checkpoint, (threads, batch, seq, rank, steps) = sys.argv[1], map(int, sys.argv[2:7])
recompute, bf16 = "recompute" in sys.argv[7:], "bf16" in sys.argv[7:]
torch.set_num_threads(threads)
begun = time.monotonic()
model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
load_seconds = time.monotonic() - begun
if recompute:
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
lora = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.05, target_modules=targets, task_type="CAUSAL_LM")
model = get_peft_model(model, lora)
model.train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
ids = torch.randint(0, model.config.vocab_size, (batch, seq), generator=torch.Generator().manual_seed(0))
times = []
for _ in range(steps + 1):
    begun = time.monotonic()
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    times.append(time.monotonic() - begun)
peak = int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6
rate = batch * seq / statistics.median(times[1:])
print(json.dumps({"tokens_per_s": rate, "load_seconds": load_seconds, "peak_memory_mb": peak}))
