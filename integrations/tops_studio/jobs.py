"""The queue: one thread runs the waiting prompts one after the other and notifies the frontends."""

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tops_workflow.faults import Checked
from tops_workflow.formats import Prompt
from tops_workflow.host import Interrupted
from tops_workflow.node_calls import NodeFailed
from tops_workflow.runner import WorkflowRunner

from tops_engine.engine import unload_shared_engines
from tops_studio.events import Clients
from tops_studio.store import Store

MAX_PENDING = 5000
FINISHED = ("completed", "failed", "cancelled")


@dataclass
class Job:
    """A queued, running or finished prompt. Times are milliseconds since 1970.

    Attributes:
        id: The prompt id.
        number: Its place in the queue: smaller runs earlier.
        prompt: What to run.
        checked: The result of checking it.
        extra_data: What the frontend sent along.
        client_id: The client that receives its progress.
        status: pending, in_progress, completed, failed or cancelled.
        outputs: What each node shows, by node id.
        messages: The events of the run, in the form of ComfyUI's history.
        error: The error of a failed job.
        interrupted: Set it to stop the job within one token.
    """

    id: str
    number: float
    prompt: Prompt
    checked: Checked
    extra_data: dict[str, Any]
    client_id: str | None
    create_time: float
    status: str = "pending"
    start_time: float | None = None
    end_time: float | None = None
    outputs: dict[str, Any] = field(default_factory=dict)
    messages: list[list[Any]] = field(default_factory=list)
    error: dict[str, Any] | None = None
    interrupted: threading.Event = field(default_factory=threading.Event)

    def as_json(self) -> dict[str, Any]:
        """Return the fields that are stored."""
        return {
            "id": self.id,
            "number": self.number,
            "status": self.status,
            "create_time": self.create_time,
            "start_time": self.start_time,
            "end_time": self.end_time,
            "prompt": self.prompt,
            "extra_data": self.extra_data,
            "targets": self.checked.outputs,
            "outputs": self.outputs,
            "messages": self.messages,
            "error": self.error,
        }


class JobQueue:
    """The queue of jobs, which run in one thread. Safe to use from several threads.

    Args:
        runner: Runs the jobs.
        store: Keeps the finished ones.
        clients: Receive the messages.
    """

    def __init__(self, runner: WorkflowRunner, store: Store, clients: Clients) -> None:
        self._runner = runner
        self._store = store
        self._clients = clients
        self._pending: list[Job] = []
        self._running: Job | None = None
        self._free: list[Callable[[], None]] = []
        self._changed = threading.Condition()
        self._next_number = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="tops-studio-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Interrupt the running job and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self.interrupt()
        self._thread.join(timeout=30)

    @property
    def remaining(self) -> int:
        """The number of unfinished jobs."""
        with self._changed:
            return len(self._pending) + (self._running is not None)

    def add(
        self, job_id: str, prompt: Prompt, checked: Checked, extra_data: dict[str, Any], client_id: str | None,
        number: float | None = None, front: bool = False,
    ) -> Job | None:  # fmt: skip
        """Queue a prompt and return its job; None if the queue is full."""
        with self._changed:
            if len(self._pending) >= MAX_PENDING:
                return None
            if number is None:
                number = -self._next_number if front else self._next_number
                self._next_number += 1
            job = Job(job_id, number, prompt, checked, extra_data, client_id, _now())
            self._pending.append(job)
            self._pending.sort(key=lambda one: one.number)
            self._changed.notify_all()
        self._tell_status()
        return job

    def cancel(self, job_ids: Sequence[str] | None) -> list[str]:
        """Remove waiting jobs from the queue (None: all) and stop a running one that is named; return their ids."""
        with self._changed:
            gone = [job for job in self._pending if job_ids is None or job.id in job_ids]
            self._pending = [job for job in self._pending if job not in gone]
        for job in gone:
            self._finish(job, "cancelled")
        found = [job.id for job in gone]
        running = self._running
        if running is not None and job_ids is not None and running.id in job_ids:
            self.interrupt(running.id)
            found.append(running.id)
        self._tell_status()
        return found

    def interrupt(self, job_id: str | None = None) -> None:
        """Stop the running job within a token, if it has the given id."""
        running = self._running
        if running is not None and job_id in (None, running.id):
            running.interrupted.set()

    def free(self, unload_models: bool, free_memory: bool) -> None:
        """Free memory as soon as no job runs."""
        with self._changed:
            if free_memory:
                self._free.append(self._runner.forget)
            if unload_models:
                self._free.append(unload_shared_engines)
            self._changed.notify_all()

    def unfinished(self) -> list[Job]:
        """Return the running job, then those that wait."""
        with self._changed:
            return ([self._running] if self._running is not None else []) + list(self._pending)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._free or self._stopping)
                if self._stopping:
                    return
                chores, self._free = self._free, []
                job = self._pending.pop(0) if self._pending and not chores else None
                self._running = job
            for chore in chores:
                chore()
            if job is not None:
                self._run(job)

    def _run(self, job: Job) -> None:
        job.status, job.start_time = "in_progress", _now()
        watch = _Watch(job, self._clients)
        watch.note("execution_start", {})
        status = "failed"
        try:
            extra = job.extra_data.get("extra_pnginfo") or {}
            self._runner.run_checked(job.prompt, job.checked, extra, watch, job.interrupted)
            status = "completed"
            watch.note("execution_success", {})
        except Interrupted:
            status = "cancelled"
            watch.note("execution_interrupted", watch.place() | {"executed": watch.executed})
        except NodeFailed as error:
            job.error = watch.place() | {
                "executed": watch.executed,
                "exception_message": str(error.error),
                "exception_type": type(error.error).__name__,
                "traceback": error.trace,
                "current_inputs": error.inputs,
                "current_outputs": [],
            }
            watch.note("execution_error", job.error)
        except Exception as error:  # A fault of this host must not end its worker.
            job.error = watch.place() | {
                "executed": watch.executed,
                "exception_message": f"TOPS Studio failed: {error}",
                "exception_type": type(error).__name__,
                "traceback": traceback.format_exception(error),
                "current_inputs": {},
                "current_outputs": [],
            }
            watch.note("execution_error", job.error)
        finally:
            self._finish(job, status)
            with self._changed:
                self._running = None
            watch.tell("executing", {"node": None})
            self._tell_status()

    def _finish(self, job: Job, status: str) -> None:
        job.end_time = _now()
        # Stored first: a client that sees the job as finished finds it in the history.
        self._store.save_job(job.as_json() | {"status": status})
        job.status = status

    def status(self) -> dict[str, Any]:
        """Return ComfyUI's ``status`` message."""
        return {"status": {"exec_info": {"queue_remaining": self.remaining}}}

    def _tell_status(self) -> None:
        self._clients.send("status", self.status())


