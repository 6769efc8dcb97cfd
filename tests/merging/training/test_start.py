"""Tests of starting weights: donors, averages, BatchNorm re-estimation and refitted heads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from judgements import judgement
from torch import Tensor, nn

from gemel.merging.judging.exams import Exam, JudgedQuery
from gemel.merging.judging.judgement import Judgement
from gemel.merging.layers.sharing import Use
from gemel.merging.training import start
from gemel.merging.training.start import average, donate, is_narrow, refit_heads, reset_statistics
from gemel.merging.training.subjects import Subject

MakeSubject = Callable[..., Subject]


class Net(nn.Module):
    """A model with three equal layers, the last without a BatchNorm behind it, and a head."""

    def __init__(self, head: nn.Module | None = None, affine: bool = True) -> None:
        super().__init__()
        self.late = nn.Conv2d(8, 8, 1, bias=False)
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm0 = nn.BatchNorm2d(8)
        self.early = nn.Conv2d(8, 8, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(8, affine=affine)
        self.norm2 = nn.BatchNorm2d(8)
        self.bare = nn.Conv2d(8, 8, 1, bias=False)
        self.head = head or nn.Linear(8, 3)
        for norm in (self.norm0, self.norm1, self.norm2):
            for value in (*norm.parameters(), norm.running_mean, norm.running_var):
                assert value is not None
                nn.init.uniform_(value, 0.5, 1.5)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm0(self.stem(image)))
        x = torch.relu(self.norm1(self.early(x)))
        x = torch.relu(self.norm2(self.late(x)))
        x = torch.relu(self.bare(x))
        if isinstance(self.head, nn.Conv2d):
            # Call one head on features of two sizes, as detectors do.
            places: Tensor = torch.cat([self.head(each).flatten(1) for each in (x, x[:, :, ::2, ::2])], 1)
            return places
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


def pair_of(subject: MakeSubject, affine: bool = True) -> dict[str, Subject]:
    """Return the models ``a`` and ``b`` with different weights; ``affine`` is of a BatchNorm of ``b``."""
    return {"a": subject("a", Net, seed=0), "b": subject("b", lambda: Net(affine=affine), seed=1)}


def values(subject: Subject, name: str) -> Tensor:
    """Return a copy of a tensor of the model's state dict."""
    value: Tensor = subject.model.state_dict()[name]
    return value.clone()


def slot(*uses: tuple[str, str]) -> tuple[Use, ...]:
    """Return the slot of the weights of some layers, each given as model and layer."""
    return tuple(sorted(Use(model, f"{layer}.weight") for model, layer in uses))


def test_a_donor_gives_kernel_and_batch_norm(subject: MakeSubject) -> None:
    subjects = pair_of(subject)
    before = subjects["b"].state()
    donate(subjects, [slot(("a", "early"), ("b", "early"))], ("b", "a"))
    for name in ("early.weight", "norm1.weight", "norm1.bias", "norm1.running_mean", "norm1.running_var"):
        assert torch.equal(values(subjects["a"], name), before[name])
    assert not torch.equal(values(subjects["a"], "norm2.weight"), before["norm2.weight"])
    assert all(torch.equal(value, before[name]) for name, value in subjects["b"].state().items())


def test_who_has_the_kernel_already_keeps_its_batch_norm(subject: MakeSubject) -> None:
    subjects = pair_of(subject)
    shared = slot(("a", "early"), ("b", "early"))
    donate(subjects, [shared], ("a", "b"))
    nn.init.constant_(subjects["b"].model.get_parameter("norm1.bias"), 7.0)
    donate(subjects, [(*shared, Use("b", "late.weight"))], ("a", "b"))
    assert torch.equal(values(subjects["b"], "late.weight"), values(subjects["a"], "early.weight"))
    assert bool((values(subjects["b"], "norm1.bias") == 7).all())
    assert torch.equal(values(subjects["b"], "norm2.bias"), values(subjects["a"], "norm1.bias"))


