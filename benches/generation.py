"""Generation beside llama.cpp: the same model at four bits, the same sizes, the same threads, in turns.

Usage: generation.py LLAMADUO MODEL WORK [--rounds N] [--threads N] [--prompt-tokens N] [--new-tokens N] [-o json]

MODEL is a model reference of LlamaDuo that is a GGUF file. llama.cpp gets it as Q4_0 (written once into WORK by the
package gguf); LlamaDuo runs it in NF4. Each round runs each program once, so that both see the same
neighbours on the machine; the figures are medians over the rounds, the ratios LlamaDuo / llama.cpp.
"""

import argparse
import concurrent.futures
import json
import pathlib
import statistics
import subprocess
import sys
import time
import urllib.request

BATCH = 32
HERE = pathlib.Path(__file__).parent


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("llamaduo")
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--batch-prompt-tokens", type=int, default=64)
    parser.add_argument("--flags", default="", help="more flags for llamaduo bench generate")
    parser.add_argument("-o", dest="output", default="table", choices=["table", "json"])
    a = parser.parse_args()
    peer_model = as_q4_0(a.model, a.work)
    rounds = []
    for number in range(a.rounds):
        print(f"round {number + 1} of {a.rounds}", file=sys.stderr)
        rounds.append({"llamaduo": ours(a), "llama.cpp": theirs(a, peer_model)})
    report(rounds, a.output)


def as_q4_0(source, work):
    """The model with its matrices as Q4_0, the tied embedding and head as Q8_0, as llama-quantize would leave them."""
    target = work / f"{source.stem.rsplit('.', 1)[0]}.Q4_0.gguf"
    if target.exists():
        return target
    import gguf

    reader = gguf.GGUFReader(source)
    part = target.with_suffix(".part")
    writer = gguf.GGUFWriter(part, reader.get_field("general.architecture").contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        element = field.types[1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, element)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        kind = tensor.tensor_type
        if values.ndim == 2 and kind != gguf.GGMLQuantizationType.Q8_0:
            kind = gguf.GGMLQuantizationType.Q4_0
        data = gguf.quants.quantize(values, kind)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(target)
    return target


def ours(a):
    def bench(batch, prompt_tokens):
        command = [a.llamaduo, "bench", "generate", "--model", a.model, "--threads", a.threads, "--batch", batch]
        command += ["--prompt-tokens", prompt_tokens, "--new-tokens", a.new_tokens, "-o", "json", *a.flags.split()]
        done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
        return json.loads(done.stdout)

    one, many = bench(1, a.prompt_tokens), bench(BATCH, a.batch_prompt_tokens)
    return {
        "prefill tokens/s": one["runs"][0]["prefill_tokens_per_s"],
        "decode tokens/s": one["runs"][0]["decode_tokens_per_s"],
        f"batch {BATCH} tokens/s": many["runs"][0]["tokens_per_s"],
        "load s": one["load_seconds"],
        "peak memory MB": one["peak_memory_mb"],
        f"peak memory MB, batch {BATCH}": many["peak_memory_mb"],
    }


def theirs(a, model):
    with Server(model, a.threads, 1, a.prompt_tokens + a.new_tokens + 8) as server:
        server.complete(prompt(999, 8), 2)  # pages in the file
        timings = server.complete(prompt(0, a.prompt_tokens), a.new_tokens)["timings"]
        one = {
            "prefill tokens/s": timings["prompt_per_second"],
            "decode tokens/s": timings["predicted_per_second"],
        }
        one_load, one_peak = server.load_seconds, server.peak_memory_mb()
    each = a.batch_prompt_tokens + a.new_tokens + 8
    with Server(model, a.threads, BATCH, BATCH * each) as server, concurrent.futures.ThreadPoolExecutor(BATCH) as pool:
        server.complete(prompt(999, 8), 2)
        begun = time.monotonic()
        jobs = [pool.submit(server.complete, prompt(i, a.batch_prompt_tokens), a.new_tokens) for i in range(BATCH)]
        n_tokens = sum(job.result()["tokens_predicted"] for job in jobs)
        many = n_tokens / (time.monotonic() - begun)
        many_peak = server.peak_memory_mb()
    return one | {
        f"batch {BATCH} tokens/s": many,
        "load s": one_load,
        "peak memory MB": one_peak,
        f"peak memory MB, batch {BATCH}": many_peak,
    }


def prompt(seed, n_tokens):
    """Tokens that no two prompts share at their beginning."""
    return [1000 + (seed * 7919 + i * 104729) % 40000 for i in range(n_tokens)]


class Server:
    """llama.cpp's server as a child process."""

    def __init__(self, model, threads, slots, context):
        command = [sys.executable, HERE / "generation_peer.py", model, threads, slots, context]
        self.process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def __enter__(self):
        told = json.loads(self.process.stdout.readline())
        self.address, self.load_seconds = told["address"], told["load_seconds"]
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def complete(self, tokens, n_predict):
        body = {"prompt": tokens, "n_predict": n_predict, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        request = urllib.request.Request(
            f"{self.address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)

    def peak_memory_mb(self):
        """Python's own part is in it: some 30 MB."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def report(rounds, output):
    """Medians over the rounds, and those of the ratios of the first program to each other one."""
    first, *others = rounds[0]
    rows = []
    for what in rounds[0][first]:
        values = {who: [one[who][what] for one in rounds] for who in rounds[0]}
        row = {"what": what} | {who: statistics.median(value) for who, value in values.items()}
        for who in others:
            row[f"ratio to {who}"] = statistics.median(x / y for x, y in zip(values[first], values[who]))
        rows.append(row)
    if output == "json":
        print(json.dumps({"rounds": rounds, "medians": rows}))
        return
    print("".join(f"{name:>{28 if name == 'what' else len(name) + 3}}" for name in rows[0]))
    for row in rows:
        cells = (value if name == "what" else f"{value:.2f}" for name, value in row.items())
        print("".join(f"{cell:>{28 if name == 'what' else len(name) + 3}}" for name, cell in zip(row, cells)))


if __name__ == "__main__":
    main()
