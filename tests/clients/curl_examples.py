"""Every `curl` of the README's section on serving, as it stands there."""

import json
import re
import subprocess

from common import ROOT, Server, talking_model, template

section = re.search(r"^## Serving\n(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S).group(1)
commands = re.findall(r"^curl .*?(?=^curl |^```|^#|^\S+ serve)", section, re.M | re.S)
assert len(commands) >= 5, commands
with Server(talking_model(), "--template", template(), "--name", "tiny") as server:
    for command in commands:
        here = command.strip().replace("localhost:8080", f"127.0.0.1:{server.port}")
        done = subprocess.run(["bash", "-c", here], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and '"error":{' not in done.stdout, (here, done.stdout, done.stderr)
        if done.stdout.startswith("{"):
            json.loads(done.stdout)
        print("well:", command.strip().splitlines()[0][:100])
