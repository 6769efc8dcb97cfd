"""Tests of closed-form errors: what one kernel for several models leaves unexplained."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gemel.merging.layers.sharing import Use
from gemel.merging.training.closed_form import JointErrors, summary
from gemel.merging.training.subjects import Subject

MakeSubject = Callable[..., Subject]
SLOT = (Use("a", "conv2.weight"), Use("b", "conv2.weight"))


@pytest.fixture
def pair(subject: MakeSubject) -> dict[str, Subject]:
    """Return two models with independent weights."""
    return {"a": subject("a"), "b": subject("b", seed=1)}


def original(subject: Subject, name: str) -> nn.Conv2d:
    """Return a convolution of a subject's original model."""
    model = subject.teacher.module.model
    assert isinstance(model, nn.Module)
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Conv2d)
    return layer


def test_equal_kernels_have_hardly_an_error_whatever_the_scales_of_their_channels(pair: dict[str, Subject]) -> None:
    theirs, ours = (original(pair[name], "conv2") for name in "ab")
    scale = torch.tensor([0.1, 3.0, 1.0, 0.5, 2.0, 7.0])[:, None, None, None]
    independent = JointErrors(pair)(SLOT)
    with torch.no_grad():
        ours.weight.copy_(theirs.weight * scale)
    equal = JointErrors(pair)(SLOT)
    assert independent is not None
    assert equal is not None
    assert equal <= 0.03 < independent / 2


def test_the_error_is_what_the_best_joint_kernel_leaves(pair: dict[str, Subject]) -> None:
    error = JointErrors(pair)(SLOT)
    assert error is not None
    assert 0 < error < 1
    # The same result by another way: least squares on the stacked inputs and normalised outputs of both layers.
    rows = {name: _inputs(pair[name]) for name in "ab"}
    weights = {name: original(pair[name], "conv2").weight.detach().flatten(1).double() for name in "ab"}
    outputs = {name: rows[name] @ weights[name].T for name in "ab"}
    stacked = torch.cat([rows[name] for name in "ab"])
    wanted = torch.cat([outputs[name] / outputs[name].std(0, unbiased=False) for name in "ab"])
    joint = torch.linalg.lstsq(stacked, wanted, driver="gelsd").solution
    errors = []
    for name in "ab":
        found = torch.stack([rows[name] @ joint, outputs[name]])
        found = found - found.mean(1, keepdim=True)
        agreement = (found[0] * found[1]).sum(0).square() / found.square().sum(1).prod(0)
        errors.append(float((1 - agreement).mean()))
    assert error == pytest.approx(sum(errors) / 2, abs=0.02)


def _inputs(subject: Subject) -> Tensor:
    """Return the centred inputs of the second convolution on all training images, ``[R, I]`` float64."""
    found: list[Tensor] = []
    layer = original(subject, "conv2")
    handle = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].detach()))
    order = torch.randperm(len(subject.train), generator=torch.Generator().manual_seed(0))[:32]
    with torch.no_grad():
        subject.teacher.module(subject.train.batch(order))
    handle.remove()
    rows = nn.functional.unfold(found[0], 3, padding=1).transpose(1, 2).flatten(0, 1).double()
    return rows - rows.mean(0)


def test_models_in_training_do_not_change_the_error(pair: dict[str, Subject]) -> None:
    before = JointErrors(pair)(SLOT)
    for each in pair.values():
        for parameter in each.model.parameters():
            parameter.data.zero_()
    assert JointErrors(pair)(SLOT) == before


class Grouped(nn.Module):
    """A model whose second convolution has channel groups."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.head = nn.Linear(6, 3)

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.relu(self.conv2(self.conv1(image))).mean((2, 3)))
        return scores


def test_layers_that_are_not_fitted_have_no_error(subject: MakeSubject, pair: dict[str, Subject]) -> None:
    grouped = {name: subject(name, Grouped, seed=index) for index, name in enumerate("ab")}
    assert JointErrors(grouped)(SLOT) is None
    assert JointErrors(grouped)((Use("a", "conv1.weight"), Use("b", "conv1.weight"))) is not None
    # A kernel whose outputs do not vary has nothing to explain.
    with torch.no_grad():
        original(pair["a"], "conv2").weight.zero_()
    assert JointErrors(pair)(SLOT) is None


def test_summary() -> None:
    assert summary([0.5, None, 0.25, 0.75]) == (
        "3 layers: one kernel for all models leaves 50% of their outputs unexplained (median; 25% to 75%), 1 of them"
        " more than half"
    )
    assert summary([None]) == "no layer that can be fitted in closed form"
