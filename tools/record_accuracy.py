"""Measure every method on mini and write the results and the tables: python -m tools.record_accuracy

This takes hours on two cores. A run that was stopped goes on where it stopped. To measure first what decides a
question, name a split and how many of the groups of `FIRST`; what was measured is kept for the whole run:

    python -m tools.record_accuracy --split confirm --first 2

Every method at one budget of that split has a file of its own:

    python -m tools.record_accuracy --split confirm --one-budget
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from tools import method_tables, record_docs
from tools.accuracy_tables import BUDGETS, FORMS, ON_CONFIRM, RESULTS, ROOT
from tops_engine.bench.run import run_bench
from tops_engine.bench.splits import Split
from tops_engine.cli.progress import progress_bar
from tops_engine.engine import Engine
from tops_engine.settings import ModelSpec, Pruning
from tops_engine.settings.labels import read_prunings

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


class Group(NamedTuple):
    """Methods at budgets that are measured together."""

    methods: str
    budgets: Sequence[float]

    def prunings(self) -> list[Pruning]:
        """Return the prunings of the group."""
        return read_prunings(self.methods, ",".join(map(str, self.budgets)))


EVERYTHING = Group(METHODS, BUDGETS)
_MEAN_AND_MINMAX = "tops,tops:normalization=minmax,tops:stages=first,tops:stages=first:normalization=minmax"
#: What is measured first, the most important group first: the forms of TOPS whose difference on the split ``test`` is
#: larger than its noise, where it is largest; the same at the other budgets, where min-max must not be worse; SCOPE,
#: which is compared with TOPS; methods of one criterion, and random choice.
FIRST = (
    Group(_MEAN_AND_MINMAX, (0.056, 0.111)),
    Group(_MEAN_AND_MINMAX, (0.222, 0.5)),
    Group("scope", (0.056, 0.111, 0.222)),
    Group("divprune,visionzip,random", (0.056, 0.111, 0.222)),
)
#: What shows whether the methods keep their order on other scenes.
ONE_BUDGET = Group(f"all,{','.join(FORMS)}", (0.111,))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=get_args(Split), help="measure on this split only; by default on both")
    part = parser.add_mutually_exclusive_group()
    part.add_argument(
        "--first", type=int, choices=range(1, len(FIRST) + 1), help="measure only so many of the most important groups"
    )
    part.add_argument("--one-budget", action="store_true", help="measure only every method at 0.111")
    arguments = parser.parse_args()
    if (arguments.first or arguments.one_budget) and arguments.split != "confirm":
        parser.error("--first and --one-budget need --split confirm; the split test is only measured as a whole.")
    return arguments


def main() -> None:
    """Measure, and write the results and the tables."""
    arguments = parse()
    JOURNALS.mkdir(exist_ok=True)
    engine = Engine.load(ModelSpec(model="mini", device="cpu"))
    if arguments.one_budget:
        measure(engine, arguments.split, RESULTS / ON_CONFIRM, groups=(ONE_BUDGET,))
    else:
        for split in (arguments.split,) if arguments.split else get_args(Split):
            measure(engine, split, RESULTS / f"mini-{split}.json", groups=groups_for(arguments.first))
    method_tables.plot()
    record_docs.main()


def groups_for(number: int | None) -> Sequence[Group]:
    """Return the ``number`` most important groups, or all of them and then everything else."""
    return (*FIRST, EVERYTHING) if number is None else FIRST[:number]


def measure(
    engine: Engine,
    split: Split,
    path: Path,
    num_scenes: int = NUM_SCENES,
    groups: Sequence[Group] = (EVERYTHING,),
) -> None:
    """Measure the groups on the scenes of a split, one after the other, and write the results to a file.

    What is measured stays in the journal of the split: if a run is stopped, a run of fewer groups writes their results.
    """
    prunings: list[Pruning] = []
    journal = JOURNALS / f"accuracy-{split}.jsonl"
    for number, group in enumerate(groups, start=1):
        prunings += group.prunings()
        labels = {pruning.label for pruning in prunings}
        against = [label for label in AGAINST if label in labels]
        with progress_bar(f"scenes ({split}, group {number} of {len(groups)})") as progress:
            result = run_bench(
                engine, prunings, num_scenes, progress=progress, path=journal, against=against, split=split
            )
    path.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
