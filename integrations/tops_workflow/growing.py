"""Groups of inputs that grow with their links, as ComfyUI's ``Autogrow`` has them.

A node defines one group, such as ``images``. The frontend shows its first input, and another one whenever the last is
linked. A prompt names each linked input ``group.input``; the node gets one dictionary for the group.
"""

from collections.abc import Sequence
from typing import Any

#: The type of a group in a definition.
AUTOGROW = "COMFY_AUTOGROW_V3"


def growing(group: str, kind: str, names: Sequence[str], tooltip: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the definition of a group whose inputs may all stay unlinked.

    Parameters
    ----------
    kind : the type of each input.
    names : of the inputs, in the order in which they appear.
    """
    template = {"input": {"required": {names[0]: [kind, {"tooltip": tooltip}]}}, "names": list(names), "min": 0}
    return {group: (AUTOGROW, {"tooltip": tooltip, "template": template})}


def is_group(spec: Sequence[Any]) -> bool:
    """Return whether an input is a group. Its template says so: a type for any input equals every type."""
    return len(spec) > 1 and "template" in spec[1]


def single_inputs(specs: dict[str, Any], most: int | None = None) -> dict[str, Any]:
    """Return the inputs of a node with each group replaced by its inputs.

    Parameters
    ----------
    specs : ``required`` or ``optional`` of a definition.
    most : inputs of a group; None is all.
    """
    found: dict[str, Any] = {}
    for name, spec in specs.items():
        if not is_group(spec):
            found[name] = spec
            continue
        template = spec[1]["template"]
        input_spec = next(one for some in template["input"].values() for one in some.values())
        found |= {f"{name}.{one}": input_spec for one in template["names"][:most]}
    return found


def grouped(values: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a node from a prompt's inputs: those named ``group.input`` as one dictionary a group."""
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        group, dot, one = name.partition(".")
        if dot:
            arguments.setdefault(group, {})[one] = value
        else:
            arguments[name] = value
    return arguments
