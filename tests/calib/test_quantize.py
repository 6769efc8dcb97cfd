"""INT8: layers and activations are rounded, shared kernels stay one tensor, and the rest of a graph does not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from precision_cases import APART, Array, apart, drawn, frames, initializer, kinds, lowered, noise, run, shapes
from tiny_models import tiny
from torch import Tensor, nn

from gemel.bundles.blob import tensor_id
from gemel.calib.layers import quantizable_layers
from gemel.calib.quantize import int8_kernel, observed, quantize
from gemel.calib.ranges import peaks_of


def quantized(model: ir.Model, images: list[Array], keep: frozenset[str] = frozenset()) -> ir.Model:
    made = model.clone()
    quantize(made, peaks_of(model, observed(model), images, "min-max"), keep)
    return made


def reader(model: ir.Model, name: str) -> ir.Node:
    """Return the DequantizeLinear that reads a kernel."""
    (use,) = model.graph.initializers[name].uses()
    assert use.node.op_type == "DequantizeLinear"
    return use.node


def scale_of(node: ir.Node) -> NDArray[Any]:
    value = node.inputs[1]
    assert value is not None
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())


def near(found: Array, wanted: Array, part: float = 0.05) -> bool:
    """Return whether values differ, because something was rounded, by less than a part of the largest wanted value."""
    return 0 < float(np.abs(found - wanted).max()) < part * float(np.abs(wanted).max())


# Kernels.


@pytest.mark.parametrize(("shape", "axis"), [((8, 3, 3, 3), 0), ((4, 6, 2, 2), 1), ((5, 7), 0), ((5, 7), 1)])
def test_a_kernel_is_rounded_to_the_nearest_of_127_steps_of_each_channel(shape: tuple[int, ...], axis: int) -> None:
    kernel = noise(*shape) * np.arange(1, shape[axis] + 1).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    kernel = kernel.astype(np.float32)
    values, scale = int8_kernel(kernel, axis)
    assert (values.dtype.name, values.shape) == ("int8", shape)
    assert (scale.dtype.name, scale.shape) == ("float32", (shape[axis],))
    for index in range(shape[axis]):
        channel, rounded = kernel.take(index, axis), values.take(index, axis)
        assert np.abs(rounded.astype(int)).max() == 127
        np.testing.assert_allclose(scale[index] * 127, np.abs(channel).max(), rtol=1e-6)
        error = np.abs(rounded.astype(np.float64) * scale[index] - channel)
        assert error.max() <= scale[index] / 2 * (1 + 1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-41])
def test_a_dead_channel_becomes_zeros_with_a_scale_above_0(size: float) -> None:
    """Weight decay leaves numbers so small that a 127th of them is 0 in float32."""
    kernel = noise(4, 3, 3, 3)
    kernel[1] = np.float32(size)
    kernel[1, 0] = 0
    with np.errstate(all="raise", under="ignore"):
        values, scale = int8_kernel(kernel, 0)
    assert not values[1].any()
    assert (scale > np.finfo(np.float32).tiny).all()
    assert values[0].any()


def test_equal_kernels_are_rounded_to_equal_bytes_however_they_lie_in_memory() -> None:
    kernel = noise(6, 5, 3, 3)
    found = [int8_kernel(each, 0) for each in (kernel, np.asfortranarray(kernel), np.stack([kernel] * 2, -1)[..., 0])]
    assert len({tensor_id(np.ascontiguousarray(values)) for values, _ in found}) == 1
    assert len({scale.tobytes() for _, scale in found}) == 1


# Layers.


@pytest.mark.parametrize(
    ("operation", "kernel", "axis"),
    [
        ("Conv <pads=[1,1,1,1]> (image, k)", (6, 4, 3, 3), 0),
        ("Conv <group=4> (image, k)", (4, 1, 3, 3), 0),
        ("ConvTranspose <strides=[2,2]> (image, k)", (4, 6, 2, 2), 1),
        ("Gemm (flat, k)", (256, 5), 1),
        ("Gemm <transB=1> (flat, k)", (5, 256), 0),
        ("MatMul (flat, k)", (256, 5), 1),
        ("MatMul (image, k)", (8, 5), 1),
    ],
)
def test_every_kind_of_layer_is_near_its_float32_self(operation: str, kernel: tuple[int, ...], axis: int) -> None:
    model, images = (
        drawn(f"flat = Flatten(image)\n out = {operation}", (4, 8, 8), k=noise(*kernel)),
        frames(size=(4, 8, 8)),
    )
    found = quantized(model, images)
    assert near(run(found, images[0])[0], run(model, images[0])[0])
    assert reader(found, "k").attributes.get_int("axis") == axis
    assert scale_of(reader(found, "k")).shape == (kernel[axis],)
    assert initializer(found, "k").dtype == np.int8


# Graphs of the compiler.


@pytest.fixture(scope="module")
def pair() -> dict[str, ir.Model]:
    """Return two models with equal kernels and own BatchNorms, after all passes."""
    first = tiny(0)
    return {each.name: each.stages["main"] for each in lowered({"a": first, "b": tiny(1, kernels_of=first)})}


def test_a_model_is_near_its_float32_self(pair: dict[str, ir.Model]) -> None:
    images = frames(8)
    for model in pair.values():
        found = quantized(model, images)
        for image in images:
            assert near(run(found, image)[0], run(model, image)[0])
    batch = np.concatenate(images)
    np.testing.assert_allclose(run(found, batch)[0], np.concatenate([run(found, image)[0] for image in images]), 1e-5)


def test_kernels_that_models_share_have_equal_bytes_and_own_scales(pair: dict[str, ir.Model]) -> None:
    images = frames()
    first, second = (quantized(model, images) for model in pair.values())
    for name in ("stem.weight", "pointwise.weight", "head.weight"):
        assert initializer(first, name).dtype == np.int8
        assert tensor_id(initializer(first, name)) == tensor_id(initializer(second, name))
    for name in ("stem.weight", "pointwise.weight"):
        assert not np.isclose(scale_of(reader(first, name)), scale_of(reader(second, name))).any()
    # No BatchNorm lies between a layer and its activation any more.
    assert kinds(first) == ["Conv", "Relu", "Conv", "Clip", "Conv", "Relu", "ReduceMean", "Gemm"]
    assert not [name for name in first.graph.initializers if "norm" in name and name.endswith("weight")]


def test_the_factors_of_a_batch_norm_become_part_of_the_scale() -> None:
    gamma = np.array([0.5, 1, 2, 3, 0.1, 7], np.float32)
    model = apart(gamma)
    found = quantized(model, frames(size=(4, 8, 8)))
    _, scale = int8_kernel(np.asarray(initializer(model, "k"), np.float32), 0)
    np.testing.assert_array_equal(scale_of(reader(found, "k")), scale * gamma)
    assert kinds(found) == ["Conv", "Relu"]
    assert "gamma" not in found.graph.initializers
    conv = next(node for node in found.graph if node.op_type == "Conv")
    assert [value.name for value in conv.inputs[2:] if value is not None] == ["beta"]


@pytest.mark.parametrize("factor", [0.0, -1.5])
def test_a_batch_norm_with_another_factor_stays_apart(factor: float) -> None:
    model = apart(np.array([0.5, 1, factor, 2, 0.7, 1.5]))
    images = frames(size=(4, 8, 8))
    found = quantized(model, images)
    assert kinds(found) == ["Conv", "Conv", "Relu"]
    # The kernel of the BatchNorm has one number per channel, which is 127 or -127 steps: rounding is exact.
    values, scale = initializer(found, "gamma"), scale_of(reader(found, "gamma"))
    assert set(np.abs(values).reshape(-1).tolist()) <= {127, 0}
    np.testing.assert_allclose(values.reshape(-1) * scale, initializer(model, "gamma").reshape(-1), rtol=1e-6)
    assert (scale > 0).all()
    assert near(run(found, images[0])[0], run(model, images[0])[0])


def test_kept_layers_stay_float32_with_their_batch_norms(pair: dict[str, ir.Model]) -> None:
    images = frames()
    found = quantized(pair["a"], images, frozenset({"stem.weight"}))
    for name in ("stem.weight", "norm1.weight", "norm1.bias"):
        np.testing.assert_array_equal(initializer(found, name), initializer(pair["a"], name))
    assert kinds(found)[:3] == ["Conv", "Conv", "Relu"]
    stem = next(found.graph[index] for index in range(3) if found.graph[index].op_type == "Conv")
    assert [value.name for value in stem.inputs if value is not None] == ["image", "stem.weight"]
    assert initializer(found, "pointwise.weight").dtype == np.int8


def test_with_all_layers_kept_a_graph_is_as_it_was(pair: dict[str, ir.Model]) -> None:
    images = frames()
    found = quantized(pair["a"], images, frozenset(layer.name for layer in quantizable_layers(pair["a"])))
    assert ir.to_proto(found).SerializeToString(deterministic=True) == ir.to_proto(pair["a"]).SerializeToString(
        deterministic=True
    )


def test_a_clone_is_made_int8_and_the_graph_itself_is_not(pair: dict[str, ir.Model]) -> None:
    """A clone shares the objects that describe types with its graph."""
    before = ir.to_proto(pair["a"]).SerializeToString(deterministic=True)
    found = quantized(pair["a"], frames())
    assert ir.to_proto(pair["a"]).SerializeToString(deterministic=True) == before
    assert ir.to_proto(found).SerializeToString(deterministic=True) != before


class Twice(nn.Module):
    """A model with one convolution in two places, each with its own BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, stride=4, padding=1, bias=False)
        self.conv = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(64), nn.BatchNorm2d(64)
        self.head = nn.Linear(64, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.stem(image))
        x = torch.relu(self.norm1(self.conv(x)))
        x = torch.relu(self.norm2(self.conv(x)))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