def test_the_first_gives_its_kernel_alone(subject: MakeSubject) -> None:
    subjects = pair_of(subject)
    before = subjects["b"].state()
    donate(subjects, [slot(("a", "early"), ("b", "early"))], ("a", "b"), norms=False)
    assert torch.equal(values(subjects["b"], "early.weight"), values(subjects["a"], "early.weight"))
    changed = [name for name, value in subjects["b"].state().items() if not torch.equal(value, before[name])]
    assert changed == ["early.weight"]


def test_a_donor_that_uses_a_slot_twice_gives_the_layer_that_runs_first(subject: MakeSubject) -> None:
    subjects = pair_of(subject)
    # ``late`` was constructed first and runs second.
    donate(subjects, [slot(("a", "early"), ("a", "late"), ("b", "late"))], ("a", "b"))
    first = values(subjects["a"], "early.weight")
    assert torch.equal(values(subjects["a"], "late.weight"), first)
    assert torch.equal(values(subjects["b"], "late.weight"), first)
    assert torch.equal(values(subjects["b"], "norm2.bias"), values(subjects["a"], "norm1.bias"))


def test_layers_without_batch_norm_give_and_take_none(subject: MakeSubject) -> None:
    subjects = pair_of(subject)
    before = subjects["b"].state()
    donate(subjects, [slot(("a", "early"), ("b", "bare")), slot(("a", "bare"), ("b", "early"))], ("a", "b"))
    assert torch.equal(values(subjects["b"], "bare.weight"), values(subjects["a"], "early.weight"))
    assert all(torch.equal(value, before[name]) for name, value in subjects["b"].state().items() if "norm" in name)


def test_of_a_batch_norm_without_weights_only_the_statistics_are_taken(subject: MakeSubject) -> None:
    subjects = pair_of(subject, affine=False)
    before = subjects["b"].state()
    donate(subjects, [slot(("b", "early"), ("a", "early"))], ("b", "a"))
    assert torch.equal(values(subjects["a"], "norm1.running_var"), before["norm1.running_var"])


def test_the_average_is_of_all_uses(subject: MakeSubject) -> None:
    subjects = pair_of(subject)
    uses = [("a", "early"), ("a", "late"), ("b", "early")]
    mean = torch.stack([values(subjects[model], f"{layer}.weight") for model, layer in uses]).mean(0)
    average(subjects, [slot(*uses)])
    for model, layer in uses:
        assert torch.allclose(values(subjects[model], f"{layer}.weight"), mean)


def test_statistics_are_those_of_the_images(subject: MakeSubject) -> None:
    made = subject("a", Net)
    batches = [made.train.batch(part) for part in torch.arange(64).split(32)]
    seen = []
    for batch in batches:
        output = nn.functional.conv2d(batch, values(made, "stem.weight"), padding=1)
        seen.append((output.mean((0, 2, 3)), output.var((0, 2, 3))))
    reset_statistics(made, batches)
    for name, index in (("norm0.running_mean", 0), ("norm0.running_var", 1)):
        expected = torch.stack([each[index] for each in seen]).mean(0)
        assert torch.allclose(values(made, name), expected, rtol=1e-4, atol=1e-6)
    # Momentum and mode are as before, so that training can follow.
    assert {made.model.get_submodule(f"norm{index}").momentum for index in range(3)} == {0.1}
    assert not any(layer.training for layer in made.student.modules())


def test_a_model_without_batch_norm_has_no_statistics(subject: MakeSubject) -> None:
    made = subject("a", lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))
    before = made.state()
    reset_statistics(made, [])
    assert all(torch.equal(value, before[name]) for name, value in made.state().items())


