"""The tables of README and docs about accuracy on mini, made from the results of `tops bench`."""

import json
from collections.abc import Sequence
from pathlib import Path

from tops_engine.bench.report import BenchResult, BenchRow, Difference

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
#: The figures of the weights' card; its times were taken on a quiet machine.
CARD = ROOT / "tops_engine" / "mini" / "weights" / "accuracy.json"
BUDGETS = (0.5, 0.222, 0.111, 0.056)
#: Those at which a smaller picture was measured.
RESIZE_BUDGETS = (0.222, 0.111)
#: Those at which the second instrument was measured, and what its labels add to a method's name.
SECOND_BUDGETS, SECOND_POSITIONS = (0.222, 0.111, 0.056), ":positions=original"
#: Every figure is over all questions, or over those whose answer is short.
ALL, SHORT, LIST = "all", "short", "describe"
#: The methods of the short tables.
SIX = ("tops", "tops:stages=first", "scope", "visionzip", "divprune", "random")
#: Methods at the layer where mini can meet more budgets, and the rectifier, beside all methods.
FORMS = (
    "tops:stages=first", "fastv:layer=1", "dart:layer=1", "transprune:layers=1",
    "divprune:rectify=restore", "scope:rectify=restore", "tops:rectify=restore:stages=first",
)  # fmt: skip
#: Choices of TOPS: the form with the choice, and the form that it is compared with.
CHOICES = {
    "min-max in place of the mean, both stages": ("tops:normalization=minmax", "tops"),
    "min-max in place of the mean, first stage alone": ("tops:normalization=minmax:stages=first", "tops:stages=first"),
    "first stage alone in place of both": ("tops:stages=first", "tops"),
    "first stage alone with min-max in place of both with the mean": ("tops:normalization=minmax:stages=first", "tops"),
    "square root of relevance, both stages": ("tops_square_root", "tops"),
    "square root of relevance, first stage alone": ("tops_square_root:stages=first", "tops:stages=first"),
    "all text tokens as raters": ("tops:raters=all", "tops"),
    "the last text token as rater": ("tops:raters=last", "tops"),
}
#: The results of `tools.record_accuracy`, of `tools.record_square_root` and of other raters (`tops bench`), by split.
CHOICE_FILES = ("mini-{}.json", "mini-square-root-{}.json", "mini-raters-{}.json")

#: Every method at one budget of the split that confirms.
ON_CONFIRM = "mini-confirm-methods.json"

Cells = list[list[str]]


def read(path: Path) -> BenchResult:
    """Return the results in a file."""
    return BenchResult.model_validate_json(path.read_text(encoding="utf-8"))


def by_method() -> Cells:
    """Return the relative accuracy of six methods on 500 scenes, best first at 0.111, with its 95 % interval."""
    result = read(RESULTS / "mini-test.json")
    cells = [
        ["method", *(heading for keep in BUDGETS for heading in (str(keep), "95 %")), "loss + at 0.111", "at 0.056"]
    ]
    for label, rows in _by_method(result):
        if label not in SIX:
            continue
        cells.append([f"`{label}`", *_relative(rows), *map(_loss, rows[2:])])
    return cells


def in_readme() -> Cells:
    """Return the relative accuracy of six methods on 500 scenes."""
    cells = [["method", *map(str, BUDGETS)]]
    for label, rows in _by_method(read(RESULTS / "mini-test.json")):
        if label in SIX:
            cells.append([f"`{label}`", *(_percent(row.relative) for row in rows)])
    return cells


def every_method() -> Cells:
    """Return the relative accuracy of every method on 500 scenes; empty where a budget cannot be met."""
    cells = [["method", *map(str, BUDGETS), "loss + at 0.111", "at 0.056"]]
    for label, rows in _by_method(read(RESULTS / "mini-test.json")):
        if (":" not in label or label in FORMS) and any(row.relative for row in rows):
            cells.append([f"`{label}`", *(_percent(row.relative) for row in rows), *map(_loss, rows[2:])])
    return cells


def every_method_on_both_splits() -> Cells:
    """Return the relative accuracy of every method at 0.111 on both splits, and its difference from TOPS."""
    keep = BUDGETS[2]
    test, confirm = read(RESULTS / "mini-test.json"), read(RESULTS / ON_CONFIRM)
    cells = [["method", "`test`", "95 %", "`confirm`", "95 %", "minus `tops`, `test`", "`confirm`"]]
    for label, _ in _by_method(test):
        rows = [_row(result, label, keep) for result in (test, confirm)]
        if (":" not in label or label in FORMS) and all(row.relative for row in rows):
            from_tops = [_difference([result], label, "tops", keep) for result in (test, confirm)]
            found = [cell for one in from_tops for cell in _difference_cells(one, [ALL])]
            cells.append([f"`{label}`", *_relative(rows), *found])
    return cells


