"""The whole `copy` recipe in PyTorch, from random weights to the accuracy on held-out sequences."""

import time

START = time.perf_counter()  # importing PyTorch is part of the run

import argparse
import json

import torch

from common import COPY, read_recipe
from torch_model import Decoder, Trainer


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", required=True, metavar="FILE")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(args.seed)
    recipe = read_recipe(args.recipe, COPY)
    t, seq, vocab = recipe["train"], recipe["data"]["sequence"], recipe["model"]["vocab_size"]
    decoder = Decoder(recipe, seq)
    decoder.init()
    trainer = Trainer(decoder, decoder, t)
    losses = []
    for _ in range(t["steps"]):
        batches = []
        for _ in range(t["accumulate"]):
            tokens = torch.randint(vocab, (t["batch"], seq))
            batches.append((tokens, tokens))
        losses.append(trainer.step(batches))
    held_out = torch.randint(vocab, (1000, seq))
    with torch.inference_mode():
        right = sum(int((decoder.logits(x).argmax(-1) == x).sum()) for x in held_out.split(t["batch"]))
    print(json.dumps({
        "first_loss": losses[0], "last_loss": losses[-1], "accuracy": right / held_out.numel(),
        "seconds": time.perf_counter() - START, "torch": torch.__version__, "threads": args.threads,
        "losses_every_100": losses[::100],
    }))


if __name__ == "__main__":
    main()
