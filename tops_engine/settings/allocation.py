"""Options that divide a budget among pictures."""

from tops_engine.budget import Keep, target_tokens
from tops_engine.errors import BudgetError, quote, shorten
from tops_engine.settings.pruning_options import PruningOptions

#: keep_min and keep_max as multiples of keep where they are not given.
LEAST, MOST = 1 / 4, 4


def divides_budget(pruning: PruningOptions) -> bool:
    """Return whether the number of kept tokens of a picture may depend on the other pictures."""
    return pruning.allocation != "fixed" or pruning.budget_per == "prompt"


def check_allocation(pruning: PruningOptions) -> None:
    """Check that the options fit each other and the method.

    Raises
    ------
    ValueError
        If they do not.
    """
    named = allocation_words(pruning)
    if pruning.mean_over == "stream" and pruning.allocation == "fixed":
        raise ValueError("mean_over=stream is about what an allocation gives each picture; set allocation")
    if not divides_budget(pruning):
        if named:
            raise ValueError(f"{named[0]} bounds what allocation or budget_per=prompt give a picture; set one of them")
        return
    method = pruning.method_instance
    if pruning.schedule is not None:
        raise ValueError(f"{named[0]} divides a budget, but a schedule sets the numbers of tokens; give keep instead")
    if not (method.prunes_before_the_llm or method.prunes_between_layers):
        raise ValueError(f"{named[0]} divides a budget, but method {pruning.method!r} chooses no tokens")
    if pruning.budget_per == "prompt" and not method.selects_jointly:
        raise ValueError(
            f"Method {pruning.method!r} chooses the tokens of each picture alone; budget_per=prompt needs one that "
            "chooses among all pictures of a prompt, such as tops"
        )
    if pruning.allocation == "fixed" and pruning.keep_max is not None:
        raise ValueError("keep_max bounds what an allocation gives a picture; set allocation")
    if pruning.cost_limit is not None:
        return
    for name, bound, sign in (("keep_min", pruning.keep_min, 1), ("keep_max", pruning.keep_max, -1)):
        # A fraction and a number can be compared only when the pictures are known.
        if type(bound) is type(pruning.budget) and bound is not None and sign * (bound - pruning.budget) > 0:
            side = "above" if sign > 0 else "below"
            raise ValueError(
                f"{name}={quote(bound)} is {side} keep={quote(pruning.budget)}, which is the mean of all pictures"
            )


def allocation_words(pruning: PruningOptions) -> list[str]:
    """Return the options of this module that differ from their defaults, as in a label."""
    names = ("allocation", "budget_per", "keep_min", "keep_max", "mean_over")
    options = {name: getattr(pruning, name) for name in names}
    unset = ("fixed", "picture", "batch", None)
    return [f"{name}={shorten(value)}" for name, value in options.items() if value not in unset]


def bounds(pruning: PruningOptions, num_visual_tokens: int) -> tuple[float, int, int]:
    """Return the mean, the least and the most tokens of a picture, as layer-averages.

    Raises
    ------
    BudgetError
        If ``keep`` is less than one token, or if one of ``keep`` and a bound is a fraction and the other a number of
        tokens, and the mean is not between the bounds.
    """
    mean = target_tokens(pruning.budget, num_visual_tokens)
    least = _tokens(pruning.keep_min, LEAST * mean, num_visual_tokens)
    most = _tokens(pruning.keep_max, MOST * mean, num_visual_tokens)
    # The bounds are whole numbers on both sides of the mean.
    below, above = int(mean), -int(-mean // 1)
    if least > above:
        raise _outside("keep_min", "above", pruning, num_visual_tokens, mean)
    if most < below:
        raise _outside("keep_max", "below", pruning, num_visual_tokens, mean)
    return mean, min(least, below), max(most, above)


def _outside(name: str, side: str, pruning: PruningOptions, num_visual_tokens: int, mean: float) -> BudgetError:
    return BudgetError(
        f"{name}={quote(getattr(pruning, name))} is {side} keep={quote(pruning.budget)}, the mean of all pictures, "
        f"which is {mean:g} tokens of a picture with {num_visual_tokens}; give {name} and keep both as fractions or "
        "both as numbers of tokens."
    )


def _tokens(keep: Keep | None, unset: float, num_visual_tokens: int) -> int:
    tokens = unset if keep is None else keep if isinstance(keep, int) else keep * num_visual_tokens
    return min(max(1, round(tokens)), num_visual_tokens)
