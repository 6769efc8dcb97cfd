"""Layers that must stay float32 are found by measurement; models here are scripted, so that each step can be seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, cast

import onnx_ir as ir
import pytest

from gemel.calib.search import Candidate, settle


@dataclass
class Scripted:
    """Model whose layers lose accuracy in lower precision. Its "graph" is the set of its float32 layers.

    Args:
        losses: layer -> accuracy that it loses in lower precision.
        errors: layer -> error of the outputs; by default the error is the loss.

    Attributes:
        judged: graphs whose accuracies were measured.
        looked_at: graphs whose errors were measured.
    """

    losses: Mapping[str, float]
    errors: Mapping[str, float] | None = None
    judged: list[frozenset[str]] = field(default_factory=list)
    looked_at: list[frozenset[str]] = field(default_factory=list)

    def accuracies(self, graph: ir.Model) -> dict[str, float]:
        kept = cast(frozenset[str], graph)
        self.judged.append(kept)
        return {"query": 1 - sum(loss for layer, loss in self.losses.items() if layer not in kept)}

    def error(self, graph: ir.Model) -> float:
        kept = cast(frozenset[str], graph)
        self.looked_at.append(kept)
        (alone,) = self.losses.keys() - kept
        return (self.errors or self.losses)[alone]


def candidate(judge: Any, name: str = "a", floor: float = 0.95, kernels: Mapping[str, str] | None = None) -> Candidate:
    """Return a candidate; by default each layer holds a kernel of the same name."""
    convert = cast(Callable[[Set[str]], ir.Model], lambda keep: frozenset(keep))
    return Candidate(name, kernels or {layer: layer for layer in judge.losses}, convert, judge, {"query": floor})


def test_nothing_is_kept_where_all_floors_hold() -> None:
    judge = Scripted({"w": 0.02, "x": 0.02})
    found, accuracies = settle([candidate(judge)], set())
    assert found == {}
    assert accuracies == {"a": {"query": pytest.approx(0.96)}}
    assert (judge.judged, judge.looked_at) == ([frozenset()], [])


def test_a_floor_that_is_just_reached_holds() -> None:
    judge = Scripted({"w": 0.25})
    assert settle([candidate(judge, floor=0.75)], set())[0] == {}


def test_the_layer_that_disturbs_most_is_kept_first() -> None:
    judge = Scripted({"w": 0.01, "x": 0.5, "y": 0.02})
    found, accuracies = settle([candidate(judge)], set())
    assert found == {"x": "a"}
    assert accuracies["a"]["query"] == pytest.approx(0.97)
    assert judge.judged == [frozenset(), {"x"}]
    # The error of each layer was measured once, with only this layer in lower precision.
    assert sorted(map(sorted, judge.looked_at)) == [["w", "x"], ["w", "y"], ["x", "y"]]


def test_one_then_two_then_four_are_kept() -> None:
    losses = {f"l{index}": 0.1 for index in range(9)}
    errors = {name: 9.0 - index for index, name in enumerate(losses)}
    judge = Scripted(losses, errors)
    found, _ = settle([candidate(judge, floor=0.75)], set())
    assert list(found) == [f"l{index}" for index in range(7)]
    assert [len(kept) for kept in judge.judged] == [0, 1, 3, 7]
    assert len(judge.looked_at) == 9


def test_layers_that_disturb_alike_have_an_order() -> None:
    judge = Scripted({"z": 0.1, "y": 0.1, "x": 0.1})
    assert list(settle([candidate(judge, floor=0.75)], set())[0]) == ["x"]


def test_kernels_given_as_kept_are_kept_from_the_start_and_not_found() -> None:
    judge = Scripted({"w": 0.5, "x": 0.1, "y": 0.01})
    found, _ = settle([candidate(judge)], {"w", "elsewhere"})
    assert judge.judged == [{"w"}, {"w", "x"}]
    assert found == {"x": "a"}


def test_a_kernel_that_two_models_hold_is_kept_in_both_and_the_other_is_judged_anew() -> None:
    weak = Scripted({"w": 0.5, "own": 0.0})
    strong = Scripted({"other": 0.02, "private": 0.0})
    apart = Scripted({"z": 0.0})
    found, accuracies = settle(
        [
            candidate(strong, "strong", kernels={"other": "w", "private": "private"}),
            candidate(weak, "weak"),
            candidate(apart, "apart"),
        ],
        set(),
    )
    assert found == {"w": "weak"}
    assert strong.judged == [frozenset(), {"other"}]
    assert accuracies["strong"]["query"] == 1
    # A model without any of the kernels that were added to float32 is not measured again.
    assert apart.judged == [frozenset()]
    assert strong.looked_at == []


def test_two_models_that_cannot_bear_one_kernel_keep_it_once() -> None:
    first, second = Scripted({"w": 0.5}), Scripted({"w": 0.5, "x": 0.5})
    found, accuracies = settle([candidate(first, "a"), candidate(second, "b")], set())
    assert found == {"w": "a", "x": "b"}
    assert {name: each["query"] for name, each in accuracies.items()} == {"a": 1, "b": 1}


def test_a_kernel_in_several_places_of_a_model_is_kept_in_all_and_ranked_as_one() -> None:
    @dataclass
    class Tied(Scripted):
        def error(self, graph: ir.Model) -> float:
            alone = self.losses.keys() - cast(frozenset[str], graph)
            assert alone in ({"first", "last"}, {"own"})
            return sum(self.losses[name] for name in alone)

    judge = Tied({"first": 0.06, "own": 0.1, "last": 0.06})
    found, _ = settle([candidate(judge, floor=0.85, kernels={"first": "tied", "last": "tied", "own": "own"})], set())
    assert found == {"tied": "a"}
    assert judge.judged == [frozenset(), {"first", "last"}]


def test_it_ends_when_all_are_kept_whatever_the_accuracy() -> None:
    judge = Scripted({"w": 0.1, "x": 0.2})
    found, accuracies = settle([candidate(judge, floor=1.5)], set())
    assert found == {"x": "a", "w": "a"}
    assert accuracies["a"]["query"] == 1
    assert judge.judged == [frozenset(), {"x"}, {"x", "w"}]
    assert settle([candidate(Scripted({"w": 0.1}), floor=1.5)], {"w"})[0] == {}
    assert settle([candidate(Scripted({}), floor=1.5)], set())[0] == {}
    assert settle([], set()) == ({}, {})


def test_every_query_of_a_model_counts_and_is_told() -> None:
    class Two(Scripted):
        def accuracies(self, graph: ir.Model) -> dict[str, float]:
            found = super().accuracies(graph)["query"]
            return {"easy": 1.0, "hard": found}

    told: list[str] = []
    each = candidate(Two({"w": 0.5}))
    each = Candidate(each.name, each.layers, each.convert, each.judge, {"easy": 0.9, "hard": 0.9})
    assert settle([each], set(), told.append)[0] == {"w": "a"}
    assert told == ["hard: 50.00%, 90.00% wanted"]
