"""The options ``merge`` and ``rectify``: how kept tokens make up for those dropped before the language model."""

from tops_engine.settings.pruning_options import PruningOptions


def check_dropped_tokens(pruning: PruningOptions) -> None:
    """Check that the options fit each other and the method.

    Raises
    ------
    ValueError
        If they do not.
    """
    for name, is_used in (("merge", pruning.merge), ("rectify", pruning.rectify != "none")):
        if is_used and not pruning.method_instance.prunes_before_the_llm:
            raise ValueError(
                f"{name} needs a method that prunes before the language model; {pruning.method!r} does not"
            )
    if pruning.rectify == "none":
        return
    if pruning.merge:
        raise ValueError("rectify and merge both use the dropped tokens; give one of them")
    if pruning.budget_per != "picture":
        raise ValueError("rectify chooses for each picture alone; leave out budget_per")
    if pruning.positions == "contiguous":
        raise ValueError("rectify keeps the original positions; leave out positions")


def dropped_token_words(pruning: PruningOptions) -> list[str]:
    """Return the options of this module that differ from their defaults, as in a label."""
    words = ["merge=true"] if pruning.merge else []
    return words if pruning.rectify == "none" else [*words, f"rectify={pruning.rectify}"]
