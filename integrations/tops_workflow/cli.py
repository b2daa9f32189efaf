"""`tops workflow run | check | convert`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tops_engine.cli.app import app
from tops_engine.cli.output import check_folder, err, out
from tops_engine.errors import InvalidInput
from tops_workflow.host import USER_FOLDER, Folders

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tops_workflow.definitions import Definition
    from tops_workflow.formats import Graph, Prompt
    from tops_workflow.runner import RunReport

workflow = typer.Typer(
    help="Run, check and convert saved ComfyUI workflows, without ComfyUI or in one.", no_args_is_help=True
)
app.add_typer(workflow, name="workflow")

#: The most characters of live text that are shown.
SHOWN_TEXT = 60

FILE_HELP = "A saved workflow or API prompt (.json), or a picture that carries one (.png)."
FOLDER_HELP = (
    "Folder with the folders input, output, temp and models, as ComfyUI's own; `tops studio` has the same default."
)
FolderOption = Annotated[Path, typer.Option(help=FOLDER_HELP)]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help=FILE_HELP)]

ADDRESS_HELP = "Use the nodes of this running ComfyUI instead of the embedded ones, such as http://127.0.0.1:8188."
AddressOption = Annotated[str | None, typer.Option("--comfyui", metavar="URL", help=ADDRESS_HELP)]


@workflow.command()
def run(
    file: FileArgument,
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NODE.INPUT=VALUE",
            help="Change a widget before the run; NODE is an id, a title or a class.",
        ),
    ] = None,
    folder: FolderOption = USER_FOLDER,
    comfyui: AddressOption = None,
    json_: Annotated[bool, typer.Option("--json", help="Print what every output node shows as JSON.")] = False,
) -> None:
    """Run a workflow of TOPS nodes and basic core nodes, or any workflow in a ComfyUI.

    Pictures are written to FOLDER/output.
    """

    folders = Folders.under(folder.expanduser())
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=err, transient=True
    ) as progress:
        if comfyui is not None:
            report, prompt = _run_there(comfyui, file, set or [], folders, progress)
        else:
            report, prompt = _run_here(file, set or [], folders, progress)
    _show(report, prompt, folders.output, folders.temp, as_json=json_)


def _run_here(file: Path, assignments: list[str], folders: Folders, progress: Progress) -> "tuple[RunReport, Prompt]":
    from transformers.utils import logging

    from tops_workflow.registry import all_nodes
    from tops_workflow.runner import WorkflowRunner
    from tops_workflow.samples import provide_samples

    logging.disable_progress_bar()  # This command shows its own progress.
    nodes = all_nodes()
    prompt, graph = _read_prompt(file, nodes.definitions())
    _apply(prompt, assignments, nodes.definitions(), lambda picture: _copy(picture, folders.input))
    provide_samples(prompt, folders.input)
    carried = {"workflow": graph} if graph is not None else None
    runner = WorkflowRunner(nodes.classes, folders)
    return runner.run(prompt, None, carried, _Watcher(progress, prompt)), prompt


def _run_there(
    address: str, file: Path, assignments: list[str], folders: Folders, progress: Progress
) -> "tuple[RunReport, Prompt]":
    """Run the workflow in a ComfyUI, and download the pictures that it saved."""
    from tops_workflow.comfyui_client import ComfyUIClient

    comfyui = ComfyUIClient(address)
    definitions = comfyui.definitions()
    prompt, graph = _read_prompt(file, definitions)
    _apply(prompt, assignments, definitions, comfyui.upload)
    carried = {"workflow": graph} if graph is not None else None
    report = comfyui.run(prompt, carried, _Watcher(progress, prompt))
    for picture in (picture for shown in report.ui.values() for picture in shown.get("images", [])):
        folder = folders.output if picture["type"] == "output" else folders.temp
        path = folder / picture["subfolder"] / picture["filename"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(comfyui.view(picture))
    return report, prompt


@workflow.command()
def check(file: FileArgument, folder: FolderOption = USER_FOLDER) -> None:
    """List every problem: unknown nodes, broken links, values out of range, missing models and pictures.

    Nothing is written.
    """
    from tops_workflow.formats import read_workflow
    from tops_workflow.problems import problems_of
    from tops_workflow.registry import all_nodes
    from tops_workflow.runner import WorkflowRunner

    nodes = all_nodes()
    runner = WorkflowRunner(nodes.classes, Folders.under(folder.expanduser()))
    problems = problems_of(read_workflow(file), runner, nodes)
    for problem in problems:
        out.print(problem, markup=False, highlight=False, soft_wrap=True)
    if problems:
        noun = "problem" if len(problems) == 1 else "problems"
        raise InvalidInput(f"{file} has {len(problems)} {noun}.")
    out.print(f"{file} is fine.", markup=False, highlight=False)


@workflow.command()
def convert(
    file: FileArgument,
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Where to write the other format.")],
    comfyui: AddressOption = None,
) -> None:
    """Convert a saved workflow to an API prompt, or an API prompt to a workflow that can be opened."""
    from tops_workflow.comfyui_client import ComfyUIClient
    from tops_workflow.convert import graph_to_prompt
    from tops_workflow.formats import read_workflow
    from tops_workflow.layout import prompt_to_graph
    from tops_workflow.registry import all_nodes

    check_folder(output)
    definitions = ComfyUIClient(comfyui).definitions() if comfyui is not None else all_nodes().definitions()
    found = read_workflow(file)
    if found.graph is not None:
        converted: dict[str, Any] = graph_to_prompt(found.graph, definitions)
    else:
        assert found.prompt is not None
        converted = prompt_to_graph(found.prompt, definitions)
    output.write_text(json.dumps(converted, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    kind = "API prompt" if found.graph is not None else "workflow"
    err.print(f"{kind}: {output}", style="dim", highlight=False)


def _read_prompt(file: Path, definitions: "Mapping[str, Definition]") -> "tuple[Prompt, Graph | None]":
    from tops_workflow.convert import graph_to_prompt
    from tops_workflow.formats import read_workflow

    found = read_workflow(file)
    if found.graph is not None:
        return graph_to_prompt(found.graph, definitions), found.graph
    assert found.prompt is not None
    return found.prompt, None


def _apply(
    prompt: "Prompt",
    assignments: list[str],
    definitions: "Mapping[str, Definition]",
    bring: Callable[[Path], str],
) -> None:
    """Set widget values; ``bring`` copies a picture to where the workflow runs and returns its name there."""
    from tops_workflow.changes import set_value

    for assignment in assignments:
        picture = set_value(prompt, assignment, definitions)
        if picture is not None:
            set_value(prompt, f"{assignment.partition('=')[0]}={bring(picture)}", definitions)


def _copy(picture: Path, folder: Path) -> str:
    if picture.resolve() != (folder / picture.name).resolve():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, folder / picture.name)
    return picture.name


class _Watcher:
    """The display of the running node, with its progress and the end of its text."""

    def __init__(self, progress: Progress, prompt: "Prompt") -> None:
        self._progress = progress
        self._prompt = prompt
        self._task = progress.add_task("", total=None)
        self._title = ""

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "executing" and data["node"] in self._prompt:
            node = self._prompt[data["node"]]
            self._title = str(node.get("_meta", {}).get("title") or node["class_type"])
            self._progress.reset(self._task, description=escape(self._title), total=None)
        elif kind == "text":
            text = " ".join(data["text"].split())[-SHOWN_TEXT:]
            self._progress.update(self._task, description=escape(f"{self._title}: {text}"))
        elif kind == "progress":
            self._progress.update(self._task, completed=data["value"], total=data["max"])


def _show(report: "RunReport", prompt: "Prompt", output: Path, temp: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.ui, indent=2, ensure_ascii=False))
        return
    for node_id, shown in report.ui.items():
        node = prompt[node_id]
        out.print(f"{node.get('_meta', {}).get('title') or node['class_type']} ({node_id})", style="bold", markup=False)
        for text in shown.get("text", []):
            out.print(str(text), markup=False, highlight=False, soft_wrap=True)
        for note in shown.get("notes", []):
            out.print(str(note), style="dim", markup=False, highlight=False, soft_wrap=True)
        for picture in shown.get("images", []):
            folder = output if picture["type"] == "output" else temp
            out.print(
                str(folder / picture["subfolder"] / picture["filename"]), markup=False, highlight=False, soft_wrap=True
            )
