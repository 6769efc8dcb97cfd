"""Tests of channel alignment: models compute the same afterwards, and their weights become similar."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch_pruning
from torch import Tensor, nn

from gemel.merging.layers.sharing import SharingMap, Use
from gemel.merging.training.align import _channels, _reorder, align
from gemel.merging.training.subjects import Subject, outputs_of
from gemel.merging.training.trial import Start, Trial, TrialRunner
from gemel.workload.zoo.cifar_resnet import cifar_resnet

MakeSubject = Callable[..., Subject]
IMAGE = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Mixed(nn.Module):
    """A model with every operation that ties channels together.

    A sum, a concatenation, a depthwise and a transposed convolution, a flattened map, and BatchNorm with and without
    scale and shift.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.plain = nn.BatchNorm2d(8, affine=False)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.wide = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.back = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.both = nn.Conv2d(16, 5, 3, stride=4, padding=1)
        self.fully = nn.Linear(20, 6)
        self.head = nn.Linear(6, 3)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean = torch.randn(8)
                layer.running_var = torch.rand(8) + 0.5

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(image)))
        x = x + torch.relu(self.plain(self.deep(x)))
        x = torch.cat([self.back(torch.relu(self.wide(x))), x], 1)
        x = torch.relu(self.both(x)).flatten(1)
        scores: Tensor = self.head(torch.relu(self.fully(x)))
        return scores


def shuffled(subject: Subject) -> Subject:
    """Permute a model's channels at random, in place, wherever their order is free; return the model."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for channels in _channels(subject, IMAGE):
            assert _reorder(channels, torch.randperm(len(channels[0].places), generator=generator))
    return subject


def pairs(to: Subject, own: Subject) -> list[tuple[Tensor, nn.Parameter]]:
    """Return pairs of a reference model's weight and the same weight of another model."""
    return [(weight.detach(), own.model.get_parameter(name)) for name, weight in to.model.named_parameters()
            if name.endswith("weight") and weight.ndim > 1]  # fmt: skip


def outputs(subject: Subject) -> Tensor:
    """Return the model's output on the test image."""
    with torch.no_grad():
        return outputs_of(subject.student.eval(), IMAGE)[0]


@pytest.mark.parametrize(
    ("model", "count"), [(Mixed, 5), (None, 2), (lambda: cifar_resnet(8, 3), 3)], ids=["mixed", "small", "resnet"]
)
def test_every_order_that_can_be_changed_is_found_again(
    model: Callable[[], nn.Module] | None, count: int, subject: MakeSubject
) -> None:
    there, here = subject("a", model), shuffled(subject("a", model))
    # A CIFAR ResNet pads channels between its stages, so only the order inside its blocks is free.
    assert len(_channels(here, IMAGE)) == count
    torch.testing.assert_close(outputs(here), outputs(there))
    state = there.state()
    assert any(not torch.equal(value, state[name]) for name, value in here.state().items())
    align(here, IMAGE, pairs(there, here))
    assert all(torch.equal(value, state[name]) for name, value in here.state().items())


def test_a_model_computes_the_same_when_it_is_made_like_another(subject: MakeSubject) -> None:
    there, here = subject("a", Mixed, seed=3), subject("b", Mixed)
    before, expected = pairs(there, here), outputs(here)
    likeness = sum(float((weight * own.detach()).sum()) for weight, own in before)
    align(here, IMAGE, before)
    assert sum(float((weight * own.detach()).sum()) for weight, own in before) > likeness
    torch.testing.assert_close(outputs(here), expected)


def test_a_model_that_the_graph_does_not_understand_stays_as_it_is(
    subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such operation")

    there, here = subject("a"), shuffled(subject("a"))
    before = here.state()
    monkeypatch.setattr(torch_pruning.DependencyGraph, "build_dependency", fail)
    align(here, IMAGE, pairs(there, here))
    assert all(torch.equal(value, before[name]) for name, value in here.state().items())


@pytest.mark.parametrize("still", [False, True])
def test_models_that_differ_in_their_order_alone_are_averaged_without_loss(still: bool, subject: MakeSubject) -> None:
    subjects = {"a": subject("a"), "b": shuffled(subject("b"))}
    slots = [[Use("a", f"{layer}.weight"), Use("b", f"{layer}.weight")] for layer in ("conv1", "conv2")]
    original = subjects["a"].state()
    states = {name: each.state() for name, each in subjects.items()}
    # Channels of a weight that is shared with another model must not move.
    shared = SharingMap().joined([[Use("b", "conv1.weight"), Use("c", "conv1.weight")]]) if still else SharingMap()
    trial = Trial("", SharingMap().joined(slots), frozenset("ab"), Start("average", ("a", "b")))
    found = TrialRunner(subjects)(trial, states, shared).states["b"]
    same = torch.allclose(found["conv2.weight"], original["conv2.weight"])
    assert same is not still
