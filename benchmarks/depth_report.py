"""Measure mini and the trained models of the depth experiment: accuracy pruned, and where the picture is read.

    python -m benchmarks.depth_report --json benchmarks/results/depth.json --plot docs/depth.png

The question: does the gap of the published two-stage schedule on lists shrink as the picture is read earlier? The gap
is what the first stage alone has ahead of both stages at the same budget. The depth is the share of the layers after
which a model has half of what the picture gives it: all tokens are kept up to a layer, and from there on one patch
without an object (`benchmarks/mini/stages.py`). Every figure has a 95 % interval (bootstrap over scenes, paired). A run
that was stopped continues. Models that are in the file of results and are not measured now stay there.
"""

import argparse
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.depth.measurement import (
    BUDGETS,
    LIST_KIND,
    PRUNINGS,
    UNPRUNED_NAME,
    Line,
    depths,
    gone_name,
    measure,
)
from benchmarks.depth.models import SHAPES
from tops_engine.bench.splits import FIRST_SEEDS, Split
from tops_engine.evaluation.intervals import (
    Interval,
    cluster_sums,
    difference_interval,
    in_words,
    interval_of,
    mean_interval,
    relative_interval,
    resampled_totals,
)
from tops_engine.evaluation.plotting import line_style, require_matplotlib, save_figure
from tops_engine.evaluation.prunings import pruning_name
from tops_engine.evaluation.tables import Table
from tops_engine.methods import Positions

Result = dict[str, Any]
SMOLLM2 = "SmolLM2-135M"
ALL_MODELS = ("mini", *(shape.name for shape in SHAPES), SMOLLM2)
#: What two results must have in common to stand in one table.
SETTINGS = ("split", "depth_scenes")
BOTH, FIRST = "tops", "tops:stages=first"
MINMAX, FIRST_MINMAX = "tops:normalization=minmax", "tops:normalization=minmax:stages=first"
#: Two forms each, of which the first is compared with the second. The first pair is the gap of the second stage.
COMPARED = ((FIRST, BOTH), (MINMAX, BOTH), (FIRST_MINMAX, FIRST), ("scope", BOTH))


class Group(NamedTuple):
    """Questions with one score: of short answers and of lists whether they are right, of lists what they name."""

    name: str
    lists: bool
    score: str

    def scores(self, lines: Sequence[Line], asked: str) -> list[float]:
        """Return the score of each question of the group."""
        return [float(one) for line in self._lines(lines, asked) for one in getattr(line, self.score)]

    def losses(self, lines: Sequence[Line], asked: str) -> list[float]:
        """Return how much less likely the unpruned model's answer to each question became, nats a token."""
        return [loss for line in self._lines(lines, asked) for loss in line.losses]

    def scenes(self, lines: Sequence[Line], asked: str) -> list[int]:
        """Return the scene of each question of the group."""
        return [seed for line in self._lines(lines, asked) for seed in line.seeds]

    def _lines(self, lines: Sequence[Line], asked: str) -> list[Line]:
        return [line for line in lines if line.asked == asked and (line.kind == LIST_KIND) == self.lists]


SHORT, LISTS, OBJECTS = Group("short", False, "right"), Group("lists", True, "right"), Group("objects", True, "named")
GROUPS = (SHORT, LISTS, OBJECTS)


def summarise(about: Result, num_layers: int, lines: Sequence[Line]) -> Result:
    """Return the figures of a model: unpruned, pruned, differences of forms, and where the picture is read."""
    first = {group: group.scores(lines, UNPRUNED_NAME) for group in GROUPS}
    result = about | {"layers": num_layers, "scenes": len({seed for line in lines for seed in line.seeds})}
    result["questions"] = {group.name: len(first[group]) for group in GROUPS}
    result["unpruned"] = {
        group.name: _figures(mean_interval([100 * one for one in first[group]], group.scenes(lines, UNPRUNED_NAME)))
        for group in GROUPS
    }
    result["pruned"] = [_pruned(lines, pruning_name(one)) for one in PRUNINGS[1:]]
    result["differences"] = [_difference(lines, *pair, keep) for pair in COMPARED for keep in BUDGETS]
    result["read"] = {group.name: _reading(lines, group, num_layers) for group in (SHORT, OBJECTS)}
    return result


def _pruned(lines: Sequence[Line], name: str) -> Result:
    row: Result = {"name": name}
    for group in GROUPS:
        scenes = group.scenes(lines, name)
        relative = relative_interval(group.scores(lines, name), group.scores(lines, UNPRUNED_NAME), scenes)
        row[group.name] = _figures(relative)
        row[group.name]["loss_increase"] = mean_interval(group.losses(lines, name), scenes).value
    return row


