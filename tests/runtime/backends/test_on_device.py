"""Tests of the backends whose weights lie on a device, on the host double."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import FakeTensorRt
from on_devices import IMAGES, Device, add_stage, run

from gemel.bundles.reader import Bundle, open_bundle
from gemel.check.contents.inspect import describe
from gemel.check.regression.baseline import baseline_of
from gemel.errors import BackendError, InputError
from gemel.runtime.backends import device_frames
from gemel.runtime.backends.on_device import OnDevice
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.runtime.backends.ort_cuda import OrtCuda
from gemel.runtime.backends.tensorrt import TensorRt
from gemel.runtime.engines.library import Library
from gemel.runtime.memory.loading import WARM, Loading
from gemel.runtime.run import RunOptions, run_bundle

Open = Callable[..., OnDevice]


@pytest.fixture(params=["ort-cuda", "tensorrt"])
def opened(request: pytest.FixtureRequest) -> Iterator[Open]:
    """Return a function that opens the backend; the fixture closes all of them."""
    made: list[OnDevice] = []

    def make(bundle: Bundle, device: Device | None = None, *, memory: str | int = "all", **options: Any) -> OnDevice:
        device = device or Device()
        if request.param == "ort-cuda":
            made.append(OrtCuda(bundle, device, memory=memory, **options))
        else:
            library = Library("tensorrt", options.pop("module", None) or FakeTensorRt(device.streams))
            made.append(TensorRt(bundle, device, library, memory=memory, **options))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


@pytest.fixture
def expected(bundle: Path) -> dict[str, Any]:
    with OrtCpu(open_bundle(bundle)) as backend:
        return {model: run(backend, model) for model in ("a", "b")}


@pytest.mark.parametrize("memory", ["all", "min"])
@pytest.mark.parametrize("unified", [False, True])
def test_answers_are_those_of_the_cpu(
    opened: Open, bundle: Path, expected: dict[str, Any], memory: str, unified: bool
) -> None:
    backend = opened(open_bundle(bundle), Device(unified=unified), memory=memory)
    for _ in range(3):
        for model, outputs in expected.items():
            np.testing.assert_allclose(run(backend, model), outputs, rtol=1e-4, atol=1e-6)
    assert backend.arena.resident <= backend.budget


def test_the_device_holds_one_copy_of_what_is_shared(opened: Open, bundle: Path) -> None:
    device = Device(capacity=1 << 24)
    backend = opened(open_bundle(bundle), device)
    free, _ = device.memory()
    segments = sum(backend.segments.values())
    # Only the arena was allocated so far: each segment once, in units of 256 bytes.
    assert (1 << 24) - free == segments
    content = open_bundle(bundle).manifest
    assert segments < sum(model.bytes for model in content.models.values())


def test_programs_and_their_activations_are_there_once(opened: Open, bundle: Path) -> None:
    device = Device(capacity=1 << 24)
    backend = opened(open_bundle(bundle), device)
    run(backend, "a")
    free, _ = device.memory()
    run(backend, "b", IMAGES[:1] + 1)
    assert device.memory()[0] == free - IMAGES[:1].nbytes, "a second model of a program takes memory for its frame only"


def test_a_frame_is_uploaded_once_for_all_its_queries(opened: Open, bundle: Path) -> None:
    device = Device()
    backend = opened(open_bundle(bundle), device)
    frame = IMAGES[:1].copy()
    first = run(backend, "a", frame)
    run(backend, "b", frame)
    np.testing.assert_array_equal(run(backend, "a", frame), first)
    assert device.uploads.count(frame.nbytes) == 1
    assert not np.allclose(run(backend, "a", frame + 1), first)
    assert device.uploads.count(frame.nbytes) == 2


def test_batches_do_not_pile_up_and_leave_frames_where_they_are(opened: Open, bundle: Path) -> None:
    device = Device(capacity=1 << 24)
    backend = opened(open_bundle(bundle), device)
    frame = IMAGES[:1].copy()
    first = run(backend, "a", frame)
    taken = []
    for _ in range(2 * device_frames._FRAMES):
        np.testing.assert_allclose(run(backend, "a", IMAGES.copy())[:1], first, rtol=1e-4, atol=1e-6)
        taken.append(device.memory()[0])
    assert len(set(taken)) == 1
    device.uploads.clear()
    np.testing.assert_array_equal(run(backend, "a", frame), first)
    assert device.uploads == []


def test_frames_do_not_pile_up(opened: Open, bundle: Path) -> None:
    device = Device(capacity=1 << 24)
    backend = opened(open_bundle(bundle), device)
    first = run(backend, "a", IMAGES[:1].copy())
    taken = []
    for _ in range(3 * device_frames._FRAMES):
        np.testing.assert_array_equal(run(backend, "a", IMAGES[:1].copy()), first)
        taken.append(device.memory()[0])
    assert len(set(taken[device_frames._FRAMES :])) == 1


def test_weights_are_bound_anew_where_they_have_moved(opened: Open, bundle: Path, expected: dict[str, Any]) -> None:
    backend = opened(open_bundle(bundle))
    run(backend, "a")
    before = [backend.arena.place(segment) for segment in backend.segments_of("a")]
    backend.evict()
    # Loaded in another order, they lie elsewhere.
    backend.prefetch(list(reversed(list(backend.segments))))
    backend.activate("a")
    assert [backend.arena.place(segment) for segment in backend.segments_of("a")] != before
    np.testing.assert_allclose(backend.run("a", "main", {"image": IMAGES[:1]})["logits"], expected["a"], rtol=1e-4)


def test_nothing_is_bound_that_is_bound_already(opened: Open, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = opened(open_bundle(bundle))
    run(backend, "a")
    (executable,) = backend._executables.values()
    bound: list[Any] = []
    monkeypatch.setattr(executable, "bind", lambda tensors, weights: bound.append(tensors))
    run(backend, "a")
    assert not bound
    run(backend, "b")
    assert bound == [backend._bundle.manifest.models["b"].stages["main"].weights]


def test_a_model_that_is_not_active_is_not_run(opened: Open, bundle: Path) -> None:
    backend = opened(open_bundle(bundle))
    with pytest.raises(BackendError, match="not active"):
        backend.run("a", "main", {"image": IMAGES[:1]})


def test_a_wrong_frame_is_one_line_and_the_next_one_is_answered(
    opened: Open, bundle: Path, expected: dict[str, Any]
) -> None:
    backend = opened(open_bundle(bundle))
    with pytest.raises(BackendError) as caught:
        run(backend, "a", np.zeros((1, 3, 8), np.float32))
    assert "\n" not in str(caught.value)
    np.testing.assert_allclose(run(backend, "a"), expected["a"], rtol=1e-4, atol=1e-6)


def test_what_does_not_fit_on_the_device_fails_and_the_rest_goes_on(
    opened: Open, bundle: Path, expected: dict[str, Any]
) -> None:
    content = open_bundle(bundle)
    device = Device(capacity=sum(512 + spec.length for spec in content.manifest.segments.values()) + (1 << 15))
    backend = opened(content, device)
    with pytest.raises(BackendError, match="bytes are asked for"):
        run(backend, "a", np.zeros((64, 3, 32, 32), np.float32))
    np.testing.assert_allclose(run(backend, "a"), expected["a"], rtol=1e-4, atol=1e-6)


def test_old_frames_make_room_for_new_ones(opened: Open, bundle: Path, expected: dict[str, Any]) -> None:
    content = open_bundle(bundle)
    weights = sum(512 + spec.length for spec in content.manifest.segments.values())
    # Beside the weights there is room for one frame, activations and answers, and not for two frames.
    backend = opened(content, Device(capacity=weights + IMAGES[:1].nbytes + 8192))
    for _ in range(3):
        np.testing.assert_allclose(run(backend, "a", IMAGES[:1].copy()), expected["a"], rtol=1e-4, atol=1e-6)


def test_a_frame_that_did_not_come_is_not_there(
    opened: Open, bundle: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(capacity=1 << 24)
    backend = opened(open_bundle(bundle), device)
    run(backend, "a")
    free = device.memory()[0]

    def fails(*arguments: Any) -> None:
        raise BackendError("no upload")

    frame = IMAGES[1:2].copy()
    with monkeypatch.context() as patch:
        patch.setattr(device, "upload", fails)
        with pytest.raises(BackendError, match="no upload"):
            run(backend, "a", frame)
    assert device.memory()[0] == free
    again = run(backend, "a", frame)
    np.testing.assert_array_equal(again, run(backend, "a", frame.copy()))
    assert not np.allclose(again, expected["a"])


def test_a_device_without_room_for_the_weights(opened: Open, bundle: Path) -> None:
    with pytest.raises(BackendError, match="bytes are asked for, and 64 of 64 are free"):
        opened(open_bundle(bundle), Device(capacity=64))
    with pytest.raises(InputError, match="largest model"):
        opened(open_bundle(bundle), memory=1)


def test_everything_is_given_back(opened: Open, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(capacity=1 << 24)
    left: list[int] = []
    close = device.close

    def closing() -> None:
        left.append(device.memory()[0])
        close()

    monkeypatch.setattr(device, "close", closing)
    backend = opened(open_bundle(bundle), device)
    run(backend, "a")
    run(backend, "b")
    backend.close()
    assert left[:1] == [1 << 24]


@pytest.mark.parametrize("loading", [WARM, Loading(cold=True)])
def test_a_run_of_a_bundle(
    opened: Open, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loading: Loading
) -> None:
    def stand_in(bundle: Bundle, name: str | None = None, **options: Any) -> OnDevice:
        return opened(bundle, memory=options["memory"], loading=options["loading"])

    monkeypatch.setattr("gemel.runtime.loop.deployment.open_backend", stand_in)
    outcome = run_bundle(open_bundle(bundle), RunOptions(memory="min", frames=12, offline=True, loading=loading))
    assert not outcome.failures
    assert {name: stats.processed for name, stats in outcome.run.queries.items()} == {"a": 12, "b": 12, "c": 12}
    assert outcome.memory.peak <= (outcome.memory.budget or 0)


class TestEngines:
    def open(self, bundle: Path, device: Device, module: FakeTensorRt) -> TensorRt:
        return TensorRt(open_bundle(bundle), device, Library("tensorrt", module))

    def test_are_built_once(self, bundle: Path, expected: dict[str, Any]) -> None:
        for built in (1, 0):
            device = Device()
            module = FakeTensorRt(device.streams)
            with self.open(bundle, device, module) as backend:
                np.testing.assert_allclose(run(backend, "b"), expected["b"], rtol=1e-4, atol=1e-6)
            assert module.built == built

    def test_get_the_memory_of_old_frames(self, bundle: Path, expected: dict[str, Any]) -> None:
        first, more = IMAGES[:1].copy(), np.repeat(IMAGES[:1], 3, axis=0)
        device = Device(capacity=1 << 24)
        with self.open(bundle, device, FakeTensorRt(device.streams)) as backend:
            run(backend, "a", first)
            taken = (1 << 24) - device.memory()[0]
        # There is memory for both frames, but not for the outputs of two more images.
        device = Device(capacity=taken + more.nbytes)
        with self.open(bundle, device, FakeTensorRt(device.streams)) as backend:
            run(backend, "a", first)
            device.uploads.clear()
            for model in ("a", "b"):
                answers = np.repeat(expected[model], 3, axis=0)
                np.testing.assert_allclose(run(backend, model, more), answers, rtol=1e-4, atol=1e-6)
            # The first upload was for a run that found too little memory. Models do not share a batch.
            assert device.uploads.count(more.nbytes) == 3

    def test_without_room_for_activations_are_one_line(self, bundle: Path) -> None:
        device = Device(capacity=1 << 24)
        with self.open(bundle, device, FakeTensorRt(device.streams)) as backend:
            weights = (1 << 24) - device.memory()[0]
            assert weights == backend.room
        device = Device(capacity=weights + IMAGES[:1].nbytes)
        with (
            self.open(bundle, device, FakeTensorRt(device.streams)) as backend,
            pytest.raises(BackendError, match=r"^host: 4096 bytes are asked for, and 0 of \d+ are free$"),
        ):
            run(backend, "a")

    def test_that_are_deleted_meanwhile_fail_their_queries_and_not_the_run(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stand_in(opened: Bundle, name: str | None = None, **options: Any) -> OnDevice:
            device = Device()
            backend = self.open(bundle, device, FakeTensorRt(device.streams))
            shutil.rmtree(backend.folder)
            return backend

        monkeypatch.setattr("gemel.runtime.loop.deployment.open_backend", stand_in)
        outcome = run_bundle(open_bundle(bundle), RunOptions(frames=2, offline=True))
        assert set(outcome.run.queries) == {"a", "b", "c"}
        for stats in outcome.run.queries.values():
            assert "cannot be opened: [Errno 2] No such file or directory" in str(stats.last_error)

    def test_of_another_version_or_card_are_not_taken(self, bundle: Path) -> None:
        for version, card in (("10.3.0", "host"), ("10.4.0", "host"), ("10.4.0", "another")):
            device = Device()
            device.name = card
            module = FakeTensorRt(device.streams, version)
            self.open(bundle, device, module).close()
            assert module.built == 1

    def test_that_cannot_be_used_are_built_anew(
        self, bundle: Path, expected: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        device = Device()
        self.open(bundle, device, FakeTensorRt(device.streams)).close()
        device = Device()
        module = FakeTensorRt(device.streams)
        with self.open(bundle, device, module) as backend:
            # The library refuses the engines, although their record fits.
            module.__version__ = "10.3.0+1"
            np.testing.assert_allclose(run(backend, "a"), expected["a"], rtol=1e-4, atol=1e-6)
        assert module.built == 1
        assert "built anew" in caplog.text

    def test_a_stage_without_weights_that_is_refused_runs_on_the_cpu(
        self, bundle: Path, expected: dict[str, Any]
    ) -> None:
        add_stage(bundle)
        device = Device()
        module = FakeTensorRt(device.streams, refuses=("Sin",))
        values = np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 4)
        with self.open(bundle, device, module) as backend:
            np.testing.assert_allclose(run(backend, "a"), expected["a"], rtol=1e-4, atol=1e-6)
            backend.activate("a")
            np.testing.assert_allclose(backend.run("a", "wave", {"x": values})["y"], np.sin(values), rtol=1e-5)
            with pytest.raises(BackendError, match="model a, stage wave: "):
                backend.run("a", "wave", {"x": values.astype(np.float64)})
        (engines,) = describe(open_bundle(bundle))["engines"]
        (refused,) = engines["refused"].values()
        assert refused["models"] == ["a/wave"]
        assert len(baseline_of(open_bundle(bundle)).engines[0].engines["a"]) == 1

    def test_a_program_with_weights_that_is_refused_is_an_error(self, bundle: Path) -> None:
        device = Device()
        with pytest.raises(BackendError, match=r"model a, a.onnx: tensorrt 10.3.0 refuses it"):
            self.open(bundle, device, FakeTensorRt(device.streams, refuses=("Conv",)))

    def test_that_are_never_any_good_are_one_line(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        device = Device()
        module = FakeTensorRt(device.streams)
        with self.open(bundle, device, module) as backend:
            monkeypatch.setattr(backend, "_opened", lambda stage: None)
            with pytest.raises(BackendError, match=r"onnx: tensorrt 10.3.0 refuses it"):
                backend.activate("a")
            with pytest.raises(BackendError, match="not active"):
                backend.run("a", "main", {})
