"""What the peers share: recipes, the learning rate over the steps, safetensors, memory. No PyTorch in here."""

import json
import math
import sys
import tomllib
from pathlib import Path

# What src/config/recipe.rs fills in. A recipe written by `ternlm bench train --export` has all of it already.
MODEL = {
    "activation": "swiglu", "qk_norm": False, "qkv_bias": False, "causal": True, "tie_embeddings": False,
    "rope_theta": 10000.0, "rms_norm_eps": 1e-6,
}
TERNARY = {"scope": "all", "group": 128}
DATA = {"sequence": 16}
TRAIN = {
    "steps": 1000, "batch": 16, "seq": 128, "accumulate": 1, "optimizer": "adamw", "lr": 1e-3, "beta1": 0.9,
    "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.0, "weight_decay_until": None, "clip": 1.0, "schedule": "cosine",
    "warmup": 0, "floor": 0.0, "decay_fraction": 0.3,
}
# Values besides which the peers know none, of keys that they may not even read.
ONLY = {
    "model.activation": ["swiglu", "gelu", "relu2"], "model.o_bias": [False], "model.mlp_bias": [False],
    "model.sub_norm": [False], "ternary.scope": ["none", "blocks", "all"], "ternary.scale": ["absmean"],
    "ternary.activations": ["f32"], "ternary.anneal": [0], "ternary.rotate": [False], "ternary.calibrate": [0],
    "ternary.start.feed_forward": [0], "ternary.start.attention": [0], "ternary.start.ends": [0],
    "train.optimizer": ["adamw"], "train.moments": ["f32"], "train.z_loss": [0], "train.dropout": [0],
    "train.schedule": ["constant", "cosine", "linear"], "distill.weight": [0], "distill.relations": [0],
}
# A training from its first weights on: the copy task, in f32.
COPY = {"task": ["copy"], "init": [], "train.precision": ["f32"], "ternary.init_std": []}
# The others that they take as they are, and those that change no step: whole tables, and keys.
TAKEN = {"data", "report"} | {
    f"{table}.{key}" for table, known in [
        ("model", [*MODEL, "vocab_size", "hidden_size", "layers", "heads", "kv_heads", "head_dim", "intermediate_size",
                   "max_positions"]),
        # How the weights begin that `ternlm bench train --export` has stored.
        ("ternary", [*TERNARY, "init_std"]),
        ("train", [*TRAIN, "precision", "momentum", "muon_lr", "muon_steps", "scale_lr", "cautious", "recompute",
                   "log_every", "eval_every", "eval_sequences", "save_every", "keep"]),
        ("distill", ["teacher", "lessons", "temperature", "direction", "relation_layer"]),
    ] for key in known
} | {"name", "task", "seed", "needs_init", "init"}


def keys(table, prefix=""):
    """Every key of nested dictionaries, with dots, and its value."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def read_recipe(path, only=None):
    """A recipe as nested dictionaries, defaults filled in. What the peers cannot do is refused; `only`: values of more keys
    besides which the caller knows none."""
    with open(path, "rb") as file:
        recipe = tomllib.load(file)
    for table, defaults in [("model", MODEL), ("ternary", TERNARY), ("data", DATA), ("train", TRAIN)]:
        recipe[table] = defaults | recipe.get(table, {})
    if "distill" in recipe:
        recipe["distill"] = {"weight": 0.5} | recipe["distill"]
    only = ONLY | (only or {})
    for key, value in keys(recipe):
        if key in only and value not in only[key]:
            wanted = " or ".join(map(repr, only[key])) or "nothing"
            sys.exit(f"{path}: {key}: found {value!r}, wanted {wanted}: the peers know no other")
        if key not in only and key not in TAKEN and key.split(".")[0] not in TAKEN:
            sys.exit(f"{path}: {key}: the peers do not know it")
    if not isinstance(recipe["ternary"]["group"], int):
        sys.exit(f"{path}: ternary.group: the peers know groups of a fixed size only")
    return recipe


def schedule(train, step):
    """The factor on the learning rate at `step`, counted from 0: src/train/schedule.rs."""
    if step < train["warmup"]:
        return (step + 1) / train["warmup"]
    floor = train["floor"]
    if train["schedule"] == "constant":
        return 1.0
    if train["schedule"] == "cosine":
        done = (step - train["warmup"]) / max(train["steps"] - train["warmup"], 1)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    length = max(train["decay_fraction"] * train["steps"], 1.0)
    return floor + (1 - floor) * min(max(train["steps"] - step, 0) / length, 1.0)


def weight_decay(train, step):
    """Of the matrices, at `step`, counted from 0."""
    until = train["weight_decay_until"]
    return 0.0 if until is not None and step >= until else train["weight_decay"]


def rope_angles(positions, dim, theta):
    """`position * theta^(-2 i / D)`, `[positions, D / 2]`: frequency and angle in f32, as src/kernels/rope.rs."""
    import numpy as np

    frequency = (float(theta) ** (-2 * np.arange(dim // 2) / dim)).astype(np.float32)
    return (np.arange(positions, dtype=np.float32)[:, None] * frequency).astype(np.float64)


def safetensors(path):
    """Yields name and array of every tensor, one in memory at a time. The format: eight bytes of length, a JSON
    header, the tensors' bytes."""
    import numpy as np

    types = {"F32": np.float32, "F16": np.float16, "U32": np.int32, "I64": np.int64}
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        dtype, (begin, end) = np.dtype(types[entry["dtype"]]), entry["data_offsets"]
        data = np.fromfile(path, dtype, (end - begin) // dtype.itemsize, offset=start + begin)
        yield name, data.reshape(entry["shape"])


def weight_files(directory):
    """The safetensors files of a Hugging Face directory, one or several."""
    files = sorted(Path(directory).glob("*.safetensors"))
    if not files:
        sys.exit(f"{directory}: no .safetensors file")
    return files


def median(values):
    """As `ternlm bench`: of an even number the upper one of the two in the middle."""
    return sorted(values)[len(values) // 2]


def peak_memory():
    """Most memory that this process has held, in bytes; none where the system does not say."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
