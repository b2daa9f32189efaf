"""Check whether a prompt can run, and report every fault in the format of ComfyUI's ``POST /prompt``."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tops_engine.errors import MOST_SHOWN, TopsError, quote, shorten
from tops_workflow.convert import is_link, unwrapped
from tops_workflow.definitions import node_definition
from tops_workflow.faults import Checked, Fault, NodeFaults
from tops_workflow.formats import Prompt, title_of
from tops_workflow.growing import grouped, single_inputs
from tops_workflow.host import checked_prompt
from tops_workflow.order import sources_first
from tops_workflow.widgets import Input, inputs_of

#: An error repeats a list of choices up to this length.
MAX_SHOWN_CHOICES = 20
#: Characters of a node's own sentence: enough for each one that does not repeat a damaged value.
MAX_SHOWN_VERDICT = 220
#: Nodes that one message names.
MAX_SHOWN_NODES = 5

CONVERSIONS: dict[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


def check_prompt(prompt: Prompt, classes: Mapping[str, Any], targets: Sequence[str] | None = None) -> Checked:
    """Check a prompt, and convert its constants to the types of their inputs, in place, as ComfyUI does.

    Parameters
    ----------
    classes : V1 node classes by ``class_type``.
    targets : the output nodes to check; None checks all.
    """
    missing = {
        node_id: node.get("class_type")
        for node_id, node in prompt.items()
        if not isinstance(node.get("class_type"), str) or node["class_type"] not in classes
    }
    if missing:
        return Checked([], _missing_nodes(prompt, missing), {})
    outputs = [
        node_id for node_id, node in prompt.items() if getattr(classes[node["class_type"]], "OUTPUT_NODE", False)
    ]
    if targets is not None:
        outputs = [node_id for node_id in outputs if node_id in targets]
    if not outputs:
        return Checked([], Fault("prompt_no_outputs", "Prompt has no outputs"), {})
    checker = _Checker(prompt, classes)
    token = checked_prompt.set(prompt)
    try:
        good = [node_id for node_id in outputs if checker.check(node_id)]
    finally:
        checked_prompt.reset(token)
    fault = None
    if not good:
        details = "\n".join(f"* {line}" for line in Checked([], None, checker.nodes).lines())
        fault = Fault("prompt_outputs_failed_validation", "Prompt outputs failed validation", details)
    return Checked(good, fault, checker.nodes)


def _missing_nodes(prompt: Prompt, missing: dict[str, Any]) -> Fault:
    texts = [f"#{shorten(node_id)} {shorten(str(kind or 'without class_type'))}" for node_id, kind in missing.items()]
    more = f" and {len(texts) - MAX_SHOWN_NODES} more" if len(texts) > MAX_SHOWN_NODES else ""
    shown = ", ".join(texts[:MAX_SHOWN_NODES]) + more
    node_id, kind = next(iter(missing.items()))
    extra = {"node_id": node_id, "class_type": kind, "node_title": title_of(prompt[node_id])}
    noun = "Node" if len(missing) == 1 else "Nodes"
    message = f"{noun} {shown} not found: needs ComfyUI, or the node pack it comes from"
    return Fault("missing_node_type", message, f"Node ID '#{shorten(node_id)}'", extra)


class _Checker:
    """Checks each node once, sources first."""

    def __init__(self, prompt: Prompt, classes: Mapping[str, Any]) -> None:
        self._prompt = prompt
        self._classes = classes
        self._definitions: dict[str, dict[str, Any]] = {}
        self._verdicts: dict[str, bool] = {}
        self.nodes: dict[str, NodeFaults] = {}

    def check(self, output: str) -> bool:
        """Return whether an output node and all nodes that it needs can run."""
        order, circles = sources_first(self._prompt, output, self._verdicts)
        for circle in circles:
            text = shorten(" → ".join(circle))
            self._note(circle[0], output, [Fault("dependency_cycle", "The workflow goes in a circle", text)])
        for node_id in order:
            faults, sound = self._check_inputs(node_id, output)
            self._note(node_id, output, faults)
            in_circle = any(node_id in circle for circle in circles)
            self._verdicts[node_id] = sound and not faults and not in_circle
        return self._verdicts[output]

    def _note(self, node_id: str, output: str, faults: list[Fault]) -> None:
        if faults:
            entry = self.nodes.setdefault(node_id, NodeFaults(self._prompt[node_id]["class_type"], []))
            entry.faults += faults
        if node_id in self.nodes and output not in self.nodes[node_id].dependent_outputs:
            self.nodes[node_id].dependent_outputs.append(output)

    def _check_inputs(self, node_id: str, output: str) -> tuple[list[Fault], bool]:
        """Return the node's own faults, and whether its sources can run."""
        node = self._prompt[node_id]
        values: dict[str, Any] = node.setdefault("inputs", {})
        judge = getattr(self._classes[node["class_type"]], "VALIDATE_INPUTS", None)
        judged = _judged_inputs(judge)
        faults: list[Fault] = []
        sound = True
        for entry in inputs_of(self.definition(node["class_type"])):
            if entry.name not in values:
                if entry.required:
                    faults.append(
                        Fault("required_input_missing", "Required input is missing", entry.name, _extra(entry))
                    )
            elif is_link(values[entry.name]):
                fault = self._check_link(entry, values[entry.name], judged)
                if fault is not None:
                    faults.append(fault)
                else:
                    source = str(values[entry.name][0])
                    self._note(source, output, [])
                    sound = self._verdicts.get(source, False) and sound
            else:
                values[entry.name] = unwrapped(values[entry.name])
                fault = _convert(entry, values) or (None if entry.name in judged else _check_bounds(entry, values))
                faults += [fault] if fault is not None else []
        if judge is not None and not faults:
            faults += _custom_faults(judge, judged, values, self.definition(node["class_type"]))
        return faults, sound

    def _check_link(self, entry: Input, link: list[Any], judged: frozenset[str]) -> Fault | None:
        source = self._prompt.get(str(link[0]))
        if source is None:
            text = f"{entry.name}: node {shorten(str(link[0]))}"
            return Fault("bad_linked_input", "Linked node does not exist", text, _extra(entry, link))
        outputs = self.definition(source["class_type"])["output"]
        if not 0 <= link[1] < len(outputs):
            text = f"{entry.name}: node {link[0]} has no output {shorten(str(link[1]))}"
            return Fault("bad_linked_input", "Linked output does not exist", text, _extra(entry, link))
        kind = outputs[link[1]]
        if not _compatible(kind, entry.kind) and entry.name not in judged and "input_types" not in judged:
            text = f"{entry.name}, received_type({kind}) mismatch input_type({entry.kind})"
            return Fault(
                "return_type_mismatch", "Return type mismatch between linked nodes", text,
                _extra(entry) | {"received_type": kind, "linked_node": link},
            )  # fmt: skip
        return None

    def definition(self, kind: str) -> dict[str, Any]:
        """Return the definition of a class with the inputs of its groups, made once."""
        if kind not in self._definitions:
            definition = node_definition(kind, self._classes[kind], kind, "nodes")
            inputs = {section: single_inputs(specs) for section, specs in definition["input"].items()}
            order = {section: list(specs) for section, specs in inputs.items()}
            self._definitions[kind] = definition | {"input": inputs, "input_order": order}
        return self._definitions[kind]


