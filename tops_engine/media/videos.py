"""Opening videos from anywhere a user has them: frames taken evenly over the whole, or a clear error.

Files are read through PyAV, an optional package. Only containers of video are opened, from a stream, so that a file
cannot send the reader to other files or web addresses (playlists do).
"""

import io
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image

from tops_engine.errors import InvalidImage, InvalidInput, InvalidVideo, MissingDependency, quote, reason_of
from tops_engine.media.bounds import MAX_PIXELS
from tops_engine.media.images import ImageSource, open_image
from tops_engine.media.sources import FileSource, file_of, is_file_source

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

#: Frames taken of a file when nothing else is said, and the most that are ever taken.
DEFAULT_FRAMES, MAX_FRAMES = 16, 768

#: All frames taken together: 1.6 GB decoded, 256 frames of 1920 x 1080.
MAX_VIDEO_PIXELS = 2**29

#: Nine hours at 30 frames a second.
MAX_SOURCE_FRAMES = 1_000_000

# Names of FFmpeg's readers. Its playlists (hls, dash, concat) are not among them.
FORMATS = ("mov", "matroska", "avi", "gif", "apng", "mpegts", "mpeg", "flv", "ogg", "asf")

# Those that note where their keyframes lie: one can jump to them and lands exactly there.
INDEXED = ("mov", "matroska")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Video:
    """Frames of a video, in order.

    Attributes
    ----------
    frames : RGB, all of one size.
    timestamps : when each is shown, in seconds from the start.
    total_frames : how many frames the video has; ``frames`` are some of them, or all.
    duration : of the whole video, in seconds.
    """

    frames: list[Image.Image]
    timestamps: list[float]
    total_frames: int
    duration: float

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.frames[0].size

    @property
    def fps(self) -> float:
        """Frames a second of ``frames``, on average."""
        return len(self.frames) / self.duration


VideoSource = FileSource | Sequence[ImageSource] | Video


def open_video(
    source: VideoSource,
    num_frames: int | None = None,
    fps: float | None = None,
    progress: Progress | None = None,
) -> Video:
    """Open a video from a path, the bytes of a file, an open file, or its frames as pictures.

    Parameters
    ----------
    source : what to open; a :class:`Video` is returned as it is.
    num_frames : the most frames to take, spread evenly from the first to the last. By default 16 of a file, all of a
        list, and 768 where ``fps`` is given.
    fps : how many frames a second to take of a file; of a list of pictures, at which rate they were taken (1 if unset).
    progress : called with the number of frames read so far and of all that will be.

    Raises
    ------
    InvalidVideo
        Missing or unreadable file, no frames, frames of different sizes, or more pixels than can be held safely.
    InvalidInput
        ``num_frames`` not in 1 to 768, ``fps`` not above 0.
    MissingDependency
        A file, and PyAV is not installed.
    """
    _check_options(num_frames, fps)
    if isinstance(source, Video):
        return source
    if isinstance(source, list | tuple):
        return _from_pictures(source, num_frames, fps or 1.0)
    if not is_file_source(source):
        raise InvalidVideo(
            f"A video is a path, bytes, an open file or a list of pictures, not {type(source).__name__}."
        )
    assert not isinstance(source, Sequence) or isinstance(source, str | bytes)
    name, file = file_of(source, "video")
    try:
        with io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as stream:
            return _from_file(name, stream, num_frames, fps, progress)
    except PermissionError as error:
        raise InvalidVideo(f"{name} cannot be read: {error.strerror}.") from error


def _check_options(num_frames: int | None, fps: float | None) -> None:
    if num_frames is not None and (
        isinstance(num_frames, bool) or not isinstance(num_frames, int) or not 1 <= num_frames <= MAX_FRAMES
    ):
        raise InvalidInput(f"num_frames={quote(num_frames)} is not allowed: take 1 to {MAX_FRAMES} frames of a video.")
    if fps is not None and (
        isinstance(fps, bool) or not isinstance(fps, int | float) or not math.isfinite(fps) or fps <= 0
    ):
        raise InvalidInput(f"fps={quote(fps)} is not allowed: give a number of frames a second above 0.")


