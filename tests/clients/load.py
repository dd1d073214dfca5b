"""Many clients of all manners: `load.py [CONNECTIONS [REQUESTS]]`.

Every request that behaves must be answered with status 200 or 429 and, where its prompt was asked alone before, with the
same text, one in twenty with 200 at least; every other one must end. In the end nothing runs, nothing waits, and the
process is as large as it was.
"""

import asyncio
import json
import random
import resource
import sys
import time

from common import Server, talking_model

CONNECTIONS = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
REQUESTS = int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
SOFT, HARD = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(HARD, 65536), HARD))


def body(i, **more):
    text = "".join(random.Random(i % 7).choices("etaoin shrdlu", k=10 + 30 * (i % 7)))
    return {"prompt": text, "max_tokens": 6, "temperature": 1, "seed": i % 7, **more}


def request(content, path="/v1/completions"):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


async def answered(reader):
    """Status and body of a whole answer."""
    text = await reader.read()
    head, _, rest = text.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]) if head else 0, rest


async def one(i, port, alone, counts):
    kind = random.Random(i).choices(
        ["well", "stream", "gone", "half", "garbage", "body", "slow", "late"], [40, 15, 15, 5, 8, 8, 4, 5])[0]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        if kind == "well":
            writer.write(request(body(i)))
            status, rest = await answered(reader)
            if status == 200:
                assert json.loads(rest)["choices"][0]["text"] == alone[i % 7], "another text than alone"
            else:
                assert status == 429, (status, rest)
            counts[f"well {status}"] = counts.get(f"well {status}", 0) + 1
            return
        if kind == "stream":
            writer.write(request(body(i, stream=True)))
            status, rest = await answered(reader)
            assert status == 429 or rest.rstrip().endswith(b"data: [DONE]\n\n\r\n0") or b"[DONE]" in rest, rest[-200:]
            counts[f"stream {status}"] = counts.get(f"stream {status}", 0) + 1
            return
        if kind == "gone":
            writer.write(request(body(i, stream=True, max_tokens=300)))
            await reader.read(random.Random(i).choice([1, 400, 2000]))
            writer.transport.abort()
        elif kind == "half":
            writer.write(request(body(i, max_tokens=300)))
            writer.write_eof()
            await reader.read()
        elif kind == "garbage":
            writer.write(random.Random(i).randbytes(300) + b"\r\n\r\n")
            await reader.read()
        elif kind == "body":
            data = random.Random(i).choice([b"{", b"[]", b'{"prompt": 5}', b'{"prompt": "a", "n": -1}', b"\xff" * 40])
            writer.write(request(data))
            status, rest = await answered(reader)
            assert status == 400 and json.loads(rest)["error"]["message"], (status, rest)
        elif kind == "slow":
            writer.write(request(body(i, stream=True, max_tokens=40)))
            for _ in range(20):
                await asyncio.sleep(0.05)
                if not await reader.read(100):
                    break
        else:
            data = request(body(i))
            writer.write(data[:60])
            await asyncio.sleep(0.3)
            writer.write(data[60:])
            status, _ = await answered(reader)
            assert status in (200, 429), status
        counts[kind] = counts.get(kind, 0) + 1
    except (ConnectionResetError, BrokenPipeError):
        assert kind in ("garbage", "gone", "half"), f"{kind} was cut off"
        counts[f"{kind} reset"] = counts.get(f"{kind} reset", 0) + 1
    finally:
        writer.close()


async def storm(port, alone, requests, first):
    counts, left = {}, iter(range(first, first + requests))

    async def worker():
        for i in left:
            await asyncio.wait_for(one(i, port, alone, counts), 300)

    await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))
    return counts


def settle(server):
    for name in ("running", "waiting"):
        server.until(name, lambda n: n == 0)
    server.until("connections", lambda n: n <= 1)
    time.sleep(1)
    return server.memory()


options = ["--connections", CONNECTIONS + 24, "--queue", 256, "--context", 1024, "--patience", 10]
with Server(talking_model(), *options) as server:
    fresh = server.memory()
    alone = [server.ask("/v1/completions", body(i))[1]["choices"][0]["text"] for i in range(7)]
    # What a server holds once it has been as busy as it will be: pages, buffers, what the allocator keeps of a peak.
    sizes = []
    for _ in range(3):
        asyncio.run(storm(server.port, alone, REQUESTS, 0))
        sizes.append(settle(server))
    before = sizes[-1]
    start = time.time()
    counts = asyncio.run(storm(server.port, alone, REQUESTS, REQUESTS))
    seconds = time.time() - start
    after = settle(server)
    mib = lambda n: n / 2**20  # noqa: E731
    print(f"{REQUESTS} requests over {CONNECTIONS} connections in {seconds:.0f} s: {dict(sorted(counts.items()))}")
    first = ", ".join(f"{mib(size):.1f}" for size in sizes)
    print(f"resident: {mib(fresh):.1f} MiB fresh, after rounds of as many {first}, and after this one {mib(after):.1f}")
    assert sum(counts.values()) == REQUESTS
    for kind in ("well", "stream"):
        served, refused = (counts.get(f"{kind} {status}", 0) for status in (200, 429))
        assert served > 0 and 20 * served >= served + refused, f"{kind}: {served} of {served + refused} were served"
    assert abs(after - before) <= 0.05 * before, "resident memory moved by more than 5 %"
    assert server.process.poll() is None
print("load well")
