"""Tests of refitted engines: when weights are copied, when the mode is chosen, and the memory that copies take."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import FakeTensorRt
from helpers import query, save
from on_devices import Device, add_stage, run
from onnx import TensorProto, helper, numpy_helper
from tiny_models import tiny

from gemel.bundles.manifest import TensorSpec
from gemel.bundles.program import read_model, split_model, with_constants
from gemel.bundles.reader import open_bundle
from gemel.check.contents.inspect import describe
from gemel.check.contents.inspect_tables import bundle_tables
from gemel.check.regression.baseline import baseline_of
from gemel.compiler import compile_workload
from gemel.errors import BackendError, BundleError
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.runtime.backends.tensorrt import TensorRt
from gemel.runtime.device import DeviceArray
from gemel.runtime.engines import choice, store
from gemel.runtime.engines.build import build_engine
from gemel.runtime.engines.choice import choose_mode
from gemel.runtime.engines.executables import EngineOpener
from gemel.runtime.engines.library import Library
from gemel.runtime.engines.record import ENGINES_RECORD, Engines, ModeChoice
from gemel.runtime.engines.store import engines_in
from gemel.workload import Workload

FASTER = {"bound": 2e-3, "refit": 1e-3, "swap": 1e-4}
"""Times at which constant weights are worth a private copy and a refit before every run."""
Open = Callable[..., tuple[TensorRt, FakeTensorRt]]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Return a function that opens the backend, with a library whose runs take set times; the fixture closes it."""
    made: list[TensorRt] = []

    def make(
        bundle: Path, seconds: Any = FASTER, device: Device | None = None, memory: str | int = "all", **options: Any
    ) -> tuple[TensorRt, FakeTensorRt]:
        device = device or Device()
        module = FakeTensorRt(device.streams, seconds=seconds, **options)
        monkeypatch.setattr(choice, "perf_counter", module.now)
        made.append(TensorRt(open_bundle(bundle), device, Library("tensorrt", module), memory=memory))
        return made[-1], module

    yield make
    for backend in made:
        backend.close()


@pytest.fixture
def alone(tmp_path: Path, workload_in: Callable[..., Workload]) -> Path:
    """Bundle of one model."""
    save(tiny(0), tmp_path / "a.safetensors")
    return compile_workload(workload_in(query("a")), tmp_path / "bundle").path


def answers(bundle: Path) -> dict[str, Any]:
    with OrtCpu(open_bundle(bundle)) as backend:
        return {model: run(backend, model) for model in backend._bundle.manifest.models}


def engines(bundle: Path) -> Engines:
    (found,) = engines_in(open_bundle(bundle))
    return found


def chosen(bundle: Path) -> ModeChoice:
    return next(spec.choice for spec in engines(bundle).engines.values() if spec.inputs)


def copied(bundle: Path) -> int:
    """Return the bytes of one model's weights."""
    content = open_bundle(bundle).manifest
    return sum(content.tensors[tensor].length for tensor in content.models["a"].stages["main"].weights)


@pytest.mark.parametrize("memory", ["all", "min"])
def test_two_models_take_turns_in_one_engine(opened: Open, bundle: Path, memory: str) -> None:
    expected = answers(bundle)
    backend, module = opened(bundle, memory=memory)
    assert module.flags == [set(), {"STRIP_PLAN", "REFIT"}]
    measured = module.refits
    for _ in range(3):
        for model in ("a", "b"):
            for _ in range(2):
                np.testing.assert_allclose(run(backend, model), expected[model], rtol=1e-4, atol=1e-6)
    assert module.refits - measured == 6
    assert len(backend._executables) == 1


def test_a_model_of_its_own_program_is_refitted_once(opened: Open, alone: Path) -> None:
    expected = answers(alone)
    backend, module = opened(alone, {**FASTER, "swap": 1.0})
    assert module.flags == [set(), {"STRIP_PLAN", "REFIT_IDENTICAL"}]
    measured = module.refits
    for _ in range(3):
        np.testing.assert_allclose(run(backend, "a"), expected["a"], rtol=1e-4, atol=1e-6)
    assert module.refits - measured == 1


