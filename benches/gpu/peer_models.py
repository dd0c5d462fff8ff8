"""Decoding with transformers and training with PEFT, over a model with random weights at the shapes of a config.json.

Usage: peer_models.py --model DIR [--device cuda:N|cpu] [--tokens N] [--batch N,...] [--new-tokens N] decode
       peer_models.py --model DIR [--device cuda:N|cpu] [--tokens N] [--batch N] [--rank N] [--steps N] train
Prints one line of JSON. Decoding is of a bf16 model, greedy, by the time of all tokens less that of the first ones, as
`llamaduo bench generate` has it. Training has LoRA on all linears of the blocks over bitsandbytes' NF4 (over bf16 where
that is not there, and says so), activations kept, bf16 autocast, AdamW, loss on every token.
"""

import json
import statistics
import sys
import time

import peer

torch = peer.need("torch")
transformers = peer.need("transformers")


def main():
    parser = peer.parser()
    parser.add_argument("what", choices=["decode", "train"])
    parser.add_argument("--batch", type=peer.numbers, default=[1])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2)
    a = parser.parse_args()
    device = peer.device_of(torch, a.device)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    config = transformers.AutoConfig.from_pretrained(a.model)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    found = decode(a, model, device) if a.what == "decode" else train(a, model, device)
    if device.type == "cuda":
        found["allocated_peak_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__, **found}))


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def decode(a, model, device):
    model.eval()
    runs = []
    for batch in a.batch:
        ids = torch.randint(model.config.vocab_size, (batch, a.tokens), device=device)

        def seconds(n):
            wait(device)
            begun = time.perf_counter()
            with torch.no_grad():
                out = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    min_new_tokens=n,
                    max_new_tokens=n,
                    pad_token_id=0,
                    eos_token_id=None,
                )
            wait(device)
            assert out.shape[1] == a.tokens + n, out.shape
            return time.perf_counter() - begun

        seconds(2)  # kernels are chosen and loaded
        first, every = seconds(1), seconds(a.new_tokens)
        rate = batch * (a.new_tokens - 1) / max(every - first, 1e-9)
        runs.append({"batch": batch, "prompt_tokens": a.tokens, "decode_tokens_per_s": rate})
        print(f"batch {batch}: {rate:.1f} tokens/s", file=sys.stderr)
    return {"runs": runs}


TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def quantize(model, device):
    """Puts bitsandbytes' NF4 linears in the place of the blocks' own; the reason where that does not go."""
    if device.type != "cuda":
        return "it is meant for cards"
    try:
        import bitsandbytes
    except Exception as error:  # a package may fail to load for any reason of its own
        return f"{type(error).__name__}: {error}"
    for module in list(model.modules()):
        for name, linear in list(module.named_children()):
            if name in TARGETS:
                made = bitsandbytes.nn.Linear4bit(
                    linear.in_features,
                    linear.out_features,
                    bias=False,
                    compute_dtype=torch.bfloat16,
                    compress_statistics=True,
                    quant_type="nf4",
                    device="meta",
                )
                made.weight = bitsandbytes.nn.Params4bit(
                    linear.weight.data.cpu(), requires_grad=False, compress_statistics=True, quant_type="nf4"
                )
                setattr(module, name, made.to(device))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return None


def train(a, model, device):
    peft = peer.need("peft")
    why_not = quantize(model, device)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    lora = peft.LoraConfig(
        r=a.rank, lora_alpha=2 * a.rank, lora_dropout=0.05, target_modules=TARGETS, task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(model, lora)
    model.train()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=2e-4)
    batch = a.batch[0]
    ids = torch.randint(model.config.vocab_size, (batch, a.tokens), device=device)
    times = []
    for _ in range(a.steps + 1):
        wait(device)
        begun = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        wait(device)
        times.append(time.perf_counter() - begun)
    rate = batch * a.tokens / statistics.median(times[1:])
    return {
        "peft": peft.__version__,
        "quantized": why_not is None,
        "why_not_quantized": why_not,
        "batch": batch,
        "tokens_per_s": rate,
    }


if __name__ == "__main__":
    main()
