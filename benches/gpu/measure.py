"""Runs all checks and measurements of a card in one go, within a time, and writes what was found.

Usage: measure.py [--out DIR] [--device cuda:N] [--seconds N] [--only PART ...]
                  [--rehearse] [--llamaduo PROGRAM] [--conformance PROGRAM] [--library-path DIR]

Each part is a process of its own with a limit; one that fails or takes too long is reported, and the others go on. DIR
gets results.json (everything), summary.txt (the table that is printed last) and log.txt (what the parts said).
--rehearse runs all of it at tiny sizes, with the peers on the CPU: it shows that the script works and measures nothing.
--library-path is where the loader finds libcuda.so before anywhere else. Needs no package but the peers' own.
"""

import argparse
import datetime
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import goals

HERE = pathlib.Path(__file__).resolve().parent
# A part that cannot run here at all says why on its last line and ends with this code.
SKIPPED = 3
# Kept back for the table and the files.
RESERVE_SECONDS = 5
# How much longer a part may take in a rehearsal, whose machine may be busy with anything.
REHEARSAL_PATIENCE = 4


class Sizes:
    """What is measured: the models' own sizes, or tiny ones that a rehearsal is through with in seconds."""

    def __init__(self, rehearse):
        models = HERE / "models"
        self.llama = models / ("tiny" if rehearse else "llama-3.1-8b")
        self.gemma = models / ("tiny" if rehearse else "gemma-7b")
        self.rows = [1, 2, 33] if rehearse else [1, 2, 4, 8, 16, 32, 64, 256, 1024, 4096, 8192]
        self.rows_few = [2] if rehearse else [2, 4, 8, 16, 32, 64]
        self.rows_many = [33] if rehearse else [4096, 8192]
        self.tokens = 16 if rehearse else 1024
        self.documents = 2 if rehearse else 4
        self.sequences = 2 if rehearse else 32
        self.rank = 4 if rehearse else 32
        self.copy_kib = 512 if rehearse else 1 << 20
        self.milliseconds = 1 if rehearse else 40
        self.accuracy_rows = 3 if rehearse else 64
        self.accuracy_sequences = 2 if rehearse else 4
        self.decode_batches = [1, 2] if rehearse else [1, 32]
        self.new_tokens = 4 if rehearse else 64
        # Rows of a training step: what the memory goal names, and fewer where nothing is made again in the backward.
        self.train_batch = 2 if rehearse else 16
        self.train_batch_kept = 2 if rehearse else 4
        self.train_steps = 1 if rehearse else 2


