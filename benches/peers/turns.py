"""What every comparison needs: processes that run in turn on one machine, and tables of what they gave."""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


class Failed(Exception):
    """A process that gave no result."""


def median(values):
    """As `ternlm bench`: of an even number the upper one of the two in the middle."""
    return sorted(values)[len(values) // 2]


def tell(text):
    print(text, file=sys.stderr, flush=True)


def process(command, env, log):
    """Runs a fresh process. What it printed, and its wall time in seconds; what it says on stderr goes to `log`."""
    command = [str(part) for part in command]
    log.write(f"$ {' '.join(command)}\n")
    log.flush()
    start = time.perf_counter()
    done = subprocess.run(command, env=os.environ | env, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
    seconds = time.perf_counter() - start
    log.write(done.stdout)
    if done.returncode:
        reason = f"exit status {done.returncode}, see {log.name}"
        try:
            reason = json.loads(done.stdout)["error"].splitlines()[0]
        except (ValueError, KeyError, IndexError):
            pass
        raise Failed(f"{' '.join(command[:3])} …: {reason}")
    return done.stdout, seconds


def answer(command):
    """What a command prints; nothing where it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return None if done.returncode else done.stdout


def make_environment(venv):
    """A virtual environment that can install. One whose making was interrupted has a Python without pip."""
    pip = [venv / "bin" / "python", "-m", "pip", "--version"]
    if answer(pip) is None:
        tell(f"making {venv}")
        subprocess.run([sys.executable, "-m", "venv", venv], stdout=sys.stderr)
        if answer(pip) is None:
            sys.exit(f"error: {venv}: no Python with pip in it; remove it, or name another with --venv")


def build():
    """The release binary, wherever Cargo puts it."""
    command = ["cargo", "build", "--release", "--bin", "ternlm", "--message-format", "json-render-diagnostics"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    artifacts = (json.loads(line) for line in done.stdout.splitlines())
    return next(a["executable"] for a in artifacts if a.get("executable") and a["target"]["name"] == "ternlm")


def machine():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def in_turn(sides, rounds, run):
    """Runs every side once a round, each round starting with another one, so that a machine that slows down slows all
    of them. Results by side; a side that failed is an error text and is not tried again."""
    results = {side: [] for side in sides}
    for number in range(rounds):
        turn = number % len(sides)
        for side in sides[turn:] + sides[:turn]:
            if isinstance(results[side], str):
                continue
            tell(f"  round {number + 1} of {rounds}: {side}")
            try:
                results[side].append(run(side, number))
            except Failed as error:
                # Without our own figures there is nothing to compare with.
                if side.startswith("ternlm"):
                    raise
                tell(f"  {error}")
                results[side] = str(error)
    return results


def table(header, rows):
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(seconds):
    return f"{median(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f})"
