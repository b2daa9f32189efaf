"""The nodes TOPS Pruning and TOPS Recipe."""

from pathlib import Path
from typing import Any

from tops_engine.errors import InvalidInput, TopsError, quote, reason_of, shorten
from tops_engine.files import inside, read_text_file, write_whole
from tops_engine.methods import METHODS, Method
from tops_engine.settings import Pruning, pruning_fields
from tops_engine.settings.method_options import file_options
from tops_engine.settings.pruning_file import options_from_json

from .budgets import check_budget
from .comfyui_host import host, refusal
from .sockets import PRUNING, expect_pruning
from .widgets import Widget, advanced, shown_for, value_of, widget

#: Options of methods that have a widget of their own. Users write the others into `options`, so that new methods change
#: neither the widgets nor saved workflows.
OWN_WIDGETS = ("alpha", "lambda", "raters")

#: The value of `then` for one method alone.
ALONE = "none"

THEN_TIP = (
    "Composes two methods under the same budget: `method` prunes before the language model, and this one between its "
    "layers, such as divprune and then fastv."
)

CASCADE_TIP = (
    "Larger budgets than `keep`, such as 0.5 or 0.333+1.0: an answer of which the model is not sure is written again "
    "with the next one. Empty uses `keep` alone."
)

MOST_TOKENS = 65536


class PruningSettings:
    """Choose method, budget and options of the pruning."""

    NODE_ID = "TOPSPruning"
    TITLE = "TOPS Pruning (fewer visual tokens)"
    CATEGORY = "TOPS"
    DESCRIPTION = "Sets which visual tokens are kept: the method, the budget and the options of the method."
    SEARCH_ALIASES = ["token pruning", "speed", "fastv", "visual tokens"]
    RETURN_TYPES = (PRUNING,)
    RETURN_NAMES = ("pruning",)
    OUTPUT_TOOLTIPS = ("Connect it to the pruning input of a TOPS node that asks a model.",)
    FUNCTION = "settings"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        fields = {name: field for name, (field, _) in pruning_fields().items()}
        keep = {"default": 0.222, "min": 0.001, "max": float(MOST_TOKENS), "step": 0.001, "round": 0.001}
        keep_tip = " Values up to 1.0 are fractions; whole numbers from 2 are numbers of tokens."
        own = {name: _own_widget(name) for name in OWN_WIDGETS}
        return {
            "required": {
                "method": (sorted(METHODS), {"default": "tops", "tooltip": _methods_tooltip()}),
                "keep": ("FLOAT", keep | {"tooltip": (fields["keep"].description or "") + keep_tip}),
                **advanced({"schedule": widget(fields["schedule"]), **own, "positions": widget(fields["positions"])}),
            },
            "optional": advanced(
                {
                    "options": ("STRING", {"default": "", "multiline": True, "tooltip": _options_tooltip()}),
                    "then": ([ALONE, *_methods_between_layers()], {"default": ALONE, "tooltip": THEN_TIP}),
                    "cascade": ("STRING", {"default": "", "tooltip": CASCADE_TIP}),
                    "confident": widget(fields["confident"]),
                }
            ),
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        method: str | None,
        keep: float | None,
        options: str | None = "",
        then: str | None = "none",
        cascade: str | None = "",
        confident: float | None = 0.0,
    ) -> bool | str:
        if method is None or keep is None or options is None or then is None or cascade is None or confident is None:
            return True  # linked inputs are not known yet
        values: dict[str, Any] = {"method": method, "keep": keep, "options": options, "then": then, "cascade": cascade}
        try:
            pruning = pruning_from(**values | {"keep": float(keep)}, confident=confident)
            check_budget(pruning, values)
        except (TopsError, ValueError) as error:
            return refusal(str(error))
        return True

    def settings(self, **values: Any) -> tuple[Pruning]:
        return (pruning_from(**values),)


def pruning_from(
    method: str = "tops",
    keep: float = 0.222,
    schedule: str = "",
    positions: str = "default",
    options: str = "",
    then: str = ALONE,
    cascade: str = "",
    confident: float = 0.0,
    **own: Any,
) -> Pruning:
    """Return the settings of widget values; method options at their default are left to the method or the preset."""
    fields = {name: field for name, (field, _) in pruning_fields().items()}
    given: dict[str, Any] = {name: value for name, value in own.items() if value != fields[name].default}
    for line in options.replace(",", "\n").splitlines():
        name, equals, value = line.strip().partition("=")
        if equals:
            given[name.strip()] = value.strip()
        elif name:
            raise InvalidInput(f"options has the line {quote(line.strip())}; write one name=value in each line.")
    for name in file_options():
        if name in given:
            raise InvalidInput(f"options take no {name}; load it with TOPS Recipe.")
    if keep > 1 and keep != int(keep):
        raise InvalidInput(f"keep={keep} is not allowed: give a fraction up to 1.0, or a whole number from 2.")
    if confident:
        given["confident"] = confident
    first = int(keep) if keep > 1 else float(keep)
    return Pruning(
        method=method if then == ALONE else f"{method}+{then}",
        keep=f"{first}+{cascade}" if cascade.strip() else first,
        schedule=value_of(fields["schedule"], schedule),
        positions=value_of(fields["positions"], positions),
        **given,
    )