def test_weights_that_have_moved_are_not_copied_again(opened: Open, bundle: Path) -> None:
    backend, module = opened(bundle)
    first, refits = run(backend, "a"), module.refits
    before = [backend.arena.place(segment) for segment in backend.segments_of("a")]
    backend.evict()
    # Loaded in another order, they lie elsewhere.
    backend.prefetch(list(reversed(list(backend.segments))))
    backend.activate("a")
    assert [backend.arena.place(segment) for segment in backend.segments_of("a")] != before
    np.testing.assert_array_equal(run(backend, "a"), first)
    assert module.refits == refits


@pytest.mark.parametrize(
    ("bound", "refit", "swap", "shared", "mode"),
    [
        (1.06, 1.0, 9.0, False, "refit"),
        (1.05, 1.0, 0.0, False, "bound"),
        (0.5, 1.0, 0.0, False, "bound"),
        (1.06, 1.0, 0.0, True, "refit"),
        (1.5, 1.0, 0.4, True, "refit"),
        (1.5, 1.0, 0.45, True, "bound"),
    ],
)
def test_what_is_chosen(bound: float, refit: float, swap: float, shared: bool, mode: str) -> None:
    found = choose_mode(bound, refit, swap, shared=shared)
    assert (found.mode, found.bound_ms, found.refit_ms, found.swap_ms) == (mode, bound, refit, swap)


@pytest.mark.parametrize(
    ("seconds", "mode"), [(FASTER, "refit"), ({**FASTER, "swap": 1e-3}, "bound"), ({**FASTER, "refit": 2e-3}, "bound")]
)
def test_the_choice_is_kept_and_shown(opened: Open, bundle: Path, seconds: dict[str, float], mode: str) -> None:
    opened(bundle, seconds)
    times = {f"{what}_ms": pytest.approx(value * 1e3) for what, value in seconds.items()}
    record = json.loads((engines(bundle).folder / ENGINES_RECORD).read_text())
    ((program, spec),) = record["engines"].items()
    assert spec["choice"] == {"mode": mode, **times, "why": ""}
    files = {path.name for path in engines(bundle).folder.glob("*.engine")}
    assert files == {f"{program}.engine", *([f"{program}.refit.engine"] if mode == "refit" else [])}
    assert engines(bundle).bytes == sum((engines(bundle).folder / name).stat().st_size for name in files)
    # The engines are kept: nothing is built or measured a second time.
    backend, module = opened(bundle, {"bound": 1.0, "refit": 1.0, "swap": 1.0})
    assert (module.built, module.now()) == (0, 0.0)
    run(backend, "a")
    assert (module.refits > 0) == (mode == "refit")
    figures = describe(open_bundle(bundle))
    (shown,) = figures["engines"][0]["programs"].values()
    assert {key: shown[key] for key in ("mode", "bound_ms", "refit_ms", "swap_ms")} == {"mode": mode, **times}
    (table,) = [
        each for each in bundle_tables(open_bundle(bundle), figures) if "engines" in str(getattr(each, "title", ""))
    ]
    text = [cell for column in table.columns for cell in column.cells]  # type: ignore[union-attr]
    assert mode in text
    assert str(chosen(bundle)) in text and "2 ms bound" in str(chosen(bundle))
    assert baseline_of(open_bundle(bundle)).engines[0].engines["a"]["main"].bytes == spec["bytes"]


def test_the_copy_is_part_of_the_budget(opened: Open, bundle: Path) -> None:
    backend, _ = opened(bundle)
    segments = sum(backend.segments.values())
    assert (backend.budget, backend.room) == (segments + copied(bundle), segments)
    assert backend.private_bytes == 0
    run(backend, "a")
    run(backend, "b")
    assert backend.private_bytes == copied(bundle)
    assert backend.stats.peak == segments + copied(bundle) == backend.budget


