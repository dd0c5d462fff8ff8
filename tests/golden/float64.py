"""The first gradients and 20 training steps of `make_fixtures.py`, all in float64: what the references would be without rounding.

    python float64.py FAMILY_DIR...

Prints each trained element that the float32 reference in `adapter_reference.safetensors` has further than 1e-5 from float64, and
those named as TENSOR[INDEX] after a family's directory. AdamW divides a gradient by its own size, so an element whose
gradient is smaller than what float32 can tell from nothing goes where rounding sends it; `engine/src/parity.rs` names them.
Same packages as `make_fixtures.py`; run with transformers 5.23, PEFT 0.21, bitsandbytes 0.50.2, torch 2.7.1.
"""

import re
import sys

import bitsandbytes.functional as bnbf
import torch
import transformers as tf
from peft import PeftModel
from safetensors.torch import load_file

torch.set_num_threads(1)


def keep_float64():
    """transformers computes norms, softmax and loss in float32 whatever the model's type: lets float64 be."""
    to, to_float, softmax = torch.Tensor.to, torch.Tensor.float, torch.nn.functional.softmax

    def patched_to(self, *args, **kwargs):
        if self.dtype == torch.float64:
            args = tuple(torch.float64 if value is torch.float32 else value for value in args)
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
        return to(self, *args, **kwargs)

    def patched_softmax(x, dim=None, _stacklevel=3, dtype=None):
        return softmax(x, dim=dim, dtype=torch.float64 if x.dtype == torch.float64 else dtype)

    torch.Tensor.to = patched_to
    torch.Tensor.float = lambda self: self if self.dtype == torch.float64 else to_float(self)
    torch.nn.functional.softmax = patched_softmax


def nf4_round_trip(w):
    # rows of one block each, see make_fixtures.py
    q, state = bnbf.quantize_4bit(w.reshape(-1, 64).contiguous(), blocksize=64, quant_type="nf4", compress_statistics=False)
    return bnbf.dequantize_4bit(q, state).reshape(w.shape).to(w.dtype)


def trained(directory, nf4):
    model = tf.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    if nf4:
        with torch.no_grad():
            for name, linear in model.named_modules():
                if isinstance(linear, torch.nn.Linear) and "lm_head" not in name:
                    linear.weight.copy_(nf4_round_trip(linear.weight))
    # the frequencies of the rotation are float32 numbers in the references, so they stay these, as doubles
    frequencies = [(part, part.inv_freq.clone()) for part in model.modules() if hasattr(part, "inv_freq")]
    model = model.to(torch.float64)
    for part, values in frequencies:
        part.inv_freq = values.double()
    model = PeftModel.from_pretrained(model, f"{directory}/adapter", is_trainable=True, autocast_adapter_dtype=False).eval()
    rows = load_file(f"{directory}/reference.safetensors")
    train = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.double()
        if parameter.requires_grad:
            train[name.replace(".default", "")] = parameter
    optimizer = torch.optim.AdamW(train.values(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    gradients = None
    for _ in range(20):
        optimizer.zero_grad()
        model(input_ids=rows["input_ids"], labels=rows["labels"]).loss.backward()
        if gradients is None:
            gradients = {name: parameter.grad.clone().flatten() for name, parameter in train.items()}
        optimizer.step()
    return gradients, {name: parameter.detach().flatten() for name, parameter in train.items()}


def report(directory, named):
    theirs = load_file(f"{directory}/adapter_reference.safetensors")
    for prefix in ("", "nf4."):
        gradients, values = trained(directory, prefix != "")
        for name, value in values.items():
            reference, gradient = (theirs[f"{prefix}{kind}.{name}"].double().flatten() for kind in ("trained", "grad"))
            off = (reference - value).abs()
            shown = {int(i) for i in (off > 1e-5).nonzero()} | {i for tensor, i in named if tensor == prefix + name}
            for i in sorted(shown):
                print(f"{directory} {prefix}{name}[{i}] of largest gradient {gradients[name].abs().max():.3e}")
                print(f"  gradient {gradients[name][i]:.4e}, reference {gradient[i]:.4e}")
                print(f"  trained {value[i]:.8f}, reference {reference[i]:.8f}, off {off[i]:.1e}")


keep_float64()
directory, named = None, []
for word in [*sys.argv[1:], None]:
    element = re.fullmatch(r"(.+)\[(\d+)\]", word or "")
    if element:
        named.append((element[1], int(element[2])))
        continue
    if directory:
        report(directory, named)
    directory, named = word, []
