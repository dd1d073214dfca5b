"""lm-eval, by its own client for such servers, against `ternlm eval`: the same texts, the same numbers."""

import json
import os
import pathlib
import subprocess

from common import TERNLM, Server, place, talking_model

os.environ.update(HF_HOME=str(place() / "hf"), HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import lm_eval  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

TASK = pathlib.Path(__file__).resolve().parent / "task"
os.chdir(TASK)
model = talking_model()

with Server(model, "--name", "talks", "--precision", "trained", "--kv", "f32") as server:
    # Texts are tokenized by the server, too: no tokenizer is read from anywhere else.
    arguments = dict(model="talks", base_url=server.url + "/v1/completions", max_length=1024, num_concurrent=4)
    results = lm_eval.simple_evaluate(
        model="local-completions", model_args=arguments, tasks=["ternlm_texts"], bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(TASK), include_defaults=False))
scored = results["results"]["ternlm_texts"]["perplexity,none"]

texts = [json.loads(line) for line in (TASK / "texts.jsonl").read_text().splitlines()]
total = 0.0
for text in texts:
    file = place() / "text.txt"
    file.write_text(text["first"] + text["rest"])
    command = [TERNLM, "eval", str(model), "--data", str(file), "--precision", "trained", "--kv", "f32", "--json"]
    said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    total -= said["nll"] * said["tokens"]
wanted = total / len(texts)
print(f"lm-eval {lm_eval.__version__}: {scored:.6f} nats a text; ternlm eval: {wanted:.6f}")
# Sums of f32 terms, by two programs.
assert abs(scored - wanted) < 1e-5 * abs(wanted), (scored, wanted)