def by_kind() -> Cells:
    """Return accuracy by kind of question, and times, of TOPS and random choice on 500 scenes."""
    result = read(CARD)
    kinds = list(result.num_questions)
    times = ["select ms", "first token ms"]
    cells = [["method", "keep", "tokens", *kinds, "all", "relative", "loss +", *times]]
    for row, name in [(result.rows[0], "unpruned"), (result.rows[1], "*objects only*")]:
        cells.append([name, "", *_figures(row, kinds)])
    for label in ("tops", "random"):
        rows = [row for row in result.rows[2:] if row.method == label and row.keep != BUDGETS[0]]
        cells += [[f"`{label}`", str(row.keep), *_figures(row, kinds)] for row in rows]
    return cells


def with_and_without_lists() -> Cells:
    """Return relative accuracy over all questions, and in brackets over those whose answer is short."""
    result = read(RESULTS / "mini-test.json")
    base = _short(result.rows[0], result)
    methods = dict(_by_method(result))
    labels = ["tops", "tops:stages=first", "scope", "visionzip", "divprune"]
    cells = [["keep", *(f"`{label}`" for label in labels)]]
    for number, keep in enumerate(BUDGETS):
        rows = [methods[label][number] for label in labels]
        cells.append(
            [str(keep), *(f"{_percent(row.relative)} ({_percent(_short(row, result) / base)})" for row in rows)]
        )
    return cells


def smaller_picture() -> Cells:
    """Return accuracy by kind of question of pruning and of a smaller picture on 100 scenes."""
    result = read(RESULTS / "mini-resize.json")
    kinds = list(result.num_questions)
    cells = [["", "tokens", *kinds, ALL, "relative", "95 %"]]
    for row in result.rows:
        if row.method in ("none", "oracle") or row.keep in RESIZE_BUDGETS:
            name = {"none": "unpruned", "oracle": "*objects only*"}.get(row.method, f"`{row.name}`")
            cells.append([name, *_by_kinds(row, kinds), *_relative([row])])
    return cells


def second_instrument() -> Cells:
    """Return the relative accuracy of every method on the second instrument, best first at 0.222, with its interval."""
    result = read(RESULTS / "smollm2.json")
    labels = dict.fromkeys(row.method for row in result.rows[2:])
    found = [(label, [_row(result, label, keep) for keep in SECOND_BUDGETS]) for label in labels]
    found.sort(key=lambda item: -(item[1][0].relative or 0.0))
    cells = [["method", *(heading for keep in SECOND_BUDGETS for heading in (str(keep), "95 %"))]]
    objects_only = ["*objects only*", *_relative([result.rows[1]])]
    cells.append(objects_only + [""] * (len(cells[0]) - len(objects_only)))
    for label, rows in found:
        if any(row.relative for row in rows):
            cells.append([f"`{label.replace(SECOND_POSITIONS, '')}`", *_relative(rows)])
    return cells


def second_instrument_by_kind() -> Cells:
    """Return the second instrument's accuracy by kind of question: unpruned, objects only, TOPS and random choice."""
    result = read(RESULTS / "smollm2.json")
    kinds = list(result.num_questions)
    cells = [["", "tokens", *kinds, ALL, "relative", "95 %"]]
    named = [(result.rows[0], "unpruned"), (result.rows[1], "*objects only*")]
    for label in ("tops", "random"):
        rows = [_row(result, label + SECOND_POSITIONS, keep) for keep in SECOND_BUDGETS]
        named += [(row, f"`{label} {row.keep}`") for row in rows if row.relative is not None]
    cells += [[name, *_by_kinds(row, kinds), *_relative([row])] for row, name in named]
    return cells


def easy_and_hard() -> Cells:
    """Return the right answers on questions that a smaller picture answers at the same budget, and on the others."""
    cells = [["", "budget", "easy, n", "%", "95 %", "hard, n", "%", "95 %"]]
    for one in read(RESULTS / "mini-resize.json").halves:
        halves = [half.cells() if half is not None else ("0", "", "") for half in (one.easy, one.hard)]
        name = one.name if one.name == "unpruned" else f"`{one.name}`"
        cells.append([name, one.budget, *halves[0], *halves[1]])
    return cells


def differences() -> Cells:
    """Return how far SCOPE and TOPS's first stage are from TOPS, in points with paired 95 % intervals."""
    pairs = [("scope", ALL), ("scope", SHORT), ("tops:stages=first", ALL), ("tops:stages=first", SHORT)]
    methods = dict(_by_method(read(RESULTS / "mini-test.json")))
    header = [f"`{label}` minus `tops`, {group}" for label, group in pairs]
    cells = [["keep", *header]]
    for number, keep in enumerate(BUDGETS):
        found = []
        for label, group in pairs:
            (one,) = [one for one in methods[label][number].differences if one.against == "tops"]
            found += _difference_cells(one, [group])
        cells.append([str(keep), *found])
    return cells


