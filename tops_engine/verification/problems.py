"""What a verification found wrong, in sentences that say what to report."""

from collections.abc import Sequence

from tops_engine.verification.result import BudgetCheck, MaskedCheck, ParityCase

REPORT = "Open an issue and attach the JSON file."


def problems_of(
    parity: Sequence[ParityCase], budgets: Sequence[BudgetCheck], masked: Sequence[MaskedCheck]
) -> list[str]:
    """Return a sentence for each result that is not as it should be."""
    return [*_of_parity(parity), *_of_budgets(budgets), *_of_masked(masked)]


def _of_parity(cases: Sequence[ParityCase]) -> list[str]:
    sentences = [
        f"With {case.prompt} ({difference.where}), token {difference.position} of the unpruned answer is "
        f"{difference.tokens[1]!r} ({difference.token_ids[1]}) and transformers writes {difference.tokens[0]!r} "
        f"({difference.token_ids[0]}), whose logit is {difference.margin:.3g} higher, which rounding does not explain. "
        f"{REPORT}"
        for case in cases
        for difference in case.differences
        if not difference.tie
    ]
    if cases and all(case.skipped is not None for case in cases):
        sentences.append(f"No prompt could be compared with transformers. The first: {cases[0].skipped} {REPORT}")
    return sentences


def _of_budgets(checks: Sequence[BudgetCheck]) -> list[str]:
    return [
        f"At keep={check.keep} TOPS kept other tokens than its plain algorithm (largest shortfall "
        f"{max((stage.shortfall for stage in check.stages), default=0.0):.1e}), or missed the layer-average "
        f"({check.layer_average:.1f} instead of {check.keep * check.visual_tokens:.1f} tokens). {REPORT}"
        for check in checks
        if not check.held
    ]


def _of_masked(checks: Sequence[MaskedCheck]) -> list[str]:
    return [
        f"At keep={check.keep} with {check.positions} positions the logits differ from the masked reference by "
        f"{check.largest_difference:.3g}; the precision explains {check.tolerance:.3g}. {REPORT}"
        for check in checks
        if not check.held
    ]
