"""torchvision's classifiers and detectors with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import torch
import torchvision
from torch import Tensor
from torchvision.ops import remove_small_boxes

from gemel.bundles.manifest import InputSpec
from gemel.compiler.heads.inputs import input_defaults
from gemel.frames.frame import Image
from gemel.frames.preprocess import preprocess
from gemel.runtime.decode.results import Class, Detection, Result

from .case import STREET, Answer, Case, Query, lively, save_fine_tuned, saved, street_frames

__all__ = ["CASES", "ORIGIN", "REGION_ARGS", "THRESHOLD", "normalised", "pixels_of", "run_unscaled"]

ORIGIN = f"torchvision {torchvision.__version__.partition('+')[0]}"
_SIZE = {"min_size": 272, "max_size": 640}
"""Arguments of detectors without a fixed size: the size of the street's frames, which then need no resizing.

torchvision resizes numbers from 0 to 1, a query resizes 8-bit pixels as a camera gives them. The difference is one
step of 255 at most; a trained detector answers the same, but random weights are chaotic. A query's input also has one
shape for all frames, so that frames of another shape have more padding than torchvision gives them.
"""
REGION_ARGS = _SIZE | {"rpn_post_nms_top_n_test": 200}
"""Arguments of detectors of two stages. A fifth of the usual 1000 regions is enough, and takes a fifth of the time."""
THRESHOLD = 0.3
_Heads = Mapping[str, tuple[float, float]]


def normalised(image: Image, spec: InputSpec) -> Tensor:
    """Return the model's input for a frame, as the bundle makes it."""
    return torch.from_numpy(preprocess(image, spec)[0])


def pixels_of(image: Image) -> Tensor:
    """Return a frame as torchvision's detectors take one: RGB, ``[3, H, W]``, 0 to 1."""
    return torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1) / 255


def run_unscaled(model: Any, batch: Tensor) -> object:
    """Run a detector on normalised frames, which the detector's own transform would normalise a second time."""
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (model.transform.image_mean, model.transform.image_std)
    )
    return model(list(batch * std + mean))


def best_classes(logits: Tensor) -> tuple[Class, ...]:
    """Return the five best classes of one frame, as a classifier without labels reports them."""
    scores, numbers = logits.softmax(-1).flatten().topk(5)
    return tuple(Class(str(n), s, n) for n, s in zip(numbers.tolist(), scores.tolist(), strict=True))


def _classifier(
    name: str, head: str, args: Mapping[str, Any] | None = None, *, ten: bool = True, spread: float = 4
) -> Case:
    """Return the case of a classifier.

    Its sibling is a fine-tune of ten classes with a frozen backbone. The library gets the bundle's input: torchvision
    would cut off the edges of a frame (resize, centre crop), a query sees the whole frame.

    Args:
        name: name of the builder.
        head: name of the last layer.
        args: arguments of the builder.
        ten: whether there is a sibling.
        spread: standard deviation of the logits; more where the model averages them over places.
    """
    factory = getattr(torchvision.models, name)
    args = args or {}

    def query(file: str, args: Mapping[str, Any]) -> Query:
        model = {"factory": f"torchvision.models:{name}", "weights": file} | ({"args": dict(args)} if args else {})
        return {"task": "classification", "model": model}

    def prepare(folder: Path) -> Query:
        torch.save(lively(lambda: factory(**args), {head: (0, spread)}).state_dict(), folder / "a.pt")
        return query("a.pt", args)

    def second(folder: Path) -> Query:
        few = dict(args) | {"num_classes": 10}
        save_fine_tuned(folder, lambda: factory(**few))
        return query("b.pt", few)

    def answers(folder: Path) -> Answer:
        model = saved(folder, lambda: factory(**args))
        spec = input_defaults(model)

        def answer(image: Image) -> Result:
            with torch.inference_mode():
                return best_classes(model(normalised(image, spec)))

        return answer

    sibling, words = (second, "fine-tune of 10 classes, frozen backbone") if ten else (None, "")
    return Case(name, ORIGIN, False, prepare, "torchvision", answers, sibling, words)


def _stretched(side: int) -> Callable[[Path], str]:
    """Return a function that writes frames of the street as squares, which a detector of this size need not resize."""

    def write(folder: Path) -> str:
        (folder / "frames").mkdir(exist_ok=True)
        for index, image in enumerate(street_frames(20)):
            cv2.imwrite(str(folder / "frames" / f"{index:02d}.png"), cv2.resize(image, (side, side)))
        return "frames"

    return write