@pytest.mark.parametrize(("found", "narrow"), [(0.96, True), (0.98, False)])
def test_images_whose_statistics_break_a_model_are_narrow(
    found: float, narrow: bool, subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = subject("a", Net)
    before = made.state()

    def judged(held: JudgedQuery, exam: Exam, student: nn.Module, *others: object) -> Judgement:
        assert held is made.held[0] and exam == Exam(held.choose.own)
        assert not torch.equal(values(made, "norm0.running_var"), before["norm0.running_var"])
        assert student is made.student and not student.training and others[-1] == 40
        return judgement(found)

    monkeypatch.setattr("gemel.merging.training.start.judge_query", judged)
    assert is_narrow(made, [made.train.batch(torch.arange(64))], 40) == narrow
    assert all(torch.equal(value, before[name]) for name, value in made.state().items())


def test_a_model_without_statistics_is_not_judged_by_them(
    subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = subject("a", lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))
    # An accuracy of 0.5 on few images must not count: the images may just be hard ones.
    monkeypatch.setattr(Subject, "judged", lambda *_, **__: {"a": judgement(0.5)})
    assert not is_narrow(made, iter(()), 8)


def embedding(made: Subject) -> Tensor:
    """Return the model's output on all training images."""
    with torch.no_grad():
        output: Tensor = made.student(made.train.batch(torch.arange(64)))
    return output


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["linear", "conv", "convolution with stride"])
def test_a_head_that_was_destroyed_is_found_again(subject: MakeSubject, kind: str, bias: bool) -> None:
    heads: dict[str, Callable[[], nn.Module]] = {
        "linear": lambda: nn.Linear(8, 3, bias=bias),
        "conv": lambda: nn.Conv2d(8, 2, 1, bias=bias),
        "convolution with stride": lambda: nn.Conv2d(8, 2, 3, stride=2, padding=1, bias=bias),
    }
    made = subject("a", lambda: Net(heads[kind]()), task="embedding")
    assert made.traced.heads == {"head"}
    before, wanted = made.state(), embedding(made)
    for parameter in made.model.get_submodule("head").parameters():
        nn.init.normal_(parameter)
    assert (embedding(made) - wanted).abs().mean() > wanted.std()
    refit_heads(made, [made.train.batch(part) for part in torch.arange(64).split(16)])
    assert (embedding(made) - wanted).abs().mean() < 0.05 * wanted.std()
    changed = {name for name, value in made.state().items() if not torch.equal(value, before[name])}
    assert changed == {f"head.{name}" for name, _ in made.model.get_submodule("head").named_parameters()}


def test_a_head_is_fitted_to_what_it_gives_before_an_activation_in_place(subject: MakeSubject) -> None:
    made = subject("a", lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Linear(8, 4), nn.ReLU(inplace=True)))
    assert made.traced.heads == {"2"}
    before = values(made, "2.weight")
    nn.init.zeros_(made.model.get_parameter("2.weight"))
    refit_heads(made, [made.train.batch(torch.arange(64))])
    assert (values(made, "2.weight") - before).abs().mean() < 0.05 * before.abs().mean()


def test_heads_that_cannot_be_fitted_stay(subject: MakeSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [torch.randn(8, 3, 8, 8)]
    for head in (
        nn.Conv2d(8, 4, 1, groups=2),
        nn.Conv2d(8, 2, 3, padding="same"),
        nn.Conv2d(8, 2, 3, padding=1, padding_mode="reflect"),
    ):
        made = subject("a", partial(Net, head), task="embedding")
        before = values(made, "head.weight")
        nn.init.zeros_(made.model.get_parameter("stem.weight"))
        refit_heads(made, images)
        assert torch.equal(values(made, "head.weight"), before)
    monkeypatch.setattr(start, "_WIDEST", 3)
    made = subject("a", Net)
    nn.init.zeros_(made.model.get_parameter("stem.weight"))
    before = values(made, "head.weight")
    refit_heads(made, images)
    assert torch.equal(values(made, "head.weight"), before)


@pytest.mark.parametrize("broken", [0.0, float("nan")])
def test_a_head_that_nothing_reaches_stays(subject: MakeSubject, broken: float) -> None:
    made = subject("a", lambda: Net(nn.Linear(8, 3, bias=False)))
    before = values(made, "head.weight")
    nn.init.constant_(made.model.get_parameter("bare.weight"), broken)
    refit_heads(made, [made.train.batch(torch.arange(64))])
    assert torch.equal(values(made, "head.weight"), before)
