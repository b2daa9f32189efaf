"""The tables of docs/methods-on-mini.md about depth, made from the results of `benchmarks.depth_report`."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.depth_report import gaps
from tools.accuracy_tables import CHOICES, RESULTS, Cells

#: How each pair of forms that is compared is called.
NAMES = {pair: name for name, pair in CHOICES.items()} | {("scope", "tops"): "`scope` in place of `tops`"}


def gaps_by_depth() -> Cells:
    """Return for each model where it reads the picture, and what the first stage alone has ahead of both stages."""
    results = _models()
    keeps = [gap["keep"] for gap in gaps(results[0])]
    headings = [f"gap at {keep}, {group}" for group in ("objects", "short") for keep in keeps]
    cells = [["model", "short %", "lists %", "objects %", "half is read at", *headings]]
    for result in results:
        row = [
            result["model"],
            *(f"{result['unpruned'][group]['value']:.1f}" for group in ("short", "lists", "objects")),
        ]
        row.append(_with_interval(result["read"]["objects"]["half"], "{:.2f}"))
        row += [
            _with_interval(gap[group], "{:+.1f}", "{:.1f}") for group in ("objects", "short") for gap in gaps(result)
        ]
        cells.append(row)
    return cells


def methods_by_depth() -> Cells:
    """Return the relative scores of every method on every model: short answers, and objects named in lists."""
    results = _models()
    cells = [["method", *_headings(results)]]
    for number, pruned in enumerate(results[0]["pruned"]):
        of_models = [result["pruned"][number] for result in results]
        scores = [f"{row['short']['value']:.1f}, {row['objects']['value']:.1f}" for row in of_models]
        cells.append([f"`{pruned['name']}`", *scores])
    return cells


def choices_by_depth() -> Cells:
    """Return what choices of TOPS change on every model, in points of the unpruned model's short answers."""
    results = _models()
    cells = [["choice, short answers", "keep", *_headings(results)]]
    for number, one in enumerate(results[0]["differences"]):
        found = [result["differences"][number]["short"] for result in results]
        points = [_with_interval(figures, "{:+.1f}", "{:.1f}") for figures in found]
        cells.append([NAMES[one["of"], one["against"]], str(one["keep"]), *points])
    return cells


def _models() -> Sequence[dict[str, Any]]:
    models: Sequence[dict[str, Any]] = json.loads((RESULTS / "depth.json").read_text(encoding="utf-8"))["models"]
    return models


def _headings(results: Iterable[dict[str, Any]]) -> list[str]:
    return [result["model"].replace("-", " ") for result in results]


def _with_interval(figures: dict[str, Any], form: str, form_of_bounds: str | None = None) -> str:
    bounds = ", ".join((form_of_bounds or form).format(bound) for bound in figures["interval"])
    return f"{form.format(figures['value'])} [{bounds}]"
