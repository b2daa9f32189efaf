"""The table of a reproduction: ours, the paper's, the difference, and intervals."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tops_engine.evaluation.halves import Halves, split_by_resize
from tops_engine.evaluation.intervals import Interval, interval_of
from tops_engine.evaluation.prunings import UNPRUNED as NOTHING_PRUNED
from tops_engine.evaluation.tables import Notes, Table
from tops_engine.reproduction.plan import UNPRUNED, Plan, PlannedRun
from tops_engine.reproduction.protocols import Protocol, read_protocols, relative_average
from tops_engine.reproduction.scores import Scored, paired_draws
from tops_engine.settings import Pruning

Scores = Mapping[str, Mapping[str, Scored]]


def relative_accuracy(protocol: Protocol, pruned: Mapping[str, Scored], unpruned: Mapping[str, Scored]) -> Interval:
    """Return the relative accuracy in percent, averaged as the paper does, with a paired bootstrap interval.

    The bounds are not known if a benchmark has too few pictures, or none of them has scores of single questions.
    """
    values = {name: one.value for name, one in pruned.items()}
    base = {name: unpruned[name].value for name in pruned}
    draws = {name: paired_draws(pruned[name], unpruned[name], seed) for seed, name in enumerate(pruned)}
    fewest = min((len(one.sums) for one in pruned.values() if one.sums is not None), default=0)
    return interval_of(relative_average(values, base, protocol.average), _average_draws(protocol, draws), fewest)


def reproduction_table(
    plan: Plan,
    protocol: Protocol,
    scores: Scores,
    averages: Mapping[str, float],
    hours: float | None = None,
    origin: str | None = None,
) -> Table:
    """Return a row for each run: scores with the paper's in brackets, and the relative accuracy.

    Parameters
    ----------
    averages : the true layer-average of each run.
    hours : how long all questions take at the speed of a sample.
    origin : how the table was made: command, versions, precision and seed.
    """
    sample = f", {plan.sample} questions of each benchmark" if plan.sample is not None else ""
    title = f"{plan.model} ({plan.checkpoint}), paper {plan.paper}{sample}: ours (the paper's)"
    table = Table.of_numbers(title, *plan.benchmarks, "tokens", "relative %", "95 %", "paper", "difference")
    notes = Notes()
    for run in plan.runs:
        table.add_row(run.name, *_cells(plan, protocol, run, scores, averages, notes))
    table.notes = [
        "Relative: to the unpruned model in the same run, averaged as in the paper "
        f"({protocol.average}); 95 %: paired bootstrap over pictures.",
        *notes.lines(),
        *([f"At this speed all questions take about {hours:.1f} hours."] if plan.sample is not None and hours else []),
        *[f"Not run: {reason}" for reason in plan.skipped.values()],
        *plan.notes,
        *([origin] if origin is not None else []),
    ]
    return table


def reproduction_halves(plan: Plan, scores: Scores) -> list[Halves]:
    """Return the scores on the questions that ``resize`` answers at the same budget, and on the others.

    Benchmarks of which only the score of all questions is known are left out.
    """
    found = []
    for benchmark in plan.benchmarks:
        of = {run.name: scores[run.name][benchmark] for run in plan.runs}
        questions = sorted(of[UNPRUNED].answered, key=str)
        if not questions or any(one.answered.keys() != set(questions) for one in of.values()):
            continue
        named = {_pruning(run): run.name for run in plan.runs}
        halves = split_by_resize(
            {pruning: [of[name].answered[question] for question in questions] for pruning, name in named.items()},
            [of[UNPRUNED].pictures[question] for question in questions],
            named,
        )
        found += [half.model_copy(update={"name": f"{benchmark}: {half.name}"}) for half in halves]
    return found


def _pruning(run: PlannedRun) -> Pruning:
    """Return the pruning of a run by its label and budget."""
    if run.method is None or run.budget is None:
        return NOTHING_PRUNED
    return Pruning.from_label(run.method, run.budget)


def _cells(
    plan: Plan, protocol: Protocol, run: PlannedRun, scores: Scores, averages: Mapping[str, float], notes: Notes
) -> list[str]:
    own, unpruned = scores[run.name], scores[UNPRUNED]
    row = protocol.row(run.method, run.budget) if run.method is not None and run.budget is not None else None
    published = protocol.unpruned if run.name == UNPRUNED else row.scores if row is not None else {}
    cells = [f"{own[name].value:.1f}" + (f" ({published[name]:.1f})" if name in published else "") for name in own]
    cells.append(f"{averages[run.name]:.1f}")
    if run.name == UNPRUNED:
        return [*cells, "100.0", "", "", ""]
    relative = relative_accuracy(protocol, own, unpruned)
    cells += [f"{relative.value:.1f}", relative.text(1, "-")]
    if row is None:
        return [*cells, "-", "-"]
    mark = ""
    if list(plan.benchmarks) != protocol.benchmarks:
        mark = notes.mark("The paper's average is over other benchmarks than those that ran here.")
    return [*cells, f"{row.relative:.1f}{mark}", f"{relative.value - row.relative:+.1f}"]


def _average_draws(
    protocol: Protocol, draws: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
) -> NDArray[np.float64]:
    """Return the relative accuracy of every draw, averaged as :func:`relative_average` does."""
    scale = {name: read_protocols().benchmarks[name].scale for name in draws}
    if protocol.average == "mean of ratios":
        return np.asarray(100 * sum(pruned / unpruned for pruned, unpruned in draws.values()) / len(draws))
    pruned = sum(draws[name][0] / scale[name] for name in draws)
    unpruned = sum(draws[name][1] / scale[name] for name in draws)
    return np.asarray(100 * pruned / unpruned)
