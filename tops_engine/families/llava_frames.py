"""What the LLaVA families that take videos share: frames go through the tower with the tiles, and are pooled."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tops_engine.families.llava import seen_area
from tops_engine.families.llava_next import LlavaNext
from tops_engine.families.parts.frame_processor import FrameProcessor
from tops_engine.families.parts.vision_signals import Call
from tops_engine.families.prompt import Prompt
from tops_engine.flops import VisionShape
from tops_engine.media.layout import VisualLayout, grid_boxes
from tops_engine.media.videos import Video


class LlavaFrames(LlavaNext, register=False):
    """Pictures as in LLaVA-NeXT; each frame of a video is seen whole and pooled to fewer tokens.

    What is known of patches (attention, keys, features) is pooled like the frames themselves.
    """

    takes_videos = True

    #: What the class of the checkpoint's video processor fills in where its config is silent.
    frame_defaults: ClassVar[dict[str, Any]] = {}

    @classmethod
    def load_processor(cls, source: str, revision: str | None) -> Any:
        processor = super().load_processor(source, revision)
        processor.frame_processor = FrameProcessor.from_pretrained(source, revision, cls.frame_defaults)
        return processor

    @property
    @abstractmethod
    def frame_grid(self) -> tuple[int, int]:
        """Rows and columns of a frame's tokens."""

    @abstractmethod
    def pool(self, values: Tensor) -> Tensor:
        """Values of a frame's patches for its tokens: [frames, patches, c] -> [frames, tokens, c]."""

    def pack_frames(self, values: Tensor, newline: Tensor) -> Tensor:
        """Put pooled values in the order of a video's tokens: [frames, tokens, c] and newline [c] -> [n, c]."""
        return values.flatten(0, 1)

    @abstractmethod
    def project_frames(self, rows: Tensor) -> Tensor:
        """Pool and project features of frames: [frames, patches, c] -> [frames, tokens, d]."""

    def read_videos(self, videos: Sequence[Video]) -> dict[str, Tensor]:
        frames = [self.processor.frame_processor(video.frames) for video in videos]
        most = max(len(video) for video in frames)
        # Videos of different lengths share a tensor; frames that are only there to fill it are never looked at.
        return {"pixel_values_videos": torch.stack([F.pad(v, (0,) * 7 + (most - len(v),)) for v in frames])}

    def video_layouts(self, videos: Sequence[Video], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        layouts = []
        for video in videos:
            num_frames = len(video.frames)
            boxes = grid_boxes(*self.frame_grid, seen_area(video.size, self.processor.frame_processor))
            numbers = torch.arange(1.0, num_frames + 1)[:, None, None].expand(-1, len(boxes), 1)
            packed = self.pack_frames(torch.cat([boxes.expand(num_frames, -1, -1), numbers], dim=-1), torch.zeros(5))
            view = torch.zeros(len(packed), dtype=torch.int64)
            layouts.append(VisualLayout(packed[:, :4], view, (self.frame_grid,), packed[:, 4].long() - 1))
        return layouts

    def project(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        newline = self.model.model.image_newline
        visuals = list(self._visuals(prompts))
        rows = self._tower(torch.cat([pixels for pixels, _ in visuals]))
        return [
            self.pack_frames(self.project_frames(piece), newline)
            if size is None
            else self._pack(self.projector(piece), size, newline)
            for piece, size in self._split(rows, visuals)
        ]

    def arrange(self, values: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
        newline = values.new_zeros(values.shape[-1])
        return [
            self.pack_frames(_in_kind(self.pool, piece), newline) if size is None else self._pack(piece, size, newline)
            for piece, size in self._split(values, list(self._visuals(prompts)))
        ]

    def signals(self, attention_taps: Sequence[Call], signal_taps: Sequence[Call]) -> dict[str, Callable[[], Tensor]]:
        layers = signal_taps[2:]

        def tiles() -> Tensor:
            num_tiles, num_rows = layers[0].output[:, int(self.has_cls) :].shape[:2]
            return torch.arange(1, num_tiles + 1, device=layers[0].output.device)[:, None].expand(-1, num_rows)

        own = {"encoder_features": lambda: self._features(layers), "tiles": tiles}
        return super().signals(attention_taps, signal_taps) | own

    def vision_flops(self, prompt: Prompt) -> int:
        num_frames = sum(len(video.frames) for video in prompt.videos)
        return self.vision_shape.flops(self.num_tiles(prompt)) + self.frame_shape.flops(num_frames)

    @property
    def frame_shape(self) -> VisionShape:
        """What a frame costs."""
        return self.vision_shape

    def _visuals(self, prompts: Sequence[Prompt]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """What the tower sees of each picture and video, [t, 3, height, width], and the size of the picture."""
        for prompt in prompts:
            pixels = prompt.pixels
            tiles = iter(zip(pixels.get("pixel_values", ()), self.tile_counts(prompt), strict=True))
            sizes, videos = iter(pixels.get("image_sizes", ())), iter(pixels.get("pixel_values_videos", ()))
            for visual in prompt.visuals:
                if isinstance(visual, Video):
                    yield next(videos)[: len(visual.frames)], None
                else:
                    picture, count = next(tiles)
                    yield picture[:count], next(sizes)

    def _split(
        self, values: Tensor, visuals: Sequence[tuple[Tensor, Tensor | None]]
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Values of everything the tower saw, by picture and video, with the size of the picture."""
        pieces = torch.split(values, [len(pixels) for pixels, _ in visuals])
        return zip(pieces, (size for _, size in visuals), strict=True)


def _in_kind(pool: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Pool values; whole numbers, which are the same all over a frame, stay whole."""
    if values.is_floating_point():
        return pool(values)
    return pool(values.double()).round().to(values.dtype)
