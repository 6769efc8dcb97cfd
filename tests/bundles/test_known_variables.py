"""Environment variables that a bundle may use where its user compiled it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemel.bundles.known_variables import bundle_variables, known_variables, remember_variables
from gemel.bundles.reader import Bundle, open_bundle


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "gemel" / "compiled-bundles"


def with_camera(folder: Path, source: str = "rtsp://${CAMERA}/live") -> Bundle:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    document["feeds"]["yard"]["source"] = source
    path.write_text(json.dumps(document))
    return open_bundle(folder)


def test_a_bundle_that_was_compiled_here(bundle: Path, state: Path) -> None:
    opened = with_camera(bundle)
    assert known_variables(opened) == ()
    assert remember_variables(opened) == bundle_variables(opened.manifest) == ("CAMERA",)
    assert known_variables(opened) == ("CAMERA",)
    # Changed by one character, it is another bundle.
    assert known_variables(with_camera(bundle, "rtsp://${CAMERA}/life")) == ()


def test_nothing_is_written_for_a_bundle_without_variables(bundle: Path, state: Path) -> None:
    assert remember_variables(open_bundle(bundle)) == ()
    assert not state.exists()


def test_a_damaged_file_and_a_folder_that_cannot_be_written(bundle: Path, state: Path) -> None:
    opened = with_camera(bundle)
    remember_variables(opened)
    state.write_bytes(b"\xff\n" + state.read_bytes() + b"0" * 64 + b" \xc3\xa4\nx\n")
    assert known_variables(opened) == ("CAMERA",)
    state.unlink()
    state.parent.rmdir()
    state.parent.write_text("no folder")
    assert remember_variables(opened) == ("CAMERA",)
    assert known_variables(opened) == ()