@pytest.mark.parametrize("spare", [0, 1])
def test_a_budget_without_room_for_the_copy_is_served(
    opened: Open, bundle: Path, caplog: pytest.LogCaptureFixture, spare: int
) -> None:
    expected = answers(bundle)
    least, _ = opened(bundle, memory="min")
    caplog.clear()
    memory = least.budget - 1 + spare
    with caplog.at_level(logging.WARNING):
        backend, module = opened(bundle, memory=memory)
    assert backend.budget == memory
    for model in ("a", "b"):
        np.testing.assert_allclose(run(backend, model), expected[model], rtol=1e-4, atol=1e-6)
    assert (module.refits == 0) == (spare == 0)
    assert backend.private_bytes == spare * copied(bundle)
    assert len(caplog.records) == 1 - spare
    if not spare:
        assert f"memory: {memory} has no room for {copied(bundle)} bytes of copies: 1 programs" in caplog.text


def test_a_device_without_room_for_the_copy_is_served(
    opened: Open, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(bundle)
    first, _ = opened(bundle)
    device = Device()
    monkeypatch.setattr(device, "memory", lambda: (first.budget - 1, first.budget))
    backend, module = opened(bundle, device=device)
    np.testing.assert_allclose(run(backend, "a"), expected["a"], rtol=1e-4, atol=1e-6)
    assert (module.refits, backend.private_bytes) == (0, 0)


def test_engines_are_built_while_the_device_is_empty(bundle: Path) -> None:
    device, free = Device(capacity=1 << 24), []
    library = Library("tensorrt", FakeTensorRt(device.streams, seconds=FASTER))
    with TensorRt(open_bundle(bundle), device, library, progress=lambda *_: free.append(device.memory()[0])) as backend:
        assert free == [1 << 24]
        # The memory that measuring took has been given back, too.
        assert device.memory()[0] == (1 << 24) - backend.room


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"renames": {"w3": "bn.bias"}}, "b.onnx: cannot be refitted: its engine has no weights of the name w3"),
        ({"wrong": 1e3}, "its outputs differ from the bound engine's: logits by 1e+03 of at most "),
        ({"wrong": float("nan")}, "its outputs differ from the bound engine's: logits by nan of at most "),
        ({"keeps": ["w1"]}, "its outputs differ from the bound engine's: logits by "),
        ({"seconds": None}, "tensorrt 10.3.0 refuses it: engines that can be refitted need a device"),
    ],
    ids=["names", "answers", "no number", "left in", "refused"],
)
def test_a_program_that_cannot_be_refitted_is_bound(
    opened: Open, bundle: Path, options: dict[str, Any], why: str
) -> None:
    expected = answers(bundle)
    backend, _ = opened(bundle, **options)
    np.testing.assert_allclose(run(backend, "b"), expected["b"], rtol=1e-4, atol=1e-6)
    assert backend.budget == sum(backend.segments.values())
    assert chosen(bundle).mode == "bound"
    assert str(chosen(bundle)).startswith(f"no refit engine: {why}")


def test_a_program_without_weights_has_no_choice(opened: Open, bundle: Path) -> None:
    add_stage(bundle)
    backend, module = opened(bundle)
    assert module.built == 3
    (wave,) = [spec for spec in engines(bundle).engines.values() if not spec.inputs]
    assert wave.choice == ModeChoice(why="no weights")
    values = np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 4)
    backend.activate("a")
    np.testing.assert_allclose(backend.run("a", "wave", {"x": values})["y"], np.sin(values), rtol=1e-5)


