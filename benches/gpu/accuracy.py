"""How far each operation that `llamaduo bench kernels --save` wrote is from float64, beside PyTorch's own in bf16.

Usage: accuracy.py [--device cuda:N|cpu] DIR
Prints one line of JSON: {"outputs": [{"op", "output", "ours", "theirs", "ratio"}]}. An error is the norm of the
difference over the norm of the reference. The reference is computed in float64 from the very inputs; PyTorch's own takes
them in the type that the operation has: bf16, and float32 for the optimizer and for LoRA's parameters.
"""

import argparse
import json
import math
import pathlib
import struct
import sys

import peer

torch = peer.need("torch")
import torch.nn.functional as F  # noqa: E402

# What both are exact to is no error: a ratio of two roundings of the last bit says nothing.
FLOOR = 1e-9


def read(path, device):
    """The tensors of a safetensors file of float32, and its metadata."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        flat = torch.frombuffer(bytearray(data[begin:end]), dtype=torch.float32)
        tensors[name] = flat.view(entry["shape"]).to(device)
    return tensors, metadata


def attend(q, k, v, scale, causal):
    """`[T, H, D]` or `[B, T, H, D]`, keys and values for each group of heads."""
    repeat = q.shape[-2] // k.shape[-2]
    q, k, v = (one.transpose(-3, -2) for one in (q, k.repeat_interleave(repeat, -2), v.repeat_interleave(repeat, -2)))
    if q.dtype == torch.float64:
        # written out: the reference must not be somebody's kernel
        scores = scale * (q @ k.transpose(-2, -1))
        if causal:
            t = q.shape[-2]
            scores = scores.masked_fill(torch.ones(t, t, dtype=torch.bool, device=q.device).triu(1), -math.inf)
        mixed = torch.softmax(scores, -1) @ v
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    return mixed.transpose(-3, -2)


def norm(x, weight, epsilon, offset):
    if x.dtype == torch.float64:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * (weight + offset)
    return F.rms_norm(x, x.shape[-1:], weight + offset, epsilon)


def rotate(x, positions, frequencies):
    # angles are float32 by the operation's definition
    angles = (positions[:, None] * frequencies[None, :]).to(torch.float32)[:, None, :]
    cos, sin = angles.to(torch.float64).cos().to(x.dtype), angles.to(torch.float64).sin().to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def gated(gate, up, activation):
    acted = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
    return acted * up


def gradients(out, inputs, dout):
    return torch.autograd.grad(out, inputs, dout)


def linears(t, s):
    return {"y": t("x") @ t("w").T}


def matmul_backward(t, s):
    return {"dx": t("dy") @ t("w")}


def linears_lora(t, s):
    scale = float(s["scale"])
    return {"y": t("x") @ t("w").T + scale * ((t("x") @ t("a").T) @ t("b").T)}


def lora_backward(t, s):
    dh = float(s["scale"]) * (t("dy") @ t("b"))
    return {"dx": dh @ t("a"), "da": dh.T @ t("x"), "db": float(s["scale"]) * (t("dy").T @ t("h"))}


def logits(t, s):
    return {"logits": t("x") @ t("w").T}


def cross_entropy(t, s):
    x = t("x").requires_grad_()
    scores = x @ t("w").T
    scores = scores if scores.dtype == torch.float64 else scores.float()
    losses = F.cross_entropy(scores, t.raw("labels").long(), reduction="none")
    return {"losses": losses, "dx": gradients(losses.sum(), x, None)[0]}


def attention(t, s):
    return {"out": attend(t("q"), t("k"), t("v"), float(s["scale"]), True)}


def attention_backward(t, s):
    inputs = [t(name).requires_grad_() for name in "qkv"]
    out = attend(*inputs, float(s["scale"]), True)
    return dict(zip(["dq", "dk", "dv"], gradients(out, inputs, t("dout"))))


def attention_paged(t, s):
    out = attend(t("q").unsqueeze(1), t("k"), t("v"), float(s["scale"]), False)
    return {"out": out.squeeze(1)}


def rms_norm(t, s):
    return {"out": norm(t("x"), t("weight"), float(s["epsilon"]), float(s["offset"]))}


def rms_norm_backward(t, s):
    x = t("x").requires_grad_()
    out = norm(x, t("weight"), float(s["epsilon"]), float(s["offset"]))
    return {"dx": gradients(out, x, t("dy"))[0]}


def rope(t, s):
    return {"x": rotate(t("x"), t.raw("positions"), t.raw("frequencies"))}


def gated_forward(t, s):
    return {"out": gated(t("gate"), t("up"), s["activation"])}


def gated_backward(t, s):
    inputs = [t("gate").requires_grad_(), t("up").requires_grad_()]
    found = gradients(gated(*inputs, s["activation"]), inputs, t("dout"))
    return dict(zip(["dgate", "dup"], found))


def adamw(t, s):
    """As torch.optim.AdamW, from the moments that are given; written out for both, in float32 PyTorch's own kernel."""
    rate, beta1, beta2, epsilon, decay = (float(s[key]) for key in SETTINGS)
    step = int(s["step"])
    params, grads, first, second = (t(name).clone() for name in ("params", "grads", "first", "second"))
    if params.dtype != torch.float64:
        params = torch.nn.Parameter(params)
        params.grad = grads
        optimizer = torch.optim.AdamW([params], rate, (beta1, beta2), epsilon, decay)
        state = {"step": torch.tensor(float(step - 1)), "exp_avg": first, "exp_avg_sq": second}
        optimizer.state[params] = state
        optimizer.step()
        return {"params": params.detach()}
    params *= 1 - rate * decay
    first = beta1 * first + (1 - beta1) * grads
    second = beta2 * second + (1 - beta2) * grads.square()
    root = (second / (1 - beta2**step)).sqrt() + epsilon
    return {"params": params - rate / (1 - beta1**step) * first / root}


