"""Videos with damaged, lost and missing pictures: what is delivered is whole, and the rest is counted."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from cameras import moving

from gemel.errors import FeedError
from gemel.frames import stream_decoder
from gemel.frames.frame import Image
from gemel.frames.settings import ReadSettings
from gemel.frames.stream_decoder import StreamDecoder
from gemel.frames.video import VideoReader

COUNT, GOP = 60, 10
CODECS = {
    "h264": ("libx264", {"bf": "0"}),
    "h264-b": ("libx264", {"bf": "3"}),
    "h264-open": ("libx264", {"bf": "3", "x264-params": f"open-gop=1:keyint={GOP}"}),
    "h265": ("libx265", {"x265-params": f"log-level=none:bframes=0:keyint={GOP}"}),
    "mpeg4": ("mpeg4", {}),
}


def encode(kind: str) -> bytes:
    codec, options = CODECS[kind]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 176, 144, "yuv420p", GOP
        for image in moving(COUNT):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def change(video: bytes, edit: Callable[[int, bytes], bytes | None]) -> bytes:
    """Return a video whose packets are edited: ``edit`` gets number and bytes; it returns bytes, or None to drop it."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(video)) as container, av.open(buffer, "w", format="matroska") as output:
        stream = container.streams.video[0]
        target = output.add_stream_from_template(stream)
        for number, packet in enumerate([packet for packet in container.demux(stream) if packet.size]):
            data = edit(number, bytes(packet))
            if data is None:
                continue
            changed = av.Packet(data)
            changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
            changed.is_keyframe, changed.stream = packet.is_keyframe, target
            output.mux(changed)
    return buffer.getvalue()


def read(video: bytes, *, threads: int = 1) -> tuple[dict[float, Image], VideoReader]:
    """Return (time -> picture) of a video, and its reader."""
    reader = VideoReader(av.open(io.BytesIO(video)), ReadSettings(threads=threads), live=False, finite=True)
    with closing(reader):
        return {round(stamp, 3): load() for stamp, load in reader}, reader


def wrong(found: dict[float, Image], whole: dict[float, Image]) -> int:
    """Return how many pictures differ visibly from those of the whole video."""
    return sum(np.abs(found[time].astype(int) - whole[time]).mean() > 4 for time in found)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", CODECS)
def test_a_whole_video_is_delivered_whole(kind: str, threads: int) -> None:
    found, reader = read(encode(kind), threads=threads)
    assert (len(found), reader.corrupt, reader.withheld) == (COUNT, 0, 0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["h264", "h264-b", "mpeg4"])
def test_flipped_bits(kind: str, threads: int) -> None:
    video, chance = encode(kind), random.Random(1)
    whole, _ = read(video)

    def edit(number: int, data: bytes) -> bytes:
        changed = bytearray(data)
        if number in (14, 37):
            for _ in range(5):
                changed[chance.randrange(len(data) // 3, len(data))] ^= 255
        return bytes(changed)

    found, reader = read(change(video, edit), threads=threads)
    assert 30 <= len(found) < COUNT
    assert reader.corrupt >= 1
    assert reader.withheld >= 5
    assert wrong(found, whole) == 0
    if threads == 1 and kind != "h264-b":
        assert len(found) + reader.corrupt + reader.withheld == COUNT


@pytest.mark.parametrize("kind", ["h264", "h264-b", "h264-open", "h265"])
def test_a_lost_picture(kind: str) -> None:
    if kind == "h265" and av.library_versions["libavcodec"][0] < 62:
        pytest.skip("the decoder of H.265 notices lost pictures from FFmpeg 8 on")
    video = encode(kind)
    whole, _ = read(video)
    sizes: list[int] = []
    change(video, lambda number, data: sizes.append(len(data)))
    # A large picture, on which others depend.
    lost = max(range(22, 28), key=lambda number: sizes[number])
    found, reader = read(change(video, lambda number, data: None if number == lost else data))
    assert 40 <= len(found) <= COUNT - 3
    assert reader.withheld >= 1
    assert wrong(found, whole) == 0


def test_a_video_that_begins_between_key_frames() -> None:
    video = encode("h264")
    whole, _ = read(video)
    found, reader = read(change(video, lambda number, data: None if number < 4 else data))
    assert (len(found), reader.corrupt, reader.withheld) == (COUNT - GOP, 0, GOP - 4)
    assert wrong(found, whole) == 0


def test_a_video_without_a_key_frame() -> None:
    with pytest.raises(FeedError, match=r"none of its 54 pictures can be decoded: there is no key frame"):
        read(change(encode("h264"), lambda number, data: None if number % GOP == 0 else data))


def test_a_decoder_that_refuses_every_picture_becomes_lenient(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Some cameras break the standard in every picture, in a way that does no harm."""
    opened: list[bool] = []
    make = StreamDecoder._open

    class Refusing:
        def __init__(self, context: Any) -> None:
            self._context = context

        def decode(self, packet: Any) -> list[Any]:
            raise av.error.InvalidDataError(1, "wrong in every picture")

        def __getattr__(self, name: str) -> Any:
            return getattr(self._context, name)

    def record(self: StreamDecoder, *, strict: bool, anew: bool = False) -> Any:
        opened.append(strict)
        context = make(self, strict=strict, anew=anew)
        return Refusing(context) if strict else context

    monkeypatch.setattr(StreamDecoder, "_open", record)
    found, reader = read(encode("h264"))
    assert not opened[-1]
    assert len(found) == COUNT - 2 * GOP
    assert reader.corrupt == stream_decoder._STRICT_KEYS
    assert "it now lets errors pass" in caplog.text


def test_the_time_of_matroska_counts_from_its_first_picture(tmp_path: Path) -> None:
    """Recorders cut their files out of a longer stream, whose time stamps stay."""
    path = tmp_path / "a.mkv"
    with av.open(io.BytesIO(encode("h264"))) as container, av.open(str(path), "w") as output:
        stream = container.streams.video[0]
        target = output.add_stream_from_template(stream)
        for packet in container.demux(stream):
            if packet.size:
                packet.pts, packet.dts = packet.pts + 100_000, (packet.dts or packet.pts) + 100_000
                packet.stream = target
                output.mux(packet)
    found, _ = read(path.read_bytes())
    assert len(found) == COUNT


def test_pictures_are_converted_by_one_thread() -> None:
    video = encode("h264")
    with closing(VideoReader(av.open(io.BytesIO(video)), ReadSettings(), live=False, finite=True)) as reader:
        kept = [load for _, load in reader]
        before = len(list(Path("/proc/self/task").iterdir()))
        images = [load() for load in kept]
        assert len(list(Path("/proc/self/task").iterdir())) == before
    with av.open(io.BytesIO(video), "r") as container:
        expected = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    assert all(np.array_equal(found, known) for found, known in zip(images, expected, strict=True))


def test_a_stream_without_key_frames_is_not_left_out_for_ever() -> None:
    class Packet:
        is_keyframe = False

    reader = VideoReader(av.open(io.BytesIO(encode("h264"))), ReadSettings(), live=True, finite=False)
    with closing(reader):
        assert reader._lag is not None
        left_out = []
        for i in range(1000):
            # The reader never waits, and falls behind.
            reader._lag.note(i / 10, 10 + i / 5, 0.0)
            left_out.append(reader._is_behind(Packet(), 10 + i / 5))
    assert 100 < sum(left_out) < 500
    assert not any(left_out[-100:])
