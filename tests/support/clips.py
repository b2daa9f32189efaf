"""Create small video files: frame k is grey, of brightness 8 k."""

import io
from collections.abc import Sequence

import av
import numpy as np
from PIL import Image

PIXEL_FORMATS = {"gif": "rgb8", "ffv1": "yuv444p"}


def grey_frame(index: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.new("RGB", size, (8 * index,) * 3)


def frame_number(frame: Image.Image) -> int:
    """Return the number of a frame in its clip."""
    return round(np.asarray(frame).mean() / 8)


def clip(
    frames: int | Sequence[Image.Image] = 30,
    container: str = "mp4",
    codec: str = "libx264",
    fps: int = 10,
    keyframe_every: int = 12,
    times: Sequence[int] | None = None,
) -> bytes:
    """Return a video file of grey frames or of given ones, shown at ``times`` (in frames) if given."""
    pictures = [grey_frame(index) for index in range(frames)] if isinstance(frames, int) else list(frames)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=fps)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = PIXEL_FORMATS.get(codec, "yuv420p")
        stream.bit_rate = 2_000_000
        stream.codec_context.gop_size = keyframe_every
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
            frame.pts = times[index] if times is not None else index
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()
