"""Test families of models, the distances between models' weights, and the choice of representatives."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch

from gemel.merging.layers.families import distances_of, find_families, pair_families, representatives
from gemel.merging.layers.layers import Layer
from gemel.merging.layers.problem import Problem
from gemel.merging.layers.sharing import SharingMap, Use


def problem(**models: str) -> Problem:
    """Make a problem from strings with one letter for each layer; an ``a`` holds 10 bytes, a ``b`` 20 and so on."""
    return Problem(
        {
            name: tuple(
                Layer(name, str(index), letter, (ord(letter) - 96, 10), 10 * (ord(letter) - 96), False)
                for index, letter in enumerate(text)
            )
            for name, text in models.items()
        }
    )


def families(made: Problem) -> list[str]:
    """Return the families of a problem as strings of model names."""
    return ["".join(sorted(family)) for family in find_families(made)]


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ({}, []),
        ({"x": "ab"}, ["x"]),
        ({"x": "ab", "y": "ab", "z": "cd"}, ["z", "xy"]),
        # A deep model has all layers of a small one.
        ({"x": "ab", "y": "ababab"}, ["xy"]),
        # Of 60 bytes, x and y have 10 in common, less than half.
        ({"x": "ae", "y": "ae", "v": "af", "w": "af"}, ["vw", "xy"]),
        # The family with most bytes comes first.
        ({"x": "a", "y": "a", "v": "bb", "w": "bb"}, ["vw", "xy"]),
        # m has half of its bytes in common with each family, which does not make them one.
        ({"x": "dd", "y": "dd", "m": "dc", "v": "cc", "w": "cc"}, ["mxy", "vw"]),
    ],
)
def test_families(models: dict[str, str], expected: list[str]) -> None:
    assert families(problem(**models)) == expected


def test_a_model_without_layers_is_a_family_of_its_own() -> None:
    assert sorted(families(problem(x="ab", y="ab", z=""))) == ["xy", "z"]


def slots(sharing: SharingMap) -> list[str]:
    """Write slots as text: ``v0 x1`` for the first layer of v and the second layer of x."""
    return [" ".join(use.model + use.parameter.removesuffix(".weight") for use in slot) for slot in sharing.slots]


def test_the_tensors_of_families_pair_in_order() -> None:
    made = problem(v="ab", w="ab", x="ca", y="ca")
    shared = SharingMap().joined(
        [[Use("v", "0.weight"), Use("w", "0.weight")], [Use("x", "1.weight"), Use("y", "1.weight")]]
    )
    assert slots(pair_families(made, shared, ["vw", "xy"])) == ["v0 w0 x1 y1"]
    # Models of a family that share nothing bring their own tensors, which pair one by one.
    assert slots(pair_families(made, SharingMap(), ["vw", "xy"])) == ["v0 x1", "w0 y1"]
    # What one family alone has is no slot between families.
    assert pair_families(made, shared, ["vw"]) == SharingMap()


def test_two_tensors_of_one_family_never_become_one() -> None:
    # v shares its two layers with itself; x has two different ones.
    made = problem(v="aa", x="aa", y="aa")
    shared = SharingMap().joined(
        [
            [Use("v", "0.weight"), Use("v", "1.weight")],
            *([Use("x", f"{index}.weight"), Use("y", f"{index}.weight")] for index in (0, 1)),
        ]
    )
    found = pair_families(made, shared, ["v", "xy"])
    assert slots(found) == ["v0 v1 x0 y0"]
    assert slots(shared.joined(found.slots)) == ["v0 v1 x0 y0", "x1 y1"]


def test_distances() -> None:
    made = problem(x="ab", y="ab", z="ab", s="a")
    torch.manual_seed(0)
    states = {name: {layer.parameter: torch.randn(layer.shape) for layer in made.layers[name]} for name in made.models}
    states["y"] = {name: value + 0.01 * torch.randn_like(value) for name, value in states["x"].items()}
    found = distances_of(made.layers, states)
    assert set(found) == {("s", "x"), ("s", "y"), ("s", "z"), ("x", "y"), ("x", "z"), ("y", "z")}
    assert found["x", "y"] < 0.01
    assert found["x", "z"] > 0.5
    states["y"] = states["x"]
    assert distances_of(made.layers, states)["x", "y"] == 0
    # The layer that s lacks counts as different.
    states["s"] = {"0.weight": states["x"]["0.weight"]}
    inner, norm = states["x"]["0.weight"].square().sum(), states["x"]["1.weight"].square().sum()
    assert distances_of(made.layers, states)["s", "x"] == pytest.approx(
        float(1 - 2 * inner / (2 * inner + norm)), abs=1e-3
    )


def test_heads_do_not_count_in_distances() -> None:
    layers = {name: (Layer(name, "0", "a", (4,), 16, True),) for name in "xy"}
    states = {name: {"0.weight": torch.full((4,), float(index))} for index, name in enumerate("xy")}
    assert distances_of(layers, states) == {("x", "y"): 1.0}


def test_a_few_models_stand_for_themselves() -> None:
    assert representatives(problem(x="a", y="aaa", z="aa"), "xyz", 4) == ("y", "z", "x")


def test_of_many_lists_of_layers_the_largest_and_the_smallest_are_chosen() -> None:
    made = problem(**{name: "a" * (index + 1) for index, name in enumerate("stuvwxyz")})
    assert representatives(made, made.models, 4) == ("z", "x", "u", "s")


def test_of_equal_models_those_are_chosen_that_the_others_are_close_to() -> None:
    made = problem(**dict.fromkeys("qrstuvwxyz", "ab"))
    # Two clusters: q to v around s, and w to z around y.
    place = dict(zip("qrstuvwxyz", (1, 2, 3, 4, 5, 6, 101, 102, 103, 104), strict=True))
    pairs = combinations(sorted(place), 2)
    distances = {(first, second): abs(place[first] - place[second]) / 103 for first, second in pairs}
    chosen = representatives(replace(made, distances=distances), made.models, 2)
    assert len(chosen) == 2
    assert {place[name] > 50 for name in chosen} == {True, False}
    # Without distances the choice is the same each time.
    assert representatives(made, set(made.models), 4) == representatives(made, list(reversed(made.models)), 4)
