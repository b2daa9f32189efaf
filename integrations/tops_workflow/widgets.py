"""Which inputs of a node are widgets, and which slots of ``widgets_values`` they take in a saved graph."""

from dataclasses import dataclass
from typing import Any

from tops_workflow.definitions import Definition

WIDGET_TYPES = frozenset(("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"))
SEEDS = ("seed", "noise_seed")
UPLOADS = ("image_upload", "video_upload", "audio_upload", "upload")

#: What the frontend writes after a seed: leave it as it is.
FIXED = "fixed"


@dataclass(frozen=True)
class Input:
    """One input of a node class.

    Attributes
    ----------
    name, kind, options : as defined; ``kind`` is ``COMBO`` for a list of choices.
    choices : of a combo.
    required : whether a prompt has to give it.
    """

    name: str
    kind: str
    options: dict[str, Any]
    choices: list[Any] | None
    required: bool

    @property
    def is_widget(self) -> bool:
        return self.kind in WIDGET_TYPES and not self.options.get("forceInput", False)

    @property
    def extra_slots(self) -> list[Any]:
        """Values that follow the widget's own in ``widgets_values``: a seed's control, an upload button."""
        is_seed = self.kind == "INT" and (self.name in SEEDS or self.options.get("control_after_generate"))
        if is_seed:
            return [FIXED]
        uploads = self.kind == "COMBO" and any(self.options.get(upload) for upload in UPLOADS)
        return ["image"] if uploads else []

    @property
    def default(self) -> Any:
        """What the frontend shows in a new node."""
        if "default" in self.options:
            return self.options["default"]
        if self.choices:
            return self.choices[0]
        return {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(self.kind, "")


def inputs_of(definition: Definition) -> list[Input]:
    """All inputs of a node class in the frontend's order: required, then optional."""
    found = []
    for section in ("required", "optional"):
        specs = definition["input"].get(section, {})
        order = definition.get("input_order", {}).get(section, list(specs))
        for name in order:
            spec = specs[name]
            kind, options = spec[0], dict(spec[1]) if len(spec) > 1 and isinstance(spec[1], dict) else {}
            choices = kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None
            kind = "COMBO" if isinstance(kind, list) else kind
            found.append(Input(name, kind, options, choices, section == "required"))
    return found


def widget_values(definition: Definition, values: Any) -> dict[str, Any]:
    """Names for the ``widgets_values`` of a saved node; what the list lacks takes its default.

    Frontends ignore the object form (it names nothing they trust), and so is it here.
    """
    values = values if isinstance(values, list) else []
    named, position = {}, 0
    for entry in inputs_of(definition):
        if entry.is_widget:
            named[entry.name] = values[position] if position < len(values) else entry.default
            position += 1 + len(entry.extra_slots)
    return named
