"""Compares the llamaduo binary with transformers and PEFT on SmolLM2-135M-Instruct, in float32, on the file's own values.

Usage: check.py LLAMADUO_BINARY WORK_DIR GOLDEN_DIR     (tests/peft/check calls it)

Checks, each printed with both figures:
  1. mean next-token loss of chat-templated rows, bare base
  2. an adapter trained by llamaduo, loaded by PEFT: loss and greedy text
  3. an adapter trained by PEFT, loaded by llamaduo: loss and greedy text
  4. `export --to peft`, loaded by PEFT: loss and greedy text
  5. `export --to safetensors` of base and adapter merged over NF4, loaded by transformers: loss and greedy text beside
     those of NF4 and adapter in llamaduo; from the GGUF file, and from a checkpoint of transformers
"""
import json
import os
import pathlib
import subprocess
import sys

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

LOSS_TOLERANCE = 1e-4  # float32 drift between GEMM orders on 135M parameters; measured below 2e-5
N_TOKENS = 40

binary, work, golden = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LLAMADUO_CACHE"] = str(work / "cache")
failures = []

ROWS = [
    ("Reply with the capital of the country: Peru", "Lima"),
    ("Reply with the capital of the country: Norway", "Oslo"),
    ("Label the mood: I waited three hours and nobody came.", '{"mood": "angry"}'),
    ("Label the mood: Thank you, that was quick!", '{"mood": "happy"}'),
    ("Label the mood: The parcel arrived on Tuesday.", '{"mood": "neutral"}'),
    ("Translate to German: good morning", "guten Morgen"),
    ("Name three colours.", "Red, green and blue."),
    ("Add 17 and 25.", "42"),
]
PROMPT = "Label the mood: Why does this happen again and again?"


def messages(prompt, answer=None):
    turns = [{"role": "user", "content": prompt}]
    return turns + ([{"role": "assistant", "content": answer}] if answer is not None else [])


def llamaduo(*arguments):
    command = [binary, *map(str, arguments), "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)


def check(what, ours, theirs, same):
    print(f"{'ok  ' if same else 'FAIL'}  {what}: llamaduo {ours!r}, peft {theirs!r}", flush=True)
    if not same:
        failures.append(what)


def reference_loss(model, tokenizer=None):
    """Mean over all predicted tokens of all rows, as `llamaduo eval` defines it."""
    tokenizer = tokenizer or own_tokenizer
    total, count = 0.0, 0
    with torch.no_grad():
        for prompt, answer in ROWS:
            text = tokenizer.apply_chat_template(messages(prompt, answer), tokenize=False)
            ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
            total += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
    return total / count, count


def reference_text(model, tokenizer=None):
    tokenizer = tokenizer or own_tokenizer
    text = tokenizer.apply_chat_template(messages(PROMPT), tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
    with torch.no_grad():
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=N_TOKENS,
                             do_sample=False, repetition_penalty=1.0)
    return tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True)


def compare(what, model, adapter):
    flags = ["--quant", "none"] + (["--adapter", adapter] if adapter else [])
    ours = llamaduo("eval", "--model", gguf, "--data", rows, *flags)
    loss, count = reference_loss(model)
    check(f"{what}, tokens", ours["tokens"], count, ours["tokens"] == count)
    check(f"{what}, loss", ours["loss"], loss, abs(ours["loss"] - loss) < LOSS_TOLERANCE)
    ours = llamaduo("generate", "--model", gguf, "--prompt", PROMPT, "--greedy", "--max-tokens", N_TOKENS, *flags)
    text = reference_text(model)
    check(f"{what}, greedy text", ours["text"], text, ours["text"].strip() == text.strip())


rows = work / "rows.jsonl"
rows.write_text("".join(json.dumps({"messages": messages(p, a)}) + "\n" for p, a in ROWS))
llamaduo("generate", "--model", "smollm2-135m-instruct", "--prompt", "Hi", "--greedy", "--max-tokens", 1)
gguf = next(iter(sorted((work / "cache").rglob("*.gguf"))))

hf = work / "smollm2-hf"
if not (hf / "tokenizer.json").exists():
    subprocess.run([sys.executable, golden / "smollm2_gguf_to_hf.py", gguf, hf], check=True)
    subprocess.run([sys.executable, golden / "smollm2_tokenizer.py", gguf, hf], check=True)
torch.set_num_threads(2)
tokenizer = own_tokenizer = transformers.AutoTokenizer.from_pretrained(hf)
load = lambda: transformers.AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32).eval()

compare("bare base", load(), None)

ours = work / "ours"
config = work / "llamaduo.toml"
config.write_text(f"""
[task]
name = "peft-check"
[local]
base = "{gguf}"
quant = "none"
[service]
model = "never-called"
base_url = "http://127.0.0.1:9/v1"
[data]
coverage = "{rows}"
test_count = 1
[train]
epochs = 12
learning_rate = 1e-3
""")
llamaduo("train", "--config", config, "--out", ours)
adapter = next(iter(sorted(ours.rglob("adapter_config.json")))).parent
compare("adapter trained by llamaduo", PeftModel.from_pretrained(load(), adapter).eval(), adapter)

torch.manual_seed(0)
model = get_peft_model(load(), LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules="all-linear"))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
for step in range(40):
    prompt, answer = ROWS[step % len(ROWS)]
    ids = torch.tensor([tokenizer(tokenizer.apply_chat_template(messages(prompt, answer), tokenize=False), add_special_tokens=False).input_ids])
    optimizer.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
theirs = work / "theirs"
model.eval().save_pretrained(theirs)
compare("adapter trained by PEFT", model, theirs)

exported = work / "exported-peft"
llamaduo("export", "--model", gguf, "--adapter", theirs, "--to", "peft", "--out", exported, "--overwrite")
compare("adapter exported to PEFT", PeftModel.from_pretrained(load(), exported).eval(), theirs)

for base in (gguf, hf):
    what = f"merged over NF4 from {'a checkpoint' if base == hf else 'GGUF'}"
    merged = work / "exported-hf"
    said = llamaduo("export", "--model", base, "--adapter", theirs, "--to", "safetensors", "--type", "f32", "--out", merged,
                    "--overwrite")
    print(f"      {what}: {said['difference']}")
    nf4 = llamaduo("eval", "--model", base, "--data", rows, "--adapter", theirs)
    model = transformers.AutoModelForCausalLM.from_pretrained(merged).eval()
    own = transformers.AutoTokenizer.from_pretrained(merged)
    loss, count = reference_loss(model, own)
    check(f"{what}, tokens", nf4["tokens"], count, nf4["tokens"] == count)
    check(f"{what}, loss", nf4["loss"], loss, abs(nf4["loss"] - loss) < LOSS_TOLERANCE)
    ours = llamaduo("generate", "--model", base, "--prompt", PROMPT, "--greedy", "--max-tokens", N_TOKENS, "--adapter", theirs)
    text = reference_text(model, own)
    check(f"{what}, greedy text", ours["text"], text, ours["text"].strip() == text.strip())

print(f"{len(failures)} failed" if failures else "all checks passed")
sys.exit(1 if failures else 0)
