"""Write the translations that ComfyUI's frontend reads: python -m tools.record_locales

They are ``nodeDefs.json`` and ``main.json`` in ``locales/<language>``, and the cards of the templates in
``web/templates.json``. The texts of the nodes are in English in their definitions, those of the cards under ``en``.
``locales/<language>/phrases.json`` translates each text once; this tool adds new texts to it with an empty translation,
and removes those that are not needed any more. The frontend shows a text without a translation in English.
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "locales"
#: The titles and descriptions of the templates by language; ``web/tops.js`` gives them to the frontend.
CARDS = Path(__file__).parents[1] / "web" / "templates.json"
LANGUAGES = ("de", "es", "fr", "ja", "ko", "ru", "zh")

#: The socket types of our own, as the frontend names them.
TYPES = {
    "TOPS_MODEL": "TOPS model",
    "TOPS_PRUNING": "TOPS pruning",
    "TOPS_HISTORY": "TOPS conversation",
    "TOPS_STATS": "TOPS measurements",
}


def record(definitions: dict[str, Any]) -> None:
    """Write the files of all languages for the definitions of all nodes."""
    needed = phrases_of(definitions)
    _write(FOLDER / "en", definitions, {phrase: phrase for phrase in needed})
    english = english_cards()
    cards = {"en": english}
    for language in LANGUAGES:
        path = FOLDER / language / "phrases.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        phrases = {phrase: known.get(phrase, "") for phrase in needed}
        _write_json(path, phrases)
        _write(path.parent, definitions, {phrase: text for phrase, text in phrases.items() if text})
        cards[language] = {
            name: {key: phrases[text] or text for key, text in card.items()} for name, card in english.items()
        }
    _write_json(CARDS, cards)


def phrases_of(definitions: dict[str, Any]) -> list[str]:
    """Return the texts to translate, each once: those of the nodes in their order, socket types, cards."""
    found: dict[str, None] = {}

    class Noting(dict[str, str]):
        def __missing__(self, phrase: str) -> str:
            found[phrase] = None
            return phrase

    translated(definitions, Noting())
    of_cards = [text for card in english_cards().values() for text in card.values()]
    return list(dict.fromkeys([*found, *TYPES.values(), *of_cards]))


def english_cards() -> dict[str, dict[str, str]]:
    """Return the English title and description of each template by its name."""
    found: dict[str, dict[str, str]] = json.loads(CARDS.read_text(encoding="utf-8"))["en"]
    return found


def translated(definitions: dict[str, Any], phrases: dict[str, str]) -> dict[str, Any]:
    """Return the texts of all nodes as ``nodeDefs.json`` holds them; what has no translation is left out."""
    return {node_id: _node(definition, phrases) for node_id, definition in definitions.items()}


def _node(definition: dict[str, Any], phrases: dict[str, str]) -> dict[str, Any]:
    inputs = {name: spec[1] for group in ("required", "optional") for name, spec in _group(definition, group).items()}
    outputs = zip(definition["output_name"], definition["output_tooltips"], strict=True)
    texts = {
        "display_name": _phrase(definition["display_name"], phrases),
        "description": _phrase(definition["description"], phrases),
        "inputs": {name: _slot(name, options["tooltip"], phrases) for name, options in inputs.items()},
        "outputs": {str(slot): _slot(name, tooltip, phrases) for slot, (name, tooltip) in enumerate(outputs)},
    }
    return {key: text for key, text in texts.items() if text}


def _group(definition: dict[str, Any], group: str) -> dict[str, Any]:
    found: dict[str, Any] = definition["input"].get(group, {})
    return found


def _slot(name: str, tooltip: str, phrases: dict[str, str]) -> dict[str, str]:
    # What follows the first line are names of methods, options and prompts with their English explanations.
    first, newline, rest = tooltip.partition("\n")
    shown, explained = _phrase(name.replace("_", " "), phrases), _phrase(first, phrases)
    texts = {"name": shown, "tooltip": explained and explained + newline + rest}
    return {key: text for key, text in texts.items() if text}


def _phrase(text: str, phrases: dict[str, str]) -> str:
    try:
        return phrases[text]
    except KeyError:
        return ""


def _write(folder: Path, definitions: dict[str, Any], phrases: dict[str, str]) -> None:
    _write_json(folder / "nodeDefs.json", translated(definitions, phrases))
    types = {kind: phrases[name] for kind, name in TYPES.items() if name in phrases}
    _write_json(folder / "main.json", {"dataTypes": types})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    from tools.record_nodes import all_definitions

    record(all_definitions())
