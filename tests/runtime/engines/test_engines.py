"""Tests of engines: built without a device, kept whole, and refused if they are not what was built."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from helpers import query, save, swap_for_a_link, swap_for_a_pipe
from host_device import HostDevice
from tiny_models import TinyDeterminant, tiny

from gemel.bundles.decode_specs import FasterRcnnDecode
from gemel.bundles.manifest import Manifest, Port
from gemel.bundles.program import read_model, split_model, with_constants
from gemel.bundles.reader import MANIFEST, Bundle, open_bundle
from gemel.compiler import compile_workload
from gemel.errors import BackendError, BundleError, InputError, install_hint
from gemel.runtime import device_cache as cache
from gemel.runtime.engines import store
from gemel.runtime.engines.build import build_engine
from gemel.runtime.engines.library import Library, find_library
from gemel.runtime.engines.record import ENGINES_RECORD, Engines, ModeChoice
from gemel.runtime.engines.store import build_engines, engines_for, engines_in, rows_of
from gemel.workload import Workload

TARGETS = ("sm86", "sm89")


@pytest.fixture
def rtx() -> Library:
    pytest.importorskip(
        "tensorrt_rtx", reason="TensorRT for RTX is not installed; there is none for this machine's CPU"
    )
    return find_library("tensorrt-rtx")


@pytest.fixture
def opened(bundle: Path) -> Bundle:
    return open_bundle(bundle)


@pytest.fixture
def built(rtx: Library, opened: Bundle) -> Engines:
    return build_engines(opened, rtx, TARGETS)


def test_one_engine_a_program(rtx: Library, opened: Bundle) -> None:
    told: list[tuple[str, int, int]] = []
    built = build_engines(opened, rtx, ("sm89", "sm86", "sm89"), lambda *what: told.append(what))
    assert told == [("a", 1, 1)]
    assert built.folder.parent == opened.path / "device-cache"
    assert (built.library, built.version, built.targets, built.device) == ("tensorrt-rtx", rtx.version, TARGETS, None)
    assert built.title == f"tensorrt-rtx {rtx.version} for sm86, sm89"
    assert built.engines.keys() == opened.manifest.programs.keys()
    stage = opened.manifest.models["a"].stages["main"]
    engine = built.engines[stage.program]
    assert built.path(stage.program).stat().st_size == engine.bytes == built.bytes
    assert engine.inputs == len(stage.weights) == 10
    assert engine.layers >= 4
    assert engine.seconds > 0
    # The engine holds none of the models' weights.
    weights = [opened.tensor(tensor).tobytes() for tensor in stage.weights]
    data = built.path(stage.program).read_bytes()
    assert not any(each in data for each in weights)


def test_engines_of_other_devices_are_bound(built: Engines, rtx: Library, opened: Bundle) -> None:
    """Engines built without a device have no measured mode. A device that finds them beside the bundle uses them."""
    assert [(spec.choice, spec.refit) for spec in built.engines.values()] == [(ModeChoice(why="not measured"), None)]
    device = HostDevice()
    device.target = "sm89"
    assert engines_for(opened, rtx, device) == built


def test_built_once(built: Engines, rtx: Library, opened: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "build_engine", lambda *_: pytest.fail("built again"))
    assert build_engines(opened, rtx, TARGETS) == build_engines(opened, rtx, TARGETS[::-1]) == built
    assert engines_in(opened) == [built]


def test_each_set_of_targets_has_its_folder(built: Engines, rtx: Library, opened: Bundle) -> None:
    other = build_engines(opened, rtx, ("sm120",))
    assert other.folder != built.folder
    assert sorted(engines_in(opened), key=lambda engines: engines.targets) == [other, built]


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [damage, cut, Path.unlink, swap_for_a_link, swap_for_a_pipe])
@pytest.mark.parametrize("suffix", [".engine", ".json"])
def test_bad_files(built: Engines, rtx: Library, opened: Bundle, harm: Callable[[Path], None], suffix: str) -> None:
    (file,) = (path for path in built.folder.iterdir() if path.suffix == suffix)
    before = {path.name for path in built.folder.iterdir()}
    harm(file)
    with pytest.raises(BundleError, match=rf"{file}: .*; delete its folder, engines are built again"):
        engines_in(opened)
    told: list[tuple[str, int, int]] = []
    again = build_engines(opened, rtx, TARGETS, lambda *what: told.append(what))
    assert told == [("a", 1, 1)]
    assert again.folder == built.folder
    assert {path.name for path in built.folder.iterdir()} == before
    assert engines_in(opened) == [again]
    assert [path.name for path in built.folder.parent.iterdir()] == [built.folder.name]


@pytest.mark.parametrize(
    "change",
    [
        {"bundle": "another"},
        {"engines": {}},
        {"engines": {"../a": {}}},
        {"targets": None},
    ],
)
def test_records_that_do_not_fit(built: Engines, opened: Bundle, change: dict[str, object]) -> None:
    record = built.folder / ENGINES_RECORD
    record.write_text(json.dumps({**json.loads(record.read_text()), **change}))
    with pytest.raises(BundleError, match=rf"{record}: (is damaged|these are not the engines of this bundle)"):
        engines_in(opened)


def test_engines_of_another_bundle(built: Engines, rtx: Library, opened: Bundle) -> None:
    manifest = opened.path / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "sla_ms": 99.0}))
    other = open_bundle(opened.path)
    assert other.manifest.programs.keys() == built.engines.keys()
    with pytest.raises(
        BundleError, match=rf"{built.folder}/{ENGINES_RECORD}: these are not the engines of this bundle"
    ):
        engines_in(other)
    shutil.rmtree(built.folder)
    assert [build_engines(other, rtx, TARGETS)] == engines_in(other)


def test_a_bundle_that_cannot_be_written(
    rtx: Library, opened: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "user_cache_path", lambda name: tmp_path / "cache" / name)
    # A file in place of the folder: permissions would not stop root.
    (opened.path / "device-cache").touch()
    built = build_engines(opened, rtx, TARGETS)
    assert built.folder.parent == tmp_path / "cache" / "gemel"
    assert engines_in(opened) == []
    assert build_engines(opened, rtx, TARGETS) == built


def test_a_damaged_bundle_is_not_built(rtx: Library, opened: Bundle) -> None:
    damage(opened.path / "b.onnx")
    with pytest.raises(BundleError, match=r"b\.onnx: content is damaged"):
        build_engines(opened, rtx, TARGETS)
    assert not (opened.path / "device-cache").exists()


@pytest.mark.parametrize("target", ["sm87", "sm90", "sm9000", "86", "", "current"])
def test_targets_that_cannot_be_built_here(rtx: Library, opened: Bundle, target: str) -> None:
    with pytest.raises(
        InputError,
        match=rf"target '{target}': tensorrt-rtx .* builds for sm75, .*; engines for other devices are built on the"
        " device, when gemel-run --backend tensorrt .*: leave the target out",
    ):
        build_engines(opened, rtx, ["sm86", target])
    assert not (opened.path / "device-cache").exists()


def test_tensorrt_builds_on_the_device_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("tensorrt")
    module.__version__ = "10.3.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    library = find_library("tensorrt")
    assert (library.version, library.targets) == ("10.3.0", ())
    library.check_targets([])
    with pytest.raises(
        InputError,
        match=r"target 'sm87': tensorrt 10\.3\.0 builds only for its own device; engines are built on the device",
    ):
        library.check_targets(["sm87"])


@pytest.mark.parametrize(
    ("backend", "module", "message"),
    [
        (
            "tensorrt-rtx",
            "tensorrt_rtx",
            f"tensorrt-rtx is not installed: {install_hint('tensorrt-rtx')}; --backend ort-cpu runs without",
        ),
        (
            "tensorrt",
            "tensorrt",
            f"tensorrt is not installed: {install_hint('tensorrt')} (on a Jetson it comes with JetPack); --backend"
            " ort-cpu runs without",
        ),
    ],
)
def test_no_library(monkeypatch: pytest.MonkeyPatch, backend: str, module: str, message: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendError) as caught:
        find_library(backend)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_package", "No module named 'no_such_package'"),
        ("raise OSError('libnvinfer.so.11: cannot open shared object file')", "libnvinfer.so.11: cannot open"),
    ],
)
def test_a_library_that_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    (tmp_path / "tensorrt.py").write_text(code)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendError, match=f"tensorrt: cannot be loaded: {message}"):
        find_library("tensorrt")


def test_a_program_that_is_refused(rtx: Library, tmp_path: Path, workload_in: Callable[..., Workload]) -> None:
    save(TinyDeterminant(), tmp_path / "d.safetensors")
    save(tiny(0), tmp_path / "a.safetensors")
    workload = workload_in(query("a"), query("d", "tiny_models:TinyDeterminant"))
    opened = open_bundle(compile_workload(workload, tmp_path / "bundle").path)
    with pytest.raises(BackendError) as caught:
        build_engines(opened, rtx, TARGETS)
    assert str(caught.value) == (
        f"model d, d.onnx: tensorrt-rtx {rtx.version} refuses it: operator Det, UNSUPPORTED_NODE: false"
    )
    assert list((opened.path / "device-cache").iterdir()) == []


def test_the_library_keeps_to_its_first_logger(rtx: Library, opened: Bundle) -> None:
    """Objects of the library keep its first logger alive, here through tracebacks; other loggers are told nothing."""
    stage = opened.manifest.models["a"].stages["main"]
    proto = split_model(read_model(opened.file(stage.file).read_bytes())).proto
    held = []
    for _ in range(2):
        with pytest.raises(BackendError, match=r"refuses it: .*no optimization profile") as caught:
            build_engine(rtx, proto, {}, TARGETS)  # the batch is free
        held.append(caught)
    assert find_library("tensorrt-rtx").logger() is rtx.logger()


def test_constants_are_found_beside_the_blob(rtx: Library, built: Engines, opened: Bundle) -> None:
    """Build as for a refitted engine, except for stripping the weights, which needs a device."""
    content = opened.manifest
    stage = content.models["a"].stages["main"]
    proto = split_model(read_model(opened.file(stage.file).read_bytes())).proto
    constant = with_constants(proto, content.blob, [content.tensors[tensor] for tensor in stage.weights])
    rows = rows_of(opened)[stage.program]
    made = build_engine(rtx, constant, rows, TARGETS, blob=opened.file(content.blob))
    largest = max((opened.tensor(tensor) for tensor in stage.weights), key=lambda each: each.nbytes)
    assert largest.tobytes() in made.data
    with pytest.raises(BackendError, match="refuses it"):
        build_engine(rtx, constant, rows, TARGETS, blob=opened.path / "elsewhere" / content.blob)


def test_rows(opened: Bundle) -> None:
    """A frame is one row, regions are as many as the detector proposes; a program of two models takes the larger."""
    content = opened.manifest
    (program,) = content.programs
    assert rows_of(opened) == {program: {"image": 1}}
    fixed = Port(name="features", dtype="float32", shape=(1, 8, 4, 4))
    rois = Port(name="rois", dtype="float32", shape=("rois", 4))
    main = content.models["a"].stages["main"]
    roi = main.model_copy(update={"program": "0" * 32, "inputs": (fixed, rois)})

    def detector(regions: int) -> object:
        decode = FasterRcnnDecode(classes=1, anchors=(), roi_levels=(), roi_scales=(), post_nms_topk=regions)
        return content.models["a"].model_copy(update={"decode": decode, "stages": {"main": main, "roi": roi}})

    for regions in ((300, 1000), (1000, 300)):
        models = dict(zip("ab", map(detector, regions), strict=True))
        changed: Manifest = content.model_copy(update={"models": models})
        assert rows_of(Bundle(opened.path, changed, "")) == {program: {"image": 1}, "0" * 32: {"rois": 1000}}
