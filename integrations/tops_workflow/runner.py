"""Runs prompts of our nodes and the basic core nodes without ComfyUI, by ComfyUI's rules.

Nodes run in the order of their links, in the calling thread. Results are kept as long as what they were made from stays
the same, so that changing a question neither loads the model nor opens the picture again.
"""

import asyncio
import inspect
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tops_engine.errors import TopsError
from tops_workflow.check import Checked, check_prompt
from tops_workflow.convert import is_link
from tops_workflow.formats import InvalidWorkflow, Prompt
from tops_workflow.host import Folders, Interrupted, QuietHost, hosted

#: ``(kind, data)``: ``execution_cached`` {nodes}, ``executing`` {node}, ``progress`` {node, value, max}, ``text``
#: {node, text}, ``executed`` {node, output}; ComfyUI's names and fields where it has them.
Listener = Callable[[str, dict[str, Any]], None]


class NodeFailed(TopsError):
    """A node raised an error.

    Attributes
    ----------
    node_id, class_type : which.
    error : what it raised.
    inputs : the names of its inputs with their values as short texts.
    trace : the traceback's lines.
    """

    def __init__(self, node_id: str, class_type: str, error: Exception, inputs: dict[str, Any]) -> None:
        super().__init__(f"{class_type} (node {node_id}): {error}")
        self.node_id, self.class_type, self.error = node_id, class_type, error
        self.inputs = {name: [_short(value) for value in values] for name, values in inputs.items()}
        self.trace = traceback.format_exception(error)


@dataclass(frozen=True)
class Result:
    """What a node gave: ``outputs``, a list for each output slot (one element unless it is a list), and its ``ui``."""

    outputs: list[list[Any]]
    ui: dict[str, list[Any]]


@dataclass
class RunReport:
    """A finished run.

    Attributes
    ----------
    ui : by node id, of every node that shows something.
    results : of every node that ran or was kept.
    cached : nodes that did not have to run.
    """

    ui: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    cached: list[str] = field(default_factory=list)


class WorkflowRunner:
    """Runs one prompt at a time; keeps node instances and results between prompts.

    Parameters
    ----------
    classes : V1 node classes by ``class_type``.
    folders : for nodes that read or write files.
    """

    def __init__(self, classes: Mapping[str, Any], folders: Folders) -> None:
        self.classes = classes
        self.folders = folders
        self._instances: dict[tuple[str, str], Any] = {}
        self._results: dict[Any, Result] = {}

    def run(
        self,
        prompt: Prompt,
        targets: Sequence[str] | None = None,
        extra_pnginfo: dict[str, Any] | None = None,
        listener: Listener | None = None,
        interrupted: threading.Event | None = None,
    ) -> RunReport:
        """Check and run a prompt.

        Parameters
        ----------
        targets : only these output nodes; None runs all.
        extra_pnginfo : what pictures saved on the way carry, such as ``{"workflow": graph}``.
        listener : is told what happens, in the calling thread.
        interrupted : set it from another thread to stop within a token.

        Raises
        ------
        InvalidWorkflow
            If no output can run; the message lists every fault.
        NodeFailed
            If a node raises.
        Interrupted
            If ``interrupted`` was set.
        """
        checked = self.check(prompt, targets)
        if checked.fault is not None:
            raise InvalidWorkflow("\n".join(["The workflow cannot run.", *checked.lines()]))
        return self.run_checked(prompt, checked, extra_pnginfo, listener, interrupted)

    def check(self, prompt: Prompt, targets: Sequence[str] | None = None) -> Checked:
        """:func:`~tops_workflow.check.check_prompt` with this runner's nodes and folders."""
        with hosted(QuietHost(self.folders)):
            return check_prompt(prompt, self.classes, targets)

    def run_checked(
        self,
        prompt: Prompt,
        checked: Checked,
        extra_pnginfo: dict[str, Any] | None = None,
        listener: Listener | None = None,
        interrupted: threading.Event | None = None,
    ) -> RunReport:
        """:meth:`run` after :meth:`check`."""
        host = _RunHost(self.folders, listener or (lambda kind, data: None), interrupted or threading.Event())
        with hosted(host):
            return _Run(self, prompt, extra_pnginfo or {}, host).run(checked.outputs)

    def forget(self) -> None:
        """Drop all results and node instances, and with them what they hold in memory."""
        self._instances.clear()
        self._results.clear()

    def instance(self, node_id: str, kind: str) -> Any:
        key = (node_id, kind)
        if key not in self._instances:
            self._instances[key] = self.classes[kind]()
        return self._instances[key]

    def known(self, signature: Any) -> Result | None:
        """A kept result."""
        return self._results.get(signature)

    def keep(self, results: dict[Any, Result], node_ids: Iterable[tuple[str, str]]) -> None:
        """Keep what the last prompt needed, and no more."""
        self._results = results
        wanted = set(node_ids)
        self._instances = {key: instance for key, instance in self._instances.items() if key in wanted}


