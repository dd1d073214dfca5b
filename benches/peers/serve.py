"""`ternlm serve` beside llama.cpp's server on this machine, in turn: the same requests to random models of one shape.

    python3 benches/peers/serve.py --llama-server PATH
    python3 benches/peers/serve.py --llama-server PATH --types TQ2_0 Q4_0 --streams 1 8 --rounds 3 --json serve.json

Needs the gguf package (requirements-infer.txt) and a llama-server, as the build of `run.py infer` makes it with
-DLLAMA_BUILD_SERVER=ON. README.md beside this file says what is measured."""

import argparse
import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from shapes import SHAPES, TYPES, fitted, weights
from turns import HERE, Failed, build, in_turn, machine, median, process, table, tell

# Tokens of a sequence, and seconds that a server may take to load, and to answer.
CONTEXT, LOADING, ANSWERING = 1024, 300, 900
LETTERS = {str(letter): 100 for letter in range(ord("a"), ord("z") + 1)}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A process that answers at `/health` when it is ready."""

    def __init__(self, command, port, log):
        log.write(f"$ {' '.join(map(str, command))}\n")
        log.flush()
        self.port = port
        self.process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log)

    def __enter__(self):
        end = time.monotonic() + LOADING
        while time.monotonic() < end and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                    if answer.status == 200:
                        return self
            except (OSError, http.client.HTTPException):
                time.sleep(0.1)
        self.__exit__()
        raise Failed(f"{self.process.args[0]}: not ready, status {self.process.poll()}")

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


async def stream(port, prompt, made):
    """When the request went, when each piece of its answer came, and how many tokens the server counted."""
    # Letters alone, a token each: the random model's choice is the same work, and every token is a piece of text.
    body = json.dumps({"prompt": prompt, "max_tokens": made, "temperature": 0, "stream": True, "logit_bias": LETTERS,
                       "cache_prompt": False, "stream_options": {"include_usage": True}}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    asked, times, usage = time.perf_counter(), [], None
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + body)
    try:
        while line := await reader.readline():
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            usage = event.get("usage") or usage
            if any(choice.get("text") for choice in event.get("choices", [])):
                times.append(time.perf_counter())
    finally:
        writer.close()
    if not times or usage is None or usage["completion_tokens"] != made:
        raise Failed(f"an answer of {made} tokens was wanted, {len(times)} pieces came, usage {usage}")
    return asked, times, made


async def together(port, streams, prompt, made, seed):
    """Tokens a second from the first token of all to the last, and the seconds to the last stream's first token."""
    prompts = [f"{seed} {i} once upon a time ".ljust(prompt, "x") for i in range(streams)]
    answers = await asyncio.gather(*(stream(port, text, made) for text in prompts))
    first, last = min(times[0] for _, times, _ in answers), max(times[-1] for _, times, _ in answers)
    rate = (sum(made for _, _, made in answers) - streams) / (last - first)
    return rate, max(times[0] - asked for asked, times, _ in answers)


