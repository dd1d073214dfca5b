"""Training steps of what `ternlm bench train --export DIR` wrote, in PyTorch: same weights, batches and recipe."""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from common import median, peak_memory, read_recipe, safetensors, weight_files
from torch_model import Decoder, Trainer


def load(decoder, directory):
    """Every parameter from the export, and nothing left over on either side."""
    wanted = dict(decoder.named_parameters())
    for path in weight_files(directory):
        for name, array in safetensors(path):
            if name not in wanted:
                sys.exit(f"{path}: {name}: the recipe's model has no such tensor")
            param = wanted.pop(name)
            if param.shape != array.shape:
                sys.exit(f"{path}: {name}: shape {array.shape}, wanted {tuple(param.shape)}")
            # A copy: PyTorch aligns its own memory better than NumPy does.
            param.data.copy_(torch.from_numpy(array))
    if wanted:
        sys.exit(f"{directory}: no tensor {', '.join(wanted)}")


def run(args):
    recipe = read_recipe(args.export / "recipe.toml", {} if args.autocast else {"train.precision": ["f32"]})
    batches = {name: torch.from_numpy(array).long() for name, array in safetensors(args.export / "batches.safetensors")}
    inputs, targets = batches["inputs"], batches["targets"]
    if len(inputs) < args.warmup + args.steps:
        sys.exit(f"{args.export}: batches for {len(inputs)} steps, wanted {args.warmup + args.steps}")
    decoder = Decoder(recipe, inputs.shape[-1])
    load(decoder, args.export / "model")
    loss = decoder
    if args.mode == "compile":
        # Without the option the compiler drops the rounding of scales to f16, which is part of what is computed.
        loss = torch.compile(decoder, options={"emulate_precision_casts": True})
    trainer = Trainer(decoder, loss, recipe["train"], args.autocast)
    seconds, losses = [], []
    for step in range(args.warmup + args.steps):
        start = time.perf_counter()
        losses.append(trainer.step(list(zip(inputs[step], targets[step]))))
        seconds.append(time.perf_counter() - start)
    timed = seconds[args.warmup:]
    tokens = inputs[0].numel()
    return {
        "seconds": timed, "median_seconds": median(timed), "losses": losses[args.warmup:], "first_losses": losses,
        "warmup_seconds": seconds[:args.warmup], "tokens_per_step": tokens, "tok_per_s": tokens / median(timed),
        "peak_memory_bytes": peak_memory(), "isa": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__, "threads": torch.get_num_threads(), "mode": args.mode,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--export", type=Path, required=True, metavar="DIR")
    parser.add_argument("--mode", choices=["eager", "compile"], default="eager")
    parser.add_argument("--autocast", action="store_true", help="products in bf16, as torch.autocast chooses them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=3, help="steps before those that are timed")
    parser.add_argument("--steps", type=int, default=5, help="steps that are timed")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error("--steps: wanted 1 or more")
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("highest")
    try:
        out = run(args)
    except Exception as error:
        # Of a compilation above all: a machine without a C++ compiler can still be compared with eager mode.
        if not args.json:
            raise
        print(json.dumps({"error": f"{type(error).__name__}: {error}", "mode": args.mode, "torch": torch.__version__}))
        sys.exit(1)
    if args.json:
        print(json.dumps(out))
    else:
        print(f"{out['tok_per_s']:.1f} tokens/s (median step {out['median_seconds']:.3f} s), {out['isa']}")
        print("losses", " ".join(f"{loss:.4f}" for loss in out["first_losses"]))


if __name__ == "__main__":
    main()
