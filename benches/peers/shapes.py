"""The shapes of src/cli/bench_run.rs, and their tensors by the names that llama.cpp has for them."""

# Blocks of the types that are compared: how many weights each holds.
TYPES = {"TQ1_0": 256, "TQ2_0": 256, "Q4_0": 32, "Q8_0": 32}


def shape(width, layers, heads, kv_heads, head_dim, feed_forward, vocab, tied):
    return dict(width=width, layers=layers, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
                feed_forward=feed_forward, vocab=vocab, tied=tied)


SHAPES = {
    "75m": shape(512, 8, 8, 4, 64, 1376, 50257, False),
    "qwen3-0.6b": shape(1024, 28, 16, 8, 128, 3072, 151_936, True),
    "qwen3-1.7b": shape(2048, 28, 16, 8, 128, 6144, 151_936, True),
}


def fitted(shape, kind):
    """The shape with a feed-forward that is a whole number of blocks wide."""
    block = TYPES[kind]
    return shape | {"feed_forward": -(-shape["feed_forward"] // block) * block}


def tensors(shape):
    """Name and size of each tensor, outermost dimension first."""
    width, wide = shape["width"], shape["feed_forward"]
    queries, keys = (shape[n] * shape["head_dim"] for n in ("heads", "kv_heads"))
    out = [("token_embd.weight", (shape["vocab"], width)), ("output_norm.weight", (width,))]
    if not shape["tied"]:
        out.append(("output.weight", (shape["vocab"], width)))
    for layer in range(shape["layers"]):
        block = {
            "attn_norm": (width,), "attn_q": (queries, width), "attn_k": (keys, width), "attn_v": (keys, width),
            "attn_q_norm": (shape["head_dim"],), "attn_k_norm": (shape["head_dim"],),
            "attn_output": (width, queries), "ffn_norm": (width,), "ffn_gate": (wide, width),
            "ffn_up": (wide, width), "ffn_down": (width, wide),
        }
        out += [(f"blk.{layer}.{name}.weight", dims) for name, dims in block.items()]
    return out


def weights(shape):
    """How many numbers a model of the shape has."""
    total = 0
    for _, dims in tensors(shape):
        count = 1
        for size in dims:
            count *= size
        total += count
    return total
