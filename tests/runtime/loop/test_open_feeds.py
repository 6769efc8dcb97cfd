"""Opening of a run's feeds: what is refused, what is left out, and what is tried again."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import write_video

from gemel.bundles.manifest import FeedSpec
from gemel.errors import FeedError
from gemel.runtime.loop.open_feeds import FeedOptions, decoder_threads, open_feeds, open_source


@pytest.fixture
def film(tmp_path: Path) -> str:
    return str(write_video(tmp_path / "a.mp4"))


def test_a_camera_that_is_missing_is_no_failure(film: str) -> None:
    specs = {"line": FeedSpec(source="/dev/video987"), "gate": FeedSpec(source="rtsp://127.0.0.1:1/x")}
    feeds, broken = open_feeds(specs, specs, FeedOptions())
    assert (set(feeds), broken) == ({"line", "gate"}, {})


def test_a_file_that_is_missing_is_said_at_once(film: str, caplog: pytest.LogCaptureFixture) -> None:
    specs = {"yard": FeedSpec(source=film), "gate": FeedSpec(source="/nowhere/b.mp4")}
    feeds, broken = open_feeds(specs, specs, FeedOptions())
    assert (set(feeds), set(broken)) == ({"yard"}, {"gate"})
    assert "feed 'gate': source '/nowhere/b.mp4' does not exist" in caplog.text
    assert "its queries get no frames in this run" in caplog.text


def test_a_source_that_was_mistyped_is_refused(film: str) -> None:
    specs = {"yard": FeedSpec(source=film), "gate": FeedSpec(source=film)}
    with pytest.raises(FeedError, match=r"feed 'gate': source '/nowhere/b\.mp4' does not exist"):
        open_feeds(specs, specs, FeedOptions({"gate": "/nowhere/b.mp4"}))


def test_an_address_that_was_given_without_a_name_is_not_repeated(film: str) -> None:
    specs = {"yard": FeedSpec(source=film)}
    with pytest.raises(FeedError, match="--feed NAME=SOURCE: NAME is not in the bundle; its feeds are yard") as caught:
        open_feeds(specs, specs, FeedOptions({"http://me:s3cr3t@host/x?usr": "a"}))
    assert "s3cr3t" not in str(caught.value)


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMERA", "me@camera")
    spec = FeedSpec(source="rtsp://${CAMERA}/live")
    with pytest.raises(FeedError, match="--env CAMERA"):
        open_source("gate", spec, FeedOptions())
    allowed = open_source("gate", spec, FeedOptions(variables=["CAMERA"]))
    typed = open_source("gate", spec, FeedOptions({"gate": spec.source}))
    assert allowed.location == typed.location == "rtsp://me@camera/live"


def test_settings_of_the_manifest_reach_the_source() -> None:
    spec = FeedSpec(source="rtsp://camera/live", transport="udp", timeout=20, hardware="auto", fps=3)
    found = open_source("gate", spec, FeedOptions(), threads=2)
    settings = found.settings
    assert (settings.transport, settings.timeout_s, settings.hardware, settings.threads) == ("udp", 20, "auto", 2)
    assert found.fps == 3


def test_threads_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    assert [decoder_threads(feeds) for feeds in (1, 4, 8, 20)] == [4, 4, 2, 1]
