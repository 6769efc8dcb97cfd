"""Tests of the ort-cuda backend on the host double: bindings, and what it asks of a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from on_devices import Device, run

from gemel.bundles.reader import Bundle, open_bundle
from gemel.errors import BackendError
from gemel.runtime.backends import ort_cuda
from gemel.runtime.backends.ort_cuda import OrtCuda
from gemel.runtime.device.cuda import CudaDevice


def with_a_twin(bundle: Path) -> Bundle:
    """Open a bundle with one more model, ``twin``, that has the tensors of model ``a``."""
    opened = open_bundle(bundle)
    models = {**opened.manifest.models, "twin": opened.manifest.models["a"]}
    return Bundle(opened.path, opened.manifest.model_copy(update={"models": models}), opened.id)


def test_models_with_the_same_tensors_share_a_binding(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with OrtCuda(with_a_twin(bundle), Device()) as backend:
        expected = {model: run(backend, model) for model in ("a", "b", "twin")}
        np.testing.assert_array_equal(expected["twin"], expected["a"])
        (session,) = backend._executables.values()
        assert isinstance(session, ort_cuda._Session)
        taken: list[str] = []
        take = session._take

        def watched(binding: Any, name: str, array: Any) -> None:
            taken.append(name)
            take(binding, name, array)

        monkeypatch.setattr(session, "_take", watched)
        for model in ("a", "twin", "b", "twin", "a", "b"):
            np.testing.assert_array_equal(run(backend, model), expected[model])
        assert taken == ["image"] * 6, "a switch binds the frame and no weights"
        # Weights that have moved are bound again, once for both models.
        taken.clear()
        backend.evict()
        backend.prefetch(list(reversed(list(backend.segments))))
        for model in ("a", "twin", "a"):
            np.testing.assert_array_equal(run(backend, model), expected[model])
        weights = backend._bundle.manifest.models["a"].stages["main"].weights
        assert len(taken) == len(weights) + 3


def test_a_provider_that_onnxruntime_does_not_have(bundle: Path) -> None:
    device = Device()
    device.ort_provider = CudaDevice.ort_provider
    if device.ort_provider in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(BackendError, match=r"ort-cuda: this onnxruntime \(.*\) has no CUDA: .*--backend ort-cpu"):
        OrtCuda(open_bundle(bundle), device)
    device.close()


@pytest.mark.parametrize("shared", [False, True])
def test_activations_are_shared_where_the_device_says_so(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    device, asked = Device(), list[str]()

    def share(provider: str) -> bool:
        asked.append(provider)
        return True

    entries: list[tuple[str, str]] = []
    add = ort.SessionOptions.add_session_config_entry

    def watched(self: Any, key: str, value: str) -> None:
        entries.append((key, value))
        add(self, key, value)

    monkeypatch.setattr(ort_cuda, "_share_activations", share)
    monkeypatch.setattr(ort.SessionOptions, "add_session_config_entry", watched)
    device.ort_shares_activations = shared
    with OrtCuda(open_bundle(bundle), device) as backend:
        run(backend, "a")
    assert asked == (["CPUExecutionProvider"] if shared else [])
    assert ("session.use_env_allocators", "1" if shared else "0") in entries
