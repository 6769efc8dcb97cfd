"""Measured times include the right work, on a device whose clock moves only when it works."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from gemel.bundles.reader import MANIFEST, Bundle, open_bundle
from gemel.errors import BackendError
from gemel.runtime.backends import Backend
from gemel.runtime.loop import measure_times as module
from gemel.runtime.loop import turn_times
from gemel.runtime.loop.batches import BATCHES
from gemel.runtime.loop.measure_times import ROUNDS, Times, measure_times


class Device:
    """A backend that holds the weights of one model at a time; all times are in milliseconds.

    Args:
        run: model -> time of a run on one frame.
        batches: number of frames -> time of a batch, relative to the frames one by one; no batches if left out.
    """

    segments: Mapping[str, int] = {"s0": 100, "s1": 200}
    sources: Mapping[str, Sequence[str]] = {}
    stems: Mapping[str, object] = {}

    def __init__(self, run: Mapping[str, float] | None = None, batches: Mapping[int, float] | None = None) -> None:
        self.now = 0.0
        self.run_times = run or {"a": 10.0, "b": 20.0}
        self.batches = batches or {}
        self.load_times = {"s0": 2.0, "s1": 3.0}
        self.resident: set[str] = set()
        self.held: set[str] = set()
        self.known: set[str] = set()
        self.active = ""
        self.ran: list[str] = []
        self.rows: list[tuple[str, int]] = []
        """Model and number of frames of each run."""
        self.known_runs: set[tuple[str, int]] = set()
        self.images: list[NDArray[Any]] = []

    def clock(self) -> float:
        return self.now / 1e3

    def evict(self) -> None:
        self.resident = set(self.held)

    def loaded(self, segments: Sequence[str]) -> bool:
        return self.resident >= set(segments)

    def prefetch(self, load: Sequence[str], evict: Sequence[str] = (), done: Callable[[], None] = lambda: None) -> None:
        for name in load:
            assert self.resident == set(self.sources.get(name, ())) | set(load).intersection(self.resident)
            # The first load is slow: it comes from somewhere else.
            self.now += self.load_times[name] if name in self.known else 500.0
            self.known.add(name)
            self.resident.add(name)
        done()

    def activate(self, model: str) -> None:
        if self.active != model:
            self.now += 40.0
        self.active = model

    def release(self, model: str) -> None:
        assert model == self.active

    def run(self, model: str, stage: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        (images,) = inputs.values()
        count = len(images)
        whole = count * self.run_times[model] * (self.batches[count] if count > 1 else 1.0)
        self.now += whole if (model, count) in self.known_runs else 900.0
        self.known_runs.add((model, count))
        self.ran.append(model)
        self.rows.append((model, count))
        self.images.append(images)
        means = images.mean((1, 2, 3))
        return {"logits": np.stack([means, 2 * means, 3 * means], 1)}

    def segments_of(self, model: str) -> tuple[str, ...]:
        return ("s0",)

    def batch_limit(self, model: str) -> int:
        return max(self.batches, default=1)


@pytest.fixture
def bundle(bundle_folder: Path) -> Bundle:
    return open_bundle(bundle_folder / "bundle")


def measured(
    bundle: Bundle, device: Device, monkeypatch: pytest.MonkeyPatch, progress: Callable[[str], None] = lambda what: None
) -> Times:
    monkeypatch.setattr(module, "perf_counter", device.clock)
    monkeypatch.setattr(turn_times, "perf_counter", device.clock)
    return measure_times(bundle, cast(Backend, device), progress)


def test_what_a_segment_is_computed_from_is_loaded_before(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    device.segments, device.sources = {**device.segments, "d0": 300}, {"d0": ("s0", "s1")}
    device.load_times["d0"] = 7.0
    assert measured(bundle, device, monkeypatch).load == {"s0": 2.0, "s1": 3.0, "d0": 7.0}


def test_loads_are_those_after_an_eviction_and_runs_those_with_all_weights(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measured(bundle, Device(), monkeypatch)
    assert found.load == {"s0": 2.0, "s1": 3.0}
    assert found.run == {"a": {1: 10.0, 2: 20.0, 4: 40.0, 8: 80.0}, "b": {1: 20.0, 2: 40.0, 4: 80.0, 8: 160.0}}


def test_models_alternate_and_progress_is_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    device, told = Device(), list[str]()
    measured(bundle, device, monkeypatch, told.append)
    # Query c uses the model of a.
    assert told == ["segment s0", "segment s1", *["model a", "model b"] * ROUNDS]
    frames = 1 + sum(BATCHES)
    assert device.ran == (["a"] * frames + ["b"] * frames) * ROUNDS


def test_frames_of_a_turn_differ(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    measured(bundle, device, monkeypatch)
    last = device.images[-max(BATCHES) :]
    assert len({image.tobytes() for image in last}) == max(BATCHES)
    assert all(image.shape == (1, 3, 32, 32) and image.std() > 0.1 for image in last)


def test_a_slow_model_is_measured_less(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device({"a": 300.0, "b": 5000.0})
    found = measured(bundle, device, monkeypatch)
    # a stops after the first turn longer than a second: four frames. b stops after one frame.
    assert found.run == {"a": {1: 300.0, 2: 600.0, 4: 1200.0}, "b": {1: 5000.0}}
    assert device.ran.count("a") == 2 * (1 + 1 + 2 + 4)
    assert device.ran.count("b") == 1 + 1


def test_a_slow_segment_is_loaded_less(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    device, loads = Device(), list[str]()
    device.load_times = {"s0": 4000.0, "s1": 1.0}
    prefetch = device.prefetch

    def counted(load: Sequence[str], done: Callable[[], None]) -> None:
        loads.extend(load)
        prefetch(load, done=done)

    monkeypatch.setattr(device, "prefetch", counted)
    assert measured(bundle, device, monkeypatch).load == {"s0": 4000.0, "s1": 1.0}
    assert (loads.count("s0"), loads.count("s1")) == (2, 16)


def test_the_median_counts(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    run, turns = device.run, iter(range(10_000))

    def sometimes_slow(*given: Any) -> dict[str, NDArray[Any]]:
        # Slow in the whole first round.
        device.now += 70.0 if next(turns) < 2 * (1 + sum(BATCHES)) else 0.0
        return run(*given)

    monkeypatch.setattr(device, "run", sometimes_slow)
    assert measured(bundle, device, monkeypatch).run["a"][8] == 80.0


def test_a_segment_that_is_held(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    device.held = {"s1"}
    monkeypatch.setattr(device, "prefetch", lambda load, done: done())
    with pytest.raises(BackendError, match="segment s1: cannot be measured while a model holds it"):
        measured(bundle, device, monkeypatch)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("no boxes\nat all"), "model a: cannot be measured: no boxes$"),
        (BackendError("model a, stage main: refused"), "^model a, stage main: refused$"),
    ],
)
def test_a_model_that_fails_is_named(
    error: Exception, expected: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device()

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(device, "run", fail)
    with pytest.raises(BackendError, match=expected):
        measured(bundle, device, monkeypatch)


def batches_of(device: Device, model: str) -> list[int]:
    """Return the numbers of frames of a model's runs that had more than one frame."""
    return [count for name, count in device.rows if name == model and count > 1]


