"""Tests of joint retraining: which parameters step, how far, for how long, and which stay."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from judgements import judgement
from torch import Tensor, nn

from gemel.merging.layers.sharing import SharingMap, Use, bind
from gemel.merging.training import training
from gemel.merging.training.subjects import Subject, Teacher
from gemel.merging.training.training import Recipe, TrainingProgress, retrain, strain

MakeSubject = Callable[..., Subject]


class Net(nn.Module):
    """A model with two equal layers, a BatchNorm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.early = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.late = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(image)))
        x = self.late(torch.relu(self.early(x)))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in float32 instead of bfloat16, so that numbers can be compared."""
    monkeypatch.setattr(training, "mixed_precision", lambda device: nullcontext())


@pytest.fixture
def subjects(subject: MakeSubject) -> dict[str, Subject]:
    """Return two models whose weights were moved away from those of their teachers."""
    made = {name: subject(name, Net, seed=index, labels=True) for index, name in enumerate("ab")}
    for index, each in enumerate(made.values()):
        torch.manual_seed(10 + index)
        for parameter in each.model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return made


def share(subjects: Mapping[str, Subject], *slots: Iterable[tuple[str, str]]) -> SharingMap:
    """Bind the weights of some layers, each given as model and layer, to one parameter a slot; return the map."""
    sharing = SharingMap().joined([Use(model, f"{layer}.weight") for model, layer in slot] for slot in slots)
    bind({name: each.model for name, each in subjects.items()}, sharing)
    return sharing


def symmetric(subject: Subject) -> Subject:
    """Return the model with training images that equal their mirrored versions."""
    left = subject.train.loaded()[..., :4]
    images = replace(subject.train, stored=torch.cat([left, left.flip(-1)], -1))
    return replace(subject, train=images)


def unreachable(subject: Subject) -> Subject:
    """Return the model with targets that only its original weights reach."""
    hard = [replace(each, query=each.query.model_copy(update={"target": 1.0})) for each in subject.held]
    return replace(subject, held=tuple(hard))


def loss_of(subject: Subject) -> Tensor:
    """Return the model's distance from its teacher on all training images, as in an epoch of one batch."""
    subject.student.train()
    images = subject.train.batch(torch.arange(len(subject.train)))
    return subject.held[0].task.distance((subject.student(images),), subject.teacher(images))


def plain(steps: int, **changes: Any) -> Recipe:
    """Return a recipe without weight decay, at a constant rate, with the whole data set in one batch."""
    return Recipe(steps, batch=64, schedule="constant", decay=0.0, **changes)


def test_a_shared_weight_steps_once_along_the_sum_of_all_gradients(subjects: dict[str, Subject]) -> None:
    subjects = {name: symmetric(each) for name, each in subjects.items()}
    share(subjects, [("a", "early"), ("a", "late"), ("b", "early")])
    weight = subjects["a"].model.get_parameter("early.weight")
    own = subjects["b"].model.get_parameter("late.weight")
    assert weight is subjects["b"].model.get_parameter("early.weight")
    # The gradient of a shared weight is the sum over all layers that use it.
    total = torch.stack([torch.autograd.grad(loss_of(each), weight)[0] for each in subjects.values()]).sum(0)
    alone = torch.autograd.grad(loss_of(subjects["b"]), own)[0]
    before, before_own = weight.detach().clone(), own.detach().clone()
    retrain(subjects, "ab", plain(1, rate=0.01))
    # Nesterov's first step is 1.9 times the gradient. A weight listed three times would move further.
    assert torch.allclose(before_own - own, 1.9 * 0.01 * alone, rtol=1e-3, atol=1e-7)
    ratio = float((before - weight.detach()).norm() / (0.01 * total).norm())
    assert torch.allclose(before - weight, ratio * 0.01 * total, rtol=1e-3, atol=1e-7)
    assert math.isclose(ratio, 1.9 / math.sqrt(3), rel_tol=1e-3)


