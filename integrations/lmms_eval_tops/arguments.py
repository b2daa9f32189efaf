"""The settings that lmms-eval's model arguments name: every option of ModelSpec, Pruning and Generation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tops_engine.errors import InvalidInput, quote
from tops_engine.settings import Generation, ModelSpec, Pruning

#: Options of lmms-eval that every model gets, and that mean nothing here.
IGNORED = ("max_batch_size",)


@dataclass(frozen=True)
class Arguments:
    """The model arguments of a run.

    Attributes
    ----------
    generation : the options that were given; they have precedence over those of a task.
    batch_size : prompts that are answered together.
    system_prompt : text before each conversation; None leaves it to the chat template.
    pad_to_square : whether pictures are padded to a square before the processor, as LLaVA-1.5's own evaluation does.
    journal : JSONL file that keeps each answer, so that a stopped run continues.
    """

    spec: ModelSpec
    pruning: Pruning
    generation: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 1
    system_prompt: str | None = None
    pad_to_square: bool = False
    journal: Path | None = None


def read_arguments(given: Mapping[str, Any]) -> Arguments:
    """Sort the model arguments of lmms-eval by the settings that they belong to.

    Values may be text, as in the options of a command; quotes around them are dropped. An argument that is no option
    of the model or of the answer is one of the pruning.

    Raises
    ------
    InvalidInput
        If an option does not exist, or a value is not allowed.
    """
    values = {name: _plain(value) for name, value in given.items() if name not in IGNORED and value is not None}
    batch_size = values.pop("batch_size", "1")
    if not str(batch_size).isdecimal() or int(batch_size) < 1:
        raise InvalidInput(f"batch_size={quote(batch_size)} is not allowed; give the number of prompts in a batch.")
    system_prompt, journal = values.pop("system_prompt", None), values.pop("journal", None)
    pad_to_square = values.pop("pad_to_square", False)
    if not isinstance(pad_to_square, bool):
        raise InvalidInput(f"pad_to_square={quote(pad_to_square)} is not allowed; give true or false.")
    spec = {name: values.pop(name) for name in ModelSpec.model_fields if name in values}
    generation = {name: values.pop(name) for name in Generation.model_fields if name in values}
    Generation(**generation)
    return Arguments(
        spec=ModelSpec(**spec),
        pruning=Pruning(**values),
        generation=generation,
        batch_size=int(batch_size),
        system_prompt=system_prompt,
        pad_to_square=pad_to_square,
        journal=Path(journal) if journal is not None else None,
    )


def task_generation(task: Mapping[str, Any], given: Mapping[str, Any]) -> Generation:
    """Return how the answers of a task are written.

    Texts that end an answer (``until``) are not used, as in lmms-eval's own chat models: lmms-eval sets an empty line
    for every task that names none.

    Parameters
    ----------
    task : the ``generation_kwargs`` of the task.
    given : options that have precedence.

    Raises
    ------
    InvalidInput
        If the task wants beam search.
    """
    if task.get("num_beams") not in (None, 1):
        raise InvalidInput(
            "The task searches with beams, which the engine does not have; pass --gen_kwargs num_beams=1."
        )
    options: dict[str, Any] = {}
    if task.get("max_new_tokens") is not None:
        options["max_tokens"] = task["max_new_tokens"]
    if task.get("do_sample") is not False and task.get("temperature"):
        options["temperature"] = task["temperature"]
        options["top_p"] = task.get("top_p") or 1.0
    return Generation(**options | dict(given))


def _plain(value: Any) -> Any:
    """Return a value as a command line has it: lmms-eval turns what looks like a number into one."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return value
    text = str(value)
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
