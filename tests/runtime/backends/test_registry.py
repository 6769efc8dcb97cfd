"""Tests of the registry: backends are found by name, and none is imported before it is opened."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from fake_tensorrt import FakeTensorRt
from on_devices import Device, run

from gemel.bundles.reader import open_bundle
from gemel.errors import BackendError, InputError
from gemel.runtime import backends
from gemel.runtime.backends import BACKENDS, check_backend, open_backend, registry, tensorrt
from gemel.runtime.backends.auto_cpu import AutoCpu
from gemel.runtime.backends.openvino import OpenVino, OpenVinoFast
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.runtime.backends.ort_cuda import OrtCuda
from gemel.runtime.backends.ort_sessions import OrtSessions
from gemel.runtime.backends.protocol import BackendOpener
from gemel.runtime.backends.tensorrt import TensorRt
from gemel.runtime.device import cuda
from gemel.runtime.engines.library import Library
from gemel.runtime.memory.loading import Loading

# The annotation has mypy check each class against the protocol; the registry finds them by name.
CLASSES: tuple[BackendOpener, ...] = (
    OrtCpu, AutoCpu, OpenVino, OpenVinoFast, OrtCuda, OrtSessions, TensorRt
)  # fmt: skip
ON_OPENVINO = ("auto-cpu", "openvino", "openvino-fast")
HAS_OPENVINO = find_spec("openvino") is not None
HEAVY = (
    "av",
    "cv2",
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "pycuda",
    "pydantic",
    "tensorrt",
    "tensorrt_rtx",
    "torch",
)


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = (
        "import sys, gemel.runtime.backends as face\n"
        "face.Backend, face.BACKENDS, face.check_backend, face.open_backend\n"
        "own = sorted(name for name in sys.modules if name.startswith('gemel.runtime.backends.'))\n"
        f"print([name for name in {HEAVY} if name in sys.modules], own)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[] ['gemel.runtime.backends.protocol', 'gemel.runtime.backends.registry']\n"


def test_every_name_has_a_class_that_opens() -> None:
    assert {registry._find(name) for name in BACKENDS} == set(CLASSES)
    for name in BACKENDS:
        check_backend(name)


def test_public_names() -> None:
    assert backends.__all__ == ["BACKENDS", "Backend", "check_backend", "open_backend"]
    assert all(hasattr(backends, name) for name in backends.__all__)


def test_an_unknown_backend(bundle: Path) -> None:
    message = (
        "backend 'abacus' is not available; this version has: ort-cpu, auto-cpu, ort-cuda, tensorrt, tensorrt-rtx, op"
    )
    with pytest.raises(InputError, match=message):
        check_backend("abacus")
    with pytest.raises(InputError, match=message):
        open_backend(open_bundle(bundle), "abacus")


def test_a_memory_setting_that_is_not_allowed(bundle: Path) -> None:
    with pytest.raises(InputError, match="memory: 'much' is not allowed: bytes such as 64MiB"):
        open_backend(open_bundle(bundle), memory="much")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.skipif(name in ON_OPENVINO and not HAS_OPENVINO, reason="no openvino"))
        for name in BACKENDS
    ],
)
def test_options_reach_every_backend(name: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    monkeypatch.setattr(cuda, "CudaDevice", lambda: device)
    monkeypatch.setattr(tensorrt, "find_library", lambda name: Library(name, FakeTensorRt(device.streams)))
    prepared: list[str] = []
    loading = Loading(cold=True)
    with open_backend(
        open_bundle(bundle), name, memory="min", threads=3, loading=loading, progress=prepared.append
    ) as backend:
        assert (backend.name, backend.threads, backend.loading) == (name, 3, loading)
        assert backend.room < sum(backend.segments.values())
        for model in ("a", "b"):
            assert run(backend, model).shape == (1, 3)
    assert set(prepared) <= {"a", "b"}
    assert bool(prepared) == (name in ("ort-cpu", "tensorrt", "tensorrt-rtx", *ON_OPENVINO))


def test_a_card_is_closed_where_the_backend_cannot_be_opened(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device, closed = Device(capacity=64), list[bool]()
    monkeypatch.setattr(cuda, "CudaDevice", lambda: device)
    monkeypatch.setattr(device, "close", lambda: closed.append(True))
    with pytest.raises(BackendError, match="bytes are asked for, and 64 of 64 are free"):
        open_backend(open_bundle(bundle), "ort-cuda")
    assert closed == [True]


@pytest.mark.parametrize("name", ["ort-cuda", "tensorrt", "tensorrt-rtx"])
def test_what_is_missing_is_said(name: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pycuda", "pycuda.driver", "tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendError, match=r"pip install '.*ort-cpu") as caught:
        open_backend(open_bundle(bundle), name)
    assert "\n" not in str(caught.value)
