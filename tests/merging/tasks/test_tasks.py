"""Test the tasks: a teacher agrees with itself, and other answers cost what they should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from gemel.bundles.decode_specs import (
    CenterFaceDecode,
    ClassificationDecode,
    DecodeSpec,
    EmbeddingDecode,
    FasterRcnnDecode,
    GridDecode,
    SsdDecode,
    YoloDecode,
    YoloHead,
)
from gemel.bundles.manifest import InputSpec
from gemel.compiler.heads import Cut, StageModule, cut
from gemel.errors import DataError, ModelError
from gemel.frames.preprocess import Geometry
from gemel.merging.models.networks import Network
from gemel.merging.tasks import Outputs, Task, task_of
from gemel.merging.tasks.anchors import to_input
from gemel.merging.tasks.classification import ClassificationTask
from gemel.merging.tasks.embedding import EmbeddingTask
from gemel.runtime.decode.average_precision import mean_average_precision
from gemel.runtime.decode.evidence import accuracy_of
from gemel.runtime.decode.results import Detection as Found
from gemel.workload.data import Boxes, Images
from gemel.workload.document.schema import Query
from gemel.workload.zoo.ssdlite import ssdlite_mobilenet_v2

SIZE = (64, 64)
ANCHORS = np.array([[x, y, x + 16, y + 16] for y in range(0, 64, 16) for x in range(0, 64, 16)], np.float32)


def images(count: int, source: tuple[int, int] = SIZE, valid: tuple[int, int] = SIZE, **known: Any) -> Images:
    """Make black images; ``known`` are their labels or boxes."""
    pixels = torch.zeros(count, 3, *SIZE, dtype=torch.uint8)
    return Images(pixels, (Geometry(source, SIZE, valid),) * count, InputSpec(size=SIZE), **known)


def accuracy(task: Task, outputs: Outputs, teacher: Outputs, images: Images) -> float:
    """Return the accuracy of a model on a whole data set, given its raw outputs and those of the original model."""
    answers, wanted = (task.answers(each, images.geometry) for each in (outputs, teacher))
    return accuracy_of(task.evidence(answers, wanted, images))


def query(task: str, **changes: Any) -> Query:
    """Make a query named ``door``."""
    return Query.model_validate({"name": "door", "feed": "yard", "task": task, "model": {"factory": "a:b"}, **changes})


def task(spec: DecodeSpec, *outputs: str, **changes: Any) -> Task:
    """Make the task of a query whose model has outputs of these names, decoded by ``spec``."""
    kind = spec.kind if spec.kind in ("classification", "embedding") else "detection"
    made = query(kind, **changes)
    stage = StageModule(nn.Identity(), {}, outputs)
    return task_of(Network("net", (made,), Cut({"main": stage}, spec, InputSpec(size=SIZE), {"a": ANCHORS})), made)


def ssd(activation: str = "softmax", background: bool = True, classes: int = 2, **changes: Any) -> Task:
    """Make the task of an SSD with the anchors :data:`ANCHORS`; ``changes`` are fields of the query."""
    spec = {"classes": classes, "score_threshold": 0.2, "anchors": "a", "box_weights": (10.0, 10.0, 5.0, 5.0)}
    made = SsdDecode.model_validate({**spec, "activation": activation, "background": background})
    return task(made, "logits", "boxes", **changes)


def logits(*objects: tuple[int, int, int], count: int = 2, classes: int = 2, height: float = 4.0) -> Tensor:
    """Make scores ``[count, A, classes + 1]`` that say background everywhere but at ``objects``.

    Args:
        objects: image, anchor and class of each object.
        count: number of images.
        classes: number of classes, the background not counted.
        height: logit of an object's class; the background's is 0 there.
    """
    scores = torch.zeros(count, len(ANCHORS), classes + 1)
    scores[..., 0] = 4.0
    for image, anchor, number in objects:
        scores[image, anchor, 0] = 0.0
        scores[image, anchor, number + 1] = height
    return scores


def box_deltas(count: int = 2) -> Tensor:
    """Make box outputs that leave every anchor as it is."""
    return torch.zeros(count, len(ANCHORS), 4)


def yolo() -> tuple[Task, Callable[[], Outputs]]:
    """Make the task of a YOLO detector, and a function that makes random outputs."""
    heads = (
        YoloHead(output="b", stride=16, anchors=((16, 16), (30, 30))),
        YoloHead(output="a", stride=32, anchors=((40, 20),)),
    )
    made = task(YoloDecode(classes=3, heads=heads), "a", "b")
    return made, lambda: (torch.randn(2, 1 * 8, 2, 2), torch.randn(2, 2 * 8, 4, 4))


def centerface() -> tuple[Task, Callable[[], Outputs]]:
    """Make the task of a CenterFace detector, and a function that makes random outputs."""
    made = task(CenterFaceDecode(classes=1, heatmap="h", scale="s", offset="o"), "h", "s", "o", "landmarks")
    return made, lambda: (
        torch.rand(2, 1, 16, 16),
        torch.randn(2, 2, 16, 16),
        torch.randn(2, 2, 16, 16),
        torch.randn(2, 10, 16, 16),
    )


def detectors() -> dict[str, tuple[Task, Callable[[], Outputs]]]:
    """Make a task of each kind of detector, each with a function that makes random outputs."""
    rows = len(ANCHORS)
    return {
        "softmax": (ssd(), lambda: (torch.randn(2, rows, 3), torch.randn(2, rows, 4))),
        "sigmoid": (ssd("sigmoid", False), lambda: (torch.randn(2, rows, 2), torch.randn(2, rows, 4))),
        "background": (ssd("sigmoid", True), lambda: (torch.randn(2, rows, 3), torch.randn(2, rows, 4))),
        "yolo": yolo(),
        "centerface": centerface(),
    }


def others() -> dict[str, tuple[Task, Callable[[], Outputs]]]:
    """Make tasks that are no detection, each with a function that makes random outputs."""
    return {
        "classification": (task(ClassificationDecode(classes=5), "logits"), lambda: (torch.randn(4, 5),)),
        "probabilities": (
            task(ClassificationDecode(classes=5, activation="none"), "p"),
            lambda: (torch.randn(4, 5).softmax(1),),
        ),
        "embedding": (task(EmbeddingDecode(), "e"), lambda: (torch.randn(4, 8),)),
        "map": (task(EmbeddingDecode(), "e"), lambda: (torch.randn(4, 8, 3, 3),)),
    }


@pytest.mark.parametrize("name", [*detectors(), *others()])
def test_training_on_the_distance_leads_to_the_teacher(name: str) -> None:
    torch.manual_seed(0)
    made, random = {**detectors(), **others()}[name]
    teacher, student = random(), tuple(value.requires_grad_() for value in random())
    assert abs(float(made.distance(teacher, teacher))) < 1e-6
    first = float(made.distance(student, teacher).detach())
    assert first > 1e-3
    optimizer = torch.optim.Adam(student, 0.05 if name not in ("probabilities", "centerface") else 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        made.distance(student, teacher).backward()
        optimizer.step()
    assert float(made.distance(student, teacher).detach()) < 0.5 * first


@pytest.mark.parametrize("name", detectors())
def test_every_detector_agrees_with_itself(name: str) -> None:
    torch.manual_seed(1)
    made, random = detectors()[name]
    teacher = random()
    assert accuracy(made, teacher, teacher, images(2)) == pytest.approx(1)
    assert accuracy(made, random(), teacher, images(2)) < 0.9


def test_boxes_of_the_background_do_not_matter() -> None:
    made = ssd()
    teacher = logits((0, 3, 1)), box_deltas()
    moved = {anchor: box_deltas() for anchor in (3, 8)}
    for anchor, value in moved.items():
        value[0, anchor] = 1.0
    near, far = (float(made.distance((teacher[0], moved[anchor]), teacher)) for anchor in (3, 8))
    assert near > 20 * far


def test_one_object_counts_the_same_among_few_and_many_places() -> None:
    made = ssd("sigmoid", False, classes=1)
    distances = []
    for places in (16, 1600):
        teacher = torch.full((1, places, 1), -12.0)
        teacher[0, 0] = 3.0
        student = teacher.clone()
        student[0, 0] = -3.0
        boxes = torch.zeros(1, places, 4)
        distances.append(float(made.distance((student, boxes), (teacher, boxes))))
    assert distances[0] == pytest.approx(distances[1], rel=0.02)


def test_frames_without_objects_give_no_wild_gradient() -> None:
    teacher = logits(), box_deltas()
    student = teacher[0] + 0.1 * torch.randn(teacher[0].shape), box_deltas()
    assert float(ssd().distance(student, teacher)) < 1


def test_agreement_falls_with_what_is_missed_or_sinks_below_the_threshold() -> None:
    made = ssd(classes=1)
    teacher = logits((0, 0, 0), (0, 5, 0), (1, 9, 0), (1, 15, 0), classes=1), box_deltas()
    missed = logits((0, 0, 0), (0, 5, 0), classes=1), box_deltas()
    sunk = logits((0, 0, 0), (0, 5, 0), (1, 9, 0), (1, 15, 0), classes=1, height=-2.0), box_deltas()
    assert accuracy(made, teacher, teacher, images(2)) == 1
    assert accuracy(made, missed, teacher, images(2)) == pytest.approx(0.5, abs=0.02)
    assert accuracy(made, sunk, teacher, images(2)) == 0


def test_the_threshold_of_the_query_decides_what_the_truth_is() -> None:
    faint = -0.2  # a score of 0.45
    both = logits((0, 0, 0), classes=1), box_deltas()
    both[0][0, 9] = torch.tensor([0.0, faint])
    one = logits((0, 0, 0), classes=1), box_deltas()
    assert accuracy(ssd(classes=1), one, both, images(2)) == pytest.approx(0.5, abs=0.02)
    assert accuracy(ssd(classes=1, threshold=0.6), one, both, images(2)) == 1


def test_a_wrong_class_is_no_agreement_and_classes_count_by_their_objects() -> None:
    teacher = logits((0, 0, 0), (0, 5, 0), (1, 9, 0), (1, 15, 1)), box_deltas()
    student = logits((0, 0, 0), (0, 5, 0), (1, 9, 0), (1, 15, 0)), box_deltas()
    assert accuracy(ssd(), teacher, teacher, images(2)) == 1
    assert accuracy(ssd(), student, teacher, images(2)) == pytest.approx(0.75, abs=0.02)


def test_boxes_in_source_pixels_are_the_truth_where_they_are_known() -> None:
    # A frame of 128 x 256 pixels covers the upper half of the input: 4 source pixels for each input pixel.
    objects = Boxes(torch.tensor([[0.0, 0.0, 64.0, 64.0]]), torch.tensor([1]))
    nothing = Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    held = images(2, source=(128, 256), valid=(32, 64), boxes=(objects, nothing))
    right, wrong = (logits((0, 0, 1)), box_deltas()), (logits((0, 1, 1)), box_deltas())
    assert accuracy(ssd(), right, wrong, held) == 1
    assert accuracy(ssd(), wrong, right, held) == 0


def test_nothing_to_judge_by() -> None:
    empty = logits(), box_deltas()
    with pytest.raises(DataError, match=r"query door: .* no object .* 2 images: its model finds none .* above 0\.3"):
        accuracy(ssd(), empty, empty, images(2))
    nothing = Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(DataError, match=r"query door: .* the labels have none"):
        accuracy(ssd(), empty, empty, images(2, boxes=(nothing, nothing)))


def test_mean_average_precision_weighs_classes() -> None:
    def found(number: int, x: float) -> Found:
        return Found((x, 0.0, x + 10, 10.0), 0.9, str(number))

    truth = [found(0, 0), found(0, 20), found(0, 40), found(2, 60)]
    answer = [found(0, 0), found(0, 20), found(0, 40), found(7, 60)]
    assert mean_average_precision([answer], [truth], by_count=False) == pytest.approx(0.5)
    assert mean_average_precision([answer], [truth], by_count=True) == pytest.approx(0.75)


def test_mirrored_boxes_stay_in_the_part_that_the_frame_covers() -> None:
    objects = Boxes(torch.tensor([[0.0, 0.0, 20.0, 100.0]]), torch.tensor([0]))
    place = Geometry((100, 80), SIZE, (50, 40))
    assert to_input(objects, place, False).tolist() == [[0, 0, 10, 50]]
    assert to_input(objects, place, True).tolist() == [[30, 0, 40, 50]]
    centred = replace(place, offset=(7, 12))
    assert to_input(objects, centred, False).tolist() == [[12, 7, 22, 57]]
    assert to_input(objects, centred, True).tolist() == [[42, 7, 52, 57]]


def test_the_loss_on_boxes_is_torchvisions() -> None:
    torch.manual_seed(0)
    spec = InputSpec(size=(320, 320))
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).eval()
    parts = cut(model, "detection", spec)
    anchors = torch.from_numpy(parts.tensors["anchors"])
    outputs = torch.randn(2, len(anchors), 4), torch.randn(2, len(anchors), 4)
    objects = tuple(
        Boxes(torch.tensor(boxes), torch.tensor(classes))
        for boxes, classes in (
            ([[10.0, 20, 90, 200], [150, 150, 260, 300], [5, 5, 9, 9]], [0, 2, 1]),
            ([[30.0, 30, 300, 310]], [1]),
        )
    )
    held = Images(
        torch.zeros(2, 3, 320, 320, dtype=torch.uint8),
        (Geometry((320,) * 2, (320,) * 2, (320,) * 2),) * 2,
        spec,
        None,
        objects,
    )
    made = query("detection")
    found = task_of(Network("net", (made,), parts), made).loss(outputs, held, torch.arange(2), False)

    targets = [{"boxes": each.boxes, "labels": each.classes + 1} for each in objects]
    matched = [model.proposal_matcher(_overlaps(each["boxes"], anchors)) for each in targets]
    heads = {"cls_logits": outputs[0], "bbox_regression": outputs[1]}
    expected = sum(model.compute_loss(targets, heads, [anchors] * 2, matched).values())
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def _overlaps(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return the intersection over union of each box with each anchor."""
    from torchvision.ops import box_iou

    overlaps: Tensor = box_iou(boxes, anchors)
    return overlaps


