"""Times the operations of PyTorch and bitsandbytes at a model's shapes, as `llamaduo bench kernels` times its own.

Usage: peer_kernels.py --model DIR [--device cuda:N|cpu] [--rows N,...] [--tokens N] [--documents N] [--sequences N]
Prints one line of JSON: {"kernels": [{"op", "dims", "seconds", "error", ...}]}. Products are of bf16 (cuBLAS); those of
bitsandbytes read NF4 as it has it. An operation that fails is told of, and the others go on.
"""

import json
import pathlib
import sys

import peer
from goals import linears_of

torch = peer.need("torch")
import torch.nn.functional as F  # noqa: E402


def main():
    a = peer.parser().parse_args()
    device = peer.device_of(torch, a.device)
    torch.manual_seed(0)
    config = json.loads((pathlib.Path(a.model) / "config.json").read_text())
    bench = Bench(a, config, device)
    with torch.device(device):
        bench.copy()
        bench.products()
        bench.bitsandbytes()
        bench.attention()
        bench.rows()
        bench.head()
    about = {"torch": torch.__version__, "bitsandbytes": bench.bitsandbytes_version}
    print(json.dumps({"about": about, "kernels": bench.found}))


def randn(*shape):
    return torch.randn(*shape, dtype=torch.bfloat16)


class Bench:
    def __init__(self, a, config, device):
        self.a, self.config, self.device, self.found = a, config, device, []
        self.clock = peer.Clock(torch, device, a.milliseconds)
        self.shapes = sorted(set(linears_of(pathlib.Path(a.model))))
        self.bitsandbytes_version = None

    def measure(self, op, dims, n_sets, run, replayable=True):
        seconds = best = error = None
        n_samples, replayed = 0, False
        try:
            seconds, best, n_samples, replayed = self.clock.measure(run, n_sets, replayable)
        except Exception as raised:  # a peer may fail for any reason of its own
            error = f"{type(raised).__name__}: {raised}"
        one = {"op": op, "dims": dims, "seconds": seconds, "seconds_best": best, "n_samples": n_samples}
        self.found.append({**one, "replayed": replayed, "error": error})
        print(f"{op} {dims} {seconds} {error or ''}", file=sys.stderr)

    def copy(self):
        n = self.a.copy_kib << 9
        n_sets = self.clock.n_sets(4 * n)
        pairs = [(randn(n), randn(n)) for _ in range(n_sets)]
        self.measure("copy_act", {"len": n}, n_sets, lambda i: pairs[i][0].copy_(pairs[i][1]))

    def products(self):
        m_max, widest = max(self.a.rows), max(map(max, self.shapes))
        flat = [randn(m_max * widest) for _ in range(2)]
        for n, k in self.shapes:
            n_sets = self.clock.n_sets(2 * n * k)
            weights = [randn(n, k) for _ in range(n_sets)]
            for m in self.a.rows:
                dims = {"m": m, "n": n, "k": k}
                xs = [one[: m * k].view(m, k) for one in flat]
                dys = [one[: m * n].view(m, n) for one in flat]
                y, dx = torch.empty(m, n, dtype=torch.bfloat16), torch.zeros(m, k, dtype=torch.bfloat16)
                self.measure("matmul", dims, n_sets, lambda i: torch.mm(xs[i % 2], weights[i].t(), out=y))
                # added to what is there, as in a model's backward
                self.measure("matmul_backward", dims, n_sets, lambda i: dx.addmm_(dys[i % 2], weights[i]))

    def bitsandbytes(self):
        try:
            import bitsandbytes
        except Exception as error:  # a package may fail to load for any reason of its own
            print(f"bitsandbytes is not there: {type(error).__name__}: {error}", file=sys.stderr)
            return
        self.bitsandbytes_version = bitsandbytes.__version__
        for n, k in self.shapes:
            n_sets = self.clock.n_sets(n * k // 2)
            quantize = bitsandbytes.functional.quantize_4bit
            try:
                weight = 0.02 * randn(n, k)
                # plain scales: what it multiplies fastest
                sets = [quantize(weight.clone(), quant_type="nf4", compress_statistics=False) for _ in range(n_sets)]
            except Exception as error:  # it may not know this device
                print(f"bitsandbytes does not quantize: {error}", file=sys.stderr)
                return
            for m in (rows for rows in self.a.rows if rows <= 256):
                x = randn(m, k)

                def run(i):
                    codes, state = sets[i]
                    return bitsandbytes.matmul_4bit(x, codes.t(), quant_state=state)

                with torch.no_grad():
                    self.measure("matmul_bitsandbytes", {"m": m, "n": n, "k": k}, n_sets, run)

    def attention(self):
        c, a = self.config, self.a
        h, kv, d = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        b, t = a.documents, a.tokens
        dims = {"b": b, "t": t, "h": h, "kv": kv, "d": d}
        # keys and values are repeated beforehand: not in the time
        q, k, v, dout = (randn(b, h, t, d) for _ in range(4))
        attend = F.scaled_dot_product_attention
        with torch.no_grad():
            self.measure("attention", dims, 1, lambda _: attend(q, k, v, is_causal=True))
        for one in (q, k, v):
            one.requires_grad_()
        out = attend(q, k, v, is_causal=True)

        def backward(_):
            torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)

        self.measure("attention_backward", dims, 1, backward, replayable=False)
        b = a.sequences
        q, k, v = randn(b, h, 1, d), randn(b, kv, t, d), randn(b, kv, t, d)
        with torch.no_grad():
            dims = {"b": b, "t": t, "h": h, "kv": kv, "d": d}
            self.measure("attention_paged", dims, 1, lambda _: attend(q, k, v, enable_gqa=True))

    def rows(self):
        m, width, ffn = self.a.tokens * self.a.documents, self.config["hidden_size"], self.config["intermediate_size"]
        n_sets = self.clock.n_sets(4 * m * width)
        xs, weight = [randn(m, width) for _ in range(n_sets)], randn(width)
        with torch.no_grad():
            run = lambda i: F.rms_norm(xs[i], (width,), weight, 1e-5)  # noqa: E731
            self.measure("rms_norm", {"m": m, "n": width}, n_sets, run)
            n_sets = self.clock.n_sets(6 * m * ffn)
            gates, ups = ([randn(m * ffn) for _ in range(n_sets)] for _ in range(2))
            act = F.silu if self.config["hidden_act"] == "silu" else lambda x: F.gelu(x, approximate="tanh")
            self.measure("gated", {"len": m * ffn}, n_sets, lambda i: act(gates[i]).mul_(ups[i]))
            self.measure("add", {"len": m * ffn}, n_sets, lambda i: gates[i].add_(ups[i]))

    def head(self):
        c, v = self.config["hidden_size"], self.config["vocab_size"]
        head, b = randn(v, c), self.a.sequences
        x = randn(b, c)
        with torch.no_grad():
            self.measure("logits", {"m": b, "n": v, "k": c}, 2, lambda _: torch.mm(x, head.t()))
        m = self.a.tokens
        x, labels = randn(m, c).requires_grad_(), torch.randint(v, (m,))

        def loss(_):
            torch.autograd.grad(F.cross_entropy((x @ head.t()).float(), labels, reduction="sum"), x)

        self.measure("cross_entropy", {"m": m, "n": v, "k": c}, 2, loss, replayable=False)


if __name__ == "__main__":
    main()
