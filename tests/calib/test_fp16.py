"""FP16: weights and arithmetic are float16, inputs and outputs are float32, and equal weights stay equal."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from precision_cases import drawn, frames, initializer, kinds, lowered, run, shapes
from tiny_models import tiny

from gemel.bundles.blob import tensor_id
from gemel.calib.fp16 import fp32_nodes, to_fp16
from gemel.calib.layers import quantizable_layers
from gemel.calib.ranges import too_large

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def pair() -> dict[str, ir.Model]:
    """Return two models with equal kernels and own BatchNorms, after all passes."""
    first = tiny(0)
    return {each.name: each.stages["main"] for each in lowered({"a": first, "b": tiny(1, kernels_of=first)})}


def test_weights_are_float16_and_ports_are_float32(pair: dict[str, ir.Model]) -> None:
    made = to_fp16(pair["a"])
    assert {name: kind for name, (kind, _) in shapes(made).items() if kind != "int64"} == {
        name: "float16" for name, (kind, _) in shapes(pair["a"]).items() if kind == "float32"
    }
    assert {name: shape for name, (_, shape) in shapes(made).items()} == {
        name: shape for name, (_, shape) in shapes(pair["a"]).items()
    }
    for before, after in zip(
        (*pair["a"].graph.inputs, *pair["a"].graph.outputs), (*made.graph.inputs, *made.graph.outputs), strict=True
    ):
        assert (after.name, after.dtype, after.shape) == (before.name, ir.DataType.FLOAT, before.shape)
    assert made.graph.name == pair["a"].graph.name


def test_a_model_is_near_its_float32_self(pair: dict[str, ir.Model]) -> None:
    for model in pair.values():
        made = to_fp16(model)
        for image in (*frames(3), np.concatenate(frames(3))):
            found, wanted = run(made, image)[0], run(model, image)[0]
            assert found.dtype == np.float32
            assert 0 < np.abs(found - wanted).max() < 5e-3 * np.abs(wanted).max()


def test_equal_weights_of_two_models_stay_equal(pair: dict[str, ir.Model]) -> None:
    first, second = map(to_fp16, pair.values())
    for name in ("stem.weight", "pointwise.weight", "head.weight", "head.bias"):
        assert tensor_id(initializer(first, name)) == tensor_id(initializer(second, name))
        np.testing.assert_array_equal(initializer(first, name), initializer(pair["a"], name).astype(np.float16))
    # Each model has its own BatchNorms.
    assert tensor_id(initializer(first, "norm1.weight")) != tensor_id(initializer(second, "norm1.weight"))


def test_a_model_is_not_changed_and_gives_the_same_bytes_twice(pair: dict[str, ir.Model]) -> None:
    before = ir.to_proto(pair["a"]).SerializeToString(deterministic=True)
    first, second = (ir.to_proto(to_fp16(pair["a"])).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert ir.to_proto(pair["a"]).SerializeToString(deterministic=True) == before


def test_kept_layers_stay_float32_with_their_batch_norms(pair: dict[str, ir.Model]) -> None:
    made = to_fp16(pair["a"], {"pointwise.weight"})
    for name in ("pointwise.weight", "norm3.weight", "norm3.bias"):
        np.testing.assert_array_equal(initializer(made, name), initializer(pair["a"], name))
        assert initializer(made, name).dtype == np.float32
        # No Cast lies between a kept weight and its reader: bound from outside, the weight would be cast in every run.
        (use,) = made.graph.initializers[name].uses()
        assert use.node.op_type == "Conv"
    assert initializer(made, "stem.weight").dtype == initializer(made, "head.weight").dtype == np.float16
    image = frames(1)[0]
    assert np.abs(run(made, image)[0] - run(pair["a"], image)[0]).max() < 5e-3 * np.abs(run(made, image)[0]).max()


def test_with_all_layers_kept_all_kernels_are_float32(pair: dict[str, ir.Model]) -> None:
    made = to_fp16(pair["a"], {layer.name for layer in quantizable_layers(pair["a"])})
    assert {kind for kind, shape in shapes(made).values() if len(shape) > 1} == {"float32"}
    image = frames(1)[0]
    np.testing.assert_allclose(run(made, image)[0], run(pair["a"], image)[0], atol=5e-3)


def test_kept_layers_that_take_one_value() -> None:
    """The two branches of a block read the same value, which is cast to float32 once."""
    text = "x = Relu(image)\n a = Conv(x, k1)\n b = Conv(x, k2)\n c = Add(a, b)\n out = Conv(c, k3)"
    weights = {name: RANDOM.normal(0, 1, (4, 4, 1, 1)).astype(np.float32) for name in ("k1", "k2", "k3")}
    model = drawn(text, (4, 6, 6), ("out",), **weights)
    made = to_fp16(model, {"k1", "k2"})
    assert {name: kind for name, (kind, _) in shapes(made).items()} == {
        "k1": "float32",
        "k2": "float32",
        "k3": "float16",
    }
    image = frames(1, (4, 6, 6))[0]
    wanted = run(model, image)[0]
    assert np.abs(run(made, image)[0] - wanted).max() < 5e-3 * np.abs(wanted).max()


def test_outputs_that_are_read_inside_keep_their_names() -> None:
    text = "x = Conv(image, k)\n seen = Relu(x)\n last = Conv(seen, k2)"
    weights = {name: RANDOM.normal(0, 1, (4, 4, 1, 1)).astype(np.float32) for name in ("k", "k2")}
    model = drawn(text, (4, 6, 6), ("seen", "last"), **weights)
    for keep in (set[str](), {"k2"}, {"k"}):
        made = to_fp16(model, keep)
        assert [(port.name, port.dtype) for port in made.graph.outputs] == [
            ("seen", ir.DataType.FLOAT),
            ("last", ir.DataType.FLOAT),
        ]
        image = frames(1, (4, 6, 6))[0]
        for found, wanted in zip(run(made, image), run(model, image), strict=True):
            assert np.abs(found - wanted).max() < 5e-3 * np.abs(wanted).max()


def test_numbers_beyond_float16_stay_finite() -> None:
    kernel = np.array([1e6, -1e6, 1e-9, -1e-9, 0, 1], np.float32).reshape(6, 1, 1, 1)
    made = initializer(to_fp16(drawn("out = Conv(image, k)", (1, 4, 4), k=kernel)), "k").reshape(-1)
    assert np.isfinite(made).all()
    np.testing.assert_array_equal(np.sign(made), [1, -1, 1, -1, 0, 1])


def test_operators_are_the_same_but_for_casts(pair: dict[str, ir.Model]) -> None:
    assert [kind for kind in kinds(to_fp16(pair["a"])) if kind != "Cast"] == kinds(pair["a"])
    assert kinds(to_fp16(pair["a"])).count("Cast") == 2


def test_what_float16_cannot_hold_stays_float32() -> None:
    """ONNX Runtime computes float16 graphs in float32 on a CPU: a run would not show values that overflow on a card."""
    k, q = np.full((2, 3, 1, 1), 400, np.float32), np.full((2, 2, 1, 1), 1e-3, np.float32)
    model = drawn("x = Conv(image, k)\nr = Relu(x)\nout = Conv(r, q)", (3, 4, 4), k=k, q=q)
    images = [np.full((1, 3, 4, 4), 100, np.float32)]
    large = too_large(model, images)
    assert large == {"x": pytest.approx(120_000), "r": pytest.approx(120_000)}
    # The limit is half of the largest float16 number.
    assert too_large(model, [image / np.float32(4) for image in images]) == {}
    assert fp32_nodes(model, large) == {"k", "q"}
    made = to_fp16(model, large=large)
    assert {initializer(made, name).dtype for name in "kq"} == {np.dtype(np.float32)}
    assert {initializer(to_fp16(model), name).dtype for name in "kq"} == {np.dtype(np.float16)}
    np.testing.assert_allclose(run(made, images[0], "out")[0], run(model, images[0], "out")[0], rtol=1e-3)
