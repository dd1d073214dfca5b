"""Random models as llama.cpp reads them, to measure its speed without a download.

    python3 benches/peers/gguf_random.py --shape 75m --type TQ2_0 --out 75m-tq2.gguf

Blocks are random bytes with a scale that keeps outputs as large as inputs; speed does not depend on what they say."""

import argparse
import json
import sys
from pathlib import Path

import gguf
import numpy as np

from shapes import SHAPES, TYPES, fitted, tensors

POSITIONS = 4096


def blocks(name, count, cols, rng):
    """`count` blocks of a type as bytes, `[count, size]`. The scale's two bytes stand where llama.cpp has them."""
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][1]
    out = rng.integers(0, 256, (count, size), dtype=np.uint8)
    if name == "TQ2_0":
        # Codes 0, 1, 2: where both bits are set, the lower one goes.
        out &= ~((out >> 1) & 0x55)
    # The mean square of the codes that these bytes make: trits, -8 to 7, -128 to 127.
    square = {"TQ1_0": 2 / 3, "TQ2_0": 1 / 2, "Q4_0": 21.5, "Q8_0": 5461.5}[name]
    scale = np.array([(1 / (cols * square)) ** 0.5], np.float16).view(np.uint8)
    at = {"TQ1_0": 52, "TQ2_0": 64, "Q4_0": 0, "Q8_0": 0}[name]
    out[:, at:at + 2] = scale
    return out


def add_bytes(writer, count):
    """A vocabulary whose first 256 tokens are the bytes, as a server needs one; the rest are never met in a text."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    names = [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(names + [f"<unused {i}>" for i in range(256, count)])
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.UNUSED] * (count - 256))
    writer.add_token_merges(["a a"])
    writer.add_eos_token_id(count - 1)
    writer.add_add_bos_token(False)


def write(path, shape, name, vocabulary=False):
    """Writes the model; the number of its weights."""
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_block_count(shape["layers"])
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(shape["width"])
    writer.add_feed_forward_length(shape["feed_forward"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_key_length(shape["head_dim"])
    writer.add_value_length(shape["head_dim"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_file_type(0)
    if vocabulary:
        add_bytes(writer, shape["vocab"])
    else:
        writer.add_tokenizer_model("no_vocab")
        writer.add_vocab_size(shape["vocab"])
    kind = gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rng, weights, all_tensors = np.random.default_rng(1), 0, tensors(shape)
    for tensor, dims in all_tensors:
        count = int(np.prod(dims))
        weights += count
        if len(dims) == 1:
            writer.add_tensor_info(tensor, dims, np.dtype(np.float32), 4 * count)
        else:
            writer.add_tensor_info(tensor, dims, np.dtype(np.float32), count // block * size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, dims in all_tensors:
        if len(dims) == 1:
            writer.write_tensor_data(np.ones(dims, np.float32))
        else:
            rows, cols = dims
            writer.write_tensor_data(blocks(name, rows * cols // block, cols, rng).reshape(rows, -1))
    writer.close()
    return weights


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--type", choices=TYPES, required=True)
    parser.add_argument("--vocabulary", action="store_true", help="with tokens that are bytes, for a server")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()
    shape = fitted(SHAPES[args.shape], args.type)
    try:
        weights = write(args.out, shape, args.type, args.vocabulary)
    except OSError as error:
        print(json.dumps({"error": f"{args.out}: {error.strerror}"}))
        sys.exit(1)
    print(json.dumps({"weights": weights, "bytes": args.out.stat().st_size}))


if __name__ == "__main__":
    main()
