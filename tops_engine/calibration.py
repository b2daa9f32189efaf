"""Fit a FitPrune recipe to a model: how many visual tokens each layer needs (arXiv 2409.10197).

The model first reads a few questions unpruned. The attention that the visual tokens get in each layer, from the text
and from each other, should change as little as possible. A trial with a tolerance drops, after each layer, the least
attended tokens that together stay within the tolerance on both counts. The smallest tolerance that meets the budget
gives the recipe.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from tops_engine.budget import Keep, Stage, bend, stages_along, tokens_per_layer
from tops_engine.conversation.messages import Message, user_message
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput, TopsError, quote
from tops_engine.evaluation.data_set import DataSet
from tops_engine.generation.prompts import PreparedPrompts
from tops_engine.methods import LayerTokens, Method, Selection
from tops_engine.methods.recipe import Recipe
from tops_engine.mini.scenes import generate
from tops_engine.progress import Progress, no_progress
from tops_engine.settings import Generation, Pruning

#: Halvings of the tolerance between 0 and 1: it is found to within 0.01.
NUM_HALVINGS = 7

#: First seed of the scenes; mini's training and the benchmark use others.
FIRST_SEED = 30_000_000

#: The attention an image's visual tokens got in a layer: from the text after it, and from its own tokens.
Mass = tuple[float, float]

#: (layer, image, attention from the text, from the image's own tokens) -> bool [n], which tokens stay.
Rule = Callable[[int, int, Tensor, Tensor], Tensor]


class Trial(Method, register=False):
    """Record the attention in each layer, and let a rule choose the tokens that the next layer sees.

    ``_masses`` and ``_counts`` are filled during prefill. For each layer but the last, and for each image, they hold
    the attention that its tokens got and the number of tokens that are kept.
    """

    default_positions = "original"

    rule: Rule = Field(exclude=True)
    _masses: list[list[Mass]] = PrivateAttr(default_factory=list)
    _counts: list[list[int]] = PrivateAttr(default_factory=list)

    @property
    def adaptive(self) -> bool:
        return True

    def plan(self, num_visual_tokens: int, num_layers: int, keep: Keep) -> tuple[Stage, ...]:
        return tuple(Stage(layer, num_visual_tokens) for layer in range(num_layers))

    def select_at_layer(self, images: Sequence[LayerTokens], counts: Sequence[int]) -> list[Selection]:
        layer, masses, selections = len(self._masses), [], []
        for number, image in enumerate(images):
            from_text = image.attention("text", layer="previous", heads="max").mean(dim=0)
            from_image = image.attention("image", layer="previous", heads="max").mean(dim=0)
            masses.append((float(from_text.sum()), float(from_image.sum())))
            stays = self.rule(layer, number, from_text, from_image)
            selections.append(Selection(stays.nonzero().flatten()))
        self._masses.append(masses)
        self._counts.append([len(selection.indices) for selection in selections])
        return selections


class TrialPruning(Pruning):
    """Run a :class:`Trial` instead of a named method."""

    trial: Trial = Field(exclude=True)

    @property
    def method_instance(self) -> Method:
        return self.trial


def fit_recipe(
    engine: Engine,
    questions: Sequence[Sequence[Message] | PreparedPrompts],
    keep: float,
    progress: Progress = no_progress,
) -> Recipe:
    """Search for the recipe that meets a budget and changes the attention to the visual tokens least.

    Parameters
    ----------
    engine : whose model the recipe is for.
    questions : conversations with pictures similar to those of later use, or single conversations prepared with
        :meth:`Engine.prepare`. The paper used 655; a tenth of them gave nearly the same result.
    keep : fraction of the visual tokens to keep, as a layer-average.
    progress : receives the number of times a question was read; an exception it raises ends the search.

    Raises
    ------
    InvalidInput
        If ``keep`` is not a fraction, or no question has a picture.
    BudgetError
        If one token in every layer but the first is already more than ``keep``.
    """
    check_keep(keep)
    asked = [
        question if isinstance(question, PreparedPrompts) else engine.prepare([question]) for question in questions
    ]
    asked = [question for question in asked if question.prompts[0].spans]
    if not asked:
        raise InvalidInput("A recipe is fitted on questions about pictures; give at least one.")
    return _Fit(engine, asked, keep, progress).recipe()


def check_keep(keep: float) -> None:
    """Raise InvalidInput unless ``keep`` is a fraction."""
    if not isinstance(keep, float) or not 0 < keep <= 1:
        raise InvalidInput(f"keep={quote(keep)} is not allowed: a recipe needs a fraction above 0 and up to 1.0.")


class _Fit:
    """One search: the questions, and the unpruned model's attention on them."""

    def __init__(self, engine: Engine, questions: Sequence[PreparedPrompts], keep: float, progress: Progress) -> None:
        self.engine = engine
        self.questions = questions
        self.keep = keep
        self.progress = progress
        self.num_read = 0
        self.num_layers = engine.family.decoder.num_layers
        self.sizes = [[span.layout.num_tokens for span in question.prompts[0].spans] for question in questions]
        floor = [1.0, *[1e-9] * (self.num_layers - 1)]
        for size in {size for sizes in self.sizes for size in sizes}:
            stages_along(keep, size, self.num_layers, floor)
        self._report_progress()
        self.unpruned = [trial._masses for trial in self._read([_all_stay] * len(questions))]

    def recipe(self) -> Recipe:
        low, high = 0.0, 1.0
        best: list[float] | None = None
        for _ in range(NUM_HALVINGS):
            middle = (low + high) / 2
            curve = self._curve(middle)
            if curve is None:
                low = middle
            else:
                high, best = middle, curve
        best = best or self._curve(1.0)
        assert best is not None, "a tolerance of 1 leaves one token, which the budget allows"
        remaining = [1.0] * self.num_layers
        if self.keep < 1:
            least = 1 / max(size for sizes in self.sizes for size in sizes)
            remaining = [round(share, 6) for share in bend(best, self.keep, least)]
        return Recipe(
            model=self.engine.spec.model,
            num_layers=self.num_layers,
            keep=self.keep,
            remaining=tuple(remaining),
            divergence=round(self._divergence(remaining), 6),
            tolerance=high,
            num_questions=len(self.questions),
        )

    def _read(self, rules: Sequence[Rule]) -> Iterator[Trial]:
        """Read each question once with its rule."""
        for question, rule in zip(self.questions, rules, strict=True):
            trial = Trial(rule=rule)
            self.engine.scored_batch(question, TrialPruning(method="none", trial=trial), Generation(max_tokens=1))
            self.num_read += 1
            self._report_progress()
            yield trial

    def _report_progress(self) -> None:
        self.progress(self.num_read, (NUM_HALVINGS + 2) * len(self.questions))

    def _curve(self, tolerance: float) -> list[float] | None:
        """Return the share of tokens each layer sees with a tolerance, mean over images, or None over the budget."""
        shares = [[1.0] for sizes in self.sizes for _ in sizes]
        trials = self._read([_spared_by_both(tolerance, unpruned) for unpruned in self.unpruned])
        curves = iter(shares)
        for trial, sizes in zip(trials, self.sizes, strict=True):
            for image, size in enumerate(sizes):
                next(curves).extend(counts[image] / size for counts in trial._counts)
        curve = [sum(layer) / len(shares) for layer in zip(*shares, strict=True)]
        return _stopped_at(self.keep, curve)

    def _divergence(self, remaining: Sequence[float]) -> float:
        """Measure how much the recipe changes attention (see :class:`Recipe`)."""
        changes = []
        rules = [
            _largest_products(
                [
                    tokens_per_layer(stages_along(self.keep, size, self.num_layers, remaining), size, self.num_layers)
                    for size in sizes
                ]
            )
            for sizes in self.sizes
        ]
        for trial, unpruned in zip(self._read(rules), self.unpruned, strict=True):
            for layer, before in zip(trial._masses, unpruned, strict=True):
                for pruned, whole in zip(layer, before, strict=True):
                    changes += [abs(now / then - 1) for now, then in zip(pruned, whole, strict=True)]
        return sum(changes) / max(1, len(changes))