class TestBatches:
    def test_those_that_pay_are_used_and_their_times_count(
        self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        device = Device(batches={2: 0.9, 4: 0.98, 8: 0.5})
        found = measured(bundle, device, monkeypatch)
        assert found.as_batch == {"a": (2, 8), "b": (2, 8)}
        assert found.run["a"] == {1: 10.0, 2: 18.0, 4: 40.0, 8: 40.0}
        # Once untimed, then in each round.
        assert [batches_of(device, "a").count(size) for size in (2, 4, 8)] == [1 + ROUNDS] * 3

    def test_models_of_equal_programs_are_measured_as_batches_once(
        self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        device = Device(batches={2: 0.9, 4: 0.8, 8: 0.7})
        found = measured(bundle, device, monkeypatch)
        assert batches_of(device, "b") == []
        assert found.run["b"] == {1: 20.0, 2: 36.0, 4: 64.0, 8: 112.0}

    def test_models_of_other_programs_are_measured_on_their_own(
        self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        device = Device(batches={2: 0.9, 4: 0.8, 8: 0.7})
        # A model without segments has a private copy of its weights.
        monkeypatch.setattr(device, "segments_of", lambda model: ("s0",) if model == "a" else ())
        assert measured(bundle, device, monkeypatch).as_batch == {"a": (2, 4, 8), "b": (2, 4, 8)}
        assert batches_of(device, "a") == batches_of(device, "b") != []

    def test_they_are_tried_once_where_the_smallest_and_the_largest_save_nothing(
        self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        device = Device(batches={2: 0.98, 4: 0.5, 8: 1.1})
        found = measured(bundle, device, monkeypatch)
        assert found.as_batch == {}
        assert found.run["a"] == {1: 10.0, 2: 20.0, 4: 40.0, 8: 80.0}
        assert batches_of(device, "a") == [2, 2, 8, 8]

    def test_each_way_comes_first_in_every_second_round(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        device = Device({"a": 1.0, "b": 1.0}, {2: 0.5})
        monkeypatch.setattr(turn_times, "BATCHES", (1, 2))
        measured(bundle, device, monkeypatch)
        rows = [count for model, count in device.rows if model == "a"]
        # A turn of one frame, not timed and timed; in the first round, a batch is compared with single frames.
        first, batch_first, batch_last = [1, 1, 2, 1, 1, 1, 1, 2], [1, 1, 2, 1, 1], [1, 1, 1, 1, 2]
        assert rows == [*first, *batch_first, *batch_last, *batch_first, *batch_last]

    def test_no_larger_ones_are_tried_than_the_backend_runs(
        self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        device = Device(batches={2: 0.9, 4: 0.8, 5: 0.7})
        assert measured(bundle, device, monkeypatch).as_batch["a"] == (2, 4)

    def test_a_slow_model_is_not_measured_twice_as_long(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        device = Device({"a": 300.0, "b": 10.0}, {2: 1.0, 4: 1.0, 8: 1.0})
        assert measured(bundle, device, monkeypatch).as_batch == {}
        assert batches_of(device, "a") == [2, 2]

    def test_a_turn_that_is_long_only_one_by_one_is_measured(
        self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        device = Device({"a": 300.0, "b": 300.0}, {2: 0.5, 4: 0.25, 8: 0.2})
        found = measured(bundle, device, monkeypatch)
        assert found.run["a"] == {1: 300.0, 2: 300.0, 4: 300.0, 8: 480.0}

    @pytest.mark.parametrize("rows", ["mixed", "fewer", "refused"])
    def test_those_with_other_outputs_are_never_used(
        self, rows: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        device = Device(batches={2: 0.1, 4: 0.1, 8: 0.1})
        run = device.run

        def wrong(model: str, stage: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            found = run(model, stage, inputs)
            if len(found["logits"]) > 1 and rows == "refused":
                raise BackendError("too large")
            return {"logits": found["logits"][::-1] if rows == "mixed" else found["logits"][:1]}

        monkeypatch.setattr(device, "run", wrong)
        found = measured(bundle, device, monkeypatch)
        assert found.as_batch == {} and found.run["a"] == {1: 10.0, 2: 20.0, 4: 40.0, 8: 80.0}
        assert batches_of(device, "a") == [2]
        reason = {
            "mixed": "gives other values of output logits",
            "fewer": "fails: model a: output logits has no row for each of 2 frames",
            "refused": "fails: too large",
        }[rows]
        assert caplog.messages == [f"model a: its frames run one by one: a batch of 2 {reason}"]

    def test_a_model_that_takes_one_frame_is_not_tried(
        self, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = bundle_folder / "bundle" / MANIFEST
        document = json.loads(path.read_text())
        for model in document["models"].values():
            model["stages"]["main"]["outputs"][0]["shape"][0] = 1
        path.write_text(json.dumps(document))
        device = Device(batches={2: 0.1, 4: 0.1, 8: 0.1})
        assert measured(open_bundle(bundle_folder / "bundle"), device, monkeypatch).as_batch == {}
        assert batches_of(device, "a") == batches_of(device, "b") == []
