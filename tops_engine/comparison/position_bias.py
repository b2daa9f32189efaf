"""Measure which places of a picture a method keeps (the question of arXiv 2502.11501; TOPS, figure 10)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tops_engine.comparison.one_picture import cold_answer
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput, TopsError
from tops_engine.evaluation.data_set import DataSet
from tops_engine.evaluation.prunings import pruning_name, reseeded, without_unpruned
from tops_engine.evaluation.tables import Notes, Table
from tops_engine.media.layout import VisualLayout
from tops_engine.progress import Progress, no_progress
from tops_engine.settings import Generation, Pruning

GRID = 24
FIRST_TOKEN = Generation(max_tokens=1)

# Random choices of as many tokens, drawn beside each real one: with few questions even chance gives an uneven map.
CHANCE_DRAWS = 8


@dataclass(frozen=True)
class PositionBias:
    """How often a pruning keeps each place.

    Attributes
    ----------
    frequency : float32 [rows, columns], top row first: the share of the cell's area that is covered by tokens kept up
        to the last layer, mean over questions; nan where no token ever looks (a cropped border).
    gini, entropy : Gini coefficient and normalised entropy of the frequencies; 0 and 1 if all places are kept equally.
    chance_gini, chance_entropy : the same for random choices of as many tokens of the same pictures.
    num_answers : number of questions that were measured.
    error : why the other questions were not measured, if there are any.
    """

    pruning: Pruning
    frequency: Tensor
    gini: float
    entropy: float
    chance_gini: float
    chance_entropy: float
    num_answers: int
    error: str | None


def measure_position_bias(
    engine: Engine,
    data: DataSet,
    prunings: Sequence[Pruning],
    grid: int = GRID,
    progress: Progress = no_progress,
) -> list[PositionBias]:
    """Ask every question up to its first token, and count the places whose tokens are kept up to the last layer.

    Tokens of pictures of any size and layout are mapped to a grid by the area of their boxes; if a picture has
    several views, all of them count.

    Parameters
    ----------
    grid : number of rows and of columns.
    progress : receives the number of questions.

    Raises
    ------
    InvalidInput
        If no question could be asked with any of the prunings.
    """
    counts = [_Counts(pruning, grid) for pruning in without_unpruned(prunings)]
    progress(0, len(data))
    for number, question in enumerate(data.questions()):
        for count in counts:
            try:
                answer = cold_answer(engine, question.messages, reseeded(count.pruning, number), FIRST_TOKEN)
            except TopsError as error:
                count.error = str(error)
                continue
            token_map = answer.token_map
            count.add(question.digest, token_map.layouts[0], token_map.stages[-1][1][0])
        progress(number + 1, len(data))
    progress(len(data), len(data))
    if not any(count.num_answers for count in counts):
        reasons = [count.error for count in counts if count.error]
        raise InvalidInput(reasons[0]) if reasons else data.nothing_asked()
    return [count.result() for count in counts]


def cell_cover(layout: VisualLayout, grid: int) -> Tensor:
    """Return the share of each cell's area that each token covers: float32 [n, grid * grid], row by row."""
    edges = torch.linspace(0, 1, grid + 1)

    def overlap(low: Tensor, high: Tensor) -> Tensor:
        inside = torch.minimum(high[:, None], edges[1:]) - torch.maximum(low[:, None], edges[:-1])
        return inside.clamp(min=0) * grid

    left, top, right, bottom = layout.boxes.unbind(dim=1)
    return (overlap(top, bottom)[:, :, None] * overlap(left, right)[:, None, :]).flatten(1)


def gini(values: Tensor) -> float:
    """Return the Gini coefficient of values >= 0: 0 if all are equal, near 1 if only one is above 0."""
    ranked = values.double().sort().values
    n = len(ranked)
    ranks = torch.arange(1, n + 1, dtype=torch.float64)
    return float(((2 * ranks - n - 1) * ranked).sum() / (n * ranked.sum()))


def normalised_entropy(values: Tensor) -> float:
    """Return the entropy of values >= 0 taken as a distribution, divided by the uniform one's: 1 if all are equal."""
    shares = values.double() / values.double().sum()
    return float(torch.special.entr(shares).sum() / math.log(len(shares)))


class _Counts:
    """The counts of the tokens that a pruning kept so far, and of those that random choices would have kept."""

    def __init__(self, pruning: Pruning, grid: int) -> None:
        self.pruning = pruning
        self.grid = grid
        self.kept = torch.zeros(grid * grid)
        self.chance = torch.zeros(CHANCE_DRAWS, grid * grid)
        self.seen = torch.zeros(grid * grid)
        self.num_answers = 0
        self.error: str | None = None
        self._generator = torch.Generator().manual_seed(0)
        self._last: tuple[str, list[int]] = ("", [])
        self._last_chance = torch.zeros(0)

    def add(self, digest: str, layout: VisualLayout, kept: Tensor) -> None:
        cover = cell_cover(layout, self.grid)
        self.kept += cover[kept].sum(dim=0)
        self.seen += cover.sum(dim=0)
        # A method that ignores the question keeps the same tokens for all questions about a picture; so does chance.
        if self._last != (digest, kept.tolist()):
            self._last = (digest, kept.tolist())
            choices = [torch.randperm(len(cover), generator=self._generator)[: len(kept)] for _ in self.chance]
            self._last_chance = torch.stack([cover[choice].sum(dim=0) for choice in choices])
        self.chance += self._last_chance
        self.num_answers += 1

    def result(self) -> PositionBias:
        looked = self.seen > 0
        frequency = torch.where(looked, self.kept / self.seen, torch.nan)
        real = frequency[looked]
        chances = self.chance[:, looked] / self.seen[looked]
        measured = self.num_answers > 0
        return PositionBias(
            pruning=self.pruning,
            frequency=frequency.view(self.grid, self.grid),
            gini=gini(real) if measured else math.nan,
            entropy=normalised_entropy(real) if measured else math.nan,
            chance_gini=sum(map(gini, chances)) / CHANCE_DRAWS if measured else math.nan,
            chance_entropy=sum(map(normalised_entropy, chances)) / CHANCE_DRAWS if measured else math.nan,
            num_answers=self.num_answers,
            error=self.error,
        )


def bias_table(biases: Sequence[PositionBias], title: str) -> Table:
    """Make a table of the Gini coefficient and normalised entropy of each pruning, beside those of random choices."""
    table, notes = Table.of_numbers(title, "Gini", "by\nchance", "entropy", "by\nchance", "kept %"), Notes()
    for bias in biases:
        label = f"{pruning_name(bias.pruning)} {notes.mark(bias.error)}".strip()
        figures = (bias.gini, bias.chance_gini, bias.entropy, bias.chance_entropy)
        cells = [f"{figure:.3f}" for figure in figures] + [f"{100 * float(bias.frequency.nanmean()):.1f}"]
        table.add_row(label, *(cells if bias.num_answers else ()))
    table.notes = notes.lines()
    return table
