"""Write the generated parts of README and docs: python -m tools.record_docs

A generated part lies between ``<!-- generated: NAME -->`` and ``<!-- end: NAME -->``, where NAME is a key of
:data:`PARTS`.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import nodes
from tops_engine.methods import METHODS, Method
from tops_engine.settings import pruning_fields
from tops_engine.supported_models import model_types

ROOT = Path(__file__).parents[1]
PART = re.compile(r"(<!-- generated: (?P<name>[\w ]+) -->\n).*?(?=<!-- end: (?P=name) -->)", flags=re.DOTALL)


NOWHERE = "nowhere"


def main() -> None:
    for page in pages():
        text = page.read_text(encoding="utf-8")
        page.write_text(with_parts(text), encoding="utf-8")


def pages() -> list[Path]:
    """Return the pages that may have generated parts."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def with_parts(text: str) -> str:
    """Return the text of a page with its generated parts written anew."""
    return PART.sub(lambda part: f"{part[1]}{PARTS[part['name']]()}\n", text)


def methods_table() -> str:
    """Return the table of the pruning methods."""
    rows = [[f"`{name}`", _where(method), _summary(method.__doc__), method.source] for name, method in METHODS.items()]
    return _table(["method", "prunes", "rule", "source"], rows)


def method_names() -> str:
    """Return the names of the methods that prune, separated by commas."""
    return ", ".join(f"`{name}`" for name, method in METHODS.items() if _where(method) != NOWHERE) + "."


def options_table() -> str:
    """Return the table of the options that only some methods have."""
    rows = [
        [f"`{name}`", ", ".join(f"`{method}`" for method in methods), field.description or ""]
        for name, (field, methods) in pruning_fields().items()
        if methods
    ]
    return _table(["option", "methods", "meaning"], rows)


def presets_table() -> str:
    """Return the table of the presets of each method's own source."""
    rows = [
        [f"`{name}`", ", ".join(f"`{preset}`" for preset in method.presets)]
        for name, method in METHODS.items()
        if method.presets
    ]
    return _table(["method", "presets"], rows)


def models_table() -> str:
    """Return the table of what the tests show of each model type."""
    rows = [
        [
            f"`{row.model_type}`",
            ", ".join(f"`{name}`" for name in row.checkpoints),
            f"all but {', '.join(f'`{name}`' for name in row.other_methods)}" if row.other_methods else "all",
            ", ".join(row.checked) or "not tested",
        ]
        for row in model_types()
    ]
    return _table(["model type", "checkpoints", "methods", "checked"], rows)


def nodes_table() -> str:
    """Return the table of the ComfyUI nodes."""
    return _table(
        ["node", "what it does"], [[node.TITLE, node.DESCRIPTION] for node in nodes.NODE_CLASS_MAPPINGS.values()]
    )


PARTS: dict[str, Callable[[], str]] = {
    "method names": method_names,
    "methods": methods_table,
    "options": options_table,
    "presets": presets_table,
    "models": models_table,
    "nodes": nodes_table,
}


def _where(method: type[Method]) -> str:
    built = method.model_construct()
    places = {
        "before the language model": built.prunes_before_the_llm,
        "between layers": built.prunes_between_layers,
    }
    return " and ".join(place for place, prunes in places.items() if prunes) or NOWHERE


def _summary(docstring: str | None) -> str:
    """Return the first line of a docstring in Markdown, without its full stop."""
    return (docstring or "").strip().partition("\n")[0].rstrip(".").replace("``", "`")


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


if __name__ == "__main__":
    main()
