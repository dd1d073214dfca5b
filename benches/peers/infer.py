"""Packed models beside llama.cpp on this machine, in turn, random models of the same shapes.

    python3 benches/peers/run.py infer
    python3 benches/peers/run.py infer --shapes 75m qwen3-0.6b --rounds 3 --json infer.json
    python3 benches/peers/run.py infer --llama-bench /opt/llama.cpp/build/bin/llama-bench --types TQ2_0 Q4_0
    python3 benches/peers/run.py infer --llama-bench PATH --llama-bench ik=OTHER      a second build, under a label

Without --llama-bench it downloads llama.cpp's source and builds it for this processor, once, which takes minutes."""

import argparse
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from shapes import SHAPES, TYPES, fitted, weights
from turns import HERE, Failed, answer, build, in_turn, machine, make_environment, median, process, table, tell

# The PyPI package that carries llama.cpp's source.
CARRIER = "llama-cpp-python==0.3.36"
CMAKE = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_BUILD_TOOLS=ON", "-DLLAMA_CURL=OFF",
         "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_SERVER=OFF", "-DBUILD_SHARED_LIBS=OFF"]
# A prompt short enough that keys and values weigh nothing.
SHORT = 8
# What is compared: title of the column, by key.
FIGURES = {
    "prefill": "prompt of {prompt}, tok/s", "decode": "decode, tok/s", "decode_after": "decode after {prompt}, tok/s",
}


def run(command, what):
    """Output goes to the terminal; a failure is one sentence."""
    done = subprocess.run([str(part) for part in command], stdout=sys.stderr)
    if done.returncode:
        sys.exit(f"error: {what}: exit status {done.returncode}")


def python(venv):
    """The interpreter of a virtual environment with the gguf package, made and filled when it is missing."""
    interpreter = venv / "bin" / "python"
    if answer([interpreter, "-c", "import gguf"]) is None:
        make_environment(venv)
        tell(f"installing gguf into {venv}")
        run([interpreter, "-m", "pip", "install", "-r", HERE / "requirements-infer.txt"], "installing gguf")
    return interpreter


