"""The tables of docs/methods.md: which method to take, by what is wanted, made from benchmarks/results.

Each method has the figures of the run with the most scenes that measured it. What was not measured is named.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from vllm_tops.settings import for_vllm

from tools.accuracy_tables import BUDGETS, RESULTS, Cells, read
from tops_engine.bench.report import BenchResult, BenchRow
from tops_engine.errors import TopsError
from tops_engine.methods import METHODS
from tops_engine.settings import Pruning

#: Runs of `tops bench`, those with few scenes first.
RUNS = ("mini-methods.json", "mini-test.json")
#: What `python -m benchmarks.methods_time` writes.
TIMES = RESULTS / "methods-time.json"
#: Options that stand beside the methods in these tables: a stage of TOPS alone, as vLLM runs it, and the rectifier.
FORMS = ("tops:stages=first", "tops:rectify=restore:stages=first", "scope:rectify=restore", "divprune:rectify=restore")
#: Methods between layers that read hidden states of the picture alone, which no text behind it changes.
WITHOUT_TEXT = ("v2drop",)
#: As many names as a cell of the verdict shows.
MOST_NAMES = 4
NOT_MEASURED = "not measured"


class Measured(NamedTuple):
    """A method's rows by budget, and on how many scenes they were measured."""

    label: str
    scenes: int
    rows: dict[float, BenchRow]


def wanted() -> Cells:
    """Return the best methods at each budget, by what is wanted."""
    wants: list[tuple[str, Callable[[str], bool]]] = [
        ("best answers", lambda label: True),
        ("no text needed", lambda label: not reads_text(label)),
        ("works in vLLM", works_in_vllm),
    ]
    cells = [["", *map(str, BUDGETS)]]
    for want, allows in wants:
        candidates = [one for one in measured() if allows(one.label) and one.label != "resize"]
        cells.append([want, *(_best(candidates, keep) for keep in BUDGETS)])
    cells.append(["fastest first token", *(_fastest(keep) for keep in BUDGETS)])
    return cells


def answers() -> Cells:
    """Return the relative accuracy of every method with its 95 % interval, best first at 0.111."""
    cells = [["method", "scenes", *map(str, BUDGETS)]]
    for one in measured():
        cells.append([f"`{one.label}`", str(one.scenes), *(_answer(one.rows.get(keep)) for keep in BUDGETS)])
    return cells


def fidelity() -> Cells:
    """Return how much less likely the unpruned model's answers become, the least first at 0.111."""

    def loss(one: Measured, keep: float) -> float:
        found = one.rows[keep].loss_increase if keep in one.rows else None
        return float("inf") if found is None else found

    cells = [["method", "scenes", *map(str, BUDGETS)]]
    for one in sorted(measured(), key=lambda one: [loss(one, keep) for keep in (0.111, 0.222, 0.5)]):
        losses = [loss(one, keep) for keep in BUDGETS]
        shown = ["" if value == float("inf") else f"{value:.3f}" for value in losses]
        cells.append([f"`{one.label}`", str(one.scenes), *shown])
    return cells


def times() -> Cells:
    """Return the times to the first token, in percent of unpruned, fastest first at 0.111."""
    cells = [["method", *(cell for keep in BUDGETS for cell in (f"{keep}: select ms", "first token %"))]]
    by_label: dict[str, dict[float, dict[str, Any]]] = {}
    for row in _times():
        by_label.setdefault(row["method"], {})[row["keep"]] = row
    by_label.pop("none", None)

    def ratio(rows: dict[float, dict[str, Any]], keep: float) -> float:
        return float(rows.get(keep, {}).get("first_token_ratio", float("inf")))

    for label, rows in sorted(
        by_label.items(), key=lambda item: [ratio(item[1], keep) for keep in (0.111, 0.222, 0.5)]
    ):
        figures = [cell for keep in BUDGETS for cell in _time_cells(rows.get(keep))]
        cells.append([f"`{label}`", *figures])
    return cells


def needs() -> Cells:
    """Return what each method reads and where it runs."""
    cells = [["method", "reads the text", "works in vLLM", "for videos"]]
    for label in _labels():
        method = METHODS[label.partition(":")[0]]
        answers_of = reads_text(label), works_in_vllm(label), method.for_videos
        cells.append([f"`{label}`", *("yes" if answer else "" for answer in answers_of)])
    return cells


def not_measured() -> str:
    """Return what has no figures, as sentences."""
    known = {one.label for one in measured()}
    missing = [f"`{label}`" for label in _labels() if label not in known and not _for_videos(label)]
    timed = {row["method"] for row in _times()}
    untimed = [f"`{label}`" for label in _labels() if label not in timed and not _for_videos(label)]
    few = sorted({one.scenes for one in measured()})
    sentences = [f"Accuracy and fidelity: {_names(missing)}."]
    sentences.append(f"Time to the first token: {_names(untimed) if timed else 'no method yet'}.")
    if len(few) > 1:
        sentences.append(f"Methods with {few[0]} in the column *scenes* were not asked about all {few[-1]}.")
    return "\n".join(f"- {sentence}" for sentence in sentences)