def _extra(entry: Input, value: Any = None) -> dict[str, Any]:
    choices = entry.choices
    config: Any = None
    if choices is None or len(choices) <= MAX_SHOWN_CHOICES:
        config = [choices if choices is not None else entry.kind, entry.options]
    extra = {"input_name": entry.name, "input_config": config}
    return extra if value is None else extra | {"received_value": value}


def _compatible(output: Any, wanted: Any) -> bool:
    """Return whether an output fits an input: the types have a member of their comma-separated lists in common."""
    if isinstance(output, list) or wanted == "COMBO":
        return output in ("COMBO", "*", "STRING") or isinstance(output, list)
    kinds = set(str(output).replace(" ", "").split(",")), set(str(wanted).replace(" ", "").split(","))
    return "*" in kinds[0] | kinds[1] or bool(kinds[0] & kinds[1])


def _convert(entry: Input, values: dict[str, Any]) -> Fault | None:
    convert = CONVERSIONS.get(entry.kind)
    if convert is None:
        return None
    try:
        value = convert(values[entry.name])
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("not a finite number")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        reason = f", {error}" if len(str(error)) <= MOST_SHOWN else ""
        text = f"{entry.name}, {quote(values[entry.name])}{reason}"
        message = f"Failed to convert an input value to a {entry.kind} value"
        extra = _extra(entry, values[entry.name]) | {"exception_message": shorten(str(error))}
        return Fault("invalid_input_type", message, text, extra)
    values[entry.name] = value
    return None


