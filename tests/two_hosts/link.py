"""A link between two network namespaces: 1 Gbit/s and 0.5 ms in each direction, a queue of 50 ms before it.

`link.py A B` makes two interfaces, moves them into the namespaces A and B, and carries packets between them until it is
killed, with which the interfaces are gone. After SIGUSR1 no packet arrives, after SIGUSR2 they do again. (The
kernel's own way, netem, is not in every kernel.)
"""

import collections
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import time

RATE, DELAY, QUEUE = 1e9 / 8, 0.5e-3, 50e-3  # bytes/s, s, s
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
MTU = 65000  # few packets: a processor that trains carries them


def interface(name, namespace, address):
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    subprocess.check_call(["ip", "link", "set", name, "netns", namespace])
    for command in [f"addr add {address}/24 dev {name}", f"link set {name} mtu {MTU} up"]:
        subprocess.check_call(["ip", "-n", namespace, *command.split()])
    return tun


def main():
    # Names of their own, until they are moved: a second link may be made beside this one.
    names = [f"tlm{os.getpid()}{end}" for end in "ab"]
    ends = [interface(*of, f"10.77.13.{i + 1}") for i, of in enumerate(zip(names, sys.argv[1:3]))]
    stalled = False

    def stall(number, _):
        nonlocal stalled
        stalled = number == signal.SIGUSR1

    signal.signal(signal.SIGUSR1, stall)
    signal.signal(signal.SIGUSR2, stall)
    # Of each direction: when the link is free, and packets with the time at which they arrive.
    free, flying = [0.0, 0.0], [collections.deque(), collections.deque()]
    print("up", flush=True)
    while True:
        waiting = [packets[0][0] for packets in flying if packets]
        timeout = max(0.0, min(waiting) - time.monotonic()) if waiting else None
        ready, _, _ = select.select(ends, [], [], timeout)
        for tun in ready:
            way = ends.index(tun)
            for _ in range(16):
                try:
                    packet = os.read(tun, 1 << 17)
                except BlockingIOError:
                    break
                except OSError:
                    return  # the namespace is gone
                now = time.monotonic()
                if stalled or free[way] - now > QUEUE:
                    continue
                free[way] = max(free[way], now) + len(packet) / RATE
                flying[way].append((free[way] + DELAY, packet))
        now = time.monotonic()
        for way, packets in enumerate(flying):
            while packets and packets[0][0] <= now:
                try:
                    os.write(ends[1 - way], packets.popleft()[1])
                except OSError:
                    pass  # a queue that is full; a namespace that is gone


main()
