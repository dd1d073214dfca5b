"""The model of DESIGN.md for the time of a step of several processes, and what it says past the machines at hand.

    python3 benches/step_time.py                                   the table of DESIGN.md
    python3 benches/step_time.py --compute 1.14 --update 0.067 --values 74.7e6 --last 25.7e6 --gbit 1 --rtt 1.5e-3
                                                                    one point: two hosts, wiki-75m, one thread each
"""

import argparse
import math

PIECE = 1 << 22  # values that are added up at a time


def exchange(values, size, bytes_a_value, bandwidth, latency):
    """Seconds of adding up `values` over `size` processes, each of which sends and receives `bandwidth` bytes/s at once."""
    volume = 2 * (size - 1) / size * values * bytes_a_value
    rounds = math.ceil(values / PIECE)
    return volume / bandwidth + rounds * 2 * math.ceil(math.log2(size)) * latency


def step(compute, update, values, last, size, bytes_a_value, bandwidth, latency):
    """A third of the compute is the forward pass; gradients leave evenly over the rest, but for the `last` values (an embedding
    that is not the head; all of them with a tied one come last), which nothing hides."""
    all_of_it = exchange(values, size, bytes_a_value, bandwidth, latency)
    of_last = exchange(last, size, bytes_a_value, bandwidth, latency)
    backward = 2 / 3 * compute
    return compute / 3 + max(backward + of_last, all_of_it) + update, all_of_it


def main():
    args = argparse.ArgumentParser()
    for name in ["compute", "update", "values", "last", "gbit", "rtt"]:
        args.add_argument(f"--{name}", type=float)
    args.add_argument("--size", type=int, default=2)
    args = args.parse_args()
    if args.compute:
        for name, width in [("f32", 4), ("bf16", 2)]:
            total, sent = step(
                args.compute, args.update, args.values, args.last, args.size, width, args.gbit * 1e9 / 8, args.rtt / 2
            )
            print(f"{name}: step {total:.2f} s, of which gradients take {sent:.2f} s; alone {args.compute + args.update:.2f} s")
        return
    # A node: 64 cores as the two that were measured, at nine tenths of their 275 GFLOP/s, and 200 GB/s of memory.
    flops, memory, latency, tokens = 64 * 275e9 * 0.9, 200e9, 20e-6, 524_288
    # Parameters, those of products, those that leave last.
    shapes = {"75M": (74.7e6, 49e6, 25.7e6), "0.6B": (596e6, 596e6, 155.6e6), "8B": (8.19e9, 7.57e9, 622e6)}
    print("a step of 524,288 tokens: seconds, and share of the time spent computing")
    for gbit in [10, 100]:
        for name, (values, multiplied, last) in shapes.items():
            row = []
            for size in [8, 64, 512]:
                compute = 6 * multiplied * tokens / size / flops
                update = values * 36 / memory
                for width in [4, 2]:
                    total, _ = step(compute, update, values, last, size, width, gbit * 1e9 / 8, latency)
                    row.append(f"{total:7.2f} {100 * compute / total:3.0f} %")
            print(f"{gbit:>4} Gbit/s {name:>5}: " + " | ".join(row) + "   (f32, bf16 at 8, 64, 512 nodes)")


main()