def test_training_a_sigmoid_head_on_boxes() -> None:
    torch.manual_seed(0)
    model = ssdlite_mobilenet_v2(num_classes=2).eval()
    spec = InputSpec(size=SIZE)
    made, parts = query("detection"), cut(model, "detection", spec)
    objects = Boxes(torch.tensor([[8.0, 8, 40, 56]]), torch.tensor([1]))
    nothing = Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    held = images(2, boxes=(objects, nothing))
    rows = len(parts.tensors["anchors"])
    student = torch.zeros(2, rows, 3, requires_grad=True), torch.zeros(2, rows, 4, requires_grad=True)
    learner = task_of(Network("net", (made,), parts), made)
    optimizer = torch.optim.Adam(student, 0.3)
    for _ in range(60):
        optimizer.zero_grad()
        learner.loss(student, held, torch.arange(2), False).backward()
        optimizer.step()
    outputs = tuple(value.detach() for value in student)
    assert accuracy(learner, outputs, outputs, held) == 1


def test_what_labels_teach() -> None:
    nothing = Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    boxed, labelled = images(2, boxes=(nothing, nothing)), images(2, labels=torch.zeros(2, dtype=torch.int64))
    assert ssd().learns_from(boxed)
    assert not ssd().learns_from(images(2))
    # Among detectors, only SSD, SSDLite and RetinaNet are trained on boxes.
    assert not yolo()[0].learns_from(boxed)
    assert ClassificationTask().learns_from(labelled)
    assert not ClassificationTask().learns_from(images(2))
    assert not EmbeddingTask("door").learns_from(labelled)


