"""Frames are prepared once for all queries of a feed that want the same input."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from gemel.bundles.manifest import InputSpec
from gemel.bundles.reader import Bundle, open_bundle
from gemel.frames.frame import Frame, Image
from gemel.frames.preprocess import preprocess
from gemel.runtime.backends import Backend
from gemel.runtime.loop import inference
from gemel.runtime.loop.inference import Inference


class Device:
    """A backend that answers zeros, and keeps the inputs it was given."""

    def __init__(self) -> None:
        self.inputs: list[NDArray[Any]] = []

    def activate(self, model: str) -> None:
        pass

    def release(self, model: str) -> None:
        pass

    def run(self, model: str, stage: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.inputs.append(next(iter(inputs.values())))
        return {"logits": np.zeros((1, 3), np.float32)}


@pytest.fixture
def loaded(bundle_folder: Path) -> Bundle:
    return open_bundle(bundle_folder / "bundle")


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[Image]:
    """Images that were preprocessed, in order."""
    found: list[Image] = []

    def counted(image: Image, spec: InputSpec) -> object:
        found.append(image)
        return preprocess(image, spec)

    monkeypatch.setattr(inference, "preprocess", counted)
    return found


def frames(feed: str, *indices: int) -> list[Frame]:
    return [Frame(feed, index, np.full((8, 8, 3), index, np.uint8), 0.0, 0.0) for index in indices]


def take_turns(infer: Inference, queries: str, turn: list[Frame]) -> None:
    for query in queries:
        for frame in turn:
            infer(query, frame)


def test_two_turns_on_the_same_frames_prepare_each_frame_once(loaded: Bundle, prepared: list[Image]) -> None:
    device = Device()
    take_turns(Inference(loaded, cast(Backend, device), {"yard": 4}), "ab", frames("yard", 0, 1, 2, 3))
    assert len(prepared) == 4
    # The very same arrays: a backend on a device uploads each of them once.
    assert [id(each) for each in device.inputs[:4]] == [id(each) for each in device.inputs[4:]]
    # And in their order: the brightness of a frame is its index.
    means = [float(each.mean()) for each in device.inputs[:4]]
    assert means == sorted(set(means))


def test_one_frame_of_a_feed_is_kept_where_no_depth_is_given(loaded: Bundle, prepared: list[Image]) -> None:
    infer = Inference(loaded, cast(Backend, Device()))
    take_turns(infer, "ab", frames("yard", 0))
    assert len(prepared) == 1
    take_turns(infer, "ab", frames("yard", 1, 2))
    assert len(prepared) == 1 + 2 * 2


def test_the_newest_frames_are_kept(loaded: Bundle, prepared: list[Image]) -> None:
    infer = Inference(loaded, cast(Backend, Device()), {"yard": 3})
    # b takes a frame that a has passed over; then frame 2 leaves the channel for frame 5.
    take_turns(infer, "a", frames("yard", 3, 4))
    take_turns(infer, "b", frames("yard", 2, 3, 4))
    take_turns(infer, "a", frames("yard", 5))
    take_turns(infer, "b", frames("yard", 3, 4, 5))
    assert len(prepared) == 4


def test_feeds_do_not_share_frames(loaded: Bundle, prepared: list[Image]) -> None:
    infer = Inference(loaded, cast(Backend, Device()), {"yard": 2, "gate": 2})
    take_turns(infer, "ab", frames("yard", 0, 1))
    take_turns(infer, "c", frames("gate", 0, 1))
    assert len(prepared) == 4


def test_inputs_of_different_specs_do_not_mix() -> None:
    kept = inference._PreparedFrames({"yard": 2})
    small, large = InputSpec(size=(4, 4)), InputSpec(size=(6, 6))
    for frame in frames("yard", 0, 1):
        assert kept.prepare(frame, small)[0].shape == (1, 3, 4, 4)
        assert kept.prepare(frame, large)[0].shape == (1, 3, 6, 6)
        assert kept.prepare(frame, small)[1].input == (4, 4)


def test_the_number_of_kept_frames_is_bounded() -> None:
    kept = inference._PreparedFrames({"yard": 3})
    specs = InputSpec(size=(4, 4)), InputSpec(size=(6, 6))
    for index in (7, 3, 9, 8, 1, 20, 2, *range(21, 60)):
        for spec in specs:
            for feed in ("yard", "gate"):
                (frame,) = frames(feed, index)
                kept.prepare(frame, spec)
                assert len(kept._kept[feed, spec]) <= (3 if feed == "yard" else 1)
    assert len(kept._kept) == 4
    assert set(kept._kept["yard", specs[0]]) == {57, 58, 59}


def test_a_model_is_released_after_a_failure(loaded: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    device, released = Device(), list[str]()
    monkeypatch.setattr(device, "release", released.append)
    monkeypatch.setattr(device, "run", lambda *_: SimpleNamespace().nothing)
    with pytest.raises(AttributeError):
        Inference(loaded, cast(Backend, device))("a", *frames("yard", 0))
    assert released == ["a"]