class CardMemory:
    """The most memory that was in use on the card while a part ran, as nvidia-smi tells every tenth of a second: the same
    yardstick for all programs, their contexts included. What was in use before is taken off."""

    def __init__(self, device):
        ordinal = device.partition(":")[2] or "0"
        query = ["nvidia-smi", f"--id={ordinal}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        self.peak_mib, self.before_mib, self.process = None, None, None
        if not shutil.which("nvidia-smi"):
            return
        before = subprocess.run(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if before.returncode != 0:
            return
        self.before_mib = self.peak_mib = float(before.stdout.split()[0])
        self.process = subprocess.Popen(
            [*query, "--loop-ms=100"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            try:
                self.peak_mib = max(self.peak_mib, float(line))
            except ValueError:
                continue  # a card that does not tell at the moment

    def stop(self):
        """MiB, or None where nobody told."""
        if self.process is None:
            return None
        self.process.kill()
        self.process.wait()
        self.reader.join()
        return self.peak_mib - self.before_mib


class Session:
    """One go: its time, its directory, and what the parts have found so far."""

    def __init__(self, a):
        self.a = a
        self.deadline = time.monotonic() + a.seconds - RESERVE_SECONDS
        a.out.mkdir(parents=True, exist_ok=True)
        self.log = open(a.out / "log.txt", "w")
        self.environment = dict(os.environ, NO_COLOR="1", PYTHONUNBUFFERED="1", PYTHONDONTWRITEBYTECODE="1")
        packages = HERE / "bin" / "python"
        if packages.is_dir():
            paths = [str(packages), self.environment.get("PYTHONPATH", "")]
            self.environment["PYTHONPATH"] = ":".join(filter(None, paths))
        if a.library_path:
            paths = [str(a.library_path), self.environment.get("LD_LIBRARY_PATH", "")]
            self.environment["LD_LIBRARY_PATH"] = ":".join(filter(None, paths))
        self.parts = []

    def part(self, name, seconds, command, needs=None, environment=None):
        """Runs a command that prints JSON and gives it back; None where there is none, with the reason in the report."""
        if self.a.only and name not in [*self.a.only, "doctor"]:
            return None
        if needs is not None and not needs:
            return self.note(name, "skipped", 0, "what it builds on is missing")
        seconds *= REHEARSAL_PATIENCE if self.a.rehearse else 1
        left = self.deadline - time.monotonic()
        if left < min(seconds, 10):
            return self.note(name, "skipped", 0, f"out of time: {max(left, 0):.0f} s were left")
        print(f"{name} ...", file=sys.stderr, flush=True)
        begun, memory = time.monotonic(), CardMemory(self.a.device)
        self.log.write(f"== {name}: {' '.join(map(str, command))}\n")
        self.log.flush()
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**self.environment, **(environment or {})},
            start_new_session=True,
        )
        try:
            output, errors = process.communicate(timeout=min(seconds, left))
            reason = None
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = process.communicate()
            reason = f"not done after {min(seconds, left):.0f} s"
        took, peak = time.monotonic() - begun, memory.stop()
        self.log.write(errors)
        self.log.flush()
        last = (errors.strip().splitlines() or ["it said nothing"])[-1]
        if reason is None and process.returncode == SKIPPED:
            return self.note(name, "skipped", took, last)
        if reason is None and process.returncode != 0:
            reason = last
        try:
            found = json.loads(output.strip().splitlines()[-1]) if reason is None else None
        except (ValueError, IndexError):
            reason = "its output is no JSON"
        if reason is not None:
            return self.note(name, "failed", took, reason)
        self.note(name, "ok", took, None, peak)
        found["card_memory_peak_mib"] = peak
        return found

    def note(self, name, state, seconds, reason=None, peak=None):
        self.parts.append(
            {"name": name, "state": state, "seconds": seconds, "reason": reason, "card_memory_peak_mib": peak}
        )

    def llamaduo(self, name, seconds, *arguments, needs=None):
        command = [self.a.llamaduo, *arguments, "--device", self.a.device, "-o", "json"]
        return self.part(name, seconds, command, needs)

    def peer(self, name, seconds, script, *arguments, needs=None):
        device = "cpu" if self.a.rehearse else self.a.device
        return self.part(name, seconds, [sys.executable, HERE / script, "--device", device, *arguments], needs)


def joined(numbers):
    return ",".join(map(str, numbers))


def kernels(session, s, model, which):
    """Operations of a model and of PyTorch and bitsandbytes at the same shapes."""
    sizes = ["--tokens", s.tokens, "--documents", s.documents, "--sequences", s.sequences, "--rank", s.rank]
    sizes += ["--copy-kib", s.copy_kib, "--milliseconds", s.milliseconds]
    arguments = ["bench", "kernels", "--model", model, "--rows", joined(s.rows), *sizes]
    ours = session.llamaduo(f"operations, {which}", 75, *arguments)
    arguments = ["--model", model, "--rows", joined(s.rows), *sizes]
    return {"llamaduo": ours, "peers": session.peer(f"peers' operations, {which}", 60, "peer_kernels.py", *arguments)}


def accuracy(session, s):
    """How far each operation is from float64, beside PyTorch's own in the same precision."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = ["--tokens", s.tokens, "--sequences", s.accuracy_sequences, "--rank", s.rank]
        arguments = ["bench", "kernels", "--model", s.llama, "--rows", s.accuracy_rows, *sizes, "--save", folder]
        saved = session.llamaduo("accuracy, what the card computes", 45, *arguments)
        return session.peer("accuracy, against float64", 45, "accuracy.py", folder, needs=saved is not None)


def decoding(session, s):
    sizes = ["--batch", joined(s.decode_batches), "--prompt-tokens", s.tokens, "--new-tokens", s.new_tokens]
    return session.llamaduo("decoding", 75, "bench", "generate", "--model", s.llama, "--random-weights", *sizes)


def training(session, s, name, model, batch, *more, seconds=75):
    sizes = ["--batch", batch, "--seq", s.tokens, "--rank", s.rank, "--steps", s.train_steps]
    return session.llamaduo(name, seconds, "bench", "train", "--model", model, "--random-weights", *sizes, *more)


def run(session, s):
    a = session.a
    results = {"sizes": {key: str(value) if isinstance(value, pathlib.Path) else value for key, value in vars(s).items()}}
    if a.conformance and a.conformance.exists():
        # The table's rows, on the card as it is.
        environment = {"LLAMADUO_TEST_CUDA": "real"}
        script = "import json, subprocess, sys; done = subprocess.run(sys.argv[1:], stdout=sys.stderr); \
print(json.dumps({})); sys.exit(done.returncode)"
        command = [sys.executable, "-c", script, a.conformance, a.conformance_test, "--nocapture"]
        results["conformance"] = session.part("every operation against the CPU", 60, command, environment=environment)
    else:
        session.note("every operation against the CPU", "skipped", 0, "its program was not packed")
    results["llama_kernels"] = kernels(session, s, s.llama, "Llama 3.1 8B")
    results["accuracy"] = accuracy(session, s)
    results["decoding"] = decoding(session, s)
    results["training_recomputing"] = training(
        session, s, "training, recomputing", s.llama, s.train_batch, "--recompute", seconds=90
    )
    results["training"] = training(session, s, "training", s.llama, s.train_batch_kept)
    results["gemma_training"] = training(
        session, s, "training, Gemma 7B", s.gemma, s.train_batch, "--recompute", seconds=90
    )
    sizes = ["--model", s.llama, "--tokens", s.tokens]
    decode = ["--batch", joined(s.decode_batches), "--new-tokens", s.new_tokens]
    results["peer_decoding"] = session.peer("transformers, decoding", 75, "peer_models.py", "decode", *sizes, *decode)
    train = ["--batch", s.train_batch_kept, "--rank", s.rank, "--steps", s.train_steps]
    results["peer_training"] = session.peer("PEFT, training", 90, "peer_models.py", "train", *sizes, *train)
    results["gemma_kernels"] = kernels(session, s, s.gemma, "Gemma 7B")
    return results


def card(a, session):
    """The card, by the program's own words; ends the process where there is none."""
    found = session.part("doctor", 30, [a.llamaduo, "doctor", "-o", "json"])
    if found is None:
        sys.exit(f"{a.llamaduo} does not run here: {session.parts[-1]['reason']}")
    if not found["cuda"]:
        sys.exit(f"there is no CUDA device to measure: {found['no_cuda']}")
    for one in found["cuda"]:
        if one["device"] == a.device:
            if one["problem"]:
                sys.exit(f"{a.device} cannot be measured: {one['problem']}")
            return one
    sys.exit(f"there is no {a.device}; there are {', '.join(one['device'] for one in found['cuda'])}")


def driver_version():
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    told = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return told.stdout.split()[0] if told.returncode == 0 and told.stdout.split() else None


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("gpu-results"))
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--only", nargs="*", help="only parts of these names")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--llamaduo", type=pathlib.Path, default=HERE / "bin" / "llamaduo")
    parser.add_argument("--conformance", type=pathlib.Path, default=HERE / "bin" / "conformance")
    parser.add_argument("--conformance-test", default="the_device_agrees_with_the_cpu")
    parser.add_argument("--library-path", type=pathlib.Path)
    a = parser.parse_args()
    if not os.access(a.llamaduo, os.X_OK):
        sys.exit(f"there is no {a.llamaduo}; run benches/gpu/pack where Rust is, and bring benches/gpu/bin here")
    session, begun = Session(a), time.monotonic()
    report = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "rehearsal": a.rehearse,
        "card": card(a, session),
        "driver": driver_version(),
    }
    sizes = Sizes(a.rehearse)
    report |= {"results": run(session, sizes), "parts": session.parts, "seconds": time.monotonic() - begun}
    report["goals"] = goals.judge(report, sizes)
    text = goals.table(report)
    (a.out / "results.json").write_text(json.dumps(report, indent=1) + "\n")
    (a.out / "summary.txt").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