def test_what_cannot_be_retrained_says_so() -> None:
    spec = FasterRcnnDecode(classes=2, anchors=(), roi_levels=(), roi_scales=())
    with pytest.raises(ModelError, match="query door: Faster R-CNN cannot be retrained yet"):
        task(spec, "features_0")


def test_top_one() -> None:
    scores, teacher = torch.eye(4), torch.eye(4)[[0, 1, 3, 3]]
    made = ClassificationTask()
    assert accuracy(made, (scores,), (teacher,), images(4)) == 0.75
    assert accuracy(made, (scores,), (teacher,), images(4, labels=torch.tensor([0, 1, 0, 0]))) == 0.5


def test_embeddings_are_judged_by_how_they_differ_from_their_mean() -> None:
    torch.manual_seed(0)
    teacher = 5 + torch.rand(20, 8)
    made = EmbeddingTask("door")
    assert accuracy(made, (teacher,), (teacher,), images(20)) == pytest.approx(1)
    # The vectors of all of these answers are nearly parallel to the teacher's.
    assert accuracy(made, (teacher.flip(0),), (teacher,), images(20)) < 0.3
    assert accuracy(made, (teacher.mean(0).expand(20, -1),), (teacher,), images(20)) < 0.1
    assert accuracy(made, (2 * teacher.mean(0) - teacher,), (teacher,), images(20)) == 0
    # Lengths do not count if the query reports vectors of unit length.
    assert accuracy(made, (3 * teacher,), (teacher,), images(20)) == pytest.approx(1)
    assert accuracy(EmbeddingTask("door", unit=False), (3 * teacher,), (teacher,), images(20)) < 0.9


