"""Compare TOPS on the square root of relevance with TOPS as published, on 500 scenes.

    python -m tools.record_square_root --split test

The attention of [CLS] is very uneven: a few tokens have most of it. Its square root brings other tokens closer to them.
What `tools.record_accuracy` measured is copied from its journal and not asked again. A run that was stopped goes on.
"""

import argparse
import shutil
from collections.abc import Sequence
from typing import get_args

from torch import Tensor

from tools.accuracy_tables import BUDGETS, RESULTS
from tools.record_accuracy import JOURNALS, NUM_SCENES
from tops_engine import Engine, ModelSpec
from tops_engine.bench.run import run_bench
from tops_engine.bench.splits import Split
from tops_engine.cli.progress import progress_bar
from tops_engine.methods.tops import TOPS
from tops_engine.settings.labels import read_prunings

FORMS = "tops,tops:stages=first,tops_square_root,tops_square_root:stages=first"
AGAINST = ("tops", "tops:stages=first")


class SquareRootTOPS(TOPS):
    """Choose as TOPS does, by the square root of relevance at both stages."""

    name = "tops_square_root"
    source = "this project"

    def _orders(self, features: list[Tensor], relevances: list[Tensor], counts: Sequence[int]) -> list[Tensor]:
        return super()._orders(features, [relevance.sqrt() for relevance in relevances], counts)


def measure(split: Split, num_scenes: int = NUM_SCENES, budgets: Sequence[float] = BUDGETS) -> None:
    """Measure on the scenes of a split, and write the results to a file."""
    journal, known = JOURNALS / f"square-root-{split}.jsonl", JOURNALS / f"accuracy-{split}.jsonl"
    if known.exists() and not journal.exists():
        shutil.copy(known, journal)
    engine = Engine.load(ModelSpec(model="mini", device="cpu"))
    prunings = read_prunings(FORMS, ",".join(map(str, budgets)))
    with progress_bar(f"scenes ({split})") as progress:
        result = run_bench(engine, prunings, num_scenes, progress=progress, path=journal, against=AGAINST, split=split)
    path = RESULTS / f"mini-square-root-{split}.json"
    path.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Measure on one split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=get_args(Split), default="test")
    measure(parser.parse_args().split)


if __name__ == "__main__":
    main()
