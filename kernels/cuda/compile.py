#!/usr/bin/env python3
"""Compiles the kernels to PTX, for the architectures named below, with a pinned NVRTC; needs no GPU and no CUDA toolkit.

    kernels/cuda/compile.py           writes kernels/cuda/ptx/*.ptx, which are committed
    kernels/cuda/compile.py --check   compiles again and fails when a committed file differs
    kernels/cuda/compile.py --report  prints the table of docs/kernels.md: registers, spills, shared memory, and how many
                                      instructions of some kinds there are; fails when a kernel spills

NVRTC comes from two Python packages, installed below target/nvrtc on the first run. Version 12.4 is pinned because the
PTX it writes (ISA 8.4) runs on drivers from 550 on. A file's first line is the sha256 of what it was made from; a test
compares that line without compiling. The report takes a disassembler beside it, a third package.

A source is compiled once: for every card, or for the one architecture whose instructions it is written in.
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
# Reads what NVRTC 12.4 makes; there is none of that version.
DISASSEMBLER = "nvidia-cuda-nvdisasm==13.2.51"
# What every card from Ampere on runs. Compiling for Ada gives the same PTX but for the line that names the architecture.
BASELINE = "compute_80"
# Hopper with the instructions that only it has; runs on compute capability 9.0 and no other.
HOPPER = "compute_90a"
OF_HOPPER = ["matmul_nf4_hopper", "matmul_nf4_hopper_backward"]
FLAGS = ["--std=c++17", "-default-device"]
# Of a source's architecture, the cards that the report compiles it for.
REPORTED = {BASELINE: ["sm_80", "sm_89", "sm_90"], HOPPER: ["sm_90a"]}


def installed(packages, pattern):
    """The file of some packages below TOOLS, which are installed when it is not there."""
    found = list(TOOLS.glob("lib/python*/site-packages/nvidia/" + pattern))
    if not found:
        if not (TOOLS / "bin" / "pip").exists():
            venv.create(TOOLS, with_pip=True)
        pip = [TOOLS / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run(pip + packages, check=True)
        found = list(TOOLS.glob("lib/python*/site-packages/nvidia/" + pattern))
    return found[0]


def nvrtc():
    found = installed(PACKAGES, "cuda_nvrtc/lib/libnvrtc.so.12")
    # NVRTC looks for its built-in headers under this name; loading it first spares the caller LD_LIBRARY_PATH.
    ctypes.CDLL(str(found.with_name("libnvrtc-builtins.so.12.4")))
    return ctypes.CDLL(str(found))


def check(library, code, what):
    if code != 0:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        sys.exit(f"{what}: {library.nvrtcGetErrorString(code).decode()}")


def bytes_of(library, program, getter):
    size = ctypes.c_size_t()
    check(library, getattr(library, getter + "Size")(program, ctypes.byref(size)), getter)
    out = ctypes.create_string_buffer(size.value)
    check(library, getattr(library, getter)(program, out), getter)
    return out.raw


def text_of(library, program, getter):
    return bytes_of(library, program, getter).rstrip(b"\0").decode()


def compile_source(library, source, architecture, extra=()):
    """PTX (for compute_*) or a cubin (for sm_*), and the compiler's log of one source."""
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
    is_virtual = architecture.startswith("compute")
    made = text_of(library, program, "nvrtcGetPTX") if is_virtual else bytes_of(library, program, "nvrtcGetCUBIN")
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return made, log


def digest(source, architecture):
    """What a PTX file was made from: the shared headers, the source, the flags and the compiler."""
    made_by = " ".join([architecture, *FLAGS, *PACKAGES]).encode()
    headers = [header.read_bytes() for header in sorted(HERE.glob("*.cuh"))]
    return hashlib.sha256(b"\0".join([*headers, source.read_bytes(), made_by])).hexdigest()


def sources():
    """Each source with what it is compiled for."""
    for source in sorted(HERE.glob("*.cu")):
        yield source, HOPPER if source.stem in OF_HOPPER else BASELINE


# What is counted in a kernel's machine code: the table's columns after registers and shared memory.
COUNTED = {
    "spills": re.compile(r"\b(?:STL|LDL)\b"),
    "matrix instructions": re.compile(r"\b(?:HMMA|HGMMA)\b"),
    "asynchronous copies": re.compile(r"\bLDGSTS\b"),
}


def counts(cubin):
    """For each kernel of a cubin how many instructions of each kind there are."""
    disassembler = installed([DISASSEMBLER], "cu13/bin/nvdisasm")
    path = TOOLS / "report.cubin"
    path.write_bytes(cubin)
    run = subprocess.run([disassembler, "-c", path], check=True, capture_output=True, text=True)
    sections = re.split(r"^\.text\.(\w+):$", run.stdout, flags=re.M)[1:]
    bodies = zip(sections[::2], sections[1::2])
    return {name: [len(kind.findall(body)) for kind in COUNTED.values()] for name, body in bodies}


# What the compiler says when it makes a warpgroup wait for each of its products.
SERIALIZED = re.compile(r"wgmma.*serialized")


def report(library):
    columns = ", ".join(["registers", "shared bytes", *COUNTED])
    cards = sum(REPORTED.values(), [])
    print("| kernel | " + " | ".join(f"{card}: {columns}" for card in cards) + " |")
    print("|---" * (1 + len(cards)) + "|")
    rows, spilling = {}, set()
    for source, architecture in sources():
        for card in REPORTED[architecture]:
            cubin, log = compile_source(library, source, card, ["--ptxas-options=-v"])
            if SERIALIZED.search(log):
                sys.exit(f"{source.name} for {card}:\n{log}")
            counted = counts(cubin)
            entry = re.compile(r"Compiling entry function '(\w+)'.*?Used (\d+) registers([^\n]*)", re.S)
            for name, registers, rest in entry.findall(log):
                shared = re.search(r"(\d+) bytes smem", rest)
                numbers = [registers, shared.group(1) if shared else 0, *counted[name]]
                rows.setdefault(name, {})[card] = ", ".join(map(str, numbers))
                if counted[name][0]:
                    spilling.add(f"{name} on {card}")
    for name, cells in rows.items():
        print(f"| `{name}` | " + " | ".join(cells.get(card, "none") for card in cards) + " |")
    if spilling:
        sys.exit(f"spills are a defect: {', '.join(sorted(spilling))}")


def main():
    if sys.argv[1:] not in ([], ["--check"], ["--report"]):
        sys.exit(__doc__)
    library = nvrtc()
    if sys.argv[1:] == ["--report"]:
        return report(library)
    only_check = sys.argv[1:] == ["--check"]
    stale, wanted = [], set()
    for source, architecture in sources():
        target = HERE / "ptx" / f"{source.stem}.ptx"
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