def measure(command, port, args, number, log):
    """Of each number of streams its figures, in a fresh process."""
    with Server(command, port, log) as server:
        def ask(streams, made, seed):
            asked = together(server.port, streams, args.prompt, made, seed)
            return asyncio.run(asyncio.wait_for(asked, ANSWERING))

        try:
            ask(1, 8, "warm")
            out = {}
            for streams in args.streams:
                rate, wait = ask(streams, args.made, number)
                out[str(streams)] = {"tok_per_s": rate, "first_token_s": wait}
            return out
        # A server that dies, answers something else, or not at all.
        except (OSError, asyncio.TimeoutError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise Failed(f"{command[0]}: status {server.process.poll()}, {error!r}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-server", type=Path, required=True, metavar="PATH")
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--types", nargs="+", choices=TYPES, default=["TQ2_0", "Q4_0"], metavar="TYPE",
                        help=f"of llama.cpp's weights: {', '.join(TYPES)} [TQ2_0 Q4_0]")
    parser.add_argument("--densities", nargs="+", choices=["base3", "2bit"], default=["2bit", "base3"], metavar="DENSITY")
    parser.add_argument("--ternlm", type=Path, metavar="FILE", help="use this binary instead of building one")
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 8], help="at once [1 8]")
    parser.add_argument("--prompt", type=int, default=32, help="bytes of each prompt, which are its tokens [32]")
    parser.add_argument("--made", type=int, default=96, help="tokens of each answer [96]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--scratch", type=Path, metavar="DIR",
                        help="models are written there once and stay; otherwise they are deleted afterwards")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured there")
    args = parser.parse_args()
    least = {"prompt": [args.prompt, 1], "made": [args.made, 2], "rounds": [args.rounds, 1], "threads": [args.threads, 1],
             "streams": [min(args.streams), 1]}
    for name, (given, wanted) in least.items():
        if given < wanted:
            parser.error(f"--{name} {given}: wanted {wanted} or more")
    # Some processes run elsewhere.
    for name in ("llama_server", "ternlm", "scratch"):
        if getattr(args, name):
            setattr(args, name, getattr(args, name).absolute())
    ternlm = args.ternlm or Path(build())
    most = max(args.streams)
    with tempfile.TemporaryDirectory(prefix="ternlm-serve-") as folder, open(Path(folder) / "log", "w+") as log:
        folder = args.scratch or Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        sides = {}
        for density in args.densities:
            file = folder / f"{args.shape}-{density}.tern"
            if not file.exists():
                process([ternlm, "bench", "run", "--shape", args.shape, "--density", density, "--write", file], {}, log)
            sides[f"ternlm {density}"] = lambda port, file=file: [
                ternlm, "serve", file, "--port", port, "--parallel", most, "--context", CONTEXT, "--threads", args.threads]
        for kind in args.types:
            file = folder / f"{args.shape}-{kind}.gguf"
            if not file.exists():
                told = process([sys.executable, HERE / "gguf_random.py", "--shape", args.shape, "--type", kind,
                                "--vocabulary", "--out", file], {}, log)[0]
                if json.loads(told)["weights"] != weights(fitted(SHAPES[args.shape], kind)):
                    sys.exit(f"error: {file}: {told}")
            sides[f"llama.cpp {kind}"] = lambda port, file=file: [
                args.llama_server, "-m", file, "--port", port, "-np", most, "-c", CONTEXT * most, "-t", args.threads,
                "--no-warmup"]

        def one(side, number):
            port = free_port()
            return measure(sides[side](port), port, args, number, log)

        try:
            results = in_turn(list(sides), args.rounds, one)
        except Failed:
            log.seek(0)
            tell(log.read()[-2000:])
            raise
        failed = [side for side, runs in results.items() if isinstance(runs, str)]
        if failed:
            log.seek(0)
            tell(log.read()[-3000:])
    good = {side: runs for side, runs in results.items() if side not in failed}
    rows = []
    for side, runs in good.items():
        rates = {n: [run[str(n)]["tok_per_s"] for run in runs] for n in args.streams}
        waits = {n: [run[str(n)]["first_token_s"] for run in runs] for n in args.streams}
        cells = [f"{median(rates[n]):.1f} ({min(rates[n]):.1f} to {max(rates[n]):.1f})" for n in args.streams]
        times = f"{median(rates[args.streams[-1]]) / median(rates[args.streams[0]]):.2f}"
        rows.append([side, *cells, times, *(f"{median(waits[n]):.3f}" for n in args.streams)])
    header = ["side", *(f"{n} at once, tok/s" for n in args.streams), "last / first",
              *(f"first token of {n}, s" for n in args.streams)]
    print(f"{machine()}, {args.threads} threads, {args.shape}, prompts of {args.prompt}, answers of {args.made}, "
          f"{args.rounds} rounds\n\n{table(header, rows)}")
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "threads": args.threads, "sides": results}, indent=1))
    if failed:
        sys.exit(f"error: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
