"""How fast streams are: `speed.py [MODEL]`, by default random trits of the shape of Qwen3-0.6B."""

import argparse
import asyncio
import json
import statistics
import time

from common import Server, random_model

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", nargs="?", metavar="MODEL")
parser.add_argument("--rounds", type=int, default=3, help="of one stream, then of eight [3]")
parser.add_argument("--made", type=int, default=128, help="tokens of each answer [128]")
args = parser.parse_args()
if args.rounds < 1 or args.made < 2:
    parser.error("wanted --rounds of 1 and --made of 2, or more")


async def stream(port, prompt, made, times=None):
    """Tokens that came, and when."""
    # Letters alone, each a token: of most rows of the random model's vocabulary no text comes.
    body = {"prompt": prompt, "max_tokens": made, "temperature": 0, "stream": True,
            "logit_bias": {str(letter): 100 for letter in range(97, 123)}, "stream_options": {"include_usage": True}}
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)
    usage = None
    try:
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                usage = event.get("usage") or usage
                if times is not None and event.get("choices") and not event["choices"][0]["finish_reason"]:
                    times.append(time.perf_counter())
    finally:
        writer.close()
    return usage["completion_tokens"]


async def together(port, streams, seed):
    """Tokens a second of some streams from the first token of all to the last."""
    times = [[] for _ in range(streams)]
    prompts = [f"{seed} {i} once upon a time" for i in range(streams)]
    made = await asyncio.gather(*(stream(port, p, args.made, t) for p, t in zip(prompts, times)))
    first, last = min(t[0] for t in times), max(t[-1] for t in times)
    return (sum(made) - streams) / (last - first)


async def gaps(port):
    """The longest gap of a stream alone, and while a prompt of 4,000 tokens comes in; how long that takes, and how long
    the first token of a short prompt meanwhile."""
    alone, during, short = [], [], []
    await stream(port, "a gap", 24, alone)
    running = asyncio.create_task(stream(port, "a stream", 1000, during))
    while len(during) < 3:
        await asyncio.sleep(0.01)
    start = time.perf_counter()
    long = asyncio.create_task(stream(port, "x y z " * 600 + "w" * 400, 1))
    await asyncio.sleep(0.5)
    asked = time.perf_counter()
    await stream(port, "another", 1, short)
    await long
    end = time.perf_counter()
    running.cancel()
    meanwhile = [t for t in during if start <= t <= end]
    longest = lambda t: max(b - a for a, b in zip(t, t[1:]))  # noqa: E731
    return longest(alone), longest(meanwhile), end - start, short[0] - asked


def main():
    with Server(args.model or random_model("qwen3-0.6b"), "--context", 4352, "--parallel", 8) as server:
        asyncio.run(together(server.port, 1, "warm"))
        ones, eights = [], []
        for round in range(args.rounds):
            ones.append(asyncio.run(together(server.port, 1, round)))
            eights.append(asyncio.run(together(server.port, 8, round)))
        one, eight = statistics.median(ones), statistics.median(eights)
        print(f"one stream {one:.1f} tokens/s, eight {eight:.1f}: {eight / one:.2f} times", flush=True)
        ratios = [b / a for a, b in zip(ones, eights)]
        print(f"  rounds: {[f'{r:.2f}' for r in ratios]}")
        alone, during, read, first = asyncio.run(gaps(server.port))
        print(f"longest gap {alone:.3f} s alone, {during:.3f} s while 4,000 tokens come in ({read:.1f} s); "
              f"first token of a stream meanwhile after {first:.3f} s")
        before = server.metric("prompt_tokens_computed_total")

        async def share():
            await asyncio.gather(*(stream(server.port, "p" * 1000 + f" {i:02}", 1) for i in range(20)))

        asyncio.run(share())
        computed = server.metric("prompt_tokens_computed_total") - before
        print(f"a prefix of 1,000 tokens that 20 requests share: {computed:.0f} tokens computed of {20 * 1003}")


main()