def _difference(lines: Sequence[Line], of: str, against: str, keep: float) -> Result:
    """Return how far one form is ahead of another, in points of the unpruned model's score."""
    difference: Result = {"of": of, "against": against, "keep": keep}
    for group in GROUPS:
        ahead, behind = (group.scores(lines, f"{label} {keep}") for label in (of, against))
        scenes = group.scenes(lines, UNPRUNED_NAME)
        interval = difference_interval(ahead, behind, group.scores(lines, UNPRUNED_NAME), scenes)
        difference[group.name] = _figures(interval) | {"in_words": in_words(interval)}
    return difference


def gaps(result: Result) -> list[Result]:
    """Return what the first stage alone has ahead of both stages, at each budget."""
    return [one for one in result["differences"] if (one["of"], one["against"]) == COMPARED[0]]


def _reading(lines: Sequence[Line], group: Group, num_layers: int) -> Result:
    """Return the mean score with the picture gone from each layer, and where half of the picture's worth is read."""
    layers = [*depths(num_layers), num_layers]
    asked = [*(gone_name(layer) for layer in layers[:-1]), UNPRUNED_NAME]
    scenes = group.scenes(lines, asked[0])
    # The unpruned model answered about more scenes, these first.
    columns = [group.scores(lines, name)[: len(scenes)] for name in asked]
    sums = cluster_sums([*columns, [1.0] * len(scenes)], scenes)
    totals, draws = sums.sum(axis=0), resampled_totals(sums)
    means, drawn = totals[:-1] / totals[-1], draws[:, :-1] / draws[:, -1:]
    halves = np.array([half_depth(one, layers) for one in drawn])
    curve = []
    for number, layer in enumerate(layers):
        of_layer = interval_of(100 * float(means[number]), 100 * drawn[:, number], len(sums))
        curve.append({"gone_from": layer, "share": layer / num_layers} | _figures(of_layer))
    return {"curve": curve, "half": _figures(interval_of(half_depth(means, layers), halves, len(sums)))}


def half_depth(scores: NDArray[np.float64], layers: Sequence[int]) -> float:
    """Return the share of the layers after which half of what the picture gives has been read, interpolated.

    Parameters
    ----------
    scores : mean score with the picture gone from each of ``layers``; the last layer stands for "never".
    """
    level = (scores[0] + scores[-1]) / 2
    place = int(np.argmax(scores >= level))
    if place == 0:
        return layers[0] / layers[-1]
    low, high = scores[place - 1], scores[place]
    part = (level - low) / (high - low)
    return float(layers[place - 1] + part * (layers[place] - layers[place - 1])) / layers[-1]


def _figures(interval: Interval) -> Result:
    return {"value": interval.value, "interval": [interval.low, interval.high]}


def table(results: Sequence[Result]) -> Table:
    """Make a table with a row for each model."""
    headings = ["unpruned short %", "lists %", "objects %", "read at", "95 %"]
    headings += [f"gap {keep}\n{group.name}" for keep in BUDGETS for group in GROUPS]
    made = Table.of_numbers("Gap: first stage alone minus both, points of the unpruned model's score", *headings)
    for result in results:
        half = _interval(result["read"][OBJECTS.name]["half"])
        cells = [f"{result['unpruned'][group.name]['value']:.1f}" for group in GROUPS]
        cells += [f"{half.value:.2f}", half.text(2, "-")]
        for gap in gaps(result):
            cells += [_signed(gap[group.name]) for group in GROUPS]
        made.add_row(result["model"], *cells)
    return made


def _signed(figures: Result) -> str:
    return f"{figures['value']:+.1f} [{_interval(figures).text(1, ', ')}]"


def _interval(figures: Result) -> Interval:
    return Interval(figures["value"], *figures["interval"])


