"""ternlm against PyTorch and NumPy on this machine, in turn, from the same weights and batches; against llama.cpp.

    python3 benches/peers/run.py wiki-75m copy
    python3 benches/peers/run.py all --json peers.json
    python3 benches/peers/run.py infer --shapes 75m       packed models beside llama.cpp; infer --help says more

Needs Python 3.11 or newer with venv, and Cargo; README.md beside this file says what is measured."""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from turns import (HERE, ROOT, Failed, answer, build, in_turn, machine, make_environment, median, process, spread,
                   table, tell)

# Large tensors stay in the process from step to step instead of going back to the system, and lie on huge pages:
# otherwise PyTorch pays for page faults in every step.
TUNED = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "THP_MEM_ALLOC_ENABLE": "1",
}
PINNED = {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}

# Name, options of torch_step.py, environment.
STEP_SIDES = {
    "eager": ("PyTorch eager", ["--mode", "eager"], {}),
    "eager-tuned": ("PyTorch eager, tuned allocator", ["--mode", "eager"], TUNED | PINNED),
    "compile": ("PyTorch compiled", ["--mode", "compile"], {}),
    "compile-tuned": ("PyTorch compiled, tuned allocator", ["--mode", "compile"], TUNED | PINNED),
}
# The same with products in bf16.
BF16_SIDES = {
    f"bf16-{side}": (f"{label}, autocast bf16", [*options, "--autocast"], env)
    for side, (label, options, env) in STEP_SIDES.items()
}
STEP_SIDES |= BF16_SIDES
COPY_SIDES = {
    "torch": ("PyTorch eager", "copy_torch.py", {}),
    "torch-tuned": ("PyTorch eager, tuned allocator", "copy_torch.py", TUNED | PINNED),
    "numpy": ("NumPy", "copy_numpy.py", {}),
    "numpy-tuned": ("NumPy, tuned allocator", "copy_numpy.py", TUNED),
}
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
VARIANTS = {
    "wiki-75m": {"recipe": "wiki-75m"},
    "wiki-75m-none": {"recipe": "wiki-75m", "set": ["ternary.scope=none"]},
    "wiki-75m-bf16": {"recipe": "wiki-75m", "set": ["train.precision=bf16"], "sides": list(BF16_SIDES)},
    "avx2": {"recipe": "wiki-75m", "ours_env": {"TERNLM_ISA": "avx2"}, "env": AVX2},
    # A step takes tens of seconds, and compiling needs more memory than the step itself: eager only, few steps.
    "qwen3-0.6b": {"recipe": "qwen3-0.6b-blocks", "set": ["train.precision=f32"],
                   "sides": ["eager", "eager-tuned"], "warmup": 2, "steps": 2},
    "qwen3-0.6b-bf16": {"recipe": "qwen3-0.6b-blocks", "set": ["train.precision=bf16"],
                        "sides": ["bf16-eager", "bf16-eager-tuned"], "warmup": 2, "steps": 2},
    "copy": {},
}
# Both sides add the same numbers in another order, and a latent at a threshold may fall to either side of it. By the
# fourth step that shows in the third decimal.
TOLERANCE, COMPARED = 2e-3, 3


def python(venv):
    """The interpreter of the virtual environment, made and filled when it is missing."""
    interpreter = venv / "bin" / "python"
    ask = [interpreter, "-c", "import torch, numpy; print(torch.__version__, numpy.__version__)"]
    found = answer(ask)
    if found is None:
        make_environment(venv)
        tell(f"installing PyTorch and NumPy into {venv}")
        install = [interpreter, "-m", "pip", "install", "-r", HERE / "requirements.txt"]
        subprocess.run(install, check=True, stdout=sys.stderr)
        found = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    torch, numpy = found.split()
    return interpreter, {"torch": torch, "numpy": numpy}


def asked(sides, args):
    """Those of `--sides`; all, when none of these is among them."""
    return [side for side in sides if side in (args.sides or [])] or list(sides)


def losses_agree(name, side, ours, theirs, told_only):
    """Compares the losses of the first steps. False, and a message, when they differ by too much."""
    apart = [abs(a - b) for a, b in zip(ours[:COMPARED], theirs)]
    # A loss that is not a number is as far away as can be.
    worst = max((math.inf if math.isnan(d) else d for d in apart), default=math.inf)
    good = len(apart) >= min(COMPARED, len(ours)) and worst < TOLERANCE
    if not good:
        tell(f"{'note' if told_only else 'error'}: {name}: the losses of {side} are not those of ternlm: at most "
             f"{worst:.2g} apart over the first {COMPARED} steps, wanted below {TOLERANCE}: "
             f"{[round(x, 5) for x in ours[:COMPARED]]} and {[round(x, 5) for x in theirs[:COMPARED]]}")
    return good or told_only, worst


