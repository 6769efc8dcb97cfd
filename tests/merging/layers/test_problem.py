"""Test the problem that a search solves: pairing, groups, and the bytes that these free."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemel.merging.layers.layers import Layer
from gemel.merging.layers.problem import Problem, pair_layers
from gemel.merging.layers.sharing import SharingMap, Slot, Use


def problem(**models: str) -> Problem:
    """Make a problem from strings: each model is a string with one letter, its definition, for each layer.

    A capital is a head. A layer of definition ``a`` holds 10 bytes, of ``b`` 20 bytes, and so on. The layers of a model
    are named ``0``, ``1``, ...
    """

    def layer(model: str, index: int, letter: str) -> Layer:
        """Make the layer of a letter."""
        kind = letter.lower()
        size = 10 * (ord(kind) - ord("a") + 1)
        return Layer(model, str(index), kind, (size,), size, letter.isupper())

    return Problem(
        {name: tuple(layer(name, i, letter) for i, letter in enumerate(text)) for name, text in models.items()}
    )


def slots(found: list[tuple[str, Slot]]) -> list[str]:
    """Write slots as text: ``x0 y1`` for the first layer of x and the second layer of y."""
    return [" ".join(use.model + use.parameter.removesuffix(".weight") for use in slot) for _, slot in found]


def test_kth_pairs_with_kth() -> None:
    assert slots(pair_layers(problem(x="aba", y="baa"))) == ["x0 y1", "x1 y0", "x2 y2"]


def test_heads_and_layers_without_a_counterpart_stay_private() -> None:
    assert slots(pair_layers(problem(x="abC", y="abbC", z="dC"))) == ["x0 y0", "x1 y1"]


def test_equal_definitions_of_other_shapes_or_precisions_do_not_pair() -> None:
    # A class may print itself without its shape, and half the bytes mean another precision.
    layers = {
        name: (Layer(name, "0", "MyConv()", shape, size, False),)
        for name, shape, size in (("x", (4,), 16), ("y", (8,), 32), ("z", (4,), 8))
    }
    assert pair_layers(Problem(layers)) == []


def found_before(made: Problem, folds: int) -> list[Slot]:
    """Return the slots with one fold less."""
    return [slot for _, slot in pair_layers(made, inside=True, folds=max(folds - 1, 0))]


@pytest.mark.parametrize(
    ("folds", "left"),
    [
        # Five blocks of two layers; each fold leaves three, two and then one block.
        (0, 10),
        (1, 6),
        (2, 4),
        (3, 2),
        (9, 2),
    ],
)
def test_folds_halve_the_blocks_inside_models(folds: int, left: int) -> None:
    made = problem(x="a" * 10, y="a" * 10)
    found = [slot for _, slot in pair_layers(made, inside=True, folds=folds)]
    assert len(found) == left
    assert all(
        {use.parameter for use in slot if use.model == "x"} == {use.parameter for use in slot if use.model == "y"}
        for slot in found
    )
    # Uses that were one tensor with fewer folds stay one tensor.
    for slot in found_before(made, folds):
        assert any(set(slot) <= set(wider) for wider in found)
    # Folds have no effect between models.
    assert pair_layers(made, folds=folds) == pair_layers(made)


@pytest.mark.parametrize(
    ("deep", "expected"),
    [
        ("aaa", ["x0 y0", "x1 y1", "x2 y2"]),
        # The fourth layer begins a second block of two layers, but only one block is left.
        ("aaaa", ["x0 y0", "x1 y1 y3", "x2 y2"]),
        ("aaaaaaa", ["x0 y0", "x1 y1 y3 y5", "x2 y2 y4 y6"]),
    ],
)
def test_inside_a_model_blocks_repeat(deep: str, expected: list[str]) -> None:
    assert slots(pair_layers(problem(x="aaa", y=deep), inside=True)) == expected


def test_blocks_of_a_deep_model_are_spread_evenly_over_those_of_a_shallow_one() -> None:
    found = slots(pair_layers(problem(x="a" * 5, y="a" * 13), inside=True))
    # A part of a block, then two blocks instead of six.
    assert found == ["x0 y0", "x1 y1 y3 y5", "x2 y2 y4 y6", "x3 y11 y7 y9", "x4 y10 y12 y8"]


def test_a_longer_block_goes_on_as_a_whole() -> None:
    assert slots(pair_layers(problem(x="aaa", y="aaaaaaa"), inside=True, period=3)) == [
        "x0 y0 y3 y6",
        "x1 y1 y4",
        "x2 y2 y5",
    ]


def test_the_model_with_fewest_layers_decides_how_many_tensors_stay() -> None:
    assert slots(pair_layers(problem(x="a", y="aaa", z="aa"), inside=True)) == ["x0 y0 y1 y2 z0 z1"]


def test_a_definition_of_one_model_is_not_shared_inside_it() -> None:
    assert pair_layers(problem(x="aaa", y="b"), inside=True) == []


def test_groups_by_definition_and_models_heaviest_first() -> None:
    made = problem(x="ccab", y="abc", z="ab")
    groups = made.groups()
    found = [(group.definition, group.models, len(group.slots), group.saving, group.position) for group in groups]
    assert found == [
        ("b", ("x", "y", "z"), 1, 40, 1),
        ("c", ("x", "y"), 1, 30, 0),
        ("a", ("x", "y", "z"), 1, 20, 0),
    ]
    assert made.saved(SharingMap().joined(slot for group in groups for slot in group.slots)) == 90


def test_layers_that_only_some_models_have_make_a_group_of_their_own() -> None:
    groups = problem(x="aaa", y="aaa", z="a").groups()
    assert [(group.models, len(group.slots), group.saving) for group in groups] == [
        (("x", "y"), 2, 20),
        (("x", "y", "z"), 1, 20),
    ]


def test_nothing_in_common() -> None:
    assert problem(x="ab", y="cd").groups() == []
    assert problem(x="aab").groups() == []
    assert Problem({}).groups() == []


@given(st.dictionaries(st.sampled_from("xyz"), st.text("ab", max_size=16)), st.integers(1, 3), st.integers(1, 4))
def test_a_fold_only_joins_slots(models: dict[str, str], folds: int, period: int) -> None:
    made = problem(**models)
    before, after = (
        [slot for _, slot in pair_layers(made, inside=True, folds=n, period=period)] for n in (folds - 1, folds)
    )
    assert all(any(set(slot) <= set(wider) for wider in after) for slot in before)
    assert sum(map(len, before)) <= sum(map(len, after))


@given(st.dictionaries(st.sampled_from("xyz"), st.text("abC", max_size=8)), st.booleans(), st.integers(1, 3))
def test_slots_hold_layers_of_one_definition_each_layer_once(models: dict[str, str], inside: bool, period: int) -> None:
    made = problem(**models)
    kinds = {Use(layer.model, layer.parameter): layer.definition for part in made.layers.values() for layer in part}
    heads = {Use(layer.model, layer.parameter) for part in made.layers.values() for layer in part if layer.head}
    found = pair_layers(made, inside=inside, period=period)
    uses = [use for _, slot in found for use in slot]
    assert len(uses) == len(set(uses))
    assert not heads & set(uses)
    for definition, slot in found:
        assert {kinds[use] for use in slot} == {definition}
        assert len(slot) > 1
        assert inside or len({use.model for use in slot}) == len(slot)
    # Sharing inside models saves at least as much.
    assert made.saved(SharingMap(tuple(slot for _, slot in found))) >= made.saved(
        SharingMap(tuple(slot for _, slot in pair_layers(made)))
    )
