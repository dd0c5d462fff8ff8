"""What the figures of one run say about each goal.

A ratio is of two figures of the same run. A goal for which a figure is missing is not measured, with the reason; nothing
is filled in. Products are judged by all linears of a block together, since that is what a model waits for; the worst
single shape is told beside it.
"""

import json

MET, MISSED, NOT_MEASURED = "met", "missed", "not measured"
# The card that goals in tokens/s are meant for; on another one they are told without a verdict.
CARD_OF_RATES = "H200"


class Missing(Exception):
    """Why a goal has no figure."""


def judge(report, sizes):
    """The goals in the order of docs/performance.md."""
    results, card = report["results"], report["card"]
    figures = Figures(results, sizes)
    is_hopper = card["compute_capability"].startswith("9.")
    has_rate = CARD_OF_RATES in card["name"]
    peer = "PEFT + bitsandbytes"

    def rate(what, goal, figure):
        return judged(what, f"at least {goal:,} tokens/s", figure, lambda value: value >= goal if has_rate else None)

    def at_least(what, goal, unit, figure):
        return judged(what, f"at least {goal} {unit}", figure, lambda value: value >= goal)

    found = [
        at_least("NF4 products, 4,096 rows and more", 0.70, "x cuBLAS bf16", figures.many_rows),
        at_least(
            "the same on Hopper by its own instructions",
            0.90,
            "x cuBLAS bf16",
            figures.many_rows_on_hopper if is_hopper else missing("this card is no Hopper"),
        ),
        at_least("NF4 products, one row", 0.85, "x the copy's bandwidth", figures.one_row),
        at_least("NF4 products, 2 to 64 rows", 2, "x bitsandbytes", figures.few_rows),
        rate("decoding, batch 1", 600, lambda: figures.decoding(0)),
        rate(f"decoding, batch {sizes.decode_batches[1]}", 9000, lambda: figures.decoding(1)),
        rate("training, recomputing", 9900, lambda: figures.training("training_recomputing")),
        rate("training", 18000, lambda: figures.training("training")),
        at_least("training beside PEFT", 2, f"x {peer}", figures.training_beside_peer),
        *(
            judged(f"memory of training, {name}", "at most 16 GiB", figure, lambda value: value <= 16)
            for name, figure in [
                ("Llama 3.1 8B", lambda: figures.memory("training_recomputing")),
                ("Gemma 7B", lambda: figures.memory("gemma_training")),
            ]
        ),
        judged("error of every operation", "at most 2 x PyTorch's", figures.error, lambda value: value <= 2),
    ]
    if report["rehearsal"]:
        for goal in found:
            goal["state"] = NOT_MEASURED if goal["state"] == NOT_MEASURED else "rehearsed"
    return found


def judged(what, goal, figure, holds):
    try:
        value, detail = figure()
    except (Missing, LookupError, TypeError) as missing:
        # a part's output that lacks what it should have costs its own goal, not the table
        reason = str(missing) if isinstance(missing, Missing) else f"the part's output lacks {missing}"
        return {"what": what, "goal": goal, "value": None, "state": NOT_MEASURED, "detail": reason}
    met = holds(value)
    state = {True: MET, False: MISSED, None: f"no verdict: the goal is for an {CARD_OF_RATES}"}[met]
    return {"what": what, "goal": goal, "value": value, "state": state, "detail": detail}


def missing(reason):
    def figure():
        raise Missing(reason)

    return figure


