"""Frames are prepared once for all queries of a feed that want the same input, and run together where that pays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from gemel.bundles.manifest import InputSpec
from gemel.bundles.reader import Bundle, open_bundle
from gemel.errors import BackendError
from gemel.frames.frame import Frame, Image
from gemel.frames.preprocess import preprocess
from gemel.runtime.backends import Backend
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.runtime.decode import Decoder, FloatArray
from gemel.runtime.decode.results import Class, Result
from gemel.runtime.loop import prepared_frames
from gemel.runtime.loop.inference import Inference
from gemel.runtime.loop.summary import RunCounts

RED_MEAN, RED_STD = 0.485, 0.229
"""Normalisation of the first channel of the bundle's inputs."""


class Device:
    """A backend that answers with the brightness of each image as the highest of 100 classes, and keeps its inputs."""

    def __init__(self) -> None:
        self.inputs: list[NDArray[Any]] = []
        self.rows: list[tuple[str, int]] = []
        """Model and number of images of each run."""
        self.held = 0
        self.refuses: int | None = None
        """Brightness of an image that fails a run."""
        self.refuses_batches = self.loses_rows = False

    def activate(self, model: str) -> None:
        self.held += 1

    def release(self, model: str) -> None:
        self.held -= 1

    def run(self, model: str, stage: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        (images,) = inputs.values()
        self.inputs.append(images)
        self.rows.append((model, len(images)))
        shades = np.rint((images[:, 0].mean((1, 2)) * RED_STD + RED_MEAN) * 255).astype(int)
        if self.refuses in shades:
            raise BackendError(f"frame {self.refuses} is refused")
        if self.refuses_batches and len(images) > 1:
            raise BackendError("too large")
        logits = np.zeros((len(images), 100), np.float32)
        logits[np.arange(len(images)), shades] = 1
        return {"logits": logits[:1] if self.loses_rows else logits}


def labels(outcomes: Iterable[Result | Exception]) -> list[int]:
    """Return the number of the best class of each result."""
    found = []
    for outcome in outcomes:
        assert isinstance(outcome, tuple) and isinstance(outcome[0], Class), outcome
        found.append(outcome[0].class_id)
    return found


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

    monkeypatch.setattr(prepared_frames, "preprocess", counted)
    return found


def frames(feed: str, *indices: int) -> list[Frame]:
    return [Frame(feed, index, np.full((8, 8, 3), index, np.uint8), 0.0, 0.0) for index in indices]


def take_turns(infer: Inference, queries: str, turn: list[Frame]) -> None:
    for query in queries:
        assert len(list(infer([(query, frame) for frame in turn]))) == len(turn)


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


class TestBatches:
    """Model a answers queries a (feed yard) and c (gate), model b answers b (yard)."""

    def batched(self, loaded: Bundle, device: Device, *sizes: int) -> Inference:
        return Inference(loaded, cast(Backend, device), {"yard": 8, "gate": 8}, {"a": sizes, "b": sizes})

    def test_a_turn_is_one_run(self, loaded: Bundle) -> None:
        device = Device()
        found = labels(self.batched(loaded, device, 2, 4)([("a", frame) for frame in frames("yard", 9, 5, 7, 1)]))
        assert device.rows == [("a", 4)]
        assert found == [9, 5, 7, 1]

    def test_a_model_without_batches_runs_frame_by_frame(self, loaded: Bundle) -> None:
        device = Device()
        infer = Inference(loaded, cast(Backend, device), {"yard": 8}, {"b": (2,)})
        assert labels(infer([("a", frame) for frame in frames("yard", 3, 4)])) == [3, 4]
        assert device.rows == [("a", 1), ("a", 1)]

    @pytest.mark.parametrize(
        ("sizes", "count", "expected"),
        [
            ((2, 4, 8), 7, [7]),
            ((2, 4, 8), 19, [8, 8, 3]),
            ((2, 8), 7, [2, 2, 2, 1]),
            ((4,), 5, [4, 1]),
            ((4,), 3, [1, 1, 1]),
            ((), 2, [1, 1]),
        ],
    )
    def test_frames_are_split_into_batches_of_sizes_that_pay(
        self, loaded: Bundle, sizes: tuple[int, ...], count: int, expected: list[int]
    ) -> None:
        device = Device()
        found = labels(self.batched(loaded, device, *sizes)([("a", frame) for frame in frames("yard", *range(count))]))
        assert [rows for _, rows in device.rows] == expected
        assert found == list(range(count))

    def test_queries_of_one_model_on_two_feeds_run_once(self, loaded: Bundle, prepared: list[Image]) -> None:
        device = Device()
        infer = self.batched(loaded, device, 2)
        (yard,), (gate,) = frames("yard", 5), frames("gate", 6)
        assert labels(infer([("a", yard), ("b", yard), ("c", gate)])) == [5, 5, 6]
        assert device.rows == [("a", 2), ("b", 1)]
        # One frame of two feeds each, and the models take equal inputs.
        assert len(prepared) == 2

    def test_queries_of_one_model_on_one_frame_share_its_run(self, loaded: Bundle) -> None:
        device = Device()
        (frame,) = frames("yard", 5)
        infer = self.batched(loaded, device)
        assert labels(infer([("a", frame), ("c", frame)])) == [5, 5]
        assert device.rows == [("a", 1)]

    def test_a_failing_frame_does_not_fail_the_others(self, loaded: Bundle, caplog: pytest.LogCaptureFixture) -> None:
        device = Device()
        device.refuses = 2
        infer = self.batched(loaded, device, 4)
        found = list(infer([("a", frame) for frame in frames("yard", 1, 2, 3, 4)]))
        assert [str(each) for each in found if isinstance(each, Exception)] == ["frame 2 is refused"]
        assert isinstance(found[1], BackendError)
        assert labels([found[0], *found[2:]]) == [1, 3, 4]
        # The frame was at fault: later turns are batches.
        device.rows.clear()
        assert labels(infer([("a", frame) for frame in frames("yard", 5, 6, 7, 8)])) == [5, 6, 7, 8]
        assert device.rows == [("a", 4)] and not caplog.records

    def test_a_frame_that_cannot_be_prepared_fails_alone(self, loaded: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        def refusing(image: Image, spec: InputSpec) -> object:
            if image[0, 0, 0] == 2:
                raise ValueError("no picture")
            return preprocess(image, spec)

        monkeypatch.setattr(prepared_frames, "preprocess", refusing)
        found = list(self.batched(loaded, Device(), 4)([("a", frame) for frame in frames("yard", 1, 2, 3, 4)]))
        assert [str(each) for each in found if isinstance(each, Exception)] == ["no picture"]
        assert labels([found[0], *found[2:]]) == [1, 3, 4]

    @pytest.mark.parametrize("lost", [False, True])
    def test_a_batch_that_fails_where_its_frames_do_not_is_the_last(
        self, loaded: Bundle, caplog: pytest.LogCaptureFixture, lost: bool
    ) -> None:
        device = Device()
        # The device fails, or answers with fewer rows than frames.
        device.refuses_batches, device.loses_rows = not lost, lost
        infer = self.batched(loaded, device, 2)
        for turn in range(3):
            assert labels(infer([("a", frame) for frame in frames("yard", 2 * turn, 2 * turn + 1)])) == [
                2 * turn,
                2 * turn + 1,
            ]
        assert [rows for _, rows in device.rows] == [2, 1, 1, 1, 1, 1, 1]
        reason = "output logits has no row for each of 2 frames" if lost else "too large"
        assert [record.getMessage() for record in caplog.records] == [
            f"model a: frames run one by one from now on, because a batch of 2 failed: {'model a: ' * lost}{reason}"
        ]
        assert device.held == 0

    def test_a_decoder_that_fails_fails_its_own_frame(self, loaded: Bundle) -> None:
        device = Device()
        infer = self.batched(loaded, device, 2)
        decode = infer._decoders["a"]

        def sometimes(outputs: Mapping[str, FloatArray], *rest: Any) -> Result:
            if outputs["logits"][0, 1] == 1:
                raise ValueError("no boxes")
            return decode(outputs, *rest)

        infer._decoders["a"] = cast(Decoder, sometimes)
        first, second = infer([("a", frame) for frame in frames("yard", 0, 1)])
        assert labels([first]) == [0] and str(second) == "no boxes"
        assert device.rows == [("a", 2)] and device.held == 0

    def test_runs_are_made_when_their_outcomes_are_wanted(self, loaded: Bundle) -> None:
        device = Device()
        outcomes = self.batched(loaded, device, 2)([("a", frame) for frame in frames("yard", 0, 1, 2, 3)])
        next(outcomes)
        assert device.rows == [("a", 2)] and device.held == 0

    def test_runs_and_their_frames_are_counted(self, loaded: Bundle) -> None:
        infer = self.batched(loaded, Device(), 2, 4)
        yard, gate = frames("yard", 0, 1, 2), frames("gate", 0)
        list(infer([*(("a", frame) for frame in yard), *(("c", frame) for frame in gate)]))
        list(infer([("a", yard[0])]))
        assert infer.counts == {"a": RunCounts(2, 5), "c": RunCounts(1, 4)}

    @pytest.mark.usefixtures("one_thread")
    def test_batched_answers_equal_single_ones(self, loaded: Bundle) -> None:
        noise = np.random.default_rng(0)
        images = [noise.integers(0, 256, (40, 60, 3), np.uint8) for _ in range(8)]
        turn = [("abc"[index % 3], Frame("yard", index, image, 0.0, 0.0)) for index, image in enumerate(images)]
        with OrtCpu(loaded, threads=1) as backend:
            singly = list(Inference(loaded, backend, {"yard": 8})(turn))
            together = list(Inference(loaded, backend, {"yard": 8}, {"a": (2, 4), "b": (2,)})(turn))
        assert all(model.stages["main"].takes_batches for model in loaded.manifest.models.values())
        for one, other in zip(singly, together, strict=True):
            assert isinstance(one, tuple) and isinstance(other, tuple)
            assert [each.label for each in one] == [each.label for each in other]
            assert [each.score for each in one] == pytest.approx([each.score for each in other], abs=1e-5)
        # Frames differ, so that a mixed-up row would show.
        assert len({str(each) for each in singly}) == len(singly)


def test_a_model_is_released_after_a_failure(loaded: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    device, released = Device(), list[str]()
    monkeypatch.setattr(device, "release", released.append)
    monkeypatch.setattr(device, "run", lambda *_: SimpleNamespace().nothing)
    with pytest.raises(AttributeError):
        Inference(loaded, cast(Backend, device)).outputs("a", frames("yard", 0))
    (frame,) = frames("yard", 0)
    (outcome,) = Inference(loaded, cast(Backend, device))([("a", frame)])
    assert isinstance(outcome, AttributeError)
    assert released == ["a", "a"]