def _detector(name: str, heads: _Heads, args: Mapping[str, Any] | None = None, *, side: int = 0) -> Case:
    """Return the case of a detector that torchvision builds with all it does behind the model.

    Its sibling is a fine-tune of two classes with a frozen backbone.

    Args:
        name: name of the builder.
        heads: layers with the class scores, as :func:`.case.lively` takes them.
        args: arguments of the builder, beside that nothing is downloaded.
        side: side of the model's fixed input in pixels; 0 if there is none.
    """
    factory = getattr(torchvision.models.detection, name)
    given = {"weights": None, "weights_backbone": None} | dict(args or {})

    def query(file: str, args: Mapping[str, Any]) -> Query:
        model = {"factory": f"torchvision.models.detection:{name}", "args": dict(args), "weights": file}
        return {"task": "detection", "threshold": THRESHOLD, "model": model}

    def prepare(folder: Path) -> Query:
        torch.save(lively(lambda: factory(**given), heads, run=run_unscaled).state_dict(), folder / "a.pt")
        return query("a.pt", given)

    def second(folder: Path) -> Query:
        few = given | {"num_classes": 3}
        save_fine_tuned(folder, lambda: factory(**few))
        return query("b.pt", few)

    def answers(folder: Path) -> Answer:
        key = "box_score_thresh" if "rcnn" in name else "score_thresh"
        model = saved(folder, lambda: factory(**given, **{key: THRESHOLD}))

        def answer(image: Image) -> Result:
            with torch.inference_mode():
                (found,) = model([pixels_of(image)])
            # torchvision also reports boxes outside the frame, which it clips to a width or height of zero.
            inside = remove_small_boxes(found["boxes"], 0.01)
            columns = (found[each][inside].tolist() for each in ("boxes", "scores", "labels"))
            return tuple(
                Detection(tuple(box), score, str(label), label) for box, score, label in zip(*columns, strict=True)
            )

        return answer

    frames = _stretched(side) if side else STREET
    words = "fine-tune of 2 classes, frozen backbone"
    return Case(name, ORIGIN, False, prepare, "torchvision", answers, second, words, frames)


CASES = (
    _classifier("alexnet", "classifier.6"),
    _classifier("vgg16", "classifier.6", ten=False),
    _classifier("resnet18", "fc"),
    _classifier("resnet50", "fc"),
    _classifier("inception_v3", "fc", {"transform_input": True, "init_weights": False}),
    _classifier("googlenet", "fc", {"transform_input": True, "aux_logits": False, "init_weights": False}),
    _classifier("mobilenet_v2", "classifier.1"),
    _classifier("mobilenet_v3_large", "classifier.3"),
    _classifier("squeezenet1_1", "classifier.1", spread=40),
    _classifier("densenet121", "classifier"),
    _classifier("shufflenet_v2_x1_0", "fc"),
    _classifier("mnasnet1_0", "classifier.1"),
    _classifier("efficientnet_b0", "classifier.1"),
    _classifier("regnet_y_800mf", "fc"),
    _classifier("convnext_tiny", "classifier.2"),
    _classifier("swin_t", "head"),
    _classifier("vit_b_16", "heads.head", ten=False),
    _classifier("maxvit_t", "classifier.5"),
    _detector(
        "ssd300_vgg16", {f"head.classification_head.module_list.{level}": (0, 1) for level in range(6)}, side=300
    ),
    _detector(
        "ssdlite320_mobilenet_v3_large",
        {f"head.classification_head.module_list.{level}.1": (0, 1.5) for level in range(6)},
        side=320,
    ),
    _detector("fasterrcnn_resnet50_fpn", {"roi_heads.box_predictor.cls_score": (0, 2)}, REGION_ARGS),
    _detector("fasterrcnn_mobilenet_v3_large_320_fpn", {"roi_heads.box_predictor.cls_score": (0, 2)}, _SIZE),
    _detector("retinanet_resnet50_fpn", {"head.classification_head.cls_logits": (-6, 1.5)}, _SIZE),
    _detector(
        "fcos_resnet50_fpn",
        {"head.classification_head.cls_logits": (-6.7, 1), "head.regression_head.bbox_reg": (2, 0.3)},
        _SIZE,
    ),
)