@pytest.mark.parametrize("classes", [1, 4, 80])
def test_every_class_counts_where_boxes_are_an_output_of_their_own(classes: int) -> None:
    spec = GridDecode(classes=classes, output="scores", boxes="boxes", transposed=False, objectness=False)
    made = task(spec, "scores", "boxes")
    torch.manual_seed(0)
    teacher = torch.rand(2, 10, classes), torch.rand(2, 10, 4)
    assert float(made.distance(teacher, teacher)) == 0
    changed = teacher[0].clone()
    changed[..., 0] += 0.1
    # All columns are scores: none of them counts only in proportion to the others.
    wanted = 0.01 / teacher[0][..., 0].var(unbiased=False) / classes / 2
    assert float(made.distance((changed, teacher[1]), teacher)) == pytest.approx(float(wanted), rel=1e-4)


def test_a_batch_of_equal_frames_gives_no_wild_distance() -> None:
    same = torch.ones(4, 8)
    student = (same * 1.1).requires_grad_()
    distance = EmbeddingTask("door").distance((student,), (same,))
    distance.backward()
    assert float(distance.detach()) < 1
    assert student.grad is not None and float(student.grad.norm()) < 10


def test_feature_maps_are_averaged() -> None:
    torch.manual_seed(0)
    features = torch.rand(6, 8, 3, 3)
    made = EmbeddingTask("door")
    assert accuracy(made, (features,), (features.mean((2, 3)),), images(6)) == pytest.approx(1)


def test_embeddings_of_images_that_are_all_alike() -> None:
    same = torch.rand(1, 8).expand(5, -1)
    with pytest.raises(DataError, match=r"query door: .* same embedding for all 5 images .*data\.val"):
        accuracy(EmbeddingTask("door"), (same,), (same,), images(5))
