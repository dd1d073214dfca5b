"""Logits of stock transformers, in f32, for the model in a folder:

    pip install torch transformers numpy && python logits.py FOLDER OUT.npy ID ...

Prints the token ids that its tokenizer, if there is one, gives to some texts, as JSON.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

TEXTS = ["Hello world", " 12 345 é日本 🦀", "I'LL he'Ll\r\n\r\nx86_64\t ½"]

folder, out, *ids = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
with torch.no_grad():
    np.save(out, model(torch.tensor([[int(i) for i in ids]])).logits[0].numpy())
file = Path(folder) / "tokenizer.json"
if file.exists():
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file))
    print(json.dumps({text: tokenizer(text)["input_ids"] for text in TEXTS}))
else:
    print("{}")
