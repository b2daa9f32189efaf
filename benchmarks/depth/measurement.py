"""Ask a model of the depth experiment about unseen scenes: pruned in each way, and without the picture from a layer."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from benchmarks.mini.stages import UNPRUNED, Batch
from tops_engine.bench.run import question_batches
from tops_engine.bench.splits import FIRST_SEEDS, Split
from tops_engine.cli.progress import progress_bar
from tops_engine.engine import Engine
from tops_engine.evaluation.prunings import pruning_name, reseeded
from tops_engine.journal import Journal
from tops_engine.methods import Positions
from tops_engine.mini import mini_path
from tops_engine.mini.questions import KINDS, content
from tops_engine.mini.scenes import Question
from tops_engine.settings import ModelSpec, Pruning

METHODS = (
    "tops",
    "tops:stages=first",
    "tops:normalization=minmax",
    "tops:normalization=minmax:stages=first",
    "scope",
    "divprune",
    "visionzip",
    "random",
)
BUDGETS = (0.222, 0.111)
PRUNINGS = (UNPRUNED, *(Pruning.from_label(method, keep) for method in METHODS for keep in BUDGETS))
UNPRUNED_NAME = pruning_name(UNPRUNED)
#: At most as many layers at which the picture is gone, besides the last.
MOST_DEPTHS = 11
#: Scenes whose questions are asked together, one kind at a time.
BATCH_SCENES = 50
LIST_KIND = "describe"


class Line(BaseModel):
    """The answers to a batch of questions of one kind.

    Attributes
    ----------
    asked : name of the pruning, or ``gone from layer n``.
    seeds : scene of each question.
    right : whether each answer is right; for lists, whether all objects are named and nothing else.
    named : for lists the share of objects that are named correctly (see :func:`named_share`), else 1 if right.
    losses : how much less likely the unpruned model's answer became, nats a token.
    """

    batch: int
    asked: str
    kind: str
    seeds: list[int]
    right: list[bool]
    named: list[float]
    losses: list[float]


def gone_name(layer: int) -> str:
    """Return the name of a measurement in which the picture is gone from a layer on."""
    return f"gone from layer {layer}"


def depths(num_layers: int) -> list[int]:
    """Return the layers at which the picture is taken away: all of them, or 11 that divide a deeper model."""
    parts = MOST_DEPTHS + 1
    return sorted({round(num_layers * part / parts) for part in range(1, parts)} - {0, num_layers})


def named_share(question: Question, answer: str) -> float:
    """Return the number of objects that are named correctly over the larger of those in the answer and in the truth.

    It is 1 if, and only if, the list is right, and falls with each object that is missing, wrong or too many.
    """
    truth, told = (Counter(content(LIST_KIND, text)) for text in (question.answer, answer))
    return (truth & told).total() / max(truth.total(), told.total())


def measure(
    model: str,
    journal: Path,
    num_scenes: int,
    num_depth_scenes: int,
    split: Split = "test",
    positions: Positions | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> tuple[int, list[Line]]:
    """Ask a model all questions; a stopped run continues its journal.

    Parameters
    ----------
    model : ``mini``, or the folder of a checkpoint.
    num_scenes : scenes that are asked about with every pruning.
    num_depth_scenes : scenes, the first of these, that are asked about with the picture gone from each layer.
    positions : how kept tokens are numbered; None numbers them as each method does.
    dtype : of the weights.

    Returns
    -------
    int
        The number of layers of the language model.
    list
        The lines in the order of the batches.
    """
    engine = Engine.load(ModelSpec(model=model, device="cpu", dtype=dtype))
    num_layers: int = engine.family.model.config.text_config.num_hidden_layers
    journal.parent.mkdir(parents=True, exist_ok=True)
    weights = (mini_path() if model == "mini" else Path(model)) / "model.safetensors"
    header = {
        "format": "tops depth 1",
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "split": split,
        "scenes": num_scenes,
        "depth_scenes": num_depth_scenes,
    }
    if positions is not None:
        header["positions"] = positions
    if dtype != "float32":
        header["dtype"] = dtype
    file = Journal(journal, header)
    lines = [Line.model_validate(record) for record in file.records()]
    known = {(line.batch, line.asked) for line in lines}
    first = FIRST_SEEDS[split]
    with progress_bar(f"scenes ({Path(model).parent.name or model})") as progress:
        done = 0.0
        for number, (seeds, pairs, worth) in enumerate(question_batches(first, num_scenes, BATCH_SCENES, KINDS)):
            asked: dict[str, Pruning | int] = {pruning_name(one): reseeded(one, number) for one in PRUNINGS}
            if min(seeds) < first + num_depth_scenes:
                asked |= {gone_name(layer): layer for layer in depths(num_layers)}
            missing = [name for name in asked if (number, name) not in known]
            if missing:
                batch = Batch(engine, pairs)
                for name in missing:
                    wanted = asked[name]
                    if isinstance(wanted, int):
                        pruning = batch.gone_from(wanted, positions)
                    else:
                        pruning = wanted if positions is None else wanted.model_copy(update={"positions": positions})
                    line = _ask(batch, number, name, pruning, seeds)
                    file.append([line.model_dump(mode="json")])
                    lines.append(line)
            done += worth
            progress(int(done), num_scenes)
    return num_layers, sorted(lines, key=lambda line: line.batch)


def _ask(batch: Batch, number: int, name: str, pruning: Pruning, seeds: Sequence[int]) -> Line:
    answers = batch.ask(pruning)
    named = [
        named_share(question, one.text) if one.kind == LIST_KIND else float(one.right)
        for (_, question), one in zip(batch.pairs, answers, strict=True)
    ]
    return Line(
        batch=number,
        asked=name,
        kind=batch.kind,
        seeds=list(seeds),
        right=[one.right for one in answers],
        named=named,
        losses=[one.loss_increase for one in answers],
    )
