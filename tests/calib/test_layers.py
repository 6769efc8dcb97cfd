"""Convolutions and matrix products with a constant kernel are layers; BatchNorms that they keep apart are not."""

from __future__ import annotations

import numpy as np
import pytest
from precision_cases import APART, apart, drawn, noise

from gemel.calib.layers import quantizable_layers


@pytest.mark.parametrize(
    ("operation", "kernel", "axis"),
    [
        ("Conv <pads=[1,1,1,1]> (image, k)", (6, 4, 3, 3), 0),
        ("Conv <group=4> (image, k)", (4, 1, 3, 3), 0),
        ("ConvTranspose <strides=[2,2]> (image, k)", (4, 6, 2, 2), 1),
        ("ConvTranspose <group=2> (image, k)", (4, 3, 2, 2), None),
        ("Gemm (flat, k)", (256, 5), 1),
        ("Gemm <transB=1> (flat, k)", (5, 256), 0),
        ("Gemm <transA=1> (turned, k)", (256, 5), None),
        ("MatMul (flat, k)", (256, 5), 1),
        ("MatMul (image, k)", (8, 5), 1),
        ("MatMul (image, k)", (4, 8, 5), None),
        ("MatMul (k, image)", (5, 8), None),
        ("Mul (image, k)", (1, 8), None),
    ],
)
def test_convolutions_and_matrix_products_with_a_constant_kernel_are_layers(
    operation: str, kernel: tuple[int, ...], axis: int | None
) -> None:
    text = "flat = Flatten(image)\n turned = Transpose<perm=[1,0]>(flat)\n out = " + operation
    model = drawn(text, (4, 8, 8), k=noise(*kernel))
    assert [(layer.name, layer.axis, layer.taken.name) for layer in quantizable_layers(model)] == (
        [] if axis is None else [("k", axis, operation.split("(")[1].split(",")[0])]
    )


def test_what_something_else_reads_too_is_no_layer() -> None:
    text = "x = Conv(image, k)\n y = Mul(x, k)\n out = Conv(y, k2)"
    model = drawn(text, (1, 1, 1), k=noise(1, 1, 1, 1), k2=noise(2, 1, 1, 1))
    assert [layer.name for layer in quantizable_layers(model)] == ["k2"]


def test_a_kernel_that_two_layers_read_along_other_axes_is_no_layer() -> None:
    """Tied weights of an encoder and a decoder: one tensor cannot have both roundings."""
    text = "x = Gemm(image, k)\n y = Relu(x)\n out = Gemm<transB=1>(y, k)"
    model = drawn(text, (6,), k=noise(6, 6))
    assert quantizable_layers(model) == []


def test_what_is_computed_or_of_another_type_is_no_layer() -> None:
    text = (
        "turned = Transpose<perm=[1,0]>(k)\n x = MatMul(image, turned)\n y = MatMulInteger(a, b)\n z = Cast<to=1>(y)\n"
    )
    model = drawn(
        f"{text} out = Add(x, z)",
        (6,),
        k=noise(3, 6),
        a=np.ones((1, 2), np.int8),
        b=np.ones((2, 3), np.int8),
    )
    assert quantizable_layers(model) == []


def test_a_batch_norm_that_is_kept_apart_is_no_layer_of_its_own() -> None:
    (layer,) = quantizable_layers(apart())
    assert (layer.name, layer.result.name) == ("k", "x")
    assert layer.norm is not None
    assert (layer.norm.name, layer.norm.result.name) == ("gamma", "out")


@pytest.mark.parametrize(
    "text",
    [
        APART.replace("(image, k)", "(image, k, beta)"),
        APART.replace("(x, gamma, beta)", "(x, gamma)"),
        APART.replace("kernel_shape=[1,1]", "kernel_shape=[1,1], strides=[2,2]"),
        APART.replace("kernel_shape=[1,1]", "kernel_shape=[1,1], pads=[1,1,1,1]"),
        APART.replace("Relu(y)", "Add(x, y)"),
    ],
)
def test_a_depthwise_layer_of_the_model_itself_is_one(text: str) -> None:
    assert [layer.name for layer in quantizable_layers(apart(text=text))] == ["k", "gamma"]