class _RunHost:
    """The running nodes' side of the runner; see :class:`tops_workflow.host.Host`."""

    def __init__(self, folders: Folders, listener: Listener, interrupted: threading.Event) -> None:
        self.folders = folders
        self.emit = listener
        self.node = ""
        self._interrupted = interrupted

    @property
    def interrupted(self) -> bool:
        return self._interrupted.is_set()

    def progress(self, value: int, total: int) -> None:
        self.emit("progress", {"node": self.node, "value": value, "max": total})

    def show_text(self, text: str) -> None:
        self.emit("text", {"node": self.node, "text": text})


class _Run:
    """One prompt on its way."""

    def __init__(self, runner: WorkflowRunner, prompt: Prompt, extra_pnginfo: dict[str, Any], host: _RunHost) -> None:
        self._runner = runner
        self._prompt = prompt
        self._extra_pnginfo = extra_pnginfo
        self._host = host
        self._signatures: dict[str, Any] = {}
        self._report = RunReport()

    def run(self, outputs: Sequence[str]) -> RunReport:
        order = self._order(outputs)
        self._report.cached = [node_id for node_id in order if self._runner.known(self._signature(node_id)) is not None]
        self._host.emit("execution_cached", {"nodes": self._report.cached})
        try:
            for node_id in order:
                self._run_node(node_id)
        finally:
            results = {self._signature(node_id): result for node_id, result in self._report.results.items()}
            # What a failed or stopped run did not come to is still good.
            for node_id in self._report.cached:
                signature = self._signature(node_id)
                known = self._runner.known(signature)
                if known is not None:
                    results[signature] = known
            self._runner.keep(results, [(node_id, self._prompt[node_id]["class_type"]) for node_id in self._prompt])
        return self._report

    def _order(self, outputs: Sequence[str]) -> list[str]:
        """The nodes the outputs need, each after its sources."""
        order: dict[str, None] = {}

        def visit(node_id: str) -> None:
            if node_id not in order:
                for value in self._prompt[node_id]["inputs"].values():
                    if is_link(value):
                        visit(str(value[0]))
                order[node_id] = None

        for output in outputs:
            visit(output)
        return list(order)

    def _run_node(self, node_id: str) -> None:
        kind = self._prompt[node_id]["class_type"]
        result = self._runner.known(self._signature(node_id)) if node_id in self._report.cached else None
        if result is None:
            if self._host.interrupted:
                raise Interrupted
            self._host.node = node_id
            self._host.emit("executing", {"node": node_id})
            inputs = self._inputs(node_id)
            try:
                result = _call(self._runner.instance(node_id, kind), inputs)
            except Exception as error:
                raise NodeFailed(node_id, kind, error, inputs) from error
        self._report.results[node_id] = result
        if result.ui:
            self._report.ui[node_id] = result.ui
            self._host.emit("executed", {"node": node_id, "output": result.ui})

    def _inputs(self, node_id: str) -> dict[str, list[Any]]:
        """A list of values for each input."""
        node = self._prompt[node_id]
        types = self._runner.classes[node["class_type"]].INPUT_TYPES()
        known = {name for section in ("required", "optional") for name in types.get(section, {})}
        inputs = {}
        for name, value in node["inputs"].items():
            if name in known:
                inputs[name] = self._report.results[str(value[0])].outputs[value[1]] if is_link(value) else [value]
        hidden = {"PROMPT": self._prompt, "EXTRA_PNGINFO": self._extra_pnginfo, "UNIQUE_ID": node_id}
        for name, kind in types.get("hidden", {}).items():
            inputs[name] = [hidden.get(kind if isinstance(kind, str) else kind[0])]
        return inputs

    def _signature(self, node_id: str) -> Any:
        """What a node's result depends on: equal signatures, equal results."""
        if node_id not in self._signatures:
            node = self._prompt[node_id]
            cls = self._runner.classes[node["class_type"]]
            parts: list[Any] = []
            for name, value in sorted(node["inputs"].items()):
                if is_link(value):
                    parts.append((name, self._signature(str(value[0])), value[1]))
                else:
                    parts.append((name, type(value).__name__, repr(value)))
            hidden = cls.INPUT_TYPES().get("hidden", {}).values()
            own = node_id if "UNIQUE_ID" in hidden or getattr(cls, "NOT_IDEMPOTENT", False) else None
            self._signatures[node_id] = (node["class_type"], tuple(parts), own, self._freshness(cls, node["inputs"]))
        return self._signatures[node_id]

    def _freshness(self, cls: Any, inputs: dict[str, Any]) -> Any:
        """What IS_CHANGED says: equal to the last run's, or the node runs again."""
        judge = getattr(cls, "IS_CHANGED", None)
        if judge is None:
            return None
        parameters = inspect.signature(judge).parameters
        takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
        shown = {
            name: None if is_link(value) else value for name, value in inputs.items() if takes_all or name in parameters
        }
        if getattr(cls, "INPUT_IS_LIST", False):
            shown = {name: [value] for name, value in shown.items()}
        try:
            value = judge(**shown)
        except Exception:  # as ComfyUI: a node that cannot say whether it changed runs again, and shows its error then
            return object()
        return object() if value != value else (type(value).__name__, repr(value))


