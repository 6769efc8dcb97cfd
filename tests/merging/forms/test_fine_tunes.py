"""Tests of common ancestors: which models are fine-tunes of one checkpoint, and which bases are refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gemel.errors import InputError
from gemel.merging.forms.costs import difference_costs
from gemel.merging.forms.fine_tunes import find_fine_tunes, kernel_distance
from gemel.merging.forms.form_map import Form
from gemel.merging.forms.quantize import materialize, relative_error
from gemel.merging.layers.layers import Layer
from gemel.merging.layers.sharing import Use

SHAPES = {"one": (16, 8, 3, 3), "two": (16, 16, 3, 3), "three": (16, 16, 3, 3)}


def layers(model: str, prefix: str = "") -> tuple[Layer, ...]:
    """Return the layers of a model with three kernels and a head."""
    kernels = [
        Layer(model, prefix + name, "conv", shape, 4 * math.prod(shape), False) for name, shape in SHAPES.items()
    ]
    return (*kernels, Layer(model, prefix + "head", "linear", (10, 16), 640, True))


def state(seed: int, prefix: str = "") -> dict[str, Tensor]:
    """Return random weights of the model that :func:`layers` describes."""
    generator = torch.Generator().manual_seed(seed)
    found = {f"{prefix}{name}.weight": torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return {**found, f"{prefix}head.weight": torch.randn(10, 16, generator=generator)}


def tuned(base: dict[str, Tensor], seed: int, by: float = 0.2) -> dict[str, Tensor]:
    """Return weights that are some fraction of their norm away from other weights."""
    generator = torch.Generator().manual_seed(seed)
    return {name: value + by * torch.randn(value.shape, generator=generator) for name, value in base.items()}


def test_fine_tunes_are_found_among_strangers() -> None:
    first, second = state(1), state(2)
    states = {"a": tuned(first, 3), "s": state(9), "b": tuned(first, 4), "c": tuned(second, 5), "d": tuned(second, 6)}
    found = find_fine_tunes({name: layers(name) for name in states}, states)
    assert [each.members for each in found] == [("a", "b"), ("c", "d")]
    assert not any(each.given for each in found)
    assert kernel_distance({name: layers(name) for name in states}, states, "a", "b") == pytest.approx(0.28, abs=0.02)
    assert kernel_distance({name: layers(name) for name in states}, states, "a", "s") == pytest.approx(1.42, abs=0.05)


def test_the_base_that_is_found_is_the_mean_in_8_bits() -> None:
    first = state(1)
    states = {name: tuned(first, seed) for seed, name in enumerate("abc")}
    (found,) = find_fine_tunes({name: layers(name) for name in states}, states)
    key = found.base_of[Use("b", "two.weight")]
    assert key == found.base_of[Use("a", "two.weight")]
    mean, base = torch.stack([each["two.weight"] for each in states.values()]).mean(0), found.bases[key]
    assert base.bits == 8
    assert base.coded is not None
    assert torch.equal(base.kernel, materialize(base.coded))
    assert 0 < relative_error(base.kernel, mean) < 0.01
    assert all(distance == pytest.approx(0.16, abs=0.02) for distance in found.distances.values())
    # Heads stay private.
    assert Use("a", "head.weight") not in found.base_of
    assert "a, b, c" in found.description


def test_a_kernel_that_all_have_is_its_own_base() -> None:
    """Layers that were frozen lose nothing, and one copy of them is kept as it is."""
    first = state(1)
    states = {name: tuned(first, seed) | {"two.weight": first["two.weight"]} for seed, name in enumerate("abc")}
    (found,) = find_fine_tunes({name: layers(name) for name in states}, states)
    frozen, changed = (found.bases[found.base_of[Use("b", f"{name}.weight")]] for name in ("two", "three"))
    assert (frozen.bits, changed.bits) == (None, 8)
    assert torch.equal(frozen.kernel, first["two.weight"])
    by_use = {cost.use: cost for cost in difference_costs(found, layers("b"), states["b"])}
    assert by_use[Use("b", "two.weight")].form(2) == Form(0, found.base_of[Use("b", "two.weight")])
    assert by_use[Use("b", "three.weight")].form(2) == Form(2, found.base_of[Use("b", "three.weight")], 8)
    sizes = [by_use[Use("b", f"{name}.weight")].base_bytes for name in ("two", "three")]
    assert sizes == [4 * 16 * 16 * 9, 16 * 16 * 9 + 4 * 16]


def test_names_of_layers_do_not_matter_to_what_is_found() -> None:
    first = state(1)
    other = {f"net.{name}": value for name, value in tuned(first, 3).items()}
    (found,) = find_fine_tunes({"a": layers("a"), "b": layers("b", "net.")}, {"a": first, "b": other})
    assert found.base_of[Use("a", "two.weight")] == found.base_of[Use("b", "net.two.weight")]


def test_models_of_another_structure_are_no_fine_tunes() -> None:
    first = state(1)
    small = layers("b")[:1]
    assert find_fine_tunes({"a": layers("a"), "b": small}, {"a": first, "b": first}) == []


def test_one_model_alone_is_no_family() -> None:
    assert find_fine_tunes({"a": layers("a")}, {"a": state(1)}) == []


def test_models_with_nan_weights_are_left_alone() -> None:
    first = state(1)
    broken = {name: torch.full_like(value, math.nan) for name, value in first.items()}
    states = {"a": first, "b": tuned(first, 2), "c": broken}
    (found,) = find_fine_tunes({name: layers(name) for name in states}, states)
    assert found.members == ("a", "b")


def test_a_given_ancestor_names_the_family_and_the_mean_is_its_base() -> None:
    first = state(1)
    # Without the ancestor, models this far from it would be strangers to each other.
    states = {"a": tuned(first, 11, 0.6), "b": tuned(first, 12, 0.6)}
    assert find_fine_tunes({name: layers(name) for name in states}, states) == []
    given = dict.fromkeys(states, ("base.pt", first))
    (found,) = find_fine_tunes({name: layers(name) for name in states}, states, given)
    assert found.given
    base = found.bases[found.base_of[Use("a", "one.weight")]]
    assert relative_error(base.kernel, (states["a"]["one.weight"] + states["b"]["one.weight"]) / 2) < 0.01
    assert "a, b: fine-tunes of base.pt" in found.description


def test_the_ancestor_of_one_model_is_its_base() -> None:
    first = state(1)
    (found,) = find_fine_tunes({"a": layers("a")}, {"a": tuned(first, 12)}, {"a": ("base.pt", first)})
    base = found.bases[found.base_of[Use("a", "one.weight")]]
    # In codes, the base of one weight alone would be compression under another name.
    assert base.bits is None
    assert torch.equal(base.kernel, first["one.weight"])
    assert found.description in ("a: fine-tunes of base.pt, 19% away", "a: fine-tunes of base.pt, 20% away")


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (state(7), r"query a: base: base.pt is no ancestor of the model: its kernels are 14\d% of their own norm away"),
        ({"one.weight": state(1)["one.weight"]}, "has 1 of the 3 kernels"),
        ({}, "has 0 of the 3 kernels"),
        ({name: value * math.nan for name, value in state(1).items()}, "its kernels are no numbers"),
    ],
)
def test_a_base_that_is_no_ancestor_is_refused(base: dict[str, Tensor], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        find_fine_tunes({"a": layers("a")}, {"a": tuned(state(1), 2)}, {"a": ("base.pt", base)})