def _own_widget(name: str) -> Widget:
    """Return the widget of an option that some methods have."""
    field, methods = pruning_fields()[name]
    default = "The default leaves the value to the method or the preset."
    tooltip = f"{field.description} Methods: {', '.join(methods)}. {default}"
    return shown_for(widget(field, tooltip=tooltip), method=methods, then=methods)


def _methods_tooltip() -> str:
    lines = [f"{name}: {(METHODS[name].__doc__ or '').strip().splitlines()[0]}" for name in sorted(METHODS)]
    return "\n".join(["The rule that chooses the tokens.", *lines])


def _methods_between_layers() -> list[str]:
    return [name for name in sorted(METHODS) if METHODS[name].select_at_layer is not Method.select_at_layer]


def _options_tooltip() -> str:
    lines = ["Other options, one name=value in each line:"]
    widgets = {"method", "keep", "schedule", "positions", "confident", *OWN_WIDGETS}
    for name, (field, methods) in pruning_fields().items():
        if name not in widgets:
            lines.append(f"{name} ({', '.join(methods) or 'all methods'}): {field.description}")
    return "\n".join(lines)


class Recipe:
    """Save pruning settings in a file, or load them."""

    NODE_ID = "TOPSRecipe"
    TITLE = "TOPS Recipe (save, load pruning)"
    CATEGORY = "TOPS"
    DESCRIPTION = (
        "Saves pruning settings in a JSON file, or loads them: it saves what is connected, and loads the file if "
        "nothing is connected."
    )
    SEARCH_ALIASES = ["save pruning", "load pruning", "preset"]
    RETURN_TYPES = (PRUNING, "STRING")
    RETURN_NAMES = ("pruning", "json")
    OUTPUT_TOOLTIPS = ("The settings that were saved or loaded.", "The JSON text of the file.")
    FUNCTION = "recipe"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        name = "Name of the file: saved in output/tops_recipes, loaded from there, from input or from models/TOPS."
        return {
            "required": {"name": ("STRING", {"default": "my_recipe", "tooltip": name})},
            "optional": {
                "pruning": (PRUNING, {"tooltip": "Settings to save. If nothing is connected, the file is loaded."})
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, name: str | None) -> bool | str:
        try:
            _file_name(name or "pruning")
        except TopsError as error:
            return refusal(str(error))
        return True

    @classmethod
    def IS_CHANGED(cls, name: str, pruning: Pruning | None = None) -> Any:
        path = _find_pruning_file(name)
        return (path.stat().st_mtime_ns, path.stat().st_size) if path is not None else float("nan")

    def recipe(self, name: str, pruning: Pruning | None = None) -> dict[str, Any]:
        if pruning is not None:
            path = pruning_file(name)
            settings = expect_pruning(pruning)
            text = settings.model_dump_json(indent=2)
            _write(path, text)
            told = f"saved {path.name}"
        else:
            found = _find_pruning_file(name)
            if found is None:
                looked = ", ".join(shorten(folder) for folder in _pruning_folders())
                raise InvalidInput(f"There is no pruning file {quote(name)} in {looked}.")
            text = _read(found)
            settings, told = read_pruning_file(text), f"loaded {found.name}"
        return {"ui": {"text": [f"{told}: {settings.label}, keep {settings.budget_text}"]}, "result": (settings, text)}


def read_pruning_file(text: str) -> Pruning:
    """Return the pruning settings in the JSON of a pruning file."""
    options = options_from_json(text, "The pruning file")
    for name in file_options():
        if isinstance(options.get(name), str):
            raise InvalidInput(
                f"{name} in the pruning file names a file, which a workflow may not read; write its content there."
            )
    return Pruning(**options)


def _read(path: Path) -> str:
    try:
        return read_text_file(path)
    except (OSError, UnicodeDecodeError) as error:
        why = reason_of(getattr(error, "strerror", None) or error)
        raise InvalidInput(f"The pruning file {shorten(path)} cannot be read: {why}.") from error


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, f"{text}\n".encode())
    except OSError as error:
        raise InvalidInput(f"The pruning file {shorten(path)} cannot be written: {error.strerror}.") from error


def pruning_file(name: str) -> Path:
    """Return the path where the pruning file of that name is saved."""
    return inside(_pruning_folders()[0], _file_name(name), follow_links=True)


def _file_name(name: str) -> str:
    if not name.strip() or name.startswith(".") or any(sign in name for sign in "/\\:"):
        raise InvalidInput(f"{quote(name)} is not the name of a pruning file; use a plain file name without folders.")
    return name if name.endswith(".json") else f"{name}.json"


def _pruning_folders() -> list[Path]:
    """Return the folders of pruning files; files are saved in the first one."""
    folders = host().folders
    return [folders.output / "tops_recipes", folders.input, *folders.models.get("TOPS", [])]


def _find_pruning_file(name: str) -> Path | None:
    candidates = (inside(folder, _file_name(name), follow_links=True) for folder in _pruning_folders())
    return next((path for path in candidates if path.is_file()), None)
