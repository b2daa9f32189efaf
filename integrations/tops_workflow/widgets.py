"""The inputs of a node class, and the widgets that the frontend shows for them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tops_workflow.definitions import Definition
from tops_workflow.growing import AUTOGROW

#: Types of inputs that the frontend shows as widgets, with the value of a new widget.
WIDGET_DEFAULTS: dict[str, Any] = {
    "INT": 0,
    "FLOAT": 0.0,
    "BOOLEAN": False,
    "STRING": "",
    "MARKDOWN": "",
    "TEXTAREA": "",
    "COMBO": "",
    "COLOR": "#000000",
    "CHART": {},
    "COLORS": [],
    "BOUNDING_BOXES": [],
    "BOUNDING_BOX": {"x": 0, "y": 0, "width": 512, "height": 512},
    "CURVE": {"points": [[0, 0], [1, 1]], "interpolation": "monotone_cubic"},
    "RANGE": {"min": 0.0, "max": 1.0},
    "GALLERIA": [],
    "PAINTER": "",
    "COMPOSITOR": {},
    "LIGHT_INFO_PREVIEW": [],
    "IMAGECOMPARE": ["", ""],
    "RESOLUTION_PREVIEW": None,
}
#: A combo whose choices have inputs of their own, named ``choice.input``.
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
#: Sockets that take the type of their link.
MATCH_TYPE = "COMFY_MATCHTYPE_V3"

#: Integer inputs with these names get a control widget even where the definition does not ask for one.
SEEDS = ("seed", "noise_seed")
#: Options of a combo that add an upload button to the node.
UPLOADS = ("image_upload", "video_upload", "animated_image_upload", "audio_upload")
UPLOAD_BUTTON = "upload"

#: The value of a control widget that keeps a seed as it is.
FIXED = "fixed"

#: The value of a combo that has no choices and no saved value; a prompt does not contain it.
MISSING: Any = object()


@dataclass(frozen=True)
class Input:
    """One input of a node class.

    Attributes
    ----------
    name, kind, options : as defined; ``kind`` is ``COMBO`` for a list of choices.
    choices : of a combo.
    required : whether a prompt has to contain it.
    """

    name: str
    kind: str
    options: dict[str, Any]
    choices: list[Any] | None
    required: bool

    @property
    def widget_kind(self) -> str:
        """The type of the widget, which may differ from the type of the socket."""
        return str(self.options.get("widgetType") or self.kind)

    @property
    def is_widget(self) -> bool:
        known = self.widget_kind in WIDGET_DEFAULTS or self.widget_kind == DYNAMIC_COMBO
        return known and not self.options.get("forceInput", False)

    @property
    def default(self) -> Any:
        """The value that the frontend shows in a new node."""
        if self.kind == DYNAMIC_COMBO:
            return next(iter(self.variants), MISSING)
        if self.kind == "COMBO":
            if self.options.get("multi_select"):
                return self.options.get("default", [])
            first = self.choices[0] if self.choices else MISSING
            return self.options.get("default") or first
        default = self.options.get("default")
        return WIDGET_DEFAULTS.get(self.widget_kind, "") if default is None else default

    @property
    def variants(self) -> "dict[str, list[Input]]":
        """The inputs that each choice of a dynamic combo adds."""
        found = {}
        for option in self.options.get("options") or []:
            sections = option.get("inputs") or {}
            found[str(option["key"])] = [
                _input(f"{self.name}.{name}", spec, section == "required")
                for section in ("required", "optional")
                for name, spec in (sections.get(section) or {}).items()
            ]
        return found

    @property
    def controls(self) -> list[Any]:
        """The values of the control widgets that follow this widget."""
        wanted = self.options.get("control_after_generate")
        if wanted is None:
            wanted = self.widget_kind == "INT" and self.name in SEEDS
        if not wanted or self.widget_kind not in ("INT", "FLOAT", "COMBO"):
            return []
        return [FIXED, ""] if self.kind == "COMBO" else [FIXED]


@dataclass
class Widget:
    """A widget of a node.

    Attributes
    ----------
    name, value : as the frontend has them.
    entry : the input it belongs to; None for a control, an upload button and the like.
    saved : whether it takes a slot of ``widgets_values``.
    """

    name: str
    value: Any
    entry: Input | None
    saved: bool = True


def inputs_of(definition: Definition) -> list[Input]:
    """Return all inputs of a node class in the frontend's order: required, optional, then those without an order."""
    sections = {name: definition["input"].get(name) or {} for name in ("required", "optional")}
    order = definition.get("input_order") or {}
    names = [
        (section, name) for section, specs in sections.items() for name in order.get(section, specs) if name in specs
    ]
    rest = [(section, name) for section, specs in sections.items() for name in specs if (section, name) not in names]
    return [_input(name, sections[section][name], section == "required") for section, name in names + rest]


