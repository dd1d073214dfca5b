"""A run or a stored model: what it is, the proof that it is ternary, one of its matrices, a text.

    python python/example.py runs/shakespeare "ROMEO:"
"""

import sys

import numpy as np

import ternlm

path, prompt = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "Once upon a time"
model = ternlm.Model.load(path)
print(model)

proof = ternlm.verify(path)
print("ternary" if proof["pass"] else "NOT TERNARY", "by groups of", proof["group"])

name = proof["tensors"][0]["name"]
matrix = model.matrix(name)
counts = {int(trit): int(n) for trit, n in zip(*np.unique(matrix.trits(), return_counts=True))}
print(f"{name}: {matrix.shape}, trits {counts}, {8 * len(matrix.pack()) / matrix.trits().size:.3f} bits a weight packed")

try:
    tokens, speaks = model.encode(prompt), True
except ternlm.TernlmError as error:
    # A synthetic task has tokens without a text.
    print(error)
    tokens, speaks = list(range(8)), False
print("most likely next:", int(model.logits(tokens)[-1].argmax()))
if speaks:
    model.generate(prompt, 80, temperature=0.8, on_text=lambda piece: print(piece, end="", flush=True))
    print()
