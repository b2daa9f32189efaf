"""The prompts library of the nodes: ready questions, and those that the user saved."""

import json
import logging
from pathlib import Path

from tops_engine.captioning.prompts import EXPANSIONS, PROMPTS
from tops_engine.errors import InvalidInput, quote

from .comfyui_host import host
from .widgets import Widget

#: The user's own prompts by name, in the user's folder; the script web/tops_prompts.js writes it.
FILE = "tops_prompts.json"

#: The choice for no preset.
NO_PRESET = "none"

#: Where a preset takes the text of the prompt.
OWN_TEXT = "{prompt}"

_log = logging.getLogger(__name__)


def preset_widget() -> Widget:
    """Return the widget that chooses a question of the library."""
    names = [NO_PRESET, *PROMPTS, *EXPANSIONS, *user_prompts()]
    tooltip = "A ready question in place of the prompt; one with {prompt} has your prompt inside."
    return names, {"default": NO_PRESET, "tooltip": "\n".join([tooltip, *_explained(PROMPTS | EXPANSIONS)])}


def styles() -> Widget:
    """Return the widget that chooses the caption style, without the choice of an own prompt."""
    names = [*PROMPTS, *(name for name, text in user_prompts().items() if OWN_TEXT not in text)]
    return names, {
        "default": "caption",
        "tooltip": "\n".join(["What is asked about each picture.", *_explained(PROMPTS)]),
    }


def preset_prompt(name: str, prompt: str | None) -> str | None:
    """Return the question of a preset, around the user's own prompt if the preset has a place for it.

    Raises
    ------
    InvalidInput
        If there is no such preset, or it expands a prompt that is empty.
    """
    if name == NO_PRESET:
        return prompt
    known = user_prompts() | PROMPTS | EXPANSIONS
    if name not in known:
        raise InvalidInput(f"There is no prompt {quote(name)} in the library; choose another preset.")
    text = known[name]
    if OWN_TEXT in text and not (prompt and prompt.strip()):
        raise InvalidInput(f"The preset {quote(name)} works on your prompt, and the prompt is empty; write one.")
    return text.replace(OWN_TEXT, prompt or "")


def user_prompts() -> dict[str, str]:
    """Return the prompts that the user saved, by name. A damaged file has none, and the log says so."""
    folder = host().folders.user
    path = Path() if folder is None else folder / FILE
    if not path.is_file():
        return {}
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        own = {str(name): text for name, text in saved.items() if isinstance(text, str) and text.strip()}
        return {name: text for name, text in own.items() if name not in {NO_PRESET, *PROMPTS, *EXPANSIONS}}
    except (OSError, ValueError, AttributeError) as error:
        _log.warning("TOPS: the saved prompts in %s cannot be read: %s", path, error)
        return {}


def _explained(prompts: dict[str, str]) -> list[str]:
    return [f"{name}: {' '.join(prompt.split())}" for name, prompt in prompts.items()]
