"""Stems are the first layers that models of one feed have in common: same operators, attributes, weights and input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import N, tensor, weight

from gemel.bundles.blob import tensor_id
from gemel.bundles.program import read_model, split_model
from gemel.compiler.stems.cut_graph import cut_graphs
from gemel.compiler.stems.find_stems import FoundStem, find_stems
from gemel.compiler.stems.main_graph import MainGraph

FEED = {"yard": {"a", "b"}}


def conv(source: str, target: str, kernel: str, **attributes: Any) -> onnx.NodeProto:
    return N("Conv", [source, kernel], [target], **{"pads": [1] * 4, **attributes})


def kernel(name: str, seed: int, channels: int = 4, inputs: int | None = None) -> onnx.TensorProto:
    return weight(name, channels, channels if inputs is None else inputs, 3, 3, seed=seed)


def graph(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[onnx.TensorProto],
    *,
    outputs: Sequence[str] = ("y",),
    spec: str = "8x8",
    image: str = "image",
) -> MainGraph:
    """Return the main graph of a model whose input is ``[batch, 3, 8, 8]``, with the shapes of all its values."""
    ports = [helper.make_tensor_value_info(image, TensorProto.FLOAT, ("batch", 3, 8, 8))]
    made = helper.make_graph(
        list(nodes), "g", ports, [helper.make_empty_tensor_value_info(output) for output in outputs], list(weights)
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    proto = read_model(onnx.shape_inference.infer_shapes(model).SerializeToString())
    held = {each.name: tensor_id(numpy_helper.to_array(each)) for each in weights if len(each.dims) > 1}
    return MainGraph(name, proto, held, spec)


def chain(name: str, seeds: Sequence[int], prefix: str = "", **changes: Any) -> MainGraph:
    """Return a chain of convolutions with ReLUs; convolutions of equal seeds have equal kernels."""
    nodes, weights, value = [], [], changes.get("image", "image")
    for index, seed in enumerate(seeds):
        last = index == len(seeds) - 1
        weights.append(kernel(f"{prefix}w{index}", seed, inputs=None if index else 3))
        nodes.append(conv(value, f"{prefix}c{index}", f"{prefix}w{index}"))
        value = "y" if last else f"{prefix}r{index}"
        nodes.append(N("Relu", [f"{prefix}c{index}"], [value]))
    return graph(name, nodes, weights, **changes)


def outputs_of(found: FoundStem, member: MainGraph) -> list[str]:
    return [member.names[key] for key in found.outputs]


def test_the_first_layers_that_two_models_have_in_common() -> None:
    one, other = chain("a", [0, 1, 2, 3]), chain("b", [0, 1, 8, 3])
    (found,) = find_stems([one, other], FEED)
    assert found.members == ("a", "b")
    assert outputs_of(found, one) == ["r1"]
    # 3 and 4 input channels, 4 output channels, 9 taps, 64 positions.
    assert found.saved == (3 + 4) * 4 * 9 * 64


def test_names_do_not_count() -> None:
    one, other = chain("a", [0, 1, 2]), chain("b", [0, 1, 8], prefix="z", image="pixels")
    (found,) = find_stems([one, other], FEED)
    assert (outputs_of(found, one), outputs_of(found, other)) == (["r1"], ["zr1"])


def test_models_that_are_equal_to_the_end_have_a_rest_without_layers() -> None:
    graphs = [chain("a", [0, 1]), chain("b", [0, 1])]
    (found,) = find_stems(graphs, FEED)
    parts = cut_graphs(found, graphs)
    assert [node.op_type for node in parts.rests["b"].graph.node] == ["Identity"]
    assert [port.name for port in parts.rests["b"].graph.output] == ["y"]


@pytest.mark.parametrize(
    "other",
    [
        chain("b", [9, 1, 2]),
        chain("b", [0, 9, 2]),
        chain("b", [0, 1, 2], spec="another size"),
        graph("b", [conv("image", "y", "w", strides=[2, 2])], [kernel("w", 0, inputs=3)]),
        graph("b", [N("Relu", ["image"], ["y"])], []),
    ],
    ids=["another kernel", "one equal layer", "another input", "another attribute", "no layer"],
)
def test_models_that_begin_otherwise_have_no_stem(other: MainGraph) -> None:
    assert not find_stems([chain("a", [0, 1, 2]), other], FEED)


def test_a_beginning_without_weights_is_no_stem() -> None:
    pools = [N("MaxPool", ["image"], ["p"], kernel_shape=[2, 2])]
    graphs = [
        graph(name, [*pools, conv("p", "y", "w")], [kernel("w", seed, inputs=3)]) for seed, name in enumerate("ab")
    ]
    assert not find_stems(graphs, FEED)


def test_random_values_are_never_equal() -> None:
    nodes = [N("RandomNormalLike", ["image"], ["noise"]), N("Add", ["image", "noise"], ["sum"]), conv("sum", "y", "w")]
    assert not find_stems([graph(name, nodes, [kernel("w", 0, inputs=3)]) for name in "ab"], FEED)


def test_models_of_different_feeds_have_no_stem() -> None:
    graphs = [chain("a", [0, 1, 2]), chain("b", [0, 1, 8])]
    assert not find_stems(graphs, {"yard": {"a"}, "gate": {"b"}})


def test_a_short_beginning_is_no_stem() -> None:
    nodes = [conv("image", "b", "small", pads=[0] * 4, strides=[6, 6]), conv("b", "c", "tiny")]
    nodes.append(N("Resize", ["c", "", "", "size"], ["r"]))
    size = tensor("size", np.array([1, 4, 8, 8], np.int64))
    graphs = [
        graph(
            name,
            [*nodes, conv("r", "y", "w")],
            [kernel("small", 0, inputs=3), weight("w", 64, 4, 3, 3, seed=seed), size],
        )
        for seed, name in enumerate("ab")
    ]
    assert not find_stems(graphs, FEED)


def residual(name: str, seed: int, middle: int) -> MainGraph:
    """Return a model with a block ``r0 + c2(c1(r0))`` in which only ``c2`` depends on the seed.

    Args:
        name: name of the model.
        seed: seed of the block's second kernel.
        middle: channels between the block's convolutions.
    """
    nodes = [
        conv("image", "c0", "w0"),
        N("Relu", ["c0"], ["r0"]),
        conv("r0", "c1", "w1"),
        conv("c1", "c2", "w2"),
        N("Add", ["r0", "c2"], ["y"]),
    ]
    weights = [
        weight("w0", 32, 3, 3, 3),
        weight("w1", middle, 32, 3, 3, seed=1),
        weight("w2", 32, middle, 3, 3, seed=10 + seed),
    ]
    return graph(name, nodes, weights)


def test_a_stem_may_end_inside_a_block_where_much_is_gained() -> None:
    graphs = [residual("a", 0, 16), residual("b", 1, 16)]
    (found,) = find_stems(graphs, FEED)
    assert outputs_of(found, graphs[0]) == ["r0", "c1"]
    rest = cut_graphs(found, graphs).rests["b"].graph
    assert [port.name for port in rest.input] == ["stem", "stem1"]
    assert [node.op_type for node in rest.node] == ["Conv", "Add"]


def test_one_value_is_preferred_where_little_is_lost() -> None:
    def deep(name: str, seed: int) -> MainGraph:
        nodes = [conv("image", "c0", "w0"), conv("c0", "r0", "v"), conv("r0", "c1", "w1"), conv("c1", "c2", "w2")]
        nodes += [N("Add", ["r0", "c2"], ["sum"]), N("Shape", ["image"], ["s"]), N("Reshape", ["sum", "s"], ["y"])]
        weights = [weight("w0", 64, 3, 3, 3), weight("v", 64, 64, 3, 3, seed=2), weight("w1", 2, 64, 3, 3, seed=1)]
        return graph(name, nodes, [*weights, weight("w2", 64, 2, 3, 3, seed=10 + seed)])

    graphs = [deep("a", 0), deep("b", 1)]
    (found,) = find_stems(graphs, FEED)
    assert outputs_of(found, graphs[0]) == ["r0"]
    # As exported graphs do, the rest reads a size of the image.
    assert len(cut_graphs(found, graphs).rests["a"].graph.input) == 2


def test_the_rest_may_read_the_image_too() -> None:
    def skipping(name: str, seed: int) -> MainGraph:
        nodes = [conv("image", "c0", "w0"), conv("c0", "c1", "w1"), conv("image", "c2", "w2")]
        nodes.append(N("Add", ["c1", "c2"], ["y"]))
        return graph(name, nodes, [kernel("w0", 0, inputs=3), kernel("w1", 1), kernel("w2", 10 + seed, inputs=3)])

    graphs = [skipping("a", 0), skipping("b", 1)]
    (found,) = find_stems(graphs, FEED)
    parts = cut_graphs(found, graphs)
    assert [port.name for port in parts.stem.graph.output] == ["stem"]
    assert {port.name for port in parts.rests["a"].graph.input} == {parts.stem.graph.input[0].name, "stem"}


def test_shapes_are_not_passed_on() -> None:
    def flattening(name: str, seed: int) -> MainGraph:
        nodes = [
            conv("image", "c0", "w0"),
            conv("c0", "c1", "w1"),
            N("Shape", ["c1"], ["s"], end=1),
            N("Concat", ["s", "minus"], ["to"], axis=0),
            conv("c1", "c2", "w2"),
            N("Reshape", ["c2", "to"], ["y"]),
        ]
        minus = tensor("minus", np.array([-1], np.int64))
        return graph(name, nodes, [kernel("w0", 0, inputs=3), kernel("w1", 1), kernel("w2", 10 + seed), minus])

    graphs = [flattening("a", 0), flattening("b", 1)]
    (found,) = find_stems(graphs, FEED)
    assert outputs_of(found, graphs[0]) == ["c1"]


def test_a_value_that_is_an_output_of_one_model_only() -> None:
    one, other = chain("a", [0, 1]), chain("b", [0, 1, 2])
    (found,) = find_stems([one, other], FEED)
    assert outputs_of(found, one) == ["y"]
    parts = cut_graphs(found, [one, other])
    assert [node.op_type for node in parts.rests["a"].graph.node] == ["Identity"]
    assert [node.op_type for node in parts.rests["b"].graph.node] == ["Conv", "Relu"]


def test_stems_are_equal_programs_whatever_the_order_of_the_members() -> None:
    graphs = [chain("a", [0, 1, 2]), chain("b", [0, 1, 8], prefix="z")]
    (found,), (turned,) = find_stems(graphs, FEED), find_stems(graphs[::-1], FEED)
    ids = [split_model(cut_graphs(found, graphs).stem).id, split_model(cut_graphs(turned, graphs[::-1]).stem).id]
    assert ids[0] == ids[1]


@pytest.mark.parametrize(("third", "members"), [(1, {"a", "b", "c"}), (9, {"a", "b"})])
def test_of_nested_stems_the_one_that_saves_most_is_chosen(third: int, members: set[str]) -> None:
    # All three have the first layer in common, or also the second, while a and b have three.
    graphs = [chain("a", [0, 1, 2, 3]), chain("b", [0, 1, 2, 4]), chain("c", [0, third, 6, 7])]
    (found,) = find_stems(graphs, {"yard": {"a", "b", "c"}})
    assert set(found.members) == members


def test_every_model_has_one_stem() -> None:
    graphs = [chain("a", [0, 1, 2]), chain("b", [0, 1, 3]), chain("c", [5, 6, 7, 1]), chain("d", [5, 6, 7, 2])]
    found = find_stems(graphs, {"yard": set("abcd")})
    assert [each.members for each in found] == [("c", "d"), ("a", "b")]


def test_a_model_without_partner_on_its_feeds_is_no_member() -> None:
    graphs = [chain(name, [0, 1, seed]) for seed, name in enumerate("abc", 2)]
    (found,) = find_stems(graphs, {"yard": {"a", "b"}, "gate": {"c"}})
    assert found.members == ("a", "b")


def test_more_feeds_count_more() -> None:
    graphs = [chain("a", [0, 1, 2, 3]), chain("b", [0, 1, 2, 4]), chain("c", [0, 1, 6, 7])]
    (found,) = find_stems(graphs, {"yard": {"a", "b"}, "gate": {"a", "c"}, "door": {"a", "c"}, "roof": {"a", "c"}})
    assert found.members == ("a", "b", "c")
    assert found.saved == 4 * (3 + 4) * 4 * 9 * 64


def test_a_model_of_several_inputs_is_refused() -> None:
    made = chain("a", [0])
    made.proto.graph.input.add(name="more")
    with pytest.raises(ValueError, match="a: 2 inputs"):
        MainGraph("a", made.proto, made.tensors, "8x8")
