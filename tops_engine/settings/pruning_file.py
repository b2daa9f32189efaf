"""Read pruning settings from JSON."""

import json
from typing import Any

from tops_engine.errors import InvalidInput, reason_of
from tops_engine.settings.method_options import file_options
from tops_engine.settings.pruning import pruning_fields


def options_from_json(text: str, source: str) -> dict[str, Any]:
    """Return the options in a JSON text: those of a :class:`Pruning`, or one object such as a recipe.

    Parameters
    ----------
    source : what the text is called in errors, such as "The pruning file tuned.json".

    Raises
    ------
    InvalidInput
        If the text is not a JSON object. The options themselves are checked by :class:`Pruning`.
    """
    try:
        options = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{source} is not JSON: {reason_of(error)}.") from error
    if not isinstance(options, dict):
        raise InvalidInput(f'{source} holds no options, such as {{"method": "tops", "keep": 0.222}}.')
    known = pruning_fields().keys()
    for name, kind in file_options().items():
        if options.keys() - known and options.keys() <= kind.model_fields.keys():
            return {name: options}
    return options
