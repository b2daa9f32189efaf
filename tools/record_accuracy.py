"""Measure every method on mini and write the results and the tables: python -m tools.record_accuracy

This takes hours on two cores. A run that was stopped goes on where it stopped.
"""

from pathlib import Path
from typing import get_args

from tools import method_tables, record_docs
from tools.accuracy_tables import BUDGETS, RESULTS, ROOT
from tops_engine.bench.run import run_bench
from tops_engine.bench.splits import Split
from tops_engine.cli.progress import progress_bar
from tops_engine.engine import Engine
from tops_engine.settings import ModelSpec
from tops_engine.settings.labels import read_labels, read_prunings

#: Every method, and forms of some that the documentation compares.
METHODS = (
    "all,tops:stages=first,tops:stages=second,tops:normalization=minmax,tops:stages=first:normalization=minmax,"
    "tops:criteria=relevance,tops:criteria=coverage,tops:criteria=diversity,cdpruner:text_space=llm,"
    "fastv:layer=1,fastv_reverse:layer=1,fastv_window:layer=1,dart:layer=1,transprune:layers=1,"
    "divprune:rectify=restore,scope:rectify=restore,tops:stages=first:rectify=restore"
)
AGAINST = ("tops", "tops:stages=first", "scope")
NUM_SCENES = 500
JOURNALS = ROOT / "build"


def main() -> None:
    JOURNALS.mkdir(exist_ok=True)
    engine = Engine.load(ModelSpec(model="mini", device="cpu"))
    for split in get_args(Split):
        measure(engine, split, RESULTS / f"mini-{split}.json")
    method_tables.plot()
    record_docs.main()


def measure(engine: Engine, split: Split, path: Path, num_scenes: int = NUM_SCENES, methods: str = METHODS) -> None:
    """Measure the methods on the scenes of a split and write the results to a file."""
    prunings = read_prunings(methods, ",".join(map(str, BUDGETS)))
    against = [label for label in AGAINST if label in read_labels(methods)]
    journal = JOURNALS / f"accuracy-{split}.jsonl"
    with progress_bar(f"scenes ({split})") as progress:
        result = run_bench(engine, prunings, num_scenes, progress=progress, path=journal, against=against, split=split)
    path.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