class TestScaled:
    """Tests on ``y = x * w * 3``: the 3 is a constant of the program, and a stripped engine lacks constants, too."""

    STAGE: Any = SimpleNamespace(file="s.onnx", weights=("t",), program="s")

    @pytest.fixture
    def proto(self) -> bytes:
        ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
        nodes = [helper.make_node("Mul", ["x", "weight"], ["z"]), helper.make_node("Mul", ["z", "three"], ["y"])]
        values = {"weight": np.arange(4, dtype=np.float32), "three": np.array([3], np.float32)}
        tensors = [numpy_helper.from_array(value, name) for name, value in values.items()]
        graph = helper.make_graph(nodes, "scaled", ports[:1], ports[1:], tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        return split_model(read_model(model.SerializeToString())).proto

    def open(self, proto: bytes, folder: Path, device: Device, **options: Any) -> Any:
        blob = folder / "weights.bin"
        np.arange(4, dtype=np.float32).tofile(blob)
        module = FakeTensorRt(device.streams, seconds=FASTER, **options)
        library = Library("tensorrt", module)
        place = TensorSpec(offset=0, length=16, dtype="float32", shape=(4,))
        constant = with_constants(proto, blob.name, [place])
        built = build_engine(library, constant, {}, blob=blob, flags=("STRIP_PLAN", "REFIT"))
        return EngineOpener(library, device, device.stream()).refitted(built.data, self.STAGE, proto)

    def test_constants_are_filled_in(self, proto: bytes, tmp_path: Path) -> None:
        device = Device()
        engine = self.open(proto, tmp_path, device)
        address, x = device.allocate(16), device.allocate(16)
        values, stream = np.array([1, 2, 3, 4], np.float32), engine._opener.stream
        device.upload(address, values, stream)
        device.upload(x, values, stream)
        engine.bind(("t",), [DeviceArray(address, values.dtype, (4,))])
        found = engine.run({"x": DeviceArray(x, values.dtype, (1, 4))})
        np.testing.assert_array_equal(found["y"], [3 * values * values])
        device.close()

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [("w0", "kernel", "its engine has no weights of the name w0"), ("c0", "bias", "its engine asks for bias, ")],
    )
    def test_other_names(self, proto: bytes, tmp_path: Path, old: str, new: str, message: str) -> None:
        device = Device()
        with pytest.raises(BackendError, match=f"s.onnx: cannot be refitted: {message}"):
            self.open(proto, tmp_path, device, renames={old: new})
        device.close()

    @pytest.mark.parametrize(("dtype", "shape"), [(np.float64, (4,)), (np.float32, (5,))])
    def test_weights_of_another_kind(self, proto: bytes, tmp_path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
        device = Device()
        engine = self.open(proto, tmp_path, device)
        with pytest.raises(BackendError, match=r"s\.onnx: cannot be refitted: its engine does not take weights w0"):
            engine.bind(("t",), [DeviceArray(device.allocate(64), np.dtype(dtype), shape)])
        device.close()


class TestRecords:
    def test_of_an_older_layout_are_built_again(
        self, opened: Open, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(store, "_LAYOUT", "1")
            opened(bundle)
        self.change(bundle, choice=None, refit=None)
        assert chosen(bundle) == ModeChoice(why="not measured")
        assert opened(bundle)[1].built == 2

    def test_that_contradict_themselves_are_damaged(self, opened: Open, bundle: Path) -> None:
        opened(bundle)
        self.change(bundle, refit=None)
        with pytest.raises(BundleError, match="is damaged"):
            engines_in(open_bundle(bundle))
        assert opened(bundle)[1].built == 2

    def change(self, bundle: Path, **changes: Any) -> None:
        """Change fields of the engines' record; None removes a field."""
        (record,) = (bundle / "device-cache").glob(f"*/{ENGINES_RECORD}")
        content = json.loads(record.read_text())
        for program, spec in content["engines"].items():
            left = {key: value for key, value in {**spec, **changes}.items() if value is not None}
            content["engines"][program] = left
        record.write_text(json.dumps(content))

    def test_a_damaged_engine_is_built_again(self, opened: Open, bundle: Path) -> None:
        opened(bundle)
        (file,) = engines(bundle).folder.glob("*.refit.engine")
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(BundleError, match=f"{file.name}: content is damaged"):
            engines_in(open_bundle(bundle))
        assert opened(bundle)[1].built == 2

    def test_what_cannot_be_used_is_built_anew_in_the_mode_that_it_gets_now(
        self, opened: Open, bundle: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        expected = answers(bundle)
        for seconds in (FASTER, {**FASTER, "refit": 1.0}):
            backend, module = opened(bundle, FASTER)
            # The library refuses the engines, although their record fits.
            module.__version__, module.seconds = f"{module.__version__}+1", seconds
            np.testing.assert_allclose(run(backend, "a"), expected["a"], rtol=1e-4, atol=1e-6)
            (spec,) = backend._engines.engines.values()
            assert spec.choice.mode == ("refit" if seconds is FASTER else "bound")
            assert backend.private_bytes == (copied(bundle) if seconds is FASTER else 0)
            assert "built anew" in caplog.text
            caplog.clear()
