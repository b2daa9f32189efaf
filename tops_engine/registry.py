"""Registries of pruning methods, model families and commands, including those that plugins define.

A plugin is a module that defines methods, families or commands when it is imported. There are two ways to name one:

- a package declares an entry point in the group ``tops_engine.methods``, ``tops_engine.families`` or
  ``tops_engine.commands``;
- the environment variable ``TOPS_PLUGINS`` lists importable modules and paths of ``.py`` files, separated by commas.

Both are code that the user of this machine installed or named. No workflow, checkpoint or request can name a plugin.
"""

import importlib
import importlib.util
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Generic, TypeVar

#: Modules and paths of ``.py`` files to import, separated by commas.
PLUGINS_VARIABLE = "TOPS_PLUGINS"

Entry = TypeVar("Entry", bound=Callable[..., object])

#: One lock for all registries, since a plugin may define entries of several. The thread that imports a plugin may read
#: a registry meanwhile.
_loading = threading.RLock()
_tried: set[str] = set()


class Registry(Mapping[str, Entry], Generic[Entry]):
    """The classes or functions of one kind, by name and in the order of their names.

    Plugins are imported when the registry is read for the first time. A plugin that cannot be imported gives a warning
    and is left out.

    Parameters
    ----------
    kind : what an entry is called in error messages, such as "method".
    group : the group of entry points whose modules define further entries.
    """

    def __init__(self, kind: str, group: str) -> None:
        self._kind = kind
        self._group = group
        self._entries: dict[str, Entry] = {}
        self._begun = self._loaded = False

    def add(self, entry: Entry, names: Iterable[str], **required: object) -> None:
        """Register a class or function under its names.

        An entry replaces one of the same module and qualified name: a notebook cell that runs again defines its class
        again.

        Parameters
        ----------
        required : further values that the entry must have, by what they are called in the error message.

        Raises
        ------
        TypeError
            If the entry has no name or docstring, if a required value is empty, or if another entry has the name.
        """
        names = tuple(names)
        title = f"{self._kind} {getattr(entry, '__qualname__', entry)}"
        needed = {"name": all(names) and names, "docstring": entry.__doc__, **required}
        missing = [what for what, value in needed.items() if not value]
        if missing:
            raise TypeError(f"The {title} has no {' and no '.join(missing)}.")
        for name in names:
            if name in self._entries and _origin(self._entries[name]) != _origin(entry):
                raise TypeError(f"The {title} is called {name!r}, and so is {_origin(self._entries[name])}; rename it.")
        self._entries |= dict.fromkeys(names, entry)

    def remove(self, name: str) -> None:
        """Remove an entry.

        Raises
        ------
        KeyError
            If there is no such entry.
        """
        del self._entries[name]

    def load(self) -> None:
        """Import the plugins, unless that was done before."""
        if self._loaded:
            return
        with _loading:
            if self._begun:  # a plugin reads the registry while it is imported, or another thread loaded everything
                return
            self._begun = True
            for entry_point in sorted(entry_points(group=self._group), key=lambda entry_point: entry_point.value):
                package = entry_point.dist.name if entry_point.dist else "an unknown package"
                _import_once(f"{entry_point.value} (of the package {package})", entry_point.load)
            for plugin in filter(None, map(str.strip, os.environ.get(PLUGINS_VARIABLE, "").split(","))):
                _import_once(f"{plugin} (from {PLUGINS_VARIABLE})", partial(_import_plugin, plugin))
            self._loaded = True

    def __getitem__(self, name: str) -> Entry:
        self.load()
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        self.load()
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        self.load()
        return len(self._entries)


def _origin(entry: Callable[..., object]) -> str:
    return f"{entry.__module__}.{getattr(entry, '__qualname__', hex(id(entry)))}"


def _import_once(title: str, load: Callable[[], object]) -> None:
    if title in _tried:
        return
    _tried.add(title)
    try:
        load()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(f"The plugin {title} cannot be imported and is left out: {reason}", stacklevel=2)


def _import_plugin(plugin: str) -> None:
    """Import a module by its name, or a ``.py`` file by its path."""
    if not plugin.endswith(".py"):
        importlib.import_module(plugin)
        return
    path = Path(plugin).expanduser().resolve()
    name = re.sub(r"\W", "_", f"tops_plugin{path.with_suffix('')}")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "the name ends in .py"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
