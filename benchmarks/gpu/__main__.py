"""Measure the engine on a GPU in three calls of at most four minutes each.

    python -m benchmarks.gpu smoke --json results-gpu.json       # 150 s: everything runs and gives correct results
    python -m benchmarks.gpu headline --json results-gpu.json    # 240 s: first token and further tokens
    python -m benchmarks.gpu rest --json results-gpu.json        # 240 s: throughput, other models, memory
    python -m benchmarks.gpu smoke --json rehearsal.json --rehearse   # the same code on the CPU with tiny shapes

Weights are random, have the published shapes and are created on the GPU; nothing is downloaded. Results are written
after every part. A part that does not fit into the remaining time is not started. Run the same command again to run the
missing parts.
"""

import argparse
import time
from pathlib import Path

import torch

from benchmarks.gpu import headline, rest, smoke
from benchmarks.gpu.call import Bench, run_call
from benchmarks.tiny_sizes import use_tiny_sizes

#: The parts of each call, and its time limit in seconds.
CALLS = {"smoke": (smoke.PARTS, 150), "headline": (headline.PARTS, 240), "rest": (rest.PARTS, 240)}


def main() -> None:
    """Run one call; exit with status 1 if a part is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("call", choices=CALLS)
    parser.add_argument("--json", type=Path, required=True, help="results of all calls; written after every part")
    parser.add_argument("--rehearse", action="store_true", help="run on the CPU with tiny shapes")
    parser.add_argument("--seconds", type=float, help="time limit; default: the call's own")
    arguments = parser.parse_args()

    parts, limit = CALLS[arguments.call]
    if arguments.rehearse:
        use_tiny_sizes()
    device, dtype = ("cpu", torch.float32) if arguments.rehearse else ("cuda", torch.bfloat16)
    bench = Bench(device, dtype, arguments.rehearse, time.perf_counter() + (arguments.seconds or limit))
    if not run_call(arguments.call, parts, bench, arguments.json):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