def _all_stay(layer: int, image: int, from_text: Tensor, from_image: Tensor) -> Tensor:
    return from_text == from_text


def _spared_by_both(tolerance: float, unpruned: Sequence[Sequence[Mass]]) -> Rule:
    """Return the rule that drops the least attended tokens within the tolerance, by the text and by the image."""

    def rule(layer: int, image: int, from_text: Tensor, from_image: Tensor) -> Tensor:
        text_mass, image_mass = unpruned[layer][image]
        stays = ~(_spared(from_text, text_mass, tolerance) & _spared(from_image, image_mass, tolerance))
        # At least one token is kept at any tolerance.
        stays[(from_text * from_image).argmax()] = True
        return stays

    return rule


def _spared(attention: Tensor, whole: float, tolerance: float) -> Tensor:
    """Return the largest set of least attended tokens, bool [n], that can be dropped within the tolerance.

    The other tokens keep at least ``1 - tolerance`` of ``whole``, the unpruned attention of the layer. Tokens that
    earlier layers dropped count against the tolerance.
    """
    order = attention.argsort(stable=True)
    left = attention.sum() - attention[order].cumsum(dim=0)
    spared = attention.new_zeros(len(attention), dtype=torch.bool)
    # The margin absorbs rounding errors.
    spared[order[left >= (1 - tolerance - 1e-6) * whole]] = True
    return spared


