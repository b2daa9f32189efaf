"""Check before the run that a budget can be met by the models that it is for.

A node is checked alone, and what a method can reach depends on the layers of the model. So the check looks into the
prompt for the nodes that are connected to the same pruning and to a TOPS Load Model.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tops_workflow.host import checked_prompt

from tops_engine.errors import InvalidInput, ModelNotFound
from tops_engine.mini import mini_path
from tops_engine.settings import Pruning

from .loading import LoadModel, source_of

#: Visual tokens for which a budget is checked. The least fraction hardly depends on them.
NUM_VISUAL_TOKENS = 4096


def check_budget(pruning: Pruning, values: Mapping[str, Any]) -> None:
    """Check a pruning for every model of the prompt that it is connected to.

    Parameters
    ----------
    values : of the widgets of the TOPS Pruning that it comes from.

    Raises
    ------
    BudgetError
        If the method cannot meet the budget; the sentence names the least it can.
    """
    if isinstance(pruning.keep, float) and pruning.schedule is None and pruning.cost_limit is None:
        for num_layers in _layers_of_models(values):
            pruning.stages(NUM_VISUAL_TOKENS, num_layers)


def _layers_of_models(values: Mapping[str, Any]) -> Iterator[int]:
    """Yield the layers of the models beside a TOPS Pruning with these values, where they are on this machine."""
    prompt = checked_prompt.get() or {}
    for node in prompt.values():
        inputs = node.get("inputs", {})
        chosen, loader = (_linked(prompt, inputs.get(name)) for name in ("pruning", "model"))
        if chosen.get("class_type") != "TOPSPruning" or loader.get("class_type") != LoadModel.NODE_ID:
            continue
        if all(chosen["inputs"].get(name, value) == value for name, value in values.items()):
            count = _num_layers(loader["inputs"])
            if count is not None:
                yield count


def _linked(prompt: Mapping[str, Any], link: Any) -> dict[str, Any]:
    found = prompt.get(str(link[0])) if isinstance(link, list) and link else None
    return found if isinstance(found, dict) and isinstance(found.get("inputs"), dict) else {}


def _num_layers(loader: Mapping[str, Any]) -> int | None:
    """Return the layers of the language model that a TOPS Load Model names; None if it is not on this machine."""
    if str(loader.get("server") or "").strip():
        return None
    try:
        source = source_of(loader.get("model"), loader.get("hub_id"))
        folder = mini_path() if source == "mini" else Path(source)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (InvalidInput, ModelNotFound, OSError, ValueError):
        return None
    count = (config.get("text_config") or config).get("num_hidden_layers")
    return count if isinstance(count, int) else None
