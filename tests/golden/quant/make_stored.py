"""Random values and how the package gguf stores them: F16, BF16 and Q8_0.

Needs: pip install gguf numpy
Usage: python make_stored.py stored.safetensors

The file holds `values` (f32, blocks of 32, one all zeros, others of very different sizes) and F.bytes (u8) for each
format F.
"""
import json, struct, sys
import numpy as np
from gguf.constants import GGMLQuantizationType as T
from gguf.quants import quantize

rng = np.random.default_rng(11)
values = rng.normal(0, 1, (24, 32)).astype(np.float32)
values *= np.float32(10.0) ** rng.integers(-6, 4, (24, 1)).astype(np.float32)
values[5] = 0
tensors = {"values": ("F32", values.reshape(-1))}
for name in ("F16", "BF16", "Q8_0"):
    tensors[f"{name}.bytes"] = ("U8", np.ascontiguousarray(quantize(values, T[name])).view(np.uint8).reshape(-1))

header, data = {}, b""
for name, (dtype, array) in tensors.items():
    header[name] = {"dtype": dtype, "shape": [array.size], "data_offsets": [len(data), len(data) + array.nbytes]}
    data += array.tobytes()
text = json.dumps(header).encode()
with open(sys.argv[1], "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text + data)
