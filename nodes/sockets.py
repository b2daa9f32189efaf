"""What travels between our nodes, beside ComfyUI's own types. Each class is a socket type's whole contract."""

import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tops_engine.answers.report import Answer
from tops_engine.errors import InvalidInput
from tops_engine.remote import RemoteAnswer
from tops_engine.settings import ModelSpec, Pruning

from .servers import ServedModel

if TYPE_CHECKING:
    from tops_engine.engine import Engine

MODEL, PRUNING, HISTORY, STATS = "TOPS_MODEL", "TOPS_PRUNING", "TOPS_HISTORY", "TOPS_STATS"

PRUNING_TIP = (
    "From TOPS Pruning; nothing connected keeps 22.2 % with TOPS, and with a server what that was started with."
)

_Value = TypeVar("_Value")


class TopsModel:
    """Socket TOPS_MODEL: a model that nodes ask. Get it with :func:`model_handle`.

    When the last handle is gone (the host dropped the loader's output, or its settings changed), the weights are freed.

    Attributes
    ----------
    spec : which checkpoint, where and how.
    engine : the process's engine for it.
    patcher : ComfyUI's entry for the loaded weights (``residency.py``); lives and dies with this handle.
    """

    patcher: Any = None

    def __init__(self, spec: ModelSpec) -> None:
        from tops_engine.engine import shared_engine  # takes transformers with it, which is slow to import

        self.spec = spec
        self.engine: Engine = shared_engine(spec)
        weakref.finalize(self, self.engine.unload).atexit = False

    def __repr__(self) -> str:
        return f"TOPS model {self.spec.model} on {self.engine.device}"


_handles: weakref.WeakValueDictionary[ModelSpec, TopsModel] = weakref.WeakValueDictionary()
_handles_lock = threading.Lock()


def model_handle(spec: ModelSpec) -> TopsModel:
    """The one handle for a spec, however many loader nodes ask for it."""
    with _handles_lock:
        handle = _handles.get(spec)
        if handle is None:
            handle = _handles[spec] = TopsModel(spec)
        return handle


def living_handles() -> list[TopsModel]:
    """Every model some node's output still refers to."""
    with _handles_lock:
        return list(_handles.values())


@dataclass(frozen=True)
class History:
    """Socket TOPS_HISTORY: a conversation so far, with its system instruction and pictures."""

    messages: tuple[dict[str, Any], ...] = ()

    def __str__(self) -> str:
        return "\n\n".join(f"{message['role']}: {_text(message['content'])}" for message in self.messages)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["text"] if part["type"] == "text" else "[picture] " for part in content)


@dataclass(frozen=True)
class Stats:
    """Socket TOPS_STATS: the answers with everything that was measured."""

    answers: tuple[Answer | RemoteAnswer, ...] = ()

    def __str__(self) -> str:
        return "\n".join(summary(answer) for answer in self.answers)


def summary(answer: Answer | RemoteAnswer) -> str:
    """What an answer cost, in a few readable lines."""
    if isinstance(answer, RemoteAnswer):
        return _remote_summary(answer)
    usage, timings = answer.usage, answer.timings
    stages = " → ".join(str(sum(stage.visual_tokens)) for stage in usage.stages)
    kept = f"{usage.layer_average:.1f} as a layer-average, {100 * usage.kept_fraction:.1f} %"
    lines = [
        f"visual tokens: {usage.visual_tokens} → {stages} ({kept})" if usage.visual_tokens else "no picture",
        f"prompt {usage.prompt_tokens} tokens, answer {usage.completion_tokens} tokens ({answer.finish_reason})",
        f"first token after {timings.first_token:.3f} s, {timings.total:.3f} s in all",
        f"{answer.flops.total / 1e9:.3g} GFLOPs, KV cache {answer.kv_cache_bytes / 1024:.0f} KiB",
        f"model {answer.model}, method {answer.pruning['method']}",
    ]
    return "\n".join(lines)


def _remote_summary(answer: RemoteAnswer) -> str:
    """What a server lets one know of it."""
    usage, timings = answer.usage, answer.timings
    lines = [f"{timings.total:.3f} s in all", f"model {answer.model} of a server"]
    if timings.first_token is not None:
        lines[0] = f"first token after {timings.first_token:.3f} s, {lines[0]}"
    if usage is not None:
        visual = "" if usage.visual_tokens is None else f" ({usage.visual_tokens} visual)"
        counts = f"prompt {usage.input_tokens} tokens{visual} after the server's pruning"
        lines.insert(0, f"{counts}, answer {usage.completion_tokens} tokens ({answer.finish_reason})")
    return "\n".join(lines)


def expect(value: Any, kind: type[_Value], socket: str, source: str) -> _Value:
    """Check what arrived at a socket: types are only words in a graph, and other packs use words too."""
    if not isinstance(value, kind):
        raise InvalidInput(f"The input {socket!r} got a {type(value).__name__}; connect it to {source}.")
    return value


def expect_model(value: Any) -> TopsModel | ServedModel:
    return value if isinstance(value, ServedModel) else expect(value, TopsModel, "model", "TOPS Load Model")


def expect_local_model(value: Any, node: str) -> TopsModel:
    """For nodes that look into the model."""
    if isinstance(value, ServedModel):
        raise InvalidInput(
            f"{node} looks into the model, and a server does not let it; connect a TOPS Load Model without a server."
        )
    return expect(value, TopsModel, "model", "TOPS Load Model")


def expect_pruning(value: Any) -> Pruning:
    """The connected pruning, or the default one."""
    return Pruning() if value is None else expect(value, Pruning, "pruning", "TOPS Pruning or TOPS Recipe")


def pruning_for(model: TopsModel | ServedModel, value: Any) -> Pruning | None:
    """The connected pruning; without one the default, or None, which leaves it to the server."""
    return None if value is None and isinstance(model, ServedModel) else expect_pruning(value)


def expect_history(value: Any) -> History:
    return History() if value is None else expect(value, History, "history", "the history output of TOPS Ask")
