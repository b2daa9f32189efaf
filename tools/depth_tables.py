"""The tables of docs/methods-on-mini.md about depth, made from the results of `benchmarks.depth_report`."""

import json
import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from benchmarks.depth_report import gaps
from tools.accuracy_tables import CHOICES, RESULTS, Cells

Result = dict[str, Any]
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
    """Return the relative scores of every method: short answers, and objects named in lists; means over seeds."""
    kinds: dict[str, list[Result]] = {}
    for result in _models():
        kinds.setdefault(re.sub(r"-seed-\d+", "", result["model"]), []).append(result)
    headings = [f"{kind.replace('-', ' ')}{_seeds(of_kind)}" for kind, of_kind in kinds.items()]
    cells = [["method", *headings]]
    for number, pruned in enumerate(_models()[0]["pruned"]):
        row = [f"`{pruned['name']}`"]
        for of_kind in kinds.values():
            means = [fmean(one["pruned"][number][group]["value"] for one in of_kind) for group in ("short", "objects")]
            row.append(", ".join(f"{mean:.1f}" for mean in means))
        cells.append(row)
    return cells


def choices_by_depth() -> Cells:
    """Return what choices of TOPS change on every model, in points of the unpruned model's short answers."""
    results = _models()
    headings = [f"{NAMES[one['of'], one['against']]}, {one['keep']}" for one in results[0]["differences"]]
    cells = [["model", *headings]]
    for result in results:
        points = [_with_interval(one["short"], "{:+.1f}", "{:.1f}") for one in result["differences"]]
        cells.append([result["model"], *points])
    return cells


def _seeds(results: Sequence[Result]) -> str:
    return f", {len(results)} seeds" if len(results) > 1 else ""


def _models() -> Sequence[Result]:
    models: Sequence[Result] = json.loads((RESULTS / "depth.json").read_text(encoding="utf-8"))["models"]
    return models


def _with_interval(figures: dict[str, Any], form: str, form_of_bounds: str | None = None) -> str:
    bounds = ", ".join((form_of_bounds or form).format(bound) for bound in figures["interval"])
    return f"{form.format(figures['value'])} [{bounds}]"