def llama_bench(cache, interpreter):
    """llama.cpp's benchmark, built in `cache` when it is not there."""
    folder = cache / CARRIER.replace("==", "-")
    source = folder / "llama.cpp"
    binary = source / "build" / "bin" / "llama-bench"
    if binary.exists():
        return binary
    folder.mkdir(parents=True, exist_ok=True)
    if not source.exists():
        tell(f"downloading {CARRIER}")
        run([interpreter, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python",
             "--dest", folder, CARRIER], f"downloading {CARRIER}")
        archives = sorted(folder.glob("llama_cpp_python-*.tar.gz"))
        if not archives:
            sys.exit(f"error: {folder}: no source archive after the download of {CARRIER}")
        with tempfile.TemporaryDirectory(dir=folder) as unpacked, tarfile.open(archives[-1]) as archive:
            archive.extractall(unpacked, filter="data")
            found = next(Path(unpacked).glob("*/vendor/llama.cpp"), None)
            if found is None:
                sys.exit(f"error: {archives[-1]}: no folder vendor/llama.cpp in it")
            found.rename(source)
    run([interpreter, "-m", "pip", "install", "-r", HERE / "requirements-build.txt"], "installing cmake and ninja")
    tools = interpreter.parent
    tell(f"building llama-bench in {source / 'build'}")
    run([tools / "cmake", "-S", source, "-B", source / "build", "-G", "Ninja",
         f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}", *CMAKE], "configuring llama.cpp")
    run([tools / "cmake", "--build", source / "build", "--target", "llama-bench"], "building llama-bench")
    if not binary.exists():
        sys.exit(f"error: {binary}: not there after the build")
    return binary


def binaries(args, interpreter):
    """Peers by label."""
    if not args.llama_bench:
        return {"llama.cpp": llama_bench(args.scratch, interpreter)}
    out = {}
    for text in args.llama_bench:
        label, path = text.split("=", 1) if "=" in text else ("llama.cpp", text)
        if label in out:
            sys.exit(f"error: --llama-bench {text}: {label} is named twice; write LABEL=PATH")
        out[label] = Path(path).absolute()
        if not os.access(out[label], os.X_OK):
            sys.exit(f"error: --llama-bench {text}: no program there")
    return out


def ours(ternlm, shape, density, args, log):
    command = [ternlm, "bench", "run", "--shape", shape, "--density", density, "--gen", args.gen,
               "--rounds", args.repetitions, "--threads", args.threads, "--json"]
    long, short = (json.loads(process([*command, "--prompt", n], {}, log)[0]) for n in (args.prompt, SHORT))
    return {"prefill": long["prefill_tok_per_s"], "decode": short["decode_tok_per_s"][0],
            "decode_after": long["decode_tok_per_s"][0], "weights": long["parameters"], "isa": long["isa"]}


def theirs(binary, file, args, log):
    command = [binary, "-m", file, "-t", args.threads, "-r", args.repetitions, "-o", "json"]
    # Speed at a depth is a run of its own: in one run the prompt too would be read after others.
    told = [process([*command, "-p", args.prompt, "-n", args.gen], {}, log)[0],
            process([*command, "-p", 0, "-n", args.gen, "-d", args.prompt], {}, log)[0]]
    try:
        tests = [test for text in told for test in json.loads(text)]

        def rate(prompt, gen, depth):
            found = [t for t in tests if (t["n_prompt"], t["n_gen"], t["n_depth"]) == (prompt, gen, depth)]
            return median(found[0]["samples_ts"])

        return {"prefill": rate(args.prompt, 0, 0), "decode": rate(0, args.gen, 0),
                "decode_after": rate(0, args.gen, args.prompt), "build": tests[0].get("build_commit")}
    except (ValueError, KeyError, IndexError) as error:
        raise Failed(f"{binary}: what it printed is not the JSON of llama-bench's tests ({error!r}), see {log.name}")


def write_files(shape, types, scratch, interpreter, log):
    """A GGUF file of each type; those that could not be written are error texts."""
    files = {}
    for kind in types:
        file = scratch / f"{shape}-{kind}.gguf"
        tell(f"  writing {kind}")
        command = [interpreter, HERE / "gguf_random.py", "--shape", shape, "--type", kind, "--out", file]
        told = json.loads(process(command, {}, log)[0])
        wanted = weights(fitted(SHAPES[shape], kind))
        if told["weights"] != wanted:
            raise Failed(f"{file}: {told['weights']} weights, wanted {wanted}")
        files[kind] = file
    return files


def compare(shape, args, tools, scratch, log):
    """One shape; the result as JSON has it, and whether every side ran."""
    tell(f"{shape}:")
    files = write_files(shape, args.types, scratch, tools["python"], log)
    sides = [f"ternlm {density}" for density in args.densities]
    peers = {f"{label} {kind}": (binary, files[kind]) for label, binary in tools["peers"].items() for kind in files}

    def one(side, _):
        if side in peers:
            return theirs(*peers[side], args, log)
        return ours(tools["ternlm"], shape, side.split()[1], args, log)

    results = in_turn([*sides, *peers], args.rounds, one)
    counted = results[sides[0]][0]["weights"]
    if counted != weights(SHAPES[shape]):
        raise Failed(f"{shape}: ternlm has {counted} weights, shapes.py {weights(SHAPES[shape])}")
    good = {side: runs for side, runs in results.items() if not isinstance(runs, str)}
    summary = {side: {key: median([r[key] for r in runs]) for key in FIGURES} for side, runs in good.items()}
    best = {key: max(((summary[s][key], s) for s in peers if s in summary), default=(None, None)) for key in FIGURES}
    rows = []
    for side, runs in results.items():
        if side not in good:
            rows.append([side, *["failed"] * len(FIGURES), ""])
            summary[side] = {"error": runs}
            continue
        cells = [f"{summary[side][key]:,.1f} ({min(r[key] for r in runs):,.1f} to {max(r[key] for r in runs):,.1f})"
                 for key in FIGURES]
        if side in sides and best["prefill"][0]:
            ratios = {key: summary[side][key] / best[key][0] for key in FIGURES}
            summary[side]["ours_over_fastest_peer"] = ratios
            rows.append([side, *cells, ", ".join(f"{ratio:.2f}" for ratio in ratios.values())])
        else:
            rows.append([side, *cells, ""])
    header = ["side", *(title.format(prompt=args.prompt) for title in FIGURES.values()), "ours / fastest peer"]
    print(f"\n### {shape}\n\n{args.rounds} rounds of {args.repetitions}, {args.gen} tokens made, {args.threads} "
          f"threads; {counted:,} weights\n\n{table(header, rows)}\n")
    if best["prefill"][0]:
        fastest = [f"{side} ({title.format(prompt=args.prompt)})"
                   for (_, side), title in zip(best.values(), FIGURES.values())]
        print(f"Fastest peers: {'; '.join(fastest)}.")
    for kind in args.types:
        wide, given = fitted(SHAPES[shape], kind)["feed_forward"], SHAPES[shape]["feed_forward"]
        if wide != given:
            print(f"{kind}: its blocks are {TYPES[kind]} weights long, so its feed-forward is {wide:,} wide where "
                  f"ternlm's is {given:,}: {weights(fitted(SHAPES[shape], kind)) / counted - 1:+.1%} weights.")
    sys.stdout.flush()
    fastest = {key: {"side": side, "tok_per_s": rate} for key, (rate, side) in best.items()}
    return {"weights": counted, "sides": summary, "fastest_peer": fastest, "runs": results}, len(good) == len(results)


def main(argv):
    parser = argparse.ArgumentParser(prog="run.py infer", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ternlm-peers"
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["75m", "qwen3-0.6b"], metavar="SHAPE",
                        help=f"{', '.join(SHAPES)} [default: 75m qwen3-0.6b]; 1.7b takes 3.6 GB of disk meanwhile")
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES), metavar="TYPE",
                        help=f"of the peers' weights: {', '.join(TYPES)} [default: all]")
    parser.add_argument("--densities", nargs="+", choices=["base3", "2bit"], default=["base3", "2bit"],
                        metavar="DENSITY", help="of ternlm's: base3, 2bit [default: both]")
    parser.add_argument("--llama-bench", action="append", default=[], metavar="[LABEL=]PATH",
                        help="use this llama-bench instead of building one; may be repeated, with labels")
    parser.add_argument("--ternlm", type=Path, metavar="FILE", help="use this binary instead of building one")
    parser.add_argument("--scratch", type=Path, default=cache,
                        help=f"llama.cpp, which stays, and models, deleted afterwards [{cache}]")
    parser.add_argument("--venv", type=Path, help="a virtual environment with gguf [SCRATCH/venv-infer]")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt [512]")
    parser.add_argument("--gen", type=int, default=48, help="tokens made [48]")
    parser.add_argument("--rounds", type=int, default=3, help="times that every side runs, in turn [3]")
    parser.add_argument("--repetitions", type=int, default=3,
                        help="measurements in a run, of which the median counts [3]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured there")
    args = parser.parse_args(argv)
    if sys.version_info < (3, 11, 4):
        parser.error(f"Python {platform.python_version()}: wanted 3.11.4 or newer")
    for name in ("prompt", "gen", "rounds", "repetitions", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: wanted 1 or more")

    args.scratch = args.scratch.absolute()
    args.scratch.mkdir(parents=True, exist_ok=True)
    interpreter = python((args.venv or args.scratch / "venv-infer").absolute())
    peers = binaries(args, interpreter)
    tools = {"python": interpreter, "peers": peers, "ternlm": args.ternlm.absolute() if args.ternlm else build()}
    print(f"{machine()}, {os.cpu_count()} cores, {platform.system()}; {', '.join(peers)}", flush=True)
    out = {"machine": machine(), "cores": os.cpu_count(), "threads": args.threads, "rounds": args.rounds,
           "prompt": args.prompt, "gen": args.gen, "short_prompt": SHORT, "shapes": {}}
    passed = True
    with open(args.scratch / "infer.log", "w+") as log:
        for shape in args.shapes:
            try:
                with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
                    result, good = compare(shape, args, tools, Path(scratch), log)
            except Failed as error:
                tell(f"error: {shape}: {error}")
                result, good = {"error": str(error)}, False
            out["shapes"][shape], passed = result | {"passed": good}, passed and good
            if args.json:
                args.json.write_text(json.dumps(out, indent=1) + "\n")
    if not passed:
        sys.exit("error: not every side above ran")