def choices() -> Cells:
    """Return what choices of TOPS change, in points with paired 95 % intervals, on both splits."""
    splits, groups = ("test", "confirm"), (ALL, SHORT)
    paths = {split: [RESULTS / name.format(split) for name in CHOICE_FILES] for split in splits}
    results = {split: [read(path) for path in paths[split] if path.exists()] for split in splits}
    cells = [["choice", "keep", *(f"`{split}`, {group}" for split in splits for group in groups)]]
    for name, (label, against) in CHOICES.items():
        for keep in BUDGETS:
            found = [_difference(results[split], label, against, keep) for split in splits]
            if any(found):
                cells.append([name, str(keep), *(cell for one in found for cell in _difference_cells(one, groups))])
    return cells


def raters_on_other_models() -> Cells:
    """Return what all text tokens as raters change on models that read their picture late, by model and budget."""
    cells = [["model", "keep", "short answers"]]
    for path in sorted(RESULTS.glob("raters-*.json")):
        for row in read(path).rows:
            if "raters=all" in row.method:
                (one,) = row.differences
                cells.append([path.stem.removeprefix("raters-"), str(row.keep), *_difference_cells(one, [SHORT])])
    return cells


def _difference(results: Sequence[BenchResult], label: str, against: str, keep: float) -> Difference | None:
    rows = [_row(result, label, keep) for result in results]
    return next((one for row in rows for one in row.differences if one.against == against), None)


def _difference_cells(difference: Difference | None, groups: Sequence[str]) -> list[str]:
    """Return a cell for each group of questions; empty where the difference was not measured."""
    if difference is None:
        return [""] * len(groups)
    cells = []
    for group in groups:
        bounds = difference.intervals[group]
        interval = "" if bounds is None else f" [{bounds[0]:.1f}, {bounds[1]:.1f}]"
        cells.append(f"{difference.points[group]:+.1f}{interval}")
    return cells


def budgets() -> Cells:
    """Return accuracy on mini against mean tokens: fixed budgets, allocations and some cascades, by form of TOPS."""
    result = json.loads((RESULTS / "mini-budgets.json").read_text(encoding="utf-8"))
    cells = [["form", "budget", "mean keep", "relative %", "95 %", "points from fixed", "95 %"]]
    for row in result["rows"]:
        if row["kind"] == "cascade" and row["confident"] not in (0.2, 0.5, 0.8) and not row["chosen"]:
            continue
        kind = "" if row["kind"] == "fixed" else f"{row['kind']} "
        sure = f", confident {row['confident']}" if "confident" in row else ""
        cells.append([f"`{row['form']}`", f"{kind}{row['budget']}{sure}{' (chosen)' if row.get('chosen') else ''}"])
        cells[-1] += [f"{row['mean_keep']:.3f}", f"{row['relative']:.1f}", _range(row["interval"])]
        against = f" (from {row['against']})" if "against" in row else ""
        cells[-1] += [f"{row['points']:+.1f}{against}", _range(row["points_interval"])] if against else ["", ""]
    return cells


def _range(interval: Sequence[float]) -> str:
    return f"{interval[0]:.1f} to {interval[1]:.1f}"


def _by_method(result: BenchResult) -> list[tuple[str, list[BenchRow]]]:
    """Return the rows of each method in the order of the budgets, the best method at 0.111 first."""
    labels = dict.fromkeys(row.method for row in result.rows[2:])
    found = [(label, [_row(result, label, keep) for keep in BUDGETS]) for label in labels]
    return sorted(found, key=lambda item: [-(item[1][number].relative or 0.0) for number in (2, 1, 0)])


def _row(result: BenchResult, label: str, keep: float) -> BenchRow:
    # The control is measured at one budget, with no other row of its method.
    rows = [row for row in result.rows if (row.method, row.keep) == (label, keep)]
    return rows[0] if rows else BenchRow(method=label, keep=keep)


def _short(row: BenchRow, result: BenchResult) -> float:
    """Return the accuracy over questions whose answer is short."""
    counts = {kind: count for kind, count in result.num_questions.items() if kind != LIST}
    return sum(row.accuracy[kind] * count for kind, count in counts.items()) / sum(counts.values())


def _figures(row: BenchRow, kinds: Sequence[str]) -> list[str]:
    rest = [_percent(row.relative), f"{row.loss_increase:.3f}", f"{row.selection_ms:.2f}", f"{row.first_token_ms:.2f}"]
    return [*_by_kinds(row, kinds), *rest]


def _by_kinds(row: BenchRow, kinds: Sequence[str]) -> list[str]:
    """Return the number of visual tokens, and the accuracy by kind of question and over all."""
    return [f"{row.layer_average:.1f}", *(f"{100 * row.accuracy[kind]:.1f}" for kind in [*kinds, ALL])]


def _relative(rows: Sequence[BenchRow]) -> list[str]:
    """Return the relative accuracy of each row, with its interval."""
    return [cell for row in rows for cell in (_percent(row.relative), _bounds(row.relative_interval))]


def _loss(row: BenchRow) -> str:
    return "" if row.loss_increase is None else f"{row.loss_increase:.3f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _bounds(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{100 * interval[0]:.1f}-{100 * interval[1]:.1f}"
