"""A prompt as a model reads it: its tokens, and which of them stand for pictures and videos."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from tops_engine.budget import Keep
from tops_engine.errors import InvalidImage, InvalidInput, reason_of, shorten
from tops_engine.media.layout import VisualLayout, VisualSpan
from tops_engine.media.videos import Video

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Prompt:
    """One conversation, ready for the model.

    Attributes
    ----------
    input_ids : int64 [N] on the CPU, with every picture and video expanded to its placeholder tokens.
    position_ids : int64 [1, N] on the CPU, or [3, N] (time, row, column) if the model numbers pictures in 3-D.
    spans : which tokens are those of each picture and video, in the order of the prompt.
    pixels : the tensors that the image and video processors made, on the CPU.
    images, videos : the pictures, scaled to the bounds of ``Family.bound_pixels``, and the videos.
    keeps : the own budget of each picture and video, in the order of ``spans``; None is that of the pruning.
    image_digests : a fingerprint of each picture's content.
    question : the text of the user's last message that has text.
    continued_text : the text of the assistant that the prompt ends within and that the answer continues; or empty.
    sizes : width and height of each picture as it was given, in pixels.
    unresized_tokens : the visual tokens of each picture before it was made smaller to meet a budget; empty if none was.
    """

    input_ids: Tensor
    position_ids: Tensor
    spans: list[VisualSpan]
    pixels: dict[str, Tensor]
    images: list[Image.Image]
    image_digests: list[bytes]
    question: str = ""
    videos: list[Video] = field(default_factory=list)
    keeps: list[Keep | None] = field(default_factory=list)
    continued_text: str = ""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    unresized_tokens: list[int] = field(default_factory=list)

    @property
    def continues(self) -> bool:
        """Whether the prompt ends within a text of the assistant, which the answer continues."""
        return bool(self.continued_text)

    @property
    def visual_tokens(self) -> list[int]:
        """The visual tokens of each picture and video as the model takes it by itself, in the order of ``spans``."""
        return self.unresized_tokens or [span.layout.num_tokens for span in self.spans]

    @property
    def continued(self) -> list[int] | None:
        """The last tokens of the text that the answer continues, enough to decode what follows; None without one."""
        return self.input_ids[-16:].tolist() if self.continues else None

    @property
    def visuals(self) -> list[Image.Image | Video]:
        """The pictures and videos in the order of ``spans``."""
        return in_prompt_order(self.spans, self.images, self.videos)


def in_prompt_order(spans: Sequence[VisualSpan], of_images: Sequence[T], of_videos: Sequence[U]) -> list[T | U]:
    """Return what belongs to each picture and to each video in the order of ``spans``."""
    images, videos = iter(of_images), iter(of_videos)
    return [next(images) if span.layout.frame is None else next(videos) for span in spans]


def check_placeholders(text: str, token: str, count: int, what: str) -> None:
    """Require one placeholder in a text for each picture (or video).

    Raises
    ------
    InvalidInput
        If there are more or fewer.
    """
    if text.count(token) != count:
        raise InvalidInput(
            f"The prompt holds {text.count(token)} placeholders ({token}) for {count} {what}; "
            "the model's chat template has to write one for each, so use another checkpoint or template."
        )


def replace_placeholders(text: str, token: str, replacements: Iterable[str]) -> str:
    """Replace each occurrence of ``token`` in a text, in order; there are as many replacements."""
    first, *others = text.split(token)
    return first + "".join(part for pair in zip(replacements, others, strict=True) for part in pair)


def tokenize(
    processor: Any, text: str, images: Sequence[Image.Image], nested: Sequence[Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run a processor on one prompt.

    Parameters
    ----------
    images : the pictures of the prompt.
    nested : the same, as the processor takes them.

    Returns
    -------
    Token ids, int64 [N] on the CPU, and the tensors that the processor made of the pictures.

    Raises
    ------
    InvalidImage
        If the processor refuses the pictures.
    """
    bos = processor.tokenizer.bos_token
    try:
        inputs = processor(
            text=[text],
            images=nested or None,
            return_tensors="pt",
            add_special_tokens=bos is None or not text.startswith(bos),
        )
    except (ValueError, ZeroDivisionError) as error:
        sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
        raise InvalidImage(
            f"The model's image processor refuses the pictures ({shorten(sizes)}): {reason_of(error)}."
        ) from error
    input_ids = inputs.pop("input_ids")[0]
    inputs.pop("attention_mask", None)
    return input_ids, {name: value for name, value in inputs.items() if isinstance(value, Tensor)}


def split_positions(input_ids: Tensor, token_id: int, layouts: Sequence[VisualLayout], what: str) -> list[VisualSpan]:
    """Find the tokens of each picture (or video) in a prompt.

    Parameters
    ----------
    input_ids : int64 [N], with ``token_id`` in the place of each visual token.
    layouts : of the pictures (or videos), in the order of the prompt.
    what : "image" or "video", for the error message.

    Raises
    ------
    InvalidInput
        If the prompt has more or fewer such tokens than the layouts.
    """
    positions = (input_ids == token_id).nonzero().flatten()
    counts = [layout.num_tokens for layout in layouts]
    if sum(counts) != len(positions):
        raise InvalidInput(
            f"The processor made {len(positions)} {what} tokens but the model makes {sum(counts)}; "
            "the checkpoint's processor config does not fit its model."
        )
    pieces = torch.split(positions, counts) if counts else ()
    return [VisualSpan(piece, layout) for piece, layout in zip(pieces, layouts, strict=True)]


def tiles_in_prompt_order(
    spans: Sequence[VisualSpan], tokens_per_tile: int, pictures: Iterable[Tensor], frames: Iterable[Tensor]
) -> Tensor:
    """Join the tiles of pictures and the frames of videos for a model that takes both in one tensor.

    Parameters
    ----------
    tokens_per_tile : of a tile, and of a frame.
    pictures, frames : [3, height, width] each, of all pictures and of all videos.

    Returns
    -------
    [tiles, 3, height, width], in the order of ``spans``.
    """
    tiles, shots = iter(pictures), iter(frames)
    return torch.stack(
        [
            next(tiles if span.layout.frame is None else shots)
            for span in spans
            for _ in range(span.layout.num_tokens // tokens_per_tile)
        ]
    )


def split_rows(rows: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
    """Split rows of all visual tokens of prompts, [n, c], into those of each picture and video."""
    return list(torch.split(rows, [span.layout.num_tokens for prompt in prompts for span in prompt.spans]))
