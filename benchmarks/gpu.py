"""Everything that is to be measured on a GPU, in the order of importance, each in a process of its own.

    python -m benchmarks.gpu --json results-gpu.json
    python -m benchmarks.gpu --json results-gpu.json --only selection shapes

Weights are random, of the published shapes, and made on the GPU: nothing is downloaded. About twelve minutes on an
H100. What fails or takes too long is named at the end and the rest goes on; what is in the file already is not done
again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

ON_GPU = ["--device", "cuda", "--dtype", "bfloat16"]
SHAPES = ["llava-next-7b", "qwen2.5-vl-7b", "internvl3-8b"]
COMPILED = ["--compile", "--tokens", "128", "--rounds", "3"]
LARGEST = ["--largest", "--keeps", "1.0,0.111", "--rounds", "1"]

#: By name: the module and its options, and the seconds it may take.
COMMANDS: dict[str, tuple[list[str], int]] = {
    "tests": (["pytest", "-q", "-m", "cuda", "tests/tops_engine"], 150),
    "selection": (["benchmarks.selection", "--device", "cuda", "--tune", "--repeats", "3"], 120),
    "latency-llava-next-7b": (["benchmarks.latency", "--shape", "llava-next-7b", *ON_GPU, "--rounds", "5"], 150),
    "decode-llava-1.5-7b": (["benchmarks.latency", "--shape", "llava-1.5-7b", *ON_GPU, *COMPILED], 150),
    "throughput-llava-next-7b": (["benchmarks.throughput", "--shape", "llava-next-7b", *ON_GPU, *LARGEST], 180),
    "reuse-llava-next-7b": (["benchmarks.reuse", "--shape", "llava-next-7b", *ON_GPU, "--repeats", "5"], 90),
    "reuse-llava-1.5-7b": (["benchmarks.reuse", "--shape", "llava-1.5-7b", *ON_GPU, "--repeats", "5"], 90),
    "shapes": (["benchmarks.shapes", *SHAPES, *ON_GPU, "--repeats", "3", "--tokens", "8"], 180),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="all results, by name; written after each")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS), metavar="NAME")
    arguments = parser.parse_args()

    done = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    for name in arguments.only:
        if name not in done and (result := run(name)) is not None:
            done[name] = result
            arguments.json.write_text(json.dumps(done, indent=2) + "\n")
    if missing := [name for name in arguments.only if name not in done]:
        raise SystemExit(f"Not done: {', '.join(missing)}.")


def run(name: str) -> Any:
    """What a command wrote as JSON (true where it only has to succeed), and None if it did not succeed."""
    options, limit = COMMANDS[name]
    begun = perf_counter()
    with TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        command = [sys.executable, "-m", *options, *([] if name == "tests" else ["--json", str(output)])]
        print(f"== {name}", flush=True)
        try:
            code = subprocess.run(command, timeout=limit).returncode
        except subprocess.TimeoutExpired:
            code = None
        outcome = "took too long" if code is None else "done" if code == 0 else f"failed ({code})"
        print(f"== {name}: {outcome}, {perf_counter() - begun:.0f} s", flush=True)
        if code != 0:
            return None
        return json.loads(output.read_text()) if output.exists() else True


if __name__ == "__main__":
    main()