class _Watch:
    """The listener that sends the events of the runner to a job's client, as ComfyUI's messages."""

    def __init__(self, job: Job, clients: Clients) -> None:
        self._job = job
        self._clients = clients
        self._states: dict[str, dict[str, Any]] = {}
        self._node = ""
        self.executed: list[str] = []

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        """Receive an event of the runner."""
        if kind == "execution_cached":
            self.executed = list(data["nodes"])
            self.note(kind, {"nodes": data["nodes"]})
        elif kind == "executing":
            if self._node:
                self._state(self._node, 1, 1, "finished")
                self.executed.append(self._node)
            self._node = data["node"]
            self._state(self._node, 0, 1, "running")
            self.tell(kind, {"node": self._node, "display_node": self._node})
        elif kind == "progress":
            self._state(data["node"], data["value"], data["max"], "running")
            self.tell(kind, data)
        elif kind == "text":
            if self._job.client_id is not None:
                self._clients.send_text(data["node"], data["text"], self._job.client_id)
        elif kind == "executed":
            self._job.outputs[data["node"]] = data["output"]
            self.tell(kind, {"node": data["node"], "display_node": data["node"], "output": data["output"]})

    def place(self) -> dict[str, Any]:
        """Return the id and the class of the running node."""
        node = self._job.prompt.get(self._node, {})
        return {"node_id": self._node, "node_type": node.get("class_type", "")}

    def note(self, kind: str, data: dict[str, Any]) -> None:
        """Send a message, and keep it for the history."""
        told = {"prompt_id": self._job.id, **data, "timestamp": int(_now())}
        self._job.messages.append([kind, told])
        self._clients.send(kind, told, self._job.client_id or "")

    def tell(self, kind: str, data: dict[str, Any]) -> None:
        self._clients.send(kind, {**data, "prompt_id": self._job.id}, self._job.client_id or "")

    def _state(self, node: str, value: int, total: int, state: str) -> None:
        names = dict.fromkeys(("node_id", "display_node_id", "real_node_id"), node)
        entry = {"value": value, "max": total, "state": state, "prompt_id": self._job.id, "parent_node_id": None}
        self._states[node] = entry | names
        self.tell("progress_state", {"nodes": self._states})


def _now() -> float:
    return time.time() * 1000
