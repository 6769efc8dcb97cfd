"""segmentation-models-pytorch with random weights: every decoder of the library that users name, on small encoders.

The query needs ``input: size``, because the modules do not say for which size they were trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch
import torch
from torch import Tensor, nn

from gemel.bundles.manifest import InputSpec
from gemel.frames.frame import Image
from gemel.runtime.decode.results import Mask, Result, Segmentation, SegmentedClass

from .case import Answer, Case, Query, lively, save_fine_tuned, saved
from .torchvision_models import normalised

__all__ = ["CASES"]

_ORIGIN = f"segmentation-models-pytorch {segmentation_models_pytorch.__version__}"
_SIZE = (288, 640)
"""Height and width of the input: near the street's frames of 272 x 640, and multiples of 32, which encoders need."""
_SPEC = InputSpec(size=_SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_HEAD = {"segmentation_head.0": (0.0, 3.0)}


def _answer(model: nn.Module, image: Image) -> Result:
    """Answer a frame as users of the library do: resize the scores to the frame, and take the best class.

    With a single class, a pixel belongs to it if its probability exceeds 0.5. A model with an ``activation`` gives
    probabilities.
    """
    size = (image.shape[0], image.shape[1])
    with torch.inference_mode():
        scores: Tensor = model(normalised(image, _SPEC))
    are_logits = scores.shape[1] == 1 and not bool(((scores >= 0) & (scores <= 1)).all())
    scores = nn.functional.interpolate(scores, size, mode="bilinear")[0]
    scores = scores.sigmoid() if are_logits else scores
    numbers = scores.argmax(0).numpy() if len(scores) > 1 else np.where(scores[0].numpy() > 0.5, 0, -1)
    seen = [number for number in np.unique(numbers).tolist() if number >= 0]
    return Segmentation(size, tuple(SegmentedClass(str(n), n, Mask.of(numbers == n)) for n in seen))


def _case(name: str, kind: str, args: Mapping[str, Any], other: int = 5) -> Case:
    """Return the case of a model.

    Args:
        name: name of the case.
        kind: name of the model's class.
        args: its arguments, beside those that leave out pretrained weights and give 3 classes.
        other: number of classes of the sibling.
    """
    factory = getattr(segmentation_models_pytorch, kind)
    given = {"encoder_name": "resnet18", "encoder_weights": None, "classes": 3} | dict(args)

    def query(file: str, args: Mapping[str, Any]) -> Query:
        model = {
            "factory": f"segmentation_models_pytorch:{kind}",
            "args": dict(args),
            "weights": file,
            "input": {"size": list(_SIZE)},
        }
        return {"task": "segmentation", "model": model}

    def prepare(folder: Path) -> Query:
        model = lively(lambda: factory(**given), _HEAD, spec=_SPEC)
        torch.save(model.state_dict(), folder / "a.pt")
        return query("a.pt", given)

    def second(folder: Path) -> Query:
        few = given | {"classes": other}
        save_fine_tuned(folder, lambda: factory(**few))
        return query("b.pt", few)

    def answers(folder: Path) -> Answer:
        model = saved(folder, lambda: factory(**given))
        return lambda image: _answer(model, image)

    words = f"the same for {other} classes, but for the head"
    return Case(name, _ORIGIN, False, prepare, "segmentation-models-pytorch", answers, second, words)


def _from_folder() -> Case:
    """Return the case of a model in a folder, as the library's ``save_pretrained`` writes one."""
    names = {"encoder_name": "mobilenet_v2", "encoder_weights": None, "classes": 4}

    def build() -> nn.Module:
        built: nn.Module = segmentation_models_pytorch.Unet(**names)
        return built

    def prepare(folder: Path) -> Query:
        model: Any = lively(build, _HEAD, spec=_SPEC)
        model.save_pretrained(folder / "model")
        source = {
            "factory": "segmentation_models_pytorch:from_pretrained",
            "args": {"pretrained_model_name_or_path": "model"},
            "input": {"size": list(_SIZE)},
        }
        return {"task": "segmentation", "model": source}

    def answers(folder: Path) -> Answer:
        model = segmentation_models_pytorch.from_pretrained(folder / "model").eval()
        return lambda image: _answer(model, image)

    return Case("smp Unet mobilenet_v2, folder", _ORIGIN, False, prepare, "segmentation-models-pytorch", answers)


CASES: tuple[Case, ...] = (
    _case("smp Unet resnet18", "Unet", {}),
    _case("smp Unet resnet18, binary", "Unet", {"classes": 1}, 3),
    _case("smp Unet resnet18, binary with sigmoid", "Unet", {"classes": 1, "activation": "sigmoid"}, 3),
    _from_folder(),
    _case("smp UnetPlusPlus resnet18", "UnetPlusPlus", {}),
    _case("smp FPN mobilenet_v2", "FPN", {"encoder_name": "mobilenet_v2"}),
    _case("smp DeepLabV3Plus resnet18", "DeepLabV3Plus", {}),
    _case("smp Linknet resnet18", "Linknet", {}),
    _case("smp PSPNet resnet18", "PSPNet", {}),
    _case("smp PAN resnet18", "PAN", {}),
    _case("smp MAnet resnet18", "MAnet", {}),
    _case("smp UPerNet resnet18", "UPerNet", {}),
    _case("smp Segformer mit_b0", "Segformer", {"encoder_name": "mit_b0"}),
)
