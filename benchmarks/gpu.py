"""Everything that is to be measured on a GPU, in the order of importance, each in a process of its own.

    python -m benchmarks.gpu --out results-gpu
    python -m benchmarks.gpu --out results-gpu --only throughput shapes

Weights are random, of the published shapes, and made on the GPU: nothing is downloaded. About ten minutes on an H100.
What fails or takes too long is named at the end and the rest goes on; what is in the folder already is not done again.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from time import perf_counter

ON_GPU = ["--device", "cuda", "--dtype", "bfloat16"]
SHAPES = ["llava-next-7b", "qwen2.5-vl-7b", "internvl3-8b"]
LARGEST = ["--largest", "--keeps", "1.0,0.111", "--rounds", "1"]

#: By name: the module and its options, and the seconds it may take.
COMMANDS: dict[str, tuple[list[str], int]] = {
    "tests": (["pytest", "-q", "-m", "cuda", "tests/tops_engine"], 150),
    "selection": (["benchmarks.selection", "--device", "cuda", "--tune", "--repeats", "3"], 120),
    "latency-llava-next-7b": (["benchmarks.latency", "--shape", "llava-next-7b", *ON_GPU, "--rounds", "5"], 150),
    "throughput-llava-next-7b": (["benchmarks.throughput", "--shape", "llava-next-7b", *ON_GPU, *LARGEST], 180),
    "reuse-llava-next-7b": (["benchmarks.reuse", "--shape", "llava-next-7b", *ON_GPU, "--repeats", "5"], 90),
    "latency-llava-1.5-7b": (["benchmarks.latency", "--shape", "llava-1.5-7b", *ON_GPU, "--rounds", "5"], 120),
    "reuse-llava-1.5-7b": (["benchmarks.reuse", "--shape", "llava-1.5-7b", *ON_GPU, "--repeats", "5"], 90),
    "shapes": (["benchmarks.shapes", *SHAPES, *ON_GPU, "--repeats", "3", "--tokens", "8"], 180),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for the JSON files and what was printed")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS), metavar="NAME")
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    failed = [name for name in arguments.only if not run(name, arguments.out)]
    if failed:
        raise SystemExit(f"Not done: {', '.join(failed)}; what they printed is in {arguments.out}.")


def run(name: str, folder: Path) -> bool:
    """Whether it succeeded, now or before."""
    options, limit = COMMANDS[name]
    result, printed = folder / f"{name}.json", folder / f"{name}.txt"
    if result.exists():
        return True
    output = [] if name == "tests" else ["--json", str(result)]
    begun = perf_counter()
    with printed.open("w") as file:
        try:
            code = subprocess.run(
                [sys.executable, "-m", *options, *output], stdout=file, stderr=subprocess.STDOUT, timeout=limit
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    outcome = "took too long" if code is None else "done" if code == 0 else f"failed ({code})"
    print(f"== {name}: {outcome}, {perf_counter() - begun:.0f} s\n{printed.read_text()[-3000:]}", flush=True)
    return code == 0


if __name__ == "__main__":
    main()