def by_kind() -> str:
    """Return accuracy by kind of question, in percent of the unpruned model's: one table for each budget."""
    result = max((read(RESULTS / name) for name in RUNS), key=lambda one: len({row.method for row in one.rows}))
    questions, right = sum(result.num_questions.values()), result.rows[0].accuracy["all"]
    parts = [
        f"{questions:,} questions about {result.num_scenes} scenes; unpruned, {100 * right:.1f} % of the answers are "
        "right."
    ]
    for keep in BUDGETS:
        rows = [row for row in result.rows[2:] if row.keep == keep]
        parts.append(f"### keep {keep}\n\n{_kinds(rows, result)}")
    return "\n\n".join(parts)


def plot() -> None:
    """Draw accuracy and loss against the budget: docs/methods.png."""
    result = max((read(RESULTS / name) for name in RUNS), key=lambda one: len({row.method for row in one.rows}))
    plain = [row for row in result.rows if row.keep is None or ":" not in row.method]
    result.model_copy(update={"rows": plain}).plot(RESULTS.parents[1] / "docs" / "methods.png")


@cache
def measured() -> list[Measured]:
    """Return the methods that were measured, the best at 0.111 first."""
    found: dict[str, Measured] = {}
    for name in RUNS:
        result = read(RESULTS / name)
        for label in dict.fromkeys(row.method for row in result.rows[2:]):
            if label not in _labels():
                continue
            rows = [row for row in result.rows[2:] if row.method == label and row.relative is not None]
            by_keep = {row.keep: row for row in rows if isinstance(row.keep, float)}
            if by_keep:
                found[label] = Measured(label, result.num_scenes, by_keep)
    return sorted(found.values(), key=lambda one: [-_relative(one, keep) for keep in (0.111, 0.222, 0.5)])


@cache
def reads_text(label: str) -> bool:
    """Return whether a method with its options reads the question or other text of the prompt."""
    method = Pruning.from_label(label, "0.5").method_instance
    return method.reads_question or (method.prunes_between_layers and method.name not in WITHOUT_TEXT)


@cache
def works_in_vllm(label: str) -> bool:
    """Return whether vLLM runs a method with its options as the engine does."""
    try:
        pruning = Pruning.from_label(label, "0.5")
        return for_vllm(pruning).method_instance == pruning.method_instance
    except TopsError:
        return False


def _labels() -> list[str]:
    """Return the methods and forms of the tables in the order of their names."""
    return sorted({*METHODS, *FORMS} - {"none"})


def _for_videos(label: str) -> bool:
    return METHODS[label.partition(":")[0]].for_videos


def _relative(one: Measured, keep: float) -> float:
    row = one.rows.get(keep)
    return -1.0 if row is None or row.relative is None else row.relative


def _best(candidates: Iterable[Measured], keep: float) -> str:
    """Return the best method, and those of the same run whose intervals reach its own."""
    ranked = sorted((one for one in candidates if keep in one.rows), key=lambda one: -_relative(one, keep))
    if not ranked:
        return NOT_MEASURED
    first = ranked[0].rows[keep]
    low = first.relative if first.relative_interval is None else first.relative_interval[0]
    same = [one for one in ranked if one.scenes == ranked[0].scenes and _reaches(one.rows[keep], low)]
    return _listed([f"`{one.label}` {100 * _relative(one, keep):.1f}" for one in same])


def _reaches(row: BenchRow, low: float | None) -> bool:
    high = row.relative if row.relative_interval is None else row.relative_interval[1]
    return high is not None and low is not None and high >= low


def _fastest(keep: float) -> str:
    rows = [row for row in _times() if row["keep"] == keep and "first_token_ratio" in row]
    if not rows:
        return NOT_MEASURED
    rows.sort(key=lambda row: row["first_token_ratio"])
    return _listed([f"`{row['method']}` {100 * row['first_token_ratio']:.0f} %" for row in rows[:MOST_NAMES]])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def _answer(row: BenchRow | None) -> str:
    if row is None or row.relative is None:
        return ""
    interval = row.relative_interval
    return f"{100 * row.relative:.1f}" + (
        "" if interval is None else f" ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})"
    )


def _times() -> list[dict[str, Any]]:
    return json.loads(TIMES.read_text(encoding="utf-8"))["results"] if TIMES.exists() else []


def _time_cells(row: dict[str, Any] | None) -> list[str]:
    if row is None or row["error"] is not None:
        return ["", ""]
    return [f"{1e3 * row['seconds']['selection']:.2f}", f"{100 * row['first_token_ratio']:.0f}"]


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) or "every method has figures"


def _kinds(rows: Sequence[BenchRow], result: BenchResult) -> str:
    kinds = [*result.num_questions, "all"]
    lines = [f"| method | {' | '.join(kinds)} | loss + |", "|---|" + "---:|" * (len(kinds) + 1)]
    unpruned = result.rows[0].accuracy
    for row in sorted(rows, key=lambda row: -(row.relative or 0.0)):
        if row.accuracy and row.loss_increase is not None:
            shares = [f"{100 * row.accuracy[kind] / unpruned[kind]:.1f}" for kind in kinds]
            lines.append(f"| `{row.method}` | {' | '.join(shares)} | {row.loss_increase:.3f} |")
    missed = [f"`{row.method}`" for row in rows if not row.accuracy]
    return "\n".join(lines) + (f"\n\nCannot meet this budget: {', '.join(missed)}." if missed else "")
