"""Measure every method on the trained instrument."""

from pathlib import Path

from benchmarks.depth.measurement import LIST_KIND
from tops_engine.bench.run import run_bench
from tops_engine.cli.progress import progress_bar
from tops_engine.engine import Engine
from tops_engine.mini.questions import KINDS
from tops_engine.settings import ModelSpec
from tops_engine.settings.labels import read_prunings

METHODS = "all,tops:stages=first,tops:normalization=minmax,tops:stages=first:normalization=minmax"
BUDGETS = "0.222,0.111,0.056"
AGAINST = ("tops:positions=original", "scope:positions=original")


def measure(work: Path, path: Path, num_scenes: int) -> None:
    """Write the results of all methods on short answers to a file; a run that was stopped continues.

    Lists of all objects are left out: the model writes them, but few of its lists are right as a whole.

    Kept tokens have their original positions. The model never met dropped tokens in training, so it expects a token at
    its own position, and the question behind 144 others.
    """
    engine = Engine.load(ModelSpec(model=str(work / "model"), device="cpu", dtype="bfloat16"))
    with progress_bar("scenes") as progress:
        result = run_bench(
            engine,
            read_prunings(METHODS, BUDGETS),
            num_scenes,
            progress=progress,
            path=work / f"accuracy-{num_scenes}.jsonl",
            against=AGAINST,
            kinds=[kind for kind in KINDS if kind != LIST_KIND],
            positions="original",
        )
    path.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
