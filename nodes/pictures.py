"""Convert ComfyUI's IMAGE and MASK tensors to pictures and back."""

import uuid
from typing import Any

import torch
from PIL import Image
from tops_workflow.growing import growing
from torch import Tensor

from tops_engine.errors import InvalidImage

from .comfyui_host import host
from .widgets import Widget

#: The inputs for pictures after the first one, ``image``; each takes a batch.
PICTURE_INPUTS = [f"image_{number}" for number in range(2, 21)]

MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def to_pictures(image: Any, socket: str = "image") -> list[Image.Image]:
    """Return the pictures of an IMAGE.

    Parameters
    ----------
    image : float [B, H, W, C] in 0..1 with 1, 3 or 4 channels (the engine lays transparency on white); None is no
        picture. Values outside 0..1 are clipped, not-a-number becomes 0.

    Raises
    ------
    InvalidImage
        If it is something else, or empty.
    """
    if image is None:
        return []
    if not isinstance(image, Tensor) or image.ndim != 4 or image.shape[-1] not in MODES:
        found = f"a tensor of shape {list(image.shape)}" if isinstance(image, Tensor) else f"a {type(image).__name__}"
        raise InvalidImage(f"The input {socket!r} expects an IMAGE [batch, height, width, 1, 3 or 4], not {found}.")
    if 0 in image.shape:
        raise InvalidImage(f"The input {socket!r} got an IMAGE without pictures or pixels {list(image.shape)}.")
    values = image.detach().float().nan_to_num().clamp(0, 1).mul(255).round().byte().cpu().contiguous()
    mode = MODES[image.shape[-1]]
    size = (image.shape[2], image.shape[1])
    return [Image.frombytes(mode, size, bytes(memoryview(one.flatten().numpy()))) for one in values]


def growing_pictures(first: int) -> dict[str, Widget]:
    """Return the group ``images`` of inputs for more pictures of one question.

    Parameters
    ----------
    first : the number of its first input; the inputs before it are the node's own.
    """
    tooltip = "More pictures of the same question, of any size; a further input appears when the last one is linked."
    return growing("images", "IMAGE", PICTURE_INPUTS[first - 2 :], tooltip)


def all_pictures(own: dict[str, Any], images: dict[str, Any] | None) -> list[Image.Image]:
    """Return the pictures of a node's own inputs by name, then those of the group ``images`` in their order."""
    more = {name: images[name] for name in PICTURE_INPUTS if images and name in images}
    return [picture for name, image in (own | more).items() for picture in to_pictures(image, name)]


def to_image(pictures: list[Image.Image]) -> Tensor:
    """Return an IMAGE, float32 [B, H, W, 3] in 0..1; smaller pictures get a black margin, as a batch has one size."""
    width = max(picture.width for picture in pictures)
    height = max(picture.height for picture in pictures)
    batch = torch.zeros(len(pictures), height, width, 3)
    for row, picture in zip(batch, pictures, strict=True):
        pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
        row[: picture.height, : picture.width] = pixels.view(picture.height, picture.width, 3) / 255
    return batch


def save_temporary(picture: Image.Image, name: str) -> dict[str, str]:
    """Save a picture into the host's temp folder; return how the text of a node's result names it to the browser."""
    folder = host().folders.temp
    folder.mkdir(parents=True, exist_ok=True)
    file = f"{name}_{uuid.uuid4().hex[:12]}.png"
    picture.save(folder / file, compress_level=1)
    return {"filename": file, "subfolder": "", "type": "temp"}


def to_mask(pictures: list[Image.Image]) -> Tensor:
    """Return a MASK, float32 [B, H, W] in 0..1, of grey pictures of one size."""
    rows = []
    for picture in pictures:
        pixels = torch.frombuffer(bytearray(picture.convert("L").tobytes()), dtype=torch.uint8)
        rows.append(pixels.view(picture.height, picture.width) / 255)
    return torch.stack(rows)
