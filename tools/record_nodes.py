"""Write ``nodes/definitions.json``, the tables of help pages, locales and blueprints: python -m tools.record_nodes"""

import json
from pathlib import Path
from typing import Any

from tops_workflow.definitions import node_definition

import nodes
from tools import record_locales, record_subgraphs

ROOT = Path(__file__).parents[1]
MARK = "## Inputs"


def main() -> None:
    definitions = all_definitions()
    text = json.dumps(definitions, indent=1, ensure_ascii=False)
    (ROOT / "nodes" / "definitions.json").write_text(text + "\n", encoding="utf-8")
    for node_id, entry in definitions.items():
        path = ROOT / "web" / "docs" / f"{node_id}.md"
        above = path.read_text(encoding="utf-8").partition(MARK)[0].rstrip() if path.is_file() else f"# {node_id}"
        path.write_text(f"{above}\n\n{tables(entry)}", encoding="utf-8")
    record_locales.record(definitions)
    record_subgraphs.record(definitions)


def all_definitions() -> dict[str, Any]:
    """Return the definitions of all nodes by id."""
    return {node_id: definition(node_id) for node_id in nodes.NODE_CLASS_MAPPINGS}


def definition(node_id: str) -> dict[str, Any]:
    """Return the definition of a node as ComfyUI's ``/object_info`` gives it, as it comes back from JSON."""
    title = nodes.NODE_DISPLAY_NAME_MAPPINGS[node_id]
    made = node_definition(node_id, nodes.NODE_CLASS_MAPPINGS[node_id], title, "custom_nodes.tops")
    return dict(json.loads(json.dumps(made)))


def tables(entry: dict[str, Any]) -> str:
    """Return the tables of inputs and outputs of a node in Markdown."""
    lines = [MARK, "", "| name | type | default | |", "| --- | --- | --- | --- |"]
    for kind in ("required", "optional"):
        for name, (type_, options) in entry["input"].get(kind, {}).items():
            shown = "choice" if isinstance(type_, list) else type_
            default = json.dumps(options["default"], ensure_ascii=False) if "default" in options else ""
            lines.append(
                f"| `{name}`{'' if kind == 'required' else ' (optional)'} | {_cell(shown)} | {_cell(default)} "
                f"| {_cell(options['tooltip'])} |"
            )
    lines += ["", "## Outputs", "", "| name | type | |", "| --- | --- | --- |"]
    for name, type_, tip in zip(entry["output_name"], entry["output"], entry["output_tooltips"], strict=True):
        lines.append(f"| `{name}` | {_cell(type_)} | {_cell(tip)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    short = text if len(text) < 60 or not text.startswith('"{') else "(an example)"
    return short.replace("|", "\\|").replace("\n", "<br>").replace("<br>  ", "<br>")


if __name__ == "__main__":
    main()
