"""Test the sharing map and its effect on modules."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gemel.merging.layers.sharing import SharingMap, Use, bind, own_parameters, release

A, B, C, D = (Use(model, "0.weight") for model in "abcd")


def test_slots_with_a_use_in_common_become_one() -> None:
    sharing = SharingMap().joined([(A, B), (C, D)])
    assert sharing.slots == ((A, B), (C, D))
    assert sharing.joined([(B, C)]).slots == ((A, B, C, D),)


def test_without_drops_slots_that_one_use_is_left_of() -> None:
    sharing = SharingMap().joined([(A, B), (B, C)])
    assert sharing.without({B}).slots == ((A, C),)
    assert sharing.without({A, B}).slots == ()


def test_of_models() -> None:
    assert SharingMap().joined([(A, B, C)]).of({"a", "c"}).slots == ((A, C),)


def test_tied_goes_through_other_models() -> None:
    other = Use("b", "1.weight")
    sharing = SharingMap().joined([(A, B), (other, C)])
    assert sharing.tied({"a"}) == {"a", "b", "c"}
    assert sharing.tied({"d"}) == {"d"}


def test_saved_counts_all_but_one() -> None:
    sharing = SharingMap().joined([(A, B, C)])
    assert sharing.saved(lambda use: 10) == 20


@given(st.lists(st.sets(st.sampled_from([A, B, C, D]), min_size=2), max_size=4))
def test_slots_are_disjoint_and_hold_all(slots: list[set[Use]]) -> None:
    sharing = SharingMap().joined(slots)
    uses = [use for slot in sharing.slots for use in slot]
    assert len(uses) == len(set(uses))
    assert set(uses) == set().union(*slots)
    for slot in slots:
        assert any(slot <= set(kept) for kept in sharing.slots)


def test_bound_modules_hold_one_parameter_and_part_again() -> None:
    modules = {name: nn.Sequential(nn.Linear(2, 2, bias=False)) for name in "abc"}
    own = own_parameters(modules)
    bind(modules, SharingMap().joined([(A, B)]))
    first, second, third = (modules[name].get_parameter("0.weight") for name in "abc")
    assert first is second
    assert first is not third
    release(modules, own)
    assert modules["a"].get_parameter("0.weight") is own[A]
    assert modules["b"].get_parameter("0.weight") is own[B]
    assert own[A] is not own[B]


def test_two_layers_of_one_model_can_be_bound() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    first, second = Use("a", "0.weight"), Use("a", "1.weight")
    bind({"a": module}, SharingMap().joined([(first, second)]))
    module(torch.ones(1, 2)).sum().backward()
    assert len(list(module.parameters())) == 3
    assert sorted(module.state_dict()) == ["0.bias", "0.weight", "1.bias", "1.weight"]


def test_what_is_tied_inside_a_model_stays_tied() -> None:
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    tied[1].weight = tied[0].weight
    modules = {"a": nn.Sequential(nn.Linear(2, 2, bias=False)), "b": tied}
    own = own_parameters(modules)
    bind(modules, SharingMap().joined([(A, B)]))
    assert tied[0].weight is tied[1].weight is modules["a"].get_parameter("0.weight")
    release(modules, own)
    assert tied[0].weight is tied[1].weight is not modules["a"].get_parameter("0.weight")
