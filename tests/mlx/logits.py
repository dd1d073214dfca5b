"""Stock mlx-lm's logits of a directory, for `tests/other_tools.rs`: logits.py DIR OUT.npy ID ...

Prints what greedy decoding with MLX's own cache goes on with, 24 ids.
"""

import sys

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model
from pathlib import Path

folder, out, *ids = sys.argv[1:]
ids = [int(i) for i in ids]
model, config = load_model(Path(folder))
np.save(out, np.array(model(mx.array([ids])).astype(mx.float32))[0])
cache, said, new = make_prompt_cache(model), [], ids
for _ in range(24):
    new = [int(mx.argmax(model(mx.array([new]), cache=cache)[0, -1]))]
    said += new
print(*said)
