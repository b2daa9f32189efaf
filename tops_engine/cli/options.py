"""Command line flags derived from settings: every field becomes a flag, and the settings check the values."""

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints

import typer
from pydantic.fields import FieldInfo
from rich.markup import escape

from tops_engine.budget import Keep
from tops_engine.errors import InvalidInput, reason_of, shorten
from tops_engine.files import read_text_file
from tops_engine.settings import Pruning, Settings, pruning_fields
from tops_engine.settings.labels import read_prunings
from tops_engine.settings.pruning_file import options_from_json

PRUNING_FILE = "pruning_file"

#: What a budget behind an @ looks like; anything else is a part of the path.
NUMBER = re.compile(r"[0-9]*\.?[0-9]+([eE]-?[0-9]+)?")


def takes_settings(function: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameters of a command that are :class:`Settings` by one flag for each of their fields.

    A flag that is not given is not passed on, so that only the settings define defaults.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, tuple[type[Settings], dict[str, str]]] = {}
    parameters = []
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints[name]
        if not (inspect.isclass(hint) and issubclass(hint, Settings)):
            parameters.append(parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        flags = {}
        for field_name, (field, methods) in _fields(hint).items():
            keyword = field_name if field_name.isidentifier() and field_name != "lambda" else f"{field_name}_"
            flags[keyword] = field_name
            parameters.append(_flag(keyword, field_name, field, methods, hint.__name__))
        groups[name] = (hint, flags)
        if hint is Pruning:
            parameters.append(_pruning_file_flag())

    @functools.wraps(function)
    def command(**values: Any) -> None:
        for name, (settings, flags) in groups.items():
            given = {field: values.pop(keyword) for keyword, field in flags.items()}
            given = {field: value for field, value in given.items() if value not in (None, [])}
            path = values.pop(PRUNING_FILE, None) if settings is Pruning else None
            values[name] = settings(**(read_options(path) if path else {}) | given)
        function(**values)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def read_options(path: Path) -> dict[str, Any]:
    """Return the options in a JSON file that holds a :class:`Pruning`, such as `tops tune` writes, or a recipe."""
    source = f"The pruning file {shorten(path)}"
    try:
        text = read_text_file(path)
    except OSError as error:
        raise InvalidInput(f"{source} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{source} is not JSON: {reason_of(error)}.") from error
    return options_from_json(text, source)


def path_and_keep(text: str) -> tuple[str, Keep | None]:
    """Return the path and the own budget of ``photo.jpg@0.5``; None where there is no budget.

    A file whose name really ends like this is that file. ``photo.jpg@0.5@1.0`` gives it a budget.

    Raises
    ------
    InvalidInput
        If there is a number behind the @ that is not a budget, and no such file.
    """
    from tops_engine.conversation.messages import own_keep
    from tops_engine.media.sources import is_file

    path, at, number = text.rpartition("@")
    if not at or not NUMBER.fullmatch(number) or is_file(Path(text)):
        return text, None
    return path, own_keep({"keep": number})


def prunings_to_compare(
    methods: str | None, keep: str, files: Sequence[Path] | None, default: str, videos: bool = False
) -> list[Pruning]:
    """Return the prunings that the flags of a command name: every method at every budget, and those in files.

    Without methods and files, the ``default`` methods are compared. ``videos``: whether ``all`` names methods for
    videos, too.
    """
    files = files or ()
    named = methods or ("" if files else default)
    prunings = read_prunings(named, keep, videos) if named else []
    return prunings + [Pruning(**read_options(path)) for path in files]


def _pruning_file_flag() -> inspect.Parameter:
    option = typer.Option(
        "--pruning",
        help="JSON file with pruning options, such as `tops tune` writes; other flags override its options.",
        show_default=False,
        rich_help_panel=Pruning.__name__,
    )
    annotation = Annotated[Path | None, option]
    return inspect.Parameter(PRUNING_FILE, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _fields(settings: type[Settings]) -> dict[str, tuple[FieldInfo, list[str]]]:
    if settings is Pruning:
        return pruning_fields()
    return {name: (field, []) for name, field in settings.model_fields.items()}


def _flag(keyword: str, name: str, field: FieldInfo, methods: list[str], panel: str) -> inspect.Parameter:
    many = get_origin(field.annotation) is tuple
    default = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(default, frozenset):
        default = ",".join(sorted(default))
    help_text = (field.description or "") + (f" (Of: {', '.join(methods)}.)" if methods else "")
    if default not in (None, (), False):
        help_text += f" [default: {default}]"
    flag, is_switch = name.replace("_", "-"), field.annotation is bool
    option = typer.Option(
        f"--{flag}/--no-{flag}" if is_switch else f"--{flag}",
        help=escape(help_text),
        show_default=False,
        metavar=None if is_switch else _metavar(field),
        rich_help_panel=panel,
    )
    kind = list[str] if many else bool | None if is_switch else str | None
    annotation = Annotated[kind, option]  # type: ignore[valid-type]
    return inspect.Parameter(
        keyword, inspect.Parameter.KEYWORD_ONLY, default=[] if many else None, annotation=annotation
    )


def _metavar(field: FieldInfo) -> str:
    choices = getattr(field.annotation, "__args__", ())
    words = [choice for choice in choices if isinstance(choice, str)]
    for choice in choices:
        words += [word for word in getattr(choice, "__args__", ()) if isinstance(word, str)]
    if words:
        return "|".join(words)
    names = {int: "INTEGER", float: "NUMBER"}
    return next((names[kind] for kind in (field.annotation, *choices) if kind in names), "TEXT")
