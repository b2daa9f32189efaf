"""The score of MMBench-CN without a judge; lmms-eval has one for the English questions only."""

from typing import Any


def accuracy(results: list[dict[str, Any]]) -> float:
    """Return the percentage of questions that are answered rightly in every order of their options."""
    from lmms_eval.tasks.mmbench.cn_utils import mmbench_evaluator

    overall, _, _ = mmbench_evaluator.eval_result(results, eval_method="static")
    return 100 * float(overall)
