"""MiniCPM-V's processor for pictures, and its frames, without the video processor, which needs torchvision."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, MiniCPMV4_6Processor, ProcessorMixin
from transformers.video_processing_utils import BaseVideoProcessor

from tops_engine.families.parts.frame_processor import RESAMPLING, normalize, resize

#: The tokens that the tokenizer names.
TOKENS = ("image", "image_start", "image_end", "slice_start", "slice_end", "image_id_start", "image_id_end")


class PictureProcessor(MiniCPMV4_6Processor):  # type: ignore[misc]  # transformers types it as Any
    """The checkpoint's processor without its video processor.

    Attributes
    ----------
    frame_settings : of the checkpoint's video processor, where it has some.
    """

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None, **_options: Any) -> None:
        # Not the constructor of MiniCPMV4_6Processor, which wants a processor of videos.
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        self.slice_mode, self.default_use_image_id = image_processor.slice_mode, image_processor.use_image_id
        for name in TOKENS:
            setattr(self, f"{name}_token", getattr(tokenizer, f"{name}_token"))
        self.image_token_id = tokenizer.image_token_id
        # Placeholders of videos are expanded before the processor reads the text.
        self.video_token = None
        self.frame_settings: dict[str, Any] = {}

    @classmethod
    def load(cls, source: str, revision: str | None) -> "PictureProcessor":
        """Load the checkpoint's tokenizer, chat template, image processor and settings of frames."""
        options = {"revision": revision, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        found, _ = ProcessorMixin.get_processor_dict(source, revision=revision)
        template = found.get("chat_template") or tokenizer.chat_template
        processor = cls(AutoImageProcessor.from_pretrained(source, **options), tokenizer, template)
        processor.frame_settings, _ = BaseVideoProcessor.get_video_processor_dict(source, revision=revision or "main")
        return processor

    def read_frame(self, frame: Image.Image) -> tuple[Tensor, tuple[int, int]]:
        """Return the pixels of a frame, float32 [1, 3, patch size, n], and its size in rows and columns of patches.

        A frame is scaled to about as many pixels as the square of ``scale_resolution`` has. It is not cut into slices:
        the makers recommend that for videos.
        """
        pictures, settings = self.image_processor, self.frame_settings

        def setting(name: str) -> Any:
            value = settings.get(name)
            return getattr(pictures, name) if value is None else value

        patch = setting("patch_size")
        size = pictures.find_best_resize(
            (frame.height, frame.width), setting("scale_resolution"), patch, pictures.downsample_mode, True
        )
        pixels = torch.from_numpy(np.array(frame.convert("RGB"))).permute(2, 0, 1).contiguous()
        pixels = resize(pixels, size, RESAMPLING[int(setting("resample"))])
        values = normalize(pixels, setting("image_mean"), setting("image_std"), setting("rescale_factor"))
        rows, columns = size[0] // patch, size[1] // patch
        patches = values.view(3, rows, patch, columns, patch).transpose(1, 2)
        return patches.reshape(1, 3, patch, -1), (rows, columns)