def node_widgets(definition: Definition, take: Callable[[str, Any], Any]) -> list[Widget]:
    """Return the widgets of a node in the frontend's order.

    Parameters
    ----------
    take : gives the value of each widget that is saved, called with its name and its default, in order. Later widgets
        depend on the value of a dynamic combo.
    """
    widgets = list(_widgets(inputs_of(definition), take))
    if has_upload(definition):
        widgets.append(Widget(UPLOAD_BUTTON, take(UPLOAD_BUTTON, "image"), None))
    return widgets


def has_widget(definition: Definition, widgets: Iterable[Widget], name: str) -> bool:
    """Return whether a node has a widget of that name, given those that :func:`node_widgets` returns.

    The inputs of a group that grows may have widgets, which the definition does not list.
    """
    entries = {entry.name: entry for entry in inputs_of(definition)}
    group = entries.get(name.rpartition(".")[0])
    grows = group is not None and group.kind.startswith("COMFY_") and group.kind != DYNAMIC_COMBO
    own = name in entries and entries[name].is_widget
    return own or grows or any(widget.name == name for widget in widgets)


def has_upload(definition: Definition) -> bool:
    """Return whether the frontend adds an upload button, whose value takes the last slot of ``widgets_values``."""
    entries = [entry for entry in inputs_of(definition) if entry.required and entry.kind == "COMBO"]
    return any(is_upload(entry) for entry in entries)


def is_upload(entry: Input) -> bool:
    """Return whether the user can upload a file for this input."""
    return any(entry.options.get(option) is True for option in UPLOADS)


def sockets(entries: Iterable[Input]) -> list[tuple[str, str]]:
    """Return the names and types of a new node's inputs: sockets first, then those of the widgets."""
    entries = list(entries)
    plain = [socket for entry in entries if not entry.is_widget for socket in _sockets(entry)]
    return plain + [(entry.name, entry.kind) for entry in entries if entry.is_widget]


def as_text(value: Any) -> Any:
    """Return a value as a browser shows it in a text field."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int | float) else value


def _sockets(entry: Input) -> list[tuple[str, str]]:
    template = entry.options.get("template") or {}
    if entry.kind == MATCH_TYPE:
        return [(entry.name, str(template.get("allowed_types", "*")))]
    if entry.kind != AUTOGROW:
        return [(entry.name, entry.kind)]
    inner = [
        _input(name, spec, False) for some in (template.get("input") or {}).values() for name, spec in some.items()
    ]
    names = template.get("names")
    count = min(1 + template.get("min", 1), len(names) if names else template.get("max", 100))
    found = []
    for number in range(count):
        for one in inner:
            plain = names[number] if names else f"{template.get('prefix', '') if len(inner) == 1 else one.name}{number}"
            found.append((f"{entry.name}.{plain}", one.kind))
    return found


def _input(name: str, spec: list[Any], required: bool) -> Input:
    kind, options = spec[0], dict(spec[1]) if len(spec) > 1 and isinstance(spec[1], dict) else {}
    choices = kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None
    return Input(name, "COMBO" if isinstance(kind, list) else str(kind), options, choices, required)


def _widgets(entries: Iterable[Input], take: Callable[[str, Any], Any]) -> Iterator[Widget]:
    for entry in entries:
        if not entry.is_widget or entry.widget_kind == "RESOLUTION_PREVIEW":  # which is neither saved nor sent
            continue
        if entry.widget_kind == "IMAGECOMPARE":
            yield Widget(entry.name, entry.default, entry, saved=False)
            continue
        value = take(entry.name, entry.default)
        if value is None and entry.kind == "COMBO" and entry.choices:
            value = entry.choices[0]
        if entry.widget_kind == "STRING" and entry.options.get("multiline"):
            value = as_text(value)
        yield Widget(entry.name, value, entry)
        if entry.kind == DYNAMIC_COMBO:
            yield from _widgets(entry.variants.get(str(value), []), take)
        if entry.widget_kind == "BOUNDING_BOX":
            for side in ("x", "y", "width", "height"):
                yield Widget(side, take(side, entry.default.get(side)), None)
        for number, value in enumerate(entry.controls):
            name = ("control_after_generate", "control_filter_list")[number]
            yield Widget(name, take(name, value), None)
