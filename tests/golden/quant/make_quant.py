"""Blocks of random bytes in GGUF formats and the values that the reference reader of the package gguf gives them.

Needs: pip install gguf numpy
Usage: python make_quant.py blocks.safetensors

For each format F the file holds F.bytes (u8) and F.values (f32). Scales are finite halves; all other bits are random.
"""
import json, struct, sys
import numpy as np
from gguf.constants import GGMLQuantizationType as T
from gguf.quants import dequantize

N_BLOCKS = 6
# bytes of a block and where its halves lie, from ggml-common.h
FORMATS = {
    "Q8_0": (34, [0]), "Q4_0": (18, [0]), "Q4_1": (20, [0, 2]), "Q4_K": (144, [0, 2]), "Q6_K": (210, [208]),
    "Q5_0": (22, [0]), "Q5_1": (24, [0, 2]), "Q2_K": (84, [80, 82]), "Q3_K": (110, [108]), "Q5_K": (176, [0, 2]),
    "IQ4_NL": (18, [0]),
}
rng = np.random.default_rng(7)
tensors = {}
for name, (size, halves) in FORMATS.items():
    blocks = rng.integers(0, 256, (N_BLOCKS, size), dtype=np.uint8)
    for at in halves:
        blocks[:, at : at + 2] = rng.normal(0, 0.02, (N_BLOCKS, 1)).astype(np.float16).view(np.uint8)
    tensors[f"{name}.bytes"] = ("U8", blocks.reshape(-1))
    values = dequantize(blocks.reshape(-1), T[name]).astype(np.float32).reshape(-1)
    tensors[f"{name}.values"] = ("F32", values)

header, data = {}, b""
for name, (dtype, array) in tensors.items():
    header[name] = {"dtype": dtype, "shape": [array.size], "data_offsets": [len(data), len(data) + array.nbytes]}
    data += array.tobytes()
text = json.dumps(header).encode()
with open(sys.argv[1], "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text + data)
