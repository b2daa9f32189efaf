"""Create random visual tokens of one picture, to test methods without a model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tops_engine.media.layout import VisualLayout, grid_boxes
from tops_engine.methods import ClipEmbeddings, VisualTokens

VISION_SIZE, TEXT_SIZE, KEY_SIZE = 6, 5, 4


def random_tokens(tile_sizes: Sequence[int], newlines: int = 0, seed: int = 0, has_cls: bool = True) -> VisualTokens:
    """Return tokens of tiles, mixed with each other and with newline tokens as in a stitched map."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    numbers = [tile for tile, size in enumerate(tile_sizes, start=1) for _ in range(size)] + [0] * newlines
    tiles = torch.tensor(numbers)[torch.randperm(len(numbers), generator=generator)]
    n, is_patch = len(tiles), (tiles > 0).float()
    vision, projector = rand(n, VISION_SIZE) * is_patch[:, None], rand(VISION_SIZE, TEXT_SIZE)
    attention, last_attention = rand(n).exp() * is_patch, rand(n).exp() * is_patch / n
    keys, last_keys, cls = rand(n, KEY_SIZE), rand(n, 2 * KEY_SIZE), rand(len(tile_sizes) + 1, VISION_SIZE)
    words, into_clip = rand(3, 7), rand(VISION_SIZE, 7)
    embeddings = ClipEmbeddings(rand(n, 7), rand(7), lambda: words, lambda values: values @ into_clip)
    question = rand(3, TEXT_SIZE)
    products = rand(n, 4)
    received, middle, shallow = (rand(n).exp() * is_patch / n for _ in range(3))
    return VisualTokens(
        vision @ projector + rand(TEXT_SIZE) * (1 - is_patch[:, None]),
        VisualLayout(grid_boxes(1, n), torch.zeros(n).long(), ((1, n),)),
        encoder_features=lambda: vision,
        vision_attention=lambda: attention,
        vision_keys=lambda: keys,
        received_attention=lambda: received,
        middle_attention=lambda: middle,
        shallow_attention=lambda: shallow,
        last_layer_attention=lambda: last_attention,
        last_layer_keys=lambda: last_keys,
        cls_features=(lambda: cls[tiles]) if has_cls else None,
        tiles=lambda: tiles,
        project=lambda features: features @ projector,
        question_embeddings=lambda: question,
        question_products=lambda: products,
        clip_embeddings=lambda model: embeddings,
    )


def of_tile(image: VisualTokens, tile: int) -> list[int]:
    """Return the indices of a tile's tokens, ascending."""
    return [index for index, number in enumerate(image.tiles().tolist()) if number == tile]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))


def random_video(
    num_frames: int, size: int, newlines: int = 0, seed: int = 0, changing: float = 0.5, width: int = TEXT_SIZE
) -> VisualTokens:
    """Return tokens of a video of ``size`` tokens a frame, of which a part changes from frame to frame.

    ``newlines``: after each frame.
    """
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(size, width, generator=generator).expand(num_frames, -1, -1)
    noise = torch.randn(num_frames, size, width, generator=generator)
    frames = frames + noise * torch.where(torch.rand(size, 1, generator=generator) < changing, 1.0, 0.05)
    features = torch.cat([frames, torch.randn(num_frames, newlines, width, generator=generator)], dim=1).flatten(0, 1)
    boxes = torch.cat([grid_boxes(1, size), torch.zeros(newlines, 4)]).repeat(num_frames, 1)
    frame = torch.arange(num_frames).repeat_interleave(size + newlines)
    frame[(boxes == 0).all(dim=1)] = -1
    attention = torch.rand(len(features), generator=generator)
    return VisualTokens(
        features,
        VisualLayout(boxes, torch.zeros_like(frame), ((1, size),), frame),
        encoder_features=lambda: features,
        vision_attention=lambda: attention,
    )


def frames_of(video: VisualTokens) -> list[list[int]]:
    """Return the tokens of each frame of a video, ascending."""
    assert video.layout.frame is not None
    numbers = video.layout.frame.tolist()
    return [[token for token, own in enumerate(numbers) if own == frame] for frame in range(max(numbers) + 1)]
