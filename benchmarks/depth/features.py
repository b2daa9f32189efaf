"""What the frozen tower sees in the training scenes, computed once for all models.

``features.npy`` holds float16 (scenes, 144, 160), 46 KB a scene; ``features.txt`` the number of scenes that are done.
"""

from pathlib import Path

import numpy as np
import torch

from benchmarks.depth.models import mini
from benchmarks.mini.data import pixels
from benchmarks.mini.language import Reader
from tops_engine.cli.progress import progress_bar
from tops_engine.mini.scenes import generate

#: The first training scene; mini and its tower were trained on those before it.
FIRST_SEED = 200_000
GRID, WIDTH = 12, 160
CHUNK = 50


def compute(folder: Path, num_scenes: int) -> None:
    """Write the features of the training scenes; continue a run that was stopped, and extend a smaller one."""
    folder.mkdir(parents=True, exist_ok=True)
    done = computed(folder)
    if done >= num_scenes:
        return
    reader = Reader(mini(), torch.device("cpu"))
    path = folder / "features.npy"
    with path.open("ab") as file:  # the part of a chunk that a killed run wrote is cut off
        file.truncate(num_scenes * GRID**2 * WIDTH * 2)
    features = open_features(folder, num_scenes, "r+")
    with progress_bar("scenes") as progress:
        for start in range(done, num_scenes, CHUNK):
            seeds = range(FIRST_SEED + start, FIRST_SEED + min(start + CHUNK, num_scenes))
            images = np.stack([pixels(generate(seed, "train").image, GRID) for seed in seeds])
            features[start : start + len(seeds)] = reader.features(images).to(torch.float16).numpy()
            features.flush()
            (folder / "features.txt").write_text(str(start + len(seeds)))
            progress(start + len(seeds), num_scenes)


def computed(folder: Path) -> int:
    """Return the number of scenes whose features are on disk."""
    path = folder / "features.txt"
    return int(path.read_text() or 0) if path.exists() else 0


def open_features(folder: Path, num_scenes: int, mode: str = "r") -> np.memmap:
    """Open the features, float16 (scenes, 144, 160), without reading them into memory."""
    shape = (num_scenes, GRID**2, WIDTH)
    return np.memmap(folder / "features.npy", np.float16, mode, shape=shape)  # type: ignore[call-overload]
