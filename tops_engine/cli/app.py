"""The typer application that every command registers with."""

from collections.abc import Callable
from typing import Any

import typer
from typer.models import CommandFunctionType

from tops_engine.registry import Registry

#: The commands by name; a group of commands, such as `tops workflow`, counts as one.
COMMANDS: Registry[Callable[..., object]] = Registry("command", "tops_engine.commands")


class App(typer.Typer):
    """A typer application that refuses two commands of one name, and commands without a help text."""

    def command(self, *args: Any, **options: Any) -> Callable[[CommandFunctionType], CommandFunctionType]:
        """Return a decorator that registers a command, as :meth:`typer.Typer.command` does."""
        decorate = super().command(*args, **options)

        def register(function: CommandFunctionType) -> CommandFunctionType:
            name = args[0] if args else options.get("name")
            COMMANDS.add(function, [name or function.__name__.replace("_", "-")])
            return decorate(function)

        return register

    def add_typer(self, typer_instance: typer.Typer, **options: Any) -> None:
        """Add a group of commands, as :meth:`typer.Typer.add_typer` does; it needs a ``name``."""
        COMMANDS.add(typer_instance, [options["name"]], help=typer_instance.info.help)
        super().add_typer(typer_instance, **options)


app = App(
    help="Ask vision-language models about pictures and videos with few visual tokens.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
