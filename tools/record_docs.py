"""Write the generated parts of README and docs: python -m tools.record_docs

A generated part lies between ``<!-- generated: NAME -->`` and ``<!-- end: NAME -->``, where NAME is a key of
:data:`PARTS`.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import nodes
from tools import accuracy_tables, agent_tables, depth_tables, method_tables, record_vllm, speed_table
from tops_engine.conversation.tool_formats import FORMATS
from tops_engine.families import FAMILIES
from tops_engine.grounding.formats import Format
from tops_engine.methods import METHODS, Method
from tops_engine.methods.resize import Resize
from tops_engine.reproduction.plan import GPUS, JUDGE_VARIABLE, make_plan
from tops_engine.reproduction.protocols import read_protocols
from tops_engine.settings import ModelSpec, pruning_fields
from tops_engine.supported_models import model_types, recorded_savings
from tops_engine.verification.result import Verification, read_verification
from tops_engine.verification.run import KEEPS

ROOT = Path(__file__).parents[1]
VERIFIED = ROOT / "benchmarks" / "verified"
PART = re.compile(r"(<!-- generated: (?P<name>[\w ]+) -->\n).*?(?=<!-- end: (?P=name) -->)", flags=re.DOTALL)


NOWHERE = "nowhere"


def main() -> None:
    for page in pages():
        text = page.read_text(encoding="utf-8")
        page.write_text(with_parts(text), encoding="utf-8")
    for path, content in files().items():
        path.write_text(content, encoding="utf-8")


def pages() -> list[Path]:
    """Return the pages that may have generated parts."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def files() -> dict[Path, str]:
    """Return the generated files: the JSON schema of what `tops verify` writes."""
    schema = Verification.model_json_schema()
    return {ROOT / "docs" / "verify.schema.json": json.dumps(schema, indent=2) + "\n"}


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


def grounding_table() -> str:
    """Return the table of the formats of boxes and points, and of the model types that write them."""
    writers: dict[Format, list[str]] = {}
    for family in dict.fromkeys(FAMILIES.values()):
        for model_type, shape in family.grounding.items():
            writers.setdefault(shape, []).append(f"`{model_type}`")
    rows = [
        [", ".join(names), "<br>".join(f"`{example}`" for example in shape.examples), shape.unit, shape.source]
        for shape, names in writers.items()
    ]
    return _table(["model types", "what they write", "coordinates", "source"], sorted(rows))


def savings_cells() -> list[list[str]]:
    """Return the table of what pruning saves on published sizes."""
    header = ["checkpoint", "visual tokens", "prefill", "with `stages=first`", "KV cache", "whole answer"]
    rows = [
        [
            f"`{row.checkpoint}`",
            f"{row.visual_tokens:,}",
            *[f"{100 * share:.0f} %" for share in (row.prefill, row.prefill_first, row.kv, row.answer)],
        ]
        for row in recorded_savings().rows
    ]
    return [header, *rows]


def savings_question() -> str:
    """Return what the savings were computed for, as a sentence."""
    savings = recorded_savings()
    return f"For `keep={savings.keep}`, {savings.question}:"


def tool_formats_table() -> str:
    """Return the table of the formats of function calls, with one call in each."""
    call = {"name": "crop", "arguments": {"side": "left", "zoom": 2}}
    rows = []
    for each in sorted(FORMATS, key=lambda one: one.name):
        written = each.write([call]).replace("\n", "⏎").replace("|", "&#124;").replace("<", "&lt;")
        written = written.replace("[", "&#91;").replace("]", "&#93;")  # no reference of mkdocs
        rows.append([f"`{each.name}`", each.families, f"<code>{written}</code>"])
    return _table(["format", "families", "one call (⏎ is a line break)"], rows)


def nodes_table() -> str:
    """Return the table of the ComfyUI nodes."""
    return _table(
        ["node", "what it does"], [[node.TITLE, node.DESCRIPTION] for node in nodes.NODE_CLASS_MAPPINGS.values()]
    )


def verified_table() -> str:
    """Return the table of the verifications in ``benchmarks/verified``."""
    rows = []
    for path in sorted(VERIFIED.glob("*.json")):
        result = read_verification(path)
        exact = sum(not case.differences for case in result.parity if case.skipped is None)
        asked = sum(case.skipped is None for case in result.parity)
        speed = {row.keep: row for row in result.speed}
        losses = {row.pruning: row.loss_increase for row in result.fidelity}
        rows.append(
            [
                f"[{result.model}](../benchmarks/verified/{path.name})",
                f"{result.machine.get('gpu') or result.machine['cpu']}, {result.dtype}",
                f"{exact} of {asked}" if result.held else "not held",
                f"{1e3 * speed[1.0].first_token_s:.1f}" if 1.0 in speed else "-",
                *[f"{speed[keep].first_token_ratio:.2f}" if keep in speed else "-" for keep in KEEPS],
                *[f"{losses[f'tops {keep}']:.3f}" if losses.get(f"tops {keep}") is not None else "-" for keep in KEEPS],
                result.date,
            ]
        )
    header = ["model", "machine", "same answers", "first token ms", "times faster at 0.222", "at 0.111"]
    return _table([*header, "loss + at 0.222", "at 0.111", "date"], rows)


def numbers(cells: Callable[[], list[list[str]]]) -> Callable[[], str]:
    """Return a part that is a table of numbers, aligned to the right."""

    def part() -> str:
        header, *rows = cells()
        return _table(header, rows, ["---", *["---:"] * (len(header) - 1)])

    return part


