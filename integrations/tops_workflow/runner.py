"""Run prompts of TOPS nodes and the basic core nodes without ComfyUI, by ComfyUI's rules.

Nodes run in the order of their links, in the calling thread. A result is kept while everything that it was made from
stays the same, so that changing a question neither loads the model nor opens the picture again.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tops_workflow.check import check_prompt
from tops_workflow.convert import is_link
from tops_workflow.faults import Checked
from tops_workflow.formats import InvalidWorkflow, Prompt
from tops_workflow.growing import single_inputs
from tops_workflow.host import Folders, Interrupted, QuietHost, hosted
from tops_workflow.node_calls import NodeFailed, Result, call_node, freshness
from tops_workflow.order import sources_first

#: ``(kind, data)``: ``execution_cached`` {nodes}, ``executing`` {node}, ``progress`` {node, value, max}, ``text``
#: {node, text}, ``executed`` {node, output}; names and fields are ComfyUI's where it has them.
Listener = Callable[[str, dict[str, Any]], None]


@dataclass
class RunReport:
    """The report of a finished run.

    Attributes
    ----------
    ui : what each node shows, by node id.
    results : of every node that ran or whose result was kept.
    cached : nodes that did not have to run.
    """

    ui: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    cached: list[str] = field(default_factory=list)


class WorkflowRunner:
    """Run one prompt at a time; keep node instances and results between prompts.

    Parameters
    ----------
    classes : V1 node classes by ``class_type``.
    folders : for nodes that read or write files.
    """

    def __init__(self, classes: Mapping[str, Any], folders: Folders) -> None:
        self.classes = classes
        self.folders = folders
        self._instances: dict[tuple[str, str], Any] = {}
        self._results: dict[str, Result] = {}

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
        targets : the output nodes to run; None runs all.
        extra_pnginfo : what is written into pictures that the run saves, such as ``{"workflow": graph}``.
        listener : called with each event, in the calling thread.
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
        """Check a prompt with this runner's nodes and folders; see :func:`~tops_workflow.check.check_prompt`."""
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
        """Run a prompt that :meth:`check` has checked; see :meth:`run`."""
        host = _RunHost(self.folders, listener or (lambda kind, data: None), interrupted or threading.Event())
        with hosted(host):
            return _Run(self, prompt, extra_pnginfo or {}, host).run(checked.outputs)

    def forget(self) -> None:
        """Drop all results and node instances, and the memory that they hold."""
        self._instances.clear()
        self._results.clear()

    def instance(self, node_id: str, kind: str) -> Any:
        """Return the instance of a node, made when it first runs."""
        key = (node_id, kind)
        if key not in self._instances:
            self._instances[key] = self.classes[kind]()
        return self._instances[key]

    def known(self, signature: str) -> Result | None:
        """Return a kept result."""
        return self._results.get(signature)

    def keep(self, results: dict[str, Result], node_ids: Iterable[tuple[str, str]]) -> None:
        """Keep the results and instances of the last prompt, and no others."""
        self._results = results
        wanted = set(node_ids)
        self._instances = {key: instance for key, instance in self._instances.items() if key in wanted}


class _RunHost:
    """The host that running nodes see; see :class:`tops_workflow.host.Host`."""

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
    """One run of a prompt."""

    def __init__(self, runner: WorkflowRunner, prompt: Prompt, extra_pnginfo: dict[str, Any], host: _RunHost) -> None:
        self._runner = runner
        self._prompt = prompt
        self._extra_pnginfo = extra_pnginfo
        self._host = host
        self._signatures: dict[str, str] = {}
        self._report = RunReport()

    def run(self, outputs: Sequence[str]) -> RunReport:
        order = self._order(outputs)
        for node_id in order:
            self._sign(node_id)
        cached = [node_id for node_id in order if self._runner.known(self._signatures[node_id]) is not None]
        self._report.cached = cached
        self._host.emit("execution_cached", {"nodes": self._report.cached})
        try:
            for node_id in order:
                self._run_node(node_id)
        finally:
            results = {self._signatures[node_id]: result for node_id, result in self._report.results.items()}
            # Kept results that a failed or stopped run did not reach stay valid.
            for node_id in self._report.cached:
                signature = self._signatures[node_id]
                known = self._runner.known(signature)
                if known is not None:
                    results[signature] = known
            self._runner.keep(results, [(node_id, self._prompt[node_id]["class_type"]) for node_id in self._prompt])
        return self._report

    def _order(self, outputs: Sequence[str]) -> list[str]:
        """Return the nodes that the outputs need, each after its sources."""
        order: dict[str, None] = {}
        for output in outputs:
            order |= dict.fromkeys(sources_first(self._prompt, output, order)[0])
        return list(order)

    def _run_node(self, node_id: str) -> None:
        kind = self._prompt[node_id]["class_type"]
        result = self._runner.known(self._signatures[node_id]) if node_id in self._report.cached else None
        if result is None:
            if self._host.interrupted:
                raise Interrupted
            self._host.node = node_id
            self._host.emit("executing", {"node": node_id})
            inputs = self._inputs(node_id)
            try:
                result = call_node(self._runner.instance(node_id, kind), inputs)
            except Exception as error:
                raise NodeFailed(node_id, kind, error, inputs) from error
        self._report.results[node_id] = result
        if result.ui:
            self._report.ui[node_id] = result.ui
            self._host.emit("executed", {"node": node_id, "output": result.ui})

    def _inputs(self, node_id: str) -> dict[str, list[Any]]:
        """Return a list of values for each input."""
        node = self._prompt[node_id]
        types = self._runner.classes[node["class_type"]].INPUT_TYPES()
        known = {name for section in ("required", "optional") for name in single_inputs(types.get(section, {}))}
        inputs = {}
        for name, value in node["inputs"].items():
            if name in known:
                inputs[name] = self._report.results[str(value[0])].outputs[value[1]] if is_link(value) else [value]
        hidden = {"PROMPT": self._prompt, "EXTRA_PNGINFO": self._extra_pnginfo, "UNIQUE_ID": node_id}
        for name, kind in types.get("hidden", {}).items():
            inputs[name] = [hidden.get(kind if isinstance(kind, str) else kind[0])]
        return inputs

    def _sign(self, node_id: str) -> None:
        """Make the node's signature: a digest of all that its result depends on. Its sources have theirs."""
        node = self._prompt[node_id]
        cls = self._runner.classes[node["class_type"]]
        parts: list[Any] = [node["class_type"]]
        for name, value in sorted(node["inputs"].items()):
            if is_link(value):
                # ComfyUI lets links of inputs that the class does not have lead anywhere.
                parts += [name, self._signatures.get(str(value[0]), "none"), value[1]]
            else:
                parts += [name, type(value).__name__, value]
        hidden = cls.INPUT_TYPES().get("hidden", {}).values()
        if "UNIQUE_ID" in hidden or getattr(cls, "NOT_IDEMPOTENT", False):
            parts.append(node_id)
        parts.append(freshness(cls, node["inputs"]))
        self._signatures[node_id] = hashlib.sha256(repr(parts).encode(errors="surrogatepass")).hexdigest()
