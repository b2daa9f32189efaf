"""The engine behind lmms-eval's interface of chat models."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from tqdm import tqdm

from lmms_eval_tops.arguments import Arguments, read_arguments, task_generation
from lmms_eval_tops.messages import engine_messages
from tops_engine.answers.report import Answer
from tops_engine.conversation.messages import Message
from tops_engine.engine import Engine, shared_engine
from tops_engine.errors import InvalidInput, OutOfMemory, UnsupportedModel
from tops_engine.journal import Journal
from tops_engine.settings import Generation
from tops_engine.version import __version__


@dataclass
class PrunedTokenCounts(TokenCounts):
    """Token counts of one answer, as they stand in the logs of samples.

    Attributes
    ----------
    pruning : visual tokens before pruning, their layer-average, and what each stage kept.
    """

    pruning: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | self.pruning


@dataclass(frozen=True)
class Question:
    """One request of lmms-eval: its place, its task's name, and what identifies its document."""

    place: int
    task: str
    split: str
    document: int
    messages: Callable[[Any], list[dict[str, Any]]]
    options: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, str, int, str]:
        """The key of the answer in the journal."""
        return (self.task, self.split, self.document, repr(sorted(self.options.items())))


class TopsModel(lmms):
    """A model that the engine runs, with pruning: ``--model tops``.

    Parameters
    ----------
    arguments : every option of ModelSpec, Pruning and Generation by its name, and ``batch_size``, ``system_prompt``,
        ``pad_to_square`` and ``journal``; see :class:`lmms_eval_tops.arguments.Arguments`.
    """

    is_simple = False

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InvalidInput("The model tops runs in one process; start one lmms-eval for each GPU and its tasks.")
        self.arguments: Arguments = read_arguments(arguments)
        self.engine: Engine = shared_engine(self.arguments.spec)
        _ = self.engine.family

    @property
    def batch_size(self) -> int:
        return self.arguments.batch_size

    @property
    def device(self) -> Any:
        return self.engine.device

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer requests in batches of equal settings; answers that the journal holds are not written again."""
        questions = [
            Question(place, task, split, document, messages, options)
            for place, (_, messages, options, document, task, split) in enumerate(one.args for one in requests)
        ]
        journal = Journal(self.arguments.journal, self._header())
        known = {tuple(record["key"]): record for record in journal.records()}
        results: dict[int, GenerationResult] = {
            one.place: _result(known[one.key]) for one in questions if one.key in known
        }
        missing = [one for one in questions if one.place not in results]
        seconds = tokens = 0.0
        with tqdm(total=len(questions), initial=len(results), desc="Model Responding") as bar:
            for batch in self._batches(missing):
                answers = self._answer(batch)
                # Answers of a batch share its time.
                share = answers[0].timings.total / len(answers)
                records = [_record(one, answer, share) for one, answer in zip(batch, answers, strict=True)]
                journal.append(records)
                for one, record in zip(batch, records, strict=True):
                    results[one.place] = _result(record)
                seconds += answers[0].timings.total
                tokens += sum(answer.usage.completion_tokens for answer in answers)
                bar.update(len(batch))
        if seconds:
            log_metrics(total_gen_tokens=tokens, total_elapsed_time=seconds, avg_speed=tokens / seconds)
        return [results[place] for place in range(len(questions))]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise UnsupportedModel("The model tops writes answers; choose a task with output_type generate_until.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise UnsupportedModel("The model tops answers in one round; choose a task with output_type generate_until.")

    def _batches(self, questions: Sequence[Question]) -> Iterator[list[Question]]:
        groups: dict[str, list[Question]] = {}
        for one in questions:
            groups.setdefault(repr(sorted(one.options.items())), []).append(one)
        for group in groups.values():
            for begin in range(0, len(group), self.batch_size):
                yield group[begin : begin + self.batch_size]

    def _answer(self, batch: Sequence[Question]) -> Sequence[Answer]:
        """Answer questions together; in halves if they do not fit into the memory."""
        documents = [self.task_dict[one.task][one.split][one.document] for one in batch]
        conversations = [
            engine_messages(one.messages(document), self.arguments.system_prompt, self.arguments.pad_to_square)
            for one, document in zip(batch, documents, strict=True)
        ]
        return self._answer_conversations(conversations, task_generation(batch[0].options, self.arguments.generation))

    def _answer_conversations(
        self, conversations: Sequence[Sequence[Message]], generation: Generation
    ) -> Sequence[Answer]:
        try:
            return self.engine.batch(conversations, self.arguments.pruning, generation)
        except OutOfMemory:
            if len(conversations) == 1:
                raise
        half = len(conversations) // 2
        return [
            *self._answer_conversations(conversations[:half], generation),
            *self._answer_conversations(conversations[half:], generation),
        ]

    def _header(self) -> dict[str, Any]:
        return {
            "format": "tops lmms-eval 1",
            "version": __version__,
            "model": self.arguments.spec.model_dump(mode="json"),
            "pruning": self.arguments.pruning.resolved(),
            "generation": self.arguments.generation,
            "system_prompt": self.arguments.system_prompt,
            "pad_to_square": self.arguments.pad_to_square,
        }


def _record(question: Question, answer: Answer, seconds: float) -> dict[str, Any]:
    """Return an answer as a line of the journal, with its share of the seconds of its batch."""
    usage = answer.usage
    return {
        "key": list(question.key),
        "text": answer.text,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.completion_tokens,
        "pruning": {
            "visual_tokens": usage.visual_tokens,
            "layer_average": usage.layer_average,
            "stages": [[stage.layer, stage.visual_tokens] for stage in usage.stages],
        },
        "seconds": seconds,
    }


def _result(record: dict[str, Any]) -> GenerationResult:
    counts = PrunedTokenCounts(record["input_tokens"], record["output_tokens"], pruning=record["pruning"])
    return GenerationResult(text=record["text"].strip(), token_counts=counts)
