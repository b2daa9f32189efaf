"""Stage `render`: draw the training scenes once and store pictures and dense labels as memory maps.

Files in the work folder, for n scenes with seeds 0 .. n - 1 and a g x g grid of 14-pixel patches:
images.npy uint8 (n, 14 g, 14 g, 3); patches.npy uint8 (n, g * g, 9), NONE where a label does not apply, columns as in
COLUMNS; presence.npy uint8 (n, PRESENCE), the contents of the scene: 48 (colour, shape) pairs, 10 digits, any word.
"""

import itertools
import random
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from tops_engine.mini.questions import COLOURS, SHAPES, SceneObject
from tops_engine.mini.scenes import SIDE, Split, generate, letter_spans, patches_of_box, place_objects

PATCH = 14
NONE = 255
COLUMNS = ("kind", "colour", "shape", "digit", "letter1", "letter2", "letter3", "letter4", "anchor")
KINDS = ("background", "shape", "digit", "word")
PRESENCE = len(COLOURS) * len(SHAPES) + 10 + 1
CHUNK = 500


def objects_of(seed: int, split: Split, reading: bool = False) -> list[SceneObject]:
    """Return the objects of a scene without drawing it."""
    return place_objects(random.Random(f"mini {split} {seed}"), split, reading=reading)


def pixels(image: Image.Image, grid: int) -> np.ndarray:
    """Scale a square picture as mini's processor does; uint8 (14 grid, 14 grid, 3)."""
    return np.asarray(image.resize((grid * PATCH, grid * PATCH), Image.Resampling.BICUBIC))


def labels_of(objects: Sequence[SceneObject], grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Return dense labels uint8 (grid * grid, 9) and presence uint8 (PRESENCE,) of a scene's objects."""
    dense = np.full((grid * grid, len(COLUMNS)), NONE, np.uint8)
    dense[:, 0] = 0
    presence = np.zeros(PRESENCE, np.uint8)
    for item in objects:
        patches = patches_of_box(item.box, SIDE, grid)
        left, top, right, bottom = item.box
        anchor = (top + bottom) * grid // (2 * SIDE) * grid + (left + right) * grid // (2 * SIDE)
        row = np.full(len(COLUMNS), NONE, np.uint8)
        row[0], row[-1] = KINDS.index(item.kind), 0
        if item.kind == "shape":
            row[1], row[2] = COLOURS.index(item.colour), SHAPES.index(item.name)
            presence[row[1] * len(SHAPES) + row[2]] = 1
        elif item.kind == "digit":
            row[3] = int(item.name)
            presence[len(COLOURS) * len(SHAPES) + row[3]] = 1
        else:
            row[4:8] = [ord(letter) - ord("A") if letter != " " else 26 for letter in item.name.ljust(4)]
            presence[-1] = 1
        dense[patches] = row
        dense[anchor] = row
        dense[anchor, -1] = 1
    return dense, presence


def letters_of(objects: Sequence[SceneObject], grid: int) -> np.ndarray:
    """Return which letters lie, at least by half, in the column of each patch of a word; uint8 (grid * grid, 26)."""
    labels = np.zeros((grid * grid, 26), np.uint8)
    cell = SIDE / grid
    for item in objects:
        if item.kind != "word":
            continue
        spans = letter_spans(item)
        for patch in patches_of_box(item.box, SIDE, grid):
            left = patch % grid * cell
            for letter, start, stop in spans:
                if min(stop, left + cell) - max(start, left) >= 0.5 * (stop - start):
                    labels[patch, ord(letter) - ord("A")] = 1
    return labels


def _chunk(start: int, stop: int, grid: int, reading: bool) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    images, dense, presence = [], [], []
    for seed in range(start, stop):
        scene = generate(seed, "train", reading)
        images.append(pixels(scene.image, grid))
        labels = labels_of(scene.objects, grid)
        dense.append(labels[0])
        presence.append(labels[1])
    return start, np.stack(images), np.stack(dense), np.stack(presence)


def open_maps(folder: Path, count: int, grid: int, mode: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Open, or with mode "w+" create, the three memory maps."""
    shapes = {
        "images": (count, grid * PATCH, grid * PATCH, 3),
        "patches": (count, grid * grid, len(COLUMNS)),
        "presence": (count, PRESENCE),
    }
    maps = [np.memmap(folder / f"{name}.npy", np.uint8, mode, shape=shape) for name, shape in shapes.items()]  # type: ignore[call-overload]
    return maps[0], maps[1], maps[2]


def render(folder: Path, count: int, grid: int, workers: int, reading: bool = False) -> None:
    """Draw scenes 0 .. count - 1 of the training split; continue a run that was stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    progress = folder / "rendered.txt"
    done = int(progress.read_text()) if progress.exists() else 0
    images, dense, presence = open_maps(folder, count, grid, "r+" if done else "w+")
    starts = iter(range(done, count, CHUNK))
    with ProcessPoolExecutor(workers) as pool:
        jobs: deque[Future[tuple[int, np.ndarray, np.ndarray, np.ndarray]]] = deque()
        while True:
            for start in itertools.islice(starts, 2 * workers - len(jobs)):
                jobs.append(pool.submit(_chunk, start, min(start + CHUNK, count), grid, reading))
            if not jobs:
                break
            start, *parts = jobs.popleft().result()
            stop = start + len(parts[0])
            images[start:stop], dense[start:stop], presence[start:stop] = parts
            progress.write_text(str(stop))


def rendered(folder: Path) -> int:
    """Return the number of scenes that are ready."""
    path = folder / "rendered.txt"
    return int(path.read_text() or 0) if path.exists() else 0
