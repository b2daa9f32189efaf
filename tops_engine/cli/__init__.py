"""The `tops` command. A new command is one new file in this package, or an entry point `tops_engine.commands`."""

import importlib
import importlib.metadata
import io
import pkgutil
import signal
import sys
import warnings
from typing import Any

from rich.markup import escape

from tops_engine.cli.app import app
from tops_engine.cli.output import err
from tops_engine.errors import TopsError

INTERRUPTED = 130

for _module in pkgutil.iter_modules(__path__):
    if _module.name != "__main__":
        importlib.import_module(f"{__name__}.{_module.name}")
for _entry_point in importlib.metadata.entry_points(group="tops_engine.commands"):
    _entry_point.load()


def main() -> None:
    """Run the command line; errors of the engine become one line and exit code 1, Ctrl-C exit code 130."""
    signal.signal(signal.SIGINT, lambda *_: sys.exit(INTERRUPTED))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # An answer may hold characters that the terminal's or pipe's encoding lacks (Windows, LANG=C).
        sys.stdout.reconfigure(errors="replace")
    warnings.showwarning = _show_warning
    try:
        app()
    except TopsError as error:
        err.print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    err.print(f"[yellow]Warning:[/] {escape(str(message))}", highlight=False, soft_wrap=True)
