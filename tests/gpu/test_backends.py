"""Tests of the backends on a card: outputs of models, the memory that they take, and that it is given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from engines_coverage import CONVERTERS, frames_for
from model_coverage import CASES, Case, bundle_of

from gemel.bundles.manifest import Precision
from gemel.bundles.reader import open_bundle
from gemel.check.source.numerics import compare_with_source
from gemel.errors import BackendError
from gemel.runtime.backends import open_backend
from gemel.runtime.backends.on_device import OnDevice
from gemel.runtime.engines import choice
from gemel.runtime.engines.library import LIBRARIES
from gemel.runtime.engines.store import engines_in

pytestmark = pytest.mark.gpu

MIB = 1 << 20
IMAGE = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)


@pytest.fixture(params=["ort-cuda", "tensorrt", "tensorrt-rtx"])
def name(request: pytest.FixtureRequest, bundle: Path) -> str:
    """Name of a backend that can be opened on this machine."""
    try:
        open_backend(open_bundle(bundle), request.param).close()
    except BackendError as error:
        # Skip a backend that is not installed, but not one that is broken.
        if "not installed" in str(error) or "has no CUDA" in str(error):
            pytest.skip(str(error))
        raise
    return str(request.param)


@pytest.fixture
def backend(name: str, bundle: Path) -> Iterator[OnDevice]:
    with open_backend(open_bundle(bundle), name, memory="min") as opened:
        assert isinstance(opened, OnDevice)
        yield opened


@pytest.fixture
def refitting(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a backend whose engines are refitted wherever they can be, faster or not."""
    if name not in LIBRARIES:
        pytest.skip(f"{name} has no engines")
    monkeypatch.setattr(choice, "_WORTH", 0.0)
    return name


def run(backend: OnDevice, model: str) -> np.ndarray:
    """Swap a model in, run it on the image, release it, and return its logits."""
    backend.activate(model)
    try:
        return backend.run(model, "main", {"image": IMAGE})["logits"]
    finally:
        backend.release(model)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_answers_of_every_architecture(case: Case, name: str, tmp_path: Path) -> None:
    workload, bundle, _ = bundle_of(case, tmp_path)
    for found in compare_with_source(bundle, workload, rtol=1e-2, atol=1e-4, backend=name):
        assert found.passed, f"{case.name}: relative difference {found.relative:.1e}"


def test_models_take_turns_in_the_least_memory(backend: OnDevice, bundle: Path) -> None:
    with open_backend(open_bundle(bundle), "ort-cpu") as cpu:
        for _ in range(3):
            for model in ("a", "b"):
                cpu.activate(model)
                expected = cpu.run(model, "main", {"image": IMAGE})["logits"]
                np.testing.assert_allclose(run(backend, model), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refitted_answers_of_every_architecture(case: Case, refitting: str, tmp_path: Path) -> None:
    workload, bundle, _ = bundle_of(case, tmp_path)
    for found in compare_with_source(bundle, workload, rtol=1e-2, atol=1e-4, backend=refitting):
        assert found.passed, f"{case.name}: relative difference {found.relative:.1e}"
    (engines,) = engines_in(bundle)
    reasons = [spec.choice.why for spec in engines.engines.values() if spec.inputs and spec.refit is None]
    if reasons:
        pytest.skip(f"answered with bound weights: {reasons[0]}")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_narrow_answers_of_every_architecture(case: Case, precision: Precision, name: str, tmp_path: Path) -> None:
    """Compare with the CPU, which computes with the same weights in float32, or in int8 that saturates less."""
    _, bundle, _ = bundle_of(case, tmp_path, CONVERTERS[precision])
    spec = bundle.manifest.models["a"]
    inputs = {spec.stages["main"].inputs[0].name: frames_for(spec.input)[0]}
    with open_backend(bundle, name) as card, open_backend(bundle, "ort-cpu") as cpu:
        card.activate("a")
        cpu.activate("a")
        found, expected = (each.run("a", "main", inputs) for each in (card, cpu))
    for output, wanted in expected.items():
        noise = np.linalg.norm(found[output] - wanted) / np.linalg.norm(wanted)
        assert noise <= (0.02 if precision == "fp16" else 0.2), f"{output}: {noise:.3f} of its length"


@pytest.mark.parametrize("memory", ["min", "all"])
def test_models_take_turns_in_one_refitted_engine(refitting: str, bundle: Path, memory: str) -> None:
    opened = open_bundle(bundle)
    with open_backend(opened, "ort-cpu") as cpu, open_backend(opened, refitting, memory=memory) as backend:
        assert isinstance(backend, OnDevice)
        (engines,) = engines_in(opened)
        (spec,) = engines.engines.values()
        assert spec.refit is not None, spec.choice.why
        for _ in range(3):
            for model in ("a", "b"):
                cpu.activate(model)
                expected = cpu.run(model, "main", {"image": IMAGE})["logits"]
                np.testing.assert_allclose(run(backend, model), expected, rtol=1e-2, atol=1e-3)
        assert backend.private_bytes > 0
        before = backend.device.memory()[0]
        for number in range(1000):
            run(backend, "ab"[number % 2])
        assert backend.device.memory()[0] >= before


def test_swapping_takes_no_memory(backend: OnDevice) -> None:
    for model in ("a", "b") * 3:
        run(backend, model)
    before = backend.device.memory()[0]
    for number in range(10_000):
        run(backend, "ab"[number % 2])
    assert backend.device.memory()[0] >= before


def test_a_card_that_is_full_is_an_error_and_the_rest_goes_on(name: str, bundle: Path) -> None:
    with open_backend(open_bundle(bundle), name) as opened:
        assert isinstance(opened, OnDevice)
        run(opened, "a")
        device, taken = opened.device, []
        for size in (256 * MIB, 16 * MIB, MIB):
            with suppress(BackendError):
                while True:
                    taken.append(device.allocate(size))
        with pytest.raises(BackendError, match="bytes are asked for"):
            device.allocate(64 * MIB)
        for address in taken:
            device.free(address)
        run(opened, "b")
