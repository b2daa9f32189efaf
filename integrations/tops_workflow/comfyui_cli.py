"""`tops comfyui link`."""

import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from tops_engine.cli.app import app
from tops_engine.cli.output import out
from tops_engine.errors import InvalidInput

FOLDER = "tops-engine"

comfyui = typer.Typer(help="Use TOPS in an existing ComfyUI.", no_args_is_help=True)
app.add_typer(comfyui, name="comfyui")


@comfyui.callback()
def _group() -> None:
    """Keep `link` a subcommand while it is the only one."""


@comfyui.command()
def link(path: Annotated[Path, typer.Argument(help="ComfyUI's folder, which holds custom_nodes.")]) -> None:
    """Link the TOPS nodes of this installation into custom_nodes, the only folder in which ComfyUI looks for nodes."""
    from tops_workflow.pack import pack_folder

    source, target = pack_folder(), _custom_nodes(path) / FOLDER
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        raise InvalidInput(f"{target} exists and was not made by this command; remove it first.")
    present = linked_already(path)
    if present is not None:
        raise InvalidInput(f"{present} is this installation already; there is nothing to do.")
    if _linked(source, target):
        what = "linked; updates of this installation apply."
    else:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        what = "copied, because links are not possible here; run this again after each update."
    out.print(f"{target} → {source}: {what}", markup=False, highlight=False, soft_wrap=True)
    remedy = f"pip install -r {source / 'requirements.txt'}"
    out.print(f"ComfyUI's own Python needs: {remedy}", markup=False, highlight=False, soft_wrap=True)
    out.print("Then restart ComfyUI; the nodes are under TOPS, the workflows under Templates.", highlight=False)


def linked_already(path: Path) -> Path | None:
    """Return the entry of ComfyUI's custom_nodes that is this installation, or None."""
    from tops_workflow.pack import pack_folder

    source = pack_folder().resolve()
    return next((other for other in _custom_nodes(path).iterdir() if other.resolve() == source), None)


def _custom_nodes(path: Path) -> Path:
    folder = path / "custom_nodes"
    if not folder.is_dir():
        raise InvalidInput(f"{path} is not a ComfyUI folder: it has no folder custom_nodes.")
    return folder


def _linked(source: Path, target: Path) -> bool:
    try:
        os.symlink(source, target, target_is_directory=True)
    except OSError:  # Windows without developer mode
        return False
    return True
