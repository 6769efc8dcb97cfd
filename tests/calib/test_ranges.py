"""Ranges follow from the frames by each method, and frames that tell nothing about a value are refused by its name."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
from precision_cases import Array, drawn, frames, run

from gemel.calib import ranges
from gemel.calib.ranges import METHODS, Method, peaks_of
from gemel.errors import CalibrationError

SIZE = (3, 8, 8)
NODES = "x = Conv(image, k)\n r = Relu(x)\n out = Neg(r)"


@pytest.fixture
def model() -> ir.Model:
    made = drawn(NODES, SIZE, k=np.random.default_rng(0).normal(0, 1, (4, 3, 3, 3)).astype(np.float32))
    made.graph.name = "gate"
    return made


def test_min_max_is_the_largest_absolute_value_of_any_frame(model: ir.Model) -> None:
    images = frames(5, SIZE)
    found = peaks_of(model, ["image", "x", "r", "out"], images, "min-max")
    kernel = model.graph.initializers["k"].const_value
    assert kernel is not None
    negative = drawn(NODES, SIZE, ("x", "r"), k=kernel.numpy())
    x, r = zip(*(run(negative, image) for image in images), strict=True)
    assert min(map(np.min, x)) < -max(map(np.max, x)) or max(map(np.max, x)) > 0
    assert found == {
        "image": pytest.approx(np.abs(images).max(), rel=1e-6),
        "x": pytest.approx(np.abs(x).max(), rel=1e-6),
        "r": pytest.approx(np.max(r), rel=1e-6),
        "out": pytest.approx(np.max(r), rel=1e-6),
    }


def outlier() -> list[Array]:
    """Return normally distributed frames, with one pixel far outside."""
    images = frames(4, (3, 64, 64))
    images[2][0, 1, 30, 30] = 100
    return images


@pytest.mark.parametrize(
    ("method", "least", "most"),
    # ONNX Runtime's entropy method has as many bins as steps, so it can choose only the whole range.
    [("min-max", 100, 100), ("entropy", 99, 101), ("percentile", 3, 100)],
)
def test_what_lies_far_outside(method: Method, least: float, most: float) -> None:
    model = drawn("out = Neg(image)", (3, 64, 64))
    found = peaks_of(model, ["image"], outlier(), method)
    assert least <= found["image"] <= most


def test_percentile_leaves_out_one_value_in_a_hundred_thousand() -> None:
    """One pixel of 400,000 does not count, ten pixels do."""
    model = drawn("out = Neg(image)", (1, 200, 200))
    images = [np.random.default_rng(seed).uniform(-1, 1, (1, 1, 200, 200)).astype(np.float32) for seed in range(10)]
    images[3][0, 0, 5, 5] = 3
    assert peaks_of(model, ["image"], images, "percentile")["image"] < 1.1
    images[3][0, 0, 5:15, 5] = 3
    assert peaks_of(model, ["image"], images, "percentile")["image"] > 2.9


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_every_value_a_range_above_0(model: ir.Model, method: Method) -> None:
    names = ["image", "x", "r", "out"]
    found = peaks_of(model, names, frames(3, SIZE), method)
    assert list(found) == names
    assert all(0 < peak < 100 for peak in found.values())
    assert found == peaks_of(model, names, frames(3, SIZE), method)


def test_frames_a_few_at_a_time_give_what_all_at_once_give(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    images = frames(9, SIZE)
    found = []
    for at_once in (1, 4, 9):
        monkeypatch.setattr(ranges, "_AT_ONCE", at_once)
        found.append(peaks_of(model, ["image", "x", "r"], images, "min-max"))
    assert found[0] == found[1] == found[2]
    assert found[0] == peaks_of(model, ["image", "x", "r"], images[::-1], "min-max")


def test_the_model_is_not_changed(model: ir.Model) -> None:
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    peaks_of(model, ["x"], frames(1, SIZE), "min-max")
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("method", METHODS)
def test_the_empty_region_of_a_resize_is_not_measured(method: Method) -> None:
    nodes = """region = Constant<value = float[0] {}>()
 scales = Constant<value = float[4] {1, 1, 2, 2}>()
 x = Relu(image)
 out = Resize(x, region, scales)"""
    assert set(peaks_of(drawn(nodes, SIZE), ["x"], frames(6, SIZE), method)) == {"x"}


def test_nothing_is_printed(model: ir.Model, capfd: pytest.CaptureFixture[str]) -> None:
    for method in METHODS:
        peaks_of(model, ["x"], frames(2, SIZE), method)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "model gate: there are no frames to calibrate on"),
        (frames(1, (3, 8, 9)), "model gate: a frame to calibrate on is [1, 3, 8, 9], its input is [1, 3, 8, 8]"),
        ([np.zeros((2, 3, 8, 8), np.float32)], "model gate: a frame to calibrate on is [2, 3, 8, 8]"),
        ([np.zeros((1, 3, 8, 8), np.float32)] * 3, "model gate: image is 0 all over the 3 frames"),
    ],
)
def test_frames_that_do_not_fit(model: ir.Model, method: Method, images: list[Array], message: str) -> None:
    with pytest.raises(CalibrationError, match=re.escape(message)):
        peaks_of(model, ["image", "x"], images, method)


@pytest.mark.parametrize("method", METHODS)
def test_a_dead_layer_is_named(method: Method) -> None:
    """The activation of a dead layer is 0 on all frames, so there is no scale for it."""
    model = drawn(
        "x = Conv(image, k, b)\n out = Relu(x)",
        SIZE,
        k=np.zeros((1, 3, 1, 1), np.float32),
        b=np.array([-1], np.float32),
    )
    model.graph.name = "gate"
    with pytest.raises(CalibrationError, match="model gate: out is 0 all over the 2 frames") as caught:
        peaks_of(model, ["image", "out"], frames(2, SIZE), method)
    assert "precision: fp32" in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named(model: ir.Model, method: Method, value: float) -> None:
    images = frames(3, SIZE)
    images[1][0, 0, 4, 4] = value
    with pytest.raises(CalibrationError, match=r"model gate: image is not finite on the frames"):
        peaks_of(model, ["image", "x"], images, method)


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_makes_what_is_not_finite_is_named(method: Method) -> None:
    """Relu and Clip may hide a value that is not finite from later layers."""
    kernel = np.full((1, 3, 1, 1), 3e38, np.float32)
    model = drawn("x = Conv(image, k)\n s = Sub(x, x)\n out = Relu(s)", SIZE, k=kernel)
    model.graph.name = "gate"
    images = [np.full((1, *SIZE), value, np.float32) for value in (0.1, 2)]
    with pytest.raises(CalibrationError, match=r"model gate: s is not finite on the frames"):
        peaks_of(model, ["image", "s"], images, method)


def test_what_percentile_cuts_off_altogether_keeps_its_range() -> None:
    model = drawn("out = Neg(image)", (1, 400, 400))
    images = [np.zeros((1, 1, 400, 400), np.float32) for _ in range(4)]
    images[1][0, 0, 3, 3] = 2
    assert peaks_of(model, ["image"], images, "percentile")["image"] > 0
