"""`tops studio`."""

import subprocess
import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from tops_workflow.host import USER_FOLDER

from tops_engine.cli.app import app
from tops_engine.cli.output import err
from tops_engine.errors import InvalidInput, MissingDependency
from tops_engine.remote.addresses import is_loopback


@app.command()
def studio(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8189,
    listen: Annotated[
        str, typer.Option(help="Address to listen on; an address that other machines can reach needs --token.")
    ] = "127.0.0.1",
    token: Annotated[
        str | None, typer.Option(help="Secret that browsers must send; needed to listen to other machines.")
    ] = None,
    folder: Annotated[
        Path, typer.Option(help="Holds input, output, models, saved workflows and the history.")
    ] = USER_FOLDER,
    model: Annotated[str, typer.Option(help="Model to load in the background at the start; empty for none.")] = "mini",
    open: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    comfyui: Annotated[
        Path | None,
        typer.Option(help="Start the ComfyUI in this folder with the TOPS nodes instead; it uses its own files."),
    ] = None,
    comfyui_address: Annotated[
        str, typer.Option(help="Address of a running ComfyUI, to which File, Open in ComfyUI sends the graph.")
    ] = "http://127.0.0.1:8188",
) -> None:
    """Build and run graphs in the browser: the official ComfyUI frontend with the TOPS nodes, without ComfyUI."""
    if comfyui is not None:
        if token is not None:
            raise InvalidInput("ComfyUI has no token; leave out --token.")
        _start_comfyui(comfyui, listen, port, open)
        return
    try:
        from tops_studio.launch import serve
    except ImportError as error:
        raise MissingDependency("TOPS Studio needs its extra: pip install 'tops-engine[studio]'.") from error
    if not is_loopback(listen) and not token:
        raise InvalidInput(f"Other machines can reach {listen}; give a --token of at least 16 characters.")
    if token is not None and len(token) < 16:
        raise InvalidInput("The token is too short; use at least 16 characters.")

    folder = folder.expanduser()

    def started(url: str) -> None:
        err.print(f"TOPS Studio: {url}  (Ctrl-C stops it; files are in {folder})", highlight=False, soft_wrap=True)
        if open:
            webbrowser.open(url)

    serve(folder, listen, port, token, model or None, started, comfyui_address)


def _start_comfyui(folder: Path, listen: str, port: int, open: bool) -> None:
    from tops_workflow.comfyui_cli import link, linked_already

    if not (folder / "main.py").is_file():
        raise InvalidInput(f"{folder} is not a ComfyUI folder: it has no main.py.")
    if linked_already(folder) is None:
        link(folder)
    homes = (folder / ".venv", folder / "venv", folder.parent / "python_embeded")
    places = [home / part for home in homes for part in ("bin/python", "Scripts/python.exe", "python.exe")]
    python = next((str(place) for place in places if place.is_file()), sys.executable)
    command = [python, "main.py", "--listen", listen, "--port", str(port)]
    # A child process: Ctrl-C reaches it too, and Windows cannot replace a process.
    code = subprocess.run([*command, "--auto-launch" if open else "--disable-auto-launch"], cwd=folder, check=False)
    raise typer.Exit(code.returncode)
