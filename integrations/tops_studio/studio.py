"""The folders, queue, store and connected frontends of a Studio, which the request handlers share."""

import threading
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from tops_workflow.host import Folders
from tops_workflow.registry import NodeSet, all_nodes
from tops_workflow.runner import WorkflowRunner
from tops_workflow.samples import SAMPLES, samples_folder

from tops_engine.engine import shared_engine
from tops_engine.settings import ModelSpec
from tops_studio.events import Clients
from tops_studio.jobs import JobQueue
from tops_studio.store import Store


@dataclass(frozen=True)
class Studio:
    """The state that request handlers share.

    Attributes:
        base: The folder with input, output, temp, models, user (saved workflows) and studio.db.
        folders: The folders below it that nodes use.
    """

    base: Path
    folders: Folders
    nodes: NodeSet
    runner: WorkflowRunner
    store: Store
    clients: Clients
    jobs: JobQueue

    @classmethod
    def open(cls, base: Path) -> "Studio":
        """Open the Studio in a folder; missing files and folders are created."""
        folders = Folders.under(base)
        user = base / "user"
        models = [folder for some in folders.models.values() for folder in some]
        for folder in (folders.input, folders.output, folders.temp, user / "workflows", *models):
            folder.mkdir(parents=True, exist_ok=True)
        _lay_out_samples(folders.input)
        nodes = all_nodes()
        store = Store(base / "studio.db")
        clients = Clients()
        runner = WorkflowRunner(nodes.classes, folders)
        return cls(base, folders, nodes, runner, store, clients, JobQueue(runner, store, clients))

    @property
    def user_folder(self) -> Path:
        """The folder of the frontend's files: saved workflows and styles."""
        return self.base / "user"

    def load_model(self, model: str) -> None:
        """Load a model in the background for the first question; an error is raised when the model is asked."""
        from transformers.utils import logging

        logging.disable_progress_bar()
        engine = shared_engine(ModelSpec(model=model))

        def load() -> None:
            try:
                _ = engine.family
            except Exception:  # The node that uses the model shows the error, with what to do.
                return

        threading.Thread(target=load, name="tops-studio-load", daemon=True).start()


STUDIO = web.AppKey("studio", Studio)


def _lay_out_samples(input_folder: Path) -> None:
    for name in SAMPLES:
        target = input_folder / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((samples_folder() / name).read_bytes())
