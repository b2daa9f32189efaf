"""Test opening videos: which frames are taken, their times, and what is refused."""

import builtins
import itertools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import Picture
from tests.support.clips import clip, frame_number, grey_frame
from tops_engine.conversation.messages import read_conversation, video_message
from tops_engine.errors import InvalidInput, InvalidVideo, MissingDependency
from tops_engine.media.videos import MAX_FRAMES, Video, evenly, open_video

FILES = [
    ("mp4", "libx264"),
    ("mp4", "mpeg4"),
    ("matroska", "ffv1"),
    ("webm", "libvpx-vp9"),
    ("avi", "libx264"),
    ("mpegts", "libx264"),
    ("gif", "gif"),
]


def numbers(video: Video) -> list[int]:
    return [frame_number(frame) for frame in video.frames]


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises(InvalidInput) as error:
        open_video(source, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("container", "codec"), FILES)
def test_frames_are_spread_evenly_from_first_to_last_whatever_the_file(container: str, codec: str) -> None:
    video = open_video(clip(30, container, codec), num_frames=5)

    assert numbers(video) == [0, 7, 14, 21, 29]
    assert video.timestamps == pytest.approx([0.0, 0.7, 1.4, 2.1, 2.9])
    assert video.total_frames == 30
    assert video.duration == pytest.approx(3.0)
    assert video.size == (64, 48)


@pytest.mark.parametrize(("container", "codec"), FILES)
def test_a_rate_takes_the_frame_shown_at_each_tick(container: str, codec: str) -> None:
    video = open_video(clip(30, container, codec), fps=4)

    assert numbers(video) == [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27]
    assert video.fps == pytest.approx(4)


def test_a_rate_and_a_number_take_at_most_that_many() -> None:
    assert numbers(open_video(clip(30), num_frames=3, fps=4)) == [0, 12, 27]


def test_by_default_sixteen_frames_and_never_one_twice() -> None:
    data = clip(30)
    assert len(open_video(data).frames) == 16
    assert numbers(open_video(data, num_frames=100)) == list(range(30))
    assert numbers(open_video(data, fps=1000)) == list(range(30))
    assert numbers(open_video(data, num_frames=1)) == [15]


def test_frames_shown_for_different_times_are_taken_by_the_clock() -> None:
    slow_start = [0, 10, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29]
    video = open_video(clip(12, times=slow_start), fps=1)

    assert numbers(video) == [0, 1, 2]
    assert video.timestamps == pytest.approx([0, 1, 2])


def test_one_frame_is_a_video() -> None:
    video = open_video(clip(1))
    assert (len(video.frames), video.timestamps, video.total_frames) == (1, [0.0], 1)
    assert video.duration > 0


def test_a_path_reads_the_same_as_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(clip(8))
    assert numbers(open_video(tmp_path / "clip.mp4")) == numbers(open_video(str(tmp_path / "clip.mp4"))) == [*range(8)]


def test_a_phone_video_is_turned_upright() -> None:
    left_bright = Image.new("RGB", (64, 32))
    left_bright.paste((255, 255, 255), (0, 0, 32, 32))
    data = clip([left_bright] * 3)
    straight = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    # Of the file and of the track; the track's turns the picture clockwise by a quarter.
    turned = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 32 << 16, 0, 1 << 30)
    place = data.rindex(straight)
    frame = open_video(data[:place] + turned + data[place + len(turned) :]).frames[0]

    assert frame.size == (32, 64)
    assert frame.getpixel((16, 5))[0] > 200  # type: ignore[index]
    assert frame.getpixel((16, 60))[0] < 50  # type: ignore[index]


def test_a_list_of_pictures_is_a_video_of_one_frame_a_second_or_of_its_own_rate(tmp_path: Path) -> None:
    pictures = [grey_frame(index) for index in range(10)]
    pictures[3].save(tmp_path / "3.png")

    video = open_video([*pictures[:3], tmp_path / "3.png", *pictures[4:]])
    assert numbers(video) == list(range(10))
    assert (video.timestamps, video.duration) == ([float(second) for second in range(10)], 10.0)

    some = open_video(tuple(pictures), num_frames=4, fps=5)
    assert numbers(some) == [0, 3, 6, 9]
    assert some.timestamps == pytest.approx([0, 0.6, 1.2, 1.8])
    assert (some.duration, some.total_frames) == (2.0, 10)


def test_an_opened_video_is_taken_as_it_is() -> None:
    video = open_video([grey_frame(0)])
    assert open_video(video) is video


@given(total=st.integers(1, 500), count=st.integers(1, 500))
def test_even_choice_keeps_order_and_ends(total: int, count: int) -> None:
    chosen = evenly(total, count)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(total, count)
    if count > 1:
        assert (chosen[0], chosen[-1]) == (0, total - 1)
        steps = [later - earlier for earlier, later in itertools.pairwise(chosen)]
        assert not steps or max(steps) - min(steps) <= 1


