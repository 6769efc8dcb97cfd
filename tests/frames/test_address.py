"""Addresses of cameras in messages: no part of a password is ever shown."""

from __future__ import annotations

import os

import pytest

from gemel.environment import expand, variables_of
from gemel.errors import FeedError
from gemel.frames.address import shown_address
from gemel.frames.source import resolve

SECRETS = [
    "rtsp://admin:s3cr3t@127.0.0.1:1/live",
    "rtsp://admin:p@s3cr3t@127.0.0.1:1/live",
    "rtsp://admin:s3cr3t/x@127.0.0.1:1/live",
    "rtsp://admin:s3cr3t?@127.0.0.1:1/live",
    "http://127.0.0.1:1/cgi?usr=admin&pwd=s3cr3t",
    "http://127.0.0.1:1/s3cr3t/x.mjpg",
    "http://127.0.0.1:1/x#s3cr3t",
    "http://127.0.0.1:1/x?mail=a@s3cr3t",
    "HTTP://admin:s3cr3t@127.0.0.1:1/x",
    "s3cr3t://admin:s3cr3t@host/x",
    "admin:s3cr3t@192.0.2.7/live",
    "rtsp://${USER}:s3cr3t@camera/live",
    "rtsp://s3cr3t.${X}/live",
]


@pytest.mark.parametrize("source", SECRETS)
def test_nothing_of_a_password_is_shown(source: str) -> None:
    assert "s3cr3t" not in shown_address(source).removeprefix("s3cr3t")
    if source.startswith("s3cr3t"):
        return
    with pytest.raises(FeedError) as caught:
        resolve("gate", source, variables=()).probe()
    assert "s3cr3t" not in str(caught.value)


def test_scheme_host_and_port_are_shown() -> None:
    assert shown_address("rtsp://admin:pw@192.0.2.7:554/live?x=1") == "rtsp://192.0.2.7:554"
    assert shown_address("http://[::1]:80/x") == "http://[::1]:80"
    assert shown_address("/data/yard.mp4") == "/data/yard.mp4"


class TestVariables:
    def test_of_a_bundle_from_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECRET", "s3cr3t")
        monkeypatch.setenv("GEMEL_CAMERA", "me@camera")
        monkeypatch.setenv("CAMERA", "me@camera")
        for source in ("http://camera/${SECRET}", "http://camera/${SECRET:-x}", "${SECRET}"):
            with pytest.raises(FeedError, match=r"environment variable SECRET is not allowed .*--env SECRET"):
                resolve("gate", source, variables=("CAMERA",))
        for name in ("CAMERA", "GEMEL_CAMERA"):
            found = resolve("gate", f"rtsp://${{{name}}}/live", variables=("CAMERA",))
            assert found.location == "rtsp://me@camera/live"

    def test_of_the_user_may_have_any_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CAMERA", "me@camera")
        assert resolve("gate", "rtsp://${CAMERA}/live").location == "rtsp://me@camera/live"
        monkeypatch.delenv("CAMERA")
        with pytest.raises(FeedError, match="environment variable CAMERA is not set"):
            resolve("gate", "rtsp://${CAMERA}/live")

    def test_default_and_names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CAMERA", raising=False)
        assert expand("${CAMERA:-x}/${PATH}") == f"x/{os.environ['PATH']}"
        assert variables_of("${A}-${B:-x}-${A}") == ("A", "B")
