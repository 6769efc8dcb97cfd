"""Lost pictures of an H.264 stream are found, and none are found where none were lost."""

from __future__ import annotations

import io

import av
import pytest
from cameras import moving
from hypothesis import given
from hypothesis import strategies as st

from gemel.frames.h264_gaps import GapFinder


def packets(options: dict[str, str], form: str) -> tuple[bytes | None, list[tuple[bytes, bool]]]:
    """Return the settings of an encoded stream, and its packets with whether each is needed by later ones."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        stream = container.add_stream("libx264", rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 176, 144, "yuv420p", 20
        for image in moving(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))
    with av.open(io.BytesIO(buffer.getvalue())) as container:
        stream = container.streams.video[0]
        found = [(bytes(packet), packet.is_keyframe) for packet in container.demux(stream) if packet.size]
        return stream.codec_context.extradata, found


@pytest.mark.parametrize("form", ["matroska", "mpegts", "mp4"])
@pytest.mark.parametrize(
    "options", [{"bf": "0"}, {"bf": "3"}, {"profile": "baseline"}, {"x264-params": "intra-refresh=1"}]
)
def test_nothing_is_missed_in_a_whole_stream(options: dict[str, str], form: str) -> None:
    settings, units = packets(options, form)
    finder = GapFinder(settings)
    assert not any(finder.lost(data) for data, _ in units)


@pytest.mark.parametrize("form", ["matroska", "mpegts"])
def test_a_lost_picture_is_missed(form: str) -> None:
    settings, units = packets({"bf": "0"}, form)
    for lost in range(1, len(units) - 1):
        finder = GapFinder(settings)
        found = [finder.lost(data) for i, (data, _) in enumerate(units[: lost + 2]) if i != lost]
        # What was lost before a key frame is not needed any more.
        assert found[-1] == (not units[lost + 1][1])
        assert not any(found[:-1])


@given(st.binary(max_size=200), st.lists(st.binary(max_size=200), max_size=5))
def test_any_bytes_are_allowed(extradata: bytes, units: list[bytes]) -> None:
    finder = GapFinder(extradata)
    for unit in units:
        finder.lost(unit)
        finder.lost(b"\0\0\1\x67" + unit)
        finder.lost(b"\0\0\1\x41" + unit)