def reproduction_table() -> str:
    """Return the table of the protocols of papers, with the estimated hours of TOPS at their budgets."""
    known, rows = read_protocols(), []
    for protocol in known.protocols:
        benchmarks = protocol.benchmarks or ["gqa", "pope"]
        spec = ModelSpec(model=known.models[protocol.model].checkpoint)
        environment = {JUDGE_VARIABLE: "any"}
        plan = make_plan(protocol, "tops", protocol.budgets, spec, benchmarks, environment=environment)
        rows.append(
            [
                f"`{protocol.model}`",
                protocol.paper,
                ", ".join(protocol.tables) or "-",
                ", ".join(protocol.benchmarks) or "not known (gqa and pope estimated)",
                ", ".join(map(str, protocol.budgets)),
                *[f"{plan.hours[gpu]:.1f}" for gpu in GPUS],
            ]
        )
    return _table(["model", "paper", "table", "benchmarks", "budgets", *[f"{gpu} hours" for gpu in GPUS]], rows)


def vllm_names_table() -> str:
    """Return the table of the names of vLLM that the plugin touches."""
    record = json.loads(record_vllm.RECORD.read_text(encoding="utf-8"))
    rows, imports = [], dict[tuple[str, str], list[str]]()
    for name, entry in record.items():
        module, _, path = name.removeprefix("vllm.").partition(":")
        since = _since(entry["signatures"])
        if entry["use"] == "imported":
            imports.setdefault((module.replace("vllm", "(top)"), since), []).append(f"`{path}`")
        else:
            signature = list(entry["signatures"].values())[-1]
            arguments = signature.strip("()").removeprefix("self").removeprefix(", ") if signature[0] == "(" else ""
            rows.append([f"`{path}`", f"`{module}`", entry["use"], f"`{arguments}`" if arguments else "", since])
    rows += [[", ".join(names), f"`{module}`", "imported", "", since] for (module, since), names in imports.items()]
    return _table(["name", "module of vLLM", "used for", "arguments", "since"], rows)


def _since(signatures: dict[str, str | None]) -> str:
    """Return the release from which on a name has the arguments that it has in the newest one."""
    releases = list(signatures)
    newest = signatures[releases[-1]]
    same = itertools.takewhile(lambda release: signatures[release] == newest, reversed(releases))
    oldest = list(same)[-1]
    return f"{oldest} or before" if oldest == releases[0] else oldest


PARTS: dict[str, Callable[[], str]] = {
    "accuracy": numbers(accuracy_tables.in_readme),
    "accuracy by kind": numbers(accuracy_tables.by_kind),
    "accuracy by method": numbers(accuracy_tables.by_method),
    "accuracy of every method": numbers(accuracy_tables.every_method),
    "accuracy of every method on both splits": numbers(accuracy_tables.every_method_on_both_splits),
    "accuracy with and without lists": numbers(accuracy_tables.with_and_without_lists),
    "accuracy differences": numbers(accuracy_tables.differences),
    "accuracy of choices": numbers(accuracy_tables.choices),
    "raters on other models": numbers(accuracy_tables.raters_on_other_models),
    "accuracy of a smaller picture": numbers(accuracy_tables.smaller_picture),
    "accuracy of the second instrument": numbers(accuracy_tables.second_instrument),
    "accuracy by kind of the second instrument": numbers(accuracy_tables.second_instrument_by_kind),
    "easy and hard questions": numbers(accuracy_tables.easy_and_hard),
    "budgets": numbers(accuracy_tables.budgets),
    "depth": numbers(depth_tables.gaps_by_depth),
    "methods by depth": numbers(depth_tables.methods_by_depth),
    "choices by depth": numbers(depth_tables.choices_by_depth),
    "method names": method_names,
    "verdict": numbers(method_tables.wanted),
    "answers of methods": numbers(method_tables.answers),
    "fidelity of methods": numbers(method_tables.fidelity),
    "times of methods": numbers(method_tables.times),
    "needs of methods": numbers(method_tables.needs),
    "methods not measured": method_tables.not_measured,
    "kinds of questions by method": method_tables.by_kind,
    "grounding": grounding_table,
    "agent answers": numbers(agent_tables.answers),
    "agent steps of a thin model": numbers(agent_tables.thin_model),
    "methods": methods_table,
    "options": options_table,
    "presets": presets_table,
    "models": models_table,
    "nodes": nodes_table,
    "reproduction": reproduction_table,
    "savings": numbers(savings_cells),
    "savings question": savings_question,
    "speed": numbers(speed_table.speed_rows),
    "tool formats": tool_formats_table,
    "verified": verified_table,
    "vllm names": vllm_names_table,
}


def _where(method: type[Method]) -> str:
    if issubclass(method, Resize):
        return "the picture itself, before the vision tower"
    built = method.model_construct()
    places = {
        "before the language model": built.prunes_before_the_llm,
        "between layers": built.prunes_between_layers,
    }
    return " and ".join(place for place, prunes in places.items() if prunes) or NOWHERE


def _summary(docstring: str | None) -> str:
    """Return the first line of a docstring in Markdown, without its full stop."""
    return (docstring or "").strip().partition("\n")[0].rstrip(".").replace("``", "`")


def _table(header: list[str], rows: Iterable[list[str]], rule: list[str] | None = None) -> str:
    lines = [header, rule or ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


if __name__ == "__main__":
    main()
