"""Train mini from scratch, stage by stage: render, tower, tokenizer, language, export, evaluate, sample, text.

Every stage continues a run that was stopped, and ends after ``--minutes`` of this run, so that training can be split
into short runs. The learning rate depends on the minutes used of ``--total-minutes``. On 2 CPU cores:

    python -m benchmarks.train_mini render --scenes 120000
    python -m benchmarks.train_mini tower --total-minutes 40 --batch 32 --rate 1.5e-3
    python -m benchmarks.train_mini tokenizer
    python -m benchmarks.train_mini language --total-minutes 50 --rate 2.4e-3
    python -m benchmarks.train_mini export
    python -m benchmarks.train_mini evaluate
    python -m benchmarks.train_mini text --total-minutes 5 --scenes 3000

`text` trains the CLIP text tower that text-guided pruning methods use on mini; it needs only the exported weights.
Write the output of `tower` and `language` to tower.log and language.log in the work folder; `export` copies a part of
it. The frozen tower's features are computed while the language model trains; storing them would save nothing, because
every scene is used about once. A GPU is used if there is one. ``--grid 24`` trains for 336-pixel pictures of 576
tokens.
"""

import argparse
from pathlib import Path

import torch

from tops_engine.mini import mini_path

STAGES = ("render", "tower", "tokenizer", "language", "export", "evaluate", "sample", "text")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--work", type=Path, default=Path("build/mini"), help="folder for data and checkpoints")
    parser.add_argument("--grid", type=int, default=12, help="patches per side")
    parser.add_argument("--scenes", type=int, default=120_000, help="training scenes")
    parser.add_argument("--reading-scenes", type=int, default=40_000, help="training scenes of mostly words and digits")
    parser.add_argument("--minutes", type=float, default=1e9, help="end this run after this many minutes")
    parser.add_argument("--total-minutes", type=float, default=25, help="minutes of all runs of a training stage")
    parser.add_argument("--batch", type=int, default=64, help="scenes per step")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--vision-width", type=int, default=160)
    parser.add_argument("--vision-layers", type=int, default=5)
    parser.add_argument("--text-width", type=int, default=160)
    parser.add_argument("--text-layers", type=int, default=8)
    parser.add_argument("--weights", type=Path, default=mini_path(), help="folder of the exported model")
    parser.add_argument("--test-scenes", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    """Run one stage."""
    settings = parse()
    settings.work.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(settings.workers)
    if settings.stage == "render":
        from benchmarks.mini import data

        data.render(settings.work, settings.scenes, settings.grid, settings.workers)
        data.render(settings.work / "reading", settings.reading_scenes, settings.grid, settings.workers, reading=True)
    elif settings.stage == "tower":
        from benchmarks.mini import tower

        tower.train(settings.work, settings, device)
    elif settings.stage == "tokenizer":
        from benchmarks.mini import vocabulary

        vocabulary.save(settings.work / "processor", settings.grid)
    elif settings.stage == "language":
        from benchmarks.mini import language

        language.train(settings.work, settings, device)
    elif settings.stage == "text":
        from benchmarks.mini import text_tower

        text_tower.train(settings.weights, settings.total_minutes, settings.scenes)
    else:
        from benchmarks.mini import release

        if settings.stage == "export":
            release.export(settings.work, settings)
        elif settings.stage == "evaluate":
            release.evaluate(settings, device)
        else:
            release.sample(mini_path().parent / "sample.jpg")


if __name__ == "__main__":
    main()
