#!/usr/bin/env python3
"""Compiles the kernels to PTX, for the architectures named below, with a pinned NVRTC; needs no GPU and no CUDA toolkit.

    kernels/cuda/compile.py           writes kernels/cuda/ptx/*.ptx, which are committed
    kernels/cuda/compile.py --check   compiles again and fails when a committed file differs
    kernels/cuda/compile.py --report  prints registers, spills and shared memory of each kernel, for docs/kernels.md

NVRTC comes from two Python packages, installed below target/nvrtc on the first run. Version 12.4 is pinned because the
PTX it writes (ISA 8.4) runs on drivers from 550 on. A file's first line is the sha256 of what it was made from; a test
compares that line without compiling.
"""

import ctypes
import hashlib
import pathlib
import re
import subprocess
import sys
import venv

HERE = pathlib.Path(__file__).resolve().parent
TOOLS = HERE.parent.parent / "target" / "nvrtc"
PACKAGES = ["nvidia-cuda-nvrtc-cu12==12.4.127", "nvidia-cuda-runtime-cu12==12.4.127"]
# What every card from Ampere on runs. A tuned variant for another architecture is one more entry of VARIANTS.
BASELINE = "compute_80"
VARIANTS = {}  # source name -> further architectures
FLAGS = ["--std=c++17", "-default-device"]
REPORTED = ["sm_80", "sm_89", "sm_90"]


def nvrtc():
    found = list(TOOLS.glob("lib/python*/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12"))
    if not found:
        venv.create(TOOLS, with_pip=True)
        pip = [TOOLS / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run(pip + PACKAGES, check=True)
        found = list(TOOLS.glob("lib/python*/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12"))
    # NVRTC looks for its built-in headers under this name; loading it first spares the caller LD_LIBRARY_PATH.
    ctypes.CDLL(str(found[0].with_name("libnvrtc-builtins.so.12.4")))
    return ctypes.CDLL(str(found[0]))


def check(library, code, what):
    if code != 0:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        sys.exit(f"{what}: {library.nvrtcGetErrorString(code).decode()}")


def text_of(library, program, getter):
    size = ctypes.c_size_t()
    check(library, getattr(library, getter + "Size")(program, ctypes.byref(size)), getter)
    text = ctypes.create_string_buffer(size.value)
    check(library, getattr(library, getter)(program, text), getter)
    return text.value.decode()


def compile_source(library, source, architecture, extra=()):
    """PTX (for compute_*) and the compiler's log of one source."""
    program = ctypes.c_void_p()
    name = source.name.encode()
    code = library.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), name, 0, None, None)
    check(library, code, source.name)
    flags = [f"--gpu-architecture={architecture}", *FLAGS, f"-I{HERE}", *extra]
    array = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
    code = library.nvrtcCompileProgram(program, len(flags), array)
    log = text_of(library, program, "nvrtcGetProgramLog")
    if code != 0:
        print(log, file=sys.stderr)
    check(library, code, source.name)
    ptx = text_of(library, program, "nvrtcGetPTX") if architecture.startswith("compute") else None
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return ptx, log


def digest(source, architecture):
    """What a PTX file was made from: the shared headers, the source, the flags and the compiler."""
    made_by = " ".join([architecture, *FLAGS, *PACKAGES]).encode()
    headers = [header.read_bytes() for header in sorted(HERE.glob("*.cuh"))]
    return hashlib.sha256(b"\0".join([*headers, source.read_bytes(), made_by])).hexdigest()


def outputs():
    for source in sorted(HERE.glob("*.cu")):
        for architecture in [BASELINE, *VARIANTS.get(source.stem, [])]:
            suffix = "" if architecture == BASELINE else "." + architecture
            yield source, architecture, HERE / "ptx" / f"{source.stem}{suffix}.ptx"


def report(library):
    print("| kernel | " + " | ".join(f"{name}: registers, spilled bytes, shared bytes" for name in REPORTED) + " |")
    print("|---" * (1 + len(REPORTED)) + "|")
    rows = {}
    for source in sorted(HERE.glob("*.cu")):
        for architecture in REPORTED:
            _, log = compile_source(library, source, architecture, ["--ptxas-options=-v"])
            entry = re.compile(
                r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers([^\n]*)", re.S
            )
            for name, spilled, registers, rest in entry.findall(log):
                shared = re.search(r"(\d+) bytes smem", rest)
                cell = f"{registers}, {spilled}, {shared.group(1) if shared else 0}"
                rows.setdefault(f"`{name}`", []).append(cell)
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " |")


def main():
    if sys.argv[1:] not in ([], ["--check"], ["--report"]):
        sys.exit(__doc__)
    library = nvrtc()
    if sys.argv[1:] == ["--report"]:
        return report(library)
    only_check = sys.argv[1:] == ["--check"]
    stale, wanted = [], set()
    for source, architecture, target in outputs():
        ptx, _ = compile_source(library, source, architecture)
        text = f"// made from {digest(source, architecture)}\n{ptx.rstrip()}\n"
        wanted.add(target)
        if only_check:
            if not target.exists() or target.read_text() != text:
                stale.append(target.name)
        else:
            target.parent.mkdir(exist_ok=True)
            target.write_text(text)
    stale += [path.name for path in sorted((HERE / "ptx").glob("*.ptx")) if path not in wanted]
    if stale:
        sys.exit(f"not what their sources give: {', '.join(stale)}; run kernels/cuda/compile.py and commit the result")
    print(f"{len(wanted)} PTX files " + ("match their sources" if only_check else "written"))


if __name__ == "__main__":
    main()