def _call(node: Any, inputs: dict[str, list[Any]]) -> Result:
    """Run a node once, or once for each element of its longest input."""
    cls = type(node)
    if getattr(cls, "INPUT_IS_LIST", False):
        calls = [inputs]
    else:
        longest = max((len(values) for values in inputs.values()), default=1)
        # A shorter list repeats its last element; an empty one means there is nothing to do.
        empty = any(not values for values in inputs.values())
        calls = [
            {name: values[min(index, len(values) - 1)] for name, values in inputs.items()}
            for index in range(0 if empty else longest)
        ]
    is_list = getattr(cls, "OUTPUT_IS_LIST", [False] * len(cls.RETURN_TYPES))
    outputs: list[list[Any]] = [[] for _ in cls.RETURN_TYPES]
    ui: dict[str, list[Any]] = {}
    for arguments in calls:
        returned = getattr(node, cls.FUNCTION)(**arguments)
        if inspect.iscoroutine(returned):
            returned = asyncio.run(returned)
        values = returned
        if isinstance(returned, dict):
            if "expand" in returned:
                raise TopsError("The node expands into other nodes, which only ComfyUI can run.")
            for name, shown in returned.get("ui", {}).items():
                ui.setdefault(name, []).extend(shown)
            values = returned.get("result", ())
        for slot, value in enumerate(values or ()):
            if is_list[slot]:
                outputs[slot].extend(value)
            else:
                outputs[slot].append(value)
    return Result(outputs, ui)


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__
    return text if len(text) <= 200 else text[:200] + "…"
