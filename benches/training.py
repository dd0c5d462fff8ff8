"""Training beside PyTorch and PEFT: the same model, sizes and threads, in turns.

Usage: training.py LLAMADUO MODEL WORK [--rounds N] [--threads N] [--batch N] [--seq N] [--rank N] [--steps N] [-o json]

MODEL is a GGUF file; PyTorch gets the same weights as a float32 checkpoint (written once into WORK), LlamaDuo trains over
their NF4 form, its default. Figures are medians over the rounds, ratios LlamaDuo / PyTorch.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from generation import report

HERE = pathlib.Path(__file__).parent
GOLDEN = HERE.parent / "tests" / "golden"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("llamaduo")
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("-o", dest="output", default="table", choices=["table", "json"])
    parser.add_argument("--flags", default="", help="more flags for llamaduo bench train")
    sizes = {"--rounds": 3, "--threads": 2, "--batch": 4, "--seq": 256, "--rank": 8, "--steps": 3}
    for name, default in sizes.items():
        parser.add_argument(name, type=int, default=default)
    a = parser.parse_args()
    checkpoint = a.work / "smollm2-f32"
    if not checkpoint.exists():
        part = checkpoint.with_suffix(".part")
        for script in ("smollm2_gguf_to_hf.py", "smollm2_tokenizer.py"):
            subprocess.run([sys.executable, GOLDEN / script, a.model, part], check=True)
        part.rename(checkpoint)
    rounds = []
    for number in range(a.rounds):
        print(f"round {number + 1} of {a.rounds}", file=sys.stderr)
        rounds.append(
            {
                "llamaduo": ours(a),
                "PyTorch": theirs(a, checkpoint),
                "PyTorch, recomputing": theirs(a, checkpoint, "recompute"),
                "PyTorch, bf16": theirs(a, checkpoint, "bf16"),
            }
        )
    report(rounds, a.output)


def ours(a):
    command = [a.llamaduo, "bench", "train", "--model", a.model, "--threads", a.threads, "--batch", a.batch]
    command += ["--seq", a.seq, "--rank", a.rank, "--steps", a.steps, "-o", "json"]
    command += a.flags.split()
    done = read_json(command)
    return figures(done["runs"][0]["tokens_per_s"], done["peak_memory_mb"], done["load_seconds"])


def theirs(a, checkpoint, *more):
    command = [sys.executable, HERE / "training_peer.py", checkpoint, a.threads, a.batch, a.seq, a.rank, a.steps, *more]
    done = read_json(command)
    return figures(done["tokens_per_s"], done["peak_memory_mb"], done["load_seconds"])


def figures(tokens_per_s, peak_memory_mb, load_seconds):
    return {"training tokens/s": tokens_per_s, "peak memory MB": peak_memory_mb, "load s": load_seconds}


def read_json(command):
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
