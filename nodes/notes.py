"""What a node says beside its answer: what the user did not choose, and what a model cannot do."""

import hashlib
from collections.abc import Sequence
from functools import cache

from PIL import Image
from tops_workflow.samples import SAMPLES, samples_folder

from tops_engine.media.images import open_frames
from tops_engine.mini import mini_path
from tops_engine.settings import Pruning

from .models import NodeModel, TopsModel

MINI = (
    "mini knows only the scenes that it was trained on, and answers about other pictures with shapes that are not "
    "there. For this picture choose another model in TOPS Load Model."
)


def notes(model: NodeModel, pictures: Sequence[Image.Image], connected: Pruning | None) -> list[str]:
    """Return the notes of a question about pictures.

    Parameters
    ----------
    connected : the pruning that is connected; None if nothing is.
    """
    found = []
    if pictures and connected is None and model.default_pruning is not None:
        method, budget = model.default_pruning.method, 100 * float(model.default_pruning.budget)
        found.append(f"No TOPS Pruning is connected: {method} keeps {budget:.1f} % of the visual tokens.")
    if isinstance(model, TopsModel) and model.spec.model == "mini" and not _known() >= set(map(_digest, pictures)):
        found.append(MINI)
    return found


@cache
def _known() -> frozenset[bytes]:
    """Return the digests of the pictures of the pack's own templates, which are scenes of mini."""
    paths = [samples_folder() / name for name in SAMPLES] + [mini_path().parent / "sample.jpg"]
    return frozenset(_digest(frame) for path in paths for frame in open_frames(path))


def _digest(picture: Image.Image) -> bytes:
    pixels = picture.convert("RGB")
    return hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).digest()
