"""Test groups and the bytes that sharing them saves."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gemel.merging.layers.groups import groups_of, pair_bytes
from gemel.merging.layers.layers import Layer


def layer(model: str, definition: str, size: int = 10, head: bool = False, name: str = "") -> Layer:
    """Make a layer, named after its definition unless ``name`` is given."""
    return Layer(model, name or definition, definition, (size,), size, head)


def test_between_models_the_kth_pairs_with_the_kth() -> None:
    layers = [layer("a", "x", name="1"), layer("a", "x", name="2"), layer("b", "x"), layer("c", "x")]
    (group,) = groups_of(layers)
    assert group.layers == tuple(layers)
    assert group.counts == {"a": 2, "b": 1, "c": 1}
    # b and c share the first layer of a; its second layer stays.
    assert (group.bytes, group.saving, group.saving_inside) == (10, 20, 30)


def test_alone_is_no_group_and_twice_in_one_model_saves_only_inside() -> None:
    (group,) = groups_of([layer("a", "x"), layer("a", "x"), layer("a", "y"), layer("b", "z")])
    assert (group.definition, group.saving, group.saving_inside) == ("x", 0, 10)


def test_the_largest_saving_comes_first() -> None:
    sizes = {"small": 1, "large": 100, "middle": 10}
    layers = [layer(model, name, size) for model in "ab" for name, size in sizes.items()]
    assert [group.definition for group in groups_of(layers)] == ["large", "middle", "small"]


def test_heads_are_private_unless_asked_for() -> None:
    layers = [layer("a", "x", head=True), layer("b", "x", head=True), layer("c", "x")]
    assert groups_of(layers) == ()
    assert groups_of(layers, heads=True)[0].saving == 20


def test_a_definition_that_hides_the_shape_does_not_mix_shapes() -> None:
    assert groups_of([layer("a", "MyConv()", 10), layer("b", "MyConv()", 20)]) == ()


def test_pairs_share_what_the_smaller_of_two_counts_allows() -> None:
    layers = [
        *[layer("a", "x", 10)] * 3,
        *[layer("b", "x", 10)] * 2,
        layer("b", "y", 7),
        layer("c", "y", 7),
    ]
    assert pair_bytes(["c", "b", "a"], groups_of(layers)) == {("c", "b"): 7, ("c", "a"): 0, ("b", "a"): 20}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), max_size=30))
def test_savings_are_what_binding_would_free(appearances: list[tuple[str, str]]) -> None:
    sizes = {"x": 1, "y": 10, "z": 100}
    layers = [layer(model, name, sizes[name]) for model, name in sorted(appearances)]
    total = sum(each.bytes for each in layers)
    # A tensor is identified by its definition and by the number of such layers before it in its model.
    seen: Counter[tuple[str, str]] = Counter()
    tensors = set()
    for each in layers:
        key = each.model, each.definition
        tensors.add((each.definition, seen[key], each.bytes))
        seen[key] += 1
    groups = groups_of(layers)
    assert total - sum(group.saving for group in groups) == sum(size for _, _, size in tensors)
    once = {each.definition: each.bytes for each in layers}
    assert total - sum(group.saving_inside for group in groups) == sum(once.values())