def _from_pictures(pictures: Sequence[ImageSource], num_frames: int | None, fps: float) -> Video:
    if not pictures:
        raise InvalidVideo("The video has no frames.")
    if num_frames is None and len(pictures) > MAX_FRAMES:
        raise InvalidVideo(
            f"The video has {len(pictures)} frames, more than the {MAX_FRAMES} that can be taken; "
            "say with num_frames how many to take."
        )
    indices = evenly(len(pictures), num_frames or len(pictures))
    frames: list[Image.Image] = []
    for index in indices:
        try:
            frame = open_image(pictures[index])
        except InvalidImage as error:
            raise InvalidVideo(f"Frame {index} of the video cannot be used. {error}") from error
        if frames and frame.size != frames[0].size:
            raise InvalidVideo(
                f"The frames of a video have one size; frame {index} has {frame.width} x {frame.height} pixels and "
                f"the first one {frames[0].width} x {frames[0].height}."
            )
        _check_pixels("The video", frame.width, frame.height, len(indices))
        frames.append(frame)
    return Video(frames, [index / fps for index in indices], len(pictures), len(pictures) / fps)


def evenly(total: int, count: int) -> list[int]:
    """``count`` of ``total`` frames from the first to the last (the middle one if one), or all if there are fewer."""
    if count >= total:
        return list(range(total))
    if count == 1:
        return [total // 2]
    return [step * (total - 1) // (count - 1) for step in range(count)]


def _check_pixels(name: str, width: int, height: int, num_frames: int) -> None:
    if width < 1 or height < 1:
        raise InvalidVideo(f"{name} has no pixels ({width} x {height}).")
    if width * height > MAX_PIXELS or width * height * num_frames > MAX_VIDEO_PIXELS:
        raise InvalidVideo(
            f"{name} has too many pixels to decode safely ({width} x {height} in each frame, frames to take: "
            f"{num_frames}); take fewer frames or scale it down ({MAX_VIDEO_PIXELS} pixels in all)."
        )


@dataclass(frozen=True)
class _Index:
    """The frame times of a file, read without decoding: in units of ``time_base``, ascending, one for each frame.

    ``keyframes``, a part of ``times``: where decoding can begin; empty if the file cannot seek to them. ``in_order``:
    the k-th decoded frame is shown at the k-th time, whatever time the frame itself states.
    """

    times: list[int]
    keyframes: list[int]
    end: int
    time_base: float
    in_order: bool

    def seconds(self, time: int) -> float:
        return (time - self.times[0]) * self.time_base

    @property
    def duration(self) -> float:
        return self.seconds(self.end)

    def choose(self, num_frames: int | None, fps: float | None) -> list[int]:
        """Return the frames to take."""
        if fps is None:
            return evenly(len(self.times), num_frames or DEFAULT_FRAMES)
        if self.duration * fps >= len(self.times):
            chosen = list(range(len(self.times)))
        else:
            ticks = (self.times[0] + step / fps / self.time_base for step in range(math.ceil(self.duration * fps)))
            chosen = sorted({bisect_right(self.times, tick + 1e-6) - 1 for tick in ticks})
        return [chosen[place] for place in evenly(len(chosen), num_frames or MAX_FRAMES)]


def _from_file(
    name: str, stream: BinaryIO, num_frames: int | None, fps: float | None, progress: Progress | None
) -> Video:
    with _opened(name, stream) as container:
        index = _read_index(name, container)
        announced = container.streams.video[0].codec_context
        width, height = announced.width, announced.height
    chosen = index.choose(num_frames, fps)
    if width and height:  # some formats tell the size in the frames alone
        _check_pixels(name, width, height, len(chosen))
    frames: list[Image.Image] = []
    timestamps: list[float] = []
    with _opened(name, stream) as container:
        for time, frame in _decode(container, index, [index.times[place] for place in chosen]):
            _check_pixels(name, frame.width, frame.height, len(chosen))
            picture = _upright(frame)
            same_size = not frames or picture.size == frames[0].size
            frames.append(picture if same_size else picture.resize(frames[0].size))
            timestamps.append(index.seconds(time))
            if progress is not None:
                progress(len(frames), len(chosen))
    if not frames:
        raise InvalidVideo(f"{name} has no frames that can be decoded.")
    return Video(frames, timestamps, len(index.times), index.duration)


@contextmanager
def _opened(name: str, stream: BinaryIO) -> Iterator["InputContainer"]:
    try:
        import av
    except ImportError:
        raise MissingDependency(
            "A video file needs PyAV: pip install 'av>=14'; or give its frames as a list of pictures."
        ) from None
    stream.seek(0)
    options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none"}
    try:
        with av.open(stream, "r", options=options, metadata_errors="ignore") as container:
            yield container
    except MemoryError as error:
        raise InvalidVideo(f"{name} does not fit in memory when decoded; take fewer frames.") from error
    except (av.FFmpegError, ValueError, OverflowError) as error:
        if isinstance(error, InvalidInput):
            raise
        known, why = ", ".join(FORMATS[:5]), reason_of(getattr(error, "strerror", None) or error)
        raise InvalidVideo(f"{name} is damaged, or not a video in a known format ({known} ...): {why}.") from error


def _video_stream(container: "InputContainer") -> "VideoStream":
    video = container.streams.video[0]
    # The decoder holds every frame against this before it makes room for it.
    video.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    video.thread_type = "AUTO"
    return video


def _read_index(name: str, container: "InputContainer") -> _Index:
    if not container.streams.video:
        raise InvalidVideo(f"{name} holds no video.")
    video = container.streams.video[0]
    times, keyframes, gap, missing = [], [], 0, False
    for packet in container.demux(video):
        if packet.size == 0 or packet.is_discard:
            continue
        time = packet.pts if packet.pts is not None else packet.dts
        if time is None:
            raise InvalidVideo(f"{name} does not say when its frames are shown; write it to an mp4 or webm file.")
        times.append(time)
        missing |= packet.pts is None
        if packet.is_keyframe:
            keyframes.append(time)
        gap = packet.duration or gap
        if len(times) > MAX_SOURCE_FRAMES:
            raise InvalidVideo(f"{name} has more than {MAX_SOURCE_FRAMES} frames; cut it.")
    if not times:
        raise InvalidVideo(f"{name} has no frames.")
    # Jumping needs to know where one has landed. Without jumps, frames that are stored in the order of their times also
    # come in that order; AVI files give a frame that refers to a later one the time of another.
    indexed = not missing and container.format.name.split(",")[0] in INDEXED
    in_order = not indexed and times == sorted(times)
    times.sort()
    gap = gap or (times[-1] - times[0]) // max(1, len(times) - 1) or 1
    time_base = float(video.time_base) if video.time_base else 1.0
    return _Index(times, sorted(keyframes) if indexed else [], times[-1] + gap, time_base, in_order)


def _decode(container: "InputContainer", index: _Index, targets: Sequence[int]) -> Iterator[tuple[int, "VideoFrame"]]:
    """Return the frames at these times; decode from the keyframe before each, unless decoding is past that."""
    video = _video_stream(container)
    position = index.times[0]
    frames: Iterator[VideoFrame] = container.decode(video)
    counted = iter(index.times)
    for target in targets:
        place = bisect_right(index.keyframes, target)
        if place and index.keyframes[place - 1] > position:
            container.seek(index.keyframes[place - 1], stream=video)
            frames = container.decode(video)
        for frame in frames:
            position = next(counted, index.end) if index.in_order or frame.pts is None else frame.pts
            if position >= target:
                yield position, frame
                break


def _upright(frame: "VideoFrame") -> Image.Image:
    picture: Image.Image = frame.to_image()  # type: ignore[no-untyped-call]
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture
