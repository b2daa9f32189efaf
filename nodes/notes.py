"""What a node says beside its answer: what the user did not choose, and what a model cannot do."""

from collections.abc import Sequence
from functools import cache

from PIL import Image
from tops_workflow.samples import PHOTOGRAPH, SAMPLES, samples_folder

from tops_engine.media.images import open_frames
from tops_engine.mini import mini_path
from tops_engine.settings import Pruning

from .models import NodeModel, TopsModel

MINI = (
    "mini knows only the scenes that it was trained on, and answers about other pictures with shapes that are not "
    "there. For this picture choose another model in TOPS Load Model."
)

#: Cells of a picture in each direction, and how much their mean colours may differ (of 255). ComfyUI 0.29 decodes the
#: JPEG files of the pack with other pixels than Pillow: up to 88 in a pixel, up to 5 in a cell.
CELLS, TOLERANCE = 16, 8


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
    if isinstance(model, TopsModel) and model.spec.model == "mini" and not all(map(_is_scene, pictures)):
        found.append(MINI)
    return found


def _is_scene(picture: Image.Image) -> bool:
    """Return whether a picture is one of the pack's own scenes of mini; hosts decode a JPEG a little differently."""
    size, cells = _summary(picture)
    return any(
        size == known_size and max(abs(one - other) for one, other in zip(cells, known, strict=True)) <= TOLERANCE
        for known_size, known in _scenes()
    )


@cache
def _scenes() -> list[tuple[tuple[int, int], bytes]]:
    """Return the summaries of the pictures of the pack's own templates that are scenes of mini."""
    paths = [samples_folder() / name for name in SAMPLES if name != PHOTOGRAPH]
    paths.append(mini_path().parent / "sample.jpg")
    return [_summary(frame) for path in paths for frame in open_frames(path)]


def _summary(picture: Image.Image) -> tuple[tuple[int, int], bytes]:
    """Return the size of a picture, and the mean colours of its cells."""
    return picture.size, picture.convert("RGB").resize((CELLS, CELLS), Image.Resampling.BOX).tobytes()