def bench_steps(name, args, tools, scratch, log):
    """Training steps of a recipe's shape; the result as JSON has it, and whether the losses agree."""
    variant = VARIANTS[name]
    # A tuned allocator has all the memory it will need after the third step.
    warmup = variant.get("warmup", 3) if args.warmup is None else args.warmup
    steps = args.steps or variant.get("steps", 5)
    # The first steps are compared, whatever is timed.
    warmup = max(warmup, COMPARED - steps)
    offered = variant.get("sides", [side for side in STEP_SIDES if side not in BF16_SIDES])
    sides = [side for side in asked(STEP_SIDES, args) if side in offered]
    if not sides:
        raise Failed(f"--sides: {name} has none of these, but {', '.join(offered)}")
    threads = ["--threads", args.threads]
    # OMP_NUM_THREADS reaches the libraries that do not ask PyTorch.
    peer_env = {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)} | variant.get("env", {})
    ours_env = variant.get("ours_env", {})
    recipe = ["bench", "train", "--recipe", variant["recipe"], "--json", *threads]
    recipe += [word for text in variant.get("set", []) for word in ("--set", text)]
    ours_set = [word for text in args.ours_set for word in ("--set", text)]

    export = scratch / name
    tell(f"{name}: exporting")
    # A run of its own, so that writing the export is in nobody's time or memory. Its losses are those to compare with.
    counts = ["--warmup", 0, "--steps", warmup + steps]
    exported, _ = process([tools["ternlm"], *recipe, *counts, "--export", export], ours_env, log)
    ours_losses = json.loads(exported)["losses"]

    def run(side, _):
        counts = ["--warmup", warmup, "--steps", steps]
        if side == "ternlm":
            return json.loads(process([tools["ternlm"], *recipe, *ours_set, *counts], ours_env, log)[0])
        _, options, env = STEP_SIDES[side]
        command = [tools["python"], HERE / "torch_step.py", "--export", export, *options, *counts, *threads]
        return json.loads(process([*command, "--json"], peer_env | env, log)[0])

    results = in_turn(["ternlm", *sides], args.rounds, run)
    ours = results["ternlm"]
    gflop = ours[0]["gflops"] * ours[0]["median_seconds"]
    peak = median([r["fma_peak_gflops"] for r in ours])
    ours_seconds = median([r["median_seconds"] for r in ours])
    rows, summary, agree = [], {}, True
    for side, runs in results.items():
        label = STEP_SIDES[side][0] if side in STEP_SIDES else " ".join(["ternlm", *args.ours_set])
        if isinstance(runs, str):
            rows.append([label, "failed", *["—"] * 6])
            summary[side] = {"error": runs}
            agree = agree and "compile" in side
            continue
        seconds = [r["median_seconds"] for r in runs]
        middle, memory = median(seconds), [r["peak_memory_bytes"] for r in runs]
        memory = None if None in memory else median(memory)
        mine = side == "ternlm"
        wanted, found = (ours_losses[warmup:], "losses") if mine else (ours_losses, "first_losses")
        # Other settings than those exported may lead to other losses: that is told, no more.
        judged = [losses_agree(name, f"{label}, round {number + 1},", wanted, r[found], mine and bool(ours_set))
                  for number, r in enumerate(runs)]
        agree = agree and all(good for good, _ in judged)
        apart = max(apart for _, apart in judged)
        tokens = runs[0]["tokens_per_step"] / middle
        summary[side] = {
            "median_seconds": middle, "seconds_by_round": seconds, "tok_per_s": tokens, "gflops": gflop / middle,
            "share_of_peak": gflop / middle / peak, "peak_memory_bytes": memory, "ours_over_peer": middle / ours_seconds,
            "largest_loss_difference": apart, "isa": runs[0]["isa"], "threads": runs[0]["threads"],
        }
        rows.append([
            label, spread(seconds), f"{tokens:,.0f}", f"{gflop / middle:.1f}", f"{100 * gflop / middle / peak:.0f} %",
            f"{memory / 2**30:.2f} GiB" if memory else "—",
            "" if side == "ternlm" else f"{middle / ours_seconds:.2f}", f"{apart:.1e}",
        ])
    header = ["side", "step, s", "tokens/s", "GFLOP/s", "of FMA peak", "peak memory", "ours / peer", "loss apart"]
    isas = sorted({f"{side} {s['isa']}" for side, s in summary.items() if "isa" in s})
    print(f"\n### {name}\n\n{warmup} + {steps} steps, {args.rounds} rounds, {args.threads} threads; FMA peak "
          f"{peak:.0f} GFLOP/s; {', '.join(isas)}\n\n{table(header, rows)}", flush=True)
    return {"sides": summary, "fma_peak_gflops": peak, "warmup": warmup, "steps": steps, "runs": results,
            "exported_losses": ours_losses}, agree