def test_smaller_batches_learn_at_a_lower_rate(subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    sgd = torch.optim.SGD

    def made(groups: Any, rate: float, **options: Any) -> torch.optim.SGD:
        rates.append(rate)
        return sgd(groups, rate, **options)

    monkeypatch.setattr(torch.optim, "SGD", made)
    for batch in (64, 16, 4):
        retrain(subjects, "ab", Recipe(1, batch=batch, rate=0.02))
    assert rates == pytest.approx([0.02, 0.01, 0.005])


def test_every_weight_is_in_the_optimizer_once(subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch) -> None:
    share(subjects, [("a", "early"), ("a", "late"), ("b", "early"), ("b", "late")], [("a", "stem"), ("b", "stem")])
    seen: list[nn.Parameter] = []

    class Watched(torch.optim.SGD):
        def __init__(self, params: Any, *args: Any, **options: Any) -> None:
            super().__init__(params, *args, **options)
            seen.extend(parameter for group in self.param_groups for parameter in group["params"])

    monkeypatch.setattr(torch.optim, "SGD", Watched)
    retrain(subjects, "ab", plain(1))
    assert (
        len(seen) == len({id(parameter) for parameter in seen}) == 2 + 2 * len(("norm.weight", "norm.bias", "w", "b"))
    )


def test_what_a_model_shares_with_one_that_does_not_learn_stays(subjects: dict[str, Subject]) -> None:
    share(subjects, [("a", "early"), ("b", "early")], [("a", "late"), ("b", "late")])
    before = {name: each.state() for name, each in subjects.items()}
    retrain(subjects, ["b"], plain(3))
    after = {name: each.state() for name, each in subjects.items()}
    assert all(torch.equal(value, before["a"][name]) for name, value in after["a"].items())
    changed = {name for name, value in after["b"].items() if not torch.equal(value, before["b"][name])}
    assert {"stem.weight", "head.weight", "norm.running_mean"} <= changed
    assert not changed & {"early.weight", "late.weight"}
    # The shared weight trains again when both models do.
    retrain(subjects, "ab", plain(1))
    assert not torch.equal(subjects["b"].model.get_parameter("early.weight"), before["b"]["early.weight"])


def test_training_brings_models_back_to_their_teachers(subjects: dict[str, Subject]) -> None:
    share(subjects, [("a", "stem"), ("b", "stem")])
    first = sum(float(loss_of(each).detach()) for each in subjects.values())
    told: list[TrainingProgress] = []
    held = {name: unreachable(each) for name, each in subjects.items()}
    retrain(held, "ab", Recipe(30, batch=32, gives_up=False), watch=told.append)
    assert sum(float(loss_of(each).detach()) for each in subjects.values()) < 0.5 * first
    assert [progress.step for progress in told] == list(range(1, 31))
    assert all(set(progress.losses) == set("ab") and progress.steps == 30 for progress in told)
    assert set(told[-1].accuracies) == set("ab")


def test_labels_are_learnt_from(subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the teacher is not asked")

    monkeypatch.setattr(type(subjects["a"].teacher), "__call__", never)
    result = retrain({"a": unreachable(subjects["a"])}, "a", plain(2, supervision="labels"))
    assert result.samples == 128


def test_both_is_the_mean_of_what_labels_and_the_teacher_teach(subjects: dict[str, Subject]) -> None:
    made = subjects["a"]
    before, steps = made.state(), {}
    for supervision in ("teacher", "labels", "both"):
        # Neither momentum nor weight decay nor the clipping of gradients: one step is proportional to the gradient.
        recipe = replace(plain(1, supervision=supervision), decay=0.0)
        retrain({"a": unreachable(made)}, "a", recipe)
        steps[supervision] = made.state()["head.weight"] - before["head.weight"]
        made.restore(before)
    assert not torch.allclose(steps["teacher"], steps["labels"])
    torch.testing.assert_close(steps["both"], (steps["teacher"] + steps["labels"]) / 2)


def test_shifted_images_are_shown_to_the_teacher_too(
    subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Tensor] = []
    held = {"a": unreachable(subjects["a"])}
    answers = type(held["a"].teacher).__call__

    def asking(teacher: Teacher, image: Tensor) -> Any:
        asked.append(image)
        return answers(teacher, image)

    monkeypatch.setattr(Teacher, "__call__", asking)
    retrain(held, "a", plain(2, supervision="labels", shifts=True))
    assert not asked
    retrain(held, "a", plain(2, supervision="both", shifts=True))
    assert len(asked) == 2
    asked.clear()
    retrain(held, "a", plain(2))
    retrain(held, "a", plain(2, shifts=True))
    assert len(asked) == 4
    # Whatever the order of the images is, those that are not shifted have the same pixels in all.
    total = held["a"].train.batch(torch.arange(64)).double().sum()
    same = [bool(torch.isclose(image.double().sum(), total)) for image in asked]
    assert same == [True, True, False, False]


def test_samples_are_counted_for_every_model(subject: MakeSubject) -> None:
    small, large = unreachable(subject("a", Net, count=10)), unreachable(subject("b", Net, count=64))
    both = {"a": small, "b": large}
    # Ten images make batches of 4, 3 and 3. The data set with most batches sets the length of an epoch.
    assert retrain(both, "ab", Recipe(5, batch=4, checks=0)).samples == (4 + 3 + 3 + 4 + 3) + 5 * 4
    assert retrain(both, "b", Recipe(2, unit="epochs", batch=32, checks=0)).samples == 128
    assert retrain(both, "ab", Recipe(1, unit="epochs", batch=32, checks=0)).samples == 2 * 10 + 64


def test_no_batch_is_much_smaller_than_the_others(subject: MakeSubject) -> None:
    # A last batch of one image would give BatchNorm the statistics of that image alone.
    feed = training._batches(subject("a", Net, count=33), Recipe(1, batch=32), 0)
    assert [len(next(feed)[0]) for _ in range(4)] == [17, 16, 17, 16]


def test_training_ends_when_all_reach_their_goals(subject: MakeSubject) -> None:
    made = {"a": subject("a", Net)}
    result = retrain(made, "a", Recipe(20, batch=32, rate=1e-6, checks=4))
    assert result.ended == "met"
    # Training stops at the first of four measurements, after a quarter of the steps.
    assert result.samples == 5 * 32


def test_a_model_that_reaches_its_goals_learns_from_half_as_many_images(subject: MakeSubject) -> None:
    made = {"a": subject("a", Net), "b": unreachable(subject("b", Net)), "c": unreachable(subject("c", Net))}
    told: list[TrainingProgress] = []
    result = retrain(made, "abc", Recipe(20, batch=32, rate=1e-6, checks=4, gives_up=False), watch=told.append)
    # From the first of four measurements on, ``a`` trains in every other step.
    assert result.samples == (5 + 8 + 20 + 20) * 32
    assert all(set(progress.losses) == set("abc") for progress in told)


def test_training_ends_when_there_is_no_hope(subjects: dict[str, Subject]) -> None:
    made = {"a": unreachable(subjects["a"]), "b": subjects["b"]}
    hopeless = retrain(made, "ab", Recipe(20, batch=32, rate=1e-6, checks=4))
    assert hopeless.ended == "hopeless"
    assert hopeless.samples < 20 * 32 * 2
    patient = retrain(made, "ab", Recipe(20, batch=32, rate=1e-6, checks=4, gives_up=False))
    assert (patient.ended, patient.samples) == ("done", 20 * 32 * 2)


def test_training_ends_when_time_is_up(subjects: dict[str, Subject]) -> None:
    before = subjects["a"].state()
    result = retrain(subjects, "a", plain(5), deadline=-math.inf)
    assert (result.ended, result.samples) == ("time", 0)
    assert all(torch.equal(value, before[name]) for name, value in subjects["a"].state().items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_training(subjects: dict[str, Subject], value: float) -> None:
    nn.init.constant_(subjects["b"].model.get_parameter("head.weight"), value)
    result = retrain(subjects, "ab", plain(3))
    assert result.ended == "diverged"
    assert re.fullmatch(r"b: the loss is (nan|inf) at step 1", result.trouble)
    # The images of the failed step are counted.
    assert result.samples == 128


def test_without_labels_the_published_recipe_learns_from_the_teacher(subjects: dict[str, Subject]) -> None:
    unlabelled = {name: replace(each, train=replace(each.train, labels=None)) for name, each in subjects.items()}
    states = []
    for supervision in ("labels", "teacher"):
        before = {name: each.state() for name, each in unlabelled.items()}
        assert retrain(unlabelled, "ab", plain(2, supervision=supervision)).ended in ("done", "met")
        states.append(unlabelled["a"].state()["stem.weight"])
        for name, each in unlabelled.items():
            each.restore(before[name])
    assert torch.equal(*states)


def test_training_does_not_end_where_only_the_images_glanced_at_are_right(
    subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = subject("a", Net)
    monkeypatch.setattr(Subject, "judged", lambda self, exam, limit: {"a": judgement(1.0 if limit else 0.5)})
    assert retrain({"a": made}, "a", Recipe(10, batch=32, checks=4, gives_up=False)).ended == "done"
    monkeypatch.setattr(Subject, "judged", lambda self, exam, limit: {"a": judgement(1.0)})
    assert retrain({"a": made}, "a", Recipe(10, batch=32, checks=4, gives_up=False)).ended == "met"


def test_training_may_end_early_only_where_something_is_left_to_lose(
    subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = subject("a", Net, targets=(0.9,))
    monkeypatch.setattr(Subject, "judged", lambda self, exam, limit: {"a": judgement(0.94)})
    for spare, ended in ((0.0, "met"), (0.3, "met"), (0.5, "done")):
        assert retrain({"a": made}, "a", Recipe(10, batch=32, gives_up=False, spare=spare)).ended == ended


def test_only_gradients_of_narrow_models_are_bounded(subjects: dict[str, Subject]) -> None:
    steps = {}
    for narrow in (False, True):
        made = {name: replace(each, narrow=narrow and name == "b") for name, each in subjects.items()}
        before = {name: each.state() for name, each in made.items()}
        for each in made.values():
            # Move far from the teacher, so that gradients are large.
            each.model.get_parameter("head.weight").data.mul_(50)
        start = {name: each.state() for name, each in made.items()}
        retrain(made, "ab", plain(1, rate=1e-4))
        steps[narrow] = {
            name: (each.state()["stem.weight"] - start[name]["stem.weight"]).norm() for name, each in made.items()
        }
        for name, each in made.items():
            each.restore(before[name])
    assert steps[True]["a"] == steps[False]["a"]
    assert steps[True]["b"] < 0.5 * steps[False]["b"]


def test_gradients_of_a_model_without_batchnorms_are_bounded(subject: MakeSubject) -> None:
    made = subject("a", lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))
    # A teacher that is far away, so that gradients are large.
    made.teacher.module.get_parameter("model.1.weight").data.mul_(1e4)
    before = made.state()
    retrain({"a": made}, "a", plain(1, rate=1.0))
    steps = [(value - before[name]).norm() for name, value in made.state().items()]
    assert 0 < sum(step.square() for step in steps) ** 0.5 < 2.5


def test_who_watches_may_stop(subjects: dict[str, Subject]) -> None:
    def stop(progress: TrainingProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retrain(subjects, "ab", plain(3), watch=stop)


def test_equal_seeds_train_alike(subject: MakeSubject) -> None:
    states = []
    for seed in (1, 1, 2):
        made = {"a": unreachable(subject("a", Net))}
        retrain(made, "a", Recipe(4, batch=16, checks=0), seed=seed)
        states.append(made["a"].state()["stem.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_strain_is_where_the_gradient_is(subjects: dict[str, Subject]) -> None:
    sharing = share(subjects, [("a", "early"), ("b", "early")], [("a", "late"), ("b", "late")])
    before = subjects["a"].state()
    pull = strain(subjects["a"], sharing, batches=1)
    assert set(pull) == {Use("a", "early.weight"), Use("a", "late.weight")}
    assert all(value > 0 for value in pull.values())
    assert all(parameter.grad is None for parameter in subjects["a"].model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in subjects["a"].state().items())
    assert pull == strain(subjects["a"], sharing, batches=1)


def test_a_model_that_is_its_teacher_pulls_at_nothing(subject: MakeSubject) -> None:
    made = {name: subject(name, Net) for name in "ab"}
    sharing = share(made, [("a", "early"), ("b", "early")])
    assert max(strain(made["a"], sharing).values()) < 1e-12