def _check_bounds(entry: Input, values: dict[str, Any]) -> Fault | None:
    value, options = values[entry.name], entry.options
    if entry.kind in ("INT", "FLOAT"):
        if "min" in options and value < options["min"]:
            text = f"Value {shorten(str(value))} smaller than min of {options['min']}"
            return Fault("value_smaller_than_min", text, entry.name, _extra(entry, value))
        if "max" in options and _is_rounded_up(value, options["max"]):
            values[entry.name] = value = options["max"]
        if "max" in options and value > options["max"]:
            text = f"Value {shorten(str(value))} bigger than max of {options['max']}"
            return Fault("value_bigger_than_max", text, entry.name, _extra(entry, value))
    if entry.choices is not None and value not in entry.choices:
        shown = f"{len(entry.choices)} choices"
        if len(entry.choices) <= MAX_SHOWN_CHOICES:
            shown = shorten(str(entry.choices))
        text = f"{entry.name}: {quote(value)} not in {shown}"
        return Fault("value_not_in_list", "Value not in list", text, _extra(entry, value))
    return None


def _judged_inputs(judge: Any) -> frozenset[str]:
    """Return the inputs that VALIDATE_INPUTS checks itself: those that it names."""
    return frozenset(inspect.signature(judge).parameters) if judge is not None else frozenset()


def _custom_faults(judge: Any, judged: frozenset[str], values: dict[str, Any], definition: Any) -> list[Fault]:
    takes_all = any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in inspect.signature(judge).parameters.values()
    )
    constants = {name: None if is_link(value) else value for name, value in values.items()}
    known = {entry.name for entry in inputs_of(definition)}
    given = grouped({name: value for name, value in constants.items() if name in known})
    shown = {name: value for name, value in given.items() if takes_all or name in judged}
    try:
        verdict = judge(**shown)
    except Exception as error:
        is_ours = isinstance(error, TopsError)
        text = _shown_verdict(str(error)) if is_ours else shorten(f"{type(error).__name__}: {error}")
        return [Fault("exception_during_validation", "Exception when validating node", text)]
    if verdict is True:
        return []
    entries = [entry for entry in inputs_of(definition) if entry.name in shown]
    return [
        Fault(
            "custom_validation_failed",
            "Custom validation failed for node",
            f"{entry.name} - {_shown_verdict(verdict)}" if isinstance(verdict, str) else entry.name,
            _extra(entry, values.get(entry.name)),
        )
        for entry in entries
    ]


def _shown_verdict(verdict: str) -> str:
    return verdict if len(verdict) <= MAX_SHOWN_VERDICT else f"{verdict[:MAX_SHOWN_VERDICT]}..."


def _is_rounded_up(value: Any, largest: Any) -> bool:
    """Return whether an integer is the largest one as a browser writes it: 2**64 - 1 becomes 2**64 + 384."""
    if not isinstance(value, int) or not isinstance(largest, int):
        return False
    return largest < value <= largest + largest // 2**53
