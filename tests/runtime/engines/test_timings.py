"""Tests of timing caches: used again on the same card, and never a reason to fail."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_tensorrt import FakeTensorRt, _TimedConfig
from on_devices import Device

from gemel.bundles.reader import open_bundle
from gemel.runtime import device_cache as cache
from gemel.runtime.engines.library import Library
from gemel.runtime.engines.store import engines_for

Build = Callable[..., FakeTensorRt]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cache folder of the user."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(cache, "user_cache_path", lambda name: folder)
    return folder


@pytest.fixture
def built(bundle: Path, kept: Path) -> Build:
    def make(backend: str = "tensorrt", card: str = "host", version: str = "10.3.0", **options: Any) -> FakeTensorRt:
        shutil.rmtree(bundle / "device-cache", ignore_errors=True)
        device = Device()
        device.name = card
        module = FakeTensorRt(device.streams, version, **{"timings": True, **options})
        engines_for(open_bundle(bundle), Library(backend, module), device)
        device.close()
        assert module.built == 1
        return module

    return make


def test_kernels_are_timed_once_on_a_card(built: Build, kept: Path) -> None:
    assert [built().timed for _ in range(2)] == [1, 0]
    (file,) = kept.iterdir()
    assert file.name.startswith("tensorrt-") and file.suffix == ".timings"
    assert [built(card="another").timed for _ in range(2)] == [1, 0]
    assert [built(version="10.4.0").timed for _ in range(2)] == [1, 0]
    assert len(list(kept.iterdir())) == 3


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 100])
def test_what_is_damaged_is_not_used(built: Build, kept: Path, content: bytes) -> None:
    built()
    (file,) = kept.iterdir()
    file.write_bytes(content)
    assert [built().timed for _ in range(2)] == [1, 0]


def test_another_cards_are_refused_by_the_library(built: Build, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built()
    take = _TimedConfig.set_timing_cache
    monkeypatch.setattr(
        _TimedConfig, "set_timing_cache", lambda self, cache, mismatch: not cache.known and take(self, cache, mismatch)
    )
    assert built().timed == 1


def test_a_folder_that_cannot_be_written(built: Build, kept: Path) -> None:
    # A file in place of the folder: permissions would not stop root.
    kept.touch()
    assert [built().timed for _ in range(2)] == [1, 1]


@pytest.mark.parametrize("options", [{"timings": False}, {"backend": "tensorrt-rtx"}])
def test_a_library_without_them(built: Build, kept: Path, options: dict[str, Any]) -> None:
    assert built(**options).timed == 0
    assert not kept.exists()