class Figures:
    """The figures that goals are about, each with a word about where it comes from."""

    def __init__(self, results, sizes):
        self.results, self.sizes = results, sizes
        self.linears = linears_of(sizes.llama)

    def ours(self):
        return self.kernels("llamaduo", "LlamaDuo's operations")

    def peers(self):
        return self.kernels("peers", "the peers' operations")

    def kernels(self, who, words):
        found = self.results["llama_kernels"][who]
        if found is None:
            raise Missing(f"{words} were not measured")
        return found["kernels"]

    def block(self, kernels, op, m):
        """Seconds of an operation for all linears of a block, and by shape."""
        by_shape = {}
        for n, k in set(self.linears):
            found = [one for one in kernels if one["op"] == op and one["dims"] == {"m": m, "n": n, "k": k}]
            if not found or found[0]["seconds"] is None:
                reason = found[0]["error"] if found else "it is not among the figures"
                raise Missing(f"{op}, {m} x {n} x {k}: {reason}")
            by_shape[n, k] = found[0]
        return sum(by_shape[shape]["seconds"] for shape in self.linears), by_shape

    def ratio(self, op, peer_op, rows):
        """How often faster than the peer, at the number of rows where that is least."""
        worst = None
        for m in rows:
            ours, our_shapes = self.block(self.ours(), op, m)
            theirs, their_shapes = self.block(self.peers(), peer_op, m)
            each = {shape: their_shapes[shape]["seconds"] / one["seconds"] for shape, one in our_shapes.items()}
            shape = min(each, key=each.get)
            detail = f"{m} rows; {shape[0]} x {shape[1]} alone {each[shape]:.2f}"
            worst = min(filter(None, [worst, (theirs / ours, detail)]))
        return worst

    def many_rows_on_hopper(self):
        return self.many_rows("linears_of_documents")

    def many_rows(self, op="linears"):
        forward = self.ratio(op, "matmul", self.sizes.rows_many)
        backward = self.ratio("matmul_backward", "matmul_backward", self.sizes.rows_many)
        return min((forward[0], f"forward, {forward[1]}"), (backward[0], f"backward, {backward[1]}"))

    def one_row(self):
        copies = [one for one in self.ours() if one["op"] == "copy_act" and one["seconds"]]
        if not copies:
            raise Missing("the copy was not measured")
        bandwidth = copies[0]["bytes"] / copies[0]["seconds"]
        seconds, by_shape = self.block(self.ours(), "linears", 1)
        n_bytes = sum(by_shape[shape]["bytes"] for shape in self.linears)
        return n_bytes / seconds / bandwidth, f"{n_bytes / seconds / 1e9:,.0f} of {bandwidth / 1e9:,.0f} GB/s"

    def few_rows(self):
        return self.ratio("linears", "matmul_bitsandbytes", self.sizes.rows_few)

    def run(self, part):
        found = self.results[part]
        if found is None:
            raise Missing("the part has no result")
        return found

    def decoding(self, index):
        run = self.run("decoding")["runs"][index]
        if run["decode_tokens_per_s"] is None:
            raise Missing("it took too little time to tell")
        detail = f"contexts of {run['prompt_tokens']} to {run['prompt_tokens'] + run['new_tokens']} tokens"
        peer = self.results["peer_decoding"]
        if peer is not None:
            detail += f"; transformers {peer['runs'][index]['decode_tokens_per_s']:,.0f}"
        return run["decode_tokens_per_s"], detail

    def training(self, part):
        run = self.run(part)["runs"][0]
        return run["tokens_per_s"], f"{run['batch']} rows of {run['seq']} tokens, rank {run['rank']}"

    def training_beside_peer(self):
        ours, _ = self.training("training")
        peer = self.results["peer_training"]
        if peer is None:
            raise Missing("PEFT was not measured")
        if not peer["quantized"]:
            beside = f"over a bf16 base {ours / peer['tokens_per_s']:.2f} x"
            raise Missing(f"bitsandbytes is not there: {peer['why_not_quantized']}; {beside}")
        return ours / peer["tokens_per_s"], f"{ours:,.0f} beside {peer['tokens_per_s']:,.0f} tokens/s"

    def memory(self, part):
        run = self.run(part)
        if run["card_memory_peak_mib"] is None:
            raise Missing("nvidia-smi does not tell")
        detail = f"{run['runs'][0]['batch']} rows of {run['runs'][0]['seq']} tokens, as nvidia-smi tells"
        return run["card_memory_peak_mib"] / 1024, detail

    def error(self):
        found = self.results["accuracy"]
        if found is None:
            raise Missing("no errors were measured")
        worst = max(found["outputs"], key=lambda output: output["ratio"])
        return worst["ratio"], f"{worst['op']}, {worst['output']}: {worst['ours']:.1e} beside {worst['theirs']:.1e}"


def linears_of(model):
    """`(N, K)` of each linear of a block."""
    config = json.loads((model / "config.json").read_text())
    c, f, d = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * d, config["num_key_value_heads"] * d
    return [(queries, c), (keys, c), (keys, c), (c, queries), (f, c), (f, c), (c, f)]


def table(report):
    """The short table for people."""
    card = report["card"]
    lines = [
        f"{report['date']}  {card['name']}, compute capability {card['compute_capability']}, "
        f"driver {report['driver'] or 'unknown'} (CUDA {card['driver_cuda']}), {report['seconds']:.0f} s"
    ]
    if report["rehearsal"]:
        lines.append("a rehearsal at tiny sizes: no figure below means anything")
    lines += ["", f"{'part':<40}{'state':<10}{'s':>6}"]
    for part in report["parts"]:
        reason = f"  {part['reason']}" if part["reason"] else ""
        lines.append(f"{part['name']:<40}{part['state']:<10}{part['seconds']:>6.1f}{reason}")
    lines += ["", f"{'goal':<44}{'wanted':<34}{'found':>10}  state"]
    for goal in report["goals"]:
        value = "-" if goal["value"] is None else f"{goal['value']:,.2f}"
        lines.append(f"{goal['what']:<44}{goal['goal']:<34}{value:>10}  {goal['state']} ({goal['detail']})")
    return "\n".join(lines)
