"""torchvision's models with random weights: classification, detection, segmentation, keypoints and video."""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision

from gemel.frames.frame import Image
from gemel.runtime.decode.results import Detection, Result

from .case import Answer, Case, Query

__all__ = ["CASES"]

_ORIGIN = f"torchvision {torchvision.__version__.partition('+')[0]}"


def _detector(name: str) -> Case:
    """Return the case of a detector that torchvision builds with all it does behind the model."""
    builder = f"torchvision.models.detection:{name}"
    args = {"weights": None, "weights_backbone": None}

    def module() -> torch.nn.Module:
        torch.manual_seed(0)
        built: torch.nn.Module = getattr(torchvision.models.detection, name)(**args, score_thresh=0.0)
        return built.eval()

    def prepare(folder: Path) -> Query:
        torch.save(module().state_dict(), folder / "a.pt")
        return {"task": "detection", "threshold": 0.02, "model": {"factory": builder, "args": args, "weights": "a.pt"}}

    def answers(folder: Path) -> Answer:
        model = module()

        def answer(image: Image) -> Result:
            pixels = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1) / 255
            with torch.inference_mode():
                (found,) = model([pixels])
            return tuple(
                Detection(tuple(box), score, str(label), label)
                for box, score, label in zip(
                    found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True
                )
            )

        return answer

    return Case(name, _ORIGIN, False, prepare, "torchvision", answers)


CASES = (_detector("ssdlite320_mobilenet_v3_large"),)
