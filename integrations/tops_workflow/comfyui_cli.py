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

comfyui = typer.Typer(help="TOPS in an existing ComfyUI.", no_args_is_help=True)
app.add_typer(comfyui, name="comfyui")


@comfyui.callback()
def _group() -> None:
    """Keeps `link` a command of its own while it is the only one."""


@comfyui.command()
def link(path: Annotated[Path, typer.Argument(help="ComfyUI's folder, the one that holds custom_nodes.")]) -> None:
    """Make ComfyUI find the TOPS nodes of this installation: it looks into custom_nodes only, not at packages."""
    from tops_workflow.pack import pack_folder

    source, target = pack_folder(), _custom_nodes(path) / FOLDER
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        raise InvalidInput(f"{target} is there already and was not made by this command; remove it first.")
    present = linked_already(path)
    if present is not None:
        raise InvalidInput(f"{present} is this installation already; nothing needs to be done.")
    if _linked(source, target):
        what = "linked; it follows this installation."
    else:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        what = "copied, as links are not possible here; run this again after every update."
    out.print(f"{target} → {source}: {what}", markup=False, highlight=False, soft_wrap=True)
    remedy = f"pip install -r {source / 'requirements.txt'}"
    out.print(f"ComfyUI's own Python needs: {remedy}", markup=False, highlight=False, soft_wrap=True)
    out.print("Then restart ComfyUI; the nodes are under TOPS, the workflows under Templates.", highlight=False)


def linked_already(path: Path) -> Path | None:
    """Where ComfyUI's custom_nodes holds this installation, if it does."""
    from tops_workflow.pack import pack_folder

    source = pack_folder().resolve()
    return next((other for other in _custom_nodes(path).iterdir() if other.resolve() == source), None)


def _custom_nodes(path: Path) -> Path:
    folder = path / "custom_nodes"
    if not folder.is_dir():
        raise InvalidInput(f"{path} is no ComfyUI: it holds no folder custom_nodes.")
    return folder


def _linked(source: Path, target: Path) -> bool:
    try:
        os.symlink(source, target, target_is_directory=True)
    except OSError:  # Windows without developer mode
        return False
    return True
