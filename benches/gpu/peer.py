"""What the peers' scripts share: their packages, their device, and timing.

A script that needs a package that is not here ends with code 3 and a sentence on its last line.
"""

import argparse
import importlib
import statistics
import sys
import time

SKIPPED = 3
SAMPLE_SECONDS = 1e-3
RUNS_MAX = 256
SAMPLES_MIN, SAMPLES_MAX = 3, 100
# Times the cache that buffers which take turns fill together, as llamaduo's own measurement has it.
CACHES = 4
SETS_MAX = 32


def need(name):
    """A package, or the end of the process with the reason."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a package may fail to load for any reason of its own
        skip(f"{name} is not there: {type(error).__name__}: {error}")


def skip(sentence):
    print(" ".join(str(sentence).split()), file=sys.stderr)
    sys.exit(SKIPPED)


def device_of(torch, name):
    """cuda:N or cpu; a card that PyTorch does not see is skipped."""
    if name.startswith("cuda") and not torch.cuda.is_available():
        skip("PyTorch is there but sees no CUDA device")
    if name == "cpu":
        torch.set_num_threads(1)  # a rehearsal's machine may be busy, and waiting threads spin
    return torch.device(name)


def parser():
    """The options that llamaduo bench kernels has."""
    made = argparse.ArgumentParser()
    made.add_argument("--device", default="cuda:0")
    made.add_argument("--model")
    made.add_argument("--rows", type=numbers, default=[1])
    sizes = {"tokens": 1024, "documents": 4, "sequences": 32, "rank": 32, "copy-kib": 1 << 20, "milliseconds": 40}
    for name, default in sizes.items():
        made.add_argument(f"--{name}", type=int, default=default)
    return made


def numbers(text):
    return [int(part) for part in text.split(",")]


class Clock:
    """Seconds of work on a device, medians of samples after each set of buffers was used once.

    On a card by its own clock, with the launches of a sample recorded into a graph where the work can be recorded;
    elsewhere by the host's."""

    def __init__(self, torch, device, milliseconds):
        self.torch, self.device, self.seconds = torch, device, milliseconds / 1e3
        self.on_card = device.type == "cuda"
        properties = torch.cuda.get_device_properties(device) if self.on_card else None
        self.cache_bytes = getattr(properties, "L2_cache_size", 0)

    def n_sets(self, n_bytes):
        return max(2, min(SETS_MAX, CACHES * self.cache_bytes // max(n_bytes, 1) + 1))

    def once(self, run):
        if not self.on_card:
            begun = time.perf_counter()
            run()
            return time.perf_counter() - begun
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def measure(self, run, n_sets, replayable=True):
        """(median seconds, fastest, samples, whether replayed) of `run(set)`."""
        for number in range(n_sets):
            run(number)
        once = max(self.once(lambda: run(0)), 1e-7)
        n_runs = max(1, min(RUNS_MAX, int(SAMPLE_SECONDS / once)), n_sets)

        def sample():
            for number in range(n_runs):
                run(number % n_sets)

        replay = self.recorded(sample) if self.on_card and replayable else None
        times, begun = [], time.monotonic()
        while len(times) < SAMPLES_MIN or (len(times) < SAMPLES_MAX and time.monotonic() - begun < self.seconds):
            times.append(self.once(replay or sample) / n_runs)
        return statistics.median(times), min(times), len(times), replay is not None

    def recorded(self, sample):
        """A function that runs the sample's launches as one graph; None where they cannot be recorded."""
        try:
            graph = self.torch.cuda.CUDAGraph()
            with self.torch.cuda.graph(graph):
                sample()
            graph.replay()
            self.torch.cuda.synchronize()
            return graph.replay
        except Exception as error:  # what a library does while it is recorded is its own
            print(f"not recorded: {error}", file=sys.stderr)
            self.torch.cuda.synchronize()
            return None
