"""Options that say what the vision tower leaves out."""

from tops_engine.settings.pruning_options import PruningOptions


def check_tower(pruning: PruningOptions) -> None:
    """Check that the options fit each other and the method.

    Raises
    ------
    ValueError
        If they do not.
    """
    if pruning.tower_keep == 1:
        if pruning.tower_layer is not None:
            raise ValueError("tower_layer says where tower_keep drops patches; set tower_keep below 1")
        return
    method = pruning.method_instance
    if not method.prunes_before_the_llm:
        raise ValueError(
            f"tower_keep needs a method that prunes before the language model; {pruning.method!r} does not"
        )
    if method.method_at(0).needs_grids:
        raise ValueError(
            f"Method {pruning.method!r} needs all tokens of a picture, of which tower_keep leaves a part; leave it out"
        )
    if pruning.allocation != "fixed":
        raise ValueError("tower_keep leaves each picture the same part of its patches; leave out allocation")


def tower_words(pruning: PruningOptions) -> list[str]:
    """Return the options of this module that differ from their defaults, as in a label."""
    options = {name: getattr(pruning, name) for name in ("dedup", "tower_keep", "tower_layer")}
    return [f"{name}={value}" for name, value in options.items() if value not in ("none", 1.0, None)]
