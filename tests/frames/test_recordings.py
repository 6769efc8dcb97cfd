"""Recordings of every kind that recorders, phones and converters write: all pictures, with times that are right."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from cameras import moving
from take_frames import drain

from gemel.errors import FeedError
from gemel.frames.frame import Frame
from gemel.frames.source import resolve
from gemel.runtime.feeds import Feed

COUNT, FPS = 30, 10
QUIET = {"x265-params": "log-level=none"}


def write(
    path: Path,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    size: tuple[int, int] = (64, 48),
    *,
    stamp: Callable[[int], int] = lambda number: number,
    kind: str | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    sound_s: float = 0.0,
) -> Path:
    """Write 30 pictures, 10 per second, and return the path.

    Args:
        path: path of the video.
        codec: name of FFmpeg's encoder.
        pixels: pixel format.
        size: width and height.
        stamp: number of a picture -> time stamp in tenths of a second.
        kind: name of FFmpeg's format, if the suffix does not say it.
        options: options of the encoder.
        container_options: options of the format.
        sound_s: seconds of silence that are written beside the pictures.
    """
    period = Fraction(1, FPS)
    with av.open(str(path), "w", format=kind, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=FPS, options={"bf": "0"} | (options or {}))
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = period
        sound = container.add_stream("aac", rate=8000, layout="mono") if sound_s else None
        for number, image in enumerate(moving(COUNT, (size[0] // 8 * 8 + 8, size[1] // 8 * 8 + 8))):
            cut = np.ascontiguousarray(image[: size[1], : size[0]])
            frame = av.VideoFrame.from_ndarray(cut, format="bgr24")
            frame.pts, frame.time_base = stamp(number), period
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            for number in range(int(sound_s * 8000 / 1024)):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                silence.sample_rate, silence.pts = 8000, number * 1024
                container.mux(sound.encode(silence))
            container.mux(sound.encode(None))
    return path


def play(path: Path, *, live: bool = False) -> tuple[list[Frame], Feed]:
    """Return all frames of a recording, and its feed, which has ended."""
    feed = Feed("yard", resolve("yard", str(path)))
    return drain(feed, live=live), feed


def times(frames: list[Frame]) -> list[float]:
    return [frame.time for frame in frames]


EVEN = pytest.approx([number / FPS for number in range(COUNT)], abs=2e-3)


class TestTimes:
    def test_a_rate_that_changes(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.mp4", stamp=lambda i: i if i < 20 else 20 + (i - 20) * 5)
        frames, feed = play(path)
        assert times(frames) == pytest.approx([i / 10 if i < 20 else 2 + (i - 20) / 2 for i in range(COUNT)], abs=2e-3)
        assert feed.error is None

    @pytest.mark.parametrize("live", [False, True])
    def test_a_recorder_that_joined_two_hours(self, live: bool, tmp_path: Path) -> None:
        frames, feed = play(write(tmp_path / "a.mkv", stamp=lambda i: i + (36000 if i >= 15 else 0)), live=live)
        assert feed.delivered == COUNT and feed.error is None
        assert frames[-1].time == pytest.approx(2.9, abs=2e-3)

    # The time stamps of MPEG-TS begin anew after 26.5 hours, in these files after 3 of the pictures.
    @pytest.mark.parametrize(("name", "begin"), [("a.ts", 1000), ("a.mp4", 1000), ("a.mkv", 1000), ("a.ts", 954434)])
    def test_a_recording_that_does_not_begin_at_0(self, name: str, begin: int, tmp_path: Path) -> None:
        frames, feed = play(write(tmp_path / name, stamp=lambda i: i + begin))
        assert times(frames) == EVEN
        assert feed.error is None

    @pytest.mark.parametrize(("codec", "kind"), [("libx264", "h264"), ("libx265", "hevc")])
    def test_a_recording_without_time_stamps(self, codec: str, kind: str, tmp_path: Path) -> None:
        frames, feed = play(write(tmp_path / "a", codec, kind=kind, options=QUIET if kind == "hevc" else None))
        assert times(frames) == EVEN
        assert feed.error is None

    def test_recordings_that_were_joined_without_an_editor(self, tmp_path: Path) -> None:
        """After ``cat a.ts b.ts a.ts``, stamps and the counters of the transport begin anew, and the size changes.

        Where the counters jump, a picture counts as corrupt, and the one after it is withheld.
        """
        one = write(tmp_path / "a.ts").read_bytes()
        other = write(tmp_path / "b.ts", size=(98, 62)).read_bytes()
        (tmp_path / "joined.ts").write_bytes(one + other + one)
        frames, feed = play(tmp_path / "joined.ts")
        assert (len(frames), feed.counts.corrupt, feed.counts.withheld) == (3 * COUNT - 4, 2, 2)
        assert feed.error is None
        sizes = [frame.image.shape[0] for frame in frames]
        assert sizes == [48] * (COUNT - 2) + [62] * (COUNT - 2) + [48] * COUNT
        assert np.diff(times(frames)) == pytest.approx(0.1, abs=2e-3)


@pytest.mark.parametrize(
    ("codec", "pixels", "size", "suffix"),
    [
        ("libx264", "yuv444p", (65, 49), ".mkv"),
        ("libx264", "yuv420p10le", (64, 48), ".mp4"),
        ("ffv1", "gray16le", (65, 49), ".mkv"),
        ("ffv1", "yuva420p", (64, 48), ".mkv"),
        ("ffv1", "yuv420p", (2, 2), ".mkv"),
        ("ffv1", "bgr0", (1, 1), ".mkv"),
        ("mjpeg", "yuvj420p", (64, 48), ".avi"),
        ("gif", "rgb8", (64, 48), ".gif"),
    ],
    ids=["4:4:4 of odd size", "10 bits", "grey, 16 bits", "transparent", "2x2", "1x1", "MJPEG", "GIF"],
)
def test_pixels_of_every_kind(codec: str, pixels: str, size: tuple[int, int], suffix: str, tmp_path: Path) -> None:
    frames, feed = play(write(tmp_path / f"a{suffix}", codec, pixels, size))
    assert times(frames) == EVEN
    assert {frame.image.shape for frame in frames} == {(size[1], size[0], 3)}
    assert {frame.image.dtype for frame in frames} == {np.dtype(np.uint8)}
    assert feed.error is None


def test_an_interlaced_recording(tmp_path: Path) -> None:
    frames, feed = play(write(tmp_path / "a.mp4", options={"flags": "+ildct+ilme", "x264-params": "tff=1"}))
    assert times(frames) == EVEN
    assert feed.error is None


class TestFiles:
    def test_a_name_of_many_alphabets(self, tmp_path: Path) -> None:
        frames, _ = play(write(tmp_path / "Türkamera 门 №1 é.mp4"))
        assert len(frames) == COUNT

    def test_in_fragments(self, tmp_path: Path) -> None:
        frames, feed = play(write(tmp_path / "a.mp4", container_options={"movflags": "frag_keyframe+empty_moov"}))
        assert (len(frames), feed.error) == (COUNT, None)

    @pytest.mark.parametrize("sound_s", [1.0, 9.0])
    @pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
    def test_sound_that_is_shorter_or_longer(self, suffix: str, sound_s: float, tmp_path: Path) -> None:
        frames, feed = play(write(tmp_path / f"a{suffix}", sound_s=sound_s))
        assert (len(frames), feed.error) == (COUNT, None)

    def test_a_cut_in_the_list_of_edits(self, tmp_path: Path) -> None:
        """An MP4 that was cut between key frames holds pictures that are not to be shown."""
        options = {"avoid_negative_ts": "disabled"}
        path = write(tmp_path / "a.mp4", stamp=lambda i: i - 10, container_options=options)
        frames, feed = play(path)
        assert times(frames) == pytest.approx([number / FPS for number in range(COUNT - 10)], abs=2e-3)
        assert feed.error is None

    @pytest.mark.parametrize("what", ["without its index", "random bytes"])
    def test_what_is_no_video_is_a_line(self, what: str, tmp_path: Path) -> None:
        path = write(tmp_path / "a.mp4")
        path.write_bytes(path.read_bytes()[:3000] if what == "without its index" else os.urandom(100_000))
        with pytest.raises(FeedError) as caught:
            resolve("yard", str(path)).probe()
        assert str(caught.value).startswith(f"feed 'yard': cannot open {path}: ") and "\n" not in str(caught.value)
        frames, feed = play(path)
        assert (frames, feed.state) == ([], "failed")

    def test_a_cut_that_no_header_tells(self, tmp_path: Path) -> None:
        """MPEG-TS states no length: its pictures are read, and the end is an end."""
        path = write(tmp_path / "a.ts")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        frames, feed = play(path)
        assert 5 < len(frames) < COUNT
        assert (feed.state, feed.error) == ("ended", None)


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", ".mkv"), ("libx265", ".mkv"), ("libx265", ".ts")])
def test_a_recording_without_its_key_frames(codec: str, suffix: str, tmp_path: Path) -> None:
    options = {"g": "10"} | (QUIET | {"x265-params": "log-level=none:keyint=10"} if codec == "libx265" else {})
    whole, path = write(tmp_path / f"whole{suffix}", codec, options=options), tmp_path / f"a{suffix}"
    with av.open(str(whole)) as container, av.open(str(path), "w") as output:
        stream = container.streams.video[0]
        target = output.add_stream_from_template(stream)
        for packet in container.demux(stream):
            if packet.size and not packet.is_keyframe:
                packet.stream = target
                output.mux(packet)
    frames, feed = play(path)
    assert (frames, feed.state) == ([], "failed")
    assert feed.error is not None and "can be decoded: there is no key frame" in feed.error


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_recording_that_is_to_be_turned(turn: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4")
    upright, _ = play(path)
    data, one = bytearray(path.read_bytes()), 1 << 16
    cosine, sine = {90: (0, one), 180: (-one, 0), 270: (0, -one)}[turn]
    place = data.find(b"tkhd") + 4 + 4 + 20 + 8 + 8
    rows = (cosine, sine, 0, -sine, cosine, 0, 0, 0, 1 << 30)
    data[place : place + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in rows)
    path.write_bytes(data)
    frames, _ = play(path)
    # The matrix turns clockwise, and numpy's turns are counterclockwise.
    expected = np.rot90(upright[3].image, -turn // 90)
    assert np.abs(frames[3].image.astype(int) - expected).mean() < 2
