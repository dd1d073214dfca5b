"""Whether a GGUF file holds the weights of an unpacked directory, as the Python package `gguf` reads both:

    ternlm export MODEL --format unpacked --out dir && ternlm export MODEL --format gguf --type tq2_0 --lossy --out x.gguf
    pip install gguf safetensors numpy && python compare.py dir x.gguf [MOST]

Prints, over all weights, the largest difference relative to the largest weight of its row, and fails where that is above
MOST. Units of zeros that the file has beyond the directory must be zeros. Q2_0 is newer than the package on PyPI (0.19);
its blocks are taken apart here.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from safetensors.numpy import load_file

Q2_0 = 42
IN_BLOCK = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}
ENDS = {"model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm"}

folder, path = map(Path, sys.argv[1:3])
most = float(sys.argv[3]) if len(sys.argv) > 3 else np.inf
if Q2_0 not in GGMLQuantizationType._value2member_map_:
    # A member that the enumeration lacks.
    member = int.__new__(GGMLQuantizationType, Q2_0)
    member._name_, member._value_ = "Q2_0", Q2_0
    GGMLQuantizationType._value2member_map_[Q2_0] = member
    GGML_QUANT_SIZES[member] = (64, 18)


def values(tensor):
    if int(tensor.tensor_type) != Q2_0:
        return gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
    blocks = tensor.data.reshape(tensor.data.shape[0], -1, 18)
    scales = blocks[..., :2].copy().view(np.float16).astype(np.float64)
    codes = (blocks[..., 2:, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
    return (scales[..., None] * (codes.astype(np.float64) - 1)).reshape(tensor.data.shape[0], -1)


config = json.loads((folder / "config.json").read_text())
heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
held = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
worst, count = 0.0, 0
for name, want in load_file(folder / "model.safetensors").items():
    stem = name.removesuffix(".weight")
    if stem in ENDS:
        theirs = ENDS[stem]
    else:
        layer, part = stem.removeprefix("model.layers.").split(".", 1)
        theirs = f"blk.{layer}.{IN_BLOCK[part]}"
    got = values(held.pop(f"{theirs}.weight"))
    kind = theirs.split(".")[-1]
    if config["model_type"] in ("llama", "mistral") and kind in heads:
        # Halves of a head one after the other again.
        got = got.reshape(heads[kind], -1, 2, got.shape[-1]).swapaxes(1, 2).reshape(got.shape)
    want = np.atleast_2d(want.astype(np.float64))
    got = np.atleast_2d(got)
    rows, cols = want.shape
    assert not got[rows:].any() and not got[:, cols:].any(), f"{name}: units that are no zeros"
    off = np.abs(got[:rows, :cols] - want).max(1) / np.maximum(np.abs(want).max(1), 1e-30)
    assert np.isfinite(off).all(), f"{name}: weights that are no numbers"
    worst, count = max(worst, off.max()), count + want.size
assert not held, f"tensors of no use: {list(held)}"
print(f"{count} weights, off by {worst:.2e} at most")
assert worst <= most, f"wanted at most {most}"