def test_progress_counts_the_frames() -> None:
    calls: list[tuple[int, int]] = []
    open_video(clip(6), num_frames=3, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_ten_thousand_frames_are_bounded(picture: Picture) -> None:
    frame = picture(4, 4)
    assert "10000 frames, more than the 768" in refusal([frame] * 10_000)
    assert len(open_video([frame] * 10_000, num_frames=MAX_FRAMES).frames) == MAX_FRAMES
    assert refusal([frame], num_frames=10_000).startswith("num_frames=10000 is not allowed: take 1 to 768 frames")


@pytest.mark.parametrize("num_frames", [0, -1, True, 2.0, "8"])
def test_a_number_of_frames_that_is_none_is_refused(num_frames: Any) -> None:
    assert f"num_frames={num_frames!r} is not allowed" in refusal([grey_frame(0)], num_frames=num_frames)


@pytest.mark.parametrize("fps", [0, -1.0, float("nan"), float("inf"), "2", False])
def test_a_rate_that_is_none_is_refused(fps: Any) -> None:
    assert f"fps={fps!r} is not allowed" in refusal([grey_frame(0)], fps=fps)


def test_no_frames_are_refused() -> None:
    assert refusal([]) == "The video has no frames."


@pytest.mark.parametrize("source", [5, None, bytearray(b"ab"), {"a": 1}, grey_frame(0)])
def test_what_is_no_video_is_refused(source: Any) -> None:
    assert refusal(source).startswith("A video is a path, bytes, an open file or a list of pictures, not")


def test_frames_of_different_sizes_are_refused() -> None:
    assert "frame 1 has 8 x 9 pixels and the first one 64 x 48" in refusal([grey_frame(0), grey_frame(1, (8, 9))])


def test_a_frame_that_cannot_be_opened_is_named() -> None:
    assert "Frame 1 of the video cannot be used. There is no picture at gone.png." in refusal(
        [grey_frame(0), "gone.png"]
    )


@pytest.mark.parametrize("address", ["https://example.org/a.mp4", "rtsp://camera/1", "file:///etc/passwd"])
def test_web_addresses_are_refused(address: str) -> None:
    assert "is a web address" in refusal(address)


@pytest.mark.parametrize("name", ["gone.mp4", "concat:a.mp4|b.mp4", "pipe:0", "/dev/null/x", "."])
def test_what_is_no_file_is_refused(name: str) -> None:
    assert refusal(name) == f"There is no video at {name}."


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello" * 100,
        clip(30)[:600],
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/hostname\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile /etc/hostname\n",
    ],
    ids=["empty", "text", "cut off", "picture", "playlist", "list of files"],
)
def test_damaged_files_and_playlists_are_refused(data: bytes) -> None:
    assert refusal(data).startswith("The video is damaged, or not a video in a known format (mov, matroska, ")


def test_a_playlist_is_not_followed(tmp_path: Path) -> None:
    """Check a playlist that names a web address and one that names a file beside it."""
    (tmp_path / "clip.ts").write_bytes(clip(5, "mpegts"))
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path / 'clip.ts'}\n#EXT-X-ENDLIST\n")
    assert "damaged, or not a video" in refusal(playlist)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "sound.mkv"), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000)
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
    assert refusal(tmp_path / "sound.mkv").endswith("sound.mkv holds no video.")


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = clip(4)
    monkeypatch.setattr("tops_engine.media.videos.MAX_VIDEO_PIXELS", 3 * 64 * 48)
    assert "The video has too many pixels to decode safely (64 x 48 in each frame, frames to take: 4)" in refusal(data)
    assert len(open_video(data, num_frames=3).frames) == 3
    monkeypatch.setattr("tops_engine.media.videos.MAX_PIXELS", 1000)
    assert "frames to take: 1" in refusal(data, num_frames=1)


def test_without_pyav_files_are_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_av(name: str, *args: Any) -> Any:
        if name == "av":
            raise ImportError
        return imported(name, *args)

    data = clip(2)
    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", no_av)
    with pytest.raises(MissingDependency, match=r"pip install 'av>=14'"):
        open_video(data)
    assert len(open_video([grey_frame(0)]).frames) == 1


def test_a_conversation_holds_its_videos_in_order(picture: Picture) -> None:
    first, second = [grey_frame(1), grey_frame(2)], clip(30)
    parts = [
        {"type": "video", "video": first, "fps": 2},
        {"type": "image", "image": picture()},
        {"type": "video", "video": second, "num_frames": 3},
        {"type": "text", "text": "Compare."},
    ]
    conversation = read_conversation([{"role": "user", "content": parts}])

    assert [part["type"] for part in conversation.messages[0]["content"]] == ["video", "image", "video", "text"]
    assert all(set(part) <= {"type", "text"} for part in conversation.messages[0]["content"])
    assert [numbers(video) for video in conversation.videos] == [[1, 2], [0, 14, 29]]
    assert conversation.videos[0].timestamps == [0.0, 0.5]
    assert len(conversation.images) == 1


def test_a_question_about_a_video_has_it_first() -> None:
    conversation = read_conversation([video_message("What happens?", clip(9), num_frames=2)])

    assert [part["type"] for part in conversation.messages[0]["content"]] == ["video", "text"]
    assert numbers(conversation.videos[0]) == [0, 8]


def test_a_video_that_cannot_be_opened_is_refused_by_name() -> None:
    with pytest.raises(InvalidVideo, match=r"There is no video at gone\.mp4"):
        read_conversation([video_message("What?", "gone.mp4")])
