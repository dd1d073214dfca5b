"""Runs `page.mjs` against a server. Its screenshots stay where SCREENSHOTS names a folder."""

import os
import pathlib
import subprocess

from common import Server, place, talking_model, template

folder = pathlib.Path(os.environ.get("SCREENSHOTS") or place())
script = pathlib.Path(__file__).with_name("page.mjs")
with Server(talking_model(512, 8, 24), "--template", template(), "--context", 8192) as server:
    subprocess.run(["node", str(script), server.url, str(folder)], check=True)
