"""The host of the running node: ComfyUI, the embedded runner, or none (plain calls)."""

import logging
import sys
import threading
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tops_workflow.host import Folders, Host, Interrupted, QuietHost, checked_prompt, current_host

from tops_engine.errors import InvalidInput

if TYPE_CHECKING:
    from torch import nn

MODEL_KINDS = ("TOPS", "LLM")

#: Set when ComfyUI gave up the prompt of the node that runs in a thread of its own; another node was interrupted.
given_up: ContextVar[threading.Event | None] = ContextVar("given_up", default=None)

_log = logging.getLogger(__name__)


def register_model_folders() -> None:
    """Make ComfyUI know ``models/TOPS`` and ``models/LLM``, and create them. Folders that the user set come first."""
    if "folder_paths" not in sys.modules:
        return
    import folder_paths

    for kind in MODEL_KINDS:
        folder = Path(folder_paths.models_dir) / kind
        folder_paths.add_model_folder_path(kind, str(folder))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _log.warning("TOPS: the folder for checkpoints %s cannot be created: %s", folder, error)


def remember_prompts() -> None:
    """Make ``checked_prompt`` the prompt that ComfyUI checks: it gives it to no node."""
    if "server" not in sys.modules:
        return
    from server import PromptServer

    def remember(request: dict[str, Any]) -> dict[str, Any]:
        prompt = request.get("prompt")
        checked_prompt.set(prompt if isinstance(prompt, dict) else {})
        return request

    if getattr(PromptServer, "instance", None) is not None:
        PromptServer.instance.add_on_prompt_handler(remember)


def in_comfyui() -> bool:
    """Return whether ComfyUI runs the nodes; it imports its memory manager before it loads any node."""
    return current_host.get() is None and "comfy.model_management" in sys.modules


def host() -> Host:
    """Return the host of the running node."""
    return current_host.get() or (ComfyHost() if in_comfyui() else QuietHost())


class ComfyHost:
    """ComfyUI as a host, through its own modules. Create it in the thread that executes the node."""

    def __init__(self) -> None:
        self._bar: Any = None

    @property
    def folders(self) -> Folders:
        import folder_paths

        known = folder_paths.folder_names_and_paths
        models = {kind: [Path(path) for path in known[kind][0]] for kind in MODEL_KINDS if kind in known}
        return Folders(
            Path(folder_paths.get_input_directory()),
            Path(folder_paths.get_output_directory()),
            Path(folder_paths.get_temp_directory()),
            models,
            # The folder of a server with one user; with --multi-user a node does not know who asks.
            Path(folder_paths.get_user_directory()) / "default",
        )

    def progress(self, value: int, total: int) -> None:
        from comfy.utils import ProgressBar

        if self._bar is None:
            self._bar = ProgressBar(total)
        self._bar.update_absolute(value, total)

    def show_text(self, text: str) -> None:
        node = _running_node()
        if node is None:
            return
        from server import PromptServer

        server = getattr(PromptServer, "instance", None)
        if server is not None and server.client_id is not None:
            server.send_progress_text(text, node, sid=server.client_id)

    @property
    def interrupted(self) -> bool:
        from comfy import model_management

        return bool(model_management.processing_interrupted()) or _is_given_up()


def _is_given_up() -> bool:
    gave_up = given_up.get()
    return gave_up is not None and gave_up.is_set()


def _running_node() -> str | None:
    """Return the id of the running node, or None in versions of ComfyUI before 2025.

    A hidden input would give the id too, but it would prevent equal nodes from sharing a result.
    """
    try:
        from comfy_execution.utils import get_executing_context
    except ImportError:
        return None
    context = get_executing_context()
    return context.node_id if context is not None else None


def refusal(sentence: str) -> str:
    """Return what VALIDATE_INPUTS says of a value that is not allowed.

    ComfyUI and TOPS Studio repeat a returned sentence for each input that VALIDATE_INPUTS names, and the frontend's
    message leaves it out. They show what is raised once, and whole.

    Raises
    ------
    InvalidInput
        While ComfyUI or TOPS Studio checks a workflow.
    """
    if in_comfyui() or checked_prompt.get() is not None:
        raise InvalidInput(sentence)
    return sentence


def stop_if_interrupted(host: Host) -> None:
    """Raise the host's interruption if the user stopped the run."""
    if isinstance(host, ComfyHost):
        from comfy import model_management

        model_management.throw_exception_if_processing_interrupted()
        if _is_given_up():
            raise model_management.InterruptProcessingException
    elif host.interrupted:
        raise Interrupted


class StopWatch(threading.Event):
    """The ``cancel`` of a remote engine, which asks it in a thread of its own, where nothing may be raised."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self._host = host

    def is_set(self) -> bool:
        return self._host.interrupted or super().is_set()


class LayerWatch:
    """Raise the host's interruption before any layer of a model, while it reads a prompt.

    The hooks are on the blocks of the vision tower and of the language model. They are removed at the first token,
    because recorded steps run without them.
    """

    def __init__(self, model: "nn.Module", host: Host) -> None:
        from torch.nn import ModuleList

        self._host, self._thread = host, threading.get_ident()
        lists = [module for module in model.modules() if isinstance(module, ModuleList)]
        self._handles = [block.register_forward_pre_hook(self._check) for blocks in lists for block in blocks]

    def __enter__(self) -> "LayerWatch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _check(self, *_: Any) -> None:
        # Other threads may use the same model.
        if threading.get_ident() == self._thread:
            stop_if_interrupted(self._host)


class TokenWatch(threading.Event):
    """The ``cancel`` of an engine, which asks it before each token: it reports progress and raises interruptions.

    Parameters
    ----------
    host : the host of the running node.
    total : steps of the whole node.
    done : steps before this answer.
    stride : steps a token counts for: the size of the batch.
    layers : watched the prompt until now.
    """

    def __init__(
        self, host: Host, total: int, done: int = 0, stride: int = 1, layers: LayerWatch | None = None
    ) -> None:
        super().__init__()
        self._host, self._total, self._done, self._stride, self._layers = host, total, done, stride, layers

    def is_set(self) -> bool:
        if self._layers is not None:
            self._layers.close()
        stop_if_interrupted(self._host)
        self._done = min(self._done + self._stride, self._total)
        self._host.progress(self._done, self._total)
        return super().is_set()
