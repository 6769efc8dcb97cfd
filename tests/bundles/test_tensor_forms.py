"""Forms of tensors in a delta: exact ones give the same bits, and rounded changes are defined to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gemel.bundles import tensor_forms
from gemel.bundles.manifest import TensorSpec
from gemel.bundles.rounded_changes import add_change, round_change, rounding_error
from gemel.bundles.tensor_forms import TensorForm, encode_tensor, encoded_size, fits_form, restore_tensor

RNG = np.random.default_rng(0)


def spec_of(array: NDArray[Any]) -> TensorSpec:
    return TensorSpec(offset=0, length=array.nbytes, dtype=array.dtype.name, shape=array.shape)


def there_and_back(form: TensorForm, new: NDArray[Any], old: NDArray[Any]) -> tuple[bytes, NDArray[Any]]:
    """Return a tensor in a form, and what the form is restored to."""

    def reader(array: NDArray[Any]) -> Any:
        data = array.tobytes()
        return lambda at, size: data[at : at + size]

    spec = spec_of(new)
    packed = b"".join(encode_tensor(spec, form, reader(new), reader(old)))
    left = memoryview(packed)

    def read(size: int) -> bytes:
        nonlocal left
        piece, left = bytes(left[:size]), left[size:]
        assert len(piece) == size
        return piece

    made = b"".join(restore_tensor(spec, form, read, reader(old)))
    assert not left
    assert len(packed) == encoded_size(spec, form)
    return packed, np.frombuffer(made, new.dtype).reshape(new.shape)


@pytest.mark.parametrize("form", ["plain", "bits"])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (0, 4), (300,)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8", "uint8", "int64", "bool"])
def test_exact_forms(form: TensorForm, shape: tuple[int, ...], dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_forms, "_BLOCK", 64)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    new, old = (
        (RNG.integers(0, 2 if dtype == "bool" else 256, size, dtype=np.uint8)).view(dtype).reshape(shape)
        for _ in range(2)
    )
    assert there_and_back(form, new, old)[1].tobytes() == new.tobytes()


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 3, 3), (1, 100), (100, 1), (5, 40)])
def test_rounded_changes_are_defined_to_the_bit(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    old = RNG.normal(size=shape).astype(np.float32)
    new = (old + RNG.normal(size=shape) * 0.01).astype(np.float32)
    monkeypatch.setattr(tensor_forms, "_BLOCK", 64)
    made = there_and_back("steps", new, old)[1]
    steps, scale = round_change(old, new)
    # Two roundings, each to the nearest float32, as IEEE 754 defines them.
    product = (steps.astype(np.float64) * scale.reshape(-1, *[1] * (old.ndim - 1))).astype(np.float32)
    assert made.tobytes() == (old.astype(np.float64) + product).astype(np.float32).tobytes()
    assert made.tobytes() == add_change(old, steps, scale.reshape(-1, *[1] * (old.ndim - 1))).tobytes()
    assert np.abs(made - new).max() <= scale.max() * 0.51
    assert rounding_error(old, new) < 1e-3


def test_changes_without_size() -> None:
    old = RNG.normal(size=(3, 4)).astype(np.float32)
    steps, scale = round_change(old, old)
    assert not steps.any()
    assert not scale.any()
    assert there_and_back("steps", old, old)[1].tobytes() == old.tobytes()
    assert rounding_error(old, np.full_like(old, np.nan)) == float("inf")
    assert rounding_error(old, np.zeros_like(old)) == float("inf")


def test_what_fits() -> None:
    kernel = spec_of(np.zeros((4, 3), np.float32))
    assert fits_form(kernel, "steps", kernel)
    assert not fits_form(kernel, "steps", spec_of(np.zeros((3, 4), np.float32)))
    for other in (np.zeros(12, np.float32), np.zeros((4, 3), np.float16), np.zeros((0, 3), np.float32)):
        assert not fits_form(spec_of(other), "steps", spec_of(other))
    assert not fits_form(kernel, "bits", spec_of(np.zeros((4, 3), np.int32)))
    assert fits_form(spec_of(np.zeros(3, np.int64)), "bits", spec_of(np.zeros(3, np.int64)))
    many = TensorSpec(offset=0, length=8 << 20, dtype="float32", shape=((1 << 20) + 1, 2))
    assert not fits_form(many, "steps", many)
