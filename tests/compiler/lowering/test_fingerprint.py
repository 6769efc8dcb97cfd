"""Fingerprints of stages: equal where models differ in weights alone, and none for what cannot be compared."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import TinyNet, tiny
from torch import Tensor, nn

from gemel.compiler.heads import StageModule
from gemel.compiler.heads.stages import BATCH, Whole
from gemel.compiler.lowering.fingerprint import Fingerprint, fingerprint


class Setting:
    """Object with one attribute."""

    scale = 1.0

    def __init__(self, value: Any) -> None:
        self.value = value

    def get(self) -> Any:
        return self.value


class Copied(Setting):
    """Object that leaves state out where it is copied."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Slots:
    """Object without a dictionary of attributes."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Holder(nn.Module):
    """Module with one more attribute."""

    def __init__(self, value: Any = None) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.value = value

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.layer(image.mean((2, 3)))
        return scores


def stage_of(module: nn.Module, **changes: Any) -> StageModule:
    fields = {"inputs": {"image": torch.zeros(2, 3, 8, 8)}, "outputs": ("logits",), "free": BATCH}
    return StageModule(Whole(module).eval(), **{**fields, **changes})


def made(value: Any) -> Fingerprint | None:
    return fingerprint(stage_of(Holder(value)))


def adding(number: float) -> Callable[[float], float]:
    return lambda value: value + number


def test_models_of_one_architecture_are_equal() -> None:
    one, other = tiny(0), tiny(1)
    other.state_dict()["norm1.num_batches_tracked"] += 5
    first, second = fingerprint(stage_of(one)), fingerprint(stage_of(other))
    assert first is not None and first == second and hash(first) == hash(second)
    assert first.weights.keys() == {f"model.{name}" for name in one.state_dict()}
    assert second is not None and second.weights["model.stem.weight"] is other.stem.weight


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        (1, True),
        (0.0, -0.0),
        ("a", "b"),
        ([1, 2], [2, 1]),
        ({"a": 1}, {"a": 2}),
        ({1, 2}, {1, 3}),
        (torch.Size([1, 2]), (1, 2)),
        (torch.ones(3), torch.zeros(3)),
        (torch.ones(3), torch.ones(3, dtype=torch.float64)),
        (np.ones(3), np.zeros(3)),
        (np.float32(1), np.float32(2)),
        (adding(1), adding(2)),
        (functools.partial(max, 1), functools.partial(max, 2)),
        (functools.partial(max, 1), functools.partial(min, 1)),
        (torch.relu, torch.sigmoid),
        (nn.ReLU, nn.SiLU),
        (nn.ReLU(), nn.SiLU()),
        (Setting(1), Setting(2)),
        (Setting([1, {"a": Setting(1)}]), Setting([1, {"a": Setting(2)}])),
        (Slots(1), Slots(2)),
        (Setting(1).get, Setting(2).get),
        (range(3), range(4)),
        (lambda value: value + 1, lambda value: value + 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_another_attribute_is_another_architecture(one: Any, other: Any) -> None:
    first, again, second = made(one), made(one), made(other)
    assert first is not None and second is not None
    assert first == again
    assert first != second


@pytest.mark.parametrize(
    "value",
    [
        lambda: adding(1),
        lambda: Setting([np.ones(2), {"a"}]),
        lambda: functools.partial(nn.Conv2d, kernel_size=3),
        lambda: slice(1, 2),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
        lambda: torch.arange(4),
    ],
)
def test_equal_attributes_made_anew_are_equal(value: Callable[[], Any]) -> None:
    first = made(value())
    assert first is not None and first == made(value())


def test_buffers_outside_the_state_and_integers_count_with_their_values() -> None:
    def holder(values: list[float], *, persistent: bool) -> Fingerprint | None:
        module = Holder()
        module.register_buffer("extra", torch.tensor(values), persistent=persistent)
        return fingerprint(stage_of(module))

    assert holder([1.0], persistent=True) == holder([2.0], persistent=True)
    assert holder([1.0], persistent=True) != holder([1.0], persistent=False)
    assert holder([1.0], persistent=False) != holder([2.0], persistent=False)
    assert holder([1], persistent=True) != holder([2], persistent=True)


def test_which_weights_are_one_counts() -> None:
    apart, tied, views = (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(3))
    tied[1].weight = tied[0].weight
    views[1].weight = nn.Parameter(views[0].weight.data)  # type: ignore[arg-type]
    found = [fingerprint(stage_of(module)) for module in (apart, tied, views)]
    assert None not in found and len(set(found)) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"outputs": ("other",)},
        {"free": {}},
        {"inputs": {"image": torch.zeros(2, 3, 8, 16)}},
        {"inputs": {"picture": torch.zeros(2, 3, 8, 8)}},
        {"inputs": {"image": torch.zeros(2, 3, 8, 8, dtype=torch.float64)}},
    ],
    ids=lambda value: type(value).__name__,
)
def test_inputs_and_outputs_count(changes: dict[str, Any]) -> None:
    module = tiny(0)
    assert fingerprint(stage_of(module)) != fingerprint(stage_of(module, **changes))
    # What the exporter never sees does not count.
    drawn = {"image": torch.ones(2, 3, 8, 8)}
    assert fingerprint(stage_of(module)) == fingerprint(stage_of(module, inputs=drawn))


def test_shapes_of_weights_count() -> None:
    assert fingerprint(stage_of(tiny(0))) != fingerprint(stage_of(tiny(0, num_classes=4)))


def test_a_class_that_a_factory_changed_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = made(Setting(1)), fingerprint(stage_of(tiny(0)))
    monkeypatch.setattr(Setting, "scale", 2.0)
    monkeypatch.setattr(TinyNet, "forward", lambda self, image: image)
    assert before[0] != made(Setting(1))
    assert before[1] != fingerprint(stage_of(tiny(0)))


def test_a_changed_default_type_counts() -> None:
    before = made(1)
    torch.set_default_dtype(torch.float64)
    try:
        module = Holder(1).float()
        assert before != fingerprint(stage_of(module, inputs={"image": torch.zeros(2, 3, 8, 8, dtype=torch.float32)}))
    finally:
        torch.set_default_dtype(torch.float32)


def deep(levels: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


@pytest.mark.parametrize(
    "value",
    [
        torch.Generator(),
        Copied(1),
        iter([1]),
        {object: torch.Generator()},
        {Setting(1)},
        torch.ones(2).to_sparse(),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2, device="meta"),
        torch.jit.script(nn.Linear(3, 3)),
        np.array([None]),
        deep(100_000),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_compared_has_no_fingerprint(value: Any) -> None:
    assert made(value) is None


def test_a_weight_that_is_also_in_a_list_has_no_fingerprint() -> None:
    module = Holder()
    # The exporter would write the list's tensor into the graph as a constant.
    module.value = [module.layer.weight]
    assert fingerprint(stage_of(module)) is None


def test_whether_equal_tuples_are_one_object_does_not_count() -> None:
    numbers = [1, 2]
    sizes = tuple(numbers)
    assert made([sizes, sizes]) == made([sizes, tuple(numbers)]) != made([sizes, (1, 3)])
    shared = [1]
    assert made([shared, shared]) != made([shared, [1]])


def test_objects_that_hold_each_other_end() -> None:
    one = Setting(None)
    one.value = [one]
    assert made(one) is not None