def _largest_products(counts: Sequence[Sequence[int]]) -> Rule:
    """Return FitPrune's own rule, given the number of tokens that each layer sees of each image."""

    def rule(layer: int, image: int, from_text: Tensor, from_image: Tensor) -> Tensor:
        best = (from_text * from_image).argsort(descending=True, stable=True)[: counts[image][layer + 1]]
        stays = from_text.new_zeros(len(from_text), dtype=torch.bool)
        stays[best] = True
        return stays

    return rule


def _stopped_at(keep: float, curve: Sequence[float]) -> list[float] | None:
    """Stop the curve at the first layer from which it may stay level within the budget; None if there is none."""
    for layer, share in enumerate(curve):
        level = [*curve[: layer + 1], *[share] * (len(curve) - layer - 1)]
        if sum(level) <= keep * len(curve) + 1e-9:
            return level
    return None


def scene_questions(engine: Engine, number: int) -> list[PreparedPrompts]:
    """Prepare one question about each of ``number`` scenes like those mini was trained on, of all kinds in turn.

    Raises
    ------
    MissingDependency
        If the pictures behind the scenes are not installed (``tops-engine[bench]``).
    """
    scenes = [generate(FIRST_SEED + index, "train") for index in range(number)]
    questions = [scene.questions[index % len(scene.questions)] for index, scene in enumerate(scenes)]
    pairs = zip(scenes, questions, strict=True)
    return [engine.prepare([[user_message(question.text, scene.image)]]) for scene, question in pairs]


def data_set_questions(engine: Engine, data: DataSet, most: int) -> list[PreparedPrompts]:
    """Prepare one question about each picture of a folder, taking the prompts in turn.

    Pictures that cannot be asked about are left out and added to ``data.skipped``.

    Parameters
    ----------
    most : if the folder holds more pictures, this many of them are taken, evenly spread.

    Raises
    ------
    InvalidInput
        If none of the pictures can be asked about.
    """
    step = max(1, len(data.pictures) / most)
    data.pictures = [data.pictures[int(number * step)] for number in range(min(most, len(data.pictures)))]
    prepared = []
    for number, question in enumerate(data.questions()):
        picture, prompt = divmod(number, len(data.prompts))
        if prompt != picture % len(data.prompts):
            continue
        try:
            prepared.append(engine.prepare([question.messages]))
        except TopsError as error:
            data.skipped[question.picture] = str(error)
    if not prepared:
        raise data.nothing_asked()
    return prepared
