"""The `tops` command.

Every module of this package is imported and registers its command with :data:`tops_engine.cli.app.app`. Other packages
add commands by entry points of the group ``tops_engine.commands`` (see :mod:`tops_engine.registry`).
"""

import importlib
import io
import pkgutil
import signal
import sys
import warnings
from typing import Any

from rich.markup import escape

from tops_engine.cli.app import COMMANDS, app
from tops_engine.cli.output import err
from tops_engine.errors import TopsError

INTERRUPTED = 130


def main() -> None:
    """Run the command line.

    Errors of the engine become one line on stderr and exit code 1. Ctrl-C exits with code 130.
    """
    signal.signal(signal.SIGINT, lambda *_: sys.exit(INTERRUPTED))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # An answer may hold characters that the encoding of the terminal or pipe lacks (Windows, LANG=C).
        sys.stdout.reconfigure(errors="replace")
    warnings.showwarning = _show_warning
    load_commands()
    try:
        app()
    except TopsError as error:
        err.print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


def load_commands() -> None:
    """Import the modules of all commands, so that they are registered with :data:`app`."""
    # Not when this package is imported: a plugin that fails gives a warning, which has to be shown as one line.
    for module in pkgutil.iter_modules(__path__):
        if module.name != "__main__":
            importlib.import_module(f"{__name__}.{module.name}")
    COMMANDS.load()


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    err.print(f"[yellow]Warning:[/] {escape(str(message))}", highlight=False, soft_wrap=True)
