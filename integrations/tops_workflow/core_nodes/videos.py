"""Loading, making and saving videos. A VIDEO has ``get_components()``, as in ComfyUI."""

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tops_engine.errors import InvalidVideo, MissingDependency, shorten
from tops_engine.media.videos import MAX_FRAMES, open_video
from tops_workflow.core_nodes.files import (
    annotated_path,
    fingerprint,
    input_videos,
    next_file,
    shown_file,
    validate_file,
)
from tops_workflow.core_nodes.images import to_picture, to_tensor

#: The most bytes of a video's frames as IMAGE. Of a longer video, frames are taken evenly over its whole length.
MOST_BYTES = 2**31


@dataclass(frozen=True)
class VideoComponents:
    """What a video consists of: images float32 [B, H, W, 3] in 0..1, frames a second, and no audio."""

    images: Tensor
    frame_rate: Fraction
    audio: None = None


class VideoInput(Protocol):
    """What travels on a VIDEO link."""

    def get_components(self) -> VideoComponents: ...


@dataclass(frozen=True)
class VideoFile:
    """A video file, which is read when its frames are asked for."""

    path: Path

    def get_components(self) -> VideoComponents:
        width, height = open_video(self.path, 1).size
        most = max(1, min(MAX_FRAMES, MOST_BYTES // (width * height * 12)))
        video = open_video(self.path, most)
        images = torch.stack([to_tensor(frame) for frame in video.frames])
        return VideoComponents(images, Fraction(video.fps).limit_denominator(1001))


@dataclass(frozen=True)
class VideoFrames:
    """A video made of pictures."""

    components: VideoComponents

    def get_components(self) -> VideoComponents:
        return self.components


class LoadVideo:
    """Core id LoadVideo."""

    CATEGORY = "image/video"
    ESSENTIALS_CATEGORY = "Basics"
    DESCRIPTION = "Loads a video file of the input folder."
    SEARCH_ALIASES = ["import video", "open video"]
    RETURN_TYPES = ("VIDEO",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"file": (input_videos(), {"video_upload": True})}}

    @classmethod
    def VALIDATE_INPUTS(cls, file: str | None) -> bool | str:
        return True if file is None else validate_file(file, "video")

    @classmethod
    def IS_CHANGED(cls, file: str) -> str:
        return fingerprint(file)

    def execute(self, file: str) -> tuple[VideoInput]:
        path = annotated_path(file)
        if not path.is_file():
            raise InvalidVideo(f"There is no video {shorten(file)}.")
        return (VideoFile(path),)


class CreateVideo:
    """Core id CreateVideo, without its sound."""

    CATEGORY = "image/video"
    DESCRIPTION = "Makes a video of pictures."
    SEARCH_ALIASES = ["images to video"]
    RETURN_TYPES = ("VIDEO",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        rate = {"default": 30.0, "min": 1.0, "max": 120.0, "step": 1.0}
        return {"required": {"images": ("IMAGE", {"tooltip": "The pictures."}), "fps": ("FLOAT", rate)}}

    def execute(self, images: Tensor, fps: float) -> tuple[VideoInput]:
        return (VideoFrames(VideoComponents(images, Fraction(fps).limit_denominator(1001))),)


class GetVideoComponents:
    """Core id GetVideoComponents. Studio reads no sound: the audio is empty."""

    CATEGORY = "image/video"
    DESCRIPTION = "Takes a video apart: frames and frames a second."
    SEARCH_ALIASES = ["extract frames", "video to images"]
    RETURN_TYPES = ("IMAGE", "AUDIO", "FLOAT")
    RETURN_NAMES = ("images", "audio", "fps")
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"video": ("VIDEO", {"tooltip": "The video."})}}

    def execute(self, video: VideoInput) -> tuple[Tensor, None, float]:
        parts = video.get_components()
        return parts.images, None, float(parts.frame_rate)


class SaveVideo:
    """Core id SaveVideo: MP4 with H.264, without sound."""

    CATEGORY = "image/video"
    DESCRIPTION = "Saves a video in the output folder, with the workflow inside."
    SEARCH_ALIASES = ["export video"]
    RETURN_TYPES = ("VIDEO",)
    RETURN_NAMES = ("video",)
    FUNCTION = "execute"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        prefix = {"default": "video/ComfyUI", "tooltip": "How the files' names begin; it may hold a subfolder."}
        return {
            "required": {
                "video": ("VIDEO", {"tooltip": "The video."}),
                "filename_prefix": ("STRING", prefix),
                "format": (["auto", "mp4"], {"default": "auto"}),
                "codec": (["auto", "h264"], {"default": "auto"}),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def execute(
        self,
        video: VideoInput,
        filename_prefix: str,
        format: str = "auto",
        codec: str = "auto",
        prompt: dict[str, Any] | None = None,
        extra_pnginfo: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        place = next_file("output", filename_prefix, "_.mp4")
        path = place.path(place.number)
        metadata = {
            key: json.dumps(value) for key, value in ({"prompt": prompt} | (extra_pnginfo or {})).items() if value
        }
        _write_mp4(path, video.get_components(), metadata)
        return {"ui": {"images": [shown_file(path, "output")], "animated": [True]}, "result": (video,)}


def _write_mp4(path: Path, parts: VideoComponents, metadata: dict[str, str]) -> None:
    try:
        import av
    except ImportError:
        raise MissingDependency("Saving a video needs PyAV: pip install 'tops-engine[video]'.") from None
    # The pixel format halves both sides of the colours, so that they have to be even.
    height, width = (side - side % 2 for side in parts.images.shape[1:3])
    if not height or not width:
        raise InvalidVideo("The pictures are too small for a video; they need at least 2 x 2 pixels.")
    with av.open(str(path), "w", options={"movflags": "use_metadata_tags"}) as container:
        container.metadata.update(metadata)
        stream = container.add_stream("libx264", rate=parts.frame_rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in parts.images:
            frame = av.VideoFrame.from_ndarray(np.asarray(to_picture(image[:height, :width, :3])), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
