"""Train the models of the depth experiment: mini's frozen tower before language models of 16 and 24 thin layers.

    python -m benchmarks.train_depth features
    OMP_NUM_THREADS=1 nice python -m benchmarks.train_depth train
    python -m benchmarks.train_depth list

mini reads its picture late, in layers 4 to 6 of 8, and there the published schedule of TOPS hurts lists. The experiment
asks whether it hurts less in models that read the picture in an earlier part of their layers. `features` computes once
what the tower sees in the training scenes. `train` trains all models one after the other, or those named with
``--models``; a run that was stopped continues, and SIGTERM ends it with a checkpoint. `list` prints which are trained.
`python -m benchmarks.depth_report` measures those.
"""

import argparse
import os
from pathlib import Path

import torch

from benchmarks.depth import features
from benchmarks.depth.models import SHAPES
from benchmarks.depth.training import Plan, train

STAGES = ("features", "train", "list")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    names = [shape.name for shape in SHAPES]
    parser.add_argument("--work", type=Path, default=Path("build/depth"), help="folder of features and checkpoints")
    parser.add_argument("--models", nargs="+", choices=names, default=names, metavar="NAME", help="models to train")
    parser.add_argument("--scenes", type=int, default=Plan().scenes, help="training scenes")
    parser.add_argument("--steps", type=int, default=Plan().steps, help="steps of each model")
    parser.add_argument("--rate", type=float, default=Plan().peak_rate, help="peak learning rate")
    parser.add_argument(
        "--compile", action="store_true", help="compile the layers: a fifth less time, needs a C++ compiler"
    )
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 1)), help="CPU threads")
    return parser.parse_args()


def main() -> None:
    """Run one stage."""
    settings = parse()
    torch.set_num_threads(settings.threads)
    if settings.stage == "features":
        features.compute(settings.work, settings.scenes)
        return
    plan = Plan(scenes=settings.scenes, steps=settings.steps, peak_rate=settings.rate, compiled=settings.compile)
    for shape in SHAPES:
        if shape.name not in settings.models:
            continue
        if settings.stage == "list":
            ready = (settings.work / shape.name / "model" / "config.json").exists()
            print(f"{shape.name:28} {'trained' if ready else ''}")
        elif not train(settings.work, shape, plan):
            raise SystemExit(f"{shape.name} was stopped; run this command again to continue.")


if __name__ == "__main__":
    main()
