"""Options of a method that are an object, such as a recipe, and that users name by a JSON file."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from tops_engine.errors import InvalidInput, quote, reason_of, shorten
from tops_engine.files import read_text_file

#: Marks an option whose text names a file or folder of this machine: ``Annotated[str, NAMES_FILE]``.
NAMES_FILE = "names a file of this machine"


class FileOption(BaseModel):
    """Base class of options that are an object with a JSON file.

    A method declares such an option as a field: ``recipe: Recipe | None = None``. Every surface then takes the path of
    a file, the content of its JSON, or the object itself.

    Attributes
    ----------
    kind : what the file holds, for error messages, such as "recipe".
    made_by : the command that writes the file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ClassVar[str]
    made_by: ClassVar[str]

    @property
    def label(self) -> str:
        """The name of an object without a file in the label of a pruning, without ``:`` and ``,``."""
        return self.kind

    def settings(self) -> dict[str, Any]:
        """Return the options of a ``Pruning`` that the object sets unless they are given beside it."""
        return {}

    @model_validator(mode="wrap")
    @classmethod
    def _from_file_or_json(cls, value: Any, validate: Any) -> Any:
        if isinstance(value, cls):
            return value
        name = quote(os.fspath(value)) if isinstance(value, str | os.PathLike) else "The value"
        try:
            return validate(cls._file_content(Path(value), name) if isinstance(value, str | os.PathLike) else value)
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            where = ".".join(map(str, detail["loc"]))
            reason = f"{where + ': ' if where else ''}{reason_of(detail['msg'].removeprefix('Value error, '))}"
            raise ValueError(
                f"{name} is not a {cls.kind} that this version reads: {reason}; make one with `{cls.made_by}`."
            ) from error

    @classmethod
    def _file_content(cls, path: Path, name: str) -> Any:
        try:
            return json.loads(read_text_file(path))
        except OSError as error:
            raise ValueError(f"The {cls.kind} {name} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise ValueError(f"{name} is not a {cls.kind}: it is not JSON ({reason_of(error)}).") from error

    @classmethod
    def read(cls, source: "str | os.PathLike[str] | Mapping[str, object] | Self") -> Self:
        """Return the object of a file, of the content of its JSON, or the object itself.

        Raises
        ------
        InvalidInput
            If there is no such file or it does not hold such an object.
        """
        try:
            return cls.model_validate(source)
        except ValidationError as error:
            raise InvalidInput(error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file.

        Raises
        ------
        InvalidInput
            If it cannot be written there.
        """
        try:
            Path(path).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise InvalidInput(f"The {self.kind} cannot be written to {shorten(path)}: {error.strerror}.") from error


def file_option_type(field: FieldInfo) -> type[FileOption] | None:
    """Return the type of an option that is an object with a file, or None for other options."""
    kinds = [kind for kind in get_args(field.annotation) or [field.annotation] if kind is not NoneType]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, FileOption)), None)


def names_file(field: FieldInfo) -> bool:
    """Return whether a text given for an option names a file or folder of this machine."""
    return NAMES_FILE in field.metadata or file_option_type(field) is not None
