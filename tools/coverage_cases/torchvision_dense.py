"""torchvision's models for semantic segmentation, masks, keypoints and video clips, with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torchvision

from gemel.bundles.manifest import InputSpec
from gemel.frames.frame import Image
from gemel.runtime.decode.results import Detection, Mask, Result, Segmentation, SegmentedClass

from .case import Answer, Case, Query, lively, save_fine_tuned, saved
from .torchvision_models import ORIGIN, REGION_ARGS, THRESHOLD, normalised, pixels_of, run_unscaled

__all__ = ["CASES"]

_FRAME = (272, 640)
"""Height and width of the street video's frames, which then need no resizing; these models take any size."""


def _pixels(name: str, *heads: str) -> Case:
    """Return the case of a model that gives each pixel a class.

    The query has an ``input: size`` only to have no resizing; the default is 520 x 928.

    Args:
        name: name of the builder.
        heads: layers with the class scores.
    """
    factory = getattr(torchvision.models.segmentation, name)
    given = {"weights": None, "weights_backbone": None}
    spec = InputSpec(size=_FRAME, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

    def query(file: str, args: Mapping[str, Any]) -> Query:
        model = {
            "factory": f"torchvision.models.segmentation:{name}",
            "args": dict(args),
            "weights": file,
            "input": {"size": list(_FRAME)},
        }
        return {"task": "segmentation", "model": model}

    def prepare(folder: Path) -> Query:
        model = lively(
            lambda: factory(**given), dict.fromkeys(heads, (0, 3)), spec=spec, run=lambda model, batch: model(batch)
        )
        torch.save(model.state_dict(), folder / "a.pt")
        return query("a.pt", given)

    def second(folder: Path) -> Query:
        few = given | {"num_classes": 3}
        save_fine_tuned(folder, lambda: factory(**few))
        return query("b.pt", few)

    def answers(folder: Path) -> Answer:
        model = saved(folder, lambda: factory(**given))

        def answer(image: Image) -> Result:
            with torch.inference_mode():
                numbers = model(normalised(image, spec))["out"][0].argmax(0).numpy()
            classes = (
                SegmentedClass(str(number), number, Mask.of(numbers == number))
                for number in np.unique(numbers).tolist()
            )
            return Segmentation(_FRAME, tuple(classes))

        return answer

    return Case(name, ORIGIN, False, prepare, "torchvision", answers, second, "fine-tune of 3 classes, frozen backbone")


def _instances(name: str, part: Literal["masks", "keypoints"], head: str) -> Case:
    """Return the case of a Mask R-CNN or Keypoint R-CNN.

    Its sibling is a Faster R-CNN with the same backbone, as a user has one who adds masks or keypoints to a detector.

    Args:
        name: name of the builder.
        part: what the model gives beside boxes.
        head: layer with the masks or keypoints.
    """
    factory = getattr(torchvision.models.detection, name)
    # A mask's box is cut to whole pixels, and a keypoint is the highest place of a map. With thousands of random boxes
    # and maps, rounding moves some by a pixel, or to another place.
    given = {"weights": None, "weights_backbone": None, "box_detections_per_img": 5} | REGION_ARGS
    # Most of a box is its object, as after training. Masks of noise are all edge, and shift with the rounding of boxes.
    heads = {"roi_heads.box_predictor.cls_score": (0.0, 2.0), head: (2.0, 1.0) if part == "masks" else (0.0, 2.0)}

    def prepare(folder: Path) -> Query:
        model = lively(lambda: factory(**given), heads, run=run_unscaled)
        torch.save(model.state_dict(), folder / "a.pt")
        task = "segmentation" if part == "masks" else "pose"
        return {
            "task": task,
            "threshold": THRESHOLD,
            "model": {"factory": f"torchvision.models.detection:{name}", "args": given, "weights": "a.pt"},
        }

    def second(folder: Path) -> Query:
        save_fine_tuned(folder, lambda: torchvision.models.detection.fasterrcnn_resnet50_fpn(**given))
        builder = "torchvision.models.detection:fasterrcnn_resnet50_fpn"
        return {"task": "detection", "model": {"factory": builder, "args": given, "weights": "b.pt"}}

    def answers(folder: Path) -> Answer:
        model = saved(folder, lambda: factory(**given, box_score_thresh=THRESHOLD))

        def answer(image: Image) -> Result:
            with torch.inference_mode():
                (found,) = model([pixels_of(image)])
            return tuple(_instance(found, row) for row in range(len(found["boxes"])))

        return answer

    return Case(name, ORIGIN, False, prepare, "torchvision", answers, second, "Faster R-CNN on the same backbone")


def _instance(found: Mapping[str, torch.Tensor], row: int) -> Detection:
    mask, keypoints = None, torch.zeros(0, 3)
    if "masks" in found:
        mask = Mask.of((found["masks"][row, 0] > 0.5).numpy())
    if "keypoints" in found:
        # torchvision's score of a keypoint is a logit, and its third value always 1.
        scores = found["keypoints_scores"][row].sigmoid()
        keypoints = torch.cat([found["keypoints"][row, :, :2], scores[:, None]], 1)
    box, score, number = (found[each][row].numpy() for each in ("boxes", "scores", "labels"))
    places: Any = tuple(map(tuple, keypoints.tolist()))
    return Detection(tuple(box.tolist()), float(score), str(number), int(number), keypoints=places, mask=mask)


def _clips(name: str) -> Case:
    """Return the case of a model for clips, which is refused: a query gets one frame at a time."""

    def prepare(folder: Path) -> Query:
        torch.manual_seed(0)
        torch.save(getattr(torchvision.models.video, name)().state_dict(), folder / "a.pt")
        return {
            "task": "classification",
            "model": {"factory": f"torchvision.models.video:{name}", "weights": "a.pt"},
        }

    return Case(name, ORIGIN, False, prepare)


CASES = (
    _pixels("fcn_resnet50", "classifier.4"),
    _pixels("deeplabv3_mobilenet_v3_large", "classifier.4"),
    _pixels("lraspp_mobilenet_v3_large", "classifier.low_classifier", "classifier.high_classifier"),
    _instances("maskrcnn_resnet50_fpn", "masks", "roi_heads.mask_predictor.mask_fcn_logits"),
    _instances("keypointrcnn_resnet50_fpn", "keypoints", "roi_heads.keypoint_predictor.kps_score_lowres"),
    _clips("r3d_18"),
)
