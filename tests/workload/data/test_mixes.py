"""Test the mixes: frames of other feeds and stills, or altered frames where a workload has neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from gemel.bundles.manifest import InputSpec
from gemel.errors import DataError
from gemel.workload.data import Images, Mixer, Splits, load_data
from gemel.workload.data import mixes as mixes_module
from gemel.workload.document.schema import Workload

SPEC = InputSpec(size=(16, 24))


def write(folder: Path, shade: int, count: int = 25, size: tuple[int, int] = (16, 24)) -> None:
    """Write frames of one shade of gray whose first pixels get brighter."""
    folder.mkdir()
    for index in range(count):
        image = np.full((*size, 3), shade, np.uint8)
        image[: size[0] // 2, : size[1] // 2] = shade + index
        assert cv2.imwrite(str(folder / f"{index:03}.png"), image)


def workload(folder: Path, *feeds: str, **changes: Any) -> Workload:
    """Return a workload with a query of the first feed; the source of a feed is the folder of its name."""
    query = {"name": "door", "feed": feeds[0], "task": "classification", "model": {"factory": "a:b"}}
    sources = {name: {"source": name} for name in feeds}
    made = Workload.model_validate({"schema_version": "1", "feeds": sources, "queries": [query], **changes})
    made._path = folder / "workload.yaml"
    return made


def mix(made: Workload) -> Splits:
    """Return the mix of the workload's query."""
    query = made.queries[0]
    return Mixer(made).of(query, load_data(query, made, SPEC, None), SPEC)


def shades(images: Images) -> set[float]:
    """Return the shades of the frames, to tens."""
    return {round(float(picture[0, -1, -1]), -1) for picture in images.loaded()}


def test_a_mix_is_of_all_other_feeds_and_stills(tmp_path: Path) -> None:
    for name, shade in (("yard", 20), ("street", 100), ("hall", 160), ("stills", 200)):
        write(tmp_path / name, shade)
    parts = mix(workload(tmp_path, "yard", "street", "hall", stills="stills"))
    assert [shades(part) for part in parts] == [{100, 160, 200}] * 3
    # Each part is of the same part of every feed: the frames that train are none of those that judge.
    seen = [
        sorted(round(float(picture[0, 0, 0]) - float(picture[0, -1, -1])) for picture in part.loaded())
        for part in parts
    ]
    assert max(seen[0]) < min(seen[1]) <= max(seen[1]) < min(seen[2])


def test_each_feed_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, shade in (("yard", 20), ("street", 100)):
        write(tmp_path / name, shade)
    made = workload(tmp_path, "yard", "street")
    own, mixer = load_data(made.queries[0], made, SPEC, None), Mixer(made)
    first = mixer.of(made.queries[0], own, SPEC)
    monkeypatch.setattr(mixes_module, "list_feed", None)
    again = mixer.of(made.queries[0], own, SPEC.model_copy(update={"size": (8, 8)}))
    assert len(first.choose) == len(again.choose)


def test_frames_are_shared_out_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixes_module, "_IMAGES", (6, 4, 4))
    for name, shade in (("yard", 20), ("street", 100), ("hall", 160)):
        write(tmp_path / name, shade)
    parts = mix(workload(tmp_path, "yard", "street", "hall"))
    assert [len(part) for part in parts] == [6, 4, 4]
    assert shades(parts.choose) == {100, 160}


@pytest.mark.parametrize("others", [(), ("again",), ("camera",), ("gone",), ("short",)])
def test_without_other_feeds_frames_are_altered(others: tuple[str, ...], tmp_path: Path) -> None:
    write(tmp_path / "yard", 60)
    write(tmp_path / "short", 200, count=3)
    made = workload(tmp_path, "yard", *others)
    for name, source in (("again", "yard"), ("camera", "rtsp://box/1")):
        if name in others:
            made.feeds[name] = made.feeds[name].model_copy(update={"source": source})
    own = load_data(made.queries[0], made, SPEC, None)
    found, again = (Mixer(made).of(made.queries[0], own, SPEC) for _ in range(2))
    for part, mixed, same in zip(own, found, again, strict=True):
        assert mixed.geometry == part.geometry
        assert torch.equal(mixed.loaded(), same.loaded())
        assert all(not torch.equal(ours, theirs) for ours, theirs in zip(part.loaded(), mixed.loaded(), strict=True))


def test_frames_of_another_size_are_resized(tmp_path: Path) -> None:
    write(tmp_path / "yard", 20)
    write(tmp_path / "street", 100, size=(900, 1200))
    parts = mix(workload(tmp_path, "yard", "street"))
    assert parts.choose.pixels.shape[1:] == (3, 16, 24)
    assert shades(parts.choose) == {100}
    assert parts.choose.geometry[0].source == (480, 640)


@pytest.mark.parametrize(
    ("stills", "message"),
    [
        ("gone", "stills: .*gone: no such file or folder"),
        ("http://a/b", "stills: .*not allowed"),
        ("few", "fewer than 15"),
    ],
)
def test_stills_that_cannot_be_read(stills: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "yard", 20)
    write(tmp_path / "few", 20, count=2)
    with pytest.raises(DataError, match=message):
        mix(workload(tmp_path, "yard", stills=stills))