def test_a_kernel_in_two_places_of_a_model_is_one_tensor_with_two_scales() -> None:
    torch.manual_seed(0)
    module = Twice()
    nn.init.uniform_(module.norm2.weight, 0.5, 2)
    (model,) = lowered({"a": module.eval()})
    images = frames()
    assert [layer.name for layer in quantizable_layers(model.stages["main"])].count("conv.weight") == 2
    found = quantized(model.stages["main"], images)
    readers = [use.node for use in found.graph.initializers["conv.weight"].uses()]
    assert [node.op_type for node in readers] == ["DequantizeLinear"] * 2
    first, second = map(scale_of, readers)
    assert not np.isclose(first, second).any()
    assert sum(name.endswith("weight") for name, (kind, _) in shapes(found).items() if kind == "int8") == 3
    assert near(run(found, images[0])[0], run(model.stages["main"], images[0])[0])


# Activations.


def roundings(model: ir.Model) -> dict[str, NDArray[Any]]:
    """Return rounded value -> its scale, and check every QuantizeLinear with its DequantizeLinear."""
    found = {}
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            value, _, zero = node.inputs
            assert value is not None
            assert zero is not None
            (use,) = node.outputs[0].uses()
            assert use.node.op_type == "DequantizeLinear"
            # QuantizeLinear and DequantizeLinear have the same scale and zero point.
            assert use.node.inputs[1:] == node.inputs[1:]
            assert zero.const_value is not None
            point = zero.const_value.numpy()
            assert (point.dtype.name, point.shape, int(point)) == ("int8", (), 0)
            found[str(value.name)] = scale_of(node)
    return found


