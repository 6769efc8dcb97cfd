"""Test the exams: a model that only works on what its own camera shows is seen, and few images are said to be few."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gemel.bundles.decode_specs import SsdDecode
from gemel.bundles.manifest import InputSpec
from gemel.compiler.heads import Cut, StageModule
from gemel.errors import UnjudgedError
from gemel.frames.preprocess import Geometry
from gemel.merging.judging.exams import (
    JudgedQuery,
    best_judgement,
    check_exams,
    contradictions,
    judge_query,
    judged_query,
    unchanged,
)
from gemel.merging.judging.intervals import SAME
from gemel.merging.judging.judgement import Judgement
from gemel.merging.judging.rounding import rounding_score
from gemel.merging.judging.running import answers_on, outputs_of
from gemel.merging.models.networks import Network
from gemel.merging.tasks import task_of
from gemel.merging.tasks.classification import ClassificationTask
from gemel.merging.tasks.embedding import EmbeddingTask, retrieval
from gemel.runtime.decode.evidence import accuracy_of
from gemel.workload.data import Images, Splits
from gemel.workload.document.schema import Query

CPU = torch.device("cpu")
SPEC = InputSpec(size=(4, 4))


def images(*shades: int, **known: Any) -> Images:
    """Make gray images of some shades, 0 to 255."""
    pixels = torch.tensor(shades, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    return Images(pixels, (Geometry((4, 4), (4, 4), (4, 4)),) * len(shades), SPEC, **known)


def query(task: str = "classification", **changes: Any) -> Query:
    """Make a query named ``door``."""
    return Query.model_validate({"name": "door", "feed": "yard", "task": task, "model": {"factory": "a:b"}, **changes})


class Shade(nn.Module):
    """A classifier of four shades, from dark to bright; ``wrong`` are shades that it takes for the first one."""

    def __init__(self, *wrong: int) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, image: Tensor) -> Tensor:
        shade = (image.mean((1, 2, 3)) * 4).long().clamp(0, 3)
        for each in self.wrong:
            shade = torch.where(shade == each, 0, shade)
        scores: Tensor = 10 * nn.functional.one_hot(shade, 4).float()
        return scores


OWN, OTHERS = (10, 100) * 60, (10, 100, 150, 240) * 40


def held(task: Any = None, module: nn.Module | None = None, own: Images | None = None, **changes: Any) -> JudgedQuery:
    """Judge a query by frames of two shades of its own, and by four shades on the mix, if there are no labels."""
    own = own or images(*OWN)
    mixes = None if own.labels is not None else (images(*OTHERS), images(*OTHERS))
    return judged_query(
        query(**changes), task or ClassificationTask(), module or Shade(), Splits(own, own, own), mixes, CPU
    )


def judged(
    made: JudgedQuery, student: nn.Module, teacher: nn.Module | None = None, limit: int | None = None
) -> Judgement:
    """Judge a model by the exam that chooses."""
    return judge_query(made, made.choose, student, partial(outputs_of, teacher or Shade()), CPU, limit)


def test_a_model_that_only_works_on_its_own_feed_is_seen() -> None:
    made = held()
    whole = judged(made, Shade())
    assert [part.value for part in whole.parts] == [1, 1, 1] and whole.passes(0.95)
    blind = judged(made, Shade(3))
    assert blind.own.value == blind.accuracy == 1
    assert blind.mix is not None and blind.mix.value == 0.75
    assert blind.scores is not None and blind.scores.value == pytest.approx(0.75, abs=0.01)
    assert not blind.passes(0.95) and blind.relative < 0.76


def test_a_query_with_labels_is_judged_by_them_alone() -> None:
    made = held(own=images(*OWN, labels=torch.tensor([0, 1] * 60)))
    found = judged(made, Shade(1))
    assert (found.accuracy, found.original, found.parts) == (0.5, 1.0, (found.own,))


def test_a_limit_takes_the_first_images() -> None:
    found = judged(held(), Shade(3), limit=50)
    assert found.own.images == 50
    assert found.scores is not None and found.scores.images == 10


class Silent(nn.Module):
    """A teacher that must not run."""

    def forward(self, image: Tensor) -> Tensor:
        raise AssertionError("the original's outputs are known")


@pytest.mark.parametrize("limit", [None, 50])
def test_the_original_runs_again_only_where_its_outputs_take_much_memory(
    limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = judged(held(), Shade(3), Silent(), limit)
    monkeypatch.setattr("gemel.merging.judging.running._MOST_KEPT", 100)
    made = held()
    assert made.choose.mix is not None and made.choose.mix.outputs is None
    assert judged(made, Shade(3), limit=limit) == kept
    with pytest.raises(AssertionError, match="known"):
        judged(made, Shade(3), Silent())


def test_a_room_in_which_all_is_alike_judges_nothing() -> None:
    dark = images(*[10] * 60)
    alike = judged_query(query(), ClassificationTask(), Shade(), Splits(dark, dark, dark), (dark, dark), CPU)
    with pytest.raises(UnjudgedError, match="query door: there is nothing to judge by in 60 images"):
        check_exams(alike)
    # Other cameras show more: a model that always answers the same is seen there.
    made = held(own=dark)
    check_exams(made)
    assert not judged(made, Shade(1, 2, 3)).passes(0.95)


def test_labels_that_contradict() -> None:
    never = images(*OWN, labels=torch.tensor([1, 0] * 60))
    with pytest.raises(UnjudgedError, match="right on 0% of its data, less than a guess: the labels contradict it"):
        check_exams(held(own=never))
    seldom = images(*OWN, labels=torch.tensor([1, 0, 1, 0, 1, 0, 0, 1] * 15))
    with pytest.raises(UnjudgedError, match="right on 25%"):
        check_exams(held(own=seldom))
    check_exams(held(own=images(*OWN, labels=torch.tensor([0, 1, 0, 0] * 30))))
    twice = images(10, 10, 100, 150, 150, 150, labels=torch.tensor([0, 1, 1, 2, 2, 3]))
    assert contradictions([twice]) == 5
    assert contradictions([images(10, 10, 100, labels=torch.tensor([0, 0, 1])), images(10, 20)]) == 0


def test_too_few_images_for_a_target_are_told_before_anything_is_tried() -> None:
    made = held(own=images(*OWN[:20]))
    assert best_judgement(made, made.choose).advice(0.95).startswith("n=20: the interval 0.8")
    assert best_judgement(held(), held().choose).advice(0.95) == ""


def ssd(classes: int, activation: Any) -> SsdDecode:
    """Return the spec of a detector with fixed anchors and a background class."""
    return SsdDecode(
        classes=classes,
        score_threshold=0.3,
        nms_threshold=0.5,
        max_detections=10,
        anchors="a",
        activation=activation,
        background=True,
        box_weights=(1, 1, 1, 1),
    )


class Boxes(nn.Module):
    """A detector with one anchor that scores bright images; ``blind`` from a shade on, with a ``weak`` background."""

    def __init__(self, blind: float = 2.0, weak: float = 0.0) -> None:
        super().__init__()
        self.blind, self.weak = blind, weak

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        shade = image.mean((1, 2, 3))
        score = torch.where((shade > 0.5) & (shade < self.blind), 3.0, -3.0 + self.weak)
        return torch.stack([torch.zeros_like(score), score], -1)[:, None], torch.zeros(len(image), 1, 4)


def detector(module: nn.Module, own: Images, other: Images, **changes: Any) -> JudgedQuery:
    """Judge a detection query of one class."""
    spec = ssd(1, "softmax")
    cut = Cut(
        {"main": StageModule(module, {}, ("logits", "boxes"))},
        spec,
        SPEC,
        {"a": torch.tensor([[0.0, 0, 4, 4]]).numpy()},
    )
    made = query("detection", **changes)
    task = task_of(Network("net", (made,), cut), made)
    return judged_query(made, task, module, Splits(own, own, own), (other, other), CPU)


def test_a_query_without_objects_is_not_judged() -> None:
    dark, bright = images(*[10] * 60), images(*[200] * 60)
    with pytest.raises(UnjudgedError, match="query door: there is no object to judge by in 60 images"):
        detector(Boxes(), dark, bright)


def test_a_few_objects_on_the_mix_are_not_lost_without_notice() -> None:
    own, other = images(*[140] * 80), images(*[10] * 77, 240, 240, 240)
    made = detector(Boxes(), own, other)
    same, blind = (judged(made, module, Boxes()) for module in (Boxes(), Boxes(blind=0.8)))
    assert same.mix is not None and same.mix.images == 3 and same.mix.low < 0.95 and same.passes(0.95)
    assert blind.own.value == 1
    assert blind.mix is not None and blind.mix.value == 0
    assert not blind.passes(0.95)


def test_where_the_original_finds_nothing_scores_decide() -> None:
    made = detector(Boxes(), images(*[200] * 80), images(*[10] * 80))
    same, other = (judged(made, module, Boxes()) for module in (Boxes(), Boxes(weak=1.5)))
    assert same.mix is None and same.passes(0.95)
    # No answer differs, but the scores of what is no object do.
    assert other.mix is None and other.accuracy == 1
    assert other.scores is not None and other.scores.value < 0.95
    assert not other.passes(0.95)


class Vectors(nn.Module):
    """An embedder that gives an image of one shade a vector on a circle; ``turn`` (radians) turns dark images only."""

    def __init__(self, turn: float = 0.0, flat: bool = False) -> None:
        super().__init__()
        self.turn, self.flat = turn, flat

    def forward(self, image: Tensor) -> Tensor:
        shade = image.mean((1, 2, 3))
        angle = shade * 5 + torch.where(shade < 0.3, self.turn, 0.0)
        if self.flat:
            angle = angle * 0
        return torch.stack([angle.cos(), angle.sin()], 1)


def embedder(own: Images) -> JudgedQuery:
    """Judge an embedding query whose mix has all shades."""
    other = images(*range(0, 250, 2))
    return judged_query(
        query("embedding"), EmbeddingTask("door"), Vectors(), Splits(own, own, own), (other, other), CPU
    )


def test_embeddings_are_centred_over_many_feeds_and_judged_by_their_neighbours() -> None:
    made = embedder(images(*range(180, 240)))
    task = made.task
    assert isinstance(task, EmbeddingTask) and task.centre is not None
    same, turned, flat = (
        judged(made, module, Vectors()) for module in (Vectors(), Vectors(turn=2.0), Vectors(flat=True))
    )
    assert same.passes(0.95) and same.mix is not None and same.mix.value == 1
    # Images of its own are as before; dark ones, which its camera never shows, are not.
    assert turned.own.value == pytest.approx(1) and not turned.passes(0.95)
    assert flat.mix is not None and flat.mix.value < 0.5


def test_near_copies_are_as_good_a_neighbour() -> None:
    angles = torch.tensor([0.0, 0.001, 0.002, 1.5, 1.6, 3.0])
    wanted = list(torch.stack([angles.cos(), angles.sin()], 1))
    other = [wanted[index] for index in (2, 0, 1, 3, 4, 5)]
    assert accuracy_of(retrieval(wanted, wanted)) == 1
    assert accuracy_of(retrieval(other, wanted)) == 1
    assert accuracy_of(retrieval([wanted[index] for index in (3, 1, 2, 0, 4, 5)], wanted)) < 1
    nothing = [torch.full((2,), math.nan)] * 6
    assert accuracy_of(retrieval(nothing, wanted)) < 0.5


def test_rounding_to_int8_is_a_yardstick() -> None:
    class Coarse(nn.Module):
        """An embedder with a large weight beside small ones, which rounding to int8 loses."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2, bias=False)
            self.layer.weight.data = torch.tensor([[1.0, 0.001, 0.002], [0.0, 1.0, 0.003]])

        def forward(self, image: Tensor) -> Tensor:
            colours = image.mean((2, 3))
            found: Tensor = self.layer(torch.stack([colours[:, 0] * 0, colours[:, 1], colours[:, 2] ** 2], 1))
            return found * torch.tensor([1000.0, 1.0])

    module, own = Coarse(), images(*range(10, 250, 3))
    made = judged_query(query("embedding"), EmbeddingTask("door"), module, Splits(own, own, own), (own, own), CPU)
    score = rounding_score(made, made.choose, module, CPU, 50)
    assert score < 0.95
    # The original itself is not changed.
    assert module.layer.weight[0, 1].item() == pytest.approx(0.001)


