"""What a server does when something outside of it fails."""

import os
import shutil
import signal
import subprocess
import sys
import time

from common import TERNLM, Server, place, talking_model

ASK = {"prompt": "ab", "max_tokens": 12, "temperature": 0}


def text(server):
    status, answer = server.ask("/v1/completions", ASK)
    assert status == 200, answer
    return answer["choices"][0]["text"]


model = place() / "replaced.tern"
shutil.copy(talking_model(), model)
with Server(model) as server:
    wanted, port = text(server), server.port
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
# The same port at once, without anything to clear away.
with Server(model, "--port", port) as server:
    assert text(server) == wanted
    print("kill -9: a new server answers the same at once")

    # Replaced as `export` does it, then cut to nothing in place: what is served is in memory.
    os.replace(shutil.copy(model, place() / "new"), model)
    assert text(server) == wanted
    with open(model, "r+b") as file:
        file.truncate(1000)
    assert text(server) == wanted
    print("model replaced, and cut: answers stay the same")
started = subprocess.run([TERNLM, "serve", str(model), "--port", "0"], capture_output=True, text=True)
assert started.returncode == 1 and started.stderr.count("error:") == 1 and "replaced.tern" in started.stderr
print("a cut model is refused:", started.stderr.strip().splitlines()[-1][:160])

with open("/dev/full", "w") as full, Server(talking_model(), stderr=full) as server:
    assert text(server) == wanted
print("disk full under the log: answers stay the same")

taken = None
with Server(talking_model()) as server:
    taken = subprocess.run(
        [TERNLM, "serve", str(talking_model()), "--port", str(server.port)], capture_output=True, text=True)
assert taken.returncode == 1 and "in use" in taken.stderr, taken
print("a port that is taken:", taken.stderr.strip())

with Server(talking_model(512, 8, 24), "--grace", "60", "--context", 8192) as server:
    waiting = subprocess.Popen(
        [sys.executable, "-c", f"""
import json, urllib.request
body = json.dumps({{"prompt": "ab", "max_tokens": 2000, "temperature": 1, "seed": 1}}).encode()
print(urllib.request.urlopen(urllib.request.Request("{server.url}/v1/completions", body)).status)
"""], stdout=subprocess.PIPE, text=True)
    try:
        server.until("running", lambda n: n == 1)
        start = time.time()
        server.process.terminate()
        assert waiting.communicate(timeout=60)[0].strip() == "200" and server.process.wait(60) == 0
        print(f"SIGTERM: what ran was answered, status 0 after {time.time() - start:.1f} s")
    finally:
        waiting.kill()
