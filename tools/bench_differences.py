"""Fine-tune one public ResNet-32 to four tasks on CIFAR-10, and measure what its kernels keep as small differences.

Every convolution kernel is replaced by a base plus a coded difference, and nothing is retrained. The table has the
accuracies relative to the fine-tuned models on test images, for several bases and numbers of bits, with codes of the
models' own kernels and low rank to compare with::

    .venv/bin/python tools/bench_differences.py DATA
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from gemel.merging.forms.quantize import coded_bytes, materialize, quantize_kernel
from gemel.workload.models.factory import read_state
from gemel.workload.zoo.cifar_resnet import CifarResNet, cifar_resnet

__all__ = ["main"]

_ARCHIVE, _CHECKPOINT, _DEPTH = "cifar10-jpeg.tar.xz", "resnet32-d509ac18.th", 32
TASKS = {"vehicles": (0, 1, 8, 9), "animals": (2, 3, 4, 5, 6, 7), "cat or dog": (3, 5), "all": tuple(range(10))}
"""Task -> its classes, as numbers of CIFAR-10's classes in the order of the alphabet."""
_RATE, _BATCH = 0.03, 64

Images = tuple[Tensor, Tensor]
"""Normalised images ``[N, 3, 32, 32]`` and their classes ``[N]``."""
Kernels = Mapping[str, Tensor]
"""Name of a convolution's kernel -> kernel."""
Form = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Function that returns what is kept of a kernel, given kernel, base and the mean squares of the layer's inputs."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help=f"folder with {_ARCHIVE} and {_CHECKPOINT}")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--train", type=int, default=1000, help="training images of each class")
    parser.add_argument("--test", type=int, default=600, help="test images of each class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    train, test = (_load(options.data / _ARCHIVE, *part) for part in (("train", options.train), ("test", options.test)))
    public = cifar_resnet(_DEPTH, 10)
    public.load_state_dict(read_state(options.data / _CHECKPOINT), strict=False)
    models, moments, reached = {}, {}, {}
    for name, classes in TASKS.items():
        torch.manual_seed(options.seed)
        models[name] = _fine_tune(public, _only(train, classes), len(classes), options.epochs)
        moments[name] = _input_moments(models[name], _only(train, classes)[0][:512])
        reached[name] = _accuracy(models[name], _only(test, classes))
        print(f"{name}: {reached[name]:.4f}", flush=True)
    own = {name: _kernels(model) for name, model in models.items()}
    stacked = {key: torch.stack([kernels[key] for kernels in own.values()]) for key in own["all"]}
    bases: dict[str, Kernels] = {
        "public checkpoint": _kernels(public),
        "mean": {key: value.mean(0) for key, value in stacked.items()},
        "median": {key: value.median(0).values for key, value in stacked.items()},
        "model `all`": own["all"],
    }
    for name, base in bases.items():
        print(f"{name}: {', '.join(f'{_distance(kernels, base):.3f}' for kernels in own.values())} away", flush=True)
    rows = []
    for base_name, form_name, base, form, size in _cases(bases):
        kept = [
            _coded_accuracy(models[name], form, base, moments[name], _only(test, classes)) / reached[name]
            for name, classes in TASKS.items()
        ]
        saved = 1 - size(own["all"], len(TASKS)) / (len(TASKS) * sum(4 * each.numel() for each in own["all"].values()))
        rows.append({"base": base_name, "form": form_name, "kept": kept, "saved": saved})
        cells = " | ".join(f"{value:.3f}" for value in kept)
        print(f"| {base_name} | {form_name} | {cells} | {saved:.1%} |", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def _cases(
    bases: Mapping[str, Kernels],
) -> list[tuple[str, str, Kernels, Form, Callable[[Kernels, int], int]]]:
    """Return the rows of the table: base, form, kernels of the base, the form's function, and the bytes of N models."""

    def coded(bits: int, own: bool = False, weighted: bool = False) -> Form:
        """Return the form with codes of some bits, of a difference or of the kernel itself."""

        def form(kernel: Tensor, base: Tensor, moments: Tensor | None) -> Tensor:
            values = kernel if own else kernel - base
            return materialize(quantize_kernel(values, bits, moments if weighted else None), None if own else base)

        return form

    def size(bits: int, base_bits: int = 32, one_less: bool = False) -> Callable[[Kernels, int], int]:
        """Return the function that counts the bytes of N models' kernels."""

        def count(kernels: Kernels, models: int) -> int:
            codes = sum(coded_bytes(tuple(each.shape), bits) for each in kernels.values())
            plain = sum(4 * each.numel() for each in kernels.values())
            eight = sum(coded_bytes(tuple(each.shape), 8) for each in kernels.values())
            base = {0: 0, 8: eight, 32: plain}[base_bits]
            return base + codes * (models - one_less)

        return count

    cases = []
    for name, base in bases.items():
        one_less = name.startswith("model")
        cases.append((name, "nothing", base, lambda kernel, base, moments: base, size(0)))
        some = {"public checkpoint": (1, 2, 4, 8), "median": (1, 2)}.get(name, (1, 2, 4))
        cases += [(name, f"{bits} bits", base, coded(bits), size(bits, one_less=one_less)) for bits in some]
    mean = bases["mean"]
    cases += [
        ("mean", f"{bits} bits, output-weighted", mean, coded(bits, weighted=True), size(bits)) for bits in (1, 2)
    ]
    eight = {key: materialize(quantize_kernel(value, 8)) for key, value in mean.items()}
    cases.append(("mean in 8 bits", "nothing", eight, lambda kernel, base, moments: base, size(0, 8)))
    cases += [("mean in 8 bits", f"{bits} bits", eight, coded(bits), size(bits, 8)) for bits in (1, 2, 4)]
    cases.append(("mean", "low rank, 5 % of the bytes", mean, _low_rank, _low_rank_bytes))
    cases += [
        ("none", f"own weights, {bits} bits", mean, coded(bits, own=True), size(bits, 0)) for bits in (1, 2, 4, 8)
    ]
    return cases


def _low_rank_bytes(kernels: Kernels, models: int) -> int:
    """Return the bytes of a float32 base and of N models' factors of low rank."""
    plain = sum(4 * each.numel() for each in kernels.values())
    return plain + models * sum(4 * _rank(each) * sum(each.flatten(1).shape) for each in kernels.values())


def _rank(kernel: Tensor) -> int:
    """Return the rank at which float32 factors take a twentieth of a kernel's bytes, but at least 1."""
    return max(1, int(0.05 * kernel.numel() / sum(kernel.flatten(1).shape)))


def _low_rank(kernel: Tensor, base: Tensor, moments: Tensor | None) -> Tensor:
    """Return base plus the difference's best approximation by float32 factors with a twentieth of its bytes."""
    matrix = (kernel - base).reshape(len(kernel), -1)
    rank = _rank(kernel)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    change: Tensor = (left[:, :rank] * values[:rank]) @ right[:rank]
    return base + change.reshape(kernel.shape)


def _load(archive: Path, split: str, count: int) -> Images:
    """Read the first images of each class of one split of CIFAR-10, in the order of their names."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(archive) as file:
        for member in file:
            parts = Path(member.name).parts
            if member.isfile() and split in parts:
                content = file.extractfile(member)
                assert content is not None
                found.setdefault(parts[-2], {})[parts[-1]] = content.read()
    pixels, answers = [], []
    for index, name in enumerate(sorted(found)):
        for file_name in sorted(found[name])[:count]:
            pixels.append(np.asarray(Image.open(io.BytesIO(found[name][file_name])).convert("RGB")))
            answers.append(index)
    spec = CifarResNet.input_defaults(cifar_resnet(8, 2))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float()
    return (images * spec.scale - mean) / std, torch.tensor(answers)


def _only(images: Images, classes: Sequence[int]) -> Images:
    """Return the images of some classes, numbered from 0 in the order of ``classes``."""
    chosen = torch.isin(images[1], torch.tensor(classes))
    number = {each: index for index, each in enumerate(classes)}
    return images[0][chosen], torch.tensor([number[int(each)] for each in images[1][chosen]])


def _fine_tune(public: nn.Module, images: Images, classes: int, epochs: int) -> nn.Module:
    """Return a copy of a model with a new head, fine-tuned by SGD with a cosine schedule and mirrored images."""
    model = copy.deepcopy(public).to(memory_format=torch.channels_last)
    model.linear = nn.Linear(64, classes)
    optimizer = torch.optim.SGD(model.parameters(), _RATE, momentum=0.9, weight_decay=5e-4)
    steps = epochs * (len(images[0]) // _BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(images[0]))
        for part in order[: len(order) // _BATCH * _BATCH].view(-1, _BATCH):
            pixels = images[0][part]
            pixels = torch.where(torch.rand(len(part), 1, 1, 1) < 0.5, pixels.flip(3), pixels)
            optimizer.zero_grad()
            F.cross_entropy(model(pixels.contiguous(memory_format=torch.channels_last)), images[1][part]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def _kernels(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in model.named_parameters() if value.ndim == 4}


@torch.no_grad()
def _input_moments(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return name of a kernel -> mean square of each input channel of its convolution, ``[1, C, 1, 1]``."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] = inputs[0].square().mean((0, 2, 3))[None, :, None, None]

        return record

    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    hooks = [layer.register_forward_hook(hook(f"{name}.weight")) for name, layer in layers.items()]
    model(images)
    for each in hooks:
        each.remove()
    return found


def _distance(kernels: Kernels, base: Kernels) -> float:
    """Return the norm of the difference of all kernels, divided by their norm."""
    difference = sum(float((kernels[key] - base[key]).square().sum()) for key in kernels)
    return float((difference / sum(float(each.square().sum()) for each in kernels.values())) ** 0.5)


@torch.no_grad()
def _coded_accuracy(model: nn.Module, form: Form, base: Kernels, moments: Kernels, images: Images) -> float:
    """Return the accuracy of a model with its kernels in a form."""
    changed = copy.deepcopy(model)
    for name, kernel in _kernels(changed).items():
        kernel.copy_(form(kernel.clone(), base[name], moments[name]))
    return _accuracy(changed, images)


@torch.no_grad()
def _accuracy(model: nn.Module, images: Images) -> float:
    model.eval()
    pairs = zip(images[0].split(500), images[1].split(500), strict=True)
    return sum(
        int((model(part.contiguous(memory_format=torch.channels_last)).argmax(1) == truth).sum())
        for part, truth in pairs
    ) / len(images[0])


if __name__ == "__main__":
    main()
