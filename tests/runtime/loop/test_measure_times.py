"""Measured times include the right work, on a device whose clock moves only when it works."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from gemel.bundles.reader import Bundle, open_bundle
from gemel.errors import BackendError
from gemel.runtime.backends import Backend
from gemel.runtime.loop import measure_times as module
from gemel.runtime.loop.measure_times import BATCHES, ROUNDS, Times, measure_times


class Device:
    """A backend that holds the weights of one model at a time; all times are in milliseconds."""

    segments: Mapping[str, int] = {"s0": 100, "s1": 200}

    def __init__(self, run: Mapping[str, float] | None = None) -> None:
        self.now = 0.0
        self.run_times = run or {"a": 10.0, "b": 20.0}
        self.load_times = {"s0": 2.0, "s1": 3.0}
        self.resident: set[str] = set()
        self.held: set[str] = set()
        self.known: set[str] = set()
        self.active = ""
        self.ran: list[str] = []
        self.images: list[NDArray[Any]] = []

    def clock(self) -> float:
        return self.now / 1e3

    def evict(self) -> None:
        self.resident = set(self.held)

    def loaded(self, segments: Sequence[str]) -> bool:
        return self.resident >= set(segments)

    def prefetch(self, load: Sequence[str], evict: Sequence[str] = (), done: Callable[[], None] = lambda: None) -> None:
        assert not self.resident
        (name,) = load
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
        self.now += self.run_times[model] if model in self.ran else 900.0
        self.ran.append(model)
        self.images.append(next(iter(inputs.values())))
        return {"logits": np.zeros((1, 3), np.float32)}


@pytest.fixture
def bundle(bundle_folder: Path) -> Bundle:
    return open_bundle(bundle_folder / "bundle")


def measured(
    bundle: Bundle, device: Device, monkeypatch: pytest.MonkeyPatch, progress: Callable[[str], None] = lambda what: None
) -> Times:
    monkeypatch.setattr(module, "perf_counter", device.clock)
    return measure_times(bundle, cast(Backend, device), progress)


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