def bench_copy(name, args, tools, scratch, log):
    """The whole copy recipe, a process from start to end."""
    recipe = ROOT / "recipes" / "copy.toml"
    sides = asked(COPY_SIDES, args)
    env = {"OMP_NUM_THREADS": str(args.threads)}
    ours_set = [word for text in args.ours_set for word in ("--set", text)]

    def run(side, number):
        if side == "ternlm":
            out = scratch / f"copy-{number}"
            command = [tools["ternlm"], "train", "copy", "--out", out, "--threads", args.threads, *ours_set]
            _, wall = process(command, {}, log)
            report = json.loads((out / "report.json").read_text())
            first, *_, last = (loss for _, loss in report["loss_curve"])
            return {"wall": wall, "first_loss": first, "last_loss": last, "accuracy": report["accuracy"]}
        _, script, tuned = COPY_SIDES[side]
        command = [tools["python"], HERE / script, "--recipe", recipe, "--threads", args.threads]
        told, wall = process(command, env | tuned, log)
        return {"wall": wall} | json.loads(told)

    tell(f"{name}:")
    results = in_turn(["ternlm", *sides], args.rounds, run)
    ours_wall = median([r["wall"] for r in results["ternlm"]])
    rows, summary, learnt = [], {}, True
    for side, runs in results.items():
        label = COPY_SIDES[side][0] if side in COPY_SIDES else " ".join(["ternlm", *args.ours_set])
        if isinstance(runs, str):
            rows.append([label, "failed", *["—"] * 3])
            summary[side], learnt = {"error": runs}, False
            continue
        walls = [r["wall"] for r in runs]
        # Written so that what is not a number fails, too.
        bad = [r for r in runs if not (r["last_loss"] < 1e-3 and r["accuracy"] > 0.99)]
        for r in bad:
            tell(f"error: {name}: {label}, round {runs.index(r) + 1}, has not learnt to copy: loss {r['last_loss']}, "
                 f"accuracy {r['accuracy']}")
            learnt = False
        loss, accuracy = (worst(r[key] for r in bad or runs) for worst, key in [(max, "last_loss"), (min, "accuracy")])
        ratio = median(walls) / ours_wall
        summary[side] = {"wall_seconds": median(walls), "wall_by_round": walls, "last_loss": loss,
                         "accuracy": accuracy, "ours_over_peer": ratio}
        rows.append([label, spread(walls), f"{loss:.1e}", f"{100 * accuracy:.2f} %",
                     "" if side == "ternlm" else f"{ratio:.2f}"])
    header = ["side", "whole process, s", "last loss", "accuracy", "ours / peer"]
    print(f"\n### {name}\n\n{args.rounds} rounds, {args.threads} threads\n\n{table(header, rows)}", flush=True)
    return {"sides": summary, "runs": results}, learnt


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", default=["wiki-75m"], metavar="VARIANT",
                        help=f"{', '.join(VARIANTS)}, or all [default: wiki-75m]")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ternlm-peers"
    parser.add_argument("--scratch", type=Path, default=cache, help=f"exports and runs, deleted afterwards [{cache}]")
    parser.add_argument("--venv", type=Path, help="a virtual environment with PyTorch and NumPy [SCRATCH/venv]")
    parser.add_argument("--ternlm", type=Path, metavar="FILE", help="use this binary instead of building one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, help="steps before those that are timed [3, or what the variant says]")
    parser.add_argument("--steps", type=int, help="steps that are timed [5, or what the variant says]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sides", nargs="+", choices=[*STEP_SIDES, *COPY_SIDES], metavar="SIDE",
                        help=f"only these peers: {', '.join(STEP_SIDES)}; {', '.join(COPY_SIDES)}")
    parser.add_argument("--ours-set", action="append", default=[], metavar="KEY=VALUE",
                        help="a key of the recipe changed for ternlm alone; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured there")
    args = parser.parse_args()
    names = list(VARIANTS) if "all" in args.variants else args.variants
    for name in names:
        if name not in VARIANTS:
            parser.error(f"{name}: wanted {', '.join(VARIANTS)}, or all")
    if sys.version_info < (3, 11):
        parser.error(f"Python {platform.python_version()}: wanted 3.11 or newer")
    if args.rounds < 1 or args.threads < 1 or (args.steps is not None and args.steps < 1):
        parser.error("--rounds, --steps and --threads: wanted 1 or more")

    args.scratch = args.scratch.absolute()
    args.scratch.mkdir(parents=True, exist_ok=True)
    interpreter, versions = python((args.venv or args.scratch / "venv").absolute())
    tools = {"python": interpreter, "ternlm": args.ternlm.absolute() if args.ternlm else build()}
    print(f"{machine()}, {os.cpu_count()} cores, {platform.system()}; PyTorch {versions['torch']}, "
          f"NumPy {versions['numpy']}, Python {platform.python_version()}", flush=True)
    out = {"machine": machine(), "cores": os.cpu_count(), "versions": versions, "threads": args.threads,
           "rounds": args.rounds, "ours_set": args.ours_set, "variants": {}}
    passed = True
    with open(args.scratch / "run.log", "w+") as log:
        for name in names:
            bench = bench_copy if name == "copy" else bench_steps
            try:
                with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
                    result, good = bench(name, args, tools, Path(scratch), log)
            except Failed as error:
                tell(f"error: {name}: {error}")
                result, good = {"error": str(error)}, False
            out["variants"][name], passed = result | {"passed": good}, passed and good
            if args.json:
                args.json.write_text(json.dumps(out, indent=1) + "\n")
    if not passed:
        sys.exit("error: not everything above ran and agrees; its figures compare nothing")


if __name__ == "__main__":
    if sys.argv[1:2] == ["infer"]:
        import infer

        infer.main(sys.argv[2:])
    else:
        main()