def test_what_layers_take_and_give_is_rounded_once_behind_its_activation(pair: dict[str, ir.Model]) -> None:
    model, images = pair["a"], frames()
    found = roundings(quantized(model, images))
    names = [node.outputs[0].name for node in model.graph if node.op_type in ("Relu", "Clip", "ReduceMean")]
    assert list(found) == ["image", *names]
    peaks = peaks_of(model, observed(model), images, "min-max")
    for name, scale in found.items():
        assert (scale.dtype.name, scale.shape) == ("float32", ())
        assert scale == np.float32(peaks[name] / 127)


def test_values_that_are_only_moved_have_the_scale_of_where_they_come_from() -> None:
    text = """
        x = Conv(image, k)
        r = Relu(x)
        m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
        f = Flatten(m)
        s = Sigmoid(f)
        h = Gemm(f, w)
        out = Add(h, s)
    """
    model = drawn(text, (4, 6, 6), k=noise(2, 4, 3, 3), w=noise(8, 8))
    images = frames(size=(4, 6, 6))
    assert observed(model) == ["image", "r", "h"]
    found = quantized(model, images)
    scales = roundings(found)
    assert list(scales) == ["image", "r", "f", "h"]
    assert scales["f"] == scales["r"] != scales["h"]
    assert near(run(found, images[0])[0], run(model, images[0])[0])


