"""timm's models with random weights: classifiers, and networks without a head as embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch

from gemel.bundles.manifest import InputSpec
from gemel.frames.frame import Image
from gemel.runtime.decode.results import Embedding, Result

from .case import Answer, Case, Query, lively, save_fine_tuned, saved
from .torchvision_models import best_classes, normalised

__all__ = ["CASES"]

_ORIGIN = f"timm {timm.__version__}"
_create: Any = timm.create_model


def _input_of(name: str, size: tuple[int, int] | None = None) -> InputSpec:
    """Return the input that timm's own configuration names, stretched as a query stretches frames.

    timm would resize and cut off the edges of a frame; a query sees the whole frame.
    """
    config: Any = timm.get_pretrained_cfg(name)
    return InputSpec(size=size or config.input_size[1:], mean=config.mean, std=config.std)


def _query(task: str, args: Mapping[str, Any], file: str, **more: Any) -> Query:
    return {"task": task, "model": {"factory": "timm:create_model", "args": dict(args), "weights": file, **more}}


def _classifier(name: str, *heads: str) -> Case:
    """Return the case of a classifier, whose sibling is a fine-tune of ten classes with a frozen backbone.

    Args:
        name: name of the architecture.
        heads: names of the last layers; some models take the mean of two.
    """
    spec = _input_of(name)

    def prepare(folder: Path) -> Query:
        model = lively(lambda: _create(name), dict.fromkeys(heads, (0, 4)), spec=spec)
        torch.save(model.state_dict(), folder / "a.pt")
        return _query("classification", {"model_name": name}, "a.pt")

    def second(folder: Path) -> Query:
        save_fine_tuned(folder, lambda: _create(name, num_classes=10))
        return _query("classification", {"model_name": name, "num_classes": 10}, "b.pt")

    def answers(folder: Path) -> Answer:
        model = saved(folder, lambda: _create(name))

        def answer(image: Image) -> Result:
            with torch.inference_mode():
                return best_classes(model(normalised(image, spec)))

        return answer

    words = "fine-tune of 10 classes, frozen backbone"
    return Case(f"{name} (timm)", _ORIGIN, False, prepare, "timm", answers, second, words)


def _embedding(name: str, size: int | None = None) -> Case:
    """Return the case of a network without a head, whose sibling is the classifier on the same backbone.

    Args:
        name: name of the architecture.
        size: side of the input in pixels that the model is built for; timm's own if None.
    """
    args: dict[str, Any] = {"model_name": name} | ({} if size is None else {"img_size": size})
    spec = _input_of(name, None if size is None else (size, size))

    def prepare(folder: Path) -> Query:
        torch.save(lively(lambda: _create(**args, num_classes=0), spec=spec).state_dict(), folder / "a.pt")
        return _query("embedding", args | {"num_classes": 0}, "a.pt")

    def second(folder: Path) -> Query:
        save_fine_tuned(folder, lambda: _create(**args, num_classes=10))
        return _query("classification", args | {"num_classes": 10}, "b.pt")

    def answers(folder: Path) -> Answer:
        model = saved(folder, lambda: _create(**args, num_classes=0))

        def answer(image: Image) -> Result:
            with torch.inference_mode():
                (values,) = torch.nn.functional.normalize(model(normalised(image, spec)))
            return Embedding(tuple(values.tolist()))

        return answer

    words = "classifier of 10 classes on the same backbone"
    return Case(f"{name}, num_classes=0 (timm)", _ORIGIN, False, prepare, "timm", answers, second, words)


def _features(name: str) -> Case:
    """Return the case of a backbone that gives five feature maps. The deepest is the embedding."""
    args: dict[str, Any] = {"model_name": name, "features_only": True}
    spec = _input_of(name)

    def prepare(folder: Path) -> Query:
        torch.save(lively(lambda: _create(**args), spec=spec).state_dict(), folder / "a.pt")
        return _query("embedding", args, "a.pt")

    def answers(folder: Path) -> Answer:
        model = saved(folder, lambda: _create(**args))

        def answer(image: Image) -> Result:
            with torch.inference_mode():
                (values,) = torch.nn.functional.normalize(model(normalised(image, spec))[4].mean((2, 3)))
            return Embedding(tuple(values.tolist()))

        return answer

    return Case(f"{name}, features_only (timm)", _ORIGIN, False, prepare, "timm", answers)


CASES = (
    _classifier("convnext_atto", "head.fc"),
    _classifier("swin_tiny_patch4_window7_224", "head.fc"),
    _classifier("efficientvit_b0", "head.classifier.4"),
    _classifier("efficientvit_m0", "head.linear"),
    _classifier("fastvit_t8", "head.fc"),
    _classifier("mobilevit_xxs", "head.fc"),
    _classifier("vit_tiny_patch16_224", "head"),
    _classifier("deit_tiny_distilled_patch16_224", "head", "head_dist"),
    _classifier("mobilenetv4_conv_small", "classifier"),
    _classifier("efficientnet_lite0", "classifier"),
    _classifier("repvgg_a0", "head.fc"),
    _classifier("ghostnet_100", "classifier"),
    _classifier("levit_128s", "head.linear", "head_dist.linear"),
    _classifier("edgenext_xx_small", "head.fc"),
    _classifier("mixer_s32_224", "head"),
    _embedding("vit_small_patch14_dinov2", 224),
    _embedding("resnet18"),
    _features("mobilenetv3_small_100"),
)
