"""Options of a cascade: rising budgets, of which an answer uses the first that the model is sure with."""

from tops_engine.settings.pruning_options import PruningOptions

#: ``confident`` and ``confident_over`` where a cascade does not set them.
CONFIDENT, CONFIDENT_OVER = 0.5, 16


def check_cascade(pruning: PruningOptions) -> None:
    """Check that the options of a cascade fit each other and the method.

    Raises
    ------
    ValueError
        If they do not.
    """
    named = cascade_words(pruning)
    if not isinstance(pruning.keep, tuple):
        if named:
            raise ValueError(
                f"{named[0]} says when a cascade goes on to its next budget; give several, such as keep=0.111+0.5"
            )
        return
    method = pruning.method_instance
    if not (method.prunes_before_the_llm or method.prunes_between_layers):
        raise ValueError(f"Method {pruning.method!r} chooses no tokens; a cascade needs one that does, such as tops")


def cascade_words(pruning: PruningOptions) -> list[str]:
    """Return the options of this module that are set, as in a label."""
    options = {name: getattr(pruning, name) for name in ("confident", "confident_over", "confident_by")}
    return [f"{name}={value}" for name, value in options.items() if value is not None]