def plot(results: Sequence[Result], path: Path) -> None:
    """Draw how the picture is read, and the gap on lists against the depth at which half of it has been read."""
    pyplot = require_matplotlib("--plot")
    figure, panels = pyplot.subplots(1, 1 + len(BUDGETS), figsize=(14, 4.6), layout="constrained")
    for number, result in enumerate(results):
        style = line_style(number, f"{result['model']} ({result['layers']} layers)")
        read = result["read"][OBJECTS.name]
        shares, values = ([one[name] for one in read["curve"]] for name in ("share", "value"))
        panels[0].errorbar(shares, values, yerr=_error_bars(read["curve"]), **style, capsize=2)
        for panel, gap in zip(panels[1:], gaps(result), strict=True):
            half, points = read["half"], gap[OBJECTS.name]
            bars = {"xerr": _error_bars([half]), "yerr": _error_bars([points])}
            panel.errorbar([half["value"]], [points["value"]], **bars, **style, capsize=3)
    panels[0].set(xlabel="picture gone from this share of the layers", ylabel="objects named in lists, %")
    for panel, keep in zip(panels[1:], BUDGETS, strict=True):
        panel.axvline(3 / 8, color="grey", linestyle=":")
        panel.axhline(0, color="grey", linewidth=0.8)
        title = f"budget {keep}; dotted: the second stage"
        panel.set(title=title, xlabel="share of the layers where half is read", xlim=(0, 1))
    panels[1].set_ylabel("gap on lists: first stage alone minus both, points")
    for panel in panels:
        panel.grid(alpha=0.25)
    panels[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    save_figure(figure, path)


def _error_bars(figures: Sequence[Result]) -> list[list[float]]:
    values = [one["value"] for one in figures]
    # No bar where there are too few scenes for an interval.
    bounds = [_interval(one).bounds or (one["value"], one["value"]) for one in figures]
    below = [max(0.0, value - low) for value, (low, _) in zip(values, bounds, strict=True)]
    return [below, [max(0.0, high - value) for value, (_, high) in zip(values, bounds, strict=True)]]


def report(
    work: Path,
    num_scenes: int,
    num_depth_scenes: int,
    split: Split = "test",
    smollm2: Path | None = None,
    only: Collection[str] = ALL_MODELS,
) -> list[Result]:
    """Measure mini and each model that is trained, and return their figures.

    Parameters
    ----------
    work : folder of the models of the depth experiment, and of the journals.
    smollm2 : folder of the second instrument, which is measured in the type that it was trained in.
    only : names of the models to measure.
    """
    plain = {"seed": None, "drops_tokens": True, "reads_early": False}
    models: list[tuple[str, Result]] = [("mini", {"model": "mini"} | plain)]
    for shape in SHAPES:
        kind = {"seed": shape.seed, "drops_tokens": shape.drops_tokens, "reads_early": shape.reads_early}
        models.append((str(work / shape.name / "model"), {"model": shape.name} | kind))
    if smollm2 is not None:
        models.append((str(smollm2), {"model": SMOLLM2} | plain | {"drops_tokens": False}))
    results = []
    for model, about in models:
        if about["model"] not in only or (model != "mini" and not Path(model, "config.json").exists()):
            continue
        journal = work / about["model"] / f"report-{split}-{num_scenes}.jsonl"
        # A model that never met dropped tokens does not know what it means when the others are numbered anew.
        positions: Positions | None = None if about["drops_tokens"] else "original"
        dtype: Literal["float32", "bfloat16"] = "bfloat16" if about["model"] == SMOLLM2 else "float32"
        num_layers, lines = measure(model, journal, num_scenes, num_depth_scenes, split, positions, dtype)
        results.append(summarise(about, num_layers, lines))
    return results


def with_earlier(made: Result, path: Path) -> Result:
    """Return the results with those of other models in a file, if these are of the same scenes.

    Raises:
        SystemExit: The file's results are of other scenes.
    """
    if not path.exists():
        return made
    earlier = json.loads(path.read_text(encoding="utf-8"))
    of_scenes = [{one["scenes"] for one in result["models"]} for result in (earlier, made)]
    if [earlier[name] for name in SETTINGS] != [made[name] for name in SETTINGS] or of_scenes[0] != of_scenes[1]:
        raise SystemExit(f"The results in {path} are of other scenes; name another file")
    models = {one["model"]: one for one in (*earlier["models"], *made["models"])}
    return made | {"models": sorted(models.values(), key=lambda one: ALL_MODELS.index(one["model"]))}


def main() -> None:
    """Measure, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/depth"), help="folder of the trained models")
    parser.add_argument(
        "--smollm2", type=Path, default=Path("build/smollm2/model"), help="folder of the second instrument, if trained"
    )
    parser.add_argument("--models", nargs="+", choices=ALL_MODELS, default=ALL_MODELS, metavar="MODEL")
    parser.add_argument("--scenes", type=int, default=100, help="scenes that are asked about with every pruning")
    parser.add_argument("--depth-scenes", type=int, default=50, help="of these, with the picture gone from each layer")
    parser.add_argument("--split", choices=list(FIRST_SEEDS), default="test")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 1)), help="CPU threads")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--plot", type=Path, help="draw the results into this picture")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.plot:
        require_matplotlib("--plot")
    results = report(
        arguments.work,
        arguments.scenes,
        arguments.depth_scenes,
        arguments.split,
        arguments.smollm2,
        arguments.models,
    )
    if not results:
        raise SystemExit(f"None of these models is trained: {', '.join(arguments.models)}")
    made = {"split": arguments.split, "depth_scenes": arguments.depth_scenes, "models": results}
    if arguments.json:
        made = with_earlier(made, arguments.json)
        arguments.json.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    print(table(made["models"]))
    if arguments.plot:
        plot(made["models"], arguments.plot)


if __name__ == "__main__":
    main()
