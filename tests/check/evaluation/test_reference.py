"""Recordings that can be played again, and the answers to all their frames."""

from __future__ import annotations

from pathlib import Path
from threading import Condition

import numpy as np
import pytest
from helpers import write_video

from gemel.bundles.reader import open_bundle
from gemel.check.evaluation.reference import answer_all, recordings
from gemel.errors import FeedError
from gemel.frames.frame import Frame
from gemel.frames.source import resolve
from gemel.runtime.feeds import Feed


def frames_of(path: Path, count: int, *, live: bool) -> list[Frame]:
    feed, wake = Feed("yard", resolve("yard", str(path)), fps=40, loop=True), Condition()
    feed.start(wake, live=live, limit=count, depth=count)
    found = []
    while not feed.finished:
        with wake:
            wake.wait_for(lambda: feed.waiting or feed.finished, timeout=1)
        if (frame := feed.take()) is not None:
            found.append(frame)
    feed.join()
    return found


def test_an_index_means_the_same_picture_live_and_offline_and_over_loops(tmp_path: Path) -> None:
    # Of 50 pictures per second 40 are kept, and of 12 pictures not the same ones in every loop.
    video = write_video(tmp_path / "yard.mp4", fps=50)
    live, offline = (frames_of(video, 32, live=live) for live in (True, False))
    assert [(frame.index, frame.time) for frame in live] == [(frame.index, frame.time) for frame in offline]
    assert [frame.index for frame in live] == list(range(32))
    assert all(np.array_equal(ours.image, theirs.image) for ours, theirs in zip(live, offline, strict=True))


def test_every_query_answers_every_frame(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder / "bundle")
    found = answer_all(bundle, recordings(bundle, {}), {"yard": 20, "gate": 15}, threads=1)
    indices = {name: [answer.frame for answer in answers] for name, answers in found.answers.items()}
    # The recording of yard has 12 frames. The feed gate has half as many frames per second, and loops.
    assert indices == {"a": list(range(12)), "b": list(range(12)), "c": list(range(15))}
    first, again = (found.answers["c"][index].result for index in (0, 6))
    assert first == again
    assert answer_all(bundle, recordings(bundle, {}), {"yard": 0, "gate": 0}, threads=1).answers == {}


def test_sources(bundle_folder: Path, tmp_path: Path) -> None:
    bundle = open_bundle(bundle_folder / "bundle")
    assert list(recordings(bundle, {})) == ["yard", "gate"]
    other = write_video(tmp_path / "other.mp4")
    assert recordings(bundle, {"gate": str(other)})["gate"].location == str(other)
    with pytest.raises(FeedError, match="feed 'gait' is not in the bundle; its feeds are yard, gate"):
        recordings(bundle, {"gait": str(other)})
    with pytest.raises(FeedError, match=r"feed 'gate': rtsp://host cannot be played again .*--feed gate=FILE"):
        recordings(bundle, {"gate": "rtsp://user:secret@host/1"})
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    with pytest.raises(FeedError, match=r"feed 'yard': cannot open .*broken\.mp4"):
        recordings(bundle, {"yard": str(tmp_path / "broken.mp4")})