class Wide(nn.Module):
    """A detector of 25,600 anchors and 91 classes: 9 MB of outputs an image. It notes the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        self.batches.append(len(image))
        return torch.full((len(image), 25600, 91), -9.0), torch.zeros(len(image), 25600, 4)


def test_wide_outputs_are_decoded_batch_by_batch() -> None:
    module = Wide()
    spec = ssd(90, "sigmoid")
    cut = Cut({"main": StageModule(module, {}, ("logits", "boxes"))}, spec, SPEC, {"a": torch.zeros(25600, 4).numpy()})
    made = query("detection")
    answers = answers_on(task_of(Network("net", (made,), cut), made), module, images(*[9] * 30), CPU)
    assert list(answers) == [()] * 30
    assert module.batches[0] == 1 and sum(module.batches) == 30
    assert max(module.batches) * 25600 * 95 * 4 <= 256 << 20


def sampled(task: Any, module: nn.Module, own: Images, samples: Images, **changes: Any) -> JudgedQuery:
    """Judge a query by images of its own and by samples."""
    mixes = None if own.labels is not None else (own, own)
    return judged_query(query(**changes), task, module, Splits(own, own, own), mixes, CPU, (samples, samples))


def test_a_query_passes_if_it_holds_on_its_own_images_and_on_samples() -> None:
    labelled = images(*OWN, labels=torch.tensor([0, 1] * 60))
    for own in (images(*OWN), labelled):
        made = sampled(ClassificationTask(), Shade(), own, images(*[10, 240] * 50))
        whole, blind, other = (judged(made, Shade(*wrong)) for wrong in ((), (3,), (1,)))
        assert whole.samples is not None and whole.samples.value == 1 and whole.passes(0.95)
        # Labels judge its own images; on samples the original is the truth.
        assert blind.own.value == 1
        assert blind.samples is not None and blind.samples.value == blind.relative == 0.5
        assert not blind.passes(0.95)
        assert other.samples is not None and other.samples.value == 1 and not other.passes(0.95)
        assert "samples 0.500" in str(blind)
        assert unchanged(made.choose).samples == SAME


def test_where_labels_forgive_a_disagreement_samples_do_as_well() -> None:
    # The original is wrong on the second shade, so a model that answers the first shade there is as right as it is.
    labelled = images(*[10, 100, 150, 240] * 30, labels=torch.tensor([0, 0, 2, 3] * 30))
    made = sampled(ClassificationTask(), Shade(), labelled, images(*[10, 100, 150, 240] * 30))
    better, worse = judged(made, Shade(1)), judged(made, Shade(1, 3))
    assert better.own.value > 1 and better.samples is not None
    # It gives three of four answers of the original, on its own images and on samples.
    assert better.samples.value == 1 and better.samples.low == pytest.approx(better.samples.best)
    # One class more is wrong, by labels as well.
    assert worse.own.value == 1 and worse.samples is not None
    only_new = sampled(ClassificationTask(), Shade(), labelled, images(*[10, 240] * 60))
    lost = judged(only_new, Shade(3))
    assert lost.samples is not None and lost.samples.value == pytest.approx(0.5, abs=0.01)


def test_few_samples_judge_by_their_value() -> None:
    made = sampled(ClassificationTask(), Shade(), images(*OWN), images(10, 240, 240, 10, 240))
    same, blind = (judged(made, Shade(*wrong)) for wrong in ((), (3,)))
    assert same.samples is not None and same.samples.low < 0.95 and same.passes(0.95)
    assert blind.samples is not None and blind.samples.value == pytest.approx(0.4) and not blind.passes(0.95)


def test_a_limit_takes_the_first_samples() -> None:
    made = sampled(ClassificationTask(), Shade(), images(*OWN), images(*[10, 240] * 50))
    found = judged(made, Shade(), limit=40)
    assert found.samples is not None and found.samples.images == 40


def test_samples_on_which_the_original_finds_nothing_judge_nothing() -> None:
    own, dark = images(*[200] * 80), images(*[10] * 80)
    made = detector(Boxes(), own, own)
    made = judged_query(made.query, made.task, Boxes(), Splits(own, own, own), (own, own), CPU, (dark, dark))
    found = judged(made, Boxes(blind=0.99), Boxes())
    assert found.samples is None
    assert unchanged(made.choose).samples is None


class NightBlind(Vectors):
    """An embedder that gives all dark images one vector."""

    def forward(self, image: Tensor) -> Tensor:
        dark = image.mean((1, 2, 3), keepdim=True) < 0.3
        vectors: Tensor = super().forward(torch.where(dark, 0.12, image))
        return vectors


def test_embeddings_of_a_new_scene_are_compared_within_it() -> None:
    # All samples are dark. Seen from the mean of the former images, all of them lie in one direction.
    own, night = images(*range(120, 240)), images(*range(60))
    made = sampled(EmbeddingTask("door"), Vectors(), own, night)
    same, blind = (judged(made, module, Vectors()) for module in (Vectors(), NightBlind()))
    assert same.samples is not None and same.samples.value == pytest.approx(1)
    assert blind.own.value == pytest.approx(1)
    assert blind.samples is not None and blind.samples.value < 0.5
    answers, wanted = (answers_on(made.task, module, night, CPU) for module in (NightBlind(), Vectors()))
    assert accuracy_of(made.task.evidence(answers, wanted, night)) > 0.9
