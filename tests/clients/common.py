"""Servers to try clients on."""

import json
import os
import pathlib
import re
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
TERNLM = os.environ.get("TERNLM", str(ROOT / "target/release/ternlm"))

TEMPLATE = (
    "{% if tools %}Tools:{% for t in tools %} {{ t | tojson }}{% endfor %}\n{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{\"name\": {{ c.function.name | tojson }}, \"arguments\": "
    "{{ c.function.arguments | tojson }}}</call>{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def place():
    """A folder that goes away with the process."""
    global PLACE
    if "PLACE" not in globals():
        PLACE = tempfile.TemporaryDirectory(prefix="ternlm-clients-")
    return pathlib.Path(PLACE.name)


def random_model(shape="75m"):
    """A packed file of random trits whose tokens are bytes."""
    path = place() / f"{shape}.tern"
    if not path.exists():
        subprocess.run([TERNLM, "bench", "run", "--shape", shape, "--density", "2bit", "--write", str(path)], check=True)
    return path


def talking_model(width=128, layers=3, steps=60):
    """A packed file of a model of bytes that has read this project's texts for a moment: it writes letters."""
    path = place() / f"talks-{width}.tern"
    if path.exists():
        return path
    text = place() / "input.txt"
    text.write_text((ROOT / "README.md").read_text() + (ROOT / "DESIGN.md").read_text())
    small = {"model.hidden_size": width, "model.layers": layers, "model.heads": width // 32, "model.kv_heads": width // 64,
             "model.intermediate_size": 2 * width, "model.max_positions": 8192, "train.steps": steps, "train.batch": 4,
             "train.weight_decay_until": steps, "train.warmup": steps // 6, "train.save_every": steps, "train.lr": 4e-3,
             "train.eval_every": steps, "train.eval_sequences": 1, "report.prompts": []}
    run = place() / f"talks-{width}"
    command = [TERNLM, "train", "shakespeare-bytes", "--data", str(text), "--out", str(run)]
    for key, value in small.items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.run([TERNLM, "export", str(run), "--out", str(path), "--density", "2bit"], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return path


def template():
    path = place() / "chat.jinja"
    path.write_text(TEMPLATE)
    return path


class Server:
    """`ternlm serve` on a free port."""

    def __init__(self, model, *options, stderr=None, env=None):
        port = [] if "--port" in options else ["--port", "0"]
        command = [TERNLM, "serve", str(model), *port, *map(str, options)]
        self.log = stderr or open(place() / "serve.log", "a")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True, env=env)
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        if not found:
            status = self.process.poll()
            self.end()
            raise AssertionError(f"no address in {line!r}, status {status}")
        self.url = found.group(0)
        self.port = int(self.url.rsplit(":", 1)[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def ask(self, path, body=None, headers=None):
        """Status and parsed answer."""
        data = None if body is None else json.dumps(body).encode()
        head = {"content-type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.url + path, data, head)
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                text, status = answer.read().decode(), answer.status
        except urllib.error.HTTPError as error:
            text, status = error.read().decode(), error.code
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def metric(self, name):
        _, text = self.ask("/metrics")
        return float(re.search(rf"^ternlm_{name} (\S+)$", text, re.M).group(1))

    def until(self, name, wanted, seconds=300):
        end = time.monotonic() + seconds
        while not wanted(found := self.metric(name)):
            assert time.monotonic() < end, f"{name} is {found} after {seconds} s"
            time.sleep(0.02)

    def memory(self):
        """Resident bytes."""
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text).group(1)) * 1024
