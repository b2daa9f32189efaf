"""Pack many question-answer pairs of one scene into one row, and drop visual tokens by varied policies.

A row is [prefix | pair | pair | ...]. The prefix holds <s>, optionally a system message, "User: " and the picture's
tokens. A pair attends to the prefix and itself, never to another pair, and its positions follow the prefix's. So the
model sees every pair as the single-turn prompt of the chat template. Only answers and </s> have a loss.
"""

import functools
import random
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from benchmarks.mini.data import objects_of
from benchmarks.mini.vocabulary import GREETINGS, NO_PICTURE, ORDINALS, SYSTEMS
from tops_engine.mini.questions import Question, QuestionKind, SceneObject, ask
from tops_engine.mini.scenes import SIDE, Split, patches_of_box

IGNORED = -100
EASY_KINDS = ("colour", "shape", "digit")  # learned early: asked a quarter as often as the others
LATE_KINDS: tuple[QuestionKind, ...] = ("where", "exists")  # learned late: asked twice as often
WEIGHT = {"describe": 0.35}  # loss weight of an answer token; 1 for all other kinds


@dataclass
class Row:
    """One row: token ids, with -1 - p for visual token p of the row's pictures; labels; weights; block numbers."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)  # kind of block 1, 2, ...
    pictures: list[int] = field(default_factory=list)  # seeds


class Speller:
    """Encode text with a tokenizer; a string is encoded once."""

    def __init__(self, tokenizer: object):
        self.eos: int = tokenizer.eos_token_id  # type: ignore[attr-defined]
        self.bos: int = tokenizer.bos_token_id  # type: ignore[attr-defined]
        self.encode = functools.lru_cache(200_000)(lambda text: tokenizer.encode(text))  # type: ignore[attr-defined]


def keep(policy: str, objects: list[list[int]], total: int, rng: random.Random) -> list[int]:
    """Choose the visual tokens to keep of 0 .. total - 1, sorted; ``objects`` holds each object's patches.

    None of the policies is a method under test: all (keep everything), oracle (all object patches and nothing else),
    salient (object patches first, then others), background (others first), uniform, block (a rectangle or a run),
    clustered (around a few centres) and some (all patches of some objects, and a few others).
    """
    grid = round(total**0.5)
    salient = sorted(set().union(*objects))
    rest = sorted(set(range(total)) - set(salient))
    number = max(4, min(total, round(4 * (total / 4) ** rng.random())))
    if policy == "all":
        return list(range(total))
    if policy == "oracle":
        return salient
    if policy == "salient":
        rng.shuffle(rest)
        if rng.random() < 0.7:
            return sorted(salient + rest[: rng.choice((1, 4, 12, 30, 60, 90))])
        return sorted((rng.sample(salient, len(salient)) + rest)[:number])
    if policy == "background":
        return sorted((rng.sample(rest, len(rest)) + rng.sample(salient, len(salient)))[: max(number, total // 2)])
    if policy == "uniform":
        return sorted(rng.sample(range(total), number))
    if policy == "block":
        if rng.random() < 0.5:
            start = rng.randrange(total - number + 1)
            return list(range(start, start + number))
        height, width = rng.randint(3, grid), rng.randint(3, grid)
        top, left = rng.randint(0, grid - height), rng.randint(0, grid - width)
        return [r * grid + c for r in range(top, top + height) for c in range(left, left + width)]
    if policy == "clustered":
        centres = [divmod(rng.randrange(total), grid) for _ in range(rng.randint(1, 6))]
        near = {p: min((p // grid - r) ** 2 + (p % grid - c) ** 2 for r, c in centres) for p in range(total)}
        return sorted(sorted(range(total), key=lambda p: near[p])[:number])
    kept = [patches for patches in objects if rng.random() < 0.7] or objects[:1]
    return sorted(set().union(*kept) | set(rng.sample(rest, min(len(rest), rng.choice((0, 0, 5, 20))))))


POLICIES = ("oracle", "salient", "background", "uniform", "block", "clustered", "some")
SHARES = (5, 5, 1, 2, 1, 1, 3)


@dataclass(frozen=True)
class Turns:
    """The texts of a chat template around pictures, questions and answers."""

    begins: bool = True  # whether a conversation begins with the token of the tokenizer's `bos_token`
    system: str = "{}\n"
    user: str = "User: "
    assistant: str = "\nAssistant:"
    answer: str = " {}"
    again: str = "\nUser: "


class Packer:
    """Make rows from seeds of scenes; ``list_share`` of the rows for training ask for a list of all objects."""

    def __init__(
        self, speller: Speller, grid: int, split: Split, turns: Turns | None = None, list_share: float = 0.5
    ) -> None:
        self.speller, self.grid, self.split, self.turns = speller, grid, split, turns or Turns()
        self.list_share = list_share

    def _prefix(self, row: Row, kept: list[list[int]], system: str) -> None:
        speller = self.speller
        row.ids = [speller.bos] * self.turns.begins
        if system:
            row.ids += speller.encode(self.turns.system.format(system))
        if kept:
            row.ids += speller.encode(self.turns.user)
        for number, patches in enumerate(kept):
            row.ids += [-1 - (number * self.grid**2 + p) for p in patches] + list(speller.encode("\n"))
        row.labels, row.weights = [IGNORED] * len(row.ids), [0.0] * len(row.ids)
        row.blocks, row.positions = [0] * len(row.ids), list(range(len(row.ids)))

    def _add(self, row: Row, turns: list[tuple[str, str, str]], length: int, opening: str = "") -> bool:
        """Append a block of (kind, question, answer) turns; False if it does not fit into ``length`` tokens."""
        ids: list[int] = []
        labels: list[int] = []
        weights: list[float] = []
        for number, (kind, question, answer) in enumerate(turns):
            first = opening if number == 0 else self.turns.again
            asked = self.speller.encode(first + question + self.turns.assistant)
            told = [*self.speller.encode(self.turns.answer.format(answer)), self.speller.eos]
            ids += [*asked, *told]
            labels += [IGNORED] * len(asked) + told
            weights += [0.0] * len(asked) + [WEIGHT.get(kind, 1.0)] * len(told)
        if len(row.ids) + len(ids) > length:
            return False
        prefix = row.blocks.count(0)
        start = row.positions[prefix - 1] + 1 if prefix else 0
        row.kinds.append(turns[0][0])
        row.blocks += [len(row.kinds)] * len(ids)
        row.positions += range(start, start + len(ids))
        row.ids, row.labels, row.weights = row.ids + ids, row.labels + labels, row.weights + weights
        return True

    def patches(self, objects: list[SceneObject]) -> list[list[int]]:
        """Return each object's patches."""
        return [patches_of_box(item.box, SIDE, self.grid) for item in objects]

    def test_row(self, seed: int, kept: list[int], questions: list[Question], length: int) -> Row:
        """Pack a scene's questions, one a block, without a system message."""
        row = Row(pictures=[seed])
        self._prefix(row, [kept], "")
        for question in questions:
            self._add(row, [(question.kind, question.text, question.answer)], length)
        return row

    def row(self, seed: int, other: int, policy: str, length: int, rng: random.Random) -> Row:
        """Pack one scene; sometimes with the scene ``other`` as a first or second picture."""
        system = rng.choice(SYSTEMS) if rng.random() < 0.3 else ""
        two = rng.random() < 0.08
        seeds = [seed, other] if two else [seed]
        scenes = [objects_of(s, self.split) for s in seeds]
        kept = [keep(policy, self.patches(objects), self.grid**2, rng) for objects in scenes]
        while sum(map(len, kept)) > length - 100:  # two whole pictures do not fit
            kept = [sorted(rng.sample(k, len(k) // 2)) for k in kept]
        row = Row(pictures=seeds)
        self._prefix(row, kept, system)
        described, fits = rng.random() >= self.list_share, True
        while fits:
            pool: list[tuple[str, str, str]] = []
            for number, objects in enumerate(scenes):
                for q in ask(objects, SIDE, rng) + ask(objects, SIDE, rng, LATE_KINDS):
                    if q.kind == "describe" and described:
                        continue
                    if q.kind in EASY_KINDS and rng.random() < 0.75:
                        continue
                    described |= q.kind == "describe"
                    lead = f"In the {ORDINALS[number]} picture, " if two else ""
                    pool.append((q.kind, lead + (q.text[0].lower() + q.text[1:] if two else q.text), q.answer))
            rng.shuffle(pool)
            while pool and fits:
                turns = [pool.pop() for _ in range(2 if rng.random() < 0.1 and len(pool) > 1 else 1)]
                fits = self._add(row, turns, length)
        return row

    def blind_row(self, length: int, rng: random.Random) -> Row:
        """Pack conversations without a picture."""
        row = Row()
        self._prefix(row, [], rng.choice(SYSTEMS) if rng.random() < 0.3 else "")
        while True:
            if rng.random() < 0.5:
                question, answer = rng.choice(GREETINGS)
            else:
                asked = rng.choice(ask(objects_of(rng.randrange(10**6), self.split), SIDE, rng))
                question, answer = asked.text, NO_PICTURE
            if not self._add(row, [("blind", question, answer)], length, opening=self.turns.user):
                return row


def collate(rows: list[Row], device: torch.device, multiple: int = 1) -> dict[str, Tensor]:
    """Pad rows on the right to a multiple of a length.

    Returns ids, labels, weights, blocks, positions (all (b, n)) and mask (b, 1, n, n).
    """
    longest = -(-max(len(row.ids) for row in rows) // multiple) * multiple

    def padded(name: str, fill: float, kind: type) -> np.ndarray:
        values: np.ndarray = np.full((len(rows), longest), fill, kind)
        for index, row in enumerate(rows):
            values[index, : len(row.ids)] = getattr(row, name)
        return values

    block = padded("blocks", -1, np.int64)
    seen = (block[:, None, :] == 0) | (block[:, None, :] == block[:, :, None])
    seen &= np.tril(np.ones((longest, longest), bool))
    mask = torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill_(torch.from_numpy(~seen), -1e30)
    batch = {
        "ids": padded("ids", 0, np.int64),
        "labels": padded("labels", IGNORED, np.int64),
        "weights": padded("weights", 0, np.float32),
        "blocks": block,
        "positions": padded("positions", 0, np.int64),
    }
    return {name: torch.from_numpy(v).to(device) for name, v in batch.items()} | {"mask": mask[:, None].to(device)}