def test_outputs_keep_their_names_and_are_rounded_only_for_those_who_read_them() -> None:
    text = "x = Conv(image, k)\n seen = Relu(x)\n flat = Flatten(seen)\n last = Gemm(flat, w)"
    model = drawn(text, (4, 8, 8), ("seen", "last"), k=noise(2, 4, 3, 3), w=noise(72, 5))
    images = frames(size=(4, 8, 8))
    found = quantized(model, images)
    assert [port.name for port in found.graph.outputs] == ["seen", "last"]
    assert list(roundings(found)) == ["image", "seen", "flat"]
    seen, last = run(found, images[0], "seen", "last")
    step = roundings(found)["seen"]
    assert np.abs(seen / step - np.rint(seen / step)).max() > 0.1
    assert near(last, run(model, images[0])[1])


def test_an_output_behind_an_absorbed_batch_norm_keeps_its_name() -> None:
    model = apart(text="x = Conv(image, k)\n out = Conv<group=6, kernel_shape=[1,1]>(x, gamma, beta)")
    images = frames(size=(4, 8, 8))
    found = quantized(model, images)
    assert (kinds(found), [port.name for port in found.graph.outputs]) == (["Conv"], ["out"])
    assert list(roundings(found)) == ["image"]
    assert near(run(found, images[0])[0], run(model, images[0])[0])


def test_what_an_absorbed_batch_norm_gives_has_its_own_range() -> None:
    """The convolution's own range is smaller, by the factors of the BatchNorm."""
    text = f"{APART.replace('out', 'r')}\n out = Conv(r, k2)"
    model = apart(np.full(6, 9.0, np.float32), text, k2=noise(2, 6, 1, 1))
    images = frames(size=(4, 8, 8))
    peaks = peaks_of(model, observed(model), images, "min-max")
    found = roundings(quantized(model, images))
    assert set(peaks) == {"image", "x", "r", "out"}
    assert found["r"] == np.float32(peaks["r"] / 127)
    assert peaks["r"] > 5 * peaks["x"]


def test_a_model_without_layers_stays_as_it_is() -> None:
    model = drawn("out = Relu(image)", (4,))
    assert observed(model) == []
    before = ir.to_proto(model).SerializeToString()
    quantize(model, {})
    assert ir.to_proto(model).SerializeToString() == before


def test_types_of_what_is_made_are_those_of_onnx() -> None:
    """Readers of the file need no type inference."""
    model = quantized(apart(), frames(size=(4, 8, 8)))
    for node in model.graph:
        for value in node.outputs:
            wanted = ir.DataType.INT8 if node.op_type == "QuantizeLinear" else ir.DataType.FLOAT
            assert value.dtype == wanted, value.name
            assert value.shape is not None