SETTINGS = ("learning_rate", "beta1", "beta2", "epsilon", "weight_decay")
OPERATIONS = {
    one.__name__: one
    for one in (linears, matmul_backward, linears_lora, lora_backward, logits, cross_entropy, attention)
}
OPERATIONS |= {one.__name__: one for one in (attention_backward, attention_paged, rms_norm, rms_norm_backward, rope)}
OPERATIONS |= {"gated": gated_forward, "gated_backward": gated_backward, "adamw": adamw}
# Operations whose inputs are float32 throughout.
FLOAT32 = {"adamw"}


class Inputs:
    """The tensors of a file in one precision."""

    def __init__(self, tensors, dtype):
        self.tensors, self.dtype = tensors, dtype

    def __call__(self, name):
        return self.tensors[name].to(self.dtype)

    def raw(self, name):
        return self.tensors[name]


def relative(found, reference):
    found, reference = found.double(), reference.double()
    error = ((found - reference).norm() / reference.norm()).item()
    return error if math.isfinite(error) else math.inf


def compare(path, device):
    tensors, settings = read(path, device)
    op = settings["op"]
    own = torch.float32 if op in FLOAT32 else torch.bfloat16
    reference = OPERATIONS[op](Inputs(tensors, torch.float64), settings)
    peers = OPERATIONS[op](Inputs(tensors, own), settings)
    for output, expected in reference.items():
        ours = relative(tensors[f"out.{output}"], expected)
        theirs = relative(peers[output], expected)
        # JSON has no infinity
        ratio = min(max(ours, FLOOR) / max(theirs, FLOOR), 1e9)
        yield {"op": op, "output": output, "ours": min(ours, 1e9), "theirs": min(theirs, 1e9), "ratio": ratio}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("directory", type=pathlib.Path)
    a = parser.parse_args()
    device = peer.device_of(torch, a.device)
    found = []
    for path in sorted(a.directory.glob("*.safetensors")):
        for one in compare(path, device):
            print("{op} {output}: {ours:.3e}, PyTorch {theirs:.3e}".format(**one), file=sys.stderr)
            found.append(one)
    if not found:
        sys.exit(f"{a.directory} holds no operation")
    print(json.dumps({"torch": torch.__version__, "outputs": found}))


if __name__ == "__main__":
    main()
